"""Frozen features to quantize: a file's, or a fixed encoder's on a dataset. Standardised, split, in float32.

Listing a source is cheap and needs no torch; `load` reads or computes the features.
"""

from __future__ import annotations

import functools
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqbench.data.cache import META, PIXELS, cached_folder
from vqbench.data.dataset import DataReference, Dataset, path_safe
from vqbench.data.hashing import HeldOut, digest_of, first_by_hash
from vqbench.data.images import Chosen, centre_crop
from vqbench.data.kept import Advance
from vqbench.data.prepare import PreparedImages, decode_or_name, not_kept, prepare_validation
from vqbench.errors import UsageError, require_utf8
from vqbench.machine.home import expanded
from vqbench.metrics.feature_protocol import VERSION, FeatureProtocol
from vqbench.recipe import Recipe
from vqbench.registry import file_digest

Features = NDArray[np.float32]

ENCODER_FIELDS = ("channels", "channel_multipliers", "res_blocks", "attention_resolutions", "mid_attention",
                  "latent_channels")  # fmt: skip
"""Fields of a recipe that make the frozen encoder what it is, beside the resolution."""
TRAINING_IMAGES = 2048
"""Training images, at most, whose features are fitted: 131,072 tokens at 8×8, 256 for each of 512 codes, and 2 s of
encoding on a CPU. The first by hash of the id, so the choice does not depend on the order of the files."""
ENCODER_SEED = ("frozen features", 0)
"""Names the stream that the encoder is drawn from. It has nothing to do with --seeds."""
MIN_ROWS = 20
"""A file must have as many rows, so that two are held out."""
_CHUNK = 64  # images or rows at a time
_BY_HASH = "A tenth of the rows is validation, rounded down: those whose numbers, from 0, come first by hash."


@dataclass(frozen=True)
class FeatureSet:
    """Standardised features."""

    train: Features
    """(N, h, w, D); vectors without a place are (N, 1, 1, D)."""
    validation: Features
    """(M, h, w, D)."""
    ids: tuple[str, ...]
    """One name for each validation item: an image's, or a row's number."""


class FeatureSource(ABC):
    """Where features come from; has what a plan asks of a dataset."""

    reference: str
    """The dataset's, or "features:/path/of/file.npy"."""
    slug: str
    train: Sequence[object]
    """As many as there are training items."""
    train_digest: str
    own_digest: str = ""
    """Of a dataset of images (`Dataset.own_digest`); features are scored by no tokenizer that was trained already."""
    split_rule: str
    notes: tuple[str, ...]
    protocol: FeatureProtocol

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """What a cell's process needs beside the dataset to find the same features."""

    @abstractmethod
    def raw(self, home: Path, progress: Advance | None) -> tuple[Features, Features]:
        """Training and validation features as they come, (N, h, w, D) each."""

    @abstractmethod
    def validation_ids(self) -> tuple[str, ...]:
        """Names of the validation items, in order."""

    def load(self, home: Path, progress: Advance | None = None) -> FeatureSet:
        """The standardised features, from the cache below `home` where they are computed."""
        train, validation = standardise(*self.raw(home, progress))
        if not float(((validation - validation.mean((0, 1, 2))) ** 2).mean()) > 0:
            raise UsageError(
                f"the validation features of {self.reference} are all the same: there is no error to compare",
                "give features that vary from row to row",
            )
        return FeatureSet(train, validation, self.validation_ids())


def standardise(train: Features, validation: Features) -> tuple[Features, Features]:
    """Both (N, h, w, D), with mean 0 and deviation 1 per channel over the training tokens; see the protocol."""
    axes = (0, 1, 2)
    mean = train.mean(axes, dtype=np.float64)
    deviation = np.sqrt(np.mean(np.square(train - mean), axes, dtype=np.float64))
    rounding = np.finfo(np.float32).eps * np.abs(mean)  # a constant channel deviates by this much
    scale = np.where(deviation > 4 * rounding, 1 / np.where(deviation > 0, deviation, 1), 0)
    return ((train - mean) * scale).astype(np.float32), ((validation - mean) * scale).astype(np.float32)


def fitted_images(dataset: Dataset) -> Chosen:
    """The training images whose features are fitted."""
    return Chosen(dataset.train, first_by_hash(dataset.train.ids, TRAINING_IMAGES, "frozen features"))


