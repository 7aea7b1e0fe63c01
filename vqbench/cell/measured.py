"""What a probe measures of a cell and of its files, and what it writes beside the spec. Never imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vqbench.recipe import Recipe
from vqbench.results.cell_files import ARTIFACTS, CURVES
from vqbench.results.cell_folder import CellFolder

MEASURED = "measured.json"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a probe of one method configuration found. Times in seconds of wall clock; 0 for what its track has not."""

    overhead_seconds: float
    """Of a process, once: imports, data, weights, the first slow steps, saving, its end."""
    step_seconds: float
    """Of an optimiser step without the discriminator; 0 where there is no such step."""
    adversarial_step_seconds: float = 0.0
    """Of one with it; 0 where there is none."""
    checkpoint_seconds: float = 0.0
    """Of one checkpoint, and of starting to load images again after it."""
    evaluation_seconds: float
    """Of evaluation, once: metric networks, the first batch, files."""
    evaluation_image_seconds: float = 0.0
    """Of evaluation, for each validation image."""
    reference_image_seconds: float = 0.0
    """Of the reference features of each validation image, which the first cell under a protocol makes for all."""
    reference_is_cached: bool = True
    """Whether these exist."""
    checkpoint_bytes: int
    weights_bytes: int
    folder_bytes: int
    """Of all other files that stay in a cell's folder, but for what grows with the budget or the validation images."""
    image_bytes: float = 0.0
    """Of these files, for each validation image."""
    point_bytes: float
    """Of one line of metrics.jsonl."""
    copied_bytes: int
    """Of the files that MLflow gets a copy of, but for what grows with the budget or the validation images."""
    reference_image_bytes: float = 0.0
    """Of the reference features of each validation image, which all cells share."""
    device: str
    """As torch names it: cpu, cuda:0."""
    device_name: str


def steps_between(recipe: Recipe, start: int, stop: int) -> tuple[int, int]:
    """Optimiser steps without and with the discriminator, from `start` to `stop` training images."""
    begins = stop if recipe.gan == "none" else min(max(recipe.gan_start_images, start), stop)
    plain = -(-(begins - start) // recipe.batch_size)
    return plain, (stop - start) // recipe.batch_size - plain


def bytes_of(paths: Any) -> int:
    """Of those that are there."""
    return sum(path.stat().st_size for path in paths if path.is_file())


def sizes(folder: CellFolder, of_images: float = 0.0) -> dict[str, Any]:
    """The sizes among the fields of Measured that do not depend on the validation images, `of_images` bytes apart."""
    curves = folder.path / CURVES
    weights, checkpoint, points = bytes_of([folder.weights]), bytes_of([folder.checkpoint]), bytes_of([curves])
    everything = bytes_of(folder.path.rglob("*"))
    copied = weights + bytes_of(folder.path / name for name in ARTIFACTS) - points - of_images
    return {
        "weights_bytes": weights,
        "checkpoint_bytes": checkpoint,
        "folder_bytes": max(0, int(everything - weights - checkpoint - points - of_images)),
        "point_bytes": points / max(1, len(curves.read_text(encoding="utf-8").splitlines())),
        "copied_bytes": max(weights, int(copied)),
    }
