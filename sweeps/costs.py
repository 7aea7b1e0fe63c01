"""What the trials of a sweep that are left cost, if each is as small, or as large, as it can be drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vqbench.errors import UsageError
from vqbench.plan import Cell, Plan, make_plan
from vqbench.sweeps.spaces import Parameter, draw, settings_of

if TYPE_CHECKING:
    from vqbench.cost import CellCost, PlanCost
    from vqbench.sweeps.request import SweepRequest
    from vqbench.sweeps.studies import StudyPlan
    from vqbench.view import View


@dataclass(frozen=True)
class SweepCosts:
    """Two costs between which that of a sweep lies, where its cost grows with what it draws."""

    least: PlanCost
    most: PlanCost
    """The same object where the two do not differ."""
    of_a_cell: Mapping[str, tuple[CellCost, CellCost]]
    """Study → cost of one of its cells: the smallest, the largest."""

    @property
    def failed(self) -> bool:
        """Whether a method could not be measured."""
        return self.least.failed or self.most.failed


def probe_sweep(
    request: SweepRequest, base: Plan, studies: Sequence[StudyPlan], left: Mapping[str, int], view: View
) -> SweepCosts:
    """Probe the smallest and the largest cell of each study; `left`: study → trials that it still has.

    Smallest is the cell in which every drawn number is at its low end. Raises UsageError for what would stop the sweep.
    """
    studies = [study for study in studies if left[study.name(request.title)] > 0]
    smallest = [_cells(request, base, study, 0, view) for study in studies]
    largest = [_cells(request, base, study, -1, view) for study in studies]
    low = _probed(request, base, smallest, view)
    same = [cells[0].folder.name for cells in smallest] == [cells[0].folder.name for cells in largest]
    high = low if same else _probed(request, base, largest, view)
    names = [study.name(request.title) for study in studies]
    trials = [left[name] for name in names]
    of_a_cell = dict(zip(names, zip(low.cells, high.cells, strict=True), strict=True))
    least = _of_all_trials(low, smallest, trials)
    return SweepCosts(least, least if same else _of_all_trials(high, largest, trials), of_a_cell)


def _cells(request: SweepRequest, base: Plan, study: StudyPlan, end: int, view: View) -> tuple[Cell, ...]:
    """The cells of a trial, one for each seed, with everything that is drawn at one end."""
    drawn = draw(study.parameters, study.base, lambda parameter: _outermost(parameter)[end])
    asked = dataclasses.replace(request.run, methods=(study.method,), rerun=True)
    metrics = tuple(base.cells[0].spec["metrics"])
    try:
        settings = (*study.settings, *settings_of(drawn))
        return make_plan(dataclasses.replace(asked, settings=settings), metrics).cells
    except UsageError as error:  # ends that do not go together
        view.note(f"{study.method} is measured with nothing drawn: {error.what}")
        return make_plan(dataclasses.replace(asked, settings=study.settings), metrics).cells


def _outermost(parameter: Parameter) -> list[Any]:
    """Values from the smallest to the largest, where they are numbers; otherwise as they are written."""
    ends = list(parameter.ends())
    typed = [parameter.typed(end) for end in ends]
    if not all(isinstance(value, int | float) for value in typed):
        return ends
    return [end for _, end in sorted(zip(typed, ends, strict=True), key=lambda pair: float(pair[0]))]


def _probed(request: SweepRequest, base: Plan, cells: Sequence[tuple[Cell, ...]], view: View) -> PlanCost:
    """What the first cell of each study costs."""
    from vqbench.probing import probe_costs

    first = dataclasses.replace(base, cells=tuple(of_a_trial[0] for of_a_trial in cells))
    return probe_costs(dataclasses.replace(request.run, rerun=True), first, view)


def _of_all_trials(one: PlanCost, cells: Sequence[tuple[Cell, ...]], trials: Sequence[int]) -> PlanCost:
    """The cost of all trials from that of one cell of each study; the reference features are made once."""
    every: list[Cell] = []
    costs: list[CellCost] = []
    for of_a_trial, cost, times in zip(cells, one.cells, trials, strict=True):
        every += list(of_a_trial) * times
        costs += [cost] * (len(of_a_trial) * times)
    reference = sum(cost.reference_seconds for cost in one.cells)
    costs = [dataclasses.replace(cost, reference_seconds=reference if i == 0 else 0.0) for i, cost in enumerate(costs)]
    whole = dataclasses.replace(one.plan, cells=tuple(every))
    return dataclasses.replace(one, plan=whole, cells=tuple(costs), to_run=(True,) * len(costs))
