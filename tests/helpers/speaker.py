"""What processes beside one another do in a test. Light, for each of them imports it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

from vqbench.errors import UsageError


class RefusedError(UsageError):
    """A plugin's, which is made of other things than ours."""

    def __init__(self, thing: str) -> None:
        super().__init__(f"no such {thing}", "give another")
        self.thing = thing


class Fatal:
    """Ends the process that it is passed on to."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (3,)


def speaks(say: Callable[[str], None], name: str, *_: object) -> None:
    """Say one's name, and do what it says."""
    say(name)
    if name == "is interrupted":  # as it began, too
        say("held" if signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()) else "ends")
    if name == "refuses":
        raise RefusedError("thing")
    if name == "cannot write":
        raise OSError(28, "No space left on device", "/there")
    if name == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "hangs":
        time.sleep(600)
