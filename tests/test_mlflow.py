"""What people find in MLflow, read back over REST from a real server; and an experiment brought back from it alone."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.commands import REPOSITORY, Answer, Command, settings, typed, until
from helpers.plugins import FAULTY
from helpers.servers import MLflowServer, Silence
from helpers.stored import Made, make_runs, spec_of

from vqbench.errors import UsageError
from vqbench.machine.atomic import write_arrays_atomically
from vqbench.machine.json_files import read_json, write_json
from vqbench.metrics.protocol import protocol_for
from vqbench.planning.plan import Plan
from vqbench.reports.experiment import load_experiment
from vqbench.reports.report import build_report
from vqbench.reports.write import FORMATS, write_report
from vqbench.results.cell_folder import cell_folders
from vqbench.running.report import report
from vqbench.tracking.fetch import fetch_experiment
from vqbench.tracking.pages import VIEWS, CommandRun, cell_tags, description, experiment_tags, missing_tags
from vqbench.tracking.tracker import Tracker, sync

HOSTILE = "it's <script>|`x`_*"
METHODS = (
    Made("vaevq", "vaevq", shift=3, components={"vlq": True, "rcs": True, "dcr": True}),
    Made("vaevq without dcr", "vaevq", shift=1, components={"vlq": True, "rcs": True, "dcr": False},
         collapsed={1: "usage fell below 10 %"}),
    Made("fsq", "fsq", failed={1: "cuda <out> of | memory"}),
    Made(HOSTILE),
)  # fmt: skip


class Rest:
    """MLflow's REST API, by urllib alone."""

    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, path: str, body: dict[str, Any] | None = None, **query: str) -> dict[str, Any]:
        data = json.dumps(body).encode() if body is not None else None
        url = f"{self.address}/api/2.0/mlflow/{path}?{urllib.parse.urlencode(query)}"
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            found: dict[str, Any] = json.loads(answer.read())
        return found

    def experiment(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("experiments/get-by-name", experiment_name=name)["experiment"]
        return found | {"tags": {tag["key"]: tag["value"] for tag in found["tags"]}}

    def runs(self, experiment: str, search: str = "", order: str = "attributes.run_name ASC") -> list[dict[str, Any]]:
        body = {"experiment_ids": [self.experiment(experiment)["experiment_id"]], "filter": search}
        found = self.ask("runs/search", body | {"order_by": [order], "max_results": 1000})
        return [
            {**run["info"], **{part: {x["key"]: x["value"] for x in run["data"].get(part, [])} for part in run["data"]}}
            for run in found.get("runs", [])
        ]

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        points = self.ask("metrics/get-history", run_id=run_id, metric_key=metric)["metrics"]
        return sorted((int(point["step"]), point["value"]) for point in points)

    def artifacts(self, run_id: str, path: str = "") -> set[str]:
        found = self.ask("artifacts/list", run_id=run_id, **({"path": path} if path else {}))
        return {each["path"] for each in found.get("files", [])}

    def download(self, run_id: str, path: str) -> bytes:
        url = f"{self.address}/get-artifact?{urllib.parse.urlencode({'run_uuid': run_id, 'path': path})}"
        with urllib.request.urlopen(url, timeout=60) as answer:
            content: bytes = answer.read()
        return content


def make_tracked(runs: Path, name: str, seeds: tuple[int, ...] = (0, 1)) -> Path:
    """A made experiment as a command leaves it: with its record, its report, curves, codes and what cells share."""
    folder = make_runs(runs, name, METHODS, seeds)
    (folder / "commands").mkdir()
    cells = cell_folders(folder)
    protocol = cells[0].spec["protocol"]
    record = {
        "id": f"id-of-{name}", "kind": "run", "name": "0001 run vaevq, fsq", "cells": [cell.name for cell in cells],
        "experiment": name, "command": "vqbench run", "methods": "vaevq,fsq", "dataset": "photos", "recipe": "tiny",
        "seeds": "0,1", "protocol": protocol["hash"],
        "note": f"protocol {protocol['name']} ({protocol['hash']})\n  48 validation images", "started": 1_760_000_000.5,
        "state": "FINISHED",
    }  # fmt: skip
    write_json(folder / "commands" / "0001.json", record)
    (folder / "commands" / "0001.index.html").write_text("<!doctype html><title>page</title>")
    draw = np.random.default_rng(0)
    for i, cell in enumerate(cells):
        tracked = {"attempt": f"a{i}", "command": "0001", "label": cell.spec["label"], "started": 1_760_000_000.0 + i}
        write_json(cell.path / "tracking.json", tracked)
        (cell.path / "log.txt").write_text("all that it printed\n")
        points = [{"images": 64 * j, "time": 1.0, "usage": 0.1 * j, "psnr": 10.0 + j} for j in (1, 2, 3)]
        (cell.path / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
        if (cell.result or {})["state"] == "failed":
            continue
        codes = np.arange(192).reshape(48, 4, 1) % 8
        if i == 0:  # MLflow gets a picture of them, which takes a while to draw
            write_arrays_atomically(cell.path / "codes.npz", histogram=np.full((1, 8), 24), indices=codes)
        write_arrays_atomically(cell.path / "features.npz", features=draw.normal(size=(48, 3)))
    write_arrays_atomically(folder / f"reference-{protocol['hash']}.npz", features=draw.normal(size=(48, 3)))
    return folder


@dataclasses.dataclass(frozen=True)
class Place:
    """A server, a real experiment `real`, which was mirrored while it ran, and a made one, `made`, which was synced."""

    root: Path
    server: MLflowServer
    rest: Rest
    run: Answer

    @property
    def runs(self) -> Path:
        return self.root / "runs"


def behind_a_proxy(address: str) -> dict[str, str]:
    """Variables of somebody whose requests go through a proxy, which cannot know the way to this machine."""
    names = ("http_proxy", "https_proxy", "all_proxy")
    return {spelled: address for name in names for spelled in (name, name.upper())} | {
        "no_proxy": "",
        "NO_PROXY": "x.y",
    }


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory, vqbench: Command, images: Path) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("mlflow")
    server = MLflowServer(root, f"sqlite:///{root / 'server.db'}")
    try:
        server.start()
        run = vqbench(
            "run", "--plugin", FAULTY, "--methods", "vaevq,faulty@tensors", "--dataset", f"folder:{images}",
            "--images", "64", "--metrics", "psnr,usage", "--runs", root / "runs", "--name", "real", "--json", "--page",
            *settings("log_images=16"), MLFLOW_TRACKING_URI=server.address, **behind_a_proxy("http://127.0.0.1:9"),
        )  # fmt: skip
        make_tracked(root / "runs", "made")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", server.address)
            assert sync(root / "runs").problems == []
        yield Place(root, server, Rest(server.address), run)
    finally:
        server.kill()


def test_a_command_is_a_row_with_its_cells_below_it_and_names_sort(tracked: Place) -> None:
    assert tracked.run.code == 1, tracked.run.err
    assert "did not take everything" not in tracked.run.err
    parent, *cells = tracked.rest.runs("real")
    assert parent["run_name"] == "0001 run vaevq, faulty@tensors"
    assert parent["tags"]["vqbench.kind"] == "command"
    assert parent["status"] == "FAILED"
    assert [cell["run_name"] for cell in cells] == ["faulty@tensors s00", "vaevq s00"]
    assert {cell["tags"]["mlflow.parentRunId"] for cell in cells} == {parent["run_id"]}
    assert [cell["status"] for cell in cells] == ["FAILED", "FINISHED"]
    assert all(0 < int(run["end_time"]) - int(run["start_time"]) < 600_000 for run in (parent, *cells))


def test_tags_params_metrics_and_curves(tracked: Place) -> None:
    failed, done = (run for run in tracked.rest.runs("real", "tags.`vqbench.kind` = 'cell'"))
    (row,) = (row for row in tracked.run.objects if row["state"] == "done")
    wanted = {
        "method": "vaevq", "group": "vaevq", "seed": "0", "recipe": "tiny", "state": "done", "collapsed": "no",
        "component.dcr": "on", "component.vlq": "on", "component.rcs": "on", "protocol": row["protocol"],
        "dataset": row["dataset"],
    }  # fmt: skip
    assert wanted.items() <= done["tags"].items()
    assert done["tags"]["protocol_name"].startswith("folder-images")
    assert failed["tags"]["state"] == "failed"
    assert "memory" in failed["tags"]["error"]
    assert done["params"]["recipe.images"] == "64"
    assert done["params"]["vaevq.dcr"] == "True"
    for name, value in row["scores"].items():
        assert tracked.rest.history(done["run_id"], name) == [(64, pytest.approx(value))]
    assert done["metrics"]["params_total"] == row["params"]["total"]
    lines = [json.loads(line) for line in (Path(row["path"]) / "metrics.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines] == [16, 32, 48, 64]
    for name in ("usage", "psnr"):
        expected = [(line["images"], pytest.approx(line[name])) for line in lines]
        assert tracked.rest.history(done["run_id"], f"train/{name}") == expected


def test_tables_picture_and_page_are_attached_to_the_command(tracked: Place) -> None:
    (parent,) = tracked.rest.runs("real", "tags.`vqbench.kind` = 'command'")
    names = {name.partition(".")[2] for name in tracked.rest.artifacts(parent["run_id"])}
    assert {"md", "jsonl", "png", "index.html"} <= names
    table = tracked.rest.download(parent["run_id"], "0001.jsonl").decode()
    assert [json.loads(line)["method"] for line in table.splitlines()] == ["vaevq", "faulty@tensors"]
    (made,) = tracked.rest.runs("made", "tags.`vqbench.kind` = 'command'")
    assert tracked.rest.artifacts(made["run_id"]) == {"0001.index.html", "shared"}
    assert b"<title>page" in tracked.rest.download(made["run_id"], "0001.index.html")


def test_the_description_has_the_protocol_the_commands_and_a_link_to_the_page(tracked: Place) -> None:
    experiment = tracked.rest.experiment("made")
    note = experiment["tags"]["mlflow.note.content"]
    protocol = next(iter(cell_folders(tracked.runs / "made"))).spec["protocol"]
    assert f"**protocol {protocol['name']} ({protocol['hash']})**" in note
    assert "- 48 validation images" in note
    assert "- [0001 run vaevq, fsq](" in note
    link = re.search(r"\[report of 0001 [^]]*\]\(#/experiments/(\w+)/runs/(\w+)/artifacts/([^)?]+)\?[^)]+\)", note)
    assert link is not None, note
    assert link[1] == experiment["experiment_id"]
    assert b"<title>page" in tracked.rest.download(link[2], link[3])


def test_the_prepared_views_name_what_is_there(tracked: Place) -> None:
    tags = tracked.rest.experiment("made")["tags"]
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    views = {}
    for key, value in tags.items():
        if key.startswith("mlflow.sharedViewState."):
            envelope = json.loads(value)
            assert isinstance(envelope["createdAt"], int)
            views[key.rpartition(".")[2]] = json.loads(envelope["state"])
    assert set(views) == {"vqbench-1-methods", "vqbench-1-commands", "vqbench-1-curves", "vqbench-1-cells"}
    columns = views["vqbench-1-methods"]["columnOrder"]
    assert columns[:3] == ["metrics.`rfid`", "metrics.`psnr`", "metrics.`ssim`"]
    cells = tracked.rest.runs("made", views["vqbench-1-methods"]["searchFilter"])
    assert len(cells) == 8
    there = {f"{kind}.`{name}`" for cell in cells for kind in ("metrics", "tags") for name in cell.get(kind, {})}
    elsewhere = {f"metrics.`{name}`" for name in ("lpips_alex", "lpips_vgg", "lpips_squeeze", "quantization_error")}
    assert set(columns) - there == elsewhere
    charts = {card["metricKey"]: card["type"] for card in views["vqbench-1-curves"]["compareRunCharts"]}
    assert (charts["train/usage"], charts["train/psnr"], charts["rfid"]) == ("LINE", "LINE", "BAR")
    sections = {section["uuid"] for section in views["vqbench-1-curves"]["compareRunSections"]}
    assert {card["metricSectionId"] for card in views["vqbench-1-curves"]["compareRunCharts"]} <= sections
    # MLflow shows children below their parent in this order alone
    assert views["vqbench-1-commands"]["orderByKey"] == "attributes.start_time"


def test_mlflow_averages_over_seeds_alone(tracked: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = tracked.rest.runs("made", "tags.`vqbench.kind` = 'cell'")
    groups = {(cell["tags"]["group"], cell["tags"]["vqbench.setup"]) for cell in cells}
    assert {group for group, _ in groups} >= {"vaevq", "vaevq without dcr", "fsq"}
    assert len(groups) == 4
    # the same method with another budget is another group
    folder = make_tracked(tmp_path, "budgets", (0,))
    cell = next(cell for cell in cell_folders(folder) if cell.spec["label"] == "vaevq")
    longer = shutil.copytree(cell.path, cell.path.with_name(f"{cell.name}-longer"))
    spec = cell.spec
    spec["recipe"]["images"] *= 2
    write_json(longer / "spec.json", spec)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracked.server.address)
    assert sync(tmp_path).problems == []
    both = tracked.rest.runs("budgets", "tags.method = 'vaevq'")
    names = sorted(cell["tags"]["group"] for cell in both)
    assert names == ["vaevq", f"vaevq {both[1]['tags']['vqbench.setup']}"] or names == [
        "vaevq", f"vaevq {both[0]['tags']['vqbench.setup']}"
    ]  # fmt: skip


FILTERS = [
    line
    for block in re.findall(r"```text\n(.*?)```", (REPOSITORY / "docs" / "mlflow.md").read_text(), re.DOTALL)
    for line in block.splitlines()
]


@pytest.mark.parametrize("search", FILTERS)
def test_the_filters_of_the_docs_find_cells(tracked: Place, search: str) -> None:
    found = tracked.rest.runs("made", search)
    assert 0 < len(found) < 9


def test_an_experiment_comes_back_from_mlflow_alone(tracked: Place, tmp_path: Path) -> None:
    for name in ("real", "made"):
        fetch_experiment(tracked.server.address, name, tmp_path)
        here, back = load_experiment(tracked.runs, name), load_experiment(tmp_path, name)
        assert back.notes == here.notes
        assert facts(back) == facts(here)
        for cell in cell_folders(tracked.runs / name):
            for file in ("spec.json", "result.json", "metrics.jsonl", "log.txt", "per_image.parquet", "codes.npz",
                         "features.npz", "reconstructions.npz", "recon.png"):  # fmt: skip
                assert content(tmp_path / name / "cells" / cell.name / file) == content(cell.path / file), file
            assert (read_json(tmp_path / name / "cells" / cell.name / "mlflow.json") or {})["run_id"]
        assert tables(back, tmp_path / "back") == tables(here, tmp_path / "here")
        for shared in (tracked.runs / name).glob("*.npz"):
            assert content(tmp_path / name / shared.name) == content(shared)
    assert list((tmp_path / "made").glob("reference-*.npz"))


def tables(experiment: Any, out: Path) -> dict[str, bytes]:
    """The tables of a report, by file."""
    return {path.name: path.read_bytes() for path in write_report(build_report(experiment), out, FORMATS[:-1])}


def content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def facts(experiment: Any) -> list[Any]:
    """All that tables are made of."""
    sections = []
    for section in experiment.sections:
        rows = [{k: v for k, v in row.items() if k != "path"} for group in section.groups for row in group.rows]
        sections.append([section.title, [group.label for group in section.groups], rows])
    return sections


def test_what_is_new_or_gone_comes_with_the_next_fetch(
    tracked: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracked.server.address)
    folder = make_tracked(tmp_path / "runs", "changing", (0,))
    vaevq, fsq, *_ = sorted(cell_folders(folder), key=lambda cell: cell.spec["label"] != "vaevq")
    assert sync(tmp_path / "runs").problems == []
    fetch_experiment(tracked.server.address, "changing", tmp_path / "back")
    back = tmp_path / "back" / "changing" / "cells"
    untouched = (back / fsq.name / "result.json").stat().st_ino

    # trained again: another attempt, which has not ended yet
    first = vaevq.result
    (vaevq.path / "result.json").unlink()
    write_json(vaevq.path / "tracking.json", {"attempt": "again", "command": "0001", "label": "vaevq"})
    assert sync(tmp_path / "runs").problems == []
    fetch_experiment(tracked.server.address, "changing", tmp_path / "back")
    assert load_experiment(tmp_path / "back", "changing").unfinished == (vaevq.name,)
    assert not (back / vaevq.name / "features.npz").exists()

    # and now it has, without a file that was there before
    write_json(vaevq.path / "result.json", {**(first or {}), "seconds": 7.0})
    (vaevq.path / "per_image.parquet").unlink()
    assert sync(tmp_path / "runs").problems == []
    fetch_experiment(tracked.server.address, "changing", tmp_path / "back")
    assert (read_json(back / vaevq.name / "result.json") or {})["seconds"] == 7.0
    assert (back / vaevq.name / "features.npz").is_file()
    assert not (back / vaevq.name / "per_image.parquet").exists()
    assert (back / fsq.name / "result.json").stat().st_ino == untouched


@dataclasses.dataclass(frozen=True)
class Sent:
    """A made experiment that was sent to a server, as somebody deletes from it there."""

    place: Place
    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    def ids(self, search: str = "") -> dict[str, str]:
        """Run by what it is of."""
        runs = self.place.rest.runs(self.name, search)
        return {run["tags"].get("vqbench.cell") or run["tags"]["vqbench.command"]: run["run_id"] for run in runs}

    def sync(self) -> Answer:
        return typed("sync", "--runs", self.folder.parent)

    def delete(self, run_id: str, for_good: bool = False) -> None:
        self.place.rest.ask("runs/delete", {"run_id": run_id})
        if for_good:
            self.store._hard_delete_run(run_id)  # as `mlflow gc` does

    @property
    def store(self) -> Any:
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        return SqlAlchemyStore(self.place.server.store, str(self.place.root / "artifacts"))

    def assert_whole(self) -> None:
        """All is there once, below the command and with its files."""
        rest, ids = self.place.rest, self.ids()
        assert len(ids) == len(self.place.rest.runs(self.name)) == 5
        parent = ids[f"id-of-{self.name}"]
        assert "shared" in rest.artifacts(parent)
        for run in rest.runs(self.name, "tags.`vqbench.kind` = 'cell'"):
            assert run["tags"]["mlflow.parentRunId"] == parent
            assert {"spec.json", "result.json", "log.txt"} <= rest.artifacts(run["run_id"])
            assert len(rest.history(run["run_id"], "train/usage")) == 3
            assert run["status"] == ("FAILED" if run["tags"]["state"] == "failed" else "FINISHED")


@pytest.fixture(scope="module")
def made_to_be_sent(tracked: Place, tmp_path_factory: pytest.TempPathFactory) -> Sent:
    return Sent(tracked, make_tracked(tmp_path_factory.mktemp("sent") / "runs", "sent", (0,)))


@pytest.fixture
def sent(made_to_be_sent: Sent, monkeypatch: pytest.MonkeyPatch) -> Sent:
    """One experiment for several tests: what each deletes is there again at its end."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", made_to_be_sent.place.server.address)
    assert made_to_be_sent.sync().code == 0
    made_to_be_sent.assert_whole()
    return made_to_be_sent


@pytest.mark.parametrize("for_good", [False, True])
def test_runs_that_were_deleted_are_there_again_after_sync(sent: Sent, for_good: bool) -> None:
    before = sent.ids()
    command, (cell, *_) = before[f"id-of-{sent.name}"], [key for key in before if "/" in key]
    for gone in ([before[cell]], [command], list(before.values())):
        there = set(sent.ids().values())
        for run_id in {sent.ids()[key] for key in before if before[key] in gone}:
            sent.delete(run_id, for_good)
        answer = sent.sync()
        assert answer.code == 0, answer.err
        assert "4 cells up to date" in answer.out
        runs = "1 run" if len(gone) == 1 else "5 runs"
        said = f"{runs} MLflow did not have any more: sent again" if for_good else f"{runs} had been deleted in MLflow"
        assert said in answer.err
        sent.assert_whole()
        assert (set(sent.ids().values()) == there) != for_good
        quiet = sent.sync()
        assert (quiet.code, quiet.err) == (0, "")


def test_sync_of_what_is_up_to_date_asks_once_for_each_experiment(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    asked: list[str] = []
    for name in ("search_runs", "get_run", "get_experiment", "get_experiment_by_name", "log_batch", "set_tag"):
        real = getattr(MlflowClient, name)
        monkeypatch.setattr(
            MlflowClient,
            name,
            lambda *args, _name=name, _real=real, **more: asked.append(_name) or _real(*args, **more),
        )
    assert sent.sync().code == 0
    assert sorted(asked) == ["get_experiment", "get_experiment_by_name", "search_runs"]


def test_a_server_that_was_begun_anew_gets_everything_again(sent: Sent) -> None:
    experiment = sent.place.rest.experiment(sent.name)["experiment_id"]
    runs = sent.ids().values()
    sent.place.rest.ask("experiments/delete", {"experiment_id": experiment})
    for run_id in runs:
        sent.store._hard_delete_run(run_id)
    sent.store._hard_delete_experiment(experiment)
    answer = sent.sync()
    assert answer.code == 0, answer.err
    assert "5 runs MLflow did not have any more: sent again" in answer.err
    sent.assert_whole()


def test_an_experiment_that_was_deleted_says_how_it_comes_back(
    sent: Sent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = sent.place.rest.experiment(sent.name)["experiment_id"]
    sent.place.rest.ask("experiments/delete", {"experiment_id": experiment})
    secret = sent.place.server.address.replace("http://", "http://me:zz9@")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", secret)
    way = f"mlflow experiments restore --experiment-id {experiment}"
    answer = sent.sync()
    assert answer.code == 1
    assert f"the MLflow experiment '{sent.name}' was deleted" in answer.err
    assert "0 cells up to date" in answer.out
    assert way in answer.err
    assert "--name" in answer.err
    with pytest.raises(UsageError, match="was deleted") as error:
        fetch_experiment(secret, sent.name, tmp_path / "back")
    assert way in error.value.hint
    (sent.folder / "commands" / "0001.mlflow.json").unlink()  # what a new command finds
    said: list[str] = []
    tracker = Tracker(sent.folder.parent, said.append)
    tracker._record = sent.folder / "commands" / "0001.json"
    tracker._thread.start()
    tracker.finish_command(Plan(sent.name, sent.folder, (), None, None, None), [], dict)  # type: ignore[arg-type]
    assert f"the MLflow experiment '{sent.name}' was deleted" in said[0]
    assert way in said[1]
    assert "--name" in said[1]
    assert "zz9" not in answer.out + answer.err + error.value.what + error.value.hint + "".join(said)
    sent.place.rest.ask("experiments/restore", {"experiment_id": experiment})
    assert sent.sync().code == 0
    sent.assert_whole()


def test_what_an_earlier_version_remembers_is_believed_and_its_password_goes(
    sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memories hold the address as it was given, and its record the command."""
    secret = sent.place.server.address.replace("http://", "http://me:zz9@")
    files = [*sent.folder.glob("cells/*/mlflow.json"), *sent.folder.glob("**/*.mlflow.json")]
    assert len(files) == 6
    for file in files:
        write_json(file, {**(read_json(file) or {}), "uri": secret})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", secret)
    before = sent.ids()
    answer = sent.sync()
    assert (answer.code, answer.err) == (0, "")
    assert sent.ids() == before
    assert not [file for file in files if "zz9" in file.read_text()]

    # a parameter cannot be changed: that of a run which holds the password stays, and a new one gets none
    record, memory = sent.folder / "commands" / "0001.json", sent.folder / "commands" / "0001.mlflow.json"
    write_json(record, {**(read_json(record) or {}), "command": "vqbench sweep --storage postgresql://me:zz9@host/db"})
    memory.unlink()
    assert sent.sync().code == 0
    sent.delete(before[f"id-of-{sent.name}"], for_good=True)
    assert sent.sync().code == 0
    (parent,) = sent.place.rest.runs(sent.name, "tags.`vqbench.kind` = 'command'")
    assert parent["params"]["command"] == "vqbench sweep --storage postgresql://me:***@host/db"


def test_sync_names_what_is_damaged_and_sends_the_rest(
    tracked: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracked.server.address)
    folder = make_tracked(tmp_path, "damaged")
    cells = [cell.path for cell in cell_folders(folder) if (cell.result or {})["state"] == "done"]
    spec, result, nothing, tracking, codes, lost, deleted = cells[:7]
    (spec / "spec.json").write_text("[]")
    (result / "result.json").write_text("{")
    (nothing / "spec.json").unlink()
    (tracking / "tracking.json").write_text("")
    (codes / "codes.npz").write_bytes(b"PK cut off")
    write_json(lost / "tracking.json", {**(read_json(lost / "tracking.json") or {}), "command": "0003"})
    write_json(deleted / "tracking.json", {**(read_json(deleted / "tracking.json") or {}), "command": "0004"})
    (folder / "commands" / "0002.json").touch()
    (folder / "commands" / "0003.json").write_text('{"name": ')
    damaged = {"0002.json", "0003.json", "0004.json", *(cell.name for cell in (spec, result, nothing, tracking))}
    for _ in range(2):
        report = sync(tmp_path)
        assert {problem.partition(":")[0] for problem in report.problems} == damaged
        assert len(report.problems) == len(damaged)
        said = ("is not whole", "no spec.json", "is gone")
        assert all(any(words in problem for words in said) for problem in report.problems)
        assert report.cells == len(list((folder / "cells").iterdir())) - 4
    assert len(tracked.rest.runs("damaged", "tags.`vqbench.kind` = 'command'")) == 3
    (codes / "tracking.json").write_text("{}")  # what was sent tells whose it is
    assert {problem.partition(":")[0] for problem in sync(tmp_path).problems} == damaged


def test_files_that_are_too_large_are_named(tracked: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracked.server.address)
    monkeypatch.setenv("VQBENCH_MLFLOW_MAX_MB", "1")
    folder = make_tracked(tmp_path / "runs", "large", (0,))
    cell = next(cell for cell in cell_folders(folder) if (cell.result or {})["state"] == "done")
    noise = np.random.default_rng(0).integers(0, 256, 2**20 + 1, dtype=np.uint8)
    write_arrays_atomically(cell.path / "features.npz", features=noise)
    assert sync(tmp_path / "runs").problems == []
    fetch_experiment(tracked.server.address, "large", tmp_path / "back")
    assert not (tmp_path / "back" / "large" / "cells" / cell.name / "features.npz").exists()
    (note,) = load_experiment(tmp_path / "back", "large").notes
    assert f"{cell.name}: features.npz" in note
    assert "too large for MLflow" in note


def test_what_a_server_says_is_not_trusted_with_paths(tracked: Place, tmp_path: Path) -> None:
    created = tracked.rest.ask("experiments/create", {"name": "odd"})["experiment_id"]
    for cell in ("../../escaped/x", "../x", "/tmp/x/y", "..\\x/y"):
        tags = [{"key": "vqbench.cell", "value": cell}, {"key": "vqbench.files", "value": '{"../../evil": ""}'}]
        tracked.rest.ask("runs/create", {"experiment_id": created, "tags": tags})
    with pytest.raises(UsageError, match="holds no cells of vqbench"):
        fetch_experiment(tracked.server.address, "odd", tmp_path / "back")
    assert list(tmp_path.rglob("*")) == []


def test_cells_that_were_sent_without_files_are_told_from_unfinished_ones(tracked: Place, tmp_path: Path) -> None:
    created = tracked.rest.ask("experiments/create", {"name": "bare"})["experiment_id"]
    tags = [{"key": "vqbench.cell", "value": "vqgan-s0/a0"}]
    run = tracked.rest.ask("runs/create", {"experiment_id": created, "tags": tags})["run"]["info"]["run_id"]
    tracked.rest.ask("runs/update", {"run_id": run, "status": "FINISHED"})
    with pytest.raises(UsageError, match="vqgan-s0: its scores are in MLflow and its files are not; `vqbench sync`"):
        report("bare", from_mlflow=tracked.server.address, out=tmp_path)


def test_what_cannot_be_fetched_is_said(tracked: Place, tmp_path: Path) -> None:
    address = tracked.server.address
    with pytest.raises(UsageError, match=r"no experiment 'maid'.*did you mean made"):
        fetch_experiment(address, "maid", tmp_path)
    with pytest.raises(UsageError, match="holds no cells of vqbench"):
        fetch_experiment(address, "Default", tmp_path)
    with pytest.raises(UsageError, match="results of its own"):
        fetch_experiment(address, "made", tracked.runs)
    with pytest.raises(UsageError, match="no answer from MLflow at http://"):
        fetch_experiment("http://127.0.0.1:9", "made", tmp_path)
    with pytest.raises(UsageError, match="there is no file"):
        fetch_experiment(f"sqlite:///{tmp_path}/none.db", "made", tmp_path)
    with pytest.raises(UsageError, match="no address of MLflow"):
        fetch_experiment("mlruns", "made", tmp_path)
    assert list(tmp_path.rglob("*")) == []


def test_ui_prints_where_a_server_shows_the_experiments(tracked: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracked.server.address)
    answer = typed("ui", "made", "--runs", tracked.runs)
    assert answer.code == 0, answer.err
    experiment = tracked.rest.experiment("made")
    assert f"{tracked.server.address}/#/experiments/{experiment['experiment_id']}/runs?" in answer.out
    for key in re.findall(r"viewStateShareKey=([\w-]+)", answer.out):
        assert f"mlflow.sharedViewState.{key}" in experiment["tags"]
    assert answer.out.count("viewStateShareKey") == 4
    answer = typed("ui", "maid", "--runs", tracked.runs)
    assert answer.code == 2
    assert "unknown experiment 'maid'; did you mean made" in answer.err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    answer = typed("ui", "--runs", tracked.runs)
    assert answer.code == 2
    assert "no tracking server at http://127.0.0.1:9" in answer.err
    assert "Traceback" not in answer.err


def test_ui_serves_a_local_store_until_it_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    make_tracked(tmp_path, "local", (0,))
    assert sync(tmp_path).problems == []
    command = [sys.executable, "-m", "vqbench.cli", "ui", "--runs", str(tmp_path), "--port", "0"]
    pipe, proxy = subprocess.PIPE, Silence()
    env = {**os.environ, **behind_a_proxy(proxy.address)}
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True, env=env)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "local\n"  # not before it answers
        address = process.stdout.readline().split()[1]
        port = re.search(r":(\d+)/", address)
        assert port is not None
        note = Rest(address.partition("/#")[0]).experiment("local")["tags"]["mlflow.note.content"]
        assert "48 validation images" in note
        taken = subprocess.run([*command[:-1], port[1]], capture_output=True, text=True, check=False)
        assert taken.returncode == 2
        assert f"port {port[1]} is taken" in taken.stderr
        assert processes(tmp_path / "mlflow.db")
    finally:
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=120)
        proxy.end()
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert proxy.taken == []
    until(lambda: not processes(tmp_path / "mlflow.db"), "the end of its processes")


def processes(store: Path) -> list[int]:
    """Processes that know of a store: MLflow's server, and its workers by their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            known = folder.joinpath("cmdline").read_bytes() + folder.joinpath("environ").read_bytes()
        except OSError:
            continue
        if str(store).encode() in known:
            found.append(int(folder.name))
    return found


def test_a_description_keeps_what_somebody_wrote_above_it_and_says_that_protocols_differ() -> None:
    def command(number: int, protocol: str) -> CommandRun:
        tags = {"vqbench.protocol": f"protocol {protocol} (abc)\n  7 images", "methods": "vaevq", "seeds": "0"}
        return CommandRun(f"run{number}", f"{number:04d} run {HOSTILE}", "FINISHED", tags)

    first = description("", "5", [command(1, "photos-32-v1")])
    edited = "# Mine\n\nmy words\n\n" + first
    second = description(edited, "5", [command(2, "faces-64-v1"), command(1, "photos-32-v1")])
    assert second.startswith("# Mine\n\nmy words\n\n")
    assert second.count("my words") == second.count("**protocol photos-32-v1") == 1
    assert "2 protocols" in second
    assert "2 protocols" not in first
    assert "<script>" not in second
    assert description(second, "5", [command(2, "faces-64-v1"), command(1, "photos-32-v1")]) == second
    assert len(description("", "5", [command(n, f"p{n}" * 200) for n in range(100)])) <= 20_000


def test_views_show_what_was_asked_for_and_keep_what_somebody_changed() -> None:
    def columns(tags: Mapping[str, str], view: str) -> list[str]:
        return json.loads(json.loads(tags[f"mlflow.sharedViewState.{VIEWS[view][0]}"])["state"])["columnOrder"]

    tags = missing_tags({})
    assert tags == experiment_tags()
    assert missing_tags(tags) == missing_tags(tags, ["psnr"]) == {}
    later = missing_tags(tags, ["kid", "dead_codes"])
    for view in VIEWS:
        assert {"metrics.`kid`", "metrics.`dead_codes`"} <= set(columns(later, view))
        assert columns(later, view)[:2] == columns(tags, view)[:2]
    both = missing_tags({**tags, **later}, ["bpp"])
    assert {"metrics.`kid`", "metrics.`bpp`"} <= set(columns(both, "methods"))
    mine = {**tags, f"mlflow.sharedViewState.{VIEWS['methods'][0]}": "{}"}
    assert columns(missing_tags(mine, ["kid"]), "cells")
    assert not [key for key in missing_tags(mine, ["kid"]) if "methods" in key]


def test_a_cell_and_a_protocol_carry_the_caution_of_few_images() -> None:
    spec = spec_of("vqgan", 0, n_images=48, metrics=["rfid"])
    assert "rFID of 48 images" in cell_tags("vqgan", spec, "abc", "vqgan")["caution"]
    assert "caution" not in cell_tags("vqgan", {**spec, "metrics": ["psnr"]}, "abc", "vqgan")
    few = protocol_for("photos", 32, "0" * 64, 48, "the right-hand quarter")
    many = protocol_for("photos", 32, "0" * 64, 5000, "the right-hand quarter")
    assert "rFID of 48 images is biased upwards" in few.describe()
    assert "biased" not in many.describe()
    assert few.hash == "a32faf69bbce"  # a caution is no part of what a number means
    tags = {"vqbench.protocol": "protocol a (b)\n  7 images", "methods": "fsq", "seeds": "0"}
    older = CommandRun("1", "0001 run", "FINISHED", tags)
    newer = CommandRun("2", "0002 run", "FINISHED", {**tags, "vqbench.protocol": tags["vqbench.protocol"] + "\n  more"})
    assert "2 protocols" not in description("", "5", [newer, older])
    assert "- more" in description("", "5", [newer, older])
