"""`vqbench sweep` on cells of the features track, which take seconds: its trials are the very cells of `run`."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from helpers.commands import Answer, Command, settings, typed
from helpers.images import write_images
from helpers.sweeps import COMMON, Place, asked_of, request

import vqbench as package
from vqbench.errors import UsageError
from vqbench.planning.plan import check_request
from vqbench.planning.request import RunRequest
from vqbench.planning.view import Silent
from vqbench.reports.sweep import dominates
from vqbench.results.checkpoint import images_in_checkpoint
from vqbench.sweeps.request import SweepRequest
from vqbench.sweeps.studies import StudyPlan
from vqbench.sweeps.sweep import execute_sweep, plan_sweep

optuna.logging.set_verbosity(optuna.logging.ERROR)
SIZES = [8, 64]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.made(tmp_path_factory.mktemp("sweep"), 80, SIZES)


@pytest.fixture(scope="module")
def comparison(vqbench: Command, place: Place) -> Answer:
    """Two methods at each of two sizes, two cells at a time."""
    answer = vqbench("sweep", "vqgan,fsq", *place.typed("--space", place.root / "sizes.yaml", "--sampler", "grid"),
                     "--trials", 4, "--workers", 2)  # fmt: skip
    assert answer.code == 0, answer.err
    return answer


def rows_of(place: Place, name: str = "vqgan+fsq-sizes") -> pd.DataFrame:
    return pd.read_csv(place.runs / "x" / "sweeps" / name / "trials.csv")


def commands_of(answer: str) -> list[list[str]]:
    return [shlex.split(line) for line in answer.splitlines() if line.strip().startswith("vqbench run")]


def test_a_sweep_of_two_methods_and_its_files(comparison: Answer, place: Place) -> None:
    table = rows_of(place)
    assert len(table) == 4
    for _, of_method in table.groupby("method"):
        assert sorted(of_method["codebook_size"]) == SIZES  # a grid, each point once
    assert "vqgan  " in comparison.out
    assert max(len(line) for line in comparison.out.splitlines() if "/" not in line) <= 100
    with (place.runs / "x" / "sweeps" / "vqgan+fsq-sizes" / "trials.csv").open() as file:
        assert len(list(csv.reader(file))) == 5
    assert "| vqgan |" in (place.runs / "x" / "sweeps" / "vqgan+fsq-sizes" / "summary.md").read_text()


def test_the_printed_command_reproduces_the_best(comparison: Answer, place: Place) -> None:
    from vqbench.running.run import execute

    table, commands = rows_of(place), commands_of(comparison.out)
    assert [command[command.index("--methods") + 1] for command in commands] == ["vqgan", "fsq"]
    before = place.trained()
    for command in commands:
        method = command[command.index("--methods") + 1]
        best = table[table["method"] == method]["quantization_error"].min()
        assert command[-2:] == ["--seeds", "0,1,2"]
        row = json.loads(typed(*command[1:-1], "0", "--json").out)
        assert (row["state"], row["scores"]["quantization_error"]) == ("cached", pytest.approx(best, abs=0))
    assert place.trained() == before
    command = commands[0]
    elsewhere = execute(check_request(RunRequest(
        ("vqgan",), recipe="atomic", features=place.root / "x.npy", runs=place.root / "elsewhere", images=64,
        settings=tuple(command[i + 1] for i, word in enumerate(command) if word == "--set"),
    ))).rows  # fmt: skip
    assert elsewhere[0]["state"] == "done"
    assert elsewhere[0]["scores"]["quantization_error"] == table[table["method"] == "vqgan"]["quantization_error"].min()


def test_a_sweep_with_a_holdout_reads_no_validation_image(tmp_path: Path) -> None:
    """They cannot be read. The command for the best is scored on them, and says so."""
    write_images(tmp_path / "images" / "train", 40)
    (tmp_path / "images" / "val").mkdir()
    for i in range(4):
        (tmp_path / "images" / "val" / f"{i}.png").write_text("no image")
    (tmp_path / "sizes.yaml").write_text("recipe: {codebook_size: [8, 64]}\n")
    asked = ["vqgan", "--recipe", "atomic", "--dataset", f"folder:{tmp_path / 'images'}", "--runs", tmp_path / "runs",
             "--images", "64", "--space", tmp_path / "sizes.yaml", "--sampler", "grid",
             "--holdout", "0.25"]  # fmt: skip
    done = typed("sweep", *asked)
    assert done.code == 0, done.err
    assert "10 of 40 training items are held out and score" in done.err
    assert "folder-images-train-val-holdout25" in done.out
    assert "vqgan, with more seeds, on the validation images:" in done.out
    (command,) = commands_of(done.out)
    assert "--holdout" not in command
    unread = typed(*command[1:])
    assert unread.code == 2
    assert "4 images cannot be used" in unread.err
    resumed = typed("sweep", "--resume", "vqgan-sizes", "--runs", tmp_path / "runs", "--json")
    assert {row["state"] for row in resumed.objects} == {"done"}
    refused = typed("sweep", *asked[:-1], "0.5")
    assert "protocol and training set and holdout" in refused.err


def test_the_same_sweep_again_trains_nothing(comparison: Answer, place: Place) -> None:
    before, commands = place.trained(), sorted((place.runs / "x" / "commands").glob("*.json"))
    space = str(place.root / "sizes.yaml")
    again = typed("sweep", "vqgan,fsq", *place.typed("--space", space, "--sampler", "grid", "--trials", 4, "--json"))
    assert again.code == 0, again.err
    assert [row["state"] for row in again.objects] == ["done"] * 4  # each was trained by its trial, once
    resumed = package.sweep(resume="vqgan+fsq-sizes", runs=place.runs, track=False)
    assert len(resumed) == 4
    other = package.sweep("vqgan,fsq", track=False, sampler="grid", trials=4, sweep_name="other", **place.options())
    assert set(other["state"]) == {"cached"}
    assert place.trained() == before
    assert sorted((place.runs / "x" / "commands").glob("*.json")) == commands
    assert {"method", "codebook_size", "quantization_error", "command"} <= set(other.columns)


def test_in_mlflow_a_sweep_is_a_parent_with_its_trials(comparison: Answer, place: Place) -> None:
    from vqbench.tracking.mirror import Mirror

    client = Mirror(place.runs).client
    found = client.search_runs([client.get_experiment_by_name("x").experiment_id])
    (parent,) = (run for run in found if run.data.tags.get("command") == "sweep")
    assert parent.info.run_name == "0001 sweep vqgan, fsq: sizes"
    assert parent.info.status == "FINISHED"
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 4
    assert {run.data.tags["drawn.codebook_size"] for run in children} == set(map(str, SIZES))
    names = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    assert {"0001.md", "0001.trials.csv"} <= names


def test_a_name_stands_for_one_definition(comparison: Answer, place: Place) -> None:
    taken = typed("sweep", "vqgan,fsq", *place.typed("--space", place.root / "sizes.yaml", "--sampler", "random"))
    assert taken.code == 2
    assert taken.err.splitlines()[-2:] == [
        "error: there is a sweep 'vqgan+fsq-sizes' already, with another sampler",
        "hint: go on with it: --resume vqgan+fsq-sizes, or start another: --sweep-name NAME",
    ]
    for name in ("**", "vqgan*"):  # no pattern
        assert typed("sweep", "--resume", name, "--runs", place.runs).code == 2
    unknown = typed("sweep", "--resume", "vqgan+fsq-size", "--runs", place.runs)
    assert unknown.code == 2
    assert "did you mean vqgan+fsq-sizes" in unknown.err
    odd = typed("sweep", "--resume", "vqgan+fsq-sizes", "--runs", place.runs, "--images", 7)
    assert "the sweep was started with another --images: 64" in odd.err


def test_several_objectives_have_a_front(comparison: Answer, place: Place) -> None:
    answer = typed("sweep", "vqgan,fsq", *place.typed("--space", place.root / "sizes.yaml", "--sampler", "nsga2"),
                   "--trials", 8, "--objective", "quantization_error,usage", "--sweep-name", "front")  # fmt: skip
    assert answer.code == 0, answer.err
    folder = place.runs / "x" / "sweeps" / "front"
    assert (folder / "pareto.png").stat().st_size > 5000
    table = rows_of(place, "front")
    values = [(row.quantization_error, -row.usage) for row in table.itertuples()]
    front = [not any(a <= x and b <= y and (a, b) != (x, y) for a, b in values) for x, y in values]
    report = execute_sweep(SweepRequest(run=RunRequest((), runs=place.runs), name="front", resume=True))
    assert {(row["method"], row["trial"]) for row in report.pareto()} == {
        (row.method, row.trial) for row, on_front in zip(table.itertuples(), front, strict=True) if on_front
    }
    assert sum(front) > 0
    assert not dominates([1, 1], [1, 1], [True, False])
    assert dominates([1, 2], [1, 1], [True, False])
    assert len(answer.out.split("with more seeds")) > 2


def test_levels_of_bits_and_a_journal(comparison: Answer, place: Place) -> None:
    space = place.write("levels.yaml", {"recipe": {"codebook_size": [8, 64]}})
    journal = place.root / "journals" / "sweep.log"
    answer = typed("sweep", "vqgan,fsq", *place.typed("--space", space, "--same-bits", "--storage", journal, "--json"))
    assert answer.code == 0, answer.err
    found = {(row["method"], row["level"]): row for row in answer.objects}
    assert set(found) == {("vqgan", 192.0), ("vqgan", 384.0), ("fsq", 384.0)}
    assert {row["state"] for row in answer.objects} == {"cached"}
    assert "fsq is left out at 192 bits per image" in answer.err
    assert found["fsq", 384.0]["settings"][-1] == "codebook_size=64"
    assert journal.is_file()
    assert "sweep.log" in json.loads((place.runs / "x/sweeps/vqgan+fsq-levels-same-bits.json").read_text())["storage"]


def test_trials_on_postgresql(comparison: Answer, place: Place, postgres: Callable[[], str]) -> None:
    url = postgres()
    bare = url.replace("postgresql+psycopg2", "postgresql")  # as people write it
    ask = ["vqgan,fsq", *place.typed("--space", place.root / "sizes.yaml", "--sampler", "grid"), "--storage", bare]
    answer = typed("sweep", *ask, "--trials", 2, "--sweep-name", "pg", "--json")
    assert answer.code == 0, answer.err
    resumed = typed("sweep", "--resume", "pg", "--runs", place.runs, "--trials", 4, "--json")
    assert resumed.code == 0, resumed.err
    assert [row["state"] for row in resumed.objects] == ["cached"] * 4
    told = optuna.load_study(study_name="pg/fsq", storage=url).trials
    assert [trial.params for trial in told] == [
        {key: str(value) for key, value in row["drawn"].items()} for row in resumed.objects if row["method"] == "fsq"
    ]
    local = optuna.storages.RDBStorage(f"sqlite:///{place.runs / 'x/optuna.db'}")
    assert not [study for study in local.get_all_studies() if study.study_name.startswith("pg/")]


def test_a_trial_that_fails_is_a_row(place: Place) -> None:
    space = place.write(
        "odd.yaml", {"recipe": {"learning_rate": [1.0e-3, 1.0e30]}, "methods": {"vqgan": {"beta": [-1, 1]}}}
    )
    table = package.sweep("vqgan", sampler="grid", track=False, **place.options(space=space, name="failing"))
    assert len(table) == 4
    assert sorted(table["state"]) == ["done", "failed", "failed", "failed"]
    reasons = " ".join(table["error"].dropna())
    assert "beta" in reasons  # what the Config refuses
    assert "diverged" in reasons  # what training ends with
    again = package.sweep("vqgan", sampler="grid", track=False, **place.options(space=space, name="failing"))
    assert list(again["state"]) == list(table["state"])


def test_bounds_of_images_and_time(place: Place) -> None:
    options = place.options(name="bounded", settings=(*COMMON, "codebook_size=8"), space="optimiser")
    report = execute_sweep(asked_of(options, max_images=100, trials=4))
    assert [row["images"] for row in report.rows] == [64]
    assert "--max-images 100 leaves no room" in report.reason
    assert any("1 of 4" in cell for cell in report.table().rows[0])
    late = execute_sweep(asked_of(options, timeout=1e-3, trials=4))
    assert late.reason == "--timeout is over"
    assert len(late.rows) == 1


@pytest.mark.slow
def test_a_driver_that_is_killed_leaves_nothing_out(place: Place) -> None:
    space = place.write("rates.yaml", {"recipe": {"learning_rate": [0.001, 0.002]}})
    command = [
        sys.executable,
        "-m",
        "vqbench.cli",
        "sweep",
        "vqgan",
        *place.typed("--space", space, "--sampler", "grid"),
    ]
    process = subprocess.Popen([*command, "--name", "killed"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not list(place.runs.glob("killed/cells/*/status.json")) and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    table = package.sweep(resume="vqgan-rates", runs=place.runs, track=False)
    assert sorted(table["learning_rate"]) == [0.001, 0.002]
    assert set(table["state"]) <= {"done", "cached"}
    study = optuna.load_study(study_name="vqgan-rates/vqgan", storage=f"sqlite:///{place.runs / 'killed/optuna.db'}")
    told = [trial.params["learning_rate"] for trial in study.trials if trial.state.name == "COMPLETE"]
    assert sorted(told) == ["0.001", "0.002"]


def test_one_driver_at_a_time(comparison: Answer, place: Place) -> None:
    """Here a lock tells, on another machine of a disk that knows no locks the lease that it touches."""
    from vqbench.machine.lease import exclusive

    folder = place.runs / "x" / "sweeps" / "vqgan+fsq-sizes"

    def refused(where: str) -> None:
        with pytest.raises(UsageError, match=f"another command is running the sweep .*{where}"):
            package.sweep(resume="vqgan+fsq-sizes", runs=place.runs, track=False)

    with exclusive(folder):
        refused(f"process {os.getpid()}")
    lease = folder / "lease.json"
    lease.write_text(json.dumps({"token": "theirs", "machine": "elsewhere 1", "pid": 7}))
    refused("on elsewhere, process 7")
    lease.unlink()
    assert len(package.sweep(resume="vqgan+fsq-sizes", runs=place.runs, track=False)) == 4


@pytest.mark.slow
def test_a_pruned_cell_keeps_its_checkpoint_and_goes_on(tmp_path: Path) -> None:
    """Of two learning rates the second learns nothing, and is given up; a run of it then ends what was begun."""
    from vqbench.planning.request import make_request
    from vqbench.running.run import run

    images = write_images(tmp_path / "images", 60)
    (tmp_path / "rates.yaml").write_text("recipe: {learning_rate: [3.0e-3, 1.0e-12]}")
    options: dict[str, Any] = {
        "runs": tmp_path / "runs", "images": 960, "name": "p", "metrics": ["psnr"],
        "settings": (*settings()[1::2], "log_images=16", "checkpoint_images=960"),
    }  # fmt: skip
    asked = SweepRequest(
        run=make_request(["fsq"], f"folder:{images}", **options), spaces=(str(tmp_path / "rates.yaml"),),
        sampler="grid", pruner="median", objectives=("psnr",), trials=2, sampler_seed=_good_first(),
    )  # fmt: skip
    report = execute_sweep(asked)
    done, pruned = report.rows
    assert (done["state"], pruned["state"]) == ("done", "pruned")
    assert 0 < pruned["images"] < 960
    folder = Path(pruned["paths"][0])
    kept = images_in_checkpoint(folder / "checkpoints" / "last.pt")  # none of the regular ones was due
    assert kept >= pruned["images"]
    assert not (folder / "result.json").exists()
    seen = len((folder / "metrics.jsonl").read_text().splitlines())
    row = run(["fsq"], f"folder:{images}", track=False, **{**options, "settings": pruned["settings"]}).iloc[0]
    assert row["state"] == "done"
    assert row["cell"] == folder.name
    points = [json.loads(line)["images"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert points == sorted(set(points))
    assert len(points) > seen


def _good_first() -> int:
    """A sampler seed under which the first of two points is asked first."""
    import random

    def order(seed: int) -> list[int]:
        points = [0, 1]
        random.Random(seed).shuffle(points)
        return points

    return next(seed for seed in range(100) if order(seed) == [0, 1])


def test_a_dry_run_shows_the_studies_and_writes_nothing(place: Place, tmp_path: Path) -> None:
    answer = typed("sweep", "vqgan,fsq", *place.typed("--space", "codebook", "--trials", 5, "--dry-run"),
                   "--runs", tmp_path / "none")  # fmt: skip
    assert answer.code == 0, answer.err
    assert "vqgan+fsq-codebook/fsq" in answer.out
    assert not (tmp_path / "none").exists()


def test_a_dry_run_counts_the_states_of_the_cells(comparison: Answer, place: Place) -> None:
    space = place.write("more.yaml", {"recipe": {"codebook_size": [*SIZES, 16]}})
    ask = ["vqgan,fsq", *place.typed("--space", space, "--trials", 6, "--sweep-name", "grid", "--dry-run")]
    answer = typed("sweep", *ask, "--sampler", "grid", "--json")
    assert [study["cells"] for study in answer.objects] == [{"cached": 2, "missing": 1}] * 2
    shown = typed("sweep", *ask, "--sampler", "grid").out
    assert shown.count("2 cached, 1") == 2
    assert max(map(len, shown.splitlines()[:4])) <= 100
    assert [study["cells"] for study in typed("sweep", *ask, "--json").objects] == [{"cached": 2, "missing": 1}] * 2


def test_a_cached_trial_has_a_curve_for_the_pruner(comparison: Answer, place: Place) -> None:
    options = place.options(name="x")
    report = execute_sweep(asked_of(options, sampler="grid", pruner="median", trials=2, name="curves"))
    assert [row["state"] for row in report.rows] == ["cached", "cached"]
    study = optuna.load_study(study_name="curves/vqgan", storage=f"sqlite:///{place.runs / 'x/optuna.db'}")
    assert [sorted(trial.intermediate_values) for trial in study.trials] == [[16, 32, 48]] * 2


def test_the_plan_of_a_sweep_checks_the_objective_before_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown objective 'psnrr'"):
        plan_sweep(dataclasses.replace(request(tmp_path, "codebook"), objectives=("psnrr",)), Silent())
    assert StudyPlan("m", (), (), {}, 1, level=64.0).name("s") == "s/m/64"
