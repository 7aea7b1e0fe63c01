"""The cells of a command while they run: on an engine, watched by a view, mirrored by a tracker."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vqbench.cell.process import BUSY, POLL_SECONDS, CellJob, Ended, failure_to_write, stored_end, write_job, write_spec
from vqbench.errors import UsageError, VQBenchError
from vqbench.machine import interrupts
from vqbench.machine.lease import CellBusyError
from vqbench.metrics.definitions import current_scores
from vqbench.metrics.row import cell_row
from vqbench.planning.plan import Cell
from vqbench.planning.request import RunRequest
from vqbench.planning.view import View
from vqbench.results.cell_files import DONE, FAILED
from vqbench.results.cell_folder import failure
from vqbench.results.problems import spec_problem
from vqbench.running.engine import Engine, open_engine
from vqbench.tracking.transfer import AWAY

if TYPE_CHECKING:
    from vqbench.tracking.tracker import Tracker

_AGAIN_SECONDS = 1.0  # before a folder that another command held is asked for again


def row_of(cell: Cell, state: str, error: dict[str, Any] | None = None) -> dict[str, Any]:
    """A cell as one JSON object; `state` is done, failed, cached or stopped, or for a dry run partial or missing.

    `error` is the reason of a failure that could not be written to the cell's folder.
    """
    result = cell.folder.result or {}
    return cell_row(cell.label, cell.spec, cell.folder, state, {**result, "scores": current_scores(result)}, error)


def cached_row(cell: Cell, say: Callable[[str], None]) -> dict[str, Any]:
    """The row of a cell that has its result; its spec, which the plan knows, is written again where it was lost.

    `say` hears of it: reports and MLflow see no cell without a spec.
    """
    spec = cell.folder.spec
    if spec_problem(spec) or spec.get("hash") != cell.spec["hash"]:
        try:
            with cell.folder.locked():
                write_spec(CellJob(cell.folder.path, cell.spec, cell.plugin_sources))
            say(f"{cell.folder.name}: spec.json was not whole, and is written again")
        except (CellBusyError, OSError) as error:
            say(f"{cell.folder.name}: spec.json is not whole, and cannot be written again: {error}")
    return row_of(cell, "cached")


class Execution:
    """Cells under way: submitted one by one, reported as rows when they have ended."""

    def __init__(
        self, request: RunRequest, engine: Engine, view: View, tracker: Tracker | None, total: int | None = None
    ) -> None:
        self._request, self._engine, self._view, self._tracker = request, engine, view, tracker
        self._total = total
        if tracker is None and not engine.shares_disk:
            raise UsageError("without a shared disk results travel through MLflow", "do not switch tracking off")
        self._submitted = 0
        self._cells: dict[str, Cell] = {}
        self._waiting: dict[str, float] = {}  # cells that another command holds, and when to ask again
        self._over: dict[str, dict[str, Any]] = {}  # rows that `wait` has not returned yet
        self._said: set[tuple[str, str]] = set()  # what was said of which cell

    @property
    def free(self) -> int:
        """How many more cells could be submitted and would start now; one that another command holds takes no slot."""
        return max(0, self._engine.slots - (len(self._cells) - len(self._waiting)))

    @property
    def running(self) -> tuple[Cell, ...]:
        """The cells that were submitted and that `wait` has not returned yet."""
        return tuple(self._cells.values())

    def submit(self, cell: Cell) -> None:
        """Train and evaluate `cell` as soon as there is a slot for it."""
        self._submitted += 1
        self._cells[cell.folder.name] = cell
        self._view.cell_started(cell, self._submitted, self._total or self._submitted)
        self._try(cell)

    def _try(self, cell: Cell) -> None:
        """Start a cell, unless another command has run it since the plan was made, or holds it now."""
        job = CellJob(cell.folder.path, cell.spec, cell.plugin_sources, self._request.cell_timeout)
        self._waiting.pop(job.name, None)
        try:
            with cell.folder.locked():
                if cell.folder.stamp() != cell.found and (known := stored_end(job)) is not None:
                    return self._end(cell, "cached" if known.state == DONE else known.state)
                if (later := cell.folder.later) and not self._request.rerun:
                    hint = "use that vqbench, or another --runs DIR"
                    return self._end(cell, FAILED, failure("VQBenchError", later, hint, "start"))
                for lost in write_job(job, anew=self._request.rerun):
                    self._view.note(lost)
                if self._engine.shares_disk:  # from now on what is here is newer than what a store may hold
                    (cell.folder.path / AWAY).unlink(missing_ok=True)
        except CellBusyError:
            self._waiting[job.name] = time.monotonic() + _AGAIN_SECONDS
            return None
        except OSError as error:
            return self._end(cell, FAILED, failure_to_write(error))
        if self._tracker is not None:
            # without a shared disk a cell that was interrupted, or that was given up, has its checkpoint in its run
            is_away = cell.state != FAILED or (cell.folder.path / AWAY).is_file()
            may_go_on = cell.folder.can_go_on or (is_away and not self._engine.shares_disk)
            self._tracker.start_cell(cell, anew=self._request.rerun or not may_go_on)
        if not self._engine.shares_disk:
            assert self._tracker is not None
            try:
                job = replace(job, store=self._tracker.store_of(cell))
            except VQBenchError as error:
                return self._end(cell, FAILED, failure("VQBenchError", error.what, error.hint, "start"))
        self._engine.start(job)
        return None

    def _end(self, cell: Cell, state: str, error: dict[str, Any] | None = None) -> None:
        self._over[cell.folder.name] = row_of(cell, state, error)
        self._view.cell_finished(cell, self._over[cell.folder.name])

    def wait(self) -> list[tuple[Cell, dict[str, Any]]]:
        """Cells that have ended since the last call, each with its row; waits for one, but not for long."""
        interrupts.check()
        ended = self._engine.ended()
        if not ended and not self._over and len(self._waiting) == len(self._cells):
            time.sleep(POLL_SECONDS)
        for name, end in ended:
            if name not in self._over:
                self._finish(self._cells[name], end)
        for name, at in list(self._waiting.items()):
            if time.monotonic() > at:
                self._try(self._cells[name])
        self._look()
        over, self._over = self._over, {}
        return [(self._cells.pop(name), row) for name, row in over.items()]

    def _finish(self, cell: Cell, end: Ended) -> None:
        if end.state == BUSY:
            self._waiting[cell.folder.name] = time.monotonic() + _AGAIN_SECONDS
            return
        self._note(cell, cell.folder.status)  # of a cell that was over before anybody looked
        if self._tracker is not None:
            self._tracker.finish_cell(cell)
        self._end(cell, end.state, end.error)

    def _look(self) -> None:
        under_way = {name: cell for name, cell in self._cells.items() if name not in self._over}
        for name, cell in under_way.items():
            status = cell.folder.status
            if name not in self._waiting:
                self._note(cell, status)
            waits = {"stage": "waits for another command"} if name in self._waiting else {}
            self._view.cell_progress(cell, {**status, **waits})
        if self._tracker is not None:
            self._tracker.poke([cell.folder for name, cell in under_way.items() if name not in self._waiting])

    def _note(self, cell: Cell, status: Mapping[str, Any]) -> None:
        """Say aloud what a cell says of itself, each sentence once."""
        for text in status.get("says", ()):
            if (cell.folder.name, text) not in self._said:
                self._said.add((cell.folder.name, text))
                self._view.note(f"{cell.folder.name}: {text}")

    def stop(self, cell: Cell) -> None:
        """End a cell in good order; its checkpoint stays, and `wait` gives its row with the state stopped."""
        if self._waiting.pop(cell.folder.name, None) is not None:
            self._end(cell, "stopped")
        else:
            self._engine.stop(cell.folder.name)


@contextlib.contextmanager
def open_execution(
    request: RunRequest, view: View, tracker: Tracker | None, total: int | None = None
) -> Iterator[Execution]:
    """An execution on the engine that the request asks for; whatever still runs in the end is stopped.

    Raises UsageError where the engine cannot be had.
    """
    engine = open_engine(request, view)
    try:
        yield Execution(request, engine, view, tracker, total)
    finally:
        engine.close()
