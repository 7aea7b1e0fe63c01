"""Interrupted and resumed is the same as run through, to the last bit, for every method that vqbench brings."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from helpers.commands import until
from numpy.typing import NDArray

from vqbench.cell.ranks import end
from vqbench.data.dataset import Images
from vqbench.data.stream import TrainingStream
from vqbench.machine.interrupts import TerminatedError
from vqbench.recipe import Execution, Recipe, load_recipe
from vqbench.registry import METHODS
from vqbench.tokenizer import build_tokenizer, seeded_quantizer
from vqbench.training import codewatch, fit, recorder
from vqbench.training.feature_training import FeatureCoder
from vqbench.training.feature_training import fit as fit_features
from vqbench.training.recorder import CHECKPOINT, CURVES

RECIPE = {
    "resolution": 32, "channels": 8, "channel_multipliers": (1, 2), "latent_channels": 8, "dropout": 0.1,
    "codebook_size": 16, "codebook_dim": 8, "batch_size": 8, "flip": True,
    "images": 64, "checkpoint_images": 16, "log_images": 8,
    "warmup_images": 24, "schedule": "cosine", "gradient_clip": 0.5, "ema_halflife_images": 32,
    "gan": "hinge", "gan_start_images": 24, "discriminator_layers": 1, "discriminator_channels": 8,
}  # fmt: skip
"""Eight steps with everything that changes while they run; the GAN's turn begins one step before the half."""
FEATURES = {
    "codebook_size": 16, "codebook_dim": 4, "batch_size": 8, "images": 80, "log_images": 8, "warmup_images": 24,
    "schedule": "cosine", "gradient_clip": 0.5,
}  # fmt: skip
AT_A_CHECKPOINT, BETWEEN_TWO = 32, 40
"""Images seen when the process ends: half of the budget, just after a checkpoint was written, and one step later."""


Trained = tuple[dict[str, Any], dict[str, torch.Tensor]]


class KilledError(Exception):
    """Stands for the end of the process."""


class Noise(Images):
    """Twenty images: three epochs in a training, whose order and crops must go on where they were."""

    def __init__(self) -> None:
        self.pixels = np.random.default_rng(0).integers(0, 256, (20, 36, 36, 3), dtype=np.uint8)
        self.ids = [str(i) for i in range(20)]

    def load(self, i: int) -> NDArray[np.uint8]:
        return self.pixels[i]


def built_in() -> list[str]:
    """Every method that vqbench itself registers, bare and with each of its presets."""
    own = {name: METHODS.get(name) for name in METHODS.names() if METHODS.is_installed(name)}
    own = {name: cls for name, cls in own.items() if cls.__module__.startswith("vqbench.methods.")}
    return [reference for name, cls in own.items() for reference in (name, *(f"{name}@{p}" for p in cls.presets))]


def for_each_method() -> list[Any]:
    """All of them, of which one of each kind of state is not slow: what none of these keeps, none of the others does.

    Nothing, a schedule, moments, moving averages, anchors, a queue, multipliers.
    """
    kinds = ("fsq", "sqvae", "vaevq", "vqgan_ema", "cvq", "wvq", "gq")
    assert {*kinds} <= {*built_in()}
    slow = pytest.mark.slow
    return [pytest.param(reference, marks=() if reference in kinds else slow) for reference in built_in()]


def configuration(reference: str, recipe: Recipe) -> tuple[str, dict[str, Any]]:
    name, _, preset = reference.partition("@")
    cls = METHODS.get(name)
    return name, {**cls.matched(recipe.codebook_size, recipe.codebook_dim), **cls.presets.get(preset, {})}


def curves(path: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in json.loads(line).items() if k != "time"} for line in path.read_text().splitlines()]


