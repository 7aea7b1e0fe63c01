"""A difference in words: how numbers are printed, one sentence per metric, one for all, and how many seeds more."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vqbench.metrics.definitions import DEFINITIONS
from vqbench.reports.all_pairs import Verdict, why_no_interval
from vqbench.reports.power import MOST_SEEDS, images_are_too_few, seeds_needed
from vqbench.reports.statistics import LEVEL, Difference
from vqbench.wording import counted

_WORDS: dict[Verdict, str] = {
    "better": "better than {b} in",
    "worse": "worse than {b} in",
    "not separated": "not separated from {b} in",
    "–": "not tested against {b} in",
}
ONE_SEED = "the noise of training is not in it"


@dataclass(frozen=True)
class Outlook:
    """How many seeds more a difference asks for."""

    more: int | None
    """None where no number of seeds can be named."""
    short: str
    """For a column of a table."""
    text: str
    """In words."""


def outlook(found: Difference, verdict: Verdict, of_seeds: Sequence[float], level: float = LEVEL) -> Outlook:
    """What the differences of the seeds, of which `found` is the mean, ask for: 80 % power at two-sided `level`."""
    if found.seeds == 1:
        return Outlook(2, "≥ 2", "one seed tells nothing about the spread between trainings: at least 2 more seeds (3)")
    if found.p is None:
        return Outlook(None, "–", "how many seeds more is not known, for no spread was seen")
    if verdict in ("better", "worse"):
        return Outlook(0, "none", "already separated")
    if _nothing_differs(found):
        return Outlook(None, "–", "no number of seeds is known to tell them apart")
    needed = seeds_needed(of_seeds, found.image_error, level)
    if needed < math.inf:
        more = max(int(needed) - found.seeds, 1)
        return Outlook(more, str(more), f"the spread asks for {counted(more, 'more seed')}")
    if found.delta and images_are_too_few(found.delta, found.image_error, level):
        return Outlook(
            None, "images", "no number of seeds: the images differ too much, and only more validation images would help"
        )
    return Outlook(
        None, f"> {MOST_SEEDS}", f"more than {MOST_SEEDS} more seeds: the difference is small against the noise"
    )


def _nothing_differs(found: Difference) -> bool:
    """Whether both are the same in every seed, and in every image where there are values of images."""
    return found.delta == found.low == found.high == 0


def decimals(found: Difference) -> int:
    """Places after the point that show the half width of the interval, or the difference, to two digits."""
    size = abs(found.delta) if found.low is None or found.high is None else (found.high - found.low) / 2
    size = size or abs(found.delta)
    return min(max(1 - math.floor(math.log10(size)), 0), 6) if size > 0 else 2


def interval_text(found: Difference, sign: str = "+", least: int = 0) -> str:
    """The 95 % interval as "low to high" with `least` places after the point or more, or a dash."""
    if found.low is None or found.high is None:
        return "–"
    digits = max(least, decimals(found))
    return f"{found.low:{sign},.{digits}f} to {found.high:{sign},.{digits}f}"


def p_text(p: float | None) -> str:
    """A p-value as people write it."""
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def over_text(found: Difference) -> str:
    """How many seeds and images an interval is over."""
    seeds = counted(found.seeds, "seed")
    if found.over == "images":
        return f"{found.images:,} images of {seeds}"
    return f"{seeds} × {found.images:,} images" if found.images is not None else seeds


def _evidence(found: Difference, sign: str) -> str:
    said = f"95 % {interval_text(found, sign)}, p {p_text(found.p)}, {over_text(found)}"
    return f"({said}: {ONE_SEED})" if found.seeds == 1 else f"({said})"


def sentence(metric: str, a: str, b: str, found: Difference, verdict: Verdict) -> str:
    """What is known of `a` against `b` in one metric; `found` is a − b, `verdict` what a is."""
    definition = DEFINITIONS[metric]
    unit = f" {definition.unit}" if definition.unit and definition.unit not in definition.title else ""
    if verdict in ("better", "worse"):
        size = found if found.delta > 0 else found.turned()
        amount = f"{size.delta:,.{decimals(size)}f}{unit}"
        return f"{a} is {verdict} than {b} in {definition.title} by {amount} {_evidence(size, '')}"
    if _nothing_differs(found):
        return f"{a} and {b} are the same in {definition.title}, wherever they meet ({over_text(found)})"
    amount = f"{found.delta:+,.{decimals(found)}f}{unit}" if found.delta else "0"
    if verdict == "not separated":
        return (
            f"{a} and {b} are not separated in {definition.title}: the difference is {amount} {_evidence(found, '+')}"
        )
    return f"{a} and {b} are not tested in {definition.title}: the difference is {amount}, {why_no_interval(found)}"


def overall(a: str, b: str, verdicts: Mapping[str, Verdict], seeds: int) -> str:
    """One sentence over all metrics: where `a` is better or worse than `b`, and where that is open."""
    titles = {word: [DEFINITIONS[m].title for m, v in verdicts.items() if v == word] for word in _WORDS}
    parts: list[str] = []
    for word, text in _WORDS.items():
        if titles[word]:
            first = not parts  # it names b, and the others need not
            whom = text.format(b=b) if first else text.replace(" than {b}", "").format(b="it")
            parts.append(f"{whom} {_listed(titles[word])}")
    said = f"{a} is {'; '.join(parts)}."
    return f"{said} This is one training of each: {ONE_SEED}." if seeds == 1 else said


def _listed(items: Sequence[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)
