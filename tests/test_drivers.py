"""Commands that are interrupted, killed or two at a time: no result is lost, and no cell runs twice."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.clusters import cells, is_alive, one_run, running, starts
from helpers.commands import DEADLINE, Background, Command, settings, typed, until
from helpers.plugins import FAULTY

from vqbench.cell.ranks import ALLOCATION
from vqbench.results.cell_folder import CellFolder
from vqbench.results.checkpoint import images_in_checkpoint


def card_of(pid: int) -> str | None:
    """CUDA_VISIBLE_DEVICES of a process."""
    variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return next((text.partition("=")[2] for text in variables if text.startswith("CUDA_VISIBLE_DEVICES=")), None)


@pytest.mark.skipif(any(Path("/dev").glob("nvidia*")), reason="its cards are not those that this test names")
def test_plain_commands_have_a_card_each_and_the_third_waits_for_one(images: Path, tmp_path: Path) -> None:
    """In the features track, whose processes start sooner."""
    cards = {"CUDA_VISIBLE_DEVICES": "0,1", "TMPDIR": str(tmp_path), "FAULTY_GATE": f"320:{tmp_path / 'gate'}"}
    file = tmp_path / "x.npy"
    np.save(file, np.random.default_rng(0).normal(size=(80, 2, 2, 6)).astype(np.float32))

    def command(name: str, *more: str) -> Background:
        return Background(
            "run", "--plugin", FAULTY, "--recipe", "atomic", "--features", file, "--methods", "faulty", "--images", 640,
            "--runs", tmp_path / "runs", "--name", name, "--json", *settings(), *more, **cards,
        )  # fmt: skip

    def status(name: str) -> dict[str, Any]:
        return next((CellFolder(path).status for path in tmp_path.glob(f"runs/{name}/cells/*")), {})

    def card_of_cell(name: str, driver: Background) -> str | None:
        pid = until(lambda: status(name).get("pid"), "a cell", driver.process)
        return card_of(int(pid))

    drivers = {name: command(name) for name in ("a", "b")}
    shown = {name: card_of_cell(name, driver) for name, driver in drivers.items()}
    assert sorted(map(str, shown.values())) == ["0", "1"]

    third = command("c")
    assert until(lambda: status("c"), "the third cell", third.process)["stage"] == "waits for a GPU"
    everything = command("d", "--resources", "none")
    assert card_of_cell("d", everything) == "0,1"
    assert "pid" not in status("c")
    drivers["b"].process.kill()
    drivers["b"].answer()
    assert card_of_cell("c", third) == shown["b"]
    (tmp_path / "gate").touch()
    answers = [driver.answer() for driver in (drivers["a"], third, everything)]
    assert [answer.code for answer in answers] == [0, 0, 0], answers[1].err
    line = next(line for line in answers[1].err.splitlines() if "waits for 1 GPU" in line)
    assert f"GPU 0 is held by process {drivers['a' if shown['a'] == '0' else 'b'].process.pid}, faulty-" in line
    assert "waits for" not in answers[0].err + answers[2].err


def is_told_to_end(pid: int) -> bool:
    """Whether a SIGTERM waits for a process that is stopped."""
    (waiting,) = re.findall(r"^ShdPnd:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(waiting, 16) & (1 << (signal.SIGTERM - 1)))


def test_one_interrupt_ends_in_order_and_two_at_once(images: Path, tmp_path: Path) -> None:
    logged = ("--set", "log_images=16")
    ask = one_run(images, tmp_path, "--methods", "faulty", "--images", "80000", "--set", "faulty.pause=0.05", *logged)
    cards = {"CUDA_VISIBLE_DEVICES": "0,1", "TMPDIR": str(tmp_path)}  # their locks apart from those of other tests
    driver = Background(*ask, "--workers", "2", "--seeds", "0,1", OMP_NUM_THREADS="", **cards)
    until(lambda: len(list(tmp_path.glob("x/cells/*/checkpoints/last.pt"))) == 2, "two checkpoints")
    pids = running(tmp_path)
    assert len(pids) == 2  # at once, each on a card of its own
    environments = [Path(f"/proc/{pid}/environ").read_text().split("\0") for pid in pids.values()]
    assert set(map(card_of, pids.values())) == {"0", "1"}
    for variables in environments:
        assert f"VQBENCH_CORES={max(1, len(os.sched_getaffinity(0)) // 2)}" in variables  # those who load images
        assert f"OMP_NUM_THREADS={max(1, len(os.sched_getaffinity(0)) // 2)}" in variables
        assert not [v for v in variables if v.startswith(("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"))]  # of dask
        # and not dask's, which would halve the speed of training
        assert {f"{name}={value}" for name, value in ALLOCATION.items()} <= {*variables}
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
    until(lambda: is_told_to_end(pid), "the order")
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
