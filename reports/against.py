"""One row of a section against each of the others: differences, p adjusted over the others, seeds that are missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vqbench.errors import UsageError
from vqbench.metrics.definitions import DEFINITIONS
from vqbench.reports.ablation import delta_cells
from vqbench.reports.all_pairs import Pair, judged
from vqbench.reports.compare import Contrast, Versus, as_object, versus
from vqbench.reports.experiment import Group, Section
from vqbench.reports.grid import Grid
from vqbench.reports.pair_words import ONE_SEED, Outlook, outlook, p_text
from vqbench.reports.reader import Reader
from vqbench.reports.statistics import LEVEL
from vqbench.reports.summary import columns_of


@dataclass(frozen=True)
class Opposed:
    """Another row beside the base in one metric."""

    part: Versus
    """A is the row, B the base."""
    contrast: Contrast
    """What `vqbench compare` finds of the two: its p and verdict are of this pair alone."""
    effect: Pair
    """The same difference after Holm over the rows of the metric."""
    outlook: Outlook
    """The seeds that it takes for a p that passes whatever the others have: 0.05 over the number of those tested."""


@dataclass(frozen=True)
class Against:
    """Every row that has a difference to the base in one metric, the best first."""

    base: str
    metric: str
    rows: tuple[Opposed, ...]
    left_out: tuple[str, ...]
    """A sentence for each row that cannot be compared with the base at all."""


def against(section: Section, base: Group, metrics: Sequence[str]) -> tuple[Against, ...]:
    """The base against each other row of its section, metric by metric; none where nothing can be compared."""
    reader, parts, left_out = Reader(), [], []
    for group in section.groups:
        if group is not base:
            try:
                parts.append(versus(section, group, base, metrics, reader))
            except UsageError as problem:
                left_out.append(f"{group.label} is left out: {problem.what}")
    found = [_in_metric(metric, base.label, parts, left_out) for metric in metrics]
    return tuple(one for one in found if one.rows)


def _in_metric(metric: str, base: str, parts: Sequence[Versus], left_out: Sequence[str]) -> Against:
    known = [(part, found) for part in parts for found in part.contrasts if found.metric == metric]
    effects = judged(metric, [(base, part.a.label, found.difference) for part, found in known])
    sign = 1 if DEFINITIONS[metric].better == "lower" else -1
    tested = sum(effect.p is not None for effect in effects)
    rows = [_opposed(*pair, effect, tested) for pair, effect in zip(known, effects, strict=True)]
    rows.sort(key=lambda row: (sign * row.contrast.difference.delta, row.part.a.label))
    return Against(base, metric, tuple(rows), tuple(left_out))


def _opposed(part: Versus, found: Contrast, effect: Pair, tested: int) -> Opposed:
    after = found.outlook
    if part.a.has_seeds or part.b.has_seeds:
        after = outlook(found.difference, effect.verdict, found.of_seeds, LEVEL / max(tested, 1))
    return Opposed(part, found, effect, after)


def opposed_table(found: Against) -> Grid:
    """One line per row: its difference to the base, p alone and after Holm, and how many seeds it lacks."""
    column, lines = columns_of([found.metric])[found.metric], []
    for row in found.rows:
        _, delta, interval, over, adjusted, verdict = delta_cells(column, row.effect)
        alone = p_text(row.contrast.difference.p)
        lines.append((row.part.a.label, delta, interval, over, alone, adjusted, verdict, row.outlook.short))
    titles = ("row", f"Δ {column.title}", "95 % interval", "over", "p", "p Holm", f"than {found.base}", "more seeds")
    return Grid(titles, (False, True, True, False, True, True, False, True), tuple(lines))


def opposed_notes(found: Against) -> list[str]:
    """What the table needs to be read."""
    said = [
        f"Δ = row − {found.base}, over the seeds that both have; p is of the pair alone, as in vqbench compare",
        f"p Holm: adjusted over the rows with a p; what a row is than {found.base} goes by it, and so do the seeds "
        "that it would take, at most, in 4 of 5 experiments",
        *dict.fromkeys(row.part.cautions[found.metric] for row in found.rows if found.metric in row.part.cautions),
    ]
    if any(row.contrast.difference.over == "images" for row in found.rows):
        said.append(f"intervals of one seed are over the images alone: {ONE_SEED}")
    return [*said, *found.left_out]


def objects(found: Against) -> dict[str, Any]:
    """JSON-ready: what `vqbench compare --json` says of each pair, and p and verdict after Holm beside it."""
    rows = [
        {
            **as_object(row.part, row.contrast),
            "p_adjusted": row.effect.p,
            "verdict_adjusted": row.effect.verdict,
            "more_seeds_adjusted": row.outlook.more,
        }
        for row in found.rows
    ]
    return {"base": found.base, "metric": found.metric, "rows": rows, "left_out": list(found.left_out)}
