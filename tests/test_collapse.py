"""A collapse is seen: the window of codes, how long dead ones are dead, what counts as a symptom, and who is told."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import Command
from helpers.commands import settings as make_settings
from helpers.images import write_images
from helpers.training import Noise, fit, fit_until, recipe
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vqbench.data.dataset import Images
from vqbench.data.stream import TrainingStream
from vqbench.recipe import load_recipe
from vqbench.registry import METHODS
from vqbench.reports.experiment import load_experiment
from vqbench.tokenizer import build_tokenizer, seeded_quantizer
from vqbench.tracking.mirror import Mirror
from vqbench.training import codewatch
from vqbench.training import collapse as watching
from vqbench.training.codewatch import CodeWatch
from vqbench.training.collapse import Collapse, CollapsedError, CollapseWatch, DivergedError, hardly_used, symptom
from vqbench.training.feature_training import FeatureCoder
from vqbench.training.feature_training import fit as fit_features
from vqbench.training.fit import TrainingOutcome, train
from vqbench.training.recorder import CHECKPOINT

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


@METHODS.register("scrambled")
class Scrambled(Lazy):
    """The nearest of fixed codes and, from a step on, any code: all are in use and say nothing (Nobody, 2026)."""

    presets = {"late": {"from_images": 820}}

    def __init__(self, config):
        super().__init__(config)
        self.codes *= 0.3

    def forward(self, z):
        rows = z.permute(0, 2, 3, 1)
        if self.training and self.images >= self.config.from_images:
            indices = torch.randint(256, rows.shape[:3])
        else:
            indices = torch.cdist(rows.flatten(0, 2).detach(), self.codes).argmin(1).view(rows.shape[:3])
        q = self.decode_indices(indices)
        pull = {"pull": 0.1 * (z - q).square().mean()}
        return Quantized(z + (q - z).detach(), indices, pull, continuous=z)
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


CURVES = json.loads((Path(__file__).parent / "golden" / "vaevq_curves.json").read_text())


def watched(images: list[int], errors: Any, total: int, **more: Any) -> tuple[CollapseWatch, list[Collapse | None]]:
    """A watch that was shown squared errors after so many images, and what it found after each."""
    watch, found = CollapseWatch(total), []
    continuous, alignment = more.get("continuous"), more.get("alignment")
    for i, (seen, before) in enumerate(zip(images, [0, *images], strict=False)):
        path = None if continuous is None else torch.tensor(continuous[i])
        watch.observe(seen - before, torch.tensor(errors[i]), path)
        watch.judge(seen, "", {} if alignment is None else {"alignment_rms": alignment[i]})
        found.append(watch.collapse)
    return watch, found


def test_the_curves_of_five_real_trainings_of_which_one_lost_its_codes() -> None:
    images, flagged = CURVES["images"], {}
    for name, cell in CURVES["cells"].items():
        columns = (cell.get(key) for key in ("loss/pixel", "loss/continuous_pixel", "quantizer/alignment_rms"))
        errors, continuous, alignment = columns
        watch, found = watched(images, errors, 20_000, continuous=continuous, alignment=alignment)
        if any(found):
            flagged[name] = (watch, found)
    assert list(flagged) == ["vlq_rcs_dcr"]
    watch, found = flagged["vlq_rcs_dcr"]
    first = next(i for i, collapse in enumerate(found) if collapse is not None)
    assert 12_000 < images[first] < 15_000
    assert {collapse.images for collapse in found[first:] if collapse is not None} == {images[first]}
    assert None not in found[first:]
    assert watch.collapse is not None
    assert watch.collapse.kind == "collapsed"
    # of the end, whatever it was when it was noticed
    said = re.fullmatch(
        r"the codes have fallen behind their own best: squared error (0\.0\d+), (2\.\d) times what it was after "
        r"([\d,]+) images \((0\.03\d?)\); the continuous path is at (0\.04\d?); "
        r"alignment_rms (\d\d), at the best (\d\.\d)",
        watch.collapse.reason,
    )
    assert said is not None, watch.collapse.reason
    assert 9_000 < int(said[3].replace(",", "")) < 11_000
    assert float(said[1]) / float(said[4]) == pytest.approx(float(said[2]), rel=0.05)
    late = watch.lasting(images[first] + 2_000)
    assert late is not None
    assert late.collapse == watch.collapse


@pytest.mark.parametrize(("budget", "by"), [(60_000, 15_000), (200_000, 21_000), (1_000_000, 101_000)])
def test_the_same_loss_of_codes_is_seen_however_long_the_training_is(budget: int, by: int) -> None:
    """The curves go on as they ended: the codes' best was early and short, measured by such a budget."""
    step, flagged = 256, {}
    images = list(range(step, max(24_000, budget // 8) + 1, step))
    for name, cell in CURVES["cells"].items():
        known = dict(zip(CURVES["images"], cell["loss/pixel"], strict=True))
        tail = cell["loss/pixel"][-20:]
        errors = [known.get(seen, tail[i % 20]) for i, seen in enumerate(images)]
        _, found = watched(images, errors, budget)
        if any(found):
            flagged[name] = images[next(i for i, collapse in enumerate(found) if collapse is not None)]
    assert list(flagged) == ["vlq_rcs_dcr"]
    assert flagged["vlq_rcs_dcr"] <= by


SEARCH = json.loads((Path(__file__).parent / "golden" / "vaevq_search_curves.json").read_text())


@pytest.mark.parametrize("name", SEARCH["cells"])
def test_the_trainings_of_the_search_that_lost_their_codes_are_flagged_to_the_end_and_no_other(name: str) -> None:
    """One of them sways about the bound, and ends below it."""
    cell = SEARCH["cells"][name]
    images = [min(256 * (i + 1), cell["budget"]) for i in range(len(cell["loss/pixel"]))]
    watch, found = watched(images, cell["loss/pixel"], cell["budget"])
    if cell["lost"]:
        first = next(i for i, collapse in enumerate(found) if collapse is not None)
        assert images[first] < 0.6 * cell["budget"]
        assert None not in found[first:]
        assert watch.collapse is not None
    else:
        assert not any(found)


def test_of_what_is_not_known_nothing_is_said() -> None:
    """A method without a continuous path and without sigmas."""
    images = list(range(16, 6401, 16))
    watch, _ = watched(images, [0.01 if seen < 3000 else 0.04 for seen in images], 6400)
    assert watch.collapse is not None
    assert watch.collapse.reason.endswith("images (0.01)")


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    budget=st.integers(1, 500),
    batch=st.sampled_from([1, 4, 16, 64]),
    falls=st.floats(0, 4),
)
def test_noise_alone_is_never_a_collapse(seed: int, budget: int, batch: int, falls: float) -> None:
    """Budgets of one step to five hundred, judged after each; batches of 16 differ by a quarter, as in `photos`."""
    draw = np.random.default_rng(seed)
    images, total = [batch * (i + 1) for i in range(budget)], batch * budget
    level = np.log(0.03) + falls * np.exp(-5 * np.arange(budget) / budget)  # falls, and stays
    errors = np.exp(level + draw.normal(0, 0.25 * (16 / batch) ** 0.5, budget)).tolist()
    _, found = watched(images, errors, total)
    assert not any(found)


def test_a_setback_that_passes_is_forgotten_and_one_batch_is_none() -> None:
    images = list(range(16, 20_001, 16))
    errors = [0.5 if seen == 8_000 else 0.12 if 10_000 <= seen < 11_500 else 0.03 for seen in images]
    watch, found = watched(images, errors, 20_000)
    noticed = [seen for seen, collapse in zip(images, found, strict=True) if collapse is not None]
    assert noticed
    assert 10_000 < noticed[0] < noticed[-1] < 13_500
    assert watch.collapse is None
    images = list(range(160, 200_001, 160))  # of a budget ten times as long it is a tenth
    _, found = watched(images, [0.12 if 100_000 <= seen < 101_500 else 0.03 for seen in images], 200_000)
    assert not any(found)


def test_what_was_best_before_an_adversary_is_no_measure_after_it() -> None:
    """And the training has as long to find its place as at the start."""
    watch, judged = CollapseWatch(20_000), {}
    for seen in range(16, 20_001, 16):
        if seen == 8_016:
            watch.forget()
        error = 0.03 if seen <= 8_000 else 0.06 if seen <= 14_000 else 0.12
        watch.observe(16, torch.tensor(error))
        watch.judge(seen, "")
        judged[seen] = watch.collapse
    assert not any(judged[seen] for seen in judged if seen <= 14_000)
    assert watch.collapse is not None
    assert "2.0 times what it was after" in watch.collapse.reason


def test_codes_that_were_lost_before_an_adversary_came_stay_lost() -> None:
    watch = CollapseWatch(20_000)
    for seen in range(16, 20_001, 16):
        if seen == 12_016:
            assert watch.collapse is not None
            watch.forget()
        watch.observe(16, torch.tensor(0.03 if seen <= 8_000 else 0.09))
        watch.judge(seen, "")
    assert watch.collapse is not None
    assert watch.collapse.images < 12_000


def test_the_watch_goes_on_from_a_checkpoint_and_from_one_of_an_earlier_version() -> None:
    images = list(range(16, 6401, 16))
    errors = [0.01 if seen < 3000 else 0.04 for seen in images]
    through, _ = watched(images, errors, 6400)
    for stop in (0, 100, 187, 230, 300):
        before, _ = watched(images[:stop], errors[:stop], 6400)
        resumed = CollapseWatch(6400)
        resumed.restore(json.loads(json.dumps(before.state())))
        for seen, error in zip(images[stop:], errors[stop:], strict=True):
            resumed.observe(16, torch.tensor(error))
            resumed.judge(seen, "")
        assert resumed.state() == through.state()
    earlier = CollapseWatch(6400)
    earlier.restore({"since": 3_200, "reason": "perplexity 1.0 of 256 codes"})
    assert earlier.collapse is not None
    assert earlier.collapse.images == 3_200
    for seen in images[200:]:
        earlier.observe(16, torch.tensor(0.04))
        earlier.judge(seen, "")
    assert earlier.collapse is None


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


class Smooth(Images):
    """Smooth images, of which much is learned in a few hundred."""

    def __init__(self, folder: Path) -> None:
        paths = sorted(write_images(folder, 40, side=20).iterdir())
        self.pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
        self.ids = [path.stem for path in paths]

    def load(self, i: int) -> Any:
        return self.pixels[i]


def scramble(folder: Path, stop: bool = False) -> TrainingOutcome:
    """A training whose codes are scrambled after 700 of 1,000 images; 512 tokens a step."""
    r = recipe(images=1000, learning_rate=3e-3, checkpoint_images=400)
    stream = TrainingStream(Smooth(folder / "images"), r.resolution, 5, r.random_crop, r.flip)
    tokenizer = build_tokenizer("scrambled", {"from_images": 700}, r, 0)
    return train(tokenizer, stream, r, seed=0, folder=folder, stop_on_collapse=stop)


def test_codes_that_say_nothing_more_are_seen_though_all_are_in_use(
    short_window: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(watching, "LEAST_SMOOTHING", 64)
    collapse = scramble(tmp_path / "through").collapse
    assert collapse is not None
    assert 700 < collapse.images < 850
    assert "codes have fallen behind their own best" in collapse.reason
    assert "continuous path is at" in collapse.reason
    points = [json.loads(line) for line in (tmp_path / "through" / "metrics.jsonl").open()]
    assert points[-1]["perplexity_100k"] > 200
    with pytest.raises(CollapsedError) as error:
        scramble(tmp_path / "stopped", stop=True)
    assert error.value.collapse.images == collapse.images
    state = torch.load(tmp_path / "stopped" / "checkpoints" / CHECKPOINT, weights_only=True)
    assert collapse.images + 100 <= state["images_seen"] < collapse.images + 130
    assert state["collapse"]["reason"] == error.value.collapse.reason
    assert scramble(tmp_path / "stopped").collapse == collapse  # and on to the end, as if nothing had been


def test_in_the_features_track_too(short_window: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(watching, "LEAST_SMOOTHING", 64)
    r = load_recipe("atomic", {"images": 1600, "codebook_size": 256, "codebook_dim": 4, "learning_rate": 1e-2})
    features = np.random.default_rng(0).normal(size=(400, 1, 1, 4)).astype(np.float32)
    found = []
    for stop in (False, True):
        quantizer = seeded_quantizer("scrambled", {"from_images": 900}, 0)
        fitting = partial(
            fit_features, FeatureCoder(4, quantizer, 0), features, r, seed=0, data_seed=0,
            curves=tmp_path / "metrics.jsonl", report=lambda *_: None, stop_on_collapse=stop,
        )  # fmt: skip
        if stop:
            with pytest.raises(CollapsedError) as error:
                fitting()
            found.append(error.value.collapse)
        else:
            found.append(fitting()[1])
    through, stopped = found
    assert through is not None
    assert "fallen behind their own best" in through.reason
    assert 900 < through.images == stopped.images < 1200


def test_an_error_that_nobody_minimises_is_not_watched(tmp_path: Path) -> None:
    fit(recipe(pixel_weight=0.0), tmp_path)
    state = torch.load(tmp_path / "checkpoints" / CHECKPOINT, weights_only=True)
    assert state["collapse"]["errors"]["codes"]["images"] == 0


def test_the_command_stops_and_its_row_says_why(vqbench: Command, tmp_path: Path) -> None:
    """256 tokens an image: 100,000 tokens are 391 images. The second is noticed too late to be stopped."""
    images, plugin = write_images(tmp_path / "images", 60), tmp_path / "impatient.py"
    plugin.write_text(LAZY + "\n\nfrom vqbench.training import collapse\n\ncollapse.LEAST_SMOOTHING = 64\n")
    answer = vqbench(
        "run", "--methods", "lazy,scrambled@late", "--plugin", plugin, "--stop-on-collapse", "--dataset",
        f"folder:{images}", "--images", "960", "--metrics", "psnr,usage", "--runs", tmp_path / "runs", "--name", "x",
        *make_settings("channel_multipliers=1,2", "learning_rate=3e-3"),
    )  # fmt: skip
    assert answer.code == 1
    row, late = (row for group in load_experiment(tmp_path / "runs", "x").groups for row in group.rows)
    assert row["error"]["type"] == "CollapsedError"
    assert row["collapse"]["kind"] == "collapsed"
    assert 391 <= row["collapse"]["images"] <= 480
    assert late["state"] == "done"
    assert 820 < late["collapse"]["images"] <= 960
    for found in (row, late):
        assert json.loads((Path(found["path"]) / "result.json").read_text())["collapse"] == found["collapse"]
    client = Mirror(tmp_path / "runs").client
    experiment = client.get_experiment_by_name("x").experiment_id
    runs = client.search_runs([experiment], "tags.collapse = 'collapsed'")
    tagged = {run.data.tags["method"]: run.data for run in runs}
    for found, reason in ((row, "perplexity 1.0 of 256 codes"), (late, "fallen behind their own best: squared error")):
        assert reason in tagged[found["method"]].tags["collapse_reason"]
        assert tagged[found["method"]].metrics["collapse_images"] == found["collapse"]["images"]
    flagged = f"scrambled@late s0: collapsed after {late['collapse']['images']} images: {late['collapse']['reason']}"
    assert flagged in " ".join(answer.out.split())
    assert "scrambled@late (collapsed)" in answer.out
    assert max(map(len, answer.out[: answer.out.index("results")].splitlines())) <= 100


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
