"""A report of a stored experiment: what is compared, and the files that say it."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vqbench.atomic import write_bytes_atomically
from vqbench.errors import UsageError, remedy, unknown
from vqbench.metrics.definitions import DEFINITIONS
from vqbench.reports.comparison import MetricComparison, compare_section
from vqbench.reports.damage import damage
from vqbench.reports.experiment import Experiment, Group, Section
from vqbench.reports.families import Ablation, ablations
from vqbench.reports.summary import Column, all_columns, columns_of, shown_columns

FORMATS = ("md", "csv", "tex", "json", "html")
FIGURES = "figures"
"""The folder of the figures, beside the page."""
_LABEL = "method"  # what --sort calls the first column


@dataclass(frozen=True)
class ReportSection:
    """One protocol of a report: what its table shows, in the order in which it shows it."""

    section: Section
    columns: tuple[Column, ...]
    rows: tuple[Group, ...]
    """Sorted; groups without a score come last."""
    comparisons: Mapping[str, MetricComparison]
    """By metric; only metrics with a better direction have one."""

    @functools.cached_property
    def ablations(self) -> tuple[Ablation, ...]:
        """Methods with what was switched off them, each against its full form."""
        return ablations(self.rows)


@dataclass(frozen=True)
class Report:
    """An experiment, sorted and compared."""

    experiment: Experiment
    sections: tuple[ReportSection, ...]
    published: bool
    """Whether the numbers of the methods' papers are shown beside ours."""

    @functools.cached_property
    def notes(self) -> tuple[str, ...]:
        """What must be said before anything is read off: what the experiment says, and files that cannot be read."""
        return (*self.experiment.notes, *damage(self.experiment))


def build_report(
    experiment: Experiment, columns: Sequence[str] = (), sort: str = "", published: bool = False
) -> Report:
    """Choose columns (none: those with a value), sort by one of them (empty: the first that ranks), compare.

    Raises UsageError for a column that does not exist, or that no cell has a value for.
    """
    for key in (*columns, *([sort] if sort and sort != _LABEL else [])):
        _check_column(experiment, key)
    return Report(
        experiment,
        tuple(_section(section, columns, sort) for section in experiment.sections),
        published,
    )


def _check_column(experiment: Experiment, key: str) -> None:
    there = {name for group in experiment.groups for name in group.summary.estimates}
    known = list(columns_of(there) or columns_of(all_columns()))
    if key not in columns_of([key]):
        raise unknown("column", key, [*known, _LABEL], f"columns: {', '.join(known)}")
    if there and key not in there:
        raise UsageError(f"no cell of '{experiment.name}' has {key}", f"columns with a value: {', '.join(known)}")


def _section(section: Section, columns: Sequence[str], sort: str) -> ReportSection:
    shown = tuple(columns_of([key])[key] for key in dict.fromkeys(columns)) or _default_columns(section)
    key = sort or next((c.key for c in shown if c.key in DEFINITIONS and DEFINITIONS[c.key].better), "")
    return ReportSection(section, shown, sorted_by(section.groups, key), compare_section(section))


def _default_columns(section: Section) -> tuple[Column, ...]:
    """Those that a comparison has, and beside usage and perplexity the tokens that they are counted over."""
    shown = shown_columns(group.summary for group in section.groups)
    counted = [column.key for column in shown if column.key in ("usage", "perplexity")]
    there = any("tokens" in group.summary.estimates for group in section.groups)
    if counted and there and "tokens" not in {column.key for column in shown}:
        place = next(i for i, column in enumerate(shown) if column.key == counted[-1])
        shown.insert(place + 1, columns_of(["tokens"])["tokens"])
    return tuple(shown)


def sorted_by(groups: Sequence[Group], key: str) -> tuple[Group, ...]:
    """Groups by their mean in `key`, the better first; those without one last, by label."""
    descending = key in DEFINITIONS and DEFINITIONS[key].better == "higher"

    def place(group: Group) -> tuple[bool, float, str]:
        found = group.summary.estimates.get(key)
        return (found is None, 0.0 if found is None else -found.mean if descending else found.mean, group.label)

    return tuple(sorted(groups, key=place))


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
    from vqbench.reports.records import csv_text, json_text

    return {"md": markdown_document, "csv": csv_text, "tex": latex_document, "json": json_text}[name](report)


def _write(path: Path, text: str) -> Path:
    write_bytes_atomically(path, text.encode("utf-8", "replace"))  # a label may hold what is not even Unicode
    return path


def _write_page(report: Report, out: Path) -> list[Path]:
    from vqbench.reports.figures import draw_figures
    from vqbench.reports.page import write_page

    drawn = draw_figures(report, out / FIGURES)
    return [*(file for figure in drawn for file in figure.files), write_page(report, drawn, out / "index.html")]
