"""What a training step needs, counted on tensors without data; and what a card that is too small makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import settings, typed

from vqbench.cell.image_cell import fitting_execution
from vqbench.data.dataset import Images
from vqbench.data.stream import TrainingStream
from vqbench.errors import UsageError
from vqbench.methods.vqgan import VQGAN
from vqbench.planning.plan import check_request
from vqbench.planning.request import RunRequest
from vqbench.quantizer import Quantized
from vqbench.recipe import Execution, Recipe, load_recipe
from vqbench.registry import METHODS
from vqbench.tokenizer import build_tokenizer
from vqbench.training.fit import train
from vqbench.training.memory import (
    LiveBytes,
    StepCost,
    TooLargeError,
    UncountableError,
    refuse_too_large,
    room_for,
    step_cost,
)
from vqbench.training.steps import peak_memory_bytes

BUILT_IN = ("vqgan", "fsq", "sqvae", "vaevq")
GAN = {"gan": "hinge", "gan_start_images": 16, "discriminator_layers": 2, "discriminator_channels": 8}


FLAT = {"batch_size": 4, "channel_multipliers": (1,), "images": 12, "warmup_images": 0}
"""Few operations, each of which takes its time to be counted."""
WHOLE = Execution()


class Grey(Images):
    """Training images that need no disk."""

    content_key = ""
    ids = tuple("abcd")

    def load(self, i: int) -> Any:
        return np.full((64, 64, 3), 60 * i, np.uint8)

    def measure(self, i: int) -> tuple[int, int]:
        return 64, 64


def matched(method: str, recipe: Recipe) -> dict[str, Any]:
    return METHODS.get(method).matched(recipe.codebook_size, recipe.codebook_dim)


def held(method: str, recipe: Recipe, folder: Path, execution: Execution) -> int:
    """The most that a real training on the CPU holds in tensors at one time."""
    stream = TrainingStream(Grey(), recipe.resolution, 0, recipe.random_crop, recipe.flip)
    tokenizer = build_tokenizer(method, matched(method, recipe), recipe, 0)
    with LiveBytes() as live:
        train(tokenizer, stream, recipe, seed=0, folder=folder, execution=execution)
    return live.peak


def assert_counted(
    method: str, recipe: Recipe, folder: Path, execution: Execution = WHOLE, within: float = 0.25
) -> StepCost:
    cost = step_cost(method, matched(method, recipe), recipe, execution=execution)
    assert cost.peak_bytes == pytest.approx(held(method, recipe, folder, execution), rel=within)
    assert 0 < cost.kept_bytes < cost.peak_bytes
    assert cost.flops > 0
    assert (cost.adversarial_flops > cost.flops) == (recipe.gan != "none")
    return cost


@pytest.mark.parametrize(
    "method",
    [
        *(pytest.param(m, marks=[pytest.mark.slow] * (m in BUILT_IN[:2])) for m in BUILT_IN),
        *(pytest.param(m, marks=pytest.mark.slow) for m in ("rfsq", "lfq", "llamagen", "ibq", "softvq", "gq")),
    ],
)
def test_a_step_is_counted_as_a_training_on_the_cpu_holds_it(method: str, tmp_path: Path) -> None:
    """With a discriminator that begins after the first step, and averages; also of a batch that is decoded twice."""
    over = {"batch_size": 16, "images": 48, "warmup_images": 0, "ema_halflife_images": 100, **GAN}
    assert_counted(method, load_recipe("tiny", over), tmp_path, within=0.15)


def test_what_checkpointing_saves_is_counted(tmp_path: Path) -> None:
    recipe, execution = load_recipe("tiny", FLAT), Execution(activation_checkpointing=True)
    less = assert_counted("movq", recipe, tmp_path, execution)
    whole = step_cost("movq", matched("movq", recipe), recipe)
    assert less.peak_bytes < 0.85 * whole.peak_bytes
    assert less.flops > whole.flops


@pytest.mark.parametrize("adaptive", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_what_micro_batches_save_is_held_by_nobody_and_counted(adaptive: bool, tmp_path: Path) -> None:
    """With an adversary, whose weight is found from gradients at the decoder's end."""
    over = {**FLAT, **GAN, "gan_adaptive": adaptive, "gan_start_images": 4}
    recipe, parts = load_recipe("tiny", over), Execution(micro_batch=1)
    counted = assert_counted("vqgan", recipe, tmp_path, parts)
    (tmp_path / "whole").mkdir()
    assert counted.peak_bytes < 0.8 * held("vqgan", recipe, tmp_path / "whole", WHOLE)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["tiny", "small"])
@pytest.mark.parametrize("method", BUILT_IN)
def test_the_shipped_recipes_are_counted_as_a_training_holds_them(method: str, recipe: str, tmp_path: Path) -> None:
    batch = load_recipe(recipe).batch_size
    assert_counted(method, load_recipe(recipe, {"images": 3 * batch}), tmp_path)


