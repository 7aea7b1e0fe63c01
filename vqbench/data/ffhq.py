"""FFHQ in its official layouts, with the official split or, on a part of it, the same 6:1 split by id."""

from __future__ import annotations

import re
from pathlib import Path

from vqbench.data.dataset import Dataset
from vqbench.data.files import Files, ImageFile, list_images
from vqbench.data.layout import by_base_name, count_notes, in_order, require_both_sides, required_root, share_of
from vqbench.errors import UsageError
from vqbench.registry import DATASETS

_TOTAL = 70_000
_FIRST_VALIDATION = 60_000
_LARGE, _THUMBNAILS = "images1024x1024", "thumbnails128x128"
_PLACE = re.compile(r"(?:\d{5}/)?\d{5}\.(?:png|jpe?g)", re.IGNORECASE)
_NUMBER = re.compile(r"[0-6]\d{4}")
_GET = "get images1024x1024 or thumbnails128x128 from https://github.com/NVlabs/ffhq-dataset (about 90 GB, or 2 GB)"


@DATASETS.register("ffhq")
class FFHQ(Dataset):
    """Flickr-Faces-HQ (Karras et al., 2019, arXiv:1812.04948; needs --data-root)."""

    licence = "CC BY-NC-SA 4.0 for the dataset; each photograph under the licence of its author (non-commercial use)."

    def __init__(self, argument: str, resolution: int, data_root: Path | None) -> None:
        super().__init__(argument, resolution, data_root)
        self.reference = self.slug = "ffhq"
        files = self._numbered(self._choose_layout(required_root("ffhq", data_root, "its images", _GET)))
        train, validation = self._split(files)
        require_both_sides(f"{len(files)} FFHQ images", train, validation, f". {self.split_rule}", _GET)
        self.take_encoded(Files.of(train), Files.of(validation))

    def _choose_layout(self, root: Path) -> Path:
        large, thumbnails = root / _LARGE, root / _THUMBNAILS
        if large.is_dir() and thumbnails.is_dir():
            chosen = thumbnails if self.resolution <= 128 else large
            self.notes += (f"{_LARGE} and {_THUMBNAILS} are both here: {chosen.name} is read at {self.resolution} px",)
            return chosen
        if thumbnails.is_dir() and self.resolution > 128:
            raise UsageError(f"{root} has {_THUMBNAILS} only, too small for {self.resolution} px", _GET)
        return large if large.is_dir() else thumbnails if thumbnails.is_dir() else root

    def _numbered(self, folder: Path) -> dict[int, ImageFile]:
        listed = list_images(folder)
        named, _ = by_base_name("FFHQ", (file for file in listed if _PLACE.fullmatch(file.id)), _NUMBER)
        if not named:
            what = f"no FFHQ image in {folder} (looked for 00000.png, 00000/00000.png, .jpg, and in {_LARGE}/ and "
            raise UsageError(f"{what}{_THUMBNAILS}/)", _GET)
        if others := len(listed) - len(named):
            self.notes += (f"{others} images in {folder} are not named like FFHQ's and are not used",)
        return {int(name): file for name, file in named.items()}

    def _split(self, files: dict[int, ImageFile]) -> tuple[list[ImageFile], list[ImageFile]]:
        self.notes += count_notes(len(files), _TOTAL)
        if max(files) >= _FIRST_VALIDATION:
            self.split_rule = "Ids 0 to 59999 are trained on, 60000 to 69999 are validation (the official split)."
            self.protocol_name = f"ffhq{share_of(len(files), _TOTAL)}"
            held_out = {number for number in files if number >= _FIRST_VALIDATION}
        else:
            self.split_rule = "An id that is 6 modulo 7 is validation, the others are trained on (6:1, as officially)."
            self.split_notes += ("no id reaches 60000: split 6:1 by id (id % 7 == 6 is validation)",)
            self.protocol_name = f"ffhq-6to1-of-{len(files)}"
            held_out = {number for number in files if number % 7 == 6}
        return in_order(files, files.keys() - held_out), in_order(files, held_out)
