"""Two groups of an experiment set against each other: `vqbench compare`, from stored results alone."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqbench import arguments
from vqbench.errors import UsageError, unknown
from vqbench.metrics.definitions import DEFINITIONS
from vqbench.reports.all_pairs import Verdict, verdict_of
from vqbench.reports.experiment import Experiment, Group, Section, load_experiment
from vqbench.reports.pair_words import Outlook, outlook, overall, sentence
from vqbench.reports.pairs import by_seed, difference, paired_rows, paired_scores
from vqbench.reports.reader import Reader
from vqbench.reports.sizes import bits_text, sizes
from vqbench.reports.statistics import Difference
from vqbench.wording import shell_command, some

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Contrast:
    """A against B in one metric, over the seeds that both have."""

    metric: str
    mean_a: float
    mean_b: float
    difference: Difference
    """A − B; its p is that of this one pair, adjusted for nothing."""
    verdict: Verdict
    """What A is."""
    outlook: Outlook
    sentence: str
    of_seeds: tuple[float, ...]
    """A − B of each seed."""


@dataclass(frozen=True)
class Versus:
    """A against B under one protocol."""

    section: Section
    a: Group
    b: Group
    contrasts: tuple[Contrast, ...]
    """By metric, at least one."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of which both have scores."""
        first, second = by_seed(self.a.finished, self.b.finished)
        return tuple(sorted(first.keys() & second.keys()))

    @property
    def sizes(self) -> str:
        """That they take different bits per image, where a report does not test them; empty where it does."""
        if any({self.a.label, self.b.label} <= {g.label for g in size} for size in sizes(self.section.groups)):
            return ""
        a, b = (f"{group.label} takes {bits_text([group])}" for group in (self.a, self.b))
        return f"{a}, and {b}: more bits are an easier task, so a report does not test one against the other"

    @property
    def overall(self) -> str:
        """One sentence over all metrics."""
        verdicts = {found.metric: found.verdict for found in self.contrasts}
        return overall(self.a.label, self.b.label, verdicts, max(f.difference.seeds for f in self.contrasts))

    @property
    def lines(self) -> list[str]:
        """One sentence per metric, and how many seeds more it asks for."""
        several = [f"{found.sentence}; {found.outlook.text}" for found in self.contrasts if found.difference.seeds > 1]
        single = [found for found in self.contrasts if found.difference.seeds == 1]
        return [*several, *(found.sentence for found in single), *(found.outlook.text for found in single[:1])]

    @property
    def cautions(self) -> dict[str, str]:
        """Metric → what must be said wherever it is shown."""
        return self.section.cautions(found.metric for found in self.contrasts)

    @property
    def notes(self) -> list[str]:
        """What must be said below the table: sizes, cautions, and cells that collapsed, failed, or have no partner."""
        said = [*([self.sizes] if self.sizes else []), *self.cautions.values()]
        for group in (self.a, self.b):
            said += [
                *group.summary.remarks,
                *group.summary.collapses,
                *(f"failed, {text}" for text in group.summary.failures),
            ]
            alone = sorted({row["seed"] for row in group.finished} - set(self.seeds))
            if alone and group.has_seeds:
                said.append(f"{group.label} s{', s'.join(map(str, alone))}: left out, for the other has no such seed")
        return said


@dataclass(frozen=True)
class Comparison:
    """A against B, under each protocol that has both."""

    experiment: Experiment
    parts: tuple[Versus, ...]
    """One per protocol, at least one; their numbers are never put together."""
    notes: tuple[str, ...]
    """What must be said of the whole: protocols that were left out, cells without a result."""


def compare(
    a: str,
    b: str,
    *,
    name: str = "",
    runs: str | os.PathLike[str] = "runs",
    metrics: str | Iterable[str] = (),
) -> pd.DataFrame:
    """Compare two methods of a stored experiment, as `vqbench compare` does; one row per protocol and metric.

    a, b: what a row of the experiment's table is called, or a method that stands for one row. `name` may be left out
    where `runs` holds one experiment. Columns: those of `objects`. Raises UsageError for what cannot be compared.
    """
    import pandas as pd

    asked = arguments.names("--metrics", metrics if metrics is not None else ())
    given = (("A", a), ("B", b), ("--name", name))
    names = [arguments.text(option, text if text is not None else "") for option, text in given]
    experiment = open_experiment(arguments.path("--runs", runs if runs is not None else "runs"), names[2])
    return pd.DataFrame(objects(compare_groups(experiment, names[0], names[1], asked)))


