"""What the page's script reads: tables, details and images of every protocol, as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqbench.metrics.definitions import DEFINITIONS
from vqbench.reports.experiment import Group
from vqbench.reports.page.details import Pool, cell_details, settings_of_group
from vqbench.reports.page.pictures import cell_figure, sheet_data
from vqbench.reports.report import Peers, Report, ReportSection
from vqbench.reports.summary import Column, Estimate, MethodSummary, summarise
from vqbench.reports.tables import is_marked

if TYPE_CHECKING:
    from vqbench.reports.figures import Drawn
    from vqbench.reports.figures.reconstructions import Sheet


def page_data(
    report: Report, drawn: Sequence[Drawn], sheets: Mapping[str, Sequence[Sheet]], root: Path, ui: str
) -> dict[str, Any]:
    """Everything but words and figures of several cells.

    `drawn` are all figures, `sheets` by section's key, paths relative to `root`, `ui` opens MLflow.
    """
    pool, of_cells = Pool(), {figure.cell: figure for figure in drawn if figure.cell}
    sections = [_section(section, of_cells, sheets, pool, root) for section in report.sections]
    return {"experiment": report.experiment.name, "ui": ui, "sections": sections, "pool": pool.values}


def _section(
    section: ReportSection,
    of_cells: Mapping[str, Drawn],
    sheets: Mapping[str, Sequence[Sheet]],
    pool: Pool,
    root: Path,
) -> dict[str, Any]:
    stored = section.section
    known = sheets.get(stored.key, ())
    sizes = list(dict.fromkeys(_title(peers) for peers in section.peers)) if section.of_sizes else []
    size_of = {group.label: sizes.index(_title(p)) for p in section.peers for group in p.rows if sizes}
    cells = [cell for i, group in enumerate(section.rows) for cell in _cells(section, i, group, pool, root)]
    return {
        "hash": stored.protocol["hash"],
        "columns": [_column(column, stored.protocol) for column in section.columns],
        "sizes": sizes,
        "groups": [{**_group(section, g), "size": size_of.get(g.label, len(sizes))} for g in section.rows],
        "cells": [{**cell, "figure": cell_figure(of_cells.get(cell["name"]))} for cell in cells],
        "sheets": sheet_data(known, [group.label for group in section.rows]),
    }


def _title(peers: Peers) -> str:
    """What stands above the rows of a size."""
    return f"{peers.size}: not tested, {peers.untested}" if peers.untested else peers.size


def _column(column: Column, protocol: Mapping[str, Any]) -> dict[str, Any]:
    definition, pinned = DEFINITIONS.get(column.key), protocol.get("definitions") or {}
    return {
        "key": column.key,
        "title": column.title,
        "better": definition.better if definition else None,
        "gloss": column.gloss,
        "definition": pinned.get(column.key) or (definition.sentence if definition and definition.digest else ""),
        "strip": column.interval,
    }


def _group(section: ReportSection, group: Group) -> dict[str, Any]:
    summary = group.summary
    return {
        "label": group.label,
        "seeds": summary.seeds,
        "cells": len(group.cells),
        "failed": len(summary.failures),
        "collapsed": len(summary.collapses),
        "components": group.components,
        "settings": settings_of_group(group),
        "open": group.spec.get("paper_unspecified") or {},
        "tied": [column.key for column in section.columns if is_marked(section, group, column.key)],
        **_values(section.columns, summary),
    }


def _cells(section: ReportSection, place: int, group: Group, pool: Pool, root: Path) -> list[dict[str, Any]]:
    found = []
    for cell, row in zip(group.cells, group.rows, strict=True):
        known = _values(section.columns, summarise([row])[0])
        scores = {name: _short(value) for name, value in row["scores"].items()}
        own = {"group": place, "seed": cell.seed, "state": "failed" if cell.failed else "done", "scores": scores}
        found.append({**own, "v": known["v"], "t": known["t"], **cell_details(cell, row, pool, root)})
    return found


def _values(columns: Sequence[Column], summary: MethodSummary) -> dict[str, list[Any]]:
    """By column: `v` numbers to sort by, `t` means as the other tables print them, `h` half widths or null."""
    estimates = [summary.estimates.get(column.key) for column in columns]
    texts = [_texts(column, found) for column, found in zip(columns, estimates, strict=True)]
    return {
        "v": [None if found is None else _short(found.mean) for found in estimates],
        "t": [mean for mean, _ in texts],
        "h": [half for _, half in texts],
    }


def _texts(column: Column, found: Estimate | None) -> tuple[str, str | None]:
    mean, _, half = column.text(found, between="\0").partition("\0")
    return mean, half or None


def _short(value: float) -> float | None:
    """Seven digits are enough to sort and to draw; JSON has no NaN."""
    return float(f"{value:.7g}") if math.isfinite(value) else None
