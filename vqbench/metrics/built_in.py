"""vqbench's own metrics, in the order in which tables show them; and the features that some compare. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vqbench.metrics.kinds import (
    Better,
    CodeFacts,
    CodeMetric,
    Extractor,
    FeatureMetric,
    FrechetDistance,
    Metric,
    PairMetric,
    Sees,
)
from vqbench.registry import EXTRACTORS, METRICS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from vqbench.metrics.codes import CodeStatistics
    from vqbench.metrics.weights import WeightFile


@EXTRACTORS.register("inception")
class InceptionFeatures(Extractor):
    """The 2048-d pool layer of torch-fidelity's inception-v3-compat."""

    weights = "inception"
    dimensions = 2048

    def load(self, weights: WeightFile, home: Path) -> nn.Module:
        """The Inception; its weights are converted into `home` where need be."""
        from vqbench.metrics.inception import load

        return load(weights, home)


@EXTRACTORS.register("inception_pytorch_fid")
class PytorchFIDFeatures(InceptionFeatures):
    """The same layer of the same weights, with the image resized and normalised as pytorch-fid does."""

    digest = "pytorch-fid"

    def load(self, weights: WeightFile, home: Path) -> nn.Module:
        """Takes floats from 0 to 255."""
        from vqbench.metrics.inception import OfFloats, load

        return load(weights, home, OfFloats)


_CONTINUOUS = (
    " of the images that the decoder makes of the latents which evaluation quantizes, as they are before that; only of "
    "methods that train the decoder on such latents too."
)


@METRICS.register("rfid")
class RFID(FrechetDistance):
    """FID of reconstructions against what they reconstruct."""

    title, default = "rFID", True
    gloss = "how far the reconstructions, as a set, are from the originals in what an image classifier sees"
    sentence = (
        "Fréchet distance between Gaussians fitted to the 2048-d pool features of torch-fidelity's inception-v3-compat "
        "of the 8-bit reconstructions and of the 8-bit validation images that they reconstruct; float32 features, "
        "float64 mean and unbiased covariance."
    )
    few_images = 2048  # the features: of fewer images their covariance has not even full rank


_UNROUNDED = "that the decoder gave, clamped to [-1, 1] and rounded nowhere"


@METRICS.register("rfid_float")
class FloatRFID(RFID):
    """rFID of floats, as pytorch-fid's network sees them."""

    title, short, default, values = "rFID (floats)", "rFID float", False, "floats"
    extractor = "inception_pytorch_fid"
    in_place_of = "rfid"
    gloss = "rFID of reconstructions that nothing has rounded"
    sentence = (
        f"Fréchet distance, all else as for rfid, of the floats {_UNROUNDED}, and of the validation images as floats; "
        "resized to 299 pixels bilinearly without antialiasing, pixel centres at halves, and brought to [-1, 1], as "
        "pytorch-fid does it."
    )


@METRICS.register("rfid_per_channel")
class RFIDPerChannel(RFID):
    """rFID of each channel."""

    title, short, sees, in_place_of = "rFID (per channel)", "rFID per ch.", "each_channel", "rfid"
    gloss = "rFID of each channel as a grey image, averaged"
    sentence = (
        "Fréchet distance, all else as for rfid, of each channel by itself, repeated to RGB, of reconstructions and "
        "validation images alike; mean over channels. rfid_per_channel/0, rfid_per_channel/1 … are the channels."
    )


@METRICS.register("rfid_continuous")
class ContinuousRFID(RFID):
    """rFID without quantization."""

    title, short, better, on_request = "rFID (continuous)", "rFID cont.", None, True
    gloss = "rFID without quantization: what rFID has over it is the cost of quantization alone"
    sentence = "Fréchet distance, all else as for rfid," + _CONTINUOUS
    companion_of = "rfid"


@METRICS.register("kid")
class KID(FeatureMetric):
    """Kernel Inception distance."""

    title, better, digits, default, on_request = "KID", "lower", 4, True, True
    gloss = "the same distance as rFID, estimated without bias from few images"
    sentence = (
        "Unbiased squared MMD of the same features with the kernel (x·y/2048 + 1)^3 in float64; over the whole sets up "
        "to 1000 images, beyond that the mean over 100 pairs of random subsets of 1000 (numpy RandomState(2020))."
    )

    def score(self, reference: NDArray[np.float32], reconstructed: NDArray[np.float32]) -> float:
        """May be slightly negative."""
        from vqbench.metrics.frechet import kernel_distance

        return kernel_distance(reference, reconstructed)

    def timing(self, images: int) -> tuple[int, float]:
        """One estimate over all, or a hundred over subsets."""
        return min(images, 1000), 100 if images > 1000 else 1


