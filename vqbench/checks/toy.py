"""Small models and few steps to try a quantizer on, in this process or in two: what conformance checks with.

`python -m vqbench.checks.toy --rank …` is one of the two processes of `run_on_two_ranks`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from vqbench.config import build
from vqbench.errors import unknown
from vqbench.machine.streams import LOG_ENCODING
from vqbench.quantizer import Quantized, Quantizer, TrainingState
from vqbench.registry import METHODS

CODEBOOK_SIZE, DIM = 64, 8  # asked for through `matched`
# 1024 tokens: enough that rounding to bfloat16 would move some of them to another code. Height and width differ, so
# that they cannot be taken for each other unseen.
BATCH, HEIGHT, WIDTH = 4, 8, 32
STEPS = 3  # optimiser steps before and after each save
RANK_TIMEOUT = 120  # seconds for two processes to import torch and train STEPS steps


class NotApplicableError(Exception):
    """The property says nothing about this method; the message says why."""


def require(holds: bool, otherwise: str) -> None:
    """AssertionError that says `otherwise`, unless it holds; `assert` would be gone under -O."""
    if not holds:
        raise AssertionError(otherwise)


def require_near(actual: Tensor, expected: Tensor, within: float, otherwise: str) -> float:
    """How far apart two tensors are. AssertionError where that is more than `within` times 1 + the largest value.

    It says `otherwise`, with the distance in the place of {}.
    """
    apart = float((actual - expected).abs().max())
    require(apart <= within * (1 + float(expected.abs().max())), otherwise.format(f"{apart:.3g}"))
    return apart


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit, through nested states."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


@torch.no_grad()
def in_eval(quantizer: Quantizer, z: Tensor, seed: int = 0) -> Quantized:
    """One pass in eval mode, from a random state that `seed` sets."""
    torch.manual_seed(seed)
    result: Quantized = quantizer.eval()(z)
    return result


@torch.no_grad()
def decoded(quantizer: Quantizer, indices: Tensor) -> Tensor:
    """The latents of indices, without a gradient."""
    latents: Tensor = quantizer.decode_indices(indices)
    return latents


def round_trip(state: Any) -> Any:
    """Through a file, as a checkpoint goes."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


class Trial:
    """Fresh instances of one method, or of method@preset, small, and the inputs for them."""

    def __init__(self, name: str) -> None:
        self.name = name
        method, at, preset = name.partition("@")
        self._class: type[Quantizer] = METHODS.get(method)
        if at and preset not in self._class.presets:
            raise unknown(
                f"preset of {method}", preset, self._class.presets, f"`vqbench show {method}` lists the presets"
            )
        chosen = self._class.presets[preset] if at else {}
        self._settings = {**self._class.matched(CODEBOOK_SIZE, DIM), **chosen}  # as in a run: matched < preset

    def quantizer(self, seed: int = 0, training: bool = False) -> Quantizer:
        """A new instance; the same seed gives the same."""
        torch.manual_seed(seed)
        made = self._class(build(self._class.Config, self._settings, self.name, f"vqbench show {self.name}"))
        return made.train(training)

    def trained(self, training: bool = False) -> Quantizer:
        """A quantizer that is no longer as it was initialised."""
        model = ToyTokenizer(self.quantizer(training=True))
        train(model, model.quantizer, make_optimizer(model), range(STEPS))
        return model.quantizer.train(training)

    def latents(self, quantizer: Quantizer, seed: int = 1, scale: float = 1.0) -> Tensor:
        """Normal noise that fits `quantizer`."""
        noise = torch.Generator().manual_seed(seed)
        return scale * torch.randn(BATCH, quantizer.in_channels, HEIGHT, WIDTH, generator=noise)


