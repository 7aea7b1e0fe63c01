"""Published sets in the layouts that users have: which images, which side, and what is said of a wrong folder."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import pytest
from helpers.commands import Answer, settings, typed
from helpers.sets import (
    BRAIN,
    MODALITIES,
    brain,
    encoded,
    write_brats,
    write_case,
    write_celeba,
    write_celebahq,
    write_coco,
    write_lmdb,
    write_lsun,
    write_mapping,
    write_partition,
    write_photograph,
    write_volume,
)
from PIL import Image

from vqbench.data import slices
from vqbench.data.dataset import Dataset, open_dataset
from vqbench.data.decode import ImageFileError
from vqbench.data.prepare import prepare_train, prepare_validation
from vqbench.errors import UsageError

NUMBERS = range(40)


def refusal(reference: str, root: Path | None, resolution: int = 32) -> str:
    """What is said of a set that cannot be opened, hint and all."""
    with pytest.raises(UsageError) as error:
        open_dataset(reference, resolution, root)
    return f"{error.value.what} | {error.value.hint}"


def sides(dataset: Dataset) -> tuple[list[str], list[str]]:
    return list(dataset.train.ids), list(dataset.validation.ids)


def change(path: Path, make: Callable[[bytes], bytes]) -> None:
    path.write_bytes(make(path.read_bytes()))


# all

SETS = ("celebahq", "celeba:140", "coco", "lsun:bedroom", "brats:t2f")


@pytest.mark.parametrize("reference", SETS)
def test_a_wrong_root_is_told_what_was_looked_for_and_what_is_there(reference: str, tmp_path: Path) -> None:
    assert "needs --data-root" in refusal(reference, None)
    assert f"{tmp_path / 'gone'} does not exist; it should hold" in refusal(reference, tmp_path / "gone")
    assert "(looked for" in refusal(reference, tmp_path)
    assert "it holds nothing" in refusal(reference, tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "readme.txt").touch()
    assert "it holds notes/, readme.txt | get" in refusal(reference, tmp_path).replace("BraTS is given", "get")
    (tmp_path / "else.zip").touch()
    assert "else.zip, readme.txt | get" in refusal(reference, tmp_path).replace("BraTS is given", "get")
    (tmp_path / "file").touch()
    assert "is a file, not the folder" in refusal(reference, tmp_path / "file")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("celeba", "needs more than its name: celeba:140|148"),
        ("celeba:178", "states no known crop"),
        ("brats", "needs more than its name: brats:t1n|t1c|t2w|t2f|all"),
        ("brats:t2", "modality 't2' is called t2w since 2023 | give it as brats:t2w"),
        ("brats:t2ff", "unknown modality 't2ff'; did you mean t2f"),
        ("coco:val", "takes nothing after the colon"),
    ],
)
def test_what_stands_behind_the_colon_is_checked(reference: str, message: str, tmp_path: Path) -> None:
    assert message in refusal(reference, tmp_path)


def test_without_its_library_a_set_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("lmdb", "nibabel"):
        monkeypatch.setitem(sys.modules, library, None)
    said = "dataset 'lsun' is read with lmdb, which is not installed | pip install 'vqbench[lsun]'"
    assert refusal("lsun:bedroom", tmp_path) == said
    said = "dataset 'brats' is read with nibabel, which is not installed | pip install 'vqbench[medical]'"
    assert refusal("brats:t2f", tmp_path) == said


def test_a_listing_of_datasets_fits_a_terminal() -> None:
    answer = typed("datasets")
    assert answer.code == 0
    assert all(len(line) <= 100 for line in answer.out.splitlines())
    assert {"celebahq", "celeba", "coco", "lsun", "brats"} <= {line.split(" ")[0] for line in answer.out.splitlines()}


# celebahq


def test_celebahq_has_one_split_and_one_digest_in_both_flat_layouts(tmp_path: Path) -> None:
    mask = write_celebahq(tmp_path / "a", NUMBERS)
    flat = write_celebahq(tmp_path / "c", NUMBERS, "celeba_hq_256/{:05d}.jpg")
    one, other = (open_dataset("celebahq", 32, root) for root in (mask, flat))
    assert sides(one) == sides(other)
    assert one.train_digest == other.train_digest
    assert one.protocol_name == other.protocol_name == "celebahq-hash90-40-of-30000"
    digests = [prepare_validation(dataset, tmp_path / "home").digest for dataset in (one, other)]
    assert digests[0] == digests[1]
    held = [f"{n:05d}" for n in NUMBERS if int(hashlib.sha256(f"{n:05d}".encode()).hexdigest(), 16) % 10 == 0]
    assert sides(one)[1] == held
    assert any("40 of the 30,000 images are here" in note for note in one.notes)
    for root in (mask / "CelebAMask-HQ", mask / "CelebAMask-HQ" / "CelebA-HQ-img", flat / "celeba_hq_256"):
        assert sides(open_dataset("celebahq", 32, root)) == sides(one)


def test_celebahq_by_the_partition_of_celeba(tmp_path: Path) -> None:
    root = write_celebahq(tmp_path, NUMBERS)
    originals = {n: 1000 - n for n in NUMBERS}
    write_mapping(root / "CelebAMask-HQ" / "CelebA-HQ-to-CelebA-mapping.txt", originals)
    assert open_dataset("celebahq", 32, root).protocol_name.startswith("celebahq-hash90")
    note = open_dataset("celebahq", 32, root).notes[1]
    assert "for CelebA's partition, list_eval_partition.txt must lie beside the images" in note
    write_partition(root / "celeba" / "list_eval_partition.txt", {originals[n]: n % 3 for n in NUMBERS})
    dataset = open_dataset("celebahq", 32, root)
    assert dataset.protocol_name == "celebahq-partition-40-of-30000"
    assert sides(dataset) == tuple([f"{n:05d}" for n in NUMBERS if n % 3 == side] for side in (0, 1))
    write_partition(root / "celeba" / "list_eval_partition.txt", {originals[n]: 0 for n in range(39)})
    assert "1 images, 00039 first, are not in" in refusal("celebahq", root)
    write_partition(root / "celeba" / "list_eval_partition.txt", {originals[n]: 0 for n in NUMBERS})
    assert "none of them for validation" in refusal("celebahq", root)
    mapping = root / "CelebAMask-HQ" / "CelebA-HQ-to-CelebA-mapping.txt"
    mapping.write_text(mapping.read_text() + "0 1 000002.jpg\n")
    assert "line 42: an index that is here twice" in refusal("celebahq", root)
    mapping.write_text("what\n")
    assert "line 1: 'what', where '0 119613 119614.jpg' is expected" in refusal("celebahq", root)


def test_celebahq_in_folders_of_sides(tmp_path: Path) -> None:
    place = "celeba_hq/{}/{}/{{:06d}}.jpg"
    write_celebahq(tmp_path, (12, 51340), place.format("train", "female"))
    write_celebahq(tmp_path, (16, 117847), place.format("train", "male"))
    assert "images in train/ but none in val/" in refusal("celebahq", tmp_path)
    write_celebahq(tmp_path, (39913,), place.format("val", "female"))
    dataset = open_dataset("celebahq", 32, tmp_path)
    assert sides(dataset) == (["00012", "00016", "51340", "117847"], ["39913"])
    assert dataset.protocol_name == "celebahq-train-val-5-of-30000"
    write_celebahq(tmp_path, (16,), place.format("val", "male"))
    assert re.search(r"CelebA-HQ image 0*16 is here twice: .*train/male/000016.jpg and", refusal("celebahq", tmp_path))


def test_celebahq_numbered_from_one(tmp_path: Path) -> None:
    dataset = open_dataset("celebahq", 32, write_celebahq(tmp_path, (1, 2, 30000, *range(20, 60)), "{:05d}.jpg"))
    ids = sorted(sides(dataset)[0] + sides(dataset)[1])
    assert (ids[:2], ids[-1]) == (["00000", "00001"], "29999")
    assert "numbered from 1 to 30000" in dataset.notes[0]
    part = open_dataset("celebahq", 32, write_celebahq(tmp_path / "part", range(1, 40), "{:05d}.jpg"))
    assert sorted(sides(part)[0] + sides(part)[1])[0] == "00001"
    assert "neither image 0 nor image 30000 is here: numbers are taken to count from 0" in part.notes[0]
    place = "celeba_hq/{}/male/{{:06d}}.jpg"  # numbers of CelebA, which go on after 30000
    for side, number in (("train", 30000), ("val", 12)):
        write_celebahq(tmp_path / "sides", (number,), place.format(side))
    named = open_dataset("celebahq", 32, tmp_path / "sides")
    assert sides(named) == (["30000"], ["00012"])
    assert not any("number" in note for note in named.notes)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["celebahq/imgHQ00000.npy"], "holds arrays (imgHQ00000.npy), as taming-transformers reads them"),
        (["0.jpg", "00000.jpg"], "CelebA-HQ image 0 is here twice"),
        (["162771.jpg", "00001.jpg"], "numbered up to 29999 | CelebA itself is --dataset celeba:140"),
        (["1.jpg", "2.jpg", "cat.jpg"], "none of them for validation"),
    ],
)
def test_celebahq_refuses(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        if name.endswith(".npy"):
            (tmp_path / name).parent.mkdir(parents=True)
            np.save(tmp_path / name, np.zeros((1, 3, 4, 4), np.uint8))
        else:
            write_photograph(tmp_path / name, 0)
    assert message in refusal("celebahq", tmp_path)


# celeba


def test_celeba_cuts_the_stated_square_before_it_resizes(tmp_path: Path) -> None:
    root = write_celeba(tmp_path, {1: 0, 2: 0, 3: 1, 4: 2})
    with Image.open(root / "celeba" / "img_align_celeba" / "000003.jpg") as image:
        whole = image.convert("RGB")
    for square in (140, 148):
        dataset = open_dataset(f"celeba:{square}", 64, root)
        assert sides(dataset) == (["000001", "000002"], ["000003"])
        assert dataset.protocol_name == f"celeba-crop{square}-4-of-202599"
        assert f"the middle {square}×{square} pixels are cut out before resizing" in dataset.split_rule
        left, top = (178 - square) // 2, (218 - square) // 2
        expected = whole.crop((left, top, left + square, top + square)).resize((64, 64), Image.Resampling.LANCZOS)
        assert (dataset.validation.load(0) == np.asarray(expected)).all()
        assert dataset.validation.measure(0) == (64, 64)
        with Image.open(io.BytesIO(dataset.validation.encoded(0) or b"")) as cut:
            assert cut.size == (square, square)
    small, large = (open_dataset(f"celeba:{square}", 64, root) for square in (140, 148))
    assert small.train_digest != large.train_digest
    assert small.train.content_key != large.train.content_key
    with pytest.raises(ImageFileError, match=r"000003.jpg: 140×140 pixels, smaller than the resolution 256"):
        open_dataset("celeba:140", 256, root).validation.load(0)


def test_celeba_in_its_other_layout_is_the_same_set(tmp_path: Path) -> None:
    listed = {n: n % 3 for n in range(1, 10)}
    one = open_dataset("celeba:148", 32, write_celeba(tmp_path / "one", listed))
    root = write_celeba(tmp_path / "other", listed, "img_align_celeba/img_align_celeba")
    shutil.rmtree(root / "celeba")
    write_partition(root / "list_eval_partition.csv", listed)
    other = open_dataset("celeba:148", 32, root)
    assert sides(one) == sides(other)
    assert one.train_digest == other.train_digest
    digests = [prepare_validation(dataset, tmp_path / "home").digest for dataset in (one, other)]
    assert digests[0] == digests[1]


def test_celeba_refuses(tmp_path: Path) -> None:
    root = write_celeba(tmp_path, {1: 0, 2: 1})
    partition = root / "celeba" / "list_eval_partition.txt"
    write_photograph(root / "celeba" / "img_align_celeba" / "000003.jpg", 3, 178, 218)
    assert "1 images in" in open_dataset("celeba:140", 32, root).notes[0]
    write_photograph(root / "celeba" / "img_align_celeba" / "000001.png", 3, 178, 218)
    assert "CelebA image 000001 is here twice" in refusal("celeba:140", root)
    (root / "celeba" / "img_align_celeba" / "000001.png").unlink()
    write_photograph(root / "celeba" / "img_align_celeba" / "000001.jpg", 3, 178, 200)
    with pytest.raises(ImageFileError, match=r"000001.jpg: 178×200 pixels, where CelebA's have 178×218"):
        open_dataset("celeba:140", 32, root).train.load(0)
    write_photograph(root / "celeba" / "img_align_celeba" / "000001.jpg", 3, 2 * 178, 2 * 218)
    with pytest.raises(ImageFileError, match=r"000001.jpg: 356×436 pixels, where CelebA's have 178×218"):
        open_dataset("celeba:140", 32, root).train.load(0)
    change(root / "celeba" / "img_align_celeba" / "000002.jpg", lambda data: data[:-200])
    with pytest.raises(UsageError, match=r"000002.jpg: damaged"):
        prepare_validation(open_dataset("celeba:140", 32, root), tmp_path / "home")
    for text, message in (
        ("000001.jpg 3\n", "line 1: '000001.jpg 3', where '000001.jpg 0' is expected"),
        ("000001.jpg 0\n000001.jpg 1\n", "line 2: image 000001 is here twice"),
        ("000001.jpg 0\n", "1 CelebA images are here, none of them for validation"),
        ("000009.jpg 0\n", "no image that list_eval_partition.txt lists in"),
    ):
        partition.write_text(text)
        assert message in refusal("celeba:140", root)
    partition.unlink()
    said = refusal("celeba:140", root)
    assert "no CelebA partition beside img_align_celeba/ in" in said
    assert "(looked for list_eval_partition.txt or list_eval_partition.csv); it holds img_align_celeba/" in said


# coco


def test_coco_has_the_split_of_its_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_coco(tmp_path / "here" / "coco", 5, 3)
    dataset = open_dataset("coco", 32, root)
    assert len(dataset.train), len(dataset.validation) == (5, 3)
    assert dataset.train.ids[0] == "000000000009"
    assert dataset.protocol_name == "coco2017-8-of-123287"
    assert "8 of the 123,287 images are here: 5 train and 3 validation" in dataset.notes[0]
    monkeypatch.setattr("vqbench.data.coco._SIDES", {"train2017": 2, "val2017": 2})
    doubled = open_dataset("coco", 32, root)
    assert "8 images are here, where the published set has 4: it is not that set: 5 train" in doubled.notes[0]
    assert doubled.protocol_name == "coco2017-8-of-4"
    monkeypatch.undo()
    above = open_dataset("coco", 32, tmp_path / "here")
    assert (sides(above), above.train_digest) == (sides(dataset), dataset.train_digest)
    write_photograph(root / "val2017" / "cat.jpg", 0)
    assert "1 images in" in open_dataset("coco", 32, root).notes[0]
    write_photograph(root / "val2017" / "more" / "000000000010.png", 0)
    assert "COCO image 000000000010 is here twice" in refusal("coco", root)
    shutil.rmtree(root / "val2017")
    (root / "val2017.zip").touch()
    assert "it holds train2017/, val2017.zip | unpack val2017.zip there" in refusal("coco", root)


def test_coco_is_read_as_published_loaders_read_it(tmp_path: Path) -> None:
    root = write_coco(tmp_path, 2, 1)
    path = root / "val2017" / "000000000010.jpg"
    exif = Image.Exif()
    exif[274] = 6  # lies on its side
    with Image.open(path) as image:
        stored = image.convert("RGB")
    stored.save(path, exif=exif, quality=95)
    dataset = open_dataset("coco", 96, root)
    with Image.open(path) as image:
        enlarged = image.convert("RGB").resize((96, 128), Image.Resampling.LANCZOS)
    assert (dataset.validation.load(0) == np.asarray(enlarged)[16:112]).all()


# lsun


@pytest.fixture(scope="module")
def lsun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lsun(tmp_path_factory.mktemp("lsun"))


def first_of(dataset: Dataset) -> bytes:
    return dataset.validation.load(0).tobytes()


def _first_in_child(dataset: Dataset, queue: multiprocessing.queues.Queue) -> None:
    queue.put(first_of(dataset))


def test_lsun_gives_the_values_of_its_lmdbs_in_the_order_of_their_keys(lsun: Path) -> None:
    dataset = open_dataset("lsun:bedroom", 32, lsun)
    assert (len(dataset.train), len(dataset.validation)) == (32, 8)
    train, validation = sides(dataset)
    assert train == sorted(f"{k * 7919 % 10007:040x}" for k in range(32))
    assert train == dataset.train.ids[:]
    k = next(k for k in range(1000, 1008) if f"{k * 7919 % 10007:040x}" == validation[2])
    assert dataset.validation.encoded(2) == encoded(k)
    with Image.open(io.BytesIO(encoded(k))) as image:
        expected = np.asarray(image.resize((38, 32), Image.Resampling.LANCZOS))[:, 3:35]
    assert (dataset.validation.load(2) == expected).all()
    assert (dataset.train.measure(0), dataset.validation.measure(0)) == ((32, 38), (32, 32))
    assert (dataset.protocol_name, dataset.slug) == ("lsun-bedroom", "lsun-bedroom")
    assert sorted(path.name for path in lsun.iterdir()) == ["bedroom_train_lmdb", "bedroom_val_lmdb"]
    assert {path.name for path in lsun.rglob("*.mdb")} == {"data.mdb", "lock.mdb"}, "the lock is its writer's"


def test_lsun_is_read_by_other_processes_and_threads(lsun: Path) -> None:
    dataset = open_dataset("lsun:bedroom", 32, lsun)
    expected = first_of(dataset)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_first_in_child, args=(dataset, queue))
    child.start()
    assert queue.get(timeout=120) == expected
    child.join()
    with ThreadPoolExecutor(4) as pool:
        assert all(found == expected for found in pool.map(lambda _: first_of(dataset), range(32)))
    pickled = pickle.dumps(dataset.validation)
    assert dataset.validation.ids[0].encode() not in pickled, "keys are mapped again, not copied"
    code = (
        "import pickle, sys; images = pickle.load(sys.stdin.buffer); sys.stdout.buffer.write(images.load(0).tobytes())"
    )
    done = subprocess.run([sys.executable, "-c", code], input=pickled, capture_output=True, check=True)
    assert done.stdout == expected


def test_lsun_that_was_written_again_is_another(tmp_path: Path) -> None:
    root = write_lsun(tmp_path, train=4, validation=2)
    before = open_dataset("lsun:bedroom", 32, root)
    shutil.rmtree(root / "bedroom_train_lmdb")
    write_lmdb(root / "bedroom_train_lmdb", {f"{k:040d}": encoded(50 + k) for k in range(6)})
    after = open_dataset("lsun:bedroom", 32, root)
    assert len(after.train) == 6
    assert before.train_digest != after.train_digest
    assert before.train.content_key != after.train.content_key
    images = [encoded(50 + k) for k in range(6)]
    padded = [data.ljust(max(map(len, images)), b"\0") for data in images]
    digests, keys = set(), set()
    for values in (padded, padded[::-1]):
        shutil.rmtree(root / "bedroom_train_lmdb")
        write_lmdb(root / "bedroom_train_lmdb", {f"{k:040d}": data for k, data in enumerate(values)})
        found = open_dataset("lsun:bedroom", 32, root)
        digests.add(found.train_digest)
        keys.add(found.train.content_key)
    assert (len(digests), len(keys)) == (1, 2), "of one size each: decoded again, but not told apart (docs/datasets.md)"


def test_lsun_refuses(tmp_path: Path) -> None:
    root = write_lsun(tmp_path, train=4, validation=2)
    assert "unknown LSUN category 'bedrooms'; did you mean bedroom" in refusal("lsun:bedrooms", root)
    (root / "bedroom_val_lmdb").rename(root / "kept")
    assert "no bedroom_val_lmdb in" in refusal("lsun:bedroom", root)
    (root / "bedroom_val_lmdb").mkdir()
    assert "no LMDB in" in refusal("lsun:bedroom", root)
    data = root / "bedroom_val_lmdb" / "data.mdb"
    for content in (b"", b"nothing" * 2000):
        data.write_bytes(content)
        assert "data.mdb is no LMDB (" in refusal("lsun:bedroom", root)
    whole = (root / "kept" / "data.mdb").read_bytes()
    data.write_bytes(whole[:-4096])
    assert f"data.mdb is truncated: {len(whole) - 4096:,} of {len(whole):,} bytes" in refusal("lsun:bedroom", root)
    shutil.rmtree(root / "bedroom_val_lmdb")
    write_lmdb(root / "bedroom_val_lmdb", {"a": encoded(1), "b": encoded(2)[:99], "c": b"", "d": encoded(3)})
    dataset = open_dataset("lsun:bedroom", 32, root)
    with pytest.raises(UsageError) as error:
        prepare_validation(dataset, tmp_path / "home")
    assert "2 images cannot be used" in error.value.what
    assert "data.mdb, key b: damaged" in error.value.what
    assert "data.mdb, key c: there is no image" in error.value.what


# brats


@pytest.fixture(scope="module")
def brats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_brats(tmp_path_factory.mktemp("brats"), subjects=8, visits=2)


def is_held(subject: str) -> bool:
    return int(hashlib.sha256(subject.encode()).hexdigest(), 16) % 5 == 0


def expected_slice(voxels: np.ndarray, z: int) -> np.ndarray:
    """Written down once more, from docs/datasets.md: a square of 8 bits, before it is resized."""
    values = np.sort(voxels[voxels != 0].astype(float))
    low, high = (np.interp(share * (len(values) - 1), np.arange(len(values)), values) for share in (0.005, 0.995))
    square = np.zeros((max(voxels.shape[:2]),) * 2, np.uint8)
    dx, dy = ((len(square) - n) // 2 for n in voxels.shape[:2])
    for x in range(voxels.shape[0]):
        for y in range(voxels.shape[1]):
            v = float(voxels[x, y, z])
            if v != 0:
                row = voxels.shape[1] - 1 - y
                square[dy + row, dx + x] = round(255 * (min(max(v, low), high) - low) / (high - low))
    return square


def test_brats_slices_are_what_the_protocol_says(brats: Path) -> None:
    side = max(BRAIN[:2])
    dataset = open_dataset("brats:t2f", side, brats)
    for text in ("0.5 and 99.5 percentile", "at least 10 %", "RAS", "padded with 0 to a square", "0 modulo 5"):
        assert text in dataset.split_rule
    assert dataset.protocol_name == "brats-gli-t2f-axial"
    name, z = dataset.train.ids[3].rsplit("-z", 1)
    (path,) = brats.rglob(f"{name}.nii.gz")
    voxels = np.asarray(nibabel.load(path).dataobj)
    found = dataset.train.load(3)
    assert found.shape == (side, side, 3)
    assert (found == found[:, :, :1]).all()
    assert (found[:, :, 0] == expected_slice(voxels, int(z))).all()
    of_case = [int(i.rsplit("-z", 1)[1]) for i in dataset.train.ids if i.startswith(f"{name}-z")]
    assert of_case == [z for z in range(BRAIN[2]) if np.mean(voxels[:, :, z] != 0) >= 0.1]
    assert 0 < len(of_case) < BRAIN[2]
    with Image.open(io.BytesIO(dataset.train.encoded(3) or b"")) as png:
        assert (np.asarray(png) == found[:, :, 0]).all()


def test_brats_background_is_what_is_zero_of_what_is_seen(brats: Path) -> None:
    dataset = open_dataset("brats:t2f", max(BRAIN[:2]), brats)
    for note, images in zip(dataset.notes, (dataset.train, dataset.validation), strict=True):
        share = np.mean([images.load(i) == 0 for i in range(len(images))])
        assert f"{len(images):,} slices of" in note
        assert f"{100 * share:.1f} % of their pixels are background" in note


def test_brats_is_split_by_subject_with_all_visits(brats: Path) -> None:
    dataset = open_dataset("brats:t1c", 32, brats)
    seen = [{name.split("-")[2] for name in images.ids} for images in (dataset.train, dataset.validation)]
    assert seen[1] == {f"{n:05d}" for n in range(8) if is_held(f"{n:05d}")}
    assert seen[0] == {f"{n:05d}" for n in range(8)} - seen[1]
    assert {name.split("-")[3] for name in dataset.validation.ids} == {"100", "101"}
    assert list(dataset.train.groups) == [name.split("-")[2] for name in dataset.train.ids]
    held = open_dataset("brats:t1c", 32, brats, holdout=0.2)
    parts = [{name.split("-")[2] for name in images.ids} for images in (held.train, held.validation)]
    assert parts[0] | parts[1] == seen[0]
    assert not parts[0] & parts[1]


def test_brats_modalities_are_the_channels_of_all(brats: Path) -> None:
    dataset = open_dataset("brats:all", 32, brats, channels=4)
    assert dataset.channels == 4
    assert dataset.protocol_name == "brats-gli-all-axial"
    name, _, z = dataset.validation.ids[1].rpartition("-z")
    pixels = dataset.validation.load(1)
    assert (pixels.shape, pixels.dtype) == ((32, 32, 4), np.uint8)
    for k, modality in enumerate(MODALITIES):
        grey = open_dataset(f"brats:{modality}", 32, brats)
        assert grey.channels == 3
        one = grey.validation.load(list(grey.validation.ids).index(f"{name}-{modality}-z{z}"))
        assert (pixels[:, :, k] == one[:, :, 0]).all()
    assert dataset.validation.encoded(0) is None
    both = open_dataset("brats:all", 32, brats, channels=4, score_all=True).validation
    assert both.short_side(0) == both.short_sides()[0], "of the first channel, also behind a choice"
    assert list(dataset.train.groups) == [name.split("-")[2] for name in dataset.train.ids]


def test_a_slice_of_all_is_one_that_each_modality_keeps(tmp_path: Path) -> None:
    root = write_brats(tmp_path, subjects=8)
    name = "BraTS-GLI-00007-100"
    voxels = brain(3)
    voxels[:, :, :8] = 0
    write_volume(root / "training_data1_v2" / name / f"{name}-t1c.nii.gz", voxels)
    side = max(BRAIN[:2])
    whole, cut = (open_dataset(f"brats:{m}", side, root) for m in ("t2f", "t1c"))
    every = open_dataset("brats:all", side, root, channels=4)
    expected = [name[-3:] for name in whole.validation.ids if int(name[-3:]) >= 8]
    assert 0 < len(expected) < len(whole.validation)
    assert [name[-3:] for name in cut.validation.ids] == [name[-3:] for name in every.validation.ids] == expected
    first = whole.validation.load(len(whole.validation) - len(expected))
    assert (every.validation.load(0)[:, :, 3] == first[:, :, 0]).all(), "t2f has slices before the first of t1c"
    share = np.mean([every.validation.load(i) == 0 for i in range(len(expected))])
    assert f"validation: {len(expected)} slices of 1 case of 1 subject; {100 * share:.1f} % of" in every.notes[-1]


def test_brats_lies_in_any_orientation(brats: Path, tmp_path: Path) -> None:
    """A volume that is stored front to back, or as slices first, is the same volume."""
    one = open_dataset("brats:t2f", 32, brats)
    for path in brats.rglob("*-t2f.nii.gz"):
        image = nibabel.load(path)
        turned = image.as_reoriented(np.array([[2, 1], [1, -1], [0, -1]]))
        write_volume(tmp_path / path.relative_to(brats), np.asarray(turned.dataobj), turned.affine)
    other = open_dataset("brats:t2f", 32, tmp_path)
    assert sides(one) == sides(other)
    digests = [prepare_validation(dataset, tmp_path / "home").digest for dataset in (one, other)]
    assert digests[0] == digests[1]
    assert one.train_digest != other.train_digest, "other files"


def test_older_brats_has_older_names(tmp_path: Path) -> None:
    older = ("t1", "t1ce", "t2", "flair")
    for n in range(8):
        write_case(tmp_path / "a", f"BraTS2021_{n:05d}", n, older, "_")
        write_case(tmp_path / "b", f"BraTS20_Training_{n:03d}", n, older, "_")
        write_case(tmp_path / "c", f"BraTS-GLI-{n:05d}-000", n)
    sets = [open_dataset("brats:t2f", 32, tmp_path / name) for name in "abc"]
    assert [dataset.protocol_name for dataset in sets] == [
        "brats2021-t2f-axial", "brats2020-t2f-axial", "brats-gli-t2f-axial"
    ]  # fmt: skip
    assert len({prepare_validation(d, tmp_path / "home").pixels.tobytes() for d in sets}) == 1
    said = refusal("brats:t2f", tmp_path)
    assert "cases of several collections are here: BraTS-GLI, BraTS2021, BraTS20_Training" in said


def test_a_volume_is_sliced_once(
    brats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VQBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(slices, "_SPEAKS_FROM", 16)
    monkeypatch.setattr(slices, "_SPEAKS_EVERY", 0.0)
    dataset = open_dataset("brats:t2f", 32, brats)
    said = capsys.readouterr()
    assert "note: 16 volumes are cut into slices, once; kept in" in said.err
    assert "slicing volumes 16/16, 0 min left" in said.err
    assert not said.out
    pixels = dataset.train.load(0)
    with monkeypatch.context() as patched:
        patched.setattr(slices, "read_volume", lambda path: pytest.fail("read again"))
        again = open_dataset("brats:t2f", 32, brats)
        assert (again.train.load(0) == pixels).all()
        assert open_dataset("brats:t2f", 24, brats).train.load(0).shape == (24, 24, 3)
    kept = sorted((tmp_path / "home" / "prepared" / "slices").iterdir())
    assert len(kept) == 16
    (kept[0]).write_bytes(kept[0].read_bytes()[:-100])
    read: list[Path] = []
    whole = slices.read_volume
    monkeypatch.setattr(slices, "read_volume", lambda path: read.append(path) or whole(path))
    assert sides(open_dataset("brats:t2f", 32, brats)) == sides(dataset)
    assert len(read) == 1, "what is not whole is made again, and nothing else"


def test_brats_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "_SPEAKS_FROM", 10**9)
    root = write_brats(tmp_path / "set", subjects=8)
    place = root / "training_data1_v2"

    def volume(subject: int, modality: str = "t2f") -> Path:
        name = f"BraTS-GLI-{subject:05d}-100"
        return place / name / f"{name}-{modality}.nii.gz"

    volume(3, "t1n").unlink()
    assert open_dataset("brats:t2f", 32, root).train
    assert "is not whole: BraTS-GLI-00003-100 has no t1n | unpack it again" in refusal("brats:all", root)
    shutil.copytree(volume(2).parent, root / "again" / volume(2).parent.name)
    assert "BraTS image BraTS-GLI-00002-100-t1c is here twice" in refusal("brats:t2f", root)
    shutil.rmtree(root / "again")
    older = shutil.copy(volume(2, "t2w"), place / volume(2).parent.name / "BraTS-GLI-00002-100-t2.nii.gz")
    assert "BraTS-GLI-00002-100 has two volumes of t2w" in refusal("brats:t2w", root)
    Path(older).unlink()

    bad = {1: "damaged (", 2: "voxels have one value", 4: "no finite numbers", 5: "not a volume of three axes"}
    change(volume(1), lambda data: data[: len(data) // 2])
    write_volume(volume(2), np.full(BRAIN, 7, np.int16))
    write_volume(volume(4), np.full(BRAIN, np.nan, np.float32))
    write_volume(volume(5), np.zeros((*BRAIN, 2), np.int16))
    said = refusal("brats:t2f", root)
    assert "4 images cannot be used" in said
    for subject, reason in bad.items():
        assert re.search(rf"{re.escape(str(volume(subject)))}: [^;]*{re.escape(reason)}", said), reason
    for subject in bad:
        write_volume(volume(subject), brain(subject))
    change(volume(1), lambda data: b"garbage" + data)
    assert "t2f.nii.gz: damaged (" in refusal("brats:t2f", root)
    write_volume(volume(1), brain(1, (26, 30, 20)))
    assert "26×30×20 voxels, where the others have 26×34×20" in refusal("brats:t2f", root)
    write_volume(volume(1), brain(1))
    assert len(open_dataset("brats:t2f", 32, root).train)
    for subject in range(8):
        if is_held(f"{subject:05d}"):
            shutil.rmtree(volume(subject).parent)
    assert "leave no validation slice: one in five is validation" in refusal("brats:t2f", root)


def test_brats_smaller_than_the_resolution_is_refused(brats: Path) -> None:
    dataset = open_dataset("brats:t2f", 64, brats)
    with pytest.raises(ImageFileError, match=r"z\d+: 34×34 pixels, smaller than the resolution 64"):
        dataset.train.load(0)


def test_other_rules_and_another_split_leave_what_is_cut(brats: Path, tmp_path: Path) -> None:
    own = open_dataset("brats:t2f", 32, brats)
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(own.train.ids[:5]))
    for reference, channels in (("brats:t2f", 3), ("brats:all", 4)):
        if channels == 4:
            listed.write_text("\n".join(name.replace("-t2f", "") for name in own.train.ids[:5]))
        dataset = open_dataset(reference, 64, brats, split_list=listed, rules={"small": "enlarge"}, channels=channels)
        assert (len(dataset.validation), len(dataset.train)) == (5, len(own.train) + len(own.validation) - 5)
        assert dataset.validation.load(0).shape == (64, 64, channels)
        assert "padded with 0 to a square" in dataset.split_rule
        assert list(dataset.train.groups) == [name.split("-")[2] for name in dataset.train.ids]
        as_it_is = open_dataset(reference, max(BRAIN[:2]), brats, split_list=listed, channels=channels).validation
        share = np.mean([as_it_is.load(i) == 0 for i in range(5)])
        assert any(
            f"validation: 5 slices of 1 case of 1 subject; {100 * share:.1f} % of" in note for note in dataset.notes
        )
        assert "5 of 5 validation images have a short side below 64 px" in dataset.small_images
    root = write_celeba(tmp_path, {1: 0, 2: 0, 3: 1})
    listed.write_text("000001.jpg")
    dataset = open_dataset("celeba:140", 192, root, split_list=listed, rules={"small": "enlarge"})
    assert sides(dataset) == (["000002", "000003"], ["000001"])
    assert dataset.validation.load(0).shape == (192, 192, 3)
    assert "the middle 140×140 pixels are cut out before resizing" in dataset.split_rule
    assert dataset.protocol_name.startswith("celeba-crop140-list-")
    with pytest.raises(UsageError, match="is not in lsun:bedroom"):
        open_dataset("lsun:bedroom", 32, write_lsun(tmp_path, train=2, validation=1), split_list=listed)


def anew(dataset: Dataset, tmp_path: Path, count: int = 5) -> Dataset:
    """The same set, split by a list of training images."""
    listed = tmp_path / "validation.txt"
    listed.write_text("\n".join(dataset.train.ids[:count]))
    return open_dataset(dataset.reference, dataset.resolution, tmp_path, split_list=listed)


def test_another_split_takes_nothing_else_from_what_is_said(tmp_path: Path) -> None:
    """What is not here, what is not used and how images are read is so whatever the split."""
    root = write_celebahq(tmp_path, NUMBERS)
    write_mapping(tmp_path / "CelebAMask-HQ" / "CelebA-HQ-to-CelebA-mapping.txt", {n: n + 1 for n in NUMBERS})
    write_partition(tmp_path / "celeba" / "list_eval_partition.txt", {n + 1: n % 3 for n in NUMBERS})
    write_photograph(tmp_path / "CelebAMask-HQ" / "CelebA-HQ-img" / "cat.jpg", 0)
    hq = anew(open_dataset("celebahq", 32, root), tmp_path)
    assert hq.notes[1:-1] == (
        "13 images are of CelebA's test side and are not used",
        "40 of the 30,000 images are here: 22 train and 5 validation",
    )
    assert hq.notes[0].startswith("1 images in")
    assert hq.notes[-1] == "split by validation.txt: 5 images are validation, the other 22 are trained on"
    shutil.rmtree(tmp_path / "CelebAMask-HQ")
    alone = open_dataset("celebahq", 32, write_celebahq(tmp_path, NUMBERS))
    assert any("split by hash of the number" in note for note in alone.notes)
    listed = anew(alone, tmp_path)
    assert any("40 of the 30,000 images are here" in note for note in listed.notes)
    assert not any("by hash" in note for note in listed.notes)

    celeba = anew(open_dataset("celeba:140", 32, write_celeba(tmp_path, {n: n % 3 for n in range(1, 31)})), tmp_path, 2)
    assert celeba.notes[:-1] == (
        "30 of the 202,599 images are here: 18 train and 2 validation",
        "10 images are of CelebA's test side and are not used",
    )
    own = open_dataset("coco", 64, write_coco(tmp_path, 7, 3))
    coco = anew(own, tmp_path)
    assert coco.notes[0] == "10 of the 123,287 images are here: 5 train and 5 validation"
    assert (coco.licence, coco.reading, bool(coco.small_images)) == (own.licence, own.reading, True)

    scored = open_dataset("celeba:140", 32, tmp_path, score_all=True)
    assert scored.notes[0] == "30 of the 202,599 images are here: 0 train and 20 validation"
    assert "the middle 140×140 pixels are cut out" in scored.split_rule


# used


def write_set(reference: str, root: Path) -> Path:
    name = reference.partition(":")[0]
    if name == "celebahq":
        return write_celebahq(root, range(60))
    if name == "celeba":
        return write_celeba(root, {n: n % 3 for n in range(1, 61)})
    return {"coco": write_coco, "lsun": write_lsun, "brats": write_brats}[name](root)


def command(word: str, *more: object) -> Answer:
    answer = typed(word, *more)
    assert answer.code == 0, answer.err
    return answer


def used(reference: str, tmp_path: Path) -> None:
    root = write_set(reference, tmp_path / "set")
    data = ["--dataset", reference, "--data-root", root, "--metrics", "psnr", "--recipe", "tiny"]
    prepared = command("prepare", *data)
    licence = re.search(r"^licence +(.+)", prepared.out, re.M)
    assert licence, prepared.out
    small = [*data, "--images", 32, "--runs", tmp_path / "runs", *settings(), "--json"]
    rows = command("run", "--methods", "fsq", "--name", "r", *small).objects
    assert rows[0]["scores"]["psnr"] > 0
    assert open_dataset(reference, 32, root).protocol_name in prepared.out
    rows = command("ablate", "vaevq", "--name", "a", *small).objects
    assert len(rows) > 1


@pytest.mark.slow
@pytest.mark.parametrize("reference", SETS)
def test_each_set_is_prepared_run_and_ablated(reference: str, tmp_path: Path) -> None:
    used(reference, tmp_path)


@pytest.mark.parametrize("reference", ["celeba:140", "lsun:bedroom"])
def test_one_set_of_each_reader_is_prepared(reference: str, tmp_path: Path) -> None:
    root = write_set(reference, tmp_path / "set")
    dataset = open_dataset(reference, 32, root)
    answer = command("prepare", "--dataset", reference, "--data-root", root, "--metrics", "psnr", "--recipe", "tiny")
    assert f"{dataset.reference}: {len(dataset.train):,} training" in answer.out
    assert f"protocol  {dataset.protocol_name}-32-v1" in answer.out
    cached = prepare_train(dataset, Path(os.environ["VQBENCH_HOME"]))
    assert np.array_equal(cached.load(1), dataset.train.load(1))
    for note in dataset.notes:
        assert note[:60] in answer.err.replace("\n", " ")


@pytest.mark.parametrize("methods", ["vqgan", pytest.param("vaevq,vqgan", marks=pytest.mark.slow)])
def test_methods_train_on_slices(methods: str, tmp_path: Path) -> None:
    data = ["--dataset", "brats:t2f", "--data-root", write_set("brats", tmp_path / "set"), "--metrics", "psnr,usage"]
    small = ["--recipe", "tiny", "--images", 32, "--runs", tmp_path / "runs", *settings(), "--json"]
    answer = command("run", "--methods", methods, *data, *small)
    rows = answer.objects
    assert "of their pixels are background" in answer.err
    assert [row["state"] for row in rows] == ["done" for _ in methods.split(",")]
    assert all(row["scores"]["psnr"] > 5 for row in rows)
