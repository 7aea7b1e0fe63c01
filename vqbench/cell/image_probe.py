"""Some steps of a cell of images, and a part of its evaluation, with the time of everything."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vqbench.cell.image_cell import evaluated, findings, open_data, trained, write_artifacts
from vqbench.cell.measured import Measured, bytes_of, sizes, steps_between
from vqbench.cell.outcome import write_result
from vqbench.cell.progress import is_secondary
from vqbench.cell.stopwatch import (
    STRETCH_STEPS,
    Stopwatch,
    TrainingTimes,
    evaluation_times,
    short_spec,
    shortened,
    training_times,
)
from vqbench.data.prepare import PreparedImages, prepare_train
from vqbench.data.stream import TrainingStream
from vqbench.machine.home import folder_in_home, home
from vqbench.machine.provenance import device_name
from vqbench.recipe import Recipe
from vqbench.results.cell_files import RECONSTRUCTIONS, names
from vqbench.results.cell_folder import CellFolder
from vqbench.results.kept_images import kept_positions

if TYPE_CHECKING:
    from vqbench.data.dataset import Dataset

EVALUATED_BATCHES = 3
"""The first warms up."""


def probe(folder: CellFolder, recipe: Recipe, watch: Stopwatch, started: float, spawned: float) -> Measured | None:
    """Some steps with their checkpoints, and an evaluation of three batches; None in a second device's process."""
    from vqbench.metrics.extraction import images_at_a_time

    spec, short = folder.spec, shortened(recipe, STRETCH_STEPS)
    watch.enter("data")
    dataset, validation = open_data(spec, recipe)
    watch.enter("train")
    tokenizer, training = trained(folder, short_spec(folder, short), short, dataset, watch)
    if is_secondary():
        return None
    watch.enter("evaluate")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sample = _sample(validation, EVALUATED_BATCHES * max(16, recipe.batch_size, images_at_a_time(device)))
    with _home_of_its_own() as place:
        evaluation = evaluated(tokenizer.to(device), spec, sample, device, watch, place)
    scored = time.monotonic()
    write_artifacts(folder, evaluation, sample)
    writing = time.monotonic() - scored
    image_bytes = _bytes_of_an_image(folder, sample, validation)
    write_result(folder, started, findings(tokenizer.parameter_counts(), training, evaluation))
    times = training_times(watch.of("train"), short)
    passed = evaluation_times(watch.of("evaluate"), len(sample), scored - watch.entered["evaluate"])
    growing = writing / len(sample) if len(sample) < len(validation) else 0.0
    reference = folder.reference_features
    return Measured(
        overhead_seconds=_overhead(watch, times, short, spawned),
        step_seconds=_no_faster_than_loading(times.step, dataset, spec, recipe),
        adversarial_step_seconds=_no_faster_than_loading(times.adversarial_step, dataset, spec, recipe),
        checkpoint_seconds=times.checkpoint,
        evaluation_seconds=passed.fixed + writing - growing * len(sample),
        evaluation_image_seconds=passed.image + growing,
        reference_image_seconds=passed.reference_image,
        reference_is_cached=_reference_is_cached(spec, validation, device),
        image_bytes=image_bytes,
        reference_image_bytes=reference.stat().st_size / len(sample) if reference.is_file() else 0.0,
        device=training["device"],
        device_name=device_name(training["device"]),
        **sizes(folder, image_bytes * len(sample)),
    )


def _sample(images: PreparedImages, most: int) -> PreparedImages:
    return dataclasses.replace(images, pixels=images.pixels[:most], ids=images.ids[:most])


@contextlib.contextmanager
def _home_of_its_own() -> Iterator[Path]:
    """A place for the reference features of a few images, beside the weights of the user's own."""
    folder_in_home(home() / "weights")
    with tempfile.TemporaryDirectory(prefix="vqbench-probe-") as folder:
        (Path(folder) / "weights").symlink_to((home() / "weights").absolute(), target_is_directory=True)
        yield Path(folder)


def _overhead(watch: Stopwatch, times: TrainingTimes, short: Recipe, spawned: float) -> float:
    """What a cell takes once, before its steps and after them; its evaluation is counted apart."""
    first, *_, last = watch.of("train")
    step = times.step if steps_between(short, 0, short.batch_size)[0] else times.adversarial_step
    before = first.clock - step - spawned
    after = watch.entered["evaluate"] - last.clock - times.checkpoint
    return max(0.0, before + times.warm_up) + max(0.0, after)


def _no_faster_than_loading(step: float, dataset: Dataset, spec: dict[str, Any], recipe: Recipe) -> float:
    """Seconds of a step, whose images other processes may load: a few steps live on what was loaded before them."""
    from vqbench.training.fit import data_workers

    workers = data_workers(spec["devices"])
    if not workers or not step:
        return step
    stream = TrainingStream(prepare_train(dataset, home()), recipe.resolution, 0, recipe.random_crop, recipe.flip)
    share, clock = recipe.batch_size // spec["devices"], time.monotonic()
    for position in range(share):
        stream[position]
    return max(step, (time.monotonic() - clock) / workers)


def _reference_is_cached(spec: dict[str, Any], validation: PreparedImages, device: Any) -> bool:
    """Whether the features of all validation images exist; true where no metric asks for them."""
    from vqbench.metrics.definitions import features_by, metric
    from vqbench.metrics.extraction import extractor_digest, reference_path

    wanted = {by: known for known in map(metric, spec["metrics"]) if (by := features_by(known))}
    return all(
        reference_path(validation.pixels, validation.digest, extractor_digest(known), device, home()).is_file()
        for known in wanted.values()
    )


def _bytes_of_an_image(folder: CellFolder, sample: PreparedImages, validation: PreparedImages) -> float:
    """How much the files of an evaluation grow with each image; 0 where all images were evaluated.

    What a file has once is shared out over the sample's images, which is a little too much.
    """
    if len(sample) == len(validation):
        return 0.0
    _, resolution, _, channels = validation.pixels.shape
    kept, in_sample = (len(kept_positions(len(images), resolution, channels)) for images in (validation, sample))
    pictures = bytes_of([folder.path / RECONSTRUCTIONS]) / in_sample * kept / len(validation)
    return bytes_of(folder.path / name for name in names(by_image=True)) / len(sample) + pictures
