"""Decode once: validation as one array, training images as a ragged one, in a cache that is whole or absent."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vqbench.data.cache import META, PIXELS, cached_folder, free_bytes, is_whole
from vqbench.data.dataset import Chosen, Dataset, Images, Pixels, digest_of
from vqbench.data.decode import ImageFileError, UnusableImagesError, name_unusable
from vqbench.errors import UsageError, remedy

VERSION = 2
"""Goes up when decoding or the layout of the cache changes, so that no older cache is read."""

Advance = Callable[[int, int], None]
"""Called with (images done, images in all)."""

A = TypeVar("A")
B = TypeVar("B")

ELSEWHERE = "set VQBENCH_HOME to another folder"
SHARE_OF_FREE = 0.5
"""What decoded training images may take of the disk that is free, unless a limit is given. One half, for then a set
leaves as much as it takes: checkpoints and results find room, and no number of sets fills the disk."""
_LIMIT_VARIABLE = "VQBENCH_CACHE_LIMIT_GB"
_SHAPES = "shapes.npy"
_CHUNK = 128  # images decoded ahead of the writer: bounds memory to about 25 MB at 256 px
_BAD_IMAGES_SOUGHT = 20  # where none before was usable, the folder is wrong rather than a file: no need to read on


@dataclass(frozen=True)
class PreparedImages:
    """The validation images as the tokenizer gets them and as every metric's reference."""

    pixels: Pixels
    """(N, R, R, C) uint8; a read-only map of a file, or an array."""
    ids: tuple[str, ...]
    digest: str
    """sha256 over shape, pixels and ids."""

    def __len__(self) -> int:
        return len(self.ids)


class CachedImages(Images):
    """Decoded images of any shape, one after the other in one file."""

    def __init__(self, folder: Path, ids: Sequence[str], channels: int = 3) -> None:
        self.folder = folder
        self.ids = list(ids)
        self.channels = channels
        self.shapes: NDArray[np.int64] = np.load(folder / _SHAPES)
        self.starts = np.concatenate([[0], np.cumsum(self.shapes.prod(axis=1) * channels)])

    @functools.cached_property
    def _bytes(self) -> NDArray[np.uint8]:
        return np.memmap(self.folder / PIXELS, np.uint8, "r")

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_bytes"}  # a pickled map would be a copy of it all

    def load(self, i: int) -> Pixels:
        """Image `i` as it was decoded, a read-only view of the file."""
        height, width = self.shapes[i]
        return self._bytes[self.starts[i] : self.starts[i + 1]].reshape(height, width, self.channels)

    def measure(self, i: int) -> tuple[int, int]:
        """(H, W) of image `i`."""
        return int(self.shapes[i, 0]), int(self.shapes[i, 1])


def pixels_digest(pixels: Pixels, ids: Sequence[str]) -> str:
    """sha256 over shape, pixel values and ids of a set of images."""
    digest = hashlib.sha256(repr((pixels.shape, list(ids))).encode())
    for image in pixels:
        digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def prepare_validation(dataset: Dataset, home: Path, progress: Advance | None = None) -> PreparedImages:
    """All validation images of `dataset`, (R, R, C) each, decoded now or by an earlier call.

    Raises UsageError that names every image that cannot be used (up to 20), and where the disk is too small.
    """
    images, R, C = dataset.validation, dataset.resolution, dataset.channels
    ids = tuple(images.ids)
    if not images.content_key:  # in memory already: a copy on disk would be slower to check than to make
        pixels = np.stack([images.load(i) for i in range(len(images))])
        return PreparedImages(pixels, ids, pixels_digest(pixels, ids))
    folder = _decoded(dataset, "validation", images, len(images) * R * R * C, home, progress)
    pixels = np.memmap(folder / PIXELS, np.uint8, "r", shape=(len(images), R, R, C))
    return PreparedImages(pixels, ids, json.loads((folder / META).read_text(encoding="utf-8"))["digest"])


@dataclass(frozen=True)
class Room:
    """What the decoded training images of a set may take."""

    bytes: int
    reason: str
    """Why no more, in words."""
    is_chosen: bool
    """Whether the user has said so. What is decoded already has its room otherwise."""


