"""Tokenizers of somebody else's through an adapter file, folders of reconstructions, and what is checked of either."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import REPOSITORY, typed
from helpers.images import write_images
from helpers.shared import SHARED
from PIL import Image

from vqbench.backbone import BackboneConfig
from vqbench.checks.suite import Property
from vqbench.data.dataset import open_dataset
from vqbench.data.decode import Reading
from vqbench.data.prepare import PreparedImages, prepare_validation
from vqbench.errors import UsageError, VQBenchError
from vqbench.facts import Facts
from vqbench.inputs import to_input
from vqbench.machine.home import home
from vqbench.metrics.evaluation import Evaluation, evaluate
from vqbench.pretrained.adapter import open_adapter
from vqbench.pretrained.conformance import PROPERTIES, check_source, photographs
from vqbench.pretrained.external import ExternalCodec
from vqbench.pretrained.opened import Opened
from vqbench.pretrained.reconstructions import open_reconstructions, reconstruction_facts
from vqbench.tokenizer import Tokenizer, build_quantizer

EXAMPLE = REPOSITORY / "docs" / "examples" / "nbx_vqvae.py"
NBX, NATURAL = SHARED / "weights" / "nbx_vqvae.pt", SHARED / "data" / "natural256.tar"
needs_nbx = pytest.mark.skipif(not (NBX.is_file() and NATURAL.is_file()), reason=f"{NBX} or {NATURAL} is not there")

ADAPTERS = '''
import torch
from torch.nn.functional import adaptive_avg_pool2d, interpolate

SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


class Means:
    """The mean of each colour over patches of 4 px, in 16 steps: nothing is learned."""

    codebook_size, num_codebooks = 16, 3
    multiple_of = downsampling = 4

    def encode(self, images):
        means = adaptive_avg_pool2d(images, (images.shape[2] // 4, images.shape[3] // 4))
        return ((means + 1) * 7.5).round().clamp(0, 15).long().permute(0, 2, 3, 1)

    def decode(self, indices):
        return interpolate(indices.permute(0, 3, 1, 2) / 7.5 - 1, scale_factor=4)


class Grid(Means):
    """One codebook: (B, h, w)."""

    codebook_size, num_codebooks = 4096, 1

    def encode(self, images):
        red, green, blue = super().encode(images).unbind(-1)
        return (red * 16 + green) * 16 + blue

    def decode(self, indices):
        return super().decode(torch.stack([indices // 256, indices // 16 % 16, indices % 16], -1))


class Row(Grid):
    """(B, N)."""

    downsampling = None

    def encode(self, images):
        return super().encode(images).flatten(1)

    def decode(self, indices):
        side = round(indices.shape[1] ** 0.5)
        return super().decode(indices.unflatten(1, (side, side)))


class Scales(Row):
    """Ten grids from 1 to 16, one after the other: (B, 680)."""

    sizes = [64]

    def encode(self, images):
        grids = [adaptive_avg_pool2d(images, side) for side in SCALES]
        return torch.cat([super(Scales, self).encode(interpolate(grid, scale_factor=4)) for grid in grids], 1)

    def decode(self, indices):
        return super().decode(indices[:, -256:])


grid, row, scales, means = Grid, Row, Scales, Means
'''


@pytest.fixture
def adapters(tmp_path: Path) -> Path:
    path = tmp_path / "adapters.py"
    path.write_text(ADAPTERS)
    return path


def written(folder: Path, text: str, name: str = "mine.py") -> Path:
    """An adapter file of toys and of `text`."""
    path = folder / name
    path.write_text(f"{ADAPTERS}\n\n{text}")
    return path


def scored(opened: Opened, pixels: np.ndarray[Any, Any], *metrics: str, batch_size: int = 16) -> Evaluation:
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    ids = [str(i) for i in range(len(pixels))]
    return evaluate(opened.codec, pixels, ids, metrics=metrics, validation_digest=digest, batch_size=batch_size)


def some_pixels(count: int = 3, side: int = 64) -> np.ndarray[Any, Any]:
    return photographs(side, side, count=count).permute(0, 2, 3, 1).contiguous().numpy()


def refused(action: Callable[[], object], *said: str) -> UsageError:
    """The one error of `action`: what is wrong in one line, and one hint; both have some of `said`."""
    with pytest.raises(UsageError) as caught:
        action()
    assert "\n" not in caught.value.what + caught.value.hint
    assert caught.value.hint
    for text in said:
        assert text in f"{caught.value.what} | {caught.value.hint}"
    return caught.value


# --- the published network -------------------------------------------------------------------------------------------


def natural(count: int) -> np.ndarray[Any, Any]:
    """The first images of natural256, uint8 (count, 256, 256, 3)."""
    images = []
    with tarfile.open(NATURAL) as archive:
        for member in sorted((m for m in archive if m.isfile()), key=lambda m: m.name)[:count]:
            file = archive.extractfile(member)
            assert file is not None
            images.append(np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB")))
    return np.stack(images)


@pytest.fixture
def nbx(monkeypatch: pytest.MonkeyPatch) -> Opened:
    monkeypatch.setenv("NBX_VQVAE", str(NBX))
    return open_adapter(EXAMPLE, "tokenizer")


@needs_nbx
def test_a_published_network_through_the_example(nbx: Opened) -> None:
    found = scored(nbx, natural(4)[:, 64:192, 64:192], "psnr", "usage", "perplexity")
    assert found.scores["psnr"] == pytest.approx(29.90, abs=0.02)  # 26 without the ReLU in place
    assert 0.2 < found.scores["usage"] < 0.56
    assert nbx.facts.parameters["total"] == 973443
    assert (nbx.facts.licence, nbx.facts.downsampling, nbx.facts.bits_per_token) == ("MIT", 4, 9.0)


@needs_nbx
@pytest.mark.parametrize("wrong", [(0.0, 1.0), (-1.0, 1.0)])
def test_a_wrong_range_is_told_by_the_round_trip(nbx: Opened, wrong: tuple[float, float]) -> None:
    codec = nbx.codec
    assert isinstance(codec, ExternalCodec)
    images = torch.from_numpy(natural(2)[:, 64:160, 64:160]).permute(0, 3, 1, 2)
    (right,) = check_source(nbx, images, ["range of images"])
    assert right.passed, right.detail
    codec.quantizer = dataclasses.replace(codec.quantizer, input_range=wrong)
    (found,) = check_source(nbx, images, ["range of images"])
    assert found.passed is False
    assert "input_range = (-0.5, 0.5)" in found.detail


@needs_nbx
@pytest.mark.slow
def test_scores_of_the_published_network(nbx: Opened) -> None:
    found = scored(nbx, natural(500), "psnr", "usage", "perplexity")
    assert found.indices.shape == (500, 4096, 1)
    assert found.scores["psnr"] == pytest.approx(25.998, abs=0.0006)
    assert found.scores["usage"] == pytest.approx(0.5527, abs=0.00006)
    assert found.scores["perplexity"] == pytest.approx(170.5, abs=0.06)


# --- adapters: what they may give -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "shape", "tokens", "codebooks"),
    [("grid", (3, 16, 16), 256, 1), ("row", (3, 256), 256, 1), ("scales", (3, 680), 680, 1),
     ("means", (3, 16, 16, 3), 256, 3)],
)  # fmt: skip
def test_tokens_of_any_layout_are_scored(
    adapters: Path, function: str, shape: tuple[int, ...], tokens: int, codebooks: int
) -> None:
    opened, pixels = open_adapter(adapters, function), some_pixels()
    indices = opened.codec.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert (indices.shape, indices.dtype) == (shape, torch.int64)
    found = scored(opened, pixels, "psnr", "usage", "bpp", batch_size=2)
    assert found.indices.shape == (3, tokens, codebooks)
    assert np.array_equal(found.indices.reshape(shape), indices.numpy())
    # by hand: the mean of each patch in 16 steps
    patches = (pixels / 127.5 - 1).reshape(3, 16, 4, 16, 4, 3).mean((2, 4))
    levels = ((patches + 1) * 7.5).round()
    made = np.round((levels / 7.5).repeat(4, 1).repeat(4, 2) * 127.5)
    expected = 10 * np.log10(255**2 / np.square(made - pixels).mean((1, 2, 3)))
    assert found.scores["psnr"] == pytest.approx(expected.mean(), abs=1e-3)
    assert opened.facts.bits_per_token == 12


def test_what_it_declares_is_what_is_known_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "weights.pt").write_bytes(b"weights")
    sha256 = hashlib.sha256(b"weights").hexdigest()
    path = written(
        tmp_path,
        f"""
