"""A kept set of images in shards: made by any number of processes and machines at once, read when it is whole.

A folder. A shard is some images that follow one another: their bytes, their rows of the index and, written last, a
marker with the digests of both, by which it counts as made. Whoever makes one holds a claim on it, which ends with its
process. The list of all files, with their lengths, comes last of all: without it nothing is read (`cache.is_whole`).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vqbench.data.cache import META, PIXELS, is_whole
from vqbench.data.decode import ImageFileError
from vqbench.machine.home import folder_in_home, keep_text, keeping, open_like_its_folder
from vqbench.machine.lease import CellBusyError, exclusive

MOST = 128
"""Shards of a set: each is a map, and so a file, in every process that reads. A kill costs a part of one."""
LEAST_IMAGES = 64
"""In a shard, so that a small set is not mostly markers."""
INDEX, CLAIMS = "index.npy", "claims"
ROW = np.dtype(
    [("start", "<i8"), ("bytes", "<i8"), ("height", "<i4"), ("width", "<i4"), ("source", "<u8")]
)  # where in its file; the shape when decoded; `fingerprint` of what it was made of
_PATIENCE = 0.2  # seconds between two looks at what others make


class Item(NamedTuple):
    """One image as it is kept."""

    data: bytes | NDArray[np.uint8]
    height: int
    width: int
    source: int
    """Its `fingerprint`."""


Maker = Callable[[range], Iterator[Item | ImageFileError]]
"""The items of some images, in order; an error in the place of each image that cannot be used."""


def fingerprint(name: str, encoded: bytes | None) -> int:
    """64 bits over an image's id and the bytes of its source; 0 where the source gives none."""
    if encoded is None:
        return 0
    digest = hashlib.sha256(name.encode() + b"\0")
    digest.update(encoded)
    return int.from_bytes(digest.digest()[:8], "little")


