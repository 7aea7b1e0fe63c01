"""CelebA-HQ in the layouts that it is passed on in, each with the split that its files allow."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path, PurePosixPath

from vqbench.data.celeba import PARTITION, find_partition, read_partition, used_sides
from vqbench.data.dataset import Dataset
from vqbench.data.files import Files, ImageFile
from vqbench.data.folder import is_validation
from vqbench.data.layout import (
    count_notes,
    first_folder,
    in_order,
    lines_of,
    not_here,
    numbered,
    require_both_sides,
    required_root,
    share_of,
)
from vqbench.errors import UsageError
from vqbench.registry import DATASETS

_TOTAL = 30_000
_MAPPING = "CelebA-HQ-to-CelebA-mapping.txt"
_FOLDERS = ("CelebAMask-HQ/CelebA-HQ-img", "CelebA-HQ-img", "celeba_hq")
_LOOKED_FOR = "CelebAMask-HQ/CelebA-HQ-img/0.jpg, celeba_hq/train/ and val/, 00000.jpg"
_GET = "get CelebAMask-HQ.zip from https://github.com/switchablenorms/CelebAMask-HQ (3 GB) and unpack it there"


@DATASETS.register("celebahq")
class CelebAHQ(Dataset):
    """CelebA-HQ (Karras et al., 2018, arXiv:1710.10196; 30,000 faces; needs --data-root)."""

    licence = "Non-commercial research and education only (CelebA's and CelebAMask-HQ's agreement)."

    def __init__(self, argument: str, resolution: int, data_root: Path | None) -> None:
        super().__init__(argument, resolution, data_root)
        self.reference = self.slug = "celebahq"
        root = required_root("celebahq", data_root, "its images", _GET)
        places = [place for place in (root / name for name in _FOLDERS) if place.is_dir()]
        folder = first_folder(*places, root)
        if folder is None:
            raise not_here("CelebA-HQ", root, _LOOKED_FOR, _GET)
        if len(places) > 1:
            names = " and ".join(place.relative_to(root).as_posix() for place in places)
            self.notes += (f"{names} are both here: {places[0].relative_to(root).as_posix()} is read",)
        files, others = self._numbered(folder)
        if others:
            self.notes += (f"{others} images in {folder} are not named by a number and are not used",)
        train, validation = self._split_by_folder(folder, files) or self._split(root, folder, files)
        require_both_sides(f"{len(files)} CelebA-HQ images", train, validation, f". {self.split_rule}", _GET)
        self.protocol_name += share_of(len(files), _TOTAL)
        self.notes += count_notes(len(files), _TOTAL)
        self.take_encoded(Files.of(train), Files.of(validation))

    def _numbered(self, folder: Path) -> tuple[dict[int, ImageFile], int]:
        files, others = numbered("CelebA-HQ", folder, digits=5)
        if files:
            return files, others
        arrays = next((p.name for p in sorted(folder.rglob("*.npy")) if p.name.startswith("imgHQ")), None)
        if arrays is not None:
            what = f"{folder} holds arrays ({arrays}), as taming-transformers reads them, and no images"
            raise UsageError(what, f"arrays are not read: {_GET}")
        raise not_here("CelebA-HQ image", folder, _LOOKED_FOR, _GET)

    def _split_by_folder(
        self, folder: Path, files: dict[int, ImageFile]
    ) -> tuple[list[ImageFile], list[ImageFile]] | None:
        sides: dict[str, list[int]] = {"train": [], "val": []}
        for number, file in files.items():
            top = PurePosixPath(file.path.relative_to(folder).as_posix()).parts[0]
            sides.setdefault(top, []).append(number)
        if not sides["train"] and not sides["val"]:
            return None
        for side, other in (("train", "val"), ("val", "train")):
            if not sides[side]:
                raise UsageError(f"{folder} has images in {other}/ but none in {side}/", f"unpack {side}/ there, too")
        if unused := len(files) - len(sides["train"]) - len(sides["val"]):
            self.notes += (f"{unused} images outside train/ and val/ are not used",)
        self.split_rule, self.protocol_name = "train/ is trained on, val/ is validation.", "celebahq-train-val"
        return in_order(files, sides["train"]), in_order(files, sides["val"])

    def _from_zero(self, files: dict[int, ImageFile]) -> dict[int, ImageFile]:
        """By the numbers that a flat folder has elsewhere: one archive at 256 px counts from 1."""
        if 0 in files:
            return files
        if max(files) != _TOTAL:
            self.notes += (
                f"neither image 0 nor image {_TOTAL} is here: numbers are taken to count from 0; in an archive that "
                "counts from 1 each image would be its neighbour",
            )
            return files
        self.notes += (f"the images are numbered from 1 to {_TOTAL}: each is one less here, as elsewhere",)
        return {n - 1: dataclasses.replace(file, id=f"{n - 1:05d}") for n, file in files.items()}

    def _split(self, root: Path, folder: Path, files: dict[int, ImageFile]) -> tuple[list[ImageFile], list[ImageFile]]:
        files = self._from_zero(files)
        if (last := max(files)) >= _TOTAL:
            what = f"{files[last].path}: the images of CelebA-HQ are numbered up to {_TOTAL - 1}"
            raise UsageError(what, "CelebA itself is --dataset celeba:140 or celeba:148")
        places = (folder.parent, folder, root)
        mapping = next((place / _MAPPING for place in places if (place / _MAPPING).is_file()), None)
        partition = find_partition(*places, root / "celeba", root.parent)
        if mapping is not None and partition is not None:
            sides, originals = read_partition(partition), _read_mapping(mapping)
            if missing := [n for n in files if n not in originals or originals[n] not in sides]:
                what = f"{len(missing)} images, {files[missing[0]].id} first, are not in {mapping} and {partition}"
                raise UsageError(what, "get both files again")
            self.split_rule = (
                f"CelebA's {PARTITION}, through {_MAPPING}: 0 is trained on, 1 is validation, 2 (test) is not used."
            )
            self.protocol_name = "celebahq-partition"
            by_side = {n: sides[originals[n]] for n in files}
            train, validation, notes = used_sides(files, by_side)
            self.notes += notes
            return train, validation
        lacks = " and ".join(name for name, file in ((_MAPPING, mapping), (PARTITION, partition)) if file is None)
        self.split_rule = "An image is validation where the sha256 of its number in five digits is 0 modulo 10."
        self.protocol_name = "celebahq-hash90"
        self.split_notes += (
            f"split by hash of the number: for CelebA's partition, {lacks} must lie beside the images",
        )
        held_out = {n for n, file in files.items() if is_validation(file.id)}
        return in_order(files, files.keys() - held_out), in_order(files, held_out)


def _read_mapping(path: Path) -> dict[int, int]:
    """Number of a CelebA-HQ image → number of the CelebA image that it is made of."""
    originals: dict[int, int] = {}
    for number, line in enumerate(lines_of(path, _GET), start=1):
        if not line.strip() or (number == 1 and line.split()[0] == "idx"):
            continue
        match = re.fullmatch(r"\s*(\d+)\s+\d+\s+(\d+)\.jpg\s*", line)
        if match is None or int(match.group(1)) in originals:
            wrong = (
                "an index that is here twice" if match else f"{line[:60]!r}, where '0 119613 119614.jpg' is expected"
            )
            raise UsageError(f"{path}, line {number}: {wrong}", _GET)
        originals[int(match.group(1))] = int(match.group(2))
    return originals
