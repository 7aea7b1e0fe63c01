"""What may happen to a cell from outside: signals, crashes, no memory, no disk. Each is a row with its reason."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from helpers.commands import DEADLINE, Command, Running, settings, typed, until
from helpers.plugins import FAULTY

from vqbench.cell.__main__ import run_cell
from vqbench.cell.process import failure_to_write
from vqbench.cell.ranks import Ranks
from vqbench.cell.reasons import death_of, reason_of
from vqbench.data.prepare import not_kept
from vqbench.errors import VQBenchError
from vqbench.machine.json_files import write_json
from vqbench.planning.plan import Cell, check_request
from vqbench.planning.request import make_request
from vqbench.planning.view import Silent
from vqbench.results.cell_folder import CellFolder
from vqbench.running.run import prepare_plan


class Run:
    """One cell of the faulty method: its command, its folder, and what it is when nothing goes wrong."""

    SETTINGS = ("checkpoint_images=16", "log_images=8", "ema_halflife_images=32", "warmup_images=16")

    def __init__(self, images: Path, runs: Path) -> None:
        self.images, self.runs = images, runs
        self.command: list[Any] = [
            "run", "--plugin", FAULTY, "--methods", "faulty", "--dataset", f"folder:{images}", "--images", "64",
            "--metrics", "psnr,usage", "--runs", runs, "--name", "x", "--json", *settings(*self.SETTINGS),
        ]  # fmt: skip

    def plan(self) -> Cell:
        texts = [text for text in settings(*self.SETTINGS) if text != "--set"]
        request = make_request(
            ["faulty"], f"folder:{self.images}", plugins=[FAULTY], images=64, metrics=["psnr", "usage"],
            runs=self.runs, name="x", settings=texts,
        )  # fmt: skip
        return prepare_plan(check_request(request), Silent()).cells[0]

    def through(self, folder: Path) -> tuple[bytes, list[dict[str, Any]]]:
        """Weights and curves of the same cell where nothing happens to it; in this process, it is the same code."""
        cell = CellFolder(folder)
        write_json(folder / "spec.json", self.plan().spec)
        run_cell(cell)
        return cell.weights.read_bytes(), curves(cell)


def curves(folder: CellFolder, drop: str = "time") -> list[dict[str, Any]]:
    lines = (folder.path / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != drop} for line in lines]


def reached(gate: Path) -> Callable[[], bool]:
    """Whether a cell waits at the gate."""
    return gate.with_name(f"{gate.name}.reached").exists


def seen(folder: CellFolder) -> list[int]:
    """Images at the whole lines of the curves."""
    try:
        lines = (folder.path / "metrics.jsonl").read_text().split("\n")[:-1]
    except OSError:
        return []
    return [json.loads(line)["images"] for line in lines]


def parts(folder: CellFolder) -> list[Path]:
    return list(folder.path.rglob("*.part"))


def test_a_cell_that_is_killed_is_a_row_and_goes_on_from_its_checkpoint(images: Path, tmp_path: Path) -> None:
    run, gate = Run(images, tmp_path / "runs"), tmp_path / "gate"
    folder = run.plan().folder
    first = Running(run.command, FAULTY_GATE=f"40:{gate}")
    until(lambda: 40 in seen(folder), "the gate", first)  # status.json may lag behind, it is written twice a second
    os.kill(folder.status["pid"], signal.SIGKILL)
    out, err = first.communicate(timeout=DEADLINE)
    assert first.returncode == 1, err
    killed = json.loads(out)
    assert killed["state"] == "failed"
    assert killed["error"]["message"] == (
        "the process was killed by SIGKILL during train; out of memory is the usual reason"
    )
    assert str(folder.log) in killed["error"]["hint"]
    assert torch.load(folder.checkpoint, weights_only=True)["images_seen"] == 32
    before = curves(folder, drop="")

    second = typed(*run.command)
    assert second.code == 0, second.err
    (resumed,) = second.objects
    assert (resumed["state"], resumed["error"]) == ("done", None)
    assert curves(folder, drop="")[:4] == before[:4]  # with their times: they were not trained again
    weights, expected = run.through(tmp_path / "through")
    assert folder.weights.read_bytes() == weights
    assert curves(folder) == expected
    assert parts(folder) == []


def test_a_cell_that_is_told_to_end_keeps_the_step_that_it_was_at(images: Path, tmp_path: Path) -> None:
    """SIGTERM, as a scheduler sends it or whoever stops a cell: between two checkpoints nothing is trained twice."""
    run, gate = Run(images, tmp_path / "runs"), tmp_path / "gate"
    folder = run.plan().folder
    first = Running(run.command, FAULTY_GATE=f"40:{gate}")
    until(reached(gate), "the gate", first)  # that is, within the step after 40 images
    os.kill(folder.status["pid"], signal.SIGTERM)
    gate.touch()  # so the step goes on, and ends
    out, err = first.communicate(timeout=DEADLINE)
    assert first.returncode == 1, err
    assert json.loads(out)["error"]["message"] == "the process was killed by SIGTERM during train"
    last = torch.load(folder.checkpoint, weights_only=True)["images_seen"]
    assert last == 48
    before = curves(folder, drop="")

    second = typed(*run.command)
    assert second.code == 0, second.err
    assert curves(folder, drop="")[: last // 8] == before  # with their times: they were not trained again
    weights, expected = run.through(tmp_path / "through")
    assert folder.weights.read_bytes() == weights
    assert curves(folder) == expected


def test_a_command_that_is_told_to_end_ends_its_cell_and_keeps_the_books(images: Path, tmp_path: Path) -> None:
    """SIGTERM, as a batch system sends it when the time is over; whoever repeats it is not in more of a hurry."""
    run, gate = Run(images, tmp_path / "runs"), tmp_path / "gate"
    folder = run.plan().folder
    command = Running(run.command, FAULTY_GATE=f"40:{gate}")
    until(reached(gate), "the gate", command)
    cell = folder.status["pid"]
    for _ in range(2):
        command.send_signal(signal.SIGTERM)
        time.sleep(0.5)
    gate.touch()
    _, err = command.communicate(timeout=DEADLINE)
    assert command.returncode == 128 + signal.SIGTERM, err
    assert err.splitlines()[-2:] == [
        "error: told to end by SIGTERM", "hint: the same command goes on from the last checkpoint"
    ]  # fmt: skip
    assert not Path(f"/proc/{cell}").exists()
    assert folder.result is None
    assert torch.load(folder.checkpoint, weights_only=True)["images_seen"] == 48
    (kept,) = (tmp_path / "runs" / "x" / "commands").glob("*[0-9].json")
    assert json.loads(kept.read_text())["state"] == "FAILED"


def test_on_two_devices_the_first_keeps_the_step_for_both(images: Path, tmp_path: Path) -> None:
    run, gate = Run(images, tmp_path / "runs"), tmp_path / "gate"
    first = Running([*run.command, "--devices", "2"], FAULTY_GATE=f"40:{gate}")
    until(reached(gate), "the gate", first)
    (folder,) = map(CellFolder, tmp_path.glob("runs/x/cells/*"))
    os.kill(folder.status["pid"], signal.SIGTERM)
    gate.touch()
    _, err = first.communicate(timeout=DEADLINE)
    assert first.returncode == 1, err
    assert (folder.error or {})["message"] == "the process was killed by SIGTERM during train"
    assert torch.load(folder.checkpoint, weights_only=True)["images_seen"] == 48
    assert parts(folder) == []


def errors_on_devices(run: Run, wanted: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """How a cell on two devices ends for each of some faults, `RANK:FAULT`, after 24 images."""
    monkeypatch.setenv("FAULTY_RANK", ",".join(f"24:{seed}:{fault}" for seed, fault in enumerate(wanted)))
    answer = typed(*run.command, "--devices", "2", "--seeds", ",".join(map(str, range(len(wanted)))))
    assert answer.code == 1, answer.err
    assert "Traceback" not in answer.err
    return [row["error"] for row in answer.objects]


def assert_is_reason(error: dict[str, Any], fault: str) -> None:
    """Whether a cell says that it failed of a fault on a rank, and not of what this did to the other one."""
    rank, kind = fault.split(":")
    at = " (rank 1 of 2)" if rank == "1" else ""
    type_, said = {
        "exception": ("ValueError", "odd"),
        "nan": ("DivergedError", "training diverged: odd is not finite after 32 images"),
        "kill": ("Killed", "the process was killed by SIGKILL during train; out of memory is the usual reason"),
        "tensors": ("OutOfMemoryError", "out of memory during train"),
    }[kind]
    assert error["type"] == type_, error
    assert error["message"].startswith(said)
    assert error["message"].endswith(at)
    assert ("rank" in error["message"]) == (rank == "1")
    if kind in ("kill", "tensors"):
        assert all(option in error["hint"] for option in ("--micro-batch", "--set batch_size=", "--devices"))


def test_what_fails_on_any_device_is_the_reason_and_the_cell_goes_on(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, wanted = Run(images, tmp_path / "runs"), ("1:nan", "0:kill")
    for error, fault in zip(errors_on_devices(run, wanted, monkeypatch), wanted, strict=True):
        assert_is_reason(error, fault)
    first, *_ = cells = [CellFolder(path) for path in sorted(tmp_path.glob("runs/x/cells/*"))]
    assert [torch.load(cell.checkpoint, weights_only=True)["images_seen"] for cell in cells] == [16] * 2
    words = (first.path / "ranks.jsonl").read_text()  # each rank left what it failed of
    assert "DivergedError" in words
    assert "gloo" in words

    monkeypatch.setenv("FAULTY_RANK", "24:0:1:ballast")
    (row,) = typed(*run.command, "--devices", "2").objects
    assert (row["state"], row["error"]) == ("done", None)
    assert not (first.path / "ranks.jsonl").exists()
    assert (first.result or {})["peak_memory_bytes"] > 2e9  # as the second device had it, which writes no result


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_whatever_fails_on_whichever_device_is_the_reason(
    rank: int, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(images, tmp_path / "runs")
    wanted = [f"{rank}:{kind}" for kind in ("exception", "nan", "tensors", "kill")]
    for error, fault in zip(errors_on_devices(run, wanted, monkeypatch), wanted, strict=True):
        assert_is_reason(error, fault)
    monkeypatch.delenv("FAULTY_RANK")
    answer = typed(*run.command, "--devices", "2", "--seeds", "0,1,2,3")
    assert [row["state"] for row in answer.objects] == ["done"] * 4


KILLED = "the process was killed by SIGKILL during train; out of memory is the usual reason"
CRASHED = "the process was killed by SIGSEGV during train; compiled code crashed, the log says where"
RANK = """
import os, signal, sys, time
from pathlib import Path
from vqbench.cell.reasons import leave, reason_of
act = sys.argv[1].split(",")[int(os.environ["LOCAL_RANK"])]
if act == "waits":
    time.sleep(600)
