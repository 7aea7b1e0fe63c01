"""One side of a dataset as it is kept on disk: its folder, how it is made, by how many processes, and what is read."""

from __future__ import annotations

import functools
import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vqbench.data.cache import META, PIXELS, is_whole, locked, refuse_unreadable
from vqbench.data.dataset import Dataset
from vqbench.data.decode import ImageFileError, name_unusable
from vqbench.data.filling import Filling, Kind
from vqbench.data.hashing import digest_of
from vqbench.data.images import Images, Part, Pixels, Reencoded
from vqbench.data.shards import CLAIMS, Layout, Shards, fill, finish, read_marker
from vqbench.data.workers import fill_by_processes
from vqbench.machine.cores import cores
from vqbench.machine.home import folder_in_home
from vqbench.metrics.whole import WholeImages
from vqbench.registry import DATASETS

VERSION = 3
"""Goes up when decoding or the layout changes, so that what was kept otherwise is not read; but for `_OLD`."""
_OLD = 2  # all pixels in one file, with a list of shapes: read, and made no more
SHAPES = "shapes.npy"
_AHEAD_BYTES = 2**25  # decoded ahead of the writer
_AHEAD_IMAGES = 128
BAD_IMAGES_SOUGHT = 20
"""Where none before was usable, the folder is wrong rather than a file: no need to read on."""

Advance = Callable[[int, int], None]
"""Called with (images done, images in all)."""
Side = Literal["train", "validation"]


@dataclass(frozen=True)
class Making:
    """How what is not kept yet is made."""

    format: str = ""
    """As `DataReference.format` has it."""
    insists: bool = False
    """Whether the format was asked for in so many words: the disk's room is then the only limit of training images."""
    workers: int = 1
    """Processes on this machine."""
    say: Callable[[str], None] = lambda text: None
    """Told what will be written, before it is."""


PLAIN = Making()


def pixels_digest(pixels: Pixels | WholeImages, ids: Sequence[str]) -> str:
    """sha256 over shape, pixel values and ids of a set of images."""
    shape = pixels.sizes if isinstance(pixels, WholeImages) else pixels.shape
    digest = hashlib.sha256(repr((shape, list(ids))).encode())
    for image in pixels:
        digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


class _Told:
    """Adds up what is done of all shards, and what is wrong with images."""

    def __init__(self, layout: Layout, progress: Advance | None) -> None:
        self.layout, self.progress = layout, progress
        self.of_shard: dict[int, int] = {}
        self.total = self.good = 0
        self.bad: dict[int, ImageFileError] = {}
        self.stopped = False

    def done(self, k: int, count: int, bad: ImageFileError | None = None) -> bool:
        """See `shards.Told`."""
        if bad is not None:
            self.bad[self.layout.range(k)[count - 1]] = bad
        else:
            self.good += 1
        before = self.of_shard.get(k, 0)
        if count != before:
            self.of_shard[k] = count
            self.total += count - before
            if self.progress is not None:
                self.progress(self.total, self.layout.images)
        self.stopped |= not self.good and len(self.bad) == min(BAD_IMAGES_SOUGHT, self.layout.images)
        return self.stopped

    def raise_bad(self) -> None:
        """Raise UsageError where images cannot be used."""
        if self.bad:
            bad = [self.bad[i] for i in sorted(self.bad)]
            raise name_unusable(bad, stopped=self.stopped and len(bad) < self.layout.images)


class CachedImages(Images):
    """Decoded images of any shape, as they lie in shards."""

    def __init__(self, shards: Shards | OldShards, ids: Sequence[str], channels: int) -> None:
        self.shards, self.ids, self.channels = shards, ids, channels

    def load(self, i: int) -> Pixels:
        """Image `i` as it was decoded, a read-only view of the file."""
        return self.shards.bytes_of(i).reshape(*self.shards.size_of(i), self.channels)

    def measure(self, i: int) -> tuple[int, int]:
        """(H, W) of image `i`."""
        return self.shards.size_of(i)


