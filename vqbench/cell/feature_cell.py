"""A cell of features: a quantizer between two learned linear maps, fitted to features that never change; its probe."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import pyarrow
import pyarrow.parquet
import torch

from vqbench.cell.measured import Measured, sizes
from vqbench.cell.memory import peak_memory
from vqbench.cell.outcome import collapse_of, write_result
from vqbench.cell.planned import artifact, artifact_facts, data_seed, receive
from vqbench.cell.progress import Progress
from vqbench.cell.stopwatch import STRETCH_STEPS, Stopwatch, short_spec, shortened, training_times
from vqbench.data.dataset import DataReference
from vqbench.data.features import FeatureSet, open_features
from vqbench.errors import VQBenchError
from vqbench.machine.atomic import replacing, write_arrays_atomically
from vqbench.machine.home import home
from vqbench.machine.provenance import device_name
from vqbench.metrics.feature_evaluation import evaluate
from vqbench.recipe import Execution, Recipe
from vqbench.results.cell_files import CODES, CURVES, PER_IMAGE
from vqbench.results.cell_folder import CellFolder
from vqbench.tokenizer import configured, save, seeded_quantizer
from vqbench.training.feature_training import FeatureCoder, fit
from vqbench.training.parts import Parts

_STRETCH_STEPS = 25
"""At most as many in a stretch: they take milliseconds."""


def train_and_evaluate(folder: CellFolder, spec: dict[str, Any], recipe: Recipe, progress: Progress) -> dict[str, Any]:
    """What a cell of features found; neither Lightning nor pandas is imported: it lasts seconds.

    Raises DivergedError, and VQBenchError where the features have changed since the plan.
    """
    progress.enter("data")
    features = _planned_features(spec, recipe)
    progress.enter("train")
    quantizer = seeded_quantizer(spec["method"], configured(spec["method"], spec["config"]), spec["seed"])
    if (around := artifact(spec, None)) is not None:  # a file: of features none is made
        receive(quantizer, around)
    coder = FeatureCoder(features.train.shape[3], quantizer, spec["seed"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parts = Parts(recipe, Execution.of_spec(spec), device)
    with parts.arithmetic():
        seconds, collapse = fit(
            coder.to(device),
            features.train,
            recipe,
            seed=spec["seed"],
            data_seed=data_seed(spec),
            curves=folder.path / CURVES,
            report=progress,
            stop_on_collapse=spec["stop_on_collapse"],
        )
    folder.weights.parent.mkdir(parents=True, exist_ok=True)
    save(coder, folder.weights, dict(spec))
    progress.enter("evaluate")
    evaluation = evaluate(coder, features.validation, spec["metrics"])
    images = recipe.images_total
    training: dict[str, Any] = {
        "images_seen": images,
        "train_seconds": round(seconds, 3),
        "train_images_per_s": round(images / seconds, 3),
        **peak_memory(device, {}),
        "device": str(device),
        "devices": 1,
        "execution": parts.said(),
        **artifact_facts(quantizer),
        "collapse": collapse.as_dict() if collapse is not None else None,
    }
    per_image = {"id": list(features.ids), "quantization_error": evaluation.errors}
    with replacing(folder.path / PER_IMAGE) as partial:
        pyarrow.parquet.write_table(pyarrow.table(per_image), partial)
    write_arrays_atomically(folder.path / CODES, histogram=evaluation.histogram, indices=evaluation.indices)
    return {
        "scores": evaluation.scores,
        "params": coder.parameter_counts(),
        **training,
        "device_name": device_name(training["device"]),
        "collapse": collapse_of(training, evaluation.histogram),
    }


def _planned_features(spec: Mapping[str, Any], recipe: Recipe) -> FeatureSet:
    """The features that the plan was made for. Raises VQBenchError where they are others now."""
    wanted = spec["dataset"]
    source = open_features(recipe, home(), DataReference.of_spec(spec))
    found = (source.protocol.validation_digest, source.train_digest)
    if found != (spec["protocol"]["validation_digest"], wanted["training_digest"]):
        raise VQBenchError(
            f"the features of {wanted['reference']} have changed since this cell was planned",
            "give the command again: it plans cells for the features as they are now",
        )
    return source.load(home())


def probe(folder: CellFolder, recipe: Recipe, watch: Stopwatch, started: float, spawned: float) -> Measured:
    """A shorter fit and all of the evaluation, which takes seconds."""
    # the progress of a fit is told with every point of its curves
    steps = min(max(STRETCH_STEPS, recipe.log_images // recipe.batch_size), _STRETCH_STEPS)
    short = shortened(recipe, steps)
    short = dataclasses.replace(short, log_images=short.checkpoint_images)
    found = train_and_evaluate(folder, short_spec(folder, short), short, watch)
    write_result(folder, started, found)
    times = training_times(watch.of("train"), short)
    evaluation_seconds = time.monotonic() - watch.entered["evaluate"]
    first = watch.of("train")[0]
    overhead = first.clock - first.done / short.batch_size * times.step - spawned + times.warm_up
    overhead += watch.entered["evaluate"] - watch.of("train")[-1].clock
    return Measured(
        overhead_seconds=max(0.0, overhead),
        step_seconds=times.step,
        evaluation_seconds=evaluation_seconds,
        device=found["device"],
        device_name=found["device_name"],
        **sizes(folder),
    )
