"""Groups of one method that differ in their components alone: an ablation, as stored cells make it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vqbench.reports.ablation import AnalysedRow, analyse
from vqbench.reports.experiment import Group
from vqbench.results.ablation_row import AblationRow, row_name


def families(groups: Sequence[Group]) -> list[tuple[Group, ...]]:
    """Each full method with what was switched off it, all else equal: the full one first, the others by their size.

    Full is a group with scores that has more components on than others that equal it in the rest; a group belongs to
    the first that fits, so that no difference is counted twice.
    """
    on = {group.label: _on(group) for group in groups if group.finished}
    ordered = sorted((g for g in groups if g.finished), key=lambda group: (-len(on[group.label]), group.label))
    found, taken = [], set[str]()
    for full in ordered:
        if full.label in taken:
            continue
        fewer = [g for g in ordered if on[g.label] < on[full.label] and g.method == full.method]
        others = [g for g in fewer if g.label not in taken and _same_but_for_switches(full, g)]
        if others:
            found.append((full, *others))
            taken |= {full.label, *(group.label for group in others)}
    return found


def _on(group: Group) -> frozenset[str]:
    return frozenset(component for component, is_on in group.components.items() if is_on)


def _same_but_for_switches(full: Group, other: Group) -> bool:
    """Whether two groups of a method agree in all settings that have an effect in both.

    A setting that a switch makes idle is at its default where it is off.
    """
    if full.spec.get("preset") != other.spec.get("preset"):
        return False
    off = set(full.components) - _on(other)
    idle = {field for field, parts in (full.spec.get("part_of") or {}).items() if off.intersection(parts)}
    mine, others = full.cells[0].training, other.cells[0].training
    if not ("artifact" in mine and "artifact" in others):  # a switch may leave nothing to be built around
        idle.add("artifact")
    fields = (mine.keys() | others.keys()) - idle - full.components.keys() - other.components.keys()
    return all(mine.get(field) == others.get(field) for field in fields)


def _row(full: Group, group: Group) -> AblationRow:
    on, kept = _on(group), [component for component in full.components if component in _on(group)]
    dropped = [component for component in full.components if component in _on(full) - on]
    paper: Mapping[str, Any] = (group.spec.get("paper") or {}).get("row") or {}
    return AblationRow(
        name=row_name(kept, dropped),
        label=group.label,
        components=group.components,
        is_full=group is full,
        paper_row=paper.get("name"),
        published=paper.get("published") or {},
    )


@dataclass(frozen=True)
class Ablation:
    """A family analysed as `vqbench ablate` does: scores of its rows and their differences to the full one."""

    label: str
    """Of the full method."""
    rows: tuple[AnalysedRow, ...]

    def without_published(self) -> tuple[AnalysedRow, ...]:
        """The rows without the values that the paper prints for them."""
        return tuple(replace(row, row=replace(row.row, published={})) for row in self.rows)


def ablations(groups: Sequence[Group]) -> tuple[Ablation, ...]:
    """Every family among the groups, analysed."""
    return tuple(Ablation(family[0].label, _analysed(family)) for family in families(groups))


def _analysed(family: Sequence[Group]) -> tuple[AnalysedRow, ...]:
    full = family[0]
    rows = [_row(full, group) for group in family]
    has_paper_rows = bool((full.spec.get("paper") or {}).get("rows"))
    asked = [name for group in family for name in group.summary.asked]
    return analyse(rows, [row for group in family for row in group.rows], has_paper_rows, asked)
