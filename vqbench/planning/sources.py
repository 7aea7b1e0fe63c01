"""What a command trains on, by the recipe's track: a dataset's images, or frozen features. Never imports torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vqbench.data.dataset import open_dataset
from vqbench.data.features import FeatureSource, fitted_images, open_features
from vqbench.data.prepare import both_or_name, prepare_train, prepare_validation, verify
from vqbench.errors import UsageError
from vqbench.machine.home import home
from vqbench.metrics.definitions import select_metrics
from vqbench.metrics.feature_protocol import FeatureProtocol
from vqbench.metrics.protocol import Protocol, protocol_for
from vqbench.recipe import Recipe

if TYPE_CHECKING:
    from vqbench.planning.request import RunRequest


def refuse_odd_source(recipe: Recipe, request: RunRequest) -> None:
    """Raise UsageError unless the request names one source of the kind that the recipe's track takes."""
    if recipe.track == "images" and request.features is not None:
        raise UsageError(
            f"--features {request.features} is for a recipe that fits features; '{recipe.name}' trains on images",
            "add --recipe atomic",
        )
    if request.features is not None and request.dataset:
        raise UsageError(
            f"both --features {request.features} and the dataset '{request.dataset}' say what to quantize",
            "leave one out (VQBENCH_DATASET names a dataset too)",
        )
    if request.features is None and not request.dataset:
        instead = ", or your own: --features FILE.npy" if recipe.track == "features" else ""
        raise UsageError("no dataset to run on", f"for example: --dataset photos{instead}")
    if recipe.track == "features" and request.devices != 1:
        raise UsageError(
            f"--devices {request.devices}, but a quantizer alone is fitted on one",
            "leave --devices (VQBENCH_DEVICES) out",
        )


def open_source(
    request: RunRequest, recipe: Recipe, progress: Callable[[int, int], None] | None = None
) -> tuple[Any, Protocol | FeatureProtocol]:
    """A Dataset, or a FeatureSource, which has what a plan asks of a dataset; and the protocol on it.

    Reads the validation images (cached), or the whole feature file. Raises UsageError for what cannot be used.
    """
    if recipe.track == "features":
        source = _features(request, recipe, progress)
        return source, source.protocol
    dataset = open_dataset(request.dataset, recipe.resolution, request.data_root, request.validation_images)
    validation = prepare_validation(dataset, home(), progress)
    protocol = protocol_for(
        dataset.protocol_name, recipe.resolution, validation.digest, len(validation.ids), dataset.split_rule
    )
    return dataset, protocol


def _features(request: RunRequest, recipe: Recipe, progress: Callable[[int, int], None] | None = None) -> FeatureSource:
    root, count = request.data_root, request.validation_images
    return open_features(recipe, home(), request.features, request.dataset, root, count, progress)


def prepare_training(request: RunRequest, recipe: Recipe, preparing: Callable[[str, int, int], None]) -> None:
    """Cache what the cells of a plan are trained on, so that they do not all make it."""
    if recipe.track == "features":
        _features(request, recipe).load(home(), lambda done, total: preparing("features", done, total))
    else:
        dataset = open_dataset(request.dataset, recipe.resolution, request.data_root, request.validation_images)
        prepare_train(dataset, home(), lambda done, total: preparing("training images", done, total))


def prepare_features(
    request: RunRequest, recipe: Recipe, note: Callable[[str], None], preparing: Callable[[str, int, int], None]
) -> list[str]:
    """Get and check a dataset and cache its features; returns a line for each thing that is ready.

    No weights are needed. Raises UsageError that names what is missing or broken.
    """
    select_metrics(request.metrics, "features")
    dataset = open_dataset(
        request.dataset, recipe.resolution, request.data_root, request.validation_images, download=True
    )
    both_or_name(
        lambda: prepare_validation(dataset, home(), lambda done, total: preparing("validation images", done, total)),
        lambda: verify(fitted_images(dataset), lambda done, total: preparing("training images", done, total)),
    )
    source = _features(request, recipe)
    for text in source.notes:
        note(text)
    source.load(home(), lambda done, total: preparing("features", done, total))
    protocol = source.protocol
    return [
        f"data      {source.reference}: features of {len(source.train):,} training and {protocol.n_images:,} "
        f"validation images, {protocol.tokens_per_image} tokens of {protocol.channels} channels each",
        f"protocol  {protocol.name} {protocol.hash}",
        "ready",
    ]