@METRICS.register("psnr")
class PSNR(PairMetric):
    """Peak signal-to-noise ratio."""

    title, unit, digits, default = "PSNR", "dB", 2, True
    better: Better = "higher"
    gloss = "how close each pixel comes to the original, in decibels"
    sentence = (
        "10 log10(255² / MSE) of each image's 8-bit RGB values, capped at 100 dB (which an identical image gets); "
        "mean over images."
    )

    def score(self, references: Tensor, reconstructions: Tensor) -> Tensor:
        """(B,) in dB."""
        from vqbench.metrics.pixels import psnr

        return psnr(references, reconstructions)


@METRICS.register("psnr_float")
class FloatPSNR(PSNR):
    """PSNR without rounding."""

    title, short, default, values = "PSNR (floats)", "PSNR float", False, "floats"
    in_place_of = "psnr"
    gloss = "PSNR of reconstructions that nothing has rounded"
    sentence = f"PSNR, all else as for psnr, of the floats {_UNROUNDED}."


_CUT = (
    " of 8 bits that are cut off and not rounded: x in [-1, 1] becomes the whole part of 255 (x + 1)/2 in float32, of "
    "reconstructions and of validation images alike, which takes one off some of their values"
)


@METRICS.register("psnr_truncated")
class TruncatedPSNR(PSNR):
    """PSNR of 8 bits that are cut off."""

    title, short, default, values = "PSNR (cut off)", "PSNR cut", False, "truncated"
    in_place_of = "psnr"
    gloss = "PSNR where values are cut off to 8 bits and not rounded"
    sentence = f"PSNR, all else as for psnr,{_CUT}."


_CHANNELS = (
    " of each channel of an image by itself, repeated to RGB; mean over channels. {name}/0, {name}/1 … are the "
    "channels."
)


@METRICS.register("psnr_per_channel")
class PSNRPerChannel(PSNR):
    """PSNR of each channel."""

    title, short, sees, on_request = "PSNR (per channel)", "PSNR per ch.", "each_channel", True
    gloss = "PSNR of each channel, averaged"
    sentence = "PSNR, all else as for psnr," + _CHANNELS.format(name="psnr_per_channel")


@METRICS.register("psnr_continuous")
class ContinuousPSNR(PSNR):
    """PSNR without quantization."""

    title, short, better, default = "PSNR (continuous)", "PSNR cont.", None, False
    gloss = "PSNR without quantization: what it has over PSNR is the cost of quantization alone"
    sentence = "PSNR, all else as for psnr," + _CONTINUOUS
    companion_of = "psnr"


@METRICS.register("ssim")
class SSIM(PairMetric):
    """Structural similarity."""

    title, better, default, min_resolution = "SSIM", "higher", True, 11
    gloss = "how much of the local structure is kept; 1 is an identical image"
    sentence = (
        "Structural similarity on 8-bit RGB, range 255, 11×11 Gaussian window of sigma 1.5, population covariance, "
        "K1 0.01, K2 0.03, averaged over channels and the window positions inside the image; mean over images."
    )

    def score(self, references: Tensor, reconstructions: Tensor) -> Tensor:
        """(B,) up to 1."""
        from vqbench.metrics.pixels import ssim

        return ssim(references, reconstructions)


@METRICS.register("ssim_float")
class FloatSSIM(SSIM):
    """SSIM without rounding."""

    title, short, default, values = "SSIM (floats)", "SSIM float", False, "floats"
    in_place_of = "ssim"
    gloss = "SSIM of reconstructions that nothing has rounded"
    sentence = f"SSIM, all else as for ssim, of the floats {_UNROUNDED}."


_FLAT = "7×7 flat window and sample covariance (scikit-image's defaults)"


@METRICS.register("ssim_truncated")
class TruncatedSSIM(SSIM):
    """SSIM of 8 bits that are cut off, with a flat window."""

    title, short, default, min_resolution, values = "SSIM (cut off, flat)", "SSIM cut", False, 7, "truncated"
    in_place_of = "ssim"
    gloss = "SSIM with a flat window, where values are cut off to 8 bits and not rounded"
    sentence = f"SSIM, all else as for ssim, with a {_FLAT},{_CUT}."

    def score(self, references: Tensor, reconstructions: Tensor) -> Tensor:
        """(B,) up to 1."""
        from vqbench.metrics.pixels import uniform_ssim

        return uniform_ssim(references, reconstructions)


