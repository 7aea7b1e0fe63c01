"""The same validation images as every group reconstructs them: which images, and their pixels. No model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vqbench.reports.experiment import Group, StoredCell
from vqbench.reports.figures.style import MOST
from vqbench.reports.reader import Reader, read_array
from vqbench.reports.report import ReportSection
from vqbench.results.cell_files import GRID, RECONSTRUCTIONS
from vqbench.results.kept_images import shown_positions

Pixels = NDArray[np.uint8]
"""(n, R, R, C)."""
ByPosition = Mapping[int, Pixels]
"""Position in the validation split → image (R, R, C)."""


@dataclass(frozen=True)
class Sheet:
    """A few images as every group reconstructs them."""

    ids: tuple[str, ...]
    """Of the images, as the dataset names them."""
    originals: Pixels
    by_group: Mapping[str, Pixels]
    """Label of the group → reconstructions of the same images, by the first of its seeds that has them."""
    reason: str
    """Why these images."""


@dataclass(frozen=True)
class _Kept:
    """What the cells of a section keep, of the groups that keep anything."""

    groups: Mapping[str, ByPosition]
    originals: ByPosition
    positions: Sequence[int]
    """Kept by all groups."""
    seeds: Sequence[int]


def reconstruction_sheets(section: ReportSection, most: int = 8) -> list[Sheet]:
    """[images spread evenly over the split; the images on which the groups differ most], of at most 12 groups.

    Differ most: the largest distance between the best and the worst group in PSNR, which is the mean over a group's
    seeds. Empty where nothing is kept; the second sheet needs two groups and PSNR of each image.
    """
    groups = [group for group in section.rows if group.finished][:MOST]
    kept = _kept(groups)
    if kept is None:
        return []
    reader, there = Reader(), kept.positions
    names = _ids(groups, section, reader)
    spread = [there[i * len(there) // min(most, len(there))] for i in range(min(most, len(there)))]
    of = "" if len(kept.seeds) > 1 else f", reconstructed by seed {kept.seeds[0]}"
    left_out = len([group for group in section.rows if group.finished]) - len(kept.groups)
    without = f"; {left_out} group{'s are' if left_out > 1 else ' is'} not shown" if left_out else ""
    sheets = [_sheet(kept, spread, names, f"images spread evenly over the validation split{of}{without}")]
    distances = _distances([group for group in groups if group.label in kept.groups], reader)
    if distances is not None and max(there) < len(distances):
        count = most if len(there) >= 2 * most else max(1, len(there) // 2)
        apart = sorted(there, key=lambda position: (-distances[position], position))[:count]
        reason = (
            f"the images, of {len(there)} kept ones, on which the best and the worst group differ most in PSNR "
            f"(mean over seeds; {distances[apart[0]]:.1f} to {distances[apart[-1]]:.1f} dB){of}{without}"
        )
        sheets.append(_sheet(kept, apart, names, reason))
    return sheets


def _sheet(kept: _Kept, positions: Sequence[int], names: Sequence[str], reason: str) -> Sheet:
    return Sheet(
        tuple(names[i] if i < len(names) else f"image {i}" for i in positions),
        np.stack([kept.originals[i] for i in positions]),
        {label: np.stack([own[i] for i in positions]) for label, own in kept.groups.items()},
        reason,
    )


def _kept(groups: Sequence[Group]) -> _Kept | None:
    found: dict[str, ByPosition] = {}
    seeds: dict[int, None] = {}
    originals: dict[int, Pixels] = {}
    for group in groups:
        for cell in group.cells:
            if not cell.failed and (images := _reconstructions(cell)):
                found[group.label] = images
                seeds[cell.seed] = None
                originals |= {i: image for i, image in _originals(cell).items() if i not in originals}
                break
    sizes = {image.shape for own in (*found.values(), originals) for image in own.values()}
    positions = sorted(set(originals).intersection(*found.values()))
    if not found or not positions or len(sizes) > 1:
        return None
    return _Kept(found, originals, positions, list(seeds))


def _reconstructions(cell: StoredCell) -> ByPosition:
    arrays = [read_array(cell.folder.path / RECONSTRUCTIONS, name) for name in ("positions", "pixels")]
    return _by_position(*arrays) or _grid(cell, 1)


def _originals(cell: StoredCell) -> ByPosition:
    arrays = [read_array(cell.folder.validation_images, name) for name in ("positions", "pixels")]
    return {**_grid(cell, 0), **_by_position(*arrays)}


def _by_position(positions: NDArray[np.int64] | None, pixels: Pixels | None) -> dict[int, Pixels]:
    if positions is None or pixels is None or pixels.ndim != 4 or pixels.dtype != np.uint8:
        return {}
    return dict(zip(positions.tolist(), pixels, strict=False))


def _grid(cell: StoredCell, row: int) -> dict[int, Pixels]:
    """Images of recon.png, where cells of earlier versions keep the eight that are shown; row 0: the originals."""
    from PIL import Image

    try:
        picture = np.asarray(Image.open(cell.folder.path / GRID).convert("RGB"))
    except (OSError, SyntaxError, ValueError):  # SyntaxError is Pillow's word for a broken PNG
        return {}
    positions = shown_positions(int(cell.spec["protocol"]["n_images"]))
    side = picture.shape[0] // 2
    if picture.shape[1] != len(positions) * side:
        return {}
    return dict(zip(positions, np.split(picture[row * side : (row + 1) * side], len(positions), axis=1), strict=True))


def _ids(groups: Sequence[Group], section: ReportSection, reader: Reader) -> list[str]:
    for cell in (cell for group in groups for cell in group.cells if not cell.failed):
        table = reader.table(cell.folder.path)
        if table is not None and len(names := reader.ids(table)) == section.section.protocol["n_images"]:
            return names
    return []


def _distances(groups: Sequence[Group], reader: Reader) -> NDArray[np.float64] | None:
    """(N,) PSNR in dB between the best and the worst group, for each image; None without two groups that have it."""
    means = []
    for group in groups:
        tables = [reader.table(cell.folder.path) for cell in group.cells if not cell.failed]
        values = [table.columns["psnr"] for table in tables if table is not None and "psnr" in table.columns]
        if values and len({len(column) for column in values}) == 1:
            means.append(np.mean(values, axis=0))
    if len(means) < 2 or len({len(column) for column in means}) > 1:
        return None
    return np.asarray(np.ptp(np.stack(means), axis=0), np.float64)
