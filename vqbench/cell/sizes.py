"""What the files of a probed cell take on the disk."""

from __future__ import annotations

from typing import Any

from vqbench.recipe import Recipe
from vqbench.results.cell_files import ARTIFACTS, CURVES
from vqbench.results.cell_folder import CellFolder


def bytes_of(paths: Any) -> int:
    """Of those that are there."""
    return sum(path.stat().st_size for path in paths if path.is_file())


def sizes(folder: CellFolder, short: Recipe, of_images: float = 0.0) -> dict[str, Any]:
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