@METRICS.register("ssim_range2")
class DoubleRangeSSIM(SSIM):
    """SSIM of values whose range is said to be twice what it is."""

    title, short, default, min_resolution = "SSIM (range 2, flat)", "SSIM range 2", False, 7
    in_place_of = "ssim"
    gloss = "SSIM with constants for twice the range that values have, which is larger than SSIM"
    sentence = f"SSIM, all else as for ssim, with a {_FLAT} and range 510: data_range 2 of values in [0, 1]."

    def score(self, references: Tensor, reconstructions: Tensor) -> Tensor:
        """(B,) up to 1."""
        from vqbench.metrics.pixels import uniform_ssim

        return uniform_ssim(references, reconstructions, data_range=510.0)


@METRICS.register("ssim_per_channel")
class SSIMPerChannel(SSIM):
    """SSIM of each channel."""

    title, short, sees, on_request = "SSIM (per channel)", "SSIM per ch.", "each_channel", True
    gloss = "SSIM of each channel, averaged"
    sentence = "SSIM, all else as for ssim," + _CHANNELS.format(name="ssim_per_channel")


@METRICS.register("ms_ssim")
class MSSSIM(PairMetric):
    """Multi-scale structural similarity (Wang et al., 2003, doi:10.1109/ACSSC.2003.1292216)."""

    title, better, on_request, min_resolution = "MS-SSIM", "higher", True, 161
    gloss = "how much of the structure is kept, from fine to coarse; 1 is an identical image"
    sentence = (
        "Multi-scale structural similarity on 8-bit RGB, range 255: at five scales, each the 2×2 means of the one "
        "before, SSIM's contrast-structure term (11×11 Gaussian window of sigma 1.5, population covariance, K1 0.01, "
        "K2 0.03, averaged over channels and the window positions inside the image), at the last scale SSIM "
        "itself over every position of the image mirrored at its border; what is negative counts as 0; the product of "
        "their powers 0.0448, 0.2856, 0.3001, 0.2363 and 0.1333 (as torchmetrics has it); mean over images."
    )

    def score(self, references: Tensor, reconstructions: Tensor) -> Tensor:
        """(B,) in [0, 1]."""
        from vqbench.metrics.pixels import ms_ssim

        return ms_ssim(references, reconstructions)


class LPIPS(PairMetric):
    """Learned perceptual similarity with the backbone that `weights` names."""

    better, gloss = "lower", "how different the images look to a neural network; 0 is identical"
    sees: Sees = "rgb"

    def load(self, weights: WeightFile, home: Path) -> nn.Module:
        """The backbone with LPIPS's linear heads."""
        from vqbench.metrics.perceptual import load

        return load(self.weights, weights)

    def score(self, references: Tensor, reconstructions: Tensor) -> Tensor:
        """(B,) from 0."""
        from vqbench.inputs import to_input

        values: Tensor = self.network(to_input(references), to_input(reconstructions))
        return values.double()


def _lpips(backbone: str) -> str:
    return (
        f"LPIPS 0.1 ({backbone} backbone, the linear heads of the lpips package) of the 8-bit reconstruction and the "
        "8-bit reference, both mapped to [-1, 1]; mean over images."
    )


@METRICS.register("lpips_alex")
class LPIPSAlex(LPIPS):
    """LPIPS with AlexNet."""

    title, short, weights, default, min_resolution = "LPIPS (alex)", "LPIPS alex", "alex", True, 31
    sentence = _lpips("AlexNet")


@METRICS.register("lpips_vgg")
class LPIPSVGG(LPIPS):
    """LPIPS with VGG-16."""

    title, short, weights, min_resolution = "LPIPS (vgg)", "LPIPS vgg", "vgg", 16
    sentence = _lpips("VGG-16")


@METRICS.register("lpips_squeeze")
class LPIPSSqueeze(LPIPS):
    """LPIPS with SqueezeNet."""

    title, short, weights, min_resolution = "LPIPS (squeeze)", "LPIPS sqz", "squeeze", 17
    sentence = _lpips("SqueezeNet 1.1")


@METRICS.register("lpips_alex_float")
class FloatLPIPSAlex(LPIPSAlex):
    """LPIPS with AlexNet, without rounding."""

    title, short, default, values = "LPIPS (alex, floats)", "LPIPS alex float", False, "floats"
    in_place_of = "lpips_alex"
    sentence = f"LPIPS, all else as for lpips_alex, of the floats {_UNROUNDED}."


@METRICS.register("lpips_vgg_float")
class FloatLPIPSVGG(LPIPSVGG):
    """LPIPS with VGG-16, without rounding."""

    title, short, values = "LPIPS (vgg, floats)", "LPIPS vgg float", "floats"
    in_place_of = "lpips_vgg"
    sentence = f"LPIPS, all else as for lpips_vgg, of the floats {_UNROUNDED}."


