"""The contract of a dataset: two sequences of images, how they were split, and what must be said of it."""

from __future__ import annotations

import dataclasses
import re
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vqbench.data.decode import AS_EVER, SMALL, Reading
from vqbench.data.encoded import Encoded, EncodedImages
from vqbench.data.hashing import SEE, HeldOut, first_by_hash
from vqbench.data.hashing import digest_of as digest_of  # plugins have these three from here
from vqbench.data.images import Chosen, Cropped, Joined, LargeEnough, Looked, Part, Reencoded
from vqbench.data.images import Images as Images
from vqbench.data.images import Pixels as Pixels
from vqbench.data.split_list import SplitList
from vqbench.errors import UsageError, VQBenchError
from vqbench.metrics.named import NamedProtocol, named_protocol
from vqbench.registry import DATASETS


class Dataset(ABC):
    """A named source of images with a stated split. The first line of a subclass's docstring is its summary.

    A subclass is made with `(argument, resolution, data_root)`, `argument` being what stands behind the colon of
    `folder:PATH`, and sets every attribute below.
    """

    takes_argument: ClassVar[str] = ""
    """What stands behind the colon ("PATH"), or empty where nothing may."""
    needs_argument: ClassVar[bool] = True
    """Whether something must, where something may."""

    reference: str
    """What `--dataset` was, with absolute paths: "photos", "folder:/data/faces"."""
    slug: str
    """A short name for paths: "photos", "folder-faces"."""
    resolution: int
    train: Images
    """Short side at the resolution, or where its `reading` has it; not yet cropped."""
    validation: Images
    """(R, R, C) each."""
    notes: tuple[str, ...] = ()
    """What must be said aloud whenever numbers on this dataset are shown. In it "{train}" and "{validation}" become the
    numbers of images of both sides, without those that are left out."""
    split_notes: tuple[str, ...] = ()
    """The same of its own split, not said where another takes its place."""
    protocol_name: str
    """Dataset and split in one word; part of the protocol's name."""
    split_rule: str
    """One sentence."""
    whatever_split: str = ""
    """The end of `split_rule` that is so of any split: what is cut out of images, of which classes they are."""
    train_digest: str
    """sha256 over the training items as far as it can be had without decoding; the same on every machine."""
    own_digest: str = ""
    """`train_digest` as its own split and reading have it: the same for the same images under another path, and
    whatever split is asked for."""
    licence: str = ""
    """Under which terms the images may be used."""
    has_own_split: bool = True
    """Whether whoever made the images says which are validation; otherwise that is by hash, and ours."""
    channels: int = 3
    """Of an image: the last axis of what `load` gives. 1 is grey, 3 RGB, 4 are four grey images of one place."""
    reading: Reading | None = None
    """How encoded images become pixels; None where nothing is decoded. That of `train`, once the dataset is open."""
    small_images: str = ""
    """How many images of each side are smaller than they are resized to, and what became of them."""
    training_images: str = ""
    """What was made of the training images alone; empty: nothing."""
    named: NamedProtocol | None = None
    """The protocol of somebody else under which the images are read; None: ours."""
    empty_side: UsageError | None = None
    """What is said where a side of its own split holds nothing, in the place of what is said of any set."""

    def __init__(self, argument: str, resolution: int, data_root: Path | None) -> None:
        self.resolution = resolution

    @classmethod
    def download(cls, data_root: Path | None) -> None:
        """Get the files from where they are published. Does nothing where there is nothing to get."""
        return None

    def take_encoded(self, train: Encoded, validation: Encoded, reading: Reading = AS_EVER) -> None:
        """Have encoded images be both sides. Raises UsageError that names those that cannot be read."""
        self.train = EncodedImages(train, self.resolution, crop=False, reading=reading)
        self.validation = EncodedImages(validation, self.resolution, crop=True, reading=reading)
        self.train_digest = train.digest()

    def give_channels(self, channels: int) -> None:
        """Give images of so many channels, as a recipe asks: image files are read as grey where that is 1.

        Raises UsageError where the images have another number.
        """
        if channels == self.channels:
            return
        if (channels, self.channels) == (1, 3) and self.train.reading is not None:
            self.channels = 1
            self._read_both(dataclasses.replace(self.train.reading, channels=1))
            self.protocol_name += "-grey"
            return
        given = "1 channel" if self.channels == 1 else f"{self.channels} channels"
        raise UsageError(
            f"the images of {self.reference} have {given}, the recipe's have image_channels={channels}",
            f"--set image_channels={self.channels}, or give another dataset",
        )

    def read_under(self, named: NamedProtocol) -> None:
        """Read the images by the rules of a named protocol. Raises UsageError where nothing is decoded."""
        self._read(named.reading, [f"--protocol {named.name}"])
        self.named = named

    def read_as(self, **asked: Any) -> None:
        """Read the images by other rules: fields of `Reading`. Raises UsageError where nothing is decoded."""
        other = self._read(asked, [name for name, field in RULES.items() if field in asked])
        words = (f"scale{value:g}" if name == "scale" else str(value).replace("_", "") for name, value in other.items())
        self.protocol_name += "".join(f"-{path_safe(word)}" for word in words)

    def _read(self, asked: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
        """Read the images so; `names` are the options that ask for it. Returns what is other than it was."""
        if self.reading is None:
            verb = "decides" if len(names) == 1 else "decide"
            what = (
                f"{' and '.join(names)} {verb} how images are decoded, and those of {self.reference} are pixels already"
            )
            raise UsageError(what, f"leave {' and '.join(names)} out")
        known, reading = dataclasses.asdict(self.reading), dataclasses.replace(self.reading, **asked)
        other = {name: value for name, value in asked.items() if value != known[name]}
        if other:
            self._read_both(reading)
            self.train_digest = digest_of(self.train_digest, "read", sorted(other.items()))
        return other

    def _read_both(self, reading: Reading) -> None:
        self.train = self.train.read_as(reading, crop=False)
        self.validation = self.validation.read_as(reading, crop=True)
        self.reading = reading

    def split_by(self, file: Path) -> None:
        """Have the images that a file lists be the validation images, and all others be trained on.

        Raises UsageError for a list that does not fit, and for images that have no names of their own.
        """
        if self.reading is None:
            what = f"--split-list {file}: the images of {self.reference} are no files, whose names a list could have"
            raise UsageError(what, "leave it out, or --holdout SHARE for a split of its training images")
        listed = SplitList.read(file)
        whole, by_id = self._whole()
        held = set(listed.positions(whole.ids, self.reference))
        validation, train = ([i for i in by_id if (i in held) == side] for side in (True, False))
        if not train:
            raise UsageError(f"--split-list {file} names every image of {self.reference}", "leave some to train on")
        self.validation, self.train = Cropped(Chosen(whole, validation), self.resolution), Chosen(whole, train)
        self.train_digest = digest_of(whole.contents(), "without", listed.sha256)
        self.protocol_name = f"{self.slug}-list-{listed.sha256[:8]}"
        self._split_anew(
            f"The {len(held):,} images that a list of sha256 {listed.sha256} names are validation, all others are "
            "trained on.",
            f"split by {file.name}: {{validation}} images are validation, the other {{train}} are trained on",
        )

    def _split_anew(self, rule: str, note: str) -> None:
        """Say of another split than its own what is said of a split; what is so of the images whatever it is stays."""
        self.split_rule = f"{rule} {self.whatever_split}".rstrip()
        self.split_notes = (note,)

    def _whole(self) -> tuple[Joined, list[int]]:
        """The images of both sides, not cropped where they are decoded; and their positions in the order of ids."""
        validation = self.validation if self.reading is None else self.validation.read_as(self.reading, crop=False)
        whole = Joined(self.train, validation)
        return whole, sorted(range(len(whole)), key=whole.ids.__getitem__)

    def score_all(self) -> None:
        """Have the images of both sides be validation, so that none is left to train on."""
        whole, by_id = self._whole()
        self.validation, self.train = Cropped(Chosen(whole, by_id), self.resolution), Part(whole, [])
        self.train_digest = digest_of("nothing is trained on")
        self.protocol_name = f"{self.slug}-all"
        self._split_anew(
            "All images are validation, and none is trained on.",
            "all {validation} images are scored, and none is left to train on",
        )

    def leave_out_small(self, when: str = "") -> None:
        """Keep the images that need not be enlarged, where the reading leaves out the others.

        Raises UsageError where a side would have none.
        """
        if self.reading is None or self.reading.small != "leave_out":
            return
        small = self._say_small(self.reading, when)
        for name in small:
            if small[name].size and small[name].all():
                what = f"all {small[name].size:,} {name} images of {self.reference} are too small"
                raise UsageError(what, "use a smaller resolution, or --small enlarge")
        if "training" in small and small["training"].any():
            self.train = LargeEnough(self.train, np.flatnonzero(~small["training"]).tolist())
            self.train_digest = digest_of(self.train_digest, "large enough", self.reading.side(self.resolution))
        if small["validation"].any():
            self.validation = LargeEnough(self.validation, np.flatnonzero(~small["validation"]).tolist())

    def count_enlarged(self) -> None:
        """Say how many images of each side are enlarged, where the reading allows it."""
        if self.reading is not None and self.reading.small == "enlarge":
            self._say_small(self.reading)

    def say_split(self) -> None:
        """Take up what is to be said of the split, and how many images are on each side of it."""
        train, validation = f"{len(self.train):,}", f"{len(self.validation):,}"
        self.notes = tuple(
            note.replace("{train}", train).replace("{validation}", validation)
            for note in (*self.notes, *self.split_notes)
        )

    def _say_small(self, reading: Reading, when: str = "") -> dict[str, NDArray[np.bool_]]:
        """Which images of each side are smaller than they are resized to."""
        short = reading.side(self.resolution)
        both = {"training": self.train, "validation": self.validation}
        sides = {name: images.short_sides() for name, images in both.items() if len(images)}
        small = {name: (side > 0) & (side < short) for name, side in sides.items()}
        counts = " and ".join(f"{some.sum():,} of {some.size:,} {name} images" for name, some in small.items())
        self.small_images = f"{counts}{when} have a short side below {short} px and are {SMALL[reading.small]}"
        self.notes += (self.small_images,)
        return small

    def hold_out(self, share: float) -> None:
        """Have a share of the training images, by hash of the id, take the place of the validation images."""
        held = HeldOut.of(self.train.ids, share, self.reference, self.train.groups)
        self.validation = Cropped(Chosen(self.train, held.chosen), self.resolution)
        self.train = Chosen(self.train, held.left)
        self.train_digest = digest_of(self.train_digest, "without", held.chosen)
        self.protocol_name += held.suffix
        self.split_rule += held.rule
        self.notes += (held.note,)

    def reencode(self, quality: int) -> None:
        """Have the training images be what JPEG of a quality makes of them. Raises UsageError where JPEG cannot."""
        if self.channels not in (1, 3):
            what = f"JPEG holds 1 or 3 channels, and the images of {self.reference} have {self.channels}"
            raise UsageError(what, "keep them as --format pixels, or as --format original")
        if isinstance(self.train, Chosen):  # below a holdout's choice: what is encoded once serves every share
            self.train = Chosen(Reencoded(self.train.images, quality), self.train.positions)
        else:
            self.train = Reencoded(self.train, quality)
        self.train_digest = digest_of(self.train_digest, "JPEG", quality)
        self.protocol_name += f"-jpeg{quality}"
        self.training_images = f"re-encoded as JPEG (4:2:0) of quality {quality}, as validation images never are"
        self.notes += (f"training images are {self.training_images}",)

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
    resize: str | None = None
    """A rule in the place of the dataset's, as the next two."""
    resize_scale: float | None = None
    small: str | None = None
    split_list: Path | None = None
    """A file with the ids of the images that are validation, in the place of the dataset's split."""
    format: str = ""
    """How training images are kept: "pixels", "original" or "jpeg:QUALITY". Empty: decoded, where there is room."""
    protocol: str = ""
    """Whose rules of reading and of measuring: a name of NAMED; empty for ours."""
    split: str = ""
    """What is scored: "all" images, or, where it is empty, the validation images."""

    def __post_init__(self) -> None:
        """Raises UsageError for a rule that there is not, and for one that frozen features do not have."""
        Reading(**self.rules)
        asked = [name for name, field in RULES.items() if field in self.rules]
        if self.split_list is not None:
            asked.append("--split-list")
        named = named_protocol(self.protocol)
        if named is not None and self.rules:
            what = f"--protocol {named.name} says how images are read, and {' and '.join(asked)} would say it otherwise"
            raise UsageError(what, "leave one of them out")
        apart = [*(["--split-list"] if self.split_list else []), *(["--holdout"] if self.holdout is not None else [])]
        if self.split and apart:
            what = f"--split {self.split} scores every image, and {' and '.join(apart)} would keep some for training"
            raise UsageError(what, "leave one of them out")
        asked = [*asked, *([f"--protocol {named.name}"] if named else []), *(["--split all"] if self.split else [])]
        if self.features is not None and asked:
            what = f"{' and '.join(asked)}: of images, and --features {self.features} holds none"
            raise UsageError(what, "leave it out, or give a dataset")

    def refuse_training(self, trained: Sequence[str]) -> None:
        """Raise UsageError where every image is scored, and there are methods that would be trained."""
        if self.split and trained:
            what = f"--split {self.split} scores every image, so that none is left to train {', '.join(trained)} on"
            raise UsageError(what, "leave --split out; it is for tokenizers that are trained already")
        named = named_protocol(self.protocol)
        if named is not None and named.reading.get("whole") and trained:
            what = (
                f"--protocol {named.name} leaves images as large as they are, and {', '.join(trained)} would be trained"
            )
            raise UsageError(what, "train without it, then score the cell: vqbench eval CELL --protocol native")

    @property
    def rules(self) -> dict[str, Any]:
        """Field of `Reading` → what was asked for."""
        asked = {"resize": self.resize, "scale": self.resize_scale, "small": self.small}
        return {field: value for field, value in asked.items() if value not in (None, "")}

    @property
    def jpeg_quality(self) -> int | None:
        """At which training images are re-encoded; None where they are not."""
        kind, _, quality = self.format.partition(":")
        return int(quality) if kind == "jpeg" else None

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
            known.get("resize"),
            known.get("resize_scale"),
            known.get("small"),
            Path(known["split_list"]) if "split_list" in known else None,
            known.get("format", ""),
            known.get("protocol", ""),
            known.get("split", ""),
        )

    def in_spec(self) -> dict[str, Any]:
        """What the spec of a cell says of it where it was asked for, beside what it says of every dataset."""
        asked = {
            "holdout": self.holdout, "resize": self.resize, "resize_scale": self.resize_scale, "small": self.small,
            "protocol": self.protocol, "split": self.split,
        }  # fmt: skip
        listed = {} if self.split_list is None else {"split_list": str(self.split_list.absolute())}
        jpeg = {} if self.jpeg_quality is None else {"format": self.format}  # the others change no pixel
        return {**{name: value for name, value in asked.items() if value not in (None, "")}, **listed, **jpeg}

    def open(self, resolution: int, channels: int = 3, download: bool = False) -> Dataset:
        """`open_dataset` of what this names."""
        root, kept, listed, jpeg = self.data_root, self.validation_images, self.split_list, self.jpeg_quality
        asked = (self.holdout, self.rules, listed, channels, jpeg, named_protocol(self.protocol), bool(self.split))
        return open_dataset(self.dataset, resolution, root, kept, download, *asked)


