"""Protocols of others by name: how they read images, what they measure, and that nothing of theirs stands with ours."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from helpers.commands import settings as small_recipe
from helpers.commands import typed
from helpers.evaluation import Posterize, photographs, run
from helpers.images import write_images
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn
from torchvision import transforms

from vqbench.cell.image_cell import findings
from vqbench.cell.images_track import ImagesTrack
from vqbench.data.dataset import DataReference
from vqbench.data.prepare import prepare_validation
from vqbench.errors import UsageError
from vqbench.facts import BY
from vqbench.inputs import to_input
from vqbench.machine.home import home
from vqbench.metrics.definitions import default_metrics, metric, of_channels, select_metrics
from vqbench.metrics.named import NAMED, named_protocol
from vqbench.metrics.protocol import Protocol
from vqbench.metrics.values import of_reference
from vqbench.metrics.weights import Missing, find_weights, require_weights
from vqbench.pretrained.published import published_of, published_of_foreign, sheet
from vqbench.recipe import load_recipe

SHAPES = ((61, 40), (40, 67), (25, 30), (90, 133), (40, 40), (131, 200))
"""Odd margins, sides that are too small and others that are halved first."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photographs")
    for i, (height, width) in enumerate(SHAPES):
        pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)
        turned = Image.Exif()
        turned[274] = 6  # lies on its side, which none of the sources heeds
        Image.fromarray(pixels).save(root / f"{i}.png", **({"exif": turned} if i == 1 else {}))
    return root


def protocol_of(root: Path, resolution: int = 32, **asked: Any) -> Protocol:
    reference = DataReference(f"folder:{root}", split="all", **asked)
    _, protocol = ImagesTrack().open(load_recipe("tiny", {"resolution": resolution}), reference)
    assert isinstance(protocol, Protocol)
    return protocol


# how images are read


def as_taming(pixels: np.ndarray, side: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    scale = side / min(height, width)
    size = (round(width * scale), round(height * scale))
    return middle(cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR), side)


