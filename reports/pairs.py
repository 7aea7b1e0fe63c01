"""Two methods' stored cells, paired by seed and image: which statistic belongs to which metric."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqbench.metrics.definitions import DEFINITIONS
from vqbench.reports.code_statistics import CODE_SCORES, resample_codes
from vqbench.reports.feature_statistics import resample_frechet, resample_kernel
from vqbench.reports.reader import Reader
from vqbench.reports.statistics import Difference, Resampled, paired_images, paired_resamples, paired_seeds
from vqbench.results.cell_files import CODES, FEATURES
from vqbench.results.cell_folder import CellFolder

_OF_FEATURES = ("rfid", "kid")
Row = dict[str, Any]
"""A cell as `vqbench run --json` prints it."""


def difference(
    base: Sequence[Row], other: Sequence[Row], metric: str, reader: Reader | None = None
) -> Difference | None:
    """`other` − `base` in one metric over the seeds that both have; None where there is none, or no score.

    Metrics with a value per image: over seeds and images. Scores of a whole set: over seeds; with one seed, what the
    cells keep of each image (features, codes) is resampled, which leaves the noise of training out. A `reader` that
    is given again does not read the same files again.
    """
    pairs, reader = paired_rows(base, other, metric), reader or Reader()
    if not pairs:
        return None
    if DEFINITIONS[metric].per_image and (values := _images_of(pairs, metric, reader)) is not None:
        return paired_images(*values)
    if len(pairs) == 1 and (resampled := [_resampled(row, metric, reader) for row in pairs[0]]):
        first, second = resampled
        if first is not None and second is not None and first.images == second.images:
            return paired_resamples(first, second)
    return paired_seeds(*(np.array(column) for column in zip(*paired_scores(pairs, metric), strict=True)))


def paired_rows(base: Sequence[Row], other: Sequence[Row], metric: str) -> list[tuple[Row, Row]]:
    """The cells that have a partner of the same seed, and both a score, by seed."""
    scored = [[row for row in rows if metric in row["scores"]] for rows in (base, other)]
    first, second = by_seed(*scored)
    return [(first[seed], second[seed]) for seed in sorted(first.keys() & second.keys())]


def by_seed(a: Sequence[Row], b: Sequence[Row]) -> tuple[dict[int, Row], dict[int, Row]]:
    """Seed → cell, of both. A tokenizer that somebody else trained has no seed: it stands beside each of the other's,
    whose noise of training is then all that there is."""
    mine, theirs = ({row["seed"]: row for row in rows} for rows in (a, b))
    if _is_without_seed(a):
        return dict.fromkeys(theirs, a[0]), theirs
    return mine, dict.fromkeys(mine, b[0]) if _is_without_seed(b) else theirs


def _is_without_seed(rows: Sequence[Row]) -> bool:
    return len(rows) == 1 and "pretrained" in rows[0] and "seed" not in rows[0]["pretrained"]


def paired_scores(pairs: Sequence[tuple[Row, Row]], metric: str) -> list[tuple[float, float]]:
    """(score of base, score of other) of each seed."""
    return [(a["scores"][metric], b["scores"][metric]) for a, b in pairs]


def _images_of(
    pairs: Sequence[tuple[Row, Row]], metric: str, reader: Reader
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """(S, N) values of base and of other; None where a cell did not keep them, or of other images than the rest."""
    tables = [[reader.table(Path(row["path"])) for row in pair] for pair in pairs]
    known = [table for pair in tables for table in pair if table is not None and metric in table.columns]
    if len(known) < 2 * len(pairs) or len({table.images for table in known}) > 1:
        return None
    values = np.stack([table.columns[metric] for table in known])
    if values.shape[1] < 2 or not np.isfinite(values).all():
        return None
    return values[0::2], values[1::2]


def _resampled(row: Row, metric: str, reader: Reader) -> Resampled | None:
    """The score of a cell and how it varies over its images; None where it kept nothing of them that can be read."""
    resample = _of_features if metric in _OF_FEATURES else _of_codes if metric in CODE_SCORES else None
    if resample is None:
        return None
    return reader.once((row["path"], "resampled", metric), lambda: resample(row, metric, reader))


def _of_features(row: Row, metric: str, reader: Reader) -> Resampled | None:
    folder = CellFolder(Path(row["path"]))
    reference = reader.array(folder.reference_features, "features")
    features = reader.array(folder.path / FEATURES, "features")
    if reference is None or features is None or len(reference) != len(features) or len(features) < 3:
        return None
    if metric == "kid":
        return resample_kernel(reference, features, row["scores"][metric])
    return resample_frechet(reference, features, row["scores"][metric])


def _of_codes(row: Row, metric: str, reader: Reader) -> Resampled | None:
    path = Path(row["path"]) / CODES
    indices, histogram = reader.array(path, "indices"), reader.array(path, "histogram")
    if indices is None or histogram is None or len(indices) < 2:
        return None
    try:
        return resample_codes(indices, histogram.shape[1], metric)
    except (ValueError, IndexError):  # not what a cell writes: no codes of this codebook
        return None
