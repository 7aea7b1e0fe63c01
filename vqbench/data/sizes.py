"""How large images are as they are stored: read from their headers once, and remembered."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vqbench.data.decode import ImageFileError, read_each
from vqbench.machine.home import home, keeping


def remembered_short_sides(key: str, count: int, short_side: Callable[[int], int]) -> NDArray[np.int32]:
    """(count,) short sides; 0 for an image whose header cannot be read, which is named when it is decoded.

    They are kept below `home()/prepared` under `key`, which changes with the images; not where one is unreadable, and
    not without a key.
    """
    kept = home() / "prepared" / f"short-sides-{key[:24]}.npy"
    if key and (known := _kept(kept, count)) is not None:
        return known

    def side(i: int) -> int:
        try:
            return short_side(i)
        except ImageFileError:
            return 0

    sides = np.array(read_each(side, count), np.int32)
    if key and sides.all():
        # a home that cannot be written costs the work each time, no result
        with contextlib.suppress(OSError), keeping(kept) as partial, partial.open("wb") as file:
            np.save(file, sides)
    return sides


def _kept(path: Path, count: int) -> NDArray[np.int32] | None:
    with contextlib.suppress(OSError, ValueError, EOFError):
        sides: NDArray[np.int32] = np.load(path, allow_pickle=False)
        if sides.shape == (count,) and sides.dtype == np.int32:
            return sides
    return None