def open_experiment(runs: Path, name: str = "", option: str = "--name ") -> Experiment:
    """The experiment of that name, or the only one below `runs`. Raises UsageError where there is none, or several.

    `option` is what the name is given with on the command line.
    """
    known = sorted(path.parent.name for path in runs.glob("*/cells"))
    if not name and len(known) > 1:
        raise UsageError(
            f"{runs} holds {len(known)} experiments: {some(known)}", f"choose one: {option}{shell_command(known[:1])}"
        )
    return load_experiment(runs, name or next(iter(known), ""))


def compare_groups(experiment: Experiment, a: str, b: str, metrics: Sequence[str] = ()) -> Comparison:
    """Set A against B in `metrics` (none: all that have a better direction), protocol by protocol.

    Raises UsageError for a name that is no group or several, one group twice, groups without a protocol, a seed or a
    metric in common, and metrics that do not exist or rank nothing.
    """
    wanted = _ranking(metrics)
    both = _with_both(experiment, a, b)
    reader, parts, problems = Reader(), [], []
    for section, first, second in both:
        try:
            parts.append(versus(section, first, second, wanted, reader))
        except UsageError as problem:
            problems.append((section, problem))
    if not parts:
        raise problems[0][1]
    notes = [f"{section.title}: not compared; {problem.what}" for section, problem in problems]
    others = [section.title for section in experiment.sections if all(section is not found for found, _, _ in both)]
    if others:
        notes.append(f"not both of them have results under {some(others)}")
    return Comparison(experiment, tuple(parts), (*notes, *experiment.notes))


def _ranking(metrics: Sequence[str]) -> tuple[str, ...]:
    ranking = [name for name in DEFINITIONS if DEFINITIONS[name].better]
    for name in metrics:
        if name not in DEFINITIONS:
            raise unknown("metric", name, DEFINITIONS, f"metrics that rank: {', '.join(ranking)}")
        if not DEFINITIONS[name].better:
            raise UsageError(f"{name} describes a tokenizer and does not rank it", f"choose among {', '.join(ranking)}")
    return tuple(name for name in dict.fromkeys((*ranking, *metrics)) if name in metrics or not metrics)


def _with_both(experiment: Experiment, a: str, b: str) -> list[tuple[Section, Group, Group]]:
    """The protocols under which both names stand for one group each."""
    found = {name: places_of(experiment, name) for name in (a, b)}
    both = [
        (section, first[0], second[0])
        for (section, first), (_, second) in zip(found[a], found[b], strict=True)
        if len(first) == len(second) == 1
    ]
    if not both:
        raise _no_common_protocol(found)
    if all(first is second for _, first, second in both):
        raise UsageError(f"'{a}' and '{b}' are the same group", "give two different ones")
    return [(section, first, second) for section, first, second in both if first is not second]


def places_of(experiment: Experiment, name: str) -> list[tuple[Section, list[Group]]]:
    """Every section with the groups that `name` stands for there: one in one of them, at least.

    Raises UsageError for a name that is no group anywhere, or several wherever it is one.
    """
    places = [(section, _named(section, name)) for section in experiment.sections]
    if not any(groups for _, groups in places):
        labels = sorted({group.label for group in experiment.groups})
        raise unknown("group", name, labels, f"groups of {experiment.name}: {some(labels)}")
    if not any(len(groups) == 1 for _, groups in places):
        several = next(groups for _, groups in places if groups)
        names = [f"'{group.label}'" for group in several]
        raise UsageError(f"'{name}' stands for {len(several)} groups: {some(names)}", "give one of these names")
    return places


