"""vqbench's own metrics, and what is known of every metric: selected by `--metrics`, read by reports. No torch here."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqbench.errors import UsageError, unknown
from vqbench.metrics.kinds import (
    Better,
    CodeFacts,
    CodeMetric,
    Extractor,
    FeatureMetric,
    FrechetDistance,
    Metric,
    PairMetric,
)
from vqbench.registry import EXTRACTORS, METRICS
from vqbench.wording import counted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from vqbench.metrics.codes import CodeStatistics
    from vqbench.weights import WeightFile

VERSION = "v1"
"""Version of the definitions that every image protocol has in its hash. A change of one in meaning makes a new one."""
IN_PROTOCOL = ("rfid", "kid", "psnr", "ssim", "lpips_alex", "lpips_vgg", "lpips_squeeze", "usage", "perplexity",
               "dead_codes", "bits_per_token", "bpp", "bpp_entropy", "tokens")  # fmt: skip
"""The metrics of v1. What comes later is told apart by a digest of its own, and changes no hash."""
IN_FEATURE_PROTOCOL = ("quantization_error", "usage", "perplexity", "dead_codes", "bits_per_token",
                       "entropy_bits_per_token", "tokens")  # fmt: skip
"""The same of the features track."""
_FIRST_DIGESTS = {"rfid_continuous": "206500a229a2", "psnr_continuous": "43de4e374380"}
"""Of metrics whose scores were stored without a digest at first."""
_TAKEN = ("id", "codes", "images", "method", "dataset", "recipe", "seed", "cell", "protocol", "state", "path", "error",
          "collapse", "matched", "cautions", "train_images_per_s")  # fmt: skip


@EXTRACTORS.register("inception")
class InceptionFeatures(Extractor):
    """The 2048-d pool layer of torch-fidelity's inception-v3-compat."""

    weights = "inception"
    dimensions = 2048

    def load(self, weights: WeightFile, home: Path) -> nn.Module:
        """The Inception; its weights are converted into `home` where need be."""
        from vqbench.metrics.inception import load

        return load(weights, home)


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
    """What the features track computes in the pass itself (`vqbench.feature_cell`)."""

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


@cache
def _made(name: str, cls: Any) -> Metric:
    made: Metric = cls(name=name)
    _refuse_odd(made)
    if name not in (*IN_PROTOCOL, *IN_FEATURE_PROTOCOL):
        made.digest = _digest(made)
    return made


def _refuse_odd(made: Metric) -> None:
    """Raise UsageError for a class that is no metric, or lacks what every table needs."""
    odd = ""
    if not re.fullmatch(r"[A-Za-z]\w{0,79}", made.name) or made.name in _TAKEN or made.name.startswith("params_"):
        odd = "it needs a name of letters, digits and '_' that no other column has"
    elif not (made.title and made.sentence):
        odd = "it needs a title and a sentence that defines it"
    elif made.better not in ("higher", "lower", None):
        odd = f"better is 'higher', 'lower' or None, not {made.better!r}"
    elif not isinstance(made.digits, int):
        odd = f"digits is a whole number, not {made.digits!r}"
    elif made.name in (*IN_PROTOCOL, *IN_FEATURE_PROTOCOL) and not type(made).__module__.startswith("vqbench."):
        odd = "protocol v1 has one of that name"
    if odd:
        raise UsageError(f"metric '{made.name}': {odd}", "see docs/adding-a-metric.md")


