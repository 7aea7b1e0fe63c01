"""From told trials to the rows of a report: what Optuna remembers, and what the cells' folders hold."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vqbench.metrics.definitions import cautions, current_scores, metric
from vqbench.planning.request import words_of
from vqbench.reports.sweep import StudySummary, SweepReport
from vqbench.results.cell_folder import CellFolder
from vqbench.wording import shell_command

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from vqbench.sweeps.backend import OpenStudy
    from vqbench.sweeps.plan import SweepPlan

MORE_SEEDS = 3


def make_report(plan: SweepPlan, studies: list[OpenStudy], reason: str) -> SweepReport:
    """Every told trial of the sweep, from all commands that worked on it."""
    rows, summaries = [], []
    for study in studies:
        told = [trial for trial in study.trials() if "state" in trial.user_attrs]
        found = [_row(plan, study, trial) for trial in told]
        rows += found
        shares = [study.importances(i) for i in range(len(plan.request.objectives))]
        summaries.append(_summary(study, found, dict(zip(plan.request.objectives, shares, strict=True))))
    protocol = plan.base.protocol
    also = tuple(name for name in plan.base.asked if name not in plan.request.objectives)
    return SweepReport(
        name=plan.request.title,
        experiment=plan.base.folder,
        objectives=plan.request.objectives,
        definitions={name: metric(name) for name in (*plan.request.objectives, *also)},
        studies=tuple(summaries),
        rows=tuple(rows),
        protocol=f"{protocol.name} {protocol.hash}, N = {protocol.n_images}",
        how=f"{plan.request.sampler}, pruner {plan.request.pruner}, space {', '.join(plan.request.spaces)}, "
        f"seeds {','.join(map(str, plan.request.run.seeds))}",
        reason=reason,
        also=also,
        cautions=cautions((*plan.request.objectives, *also), protocol.n_images),
        resume=plan.resume,
        holdout=plan.request.run.holdout,
    )


def _summary(study: OpenStudy, rows: list[dict[str, Any]], importances: dict[str, dict[str, float]]) -> StudySummary:
    plan = study.plan
    states = [row["state"] for row in rows]
    counts = {state: states.count(state) for state in ("done", "cached", "failed", "pruned")}
    parameters = tuple(parameter.name for parameter in plan.parameters)
    return StudySummary(plan.method, plan.level, plan.bits, plan.trials, counts, parameters, importances)


def _row(plan: SweepPlan, study: OpenStudy, trial: FrozenTrial) -> dict[str, Any]:
    known, request = trial.user_attrs, plan.request
    folders = [CellFolder(plan.base.folder / "cells" / name) for name in known["cells"]]
    results = [folder.result or {} for folder in folders]
    scored = [current_scores(result) for result in results if result.get("state") == "done"]
    values = trial.values if known["state"] == "done" else None
    base, settings = plan.base.cells[0].spec, known["settings"]
    run, seeds = request.run, more_seeds(request.run.seeds)
    if run.holdout is not None:  # to be scored by what it was not chosen by; the number of images was of the others
        run = dataclasses.replace(run, holdout=None, validation_images=None)
    scores = _means(scored) if values is not None else {}
    return {
        "sweep": request.title,
        "study": study.name,
        "trial": trial.number,
        "method": study.plan.method,
        "dataset": base["dataset"]["slug"],
        "recipe": base["recipe"]["name"],
        "seeds": list(request.run.seeds),
        "protocol": base["protocol"]["hash"],
        "state": "cached" if known["cached"] and known["state"] == "done" else known["state"],
        "bits_per_image": study.plan.bits,
        "level": study.plan.level,
        "drawn": {p.name: p.typed(trial.params[p.name]) for p in study.plan.parameters if p.name in trial.params},
        "settings": settings,
        "values": dict(zip(request.objectives, values, strict=True)) if values is not None else {},
        "scores": scores,
        "params": next((result["params"] for result in results if result.get("params")), {}),
        "images": known.get("images", 0),
        "cells": known["cells"],
        "paths": [str(folder.path) for folder in folders],
        "collapse": next((result["collapse"] for result in results if result.get("collapse")), None),
        "error": known["error"],
        **({"cautions": said} if (said := cautions(scores, plan.base.protocol.n_images)) else {}),
        "command": shell_command(words_of(run, study.plan.method, settings=tuple(settings), seeds=seeds)),
    }


def more_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """The seeds of a sweep, and the next ones up to three in all, or two more: those of the command for a trial."""
    found, wanted = tuple(dict.fromkeys(seeds)), max(MORE_SEEDS, len(seeds) + 2)
    others = (seed for seed in itertools.count() if seed not in found)
    return (*found, *itertools.islice(others, wanted - len(found)))


def _means(scored: list[dict[str, float]]) -> dict[str, float]:
    names = [name for name in (scored[0] if scored else {}) if all(name in scores for scores in scored)]
    return {name: math.fsum(scores[name] for scores in scored) / len(scored) for name in names}
