"""A collapse is seen: the window of codes, how long dead ones are dead, what counts as a symptom, and who is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command, write_images
from conftest import settings as make_settings
from hypothesis import given, settings
from hypothesis import strategies as st
from test_training import Noise, fit, fit_until, recipe

from vqbench import codewatch
from vqbench.codewatch import CodeWatch
from vqbench.collapse import CollapsedError, CollapseWatch, DivergedError, hardly_used, symptom
from vqbench.data.stream import TrainingStream
from vqbench.fit import train
from vqbench.mirror import Mirror
from vqbench.recorder import CHECKPOINT
from vqbench.registry import METHODS
from vqbench.tokenizer import build_tokenizer

LAZY = '''
"""Quantizers that go wrong on purpose."""
from dataclasses import dataclass
import torch
from torch import nn
from vqbench.quantizer import Quantized, Quantizer, full_precision
from vqbench.registry import METHODS


@METHODS.register("lazy")
class Lazy(Quantizer):
    """One code for everything from a step on (Nobody, 2026)."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""
        from_images: int = 0
        """Images after which only code 0 is used."""

    def __init__(self, config):
        super().__init__(config)
        self.in_channels = self.out_channels = 4
        self.codebook_size = 256
        self.register_buffer("codes", torch.randn(256, 4))
        self.register_buffer("images", torch.zeros((), dtype=torch.int64))

    @classmethod
    def matched(cls, codebook_size, dim):
        return {}

    def advance(self, state):
        self.images.fill_(state.images_seen)

    @full_precision
    def forward(self, z):
        shape = (z.shape[0], *z.shape[2:])
        if self.images >= self.config.from_images:
            indices = torch.zeros(shape, dtype=torch.int64)
        else:
            indices = torch.randint(256, shape)
        q = self.decode_indices(indices)
        return Quantized(z + (q - z).detach(), indices, {"pull": 0.1 * (z - q).square().mean()})

    def decode_indices(self, indices):
        return self.codes[indices].permute(0, 3, 1, 2)
