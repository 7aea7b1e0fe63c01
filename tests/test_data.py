"""Datasets: which images, which side of the split, the order of training, and that nothing is in two places."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.shared import SHARED
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vqbench.data import files
from vqbench.data.dataset import open_dataset
from vqbench.data.photos import PHOTOGRAPHS, Photograph, train_crops, validation_crops, validation_left
from vqbench.data.prepare import is_cached, prepare_train
from vqbench.errors import UsageError


def save(path: Path, width: int = 40, height: int = 40, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def fill(root: Path, names: list[str]) -> Path:
    for k, name in enumerate(names):
        save(root / name, seed=k)
    return root


def unpack(tar: str, into: Path) -> Path:
    archive = SHARED / "data" / f"{tar}.tar"
    if not archive.is_file():
        pytest.skip(f"{archive} is not here (set VQBENCH_SHARED)")
    subprocess.run(["tar", "-xf", archive, "-C", into], check=True)  # tarfile's filter came with Python 3.11.4
    return into / tar


# photos


@given(resolution=st.integers(1, 720), photograph=st.sampled_from(PHOTOGRAPHS))
@settings(max_examples=150, deadline=None)
def test_photos_training_never_touches_validation(resolution: int, photograph: Photograph) -> None:
    train, validation = train_crops(photograph, resolution), validation_crops(photograph, resolution)
    assert bool(train) == bool(validation)
    strip = validation_left(photograph, resolution)
    assert all(c.left >= 0 and c.left + resolution <= strip for c in train)
    assert all(strip <= c.left and c.left + resolution <= photograph.width for c in validation)
    assert all(c.top >= 0 and c.top + resolution <= photograph.height for c in train + validation)
    assert len({(c.top, c.left) for c in train}) == len(train) <= 2048


@given(resolution=st.integers(1, 720), photograph=st.sampled_from(PHOTOGRAPHS))
@settings(max_examples=50, deadline=None)
def test_photos_validation_crops_do_not_overlap(resolution: int, photograph: Photograph) -> None:
    crops = validation_crops(photograph, resolution)
    covered = np.zeros((photograph.height, photograph.width), np.uint8)
    for crop in crops:
        covered[crop.top : crop.top + resolution, crop.left : crop.left + resolution] += 1
    assert covered.max(initial=0) <= 1


def test_photos_at_32_are_balanced_and_192() -> None:
    dataset = open_dataset("photos", 32)
    assert len(dataset.validation) == 192
    names = [name.split("/")[0] for name in dataset.train.ids]
    counts = [names.count(p.file.split(".")[0]) for p in PHOTOGRAPHS]
    assert min(counts) > 0.95 * max(counts) > 1800
    assert dataset.validation.load(191).shape == dataset.train.load(5).shape == (32, 32, 3)
    assert len({*dataset.train.ids, *dataset.validation.ids}) == len(dataset.train) + 192


def test_photos_are_the_files_of_the_wheel() -> None:
    for photograph in PHOTOGRAPHS:
        with Image.open(Path(find_skimage()) / "data" / photograph.file) as image:
            assert image.size == (photograph.width, photograph.height)
        text = (Path(find_skimage()) / "data" / "_fetchers.py").read_text(encoding="utf-8")
        assert photograph.file in text


def find_skimage() -> str:
    import importlib.util

    spec = importlib.util.find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parent)


def test_photos_crop_is_native_pixels() -> None:
    dataset = open_dataset("photos", 64)
    place = dataset.train.ids.index(next(i for i in dataset.train.ids if i.startswith("coffee/") and "x0000" not in i))
    _, at = dataset.train.ids[place].split("/y")
    top, left = (int(n) for n in at.split("-x"))
    with Image.open(Path(find_skimage()) / "data/coffee.png") as image:
        assert (dataset.train.load(place) == np.asarray(image)[top : top + 64, left : left + 64]).all()


def test_photos_drops_small_photographs_and_refuses_too_large() -> None:
    assert any("chelsea.png" in note for note in open_dataset("photos", 256).notes)
    largest = open_dataset("photos", 705)
    assert len(largest.train) > 0 < len(largest.validation)
    with pytest.raises(UsageError, match="large enough for 706") as error:
        open_dataset("photos", 706)
    assert "705" in error.value.hint


def test_photos_changed_wheel_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "skimage"
    save(package / "data" / "astronaut.png")
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "skimage", raising=False)
    with pytest.raises(UsageError, match=r"astronaut\.png is not the photograph"):
        open_dataset("photos", 32)


# folder


def test_folder_splits_by_hash_of_the_name_alone(tmp_path: Path) -> None:
    root = fill(tmp_path / "my faces!", [f"{k // 20:02d}/{k:03d}.png" for k in range(60)])
    first = open_dataset(f"folder:{root}", 32)
    save(root / "added.png")
    second = open_dataset(f"folder:{root}", 32)
    assert not set(first.train.ids) & set(first.validation.ids)
    assert len(first.train) + len(first.validation) == 60
    assert set(first.train.ids) <= set(second.train.ids)
    assert set(first.validation.ids) <= set(second.validation.ids)
    assert first.train_digest != second.train_digest
    assert (first.slug, first.protocol_name) == ("folder-my-faces", "folder-my-faces-hash90")
    assert first.reference == f"folder:{root}"


def test_folder_hash_share_is_a_tenth() -> None:
    from vqbench.data.folder import is_validation

    share = np.mean([is_validation(f"{k:05d}.jpg") for k in range(5000)])
    assert 0.085 < share < 0.115
    assert is_validation("caf\u00e9.png") == is_validation("cafe\u0301.png")


def test_folder_train_and_val(tmp_path: Path) -> None:
    root = fill(
        tmp_path / "set", ["train/a.png", "train/x/b.JPG", "val/c.webp", "left.png", ".hidden.png", ".git/d.png"]
    )
    (root / "train" / "labels.txt").write_text("not an image")
    dataset = open_dataset(f"folder:{root}", 32)
    assert list(dataset.train.ids) == ["train/a.png", "train/x/b.JPG"]
    assert list(dataset.validation.ids) == ["val/c.webp"]
    assert dataset.notes == ("1 images outside train/ and val/ are not used",)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "holds no image"),
        (["a.png"], r"only one image \(a\.png\)"),
        (["train/a.png", "train/b.png"], "has train/ but no val/"),
        (["a.png", "b.png"], "leaves no validation image among the 2"),
    ],
)
def test_folder_without_two_sides_is_refused(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        open_dataset(f"folder:{fill(tmp_path, names)}", 32)
    assert error.value.hint


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["Train", "Val"], "mv {root}/Train {root}/train; mv {root}/Val {root}/val"),
        (["TRAIN", "VALID"], "mv {root}/TRAIN {root}/train; mv {root}/VALID {root}/val"),
        (["training", "validation"], "mv {root}/training {root}/train; mv {root}/validation {root}/val"),
        (["train2017", "val2017"], "mv {root}/train2017 {root}/train; mv {root}/val2017 {root}/val"),
        (["Train", "Test", "Val"], "(mv {root}/Train {root}/train; mv {root}/Val {root}/val)"),
        (["Train", "b"], "mv {root}/Train {root}/train"),
        (["a", "Test set"], "mv '{root}/Test set' {root}/val"),
        (["set/train", "set/val"], "--dataset folder:{root}/set does"),
        (["Train/cats", "Val/cats"], "mv {root}/Train {root}/train; mv {root}/Val {root}/val"),
    ],
)
def test_folders_that_look_like_a_split_but_are_none_are_named(tmp_path: Path, names: list[str], said: str) -> None:
    dataset = open_dataset(f"folder:{fill(tmp_path, [f'{name}/{k}.png' for name in names for k in range(20)])}", 32)
    assert dataset.protocol_name.endswith("-hash90")  # as ever: what is stored stays good
    (note,) = dataset.notes[1:]
    assert "look like a split, but were not read as one" in note
    assert said.format(root=tmp_path) in note


@pytest.mark.parametrize("names", [["cats", "dogs"], ["trainers", "valves"], ["vehicles/train", "vehicles/bus"]])
def test_other_folders_are_not_taken_for_a_split(tmp_path: Path, names: list[str]) -> None:
    fill(tmp_path, [f"{name}/{k}.png" for name in names for k in range(20)])
    assert len(open_dataset(f"folder:{tmp_path}", 32).notes) == 1


@pytest.mark.parametrize(("names", "said"), [(["train", "Val"], "rename Val/ to val/"), (["val", "a"], "name the oth")])
def test_half_a_split_names_what_looks_like_the_other(tmp_path: Path, names: list[str], said: str) -> None:
    fill(tmp_path, [f"{name}/{k}.png" for name in names for k in range(2)])
    with pytest.raises(UsageError) as error:
        open_dataset(f"folder:{tmp_path}", 32)
    assert said in error.value.hint


def test_folder_with_an_empty_val_is_refused(tmp_path: Path) -> None:
    root = fill(tmp_path, ["train/a.png", "train/b.png"])
    (root / "val").mkdir()
    with pytest.raises(UsageError, match="val holds no image"):
        open_dataset(f"folder:{root}", 32)


def test_folder_that_is_missing_or_a_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        open_dataset(f"folder:{tmp_path}/none", 32)
    with pytest.raises(UsageError, match="is a file"):
        open_dataset(f"folder:{save(tmp_path / 'a.png')}", 32)


def test_loops_of_links_end_and_dangling_links_are_named(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", ["train/a.png", "val/b.png"])
    (root / "train" / "up").symlink_to(root)
    (root / "train" / "again").symlink_to(root / "train")
    assert len(open_dataset(f"folder:{root}", 32).train) == 1
    (root / "train" / "gone.png").symlink_to(root / "nowhere.png")
    with pytest.raises(UsageError, match=r"gone\.png: cannot be read"):
        open_dataset(f"folder:{root}", 32)


def digest_of_training(root: Path) -> str:
    return open_dataset(f"folder:{root}", 32).train_digest


def test_train_digest_follows_content_and_not_times_or_place(tmp_path: Path) -> None:
    names = ["train/a.bmp", "train/b.bmp", "val/c.bmp"]
    first = digest_of_training(fill(tmp_path / "one", names))
    assert digest_of_training(fill(tmp_path / "two", names)) == first, "the same on every machine"
    path = tmp_path / "one" / "train" / "b.bmp"
    size = path.stat().st_size
    save(path, seed=7)
    assert path.stat().st_size == size
    changed = digest_of_training(tmp_path / "one")
    assert changed != first
    save(tmp_path / "one" / "val" / "c.bmp", seed=8)
    assert digest_of_training(tmp_path / "one") == changed, "validation is told by its own digest"


@pytest.mark.parametrize(("at", "seen"), [(0, True), (16383, True), (16384, False), (-16385, False), (-16384, True)])
def test_train_digest_reads_both_ends_of_a_large_file(tmp_path: Path, at: int, seen: bool) -> None:
    root = fill(tmp_path / "set", ["train/a.bmp", "val/b.bmp"])
    path = root / "train" / "a.bmp"
    data = bytearray(50_000)
    path.write_bytes(data)
    first = digest_of_training(root)
    data[at] ^= 1
    path.write_bytes(data)
    assert (digest_of_training(root) != first) == seen


def test_train_digest_is_computed_once_for_a_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VQBENCH_HOME", str(tmp_path / "home"))
    root = fill(tmp_path / "set", ["train/a.png", "train/b.png", "val/c.png"])
    first = digest_of_training(root)
    (kept,) = (tmp_path / "home" / "prepared").iterdir()
    with monkeypatch.context() as patched:
        patched.setattr(files, "_ends", lambda file: pytest.fail(f"{file} was read again"))
        assert digest_of_training(root) == first
    kept.write_text("half a dig")
    assert digest_of_training(root) == first
    assert kept.read_text() == first
    os.utime(root / "train" / "a.png", ns=(0, 0))
    assert digest_of_training(root) == first
    assert len(list((tmp_path / "home" / "prepared").iterdir())) == 2, "another listing, and no temporary file"


def test_train_digest_needs_no_home_that_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fill(tmp_path / "set", ["train/a.png", "val/c.png"])
    first = digest_of_training(root)
    (tmp_path / "file").touch()
    monkeypatch.setenv("VQBENCH_HOME", str(tmp_path / "file"))
    assert digest_of_training(root) == first


def test_a_file_that_went_away_since_it_was_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fill(tmp_path / "set", ["train/a.png", "val/c.png"])
    listed = files.list_images(root)
    (root / "train" / "a.png").unlink()
    monkeypatch.setattr("vqbench.data.folder.list_images", lambda root: listed)
    with pytest.raises(UsageError, match=r"train/a\.png: cannot be read \(No such file"):
        digest_of_training(root)


def test_faces200_splits_as_stated(tmp_path: Path) -> None:
    dataset = open_dataset(f"folder:{unpack('faces200', tmp_path)}", 32)
    assert (len(dataset.train), len(dataset.validation)) == (5391, 584)
    assert dataset.slug == "folder-faces200"


# ffhq


@pytest.fixture(scope="module")
def thumbnails(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack("ffhq_thumbs128_113", tmp_path_factory.mktemp("ffhq"))


def test_ffhq_part_is_split_six_to_one_and_says_so(thumbnails: Path) -> None:
    dataset = open_dataset("ffhq", 64, thumbnails)
    assert (len(dataset.train), len(dataset.validation)) == (97, 16)
    assert all(int(name) % 7 == 6 for name in dataset.validation.ids)
    assert dataset.protocol_name == "ffhq-6to1-of-113"
    assert "113 of the 70,000 images are here: 97 train and 16 validation" in dataset.notes[0]
    assert "no id reaches 60000: split 6:1" in dataset.notes[1]
    assert dataset.validation.load(0).shape == (64, 64, 3)


@pytest.mark.parametrize("layout", ["{0:05d}.png", "{1:05d}/{0:05d}.png", "images1024x1024/{1:05d}/{0:05d}.jpg"])
def test_ffhq_official_split_in_every_layout(tmp_path: Path, layout: str) -> None:
    numbers = [0, 6, 999, 1000, 59999, 60000, 69999]
    fill(tmp_path, [layout.format(n, n // 1000 * 1000) for n in numbers])
    dataset = open_dataset("ffhq", 32, tmp_path)
    assert list(dataset.train.ids) == ["00000", "00006", "00999", "01000", "59999"]
    assert list(dataset.validation.ids) == ["60000", "69999"]
    assert dataset.protocol_name == "ffhq-7-of-70000"


def test_ffhq_chooses_the_layout_that_fits(tmp_path: Path) -> None:
    for number in (0, 6):
        save(tmp_path / f"thumbnails128x128/{number:05d}.png", 128, 128)
        save(tmp_path / f"images1024x1024/{number:05d}.png", 300, 300, seed=9)
    small, large = open_dataset("ffhq", 128, tmp_path), open_dataset("ffhq", 256, tmp_path)
    assert "thumbnails128x128 is read at 128 px" in small.notes[0]
    assert large.train.load(0).shape == (256, 256, 3)
    for number in (0, 6):
        (tmp_path / f"images1024x1024/{number:05d}.png").unlink()
    (tmp_path / "images1024x1024").rmdir()
    with pytest.raises(UsageError, match="too small for 256"):
        open_dataset("ffhq", 256, tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat.png"], "no FFHQ image in"),
        (["00001.png", "00000/00001.jpg"], "00001 is here twice"),
        (["60001.png", "60002.png"], "none of them for training"),
        (["00001.png", "00002.png"], "none of them for validation"),
    ],
)
def test_ffhq_refuses(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_dataset("ffhq", 32, fill(tmp_path, names))


def test_ffhq_without_data_root() -> None:
    with pytest.raises(UsageError, match="needs --data-root"):
        open_dataset("ffhq", 32)


# cifar10


def fake_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    from torchvision.datasets import CIFAR10

    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for k, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        pixels = np.random.default_rng(k).integers(0, 256, (4, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [0] * 4}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["a"]}))
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(CIFAR10, "_load_meta", lambda self: None)


def test_cifar10_reads_what_torchvision_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cifar10(tmp_path, monkeypatch)
    dataset = open_dataset("cifar10", 32, tmp_path)
    assert (len(dataset.train), len(dataset.validation)) == (50_000, 10_000)
    raw = np.random.default_rng(1).integers(0, 256, (4, 3072), dtype=np.uint8)  # data_batch_2
    assert (dataset.train.load(5) == raw[1].reshape(3, 32, 32).transpose(1, 2, 0)).all()
    assert dataset.validation.load(0).shape == (32, 32, 3)


def test_cifar10_with_a_changed_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        fake_cifar10(tmp_path, patched)
    with pytest.raises(UsageError, match="md5 differs"):
        open_dataset("cifar10", 32, tmp_path).train.load(0)


def test_cifar10_absent_names_the_file_and_the_command(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cifar-10-batches-py/batches\.meta") as error:
        open_dataset("cifar10", 32, tmp_path)
    assert f"vqbench prepare --dataset cifar10 --data-root {tmp_path}" in error.value.hint
    with pytest.raises(UsageError, match="32 px, not 64"):
        open_dataset("cifar10", 64, tmp_path)
    with pytest.raises(UsageError, match="needs --data-root"):
        open_dataset("cifar10", 32)


# all


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("photo", "unknown dataset 'photo'; did you mean photos"),
        ("photos:x", "takes nothing"),
        ("folder", "folder:PATH"),
    ],
)
def test_reference_is_checked(reference: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_dataset(reference, 32)


def test_a_holdout_takes_the_place_of_the_validation_images(images: Path) -> None:
    whole, held = (open_dataset(f"folder:{images}", 32, holdout=share) for share in (None, 0.25))
    assert len(held.validation) == 16
    assert {*held.train.ids, *held.validation.ids} == {*whole.train.ids}
    assert not {*held.train.ids} & {*held.validation.ids}
    assert all(held.validation.load(i).shape == (32, 32, 3) for i in range(16))
    assert held.validation.measure(0) == (32, 32)
    assert held.protocol_name == f"{whole.protocol_name}-holdout25"
    assert held.train_digest != whole.train_digest
    assert "16 of 64 training items are held out and score" in held.notes[-1]
    some = open_dataset(f"folder:{images}", 32, holdout=0.25, validation_images=4)
    assert {*some.validation.ids} < {*held.validation.ids}
    for share in (0.001, 0.999):
        with pytest.raises(UsageError, match=r"of the 64 training items .* leaves nothing to"):
            open_dataset(f"folder:{images}", 32, holdout=share)


def test_what_is_decoded_once_serves_every_holdout(images: Path, tmp_path: Path) -> None:
    for share in (None, 0.25, 0.5):
        held = open_dataset(f"folder:{images}", 32, holdout=share)
        train = prepare_train(held, tmp_path)
        assert is_cached(train)
        assert list(train.ids) == list(held.train.ids)
        assert np.array_equal(train.load(3), held.train.load(3))
    assert len(list((tmp_path / "prepared").glob("folder*-train-*"))) == 1


def test_crops_of_one_photograph_are_never_on_both_sides_of_a_holdout() -> None:
    held = open_dataset("photos", 32, holdout=0.1)
    left, chosen = ({name.partition("/")[0] for name in images.ids} for images in (held.train, held.validation))
    assert len(chosen) == 1
    assert len(left) == 5
    assert not left & chosen
    with pytest.raises(UsageError, match="in 6 groups of photos leaves nothing to train on"):
        open_dataset("photos", 32, holdout=0.95)


def test_first_validation_images_are_nested_and_named() -> None:
    whole, many, few = (open_dataset("photos", 32, validation_images=n) for n in (None, 64, 16))
    assert set(few.validation.ids) < set(many.validation.ids) < set(whole.validation.ids)
    assert (len(few.validation), few.protocol_name, whole.protocol_name) == (16, "photos-first16", "photos")
    assert few.train_digest == whole.train_digest
    position = whole.validation.ids.index(few.validation.ids[3])
    assert (few.validation.load(3) == whole.validation.load(position)).all()
    for count in (0, 193):
        with pytest.raises(UsageError, match="192"):
            open_dataset("photos", 32, validation_images=count)


def test_datasets_import_no_torch() -> None:
    code = (
        "import sys; from vqbench.data.dataset import open_dataset; from vqbench.registry import DATASETS\n"
        "[DATASETS.get(n) for n in ('photos', 'folder', 'ffhq', 'cifar10')]\n"
        "open_dataset('photos', 32).train.load(0)\n"
        "print([m for m in ('torch', 'torchvision', 'skimage', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_dataset_has_a_summary() -> None:
    from vqbench.registry import DATASETS

    assert {"photos", "folder", "ffhq", "cifar10"} <= set(DATASETS.names())
    assert all("(" in DATASETS.outline(n).summary for n in ("photos", "folder", "ffhq", "cifar10"))
