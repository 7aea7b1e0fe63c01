"""What a person sees: progress on stderr, tables on stdout."""

from __future__ import annotations

import shutil
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console, ConsoleDimensions
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from vqbench.machine.streams import readable
from vqbench.wording import masked_text

if TYPE_CHECKING:
    from pathlib import Path

    from vqbench.planning.plan import Cell
    from vqbench.reports.summary import Column, MethodSummary
    from vqbench.reports.sweep import SweepReport
    from vqbench.running.ablate import AblationOutcome
    from vqbench.running.run import Outcome

PLAIN_SECONDS = 15.0  # between two lines of progress where stderr is not a terminal


def make_console(stderr: bool = False) -> Console:
    """Of the terminal's width, or 100 columns where it has none."""
    file = sys.stderr if stderr else sys.stdout
    width = None if file.isatty() else 100  # a file or a pipe has no width of its own
    console = Console(stderr=stderr, width=width, highlight=False, soft_wrap=False)
    if console.is_dumb_terminal:  # which rich takes to have 80 columns, whatever it says
        console.size = ConsoleDimensions(*shutil.get_terminal_size())
    return console


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


class TerminalView:
    """Progress of a run on stderr: a bar with images/s and time left, or a line now and then in a log."""

    def __init__(self) -> None:
        self.console = make_console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
        )
        self.progress = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        self._tasks: dict[str, TaskID] = {}
        self._spoke: dict[str, float] = {}
        self._titles: dict[str, str] = {}
        self._since: dict[str, float] = {}
        self._preparing: dict[str, tuple[float, int]] = {}

    def __enter__(self) -> TerminalView:
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def note(self, text: str) -> None:
        """Something that must be said aloud."""
        # it may hold a command or a path to copy
        self.console.print(Text(masked_text(f"note: {text}")), soft_wrap=True)

    def preparing(self, what: str, done: int, total: int) -> None:
        """Images are being decoded; those that were done before the first call count for no rate."""
        started, before = self._preparing.setdefault(what, (time.monotonic(), done))
        rate = (done - before) / max(time.monotonic() - started, 1e-9)
        text = f"{rate:.1f} images/s, {clock((total - done) / rate)} left" if rate > 0 else ""
        self._show("", f"preparing {what}", done, total, text)
        if done >= total:
            self._clear("")
            del self._preparing[what]

    def cell_started(self, cell: Cell, position: int, total: int) -> None:
        """A cell is about to start."""
        name = cell.folder.name
        self._titles[name] = f"[{position}/{total}] {cell.label} s{cell.seed}"
        self._spoke[name] = self._since[name] = time.monotonic()
        verb = {"partial": "goes on", "failed": "tries again"}.get(cell.state, "starts")
        self.console.print(Text(f"{self._titles[name]} {verb}; log: {cell.folder.log}"), soft_wrap=True)

    def cell_progress(self, cell: Cell, status: dict[str, Any]) -> None:
        """The content of the cell's status.json."""
        stage, done, total = status.get("stage", "start"), status.get("images", 0), status.get("total", 0)
        rate = float(status.get("images_per_s", 0.0))
        text = f"{rate:.1f} images/s, {clock((total - done) / rate)} left" if rate > 0 and total else ""
        self._show(cell.folder.name, f"{self._titles[cell.folder.name]} {stage}", done, total, text)

    def cell_finished(self, cell: Cell, row: dict[str, Any]) -> None:
        """One line per finished cell."""
        title, took = self._titles[cell.folder.name], clock(time.monotonic() - self._since[cell.folder.name])
        self._clear(cell.folder.name)
        if row["error"]:
            self.console.print(Text(f"{title} failed after {took}: {row['error']['message']}", style="red"))
            return
        names = cell.spec.get("asked") or ("rfid", "rfid_per_channel", "psnr", "quantization_error", "usage")
        shown = {name: row["scores"].get(name) for name in names}
        few = dict.fromkeys(row.get("cautions", {}), " (of few images)")  # the table has the whole sentence
        scores = ", ".join(f"{name} {v:.3f}{few.get(name, '')}" for name, v in shown.items() if v is not None)
        said = {"done": "done in", "cached": "done by another command after"}.get(row["state"], f"{row['state']} after")
        self.console.print(Text(f"{title} {said} {took}{': ' * bool(scores)}{scores}"))

    def _show(self, name: str, title: str, done: int, total: int, rate: str) -> None:
        if self.progress.disable:
            if time.monotonic() - self._spoke.get(name, 0.0) > PLAIN_SECONDS:
                self._spoke[name] = time.monotonic()
                self.console.print(Text(f"{title} {f'{done}/{total} {rate}' if total else ''}".rstrip()))
            return
        if name not in self._tasks:
            self._tasks[name] = self.progress.add_task("", total=None, rate="")
        self.progress.update(self._tasks[name], description=title, completed=done, total=total or None, rate=rate)

    def _clear(self, name: str) -> None:
        if name in self._tasks:
            self.progress.remove_task(self._tasks.pop(name))


