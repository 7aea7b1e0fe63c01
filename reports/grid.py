"""A table as text, whatever it is of, and its form in GitHub Markdown (LaTeX: `reports/latex.py`)."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Grid:
    """A table as text: titles, which columns are numbers, rows."""

    titles: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[str, ...], ...]
    bold: frozenset[tuple[int, int]] = frozenset()
    """(row, column) of the entries that stand out."""
    grey: frozenset[int] = frozenset()
    """Columns that stand back: numbers that are not ours."""

    def __post_init__(self) -> None:
        wrong = {len(row) for row in self.rows} - {len(self.titles)}
        if wrong or len(self.numeric) != len(self.titles):
            raise ValueError(f"expected rows of {len(self.titles)} entries under {self.titles}, found rows of {wrong}")


def one_line(text: str) -> str:
    """Text without line ends and other control characters, for each of which a space stands.

    Marks that turn the direction of all that follows are left out: they would turn round the numbers beside a name.
    """
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", " ", re.sub(r"[\u202a-\u202e\u2066-\u2069]", "", text))


def markdown_text(text: str) -> str:
    """Plain text as Markdown that shows it as it is, within a table too."""
    escaped = re.sub(r"([\\`*\[\]|~$]|<(?=[A-Za-z/!?])|&(?=[A-Za-z#]))", r"\\\1", one_line(text))
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", escaped)  # within a word it is only a letter


def markdown(grid: Grid) -> str:
    """A table in GitHub Markdown: bold for what stands out, italics for what stands back."""

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    def entry(text: str, row: int, column: int) -> str:
        mark = "**" if (row, column) in grid.bold else "*" if column in grid.grey else ""
        shown = markdown_text(text).strip()  # a mark beside a space is no mark
        return f"{mark}{shown}{mark}" if shown else ""

    rows = (line(entry(text, i, k) for k, text in enumerate(row)) for i, row in enumerate(grid.rows))
    rule = line("---:" if numeric else "---" for numeric in grid.numeric)
    return "\n".join([line(map(markdown_text, grid.titles)), rule, *rows])


def markdown_list(notes: Iterable[str]) -> str:
    """One item a note; empty for none."""
    return "\n".join(f"- {markdown_text(note)}" for note in notes)


def as_csv(lines: Sequence[Mapping[str, Any]], quoting: Any = csv.QUOTE_MINIMAL) -> str:
    """Lines of values as CSV, a column for each key that one of them has; what a line lacks, or is None, is empty."""
    text = io.StringIO()
    columns = list(dict.fromkeys(name for line in lines for name in line))
    writer = csv.DictWriter(text, columns, restval=None, quoting=quoting, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
