"""A report of a stored experiment: what is compared, and the files that say it."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vqbench.errors import UsageError, unknown
from vqbench.metrics.definitions import DEFINITIONS
from vqbench.reports.against import Against, against
from vqbench.reports.all_pairs import MetricComparison, compare_section
from vqbench.reports.compare import places_of
from vqbench.reports.damage import damage
from vqbench.reports.experiment import Experiment, Group, Section, by_label
from vqbench.reports.families import Ablation, ablations
from vqbench.reports.reader import Reader
from vqbench.reports.summary import Column, all_columns, columns_of, shown_columns

_LABEL = "method"  # what --sort calls the first column


@dataclass(frozen=True)
class ReportSection:
    """One protocol of a report: what its table shows, in the order in which it shows it."""

    section: Section
    columns: tuple[Column, ...]
    rows: tuple[Group, ...]
    """Sorted; groups without a score come last."""
    comparisons: Mapping[str, MetricComparison]
    """By metric; only metrics with a better direction have one."""
    against: tuple[Against, ...] = ()
    """The rows that were asked for against each of the others, by metric."""

    @functools.cached_property
    def ablations(self) -> tuple[Ablation, ...]:
        """Methods with what was switched off them, each against its full form."""
        return ablations(self.rows)


@dataclass(frozen=True)
class Report:
    """An experiment, sorted and compared."""

    experiment: Experiment
    sections: tuple[ReportSection, ...]
    published: bool
    """Whether the numbers of the methods' papers are shown beside ours."""

    @functools.cached_property
    def notes(self) -> tuple[str, ...]:
        """What must be said before anything is read off: what the experiment says, and files that cannot be read."""
        return (*self.experiment.notes, *damage(self.experiment))


def build_report(
    experiment: Experiment,
    columns: Sequence[str] = (),
    sort: str = "",
    published: bool = False,
    bases: Sequence[str] = (),
) -> Report:
    """Choose columns (none: those with a value), sort by one of them (empty: the first that ranks), compare.

    `bases` are rows that are set against each of the others, in the metrics of the columns. Raises UsageError for a
    column that does not exist, or that no cell has a value for, and for a base that is no row.
    """
    for key in (*columns, *([sort] if sort and sort != _LABEL else [])):
        _check_column(experiment, key)
    places = [place for base in dict.fromkeys(bases) for place in places_of(experiment, base)]
    there = [(section, groups[0]) for section, groups in places if len(groups) == 1 and groups[0].finished]
    return Report(
        experiment,
        tuple(
            _section(section, columns, sort, [group for other, group in there if other is section])
            for section in experiment.sections
        ),
        published,
    )


def _check_column(experiment: Experiment, key: str) -> None:
    there = {name for group in experiment.groups for name in group.summary.estimates}
    known = list(columns_of(there) or columns_of(all_columns()))
    if key not in columns_of([key]):
        raise unknown("column", key, [*known, _LABEL], f"columns: {', '.join(known)}")
    if there and key not in there:
        raise UsageError(f"no cell of '{experiment.name}' has {key}", f"columns with a value: {', '.join(known)}")


def _section(section: Section, columns: Sequence[str], sort: str, bases: Sequence[Group]) -> ReportSection:
    shown = tuple(columns_of([key])[key] for key in dict.fromkeys(columns)) or _default_columns(section)
    key = sort or next((c.key for c in shown if c.key in DEFINITIONS and DEFINITIONS[c.key].better), "")
    rows = sorted_by(section.groups, key)
    if not sort and not all(group.is_trained_here for group in rows):
        rows = by_size(rows)
    reader, ranking = Reader(), [c.key for c in shown if c.key in DEFINITIONS and DEFINITIONS[c.key].better]
    found = tuple(one for base in bases for one in against(section, base, ranking, reader))
    return ReportSection(section, shown, rows, compare_section(section, reader=reader), found)


def _default_columns(section: Section) -> tuple[Column, ...]:
    """Those that a comparison has, and beside usage and perplexity the tokens that they are counted over."""
    shown = shown_columns(group.summary for group in section.groups)
    counted = [column.key for column in shown if column.key in ("usage", "perplexity")]
    there = any("tokens" in group.summary.estimates for group in section.groups)
    if counted and there and "tokens" not in {column.key for column in shown}:
        place = next(i for i, column in enumerate(shown) if column.key == counted[-1])
        shown.insert(place + 1, columns_of(["tokens"])["tokens"])
    return tuple(shown)


def by_size(groups: Sequence[Group]) -> tuple[Group, ...]:
    """Groups of as many bits an image together, and among them those of as many tokens."""

    def size(group: Group) -> tuple[float, float]:
        known = group.summary.estimates
        bits, tokens = (known.get(name) for name in ("bits_per_image", "tokens_per_image"))
        return bits.mean if bits else math.inf, tokens.mean if tokens else math.inf

    return tuple(sorted(groups, key=size))


def sorted_by(groups: Sequence[Group], key: str) -> tuple[Group, ...]:
    """Groups by their mean in `key`, the better first; those without one last, by label."""
    descending = key in DEFINITIONS and DEFINITIONS[key].better == "higher"

    def place(group: Group) -> tuple[object, ...]:
        found = group.summary.estimates.get(key)
        return (
            found is None,
            0.0 if found is None else -found.mean if descending else found.mean,
            by_label(group.label),
        )

    return tuple(sorted(groups, key=place))