def as_adm(pixels: np.ndarray, side: int) -> np.ndarray:
    image = Image.fromarray(pixels)
    while min(*image.size) >= 2 * side:
        image = image.resize((image.size[0] // 2, image.size[1] // 2), Image.Resampling.BOX)
    scale = side / min(*image.size)
    size = (round(image.size[0] * scale), round(image.size[1] * scale))
    return middle(np.asarray(image.resize(size, Image.Resampling.BICUBIC)), side)


def as_torchvision(pixels: np.ndarray, side: int, scale: float = 1.0) -> np.ndarray:
    lanczos = transforms.InterpolationMode.LANCZOS
    both = transforms.Compose([transforms.Resize(round(scale * side), lanczos), transforms.CenterCrop(side)])
    return np.asarray(both(Image.fromarray(pixels)))


def middle(pixels: np.ndarray, side: int) -> np.ndarray:
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    return pixels[top : top + side, left : left + side]


SOURCES = {
    "taming": as_taming,
    "llamagen": as_adm,
    "var": lambda pixels, side: as_torchvision(pixels, side, 1.125),
    "bsq": as_torchvision,
    "seed_voken": as_taming,
}


@pytest.mark.parametrize("name", SOURCES)
def test_images_are_read_as_the_source_reads_them(folder: Path, name: str) -> None:
    for resolution in (40, 33):
        dataset = DataReference(f"folder:{folder}", protocol=name, split="all").open(resolution)
        validation = prepare_validation(dataset, home())
        assert validation.ids == tuple(f"{i}.png" for i in range(len(SHAPES)))
        for i, found in enumerate(validation.pixels):
            stored = np.asarray(Image.open(folder / f"{i}.png"))
            assert np.array_equal(found, SOURCES[name](stored, resolution)), f"{SHAPES[i]} at {resolution}"


def test_a_named_protocol_is_no_other(folder: Path) -> None:
    assert set(NAMED) == {*SOURCES, "native"}
    named = {name: protocol_of(folder, protocol=name) for name in SOURCES}
    others = [
        protocol_of(folder, small="enlarge"),
        protocol_of(folder, resize="cv2-bilinear-noaa", small="enlarge"),
        protocol_of(folder, resize="box+bicubic", small="enlarge"),
    ]
    assert len({protocol.hash for protocol in (*named.values(), *others)}) == len(named) + len(others)
    for name, protocol in named.items():
        assert protocol.name == f"folder-{folder.name}-all-32-{name}-v1"
        assert f"rules of {name}" in protocol.describe()
        for field, value in (("rounding", "another"), ("crop", "another"), ("rules", "another"), ("definitions", {})):
            assert dataclasses.replace(protocol, **{field: value}).hash != protocol.hash
        assert set(protocol.definitions) == set(default_metrics(protocol=NAMED[name])) | (
            {"lpips_vgg", "lpips_squeeze"} if not NAMED[name].rounding else {"lpips_vgg_float"}
        )
    assert "OpenAI's TensorFlow evaluator does not run here" in named["llamagen"].describe()


def test_ours_has_the_hash_that_it_always_had(folder: Path) -> None:
    """Without a name nothing of a name is hashed."""
    plain = protocol_of(folder, 24)
    assert plain.hash == protocol_of(folder, 24, protocol="ours").hash
    assert not {"rules", "substitute", "source"} & set(plain.as_dict())
    assert set(default_metrics()) == {
        "rfid", "kid", "psnr", "ssim", "lpips_alex", "usage", "perplexity", "dead_codes", "tokens", "bits_per_token",
        "bpp", "bpp_entropy",
    }  # fmt: skip


# what they measure


def numpy_images(tokenizer: nn.Module, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Float32 (N, H, W, C) in [-1, 1]: the images, as a reader of numpy makes them, and what is decoded for them."""
    given = (pixels / 127.5 - 1.0).astype(np.float32)
    with torch.inference_mode():
        batch = to_input(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        decoded = tokenizer.eval().from_indices(tokenizer.to_indices(batch)).clamp(-1, 1)  # type: ignore[operator]
    return given, decoded.permute(0, 2, 3, 1).numpy()


def cut(images: np.ndarray) -> np.ndarray:
    """As SEED-Voken's evaluation does it."""
    scaled = (torch.from_numpy(images) + 1) / 2 * 255.0
    return scaled.to(torch.uint8).numpy().astype(np.float32) / 255.0


class Uneven(Posterize):
    """Values that lie between those of 8 bits, and beyond them."""

    def from_indices(self, indices):  # type: ignore[no-untyped-def]
        image = super().from_indices(indices)
        return image * 1.07 + 0.0031 * torch.arange(image.shape[-1])


PAIRS = ("psnr", "psnr_float", "psnr_truncated", "ssim", "ssim_float", "ssim_truncated", "ssim_range2")


def test_each_metric_sees_its_own_values_of_one_reconstruction(tmp_path: Path) -> None:
    pixels, tokenizer = photographs(6, 24), Uneven()
    found = run(tokenizer, pixels, PAIRS, home=tmp_path, batch_size=4).per_image
    given, decoded = numpy_images(Uneven(), pixels)
    rounded = np.round((decoded.astype(np.float64) + 1) * 127.5)
    for i in range(len(pixels)):
        a, b = cut(given[i]), cut(decoded[i])
        assert not np.array_equal(np.round(a * 255), pixels[i]), "the cut takes one off some references"
        floats = (decoded[i].astype(np.float64) + 1) * 127.5
        flat = {"channel_axis": -1, "data_range": 1.0}
        gaussian = {"channel_axis": -1, "data_range": 255.0, "gaussian_weights": True, "sigma": 1.5,
                    "use_sample_covariance": False}  # fmt: skip
        whole = pixels[i].astype(np.float64)
        expected = {
            "psnr": 10 * np.log10(255**2 / np.mean((whole - rounded[i]) ** 2)),
            "psnr_float": 10 * np.log10(255**2 / np.mean((whole - floats) ** 2)),
            "psnr_truncated": peak_signal_noise_ratio(a, b),
            "ssim": structural_similarity(whole, rounded[i], **gaussian),
            "ssim_float": structural_similarity(whole, floats, **gaussian),
            "ssim_truncated": structural_similarity(b, a, **flat),
            "ssim_range2": structural_similarity(rounded[i] / 255, whole / 255, **{**flat, "data_range": 2.0}),
        }
        for name, value in expected.items():
            assert found[name][i] == pytest.approx(value, abs=2e-5), name
    means = found.mean(numeric_only=True)
    assert len({round(means[name], 6) for name in PAIRS}) == len(PAIRS), "each is another number"


def test_the_cut_is_that_of_numpy_for_every_value() -> None:
    values = np.arange(256, dtype=np.uint8)
    expected = cut((values / 127.5 - 1.0).astype(np.float32)) * 255
    assert np.array_equal(of_reference(torch.from_numpy(values), "truncated").numpy(), expected.round())


@pytest.mark.skipif(isinstance(find_weights("inception"), Missing), reason="no Inception")
def test_features_of_floats_are_pytorch_fid_s() -> None:
    """The network below is torch-fidelity's; what differs is how an image comes to 299 pixels and to [-1, 1]."""
    from vqbench.metrics.inception import load
    from vqbench.registry import EXTRACTORS

    weights = require_weights("inception", None, False)
    inception, network = load(weights, home()), EXTRACTORS.get("inception_pytorch_fid")().load(weights, home())
    images = torch.from_numpy(photographs(2, 299)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        theirs = inception(images)  # which brings x to (x - 128)/128, where pytorch-fid has 2 x/255 - 1
        shifted = ((images.float() - 128) / 128 + 1) / 2 * 255
        assert torch.allclose(network(shifted), theirs, rtol=1e-4, atol=1e-4)
        floats = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0)) * 255
        seen = nn.functional.interpolate(floats / 255, size=(299, 299), mode="bilinear", align_corners=False)
        assert torch.allclose(network(floats), network(seen * 255), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(network(floats), inception(floats.round().to(torch.uint8)), rtol=1e-2)


class Mean(nn.Module):
    """An extractor of two numbers that a rounding changes."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        flat = images.double().flatten(1)
        return torch.stack([flat.mean(1), flat.std(1)], 1).float()


def test_features_are_made_of_the_values_that_a_metric_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vqbench.metrics import evaluation, extraction

    def load(known: Any, *others: Any) -> extraction.FeatureExtractor:
        digest = extraction.extractor_digest(known)
        return extraction.FeatureExtractor(Mean(), torch.device("cpu"), 2, digest, values=known.values)

    monkeypatch.setattr(evaluation, "load_extractor", load)
    pixels = photographs(5, 24)
    scores = run(Uneven(), pixels, ("rfid", "rfid_float"), home=tmp_path, batch_size=2).scores
    _, decoded = numpy_images(Uneven(), pixels)
    floats = (decoded.astype(np.float64) + 1) * 127.5
    for name, images in (("rfid", np.round(floats)), ("rfid_float", floats)):
        both = [Mean()(torch.from_numpy(values.astype(np.float32))).numpy() for values in (pixels, images)]
        assert scores[name] == pytest.approx(metric(name).score(*both), rel=1e-3)  # type: ignore[attr-defined]
    assert len(list((tmp_path / "features").iterdir())) == 2, "reference features of either are kept apart"


# the command line


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("--protocol", "tamming"), "unknown protocol 'tamming'; did you mean taming?"),
        (("--protocol", "taming", "--resize", "bicubic"), "--resize would say it otherwise"),
        (("--protocol", "seed_voken", "--metrics", "rfid"), "which has rfid_float in its place"),
        (("--protocol", "seed_voken", "--metrics", "kid"), "which rounds nothing before it measures"),
        (("--protocol", "bsq", "--lpips", "squeeze"), "lpips_squeeze is no metric of protocol bsq"),
        (("--protocol", "taming", "--recipe", "atomic"), "measures images"),
        (("--split", "every"), "unknown split 'every'"),
        (("--split", "all"), "none is left to train vqgan on"),
        (("--split", "all", "--holdout", "0.1"), "--holdout would keep some for training"),
    ],
)
def test_what_cannot_be_is_one_sentence(folder: Path, asked: tuple[str, ...], said: str) -> None:
    answer = typed("run", "--methods", "vqgan", "--dataset", f"folder:{folder}", "--dry-run", *asked)
    assert answer.code != 0
    assert said in answer.err
    assert answer.err.count("hint:") == 1


def test_photographs_that_are_pixels_already_have_no_such_rules() -> None:
    with pytest.raises(UsageError, match="--protocol taming decides how images are decoded"):
        DataReference("photos", protocol="taming").open(32)


def test_lpips_is_that_of_the_protocol() -> None:
    named = named_protocol("seed_voken")
    assert "lpips_alex_float" in default_metrics(protocol=named)
    assert select_metrics(("lpips_vgg_float",), protocol=named) == ("lpips_vgg_float",)
    assert set(default_metrics(channels=1, protocol=named)) >= {"psnr_truncated", "ssim_truncated", "usage"}
    assert of_channels("rfid", 1) == "rfid_per_channel", "what is of another protocol is no metric of channels"
    for known in NAMED.values():
        assert all(metric(ours) and metric(theirs).digest for ours, theirs in known.in_place_of.items())


def test_all_images_of_any_folder_are_scored(tmp_path: Path) -> None:
    """One image that no split could divide, too."""
    root = write_images(tmp_path / "one", 1)
    with pytest.raises(UsageError, match="holds only one image"):
        DataReference(f"folder:{root}").open(32)
    dataset = DataReference(f"folder:{root}", split="all").open(32)
    assert (len(dataset.validation), len(dataset.train)) == (1, 0)
    both = tmp_path / "both"
    for side, count in (("train", 3), ("val", 2)):
        write_images(both / side, count, seed=count)
    reference = DataReference(f"folder:{both}", split="all", protocol="var", validation_images=4)
    again = DataReference.of_spec({"dataset": {"reference": f"folder:{both}", "data_root": None,
                                               "validation_images": 4, **reference.in_spec()}})  # fmt: skip
    assert again == reference
    whole = DataReference(f"folder:{both}", split="all").open(32)
    assert list(whole.validation.ids) == ["train/0000.png", "train/0001.png", "train/0002.png", "val/0000.png",
                                          "val/0001.png"]  # fmt: skip
    assert prepare_validation(whole, home()).pixels.shape == (5, 32, 32, 3)
    assert DataReference("photos", split="all").open(32).protocol_name == "photos-all"
    with pytest.raises(UsageError, match="none is left to train vqgan on"):
        reference.refuse_training(["vqgan"])
    reference.refuse_training([])


def test_a_cell_is_scored_under_its_protocol_and_never_beside_ours(tmp_path: Path) -> None:
    root = tmp_path / "photographs"
    for side, count in (("train", 12), ("val", 3)):
        write_images(root / side, count, seed=count)
    same = ["--methods", "vqgan", "--dataset", f"folder:{root}", "--runs", tmp_path / "runs", "--images", 8,
            "--no-page", *small_recipe("resolution=32")]  # fmt: skip
    theirs = [*same, "--protocol", "seed_voken", "--metrics", "psnr_truncated,ssim_truncated,usage"]
    done = typed("run", *theirs, "--json")
    assert done.code == 0, done.err
    (row,) = done.objects
    result = json.loads((Path(row["path"]) / "result.json").read_text())
    assert result["protocol"]["name"] == "folder-photographs-train-val-32-seed_voken-v1"
    assert result["protocol"]["rules"] == "seed_voken"
    assert result["dataset"]["protocol"] == "seed_voken"
    assert set(result["metrics"]) == {"psnr_truncated", "ssim_truncated"}, "each has a digest of its own"
    assert [c["state"] for c in typed("run", *theirs, "--dry-run", "--json").objects if "state" in c] == ["cached"]
    ours = typed("run", *same, "--metrics", "psnr", "--dry-run", "--json")
    (cell,) = [c for c in ours.objects if "state" in c]
    assert (cell["state"], cell["path"] == row["path"]) == ("missing", False)


# the sheet of published numbers


def test_the_sheet_knows_published_files_by_sha256_or_by_name() -> None:
    sha = "845a68805098" + "0" * 52
    scores, licence = published_of("whatever.ckpt", sha)
    assert scores["taming, 256 px"] == {"rfid": 4.98}
    assert licence.startswith("code MIT")
    other = published_of("vqgan_imagenet_f16_16384/checkpoints/last.ckpt", "f" * 64)
    assert other == ({}, ""), "another file of that name"
    by_name, licence = published_of("/data/simvq_8k/epoch=49-step=250250.ckpt", "f" * 64)
    printed = {"rfid_float": 2.98, "psnr by the error of a batch": 23.23}
    assert by_name == {"seed_voken, 128 px; told by its name alone": printed}
    assert published_of("VQ_ds16_t2i.pt", "f" * 64) == ({}, "MIT")
    assert published_of("last.ckpt", "f" * 64) == ({}, "")
    assert published_of("DALL-E/encoder.pkl", "f" * 64)[1] == "modified MIT"


def test_the_sheet_knows_a_file_of_which_its_source_prints_the_md5_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "any.pth"
    file.write_bytes(b"weights")
    assert published_of_foreign(file, "f" * 64) == ({}, "")
    bsq = next(row for row in sheet() if str(row.get("md5")) == "7abf5a")
    ours = {**bsq, "md5": hashlib.md5(b"weights").hexdigest()[:6]}
    monkeypatch.setattr("vqbench.pretrained.published.sheet", lambda: (*sheet(), ours))
    scores, licence = published_of_foreign(file, "f" * 64)
    assert (scores, licence) == ({"bsq, 256 px, EMA weights": {"rfid_float": 1.23, "psnr_float": 24.8}}, "MIT")
    assert published_of(str(file), "f" * 64) == ({}, ""), "what a layout of ours reads is not read for it again"


def test_the_sheet_is_of_known_metrics_and_every_row_can_be_found() -> None:
    names = [name.lower() for row in sheet() for name in row.get("names", ())]
    assert len(set(names)) == len(names)
    for row in sheet():
        assert row["licence"]
        assert row.get("names") or len(str(row["md5"])) == 6
        for name in row.get("names", ()):
            found, licence = published_of(f"{name}.ckpt", str(row.get("sha256", "")).ljust(64, "0"))
            assert (len(found), licence) == (len(row.get("published", {})), row["licence"])
        for scores in row.get("published", {}).values():
            assert all(metric(what.partition(BY)[0]) and value > 0 for what, value in scores.items())


# images of their own size


class Convolutional(Uneven):
    """Takes images of any size that 8 divides."""

    downsampling = 8


SIZES = ((61, 40), (40, 67), (24, 40), (40, 67))


@pytest.fixture(scope="module")
def sized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sized")
    for i, (height, width) in enumerate(SIZES):
        pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{i}.png")
    return root


def test_images_are_scored_whole_at_their_own_size(sized: Path, tmp_path: Path) -> None:
    reference = DataReference(f"folder:{sized}", protocol="native", split="all")
    validation = prepare_validation(reference.open(32), home())
    assert [image.shape for image in validation.pixels] == [(*size, 3) for size in SIZES]
    metrics = ("psnr", "ssim", "usage", "tokens", "bpp")
    found = run(Convolutional(), validation.pixels, metrics, home=tmp_path)
    squares = []
    for i, (height, width) in enumerate(SIZES):
        stored = np.asarray(Image.open(sized / f"{i}.png"))
        assert np.array_equal(validation.pixels[i], stored)
        padded = np.pad(stored, ((0, -height % 8), (0, -width % 8), (0, 0)), mode="edge")
        _, decoded = numpy_images(Convolutional(), padded[None])
        made = np.round((decoded[0, :height, :width].astype(np.float64) + 1) * 127.5)
        expected = 10 * np.log10(255**2 / np.mean((stored - made) ** 2))
        assert found.per_image["psnr"][i] == pytest.approx(expected, abs=1e-6)
        top, left = (height - 24) // 2, (width - 24) // 2
        squares.append(made[top : top + 24, left : left + 24])
    tokens = sum(-(-height // 8) * -(-width // 8) for height, width in SIZES)
    assert found.scores["tokens"] == tokens
    assert found.scores["bpp"] == pytest.approx(tokens * 4 / sum(h * w for h, w in SIZES))
    assert found.indices is None
    said = findings({}, {"device": "cpu"}, found)
    sizes = {name: value for name, value in said.items() if name.endswith("_per_image")}
    assert sizes == {"mean_tokens_per_image": tokens / 4, "mean_bits_per_image": tokens / 4 * 4}
    assert np.array_equal(found.reconstructions, np.stack(squares)), "the middle square that all have is shown"


def test_features_of_different_sizes_are_made_one_by_one(
    sized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vqbench.metrics import evaluation, extraction

    def load(known: Any, *others: Any) -> extraction.FeatureExtractor:
        extract = extraction.FeatureExtractor(Mean(), torch.device("cpu"), 2, "mean")
        extract.awaits = 3
        return extract

    monkeypatch.setattr(evaluation, "load_extractor", load)
    dataset = DataReference(f"folder:{sized}", protocol="native", split="all").open(32)
    steps: list[int] = []
    pixels = prepare_validation(dataset, home()).pixels
    scores = run(Convolutional(), pixels, ("rfid",), home=tmp_path, progress=lambda done, of: steps.append(done)).scores
    assert scores["rfid"] > 0
    assert steps[-1] == 2 * len(SIZES)


def test_native_is_a_protocol_of_its_own_and_nothing_is_trained_under_it(sized: Path) -> None:
    protocol = protocol_of(sized, protocol="native")
    assert protocol.name == f"folder-{sized.name}-all-native-v1"
    assert (protocol.crop, protocol.resize) == ("none: each image whole", "none")
    assert protocol.hash == protocol_of(sized, 64, protocol="native").hash, "of whatever resolution"
    answer = typed("run", "--methods", "vqgan", "--dataset", f"folder:{sized}", "--protocol", "native", "--dry-run")
    assert answer.code != 0
    assert "--protocol native leaves images as large as they are" in answer.err
    pixels = prepare_validation(
        DataReference(f"folder:{sized}", protocol="native", split="all").open(32), home()
    ).pixels
    with pytest.raises(UsageError, match="does not say what divides the sides"):
        run(Uneven(), pixels, ("psnr",))
