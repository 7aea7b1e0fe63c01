"""The contract of a dataset: two sequences of images, how they were split, and what must be said of it."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vqbench.errors import UsageError, VQBenchError
from vqbench.registry import DATASETS

if TYPE_CHECKING:
    from vqbench.data.decode import Reading

Pixels = NDArray[np.uint8]


def digest_of(*lines: object) -> str:
    """sha256, as hex, over the parts in the order given; parts cannot run into one another."""
    return hashlib.sha256("\0".join(map(repr, lines)).encode()).hexdigest()


def by_hash(ids: Sequence[str], purpose: str) -> list[int]:
    """Positions of the ids in an order that depends on the ids alone, and on what it is for."""
    return sorted(range(len(ids)), key=lambda i: digest_of(purpose, ids[i]))


def first_by_hash(ids: Sequence[str], count: int, purpose: str) -> list[int]:
    """Positions, ascending, of the first `count` of the ids in the order of `by_hash`."""
    return sorted(by_hash(ids, purpose)[:count])


def centre_crop(pixels: Pixels, resolution: int) -> Pixels:
    """The middle (R, R, C) of (H, W, C); an odd margin leaves its extra pixel at the bottom or right."""
    top, left = (pixels.shape[0] - resolution) // 2, (pixels.shape[1] - resolution) // 2
    return pixels[top : top + resolution, left : left + resolution]


@dataclass(frozen=True)
class HeldOut:
    """A share of the training items on which nothing trains: what is chosen by them looks at no validation item."""

    chosen: tuple[int, ...]
    """Positions of the items, ascending."""
    left: tuple[int, ...]
    """Those of the others."""
    suffix: str
    """Of the protocol's name."""
    rule: str
    """A sentence for the split's rule."""
    note: str

    @classmethod
    def of(cls, ids: Sequence[str], share: float, reference: str, groups: Sequence[str] = ()) -> HeldOut:
        """The first items by hash of the id; with `groups`, one name for each item, the first whole groups by theirs.

        Raises UsageError where nothing would score, or nothing be trained on.
        """
        if len(groups) not in (0, len(ids)):
            raise UsageError(f"{reference} names {len(groups)} groups for {len(ids)} training items", _SEE)
        of_item = list(groups if len(groups) else ids)
        sizes, wanted = Counter(of_item), round(share * len(ids))
        known = list(sizes)
        names = [known[i] for i in by_hash(known, "holdout")]
        counts = [0, *itertools.accumulate(sizes[name] for name in names)]
        among = next(n for n, count in enumerate(counts) if count >= wanted)
        if not 0 < among < len(names):
            of = f"{len(ids)} training items" + (f" in {len(names)} groups" if len(groups) else "")
            lacks = "train on" if among else "score"
            raise UsageError(f"--holdout {share:g} of the {of} of {reference} leaves nothing to {lacks}",
                             "for example: --holdout 0.1")  # fmt: skip
        held, percent = {*names[:among]}, f"{100 * share:g}"
        what = f"{percent} % of the training items, by hash of the id,"
        if len(groups):
            what = f"Whole groups of training items, by hash of their names and {percent} % of the items at least,"
        return cls(
            tuple(i for i, name in enumerate(of_item) if name in held),
            tuple(i for i, name in enumerate(of_item) if name not in held),
            f"-holdout{percent}",
            f" {what} are not trained on and take the place of the validation items.",
            f"{counts[among]} of {len(ids)} training items are held out and score, in place of the validation items",
        )


