"""What is put into shards: images, decoded some way ahead of whoever writes them."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from vqbench.data.decode import ImageFileError
from vqbench.data.images import Images, Pixels, Reencoded
from vqbench.data.shards import Item, Layout, fingerprint

Kind = Literal["pixels", "encoded"]
T = TypeVar("T")


def ahead(work: Callable[[int], T], positions: range, threads: int, count: int) -> Iterator[T]:
    """`work` of every position in order, done by threads up to 2 · `count` positions ahead of the reader."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Iterator[T]] = deque()
        for start in range(0, len(positions), count):
            waiting.append(pool.map(work, positions[start : start + count]))
            if len(waiting) == 2:  # one is done while the other is read
                yield from waiting.popleft()
        yield from itertools.chain.from_iterable(waiting)


@dataclass(frozen=True)
class Filling:
    """What a process makes shards of, as it is passed on to others."""

    folder: Path
    layout: Layout
    images: Images
    kind: Kind
    threads: int
    count: int
    """Images that are decoded ahead."""

    def __call__(self, positions: range) -> Iterator[Item | ImageFileError]:
        """The items of some images: see `shards.Maker`."""
        return ahead(self._item, positions, self.threads, self.count)

    def _item(self, i: int) -> Item | ImageFileError:
        images = self.images
        source = images.images if isinstance(images, Reencoded) else images
        try:
            encoded = source.encoded(i)
            pixels = source.load(i) if encoded is None else source.decode(i, encoded)
        except ImageFileError as error:
            return error
        known = fingerprint(images.ids[i], encoded)
        data: bytes | Pixels = np.ascontiguousarray(pixels)
        if isinstance(images, Reencoded):
            data = images.compressed(pixels)
        elif self.kind == "encoded":
            assert encoded is not None
            data = encoded
        return Item(data, pixels.shape[0], pixels.shape[1], known)
