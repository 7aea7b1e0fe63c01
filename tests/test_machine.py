"""What cells of one machine share: folders, GPUs, cores and what workers offer."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.commands import DEADLINE, until
from helpers.speaker import Fatal, RefusedError, speaks

from vqbench.errors import UsageError
from vqbench.machine import gpus
from vqbench.machine.cores import CORES_VARIABLE
from vqbench.machine.gpus import claim_gpus, try_to_claim, visible_gpus
from vqbench.machine.imports import lasting_imports
from vqbench.machine.lease import STALE_SECONDS, CellBusyError, exclusive, this_machine
from vqbench.machine.processes import work_beside
from vqbench.planning.request import parse_resources
from vqbench.running.worker import Need, _threads
from vqbench.training.fit import data_workers


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
            with claim_gpus(count, ["0", "1", "GPU-abc"]) as claim:
                assert len(set(claim.names)) == count
                assert not set(claim.names) & set(held)
                held.extend(claim.names)
                most.append(len(held))
                time.sleep(0.001)
                for gpu in claim.names:
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
    with claim_gpus(2, ["0"], wanted=lambda: False) as claim:  # more than there are, until nobody wants them
        assert claim.names == ()


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
            held += stack.enter_context(claim).names
            assert len(held) == len(set(held)) == count * (cell + 1)
        with claim_gpus(1, list(map(str, range(cards))), wanted=lambda: False) as claimed:
            assert claimed.names == ()
    with claim_gpus(cards, list(map(str, range(cards)))) as claimed:
        assert len(claimed.names) == cards


def test_what_does_not_suffice_is_let_go_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("vqbench.machine.gpus.POLL_SECONDS", 0.01)
    asked = threading.Event()

    def wanted() -> bool:
        asked.set()
        return True

    got: list[str] = []

    def both() -> None:
        with claim_gpus(2, ["0", "1"], wanted) as claim:
            got.extend(claim.names)

    with claim_gpus(1, ["0"]):
        thread = threading.Thread(target=both)
        thread.start()
        assert asked.wait(DEADLINE)
        with claim_gpus(1, ["1"]) as claim:  # while the other waits for both
            assert claim.names == ("1",)
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


FAKE_CUDA = """
#include <stdlib.h>
#include <string.h>
#define SHOWN getenv("FAKE_CUDA")  /* a letter for each device; of a capital's GPU the device is a part */
int cuInit(unsigned flags) { return strlen(SHOWN) ? 0 : 100; }
int cuDeviceGetCount(int *count) { *count = strlen(SHOWN); return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetUuid(char *uuid, int device) { memset(uuid, SHOWN[device] | 32, 16); return 0; }
int cuDeviceGetUuid_v2(char *uuid, int device) { memset(uuid, SHOWN[device], 16); return 0; }
"""


@pytest.fixture
def cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver's library that shows the devices of $FAKE_CUDA."""
    library = tmp_path / "libcuda.so"
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
    subprocess.run(command, input=FAKE_CUDA, text=True, check=True)
    monkeypatch.setattr(gpus, "CUDA_LIBRARY", str(library))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.mark.usefixtures("cuda")
def test_two_jobs_that_both_call_their_gpu_0_have_one_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under Slurm's device constraint, or in containers that share /tmp."""
    claims = []
    for shown in "ab":
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
        monkeypatch.setenv("FAKE_CUDA", shown)
        claims.append(try_to_claim(1, visible_gpus()))
    assert None not in claims
    names = [claim.names for claim in claims if claim is not None]
    uuids = ("61616161-6161-6161-6161-616161616161", "62626262-6262-6262-6262-626262626262")
    assert names == [(f"GPU-{uuids[0]}",), (f"GPU-{uuids[1]}",)]
    monkeypatch.setenv("FAKE_CUDA", "ab")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")  # and whoever may use both knows that neither is free
    assert try_to_claim(1, visible_gpus()) is None
    assert f"GPU-61616161 is held by process {os.getpid()}; GPU-62626262" in gpus.awaited(1, visible_gpus())
    monkeypatch.setenv("FAKE_CUDA", "A")
    assert visible_gpus() == ["MIG-41414141-4141-4141-4141-414141414141"]
    monkeypatch.setenv("FAKE_CUDA", "")
    assert visible_gpus() == ["0", "1"]  # as they were named, where CUDA does not tell
    for claim in claims:
        claim and claim.release()


def test_a_claim_is_said_to_whoever_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    said: list[str] = []
    with claim_gpus(1, ["0", "1"], holder="fsq-photos-s0"):
        with claim_gpus(2, ["0", "1"], wanted=lambda: False, say=said.append):
            pass
        with claim_gpus(1, ["0", "1"], say=said.append):
            pass
    (waits,) = said
    assert waits.startswith(
        f"waits for 2 GPUs: GPU 0 is held by process {os.getpid()}, fsq-photos-s0; GPU 1 is free (numbers, as"
    )


HOLDER = """
import os, subprocess, sys, tempfile
from vqbench.machine.gpus import try_to_claim
claim = try_to_claim(1, ["0"])
cell = subprocess.Popen(["sleep", "600"], pass_fds=[file.fileno() for file in claim.files])
print(cell.pid, flush=True)
cell.wait()
"""


def test_a_claim_goes_with_whoever_holds_it_and_its_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    command = [sys.executable, "-c", HOLDER]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "TMPDIR": str(tmp_path)})
    assert holder.stdout is not None
    cell = int(holder.stdout.readline())
    assert try_to_claim(1, ["0"]) is None
    holder.kill()
    holder.wait()
    assert try_to_claim(1, ["0"]) is None  # its cell still has the GPU
    os.kill(cell, signal.SIGKILL)
    claim = until(lambda: try_to_claim(1, ["0"]), "the end of the cell")
    claim.release()


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


