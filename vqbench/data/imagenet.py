"""ImageNet-1k (ILSVRC 2012) in the layouts that people have it in, always the same set under the same names."""

from __future__ import annotations

import csv
import functools
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vqbench.data.dataset import Dataset, path_safe
from vqbench.data.decode import SUFFIXES, Reading
from vqbench.data.files import Files, FoundFiles, absolute
from vqbench.data.index import TRAIN, VALIDATION, Found, Index, IndexedImages, kept_index, make_index
from vqbench.data.layout import required_root
from vqbench.data.parquet import FoundRows, Rows
from vqbench.data.source_shards import TEST, missing_shards, side_named, states_of
from vqbench.data.tars import FoundMembers, Members
from vqbench.errors import UsageError
from vqbench.registry import DATASETS

EXPECTED = {TRAIN: 1_281_167, VALIDATION: 50_000}
_CLASSES = 1000
_NAME = re.compile(r"((n\d{8})_\d+|ILSVRC2012_(?:val|test)_\d{8})(?:_(n\d{8}))?")
"""A base name without suffix; published parquet has the synset behind it."""
_SYNSET = re.compile(r"n\d{8}")
_INNER = ("", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC")
_FOLDERS = {TRAIN: ("train",), VALIDATION: ("val", "validation")}
_SOLUTION = "LOC_val_solution.csv"
_ORIGINALS = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")
_GET = (
    "get it from https://image-net.org, or as parquet or WebDataset shards, and give the folder that holds both sides"
)
_TREE, _PARQUET, _TARS = "tree", "parquet", "tars"
_READERS: dict[str, Callable[[Index, str], IndexedImages]] = {_TREE: Files, _PARQUET: Rows, _TARS: Members}


@dataclass(frozen=True)
class Layout:
    """How ImageNet lies on a disk."""

    kind: str
    title: str
    """In words."""
    folders: Mapping[str, Path] = field(default_factory=dict)
    """Side → its folder, of a tree."""
    shards: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    """Files with labels."""


@DATASETS.register("imagenet")
class ImageNet(Dataset):
    """ImageNet-1k (Russakovsky et al., 2015, arXiv:1409.0575; needs --data-root; imagenet:SYNSETS.txt for a subset)."""

    takes_argument: ClassVar[str] = "SYNSETS.txt"
    needs_argument: ClassVar[bool] = False
    licence = "Non-commercial research and education, by the terms of access of image-net.org."
    reading = Reading(small="enlarge", upright=False)
    """As every published loader does: small images are enlarged, EXIF is ignored."""

    def __init__(self, argument: str, resolution: int, data_root: Path | None) -> None:
        super().__init__(argument, resolution, data_root)
        self.reference = self.slug = "imagenet"
        root = required_root("imagenet", data_root, "it", _GET)
        subset = Subset.read(absolute(argument)) if argument else None
        layout = find_layout(root)
        index = self._listed(root, layout, subset)
        train, validation = (_READERS[layout.kind](index, side) for side in (TRAIN, VALIDATION))
        self.take_encoded(train, validation, self.reading)
        self._sides = train, validation
        self._say({TRAIN: len(train), VALIDATION: len(validation)}, layout, subset, index.facts)

    @functools.cached_property
    def labels(self) -> dict[str, str]:
        """id → synset, of the images of both sides of which a layout says it."""
        classes = self._sides[0].index.facts["classes"]
        return {
            name: classes[number]
            for side in self._sides
            for name, number in zip(side.ids, side.column("label").tolist(), strict=True)
            if number >= 0
        }

    @staticmethod
    def _listed(root: Path, layout: Layout, subset: Subset | None) -> Index:
        shards = states_of([*layout.shards, *layout.beside]) if layout.kind != _TREE else None
        what = ("imagenet", str(root), layout.kind, *map(str, layout.folders.values()), *layout.beside)
        return kept_index((*what, subset.sha256 if subset else ""), lambda: _indexed(layout, subset), shards)

    def _say(self, counts: Mapping[str, int], layout: Layout, subset: Subset | None, facts: Mapping[str, Any]) -> None:
        here = f"{counts[TRAIN]:,} training and {counts[VALIDATION]:,} validation images"
        self.split_rule = "The training images of ILSVRC 2012 are trained on, its validation images are validation."
        if subset is None:
            expected, self.protocol_name = EXPECTED, "imagenet"
            whole = f"{here}, all that there are"
            part = f"{here}; ImageNet has {expected[TRAIN]:,} and {expected[VALIDATION]:,}: this is a part of it"
        else:
            classes = len(subset.synsets)
            expected = {TRAIN: counts[TRAIN], VALIDATION: 50 * classes}
            whole = f"{here} of {classes} classes"
            part = f"{here}; {classes} classes have {expected[VALIDATION]:,} for validation"
            self.reference = f"imagenet:{subset.path}"
            self.slug = f"imagenet-{path_safe(subset.path.stem)}"
            self.protocol_name = f"{self.slug}-{subset.sha256[:12]}"
            self.whatever_split = f"Of the classes, the {classes} are kept that a file of sha256 {subset.sha256} lists."
            self.split_rule += f" {self.whatever_split}"
        if counts != expected:
            self.protocol_name += f"-part-{counts[TRAIN]}-{counts[VALIDATION]}"
        state = whole if counts == expected else part
        self.notes = (f"ImageNet as {layout.title}: {state}", *facts["notes"])


@dataclass(frozen=True)
class Subset:
    """Some of the classes, as a file lists them."""

    path: Path
    sha256: str
    synsets: frozenset[str]

    @classmethod
    def read(cls, path: Path) -> Subset:
        """A file with a synset a line; what stands behind it on the line is a remark. Raises UsageError."""
        try:
            data = path.read_bytes()
            lines = [line.split() for line in data.decode().splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise UsageError(
                f"{path} cannot be read ({reason})", "give a file with a synset (n01440764) a line"
            ) from None
        synsets = [line[0] for line in lines if line and not line[0].startswith("#")]
        if others := [word for word in synsets if not _SYNSET.fullmatch(word)]:
            raise UsageError(f"{path} names {others[0]}, which is no synset", "write one a line: n01440764")
        if not synsets:
            raise UsageError(f"{path} names no synset", "write one a line: n01440764")
        if twice := [synset for synset, count in Counter(synsets).items() if count > 1]:
            raise UsageError(f"{path} names {twice[0]} twice", "name each class once")
        return cls(path, hashlib.sha256(data).hexdigest(), frozenset(synsets))


def find_layout(root: Path) -> Layout:
    """The layout of ImageNet at `root`. Raises UsageError that says what was looked for and what is there instead."""
    if not root.is_dir():
        state = "is a file, not a folder" if root.exists() else "does not exist"
        raise UsageError(f"{root} {state}", _GET)
    for inner in _INNER:
        base = root / inner
        named = {side: [base / name for name in names if (base / name).is_dir()] for side, names in _FOLDERS.items()}
        if twice := next((found for found in named.values() if len(found) > 1), None):
            raise UsageError(f"{twice[0]} and {twice[1]} are both here", "remove the one that shall not count")
        folders = {side: found[0] for side, found in named.items() if found}
        if len(folders) == 2 and not _holds_shards(folders):
            return _tree(root, base, folders)
        if folders and not _holds_shards(folders):
            raise _one_side(base, folders)
    for kind, suffix, title in ((_PARQUET, ".parquet", "parquet shards"), (_TARS, ".tar", "WebDataset tars")):
        found = [p for part in ("", "*/") for p in sorted(root.glob(f"{part}*{suffix}")) if p.name not in _ORIGINALS]
        of_side = {str(path): side_named(str(path.relative_to(root))) for path in found}
        sides = {side for side in of_side.values() if side and side != TEST}
        if len(sides) == 2:
            used = tuple(sorted(path for path, side in of_side.items() if side in EXPECTED))
            return Layout(kind, title, shards=used)
        if sides:
            (there,) = sides
            gone = VALIDATION if there == TRAIN else TRAIN
            what = f"{root} has {suffix} shards for {there}, none for {gone}"
            raise UsageError(what, f"get those, too: they are named {gone}-…{suffix} or imagenet1k-{gone}-…{suffix}")
    raise _not_found(root)


def _holds_shards(folders: Mapping[str, Path]) -> bool:
    """Whether sides hold shards and no classes: `train/train-00000-of-00294.parquet`."""
    return all(_first(folder, (".parquet", ".tar")) and not _first(folder, SUFFIXES) and not _folder_in(folder) and
               not _class_tars(folder) for folder in folders.values())  # fmt: skip


def _first(folder: Path, suffixes: tuple[str, ...]) -> str:
    with os.scandir(folder) as entries:
        return next((e.name for e in entries if e.name.lower().endswith(suffixes) and not e.name.startswith(".")), "")


def _folder_in(folder: Path) -> str:
    with os.scandir(folder) as entries:
        return next((entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")), "")


def _class_tars(folder: Path) -> int:
    with os.scandir(folder) as entries:
        return sum(bool(re.fullmatch(r"n\d{8}\.tar", entry.name)) for entry in entries)


def _tree(root: Path, base: Path, folders: Mapping[str, Path]) -> Layout:
    if count := _class_tars(folders[TRAIN]):
        what = f"{folders[TRAIN]} is half unpacked: {count:,} tars of classes lie in it"
        one = "mkdir -p ${f%.tar} && tar -xf $f -C ${f%.tar} && rm $f"
        raise UsageError(what, f"cd {folders[TRAIN]} && for f in n*.tar; do {one}; done")
    flat = not _folder_in(folders[VALIDATION])
    if base.name == "CLS-LOC":
        title = "Kaggle's tree"
    elif (root / "meta.bin").is_file():
        title = "torchvision's folders"
    else:
        title = "class folders"
    places = [folder / _SOLUTION for folder in (base, *base.parents) if folder == root or folder.is_relative_to(root)]
    labels = [str(path) for path in places if path.is_file()][:1] if flat else []
    return Layout(_TREE, title + (" with a flat val/" if flat else ""), folders, beside=tuple(labels))


def _one_side(base: Path, folders: Mapping[str, Path]) -> UsageError:
    ((there, folder),) = folders.items()
    gone = _FOLDERS[VALIDATION if there == TRAIN else TRAIN][0]
    tar = base / f"ILSVRC2012_img_{gone}.tar"
    hint = f"unpack {tar.name} into {base / gone}/" if tar.is_file() else f"put the other side into {base / gone}/"
    return UsageError(f"{base} has {folder.name}/ but no {gone}/: one side of ImageNet is not here", hint)


def _not_found(root: Path) -> UsageError:
    if originals := [name for name in _ORIGINALS if (root / name).is_file()]:
        what = f"{root} holds {' and '.join(originals)}, which are not unpacked"
        hint = "torchvision.datasets.ImageNet unpacks them (150 GB more), or tar -xf into train/CLASS/ and val/"
        return UsageError(what, hint)
    seen = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in root.iterdir())
    shown = ", ".join(seen[:5]) + (f" and {len(seen) - 5:,} more" if len(seen) > 5 else "") if seen else "nothing"
    what = (
        f"ImageNet is not in {root}: looked for train/ and val/, ILSVRC/Data/CLS-LOC/, and shards named train and "
        f"validation (.parquet, .tar); it has {shown}"
    )
    for parent in root.parents[:3]:
        if all(any((parent / name).is_dir() for name in names) for names in _FOLDERS.values()):
            return UsageError(what, f"give the folder above: --data-root {parent}")
    return UsageError(what, _GET)


def _found(layout: Layout) -> tuple[Found, Sequence[str]]:
    """The entries, and the side of each."""
    if layout.shards:
        entries: FoundRows | FoundMembers = (
            FoundRows(layout.shards) if layout.kind == _PARQUET else FoundMembers(layout.shards, (".cls", ".json"))
        )
        of_shard = [side_named(shard) for shard in layout.shards]
        return entries, [of_shard[shard] for shard in entries.shard_of]
    found = FoundFiles(os.path.commonpath([str(folder) for folder in layout.folders.values()]))
    sides: list[str] = []
    for side, folder in layout.folders.items():
        found.walk(folder)
        sides += [side] * (len(found) - len(sides))
    return found.whole(), sides


def _indexed(layout: Layout, subset: Subset | None) -> Index:
    entries, sides = _found(layout)
    names = _Named(entries)
    if isinstance(entries, FoundFiles):
        _refuse_empty_classes(layout, entries)
    states = states_of(layout.beside)
    names.learn(_solution(layout.beside[0]) if layout.beside else {})
    wanted: dict[str, list[int]] = {TRAIN: [], VALIDATION: []}
    unlike, unknown = 0, 0
    for i, side in enumerate(sides):
        if not names.ids[i]:
            unlike += 1
        elif subset is None or names.synsets[i] in subset.synsets:
            wanted[side].append(i)
        elif not names.synsets[i]:
            unknown += 1
    _require_sides(wanted, entries, names, subset, unknown)
    if not names.unmapped:  # keys of shards may count anew on each side
        _refuse_both_sides(wanted, entries, names)
    notes = [f"{unlike:,} images are not named like ImageNet's and are not used"] if unlike else []
    if names.unmapped:
        notes.append(
            f"{names.unmapped:,} images are named by the keys of their shards, which are not ImageNet's names: "
            "digests and protocol are not those of other layouts"
        )
    if layout.shards:
        notes += missing_shards(layout.shards)
    classes = sorted({synset for synset in names.synsets if synset})
    number = {synset: k for k, synset in enumerate(classes)}
    labels = np.array([number.get(synset, -1) for synset in names.synsets], np.int16)
    entries.watched = [*entries.watched, *states]
    return make_index(entries, names.ids, wanted, {"classes": classes, "notes": notes}, {"label": labels})


def _refuse_both_sides(wanted: Mapping[str, Sequence[int]], entries: Found, names: _Named) -> None:
    trained = {names.ids[i]: i for i in wanted[TRAIN]}
    twins = [(trained[names.ids[i]], i) for i in wanted[VALIDATION] if names.ids[i] in trained]
    if twins:
        a, b = twins[0]
        what = (
            f"{len(twins):,} images are on both sides of the split: {entries.where(a)} is {entries.where(b)}, by name"
        )
        raise UsageError(what, "validation images would be trained on: remove them from one side")


class _Named:
    """ids and synsets of entries, "" where they are not known."""

    def __init__(self, found: Found) -> None:
        self.ids: list[str] = []
        self.synsets: list[str] = []
        self.unmapped = 0
        numbers: list[int] = []
        seen: set[str] = set()
        for i, name in enumerate(found.names):
            known = _NAME.fullmatch(_stem(name))
            if known is None and isinstance(found, FoundMembers):
                known = _NAME.fullmatch(_stem(_file_name(found.text_beside(i, ".json"))))
            folder = name.rpartition("/")[0].rpartition("/")[2]
            of_folder = folder if _SYNSET.fullmatch(folder) else ""
            synset = (known and (known[2] or known[3])) or of_folder
            self.synsets.append(synset)
            # a number is read once for each synset, and of images whose synset is known by nothing else
            numbers.append(-1 if synset in seen else _class_number(found, i))
            if synset:
                seen.add(synset)
            if known:
                self.ids.append(known[1])
            elif isinstance(found, FoundFiles):
                self.ids.append("")
            else:
                self.unmapped += 1
                self.ids.append(_stem(name) or f"row-{i:08d}")
        self._learn_numbers(numbers)

    def _learn_numbers(self, numbers: Sequence[int]) -> None:
        """Classes that are stated as numbers: as others with the same number are, or by the order of all synsets."""
        known = {number: synset for number, synset in zip(numbers, self.synsets, strict=True) if synset and number >= 0}
        if len(of_all := sorted({synset for synset in self.synsets if synset})) == _CLASSES:
            known = dict(enumerate(of_all)) | known
        self.synsets = [s or known.get(n, "") for s, n in zip(self.synsets, numbers, strict=True)]

    def learn(self, of_id: Mapping[str, str]) -> None:
        """Take what a file says of images whose class their names do not tell."""
        self.synsets = [s or of_id.get(name, "") for s, name in zip(self.synsets, self.ids, strict=True)]


def _stem(name: str) -> str:
    base = name.rpartition("/")[2]
    stem, dot, suffix = base.rpartition(".")
    return stem if f"{dot}{suffix}".lower() in SUFFIXES else base


def _file_name(text: str) -> str:
    try:
        stated = json.loads(text) if text else {}
    except ValueError:
        return ""
    found = stated.get("filename", "") if isinstance(stated, dict) else ""
    return found if isinstance(found, str) else ""


def _class_number(found: Found, i: int) -> int:
    """The number of its class that stands beside an image, or -1."""
    if isinstance(found, FoundRows):
        return found.labels[i]
    text = found.text_beside(i, ".cls") if isinstance(found, FoundMembers) else ""
    return int(text) if re.fullmatch(r"\s*\d{1,4}\s*", text) else -1


def _solution(path: str) -> dict[str, str]:
    """id → synset, of Kaggle's file: `ILSVRC2012_val_00048981,n03995372 85 1 499 272`."""
    with open(path, encoding="utf-8", newline="") as file:
        return {row[0]: row[1].split()[0] for row in csv.reader(file) if len(row) > 1 and _SYNSET.match(row[1])}


def _refuse_empty_classes(layout: Layout, found: FoundFiles) -> None:
    holding = {os.path.dirname(found.where(i)) for i in range(len(found))}
    for side, folder in layout.folders.items():
        with os.scandir(folder) as entries:
            classes = sorted(e.path for e in entries if e.is_dir() and _SYNSET.fullmatch(e.name))
        if empty := [path for path in classes if path not in holding]:
            more = f", nor do {len(empty) - 1:,} others" if len(empty) > 1 else ""
            what = f"{empty[0]} holds no image{more}: {side} is half unpacked"
            raise UsageError(what, "unpack these classes again, or remove their folders to go without them")


def _require_sides(
    wanted: Mapping[str, Sequence[int]], found: Found, names: _Named, subset: Subset | None, unknown: int
) -> None:
    if subset is not None:
        if unknown:
            what = f"the classes of {unknown:,} images are not known, so {subset.path} cannot choose among them"
            raise UsageError(what, f"put {_SOLUTION} of Kaggle beside the images, or sort them into folders of classes")
        if gone := sorted(subset.synsets.difference(names.synsets)):
            what = (
                f"{len(gone)} of the {len(subset.synsets)} classes of {subset.path} are not here: {', '.join(gone[:5])}"
            )
            raise UsageError(what, "give the whole ImageNet as --data-root, or a list of classes that are here")
    for side, entries in wanted.items():
        if not entries:
            seen = f" ({found.where(0)})" if len(found) else ""
            what = f"no {side} image is named like ImageNet's (n01440764_10026, ILSVRC2012_val_00000001){seen}"
            raise UsageError(what, "keep the names that the images are published under, or use --dataset folder:PATH")
