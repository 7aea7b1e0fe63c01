"""Work that falls into portions, done in this process or by several beside one another, on a GPU each where there are
some.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any, TypeVar

import torch

from vqbench.errors import UsageError, VQBenchError
from vqbench.machine.cores import cores

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
    context = multiprocessing.get_context("spawn")
    following = context.Value("q", 0)
    running, pipes = [], []
    try:
        for k in range(workers):
            pipe, end = context.Pipe(duplex=False)
            job = (portions, begin, k, workers, plugins, following, end)
            process = context.Process(target=_work, args=job, daemon=True)
            process.start()
            end.close()  # so that the pipe ends with the process
            running.append(process)
            pipes.append(pipe)
        _listen(pipes, told)
        for process in running:
            process.join()
        if lost := [process.exitcode for process in running if process.exitcode]:
            what = f"a process that works on the images has ended by itself (exit code {lost[0]})"
            hint = "give the command again: it goes on where this one ended; fewer --workers take less memory"
            raise UsageError(what, hint)
    finally:
        for process in running:
            process.kill()
            process.join()


def _listen(pipes: list[Connection], told: Callable[[int], None]) -> None:
    """Pass on what the processes say until all have ended. Raises what one has raised."""
    waiting = list(pipes)
    while waiting:
        ready: Any = wait(waiting)
        for pipe in ready:
            try:
                said = pipe.recv()
            except EOFError:
                waiting.remove(pipe)
                continue
            if isinstance(said, BaseException):
                raise said
            told(int(said))


def _work(
    portions: list[Any],
    begin: Begin[Any],
    number: int,
    workers: int,
    plugins: tuple[Path, ...],
    following: Synchronized[int],
    pipe: Connection,
) -> None:
    """One process: whatever portion is the next, until there is none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who interrupts the command ends it, and that ends this
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from vqbench.registry import add_plugin

    try:
        torch.set_num_threads(max(1, cores() // workers))
        for plugin in plugins:
            add_plugin(plugin)
        make = begin(device_for(number))
        for portion in iter(functools.partial(_next, following, portions), None):
            for done in make(portion):
                pipe.send(done)
    except VQBenchError as error:
        pipe.send(error)
    except OSError as error:  # with its number, which says what mends it
        pipe.send(OSError(error.errno, error.strerror, error.filename))


def _next(following: Synchronized[int], portions: list[T]) -> T | None:
    with following.get_lock():
        place, following.value = following.value, following.value + 1
    return portions[place] if place < len(portions) else None


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
