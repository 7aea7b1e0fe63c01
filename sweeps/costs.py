"""Between what the trials that are left of a sweep cost, from probes of the smallest and the largest cells."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vqbench.arguments import options
from vqbench.cell.measured import Measured, steps_between
from vqbench.planning.cost import CellCost
from vqbench.planning.estimate import Estimate, estimates, is_large
from vqbench.planning.preflight import model_size
from vqbench.running.pricing import Answer, ProbeError, prepare_probes, priced, probe, scoring_seconds
from vqbench.sweeps.request import SweepRequest

if TYPE_CHECKING:
    from vqbench.planning.cost import PlanCost
    from vqbench.planning.plan import Cell
    from vqbench.planning.view import View
    from vqbench.sweeps.forecast import StudyForecast
    from vqbench.sweeps.plan import SweepPlan

ATTEMPTS = 3
"""Cells at one end that are probed until one can be measured."""


@dataclass(frozen=True)
class Amount:
    """Of some cells together, one after the other."""

    seconds: float = 0.0
    device_hours: float = 0.0
    disk_bytes: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(*map(sum, zip(self, other, strict=True)))

    def __iter__(self) -> Iterator[Any]:
        return iter((self.seconds, self.device_hours, self.disk_bytes))

    @classmethod
    def of(cls, cost: CellCost) -> Amount:
        """What a cell takes, but for the reference features that one cell makes for all."""
        alone = dataclasses.replace(cost, reference_seconds=0.0)
        return cls(alone.seconds, alone.device_hours, alone.disk_bytes)

    @classmethod
    def least(cls, amounts: Iterable[Amount]) -> Amount:
        """The least of each."""
        return cls(*map(min, zip(*amounts, strict=True)))

    @classmethod
    def most(cls, amounts: Iterable[Amount]) -> Amount:
        """The most of each."""
        return cls(*map(max, zip(*amounts, strict=True)))


@dataclass(frozen=True)
class StudyCost:
    """What is left to pay for one study."""

    cells: int
    """To train."""
    undrawn: int
    """How many of them depend on scores to come, or lie too far ahead: as the cheapest, and as the dearest."""
    least: Amount = Amount()
    most: Amount = Amount()
    problem: str | None = None
    """Why there are no numbers: what the probe of its smallest cell said."""
    hint: str | None = None

    def as_dict(self, reference: Amount) -> dict[str, Any]:
        """JSON-ready; each amount as [least, most]. `reference`: what its first cell pays for all."""
        counts = {"cells_to_train": self.cells, "undrawn": self.undrawn}
        if self.problem is not None:
            return {**counts, "problem": self.problem, "hint": self.hint}
        ends = dataclasses.asdict(self.least), dataclasses.asdict(self.most)
        amounts = {name: [round(end[name], 6) for end in ends] for name in ends[0]}
        paid = {"reference_seconds": reference.seconds, "reference_bytes": reference.disk_bytes}
        return {**counts, **amounts, **paid}


@dataclass(frozen=True)
class SweepCosts:
    """What is left to pay for a sweep. Nothing is taken off for trials that a pruner or a limit will end early."""

    studies: Mapping[str, StudyCost]
    reference: Amount
    """Of the reference features, which one cell makes for all."""
    unit: str
    """What device_hours count."""
    device_name: str | None

    @property
    def failed(self) -> bool:
        """Whether a study could not be measured."""
        return any(study.problem is not None for study in self.studies.values())

    def as_dicts(self) -> dict[str, dict[str, Any]]:
        """Study → its share, JSON-ready; the first that trains pays for the reference features."""
        first = next((name for name, study in self.studies.items() if study.cells), None)
        return {n: study.as_dict(self.reference if n == first else Amount()) for n, study in self.studies.items()}

    def total(self) -> tuple[Amount, Amount]:
        """The least and the most of everything."""
        studies = self.studies.values()
        return (
            sum((study.least for study in studies), self.reference),
            sum((study.most for study in studies), self.reference),
        )


def probe_sweep(plan: SweepPlan, found: Mapping[str, StudyForecast], view: View) -> SweepCosts:
    """Probe the ends of what the sampler will draw. Raises UsageError for what would stop the sweep."""
    limits = [name for name in ("max_images", "timeout") if getattr(plan.request, name) is not None]
    if limits:
        typed = " and ".join(options(SweepRequest)[name].words for name in limits)
        view.note(f"the costs are those of all trials; {typed} may end the sweep before")
    of_study = _to_train(found)
    cells = [cell for some in of_study.values() for cell in some]
    everything, run = dataclasses.replace(plan.base, cells=tuple(cells)), plan.request.run
    if cells:
        prepare_probes(run, everything, view)
    ends: dict[str, tuple[tuple[Cell, Answer], tuple[Cell, Answer]]] = {}
    for label in dict.fromkeys(cell.label for cell in cells):
        ends[label] = _ends([cell for cell in cells if cell.label == label], lambda cell: probe(cell, run, view), view)
    measured = any(isinstance(answer, Measured) for pair in ends.values() for _, answer in pair)
    scoring = scoring_seconds(everything, cells) if measured else 0.0
    low, high = (
        priced(run, everything, [_as_if(cell, *ends[cell.label][end]) for cell in cells], scoring) for end in (0, 1)
    )
    return _added_up(found, of_study, low, high)


def count_sweep(found: Mapping[str, StudyForecast], title: str) -> dict[str, list[Estimate]]:
    """Study → what a cell needs of a GPU that takes least, and one that takes most; counted, of large trainings alone.

    `title`: of the sweep, which the names of its studies begin with.
    """
    counted = {}
    for name, cells in _to_train(found).items():
        upwards = sorted((cell for cell in cells if is_large(cell.recipe)), key=_memory_weight)
        if upwards:
            ends = [estimates([cell])[0] for cell in (upwards[0], upwards[-1])]
            ends.sort(key=lambda end: end.memory_bytes or 0)
            short = name.removeprefix(f"{title}/")
            labels = (f"{short}, a smallest cell", f"{short}, a largest cell")
            counted[name] = [dataclasses.replace(end, label=label) for end, label in zip(ends, labels, strict=True)]
    return counted


def _to_train(found: Mapping[str, StudyForecast]) -> dict[str, list[Cell]]:
    """Study → the cells of its drawn trials that have no result, each in the first study that has it."""
    cells: dict[str, list[Cell]] = {}
    known: set[str] = set()
    for name, study in found.items():
        drawn = {cell.folder.name: cell for trial in study.trials for cell in trial.cells if cell.state != "cached"}
        cells[name] = [cell for folder, cell in drawn.items() if folder not in known]
        known |= set(drawn)
    return cells


def _ends(
    cells: Sequence[Cell], measure: Callable[[Cell], Answer], view: View
) -> tuple[tuple[Cell, Answer], tuple[Cell, Answer]]:
    """The smallest and the largest of a method's cells that can be measured, and what their probes found."""
    upwards = sorted(cells, key=_weight)
    answers: dict[str, Answer] = {}

    def first(candidates: Iterable[Cell]) -> tuple[Cell, Answer]:
        tried: list[tuple[Cell, Answer]] = []
        for cell in candidates:
            if len(tried) == ATTEMPTS:
                break
            key = str(_weight(cell))
            if key not in answers:
                answers[key] = measure(cell)
                tried.append((cell, answers[key]))
            if isinstance(answers[key], Measured):
                return cell, answers[key]
        return tried[0] if tried else (upwards[0], answers[str(_weight(upwards[0]))])

    low, high = first(upwards), first(reversed(upwards))
    for which, end, other in (("largest", high, low), ("smallest", low, high)):
        if isinstance(end[1], ProbeError) and isinstance(other[1], Measured):
            view.note(f"{end[0].label}: the {which} cell cannot be measured, {end[1].problem}")
            return other, other
    return low, high


