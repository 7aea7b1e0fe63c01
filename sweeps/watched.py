"""What a running cell tells of itself: the curve that a pruner watches, and the images it has seen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from vqbench.results.cell_folder import CellFolder

_RISING = {"psnr": True, "usage": True, "perplexity": True}
"""The curves of a training that are those of a score, and whether higher is better."""


@dataclass(frozen=True)
class Watched:
    """The curve that stands for an objective while a cell trains."""

    curve: str
    sign: int
    """Times this, it is better in the direction of the study."""
    note: str
    """What must be said of it; empty where it is the objective's own."""


def watched(objective: str, maximize: bool, instead: tuple[str, bool]) -> Watched:
    """The objective's own curve, or `instead` (and whether it rises), that of how well training reconstructs."""
    rising = {**_RISING, instead[0]: instead[1]}
    curve = objective if objective in rising else instead[0]
    title = {"psnr": "PSNR"}.get(curve, curve)
    instead_of = f"no curve of {objective} in training: the pruner watches the {title} of training batches"
    note = "" if curve == objective else instead_of
    return Watched(curve, 1 if rising[curve] == maximize else -1, note)


def new_points(folder: Path, curve: str, after: int, before: int) -> list[tuple[int, float]]:
    """(images, value) of a curve between two image counts, where it is finite."""
    points = CellFolder(folder).curves
    found = [(int(p["images"]), float(p[curve])) for p in points if isinstance(p.get(curve), int | float)]
    return [(images, value) for images, value in found if after < images < before and math.isfinite(value)]


def images_seen(folder: Path) -> int:
    """Training images up to the last line of the curves."""
    found = CellFolder(folder).curves
    return int(found[-1]["images"]) if found else 0
