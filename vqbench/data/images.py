"""Sequences of images: what every source gives, and what is chosen, joined or changed of others."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vqbench.data.decode import AS_EVER, Reading, short_side
from vqbench.data.hashing import SEE, digest_of
from vqbench.data.names import PickedNames
from vqbench.data.sizes import remembered_short_sides
from vqbench.errors import UsageError

Pixels = NDArray[np.uint8]


def centre_crop(pixels: Pixels, resolution: int, reading: Reading | None = None) -> Pixels:
    """The middle (R, R, C) of (H, W, C); an odd margin leaves its extra pixel at the bottom or right.

    A `reading` may have it otherwise, or leave the image whole.
    """
    if reading is not None and reading.whole:
        return pixels
    top, left = ((reading or AS_EVER).before_crop(side - resolution) for side in pixels.shape[:2])
    return pixels[top : top + resolution, left : left + resolution]


class Images(ABC):
    """A fixed sequence of images with stable names."""

    ids: Sequence[str]
    """One name for each image, the same on every machine: a path relative to the dataset, or a position in it."""

    groups: Sequence[str] = ()
    """One name for each image where some belong together, as crops of one photograph do: a holdout parts none."""

    content_key: str = ""
    """Changes whenever the images may have changed; what is decoded is kept under it and `reading`. Empty: never."""

    reading: Reading | None = None
    """How encoded images become pixels; None where nothing is decoded, so that there is nothing to choose."""

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def load(self, i: int) -> Pixels:
        """Image `i` as (H, W, C) uint8, C of 3 being RGB, its short side at the resolution, or where `reading` has it.

        Raises ImageFileError, which names the file, where it cannot be used.
        """

    def encoded(self, i: int) -> bytes | None:
        """Image `i` as its source holds it, before decoding; None where there is no such thing."""
        return None

    def decode(self, i: int, encoded: bytes) -> Pixels:
        """What `load(i)` gives, of what `encoded(i)` gives. A source that has the one has the other.

        Raises ImageFileError, which names the file, where it cannot be used.
        """
        raise NotImplementedError(f"{type(self).__name__} decodes no bytes")

    def measure(self, i: int) -> tuple[int, int]:
        """(H, W) that `load(i)` will have, found as cheaply as the source allows."""
        height, width, _ = self.load(i).shape
        return height, width

    def stored_order(self) -> NDArray[np.int64] | None:
        """Positions in the order in which the source holds them, where any other costs much more to read."""
        return None

    def read_as(self, reading: Reading, crop: bool) -> Images:
        """The same images, decoded in another way, and cropped to the middle square or not.

        This and the next two are of images that have a `reading`.
        """
        raise NotImplementedError

    def contents(self) -> str:
        """sha256 over the images as far as it can be had without decoding; the same on every machine."""
        raise NotImplementedError

    def short_side(self, i: int) -> int:
        """Of image `i` as it is stored, from its header. Raises ImageFileError."""
        return short_side(self.encoded(i) or b"", self.ids[i])

    def short_sides(self) -> NDArray[np.int32]:
        """(N,) short sides of all of them as they are stored; 0 where a header cannot be read."""
        return remembered_short_sides(self.content_key, len(self), self.short_side)


class Elsewhere(Images):
    """Images that are those of other sequences; what a subclass does not say of one is as it is there."""

    @abstractmethod
    def _place(self, i: int) -> tuple[Images, int]:
        """The sequence that has image `i`, and where it stands in that."""

    def load(self, i: int) -> Pixels:
        """Image `i`, as its source gives it."""
        images, place = self._place(i)
        return images.load(place)

    def encoded(self, i: int) -> bytes | None:
        """Image `i`, before decoding."""
        images, place = self._place(i)
        return images.encoded(place)

    def decode(self, i: int, encoded: bytes) -> Pixels:
        """Image `i`, of these bytes."""
        images, place = self._place(i)
        return images.decode(place, encoded)

    def measure(self, i: int) -> tuple[int, int]:
        """(H, W) of image `i`."""
        images, place = self._place(i)
        return images.measure(place)

    def short_side(self, i: int) -> int:
        """Of image `i` as it is stored. Raises ImageFileError."""
        images, place = self._place(i)
        return images.short_side(place)


class Part(Elsewhere):
    """Some of the images of another sequence."""

    def __init__(self, images: Images, positions: Sequence[int] | NDArray[np.int64]) -> None:
        self.images = images
        self.reading = images.reading
        self.positions = np.asarray(positions, np.int64)
        self.ids = PickedNames(images.ids, self.positions)
        self.groups = PickedNames(images.groups, self.positions) if len(images.groups) else ()
        chosen = tuple(self.positions.tolist()) if images.content_key else ()
        self.content_key = digest_of(images.content_key, chosen) if chosen else ""  # of none, nothing is kept

    def _place(self, i: int) -> tuple[Images, int]:
        return self.images, int(self.positions[i])

    def stored_order(self) -> NDArray[np.int64] | None:
        """Positions among the chosen ones."""
        order = self.images.stored_order()
        return None if order is None else np.argsort(np.argsort(order)[self.positions])

    def read_as(self, reading: Reading, crop: bool) -> Images:
        """The same of the others, read so."""
        return type(self)(self.images.read_as(reading, crop), self.positions)

    def contents(self) -> str:
        """Of all of them, and which these are."""
        return digest_of(self.images.contents(), list(self.ids))

    def short_sides(self) -> NDArray[np.int32]:
        """(N,) of the chosen ones."""
        return self.images.short_sides()[self.positions]


class Chosen(Part):
    """A part that is chosen anew from command to command: what is decoded once for all of them serves every choice."""


class LargeEnough(Part):
    """The part that is not left out for being small; the others are never decoded."""


class Joined(Elsewhere):
    """The images of both sides of a split, one after the other."""

    def __init__(self, first: Images, second: Images) -> None:
        self.first, self.second = first, second
        self.reading = first.reading
        self.ids = [*first.ids, *second.ids]
        if len(first.groups) and len(second.groups):
            self.groups = [*first.groups, *second.groups]
        if first.content_key and second.content_key:
            self.content_key = digest_of(first.content_key, second.content_key)

    def _place(self, i: int) -> tuple[Images, int]:
        return (self.first, i) if i < len(self.first) else (self.second, i - len(self.first))

    def read_as(self, reading: Reading, crop: bool) -> Images:
        """Both, read so."""
        return Joined(self.first.read_as(reading, crop), self.second.read_as(reading, crop))

    def contents(self) -> str:
        """Of both."""
        return digest_of(*sorted((self.first.contents(), self.second.contents())))

    def short_sides(self) -> NDArray[np.int32]:
        """(N,) of both."""
        return np.concatenate([self.first.short_sides(), self.second.short_sides()])

    def stored_order(self) -> NDArray[np.int64] | None:
        """Those of the first as they lie, then those of the second; None where neither says how."""
        orders = [(images.stored_order(), len(images)) for images in (self.first, self.second)]
        if all(order is None for order, _ in orders):
            return None
        first, second = (np.arange(count) if order is None else order for order, count in orders)
        return np.concatenate([first, second + len(self.first)])


class Changed(Elsewhere):
    """The images of another sequence, changed when they are loaded."""

    def __init__(self, images: Images, key: str) -> None:
        self.images, self.ids, self.content_key = images, images.ids, key
        # of a plugin, which may give a class of its own
        self.groups, self.reading = getattr(images, "groups", ()), getattr(images, "reading", None)

    def _place(self, i: int) -> tuple[Images, int]:
        return self.images, i

    def encoded(self, i: int) -> bytes | None:
        """Image `i` before decoding, and so before the change."""
        return self.images.encoded(i) if isinstance(self.images, Images) else None

    def stored_order(self) -> NDArray[np.int64] | None:
        """As the other images lie."""
        return self.images.stored_order() if isinstance(self.images, Images) else None

    def contents(self) -> str:
        """Of the other images, before the change."""
        return self.images.contents()

    def short_sides(self) -> NDArray[np.int32]:
        """(N,) of the images as they are stored."""
        return self.images.short_sides()


class Cropped(Changed):
    """Images whose middle square is kept."""

    def __init__(self, images: Images, resolution: int) -> None:
        super().__init__(images, digest_of(images.content_key, "centre crop") if images.content_key else "")
        self.resolution = resolution

    def load(self, i: int) -> Pixels:
        """The middle (R, R, C) of image `i`."""
        return centre_crop(self.images.load(i), self.resolution, self.reading)

    def decode(self, i: int, encoded: bytes) -> Pixels:
        """The middle (R, R, C) of image `i`, of these bytes."""
        return centre_crop(self.images.decode(i, encoded), self.resolution, self.reading)

    def measure(self, i: int) -> tuple[int, int]:
        """(R, R), or what the image has where it is left whole."""
        whole = self.reading is not None and self.reading.whole
        return self.images.measure(i) if whole else (self.resolution, self.resolution)

    def read_as(self, reading: Reading, crop: bool) -> Images:
        """The same images, read so."""
        images = self.images.read_as(reading, crop=False)
        return Cropped(images, self.resolution) if crop else images


class Reencoded(Changed):
    """Images as JPEG makes them: what is lost in a smaller cache, whether or not there is one."""

    def __init__(self, images: Images, quality: int) -> None:
        super().__init__(images, digest_of(images.content_key, "JPEG", quality) if images.content_key else "")
        self.quality = quality

    def load(self, i: int) -> Pixels:
        """Image `i`, encoded and decoded again."""
        return self.decode(i, self.encoded(i))

    def encoded(self, i: int) -> bytes:
        """Image `i` as JPEG, at its resolution."""
        return self.compressed(self.images.load(i))

    def compressed(self, pixels: Pixels) -> bytes:
        """The JPEG of (H, W, 3) or (H, W, 1) pixels; colours at half the resolution, as most JPEGs have them."""
        from PIL import Image

        grey = pixels.shape[2] == 1
        kept = io.BytesIO()
        image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if grey else pixels))
        image.save(kept, "JPEG", quality=self.quality, subsampling="4:2:0")
        return kept.getvalue()

    def decode(self, i: int, encoded: bytes) -> Pixels:
        """The pixels of a JPEG that `compressed` has made."""
        from PIL import Image

        with Image.open(io.BytesIO(encoded), formats=("JPEG",)) as image:
            pixels = np.asarray(image)
        return pixels[..., None] if pixels.ndim == 2 else pixels


class Looked(Changed):
    """The images of a plugin, each looked at when it is loaded: bytes of another kind would become wrong pixels."""

    def __init__(self, images: Images, resolution: int, is_square: bool, channels: int = 3) -> None:
        super().__init__(images, images.content_key)
        self.resolution, self.is_square, self.channels = resolution, is_square, channels

    def load(self, i: int) -> Pixels:
        """Image `i`. Raises UsageError unless it is uint8 (H, W, C) with sides and channels as `Dataset` says."""
        return self._looked_at(i, self.images.load(i))

    def decode(self, i: int, encoded: bytes) -> Pixels:
        """Image `i` of these bytes. Raises UsageError as `load` does."""
        return self._looked_at(i, self.images.decode(i, encoded))

    def _looked_at(self, i: int, pixels: Pixels) -> Pixels:
        R, C = self.resolution, self.channels
        shape, short = tuple(np.shape(pixels)), self.reading.side(R) if self.reading else R
        sides = shape[:2] == (R, R) if self.is_square else min(shape[:2], default=0) == short
        sides |= self.reading is not None and self.reading.whole
        if getattr(pixels, "dtype", None) != np.uint8 or len(shape) != 3 or shape[2] != C or not sides:
            kind = getattr(pixels, "dtype", type(pixels).__name__)
            wanted = f"({R}, {R}, {C})" if self.is_square else f"(H, W, {C}) with a short side of {short}"
            raise UsageError(f"image {self.ids[i]} is {kind} of shape {shape}, not uint8 of shape {wanted}", SEE)
        return pixels

    def read_as(self, reading: Reading, crop: bool) -> Images:
        """The plugin's, read so."""
        channels = 1 if reading.channels == 1 else self.channels
        return Looked(self.images.read_as(reading, crop), self.resolution, is_square=crop, channels=channels)
