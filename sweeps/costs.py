"""What the trials of a sweep that are left cost, from a probe of the smallest and the largest cell of each study."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vqbench.cost import images_done
from vqbench.errors import UsageError
from vqbench.plan import Cell, Plan, make_plan
from vqbench.preflight import model_size
from vqbench.sweeps.spaces import Parameter, draw

if TYPE_CHECKING:
    from vqbench.cost import CellCost, PlanCost
    from vqbench.sweeps.forecast import StudyForecast
    from vqbench.sweeps.studies import StudyPlan
    from vqbench.sweeps.sweep import SweepPlan
    from vqbench.view import View


@dataclass(frozen=True)
class SweepCosts:
    """What is left to pay for a sweep. Nothing is taken off for trials that a pruner will end early."""

    expected: PlanCost
    """Of the cells that the sampler draws, as far as that is known, and of what it would draw now beyond that."""
    least: PlanCost
    """If every trial were as small as it can be drawn."""
    most: PlanCost
    """If every trial were as large as it can be drawn."""
    of_a_study: Mapping[str, dict[str, Any]]
    """Study → its share of `expected`, and the costs of its smallest and its largest cell; JSON-ready."""

    @property
    def failed(self) -> bool:
        """Whether a method could not be measured."""
        return self.expected.failed


@dataclass(frozen=True)
class _Probed:
    """A study whose cells were probed with everything that is drawn at its low end, and at its high end."""

    name: str
    trials: int
    """Those that are left."""
    low: tuple[Cell, ...]
    """The cells of a trial, one for each seed."""
    high: tuple[Cell, ...]
    low_cost: CellCost
    """Of one of them."""
    high_cost: CellCost

    def cost_of(self, cell: Cell) -> CellCost:
        """Between the two ends, in proportion to the values of the model; halfway where these do not differ.

        A step takes longer with every code and with every channel of it, and does not mind a learning rate.
        """
        low, high = self.low_cost, self.high_cost
        if low.problem is not None or high.problem is not None:
            return low if low.problem is not None else high
        small, large, recipe = model_size(self.low[0]), model_size(self.high[0]), cell.recipe
        share = (model_size(cell) - small) / (large - small) if large != small else 0.5
        cost = _between(low, high, min(1.0, max(0.0, share)))
        whole = recipe.steps * recipe.batch_size
        left = whole - images_done(cell, recipe)
        seen = max(1, cost.images)  # by the cells at the ends, whose budgets may be others
        return dataclasses.replace(
            cost,
            images=left,
            training_seconds=cost.training_seconds * left / seen,
            checkpoint_seconds=cost.checkpoint_seconds * left / seen,
        )


def probe_sweep(plan: SweepPlan, found: Mapping[str, StudyForecast], view: View) -> SweepCosts:
    """Probe the smallest and the largest cell of each study that has trials left.

    Smallest is the cell in which every drawn number is at its low end. Raises UsageError for what would stop the sweep.
    """
    left = {study.name(plan.request.title): study for study in plan.studies}
    left = {name: study for name, study in left.items() if found[name].left > 0}
    low, high = ([_cells(plan, study, end, view) for study in left.values()] for end in (0, -1))
    probed = _probed(plan, [cells[0] for cells in (*low, *high)], view)
    ends = zip(left, low, high, probed.cells[: len(left)], probed.cells[len(left) :], strict=True)
    studies = [_Probed(name, found[name].left, a, b, c, d) for name, a, b, c, d in ends]
    return _added_up(studies, _foreseen({name: found[name] for name in left}, len(plan.request.run.seeds)), probed)


def _added_up(studies: Sequence[_Probed], cells: Mapping[str, Sequence[Cell]], probed: PlanCost) -> SweepCosts:
    costs = {study.name: [study.cost_of(cell) for cell in cells[study.name]] for study in studies}
    reference = sum(cost.reference_seconds for cost in probed.cells)

    def whole(pairs: Iterable[tuple[Cell, CellCost]]) -> PlanCost:
        """Of these cells; the reference features are made once."""
        once = [
            (cell, dataclasses.replace(cost, reference_seconds=reference if i == 0 else 0.0))
            for i, (cell, cost) in enumerate(pairs)
        ]
        everything = dataclasses.replace(probed.plan, cells=tuple(cell for cell, _ in once))
        return dataclasses.replace(
            probed, plan=everything, cells=tuple(cost for _, cost in once), to_run=(True,) * len(once)
        )

    return SweepCosts(
        expected=whole(pair for study in studies for pair in zip(cells[study.name], costs[study.name], strict=True)),
        least=whole((cell, s.low_cost) for s in studies for cell in s.low * s.trials),
        most=whole((cell, s.high_cost) for s in studies for cell in s.high * s.trials),
        of_a_study={study.name: _described(study, costs[study.name]) for study in studies},
    )


def _described(study: _Probed, costs: Sequence[CellCost]) -> dict[str, Any]:
    numbers = ("seconds", "device_hours", "disk_bytes")
    expected: dict[str, Any] = {name: round(sum(getattr(cost, name) for cost in costs), 6) for name in numbers}
    return {
        "cells_to_train": len(costs),
        **(expected if all(cost.problem is None for cost in costs) else {}),
        "least": study.low_cost.as_dict(),
        "most": study.high_cost.as_dict(),
    }


def _foreseen(found: Mapping[str, StudyForecast], seeds: int) -> dict[str, list[Cell]]:
    """Study → the cells to train of its trials, each once in all; what is too far ahead is as what is drawn."""
    known, cells = set[str](), dict[str, list[Cell]]()
    for name, study in found.items():
        cells[name] = []
        for cell in (cell for trial in study.trials for cell in trial.cells if cell.state != "cached"):
            if cell.folder.name not in known:
                cells[name].append(cell)
                known.add(cell.folder.name)
        beyond, drawn = (study.left - len(study.trials)) * seeds, list(cells[name])
        cells[name] += [drawn[i % len(drawn)] for i in range(beyond)] if drawn else []
    return cells


def _cells(plan: SweepPlan, study: StudyPlan, end: int, view: View) -> tuple[Cell, ...]:
    """The cells of a trial, one for each seed, with everything that is drawn at one end."""
    drawn = draw(study.parameters, study.base, lambda parameter: _outermost(parameter)[end])
    run, metrics = dataclasses.replace(plan.request.run, rerun=True), tuple(plan.base.cells[0].spec["metrics"])
    try:
        return make_plan(study.asked(run, drawn), metrics).cells
    except UsageError as error:  # ends that do not go together
        view.note(f"{study.method} is measured with nothing drawn: {error.what}")
        return make_plan(study.asked(run, {}), metrics).cells


def _outermost(parameter: Parameter) -> list[Any]:
    """Values from the smallest to the largest, where they are numbers; otherwise as they are written."""
    ends = list(parameter.ends())
    typed = [parameter.typed(end) for end in ends]
    if not all(isinstance(value, int | float) for value in typed):
        return ends
    return [end for _, end in sorted(zip(typed, ends, strict=True), key=lambda pair: float(pair[0]))]


def _probed(plan: SweepPlan, cells: Sequence[Cell], view: View) -> PlanCost:
    """What each of these costs; of those that are alike, one is probed."""
    from vqbench.probing import probe_costs

    alone: Plan = dataclasses.replace(plan.base, cells=tuple(cells))
    return probe_costs(dataclasses.replace(plan.request.run, rerun=True), alone, view)


def _between(low: CellCost, high: CellCost, share: float) -> CellCost:
    """The cost at a share of the way from `low` to `high`."""

    def at(name: str) -> Any:
        a, b = getattr(low, name), getattr(high, name)
        return type(a)(a + share * (b - a))

    sizes = ("images", "disk_bytes", "peak_bytes")
    times = ("overhead_seconds", "training_seconds", "checkpoint_seconds", "evaluation_seconds")
    rate = at("images_per_s") if low.images_per_s and high.images_per_s else None
    return dataclasses.replace(
        low, **{name: at(name) for name in (*sizes, *times)}, images_per_s=rate, reference_seconds=0.0
    )
