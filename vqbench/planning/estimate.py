"""What the cells of a plan need of a GPU, from counting alone: memory and hours, where no probe has measured them."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vqbench.cell.measured import steps_between
from vqbench.planning.cost import images_done
from vqbench.planning.plan import Cell
from vqbench.recipe import Execution, Recipe

if TYPE_CHECKING:
    from vqbench.training.memory import StepCost

ASSUMED_FLOPS = 110e12
"""Operations a second that a training is taken to sustain: an assumption, about a fifth of what an H200 can in TF32."""
_MINOR_BYTES = 64 * 2**20
"""Of one map of features in full resolution: below, any card has room, and `--probe` measures on a CPU."""


@dataclass(frozen=True)
class Estimate:
    """What is known of one method's cells without training; nothing is measured."""

    label: str
    cells: int
    memory_bytes: int | None = None
    """Of a step, on each device."""
    images_at_once: int = 0
    flops_per_image: float = 0.0
    """Over the whole budget, forwards and backwards."""
    gpu_hours: float = 0.0
    """Of all cells that are left: training alone, at ASSUMED_FLOPS."""
    remark: str = ""
    """What the card here says to it, or why there are no numbers."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, of each of the cells."""
        if self.memory_bytes is None:
            return {"problem": self.remark}
        return {
            "memory_bytes": self.memory_bytes,
            "images_at_once": self.images_at_once,
            "gflop_per_image": round(self.flops_per_image / 1e9, 3),
            "gpu_hours": round(self.gpu_hours / self.cells, 3),
            "assumed_flop_per_s": ASSUMED_FLOPS,
        }


def is_large(recipe: Recipe) -> bool:
    """Whether a training is worth the seconds that counting takes."""
    return recipe.track == "images" and 4 * recipe.channels * recipe.resolution**2 * recipe.batch_size > _MINOR_BYTES


def estimates(cells: Iterable[Cell]) -> list[Estimate]:
    """One for each method of `cells` whose training is large, in their order."""
    by_label: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.trains and is_large(cell.recipe):
            by_label.setdefault(cell.label, []).append(cell)
    return [_estimate(label, same) for label, same in by_label.items()]


def _estimate(label: str, cells: list[Cell]) -> Estimate:
    from vqbench.training.memory import TooLargeError, UncountableError, card_bytes, refuse_too_large

    recipe, card = cells[0].recipe, card_bytes()
    try:
        cost = cost_of(cells[0].spec, recipe, card)
    except UncountableError as error:
        return Estimate(label, len(cells), remark=error.what)
    try:
        remark = refuse_too_large(cost, card) if card is not None else ""
    except TooLargeError as error:
        remark = f"{error.what}: {error.hint}"
    total = recipe.images_total
    whole = _flops(cost, recipe, 0)
    left = sum(_flops(cost, recipe, images_done(cell, recipe)) for cell in cells)
    return Estimate(
        label, len(cells), cost.peak_bytes, cost.at_once, whole / total, left / ASSUMED_FLOPS / 3600, remark
    )


def _flops(cost: StepCost, recipe: Recipe, start: int) -> float:
    plain, adversarial = steps_between(recipe, start, recipe.images_total)
    return recipe.batch_size * (plain * cost.flops + adversarial * cost.adversarial_flops)


def cost_of(spec: dict[str, Any], recipe: Recipe, card: int | None = None) -> StepCost:
    """What a step of a cell needs on each of its devices, of `card` bytes each. Raises UncountableError."""
    config = json.dumps(spec["config"], sort_keys=True)
    share = recipe.batch_size // spec["devices"]
    return _cost(spec["method"], spec["code"], config, recipe, share, Execution.of_spec(spec), card)


@functools.lru_cache(maxsize=256)
def _cost(
    method: str, code: str | None, config: str, recipe: Recipe, images: int, execution: Execution, card: int | None
) -> StepCost:
    """`code` tells one content of a plugin from another."""
    from vqbench.tokenizer import configured
    from vqbench.training.memory import fitted, step_cost

    fields = configured(method, json.loads(config))
    if card is None:
        return step_cost(method, fields, recipe, images, execution)
    return fitted(method, fields, recipe, images, execution, card)[1]
