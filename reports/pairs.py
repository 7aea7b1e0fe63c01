"""Two methods' stored cells, paired by seed and image: which statistic belongs to which metric."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vqbench.reports.statistics import Difference, paired_codes, paired_frechet, paired_images, paired_seeds
from vqbench.reports.stored import read_array
from vqbench.reports.summary import DEFINITIONS
from vqbench.results import CellFolder

FRECHET_REPLICATES = 60  # an sd to a tenth, in seconds per row
_OF_CODES: dict[str, Literal["usage", "perplexity"]] = {"usage": "usage", "perplexity": "perplexity"}
Rows = Sequence[dict[str, Any]]
"""Cells of one method as `vqbench run --json` prints them."""


def difference(base: Rows, other: Rows, metric: str) -> Difference | None:
    """`other` − `base` in one metric over the seeds that both have; None where there is none, or no score.

    Metrics with a value per image: over seeds and images. Scores of a whole set: over seeds; with one seed, what the
    cells keep of each image (features, codes) is resampled, which leaves the noise of training out.
    """
    pairs = _paired(base, other, metric)
    if not pairs:
        return None
    folders = [(CellFolder(Path(a["path"])), CellFolder(Path(b["path"]))) for a, b in pairs]
    if DEFINITIONS[metric].per_image and (values := [_per_image(a, b, metric) for a, b in folders]):
        lengths = {len(pair[0]) if pair else 0 for pair in values}
        if len(lengths) == 1 and min(lengths) > 1:
            columns = zip(*(pair for pair in values if pair is not None), strict=True)
            return paired_images(*(np.stack(list(column)) for column in columns))
    scores = [(a["scores"][metric], b["scores"][metric]) for a, b in pairs]
    plain = paired_seeds(*(np.array(column) for column in zip(*scores, strict=True)))
    return (_over_images(*folders[0], metric) or plain) if len(pairs) == 1 else plain


def _paired(base: Rows, other: Rows, metric: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    by_seed = {row["seed"]: row for row in base if metric in row["scores"]}
    return [(by_seed[row["seed"]], row) for row in other if metric in row["scores"] and row["seed"] in by_seed]


def _per_image(a: CellFolder, b: CellFolder, metric: str) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """The values of the images, in the same order; None for a cell that did not keep them."""
    try:
        tables = [pd.read_parquet(cell.path / "per_image.parquet", columns=["id", metric]) for cell in (a, b)]
    except (OSError, ValueError):
        return None
    first, second = (table.set_index("id")[metric] for table in tables)
    if not first.index.equals(second.index):
        return None
    return first.to_numpy(float), second.to_numpy(float)


def _over_images(a: CellFolder, b: CellFolder, metric: str) -> Difference | None:
    if metric == "rfid":
        files = (a.reference_features, a.path / "features.npz", b.path / "features.npz")
        reference, base, other = (read_array(path, "features") for path in files)
        if reference is None or base is None or other is None or not len(reference) == len(base) == len(other) > 1:
            return None
        distances = (_score(a, metric), _score(b, metric))
        return paired_frechet(reference, base, other, distances=distances, replicates=FRECHET_REPLICATES)
    if metric in _OF_CODES:
        base, other = (read_array(cell.path / "codes.npz", "indices") for cell in (a, b))
        sizes = [read_array(cell.path / "codes.npz", "histogram") for cell in (a, b)]
        if base is None or other is None or sizes[0] is None or sizes[1] is None or not len(base) == len(other) > 1:
            return None
        return paired_codes(base, other, (sizes[0].shape[1], sizes[1].shape[1]), _OF_CODES[metric])
    return None


def _score(cell: CellFolder, metric: str) -> float:
    return float((cell.result or {})["scores"][metric])
