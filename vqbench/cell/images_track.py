"""The images track: a tokenizer with its encoder and decoder, trained on images and scored on others."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from vqbench.cell.measured import Measured
from vqbench.cell.progress import Progress
from vqbench.cell.stopwatch import Stopwatch
from vqbench.cell.track import Preparing, Track, refuse_no_data
from vqbench.data.dataset import DataReference, Dataset
from vqbench.data.images import Images
from vqbench.data.kept import Making
from vqbench.data.prepare import PreparedImages, is_cached, prepare_both, prepare_train, prepare_validation
from vqbench.data.uncached import cost_of_decoding
from vqbench.errors import UsageError
from vqbench.machine.home import home
from vqbench.machine.imports import lasting_imports
from vqbench.metrics.protocol import Protocol, protocol_for
from vqbench.recipe import Recipe
from vqbench.results.cell_folder import CellFolder


class ImagesTrack(Track):
    """A dataset's images, whole tokenizers, every metric over images."""

    name = "images"
    keeps_training = True
    scored_as = "images"
    watched = ("psnr", True)

    def refuse(self, recipe: Recipe, reference: DataReference, devices: int) -> None:
        """Raise UsageError for features in the place of a dataset, and for neither."""
        if reference.features is not None:
            raise UsageError(
                f"--features {reference.features} is for a recipe that fits features; '{recipe.name}' trains on images",
                "add --recipe atomic",
            )
        refuse_no_data(reference)

    def open(
        self, recipe: Recipe, reference: DataReference, progress: Callable[[int, int], None] | None = None
    ) -> tuple[Dataset, Protocol]:
        """The dataset, and the protocol on its validation images, which are decoded for it (cached)."""
        dataset = reference.open(recipe.resolution, recipe.image_channels)
        return dataset, _protocol(dataset, recipe, prepare_validation(dataset, home(), progress))

    def prepare_training(
        self, recipe: Recipe, reference: DataReference, note: Callable[[str], None], preparing: Preparing
    ) -> None:
        """Decode the training images, or say what it costs that they are not kept decoded."""
        dataset = reference.open(recipe.resolution, recipe.image_channels)
        advance, making = functools.partial(preparing, "training images"), Making(reference.format)
        train = prepare_train(dataset, home(), advance, making=making)
        _say_if_not_kept(dataset, train, note, preparing)

    def prepare(
        self,
        recipe: Recipe,
        reference: DataReference,
        note: Callable[[str], None],
        preparing: Preparing,
        workers: int = 1,
    ) -> list[str]:
        """Get the dataset and decode both sides of it, by so many processes."""
        dataset = reference.open(recipe.resolution, recipe.image_channels, download=True)
        for text in dataset.notes:
            note(text)
        making = Making(reference.format, insists=bool(reference.format), workers=workers, say=note)
        validation, train = prepare_both(dataset, home(), preparing, making)
        _say_if_not_kept(dataset, train, note, preparing)
        protocol = _protocol(dataset, recipe, validation)
        lines = [
            f"data      {dataset.reference}: {len(train):,} training and {len(validation):,} validation images, "
            f"{recipe.resolution} px",
            f"protocol  {protocol.name} {protocol.hash}",
        ]
        return [*lines, *([f"licence   {dataset.licence}"] if dataset.licence else [])]

    def train_and_evaluate(
        self, folder: CellFolder, spec: dict[str, Any], recipe: Recipe, progress: Progress
    ) -> dict[str, Any] | None:
        """Train, or take what is trained, and score it; None in the process of a second device."""
        with lasting_imports():
            from vqbench.cell.image_cell import train_and_evaluate

        return train_and_evaluate(folder, spec, recipe, progress)

    def probe(
        self, folder: CellFolder, recipe: Recipe, watch: Stopwatch, started: float, spawned: float
    ) -> Measured | None:
        """20 optimiser steps, four checkpoints and an evaluation of three batches."""
        with lasting_imports():
            from vqbench.cell.image_probe import probe

        return probe(folder, recipe, watch, started, spawned)


def _say_if_not_kept(dataset: Dataset, train: Images, note: Callable[[str], None], preparing: Preparing) -> None:
    if train.content_key and not is_cached(train):  # without a key they are in memory
        note(cost_of_decoding(dataset, home(), lambda done, total: preparing("training images (timed)", done, total)))


def _protocol(dataset: Dataset, recipe: Recipe, validation: PreparedImages) -> Protocol:
    whole = dataset.reading is not None and dataset.reading.whole
    return protocol_for(
        dataset.protocol_name, 0 if whole else recipe.resolution, validation.digest, len(validation),
        dataset.split_rule,
        small_images=dataset.small_images, image_channels=dataset.channels, training_images=dataset.training_images,
        named=dataset.named,
        **(dataset.reading.in_words if dataset.reading is not None else {}),
    )  # fmt: skip
