"""What the trials of a sweep that are left cost: probes of the smallest and largest cells, and what lies between."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vqbench.cost import CellCost, Measured
from vqbench.plan import Cell
from vqbench.preflight import model_size
from vqbench.probing import Answer, probe_costs
from vqbench.wording import counted

if TYPE_CHECKING:
    from vqbench.cost import PlanCost
    from vqbench.sweeps.forecast import StudyForecast
    from vqbench.sweeps.sweep import SweepPlan
    from vqbench.view import View

MOST_KINDS = 4
"""Of cells of a method, each with two probes."""
_OF_A_KIND = ("batch_size", "discriminator_layers", "discriminator_channels")
"""Numbers of a recipe on which the time of a step depends, but not the size of the model."""


@dataclass(frozen=True)
class SweepCosts:
    """What is left to pay for a sweep. Nothing is taken off for trials that a pruner or a limit will end early."""

    expected: PlanCost
    """Of the cells that the sampler draws, as far as that is known, and of what it would draw now beyond that."""
    undrawn: int
    """How many of these cells are not known yet."""
    device_hours: tuple[float, float]
    """In all, if these are as cheap as the cheapest cell of their study, and if they are as dear as the dearest."""
    of_a_study: Mapping[str, dict[str, Any]]
    """Study → its share of `expected`; JSON-ready."""

    @property
    def failed(self) -> bool:
        """Whether a method could not be measured."""
        return self.expected.failed


def probe_sweep(plan: SweepPlan, found: Mapping[str, StudyForecast], view: View) -> SweepCosts:
    """Probe what the sampler will draw. Raises UsageError for what would stop the sweep."""
    limits = [name for name in ("max_images", "timeout") if getattr(plan.request, name) is not None]
    if limits:
        options = " and ".join(f"--{name.replace('_', '-')}" for name in limits)
        view.note(f"the costs are those of all trials; {options} may end the sweep before")
    known, cells, certain = set[str](), dict[str, list[Cell]](), set[str]()
    for name, study in found.items():
        cells[name] = []
        for trial in study.trials:
            for cell in trial.cells:
                if trial.is_certain:
                    certain.add(cell.folder.name)
                if cell.state != "cached" and cell.folder.name not in known:
                    known.add(cell.folder.name)
                    cells[name].append(cell)
    everything = dataclasses.replace(plan.base, cells=tuple(cell for some in cells.values() for cell in some))

    def estimate(waiting: Sequence[Cell], probe: Callable[[Cell], Answer]) -> list[Answer]:
        return between_probes(waiting, probe, view)

    probed = probe_costs(plan.request.run, everything, view, estimate)
    return _added_up(found, cells, certain, probed)


# one cell


def between_probes(cells: Sequence[Cell], probe: Callable[[Cell], Answer], view: View) -> list[Answer]:
    """What is measured of each cell: of the smallest and the largest model of each kind, and between in proportion.

    A step takes longer with every code and with every channel of it, in proportion to the values of the model. Cells
    are of one kind where nothing else differs on which the time of a step may depend. Of more than `MOST_KINDS` kinds
    of a method, the rarest are taken to be like the most frequent one.
    """
    kinds: dict[str, dict[str, list[int]]] = {}
    for i, cell in enumerate(cells):
        kinds.setdefault(cell.label, {}).setdefault(kind_of(cell), []).append(i)
    answers: dict[int, Answer] = {}
    for label, of_method in kinds.items():
        frequent = sorted(of_method.values(), key=len, reverse=True)
        rare = [i for members in frequent[MOST_KINDS:] for i in members]
        if rare:
            view.note(f"{label}: {counted(len(rare), 'cell')} of rare combinations of settings are taken to cost what "
                      "the most frequent combination does")  # fmt: skip
        for members, like_them in zip(frequent[:MOST_KINDS], [rare] + [[]] * MOST_KINDS, strict=False):
            answers |= _interpolated(cells, members, like_them, probe)
    return [answers[i] for i in range(len(cells))]


def _interpolated(
    cells: Sequence[Cell], members: Sequence[int], like_them: Sequence[int], probe: Callable[[Cell], Answer]
) -> dict[int, Answer]:
    """The answer for each of `members`, of which two are probed, and for each of `like_them`."""
    sizes = {i: model_size(cells[i]) for i in (*members, *like_them)}
    small, large = min(members, key=sizes.__getitem__), max(members, key=sizes.__getitem__)
    low = probe(cells[small])
    high = probe(cells[large]) if sizes[large] > sizes[small] else low
    if not isinstance(low, Measured):
        return dict.fromkeys(sizes, low)
    if not isinstance(high, Measured):
        return dict.fromkeys(sizes, high)
    span = max(1, sizes[large] - sizes[small])
    return {i: _between(low, high, (size - sizes[small]) / span) for i, size in sizes.items()}


def kind_of(cell: Cell) -> str:
    """The same for cells whose steps take a time that depends on the size of the model alone.

    Switches and names are compared, and which numbers are 0: a term of weight 0 is often left out.
    """
    recipe = cell.spec["recipe"]
    known: dict[str, Any] = {name: recipe[name] for name in _OF_A_KIND}
    for owner, fields in (("recipe", recipe), ("method", cell.spec["config"])):
        for name, value in fields.items():
            if value is None or isinstance(value, bool | str):
                known[f"{owner}.{name}"] = value
            elif isinstance(value, int | float):
                known[f"{owner}.{name}"] = value == 0
    return json.dumps(known, sort_keys=True)


def _between(low: Measured, high: Measured, share: float) -> Measured:
    """What would be measured at a share of the way from `low` to `high`."""
    numbers: dict[str, Any] = {}
    for field in dataclasses.fields(Measured):
        a, b = getattr(low, field.name), getattr(high, field.name)
        if isinstance(a, int | float) and not isinstance(a, bool):
            numbers[field.name] = type(a)(max(0, a + share * (b - a)))
    return dataclasses.replace(low, **numbers)


# all cells


def _added_up(
    found: Mapping[str, StudyForecast],
    cells: Mapping[str, Sequence[Cell]],
    certain: set[str],
    probed: PlanCost,
) -> SweepCosts:
    """With the trials that are too far ahead to be drawn: they are as those that were drawn."""
    costs, every = iter(probed.cells), list[tuple[Cell, CellCost]]()
    of_a_study, undrawn, least, most = {}, 0, 0.0, 0.0
    for name, study in found.items():
        pairs = [(cell, next(costs)) for cell in cells[name]]
        sure = [pair for pair in pairs if pair[0].folder.name in certain]
        guessed = [pair for pair in pairs if pair[0].folder.name not in certain]
        if guesses := [trial for trial in study.trials if not trial.is_certain]:
            sample, of_trials = guessed, len(guesses)
        else:
            sample, of_trials = sure, len(study.trials)
        beyond = round((study.left - len(study.trials)) * len(sample) / max(1, of_trials))
        guessed += [_again(sample[i % len(sample)]) for i in range(beyond)]
        hours = [_alone(cost).device_hours for _, cost in pairs]
        known_hours = sum(cost.device_hours for _, cost in (*sure, *guessed))
        known_hours -= sum(_alone(cost).device_hours for _, cost in guessed)
        least += known_hours + len(guessed) * min(hours, default=0.0)
        most += known_hours + len(guessed) * max(hours, default=0.0)
        undrawn += len(guessed)
        of_a_study[name] = _described([cost for _, cost in (*sure, *guessed)], probed)
        every += [*sure, *guessed]
    plan = dataclasses.replace(probed.plan, cells=tuple(cell for cell, _ in every))
    numbers = tuple(cost for _, cost in every)
    expected = dataclasses.replace(probed, plan=plan, cells=numbers, to_run=(True,) * len(every))
    return SweepCosts(expected, undrawn, (least, most), of_a_study)


def _alone(cost: CellCost) -> CellCost:
    """Without the reference features that it makes for all."""
    return dataclasses.replace(cost, reference_seconds=0.0)


def _again(pair: tuple[Cell, CellCost]) -> tuple[Cell, CellCost]:
    """Another cell like this one; the reference features are made once."""
    return pair[0], _alone(pair[1])


def _described(costs: Sequence[CellCost], probed: PlanCost) -> dict[str, Any]:
    """In all, and the cheapest and the dearest cell; who makes the reference features says what these take."""
    broken = next((cost for cost in costs if cost.problem is not None), None)
    if broken is not None:
        return {"cells_to_train": len(costs), **broken.as_dict(), "hint": broken.hint}
    reference = sum(cost.reference_seconds for cost in costs)
    alone = sorted(map(_alone, costs), key=lambda cost: cost.seconds)
    return {
        "cells_to_train": len(costs),
        "seconds": round(sum(cost.seconds for cost in alone), 6),
        "device_hours": round(sum(cost.device_hours for cost in alone), 6),
        "disk_bytes": sum(cost.disk_bytes for cost in alone),
        "reference_seconds": round(reference, 6),
        "reference_bytes": probed.reference_bytes if reference else 0,
        "cheapest_cell": alone[0].as_dict() if alone else None,
        "dearest_cell": alone[-1].as_dict() if alone else None,
    }
