"""The features track: each quantizer alone on features that never change."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.commands import typed
from numpy.typing import NDArray

import vqbench as package
from vqbench.data.dataset import DataReference
from vqbench.data.features import EncodedDataset, FeatureFile, open_features, standardise
from vqbench.errors import UsageError, VQBenchError
from vqbench.machine.home import home
from vqbench.metrics.definitions import IN_FEATURE_PROTOCOL, IN_PROTOCOL, select_metrics
from vqbench.metrics.feature_evaluation import evaluate
from vqbench.planning.plan import cell_hash, check_request, make_plan, resolve
from vqbench.planning.request import RunRequest
from vqbench.recipe import Recipe, load_recipe
from vqbench.registry import METHODS
from vqbench.running.run import execute
from vqbench.tokenizer import seeded_quantizer
from vqbench.training.feature_training import FeatureCoder, FeatureTraining, batches, fit
from vqbench.training.steps import DivergedError

BUILT_IN = METHODS.names()
SETTINGS = ("codebook_size=16", "codebook_dim=4", "log_images=16")


def file_of(array: NDArray[Any], folder: Path, name: str = "x.npy") -> Path:
    path = folder / name
    np.save(path, array)
    return path


def noise(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(3, 2, shape).astype(np.float32)


def small(**fields: Any) -> Recipe:
    return load_recipe("atomic", {"codebook_size": 16, "codebook_dim": 4, "images": 64, "log_images": 16, **fields})


def fitted(method: str, train: Any, recipe: Recipe, folder: Path, seed: int = 0) -> FeatureCoder:
    config = METHODS.get(method).matched(recipe.codebook_size, recipe.codebook_dim)
    coder = FeatureCoder(train.shape[3], seeded_quantizer(method, config, seed), seed)
    fit(coder, train, recipe, seed=seed, data_seed=seed, curves=folder / "c.jsonl", report=lambda *_: None)
    return coder


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The rows of two methods that were fitted to a file, each in a process of its own."""
    root = tmp_path_factory.mktemp("features")
    file = file_of(noise(80, 2, 2, 6), root)
    command = [
        "run",
        "--recipe",
        "atomic",
        "--methods",
        "vqgan,fsq",
        "--features",
        file,
        "--runs",
        root,
        "--images",
        64,
    ]
    table = typed(*command, *(part for text in SETTINGS for part in ("--set", text)))
    assert table.code == 0, table.err
    assert "q. error" in table.out
    assert "PSNR" not in table.out
    assert "protocol x-features-v1" in table.out
    request = RunRequest(("vqgan", "fsq"), recipe="atomic", features=file, runs=root, images=64, settings=SETTINGS)
    return execute(check_request(request)).rows


def test_rows_of_a_file_are_held_out_of_training(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32))
    whole, held = (FeatureFile(tmp_path / "x.npy", holdout=share) for share in (None, 0.2))
    assert len(held.validation_rows) == 18
    assert {*held.validation_rows} | {*held.training_rows} == {*whole.training_rows}
    assert not {*held.validation_rows} & {*held.training_rows}
    assert held.protocol.name == "x-holdout20-features-v1"
    assert held.train_digest != whole.train_digest
    assert len(FeatureFile(tmp_path / "x.npy", 5, 0.2).validation_rows) == 5


