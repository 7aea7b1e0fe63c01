"""Cells on several workers, with real schedulers, workers and drivers, some of which are killed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from conftest import DEADLINE, FAULTY, Answer, Command, settings, start, typed, until
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from test_servers import MLflowServer

from vqbench.cell import process as launch
from vqbench.cell.process import BUSY, STOPPED, CellJob, Ended
from vqbench.errors import UsageError
from vqbench.machine.gpus import claim_gpus, visible_gpus
from vqbench.machine.json_files import write_json
from vqbench.machine.lease import STALE_SECONDS, CellBusyError, exclusive, this_machine
from vqbench.planning.request import make_request, parse_resources
from vqbench.planning.view import Silent
from vqbench.results.checkpoint import images_in_checkpoint
from vqbench.results.folder import CellFolder
from vqbench.running import dask_engine
from vqbench.running.dask_engine import DaskEngine
from vqbench.running.execution import Execution
from vqbench.running.run import prepare_plan
from vqbench.running.worker import Need, _alone, _run_far_from_home, _threads
from vqbench.tracking import transfer
from vqbench.tracking.tracker import Tracker
from vqbench.tracking.transfer import Courier


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody has asked after yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Background:
    """The command line, running."""

    def __init__(self, *arguments: object, **env: str) -> None:
        self.process = start(arguments, **env)

    def answer(self) -> Answer:
        out, err = self.process.communicate(timeout=DEADLINE)
        return Answer(self.process.returncode, out, err)


class Cluster:
    """A dask scheduler and two workers, each a process of its own as `dask scheduler` and `dask worker` start them."""

    def __init__(self, folder: Path, *around_workers: str) -> None:
        self.file, self.folder = folder / "scheduler.json", folder
        self.processes = [self._start("scheduler", "--port", "0")]
        until(self.file.exists, "the scheduler's file")
        self.workers: list[subprocess.Popen[bytes]] = []
        for _ in range(2):
            self.start_worker(*around_workers)

    def start_worker(self, *around: str) -> None:
        name = str(len(self.workers))
        self.workers.append(self._start("worker", "--nthreads", "1", "--no-nanny", "--name", name, around=around))
        self.processes.append(self.workers[-1])

    def _start(self, kind: str, *more: str, around: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        command = [*around, sys.executable, "-m", f"distributed.cli.dask_{kind}", "--scheduler-file", str(self.file)]
        # without an address of its own, dask's HTTP server is on all interfaces, dashboard or not
        command += ["--host", "127.0.0.1", "--no-dashboard", "--dashboard-address", "127.0.0.1:0", *more]
        with (self.folder / f"{kind}.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    found = Cluster(tmp_path)
    yield found
    found.close()


def one_run(images: Path, runs: Path, *more: object) -> list[Any]:
    return [
        "run", "--plugin", FAULTY, "--dataset", f"folder:{images}", "--metrics", "psnr,usage", "--runs", runs,
        "--name", "x", *settings("checkpoint_images=80"), "--json", *more,
    ]  # fmt: skip


def starts(cell: Path) -> int:
    """How often a cell's training was started."""
    return sum(line.endswith(" train") for line in (cell / "log.txt").read_text().splitlines())


def cells(runs: Path) -> list[Path]:
    return sorted((runs / "x" / "cells").glob("*"))


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def running(runs: Path) -> dict[str, int]:
    """Cell → the process that trains it."""
    found = {}
    for cell in cells(runs):
        try:
            pid = int(json.loads((cell / "status.json").read_text())["pid"])
        except (OSError, ValueError, KeyError):
            continue
        if is_alive(pid):
            found[cell.name] = pid
    return found


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
        driver = start(one_run(images, tmp_path / "runs", *more), stderr=stderr)
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


