"""BraTS: axial slices of brain MRI, split by subject."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from vqbench.data.dataset import Dataset
from vqbench.data.decode import ImageFileError, Reading, name_unusable
from vqbench.data.encoded import Encoded, EncodedImages
from vqbench.data.extras import required_library
from vqbench.data.files import ImageFile, contents_digest, list_images, listing_key
from vqbench.data.hashing import digest_of
from vqbench.data.images import Images, Pixels
from vqbench.data.layout import by_base_name, not_here, required_root
from vqbench.data.slices import RULE, RULE_KEY, Sliced, sliced
from vqbench.errors import UsageError, unknown
from vqbench.registry import DATASETS
from vqbench.wording import counted

MODALITIES = ("t1n", "t1c", "t2w", "t2f")
ALL = "all"
_OLDER = {"t1": "t1n", "t1ce": "t1c", "t2": "t2w", "flair": "t2f"}
_SUFFIXES = (".nii", ".nii.gz")
_CASE = r"(?P<set>BraTS-[A-Z]+)-(?P<subject>\d+)-\d+|(?P<older>BraTS2021|BraTS20_Training)_(?P<number>\d+)"
_VOLUME = re.compile(rf"(?P<case>{_CASE})[-_](?P<modality>{'|'.join((*MODALITIES, *_OLDER))})")
_COLLECTIONS = {"BraTS20_Training": "brats2020"}
_BY_SUBJECT = "the sha256 of its number in five digits is 0 modulo 5"
_LOOKED_FOR = "BraTS-GLI-00005-100/BraTS-GLI-00005-100-t2f.nii.gz, or BraTS2021_00005/BraTS2021_00005_flair.nii.gz"
_GET = "BraTS is given out after registration (https://www.synapse.org/brats2024); unpack it there"


@dataclass(frozen=True)
class Case:
    """One visit of one subject."""

    id: str
    collection: str
    """As file names have it: "BraTS-GLI", "BraTS2021"."""
    subject: str
    """Its number in five digits."""


def is_validation(subject: str) -> bool:
    """The split by subject: true for about one in five, whatever else is in the folder."""
    return int(hashlib.sha256(subject.encode()).hexdigest(), 16) % 5 == 0


class _Slices(Encoded):
    """The kept slices of one modality, as grey PNGs, case after case."""

    def __init__(
        self,
        files: Sequence[ImageFile],
        volumes: Sequence[Sliced],
        positions: Sequence[NDArray[np.int32]],
        ids: Sequence[str],
        subjects: Sequence[str],
    ) -> None:
        self.files, self.volumes, self.ids, self.groups = files, volumes, ids, subjects
        self.key = digest_of(RULE_KEY, listing_key(files), *(some.tolist() for some in positions))
        self.volume = np.repeat(np.arange(len(volumes)), [len(some) for some in positions])
        self.place = np.concatenate([np.searchsorted(v.positions, z) for v, z in zip(volumes, positions, strict=True)])

    def read(self, i: int) -> bytes:
        """Slice `i`. Raises ImageFileError."""
        return self.volumes[self.volume[i]].read(self.place[i])

    def name(self, i: int) -> str:
        """Case, modality and position."""
        return self.ids[i]

    def digest(self) -> str:
        """Of the volumes, and of how they are sliced."""
        return digest_of(RULE_KEY, contents_digest(self.files))

    def background(self) -> NDArray[np.float32]:
        """Share of the pixels of each square that are 0."""
        kept = np.concatenate([[0], np.cumsum([len(volume.positions) for volume in self.volumes])])
        return np.concatenate([volume.background for volume in self.volumes])[kept[self.volume] + self.place]


class _Channels(Images):
    """Images of one size as the channels of one."""

    def __init__(self, images: Sequence[Images]) -> None:
        self.images = images
        self.ids, self.groups, self.reading = images[0].ids, images[0].groups, images[0].reading
        self.content_key = digest_of(*(each.content_key for each in images))

    def load(self, i: int) -> Pixels:
        """(H, W, C): the first channel of image `i` of each. Raises ImageFileError."""
        return np.stack([images.load(i)[:, :, 0] for images in self.images], axis=2)

    def measure(self, i: int) -> tuple[int, int]:
        """(H, W) of image `i`."""
        return self.images[0].measure(i)

    def read_as(self, reading: Reading, crop: bool) -> _Channels:
        """The same channels, read so."""
        return _Channels([images.read_as(reading, crop) for images in self.images])

    def contents(self) -> str:
        """Of all channels, in order."""
        return digest_of(*(images.contents() for images in self.images))

    def short_side(self, i: int) -> int:
        """Of image `i`."""
        return self.images[0].short_side(i)


class _Side:
    """The cases of one side of the split, and the slices that are kept in every modality that is read."""

    def __init__(
        self,
        name: str,
        cases: Mapping[Case, Sequence[ImageFile]],
        volumes: Mapping[Case, Sequence[Sliced]],
        wanted: str,
    ) -> None:
        self.name, self.wanted = name, wanted
        kept = [functools.reduce(np.intersect1d, [v.positions for v in volumes[case]]) for case in cases]
        suffix = "" if wanted == ALL else f"-{wanted}"
        self.ids = [f"{case.id}{suffix}-z{z:03d}" for case, some in zip(cases, kept, strict=True) for z in some]
        subjects = [case.subject for case, some in zip(cases, kept, strict=True) for _ in some]
        self.modalities = [
            _Slices(
                [files[k] for files in cases.values()], [volumes[case][k] for case in cases], kept, self.ids, subjects
            )
            for k in range(len(_modalities(wanted)) if self.ids else 0)
        ]

    def images(self, resolution: int, crop: bool) -> Images:
        """Its images."""
        channels = [EncodedImages(slices, resolution, crop) for slices in self.modalities]
        return _Channels(channels) if self.wanted == ALL else channels[0]

    def background(self) -> dict[str, float]:
        """Id → share of the pixels of a slice that are 0, mean over what is read of it."""
        each = [slices.background() for slices in self.modalities]
        shares: NDArray[np.float64] = np.mean(each, axis=0, dtype=np.float64)
        return dict(zip(self.ids, shares.tolist(), strict=True))


@DATASETS.register("brats")
class BraTS(Dataset):
    """Axial slices of BraTS brain MRI (brats:t2f is one modality, brats:all four channels; needs --data-root)."""

    takes_argument: ClassVar[str] = "|".join((*MODALITIES, ALL))
    licence = "As registration for BraTS states; the data may not be passed on."

    def __init__(self, argument: str, resolution: int, data_root: Path | None) -> None:
        super().__init__(argument, resolution, data_root)
        if argument not in (*MODALITIES, ALL):
            raise _unknown_modality(argument)
        root = required_root("brats", data_root, "its cases", _GET)
        required_library("nibabel", "brats", "medical")
        self.reference, self.slug = f"brats:{argument}", f"brats-{argument}"
        wanted = _modalities(argument)
        self.channels = len(wanted) if argument == ALL else 3
        cases = _cases(root, wanted)
        collection = _only_collection(cases)
        volumes = _of_one_shape(cases)
        train, validation = (
            _Side(name, {c: f for c, f in cases.items() if is_validation(c.subject) is held}, volumes, argument)
            for name, held in (("train", False), ("validation", True))
        )
        for side in (train, validation):
            if not side.ids:
                subjects = len({case.subject for case in cases})
                what = f"the {subjects} BraTS subjects in {root} leave no {side.name} slice: one in five is validation"
                raise UsageError(what, "unpack more cases there")
        self.train = train.images(resolution, crop=False)
        self.validation = validation.images(resolution, crop=True)
        self.train_digest = self.train.contents()
        self.protocol_name = f"{_COLLECTIONS.get(collection, collection.lower())}-{argument}-axial"
        self.whatever_split = f"{RULE}."
        if argument == ALL:
            self.whatever_split += f" Channels are {', '.join(wanted)}; a slice is used where it is kept in each."
        self.split_rule = f"A subject, with all its visits, is validation where {_BY_SUBJECT}. {self.whatever_split}"
        self._background = train.background() | validation.background()

    def say_split(self) -> None:
        """As any dataset does; and how much there is on each side, and how much of it is background."""
        super().say_split()
        for name, images in (("train", self.train), ("validation", self.validation)):
            if not len(images):
                continue
            cases = {slice_id.rpartition("-z")[0] for slice_id in images.ids}
            amount = f"{counted(len(images), 'slice')} of {counted(len(cases), 'case')}"
            subjects = counted(len(set(images.groups)), "subject")
            background = 100 * np.mean([self._background[slice_id] for slice_id in images.ids])
            self.notes += (f"{name}: {amount} of {subjects}; {background:.1f} % of their pixels are background",)


def _modalities(argument: str) -> tuple[str, ...]:
    return MODALITIES if argument == ALL else (argument,)


def _unknown_modality(name: str) -> UsageError:
    if name in _OLDER:
        return UsageError(f"modality '{name}' is called {_OLDER[name]} since 2023", f"give it as brats:{_OLDER[name]}")
    choices = (*MODALITIES, ALL)
    return unknown("modality", name, choices, f"one of brats:{', brats:'.join(choices)}")


def _cases(root: Path, wanted: Sequence[str]) -> dict[Case, list[ImageFile]]:
    """Every case below `root`, in order of its id → the volumes of the wanted modalities. Raises UsageError."""
    if not root.is_dir():
        raise not_here("BraTS", root, _LOOKED_FOR, _GET)
    files, _ = by_base_name("BraTS", list_images(root, _SUFFIXES), _VOLUME)
    found: dict[Case, dict[str, ImageFile]] = {}
    for name in sorted(files):
        match = _VOLUME.fullmatch(name)
        assert match is not None
        number = int(match["subject"] or match["number"])
        case = Case(match["case"], match["set"] or match["older"], f"{number:05d}")
        modality = _OLDER.get(match["modality"], match["modality"])
        volumes = found.setdefault(case, {})
        if modality in volumes:
            what = f"{case.id} has two volumes of {modality}: {volumes[modality].path} and {files[name].path}"
            raise UsageError(what, "remove one of them")
        volumes[modality] = dataclasses.replace(files[name], id=f"{case.id}-{modality}")
    if not found:
        raise not_here("BraTS case", root, _LOOKED_FOR, _GET)
    lacking = [f"{case.id} has no {m}" for case, volumes in found.items() for m in wanted if m not in volumes]
    if lacking:
        shown = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3:,} more" if len(lacking) > 3 else "")
        raise UsageError(f"{root} is not whole: {shown}", "unpack it again, or move cases that are not whole elsewhere")
    return {case: [volumes[modality] for modality in wanted] for case, volumes in found.items()}


def _only_collection(cases: Iterable[Case]) -> str:
    names = sorted({case.collection for case in cases})
    if len(names) > 1:
        what = f"cases of several collections are here: {', '.join(names)}; a number may be another subject in each"
        raise UsageError(what, "give the folder of one of them")
    return names[0]


def _of_one_shape(cases: Mapping[Case, Sequence[ImageFile]]) -> dict[Case, list[Sliced]]:
    """The slices of each case. Raises UsageError for a volume of another shape than most."""
    files = [file for volumes in cases.values() for file in volumes]
    made = sliced(files)
    usual = Counter(volume.shape for volume in made).most_common(1)[0][0]
    bad = [
        ImageFileError(
            f"{file.path}: {'×'.join(map(str, volume.shape))} voxels, where the others have "
            f"{'×'.join(map(str, usual))}",
            "get the file again, or move its case elsewhere",
        )
        for file, volume in zip(files, made, strict=True)
        if volume.shape != usual
    ]
    if bad:
        raise name_unusable(bad)
    each = iter(made)
    return {case: [next(each) for _ in volumes] for case, volumes in cases.items()}
