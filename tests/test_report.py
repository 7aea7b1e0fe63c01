"""`vqbench report`: the tables of a stored experiment, in every format, from whole and from broken results."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.commands import Command, typed
from helpers.stored import Made, make_runs, make_sizes, write_cell
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from scipy import stats

import vqbench
from vqbench.cli.terminal import TerminalView
from vqbench.cli.terminal_compare import print_versus
from vqbench.errors import UsageError
from vqbench.machine.atomic import write_arrays_atomically
from vqbench.machine.json_files import read_json, write_json
from vqbench.metrics.definitions import DEFINITIONS, IN_PROTOCOL, cautions
from vqbench.planning.choice import choose_method
from vqbench.planning.plan import Cell, Plan, make_plan, resolve
from vqbench.planning.request import RunRequest
from vqbench.planning.variant import Variant
from vqbench.recipe import load_recipe
from vqbench.reports.ablation import delta_table
from vqbench.reports.all_pairs import Pair
from vqbench.reports.compare import compare_groups
from vqbench.reports.documents import markdown_document
from vqbench.reports.experiment import Section, load_experiment
from vqbench.reports.families import families
from vqbench.reports.figures.forest import comparison
from vqbench.reports.grid import Grid, markdown
from vqbench.reports.latex import PREAMBLE, latex_table, latex_text
from vqbench.reports.page import page_html
from vqbench.reports.report import Report, build_report
from vqbench.reports.statistics import Difference, holm
from vqbench.reports.summary import markdown_table, shown_columns, summarise
from vqbench.reports.write import write_report
from vqbench.results.cell_folder import CellFolder

HOSTILE = "=<script>alert(1)</script> & 100%_x_ $y$ {z} \\o ~^# é ✓±Δ 界🙂žą |--x `b` *k* [k](u)\t"
HOSTILE += "w" * (200 - len(HOSTILE))
ON = {"vlq": True, "rcs": True, "dcr": True}
METHODS = (
    Made("vaevq", "vaevq", 30, components=ON),
    Made("vaevq without dcr", "vaevq", 29.5, components=ON | {"dcr": False}),
    Made("vaevq all off", "vaevq", -5, components=dict.fromkeys(ON, False)),
    Made("vqgan", failed={1: "CUDA out of memory: tried 3_000 MiB & more"}),
    Made("fsq", "fsq", failed={0: "boom", 1: "boom", 2: "bang"}),
    Made("sqvae", "sqvae", -30, collapsed={2: "usage fell to 0.01"}),
    Made(HOSTILE, "odd", 3),
)
PAPER = {
    "published": [
        {"metric": "rfid", "value": 1.5, "measured_on": "ImageNet, f not said", "source": "table 1"},
        {"metric": "psnr", "value": 22.05, "measured_on": "ImageNet, f not said", "source": "table 1"},
        {"metric": "rfid", "value": 2.25, "measured_on": "BraTS24", "source": "table 1"},
    ],
    "rows": True,
    "row": {"name": "Whole", "published": {"rfid": {"ImageNet": 1.14}}},
}


def edit_specs(experiment: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite the spec of every cell."""
    for path in experiment.glob("cells/*/spec.json"):
        spec = read_json(path)
        assert spec is not None
        change(spec)
        write_json(path, spec)


def cell_of(experiment: Path, label: str, seed: int = 0) -> Path:
    """The folder of a cell."""
    (found,) = (
        path.parent
        for path in experiment.glob("cells/*/spec.json")
        if (spec := json.loads(path.read_text()))["label"] == label and spec["seed"] == seed
    )
    return found


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven rows under three seeds: an ablation, failures, a collapse, and a label that means harm."""
    folder = make_runs(tmp_path_factory.mktemp("report") / "runs", "made", METHODS)

    def add_paper(spec: dict[str, Any]) -> None:
        if spec["label"] == "vaevq":
            spec["paper"] = PAPER
        elif spec["method"] == "vaevq":
            spec["paper"] = PAPER | {"published": [], "row": None}

    edit_specs(folder, add_paper)
    return folder


@pytest.fixture(scope="module")
def report(experiment: Path) -> Report:
    return build_report(load_experiment(experiment.parent, "made"), published=True)


@pytest.fixture(scope="module")
def files(report: Report, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The text of each table file, by suffix."""
    written = write_report(report, tmp_path_factory.mktemp("out"), ("md", "csv", "tex", "json"))
    return {path.suffix[1:]: path.read_text(encoding="utf-8") for path in written}


def read_markdown(text: str) -> list[list[list[tuple[str, str]]]]:
    """Tables of a Markdown text as an independent reader sees them: rows of (text, "strong", "em" or "")."""
    tables: list[list[list[tuple[str, str]]]] = []
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text):
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif token.type == "inline" and token.level >= 4:
            kinds = {child.type for child in token.children or ()}
            assert kinds <= {"text", "text_special", "strong_open", "strong_close", "em_open", "em_close"}, kinds
            mark = "strong" if "strong_open" in kinds else "em" if "em_open" in kinds else ""
            tables[-1][-1].append(("".join(child.content for child in token.children or ()), mark))
    return tables


# --- what the tables say


def test_markdown_marks_all_that_are_tied_with_the_best(files: dict[str, str], report: Report) -> None:
    (section,), (titles, *rows) = report.sections, read_markdown(files["md"])[0]
    names = [text for text, _ in titles]
    psnr = section.peers[0].comparisons["psnr"]
    assert len(psnr.unseparated) > 1
    assert len(psnr.unseparated) < 6
    bold = {row[0][0] for row in rows if row[names.index("PSNR ↑")][1] == "strong"}
    assert {label.partition(" (")[0] for label in bold} == {label.strip() for label in psnr.unseparated}
    assert "bold: best, or not separated from the best (p ≥ 0.05 after Holm" in files["md"]
    assert names.index("tokens") == names.index("perplexity ↑") + 1


def test_failed_and_collapsed_cells_are_rows_with_their_reason(experiment: Path, files: dict[str, str]) -> None:
    scores, problems, *_ = read_markdown(files["md"])
    first = {row[0][0]: [text for text, _ in row] for row in scores}
    assert set(first["fsq (failed)"][1:-5]) == {"–"}
    assert first["fsq (failed)"][-1] == "0"
    assert first["vqgan (1 of 3 failed)"][-1] == "2"
    assert "sqvae (1 of 3 collapsed)" in first
    every = [row for group in load_experiment(experiment.parent, "made").groups for row in group.rows]
    (summed, *_) = read_markdown(markdown_table(summarise(every), "p"))
    assert {row[0][0] for row in summed} == {*first}, "whatever prints a row calls it the same"
    said = [[text for text, _ in row] for row in problems[1:]]
    assert ["vqgan", "1", "failed in train", "CUDA out of memory: tried 3_000 MiB & more"] in said
    assert ["sqvae", "2", "collapsed after 2,048 images", "usage fell to 0.01"] in said
    assert len(said) == 5
    for name in ("tex", "json", "csv"):
        assert "bang" in files[name]


def test_csv_has_a_line_per_group_with_numbers_that_can_be_checked(files: dict[str, str], experiment: Path) -> None:
    lines = {line["label"]: line for line in csv.DictReader(io.StringIO(files["csv"]))}
    assert len(lines) == len(METHODS)
    results = [json.loads((cell_of(experiment, "vaevq", s) / "result.json").read_text()) for s in (0, 1, 2)]
    rfid = [result["scores"]["rfid"] for result in results]
    low, high = stats.t.interval(0.95, 2, loc=sum(rfid) / 3, scale=stats.sem(rfid))
    row = lines["vaevq"]
    assert float(row["rfid_mean"]) == pytest.approx(sum(rfid) / 3)
    assert float(row["rfid_low"]) == pytest.approx(low)
    assert float(row["rfid_high"]) == pytest.approx(high)
    assert row["psnr_tied"] == "true"
    assert lines["sqvae"]["psnr_tied"] == "false"
    assert (row["n"], row["failed"], lines["fsq"]["n"], lines["fsq"]["failed"]) == ("3", "0", "0", "3")
    assert lines["fsq"]["rfid_mean"] == lines["fsq"]["rfid_tied"] == ""
    assert lines["sqvae"]["collapses"].endswith("usage fell to 0.01")
    assert row["params_total"] == "661651"