def mine():
    made = Grid()
    print("loading")
    made.name, made.bits_per_token, made.published = "mine v1", 11.5, {{"theirs": {{"rfid": 1.25}}}}
    made.resolution, made.sizes = 64, [64, (32, 64)]
    made.source = {{"file": "weights.pt", "sha256": "{sha256[:16]}", "licence": "MIT", "trained_on": "faces"}}
    return made
""",
    )
    facts = open_adapter(path, "mine").facts
    assert capsys.readouterr().out == ""  # where --json has its lines
    assert (facts.resolution, facts.sizes) == (64, (64,))
    assert (facts.kind, facts.name, facts.path) == ("adapter", "mine v1", f"{path}:mine")
    assert (facts.codebook_size, facts.num_codebooks, facts.bits_per_token) == (4096, 1, 11.5)
    assert (facts.licence, facts.trained_on, facts.published) == ("MIT", "faces", {"theirs": {"rfid": 1.25}})
    assert facts.parameters == {}
    assert Facts.of(facts.as_dict()) == facts
    assert open_adapter(path, "grid").facts.name == "mine:grid"


def test_the_hash_is_of_all_that_the_numbers_depend_on(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
from beside import STEPS

def mine():
    made = Grid()
    made.source = {"file": "w.pt"}
    return made
""",
    )
    (tmp_path / "beside.py").write_text("STEPS = 3\n")
    (tmp_path / "w.pt").write_bytes(b"1")

    def digest(function: str = "mine") -> str:
        return open_adapter(path, function).facts.sha256

    seen = [digest()]
    assert digest() == seen[0]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("mine.py", "beside.py", "w.pt"):
        (elsewhere / name).write_bytes((tmp_path / name).read_bytes())
    assert open_adapter(elsewhere / "mine.py", "mine").facts.sha256 == seen[0]
    assert digest("grid") != digest("row")
    (tmp_path / "w.pt").write_bytes(b"2")
    seen.append(digest())
    (tmp_path / "beside.py").write_text("STEPS = 4\n")
    seen.append(digest())
    path.write_text(path.read_text() + "# more\n")
    seen.append(digest())
    assert len(set(seen)) == len(seen)


