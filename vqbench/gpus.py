"""GPUs of one machine shared out among the cells that run on it, whoever started them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

POLL_SECONDS = 1.0
DEVICES = Path("/dev")
_DRIVERS = ("nvidia*", "nvhost*", "kfd", "dxg")  # of NVIDIA, its Jetson, AMD, and Windows around a Linux


def visible_gpus() -> list[str]:
    """The GPUs that a process started here may use, as CUDA_VISIBLE_DEVICES names them; empty without any."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() and name.strip() != "-1"]
    if sys.platform == "linux" and not any(next(DEVICES.glob(name), None) for name in _DRIVERS):
        return []  # without asking torch, whose import takes seconds, in which a worker of a cluster answers nobody
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def _lock_file(name: str) -> Path:
    folder = Path(tempfile.gettempdir()) / f"vqbench-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / name.replace("/", "_")


@contextlib.contextmanager
def claim_gpus(count: int, among: list[str], wanted: Callable[[], bool] = lambda: True) -> Iterator[list[str]]:
    """Hold `count` of the GPUs `among` that no other cell of this user holds; waits until there are so many.

    Gives an empty list when it is no longer `wanted`. A lock goes with its process, so a GPU is never lost.
    """
    while True:
        with contextlib.ExitStack() as held:  # all or none: two cells that each hold half would wait for ever
            names = [name for name in among if held.enter_context(_try_to_lock(name))]
            if len(names) >= count or not wanted():
                yield names[:count] if len(names) >= count else []
                return
        time.sleep(POLL_SECONDS * (1 + random.random()))


@contextlib.contextmanager
def _try_to_lock(name: str) -> Iterator[bool]:
    with _lock_file(name).open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