'''


@pytest.fixture(scope="module", autouse=True)
def lazy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lazy") / "lazy.py"
    path.write_text(LAZY)
    METHODS.add_file(path, replace=True)
    return path


@pytest.fixture
def short_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window of 1,280 tokens: two and a half batches of the tiny recipe, whose batch is 512 tokens."""
    monkeypatch.setattr(codewatch, "WINDOW_TOKENS", 1280)
    monkeypatch.setattr(codewatch, "BLOCKS", 2)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), groups=st.integers(1, 2))
def test_window_and_lifetimes_against_counting_by_hand(seed: int, groups: int) -> None:
    """Blocks of at least a tenth of the window; the last ten of them are the window."""
    draw = torch.Generator().manual_seed(seed)
    watch = CodeWatch(50, groups)
    shape = (8, 40, 40) if groups == 1 else (8, 40, 40, groups)  # 12,800 tokens: each batch closes a block
    batches = [torch.randint(0, 5 + 3 * i, shape, generator=draw).clamp(max=49) for i in range(14)]
    for i, batch in enumerate(batches):
        assert watch.update(batch, images_seen=8 * (i + 1))
        assert watch.is_full == (i >= 9)
    window = torch.cat([batch.reshape(-1, groups) for batch in batches[-10:]])
    used = [window[:, g].unique().numel() for g in range(groups)]
    assert watch.window()["usage_100k"] == pytest.approx(sum(used) / groups / 50)
    probabilities = [torch.bincount(window[:, g], minlength=50).double() / len(window) for g in range(groups)]
    perplexities = [float((-torch.special.xlogy(p, p).sum()).exp()) for p in probabilities]
    assert watch.window()["perplexity_100k"] == pytest.approx(sum(perplexities) / groups)
    read = watch.read(8 * 14)
    assert read["dead_codes"] == pytest.approx(50 - sum(used) / groups)


def test_a_dead_code_is_as_old_as_its_last_use() -> None:
    watch = CodeWatch(3, 1)
    block = torch.zeros(1, 100, 100, dtype=torch.int64)
    watch.update(block + 1, 100)  # code 1 is used here and never again, code 2 never
    for i in range(2, 13):
        watch.update(block, 100 * i)
    read = watch.read(1200)
    assert read["dead_codes"] == 2
    assert read["dead_code_lifetime"] == ((1200 - 100) + 1200) / 2
    assert read["usage_100k"] == pytest.approx(1 / 3)


def test_the_window_goes_on_from_a_checkpoint() -> None:
    batches = [torch.randint(0, 20, (4, 30, 30), generator=torch.Generator().manual_seed(i)) for i in range(40)]
    through, stopped, resumed = CodeWatch(20, 1), CodeWatch(20, 1), CodeWatch(20, 1)
    for i, batch in enumerate(batches[:17]):
        stopped.update(batch, i)
    resumed.restore(stopped.state())
    for i, batch in enumerate(batches[17:], start=17):
        resumed.update(batch, i)
    for i, batch in enumerate(batches):
        through.update(batch, i)
    assert resumed.read(40) == through.read(40)


HEALTHY = {"latent_rms": 0.5, "code_rms": 0.4, "sigma_median": 0.1, "alignment_weight_max": 400.0}
USED = {"usage_100k": 0.5, "perplexity_100k": 90.0}


@pytest.mark.parametrize(
    ("codes", "diagnostics", "said"),
    [
        (USED, HEALTHY, ""),
        (USED, {}, ""),
        ({"usage_100k": 3 / 512, "perplexity_100k": 1.9}, HEALTHY, "perplexity 1.9 of 512 codes"),
        (USED, {**HEALTHY, "alignment_weight_max": 2e6, "sigma_median": 0.0013}, "weight 2e+06, median sigma 0.0013"),
        (USED, {**HEALTHY, "code_rms": 1e-3}, "latents (rms 0.5) and codes (rms 0.001) are far apart"),
        (USED, {**HEALTHY, "code_rms": 0.0}, "far apart"),
        (USED, {**HEALTHY, "latent_rms": 0.003, "code_rms": 0.1, "sigma_median": 1.0}, "sigma 1 drowns the latents"),
        (USED, {**HEALTHY, "latent_rms": float("inf")}, "latent_rms is not finite"),
    ],
)  # fmt: skip
def test_symptoms(codes: dict[str, float], diagnostics: dict[str, float], said: str) -> None:
    found = symptom(512, codes, diagnostics)
    assert said in found
    assert bool(said) == bool(found)


def test_one_code_in_a_hundred_and_never_less_than_two() -> None:
    assert hardly_used(163.0, 16384)
    assert not hardly_used(164.0, 16384)
    assert hardly_used(1.9, 16)
    assert not hardly_used(2.0, 16)
    assert not hardly_used(1.9, 2)  # two codes that are both in use
    assert hardly_used(1.05, 2)


def test_a_collapse_is_judged_after_the_grace_and_forgotten_after_a_recovery() -> None:
    watch = CollapseWatch(1000)
    watch.judge(99, "early")
    assert watch.collapse is None
    watch.judge(200, "bad")
    watch.judge(250, "worse")
    assert watch.collapse is not None
    assert (watch.collapse.images, watch.collapse.reason) == (200, "worse")
    assert watch.lasting(299) is None
    assert isinstance(watch.lasting(300), CollapsedError)
    watch.judge(310, "")
    assert watch.collapse is None
    watch.judge(400, "again")
    assert watch.collapse is not None
    assert watch.collapse.images == 400


def stop(folder: Path, **config: Any) -> CollapsedError:
    r = recipe(images=320)
    stream = TrainingStream(Noise(), r.resolution, 5, r.random_crop, r.flip)
    with pytest.raises(CollapsedError) as error:
        train(build_tokenizer("lazy", config, r, 0), stream, r, seed=0, folder=folder, stop_on_collapse=True)
    return error.value


def test_a_training_that_collapses_says_when(short_window: None, tmp_path: Path) -> None:
    r = recipe(images=320)  # 512 tokens a step
    healthy = fit(r, tmp_path / "healthy", "lazy", {"from_images": 1000})
    assert healthy.collapse is None
    late = fit(r, tmp_path / "late", "lazy", {"from_images": 160})
    assert late.collapse is not None
    assert 160 < late.collapse.images <= 200
    assert "perplexity 1.0 of 256 codes" in late.collapse.reason
    points = [json.loads(line) for line in (tmp_path / "late" / "metrics.jsonl").open()]
    assert points[-1]["dead_codes"] == 255
    assert points[-1]["dead_code_lifetime"] > points[-3]["dead_code_lifetime"] > 0
    assert points[-1]["usage_100k"] == pytest.approx(1 / 256)


def test_stop_on_collapse_ends_it_and_leaves_where_to_go_on(short_window: None, tmp_path: Path) -> None:
    error = stop(tmp_path, from_images=0)
    assert error.collapse.kind == "collapsed"
    assert "collapsed since" in error.what
    assert "without --stop-on-collapse" in error.hint
    stopped = torch.load(tmp_path / "checkpoints" / CHECKPOINT, weights_only=True)
    assert error.collapse.images < stopped["images_seen"] < 320
    again = stop(tmp_path, from_images=0)  # goes on from there, and finds the same collapse
    assert again.collapse.images == error.collapse.images
    r = recipe(images=320)
    through = fit(r, tmp_path, "lazy", {"from_images": 0})  # without the flag, to the end
    assert through.images_seen == 320
    assert through.collapse is not None


def test_the_command_stops_and_its_row_says_why(vqbench: Command, lazy: Path, tmp_path: Path) -> None:
    """256 tokens an image: 100,000 tokens are 391 images."""
    images = write_images(tmp_path / "images", 60)
    answer = vqbench(
        "run", "--methods", "lazy", "--plugin", lazy, "--stop-on-collapse", "--dataset", f"folder:{images}",
        "--images", "640", "--metrics", "psnr,usage", "--runs", tmp_path / "runs", "--name", "x",
        *make_settings("channel_multipliers=1,2", "batch_size=16"), "--json",
    )  # fmt: skip
    assert answer.code == 1
    (row,) = answer.objects
    assert row["error"]["type"] == "CollapsedError"
    assert row["collapse"]["kind"] == "collapsed"
    assert 391 <= row["collapse"]["images"] <= 480
    result = json.loads((Path(row["path"]) / "result.json").read_text())
    assert result["collapse"] == row["collapse"]
    client = Mirror(tmp_path / "runs").client
    experiment = client.get_experiment_by_name("x").experiment_id
    (run,) = client.search_runs([experiment], "tags.collapse = 'collapsed'")
    assert "perplexity 1.0 of 256 codes" in run.data.tags["collapse_reason"]
    assert run.data.metrics["collapse_images"] == row["collapse"]["images"]


def test_a_checkpoint_of_a_version_that_did_not_watch(tmp_path: Path) -> None:
    r = recipe()
    fit_until(48, r, tmp_path, "vqgan")
    path = tmp_path / "checkpoints" / CHECKPOINT
    state = torch.load(path, weights_only=True)
    torch.save({k: v for k, v in state.items() if k not in ("codes", "collapse")}, path)
    assert fit(r, tmp_path).images_seen == 64


def test_a_divergence_carries_the_flag(tmp_path: Path) -> None:
    with pytest.raises(DivergedError) as error:
        fit(recipe(learning_rate=1e30, gradient_clip=0.0), tmp_path)
    assert error.value.collapse.kind == "diverged"
    assert "not finite" in error.value.collapse.reason
    assert 0 < error.value.collapse.images <= 64
