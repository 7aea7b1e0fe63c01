"""FFHQ in its official layouts, with the official split or, on a part of it, the same 6:1 split by id."""

from __future__ import annotations

import re
from pathlib import Path

from vqbench.data.dataset import Dataset
from vqbench.data.files import FileImages, ImageFile, absolute, contents_digest, list_images
from vqbench.data.layout import count_notes, share_of
from vqbench.errors import UsageError
from vqbench.registry import DATASETS

_TOTAL = 70_000
_FIRST_VALIDATION = 60_000
_LARGE, _THUMBNAILS = "images1024x1024", "thumbnails128x128"
_PLACE = re.compile(r"(?:\d{5}/)?(\d{5})\.(?:png|jpe?g)", re.IGNORECASE)
_GET = "get images1024x1024 or thumbnails128x128 from https://github.com/NVlabs/ffhq-dataset (about 90 GB, or 2 GB)"


@DATASETS.register("ffhq")
class FFHQ(Dataset):
    """Flickr-Faces-HQ (Karras et al., 2019, arXiv:1812.04948; needs --data-root)."""

    licence = "CC BY-NC-SA 4.0 for the dataset; each photograph under the licence of its author (non-commercial use)."

    def __init__(self, argument: str, resolution: int, data_root: Path | None) -> None:
        super().__init__(argument, resolution, data_root)
        self.reference = self.slug = "ffhq"
        if data_root is None:
            raise UsageError("dataset 'ffhq' needs --data-root, the folder that holds its images", _GET)
        files = self._numbered(self._choose_layout(absolute(data_root)))
        train, validation = self._split(files)
        for side, part in (("training", train), ("validation", validation)):
            if not part:
                raise UsageError(f"{len(files)} FFHQ images are here, none of them for {side}. {self.split_rule}", _GET)
        self.train = FileImages(train, resolution, crop=False)
        self.validation = FileImages(validation, resolution, crop=True)
        self.train_digest = contents_digest(train)

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
        by_id: dict[int, ImageFile] = {}
        others = 0
        for file in list_images(folder):
            match = _PLACE.fullmatch(file.id)
            number = int(match.group(1)) if match else -1
            if not 0 <= number < _TOTAL:
                others += 1
            elif number in by_id:
                what = f"FFHQ image {number:05d} is here twice: {by_id[number].path} and {file.path}"
                raise UsageError(what, "remove one of them")
            else:
                by_id[number] = file
        if not by_id:
            what = f"no FFHQ image in {folder} (looked for 00000.png, 00000/00000.png, .jpg, and in {_LARGE}/ and "
            raise UsageError(f"{what}{_THUMBNAILS}/)", _GET)
        if others:
            self.notes += (f"{others} images in {folder} are not named like FFHQ's and are not used",)
        return by_id

    def _split(self, files: dict[int, ImageFile]) -> tuple[list[ImageFile], list[ImageFile]]:
        official = max(files) >= _FIRST_VALIDATION
        if official:
            self.split_rule = "Ids 0 to 59999 are trained on, 60000 to 69999 are validation (the official split)."
            held_out = {number for number in files if number >= _FIRST_VALIDATION}
        else:
            self.split_rule = "An id that is 6 modulo 7 is validation, the others are trained on (6:1, as officially)."
            held_out = {number for number in files if number % 7 == 6}
        self._name_split(files, official)
        ordered = sorted(files)
        train = [self._renamed(n, files[n]) for n in ordered if n not in held_out]
        return train, [self._renamed(n, files[n]) for n in ordered if n in held_out]

    def _name_split(self, files: dict[int, ImageFile], official: bool) -> None:
        count = len(files)
        self.notes += count_notes(count, _TOTAL)
        if official:
            self.protocol_name = f"ffhq{share_of(count, _TOTAL)}"
        else:
            self.protocol_name = f"ffhq-6to1-of-{count}"
            self.split_notes += ("no id reaches 60000: split 6:1 by id (id % 7 == 6 is validation)",)

    @staticmethod
    def _renamed(number: int, file: ImageFile) -> ImageFile:
        """The same file under its number: an id must not depend on the layout it was unpacked in."""
        return ImageFile(f"{number:05d}", file.path, file.size, file.mtime_ns, file.ctime_ns)
