"""Training: budget and schedules in images, the GAN's turn, averaged weights, divergence."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.training import Noise, fit, fit_until, recipe, same
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from vqbench.data.stream import TrainingStream
from vqbench.machine.interrupts import TerminatedError
from vqbench.precision import arithmetic, float32_operations
from vqbench.tokenizer import build_tokenizer, load, save
from vqbench.training import recorder
from vqbench.training.collapse import DivergedError
from vqbench.training.fit import batch_positions, train
from vqbench.training.recorder import CHECKPOINT
from vqbench.training.steps import seed_noise
from vqbench.training.tokenizer_training import TokenizerTraining, learning_rate


def test_without_its_checkpoint_an_interrupted_training_starts_again(tmp_path: Path) -> None:
    fit_until(48, recipe(), tmp_path, "fsq")
    (tmp_path / "checkpoints" / CHECKPOINT).unlink()
    outcome = fit(recipe(), tmp_path, "fsq")
    assert [json.loads(line)["images"] for line in (tmp_path / "metrics.jsonl").open()] == [16, 32, 48, 64]
    assert outcome.images_seen == 64


def test_the_interval_between_checkpoints_has_no_influence(tmp_path: Path) -> None:
    often, once = (fit(recipe(checkpoint_images=n), tmp_path / str(n), "vaevq") for n in (8, 64))
    assert same(often.tokenizer, once.tokenizer)


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(tmp_path: Path, monkeypatch: Any) -> None:
    fit_until(48, recipe(), tmp_path, "vqgan")
    good = (tmp_path / "checkpoints" / CHECKPOINT).read_bytes()

    def full(state: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        fit(recipe(), tmp_path)
    assert (tmp_path / "checkpoints" / CHECKPOINT).read_bytes() == good
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [CHECKPOINT]


def test_the_budget_counts_images_and_is_rounded_up_to_whole_batches(tmp_path: Path) -> None:
    assert fit(recipe(images=20), tmp_path).images_seen == 24


def test_averaged_weights_are_evaluated_where_the_recipe_asks_for_them(tmp_path: Path) -> None:
    last = fit(recipe(), tmp_path / "last").tokenizer
    nearly_last = fit(recipe(ema_halflife_images=1), tmp_path / "short").tokenizer
    averaged = fit(recipe(ema_halflife_images=10**6), tmp_path / "long").tokenizer
    start = build_tokenizer("vqgan", {}, recipe(), 0)

    def distance(a: torch.nn.Module, b: torch.nn.Module) -> float:
        return math.sqrt(sum((x - y).pow(2).sum().item() for x, y in zip(a.parameters(), b.parameters(), strict=True)))

    assert distance(nearly_last, last) < 0.05 * distance(start, last)
    assert distance(averaged, start) < distance(averaged, last)


def test_a_step_draws_what_torch_would_from_its_seed() -> None:
    seed_noise(torch.device("cpu"), 2**62 + 5)
    drawn = torch.rand(4)
    torch.manual_seed(2**62 + 5)
    assert torch.equal(drawn, torch.rand(4))


@pytest.mark.parametrize("kind", ["hinge", "non_saturating"])
def test_the_discriminator_waits_for_its_turn(kind: str, tmp_path: Path) -> None:
    fit(recipe(gan=kind, gan_start_images=32, discriminator_layers=1), tmp_path)
    points = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert ["loss/discriminator" in p for p in points] == [False, False, True, True]
    assert ["loss/gan" in p for p in points] == [False, False, True, True]
    state = torch.load(tmp_path / "checkpoints" / CHECKPOINT, weights_only=True)
    assert state["collapse"]["errors"]["codes"]["images"] == 32  # what was before its turn is no measure after it


def test_a_gan_does_not_shift_what_came_before_it(tmp_path: Path) -> None:
    plain = fit(recipe(), tmp_path / "plain").tokenizer
    late = fit(recipe(gan="hinge", gan_start_images=64, discriminator_layers=1), tmp_path / "late").tokenizer
    assert same(plain, late)


def test_a_loss_that_is_not_finite_stops_the_training_and_names_the_term(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"not finite after \d+ images"):
        fit(recipe(learning_rate=1e30, gradient_clip=0), tmp_path)


class ProductsOverCodes(TorchDispatchMode):
    """Notes the type of every product of matrices that has 23 codes in it."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.baddbmm):
            self.types |= {a.dtype for a in args if isinstance(a, torch.Tensor) and 23 in a.shape}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("method", "config"), [("sqvae", {}), ("vaevq", {"codebook_param": "linear"})], ids=["sqvae", "vaevq linear"]
)
def test_a_quantizers_products_are_float32_under_bf16_backwards_too(
    method: str, config: dict[str, Any], tmp_path: Path
) -> None:
    """Autocast would run the gradients of a quantizer in bfloat16, in spite of `full_precision` around its forward."""
    with ProductsOverCodes() as products:
        fit(recipe(precision="bf16", images=16), tmp_path, method, {"codebook_size": 23, **config})
    assert torch.float32 in products.types
    assert torch.bfloat16 not in products.types