def _named(section: Section, name: str) -> list[Group]:
    """The group that is called `name`, else those of a method or preset of that name."""
    exact = [group for group in section.groups if group.label == name]
    of_reference = [group for group in section.groups if group.cells[0].reference == name]
    return exact or of_reference or [group for group in section.groups if group.method == name]


def _no_common_protocol(found: dict[str, list[tuple[Section, list[Group]]]]) -> UsageError:
    where = [
        f"{name} has results under {some([section.title for section, groups in places if groups])}"
        for name, places in found.items()
    ]
    return UsageError(
        f"no protocol in common: {', '.join(where)}; what is measured differently is never compared",
        "`vqbench run` with both methods measures them alike",
    )


def versus(section: Section, a: Group, b: Group, metrics: Sequence[str], reader: Reader) -> Versus:
    """A against B in those of `metrics` that both have.

    Raises UsageError where one has no finished cell, and where they share no seed or no metric.
    """
    for group in (a, b):
        if not group.finished:
            reason = f", the first: {group.summary.failures[0]}" if group.summary.failures else ""
            hint = "`vqbench run` with the options that began it tries failed cells again"
            raise UsageError(f"every cell of {group.label} failed{reason}", hint)
    seeds = [sorted(found) for found in by_seed(a.finished, b.finished)]
    if not set(seeds[0]) & set(seeds[1]):
        raise UsageError(
            f"no seed in common: {a.label} has {_numbers(seeds[0])}, {b.label} has {_numbers(seeds[1])}",
            f"train the other with the same: --seeds {','.join(map(str, seeds[0]))}",
        )
    found = [finding for metric in metrics if (finding := _finding(a, b, metric, reader)) is not None]
    if not found:
        raise UsageError(
            f"no seed of {a.label} and {b.label} has both scores of {some(metrics)}",
            "`vqbench run --metrics …` adds a metric to finished cells without training",
        )
    return Versus(section, a, b, tuple(found))


def _finding(a: Group, b: Group, metric: str, reader: Reader) -> Contrast | None:
    pairs = paired_rows(b.finished, a.finished, metric)
    found = difference(b.finished, a.finished, metric, reader)
    if found is None:
        return None
    scores = paired_scores(pairs, metric)
    mean_b, mean_a = (sum(column) / len(column) for column in zip(*scores, strict=True))
    verdict = verdict_of(metric, found, found.p)
    of_seeds = tuple(of_a - of_b for of_b, of_a in scores)
    if not a.has_seeds and not b.has_seeds:
        after = Outlook(None, "–", "vqbench trained neither: another training of theirs is not to be had")
    else:
        after = outlook(found, verdict, of_seeds)
    said = sentence(metric, a.label, b.label, found, verdict)
    return Contrast(metric, mean_a, mean_b, found, verdict, after, said, of_seeds)


def objects(comparison: Comparison) -> list[dict[str, Any]]:
    """One JSON-ready object per protocol and metric: what `vqbench compare --json` prints."""
    return [as_object(part, found) for part in comparison.parts for found in part.contrasts]


def as_object(part: Versus, found: Contrast) -> dict[str, Any]:
    """One metric of a pair, JSON-ready."""
    size, collapsed = found.difference, [*part.a.summary.collapses, *part.b.summary.collapses]
    return {
        "a": part.a.label,
        "b": part.b.label,
        "protocol": part.section.protocol["hash"],
        "protocol_name": part.section.protocol["name"],
        "metric": found.metric,
        **({"digest": known} if (known := DEFINITIONS[found.metric].digest) else {}),
        "mean_a": found.mean_a,
        "mean_b": found.mean_b,
        "difference": size.delta,
        "low": size.low,
        "high": size.high,
        "p": size.p,
        "interval_over": size.over,
        "seeds": size.seeds,
        "images": size.images,
        "verdict": found.verdict if found.verdict != "–" else "not tested",
        "more_seeds": found.outlook.more,
        "more_seeds_text": found.outlook.text,
        "sentence": found.sentence,
        "collapsed": collapsed,
        **({"sizes": part.sizes} if part.sizes else {}),
        **({"caution": part.cautions[found.metric]} if found.metric in part.cautions else {}),
    }


def _numbers(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
