"""Who lies among whom: the balls of the nearest neighbours behind improved precision and recall."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vqbench.metrics.frechet import Features

NEAREST = 3
_ROWS = 4096  # of points whose distances are held at a time: 800 MB against 50,000


def inside(points: Features, others: Features, nearest: int = NEAREST) -> float:
    """Share of `points` (m, d) that lie in the ball of at least one of `others` (n, d), n > nearest.

    The ball of a point reaches to its nearest-th neighbour among its own (Kynkäänniemi et al., 2019,
    arXiv:1904.06991): of reconstructions among originals this is precision, the other way round recall.
    """
    if points.ndim != 2 or others.ndim != 2 or points.shape[1] != others.shape[1]:
        raise ValueError(f"features must be (n, d) with one d, not {points.shape} and {others.shape}")
    if len(others) <= nearest:
        raise ValueError(f"the {nearest}rd neighbour needs more than {nearest} images, not {len(others)}")
    x, y = torch.from_numpy(points), torch.from_numpy(others)
    # a point is its own first neighbour
    radii = torch.cat([torch.cdist(part, y).kthvalue(nearest + 1).values for part in _parts(y)])
    found = sum(int((torch.cdist(part, y) <= radii).any(dim=1).sum()) for part in _parts(x))
    return found / len(points)


def _parts(features: Tensor) -> Iterator[Tensor]:
    return iter(torch.split(features, _ROWS))
