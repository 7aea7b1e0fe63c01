"""Fitting one tokenizer: the order of its data, the Lightning trainer, where it resumes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vqbench.data.stream import TrainingStream
from vqbench.machine.cores import cores_of_a_cell
from vqbench.machine.interrupts import TerminatedError
from vqbench.recipe import Execution, Recipe
from vqbench.results.cell_files import CHECKPOINTS
from vqbench.tokenizer import Tokenizer, run
from vqbench.training.collapse import Collapse
from vqbench.training.lean_lightning import LightningEnvironment, SIGTERMException, lightning
from vqbench.training.parts import Parts
from vqbench.training.recorder import Recorder, resume
from vqbench.training.steps import peak_memory_bytes
from vqbench.training.tokenizer_training import TokenizerTraining


@dataclass(frozen=True)
class TrainingOutcome:
    """What a finished training leaves behind."""

    tokenizer: Tokenizer
    """Averaged weights where the recipe asks for them, otherwise the last ones."""
    images_seen: int
    seconds: float
    """Time in training steps, without start-up, summed over interruptions."""
    peak_memory_bytes: int
    """CUDA: the allocator's peak. CPU: the process's resident peak. The largest over interruptions."""
    device: str
    devices: int
    execution: dict[str, Any]
    """How it was carried out, JSON-ready: the arithmetic that the device in fact did."""
    collapse: Collapse | None
    """The collapse in which it ended, if it did."""

    @property
    def images_per_s(self) -> float:
        """Training throughput over all devices."""
        return self.images_seen / self.seconds if self.seconds > 0 else 0.0


def batch_positions(start: int, stop: int, batch_size: int, rank: int, devices: int) -> Iterator[list[int]]:
    """Positions in the endless stream that one device sees, batch by batch, from `start` to `stop` images."""
    share = batch_size // devices
    for first in range(start + rank * share, stop, batch_size):
        yield list(range(first, first + share))


class _Stretches:
    """The batches of the stretch that training is in, asked anew by each pass of the one loader of a training.

    A stretch ends where a checkpoint is written. It has no length: the first one after a resume, and the last, are
    shorter than others, and Lightning asks once for all.
    """

    def __init__(self, training: TokenizerTraining) -> None:
        self.training = training

    def __iter__(self) -> Iterator[list[int]]:
        recipe, trainer, start = self.training.recipe, self.training.trainer, self.training.images_seen
        stretch = recipe.stretch
        end = min((start // stretch + 1) * stretch, recipe.images_total)
        return batch_positions(start, end, recipe.batch_size, trainer.global_rank, trainer.world_size)


def _loader(stream: TrainingStream, training: TokenizerTraining, workers: int, on_gpu: bool) -> DataLoader[Tensor]:
    """Batches of uint8 images (B, C, R, R), one stretch at each pass; its processes live as long as it does."""
    return DataLoader(
        stream,
        batch_sampler=_Stretches(training),  # type: ignore[arg-type]
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=on_gpu,
    )


def train(
    tokenizer: Tokenizer,
    stream: TrainingStream,
    recipe: Recipe,
    *,
    seed: int,
    folder: Path,
    devices: int = 1,
    perceptual: nn.Module | None = None,
    report: Callable[[int, float], None] = lambda images, rate: None,
    stop_on_collapse: bool = False,
    execution: Execution = Execution(),  # noqa: B008 - frozen
) -> TrainingOutcome:
    """Train `tokenizer` for the recipe's budget, from the checkpoint in `folder` if there is one.

    Writes `folder`/metrics.jsonl and `folder`/checkpoints. `report(images_seen, images_per_s)` is called after
    each step. Raises DivergedError when the loss is no longer finite, with `stop_on_collapse` CollapsedError, and
    TerminatedError when the process is told to end (SIGTERM), after a checkpoint.
    """
    training = TokenizerTraining(tokenizer, recipe, seed, perceptual)
    (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    resume(training, folder)
    trainer = _trainer(recipe, training.images_seen, devices, Recorder(folder, report, stop_on_collapse))
    device = trainer.strategy.root_device
    parts = Parts(recipe, execution, device)
    training.run_by(parts)
    if training.images_seen < recipe.images_total:
        try:
            on_gpu, workers = device.type == "cuda", data_workers(devices)
            with parts.arithmetic():
                trainer.fit(training, _loader(stream, training, workers, on_gpu))
        except SIGTERMException:  # a SystemExit of code 0, as if all were done
            raise TerminatedError from None
    final: Tokenizer = training.tokenizer if training.average is None else training.average.module  # type: ignore[assignment]
    return TrainingOutcome(
        tokenizer=as_it_was_built(final).to(device).eval(),
        images_seen=training.images_seen,
        seconds=training.seconds,
        peak_memory_bytes=max(training.peak_memory_bytes, peak_memory_bytes(device)),
        device=str(device),
        devices=trainer.world_size,
        execution=parts.said(),
        collapse=training.collapse_watch.collapse,
    )


def as_it_was_built(tokenizer: Tokenizer) -> Tokenizer:
    """A trained tokenizer without what its training ran it by."""
    tokenizer.run = run
    for network in (tokenizer.encoder, tokenizer.decoder):
        network.recomputes = False
    tokenizer.decoder.ends_before_last = False
    return tokenizer.to(memory_format=torch.contiguous_format)


def data_workers(devices: int) -> int:
    """Processes that load images for each device; 0 where training itself takes all cores, and loads between steps."""
    return min(8, max(1, cores_of_a_cell() // max(devices, 1))) if torch.cuda.is_available() else 0


def _trainer(recipe: Recipe, images_seen: int, devices: int, recorder: Recorder) -> lightning.Trainer:
    total, stretch = recipe.images_total, recipe.stretch
    return lightning.Trainer(
        accelerator="auto",
        devices=devices,
        strategy="ddp_find_unused_parameters_true" if devices > 1 else "auto",  # a GAN trains in turns
        precision="bf16-mixed" if recipe.precision == "bf16" else "32-true",
        max_epochs=-(-total // stretch) - images_seen // stretch,
        use_distributed_sampler=False,
        callbacks=[recorder],
        plugins=[LightningEnvironment()],  # a cell is started by its runner, whatever scheduler is around it
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
