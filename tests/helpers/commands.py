"""The command line: in this process, in one of its own, or in one that goes on meanwhile; and what it is given."""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
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


_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["vqbench.cli.app", "vqbench.backbone", "mlflow", "mlflow.store.tracking.sqlalchemy_store", "seaborn"]
)


class Running:
    """The command line in a process of its own, as `subprocess.Popen` has it, which goes on while the test does.

    Forked from a process that has imported what a command imports: half of a small command's CPU. Where the imports
    themselves are the subject, or the environment decides them, `subprocess` is the way.
    """

    def __init__(
        self, arguments: Iterable[object], stderr: IO[str] | None = None, cwd: Path | None = None, **env: str
    ) -> None:
        # files and no pipes, which nobody would read meanwhile; closed with this object
        self._out = tempfile.NamedTemporaryFile("r", encoding="utf-8")  # noqa: SIM115
        self._err = stderr or tempfile.NamedTemporaryFile("r", encoding="utf-8")  # noqa: SIM115
        words, wanted = [*map(str, arguments)], {**os.environ, **env}
        asked = (words, self._out.name, self._err.name, cwd or Path.cwd(), wanted)
        self._process = _FORKS.Process(target=_command, args=asked)
        self._process.start()
        atexit.register(self.kill)  # what a failed test leaves waiting would be waited for

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code; raises subprocess.TimeoutExpired where it has none in time."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("vqbench", timeout or 0.0)
        atexit.unregister(self.kill)
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it said on stdout and stderr, once it has ended."""
        self.wait(timeout)
        out, err = (Path(said.name).read_text(encoding="utf-8") for said in (self._out, self._err))
        return out, err

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _command(words: list[str], out: str, err: str, cwd: Path, env: dict[str, str]) -> None:
    """Runs in the fork: the command `vqbench words…` as a process of its own would."""
    from vqbench.cli.app import main

    for path, number in ((out, 1), (err, 2)):
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:0] = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.argv, sys.orig_argv = ["vqbench", *words], [sys.executable, "-m", "vqbench.cli", *words]
    try:
        main()
    finally:
        atexit._run_exitfuncs()  # which processes of `multiprocessing` do not


def until(condition: Callable[[], Any], what: str, process: subprocess.Popen[Any] | Running | None = None) -> Any:
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
        self.process = Running(arguments, **env)

    def answer(self) -> Answer:
        return Answer(self.process.wait(DEADLINE), *self.process.communicate())