def test_json_has_everything(files: dict[str, str], experiment: Path, report: Report) -> None:
    (section,) = json.loads(files["json"])["sections"]
    groups = {group["label"]: group for group in section["groups"]}
    cells = {cell["seed"]: cell for cell in groups["vqgan"]["cells"]}
    stored = json.loads((cell_of(experiment, "vqgan", 2) / "result.json").read_text())
    assert cells[2]["scores"] == stored["scores"]
    assert cells[1]["error"]["message"].startswith("CUDA out of memory")
    assert groups["vaevq without dcr"]["components"] == ON | {"dcr": False}
    compared = report.sections[0].peers[0].comparisons["psnr"]
    pair = section["comparisons"]["psnr"]["pairs"][0]
    first = compared.pairs[0]
    assert (pair["base"], pair["delta"], pair["p_adjusted"]) == (first.base, first.difference.delta, first.p)
    assert section["comparisons"]["psnr"]["tied"] == sorted(compared.unseparated)
    rows = {row["row"]: row for row in section["ablations"][0]["rows"]}
    assert set(rows) == {"full", "without dcr", "all off"}
    assert str(experiment.parent) not in files["json"]


def test_components_are_compared_with_the_full_method(files: dict[str, str], report: Report) -> None:
    tables = read_markdown(files["md"])
    scores = next(t for t in tables if t[0][0][0] == "row" and ("vlq", "") in t[0])
    assert [[text for text, _ in row[:4]] for row in scores[1:]] == [
        ["full", "✓", "✓", "✓"], ["without dcr †", "✓", "✓", "✗"], ["all off †", "✗", "✗", "✗"]
    ]  # fmt: skip
    assert ("paper rFID", "") in scores[0]
    assert ("1.14", "em") in scores[1]
    deltas = next(t for t in tables if ("Δ to full", "") in t[0])
    (section,) = report.sections
    full, off = (next(g for g in section.rows if g.label == name) for name in ("vaevq", "vaevq all off"))
    expected = off.summary.estimates["psnr"].mean - full.summary.estimates["psnr"].mean
    lines = [[text for text, _ in row] for row in deltas]
    start = next(i for i, line in enumerate(lines) if line[0].startswith("all off"))
    psnr = next(line for line in lines[start:] if line[1] == "PSNR ↑")
    assert psnr[2] == f"{expected:+.2f}"
    assert psnr[6] == "worse"


def test_rows_of_an_ablation_differ_in_nothing_but_what_the_components_make_idle(tmp_path: Path) -> None:
    def config(**more: float) -> dict[str, Any]:
        return {"codebook_size": 64, "dcr_weight": 0.1, "beta": 0.25, **more}

    methods = (
        Made("vaevq", "vaevq", components=ON, config=config(dcr_weight=0.5)),
        Made("vaevq without dcr", "vaevq", components=ON | {"dcr": False}, config=config()),
        Made("other", "vaevq", components=ON | {"rcs": False}, config=config(dcr_weight=0.5, beta=1.0)),
        Made("vqgan", "vqgan", config=config()),
    )
    folder = make_runs(tmp_path, "made", methods, seeds=(0,))

    def labels() -> list[list[str]]:
        (section,) = load_experiment(tmp_path, "made").sections
        return [[group.label for group in family] for family in families(section.groups)]

    assert labels() == []  # cells of old do not say which fields were idle
    edit_specs(folder, lambda spec: spec.update(part_of={"dcr_weight": ["dcr"]}))
    assert labels() == [["vaevq", "vaevq without dcr"]]


def test_published_numbers_are_grey_and_name_their_protocol(files: dict[str, str], report: Report) -> None:
    scores = read_markdown(files["md"])[0]
    titles = [text for text, _ in scores[0]]
    row = next(row for row in scores if row[0][0] == "vaevq")
    assert row[titles.index("rFID published")] == ("1.50 [a], 2.25 [b]", "em")
    assert row[titles.index("PSNR published")] == ("22.05 [a]", "em")
    listed = next(table for table in read_markdown(files["md"]) if ("measured on", "") in table[0])
    assert [text for text, _ in listed[1]] == [
        "[a]", "vaevq", "rFID 1.50, PSNR 22.05", "ImageNet, f not said", "table 1"
    ]  # fmt: skip
    assert r"\textcolor{gray}{1.50 [a], 2.25 [b]}" in files["tex"]
    plain = build_report(report.experiment)
    assert not plain.published
    assert "published" not in write_markdown(plain)
    assert "1.14" not in write_markdown(plain)


def write_markdown(report: Report) -> str:
    from vqbench.reports.documents import markdown_document

    return markdown_document(report)


def test_columns_and_order_can_be_chosen(experiment: Path) -> None:
    stored = load_experiment(experiment.parent, "made")
    (section,) = build_report(stored, ("usage", "params_total"), "rfid").sections
    assert [column.key for column in section.columns] == ["usage", "params_total"]
    means = [g.summary.estimates["rfid"].mean for g in section.rows if g.finished]
    assert means == sorted(means)
    assert section.rows[-1].label == "fsq"
    (by_usage,) = build_report(stored, sort="usage").sections
    usage = [g.summary.estimates["usage"].mean for g in by_usage.rows if g.finished]
    assert usage == sorted(usage, reverse=True)
    (by_name,) = build_report(stored, sort="method").sections
    assert [g.label for g in by_name.rows if g.finished] == sorted(
        (g.label for g in by_name.rows if g.finished), key=str.lower
    )
    for wrong, said in (({"columns": ("rfdi",)}, "mean rfid"), ({"sort": "kid"}, "no cell of 'made' has kid")):
        with pytest.raises(UsageError, match=said):
            build_report(stored, **wrong)  # type: ignore[arg-type]


def test_one_row_against_all_others_is_what_compare_finds_of_each(experiment: Path, tmp_path: Path) -> None:
    options = ("--against", "vqgan", "--columns", "psnr,params_total", "--format", "md,json", "--out", tmp_path)
    answer = typed("report", "made", "--runs", experiment.parent, *options)
    assert answer.code == 0, answer.err
    ((found,),) = (s["against"] for s in json.loads((tmp_path / "report.json").read_text())["sections"])
    assert (found["base"], found["metric"]) == ("vqgan", "psnr")
    rows = found["rows"]
    assert {row["a"] for row in rows} == {"vaevq", "vaevq without dcr", "vaevq all off", "sqvae", HOSTILE}
    assert [row["difference"] for row in rows] == sorted((row["difference"] for row in rows), reverse=True)
    for row in rows:
        assert row["seeds"] == 2  # vqgan failed at seed 1
        alone = vqbench.compare(row["a"], "vqgan", name="made", runs=experiment.parent, metrics="psnr").iloc[0]
        assert all(row[key] == alone[key] for key in ("difference", "low", "high", "p", "verdict", "more_seeds"))
    highest = 0.0
    for place, row in enumerate(sorted(rows, key=lambda row: row["p"])):  # Holm (1979), step by step
        highest = max(highest, min(1.0, row["p"] * (len(rows) - place)))
        assert row["p_adjusted"] == pytest.approx(highest)
        decided = "not separated" if highest >= 0.05 else "better" if row["difference"] > 0 else "worse"
        assert row["verdict_adjusted"] == decided
        assert (row["more_seeds_adjusted"] == 0) == (decided != "not separated")
        assert (row["more_seeds_adjusted"] or math.inf) >= (row["more_seeds"] or 0) or decided != "not separated"
    assert any("fsq is left out: every cell" in said for said in found["left_out"])
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    (table,) = (t for t in read_markdown(text) if t[0][-2][0] == "than vqgan")
    assert [line[0][0] for line in table[1:]] == [row["a"].replace("\t", " ") for row in rows]
    assert [line[-2][0] for line in table[1:]] == [row["verdict_adjusted"] for row in rows]