class EncodedDataset(FeatureSource):
    """Features of the recipe's encoder, with weights from a fixed seed, on a dataset's images."""

    def __init__(self, dataset: Dataset, validation: PreparedImages, recipe: Recipe) -> None:
        self.dataset, self.validation, self.recipe = dataset, validation, recipe
        self.images = fitted_images(dataset)
        self.train = self.images.ids
        self.reference, self.slug = dataset.reference, dataset.slug
        self.split_rule, self.notes = dataset.split_rule, dataset.notes
        self.encoder = {name: recipe.as_dict()[name] for name in ("resolution", *ENCODER_FIELDS)}
        if recipe.image_channels != 3:  # of which the encoder always was: digests that are stored hold
            self.encoder["image_channels"] = recipe.image_channels
        side = recipe.resolution // recipe.downsampling
        read = dataset.reading.in_words if dataset.reading is not None else {}
        self.train_digest = digest_of("features", VERSION, self.encoder, dataset.train_digest, list(self.images.ids))
        self.protocol = FeatureProtocol(
            name=f"{dataset.protocol_name}-{recipe.resolution}-features-{VERSION}",
            dataset=dataset.protocol_name,
            source=f"the recipe's encoder with weights drawn from a fixed seed, on centre crops of {recipe.resolution} "
            f"px; training features are those of {len(self.images):,} images, the first by hash of the id"
            + "".join(f"; {field}: {text}" for field, text in read.items()),
            split_rule=dataset.split_rule,
            # Of what they are computed from, not of their floats, whose last bits differ between machines.
            validation_digest=digest_of("features", validation.digest, self.train_digest),
            n_images=len(validation),
            channels=recipe.latent_channels,
            tokens_per_image=side * side,
            small_images=dataset.small_images,
        )

    def spec(self) -> dict[str, Any]:
        """The encoder and the number of training images, for people; the cell finds both by itself."""
        return {"encoder": self.encoder, "training_images": len(self.images)}

    def validation_ids(self) -> tuple[str, ...]:
        """The dataset's."""
        return self.validation.ids

    def raw(self, home: Path, progress: Advance | None) -> tuple[Features, Features]:
        """Features of both sides, computed once and cached below `home`."""
        # torch may draw other weights in another version
        key = digest_of(self.protocol.validation_digest, metadata.version("torch"))[:24]
        name = f"{self.slug}-{self.recipe.resolution}px-features-{key}"
        try:
            folder = cached_folder(home / "prepared", name, lambda file: self._fill(file, progress))
        except OSError as error:
            raise not_kept(home, error) from None
        shape = json.loads((folder / META).read_text(encoding="utf-8"))["shape"]
        both: Features = np.memmap(folder / PIXELS, np.float32, "r", shape=tuple(shape))
        return both[: len(self.images)], both[len(self.images) :]

    def _fill(self, path: Path, progress: Advance | None) -> dict[str, Any]:
        total = len(self.images) + len(self.validation)
        R = self.recipe.resolution

        training = (centre_crop(pixels, R) for pixels in decode_or_name(self.images, None))
        pixels = itertools.chain(training, self.validation.pixels)
        shape: tuple[int, ...] = ()
        with path.open("wb") as file:
            for start in range(0, total, _CHUNK):
                stop = min(start + _CHUNK, total)
                part = self._encode(np.stack(list(itertools.islice(pixels, stop - start))))
                file.write(np.ascontiguousarray(part).data)
                shape = (total, *part.shape[1:])
                if progress is not None:
                    progress(stop, total)
        return {"shape": shape}

    @functools.cached_property
    def _encode(self) -> Callable[[NDArray[np.uint8]], Features]:
        import torch

        from vqbench.backbone import BackboneConfig, Encoder
        from vqbench.precision import plain_float32
        from vqbench.seeds import seeded

        with seeded(*ENCODER_SEED):
            encoder = Encoder(BackboneConfig.of(self.recipe)).eval()

        def encode(pixels: NDArray[np.uint8]) -> Features:
            """uint8 (B, R, R, C) → (B, h, w, D)."""
            with torch.inference_mode(), plain_float32(torch.device("cpu")):
                images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
                features: Features = encoder(images).permute(0, 2, 3, 1).contiguous().numpy()
            return features

        return encode


