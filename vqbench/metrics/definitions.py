"""What each metric is: the table that the protocol hashes, reports read and `--metrics` selects from. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vqbench.errors import UsageError, unknown
from vqbench.wording import counted

VERSION = "v1"
"""Version of the definitions. A sentence below that changes in meaning makes a new version."""


@dataclass(frozen=True)
class Definition:
    """One metric."""

    name: str
    title: str
    """The head of its column in a table."""
    unit: str
    """The unit, or "" for a plain number."""
    better: Literal["higher", "lower"] | None
    """Which way is better, or None for what describes the tokenizer and does not rank it."""
    per_image: bool
    """Whether each image has a value of its own (the score is their mean)."""
    weights: str | None
    """The weights it needs: "inception", or the name of an LPIPS net."""
    default: bool
    """Whether it is computed when no metric is asked for."""
    sentence: str
    """The definition, as the protocol pins it."""
    min_resolution: int = 1
    """The smallest image, in pixels a side, that it is defined for."""
    few_images: int = 0
    """Of fewer validation images the score carries a caution (`cautions`). No part of the definition, nor of a hash."""
    companion_of: str = ""
    """The metric that it is computed beside, unasked, where a method has what it scores; "" for a metric itself."""


_LPIPS = (
    "LPIPS 0.1 ({net} backbone, the linear heads of the lpips package) of the 8-bit reconstruction and the 8-bit "
    "reference, both mapped to [-1, 1]; mean over images."
)

_TABLE = (
    Definition(
        "rfid", "rFID", "", "lower", False, "inception", True,
        "Fréchet distance between Gaussians fitted to the 2048-d pool features of torch-fidelity's inception-v3-compat "
        "of the 8-bit reconstructions and of the 8-bit validation images that they reconstruct; float32 features, "
        "float64 mean and unbiased covariance.",
        few_images=2048,  # the features: of fewer images their covariance has not even full rank
    ),
    Definition(
        "kid", "KID", "", "lower", False, "inception", True,
        "Unbiased squared MMD of the same features with the kernel (x·y/2048 + 1)^3 in float64; over the whole sets up "
        "to 1000 images, beyond that the mean over 100 pairs of random subsets of 1000 (numpy RandomState(2020)).",
    ),
    Definition(
        "psnr", "PSNR", "dB", "higher", True, None, True,
        "10 log10(255² / MSE) of each image's 8-bit RGB values, capped at 100 dB (which an identical image gets); "
        "mean over images.",
    ),
    Definition(
        "ssim", "SSIM", "", "higher", True, None, True,
        "Structural similarity on 8-bit RGB, range 255, 11×11 Gaussian window of sigma 1.5, population covariance, "
        "K1 0.01, K2 0.03, averaged over channels and the window positions inside the image; mean over images.", 11,
    ),
    Definition("lpips_alex", "LPIPS (alex)", "", "lower", True, "alex", True, _LPIPS.format(net="AlexNet"), 31),
    Definition("lpips_vgg", "LPIPS (vgg)", "", "lower", True, "vgg", False, _LPIPS.format(net="VGG-16"), 16),
    Definition(
        "lpips_squeeze", "LPIPS (squeeze)", "", "lower", True, "squeeze", False, _LPIPS.format(net="SqueezeNet 1.1"), 17
    ),
    Definition(
        "usage", "usage", "", "higher", False, None, True,
        "Codes used at least once over the whole split, divided by the effective codebook size; mean over codebooks.",
    ),
    Definition(
        "perplexity", "perplexity", "", "higher", False, None, True,
        "exp of the entropy of the histogram of codes over the whole split; mean over codebooks.",
    ),
    Definition(
        "dead_codes", "dead codes", "codes", "lower", False, None, True,
        "Codes never used over the whole split; mean over codebooks.",
    ),
    Definition(
        "bits_per_token", "bits/token", "bit", None, False, None, True,
        "log2 of the number of messages that one spatial position can carry: the sum of log2 K over codebooks.",
    ),
    Definition(
        "bpp", "bpp", "bit/pixel", None, False, None, True,
        "Bits per token times tokens per image, divided by pixels per image.",
    ),
    Definition(
        "bpp_entropy", "bpp (entropy)", "bit/pixel", None, False, None, True,
        "Bits per pixel of an ideal coder that knows the whole-split histogram of each codebook: the sum of their "
        "entropies in bits, times tokens per image, divided by pixels per image.",
    ),
    Definition(
        "tokens", "tokens", "tokens", None, False, None, True,
        "Spatial positions encoded over the whole split: what usage, perplexity and dead codes are counted over.",
    ),
)  # fmt: skip

METRICS: dict[str, Definition] = {definition.name: definition for definition in _TABLE}

_CONTINUOUS = (
    " of the images that the decoder makes of the latents which evaluation quantizes, as they are before that; only of "
    "methods that train the decoder on such latents too."
)

_COMPANIONS = (
    Definition(
        "rfid_continuous", "rFID (continuous)", "", None, False, "inception", True,
        "Fréchet distance, all else as for rfid," + _CONTINUOUS, companion_of="rfid",
    ),
    Definition(
        "psnr_continuous", "PSNR (continuous)", "dB", None, True, None, True,
        "PSNR, all else as for psnr," + _CONTINUOUS, companion_of="psnr",
    ),
)  # fmt: skip

COMPANIONS: dict[str, Definition] = {definition.name: definition for definition in _COMPANIONS}
"""Scores that nobody asks for. They are no part of METRICS, whose sentences are in the hash of every protocol, and no
cell has to have them: those of methods without such a path, and those that are older, have none."""


def default_metrics() -> tuple[str, ...]:
    """The metrics that are computed when none is asked for."""
    return tuple(name for name, definition in METRICS.items() if definition.default)


def select_metrics(asked: Iterable[str] = ()) -> tuple[str, ...]:
    """Names as typed (repeated, or between commas) → metric names in the table's order; nothing asked → the defaults.

    Raises UsageError, with the nearest names, for one that does not exist.
    """
    names = [part.strip() for text in asked for part in text.split(",") if part.strip()]
    for name in names:
        if name in COMPANIONS:
            beside = COMPANIONS[name].companion_of
            raise UsageError(
                f"{name} is not asked for: it comes with {beside}, of methods that train a continuous path",
                f"ask for {beside}: --metrics {beside}",
            )
        if name not in METRICS:
            raise unknown("metric", name, METRICS, f"known metrics: {', '.join(METRICS)}")
    return tuple(name for name in METRICS if name in names) if names else default_metrics()


def companions(metrics: Iterable[str]) -> tuple[str, ...]:
    """What is computed beside these metrics where a method has a continuous path."""
    asked = set(metrics)
    return tuple(name for name, definition in COMPANIONS.items() if definition.companion_of in asked)


def too_small(name: str, resolution: int) -> bool:
    """Whether images of `resolution` pixels a side are smaller than those that the metric is defined for."""
    return resolution < METRICS[name].min_resolution


def cautions(metrics: Iterable[str], n_images: int) -> dict[str, str]:
    """Metric → what must be said wherever its score over `n_images`, or its companion's, is shown; else empty."""
    meant = dict.fromkeys(COMPANIONS[name].companion_of if name in COMPANIONS else name for name in metrics)
    named = [(name, METRICS[name]) for name in meant if name in METRICS]
    return {name: _caution(known, n_images) for name, known in named if n_images < known.few_images}


def _caution(metric: Definition, n_images: int) -> str:
    return (
        f"{metric.title} of {counted(n_images, 'image')} is biased upwards: of fewer than {metric.few_images:,} the "
        "covariance of its features is singular; it ranks methods within this table and compares with no "
        f"{metric.title} from elsewhere"
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
    """The weights that these metrics need, each once: "inception" and LPIPS nets."""
    return tuple(dict.fromkeys(w for name in metrics if (w := METRICS[name].weights)))
