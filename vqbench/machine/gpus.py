"""GPUs of one machine shared out among the cells that run on it, whoever started them.

A GPU goes by its UUID: two jobs that may use one GPU each, in containers or under Slurm's device constraint, both call
theirs 0. What CUDA does not tell the UUIDs of goes by the name that CUDA_VISIBLE_DEVICES has for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import random
import re
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO

from vqbench.wording import counted

POLL_SECONDS = 1.0
DEVICES = Path("/dev")
CUDA_LIBRARY = "libcuda.so.1"
_DRIVERS = ("nvidia*", "nvhost*", "kfd", "dxg")  # of NVIDIA, its Jetson, AMD, and Windows around a Linux


def visible_gpus() -> list[str]:
    """The GPUs that a process started here may use, as CUDA_VISIBLE_DEVICES may name them; empty without any.

    Their UUIDs, or MIG's, in CUDA's order. Where CUDA does not tell: the names that the variable has, or numbers.
    """
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    has_driver = sys.platform != "linux" or any(next(DEVICES.glob(name), None) for name in _DRIVERS)
    if chosen is None and not has_driver:
        return []  # without asking torch, whose import takes seconds, in which a worker of a cluster answers nobody
    told = _uuids()
    if told is not None:
        return told
    if chosen is not None:
        return _named(chosen)
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def _named(chosen: str) -> list[str]:
    """As CUDA reads its variable: up to the first name that is no GPU, and none at all where one is named twice."""
    kind = next((kind for kind in ("GPU-", "MIG-") if chosen.strip().startswith(kind)), "")
    names = []
    for text in chosen.split(","):
        name = re.match(rf"{kind}\S+" if kind else r"\d+", text.strip())
        if name is None:
            break
        names.append(name[0] if kind else str(int(name[0])))
    return names if len(set(names)) == len(names) else []


def _uuids() -> list[str] | None:
    """What CUDA shows this process, which is not what the machine has; None where it cannot be asked, or shows nothing.

    Asked of the driver's library, which makes no context: nothing is taken of a GPU's memory.
    """
    if metadata.version("torch").endswith("+cpu"):  # whatever GPUs there are, no cell would use them
        return None
    try:
        cuda = ctypes.CDLL(CUDA_LIBRARY)
        whole, part = cuda.cuDeviceGetUuid, getattr(cuda, "cuDeviceGetUuid_v2", cuda.cuDeviceGetUuid)
    except (OSError, AttributeError):
        return None
    count, device, names = ctypes.c_int(), ctypes.c_int(), []
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return None
    for ordinal in range(count.value):
        of_whole, of_part = ctypes.create_string_buffer(16), ctypes.create_string_buffer(16)
        if cuda.cuDeviceGet(ctypes.byref(device), ordinal) or whole(of_whole, device) or part(of_part, device):
            return None
        kind = "GPU" if of_part.raw == of_whole.raw else "MIG"
        names.append(f"{kind}-{uuid.UUID(bytes=of_part.raw)}")
    return names if names and len(set(names)) == len(names) else None


@dataclass(frozen=True)
class Claim:
    """GPUs that nobody else uses until `release`, or until this process and those that inherit `files` are gone."""

    names: tuple[str, ...] = ()
    files: tuple[IO[str], ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        """Variables for a process that is to see these GPUs alone; empty where none were asked for."""
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.names)} if self.names else {}

    def release(self) -> None:
        """Give them back."""
        for file in self.files:
            if not file.closed:
                fcntl.flock(file, fcntl.LOCK_UN)  # closing alone would leave it to whoever has inherited it
                file.close()


def try_to_claim(count: int, among: Sequence[str], holder: str = "") -> Claim | None:
    """Hold `count` of the GPUs `among` that no other cell of this user holds; None where fewer are free.

    `holder` is said to whoever waits. A claim goes with its processes, so a GPU is never lost. Raises OSError.
    """
    taken: dict[str, IO[str]] = {}
    try:
        for name in among:
            if len(taken) < count and (file := _locked(name)) is not None:
                taken[name] = file
        claim = Claim(tuple(taken), tuple(taken.values()))
        if len(taken) < count:  # all or none: two cells that each hold half would wait for ever
            claim.release()
            return None
        for file in claim.files:
            file.truncate(0)
            file.write(f"process {os.getpid()}" + (f", {holder}" if holder else ""))
            file.flush()
    except BaseException:
        Claim(files=tuple(taken.values())).release()
        raise
    return claim


@contextlib.contextmanager
def claim_gpus(
    count: int,
    among: Sequence[str],
    wanted: Callable[[], bool] = lambda: True,
    holder: str = "",
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[Claim]:
    """Hold `count` of the GPUs `among`; waits until there are so many, and says once what it waits for.

    Gives an empty claim when it is no longer `wanted`. Nobody queues: who asks for several waits while others take
    single ones as they come free.
    """
    claim = try_to_claim(count, among, holder)
    if claim is None:
        say(awaited(count, among))
    while claim is None and wanted():
        time.sleep(poll_seconds())
        claim = try_to_claim(count, among, holder)
    claim = claim or Claim()
    try:
        yield claim
    finally:
        claim.release()


def poll_seconds() -> float:
    """Until a claim is tried again: not the same for all who wait, or they would get into each other's way."""
    return POLL_SECONDS * (1 + random.random())


def awaited(count: int, among: Sequence[str]) -> str:
    """What a cell of `count` GPUs waits for, in words."""
    return f"waits for {counted(count, 'GPU')}: {spelled(among)}"


def spelled(among: Sequence[str]) -> str:
    """`GPU-8932f937 is held by process 12, fsq-photos-s0-1234abcd; GPU-02a7c3d1 is free`, and what names they are."""
    said = []
    for name in among:
        holder = _holder(name)
        said.append(f"{_short(name)} is {'free' if holder is None else f'held by {holder}'}")
    numbers = any(name.isdigit() for name in among)
    caution = " (numbers, as CUDA does not tell their UUIDs: in another job or container the same may be another GPU)"
    return "; ".join(said) + (caution if numbers else "")


def _short(name: str) -> str:
    return f"GPU {name}" if name.isdigit() else name if "/" in name else name[: len("GPU-") + 8]


def _holder(name: str) -> str | None:
    """Who holds a GPU, as far as it says; None for one that is free."""
    file = _locked(name)
    if file is not None:
        Claim(files=(file,)).release()
        return None
    with contextlib.suppress(OSError), _lock_file(name).open(encoding="utf-8", errors="replace") as found:
        return found.read().strip() or "another process"
    return "another process"


def _lock_file(name: str) -> Path:
    folder = Path(tempfile.gettempdir()) / f"vqbench-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / name.replace("/", "_")


def _locked(name: str) -> IO[str] | None:
    """The file that stands for a GPU, locked; None where another has it."""
    file = _lock_file(name).open("a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException as error:
        file.close()
        if isinstance(error, BlockingIOError):
            return None
        raise
    return file
