"""`vqbench sweep` from its request to its report."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqbench import arguments
from vqbench.metrics.definitions import metric
from vqbench.planning.plan import Cell, check_request
from vqbench.planning.request import RunRequest
from vqbench.planning.view import Silent, View
from vqbench.registry import METRICS
from vqbench.reports.sweep import SweepReport
from vqbench.running.run import prepare_plan, write_page
from vqbench.sweeps.grammar import read_spaces
from vqbench.sweeps.memory import find_sweep, held, recall, refuse_another, remember, storage_of
from vqbench.sweeps.plan import SweepPlan
from vqbench.sweeps.refusals import check_objectives, refuse_odd
from vqbench.sweeps.request import SweepRequest, asked_sweep
from vqbench.sweeps.studies import plan_studies
from vqbench.sweeps.watched import watched
from vqbench.wording import counted, masked

if TYPE_CHECKING:
    import pandas as pd

    from vqbench.sweeps.backend import OpenStudy
    from vqbench.sweeps.patience import PatientStorage
    from vqbench.tracking.tracker import Tracker


def plan_sweep(request: SweepRequest, view: View, dry: bool = False) -> SweepPlan:
    """Everything that can be found wrong before training, found now. Raises UsageError; writes nothing."""
    if request.resume:
        request = recall(request, find_sweep(request.run.runs, request.run.name, request.name))
    refuse_odd(request)
    asked = check_request(request.run)
    request = dataclasses.replace(request, run=asked.request)
    if request.space is None:
        request = dataclasses.replace(request, space=read_spaces(request.spaces))
    if request.objectives:  # a typing error, before anything is downloaded
        check_objectives(request, asked.track.scored_as, tuple(METRICS.names()))
    studies, notes = plan_studies(request)
    if request.run.name:  # where it is known already, before anything is downloaded
        sweeps = request.run.runs.absolute() / request.run.name / "sweeps"
        refuse_another(request, sweeps / f"{request.title}.json")
    base = prepare_plan(asked, view, dry)
    objectives = check_objectives(request, asked.track.scored_as, tuple(base.cells[0].spec["metrics"]))
    request = dataclasses.replace(request, objectives=objectives, name=request.title)
    plan = SweepPlan(request, studies, base, notes)
    refuse_another(request, plan.file, plan.found)
    return plan


def execute_sweep(request: SweepRequest, view: View | None = None, tracker: Tracker | None = None) -> SweepReport:
    """Ask trials until the budget is spent, train what has no result, and report. Raises UsageError.

    The same request again goes on where it was, and trains nothing that is done.
    """
    view = view or Silent()
    plan = plan_sweep(request, view)
    for note in plan.notes:
        view.note(note)
    from vqbench.planning.preflight import check_runs_directory

    check_runs_directory(plan.base.folder)
    with held(plan.file):
        studies = _open_studies(plan, view)
        orphans = sum(study.put_back_orphans(plan.seen) for study in studies)
        failed = sum(study.put_back_failed() for study in studies)
        if failed:
            view.note(f"tried again: {counted(failed, 'trial')} that had failed")
        if orphans:
            view.note(f"tried again: {counted(orphans, 'trial')} that had not come to an end")
        return _drive(plan, studies, view, tracker)


def _open_studies(plan: SweepPlan, view: View) -> list[OpenStudy]:
    from vqbench.sweeps.backend import study_names

    request, storage = plan.request, opened_storage(plan, view)
    where = storage_of(request, plan.file)
    names = {study.name(request.title) for study in plan.studies}
    remember(request, plan.file, where, names & study_names(storage), plan.found)
    return in_storage(plan, storage)


def opened_storage(plan: SweepPlan, view: View) -> PatientStorage:
    """The storage of its studies, opened. Raises UsageError where it cannot be had."""
    from vqbench.sweeps.backend import open_storage

    where = storage_of(plan.request, plan.file)
    password = "; the storage must be given again, its password is not kept" if masked(where) != where else ""
    hint = f"when it answers again, go on: {plan.resume}{password}"
    return open_storage(where, plan.base.folder, view.note, hint)


def in_storage(plan: SweepPlan, storage: Any) -> list[OpenStudy]:
    """Its studies in a storage of Optuna, made where they are not there yet."""
    from vqbench.sweeps.backend import OpenStudy, directions_of

    directions = directions_of(plan.request.objectives)
    images = plan.base.recipe.images
    return [OpenStudy(study, plan.request, storage, directions, images) for study in plan.studies]


def _drive(plan: SweepPlan, studies: list[OpenStudy], view: View, tracker: Tracker | None) -> SweepReport:
    from vqbench.sweeps.rows import make_report

    reason = ""
    if not any(study.remaining > 0 for study in studies):
        report = make_report(plan, studies, reason)
        report.write()
        return report
    title = f"sweep {', '.join(plan.request.references)}: {', '.join(Path(s).stem for s in plan.request.spaces)}"
    if tracker is not None:
        tracker.start_command(plan.base, "sweep", title)
    cells: dict[str, Cell] = {}
    try:
        reason = _run_trials(plan, studies, view, tracker, cells)
    except BaseException:
        # this error must be the one that is heard, whatever a storage or a disk that is gone says to a report
        with contextlib.suppress(Exception):
            report = _finish(plan, studies, reason, view, tracker, cells)
            tracker = None
            view.note(f"{report.folder / 'summary.md'} has what was found so far; go on with `{plan.resume}`")
        if tracker is not None:
            tracker.finish_command(dataclasses.replace(plan.base, cells=tuple(cells.values())), [], dict, False)
        raise
    return _finish(plan, studies, reason, view, tracker, cells)


def _finish(
    plan: SweepPlan,
    studies: list[OpenStudy],
    reason: str,
    view: View,
    tracker: Tracker | None,
    cells: dict[str, Cell],
) -> SweepReport:
    """Write the report, and attach it to the command's run."""
    from vqbench.sweeps.rows import make_report

    report = make_report(plan, studies, reason)
    files = report.write()
    if plan.request.run.page and any(report.rows):
        report = dataclasses.replace(report, page=write_page(plan.base.folder, view, trained=True))
        files += [report.page] if report.page is not None else []
    if tracker is not None:
        found = dataclasses.replace(plan.base, cells=tuple(cells.values()))
        complete = not any(study.remaining > 0 for study in studies)
        tracker.finish_command(found, report.best_cells(), lambda: {"md": report.markdown()}, complete, files)
    return report


