"""What runs in the processes of a dask cluster: a job from start to end, and a look at the machine around it."""

from __future__ import annotations

import importlib.metadata
import os
import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distributed import WorkerPlugin, get_worker

from vqbench.gpus import claim_gpus, visible_gpus
from vqbench.launch import POLL_SECONDS, STOPPED, CellJob, CellProcess, Ended, stored_end

THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True)
class Need:
    """What a cell takes of a worker."""

    resources: dict[str, float]
    gpus: int
    """GPUs that its process may see; 0 leaves it what the worker sees."""
    slots_by_host: dict[str, int]
    """Address of a machine → cells that may run on it at the same time: its cores are divided among them."""


class OwnGroup(WorkerPlugin):
    """Takes a worker out of the terminal's process group: Ctrl-C is for the driver, which ends the cells in order."""

    name = "vqbench-own-group"

    def setup(self, worker: Any) -> None:
        """Runs in the worker when it starts."""
        if os.getpgid(0) != os.getpid():
            os.setpgid(0, 0)


def run_on_worker(job: CellJob, need: Need, key: str) -> Ended:
    """Run a job in a worker. It ends early when nobody wants it any more: stopped, or its driver is gone."""
    worker = get_worker()

    def wanted() -> bool:
        task = worker.state.tasks.get(key)
        return task is not None and task.state != "cancelled"

    if (known := stored_end(job)) is not None:  # a worker that died after its cell's end had no time to say so
        return known
    environment = {THREADS: str(_threads(worker, need)), **job.environment}
    with claim_gpus(need.gpus, visible_gpus() if need.gpus else [], wanted) as gpus:
        if need.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        if not wanted():
            return Ended(STOPPED)
        process = CellProcess(replace(job, environment=environment))
        try:
            while (end := process.poll()) is None and wanted():
                time.sleep(POLL_SECONDS)
        except BaseException:
            process.stop()
            raise
        if end is None:
            process.stop()
            return Ended(STOPPED)
        return end


def _threads(worker: Any, need: Need) -> int:
    host = worker.address.rpartition("://")[2].rpartition(":")[0]
    return max(1, (os.cpu_count() or 1) // max(1, need.slots_by_host.get(host, worker.state.nthreads)))


@dataclass(frozen=True)
class Surroundings:
    """What a worker of a running cluster sees."""

    host: str
    sees_runs: bool
    vqbench: str | None
    torch: str | None
    gpus: int


def look_around(probe: Path) -> Surroundings:
    """Runs in a worker: `probe` is a file that the driver made in the runs directory."""

    def version(name: str) -> str | None:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None

    return Surroundings(
        socket.gethostname(), probe.is_file(), version("vqbench"), version("torch"), len(visible_gpus())
    )
