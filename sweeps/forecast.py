"""What a sweep has still to do, before it does it: the trials that are left, and their cells."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vqbench.errors import UsageError
from vqbench.planning.plan import Cell, make_plan, resolve
from vqbench.planning.view import Silent

if TYPE_CHECKING:
    from vqbench.sweeps.backend import OpenStudy
    from vqbench.sweeps.plan import SweepPlan

MOST_TRIALS = 200
"""Of a study that are drawn ahead: each is drawn in view of all before it, so many more would take long."""
MOST_GUESSES = 50
"""Trials of a study that are drawn ahead although the sampler will know more by then."""


@dataclass(frozen=True)
class ForeseenTrial:
    """A trial that has not been asked."""

    is_certain: bool
    """Whether it is known what it will draw; otherwise this is what it would draw if no more were known than now."""
    cells: tuple[Cell, ...]
    """One for each seed; none where no cell can be made of what is drawn."""


@dataclass(frozen=True)
class StudyForecast:
    """What is left of one study."""

    told: int
    """Trials that have come to an end, but for failures that are tried again."""
    trials: tuple[ForeseenTrial, ...]
    """Those of `left` that were drawn ahead."""
    left: int
    """How many trials are left."""

    def states(self, seeds: int) -> dict[str, int]:
        """State → cells of the trials that are left, each cell once; "refused" and "undrawn" among the states."""
        certain = [trial for trial in self.trials if trial.is_certain]
        states = Counter({cell.folder.name: cell.state for trial in certain for cell in trial.cells}.values())
        states["refused"] = seeds * sum(not trial.cells for trial in certain)
        states["undrawn"] = seeds * (self.left - len(certain))
        return {state: count for state, count in sorted(states.items()) if count}


def forecast(plan: SweepPlan, guess: bool) -> dict[str, StudyForecast]:
    """Study → what is left of it; with `guess` also trials that may be drawn otherwise. Writes nothing."""
    metrics = tuple(plan.base.cells[0].spec["metrics"])
    source = plan.base.track.open(plan.base.recipe, plan.request.run.data)
    found = {}
    for study in _without_writing(plan):
        trials = []
        for drawn, certain in study.foresee(MOST_TRIALS, MOST_GUESSES if guess else 0):
            try:
                asked = study.plan.asked(plan.request.run, drawn)
                cells = make_plan(resolve(asked), metrics, source=source).cells
            except UsageError:
                cells = ()
            trials.append(ForeseenTrial(certain, cells))
        found[study.name] = StudyForecast(study.plan.trials - study.left, tuple(trials), study.left)
    return found


def _without_writing(plan: SweepPlan) -> list[OpenStudy]:
    """Its studies in memory, with the trials of those that were begun."""
    import optuna
    from sqlalchemy.engine import make_url

    from vqbench.sweeps.backend import study_names
    from vqbench.sweeps.memory import storage_of
    from vqbench.sweeps.sweep import in_storage, opened_storage

    studies = in_storage(plan, optuna.storages.InMemoryStorage())
    where = storage_of(plan.request, plan.file) or str(plan.base.folder / "optuna.db")
    if where.startswith("sqlite"):
        where = make_url(where).database or ""
    is_there = "://" in where or os.path.exists(where)  # opening a file that is gone makes it
    if plan.file.is_file() and is_there:
        storage: Any = opened_storage(plan, Silent())
        begun = study_names(storage)
        for study in studies:
            if study.name in begun:
                known = optuna.load_study(study_name=study.name, storage=storage)
                study.study.add_trials(known.get_trials(deepcopy=False))  # all of them, so their numbers stay
    return studies


def describe_studies(plan: SweepPlan, found: Mapping[str, StudyForecast]) -> list[dict[str, Any]]:
    """One JSON-ready object per study: what a dry run prints.

    `cells` counts the cells of the trials that are left by state; those of trials of which it is not known yet what
    they will draw are "undrawn".
    """
    described = []
    for study in plan.studies:
        left = found[study.name(plan.request.title)]
        described.append({
            "study": study.name(plan.request.title),
            "method": study.method,
            "bits_per_image": study.bits,
            "trials": study.trials,
            "told": left.told,
            "left": left.left,
            "cells": left.states(len(plan.request.run.seeds)),
            "parameters": {p.name: p.describe() for p in study.parameters},
        })  # fmt: skip
    return described
