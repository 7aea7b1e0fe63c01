"""Spaces as they are written: the YAML files that are shipped, and one's own. Knows neither methods nor Optuna."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vqbench.errors import UsageError, unknown
from vqbench.machine.yaml_files import read_yaml, shipped
from vqbench.space import Choices, Range

Raw = dict[str, Any]
"""A space as JSON: {"recipe": {field: domain}, "methods": {method: {field: domain}}, "declared": [group]}."""

_SHIPPED = "vqbench.sweeps"
_PARTS = ("recipe", "methods", "declared")
_KEYS = ("choices", "low", "high", "log", "step", "when")
_EXAMPLE = "for example: `learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}`"


def space_names() -> list[str]:
    """The spaces that are shipped."""
    return shipped(_SHIPPED)


def read_spaces(asked: Iterable[str]) -> Raw:
    """Spaces by name, or by the path of a YAML file, as one. Raises UsageError for what is none, or does not fit."""
    whole: Raw = {"recipe": {}, "methods": {}, "declared": []}
    for name in asked:
        space = _checked(read_yaml("space", name, _SHIPPED, _EXAMPLE), name)
        for owner, fields in [("recipe", space["recipe"]), *space["methods"].items()]:
            into = whole["recipe"] if owner == "recipe" else whole["methods"].setdefault(owner, {})
            for field in fields.keys() & into.keys():
                raise UsageError(f"{owner}.{field} is in two of the spaces", "give spaces that do not overlap")
            into |= fields
        whole["declared"] += [group for group in space["declared"] if group not in whole["declared"]]
    if not any(whole.values()):
        raise UsageError("the space is empty", f"shipped spaces: {', '.join(space_names())}, or write one: {_EXAMPLE}")
    return whole


def _checked(value: Any, name: str) -> Raw:
    space = _mapping(value, f"space {name}")
    for part in space:
        if part not in _PARTS:
            raise unknown(f"part of space {name}", str(part), _PARTS, "a space has recipe:, methods: and declared:")
    methods = _mapping(space.get("methods"), f"methods in space {name}")
    declared = space.get("declared") or []
    groups = [declared] if isinstance(declared, str) else declared
    if not isinstance(groups, list) or not all(isinstance(group, str) for group in groups):
        raise UsageError(f"declared in space {name} must name groups, not {declared!r}", "write `declared: losses`")
    return {
        "recipe": _domains(space.get("recipe"), "recipe", name),
        "methods": {str(method): _domains(fields, str(method), name) for method, fields in methods.items()},
        "declared": groups,
    }


def _mapping(value: Any, what: str) -> dict[Any, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UsageError(f"{what} must be a mapping, not {value!r}", _EXAMPLE)
    return value


def _domains(value: Any, owner: str, space: str) -> dict[str, Any]:
    fields = _mapping(value, f"{owner} in space {space}")
    plain = {str(f): {"choices": domain} if isinstance(domain, list) else domain for f, domain in fields.items()}
    for field, domain in plain.items():
        domain_of(domain, f"{owner}.{field}")
    return plain


def domain_of(value: Any, where: str) -> Range | Choices:
    """`{choices: …}` or `{low: …, high: …}` as what it says. Raises UsageError, naming `where`."""
    keys = _mapping(value, where)
    for key in keys:
        if key not in _KEYS:
            raise unknown(f"key of {where}", str(key), _KEYS, f"choices, or low and high; {_EXAMPLE}")
    when = _mapping(keys.get("when"), f"when of {where}")
    try:
        if "choices" in keys:
            if beside := keys.keys() - {"choices", "when"}:
                raise ValueError(f"{min(beside)} has no meaning beside choices")
            return Choices(keys["choices"], when=when)
        if not {"low", "high"} <= keys.keys():
            raise ValueError("it needs choices, or low and high")
        log = keys.get("log", False)
        if not isinstance(log, bool):
            raise ValueError(f"log must be true or false, not {log!r}")
        low, high, step = (_number(keys.get(key)) for key in ("low", "high", "step"))
        return Range(low, high, log, step, when=when)
    except ValueError as error:
        raise UsageError(f"{where}: {error}", _EXAMPLE) from None


def _number(value: Any) -> Any:
    """YAML takes 1e-4 for text, since it has no point."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
