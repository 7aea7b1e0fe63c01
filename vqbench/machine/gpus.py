"""GPUs of one machine shared out among the cells that run on it, whoever started them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import re
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
        return _named(chosen)
    if sys.platform == "linux" and not any(next(DEVICES.glob(name), None) for name in _DRIVERS):
        return []  # without asking torch, whose import takes seconds, in which a worker of a cluster answers nobody
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


def _lock_file(name: str) -> Path:
    folder = Path(tempfile.gettempdir()) / f"vqbench-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / name.replace("/", "_")


@contextlib.contextmanager
def claim_gpus(count: int, among: list[str], wanted: Callable[[], bool] = lambda: True) -> Iterator[list[str]]:
    """Hold `count` of the GPUs `among` that no other cell of this user holds; waits until there are so many.

    Gives an empty list when it is no longer `wanted`. A lock goes with its process, so a GPU is never lost.
    Nobody queues: who asks for several waits while others take single ones as they come free.
    """
    while True:
        with contextlib.ExitStack() as held:  # all or none: two cells that each hold half would wait for ever
            names: list[str] = []
            for name in among:
                if len(names) < count and held.enter_context(_try_to_lock(name)):
                    names.append(name)
            if len(names) == count:
                yield names
                return
        if not wanted():
            yield []
            return
        time.sleep(POLL_SECONDS * (1 + random.random()))


@contextlib.contextmanager
def _try_to_lock(name: str) -> Iterator[bool]:
    with _lock_file(name).open("a", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
