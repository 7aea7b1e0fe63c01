"""Sending to MLflow: live by `vqbench run`, from a thread of its own, and what is missing by `vqbench sync`."""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqbench.cell.process import Store
from vqbench.errors import VQBenchError
from vqbench.machine.atomic import write_bytes_atomically, write_text_atomically
from vqbench.machine.json_files import read_json, write_json
from vqbench.machine.streams import say
from vqbench.results.cell_files import GRID, MLFLOW_RUN, TRACKING
from vqbench.results.cell_folder import CellFolder, cell_folders, results_of_nothing
from vqbench.tracking.mirror import Mirror, is_record
from vqbench.tracking.server import tracking_uri
from vqbench.wording import counted, masked, reason_of_library, shell_command, some

if TYPE_CHECKING:
    from vqbench.planning.plan import Cell, Plan

LIVE_SECONDS = 3.0  # between two looks at a training cell
STORE_SECONDS = 60.0  # that a server may take to say which run is a cell's
RETRY_SECONDS = 30.0  # before a server that did not answer is asked again
AGAIN_SECONDS = 1.0  # the same where a cell waits for the answer
Job = Callable[[Mirror], object]


def _records(folder: Path) -> list[Path]:
    """The records of the commands of an experiment, oldest first."""
    return sorted(path for path in folder.glob("*.json") if path.stem.isdigit())


