"""A reconstruction sheet as a figure: originals, every group's reconstructions, and where they err."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqbench.metrics.kinds import RGB, pictures_of
from vqbench.reports.experiment import Section
from vqbench.reports.figures.captions import measured_on
from vqbench.reports.figures.reconstructions import Pixels, Sheet
from vqbench.reports.figures.style import WIDTH, Picture, new_figure, short_labels, shortened_note, without_math
from vqbench.results.kept_images import as_pictures

_IMAGES = 6
"""Images in one row: more would be too small to see."""
_LABEL = 46
_ABOVE = 0.2  # inches above a row, for its label
_ROOM = 0.94 * WIDTH / 2  # inches of a row of images
_MOST_PIXELS = 128
"""Side of an image in the figure: an SVG embeds them."""


def draw_sheet(sheet: Sheet, name: str, title: str, section: Section) -> Picture:
    """Left the images, right the absolute error of each, on one scale for all groups."""
    channels = pictures_of(sheet.originals.shape[3])  # each a tile, side by side
    tiles = max(_IMAGES, 2 * channels)
    count = min(tiles // channels, len(sheet.ids))
    short = short_labels(sheet.by_group, _LABEL)
    originals = sheet.originals[:count]
    pixels = [_strip(_in_colour(_reduced(own[:count]))) for own in (originals, *sheet.by_group.values())]
    errors = [_error(originals, own[:count]) for own in sheet.by_group.values()]
    ceiling = max(1.0, float(np.percentile(np.stack(errors), 99.5)))
    maps = [_strip(as_pictures(_reduced(error)), np.nan) for error in errors]
    tile = _ROOM / tiles
    figure = new_figure(len(pixels) * (tile + _ABOVE) + 0.05, lay_out=False)
    left = _show(figure, 0, _stack(pixels, 255, tile))
    blank = np.full_like(maps[0], np.nan)  # beside the originals stands the colour bar
    right = _show(figure, 1, _stack([blank, *maps], np.nan, tile), cmap=_colors(), vmin=0, vmax=ceiling)
    side = pixels[0].shape[0]
    above = _above(side, tile)
    for row, label in enumerate(("original", *(without_math(short[label]) for label in sheet.by_group))):
        left.text(0, row * (side + above) + 0.8 * above, label, fontsize=8)
    _draw_bar(figure, right.images[0], "absolute error" + ", mean of R, G, B" * (originals.shape[3] == RGB))
    ids = ", ".join(short_labels(sheet.ids[:count], 60).values())
    more = f" (the first {count} of {len(sheet.ids)})" if count < len(sheet.ids) else ""
    apart = f", each with its {channels} channels side by side" if channels > 1 else ""
    caption = (
        f"Shown are {sheet.reason}. Left the reconstructions, right their absolute error, whose scale ends at the "
        f"99.5th percentile. From left to right{more}{apart}: {ids}. {measured_on(section)}."
    )
    return Picture(name, title, caption + shortened_note(sheet.by_group, _LABEL), figure)


def _error(originals: Pixels, reconstructions: Pixels) -> NDArray[np.float64]:
    """(n, R, R, 1) mean of |difference| over the three colours, in 8-bit levels; else (n, R, R, C), of each channel."""
    difference = np.abs(originals.astype(np.int16) - reconstructions.astype(np.int16))
    of_colours = originals.shape[3] == RGB
    return np.asarray(difference.mean(axis=3, keepdims=True) if of_colours else difference, np.float64)


def _in_colour(images: Pixels) -> Pixels:
    """(n, R, W, 3) of images (n, R, R, C) as people see them."""
    pictures = as_pictures(images)
    return pictures if pictures.ndim == 4 else np.repeat(pictures[..., None], RGB, axis=3)


def _reduced(images: NDArray[Any]) -> NDArray[Any]:
    """Images (n, R, R, …) at most 128 pixels a side, by averaging whole blocks."""
    side = images.shape[1]
    factor = -(-side // _MOST_PIXELS)
    if factor == 1:
        return images
    cut = side - side % factor
    blocks = images[:, :cut, :cut].reshape(len(images), cut // factor, factor, cut // factor, factor, -1)
    means = blocks.mean(axis=(2, 4)).reshape(len(images), cut // factor, cut // factor, *images.shape[3:])
    return means.round().astype(np.uint8) if images.dtype == np.uint8 else means


def _strip(images: NDArray[Any], gap: float = 255) -> NDArray[Any]:
    """Images (n, R, R, …) side by side with a gap between them."""
    side = images.shape[1]
    between = np.full((side, max(1, side // 24), *images.shape[3:]), gap, images.dtype)
    parts = [part for image in images for part in (between, image)]
    return np.concatenate(parts[1:], axis=1)


def _above(side: int, tile: float) -> int:
    """Pixels above a row of images of `side` pixels, each `tile` inches wide."""
    return round(side * _ABOVE / tile)


def _stack(strips: Sequence[NDArray[Any]], gap: float, tile: float) -> NDArray[Any]:
    """Strips below each other, with room for a label above each."""
    side, width = strips[0].shape[:2]
    above = np.full((_above(side, tile), width, *strips[0].shape[2:]), gap, strips[0].dtype)
    return np.concatenate([part for strip in strips for part in (above, strip)])


def _show(figure: Any, column: int, picture: NDArray[Any], **how: Any) -> Any:
    """The picture in one half of the figure; one for all rows is drawn far quicker than one for each."""
    width, height = figure.get_size_inches()
    pixel = (height - 0.05) / picture.shape[0]  # inches
    place = (0.004 + column / 2, 0.03 / height, picture.shape[1] * pixel / width, picture.shape[0] * pixel / height)
    axes = figure.add_axes(place)
    axes.set_axis_off()
    axes.imshow(picture, interpolation="none", aspect="auto", **how)
    return axes


def _colors() -> Any:
    import seaborn as sns

    return sns.color_palette("rocket_r", as_cmap=True)


def _draw_bar(figure: Any, image: Any, label: str) -> None:
    height = figure.get_size_inches()[1]
    axes = figure.add_axes((0.53, 1 - (_ABOVE + 0.14) / height, 0.42, 0.1 / height))
    figure.colorbar(
        image, cax=axes, orientation="horizontal", extend="max",
        label=f"{label} (8-bit grey levels)",
    )  # fmt: skip
    axes.xaxis.label.set_size(8)
