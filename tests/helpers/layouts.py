"""Miniatures of the layouts in which a set of images lies on a disk."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SYNSETS = tuple(f"n0{k}440764" for k in range(1, 9))
Images = Mapping[str, tuple[str, bytes]]
"""Name in ImageNet, without suffix → synset and JPEG."""


def jpeg(seed: int, width: int = 40, height: int = 36) -> bytes:
    """A smooth image of a few hundred bytes; one in seven is too small for 32 px."""
    draw, buffer = np.random.default_rng(seed), io.BytesIO()
    if seed % 7 == 0:
        width, height = 28, 30
    small = Image.fromarray(draw.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    exif = Image.Exif()
    if seed % 11 == 0:
        exif[0x0112] = 6
    small.resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90, exif=exif)
    return buffer.getvalue()


def imagenet(train: int = 160, validation: int = 40) -> dict[str, Images]:
    """Both sides of an ImageNet of 8 classes."""

    def of(k: int) -> str:
        return SYNSETS[k % len(SYNSETS)]

    return {
        "train": {f"{of(k)}_{k * 37 % 1000}": (of(k), jpeg(k)) for k in range(train)},
        "validation": {f"ILSVRC2012_val_{k + 1:08d}": (of(k * 3), jpeg(10_000 + k)) for k in range(validation)},
    }


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def as_folders(root: Path, sides: Mapping[str, Images]) -> Path:
    for side, folder in (("train", "train"), ("validation", "val")):
        for name, (synset, data) in sides[side].items():
            write(root / folder / synset / f"{name}.JPEG", data)
    return root


def as_kaggle(root: Path, sides: Mapping[str, Images]) -> Path:
    base = root / "ILSVRC" / "Data" / "CLS-LOC"
    for name, (synset, data) in sides["train"].items():
        write(base / "train" / synset / f"{name}.JPEG", data)
    for name, (_, data) in sides["validation"].items():
        write(base / "val" / f"{name}.JPEG", data)
    write(base / "test" / "ILSVRC2012_test_00000001.JPEG", jpeg(1))
    rows = [f"{name},{synset} 85 1 499 272" for name, (synset, _) in sides["validation"].items()]
    write(root / "LOC_val_solution.csv", "\n".join(["ImageId,PredictionString", *rows, ""]).encode())
    return root


def chunks(images: Images, count: int) -> list[list[tuple[str, str, bytes]]]:
    """Shuffled, as published shards are."""
    items = [(name, *what) for name, what in images.items()]
    order = np.random.default_rng(5).permutation(len(items))
    return [[items[i] for i in part] for part in np.array_split(order, count)]


def parquet(
    path: Path, paths: Sequence[str | None], images: Sequence[bytes | None], group: int = 7, **columns: Sequence[int]
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": data, "path": name} for name, data in zip(paths, images, strict=True)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(rows, kind), **columns}), path, row_group_size=group)
    return path


def as_parquet(root: Path, sides: Mapping[str, Images], shards: int = 3) -> Path:
    for side, images in sides.items():
        for k, part in enumerate(chunks(images, shards)):
            names = [f"{name}_{synset}.JPEG" for name, synset, _ in part]
            labels = [SYNSETS.index(synset) for _, synset, _ in part]
            parquet(
                root / "data" / f"{side}-{k:05d}-of-{shards:05d}.parquet", names, [d for *_, d in part], label=labels
            )
    parquet(root / "data" / "test-00000-of-00001.parquet", ["ILSVRC2012_test_00000001.JPEG"], [jpeg(1)], label=[-1])
    return root


def tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def as_tars(root: Path, sides: Mapping[str, Images], shards: int = 3, by_key: bool = False) -> Path:
    """With `by_key`, samples are numbered, and the file's name stands in the JSON beside the image."""
    number = 0
    for side, images in sides.items():
        for k, part in enumerate(chunks(images, shards)):
            members = []
            for name, synset, data in part:
                key, number = (f"{number:08d}" if by_key else name), number + 1
                members += [(f"{key}.cls", str(SYNSETS.index(synset)).encode()), (f"{key}.jpg", data)]
                members += [(f"{key}.json", json.dumps({"filename": f"{name}.JPEG"}).encode())]
            tar(root / f"imagenet1k-{side}-{k:04d}.tar", members)
    return root