def room(home: Path) -> Room:
    """`$VQBENCH_CACHE_LIMIT_GB`, or SHARE_OF_FREE of the disk of `home`. Raises UsageError for what is no number."""
    text = os.environ.get(_LIMIT_VARIABLE, "")
    if not text.strip():
        free = free_bytes(home)
        return Room(int(free * SHARE_OF_FREE), f"half of the {free / 2**30:.2f} GiB free in {home} may be taken", False)
    try:
        return Room(int(float(text) * 2**30), f"{_LIMIT_VARIABLE}={text} allows no more", True)
    except (ValueError, OverflowError):
        raise UsageError(
            f"{_LIMIT_VARIABLE} must be a number of GiB, not {text!r}", f"export {_LIMIT_VARIABLE}=8"
        ) from None


def prepare_train(
    dataset: Dataset, home: Path, progress: Advance | None = None, limit_bytes: int | None = None
) -> Images:
    """The training images of `dataset`, decoded into a cache where there is room for it: `limit_bytes`, or `room`.

    A larger set is returned as it is and decodes on the fly (`is_cached` tells which, `verify` reads it all
    beforehand). Raises UsageError like `prepare_validation`; a set that is not cached raises it when a bad image is
    first read.
    """
    return _prepared(dataset, dataset.train, home, progress, limit_bytes)


def _prepared(
    dataset: Dataset, images: Images, home: Path, progress: Advance | None, limit_bytes: int | None
) -> Images:
    if isinstance(images, Chosen):  # of a holdout: what is decoded once serves every share
        return Chosen(_prepared(dataset, images.images, home, progress, limit_bytes), images.positions)
    if not images.content_key:
        return images
    limit = room(home) if limit_bytes is None else Room(limit_bytes, "", True)
    folder = _folder_of(dataset, "train", images, home)
    if not limit.is_chosen and is_whole(folder, (_SHAPES,)):
        return CachedImages(folder, images.ids, dataset.channels)
    if len(images) * dataset.resolution**2 * dataset.channels > limit.bytes:  # no image is smaller than its centre crop
        return images
    expected = decoded_bytes(images, dataset.channels)
    if expected > limit.bytes:
        return images
    return CachedImages(_decoded(dataset, "train", images, expected, home, progress), images.ids, dataset.channels)


def prepare_both(
    dataset: Dataset, home: Path, progress: Callable[[str, int, int], None]
) -> tuple[PreparedImages, Images]:
    """Validation and training images of `dataset`, every one decoded, cached as far as they are kept.

    `progress` is called with (what, images done, images in all). Raises UsageError like `prepare_validation`, once for
    both sides.
    """

    def decode_train() -> Images:
        train = prepare_train(dataset, home, lambda done, total: progress("training images", done, total))
        if not is_cached(train):  # too many to keep decoded, but a broken one should be found now
            verify(train, lambda done, total: progress("training images", done, total))
        return train

    return both_or_name(
        lambda: prepare_validation(dataset, home, lambda done, total: progress("validation images", done, total)),
        decode_train,
    )


def both_or_name(first: Callable[[], A], second: Callable[[], B]) -> tuple[A, B]:
    """What two readers of images return. Where images cannot be used, one UsageError names those of both."""
    bad: list[ImageFileError] = []
    results: list[Any] = []
    stopped = False
    for read in (first, second):
        try:
            results.append(read())
        except (ImageFileError, UnusableImagesError) as error:
            bad += error.bad if isinstance(error, UnusableImagesError) else [error]
            stopped |= isinstance(error, UnusableImagesError) and error.stopped
    if bad:
        raise name_unusable(bad, stopped)
    return results[0], results[1]


def is_cached(images: Images) -> bool:
    """Whether `prepare_train` gave decoded images, every one of which was found to be usable."""
    return is_cached(images.images) if isinstance(images, Chosen) else isinstance(images, CachedImages)


def verify(images: Images, progress: Advance | None = None) -> None:
    """Decode every image once and keep none of it. Raises UsageError like `prepare_validation`."""
    for _ in decode_or_name(images, progress):
        pass


