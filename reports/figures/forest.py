"""Differences with their intervals, a row each and a panel per metric: what components are worth, who is the best."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vqbench.reports.experiment import Group
from vqbench.reports.figures.captions import CUT, first_of, measured_on
from vqbench.reports.figures.points import within
from vqbench.reports.figures.style import MOST, Picture, marks, new_figure, plain, short_labels, shortened_note
from vqbench.reports.pairs import difference
from vqbench.reports.report import ReportSection
from vqbench.reports.statistics import Difference
from vqbench.reports.summary import DEFINITIONS

_LABEL = 32  # letters of a label beside the panels
_WORTH = ("rfid", "psnr", "ssim", "lpips_alex", "lpips_vgg", "lpips_squeeze", "quantization_error", "usage",
          "perplexity")  # fmt: skip
_RANKING = ("rfid", "psnr", "lpips_alex", "lpips_vgg", "lpips_squeeze", "ssim", "quantization_error")


@dataclass(frozen=True)
class Entry:
    """One row of a panel."""

    label: str
    difference: Difference | None
    """None for what the others are compared to, and where there is no value."""
    solid: bool
    """Whether it is told apart: a filled marker."""
    is_base: bool = False


def comparison(section: ReportSection) -> Picture | None:
    """Every group less the best in a few metrics; None where there is nothing to compare."""
    rows = [group for group in section.rows if group.finished]
    drawn = rows[:MOST]
    metrics = [name for name in _RANKING if name in section.comparisons][:3]
    panels = {name: _to_best(section, drawn, name) for name in metrics}
    panels = {name: entries for name, entries in panels.items() if any(e.difference for e in entries)}
    if not panels:
        return None
    labels = [group.label for group in drawn]
    figure, cut = _forest(panels, labels)
    caption = (
        "Difference to the group with the best mean (diamond), paired over the same seeds and images, with 95 % "
        f"intervals; filled: told apart (p adjusted after Holm below 0.05), hollow: not. {measured_on(section.section)}"
        f"; {_over(panels.values())}.{CUT if cut else ''}{first_of(len(drawn), len(rows))}"
    )
    return Picture("comparison", "Difference to the best", caption + shortened_note(labels, _LABEL), figure)


def _to_best(section: ReportSection, groups: Sequence[Group], metric: str) -> list[Entry]:
    found = section.comparisons[metric]
    best = next((group for group in section.rows if group.label == found.best), None)
    if best is None:
        return []
    return [
        Entry(group.label, None, True, is_base=True)
        if group is best
        else Entry(group.label, _difference(section, best, group, metric), group.label not in found.tied)
        for group in groups
    ]


def ablations(section: ReportSection) -> list[Picture]:
    """One figure for each full method whose components were switched off with all else equal."""
    found = families(section.rows)
    drawn = [(full, others[:MOST]) for full, others in found]
    pictures: list[Picture] = []
    for (full, shown), (_, others) in zip(drawn, found, strict=True):
        panels = {
            metric: [Entry(g.label, d, _excludes_zero(d)) for g, d in zip(shown, deltas, strict=True)]
            for metric in _WORTH
            if any(deltas := [_difference(section, full, group, metric) for group in shown])
        }
        if panels:
            pictures.append(_ablation(section, full, panels, first_of(len(shown), len(others)), len(pictures)))
    return pictures


def _ablation(
    section: ReportSection, full: Group, panels: dict[str, list[Entry]], left_out: str, number: int
) -> Picture:
    labels = list(dict.fromkeys(entry.label for entries in panels.values() for entry in entries))
    names = {label: _switched(label, full.label) for label in labels}
    figure, cut = _forest(panels, labels, names)
    caption = (
        f"What switching components off does to {full.label}: each row less the full method, paired over the same "
        "seeds and images, with 95 % intervals; filled: the interval leaves out 0. "
        f"{measured_on(section.section)}; {_over(panels.values())}.{CUT if cut else ''}{left_out}"
    )
    suffix = f"-{number + 1}" if number else ""
    caption += shortened_note(names.values(), _LABEL)
    return Picture(f"ablation{suffix}", f"Ablation of {full.label}", caption, figure)


def _switched(label: str, full: str) -> str:
    """The label of a row beside the name of the method that all rows share."""
    return label.removeprefix(full).strip() or label


def families(groups: Sequence[Group]) -> list[tuple[Group, list[Group]]]:
    """(full method, the same with fewer components, all else equal), in the order of the groups.

    Full is what has every component that any of them has; where no group has, there is no family.
    """
    found: dict[str, list[Group]] = {}
    for group in groups:
        if group.finished:
            training = group.cells[0].training
            settings = {key: value for key, value in training.items() if key not in group.components}
            found.setdefault(json.dumps([group.method, settings], sort_keys=True), []).append(group)
    pairs = []
    for own in found.values():
        most = {name for group in own for name, on in group.components.items() if on}
        full = next((g for g in own if {name for name, on in g.components.items() if on} == most), None)
        if full is not None and len(own) > 1:
            pairs.append((full, [group for group in own if group is not full]))
    return pairs


def _difference(section: ReportSection, base: Group, other: Group, metric: str) -> Difference | None:
    """other − base: as it was compared already, or compared now."""
    for pair in section.comparisons[metric].pairs if metric in section.comparisons else ():
        if (pair.base, pair.other) == (base.label, other.label):
            return pair.difference
        if (pair.other, pair.base) == (base.label, other.label):
            return _reversed(pair.difference)
    return difference(base.finished, other.finished, metric)


def _reversed(found: Difference) -> Difference:
    low, high = (None if end is None else -end for end in (found.high, found.low))
    return dataclasses.replace(found, delta=-found.delta, low=low, high=high)


def _excludes_zero(found: Difference | None) -> bool:
    return found is not None and found.low is not None and found.high is not None and not found.low <= 0 <= found.high


def _over(panels: Any) -> str:
    """What the intervals generalise over, as the statistics say it."""
    differences = [entry.difference for entries in panels for entry in entries if entry.difference is not None]
    said = list(dict.fromkeys(d.over for d in differences if d.over))
    seeds = sorted({d.seeds for d in differences})
    count = f"{seeds[0]}" if seeds[0] == seeds[-1] else f"{seeds[0]} to {seeds[-1]}"
    many = f"{count} seed{'' if seeds == [1] else 's'}"
    return f"{many}, intervals over {', or over '.join(said)}" if said else f"{many}, no interval"


def _forest(
    panels: dict[str, list[Entry]], labels: Sequence[str], names: dict[str, str] | None = None
) -> tuple[Any, bool]:
    """Panels in rows of three, all with the same lines; whether an interval was cut."""
    names = names or {label: label for label in labels}
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = new_figure(lines * (0.75 + 0.24 * len(labels)))
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    style, cut = marks(labels), False
    short = short_labels([names[label] for label in labels], _LABEL)
    for axes, (metric, entries) in zip(grid.ravel(), panels.items(), strict=False):
        cut |= _panel(axes, metric, entries, lambda label: (labels.index(label), style[label].color))
    for axes in grid.ravel()[len(panels) :]:
        axes.remove()
    first = grid[0][0]
    first.set_yticks(range(len(labels)), [plain(short[names[label]]) for label in labels])
    first.set_ylim(len(labels) - 0.5, -0.5)
    return figure, cut


def _panel(axes: Any, metric: str, entries: Sequence[Entry], at: Callable[[str], tuple[int, Any]]) -> bool:
    definition = DEFINITIONS[metric]
    axes.axvline(0, color="0.35", linewidth=0.9, zorder=1)
    for entry in entries:
        line, color = at(entry.label)
        if entry.is_base:
            axes.plot([0], [line], marker="D", color=color, linestyle="none", label=entry.label)
        elif (found := entry.difference) is not None:
            ends = (
                None
                if found.low is None or found.high is None
                else [[found.delta - found.low], [found.high - found.delta]]
            )
            axes.errorbar(
                [found.delta], [line], xerr=ends, color=color, marker="o", capsize=2.5, elinewidth=1.2,
                markerfacecolor=color if entry.solid else "white", label=entry.label,
            )  # fmt: skip
    known = [entry.difference for entry in entries if entry.difference is not None]
    axes.set_xlabel(f"Δ {definition.title}" + (f" ({definition.unit})" if definition.unit else ""))
    lower = definition.better == "lower"
    axes.set_title("← better" if lower else "better →", loc="left" if lower else "right", fontsize=8, color="0.3")
    axes.grid(False, axis="y")
    axes.locator_params(axis="x", nbins=4)
    limits = within([0.0, *(d.delta for d in known)], [d.low for d in known], [d.high for d in known])
    if limits is not None:
        axes.set_xlim(*limits)
    return limits is not None
