"""Tables of the studies in docs/ follow from what is committed beside them, by the command that is printed there."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest
from helpers.commands import typed

ROOT = Path(__file__).parents[1]
STUDY = ROOT / "docs" / "field"
SCRIPTS = ("vaevq_curves_table", "vaevq_search_table", "vaevq_gradient_table")
OF_WORDS = ("Paper and code", "The forms", "Which claims hold, fail or stay open")
"""Sections of docs/vaevq.md whose tables are words, or are read off the others."""


def tables(page: str) -> dict[str, list[str]]:
    """Heading → the lines of the tables below it."""
    found: dict[str, list[str]] = {}
    heading = ""
    for line in (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("|"):
            found.setdefault(heading, []).append(line)
    return found


def command(page: str) -> list[str]:
    """The command of a page that makes its tables from docs/field."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = re.findall(r"^vqbench report .*--runs docs/field.*$", text, re.MULTILINE)
    return shlex.split(line)


def made_again(page: str, folder: Path, *more: object) -> list[str]:
    """The lines of report.md that its command writes."""
    words = command(page)
    words[words.index("--out") + 1] = str(folder)
    answer = typed(*words[1:], *more, cwd=ROOT)
    assert answer.code == 0, answer.err
    assert not re.search("gone|left out|whole|no result", answer.err), answer.err
    return (folder / "report.md").read_text(encoding="utf-8").splitlines()


def test_the_field_is_made_again_from_its_cells(tmp_path: Path) -> None:
    lines = made_again("field.md", tmp_path, "--format", "md")
    for heading, rows in tables("field.md").items():
        assert [row for row in rows if row not in lines] == [], heading


def test_vaevq_is_made_again_from_its_cells_and_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = {*made_again("vaevq.md", tmp_path, "--format", "md")}
    for name in SCRIPTS:
        runpy.run_path(str(ROOT / "tests" / "studies" / f"{name}.py"), run_name="__main__")
    lines |= {*capsys.readouterr().out.splitlines()}
    for heading, rows in tables("vaevq.md").items():
        if heading not in OF_WORDS:
            assert [row for row in rows if row not in lines] == [], heading


def test_what_is_committed_has_no_weights_and_no_pictures() -> None:
    kept = {path.name for path in STUDY.glob("*/cells/*/*")}
    assert kept == {"spec.json", "result.json", "metrics.jsonl", "per_image.parquet", "codes.npz"}


@pytest.mark.slow
def test_the_page_of_the_whole_study_is_made_too(tmp_path: Path) -> None:
    made_again("field.md", tmp_path)
    assert "<html" in (tmp_path / "index.html").read_text(encoding="utf-8")
