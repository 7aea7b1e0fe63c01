"""Where encoded images come from: files, members of tars, rows of parquet; ImageNet in every layout; the index."""

from __future__ import annotations

import gzip
import hashlib
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import layouts
from helpers.commands import settings, typed
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from vqbench.data import encoded, index, parquet, tars
from vqbench.data.checking import verify_kept
from vqbench.data.dataset import DataReference, Dataset, open_dataset
from vqbench.data.decode import ImageFileError, Reading, decode_image
from vqbench.data.files import FileImages, contents_digest, list_images
from vqbench.data.hashing import HeldOut, by_hash, digest_of
from vqbench.data.images import Chosen, Images
from vqbench.data.kept import Making
from vqbench.data.names import Names, PickedNames
from vqbench.data.prepare import is_cached, prepare_train, prepare_validation, verify
from vqbench.data.stream import TrainingStream
from vqbench.errors import UsageError

LAYOUTS: dict[str, tuple[Callable[..., Path], str]] = {
    "folders": (layouts.as_folders, "class folders"),
    "kaggle": (layouts.as_kaggle, "Kaggle's tree with a flat val/"),
    "parquet": (layouts.as_parquet, "parquet shards"),
    "tars": (layouts.as_tars, "WebDataset tars"),
}
Sides = Mapping[str, layouts.Images]


