"""What a person sees: progress on stderr, tables on stdout."""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from vqbench.registry import METHODS, Outline

if TYPE_CHECKING:
    from pathlib import Path

    from vqbench.ablation import Ablation
    from vqbench.cost import MethodCost, PlanCost
    from vqbench.plan import Cell, Plan
    from vqbench.recipe import Recipe
    from vqbench.reports.sweep import SweepReport
    from vqbench.runner import Outcome
    from vqbench.sweeps.sweep import SweepPlan

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
        self.console.print(Text(f"note: {text}"))

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
                self.console.print(Text(f"{title} {done}/{total} {rate}".rstrip()))
            return
        if name not in self._tasks:
            self._tasks[name] = self.progress.add_task("", total=None, rate="")
        self.progress.update(self._tasks[name], description=title, completed=done, total=total or None, rate=rate)

    def _clear(self, name: str) -> None:
        if name in self._tasks:
            self.progress.remove_task(self._tasks.pop(name))


def _table(*titles: str) -> Table:
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
    table = _table("method")
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
        table = _table()
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
        table = _table()
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


def print_sweep_plan(studies: list[dict[str, Any]], plan: SweepPlan) -> None:
    """The studies of a sweep, and what each draws."""
    console, table = make_console(), _table("study", "trials", "told", "parameter", "drawn from")
    for study in studies:
        lines = list(study["parameters"].items()) or [("–", "–")]
        for i, (name, domain) in enumerate(lines):
            first = (study["study"], str(study["trials"]), str(study["told"])) if i == 0 else ("", "", "")
            table.add_row(*map(Text, (*first, name, domain)))
    console.print(table)
    total, seeds = sum(max(0, study["trials"] - study["told"]) for study in studies), len(plan.request.run.seeds)
    images, each = total * seeds * plan.base.recipe.images, "a cell" if seeds == 1 else f"{seeds} cells"
    console.print(f"\n{total} trials are left, of {each} each: {images:,} training images at most")
    console.print(Text(f"objective {', '.join(plan.request.objectives)}; sampler {plan.request.sampler}"))
    console.print(Text(f"protocol {plan.base.protocol.name} {plan.base.protocol.hash}"))
    console.print(Text(f"results {plan.folder}"), soft_wrap=True)


def print_plan(plan: Plan) -> None:
    """The cells of a plan and what is known of each."""
    console, table = make_console(), _table("cell", "method", "seed", "state")
    for cell in plan.cells:
        table.add_row(cell.folder.name, cell.label, str(cell.seed), cell.state)
    console.print(table)
    counts = Counter(cell.state for cell in plan.cells)
    console.print(f"\n{len(plan.cells)} cells: " + ", ".join(f"{n} {state}" for state, n in sorted(counts.items())))
    recipe = plan.recipe
    console.print(
        Text(f"recipe {recipe.name}: {recipe.images:,} images each, {recipe.resolution} px, batch {recipe.batch_size}")
    )
    console.print(Text(f"protocol {plan.protocol.name} {plan.protocol.hash}, N = {plan.protocol.n_images}"))
    console.print(Text(f"results {plan.folder}"), soft_wrap=True)


def print_costs(costs: PlanCost) -> None:
    """What the cells of a plan will cost, a row for each method; and why a method has no numbers."""
    unit = costs.unit
    table = _table("method")
    for title in ("cells to train", "s per cell", "images/s", unit, "disk", "peak disk"):
        table.add_column(title, justify="right")
    rows = costs.methods()
    for row in rows:
        table.add_row(*_cost_cells(row))
    if costs.reference_seconds:
        hours = costs.total().device_hours - sum(row.device_hours for row in rows)
        size = _bytes(costs.reference_bytes)
        table.add_row("reference features, once", "", "", "", _hours(hours), size, "")
    table.add_row(*_cost_cells(costs.total(), measured=not costs.failed), style="bold")
    console = make_console()
    console.print()
    console.print(table)
    if costs.device_name is not None:
        each = ", one cell after the other" if unit == "CPU-hours" else ""
        console.print(Text(f"\nfrom 20 steps of each method on {costs.device_name}{each}"))
    for row in rows:
        if row.problem is not None:
            console.print(Text(f"failed {row.label}: {row.problem}", style="red"))
            console.print(Text(f"  hint: {row.hint}"), soft_wrap=True)


