"""The sentences that captions share: what was measured on, how many seeds, what an interval is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vqbench.reports.experiment import Group, Section
from vqbench.wording import counted

CUT = " Intervals that are longer than the panel are cut at its edge."

LEFT_OUT = " Intervals along the horizontal axis are left out: they are wider than the panel."


def measured_on(section: Section) -> str:
    """Protocol and number of validation items."""
    return f"Protocol {section.title}, N = {section.measured_on}"


def seeds_of(groups: Sequence[Group]) -> str:
    """ "2 seeds", or "1 to 3 seeds"."""
    counts = sorted({group.summary.seeds for group in groups})
    if counts[0] == counts[-1]:
        return counted(counts[0], "seed")
    return f"{counts[0]} to {counts[-1]} seeds"


def means(section: Section, groups: Sequence[Group]) -> str:
    """What points and bars are."""
    counts = {group.summary.seeds for group in groups}
    if counts == {1}:
        return f"{measured_on(section)}; one seed each, so no interval over seeds.{_limits(section, groups)}"
    single = "; a group with one seed has no interval" if 1 in counts else ""
    seeds = f"mean over {seeds_of(groups)}, bars: 95 % Student t interval over seeds{single}"
    return f"{measured_on(section)}; {seeds}.{_limits(section, groups)}"


def _limits(section: Section, groups: Sequence[Group]) -> str:
    names = [group.label for group in groups if group.summary.collapses]
    collapsed = f" Collapsed: {', '.join(names)}." if names else ""
    return collapsed + cautioned(section, section.metrics)


def cautioned(section: Section, metrics: Iterable[str]) -> str:
    """What must be said wherever one of `metrics` is drawn; empty where nothing must."""
    return "".join(f" {text}." for text in section.cautions(metrics).values())


def first_of(drawn: int, there: int, what: str = "rows") -> str:
    """Says that not all are drawn."""
    return f" The first {drawn} of {there} {what}." if drawn < there else ""