def _take_number(folder: Path) -> int:
    """A number for the next command, its record reserved: two commands may start at once."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(path.stem) for path in _records(folder)), default=0)
    while True:
        try:
            (folder / f"{number:04d}.json").touch(exist_ok=False)
            return number
        except FileExistsError:
            number += 1


def _command_line() -> str:
    """The command that this process was started with, as it is typed into a shell."""
    program = Path(sys.argv[0])
    return shell_command(sys.argv if program.is_file() and os.access(program, os.X_OK) else sys.orig_argv)


@dataclass
class SyncReport:
    """What `sync` did."""

    cells: int
    problems: list[str]
    notes: list[str]
    """What was not there any more, and what became of it."""


def sync(runs: Path) -> SyncReport:
    """Send everything below `runs` that the tracking server lacks. Safe to repeat."""
    report = SyncReport(0, [], [])
    mirror = Mirror(runs)

    def sent(name: str, job: Job) -> object:
        """What a job gives; None where it fails, which is said."""
        try:
            return job(mirror)
        except Exception as error:
            report.problems.append(f"{name}: {reason_of_library(error, mirror.uri)}")
            return None

    for experiment in sorted(p.parent for p in runs.absolute().glob("*/commands")):
        try:
            mirror.look(experiment)
        except Exception as error:
            hint = f"; {error.hint}" if isinstance(error, VQBenchError) else ""
            report.problems.append(f"{experiment.name}: {reason_of_library(error, mirror.uri)}{hint}")
            continue
        for folder in cell_folders(experiment):
            report.cells += bool(sent(folder.name, methodcaller("cell", folder)))
        report.problems += results_of_nothing(experiment)
        gone = {path for path in mirror.gone if path.parent.parent == experiment}
        for command in sorted({*_records(experiment / "commands"), *gone}):
            if not is_record(read_json(command)):
                lost = "gone" if command in gone else "not whole"
                report.problems.append(f"{command.name}: the record of this command is {lost}")
                continue
            sent(command.name, methodcaller("command", command))
    if mirror.restored:
        report.notes.append(f"{counted(len(mirror.restored), 'run')} had been deleted in MLflow: restored")
    if mirror.lost:
        report.notes.append(f"{counted(len(mirror.lost), 'run')} MLflow did not have any more: sent again")
    return report


class Tracker:
    """Mirrors a running command from a thread, so that neither training nor Ctrl-C waits for a server."""

    def __init__(self, runs: Path, say: Callable[[str], None] = say) -> None:
        self.runs = runs
        self.say = say
        self.trouble = ""
        self._way_out = ""  # the hint of what is the trouble, where it has one
        self._not_before = 0.0
        self._last_look = 0.0
        self._mirror: Mirror | None = None
        self._jobs: queue.Queue[tuple[Job, float] | None] = queue.Queue()  # each with the time until which it is tried
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._record: Path | None = None
        self._tags: dict[str, dict[str, str]] = {}

    def knows(self, plan: Plan, kind: str) -> bool:
        """Whether a finished command of this kind had the same cells."""
        records = map(read_json, _records(plan.folder / "commands"))
        wanted = (kind, [cell.folder.name for cell in plan.cells], "FINISHED")
        return any(
            record and (record.get("kind"), record.get("cells"), record.get("state")) == wanted for record in records
        )

    def start_command(self, plan: Plan, kind: str, title: str = "") -> None:
        """Write the command's record and announce it as a parent run; `kind` is the command's name.

        A command that knows its cells in the end alone has a `title`, and the plan's cells stand for its methods.
        """
        folder = plan.folder / "commands"
        number = _take_number(folder)
        methods = list(dict.fromkeys(cell.label for cell in plan.cells))
        named = f"{kind} {some(methods, 4) if kind in ('run', 'eval') else plan.cells[0].spec['method']}"
        record = {
            "id": uuid.uuid4().hex,
            "kind": kind,
            "name": f"{number:04d} {title or named}",
            "cells": [] if title else [cell.folder.name for cell in plan.cells],
            "experiment": plan.experiment,
            "command": _command_line(),
            "methods": ",".join(methods),
            "dataset": plan.cells[0].spec["dataset"]["slug"],
            "recipe": plan.recipe.name,
            "seeds": ",".join(str(s) for s in dict.fromkeys(cell.seed for cell in plan.cells)),
            "protocol": plan.protocol.hash,
            "note": plan.protocol.describe(),
            "started": round(time.time(), 3),
            "state": "RUNNING",
        }
        self._record = folder / f"{number:04d}.json"
        write_json(self._record, record)
        self._thread.start()
        self._do(methodcaller("command", self._record))

    def tag_cell(self, cell: Cell, tags: Mapping[str, str]) -> None:
        """Give a cell's run these tags, if it is started later."""
        self._tags[cell.folder.name] = dict(tags)

    def start_cell(self, cell: Cell, anew: bool) -> None:
        """Note which command this cell belongs to, and announce it; trained `anew`, it gets a run of its own."""
        assert self._record is not None
        path = cell.folder.path / TRACKING
        known = read_json(path) or {}
        if anew or "attempt" not in known:
            known = {"attempt": uuid.uuid4().hex[:8], "started": round(time.time(), 3)}
        kept = {key: known[key] for key in ("attempt", "started") if key in known}
        tags = {"tags": self._tags[cell.folder.name]} if cell.folder.name in self._tags else {}
        write_json(path, {**kept, "command": self._record.stem, "label": cell.label, **tags})
        self._do(methodcaller("cell", cell.folder))

    def store_of(self, cell: Cell) -> Store:
        """The run of a cell that `start_cell` announced. Raises VQBenchError if the server does not answer."""
        answer: queue.Queue[str | VQBenchError] = queue.Queue()

        def ask(mirror: Mirror) -> None:
            try:
                mirror.cell(cell.folder)
            except VQBenchError as error:  # asking again would not help
                answer.put(error)
                return
            answer.put((read_json(cell.folder.path / MLFLOW_RUN) or {})["run_id"])

        # nobody makes up for an answer that a cell waits for, so it is asked for again and again
        self._do(ask, until=time.monotonic() + STORE_SECONDS)
        uri = tracking_uri(self.runs)
        try:
            found = answer.get(timeout=STORE_SECONDS)
        except queue.Empty:
            raise VQBenchError(
                f"MLflow at {masked(uri)} does not answer, and without a shared disk results travel through it",
                "start the server, then give the command again",
            ) from None
        if isinstance(found, VQBenchError):
            raise found
        return Store(uri, found)

    def poke(self, folders: list[CellFolder]) -> None:
        """Have the curves of cells that train sent, every few seconds."""
        now = time.monotonic()
        if now - self._last_look > LIVE_SECONDS and self._jobs.empty():
            self._last_look = now
            for folder in folders:
                self._do(methodcaller("cell", folder))

    def finish_cell(self, cell: Cell) -> None:
        """Have the result sent."""
        self._do(methodcaller("cell", cell.folder))

    def end_cells(self, folders: Iterable[CellFolder]) -> None:
        """Have the runs of cells that were given up closed; a command that goes on with one opens it again."""
        for folder in folders:
            if (record := read_json(folder.path / TRACKING)) is not None:
                write_json(folder.path / TRACKING, {**record, "given_up": True})
                self._do(methodcaller("cell", folder))

    def finish_command(
        self,
        plan: Plan,
        rows: list[dict[str, Any]],
        attach: Callable[[], Mapping[str, str]],
        complete: bool | None = None,
        files: Iterable[Path] = (),
    ) -> None:
        """Attach the comparison to the parent run, close it, and wait until everything is sent.

        `attach` makes the texts to attach, by suffix: md, jsonl; `files` are attached too. Complete is a command whose
        cells all have rows and none of them failed, unless `complete` says it.
        """
        assert self._record is not None
        record = self._record
        if complete is None:
            complete = len(rows) == len(plan.cells) and all(row["state"] != "failed" for row in rows)
        try:
            self._attach(record, rows, attach())
            for file in files:
                write_bytes_atomically(record.with_name(f"{record.stem}.{file.name}"), file.read_bytes())
            cells = {"cells": [cell.folder.name for cell in plan.cells]}
            state = "FINISHED" if complete else "FAILED"
            ended = {"ended": round(time.time(), 3)}
            write_json(record, {**(read_json(record) or {}), **cells, **ended, "state": state})
        except Exception as error:  # neither a full disk nor a table that cannot be drawn may cost what was trained
            self.trouble = reason_of_library(error)
        self._do(methodcaller("command", record))
        self._jobs.put(None)
        self._thread.join()
        if self.trouble:
            uri, again = tracking_uri(self.runs), shell_command(["vqbench", "sync", "--runs", self.runs])
            self.say(f"warning: MLflow at {masked(uri)} did not take everything: {self.trouble}")
            self.say(f"hint: nothing is lost; {self._way_out}`{again}` sends the rest")

    @staticmethod
    def _attach(record: Path, rows: list[dict[str, Any]], texts: Mapping[str, str]) -> None:
        from vqbench.reports.figures import draw_side_by_side

        for suffix, text in texts.items():
            write_text_atomically(record.with_suffix(f".{suffix}"), text)
        draw_side_by_side({row["method"]: Path(row["path"]) / GRID for row in rows}, record.with_suffix(".png"))

    def _do(self, job: Job, until: float = 0.0) -> None:
        """Have the thread do a job: once, unless the server was away just now; or again and again, at most `until`."""
        self._jobs.put((job, until))

    def _work(self) -> None:
        while (asked := self._jobs.get()) is not None:
            job, until = asked
            if not until and time.monotonic() < self._not_before:
                continue  # a later job, or `sync`, sends all that is missing
            while not self._is_done(job) and time.monotonic() < until:
                time.sleep(AGAIN_SECONDS)

    def _is_done(self, job: Job) -> bool:
        """Do a job; whether the server took it."""
        try:
            self._mirror = self._mirror or Mirror(self.runs)
            job(self._mirror)
        except Exception as error:
            self.trouble = reason_of_library(error, tracking_uri(self.runs))
            self._way_out = f"{error.hint}; then " if isinstance(error, VQBenchError) else ""
            self._mirror = None  # what it knows of the server's runs may be true no more
            self._not_before = time.monotonic() + RETRY_SECONDS
            return False
        self._not_before = 0.0
        return True
