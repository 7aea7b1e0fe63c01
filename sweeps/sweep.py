"""`vqbench sweep` from its request to its report."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqbench import arguments
from vqbench.planning.plan import check_request
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
from vqbench.wording import counted, masked

if TYPE_CHECKING:
    import pandas as pd

    from vqbench.sweeps.backend import OpenStudy
    from vqbench.sweeps.driver import Driver
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
    from vqbench.sweeps.driver import Driver
    from vqbench.sweeps.rows import make_report

    if not any(study.remaining > 0 for study in studies):
        report = make_report(plan, studies, reason="")
        report.write()
        return report
    driver = Driver(plan, studies, view, tracker)
    title = f"sweep {', '.join(plan.request.references)}: {', '.join(Path(s).stem for s in plan.request.spaces)}"
    if tracker is not None:
        tracker.start_command(plan.base, "sweep", title)
    try:
        _run_trials(driver)
    except BaseException:
        # this error must be the one that is heard, whatever a storage or a disk that is gone says to a report
        with contextlib.suppress(Exception):
            report = _finish(driver, reason="")
            tracker = None
            view.note(f"{report.folder / 'summary.md'} has what was found so far; go on with `{plan.resume}`")
        if tracker is not None:
            tracker.finish_command(driver.planned, [], dict, False)
        raise
    return _finish(driver, driver.reason)


def _finish(driver: Driver, reason: str) -> SweepReport:
    """Write the report, and attach it to the command's run."""
    from vqbench.sweeps.rows import make_report

    plan, tracker = driver.plan, driver.tracker
    report = make_report(plan, driver.studies, reason)
    files = report.write()
    if plan.request.run.page and any(report.rows):
        report = dataclasses.replace(report, page=write_page(plan.base.folder, driver.view, trained=True))
        files += [report.page] if report.page is not None else []
    if tracker is not None:
        complete = not any(study.remaining > 0 for study in driver.studies)
        tracker.finish_command(driver.planned, report.best_cells(), lambda: {"md": report.markdown()}, complete, files)
    return report


def _run_trials(driver: Driver) -> None:
    """Have its trials run on the engine that is asked for, and put back what does not come to its end."""
    from vqbench.planning.preflight import check_disk, prepare_training
    from vqbench.running.execution import open_execution

    run, base = driver.plan.request.run, driver.plan.base
    of_method = {cell.label: cell for cell in base.cells}
    to_come = [of_method[s.plan.method] for s in driver.studies for _ in range(s.remaining * len(run.seeds))]
    check_disk(base, to_come)
    prepare_training(base, base.cells, run, driver.view)
    if driver.watched is not None and driver.watched.note:
        driver.view.note(driver.watched.note)
    try:
        with open_execution(run, driver.view, driver.tracker, len(to_come)) as execution:
            driver.drive(execution)
    except BaseException:
        with contextlib.suppress(Exception):  # who resumes the sweep puts back what could not be put back here
            driver.put_back()
        raise
    driver.put_back()


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
    report = execute_sweep(request, tracker=make_tracker(request.run, track))
    return pd.DataFrame(report.flat())