def test_the_collector_never_looks_at_what_was_imported() -> None:
    before = gc.get_freeze_count()
    try:
        with contextlib.suppress(ImportError), lasting_imports():
            assert not gc.isenabled()
            lasting = [[] for _ in range(1000)]  # type: ignore[var-annotated]
            raise ImportError
        assert gc.isenabled()
        assert gc.get_freeze_count() >= before + len(lasting)
    finally:
        gc.unfreeze()


@pytest.mark.parametrize(
    ("affinity", "told", "devices", "loaders"),
    [(64, "", 1, 8), (8, "", 1, 8), (8, "", 4, 2), (64, "8", 1, 8), (64, "8", 8, 1), (16, "2", 1, 2), (2, "1", 4, 1)],
)
def test_those_who_load_images_follow_the_cores_of_their_cell(
    affinity: int, told: str, devices: int, loaders: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not those of the machine: 8 cells that started 8 each had 64 on the 8 cores of a job."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(affinity)))
    monkeypatch.setenv(CORES_VARIABLE, told)
    assert data_workers(devices) == loaders


def test_what_processes_beside_one_another_say_and_raise() -> None:
    said: list[str | None] = []

    def heard(word: str | None) -> bool:
        said.append(word)
        return {"one", "hangs", None} <= set(said)

    work_beside(speaks, [("one",), ("hangs",)], heard, "works", patience=0.1)  # nothing else is awaited
    work_beside(speaks, [("is interrupted",)], said.append, "works")
    assert said[-1] == "held"
    with pytest.raises(RefusedError, match=r"^no such thing$") as refused:
        work_beside(speaks, [("refuses",), ("hangs",)], said.append, "works")
    assert (refused.value.hint, refused.value.thing) == ("give another", "thing")
    with pytest.raises(OSError, match="No space left") as failed:
        work_beside(speaks, [("cannot write",)], said.append, "works")
    assert (failed.value.errno, failed.value.filename) == (28, "/there")
    with pytest.raises(UsageError, match=r"^a process that works has ended by itself \(exit code -9\)$"):
        work_beside(speaks, [("is killed",), ("one",)], said.append, "works")
    with pytest.raises(UsageError, match=r"exit code 3"):  # before it has read what it is to do, which may be large
        work_beside(speaks, [("one", Fatal(), bytes(2**20))], said.append, "works")