class Images(ABC):
    """A fixed sequence of images with stable names."""

    ids: Sequence[str]
    """One name for each image, the same on every machine: a path relative to the dataset, or a position in it."""

    groups: Sequence[str] = ()
    """One name for each image where some belong together, as crops of one photograph do: a holdout parts none."""

    content_key: str = ""
    """Changes whenever the pixels may have changed; the decoded cache is kept under it. Empty: never cached."""

    reading: Reading | None = None
    """How encoded images become pixels; None where nothing is decoded, so that there is nothing to choose."""

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def load(self, i: int) -> Pixels:
        """Image `i` as (H, W, C) uint8 with its short side at the dataset's resolution; C of 3 is RGB.

        Raises ImageFileError, which names the file, where it cannot be used.
        """

    def encoded(self, i: int) -> bytes | None:
        """Image `i` as its source holds it, before decoding; None where there is no such thing."""
        return None

    def measure(self, i: int) -> tuple[int, int]:
        """(H, W) that `load(i)` will have, found as cheaply as the source allows."""
        height, width, _ = self.load(i).shape
        return height, width

    def read_as(self, reading: Reading, crop: bool) -> Images:
        """The same images, decoded in another way, and cropped to the middle square or not.

        Of images that have a `reading`.
        """
        raise NotImplementedError


class Chosen(Images):
    """Some of the images of another sequence."""

    def __init__(self, images: Images, positions: Sequence[int]) -> None:
        self.images = images
        self.reading = images.reading
        self.positions = tuple(positions)
        self.ids = [images.ids[i] for i in positions]
        self.groups = [images.groups[i] for i in positions] if len(images.groups) else ()
        self.content_key = digest_of(images.content_key, self.positions) if images.content_key else ""

    def load(self, i: int) -> Pixels:
        """Image `i` of the chosen ones, as its source gives it."""
        return self.images.load(self.positions[i])

    def encoded(self, i: int) -> bytes | None:
        """Image `i` of the chosen ones, before decoding."""
        return self.images.encoded(self.positions[i])

    def measure(self, i: int) -> tuple[int, int]:
        """(H, W) of image `i` of the chosen ones."""
        return self.images.measure(self.positions[i])

    def read_as(self, reading: Reading, crop: bool) -> Images:
        """The same of the others, read so."""
        return Chosen(self.images.read_as(reading, crop), self.positions)


class Cropped(Images):
    """Images whose middle square is kept."""

    def __init__(self, images: Images, resolution: int) -> None:
        self.images, self.resolution, self.ids, self.reading = images, resolution, images.ids, images.reading
        self.content_key = digest_of(images.content_key, "centre crop") if images.content_key else ""

    def load(self, i: int) -> Pixels:
        """The middle (R, R, C) of image `i`."""
        return centre_crop(self.images.load(i), self.resolution)

    def measure(self, i: int) -> tuple[int, int]:
        """(R, R)."""
        return self.resolution, self.resolution

    def read_as(self, reading: Reading, crop: bool) -> Images:
        """The same images, read so."""
        images = self.images.read_as(reading, crop=False)
        return Cropped(images, self.resolution) if crop else images


class Looked(Images):
    """The images of a plugin, each looked at when it is loaded: bytes of another kind would become wrong pixels."""

    def __init__(self, images: Images, resolution: int, is_square: bool, channels: int = 3) -> None:
        self.images, self.resolution, self.is_square, self.channels = images, resolution, is_square, channels
        self.ids, self.groups, self.content_key = images.ids, getattr(images, "groups", ()), images.content_key
        self.reading = getattr(images, "reading", None)

    def load(self, i: int) -> Pixels:
        """Image `i`. Raises UsageError unless it is uint8 (H, W, C) with sides and channels as `Dataset` says."""
        pixels, R, C = self.images.load(i), self.resolution, self.channels
        shape = tuple(np.shape(pixels))
        sides = shape[:2] == (R, R) if self.is_square else min(shape[:2], default=0) == R
        if getattr(pixels, "dtype", None) != np.uint8 or len(shape) != 3 or shape[2] != C or not sides:
            kind = getattr(pixels, "dtype", type(pixels).__name__)
            wanted = f"({R}, {R}, {C})" if self.is_square else f"(H, W, {C}) with a short side of {R}"
            raise UsageError(f"image {self.ids[i]} is {kind} of shape {shape}, not uint8 of shape {wanted}", _SEE)
        return pixels

    def measure(self, i: int) -> tuple[int, int]:
        """(H, W) of image `i`."""
        return self.images.measure(i)

    def read_as(self, reading: Reading, crop: bool) -> Images:
        """The plugin's, read so."""
        return Looked(self.images.read_as(reading, crop), self.resolution, is_square=crop, channels=reading.channels)


