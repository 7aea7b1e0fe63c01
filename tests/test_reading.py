"""How an encoded image becomes pixels is chosen and stated: resize rules, small images, orientation, split lists."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL
import pytest
from helpers.commands import settings as small_recipe
from helpers.commands import typed
from helpers.images import write_images
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import vqbench
from vqbench.cell.images_track import ImagesTrack
from vqbench.data.dataset import DataReference, Dataset, open_dataset
from vqbench.data.decode import RESIZE_RULES, SMALL, ImageFileError, Reading, decode_image, measure_image
from vqbench.data.features import EncodedDataset
from vqbench.data.files import FileImages, list_images
from vqbench.data.prepare import decoded_bytes, is_cached, prepare_train, prepare_validation
from vqbench.data.split_list import SplitList
from vqbench.data.stream import TrainingStream
from vqbench.errors import UsageError
from vqbench.machine.home import home
from vqbench.metrics.protocol import LANCZOS, Protocol, protocol_for
from vqbench.pretrained.own import open_own
from vqbench.recipe import Recipe, load_recipe
from vqbench.registry import DATASETS


def noise(height: int, width: int, seed: int = 0, hard: bool = False) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return (pixels // 128 * 255).astype(np.uint8) if hard else pixels


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=0)
    return file.getvalue()


def save(path: Path, height: int, width: int, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(height, width, seed)).save(path)
    return path


def recipe_of(resolution: int) -> Recipe:
    return load_recipe("tiny", {"resolution": resolution})


def protocol_of(root: Path, resolution: int = 32, **asked: Any) -> Protocol:
    _, protocol = ImagesTrack().open(recipe_of(resolution), DataReference(f"folder:{root}", **asked))
    assert isinstance(protocol, Protocol)
    return protocol


# resize rules

sides = st.integers(1, 150)


def by_pillow(filter: Image.Resampling, pixels: np.ndarray, side: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    scale = side / min(height, width)
    size = (round(width * scale), round(height * scale))
    return np.asarray(Image.fromarray(pixels).resize(size, filter))


def by_adm(pixels: np.ndarray, side: int) -> np.ndarray:
    image = Image.fromarray(pixels)
    while min(*image.size) >= 2 * side:
        image = image.resize((image.size[0] // 2, image.size[1] // 2), Image.Resampling.BOX)
    return by_pillow(Image.Resampling.BICUBIC, np.asarray(image), side)


def by_opencv(pixels: np.ndarray, side: int) -> np.ndarray:
    """As albumentations' SmallestMaxSize has OpenCV do it."""
    height, width = pixels.shape[:2]
    scale = side / min(height, width)
    return cv2.resize(pixels, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_LINEAR)


RULES = {
    "lanczos": lambda pixels, side: by_pillow(Image.Resampling.LANCZOS, pixels, side),
    "bicubic": lambda pixels, side: by_pillow(Image.Resampling.BICUBIC, pixels, side),
    "bilinear": lambda pixels, side: by_pillow(Image.Resampling.BILINEAR, pixels, side),
    "box+bicubic": by_adm,
    "cv2-bilinear-noaa": by_opencv,
}


def test_every_rule_is_held_to_its_origin() -> None:
    assert set(RULES) == set(RESIZE_RULES)