def test_a_base_is_set_against_its_own_size_and_where_none_is_left_that_is_said(tmp_path: Path) -> None:
    experiment = load_experiment(make_sizes(tmp_path, "sizes").parent, "sizes")
    report = build_report(experiment, ["psnr"], bases=("vqgan", "theirs", "sqvae"))
    (found,) = report.sections[0].against
    assert (found.base, [row.part.a.label for row in found.rows]) == ("vqgan", ["rqvae", "taming"])
    assert {said for said in found.left_out if "of another size" in said} == {
        f"{label} is left out: it is of another size" for label in ("fsq", "titok", "llamagen", "theirs", "sqvae")
    }
    (theirs, sqvae) = (said for said in report.notes if "is set against no row" in said)
    assert (": theirs is" in theirs, ": sqvae is" in sqvae) == (True, True)


@pytest.mark.parametrize(
    ("base", "said"), [("vqgam", "unknown group 'vqgam'.*did you mean vqgan"), ("nothing at all", "unknown group")]
)
def test_a_base_that_is_no_row_is_an_error_before_anything_is_written(
    experiment: Path, tmp_path: Path, base: str, said: str
) -> None:
    answer = typed("report", "made", "--runs", experiment.parent, "--against", base, "--out", tmp_path / "out")
    assert answer.code == 2
    assert re.search(said, answer.err, re.DOTALL), answer.err
    assert not (tmp_path / "out").exists()


def test_two_protocols_are_two_tables_and_a_reason(tmp_path: Path) -> None:
    make_runs(tmp_path, "two", [Made("vqgan"), Made("fsq", "fsq")], (0, 1), n_images=48)
    make_runs(tmp_path, "two", [Made("vqgan")], (0,), n_images=24)
    text = write_markdown(build_report(load_experiment(tmp_path, "two")))
    assert len(read_markdown(text)) == 2
    assert "2 protocols" in text
    assert "nothing is compared across" in text
    assert "one group has scores: there is nothing to compare" in text
    assert "N = 24" in text
    alone = text.partition("N = 24")[0].rpartition("## Protocol")[2]
    assert not [line for line in alone.splitlines() if line.startswith("|") and "**" in line]
    assert "n = 1, no interval" in text


def test_the_table_says_in_which_arithmetic_its_rows_were_trained(tmp_path: Path) -> None:
    root = tmp_path / "two"
    fast = {"device": "cuda:0", "execution": {"precision": "tf32"}}
    for method, result in {"vqgan": fast, "fsq": {"device": "cuda:0"}, "sqvae": {"device": "cpu"}}.items():
        write_cell(root, method, 0, {"psnr": 20.0}, result=result)
    text = write_markdown(build_report(load_experiment(tmp_path, "two")))
    assert "float32 with TF32 in convolutions (tf32): vqgan" in text
    assert "before it was recorded: fsq" in text
    assert "float32 (ieee): sqvae" in text


# --- a name that means harm


def test_a_hostile_name_survives_in_every_table(files: dict[str, str]) -> None:
    shown = HOSTILE.replace("\t", " ")
    assert len(HOSTILE) == 200
    assert shown in {row[0][0] for row in read_markdown(files["md"])[0]}
    assert HOSTILE in {line["label"] for line in csv.DictReader(io.StringIO(files["csv"]))}
    assert '\n"=<script>' in files["csv"]  # quoted: a text, whatever reads it
    assert HOSTILE in {group["label"] for group in json.loads(files["json"])["sections"][0]["groups"]}
    assert "<script>" not in files["tex"]


@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20).filter(lambda text: text.strip()))
@example("\\|")
@example("a_b _c_ **d** <b> &amp; ~~e~~ `f` [g](h) ![i](j) <!-- k --> $l$")
def test_markdown_shows_any_text_as_it_is(text: str) -> None:
    clean = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", " ", text).strip()
    grid = Grid(("a", "b"), (False, True), ((text, "1"),), frozenset({(0, 0)}))
    if not clean:
        return
    ((_, _), (first, _)) = read_markdown(markdown(grid))[0]
    assert first[0].strip() == clean


@given(st.text(max_size=40))
def test_latex_escapes_all_that_means_something_to_it(text: str) -> None:
    plain = re.sub(r"\\vqunicode\{[0-9A-F]+\}\{(.|\n)\}", "", latex_text(text))
    plain = re.sub(r"\\char36|\\[a-zA-Z]+|\\[&%#_{}^~'\"`=.(),]|\^[123\\]", "", plain)
    assert not set(plain) & set("&%#_$^\\")
    assert plain.count("{") == plain.count("}")


def pdf_text(document: Path) -> str:
    """Compile with pdfLaTeX and give back the words. Skips where there is none."""
    if shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex (Debian: texlive-latex-base, texlive-latex-recommended)")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", document.name]
    for _ in range(2):  # the second reads what the first wrote for the list of tables
        done = subprocess.run(
            command, cwd=document.parent, capture_output=True, text=True, errors="replace", check=False
        )
        assert done.returncode == 0, done.stdout[-3000:]
    assert "Overfull" not in done.stdout
    if shutil.which("pdftotext") is None:
        return ""
    return subprocess.run(["pdftotext", document.with_suffix(".pdf"), "-"], capture_output=True, text=True).stdout


def minimal_document(folder: Path) -> Path:
    """A document that inputs report.tex, with the packages that it asks for."""
    main = folder / "main.tex"
    packages = r"\usepackage{booktabs,graphicx,xcolor,amssymb}"
    main.write_text(
        rf"\documentclass{{article}}{packages}\begin{{document}}\listoftables\input{{report}}\end{{document}}"
    )
    return main


def test_latex_compiles_as_it_stands(files: dict[str, str], tmp_path: Path) -> None:
    assert r"\usepackage{booktabs,graphicx,xcolor,amssymb}" in files["tex"]
    assert files["tex"].count(r"\textbf{") > 5
    (tmp_path / "report.tex").write_text(files["tex"])
    text = pdf_text(minimal_document(tmp_path))
    for word in (
        "<script>alert(1)</script>",
        "100%",
        "CUDA out of memory: tried 3",  # the underscore is a rule
        "vaevq without dcr",
    ):
        assert not text or word in text


def test_latex_compiles_whatever_the_characters_and_however_many_rows(tmp_path: Path) -> None:
    signs = [
        chr(c) for c in (*range(0x20, 0x180), *range(0x391, 0x3CA), *range(0x2010, 0x2040), *range(0x2190, 0x2200))
    ]
    signs += list("✓✗界ёא🙂½€™\u0301\u202e\ufffd")
    rows = tuple(("".join(signs[i : i + 8]), "-1.5") for i in range(0, len(signs), 8))
    grid = Grid(("label " * 20, "x"), (False, True), rows, frozenset({(0, 0), (3, 1)}), frozenset({1}))
    text = PREAMBLE + latex_table(grid, "all of 界 & _", "a b_c", ("a note: 50 % ±",))
    (tmp_path / "report.tex").write_text(text)
    assert text.count(r"\begin{table}") == math.ceil(text.count(r"\tabularnewline") / 43)
    assert text.count("a note: 50") == 1
    assert text.rindex("a note: 50") > text.rindex(r"\end{tabular}")
    pdf_text(minimal_document(tmp_path))


# --- the command


