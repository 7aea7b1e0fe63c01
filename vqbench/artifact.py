"""What a method is built around and does not learn. Never imports torch: plans read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal


@dataclass(frozen=True)
class PatchFeatures:
    """What a layer of a pretrained network gives of an image."""

    weights: str
    """The network, by the name of its weights (a key of `vqbench.metrics.weights.PINS`)."""
    channels: int
    patches: int
    """Places of an image."""


FIRST = "inception_mixed_6e"
"""The features whose digests are older than others, and do not say their name."""
FEATURES = {FIRST: PatchFeatures("inception", 768, 17 * 17)}


@dataclass(frozen=True)
class Artifact:
    """An array that a method is built around without learning it: made, or read, before the training of its cells.

    The harness makes it, by a rule that it knows, and keeps it; a cell's hash has its digest, which is of the rule and
    of all that goes into it. Where none can be made (`vqbench check`, features in the place of images) the numbers stay
    that the quantizer has drawn in its `__init__`.
    """

    rule: Literal["patch_centres", "file"]
    """patch_centres: k-means centres of what a pretrained network sees in patches of training images, whose first
    `images` by hash of the id are taken, cropped to the recipe's resolution. file: the .npy at `path`."""
    shape: tuple[int, int]
    """(vectors, channels), float32."""
    images: int = 0
    features: str = FIRST
    """The network and layer of patch_centres: the 768 channels at 17 × 17 places of rFID's Inception."""
    path: str = ""
    field: str = ""
    """The field of Config that names the file. What is in the file is part of a cell's hash, and not where it lies."""

    def __post_init__(self) -> None:
        if self.rule not in ("patch_centres", "file"):
            raise ValueError(f"an artifact's rule must be patch_centres or file, not {self.rule!r}")
        if len(self.shape) != 2 or min(self.shape) < 1:
            raise ValueError(f"an artifact's shape must be (vectors, channels), not {self.shape}")
        if self.rule == "file" and not self.path:
            raise ValueError("an artifact of the rule file must name a path")
        if self.field and self.rule != "file":
            raise ValueError(f"an artifact's field names the file of the rule file, and {self.rule} has none")
        if self.rule == "patch_centres":
            if self.features not in FEATURES:
                raise ValueError(f"an artifact's features must be {' or '.join(FEATURES)}, not {self.features!r}")
            if self.shape[1] != (channels := FEATURES[self.features].channels) or self.images < 1:
                what = f"{channels} channels, of at least one image"
                raise ValueError(f"patch_centres of {self.features} have {what}: not {self.shape}, {self.images}")

    @property
    def made_of(self) -> PatchFeatures | None:
        """The features of training images that it is made of; None where it is read."""
        return FEATURES[self.features] if self.rule == "patch_centres" else None

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Artifact:
        """The artifact whose fields a spec, or another JSON, says."""
        known = {field.name: said[field.name] for field in fields(cls)}
        return cls(**{**known, "shape": tuple(known["shape"])})