MODULES = """
from torch import nn


class Wrapped:
    codebook_size = 16

    def __init__(self):
        self.net = nn.Sequential(nn.Conv2d(3, 1, 4, stride=4), nn.BatchNorm2d(1)).half().train()
        self.back = nn.ConvTranspose2d(1, 3, 4, stride=4).requires_grad_(False)

    def encode(self, images):
        return (self.net(images)[:, 0].sigmoid() * 16).long().clamp(0, 15)

    def decode(self, indices):
        return self.back(indices[:, None].to(self.back.weight.dtype) / 8 - 1)


class Module(Wrapped, nn.Module):
    def __init__(self):
        nn.Module.__init__(self)
        Wrapped.__init__(self)
        self.offset = nn.Parameter(torch.zeros(5))


class Half(Wrapped):
    dtype = torch.bfloat16

    def __init__(self):
        super().__init__()
        self.net, self.back = self.net.bfloat16(), self.back.bfloat16()
"""


def test_modules_are_found_counted_and_made_float32(tmp_path: Path) -> None:
    path, images = written(tmp_path, MODULES), torch.from_numpy(some_pixels()).permute(0, 3, 1, 2)
    opened = open_adapter(path, "Wrapped")
    assert opened.facts.parameters == {"net": 51, "back": 51, "total": 102}
    assert open_adapter(path, "Module").facts.parameters == {"net": 51, "back": 51, "other": 5, "total": 107}
    assert opened.facts.remarks == ("its weights are of no file that the adapter names, so a change of them is not "
                                    "noticed",)  # fmt: skip
    codec = opened.codec
    assert isinstance(codec, ExternalCodec)
    assert not any(module.training for module in codec.modules())
    assert {tensor.dtype for tensor in codec.parameters()} == {torch.float32}
    assert codec.decode(codec.encode(images)).dtype == torch.float32
    again = open_adapter(path, "Wrapped").codec  # weights that are drawn are those of no particular process
    assert torch.equal(again.encode(images), codec.encode(images))

    half = open_adapter(path, "Half")
    assert half.facts.remarks[0] == "computes in bfloat16"
    assert {tensor.dtype for tensor in half.codec.parameters()} == {torch.bfloat16}
    assert half.codec.decode(half.codec.encode(images)).dtype == torch.float32