RULES = {"--resize": "resize", "--resize-scale": "scale", "--small": "small"}
"""Option → the field of `Reading` that it sets."""


def _made(name: str, cls: type[Dataset], whole: bool, *arguments: Any) -> Dataset:
    """The dataset itself; a side of its split may be empty where it is to be taken as a `whole`.

    What a plugin's constructor raises, or leaves out, is told as the plugin's.
    """
    try:
        dataset = cls(*arguments)
    except (VQBenchError, OSError):
        raise
    except Exception as error:
        if DATASETS.is_built_in(name):
            raise
        raise UsageError(f"dataset '{name}' cannot be opened: {type(error).__name__}: {error}", SEE) from error
    if missing := [key for key in Dataset.__annotations__ if not hasattr(dataset, key)]:
        raise UsageError(f"dataset '{name}' does not set {', '.join(missing)}", SEE)
    for side, images in (("training", dataset.train), ("validation", dataset.validation)):
        if not len(images) and not whole:
            raise dataset.empty_side or UsageError(
                f"{dataset.reference} has no {side} images", "a dataset needs both, or nothing is measured"
            )
    if not DATASETS.is_built_in(name):
        resolution, channels = dataset.resolution, dataset.channels
        dataset.train = Looked(dataset.train, resolution, is_square=False, channels=channels)
        dataset.validation = Looked(dataset.validation, resolution, is_square=True, channels=channels)
    dataset.reading = dataset.train.reading
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
    rules: Mapping[str, Any] | None = None,
    split_list: Path | None = None,
    channels: int = 3,
    jpeg_quality: int | None = None,
    named: NamedProtocol | None = None,
    score_all: bool = False,
) -> Dataset:
    """The dataset that `reference` names ("photos", "folder:PATH"), listed and split but not decoded.

    `rules` are fields of `Reading` in the place of the dataset's own; `split_list` is a file with the ids of the
    validation images. With `holdout`, a share, that of the training images takes the place of the validation images.
    `validation_images` keeps that many of these; `download` gets missing files first where the dataset
    can; `channels` are those of an image. With a `jpeg_quality` training images are re-encoded, and those that score
    never: those of a holdout are taken first. A `named` protocol says how images are read; with `score_all` those of
    both sides are validation. Raises UsageError for an unknown name, missing files, a split with an
    empty side, and images of another number of channels.
    """
    name, colon, argument = reference.partition(":")
    cls: Any = DATASETS.get(name)
    if not (isinstance(cls, type) and issubclass(cls, Dataset)):
        raise UsageError(f"dataset '{name}' is no subclass of Dataset", SEE)
    if colon and not cls.takes_argument:
        raise UsageError(f"dataset '{name}' takes nothing after the colon, not '{argument}'", f"give it as {name}")
    if cls.takes_argument and not argument and (cls.needs_argument or colon):
        wanted = f"{name}:{cls.takes_argument}"
        raise UsageError(f"dataset '{name}' needs more than its name: {wanted}", f"give it as --dataset {wanted}")
    if resolution < 1:
        raise UsageError(f"resolution must be at least 1, not {resolution}", "for example: 32, 128 or 256")
    if download:
        cls.download(data_root)
    dataset = _made(name, cls, score_all, argument, resolution, data_root)
    dataset.own_digest = dataset.train_digest
    if split_list is not None:
        dataset.split_by(split_list)
    if score_all:
        dataset.score_all()
    if rules:
        dataset.read_as(**rules)
    if named is not None:
        dataset.read_under(named)
    dataset.give_channels(channels)
    dataset.leave_out_small("" if holdout is None else ", before the holdout,")
    dataset.say_split()
    if holdout is not None:
        dataset.hold_out(holdout)
    if validation_images is not None:
        dataset.keep_validation(validation_images)
    dataset.count_enlarged()
    if jpeg_quality is not None:
        dataset.reencode(jpeg_quality)
    return dataset
