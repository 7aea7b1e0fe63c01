"""Running the cells of a plan, one process each, and reading their rows."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from vqbench.atomic import write_bytes_atomically
from vqbench.errors import UsageError
from vqbench.plan import Cell, Plan, RunRequest, make_plan, resolve
from vqbench.reasons import death_of
from vqbench.results import DONE, EXIT_BUSY, FAILED, CellBusyError, CellFolder, write_json
from vqbench.view import Silent, View

if TYPE_CHECKING:
    import pandas as pd

    from vqbench.tracking import Tracker

POLL_SECONDS = 0.25
_RANK_VARIABLES = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
"""A scheduler's, for processes that it starts; a cell that inherited them would take itself for one of several."""


@dataclass(frozen=True)
class Outcome:
    """What a command came to."""

    plan: Plan
    rows: list[dict[str, Any]]
    """One per cell, in the plan's order, as `--json` prints them."""

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The rows of failed cells."""
        return [row for row in self.rows if row["state"] == FAILED]


def row_of(cell: Cell, state: str, error: dict[str, Any] | None = None) -> dict[str, Any]:
    """A cell as one JSON object; `state` is done, failed or cached, or for a dry run partial or missing.

    `error` is the reason of a failure that could not be written to the cell's folder.
    """
    stored, spec = cell.folder.result or {}, cell.spec
    result = stored if state != FAILED else {}
    return {
        "cell": cell.folder.name,
        "method": cell.label,
        "dataset": spec["dataset"]["slug"],
        "recipe": spec["recipe"]["name"],
        "seed": spec["seed"],
        "protocol": spec["protocol"]["hash"],
        "state": state,
        "scores": result.get("scores", {}),
        "params": result.get("params", {}),
        "train_images_per_s": result.get("train_images_per_s"),
        "path": str(cell.folder.path),
        "collapse": stored.get("collapse"),
        "error": (error or cell.folder.error) if state == FAILED else None,
    }


def prepare_plan(request: RunRequest, view: View, dry: bool = False) -> Plan:
    """Everything that can be found wrong before training, found now; then the cells.

    Metric weights that are missing are downloaded; a dry run only says which. Raises UsageError. Writes nothing
    below the runs directory.
    """
    from vqbench.preflight import perceptual_problem, track_metrics
    from vqbench.registry import METHODS

    for plugin in request.plugins:
        METHODS.add_file(plugin)
    recipe, _ = resolve(request)  # a typing error should be said before anything is downloaded or decoded
    metrics = track_metrics(request, recipe, download=not dry)
    for problem in (*metrics.problems, perceptual_problem(request, recipe.perceptual, download=not dry)):
        if problem is not None and not dry:
            raise problem
        if problem is not None:
            view.note(f"this run would need weights: {problem.what}")
    plan = make_plan(request, metrics.names, lambda done, total: view.preparing("validation images", done, total))
    if plan.protocol.n_images < 2 and {"rfid", "kid"} & set(metrics.names):
        raise UsageError("rfid and kid need at least 2 validation images", "leave them out: --metrics psnr,ssim,usage")
    for note in (*plan.notes, *metrics.notes):
        view.note(note)
    return plan


def _comparison(outcome: Outcome) -> dict[str, str]:
    from vqbench.reports.summary import markdown_table, summarise

    table = markdown_table(summarise(outcome.rows), outcome.plan.protocol.name)
    return {"md": table, "jsonl": "".join(json.dumps(row) + "\n" for row in outcome.rows)}


def execute(
    request: RunRequest,
    view: View | None = None,
    tracker: Tracker | None = None,
    attach: Callable[[Outcome], Mapping[str, str]] = _comparison,
    kind: str = "run",
) -> Outcome:
    """Plan, train what has no result, and return a row per cell. A failed cell does not stop the others.

    `kind` is the command; what `attach` makes of the outcome (by suffix: md, jsonl) goes to its parent run. A command
    that finds everything trained has a parent run too, unless one of its kind has had the same cells, or it is `run`.
    """
    from vqbench.preflight import check_devices, check_disk, check_runs_directory
    from vqbench.sources import prepare_training

    view = view or Silent()
    plan = prepare_plan(request, view)
    todo = [cell for cell in plan.cells if request.rerun or cell.state != "cached"]
    if todo:
        check_devices(request.devices)
        check_runs_directory(plan.folder)
        check_disk(plan, todo)
        prepare_training(request, plan.recipe, view.preparing)
    rows = {cell.folder.name: row_of(cell, "cached") for cell in plan.cells if cell not in todo}
    if tracker is not None and not todo and (kind == "run" or tracker.knows(plan, kind)):
        tracker = None
    if tracker is not None:
        tracker.start_command(plan, kind)
    try:
        for position, cell in enumerate(todo, start=1):
            view.cell_started(cell, position, len(todo))
            rows[cell.folder.name] = _row_of_running(cell, request.rerun, view, tracker)
            view.cell_finished(cell, rows[cell.folder.name])
    finally:
        ordered = [rows[cell.folder.name] for cell in plan.cells if cell.folder.name in rows]
        outcome = Outcome(plan, ordered)
        if tracker is not None:
            tracker.finish_command(plan, ordered, lambda: attach(outcome))
    return outcome


def _row_of_running(cell: Cell, rerun: bool, view: View, tracker: Tracker | None) -> dict[str, Any]:
    """Run a cell. What keeps even the reason of a failure from being written, a full disk say, is in the row alone."""
    try:
        return row_of(cell, _run_one(cell, rerun, view, tracker))
    except OSError as error:
        hint = "free some space, then give the command again" if error.errno == errno.ENOSPC else "look at its folder"
        failure = {"type": type(error).__name__, "message": str(error), "hint": hint, "stage": "start", "log_tail": ""}
        return row_of(cell, FAILED, failure)


def _run_one(cell: Cell, rerun: bool, view: View, tracker: Tracker | None) -> str:
    """Train and evaluate one cell in a process of its own; done, failed, or cached if another command just did."""
    while True:
        try:
            with cell.folder.locked():
                if not rerun and cell.folder.state(tuple(cell.spec["metrics"])) == "cached":
                    return "cached"
                _make_ready(cell, rerun)
        except CellBusyError:
            view.cell_progress(cell, {"stage": "waits for another command", **cell.folder.status})
            time.sleep(4 * POLL_SECONDS)
            continue
        if tracker is not None:
            tracker.start_cell(cell, anew=not cell.folder.can_go_on)
        started = time.time()
        returncode = _watch(_start(cell.folder), cell, view, tracker)
        if returncode != EXIT_BUSY:  # else another command took the cell between our look and our process's
            break
    if _died_without_a_word(cell.folder, returncode):
        _record_death(cell.folder, returncode, started)
    if tracker is not None:
        tracker.finish_cell(cell)
    return DONE if returncode == 0 and (cell.folder.result or {}).get("state") == DONE else FAILED


def _watch(process: subprocess.Popen[bytes], cell: Cell, view: View, tracker: Tracker | None) -> int:
    try:
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            view.cell_progress(cell, cell.folder.status)
            if tracker is not None:
                tracker.poke(cell)
    except BaseException:
        _stop(process)
        raise
    return process.returncode


def _died_without_a_word(folder: CellFolder, returncode: int) -> bool:
    return folder.error is None and (returncode != 0 or folder.result is None)


def _make_ready(cell: Cell, rerun: bool) -> None:
    folder = cell.folder
    folder.path.mkdir(parents=True, exist_ok=True)
    stale = ["status.json", "failure.json"]
    if rerun or (folder.result or {}).get("state") != DONE:  # a result that lacks a metric stays until it is completed
        stale.append("result.json")
    if rerun:
        stale += [
            "metrics.jsonl",
            "checkpoints/last.pt",
            "checkpoints/tokenizer.safetensors",
            "checkpoints/training.json",
        ]
    for name in stale:
        (folder.path / name).unlink(missing_ok=True)
    write_json(folder.path / "spec.json", cell.spec)
    if cell.plugin_source is not None:
        write_bytes_atomically(folder.path / "plugin.py", cell.plugin_source)


def _start(folder: CellFolder) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "vqbench.cell", str(folder.path / "spec.json")]
    env = {name: value for name, value in os.environ.items() if name not in _RANK_VARIABLES}
    env["PYTHONSAFEPATH"] = "1"  # a lightning.py in the user's folder is not ours to import
    with folder.log.open("ab") as log:
        log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {' '.join(command)}\n".encode())
        log.flush()
        # a session of its own: Ctrl-C reaches this process alone, which then ends the cell in good order
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True
        )


def _stop(process: subprocess.Popen[bytes]) -> None:
    # what was trained since the last checkpoint is lost either way, so there is nothing to wait long for
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)  # and the processes of its other devices
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _record_death(folder: CellFolder, returncode: int, started: float) -> None:
    """A process that ended without a word, killed or crashed, still leaves a result."""
    stage = str(folder.status.get("stage", "start"))
    if returncode < 0:
        message = death_of(-returncode, stage)
    else:
        message = f"the process exited with {returncode} during {stage} and left no result"
    folder.write_failure("Killed", message, f"its last words are in {folder.log}", stage, started)


class RunKeywords(TypedDict, total=False):
    """What `run` and `ablate` take beside methods and dataset: the options of the commands (`settings` is --set)."""

    features: str | os.PathLike[str] | None
    data_root: str | os.PathLike[str] | None
    recipe: str
    seeds: Iterable[int]
    images: int | None
    devices: int
    runs: str | os.PathLike[str]
    name: str
    settings: Iterable[str]
    plugins: Iterable[str | os.PathLike[str]]
    metrics: Iterable[str]
    lpips: str | None
    inception_weights: str | os.PathLike[str] | None
    lpips_weights: str | os.PathLike[str] | None
    validation_images: int | None
    rerun: bool
    stop_on_collapse: bool


_PATHS = ("features", "data_root", "runs", "inception_weights", "lpips_weights")
_LISTS = ("seeds", "settings", "metrics")


def make_request(methods: Sequence[str] | str, dataset: str = "", **options: Unpack[RunKeywords]) -> RunRequest:
    """Keyword arguments as a request. Raises TypeError for one that does not exist."""
    values: dict[str, Any] = dict(options)
    values |= {name: Path(values[name]) for name in _PATHS if values.get(name) is not None}
    values |= {name: tuple(values[name]) for name in _LISTS if name in values}
    values["plugins"] = tuple(map(Path, values.get("plugins", ())))
    names = tuple(m.strip() for m in methods.split(",")) if isinstance(methods, str) else tuple(methods)
    return RunRequest(methods=names, dataset=dataset, **values)


def run(
    methods: Sequence[str] | str, dataset: str = "", *, track: bool = True, **options: Unpack[RunKeywords]
) -> pd.DataFrame:
    """Train and compare methods, as `vqbench run` does; one row per cell, one column per score.

    `options` are the command's, see RunKeywords; `track=False` leaves MLflow out. A failed cell is a row whose
    `error` says why. Raises UsageError for what cannot be run at all.
    """
    request = make_request(methods, dataset, **options)
    return frame(execute(request, tracker=make_tracker(request) if track else None).rows)


def make_tracker(request: RunRequest) -> Tracker:
    """The tracker for a request's runs directory, or for `$MLFLOW_TRACKING_URI`."""
    from vqbench.tracking import Tracker

    return Tracker(request.runs.absolute())


def frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows of `row_of` as a table: scores and parameter counts in columns of their own."""
    import pandas as pd

    flat = []
    for row in rows:
        plain = {k: v for k, v in row.items() if k not in ("scores", "params", "error")}
        params = {f"params_{part}": count for part, count in row["params"].items()}
        error = row["error"]["message"] if row["error"] else None
        flat.append({**plain, **row["scores"], **params, "error": error})
    return pd.DataFrame(flat)
