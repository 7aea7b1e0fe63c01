"""What the cells of a plan cost, from what a probe measured of each method: time, disk. Never imports torch."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vqbench.cell.measured import Measured, steps_between
from vqbench.planning.plan import Cell, Plan
from vqbench.recipe import Recipe
from vqbench.results.checkpoint import images_in_checkpoint


@dataclass(frozen=True)
class CellCost:
    """What is left to pay for one cell. Times in seconds of wall clock, on `devices` devices."""

    images: int = 0
    """Training images that it has still to see."""
    overhead_seconds: float = 0.0
    training_seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    reference_seconds: float = 0.0
    """Of reference features that it makes for all cells; 0 for all cells but one."""
    images_per_s: float | None = None
    """Training throughput over all devices, over the recipe's whole budget."""
    device: str | None = None
    """As torch names it; None where nothing was measured."""
    devices: int = 1
    disk_bytes: int = 0
    """Of the cell's folder when the cell is done, with MLflow's copies where they lie in the runs directory."""
    peak_bytes: int = 0
    """The most that it takes while it runs: the new checkpoint lies beside the old one."""
    problem: str | None = None
    """Why there are no numbers: what the probe of this method said."""
    hint: str | None = None

    @property
    def seconds(self) -> float:
        """All of it."""
        parts = (self.overhead_seconds, self.training_seconds, self.checkpoint_seconds, self.evaluation_seconds)
        return sum(parts) + self.reference_seconds

    @property
    def device_hours(self) -> float:
        """GPU-hours: wall hours times devices. On a CPU: wall hours of this one cell."""
        return self.seconds * (self.devices if self.is_on_gpu else 1) / 3600

    @property
    def is_on_gpu(self) -> bool:
        """Whether hours are GPU-hours."""
        return self.device is not None and self.device != "cpu"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; without numbers where there is a problem."""
        if self.problem is not None:
            return {"problem": self.problem, "hint": self.hint}
        values = dataclasses.asdict(self) | {"seconds": self.seconds, "device_hours": self.device_hours}
        rounded = {key: round(value, 6) if isinstance(value, float) else value for key, value in values.items()}
        return {key: value for key, value in rounded.items() if key != "hint"}


@dataclass(frozen=True)
class MethodCost:
    """The cells of one method that are to be run, taken together. Reference features are counted apart."""

    label: str
    cells: int
    seconds: float
    device_hours: float
    images_per_s: float | None
    disk_bytes: int
    peak_bytes: int
    """While its cells run, one after the other."""
    problem: str | None = None
    hint: str | None = None


@dataclass(frozen=True)
class PlanCost:
    """What is left to pay for a plan, cell by cell."""

    plan: Plan
    cells: tuple[CellCost, ...]
    """In the plan's order."""
    to_run: tuple[bool, ...]
    """Which of them are to be run: the others are cached."""
    device_name: str | None
    """What was measured on; None where nothing was."""
    reference_bytes: int
    """Of the reference features, in the runs directory."""

    @property
    def failed(self) -> bool:
        """Whether a method could not be measured."""
        return any(cost.problem is not None for cost in self.cells)

    @property
    def reference_seconds(self) -> float:
        """Of the reference features, which one cell makes for all."""
        return sum(cost.reference_seconds for cost in self.cells)

    @property
    def unit(self) -> str:
        """What device_hours count."""
        measured = [cost for cost in self.cells if cost.device is not None]
        if not measured:
            return "hours"
        return "GPU-hours" if any(cost.is_on_gpu for cost in measured) else "CPU-hours"

    def methods(self) -> list[MethodCost]:
        """One for each method, in the plan's order."""
        labels = dict.fromkeys(cell.label for cell in self.plan.cells)
        return [self._sum(label, [i for i, c in enumerate(self.plan.cells) if c.label == label]) for label in labels]

    def total(self) -> MethodCost:
        """All methods and the reference features."""
        everything = self._sum("total", list(range(len(self.cells))))
        share = next((c.device_hours / c.seconds for c in self.cells if c.reference_seconds), 0.0)
        return dataclasses.replace(
            everything,
            seconds=everything.seconds + self.reference_seconds,
            device_hours=everything.device_hours + self.reference_seconds * share,
            disk_bytes=everything.disk_bytes + self.reference_bytes,
            peak_bytes=everything.peak_bytes + self.reference_bytes,
        )

    def _sum(self, label: str, positions: list[int]) -> MethodCost:
        costs = [dataclasses.replace(self.cells[i], reference_seconds=0.0) for i in positions]
        rates = {cost.images_per_s for cost in costs if cost.images_per_s is not None}
        broken = next((cost for cost in costs if cost.problem is not None), None)
        return MethodCost(
            label=label,
            cells=sum(self.to_run[i] for i in positions),
            seconds=sum(cost.seconds for cost in costs),
            device_hours=sum(cost.device_hours for cost in costs),
            images_per_s=rates.pop() if len(rates) == 1 else None,
            disk_bytes=sum(cost.disk_bytes for cost in costs),
            peak_bytes=_peak(costs),
            problem=broken.problem if broken else None,
            hint=broken.hint if broken else None,
        )


