"""The loop of a sweep: ask trials while there is room, submit their cells, prune, tell. Trials are cells of `run`."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vqbench.errors import ArtifactError, UsageError, VQBenchError
from vqbench.metrics.definitions import metric
from vqbench.planning.plan import Cell, Plan, Resolved, make_plan, resolve
from vqbench.planning.view import View
from vqbench.results.cell_files import DONE, FAILED
from vqbench.results.cell_folder import failure
from vqbench.running.execution import Execution, cached_row, row_of
from vqbench.sweeps.spaces import settings_of
from vqbench.sweeps.trials import LiveTrial
from vqbench.sweeps.watched import Watched, images_seen, new_points, watched

if TYPE_CHECKING:
    from vqbench.sweeps.backend import OpenStudy
    from vqbench.sweeps.plan import SweepPlan
    from vqbench.tracking.tracker import Tracker

PRUNE_SECONDS = 0.5  # between two looks at the curves


class Driver:
    """One sweep under way."""

    def __init__(self, plan: SweepPlan, studies: list[OpenStudy], view: View, tracker: Tracker | None) -> None:
        request = plan.request
        self.plan, self.studies, self.view, self.tracker = plan, studies, view, tracker
        self.deadline = time.monotonic() + request.timeout if request.timeout is not None else math.inf
        self.watched: Watched | None = None
        """What the pruner looks at."""
        if request.pruner != "none":
            maximize = metric(request.objectives[0]).better == "higher"
            self.watched = watched(request.objectives[0], maximize, plan.base.track.watched)
        self.metrics = tuple(plan.base.cells[0].spec["metrics"])
        self.live: list[LiveTrial] = []
        self.queue: list[Cell] = []
        self.cells: dict[str, Cell] = {}
        """Every cell of a trial of this command."""
        self.ended: dict[str, dict[str, Any]] = {}
        self.spent = sum(study.images for study in studies)
        self.reason = ""
        """What ended the sweep before its trials did."""
        self._pruned: set[str] = set()
        self._before: dict[str, int] = {}
        self._turn = 0
        self._looked = 0.0

    @property
    def planned(self) -> Plan:
        """The plan of every cell so far."""
        return dataclasses.replace(self.plan.base, cells=tuple(self.cells.values()))

    def drive(self, execution: Execution) -> None:
        """Run trials until the budget is spent."""
        self.execution = execution
        while True:
            if time.monotonic() > self.deadline:
                self._stop_all()
                return
            self._fill()
            if self._is_over():
                return
            for cell, row in self.execution.wait():
                self._settle(cell, row)
            self._prune()

    def put_back(self) -> None:
        """Queue again what has not come to its end. Called when no cell runs any more: all that was trained counts."""
        for live in self.live:
            live.study.put_back(live.trial.number, live.drawn, self.plan.seen)

    def _is_over(self) -> bool:
        """Whether nothing is under way and nothing will be; a cluster may have no worker yet."""
        if self.execution.running or self.queue or self.live:
            return False
        return bool(self.reason) or all(study.remaining <= 0 for study in self.studies)

    # asking

    def _fill(self) -> None:
        while self.execution.free > 0:
            if self.queue:
                self.execution.submit(self.queue.pop(0))
            elif (study := self._next_study()) is not None:
                self._begin(study)
            else:
                return

    def _next_study(self) -> OpenStudy | None:
        """The next study, in turn, whose share is not spent; None also where one more trial might pass the bound."""
        for i in range(len(self.studies)):
            study = self.studies[(self._turn + i) % len(self.studies)]
            if study.remaining > 0:
                if self._would_pass(study):
                    self.reason = f"--max-images {self.plan.request.max_images:,} leaves no room for another trial"
                    return None
                self._turn, self.reason = (self._turn + i + 1) % len(self.studies), ""
                return study
        return None

    def _would_pass(self, study: OpenStudy) -> bool:
        most, recipe = self.plan.request.max_images, self.plan.base.recipe
        if most is None:
            return False
        drawn = [int(end) for p in study.plan.parameters if p.name == "images" for end in p.ends()]
        each = max(recipe.images_total, *drawn, 0)
        to_come = len(self.execution.running) + len(self.queue) + len(self.plan.request.run.seeds)
        return self.spent + each * to_come > most

    def _begin(self, study: OpenStudy) -> None:
        trial, drawn = study.ask()
        live = LiveTrial(study, trial, drawn)
        self.live.append(live)
        try:
            resolved = resolve(study.plan.asked(self.plan.request.run, drawn))
        except UsageError as error:  # what was drawn is to blame, and always will be
            self._tell(live, "failed", error=_as_error(error))
            return
        try:
            live.cells = self._plan(resolved).cells
        except ArtifactError as error:  # so it is here: no such codebook can be made of these data
            self._tell(live, "failed", error=_as_error(error))
            return
        for cell in live.cells:
            self._place(live, cell)
        if len(live.rows) < len(live.cells):
            self.view.note(f"{live.title}: {' '.join(settings_of(drawn)) or 'nothing to draw'}")
        self._conclude(live)

    def _plan(self, asked: Resolved) -> Plan:
        """The cells of a trial. Raises UsageError where the data cannot be read, which is no fault of the trial."""
        plan, base = make_plan(asked, self.metrics), self.plan.base
        before, now = base.cells[0].spec["dataset"], plan.cells[0].spec["dataset"]
        if plan.protocol.hash != base.protocol.hash or now["training_digest"] != before["training_digest"]:
            raise UsageError("the data has changed since this sweep began: trials would not be of the same images",
                             "bring it back, or start another sweep with --sweep-name")  # fmt: skip
        return plan

    def _place(self, live: LiveTrial, cell: Cell) -> None:
        """Take a cell's row where it is known, wait for it where it runs for another trial, or else queue it."""
        name = cell.folder.name
        under_way = name in self.cells and name not in self.ended
        self.cells[name] = cell
        if cell.state == "cached":
            live.rows[name] = cached_row(cell, self.view.note)
        elif (known := self.ended.get(name, {})).get("state") in (DONE, "cached", FAILED):  # it would fail again
            live.rows[name] = {**known, "state": FAILED if known["state"] == FAILED else "cached"}
        elif not under_way:
            self.ended.pop(name, None)
            self._pruned.discard(name)
            self._before[name] = images_seen(cell.folder.path) if cell.folder.can_go_on else 0
            live.begin(name, self._before[name])
            self.queue.append(cell)
            if self.tracker is not None:
                drawn = {f"drawn.{key}": str(value) for key, value in live.drawn.items()}
                self.tracker.tag_cell(
                    cell, {"sweep": live.study.request.title, "trial": str(live.trial.number), **drawn}
                )

    # what ends

    def _settle(self, cell: Cell, row: dict[str, Any]) -> None:
        name = cell.folder.name
        self.ended[name] = row
        waiting = [live for live in self.live if name in live.names]
        trained = max(0, images_seen(cell.folder.path) - self._before.get(name, 0)) if row["state"] != "cached" else 0
        self.spent += trained
        for i, live in enumerate(waiting):
            live.rows[name] = row if i == 0 else {**row, "state": "cached" if row["state"] == "done" else row["state"]}
            live.trial.set_user_attr("images", live.trial.user_attrs.get("images", 0) + (trained if i == 0 else 0))
            live.end(name)
            self._conclude(live)

    def _conclude(self, live: LiveTrial) -> None:
        """Tell a trial, all of whose cells have ended."""
        if any(name not in live.rows for name in live.names):
            return
        rows = [live.rows[name] for name in live.names]
        failed = next((row for row in rows if row["state"] == FAILED), None)
        stopped = {row["cell"] for row in rows if row["state"] == "stopped"}
        if stopped & self._pruned:
            if self.tracker is not None:
                self.tracker.end_cells([cell.folder for cell in live.cells if cell.folder.name in stopped])
            self._tell(live, "pruned")
        elif stopped:
            return  # it is put back in the end
        elif failed is not None:
            self._tell(live, "failed", error=failed["error"])
        else:
            objectives = self.plan.request.objectives
            means = (_mean([row["scores"].get(name) for row in rows]) for name in objectives)
            values = {name: mean for name, mean in zip(objectives, means, strict=True) if mean is not None}
            if len(values) < len(objectives):
                error = VQBenchError(f"no finite {' and '.join(objectives)}", "see the curves of its cells")
                self._tell(live, "failed", error=_as_error(error))
                return
            for _ in self._reported(live):  # the rest of its curve: others are compared with it, also if it is cached
                pass
            self._tell(live, "done", values)

    def _tell(
        self,
        live: LiveTrial,
        state: str,
        values: Mapping[str, float] | None = None,
        error: Mapping[str, Any] | None = None,
    ) -> None:
        """End a trial; `values` are those of the objectives, if it is done, and `error` says why it failed."""
        rows = [live.rows[name] for name in live.names if name in live.rows]
        record = {
            "settings": [*live.study.plan.settings, *settings_of(live.drawn)],
            "cells": live.names,
            "cached": bool(rows) and all(row["state"] == "cached" for row in rows),
            "error": error,
        }
        live.study.tell(live.trial, values.values() if values else None, state, record)
        self.live.remove(live)
        few = {name: " (of few images)" for row in rows for name in row.get("cautions", {})}
        shown = ", ".join(f"{name} {value:.4g}{few.get(name, '')}" for name, value in (values or {}).items())
        said = {"done": shown, "failed": f"failed: {(error or {}).get('message', '')}", "pruned": "pruned"}[state]
        self.view.note(f"{live.title} {said}{' (cached)' if record['cached'] else ''}")

    # ending early

    def _stop_all(self) -> None:
        if self.live or any(study.remaining > 0 for study in self.studies):
            self.reason = "--timeout is over"
        self.queue.clear()
        for cell in self.execution.running:
            self.execution.stop(cell)
        while self.execution.running:
            for cell, row in self.execution.wait():
                self._settle(cell, row)

    def _prune(self) -> None:
        """Show the pruner what has been added to the curve of each trial's first cell, and stop what it gives up."""
        if self.watched is None or time.monotonic() - self._looked < PRUNE_SECONDS:
            return
        self._looked = time.monotonic()
        running = {cell.folder.name for cell in self.execution.running}
        for live in list(self.live):
            is_watched = live.names[0] in running - self._pruned
            if is_watched and any(live.trial.should_prune() for _ in self._reported(live)):
                self._give_up(live)

    def _reported(self, live: LiveTrial) -> Iterator[int]:
        """Report the new points of the curve of a trial's first cell one by one; yields the images of each."""
        if self.watched is None:
            return
        cell = live.cells[0]
        recipe = cell.spec["recipe"]
        for images, value in new_points(cell.folder.path, self.watched.curve, live.reported, recipe["images"]):
            step = images // recipe["log_images"] * recipe["log_images"]  # the same for every batch size
            if step not in live.steps:
                live.steps.add(step)
                live.trial.report(self.watched.sign * value, step)
            live.reported = images
            yield images

    def _give_up(self, live: LiveTrial) -> None:
        names = {*live.names} - live.rows.keys()
        self._pruned |= names
        for cell in self.execution.running:
            if cell.folder.name in names:
                self.execution.stop(cell)
        never_started = [cell for cell in self.queue if cell.folder.name in names]
        self.queue = [cell for cell in self.queue if cell.folder.name not in names]
        for cell in never_started:
            self._settle(cell, row_of(cell, "stopped"))


def _mean(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None and math.isfinite(value)]
    return math.fsum(found) / len(values) if values and len(found) == len(values) else None


def _as_error(error: VQBenchError) -> dict[str, Any]:
    return failure(type(error).__name__, error.what, error.hint, "plan")
