"""Ctrl-C and SIGTERM end a command in good order, a second Ctrl-C at once; cells die with their driver."""

from __future__ import annotations

import contextlib
import os
import signal

_heard = False
_ended_by = signal.SIGINT


class TerminatedError(BaseException):
    """This process was told to end (SIGTERM), and has put in order what it was at."""


def hear() -> None:
    """Listen from now on; not to Ctrl-C in a job in a shell's back, which the shell has told not to."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _in_order)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # a batch system's, when the time is over
        signal.signal(signal.SIGTERM, _in_order)


def _in_order(number: int, _: object) -> None:
    global _heard, _ended_by
    _heard, _ended_by = True, signal.Signals(number)
    signal.signal(signal.SIGINT, _at_once)
    signal.signal(signal.SIGTERM, lambda *_: None)  # a batch system may repeat it; SIGKILL is for haste
    raise KeyboardInterrupt


def exit_code() -> int:
    """Of a command that was ended: 128 and the signal, as shells have it."""
    return 128 + _ended_by


def reason() -> str:
    """What has ended a command, in words."""
    return "interrupted" if _ended_by == signal.SIGINT else f"told to end by {_ended_by.name}"


def _at_once(*_: object) -> None:
    with contextlib.suppress(OSError):  # there may be nobody left to tell
        os.write(2, b"error: interrupted twice\nhint: the same command goes on; `vqbench sync` tells MLflow the rest\n")
    os._exit(130)


def die_of_sigterm() -> None:
    """End this process as SIGTERM ends one that does not listen to it, so that whoever waits sees why."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


def check() -> None:
    """Raise KeyboardInterrupt if a signal was heard, for the loops that run cells.

    Where it comes while Python destroys an object or calls back for one, Python prints the exception and goes on.
    """
    global _heard
    if _heard:
        _heard = False
        raise KeyboardInterrupt