def test_a_file_of_features_gives_ordinary_cells(answer: list[dict[str, Any]]) -> None:
    assert [row["state"] for row in answer] == ["cached", "cached"]  # by the command
    for row in answer:
        folder = Path(row["path"])
        result, spec = (json.loads((folder / f"{name}.json").read_text()) for name in ("result", "spec"))
        assert set(row["scores"]) == set(IN_FEATURE_PROTOCOL)
        assert row["scores"]["tokens"] == 8 * 4
        assert {"quantizer", "projections", "total"} == set(row["params"])
        for key in ("versions", "git", "device_name", "seconds", "train_seconds", "protocol", "hash"):
            assert key in result
        table = pd.read_parquet(folder / "per_image.parquet")
        assert len(table) == 8
        assert table["quantization_error"].mean() == pytest.approx(row["scores"]["quantization_error"])
        assert np.load(folder / "codes.npz")["histogram"].sum() == 32
        points = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [point["images"] for point in points] == [16, 32, 48, 64]
        assert {"loss", "loss/pixel", "usage", "perplexity", "learning_rate"} <= set(points[0])
        path = Path(spec["features"]["path"])
        assert spec["features"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        log = (folder / "log.txt").read_text()
        assert "Traceback" not in log


def test_what_was_saved_is_no_image_tokenizer_and_says_so(answer: list[dict[str, Any]]) -> None:
    with pytest.raises(UsageError, match="fitted to features, without encoder and decoder"):
        package.load(answer[0]["path"])


def test_a_changed_file_is_another_cell(tmp_path: Path) -> None:
    def names(array: NDArray[Any]) -> list[str]:
        request = RunRequest(("fsq",), recipe="atomic", features=file_of(array, tmp_path), runs=tmp_path)
        return [cell.folder.name for cell in make_plan(resolve(request), tuple(IN_FEATURE_PROTOCOL)).cells]

    changed = noise(40, 3)
    changed[7, 1] += 1e-3
    assert names(noise(40, 3)) == names(noise(40, 3)) != names(changed)


@pytest.mark.parametrize(
    ("array", "said", "mended"),
    [
        (np.zeros((40, 3), np.int64), "int64, not floats", "astype('float32')"),
        (noise(40, 3, 3), r"shape \(40, 3, 3\)", "astype('float32')"),
        (noise(19, 3), "19 rows, too few", "--features FILE.npy"),
        (np.where(np.arange(40) == 16, np.nan, 1.0)[:, None], "not finite in float32, first in row 16", "isfinite"),
        (np.full((40, 3), 1e39), "not finite in float32, first in row 0", "isfinite"),
        (np.array([{}] * 40), "is not a .npy file of floats", "astype('float32')"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_fitted_is_refused(array: Any, said: str, mended: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        FeatureFile(file_of(array, tmp_path))
    assert mended in caught.value.hint


def test_features_without_spread_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="all the same"):
        FeatureFile(file_of(np.ones((40, 3)), tmp_path)).load(tmp_path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        FeatureFile(tmp_path / "none.npy")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"recipe": "tiny", "features": Path("x.npy")}, "'tiny' trains on images"),
        ({"recipe": "atomic"}, "no dataset to run on"),
        ({"recipe": "tiny"}, "no dataset to run on"),
        ({"recipe": "atomic", "features": Path("x.npy"), "dataset": "photos"}, "both --features x.npy and"),
        ({"recipe": "atomic", "dataset": "photos", "devices": 2}, "fitted on one"),
        ({"recipe": "atomic", "dataset": "photos", "micro_batch": 4}, "--micro-batch: for encoder and decoder"),
        ({"recipe": "atomic", "dataset": "photos", "settings": ("gan=hinge",)}, "gan=hinge has no meaning"),
        ({"recipe": "atomic", "dataset": "photos", "settings": ("flip=true",)}, "flip must be false"),
    ],
)
def test_a_request_that_means_nothing_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make_plan(resolve(RunRequest(("fsq",), **fields)), ())


def test_metrics_of_images_are_refused() -> None:
    with pytest.raises(UsageError, match="rfid is a metric of images"):
        select_metrics(["usage", "rfid"], "features")
    with pytest.raises(UsageError, match="psnr_continuous is a metric of images"):
        select_metrics(["psnr_continuous"], "features")
    with pytest.raises(UsageError, match="did you mean quantization_error"):
        select_metrics(["quantisation_error"], "features")
    assert select_metrics(["usage", "quantization_error"], "features") == ("quantization_error", "usage")
    with pytest.raises(UsageError, match="quantization_error is a metric of features"):
        select_metrics(["psnr", "quantization_error"])
    assert "quantization_error" not in IN_PROTOCOL  # whose sentences are part of every image protocol


def test_the_tracks_have_nothing_in_common_and_image_cells_keep_their_hash(tmp_path: Path) -> None:
    image, features = (
        make_plan(resolve(RunRequest(("vqgan",), "photos", recipe=recipe, runs=tmp_path)), ())
        for recipe in ("tiny", "atomic")
    )
    assert image.protocol.hash != features.protocol.hash
    assert features.protocol.name == "photos-32-features-v1"
    # The hash as it was computed before a recipe had a track: from the fields that there were.
    spec, recipe = image.cells[0].spec, image.recipe
    bookkeeping = {"name", "checkpoint_images", "log_images", "track", "image_channels"}
    identity = {
        "schema": 1,
        "method": "vqgan",
        "config": spec["config"],
        "code": None,
        "recipe": {name: value for name, value in recipe.as_dict().items() if name not in bookkeeping},
        "training_images": spec["dataset"]["training_digest"],
        "protocol": image.protocol.hash,
        "seed": 0,
        "devices": 1,
    }
    assert spec["hash"] == cell_hash(identity)
    assert image.protocol.hash == IMAGE_PROTOCOL
    assert spec["hash"] == IMAGE_CELL
    assert "features" not in spec


# Of `vqbench run --methods vqgan --dataset photos` at commit 95cc06e, before there was a features track. The cell's
# also changes with a new Config field of vqgan or a new photograph, and may then be set anew.
IMAGE_PROTOCOL = "87fef3afff0a"
IMAGE_CELL = "c9f0605494ba4a997e30d770f0416ec9ff521eaef6574fdde228941221fbf5bc"


def test_a_recipe_of_features_has_its_track_in_its_identity() -> None:
    assert load_recipe("atomic").identity()["track"] == "features"
    assert "track" not in load_recipe("tiny").identity()


def test_knowing_the_mean_alone_is_an_error_of_one() -> None:
    validation = noise(10, 2, 2, 5)
    coder = FeatureCoder(5, seeded_quantizer("fsq", {}, 0), 0)
    with torch.no_grad():
        coder.from_quantizer.weight.zero_()
        coder.from_quantizer.bias.copy_(torch.from_numpy(validation.mean((0, 1, 2))))
    found = evaluate(coder, validation)
    scores, each, histogram = found.scores, found.errors, found.histogram
    assert scores["quantization_error"] == pytest.approx(1, abs=1e-6)
    assert np.mean(each) == pytest.approx(1, abs=1e-6)
    assert histogram.sum() == scores["tokens"] == 40
    p = histogram[0] / 40
    assert scores["entropy_bits_per_token"] == pytest.approx(-sum(x * np.log2(x) for x in p if x > 0))


def test_as_many_codes_as_vectors_leave_no_error(tmp_path: Path) -> None:
    kinds = np.eye(4, dtype=np.float32)[np.random.default_rng(0).integers(4, size=400)]
    features = FeatureFile(file_of(kinds, tmp_path)).load(tmp_path)
    recipe = small(codebook_size=4, images=3200, learning_rate=3e-2)
    untrained = FeatureCoder(4, seeded_quantizer("vqgan", {"codebook_size": 4, "dim": 4}, 0), 0)
    assert evaluate(untrained, features.validation).scores["quantization_error"] > 0.5
    scores = evaluate(fitted("vqgan", features.train, recipe, tmp_path), features.validation).scores
    assert scores["quantization_error"] < 0.01
    assert scores["usage"] == 1


LEARN_BY_DEFAULT = ("vqgan", "fsq", "sqvae", "vaevq", "vqgan_ema")


@pytest.mark.parametrize(
    "method", [name if name in LEARN_BY_DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in BUILT_IN]
)
def test_every_method_learns_and_the_same_seed_gives_the_same_numbers(method: str, tmp_path: Path) -> None:
    low_rank = noise(200, 1, 1, 2, seed=1) @ np.random.default_rng(2).normal(size=(2, 32))
    train, validation = standardise(low_rank[:180].astype(np.float32), low_rank[180:].astype(np.float32))
    recipe = small(images=1600, learning_rate=3e-2)
    scores = [evaluate(fitted(method, train, recipe, tmp_path, seed), validation).scores for seed in (0, 0, 1)]
    assert scores[0] == scores[1] != scores[2]
    # the code that ibq chooses is not the nearest, and the map of vqgan_lc learns from a loss of weight 0.1
    assert scores[0]["quantization_error"] < (0.8 if method in ("ibq", "vqgan_lc") else 0.6)


def test_the_order_of_the_data_is_the_same_for_every_method(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[str, list[float]] = {}
    step = FeatureTraining.step

    def remember(self: FeatureTraining, features: torch.Tensor) -> None:
        seen.setdefault(type(self.coder.quantizer).__name__, []).append(float(features.double().sum()))
        step(self, features)

    monkeypatch.setattr(FeatureTraining, "step", remember)
    for method in BUILT_IN:
        fitted(method, noise(30, 2, 2, 5), small(), tmp_path)
    assert len(seen) == len(BUILT_IN)
    assert len({tuple(sums) for sums in seen.values()}) == 1
    assert len(set(seen["FSQ"])) == 4  # batches that differ


def test_vectors_come_in_maps_and_each_once_an_epoch() -> None:
    recipe = small(batch_size=2)  # 2 maps of 8×8
    vectors = np.arange(256, dtype=np.float32).reshape(256, 1, 1, 1)
    stream = batches(vectors, recipe, seed=3)
    first, second = next(stream), next(stream)
    assert first.shape == (2, 1, 8, 8)
    assert sorted(torch.cat([first, second]).flatten().tolist()) == list(range(256))
    assert next(batches(np.zeros((5, 2, 3, 4), np.float32), recipe, 3)).shape == (2, 4, 2, 3)


def test_a_loss_that_is_not_finite_fails_like_that_of_images(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"training diverged: .* is not finite after 16 images"):
        fitted("vqgan", np.full((30, 2, 2, 5), np.nan, np.float32), small(), tmp_path)


def test_a_method_is_told_the_budget_and_what_a_nat_is_worth(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    states = []
    cls = METHODS.get("sqvae")
    monkeypatch.setattr(cls, "advance", lambda self, state: states.append(state))
    fitted("sqvae", noise(30, 2, 2, 5), small(), tmp_path)
    assert [s.images_seen for s in states] == [0, 16, 32, 48]
    assert {(s.images_total, s.pixel_values_per_token) for s in states} == {(64, 5.0)}
    pixel = [json.loads(line)["loss/pixel"] for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert [float(s.loss_per_nat) for s in states] == pytest.approx([2.0, *(2 * loss for loss in pixel[:3])])


def test_the_encoder_s_features_are_cached_standardised_and_the_same_for_all_seeds() -> None:
    recipe = small(channels=4, channel_multipliers=(1, 2), latent_channels=8)
    source = open_features(recipe, home(), DataReference("photos", validation_images=8))
    assert isinstance(source, EncodedDataset)
    source.images.positions, source.images.ids = source.images.positions[:64], source.images.ids[:64]
    features = source.load(home())
    assert features.train.shape == (64, 16, 16, 8)
    assert features.validation.shape == (8, 16, 16, 8)
    assert features.train.mean((0, 1, 2)) == pytest.approx(np.zeros(8), abs=1e-4)
    assert features.train.std((0, 1, 2)) == pytest.approx(np.ones(8), abs=1e-4)
    source._encode = lambda pixels: pytest.fail("encoded again")  # type: ignore[method-assign,assignment]
    assert np.array_equal(source.load(home()).train, features.train)


def test_the_frozen_encoder_is_the_one_of_v1() -> None:
    """Where torch draws other weights from the same seed, the features are others: VERSION must go up."""
    from vqbench.backbone import BackboneConfig, Encoder
    from vqbench.data.features import ENCODER_SEED
    from vqbench.seeds import seeded

    with seeded(*ENCODER_SEED):
        encoder = Encoder(BackboneConfig.of(load_recipe("atomic")))
    weights = torch.cat([p.detach().flatten() for p in encoder.parameters()])
    assert float(weights.double().sum()) == pytest.approx(481.5132, abs=1e-3)
    assert float(weights.double().square().sum()) == pytest.approx(733.6479, abs=1e-3)


def test_a_constant_channel_stays_at_zero() -> None:
    features = noise(20, 2, 2, 3)
    features[..., 1] = 0.1
    train, validation = standardise(features[:18], features[18:])
    assert np.abs(train[..., 1]).max() == np.abs(validation[..., 1]).max() == 0


def test_decode_that_gives_another_shape_is_named() -> None:
    coder = FeatureCoder(5, seeded_quantizer("fsq", {}, 0), 0)
    coder.decode_latents = lambda latents: latents  # type: ignore[method-assign]
    with pytest.raises(VQBenchError, match="decode_indices led to"):
        evaluate(coder, noise(4, 2, 2, 5))