def _lpips_per_channel(name: str) -> str:
    return f"LPIPS, all else as for {name}," + _CHANNELS.format(name=f"{name}_per_channel")


_EACH = "how different each channel, as a grey image, looks to a neural network; averaged, 0 is identical"


@METRICS.register("lpips_alex_per_channel")
class LPIPSAlexPerChannel(LPIPSAlex):
    """LPIPS with AlexNet, of each channel."""

    title, short, sees, in_place_of = "LPIPS (alex, per channel)", "LPIPS alex per ch.", "each_channel", "lpips_alex"
    sentence, gloss = _lpips_per_channel("lpips_alex"), _EACH


@METRICS.register("lpips_vgg_per_channel")
class LPIPSVGGPerChannel(LPIPSVGG):
    """LPIPS with VGG-16, of each channel."""

    title, short, sees, in_place_of = "LPIPS (vgg, per channel)", "LPIPS vgg per ch.", "each_channel", "lpips_vgg"
    sentence, gloss = _lpips_per_channel("lpips_vgg"), _EACH


@METRICS.register("lpips_squeeze_per_channel")
class LPIPSSqueezePerChannel(LPIPSSqueeze):
    """LPIPS with SqueezeNet, of each channel."""

    title, short, sees = "LPIPS (squeeze, per channel)", "LPIPS sqz per ch.", "each_channel"
    in_place_of = "lpips_squeeze"
    sentence, gloss = _lpips_per_channel("lpips_squeeze"), _EACH


_NEIGHBOURS = (
    " by their 2048-d Inception pool features (those of rfid, float32, Euclidean distance): inside the ball of a point "
    "is what is no farther from it than its 3rd nearest neighbour in its own set. As torch-fidelity's prc; the paper's "
    "VGG-16 features are another metric."
)


@METRICS.register("inception_precision")
class InceptionPrecision(FeatureMetric):
    """Improved precision (Kynkäänniemi et al., 2019, arXiv:1904.06991)."""

    title, short, better, on_request, min_images = "precision (Inception)", "precision", "higher", True, 4
    gloss = "the share of reconstructions that lie among the originals in what an image classifier sees"
    sentence = (
        "Share of the 8-bit reconstructions that lie inside the ball of at least one 8-bit validation image"
        + _NEIGHBOURS
    )

    def score(self, reference: NDArray[np.float32], reconstructed: NDArray[np.float32]) -> float:
        """In [0, 1]."""
        from vqbench.metrics.neighbours import inside

        return inside(reconstructed, reference)


@METRICS.register("inception_recall")
class InceptionRecall(FeatureMetric):
    """Improved recall (Kynkäänniemi et al., 2019, arXiv:1904.06991)."""

    title, short, better, on_request, min_images = "recall (Inception)", "recall", "higher", True, 4
    gloss = "the share of originals that lie among the reconstructions in what an image classifier sees"
    sentence = (
        "Share of the 8-bit validation images that lie inside the ball of at least one 8-bit reconstruction"
        + _NEIGHBOURS
    )

    def score(self, reference: NDArray[np.float32], reconstructed: NDArray[np.float32]) -> float:
        """In [0, 1]."""
        from vqbench.metrics.neighbours import inside

        return inside(reference, reconstructed)


@METRICS.register("quantization_error")
class QuantizationError(Metric):
    """What the features track computes in the pass itself (`vqbench.metrics.feature_evaluation`)."""

    title, short, better, digits, default = "quantization error", "q. error", "lower", 4, True
    per_image, tracks = True, ("features",)
    gloss = "what is lost between a feature vector and its code; 0 is nothing"
    sentence = (
        "Mean over validation tokens of |x − x̂|², divided by the mean over validation tokens of |x − m|²: x the "
        "standardised features of a token, x̂ what indices and the learned linear map give back for it in eval mode and "
        "float32, m the mean of x over all validation tokens. 0 is perfect, 1 is what knowing m alone gives."
    )


_BOTH = ("images", "features")


@METRICS.register("usage")
class Usage(CodeMetric):
    """Share of codes that are used."""

    title, better, default, each_codebook, tracks = "usage", "higher", True, True, _BOTH
    gloss = "the share of the codebook that is ever used; 1 is every code"
    sentence = (
        "Codes used at least once over the whole split, divided by the effective codebook size; mean over codebooks."
    )

    def score(self, histogram: NDArray[np.int64], facts: CodeFacts) -> float:
        """In (0, 1]."""
        return _statistics(histogram).usage