def test_the_range_that_it_declares_is_converted(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
class Unit(Means):
    input_range = (0, 1)

    def encode(self, images):
        assert 0 <= images.min() and images.max() <= 1
        return super().encode(images.mul_(2).sub_(1))  # in place: of what is its own

    def decode(self, indices):
        made = (super().decode(indices) + 1) / 2
        indices.zero_()
        return made
""",
    )
    unit, plain = open_adapter(path, "Unit").codec, open_adapter(path, "Means").codec
    images = to_input(torch.from_numpy(some_pixels()).permute(0, 3, 1, 2))
    before = images.clone()
    indices = unit.encode(images)
    assert torch.equal(images, before)
    kept = indices.clone()
    made = unit.decode(indices)
    assert torch.equal(indices, kept)
    assert (unit.encode(images) != plain.encode(images)).float().mean() < 0.01  # ties of rounding
    assert torch.allclose(made, plain.decode(indices), atol=1e-6)


# --- adapters: what they do wrong -------------------------------------------------------------------------------------

ENCODE = "def encode(self, images):\n        return super().encode(images)"
DECODE = "def decode(self, indices):\n        return super().decode(indices)"
WRONG = {
    "raises": ("def encode(self, images):\n        raise KeyError('down.0')", "encode raised KeyError: 'down.0'"),
    "floats": (
        "def encode(self, images):\n        return super().encode(images).float()",
        "encode gave float32 (3, 16",
    ),
    "a tuple": (f"{ENCODE}, None", "encode gave tuple"),
    "flat": (f"{ENCODE}.flatten()", "encode gave int64 (768,)"),
    "above": (f"{ENCODE} + 4096", "means 0 to 4095"),
    "below": (f"{ENCODE} - 4097", "encode gave index -"),
    "codebooks": ("num_codebooks = 2", "the last axis that of 2 codebooks"),
    "another size": (f"{DECODE}[..., 1:]", "(3, 3, 64, 63)"),
    "six channels": (
        "def decode(self, indices):\n        return super().decode(indices).repeat(1, 2, 1, 1)",
        "(3, 6, 64",
    ),
    "channels last": (
        f"{DECODE}.permute(0, 2, 3, 1)",
        "permute(0, 3, 1, 2)",
    ),
    "bytes": (
        "def decode(self, indices):\n        return super().decode(indices).to(torch.uint8)",
        "decode gave uint8",
    ),
    "nan": (f"{DECODE} / 0 * 0", "NaN or infinity"),
    "decode raises": ("def decode(self, indices):\n        return self.net(indices)", "decode raised AttributeError"),
    "one size": ("sizes = [32]", "takes images of 32×32 px alone, not 64×64"),
    "steps": ("multiple_of = 48", "takes images whose sides 48 divides, not 64×64"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_is_one_error_and_one_hint(tmp_path: Path, mistake: str) -> None:
    body, said = WRONG[mistake]
    path = written(tmp_path, f"class Mine(Grid):\n    {body}\n")
    opened = open_adapter(path, "Mine")
    with pytest.raises(VQBenchError) as caught:
        scored(opened, some_pixels(), "psnr")
    assert said in f"{caught.value.what} | {caught.value.hint}"
    assert "\n" not in caught.value.what + caught.value.hint
    assert caught.value.hint
    assert str(path) in caught.value.what
    found = check_source(opened, photographs(64, 64))
    assert [p.name for p in found if p.passed is False]
    assert not [p.detail for p in found if p.detail.startswith(("ValueError", "RuntimeError"))]


OPENING = {
    "no function": ("", "", "it has Means, Grid, Row, Scales"),
    "unknown function": ("", "gird", "did you mean grid or"),
    "no callable": ("made = Grid()", "made", "is no function but Grid"),
    "raises": ("def mine():\n    raise RuntimeError('no\\nroom')", "mine", "raised: RuntimeError: no room"),
    "exits": ("def mine():\n    raise SystemExit(3)", "mine", "raised: SystemExit: 3"),
    "lacks weights": ("def mine():\n    open('/nowhere/w.pt')", "mine", "put /nowhere/w.pt there"),
    "lacks a package": ("import nonesuch", "mine", "install what brings 'nonesuch'"),
    "does not parse": ("def mine(:", "mine", "python -m py_compile"),
    "nothing": ("def mine():\n    pass", "mine", "without codebook_size and encode and decode"),
    "a class": ("def mine():\n    return Grid", "mine", "return Grid()"),
    "no codebook": ("class Mine(Grid):\n    codebook_size = None", "Mine", "codebook_size is None"),
    "a float": ("class Mine(Grid):\n    codebook_size = 4096.0", "Mine", "codebook_size is 4096.0"),
    "one code": ("class Mine(Grid):\n    codebook_size = 1", "Mine", "a whole number from 2"),
    "codebooks": ("class Mine(Grid):\n    num_codebooks = True", "Mine", "num_codebooks is True"),
    "bits": ("class Mine(Grid):\n    bits_per_token = 0", "Mine", "a number above 0"),
    "a range": ("class Mine(Grid):\n    input_range = (1, 0)", "Mine", "two numbers, of black and of white"),
    "a dtype": ("class Mine(Grid):\n    dtype = 'int8'", "Mine", "one of float32, bfloat16, float16"),
    "sizes": ("class Mine(Grid):\n    sizes = 256", "Mine", "numbers for squares"),
    "scores": ("class Mine(Grid):\n    published = {'rfid': 1}", "Mine", "protocol in words"),
    "a source": ("class Mine(Grid):\n    source = 'w.pt'", "Mine", "a mapping with file"),
    "no such source": ("class Mine(Grid):\n    source = {'file': 'w.pt'}", "Mine", "which it names as its source"),
    "a short hash": ("class Mine(Grid):\n    source = {'file': 'mine.py', 'sha256': 'ab'}", "Mine", "at least 12"),
    "another file": (
        "class Mine(Grid):\n    source = {'file': 'mine.py', 'sha256': '0123456789ab'}",
        "Mine",
        "is written for weights of sha256 0123456789ab",
    ),
}


@pytest.mark.parametrize("mistake", OPENING)
def test_what_cannot_be_opened_is_one_error_and_one_hint(tmp_path: Path, mistake: str) -> None:
    text, function, said = OPENING[mistake]
    path = written(tmp_path, text)
    error = refused(lambda: open_adapter(path, function), said)
    assert str(path) in f"{error.what} {error.hint}"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    refused(lambda: open_adapter(tmp_path / "none.py", "f"), f"cannot read adapter {tmp_path / 'none.py'}", "FILE.py:")


def test_settings_of_a_script_stay_in_it(tmp_path: Path) -> None:
    path = written(tmp_path, "torch.set_grad_enabled(False)\ntorch.set_default_dtype(torch.float64)\ntorch.rand(3)\n")
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    open_adapter(path, "grid")
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32
    assert torch.equal(torch.rand(2), expected)


def test_people_hear_of_what_they_hand_over(adapters: Path) -> None:
    codec = open_adapter(adapters, "means").codec
    with pytest.raises(ValueError, match="divisible by 4"):
        codec.encode(torch.zeros(1, 3, 62, 64))
    refused(lambda: codec.to_indices(torch.zeros(1, 1, 64, 64)), "images of 3 channels (RGB), not of 1")
    refused(lambda: codec.decode(torch.zeros(1, 4, 4, 3)), "decode was given float32 (1, 4, 4, 3)")
    refused(lambda: codec.decode(torch.full((1, 4, 4, 3), 16)), "decode was given index 16")


# --- folders of reconstructions ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with six validation images, one in a folder below, of 40 px."""
    root = tmp_path_factory.mktemp("reconstructed")
    write_images(root / "train", 2)
    write_images(root / "val", 6, seed=1)
    (root / "val" / "deep").mkdir()
    (root / "val" / "0005.png").rename(root / "val" / "deep" / "0.5.v2.png")
    return root


@pytest.fixture(scope="module")
def validation(folder: Path) -> PreparedImages:
    return prepare_validation(open_dataset(f"folder:{folder}", 32), home())


def reconstructed(validation: PreparedImages, to: Path, change: int = 8, suffix: str = ".png") -> Path:
    """Pictures of the validation images, so much darker at each pixel that is bright enough."""
    for name, pixels in zip(validation.ids, validation.pixels, strict=True):
        path = to / Path(name).relative_to("val").with_suffix(suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.maximum(pixels, change) - np.uint8(change)).save(path)
    return to


def test_each_image_meets_its_own_reconstruction(validation: PreparedImages, tmp_path: Path) -> None:
    opened = open_reconstructions(reconstructed(validation, tmp_path / "a", suffix=".bmp"), None, validation)
    order = np.array([3, 0, 5, 1])
    pixels = np.array(validation.pixels)[order]
    images = to_input(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert opened.codec.quantizer is None
    assert opened.codec.to_indices(images).tolist() == order.tolist()
    made = opened.codec.from_indices(opened.codec.to_indices(images))
    expected = to_input(torch.from_numpy(np.maximum(pixels, 8) - np.uint8(8)).permute(0, 3, 1, 2))
    assert torch.equal(made, expected)
    assert torch.equal(opened.codec.decode(opened.codec.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2))), expected)
    facts = opened.facts
    assert (facts.kind, facts.name, facts.codebook_size, facts.parameters) == ("images", "a", None, {})
    refused(lambda: opened.codec.to_indices(-images), "image 0 of the batch is not one of the validation images")


