"""What a sweep has still to do, before it does it: the trials that are left, their cells, and what these cost."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vqbench.errors import UsageError
from vqbench.plan import Cell, make_plan
from vqbench.view import Silent

if TYPE_CHECKING:
    from vqbench.sweeps.backend import OpenStudy
    from vqbench.sweeps.sweep import SweepPlan

MOST_TRIALS = 100
"""Of a study that are drawn ahead: each is drawn in view of all before it, so many more would take long."""


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
    """Trials that have come to an end."""
    trials: tuple[ForeseenTrial, ...]
    """Those that are left and were drawn ahead, `MOST_TRIALS` at most."""
    left: int
    """How many are left."""

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
    found = {}
    for study in _without_writing(plan):
        drawn = study.foresee(MOST_TRIALS, guess)
        trials = tuple(ForeseenTrial(certain, _cells(plan, study, point, metrics)) for point, certain in drawn)
        told = len([trial for trial in study.trials() if trial.state.is_finished()])
        found[study.name] = StudyForecast(told, trials, study.left)
    return found


def _without_writing(plan: SweepPlan) -> list[OpenStudy]:
    """Its studies: those that were begun as they are stored, the others in memory."""
    from optuna.storages import InMemoryStorage

    from vqbench.sweeps.backend import study_names
    from vqbench.sweeps.sweep import in_storage, stored

    storage = stored(plan, Silent()) if plan.file.is_file() else None
    begun = study_names(storage) if storage is not None else set()
    studies = []
    for study in plan.studies:
        alone = dataclasses.replace(plan, studies=(study,))
        studies += in_storage(alone, storage if study.name(plan.request.title) in begun else InMemoryStorage())
    return studies


def _cells(plan: SweepPlan, study: OpenStudy, drawn: Mapping[str, Any], metrics: tuple[str, ...]) -> tuple[Cell, ...]:
    try:
        return make_plan(study.plan.asked(plan.request.run, drawn), metrics).cells
    except UsageError:
        return ()


def describe_studies(plan: SweepPlan, found: Mapping[str, StudyForecast]) -> list[dict[str, Any]]:
    """One JSON-ready object per study: what a dry run prints. `told` trials have come to an end already.

    `cells` counts the cells of the trials that are left by state; those of trials of which it is not known yet what
    they will draw are "undrawn".
    """
    seeds = len(plan.request.run.seeds)
    return [
        {
            "study": study.name(plan.request.title),
            "method": study.method,
            "bits_per_image": study.bits,
            "trials": study.trials,
            "told": found[study.name(plan.request.title)].told,
            "left": found[study.name(plan.request.title)].left,
            "cells": found[study.name(plan.request.title)].states(seeds),
            "parameters": {p.name: p.describe() for p in study.parameters},
        }
        for study in plan.studies
    ]