class FeatureFile(FeatureSource):
    """Features from a .npy file: floats (N, D), a vector a row, or (N, h, w, D), a map a row."""

    def __init__(self, path: Path, validation_rows: int | None = None, holdout: float | None = None) -> None:
        self.path = expanded(path).absolute()
        require_utf8(self.path)
        array = _open_array(self.path)
        self.sha256 = file_digest(self.path)
        self.array = array if array.ndim == 4 else array[:, None, None, :]
        self.validation_rows = first_by_hash([str(i) for i in range(len(array))], len(array) // 10, "feature rows")
        self.train = self.training_rows = sorted(set(range(len(array))) - set(self.validation_rows))
        self.reference, name = f"features:{self.path}", path_safe(self.path.stem)
        self.slug, self.split_rule = f"features-{name}", _BY_HASH
        self.train_digest = digest_of("feature file", self.sha256, _BY_HASH)
        train, kept = len(self.training_rows), len(self.validation_rows)
        self.notes: tuple[str, ...] = (f"{len(array):,} rows split by hash: {train:,} train, {kept:,} validate",)
        if holdout is not None:
            held = HeldOut.of([str(i) for i in self.training_rows], holdout, self.reference)
            self.validation_rows = [self.training_rows[i] for i in held.chosen]
            self.train = self.training_rows = [self.training_rows[i] for i in held.left]
            self.train_digest = digest_of(self.train_digest, "without", held.chosen)
            self.split_rule += held.rule
            self.notes += (held.note,)
            name += held.suffix
        if validation_rows is not None and self._keep(validation_rows):
            name += f"-first{validation_rows}"
        _, height, width, channels = self.array.shape
        self.protocol = FeatureProtocol(
            name=f"{name}-features-{VERSION}",
            dataset=self.slug,
            source=f"a file of sha256 {self.sha256}",
            split_rule=self.split_rule,
            validation_digest=digest_of("feature file", self.sha256, self.validation_rows),
            n_images=len(self.validation_rows),
            channels=channels,
            tokens_per_image=height * width,
        )

    def _keep(self, count: int) -> bool:
        """Keep so many of the validation rows; whether there are more."""
        available = len(self.validation_rows)
        if not 1 <= count <= available:
            raise UsageError(
                f"{count} validation rows asked for, {self.path} has {available}",
                f"ask for 1 to {available} with --validation-images, or leave it out for all of them",
            )
        if count < available:
            kept = first_by_hash([str(i) for i in self.validation_rows], count, "validation order")
            self.validation_rows = [self.validation_rows[i] for i in kept]
            self.split_rule += f" Of the validation rows, the first {count} by hash of the number are kept."
            self.notes += (f"{count} of {available} validation rows are used",)
        return count < available

    def spec(self) -> dict[str, Any]:
        """The file and its sha256."""
        return {"path": str(self.path), "sha256": self.sha256, "shape": list(self.array.shape)}

    def validation_ids(self) -> tuple[str, ...]:
        """Row numbers."""
        return tuple(map(str, self.validation_rows))

    def raw(self, home: Path, progress: Advance | None) -> tuple[Features, Features]:
        """The rows of both sides, read whole."""
        train, validation = (self.array[rows].astype(np.float32) for rows in (self.training_rows, self.validation_rows))
        return train, validation


_ACCEPTED = "a .npy file of floats, (N, D) for vectors or (N, h, w, D) for maps"
_SAVE = "write it with numpy.save(FILE, features.astype('float32'))"


def _open_array(path: Path) -> NDArray[Any]:
    """The array of a file, mapped. Raises UsageError for what cannot be fitted, and says what would be."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise UsageError(f"cannot read --features {path}: {error.strerror or error}", f"give {_ACCEPTED}") from None
    except (ValueError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"--features {path} is not {_ACCEPTED} ({reason})", _SAVE) from None
    if not isinstance(array, np.ndarray):
        raise UsageError(f"--features {path} holds several arrays; expected {_ACCEPTED}", _SAVE)
    if not np.issubdtype(array.dtype, np.floating):
        raise UsageError(f"--features {path} holds {array.dtype}, not floats; expected {_ACCEPTED}", _SAVE)
    if array.ndim not in (2, 4) or 0 in array.shape:
        raise UsageError(f"--features {path} has the shape {array.shape}; expected {_ACCEPTED}", _SAVE)
    if len(array) < MIN_ROWS:
        what = f"--features {path} has {len(array)} rows, too few to hold out a tenth; expected at least {MIN_ROWS}"
        raise UsageError(what, "give the features of more images, one row each: --features FILE.npy")
    for start in range(0, len(array), _CHUNK * 64):
        part = array[start : start + _CHUNK * 64]
        with np.errstate(over="ignore"):
            bad = ~np.isfinite(part.astype(np.float32)).reshape(len(part), -1).all(1)
        if bad.any():
            row = start + int(np.flatnonzero(bad)[0])
            raise UsageError(
                f"--features {path} has values that are not finite in float32, first in row {row}",
                "leave such rows out: numpy.save(FILE, x[numpy.isfinite(x).reshape(len(x), -1).all(1)])",
            )
    return array


def open_features(
    recipe: Recipe, home: Path, reference: DataReference, progress: Advance | None = None
) -> FeatureSource:
    """The source that a command or a spec names: a file, or else the images of a dataset. Raises UsageError."""
    if reference.features is not None:
        return FeatureFile(reference.features, reference.validation_images, reference.holdout)
    dataset = reference.open(recipe.resolution, recipe.image_channels)
    return EncodedDataset(dataset, prepare_validation(dataset, home, progress), recipe)
