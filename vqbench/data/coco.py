"""COCO 2017 as it is unpacked: one folder of images for each side."""

from __future__ import annotations

import re
from pathlib import Path

from vqbench.data.dataset import Dataset
from vqbench.data.decode import Reading
from vqbench.data.files import Files, ImageFile, list_images
from vqbench.data.layout import by_base_name, count_notes, first_folder, not_here, required_root, share_of
from vqbench.registry import DATASETS

_SIDES = {"train2017": 118_287, "val2017": 5_000}
_READING = Reading(small="enlarge", upright=False)
"""As published loaders read it; annotations, too, are of images as they are stored."""
_NAME = re.compile(r"\d{12}")
_GET = "get train2017.zip and val2017.zip from https://cocodataset.org/#download and unpack both there (19 GB)"


@DATASETS.register("coco")
class COCO(Dataset):
    """COCO 2017 (Lin et al., 2014, arXiv:1405.0312; train2017 and val2017; needs --data-root)."""

    licence = "Each photograph under the terms of its author on Flickr; the annotations, which are not read, CC BY 4.0."

    def __init__(self, argument: str, resolution: int, data_root: Path | None) -> None:
        super().__init__(argument, resolution, data_root)
        self.reference = self.slug = "coco"
        root = required_root("coco", data_root, "train2017/ and val2017/", _GET)
        train, validation = (self._side(root, side) for side in _SIDES)
        count, total = len(train) + len(validation), sum(_SIDES.values())
        self.protocol_name = f"coco2017{share_of(count, total)}"
        self.notes += count_notes(count, total)
        self.split_rule = "train2017 is trained on, val2017 is validation."
        self.take_encoded(Files.of(train), Files.of(validation), _READING)

    def _side(self, root: Path, side: str) -> list[ImageFile]:
        folder = first_folder(root / side, root / "images" / side, root / "coco" / side)
        if folder is None:
            raise not_here(side, root, f"{side}/, images/{side}/ and coco/{side}/", _GET)
        files, others = by_base_name("COCO", list_images(folder), _NAME)
        if not files:
            raise not_here("COCO image", folder, "000000000009.jpg …", _GET)
        if others:
            self.notes += (f"{others} images in {folder} are not named like COCO's and are not used",)
        return [files[name] for name in sorted(files)]
