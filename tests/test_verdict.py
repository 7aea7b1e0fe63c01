"""What the sentences of a report say, and that they say no more than the comparison behind them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.stored import Made, make_runs
from hypothesis import given
from hypothesis import strategies as st

from vqbench.reports.experiment import Section, load_experiment
from vqbench.reports.report import ReportSection, build_report
from vqbench.reports.statistics import Difference
from vqbench.reports.summary import Estimate, all_columns, columns_of
from vqbench.reports.verdict import Conclusion, Ranking, listed, verdict

PSNR = columns_of(["psnr"])["psnr"]


def section_of(
    means: dict[str, float],
    tied: set[str],
    untested: set[str] = frozenset(),  # type: ignore[assignment]
    seeds: int = 3,
    **more: Any,
) -> ReportSection:
    """A section of one metric, as a comparison of these means would leave it."""
    best = max(means, key=lambda label: means[label])
    groups = tuple(
        SimpleNamespace(label=label, images=512, is_trained_here=True, summary=SimpleNamespace(
            estimates={"psnr": Estimate(mean, 0.5 if seeds > 1 else None, seeds)}, seeds=seeds,
            failures=more.get("failures", {}).get(label, ()), collapses=()))
        for label, mean in means.items()
    )  # fmt: skip
    over = "seeds and images" if seeds > 1 else "images"
    difference = Difference(1.0, 0.5, 1.5, 0.01, seeds, 48, over)
    to_best = {label: SimpleNamespace(difference=difference) for label in means if label != best}
    comparison = SimpleNamespace(
        best=best, unseparated=tied | {best}, untested=dict.fromkeys(untested, "why"), to_best=to_best
    )
    protocol = {"name": "p", "hash": "h", "n_images": 48}
    section: Any = SimpleNamespace(
        section=Section(protocol, ()),
        columns=(PSNR,),
        rows=groups,
        peers=(SimpleNamespace(rows=groups, comparisons={"psnr": comparison}, size=""),),
        of_sizes=False,
    )
    return section  # type: ignore[no-any-return]


def said(*arguments: Any, **options: Any) -> tuple[Conclusion, str]:
    found = verdict(section_of(*arguments, **options))
    return found, found.findings[0].sentence()


@pytest.mark.parametrize(
    ("means", "tied", "untested", "sentence", "headline"),
    [
        ({"a": 2}, set(), set(), "Only a has this score: 2.00 ± 0.50 dB.", "There is nothing to compare"),
        ({"a": 2, "b": 2}, {"b"}, set(), "All methods have the same value: 2.00 ± 0.50 dB.", "nothing to compare"),
        ({"a": 2, "b": 1}, set(), set(), "a is best (2.00 ± 0.50 dB); b is worse by more than chance explains.",
         "a is best in every score."),
        ({"a": 3, "b": 1, "c": 2}, set(), set(),
         "a is best (3.00 ± 0.50 dB); every other method is worse by more than chance explains.", "a is best"),
        ({"a": 2, "b": 1}, {"b"}, set(), "a has the best mean (2.00 ± 0.50 dB), but b is not separated from it.",
         "No method is separated from another in any score"),
        ({"a": 2, "b": 1, "c": 0}, {"b", "c"}, set(), "but none of the others is separated from it.", "No method is"),
        ({"a": 2, "b": 1, "c": 0}, {"b"}, set(), "; b is not separated from it; c is worse.",
         "a and b are best, or not separated from the best, in every score."),
        ({"a": 2, "b": 1, "c": 0}, {"b"}, {"c"}, "; b is not separated from it; c is not tested against it.", ""),
        ({"a": 2, "b": 1}, set(), {"b"}, "; no test tells whether that is more than chance.",
         "Nothing can be told apart yet"),
        ({c: i for i, c in enumerate("fedcba")}, set("bcde"), set(), "b, c, d and e are not separated from it; f is",
         "5 of 6 methods are not separated from the best in any score; f is worse in at least one."),
    ],
)  # fmt: skip
def test_sentences(means: dict[str, float], tied: set[str], untested: set[str], sentence: str, headline: str) -> None:
    means = dict(sorted(means.items()))
    found, told = said(means, tied, untested)
    assert sentence in told
    assert headline in found.headline
    assert told in " ".join(found.sentences)


def test_one_seed_says_that_its_tests_are_over_images() -> None:
    found, told = said({"a": 2, "b": 1}, set(), seeds=1)
    assert told == "a is best (2.00 dB); b is worse by more than the choice of images explains."
    assert "leave out the noise of training" in found.limits[0]
    assert found.headline == "a is best in every score, as far as one training of each tells."
    found, told = said({"a": 3, "b": 2, "c": 1}, {"b"}, seeds=1)
    assert told.endswith("; b is not separated from it; c is worse over the images of one seed.")
    found, told = said({"a": 3, "b": 2, "c": 1}, {"b", "c"}, seeds=1)
    assert "one training" not in found.headline


def test_who_was_not_tested_is_neither_among_the_best_nor_worse() -> None:
    found, _ = said({"a": 9, "b": 8, "c": 7, "d": 6, "e": 5, "f": 4}, {"b", "c", "d"}, {"e"})
    assert found.headline == (
        "4 of 6 methods are not separated from the best in any score; f is worse in at least one."
    )


def test_two_seeds_say_how_little_they_are() -> None:
    found, _ = said({"a": 2, "b": 1}, {"b"}, seeds=2)
    assert "12.7 standard errors" in found.limits[0]
    assert any("is not “equal”" in text for text in found.limits)
    found, _ = said({"a": 2, "b": 1}, set(), seeds=3)
    assert not any("Two seeds" in text or "equal" in text for text in found.limits)


def test_the_headline_names_no_winner_where_everything_is_tied() -> None:
    one, two = section_of({"a": 3, "b": 1}, set()), section_of({"a": 1, "b": 3}, set())
    tied = section_of({"a": 1, "b": 3}, {"a"})
    shown = tuple(columns_of(["psnr", "ssim", "usage"]).values())
    for group, *others in zip(one.rows, two.rows, tied.rows, strict=True):
        for key, other in zip(("ssim", "usage"), others, strict=True):
            group.summary.estimates[key] = other.summary.estimates["psnr"]
    found = (section.peers[0].comparisons["psnr"] for section in (one, two, tied))
    comparisons = dict(zip(("psnr", "ssim", "usage"), found, strict=True))
    peers = (SimpleNamespace(rows=one.rows, comparisons=comparisons, size=""),)
    section: Any = SimpleNamespace(section=one.section, columns=shown, rows=one.rows, peers=peers, of_sizes=False)
    expected = "No method is best in everything: a has the best mean PSNR; b has the best mean SSIM."
    assert verdict(section).headline == expected


def test_failures_are_named_and_then_counted() -> None:
    found, _ = said({"a": 2, "b": 1}, set(), failures={"b": tuple(f"b s{i}: out of memory" for i in range(9))})
    assert found.problems[0] == "Failed: b s0: out of memory"
    assert found.problems[-1] == "3 more cells failed."


def test_labels_are_written_as_asked() -> None:
    finding = Ranking("psnr", "PSNR", "higher", "some not separated", "a", "2", ("b",), ("c",), (), False)
    assert finding.sentence("<{}>".format) == "<a> has the best mean (2); <b> is not separated from it; <c> is worse."


@given(st.lists(st.text(min_size=1), min_size=1, max_size=12, unique=True))
def test_a_phrase_names_four_and_counts_the_others(labels: list[str]) -> None:
    phrase = listed(labels, lambda label: f"[{label}]")
    assert sum(phrase.count(f"[{label}]") > 0 for label in labels[:4]) == min(4, len(labels))
    assert phrase.endswith(f"{len(labels) - 4} more") == (len(labels) > 4)


def test_every_metric_has_words_for_a_newcomer() -> None:
    every = columns_of(all_columns())
    assert [key for key, column in every.items() if not column.gloss and not key.startswith("params_")] == []


def test_a_stored_experiment_in_words(tmp_path: Path) -> None:
    make_runs(tmp_path, "x", [Made("good", shift=40), Made("poor", config={"k": 1}), Made("gone", config={"k": 2},
              failed=dict.fromkeys(range(3), "CUDA out of memory"))])  # fmt: skip
    found = verdict(build_report(load_experiment(tmp_path, "x")).sections[0])
    assert found.findings[1].sentence().startswith("good is best (")
    assert found.measured.startswith("3 methods, with 3 seeds each, trained on ")
    assert "48 validation images" in found.measured
    assert len(found.problems) == 3


def test_features_are_items_and_no_images() -> None:
    found, _ = said({"a": 2, "b": 1}, set())  # a protocol of features has no resolution
    assert found.measured.endswith("trained on 512 images and measured on 48 validation items (p h).")


def test_an_experiment_of_failures_alone_says_so(tmp_path: Path) -> None:
    make_runs(tmp_path, "x", [Made("gone", failed={0: "no"})], seeds=(0,))
    found = verdict(build_report(load_experiment(tmp_path, "x")).sections[0])
    assert found.headline == "There is nothing to compare: no method has a score with a better direction."
    assert "without a finished seed" in found.measured
