"""What a comparison says, in sentences for people who did not run it: who is best in what, and what nobody can know."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from vqbench.metrics.definitions import DEFINITIONS
from vqbench.reports.experiment import Group
from vqbench.reports.report import Peers, ReportSection
from vqbench.reports.summary import Column, Estimate
from vqbench.wording import counted, some

MOST_NAMES = 4
"""So many methods are named in a sentence; the others are counted."""
MOST_FAILURES = 6
_OF_SIZES = "Only rows of about the same bits per image are compared."
_NO_SIZE = "There is nothing to compare: no two rows take about the same bits per image."
Name = Callable[[str], str]
"""How a sentence writes the label of a method."""
Kind = Literal["alone", "some not separated", "none separated", "equal", "untested", "only"]


@dataclass(frozen=True)
class Ranking:
    """What one metric says of the methods of a section, or of those of one size."""

    metric: str
    title: str
    better: str
    """"higher" or "lower"."""
    kind: Kind
    best: str
    value: str
    """The best mean with its interval, as the table prints it."""
    unseparated: tuple[str, ...]
    """Tested against the best, and not separated from it."""
    worse: tuple[str, ...]
    untested: tuple[str, ...]
    """Without a test against the best: too few seeds, or none in common."""
    over_images: bool
    """Whether one that is worse is so over the images of one seed alone, which leaves out the noise of training."""

    def sentence(self, name: Name = str) -> str:
        """The finding in words; `name` writes each label."""
        best, chance = name(self.best), "the choice of images" if self.over_images else "chance"
        if self.kind == "only":
            return f"Only {best} has this score: {self.value}."
        if self.kind == "equal":
            return f"All methods have the same value: {self.value}."
        if self.kind == "alone":
            rest = f"{name(self.worse[0])} is" if len(self.worse) == 1 else "every other method is"
            return f"{best} is best ({self.value}); {rest} worse by more than {chance} explains."
        start = f"{best} has the best mean ({self.value})"
        if self.kind == "untested":
            return f"{start}; no test tells whether that is more than chance."
        if self.kind == "none separated":
            rest = f"{name(self.unseparated[0])} is" if len(self.unseparated) == 1 else "none of the others is"
            return f"{start}, but {rest} {'not ' if len(self.unseparated) == 1 else ''}separated from it."
        worse = "worse over the images of one seed" if self.over_images else "worse"
        parts = [
            (self.unseparated, "not separated from it"),
            (self.worse, worse),
            (self.untested, "not tested against it"),
        ]
        said = [f"{listed(labels, name)} {_are(labels)} {what}" for labels, what in parts if labels]
        return f"{start}; {'; '.join(said)}."


@dataclass(frozen=True)
class Conclusion:
    """All that is said of one protocol."""

    headline: str
    measured: str
    """What was trained and on what it was measured."""
    findings: tuple[Ranking, ...]
    problems: tuple[str, ...]
    """Cells that failed or collapsed, each named."""
    limits: tuple[str, ...]
    """What the numbers cannot say."""

    @property
    def sentences(self) -> tuple[str, ...]:
        """Everything as plain sentences, in the order in which one should read it."""
        found = (f"{finding.title}: {finding.sentence()}" for finding in self.findings)
        return (self.headline, self.measured, *found, *self.problems, *self.limits)


def verdict(section: ReportSection) -> Conclusion:
    """The words for one protocol of a report, from the comparisons that its table shows."""
    places = itertools.product(section.peers, section.columns)
    findings = tuple(found for place in places if (found := _finding(*place)) is not None)
    headline = _headline(findings).removesuffix(".") + f"{_of_one_training(section, findings)}."
    if section.of_sizes:
        headline = _NO_SIZE if all(peers.untested for peers in section.peers) else f"{_OF_SIZES} {headline}"
    return Conclusion(headline, _measured(section), findings, _problems(section), _limits(section, findings))


def _of_one_training(section: ReportSection, findings: Sequence[Ranking]) -> str:
    """What a headline must add where methods were told apart over the images of one seed."""
    if not any(finding.over_images for finding in findings):
        return ""
    once = all(group.summary.seeds <= 1 for group in section.rows)
    return ", as far as one training of each tells" if once else "; some of it rests on one training of a method"


def listed(labels: Sequence[str], name: Name = str) -> str:
    """Labels as a phrase: "a", "a and b", "a, b and 7 more"."""
    shown = [name(label) for label in labels[:MOST_NAMES]]
    if len(labels) > MOST_NAMES:
        shown.append(f"{len(labels) - MOST_NAMES} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _are(labels: Sequence[str]) -> str:
    return "is" if len(labels) == 1 else "are"


def _finding(peers: Peers, column: Column) -> Ranking | None:
    comparison = peers.comparisons.get(column.key)
    if comparison is None:
        return None
    estimates = {g.label: found for g in peers.rows if (found := g.summary.estimates.get(column.key)) is not None}
    others = [label for label in estimates if label != comparison.best]
    unseparated = tuple(label for label in others if label in comparison.unseparated)
    untested = tuple(label for label in others if label in comparison.untested)
    worse = tuple(label for label in others if label not in unseparated and label not in untested)
    definition = DEFINITIONS[column.key]
    return Ranking(
        column.key,
        definition.title + (f" at {peers.size}" if peers.size else ""),
        str(definition.better),
        _kind(estimates.values(), unseparated, worse, untested),
        comparison.best,
        column.text(estimates[comparison.best]) + (f" {definition.unit}" if definition.unit == "dB" else ""),
        unseparated,
        worse,
        untested,
        any(comparison.to_best[label].difference.over == "images" for label in worse),
    )


def _kind(
    estimates: Iterable[Estimate], unseparated: Sequence[str], worse: Sequence[str], untested: Sequence[str]
) -> Kind:
    means = [found.mean for found in estimates]
    if len(means) == 1:
        return "only"
    if max(means) == min(means):
        return "equal"
    if not unseparated and not untested:
        return "alone"
    if not unseparated and not worse:
        return "untested"
    return "none separated" if not worse and not untested else "some not separated"


def _headline(findings: Sequence[Ranking]) -> str:
    compared = [f for f in findings if f.kind not in ("only", "equal")]
    if not compared:
        return "There is nothing to compare: " + (
            "the methods do not differ in any score." if findings else "no method has a score with a better direction."
        )
    decided = [f for f in compared if f.kind != "untested"]
    if not decided:
        return "Nothing can be told apart yet: each method needs more seeds before a difference means anything."
    if all(f.kind == "none separated" for f in decided):
        return "No method is separated from another in any score: these differences may be chance."
    winners = dict.fromkeys(f.best for f in decided)
    if len(winners) == 1 and all(f.kind == "alone" for f in decided):
        return f"{next(iter(winners))} is best in every score."
    labels = _labels(decided)
    worse = [label for label in labels if any(label in f.worse for f in decided)]
    never_worse = [label for label in labels if not any(label in (*f.worse, *f.untested) for f in decided)]
    if len(never_worse) > max(2, len(labels) // 2):
        rest = f"; {listed(worse)} {_are(worse)} worse in at least one" if worse else ""
        return f"{len(never_worse)} of {len(labels)} methods are not separated from the best in any score{rest}."
    if never_worse:
        return f"{listed(never_worse)} {_are(never_worse)} best, or not separated from the best, in every score."
    told = [f for f in decided if f.kind != "none separated"]  # elsewhere the best mean may be chance
    where = {label: [f.title for f in told if f.best == label] for label in dict.fromkeys(f.best for f in told)}
    said = [f"{label} has the best mean {listed(titles)}" for label, titles in list(where.items())[:MOST_NAMES]]
    return f"No method is best in everything: {'; '.join(said)}."


def _labels(findings: Iterable[Ranking]) -> list[str]:
    return list(dict.fromkeys(label for f in findings for label in (f.best, *f.unseparated, *f.untested, *f.worse)))


def _measured(section: ReportSection) -> str:
    trained, others = _by_training(section)
    said = [f"{counted(len(others), 'tokenizer')} not trained here"] if others else []
    if trained:
        seeds = sorted({g.summary.seeds for g in trained if g.summary.seeds})
        budgets = sorted({g.images for g in trained})
        methods = f"{len(trained)} methods" if len(trained) > 1 else "One method"
        with_seeds = f"with {_range(seeds)} {'seed' if seeds == [1] else 'seeds'} each"
        said.insert(0, f"{methods}, {with_seeds if seeds else 'without a finished seed'}, "
                       f"trained on {_range(budgets)} images")  # fmt: skip
    comma, where = " and" if trained and not others else ",", section.section
    return f"{', and '.join(said)}{comma} measured on {where.measured_on} ({where.title})."


def _by_training(section: ReportSection) -> tuple[list[Group], list[Group]]:
    """The groups that were trained here, and the others."""
    groups = section.rows
    return [g for g in groups if g.is_trained_here], [g for g in groups if not g.is_trained_here]


def _range(values: Sequence[int]) -> str:
    if not values:
        return "no"
    return f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}"


def _problems(section: ReportSection) -> tuple[str, ...]:
    failures = [text for group in section.rows for text in group.summary.failures]
    collapses = [text for group in section.rows for text in group.summary.collapses]
    said = [f"Failed: {text}" for text in failures[:MOST_FAILURES]]
    said += [f"{len(failures) - MOST_FAILURES} more cells failed."] if len(failures) > MOST_FAILURES else []
    said += [f"{text}; its scores stay in the table" for text in collapses[:MOST_FAILURES]]
    more = len(collapses) - MOST_FAILURES
    return (*said, *([f"{more} more cells collapsed."] if more > 0 else []))


def _limits(section: ReportSection, findings: Sequence[Ranking]) -> tuple[str, ...]:
    trained, others = _by_training(section)
    seeds = sorted({g.summary.seeds for g in trained if g.summary.seeds})
    budgets = sorted({g.images for g in trained})
    said = []
    if others:
        unknown = [g.label for g in others if not g.has_seeds]
        again = f" How another training of {some(unknown)} would score is not known." if unknown else ""
        said.append(
            f"Not trained here: {some([g.label for g in others])}. Data, backbone, losses and budget are their own, so "
            f"a difference is one of tokenizers and not of quantizers.{again}"
        )
    if section.of_sizes:
        alone = [peers.rows[0].label for peers in section.peers if peers.untested]
        untested = f" Not tested against any other: {some(alone)}." if alone else ""
        said.append(
            f"More bits per image are an easier task, so nothing is tested between rows of different sizes.{untested}"
        )
    if seeds == [1]:
        said.append(
            "Each method was trained once. Tests run over the images alone and leave out the noise of training: "
            "another seed may turn the order round."
        )
    elif seeds and seeds[0] == 1:
        said.append(
            "Some methods were trained once. Pairs are compared over the seeds that both have; where that is one, the "
            "noise of training is left out."
        )
    if 2 in seeds:
        said.append(
            "Two seeds say little: an interval over two values is 12.7 standard errors wide on each side. "
            "Three seeds are the least that is worth reading."
        )
    if any(f.unseparated for f in findings):
        said.append(
            "“Not separated” is not “equal”: the difference is no larger than seeds and images alone may make it "
            "(p ≥ 0.05 after Holm's adjustment over the pairs)."
        )
    said += [f"{text}." for text in section.section.cautions(f.metric for f in findings).values()]
    if len(budgets) == 1:
        said.append(f"Everything was trained on {budgets[0]:,} images; another budget may give another order.")
    elif budgets:
        said.append(f"Budgets differ, from {_range(budgets)} training images: compare like with like.")
    return tuple(said)
