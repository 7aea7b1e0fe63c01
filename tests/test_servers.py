"""Servers that go away, hang or are PostgreSQL: training goes on, and nothing is missing afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.commands import DEADLINE, Command, Running, settings, typed, until
from helpers.plugins import FAULTY
from helpers.servers import MLflowServer, Silence

from vqbench.machine.json_files import write_json
from vqbench.tracking.server import quiet_environment
from vqbench.tracking.tracker import sync


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[[str], MLflowServer]]:
    """Starts an MLflow server on a store."""
    made: list[MLflowServer] = []

    def start(store: str) -> MLflowServer:
        made.append(MLflowServer(tmp_path, store))
        made[-1].start()
        return made[-1]

    yield start
    for one in made:
        one.kill()


def features(folder: Path) -> list[Any]:
    """Arguments for cells of the features track, whose processes start sooner than those of images."""
    file = folder / "x.npy"
    np.save(file, np.random.default_rng(0).normal(size=(80, 2, 2, 6)).astype(np.float32))
    return ["run", "--recipe", "atomic", "--features", file, "--images", "64", "--json", *settings("log_images=8")]


def assert_it_holds(client: Any, experiment: str, rows: list[dict[str, Any]], artifacts: set[str]) -> None:
    """One parent, a child per row, every point of every curve exactly once, scores and artifacts."""
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    assert {run.info.status for run in found} == {"FINISHED"}
    (parent,) = (run for run in found if run.data.tags.get("vqbench.kind") == "command")
    assert {a.path.rpartition(".")[2] for a in client.list_artifacts(parent.info.run_id)} >= {"md", "jsonl"}
    assert len(found) == 1 + len(rows)
    for row in rows:
        (run,) = (run for run in found if run.data.tags.get("method") == row["method"])
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.params["recipe.images"] == "64"
        for name, value in row["scores"].items():
            history = client.get_metric_history(run.info.run_id, name)
            assert [point.value for point in history] == pytest.approx([value]), name
        curves: dict[str, list[tuple[int, float]]] = {}
        for line in (Path(row["path"]) / "metrics.jsonl").read_text().splitlines():
            point = json.loads(line)
            step, _ = point.pop("images"), point.pop("time")
            for name, value in point.items():
                curves.setdefault(f"train/{name}", []).append((step, value))
        assert set(curves) == {name for name in run.data.metrics if name.startswith("train/")}
        for name, points in curves.items():
            history = client.get_metric_history(run.info.run_id, name)
            assert sorted((p.step, p.value) for p in history) == points, name
        assert {a.path for a in client.list_artifacts(run.info.run_id)} >= artifacts


def test_an_mlflow_server_that_goes_away_in_the_middle_and_comes_back(
    tmp_path: Path, server: Callable[[str], MLflowServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    there = server(f"sqlite:///{tmp_path / 'server.db'}")
    runs, gate, client = tmp_path / "runs", tmp_path / "gate", MlflowClient(there.address)
    command = Running(
        [*features(tmp_path), "--plugin", FAULTY, "--methods", "faulty,fsq", "--runs", runs, "--name", "away"],
        MLFLOW_TRACKING_URI=there.address, FAULTY_GATE=f"40:{gate}",
    )  # fmt: skip

    def points_there() -> int:
        experiment = client.get_experiment_by_name("away")
        found = client.search_runs([experiment.experiment_id], "tags.method = 'faulty'") if experiment else []
        return len(client.get_metric_history(found[0].info.run_id, "train/loss")) if found else 0

    # half of a curve is written, and the cell waits
    until(lambda: points_there() > 0, "a point of the curve", command)
    there.kill()
    gate.touch()
    out, err = command.communicate(timeout=DEADLINE)
    assert command.returncode == 0, err
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["state"] for row in rows] == ["done", "done"]
    assert f"warning: MLflow at {there.address} did not take everything" in err
    assert f"vqbench sync --runs {runs}" in err
    assert "Traceback" not in err

    there.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", there.address)
    answer = typed("sync", "--runs", runs)
    assert answer.code == 0, answer.err
    assert "2 cells up to date" in answer.out
    expected = {"spec.json", "result.json", "codes.png", "per_image.parquet", "log.txt", "weights"}
    assert_it_holds(client, "away", rows, expected)


@pytest.mark.slow
def test_an_mlflow_server_that_hangs_does_not_hold_up_training(tmp_path: Path) -> None:
    hung = Silence()
    command = Running(
        [*features(tmp_path), "--methods", "fsq,vqgan", "--runs", tmp_path / "runs", "--name", "x"],
        MLFLOW_TRACKING_URI=hung.address, MLFLOW_HTTP_REQUEST_TIMEOUT="3600", MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
    )  # fmt: skip
    try:
        # both are trained and written while the first question to the server is still unanswered
        until(lambda: len(list(tmp_path.glob("runs/x/cells/*/result.json"))) == 2, "two results", command)
        until(lambda: hung.taken, "a connection", command)
    finally:
        hung.end()
    out, err = command.communicate(timeout=DEADLINE)
    assert command.returncode == 0, err
    assert [json.loads(line)["state"] for line in out.splitlines()] == ["done", "done"]
    assert f"warning: MLflow at {hung.address} did not take everything" in err
    assert "vqbench sync" in err


def test_nobody_waits_for_minutes_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        monkeypatch.delenv(name, raising=False)
    settings = quiet_environment()
    timeout, retries = (int(settings[f"MLFLOW_HTTP_REQUEST_{what}"]) for what in ("TIMEOUT", "MAX_RETRIES"))
    assert timeout * (1 + retries) <= 20


@pytest.mark.slow
def test_mlflow_on_postgresql(
    vqbench: Command,
    tmp_path: Path,
    postgres: Callable[[], str],
    server: Callable[[str], MLflowServer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mlflow.tracking import MlflowClient

    there = server(postgres())
    command = [*features(tmp_path), "--methods", "fsq,vqgan", "--runs", tmp_path / "runs", "--name", "pg"]
    answer = vqbench(*command, MLFLOW_TRACKING_URI=there.address)
    assert answer.code == 0, answer.err
    assert "warning" not in answer.err
    artifacts = {"spec.json", "result.json", "codes.png", "per_image.parquet", "log.txt", "weights"}
    client = MlflowClient(there.address)
    assert_it_holds(client, "pg", answer.objects, artifacts)

    # what the server took, but its answer was lost: `sync` sends it again, and it is there once nevertheless
    for row in answer.objects:
        memory = Path(row["path"]) / "mlflow.json"
        write_json(memory, {**json.loads(memory.read_text()), "points": 0, "sent": ""})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", there.address)
    assert sync(tmp_path / "runs").problems == []
    assert_it_holds(client, "pg", answer.objects, artifacts)


WORKER = """
import sys, optuna
optuna.logging.set_verbosity(optuna.logging.WARNING)
study = optuna.load_study(study_name="s", storage=sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for _ in range(10):
    trial = study.ask()
    x = trial.suggest_float("x", -1, 1)
    for step in range(3):
        trial.report(x + step, step)
    study.tell(trial, x * x)
"""


def test_an_optuna_study_of_two_processes_on_postgresql(postgres: Callable[[], str]) -> None:
    import optuna

    url = postgres()
    optuna.create_study(study_name="s", storage=url)
    command = [sys.executable, "-c", WORKER, url]
    both = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:  # at once
        process.communicate("go\n", timeout=DEADLINE)
    assert [process.returncode for process in both] == [0, 0]
    trials = optuna.load_study(study_name="s", storage=url).trials
    assert sorted(trial.number for trial in trials) == list(range(20))
    for trial in trials:
        assert trial.state.name == "COMPLETE"
        x = trial.params["x"]
        assert trial.intermediate_values == pytest.approx({0: x, 1: x + 1, 2: x + 2})
        assert trial.value == pytest.approx(x * x)
