"""Images as their source holds them, encoded: files of a tree, members of tars, rows of parquet files."""

from __future__ import annotations

import hashlib
import os
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from vqbench.data.decode import AS_EVER, ImageFileError, Reading, decode_image, measure_image, short_side
from vqbench.data.hashing import digest_of_each
from vqbench.data.images import Images, Pixels, centre_crop

T = TypeVar("T")

END = 2**14
"""Bytes at either end of an encoded image that its digest is made of."""


class Encoded(ABC):
    """A fixed sequence of encoded images with stable names.

    Several processes may read one that was forked or pickled into them: nothing is held open for each image.
    """

    ids: Sequence[str]
    """One name for each image, the same on every machine."""
    groups: Sequence[str] = ()
    """See `Images.groups`."""
    key: str
    """Changes whenever the bytes may have changed; valid on this machine only."""

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def read(self, i: int) -> bytes:
        """Image `i`, whole. Raises ImageFileError, which names it."""

    @abstractmethod
    def name(self, i: int) -> str:
        """What errors call image `i`: where it is found."""

    def header(self, i: int) -> Path | bytes:
        """What the size of image `i` can be read from."""
        return self.read(i)

    @abstractmethod
    def digest(self) -> str:
        """`encoded_digest` of all of them. Raises UsageError that names those that cannot be read."""

    def stored_order(self) -> NDArray[np.int64] | None:
        """Positions in the order in which the source holds them, where any other costs much more to read."""
        return None

    def short_sides(self) -> NDArray[np.int32] | None:
        """(N,) short sides as they are stored, 0 where there is none; None where they were not looked at."""
        return None


class EncodedImages(Images):
    """Encoded images of one source, decoded each time they are asked for."""

    def __init__(self, source: Encoded, resolution: int, crop: bool, reading: Reading = AS_EVER) -> None:
        self.source = source
        self.ids, self.groups = source.ids, source.groups
        self.resolution = resolution
        self.crop = crop
        self.reading: Reading = reading
        self.content_key = source.key

    def load(self, i: int) -> Pixels:
        """Decode image `i`: resized, and centre-cropped where this is a validation set. Raises ImageFileError."""
        return self.decode(i, self.source.read(i))

    def decode(self, i: int, encoded: bytes) -> Pixels:
        """What `load(i)` makes of the bytes of image `i`. Raises ImageFileError."""
        pixels = decode_image(encoded, self.resolution, self.reading, self.source.name(i))
        return centre_crop(pixels, self.resolution, self.reading) if self.crop else pixels

    def encoded(self, i: int) -> bytes:
        """The bytes of image `i`. Raises ImageFileError."""
        return self.source.read(i)

    def measure(self, i: int) -> tuple[int, int]:
        """(H, W) of `load(i)`, from the header of the image."""
        height, width = measure_image(self.source.header(i), self.resolution, self.reading, self.source.name(i))
        return (self.resolution, self.resolution) if self.crop and not self.reading.whole else (height, width)

    def read_as(self, reading: Reading, crop: bool) -> EncodedImages:
        """The same images, decoded in another way."""
        return EncodedImages(self.source, self.resolution, crop, reading)

    def contents(self) -> str:
        """sha256 over the images as they are encoded; the same on every machine, in every layout."""
        return self.source.digest()

    def short_side(self, i: int) -> int:
        """Of image `i` as it is stored, from its header. Raises ImageFileError."""
        return short_side(self.source.header(i), self.source.name(i))

    def short_sides(self) -> NDArray[np.int32]:
        """(N,) short sides as they are stored, of the listing where it has them."""
        known = self.source.short_sides()
        return super().short_sides() if known is None else known

    def stored_order(self) -> NDArray[np.int64] | None:
        """As the source holds them."""
        return self.source.stored_order()


class Opened(Generic[T]):
    """The last `most` things that a process has opened, by key. One is closed when its last user is done with it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._forget()
        os.register_at_fork(after_in_child=self._forget)  # somebody may have held the lock at that moment

    def _forget(self) -> None:
        self._things: OrderedDict[Hashable, T] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """What stands under `key`, made now where nothing does."""
        with self._lock:
            if key in self._things:
                self._things.move_to_end(key)
                return self._things[key]
            thing = self._things[key] = make()
            if len(self._things) > self._most:
                self._things.popitem(last=False)
            return thing


def unreadable(name: object, error: OSError) -> ImageFileError:
    """The error for an image, or what holds it, that the system does not give."""
    return ImageFileError(f"{name}: cannot be read ({error.strerror or error})", "mend it, or remove it")


def ends_digest(data: bytes) -> str:
    """sha256 over the first and last 16 KiB of an encoded image; over all of it where it is no longer than both."""
    return hashlib.sha256(data[:END] + data[max(END, len(data) - END) :]).hexdigest()


def encoded_digest(items: Iterable[tuple[str, int, str]]) -> str:
    """sha256 over (id, size, `ends_digest`) of encoded images, sorted: the same on every machine, in every layout."""
    return digest_of_each(sorted(items))
