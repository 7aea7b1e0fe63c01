"""What `sweep` asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqbench import arguments
from vqbench.arguments import option
from vqbench.errors import UsageError
from vqbench.machine.yaml_files import shipped
from vqbench.planning.choice import folder_name
from vqbench.planning.request import RunRequest

if TYPE_CHECKING:
    from vqbench.sweeps.grammar import Raw

DEFAULT_TRIALS = 20


def _spaces(incomplete: str) -> list[str]:
    return [name for name in shipped("vqbench.sweeps") if name.startswith(incomplete)]


@dataclass(frozen=True)
class SweepRequest:
    """What `vqbench sweep` was asked for. Each option is declared here: command line, Python and files follow."""

    run: RunRequest
    """Methods, and everything that is held equal."""
    spaces: tuple[str, ...] = option(
        (), arguments.names,
        "What is drawn: codebook, latent, losses, optimiser, or your own YAML file; several add up.", "LIST",
        typed_as="space", given_as="space", complete=_spaces,
    )  # fmt: skip
    """With `resume` those of the sweep."""
    space: Raw | None = None
    """The space itself, where it need not be read."""
    trials: int | None = option(None, arguments.whole, "Trials, shared out evenly; default: 20.", "N")
    trials_per_method: int | None = option(None, arguments.whole, "Instead: trials for each method and level.", "N")
    objectives: tuple[str, ...] = option(
        (), arguments.names, "Metrics to improve, each in its better direction; default: rfid.", "LIST",
        typed_as="objective", given_as="objective",
    )  # fmt: skip
    """Empty: rfid, or the first that ranks."""
    sampler: str = option(
        "tpe", arguments.text, "tpe, random, grid or nsga2.", "NAME", default_is_no_answer=True, defines=True
    )
    pruner: str = option(
        "none", arguments.text, "none, median or hyperband: ends trials that lag behind.", "NAME",
        default_is_no_answer=True, defines=True,
    )  # fmt: skip
    sampler_seed: int = option(
        0, arguments.whole, "Seed of what is drawn.", "N", default_is_no_answer=True, defines=True
    )
    storage: str = option(
        "", arguments.text,
        "Optuna's storage: postgresql://…, or a journal file; default: optuna.db of the experiment.",
        "URL|FILE", has_variable=True, secret=True,
    )  # fmt: skip
    same_bits: bool = option(
        False, arguments.flag, "The codebook sizes of the space are levels, each tuned by itself.", defines=True
    )
    timeout: float | None = option(
        None, arguments.seconds, "End after 90s, 45m or 12h; cells that run stop at a checkpoint.", "TIME"
    )
    max_images: int | None = option(None, arguments.whole, "Training images of all trials together.", "N")
    name: str = option(
        "", arguments.text, "Name of the sweep; default: METHODS-SPACE.", "NAME",
        typed_as="sweep-name", given_as="sweep_name",
    )  # fmt: skip
    resume: bool = False
    """Whether the sweep of this name is to go on, whatever the other fields say."""
    given: tuple[str, ...] = ()
    """Fields that were asked for by name, so that a default is meant where it stands."""

    def __post_init__(self) -> None:
        """Each field may be given as the command line or Python does. Raises UsageError for what it does not take."""
        arguments.settle(self)

    @property
    def references(self) -> tuple[str, ...]:
        """method or method@preset, each once."""
        return tuple(dict.fromkeys(self.run.methods))

    @property
    def title(self) -> str:
        """The sweep's name."""
        spaces = "+".join(Path(space).stem for space in self.spaces)
        return (
            self.name
            or f"{'+'.join(map(folder_name, self.references))}-{spaces}{'-same-bits' if self.same_bits else ''}"[:100]
        )


def asked_sweep(run: RunRequest, given: Mapping[str, Any], resume: str) -> SweepRequest:
    """The sweep of what was typed, or given in Python: field → value. Raises UsageError where it goes on and begins."""
    by_name = arguments.given(SweepRequest, given)
    resume = arguments.text("--resume", resume if resume is not None else "")
    name = arguments.text("--sweep-name", given.get("name") or "")
    if resume and name and resume != name:
        raise UsageError(f"--resume {resume} goes on with that sweep, and --sweep-name {name} begins another",
                         "give one of them")  # fmt: skip
    named = {**given, "name": resume or name}
    return arguments.asked(SweepRequest, run=run, **named, resume=bool(resume), given=by_name)
