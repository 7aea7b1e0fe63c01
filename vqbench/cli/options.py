"""The options of the command line: how each is spelled, read, completed, and found in a file."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from vqbench import arguments
from vqbench.errors import UsageError, unknown
from vqbench.machine.yaml_files import parse_yaml
from vqbench.planning.request import RunRequest
from vqbench.registry import METHODS, add_plugin


def complete_methods(incomplete: str) -> list[str]:
    """Shell completion of a list of methods."""
    before, comma, last = incomplete.rpartition(",")
    return [before + comma + name for name in METHODS.names() if name.startswith(last)]


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Values of a YAML file become the options' defaults: the command line and the environment win over them."""
    if path is not None:
        parameters: dict[str, Any] = {}
        for parameter in context.command.params:
            spellings = [option.lstrip("-") for option in parameter.opts]
            parameters |= dict.fromkeys([s for s in spellings if s not in ("config", "help", "h")], parameter)
        defaults = {}
        for key, value in _yaml_mapping(path).items():
            name = str(key).replace("_", "-")
            if name not in parameters:
                hint = f"`{context.command_path} --help` lists them"
                raise unknown(f"option in {path}", name, parameters, hint)
            if value is not None:  # as if the line were not there
                defaults[parameters[name].name] = _as_typed(value, parameters[name])
        context.default_map = defaults
    return path


def _yaml_mapping(path: Path) -> dict[Any, Any]:
    hint = "for example: `methods: vaevq,vqgan`, each option on a line of its own"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read --config {path}: {error.strerror}", hint) from None
    values = parse_yaml(content, f"--config {path}", hint)
    if not isinstance(values, dict):
        raise UsageError(f"--config {path} must map options to values", hint)
    return values


def _as_typed(value: Any, parameter: Any) -> Any:
    """A YAML value as it would be typed: text, several where the option may be repeated, or a switch as it is."""
    if getattr(parameter, "is_flag", False):
        return value
    if not getattr(parameter, "multiple", False):
        return str(value)
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


_TYPES: dict[arguments.Reader, Any] = {
    arguments.flag: bool, arguments.whole: int, arguments.path: Path, arguments.paths: list[Path],
    arguments.names: list[str], arguments.settings: list[str], arguments.seeds: list[str],
}  # fmt: skip
"""What a reader takes from the command line; the others take text."""
_Config = Annotated[
    Path | None,
    typer.Option(metavar="FILE", callback=_read_config, is_eager=True, help="YAML file with values for these options."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object per row on stdout.")]


def print_rows(rows: Iterable[Mapping[str, Any]]) -> None:
    """What `--json` asks for."""
    for row in rows:
        print(json.dumps(row, allow_nan=False))


@dataclass(frozen=True)
class Typed:
    """What was typed after the options that commands share."""

    fields: Mapping[type[Any], dict[str, Any]]
    """Request → field → value."""
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the cells and their state; train nothing.")] = False
    probe: Annotated[
        bool,
        typer.Option("--probe", help="With --dry-run: train 20 steps of each method and say what the cells will cost."),
    ] = False
    as_json: AsJson = False
    config: _Config = None

    def run(self, methods: Sequence[str | Path] | str | None) -> RunRequest:
        """What these options ask of `methods`. Raises UsageError as RunRequest does, and for a stray --probe."""
        if self.probe and not self.dry_run:
            raise UsageError("--probe measures what a run will cost, and a run needs none", "add --dry-run")
        return arguments.asked(RunRequest, methods=methods, **self.fields[RunRequest])


def takes_some(*fields: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command these options of RunRequest beside its own, as arguments of these names.

    Plugins among them are registered, and handed on to a command that asks for them. An option that the command names
    itself has its default; without one it must be given.
    """

    def with_options(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters
        options = {field: known for field, known in arguments.options(RunRequest).items() if field in fields}
        named = {field: _parameter(RunRequest, known).replace(name=field) for field, known in options.items()}
        mine = [p for p in own.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        takes_others = len(mine) < len(own)

        def call(**values: Any) -> None:
            for plugin in values.get("plugins") or ():
                add_plugin(plugin)
            command(**{name: value for name, value in values.items() if takes_others or name in own})

        listed = [named[p.name].replace(default=p.default) if p.name in named else p for p in mine]
        return _with_signature(call, [*listed, *(p for field, p in named.items() if field not in own)], command)

    return with_options


def takes(*requests: type[Any], without: Sequence[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of these requests beside its own; its parameter `options` holds what was typed.

    The options of the last request `without` which it makes sense are left at their defaults.
    """

    def with_options(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters
        every = {(request, field): known for request in requests for field, known in arguments.options(request).items()}
        left = {(requests[-1], field) for field in without}
        kept = {key: known for key, known in every.items() if known.field not in own and key not in left}
        shared = {key: _parameter(key[0], known) for key, known in kept.items()}
        hints = typing.get_type_hints(Typed, include_extras=True)
        trains = RunRequest in requests
        around = [f for f in dataclasses.fields(Typed) if trains and f.name not in ("fields", *without)]

        def call(**values: Any) -> None:
            fields: dict[type[Any], dict[str, Any]] = {request: {} for request in requests}
            for (request, field), parameter in shared.items():
                fields[request][field] = values.pop(parameter.name)
            more = {f.name: values.pop(f.name) for f in around}
            command(**values, options=Typed(fields, **more))

        mine = [p for p in own.values() if p.name != "options"]
        others = [_keyword(f.name, hints[f.name], f.default) for f in around]
        return _with_signature(call, [*mine, *shared.values(), *others], command)

    return with_options


def _with_signature(
    call: Callable[..., None], parameters: Sequence[inspect.Parameter], command: Callable[..., None]
) -> Callable[..., None]:
    """`call`, which goes by the name and the help of `command`, with these parameters for typer to see."""
    listed = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    functools.update_wrapper(call, command)
    call.__signature__ = inspect.Signature(listed)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in listed}
    return call


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _parameter(request: type[Any], known: arguments.Option) -> inspect.Parameter:
    """A field of a request as typer takes it."""
    field = next(field for field in dataclasses.fields(request) if field.name == known.field)
    kind = _TYPES.get(known.reader, str)
    default = _typed_default(field.default if known.typed_default is None else known.typed_default)
    shown: bool | str = not known.secret
    if known.default_is_no_answer:
        default, shown = None, str(field.default)
    option = typer.Option(
        known.switch or known.words,
        metavar=known.metavar or None,
        envvar=known.variable,
        help=known.help,
        show_default=shown,
        autocompletion=known.complete,
    )
    optional = kind if default is not None else kind | None
    return _keyword(known.keyword, Annotated[optional, option], default)


def _typed_default(value: Any) -> Any:
    """A default as it would be typed; nothing in a list is nothing given."""
    return ([str(item) for item in value] or None) if isinstance(value, tuple) else value
