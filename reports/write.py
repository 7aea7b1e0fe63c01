"""The files that say a report: documents, tables, figures, page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vqbench.errors import UsageError, remedy, unknown
from vqbench.machine.atomic import write_bytes_atomically
from vqbench.reports.report import Report

FORMATS = ("md", "csv", "tex", "json", "html")
FIGURES = "figures"
"""The folder of the figures, beside the page."""


def write_report(report: Report, out: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write report.md, report.csv, report.tex, report.json, and index.html with figures/, as far as asked for.

    Returns what was written, the page last. What the tables say depends on the stored results alone: not on where
    they lie, nor on the day. Raises UsageError for an unknown format and a folder that cannot be written.
    """
    for name in formats:
        if name not in FORMATS:
            raise unknown("format", name, FORMATS, f"formats: {','.join(FORMATS)}")
    try:
        out.mkdir(parents=True, exist_ok=True)
        written = [_write(out / f"report.{name}", _text(report, name)) for name in FORMATS[:-1] if name in formats]
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


def _write_page(report: Report, out: Path) -> list[Path]:
    from vqbench.reports.figures import draw_figures
    from vqbench.reports.page import write_page

    drawn = draw_figures(report, out / FIGURES)
    return [*(file for figure in drawn for file in figure.files), write_page(report, drawn, out / "index.html")]
