"""What `prepare` keeps: shards made by several at once, read when they are whole, checked, and small to hold."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import Running, typed, until
from helpers.plugins import OUTSIDE, own_plugins
from PIL import Image

from vqbench.data.cache import is_whole
from vqbench.data.dataset import DataReference, Dataset
from vqbench.data.hashing import digest_of
from vqbench.data.images import Images, Reencoded
from vqbench.data.kept import CachedImages, KeptEncoded, Making
from vqbench.data.prepare import is_cached, prepare_train, prepare_validation
from vqbench.data.stream import TrainingStream
from vqbench.errors import UsageError
from vqbench.machine.lease import this_machine

R = 16


def write(root: Path, train: int, validation: int = 4, suffix: str = "jpg") -> Path:
    """A folder with a split: smooth pictures a little larger than R, of several shapes."""
    for k in range(train + validation):
        path = root / ("train" if k < train else "val") / f"{k:04d}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw = np.random.default_rng(k).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(draw).resize((R + 2 + k % 7, R + 4), Image.Resampling.BICUBIC).save(path)
    return root


def opened(root: Path, **more: str) -> Dataset:
    return DataReference(f"folder:{root}", **more).open(R)  # type: ignore[arg-type]


def caches(home: Path, side: str = "") -> list[Path]:
    return sorted(path for path in (home / "prepared").glob(f"*-{side}*") if path.is_dir())


def equal(images: Images, source: Images) -> bool:
    """Whether all are the same, decoded now."""
    assert len(images) == len(source)
    return all(np.array_equal(images.load(i), source.load(i)) for i in range(len(source)))


def prepared(root: Path, *more: object, home: Path) -> str:
    """What `vqbench prepare` prints; it must go well."""
    answer = typed(*command(root, *more), VQBENCH_HOME=str(home))
    assert answer.code == 0, answer.err
    return answer.out + answer.err


def command(root: Path | str, *more: object) -> list[str]:
    name = root if isinstance(root, str) else f"folder:{root}"
    small = ["--recipe", "tiny", "--set", f"resolution={R}", "--metrics", "psnr"]
    return ["prepare", "--dataset", name, *small, *map(str, more)]


# made by several


def test_several_processes_make_what_one_makes(tmp_path: Path) -> None:
    root = write(tmp_path / "set", 150, 70)
    said = prepared(root, "--workers", 2, home=tmp_path / "two")
    prepared(root, home=tmp_path / "one")
    assert re.search(
        r"note: training images are kept as pixels: 0\.00 GiB to write to \S+-train-\w+, and .* are free", said
    )
    for side in ("train", "validation"):
        (one,), (two,) = caches(tmp_path / "one", side), caches(tmp_path / "two", side)
        names = sorted(path.name for path in one.iterdir())
        assert names == sorted(path.name for path in two.iterdir())
        assert len([name for name in names if name.endswith(".json") and name.startswith("shard")]) == (
            3 if side == "train" else 2
        )
        assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)
    dataset = opened(root)
    train = prepare_train(dataset, tmp_path / "two")
    assert is_cached(train)
    assert equal(train, dataset.train)


def test_several_processes_name_all_that_cannot_be_used(tmp_path: Path) -> None:
    root = write(tmp_path / "set", 200, suffix="png")
    bad = sorted((root / "train").iterdir())[5::60]
    for path in bad:
        path.write_bytes(path.read_bytes()[:60])
    answer = typed(*command(root, "--workers", 2), VQBENCH_HOME=str(tmp_path))
    assert answer.code == 2
    assert f"{len(bad)} images cannot be used" in answer.err
    assert all(str(path) in answer.err for path in bad)
    (cache,) = caches(tmp_path, "train")
    assert not is_whole(cache)
    for path in bad:
        path.unlink()
    prepared(root, home=tmp_path)


PLUGIN = """
import numpy as np

from vqbench.data.dataset import Dataset
from vqbench.data.images import Images
from vqbench.registry import DATASETS


class Ramps(Images):
    def __init__(self, count):
        self.ids, self.content_key = [str(i) for i in range(count)], f"ramps {count}"

    def load(self, i):
        return np.full((16, 16, 3), i % 256, np.uint8)


@DATASETS.register("ramps")
class RampsDataset(Dataset):
    reference = slug = protocol_name = train_digest = "ramps"
    split_rule = "none"

    def __init__(self, argument, resolution, data_root):
        super().__init__(argument, resolution, data_root)
        self.train, self.validation = Ramps(150), Ramps(4)
