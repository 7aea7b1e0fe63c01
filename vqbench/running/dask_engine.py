"""Jobs as tasks of a dask cluster.

A worker is a process that starts and watches cells' processes, as the driver does when it works alone. A cell's
process dies with its worker, and dask gives the job to another one, which goes on from the checkpoint.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from distributed import Client, LocalCluster

from vqbench.cell.process import BUSY, POLL_SECONDS, STOPPED, CellJob, Ended, Store, stored_end, write_job
from vqbench.cell.ranks import STOP_SECONDS
from vqbench.errors import VQBenchError
from vqbench.machine.atomic import write_text_atomically
from vqbench.machine.json_files import read_json, write_json
from vqbench.machine.lease import CellBusyError
from vqbench.results.cell_files import CURVES, DONE, FAILED, STATUS
from vqbench.results.cell_folder import CellFolder, failure
from vqbench.running.worker import THREADS, Need, run_on_worker
from vqbench.tracking.transfer import AWAY, PATIENCE_SECONDS, RESULT, Courier, patiently
from vqbench.wording import counted, masked, reason_of_library

ASK_SECONDS, WATCH_SECONDS, LOOKS = 1.0, 5.0, 2
_START_SECONDS = 60.0  # that a store may be away before a job is not started
_STORE_HINT = "look at the MLflow server; the same command then goes on"


class DaskEngine:
    """Jobs as tasks of a dask cluster. Implements vqbench.running.engine.Engine."""

    def __init__(
        self,
        client: Client,
        resources: dict[str, float],
        gpus: int,
        cluster: LocalCluster | None = None,
        shares_disk: bool = True,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._say, self._looked, self._empty_looks = say, time.monotonic(), 0
        self._known: list[dict[str, Any]] = []  # workers, when the scheduler last answered
        self._asked = -math.inf
        self._client, self._resources, self._gpus, self._cluster = client, resources, gpus, cluster
        self.shares_disk = shares_disk
        self._topic = f"vqbench-{uuid.uuid4().hex[:8]}"
        if not shares_disk:
            client.subscribe_topic(self._topic, self._hear)
        self._held: dict[str, contextlib.ExitStack] = {}  # folders of jobs that run where their lock does not reach
        self._futures: dict[str, Any] = {}
        self._jobs: dict[str, CellJob] = {}
        self._trained: dict[str, float] = {}  # how far a job was when it was handed to the scheduler
        self._serials: dict[str, int] = {}  # number of the newest checkpoint that a far worker has sent
        self._over: list[tuple[str, Ended]] = []

    def _workers(self) -> list[dict[str, Any]]:
        """Asked of the scheduler, once a second: the client's own copy is, for moments, one without workers."""
        if time.monotonic() - self._asked < ASK_SECONDS:
            return self._known
        scheduler: Any = self._client.scheduler
        with contextlib.suppress(OSError, TimeoutError):  # what it last said, then; a lost one is noticed by its tasks
            asked = self._client.sync(scheduler.identity, n_workers=-1, callback_timeout=WATCH_SECONDS)
            self._known = list(asked["workers"].values())
        self._asked = time.monotonic()
        return self._known

    @property
    def slots(self) -> int:
        """Cells that the workers can run now; at least one, so that a cluster that grows on demand has a demand."""
        return max(1, sum(room(worker, self._resources) for worker in self._workers()))

    def start(self, job: CellJob) -> None:
        """Hand a job to the scheduler, which gives it to a worker with room."""
        if job.store is not None and job.name not in self._held and not self._prepare_transfer(job, job.store):
            return
        self._trained[job.name] = self._progress(job)
        by_host: Counter[str] = Counter()
        for worker in self._workers():
            by_host[worker["host"]] += room(worker, self._resources)
        own = {THREADS: os.environ[THREADS]} if os.environ.get(THREADS) else {}
        job = replace(job, environment={**own, **job.environment})
        key = f"{job.name}-{uuid.uuid4().hex[:8]}"
        need = Need(self._resources, self._gpus, dict(by_host), self._topic)
        self._jobs[job.name] = job
        self._futures[job.name] = self._client.submit(
            run_on_worker, job, need, key, key=key, resources=self._resources, pure=False
        )

    def _prepare_transfer(self, job: CellJob, store: Store) -> bool:
        """Hold the folder in the place of the far process, and send the checkpoint that it may go on from.

        False where there is nothing to run: a result that an earlier command could not fetch is brought home.
        """
        held = self._held[job.name] = contextlib.ExitStack()
        try:
            held.enter_context(CellFolder(job.folder).locked())
            if not patiently(lambda: self._settle_store(job, store), _START_SECONDS):
                return True
            end = Ended(DONE)
        except CellBusyError:
            end = Ended(BUSY)
        except Exception as error:
            end = self._without_store(job, store, error)
        self._let_go(job.name)
        self._over.append((job.name, end))
        return False

    def _let_go(self, name: str) -> None:
        """Give back the folder of a job that ran, or was to run, where its lock does not reach."""
        if name in self._held:
            self._held.pop(name).close()

    def _without_store(self, job: CellJob, store: Store, error: Exception) -> Ended:
        """The end of a job whose store stays away."""
        self._let_go(job.name)
        return _write_failure(job, type(error).__name__, reason_of_library(error, store.tracking_uri), _STORE_HINT)

    def _settle_store(self, job: CellJob, store: Store) -> bool:
        """Have the store hold what a far process is to go on from; True where the cell is found finished there."""
        folder, serial = CellFolder(job.folder), 0
        is_away = (read_json(folder.path / AWAY) or {}).get("run_id") == store.run_id
        if is_away or folder.can_go_on:
            courier = Courier(store, folder)
            newest = courier.newest()
            if is_away and newest == RESULT and courier.fetch_result():
                is_away = False
                if stored_end(job) == Ended(DONE):
                    (folder.path / AWAY).unlink()
                    courier.clear()
                    return True
                for lost in write_job(job, anew=False):  # it failed, and is tried again, as on a shared disk
                    self._say(lost)
                courier.clear()
            if folder.can_go_on and not (is_away and newest):  # what is here is as new as what the store still has
                courier.clear()
                courier.send_checkpoint()
            serial = courier.serial
        self._serials[job.name] = serial
        write_json(folder.path / AWAY, {"run_id": store.run_id})
        return False

    def _progress(self, job: CellJob) -> float:
        """How far a job is known to be; more than before if it has got on."""
        return self._serials.get(job.name, 0) if job.store is not None else _last_checkpoint(job)

    def _hear(self, event: tuple[float, dict[str, Any]]) -> None:
        """A word from a worker without our disk; runs in the client's thread."""
        _, message = event
        name = message["cell"]
        self._serials[name] = max(self._serials.get(name, 0), message.get("serial", 0))
        job = self._jobs.get(name)
        if job is None or job.name not in self._futures:
            return
        with contextlib.suppress(OSError):
            write_json(job.folder / STATUS, message["status"])
            if "curves" in message:
                write_text_atomically(job.folder / CURVES, message["curves"])

    def _bring_home(self, job: CellJob, store: Store, end: Ended) -> Ended:
        """Fetch what a job that ran elsewhere left."""

        def waiting(error: Exception) -> None:
            minutes = round(PATIENCE_SECONDS / 60)
            self._say(f"{job.name} has ended, and {masked(store.tracking_uri)} does not answer to hand out what it "
                      f"left ({type(error).__name__}); it is asked again for {minutes} minutes")  # fmt: skip

        try:
            courier = patiently(lambda: Courier(store, CellFolder(job.folder)), waiting=waiting)
            if not patiently(courier.fetch_result, waiting=waiting):
                place = masked(store.tracking_uri)
                raise VQBenchError(f"what {job.name} left did not arrive whole at {place}", _STORE_HINT)
        except Exception as error:
            return self._without_store(job, store, error)
        (job.folder / AWAY).unlink(missing_ok=True)
        courier.clear()
        self._let_go(job.name)
        return end

    def ended(self) -> list[tuple[str, Ended]]:
        """Look once, after a moment. Raises VQBenchError when the scheduler is gone."""
        if not self._over:
            time.sleep(POLL_SECONDS)
        self._watch_workers()
        for name, future in list(self._futures.items()):
            if future.status == "pending":
                continue
            del self._futures[name]
            if (end := self._end_of(name, future)) is None:
                self.start(self._jobs[name])
            else:
                self._over.append((name, end))
        over, self._over = self._over, []
        return over

    def _watch_workers(self) -> None:
        """Say once when no worker is left that could run a cell: dask waits for one in silence, for ever."""
        if self._cluster is not None or not self._futures or time.monotonic() - self._looked < WATCH_SECONDS:
            return
        before, workers = self._empty_looks, self._workers()
        self._looked = time.monotonic()
        self._empty_looks = 0 if any(room(worker, self._resources) for worker in workers) else before + 1
        if self._empty_looks == LOOKS:  # one may be on its way
            offering = f" that offers {spelled(self._resources)}" if self._resources else ""
            waiting = counted(len(self._futures), "cell")
            self._say(f"no worker{offering} is left in the cluster; {waiting} will go on as soon as one joins it")
        elif before >= LOOKS and not self._empty_looks:
            self._say("the cluster has a worker again")

    def _end_of(self, name: str, future: Any) -> Ended | None:
        """How a job ended; None if it did not, but its worker, and it has to be given to another one."""
        job = self._jobs[name]
        if future.status == "finished":
            end: Ended = future.result()
            if end.state == STOPPED:  # not by us: its worker was told to close
                return None
            if job.store is None:
                return end
            if end.state == BUSY:
                self._let_go(name)
                return end
            return self._bring_home(job, job.store, end)
        if self._client.status != "running" or future.status in ("lost", "cancelled"):
            raise VQBenchError(
                "the dask scheduler is gone", "start it again; the same command then goes on with what is unfinished"
            )
        error = future.exception()
        # dask gives up a job with the fourth worker that dies; one that gets on each time may take many
        if type(error).__name__ == "KilledWorker" and self._progress(job) > self._trained[name]:
            return None
        self._let_go(name)
        kind, message = type(error).__name__, reason_of_library(error)
        if kind == "KilledWorker":
            message = "the workers that ran it died, several in a row; out of memory is the usual reason"
        hint = f"look at the workers' logs and {CellFolder(job.folder).log}"
        return _write_failure(job, kind, message, hint)

    def stop(self, name: str) -> None:
        """Nobody wants the job any more: its worker sees that and ends its process."""
        future = self._futures.pop(name, None)
        if future is not None:
            future.cancel()
            self._let_go(name)
            self._over.append((name, Ended(STOPPED)))

    def close(self) -> None:
        """Let go of all jobs; a cluster that was started for them ends, and its cells with it."""
        for future in self._futures.values():
            future.cancel()
        self._futures.clear()
        for held in self._held.values():
            held.close()
        self._client.close()
        if self._cluster is not None:
            with contextlib.suppress(TimeoutError):  # a worker is killed when four fifths are over, its cell with it
                self._cluster.close(timeout=2 * STOP_SECONDS)


def _last_checkpoint(job: CellJob) -> float:
    """When it was written; 0 where there is none."""
    try:
        return CellFolder(job.folder).checkpoint.stat().st_mtime
    except OSError:
        return 0.0


def _write_failure(job: CellJob, kind: str, message: str, hint: str) -> Ended:
    folder = CellFolder(job.folder)
    stage = str(folder.status.get("stage", "start"))
    try:
        with folder.locked():
            folder.write_failure(kind, message, hint, stage, time.time())
    except CellBusyError:
        return Ended(BUSY)
    except OSError:
        return Ended(FAILED, failure(kind, message, hint, stage))
    return Ended(FAILED)


def spelled(resources: dict[str, float]) -> str:
    """`GPU=1, MEM=40`, or `nothing`."""
    return ", ".join(f"{name}={amount:g}" for name, amount in resources.items()) or "nothing"


def room(worker: dict[str, Any], resources: dict[str, float]) -> int:
    """Cells that a worker can run at the same time: by its threads and by what it declares."""
    offered = worker.get("resources") or {}
    by_resource = [int(offered.get(name, 0) // amount) for name, amount in resources.items()]
    return min([int(worker["nthreads"]), *by_resource])