@dataclass(frozen=True)
class Layout:
    """How many images lie in which shard: the same for all that make one set."""

    images: int
    each: int
    """Images of a shard; the last may have fewer."""
    fixed: int = 0
    """Bytes of every image, which then lie one after the other in a single file; 0 where images differ."""
    places: NDArray[np.int64] | None = None
    """Where in that single file each image lies, counted in images; None: as they follow one another in shards."""

    @classmethod
    def of(cls, images: int, fixed: int = 0, places: NDArray[np.int64] | None = None) -> Layout:
        """At most `MOST` shards, of at least `LEAST_IMAGES`."""
        return cls(images, max(LEAST_IMAGES, -(-images // MOST)), fixed, places)

    @property
    def shards(self) -> int:
        """How many there are."""
        return -(-self.images // self.each)

    def range(self, k: int) -> range:
        """The images of shard `k`."""
        return range(k * self.each, min((k + 1) * self.each, self.images))

    def file(self, k: int) -> str:
        """The name of the file with the bytes of shard `k`."""
        return PIXELS if self.fixed else f"shard-{k:03d}.bin"

    def starts(self, k: int) -> NDArray[np.int64] | None:
        """Where in the single file each image of shard `k` begins; None where the shard has a file of its own."""
        if not self.fixed:
            return None
        images = np.array(self.range(k))
        return (images if self.places is None else self.places[images]) * self.fixed


def marker(k: int) -> str:
    """The name of the file that says that shard `k` is made."""
    return f"shard-{k:03d}.json"


def rows(k: int) -> str:
    """The name of the file with the rows of shard `k`."""
    return f"shard-{k:03d}.npy"


def read_marker(folder: Path, layout: Layout, k: int) -> dict[str, Any] | None:
    """What the marker of shard `k` says, where the shard is made and its files have their length; else None."""
    try:
        said = json.loads((folder / marker(k)).read_text(encoding="utf-8"))
        starts = layout.starts(k)
        end = said["bytes"] if starts is None else int(starts.max()) + layout.fixed
        long = (folder / layout.file(k)).stat().st_size >= end
        whole = long and (folder / rows(k)).stat().st_size == said["rows_bytes"]
        return said if whole and {"sha256", "rows_sha256"} <= said.keys() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


class Told(Protocol):
    """Who is told of the making of shards."""

    def done(self, k: int, count: int, bad: ImageFileError | None = None) -> bool:
        """So many images of shard `k` are done, whoever made them; what is wrong with the last. True: make no more."""


def write_shard(folder: Path, layout: Layout, k: int, make: Maker, told: Told) -> bool:
    """Make shard `k`, which counts as made only where all of its images can be used. False: make no more.

    Plain writes, since a full disk under a memory map kills the process. Raises OSError.
    """
    is_good = True
    sha256, starts, length, entries = hashlib.sha256(), layout.starts(k), 0, []
    for name in (marker(k), rows(k)):  # which another user may own: better said before than after
        (folder / name).unlink(missing_ok=True)
    with _opened(folder / layout.file(k), shared=bool(layout.fixed)) as file:
        for count, item in enumerate(make(layout.range(k)), start=1):
            error = item if isinstance(item, ImageFileError) else None
            is_good &= error is None
            if is_good and isinstance(item, Item):
                data = memoryview(item.data).cast("B")  # type: ignore[arg-type]
                if layout.fixed and len(data) != layout.fixed:
                    raise ValueError(f"an image of {len(data)} bytes among images of {layout.fixed}")
                start = length if starts is None else int(starts[count - 1])
                if start != file.tell():
                    file.seek(start)
                file.write(data)
                sha256.update(data)
                entries.append((start, len(data), item.height, item.width, item.source))
                length += len(data)
            if told.done(k, count, error):
                return False
        file.flush()
        os.fsync(file.fileno())  # before the marker: else a power cut may keep that and lose the pixels
    if not is_good:
        return True
    of_rows = io.BytesIO()
    np.save(of_rows, np.array(entries, ROW))
    with keeping(folder / rows(k)) as partial:
        partial.write_bytes(of_rows.getvalue())
    said = {
        "bytes": length,
        "sha256": sha256.hexdigest(),
        "rows_bytes": of_rows.tell(),
        "rows_sha256": hashlib.sha256(of_rows.getvalue()).hexdigest(),
    }
    keep_text(folder / marker(k), json.dumps(said))
    return True


@contextlib.contextmanager
def _opened(path: Path, shared: bool) -> Iterator[io.BufferedWriter]:
    """A file to write to: one of all shards, or one's own."""
    if not shared:  # a stalled machine that wakes up writes into a file that nobody reads any more
        path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    with os.fdopen(descriptor, "wb") as file:
        is_sticky = path.parent.stat().st_mode & stat.S_ISVTX  # there nobody alters what another has made
        open_like_its_folder(path, lock=shared and not is_sticky)
        yield file


@contextlib.contextmanager
def _claimed(folder: Path, k: int) -> Iterator[None]:
    """Hold shard `k`. Raises CellBusyError where another process, here or on another machine, makes it."""
    claim = folder_in_home(folder_in_home(folder / CLAIMS) / f"{k:03d}")
    if not (claim / "lock").exists():
        (claim / "lock").touch()
        open_like_its_folder(claim / "lock", lock=True)
    with exclusive(claim):
        yield


def fill(folder: Path, layout: Layout, make: Maker, told: Told, first: int = 0) -> None:
    """Make every shard that is not made, from number `first` on, and wait for those that others make.

    Afterwards all are made, but for those with images that cannot be used. Raises OSError.
    """
    waiting = [(first + i) % layout.shards for i in range(layout.shards)]
    while waiting:
        others = []
        for k in waiting:
            try:
                if read_marker(folder, layout, k) is None:
                    with _claimed(folder, k):
                        if read_marker(folder, layout, k) is None:
                            if not write_shard(folder, layout, k, make, told):
                                return
                            continue
                told.done(k, len(layout.range(k)))
            except (CellBusyError, FileNotFoundError):  # the latter: all are made, and the claims are cleared away
                if not folder.is_dir():
                    raise
                others.append(k)
        if waiting == others:
            time.sleep(_PATIENCE)
        waiting = others


def finish(folder: Path, layout: Layout, more: Callable[[], dict[str, Any]]) -> None:
    """Put all rows into one index, and list what a whole folder has, with what `more` gives beside. Raises OSError."""
    with keeping(folder / INDEX) as partial:
        index = np.lib.format.open_memmap(partial, "w+", ROW, (layout.images,))  # type: ignore[no-untyped-call]
        for k in range(layout.shards):
            index[layout.range(k).start : layout.range(k).stop] = np.load(folder / rows(k))
        index.flush()
    names = [INDEX]
    for k in range(layout.shards):
        names += [layout.file(k), rows(k), marker(k)]
    files = {name: (folder / name).stat().st_size for name in dict.fromkeys(names)}
    said = {"images": layout.images, "each": layout.each, "fixed": layout.fixed, "files": files, **more()}
    for left in folder.glob(".*.part"):  # of writers that were killed
        left.unlink(missing_ok=True)
    with keeping(folder / META) as partial:
        partial.write_text(json.dumps(said), encoding="utf-8")
        with partial.open("rb") as file:
            os.fsync(file.fileno())
    shutil.rmtree(folder / CLAIMS, ignore_errors=True)


class Shards:
    """The images of a whole folder: views of maps of its files, one a shard, made when first asked for.

    Holds nothing for an image; as a pickle, or after a fork, it maps the files by itself.
    """

    def __init__(self, folder: Path, layout: Layout | None = None) -> None:
        self.folder = folder
        self.layout = layout or Layout(self._said["images"], self._said["each"], self._said["fixed"])
        self._maps: dict[str, NDArray[np.uint8]] = {}

    @functools.cached_property
    def _said(self) -> dict[str, Any]:
        said: dict[str, Any] = json.loads((self.folder / META).read_text(encoding="utf-8"))
        return said

    @property
    def bytes(self) -> int:
        """Of all images."""
        return sum(size for name, size in self._said["files"].items() if name.endswith(".bin"))

    @functools.cached_property
    def index(self) -> NDArray[np.void]:
        """(N,) of ROW, mapped."""
        index: NDArray[np.void] = np.load(self.folder / INDEX, mmap_mode="r", allow_pickle=False).view(np.ndarray)
        return index

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("index", "_said")} | {
            "_maps": {}
        }  # pickled, a map is a copy

    def bytes_of(self, i: int) -> NDArray[np.uint8]:
        """The bytes of image `i`, a read-only view of the file."""
        name, row = self.layout.file(i // self.layout.each), self.index[i]
        mapped = self._maps.get(name)
        if mapped is None:
            mapped = self._maps[name] = np.memmap(self.folder / name, np.uint8, "r").view(np.ndarray)
        start = int(row["start"])
        return mapped[start : start + int(row["bytes"])]

    def size_of(self, i: int) -> tuple[int, int]:
        """(H, W) of image `i` when it is decoded."""
        row = self.index[i]
        return int(row["height"]), int(row["width"])


def damage(folder: Path, layout: Layout, k: int) -> str:
    """What is wrong with the bytes or the rows of shard `k`; empty where both are what its marker says."""
    said = read_marker(folder, layout, k)
    if said is None:
        name = next((n for n in (layout.file(k), rows(k), marker(k)) if not (folder / n).exists()), "")
        return f"{folder / name} is missing" if name else f"{folder / layout.file(k)} has been cut, or its marker has"
    if hashlib.sha256((folder / rows(k)).read_bytes()).hexdigest() != said["rows_sha256"]:
        return f"{folder / rows(k)} has other bytes than were written"
    sha256, of_rows = hashlib.sha256(), np.load(folder / rows(k))
    with (folder / layout.file(k)).open("rb") as file:
        for row in of_rows:
            file.seek(int(row["start"]))
            sha256.update(file.read(int(row["bytes"])))
    if sha256.hexdigest() != said["sha256"]:
        return f"{folder / layout.file(k)} has other bytes than were written"
    images = layout.range(k)
    index = np.load(folder / INDEX, mmap_mode="r") if is_whole(folder) else None
    if index is not None and not np.array_equal(index[images.start : images.stop], of_rows):
        return f"{folder / INDEX} has other bytes than were written"
    return ""
