"""Which groups of a section are better, and which are not told apart: paired differences, adjusted over the pairs."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from vqbench.metrics.definitions import DEFINITIONS
from vqbench.reports.experiment import Group, Section
from vqbench.reports.pairs import difference
from vqbench.reports.reader import Reader
from vqbench.reports.statistics import LEVEL, Difference, holm
from vqbench.wording import some

ALL_PAIRS = 12
"""Up to so many groups every pair is tested; beyond, each against the best alone, with p adjusted as if all were."""
# What the marks promise. Holm over all pairs of a metric keeps every false verdict of a table below 5 %, so a group
# that is truly best, or one of several, keeps its mark in 95 % of tables; a mark that is there in error is no error:
# it says "not told apart". The best is chosen by the data, so the pairs that it is not in count where they are not
# tested: adjusted over 19 tests alone, 16 % of tables of 20 equal groups had a false verdict.
Verdict = Literal["better", "worse", "not separated", "–"]


_TURNED: dict[Verdict, Verdict] = {"better": "worse", "worse": "better"}


@dataclass(frozen=True)
class Pair:
    """Two rows in one metric."""

    base: str
    other: str
    difference: Difference
    """other − base."""
    p: float | None
    """Adjusted after Holm over the pairs of the metric that were tested."""
    verdict: Verdict
    """What `other` is, compared to `base`; a dash where there is no test."""

    def turned(self) -> Pair:
        """The same with base and other exchanged."""
        verdict = _TURNED.get(self.verdict, self.verdict)
        return Pair(self.other, self.base, self.difference.turned(), self.p, verdict)


@dataclass(frozen=True)
class MetricComparison:
    """All groups of a section in one metric that has a better direction."""

    metric: str
    best: str
    """The group with the best mean."""
    others: tuple[str, ...]
    """The other groups that have a score."""
    pairs: tuple[Pair, ...]

    @functools.cached_property
    def to_best(self) -> dict[str, Pair]:
        """Label → that group as `other` beside the best, where the two have a difference."""
        return {pair.other: pair for one in self.pairs for pair in (one, one.turned()) if pair.base == self.best}

    @functools.cached_property
    def untested(self) -> dict[str, str]:
        """Others that no test sets against the best: label → why. They are neither worse nor not separated."""
        return {label: why for label in self.others if (why := _why_untested(self.to_best.get(label)))}

    @functools.cached_property
    def unseparated(self) -> frozenset[str]:
        """The best, and every group that was tested against it and is not worse."""
        tested = [label for label in self.others if label not in self.untested]
        return frozenset([self.best, *(label for label in tested if self.to_best[label].verdict != "worse")])

    @property
    def notes(self) -> list[str]:
        """A sentence for each reason for which groups could not be tested."""
        title = DEFINITIONS[self.metric].title
        said: dict[str, list[str]] = {}
        for label, why in self.untested.items():
            said.setdefault(why, []).append(label)
        return [
            f"{title}: {some(labels)} {'is' if len(labels) == 1 else 'are'} not compared with {self.best}, {why}"
            for why, labels in said.items()
        ]


def verdict_of(metric: str, found: Difference, p: float | None) -> Verdict:
    """What the sign and the adjusted p of a difference say."""
    if p is None:
        return "–"
    if p >= LEVEL or found.delta == 0:
        return "not separated"
    return "better" if (found.delta > 0) == (DEFINITIONS[metric].better == "higher") else "worse"


def judged(metric: str, found: Sequence[tuple[str, str, Difference]], family: int = 0) -> tuple[Pair, ...]:
    """(base, other, other − base) of one metric with p adjusted over all of them, see `holm`, and what that says."""
    adjusted = holm([d.p for _, _, d in found], family)
    return tuple(
        Pair(base, other, d, p, verdict_of(metric, d, p)) for (base, other, d), p in zip(found, adjusted, strict=True)
    )


def compare_section(
    section: Section, metrics: Sequence[str] = (), reader: Reader | None = None
) -> dict[str, MetricComparison]:
    """Metric → comparison, for those of `metrics` (none: all) that have a better direction and a group with it."""
    wanted = [name for name in metrics or section.metrics if name in DEFINITIONS and DEFINITIONS[name].better]
    fields = {name: [group for group in section.groups if name in group.summary.estimates] for name in wanted}
    bests = {name: _best(field, name) for name, field in fields.items() if field}
    place = {group.label: i for i, group in enumerate(section.groups)}
    tests = [(base, other, name) for name, best in bests.items() for base, other in _tests(fields[name], best)]
    # Cell by cell and not metric by metric: the cells of a large section do not all stay in the reader.
    tests.sort(key=lambda test: place[test[1].label])
    reader = reader or Reader()
    found: dict[str, list[tuple[str, str, Difference]]] = {name: [] for name in bests}
    for base, other, name in tests:
        if (less := difference(base.finished, other.finished, name, reader)) is not None:
            found[name].append((base.label, other.label, less))
    return {name: _comparison(name, best, fields[name], found[name]) for name, best in bests.items()}


def _best(groups: Sequence[Group], metric: str) -> Group:
    sign = 1 if DEFINITIONS[metric].better == "lower" else -1
    return min(groups, key=lambda group: (sign * group.summary.estimates[metric].mean, group.label))


def _tests(groups: Sequence[Group], best: Group) -> Iterable[tuple[Group, Group]]:
    if len(groups) <= ALL_PAIRS:
        return itertools.combinations(groups, 2)
    return ((best, group) for group in groups if group is not best)


def _comparison(
    metric: str, best: Group, groups: Sequence[Group], found: Sequence[tuple[str, str, Difference]]
) -> MetricComparison:
    compared = {label for base, other, d in found if d.p is not None for label in (base, other)}
    pairs = judged(metric, found, family=0 if len(groups) <= ALL_PAIRS else math.comb(len(compared), 2))
    return MetricComparison(metric, best.label, tuple(g.label for g in groups if g is not best), pairs)


def _why_untested(pair: Pair | None) -> str:
    if pair is None:
        return "for they share no seed"
    return why_no_interval(pair.difference)


def why_no_interval(found: Difference) -> str:
    """Why a difference has no interval and no p; empty where it has them."""
    if found.p is not None:
        return ""
    if found.seeds == 1 and found.images is not None:
        return "for they share one seed, and no image changes the difference alone, which is no certainty"
    if found.seeds == 1:
        return "for they share one seed, and what would be resampled was not kept for single images"
    return f"for all {found.seeds} seeds differ by exactly the same amount, which says nothing of others"