@METRICS.register("perplexity")
class Perplexity(CodeMetric):
    """exp of the entropy of codes."""

    title, better, digits, default, each_codebook, tracks = "perplexity", "higher", 1, True, True, _BOTH
    gloss = "how many codes are in use, counted as if all were used equally often"
    sentence = "exp of the entropy of the histogram of codes over the whole split; mean over codebooks."

    def score(self, histogram: NDArray[np.int64], facts: CodeFacts) -> float:
        """From 1 to the codebook size."""
        return _statistics(histogram).perplexity


@METRICS.register("tokens")
class Tokens(CodeMetric):
    """What the codes are counted over."""

    title, unit, digits, interval, default, on_request, tracks = "tokens", "tokens", 0, False, True, True, _BOTH
    gloss = "how many tokens usage and perplexity are counted over"
    sentence = "Spatial positions encoded over the whole split: what usage, perplexity and dead codes are counted over."

    def score(self, histogram: NDArray[np.int64], facts: CodeFacts) -> float:
        """Their number."""
        return float(histogram[0].sum())


@METRICS.register("dead_codes")
class DeadCodes(CodeMetric):
    """Codes that are never used."""

    title, unit, better, digits, default, on_request = "dead codes", "codes", "lower", 1, True, True
    each_codebook, tracks = True, _BOTH
    gloss = "how many codes are never used"
    sentence = "Codes never used over the whole split; mean over codebooks."

    def score(self, histogram: NDArray[np.int64], facts: CodeFacts) -> float:
        """Their number, from 0."""
        return float(_statistics(histogram).dead_codes)


@METRICS.register("bits_per_token")
class BitsPerToken(CodeMetric):
    """What a token can carry."""

    title, unit, digits, interval, default, tracks = "bits/token", "bit", 2, False, True, _BOTH
    gloss = "what one token costs to store, without entropy coding"
    sentence = "log2 of the number of messages that one spatial position can carry: the sum of log2 K over codebooks."

    def score(self, histogram: NDArray[np.int64], facts: CodeFacts) -> float:
        """As the quantizer says it."""
        return facts.bits_per_token


@METRICS.register("entropy_bits_per_token")
class EntropyBitsPerToken(CodeMetric):
    """What a token costs an ideal coder."""

    title, unit, digits, default, on_request = "bits/token (entropy)", "bit", 2, True, True
    tracks = ("features",)
    gloss = "what one token costs to store with an ideal entropy coder"
    sentence = (
        "Bits per token of an ideal coder that knows the histogram of each codebook over all validation tokens: the "
        "sum of their entropies in bits."
    )

    def score(self, histogram: NDArray[np.int64], facts: CodeFacts) -> float:
        """From 0 to bits_per_token."""
        return _entropy_bits(histogram)


@METRICS.register("bpp")
class BitsPerPixel(CodeMetric):
    """What a pixel costs."""

    title, unit, interval, default, on_request = "bpp", "bit/pixel", False, True, True
    gloss = "what one pixel costs to store, without entropy coding"
    sentence = "Bits per token times tokens per image, divided by pixels per image."

    def score(self, histogram: NDArray[np.int64], facts: CodeFacts) -> float:
        """In bit/pixel."""
        return facts.bits_per_token * _tokens_per_pixel(histogram, facts)


@METRICS.register("bpp_entropy")
class EntropyBitsPerPixel(CodeMetric):
    """What a pixel costs an ideal coder."""

    title, unit, default, on_request = "bpp (entropy)", "bit/pixel", True, True
    gloss = "what one pixel costs to store with an ideal entropy coder"
    sentence = (
        "Bits per pixel of an ideal coder that knows the whole-split histogram of each codebook: the sum of their "
        "entropies in bits, times tokens per image, divided by pixels per image."
    )

    def score(self, histogram: NDArray[np.int64], facts: CodeFacts) -> float:
        """In bit/pixel."""
        return _entropy_bits(histogram) * _tokens_per_pixel(histogram, facts)


def _statistics(histogram: NDArray[np.int64]) -> CodeStatistics:
    from vqbench.metrics.codes import code_statistics

    return code_statistics(histogram[0])


def _entropy_bits(histogram: NDArray[np.int64]) -> float:
    from vqbench.metrics.codes import code_statistics

    return sum(code_statistics(counts).entropy_bits for counts in histogram)


def _tokens_per_pixel(histogram: NDArray[np.int64], facts: CodeFacts) -> float:
    return int(histogram[0].sum()) / facts.images / facts.pixels
