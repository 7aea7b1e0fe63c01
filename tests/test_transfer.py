"""Cells of workers that do not see our disk: what travels, through a real store that is away at times."""

from __future__ import annotations

import os
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from helpers.clusters import FarCluster, KilledWorker
from helpers.commands import settings
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from vqbench.cell import process as launch
from vqbench.cell.process import BUSY, CellJob, Ended
from vqbench.machine.json_files import write_json
from vqbench.planning.plan import check_request
from vqbench.planning.request import make_request
from vqbench.planning.view import Silent
from vqbench.results.cell_folder import CellFolder
from vqbench.running import dask_engine
from vqbench.running.dask_engine import DaskEngine
from vqbench.running.execution import Execution
from vqbench.running.run import prepare_plan
from vqbench.running.worker import Need, _alone, _run_far_from_home
from vqbench.tracking import transfer
from vqbench.tracking.tracker import Tracker
from vqbench.tracking.transfer import Courier


class Store(LocalArtifactRepository):
    """A real store in a folder, which is away for some kinds of requests."""

    away: ClassVar[set[str]] = set()

    def _is_there(self, kind: str) -> None:
        if kind in self.away:
            raise ConnectionError("no answer")

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        self._is_there("write")
        super().log_artifact(local_file, artifact_path)

    def list_artifacts(self, path: str | None = None) -> Any:
        self._is_there("read")
        return super().list_artifacts(path)

    def download_artifacts(self, artifact_path: str, dst_path: str | None = None) -> Any:
        self._is_there("read")
        return super().download_artifacts(artifact_path, dst_path)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """A store in tmp_path/store; what it does not answer is put into the set."""
    there = Store((tmp_path / "store").as_uri())
    monkeypatch.setattr(transfer, "connect", lambda uri: None)
    monkeypatch.setattr(transfer, "artifacts_of", lambda *_: there)
    monkeypatch.setattr(transfer, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(transfer, "AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(dask_engine, "_START_SECONDS", 0.0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield Store.away
    Store.away.clear()


RUN = launch.Store("http://nowhere", "run")


SPEC = {"protocol": {"hash": "h"}, "metrics": ["psnr"], "recipe": {"track": "images"}}


def images_of(folder: CellFolder) -> int:
    """Where the checkpoint of `cell_at` is."""
    with zipfile.ZipFile(folder.checkpoint) as archive:
        return int(archive.read("images"))


def cell_at(path: Path, images: int = 0, state: str = "") -> CellFolder:
    """A cell whose checkpoint is at `images`, and which has ended as `state`."""
    folder = CellFolder(path)
    folder.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    write_json(path / "spec.json", SPEC)
    if images:
        with zipfile.ZipFile(folder.checkpoint, "w") as archive:
            archive.writestr("images", str(images))
    if state:
        error = {"error": {"message": "odd"}} if state == "failed" else {}
        write_json(path / "result.json", {"state": state, "scores": {"psnr": 1.0}, **error})
    return folder


def job_of(path: Path) -> CellJob:
    return CellJob(path, SPEC, store=RUN)


def end_of(engine: DaskEngine, job: CellJob) -> Ended:
    engine.start(job)
    while not (found := engine.ended()):
        pass
    return found[0][1]


def test_a_far_cell_that_gets_on_may_outlive_many_workers(tmp_path: Path, store: set[str]) -> None:
    """As long as the store has a newer checkpoint each time; our own disk has none."""
    cluster = FarCluster(*(KilledWorker("odd") for _ in range(3)), serials=(2, 5, 5))
    engine = DaskEngine(cluster, {}, 0, shares_disk=False)  # type: ignore[arg-type]
    job = job_of(cell_at(tmp_path / "x" / "cells" / "cell").path)
    assert end_of(engine, job).state == "failed"
    assert cluster.submitted == 3  # the third began and ended at the same place
    assert CellFolder(job.folder).error is not None


def test_a_far_cell_that_was_given_up_goes_on_in_its_run(images: Path, tmp_path: Path) -> None:
    """Its checkpoint is in the artifacts of that run, in a real MLflow; `rerun` takes another one."""

    def attempt(rerun: bool = False) -> str:
        recipe = [text for text in settings() if text != "--set"]
        request = make_request(
            "fsq", f"folder:{images}", runs=tmp_path, name="x", images=8, metrics=["psnr"], settings=recipe, rerun=rerun
        )
        plan, tracker = prepare_plan(check_request(request), Silent()), Tracker(tmp_path)
        tracker.start_command(plan, "run")
        cluster = FarCluster(KilledWorker("odd"))
        engine = DaskEngine(cluster, {}, 0, shares_disk=False)  # type: ignore[arg-type]
        execution = Execution(request, engine, Silent(), tracker)
        execution.submit(plan.cells[0])
        while not (rows := execution.wait()):
            pass
        assert [row["state"] for _, row in rows] == ["failed"]
        tracker.finish_command(plan, [], dict)
        return cluster.stores[0]

    first = attempt()
    assert attempt() == first
    assert attempt(rerun=True) != first


def test_a_store_that_does_not_answer_is_not_an_empty_one(tmp_path: Path, store: set[str]) -> None:
    there = cell_at(tmp_path / "x" / "cells" / "cell", images=80)
    here = CellFolder(tmp_path / "y" / "cells" / "cell")
    courier = Courier(RUN, here)
    assert not courier.fetch_checkpoint()
    assert not courier.fetch_result()
    sender = Courier(RUN, there)
    assert sender.send_checkpoint()
    store.add("read")
    for fetch in (courier.fetch_checkpoint, courier.fetch_result):
        with pytest.raises(ConnectionError):
            fetch()
    store.clear()
    assert courier.fetch_checkpoint()  # into a folder in which nothing is yet
    assert images_of(here) == 80
    write_json(there.path / "result.json", {"state": "done"})
    sender.send_result()
    assert courier.fetch_checkpoint()  # the result is newer than the last checkpoint
    assert here.result == {"state": "done"}


def test_what_could_not_be_sent_does_not_spoil_what_was(tmp_path: Path, store: set[str]) -> None:
    there = cell_at(tmp_path / "x" / "cells" / "cell", images=80)
    sender, here = Courier(RUN, there), CellFolder(tmp_path / "y" / "cells" / "cell")
    sender.send_checkpoint()
    os.utime(there.checkpoint, (1, 1))
    store.add("write")
    for _ in range(2):
        with pytest.raises(ConnectionError):
            sender.send_checkpoint()
    assert sender.serial == 1
    assert {path.parent.name for path in tmp_path.glob("store/transfer/*/*")} == {"1"}
    store.clear()
    sender.send_checkpoint()
    assert {path.parent.name for path in tmp_path.glob("store/transfer/*/*")} == {"0", "1"}
    assert Courier(RUN, here).fetch_checkpoint()


def test_a_finished_cell_that_could_not_be_fetched_is_fetched_by_the_next_command(
    tmp_path: Path, store: set[str]
) -> None:
    far = cell_at(tmp_path / "far" / "cells" / "cell", images=80, state="done")
    job = job_of(cell_at(tmp_path / "x" / "cells" / "cell").path)

    def command(*ends: Ended) -> tuple[Ended, int]:
        cluster = FarCluster(*ends)
        launch.write_job(job, anew=False)
        engine = DaskEngine(cluster, {}, 0, shares_disk=False)  # type: ignore[arg-type]
        return end_of(engine, job), cluster.submitted

    Courier(RUN, far).send_result()
    store.add("read")
    assert command(Ended("done"))[0].state == "failed"
    assert command(Ended("done"))[0].state == "failed"  # still away
    store.clear()
    assert command() == (Ended("done"), 0)
    assert CellFolder(job.folder).result == far.result
    assert not list((tmp_path / "store").glob("transfer/*"))
    assert not (job.folder / transfer.AWAY).exists()


def test_a_driver_that_waits_for_a_store_says_so_once(
    tmp_path: Path, store: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "PATIENCE_SECONDS", 60.0)
    said: list[str] = []

    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            store.clear()

    monkeypatch.setattr(transfer, "time", SimpleNamespace(monotonic=time.monotonic, sleep=pause))
    Courier(RUN, cell_at(tmp_path / "far" / "cells" / "cell", images=80, state="done")).send_result()
    job = job_of(cell_at(tmp_path / "x" / "cells" / "cell").path)
    engine = DaskEngine(FarCluster(Ended("done")), {}, 0, say=said.append, shares_disk=False)  # type: ignore[arg-type]
    store.add("read")
    assert end_of(engine, job).state == "done"
    assert CellFolder(job.folder).result is not None
    (line,) = said
    assert "cell has ended, and http://nowhere does not answer to hand out what it left (ConnectionError)" in line


def test_a_far_cell_that_failed_at_once_is_tried_again_too(tmp_path: Path, store: set[str]) -> None:
    """No memory in its first step: nothing to go on from, and its failure must not be what the next worker finds."""
    job = job_of(cell_at(tmp_path / "x" / "cells" / "cell").path)
    write_json(job.folder / transfer.AWAY, {"run_id": RUN.run_id})
    Courier(RUN, cell_at(tmp_path / "far" / "cells" / "cell", state="failed")).send_result()
    end_of(DaskEngine(FarCluster(KilledWorker("odd")), {}, 0, shares_disk=False), job)  # type: ignore[arg-type]
    assert not Courier(RUN, CellFolder(tmp_path / "y" / "cells" / "cell")).fetch_checkpoint()


def test_a_far_folder_that_somebody_else_has_is_neither_sent_nor_fetched(tmp_path: Path, store: set[str]) -> None:
    job = job_of(cell_at(tmp_path / "x" / "cells" / "cell").path)
    Courier(RUN, cell_at(tmp_path / "far" / "cells" / "cell", images=80)).send_checkpoint()
    engine = DaskEngine(FarCluster(Ended(BUSY)), {}, 0, shares_disk=False)  # type: ignore[arg-type]
    assert end_of(engine, job) == Ended(BUSY)
    assert Courier(RUN, CellFolder(tmp_path / "y" / "cells" / "cell")).fetch_checkpoint()
    with CellFolder(job.folder).locked():  # it was let go
        pass


def test_two_attempts_on_one_machine_do_not_share_a_folder(tmp_path: Path) -> None:
    lock, wishes = tmp_path / "cell.lock", iter([True, True, False])
    with _alone(lock, lambda: True) as first, _alone(lock, lambda: next(wishes)) as second:
        assert (first, second) == (True, False)
    with _alone(lock, lambda: True) as third:
        assert third


def test_a_far_cell_that_failed_and_could_not_be_fetched_is_tried_again(tmp_path: Path, store: set[str]) -> None:
    far = cell_at(tmp_path / "far" / "cells" / "cell", images=80, state="failed")
    job = job_of(cell_at(tmp_path / "x" / "cells" / "cell").path)
    write_json(job.folder / transfer.AWAY, {"run_id": RUN.run_id})
    Courier(RUN, far).send_result()
    cluster = FarCluster(KilledWorker("odd"))
    end_of(DaskEngine(cluster, {}, 0, shares_disk=False), job)  # type: ignore[arg-type]
    assert cluster.results == [None]
    another = CellFolder(tmp_path / "y" / "cells" / "cell")
    assert Courier(RUN, another).fetch_checkpoint()  # its checkpoint, without the failure
    assert (images_of(another), another.result) == (80, None)


def test_a_worker_sends_what_it_could_not_send_before(tmp_path: Path, store: set[str]) -> None:
    job = job_of(tmp_path / "x" / "cells" / "cell")
    cell_at(transfer.scratch(job.folder), images=80, state="done")
    home = CellFolder(transfer.scratch(job.folder))
    write_json(home.path / transfer.AWAY, {"run_id": RUN.run_id})
    store.add("write")
    with pytest.raises(ConnectionError):
        _run_far_from_home(job, RUN, Need({}, 0, {}, ""), lambda: True, lambda _: None)
    assert home.result is not None
    store.clear()
    assert _run_far_from_home(job, RUN, Need({}, 0, {}, ""), lambda: True, lambda _: None) == Ended("done")
    assert Courier(RUN, CellFolder(job.folder)).fetch_result()
    assert not home.path.exists()
