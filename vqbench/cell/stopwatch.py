"""A short training and evaluation with the time of every report, and what these times say of a long one."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

from vqbench.cell.measured import steps_between
from vqbench.cell.progress import Progress
from vqbench.recipe import Recipe
from vqbench.results.cell_folder import CellFolder

STRETCHES = 4
"""Pieces of a probe's training, with a checkpoint after each. The first of its kind warms up and is not counted."""
STRETCH_STEPS = 5
"""Optimiser steps in each: 20 in all."""


@dataclass(frozen=True)
class Moment:
    """One call of the cell's progress."""

    stage: str
    done: int
    total: int
    clock: float
    """time.monotonic() in seconds."""


class Stopwatch(Progress):
    """The progress of a cell, with the time of every report."""

    def __init__(self, folder: CellFolder) -> None:
        super().__init__(folder)
        self.entered: dict[str, float] = {}
        self.reports: list[Moment] = []
        self.batch_size = int(folder.spec["recipe"]["batch_size"])

    def enter(self, stage: str) -> None:
        """Begin a stage."""
        super().enter(stage)
        self.entered[stage] = time.monotonic()

    def __call__(self, done: int, total: int, rate: float = 0.0) -> None:
        """`done` of `total` images."""
        if self.stage == "train" and done // self.batch_size % STRETCH_STEPS in (0, 1):
            _wait_for_gpu()  # at both ends of what is timed, and not between, where steps overlap as they do in a cell
        self.reports.append(Moment(self.stage, done, total, time.monotonic()))
        super().__call__(done, total, rate)

    def of(self, stage: str) -> list[Moment]:
        """The reports of one stage."""
        return [report for report in self.reports if report.stage == stage]


def _wait_for_gpu() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def shortened(recipe: Recipe, steps: int) -> Recipe:
    """`recipe` with the budget of a probe, `STRETCHES` stretches of `steps` steps with a checkpoint after each.

    Half of it with the discriminator, where that begins during training.
    """
    images = STRETCHES * steps * recipe.batch_size
    changed: dict[str, Any] = {"images": images, "checkpoint_images": steps * recipe.batch_size}
    plain, adversarial = steps_between(recipe, 0, recipe.images_total)
    if recipe.gan != "none":
        changed["gan_start_images"] = 0 if not plain else images // 2 if adversarial else images
    return dataclasses.replace(recipe, **changed)


def short_spec(folder: CellFolder, short: Recipe) -> dict[str, Any]:
    """The spec of the cell in `folder`, with the budget of a probe."""
    return {**folder.spec, "recipe": short.as_dict(), "stop_on_collapse": False}


@dataclass(frozen=True)
class TrainingTimes:
    """What the reports of a shortened training tell, in seconds."""

    step: float
    """Without the discriminator; 0 where every step had it."""
    adversarial_step: float
    """With it; 0 where none had."""
    checkpoint: float
    warm_up: float
    """What the first steps of each kind took beyond what they take later."""


def training_times(reports: list[Moment], short: Recipe) -> TrainingTimes:
    """From one report for each step of a recipe that `shortened` made, or one for each stretch of features."""
    at, batch = {report.done // short.batch_size: report.clock for report in reports}, short.batch_size
    stretch = short.stretch // batch
    kinds = [steps_between(short, i * short.stretch, (i + 1) * short.stretch)[1] > 0 for i in range(STRETCHES)]
    seconds: dict[bool, float] = {False: 0.0, True: 0.0}
    for kind in set(kinds):
        timed = [i for i, k in enumerate(kinds) if k == kind][1:]
        seconds[kind] = _mean(_step_seconds(at, i * stretch, stretch, short) for i in timed)
    gaps = [
        at[i * stretch + 1] - at[i * stretch] - seconds[kinds[i]]
        for i in range(1, STRETCHES)
        if kinds[i] == kinds[i - 1] and i * stretch + 1 in at
    ]
    checkpoint = max(0.0, _mean(gaps))
    ran = at[STRETCHES * stretch] - at[min(at)]
    usual = sum(seconds[k] for k in kinds) * stretch - min(at) * seconds[kinds[0]] + (STRETCHES - 1) * checkpoint
    return TrainingTimes(seconds[False], seconds[True], checkpoint, max(0.0, ran - usual))


def _step_seconds(at: dict[int, float], start: int, steps: int, short: Recipe) -> float:
    """Mean over a stretch. The first step after a checkpoint loads anew, and is part of it where it was told."""
    first = start + 1 if start + 1 in at else start
    return (at[start + steps] - at[first]) / (start + steps - first)


def _mean(values: Any) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else 0.0


@dataclass(frozen=True)
class EvaluationTimes:
    """What the reports of an evaluation of some images tell, in seconds."""

    fixed: float
    image: float
    reference_image: float


def evaluation_times(reports: list[Moment], images: int, spent: float) -> EvaluationTimes:
    """From the reports of an evaluation of `images` images that took `spent` in all."""
    reference = [r for r in reports if r.done <= r.total - images]  # of each extractor, one after the other
    reference_image = _slope(reference) * (reports[0].total // images - 1 if reports else 0)
    image = _slope(reports[len(reference) :])
    return EvaluationTimes(max(0.0, spent - images * (image + reference_image)), image, reference_image)


def _slope(reports: list[Moment]) -> float:
    """Seconds for each image after the first report, which warms up."""
    if len(reports) < 2:
        return 0.0
    return (reports[-1].clock - reports[0].clock) / (reports[-1].done - reports[0].done)
