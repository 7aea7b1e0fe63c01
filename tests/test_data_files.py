"""From files to pixels: what is converted, what is refused, the decoded cache, and the training stream."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import typed
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from vqbench.cell.images_track import ImagesTrack
from vqbench.data import prepare
from vqbench.data.cache import cached_folder, is_whole
from vqbench.data.dataset import DataReference, Dataset, Images, open_dataset
from vqbench.data.decode import ImageFileError, decode_image, measure_image
from vqbench.data.prepare import is_cached, prepare_train, prepare_validation, verify
from vqbench.data.stream import TrainingStream
from vqbench.data.uncached import loading_rates
from vqbench.errors import UsageError
from vqbench.inputs import to_input
from vqbench.recipe import load_recipe


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def folder(root: Path, count: int = 12, suffix: str = "png") -> Path:
    for k in range(count):
        path = root / ("val" if k % 4 == 3 else "train") / f"{k:02d}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(40 + k % 9, 47 - k % 9, k)).save(path)
    return root


def opened(root: Path, resolution: int = 16) -> Dataset:
    return open_dataset(f"folder:{root}", resolution)


# decoding

CONVERTED: dict[str, Callable[[Image.Image], Image.Image]] = {
    "grey": lambda im: im.convert("L"),
    "bilevel": lambda im: im.convert("1"),
    "palette": lambda im: im.convert("P"),
    "opaque RGBA": lambda im: im.convert("RGBA"),
    "opaque grey with alpha": lambda im: im.convert("L").convert("LA"),
}


@pytest.mark.parametrize("kind", CONVERTED)
def test_converted(tmp_path: Path, kind: str) -> None:
    image = CONVERTED[kind](Image.fromarray(noise(40, 40)))
    image.save(tmp_path / "a.png")
    pixels = decode_image(tmp_path / "a.png", 40)
    assert pixels.dtype == np.uint8
    assert (pixels == np.asarray(image.convert("RGB"))).all()


def test_cmyk_is_converted(tmp_path: Path) -> None:
    Image.fromarray(noise(40, 40)).convert("CMYK").save(tmp_path / "a.jpg")
    assert decode_image(tmp_path / "a.jpg", 40).shape == (40, 40, 3)


def png(path: Path, width: int, height: int, bits: int, rows: bytes) -> None:
    """An RGB PNG that Pillow would not write: of 16 bits, or of a size that nobody has pixels for."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def png16(path: Path) -> None:
    """A 16-bit RGB PNG, which Pillow reads as 8 bits, saying nothing."""
    png(path, 40, 40, 16, b"".join(b"\0" + bytes(40 * 6) for _ in range(40)))


def tiff16_planar(path: Path) -> None:
    """A 16-bit RGB TIFF, one plane after the other, which Pillow reads as if each plane had 8 bits."""
    planes, side = 3, 40
    bits_at = 8 + 2 + 10 * 12 + 4
    offsets_at, lengths_at = bits_at + 8, bits_at + 8 + 4 * planes
    pixels_at, length = lengths_at + 4 * planes, side * side * 2
    entries = [(256, 3, 1, side), (257, 3, 1, side), (258, 3, planes, bits_at), (259, 3, 1, 1), (262, 3, 1, 2)]
    entries += [(273, 4, planes, offsets_at), (277, 3, 1, planes), (278, 3, 1, side), (279, 4, planes, lengths_at)]
    entries += [(284, 3, 1, 2)]  # PlanarConfiguration: separate
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    numbers = struct.pack("<3Hxx3I3I", 16, 16, 16, *(pixels_at + k * length for k in range(planes)), *[length] * planes)
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4) + numbers
    path.write_bytes(head + bytes(planes * length))


def transparent(path: Path) -> None:
    image = Image.fromarray(noise(40, 40)).convert("RGBA")
    image.putpixel((3, 3), (0, 0, 0, 254))
    image.save(path)


def transparent_palette(path: Path) -> None:
    image = Image.fromarray(noise(40, 40)).convert("P")
    image.save(path, transparency=image.getpixel((0, 0)))


