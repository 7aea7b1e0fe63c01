"""What a metric is, and the four kinds that can be computed. A metric is a class of one kind; no torch here.

A class says in its attributes what it is called, means and needs, and has one method, `score`. Everything that shows
metrics reads the attributes. What a method of them imports is imported there, for reports and plans read them too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from vqbench.metrics.weights import WeightFile

Better = Literal["higher", "lower"] | None
Sees = Literal["any", "rgb", "each_channel"]
Values = Literal["rounded", "truncated", "floats"]
RGB = 3
"""Channels of an image that networks of metrics and losses take as it is."""
_SHOWN = ("title", "short", "unit", "better", "digits", "interval", "on_request", "gloss", "sentence", "few_images",
          "per_image", "companion_of", "extractor", "sees", "values")  # fmt: skip


class Metric:
    """One metric. An instance of this very class can be shown and not computed: a stored cell has told of it."""

    name: str = ""
    """What it is registered under."""
    title: str = ""
    """What it is called in sentences and on axes."""
    short: str = ""
    """The head of its column, where the title is too long for one."""
    unit: str = ""
    """The unit, or "" for a plain number."""
    better: Better = None
    """Which way is better, or None for what describes the tokenizer and does not rank it."""
    digits: int = 3
    """Decimals in a table."""
    interval: bool = True
    """Whether seeds differ in it, so that a mean has an interval."""
    default: bool = False
    """Whether it is computed when no metric is asked for; of metrics from files, those that are given."""
    on_request: bool = False
    """Whether tables show it only where it, or what it stands beside, is asked for, by --metrics or --columns."""
    gloss: str = ""
    """What it is in words that need no paper, without a full stop."""
    sentence: str = ""
    """The definition. A change of it is another metric: it is part of the digest, or of the protocol."""
    weights: str = ""
    """The name of the weights that it needs (a key of `vqbench.metrics.weights.PINS`), or ""."""
    min_resolution: int = 1
    """The smallest image, in pixels a side, that it is defined for."""
    min_images: int = 1
    """The fewest validation images that it is defined for."""
    few_images: int = 0
    """Of fewer validation images the score carries a caution. No part of the definition, nor of a hash."""
    per_image: bool = False
    """Whether each image has a value of its own (the score is their mean)."""
    companion_of: str = ""
    """The metric beside which it is computed, unasked, of the images of a method's continuous path; "" for others."""
    sees: Sees = "any"
    """Images of any number of channels as they are; RGB alone; or each channel by itself, repeated to RGB: then the
    score is the mean over channels, and `NAME/0`, `NAME/1`… are the channels of several. By default that is computed of
    images that are no RGB, in the place of what sees RGB alone."""
    values: Values = "rounded"
    """What it is given of a reconstruction: 8 bits, rounded; 8 bits, cut off; or the floats that the decoder gave, from
    0 to 255. References are brought to the same; the cut takes one off some of their values."""
    in_place_of: str = ""
    """The metric whose place it takes: for images of other channels, that which sees RGB alone; under a protocol of
    others, ours."""
    tracks: tuple[str, ...] = ("images",)
    """Whether it is computed for recipes of images, of features, or both."""
    extractor: str = ""
    """The name of the extractor whose features it compares, or ""."""
    digest: str = ""
    """Tells definitions of one name apart; "" for those that protocol v1 has in its hash."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)

    @classmethod
    def told(cls, name: str, said: Mapping[str, Any]) -> Metric:
        """The metric of which `as_dict` said so; what is not of an attribute's type is left out."""
        kinds = {key: str if key == "better" else type(getattr(Metric, key)) for key in ("digest", *_SHOWN)}
        return Metric(name=name, **{key: value for key, value in said.items() if type(value) is kinds.get(key)})

    @property
    def head(self) -> str:
        """The head of its column, with the direction that is better."""
        return (self.short or self.title or self.name) + self.arrow

    @property
    def arrow(self) -> str:
        """The direction that is better, behind a name; "" where there is none."""
        return {"higher": " ↑", "lower": " ↓"}.get(str(self.better), "")

    def as_dict(self) -> dict[str, Any]:
        """All that a report needs to show it, as JSON, where it differs from nothing said; `told` reads it."""
        said = {key: getattr(self, key) for key in ("digest", *_SHOWN)}
        return {key: value for key, value in said.items() if value != getattr(Metric, key)}


