"""What may be drawn for one method: parameters with their fields' types, their conditions and their points."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from vqbench.config import components, parse_value, part_of
from vqbench.errors import UsageError, unknown
from vqbench.recipe import Recipe
from vqbench.space import Choices, Range

Values = Mapping[tuple[str, str], Any]
"""(owner, field) → value, JSON-ready; the owner is "recipe" or a method."""


def as_text(value: Any) -> str:
    """A value as it is typed after `=`; read by the field's type it is the very same value again."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return f"[{', '.join(json.dumps(v) if isinstance(v, str) else as_text(v) for v in value)}]"
    if isinstance(value, float):
        mantissa, e, exponent = repr(value).partition("e")  # YAML takes 1e-05 for text, and 1.0e-05 for a number
        return f"{mantissa}.0e{exponent}" if e and "." not in mantissa else repr(value)
    return json.dumps(value)  # true, false, null, and whole numbers


def plain(value: Any) -> Any:
    """Tuples as lists, as configurations are stored."""
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Condition:
    """One thing that must hold for a parameter to be drawn."""

    owner: str
    field: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Parameter:
    """A field that a sweep draws."""

    owner: str
    """"recipe", or the method."""
    field: str
    annotation: Any
    domain: Range | Choices
    conditions: tuple[Condition, ...] = ()

    @property
    def name(self) -> str:
        """As `--set` has it: field, or method.field."""
        return self.field if self.owner == "recipe" else f"{self.owner}.{self.field}"

    @property
    def is_whole(self) -> bool:
        """Whether a range of it has whole numbers alone."""
        return int in _alternatives(self.annotation) and float not in _alternatives(self.annotation)

    @property
    def texts(self) -> tuple[str, ...]:
        """Its choices as they are typed."""
        assert isinstance(self.domain, Choices)
        return tuple(as_text(value) for value in self.domain.values)

    def typed(self, drawn: Any) -> Any:
        """What was drawn, a number or the text of a choice, as the field holds it; JSON-ready."""
        return plain(parse_value(self.annotation, as_text(drawn), f"{self.owner}.{self.field}"))

    def points(self) -> tuple[Any, ...]:
        """Everything that can be drawn. Raises UsageError where that is a continuum."""
        domain, step = self.domain, self._step
        if isinstance(domain, Choices):
            return self.texts
        if step is None:
            raise UsageError(
                f"a grid needs points, and {self.name} is a range from {domain.low} to {domain.high}",
                "give it choices, or a step, in a space of your own; or take --sampler tpe",
            )
        low, by, number = Decimal(str(domain.low)), Decimal(str(step)), int if self.is_whole else float
        return tuple(number(low + by * i) for i in range(self.count or 0))

    @property
    def _step(self) -> float | None:
        if isinstance(self.domain, Choices):
            return None
        return self.domain.step or (1 if self.is_whole and not self.domain.log else None)

    @property
    def count(self) -> int | None:
        """How many values can be drawn; None for a continuum."""
        domain, step = self.domain, self._step
        if isinstance(domain, Choices):
            return len(domain.values)
        if step is None:
            return None
        return int((Decimal(str(domain.high)) - Decimal(str(domain.low))) // Decimal(str(step))) + 1

    def ends(self) -> tuple[Any, ...]:
        """A few of its values, the outermost among them."""
        if isinstance(self.domain, Choices):
            return self.texts
        number = int if self.is_whole else float
        return number(self.domain.low), number(self.domain.last)

    def describe(self) -> str:
        """Its domain in words."""
        d, when = self.domain, " and ".join(_said(c, self.owner) for c in self.conditions)
        if isinstance(d, Choices):
            text = " | ".join(self.texts)
        else:
            text = f"{d.low:g} to {d.high:g}" + (", log" if d.log else "") + (f", step {d.step:g}" if d.step else "")
        return text + (f"; where {when}" if when else "")


def _said(condition: Condition, owner: str) -> str:
    name = condition.field if condition.owner == owner else f"{condition.owner}.{condition.field}"
    return f"{name} is {' or '.join(map(as_text, condition.values))}"


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def make_parameter(owner: str, cls: type, field: str, domain: Range | Choices, see: str) -> Parameter:
    """A parameter for a field of `cls`. Raises UsageError for an unknown field, and for what the field cannot hold."""
    hints, names = typing.get_type_hints(cls), [f.name for f in dataclasses.fields(cls)]
    if field not in names:
        raise unknown(f"field of {owner} in the space", field, names, f"`{see}` lists the fields")
    where = f"{owner}.{field}"
    parameter = Parameter(owner, field, hints[field], domain, _conditions(owner, cls, field, domain, see))
    if isinstance(domain, Range):
        kinds = set(_alternatives(hints[field]))
        if not kinds & {int, float}:
            raise UsageError(f"{where} is no number, so it has no range", f"give it choices: `{field}: [a, b]`")
        if parameter.is_whole and any(n is not None and n != int(n) for n in (domain.low, domain.high, domain.step)):
            raise UsageError(f"{where} is a whole number, so low, high and step must be", f"`{see}` lists the fields")
        return parameter
    for value, text in zip(domain.values, parameter.texts, strict=True):
        if parse_value(hints[field], value, where) != parse_value(hints[field], text, where):
            raise UsageError(f"{where}: {value!r} cannot be typed", "write it as after --set")
    return parameter


def _conditions(owner: str, cls: type, field: str, domain: Range | Choices, see: str) -> tuple[Condition, ...]:
    """Those of `when`, and the components without any of which the field has no effect."""
    switches = components(cls)
    implied = {switches[component]: True for component in part_of(cls).get(field, ()) if component in switches}
    found = []
    for key, wanted in {**implied, **domain.when}.items():
        of, _, name = str(key).rpartition(".")
        known: dict[str, type] = {owner: cls, "": cls, "recipe": Recipe}
        if of not in known:
            raise unknown(f"owner in when of {owner}.{field}", of, [owner, "recipe"], "write FIELD or recipe.FIELD")
        hints = typing.get_type_hints(known[of])
        if name not in hints:
            raise unknown(f"field in when of {owner}.{field}", name, hints, f"`{see}` lists the fields")
        values = [v if isinstance(v, str) else as_text(v) for v in (wanted if isinstance(wanted, list) else [wanted])]
        typed = tuple(plain(parse_value(hints[name], text, f"{owner}.{name}")) for text in values)
        found.append(Condition(of or owner, name, typed))
    return tuple(found)


def check_order(parameters: Sequence[Parameter]) -> None:
    """Raise UsageError where a condition is on a parameter that is drawn later."""
    drawn = {(p.owner, p.field) for p in parameters}
    seen: set[tuple[str, str]] = set()
    for p in parameters:
        for c in p.conditions:
            if (c.owner, c.field) in drawn - seen:
                raise UsageError(
                    f"{p.name} depends on {c.owner}.{c.field}, which is drawn after it",
                    f"write {c.field} before {p.field} in the space",
                )
        seen.add((p.owner, p.field))


def draw(parameters: Sequence[Parameter], base: Values, pick: Callable[[Parameter], Any]) -> dict[str, Any]:
    """Name → what `pick` gave, for each parameter whose conditions hold; `base` has what is not drawn."""
    drawn: dict[str, Any] = {}
    known = dict(base)
    for p in parameters:
        if _holds(p, known):
            drawn[p.name] = pick(p)
            known[p.owner, p.field] = p.typed(drawn[p.name])
    return drawn


def _holds(parameter: Parameter, known: Values) -> bool:
    return all(known.get((c.owner, c.field)) in c.values for c in parameter.conditions)


def grid(parameters: Sequence[Parameter], base: Values) -> Iterator[dict[str, Any]]:
    """Every point of the space once, conditions kept. Raises UsageError where one is a continuum."""
    if not parameters:
        yield {}
        return
    first, rest = parameters[0], parameters[1:]
    if not _holds(first, base):
        yield from grid(rest, base)
        return
    for value in first.points():
        for others in grid(rest, {**base, (first.owner, first.field): first.typed(value)}):
            yield {first.name: value, **others}


def settings_of(drawn: Mapping[str, Any]) -> tuple[str, ...]:
    """What was drawn as texts for `--set`."""
    return tuple(f"{name}={as_text(value)}" for name, value in drawn.items())
