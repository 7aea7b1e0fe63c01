"""From a file to 8-bit RGB, or grey, at the asked resolution, or a refusal that names the file and says what to do."""

from __future__ import annotations

import contextlib
import functools
import io
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from vqbench.errors import UsageError, unknown
from vqbench.wording import reason_of_library

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
_BITS_PER_SAMPLE, _ORIENTATION = 258, 274  # tags of TIFF and of EXIF
_ON_ITS_SIDE = (5, 6, 7, 8)  # orientations that exchange height and width

T = TypeVar("T")

MAX_PIXELS = 10**9
"""Larger images are refused. Decoding takes 4 bytes per pixel, or 8 where colours are converted."""
SHOWN = 20
"""Files that cannot be used, of which an error names no more."""
_READERS = 16  # more than cores: on a network disk, opening a file is mostly waiting
_BLOCK = 256  # images that a thread reads at a time: a million tasks would take more memory than what they find
_LARGE = 10**8
_one_large = threading.Lock()  # as many threads as cores decode: that many large images need not fit in memory
_pillow = threading.Lock()
_readers = contextlib.ExitStack()  # what is undone when the last reader has ended
_reading = 0


Size = tuple[int, int]
"""(width, height), as Pillow has it."""


def _by_pillow(filter: Image.Resampling) -> Callable[[Image.Image, Size], Image.Image]:
    return functools.partial(Image.Image.resize, resample=filter)


def _opencv_linear(image: Image.Image, size: Size) -> Image.Image:
    """What cv2.resize(…, interpolation=cv2.INTER_LINEAR) makes of 8-bit samples, to the bit: weights of 11 bits."""
    pixels = np.asarray(image)
    of_rows = pixels.reshape(*pixels.shape[:2], -1)
    (left, right), across = _neighbours(image.width, size[0])
    (top, bottom), down = _neighbours(image.height, size[1])

    def along(rows: NDArray[np.int64]) -> NDArray[np.int32]:
        some = of_rows[rows].astype(np.int32)
        return some[:, left] * across[0, :, None] + some[:, right] * across[1, :, None]

    above, below = (
        (along(rows) >> 4) * weight[:, None, None] >> 16 for rows, weight in zip((top, bottom), down, strict=True)
    )
    made = (above + below + 2 >> 2).astype(np.uint8)
    return Image.fromarray(made.reshape(size[1], size[0], *pixels.shape[2:]))