class KeptEncoded(Images):
    """Images whose bytes lie in shards as their source, or JPEG, has them, and are decoded when they are needed."""

    def __init__(self, shards: Shards, images: Images) -> None:
        self.shards, self.images, self.ids = shards, images, images.ids

    def load(self, i: int) -> Pixels:
        """Image `i`, decoded as its source would be."""
        return self.images.decode(i, self.encoded(i))

    def encoded(self, i: int) -> bytes:
        """Image `i` as it was kept."""
        return self.shards.bytes_of(i).tobytes()

    def decode(self, i: int, encoded: bytes) -> Pixels:
        """Image `i` of these bytes."""
        return self.images.decode(i, encoded)

    def measure(self, i: int) -> tuple[int, int]:
        """(H, W) of image `i`."""
        return self.shards.size_of(i)


class OldShards:
    """The one shard of a folder of version 2."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bytes = (folder / PIXELS).stat().st_size

    @functools.cached_property
    def _mapped(self) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
        shapes: NDArray[np.int64] = np.load(self.folder / SHAPES)
        starts = np.concatenate([[0], np.cumsum(shapes.prod(axis=1) * 3)])
        return np.memmap(self.folder / PIXELS, np.uint8, "r").view(np.ndarray), shapes, starts

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_mapped"}  # a pickled map would be a copy of it all

    def bytes_of(self, i: int) -> NDArray[np.uint8]:
        """The bytes of image `i`, a read-only view of the file."""
        pixels, _, starts = self._mapped
        return pixels[starts[i] : starts[i + 1]]

    def size_of(self, i: int) -> tuple[int, int]:
        """(H, W) of image `i`."""
        height, width = self._mapped[1][i]
        return int(height), int(width)


class Kept:
    """One side of a dataset in one form, below a home."""

    def __init__(self, dataset: Dataset, side: Side, images: Images, kind: Kind, home: Path) -> None:
        self.dataset, self.side, self.kind, self.home = dataset, side, kind, home
        self.order = images.stored_order()
        self.given = images
        self.images = images if self.order is None else _ordered(images, self.order)
        """In the order in which they lie in shards: that of the source, where any other would cost it much more."""
        R, C = dataset.resolution, dataset.channels
        self.is_whole = images.reading is not None and images.reading.whole
        # validation images are one array by their ids, whatever the order in which they are read
        fixed = R * R * C if side == "validation" and not self.is_whole else 0
        self.layout = Layout.of(len(images), fixed, self.order if fixed else None)
        self.prefix = f"{dataset.slug}-{R}px-{side}-"
        read = sorted(images.reading.differences.items()) if images.reading is not None else []
        key = digest_of(VERSION, kind, side, R, C, self.images.content_key, *read)[:24]
        self.folder = home / "prepared" / f"{self.prefix}{key}"
        self._old: Path | None = None
        if kind == "pixels" and C == 3:
            self._old = self.folder.with_name(
                f"{self.prefix}{digest_of(_OLD, side, R, images.content_key, *read)[:24]}"
            )

    @property
    def form(self) -> str:
        """What makes the bytes others than those of another folder of the same images."""
        jpeg = f"jpeg:{self.images.quality}" if isinstance(self.images, Reencoded) else "original"
        return "pixels" if self.kind == "pixels" else jpeg

    @property
    def name(self) -> str:
        """What errors and lines call it."""
        return f"{'training' if self.side == 'train' else 'validation'} images"

    def found(self) -> Path | None:
        """The folder where it is whole, of this version or of the one before."""
        if is_whole(self.folder):
            return self.folder
        return self._old if self._old is not None and is_whole(self._old, (SHAPES,)) else None

    def open(self, folder: Path) -> Shards | OldShards:
        """What lies in a folder that was `found`, or made."""
        return OldShards(folder) if folder == self._old else Shards(folder)

    def images_of(self, shards: Shards | OldShards) -> Images:
        """The images that lie in shards."""
        if isinstance(shards, OldShards):
            return CachedImages(shards, self.given.ids, self.dataset.channels)
        kept: Images = KeptEncoded(shards, self.images)
        if self.kind == "pixels":
            kept = CachedImages(shards, self.images.ids, self.dataset.channels)
        return kept if self.order is None else Part(kept, np.argsort(self.order))

    def made_bytes(self) -> int:
        """Bytes of the shards that an interrupted making has left."""
        try:
            if not self.folder.is_dir():
                return 0
        except OSError:  # another user's; whoever writes there says so
            return 0
        said = (read_marker(self.folder, self.layout, k) for k in range(self.layout.shards))
        return sum(one["bytes"] for one in said if one is not None)

    def make(self, progress: Advance | None, making: Making) -> Path:
        """Make what is missing, beside others that do so; returns the folder, which is whole.

        Raises OSError, and UsageError that names the images that cannot be used.
        """
        base = folder_in_home(self.folder.parent)
        lock = base / f".{self.folder.name}.lock"
        with locked(lock):
            if not is_whole(self.folder):
                refuse_unreadable(self.folder)
                folder_in_home(self.folder)
                (self.folder / META).unlink(missing_ok=True)  # not whole, so that nobody reads it meanwhile
        told, processes = _Told(self.layout, progress), min(making.workers, self.layout.shards)
        of_image = self.dataset.resolution**2 * self.dataset.channels
        count = max(4, min(_AHEAD_IMAGES, _AHEAD_BYTES // of_image))
        threads = max(1, cores() // processes)
        filling = Filling(self.folder, self.layout, self.images, self.kind, threads, count)
        if processes == 1:
            fill(self.folder, self.layout, filling, told)
        else:
            fill_by_processes(filling, told, processes, self._plugin())
        told.raise_bad()
        with locked(lock):
            if not is_whole(self.folder):
                finish(self.folder, self.layout, self._said)
            shutil.rmtree(self.folder / CLAIMS, ignore_errors=True)
        return self.folder

    def _plugin(self) -> tuple[str, Path] | None:
        """The dataset's name and file, where other processes must be told of it."""
        name = self.dataset.reference.partition(":")[0]
        plugin = DATASETS.source_of(name).plugin if name in DATASETS else None
        return (name, plugin.path) if plugin is not None else None

    def _said(self) -> dict[str, Any]:
        said: dict[str, Any] = {"version": VERSION, "form": self.form}
        if self.side == "validation":
            said["digest"] = self.digest()
        return said

    def validation_pixels(self, folder: Path) -> Pixels | WholeImages:
        """(N, R, R, C), or each at its own size: what a folder holds of validation images, mapped."""
        R = self.dataset.resolution
        if self.is_whole:
            kept = self.images_of(Shards(folder, self.layout))
            return WholeImages([kept.measure(i) for i in range(len(kept))], self.dataset.channels, kept.load)
        return np.memmap(folder / PIXELS, np.uint8, "r", shape=(len(self.images), R, R, self.dataset.channels))

    def digest(self, folder: Path | None = None) -> str:
        """`pixels_digest` of what a folder, or else this one, holds of validation images."""
        return pixels_digest(self.validation_pixels(folder or self.folder), self.given.ids)


def _ordered(images: Images, order: NDArray[np.int64]) -> Images:
    if isinstance(images, Reencoded):
        return Reencoded(_ordered(images.images, order), images.quality)
    return Part(images, order)


def kinds_of(images: Images, form: str) -> tuple[Kind, ...]:
    """The forms in which training images are looked for, the one that is made where none is found first."""
    if isinstance(images, Reencoded) or form == "original":
        return ("encoded",)
    return ("pixels",) if form == "pixels" else ("pixels", "encoded")
