"""A tracking server that is away loses nothing: `vqbench sync` sends what it missed, once."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Command, settings


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def address() -> str:
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture
def server(address: str, tmp_path: Path) -> Iterator[object]:
    """Starts a real `mlflow server` when called; ended by its process group afterwards."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        store = ["--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}", "--workers", "1"]
        store += ["--artifacts-destination", str(tmp_path / "artifacts")]
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", address.split(":")[-1]]
        env = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
        log = (tmp_path / "server.log").open("wb")
        started.append(subprocess.Popen([*command, *store], env=env, stdout=log, stderr=log, start_new_session=True))
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=1).close()
                return
            except OSError:
                time.sleep(0.25)
        raise RuntimeError((tmp_path / "server.log").read_text())

    yield start
    for process in started:
        os.killpg(process.pid, 15)
        process.wait(timeout=20)


def test_what_a_server_missed_is_sent_by_sync_and_only_once(
    vqbench: Command, images: Path, tmp_path: Path, address: str, server: object
) -> None:
    runs = tmp_path / "runs"
    run = vqbench(
        "run", "--methods", "fsq,vqgan", "--dataset", f"folder:{images}", "--images", "32", "--metrics", "psnr",
        "--name", "away", "--runs", runs, "--json", *settings(), MLFLOW_TRACKING_URI=address,
    )  # fmt: skip
    assert run.code == 0, run.err
    assert [row["state"] for row in run.objects] == ["done", "done"]
    assert "did not take everything" in run.err
    assert "vqbench sync" in run.err
    assert not (runs / "mlflow.db").exists()
    assert vqbench("sync", "--runs", runs, MLFLOW_TRACKING_URI=address).code == 1

    server()  # type: ignore[operator]
    from mlflow.tracking import MlflowClient

    client = MlflowClient(address)
    for _ in range(2):
        answer = vqbench("sync", "--runs", runs, MLFLOW_TRACKING_URI=address)
        assert answer.code == 0, answer.err
        assert "2 cells are up to date" in answer.out
        experiment = client.get_experiment_by_name("away")
        found = client.search_runs([experiment.experiment_id])
        assert sorted(r.data.tags.get("method", "command") for r in found) == ["command", "fsq", "vqgan"]
        assert {r.info.status for r in found} == {"FINISHED"}
        for row in run.objects:
            mine = next(r for r in found if r.data.tags.get("method") == row["method"])
            assert mine.data.metrics["psnr"] == pytest.approx(row["scores"]["psnr"])
            assert len(client.get_metric_history(mine.info.run_id, "train/loss")) == 1
            assert mine.inputs.dataset_inputs[0].dataset.name.startswith("folder-images")
            assert "recon.png" in {a.path for a in client.list_artifacts(mine.info.run_id)}


def test_sync_of_nothing_says_so(vqbench: Command, tmp_path: Path) -> None:
    answer = vqbench("sync", "--runs", tmp_path / "none")
    assert answer.code == 2
    assert "there is no runs directory" in answer.err
    answer = vqbench("ui", "--runs", tmp_path)
    assert answer.code == 2
    assert "no results are tracked" in answer.err