"""


def test_processes_know_the_datasets_of_plugins(tmp_path: Path) -> None:
    (tmp_path / "ramps.py").write_text(PLUGIN)
    words = command("ramps", "--workers", 2, "--plugin", tmp_path / "ramps.py")
    with own_plugins():
        answer = typed(*words, VQBENCH_HOME=str(tmp_path))
    assert answer.code == 0, answer.err
    (train,) = caches(tmp_path, "train")
    assert is_whole(train)
    assert len(list(train.glob("shard-*.bin"))) == 3


class Drawn(Images):
    """Images that are made of their number, each load noted; what lies behind them changes with `states`."""

    def __init__(self, count: int, shape: tuple[int, int, int] = (R, R + 3, 3), pause: float = 0.0) -> None:
        self.ids, self.shape, self.pause = [f"{i}" for i in range(count)], shape, pause
        self.content_key = digest_of("drawn", count, shape)
        self.loaded: list[int] = []
        self.states: dict[int, int] = {}

    def load(self, i: int) -> np.ndarray:
        return self.decode(i, self.encoded(i))

    def encoded(self, i: int) -> bytes:
        draw = np.random.default_rng([i, self.states.get(i, 0)])
        return draw.integers(0, 256, int(np.prod(self.shape)), dtype=np.uint8).tobytes()

    def decode(self, i: int, encoded: bytes) -> np.ndarray:
        self.loaded.append(i)
        time.sleep(self.pause)
        return np.frombuffer(encoded, np.uint8).reshape(self.shape)

    def measure(self, i: int) -> tuple[int, int]:
        return self.shape[:2]


class DrawnDataset(Dataset):
    reference = slug = protocol_name = train_digest = "drawn"
    split_rule = "none"

    def __init__(self, train: Images, validation: Images | None = None, channels: int = 3) -> None:
        super().__init__("", R, None)
        self.train, self.channels = train, channels
        self.validation = validation if validation is not None else Drawn(4, (R, R, channels))


def test_two_that_make_the_same_set_share_it(tmp_path: Path) -> None:
    both = [Drawn(64 * 6, pause=2e-3) for _ in range(2)]
    threads = [threading.Thread(target=prepare_train, args=(DrawnDataset(images), tmp_path)) for images in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = [sorted(images.loaded) for images in both]
    assert sorted(made[0] + made[1]) == list(range(64 * 6)), "nothing is decoded twice"
    assert all(made)
    assert equal(prepare_train(DrawnDataset(both[0]), tmp_path), both[0])


def test_a_shard_of_a_machine_that_is_silent_is_taken_over(tmp_path: Path) -> None:
    images = Drawn(64 * 3)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_train(DrawnDataset(images), tmp_path, stop)
    (cache,) = caches(tmp_path)
    lease = cache / "claims" / "001" / "lease.json"
    lease.parent.mkdir(exist_ok=True)
    lease.write_text(json.dumps({"machine": f"not {this_machine()}", "pid": 1, "token": "x"}))
    waiting = threading.Thread(target=prepare_train, args=(DrawnDataset(images), tmp_path))
    waiting.start()
    until(lambda: (cache / "shard-002.json").exists(), "the shards that nobody holds")
    time.sleep(0.5)
    assert not (cache / "shard-001.json").exists(), "the other machine may be at work"
    assert waiting.is_alive()
    os.utime(lease, (time.time() - 3600,) * 2)
    waiting.join(60)
    assert is_whole(cache)
    assert equal(prepare_train(DrawnDataset(images), tmp_path), images)


def test_finished_shards_are_kept_when_it_goes_on(tmp_path: Path) -> None:
    images, seen = Drawn(64 * 5), []

    def stop(done: int, total: int) -> None:
        if done == 64 * 2 + 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_train(DrawnDataset(images), tmp_path, stop)
    images.loaded.clear()
    prepare_train(DrawnDataset(images), tmp_path, lambda done, total: seen.append((done, total)))
    assert sorted(images.loaded) == list(range(64 * 2, 64 * 5))
    assert seen[:2] == [(64, 320), (128, 320)]
    assert seen[-1] == (320, 320)


@pytest.mark.parametrize("moments", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_prepare_that_is_killed_leaves_nothing_that_is_read_as_whole(tmp_path: Path, moments: int) -> None:
    """At random moments, each going on from where the one before was killed; the slow ones with two processes."""
    root, home = write(tmp_path / "set", 450 if moments == 3 else 1500, 200), tmp_path / "home"
    dataset, draw, killed = opened(root), random.Random(moments), 0

    def start() -> Running | subprocess.Popen[bytes]:
        if moments == 3:
            return Running(command(root), VQBENCH_HOME=str(home))
        words = [sys.executable, "-m", "vqbench", *command(root, "--workers", 2)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(words, env=os.environ | {"VQBENCH_HOME": str(home)}, **quiet)  # type: ignore[call-overload]

    while killed < moments:
        process = start()
        until(lambda: caches(home), "the folder", process)
        time.sleep(draw.uniform(0, 0.4 if moments == 3 else 1.5))
        killed += process.poll() is None
        process.kill()
        process.wait()
        sides = {cache: "train" if "-train-" in cache.name else "validation" for cache in caches(home)}
        for cache, side in sides.items():
            if not is_whole(cache):
                assert not (cache / "meta.json").exists()
                continue
            if side == "train":
                assert equal(prepare_train(dataset, home), dataset.train)
            else:
                assert equal_pixels(dataset, home)
        if len(sides) == 2 and all(map(is_whole, sides)):
            shutil.rmtree(home)
    prepared(root, home=home)
    assert equal(prepare_train(dataset, home), dataset.train)
    assert equal_pixels(dataset, home)
    prepared(root, "--verify", home=home)


def equal_pixels(dataset: Dataset, home: Path) -> bool:
    pixels = prepare_validation(dataset, home).pixels
    return all(np.array_equal(pixels[i], dataset.validation.load(i)) for i in range(len(dataset.validation)))


# forms


def test_original_bytes_are_decoded_to_the_same_pixels(tmp_path: Path) -> None:
    root, home = write(tmp_path / "set", 90), tmp_path / "home"
    said = prepared(root, "--format", "original", home=home)
    assert "training images are kept as original" in said
    dataset = opened(root)
    train = prepare_train(dataset, home)  # as a run does, which was told of no format
    assert isinstance(train, KeptEncoded)
    assert equal(train, dataset.train)
    files = sorted((root / "train").iterdir())
    assert [train.encoded(i) for i in range(90)] == [path.read_bytes() for path in files]
    assert [train.measure(i) for i in range(90)] == [dataset.train.measure(i) for i in range(90)]
    assert len(caches(home, "train")) == 1
    assert prepare_validation(dataset, home).pixels.shape == (4, R, R, 3)
    prepared(root, "--verify", home=home)


def test_a_set_without_files_has_no_original_bytes(tmp_path: Path) -> None:
    for name in ("photos", "discs"):
        answer = typed(*command(name, "--format", "original", "--plugin", OUTSIDE), VQBENCH_HOME=str(tmp_path))
        assert answer.code == 2
        assert f"--format original keeps images as files hold them, and {name} has no such files" in answer.err


def test_jpeg_trains_on_what_jpeg_makes_and_says_so(tmp_path: Path) -> None:
    root, home = write(tmp_path / "set", 70, suffix="png"), tmp_path / "home"
    said = prepared(root, "--format", "jpeg:60", home=home)
    assert "training images are re-encoded as JPEG (4:2:0) of quality 60, as validation images never are" in said
    assert f"protocol  folder-set-train-val-jpeg60-{R}-v1 " in said
    plain, dataset = opened(root), opened(root, format="jpeg:60")
    train = prepare_train(dataset, home)
    assert isinstance(train, KeptEncoded)
    for i in range(70):
        kept = io.BytesIO()
        Image.fromarray(plain.train.load(i)).save(kept, "JPEG", quality=60, subsampling=2)
        assert np.array_equal(train.load(i), np.asarray(Image.open(kept)))
        assert np.array_equal(train.load(i), dataset.train.load(i)), "the same without a cache"
    assert any(not np.array_equal(train.load(i), plain.train.load(i)) for i in range(70))
    digests = {plain.train_digest, dataset.train_digest, opened(root, format="jpeg:61").train_digest}
    assert len(digests) == 3
    assert prepare_validation(dataset, home).digest == prepare_validation(plain, home).digest


def test_a_run_on_jpeg_has_a_protocol_with_its_quality(tmp_path: Path) -> None:
    root = write(tmp_path / "set", 20)
    small = ["--recipe", "tiny", "--set", f"resolution={R}", "--metrics", "psnr", "--dry-run", "--json"]
    rows = []
    for form in ("", "pixels", "original", "jpeg", "jpeg:95", "jpeg:90"):
        words = ["run", "--methods", "fsq", "--dataset", f"folder:{root}", *small, "--runs", str(tmp_path / "runs")]
        answer = typed(*words, *(["--format", form] if form else []), VQBENCH_HOME=str(tmp_path))
        assert answer.code == 0, answer.err
        rows.append(answer.objects[0])
    of_cell = [row["path"] for row in rows]
    assert of_cell[0] == of_cell[1] == of_cell[2]
    assert of_cell[3] == of_cell[4]
    assert len({*of_cell}) == 3
    protocols = [row["protocol"] for row in rows]
    assert protocols[0] == protocols[1] == protocols[2]
    assert protocols[3] == protocols[4]
    assert len({*protocols}) == 3


def test_validation_images_are_never_jpeg(tmp_path: Path) -> None:
    dataset = DrawnDataset(Drawn(4), Reencoded(Drawn(4, (R, R, 3)), 90))
    with pytest.raises(UsageError, match="validation images of drawn would be re-encoded as JPEG"):
        prepare_validation(dataset, tmp_path)
    root = write(tmp_path / "set", 40)
    held = DataReference(f"folder:{root}", holdout=0.25, format="jpeg:50").open(R)
    plain = DataReference(f"folder:{root}", holdout=0.25).open(R)
    assert prepare_validation(held, tmp_path).digest == prepare_validation(plain, tmp_path).digest
    assert equal(prepare_train(held, tmp_path), held.train)


@pytest.mark.parametrize("form", ["png", "jpeg:0", "jpeg:101", "jpeg:x", "jpegs"])
def test_a_format_that_does_not_exist_is_told(tmp_path: Path, form: str) -> None:
    answer = typed(*command("photos", "--format", form), VQBENCH_HOME=str(tmp_path))
    assert answer.code == 2
    wanted = "the quality of a JPEG is from 1 to 100" if ":" in form else f"unknown format '{form}'"
    assert wanted in answer.err


def test_features_have_no_format(tmp_path: Path) -> None:
    answer = typed(
        "prepare", "--dataset", "photos", "--recipe", "atomic", "--format", "pixels", VQBENCH_HOME=str(tmp_path)
    )
    assert answer.code == 2
    assert "--format pixels is of training images, of which this recipe keeps features alone" in answer.err


@pytest.mark.parametrize("channels", [1, 4])
def test_images_may_have_other_channels(tmp_path: Path, channels: int) -> None:
    images = Drawn(70, (R, R + 3, channels))
    dataset = DrawnDataset(images, channels=channels)
    assert equal(prepare_train(dataset, tmp_path), images)
    assert prepare_validation(dataset, tmp_path).pixels.shape == (4, R, R, channels)
    assert equal_pixels(dataset, tmp_path)
    if channels == 1:
        dataset.reencode(90)
        assert dataset.train.load(0).shape == (R, R + 3, 1)
        assert equal(prepare_train(dataset, tmp_path), dataset.train)
    else:
        with pytest.raises(UsageError, match="JPEG holds 1 or 3 channels, and the images of drawn have 4"):
            dataset.reencode(90)


def test_what_the_version_before_kept_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = opened(write(tmp_path / "set", 9))
    for side, images in (("train", dataset.train), ("validation", dataset.validation)):
        key = digest_of(2, side, R, images.content_key)[:24]
        folder = tmp_path / "prepared" / f"folder-set-{R}px-{side}-{key}"
        folder.mkdir(parents=True)
        pixels = [images.load(i) for i in range(len(images))]
        (folder / "pixels.bin").write_bytes(b"".join(one.tobytes() for one in pixels))
        np.save(folder / "shapes.npy", np.array([one.shape[:2] for one in pixels], np.int64))
        meta = {"version": 2, "bytes": sum(one.nbytes for one in pixels)} | ({"digest": "d"} if side != "train" else {})
        (folder / "meta.json").write_text(json.dumps(meta))
    expected = [dataset.train.load(i) for i in range(9)], [dataset.validation.load(i) for i in range(4)]
    monkeypatch.setattr("vqbench.data.encoded.decode_image", lambda *a: pytest.fail("decoded again"))
    train = pickle.loads(pickle.dumps(prepare_train(dataset, tmp_path)))
    assert all(np.array_equal(train.load(i), expected[0][i]) for i in range(9))
    assert train.measure(3) == expected[0][3].shape[:2]
    validation = prepare_validation(dataset, tmp_path)
    assert validation.digest == "d"
    assert np.array_equal(validation.pixels, np.stack(expected[1]))
    assert len(caches(tmp_path)) == 2


def test_room_on_the_disk_and_what_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = Drawn(64 * 4)
    size = 64 * 4 * R * (R + 3) * 3
    asked = Making("pixels", insists=True)

    def stop(done: int, total: int) -> None:
        if done == 64 * 2 + 1:
            raise KeyboardInterrupt

    monkeypatch.setattr("vqbench.data.prepare.free_bytes", lambda home: size - 1)
    with pytest.raises(UsageError, match="for the training images as pixels, and has less free") as error:
        prepare_train(DrawnDataset(images), tmp_path, making=asked)
    assert "VQBENCH_CACHE_LIMIT_GB=0" in error.value.hint
    monkeypatch.setattr("vqbench.data.prepare.free_bytes", lambda home: size)
    assert prepare_train(DrawnDataset(images), tmp_path) is images, "unasked no more than half of what is free"
    with pytest.raises(KeyboardInterrupt):
        prepare_train(DrawnDataset(images), tmp_path, stop, making=asked)
    monkeypatch.setattr("vqbench.data.prepare.free_bytes", lambda home: size // 2)
    assert is_cached(prepare_train(DrawnDataset(images), tmp_path, making=asked)), "half of it is there already"
    monkeypatch.setenv("VQBENCH_CACHE_LIMIT_GB", "0")
    with pytest.raises(
        UsageError, match=r"--format original takes 0\.00 GiB .* VQBENCH_CACHE_LIMIT_GB=0 allows no more"
    ):
        prepare_train(DrawnDataset(images), tmp_path, making=Making("original", insists=True))


# checked


def flipped(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def mended(root: Path, home: Path, found: str) -> None:
    """Do as the hint says, and find all whole."""
    for path in re.findall(r"\S+/shard-\d+\.json", found.partition("hint: ")[2].partition("`, then")[0]):
        Path(path).unlink()
    prepared(root, home=home)
    assert "\nwhole\n" in prepared(root, "--verify", home=home)
    dataset = opened(root)
    assert equal(prepare_train(dataset, home), dataset.train)
    assert equal_pixels(dataset, home)


def test_verify_finds_what_is_damaged_and_says_what_mends_it(tmp_path: Path) -> None:
    root, home = write(tmp_path / "set", 140, 70), tmp_path / "home"

    def found() -> str:
        answer = typed(*command(root, "--verify"), VQBENCH_HOME=str(home))
        assert answer.code == 2
        return answer.err

    assert "--verify reads with all cores" in typed(*command(root, "--verify", "--workers", 2)).err
    assert "the validation images of folder:" in found()
    assert "are not prepared at 16 px" in found()
    said = prepared(root, home=home)
    assert "whole" not in said
    said = prepared(root, "--verify", home=home)
    assert "training images: 140 as pixels, 3 shards, as written and as their files are" in said
    (train,), (validation,) = caches(home, "train"), caches(home, "validation")
    flipped(train / "shard-001.bin", 999)
    flipped(validation / "pixels.bin", 65 * R * R * 3)
    flipped(train / "index.npy", -3)
    problems = found()
    assert f"{train / 'shard-001.bin'} has other bytes than were written" in problems
    assert f"{validation / 'pixels.bin'} has other bytes than were written" in problems
    assert str(train / "shard-000.json") not in problems
    assert f"{train / 'index.npy'} has other bytes than were written" in problems
    mended(root, home, problems)
    (train / "shard-002.bin").unlink()
    problems = found()
    assert f"1 problem with what is kept: {train / 'shard-002.bin'} is missing" in problems
    mended(root, home, problems)
    (train / "shard-000.bin").write_bytes(b"short")
    assert f"{train / 'shard-000.bin'} has been cut" in found()
    mended(root, home, found())
    (train / "meta.json").unlink()
    (train / "shard-001.json").unlink()
    assert f"the making of {train} was interrupted, or goes on: 2 of 3 shards are made" in found()
    mended(root, home, found())


def test_verify_finds_a_file_that_has_changed_since(tmp_path: Path) -> None:
    root, home = write(tmp_path / "set", 80), tmp_path / "home"
    prepared(root, home=home)
    changed = root / "train" / "0007.jpg"
    Image.fromarray(np.zeros((R, R, 3), np.uint8)).save(changed)
    answer = typed(*command(root, "--verify"), VQBENCH_HOME=str(home))
    assert answer.code == 2
    assert "1 problem with what is kept: train/0007.jpg is new, or has changed since the training images" in answer.err
    assert "give `vqbench prepare` again, without --verify" in answer.err
    mended(root, home, answer.err)
    os.utime(root / "val" / "0080.jpg")
    answer = typed(*command(root, "--verify"), VQBENCH_HOME=str(home))
    assert "the files of the validation images have been removed, moved or written again" in answer.err


def test_verify_finds_bytes_that_changed_where_nothing_tells(tmp_path: Path) -> None:
    from vqbench.data.checking import verify_kept

    dataset = DrawnDataset(Drawn(130))
    prepare_train(dataset, tmp_path)
    silent = lambda what, done, total: None  # noqa: E731
    assert len(verify_kept(dataset, tmp_path, ("train",), "", silent)) == 1
    dataset.train.states[70] = 1  # type: ignore[attr-defined]
    with pytest.raises(
        UsageError, match=r"^1 problem with what is kept: 70 has changed since it was prepared"
    ) as error:
        verify_kept(dataset, tmp_path, ("train",), "", silent)
    (cache,) = caches(tmp_path, "train")
    assert str(cache / "shard-001.json") in error.value.hint


# read


class Numbers(Images):
    """As many images of one pixel as asked for, whose names are made when they are asked for."""

    content_key = "numbers"

    class Names:
        def __init__(self, count: int) -> None:
            self.count = count

        def __len__(self) -> int:
            return self.count

        def __getitem__(self, i: int) -> str:
            return str(i)

    def __init__(self, count: int) -> None:
        self.ids = Numbers.Names(count)  # type: ignore[assignment]

    def load(self, i: int) -> np.ndarray:
        return np.array([[[i % 256, i // 256 % 256, 7]]], np.uint8)

    def measure(self, i: int) -> tuple[int, int]:
        return 1, 1


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> CachedImages:
    home = tmp_path_factory.mktemp("many")
    dataset = DrawnDataset(Numbers(8_000))
    dataset.resolution = 1
    images = prepare_train(dataset, home)
    assert isinstance(images, CachedImages)
    return images


def test_a_kept_image_holds_no_memory_of_its_own(many: CachedImages) -> None:
    passed_on = pickle.dumps(many)
    TrainingStream(pickle.loads(passed_on), 1, 0, True, True)[0]  # what is imported once
    tracemalloc.start()
    stream = TrainingStream(pickle.loads(passed_on), 1, 0, True, True)
    for position in range(0, 8_000, 7):
        stream[position]
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 8 * 8_000 + 125 * 1700, "the order of an epoch and a map for each shard; the index would be 256 kB"
    assert len(pickle.dumps(stream.images)) < 5000
    assert len(passed_on) < 5000


def test_kept_images_open_few_files(many: CachedImages) -> None:
    before = len(os.listdir("/proc/self/fd"))
    again = pickle.loads(pickle.dumps(many))
    for i in range(8_000):
        assert again.load(i)[0, 0, 0] == i % 256
    assert len(os.listdir("/proc/self/fd")) - before <= 128 + 1


@pytest.mark.slow
@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_loaders_read_what_is_kept(tmp_path: Path, way: str) -> None:
    dataset = opened(write(tmp_path / "set", 140))
    for form in ("pixels", "original"):
        images = prepare_train(dataset, tmp_path, making=Making(form))
        stream = TrainingStream(images, R, 1, True, True)
        alone = torch.stack([stream[p] for p in range(60)])
        loader = torch.utils.data.DataLoader(
            stream, batch_size=10, sampler=range(60), num_workers=2, multiprocessing_context=way
        )
        assert torch.equal(torch.cat(list(loader)), alone)


def test_progress_has_a_rate_and_a_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vqbench.cli import terminal

    now = [0.0]
    monkeypatch.setattr(terminal, "PLAIN_SECONDS", -1.0)
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    with terminal.TerminalView() as view:
        for done in (500, 600, 700):  # 500 were made before
            view.preparing("training images", done, 1000)
            now[0] += 10.0
    assert capsys.readouterr().err.splitlines()[-1] == "preparing training images 700/1000 10.0 images/s, 0:00:30 left"
