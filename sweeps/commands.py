"""The command that runs a trial's configuration again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vqbench.planning.request import RunRequest
from vqbench.wording import shell_command

MORE_SEEDS = 3


def more_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """The seeds of the sweep, and the next ones up to three in all, or two more."""
    wanted = max(MORE_SEEDS, len(seeds) + 2)
    found, following = list(dict.fromkeys(seeds)), 0
    while len(found) < wanted:
        if following not in found:
            found.append(following)
        following += 1
    return tuple(found)


def resume_command(runs: Path, experiment: str, name: str) -> str:
    """`vqbench sweep --resume …` for a sweep, as it is typed into a shell."""
    words = ["vqbench", "sweep", "--resume", name, "--name", experiment]
    return shell_command([*words, *(["--runs", str(runs)] if runs != Path("runs") else [])])


def run_command(run: RunRequest, method: str, settings: Sequence[str], seeds: Sequence[int]) -> str:
    """`vqbench run …` for one method with these settings, as it is typed into a shell."""
    words = ["vqbench", "run", "--methods", method]
    options: tuple[tuple[str, object], ...] = (
        ("dataset", run.dataset), ("features", run.features), ("data-root", run.data_root), ("recipe", run.recipe),
        ("images", run.images), ("validation-images", run.validation_images), ("lpips", run.lpips),
        ("inception-weights", run.inception_weights), ("lpips-weights", run.lpips_weights), ("name", run.name),
    )  # fmt: skip
    for option, value in options:
        if value is not None and value != "":
            words += [f"--{option}", str(value)]
    words += ["--runs", str(run.runs)] if run.runs != Path("runs") else []
    words += ["--devices", str(run.devices)] if run.devices != 1 else []
    words += ["--metrics", ",".join(run.metrics)] if run.metrics else []
    for plugin in run.plugins:
        words += ["--plugin", str(plugin)]
    for setting in settings:
        words += ["--set", setting]
    words += ["--stop-on-collapse"] if run.stop_on_collapse else []
    return shell_command([*words, "--seeds", ",".join(map(str, seeds))])