def _neighbours(length: int, target: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """(2, target) samples on both sides of each place of a line of `length`, and their weights in 2048ths.

    OpenCV computes places in float32. Beyond an end the last sample is both.
    """
    scale = 1 / (target / length)
    place = ((np.arange(target) + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(place)
    share = place - first
    weights = np.rint(np.stack([1 - share, share]) * np.float32(2048)).astype(np.int32)
    samples = np.clip(np.stack([first, first + 1]).astype(np.int64), 0, length - 1)
    return samples, weights


@dataclass(frozen=True)
class ResizeRule:
    """A way of making an image smaller or larger."""

    words: str
    resized: Callable[[Image.Image, Size], Image.Image]
    halves: bool = False
    """Whether it is first halved by a box filter, while its short side is at least twice the wanted one."""


RESIZE_RULES = {
    "lanczos": ResizeRule("PIL Lanczos", _by_pillow(Image.Resampling.LANCZOS)),
    "bicubic": ResizeRule("PIL bicubic", _by_pillow(Image.Resampling.BICUBIC)),
    "bilinear": ResizeRule("PIL bilinear", _by_pillow(Image.Resampling.BILINEAR)),
    "box+bicubic": ResizeRule(
        "PIL box by halves while at least twice as large, then PIL bicubic", _by_pillow(Image.Resampling.BICUBIC), True
    ),
    "cv2-bilinear-noaa": ResizeRule("OpenCV INTER_LINEAR without antialiasing", _opencv_linear),
}
SMALL: dict[str, str] = {
    "refuse": "refused",
    "enlarge": "enlarged",
    "leave_out": "left out",
}


@dataclass(frozen=True)
class Reading:
    """How an encoded image becomes pixels. What is not as it always was is part of the protocol.

    Raises UsageError for a rule that there is not.
    """

    resize: str = "lanczos"
    """One of RESIZE_RULES."""
    scale: float = 1.0
    """The short side is resized to so many times the resolution; the crop follows."""
    small: Literal["refuse", "enlarge", "leave_out"] = "refuse"
    """What becomes of an image whose short side is below what it is resized to."""
    upright: bool = True
    """Whether the orientation that EXIF states is applied."""
    whole_pixels: Literal["rounded", "torchvision"] = "rounded"
    """How the long side becomes whole pixels, and half of a crop's margin: the side rounded and the margin cut off, or
    as torchvision does it, which cuts the side off and rounds the margin to even."""
    whole: bool = False
    """Whether an image keeps its own size and is not cropped; then nothing is resized, and none is small."""
    channels: Literal[1, 3] = 3
    """RGB, or grey: then an image that has colours is refused, since their weights would be our choice."""

    def __post_init__(self) -> None:
        if self.resize not in RESIZE_RULES:
            raise unknown("resize rule", self.resize, RESIZE_RULES, "for example: --resize bicubic")
        if self.small not in SMALL:
            raise unknown("rule for small images", self.small, SMALL, "for example: --small enlarge")
        if not 1 <= self.scale <= _LARGEST_SCALE:
            what = f"--resize-scale {self.scale:g} is not between 1 and {_LARGEST_SCALE} times the resolution"
            raise UsageError(what, "for example: --resize-scale 1.125")

    def before_crop(self, margin: int) -> int:
        """How many pixels of a margin lie before the middle square."""
        return round(margin / 2) if self.whole_pixels == "torchvision" else margin // 2

    def side(self, resolution: int) -> int:
        """What the short side is resized to."""
        return round(self.scale * resolution)

    def steps(self, size: Size, resolution: int) -> Iterator[tuple[Callable[[Image.Image, Size], Image.Image], Size]]:
        """What an image of a size goes through: a filter and the size that it makes, one after the other."""
        if self.whole:
            return
        rule, side = RESIZE_RULES[self.resize], self.side(resolution)
        while rule.halves and min(size) >= 2 * side:
            size = (size[0] // 2, size[1] // 2)
            yield _by_pillow(Image.Resampling.BOX), size
        if min(size) != side:
            yield rule.resized, target_size(*size, side, self.whole_pixels)

    @property
    def differences(self) -> dict[str, Any]:
        """Field → value of what is not as it always was."""
        as_ever = asdict(AS_EVER)
        return {name: value for name, value in asdict(self).items() if value != as_ever[name]}

    @property
    def in_words(self) -> dict[str, str]:
        """What of it is not as it always was, by the field of the protocol that says so."""
        known, words = self.differences, {}
        if "resize" in known or "scale" in known:
            to = "the resolution" if self.scale == 1 else f"{self.scale} times the resolution, rounded"
            words["resize"] = f"{RESIZE_RULES[self.resize].words}, short side to {to}"
        if "whole_pixels" in known:
            words["resize"] = f"{words.get('resize', _LANCZOS)}, long side cut off to whole pixels"
            words["crop"] = "centre square, half of its margin rounded to even"
        if self.whole:
            words["resize"], words["crop"] = "none", "none: each image whole"
        if "small" in known:
            words["small"] = SMALL[self.small]
        if "upright" in known:
            words["orientation"] = "as stored: what EXIF says of it is ignored"
        return words


_LARGEST_SCALE = 4
_LANCZOS = f"{RESIZE_RULES['lanczos'].words}, short side to the resolution"
AS_EVER = Reading()


class ImageFileError(UsageError):
    """One image file that cannot be used as it is."""


class UnusableImagesError(UsageError):
    """Several of them."""

    bad: tuple[ImageFileError, ...] = ()
    """What is wrong with each."""
    stopped = False
    """Whether others were not looked at."""


def name_unusable(bad: Sequence[ImageFileError], stopped: bool = False) -> UsageError:
    """The error for image files that cannot be used: the one, or all of them as UnusableImagesError."""
    if len(bad) == 1:
        return bad[0]
    shown = "; ".join(error.what for error in bad[:SHOWN])
    count = f"at least {len(bad):,}" if stopped else f"{len(bad):,}"
    more = f"; and {len(bad) - SHOWN:,} more" if len(bad) > SHOWN else ""
    error = UnusableImagesError(f"{count} images cannot be used: {shown}{more}", bad[0].hint)
    error.bad, error.stopped = tuple(bad), stopped
    return error


def read_each(
    read: Callable[[int], T | ImageFileError], count: int, threads: int = _READERS, together: int = _BLOCK
) -> list[T]:
    """What `read` finds of 0 … count - 1, by many threads. Raises UsageError that names all that cannot be read."""

    def block(first: int) -> list[T | ImageFileError]:
        return [read(i) for i in range(first, min(first + together, count))]

    with ThreadPoolExecutor(threads) as pool:
        found = [one for part in pool.map(block, range(0, count, together)) for one in part]
    if bad := [one for one in found if isinstance(one, ImageFileError)]:
        raise name_unusable(bad)
    return [one for one in found if not isinstance(one, ImageFileError)]


def _refuse(name: str, reason: str, hint: str) -> ImageFileError:
    return ImageFileError(f"{name}: {reason}", hint)


def _damaged(name: str, error: Exception) -> ImageFileError:
    if isinstance(error, UnidentifiedImageError):
        return _refuse(name, "not a PNG, JPEG, WebP, BMP or TIFF image", "get the file again, or remove it")
    if isinstance(error, OSError) and error.strerror:
        return _refuse(name, f"cannot be read ({error.strerror})", "mend its permissions or its link, or remove it")
    return _refuse(name, f"damaged ({reason_of_library(error)})", "get the file again, or remove it")


@contextlib.contextmanager
def _opened(source: Path | bytes, name: str) -> Iterator[Image.Image]:
    """An image, of a file or of its bytes, of at most MAX_PIXELS, opened and not yet decoded.

    Whatever fails is an ImageFileError.

    Pillow has a limit of its own, which it calls an attack, and warnings meant for programmers (corrupt EXIF data,
    which is no reason to refuse an image). Both belong to the process, so they are lifted while anybody reads.
    """
    global _reading
    with _pillow:
        if not _reading:
            _readers.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
            _readers.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", module=r"PIL\.")
            Image.MAX_IMAGE_PIXELS = None
        _reading += 1
    try:
        # by its file, not its name: Pillow would map a TIFF, and one that lies on its side with its sides exchanged
        stream = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
        with stream as file, Image.open(file, formats=_FORMATS) as image:
            pixels = image.width * image.height
            if pixels > MAX_PIXELS:
                what = f"{image.width}×{image.height} pixels, more than the {MAX_PIXELS // 10**6:,} megapixels allowed"
                raise _refuse(name, what, "make a smaller copy of it, or remove it")
            with _one_large if pixels > _LARGE else contextlib.nullcontext():
                yield image
    except (ImageFileError, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, struct.error, zlib.error and more
        raise _damaged(name, error) from None
    finally:
        with _pillow:
            _reading -= 1
            if not _reading:
                _readers.close()


def _wide_samples(image: Image.Image) -> bool:
    """Whether samples have more than 8 bits. Pillow opens 16-bit colour as "RGB" and drops the low byte unasked."""
    if image.mode.startswith(("I", "F")):
        return True
    if image.format not in ("PNG", "TIFF"):
        return False  # BMP's "BGR;16" is 5-6-5 bits, which is not wide
    if max(getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,))) > 8:  # planes apart are read as 8 bits, unasked
        return True
    layouts: list[Any] = [tile[3] for tile in getattr(image, "tile", [])]
    raw_modes = [layout if isinstance(layout, str) else layout[0] for layout in layouts if layout]
    return any(f";{bits}" in str(raw) for raw in raw_modes for bits in (12, 16, 32))


def _check_kind(image: Image.Image, name: str) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a camera's MPO holds the photograph and its previews
        raise _refuse(name, f"holds {frames} pictures (animated, or several pages)", "save the one you mean, alone")
    if _wide_samples(image):
        raise _refuse(name, "more than 8 bits per channel", "convert it to 8-bit RGB, or remove it")


def _without_alpha(image: Image.Image, name: str) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] != 255:  # any background would be our choice, not the image's
            raise _refuse(name, "has transparent pixels", "flatten it onto a background of your choice, or remove it")
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey(rgb: Image.Image, name: str) -> Image.Image:
    red, green, blue = rgb.split()
    if not red.tobytes() == green.tobytes() == blue.tobytes():
        hint = "make a grey copy of it, or --set image_channels=3"
        raise _refuse(name, "has colours, and is asked for as grey (image_channels=1)", hint)
    return red


def _require_side(size: Size, resolution: int, reading: Reading, name: str) -> None:
    side = reading.side(resolution)
    if reading.small != "enlarge" and min(size) < side and not reading.whole:
        goal = f"the resolution {side}" if side == resolution else f"the {side} px that its short side is resized to"
        least = f"use a resolution of {int(min(size) / reading.scale)} or less"
        what = f"{size[0]}×{size[1]} pixels, smaller than {goal}; nothing is enlarged"
        raise _refuse(name, what, f"remove it, {least}, or have small images enlarged or left out: --small")


def target_size(width: int, height: int, side: int, whole_pixels: str = "rounded") -> Size:
    """(width, height) once the short side is `side`; the long side is rounded to the nearest pixel, or cut off."""
    short, whole = min(width, height), int if whole_pixels == "torchvision" else round
    return whole(width * side / short), whole(height * side / short)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    turned_already = getattr(image, "tag_v2", {}).get(_ORIENTATION) in _ON_ITS_SIDE  # Pillow does so for TIFF's own tag
    turned = image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE and not turned_already
    return (image.height, image.width) if turned else image.size


def short_side(source: Path | bytes, name: str = "") -> int:
    """Of an image as it is stored, from its header. Raises ImageFileError."""
    with _opened(source, name or str(source)) as image:
        return min(image.size)


def measure_image(source: Path | bytes, resolution: int, reading: Reading = AS_EVER, name: str = "") -> tuple[int, int]:
    """(H, W) of what `decode_image` gives, from the header alone where the format lets Pillow."""
    name = name or str(source)
    with _opened(source, name) as image:
        size = _upright_size(image) if reading.upright else image.size
    _require_side(size, resolution, reading, name)
    for _, made in reading.steps(size, resolution):
        size = made
    return size[1], size[0]


def decode_image(
    source: Path | bytes, resolution: int, reading: Reading = AS_EVER, name: str = ""
) -> NDArray[np.uint8]:
    """An image, of a file or of its bytes, as uint8 (H, W, 3) RGB or (H, W, 1) grey, made as `reading` says.

    `name` is what errors call bytes. Grey, palette and CMYK become RGB; opaque alpha is dropped. Raises ImageFileError
    for a damaged file, more than 8 bits per channel, transparency, several frames, an image larger than MAX_PIXELS, or
    smaller than it is to be unless `reading` enlarges it, and of colours where it asks for grey.
    """
    name = name or str(source)
    with _opened(source, name) as image:
        _check_kind(image, name)
        if reading.upright:
            ImageOps.exif_transpose(image, in_place=True)
        plain = _without_alpha(image, name)
        if reading.channels == 1:
            plain = _grey(plain, name)
        _require_side(plain.size, resolution, reading, name)
        for resized, size in reading.steps(plain.size, resolution):
            plain = resized(plain, size)
        pixels = np.asarray(plain)
        return pixels if pixels.ndim == 3 else pixels[..., None]
