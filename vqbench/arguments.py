"""What a request is made of, read in one way: as it was typed after an option, or as Python gives it.

A reader takes the name of an option and a value, and returns what a request holds: plain, immutable, JSON-ready. It
raises UsageError for what the option does not take. What it has returned it takes again, and leaves as it is.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Real
from pathlib import Path
from typing import Any, Literal, TypeVar

from vqbench.errors import UsageError

T = TypeVar("T")
Call = TypeVar("Call", bound=Callable[..., Any])
Reader = Callable[[str, Any], Any]
_UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class Option:
    """A field of a request, as people meet it: how it is read, typed after `--…`, and given in Python."""

    reader: Reader
    help: str
    """In `--help`."""
    metavar: str = ""
    field: str = ""
    typed_as: str = ""
    """Its name on the command line, where that is not the field's."""
    given_as: str = ""
    """Its name in Python, where that is not the field's."""
    switch: str = ""
    """A flag that can be switched both ways: `--page/--no-page`."""
    has_variable: bool = False
    """Whether VQBENCH_FIELD has the value where none is given."""
    defines: bool = False
    """Whether it decides what the trials of a sweep are, so that one which goes on has the same."""
    engine: bool = False
    """Whether it only says how cells are carried out: a command that is handed on has none of it."""
    secret: bool = False
    """Whether a value may hold a password, so that `--help` shows no default."""
    default_is_no_answer: bool = False
    """Whether it counts as not given where it is not typed, whatever its default."""
    typed_default: Any = None
    """The command line's default, where it is not that of Python."""
    complete: Callable[[str], list[str]] | None = None
    """Completion in a shell."""

    @property
    def words(self) -> str:
        """As it is typed, and as sentences name it."""
        return f"--{self.typed_as or self.field.replace('_', '-')}"

    @property
    def keyword(self) -> str:
        """Its name in Python."""
        return self.given_as or self.field

    @property
    def variable(self) -> str | None:
        """The environment variable that has the value where none is given."""
        return f"VQBENCH_{self.field.upper()}" if self.has_variable else None


def option(default: Any, reader: Reader, help: str, metavar: str = "", **more: Any) -> Any:
    """A field of a request that is an option."""
    return dataclasses.field(default=default, metadata={"option": Option(reader, help, metavar, **more)})


def options(request: type[Any]) -> dict[str, Option]:
    """Field → option, in the order in which they are declared."""
    return _options(request)  # type: ignore[arg-type]


@functools.cache  # a command line has many commands with the same ones
def _options(request: type[Any]) -> dict[str, Option]:
    fields = [field for field in dataclasses.fields(request) if "option" in field.metadata]
    return {field.name: dataclasses.replace(field.metadata["option"], field=field.name) for field in fields}


def asked(request: type[T], **given: Any) -> T:
    """A request of what was typed, or given in Python, which its `settle` reads."""
    return request(**given)


def settle(request: Any) -> None:
    """Read the options of a frozen dataclass; None stands for a field's default.

    Raises UsageError for what an option does not take.
    """
    known = options(type(request))
    for field in dataclasses.fields(request):
        value = getattr(request, field.name)
        if value is None and field.default is not dataclasses.MISSING:
            value = field.default
        if value is not None and field.name in known:
            value = known[field.name].reader(known[field.name].words, value)
        object.__setattr__(request, field.name, value)


