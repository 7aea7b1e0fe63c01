"""Miniatures of published sets in the layouts that users have, made up; each returns the folder for `--data-root`."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import lmdb
import nibabel
import numpy as np
from PIL import Image

MODALITIES = ("t1n", "t1c", "t2w", "t2f")
BRAIN = (26, 34, 20)
"""Voxels of a made-up volume."""


def photograph(seed: int, width: int = 40, height: int = 40) -> Image.Image:
    """A smooth random one."""
    noise = np.random.default_rng(seed).integers(0, 256, (max(height // 4, 2), max(width // 4, 2), 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def write_photograph(path: Path, seed: int, width: int = 40, height: int = 40) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    photograph(seed, width, height).save(path)
    return path


def write_celebahq(root: Path, numbers: Iterable[int], place: str = "CelebAMask-HQ/CelebA-HQ-img/{}.jpg") -> Path:
    """One image for each number at `place`."""
    for number in numbers:
        write_photograph(root / place.format(number), number)
    return root


def write_mapping(path: Path, originals: dict[int, int]) -> Path:
    """CelebA-HQ-to-CelebA-mapping.txt: number of an image → number of its CelebA image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = (f"{k:<10} {n - 1:<10} {n:06d}.jpg     " for k, n in originals.items())
    path.write_text("\n".join(("idx        orig_idx   orig_file", *rows)) + "\n")
    return path


def write_partition(path: Path, sides: dict[int, int]) -> Path:
    """list_eval_partition.txt: number of a CelebA image → 0, 1 or 2; as CSV where it is called so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_csv = path.suffix == ".csv"
    rows = [f"{n:06d}.jpg{',' if is_csv else ' '}{side}" for n, side in sides.items()]
    path.write_text("\n".join((["image_id,partition"] if is_csv else []) + rows) + "\n")
    return path


def write_celeba(root: Path, sides: dict[int, int], place: str = "celeba/img_align_celeba") -> Path:
    """Aligned faces of 178×218, and their partition beside the folder."""
    for number in sides:
        write_photograph(root / place / f"{number:06d}.jpg", number, 178, 218)
    write_partition(root / "celeba" / "list_eval_partition.txt", sides)
    return root


def write_coco(root: Path, train: int = 32, validation: int = 8) -> Path:
    """Photographs of several shapes."""
    for side, count in (("train2017", train), ("val2017", validation)):
        for k in range(count):
            number = 9 + 7 * k + (side == "val2017")
            write_photograph(root / side / f"{number:012d}.jpg", number, 48 + 4 * (k % 5), 64 - 4 * (k % 3))
    return root


def write_lmdb(folder: Path, values: dict[str, bytes]) -> Path:
    """What LSUN's own tool writes: key → encoded image."""
    folder.mkdir(parents=True, exist_ok=True)
    with lmdb.open(str(folder), map_size=2**26) as environment, environment.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key.encode(), value)
    return folder


def encoded(seed: int, width: int = 48, height: int = 40, kind: str = "WEBP") -> bytes:
    file = io.BytesIO()
    photograph(seed, width, height).save(file, kind)
    return file.getvalue()


def write_lsun(root: Path, category: str = "bedroom", train: int = 32, validation: int = 8) -> Path:
    """Two LMDBs of WebP images of a short side of 40, as LSUN's are 256."""
    for side, count, first in (("train", train, 0), ("val", validation, 1000)):
        values = {f"{(first + k) * 7919 % 10007:040x}": encoded(first + k) for k in range(count)}
        write_lmdb(root / f"{category}_{side}_lmdb", values)
    return root


def brain(seed: int, shape: Sequence[int] = BRAIN) -> np.ndarray:
    """An ellipsoid of arbitrary intensities in a volume of zeros, int16 (X, Y, Z)."""
    draw = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = sum(axis**2 for axis in axes) < 0.8
    waves = sum(np.sin(draw.uniform(2, 6) * axis + draw.uniform(0, 6)) for axis in axes)
    values = 400 + 100 * waves + draw.normal(0, 10, inside.shape)
    return np.where(inside, values, 0).astype(np.int16)


def write_volume(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)
    return path


def write_case(root: Path, name: str, seed: int, modalities: Sequence[str] = MODALITIES, mark: str = "-") -> Path:
    """A case of BraTS with its labels."""
    for k, modality in enumerate(modalities):
        write_volume(root / name / f"{name}{mark}{modality}.nii.gz", brain(1000 * seed + k))
    write_volume(root / name / f"{name}{mark}seg.nii.gz", np.zeros(BRAIN, np.uint8))
    return root


def write_brats(root: Path, subjects: int = 10, visits: int = 1) -> Path:
    """`training_data1_v2/` with the visits of some subjects."""
    for subject in range(subjects):
        for visit in range(100, 100 + visits):
            write_case(root / "training_data1_v2", f"BraTS-GLI-{subject:05d}-{visit}", 10 * subject + visit)
    return root
