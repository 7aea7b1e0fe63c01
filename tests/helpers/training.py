"""Trainings of a small network on noise, run through or killed on the way."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vqbench.data.dataset import Images
from vqbench.data.stream import TrainingStream
from vqbench.recipe import Recipe, load_recipe
from vqbench.tokenizer import build_tokenizer
from vqbench.training.fit import TrainingOutcome, train

TINY = {
    "channels": 8, "channel_multipliers": (1, 2), "latent_channels": 8, "resolution": 16, "images": 64,
    "batch_size": 8, "warmup_images": 0, "codebook_size": 16, "codebook_dim": 8, "checkpoint_images": 32,
    "log_images": 16,
}  # fmt: skip


class Noise(Images):
    """Twenty images of noise. With `log`, a file: a line for each that is loaded, which process did so and when."""

    def __init__(self, log: Path | None = None) -> None:
        self.log = log
        self.pixels = np.random.default_rng(0).integers(0, 256, (20, 18, 18, 3), dtype=np.uint8)
        self.ids = [str(i) for i in range(20)]

    def load(self, i: int) -> Any:
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{os.getpid()} {i}\n")
        return self.pixels[i]


def recipe(**more: Any) -> Recipe:
    return load_recipe("tiny", {**TINY, **more})


def fit(
    r: Recipe, folder: Path, method: str = "vqgan", config: dict[str, Any] | None = None, log: Path | None = None
) -> TrainingOutcome:
    stream = TrainingStream(Noise(log), r.resolution, 5, r.random_crop, r.flip)
    return train(build_tokenizer(method, config or {}, r, 0), stream, r, seed=0, folder=folder)


class KilledError(Exception):
    """Stands for the end of the process."""


def fit_until(images: int, r: Recipe, folder: Path, method: str, config: dict[str, Any] | None = None) -> None:
    def die(seen: int, rate: float) -> None:
        if seen >= images:
            raise KilledError

    stream = TrainingStream(Noise(), r.resolution, 5, r.random_crop, r.flip)
    with pytest.raises(KilledError):
        train(build_tokenizer(method, config or {}, r, 0), stream, r, seed=0, folder=folder, report=die)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
