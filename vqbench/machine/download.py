"""Downloads: a file is whole or absent, and failing to get one that can be done without is remembered for a while."""

from __future__ import annotations

import http.client
import json
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from vqbench.machine.home import keep_text, keeping
from vqbench.machine.streams import say

PATIENCE_S = 3600
"""How long an optional file that could not be had is not asked for again: offline, each try costs seconds."""


def download(url: str, target: Path, check: Callable[[Path], str | None], optional: bool = False) -> str | None:
    """Fetch `url` to `target`; returns None, or why it is not there. `check` says what is wrong with what came.

    With `optional`, a failure is written beside the target (FILE.unreachable), and none is tried in the hour after it.
    """
    note = target.with_name(f"{target.name}.unreachable")
    if optional and (reason := _recent_failure(note)):
        return reason
    say(f"downloading {'optional ' if optional else ''}{url} to {target.parent}")
    reason = _fetch(url, target, check)
    with suppress(OSError):  # a home that cannot be written remembers nothing
        if reason is None:
            note.unlink(missing_ok=True)
        elif optional:
            keep_text(note, json.dumps({"time": time.time(), "reason": reason}))
    return reason


def _fetch(url: str, target: Path, check: Callable[[Path], str | None]) -> str | None:
    """To a temporary name, check, rename: what has the final name is whole and the right file."""
    import urllib.request

    try:
        with keeping(target) as partial:
            # torch.hub's download has no timeout: behind a silent firewall it would wait for ever
            with urllib.request.urlopen(url, timeout=10) as response, partial.open("wb") as file:
                shutil.copyfileobj(response, file, 2**20)
            if wrong := check(partial):
                raise OSError(wrong)
        return None
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        return str(getattr(error, "reason", error)) or type(error).__name__


def _recent_failure(note: Path) -> str | None:
    try:
        failure = json.loads(note.read_text(encoding="utf-8"))
        again = float(failure["time"]) + PATIENCE_S
        if not 0 <= again - time.time() <= PATIENCE_S:  # over, or a clock that was set back
            return None
        return f"not tried again before {time.strftime('%H:%M', time.localtime(again))}: {failure['reason']}"
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