def given(request: type[Any], values: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields that were given, of those whose default is no answer."""
    return tuple(f for f, o in options(request).items() if o.default_is_no_answer and values.get(f) is not None)


def by_keyword(call: Callable[..., Any], values: Mapping[str, Any], *requests: type[Any]) -> list[dict[str, Any]]:
    """Keyword arguments of a function as field → value, for each request. Raises TypeError for one that none has."""
    found: list[dict[str, Any]] = [{} for _ in requests]
    known = {o.keyword: (i, field) for i, request in enumerate(requests) for field, o in options(request).items()}
    for name, value in values.items():
        if name not in known:
            near = get_close_matches(name, inspect.signature(call).parameters, n=1, cutoff=0.5)
            question = f"; did you mean '{near[0]}'?" if near else ""
            raise TypeError(f"{call.__name__}() got an unexpected keyword argument '{name}'{question}")
        i, field = known[name]
        found[i][field] = value
    return found


def offers(*requests: type[Any]) -> Callable[[Call], Call]:
    """Have the signature of a function show what its `**options` may be: the options of these requests."""

    def with_signature(call: Call) -> Call:
        signature = inspect.signature(call)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        more = {
            known.keyword: _shown_in_python(request, known)
            for request in requests
            for known in options(request).values()
        }
        for parameter in own:
            more.pop(parameter.name, None)
        call.__signature__ = signature.replace(parameters=[*own, *more.values()])  # type: ignore[attr-defined]
        return call

    return with_signature


def _shown_in_python(request: type[Any], known: Option) -> inspect.Parameter:
    field = next(field for field in dataclasses.fields(request) if field.name == known.field)
    default = None if known.default_is_no_answer else field.default
    return inspect.Parameter(known.keyword, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=field.type)


def text(option: str, value: Any) -> str:
    """One text; a path stands for its text."""
    value = _plain(value)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        raise UsageError(f"{option} takes text, not {_shown(value)}", "write it as on the command line")
    _refuse_nul(option, value)
    return str.__str__(value)


def texts(option: str, value: Any) -> tuple[str, ...]:
    """One text, or several; a comma is part of a text, and an empty one is none."""
    return tuple(found for item in _each(option, value) if (found := text(option, item)))


def source(option: str, value: Any) -> str:
    """A dataset's name; a path stands for the folder of images that it names."""
    name = text(option, value)
    return f"folder:{name}" if isinstance(value, os.PathLike) and not name.startswith("folder:") else name


def path(option: str, value: Any) -> Path:
    """One path, which may be text."""
    value = _plain(value)
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise UsageError(f"{option} takes a path, not {_shown(value)}", "give it as text, or as a Path")
    _refuse_nul(option, os.fspath(value))
    return Path(value)


def flag(option: str, value: Any) -> bool:
    """True or False, and no text: "false" would count as true."""
    value = _plain(value)
    if not isinstance(value, bool):
        raise UsageError(f"{option} is True or False, not {_shown(value)}", "give one of the two, or leave it out")
    return value


def whole(option: str, value: Any) -> int:
    """One whole number, which may be text; neither a float nor a bool."""
    number = _whole(value)
    if number is None:
        value = _plain(value)
        integral = isinstance(value, float) and value.is_integer()
        example = int(value) if integral and abs(value) < 1e15 else 1
        raise UsageError(f"{option} takes a whole number, not {_shown(value)}", f"for example: {option} {example}")
    return number


def whole_or_auto(option: str, value: Any) -> int | Literal["auto"]:
    """A whole number as `whole` takes it, or the word auto."""
    if _plain(value) == "auto":
        return "auto"
    if _is_text(value) and _whole(value) is None:
        raise UsageError(f"{option} takes a whole number or auto, not {_shown(value)}", f"for example: {option} auto")
    return whole(option, value)


def seconds(option: str, value: Any) -> float | None:
    """A time above zero in seconds: a number, or `90`, `90s`, `45m` or `12h`; None for empty text."""
    value = _plain(value)
    if isinstance(value, str) and not value:
        return None
    number, unit = value, "s"
    if isinstance(value, str) and value[-1] in _UNITS:
        number, unit = value[:-1], value[-1]
    found = _float(number) * _UNITS[unit] if isinstance(value, str | Real) else math.nan
    if not 0 < found < math.inf:
        shown = value if isinstance(value, str) else _shown(value)
        raise UsageError(f"{option} {shown} is not a time", f"for example: {option} 90s, {option} 45m or {option} 12h")
    return found


def share(option: str, value: Any) -> float | None:
    """A number above 0 and below 1, which may be text; None for empty text."""
    value = _plain(value)
    if isinstance(value, str) and not value:
        return None
    found = _float(value)
    if not 0 < found < 1:
        raise UsageError(f"{option} is a share between 0 and 1, not {_shown(value)}", f"for example: {option} 0.1")
    return found


def number(option: str, value: Any) -> float | None:
    """A number that is finite, which may be text; None for empty text."""
    value = _plain(value)
    if isinstance(value, str) and not value:
        return None
    found = _float(value)
    if not math.isfinite(found):
        raise UsageError(f"{option} takes a number, not {_shown(value)}", f"for example: {option} 1.5")
    return found


def names(option: str, value: Any) -> tuple[str, ...]:
    """Names between commas, one after the other, or both; a path counts as one name."""
    return tuple(name for item in _each(option, value) for name in _split(option, item))


def seeds(option: str, value: Any) -> tuple[int, ...]:
    """Whole numbers: one, several, or text with commas."""
    each = [item for given in _each(option, value) for item in (_split(option, given) if _is_text(given) else (given,))]
    numbers = [_whole(item) for item in each]
    if None in numbers:
        shown = ",".join(map(str, map(_plain, each)))
        raise UsageError(f"{option} {shown} are not whole numbers", f"for example: {option} 0,1,2, or [0, 1, 2]")
    return tuple(number for number in numbers if number is not None)


def paths(option: str, value: Any) -> tuple[Path, ...]:
    """One path, or several; a comma is part of a path."""
    return tuple(path(option, item) for item in _each(option, value))


def settings(option: str, value: Any) -> tuple[str, ...]:
    """One `METHOD.FIELD=VALUE`, or several, whose values may hold commas; or a mapping of METHOD.FIELD to value."""
    if isinstance(value, Mapping):
        return tuple(f"{text(option, field)}={_as_typed(option, field, given)}" for field, given in value.items())
    return tuple(text(option, item) for item in _each(option, value))


def _as_typed(option: str, field: str, value: Any) -> str:
    plain = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(plain, str):
        return plain
    if not isinstance(plain, Mapping):
        try:
            return json.dumps(plain, allow_nan=False)
        except (TypeError, ValueError):
            pass
    raise UsageError(f"{option} {field} takes a value, not {_shown(value)}", f"for example: {option} {field}=1")


def _each(option: str, value: Any) -> list[Any]:
    """A value by itself, or what is in a collection, in its order; a set has none, and is sorted."""
    if _is_text(value) or getattr(value, "ndim", 1) == 0 or not isinstance(value, Iterable):
        return [value]
    if isinstance(value, Mapping | bytes | bytearray | memoryview):
        raise UsageError(f"{option} takes a list, not {_shown(value)}", "give a list, or text with commas")
    return sorted(value, key=str) if isinstance(value, set | frozenset) else list(value)


def _split(option: str, item: Any) -> tuple[str, ...]:
    """The names in one item."""
    name = text(option, item)
    parts = (name,) if isinstance(item, os.PathLike) else name.split(",")
    return tuple(part.strip() for part in parts if part.strip())


def _refuse_nul(option: str, text: str) -> None:
    if "\0" in text:  # no command line and no name of a file can hold one
        raise UsageError(f"{option} holds a NUL character: {_shown(text)}", "leave it out")


def _is_text(value: Any) -> bool:
    return isinstance(value, str | os.PathLike)


def _plain(value: Any) -> Any:
    """What NumPy, torch and pandas wrap a single value in is taken off."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _whole(value: Any) -> int | None:
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    try:
        return int(value)
    except ValueError:
        return None


def _float(value: Any) -> float:
    """A number, or text that is one; NaN for anything else, True and False among it."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _shown(value: Any) -> str:
    """A value as one types it, and what it is where that does not say it; short."""
    words = " ".join(repr(value).split())
    short = words if len(words) <= 60 else f"{words[:57]}..."
    return short if isinstance(value, str | int | float | None) else f"{short} ({type(value).__name__})"
