"""What a person sees: progress on stderr, tables on stdout."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from vqbench.wording import masked_text

if TYPE_CHECKING:
    from pathlib import Path

    from vqbench.ablation import Ablation
    from vqbench.plan import Cell
    from vqbench.reports.sweep import SweepReport
    from vqbench.runner import Outcome

PLAIN_SECONDS = 15.0  # between two lines of progress where stderr is not a terminal


def make_console(stderr: bool = False) -> Console:
    """Of the terminal's width, or 100 columns where it has none."""
    file = sys.stderr if stderr else sys.stdout
    width = None if file.isatty() else 100  # a file or a pipe has no width of its own
    return Console(stderr=stderr, width=width, highlight=False, soft_wrap=False)


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
        """Images are being decoded."""
        self._show("", f"preparing {what}", done, total, "")
        if done >= total:
            self._clear("")

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
        shown = {name: row["scores"].get(name) for name in ("rfid", "psnr", "quantization_error", "usage")}
        scores = ", ".join(f"{name} {value:.3f}" for name, value in shown.items() if value is not None)
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


def make_table(*titles: str) -> Table:
    """A table without lines, whose long cells fold."""
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for title in titles:
        table.add_column(title, overflow="fold")
    return table


def print_comparison(outcome: Outcome) -> None:
    """The table of a run on stdout, its failures, and where everything else is."""
    from vqbench.reports.summary import interval_note, shown_columns, summarise

    console, summaries = make_console(), summarise(outcome.rows)
    columns = shown_columns(summaries)
    several = any(summary.seeds > 1 for summary in summaries)
    table = make_table("method")
    for column in columns:
        table.add_column(column.title, justify="right", overflow="fold")
    table.add_column("n", justify="right")
    for summary in summaries:
        cells = [column.text(summary.estimates.get(column.key), between="\n± ") for column in columns]
        mark = " (failed)" if not summary.seeds else " (collapsed)" if summary.collapses else ""
        name = Text(summary.method + mark, style="red" if mark else "")
        table.add_row(name, *cells, str(summary.seeds), end_section=several)
    console.print(table)
    _print_foot(outcome, [interval_note(summaries), *(text for s in summaries for text in s.collapses)])


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


def print_ablation(ablation: Ablation) -> None:
    """The two tables of an ablation on stdout: scores of the rows, and their differences to the full method."""
    from vqbench.reports.ablation import delta_table, notes, score_table

    for grid in (score_table(ablation.rows, between="\n± "), delta_table(ablation.rows)):
        if not grid.rows:
            continue
        table = make_table()
        table.padding = (0, 1, 0, 0)  # a dozen columns with intervals in 100 characters
        for title, numeric in zip(grid.titles, grid.numeric, strict=True):
            table.add_column(title, justify="right" if numeric else "left", overflow="fold", no_wrap=not numeric)
        for row in grid.rows:
            table.add_row(*row)
        make_console().print(table)
        make_console().print()
    _print_foot(ablation.outcome, notes(ablation.rows))


def print_sweep(report: SweepReport) -> None:
    """The best of each method, the Pareto front, what must be said, and the commands that run the best again."""
    console = make_console()
    for grid in (report.table(), *([report.front()] if len(report.objectives) > 1 else [])):
        table = make_table()
        for title, numeric in zip(grid.titles, grid.numeric, strict=True):
            table.add_column(title, justify="right" if numeric else "left", overflow="fold")
        for row in grid.rows:
            table.add_row(*map(Text, row))
        console.print(table)
        console.print()
    for note in report.notes():
        console.print(Text(note))
    console.print(Text(f"results {report.folder}"), soft_wrap=True)
    for title, command in report.commands():
        console.print(Text(f"\n{title}, with more seeds:\n  {command}"), soft_wrap=True)
    if report.page is not None:
        console.print()
    _print_page(report.page)
