"""Differences with their intervals, a row each and a panel per metric: what components are worth, who is the best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vqbench.metrics.definitions import DEFINITIONS
from vqbench.reports.all_pairs import MetricComparison
from vqbench.reports.experiment import Group
from vqbench.reports.families import Ablation
from vqbench.reports.figures.captions import CUT, cautioned, first_of, measured_on
from vqbench.reports.figures.points import within
from vqbench.reports.figures.series import qualities
from vqbench.reports.figures.style import MOST, Picture, marks, new_figure, short_labels, shortened_note, without_math
from vqbench.reports.report import ReportSection
from vqbench.reports.statistics import Difference

_LABEL = 32  # letters of a label beside the panels


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
    rows = [group for peers in section.peers if peers.comparisons for group in peers.rows if group.finished]
    drawn = rows[:MOST]
    compared = dict.fromkeys(name for peers in section.peers for name in peers.comparisons)
    panels = {name: _to_best(section, drawn, name) for name in qualities(compared, 3)}
    panels = {name: entries for name, entries in panels.items() if any(e.difference for e in entries)}
    if not panels:
        return None
    labels = [group.label for group in drawn]
    figure, cut = _forest(panels, labels)
    best = "group with the best mean" + (" at its bits per image" if section.of_sizes else "")
    caption = (
        f"Difference to the {best} (diamond), paired over the same seeds and images, with 95 % "
        f"intervals; filled: told apart (p adjusted after Holm below 0.05), hollow: not. {measured_on(section.section)}"
        f"; {_over(panels.values())}.{CUT if cut else ''}{first_of(len(drawn), len(rows))}"
        f"{cautioned(section.section, panels)}"
    )
    return Picture("comparison", "Difference to the best", caption + shortened_note(labels, _LABEL), figure)


def _to_best(section: ReportSection, groups: Sequence[Group], metric: str) -> list[Entry]:
    found = [(group.label, section.comparison_of(group.label, metric)) for group in groups]
    return [_less_best(label, comparison) for label, comparison in found if comparison is not None]


def _less_best(label: str, found: MetricComparison) -> Entry:
    if label == found.best:
        return Entry(label, None, True, is_base=True)
    pair = found.to_best.get(label)
    return Entry(label, None if pair is None else pair.difference, label not in found.unseparated)


def ablation_forests(section: ReportSection) -> list[Picture]:
    """One figure for each full method that has groups with components switched off, all else equal."""
    found = [(ablation, panels) for ablation in section.ablations if (panels := _worth(ablation))]
    return [_ablation(section, ablation, panels, number) for number, (ablation, panels) in enumerate(found)]


def _worth(ablation: Ablation) -> dict[str, list[Entry]]:
    """Metric → a row for each variant, less the full method; the metrics in which there are differences."""
    rows = [row for row in ablation.rows if not row.row.is_full][:MOST]
    return {
        metric: [
            Entry(row.title, found.difference, found.verdict in ("better", "worse"))
            for row in rows
            if (found := row.effects.get(metric)) is not None
        ]
        for metric in dict.fromkeys(name for row in rows for name in row.effects)
        if not DEFINITIONS[metric].on_request or DEFINITIONS[metric].digest
    }


def _ablation(section: ReportSection, ablation: Ablation, panels: dict[str, list[Entry]], number: int) -> Picture:
    labels = list(dict.fromkeys(entry.label for entries in panels.values() for entry in entries))
    figure, cut = _forest(panels, labels)
    caption = (
        f"What switching components off does to {ablation.label}: each row less the full method, paired over the same "
        "seeds and images, with 95 % intervals; filled: told apart (p adjusted after Holm over the rows below 0.05), "
        f"hollow: not. {measured_on(section.section)}; {_over(panels.values())}.{CUT if cut else ''}"
        f"{first_of(len(labels), sum(bool(row.effects) for row in ablation.rows))}{shortened_note(labels, _LABEL)}"
        f"{cautioned(section.section, panels)}"
    )
    suffix = f"-{number + 1}" if number else ""
    return Picture(f"ablation{suffix}", f"Ablation of {ablation.label}", caption, figure)


def _over(panels: Any) -> str:
    """What the intervals generalise over, as the statistics say it."""
    differences = [entry.difference for entries in panels for entry in entries if entry.difference is not None]
    said = list(dict.fromkeys(d.over for d in differences if d.over))
    seeds = sorted({d.seeds for d in differences})
    count = f"{seeds[0]}" if seeds[0] == seeds[-1] else f"{seeds[0]} to {seeds[-1]}"
    many = f"{count} seed{'' if seeds == [1] else 's'}"
    return f"{many}, intervals over {', or over '.join(said)}" if said else f"{many}, no interval"


def _forest(panels: dict[str, list[Entry]], labels: Sequence[str]) -> tuple[Any, bool]:
    """Panels in rows of three, all with the same lines; whether an interval was cut."""
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = new_figure(lines * (0.75 + 0.24 * len(labels)))
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    style, cut = marks(labels), False
    short = short_labels(labels, _LABEL)
    for axes, (metric, entries) in zip(grid.ravel(), panels.items(), strict=False):
        cut |= _panel(axes, metric, entries, lambda label: (labels.index(label), style[label].color))
    for axes in grid.ravel()[len(panels) :]:
        axes.remove()
    first = grid[0][0]
    first.set_yticks(range(len(labels)), [without_math(short[label]) for label in labels])
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
