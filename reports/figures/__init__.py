"""The figures of a report, from stored results alone: drawn with seaborn, saved as PNG, SVG or PDF."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vqbench.reports.figures.codes import draw_code_histogram
from vqbench.reports.figures.side_by_side import draw_side_by_side

if TYPE_CHECKING:
    from vqbench.reports.figures.style import Picture
    from vqbench.reports.report import Report, ReportSection

__all__ = ["Drawn", "draw_code_histogram", "draw_figures", "draw_side_by_side", "pictures"]


@dataclass(frozen=True)
class Drawn:
    """A figure that has been saved."""

    name: str
    """Unique within a report; its files are called so."""
    title: str
    caption: str
    """What it shows, N and seeds; labels that are shortened in the figure stand here in full."""
    section: str
    """The key of its section."""
    files: tuple[Path, ...]
    """One per format, in the order in which they were asked for."""
    cell: str = ""
    """The name of the folder of the single cell that it shows; empty for a figure of several."""


def draw_figures(report: Report, folder: Path, formats: Sequence[str] = ("png", "svg")) -> list[Drawn]:
    """Save every figure for which the report has data below `folder`, which is made.

    formats: of png, svg, pdf. Raises UsageError for another.
    """
    from vqbench.reports.figures.style import check_formats, drawing, save

    check_formats(formats)
    drawn = []
    with drawing():
        for section in report.sections:
            key = section.section.key
            for picture in pictures(section):
                folder.mkdir(parents=True, exist_ok=True)
                name = picture.name if len(report.sections) == 1 else f"{picture.name}-{key}"
                files = save(picture.figure, folder / name, formats)
                drawn.append(Drawn(name, picture.title, picture.caption, key, files, picture.cell))
    return drawn


def pictures(section: ReportSection) -> Iterator[Picture]:
    """The figures of one protocol, one after the other, unsaved; those without data are left out."""
    from vqbench.reports.figures.budget import quality_by_budget
    from vqbench.reports.figures.codes import code_frequencies
    from vqbench.reports.figures.forest import ablation_forests, comparison
    from vqbench.reports.figures.rate import rate_distortion
    from vqbench.reports.figures.reconstructions import reconstruction_sheets
    from vqbench.reports.figures.sheet import draw_sheet
    from vqbench.reports.figures.training import collapses, training_curves

    for draw in (rate_distortion, comparison):
        yield from (picture for picture in [draw(section)] if picture is not None)
    yield from ablation_forests(section)
    for draw in (quality_by_budget, training_curves, code_frequencies):
        yield from (picture for picture in [draw(section)] if picture is not None)
    yield from collapses(section)
    named = (("reconstructions", "Reconstructions"), ("most-different", "Where the groups differ most"))
    for sheet, (name, title) in zip(reconstruction_sheets(section), named, strict=False):
        yield draw_sheet(sheet, name, title, section.section)
