"""What the harness costs in training: images/s of the real `train` over those of a bare PyTorch loop.

python tests/benchmarks/step.py [--recipes tiny,small --methods vqgan,fsq,sqvae,vaevq --steps 24 --pairs 5 --compile]

Same model, losses, optimiser, averages and images in the same process (whose memory is allocated as that of a cell is),
in alternation; start-up, the first steps and checkpoints are left out on both sides. The aim is at least 0.97 in
processor time (wall time says the same on a quiet machine). With --compile, a third loop has encoder and decoder
compiled.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vqbench.cell.ranks import ALLOCATION
from vqbench.data.dataset import Images, Pixels
from vqbench.data.stream import TrainingStream
from vqbench.inputs import to_input
from vqbench.quantizer import TrainingState
from vqbench.recipe import Recipe, load_recipe
from vqbench.registry import METHODS
from vqbench.tokenizer import Tokenizer, build_tokenizer
from vqbench.training.fit import train
from vqbench.training.steps import learning_rate, loss_per_nat

AIM = 0.97
WARM_UP = 4
"""Steps that are not timed."""

Marks = list[tuple[float, float]]
"""Wall and processor clock after each step."""


class Noise(Images):
    """256 images that are decoded already."""

    content_key = ""

    def __init__(self, side: int) -> None:
        self.ids = [str(i) for i in range(256)]
        self.pixels = np.random.default_rng(0).integers(0, 256, (256, side, side, 3), np.uint8)

    def load(self, i: int) -> Pixels:
        """Image `i`."""
        return self.pixels[i]

    def measure(self, i: int) -> tuple[int, int]:
        """Its sides."""
        return self.pixels.shape[1], self.pixels.shape[2]


def mark(marks: Marks) -> None:
    """Note the time of both clocks."""
    marks.append((time.perf_counter(), time.process_time()))


def product(tokenizer: Tokenizer, stream: TrainingStream, recipe: Recipe) -> Marks:
    """The training of a cell."""
    marks: Marks = []
    with tempfile.TemporaryDirectory() as folder:
        train(tokenizer, stream, recipe, seed=0, folder=Path(folder), report=lambda images, rate: mark(marks))
    return marks


def bare(tokenizer: Tokenizer, stream: TrainingStream, recipe: Recipe) -> Marks:
    """The loop that one would write for this model by hand. No discriminator, no perceptual term."""
    marks: Marks = []
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=recipe.learning_rate, betas=recipe.betas)
    average = None
    if recipe.ema_halflife_images:
        decay = 0.5 ** (recipe.batch_size / recipe.ema_halflife_images)
        average = AveragedModel(tokenizer, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]
    error, batch = torch.ones(()), recipe.batch_size
    per_token = 3.0 * tokenizer.downsampling**2
    tokenizer.train()
    for step in range(recipe.steps):
        images = to_input(torch.stack([stream[position] for position in range(step * batch, (step + 1) * batch)]))
        state = TrainingState(step * batch, recipe.steps * batch, per_token, loss_per_nat(recipe, error))
        tokenizer.quantizer.advance(state)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step * batch)
        output = tokenizer(images)
        error = nn.functional.mse_loss(output.images, images)
        terms = [recipe.pixel_weight * error, *output.quantized.losses.values()]
        if output.continuous is not None:
            second = nn.functional.mse_loss(output.continuous, images)
            terms.append(recipe.pixel_weight * output.quantized.continuous_weight * second)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(terms).sum().backward()
        if recipe.gradient_clip:
            nn.utils.clip_grad_norm_(tokenizer.parameters(), recipe.gradient_clip)
        optimizer.step()
        error = error.detach()
        if average is not None:
            average.update_parameters(tokenizer)
        mark(marks)
    return marks


def compiled(tokenizer: Tokenizer, stream: TrainingStream, recipe: Recipe) -> Marks:
    """The bare loop with a compiled encoder and decoder."""
    for part in ("encoder", "decoder"):
        setattr(tokenizer, part, torch.compile(getattr(tokenizer, part)))
    return bare(tokenizer, stream, recipe)


def seconds_per_step(marks: Marks) -> tuple[float, float]:
    """Medians of wall and processor time."""
    timed = marks[WARM_UP - 1 :]
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(timed)]
    return statistics.median(s[0] for s in steps), statistics.median(s[1] for s in steps)


def pairs(method: str, recipe: Recipe, count: int, others: list[Callable[..., Marks]]) -> list[list[Any]]:
    """Seconds per step of each loop, round by round; every second round goes the other way about."""
    config = METHODS.get(method).matched(recipe.codebook_size, recipe.codebook_dim)
    images, found = Noise(recipe.resolution), []
    for turn in range(count):
        order = list(enumerate([product, *others]))[:: -1 if turn % 2 else 1]
        row: list[Any] = [None] * len(order)
        for i, loop in order:
            stream = TrainingStream(images, recipe.resolution, 0, recipe.random_crop, recipe.flip)
            row[i] = seconds_per_step(loop(build_tokenizer(method, config, recipe, 0), stream, recipe))
        found.append(row)
    return found


def main() -> int:
    """Measure, print, and say whether the aim is met."""
    if not ALLOCATION.items() <= os.environ.items():  # malloc reads it when a process begins
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATION})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default="tiny,small")
    parser.add_argument("--methods", default="")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--batch", type=int, help="images per step; the recipe's without")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    others = [bare, *([compiled] if asked.compile else [])]
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, {torch.get_num_threads()} threads; torch "
          f"{torch.__version__}; {asked.steps} steps, medians of {asked.pairs} pairs")  # fmt: skip
    print(f"{'recipe, method':<20}{'images/s':>10}{'of bare: wall':>15}{'processor':>11}{'compiled over eager':>21}")
    rows, met = [], True
    for name in asked.recipes.split(","):
        over = {"batch_size": asked.batch} if asked.batch else {}
        known = load_recipe(name, over)
        images = known.batch_size * (asked.steps + WARM_UP)
        recipe = load_recipe(name, {**over, "images": images, "checkpoint_images": images})
        for method in [m for m in asked.methods.split(",") if m] or METHODS.names():
            with contextlib.redirect_stderr(None):
                found = pairs(method, recipe, asked.pairs, others)
            wall, processor = (statistics.median(row[1][clock] / row[0][clock] for row in found) for clock in (0, 1))
            rate = recipe.batch_size / statistics.median(row[0][0] for row in found)
            gain = statistics.median(row[1][1] / row[2][1] for row in found) if asked.compile else None
            shown = f"{gain:>21.2f}" if gain is not None else ""
            print(f"{f'{name}, {method}':<20}{rate:>10.1f}{wall:>15.3f}{processor:>11.3f}{shown}", flush=True)
            rows.append({"recipe": name, "method": method, "images_per_s": rate, "of_bare_wall": wall,
                         "of_bare_processor": processor, "compiled_over_eager": gain})  # fmt: skip
            met = met and processor >= AIM
    if asked.json:
        asked.json.write_text(json.dumps({"load": os.getloadavg()[0], "rows": rows}, indent=1), encoding="utf-8")
    return int(not met)


if __name__ == "__main__":
    raise SystemExit(main())
