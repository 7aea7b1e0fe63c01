"""What `vqbench compare` prints: a table per protocol, and what it says in words."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from vqbench.cli.terminal import Columns, make_console
from vqbench.metrics.definitions import DEFINITIONS
from vqbench.reports.pair_words import decimals, interval_text, p_text

if TYPE_CHECKING:
    from vqbench.reports.compare import Comparison, Contrast, Versus

_LONGEST = 8
"""Longer names would not leave room for numbers: the head of a column then says A or B."""
_OVER = {"seeds and images": "both", "": "–"}
_STYLES = {"better": "green", "worse": "red"}
LEGEND = (
    "A − B: over the seeds that both have; p: of this pair alone, not adjusted for pairs or metrics",
    "over: what varies in the interval; both: seeds and images",
    "more seeds: to separate such a difference in 4 of 5 experiments; an estimate from this spread",
)


def print_versus(comparison: Comparison) -> None:
    """Everything on stdout, in at most 100 columns."""
    out = make_console()
    for part in comparison.parts:
        _print_part(out, part)
    for note in (*LEGEND, *comparison.notes):
        _say(out, note)
    out.print(Text(f"results {comparison.experiment.folder}"), soft_wrap=True)  # a path that is cut cannot be copied


def _print_part(out: Console, part: Versus) -> None:
    seeds = f"seed{'s' if len(part.seeds) > 1 else ''} {', '.join(map(str, part.seeds))}"
    _say(out, f"A = {part.a.label}")
    _say(out, f"B = {part.b.label}")
    _say(out, f"protocol {part.section.title}, N = {part.section.protocol['n_images']}; {seeds}")
    out.print()
    table = _table(part)
    if table.natural_width(out) > out.width:
        table.gap = 1
    table.print(out)
    out.print()
    _say(out, part.overall, style="bold")
    out.print()
    for line in part.lines:
        _say(out, line, indent="  ")
    out.print()
    for note in part.notes:
        _say(out, note, style="red")


def _say(out: Console, text: str, style: str = "", indent: str = "") -> None:
    """A sentence, wrapped without trailing blanks."""
    width = min(out.width, 100)
    lines = textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent + "  ", break_long_words=False)
    out.print(Text("\n".join(lines), style=style))


def _table(part: Versus) -> Columns:
    names = [g.label if len(g.label) <= _LONGEST else letter for g, letter in ((part.a, "A"), (part.b, "B"))]
    titles = ("metric", *names, "A − B", "95 % interval", "p", "over", "A is …", "more\nseeds")
    table = Columns(titles, (False, True, True, True, True, True, False, False, True))
    table.whole = frozenset((0, 6, 7, 8))
    for found in part.contrasts:
        table.add(*_cells(found))
    return table


def _cells(found: Contrast) -> list[Text]:
    size, digits = found.difference, decimals(found.difference)
    texts = (
        DEFINITIONS[found.metric].head,
        f"{found.mean_a:,.{digits}f}",
        f"{found.mean_b:,.{digits}f}",
        f"{size.delta:+,.{digits}f}",
        interval_text(size),
        p_text(size.p),
        _OVER.get(size.over, size.over),
    )
    verdict = Text(found.verdict, style=_STYLES.get(found.verdict, ""))
    return [*map(Text, texts), verdict, Text(found.outlook.short)]