def _run_trials(
    plan: SweepPlan, studies: list[OpenStudy], view: View, tracker: Tracker | None, cells: dict[str, Cell]
) -> str:
    """Why the sweep ended before its trials did; empty where it did not."""
    from vqbench.planning.preflight import check_disk, prepare_training
    from vqbench.running.execution import open_execution
    from vqbench.sweeps.driver import Driver
    from vqbench.sweeps.trials import Limits

    request, base = plan.request, plan.base
    deadline = time.monotonic() + request.timeout if request.timeout is not None else None
    of_method = {cell.label: cell for cell in base.cells}
    check_disk(base, [of_method[s.plan.method] for s in studies for _ in range(s.remaining * len(request.run.seeds))])
    prepare_training(base, base.cells, request.run, view)
    look = None
    if request.pruner != "none":
        maximize = metric(request.objectives[0]).better == "higher"
        look = watched(request.objectives[0], maximize, base.track.watched)
        if look.note:
            view.note(look.note)

    at_most = sum(study.remaining for study in studies) * len(request.run.seeds)
    driver = None
    try:
        with open_execution(request.run, view, tracker, at_most) as execution:
            limits = Limits(deadline, request.max_images)
            driver = Driver(studies, request.run, base, request.objectives, look, limits, execution, view, tracker)
            driver.cells = cells
            driver.drive()
    except BaseException:
        if driver is not None:
            with contextlib.suppress(Exception):  # who resumes the sweep puts back what could not be put back here
                driver.put_back(plan.seen)
        raise
    driver.put_back(plan.seen)
    return driver.reason


@arguments.offers(SweepRequest, RunRequest)
def sweep(
    methods: str | Iterable[str] = (),
    dataset: str | os.PathLike[str] = "",
    *,
    resume: str = "",
    track: bool = True,
    **options: Any,
) -> pd.DataFrame:
    """Search for settings of methods, as `vqbench sweep` does; one row per trial.

    `options` are the command's, see SweepRequest and RunRequest. What is None has the command's default, or with
    `resume` what the sweep has. Columns: method, trial, state, bits, a column for each drawn parameter and each score.
    Raises UsageError for what cannot be swept or run at all.
    """
    import pandas as pd

    from vqbench.running.run import make_tracker

    of_sweep, of_run = arguments.by_keyword(sweep, options, SweepRequest, RunRequest)
    run = arguments.asked(RunRequest, methods=methods, dataset=dataset, **of_run)
    request = asked_sweep(run, of_sweep, resume)
    report = execute_sweep(request, tracker=make_tracker(request.run) if arguments.flag("track", track) else None)
    return pd.DataFrame(report.flat())