def decoded_bytes(images: Images, channels: int = 3) -> int:
    """What `images` of so many channels take decoded, from the headers of 64 of them.

    Reading all takes minutes on a network disk.
    """
    sizes = []
    for i in range(0, len(images), max(1, len(images) // 64)):
        with contextlib.suppress(ImageFileError):  # it is named with all the others when they are decoded
            sizes.append(float(channels * np.prod(images.measure(i))))
    return int(np.mean(sizes) * len(images)) if sizes else 0


def _folder_of(dataset: Dataset, side: str, images: Images, home: Path) -> Path:
    read = sorted(images.reading.differences.items()) if images.reading is not None else []
    key = digest_of(VERSION, side, dataset.resolution, images.content_key, *read)[:24]
    return home / "prepared" / f"{dataset.slug}-{dataset.resolution}px-{side}-{key}"


def _decoded(dataset: Dataset, side: str, images: Images, expected: int, home: Path, progress: Advance | None) -> Path:
    folder = _folder_of(dataset, side, images, home)

    def fill(folder: Path) -> None:
        if expected > free_bytes(home):
            what = f"{home} needs {expected / 2**30:.2f} GiB for the decoded {side} images, and has less free"
            raise UsageError(what, f"free some space, or {_elsewhere(side)}")
        _write(images, folder, progress)
        _write_meta(folder, dataset if side == "validation" else None)

    try:
        return cached_folder(folder.parent, folder.name, fill, (_SHAPES,))
    except OSError as error:
        raise not_kept(home, error, _elsewhere(side)) from None


def not_kept(home: Path, error: OSError, elsewhere: str = ELSEWHERE) -> UsageError:
    """The error for a cache below `home` that can be neither read nor written."""
    place = error.filename if isinstance(error.filename, str) else home / "prepared"
    verb = "read" if os.path.basename(place) in (META, PIXELS) else "write to"
    return UsageError(f"cannot {verb} {place} ({error.strerror or error})", f"{remedy(error)}, or {elsewhere}")


def _elsewhere(side: str) -> str:
    return ELSEWHERE + (f", or {_LIMIT_VARIABLE}=0 to decode as needed" if side == "train" else "")


def _write(images: Images, folder: Path, progress: Advance | None) -> None:
    """Pixels and shapes into `folder`. Plain writes, since a full disk under a memory map kills the process."""
    shapes: list[tuple[int, int]] = []
    with open(folder / PIXELS, "wb") as file:
        for pixels in decode_or_name(images, progress):
            file.write(np.ascontiguousarray(pixels).data)
            shapes.append((pixels.shape[0], pixels.shape[1]))
    np.save(folder / _SHAPES, np.array(shapes, np.int64))


def decode_or_name(images: Images, progress: Advance | None) -> Iterator[Pixels]:
    """Every image in order; those that cannot be used are named by the UsageError that follows the last."""
    bad: list[ImageFileError] = []
    for done, pixels in enumerate(_decode_all(images), start=1):
        if isinstance(pixels, ImageFileError):
            bad.append(pixels)
        else:
            yield pixels
        if progress is not None:
            progress(done, len(images))
        if len(bad) == done == _BAD_IMAGES_SOUGHT:
            break
    if bad:
        raise name_unusable(bad, stopped=done < len(images))


def _write_meta(folder: Path, validation_of: Dataset | None) -> None:
    """The length that a whole cache has; of the validation images of a dataset, their digest too."""
    meta: dict[str, object] = {"version": VERSION, "bytes": (folder / PIXELS).stat().st_size}
    if validation_of is not None:
        ids, R = validation_of.validation.ids, validation_of.resolution
        pixels = np.memmap(folder / PIXELS, np.uint8, "r", shape=(len(ids), R, R, validation_of.channels))
        meta["digest"] = pixels_digest(pixels, ids)
    (folder / META).write_text(json.dumps(meta), encoding="utf-8")


def _decode_all(images: Images) -> Iterator[Pixels | ImageFileError]:
    """Every image in order, decoded by as many threads as there are cores (Pillow releases the interpreter lock)."""

    def load(i: int) -> Pixels | ImageFileError:
        try:
            return images.load(i)
        except ImageFileError as error:
            return error

    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Iterator[Pixels | ImageFileError]] = deque()
        for start in range(0, len(images), _CHUNK):
            waiting.append(pool.map(load, range(start, min(start + _CHUNK, len(images)))))
            if len(waiting) == 2:  # one is decoded while the other is written
                yield from waiting.popleft()
        yield from itertools.chain.from_iterable(waiting)
