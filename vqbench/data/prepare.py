"""Decode once: validation as one array, training images as a ragged one, in a cache that is read when it is whole."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vqbench.data.cache import META, PIXELS, free_bytes
from vqbench.data.dataset import Dataset
from vqbench.data.decode import ImageFileError, UnusableImagesError, name_unusable
from vqbench.data.filling import ahead
from vqbench.data.images import Chosen, Images, Part, Pixels, Reencoded
from vqbench.data.kept import (
    BAD_IMAGES_SOUGHT,
    PLAIN,
    Advance,
    CachedImages,
    Kept,
    KeptEncoded,
    Making,
    kinds_of,
    pixels_digest,
)
from vqbench.errors import UsageError, remedy
from vqbench.machine.cores import cores
from vqbench.metrics.whole import WholeImages

A = TypeVar("A")
B = TypeVar("B")

ELSEWHERE = "set VQBENCH_HOME to another folder"
SHARE_OF_FREE = 0.5
"""What decoded training images may take of the disk that is free, unless a limit is given. One half, for then a set
leaves as much as it takes: checkpoints and results find room, and no number of sets fills the disk."""
_LIMIT_VARIABLE = "VQBENCH_CACHE_LIMIT_GB"
_AHEAD = 128  # images decoded ahead of the reader: bounds memory to about 25 MB at 256 px


@dataclass(frozen=True)
class PreparedImages:
    """The validation images as the tokenizer gets them and as every metric's reference."""

    pixels: Pixels | WholeImages
    """(N, R, R, C) uint8; a read-only map of a file, or an array. Or each image at its own size."""
    ids: tuple[str, ...]
    digest: str
    """sha256 over shape, pixels and ids."""

    def __len__(self) -> int:
        return len(self.ids)


def prepare_validation(
    dataset: Dataset, home: Path, progress: Advance | None = None, making: Making = PLAIN
) -> PreparedImages:
    """All validation images of `dataset`, (R, R, C) each, decoded now or by an earlier call.

    Raises UsageError that names every image that cannot be used (up to 20), where the disk is too small, and for
    images that JPEG has changed.
    """
    images, R, C = dataset.validation, dataset.resolution, dataset.channels
    if is_reencoded(images):
        what = (
            f"the validation images of {dataset.reference} would be re-encoded as JPEG, and scores be of other images"
        )
        raise UsageError(what, "keep JPEG to the training images: --format jpeg does")
    ids = tuple(images.ids)
    if not images.content_key:  # in memory already: a copy on disk would be slower to check than to make
        pixels = np.stack([images.load(i) for i in range(len(images))])
        return PreparedImages(pixels, ids, pixels_digest(pixels, ids))
    of = Kept(dataset, "validation", images, "pixels", home)
    expected = decoded_bytes(images, C) if of.is_whole else len(images) * R * R * C
    folder = of.found() or _made(of, expected, progress, making)
    return PreparedImages(
        of.validation_pixels(folder), ids, json.loads((folder / META).read_text(encoding="utf-8"))["digest"]
    )


def _has_bytes(images: Images) -> bool:
    try:
        return images.encoded(0) is not None
    except ImageFileError:  # it is named with all the others
        return True


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
    dataset: Dataset,
    home: Path,
    progress: Advance | None = None,
    limit_bytes: int | None = None,
    making: Making = PLAIN,
) -> Images:
    """The training images of `dataset`, kept in a cache where there is room for it: `limit_bytes`, or `room`.

    A larger set is returned as it is and decodes on the fly (`is_cached` tells which, `verify` reads it all
    beforehand). Raises UsageError like `prepare_validation`; a set that is not cached raises it when a bad image is
    first read.
    """
    return _prepared(dataset, dataset.train, home, progress, limit_bytes, making)


def _prepared(
    dataset: Dataset, images: Images, home: Path, progress: Advance | None, limit_bytes: int | None, making: Making
) -> Images:
    if isinstance(images, Chosen):  # of a holdout: what is decoded once serves every share
        kept = _prepared(dataset, images.images, home, progress, limit_bytes, making)
        return Chosen(kept, images.positions)
    if making.format == "original" and not _has_bytes(images):
        what = f"--format original keeps images as files hold them, and {dataset.reference} has no such files"
        raise UsageError(what, "leave --format out, or take --format pixels")
    if not images.content_key:
        return images
    kinds = kinds_of(images, making.format)
    limit = room(home) if limit_bytes is None else Room(limit_bytes, "", True)
    for kind in kinds:
        of = Kept(dataset, "train", images, kind, home)
        if (folder := of.found()) is not None:
            shards = of.open(folder)
            if not limit.is_chosen or shards.bytes <= limit.bytes:
                return of.images_of(shards)
    of = Kept(dataset, "train", images, kinds[0], home)
    least = len(images) * dataset.resolution**2 * dataset.channels  # no image is smaller than its centre crop
    made = of.made_bytes()
    allowed = limit.bytes if limit.is_chosen else limit.bytes + int(SHARE_OF_FREE * made)
    expected = 0
    fits = kinds[0] == "encoded" or making.insists or least <= allowed
    if fits:
        expected = decoded_bytes(of.images, dataset.channels) if kinds[0] == "pixels" else encoded_bytes(of.images)
        fits = expected <= allowed
    if making.insists and limit.is_chosen and not fits:
        raise UsageError(
            f"--format {making.format} takes {_gib(expected)} for the training images, and {limit.reason}",
            f"raise {_LIMIT_VARIABLE}, or leave --format out to decode as needed",
        )
    if not (fits or making.insists):
        return images
    return of.images_of(of.open(_made(of, expected, progress, making)))


