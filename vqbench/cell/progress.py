"""What the process of a cell says of itself while it works, and that it ends with the one that started it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time

from vqbench.machine.json_files import write_json
from vqbench.results.cell_files import STATUS
from vqbench.results.cell_folder import CellFolder

PARENT_VARIABLE = "VQBENCH_PARENT"
"""Process id of whoever started a cell's process."""
RANK_VARIABLE = "LOCAL_RANK"
"""Which of a cell's processes this is, where it has one for each of several devices."""


class Progress:
    """status.json: stage, images and rate, at most twice a second."""

    def __init__(self, folder: CellFolder) -> None:
        self.path = folder.path / STATUS
        self.stage = "start"
        self._written = 0.0
        self._said: list[str] = []

    def enter(self, stage: str) -> None:
        """Begin a stage: data, train, evaluate."""
        self.stage = stage
        self._write(0, 0, 0.0)
        print(f"{time.strftime('%H:%M:%S')} {stage}", flush=True)

    def __call__(self, done: int, total: int, rate: float = 0.0) -> None:
        """`done` of `total` images at `rate` images/s."""
        if time.monotonic() - self._written > 0.5 or done >= total:
            self._write(done, total, rate)

    def say(self, text: str) -> None:
        """A sentence for the log, and for whoever watches the command: it stands in status.json from now on."""
        print(text, flush=True)
        self._said.append(text)
        self._write(0, 0, 0.0)

    def _write(self, done: int, total: int, rate: float) -> None:
        if is_secondary():
            return
        self._written = time.monotonic()
        state = {
            "stage": self.stage,
            "images": done,
            "total": total,
            "images_per_s": round(rate, 2),
            "pid": os.getpid(),
            **({"says": self._said} if self._said else {}),
        }
        write_json(self.path, state)


def is_secondary() -> bool:
    """Whether this process serves a second or later device; it writes nothing but what it fails of."""
    return int(os.environ.get(RANK_VARIABLE, "0")) > 0


def die_with_parent() -> None:
    """Ask Linux to kill this process when the one that started it is gone, so that no cell trains unseen."""
    with contextlib.suppress(OSError, AttributeError):
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
    started_by = os.environ.get(PARENT_VARIABLE)
    if started_by is not None and os.getppid() != int(started_by):
        os._exit(1)  # it was gone before we could ask
