"""CelebA, aligned and cropped: its own partition, and the middle square of the face that is stated."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from PIL import Image

from vqbench.data.dataset import Dataset
from vqbench.data.decode import ImageFileError, Reading, decode_image, measure_image
from vqbench.data.encoded import Encoded
from vqbench.data.files import ImageFile, contents_digest, listing_key
from vqbench.data.hashing import digest_of
from vqbench.data.images import centre_crop
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

PARTITION = "list_eval_partition.txt"
_TRAIN, _VALIDATION = 0, 1  # what the partition calls the sides; 2 is the test side
_TOTAL = 202_599
_WIDTH, _HEIGHT = 178, 218
_AS_IT_IS = Reading(whole=True)
_FOLDER = "img_align_celeba"
_CROPS = ("140", "148")
_PARTITION_NAMES = (PARTITION, "list_eval_partition.csv")
_GET = "get img_align_celeba.zip and list_eval_partition.txt from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"


def find_partition(*folders: Path) -> Path | None:
    """CelebA's partition in one of the folders or in their `Eval/`, as text or, as it is also passed on, as CSV."""
    places = [folder / below / name for folder in folders for below in ("", "Eval") for name in _PARTITION_NAMES]
    return next((place for place in places if place.is_file()), None)


def read_partition(path: Path) -> dict[int, int]:
    """Number of a CelebA image → its side (0 train, 1 validation, 2 test). Raises UsageError for any other line."""
    sides: dict[int, int] = {}
    for number, line in enumerate(lines_of(path, _GET), start=1):
        if not line.strip() or (number == 1 and line.startswith("image_id")):
            continue
        match = re.fullmatch(r"\s*(\d+)\.(?:jpg|png)[\s,]+([012])\s*", line)
        if match is None:
            raise UsageError(f"{path}, line {number}: {line[:60]!r}, where '000001.jpg 0' is expected", _GET)
        image, side = int(match.group(1)), int(match.group(2))
        if image in sides:
            raise UsageError(f"{path}, line {number}: image {image:06d} is here twice", _GET)
        sides[image] = side
    return sides


def used_sides(
    files: Mapping[int, ImageFile], sides: Mapping[int, int]
) -> tuple[list[ImageFile], list[ImageFile], tuple[str, ...]]:
    """The training and the validation images among `files` by number → side, and what is to be said of the others."""
    train, validation = ([n for n, of in sides.items() if of == side] for side in (_TRAIN, _VALIDATION))
    test = len(sides) - len(train) - len(validation)
    notes = (f"{test:,} images are of CelebA's test side and are not used",) if test else ()
    return in_order(files, train), in_order(files, validation), notes


class _MiddleSquares(Encoded):
    """The middle square of each image of 178×218 pixels, as it is."""

    def __init__(self, files: Sequence[ImageFile], square: int) -> None:
        self.files, self.square = list(files), square
        self.ids = [file.id for file in files]
        self.key = digest_of(listing_key(self.files), "middle square", square)

    def read(self, i: int) -> bytes:
        """The square as a bitmap. Raises ImageFileError."""
        path, bitmap = self.files[i].path, io.BytesIO()
        height, width = measure_image(path, _WIDTH, _AS_IT_IS)
        if (width, height) != (_WIDTH, _HEIGHT):
            what = f"{path}: {width}×{height} pixels, where CelebA's have {_WIDTH}×{_HEIGHT}"
            raise ImageFileError(what, "use the aligned images, img_align_celeba")
        pixels = decode_image(path, _WIDTH, _AS_IT_IS)
        Image.fromarray(centre_crop(pixels, self.square)).save(bitmap, "BMP")
        return bitmap.getvalue()

    def name(self, i: int) -> str:
        """The file."""
        return str(self.files[i].path)

    def digest(self) -> str:
        """Of the files, and of what is cut out of them."""
        return digest_of(contents_digest(self.files), "middle square", self.square)


@DATASETS.register("celeba")
class CelebA(Dataset):
    """CelebA, aligned (Liu et al., 2015, arXiv:1411.7766; celeba:140 or celeba:148; needs --data-root)."""

    takes_argument: ClassVar[str] = "140|148"
    licence = "Non-commercial research only, as the authors state; the images are not theirs, and may not be passed on."

    def __init__(self, argument: str, resolution: int, data_root: Path | None) -> None:
        super().__init__(argument, resolution, data_root)
        if argument not in _CROPS:
            what = f"'celeba:{argument}' states no known crop: published numbers use the middle 140 or 148 pixels"
            raise UsageError(what, "give it as celeba:140 or celeba:148")
        root = required_root("celeba", data_root, f"{_FOLDER}/ and {PARTITION}", _GET)
        self.reference, self.slug = f"celeba:{argument}", f"celeba-crop{argument}"
        train, validation = self._split(root)
        self.take_encoded(_MiddleSquares(train, int(argument)), _MiddleSquares(validation, int(argument)))
        self.whatever_split = (
            f"Of each image of {_WIDTH}×{_HEIGHT} the middle {argument}×{argument} pixels are cut out before resizing."
        )
        rule = f"CelebA's {PARTITION}: 0 is trained on, 1 is validation, 2 (test) is not used."
        self.split_rule = f"{rule} {self.whatever_split}"

    def _split(self, root: Path) -> tuple[list[ImageFile], list[ImageFile]]:
        folder = first_folder(root / "celeba" / _FOLDER, root / _FOLDER)
        if folder is None and root.name == _FOLDER:
            folder = first_folder(root)
        if folder is None:
            raise not_here("CelebA", root, f"{_FOLDER}/000001.jpg, also in celeba/", _GET)
        partition = find_partition(folder.parent, folder, root)
        if partition is None:
            raise not_here(f"CelebA partition beside {_FOLDER}/", folder.parent, " or ".join(_PARTITION_NAMES), _GET)
        sides = read_partition(partition)
        files, others = numbered("CelebA", folder, digits=6)
        unlisted = [number for number in files if number not in sides]
        listed = [number for number in files if number in sides]
        if not listed:
            raise not_here(f"image that {partition.name} lists", folder, "000001.jpg …", _GET)
        if others or unlisted:
            self.notes += (f"{others + len(unlisted)} images in {folder} are not in {partition.name} and not used",)
        train, validation, notes = used_sides(files, {number: sides[number] for number in listed})
        require_both_sides(f"{len(listed)} CelebA images", train, validation, f" by {partition.name}", _GET)
        self.protocol_name = f"{self.slug}{share_of(len(listed), _TOTAL)}"
        self.notes += (*count_notes(len(listed), _TOTAL), *notes)
        return train, validation