def same(left: Any, right: Any) -> bool:
    """Whether two values out of checkpoints are equal to the last bit."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def assert_the_same(through: Trained, resumed: Trained) -> None:
    assert through[0].keys() == resumed[0].keys()
    assert [name for name in through[0] if not same(through[0][name], resumed[0][name])] == []
    assert same(through[1], resumed[1])


@pytest.fixture
def short_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """The window of codes is full, and watched for a collapse, before these few steps are over."""
    monkeypatch.setattr(codewatch, "WINDOW_TOKENS", 9_000)  # 2,048 tokens a step: it moves every second step
    monkeypatch.setattr(codewatch, "BLOCKS", 3)


def trained(reference: str, folder: Path) -> Trained:
    """Train in `folder`, on from its checkpoint; the last state of everything, and the tokenizer to be evaluated."""
    recipe = load_recipe("tiny", RECIPE)
    stream = TrainingStream(Noise(), recipe.resolution, 5, recipe.random_crop, recipe.flip)
    tokenizer = build_tokenizer(*configuration(reference, recipe), recipe, 3)
    outcome = fit.train(tokenizer, stream, recipe, seed=3, folder=folder)
    assert outcome.images_seen == recipe.images
    state = torch.load(folder / "checkpoints" / CHECKPOINT, weights_only=True)
    return {k: v for k, v in state.items() if k not in ("seconds", "peak_memory_bytes")}, outcome.tokenizer.state_dict()


def told_to_end(reference: str, folder: Path, images: int) -> None:
    """Train in `folder` until SIGTERM comes when so many images were seen."""
    recipe = load_recipe("tiny", RECIPE)
    stream = TrainingStream(Noise(), recipe.resolution, 5, recipe.random_crop, recipe.flip)
    tokenizer = build_tokenizer(*configuration(reference, recipe), recipe, 3)

    def step(seen: int, rate: float) -> None:
        if seen == images:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(TerminatedError):
        fit.train(tokenizer, stream, recipe, seed=3, folder=folder, report=step)


def killed(reference: str, folder: Path, images: int) -> None:
    """Train in `folder` until so many images were seen, and then no further."""
    recipe = load_recipe("tiny", RECIPE)
    stream = TrainingStream(Noise(), recipe.resolution, 5, recipe.random_crop, recipe.flip)
    tokenizer = build_tokenizer(*configuration(reference, recipe), recipe, 3)
    at_checkpoint = images % recipe.checkpoint_images == 0
    written = recorder.save_checkpoint

    def step(seen: int, rate: float) -> None:
        if seen >= images and not at_checkpoint:
            raise KilledError

    def checkpoint(training: Any, target: Path) -> None:
        written(training, target)
        if training.images_seen >= images:
            raise KilledError

    with pytest.raises(KilledError), mock.patch.object(recorder, "save_checkpoint", checkpoint):
        fit.train(tokenizer, stream, recipe, seed=3, folder=folder, report=step)


@pytest.mark.usefixtures("short_window")
@pytest.mark.parametrize("reference", for_each_method())
def test_an_interrupted_training_ends_as_one_that_ran_through(reference: str, tmp_path: Path) -> None:
    through = trained(reference, tmp_path / "through")
    expected = curves(tmp_path / "through" / CURVES)
    assert ["loss/gan" in point for point in expected] == [False] * 3 + [True] * 5
    assert "dead_codes" in expected[-1]  # the window is full
    for images in (AT_A_CHECKPOINT, BETWEEN_TWO) if "@" not in reference else (BETWEEN_TWO,):
        folder = tmp_path / str(images)
        killed(reference, folder, images)
        assert_the_same(through, trained(reference, folder))
        assert curves(folder / CURVES) == expected


@pytest.mark.usefixtures("short_window")
@pytest.mark.parametrize(("reference", "images"), [("vaevq", BETWEEN_TWO), ("sqvae", AT_A_CHECKPOINT)])
def test_a_training_that_is_told_to_end_loses_no_step(reference: str, images: int, tmp_path: Path) -> None:
    through = trained(reference, tmp_path / "through")
    told_to_end(reference, tmp_path / "resumed", images)
    assert torch.load(tmp_path / "resumed" / "checkpoints" / CHECKPOINT, weights_only=True)["images_seen"] == images
    assert_the_same(through, trained(reference, tmp_path / "resumed"))
    assert curves(tmp_path / "resumed" / CURVES) == curves(tmp_path / "through" / CURVES)


def on_two_devices(references: list[str], folder: Path) -> None:
    """One of two processes: train through, and on from the checkpoint at half; leave the state of this rank.

    For the last method each of the two has found another micro-batch, as it may with `auto`.
    """
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    for reference in references:
        execution = Execution(micro_batch=2 * rank if reference == references[-1] else 0)
        for half in ("through", "resumed"):
            trainings: list[Any] = []
            made, written = fit.TokenizerTraining, recorder.save_checkpoint
            here, resumed = folder / reference / half, folder / reference / "resumed" / "checkpoints" / CHECKPOINT

            def make(*args: Any, made: Any = made, trainings: list[Any] = trainings) -> Any:
                trainings.append(made(*args))
                return trainings[0]

            def save(training: Any, target: Path, written: Any = written, resumed: Path = resumed) -> None:
                written(training, target)
                if training.images_seen == AT_A_CHECKPOINT:
                    resumed.parent.mkdir(parents=True)
                    shutil.copy(target / CHECKPOINT, resumed)

            with (
                mock.patch.object(fit, "TokenizerTraining", make),
                mock.patch.object(recorder, "save_checkpoint", save),
            ):
                recipe = load_recipe("tiny", RECIPE)
                stream = TrainingStream(Noise(), recipe.resolution, 5, recipe.random_crop, recipe.flip)
                tokenizer = build_tokenizer(*configuration(reference, recipe), recipe, 3)
                fit.train(tokenizer, stream, recipe, seed=3, folder=here, devices=2, execution=execution)
            (training,) = trainings
            state = {k: v for k, v in training.state_to_save().items() if k in ("module", "optimizers", "collapse")}
            state["micro_batch"] = training.parts.execution.micro_batch
            torch.save(state, here / f"rank{training.global_rank}")


def assert_two_devices_agree(references: list[str], folder: Path) -> None:
    here = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})"
    work = f"test_resume.on_two_devices({references}, Path({str(folder)!r}))"
    script = folder / "both.py"  # which Lightning starts again as the second process
    script.write_text(f"{here}\nfrom pathlib import Path\nimport test_resume\n{work}\n")
    environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "SLURM_NTASKS")}
    done = subprocess.run(
        [sys.executable, str(script)], stderr=subprocess.PIPE, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    for reference in references:
        first, second, again = (
            torch.load(folder / reference / name, weights_only=True)
            for name in ("through/rank0", "through/rank1", "resumed/rank0")
        )
        for name, other in (("rank 1", second["module"]), ("resumed", again["module"])):
            assert [key for key in first["module"] if not same(first["module"][key], other[key])] == [], (
                reference,
                name,
            )
        assert [run["micro_batch"] for run in (first, second, again)] == [2 if reference == references[-1] else 0] * 3
        assert same(first["optimizers"], again["optimizers"])
        assert same(first["optimizers"], second["optimizers"])
        assert same(first["collapse"], again["collapse"])


def test_two_devices_end_with_equal_parameters_and_buffers_and_resume_exactly(tmp_path: Path) -> None:
    assert_two_devices_agree(["sqvae", "vaevq"], tmp_path)


@pytest.mark.slow
def test_all_methods_on_two_devices_end_equal_and_resume_exactly(tmp_path: Path) -> None:
    assert_two_devices_agree(built_in(), tmp_path)


def test_whoever_loads_images_lives_until_the_step_is_over(tmp_path: Path) -> None:
    """On GPUs processes load images; a training whose loaders died first would have failed, not stopped."""
    here = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})"
    long = "test_resume.RECIPE.update(images=64000, checkpoint_images=64000)"
    work = f"test_resume.fit.data_workers = lambda devices: 2; test_resume.trained('vqgan', Path({str(tmp_path)!r}))"
    code = f"{here}; from pathlib import Path; import test_resume; {long}; {work}"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-c", code], stderr=log, start_new_session=True)
    until((tmp_path / CURVES).exists, "the first steps", process)
    end(process)
    assert "TerminatedError" in (tmp_path / "log").read_text()
    assert torch.load(tmp_path / "checkpoints" / CHECKPOINT, weights_only=True)["images_seen"] > 0


@pytest.mark.usefixtures("short_window")
def test_however_often_it_is_interrupted(tmp_path: Path) -> None:
    through = trained("vaevq", tmp_path / "through")
    for images in (8, 24, AT_A_CHECKPOINT, 56):  # the first one before there is a checkpoint
        killed("vaevq", tmp_path / "resumed", images)
    assert_the_same(through, trained("vaevq", tmp_path / "resumed"))
    assert curves(tmp_path / "resumed" / CURVES) == curves(tmp_path / "through" / CURVES)


def test_the_recipe_of_these_tests_leaves_nothing_still(tmp_path: Path) -> None:
    """What is compared above does change between the interruption and the end, or equality would show nothing."""
    killed("sqvae", tmp_path, AT_A_CHECKPOINT)
    half = torch.load(tmp_path / "checkpoints" / CHECKPOINT, weights_only=True)
    end, _ = trained("sqvae", tmp_path)
    for name in ("module", "optimizers", "images_seen", "codes"):
        assert not same(half[name], end[name]), name
    changed = {name for name in half["module"] if not same(half["module"][name], end["module"][name])}
    for part in (
        "tokenizer.",
        "average.module.",
        "discriminator.",
        "pixel_mse",
        "pixel_distance",
        "tokenizer.quantizer.temperature",
    ):
        assert any(name.startswith(part) for name in changed), part


@pytest.mark.parametrize("reference", for_each_method())
def test_an_interrupted_fit_to_features_starts_again_and_ends_the_same(reference: str, tmp_path: Path) -> None:
    recipe = load_recipe("atomic", FEATURES)
    features = np.random.default_rng(0).normal(size=(20, 2, 2, 6)).astype(np.float32)

    def fitted(folder: Path, until: int | None = None) -> dict[str, torch.Tensor]:
        coder = FeatureCoder(6, seeded_quantizer(*configuration(reference, recipe), 3), 3)
        folder.mkdir(exist_ok=True)

        def report(seen: int, total: int, rate: float) -> None:
            if until is not None and seen >= until:
                raise KilledError

        with pytest.raises(KilledError) if until is not None else nullcontext():
            fit_features(coder, features, recipe, seed=3, data_seed=5, curves=folder / CURVES, report=report)
        return coder.state_dict()

    through = fitted(tmp_path / "through")
    half = fitted(tmp_path / "resumed", until=40)
    assert not same(through, half)
    assert same(through, fitted(tmp_path / "resumed"))
    expected = curves(tmp_path / "through" / CURVES)
    assert curves(tmp_path / "resumed" / CURVES) == expected
    assert [point["images"] for point in expected] == list(range(8, 81, 8))
