"""Images of one and of four channels: trained, scored, shown; and what is refused of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import settings, typed
from helpers.evaluation import run
from helpers.shared import SQUEEZE, needs_squeeze
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.testing import assert_close

import vqbench
from vqbench.backbone import count_parameters
from vqbench.data.dataset import open_dataset
from vqbench.data.prepare import prepare_train, prepare_validation
from vqbench.errors import UsageError
from vqbench.inputs import to_input
from vqbench.machine.home import home
from vqbench.metrics.definitions import default_metrics, metric, select_metrics
from vqbench.metrics.networks import load_inception, load_lpips
from vqbench.metrics.protocol import protocol_for
from vqbench.metrics.weights import Missing, find_weights
from vqbench.recipe import Recipe, load_recipe
from vqbench.results.kept_images import as_pictures
from vqbench.tokenizer import build_tokenizer
from vqbench.training.discriminator import PatchDiscriminator
from vqbench.training.losses import ReconstructionLoss
from vqbench.training.memory import step_cost
from vqbench.training.tokenizer_training import TokenizerTraining

needs_inception = pytest.mark.skipif(isinstance(find_weights("inception"), Missing), reason="no Inception weights")
SCANS = Path(__file__).parent / "helpers" / "scans.py"
Pixels = NDArray[np.uint8]


def command(dataset: str, channels: int, runs: Path, *more: object) -> list[object]:
    asked = ["--plugin", SCANS, "--dataset", dataset, "--runs", runs, "--name", dataset, "--images", 16]
    return ["run", *asked, *settings(f"image_channels={channels}"), *more]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


Trained = Callable[[str], tuple[Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def trained(runs: Path) -> Trained:
    """Dataset → the folder of its one cell, trained by the command line, and its result."""
    known = {"grey": (1, "vqgan", "psnr,ssim,usage"), "scans": (4, "vaevq", "psnr,psnr_per_channel,ssim_per_channel")}

    def of(dataset: str) -> tuple[Path, dict[str, Any]]:
        channels, method, metrics = known[dataset]
        if not (runs / dataset).exists():
            answer = typed(*command(dataset, channels, runs, "--methods", method, "--metrics", metrics))
            assert answer.code == 0, answer.err
        (cell,) = (runs / dataset / "cells").iterdir()
        return cell, json.loads((cell / "result.json").read_text())

    return of


BOTH = pytest.mark.parametrize(
    ("dataset", "channels"), [pytest.param("grey", 1, marks=pytest.mark.slow), ("scans", 4)]
)  # a cell takes six seconds


@BOTH
def test_a_cell_of_other_channels_is_trained_scored_and_shown(trained: Trained, dataset: str, channels: int) -> None:
    cell, result = trained(dataset)
    assert result["scores"]["psnr"] > 3
    kept = np.load(cell / "reconstructions.npz")["pixels"]
    assert kept.shape == (12, 32, 32, channels)
    with Image.open(cell / "recon.png") as picture:  # eight images above their reconstructions, channels side by side
        assert (picture.mode, picture.size) == ("L", (8 * 32 * channels, 64))
        shown = np.asarray(picture)
    for c in range(channels):
        assert np.array_equal(shown[32:, 32 * c : 32 * (c + 1)], kept[0, ..., c])
    assert json.loads((cell / "spec.json").read_text())["protocol"]["image_channels"] == channels


def test_a_score_of_each_channel_stands_beside_their_mean(trained: Trained) -> None:
    _, result = trained("scans")
    for name in ("psnr_per_channel", "ssim_per_channel"):
        each = [result["scores"][f"{name}/{c}"] for c in range(4)]
        assert result["scores"][name] == pytest.approx(np.mean(each))
        assert len(set(each)) == 4
    assert set(result["metrics"]) >= {"psnr_per_channel", "ssim_per_channel"}


@BOTH
def test_a_page_is_made_of_them(trained: Trained, runs: Path, tmp_path: Path, dataset: str, channels: int) -> None:
    trained(dataset)
    answer = typed("report", dataset, "--runs", runs, "--out", tmp_path, VQBENCH_PAGE="1")
    assert answer.code == 0, answer.err
    assert f'"aspect":{channels}' in (tmp_path / "index.html").read_text().replace('"aspect": ', '"aspect":')


def test_a_tokenizer_of_a_cell_takes_images_of_its_channels(trained: Trained) -> None:
    tokenizer = vqbench.load(trained("scans")[0])
    images = torch.randint(0, 256, (2, 4, 32, 32), dtype=torch.uint8)
    decoded = tokenizer.decode(tokenizer.encode(images))
    assert decoded.shape == images.shape
    with pytest.raises(ValueError, match=r"expected images \(B, 4, H, W\)"):
        tokenizer.encode(images[:, :3])
    with pytest.raises(ValueError, match="channels come first"):
        tokenizer.encode(images.permute(0, 2, 3, 1))


@pytest.mark.slow  # a minute each: the Inception, twice
@needs_inception
@needs_squeeze
@pytest.mark.parametrize(("dataset", "channels"), [("grey", 1), ("scans", 4)])
def test_both_tracks_losses_and_metrics_of_other_channels(tmp_path: Path, dataset: str, channels: int) -> None:
    metrics = ",".join(name for name in default_metrics(channels=channels) if not name.startswith("lpips"))
    losses = ("gan=hinge", "gan_start_images=8", "discriminator_channels=8", "perceptual=squeeze")
    more = ["--methods", "vqgan,vaevq", "--metrics", f"{metrics},lpips_squeeze_per_channel", "--lpips-weights", SQUEEZE]
    sets = [word for text in losses for word in ("--set", text)]
    answer = typed(*command(dataset, channels, tmp_path, *more, *sets, "--page"))
    assert answer.code == 0, answer.err
    for cell in (tmp_path / dataset / "cells").iterdir():
        scores = json.loads((cell / "result.json").read_text())["scores"]
        each = [scores[f"rfid_per_channel/{c}"] for c in range(channels)] if channels > 1 else []
        assert scores["rfid_per_channel"] == pytest.approx(np.mean(each or [scores["rfid_per_channel"]]))
        assert scores["lpips_squeeze_per_channel"] > 0
    words = ["--dataset", dataset, "--plugin", SCANS, "--runs", tmp_path, "--name", "atomic", "--methods", "vqgan"]
    answer = typed("run", *words, "--recipe", "atomic", "--set", f"image_channels={channels}", "--images", 64)
    assert answer.code == 0, answer.err


class Halving(nn.Module):
    """A tokenizer whose reconstruction is the image with every channel darkened by a share of its own."""

    def __init__(self, pixels: Pixels, darker: Sequence[float] = ()) -> None:
        super().__init__()
        self.pixels, self.seen = pixels, 0
        self.darker = darker or [0.9 - 0.2 * c for c in range(pixels.shape[3])]
        self.quantizer = SimpleNamespace(codebook_size=len(pixels), num_codebooks=1, bits_per_token=1.0)

    def made(self) -> Pixels:
        made: Pixels = np.round(self.pixels * np.array(self.darker)).astype(np.uint8)
        return made

    def to_indices(self, images: Tensor) -> Tensor:
        first, self.seen = self.seen, self.seen + len(images)
        return torch.arange(first, self.seen).view(-1, 1, 1)

    def from_indices(self, indices: Tensor) -> Tensor:
        return to_input(torch.from_numpy(self.made()).permute(0, 3, 1, 2))[indices.flatten()]


def noise(channels: int, count: int = 3, side: int = 32) -> Pixels:
    coarse = np.random.default_rng(0).integers(0, 256, (count, side // 8, side // 8, channels), dtype=np.uint8)
    return coarse.repeat(8, 1).repeat(8, 2)


def repeated(pixels: Pixels, channel: int) -> Pixels:
    """(N, R, R, 3)."""
    return np.repeat(pixels[..., channel : channel + 1], 3, axis=3)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_psnr_and_ssim_are_scikit_images_of_all_channels_and_of_each(channels: int) -> None:
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    pixels = noise(channels)
    tokenizer = Halving(pixels)
    scores = run(tokenizer, pixels, ("psnr", "ssim", "psnr_per_channel", "ssim_per_channel")).scores
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    pairs = list(zip(pixels, tokenizer.made(), strict=True))
    psnr = [peak_signal_noise_ratio(a, b, data_range=255) for a, b in pairs]
    assert scores["psnr"] == pytest.approx(np.mean(psnr))
    each = [[peak_signal_noise_ratio(a[..., c], b[..., c], data_range=255) for a, b in pairs] for c in range(channels)]
    similar = [[structural_similarity(a[..., c], b[..., c], **gaussian) for a, b in pairs] for c in range(channels)]
    for name, expected in (("psnr_per_channel", each), ("ssim_per_channel", similar)):
        assert scores[name] == pytest.approx(np.mean(expected))
        of_channels = [scores[f"{name}/{c}"] for c in range(channels)] if channels > 1 else [scores[name]]
        assert of_channels == pytest.approx([np.mean(own) for own in expected])
    assert scores["ssim"] == pytest.approx(scores["ssim_per_channel"])


@needs_squeeze
def test_lpips_of_each_channel_is_lpips_of_it_repeated(tmp_path: Path) -> None:
    import lpips

    pixels = noise(4)
    tokenizer = Halving(pixels)
    result = run(tokenizer, pixels, ("lpips_squeeze_per_channel",), lpips_weights=SQUEEZE)
    theirs = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False).eval()
    theirs.load_state_dict(load_lpips("squeeze", SQUEEZE).net.state_dict())
    expected = [
        theirs(*(torch.from_numpy(repeated(p, c)).permute(0, 3, 1, 2) / 127.5 - 1 for p in (pixels, tokenizer.made())))
        .flatten()
        .mean()
        .item()
        for c in range(4)
    ]
    assert [result.scores[f"lpips_squeeze_per_channel/{c}"] for c in range(4)] == pytest.approx(expected, rel=1e-4)
    assert result.scores["lpips_squeeze_per_channel"] == pytest.approx(np.mean(expected), rel=1e-4)


@needs_inception
def test_rfid_of_each_channel_is_rfid_of_it_repeated(tmp_path: Path) -> None:
    pixels = noise(2, count=2)
    result = run(Halving(pixels), pixels, ("rfid_per_channel",), home=tmp_path)
    expected = []
    for c in range(2):
        tokenizer = Halving(repeated(pixels, c), darker=[0.9 - 0.2 * c] * 3)
        expected.append(run(tokenizer, tokenizer.pixels, ("rfid",), home=tmp_path).scores["rfid"])
    assert [result.scores[f"rfid_per_channel/{c}"] for c in range(2)] == pytest.approx(expected, rel=1e-4)
    assert result.scores["rfid_per_channel"] == pytest.approx(np.mean(expected), rel=1e-4)
    assert result.features is None, "they are not those of rfid, which reports resample"


@pytest.mark.slow  # 10 seconds for the eigenvalues of each channel
@needs_inception
def test_rfid_of_each_channel_is_torch_fidelitys(tmp_path: Path) -> None:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    pixels = noise(2)
    tokenizer, inception = Halving(pixels), load_inception()
    scores = run(tokenizer, pixels, ("rfid_per_channel",), home=tmp_path).scores
    for c in range(2):
        with torch.inference_mode():
            both = [inception(torch.from_numpy(repeated(p, c)).permute(0, 3, 1, 2)) for p in (pixels, tokenizer.made())]
        statistics = [fid_features_to_statistics(features) for features in both]
        theirs = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
        assert scores[f"rfid_per_channel/{c}"] == pytest.approx(theirs, rel=1e-3)


def test_metrics_of_rgb_are_refused_by_the_name_of_what_fits() -> None:
    assert default_metrics(channels=3) == default_metrics()
    for channels in (1, 4):
        names = default_metrics(channels=channels)
        assert {"rfid_per_channel", "lpips_alex_per_channel", "psnr", "ssim", "psnr_per_channel"} <= set(names)
        assert not {"rfid", "kid", "lpips_alex", "lpips_vgg_per_channel"} & set(names)
        with pytest.raises(UsageError, match=f"rfid is defined for RGB.*{channels} channel") as refused:
            select_metrics(["rfid"], channels=channels)
        assert "--metrics rfid_per_channel" in refused.value.hint
        with pytest.raises(UsageError, match="inception_recall is defined for RGB"):
            select_metrics(["inception_recall"], channels=channels)
    assert select_metrics(["rfid_per_channel,rfid"]) == ("rfid", "rfid_per_channel")
    assert not any("per_channel" in name for name in default_metrics())
    assert metric("rfid_per_channel").digest != metric("lpips_alex_per_channel").digest != ""
    with pytest.raises(UsageError, match="rfid is defined for RGB"):
        run(Halving(noise(1)), noise(1), ("rfid",))


def test_other_channels_than_the_datasets_are_refused_with_what_to_set(tmp_path: Path) -> None:
    answer = typed(
        "run", "--methods", "vqgan", "--plugin", SCANS, "--dataset", "scans", "--runs", tmp_path, "--dry-run"
    )
    assert answer.code == 2
    assert "the images of scans have 4 channels, the recipe's have image_channels=3" in answer.err
    assert "--set image_channels=4" in answer.err
    photos = ["run", "--methods", "vqgan", "--dataset", "photos", "--runs", tmp_path, "--dry-run"]
    answer = typed(*photos, "--set", "image_channels=1")
    assert answer.code == 2
    assert "the images of photos have 3 channels" in answer.err
    answer = typed(*photos, "--set", "image_channels=2")
    assert answer.code == 2
    assert "image_channels" in answer.err
    answer = typed(*command("grey", 1, tmp_path, "--methods", "vqgan", "--metrics", "rfid", "--dry-run"))
    assert answer.code == 2
    assert "--metrics rfid_per_channel" in answer.err


def wrong_channels(text: str) -> str:
    return text.replace("return pixels.astype(np.uint8)", "return pixels.astype(np.uint8)[..., :1]")


def test_a_plugins_images_must_have_the_channels_that_it_says(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(wrong_channels(SCANS.read_text()).replace('"scans"', '"odd"'))
    words = ["--plugin", tmp_path / "odd.py", "--dataset", "odd", "--runs", tmp_path, "--dry-run"]
    answer = typed("run", "--methods", "vqgan", *words, "--set", "image_channels=4")
    assert answer.code == 2
    assert "shape (32, 32, 1), not uint8 of shape (32, 32, 4)" in answer.err


def grey_files(root: Path, colour: bool = False) -> Path:
    draw = np.random.default_rng(1)
    for i in range(12):
        path = root / ("val" if i < 3 else "train") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = draw.integers(0, 256, (40, 48), dtype=np.uint8)
        image = Image.fromarray(values)
        image.convert("RGB").save(path) if i % 2 else image.save(path)
    if colour:
        Image.fromarray(draw.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(root / "val" / "colour.png")
    return root


def test_a_folder_of_grey_files_is_read_as_one_channel_or_as_three(tmp_path: Path) -> None:
    reference = f"folder:{grey_files(tmp_path / 'faces')}"
    grey, colours = (open_dataset(reference, 32, channels=channels) for channels in (1, 3))
    assert (grey.channels, grey.protocol_name, colours.channels) == (1, "folder-faces-train-val-grey", 3)
    one, three = (prepare_validation(dataset, home()) for dataset in (grey, colours))
    assert one.pixels.shape == (3, 32, 32, 1)
    assert np.array_equal(np.repeat(one.pixels, 3, axis=3), three.pixels)
    of_one, of_three = (prepare_train(dataset, home()) for dataset in (grey, colours))
    for i in range(len(of_one)):
        assert np.array_equal(of_one.load(i), of_three.load(i)[..., :1])
        assert of_one.measure(i) == of_three.measure(i) == of_one.load(i).shape[:2]
    held = open_dataset(reference, 32, holdout=0.3, channels=1)
    assert held.validation.load(0).shape == (32, 32, 1)
    with pytest.raises(UsageError, match="have 3 channels, the recipe's have image_channels=4"):
        open_dataset(reference, 32, channels=4)


def test_colours_are_not_made_grey_unasked(tmp_path: Path) -> None:
    dataset = open_dataset(f"folder:{grey_files(tmp_path, colour=True)}", 32, channels=1)
    with pytest.raises(UsageError, match=r"colour\.png: has colours") as refused:
        prepare_validation(dataset, home())
    assert "--set image_channels=3" in refused.value.hint


def test_three_channels_are_what_they_always_were(tmp_path: Path) -> None:
    recipe = load_recipe("tiny")
    assert "image_channels" not in recipe.identity()
    assert load_recipe("tiny", {"image_channels": 1}).identity()["image_channels"] == 1
    with pytest.raises(UsageError, match="image_channels"):
        load_recipe("tiny", {"image_channels": 2})
    protocols = [protocol_for("x", 32, "digest", 4, "rule", image_channels=channels) for channels in (3, 1)]
    assert "image_channels" not in protocols[0].as_dict()
    assert protocols[0].hash != protocols[1].hash
    assert "32×32 of 1 channel," in protocols[1].describe()


def small(**fields: Any) -> Recipe:
    values = {"channels": 8, "latent_channels": 8, "codebook_size": 32, "codebook_dim": 8, "batch_size": 4}
    return load_recipe("tiny", {**values, **fields})


@pytest.mark.parametrize("channels", [1, 4])
def test_only_the_ends_of_the_networks_know_the_channels(channels: int) -> None:
    tokenizers = [build_tokenizer("vqgan", {"codebook_size": 32}, small(image_channels=n), 0) for n in (channels, 3)]
    images = torch.randn(2, channels, 32, 32)
    assert tokenizers[0](images).images.shape == images.shape
    counts = [tokenizer.parameter_counts() for tokenizer in tokenizers]
    assert counts[0]["encoder"] - counts[1]["encoder"] == (channels - 3) * 9 * 8
    assert counts[0]["decoder"] - counts[1]["decoder"] == (channels - 3) * (9 * 8 + 1)
    judges = [PatchDiscriminator(8, 3, n) for n in (channels, 3)]
    assert judges[0](images).shape == (2, 1, 2, 2)
    assert count_parameters(judges[0]) - count_parameters(judges[1]) == (channels - 3) * 16 * 8


def test_the_perceptual_term_is_the_mean_over_channels_each_repeated() -> None:
    class Apart(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            assert x.shape[1] == 3
            assert torch.equal(x[:, 0], x[:, 2])
            return (x - y).abs().mean((1, 2, 3)).sqrt()

    images, made = torch.rand(2, 2, 4, 8, 8).unbind()
    terms = ReconstructionLoss("l2", 1.0, Apart(), 0.5)(images, made)
    expected = 0.5 * (images - made).abs().mean((2, 3)).sqrt().mean()
    assert_close(terms["perceptual"], expected)
    assert_close(terms["pixel"], ((images - made) ** 2).mean())


def test_a_step_is_counted_with_its_channels() -> None:
    cost = step_cost("vqgan", {"codebook_size": 32}, small(image_channels=4), 4)
    assert cost.flops > 6 * 32 * 32 * 9 * 8 * 4 * 2  # of the first and the last convolution, there and back


def test_a_step_tells_a_quantizer_its_pixel_values_per_token() -> None:
    told = []
    recipe = small(image_channels=4)
    tokenizer = build_tokenizer("vqgan", {"codebook_size": 32}, recipe, 0)
    training = TokenizerTraining(tokenizer, recipe, 0, None)
    advance = tokenizer.quantizer.advance
    tokenizer.quantizer.advance = lambda state: told.append(state.pixel_values_per_token) or advance(state)  # type: ignore[method-assign]
    training._optimizers = lambda: []  # type: ignore[method-assign]
    training._begin_step(torch.zeros(2, 4, 32, 32))
    assert told == [4 * tokenizer.downsampling**2]


def test_channels_are_shown_grey_and_side_by_side() -> None:
    images = np.arange(2 * 3 * 3 * 4, dtype=np.uint8).reshape(2, 3, 3, 4)
    pictures = as_pictures(images)
    assert pictures.shape == (2, 3, 12)
    for c in range(4):
        assert np.array_equal(pictures[:, :, 3 * c : 3 * (c + 1)], images[..., c])
    assert as_pictures(images[..., :3]) is not None
    assert as_pictures(images[..., :3]).shape == (2, 3, 3, 3)
