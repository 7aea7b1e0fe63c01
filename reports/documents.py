"""A report as one Markdown and as one LaTeX document: all tables of all protocols, with what must be said of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vqbench.reports.grid import markdown, markdown_list, markdown_text
from vqbench.reports.latex import PREAMBLE, latex_table, latex_text
from vqbench.reports.tables import tables
from vqbench.reports.verdict import verdict

if TYPE_CHECKING:
    from vqbench.reports.report import Report


def markdown_document(report: Report) -> str:
    """The verdict in words and every table with its notes, under a heading for each protocol."""
    parts = [f"# {markdown_text(report.experiment.name)}", markdown_list(report.notes)]
    for section in report.sections:
        parts.append(f"## {'' if section.section.experiment else 'Protocol '}{markdown_text(section.section.heading)}")
        found = verdict(section)
        parts.append(f"**{markdown_text(found.headline)}** {markdown_text(found.measured)}")
        parts.append(markdown_list(f"{finding.title}: {finding.sentence()}" for finding in found.findings))
        for table in tables(section, report.published):
            parts.append(f"### {markdown_text(table.title)}" if table.key != "scores" else "")
            parts += [markdown(table.grid), markdown_list(table.notes)]
    return "\n\n".join(part for part in parts if part) + "\n"


def latex_document(report: Report) -> str:
    """Every table as a float of its own; the file compiles where it is \\input."""
    name = report.experiment.name
    parts = [f"% vqbench report of {latex_text(name)}\n{PREAMBLE}"]
    parts += [f"% {latex_text(note)}\n" for note in report.notes]
    for section in report.sections:
        protocol, whose = section.section.protocol, section.section.experiment or name
        for table in tables(section, report.published):
            parts.append(f"% {latex_text(table.title)}\n")
            parts.append(
                latex_table(
                    table.grid,
                    f"{whose}: {table.title}."
                    if table.key == "scores"
                    else f"{table.title} ({whose}, {protocol['name']}).",
                    f"{whose}-{protocol['hash']}-{table.key}",
                    table.notes,
                )
            )
    return "\n".join(parts)