@pytest.fixture(scope="module")
def sides() -> Sides:
    return layouts.imagenet()


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory, sides: Sides) -> dict[str, Path]:
    return {kind: make(tmp_path_factory.mktemp(kind), sides) for kind, (make, _) in LAYOUTS.items()}


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home in which a listing of what was made just now is kept."""
    monkeypatch.setenv("VQBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(index, "SETTLED_S", -3600.0)
    return tmp_path / "home"


def opened(root: Path, argument: str = "") -> Dataset:
    return open_dataset(f"imagenet{argument}", 32, root)


# one set in every layout


def test_every_layout_gives_the_same_images_under_the_same_names(
    roots: dict[str, Path], sides: Sides, tmp_path: Path
) -> None:
    found = {kind: opened(root) for kind, root in roots.items()}
    for kind, dataset in found.items():
        assert LAYOUTS[kind][1] in dataset.notes[0]
        assert "160 training and 40 validation images; ImageNet has 1,281,167 and 50,000" in dataset.notes[0]
        assert (dataset.reference, dataset.protocol_name) == ("imagenet", "imagenet-part-160-40")
        assert list(dataset.train.ids) == sorted(sides["train"])
        assert list(dataset.validation.ids) == sorted(sides["validation"])
        for images, side in ((dataset.train, "train"), (dataset.validation, "validation")):
            for i, name in enumerate(images.ids):
                assert images.encoded(i) == sides[side][name][1]
    ends = [(name, len(data), hashlib.sha256(data).hexdigest()) for name, (_, data) in sorted(sides["train"].items())]
    expected = hashlib.sha256("\0".join(map(repr, ends)).encode()).hexdigest()
    assert {dataset.train_digest for dataset in found.values()} == {expected}
    assert len({dataset.split_rule for dataset in found.values()}) == 1
    assert len({dataset.small_images for dataset in found.values()}) == 1
    assert "23 of 160 training images" in found["tars"].small_images
    assert len({prepare_validation(dataset, tmp_path / kind).digest for kind, dataset in found.items()}) == 1


def test_small_images_are_enlarged_and_exif_is_ignored(roots: dict[str, Path], sides: Sides) -> None:
    dataset = opened(roots["tars"])
    for i, name in enumerate(dataset.train.ids):
        pixels = decode_image(sides["train"][name][1], 32, Reading(small="enlarge", upright=False))
        assert np.array_equal(dataset.train.load(i), pixels)
        assert dataset.train.measure(i) == pixels.shape[:2]
    assert dataset.validation.measure(3) == (32, 32) == dataset.validation.load(3).shape[:2]


def test_a_list_of_files_keeps_its_key_of_yesterday(tmp_path: Path) -> None:
    layouts.write(tmp_path / "a.jpg", layouts.jpeg(1))
    files = list_images(tmp_path)
    images = FileImages(files, 32, False)
    assert images.content_key == digest_of(*((str(f.path), f.id, f.size, f.mtime_ns, f.ctime_ns) for f in files))
    assert images.read_as(Reading(small="enlarge"), crop=True).load(0).shape == (32, 32, 3)
    assert images.short_side(0) == 36


@pytest.mark.parametrize("kind", LAYOUTS)
def test_labels_are_kept(kind: str, roots: dict[str, Path], sides: Sides) -> None:
    labels = opened(roots[kind]).labels  # type: ignore[attr-defined]
    assert dict(labels) == {name: synset for images in sides.values() for name, (synset, _) in images.items()}
    assert "n09999999_1" not in labels


def test_labels_of_a_flat_val_need_kaggle_s_file(tmp_path: Path, sides: Sides) -> None:
    root = layouts.as_kaggle(tmp_path, sides)
    (root / "LOC_val_solution.csv").unlink()
    labels = opened(root).labels  # type: ignore[attr-defined]
    assert set(labels) == set(sides["train"])


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_subset_is_the_same_in_every_layout(kind: str, roots: dict[str, Path], tmp_path: Path) -> None:
    listed = layouts.write(tmp_path / "some.txt", b"n01440764 tench\n# and\nn03440764\n")
    dataset = opened(roots[kind], f":{listed}")
    sha256 = hashlib.sha256(listed.read_bytes()).hexdigest()
    assert dataset.protocol_name == f"imagenet-some-{sha256[:12]}-part-40-10"
    assert sha256 in dataset.split_rule
    (tmp_path / "list.txt").write_text(dataset.train.ids[0])
    anew = open_dataset(dataset.reference, 32, roots[kind], split_list=tmp_path / "list.txt")
    assert sha256 in anew.split_rule
    assert anew.notes[:-2] == dataset.notes[:-1]
    assert {name[:9] for name in dataset.train.ids} == {"n01440764", "n03440764"}
    assert (len(dataset.train), len(dataset.validation), dataset.reference) == (40, 10, f"imagenet:{listed}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n01440764\nn01440764\n", "names n01440764 twice"),
        ("tench\n", "names tench, which is no synset"),
        ("\n", "names no synset"),
        ("n01440764\nn99999999\n", "1 of the 2 classes of .* are not here: n99999999"),
    ],
)
def test_a_subset_that_cannot_be_had_is_refused(
    text: str, message: str, roots: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        opened(roots["folders"], f":{layouts.write(tmp_path / 'some.txt', text.encode())}")


def test_a_subset_of_a_flat_val_without_labels_is_refused(tmp_path: Path, sides: Sides) -> None:
    root = layouts.as_kaggle(tmp_path / "k", sides)
    (root / "LOC_val_solution.csv").unlink()
    with pytest.raises(UsageError, match="classes of 40 images are not known") as error:
        opened(root, f":{layouts.write(tmp_path / 'some.txt', b'n01440764')}")
    assert "LOC_val_solution.csv" in error.value.hint


def test_numbered_samples_are_mapped_by_the_json_beside_them(
    tmp_path: Path, roots: dict[str, Path], sides: Sides
) -> None:
    dataset = opened(layouts.as_tars(tmp_path / "named", sides, by_key=True))
    assert dataset.train_digest == opened(roots["folders"]).train_digest
    numbered = [(f"{k:06d}.jpg", layouts.jpeg(k)) for k in range(4)]
    for side in ("train", "val"):
        layouts.tar(tmp_path / "numbered" / f"{side}-0.tar", numbered)
    dataset = opened(tmp_path / "numbered")
    assert "8 images are named by the keys of their shards, which are not ImageNet's names" in dataset.notes[1]
    assert list(dataset.train.ids) == ["000000", "000001", "000002", "000003"]


def torchvision(root: Path, sides: Sides) -> None:
    layouts.write(layouts.as_folders(root, sides) / "meta.bin", b"")


def test_torchvision_s_folders_and_one_of_kaggle_s_inner_folders_are_known(tmp_path: Path, sides: Sides) -> None:
    torchvision(tmp_path / "t", sides)
    assert "torchvision's folders" in opened(tmp_path / "t").notes[0]
    layouts.as_kaggle(tmp_path / "k", sides)
    for inner in ("ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC"):
        assert len(opened(tmp_path / "k" / inner).train) == 160


FEW = {
    "train": {
        "n01440764_1": ("n01440764", layouts.jpeg(1)),
        "n02440764_2": ("n02440764", layouts.jpeg(2)),
        "n02440764_3": ("n02440764", layouts.jpeg(3)),
    },
    "validation": {"ILSVRC2012_val_00000001": ("n01440764", layouts.jpeg(3))},
}


def few(root: Path) -> Path:
    return layouts.as_folders(root, FEW)


def without_val(root: Path) -> None:
    few(root)
    (root / "val").rename(root / "other")


def class_tars(root: Path) -> None:
    few(root)
    layouts.tar(root / "train" / "n03440764.tar", [("n03440764_1.JPEG", layouts.jpeg(1))])


def empty_class(root: Path) -> None:
    few(root)
    (root / "train" / "n03440764").mkdir()


def twice(root: Path) -> None:
    few(root)
    layouts.write(root / "train" / "n02440764" / "n01440764_1.JPEG", layouts.jpeg(9))


def other_names(root: Path) -> None:
    for side in ("train", "val"):
        layouts.write(root / side / "cats" / "1.jpg", layouts.jpeg(1))


def elsewhere(root: Path) -> None:
    layouts.write(root / "cats" / "a.jpg", b"")


def archives(root: Path) -> None:
    layouts.write(root / "ILSVRC2012_img_train.tar", b"x")


def one_side_of_shards(root: Path) -> None:
    layouts.parquet(root / "train-0.parquet", ["a"], [b"a"])


LOOKED = r"looked for train/ and val/, ILSVRC/Data/CLS-LOC/, and shards .*; it has"
TWICE = r"two images are called 'n01440764_1': .*n0.440764/n01440764_1\.JPEG and .*n0.440764/n01440764_1\.JPEG"
BROKEN: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "nothing": (Path.mkdir, rf"{LOOKED} nothing", "image-net.org"),
    "elsewhere": (elsewhere, rf"ImageNet is not in .*{LOOKED} cats/$", "image-net.org"),
    "one side": (without_val, r"has train/ but no val/", "put the other side into"),
    "archives": (archives, "which are not unpacked", "torchvision"),
    "class tars": (class_tars, r"train is half unpacked: 1 tars of classes", "tar -xf"),
    "empty class": (empty_class, r"n03440764 holds no image: train is half unpacked", "unpack these classes"),
    "twice": (twice, TWICE, "remove"),
    "other names": (other_names, r"no train image is named like ImageNet's .*cats/1\.jpg", "folder:PATH"),
    "one side of shards": (one_side_of_shards, "has .parquet shards for train, none for validation", "get those"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_whole_imagenet_is_refused_in_words(kind: str, tmp_path: Path) -> None:
    make, message, hint = BROKEN[kind]
    make(tmp_path / "set")
    with pytest.raises(UsageError, match=message) as error:
        opened(tmp_path / "set")
    assert hint in error.value.hint


def test_a_wrong_root_names_the_right_one(tmp_path: Path) -> None:
    few(tmp_path)
    with pytest.raises(UsageError, match="ImageNet is not in") as error:
        opened(tmp_path / "train" / "n01440764")
    assert error.value.hint == f"give the folder above: --data-root {tmp_path}"
    with pytest.raises(UsageError, match="does not exist"):
        opened(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="needs --data-root"):
        open_dataset("imagenet", 32)
    with pytest.raises(UsageError, match=r"imagenet:SYNSETS\.txt"):
        open_dataset("imagenet:", 32, tmp_path)


# sources that are not as they should be


def cut(path: Path, size: int) -> None:
    os.truncate(path, size)


def tar_with_link(path: Path) -> None:
    import tarfile

    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("b.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, "a.jpg"
        archive.addfile(info)


def gzipped(path: Path) -> None:
    path.write_bytes(gzip.compress(path.read_bytes()))


def two_of_a_sample(path: Path) -> None:
    layouts.tar(path, [("a.jpg", b"1"), ("a.seg.png", b"2")])


BROKEN_OFF = r"x\.tar: truncated, or no tar"
TARS: dict[str, tuple[Callable[[Path], object], str]] = {
    "compressed": (gzipped, r"x\.tar is compressed \(gzip\)"),
    "empty": (lambda p: cut(p, 0), r"x\.tar is empty"),
    "cut in a member": (lambda p: cut(p, 700), BROKEN_OFF),
    "cut between members": (lambda p: cut(p, 1024 * 2), rf"{BROKEN_OFF} \(no member and no end at byte 2,048\)"),
    "no tar": (lambda p: p.write_bytes(b"x" * 4000), BROKEN_OFF),
    "no image": (lambda p: layouts.tar(p, [("a.txt", b"a")]), r"x\.tar holds no image"),
    "a link": (tar_with_link, r"x\.tar: member b\.jpg is a link"),
    "two of a sample": (two_of_a_sample, r"sample 'a' has several images: a\.jpg, a\.seg\.png"),
}


@pytest.mark.parametrize("kind", TARS)
def test_a_tar_that_cannot_be_used_is_named(kind: str, tmp_path: Path) -> None:
    damage, message = TARS[kind]
    path = layouts.tar(tmp_path / "x.tar", [(f"{k}.jpg", bytes(300)) for k in range(4)])
    damage(path)
    with pytest.raises(UsageError, match=message):
        open_dataset(f"wds:{tmp_path}/*.tar", 32)


def test_names_that_are_in_two_tars_are_named(tmp_path: Path) -> None:
    for k in range(2):
        layouts.tar(tmp_path / f"{k}.tar", [(f"{n}.jpg", layouts.jpeg(n)) for n in range(20)])
    with pytest.raises(UsageError, match=r"two images are called '\d+\.jpg': .*0\.tar: member .* and .*1\.tar: member"):
        open_dataset(f"wds:{tmp_path}/*.tar", 32)
    with pytest.raises(UsageError, match="no file is named"):
        open_dataset(f"wds:{tmp_path}/*.tgz", 32)


def plain_column(path: Path) -> None:
    pq.write_table(pa.table({"a": [1, 2], "b": ["x", "y"]}), path)


def several_columns(path: Path) -> None:
    pq.write_table(pa.table({"left": [b"1"], "right": [b"2"]}), path)


PARQUET: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda p: cut(p, 0), r"x\.parquet is empty"),
    "cut": (lambda p: cut(p, p.stat().st_size - 50), r"x\.parquet: truncated, or no parquet file"),
    "no image": (plain_column, r"x\.parquet has no column of images, .*; it has a: int64, b: string"),
    "several": (several_columns, r"several columns that may be images: left, right"),
    "no row": (lambda p: layouts.parquet(p, [], []), r"x\.parquet holds no row"),
    "no bytes": (lambda p: layouts.parquet(p, ["a", "b"], [b"a", None]), r"row 1 has no bytes, only the path b"),
}


@pytest.mark.parametrize("kind", PARQUET)
def test_a_parquet_file_that_cannot_be_used_is_named(kind: str, tmp_path: Path) -> None:
    damage, message = PARQUET[kind]
    path = layouts.parquet(tmp_path / "x.parquet", ["a", "b"], [b"a", b"b"])
    damage(path)
    with pytest.raises(UsageError, match=message):
        open_dataset(f"hf:{tmp_path}", 32)


@pytest.mark.parametrize("kind", ["tar", "parquet", "files"])
def test_an_unreadable_image_in_the_middle_is_named(kind: str, tmp_path: Path) -> None:
    names = [f"{k}.jpg" for k in range(40)]
    images = [layouts.jpeg(k * 7 + 1) if k != 8 else b"no image" for k in range(40)]
    if kind == "tar":
        layouts.tar(tmp_path / "x.tar", list(zip(names, images, strict=True)))
        where, reference = f"{tmp_path}/x.tar: member 8.jpg", f"wds:{tmp_path}/x.tar"
    elif kind == "parquet":
        layouts.parquet(tmp_path / "x.parquet", names, images)
        where, reference = f"{tmp_path}/x.parquet: row 8 (8.jpg)", f"hf:{tmp_path}"
    else:
        for name, data in zip(names, images, strict=True):
            layouts.write(tmp_path / name, data)
        layouts.write(tmp_path / "list.txt", "\n".join(names).encode())
        where, reference = f"{tmp_path}/8.jpg", f"files:{tmp_path}/list.txt"
    answer = typed(
        "prepare", "--dataset", reference, "--recipe", "tiny", "--set", "recipe.resolution=16", "--metrics", "psnr"
    )
    assert answer.code == 2
    assert f"error: {where}: not a PNG, JPEG, WebP, BMP or TIFF image" in answer.err


def test_a_shard_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = layouts.tar(tmp_path / "x.tar", [(f"{k}.jpg", layouts.jpeg(k)) for k in range(20)])
    train = open_dataset(f"wds:{path}", 16).train
    tars._tars._forget()
    os.utime(path, ns=(0, 0))
    with pytest.raises(ImageFileError, match=r"x\.tar: changed since it was listed"):
        train.load(0)
    train = open_dataset(f"wds:{path}", 16).train
    train.load(0)
    cut(path, 600)
    with pytest.raises(ImageFileError, match=rf"x\.tar: member {train.ids[5]}: 0 of its .* bytes are there"):
        train.load(5)


# hf, wds and files


def test_the_same_files_have_one_digest_as_folder_list_tars_and_rows(tmp_path: Path) -> None:
    images = {
        f"{side}/{k:02d}.jpg": layouts.jpeg(k * 7 + s) for s, side in enumerate(("train", "val"), 1) for k in range(9)
    }
    for name, data in images.items():
        layouts.write(tmp_path / "tree" / name, data)
    layouts.write(tmp_path / "tree" / "list.txt", "\n".join(sorted(images)).encode() + b"\n\n")
    layouts.tar(tmp_path / "x.tar", [(f"./{name}", data) for name, data in images.items()])
    layouts.parquet(tmp_path / "rows" / "x.parquet", list(images), list(images.values()))
    references = ("folder:{}/tree", "files:{}/tree/list.txt", "wds:{}/x*.tar", "hf:{}/rows")
    found = [open_dataset(reference.format(tmp_path), 32) for reference in references]
    expected = contents_digest([f for f in list_images(tmp_path / "tree") if f.id.startswith("train/")])
    assert [dataset.train_digest for dataset in found] == [expected] * 4
    assert len({prepare_validation(d, tmp_path / str(k)).digest for k, d in enumerate(found)}) == 1
    assert [d.protocol_name for d in found] == [
        "folder-tree-train-val", "files-list-train-val", "wds-x-train-val", "hf-rows-train-val"
    ]  # fmt: skip


def test_without_a_named_split_the_hash_of_the_id_splits_as_folder_does(tmp_path: Path) -> None:
    images = {f"{k:02d}.jpg": layouts.jpeg(k * 7 + 1) for k in range(60)}
    for name, data in images.items():
        layouts.write(tmp_path / "tree" / name, data)
    layouts.tar(tmp_path / "shard-0.tar", list(images.items())[:30])
    layouts.tar(tmp_path / "shard-1.tar", list(images.items())[30:])
    tree, tar = open_dataset(f"folder:{tmp_path}/tree", 32), open_dataset(f"wds:{tmp_path}/shard-{{0..1}}.tar", 32)
    assert tar.train_digest == tree.train_digest
    assert list(tar.validation.ids) == list(tree.validation.ids)
    assert tar.protocol_name == "wds-shard-0..1-hash90"
    assert "60 images split by hash of the id" in tar.notes[0]


@pytest.mark.parametrize(
    ("splits", "sides", "word"),
    [
        (("train", "validation", "test"), ("train", "validation"), "train-val"),
        (("train", "test"), ("train", "test"), "train-test"),
        (("train", "dev"), ("train", "dev"), "train-val"),
    ],
)
def test_splits_are_read_from_the_names_of_shards(
    splits: tuple[str, ...], sides: tuple[str, str], word: str, tmp_path: Path
) -> None:
    for s, split in enumerate(splits):
        names = [f"{split}{k}.jpg" for k in range(5)]
        layouts.parquet(
            tmp_path / "set" / f"{split}-00000-of-00002.parquet", names, [layouts.jpeg(s * 10 + k) for k in range(5)]
        )
    dataset = open_dataset(f"hf:{tmp_path}/set", 16)
    for images, side in zip((dataset.train, dataset.validation), sides, strict=True):
        assert list(images.ids) == [f"{side}{k}.jpg" for k in range(5)]
    assert dataset.protocol_name == f"hf-set-{word}"
    assert "1 of 2 shards train-… are here" in dataset.notes
    assert ("5 images of other splits are not used" in dataset.notes) == (len(splits) == 3)
    (tmp_path / "list.txt").write_text(f"{sides[0]}3.jpg")
    listed = open_dataset(f"hf:{tmp_path}/set", 16, split_list=tmp_path / "list.txt")
    assert listed.notes[:-1] == dataset.notes


def test_rows_that_share_paths_are_named_by_number(tmp_path: Path) -> None:
    layouts.parquet(tmp_path / "train.parquet", ["0.jpg", "0.jpg"], [layouts.jpeg(1), layouts.jpeg(2)])
    layouts.parquet(tmp_path / "val.parquet", [None], [layouts.jpeg(3)])
    dataset = open_dataset(f"hf:{tmp_path}", 16)
    assert list(dataset.train.ids) == ["train/00000000", "train/00000001"]
    assert dataset.train.encoded(1) == layouts.jpeg(2)
    assert dataset.notes == ("rows state no path: images are named by the number of their row",)


def saved(folder: Path, images: list[bytes], binary: bool = False) -> None:
    """What `save_to_disk` of `datasets` leaves: Arrow streams in batches, and their names."""
    folder.mkdir(parents=True)
    kind = pa.binary() if binary else pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", kind), ("label", pa.int64())])
    files = []
    for k, part in enumerate((images[:4], images[4:])):
        files.append({"filename": f"data-{k:05d}-of-00002.arrow"})
        with pa.OSFile(str(folder / files[-1]["filename"]), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for start in range(0, len(part), 3):
                rows = [data if binary else {"bytes": data, "path": None} for data in part[start : start + 3]]
                writer.write(pa.record_batch([pa.array(rows, kind), pa.array([0] * len(rows))], schema))
    (folder / "state.json").write_text(json.dumps({"_data_files": files}))
    (folder / "dataset_info.json").write_text("{}")


@pytest.mark.parametrize("binary", [False, True])
def test_folders_of_save_to_disk_are_read(binary: bool, tmp_path: Path) -> None:
    images = {split: [layouts.jpeg(10 * s + k) for k in range(9)] for s, split in enumerate(("train", "test"))}
    for split, data in images.items():
        saved(tmp_path / split, data, binary)
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    dataset = open_dataset(f"hf:{tmp_path}", 16)
    assert [dataset.train.encoded(i) for i in range(9)] == images["train"]
    assert [dataset.validation.encoded(i) for i in range(9)] == images["test"]
    assert "the test split is validation" in dataset.split_rule
    assert len(open_dataset(f"hf:{tmp_path}/train", 16).train) < 9, "split by hash"
    (tmp_path / "train" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(UsageError, match=r"data-00001-of-00002\.arrow is not here, though .*state\.json names it"):
        open_dataset(f"hf:{tmp_path}", 16)


def test_hf_says_what_it_looked_for(tmp_path: Path) -> None:
    layouts.write(tmp_path / "set" / "a.txt", b"a")
    with pytest.raises(
        UsageError, match=r"holds no \.parquet file, and is no folder of save_to_disk .*; it has a\.txt"
    ):
        open_dataset(f"hf:{tmp_path}/set", 16)
    with pytest.raises(UsageError, match="none does not exist"):
        open_dataset(f"hf:{tmp_path}/none", 16)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no file"),
        ("a.txt\n", r"names a\.txt, which is no \.png"),
        ("gone.jpg\n", r"gone\.jpg: cannot be read \(No such file"),
        ("0.jpg\n1.jpg\n./0.jpg\n" + "".join(f"{k}.jpg\n" for k in range(2, 30)), r"two images are called '0\.jpg'"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(text: str, message: str, tmp_path: Path) -> None:
    for k in range(30):
        layouts.write(tmp_path / f"{k}.jpg", layouts.jpeg(k))
    with pytest.raises(UsageError, match=message):
        open_dataset(f"files:{layouts.write(tmp_path / 'list.txt', text.encode())}", 16)


def test_a_list_of_another_place_and_of_whole_paths(tmp_path: Path) -> None:
    for k in range(30):
        layouts.write(tmp_path / "set" / f"{k}.jpg", layouts.jpeg(k))
    relative = layouts.write(tmp_path / "a" / "list.txt", "".join(f"{k}.jpg\n" for k in range(30)).encode())
    whole = layouts.write(tmp_path / "b" / "list.txt", "".join(f"{tmp_path}/set/{k}.jpg\n" for k in range(30)).encode())
    found = [open_dataset(f"files:{path}", 16, tmp_path / "set") for path in (relative, whole)]
    assert found[0].train_digest == found[1].train_digest
    assert "0.jpg" in {*found[1].train.ids, *found[1].validation.ids}


# several processes


def read_all(images: Images, queue: multiprocessing.SimpleQueue[str]) -> None:
    queue.put(digest_of(*(images.load(i).tobytes() for i in range(len(images)))))


SPAWNED = """
import pickle, sys
from vqbench.data.hashing import digest_of
images = pickle.load(sys.stdin.buffer)
print(digest_of(*(images.load(i).tobytes() for i in range(len(images)))), end="")
"""


@pytest.mark.parametrize("kind", LAYOUTS)
def test_forked_threaded_and_spawned_readers_read_the_same(kind: str, roots: dict[str, Path], own_home: Path) -> None:
    opened(roots[kind])
    images = opened(roots[kind]).validation
    assert len(pickle.dumps(images)) < 2000, "the map is opened again, not copied"
    with ThreadPoolExecutor(8) as pool:
        expected = digest_of(*(pixels.tobytes() for pixels in pool.map(images.load, range(len(images)))))
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    forked = [context.Process(target=read_all, args=(images, queue)) for _ in range(2)]
    for process in forked:
        process.start()
    assert {queue.get() for _ in forked} == {expected}
    for process in forked:
        process.join()
    command = [sys.executable, "-c", SPAWNED]
    spawned = subprocess.run(command, input=pickle.dumps(images), capture_output=True, check=True)
    assert spawned.stdout.decode() == expected


def test_no_file_is_held_open_for_each_image_or_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(8):
        layouts.tar(tmp_path / f"{k}.tar", [(f"{k}-{n}.jpg", layouts.jpeg(n)) for n in range(3)])
    monkeypatch.setattr(tars, "_tars", encoded.Opened(2))
    before = len(os.listdir("/proc/self/fd"))
    train = open_dataset(f"wds:{tmp_path}/*.tar", 16).train
    for i in range(len(train)):
        train.load(i)
    assert len(os.listdir("/proc/self/fd")) - before <= 2


def test_rows_say_in_which_order_they_lie(roots: dict[str, Path]) -> None:
    train = opened(roots["parquet"]).train
    order = train.stored_order()
    assert sorted(order) == list(range(160))
    names = [train.source.name(i) for i in order]
    assert names == sorted(names, key=lambda name: (name.split(":")[0], int(name.split(" row ")[1].split(" ")[0])))
    chosen = Chosen(train, [150, 3, 70, 8])
    rank = {name: k for k, name in enumerate(train.ids[i] for i in order)}
    assert [chosen.ids[i] for i in chosen.stored_order()] == sorted(chosen.ids, key=rank.__getitem__)
    assert opened(roots["tars"]).train.stored_order() is None


@pytest.mark.parametrize("form", ["pixels", "original", "jpeg:90"])
def test_rows_are_kept_in_the_order_in_which_they_lie(
    form: str, roots: dict[str, Path], own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any other, each image would cost a group of rows; they come back under their own names all the same."""
    reference = DataReference("imagenet", roots["parquet"], format=form)
    dataset = reference.open(32)
    order = dataset.train.stored_order()
    assert order is not None
    assert list(order) != sorted(order)
    groups, read = set(), []
    real = parquet._Table.group

    def counted(table: Any, number: int, *more: Any) -> Any:
        groups.add((id(table), number))
        read.append(number)
        return real(table, number, *more)

    monkeypatch.setattr(parquet._Table, "group", counted)
    monkeypatch.setattr("vqbench.data.kept.cores", lambda: 1)
    kept = prepare_train(dataset, own_home, making=Making(form, insists=True))
    assert is_cached(kept)
    assert len(read) <= 2 * len(groups) + 1, "once, once for the sizes that are looked at, and one for the first image"
    monkeypatch.undo()
    direct = DataReference("imagenet", roots["folders"], format=form if form.startswith("jpeg") else "").open(32).train
    assert list(kept.ids) == list(direct.ids)
    for i in (0, 1, 7, 80, len(kept) - 1):
        assert (kept.load(i) == direct.load(i)).all()
        assert kept.measure(i) == direct.measure(i)
    (line, _) = verify_kept(dataset, own_home, ("train", "train"), form, lambda *_: None)
    assert "as their files are" in line