def test_all_five_formats_of_four_methods_and_two_seeds(vqbench: Command, tmp_path: Path) -> None:
    methods = [Made(name, name, shift=i) for i, name in enumerate(("vaevq", "vqgan", "fsq", "sqvae"))]
    make_runs(tmp_path / "runs", "only", methods, seeds=(0, 1))
    answer = vqbench("report", "--runs", tmp_path / "runs")  # the name may be left out: there is one
    assert (answer.code, answer.err) == (0, "")
    written = [Path(line) for line in answer.out.splitlines()]
    names = [path.name for path in written]
    assert names[:4] == ["report.md", "report.csv", "report.tex", "report.json"]
    assert names[-1] == "index.html"
    assert all(path.exists() and path.is_relative_to(tmp_path / "runs/only/report") for path in written)


def test_only_failures_are_written_and_told(tmp_path: Path) -> None:
    make_runs(tmp_path, "bad", [Made("vqgan", failed={0: "boom", 1: "bang"})], seeds=(0, 1))
    answer = typed("report", "bad", "--runs", tmp_path, "--format", "md,csv,tex", "--format", "json", "--out", tmp_path)
    assert answer.code == 1
    assert "no cell has scores" in answer.err
    assert "Traceback" not in answer.err
    text = (tmp_path / "report.md").read_text()
    assert "vqgan (failed)" in text
    assert "bang" in text
    assert json.loads((tmp_path / "report.json").read_text())["sections"][0]["groups"][0]["n"] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("mdae",), "no experiment 'mdae'"),
        (("empty",), "no cell of 'empty' has a result"),
        ((), "holds 2 experiments"),
        (("made", "--format", "pdf"), "unknown format 'pdf'"),
        (("made", "--columns", "rfid,pnsr"), "unknown column 'pnsr'; did you mean psnr"),
        (("made", "--experiment", "made"), "--experiment names an experiment of an MLflow server"),
        (("--from-mlflow", "http://127.0.0.1:9"), "which experiment"),
    ],
)
def test_what_cannot_be_reported_on(arguments: tuple[str, ...], said: str, experiment: Path, tmp_path: Path) -> None:
    (experiment.parent / "empty" / "cells").mkdir(parents=True, exist_ok=True)
    answer = typed("report", *arguments, "--runs", experiment.parent, "--out", tmp_path / "out")
    assert answer.code == 2, answer
    assert said in answer.err
    assert answer.err.count("\n") == 2, answer.err
    assert "hint: " in answer.err
    assert not (tmp_path / "out").exists()


def test_half_written_files_are_named_and_stop_nothing(tmp_path: Path) -> None:
    methods = [Made("vqgan"), Made("fsq", "fsq"), Made("vaevq", "vaevq")]
    folder = make_runs(tmp_path, "cut", methods, seeds=(0, 1, 2))
    cut = {
        "spec.json": cell_of(folder, "vqgan", 0),
        "result.json": cell_of(folder, "vqgan", 1),
        "per_image.parquet": cell_of(folder, "fsq", 0),
        "codes.npz": cell_of(folder, "fsq", 1),
    }
    (cut["codes.npz"] / "codes.npz").write_bytes(b"PK\x03\x04" + bytes(60))
    for name, cell in cut.items():
        content = (cell / name).read_bytes()
        (cell / name).write_bytes(content[: len(content) // 2])
    answer = typed("report", "cut", "--runs", tmp_path, "--format", "md,csv,tex,json")
    assert answer.code == 0, answer.err
    assert "Traceback" not in answer.err
    for name, cell in cut.items():
        assert f"{cell.name}: {name} is not whole" in answer.err
        assert f"{name} is not whole" in (folder / "report" / "report.md").read_text().replace("\\", "")
    assert "| vqgan |" in (folder / "report" / "report.md").read_text()


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("result.json", {"scores": {"psnr": math.nan}}, "(psnr: no finite number)"),
        ("result.json", {"scores": {"psnr": "high"}}, "(psnr: no finite number)"),
        ("result.json", {"scores": {}}, "has no scores"),
        ("result.json", {"scores": [1]}, "(scores is not an object)"),
        ("result.json", {"state": "failed", "error": "boom"}, "(error is not an object)"),
        ("result.json", {"collapse": {"reason": "usage fell"}}, "(collapse has no images or no reason)"),
        ("spec.json", {"seed": "zero"}, "(seed is not a whole number)"),
        ("spec.json", {"protocol": {"name": "v1"}}, "(protocol.hash is not text)"),
        ("spec.json", {"paper": 3}, "(paper is not an object)"),
    ],
)
def test_a_file_that_is_json_and_not_ours_is_left_out(
    file: str, change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder = make_runs(tmp_path, "odd", [Made("vqgan"), Made("fsq", "fsq")], seeds=(0, 1))
    path = cell_of(folder, "vqgan") / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    report = build_report(load_experiment(tmp_path, "odd"))
    (note,) = report.notes
    assert note.startswith(f"left out, {path.parent.name}: {file}"), note
    assert note.endswith(said)
    assert {row.label: row.summary.seeds for row in report.sections[0].rows} == {"fsq": 2, "vqgan": 1}


def test_a_copy_of_a_cell_is_no_seed_and_a_result_of_nothing_is_named(tmp_path: Path) -> None:
    folder = make_runs(tmp_path, "copied", [Made("vqgan"), Made("fsq", "fsq")], seeds=(0, 1))
    vqgan, fsq = cell_of(folder, "vqgan"), cell_of(folder, "fsq")
    shutil.copytree(vqgan, folder / "cells" / "a-backup")  # before the original, by name
    (fsq / "spec.json").unlink()
    found = load_experiment(tmp_path, "copied")
    assert {group.label: group.summary.seeds for group in found.groups} == {"fsq": 1, "vqgan": 2}
    assert found.notes == [
        f"left out, a-backup: the same cell as {vqgan.name}",
        f"left out, {fsq.name}: there is a result but no spec.json, which says of what",
    ]


def test_a_small_difference_that_is_certain_does_not_read_as_zero() -> None:
    less = Difference(-0.00496, -0.0072, -0.0027, 1e-5, 1, 192, "images")
    finding = Pair("all", "without dcr", less, 2e-5, "worse")
    row = SimpleNamespace(title="without dcr", effects={"psnr": finding})
    (line,) = delta_table([row]).rows  # type: ignore[list-item]
    assert line[2:4] == ("-0.0050", "-0.0072 to -0.0027")


def test_a_published_number_by_another_definition_does_not_stand_under_ours(tmp_path: Path) -> None:
    folder, values = make_runs(tmp_path, "made", (Made("vaevq", "vaevq"),), seeds=(0,)), {}
    values |= {"psnr_float": 3.0, "rfid by OpenAI's evaluator": 2.19, "rfid": 1.5, "rfid_float": 1.25, "nothing": 9.0}
    numbers = [
        {"metric": what, "value": value, "measured_on": "ImageNet", "source": "1"} for what, value in values.items()
    ]
    edit_specs(folder, lambda spec: spec.update(paper={"published": numbers}))
    scores, *_, listed = read_markdown(write_markdown(build_report(load_experiment(tmp_path, "made"), published=True)))
    stated = {title: text for (title, _), (text, _) in zip(scores[0], scores[1], strict=True) if "published" in title}
    assert list(stated.items()) == [
        ("rFID published", "1.50 [a]"),
        ("rFID by OpenAI's evaluator published", "2.19 [a]"),
        ("rFID (floats) published", "1.25 [a]"),
        ("PSNR (floats) published", "3.00 [a]"),
    ]
    assert listed[1][2][0] == "PSNR (floats) 3.00, rFID by OpenAI's evaluator 2.19, rFID 1.50, rFID (floats) 1.25"
    # where floats are what is measured, the number of floats stands beside them, and ours nowhere
    write_cell(tmp_path / "floats", "bsq", 0, {"rfid_float": 9.0}, paper={"published": numbers})
    (scores, listed) = read_markdown(write_markdown(build_report(load_experiment(tmp_path, "floats"), published=True)))
    assert [title for title, _ in scores[0] if "published" in title] == ["rFID (floats) published"]
    assert listed[1][2][0] == "rFID (floats) 1.25"


def test_published_that_finds_nothing_says_so(experiment: Path) -> None:
    report = build_report(load_experiment(experiment.parent, experiment.name), ["usage"], published=True)
    assert "- no published numbers" in markdown_document(report)
    assert "no published numbers" not in markdown_document(replace(report, published=False))


def test_a_name_does_not_turn_the_numbers_beside_it_round() -> None:
    table = markdown(Grid(("method", "rFID"), (False, True), (("\u202eevil\u2067", "12.34"),)))
    assert table.splitlines()[-1] == "| evil | 12.34 |"


def test_other_training_images_are_another_row(tmp_path: Path) -> None:
    folder = make_runs(tmp_path, "two", [Made("vqgan")], seeds=(0, 1))
    changed = cell_of(folder, "vqgan") / "spec.json"
    spec = json.loads(changed.read_text())
    changed.write_text(json.dumps({**spec, "dataset": {**spec["dataset"], "training_digest": "2" * 64}}))
    labels = [group.label for group in load_experiment(tmp_path, "two").groups]
    assert labels == ["vqgan training_digest=11111111", "vqgan training_digest=22222222"]


def test_cells_around_another_artifact_are_another_row_and_its_place_counts_for_nothing(tmp_path: Path) -> None:
    around = {"rule": "file", "shape": [16, 8], "images": 0, "features": "", "field": "centres"}
    for seed, path, digest, sha256 in (
        (0, "/a.npy", "1" * 64, "x"),
        (1, "/b.npy", "1" * 64, "y"),
        (2, "/b.npy", "2" * 64, "y"),
    ):
        more = {"artifact": {**around, "path": path, "digest": digest}, "config": {"centres": path, "beta": 0.25}}
        write_cell(
            tmp_path / "runs" / "x", "vqgan_lc", seed, {"psnr": 20.0}, result={"artifact_sha256": sha256}, **more
        )
    report = build_report(load_experiment(tmp_path / "runs", "x"))
    (section,) = report.sections
    assert sorted(len(group.cells) for group in section.rows) == [1, 2]
    assert "its cells are built around 2 arrays of one rule, made at different times or places" in write_markdown(
        report
    )


def test_what_a_switch_leaves_nothing_to_be_built_around_is_of_the_family(tmp_path: Path) -> None:
    around = {"rule": "patch_centres", "shape": [16, 768], "images": 512, "field": "", "digest": "1" * 64}
    for on, more in ((True, {"artifact": around}), (False, {})):
        components = {"pretrained": on, "frozen": True}
        config = {**components, "images": 512}
        spec = {"config": config, "components": components, "part_of": {"images": ["pretrained"]}}
        label = "vqgan_lc" if on else "vqgan_lc without pretrained"
        write_cell(tmp_path / "x", "vqgan_lc", 0, {"psnr": 20.0 + on}, label=label, **spec, **more)
    (section,) = load_experiment(tmp_path, "x").sections
    assert [[group.label for group in family] for family in families(section.groups)] == [
        ["vqgan_lc", "vqgan_lc without pretrained"]
    ]


def test_python_users_have_the_same(experiment: Path, tmp_path: Path) -> None:
    (written,) = vqbench.report("made", runs=experiment.parent, formats="md", out=tmp_path, columns=["psnr"])
    assert written == tmp_path / "report.md"
    assert "rFID" not in read_markdown(written.read_text())[0][0][1][0]


# --- the same tables wherever the results lie


def tables_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("report.*"))}