if act.startswith("SIG"):
    os.kill(os.getpid(), getattr(signal, act))
if act.isdigit():
    sys.exit(int(act))
if act == "lost":
    time.sleep(0.2)  # it hears of the other's end after that
error = {"lost": RuntimeError("[gloo/pair.cc:1] Connection closed by peer"), "odd": ValueError("odd")}[act]
leave(Path(sys.argv[2]), reason_of(error, "train", "log"))
sys.exit(1)
"""


@pytest.mark.parametrize(
    ("acts", "code", "said"),
    [
        ("0,0", 0, ""),
        ("0,waits", 0, ""),
        ("75,waits", 75, ""),
        ("lost,odd", 1, "odd (rank 1 of 2)"),
        ("odd,lost", 1, "odd"),
        ("odd,lost,lost,lost", 1, "odd"),
        ("waits,waits,odd,lost", 1, "odd (rank 2 of 4)"),
        ("waits,odd", 1, "odd (rank 1 of 2)"),  # as NCCL does
        ("odd,waits", 1, "odd"),
        ("lost,SIGKILL", -9, f"{KILLED} (rank 1 of 2)"),
        ("SIGKILL,lost", -9, KILLED),
        ("SIGTERM,lost", -15, "the process was killed by SIGTERM during train"),
        ("waits,SIGSEGV", -11, f"{CRASHED} (rank 1 of 2)"),
        ("SIGABRT,odd", None, "odd (rank 1 of 2)"),
        ("SIGABRT,SIGKILL", None, f"{KILLED} (rank 1 of 2)"),
        ("waits,3", 3, "the process exited with 3 during train and left no result (rank 1 of 2)"),
        ("lost,0", 1, "[gloo/pair.cc:1] Connection closed by peer"),
    ],
)  # fmt: skip
def test_the_reason_of_several_processes(
    acts: str, code: int | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqbench.cell.ranks.STOP_SECONDS", 1.0)
    (tmp_path / "rank.py").write_text(RANK)
    devices = len(acts.split(","))
    ranks = Ranks("rank", [acts, tmp_path], CellFolder(tmp_path), devices, {"PYTHONPATH": str(tmp_path)})
    ended = until(lambda: None if (found := ranks.poll()) is None else [found], "the end of all ranks")[0]
    assert code in (ended, None)
    for _ in range(2 if said else 0):
        assert ranks.reason("train").message == said
        ranks.poll()


def test_what_came_of_an_error_does_not_hide_it() -> None:
    lost = RuntimeError("NCCL error: remote process exited or there was a network error")
    lost.__context__ = MemoryError()
    assert (reason_of(lost, "train", "log").kind, reason_of(lost, "train", "log").of_another) == (
        "OutOfMemoryError",
        False,
    )
    late = ValueError("odd")
    late.__context__ = RuntimeError("NCCL error: remote process exited or there was a network error")
    assert reason_of(late, "train", "log").of_another
    assert not reason_of(RuntimeError("NCCL error: unhandled cuda error, out of memory"), "train", "log").of_another


def test_crashes_and_no_memory_are_rows_that_a_person_understands(tmp_path: Path) -> None:
    """In the features track, whose processes start sooner."""
    file = tmp_path / "x.npy"
    np.save(file, np.random.default_rng(0).normal(size=(80, 2, 2, 6)).astype(np.float32))
    faults = ("segfault", "tensors")
    answer = typed(
        "run", "--plugin", FAULTY, "--methods", ",".join([*(f"faulty@{fault}" for fault in faults), "fsq"]),
        "--recipe", "atomic", "--features", file, "--runs", tmp_path / "runs", "--images", "64", "--json",
        *settings(),
    )  # fmt: skip
    assert answer.code == 1, answer.err
    *failed, last = answer.objects
    assert (last["method"], last["state"]) == ("fsq", "done")
    assert [row["state"] for row in failed] == ["failed"] * len(faults)
    errors = {fault: row["error"] for fault, row in zip(faults, failed, strict=True)}
    logs = {fault: (Path(row["path"]) / "log.txt").read_text() for fault, row in zip(faults, failed, strict=True)}
    assert errors["segfault"]["message"] == (
        "the process was killed by SIGSEGV during train; compiled code crashed, the log says where"
    )
    assert errors["tensors"]["type"] == "OutOfMemoryError"
    assert errors["tensors"]["message"].startswith("out of memory during train")
    assert "tried to allocate" in errors["tensors"]["message"]
    assert "batch_size" in errors["tensors"]["hint"]
    for fault, row in zip(faults, failed, strict=True):
        assert f"in _{fault}" in logs[fault]  # the line of Python that led there
        assert str(Path(row["path"]) / "log.txt") in row["error"]["hint"]
    assert "Traceback" not in answer.err


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A group of processes that together have 64 MiB; the test is skipped where we may not make one."""
    root = Path("/sys/fs/cgroup")
    old = (root / "memory").is_dir()
    group = (root / "memory" if old else root) / f"vqbench-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("limiting the memory of a process needs root, and control groups that can be written")
    try:
        for name in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes") if old else ("memory.max",):
            if (group / name).is_file():
                (group / name).write_text(str(2**26))
        if not old and not (group / "memory.max").is_file():
            pytest.skip("the control groups of this machine do not limit memory")
        yield group
    finally:
        group.rmdir()


