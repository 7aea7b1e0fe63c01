"""The options of `vqbench sweep`: how each is spelled and read."""

from __future__ import annotations

from typing import Annotated

import typer

from vqbench.machine.yaml_files import shipped


def _complete_spaces(incomplete: str) -> list[str]:
    return [name for name in shipped("vqbench.sweeps") if name.startswith(incomplete)]


Space = Annotated[
    list[str] | None,
    typer.Option("--space", metavar="LIST", autocompletion=_complete_spaces,
                 help="What is drawn: codebook, latent, losses, optimiser, or your own YAML file; several add up."),
]  # fmt: skip
Trials = Annotated[int | None, typer.Option(metavar="N", help="Trials, shared out evenly; default: 20.")]
TrialsPerMethod = Annotated[int | None, typer.Option(metavar="N", help="Instead: trials for each method and level.")]
Objective = Annotated[
    list[str] | None,
    typer.Option(metavar="LIST", help="Metrics to improve, each in its better direction; default: rfid."),
]
# None where an option is not given: what is given must agree with the sweep that goes on, a default need not
Sampler = Annotated[
    str | None, typer.Option(metavar="NAME", help="tpe, random, grid or nsga2.", show_default="tpe")
]  # fmt: skip
Pruner = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="none, median or hyperband: ends trials that lag behind.", show_default="none"),
]
SamplerSeed = Annotated[int | None, typer.Option(metavar="N", help="Seed of what is drawn.", show_default="0")]
Storage = Annotated[
    str,
    typer.Option(metavar="URL|FILE", envvar="VQBENCH_STORAGE", show_default=False,  # a --config's may hold a password
                 help="Optuna's storage: postgresql://…, or a journal file; default: optuna.db of the experiment."),
]  # fmt: skip
SameBits = Annotated[
    bool, typer.Option("--same-bits", help="The codebook sizes of the space are levels, each tuned by itself.")
]
Timeout = Annotated[
    str, typer.Option(metavar="TIME", help="End after 90s, 45m or 12h; cells that run stop at a checkpoint.")
]
MaxImages = Annotated[int | None, typer.Option(metavar="N", help="Training images of all trials together.")]
SweepName = Annotated[str, typer.Option(metavar="NAME", help="Name of the sweep; default: METHODS-SPACE.")]
Resume = Annotated[str, typer.Option(metavar="NAME", help="Go on with a sweep; what defines it is remembered.")]