def test_validation_rows_are_read_as_they_lie_and_kept_by_their_ids(
    tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is chosen or cropped of them: each group of rows is read once, and the array is the one of a folder."""
    order = np.random.default_rng(0).permutation(150)
    names = [f"{'train' if number < 75 else 'val'}/{number:03d}.jpg" for number in order]
    for side in ("train", "val"):
        images = {name: layouts.jpeg(int(name[-7:-4])) for name in names if name.startswith(side)}
        layouts.parquet(tmp_path / "rows" / f"{side}.parquet", list(images), list(images.values()))
        for name, data in images.items():
            layouts.write(tmp_path / "tree" / name, data)
    (tmp_path / "list.txt").write_text("\n".join(sorted(names[3:])))
    read: list[tuple[int, int]] = []
    real = parquet._Table.group

    def counted(table: Any, number: int, *more: Any) -> Any:
        read.append((id(table), number))
        return real(table, number, *more)

    monkeypatch.setattr(parquet._Table, "group", counted)
    for module in ("kept", "prepare"):
        monkeypatch.setattr(f"vqbench.data.{module}.cores", lambda: 1)
    ways: list[dict[str, Any]] = [
        {},
        {"split_list": tmp_path / "list.txt"},
        {"holdout": 0.9},
        {"validation_images": 70},
    ]
    for asked in ways:
        rows = DataReference(f"hf:{tmp_path}/rows", **asked).open(16)
        tree = DataReference(f"folder:{tmp_path}/tree", **asked).open(16)
        read.clear()
        kept = prepare_validation(rows, own_home)
        assert len(read) <= len(set(read)) + 1, asked
        assert kept.digest == prepare_validation(tree, own_home).digest
        (line,) = verify_kept(rows, own_home, ("validation",), "", lambda *_: None)
        assert "as their files are" in line
        read.clear()
        verify(rows.validation)
        assert len(read) <= len(set(read)) + 1, asked
    own = DataReference(f"hf:{tmp_path}/rows").open(16)
    (pixels,) = (path for path in own_home.rglob("hf-*/pixels.bin") if path.stat().st_size == 75 * 16 * 16 * 3)
    changed = bytearray(pixels.read_bytes())
    changed[70 * 16 * 16 * 3] ^= 1
    pixels.write_bytes(changed)
    with pytest.raises(UsageError, match="has other bytes than were written"):
        verify_kept(own, own_home, ("validation",), "", lambda *_: None)


def test_rows_of_both_sides_lie_in_an_order_too(roots: dict[str, Path], tmp_path: Path) -> None:
    own = opened(roots["parquet"])
    (tmp_path / "list.txt").write_text("\n".join(own.train.ids[i] for i in (3, 50, 7)))
    train = open_dataset("imagenet", 32, roots["parquet"], split_list=tmp_path / "list.txt").train
    order = train.stored_order()
    assert order is not None
    assert sorted(order) == list(range(len(train)))
    assert list(order) != sorted(order)


def test_what_is_kept_of_a_listed_split_and_a_holdout_is_whole(
    roots: dict[str, Path], tmp_path: Path, own_home: Path
) -> None:
    ids = opened(roots["folders"]).train.ids
    (tmp_path / "list.txt").write_text("\n".join(ids[i] for i in range(0, 40, 2)))
    dataset = DataReference("imagenet", roots["folders"], holdout=0.2, split_list=tmp_path / "list.txt").open(32)
    assert is_cached(prepare_train(dataset, own_home))
    (line,) = verify_kept(dataset, own_home, ("train",), "", lambda *_: None)
    assert "as their files are" in line


def test_an_image_of_imagenet_is_on_one_side(roots: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(roots["folders"], tmp_path / "both")
    trained = next((tmp_path / "both" / "train").glob("*/*.JPEG"))
    shutil.copy(trained, tmp_path / "both" / "val" / trained.parent.name / trained.name)
    with pytest.raises(UsageError, match="1 images are on both sides of the split"):
        opened(tmp_path / "both")


def test_two_folders_of_one_side_are_refused(roots: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(roots["folders"], tmp_path / "set")
    shutil.copytree(tmp_path / "set" / "val", tmp_path / "set" / "validation")
    with pytest.raises(UsageError, match="are both here"):
        opened(tmp_path / "set")


def test_where_tars_lie_says_nothing_of_their_split(roots: dict[str, Path], tmp_path: Path) -> None:
    found = []
    for place in ("training-data", "dev", "disk"):
        folder = tmp_path / place / "set"
        shutil.copytree(roots["tars"], folder)
        for path in folder.rglob("*.tar"):
            path.rename(folder / f"{'val' if 'val' in path.name else 'b'}-{path.name.rpartition('-')[2]}")
        dataset = open_dataset(f"wds:{folder}/*.tar", 32)
        found.append((dataset.protocol_name, list(dataset.train.ids)))
    assert found[0] == found[1] == found[2]


# the index


def kept_indexes(home: Path) -> list[Path]:
    return sorted((home / "prepared").glob("listing-*.index"))


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_set_is_listed_once(
    kind: str, roots: dict[str, Path], own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened(roots[kind])
    (path,) = kept_indexes(own_home)
    with monkeypatch.context() as patched:
        patched.setattr("vqbench.data.imagenet.make_index", lambda *a: pytest.fail("listed again"))
        again = opened(roots[kind])
        assert again.train_digest == first.train_digest
        assert (again.train.content_key, again.validation.content_key) == (
            first.train.content_key,
            first.validation.content_key,
        )
        assert again.train.ids == first.train.ids
        assert again.notes == first.notes
    for damaged in (path.read_bytes()[:-1], b"", b"vqbench index\n" + bytes(100)):
        path.unlink()
        path.write_bytes(damaged)
        assert opened(roots[kind]).train.ids == first.train.ids


def add(root: Path) -> None:
    layouts.write(root / "train" / "n02440764" / "n02440764_999.JPEG", layouts.jpeg(99))


def add_class(root: Path) -> None:
    layouts.write(root / "train" / "n09440764" / "n09440764_1.JPEG", layouts.jpeg(99))


def remove(root: Path) -> None:
    (root / "train" / "n02440764" / "n02440764_2.JPEG").unlink()


def replace(root: Path) -> None:
    path = layouts.write(root / "new", layouts.jpeg(77))
    path.rename(root / "train" / "n02440764" / "n02440764_2.JPEG")


def overwrite(root: Path) -> None:
    """In place, of the same size and with the old time."""
    path = root / "train" / "n02440764" / "n02440764_2.JPEG"
    old = path.stat()
    path.write_bytes(path.read_bytes()[:-9] + bytes(9))
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))


@pytest.mark.parametrize("change", [add, add_class, remove, replace, overwrite])
def test_an_index_is_not_believed_once_its_files_changed(
    change: Callable[[Path], None], tmp_path: Path, own_home: Path
) -> None:
    root = few(tmp_path / "set")
    first = opened(root)
    assert kept_indexes(own_home)
    change(root)
    second = opened(root)
    assert second.train_digest != first.train_digest
    assert second.train.content_key != first.train.content_key
    assert second.train_digest == opened(root).train_digest
    assert len(kept_indexes(own_home)) == 1


@pytest.mark.parametrize("change", ["rewritten", "touched", "added", "removed"])
def test_an_index_of_shards_is_not_believed_once_they_changed(change: str, tmp_path: Path, own_home: Path) -> None:
    def shard(k: int, seed: int) -> Path:
        return layouts.tar(tmp_path / f"{k}.tar", [(f"{k}-{n}.jpg", layouts.jpeg(n + seed)) for n in range(20)])

    shard(0, 0), shard(1, 0)
    pattern = f"wds:{tmp_path}/*.tar"
    first = open_dataset(pattern, 16)
    if change == "rewritten":
        old = (tmp_path / "1.tar").stat()
        shard(1, 50)
        os.utime(tmp_path / "1.tar", ns=(old.st_atime_ns, old.st_mtime_ns))
    elif change == "touched":
        os.utime(tmp_path / "1.tar", ns=(5, 5))
    elif change == "added":
        shard(2, 0)
    else:
        (tmp_path / "1.tar").unlink()
    second = open_dataset(pattern, 16)
    assert second.train.content_key != first.train.content_key
    assert (second.train_digest == first.train_digest) == (change == "touched")
    assert len(kept_indexes(own_home)) == 1


def test_of_a_large_set_a_file_that_is_not_looked_at_is_refused_when_it_is_read(
    tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = few(tmp_path / "set")
    monkeypatch.setattr(index, "SAMPLED", 1)
    opened(root)
    path = root / "train" / "n02440764" / "n02440764_2.JPEG"
    path.write_bytes(layouts.jpeg(55))
    stale = opened(root)
    assert stale.train.load(0).shape[2] == 3
    with pytest.raises(ImageFileError, match=r"n02440764_2\.JPEG: changed since the set was listed") as error:
        stale.train.load(1)
    (kept,) = kept_indexes(own_home)
    assert error.value.hint == f"rm {kept} has the set listed again"
    kept.unlink()
    assert np.array_equal(
        opened(root).train.load(1), decode_image(layouts.jpeg(55), 32, Reading(small="enlarge", upright=False))
    )


def test_what_changed_just_now_is_listed_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VQBENCH_HOME", str(tmp_path / "home"))
    root = few(tmp_path / "set")
    opened(root)
    assert kept_indexes(tmp_path / "home") == []
    monkeypatch.setattr(time, "time", lambda: os.stat(root).st_mtime + 60)
    opened(root)
    assert len(kept_indexes(tmp_path / "home")) == 1


def test_an_index_that_was_made_again_meanwhile_is_not_taken_for_the_one_that_was_pickled(
    tmp_path: Path, own_home: Path
) -> None:
    root = few(tmp_path / "set")
    opened(root)
    train = opened(root).train
    kept = pickle.dumps(train)
    assert np.array_equal(pickle.loads(kept).load(0), train.load(0))
    add(root)
    opened(root)
    with pytest.raises(UsageError, match="has been removed or made again meanwhile"):
        pickle.loads(kept)
    assert train.load(0).shape[2] == 3, "who has it mapped keeps the old one"


def test_a_home_that_cannot_be_written_costs_the_listing_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = few(tmp_path / "set")
    expected = opened(root).train_digest
    monkeypatch.setattr(index, "SETTLED_S", -3600.0)
    (tmp_path / "file").touch()
    monkeypatch.setenv("VQBENCH_HOME", str(tmp_path / "file"))
    dataset = opened(root)
    assert dataset.train_digest == expected
    assert np.array_equal(pickle.loads(pickle.dumps(dataset.train)).load(1), dataset.train.load(1))


# names of many images, and what is chosen by them


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=4), max_size=12), st.data())
@hypothesis_settings(max_examples=30, deadline=None)
def test_names_are_a_sequence_like_a_list(names: list[str], data: st.DataObject) -> None:
    held = Names.of(names)
    assert (list(held), len(held), held == names) == (names, len(names), True)
    part = slice(*data.draw(st.tuples(st.none() | st.integers(-9, 9), st.none() | st.integers(-9, 9))))
    assert held[part] == names[part]
    assert pickle.loads(pickle.dumps(held)) == names
    positions = data.draw(st.lists(st.integers(0, len(names) - 1))) if names else []
    picked = PickedNames(held, np.array(positions, np.int64))
    assert (list(picked), picked[part]) == ([names[i] for i in positions], [names[i] for i in positions][part])
    for i, name in enumerate(names):
        assert held[i] == held[i - len(names)] == name
        assert held.index(name) == names.index(name)
    with pytest.raises(IndexError):
        held[len(names)]
    assert held != [*names, "more"]


def digest_of_yesterday(*lines: object) -> str:
    return hashlib.sha256("\0".join(map(repr, lines)).encode()).hexdigest()


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=6), max_size=40, unique=True))
@hypothesis_settings(max_examples=40, deadline=None)
def test_orders_by_hash_are_yesterday_s(ids: list[str]) -> None:
    expected = sorted(range(len(ids)), key=lambda i: digest_of_yesterday("a purpose", ids[i]))
    assert by_hash(Names.of(ids), "a purpose").tolist() == expected


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 999)), min_size=2, max_size=60, unique=True),
    st.floats(0.01, 0.99),
    st.booleans(),
)
@hypothesis_settings(max_examples=60, deadline=None)
def test_a_holdout_is_yesterday_s(items: list[tuple[str, int]], share: float, grouped: bool) -> None:
    ids = [f"{group}/{number}" for group, number in items]
    groups = [group for group, _ in items] if grouped else []
    of_item = groups or ids
    names = sorted(set(of_item), key=lambda name: digest_of_yesterday("holdout", name))
    counts = np.cumsum([0, *(of_item.count(name) for name in names)])
    among = next(n for n, count in enumerate(counts) if count >= round(share * len(ids)))
    if not 0 < among < len(names):
        with pytest.raises(UsageError, match="leaves nothing to"):
            HeldOut.of(Names.of(ids), share, "it", groups)
        return
    held = HeldOut.of(Names.of(ids), share, "it", groups)
    assert held.chosen == tuple(i for i, name in enumerate(of_item) if name in names[:among])
    assert held.left == tuple(i for i, name in enumerate(of_item) if name not in names[:among])


class Numbers(Images):
    def __init__(self) -> None:
        self.ids, self.groups, self.content_key = ["a", "b", "c"], ["x", "y", "x"], "key"

    def load(self, i: int) -> np.ndarray:
        return np.full((1, 1, 3), i, np.uint8)


def test_what_is_chosen_keeps_the_key_of_yesterday() -> None:
    chosen = Chosen(Numbers(), [2, 0])
    assert chosen.content_key == digest_of_yesterday("key", (2, 0))
    assert (chosen.ids, chosen.groups) == (["c", "a"], ["x", "x"])
    assert chosen.load(0)[0, 0, 0] == 2


def test_many_ids_open_quickly_and_take_no_memory(tmp_path: Path, own_home: Path) -> None:
    """At 20,000 entries what the benchmark (tests/benchmarks/data.py) shows at 1.28 million."""
    count = 20_000
    paths = [f"n01440764_{k}.JPEG" for k in range(count)]
    layouts.parquet(tmp_path / "set" / "train-0.parquet", paths, [b""] * count, group=5000)
    layouts.parquet(tmp_path / "set" / "validation-0.parquet", ["ILSVRC2012_val_00000001.JPEG"], [b""])
    opened(tmp_path / "set")
    import tracemalloc

    tracemalloc.start()
    began = time.process_time()
    dataset = opened(tmp_path / "set")
    spent, (_, most) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(dataset.train) == count
    assert TrainingStream(dataset.train, 32, 0, True, True).item(5) < count
    assert most < 2**20, "bytes of Python and numpy"
    assert spent < 0.5


# through the command line

CELL = ("--images", 64, "--seeds", 0, "--recipe", "tiny", "--metrics", "psnr,ssim,usage", *settings())


@pytest.mark.slow
def test_every_layout_gives_the_same_scores(roots: dict[str, Path], tmp_path: Path) -> None:
    found = {}
    for kind, root in roots.items():
        data = ("--dataset", "imagenet", "--data-root", root)
        assert (done := typed("prepare", *data, "--recipe", "tiny", "--metrics", "psnr")).code == 0, done.err
        answer = typed("run", "--methods", "vqgan", *CELL, *data, "--runs", tmp_path / kind, "--name", "x", "--json")
        assert answer.code == 0, answer.err
        (path,) = (tmp_path / kind).glob("x/cells/*/result.json")
        result = json.loads(path.read_text())
        found[kind] = (path.parent.name, result["protocol"], result["scores"])
    first = found["folders"]
    assert first[2]["psnr"] > 5
    assert all(one == first for one in found.values())


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "ablate", "prepare"])
@pytest.mark.parametrize("kind", ["hf", "wds", "files"])
def test_every_source_goes_through_the_command_line(command: str, kind: str, tmp_path: Path) -> None:
    images = {f"{k:02d}.jpg": layouts.jpeg(k * 7 + 1) for k in range(60)}
    for name, data in images.items():
        layouts.write(tmp_path / "tree" / name, data)
    layouts.write(tmp_path / "tree" / "list.txt", "\n".join(images).encode())
    layouts.tar(tmp_path / "x.tar", list(images.items()))
    layouts.parquet(tmp_path / "rows" / "x.parquet", list(images), list(images.values()))
    reference = {"hf": "hf:{}/rows", "wds": "wds:{}/*.tar", "files": "files:{}/tree/list.txt"}[kind].format(tmp_path)
    rest = (*CELL, "--runs", tmp_path / "runs", "--name", "x")
    words = {
        "run": ("run", "--methods", "vqgan", *rest),
        "ablate": ("ablate", "vaevq", "--rows", "paper", *rest),
        "prepare": ("prepare", "--recipe", "tiny", "--metrics", "psnr"),
    }[command]
    answer = typed(*words, "--dataset", reference)
    assert answer.code == 0, answer.err
