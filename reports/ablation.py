"""An ablation as tables and objects: every row's scores, and its differences to the full method with intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vqbench.metrics.definitions import DEFINITIONS
from vqbench.reports.all_pairs import Pair, judged
from vqbench.reports.grid import Grid, markdown_list
from vqbench.reports.grid import markdown as as_markdown
from vqbench.reports.pair_words import decimals, interval_text, p_text
from vqbench.reports.pairs import difference
from vqbench.reports.reader import Reader
from vqbench.reports.summary import Column, MethodSummary, columns_of, interval_note, shown_columns, summarise
from vqbench.results.ablation_row import AblationRow

_NOT_SHOWN = ("bits_per_token", "train_images_per_s")  # switching does not change the one, and noise the other
_NOT_PAPER = "†"


@dataclass(frozen=True)
class AnalysedRow:
    """One row with everything that is known of it."""

    row: AblationRow
    cells: tuple[dict[str, Any], ...]
    summary: MethodSummary
    effects: Mapping[str, Pair]
    """What switching did to each score: this row beside the full method, p adjusted over the rows within the metric.
    Empty for the full method."""
    marked: bool
    """Whether the method's paper has an ablation of its own, and not this row."""

    @property
    def title(self) -> str:
        """The paper's name of the row, or ours; what is on stands beside it."""
        if self.row.paper_row is not None:
            return self.row.name if self.row.is_full else self.row.paper_row
        return f"{self.row.name} {_NOT_PAPER}" if self.marked else self.row.name


def analyse(
    rows: Sequence[AblationRow], cells: Sequence[dict[str, Any]], has_paper_rows: bool, asked: Sequence[str] = ()
) -> tuple[AnalysedRow, ...]:
    """Rows with their cells (as `vqbench run --json` prints them) and their differences to the full one.

    `asked` are the metrics that were asked for by name.
    """
    of_row = {row.name: tuple(cell for cell in cells if cell["method"] == row.label) for row in rows}
    summaries = {row.name: next(iter(summarise(of_row[row.name], asked))) for row in rows if of_row[row.name]}
    full = next(row for row in rows if row.is_full)
    others = [row for row in rows if not row.is_full and row.name in summaries]
    reader = Reader()
    effects: dict[str, dict[str, Pair]] = {row.name: {} for row in rows}
    scored = columns_of(name for cell in cells for name in cell["scores"] if name in DEFINITIONS)
    for key in (k for k, c in scored.items() if DEFINITIONS[k].better and (k in asked or not c.on_request)):
        found = [(row, difference(_done(of_row[full.name]), _done(of_row[row.name]), key, reader)) for row in others]
        for pair in judged(key, [(full.name, row.name, less) for row, less in found if less is not None]):
            effects[pair.other][key] = pair
    return tuple(
        AnalysedRow(row, of_row[row.name], summaries[row.name], effects[row.name], has_paper_rows and not row.paper_row)
        for row in rows
        if row.name in summaries
    )