def _made(of: Kept, expected: int, progress: Advance | None, making: Making) -> Path:
    """The folder, made where there is room for what is missing of `expected` bytes."""
    needs, free = expected - of.made_bytes(), free_bytes(of.home)
    making.say(f"{of.name} are kept as {of.form}: {_gib(needs)} to write to {of.folder}, and {_gib(free)} are free")
    if needs > free:
        what = f"{of.home} needs {_gib(needs)} for the {of.name} as {of.form}, and has less free ({_gib(free)})"
        raise UsageError(what, f"free some space, or {_elsewhere(of.side)}")
    try:
        return of.make(progress, making)
    except OSError as error:
        raise not_kept(of.home, error, _elsewhere(of.side)) from None


def _gib(count: int) -> str:
    return f"{max(count, 0) / 2**30:.2f} GiB"


def prepare_both(
    dataset: Dataset, home: Path, progress: Callable[[str, int, int], None], making: Making = PLAIN
) -> tuple[PreparedImages, Images]:
    """Validation and training images of `dataset`, every one decoded, cached as far as they are kept.

    `progress` is called with (what, images done, images in all). Raises UsageError like `prepare_validation`, once for
    both sides.
    """

    def decode_train() -> Images:
        advance = functools.partial(progress, "training images")
        train = prepare_train(dataset, home, advance, making=making)
        if not is_cached(train):  # too many to keep decoded, but a broken one should be found now
            verify(train, advance)
        return train

    return both_or_name(
        lambda: prepare_validation(dataset, home, functools.partial(progress, "validation images"), making),
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
    """Whether `prepare_train` gave kept images, every one of which was found to be usable."""
    return is_cached(images.images) if isinstance(images, Part) else isinstance(images, CachedImages | KeptEncoded)


def is_reencoded(images: Any) -> bool:
    """Whether JPEG has changed the images, whatever is chosen or cropped of them."""
    return isinstance(images, Reencoded) or (hasattr(images, "images") and is_reencoded(images.images))


def verify(images: Images, progress: Advance | None = None) -> None:
    """Decode every image once and keep none of it. Raises UsageError like `prepare_validation`."""
    order = images.stored_order()
    for _ in decode_or_name(images if order is None else Part(images, order), progress):
        pass


def decoded_bytes(images: Images, channels: int = 3) -> int:
    """What `images` take decoded, from the headers of 64 of them: reading all takes minutes on a network disk."""
    return _of_a_sample(images, lambda i: float(channels * np.prod(images.measure(i))))


def encoded_bytes(images: Images) -> int:
    """What `images` take as `encoded` gives them, from 64 of them."""
    return _of_a_sample(images, lambda i: float(len(images.encoded(i) or b"")))


def _of_a_sample(images: Images, size: Callable[[int], float]) -> int:
    sizes = []
    for i in range(0, len(images), max(1, len(images) // 64)):
        with contextlib.suppress(ImageFileError):  # it is named with all the others when they are decoded
            sizes.append(size(i))
    return int(np.mean(sizes) * len(images)) if sizes else 0


def not_kept(home: Path, error: OSError, elsewhere: str = ELSEWHERE) -> UsageError:
    """The error for a cache below `home` that can be neither read nor written."""
    place = error.filename if isinstance(error.filename, str) else home / "prepared"
    verb = "read" if os.path.basename(place) in (META, PIXELS) else "write to"
    return UsageError(f"cannot {verb} {place} ({error.strerror or error})", f"{remedy(error)}, or {elsewhere}")


def _elsewhere(side: str) -> str:
    return ELSEWHERE + (f", or {_LIMIT_VARIABLE}=0 to decode as needed" if side == "train" else "")


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
        if len(bad) == done == BAD_IMAGES_SOUGHT:
            break
    if bad:
        raise name_unusable(bad, stopped=done < len(images))


def _decode_all(images: Images) -> Iterator[Pixels | ImageFileError]:
    """Every image in order, decoded by as many threads as there are cores (Pillow releases the interpreter lock)."""

    def load(i: int) -> Pixels | ImageFileError:
        try:
            return images.load(i)
        except ImageFileError as error:
            return error

    return ahead(load, range(len(images)), cores(), _AHEAD)
