"""A track: what is quantized, and how a number is made of it. The one thing in which a cell of features and one of
images differ, and the place of whatever else may be scored one day.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from vqbench.artifact import Artifact
from vqbench.cell.progress import Progress
from vqbench.data.checking import verify_kept
from vqbench.data.dataset import DataReference
from vqbench.data.kept import Side
from vqbench.errors import UsageError
from vqbench.machine.home import home
from vqbench.metrics.feature_protocol import FeatureProtocol
from vqbench.metrics.protocol import Protocol
from vqbench.plugin import Plugin
from vqbench.recipe import Recipe
from vqbench.registry import DATASETS
from vqbench.results.cell_folder import CellFolder

if TYPE_CHECKING:
    from vqbench.cell.measured import Measured
    from vqbench.cell.stopwatch import Stopwatch

Preparing = Callable[[str, int, int], None]
"""Called with (what is made ready, how many are done, of how many)."""


class Track(ABC):
    """Where a cell's data are from, what is trained on them, and how it is scored. Never imports torch by itself."""

    name: ClassVar[str]
    """As recipes and metrics say it."""
    keeps_training: ClassVar[bool]
    """Whether trained weights are kept with a record of their training, so that a metric can be added without it."""
    scored_as: ClassVar[str]
    """The track whose metrics it has: a metric names the tracks that it is of."""
    watched: ClassVar[tuple[str, bool]]
    """The curve of a training that says how well it reconstructs, and whether higher is better."""
    fixed: ClassVar[tuple[str, ...]] = ()
    """Fields of a recipe that say what is quantized, so that trials of one sweep cannot differ in them."""

    @abstractmethod
    def refuse(self, recipe: Recipe, reference: DataReference, devices: int) -> None:
        """Raise UsageError unless the command names one source of the kind that this track takes."""

    @abstractmethod
    def open(
        self, recipe: Recipe, reference: DataReference, progress: Callable[[int, int], None] | None = None
    ) -> tuple[Any, Protocol | FeatureProtocol]:
        """A Dataset, or what a plan asks of one; and the protocol of what is scored on it.

        Reads what the protocol is a digest of (cached). Raises UsageError for what cannot be used.
        """

    def plugin(self, reference: DataReference) -> Plugin | None:
        """The plugin that the data are from; None for what is installed, and for a file."""
        return DATASETS.source_of(reference.dataset.partition(":")[0]).plugin if reference.dataset else None

    def spec(self, source: Any) -> Mapping[str, Any]:
        """What a cell's spec says of an opened source, beside what it says of every dataset."""
        return {}

    has_decoder: ClassVar[bool] = True
    """Whether there is a decoder that a method may condition."""
    stand_in: ClassVar[str] = ""
    """What is said of a method whose artifact would be made of images; empty where the track has images."""

    def gives(self, artifact: Artifact) -> bool:
        """Whether a method has what it is built around here: a file anywhere, what is made of images where they are."""
        return artifact.made_of is None or not self.stand_in

    @abstractmethod
    def prepare_training(
        self, recipe: Recipe, reference: DataReference, note: Callable[[str], None], preparing: Preparing
    ) -> None:
        """Cache what the cells of a plan are trained on, so that they do not all make it; a note where that is not so.

        Raises UsageError for what cannot be used.
        """

    @abstractmethod
    def prepare(
        self,
        recipe: Recipe,
        reference: DataReference,
        note: Callable[[str], None],
        preparing: Preparing,
        workers: int = 1,
    ) -> list[str]:
        """Get and check both sides of the data and cache them, by so many processes; a line for each thing ready.

        Raises UsageError that names what is missing or broken.
        """

    kept_sides: ClassVar[tuple[Side, ...]] = ("validation", "train")
    """The sides of a dataset whose images are kept."""

    def verify(self, recipe: Recipe, reference: DataReference, preparing: Preparing) -> list[str]:
        """Check that what is kept is what was written, and of files as they are now; a line for each side.

        Raises UsageError that says what is damaged or missing and what mends it.
        """
        dataset = reference.open(recipe.resolution, recipe.image_channels)
        return verify_kept(dataset, home(), self.kept_sides, reference.format, preparing)

    @abstractmethod
    def train_and_evaluate(
        self, folder: CellFolder, spec: dict[str, Any], recipe: Recipe, progress: Progress
    ) -> dict[str, Any] | None:
        """What a cell found, as its result says it, and its files beside it; None where this process writes none.

        Raises DivergedError, and VQBenchError where the data have changed since the plan.
        """

    @abstractmethod
    def probe(
        self, folder: CellFolder, recipe: Recipe, watch: Stopwatch, started: float, spawned: float
    ) -> Measured | None:
        """What some steps and a part of the evaluation took, in a folder that is thrown away.

        `started` as time.time(), `spawned` as time.monotonic() was when the process was started.
        """


def refuse_no_data(reference: DataReference, instead: str = "") -> None:
    """Raise UsageError unless a dataset is named; `instead` says what else would do."""
    if not reference.dataset:
        raise UsageError("no dataset to run on", f"for example: --dataset photos{instead}")
