"""What the trials of a sweep that are left cost: probes of the smallest and largest cells, and what lies between."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vqbench.cell.measured import Measured, steps_between
from vqbench.planning.cost import CellCost
from vqbench.planning.plan import Cell
from vqbench.planning.preflight import model_size
from vqbench.running.probing import Answer, probe_costs
from vqbench.wording import counted

if TYPE_CHECKING:
    from vqbench.planning.cost import PlanCost
    from vqbench.planning.view import View
    from vqbench.sweeps.forecast import StudyForecast
    from vqbench.sweeps.plan import SweepPlan

MOST_KINDS = 4
"""Of cells of a method that are probed, with two probes each, where all is the same on which steps surely depend."""
ATTEMPTS = 3
"""Cells at one end that are probed until one can be measured."""
_DECIDES = ("batch_size", "gan", "perceptual", "precision", "discriminator_layers", "discriminator_channels")
"""Fields of a recipe on which the time of a step surely depends, but not the size of the model."""


@dataclass(frozen=True)
class SweepCosts:
    """What is left to pay for a sweep. Nothing is taken off for trials that a pruner or a limit will end early."""

    expected: PlanCost
    """Of the cells that the sampler draws, as far as that is known, and of what it would draw now beyond that."""
    undrawn: int
    """How many of these cells are not known yet."""
    device_hours: tuple[float, float]
    """In all, if these are as cheap as the cheapest whole cell of their study so far, and if as dear as the dearest."""
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
    cells, certain = dict[str, list[Cell]](), set[str]()
    for name, study in found.items():
        certain |= {cell.folder.name for trial in study.trials if trial.is_certain for cell in trial.cells}
        known = {cell.folder.name for some in cells.values() for cell in some}
        drawn = {cell.folder.name: cell for trial in study.trials for cell in trial.cells if cell.state != "cached"}
        cells[name] = [cell for folder, cell in drawn.items() if folder not in known]
    everything = dataclasses.replace(plan.base, cells=tuple(cell for some in cells.values() for cell in some))
    probed = probe_costs(plan.request.run, everything, view, functools.partial(between_probes, view=view))
    return _added_up(found, cells, certain, probed)


# one cell


def between_probes(cells: Sequence[Cell], probe: Callable[[Cell], Answer], view: View) -> list[Answer]:
    """What is measured of each cell: of the smallest and the largest model of each kind, and between in proportion.

    A step takes longer with every code and with every channel of it, in proportion to the values of the model. Cells
    are of one kind where nothing else differs on which the time of a step may depend. Of more than `MOST_KINDS` kinds
    of a method, the rarest are taken to be like the most frequent one on which all that surely matters is the same.
    """
    kinds: dict[tuple[str, str, str], list[int]] = {}
    for i, cell in enumerate(cells):
        kinds.setdefault((cell.label, *kind_of(cell)), []).append(i)
    kept: dict[tuple[str, str], list[tuple[list[int], list[int]]]] = {}
    for (label, decides, _), members in sorted(kinds.items(), key=lambda kind: -len(kind[1])):
        alike, of_method = (
            kept.setdefault((label, decides), []),
            sum(len(v) for (m, _), v in kept.items() if m == label),
        )
        if alike and of_method >= MOST_KINDS:
            alike[0][1].extend(members)
        else:
            alike.append((members, []))
    answers: dict[int, Answer] = {}
    for (label, _), alike in kept.items():
        for members, rare in alike:
            answers |= _interpolated(cells, members, rare, probe)
            if rare:
                view.note(f"{label}: {counted(len(rare), 'cell')} of rare combinations of settings are taken to cost "
                          "what a more frequent combination does")  # fmt: skip
    return [answers[i] for i in range(len(cells))]


def _interpolated(
    cells: Sequence[Cell], members: Sequence[int], rare: Sequence[int], probe: Callable[[Cell], Answer]
) -> dict[int, Answer]:
    """The answer for each of `members`, of which two are probed, and for each of `rare`, which are like them.

    What cannot be measured keeps its reason, and the next one is probed.
    """
    sizes = {i: model_size(cells[i]) for i in (*members, *rare)}
    failed: dict[int, Answer] = {}

    def measured(candidates: Sequence[int]) -> tuple[int, Measured] | None:
        for _ in range(ATTEMPTS):
            left = [i for i in candidates if i not in failed]
            if not left:
                break
            answer = probe(cells[left[0]])
            if isinstance(answer, Measured):
                return left[0], answer
            same = _settings(cells[left[0]])
            failed.update({i: answer for i in sizes if _settings(cells[i]) == same})
        return None

    upwards = sorted(members, key=sizes.__getitem__)
    low = measured(upwards)
    if low is None:
        return dict.fromkeys(sizes, next(iter(failed.values()))) | failed
    high = measured([i for i in reversed(upwards) if sizes[i] > sizes[low[0]]]) or low
    small, span = sizes[low[0]], max(1, sizes[high[0]] - sizes[low[0]])
    shares = {i: min(1.0, max(0.0, (size - small) / span)) for i, size in sizes.items()}
    return {i: _between(low[1], high[1], share) for i, share in shares.items()} | failed


def _settings(cell: Cell) -> str:
    return json.dumps([cell.spec["config"], cell.spec["recipe"]], sort_keys=True)


def kind_of(cell: Cell) -> tuple[str, str]:
    """The same for cells whose steps take a time that depends on the size of the model alone.

    First what surely decides, then what may: switches, names, and which numbers are 0, for a term of weight 0 is often
    left out. What else a number may do to the time of a step is not known.
    """
    recipe, shape = cell.recipe, cell.spec["recipe"]
    surely: dict[str, Any] = {name: shape[name] for name in _DECIDES}
    surely["steps"] = [steps > 0 for steps in steps_between(recipe, 0, recipe.steps * recipe.batch_size)]
    surely |= {name: value for name, value in shape.items() if isinstance(value, list) and name != "betas"}
    maybe: dict[str, Any] = {}
    for owner, fields in (("recipe", shape), ("method", cell.spec["config"])):
        for name, value in fields.items():
            if value is None or isinstance(value, bool | str):
                maybe[f"{owner}.{name}"] = value
            elif isinstance(value, int | float):
                maybe[f"{owner}.{name}"] = value == 0
    return json.dumps(surely, sort_keys=True), json.dumps(maybe, sort_keys=True)


def _between(low: Measured, high: Measured, share: float) -> Measured:
    """What would be measured at a share of the way from `low` to `high`."""
    numbers: dict[str, Any] = {}
    for field in dataclasses.fields(Measured):
        a, b = getattr(low, field.name), getattr(high, field.name)
        if isinstance(a, int | float) and not isinstance(a, bool):
            numbers[field.name] = type(a)(a + share * (b - a))
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
    of_a_study, undrawn, least, most = dict[str, dict[str, Any]](), 0, 0.0, 0.0
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
        hours = [_alone(cost).device_hours for cell, cost in pairs if cell.state != "partial"]
        hours = hours or [_alone(cost).device_hours for _, cost in pairs]
        known_hours = sum(cost.device_hours for _, cost in (*sure, *guessed))
        known_hours -= sum(_alone(cost).device_hours for _, cost in guessed)
        least += known_hours + len(guessed) * min(hours, default=0.0)
        most += known_hours + len(guessed) * max(hours, default=0.0)
        undrawn += len(guessed)
        first = not any(study["cells_to_train"] for study in of_a_study.values())
        numbers = [cost for _, cost in (*sure, *guessed)]
        of_a_study[name] = _described(numbers, probed.reference_bytes if first and numbers else 0)
        every += [*sure, *guessed]
    plan = dataclasses.replace(probed.plan, cells=tuple(cell for cell, _ in every))
    expected = dataclasses.replace(
        probed, plan=plan, cells=tuple(cost for _, cost in every), to_run=(True,) * len(every)
    )
    return SweepCosts(expected, undrawn, (least, most), of_a_study)


def _alone(cost: CellCost) -> CellCost:
    """Without the reference features that it makes for all."""
    return dataclasses.replace(cost, reference_seconds=0.0)


def _again(pair: tuple[Cell, CellCost]) -> tuple[Cell, CellCost]:
    """Another cell like this one; the reference features are made once."""
    return pair[0], _alone(pair[1])


def _described(costs: Sequence[CellCost], reference_bytes: int) -> dict[str, Any]:
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
        "reference_bytes": reference_bytes,
        "cheapest_cell": alone[0].as_dict() if alone else None,
        "dearest_cell": alone[-1].as_dict() if alone else None,
    }
