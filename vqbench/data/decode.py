"""From a file to 8-bit RGB, or grey, at the asked resolution, or a refusal that names the file and says what to do."""

from __future__ import annotations

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vqbench.data.dataset import Pixels
from vqbench.errors import UsageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
_BITS_PER_SAMPLE, _ORIENTATION = 258, 274  # tags of TIFF and of EXIF
_ON_ITS_SIDE = (5, 6, 7, 8)  # orientations that exchange height and width

MAX_PIXELS = 10**9
"""Larger images are refused. Decoding takes 4 bytes per pixel, or 8 where colours are converted."""
SHOWN = 20
"""Files that cannot be used, of which an error names no more."""
_LARGE = 10**8
_one_large = threading.Lock()  # as many threads as cores decode: that many large images need not fit in memory
_pillow = threading.Lock()
_readers = contextlib.ExitStack()  # what is undone when the last reader has ended
_reading = 0


@dataclass(frozen=True)
class Reading:
    """How an encoded image becomes pixels. What is not as it always was is part of the protocol."""

    small: Literal["refuse", "enlarge", "leave_out"] = "refuse"
    """What becomes of an image whose short side is below the resolution."""
    upright: bool = True
    """Whether the orientation that EXIF states is applied."""
    channels: Literal[1, 3] = 3
    """RGB, or grey: then an image that has colours is refused, since their weights would be our choice."""


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


def _refuse(name: str, reason: str, hint: str) -> ImageFileError:
    return ImageFileError(f"{name}: {reason}", hint)


def _damaged(name: str, error: Exception) -> ImageFileError:
    if isinstance(error, UnidentifiedImageError):
        return _refuse(name, "not a PNG, JPEG, WebP, BMP or TIFF image", "get the file again, or remove it")
    if isinstance(error, OSError) and error.strerror:
        return _refuse(name, f"cannot be read ({error.strerror})", "mend its permissions or its link, or remove it")
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return _refuse(name, f"damaged ({reason})", "get the file again, or remove it")


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


def _require_side(size: tuple[int, int], resolution: int, name: str) -> None:
    if min(size) < resolution:
        what = f"{size[0]}×{size[1]} pixels, smaller than the resolution {resolution}; nothing is enlarged"
        raise _refuse(name, what, f"remove it, or use a resolution of {min(size)} or less")


def target_size(width: int, height: int, resolution: int) -> tuple[int, int]:
    """(width, height) once the short side is `resolution`; the long side is rounded to the nearest pixel."""
    short = min(width, height)
    return round(width * resolution / short), round(height * resolution / short)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    turned_already = getattr(image, "tag_v2", {}).get(_ORIENTATION) in _ON_ITS_SIDE  # Pillow does so for TIFF's own tag
    turned = image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE and not turned_already
    return (image.height, image.width) if turned else image.size


def measure_image(source: Path | bytes, resolution: int, reading: Reading = AS_EVER, name: str = "") -> tuple[int, int]:
    """(H, W) of what `decode_image` gives, from the header alone where the format lets Pillow."""
    name = name or str(source)
    with _opened(source, name) as image:
        size = _upright_size(image) if reading.upright else image.size
    if reading.small == "refuse":
        _require_side(size, resolution, name)
    width, height = target_size(*size, resolution)
    return height, width


def decode_image(source: Path | bytes, resolution: int, reading: Reading = AS_EVER, name: str = "") -> Pixels:
    """An image, of a file or of its bytes, as (H, W, 3) uint8 RGB with its short side at `resolution`; (H, W, 1) where
    `reading` asks for grey.

    `name` is what errors call bytes. Resized by PIL's Lanczos filter; upright where `reading` says so. Grey, palette
    and CMYK become RGB; opaque alpha is dropped. Raises ImageFileError for a damaged file, more than 8 bits per
    channel, transparency, several frames, an image larger than MAX_PIXELS, one smaller than the resolution where
    `reading` refuses it, or of colours where it asks for grey.
    """
    name = name or str(source)
    with _opened(source, name) as image:
        _check_kind(image, name)
        if reading.upright:
            ImageOps.exif_transpose(image, in_place=True)
        plain = _without_alpha(image, name)
        if reading.channels == 1:
            plain = _grey(plain, name)
        if reading.small == "refuse":
            _require_side(plain.size, resolution, name)
        if min(plain.size) != resolution:
            plain = plain.resize(target_size(*plain.size, resolution), Image.Resampling.LANCZOS)
        pixels = np.asarray(plain)
        return pixels if pixels.ndim == 3 else pixels[..., None]
