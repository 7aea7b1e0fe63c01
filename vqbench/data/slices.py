"""Volumes (NIfTI) as axial slices: 8-bit squares, made once for each volume and kept in the home as PNG.

A compressed volume has no random access: one slice costs as much as all. What is made of a volume is one zip of
uncompressed members, `z073.png` and so on, so a slice is one read at a known place.
"""

from __future__ import annotations

import functools
import io
import json
import os
import sys
import time
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vqbench.data.decode import ImageFileError, read_each
from vqbench.data.extras import required_library
from vqbench.data.files import ImageFile, listing_key
from vqbench.data.hashing import digest_of
from vqbench.data.images import Pixels
from vqbench.errors import UsageError
from vqbench.machine.cores import cores
from vqbench.machine.home import home, keeping
from vqbench.wording import reason_of_library

LOW, HIGH = 0.5, 99.5
"""Percentiles of the non-zero voxels of a volume that become 0 and 255."""
LEAST = 0.1
"""Share of a slice's voxels that are not zero, from which on it is kept."""
RULE = (
    f"Volumes are turned to canonical RAS and cut along the last axis (axial); voxels are clipped at the {LOW} and "
    f"{HIGH} percentile of the volume's non-zero voxels and mapped to 0 to 255, rounded, zero stays 0; slices of which "
    f"at least {LEAST * 100:g} % are not zero are kept, padded with 0 to a square"
)
RULE_KEY = digest_of(1, LOW, HIGH, LEAST)
"""Changes when slices of the same volume become others: the first number goes up where no other says it."""
_FACTS = "slices.json"
_THREADS = 8  # of which each holds a volume, 100 MB and more
_SPEAKS_FROM, _SPEAKS_EVERY = 50, 30.0  # volumes, seconds
_HEADER = 30  # bytes of a zip's local header before the name


@dataclass(frozen=True)
class Sliced:
    """The kept slices of one volume, and where they lie."""

    path: Path
    shape: tuple[int, int, int]
    """Of the volume, in voxels, once it is RAS."""
    positions: NDArray[np.int32]
    """(N,), along the last axis, ascending."""
    background: NDArray[np.float32]
    """(N,), share of the pixels of each square that are 0."""
    places: NDArray[np.int64]
    """(N, 2), offset and bytes of each PNG in the file."""

    def read(self, k: int) -> bytes:
        """The PNG of the `k`-th kept slice. Raises ImageFileError where the file is not there any more."""
        offset, length = self.places[k].tolist()
        try:
            with open(self.path, "rb", buffering=0) as file:
                return os.pread(file.fileno(), length, offset)
        except OSError as error:
            what = f"{self.path}: cannot be read ({error.strerror})"
            raise ImageFileError(what, "give the command again: a volume is sliced again where that is gone") from None


def sliced(volumes: Sequence[ImageFile]) -> list[Sliced]:
    """The slices of each volume, made now or by an earlier call.

    Raises UsageError that names every volume that cannot be used, and where the home cannot be written.
    """
    known = [_known(_place(volume)) for volume in volumes]
    waiting = [volume for volume, made in zip(volumes, known, strict=True) if made is None]
    say = _Speaker(len(waiting))

    def make(i: int) -> Sliced | ImageFileError:
        try:
            return _slice_once(waiting[i])
        except ImageFileError as error:
            return error
        finally:
            say.one_is_done()

    made_now = iter(read_each(make, len(waiting), min(cores(), _THREADS), together=1))
    return [made or next(made_now) for made in known]


class _Speaker:
    """Says on stderr what takes minutes, and how far it is. (Opening a dataset has no other way to say it.)"""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.started, self.spoke = total, 0, time.monotonic(), time.monotonic()
        if total >= _SPEAKS_FROM:
            print(f"note: {total:,} volumes are cut into slices, once; kept in {_folder()}", file=sys.stderr)

    def one_is_done(self) -> None:
        self.done += 1
        now = time.monotonic()
        if self.total >= _SPEAKS_FROM and now - self.spoke > _SPEAKS_EVERY:
            self.spoke = now
            left = (now - self.started) / self.done * (self.total - self.done)
            print(f"slicing volumes {self.done}/{self.total}, {left / 60:.0f} min left", file=sys.stderr)


def _folder() -> Path:
    return home() / "prepared" / "slices"


def _place(volume: ImageFile) -> Path:
    key = digest_of(RULE_KEY, listing_key([volume]))[:16]
    return _folder() / f"{volume.id}-{key}.zip"