@pytest.mark.slow
def test_counting_draws_no_numbers_and_takes_no_memory() -> None:
    """The paper's networks, of which an image alone needs a gigabyte, with half the batch."""
    recipe = load_recipe("vqgan-f16-256", {"perceptual": "squeeze"})
    before, most = torch.get_rng_state(), peak_memory_bytes(torch.device("cpu"))
    half = step_cost("fsq", matched("fsq", recipe), recipe, images=16)
    assert torch.equal(torch.get_rng_state(), before)
    assert peak_memory_bytes(torch.device("cpu")) - most < 1e9
    assert half.images == 16
    assert 15e9 < half.peak_bytes < 60e9
    assert 0.9e12 < half.flops < half.adversarial_flops < 1.8e12


class Looks(VQGAN):
    """A quantizer whose way hangs on values."""

    def forward(self, z: torch.Tensor) -> Quantized:
        return super().forward(z if float(z.mean()) > 0 else z + 1)


def test_a_quantizer_that_looks_at_values_cannot_be_counted_and_may_train_all_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    METHODS.register("looks")(Looks)
    recipe = load_recipe("tiny")
    with pytest.raises(UncountableError, match="a step of looks needs cannot be counted"):
        step_cost("looks", {}, recipe)
    fitting_execution({"method": "looks", "config": {}, "devices": 1}, recipe, card=1)
    assert "cannot be counted" in capsys.readouterr().out


def cost(peak: float) -> StepCost:
    return StepCost(32, 32, int(10e9), int(peak), 1e12, 0.0)


def test_what_a_card_has_room_for() -> None:
    card = int(80e9)
    assert [room_for(cost(share * card), card) for share in (0.79, 0.81, 1.24, 1.26)] == [
        "enough", "tight", "tight", "none",
    ]  # fmt: skip
    assert refuse_too_large(cost(60e9), card) == ""
    assert "needs about 90 GB, the card has 80: it may run out of memory" in refuse_too_large(cost(90e9), card)
    with pytest.raises(TooLargeError, match=r"32 images needs about 131 GB, the card has 80") as refused:
        refuse_too_large(cost(131e9), card)
    # 54 GB within 80 % of the card, at 3.8 GB an image
    assert "8 images at once fit: --micro-batch 8, --set batch_size=8, or --devices 4" in refused.value.hint
    assert "--ignore-memory" in refused.value.hint
    with pytest.raises(TooLargeError) as hopeless:
        refuse_too_large(cost(131e9), int(9e9))
    assert "not even one image" in hopeless.value.hint


