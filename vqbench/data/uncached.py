"""What it costs to decode training images whenever they are needed, measured and put in words."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass
from pathlib import Path

from vqbench.data.cache import free_bytes
from vqbench.data.dataset import Dataset
from vqbench.data.decode import ImageFileError
from vqbench.data.images import Images, Part, Pixels
from vqbench.data.kept import Advance
from vqbench.data.prepare import decoded_bytes, encoded_bytes, is_reencoded, room

MEASURED = 200
"""Images: some seconds, and files of every kind that a set has many of."""


@dataclass(frozen=True)
class LoadingRates:
    """Images/s that one core makes ready for training."""

    images: int
    """Measured on so many."""
    as_they_are: float
    decoded: float


class _Held(Part):
    """`MEASURED` images spread over a set, read when they are first asked for and held from then on."""

    def __init__(self, images: Images) -> None:
        count = min(MEASURED, len(images))
        super().__init__(images, [i * len(images) // count for i in range(count)])
        self.held: dict[int, Pixels] = {}

    def load(self, i: int) -> Pixels:
        """Image `i` of these."""
        if i not in self.held:
            self.held[i] = super().load(i)
        return self.held[i]


def loading_rates(images: Images, resolution: int, progress: Advance | None = None) -> LoadingRates | None:
    """Measure them as a loader of training images works. None where none of the images can be used."""
    from vqbench.data.stream import TrainingStream  # torch, which commands do without where all is cached

    sample = _Held(images)
    stream, readable = TrainingStream(sample, resolution, 0, random_crop=True, flip=True), []
    spent = 0.0
    for position in range(len(sample)):
        started = time.perf_counter()
        with contextlib.suppress(ImageFileError):  # it is named when it is read in earnest
            stream[position]
            spent += time.perf_counter() - started
            readable.append(position)
        if progress is not None:
            progress(position + 1, len(sample))
    started = time.perf_counter()
    for position in readable:
        stream[position]
    decoded = time.perf_counter() - started
    if not readable:
        return None
    return LoadingRates(len(readable), len(readable) / max(spent, 1e-9), len(readable) / max(decoded, 1e-9))


def cost_of_decoding(dataset: Dataset, home: Path, progress: Advance | None = None) -> str:
    """Why the training images of `dataset` are not kept decoded, what that costs, and what would change it."""
    images, limit = dataset.train, room(home)
    expected = encoded_bytes(images) if is_reencoded(images) else decoded_bytes(images, dataset.channels)
    rates = loading_rates(images, dataset.resolution, progress)
    why = f"they would take {expected / 2**30:.2f} GiB, and {limit.reason}"
    ways = [] if limit.is_chosen else ["set VQBENCH_HOME to a folder on a larger disk"]
    if expected < free_bytes(home):
        ways.append(f"VQBENCH_CACHE_LIMIT_GB={math.ceil(expected / 2**30 * 100) / 100:g} keeps them")
    cost = ""
    if rates is not None:
        cost = (
            f"One core loads {_shown(rates.as_they_are)} images/s so, and would load {_shown(rates.decoded)} decoded "
            f"(measured on {rates.images}); "
        )
    return f"training images are decoded each time they are needed: {why}. {cost}{', or '.join(ways)}".rstrip("; ")


def _shown(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
