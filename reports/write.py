"""The files that say a report: documents, tables, figures, page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vqbench.errors import UsageError, remedy, unknown
from vqbench.machine.atomic import write_bytes_atomically
from vqbench.reports.report import Report
from vqbench.results.cell_files import RESULT, names

FORMATS = ("md", "csv", "tex", "json", "html")
CELLS = "cells"
"""The format that is written on request alone: what the others are made of."""
FIGURES = "figures"
"""The folder of the figures, beside the page."""


def check_formats(formats: Sequence[str]) -> None:
    """Raises UsageError for a format that there is not."""
    known = (*FORMATS, CELLS)
    for name in formats:
        if name not in known:
            raise unknown("format", name, known, f"--format takes {','.join(known)}")


def write_report(report: Report, out: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write report.md, report.csv, report.tex, report.json, cells/, and index.html with figures/, as far as asked for.

    Returns what was written, the page last. What the tables say depends on the stored results alone: not on where they
    lie, nor on the day. cells/ makes `out` an experiment's folder, of which every table can be made again; cells that
    are there already stay, so that several experiments can be put into one. Raises UsageError for an unknown format,
    a folder that cannot be written, and a cell that is there with another result.
    """
    check_formats(formats)
    try:
        out.mkdir(parents=True, exist_ok=True)
        written = [_write(out / f"report.{name}", _text(report, name)) for name in FORMATS[:-1] if name in formats]
        written += _copy_cells(report, out / CELLS) if CELLS in formats else []
        return written + (_write_page(report, out) if "html" in formats else [])
    except OSError as error:
        raise UsageError(
            f"cannot write to {out}: {error.strerror or error}", f"{remedy(error)}, or choose another folder: --out DIR"
        ) from None


def _text(report: Report, name: str) -> str:
    from vqbench.reports.documents import latex_document, markdown_document
    from vqbench.reports.exports import csv_text, json_text

    return {"md": markdown_document, "csv": csv_text, "tex": latex_document, "json": json_text}[name](report)


def _write(path: Path, text: str) -> Path:
    write_bytes_atomically(path, text.encode("utf-8", "replace"))  # a label may hold what is not even Unicode
    return path


def _copy_cells(report: Report, target: Path) -> list[Path]:
    """The files of each cell that its numbers are read from; weights, features and pictures stay where they are."""
    written = []
    for cell in (cell for group in report.experiment.groups for cell in group.cells):
        kept, own = target / cell.folder.name / RESULT, cell.folder.path / RESULT
        if kept.is_file() and kept.read_bytes() != own.read_bytes():
            what = f"{kept.parent} has another result of this cell than {cell.folder.path}"
            raise UsageError(what, "remove the one that shall not count, or choose another folder: --out DIR")
        for name in names(in_copy=True):
            source, copy = cell.folder.path / name, target / cell.folder.name / name
            if source.is_file() and not (copy.exists() and copy.samefile(source)):
                copy.parent.mkdir(parents=True, exist_ok=True)
                write_bytes_atomically(copy, source.read_bytes())
                written.append(copy)
    return written


def _write_page(report: Report, out: Path) -> list[Path]:
    from vqbench.reports.figures import draw_figures
    from vqbench.reports.page import write_page

    drawn = draw_figures(report, out / FIGURES)
    return [*(file for figure in drawn for file in figure.files), write_page(report, drawn, out / "index.html")]