class Columns:
    """A table that never cuts a number: side by side where its numbers fit, else a block of lines for each row."""

    def __init__(self, titles: Sequence[str], numeric: Sequence[bool] = (), gap: int = 2) -> None:
        """`numeric` columns (none: of text all) are set to the right; `gap` blanks stand between two columns."""
        self.titles = tuple(titles)
        self.numeric = tuple(numeric) or (False,) * len(self.titles)
        self.gap = gap
        self.whole: frozenset[int] = frozenset()
        """Columns whose text stays on its line."""
        self.sections = False
        """Whether a line is left free after each row."""
        self._rows: list[tuple[tuple[Text, ...], str]] = []

    def add(self, *cells: str | Text, style: str = "") -> None:
        """A row; a line end in a cell begins another line of it."""
        if len(cells) != len(self.titles):
            raise ValueError(f"expected {len(self.titles)} cells under {self.titles}, found {len(cells)}")
        self._rows.append((tuple(cell if isinstance(cell, Text) else Text(cell) for cell in cells), style))

    def print(self, console: Console) -> None:
        """Print it as wide as the console."""
        if (table := self._fitting(console)) is not None:
            console.print(table)
            return
        for row, style in self._rows:
            console.print(Text("\n").join(self._block(row, console)), style=style or None, soft_wrap=True)

    def fits(self, console: Console) -> bool:
        """Whether it is printed side by side."""
        return self._fitting(console) is not None

    def _fitting(self, console: Console) -> Table | None:
        tables = (self._side_by_side(console, gap) for gap in dict.fromkeys((self.gap, 1)))
        return next((table for table in tables if self._is_whole(console, table)), None)

    def _side_by_side(self, console: Console, gap: int) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
        table.padding = (0, 1, 0, gap - 1)
        for i, (title, numeric) in enumerate(zip(self.titles, self.numeric, strict=True)):
            justify: Literal["right", "left"] = "right" if numeric else "left"
            table.add_column(_shown(Text(title), console), justify=justify, overflow="fold", no_wrap=i in self.whole)
        for row, style in self._rows:
            cells = (_shown(cell, console) for cell in row)
            table.add_row(*cells, style=style or None, end_section=self.sections)
        return table

    def natural_width(self, console: Console) -> int:
        """Columns that it takes where nothing is wrapped."""
        options = console.options.update(max_width=10_000)
        return console.measure(self._side_by_side(console, self.gap), options=options).maximum

    def _is_whole(self, console: Console, table: Table) -> bool:
        """Whether every number stands on a line as it is, and every word but a very long one."""
        lines = console.render_lines(table, pad=False)
        there = Counter(word for line in lines for word in "".join(segment.text for segment in line).split())
        cells = (cell for row in (map(Text, self.titles), *(cells for cells, _ in self._rows)) for cell in row)
        words = (word for cell in cells for word in _shown(cell, console).plain.split())
        return not Counter(filter(_stays_whole, words)) - there

    def _block(self, row: Sequence[Text], console: Console) -> list[Text]:
        """A row below each other: its first cell, then a line for each other one, wrapped between words."""
        head, *cells = (_shown(cell, console) for cell in row)
        lines = [Text(line, style=head.style or "bold") for line in _wrapped(head.plain, console.width)]
        for title, cell in zip(self.titles[1:], cells, strict=True):
            said = " ".join(f"{_shown(Text(title), console).plain}: {cell.plain}".split())
            if cell.plain.strip():
                lines += [Text(line, style=cell.style) for line in _wrapped(f"  {said}", console.width, "    ")]
        return lines


_LONG = 20
"""Longer words than this, a path or the type of a field, may be folded; a number never."""


def _stays_whole(word: str) -> bool:
    return len(word) <= _LONG or any(sign.isdigit() for sign in word)