def test_names_below_the_split_or_with_it(validation: PreparedImages, tmp_path: Path) -> None:
    plain = open_reconstructions(reconstructed(validation, tmp_path / "a"), None, validation)
    whole = open_reconstructions(reconstructed(validation, tmp_path / "b" / "val").parent, None, validation)
    images = to_input(torch.from_numpy(np.array(validation.pixels)).permute(0, 3, 1, 2))
    assert torch.equal(whole.codec.decode(whole.codec.encode(images)), plain.codec.decode(plain.codec.encode(images)))


def test_what_is_missing_too_much_or_of_another_size_is_named(validation: PreparedImages, tmp_path: Path) -> None:
    made = reconstructed(validation, tmp_path / "a")
    (made / "0001.png").rename(made / "0001_rec.png")
    (made / "0002.png").unlink()
    open_one = lambda: open_reconstructions(made, None, validation)  # noqa: E731
    error = refused(open_one, "2 of 6 validation images have no reconstruction", "val/0001.png, val/0002.png")
    assert "1 file there of no validation image: 0001_rec.png" in error.what

    made = reconstructed(validation, tmp_path / "b")
    Image.new("RGB", (32, 31)).save(made / "0003.png")
    refused(
        lambda: open_reconstructions(made, None, validation), "1 of 6 reconstructions", "0003.png (31×32 for 32×32)"
    )

    made = reconstructed(validation, tmp_path / "c")
    Image.new("RGB", (32, 32)).save(made / "0003.bmp")
    with_both = open_reconstructions(made, None, validation)  # the image itself ends in .png
    assert with_both.facts.remarks == ("1 image of the folder without a validation image, and not scored: 0003.bmp",)
    (made / "0003.png").rename(made / "0003.tif")
    refused(lambda: open_reconstructions(made, None, validation), "not clear from the name, for 1 image: val/0003.png")

    (tmp_path / "none").mkdir()
    refused(lambda: open_reconstructions(tmp_path / "none", None, validation), "holds no image")
    refused(lambda: reconstruction_facts(tmp_path / "none"), "holds no image")


