"""What `ablate` asks for: which components are off in which row. Knows components and rows, and no method."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vqbench.errors import UsageError, unknown
from vqbench.planning.choice import choose_method, read_settings, split_reference
from vqbench.planning.paper import paper_rows
from vqbench.planning.plan import Resolved, check_request
from vqbench.planning.request import ALL, AblateRequest
from vqbench.planning.variant import Variant
from vqbench.registry import METHODS
from vqbench.results.ablation_row import AblationRow, row_name

if TYPE_CHECKING:
    from vqbench.quantizer import PaperRow

Switches = frozenset[str]
"""The components that are on."""


@dataclass(frozen=True)
class PlannedRow(AblationRow):
    """A row that a command trains."""

    variant: Variant


def make_rows(request: AblateRequest) -> tuple[tuple[PlannedRow, ...], Resolved, tuple[str, ...]]:
    """The rows of a request, the run that trains them, and a note for each that is left out as it means nothing.

    The full row is the method as `run` knows it, and shares its cells.

    Raises UsageError for an unknown component, one that is off already, a selection that leaves nothing to compare,
    a method without components, and a combination that was asked for by name and that the method refuses.
    """
    if request.reference == ALL:
        raise UsageError("ablate takes one method apart, not ALL", "name one: `vqbench methods` lists them")
    asked = check_request(request.run)
    (full,) = asked.choices
    if full.pretrained:
        what = f"{full.label} is trained already: it has no component to switch off and train without"
        raise UsageError(what, "name a method: `vqbench methods`")
    settings, declared = read_settings(request.run.settings), rows_of_paper(request.reference)
    on = tuple(component for component, is_on in full.components.items() if is_on)
    _refuse_nothing_to_switch(request.reference, tuple(full.components), on)
    named = _named(request, full.components, frozenset(on), declared)
    rows, choices, notes = [], [], []
    for switches in dict.fromkeys([*named, *_generated(request, on)]):
        row = _row(request.reference, full.components, frozenset(on), switches, declared)
        try:
            choices.append(choose_method(row.variant, asked.recipe, settings))
        except UsageError as error:
            if switches in named:
                raise UsageError(f"'{row.name}' means nothing: {error.what}", error.hint) from None
            notes.append(f"{row.name} is left out: {error.what}")
            continue
        rows.append(row)
    if len(rows) < 2:
        raise UsageError(f"every row would be the full {request.reference}", f"--drop one of: {', '.join(on)}")
    return tuple(rows), replace(asked, choices=tuple(choices)), tuple(notes)


def rows_of_paper(reference: str) -> tuple[PaperRow, ...]:
    """The rows of its paper that method or method@preset declares."""
    name, preset = split_reference(reference)
    return paper_rows(METHODS.get(name), name, preset)


def _refuse_nothing_to_switch(reference: str, declared: tuple[str, ...], on: tuple[str, ...]) -> None:
    if not declared:
        outlines = [METHODS.outline(name) for name in METHODS.names()]
        others = ", ".join(outline.name for outline in outlines if outline.components) or "none here"
        raise UsageError(
            f"{reference} declares no components to switch", f"methods that do: {others} (`vqbench methods`)"
        )
    if not on:
        raise UsageError(f"all components of {reference} are off already", "switch some on: --set METHOD.FIELD=true")


def _named(
    request: AblateRequest, components: Mapping[str, bool], on: Switches, declared: Sequence[PaperRow]
) -> list[Switches]:
    """Full, and the rows that were asked for one by one."""
    named = [on]
    if request.drop is not None:
        named.append(on - _known("--drop", request.drop, request.reference, components))
    if request.keep is not None:
        named.append(_known("--keep", request.keep, request.reference, components))
    if request.rows:
        named = [*_paper(request, on, declared), *named]
    return named


def _known(option: str, asked: tuple[str, ...], reference: str, components: Mapping[str, bool]) -> Switches:
    name, _ = split_reference(reference)
    if not asked:
        all_on = ",".join(component for component, is_on in components.items() if is_on)
        other = f"all are dropped by --drop {all_on}" if option == "--keep" else "name one"
        raise UsageError(f"{option} names no component", f"components of {name}: {', '.join(components)}; {other}")
    for component in asked:
        if component not in components:
            raise unknown(f"component of {name}", component, components, f"`vqbench show {name}` lists them")
        if not components[component]:
            raise UsageError(f"{component} is off in {reference} already", f"leave it out of {option}")
    return frozenset(asked)


def _paper(request: AblateRequest, on: Switches, declared: Sequence[PaperRow]) -> list[Switches]:
    name, _ = split_reference(request.reference)
    if request.rows != "paper":
        raise unknown("kind of rows", request.rows, ["paper"], "write --rows paper, or leave it out")
    if not declared and METHODS.get(name).paper_rows:
        raise UsageError(
            f"{request.reference} is not the form of {name} whose rows the paper has",
            f"take the rows of {name} itself: vqbench ablate {name} --rows paper",
        )
    if not declared:
        raise UsageError(f"{name} declares no rows of its paper", "use --leave-one-out, --add-one-in or --all")
    for row in declared:
        if not row.components <= on:
            missing = ", ".join(sorted(row.components - on))
            raise UsageError(
                f"row {row.name} of the paper needs {missing}, which is off in {request.reference}",
                f"leave it on: vqbench ablate {name} --rows paper",
            )
    return [row.components for row in declared]


def _generated(request: AblateRequest, on: tuple[str, ...]) -> list[Switches]:
    """Rows that follow from a rule; leave-one-out if nothing at all was asked for."""
    asked = request.drop is not None or request.keep is not None or request.rows
    rows: list[Switches] = []
    if request.leave_one_out or not (asked or request.add_one_in or request.every):
        rows += [frozenset(on) - {component} for component in on]
    if request.add_one_in:
        rows += [frozenset(), *(frozenset({component}) for component in on)]
    if request.every:
        subsets = (itertools.combinations(on, size) for size in range(len(on), -1, -1))
        rows += [frozenset(subset) for subset in itertools.chain.from_iterable(subsets)]
    return rows


def _row(
    reference: str, components: Mapping[str, bool], on: Switches, switches: Switches, declared: Iterable[PaperRow]
) -> PlannedRow:
    off = on - switches
    name = row_name([c for c in components if c in switches], [c for c in components if c in off])
    paper = next((row for row in declared if row.components == switches), None)
    variant = Variant(reference, off, reference if not off else f"{reference} {name}")
    return PlannedRow(
        name=name,
        label=variant.label,
        components={component: component in switches for component in components},
        is_full=not off,
        paper_row=paper.name if paper else None,
        published=paper.published if paper else {},
        variant=variant,
    )
