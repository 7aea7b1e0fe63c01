"""Groups that belong to one curve: the same method and settings, but for those that set its place on the axis."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vqbench.metrics.definitions import DEFINITIONS
from vqbench.reports.experiment import Group, setting_text
from vqbench.reports.summary import Estimate, estimate

BUDGET = frozenset({"recipe.images"})
_SHAPES = {f"recipe.{name}" for name in ("codebook_size", "codebook_dim", "latent_channels", "channel_multipliers")}
"""What a recipe says of the rate; all its other whole numbers are about training."""


@dataclass(frozen=True)
class Curve:
    """Groups along one axis, in its order."""

    label: str
    groups: tuple[Group, ...]


def curves(
    groups: Sequence[Group], place: Callable[[Group], float], free: Callable[[Sequence[Group]], Iterable[str]]
) -> list[Curve]:
    """Groups as curves, in the order in which the first group of each comes.

    place: where a group is on the axis. free: of the groups of one method, the settings that may differ within a curve.
    """
    methods: dict[str, list[Group]] = {}
    for group in groups:
        methods.setdefault(group.method, []).append(group)
    allowed = {method: frozenset(free(own)) for method, own in methods.items()}
    families: dict[str, list[Group]] = {}
    for group in groups:
        settings = {k: v for k, v in _training(group).items() if k not in allowed[group.method]}
        key = json.dumps([group.method, settings], sort_keys=True)
        if any(place(group) == place(other) for other in families.get(key, ())):
            key = group.label  # a curve has one point at each place; the first keeps it
        families.setdefault(key, []).append(group)
    names = [_name(family, allowed[family[0].method]) for family in families.values()]
    return [
        Curve(name if names.count(name) == 1 else family[0].label, tuple(sorted(family, key=place)))
        for name, family in zip(names, families.values(), strict=True)
    ]


def qualities(names: Iterable[str], most: int) -> list[str]:
    """The metrics among them that say how near reconstructions come: the first `most`, in the order of tables.

    They have a direction and compare images or features, not codes. Those that are shown on request alone are not
    among them; what came later, or is a plugin's, was asked for by name and comes beside them.
    """
    among = {*names}
    known = [DEFINITIONS[name] for name in DEFINITIONS if name in among and DEFINITIONS[name].better]
    usual = [m.name for m in known if not m.digest and not m.on_request and (m.per_image or m.extractor)]
    return [*usual[:most], *(m.name for m in known if m.digest)]


def _training(group: Group) -> Mapping[str, Any]:
    return group.cells[0].training


def _name(family: Sequence[Group], free: Iterable[str]) -> str:
    """What the groups of a curve have in common: the label of the first, without the settings that differ."""
    label = family[0].label
    if len(family) > 1:
        for field in free:
            label = label.replace(f" {field}={setting_text(_training(family[0]).get(field))}", "")
    return label


def of_rate(rate: Callable[[Group], float]) -> Callable[[Sequence[Group]], set[str]]:
    """The settings that decide a method's rate: whole numbers, or lists of them, each of which has one rate alone.

    Known by how they behave, since each method has its own names for them: codebook_size, levels, num_codebooks…
    """

    def free(groups: Sequence[Group]) -> set[str]:
        fields = {field for group in groups for field in _training(group)}
        return {field for field in fields if _may_decide(field) and _decides(field, groups, rate)}

    return free


def _may_decide(field: str) -> bool:
    return field in _SHAPES or not (field.startswith("recipe.") or field in ("devices", "code"))


def _decides(field: str, groups: Sequence[Group], rate: Callable[[Group], float]) -> bool:
    rates: dict[str, set[float]] = {}
    for group in groups:
        value = _training(group).get(field)
        if not _whole(value):
            return False
        rates.setdefault(json.dumps(value), set()).add(round(rate(group), 9))
    return len(rates) > 1 and all(len(own) == 1 for own in rates.values())


def _whole(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_whole, value))
    return isinstance(value, int) and not isinstance(value, bool)


def scored(groups: Iterable[Group], *metrics: str) -> list[Group]:
    """The groups that have a finite value in each of the metrics."""
    return [g for g in groups if all(math.isfinite(_mean(g, metric)) for metric in metrics)]


def _mean(group: Group, metric: str) -> float:
    found = group.summary.estimates.get(metric)
    return math.nan if found is None else found.mean


def shown_qualities(rows: Sequence[Group], most: int, *also: str) -> tuple[list[str], list[Group]]:
    """`qualities` of some groups that have `also` too, and the groups that are drawn with them.

    What came later, or is a plugin's, is shown where all of these have it: it leaves no group out.
    """
    found = qualities((name for name in DEFINITIONS if scored(rows, *also, name)), most)
    usual = [name for name in found if not DEFINITIONS[name].digest] or found[:1]
    groups = scored(rows, *also, *usual)
    return [name for name in found if len(scored(groups, name)) == len(groups)], groups


def score(group: Group, metric: str) -> Estimate:
    """Mean over seeds, with its interval, of a metric that the group has."""
    return group.summary.estimates[metric]


def device_hours(group: Group) -> Estimate | None:
    """Training time × devices over the seeds, in hours; None where a result does not say."""
    results = [cell.result for cell in group.cells if not cell.failed]
    hours = [r["train_seconds"] * (r.get("devices") or 1) / 3600 for r in results if r.get("train_seconds")]
    return estimate(hours) if hours and len(hours) == len(results) else None


def device_names(groups: Iterable[Group]) -> dict[str, str]:
    """Name of each device that the groups were trained on → GPU or CPU."""
    results = [cell.result for group in groups for cell in group.cells if not cell.failed]
    return {
        str(r.get("device_name") or r.get("device")): "CPU" if str(r.get("device")).startswith("cpu") else "GPU"
        for r in results
    }