def test_no_more_than_twenty_names_are_shown(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    many = PreparedImages(pixels, tuple(f"{i:02d}.png" for i in range(30)), "")
    Image.fromarray(pixels[0]).save(tmp_path / "00.png")
    error = refused(lambda: open_reconstructions(tmp_path, None, many), "29 of 30", "20.png and 9 more")
    assert "21.png" not in error.what


def test_images_of_sizes_of_their_own(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 3)
    for i, size in enumerate(((40, 30), (24, 40), (17, 19))):
        Image.open(tmp_path / "in" / f"000{i}.png").resize(size).save(tmp_path / "in" / f"000{i}.png")
    reading = Reading(whole=True)
    dataset = open_dataset(f"folder:{tmp_path / 'in'}", 16, rules={"whole": True}, score_all=True)
    whole = prepare_validation(dataset, home())
    opened = open_reconstructions(tmp_path / "in", tmp_path / "in", whole, reading)
    for pixels in whole.pixels:
        images = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None]
        assert torch.equal(opened.codec.decode(opened.codec.encode(images)), to_input(images))


def test_the_same_image_twice_is_said(tmp_path: Path) -> None:
    pixels = np.zeros((3, 8, 8, 3), np.uint8)
    pixels[1] = 90
    twice = PreparedImages(pixels, ("a.png", "b.png", "c.png"), "")
    for name, value in (("a", 10), ("b", 100), ("c", 10)):
        Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(tmp_path / f"{name}.png")
    assert open_reconstructions(tmp_path, None, twice).facts.remarks == ()
    Image.fromarray(np.full((8, 8, 3), 20, np.uint8)).save(tmp_path / "c.png")
    opened = open_reconstructions(tmp_path, None, twice)
    assert opened.codec.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2)).tolist() == [0, 1, 0]
    (remark,) = opened.facts.remarks
    assert remark.startswith("1 validation image: the same image as another to the last pixel")
    assert remark.endswith("c.png (scored as a.png)")


def test_originals_must_be_the_validation_images(folder: Path, validation: PreparedImages, tmp_path: Path) -> None:
    made = reconstructed(validation, tmp_path / "made")
    with_originals = open_reconstructions(made, folder / "val", validation)
    assert with_originals.facts.sha256 == reconstruction_facts(made).sha256
    error = refused(
        lambda: open_reconstructions(made, folder / "val", validation, Reading(resize="bilinear")),
        "6 of 6 images", "are not those of the dataset",
    )  # fmt: skip
    assert "0000.png (up to " in error.what
    refused(lambda: open_reconstructions(made, tmp_path / "gone", validation), f"{tmp_path / 'gone'} does not exist")
    others = tmp_path / "others"
    write_images(others, 6, seed=1)
    error = refused(lambda: open_reconstructions(made, others, validation), "1 of 6 validation images are not in")
    assert "val/deep/0.5.v2.png" in error.what
    (others / "deep").mkdir()
    (others / "0005.png").rename(others / "deep" / "0.5.v2.png")
    Image.open(folder / "train" / "0000.png").save(others / "0002.png")
    error = refused(lambda: open_reconstructions(made, others, validation), "1 of 6 images", "0002.png (up to ")
    assert "0001.png" not in error.what