class Dataset(ABC):
    """A named source of images with a stated split. The first line of a subclass's docstring is its summary.

    A subclass is made with `(argument, resolution, data_root)`, `argument` being what stands behind the colon of
    `folder:PATH`, and sets every attribute below.
    """

    takes_argument: ClassVar[str] = ""
    """What stands behind the colon ("PATH"), or empty where nothing may."""

    reference: str
    """What `--dataset` was, with absolute paths: "photos", "folder:/data/faces"."""
    slug: str
    """A short name for paths: "photos", "folder-faces"."""
    resolution: int
    train: Images
    """Short side at the resolution, not yet cropped."""
    validation: Images
    """(R, R, C) each."""
    notes: tuple[str, ...] = ()
    """What must be said aloud whenever numbers on this dataset are shown."""
    protocol_name: str
    """Dataset and split in one word; part of the protocol's name."""
    split_rule: str
    """One sentence."""
    train_digest: str
    """sha256 over the training items as far as it can be had without decoding; the same on every machine."""
    licence: str = ""
    """Under which terms the images may be used."""
    channels: int = 3
    """Of an image: the last axis of what `load` gives. 1 is grey, 3 RGB, 4 are four grey images of one place."""

    def __init__(self, argument: str, resolution: int, data_root: Path | None) -> None:
        self.resolution = resolution

    @classmethod
    def download(cls, data_root: Path | None) -> None:
        """Get the files from where they are published. Does nothing where there is nothing to get."""
        return None

    def give_channels(self, channels: int) -> None:
        """Give images of so many channels, as a recipe asks: image files are read as grey where that is 1.

        Raises UsageError where the images have another number.
        """
        if channels == self.channels:
            return
        if (channels, self.channels) == (1, 3) and self.train.reading is not None:
            reading, self.channels = dataclasses.replace(self.train.reading, channels=1), 1
            self.train = self.train.read_as(reading, crop=False)
            self.validation = self.validation.read_as(reading, crop=True)
            self.protocol_name += "-grey"
            return
        given = "1 channel" if self.channels == 1 else f"{self.channels} channels"
        raise UsageError(
            f"the images of {self.reference} have {given}, the recipe's have image_channels={channels}",
            f"--set image_channels={self.channels}, or give another dataset",
        )

    def hold_out(self, share: float) -> None:
        """Have a share of the training images, by hash of the id, take the place of the validation images."""
        held = HeldOut.of(self.train.ids, share, self.reference, self.train.groups)
        self.validation = Cropped(Chosen(self.train, held.chosen), self.resolution)
        self.train = Chosen(self.train, held.left)
        self.train_digest = digest_of(self.train_digest, "without", held.chosen)
        self.protocol_name += held.suffix
        self.split_rule += held.rule
        self.notes += (held.note,)

    def keep_validation(self, count: int) -> None:
        """Keep only the first `count` validation images, in an order that depends on their ids alone."""
        available = len(self.validation)
        if not 1 <= count <= available:
            raise UsageError(
                f"{count} validation images asked for, {self.reference} has {available} at {self.resolution} px",
                f"ask for 1 to {available}, or leave it out for all of them",
            )
        if count == available:
            return
        self.validation = Chosen(self.validation, first_by_hash(self.validation.ids, count, "validation order"))
        self.protocol_name += f"-first{count}"
        self.split_rule += f" Of the validation images, the first {count} by hash of the id are kept."
        self.notes += (f"{count} of {available} validation images are used",)