def _peak(costs: Iterable[CellCost]) -> int:
    """Bytes while cells run one after the other: what those before left, and the most that each takes."""
    costs = list(costs)
    before = itertools.accumulate((cost.disk_bytes for cost in costs), initial=0)
    return max((left + cost.peak_bytes for left, cost in zip(before, costs, strict=False)), default=0)


def images_done(cell: Cell, recipe: Recipe) -> int:
    """Training images that a cell which goes on need not see again."""
    if cell.folder.weights.is_file() and cell.folder.training_record.is_file():
        return recipe.images_total
    return min(images_in_checkpoint(cell.folder.checkpoint), recipe.images_total)


def training_seconds(measured: Measured, recipe: Recipe, start: int) -> float:
    """Of all steps that are left after `start` images."""
    plain, adversarial = steps_between(recipe, start, recipe.images_total)
    return plain * measured.step_seconds + adversarial * measured.adversarial_step_seconds


def cell_cost(
    measured: Measured, recipe: Recipe, *, done: int, validation_images: int, devices: int, scoring_seconds: float
) -> CellCost:
    """The cost of a cell that has seen `done` training images; with no reference features, no copies in MLflow.

    `scoring_seconds`: of the distances between feature distributions, over all validation images.
    """
    total = recipe.images_total
    whole = training_seconds(measured, recipe, 0)
    checkpoints = -(-total // recipe.stretch) - done // recipe.stretch
    kept = kept_bytes(measured, recipe, validation_images)
    writing = 2 * measured.checkpoint_bytes if done < total else 0
    return CellCost(
        images=total - done,
        overhead_seconds=measured.overhead_seconds,
        training_seconds=training_seconds(measured, recipe, done),
        checkpoint_seconds=max(0, checkpoints) * measured.checkpoint_seconds,
        evaluation_seconds=measured.evaluation_seconds
        + validation_images * measured.evaluation_image_seconds
        + scoring_seconds,
        images_per_s=total / whole if whole > 0 else None,
        device=measured.device,
        devices=devices,
        disk_bytes=kept,
        peak_bytes=max(writing, kept + (measured.checkpoint_bytes if done < total else 0)),
    )


def kept_bytes(measured: Measured, recipe: Recipe, validation_images: int) -> int:
    """Of the folder of a finished cell."""
    return measured.weights_bytes + measured.folder_bytes + _growing_bytes(measured, recipe, validation_images)


def copied_bytes(measured: Measured, recipe: Recipe, validation_images: int) -> int:
    """Of what MLflow gets a copy of from a finished cell."""
    return measured.copied_bytes + _growing_bytes(measured, recipe, validation_images)


def _growing_bytes(measured: Measured, recipe: Recipe, validation_images: int) -> int:
    points = recipe.images_total / max(recipe.log_images, recipe.batch_size)
    return int(validation_images * measured.image_bytes + points * measured.point_bytes)