def test_the_digest_of_a_folder_is_of_names_and_bytes(validation: PreparedImages, tmp_path: Path) -> None:
    made = reconstructed(validation, tmp_path / "a", suffix=".jpg")
    facts = reconstruction_facts(made)
    assert facts.remarks == ("6 files in JPEG or WebP: what that loses is part of the scores",)
    assert reconstruction_facts(reconstructed(validation, tmp_path / "b", suffix=".jpg")).sha256 == facts.sha256
    assert open_reconstructions(made, None, validation).facts == facts
    (tmp_path / "b" / "0000.jpg").rename(tmp_path / "b" / "0000.jpeg")
    renamed = reconstruction_facts(tmp_path / "b").sha256
    middle = bytearray((made / "0000.jpg").read_bytes())
    middle[len(middle) // 2] ^= 1
    (made / "0000.jpg").write_bytes(middle)
    assert len({facts.sha256, renamed, reconstruction_facts(made).sha256}) == 3


def test_a_plan_knows_a_folder_without_torch(validation: PreparedImages, tmp_path: Path) -> None:
    made = reconstructed(validation, tmp_path / "a")
    code = (
        "import sys; from pathlib import Path; from vqbench.pretrained.reconstructions import reconstruction_facts;"
        f"print(reconstruction_facts(Path({str(made)!r})).sha256, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.split() == [reconstruction_facts(made).sha256, "False"]


def test_a_broken_reconstruction_is_named(validation: PreparedImages, tmp_path: Path) -> None:
    made = reconstructed(validation, tmp_path / "a")
    for name in ("0003.png", "0004.png"):
        whole = (made / name).read_bytes()
        (made / name).write_bytes(whole[: len(whole) // 2])
    said = f"2 images cannot be used: {made / '0003.png'}: damaged"
    refused(lambda: open_reconstructions(made, None, validation), said)

    made = reconstructed(validation, tmp_path / "b", suffix=".jpg")  # whose header says its size
    whole = (made / "0004.jpg").read_bytes()
    (made / "0004.jpg").write_bytes(whole[:-50])
    codec = open_reconstructions(made, None, validation).codec
    images = torch.from_numpy(np.array(validation.pixels)).permute(0, 3, 1, 2)
    refused(lambda: codec.decode(codec.encode(images)), f"{made / '0004.jpg'}: damaged")


def test_sizes_and_channels_are_refused_before_images_are_read(folder: Path, tmp_path: Path) -> None:
    path = written(tmp_path, "class Mine(Row):\n    multiple_of = 48\n")
    data = ("--dataset", f"folder:{folder}", "--runs", tmp_path / "runs", "--dry-run")
    for words in (("eval", f"{path}:Mine", "--resolution", 32), ("run", "--methods", f"vqgan,{path}:Mine")):
        answer = typed(*words, *data)
        assert answer.code == 2, answer.err
        assert "takes sides that are divisible by 48, not 32\nhint: the nearest: 48" in answer.err
    oblong = written(tmp_path, "class Mine(Row):\n    sizes = [(32, 64), (64, 32)]\n", "oblong.py")
    for words in (("eval", f"{oblong}:Mine", "--resolution", 32), ("run", "--methods", f"vqgan,{oblong}:Mine")):
        answer = typed(*words, *data)
        assert answer.code == 2, answer.err
        assert "takes images of 32×64 or 64×32 px alone, and images are squares here\nhint: let its" in answer.err
    grey = typed("run", "--methods", f"vqgan,{path}:row", *data, "--set", "image_channels=1")
    assert (grey.code, "takes images of 3 channels, not of 1 channel" in grey.err) == (2, True), grey.err
    native = typed("eval", f"{path}:Mine", *data[:-1], "--protocol", "native", "--metrics", "psnr", "--json")
    assert native.code == 0, native.err  # padded, where it is looked at before too
    assert 0 < native.objects[0]["scores"]["psnr"] < 100


@pytest.mark.slow
def test_one_command_scores_an_adapter_and_a_folder(
    adapters: Path, folder: Path, validation: PreparedImages, tmp_path: Path
) -> None:
    made = reconstructed(validation, tmp_path / "made")
    some = ("--dataset", f"folder:{folder}", "--resolution", 32, "--metrics", "psnr,usage", "--runs", tmp_path / "runs")
    answer = typed("eval", f"{adapters}:grid", f"images:{made},{folder / 'val'}", *some, "--json")
    assert answer.code == 0, answer.err
    of_grid, of_folder = answer.objects
    pixels = np.array(validation.pixels)
    expected = scored(open_adapter(adapters, "grid"), pixels, "psnr", "usage")
    assert of_grid["scores"] == pytest.approx(expected.scores)
    assert (of_grid["tokens_per_image"], of_grid["bits_per_image"]) == (64, 64 * 12)
    darker = np.maximum(pixels, 8) - np.uint8(8)
    error = np.square(darker.astype(float) - pixels).mean((1, 2, 3))
    assert of_folder["scores"] == {"psnr": pytest.approx((10 * np.log10(255**2 / error)).mean())}


# --- what is checked --------------------------------------------------------------------------------------------------


def failing(found: list[Property]) -> set[str]:
    return {p.name for p in found if p.passed is False}


@pytest.mark.parametrize("function", ["means", "grid", "row", "scales"])
def test_a_right_adapter_passes(adapters: Path, function: str) -> None:
    found = check_source(open_adapter(adapters, function), photographs(64, 64))
    assert [p.name for p in found] == list(PROPERTIES)
    assert {p.name: p.passed for p in found} == {
        name: None if name == "changes nothing" else True for name in PROPERTIES
    }


CAUGHT = {
    "range of images": """
class Mine(Grid):
    def encode(self, images):
        return super().encode(images * 2 - 1)

    def decode(self, indices):
        return (super().decode(indices) + 1) / 2
""",
    "ignores other images": """
class Mine(Grid):
    def encode(self, images):
        return super().encode(images + 0.1 * images.mean((0, 2, 3), keepdim=True))
""",
    "deterministic": """
class Mine(Grid):
    def encode(self, images):
        return super().encode(images + 0.1 * torch.randn_like(images))
""",
    "decodes indices alone": """
class Mine(Grid):
    def encode(self, images):
        self.last = images
        return super().encode(images)

    def decode(self, indices):
        return self.last[: len(indices)]
""",
    "changes nothing": """
class Mine(Grid, torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def encode(self, images):
        self.seen += len(images)
        return super().encode(images)
""",
    "other sizes": """
class Mine(Grid):
    multiple_of = 1
""",
    "shapes and types": """
class Mine(Grid):
    downsampling = 8
""",
}


@pytest.mark.parametrize("name", CAUGHT)
def test_each_mistake_fails_what_is_meant_for_it(tmp_path: Path, name: str) -> None:
    found = check_source(open_adapter(written(tmp_path, CAUGHT[name]), "Mine"), photographs(64, 64))
    related = {"deterministic": {"ignores other images"}, "decodes indices alone": {"ignores other images"}}
    assert name in failing(found)
    assert failing(found) <= {name} | related.get(name, set())


def test_what_is_wrong_with_sizes_says_how_to_declare_them(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
class Mine(Grid):
    multiple_of = 1

class Raises(Mine):
    def encode(self, images):
        assert images.shape[-2:] == (64, 64)
        return super().encode(images)

class Says(Mine):
    def encode(self, images):
        if images.shape[-2:] != (64, 64):
            raise ValueError("64 px alone")
        return super().encode(images)
""",
    )
    (found,) = check_source(open_adapter(path, "Mine"), photographs(64, 64), ["other sizes"])
    assert found.passed is False
    assert "come back as" in found.detail
    assert "declare multiple_of = N or sizes = [N]" in found.detail
    (found,) = check_source(open_adapter(path, "Raises"), photographs(64, 64), ["other sizes"])
    assert found.passed is False
    assert "AssertionError" in found.detail
    (found,) = check_source(open_adapter(path, "Says"), photographs(64, 64), ["other sizes"])
    assert found.passed, found.detail


def test_output_of_another_range_than_input_is_told(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "class Mine(Grid):\n    def decode(self, indices):\n        return (super().decode(indices) + 1) / 2\n",
    )
    (found,) = check_source(open_adapter(path, "Mine"), photographs(64, 64), ["range of images"])
    assert found.passed is False
    assert "encode takes [-1, 1] and decode gives [0, 1]" in found.detail


def test_after_a_useless_answer_nothing_more_is_looked_at(tmp_path: Path) -> None:
    path = written(tmp_path, f"class Mine(Grid):\n    {WRONG['floats'][0]}\n")
    found = check_source(open_adapter(path, "Mine"), photographs(64, 64))
    assert [p.passed for p in found] == [False] + [None] * (len(PROPERTIES) - 1)


def test_our_own_tokenizers_and_folders_are_checked_too(validation: PreparedImages, tmp_path: Path) -> None:
    config = BackboneConfig(32, 32, (1, 2), 1, (), False, 8, 0.0)
    tokenizer = Tokenizer(config, build_quantizer("vqgan", {"codebook_size": 16, "dim": 8})).eval()
    own = Opened(tokenizer, Facts("vqbench", "own", "/own", "", codebook_size=16, downsampling=2, resolution=32))
    found = check_source(own)
    assert not failing(found), found
    assert "33×33 px refused" in found[-1].detail

    opened = open_reconstructions(reconstructed(validation, tmp_path / "a"), None, validation)
    assert {p.passed for p in check_source(opened)} == {None}