@functools.lru_cache(maxsize=2**14)
def _read_facts(path: Path, size: int, mtime_ns: int) -> Sliced:
    with zipfile.ZipFile(path) as archive:
        facts = json.loads(archive.read(_FACTS))
    return Sliced(
        path,
        tuple(facts["shape"]),
        np.array(facts["positions"], np.int32),
        np.array(facts["background"], np.float32),
        np.array(facts["places"], np.int64).reshape(-1, 2),
    )


def _known(path: Path) -> Sliced | None:
    """What was made of a volume before; None where there is nothing that is whole."""
    try:
        status = path.stat()
        return _read_facts(path, status.st_size, status.st_mtime_ns)
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, TypeError):
        return None


def _slice_once(volume: ImageFile) -> Sliced:
    path = _place(volume)
    if (found := _known(path)) is not None:  # by another process, meanwhile
        return found
    voxels = read_volume(volume.path)
    levels = to_levels(voxels, str(volume.path))
    kept = [z for z in range(voxels.shape[2]) if np.count_nonzero(voxels[:, :, z]) >= LEAST * voxels[:, :, z].size]
    squares = {z: squared(levels[:, :, z]) for z in kept}
    background = [float(np.mean(square == 0)) for square in squares.values()]
    places = []
    try:
        with keeping(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
            for z, square in squares.items():
                png = io.BytesIO()
                Image.fromarray(square).save(png, "PNG", compress_level=3)
                member = zipfile.ZipInfo(f"z{z:03d}.png")
                archive.writestr(member, png.getvalue())
                places.append((member.header_offset + _HEADER + len(member.filename), member.file_size))
            facts = {"shape": voxels.shape, "positions": kept, "background": background, "places": places}
            archive.writestr(zipfile.ZipInfo(_FACTS), json.dumps(facts))
    except OSError as error:
        what = f"{path.parent} cannot hold the slices of {volume.path.name} ({error.strerror})"
        raise UsageError(what, "free some space, or set VQBENCH_HOME to another folder") from None
    found = _known(path)
    assert found is not None
    return found


def _canonical(path: Path) -> Any:
    nibabel = required_library("nibabel", "brats", "medical")
    try:
        image = nibabel.load(path)
        if len(image.shape) != 3:
            raise ImageFileError(
                f"{path}: {'×'.join(map(str, image.shape))} voxels, not a volume of three axes", "remove it"
            )
        return nibabel.as_closest_canonical(image)
    except ImageFileError:
        raise
    except Exception as error:  # nibabel raises its own, and whatever gzip and struct raise
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> ImageFileError:
    if isinstance(error, OSError) and error.strerror:
        return ImageFileError(f"{path}: cannot be read ({error.strerror})", "mend its permissions, or remove its case")
    return ImageFileError(
        f"{path}: damaged ({reason_of_library(error)[:120]})", "get the file again, or remove its case"
    )


def read_volume(path: Path) -> NDArray[np.float64]:
    """The voxels of a NIfTI volume in canonical RAS, (X, Y, Z). Raises ImageFileError."""
    image = _canonical(path)
    try:
        voxels: NDArray[np.float64] = np.asarray(image.dataobj, dtype=np.float64)
    except (OSError, EOFError, ValueError, TypeError, zlib.error) as error:
        raise _damaged(path, error) from None
    if not np.isfinite(voxels).all():
        raise ImageFileError(f"{path}: holds voxels that are no finite numbers", "mend the file, or remove its case")
    return voxels


def to_levels(voxels: NDArray[np.float64], name: str) -> Pixels:
    """Voxels of a volume as 0 to 255, by `LOW` and `HIGH` percentile of those that are not zero; zero is 0.

    Raises ImageFileError, which calls the volume `name`, where all its non-zero voxels are of one value.
    """
    inside = voxels != 0
    values = voxels[inside]
    low, high = np.percentile(values, [LOW, HIGH]) if values.size else (0.0, 0.0)
    if not high > low:
        raise ImageFileError(f"{name}: its voxels have one value", "get the file again, or remove its case")
    levels = np.zeros(voxels.shape, np.uint8)
    levels[inside] = np.rint((np.clip(values, low, high) - low) / (high - low) * 255)
    return levels


def squared(plane: Pixels) -> Pixels:
    """(X, Y) of a RAS volume as a square image: rows from front to back, columns from the subject's left to right.

    Padded with 0 on both sides of the shorter axis; an odd margin has its extra pixel at the bottom or right.
    """
    upright = plane.T[::-1]
    side = max(upright.shape)
    square = np.zeros((side, side), np.uint8)
    top, left = ((side - length) // 2 for length in upright.shape)
    square[top : top + upright.shape[0], left : left + upright.shape[1]] = upright
    return square
