"""What a training leaves on disk while it runs: curves and checkpoints; and when it must not go on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vqbench.errors import VQBenchError
from vqbench.machine.atomic import replacing, write_text_atomically
from vqbench.results.cell_files import CHECKPOINT as CHECKPOINT_FILE
from vqbench.results.cell_files import CHECKPOINTS, CURVES
from vqbench.results.curves import read_curves
from vqbench.training.collapse import symptom
from vqbench.training.lean_lightning import SIGTERMException, lightning
from vqbench.training.steps import append_point, is_logged, peak_memory_bytes, refuse_not_finite

if TYPE_CHECKING:
    from vqbench.training.tokenizer_training import TokenizerTraining

CHECKPOINT = Path(CHECKPOINT_FILE).name


class Recorder(lightning.Callback):
    """Writes metrics.jsonl and checkpoints, reports progress, watches for a collapse.

    Stops a training whose loss is not finite, and with `stop_on_collapse` one that has collapsed for long. A training
    that is told to end (SIGTERM) ends after its step, with a checkpoint.
    """

    def __init__(self, folder: Path, report: Callable[[int, float], None], stop_on_collapse: bool = False) -> None:
        self.folder = folder
        self.report = report
        self.stop_on_collapse = stop_on_collapse
        self._clock = time.perf_counter()
        self._saved = 0  # images seen at the last checkpoint
        self._told = False  # to end

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Note where training begins: there is nothing to save before the first step."""
        self._saved = pl_module.images_seen

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """On several devices only the first listens to SIGTERM, and ends them all when it has saved.

        Lightning's own way broadcasts out of the signal's handler, which may meet a collective of the step.
        """
        if trainer.world_size > 1:
            signal.signal(signal.SIGTERM, self._hear if trainer.is_global_zero else signal.SIG_IGN)

    def _hear(self, *_: Any) -> None:
        self._told = True

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Start the clock of this stretch."""
        self._clock = time.perf_counter()

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *rest: Any) -> None:
        """Write a point of the curves every `log_images` and at the end, report after each step."""
        seen = pl_module.images_seen
        if is_logged(pl_module.recipe, seen):
            refuse_divergence(pl_module)
            point = pl_module.curve_point()
            if trainer.is_global_zero:
                append_point(self.folder / CURVES, point)
        if trainer.is_global_zero:
            elapsed = pl_module.seconds + time.perf_counter() - self._clock
            self.report(seen, seen / elapsed if elapsed > 0 else 0.0)
        if pl_module.window_moved and pl_module.codes.is_full:
            self._look_for_collapse(trainer, pl_module)
        if self._told:
            raise SIGTERMException

    def _look_for_collapse(self, trainer: lightning.Trainer, training: TokenizerTraining) -> None:
        codes, watch, diagnostics = training.codes, training.collapse_watch, training.window_diagnostics
        watch.judge(training.images_seen, symptom(codes.block.shape[1], codes.window(), diagnostics), diagnostics)
        # diagnostics and errors are of each device's own share of a batch: the first device's count for all
        watch.restore(trainer.strategy.broadcast(watch.state()))
        lasting = watch.lasting(training.images_seen)
        if self.stop_on_collapse and lasting is not None:
            self._write_checkpoint(trainer, training)
            raise lasting

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Write a checkpoint; an epoch of ours is the stretch between two of them."""
        refuse_divergence(pl_module)
        self._write_checkpoint(trainer, pl_module)

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Keep the steps since the last checkpoint when Lightning, told to end, has ended between two of them."""
        if not isinstance(exception, SIGTERMException) or pl_module.images_seen == self._saved:
            return
        with contextlib.suppress(Exception):  # diverged, or no room: it was to end, and the last checkpoint stands
            refuse_divergence(pl_module)
            self._write_checkpoint(trainer, pl_module)

    def _write_checkpoint(self, trainer: lightning.Trainer, pl_module: TokenizerTraining) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        pl_module.seconds += time.perf_counter() - self._clock
        if trainer.is_global_zero:
            pl_module.peak_memory_bytes = max(pl_module.peak_memory_bytes, peak_memory_bytes(pl_module.device))
            save_checkpoint(pl_module, self.folder / CHECKPOINTS)
        self._saved = pl_module.images_seen


def refuse_divergence(training: TokenizerTraining) -> None:
    """Raise DivergedError, naming the terms, where a loss is NaN or infinite."""
    refuse_not_finite(training.last[0], training.images_seen)


def save_checkpoint(training: TokenizerTraining, folder: Path) -> None:
    """Write a checkpoint beside the last one, then put it in its place: the old one stands until the new one does."""
    with replacing(folder / CHECKPOINT) as partial, partial.open("wb") as file:
        torch.save(training.state_to_save(), file)
        file.flush()
        os.fsync(file.fileno())


def resume(training: TokenizerTraining, folder: Path) -> None:
    """Put `training` where the checkpoint under `folder` left off, if there is a whole one.

    Raises VQBenchError for one that this vqbench cannot go on from.
    """
    checkpoint = folder / CHECKPOINT_FILE
    state = _read_checkpoint(checkpoint) if checkpoint.is_file() else None
    if state is not None:
        try:
            training.restore(state)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            what = f"{checkpoint} is not a checkpoint of this training, or a newer vqbench wrote it: {error}"
            raise VQBenchError(what, "train the cell from the start: --rerun, or remove the file") from error
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        _drop_points_after(folder / CURVES, training.images_seen)


def _read_checkpoint(path: Path) -> Any:
    """What a checkpoint holds; None, said aloud, where it is damaged: training then begins at image 0."""
    if _is_sound(path):  # torch looks at no checksum
        return torch.load(path, map_location="cpu", weights_only=True)
    print(f"{path} is damaged: training begins at image 0", flush=True)
    return None


def _is_sound(path: Path) -> bool:
    """Whether every part of a checkpoint has its checksum; reads it all."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, NotImplementedError, zlib.error):
        return False


def _drop_points_after(path: Path, images_seen: int) -> None:
    # steps after the checkpoint are run again, and a kill may have cut the last line short
    if path.is_file():
        kept = [json.dumps(point) + "\n" for point in read_curves(path) if point["images"] <= images_seen]
        write_text_atomically(path, "".join(kept))
