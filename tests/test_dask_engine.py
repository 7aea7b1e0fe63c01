"""The ends of tasks as the engine takes them, from a client that a test tells what they are."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from helpers.clusters import KilledWorker, OddCluster

from vqbench.cell.process import STOPPED, CellJob, Ended
from vqbench.running import dask_engine
from vqbench.running.dask_engine import DaskEngine


def ends_of(tmp_path: Path, cluster: OddCluster, between: Callable[[], None] = lambda: None) -> list[tuple[str, Ended]]:
    engine = DaskEngine(cluster, {}, 0)  # type: ignore[arg-type]
    engine.start(CellJob(tmp_path / "cell", {}))
    found: list[tuple[str, Ended]] = []
    while not found:
        between()
        found = engine.ended()
    return found


def test_a_worker_that_closes_in_order_has_not_ended_its_cell(tmp_path: Path) -> None:
    """As one does whose lifetime is over: it says that the cell was stopped, and nobody here had asked for that."""
    cluster = OddCluster(Ended(STOPPED), Ended(STOPPED), Ended("done"))
    assert ends_of(tmp_path, cluster) == [("cell", Ended("done"))]
    assert cluster.submitted == 3


def test_a_worker_that_cannot_take_a_cell_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last worker with a GPU leaves, one without stays; then the scheduler does not answer for a while."""
    monkeypatch.setattr(dask_engine, "WATCH_SECONDS", 0.0)
    monkeypatch.setattr(dask_engine, "ASK_SECONDS", 0.0)

    class Waiting(OddCluster):
        offers: ClassVar = [*[{"GPU": 1}] * 3, *[{}] * 6, *[OSError()] * 3, *[{"GPU": 2}] * 3]

        def sync(self, *_: Any, **__: Any) -> dict[str, Any]:
            offer = self.offers.pop(0)
            if isinstance(offer, OSError):
                raise offer
            return {"workers": {"a": {"host": "h", "nthreads": 1, "resources": offer}}}

        def submit(self, *_: Any, **__: Any) -> Any:
            return SimpleNamespace(status="pending")

    said: list[str] = []
    engine = DaskEngine(Waiting(), {"GPU": 1.0}, 1, say=said.append)  # type: ignore[arg-type]
    engine.start(CellJob(tmp_path / "cell", {}))
    while Waiting.offers:
        assert engine.ended() == []
    assert said == [
        "no worker that offers GPU=1 is left in the cluster; 1 cell will go on as soon as one joins it",
        "the cluster has a worker again",
    ]


def test_a_cell_that_gets_on_may_outlive_many_workers(tmp_path: Path) -> None:
    checkpoint = tmp_path / "cell" / "checkpoints" / "last.pt"
    checkpoint.parent.mkdir(parents=True)
    clock = iter([10, 20, 20])

    def train() -> None:
        checkpoint.touch()
        at = next(clock)
        os.utime(checkpoint, (at, at))

    cluster = OddCluster(*(KilledWorker("odd") for _ in range(3)))
    ((name, end),) = ends_of(tmp_path, cluster, train)
    assert (name, end.state, cluster.submitted) == ("cell", "failed", 3)  # the third began and ended at the same place
    error = json.loads((tmp_path / "cell" / "result.json").read_text())["error"]
    assert error["message"] == "the workers that ran it died, several in a row; out of memory is the usual reason"
