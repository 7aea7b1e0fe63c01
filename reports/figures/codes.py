"""How often each code is used, most used first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vqbench.reports.experiment import Group
from vqbench.reports.figures.captions import first_of, measured_on, seeds_of
from vqbench.reports.figures.style import (
    MOST,
    Picture,
    drawing,
    legend_below,
    legend_handle,
    logarithmic,
    marks,
    new_figure,
    save,
    shortened_note,
)
from vqbench.reports.reader import read_array
from vqbench.reports.report import ReportSection
from vqbench.results.cell_files import CODES

_MOST_POINTS = 200
"""Of one line, evenly spread over the logarithm of the rank."""


def code_frequencies(section: ReportSection) -> Picture | None:
    """Sorted shares of tokens, one line per group, on logarithmic axes."""
    finished = [group for group in section.rows if group.finished]
    shares = {group.label: found for group in finished[:MOST] if (found := sorted_shares(group)) is not None}
    if not shares:
        return None
    style = marks(shares)
    figure = new_figure(3.2 + 0.17 * len(shares) / 2)
    axes = figure.subplots()
    for label, frequency in shares.items():
        mark, ranks = style[label], _ranks(len(frequency))
        axes.plot(
            ranks + 1, np.where(frequency > 0, frequency, np.nan)[ranks], color=mark.color, linestyle=mark.dashes,
            marker=mark.marker, markevery=max(1, len(ranks) // 8), label=mark.short,
        )  # fmt: skip
    used = np.concatenate([frequency[frequency > 0] for frequency in shares.values()])
    logarithmic(axes.xaxis, [1, max(map(len, shares.values()))])
    logarithmic(axes.yaxis, [used.min(), used.max()])
    axes.set(xlabel="code, by rank (1 = most used)", ylabel="share of all tokens")
    legend_below(figure, {mark.short: legend_handle(mark) for mark in style.values()})
    drawn = [group for group in finished if group.label in shares]
    caption = (
        f"Codes sorted by how often they are used over the validation split; a line ends where codes are never used. "
        f"{measured_on(section.section)}; mean over {seeds_of(drawn)}, rank by rank (and over codebooks, where a "
        f"tokenizer has several)."
    )
    caption += first_of(len(shares), len(finished)) + shortened_note(style)
    return Picture("code-frequencies", "Code frequencies", caption, figure)


def sorted_shares(group: Group) -> NDArray[np.float64] | None:
    """(K,) share of tokens of the codes of each rank, mean over seeds and codebooks; None where no cell kept any."""
    found = [read_array(cell.folder.path / CODES, "histogram") for cell in group.cells if not cell.failed]
    counts = [h for h in found if h is not None and h.ndim == 2 and h.size and (h.sum(1) > 0).all()]
    if not counts or len({h.shape for h in counts}) > 1:
        return None
    shares = [np.sort(h / h.sum(1, keepdims=True), axis=1)[:, ::-1].mean(0) for h in counts]
    return np.asarray(np.mean(shares, axis=0), np.float64)


def _ranks(size: int) -> NDArray[np.int64]:
    """At most 200 ranks from 0, the last among them, denser where few codes have most of the tokens."""
    return np.unique(np.geomspace(1, size, min(size, _MOST_POINTS)).round().astype(np.int64)) - 1


def draw_code_histogram(histogram: Path, target: Path) -> None:
    """How often each code was used over the whole split, most used first, on logarithmic axes, as a PNG."""
    counts = np.load(histogram)["histogram"]
    with drawing():
        figure = new_figure(3.6)
        axes = figure.subplots()
        for group, row in enumerate(counts):
            label = f"codebook {group}" if len(counts) > 1 else None
            frequency = np.sort(row)[::-1]
            axes.step(np.arange(1, len(row) + 1), np.where(frequency > 0, frequency, np.nan), where="mid", label=label)
        axes.set(xscale="log", yscale="log", xlabel="code, by rank", ylabel="times used over the validation split")
        used, size = int((counts > 0).sum()), counts.size
        axes.set_title(f"{used:,} of {size:,} codes used by {int(counts[0].sum()):,} tokens")
        axes.set_xlim(1, counts.shape[1])
        if len(counts) > 1:
            axes.legend()
        save(figure, target.with_suffix(""), ("png",))
