"""What `sweep` asks for, and the file that remembers it."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqbench.choice import Variant
from vqbench.errors import UsageError, unknown
from vqbench.feature_protocol import FEATURE_METRICS
from vqbench.metrics.definitions import METRICS
from vqbench.plan import RunRequest
from vqbench.results import read_json
from vqbench.sweeps.grammar import Raw

SAMPLERS = ("tpe", "random", "grid", "nsga2")
PRUNERS = ("none", "median", "hyperband")
DEFAULT_TRIALS = 20
_DEFINES = (
    "methods", "dataset", "features", "data_root", "recipe", "seeds", "images", "devices", "settings", "plugins",
    "metrics", "lpips", "validation_images", "inception_weights", "lpips_weights", "stop_on_collapse",
)  # fmt: skip
"""The fields of the run that decide what a trial is; the others only say how it is carried out."""
_PATHS = ("features", "data_root", "inception_weights", "lpips_weights")


@dataclass(frozen=True)
class SweepRequest:
    """What `vqbench sweep` was asked for."""

    run: RunRequest
    """Methods, and everything that is held equal."""
    spaces: tuple[str, ...] = ()
    """Names or files; with `resume` those of the sweep."""
    space: Raw | None = None
    """The space itself, where it need not be read."""
    trials: int | None = None
    """Shared by all methods; None: 20, or what `trials_per_method` makes."""
    trials_per_method: int | None = None
    objectives: tuple[str, ...] = ()
    """Metrics; empty: rfid, or the first that ranks."""
    sampler: str = "tpe"
    pruner: str = "none"
    sampler_seed: int = 0
    storage: str = ""
    """SQLAlchemy URL, or the path of a journal file; empty: a sqlite file of the experiment."""
    same_bits: bool = False
    timeout: float | None = None
    """Seconds of this command."""
    max_images: int | None = None
    """Training images of all trials together."""
    name: str = ""
    """Empty: METHODS-SPACE."""
    resume: bool = False
    """Whether the sweep of this name is to go on, whatever the other fields say."""

    @property
    def references(self) -> tuple[str, ...]:
        """method or method@preset, each once."""
        return tuple(dict.fromkeys(m.reference if isinstance(m, Variant) else m for m in self.run.methods))

    @property
    def title(self) -> str:
        """The sweep's name."""
        spaces = "+".join(Path(space).stem for space in self.spaces)
        return self.name or f"{'+'.join(self.references)}-{spaces}{'-same-bits' if self.same_bits else ''}"[:100]


def refuse_odd(request: SweepRequest) -> None:
    """Raise UsageError for what no sweep can be, before anything is looked at."""
    if request.sampler not in SAMPLERS:
        raise unknown("sampler", request.sampler, SAMPLERS, f"choose one: --sampler {'|'.join(SAMPLERS)}")
    if request.pruner not in PRUNERS:
        raise unknown("pruner", request.pruner, PRUNERS, f"choose one: --pruner {'|'.join(PRUNERS)}")
    if not request.spaces:
        raise UsageError(
            "no space to search", "for example: --space codebook; shipped: codebook, latent, losses, optimiser"
        )
    if request.trials is not None and request.trials_per_method is not None:
        raise UsageError("--trials and --trials-per-method are two budgets", "give one of them")
    for option, value in (("--trials", request.trials), ("--trials-per-method", request.trials_per_method),
                          ("--max-images", request.max_images)):  # fmt: skip
        if value is not None and value < 1:
            raise UsageError(f"{option} must be at least 1, not {value}", f"for example: {option} 40")
    if request.run.rerun:
        raise UsageError("--rerun has no meaning here: trials that are equal would be trained again and again",
                         "leave it out, or choose another --name")  # fmt: skip
    if not re.fullmatch(r"[\w@+.=-][\w@.+= -]{0,99}", request.title) or request.title in (".", ".."):
        raise UsageError(f"--sweep-name {request.title!r} cannot be a folder",
                         "use letters, digits, '-', '_' and '.', at most 100")  # fmt: skip


def check_objectives(request: SweepRequest, track: str, metrics: tuple[str, ...]) -> tuple[str, ...]:
    """The objectives, the default among `metrics` where none was asked for. Raises UsageError for what cannot be one.

    `metrics` are those that the trials compute.
    """
    known = METRICS if track == "images" else FEATURE_METRICS
    ranking = [name for name, definition in known.items() if definition.better is not None]
    objectives = tuple(dict.fromkeys(request.objectives)) or tuple([m for m in metrics if m in ranking][:1])
    if not objectives:
        raise UsageError("none of the metrics ranks a trial", f"choose among --objective {', '.join(ranking)}")
    for name in objectives:
        if name not in known:
            raise unknown("objective", name, ranking, f"objectives: {', '.join(ranking)}")
        if name not in ranking:
            raise UsageError(f"{name} has no better direction", f"objectives: {', '.join(ranking)}")
        if name not in metrics:
            raise UsageError(f"the objective {name} is not among the metrics of the trials ({', '.join(metrics)})",
                             f"add it: --metrics {','.join([*request.run.metrics, name])}")  # fmt: skip
    if len(objectives) > 1 and request.pruner != "none":
        raise UsageError(
            f"--pruner {request.pruner} compares one curve, and there are {len(objectives)} objectives",
            "leave --pruner out, or name one --objective",
        )
    if request.sampler == "nsga2" and request.pruner != "none":
        raise UsageError(
            f"--pruner {request.pruner} leaves no values, of which nsga2 breeds the next trials",
            "leave --pruner out, or take --sampler tpe",
        )
    return objectives


