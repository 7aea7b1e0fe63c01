"""Any folder of images, with a split by `train/` and `val/` or by hash of the name."""

from __future__ import annotations

import hashlib
import posixpath
import re
import shlex
import unicodedata
from pathlib import Path, PurePosixPath
from typing import ClassVar

from vqbench.data.dataset import Dataset, path_safe
from vqbench.data.files import Files, ImageFile, absolute, list_images
from vqbench.errors import UsageError
from vqbench.registry import DATASETS

_BY_HASH = "An image is validation where the sha256 of its relative path is 0 modulo 10 (about 10 %)."
_BY_FOLDER = "train/ is trained on, val/ is validation."
_LIKE_A_SIDE = {
    side: re.compile(rf"(?:{names})(?:[-_ .]?(?:set|data|images|split|\d+))*", re.IGNORECASE)
    for side, names in (("train", "train|training"), ("val", "val|valid|validation|test|testing|eval|dev"))
}


def is_validation(name: str) -> bool:
    """The split by hash: true for about one name in ten, whatever else is in the folder."""
    # macOS stores "é" decomposed: the same file must not change sides between machines
    return int(hashlib.sha256(unicodedata.normalize("NFC", name).encode()).hexdigest(), 16) % 10 == 0


@DATASETS.register("folder")
class Folder(Dataset):
    """Any folder of images (folder:PATH; PNG, JPEG, WebP, BMP or TIFF; train/ and val/, or a split by hash)."""

    takes_argument: ClassVar[str] = "PATH"

    def __init__(self, argument: str, resolution: int, data_root: Path | None) -> None:
        super().__init__(argument, resolution, data_root)
        root = absolute(argument)
        self.reference = f"folder:{root}"
        self.slug = f"folder-{path_safe(root.name)}"
        files = list_images(root)
        if not files:
            raise UsageError(f"{root} holds no image (.png .jpg .jpeg .webp .bmp .tif .tiff)", "give another folder")
        train, validation = self._split_by_folder(root, files) or self._split_by_hash(root, files)
        self.take_encoded(Files.of(train), Files.of(validation))

    def _split_by_folder(self, root: Path, files: list[ImageFile]) -> tuple[list[ImageFile], list[ImageFile]] | None:
        # by its entries: a disk that ignores case would find train/ where there is Train/, whose images have other ids
        present = [side for side in ("train", "val") if any(f.name == side and f.is_dir() for f in root.iterdir())]
        if not present:
            return None
        if len(present) == 1:
            missing = "val" if present == ["train"] else "train"
            like = [name for name, side in _folders_like_sides(files).get("", {}).items() if side == missing]
            name = f"rename {like[0]}/ to {missing}/" if len(like) == 1 else f"name the other half {missing}/"
            hint = f"{name}, or split one of them by hash: --dataset folder:{root / present[0]}"
            raise UsageError(f"{root} has {present[0]}/ but no {missing}/", hint)
        train = [f for f in files if f.id.startswith("train/")]
        validation = [f for f in files if f.id.startswith("val/")]
        for side, part in (("train", train), ("val", validation)):
            if not part:
                raise UsageError(f"{root / side} holds no image", f"put images in {side}/, or remove both folders")
        left_out = len(files) - len(train) - len(validation)
        if left_out:
            self.notes = (f"{left_out} images outside train/ and val/ are not used",)
        self.split_rule, self.protocol_name = _BY_FOLDER, f"{self.slug}-train-val"
        return train, validation

    def _split_by_hash(self, root: Path, files: list[ImageFile]) -> tuple[list[ImageFile], list[ImageFile]]:
        train = [f for f in files if not is_validation(f.id)]
        validation = [f for f in files if is_validation(f.id)]
        unread = [_unread_split(root, parent, like) for parent, like in _folders_like_sides(files).items()]
        if not train or not validation:
            side = "validation" if train else "training"
            what = f"the split by hash leaves no {side} image among the {len(files)} in {root}"
            hint = unread[0] if unread else f"put the images in {root}/train/ and {root}/val/, or add more"
            if len(files) == 1:
                what = f"{root} holds only one image ({files[0].id}); training and validation need one each"
                hint = "give another folder"
            self.empty_side = UsageError(what, hint)
        self.has_own_split = False
        self.split_rule, self.protocol_name = _BY_HASH, f"{self.slug}-hash90"
        self.split_notes = (
            f"{len(files):,} images split by hash of the path: {{train}} train, {{validation}} validation",
            *unread[:3],
        )
        return train, validation


def _folders_like_sides(files: list[ImageFile]) -> dict[str, dict[str, str]]:
    """Folders with names like those of a split: parent folder → name → the side that it looks like.

    Below the listed folder itself one is enough, deeper it takes both sides: "train" may be a class, too.
    """
    found: dict[str, dict[str, str]] = {}
    holding = {PurePosixPath(posixpath.dirname(file.id)) for file in files}
    for folder in sorted({folder for path in holding for folder in (path, *path.parents)}):
        for side, name in _LIKE_A_SIDE.items():
            if name.fullmatch(folder.name):
                found.setdefault(str(folder.parent).removeprefix("."), {})[folder.name] = side
    return {parent: like for parent, like in found.items() if not parent or len(set(like.values())) == 2}


def _unread_split(root: Path, parent: str, like: dict[str, str]) -> str:
    """What is said of a split that is not read, since its folders have other names or lie deeper."""
    place = root / parent
    names = " and ".join(f"{name}/" for name in like)
    seen = f"{names} in {place} look like a split, but were not read as one"
    if set(like) >= {"train", "val"}:
        return f"{seen}; --dataset folder:{place} does"
    renames = []
    for side in ("train", "val"):
        names_of_side = sorted((name for name in like if like[name] == side), key=lambda n: n[:3].lower() != side[:3])
        if names_of_side and side not in names_of_side:
            renames.append(f"mv {shlex.quote(str(place / names_of_side[0]))} {shlex.quote(str(place / side))}")
    return f"{seen}: that takes folders named train/ and val/ ({'; '.join(renames)})"