def test_one_interrupt_ends_in_order_and_two_at_once(images: Path, tmp_path: Path) -> None:
    logged = ("--set", "log_images=16")
    ask = one_run(images, tmp_path, "--methods", "faulty", "--images", "80000", "--set", "faulty.pause=0.05", *logged)
    cards = {"CUDA_VISIBLE_DEVICES": "0,1", "TMPDIR": str(tmp_path)}  # their locks apart from those of other tests
    driver = Background(*ask, "--workers", "2", "--seeds", "0,1", OMP_NUM_THREADS="", **cards)
    until(lambda: len(list(tmp_path.glob("x/cells/*/checkpoints/last.pt"))) == 2, "two checkpoints")
    pids = running(tmp_path)
    assert len(pids) == 2  # at once, each on a card of its own
    environments = [Path(f"/proc/{pid}/environ").read_text().split("\0") for pid in pids.values()]
    shown = {v for variables in environments for v in variables if v.startswith("CUDA_VISIBLE_DEVICES=")}
    assert shown == {"CUDA_VISIBLE_DEVICES=0", "CUDA_VISIBLE_DEVICES=1"}
    for variables in environments:
        assert f"OMP_NUM_THREADS={max(1, len(os.sched_getaffinity(0)) // 2)}" in variables
        of_dask = ("MALLOC_TRIM_THRESHOLD_", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        assert not [v for v in variables if v.startswith(of_dask)]  # they would halve the speed of training
    driver.process.send_signal(signal.SIGINT)
    answer = driver.answer()
    assert answer.code == 130, answer.err
    assert "error: interrupted" in answer.err
    assert "Traceback" not in answer.err
    assert not any(map(is_alive, pids.values()))
    command = json.loads(next(tmp_path.glob("x/commands/*[0-9].json")).read_text())
    assert command["state"] == "FAILED"  # the books were kept
    for cell in cells(tmp_path):  # what was trained after the last regular checkpoint is kept too
        last = json.loads((cell / "metrics.jsonl").read_text().splitlines()[-1])["images"]
        assert images_in_checkpoint(cell / "checkpoints" / "last.pt") >= last
    again = Background(*ask)
    (pid,) = until(lambda: running(tmp_path).values(), "a cell that goes on")
    os.kill(pid, signal.SIGSTOP)  # now the order takes long
    again.process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    again.process.send_signal(signal.SIGINT)
    answer = again.answer()
    assert (answer.code, "error: interrupted twice" in answer.err) == (130, True), answer.err
    until(lambda: not is_alive(pid), "the end of the cell")


@pytest.mark.slow
def test_a_cell_that_hangs_is_ended_and_the_others_go_on(vqbench: Command, tmp_path: Path) -> None:
    """In the features track: a cell that does not hang needs a twentieth of its time on a quiet machine."""
    file = tmp_path / "x.npy"
    np.save(file, np.random.default_rng(0).normal(size=(80, 2, 2, 6)).astype(np.float32))
    ask = ["run", "--plugin", FAULTY, "--methods", "faulty,fsq", "--recipe", "atomic", "--features", file, "--images"]
    ask += [160, "--runs", tmp_path / "runs", "--json", *settings("faulty.fault=hang", "faulty.at=88")]
    answer = vqbench(*ask, "--cell-timeout", "60s", timeout=DEADLINE)
    hung, other = answer.objects
    assert answer.code == 1
    assert hung["state"] == "failed"
    assert hung["error"]["message"] == "it ran past --cell-timeout 60 s, in train"
    assert "--cell-timeout" in hung["error"]["hint"]
    assert other["state"] == "done"


def test_two_drivers_share_the_work_and_no_cell_runs_twice(images: Path, tmp_path: Path) -> None:
    """The first one holds a cell when the second one comes, which waits for it and trains the other meanwhile."""
    ask = [
        "run", "--plugin", FAULTY, "--recipe", "atomic", "--dataset", f"folder:{images}", "--methods", "faulty,fsq",
        "--images", "640", "--runs", tmp_path / "runs", "--name", "x", "--json", *settings(),
    ]  # fmt: skip
    gate = tmp_path / "gate"
    first = Background(*ask, FAULTY_GATE=f"320:{gate}")
    until(lambda: running(tmp_path / "runs"), "a cell that waits at the gate", first.process)
    second = Background(*ask, FAULTY_GATE=f"320:{gate}")  # has one slot, which the cell it waits for does not take
    until(lambda: list(tmp_path.glob("runs/x/cells/fsq-*/result.json")), "the other cell", second.process)
    assert not list(tmp_path.glob("runs/x/cells/faulty-*/result.json"))
    gate.touch()
    answers = [first.answer(), second.answer()]
    assert [answer.code for answer in answers] == [0, 0], answers[0].err + answers[1].err
    assert [[row["state"] for row in answer.objects] for answer in answers] == [["done", "cached"], ["cached", "done"]]
    assert [row["scores"] for row in answers[0].objects] == [row["scores"] for row in answers[1].objects]
    assert [starts(cell) for cell in cells(tmp_path / "runs")] == [1, 1]
    assert "faulty s0 done by another command" in answers[1].err


class Mortal:
    """A command that is killed again and again, and what must hold of what it leaves."""

    def __init__(self, images: Path, runs: Path, *more: object) -> None:
        self.runs = runs
        self.ask = [
            "run", "--recipe", "atomic", "--dataset", f"folder:{images}", "--seeds", "0,1", "--images", "2000",
            "--runs", runs, "--name", "x", "--json", *more,
        ]  # fmt: skip
        self.finished: dict[Path, bytes] = {}

    def attempt(self, moment: Callable[[Background], bool]) -> bool:
        """Run the command and kill it at a `moment`; false where it came to its end before."""
        driver = Background(*self.ask)
        is_killed = moment(driver) and driver.process.poll() is None
        driver.process.kill()
        driver.answer()
        until(lambda: not running(self.runs), "the end of the killed driver's cells")
        self.look()
        return is_killed

    def look(self) -> None:
        """Every result that was there is there still, byte for byte."""
        for path, content in self.finished.items():
            assert path.read_bytes() == content
        self.finished = {path: path.read_bytes() for path in self.runs.glob("x/cells/*/result.json")}

    def end(self) -> dict[str, dict[str, float]]:
        """Let the command come to its end; the scores of its cells."""
        before = set(self.finished)
        answer = typed(*self.ask)
        assert answer.code == 0, answer.err
        self.look()
        assert {Path(row["path"]) / "result.json" for row in answer.objects if row["state"] == "cached"} == before
        assert {row["state"] for row in answer.objects} <= {"cached", "done"}
        assert not list(self.runs.rglob("*.part"))
        assert not list(self.runs.rglob("lease.json"))
        return {row["cell"]: row["scores"] for row in answer.objects}


def test_a_driver_that_is_killed_loses_no_result(images: Path, tmp_path: Path) -> None:
    killed = Mortal(images, tmp_path, "--methods", "fsq")

    def finds(*files: str) -> Callable[[Background], bool]:
        def moment(driver: Background) -> bool:
            return bool(until(lambda: all(map(list, map(tmp_path.glob, files))), "a cell that got so far"))

        return moment

    assert killed.attempt(finds("x/cells/*-s0-*/status.json"))
    (cells(tmp_path)[0] / ".status.json.1-1.part").touch()  # as a kill in the middle of writing leaves it
    assert killed.attempt(finds("x/cells/*-s0-*/result.json", "x/cells/*-s1-*/status.json"))
    assert len(killed.finished) == 1
    assert len(killed.end()) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("where", "most"), [("here", 6), ("on local workers", 6), ("on a cluster", 20)])
