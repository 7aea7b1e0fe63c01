"""The file that remembers a sweep: what it is, where its trials are, and that it is one command's at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vqbench.arguments import options
from vqbench.errors import UsageError, unknown
from vqbench.machine.json_files import read_json, write_json
from vqbench.machine.lease import CellBusyError, exclusive
from vqbench.planning.request import RunRequest
from vqbench.sweeps.request import SweepRequest
from vqbench.wording import masked, shell_command

_DEFINES = tuple(name for name, known in options(RunRequest).items() if known.defines)
_OF_THE_SWEEP = tuple(name for name, known in options(SweepRequest).items() if known.defines)
_IN_WORDS = {"recipe_fields": "content of the recipe", "training_images": "training set",
             "digests": "definition of its objective"}  # fmt: skip


def _asked(request: SweepRequest) -> dict[str, Any]:
    """All that makes two sweeps the same, JSON-ready."""
    run = {name: _json(getattr(request.run, name)) for name in _DEFINES}
    return {
        "run": {"methods": list(request.references), **run},
        "space": request.space,
        "objectives": list(request.objectives),
        **{name: getattr(request, name) for name in _OF_THE_SWEEP},
    }


def _json(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_json(v) for v in value]
    return str(value.absolute()) if isinstance(value, Path) else value


def _budget(request: SweepRequest) -> dict[str, Any]:
    """What may be raised when a sweep goes on."""
    names = ("trials", "trials_per_method")
    return {name: getattr(request, name) for name in names if getattr(request, name) is not None}


def find_sweep(runs: Path, experiment: str, name: str) -> Path:
    """The file of the sweep `name` below `runs`. Raises UsageError where there is none, or one too many."""
    within = glob.escape(experiment) if experiment else "*"
    found = sorted(runs.glob(f"{within}/sweeps/{glob.escape(name)}.json"))
    if len(found) == 1:
        return found[0]
    if found:
        experiments = ", ".join(path.parents[1].name for path in found)
        raise UsageError(f"several experiments have a sweep '{name}': {experiments}", "say which: --name EXPERIMENT")
    known = [path.stem for path in runs.glob(f"{within}/sweeps/*.json")]
    raise unknown(f"sweep in {runs}", name, known, "--runs DIR says where the results are; --name names the experiment")


def remembered(file: Path) -> dict[str, Any] | None:
    """What the file of a sweep holds; None where there is none.

    Raises UsageError where it is not whole: a sweep that has begun would begin again, perhaps in another storage.
    """
    stored = read_json(file)
    if stored is None and not file.exists():
        return None
    definition = (stored or {}).get("definition")
    run = definition.get("run") if isinstance(definition, dict) else None
    if stored is None or not isinstance(stored.get("spaces"), list) or not isinstance(run, dict):
        raise UsageError(
            f"{file}, which remembers the sweep, is not whole",
            "bring it back; or start the sweep anew under another --sweep-name: what is trained is not trained again",
        )
    return stored


def recall(request: SweepRequest, path: Path) -> SweepRequest:
    """The sweep of a file, with what `request` says of its carrying out. Raises UsageError where they disagree."""
    stored = remembered(path)
    if stored is None:
        raise UsageError(f"there is no {path}", "start the sweep with all its options")
    fields = stored["definition"]
    # a sweep of an earlier version does not name what options that came later were: nothing
    known = {name: _json(getattr(RunRequest(), name)) for name in _DEFINES} | fields["run"]
    _refuse_others(request.run, known)
    blank = SweepRequest(request.run)
    told = {name: fields[name] for name in (*_OF_THE_SWEEP, "objectives")} | {"spaces": stored["spaces"]}
    for name, value in told.items():
        asked = _json(getattr(request, name))
        if (name in request.given or asked != _json(getattr(blank, name))) and asked != value:
            raise _disagrees(name, ",".join(value) if isinstance(value, list) else value)
    return dataclasses.replace(
        request,
        run=dataclasses.replace(request.run, **known, name=path.parents[1].name),
        space=fields["space"],
        **told,
        **({"trials": None, "trials_per_method": None} | (_budget(request) or stored["budget"])),
        name=path.stem,
    )


def _refuse_others(run: RunRequest, known: Mapping[str, Any]) -> None:
    blank = RunRequest(())
    variables = {field: option.variable or "" for field, option in options(RunRequest).items()}
    for name, value in known.items():
        given, variable = getattr(run, name), variables.get(name, "")
        if variable in os.environ:  # it was not given for this command
            continue
        if _json(given) not in (_json(getattr(blank, name)), value):
            raise _disagrees(name, value)


def _disagrees(name: str, stored: Any) -> UsageError:
    known = options(SweepRequest).get(name) or options(RunRequest).get(name)
    return UsageError(
        f"the sweep was started with another {known.words if known is not None else f'--{name}'}: {stored}",
        "leave it out, or start another sweep with --sweep-name",
    )


@contextlib.contextmanager
def held(file: Path) -> Iterator[None]:
    """Hold the sweep of `file`, as a cell is held: no other driver asks its trials meanwhile, on any machine.

    Raises UsageError if one does.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(exclusive(file.with_suffix("")))
        except CellBusyError as error:
            raise UsageError(f"another command is running the sweep {file.stem} ({error.what})",
                             "wait for it, or start another sweep with --sweep-name") from None  # fmt: skip
        yield


