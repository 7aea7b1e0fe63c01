"""The free colour photographs of the scikit-image wheel, cut into crops: real images with no download."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vqbench.data.dataset import Dataset
from vqbench.data.hashing import digest_of
from vqbench.data.images import Images, Pixels
from vqbench.errors import UsageError
from vqbench.registry import DATASETS


@dataclass(frozen=True)
class Photograph:
    """One file of skimage/data, with the terms that its docstring in skimage/data/_fetchers.py states."""

    file: str
    width: int
    height: int
    sha256: str
    shows: str
    author: str
    terms: str


PHOTOGRAPHS = (
    Photograph(
        "astronaut.png", 512, 512, "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
        "the astronaut Eileen Collins", "NASA", "public domain",
    ),
    Photograph(
        "chelsea.png", 451, 300, "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
        "Chelsea the cat", "Stefan van der Walt", "CC0",
    ),
    Photograph(
        "coffee.png", 600, 400, "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
        "a cup of coffee", "Rachel Michetti", "CC0",
    ),
    Photograph(
        "hubble_deep_field.jpg", 1000, 872, "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
        "the Hubble eXtreme Deep Field", "NASA", "public domain",
    ),
    Photograph(
        "retina.jpg", 1411, 1411, "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6",
        "the fundus of a human eye", "Mikael Häggström", "CC0",
    ),
    Photograph(
        "rocket.jpg", 640, 427, "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
        "the launch of DSCOVR on a Falcon 9", "SpaceX", "public domain",
    ),
)  # fmt: skip

_TRAIN_CROPS = 2048  # of each photograph, so that a large one does not outweigh the others
_VALIDATION_CROPS = 192  # in all
_VALIDATION_CROPS_EACH = 40  # where small photographs have few, the large ones do not fill up the rest


@dataclass(frozen=True)
class Crop:
    """Where one square lies in its photograph."""

    photograph: Photograph
    top: int
    left: int

    @property
    def id(self) -> str:
        """Photograph and position: "coffee/y0016-x0450"."""
        return f"{Path(self.photograph.file).stem}/y{self.top:04d}-x{self.left:04d}"


def validation_left(photograph: Photograph, resolution: int) -> int:
    """Where the validation strip begins: the right-hand quarter, or one crop's width where that is more."""
    return photograph.width - max(photograph.width // 4, resolution)


def _evenly(span: int, count: int) -> list[int]:
    return [int(x) for x in np.linspace(0, span, count).round()]


def train_crops(photograph: Photograph, resolution: int) -> list[Crop]:
    """A regular grid of at most 2048 overlapping crops that ends where the validation strip begins."""
    down = photograph.height - resolution
    across = validation_left(photograph, resolution) - resolution
    if down < 0 or across < 0:
        return []
    square = ((down + 1) * (across + 1) / _TRAIN_CROPS) ** 0.5  # the grid's pitch, were it the same both ways
    rows = min(down + 1, _TRAIN_CROPS, max(1, round((down + 1) / max(square, 1))))
    columns = min(across + 1, _TRAIN_CROPS // rows)
    return [Crop(photograph, y, x) for y in _evenly(down, rows) for x in _evenly(across, columns)]


def validation_crops(photograph: Photograph, resolution: int) -> list[Crop]:
    """Every cell of a grid of crops in the middle of the validation strip; no two overlap."""
    left = validation_left(photograph, resolution)
    if photograph.height < resolution or left < resolution:
        return []
    rows, columns = photograph.height // resolution, (photograph.width - left) // resolution
    top = (photograph.height - rows * resolution) // 2
    left += (photograph.width - left - columns * resolution) // 2
    return [Crop(photograph, top + r * resolution, left + c * resolution) for r in range(rows) for c in range(columns)]


def _share(available: Sequence[int], total: int) -> list[int]:
    """`total` dealt out one at a time in turn, to those that still have some."""
    shares = [0] * len(available)
    while total > 0 and any(s < a for s, a in zip(shares, available, strict=True)):
        for k, limit in enumerate(available):
            if shares[k] < limit and total > 0:
                shares[k], total = shares[k] + 1, total - 1
    return shares


def _choose_validation(photographs: Sequence[Photograph], resolution: int) -> Iterator[Crop]:
    grids = [validation_crops(photograph, resolution) for photograph in photographs]
    shares = _share([min(len(grid), _VALIDATION_CROPS_EACH) for grid in grids], _VALIDATION_CROPS)
    for grid, share in zip(grids, shares, strict=True):
        yield from (grid[(2 * k + 1) * len(grid) // (2 * share)] for k in range(share))


def _verified(photograph: Photograph) -> Path:
    spec = importlib.util.find_spec("skimage")  # its folder, without the seconds that importing it takes
    if spec is None or spec.origin is None:
        raise UsageError(
            "dataset 'photos' lives in the scikit-image wheel, which is not here", "pip install scikit-image"
        )
    path = Path(spec.origin).parent / "data" / photograph.file
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        what = f"{path}: cannot be read ({error.strerror})"
        raise UsageError(what, "pip install --force-reinstall --no-deps 'scikit-image==0.26.0'") from None
    if found != photograph.sha256:
        what = f"{path} is not the photograph that 'photos' is made of: sha256 {found}, not {photograph.sha256}"
        raise UsageError(what, "pip install --force-reinstall --no-deps 'scikit-image==0.26.0'")
    return path


@functools.lru_cache(maxsize=len(PHOTOGRAPHS))
def _pixels(path: Path) -> Pixels:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    pixels.flags.writeable = False
    return pixels


class _Crops(Images):
    """Squares of photographs that are decoded once and stay in memory (15 MB)."""

    def __init__(self, crops: Sequence[Crop], resolution: int, paths: dict[str, Path]) -> None:
        self.crops = list(crops)
        self.ids = [crop.id for crop in self.crops]
        self.groups = [crop.photograph.file for crop in self.crops]
        self.resolution = resolution
        self.paths = paths

    def load(self, i: int) -> Pixels:
        """Crop `i`, (R, R, 3)."""
        crop, R = self.crops[i], self.resolution
        return _pixels(self.paths[crop.photograph.file])[crop.top : crop.top + R, crop.left : crop.left + R]


@DATASETS.register("photos")
class Photos(Dataset):
    """Crops of six free photographs (scikit-image wheel, CC0 or public domain; nothing to download)."""

    licence = "CC0 or public domain: " + "; ".join(f"{p.file} ({p.author}, {p.terms})" for p in PHOTOGRAPHS)

    def __init__(self, argument: str, resolution: int, data_root: Path | None) -> None:
        super().__init__(argument, resolution, data_root)
        self.reference = self.slug = self.protocol_name = "photos"
        used = [p for p in PHOTOGRAPHS if train_crops(p, resolution) and validation_crops(p, resolution)]
        if not used:
            largest = max(min(p.height, p.width // 2) for p in PHOTOGRAPHS)
            what = f"no photograph of 'photos' is large enough for {resolution} px"
            raise UsageError(what, f"use a resolution of {largest} or less, or --dataset folder:PATH")
        paths = {p.file: _verified(p) for p in used}
        train = [crop for p in used for crop in train_crops(p, resolution)]
        self.train = _Crops(train, resolution, paths)
        self.validation = _Crops(list(_choose_validation(used, resolution)), resolution, paths)
        self.split_rule = (
            "Validation crops lie in the right-hand quarter of each photograph (or one crop's width, if more), "
            "which no training crop touches."
        )
        self.notes = self._notes(used)
        self.train_digest = digest_of(resolution, [p.sha256 for p in used], self.train.ids)

    def hold_out(self, share: float) -> None:
        """As any dataset does; what is said of the validation crops is then said of nothing."""
        super().hold_out(share)
        self.notes = self.notes[1:]

    def _notes(self, used: Sequence[Photograph]) -> tuple[str, ...]:
        notes = [
            f"{len(self.validation)} validation crops of {len(used)} photographs: enough to see that all works, "
            "too few to rank methods"
        ]
        small = [p.file for p in PHOTOGRAPHS if p not in used]
        if small:
            notes.append(f"too small for {self.resolution} px and left out: {', '.join(small)}")
        return tuple(notes)
