"""A cell of features: a quantizer between two learned linear maps, fitted to features that never change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vqbench.cell.outcome import collapse_of, with_device_name
from vqbench.cell.planned import data_seed
from vqbench.cell.progress import Progress
from vqbench.errors import VQBenchError
from vqbench.machine.atomic import replacing, write_arrays_atomically
from vqbench.machine.home import home
from vqbench.recipe import Recipe
from vqbench.results.cell_files import CODES, CURVES, PER_IMAGE
from vqbench.results.cell_folder import CellFolder

if TYPE_CHECKING:
    from vqbench.data.features import FeatureSet


def train_and_evaluate(folder: CellFolder, spec: dict[str, Any], recipe: Recipe, progress: Progress) -> dict[str, Any]:
    """What a cell of features found; neither Lightning nor pandas is imported: it lasts seconds.

    Raises DivergedError, and VQBenchError where the features have changed since the plan.
    """
    import pyarrow
    import pyarrow.parquet
    import torch

    from vqbench.metrics.feature_evaluation import evaluate
    from vqbench.tokenizer import configured, save, seeded_quantizer
    from vqbench.training.feature_training import FeatureCoder, fit
    from vqbench.training.steps import peak_memory_bytes

    progress.enter("data")
    features = _planned_features(spec, recipe)
    progress.enter("train")
    quantizer = seeded_quantizer(spec["method"], configured(spec["method"], spec["config"]), spec["seed"])
    coder = FeatureCoder(features.train.shape[3], quantizer, spec["seed"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
    images = recipe.steps * recipe.batch_size
    training = {
        "images_seen": images,
        "train_seconds": round(seconds, 3),
        "train_images_per_s": round(images / seconds, 3),
        "peak_memory_bytes": peak_memory_bytes(device),
        "device": str(device),
        "devices": 1,
        "collapse": collapse.as_dict() if collapse is not None else None,
    }
    per_image = {"id": list(features.ids), "quantization_error": evaluation.errors}
    with replacing(folder.path / PER_IMAGE) as partial:
        pyarrow.parquet.write_table(pyarrow.table(per_image), partial)
    write_arrays_atomically(folder.path / CODES, histogram=evaluation.histogram, indices=evaluation.indices)
    return {
        "scores": evaluation.scores,
        "params": coder.parameter_counts(),
        **with_device_name(training),
        "collapse": collapse_of(training, evaluation.histogram),
    }


def _planned_features(spec: Mapping[str, Any], recipe: Recipe) -> FeatureSet:
    """The features that the plan was made for. Raises VQBenchError where they are others now."""
    from vqbench.data.dataset import DataReference
    from vqbench.data.features import open_features

    wanted = spec["dataset"]
    source = open_features(recipe, home(), DataReference.of_spec(spec))
    found = (source.protocol.validation_digest, source.train_digest)
    if found != (spec["protocol"]["validation_digest"], wanted["training_digest"]):
        raise VQBenchError(
            f"the features of {wanted['reference']} have changed since this cell was planned",
            "give the command again: it plans cells for the features as they are now",
        )
    return source.load(home())