def test_tables_depend_on_results_alone_and_come_back_from_mlflow(tmp_path: Path) -> None:
    some = [made for made in METHODS if made.label in ("vaevq", "vaevq without dcr", "vqgan", HOSTILE)]
    experiment = make_runs(tmp_path / "runs", "made", some, seeds=(0, 1))
    edit_specs(experiment, lambda spec: spec.update(paper=PAPER))
    track(experiment)
    runs = tmp_path / "elsewhere"
    folder = Path(shutil.copytree(experiment, runs / "made"))
    formats = ("--format", "md,csv,tex,json", "--published")
    here = typed("report", "made", "--runs", experiment.parent, *formats, "--out", tmp_path / "here")
    for path in folder.rglob("*"):
        os.utime(path, (1, 1))
    there = typed("report", "made", "--runs", runs, *formats, "--out", tmp_path / "there")
    assert here.code == there.code == 0
    assert tables_of(tmp_path / "here") == tables_of(tmp_path / "there")
    store = f"sqlite:///{tmp_path / 'store.db'}"
    assert typed("sync", "--runs", runs, MLFLOW_TRACKING_URI=store).code == 0
    shutil.rmtree(folder / "cells")  # the artifacts of a local store are beside them
    fetched = typed("report", "--from-mlflow", store, "--experiment", "made", *formats[:1], "md,csv,tex,json,html",
                      *formats[2:], cwd=tmp_path)  # fmt: skip
    assert fetched.code == 0, fetched.err
    page = (tmp_path / "made-report" / "index.html").read_text()
    assert "<code>vqbench report made --from-mlflow sqlite:///store.db</code>" in page
    assert "MLFLOW_TRACKING_URI=sqlite:///store.db vqbench ui" in page
    assert "vqbench-report-" not in page  # the folder that the files were fetched into
    assert tables_of(tmp_path / "made-report") == tables_of(tmp_path / "here")
    shutil.rmtree(folder)
    gone = typed("report", "made", "--from-mlflow", store, *formats, cwd=tmp_path)
    assert gone.code == 2
    assert "the files of 'made' are not where MLflow" in gone.err


def test_a_copy_without_weights_is_an_experiment_of_its_own(experiment: Path, tmp_path: Path) -> None:
    formats, kept = ("--format", "md,csv,tex,json"), tmp_path / "kept" / "made"
    made = typed("report", "made", "--runs", experiment.parent, "--format", "cells", "--out", kept)
    assert made.code == 0, made.err
    assert made.out.split() == [str(kept / "cells")]
    copied = {path.name for path in kept.rglob("*") if path.is_file()}
    assert copied <= {"spec.json", "result.json", "metrics.jsonl", "per_image.parquet", "codes.npz"}
    assert {"spec.json", "result.json", "per_image.parquet"} <= copied
    for runs, out in ((experiment.parent, "here"), (kept.parent, "there")):
        assert typed("report", "made", "--runs", runs, *formats, "--out", tmp_path / out).code == 0
    assert tables_of(tmp_path / "here") == tables_of(tmp_path / "there")
    again = typed("report", "made", "--runs", kept.parent, "--format", "cells", "--out", kept)
    assert again.code == 0  # onto itself


def test_a_copy_does_not_mix_two_results_of_one_cell(tmp_path: Path) -> None:
    for name, psnr in (("a", 20.0), ("b", 25.0)):
        write_cell(tmp_path / name, "vqgan", 0, {"psnr": psnr})
    both = tmp_path / "both"
    assert typed("report", "a", "--runs", tmp_path, "--format", "cells", "--out", both).code == 0
    answer = typed("report", "b", "--runs", tmp_path, "--format", "cells", "--out", both)
    assert answer.code == 2
    assert "has another result of this cell than" in answer.err
    (group,) = load_experiment(tmp_path, "both").groups
    assert group.summary.estimates["psnr"].mean == 20.0


def test_copies_of_several_make_one_experiment(tmp_path: Path) -> None:
    for name, seed, psnr in (("a", 0, 20.0), ("b", 1, 22.0)):
        write_cell(tmp_path / name, "vqgan", seed, {"psnr": psnr})
        typed("report", name, "--runs", tmp_path, "--format", "cells", "--out", tmp_path / "both")
    (group,) = load_experiment(tmp_path, "both").groups
    assert group.summary.estimates["psnr"].mean == 21.0
    assert group.summary.seeds == 2