def test_a_driver_killed_at_random_times_loses_no_result(
    where: str, most: int, images: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Over the whole time that the command takes, of which an undisturbed run tells how long it is."""
    how: list[object] = ["--workers", "2"] if where == "on local workers" else []
    how += ["--scheduler", request.getfixturevalue("cluster").file] if where == "on a cluster" else []
    seed, started = random.SystemRandom().randrange(2**32), time.monotonic()
    print(f"seed {seed}")
    draw = random.Random(seed)
    expected = Mortal(images, tmp_path / "through", "--methods", "fsq,vqgan", *how).end()
    takes = time.monotonic() - started

    def at_random(driver: Background) -> bool:
        try:
            driver.process.wait(timeout=draw.uniform(0.0, takes))
        except subprocess.TimeoutExpired:
            return True
        return False

    kills = 0
    while kills < most:
        killed = Mortal(images, tmp_path / f"after {kills}", "--methods", "fsq,vqgan", *how)
        while kills < most and killed.attempt(at_random):
            kills += 1
        assert killed.end() == expected


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


def _leave_lease(folder: Path, machine: str, age: float) -> None:
    folder.mkdir(exist_ok=True)
    lease = folder / "lease.json"
    lease.write_text(json.dumps({"token": "another", "machine": machine, "pid": 1}))
    os.utime(lease, (time.time() - age, time.time() - age))


def test_a_folder_has_one_holder_even_where_locks_do_not_reach(tmp_path: Path) -> None:
    folder = tmp_path / "cell"
    with exclusive(folder):
        assert json.loads((folder / "lease.json").read_text())["machine"] == this_machine()
        with pytest.raises(CellBusyError, match="process"), exclusive(folder):
            pass
    assert not (folder / "lease.json").exists()
    _leave_lease(folder, "elsewhere boot", age=0)
    with pytest.raises(CellBusyError, match="on elsewhere, process 1"), exclusive(folder):
        pass
    _leave_lease(folder, "elsewhere boot", age=2 * STALE_SECONDS)
    with exclusive(folder):
        pass
    _leave_lease(folder, this_machine(), age=0)  # its process is gone, or we would not have got the lock
    with exclusive(folder):
        pass
    assert sorted(path.name for path in folder.iterdir()) == ["lock"]


def test_who_has_lost_a_folder_stops(tmp_path: Path) -> None:
    script = (
        "import sys, time, pathlib, vqbench.machine.lease as lease\n"
        "lease.BEAT_SECONDS = 0.05\n"
        "with lease.exclusive(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "cell")], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    _leave_lease(tmp_path / "cell", "elsewhere boot", age=0)
    assert process.wait(timeout=DEADLINE) == 75
    assert json.loads((tmp_path / "cell" / "lease.json").read_text())["token"] == "another"


def test_no_gpu_is_given_to_two_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("vqbench.machine.gpus.POLL_SECONDS", 0.01)
    held: list[str] = []
    most = []

    def cell(count: int) -> None:
        for _ in range(20):
            with claim_gpus(count, ["0", "1", "GPU-abc"]) as gpus:
                assert len(set(gpus)) == count
                assert not set(gpus) & set(held)
                held.extend(gpus)
                most.append(len(held))
                time.sleep(0.001)
                for gpu in gpus:
                    held.remove(gpu)

    errors: list[BaseException] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: errors.append(args.exc_value))
    threads = [threading.Thread(target=cell, args=(count,)) for count in (1, 1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=DEADLINE)
    assert not errors
    assert not any(thread.is_alive() for thread in threads)
    assert max(most) <= 3
    with claim_gpus(2, ["0"], wanted=lambda: False) as gpus:  # more than there are, until nobody wants them
        assert gpus == []


@pytest.mark.parametrize(("cells", "count", "cards"), [(2, 1, 2), (8, 1, 8), (4, 2, 8)])
def test_cells_hold_as_many_gpus_as_they_asked_for_at_a_time(
    cells: int, count: int, cards: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    held: list[str] = []
    with contextlib.ExitStack() as stack:
        for cell in range(cells):
            asked = iter((True, True))  # twice in vain, and it is given up
            claim = claim_gpus(count, list(map(str, range(cards))), wanted=lambda asked=asked: next(asked, False))
            held += stack.enter_context(claim)
            assert len(held) == len(set(held)) == count * (cell + 1)
        with claim_gpus(1, list(map(str, range(cards))), wanted=lambda: False) as gpus:
            assert gpus == []
    with claim_gpus(cards, list(map(str, range(cards)))) as gpus:
        assert len(gpus) == cards


def test_what_does_not_suffice_is_let_go_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("vqbench.machine.gpus.POLL_SECONDS", 0.01)
    asked = threading.Event()

    def wanted() -> bool:
        asked.set()
        return True

    got: list[str] = []

    def both() -> None:
        with claim_gpus(2, ["0", "1"], wanted) as gpus:
            got.extend(gpus)

    with claim_gpus(1, ["0"]):
        thread = threading.Thread(target=both)
        thread.start()
        assert asked.wait(DEADLINE)
        with claim_gpus(1, ["1"]) as gpus:  # while the other waits for both
            assert gpus == ["1"]
        assert not got
    thread.join(DEADLINE)
    assert got == ["0", "1"]


@pytest.mark.parametrize(
    ("variable", "seen"),
    [
        ("0,1", ["0", "1"]),
        (" 1, 0 ", ["1", "0"]),
        ("", []),
        ("-1", []),
        ("0,-1,1", ["0"]),
        ("0,,1", ["0"]),
        ("0,none,1", ["0"]),
        ("0,1,0", []),
        ("00,0", []),
        ("NoDevFiles", []),
        ("GPU-8932f937-d72c,GPU-02", ["GPU-8932f937-d72c", "GPU-02"]),
        ("MIG-a/1/0,MIG-a/2/0", ["MIG-a/1/0", "MIG-a/2/0"]),
        ("GPU-a,0", ["GPU-a"]),
        ("GPU-a,GPU-a", []),
    ],
)
def test_gpus_are_those_that_cuda_would_show(variable: str, seen: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert visible_gpus() == seen


GPUS_SEEN = """
import os, pathlib, sys
from vqbench.machine import gpus
os.environ.pop("CUDA_VISIBLE_DEVICES", None)
gpus.DEVICES = pathlib.Path(sys.argv[1])
gpus.visible_gpus()
print("torch" in sys.modules)
"""


def test_torch_is_asked_for_gpus_only_where_there_may_be_some(tmp_path: Path) -> None:
    def asks_torch() -> str:
        return subprocess.run(
            [sys.executable, "-c", GPUS_SEEN, tmp_path], capture_output=True, text=True, check=True
        ).stdout

    assert asks_torch() == "False\n"
    (tmp_path / "nvidia0").touch()
    assert asks_torch() == "True\n"


@pytest.mark.parametrize("text", ["GPU", "GPU=", "=1", "GPU=none", "GPU=0", "GPU=-1", "GPU=1,,", "GPU=inf", "GPU=nan"])
def test_resources_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="NAME=AMOUNT"):
        parse_resources(text)


def test_resources_are_amounts_by_name() -> None:
    assert parse_resources("GPU=1, MEM=2.5") == {"GPU": 1.0, "MEM": 2.5}


def test_cells_of_one_machine_divide_the_cores_that_we_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))  # of a job of Slurm, on a machine of 64
    worker = SimpleNamespace(address="tcp://10.0.0.7:4000", state=SimpleNamespace(nthreads=2))
    threads = {
        slots: _threads(worker, Need({}, 0, {"10.0.0.7": slots, "10.0.0.8": 9} if slots else {}, ""))
        for slots in (0, 1, 3, 99)
    }
    assert threads == {0: 4, 1: 8, 3: 2, 99: 1}


class OddCluster:
    """A client of a cluster whose tasks come to the ends that it is given, one after the other."""

    status = "running"

    def __init__(self, *ends: Ended | BaseException) -> None:
        self.ends, self.submitted = list(ends), 0

    scheduler = SimpleNamespace(identity=None)

    def sync(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {"workers": {"a": {"host": "h", "nthreads": 1, "resources": {}}}}

    def submit(self, *_: Any, **__: Any) -> Any:
        self.submitted += 1
        end = self.ends.pop(0)
        return SimpleNamespace(
            status="error" if isinstance(end, BaseException) else "finished",
            result=lambda: end,
            exception=lambda: end,
        )


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


class FarCluster(OddCluster):
    """The same, of workers that do not see our disk; before each end they say which checkpoints they have sent."""

    def __init__(self, *ends: Ended | BaseException, serials: Iterable[int] = ()) -> None:
        super().__init__(*ends)
        self.serials = list(serials)
        self.stores: list[str] = []
        self.results: list[Any] = []  # that were in the folder of a job when it was handed over

    def subscribe_topic(self, _: str, hear: Callable[[Any], None]) -> None:
        self.hear = hear

    def close(self) -> None:
        pass

    def submit(self, _: Any, job: CellJob, *__: Any, **___: Any) -> Any:
        assert job.store is not None
        self.stores.append(job.store.run_id)
        self.results.append(CellFolder(job.folder).result)
        future = super().submit()
        if self.serials:
            self.hear((0.0, {"cell": job.name, "status": {}, "serial": self.serials.pop(0)}))
        return future


class KilledWorker(Exception):  # noqa: N818, dask's name
    """As dask gives up a task whose workers died."""


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
        plan, tracker = prepare_plan(request, Silent()), Tracker(tmp_path)
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
