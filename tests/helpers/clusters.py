"""Clusters of dask: real schedulers and workers, and clients whose tasks end as a test says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from helpers.commands import settings, until
from helpers.plugins import FAULTY
from vqbench.cell.process import CellJob, Ended
from vqbench.results.cell_folder import CellFolder


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody has asked after yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Cluster:
    """A dask scheduler and two workers, each a process of its own as `dask scheduler` and `dask worker` start them."""

    def __init__(self, folder: Path, *around_workers: str) -> None:
        self.file, self.folder = folder / "scheduler.json", folder
        self.processes = [self._start("scheduler", "--port", "0")]
        until(self.file.exists, "the scheduler's file")
        self.workers: list[subprocess.Popen[bytes]] = []
        for _ in range(2):
            self.start_worker(*around_workers)

    def start_worker(self, *around: str) -> None:
        name = str(len(self.workers))
        self.workers.append(self._start("worker", "--nthreads", "1", "--no-nanny", "--name", name, around=around))
        self.processes.append(self.workers[-1])

    def _start(self, kind: str, *more: str, around: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        command = [*around, sys.executable, "-m", f"distributed.cli.dask_{kind}", "--scheduler-file", str(self.file)]
        # without an address of its own, dask's HTTP server is on all interfaces, dashboard or not
        command += ["--host", "127.0.0.1", "--no-dashboard", "--dashboard-address", "127.0.0.1:0", *more]
        with (self.folder / f"{kind}.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def one_run(images: Path, runs: Path, *more: object) -> list[Any]:
    return [
        "run", "--plugin", FAULTY, "--dataset", f"folder:{images}", "--metrics", "psnr,usage", "--runs", runs,
        "--name", "x", *settings("checkpoint_images=80"), "--json", *more,
    ]  # fmt: skip


def starts(cell: Path) -> int:
    """How often a cell's training was started."""
    return sum(line.endswith(" train") for line in (cell / "log.txt").read_text().splitlines())


def cells(runs: Path) -> list[Path]:
    return sorted((runs / "x" / "cells").glob("*"))


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def running(runs: Path) -> dict[str, int]:
    """Cell → the process that trains it."""
    found = {}
    for cell in cells(runs):
        try:
            pid = int(json.loads((cell / "status.json").read_text())["pid"])
        except (OSError, ValueError, KeyError):
            continue
        if is_alive(pid):
            found[cell.name] = pid
    return found


class OddCluster:
    """A client of a cluster whose tasks come to the ends that it is given, one after the other."""

    status = "running"

    def __init__(self, *ends: Ended | BaseException) -> None:
        self.ends, self.submitted = list(ends), 0

    scheduler = SimpleNamespace(identity=None)

    def sync(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {"workers": {"a": {"host": "h", "nthreads": 1, "resources": {}}}}

    def submit(self, *_: Any, **__: Any) -> Any:
        self.submitted += 1
        end = self.ends.pop(0)
        return SimpleNamespace(
            status="error" if isinstance(end, BaseException) else "finished",
            result=lambda: end,
            exception=lambda: end,
        )


class FarCluster(OddCluster):
    """The same, of workers that do not see our disk; before each end they say which checkpoints they have sent."""

    def __init__(self, *ends: Ended | BaseException, serials: Iterable[int] = ()) -> None:
        super().__init__(*ends)
        self.serials = list(serials)
        self.stores: list[str] = []
        self.results: list[Any] = []  # that were in the folder of a job when it was handed over

    def subscribe_topic(self, _: str, hear: Callable[[Any], None]) -> None:
        self.hear = hear

    def close(self) -> None:
        pass

    def submit(self, _: Any, job: CellJob, *__: Any, **___: Any) -> Any:
        assert job.store is not None
        self.stores.append(job.store.run_id)
        self.results.append(CellFolder(job.folder).result)
        future = super().submit()
        if self.serials:
            self.hear((0.0, {"cell": job.name, "status": {}, "serial": self.serials.pop(0)}))
        return future


class KilledWorker(Exception):  # noqa: N818, dask's name
    """As dask gives up a task whose workers died."""
