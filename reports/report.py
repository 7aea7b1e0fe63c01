"""A report of a stored experiment: what is compared, and the files that say it."""

from __future__ import annotations

import dataclasses
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
from vqbench.reports.sizes import bits_text, sizes, why_alone
from vqbench.reports.summary import Column, all_columns, columns_of, shown_columns

_LABEL = "method"  # what --sort calls the first column


@dataclass(frozen=True)
class Peers:
    """Rows of a section that are tested against each other and against no others."""

    rows: tuple[Group, ...]
    comparisons: Mapping[str, MetricComparison]
    """By metric; only metrics with a better direction have one."""
    size: str = ""
    """Their bits per image, in words; empty where all rows of the section are peers."""
    untested: str = ""
    """Why a row that is alone of its size is set against nothing; empty where there are others."""


@dataclass(frozen=True)
class ReportSection:
    """One protocol of a report: what its table shows, in the order in which it shows it."""

    section: Section
    columns: tuple[Column, ...]
    rows: tuple[Group, ...]
    """Sorted, peers together; groups without a score come last."""
    peers: tuple[Peers, ...]
    """All rows together, or those of each size where some were not trained here and they are of several."""
    against: tuple[Against, ...] = ()
    """The rows that were asked for against each of their peers, by metric."""

    def comparison_of(self, label: str, metric: str) -> MetricComparison | None:
        """What a row of that label takes part in; None where no test is of the metric, or the row has no peers."""
        return self._comparisons.get(label, {}).get(metric)

    @functools.cached_property
    def _comparisons(self) -> dict[str, Mapping[str, MetricComparison]]:
        return {group.label: peers.comparisons for peers in self.peers for group in peers.rows}

    @property
    def of_sizes(self) -> bool:
        """Whether its rows are of several sizes, so that some are not tested against each other."""
        return len(self.peers) > 1

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
    unopposed: tuple[str, ...] = ()
    """A sentence for each place where a row that was to be set against the others has none."""

    @functools.cached_property
    def notes(self) -> tuple[str, ...]:
        """What must be said before anything is read off: what the experiment says, and files that cannot be read."""
        return (*self.experiment.notes, *self.unopposed, *damage(self.experiment))


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
    there = [(section, groups[0]) for section, groups in places if len(groups) == 1]
    sections = tuple(
        _section(section, columns, sort, [group for other, group in there if other is section])
        for section in experiment.sections
    )
    opposed = {(made.section.key, one.base) for made in sections for one in made.against}
    unopposed = tuple(
        f"{section.heading}: {base.label} is set against no row, for none of its size has a score and a seed with it"
        for section, base in there
        if (section.key, base.label) not in opposed
    )
    return Report(experiment, sections, published, unopposed)


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
    by_tokens = not sort and not all(group.is_trained_here for group in section.groups)
    peers = tuple(_peers(section, part, key, by_tokens) for part in sizes(section.groups))
    placed = {group.label for part in peers for group in part.rows}
    rest = (group for group in sorted_by(section.groups, key) if group.label not in placed)
    found = tuple(one for base in bases for one in _against(section, base, peers, shown))
    return ReportSection(section, shown, (*(group for part in peers for group in part.rows), *rest), peers, found)


def _against(section: Section, base: Group, peers: Sequence[Peers], shown: Sequence[Column]) -> tuple[Against, ...]:
    """A row beside each of its peers, in the columns that rank."""
    ranking = [column.key for column in shown if column.key in DEFINITIONS and DEFINITIONS[column.key].better]
    others = next((part.rows for part in peers if base in part.rows), ())
    found = against(dataclasses.replace(section, groups=tuple(others)), base, ranking)
    of_other_sizes = [f"{g.label} is left out: it is of another size" for g in section.groups if g not in others]
    return tuple(dataclasses.replace(one, left_out=(*one.left_out, *of_other_sizes)) for one in found)


def _peers(section: Section, size: Sequence[Group], key: str, by_tokens: bool) -> Peers:
    """Groups of one size, or all of a section, sorted, those of as many tokens together, and compared."""
    rows = sorted_by(size, key)
    rows = tuple(sorted(rows, key=_tokens)) if by_tokens else rows
    if len(size) == len(section.groups):
        return Peers(rows, compare_section(section))
    if len(rows) == 1:
        return Peers(rows, {}, bits_text(rows), why_alone(rows[0]))
    return Peers(rows, compare_section(dataclasses.replace(section, groups=tuple(size))), bits_text(rows))


def _tokens(group: Group) -> float:
    known = group.summary.estimates
    found = known.get("tokens_per_image") or known.get("mean_tokens_per_image")
    return found.mean if found else math.inf


def _default_columns(section: Section) -> tuple[Column, ...]:
    """Those that a comparison has, and beside usage and perplexity the tokens that they are counted over."""
    shown = shown_columns(group.summary for group in section.groups)
    counted = [column.key for column in shown if column.key in ("usage", "perplexity")]
    there = any("tokens" in group.summary.estimates for group in section.groups)
    if counted and there and "tokens" not in {column.key for column in shown}:
        place = next(i for i, column in enumerate(shown) if column.key == counted[-1])
        shown.insert(place + 1, columns_of(["tokens"])["tokens"])
    return tuple(shown)


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