def _shown(text: Text, console: Console) -> Text:
    """The text as the console's encoding shows it, so that what stands below it stays below it."""
    return Text(readable(text.plain, console.encoding), style=text.style)


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """Lines of at most `width` columns; a word that is longer stays whole on a line of its own."""
    return textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False) or [
        text
    ]


def print_text(text: str) -> None:
    """Lines on stdout; on a terminal wrapped between words, for a terminal that is too narrow breaks numbers."""
    console = make_console()
    for line in text.splitlines():
        indent = " " * (len(line) - len(line.lstrip()) + 4)
        print("\n".join(_wrapped(line, console.width, indent) or [""]) if console.is_terminal else line)


def print_comparison(outcome: Outcome) -> None:
    """The table of a run on stdout, its failures, and where everything else is."""
    from vqbench.metrics.definitions import DEFINITIONS
    from vqbench.reports.summary import interval_note, shown_columns, summarise

    console, summaries = make_console(), summarise(outcome.rows, outcome.plan.asked)
    columns, notes = shown_columns(summaries), [interval_note(summaries)]
    table = _compared(summaries, columns)
    kept = [column for column in columns if column.key not in DEFINITIONS or not DEFINITIONS[column.key].companion_of]
    if not table.fits(console) and (narrower := _compared(summaries, kept)).fits(console):
        left_out = ", ".join(column.title for column in columns if column not in kept)
        table, notes = narrower, [*notes, f"{left_out}: only in the report, there is no room here"]
    table.print(console)
    of_methods = (text for s in summaries for text in (*s.remarks, *s.collapses))
    _print_foot(outcome, [*notes, *outcome.cautions.values(), *of_methods])


def _compared(summaries: Sequence[MethodSummary], columns: Sequence[Column]) -> Columns:
    table = Columns(("method", *(c.title for c in columns), "n"), (False, *(True for _ in columns), True))
    table.sections = any(summary.seeds > 1 for summary in summaries)
    for summary in summaries:
        cells = [column.text(summary.estimates.get(column.key), between="\n± ") for column in columns]
        style = "red" if summary.state else ""
        table.add(Text(summary.method + summary.state, style=style), *cells, str(summary.seeds))
    return table


def _print_foot(outcome: Outcome, notes: list[str]) -> None:
    """Below a table: the protocol, what must be said, where the results are, and every failure."""
    console, protocol = make_console(), outcome.plan.protocol
    console.print(Text(f"\nprotocol {protocol.name} {protocol.hash}, N = {protocol.n_images}; {notes[0]}"))
    for note in notes[1:]:
        console.print(Text(note))
    console.print(Text(f"results {outcome.plan.folder}"), soft_wrap=True)  # a path that is cut cannot be copied
    for row in outcome.failed:
        console.print(Text(f"failed {row['cell']}: {row['error']['message']}", style="red"))
        console.print(Text(f"  hint: {row['error']['hint']}\n  log:  {row['path']}/log.txt"), soft_wrap=True)
    if outcome.failed:
        console.print("the same command runs the failed cells again")
    _print_page(outcome.page)


def _print_page(page: Path | None) -> None:
    """Where the page is, as the last line: it is what most people want next."""
    if page is not None:
        make_console().print(Text(f"page    {page}"), soft_wrap=True)


def print_ablation(ablation: AblationOutcome) -> None:
    """The two tables of an ablation on stdout: scores of the rows, and their differences to the full method."""
    from vqbench.reports.ablation import delta_table, notes, score_table

    for grid in (score_table(ablation.rows, between="\n± "), delta_table(ablation.rows)):
        if not grid.rows:
            continue
        table = Columns(grid.titles, grid.numeric, gap=1)
        table.whole = frozenset(i for i, numeric in enumerate(grid.numeric) if not numeric)
        for row in grid.rows:
            table.add(*row)
        table.print(make_console())
        make_console().print()
    _print_foot(ablation.outcome, notes(ablation.rows))


def print_sweep(report: SweepReport) -> None:
    """The best of each method, the Pareto front, what must be said, and the commands that run the best again."""
    console = make_console()
    for grid in (report.table(), *([report.front()] if len(report.objectives) > 1 else [])):
        table = Columns(grid.titles, grid.numeric)
        for row in grid.rows:
            table.add(*row)
        table.print(console)
        console.print()
    for note in report.notes():
        console.print(Text(note))
    console.print(Text(f"results {report.folder}"), soft_wrap=True)
    for title, command in report.commands():
        console.print(Text(f"\n{title}:\n  {command}"), soft_wrap=True)
    if report.page is not None:
        console.print()
    _print_page(report.page)