class ToyTokenizer(nn.Module):
    """The smallest tokenizer: a 4 × 4 patch to a token and back."""

    quantizer: Quantizer

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.encoder = nn.Conv2d(3, quantizer.in_channels, 4, stride=4)
        self.quantizer = quantizer
        self.decoder = nn.ConvTranspose2d(quantizer.out_channels, 3, 4, stride=4)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and the reconstruction's mean squared error."""
        result: Quantized = self.quantizer(self.encoder(images))
        mse = mse_loss(self.decoder(result.latents), images)
        loss = mse + sum(result.losses.values(), torch.zeros(()))
        if result.continuous is not None:
            loss = loss + result.continuous_weight * mse_loss(self.decoder(result.continuous), images)
        return loss, mse.detach()


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Adam with a step long enough to change the codes in a few of them."""
    return torch.optim.Adam(model.parameters(), lr=1e-2)


def train(
    model: nn.Module, quantizer: Quantizer, optimizer: torch.optim.Optimizer, steps: Iterable[int], data_seed: int = 0
) -> None:
    """Steps of `model`, a ToyTokenizer or its distributed form, on noise images that depend on seed and step alone."""
    for step in steps:
        noise = torch.Generator().manual_seed(1000 * data_seed + step)
        quantizer.advance(TrainingState(step * BATCH, 100 * BATCH, 48.0, torch.tensor(2 / (1 + step))))
        loss, _ = model(torch.rand(BATCH, 3, 24, 40, generator=noise) * 2 - 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


_ANSWER = "state "  # before the hash, since a method may print too


def run_on_two_ranks(method: str) -> list[str]:
    """Train one model in two processes on different data; the hash of the quantizer's state on each."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "vqbench.checks.toy", "--method", method, "--store", f"{folder}/store"]
        if (plugin := METHODS.file_of(method.partition("@")[0])) is not None:
            command += ["--plugin", str(plugin)]
        return _run_ranks(command)


def _run_ranks(command: list[str]) -> list[str]:
    environment = {**os.environ, **LOG_ENCODING, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [*command, "--rank", str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env=environment,
        )
        for rank in range(2)
    ]
    try:
        answers = [process.communicate(timeout=RANK_TIMEOUT) for process in ranks]
    except subprocess.TimeoutExpired:
        raise AssertionError(f"the two ranks did not finish within {RANK_TIMEOUT} s") from None
    finally:
        for process in ranks:
            if process.poll() is None:
                process.kill()
                process.communicate()
    return [_hash_said(out, errors) for out, errors in answers]


def _hash_said(out: str, errors: str) -> str:
    """What a rank answered. Raises AssertionError, with its last words, if it did not.

    The exit code says nothing: gloo's threads can abort a process that has answered, or that has told its error.
    """
    for line in out.splitlines():
        if line.startswith(_ANSWER):
            return line.removeprefix(_ANSWER)
    said = [line for line in errors.strip().splitlines() if "without an active exception" not in line]
    raise AssertionError((said or ["a rank ended without a word"])[-1])


def _loopback() -> str:
    """Name of the loopback interface; nothing is opened to the network."""
    return next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")


def _rank(method: str, store: str, rank: int) -> str:
    """Train as one of two ranks; sha256 of the quantizer's state."""
    os.environ["GLOO_SOCKET_IFNAME"] = _loopback()
    # A store in a file, not on a port: no port that another process could take between choosing and using it.
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    quantizer = Trial(method).quantizer(training=True)
    model = nn.parallel.DistributedDataParallel(ToyTokenizer(quantizer), find_unused_parameters=True)
    torch.manual_seed(rank)
    train(model, quantizer, make_optimizer(model), range(STEPS), data_seed=rank)
    digest = hashlib.sha256()
    codebook = {"codebook": quantizer.codebook} if quantizer.codebook is not None else {}
    for tensor in {**quantizer.state_dict(), **codebook}.values():
        digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def main() -> None:
    """One rank of `run_on_two_ranks`; prints the hash of its state."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--method", required=True)
    parser.add_argument("--plugin", type=Path)
    parser.add_argument("--store", required=True)
    parser.add_argument("--rank", type=int, required=True)
    asked = parser.parse_args()
    if asked.plugin is not None:
        METHODS.add_file(asked.plugin)
    print(_ANSWER + _rank(asked.method, asked.store, asked.rank), flush=True)
    torch.distributed.barrier()  # the other rank may still be in its last collective
    os._exit(0)


if __name__ == "__main__":
    main()