def test_what_a_recipe_asks_of_all_is_said_once_and_widths_come_in_their_order(tmp_path: Path) -> None:
    recipe = load_recipe("tiny").as_dict()
    for dim in (8, 16, 64):
        for method, field in (("vqgan", "dim"), ("lfq", "")):
            config = {field: dim} if field else {}
            more = {"recipe": {**recipe, "codebook_dim": dim}, "config": config}
            write_cell(tmp_path / "x", method, 0, {"psnr": 20.0}, **more)
    write_cell(tmp_path / "x", "vqgan", 0, {"psnr": 20.0}, recipe={**recipe, "codebook_dim": 16}, config={"dim": 8})
    (section,) = build_report(load_experiment(tmp_path, "x"), sort="method").sections
    assert [group.label for group in section.rows] == [
        *(f"lfq recipe.codebook_dim={dim}" for dim in (8, 16, 64)),
        "vqgan dim=8 recipe.codebook_dim=8", "vqgan dim=8 recipe.codebook_dim=16",
        "vqgan dim=16 recipe.codebook_dim=16", "vqgan dim=64 recipe.codebook_dim=64",
    ]  # fmt: skip
    for beta, dim in ((0.1, 8), (0.2, 64)):  # which goes with another setting, and is not said by it
        more = {"recipe": {**recipe, "codebook_dim": dim}, "config": {"beta": beta}}
        write_cell(tmp_path / "y", "lfq", 0, {"psnr": 20.0}, **more)
    (apart,) = load_experiment(tmp_path, "y").sections
    assert [group.label for group in apart.groups] == [
        "lfq beta=0.1 recipe.codebook_dim=8", "lfq beta=0.2 recipe.codebook_dim=64"
    ]  # fmt: skip
    shutil.rmtree(next(path for path in (tmp_path / "x" / "cells").iterdir() if _asks(path, 16, 8)))
    (section,) = build_report(load_experiment(tmp_path, "x"), sort="method").sections
    assert [group.label for group in section.rows][3:] == ["vqgan dim=8", "vqgan dim=16", "vqgan dim=64"]


def _asks(cell: Path, asked: int, dim: int) -> bool:
    spec = json.loads((cell / "spec.json").read_text())
    return spec["recipe"]["codebook_dim"] == asked and spec["config"].get("dim") == dim


def test_several_experiments_are_one_report_and_no_comparison(tmp_path: Path) -> None:
    """Of one protocol too: each keeps its own rows, and a method that both have stands in both."""
    for name, more in (("first", 0.0), ("the second", 5.0)):
        for seed in (0, 1, 2):
            for method, psnr in (("vqgan", 20.0), ("fsq", 21.0)):
                write_cell(tmp_path / name, method, seed, {"psnr": psnr + more + seed / 10})
    answer = typed("report", "first", "the second", "--runs", tmp_path, "--out", tmp_path / "out")
    assert answer.code == 0, answer.err
    assert "2 experiments (first, the second): each has tables of its own" in answer.err
    found = read_markdown((tmp_path / "out" / "report.md").read_text())
    assert [[cells[0][0] for cells in table[1:]] for table in found] == [["fsq", "vqgan"]] * 2
    assert [table[1][1][0].split()[0] for table in found] == ["21.10", "26.10"]
    lines = list(csv.DictReader((tmp_path / "out" / "report.csv").read_text().splitlines()))
    assert [line["experiment"] for line in lines] == ["first"] * 2 + ["the second"] * 2
    data = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [section["experiment"] for section in data["sections"]] == ["first", "the second"]
    assert all(len(section["comparisons"]["psnr"]["pairs"]) == 1 for section in data["sections"])
    labels = re.findall(r"\\label\{([^}]*)\}", (tmp_path / "out" / "report.tex").read_text())
    assert len(labels) == len(set(labels)) == 2
    names = [path.name for path in (tmp_path / "out" / "figures").glob("comparison-*.png")]
    assert len(names) == 2
    page = (tmp_path / "out" / "index.html").read_text()
    assert "vqbench report first &#x27;the second&#x27;" in page
    assert [text.strip() for text in re.findall(r"<h2[^>]*>([^<]*)<", page)] == ["first", "the second"]


def test_of_several_experiments_each_must_be_there(tmp_path: Path) -> None:
    write_cell(tmp_path / "first", "vqgan", 0, {"psnr": 20.0})
    nowhere = typed("report", "first", "fist", "--runs", tmp_path)
    assert nowhere.code == 2
    assert "--out DIR" in nowhere.err
    answer = typed("report", "first", "fist", "--runs", tmp_path, "--out", tmp_path / "out")
    assert answer.code == 2
    assert "no experiment 'fist'" in answer.err
    assert "did you mean first?" in answer.err
    assert not (tmp_path / "out").exists()


def track(experiment: Path) -> None:
    """Give a made experiment the record of the command that would have trained it, so that `sync` sends it."""
    (experiment / "commands").mkdir()
    cells = sorted(path.parent for path in experiment.glob("cells/*/spec.json"))
    protocol = json.loads((cells[0] / "spec.json").read_text())["protocol"]
    record = {
        "id": "made", "kind": "run", "name": "0001 run", "cells": [cell.name for cell in cells], "command": "vqbench",
        "experiment": experiment.name, "methods": "vqgan", "dataset": "photos", "recipe": "tiny", "seeds": "0,1,2",
        "protocol": protocol["hash"], "note": "protocol of the test\n  48 images", "started": 1_760_000_000.5,
        "state": "FINISHED",
    }  # fmt: skip
    write_json(experiment / "commands" / "0001.json", record)
    for i, cell in enumerate(cells):
        label = json.loads((cell / "spec.json").read_text())["label"]
        tracked = {"attempt": f"a{i}", "command": "0001", "label": label, "started": 1_760_000_000.0 + i}
        write_json(cell / "tracking.json", tracked)
        write_arrays_atomically(
            cell / "codes.npz", histogram=np.full((1, 8), 4), indices=np.arange(32).reshape(4, 8, 1) % 8
        )


# --- what methods declare


@pytest.fixture(scope="module")
def specs() -> dict[str, dict[str, Any]]:
    """Specs of a plan, by label, made twice: the second time the choices are remembered."""
    off = Variant("vaevq@paper", frozenset({"dcr"}), "without dcr")
    asked = ("vaevq", "vaevq@paper", "vaevq@released", "vqgan", "vqgan@legacy", "fsq", "sqvae")
    request = RunRequest(methods=asked, dataset="photos", validation_images=4)

    def planned() -> Plan:
        found = resolve(request)
        return make_plan(replace(found, choices=(*found.choices, choose_method(off, found.recipe, {}))), ("psnr",))

    first, again = planned(), planned()
    assert [cell.spec for cell in first.cells] == [cell.spec for cell in again.cells]
    return {cell.label: cell.spec for cell in first.cells}


def test_a_spec_holds_what_the_paper_says(specs: dict[str, dict[str, Any]]) -> None:
    papers = {label: spec["paper"] for label, spec in specs.items()}
    stated = {(n["metric"], n["value"]) for n in papers["vaevq"]["published"]}
    assert {("rfid", 1.14), ("rfid", 2.5), ("psnr", 22.05), ("ssim", 0.68), ("usage", 0.999)} <= stated
    assert papers["vaevq@paper"]["published"] == papers["vaevq"]["published"]
    assert papers["vaevq@released"] == {"published": [], "rows": False, "row": None}
    assert papers["vaevq"]["row"] == {"name": "Full", "published": {"rfid": {"ImageNet 256 px": 1.14, "BraTS24": 2.5}}}
    assert papers["without dcr"]["row"]["name"] == "M2"
    assert papers["without dcr"]["published"] == []  # it is not the method of the paper any more
    assert [n["value"] for n in papers["vqgan@legacy"]["published"]] == [7.94, 4.98]
    assert papers["sqvae"]["published"] == []
    assert all({"metric", "value", "measured_on", "source"} == set(n) for p in papers.values() for n in p["published"])
    assert specs["vaevq"]["part_of"]["dcr_weight"] == ["dcr"]


