"""Ctrl-C: the first one ends a command in good order, the second one at once; cells die with their driver."""

from __future__ import annotations

import os
import signal

_heard = False


class TerminatedError(BaseException):
    """This process was told to end (SIGTERM), and has put in order what it was at."""


def hear() -> None:
    """Listen from now on; not in a job in a shell's back, which the shell has told not to."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _in_order)


def _in_order(*_: object) -> None:
    global _heard
    _heard = True
    signal.signal(signal.SIGINT, _at_once)
    raise KeyboardInterrupt


def _at_once(*_: object) -> None:
    os.write(2, b"error: interrupted twice\nhint: the same command goes on; `vqbench sync` tells MLflow the rest\n")
    os._exit(130)


def die_of_sigterm() -> None:
    """End this process as SIGTERM ends one that does not listen to it, so that whoever waits sees why."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


def check() -> None:
    """Raise KeyboardInterrupt if Ctrl-C was heard, for the loops that run cells.

    Where it comes while Python destroys an object or calls back for one, Python prints the exception and goes on.
    """
    global _heard
    if _heard:
        _heard = False
        raise KeyboardInterrupt
