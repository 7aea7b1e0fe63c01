"""What a dry run shows on stdout: cells and their states, studies of a sweep, and what they will cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.text import Text

from vqbench.cli.terminal import Columns, make_console
from vqbench.wording import counted

if TYPE_CHECKING:
    from vqbench.planning.cost import MethodCost, PlanCost
    from vqbench.planning.estimate import Estimate
    from vqbench.planning.plan import Plan
    from vqbench.sweeps.costs import Amount, StudyCost, SweepCosts
    from vqbench.sweeps.plan import SweepPlan


def print_sweep_plan(studies: list[dict[str, Any]], plan: SweepPlan) -> None:
    """The studies of a sweep, and what each draws."""
    console, table = make_console(), Columns(("study", "trials", "told", "cells left", "parameter", "drawn from"))
    for study in studies:
        lines = list(study["parameters"].items()) or [("–", "–")]
        cells = ", ".join(f"{n} {state}" for state, n in study["cells"].items()) or "–"
        for i, (name, domain) in enumerate(lines):
            first = (study["study"], str(study["trials"]), str(study["told"]), cells) if i == 0 else ("",) * 4
            table.add(*map(Text, (*first, name, domain)))
    table.print(console)
    total, seeds = sum(study["left"] for study in studies), len(plan.request.run.seeds)
    images, each = total * seeds * plan.base.recipe.images, "a cell" if seeds == 1 else counted(seeds, "cell")
    console.print(f"\n{counted(total, 'trial')} left, of {each} each: {images:,} training images at most")
    console.print(Text(f"objective {', '.join(plan.request.objectives)}; sampler {plan.request.sampler}"))
    console.print(Text(f"protocol {plan.base.protocol.name} {plan.base.protocol.hash}"))
    console.print(Text(f"results {plan.folder}"), soft_wrap=True)


def print_plan(plan: Plan) -> None:
    """The cells of a plan and what is known of each."""
    console, table = make_console(), Columns(("cell", "method", "seed", "state"))
    for cell in plan.cells:
        table.add(cell.folder.name, cell.label, str(cell.seed), cell.state)
    table.print(console)
    counts = Counter(cell.state for cell in plan.cells)
    states = ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))
    console.print(f"\n{counted(len(plan.cells), 'cell')}: {states}")
    recipe = plan.recipe
    trains = f"recipe {recipe.name}: {recipe.images:,} images each, {recipe.resolution} px, batch {recipe.batch_size}"
    is_training = any(cell.trains for cell in plan.cells)
    console.print(Text(trains if is_training else f"nothing is trained; images of {recipe.resolution} px"))
    console.print(Text(f"protocol {plan.protocol.name} {plan.protocol.hash}, N = {plan.protocol.n_images}"))
    console.print(Text(f"results {plan.folder}"), soft_wrap=True)


def print_sweep_costs(costs: SweepCosts) -> None:
    """Between what the trials of a sweep cost that are left, a row for each study; and why one has no numbers."""
    console = make_console()
    if not any(study.cells for study in costs.studies.values()):
        console.print("\nnothing is left to train")
        return
    table = _numbers("study", "cells to train", "s per cell", costs.unit, "disk")
    for name, study in costs.studies.items():
        if study.problem is not None:
            table.add(f"{name} (failed)", str(study.cells), *["–"] * 3)
            continue
        each = (amount.seconds / max(1, study.cells) for amount in (study.least, study.most))
        table.add(name, str(study.cells), _between(each, "{:.0f}".format), *_amounts(study.least, study.most))
    if costs.reference.seconds or costs.reference.disk_bytes:
        table.add("reference features, once", "", "", *_amounts(costs.reference, costs.reference))
    least = "> " if costs.failed else ""  # a study is missing from it
    cells = str(sum(study.cells for study in costs.studies.values()))
    table.add("total", cells, "", *(least + text for text in _amounts(*costs.total())), style="bold")
    console.print()
    table.print(console)
    if costs.device_name is not None:
        each_end = "from 20 steps of the smallest and of the largest cell of each method"
        console.print(Text(f"\n{each_end} on {costs.device_name}"))
    undrawn = sum(study.undrawn for study in costs.studies.values())
    if undrawn:
        which = f"{counted(undrawn, 'cell')} of these are not drawn yet"
        console.print(Text(f"{which}: they count as the cheapest that is, and as the dearest"))
    _print_failures(costs.studies)


def _numbers(*titles: str) -> Columns:
    """A table of numbers, each row of which has its name in front."""
    return Columns(titles, (False, *(True for _ in titles[1:])))


def _print_failures(costs: Mapping[str, StudyCost | MethodCost]) -> None:
    """Why some of what is named so has no numbers."""
    console = make_console()
    for name, cost in costs.items():
        if cost.problem is not None:
            console.print(Text(f"failed {name}: {cost.problem}", style="red"))
            console.print(Text(f"  hint: {cost.hint}"), soft_wrap=True)


def _amounts(least: Amount, most: Amount) -> tuple[str, str]:
    """Hours and disk of a range."""
    return (
        _between((least.device_hours, most.device_hours), _hours),
        _between((least.disk_bytes, most.disk_bytes), _bytes),
    )


def _between(ends: Iterable[float], shown: Callable[[float], str]) -> str:
    low, high = map(shown, ends)
    return low if low == high else f"{low} to {high}"


def print_costs(costs: PlanCost) -> None:
    """What the cells of a plan will cost, a row for each method; and why a method has no numbers."""
    unit = costs.unit
    table = _numbers("method", "cells to train", "s per cell", "images/s", unit, "disk", "peak disk")
    rows = costs.methods()
    for row in rows:
        table.add(*_cost_cells(row))
    if costs.reference_seconds:
        hours = costs.total().device_hours - sum(row.device_hours for row in rows)
        size = _bytes(costs.reference_bytes)
        table.add("reference features, once", "", "", "", _hours(hours), size, "")
    table.add(*_cost_cells(costs.total(), measured=not costs.failed), style="bold")
    console = make_console()
    console.print()
    table.print(console)
    if costs.device_name is not None:
        each = ", one cell after the other" if unit == "CPU-hours" else ""
        console.print(Text(f"\nfrom 20 steps of each method on {costs.device_name}{each}"))
    _print_failures({row.label: row for row in rows})


def print_estimates(rows: list[Estimate]) -> None:
    """What a GPU would need for the cells of a plan, as far as it can be counted; and that nothing was measured."""
    if not rows:
        return
    from vqbench.planning.estimate import ASSUMED_FLOPS

    table = _numbers("estimate of", "cells", "images at once", "memory of a step", "GFLOP/image", "GPU-hours")
    console = make_console()
    for row in rows:
        if row.memory_bytes is None:
            table.add(row.label, str(row.cells), *["–"] * 4)
            continue
        counted_ = (f"{row.images_at_once}", f"about {_bytes(row.memory_bytes)}", f"{row.flops_per_image / 1e9:,.0f}")
        table.add(row.label, str(row.cells), *counted_, f"about {_hours(row.gpu_hours)}")
    console.print()
    table.print(console)
    rate = f"{ASSUMED_FLOPS / 1e12:.0f} TFLOP a second"
    console.print(Text(f"\ncounted, not measured: training alone, at an assumed {rate}; `--probe` measures on a GPU"))
    for row in rows:
        if row.remark:
            console.print(Text(f"{row.label}: {row.remark}", style="yellow"), soft_wrap=True)


def _cost_cells(row: MethodCost, measured: bool = True) -> list[str]:
    name = row.label if row.problem is None or row.label == "total" else f"{row.label} (failed)"
    if row.problem is not None and not row.seconds:
        return [name, str(row.cells), *["–"] * 5]
    least = "" if measured else "> "  # a method is missing from it
    per_cell = f"{row.seconds / row.cells:.0f}" if row.cells and row.label != "total" else ""
    rate = f"{row.images_per_s:.1f}" if row.images_per_s and row.label != "total" else ""
    sizes = [least + _bytes(size) for size in (row.disk_bytes, row.peak_bytes)]
    return [name, str(row.cells), per_cell, rate, least + _hours(row.device_hours), *sizes]


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def _bytes(size: float) -> str:
    """Decimal units, as disks are sold."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"
