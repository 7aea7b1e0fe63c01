"""Processes of this machine that work beside one another, and end with whoever started them."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from vqbench.errors import UsageError, VQBenchError


def work_beside(
    work: Callable[..., None],
    jobs: Sequence[tuple[Any, ...]],
    heard: Callable[[Any], object],
    doing: str,
    patience: float | None = None,
    shared: tuple[Any, ...] = (),
) -> None:
    """Call `work(say, *job, *shared)` for each job, in a process of its own, and wait until all have ended.

    What is `shared` may be handed over while a process starts and never afterwards, as locks and counters are; it is
    small.

    `heard` is called with what they `say`, and with None when nobody has for `patience` seconds; what it returns is
    true where nothing else need be awaited. Raises the VQBenchError or OSError that one of them raises, and UsageError
    where one was killed, with what it was `doing` in words.
    """
    context = multiprocessing.get_context("spawn")
    resource_tracker.ensure_running()  # which lets interrupts through again, where a process starts it
    running, waiting, orders = [], [], []
    try:
        for _ in jobs:
            pipe, end = context.Pipe(duplex=False)
            ordered, order = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(work, shared, ordered, end), daemon=True)
            with _interrupts_held():  # what a process inherits, so that an interrupt ends none amid its imports
                process.start()
                running.append(process)
            for of_process in (ordered, end):  # so that both pipes end with the process
                of_process.close()
            waiting.append(pipe)
            orders.append(order)
        for order, job in zip(orders, jobs, strict=True):
            # not among `args`: multiprocessing waits for ever for a process that ends before it has read them
            with contextlib.suppress(BrokenPipeError):  # its exit code tells
                order.send(job)
        if _listen(waiting, heard, patience):
            return
        for process in running:
            process.join()
        if lost := [process.exitcode for process in running if process.exitcode]:
            what = f"a process that {doing} has ended by itself (exit code {lost[0]})"
            hint = "give the command again: it goes on where this one ended; fewer --workers take less memory"
            raise UsageError(what, hint)
    finally:
        for process in running:
            process.kill()
            process.join()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _listen(waiting: list[Connection], heard: Callable[[Any], object], patience: float | None) -> bool:
    """Pass on what the processes say until all have ended; true where that need not be awaited."""
    while waiting:
        ready: Any = wait(waiting, patience)
        if not ready and heard(None):
            return True
        for pipe in ready:
            try:
                said = pipe.recv()
            except EOFError:
                waiting.remove(pipe)
                continue
            if isinstance(said, VQBenchError | OSError):
                raise said
            if heard(said):
                return True
    return False


def _work(work: Callable[..., None], shared: tuple[Any, ...], ordered: Connection, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who interrupts the command ends it, and that ends this
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work(pipe.send, *ordered.recv(), *shared)
    except VQBenchError as error:
        pipe.send(error)
    except OSError as error:  # with its number, which says what mends it
        number, text = error.errno or errno.EIO, error.strerror or str(error)
        pipe.send(OSError(number, text, error.filename))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
