"""Cells on the workers of a dask cluster: one that is started here, or one that runs already.

A worker is a process that starts and watches cells' processes, as the driver does when it works alone. A cell's
process dies with its worker, and dask gives the job to another one, which goes on from the checkpoint.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import time
import uuid
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed import Client, LocalCluster

from vqbench.errors import UsageError, VQBenchError
from vqbench.gpus import visible_gpus
from vqbench.launch import BUSY, POLL_SECONDS, STOPPED, CellJob, Ended
from vqbench.lease import CellBusyError
from vqbench.plan import RunRequest
from vqbench.results import FAILED, CellFolder
from vqbench.worker import THREADS, Need, OwnGroup, Surroundings, look_around, run_on_worker

if TYPE_CHECKING:
    from vqbench.view import View

CONNECT_SECONDS = 10
WORKER_SECONDS = 60  # that a cluster without workers is given to get one


class DaskEngine:
    """Jobs as tasks of a dask cluster. Implements vqbench.engine.Engine."""

    def __init__(self, client: Client, resources: dict[str, float], gpus: int, cluster: LocalCluster | None) -> None:
        self._client, self._resources, self._gpus, self._cluster = client, resources, gpus, cluster
        self._futures: dict[str, Any] = {}
        self._jobs: dict[str, CellJob] = {}
        self._over: list[tuple[str, Ended]] = []

    def _workers(self) -> list[dict[str, Any]]:
        return list(self._client.scheduler_info(n_workers=-1)["workers"].values())

    @property
    def slots(self) -> int:
        """Cells that the workers can run now; at least one, so that a cluster that grows on demand has a demand."""
        return max(1, sum(_room(worker, self._resources) for worker in self._workers()))

    def start(self, job: CellJob) -> None:
        """Hand a job to the scheduler, which gives it to a worker with room."""
        by_host: Counter[str] = Counter()
        for worker in self._workers():
            by_host[worker["host"]] += _room(worker, self._resources)
        own = {THREADS: os.environ[THREADS]} if THREADS in os.environ else {}
        job = replace(job, environment={**own, **job.environment})
        key = f"{job.name}-{uuid.uuid4().hex[:8]}"
        need = Need(self._resources, self._gpus, dict(by_host))
        self._jobs[job.name] = job
        self._futures[job.name] = self._client.submit(
            run_on_worker, job, need, key, key=key, resources=self._resources, pure=False
        )

    def ended(self) -> list[tuple[str, Ended]]:
        """Look once, after a moment. Raises VQBenchError when the scheduler is gone."""
        if not self._over:
            time.sleep(POLL_SECONDS)
        for name, future in list(self._futures.items()):
            if future.status == "pending":
                continue
            del self._futures[name]
            self._over.append((name, self._end_of(name, future)))
        over, self._over = self._over, []
        return over

    def _end_of(self, name: str, future: Any) -> Ended:
        if future.status == "finished":
            end: Ended = future.result()
            return end
        if self._client.status != "running" or future.status in ("lost", "cancelled"):
            raise VQBenchError(
                "the dask scheduler is gone", "start it again; the same command then goes on with what is unfinished"
            )
        error = future.exception()
        kind, message = type(error).__name__, str(error).strip() or type(error).__name__
        if kind == "KilledWorker":
            message = "the workers that ran it died, several in a row; out of memory is the usual reason"
        hint = f"look at the workers' logs and {CellFolder(self._jobs[name].folder).log}"
        return _write_failure(self._jobs[name], kind, message.splitlines()[0], hint)

    def stop(self, name: str) -> None:
        """Nobody wants the job any more: its worker sees that and ends its process."""
        future = self._futures.pop(name, None)
        if future is not None:
            future.cancel()
            self._over.append((name, Ended(STOPPED)))

    def close(self) -> None:
        """Let go of all jobs; a cluster that was started for them ends, and its cells with it."""
        for future in self._futures.values():
            future.cancel()
        self._futures.clear()
        self._client.close()
        if self._cluster is not None:
            self._cluster.close(timeout=5)


def _write_failure(job: CellJob, kind: str, message: str, hint: str) -> Ended:
    folder = CellFolder(job.folder)
    stage = str(folder.status.get("stage", "start"))
    try:
        with folder.locked():
            folder.write_failure(kind, message, hint, stage, time.time())
    except CellBusyError:
        return Ended(BUSY)
    except OSError:
        return Ended(FAILED, {"type": kind, "message": message, "hint": hint, "stage": stage, "log_tail": ""})
    return Ended(FAILED)


def _room(worker: dict[str, Any], resources: dict[str, float]) -> int:
    """Cells that a worker can run at the same time: by its threads and by what it declares."""
    offered = worker.get("resources") or {}
    by_resource = [int(offered.get(name, 0) // amount) for name, amount in resources.items()]
    return min([int(worker["nthreads"]), *by_resource])


def _quiet() -> None:
    for name in ("distributed", "distributed.scheduler", "distributed.worker", "distributed.nanny", "tornado"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def local_cluster(request: RunRequest) -> DaskEngine:
    """An engine with `request.workers` workers on this machine, each with GPUs of its own where there are some.

    Raises UsageError for more workers than GPUs.
    """
    present = len(visible_gpus())
    if 0 < present < request.workers * request.devices:
        each = f" of {request.devices} GPUs each" if request.devices > 1 else ""
        raise UsageError(
            f"--workers {request.workers}{each}, but this machine has {present} GPUs",
            f"choose at most --workers {max(1, present // request.devices)}",
        )
    _quiet()
    resources = {"GPU": float(request.devices)} if present else {}
    cluster = LocalCluster(
        n_workers=request.workers,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address=None,
        silence_logs=logging.CRITICAL,
        resources=resources,
        memory_limit=0,  # a worker holds next to nothing; its cells are processes of their own
    )
    client = Client(cluster)
    client.register_plugin(OwnGroup())
    return DaskEngine(client, resources, request.devices if present else 0, cluster)


def join_cluster(request: RunRequest, view: View) -> DaskEngine:
    """An engine on a cluster that runs already, by the address or the file of its scheduler.

    Raises UsageError where it cannot be reached, has no worker, has workers that do not see the runs directory or
    have another vqbench, or offers less than a cell needs.
    """
    _quiet()
    client = _connect(request.scheduler)
    try:
        _wait_for_a_worker(client, request.scheduler, view)
        found = _surroundings(client, request.runs.absolute())
        _refuse_strangers(found, request)
        workers = list(client.scheduler_info(n_workers=-1)["workers"].values())
        resources = _resources(request, workers, found, view)
        return DaskEngine(client, resources, int(resources.get("GPU", 0)), None)
    except BaseException:
        client.close()
        raise


def _connect(scheduler: str) -> Client:
    is_address = "://" in scheduler or (":" in scheduler and not Path(scheduler).exists())
    if not is_address and not Path(scheduler).is_file():
        raise UsageError(
            f"there is no scheduler file {scheduler}",
            "start one: dask scheduler --scheduler-file FILE, or give its address: --scheduler tcp://HOST:8786",
        )
    try:
        if is_address:
            return Client(scheduler, timeout=CONNECT_SECONDS, name="vqbench")
        return Client(scheduler_file=scheduler, timeout=CONNECT_SECONDS, name="vqbench")
    except (OSError, ValueError, TimeoutError) as error:
        raise UsageError(
            f"no dask scheduler answers at {scheduler}: {' '.join(str(error).split())[:160]}",
            "is it running? dask scheduler --host HOST, and dask worker ADDRESS on each machine",
        ) from None


def _wait_for_a_worker(client: Client, scheduler: str, view: View) -> None:
    if client.scheduler_info(n_workers=-1)["workers"]:
        return
    view.note(f"the cluster at {scheduler} has no workers yet; waiting {WORKER_SECONDS} s for one")
    try:
        client.wait_for_workers(1, timeout=WORKER_SECONDS)
    except TimeoutError:
        raise UsageError(
            f"the cluster at {scheduler} has no workers", f"start some: dask worker {scheduler} --nthreads 1"
        ) from None


def _surroundings(client: Client, runs: Path) -> dict[str, Surroundings]:
    runs.mkdir(parents=True, exist_ok=True)
    probe = runs / f".seen-{uuid.uuid4().hex[:8]}"
    probe.touch()
    try:
        found: dict[str, Surroundings] = client.run(look_around, probe)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"a worker has no {error.name}", "install the same vqbench in the environment of every worker"
        ) from None
    finally:
        probe.unlink()
    return found


def _refuse_strangers(found: dict[str, Surroundings], request: RunRequest) -> None:
    ours = importlib.metadata.version("vqbench")
    for address, worker in found.items():
        if worker.vqbench != ours:
            raise UsageError(
                f"worker {address} on {worker.host} has vqbench {worker.vqbench}, this is {ours}",
                "install the same version everywhere: numbers of two versions must not share a table",
            )
        if not worker.sees_runs:
            raise UsageError(
                f"worker {address} on {worker.host} does not see {request.runs.absolute()}",
                "give a folder on a disk that all machines share: --runs DIR",
            )


def _resources(
    request: RunRequest, workers: list[dict[str, Any]], found: dict[str, Surroundings], view: View
) -> dict[str, float]:
    """What a cell takes. Raises UsageError at once where no worker offers it, rather than wait for ever."""
    versions = sorted({str(worker.torch) for worker in found.values()})
    if len(versions) > 1:
        view.note(f"the workers have different versions of torch: {', '.join(versions)}; each result says its own")
    offer_gpus = any((worker.get("resources") or {}).get("GPU") for worker in workers)
    if request.resources == "none":
        return {}
    if request.resources:
        needed = parse_resources(request.resources)
    elif offer_gpus:
        needed = {"GPU": float(request.devices)}
    elif any(worker.gpus for worker in found.values()):
        raise UsageError(
            f"the workers at {request.scheduler} have GPUs but do not offer them",
            "start each with --resources GPU=1 (its number of GPUs), or train on what they see: --resources none",
        )
    else:
        view.note(f"no worker at {request.scheduler} has a GPU: the cells train on CPUs")
        return {}
    if not any(_room(worker, needed) for worker in workers):
        offers = sorted({_spelled(worker.get("resources") or {}) for worker in workers})
        raise UsageError(
            f"no worker at {request.scheduler} offers {_spelled(needed)}; they offer: {'; '.join(offers)}",
            f"start workers that do: dask worker ADDRESS --resources {_spelled(needed).replace(', ', ' ')}",
        )
    return needed


def _spelled(resources: dict[str, float]) -> str:
    return ", ".join(f"{name}={amount:g}" for name, amount in resources.items()) or "nothing"


def parse_resources(text: str) -> dict[str, float]:
    """`GPU=1` or `GPU=1,MEM=40` as amounts by name. Raises UsageError for anything else."""
    needed = {}
    for item in text.split(","):
        name, equals, amount = (part.strip() for part in item.partition("="))
        try:
            needed[name] = float(amount)
        except ValueError:
            equals = ""
        if not (equals and name and needed[name] > 0):
            raise UsageError(f"--resources {text} is not of the form NAME=AMOUNT", "for example: --resources GPU=1")
    return needed