def _weight(cell: Cell) -> tuple[bool, bool, int, int]:
    """What makes a cell dearer than another of its method: terms of its loss, what its model holds, a small batch."""
    recipe = cell.recipe
    _, adversarial = steps_between(recipe, 0, recipe.images_total)
    return adversarial > 0, recipe.perceptual != "none", model_size(cell), -recipe.batch_size


def _memory_weight(cell: Cell) -> tuple[bool, bool, int, int]:
    """What makes a step of a cell need more memory than another of its method: here a large batch does."""
    adversarial, perceptual, model, batch = _weight(cell)
    return adversarial, perceptual, -batch, model


def _as_if(cell: Cell, probed: Cell, answer: Answer) -> Answer:
    """What was measured of `probed`, for a cell with another batch: a step takes as long as its images do."""
    if isinstance(answer, ProbeError):
        return answer
    share = cell.recipe.batch_size / probed.recipe.batch_size
    plain, adversarial = answer.step_seconds * share, answer.adversarial_step_seconds * share
    # a kind of step that the probed cell does not take is taken to last as long as the other
    return dataclasses.replace(answer, step_seconds=plain or adversarial, adversarial_step_seconds=adversarial or plain)


def _added_up(
    found: Mapping[str, StudyForecast], of_study: Mapping[str, Sequence[Cell]], low: PlanCost, high: PlanCost
) -> SweepCosts:
    ends = {cell.folder.name: pair for cell, *pair in zip(low.plan.cells, low.cells, high.cells, strict=True)}
    studies = {name: _of_a_study(study, of_study[name], ends) for name, study in found.items()}
    hours = low.total().device_hours - sum(cost.device_hours for cost in map(Amount.of, low.cells))
    reference = Amount(low.reference_seconds, hours, low.reference_bytes)
    return SweepCosts(studies, reference, low.unit, low.device_name)


def _of_a_study(study: StudyForecast, cells: Sequence[Cell], ends: Mapping[str, Sequence[CellCost]]) -> StudyCost:
    certain = {cell.folder.name for trial in study.trials if trial.is_certain for cell in trial.cells}
    of_trial = max((len(trial.cells) for trial in study.trials), default=0)
    sure = [cell for cell in cells if cell.folder.name in certain]
    undrawn = len(cells) - len(sure) + of_trial * (study.left - len(study.trials)) if cells else 0
    number = len(sure) + undrawn
    broken = next((cost for cell in cells for cost in ends[cell.folder.name] if cost.problem is not None), None)
    if broken is not None:
        return StudyCost(number, undrawn, problem=broken.problem, hint=broken.hint)
    if not cells:
        return StudyCost(0, 0)
    each = {cell.folder.name: [Amount.of(cost) for cost in ends[cell.folder.name]] for cell in cells}
    whole = [amount for cell in cells if cell.state != "partial" for amount in each[cell.folder.name]]
    whole = whole or [amount for amounts in each.values() for amount in amounts]
    least, most = (
        sum((end(each[cell.folder.name]) for cell in sure), sum([end(whole)] * undrawn, Amount()))
        for end in (Amount.least, Amount.most)
    )
    return StudyCost(number, undrawn, least, most)