def test_show_lists_published_numbers() -> None:
    answer = typed("show", "vaevq")
    said = " ".join(answer.out.split())
    assert "published for vaevq, vaevq@first, vaevq@paper: rFID 1.14 on ImageNet 256 px, K 16384" in said
    assert "(table 1 of the paper)" in said


def test_a_published_number_of_no_metric_is_the_authors_mistake(tmp_path: Path) -> None:
    plugin = tmp_path / "odd_vq.py"
    plugin.write_text(
        "from vqbench.methods.vqgan import VQGAN\n"
        "from vqbench.quantizer import Published\n"
        "from vqbench.registry import METHODS\n"
        '@METHODS.register("odd")\n'
        "class Odd(VQGAN):\n"
        '    published = (Published("fid", 1.0, "ImageNet", "table 1"),)\n'
    )
    answer = typed("show", "odd", "--plugin", plugin)
    assert answer.code == 2
    assert "unknown metric in the published numbers of odd 'fid'; did you mean rfid or kid?" in answer.err


def test_sections_are_what_the_experiment_says(report: Report) -> None:
    assert isinstance(report.sections[0].section, Section)
    assert report.notes == ()


def scored(tmp_path: Path, n_images: int = 48, **spec: Any) -> Path:
    """An experiment whose cells have every score of images; what else is in their specs is given."""
    scores = {"rfid": 9.5, "kid": 0.0123, "psnr": 20.0, "usage": 0.5, "perplexity": 9.0, "dead_codes": 3.0, "bpp": 0.5}
    for method in ("vqgan", "fsq"):
        for seed in (0, 1):
            write_cell(tmp_path / "made", method, seed, {k: v + seed / 100 for k, v in scores.items()},
                       n_images=n_images, **spec)  # fmt: skip
    return tmp_path


@pytest.mark.parametrize(
    ("spec", "more"),
    [
        ({}, []),
        ({"metrics": ["kid", "dead_codes"]}, ["KID ↓", "dead codes ↓"]),  # by an older version
        ({"metrics": [*IN_PROTOCOL], "asked": []}, []),
        ({"metrics": [*IN_PROTOCOL], "asked": ["dead_codes", "bpp"]}, ["dead codes ↓", "bpp"]),
    ],
)
def test_a_report_shows_what_its_cells_were_asked_for(tmp_path: Path, spec: dict[str, Any], more: list[str]) -> None:
    report = build_report(load_experiment(scored(tmp_path, **spec), "made"))
    (section,) = report.sections
    titles = [column.title for column in section.columns]
    assert [t for t in titles if t in ("KID ↓", "dead codes ↓", "bpp")] == more
    assert {"rFID ↓", "PSNR ↑", "usage ↑", "perplexity ↑"} <= set(titles)
    assert all(f"| {title} " in markdown_document(report) for title in more)


def test_what_a_finished_cell_is_asked_for_later_is_shown_too(tmp_path: Path) -> None:
    from vqbench.running.run import _remember

    folder = write_cell(
        tmp_path / "made", "vqgan", 0, {"kid": 0.01, "psnr": 20.0}, metrics=[*IN_PROTOCOL], asked=["psnr"]
    )
    spec = read_json(folder / "spec.json") or {}
    cell = SimpleNamespace(folder=CellFolder(folder), spec={**spec, "asked": ["kid"]})
    _remember([cell])  # type: ignore[list-item]
    assert read_json(folder / "spec.json") == {**spec, "asked": ["psnr", "kid"]}
    assert "KID ↓" in markdown_document(build_report(load_experiment(tmp_path, "made")))


CAUTION = "rFID of 48 images is biased upwards: of fewer than 2,048 the covariance of its features is singular"


