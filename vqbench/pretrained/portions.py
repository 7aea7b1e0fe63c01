"""Work that falls into portions, done in this process or by several beside one another, on a GPU each where there are
some.
"""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any, TypeVar

import torch

from vqbench.machine.cores import cores
from vqbench.machine.processes import work_beside

T = TypeVar("T")
Make = Callable[[T], Iterator[int]]
"""Does a portion, and yields how many images are done, whenever some are."""
Begin = Callable[[torch.device], Make[T]]
"""Called once in each process; pickled on its way there."""


def device_for(process: int) -> torch.device:
    """The device of one of several processes that share the GPUs of this machine."""
    return (
        torch.device("cuda", process % torch.cuda.device_count()) if torch.cuda.is_available() else torch.device("cpu")
    )


def carry_out(
    portions: list[T],
    make: Make[T],
    begin: Begin[T],
    workers: int,
    plugins: tuple[Path, ...],
    told: Callable[[int], None],
) -> None:
    """Do all portions, with `make` where this process does so alone; `told` hears of each few images.

    Raises whatever VQBenchError a portion raises, and UsageError where a process was killed.
    """
    workers = min(workers, len(portions))
    if workers <= 1:
        for portion in portions:
            for done in make(portion):
                told(done)
        return
    following = multiprocessing.get_context("spawn").Value("q", 0)
    jobs = [(portions, begin, k, workers, plugins) for k in range(workers)]
    work_beside(_work, jobs, told, "works on the images", shared=(following,))


def _work(
    say: Callable[[int], None],
    portions: list[Any],
    begin: Begin[Any],
    number: int,
    workers: int,
    plugins: tuple[Path, ...],
    following: Synchronized[int],
) -> None:
    """One process: whatever portion is the next, until there is none."""
    from vqbench.registry import add_plugin

    torch.set_num_threads(max(1, cores() // workers))
    for plugin in plugins:
        add_plugin(plugin)
    make = begin(device_for(number))
    for portion in iter(functools.partial(_next, following, portions), None):
        for done in make(portion):
            say(done)


def _next(following: Synchronized[int], portions: list[T]) -> T | None:
    with following.get_lock():
        place, following.value = following.value, following.value + 1
    return portions[place] if place < len(portions) else None
