"""The command that runs a trial's configuration again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vqbench.planning.request import RunRequest, words_of
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
    return shell_command(words_of(run, method, settings=tuple(settings), seeds=tuple(seeds)))