def storage_of(request: SweepRequest, file: Path) -> str:
    """Where the trials are: as asked for, or as remembered. Raises UsageError where the two are not one place."""
    asked, stored = request.storage, (remembered(file) or {}).get("storage")
    from_environment = request.resume and asked == os.environ.get("VQBENCH_STORAGE")
    if asked and "://" not in asked:
        asked = str(Path(asked).absolute())
    is_another = stored is not None and masked(asked) != masked(stored)
    if from_environment and (is_another or stored is None):  # it was not given for this command
        asked = ""
    if asked and is_another:
        raise UsageError(f"the trials of this sweep are in {stored or 'optuna.db of its experiment'}",
                         "leave --storage (VQBENCH_STORAGE) out, or start another sweep with --sweep-name")  # fmt: skip
    if not asked and stored and "***" in stored:
        raise UsageError(f"the password of {stored} was not kept", "give the storage again: --storage URL")
    return asked or stored or ""


def refuse_another(request: SweepRequest, file: Path, found: Mapping[str, Any] | None = None) -> None:
    """Raise UsageError where the sweep's name stands for another sweep already, as far as it can be said now.

    `found` is what is known only when the data has been read (SweepPlan.found), and the default objective with it.
    """
    storage_of(request, file)
    stored = remembered(file)
    if stored is None:
        return
    definition = json.loads(json.dumps(_asked(request) | dict(found or {})))  # as it is stored: lists for tuples
    wanted, there = ({**d, **d["run"]} for d in (definition, stored["definition"]))
    unknown_yet = {"run", *([] if request.objectives else ["objectives"])}
    compared = (wanted.keys() & there.keys()) - unknown_yet  # sweeps of earlier versions remember less
    differs = [_IN_WORDS.get(name, name) for name in wanted if name in compared and wanted[name] != there[name]]
    if differs:
        raise UsageError(
            f"there is a sweep '{request.title}' already, with another {' and '.join(differs)}",
            f"go on with it: {shell_command(['--resume', request.title])}, or start another: --sweep-name NAME",
        )


def remember(request: SweepRequest, file: Path, storage: str, taken: set[str], found: Mapping[str, Any]) -> None:
    """Write the sweep's file. Raises UsageError where its name stands for another sweep already.

    `taken` are its studies that the storage holds, `found` is that of its plan.
    """
    refuse_another(request, file, found)
    stored = remembered(file)
    if stored is None and taken:
        raise UsageError(f"the storage holds studies of another sweep: {min(taken)}",
                         "choose another --sweep-name, or another --storage")  # fmt: skip
    write_json(file, {
        "spaces": list(request.spaces),
        "storage": masked(storage),
        "budget": _budget(request) or (stored or {}).get("budget", {}),
        "definition": {**_asked(request), **found},
    })  # fmt: skip