def _done(cells: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [cell for cell in cells if cell["state"] != "failed"]


def objects(rows: Iterable[AnalysedRow]) -> list[dict[str, Any]]:
    """One JSON-ready object per row: what `vqbench ablate --json` prints."""
    return [_object(row) for row in rows]


def _object(analysed: AnalysedRow) -> dict[str, Any]:
    row, found = analysed.row, analysed.effects
    return {
        "row": row.name,
        "paper_row": row.paper_row,
        "method": row.label,
        "components": row.components,
        "seeds": analysed.summary.seeds,
        "scores": {key: value.mean for key, value in analysed.summary.estimates.items() if key in DEFINITIONS},
        "params": {
            key.removeprefix("params_"): value.mean
            for key, value in analysed.summary.estimates.items()
            if key.startswith("params_")
        },
        "delta": {metric: f.difference.delta for metric, f in found.items()},
        "delta_low": {metric: f.difference.low for metric, f in found.items()},
        "delta_high": {metric: f.difference.high for metric, f in found.items()},
        "p": {metric: f.p for metric, f in found.items()},
        "interval_over": {metric: f.difference.over for metric, f in found.items()},
        "delta_seeds": {metric: f.difference.seeds for metric, f in found.items()},
        "published": {metric: dict(values) for metric, values in row.published.items()},
        "in_paper": row.paper_row is not None if analysed.marked or row.paper_row else None,
        "collapsed": [{"seed": cell["seed"], **cell["collapse"]} for cell in analysed.cells if cell.get("collapse")],
        **({"cautions": said} if (said := cautions_of([analysed])) else {}),
        "failed": list(analysed.summary.failures),
        "cells": [cell["cell"] for cell in analysed.cells],
    }


def score_table(rows: Sequence[AnalysedRow], between: str = " ± ", apart: bool = False) -> Grid:
    """One line per row: components, mean scores, parameters, and the published values where there are any.

    `between` stands between a mean and its half width. `apart`: a column for each component, where a font cannot align
    them in one.
    """
    if not rows:
        return Grid((), (), ())
    left_out = set(_NOT_SHOWN) - {key for row in rows for key in row.summary.asked}
    shown = [c for c in shown_columns(row.summary for row in rows) if c.key not in left_out]
    switches, published = tuple(rows[0].row.components), _published(rows)
    heads = switches if apart else (" ".join(switches),)
    papers = [f"paper {DEFINITIONS[metric].title}" for metric in published]
    titles = ("row", *heads, *(c.title for c in shown), *papers, "n")
    lines = []
    for analysed in rows:
        marks = ["✓" if analysed.row.components[name] else "✗" for name in switches]
        if not apart:
            marks = [" ".join(mark.center(len(name)) for mark, name in zip(marks, switches, strict=True))]
        scores = (column.text(analysed.summary.estimates.get(column.key), between) for column in shown)
        printed = (_printed(analysed.row.published.get(metric, {}), where) for metric, where in published.items())
        lines.append((analysed.title + analysed.summary.state, *marks, *scores, *printed, str(analysed.summary.seeds)))
    first = 1 + len(heads)
    numeric = (*(False,) * first, *(True,) * (len(titles) - first))
    grey = frozenset(range(first + len(shown), len(titles) - 1))
    return Grid(titles, numeric, tuple(lines), grey=grey)


def _published(rows: Sequence[AnalysedRow]) -> dict[str, tuple[str, ...]]:
    """Metric → what its published values were measured on, in the order of the cells."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        for metric, values in row.row.published.items():
            found.setdefault(metric, {}).update(dict.fromkeys(values))
    return {metric: tuple(where) for metric, where in found.items()}


def _printed(values: Mapping[str, float], where: Sequence[str]) -> str:
    return "/".join(f"{values[place]:.2f}" if place in values else "–" for place in where) if values else "–"


def delta_table(rows: Sequence[AnalysedRow]) -> Grid:
    """One line per row and metric: difference to the full method, interval, p, and what that says."""
    lines = []
    for analysed in rows:
        title = analysed.title
        for metric, effect in analysed.effects.items():
            lines.append((title, *delta_cells(columns_of([metric])[metric], effect)))
            title = ""
    return Grid(
        ("row", "metric", "Δ to full", "95 % interval", "over", "p", "than full"),
        (False, False, True, True, False, True, False),
        tuple(lines),
    )


def delta_cells(column: Column, effect: Pair) -> tuple[str, ...]:
    """The metric's title, difference, interval, what varies in it, p, verdict."""
    found = effect.difference
    digits = max(column.digits, decimals(found))  # a small difference that is certain must not read as 0.00
    interval = interval_text(found, least=column.digits)
    over = found.over if found.seeds == 1 else found.over.replace("seeds", f"{found.seeds} seeds").replace(" and", ",")
    return (column.title, f"{found.delta:+,.{digits}f}", interval, over or "–", p_text(effect.p), effect.verdict)


def cautions_of(rows: Iterable[AnalysedRow]) -> dict[str, str]:
    """Metric → what must be said wherever it is shown."""
    return {name: said for row in rows for cell in row.cells for name, said in cell.get("cautions", {}).items()}


def notes(rows: Sequence[AnalysedRow]) -> list[str]:
    """What must be said below the two tables together."""
    (scored, *of_scores), (delta, *of_deltas) = score_notes(rows), delta_notes(rows)
    of_scores = [text for text in of_scores if text not in of_deltas]
    of_rows = [text for row in rows for text in (*row.summary.remarks, *row.summary.collapses)]
    return [f"{scored}; {delta}", *of_deltas, *of_scores, *of_rows]


def score_notes(rows: Sequence[AnalysedRow]) -> list[str]:
    """What the table of scores needs to be read."""
    said = [f"scores: {interval_note([row.summary for row in rows])}", *cautions_of(rows).values()]
    if any(row.marked for row in rows):
        said.append(f"{_NOT_PAPER} not a row of the paper")
    for metric, where in _published(rows).items():
        title = DEFINITIONS[metric].title
        said.append(
            f"paper {title}: as printed, on {' / '.join(where)}; another protocol, to look at and not to compare"
        )
    return said


def delta_notes(rows: Sequence[AnalysedRow]) -> list[str]:
    """What the table of differences needs to be read."""
    said = ["Δ = row − full, p adjusted after Holm over rows", *cautions_of(rows).values()]
    if any(f.difference.over == "images" for row in rows for f in row.effects.values()):
        said.append("n = 1: intervals are over the validation images alone; the noise of training is not in them")
    return said


def markdown(rows: Sequence[AnalysedRow], protocol: str) -> str:
    """Both tables as GitHub Markdown, and what must be said of them."""
    tables = [as_markdown(grid) for grid in (score_table(rows), delta_table(rows)) if grid.rows]
    failures = [f"failed: {text}" for row in rows for text in row.summary.failures]
    said = markdown_list((f"protocol {protocol}", *notes(rows), *failures))
    return "\n\n".join([*tables, said]) + "\n"
