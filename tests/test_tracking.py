"""A tracking server that is away loses nothing: `vqbench sync` sends what it missed, once."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.commands import settings, typed, until
from helpers.servers import MLflowServer

from vqbench.machine.json_files import write_json
from vqbench.planning.plan import check_request
from vqbench.planning.request import make_request
from vqbench.planning.view import Silent
from vqbench.results.cell_folder import CellFolder
from vqbench.running.run import prepare_plan
from vqbench.tracking import tracker as tracking
from vqbench.tracking.mirror import Mirror
from vqbench.tracking.server import connect, database_file, tracking_uri


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MLflowServer]:
    """A real `mlflow server` that is started by the test; ended afterwards."""
    there = MLflowServer(tmp_path, f"sqlite:///{tmp_path / 'server.db'}")
    yield there
    there.kill()


def test_what_a_server_missed_is_sent_by_sync_and_only_once(
    images: Path, tmp_path: Path, server: MLflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, address = tmp_path / "runs", server.address
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    run = typed(
        "run", "--methods", "fsq", "--dataset", f"folder:{images}", "--images", "32", "--metrics", "psnr",
        "--name", "away", "--runs", runs, "--json", *settings(),
    )  # fmt: skip
    assert run.code == 0, run.err
    assert [row["state"] for row in run.objects] == ["done"]
    assert "did not take everything" in run.err
    assert "vqbench sync" in run.err
    assert not (runs / "mlflow.db").exists()
    assert typed("sync", "--runs", runs).code == 1
    spec = Path(run.objects[0]["path"]) / "spec.json"  # as an earlier version left it that was given seeds="0"
    write_json(spec, {**json.loads(spec.read_text()), "seed": "0"})

    server.start()
    from mlflow.tracking import MlflowClient

    client = MlflowClient(address)
    for _ in range(2):
        answer = typed("sync", "--runs", runs)
        assert answer.code == 0, answer.err
        assert "1 cell up to date" in answer.out
        experiment = client.get_experiment_by_name("away")
        found = client.search_runs([experiment.experiment_id])
        assert sorted(r.data.tags.get("method", "command") for r in found) == ["command", "fsq"]
        assert {r.info.status for r in found} == {"FINISHED"}
        for row in run.objects:
            mine = next(r for r in found if r.data.tags.get("method") == row["method"])
            assert mine.data.metrics["psnr"] == pytest.approx(row["scores"]["psnr"])
            assert len(client.get_metric_history(mine.info.run_id, "train/loss")) == 1
            assert mine.inputs.dataset_inputs[0].dataset.name.startswith("folder-images")
            assert "recon.png" in {a.path for a in client.list_artifacts(mine.info.run_id)}


def test_a_hiccup_of_the_server_fails_no_cell_that_asks_for_its_run(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other sending is put off for half a minute; the question for the run, which a cell waits for, is not."""
    fails = 3

    class Hiccup(Mirror):
        def cell(self, folder: CellFolder) -> bool:
            nonlocal fails
            fails -= 1
            if fails >= 0:
                raise ConnectionError("no answer")
            return super().cell(folder)

    monkeypatch.setattr(tracking, "Mirror", Hiccup)
    monkeypatch.setattr(tracking, "AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(tracking, "STORE_SECONDS", 120.0)
    recipe = [text for text in settings() if text != "--set"]
    request = make_request(
        "fsq", f"folder:{images}", runs=tmp_path, name="x", images=8, metrics=["psnr"], settings=recipe
    )
    plan, tracker = prepare_plan(check_request(request), Silent()), tracking.Tracker(tmp_path)
    (cell,) = plan.cells
    write_json(cell.folder.path / "spec.json", cell.spec)
    tracker.start_command(plan, "run")
    tracker.start_cell(cell, anew=False)
    assert tracker.store_of(cell).run_id
    assert fails < 0
    tracker.finish_command(plan, [], dict)


def test_sync_of_nothing_says_so(tmp_path: Path) -> None:
    answer = typed("sync", "--runs", tmp_path / "none")
    assert answer.code == 2
    assert "there is no runs directory" in answer.err
    answer = typed("ui", "--runs", tmp_path)
    assert answer.code == 2
    assert "no results are tracked" in answer.err


@pytest.mark.parametrize(
    "name", ["a b", "what?x=1", "50%", "p%20c", "%3F", "h#ash", "semi;colon", "n\nl", "ünï", "it's"]
)
def test_the_database_lies_in_the_runs_directory_whatever_its_name(name: str) -> None:
    from sqlalchemy import make_url

    uri = tracking_uri(Path("/data") / name)
    assert make_url(uri).database == f"/data/{name}/mlflow.db"
    assert not make_url(uri).query
    assert database_file(uri) == Path("/data") / name / "mlflow.db"


CONNECT = "import sys; from vqbench.tracking.server import connect; connect(sys.argv[1]).create_experiment(sys.argv[2])"


def begin(uri: str, name: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", CONNECT, uri, name], stderr=subprocess.PIPE, text=True)


def test_commands_that_begin_at_once_make_one_whole_database(tmp_path: Path) -> None:
    uri = tracking_uri(tmp_path)
    ends = [(process.communicate()[1], process.returncode) for process in [begin(uri, f"e{i}") for i in range(3)]]
    assert [code for _, code in ends] == [0, 0, 0], ends
    assert {e.name for e in connect(uri).search_experiments()} >= {"e0", "e1", "e2"}
    assert [file.name for file in tmp_path.iterdir()] == ["mlflow.db"]


def test_a_command_that_was_killed_leaves_no_half_database(tmp_path: Path) -> None:
    """Nor does one that an earlier vqbench left so stand in the way for ever."""
    uri = tracking_uri(tmp_path)
    killed = begin(uri, "never")
    until(lambda: any(file.stat().st_size for file in tmp_path.iterdir()), "the first table", killed)
    killed.kill()
    killed.wait()
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as half:
        half.execute("create table _alembic_tmp_tags (key text)")
        half.commit()
    connect(uri).create_experiment("after")
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as whole:
        assert not whole.execute("select 1 from sqlite_master where name like '_alembic_tmp%'").fetchall()
