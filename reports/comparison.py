"""Which groups of a section are better, and which are not told apart: paired differences, adjusted over the pairs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vqbench.reports.experiment import Group, Section
from vqbench.reports.pairs import difference
from vqbench.reports.statistics import Difference, holm
from vqbench.reports.summary import DEFINITIONS

LEVEL = 0.05
"""Two groups are called separated where p, adjusted over the pairs of the metric, is below this."""
ALL_PAIRS = 12
"""Up to so many groups every pair is tested; beyond, each against the best alone."""
Verdict = Literal["better", "worse", "not separated", "–"]


@dataclass(frozen=True)
class Pair:
    """Two groups in one metric."""

    base: str
    other: str
    difference: Difference
    """other − base."""
    p: float | None
    """Adjusted after Holm over the pairs of the metric that were tested."""
    verdict: Verdict
    """What `other` is, compared to `base`; a dash where there is no test."""


@dataclass(frozen=True)
class MetricComparison:
    """All groups of a section in one metric that has a better direction."""

    metric: str
    best: str
    """The group with the best mean."""
    tied: frozenset[str]
    """The best, and every group that is not separated from it."""
    pairs: tuple[Pair, ...]
    over: Literal["all pairs", "the best and each other"]
    """What p is adjusted over."""


def verdict_of(metric: str, found: Difference, p: float | None) -> Verdict:
    """What the sign and the adjusted p of a difference say."""
    if p is None:
        return "–"
    if p >= LEVEL or found.delta == 0:
        return "not separated"
    return "better" if (found.delta > 0) == (DEFINITIONS[metric].better == "higher") else "worse"


def compare_section(section: Section, metrics: Sequence[str] = ()) -> dict[str, MetricComparison]:
    """Metric → comparison, for those of `metrics` (none: all) that have a better direction and two groups with it."""
    wanted = [name for name in metrics or section.metrics if name in DEFINITIONS and DEFINITIONS[name].better]
    found = {name: _compare(section.groups, name) for name in wanted}
    return {name: comparison for name, comparison in found.items() if comparison is not None}


def _compare(groups: Sequence[Group], metric: str) -> MetricComparison | None:
    scored = [group for group in groups if metric in group.summary.estimates]
    if not scored:
        return None
    sign = 1 if DEFINITIONS[metric].better == "lower" else -1
    best = min(scored, key=lambda group: (sign * group.summary.estimates[metric].mean, group.label))
    every = len(scored) <= ALL_PAIRS
    chosen = (
        list(itertools.combinations(scored, 2)) if every else [(best, group) for group in scored if group is not best]
    )
    raw = [(a, b, difference(a.finished, b.finished, metric)) for a, b in chosen]
    known = [(a, b, d) for a, b, d in raw if d is not None]
    adjusted = holm([d.p for _, _, d in known])
    pairs = tuple(
        Pair(a.label, b.label, d, p, verdict_of(metric, d, p)) for (a, b, d), p in zip(known, adjusted, strict=True)
    )
    apart = {
        label
        for pair in pairs
        for label in (pair.base, pair.other)
        if best.label in (pair.base, pair.other) and pair.verdict in ("better", "worse")
    }
    tied = frozenset(group.label for group in scored if group is best or group.label not in apart)
    return MetricComparison(metric, best.label, tied, pairs, "all pairs" if every else "the best and each other")