def test_rfid_of_few_images_carries_a_caution_wherever_it_is_shown(tmp_path: Path) -> None:
    experiment = load_experiment(scored(tmp_path), "made")
    report = build_report(experiment)
    files = {
        file.name: file.read_text() for file in write_report(report, tmp_path / "out", ("md", "csv", "tex", "json"))
    }
    files["page"] = page_html(report, [], {})
    drawn = comparison(report.sections[0])
    assert drawn is not None
    assert CAUTION in drawn.caption
    assert all(CAUTION in text for text in files.values()), [
        name for name, text in files.items() if CAUTION not in text
    ]
    compared = vqbench.compare("vqgan", "fsq", name="made", runs=tmp_path)
    assert compared.set_index("metric")["caution"].dropna().index.tolist() == ["rfid"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        print_versus(compare_groups(experiment, "vqgan", "fsq"))
    assert CAUTION[:60] in out.getvalue()
    rows = [row for group in experiment.groups for row in group.rows]
    assert all(row["cautions"]["rfid"].startswith(CAUTION) for row in rows)
    assert CAUTION in markdown_table(summarise(rows), "p", rows[0]["cautions"].values())
    with contextlib.redirect_stderr(io.StringIO()) as err:
        view, folder = TerminalView(), CellFolder(Path(rows[0]["path"]))
        cell = Cell(rows[0]["method"], {**folder.spec, "asked": []}, folder, "missing")
        view.cell_started(cell, 1, 1)
        view.cell_finished(cell, rows[0])
    assert f"rfid {rows[0]['scores']['rfid']:.3f} (of few images), psnr" in " ".join(err.getvalue().split())
    assert build_report(experiment, ["psnr"]).sections[0].columns[0].key == "psnr"
    assert "rFID of" not in markdown_document(build_report(experiment, ["psnr"]))


def test_continuous_scores_are_columns_that_rank_nobody(tmp_path: Path) -> None:
    beside = {"psnr_continuous": 22.0, "rfid_continuous": 8.5}
    for method, more in (("vaevq", beside), ("vqgan", {})):
        for seed in (0, 1):
            write_cell(tmp_path / "made", method, seed, {"rfid": 9.5 + seed, "psnr": 20.0 + seed, **more})
    experiment = load_experiment(tmp_path, "made")
    report = build_report(experiment)
    assert [column.title for column in report.sections[0].columns[:3]] == ["rFID ↓", "PSNR ↑", "PSNR cont."]
    assert "| vqgan | **10.00 ± 6.35** | **20.50 ± 6.35** | – |" in markdown_document(report)
    assert set(report.sections[0].peers[0].comparisons) == {"rfid", "psnr"}
    page = page_html(report, [], {})
    assert DEFINITIONS["psnr_continuous"].sentence in page
    both = build_report(experiment, ["rfid_continuous", "psnr_continuous"], "psnr_continuous")
    assert "| vaevq | 8.50 ± 0.00 | 22.00 ± 0.00 | 2 |" in markdown_document(both)
    assert CAUTION.replace("of 48", "of 30") in markdown_document(both)
    asked = [summary for group in experiment.groups for summary in summarise(group.rows, ["rfid"])]
    assert "rFID cont." in [column.title for column in shown_columns(asked)]
    with pytest.raises(UsageError, match="psnr_continuous describes a tokenizer and does not rank it"):
        compare_groups(experiment, "vaevq", "vqgan", ["psnr_continuous"])
    (compared,) = compare_groups(experiment, "vaevq", "vqgan").parts
    assert [found.metric for found in compared.contrasts] == ["rfid", "psnr"]


def test_rfid_of_enough_images_carries_none(tmp_path: Path) -> None:
    experiment = load_experiment(scored(tmp_path, n_images=2048), "made")
    page = page_html(build_report(experiment), [], {})
    assert "biased" not in page.lower().replace("unbiased", "")  # as their definitions say of estimators
    assert all("cautions" not in row for group in experiment.groups for row in group.rows)
    assert cautions(IN_PROTOCOL, 2047).keys() == {"rfid"}
    assert cautions(IN_PROTOCOL, 2048) == {}


# --- rows of several sizes


def test_rows_of_as_many_tokens_stand_together_where_all_are_of_one_size(tmp_path: Path) -> None:
    for label, tokens, psnr in (("a", 256, 30.0), ("b", 64, 20.0), ("c", 256, 10.0), ("d", 64, 25.0)):
        known = {"kind": "checkpoint", "name": label, "path": f"/x/{label}.ckpt", "sha256": label * 64}
        sizes = {"bits_per_image": 2304, "tokens_per_image": tokens}
        write_cell(tmp_path / "x", label, 0, {"psnr": psnr}, result=sizes, label=label, pretrained=known)
    experiment = load_experiment(tmp_path, "x")
    assert [group.label for group in build_report(experiment).sections[0].rows] == ["d", "b", "a", "c"]
    assert [group.label for group in build_report(experiment, sort="psnr").sections[0].rows] == ["a", "d", "b", "c"]


@pytest.fixture(scope="module")
def of_sizes(tmp_path_factory: pytest.TempPathFactory) -> Report:
    runs = tmp_path_factory.mktemp("sizes")
    return build_report(load_experiment(make_sizes(runs, "sizes").parent, "sizes"))


def test_what_was_not_trained_here_is_tested_against_rows_of_its_size(of_sizes: Report) -> None:
    """More bits are an easier task: over all rows, `theirs` and llamagen alone would be bold."""
    (section,) = of_sizes.sections
    sizes = [[group.label for group in peers.rows] for peers in section.peers]
    assert sizes == [["rqvae", "vqgan", "taming"], ["titok", "fsq"], ["llamagen"], ["theirs"]]
    assert [group.label for group in section.rows] == [*(label for size in sizes for label in size), "sqvae"]
    psnr = [peers.comparisons.get("psnr") for peers in section.peers]
    assert [found and (found.best, set(found.unseparated)) for found in psnr] == [
        ("rqvae", {"rqvae"}), ("titok", {"titok", "fsq"}), None, None
    ]  # fmt: skip
    for found, size in zip(psnr, sizes, strict=True):
        pairs = found.pairs if found else ()
        assert {frozenset((pair.base, pair.other)) for pair in pairs} == {*map(frozenset, combinations(size, 2))}
        assert [pair.p for pair in pairs] == holm([pair.difference.p for pair in pairs])
    sorted_otherwise = build_report(of_sizes.experiment, sort="method").sections[0]
    assert [[group.label for group in peers.rows] for peers in sorted_otherwise.peers] == [
        ["rqvae", "taming", "vqgan"], ["fsq", "titok"], ["llamagen"], ["theirs"]
    ]  # fmt: skip


def test_every_file_says_what_was_tested_against_what(of_sizes: Report, tmp_path: Path) -> None:
    written = write_report(of_sizes, tmp_path, ("md", "csv", "tex", "json"))
    text = {path.suffix[1:]: path.read_text(encoding="utf-8") for path in written}
    titles, *rows = read_markdown(text["md"])[0]
    psnr = titles.index(("PSNR ↑", ""))
    assert {row[0][0] for row in rows if row[psnr][1] == "strong"} == {"rqvae", "titok", "fsq"}
    assert len(re.findall(r"\\textbf{2\d\.", text["tex"])) == 3
    for said in (
        "Only rows of about the same bits per image are compared. 3 of 5 methods are not separated from the best",
        "PSNR at 576 to 595 bits/image: rqvae is best (",
        "PSNR at 610 to 620 bits/image: titok has the best mean (",
        "a size begins where one takes more than 5 % above the first of the size before; between sizes nothing is",
        "tested against each other: rqvae, vqgan, taming (576 to 595 bits/image); titok, fsq (610 to 620 bits/image)",
        "not tested: llamagen (896 bits/image: no other row is of its size); theirs (unknown bits/image: it has no",
        "bold: best of its size, or not separated from the best (p ≥ 0.05 after Holm over all pairs of the metric and",
    ):
        assert said in text["md"]
    lines = {line["label"]: line for line in csv.DictReader(io.StringIO(text["csv"]))}
    tied = {"rqvae": "true", "vqgan": "false", "taming": "false", "titok": "true", "fsq": "true"}
    assert {label: line["psnr_tied"] for label, line in lines.items() if line["psnr_tied"]} == tied
    assert [lines[label]["size"] for label in ("rqvae", "fsq", "llamagen", "theirs")] == ["576.0", "610.0", "896.0", ""]
    (section,) = json.loads(text["json"])["sections"]
    assert section["comparisons"] == {}
    assert [(found["size"], found.get("untested"), [*found["comparisons"]]) for found in section["sizes"]] == [
        (576.0, None, ["usage", "psnr"]), (610.0, None, ["usage", "psnr"]),
        (896.0, "no other row is of its size", []), (None, "it has no codes", []),
    ]  # fmt: skip
    assert [group["label"] for group in section["groups"] if "psnr" in group["tied"]] == ["rqvae", "titok", "fsq"]


def test_the_figure_of_differences_has_a_best_of_each_size(of_sizes: Report) -> None:
    picture = comparison(of_sizes.sections[0])
    assert picture is not None
    (axes,) = picture.figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["rqvae", "vqgan", "taming", "titok", "fsq"]
    assert [line.get_label() for line in axes.lines if line.get_marker() == "D"] == ["rqvae", "titok"]
    assert "the best mean at its bits per image" in picture.caption


def test_sizes_are_told_only_where_they_part_rows(tmp_path: Path) -> None:
    """Not where all rows take about the same, nor among what was all trained here; or nothing is left to compare."""

    def left(name: str, *labels: str) -> Report:
        for path in make_sizes(tmp_path, name).glob("cells/*"):
            if labels and not path.name.startswith(labels):
                shutil.rmtree(path)
        return build_report(load_experiment(tmp_path, name))

    text = write_markdown(left("one", "taming", "rqvae", "vqgan", "sqvae"))
    assert "after Holm over all pairs of the metric)" in text
    assert "size" not in text
    assert " bits/image: " not in text
    text = write_markdown(left("alone", "vqgan", "llamagen", "theirs"))
    assert "**There is nothing to compare: no two rows take about the same bits per image.**" in text
    assert "no two rows are of one size: there is nothing to compare, so nothing is bold" in text
    edit_specs(left("own").experiment.folder, lambda spec: spec.pop("pretrained", None))
    (section,) = build_report(load_experiment(tmp_path, "own")).sections
    assert not section.of_sizes
    assert section.peers[0].comparisons["psnr"].best == "theirs"


def test_two_rows_of_different_sizes_are_compared_where_somebody_asks(of_sizes: Report) -> None:
    bits = {"vqgan": "576", "rqvae": "595", "fsq": "610", "theirs": "unknown"}
    for a, b, of_one_size in (("vqgan", "rqvae", True), ("rqvae", "fsq", False), ("vqgan", "theirs", False)):
        compared = compare_groups(of_sizes.experiment, a, b)
        (part,) = compared.parts
        assert part.overall.startswith(f"{a} is ")
        with contextlib.redirect_stdout(io.StringIO()) as out:
            print_versus(compared)
        said = f"{a} takes {bits[a]} bits/image, and {b} takes {bits[b]} bits/image: more bits are an easier task"
        assert (said in " ".join(out.getvalue().split())) != of_one_size


def test_the_page_has_what_its_table_puts_above_the_rows_of_each_size(of_sizes: Report) -> None:
    page = page_html(of_sizes, [], {})
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    (section,) = json.loads(found)["sections"]
    assert section["sizes"] == [
        "576 to 595 bits/image", "610 to 620 bits/image", "896 bits/image: not tested, no other row is of its size",
        "unknown bits/image: not tested, it has no codes",
    ]  # fmt: skip
    assert [group["size"] for group in section["groups"]] == [0, 0, 0, 1, 1, 2, 3, 4]
    assert [group["label"] for group in section["groups"] if "psnr" in group["tied"]] == ["rqvae", "titok", "fsq"]
