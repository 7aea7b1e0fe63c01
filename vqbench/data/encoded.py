"""Images as their source holds them, encoded, wherever they lie."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from vqbench.data.dataset import Images, Pixels, centre_crop
from vqbench.data.decode import AS_EVER, Reading, decode_image, measure_image


class Encoded(ABC):
    """A fixed sequence of encoded images with stable names."""

    ids: Sequence[str]
    """One name for each image, the same on every machine."""
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
        """sha256 over all of them as far as it can be had cheaply; the same on every machine.

        Raises UsageError that names those that cannot be read.
        """


class EncodedImages(Images):
    """Encoded images of one source, decoded each time they are asked for."""

    def __init__(self, source: Encoded, resolution: int, crop: bool, reading: Reading = AS_EVER) -> None:
        self.source = source
        self.ids = source.ids
        self.resolution = resolution
        self.crop = crop
        self.reading: Reading = reading
        self.content_key = source.key

    def load(self, i: int) -> Pixels:
        """Decode image `i`: resized, and centre-cropped where this is a validation set. Raises ImageFileError."""
        pixels = decode_image(self.source.read(i), self.resolution, self.reading, self.source.name(i))
        return centre_crop(pixels, self.resolution) if self.crop else pixels

    def encoded(self, i: int) -> bytes:
        """The bytes of image `i`. Raises ImageFileError."""
        return self.source.read(i)

    def measure(self, i: int) -> tuple[int, int]:
        """(H, W) of `load(i)`, from the header of the image."""
        height, width = measure_image(self.source.header(i), self.resolution, self.reading, self.source.name(i))
        return (self.resolution, self.resolution) if self.crop else (height, width)

    def read_as(self, reading: Reading, crop: bool) -> EncodedImages:
        """The same images, decoded in another way."""
        return EncodedImages(self.source, self.resolution, crop, reading)

    def contents(self) -> str:
        """The digest of the source."""
        return self.source.digest()
