"""Frozen dataclasses as configuration: read from text, checked by their annotations, described by their docstrings."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import textwrap
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from vqbench.errors import UsageError, unknown

T = TypeVar("T")


@dataclass(frozen=True)
class FieldDescription:
    """One field of a Config, as `vqbench show` prints it."""

    name: str
    type: str
    default: Any
    meaning: str
    component: str | None
    """The component that this switch belongs to, or None."""
    unspecified: bool = False
    """Whether the method's paper leaves it open."""


def field_docstrings(node: ast.ClassDef) -> dict[str, str]:
    """The string that stands below each annotated field of a class body."""
    docs = {}
    for above, below in zip(node.body, node.body[1:], strict=False):
        if isinstance(above, ast.AnnAssign) and isinstance(above.target, ast.Name) and isinstance(below, ast.Expr):
            if isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
                docs[above.target.id] = inspect.cleandoc(below.value.value)
    return docs


def _class_docstrings(cls: type) -> dict[str, str]:
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            continue  # a class without readable source (built in, or typed at a prompt) has no field docstrings
        if tree.body and isinstance(tree.body[0], ast.ClassDef):
            docs |= field_docstrings(tree.body[0])
    return docs


def _type_text(annotation: Any) -> str:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation.__name__
    return str(annotation).replace("typing.", "")


def default_of(field: dataclasses.Field[Any]) -> Any:
    """A field's default value, or None where it has none."""
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else None


def describe(cls: type) -> list[FieldDescription]:
    """Every field of a Config with type, default and meaning, in the order of its source."""
    hints, docs = typing.get_type_hints(cls), _class_docstrings(cls)
    return [
        FieldDescription(
            f.name,
            _type_text(hints[f.name]),
            default_of(f),
            docs.get(f.name, ""),
            f.metadata.get("component"),
            bool(f.metadata.get("paper_unspecified")),
        )
        for f in dataclasses.fields(cls)
    ]


def components(cls: type) -> dict[str, str]:
    """Component name → Config field that switches it."""
    return {f.metadata["component"]: f.name for f in dataclasses.fields(cls) if "component" in f.metadata}


def part_of(cls: type) -> dict[str, tuple[str, ...]]:
    """Config field → the components without any of which it has no effect."""
    named = {f.name: f.metadata["part_of"] for f in dataclasses.fields(cls) if "part_of" in f.metadata}
    return {field: (names,) if isinstance(names, str) else tuple(names) for field, names in named.items()}


@functools.cache
def _adapter(annotation: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(annotation)


def _from_text(annotation: Any, text: str) -> Any:
    """What a person types after `=`: a YAML scalar, or items between commas where a list is asked for."""
    import yaml

    wants_list = any(typing.get_origin(a) in (tuple, list) for a in (annotation, *typing.get_args(annotation)))
    if wants_list and not text.lstrip().startswith("["):
        text = f"[{text}]"
    literal = typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()
    if annotation is str or text in literal:  # "32" among literals is not the number 32
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def parse_value(annotation: Any, value: Any, where: str) -> Any:
    """`value` as the type that `annotation` says. Strings are read as typed on a command line.

    Raises UsageError, naming `where`, for a value of another type.
    """
    from pydantic import ValidationError

    if isinstance(value, str):
        value = _from_text(annotation, value)
    if isinstance(value, bool) and annotation in (int, float):
        raise UsageError(f"{where} must be {_type_text(annotation)}, not {value}", f"give a number: {where}=1")
    try:
        return _adapter(annotation).validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        what = f"{where} must be {_type_text(annotation)}, not {value!r} ({reason})"
        raise UsageError(what, f"give it as --set {where}=VALUE") from None


def build(cls: type[T], values: Mapping[str, Any], owner: str, see: str) -> T:
    """An instance of the dataclass `cls` with `values` over its defaults.

    `owner` names the thing in errors ("vaevq"), `see` is the command that lists its fields. Raises UsageError for
    an unknown field, an ill-typed value, and what the class's own `__post_init__` refuses with ValueError.
    """
    hints = typing.get_type_hints(cls)
    names = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in values:
        if name not in names:
            raise unknown(f"setting of {owner}", name, names, f"`{see}` lists the settings")
    typed = {name: parse_value(hints[name], value, f"{owner}.{name}") for name, value in values.items()}
    try:
        return cls(**typed)
    except ValueError as error:
        raise UsageError(f"{owner}: {error}", f"`{see}` lists the settings") from None


def as_dict(config: Any) -> dict[str, Any]:
    """A Config as JSON-ready values."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(config).items()}


def in_stored_words(config: Any) -> dict[str, Any]:
    """As `as_dict`, with the words of files: `metadata={"stored_as": {value: word}}` where a value had another once."""
    values = as_dict(config)
    for f in dataclasses.fields(config):
        if words := f.metadata.get("stored_as"):
            values[f.name] = words.get(values[f.name], values[f.name])
    return values


def first_default(field: dataclasses.Field[Any]) -> Any:
    """What a field was by default when it was new, or what it did before there was one.

    `metadata={"first_default": value}` where its default is another today: of that value nothing that is stored can
    have heard, so what does not name the field, or leaves it idle, means its first one.
    """
    return field.metadata.get("first_default", default_of(field))


def stored(config: Any) -> dict[str, Any]:
    """A Config as it is stored and hashed: JSON-ready, without fields of later that stand at their first default.

    `metadata={"added_later": True}` marks such a field: cells from before it keep their hash.
    """
    values = in_stored_words(config)
    return {f.name: values[f.name] for f in dataclasses.fields(config)
            if not (f.metadata.get("added_later") and getattr(config, f.name) == first_default(f))}  # fmt: skip


def from_stored(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a stored Config, with those that `stored` leaves out. What names no field is today's default."""
    later = {f.name: first_default(f) for f in dataclasses.fields(cls) if f.metadata.get("added_later")}
    return {**later, **values} if values else {}


def split_setting(text: str) -> tuple[str, str, str]:
    """`owner.field=value` into its parts; the owner is empty where there is none."""
    key, equals, value = text.partition("=")
    owner, _, name = key.strip().rpartition(".")
    if not equals or not name:
        raise UsageError(
            f"--set {text!r} is not of the form method.field=value", "for example: --set vaevq.dcr_weight=0.2"
        )
    return owner, name, value.strip()
