"""From a request to its rows: check, plan, run what has no result."""

from __future__ import annotations

import contextlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqbench import arguments
from vqbench.machine.json_files import write_json
from vqbench.machine.lease import CellBusyError
from vqbench.metrics.definitions import DEFINITIONS, asked_metrics, refuse_few_images, stored_definitions
from vqbench.planning.plan import Cell, Plan, Resolved, check_request, make_plan
from vqbench.planning.request import RunRequest, make_request
from vqbench.planning.view import Silent, View
from vqbench.results.cell_files import FAILED, SPEC
from vqbench.running.engine import open_engine
from vqbench.running.execution import Execution, cached_row

if TYPE_CHECKING:
    import pandas as pd

    from vqbench.tracking.tracker import Tracker


@dataclass(frozen=True)
class Outcome:
    """What a command came to."""

    plan: Plan
    rows: list[dict[str, Any]]
    """One per cell, in the plan's order, as `--json` prints them."""
    page: Path | None = None
    """The experiment's page, where it was asked for."""

    @property
    def cautions(self) -> dict[str, str]:
        """Metric → what must be said wherever it is shown."""
        return {name: said for row in self.rows for name, said in row.get("cautions", {}).items()}

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The rows of failed cells."""
        return [row for row in self.rows if row["state"] == FAILED]


def prepare_plan(asked: Resolved, view: View, dry: bool = False) -> Plan:
    """What else can be found wrong before training, found now; then the cells.

    Metric weights that are missing are downloaded; a dry run only says which. Raises UsageError. Writes nothing
    below the runs directory.
    """
    from vqbench.planning.preflight import choose_metrics, missing_weights

    metrics = choose_metrics(asked.request, asked.recipe, download=not dry)
    for problem in missing_weights(asked, metrics, download=not dry):
        if not dry:
            raise problem
        view.note(f"this run would need weights: {problem.what}")
    plan = make_plan(asked, metrics.names, lambda done, total: view.preparing("validation images", done, total))
    refuse_few_images(metrics.names, plan.protocol.n_images)
    DEFINITIONS.tell(stored_definitions(metrics.names))  # an experiment that was read before may have others
    for note in (*plan.notes, *metrics.notes):
        view.note(note)
    return plan


def _comparison(outcome: Outcome) -> dict[str, str]:
    from vqbench.reports.summary import markdown_table, summarise

    summaries = summarise(outcome.rows, outcome.plan.asked)
    table = markdown_table(summaries, outcome.plan.protocol.name, outcome.cautions.values())
    return {"md": table, "jsonl": "".join(json.dumps(row) + "\n" for row in outcome.rows)}


def execute(
    asked: Resolved,
    view: View | None = None,
    tracker: Tracker | None = None,
    attach: Callable[[Outcome], Mapping[str, str]] = _comparison,
    kind: str = "run",
) -> Outcome:
    """Plan, train what has no result, and return a row per cell. A failed cell does not stop the others.

    `kind` is the command; what `attach` makes of the outcome (by suffix: md, jsonl) goes to its parent run. A command
    that finds everything trained has a parent run too, unless one of its kind has had the same cells, or it is `run`.
    """
    from vqbench.planning.preflight import check_disk, check_runs_directory, prepare_training

    view = view or Silent()
    request, plan = asked.request, prepare_plan(asked, view)
    cached = [] if request.rerun else [cell for cell in plan.cells if cell.state == "cached"]
    todo = [cell for cell in plan.cells if request.rerun or cell.state != "cached"]
    if todo:
        check_runs_directory(plan.folder)
        check_disk(plan, todo)
        prepare_training(plan, todo, request, view)
    _remember(cached)
    rows = {cell.folder.name: cached_row(cell, view.note) for cell in cached}
    if tracker is not None and not todo and (kind == "run" or tracker.knows(plan, kind)):
        tracker = None
    engine = open_engine(request, view) if todo else None
    if tracker is not None:
        tracker.start_command(plan, kind)
    try:
        if engine is not None:
            _run_all(todo, Execution(request, engine, view, tracker, len(todo)), rows)
    finally:
        if engine is not None:
            engine.close()
        ordered = [rows[cell.folder.name] for cell in plan.cells if cell.folder.name in rows]
        whole = len(ordered) == len(plan.cells)
        page = write_page(plan.folder, view, trained=bool(todo)) if request.page and whole else None
        outcome = Outcome(plan, ordered, page)
        if tracker is not None:
            tracker.finish_command(plan, ordered, lambda: attach(outcome), files=[page] if page is not None else [])
    return outcome


def _remember(cells: Iterable[Cell]) -> None:
    """Have finished cells carry what this command asks of them by name, so that reports show it too; and of a tokenizer
    that was trained already the name that it is given, and its training, which an earlier vqbench did not know."""
    for cell in cells:
        stored, more = cell.folder.spec, dict[str, Any]()
        before = asked_metrics(stored)
        asked = dict.fromkeys((*before, *cell.spec["asked"]))
        if len(asked) > len(before):
            more["asked"] = list(asked)
        known, was = cell.spec.get("pretrained"), stored.get("pretrained", {})
        is_told_more = known and known.get("trained_as") and "trained_as" not in was
        if known and (is_told_more or known.get("named") != was.get("named")):
            more |= {key: cell.spec[key] for key in ("label", "seed", "pretrained")}
        if stored and more:
            with contextlib.suppress(OSError, CellBusyError), cell.folder.locked():
                write_json(cell.folder.path / SPEC, {**stored, **more})


def write_page(experiment: Path, view: View, trained: bool) -> Path | None:
    """The experiment's page, brought up to date by a command that trained; None, and the view is told, where it is not.

    A command that finds everything trained should answer at once, so it writes none.
    """
    from vqbench.reports.refresh import command_for, is_current, page_of, refresh_page

    if is_current(experiment):
        return page_of(experiment)
    if not trained:
        view.note(f"`{command_for(experiment)}` writes a page of tables and figures")
        return None
    return refresh_page(experiment, view.note)


def _run_all(todo: Iterable[Cell], execution: Execution, rows: dict[str, dict[str, Any]]) -> None:
    """Run cells in their order, as many at a time as there is room for; their rows come into `rows`."""
    waiting = deque(todo)
    while waiting or execution.running:
        while waiting and execution.free:
            execution.submit(waiting.popleft())
        rows |= {cell.folder.name: row for cell, row in execution.wait()}


@arguments.offers(RunRequest)
def run(
    methods: str | Iterable[str], dataset: str | os.PathLike[str] = "", *, track: bool = True, **options: Any
) -> pd.DataFrame:
    """Train and compare methods, as `vqbench run` does; one row per cell, one column per score.

    `options` are the command's, see RunRequest; `track=False` leaves MLflow out. A failed cell is a row whose `error`
    says why. Raises UsageError for what cannot be run at all.
    """
    request = make_request(methods, dataset, run, **options)
    return frame(execute(check_request(request), tracker=make_tracker(request, track)).rows)


def make_tracker(request: RunRequest, track: bool = True) -> Tracker | None:
    """The tracker for a request's runs directory, or for `$MLFLOW_TRACKING_URI`; None where MLflow is left out.

    Raises UsageError for a `track` that is neither True nor False.
    """
    from vqbench.tracking.tracker import Tracker

    return Tracker(request.runs.absolute()) if arguments.flag("track", track) else None


_OWN_COLUMNS = ("scores", "params", "error", "cautions", "digests", "pretrained")
"""Keys of a row that make columns of their own."""


def frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows of `row_of` as a table: scores and parameter counts in columns of their own."""
    import pandas as pd

    flat = []
    for row in rows:
        plain = {k: v for k, v in row.items() if k not in _OWN_COLUMNS}
        said = {"cautions": "; ".join(row["cautions"].values())} if "cautions" in row else {}
        said |= {"source": row["pretrained"]["source"]} if "pretrained" in row else {}
        params = {f"params_{part}": count for part, count in row["params"].items()}
        error = row["error"]["message"] if row["error"] else None
        flat.append({**plain, **row["scores"], **params, **said, "error": error})
    return pd.DataFrame(flat)