def _digest(made: Metric) -> str:
    """12 hex digits over all that a number of it depends on beside the protocol."""
    from vqbench.weights import pin_of

    needed = weights_of(made)
    parts = [
        made.sentence,
        pin_of(needed).digest if needed else "",
        METRICS.source_of(made.name).digest,
        EXTRACTORS.source_of(made.extractor).digest if made.extractor else None,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def metric(name: str) -> Metric:
    """The metric that is registered under `name`, imported now. Raises UsageError where there is none, or it is odd."""
    cls: Any = METRICS.get(name)
    if not (isinstance(cls, type) and issubclass(cls, Metric)):
        raise UsageError(f"metric '{name}' is no subclass of a kind of metric", "see docs/adding-a-metric.md")
    return _made(name, cls)


def weights_of(metric: Metric) -> str:
    """The name of the weights that a metric needs, itself or for the features that it compares; "" for none."""
    return EXTRACTORS.get(metric.extractor).weights if metric.extractor else metric.weights


class _Definitions(Mapping[str, Metric]):
    """Every metric by name: what stored cells told of it, else what is registered.

    Listed are vqbench's own, then others of which something is known without importing them.
    """

    def __init__(self) -> None:
        self._told: dict[str, Metric] = {}

    def tell(self, stored: Mapping[str, Mapping[str, Any]]) -> None:
        """Take over what reports show of metrics from cells that have their scores (`Metric.as_dict`)."""
        for name, said in stored.items():
            self._told.pop(name, None)
            if not METRICS.is_built_in(name) or metric(name).digest not in ("", said.get("digest")):
                self._told[name] = Metric.told(name, said)

    def __getitem__(self, name: str) -> Metric:
        if name in self._told:
            return self._told[name]
        if name not in METRICS:
            raise KeyError(name)
        return metric(name)

    def __contains__(self, name: object) -> bool:
        return name in self._told or (isinstance(name, str) and name in METRICS)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*filter(_is_usable, METRICS.imported()), *self._told)))

    def __len__(self) -> int:
        return len(list(iter(self)))


DEFINITIONS = _Definitions()


def _is_usable(name: str) -> bool:
    """Whether what is registered under a name is whole; what nobody has asked for by name must stop nothing."""
    try:
        return metric(name).name == name
    except UsageError:
        return False


def _unasked() -> Iterator[Metric]:
    """What a command knows of without being asked: vqbench's own, and what is in the files that it was given."""
    for name in METRICS.names():
        if METRICS.is_built_in(name) or (METRICS.file_of(name) is not None and _is_usable(name)):
            yield metric(name)


def own_metrics(track: str = "images") -> tuple[str, ...]:
    """vqbench's metrics of a track that can be asked for."""
    return tuple(m.name for m in _unasked() if METRICS.is_built_in(m.name) and _can_be_asked(m, track))


def _can_be_asked(known: Metric, track: str) -> bool:
    return track in known.tracks and not known.companion_of


def default_metrics(track: str = "images") -> tuple[str, ...]:
    """The metrics that are computed when none is asked for, those of files that were given among them."""
    return tuple(known.name for known in _unasked() if known.default and _can_be_asked(known, track))


def select_metrics(asked: Iterable[str] = (), track: str = "images") -> tuple[str, ...]:
    """Names as typed (repeated, or between commas) → metric names in the table's order; nothing asked → the defaults.

    Raises UsageError, with the nearest names, for one that does not exist or that the track does not have.
    """
    names = [part.strip() for text in asked for part in text.split(",") if part.strip()]
    for name in names:
        _refuse_stray(name, track)
    return tuple(name for name in METRICS.names() if name in names) if names else default_metrics(track)


def _refuse_stray(name: str, track: str) -> None:
    if name not in METRICS:
        listed = ", ".join(own_metrics(track))
        near = {found: None for found in METRICS.names() if found in own_metrics(track) or METRICS.file_of(found)}
        try:
            METRICS.get(name)  # a file may register a name that its text does not show
        except UsageError as error:
            kind = "metric" if track == "images" else f"metric of {track}"
            raise unknown(kind, name, near, f"known metrics: {listed}") from error
    known = metric(name)
    if track not in known.tracks:
        what = (
            f"{name} is a metric of images, and this recipe fits features: nothing is decoded to an image"
            if track == "features"
            else f"{name} is a metric of features, and this recipe trains on images"
        )
        raise UsageError(
            what,
            f"leave out --metrics (and VQBENCH_METRICS), or choose among {', '.join(own_metrics(track))}",
        )
    if known.companion_of:
        beside = known.companion_of
        raise UsageError(
            f"{name} is not asked for: it comes with {beside}, of methods that train a continuous path",
            f"ask for {beside}: --metrics {beside}",
        )


def companions(metrics: Iterable[str]) -> tuple[str, ...]:
    """What is computed beside these metrics where a method has a continuous path."""
    asked = set(metrics)
    return tuple(known.name for known in _unasked() if known.companion_of in asked)


def digests(metrics: Iterable[str]) -> dict[str, str]:
    """Metric → digest, of those that have one."""
    return {name: digest for name in metrics if (digest := metric(name).digest)}


