"""CIFAR-10 as torchvision reads it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vqbench.data.dataset import Dataset
from vqbench.data.files import absolute
from vqbench.data.hashing import digest_of
from vqbench.data.images import Images, Pixels
from vqbench.data.layout import required_root
from vqbench.errors import UsageError
from vqbench.registry import DATASETS

_FOLDER = "cifar-10-batches-py"
_TRAIN_FILES = tuple(f"data_batch_{k}" for k in range(1, 6))
_TEST_FILES = ("test_batch",)
_COUNTS = {True: 50_000, False: 10_000}


def _torchvision_cifar10(root: Path, **options: Any) -> Any:
    from torchvision.datasets import CIFAR10  # seconds to import, and torch with it

    return CIFAR10(str(root), **options)


@functools.lru_cache(maxsize=2)
def _read(root: Path, train: bool) -> Pixels:
    try:
        pixels: Pixels = np.asarray(_torchvision_cifar10(root, train=train, download=False).data)
    except RuntimeError:  # torchvision has compared the md5 sums before it unpickles anything
        what = f"a file in {root / _FOLDER} is not CIFAR-10's (its md5 differs)"
        raise UsageError(what, _hint(root)) from None
    pixels.flags.writeable = False
    return pixels


def _hint(root: Path | None) -> str:
    return f"vqbench prepare --dataset cifar10 --data-root {root or 'DIR'} gets it (170 MB)"


class _Batches(Images):
    """One side of CIFAR-10, read into memory when first needed (150 MB)."""

    def __init__(self, root: Path, train: bool) -> None:
        self.root = root
        self.train = train
        self.ids: Sequence[str] = [f"{'train' if train else 'test'}/{i:05d}" for i in range(_COUNTS[train])]

    def load(self, i: int) -> Pixels:
        """Image `i`, (32, 32, 3)."""
        image: Pixels = _read(self.root, self.train)[i]
        return image


@DATASETS.register("cifar10")
class CIFAR10(Dataset):
    """CIFAR-10 (Krizhevsky, 2009; 32 px, 50,000 train and 10,000 test images; needs --data-root)."""

    licence = "No licence is stated; the authors ask for citation of the 2009 technical report."

    def __init__(self, argument: str, resolution: int, data_root: Path | None) -> None:
        super().__init__(argument, resolution, data_root)
        if resolution != 32:
            raise UsageError(f"cifar10 is 32 px, not {resolution}", "use a recipe with a resolution of 32")
        self.reference = self.slug = self.protocol_name = "cifar10"
        root = required_root("cifar10", data_root, f"{_FOLDER}/", _hint(None))
        sizes = self._sizes(root)
        self.train, self.validation = _Batches(root, train=True), _Batches(root, train=False)
        self.split_rule = "The 50,000 training images are trained on, the 10,000 test images are validation."
        # sizes are enough: torchvision compares the md5 of every file with CIFAR-10's before it reads one
        self.train_digest = digest_of(*((name, sizes[name]) for name in _TRAIN_FILES))

    @staticmethod
    def _sizes(root: Path) -> dict[str, int]:
        sizes = {}
        for name in sorted((*_TRAIN_FILES, *_TEST_FILES, "batches.meta")):
            path = root / _FOLDER / name
            if not path.is_file():
                raise UsageError(f"CIFAR-10 is not here: no file {path}", _hint(root))
            sizes[name] = path.stat().st_size
        return sizes

    @classmethod
    def download(cls, data_root: Path | None) -> None:
        """Get the archive through torchvision and unpack it below `data_root`; does nothing where it is there."""
        if data_root is None:
            raise UsageError("dataset 'cifar10' needs --data-root, the folder to put it in", _hint(None))
        root = absolute(data_root)
        try:
            _torchvision_cifar10(root, train=True, download=True)
        except (OSError, RuntimeError) as error:
            what = f"CIFAR-10 could not be downloaded into {root} ({error})"
            hint = f"get https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz elsewhere and unpack it in {root}"
            raise UsageError(what, hint) from None