@dataclass(frozen=True)
class DataReference:
    """Where data are, as a command or the spec of a cell says it."""

    dataset: str = ""
    """NAME or NAME:ARGUMENT; empty only where `features` are given."""
    data_root: Path | None = None
    validation_images: int | None = None
    """None: all that there are."""
    features: Path | None = None
    """A file of frozen features in the place of a dataset."""
    holdout: float | None = None
    """Share of the training images that scores in the place of the validation images."""

    @classmethod
    def of_spec(cls, spec: Mapping[str, Any]) -> DataReference:
        """What the plan of a cell was made for."""
        known, features = spec["dataset"], spec.get("features") or {}
        return cls(
            known["reference"],
            Path(known["data_root"]) if known["data_root"] else None,
            known["validation_images"],
            Path(features["path"]) if "path" in features else None,
            known.get("holdout"),
        )

    def open(self, resolution: int, channels: int = 3, download: bool = False) -> Dataset:
        """`open_dataset` of what this names."""
        root, kept = self.data_root, self.validation_images
        return open_dataset(self.dataset, resolution, root, kept, download, self.holdout, channels)


_SEE = "see docs/adding-a-dataset.md"


def _made(name: str, cls: type[Dataset], *arguments: Any) -> Dataset:
    """The dataset itself. What a plugin's constructor raises, or leaves out, is told as the plugin's."""
    try:
        dataset = cls(*arguments)
    except (VQBenchError, OSError):
        raise
    except Exception as error:
        if DATASETS.is_built_in(name):
            raise
        raise UsageError(f"dataset '{name}' cannot be opened: {type(error).__name__}: {error}", _SEE) from error
    if missing := [key for key in Dataset.__annotations__ if not hasattr(dataset, key)]:
        raise UsageError(f"dataset '{name}' does not set {', '.join(missing)}", _SEE)
    for side, images in (("training", dataset.train), ("validation", dataset.validation)):
        if not len(images):
            raise UsageError(
                f"{dataset.reference} has no {side} images", "a dataset needs both, or nothing is measured"
            )
    if not DATASETS.is_built_in(name):
        resolution, channels = dataset.resolution, dataset.channels
        dataset.train = Looked(dataset.train, resolution, is_square=False, channels=channels)
        dataset.validation = Looked(dataset.validation, resolution, is_square=True, channels=channels)
    return dataset


def path_safe(name: str) -> str:
    """`name` with everything but letters, digits, dot and underscore made into single hyphens."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.")[:80] or "images"


def open_dataset(
    reference: str,
    resolution: int,
    data_root: Path | None = None,
    validation_images: int | None = None,
    download: bool = False,
    holdout: float | None = None,
    channels: int = 3,
) -> Dataset:
    """The dataset that `reference` names ("photos", "folder:PATH"), listed and split but not decoded.

    With `holdout`, a share, that of the training images takes the place of the validation images.
    `validation_images` keeps that many of these; `download` gets missing files first where the dataset
    can; `channels` are those of an image. Raises UsageError for an unknown name, missing files, a split with an empty
    side, and images of another number of channels.
    """
    name, colon, argument = reference.partition(":")
    cls: Any = DATASETS.get(name)
    if not (isinstance(cls, type) and issubclass(cls, Dataset)):
        raise UsageError(f"dataset '{name}' is no subclass of Dataset", _SEE)
    if colon and not cls.takes_argument:
        raise UsageError(f"dataset '{name}' takes nothing after the colon, not '{argument}'", f"give it as {name}")
    if cls.takes_argument and not argument:
        wanted = f"{name}:{cls.takes_argument}"
        raise UsageError(f"dataset '{name}' needs to know where: {wanted}", f"give it as --dataset {wanted}")
    if resolution < 1:
        raise UsageError(f"resolution must be at least 1, not {resolution}", "for example: 32, 128 or 256")
    if download:
        cls.download(data_root)
    dataset = _made(name, cls, argument, resolution, data_root)
    dataset.give_channels(channels)
    if holdout is not None:
        dataset.hold_out(holdout)
    if validation_images is not None:
        dataset.keep_validation(validation_images)
    return dataset
