"""The command line: in this process, in one of its own, or in one that goes on meanwhile; and what it is given."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from unittest import mock

REPOSITORY = Path(__file__).resolve().parents[2]
DEADLINE = 600.0
"""Seconds until a condition is given up for; a busy machine needs some of them."""
SMALL = ("channels=8", "latent_channels=8", "codebook_size=32", "codebook_dim=8", "batch_size=8", "warmup_images=0")
"""Recipe settings under which a cell trains in a second or two."""


@dataclass(frozen=True)
class Answer:
    """What the command line answered."""

    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The JSON objects on stdout, one per line."""
        return [json.loads(line) for line in self.out.splitlines()]


Command = Callable[..., Answer]


def start(arguments: Iterable[object], stderr: IO[str] | int = subprocess.PIPE, **env: str) -> subprocess.Popen[str]:
    """The command line in a process that goes on while the test does."""
    command = [sys.executable, "-m", "vqbench.cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env={**os.environ, **env})


def until(condition: Callable[[], Any], what: str, process: subprocess.Popen[Any] | None = None) -> Any:
    """What `condition` returns as soon as that is true; fails when it never is, or when `process` has ended before."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        if found := condition():
            return found
        assert process is None or process.poll() is None, f"the process ended before {what}"
        time.sleep(0.02)
    raise AssertionError(f"waited {DEADLINE:.0f} s in vain for {what}")


def typed(*words: object, cwd: Path | None = None, **env: str) -> Answer:
    """The command line in this process, which has imported what it needs; it fails after `DEADLINE`."""
    from vqbench.cli.app import _exit_code, app

    def late(*_: object) -> None:
        raise TimeoutError(f"{arguments} took longer than {DEADLINE:.0f} s")

    out, err = io.StringIO(), io.StringIO()
    arguments = [str(word) for word in words]
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(int(DEADLINE))
    try:
        with (
            mock.patch.dict(os.environ, env),
            contextlib.chdir(cwd) if cwd else contextlib.nullcontext(),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            code = _exit_code(lambda: app(args=arguments, standalone_mode=False), arguments)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    if code == 130:  # who runs the tests has interrupted them
        raise KeyboardInterrupt
    return Answer(code, out.getvalue(), err.getvalue())


def settings(*more: str) -> list[str]:
    """`--set` for a small recipe, and `more`."""
    return [part for text in (*SMALL, *more) for part in ("--set", text)]


class Background:
    """The command line, running."""

    def __init__(self, *arguments: object, **env: str) -> None:
        self.process = start(arguments, **env)

    def answer(self) -> Answer:
        out, err = self.process.communicate(timeout=DEADLINE)
        return Answer(self.process.returncode, out, err)
