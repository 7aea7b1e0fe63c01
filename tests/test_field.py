"""Tables of the studies in docs/ follow from what is committed beside them, by the command that is printed there."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from pathlib import Path

import pytest
from helpers.commands import typed

ROOT = Path(__file__).parents[1]
STUDY = ROOT / "docs" / "field"
OF_WORDS = ("Paper and code", "The forms", "Which claims hold, fail or stay open")
"""Sections of docs/vaevq.md whose tables are words, or are read off the others."""


def tables(text: str) -> list[tuple[str, str]]:
    """(heading, table) of each table, whole, in the order of a page."""
    found, heading = [], ""
    for part in re.findall(r"^#.*$|(?:^\|.*\n)+", text, re.MULTILINE):
        if part.startswith("#"):
            heading = part.lstrip("# ")
        else:
            found.append((heading, part))
    return found


def page_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def missing(wanted: list[tuple[str, str]], made: list[str]) -> list[str]:
    """The headings of tables that were not made, or not in this order."""
    there = iter(made)
    return [heading for heading, table in wanted if not any(table == other for other in there)]


def command(page: str) -> list[str]:
    """The command of a page that makes its tables from docs/field."""
    text = page_of(page).replace("\\\n", " ")
    (line,) = re.findall(r"^vqbench report .*--runs docs/field.*$", text, re.MULTILINE)
    return shlex.split(line)


def made_again(page: str, folder: Path, *more: object) -> list[str]:
    """The tables of report.md that its command writes."""
    words = command(page)
    words[words.index("--out") + 1] = str(folder)
    answer = typed(*words[1:], *more, cwd=ROOT)
    assert answer.code == 0, answer.err
    assert not re.search("gone|left out|whole|no result", answer.err), answer.err
    return [table for _, table in tables((folder / "report.md").read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", ["README.md", "docs/field.md"])
def test_the_field_is_made_again_from_its_cells(page: str, tmp_path: Path) -> None:
    made = made_again(page, tmp_path, "--format", "md")
    wanted = [(heading, table) for heading, table in tables(page_of(page)) if "rFID" in table or page != "README.md"]
    assert wanted
    assert missing(wanted, made) == []


def test_what_the_field_says_of_two_methods_is_what_compare_says() -> None:
    """Each quoted sentence, under the command that prints it."""
    blocks = re.findall(
        r"^```text\n(vqbench compare [^`]*)\n```\n\n((?:^>.*\n)+)", page_of("docs/field.md"), re.MULTILINE
    )
    assert blocks
    for line, quoted in blocks:
        answer = typed(*shlex.split(line)[1:], cwd=ROOT)
        assert answer.code == 0, answer.err
        printed = " ".join(answer.out.split())
        for sentence in re.sub(r"^> ?", "", quoted, flags=re.MULTILINE).split("\n\n"):
            assert " ".join(sentence.split()) in printed


def test_vaevq_is_made_again_from_its_cells_and_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = page_of("docs/vaevq.md")
    of_cells = made_again("docs/vaevq.md", tmp_path, "--format", "md")
    for script in re.findall(r"^python (tests/studies/\w+\.py)$", text, re.MULTILINE):
        runpy.run_path(str(ROOT / script), run_name="__main__")
        print()
    of_data = [table for _, table in tables(capsys.readouterr().out)]
    assert len(of_data) == 3
    wanted = [(heading, table) for heading, table in tables(text) if heading not in OF_WORDS]
    assert missing([pair for pair in wanted if pair[1] not in of_data], of_cells) == []
    assert {table for _, table in wanted} >= {*of_data}


def test_what_is_committed_has_no_weights_and_no_pictures() -> None:
    kept = {path.name for path in STUDY.glob("*/cells/*/*")}
    assert kept == {"spec.json", "result.json", "metrics.jsonl", "per_image.parquet", "codes.npz"}


@pytest.mark.slow
def test_the_page_of_the_whole_study_is_made_too(tmp_path: Path) -> None:
    made_again("docs/field.md", tmp_path)
    made, kept = ((place / "index.html").read_text(encoding="utf-8") for place in (tmp_path, STUDY))
    assert "<html" in made
    assert _data(made) == _data(kept), "docs/field/index.html is of other cells: copy the page that the command makes"


def _data(page: str) -> object:
    """What the page's script reads: every number, without the figures."""
    (found,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    return json.loads(found)