def pictures_of(channels: int) -> int:
    """How many RGB pictures an image of so many channels makes for what looks at RGB: itself, or each channel."""
    return 1 if channels == RGB else channels


class PairMetric(Metric, ABC):
    """A value for each image and its reconstruction; the score is their mean."""

    per_image = True

    def load(self, weights: WeightFile, home: Path) -> nn.Module:
        """The network of a metric that names `weights`, from the file that was verified; `score` has it as `network`.

        `home` is where what can be made again may be kept.
        """
        raise NotImplementedError

    network: Any = None
    """What `load` returned, on the device of the images."""

    @abstractmethod
    def score(self, references: Tensor, reconstructions: Tensor) -> Tensor:
        """References and reconstructions (B, C, H, W), three channels are RGB → (B,) finite values.

        uint8, or float32 from 0 to 255 where `values` is "floats".
        """


class FeatureMetric(Metric, ABC):
    """A number for the features of all reconstructions and those of all images, in the same order."""

    extractor = "inception"
    min_images = 2
    sees: Sees = "rgb"

    @abstractmethod
    def score(self, reference: NDArray[np.float32], reconstructed: NDArray[np.float32]) -> float:
        """Features (N, D) of the images and of their reconstructions → the score."""

    def timing(self, images: int) -> tuple[int, float]:
        """(n, times): of `images` images it takes `times` as long as of n. For the forecast of a run alone."""
        n = min(images, 4096)
        return n, (images / n) ** 2


class FrechetDistance(FeatureMetric):
    """Fréchet distance of the Gaussians fitted to two sets of features; a metric is a subclass with an extractor."""

    better: Better = "lower"
    digits = 2

    def score(self, reference: NDArray[np.float32], reconstructed: NDArray[np.float32]) -> float:
        """The distance, from 0."""
        from vqbench.metrics.frechet import frechet_distance

        return frechet_distance(reference, reconstructed)

    def timing(self, images: int) -> tuple[int, float]:
        """In proportion to the images, where they are more than dimensions."""
        n = min(images, 4096)
        return n, images / n


@dataclass(frozen=True)
class CodeFacts:
    """What is known of the codes of a split beside their histogram."""

    bits_per_token: float
    """What one spatial position can carry: the sum of log2 K over codebooks."""
    images: int
    pixels: float
    """Of one image, on average where each has its own size; of features, the tokens of one item."""


class CodeMetric(Metric, ABC):
    """A number for the histogram of codes over the whole split."""

    each_codebook: bool = False
    """Whether each codebook has a score of its own (`usage/0`, `usage/1`…), and the score is their mean."""

    @abstractmethod
    def score(self, histogram: NDArray[np.int64], facts: CodeFacts) -> float:
        """Counts (G, K) of K codes in G codebooks → the score; one at a time (1, K) with `each_codebook`."""


class CodecMetric(Metric, ABC):
    """A number for the tokenizer itself, in eval mode, on its device, under inference mode."""

    @abstractmethod
    def score(self, codec: Any, pixels: NDArray[np.uint8]) -> float:
        """A codec (`vqbench.metrics.evaluation.Codec`) and the validation images (N, R, R, C) → the score."""


class Extractor(ABC):
    """Features of images, from a network with a pinned weight file, for a `FeatureMetric` that names it."""

    weights: str
    """The name of its weights (a key of `vqbench.metrics.weights.PINS`)."""
    dimensions: int
    """D."""
    digest: str = ""
    """Tells apart extractors of the same weights that look at an image in different ways."""

    @abstractmethod
    def load(self, weights: WeightFile, home: Path) -> nn.Module:
        """The network from the file that was verified: (B, 3, H, W) in RGB, as `Metric.values` says → float32 (B, D).

        `home` is where what can be made again may be kept.
        """