def definition(request: SweepRequest, space: Raw, objectives: tuple[str, ...]) -> dict[str, Any]:
    """All that makes two sweeps the same, JSON-ready."""
    run = {name: _json(getattr(request.run, name)) for name in _DEFINES} | {"methods": list(request.references)}
    return {
        "run": run,
        "space": space,
        "objectives": list(objectives),
        "sampler": request.sampler,
        "pruner": request.pruner,
        "sampler_seed": request.sampler_seed,
        "same_bits": request.same_bits,
    }


def _json(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_json(v) for v in value]
    return str(value.absolute()) if isinstance(value, Path) else value


def budget(request: SweepRequest) -> dict[str, Any]:
    """What may be raised when a sweep goes on."""
    names = ("trials", "trials_per_method")
    return {name: getattr(request, name) for name in names if getattr(request, name) is not None}


def find_sweep(runs: Path, experiment: str, name: str) -> Path:
    """The file of the sweep `name` below `runs`. Raises UsageError where there is none, or one too many."""
    found = sorted(runs.glob(f"{experiment or '*'}/sweeps/{name}.json"))
    if len(found) == 1:
        return found[0]
    if found:
        experiments = ", ".join(path.parents[1].name for path in found)
        raise UsageError(f"several experiments have a sweep '{name}': {experiments}", "say which: --name EXPERIMENT")
    known = [path.stem for path in runs.glob(f"{experiment or '*'}/sweeps/*.json")]
    raise unknown(f"sweep in {runs}", name, known, "--runs DIR says where the results are; --name names the experiment")


def recall(request: SweepRequest, path: Path) -> SweepRequest:
    """The sweep of a file, with what `request` says of its carrying out. Raises UsageError where they disagree."""
    stored = read_json(path)
    if stored is None:
        raise UsageError(f"{path} cannot be read", "start the sweep anew under another --sweep-name")
    fields = stored["definition"]
    known = {name: _revived(name, value) for name, value in fields["run"].items()}
    _refuse_others(request.run, known)
    for name in ("sampler", "pruner", "sampler_seed", "same_bits"):
        default = next(f.default for f in dataclasses.fields(SweepRequest) if f.name == name)
        if getattr(request, name) not in (default, fields[name]):
            raise _disagrees(name, fields[name])
    if request.spaces and list(request.spaces) != stored["spaces"]:
        raise _disagrees("space", ",".join(stored["spaces"]))
    if request.objectives and list(request.objectives) != fields["objectives"]:
        raise _disagrees("objective", ",".join(fields["objectives"]))
    asked = budget(request)
    if not request.storage and "***" in stored["storage"]:
        raise UsageError("the storage of this sweep has a password, which is not kept", "give it again: --storage URL")
    return dataclasses.replace(
        request,
        run=dataclasses.replace(request.run, **known, name=path.parents[1].name),
        spaces=tuple(stored["spaces"]),
        space=fields["space"],
        objectives=tuple(fields["objectives"]),
        **{name: fields[name] for name in ("sampler", "pruner", "sampler_seed", "same_bits")},
        **({"trials": None, "trials_per_method": None} | (asked or stored["budget"])),
        storage=request.storage or stored["storage"],
        name=path.stem,
    )


def _refuse_others(run: RunRequest, known: Mapping[str, Any]) -> None:
    blank = RunRequest(())
    for name, value in known.items():
        given = getattr(run, name)
        if f"VQBENCH_{name.upper()}" in os.environ:  # it was not given for this command
            continue
        if _json(given) not in (_json(getattr(blank, name)), _json(value)):
            raise _disagrees(name, _json(value))


def _disagrees(name: str, stored: Any) -> UsageError:
    option = {"settings": "set", "plugins": "plugin"}.get(name, name.replace("_", "-"))
    return UsageError(
        f"the sweep was started with another --{option}: {stored}",
        "leave it out, or start another sweep with --sweep-name",
    )


def _revived(name: str, value: Any) -> Any:
    if name == "plugins":
        return tuple(map(Path, value))
    if name in _PATHS:
        return Path(value) if value else None
    return tuple(value) if isinstance(value, list) else value