@pytest.mark.slow
def test_a_cell_that_the_kernel_kills_for_its_memory(vqbench: Command, tmp_path: Path, cgroup: Path) -> None:
    file = tmp_path / "x.npy"
    np.save(file, np.random.default_rng(0).normal(size=(80, 2, 2, 6)).astype(np.float32))
    answer = vqbench(
        "run", "--plugin", FAULTY, "--methods", "faulty@memory", "--recipe", "atomic", "--features", file,
        "--runs", tmp_path / "runs", "--images", "64", "--json", *settings(), FAULTY_CGROUP=str(cgroup),
    )  # fmt: skip
    assert answer.code == 1, answer.err
    (row,) = answer.objects
    assert row["error"]["message"] == (
        "the process was killed by SIGKILL during train; out of memory is the usual reason"
    )
    assert "in _memory" not in (Path(row["path"]) / "log.txt").read_text()  # it had no time for a word


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (MemoryError(), "OutOfMemoryError", "out of memory during train"),
        (OSError(12, "Cannot allocate memory"), "OutOfMemoryError", "during train: [Errno 12] Cannot allocate"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried 1 TiB"),
            "OutOfMemoryError",
            "CUDA out of memory. Tried 1 TiB",
        ),
        (OSError(122, "Disk quota exceeded", "/x"), "DiskFullError", "no room on the disk during train: [Errno 122]"),
        (OSError(27, "File too large"), "DiskFullError", "File too large"),
        (ValueError(), "ValueError", "ValueError"),
        (VQBenchError("what", "hint"), "VQBenchError", "what"),
    ],
)
def test_reasons(error: Exception, kind: str, said: str) -> None:
    reason = reason_of(error, "train", "log.txt")
    assert reason.kind == kind
    assert said in reason.message
    assert "Error:" not in reason.message
    assert ("log.txt" in reason.hint) != isinstance(error, VQBenchError)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "free some space, then give the command again"),
        (errno.EDQUOT, "your quota is used up"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EACCES, "mend the permissions of /etc, then"),
        (errno.EPERM, "mend the permissions of /etc, then"),
        (errno.EROFS, "mount that disk for writing"),
    ],
)
def test_each_failure_to_write_has_a_remedy_of_its_own(number: int, said: str) -> None:
    error = OSError(number, os.strerror(number), "/etc/none/lock")
    assert said in failure_to_write(error)["hint"]
    assert said in reason_of(error, "train", "log.txt").hint
    assert said.split(", then")[0] in not_kept(Path("/etc"), error).hint


