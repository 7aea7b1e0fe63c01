"""A report of a stored experiment: what is compared, and the files that say it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vqbench.reports.comparison import MetricComparison, compare_section
from vqbench.reports.experiment import Experiment, Group, Section
from vqbench.reports.summary import DEFINITIONS, Column


@dataclass(frozen=True)
class ReportSection:
    """One protocol of a report: what its table shows, in the order in which it shows it."""

    section: Section
    columns: tuple[Column, ...]
    rows: tuple[Group, ...]
    """Sorted; groups without a score come last."""
    comparisons: Mapping[str, MetricComparison]
    """By metric; only metrics with a better direction have one."""


@dataclass(frozen=True)
class Report:
    """An experiment, sorted and compared."""

    experiment: Experiment
    sections: tuple[ReportSection, ...]
    published: bool
    """Whether the numbers of the methods' papers are shown beside ours."""


def build_report(
    experiment: Experiment, columns: Sequence[str] = (), sort: str = "", published: bool = False
) -> Report:
    """Choose columns (none: those with a value), sort by one of them (empty: the first that ranks), compare.

    Raises UsageError for a column that does not exist.
    """
    return Report(
        experiment,
        tuple(_section(section, columns, sort) for section in experiment.sections),
        published,
    )


def _section(section: Section, columns: Sequence[str], sort: str) -> ReportSection:
    from vqbench.reports.summary import shown_columns

    shown = tuple(shown_columns(group.summary for group in section.groups))
    key = sort or next((c.key for c in shown if c.key in DEFINITIONS and DEFINITIONS[c.key].better), "")
    return ReportSection(section, shown, sorted_by(section.groups, key), compare_section(section))


def sorted_by(groups: Sequence[Group], key: str) -> tuple[Group, ...]:
    """Groups by their mean in `key`, the better first; those without one last, by label."""
    descending = key in DEFINITIONS and DEFINITIONS[key].better == "higher"

    def place(group: Group) -> tuple[bool, float, str]:
        found = group.summary.estimates.get(key)
        return (found is None, 0.0 if found is None else -found.mean if descending else found.mean, group.label)

    return tuple(sorted(groups, key=place))