def _cost_cells(row: MethodCost, measured: bool = True) -> list[str]:
    name = row.label if row.problem is None or row.label == "total" else f"{row.label} (failed)"
    if row.problem is not None and not row.seconds:
        return [name, str(row.cells), *["–"] * 5]
    least = "" if measured else "> "  # a method is missing from it
    per_cell = f"{row.seconds / row.cells:.0f}" if row.cells and row.label != "total" else ""
    rate = f"{row.images_per_s:.1f}" if row.images_per_s and row.label != "total" else ""
    sizes = [least + _bytes(size) for size in (row.disk_bytes, row.peak_bytes)]
    return [name, str(row.cells), per_cell, rate, least + _hours(row.device_hours), *sizes]


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def _bytes(size: float) -> str:
    """Decimal units, as disks are sold."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"


def print_outlines(kind: str, outlines: list[Outline], with_components: bool) -> None:
    """Plugins of one kind, one row each; a broken one says why."""
    titles = ("paper", "components", "origin") if with_components else ("origin",)
    table = _table(kind, "what", *titles)
    for outline in outlines:
        summary = Text(f"broken: {outline.problem}", style="red") if outline.problem else Text(outline.summary)
        more = (outline.paper, ", ".join(outline.components) or "–", outline.origin)
        table.add_row(Text(outline.name), summary, *map(Text, more if with_components else more[-1:]))
    make_console().print(table)


def print_recipes(recipes: list[Recipe]) -> None:
    """The shipped recipes, one row each."""
    table = _table("recipe", "px", "f", "images", "batch", "K", "d", "perceptual", "GAN")
    for r in recipes:
        numbers = (r.resolution, r.downsampling, f"{r.images:,}", r.batch_size, r.codebook_size, r.codebook_dim)
        table.add_row(r.name, *map(str, numbers), r.perceptual, r.gan)
    make_console().print(table)


def _print_fields(cls: type, values: dict[str, Any]) -> None:
    from vqbench.config import describe

    table = _table("field", "type", "default", "meaning")
    for field in describe(cls):
        default = values.get(field.name, field.default)
        meaning = field.meaning + (" (The paper leaves it open.)" if field.unspecified else "")
        table.add_row(*(Text(str(x)) for x in (field.name, field.type, default, meaning)))
    make_console().print(table)


def print_recipe(name: str) -> None:
    """Every field of a recipe with its value."""
    from vqbench.recipe import Recipe, load_recipe

    _print_fields(Recipe, load_recipe(name).as_dict())


def print_method(name: str) -> None:
    """A method's paper, fields, components and presets."""
    from vqbench.config import components
    from vqbench.paper import published_numbers
    from vqbench.reports.summary import DEFINITIONS

    console, cls, outline = make_console(), METHODS.get(name), METHODS.outline(name)
    published_numbers(cls, name, None)  # refuses what makes no sense, before anything is printed
    console.print(Text(outline.summary or name))
    console.print(Text(f"from {outline.origin}\n"))
    _print_fields(cls.Config, {})
    dropped = components(cls.Config)
    listed = ", ".join(f"{component} (field {field})" for component, field in dropped.items()) or "none"
    console.print(Text(f"\ncomponents that can be dropped: {listed}"))
    if cls.paper_rows:
        rows = ", ".join(f"{row.name} ({' + '.join(sorted(row.components)) or 'all off'})" for row in cls.paper_rows)
        console.print(Text(f"rows of the paper: {rows}"))
    for number in cls.published:
        forms = ", ".join(f"{name}@{preset}" if preset else name for preset in number.presets)
        value = f"{DEFINITIONS[number.metric].title} {number.value:g}"
        console.print(Text(f"published for {forms}: {value} on {number.measured_on} ({number.source})"))
    for field, domain in cls.search_space.items():
        from vqbench.sweeps.spaces import make_parameter

        parameter = make_parameter(name, cls.Config, field, domain, f"vqbench show {name}")
        console.print(Text(f"declares for sweeps ({domain.group or 'no group'}): {field} in {parameter.describe()}"))
    for preset, values in cls.presets.items():
        settings = ", ".join(f"{key}={value}" for key, value in values.items())
        console.print(Text(f"preset {name}@{preset}: {settings}"))
