"""What `sweep` asks for, and the file that remembers it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqbench import arguments
from vqbench.errors import UsageError, unknown
from vqbench.metrics.definitions import DEFINITIONS, metric
from vqbench.planning.choice import Variant
from vqbench.planning.request import RunRequest
from vqbench.registry import METRICS
from vqbench.sweeps.grammar import Raw

SAMPLERS = ("tpe", "random", "grid", "nsga2")
PRUNERS = ("none", "median", "hyperband")
DEFAULT_TRIALS = 20


_READERS: dict[str, arguments.Reader] = {
    "spaces": arguments.names,
    "trials": arguments.whole,
    "trials_per_method": arguments.whole,
    "objectives": arguments.names,
    "sampler": arguments.text,
    "pruner": arguments.text,
    "sampler_seed": arguments.whole,
    "storage": arguments.text,
    "same_bits": arguments.flag,
    "timeout": arguments.seconds,
    "max_images": arguments.whole,
    "name": arguments.text,
}


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
    given: tuple[str, ...] = ()
    """Fields that were asked for by name, so that a default is meant where it stands."""

    def __post_init__(self) -> None:
        """Each field may be given as the command line or Python does. Raises UsageError for what it does not take."""
        arguments.settle(self, _READERS)

    @property
    def references(self) -> tuple[str, ...]:
        """method or method@preset, each once."""
        return tuple(dict.fromkeys(m.reference if isinstance(m, Variant) else m for m in self.run.methods))

    @property
    def title(self) -> str:
        """The sweep's name."""
        spaces = "+".join(Path(space).stem for space in self.spaces)
        return self.name or f"{'+'.join(self.references)}-{spaces}{'-same-bits' if self.same_bits else ''}"[:100]


def given(**asked: Any) -> dict[str, Any]:
    """Fields of a SweepRequest for the options that were given; those that are None were not."""
    known = {name: value for name, value in asked.items() if value is not None}
    return {**known, "given": tuple(known)}


def one_name(resume: str, name: str) -> str:
    """The name of a sweep that goes on, or of one that begins. Raises UsageError where both are given."""
    resume = arguments.text("--resume", resume if resume is not None else "")
    name = arguments.text("--sweep-name", name if name is not None else "")
    if resume and name and resume != name:
        raise UsageError(f"--resume {resume} goes on with that sweep, and --sweep-name {name} begins another",
                         "give one of them")  # fmt: skip
    return resume or name


def refuse_odd(request: SweepRequest) -> None:
    """Raise UsageError for what no sweep can be, before anything is looked at."""
    if request.sampler not in SAMPLERS:
        raise unknown("sampler", request.sampler, SAMPLERS, f"choose one: --sampler {'|'.join(SAMPLERS)}")
    if request.pruner not in PRUNERS:
        raise unknown("pruner", request.pruner, PRUNERS, f"choose one: --pruner {'|'.join(PRUNERS)}")
    if not request.references:
        raise UsageError("no method to tune", "for example: vqbench sweep vqgan,fsq --space codebook --dataset photos")
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
    ranking = [name for name in DEFINITIONS if DEFINITIONS[name].better and track in DEFINITIONS[name].tracks]
    objectives = tuple(dict.fromkeys(request.objectives)) or tuple([m for m in metrics if m in ranking][:1])
    if not objectives:
        raise UsageError("none of the metrics ranks a trial", f"choose among --objective {', '.join(ranking)}")
    for name in objectives:
        if name not in METRICS or track not in metric(name).tracks:
            raise unknown("objective", name, ranking, f"objectives: {', '.join(ranking)}")
        if not metric(name).better:
            raise UsageError(f"{name} has no better direction", f"objectives: {', '.join(ranking)}")
    absent = [name for name in objectives if name not in metrics]
    if absent:
        which = f"objective {absent[0]} is" if len(absent) == 1 else f"objectives {' and '.join(absent)} are"
        whole = ",".join([*metrics, *absent])  # what --metrics names replaces the default set
        raise UsageError(f"the {which} not among the metrics of the trials ({', '.join(metrics)})",
                         f"add {'it' if len(absent) == 1 else 'them'}: --metrics {whole}")  # fmt: skip
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
