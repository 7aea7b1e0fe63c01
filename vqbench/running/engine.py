"""Where the processes of cells run: here, one after the other, or on the workers of a dask cluster (cluster.py)."""

from __future__ import annotations

import time
from collections import deque
from typing import Protocol

from vqbench.cell.process import POLL_SECONDS, STOPPED, CellJob, CellProcess, Ended
from vqbench.errors import UsageError
from vqbench.machine.gpus import visible_gpus
from vqbench.planning.request import RunRequest
from vqbench.planning.view import View


class Engine(Protocol):
    """Runs jobs whose folders are ready. A job that is under way is known by its name."""

    shares_disk: bool
    """Whether jobs write into their folders; otherwise they leave their files in a Store."""

    @property
    def slots(self) -> int:
        """How many jobs run at the same time."""

    def start(self, job: CellJob) -> None:
        """Run a job as soon as there is a slot for it."""

    def ended(self) -> list[tuple[str, Ended]]:
        """Jobs that have ended since the last call, by name; waits for one, but not for long."""

    def stop(self, name: str) -> None:
        """End a job in good order; its checkpoint stays."""

    def close(self) -> None:
        """Stop whatever runs and give back what was taken."""


class SerialEngine:
    """One cell at a time, its processes children of this one, with `gpus` of this machine's GPUs to itself."""

    slots = 1
    shares_disk = True

    def __init__(self, gpus: int = 0) -> None:
        self._gpus = gpus
        self._waiting: deque[CellJob] = deque()
        self._running: CellProcess | None = None
        self._over: list[tuple[str, Ended]] = []

    def start(self, job: CellJob) -> None:
        """Start its process, or queue it behind the one that runs."""
        self._waiting.append(job)
        self._go_on()

    def _go_on(self) -> None:
        while self._running is None and self._waiting:
            self._running = CellProcess(self._waiting.popleft(), self._gpus)
            self._look()

    def _look(self) -> None:
        if self._running is not None and (end := self._running.poll()) is not None:
            self._over.append((self._running.job.name, end))
            self._running = None

    def ended(self) -> list[tuple[str, Ended]]:
        """Look once, after a moment."""
        if self._running is not None and not self._over:
            time.sleep(POLL_SECONDS)
        self._look()
        self._go_on()
        over, self._over = self._over, []
        return over

    def stop(self, name: str) -> None:
        """End the process of a job, or forget that it waits."""
        if self._running is not None and self._running.job.name == name:
            self._running.stop()
            self._running = None
        self._waiting = deque(job for job in self._waiting if job.name != name)
        self._over.append((name, Ended(STOPPED)))
        self._go_on()

    def close(self) -> None:
        """End the process that runs."""
        self._waiting.clear()
        if self._running is not None:
            self._running.stop()
            self._running = None


def open_engine(request: RunRequest, view: View) -> Engine:
    """The engine that a request asks for. Raises UsageError where it cannot be had."""
    if request.scheduler or request.workers > 1:
        from vqbench.running.cluster import join_cluster, local_cluster

        return join_cluster(request, view) if request.scheduler else local_cluster(request)
    return SerialEngine(gpus_of_a_cell(request))


def gpus_of_a_cell(request: RunRequest) -> int:
    """How many of this machine's GPUs a cell has to itself; 0 where there are none, or none are to be claimed.

    Raises UsageError where there are GPUs, but fewer than a cell asks for.
    """
    present, devices = len(visible_gpus()), request.devices
    if 0 < present < devices:
        raise UsageError(f"--devices {devices}, but this machine has {present}", f"choose at most --devices {present}")
    return devices if present and request.resources != "none" else 0