def test_bf16_trains_and_gradients_are_clipped(tmp_path: Path) -> None:
    outcome = fit(recipe(precision="bf16", gradient_clip=1e-3), tmp_path / "bf16")
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in outcome.tokenizer.parameters())
    clipped = fit(recipe(optimizer="adamw", gradient_clip=1e-12, learning_rate=1e-3), tmp_path / "clipped")
    unclipped = fit(recipe(optimizer="adamw", gradient_clip=0, learning_rate=1e-3), tmp_path / "unclipped")
    assert not same(clipped.tokenizer, unclipped.tokenizer)


def settings_of_float32() -> list[str]:
    backends: Any = torch.backends
    places = [getattr(place, name) for place in (backends.cudnn, backends.mkldnn) for name in ("conv", "rnn")]
    return [place.fp32_precision for place in (*places, backends.cuda.matmul, backends.mkldnn.matmul)]


STARTS = {
    "untouched": "pass",
    "high": "torch.set_float32_matmul_precision('high')",  # after which torch refuses to read some older switches
    "medium": "torch.set_float32_matmul_precision('medium')",
    "cudnn without": "torch.backends.cudnn.allow_tf32 = False",
    "cublas with": "torch.backends.cuda.matmul.allow_tf32 = True",
    "convolutions": "torch.backends.cudnn.conv.fp32_precision = 'ieee'",
    "products": "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "all": "torch.backends.fp32_precision = 'tf32'",
}


@pytest.fixture
def _as_torch_starts() -> Iterator[None]:
    before = settings_of_float32()
    yield
    backends: Any = torch.backends
    backends.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = True
    places = [getattr(place, name) for place in (backends.cudnn, backends.mkldnn) for name in ("conv", "rnn")]
    for place, was in zip((*places, backends.cuda.matmul, backends.mkldnn.matmul), before, strict=True):
        place.fp32_precision = was


@pytest.mark.usefixtures("_as_torch_starts")
@pytest.mark.parametrize("start", STARTS)
def test_float32_is_what_the_recipe_says_and_the_settings_come_back(start: str, tmp_path: Path) -> None:
    exec(STARTS[start])
    before, inside = settings_of_float32(), []

    class Looks(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            inside.append(settings_of_float32())
            return (a - b).square().mean((1, 2, 3))

    r = recipe(images=8)
    stream = TrainingStream(Noise(), r.resolution, 5, r.random_crop, r.flip)
    outcome = train(build_tokenizer("fsq", {}, r, 0), stream, r, seed=0, folder=tmp_path, perceptual=Looks())
    assert inside == [["ieee"] * 6]
    assert settings_of_float32() == before
    assert outcome.execution["precision"] == outcome.execution["float32_convolutions"] == "ieee"
    with float32_operations("tf32"):
        assert settings_of_float32() == ["tf32"] * 2 + ["ieee"] * 4
        assert torch.backends.cudnn.allow_tf32  # the older switches can be read, and agree
        assert torch.get_float32_matmul_precision() == "highest"
    assert settings_of_float32() == before


def test_only_cuda_has_tf32() -> None:
    used = {(p, d): arithmetic(p, torch.device(d)) for p in ("ieee", "tf32", "bf16") for d in ("cpu", "cuda")}
    assert {key: found["precision"] for key, found in used.items() if key[1] == "cpu"} == {
        ("ieee", "cpu"): "ieee", ("tf32", "cpu"): "ieee", ("bf16", "cpu"): "bf16",
    }  # fmt: skip
    assert {key: found["float32_convolutions"] for key, found in used.items() if key[1] == "cuda"} == {
        ("ieee", "cuda"): "ieee", ("tf32", "cuda"): "tf32", ("bf16", "cuda"): "tf32",
    }  # fmt: skip
    assert {found["float32_products"] for found in used.values()} == {"ieee"}


@given(st.integers(0, 2000))
def test_learning_rate_follows_images(seen: int) -> None:
    r = recipe(images=1000, batch_size=10, warmup_images=200, learning_rate=1e-2, schedule="cosine")
    rate = learning_rate(r, seen)
    assert 0 <= rate <= 1e-2
    if seen < 200:
        assert rate == pytest.approx(1e-2 * (seen + 10) / 210)
    elif seen <= 1000:
        assert rate == pytest.approx(0.5e-2 * (1 + math.cos(math.pi * (seen - 200) / 800)))
    else:
        assert rate == pytest.approx(0, abs=1e-12)


@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 5), st.integers(1, 8))
def test_devices_share_each_batch_without_overlap(devices: int, share: int, start: int, steps: int) -> None:
    batch = devices * share
    first, stop = start * batch, (start + steps) * batch
    seen = [list(batch_positions(first, stop, batch, rank, devices)) for rank in range(devices)]
    together = [sorted(p for rank in seen for p in rank[i]) for i in range(steps)]
    assert together == [list(range(first + i * batch, first + (i + 1) * batch)) for i in range(steps)]


