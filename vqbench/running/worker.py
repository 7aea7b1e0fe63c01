"""What runs in the processes of a dask cluster: a job from start to end, and a look at the machine around it."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
from distributed import Status, WorkerPlugin, get_worker

from vqbench.cell.process import BUSY, POLL_SECONDS, STOPPED, CellJob, CellProcess, Ended, Store, stored_end, write_job
from vqbench.errors import VQBenchError
from vqbench.machine.cores import CORES_VARIABLE, cores
from vqbench.machine.gpus import visible_gpus
from vqbench.machine.json_files import read_json, write_json
from vqbench.machine.streams import say
from vqbench.results.cell_files import CURVES, DONE
from vqbench.results.cell_folder import CellFolder
from vqbench.wording import reason_of_library

if TYPE_CHECKING:
    from vqbench.tracking.transfer import Courier

THREADS = "OMP_NUM_THREADS"
CURVES_SECONDS = 5.0
Wanted = Callable[[], bool]


@dataclass(frozen=True)
class Need:
    """What a cell takes of a worker."""

    resources: dict[str, float]
    gpus: int
    """GPUs that it has to itself, where the worker sees or offers some; 0 leaves it what the worker sees."""
    slots_by_host: dict[str, int]
    """Address of a machine → cells that may run on it at the same time: its cores are divided among them."""
    topic: str
    """Under which a worker without the driver's disk tells how its cells get on."""


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
        closes = worker.status in (Status.closing, Status.closing_gracefully, Status.closed)  # its scheduler is gone
        return task is not None and task.state != "cancelled" and not closes

    threads = str(_threads(worker, need))
    environment = {**_of_dask(worker), THREADS: threads, CORES_VARIABLE: threads, **job.environment}
    job = replace(job, environment=environment)
    if job.store is None:
        return _run(job, need, wanted)
    try:
        return _run_far_from_home(job, job.store, need, wanted, lambda message: worker.log_event(need.topic, message))
    except Exception as error:  # dask logs what is raised here, and MLflow's errors hold its address
        why = f"{type(error).__name__}: {reason_of_library(error, job.store.tracking_uri)}"
        raise VQBenchError(why, "look at the MLflow server; the same command then goes on") from None


def _run(job: CellJob, need: Need, wanted: Wanted, meanwhile: Callable[[], None] = lambda: None) -> Ended:
    """Run a job whose folder is at hand; `meanwhile` is called several times a second."""
    if (known := stored_end(job)) is not None:  # a worker that died after its cell's end had no time to say so
        return known
    process = CellProcess(job, need.gpus if need.resources.get("GPU") or visible_gpus() else 0)
    try:
        while (end := process.poll()) is None and wanted():
            meanwhile()
            time.sleep(POLL_SECONDS)
    finally:
        process.stop()
    return end or Ended(STOPPED)


def _run_far_from_home(
    job: CellJob, store: Store, need: Need, wanted: Wanted, tell: Callable[[dict[str, Any]], None]
) -> Ended:
    """Run a job in a folder of this machine: its checkpoint is fetched, what comes of it is sent.

    Raises what the store raises when it stays away; what could not be sent is sent when the job comes here again.
    """
    from vqbench.tracking.transfer import scratch

    home = CellFolder(scratch(job.folder))
    with _alone(home.path.with_name(f"{home.path.name}.lock"), wanted) as alone:
        return _attempt(job, home, store, need, wanted, tell) if alone else Ended(STOPPED)


@contextlib.contextmanager
def _alone(lock: Path, wanted: Wanted) -> Iterator[bool]:
    """Whether we hold `lock`: an earlier attempt on this machine may still be sending; False when nobody wants it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a", encoding="utf-8") as handle:
        while wanted():
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(POLL_SECONDS)
                continue
            yield True
            return
        yield False


def _attempt(
    job: CellJob,
    home: CellFolder,
    store: Store,
    need: Need,
    wanted: Wanted,
    tell: Callable[[dict[str, Any]], None],
) -> Ended:
    from vqbench.tracking.transfer import AWAY, Courier, patiently

    here = replace(job, folder=home.path)
    known = stored_end(here) if (read_json(home.path / AWAY) or {}).get("run_id") == store.run_id else None
    if known is not None and known.state == DONE:  # it was finished here, and the store was away then
        courier = patiently(lambda: Courier(store, home))
        patiently(courier.newest)
    else:
        shutil.rmtree(home.path, ignore_errors=True)
        home.path.mkdir(parents=True)
        write_json(home.path / AWAY, {"run_id": store.run_id})
        courier = patiently(lambda: Courier(store, home))
        patiently(courier.fetch_checkpoint)
        if stored_end(here) is None:
            for lost in write_job(here, anew=False):
                print(lost, flush=True)
    report = _Reporter(home, job.name, courier, tell)
    next_try = 0.0

    def meanwhile() -> None:
        nonlocal next_try
        report()
        if time.monotonic() > next_try:
            try:
                courier.send_checkpoint()
            except Exception as error:  # the store is away: what is newest later will be sent then
                why = reason_of_library(error, store.tracking_uri)
                say(f"{job.name}: the checkpoint could not be sent: {why}")
                next_try = time.monotonic() + 15

    end = _run(here, need, wanted, meanwhile)
    if end.state == BUSY:  # somebody else's process has this folder: nothing in it is ours to send, or to delete
        return end
    if end.state == STOPPED:
        with contextlib.suppress(Exception):
            courier.send_checkpoint()
    else:
        patiently(courier.send_result)
    shutil.rmtree(home.path, ignore_errors=True)
    return end


class _Reporter:
    """Tells the driver how a cell far away gets on.

    Its status each second, its curves every few seconds, and at once that another checkpoint is in the store.
    """

    def __init__(self, folder: CellFolder, name: str, courier: Courier, tell: Callable[[dict[str, Any]], None]) -> None:
        self._folder, self._name, self._courier, self._tell = folder, name, courier, tell
        self._told = self._told_curves = 0.0
        self._told_serial = courier.serial

    def __call__(self) -> None:
        now, serial = time.monotonic(), self._courier.serial
        if now - self._told < 1 and serial == self._told_serial:
            return
        self._told, self._told_serial = now, serial
        message = {"cell": self._name, "status": self._folder.status, "serial": serial}
        if now - self._told_curves > CURVES_SECONDS:
            with contextlib.suppress(OSError):
                message["curves"] = (self._folder.path / CURVES).read_text(encoding="utf-8", errors="replace")
                self._told_curves = now
        self._tell(message)


def _of_dask(worker: Any) -> dict[str, None]:
    """Variables that dask has set for its worker and that a cell does without.

    They are meant for a worker that computes itself: with its MALLOC_TRIM_THRESHOLD_ a training step would give its
    memory back and fetch it again, which halves its speed on CPUs, and libraries of algebra would keep to one thread.
    """
    if worker.nanny is None:
        return {}
    preset = dask.config.get("distributed.nanny.pre-spawn-environ", {})
    return {name: None for name, value in preset.items() if os.environ.get(name) == str(value)}


def _threads(worker: Any, need: Need) -> int:
    host = worker.address.rpartition("://")[2].rpartition(":")[0]
    return max(1, cores() // max(1, need.slots_by_host.get(host, worker.state.nthreads)))


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
