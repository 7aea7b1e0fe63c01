"""Clusters of dask: one that is started here, or one that runs already; what its workers see and offer."""

from __future__ import annotations

import importlib.metadata
import logging
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed import Client, LocalCluster

from vqbench.errors import UsageError
from vqbench.machine.gpus import visible_gpus
from vqbench.machine.json_files import read_json
from vqbench.planning.request import RunRequest, parse_resources
from vqbench.running.dask_engine import DaskEngine, room, spelled
from vqbench.running.worker import OwnGroup, Surroundings, look_around
from vqbench.tracking.server import tracking_uri
from vqbench.wording import masked, reason_of_library, shell_command

if TYPE_CHECKING:
    from vqbench.planning.view import View

CONNECT_SECONDS = 10
WORKER_SECONDS = 60  # that a cluster without workers is given to get one


def _quiet() -> None:
    ours = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] in ("distributed", "tornado")]
    for name in ours:  # what matters of it is said in our own words
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def local_cluster(request: RunRequest) -> DaskEngine:
    """An engine with `request.workers` workers on this machine, each with GPUs of its own where there are some.

    Raises UsageError for more workers than GPUs.
    """
    present = len(visible_gpus()) if request.resources != "none" else 0
    if 0 < present < request.workers * request.devices:
        each = f" of {request.devices} GPUs each" if request.devices > 1 else ""
        raise UsageError(
            f"--workers {request.workers}{each}, but this machine has {present} GPUs",
            f"choose at most --workers {max(1, present // request.devices)}, or have them share: --resources none",
        )
    _quiet()
    resources = {"GPU": float(request.devices)} if present else {}
    cluster = LocalCluster(
        n_workers=request.workers,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",  # any port: with None it asks for 8787, and warns where that is taken
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
        shares_disk = _refuse_strangers(found, request)
        if not shares_disk:
            view.note(
                f"not every worker sees {request.runs}: results travel through {masked(tracking_uri(request.runs))}"
            )
        workers = list(client.scheduler_info(n_workers=-1)["workers"].values())
        resources = _resources(request, workers, found, view)
        gpus = 0 if request.resources == "none" else int(resources.get("GPU", request.devices))
        return DaskEngine(client, resources, gpus, shares_disk=shares_disk, say=view.note)
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
    address = scheduler if is_address else _address_in(Path(scheduler))
    try:
        return Client(address, timeout=CONNECT_SECONDS, name="vqbench")
    except (OSError, ValueError, TimeoutError) as error:
        raise UsageError(
            f"no dask scheduler answers at {masked(scheduler)}: {reason_of_library(error, scheduler)}",
            "is it running? dask scheduler --host HOST, and dask worker ADDRESS on each machine",
        ) from None


def _address_in(file: Path) -> str:
    """The address that a scheduler wrote down. Raises UsageError for a file that no scheduler wrote."""
    address = (read_json(file) or {}).get("address")
    if not isinstance(address, str):
        raise UsageError(f"{file} is not a scheduler's file", "start one: dask scheduler --scheduler-file FILE")
    return address


def _wait_for_a_worker(client: Client, scheduler: str, view: View) -> None:
    if client.scheduler_info(n_workers=-1)["workers"]:
        return
    view.note(f"the cluster at {masked(scheduler)} has no workers yet; waiting {WORKER_SECONDS} s for one")
    try:
        client.wait_for_workers(1, timeout=WORKER_SECONDS)
    except TimeoutError:
        raise UsageError(
            f"the cluster at {masked(scheduler)} has no workers",
            f"start some: {shell_command(['dask', 'worker', scheduler, '--nthreads', 1])}",
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


def _refuse_strangers(found: dict[str, Surroundings], request: RunRequest) -> bool:
    """Whether all workers see the runs directory. Raises UsageError where one cannot take part at all."""
    ours = importlib.metadata.version("vqbench")
    for address, worker in found.items():
        if worker.vqbench != ours:
            raise UsageError(
                f"worker {address} on {worker.host} has vqbench {worker.vqbench}, this is {ours}",
                "install the same version everywhere: numbers of two versions must not share a table",
            )
    blind = [f"{address} on {worker.host}" for address, worker in found.items() if not worker.sees_runs]
    if blind and not tracking_uri(request.runs).startswith(("http://", "https://")):
        raise UsageError(
            f"worker {blind[0]} does not see {request.runs.absolute()}",
            "give a folder on a disk that all share: --runs DIR; or MLFLOW_TRACKING_URI of a server to carry the files",
        )
    return not blind


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
    if not any(room(worker, needed) for worker in workers):
        offers = sorted({spelled(worker.get("resources") or {}) for worker in workers})
        raise UsageError(
            f"no worker at {request.scheduler} offers {spelled(needed)}; they offer: {'; '.join(offers)}",
            f"start workers that do: dask worker ADDRESS --resources {spelled(needed).replace(', ', ' ')}",
        )
    return needed
