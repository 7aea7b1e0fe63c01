"""A plugin for the tests: FSQ which crashes, hangs, runs out of memory, fills the disk or waits, as it is told to.

What a preset does is part of the cell. What the environment asks for is not, so that the same cell can be resumed
without it: `FAULTY_GATE=IMAGES:FILE` makes FILE.reached there, and waits for FILE to appear;
`FAULTY_FILL=IMAGES:FILE:BYTES` fills the disk with a file but for so many bytes, once; where IMAGES is `evaluation`,
not in training but then. `FAULTY_RANK=IMAGES:SEED:RANK:FAULT,…` has a fault on one of a cell's devices.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from vqbench.methods.fsq import FSQ
from vqbench.quantizer import Quantized, TrainingState
from vqbench.registry import METHODS

GATE_SECONDS = 900


@METHODS.register("faulty")
class Faulty(FSQ):
    """FSQ with faults (Murphy, 1949)."""

    @dataclass(frozen=True)
    class Config(FSQ.Config):
        fault: str = ""
        """What goes wrong; empty for nothing."""
        at: int = 16
        """After how many images."""
        pause: float = 0.0
        """Seconds that each step takes longer."""

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        fault: {"fault": fault} for fault in ("segfault", "tensors", "memory")
    }

    _is_at_nan = False

    def advance(self, state: TrainingState) -> None:
        _environment(state.images_seen)
        fault = _fault_of_rank(state.images_seen)
        self._is_at_nan = fault == "nan"
        if fault and fault != "nan":
            globals()[f"_{fault}"]()
        time.sleep(self.config.pause)
        if self.config.fault and state.images_seen >= self.config.at:
            globals()[f"_{self.config.fault}"]()

    def forward(self, z: Tensor) -> Quantized:
        if not self.training:
            _environment("evaluation")
        found = super().forward(z)
        if self.training and self._is_at_nan:
            found.losses["odd"] = found.latents.mean() * float("nan")
        return found


def _environment(now: int | str) -> None:
    moment, _, gate = os.environ.get("FAULTY_GATE", "").partition(":")
    if moment == str(now):
        deadline = time.monotonic() + GATE_SECONDS
        if os.environ.get("LOCAL_RANK", "0") == "0":
            Path(f"{gate}.reached").touch()
        while not os.path.exists(gate):
            if time.monotonic() > deadline:
                raise TimeoutError(f"nobody opened {gate}")
            time.sleep(0.02)
    moment, _, rest = os.environ.get("FAULTY_FILL", "").partition(":")
    if moment == str(now):
        path, _, spare = rest.rpartition(":")
        _fill(Path(path), int(spare))


def _fill(path: Path, spare: int) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            file.truncate(max(0, file.tell() - spare))


def _fault_of_rank(now: int) -> str:
    seed = re.search(r"-s(\d+)-[0-9a-f]{8}/spec.json$", sys.argv[-1])
    here = [str(now), seed[1] if seed else "", os.environ.get("LOCAL_RANK", "0")]
    for text in os.environ.get("FAULTY_RANK", "").split(","):
        *where, fault = text.split(":")
        if where == here:
            return fault
    return ""


def _ballast() -> None:
    b"x" * 2 * 10**9


def _exception() -> None:
    raise ValueError("odd")


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _segfault() -> None:
    ctypes.string_at(0)


def _hang() -> None:
    time.sleep(3600)


def _memory() -> None:
    Path(os.environ["FAULTY_CGROUP"], "cgroup.procs").write_text(str(os.getpid()))
    held = []
    while True:
        held.append(os.urandom(2**20))


def _tensors() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**26, hard))
    held = []
    while True:
        held.append(torch.ones(2**22))