def test_the_reason_of_a_full_disk_is_found_behind_what_torch_makes_of_it() -> None:
    error = RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 64 vs 0")
    error.__context__ = OSError(28, "No space left on device")
    assert "No space left" in reason_of(error, "train", "log.txt").message


@pytest.mark.parametrize(("number", "said"), [(6, "compiled code"), (9, "out of memory"), (15, "SIGTERM during train")])
def test_deaths(number: int, said: str) -> None:
    assert said in death_of(number, "train")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[Path, str], None]]:
    """Mounts a small disk at a folder; the tests are skipped where that is not possible."""
    mounted: list[Path] = []

    def mount(folder: Path, size: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small disk needs root, and a machine that allows it")
        mounted.append(folder)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.slow
def test_a_disk_that_is_full_costs_neither_the_checkpoint_nor_the_weights(
    vqbench: Command, images: Path, tmp_path: Path, disk: Callable[[Path, str], None]
) -> None:
    run = Run(images, tmp_path / "runs")
    folder = run.plan().folder
    disk(folder.path, "16m")
    fill = folder.path / "fill"

    # room for curves, status and the result of a failure, not for another checkpoint
    answer = vqbench(*run.command, FAULTY_FILL=f"24:{fill}:65536")
    assert answer.code == 1, answer.err
    error = answer.objects[0]["error"]
    assert (error["type"], error["stage"]) == ("DiskFullError", "train")
    assert error["message"] == "no room on the disk during train: [Errno 28] No space left on device"
    assert error["hint"].startswith("free some space, then give the command again")
    assert folder.result is not None
    assert parts(folder) == []
    good = torch.load(folder.checkpoint, weights_only=True)
    assert good["images_seen"] == 16
    assert good["module"]

    fill.unlink()
    answer = vqbench(*run.command, FAULTY_FILL=f"evaluation:{fill}:0")
    assert answer.code == 1, answer.err
    error = answer.objects[0]["error"]
    assert "No space left on device" in error["message"]  # not even the failure could be written
    assert error["hint"].startswith("free some space, then give the command again")
    assert parts(folder) == []
    assert (folder.result or {}).get("state") != "done"
    weights = folder.weights.read_bytes()

    fill.unlink()
    stamp, trained = folder.weights.stat().st_mtime_ns, curves(folder, drop="")
    answer = vqbench(*run.command)
    assert answer.code == 0, answer.err
    assert answer.objects[0]["state"] == "done"
    assert (folder.weights.stat().st_mtime_ns, curves(folder, drop="")) == (stamp, trained)  # only evaluated
    assert run.through(tmp_path / "through") == (weights, curves(folder))


def test_whatever_part_of_a_result_cannot_be_written_the_rest_is_whole(images: Path, tmp_path: Path) -> None:
    """As above, for each file of a result in turn; the disk is said to be full when it is put into its place."""
    run, folder = Run(images, tmp_path / "runs"), CellFolder(tmp_path / "cell")
    write_json(folder.path / "spec.json", run.plan().spec)
    replace = os.replace
    weights = None
    for full in (
        "last.pt",
        "tokenizer.safetensors",
        "training.json",
        "per_image.parquet",
        "codes.npz",
        "reconstructions.npz",
        "recon.png",
        "result.json",
    ):

        def refuse(source: Any, target: Any, full: str = full) -> None:
            if Path(target).name == full and (full != "last.pt" or Path(target).exists()):  # the second checkpoint
                raise OSError(28, "No space left on device", str(target))
            replace(source, target)

        with mock.patch("os.replace", refuse), pytest.raises(OSError, match="No space left"):
            run_cell(folder)
        assert parts(folder) == []
        assert not (folder.path / full).exists()
        assert folder.result is None
        assert torch.load(folder.checkpoint, weights_only=True)["images_seen"] == (16 if full == "last.pt" else 64)
        if folder.weights.is_file():
            weights = weights or folder.weights.read_bytes()
            assert folder.weights.read_bytes() == weights
    run_cell(folder)
    assert folder.result is not None
    assert folder.result["state"] == "done"
    assert folder.weights.read_bytes() == weights
