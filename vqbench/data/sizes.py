"""How large images are as they are stored: read from their headers once, and remembered."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vqbench.data.decode import ImageFileError
from vqbench.machine.home import home, keeping

_READERS = 16  # more than cores: on a network disk, opening a file is mostly waiting
_TOGETHER = 1024


def remembered_short_sides(key: str, count: int, short_side: Callable[[int], int]) -> NDArray[np.int32]:
    """(count,) short sides; 0 for an image whose header cannot be read, which is named when it is decoded.

    They are kept below `home()/prepared` under `key`, which changes with the images; not where one is unreadable, and
    not without a key.
    """
    kept = home() / "prepared" / f"short-sides-{key[:24]}.npy"
    if key and (known := _kept(kept, count)) is not None:
        return known
    with ThreadPoolExecutor(_READERS) as pool:
        read = pool.map(lambda start: _sides(range(start, min(start + _TOGETHER, count)), short_side),
                        range(0, count, _TOGETHER))  # fmt: skip
        sides = np.concatenate([np.empty(0, np.int32), *read])
    if key and sides.all():
        with contextlib.suppress(OSError):  # a home that cannot be written costs the work each time, no result
            _keep(kept, sides)
    return sides


def _sides(positions: range, short_side: Callable[[int], int]) -> NDArray[np.int32]:
    sides = np.zeros(len(positions), np.int32)
    for place, i in enumerate(positions):
        with contextlib.suppress(ImageFileError):
            sides[place] = short_side(i)
    return sides


def _kept(path: Path, count: int) -> NDArray[np.int32] | None:
    with contextlib.suppress(OSError, ValueError, EOFError):
        sides: NDArray[np.int32] = np.load(path, allow_pickle=False)
        if sides.shape == (count,) and sides.dtype == np.int32:
            return sides
    return None


def _keep(path: Path, sides: NDArray[np.int32]) -> None:
    with keeping(path) as partial, partial.open("wb") as file:
        np.save(file, sides)