def loads(log: Path) -> list[tuple[int, int]]:
    """(process, image) of every image that was loaded, in whatever order."""
    return [(int(process), int(image)) for process, image in map(str.split, log.read_text().splitlines())]


def test_loaders_live_for_the_whole_training_and_give_what_none_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    r = recipe(flip=True, random_crop=True, checkpoint_images=24)  # the last stretch is shorter than the others
    alone = fit(r, tmp_path / "alone", log=tmp_path / "one")
    assert {process for process, _ in loads(tmp_path / "one")} == {os.getpid()}
    monkeypatch.setattr("vqbench.training.fit.data_workers", lambda devices: 2)
    beside = fit(r, tmp_path / "beside", log=tmp_path / "two")
    assert same(alone.tokenizer, beside.tokenizer)
    assert multiprocessing.active_children() == []
    processes = {process for process, _ in loads(tmp_path / "two")}
    assert len(processes) == 2, "the same over all stretches"
    assert os.getpid() not in processes
    images = [sorted(image for _, image in loads(tmp_path / name)) for name in ("one", "two")]
    assert images[0] == images[1]
    assert len(images[0]) == r.images, "no image is loaded in vain"


def test_checkpoints_are_written_where_stretches_end_whatever_the_first_one_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a resume in the middle of a stretch the first one is short, and those that follow are not."""
    written: list[int] = []
    save_checkpoint = recorder.save_checkpoint

    def note(training: Any, folder: Path) -> None:
        written.append(training.images_seen)
        save_checkpoint(training, folder)

    monkeypatch.setattr(recorder, "save_checkpoint", note)
    r = recipe(checkpoint_images=24)

    def told(seen: int, rate: float) -> None:
        if seen == 16:
            os.kill(os.getpid(), signal.SIGTERM)

    stream = TrainingStream(Noise(), r.resolution, 5, r.random_crop, r.flip)
    with pytest.raises(TerminatedError):
        train(build_tokenizer("fsq", {}, r, 0), stream, r, seed=0, folder=tmp_path, report=told)
    assert written == [16]
    fit(r, tmp_path, "fsq")
    assert written == [16, 24, 48, 64]


def test_a_batch_reaches_the_device_as_bytes_and_trains_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against floats that are made one by one where the image is loaded, as they were until 0.2.0: the last bit."""
    arrived: list[torch.Tensor] = []
    hook = TokenizerTraining.on_after_batch_transfer

    def note(training: Any, batch: torch.Tensor, index: int) -> torch.Tensor:
        arrived.append(batch)
        return hook(training, batch, index)

    r = recipe(flip=True, random_crop=True)
    with monkeypatch.context() as patched:
        patched.setattr(TokenizerTraining, "on_after_batch_transfer", note)
        new = fit(r, tmp_path / "new")
    assert {(batch.dtype, tuple(batch.shape)) for batch in arrived} == {(torch.uint8, (8, 3, 16, 16))}
    load_bytes = TrainingStream.__getitem__
    monkeypatch.setattr(
        TrainingStream,
        "__getitem__",
        lambda stream, p: torch.from_numpy(
            load_bytes(stream, p).numpy().astype(np.float32) / np.float32(127.5) - np.float32(1)
        ),
    )
    monkeypatch.setattr(TokenizerTraining, "on_after_batch_transfer", lambda training, batch, index: batch)
    assert same(new.tokenizer, fit(r, tmp_path / "old").tokenizer)


def test_saved_and_loaded_it_is_the_same_tokenizer(tmp_path: Path) -> None:
    r = recipe()
    tokenizer = build_tokenizer("vaevq", {}, r, 0).eval()
    spec = {"method": "vaevq", "config": {}, "recipe": r.as_dict(), "plugin": None, "seed": 0, "hash": "0"}
    save(tokenizer, tmp_path / "tokenizer.safetensors", spec)
    again = load(tmp_path / "tokenizer.safetensors")
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    indices = tokenizer.encode(images)
    assert torch.equal(again.encode(images), indices)
    assert torch.equal(again.decode(indices), tokenizer.decode(indices))
    with pytest.raises(ValueError, match="divisible by 2"):
        again.encode(torch.zeros(1, 3, 15, 16))


def test_a_training_brings_no_torchmetrics_and_who_wants_it_gets_the_real_one() -> None:
    """Nor what that would bring, which is half of a cell's start."""
    code = (
        "import sys, vqbench.training.fit\n"
        "print({'torchmetrics', 'torchvision', 'scipy', 'matplotlib'} & set(sys.modules))\n"
        "import torchmetrics\n"
        "print(float(torchmetrics.MeanMetric()(3.0)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["set()", "3.0"]