def stored_definitions(scores: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What a result says of those scores that have a digest, so that a report needs no plugin to show them."""
    return {name: metric(name).as_dict() for name in scores if name in METRICS and metric(name).digest}


def stored_digest(name: str, result: Mapping[str, Any]) -> str:
    """The digest of a score in a result, or of one that belongs to it (`usage/0`); "" where the protocol has it."""
    known = (result.get("metrics") or {}).get(name.partition("/")[0]) or {}
    return str(known.get("digest") or _FIRST_DIGESTS.get(name, ""))


def current_scores(result: Mapping[str, Any]) -> dict[str, float]:
    """The scores of a result, but those by a definition that is not the registered one any more."""
    return {
        name: value
        for name, value in (result.get("scores") or {}).items()
        if not (digest := stored_digest(name, result)) or digest == _current_digest(name.partition("/")[0], digest)
    }


def _current_digest(name: str, otherwise: str) -> str:
    """The digest of what is registered under `name`; `otherwise` where nothing is that could be computed."""
    try:
        return metric(name).digest if name in METRICS else otherwise
    except UsageError:
        return otherwise


def one_definition_each(
    results: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Results, by cell, in which each metric has one definition; and a sentence for each that has others besides.

    What is registered wins where a cell has it, else what most cells have. Reports show each as its cells tell.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for cell, result in results.items():
        for name in result.get("scores") or {}:
            if digest := stored_digest(name, result):
                found.setdefault(name, {}).setdefault(digest, []).append(cell)
    said, chosen = [], dict[str, str]()
    for name, cells in found.items():
        most = max(sorted(cells), key=lambda digest: len(cells[digest]))
        current = _current_digest(name.partition("/")[0], most) if len(cells) > 1 else most
        chosen[name] = current if current in cells else most
        others = sorted(cell for digest, listed in cells.items() if digest != chosen[name] for cell in listed)
        if others and "/" not in name:
            said.append(
                f"{name} of {others[0]}{f' and {len(others) - 1} more' if len(others) > 1 else ''} was measured by "
                f"another definition than that of the rest ({chosen[name]}), and is left out; `vqbench run` with "
                f"--metrics {name} scores it anew, without training"
            )
        told = (results[cells[chosen[name]][0]].get("metrics") or {}).get(name)
        if told:
            DEFINITIONS.tell({name: told})
    return {
        cell: {
            **result,
            "scores": {
                name: value
                for name, value in (result.get("scores") or {}).items()
                if stored_digest(name, result) == chosen.get(name, "")
            },
        }
        for cell, result in results.items()
    }, said


def too_small(name: str, resolution: int) -> bool:
    """Whether images of `resolution` pixels a side are smaller than those that the metric is defined for."""
    return resolution < metric(name).min_resolution


def refuse_few_images(metrics: Iterable[str], n_images: int) -> None:
    """Raise UsageError where a metric is defined for more images than there are."""
    for known in map(metric, metrics):
        if n_images < known.min_images:
            raise UsageError(
                f"{known.name} needs at least {known.min_images} validation images, there "
                f"{'is' if n_images == 1 else 'are'} {n_images}",
                f"leave {known.name} out of the metrics, for example: --metrics psnr,ssim,usage",
            )


def cautions(metrics: Iterable[str], n_images: int) -> dict[str, str]:
    """Metric → what must be said wherever its score over `n_images`, or its companion's, is shown; else empty."""
    shown = (DEFINITIONS[name] for name in metrics if name in DEFINITIONS)
    named = {known.companion_of or known.name: known for known in shown}
    return {name: _caution(DEFINITIONS[name], n_images) for name, known in named.items() if n_images < known.few_images}


def _caution(known: Metric, n_images: int) -> str:
    why = "the covariance of its features is singular" if known.extractor else "it says little"
    return (
        f"{known.title} of {counted(n_images, 'image')} is biased upwards: of fewer than {known.few_images:,} {why}; "
        f"it ranks methods within this table and compares with no {known.title} from elsewhere"
    )


_IN_EVERY_DEFAULT = frozenset(("usage", "perplexity", "dead_codes", "bits_per_token", "tokens"))
"""What is computed on either track where no metric is asked for."""


def asked_metrics(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """The metrics of a cell that were asked for by name; a spec of an older version does not say which those were."""
    if "asked" in spec:
        return tuple(spec["asked"])
    metrics = tuple(spec.get("metrics") or ())
    return () if set(metrics) >= _IN_EVERY_DEFAULT else metrics


def needed_weights(metrics: Iterable[str]) -> tuple[str, ...]:
    """The names of the weights that these metrics need, each once."""
    return tuple(dict.fromkeys(found for name in metrics if (found := weights_of(metric(name)))))
