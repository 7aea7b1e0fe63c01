"""The features track: a quantizer between two learned linear maps, fitted to features that never change."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from vqbench.cell.measured import Measured
from vqbench.cell.progress import Progress
from vqbench.cell.stopwatch import Stopwatch
from vqbench.cell.track import Preparing, Track, refuse_no_data
from vqbench.data.dataset import DataReference
from vqbench.data.features import ENCODER_FIELDS, FeatureSource, fitted_images, open_features
from vqbench.data.kept import Making
from vqbench.data.prepare import both_or_name, prepare_validation, verify
from vqbench.errors import UsageError
from vqbench.machine.home import home
from vqbench.machine.imports import lasting_imports
from vqbench.metrics.feature_protocol import FeatureProtocol
from vqbench.recipe import Recipe
from vqbench.results.cell_folder import CellFolder


class FeaturesTrack(Track):
    """Features of a frozen encoder on a dataset's images, or of a file; quantizers alone; errors of features."""

    name = "features"
    keeps_training = False
    scored_as = "features"
    watched = ("distance", False)
    fixed = ENCODER_FIELDS
    has_decoder = False
    kept_sides = ("validation",)
    stand_in = "of features there are no patches: the vectors that it would be built around are drawn at random here"

    def refuse(self, recipe: Recipe, reference: DataReference, devices: int) -> None:
        """Raise UsageError unless there is either a dataset or a file of features, and one device."""
        if reference.features is not None and reference.dataset:
            raise UsageError(
                f"both --features {reference.features} and the dataset '{reference.dataset}' say what to quantize",
                "leave one out (VQBENCH_DATASET names a dataset too)",
            )
        if reference.features is None:
            refuse_no_data(reference, ", or your own: --features FILE.npy")
        _refuse_format(reference)
        if reference.protocol:
            what = f"--protocol {reference.protocol} measures images, and recipe '{recipe.name}' fits features"
            raise UsageError(what, "leave --protocol out, or choose a recipe of images: `vqbench recipes`")
        if devices != 1:
            raise UsageError(
                f"--devices {devices}, but a quantizer alone is fitted on one",
                "leave --devices (VQBENCH_DEVICES) out",
            )

    def open(
        self, recipe: Recipe, reference: DataReference, progress: Callable[[int, int], None] | None = None
    ) -> tuple[FeatureSource, FeatureProtocol]:
        """The features, not computed yet; of a file, all of it is read."""
        source = open_features(recipe, home(), reference, progress)
        return source, source.protocol

    def spec(self, source: FeatureSource) -> Mapping[str, Any]:
        """The encoder, or the file."""
        return {"features": source.spec()}

    def prepare_training(
        self, recipe: Recipe, reference: DataReference, note: Callable[[str], None], preparing: Preparing
    ) -> None:
        """Compute the features of both sides."""
        source, _ = self.open(recipe, reference)
        source.load(home(), lambda done, total: preparing("features", done, total))

    def prepare(
        self,
        recipe: Recipe,
        reference: DataReference,
        note: Callable[[str], None],
        preparing: Preparing,
        workers: int = 1,
    ) -> list[str]:
        """Get the dataset, check its images, validation images by so many processes, and compute all features."""
        _refuse_format(reference)
        dataset = reference.open(recipe.resolution, recipe.image_channels, download=True)
        both_or_name(
            lambda: prepare_validation(
                dataset, home(), functools.partial(preparing, "validation images"), Making(workers=workers, say=note)
            ),
            lambda: verify(fitted_images(dataset), lambda done, total: preparing("training images", done, total)),
        )
        source, protocol = self.open(recipe, reference)
        for text in source.notes:
            note(text)
        source.load(home(), lambda done, total: preparing("features", done, total))
        return [
            f"data      {source.reference}: features of {len(source.train):,} training and {protocol.n_images:,} "
            f"validation images, {protocol.tokens_per_image} tokens of {protocol.channels} channels each",
            f"protocol  {protocol.name} {protocol.hash}",
        ]

    def train_and_evaluate(
        self, folder: CellFolder, spec: dict[str, Any], recipe: Recipe, progress: Progress
    ) -> dict[str, Any]:
        """Fit and score; an interrupted fit starts again, it takes seconds."""
        with lasting_imports():
            from vqbench.cell.feature_cell import train_and_evaluate

        return train_and_evaluate(folder, spec, recipe, progress)

    def probe(self, folder: CellFolder, recipe: Recipe, watch: Stopwatch, started: float, spawned: float) -> Measured:
        """A shorter fit, and all of the evaluation."""
        with lasting_imports():
            from vqbench.cell.feature_cell import probe

        return probe(folder, recipe, watch, started, spawned)


def _refuse_format(reference: DataReference) -> None:
    if reference.format:
        raise UsageError(
            f"--format {reference.format} is of training images, of which this recipe keeps features alone",
            "leave --format (VQBENCH_FORMAT) out",
        )
