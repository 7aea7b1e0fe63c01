"""What a method is built around and does not learn. Never imports torch: plans read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal


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
    features: str = "inception_mixed_6e"
    """The network and layer of patch_centres: the 768 channels at 17 × 17 places of rFID's Inception."""
    path: str = ""

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Artifact:
        """The artifact whose fields a spec, or another JSON, says."""
        known = {field.name: said[field.name] for field in fields(cls)}
        return cls(**{**known, "shape": tuple(known["shape"])})
