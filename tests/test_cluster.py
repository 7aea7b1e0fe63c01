"""Cells on a cluster: real schedulers and workers of dask, some of which are killed."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.clusters import Cluster, cells, is_alive, one_run, parent_of, running, starts
from helpers.commands import DEADLINE, Background, Command, Running, typed, until
from helpers.servers import MLflowServer


@pytest.mark.slow
def test_a_killed_worker_costs_the_way_since_the_checkpoint(
    vqbench: Command, cluster: Cluster, images: Path, tmp_path: Path
) -> None:
    more = ("--methods", "faulty,fsq", "--images", "640", "--set", "faulty.pause=0.1")
    killed, through = tmp_path / "killed", tmp_path / "through"
    driver = Background(*one_run(images, killed, *more, "--scheduler", cluster.file))
    pattern = "x/cells/faulty-*/checkpoints/last.pt"
    until(lambda: list(killed.glob(pattern)), "a checkpoint")
    pids = running(killed)
    victim = next(pid for name, pid in pids.items() if name.startswith("faulty-"))
    worker = next(process for process in cluster.workers if process.pid == parent_of(victim))
    worker.kill()
    until(lambda: not is_alive(victim), "the end of the killed worker's cell")
    answer = driver.answer()
    assert answer.code == 0, answer.err
    assert [row["state"] for row in answer.objects] == ["done", "done"]
    by_method = {row["method"]: Path(row["path"]) for row in answer.objects}
    assert starts(by_method["faulty"]) == 2
    assert starts(by_method["fsq"]) <= 2  # it may have been waiting, or running, on the worker that died
    points = [json.loads(line)["images"] for line in (by_method["faulty"] / "metrics.jsonl").read_text().splitlines()]
    assert points == sorted(set(points))
    undisturbed = vqbench(*one_run(images, through, *more, "--workers", "2"))
    assert undisturbed.code == 0, undisturbed.err
    for row, other in zip(answer.objects, undisturbed.objects, strict=True):
        assert row["scores"] == other["scores"]
        weights = [Path(r["path"]) / "checkpoints" / "tokenizer.safetensors" for r in (row, other)]
        assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.slow
def test_a_cluster_without_workers_is_waited_for_aloud(cluster: Cluster, images: Path, tmp_path: Path) -> None:
    more = ("--methods", "faulty", "--images", "640", "--set", "faulty.pause=0.1", "--scheduler", cluster.file)
    said = tmp_path / "said.txt"
    with said.open("w") as stderr:
        driver = Running(one_run(images, tmp_path / "runs", *more), stderr=stderr)
    until(lambda: list(tmp_path.glob("runs/x/cells/*/checkpoints/last.pt")), "a checkpoint", driver)
    for worker in cluster.workers:
        worker.kill()
    until(lambda: "no worker is left in the cluster" in said.read_text(), "the word", driver)
    assert "1 cell will go on as soon as one joins it" in " ".join(said.read_text().split())
    cluster.start_worker()
    out, _ = driver.communicate(timeout=DEADLINE)
    assert driver.returncode == 0, said.read_text()
    assert "the cluster has a worker again" in said.read_text()
    assert [json.loads(line)["state"] for line in out.splitlines()] == ["done"]


@pytest.mark.slow
def test_a_scheduler_that_goes_away_ends_the_command_and_its_cells(
    cluster: Cluster, images: Path, tmp_path: Path
) -> None:
    more = ("--methods", "faulty", "--images", "80000", "--set", "faulty.pause=0.05")
    driver = Background(*one_run(images, tmp_path / "runs", *more, "--scheduler", cluster.file))
    until(lambda: list(tmp_path.glob("runs/x/cells/*/checkpoints/last.pt")), "a checkpoint")
    (pid,) = running(tmp_path / "runs").values()
    cluster.processes[0].kill()
    answer = driver.answer()
    assert (answer.code, "error: the dask scheduler is gone" in answer.err) == (1, True), answer.err
    assert "Traceback" not in answer.err
    until(lambda: not is_alive(pid), "the end of the cell")
    assert list(tmp_path.glob("runs/x/cells/*/checkpoints/last.pt"))


def test_what_a_cluster_cannot_give_is_said_at_once(cluster: Cluster, images: Path, tmp_path: Path) -> None:
    ask = one_run(images, tmp_path / "runs", "--methods", "fsq", "--images", "8")
    none = typed(*ask, "--scheduler", cluster.file, "--resources", "GPU=1")
    assert none.code == 2
    assert "offers GPU=1; they offer: nothing" in none.err
    assert "dask worker ADDRESS --resources GPU=1" in none.err
    gone = typed(*ask, "--scheduler", tmp_path / "no.json")
    assert gone.code == 2
    assert "there is no scheduler file" in gone.err
    (tmp_path / "odd.json").write_text('{"id": 1}')
    odd = typed(*ask, "--scheduler", tmp_path / "odd.json")
    assert (odd.code, "odd.json is not a scheduler's file" in odd.err) == (2, True), odd.err
    silent = typed(*ask, "--scheduler", "tcp://127.0.0.1:1")
    assert silent.code == 2
    assert "no dask scheduler answers at tcp://127.0.0.1:1" in silent.err
    assert not cells(tmp_path / "runs")
    assert all("Traceback" not in answer.err for answer in (none, gone, odd, silent))


@pytest.mark.slow
def test_every_command_runs_its_cells_on_a_cluster(cluster: Cluster, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(80, 2, 2, 6)).astype(np.float32))
    (tmp_path / "sizes.yaml").write_text("recipe: {codebook_size: [16, 256]}")
    address = json.loads(cluster.file.read_text())["address"]

    def ask(*words: object, scheduler: object) -> list[dict[str, Any]]:
        answer = typed(
            *words, "--recipe", "atomic", "--features", tmp_path / "x.npy", "--runs", tmp_path / "runs", "--name", "x",
            "--images", "64", "--set", "codebook_dim=4", "--set", "log_images=16", "--json", "--scheduler", scheduler,
        )  # fmt: skip
        assert answer.code == 0, answer.err
        return answer.objects

    (alone,) = ask("run", "--methods", "fsq", "--set", "codebook_size=16", scheduler=address)
    assert alone["state"] == "done"
    rows = ask("ablate", "vaevq", "--drop", "dcr", "--set", "codebook_size=16", scheduler=cluster.file)
    assert [len(row["scores"]) > 0 for row in rows] == [True, True]
    assert rows[1]["delta"]
    trials = ask("sweep", "fsq", "--space", tmp_path / "sizes.yaml", "--sampler", "grid", scheduler=address)
    assert {row["drawn"]["codebook_size"]: row["state"] for row in trials} == {16: "cached", 256: "done"}
    logs = [(cell / "log.txt").read_text() for cell in cells(tmp_path / "runs")]
    assert [log.count("vqbench.cell") for log in logs] == [1, 1, 1, 1]  # one process for each cell
    served = (tmp_path / "worker.log").read_text()
    assert "look_around" in served


def _can_hide(path: Path) -> bool:
    """Whether a process may be given a view of the disk in which `path` is empty."""
    probe = ["unshare", "-m", "sh", "-c", f"mount -t tmpfs none {path}"]
    return os.geteuid() == 0 and subprocess.run(probe, capture_output=True, check=False).returncode == 0


@pytest.mark.slow
def test_without_a_shared_disk_results_travel_through_mlflow(vqbench: Command, images: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    if not _can_hide(runs):
        pytest.skip("hiding a folder from a process needs root and mount namespaces")
    hidden = Cluster(tmp_path, "unshare", "-m", "sh", "-c", f'mount -t tmpfs none {runs}; exec "$0" "$@"')
    server = MLflowServer(tmp_path, f"sqlite:///{tmp_path}/server.db")
    server.start()
    try:
        more = ("--methods", "faulty", "--images", "640", "--set", "faulty.pause=0.1", "--metrics", "psnr,rfid")
        ask = one_run(images, runs, *more, "--scheduler", hidden.file)
        refused = vqbench(*ask)
        assert (refused.code, "does not see" in refused.err) == (2, True), refused.err
        driver = Background(*ask, MLFLOW_TRACKING_URI=server.address)
        until(lambda: list((tmp_path / "artifacts").glob("**/transfer/1/manifest.json")), "a checkpoint in the store")
        assert not list(runs.glob("x/cells/*/checkpoints/last.pt"))
        status = until(lambda: list(runs.glob("x/cells/*/status.json")), "word of the cell")[0]
        pid = int(json.loads(status.read_text())["pid"])
        worker = next(process for process in hidden.workers if process.pid == parent_of(pid))
        worker.kill()
        answer = driver.answer()
        assert answer.code == 0, answer.err
        assert "travel through http" in " ".join(answer.err.split())
        (row,) = answer.objects
        cell = Path(row["path"])
        assert starts(cell) == 2  # the log of the first attempt came to the second one with its checkpoint
        kept = {"result.json", "per_image.parquet", "recon.png", "codes.npz", "reconstructions.npz"}
        assert {path.name for path in cell.iterdir()} >= kept
        assert list(runs.glob("x/reference-*.npz"))
        assert list(runs.glob("x/images-*.npz"))
        points = [json.loads(line)["images"] for line in (cell / "metrics.jsonl").read_text().splitlines()]
        assert points == sorted(set(points))
        assert not list((tmp_path / "artifacts").glob("**/transfer/*/*.pt"))  # what has arrived is not kept
        through = vqbench(*one_run(images, tmp_path / "through", *more))
        assert through.objects[0]["scores"] == row["scores"]
        names = ("tokenizer.safetensors",)
        for name in names:
            contents = [(Path(r["path"]) / "checkpoints" / name).read_bytes() for r in (row, through.objects[0])]
            assert contents[0] == contents[1]
    finally:
        hidden.close()
        server.kill()