@pytest.mark.parametrize("rule", RULES)
@given(height=sides, width=sides, resolution=st.integers(1, 70), hard=st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_rule_is_its_origin_to_the_bit(rule: str, height: int, width: int, resolution: int, hard: bool) -> None:
    pixels = noise(height, width, height * width, hard)
    reading, file = Reading(resize=rule, small="enlarge"), png(pixels)
    found = decode_image(file, resolution, reading, "x")
    assert found.dtype == np.uint8
    assert np.array_equal(found, RULES[rule](pixels, resolution))
    assert measure_image(file, resolution, reading, "x") == found.shape[:2]


@given(height=sides, width=sides, down=st.integers(1, 4), across=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_whole_ratios_are_opencv_s_too(height: int, width: int, down: int, across: int) -> None:
    """For which it has ways of its own."""
    pixels = noise(height * down, width * across, 1, hard=True)
    found = RESIZE_RULES["cv2-bilinear-noaa"].resized(Image.fromarray(pixels), (width, height))
    assert np.array_equal(np.asarray(found), cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR))


@given(length=st.integers(1000, 8000), target=st.integers(100, 3000))
@settings(max_examples=40, deadline=None)
def test_places_along_long_lines_are_opencv_s_too(length: int, target: int) -> None:
    """Where they do not fit into the bits of a float."""
    pixels = noise(2, length)
    for image, size in ((pixels, (target, 2)), (pixels.transpose(1, 0, 2).copy(), (2, target))):
        found = RESIZE_RULES["cv2-bilinear-noaa"].resized(Image.fromarray(image), size)
        assert np.array_equal(np.asarray(found), cv2.resize(image, size, interpolation=cv2.INTER_LINEAR))


@pytest.mark.parametrize("rule", RULES)
def test_a_scale_leaves_room_for_the_crop(tmp_path: Path, rule: str) -> None:
    for i in range(4):
        save(tmp_path / "set" / ("val" if i == 3 else "train") / f"{i}.png", 90 + i, 71, i)
    dataset = open_dataset(f"folder:{tmp_path / 'set'}", 32, rules={"resize": rule, "scale": 1.125})
    whole = RULES[rule](noise(93, 71, 3), 36)
    top, left = (whole.shape[0] - 32) // 2, 2
    assert np.array_equal(dataset.validation.load(0), whole[top : top + 32, left : left + 32])
    assert prepare_validation(dataset, tmp_path).pixels.shape == (1, 32, 32, 3)
    train = prepare_train(dataset, tmp_path)
    assert is_cached(train)
    assert [train.measure(i) for i in range(3)] == [dataset.train.measure(i) for i in range(3)]
    assert {min(train.measure(i)) for i in range(3)} == {36}
    assert decoded_bytes(train) == decoded_bytes(dataset.train) == sum(train.load(i).size for i in range(3))
    stream = TrainingStream(train, 32, 0, random_crop=True, flip=False)
    places = set()
    for position in range(30):
        crop, image = stream[position].numpy().transpose(1, 2, 0), train.load(stream.item(position))
        windows = np.lib.stride_tricks.sliding_window_view(image, (32, 32, 3))[:, :, 0]
        places |= {tuple(place) for place in np.argwhere((windows == crop).all((-1, -2, -3)))}
    assert {left for _, left in places} == {0, 1, 2, 3, 4}


def test_a_rule_that_there_is_not_is_named(images: Path) -> None:
    with pytest.raises(UsageError, match="unknown resize rule 'bicubik'; did you mean bicubic"):
        DataReference("photos", resize="bicubik")
    with pytest.raises(UsageError, match="unknown rule for small images 'leave-out'; did you mean leave_out"):
        DataReference("photos", small="leave-out")
    for scale in (0.9, 5.0):
        with pytest.raises(UsageError, match=f"--resize-scale {scale:g} is not between 1 and 4"):
            DataReference("photos", resize_scale=scale)
    with pytest.raises(UsageError, match=r"--resize and --split-list: of images, and --features x\.npy"):
        DataReference(features=Path("x.npy"), resize="bicubic", split_list=Path("y.txt"))


@pytest.mark.parametrize(("dataset", "resolution"), [("photos", 32), ("cifar10", 32)])
def test_pixels_have_no_rule(tmp_path: Path, dataset: str, resolution: int) -> None:
    for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch", "batches.meta"):
        path = tmp_path / "cifar-10-batches-py" / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    with pytest.raises(UsageError, match=f"--resize and --small decide how .* {dataset} are pixels already"):
        open_dataset(dataset, resolution, tmp_path, rules={"resize": "bicubic", "small": "enlarge"})
    with pytest.raises(UsageError, match=f"--split-list x.txt: the images of {dataset} are no files"):
        open_dataset(dataset, resolution, tmp_path, split_list=Path("x.txt"))


# what is said, and told apart

READINGS: list[dict[str, Any]] = [
    {"resize": rule, "resize_scale": scale, "small": small}
    for rule in RULES for scale in (1.0, 1.125, 1.1250001) for small in SMALL
]  # fmt: skip


def test_two_readings_never_share_a_protocol(images: Path) -> None:
    """Not even of images whose pixels no rule changes."""
    root = images.parent / "as large"
    write_images(root / "train", 2, side=32)
    write_images(root / "val", 2, side=32)
    large_enough = [reading for reading in READINGS if reading["resize_scale"] == 1.0 or reading["small"] == "enlarge"]
    protocols = [protocol_of(root, **reading) for reading in large_enough]
    assert len({protocol.hash for protocol in protocols}) == len(protocols)
    whole = zip(protocols, large_enough, strict=True)
    assert len({protocol.validation_digest for protocol, reading in whole if reading["resize_scale"] == 1.0}) == 1


def test_every_reading_is_said_in_words_of_its_own() -> None:
    readings = [
        Reading(rule, scale, small, upright)
        for rule in RULES for scale in (1.0, 1.125) for small in SMALL for upright in (True, False)
    ]  # fmt: skip
    assert len({protocol_for("a", 32, "0", 1, "b", **reading.in_words).hash for reading in readings}) == len(readings)
    assert Reading().in_words == {}


def test_as_ever_says_nothing_new(images: Path) -> None:
    plain, asked = protocol_of(images), protocol_of(images, resize="lanczos", resize_scale=1.0, small="refuse")
    assert plain.as_dict() == asked.as_dict()
    assert plain.resize == LANCZOS
    assert not {"small", "orientation", "small_images"} & set(plain.as_dict())


def test_a_protocol_says_how_images_are_read(images: Path) -> None:
    protocol = protocol_of(images, 48, resize="box+bicubic", resize_scale=1.125, small="enlarge")
    assert protocol.name == "folder-images-train-val-box-bicubic-scale1.125-enlarge-48-v1".replace(
        "images", images.name
    )
    assert "PIL box by halves" in protocol.resize
    assert protocol.resize.endswith("then PIL bicubic, short side to 1.125 times the resolution, rounded")
    assert (
        "64 of 64 training images and 12 of 12 validation images have a short side below 54 px" in protocol.describe()
    )
    known = protocol.as_dict()
    assert (known["small"], known["small_images"]) == ("enlarged", protocol.small_images)
    other = protocol_for("a", 32, "0", 1, "b", small="enlarged", small_images="3 of 4")
    assert other.hash == protocol_for("a", 32, "0", 1, "b", small="enlarged", small_images="1 of 4").hash


def test_readings_are_decoded_apart(images: Path, tmp_path: Path) -> None:
    plain, other = (open_dataset(f"folder:{images}", 24, rules={"resize": r}) for r in ("lanczos", "bilinear"))
    assert plain.train_digest == open_dataset(f"folder:{images}", 24).train_digest != other.train_digest
    for dataset in (plain, other):
        train, validation = prepare_train(dataset, tmp_path), prepare_validation(dataset, tmp_path)
        assert is_cached(train)
        assert np.array_equal(train.load(0), dataset.train.load(0))
        assert np.array_equal(validation.pixels[0], dataset.validation.load(0))
    assert not np.array_equal(plain.train.load(0), other.train.load(0))


def test_features_of_other_pixels_have_another_protocol(images: Path, tmp_path: Path) -> None:
    recipe = load_recipe("atomic")
    found = {}
    for rules in ({}, {"resize": "bicubic"}, {"small": "enlarge"}):
        dataset = open_dataset(f"folder:{images}", recipe.resolution, rules=rules)
        protocol = EncodedDataset(dataset, prepare_validation(dataset, tmp_path), recipe).protocol
        found[protocol.hash] = protocol
    plain, bicubic, enlarged = found.values()
    assert "resize" not in plain.source
    assert bicubic.source.endswith("; resize: PIL bicubic, short side to the resolution")
    assert "0 of 64 training images" in enlarged.describe()


# small images


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Ten training and five validation images, of which three and one are small."""
    for i in range(10):
        save(tmp_path / "mixed" / "train" / f"{i}.png", 50, 20 if i < 3 else 40, i)
    for i in range(5):
        save(tmp_path / "mixed" / "val" / f"{i}.png", 31 if i == 2 else 32, 60, i)
    return tmp_path / "mixed"


def test_small_images_are_refused_unless_it_is_asked(mixed: Path) -> None:
    dataset = open_dataset(f"folder:{mixed}", 32)
    with pytest.raises(ImageFileError, match=r"val/2.png: 60×31 pixels, smaller than the resolution 32") as error:
        dataset.validation.load(2)
    assert "--small" in error.value.hint
    assert dataset.validation.load(1).shape == (32, 32, 3)
    scaled = open_dataset(f"folder:{mixed}", 32, rules={"scale": 1.125})
    with pytest.raises(ImageFileError, match=r"60×32 pixels, smaller than the 36 px") as error:
        scaled.validation.load(1)
    assert "a resolution of 28 or less" in error.value.hint


def test_small_images_are_enlarged_and_counted(mixed: Path) -> None:
    dataset = open_dataset(f"folder:{mixed}", 32, rules={"small": "enlarge"})
    assert dataset.notes[-1] == (
        "3 of 10 training images and 1 of 5 validation images have a short side below 32 px and are enlarged"
    )
    assert dataset.train.load(0).shape == (80, 32, 3)
    held = open_dataset(f"folder:{mixed}", 32, rules={"small": "enlarge"}, holdout=0.3, validation_images=2)
    small = [{"0.png", "1.png", "2.png"} & {name[6:] for name in side.ids} for side in (held.train, held.validation)]
    assert held.small_images.startswith(
        f"{len(small[0])} of 7 training images and {len(small[1])} of 2 validation images have"
    )


def test_small_images_are_left_out_and_counted(mixed: Path, tmp_path: Path) -> None:
    dataset = open_dataset(f"folder:{mixed}", 32, rules={"small": "leave_out"})
    assert [len(dataset.train), len(dataset.validation)] == [7, 4]
    assert "val/2.png" not in dataset.validation.ids
    assert "3 of 10 training images and 1 of 5 validation images have" in dataset.notes[-1]
    validation, train = prepare_validation(dataset, tmp_path), prepare_train(dataset, tmp_path)
    assert is_cached(train)
    assert validation.ids == tuple(dataset.validation.ids)
    assert np.array_equal(train.load(0), decode_image(mixed / "train" / "3.png", 32))
    by_hash = open_dataset(f"folder:{mixed / 'train'}", 32, rules={"small": "leave_out"})
    sides = f"{len(by_hash.train)} train, {len(by_hash.validation)} validation"
    assert by_hash.notes[-1] == f"10 images split by hash of the path: {sides}"
    assert len(by_hash.train) + len(by_hash.validation) == 7
    large = open_dataset(f"folder:{mixed}", 20, rules={"small": "leave_out"})
    assert (len(large.train), large.notes[-1][:25]) == (10, "0 of 10 training images a")
    with pytest.raises(UsageError, match=r"all 10 training images of folder:.* are too small"):
        open_dataset(f"folder:{mixed}", 45, rules={"small": "leave_out"})


def test_headers_are_read_once(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"rules": {"small": "leave_out"}}
    first = open_dataset(f"folder:{mixed}", 32, **asked)
    monkeypatch.setattr(FileImages, "short_side", lambda *_: pytest.fail("read again"))
    again = open_dataset(f"folder:{mixed}", 32, **asked)
    assert list(again.train.ids) == list(first.train.ids)
    assert len(open_dataset(f"folder:{mixed}", 10, **asked).train) == 10  # at any resolution
    monkeypatch.undo()
    save(mixed / "train" / "0.png", 90, 90)
    assert len(open_dataset(f"folder:{mixed}", 32, **asked).train) == 8


def test_an_unreadable_header_leaves_nothing_out_and_is_not_remembered(mixed: Path) -> None:
    (mixed / "train" / "7.png").write_bytes(b"no image")
    dataset = open_dataset(f"folder:{mixed}", 32, rules={"small": "leave_out"})
    assert "train/7.png" in dataset.train.ids
    with pytest.raises(ImageFileError, match=r"7\.png: not a PNG"):
        dataset.train.load(dataset.train.ids.index("train/7.png"))
    key = FileImages([file for file in list_images(mixed) if file.id.startswith("train/")], 32, crop=False).content_key
    kept = home() / "prepared"
    assert not (kept / f"short-sides-{key[:24]}.npy").exists()
    assert list(kept.glob("short-sides-*.npy"))


# orientation, and what a name says


def turned(path: Path) -> np.ndarray:
    """A JPEG of 60×40 that EXIF says to turn."""
    exif = Image.Exif()
    exif[274] = 6
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(40, 60)).save(path, exif=exif)
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_a_dataset_says_whether_images_are_turned(tmp_path: Path) -> None:
    for side, name in (("train", "a"), ("val", "b")):
        as_stored = turned(tmp_path / "set" / side / f"{name}.jpg")
    files = [list_images(tmp_path / "set" / side) for side in ("train", "val")]

    @DATASETS.register("stored")
    class Stored(Dataset):
        """Images as they are stored."""

        reference = slug = protocol_name = "stored"
        split_rule = "Two folders."

        def __init__(self, argument: str, resolution: int, data_root: Path | None) -> None:
            super().__init__(argument, resolution, data_root)
            reading = Reading(small="enlarge", upright=False)
            self.train = FileImages(files[0], resolution, crop=False, reading=reading)
            self.validation = FileImages(files[1], resolution, crop=True, reading=reading)
            self.train_digest = self.train.contents()

    dataset = open_dataset("stored", 40)
    assert np.array_equal(dataset.train.load(0), as_stored)
    assert dataset.train.measure(0) == (40, 60)
    upright = open_dataset(f"folder:{tmp_path / 'set'}", 40)
    assert np.array_equal(upright.train.load(0), np.rot90(as_stored, -1))
    _, protocol = ImagesTrack().open(recipe_of(40), DataReference("stored"))
    assert isinstance(protocol, Protocol)
    assert protocol.name == "stored-40-v1"
    assert "orientation: as stored: what EXIF says of it is ignored" in protocol.describe()
    assert protocol.as_dict()["small"] == "enlarged"
    _, other = ImagesTrack().open(recipe_of(40), DataReference("stored", small="refuse", resize="bicubic"))
    assert isinstance(other, Protocol)
    assert other.name == "stored-bicubic-refuse-40-v1"
    assert "small" not in other.as_dict()
    assert other.orientation == protocol.orientation
    exchanged = open_dataset("stored", 40, split_list=listed(tmp_path, "a"), rules={"small": "leave_out", "scale": 1.0})
    assert [*exchanged.train.ids, *exchanged.validation.ids] == ["b.jpg", "a.jpg"]
    assert np.array_equal(exchanged.train.load(0), as_stored)
    assert np.array_equal(exchanged.validation.load(0), as_stored[:, 10:50])


def test_what_a_file_holds_decides_and_not_its_name(tmp_path: Path) -> None:
    pixels = noise(40, 40)
    (tmp_path / "a.JPEG").write_bytes(png(pixels))
    assert np.array_equal(decode_image(tmp_path / "a.JPEG", 40), pixels)
    ink = Image.fromarray(np.full((40, 40, 4), (0, 255, 255, 0), np.uint8), "CMYK")  # magenta and yellow
    ink.save(tmp_path / "b.png", "JPEG", quality=95)
    for i in (3, 4):
        save(tmp_path / f"{i}.png", 40, 40)
    assert abs(decode_image(tmp_path / "b.png", 40).astype(int) - [255, 0, 0]).max() <= 4
    assert {"a.JPEG", "b.png"} <= {file.id for file in list_images(tmp_path)}


# split lists


def listed(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "validation.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    "names", [("train/0.png", "val/3.png"), ("./val/3", "  train/0  ", ""), ("val/3.npy", "train/0")]
)
def test_a_list_says_what_is_validation(mixed: Path, tmp_path: Path, names: tuple[str, ...]) -> None:
    dataset = open_dataset(f"folder:{mixed}", 20, split_list=listed(tmp_path, *names))
    assert list(dataset.validation.ids) == ["train/0.png", "val/3.png"]
    assert [*dataset.train.ids] == sorted({f.id for f in list_images(mixed)} - {"train/0.png", "val/3.png"})
    assert np.array_equal(dataset.validation.load(1), decode_image(mixed / "val" / "3.png", 20)[:, 9:29])
    assert dataset.train.load(dataset.train.ids.index("val/0.png")).shape == (20, 38, 3)
    assert dataset.notes == ("split by validation.txt: 2 images are validation, the other 13 are trained on",)


def test_a_list_is_part_of_protocol_and_training_set(mixed: Path, tmp_path: Path) -> None:
    digests, hashes = set(), set()
    for names in (["val/3"], ["val/3.png"], ["val/3", "val/4"]):
        file = listed(tmp_path, *names)
        dataset = open_dataset(f"folder:{mixed}", 20, split_list=file)
        protocol = protocol_of(mixed, 20, split_list=file)
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        assert sha256 in protocol.split_rule
        assert protocol.name == f"folder-mixed-list-{sha256[:8]}-20-v1"
        digests.add(dataset.train_digest)
        hashes.add(protocol.hash)
    assert len(digests) == len(hashes) == 3
    assert not hashes & {protocol_of(mixed, 20).hash}


def test_what_is_decoded_once_serves_every_list(mixed: Path, tmp_path: Path) -> None:
    for name in ("val/3", "train/5"):
        dataset = open_dataset(f"folder:{mixed}", 20, split_list=listed(tmp_path, name), rules={"small": "leave_out"})
        train, validation = prepare_train(dataset, tmp_path), prepare_validation(dataset, tmp_path)
        assert is_cached(train)
        assert all(np.array_equal(train.load(i), dataset.train.load(i)) for i in range(len(train)))
        assert np.array_equal(validation.pixels[0], dataset.validation.load(0))
    assert len(list((tmp_path / "prepared").glob("folder*-train-*"))) == 1


@pytest.mark.parametrize("layout", ["{:05d}.png", "{0:05d}/{0:05d}.jpg"])
def test_ffhq_by_a_list_as_taming_has_it(tmp_path: Path, layout: str) -> None:
    for number in range(12):
        save(tmp_path / "ffhq" / layout.format(number), 20, 20, number)
    file = listed(tmp_path, "00000.png", "00007.png")
    dataset = open_dataset("ffhq", 20, tmp_path / "ffhq", split_list=file)
    assert list(dataset.validation.ids) == ["00000", "00007"]
    assert len(dataset.train) == 10
    assert dataset.protocol_name.startswith("ffhq-list-")
    assert not [note for note in dataset.notes if "6:1" in note]
    by_number = open_dataset("ffhq", 20, tmp_path / "ffhq", split_list=listed(tmp_path, "imgHQ00007.npy"))
    assert list(by_number.validation.ids) == ["00007"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train/0", "val/9", "trein/8.png"],
         r"2 of the 3 ids in .* are not in .*: val/9 \(nearest: val/\d.png\), trein/8.png \(nearest: train/8.png\)"),
        (["cat"], r"an id in --split-list .* is not in"),
        (["0"], r"0 stands for 2 images of .*: train/0.png, val/0.png"),
        (["val/0", "val/0.png"], r"lists val/0.png twice: val/0 and val/0.png"),
        ([], "lists nothing"),
        ([f"{side}/{i}" for side, count in (("train", 10), ("val", 5)) for i in range(count)], "names every image"),
    ],
)  # fmt: skip
def test_a_list_that_does_not_fit_is_refused(mixed: Path, tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_dataset(f"folder:{mixed}", 20, split_list=listed(tmp_path, *names))


def test_a_list_that_cannot_be_read_is_refused(mixed: Path, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    for name, message in (("absent.txt", "No such file"), ("latin.txt", "is no text in UTF-8")):
        with pytest.raises(UsageError, match=message):
            open_dataset(f"folder:{mixed}", 20, split_list=tmp_path / name)


def test_many_ids_are_found_in_a_second() -> None:
    ids = [f"n{i // 1000:08d}_{i}" for i in range(50_000)]
    wanted = SplitList(Path("list"), tuple(f"x/{name}.JPEG" for name in ids[::10]), "0")
    started = time.process_time()
    assert wanted.positions(ids, "made") == list(range(0, 50_000, 10))
    with pytest.raises(UsageError, match=r"x \(nearest: n00000049_"):
        SplitList(Path("list"), ("n00000049_x",), "0").positions(ids, "made")
    assert time.process_time() - started < 5


# as a person asks for it

ASKED: dict[str, object] = {"resize": "box+bicubic", "resize_scale": 1.125, "small": "enlarge"}


def words(asked: Mapping[str, object]) -> list[object]:
    return [word for name, value in asked.items() for word in (f"--{name.replace('_', '-')}", value)]


def test_a_run_is_read_as_it_was_asked_for(mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the command line, in a file and in Python: one cell, whose result says all of it."""
    monkeypatch.chdir(tmp_path)
    asked = ASKED | {"split_list": listed(tmp_path, "train/0", "val/2", "val/3"), "format": "jpeg:90"}
    same = ["--methods", "vqgan", "--dataset", f"folder:{mixed}", "--runs", "runs", "--metrics", "psnr", "--images", 8,
            *small_recipe("resolution=32")]  # fmt: skip
    done = typed("run", *same, *words(asked | {"split_list": "validation.txt"}), "--json")
    assert done.code == 0, done.err
    assert "5 of 12 training images and 3 of 3 validation images have a short side below 36 px" in done.err
    assert "training images are re-encoded as JPEG (4:2:0) of quality 90, as validation images never are" in done.err
    (row,) = done.objects
    result = json.loads((Path(row["path"]) / "result.json").read_text())
    assert {name: result["dataset"][name] for name in asked} == asked | {"split_list": str(asked["split_list"])}
    assert result["protocol"]["small"] == "enlarged"
    assert result["protocol"]["small_images"].startswith("5 of 12 training images and 3 of 3 validation images")
    assert open_own(Path(row["path"])).facts.trained_on.endswith(", 32 px, jpeg:90")
    assert result["protocol"]["n_images"] == 3
    assert result["protocol"]["name"].endswith("-jpeg90-32-v1")
    assert result["protocol"]["training_images"].startswith("re-encoded as JPEG (4:2:0) of quality 90")
    assert result["versions"]["pillow"] == PIL.__version__
    (tmp_path / "asked.yaml").write_text("".join(f"{name}: {value}\n" for name, value in asked.items()))
    again = typed("run", *same, "--config", "asked.yaml", "--dry-run", "--json")
    assert [cell["state"] for cell in again.objects if "state" in cell] == ["cached"]
    options = {"runs": tmp_path / "runs", "metrics": "psnr", "images": 8, "track": False}
    overrides = small_recipe("resolution=32")[1::2]
    rows = vqbench.run("vqgan", f"folder:{mixed}", settings=overrides, **options, **asked)
    assert list(rows["state"]) == ["cached"]
    plain = typed("run", *same, "--small", "enlarge", "--dry-run", "--json")
    assert [cell["state"] for cell in plain.objects if "state" in cell] == ["missing"]
    other = typed("run", *same, *words(asked | {"format": "jpeg:91"}), "--dry-run", "--json")
    (cell,) = (cell for cell in other.objects if "state" in cell)
    assert cell["state"] == "missing"
    assert cell["protocol"] != row["protocol"], "no column holds two qualities"


@pytest.mark.slow
def test_prepare_ablate_and_sweep_read_so_too(mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = ["--dataset", f"folder:{mixed}", *words(ASKED), "--split-list", listed(tmp_path, "train/0", "val/2")]
    prepared = typed("prepare", *data, "--metrics", "psnr")
    assert prepared.code == 0, prepared.err
    assert "13 training and 2 validation images" in prepared.out
    protocol = prepared.out.split("protocol ")[1].split()[1]
    assert "have a short side below 36 px and are enlarged" in prepared.err
    quick = [*data, "--images", 8, "--runs", "runs", "--metrics", "psnr", *small_recipe()]
    ablated = typed("ablate", "vaevq", *quick, "--drop", "dcr", "--json")
    assert ablated.code == 0, ablated.err
    specs = [json.loads(path.read_text()) for path in Path("runs").glob("*/cells/*/spec.json")]
    assert len(specs) == 2
    assert {spec["protocol"]["hash"] for spec in specs} == {protocol}
    (tmp_path / "sizes.yaml").write_text("recipe: {learning_rate: [0.001, 0.002]}\n")
    sweep = ["sweep", "vqgan", *quick, "--space", "sizes.yaml", "--sampler", "grid", "--objective", "psnr"]
    swept = typed(*sweep)
    assert swept.code == 0, swept.err
    assert f"--split-list {data[-1]}" in swept.out
    assert "--resize box+bicubic --resize-scale 1.125 --small enlarge" in swept.out
    page = typed("report", "folder-mixed-tiny", "--runs", "runs", "--format", "html")
    assert page.code == 0, page.err
    (html,) = tmp_path.glob("runs/**/*.html")
    assert "PIL box by halves" in html.read_text()
    assert "have a short side below 36 px and are enlarged" in html.read_text()
    other = typed("sweep", "--resume", "vqgan-sizes", "--runs", "runs", "--resize", "bicubic")
    assert "started with another --resize: box+bicubic" in other.err