def test_a_cell_is_refused_where_its_step_has_no_room_unless_that_is_ignored(
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = load_recipe("tiny")
    spec = {"method": "fsq", "config": {"levels": [8, 8]}, "devices": 2}
    with pytest.raises(TooLargeError, match=r"a step of 8 images needs about 0\.0\d+ GB"):
        fitting_execution(spec, recipe, card=10**7)
    fitting_execution({**spec, "ignore_memory": True}, recipe, card=10**7)
    fitting_execution(spec, recipe, card=10**12)
    fitting_execution(spec, recipe)  # no GPU here, or one that is larger
    assert capsys.readouterr().out == ""


NARROW = """
import os
from vqbench.data.photos import Photos
from vqbench.registry import DATASETS
from vqbench.training import memory

@DATASETS.register("narrow")
class Narrow(Photos):
    "Photographs that are trained on with a card that is hardly large enough."

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.reference = "narrow"

if "VQBENCH_PARENT" in os.environ:
    memory.card_bytes = lambda: 10**9
    memory.room_for = lambda cost, card: "tight"
"""


def test_who_watches_the_command_hears_that_a_step_hardly_has_room(tmp_path: Path) -> None:
    (tmp_path / "narrow.py").write_text(NARROW)
    answer = typed(
        "run", "--plugin", tmp_path / "narrow.py", "--methods", "fsq", "--dataset", "narrow", "--images", "16",
        "--validation-images", "8", "--metrics", "psnr", "--runs", tmp_path / "runs", "--json", *settings(),
    )  # fmt: skip
    assert [row["state"] for row in answer.objects] == ["done"], answer.err
    (note,) = (line for line in answer.err.splitlines() if "the card has 1: it may run out of memory" in line)
    assert note.startswith(f"note: {answer.objects[0]['cell']}: a step of 8 images needs about")


@pytest.mark.slow  # counts five steps; what is chosen is tested below
def test_a_micro_batch_is_found_that_the_card_has_room_for(capsys: pytest.CaptureFixture[str]) -> None:
    """As many images as fit, and the whole batch where it does, or where there is no card to fit."""
    recipe = load_recipe("tiny", FLAT)
    spec = {"method": "fsq", "config": {"levels": [8, 8]}, "devices": 1, "execution": {"micro_batch": "auto"}}
    whole = step_cost("fsq", spec["config"], recipe)

    def found(card: float) -> int | str:
        return fitting_execution(spec, recipe, card=int(card)).micro_batch

    assert found(whole.peak_bytes / 0.79) == 0
    assert fitting_execution(spec, recipe).micro_batch == 0
    size = found(whole.peak_bytes / 1.6)
    assert size in (1, 2)
    part = step_cost("fsq", spec["config"], recipe, execution=Execution(micro_batch=int(size)))
    assert (part.images, part.at_once) == (4, size)
    assert part.peak_bytes < 0.8 * whole.peak_bytes / 1.6
    assert capsys.readouterr().out == ""
    with pytest.raises(TooLargeError, match="a step of 4 images, 1 at a time, needs"):
        found(whole.kept_bytes / 2)
    asked = RunRequest(("fsq",), "photos", settings=("dropout=0.1",), micro_batch="auto")
    with pytest.raises(UsageError, match="has dropout: its numbers would depend on the card"):
        check_request(asked)
    with pytest.raises(UsageError, match="--micro-batch takes a whole number or auto, not 'half'"):
        RunRequest(("fsq",), "photos", micro_batch="half")


@pytest.mark.parametrize("dies", [False, True])
def test_of_parts_that_halve_the_largest_with_room_is_taken(dies: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the counting of the parts dies, as its process now and then does: then they are reckoned."""
    kept, each = 10**9, 10**8

    def counted(method: Any, config: Any, recipe: Any, images: int, execution: Execution) -> StepCost:
        at_once = int(execution.micro_batch) if execution.micro_batch not in (0, "auto") else images
        if dies and at_once < images:
            raise UncountableError("it died", "try again")
        return StepCost(images, at_once, kept, kept + each * at_once, 1.0, 0.0)

    monkeypatch.setattr("vqbench.training.memory.step_cost", counted)
    recipe = load_recipe("tiny", {"batch_size": 32})
    spec = {"method": "fsq", "config": {"levels": [8, 8]}, "devices": 1, "execution": {"micro_batch": "auto"}}
    for room, size in ((32, 0), (31, 16), (9, 8), (1, 1)):
        said: list[str] = []
        found = fitting_execution(spec, recipe, card=int((kept + each * room) / 0.8), say=said.append)
        assert (found.micro_batch, said) == (size, [])


def test_a_dry_run_says_what_a_large_training_needs(images: Path, tmp_path: Path) -> None:
    asked = ("run", "--methods", "fsq", "--dataset", f"folder:{images}", "--metrics", "psnr", "--seeds", "0,1",
             "--set", "batch_size=2048", "--images", 4096, "--runs", tmp_path, "--dry-run")  # fmt: skip
    answer = typed(*asked)
    assert answer.code == 0
    assert "memory of a step" in answer.out
    assert "counted, not measured" in answer.out
    first, second = typed(*asked, "--json", "--ignore-memory").objects
    assert first["estimate"] == second["estimate"]
    assert first["estimate"]["memory_bytes"] > 1e9
    hours = 4096 * first["estimate"]["gflop_per_image"] * 1e9 / first["estimate"]["assumed_flop_per_s"] / 3600
    assert first["estimate"]["gpu_hours"] == pytest.approx(hours, abs=1e-3)
    assert first["cell"] in answer.out  # ignoring it is no part of what a cell is


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["vqgan-f8-128", "vqgan-f8-128-gan", "vqgan-f16-256-3m"])
def test_recipes_between_small_and_the_papers_fit_a_card_of_80_gb_and_a_night(recipe: str, tmp_path: Path) -> None:
    asked = ("run", "--methods", "vqgan", "--dataset", "photos", "--recipe", recipe, "--metrics", "psnr")
    (row,) = typed(*asked, "--runs", tmp_path, "--dry-run", "--json").objects
    assert 10e9 < row["estimate"]["memory_bytes"] < 0.8 * 80e9
    assert 0.5 < row["estimate"]["gpu_hours"] < 12


@pytest.mark.slow  # what `run` says is tested above
def test_a_dry_run_of_a_sweep_says_what_its_smallest_and_its_largest_cell_need(images: Path, tmp_path: Path) -> None:
    (tmp_path / "sizes.yaml").write_text("recipe: {codebook_size: [16, 2048]}\n")
    asked = ("sweep", "vqgan", "--dataset", f"folder:{images}", "--metrics", "psnr", "--space", tmp_path / "sizes.yaml",
             "--sampler", "grid", "--set", "batch_size=2048", "--images", 4096, "--runs", tmp_path / "runs",
             "--dry-run")  # fmt: skip
    (study,) = typed(*asked, "--json").objects
    small, large = study["estimate"]
    codes = (2048 - 16) * 64 * 4  # in bytes: codes of 64 numbers, and Adam's two averages of each
    assert large["memory_bytes"] - small["memory_bytes"] == pytest.approx(3 * codes, rel=0.2)
    shown = typed(*asked).out
    assert "vqgan, a smallest cell" in shown
    assert "vqgan, a largest cell" in shown
    assert not (tmp_path / "runs").exists()
