"""Probing each method of a plan in a process of its own, and adding up what the plan costs. Never imports torch."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqbench.cell.measured import MEASURED, Measured
from vqbench.cell.process import POLL_SECONDS
from vqbench.cell.ranks import Ranks
from vqbench.machine.cores import CORES_VARIABLE, cores
from vqbench.machine.gpus import claim_gpus, visible_gpus
from vqbench.machine.json_files import read_json, write_json
from vqbench.planning.cost import CellCost, PlanCost, cell_cost, copied_bytes, images_done
from vqbench.planning.plan import Cell, Plan
from vqbench.planning.request import RunRequest
from vqbench.planning.view import View
from vqbench.plugin import keep_copies
from vqbench.results.cell_files import SPEC
from vqbench.results.cell_folder import CellFolder
from vqbench.running.engine import gpus_of_a_cell
from vqbench.tracking.server import tracking_uri


@dataclass(frozen=True)
class ProbeError:
    """Why a method could not be measured."""

    problem: str
    hint: str


Answer = Measured | ProbeError


def probe_costs(request: RunRequest, plan: Plan, view: View) -> PlanCost:
    """Train the methods of `plan` that have cells to run for some steps, and say what the plan costs.

    Writes nothing below the runs directory; decoded training images are cached as for a run. A method that fails is
    said so in its cells, and does not stop the others. Raises UsageError for what would stop the run itself.
    """
    waiting = [cell for cell in plan.cells if cell.trains and (request.rerun or cell.state != "cached")]
    for cell in plan.cells:
        if not cell.trains:
            view.note(f"{cell.label} is trained already: what its evaluation takes is not measured here")
    if waiting:
        prepare_probes(request, plan, view)
    answers: dict[str, Answer] = {}
    for cell in waiting:  # all seeds of a method take the same time
        if _configuration(cell) not in answers:
            answers[_configuration(cell)] = probe(cell, request, view)
    names = {cell.folder.name for cell in waiting}
    of_each = [answers[_configuration(cell)] if cell.folder.name in names else None for cell in plan.cells]
    measured = any(isinstance(answer, Measured) for answer in answers.values())
    return priced(request, plan, of_each, scoring_seconds(plan, waiting) if measured else 0.0)


def prepare_probes(request: RunRequest, plan: Plan, view: View) -> None:
    """What must be so, and be said, before cells of `plan` are probed. Raises UsageError for what would stop them."""
    from vqbench.planning.preflight import prepare_training

    if request.scheduler:
        view.note(f"the probe runs here, not on a worker of {request.scheduler}: another machine takes another time")
    gpus_of_a_cell(request)
    prepare_training(plan, plan.cells, request, view)
    _say_if_busy(view)


def priced(request: RunRequest, plan: Plan, answers: Sequence[Answer | None], scoring: float) -> PlanCost:
    """What `plan` costs if each of its cells takes what was measured; None: it is not run.

    `scoring`: seconds of what is computed over all validation images at once.
    """
    measured = [answer for answer in answers if isinstance(answer, Measured)]
    costs = [
        CellCost() if answer is None else _cost(cell, answer, request, scoring)
        for cell, answer in zip(plan.cells, answers, strict=True)
    ]
    reference_bytes = _charge_reference(costs, measured, plan)
    if tracking_uri(request.runs).startswith("sqlite:"):  # and MLflow's copy
        reference_bytes *= 2
    name = measured[0].device_name if measured else None
    return PlanCost(plan, tuple(costs), tuple(answer is not None for answer in answers), name, reference_bytes)


def _say_if_busy(view: View) -> None:
    with contextlib.suppress(OSError):  # not every system knows its load
        load, cores = os.getloadavg()[0], os.cpu_count() or 1
        if load > cores / 2:
            view.note(f"this machine has a load of {load:.1f} on {cores} cores: when it is quiet, cells will take less")


def _configuration(cell: Cell) -> str:
    return json.dumps([cell.label, cell.spec["method"], cell.spec["config"], cell.spec["recipe"]], sort_keys=True)


def _cost(cell: Cell, answer: Answer, request: RunRequest, scoring_seconds: float) -> CellCost:
    if isinstance(answer, ProbeError):
        return CellCost(problem=answer.problem, hint=answer.hint)
    recipe = cell.recipe
    cost = cell_cost(
        answer,
        recipe,
        done=0 if request.rerun else images_done(cell, recipe),
        validation_images=cell.spec["protocol"]["n_images"],
        devices=cell.spec["devices"],
        scoring_seconds=scoring_seconds,
    )
    if not tracking_uri(request.runs).startswith("sqlite:"):
        return cost
    copies = copied_bytes(answer, recipe, cell.spec["protocol"]["n_images"])
    both = cost.disk_bytes + copies  # MLflow's copies lie in the runs directory too
    return dataclasses.replace(cost, disk_bytes=both, peak_bytes=max(cost.peak_bytes, both))


def _charge_reference(costs: list[CellCost], measured: list[Measured], plan: Plan) -> int:
    """Let the first cell that is run pay for the reference features; returns their bytes in the runs directory."""
    n, first = plan.protocol.n_images, next((i for i, cost in enumerate(costs) if cost.device is not None), None)
    if first is None:
        return 0
    seconds = 0.0 if measured[0].reference_is_cached else n * measured[0].reference_image_seconds
    costs[first] = dataclasses.replace(costs[first], reference_seconds=seconds)
    there = (plan.folder / f"reference-{plan.protocol.hash}.npz").is_file()
    return 0 if there else int(n * measured[0].reference_image_bytes)


def scoring_seconds(plan: Plan, cells: Sequence[Cell]) -> float:
    """Of metrics over the features of all images, timed on random ones: it does not depend on the method."""
    import numpy as np

    from vqbench.metrics.definitions import metric
    from vqbench.metrics.kinds import FeatureMetric
    from vqbench.registry import EXTRACTORS

    draw, seconds = np.random.default_rng(0), 0.0
    for name in dict.fromkeys(name for cell in cells for name in cell.spec["metrics"]):
        known = metric(name)
        if isinstance(known, FeatureMetric):
            n, times = known.timing(plan.protocol.n_images)
            x, y = (draw.random((n, EXTRACTORS.get(known.extractor).dimensions), np.float32) for _ in range(2))
            clock = time.perf_counter()
            known.score(x, y)
            seconds += times * (time.perf_counter() - clock)
    return seconds


def probe(cell: Cell, request: RunRequest, view: View) -> Answer:
    """Some steps of a cell's training and evaluation, in a process and a temporary folder that are gone afterwards.

    On GPUs that nobody else uses meanwhile.
    """
    gpus = gpus_of_a_cell(request)
    claimed = claim_gpus(
        gpus, visible_gpus() if gpus else [], holder=f"probe of {cell.label}",
        say=lambda text: view.note(f"the probe of {cell.label} {text}"),
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="vqbench-probe-") as root, claimed as claim:
        folder = CellFolder(Path(root) / "cells" / cell.folder.name)
        folder.path.mkdir(parents=True)
        write_json(folder.path / SPEC, cell.spec)
        keep_copies(folder.path, cell.plugin_sources)
        arguments, files = [folder.path / SPEC, time.monotonic()], [file.fileno() for file in claim.files]
        environment = {CORES_VARIABLE: str(max(1, cores() // request.workers)), **claim.environment}
        ranks = Ranks("vqbench.cell.probe", arguments, folder, request.devices, environment, files)
        returncode = _watch(ranks, folder, functools.partial(view.preparing, f"the cost of {cell.label}"))
        ended = time.monotonic()
        found = read_json(folder.path / MEASURED)
        if returncode != 0 or found is None:
            return _why(folder, ranks)
        exit_seconds = max(0.0, ended - found.pop("ended"))
        return Measured(**{**found, "overhead_seconds": found["overhead_seconds"] + exit_seconds})


def _watch(ranks: Ranks, folder: CellFolder, show: Callable[[int, int], None]) -> int:
    try:
        while (returncode := ranks.poll()) is None:
            ranks.wait(POLL_SECONDS)
            status: dict[str, Any] = folder.status
            show(status.get("images", 0), max(status.get("total", 0), 1))
        return returncode
    finally:
        if ranks.poll() is None:
            ranks.end()


def _why(folder: CellFolder, ranks: Ranks) -> ProbeError:
    """The reason that a probe's process left, or what its end tells."""
    again = "the same command without --dry-run and --probe fails the same way, and keeps its log"
    error = folder.error
    if error is None:
        why = ranks.reason(str(folder.status.get("stage", "start")))
        error = {"message": why.message, "hint": why.hint}
    return ProbeError(error["message"], again if str(folder.path) in error["hint"] else error["hint"])