def animated(path: Path) -> None:
    frames = [Image.fromarray(noise(40, 40, k)) for k in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def truncated(path: Path) -> None:
    Image.fromarray(noise(80, 80)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


REFUSED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "16-bit grey": ("a.png", lambda p: Image.fromarray(np.zeros((40, 40), np.uint16)).save(p), "more than 8 bits"),
    "16-bit colour": ("a.png", png16, "more than 8 bits"),
    "16-bit planar": ("a.tif", tiff16_planar, "more than 8 bits"),
    "float": ("a.tif", lambda p: Image.fromarray(np.zeros((40, 40), np.float32)).save(p), "more than 8 bits"),
    "transparent": ("a.png", transparent, "transparent pixels"),
    "transparent palette": ("a.png", transparent_palette, "transparent pixels"),
    "animated WebP": ("a.webp", animated, "holds 3 pictures"),
    "animated PNG": ("a.png", animated, "holds 3 pictures"),
    "several pages": ("a.tif", animated, "holds 3 pictures"),
    "truncated JPEG": ("a.jpg", truncated, "damaged"),
    "truncated PNG": ("a.png", truncated, "damaged"),
    "empty": ("a.jpg", lambda p: p.touch(), "not a PNG, JPEG"),
    "text": ("a.jpg", lambda p: p.write_text("hello"), "not a PNG, JPEG"),
    "missing": ("a.jpg", lambda p: None, "No such file"),
    "too large": ("a.png", lambda p: png(p, 40_000, 30_000, 8, b""), r"40000×30000 pixels, more than the 1,000 megap"),
    "too small": ("a.png", lambda p: Image.fromarray(noise(40, 15)).save(p), "15×40 pixels, smaller than"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_with_name_and_way_out(tmp_path: Path, kind: str) -> None:
    name, make, reason = REFUSED[kind]
    make(tmp_path / name)
    with pytest.raises(ImageFileError, match=reason) as error:
        decode_image(tmp_path / name, 16)
    assert error.value.what.startswith(f"{tmp_path / name}: ")
    assert error.value.hint
    assert "\n" not in error.value.what


@given(st.binary(max_size=200), st.sampled_from(["cut", "overwrite"]), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_damage_never_escapes_as_another_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, how: str, where: float
) -> None:
    path = tmp_path_factory.mktemp("damage") / "a.png"
    Image.fromarray(noise(20, 20)).save(path)
    whole = path.read_bytes()
    at = int(where * len(whole))
    path.write_bytes(whole[:at] + data + (whole[at + len(data) :] if how == "overwrite" else b""))
    with contextlib.suppress(ImageFileError):  # damage to a part that nobody reads may pass
        assert decode_image(path, 16).shape == (16, 16, 3)


def test_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 270° to see it upright
    image = Image.fromarray(np.repeat(np.repeat(noise(3, 5), 16, 0), 16, 1))
    image.save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    pixels = decode_image(tmp_path / "a.jpg", 48)
    assert pixels.shape == (80, 48, 3)
    assert measure_image(tmp_path / "a.jpg", 48) == (80, 48)
    upright = np.rot90(np.asarray(image), -1)
    assert np.abs(pixels[8::16, 8::16].astype(int) - upright[8::16, 8::16]).max() < 12


XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="{}"/></x:xmpmeta>'
SAVED = {
    "jpg": {"quality": 100, "subsampling": 0},
    "png": {},
    "webp": {"lossless": True},
    "tif": {},
    "tiff": {"compression": "tiff_lzw"},
}


@pytest.mark.parametrize("suffix", SAVED)
@pytest.mark.parametrize("tag", ["exif", "xmp"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_measure_agrees_with_decode_in_every_orientation(tmp_path: Path, suffix: str, tag: str, mode: str) -> None:
    upright = Image.fromarray(np.repeat(np.repeat(noise(3, 5), 16, 0), 16, 1)).convert(mode)
    if mode == "RGBA" and suffix == "jpg":
        pytest.skip("a JPEG has no alpha")
    how = Image.Transpose
    turns = [None, how.FLIP_LEFT_RIGHT, how.ROTATE_180, how.FLIP_TOP_BOTTOM]
    turns += [how.TRANSPOSE, how.ROTATE_90, how.TRANSVERSE, how.ROTATE_270]  # each undone by its orientation
    for orientation, turn in enumerate(turns, start=1):
        path, exif = tmp_path / f"{orientation}.{suffix}", Image.Exif()
        image = upright if turn is None else upright.transpose(turn)
        exif[0x0112] = orientation
        xmp = XMP.format(orientation).encode()
        if tag == "exif":
            image.save(path, exif=exif, **SAVED[suffix])
        elif suffix == "png":
            text = PngInfo()
            text.add_itxt("XML:com.adobe.xmp", xmp.decode())
            image.save(path, pnginfo=text)
        elif suffix.startswith("tif"):
            image.save(path, tiffinfo={700: xmp}, **SAVED[suffix])
        else:
            image.save(path, xmp=xmp, **SAVED[suffix])
        pixels = decode_image(path, 48)
        assert pixels.shape == (48, 80, 3), orientation
        assert measure_image(path, 48) == (48, 80), orientation
        expected = np.asarray(upright.convert("RGB"))[8::16, 8::16].astype(int)
        assert np.abs(pixels[8::16, 8::16] - expected).max() < 12, orientation


@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "jpg"])
def test_pillow_s_own_limit_neither_refuses_nor_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder, suffix: str
) -> None:
    """Pillow warns from 89 megapixels on and refuses from 179: here at a fraction, which is quicker."""
    path = tmp_path / f"a.{suffix}"
    for side in (40, 60):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        Image.new("RGB", (side, side), (7, 7, 7)).save(path)
        assert measure_image(path, 16) == (16, 16)
        assert abs(decode_image(path, 16).astype(int) - 7).max() <= 1
        assert Image.MAX_IMAGE_PIXELS == 1000, "it is the process's, and others may rely on it"
    assert not recwarn.list


@given(height=st.integers(16, 90), width=st.integers(16, 90))
@settings(max_examples=25, deadline=None)
def test_resize_is_lanczos_on_the_short_side_then_centre_crop(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int
) -> None:
    root = tmp_path_factory.mktemp("resize")
    image = Image.fromarray(noise(height, width))
    for side in ("train", "val"):
        (root / side).mkdir()
        image.save(root / side / "a.png")
    dataset = opened(root)
    train, validation = dataset.train.load(0), dataset.validation.load(0)
    assert min(train.shape[:2]) == 16
    assert dataset.train.measure(0) == train.shape[:2]
    expected = image.resize((train.shape[1], train.shape[0]), Image.Resampling.LANCZOS)
    assert (train == np.asarray(expected)).all()
    top, left = (train.shape[0] - 16) // 2, (train.shape[1] - 16) // 2
    assert (validation == train[top : top + 16, left : left + 16]).all()


# cache


def test_cache_gives_the_same_pixels_and_decodes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, home, seen = opened(folder(tmp_path / "set")), tmp_path / "home", []
    validation = prepare_validation(dataset, home, lambda done, total: seen.append((done, total)))
    train = prepare_train(dataset, home)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    monkeypatch.setattr("vqbench.data.encoded.decode_image", lambda *a: pytest.fail("decoded again"))
    again, train_again = prepare_validation(dataset, home), pickle.loads(pickle.dumps(prepare_train(dataset, home)))
    monkeypatch.undo()
    assert again.digest == validation.digest == prepare.pixels_digest(np.array(again.pixels), again.ids)
    assert list(again.ids) == list(dataset.validation.ids)
    assert all((again.pixels[i] == dataset.validation.load(i)).all() for i in range(3))
    for cached in (train, train_again):
        assert list(cached.ids) == list(dataset.train.ids)
        assert all(np.array_equal(cached.load(i), dataset.train.load(i)) for i in range(9))
        assert [cached.measure(i) for i in range(9)] == [dataset.train.measure(i) for i in range(9)]


def test_digest_follows_content_names_and_order(tmp_path: Path) -> None:
    pixels = noise(32, 32).reshape(2, 16, 32, 3)[:, :, :16]
    digest = prepare.pixels_digest(pixels, ["a", "b"])
    assert digest == prepare.pixels_digest(pixels.copy(), ("a", "b"))
    changed = pixels.copy()
    changed[1, 3, 3, 0] ^= 1
    assert len({digest, prepare.pixels_digest(pixels, ["a", "c"]), prepare.pixels_digest(changed, ["a", "b"])}) == 3


def test_replaced_file_is_seen_even_with_its_old_time_and_size(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", suffix="bmp")
    first = prepare_validation(opened(root), tmp_path)
    path = root / "val" / "03.bmp"
    old = path.stat()
    path.write_bytes(path.read_bytes()[:-30] + bytes(30))
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert prepare_validation(opened(root), tmp_path).digest != first.digest


def test_half_written_or_cut_cache_is_not_read(tmp_path: Path) -> None:
    dataset = opened(folder(tmp_path / "set"))
    first = prepare_validation(dataset, tmp_path)
    (cache,) = (p for p in (tmp_path / "prepared").iterdir() if p.is_dir())
    (cache / "pixels.bin").write_bytes(b"\0" * 100)
    assert not is_whole(cache)
    assert prepare_validation(dataset, tmp_path).digest == first.digest
    (cache / "meta.json").unlink()
    assert prepare_validation(dataset, tmp_path).digest == first.digest
    assert is_whole(cache)


@pytest.mark.parametrize("content", [None, b"", b"\x93NUMPY", b"garbage"])
def test_a_cache_whose_index_is_damaged_is_made_again(tmp_path: Path, content: bytes | None) -> None:
    dataset = opened(folder(tmp_path / "set"))
    first = prepare_train(dataset, tmp_path)
    (cache,) = (p for p in (tmp_path / "prepared").iterdir() if p.is_dir())
    if content is None:
        (cache / "index.npy").unlink()
    else:
        (cache / "index.npy").write_bytes(content)
    again = prepare_train(dataset, tmp_path)
    assert [again.measure(i) for i in range(len(again))] == [first.measure(i) for i in range(len(first))]


def test_a_cached_folder_is_made_once_and_again_where_it_was_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / "there" / ".pixels.1-abcdef12.part"
    made: list[Path] = []

    def fill(file: Path) -> dict[str, Any]:
        made.append(file)
        assert not left.exists(), "it may take the room that is needed now"
        file.write_bytes(b"12345678")
        return {"shape": [2, 4]}

    def folder() -> Path:
        return cached_folder(tmp_path, "there", fill)

    left.parent.mkdir()
    left.write_bytes(b"of a process that was killed")
    assert folder() == folder() == left.parent
    assert len(made) == 1
    assert (left.parent / "meta.json").read_text() == '{"bytes": 8, "shape": [2, 4]}'
    assert sorted(path.name for path in left.parent.iterdir()) == ["meta.json", "pixels.bin"]
    (left.parent / "pixels.bin").write_bytes(b"1234")
    assert is_whole(folder())
    assert len(made) == 2

    def overtaken(file: Path) -> dict[str, Any]:
        """Another process, which cannot lock either, is done first and has cleared up."""
        folder()
        return fill(file)

    monkeypatch.setattr("vqbench.data.cache.locked", lambda path: contextlib.nullcontext())
    (left.parent / "meta.json").unlink()
    assert is_whole(cached_folder(tmp_path, "there", overtaken))


def test_interrupted_writer_leaves_nothing_that_is_read(tmp_path: Path) -> None:
    dataset = opened(folder(tmp_path / "set"))

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_train(dataset, tmp_path, interrupt)
    (left,) = (p for p in (tmp_path / "prepared").iterdir() if p.is_dir())
    assert not is_whole(left)
    assert is_cached(prepare_train(dataset, tmp_path))
    assert not (left / "claims").exists()


def test_what_a_killed_process_leaves_is_finished_by_the_next(tmp_path: Path) -> None:
    dataset = opened(folder(tmp_path / "set"))
    code = (
        "import os, sys, pathlib; from vqbench.data.dataset import open_dataset\n"
        "from vqbench.data.prepare import prepare_train\n"
        "dataset = open_dataset(sys.argv[1], 16)\n"
        "prepare_train(dataset, pathlib.Path(sys.argv[2]), lambda done, total: os._exit(9))"
    )
    done = subprocess.run([sys.executable, "-c", code, dataset.reference, str(tmp_path)])
    assert done.returncode == 9
    (left,) = (p for p in (tmp_path / "prepared").iterdir() if p.is_dir())
    assert not is_whole(left)
    prepare_train(dataset, tmp_path)
    (cache,) = (p for p in (tmp_path / "prepared").iterdir() if p.is_dir())
    assert cache == left
    assert is_whole(cache)


AS_ANOTHER = """
import os, sys
from pathlib import Path
import PIL.PngImagePlugin  # what is cached already needs no reader of files, and this user alone may import one
from vqbench.data.dataset import open_dataset
from vqbench.data.prepare import prepare_train, prepare_validation
from vqbench.errors import UsageError

reference, home, user, umask, resolution = sys.argv[1:]
for prepare in (prepare_validation, prepare_train):  # imports what this user alone may read
    prepare(open_dataset(reference, 8), Path(os.environ["VQBENCH_HOME"]))
Path("/").owner()
os.setgroups([])
os.setgid(4321)
os.setuid(int(user))
os.umask(int(umask, 8))
os.environ["VQBENCH_HOME"], decoded = home, 0

def count(done, total):
    global decoded
    decoded += 1

try:
    dataset = open_dataset(reference, int(resolution))
    prepare_validation(dataset, Path(home), count)
    prepare_train(dataset, Path(home), count)
    print("decoded", decoded)
except UsageError as error:
    print(error.what, "|", error.hint)
"""


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A folder that other users can reach, with a `set` of images."""
    if os.geteuid() != 0:
        pytest.skip("becoming two users needs root")
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        folder(Path(place) / "set")
        yield Path(place)


def prepared_as(user: int, place: Path, umask: str, resolution: int = 16) -> str:
    """What `user` is told on preparing the set in `place` with the home in it."""
    arguments = [f"folder:{place / 'set'}", place / "home", user, umask, resolution]
    command = [sys.executable, "-c", AS_ANOTHER, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("mode", [0o2770, 0o1777])
def test_users_of_a_home_that_is_open_to_them_share_its_caches(open_place: Path, mode: int) -> None:
    home = open_place / "home"
    home.mkdir()
    os.chown(home, 0, 4321)
    home.chmod(mode)
    assert prepared_as(5001, open_place, "077") == "decoded 12"
    assert prepared_as(5002, open_place, "077") == "decoded 0"
    assert prepared_as(5002, open_place, "077", 12) == "decoded 12", "a second user adds"
    assert prepared_as(5001, open_place, "022", 12) == "decoded 0"
    cache = next((home / "prepared").glob("folder-set-16px-validation*"))
    (cache / "meta.json").unlink()
    (cache / "shard-000.json").unlink()
    again = prepared_as(5002, open_place, "077")  # under the lock that the other user made
    assert again == "decoded 3" if mode == 0o2770 else "user 5001, who owns" in again


def test_a_home_that_is_nobody_else_s_stays_so_and_the_other_is_told(open_place: Path) -> None:
    home = open_place / "home"
    home.mkdir()
    os.chown(home, 5001, 4321)
    home.chmod(0o755)
    assert prepared_as(5001, open_place, "077") == "decoded 12"
    made = [path for path in home.rglob("*") if path.lstat().st_mode & 0o077]
    assert made == [], "the umask is the user's wish"
    said = prepared_as(5002, open_place, "022")
    assert "Permission denied" in said
    assert "have user 5001, who owns " in said
    assert "set VQBENCH_HOME to another folder" in said
    assert "free some space" not in said


def test_what_the_umask_opens_is_read_by_others(open_place: Path) -> None:
    home = open_place / "home"
    home.mkdir()
    os.chown(home, 5001, 4321)
    assert prepared_as(5001, open_place, "022") == "decoded 12"
    assert prepared_as(5002, open_place, "022") == "decoded 0"
    said = prepared_as(5002, open_place, "022", 12)  # which is not there yet, nor a lock for it
    assert "Permission denied" in said
    assert "have user 5001, who owns " in said


def test_two_at_once_decode_once(tmp_path: Path) -> None:
    dataset, counts, results = opened(folder(tmp_path / "set", 40)), [0, 0], [None, None]

    def prepare_as(k: int) -> None:
        def count(done: int, total: int) -> None:
            counts[k] += 1

        results[k] = prepare_validation(dataset, tmp_path, count).digest  # type: ignore[call-overload]

    threads = [threading.Thread(target=prepare_as, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(counts)[0] <= 1, "one decodes, the other hears that all is done"
    assert max(counts) == 10
    assert results[0] == results[1] is not None


def test_bad_images_are_named_all_at_once(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", suffix="jpg")
    truncated(root / "train" / "04.jpg")
    with pytest.raises(UsageError, match=r"04\.jpg: damaged"):
        prepare_train(opened(root), tmp_path)
    transparent(root / "train" / "extra.png")
    with pytest.raises(UsageError, match=r"^2 images cannot be used: .*04\.jpg: damaged.*; .*extra\.png: has trans"):
        prepare_train(opened(root), tmp_path)
    with pytest.raises(UsageError, match=r"04\.jpg: damaged"):  # on the fly: at the first read
        [prepare_train(opened(root), tmp_path, limit_bytes=0).load(i) for i in range(9)]


@pytest.mark.parametrize("recipe", ["tiny", "atomic"])
@pytest.mark.parametrize("limit", ["8", "0"])
def test_prepare_names_the_bad_images_of_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, limit: str
) -> None:
    monkeypatch.setenv("VQBENCH_CACHE_LIMIT_GB", limit)
    root = folder(tmp_path / "set", 40, suffix="jpg")
    metrics = ["--metrics", "psnr"] if recipe == "tiny" else []
    prepare = ["prepare", "--dataset", f"folder:{root}", "--recipe", recipe, *metrics]
    bad = [*sorted((root / "val").iterdir())[::3], *sorted((root / "train").iterdir())[::4]]
    whole = {path: path.read_bytes() for path in bad}
    for path in bad[1:]:
        truncated(path)
    bad[0].write_bytes(b"no header to measure")
    answer = typed(*prepare)
    assert answer.code == 2
    assert f"error: {len(bad)} images cannot be used: " in answer.err
    assert all(str(path) in answer.err for path in bad)
    assert "ready" not in answer.out
    for path, content in whole.items():
        path.write_bytes(content)
    answer = typed(*prepare)
    assert answer.code == 0
    assert answer.out.endswith("ready\n")


def test_prepare_names_every_bad_image_however_many(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", 90, suffix="jpg")
    prepare = ["prepare", "--dataset", f"folder:{root}", "--recipe", "tiny", "--metrics", "psnr"]
    train = sorted((root / "train").iterdir())
    for path in train[1:]:
        path.write_bytes(b"")
    answer = typed(*prepare)
    assert answer.code == 2
    assert all(str(path) in answer.err for path in train[1:])
    assert f"error: {len(train) - 1} images cannot be used" in answer.err
    assert f"; and {len(train) - 1 - 20} more\n" in answer.err
    train[0].write_bytes(b"")
    assert "error: at least 20 images cannot be used" in typed(*prepare).err


def test_links_that_lead_nowhere_are_named_all_at_once(tmp_path: Path) -> None:
    root = folder(tmp_path / "set")
    for name in ("a.png", "b.png"):
        (root / "train" / name).symlink_to("gone")
    with pytest.raises(UsageError, match=r"^2 images cannot be used: .*a\.png: cannot be read.*b\.png: cannot"):
        opened(root)


def test_a_training_set_that_is_not_cached_can_be_verified(tmp_path: Path) -> None:
    root, seen = folder(tmp_path / "set", suffix="jpg"), []
    dataset = opened(root)
    assert is_cached(prepare_train(dataset, tmp_path))
    assert not is_cached(prepare_train(dataset, tmp_path, limit_bytes=0))
    before = sorted(tmp_path.rglob("*"))
    verify(dataset.train, lambda done, total: seen.append((done, total)))
    assert seen == [(done, 9) for done in range(1, 10)]
    assert sorted(tmp_path.rglob("*")) == before
    truncated(root / "train" / "04.jpg")
    transparent(root / "train" / "extra.png")
    with pytest.raises(UsageError, match=r"^2 images cannot be used: .*04\.jpg: damaged.*; .*extra\.png: has trans"):
        verify(opened(root).train)
    verify(open_dataset("photos", 32).train)


def test_limit_decides_between_cache_and_on_the_fly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = opened(folder(tmp_path / "set"))
    exact = sum(dataset.train.load(i).nbytes for i in range(len(dataset.train)))
    assert prepare_train(dataset, tmp_path, limit_bytes=exact - 1) is dataset.train
    assert prepare_train(dataset, tmp_path, limit_bytes=exact) is not dataset.train
    monkeypatch.setenv("VQBENCH_CACHE_LIMIT_GB", "0")
    assert prepare_train(dataset, tmp_path) is dataset.train
    monkeypatch.setenv("VQBENCH_CACHE_LIMIT_GB", "much")
    with pytest.raises(UsageError, match="must be a number of GiB, not 'much'"):
        prepare_train(dataset, tmp_path)


def test_what_is_decoded_follows_the_free_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, home = opened(folder(tmp_path / "set")), tmp_path / "not made yet"
    exact = sum(dataset.train.load(i).nbytes for i in range(len(dataset.train)))
    monkeypatch.setattr("vqbench.data.prepare.free_bytes", lambda home: 2 * exact - 2)
    assert prepare_train(dataset, home) is dataset.train
    monkeypatch.setattr("vqbench.data.prepare.free_bytes", lambda home: 2 * exact)
    assert is_cached(prepare_train(dataset, home))
    monkeypatch.setattr("vqbench.data.prepare.free_bytes", lambda home: 0)
    assert is_cached(prepare_train(dataset, home)), "it has its room already"
    ffhq_at_256 = 60_000 * 256 * 256 * 3
    for free, fits in ((30 * 2**30, True), (20 * 2**30, False)):
        monkeypatch.setattr("vqbench.data.prepare.free_bytes", lambda home, free=free: free)
        assert (prepare.room(home).bytes >= ffhq_at_256) is fits
    monkeypatch.setenv("VQBENCH_CACHE_LIMIT_GB", "0")
    assert prepare_train(dataset, home) is dataset.train


class Counted(Images):
    """As many images as asked for, slow to load; every seventh cannot be used."""

    content_key = "counted"

    def __init__(self, count: int) -> None:
        self.ids = [str(i) for i in range(count)]
        self.loaded: list[int] = []

    def load(self, i: int) -> np.ndarray:
        self.loaded.append(i)
        if i % 7 == 3:
            raise ImageFileError("bad", "remove it")
        time.sleep(1e-3)
        return np.zeros((16, 20, 3), np.uint8)

    def measure(self, i: int) -> tuple[int, int]:
        return 16, 20


@pytest.mark.parametrize("count", [500, 9, 1])
def test_what_decoding_costs_is_measured_on_200_images_of_the_set(tmp_path: Path, count: int) -> None:
    images, seen = Counted(count), []
    rates = loading_rates(images, 16, lambda done, total: seen.append((done, total)))
    assert rates is not None
    measured = min(count, 200)
    assert sorted(images.loaded) == sorted({i * count // measured for i in range(measured)})
    assert seen[-1] == (measured, measured)
    assert rates.images == sum(i % 7 != 3 for i in images.loaded)
    assert rates.as_they_are < 1000 < rates.decoded


def test_a_command_says_what_it_costs_that_a_set_is_not_kept_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, kept, not_kept, photos = folder(tmp_path / "set", 40), [], [], []
    recipe, silent = load_recipe("tiny", {"resolution": 16}), lambda what, done, total: None
    monkeypatch.setenv("VQBENCH_HOME", str(tmp_path / "home"))
    ImagesTrack().prepare_training(recipe, DataReference("photos"), photos.append, silent)
    monkeypatch.setattr("vqbench.data.prepare.free_bytes", lambda home: 1000)
    ImagesTrack().prepare_training(recipe, DataReference(f"folder:{root}"), not_kept.append, silent)
    monkeypatch.undo()
    monkeypatch.setenv("VQBENCH_HOME", str(tmp_path / "home"))
    ImagesTrack().prepare_training(recipe, DataReference(f"folder:{root}"), kept.append, silent)
    assert kept == photos == []
    (said,) = not_kept
    assert re.fullmatch(
        r"training images are decoded each time they are needed: they would take 0\.00 GiB, and half of the 0\.00 GiB "
        r"free in .*home may be taken\. One core loads [\d.,]+ images/s so, and would load [\d.,]+ decoded \(measured "
        r"on 30\); set VQBENCH_HOME to a folder on a larger disk, or VQBENCH_CACHE_LIMIT_GB=0\.01 keeps them",
        said,
    )
    prepare_it = ["prepare", "--dataset", f"folder:{root}", "--recipe", "tiny", "--metrics", "psnr"]
    monkeypatch.setenv("VQBENCH_CACHE_LIMIT_GB", "0")
    answer = typed(*prepare_it)
    assert answer.code == 0
    assert "VQBENCH_CACHE_LIMIT_GB=0 allows no more. One core loads" in answer.err
    monkeypatch.setenv("VQBENCH_CACHE_LIMIT_GB", "0.01")
    assert "One core" not in typed(*prepare_it).err


def test_no_space_and_no_permission_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = opened(folder(tmp_path / "set"))
    monkeypatch.setenv("VQBENCH_CACHE_LIMIT_GB", "8")
    monkeypatch.setattr("vqbench.data.prepare.free_bytes", lambda home: 10)
    with pytest.raises(UsageError, match="has less free") as error:
        prepare_train(dataset, tmp_path)
    assert "VQBENCH_CACHE_LIMIT_GB=0" in error.value.hint
    monkeypatch.undo()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write to"):
        prepare_validation(dataset, tmp_path / "file")


def test_photos_are_not_cached(tmp_path: Path) -> None:
    dataset = open_dataset("photos", 32)
    assert prepare_train(dataset, tmp_path) is dataset.train
    first, second = prepare_validation(dataset, tmp_path), prepare_validation(dataset, tmp_path)
    assert first.digest == second.digest
    assert first.pixels.shape == (192, 32, 32, 3)
    assert list(tmp_path.iterdir()) == []


# stream


class Numbered(Images):
    """Image i is filled with i, but for a ramp that tells where a crop lies."""

    def __init__(self, count: int, height: int = 8, width: int = 8) -> None:
        self.ids = [str(i) for i in range(count)]
        self.size = height, width

    def load(self, i: int) -> np.ndarray:
        height, width = self.size
        rows, columns = np.mgrid[:height, :width].astype(np.uint8)
        return np.stack([np.full((height, width), i, np.uint8), rows, columns], axis=-1)


def shown(tensor: torch.Tensor) -> np.ndarray:
    return tensor.numpy().astype(int)


@given(count=st.integers(1, 60), epoch=st.integers(0, 10**6), seed=st.integers(0, 2**63))
@settings(max_examples=60, deadline=None)
def test_each_image_once_in_every_epoch(count: int, epoch: int, seed: int) -> None:
    stream = TrainingStream(Numbered(count), 8, seed, random_crop=False, flip=False)
    order = [int(shown(stream[p])[0, 0, 0]) for p in range(epoch * count, (epoch + 1) * count)]
    assert sorted(order) == list(range(count))


@given(position=st.integers(0, 10**9), seed=st.integers(0, 2**32), height=st.integers(8, 30), width=st.integers(8, 30))
@settings(max_examples=80, deadline=None)
def test_crops_lie_inside_and_depend_on_seed_and_position_only(
    position: int, seed: int, height: int, width: int
) -> None:
    images = Numbered(7, height, width)
    stream = TrainingStream(images, 8, seed, random_crop=True, flip=True)
    tensor = stream[position]
    _, rows, columns = shown(tensor)
    assert tensor.shape == (3, 8, 8)
    assert (np.diff(rows, axis=0) == 1).all()
    assert abs(np.diff(columns, axis=1)).max() == 1
    assert rows.max() < height
    assert columns.max() < width
    other = TrainingStream(images, 8, seed, random_crop=True, flip=True)
    for visited in (position + 9, 0):  # what was read before must not matter
        other[visited]
    assert torch.equal(other[position], tensor)


def test_order_changes_with_epoch_and_seed_but_not_with_augmentation() -> None:
    def order(seed: int, epoch: int, flip: bool = False) -> list[int]:
        stream = TrainingStream(Numbered(50), 8, seed, random_crop=flip, flip=flip)
        return [stream.item(p) for p in range(epoch * 50, epoch * 50 + 50)]

    assert order(0, 0) != order(0, 1) != order(1, 1) != order(1, 0)
    assert order(3, 2) == order(3, 2, flip=True)


def test_flip_and_crop_are_switches_of_their_own() -> None:
    images = Numbered(1, 8, 40)
    streams = {(c, f): TrainingStream(images, 8, 5, c, f) for c in (False, True) for f in (False, True)}
    lefts, mirrored = set(), 0
    for position in range(200):
        plain, both = shown(streams[True, False][position]), shown(streams[True, True][position])
        lefts.add(int(plain[2, 0, 0]))
        assert (both == plain).all() or (both == plain[..., ::-1]).all()
        mirrored += int((both != plain).any())
        assert shown(streams[False, False][position])[2, 0, 0] == 16
    assert lefts == set(range(33))
    assert 70 < mirrored < 130


def test_range_and_type() -> None:
    class BlackAndWhite(Numbered):
        def load(self, i: int) -> np.ndarray:
            return np.full((8, 8, 3), 255 * i, np.uint8)

    stream = TrainingStream(BlackAndWhite(2), 8, 0, random_crop=True, flip=True)
    tensors = [stream[0], stream[1]]
    assert all(t.dtype == torch.uint8 and t.is_contiguous() for t in tensors)
    assert sorted(float(to_input(t).mean()) for t in tensors) == [-1.0, 1.0]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("random_crop", [False, True])
def test_bytes_are_sent_and_become_the_floats_that_were_sent_before(random_crop: bool, flip: bool) -> None:
    """To the last bit what a loader made of an image by itself, until 0.2.0; crops and flips are drawn as then."""
    pixels = np.random.default_rng(1).integers(0, 256, (5, 19, 23, 3), dtype=np.uint8)
    images = Numbered(5)
    images.load = lambda i: pixels[i]  # type: ignore[method-assign]
    stream = TrainingStream(images, 16, 9, random_crop, flip)
    before = []
    for position in range(40):
        draw = np.random.default_rng(np.random.SeedSequence(9, spawn_key=(1, position)))
        top, left = int(draw.integers(19 - 16 + 1)), int(draw.integers(23 - 16 + 1))
        mirrored = draw.random() < 0.5
        top, left = (top, left) if random_crop else (1, 3)
        crop = pixels[stream.item(position)][top : top + 16, left : left + 16]
        crop = crop[:, ::-1] if flip and mirrored else crop
        before.append(np.ascontiguousarray(crop.transpose(2, 0, 1), np.float32) / np.float32(127.5) - np.float32(1))
    (batch,) = torch.utils.data.DataLoader(stream, batch_size=40, sampler=range(40))
    assert batch.nbytes == 40 * 3 * 16 * 16
    assert torch.equal(to_input(batch), torch.from_numpy(np.stack(before)))


def test_workers_give_the_same_stream(tmp_path: Path) -> None:
    images = prepare_train(opened(folder(tmp_path / "set")), tmp_path)
    stream = TrainingStream(images, 16, 1, random_crop=True, flip=True)
    alone = torch.stack([stream[p] for p in range(5, 29)])
    loader = torch.utils.data.DataLoader(stream, batch_size=6, sampler=range(5, 29), num_workers=2)
    assert torch.equal(torch.cat(list(loader)), alone)


def test_stream_refuses_what_has_no_meaning() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        TrainingStream(Numbered(0), 8, 0, False, False)
    with pytest.raises(IndexError):
        TrainingStream(Numbered(1), 8, 0, False, False)[-1]
