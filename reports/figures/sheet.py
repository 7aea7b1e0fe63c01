"""A reconstruction sheet as a figure: originals, every group's reconstructions, and where they err."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqbench.reports.experiment import Section
from vqbench.reports.figures.captions import measured_on
from vqbench.reports.figures.reconstructions import Pixels, Sheet
from vqbench.reports.figures.style import WIDTH, Picture, new_figure, plain, short_labels, shortened_note

_IMAGES = 6
"""Images in one row: more would be too small to see."""
_LABEL = 46
_MOST_PIXELS = 128
"""Side of an image in the figure: an SVG embeds them."""


def draw_sheet(sheet: Sheet, name: str, title: str, section: Section) -> Picture:
    """Left the images, right the absolute error of each, on one scale for all groups."""
    import seaborn as sns

    count = min(_IMAGES, len(sheet.ids))
    short = short_labels(sheet.by_group, _LABEL)
    errors = {label: _error(sheet.originals[:count], own[:count]) for label, own in sheet.by_group.items()}
    ceiling = max(1.0, float(np.percentile(np.stack(list(errors.values())), 99.5)))
    tile = WIDTH / (2 * _IMAGES)
    figure = new_figure((len(errors) + 1) * (tile + 0.2) + 0.1)
    grid = figure.subplots(len(errors) + 1, 2, squeeze=False)
    figure.get_layout_engine().set(h_pad=0.02, w_pad=0.03, hspace=0, wspace=0)
    _show(grid[0, 0], _strip(_reduced(sheet.originals[:count])), "original")
    colors = sns.color_palette("rocket_r", as_cmap=True)
    for (left, right), (label, own) in zip(grid[1:], sheet.by_group.items(), strict=True):
        _show(left, _strip(_reduced(own[:count])), plain(short[label]))
        shown = _show(right, _strip(_reduced(errors[label]), np.nan), "", cmap=colors, vmin=0, vmax=ceiling)
    bar = grid[0, 1]
    bar.set_axis_off()
    inset = bar.inset_axes((0.04, 0.55, 0.92, 0.16))
    figure.colorbar(
        shown, cax=inset, orientation="horizontal", extend="max",
        label="absolute error, mean of R, G, B (8-bit grey levels)",
    )  # fmt: skip
    inset.xaxis.label.set_size(8)
    ids = ", ".join(short_labels(sheet.ids[:count], 60).values())
    more = f" (the first {count} of {len(sheet.ids)})" if count < len(sheet.ids) else ""
    caption = (
        f"Shown are {sheet.reason}. Left the reconstructions, right their absolute error, whose scale ends at the "
        f"99.5th percentile. From left to right{more}: {ids}. {measured_on(section)}."
    )
    return Picture(name, title, caption + shortened_note(sheet.by_group, _LABEL), figure)


def _error(originals: Pixels, reconstructions: Pixels) -> NDArray[np.float64]:
    """(n, R, R) mean of |difference| over the three colours, in 8-bit levels."""
    difference = originals.astype(np.int16) - reconstructions.astype(np.int16)
    return np.asarray(np.abs(difference).mean(axis=3), np.float64)


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


def _show(axes: Any, picture: NDArray[Any], title: str, **how: Any) -> Any:
    axes.set_axis_off()
    axes.set_anchor("NW")
    if title:
        axes.set_title(title, loc="left", fontsize=8, pad=2)
    return axes.imshow(picture, interpolation="none", **how)
