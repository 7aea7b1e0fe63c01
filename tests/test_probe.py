"""What a plan costs: a probe of each method, and the arithmetic from its steps to hours and bytes."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.commands import SMALL, Answer, Command, settings
from helpers.signs import PLUGIN

from vqbench.cell.measured import Measured, steps_between
from vqbench.cell.stopwatch import STRETCH_STEPS, Moment, evaluation_times, shortened, training_times
from vqbench.cli.options import Typed
from vqbench.cli.terminal_plans import print_costs
from vqbench.data.dataset import Images
from vqbench.data.stream import TrainingStream
from vqbench.errors import UsageError
from vqbench.planning.cost import CellCost, PlanCost, cell_cost
from vqbench.planning.plan import Plan, make_plan, resolve
from vqbench.planning.request import RunRequest
from vqbench.recipe import Recipe, load_recipe
from vqbench.registry import METHODS
from vqbench.results.checkpoint import images_in_checkpoint
from vqbench.tokenizer import build_tokenizer
from vqbench.training.fit import train

IMAGES = 800
METRICS = ("psnr", "usage")


def recipe_of(**fields: Any) -> Recipe:
    return load_recipe("tiny", {"batch_size": 8, "images": IMAGES, "warmup_images": 0, **fields})


class Grey(Images):
    """Training images that need no disk."""

    content_key = ""
    ids = tuple("abcd")

    def load(self, i: int) -> Any:
        return np.full((32, 32, 3), 60 * i, np.uint8)

    def measure(self, i: int) -> tuple[int, int]:
        return 32, 32


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint after 24 images, as training writes it."""
    folder = tmp_path_factory.mktemp("training")
    small = {"channels": 8, "latent_channels": 8, "codebook_size": 32, "codebook_dim": 8}
    recipe = recipe_of(images=24, ema_halflife_images=8, **small)
    config = METHODS.get("fsq").matched(32, 8)
    stream = TrainingStream(Grey(), 32, 0, random_crop=False, flip=False)
    train(build_tokenizer("fsq", config, recipe, 0), stream, recipe, seed=0, folder=folder)
    return folder / "checkpoints" / "last.pt"


class Workplace:
    """Three seeds of a method, cached, partial and missing, and of one that raises; and what a probe says of them."""

    def __init__(self, vqbench: Command, root: Path, images: Path, checkpoint: Path) -> None:
        plugin = root / "broken.py"
        plugin.write_text(PLUGIN.replace('"signs"', '"broken"'))
        METHODS.add_file(plugin)
        self.runs = root / "runs"
        request = RunRequest(
            ("fsq", "broken"), f"folder:{images}", seeds=(0, 1, 2), images=IMAGES, runs=self.runs, plugins=(plugin,),
            settings=(*SMALL, "broken.explode_at=16"),
        )  # fmt: skip
        self.plan = make_plan(resolve(request), METRICS)
        folders = [cell.folder for cell in self.plan.cells if cell.label == "fsq"]
        for folder in folders[:2]:
            (folder.path / "checkpoints").mkdir(parents=True)
        result = {"state": "done", "scores": dict.fromkeys(METRICS, 1.0)}
        (folders[0].path / "result.json").write_text(json.dumps(result))
        folders[1].checkpoint.write_bytes(checkpoint.read_bytes())
        self.before = self.everything()
        self.answer: Answer = vqbench(
            "run", "--methods", "fsq,broken", "--plugin", plugin, "--dataset", f"folder:{images}", "--seeds", "0,1,2",
            "--images", IMAGES, "--metrics", ",".join(METRICS), "--runs", self.runs, *settings("broken.explode_at=16"),
            "--dry-run", "--probe", "--json",
        )  # fmt: skip

    def everything(self) -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in self.runs.rglob("*")}

    def costs(self, method: str) -> dict[str, dict[str, Any]]:
        return {row["state"]: row["cost"] for row in self.answer.objects if row["method"] == method}


@pytest.fixture(scope="module")
def workplace(vqbench: Command, tmp_path_factory: pytest.TempPathFactory, images: Path, checkpoint: Path) -> Workplace:
    return Workplace(vqbench, tmp_path_factory.mktemp("probe"), images, checkpoint)


def test_a_probe_writes_nothing_below_the_runs_directory(workplace: Workplace) -> None:
    assert workplace.everything() == workplace.before
    assert [row["cell"] for row in workplace.answer.objects] == [c.folder.name for c in workplace.plan.cells]


def test_cells_cost_what_is_left_of_them(workplace: Workplace) -> None:
    costs = workplace.costs("fsq")
    assert costs["missing"]["images"] == IMAGES
    assert costs["partial"]["images"] == IMAGES - 24
    assert costs["cached"]["seconds"] == costs["cached"]["disk_bytes"] == costs["cached"]["images"] == 0
    for key in ("overhead_seconds", "training_seconds", "evaluation_seconds", "seconds", "images_per_s",
                "device_hours", "disk_bytes", "peak_bytes"):  # fmt: skip
        assert math.isfinite(costs["missing"][key])
        assert costs["missing"][key] > 0
    assert 0 < costs["partial"]["training_seconds"] < costs["missing"]["training_seconds"]
    assert costs["missing"]["peak_bytes"] > costs["missing"]["disk_bytes"]


def test_a_method_that_breaks_says_why_and_leaves_the_others_alone(workplace: Workplace) -> None:
    assert workplace.answer.code == 1
    broken = [row["cost"] for row in workplace.answer.objects if row["method"] == "broken"]
    assert len(broken) == 3
    for cost in broken:
        assert cost["problem"] == "as the config asked"
        assert "--dry-run" in cost["hint"]
    assert workplace.costs("fsq")["missing"]["problem"] is None
    assert "Traceback" not in workplace.answer.err


def test_features_are_probed_too_and_the_table_fits(vqbench: Command, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(80, 2, 2, 6)).astype(np.float32))
    answer = vqbench(
        "run", "--recipe", "atomic", "--methods", "fsq", "--features", tmp_path / "x.npy", "--runs", tmp_path / "runs",
        "--set", "codebook_size=16", "--set", "codebook_dim=4", "--dry-run", "--probe",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert not (tmp_path / "runs").exists()
    lines = answer.out.splitlines()
    assert all(len(line) <= 100 for line in lines if not line.startswith("results"))
    row = next(line for line in lines if line.startswith("fsq ") and line.split()[1] == "1")
    assert float(row.split()[4]) > 0
    assert any(line.startswith("total") for line in lines)


def test_probe_without_dry_run_is_refused() -> None:
    with pytest.raises(UsageError, match="--probe"):
        Typed({RunRequest: {}}, probe=True).run(("fsq",))


def test_a_checkpoint_is_read_without_torch(checkpoint: Path, tmp_path: Path) -> None:
    assert images_in_checkpoint(checkpoint) == 24
    cut = tmp_path / "last.pt"
    cut.write_bytes(checkpoint.read_bytes()[:1000])
    assert images_in_checkpoint(cut) == images_in_checkpoint(tmp_path / "none.pt") == 0


@pytest.mark.parametrize(
    ("start", "kinds"), [(0, (False,)), (400, (False, True)), (10**6, (False,))], ids=["always", "late", "never"]
)
def test_times_of_steps_are_told_from_warm_up_and_checkpoints(start: int, kinds: tuple[bool, ...]) -> None:
    whole = recipe_of(gan="hinge", discriminator_layers=1, gan_start_images=start)
    short = shortened(whole, STRETCH_STEPS)
    assert short.steps == 20
    clock, reports = 100.0, []
    seen: set[bool] = set()
    for step in range(20):
        adversarial = step * 8 >= short.gan_start_images
        clock += 3.0 if adversarial else 1.0
        clock += 0.0 if adversarial in seen else 7.0  # the first of its kind
        clock += 0.5 if step and step % 5 == 0 else 0.0  # after a checkpoint
        seen.add(adversarial)
        reports.append(Moment("train", 8 * (step + 1), 160, clock))
    times = training_times(reports, short)
    steps = {"always": (0, 3), "late": (1, 3), "never": (1, 0)}
    name = "always" if start == 0 else "late" if start == 400 else "never"
    assert (times.step, times.adversarial_step) == pytest.approx(steps[name])
    assert times.checkpoint == pytest.approx(0.5)
    assert times.warm_up == pytest.approx(7.0 if name == "late" else 0.0)  # the very first is the process's start


def test_times_of_an_evaluation_are_told_apart() -> None:
    clock, reports = 10.0, []
    for done in range(16, 97, 16):
        clock += (1.6 if done <= 48 else 4.8) + (2.0 if done in (16, 64) else 0.0)
        reports.append(Moment("evaluate", done, 96, clock))
    times = evaluation_times(reports, 48, spent=clock + 1.0 - 10.0)
    assert (times.reference_image, times.image) == pytest.approx((0.1, 0.3))
    assert times.fixed == pytest.approx(5.0)


MEASURED = Measured(
    overhead_seconds=10, step_seconds=1, adversarial_step_seconds=3, checkpoint_seconds=2, evaluation_seconds=5,
    evaluation_image_seconds=0.1, reference_image_seconds=0.2, reference_is_cached=False, checkpoint_bytes=3000,
    weights_bytes=1000, folder_bytes=200, image_bytes=4, point_bytes=10, copied_bytes=1100, reference_image_bytes=8,
    device="cuda:0", device_name="a GPU",
)  # fmt: skip


def test_the_discriminator_costs_from_where_it_begins() -> None:
    recipe = recipe_of(gan="hinge", discriminator_layers=1, gan_start_images=600, checkpoint_images=200, log_images=80)
    assert steps_between(recipe, 0, 800) == (75, 25)
    assert steps_between(recipe, 640, 800) == (0, 20)
    assert steps_between(recipe_of(), 0, 800) == (100, 0)
    whole, rest, weighed = (
        cell_cost(MEASURED, recipe, done=done, validation_images=50, devices=2, scoring_seconds=1)
        for done in (0, 600, 800)
    )
    assert whole.training_seconds == 75 + 3 * 25
    assert whole.seconds == 10 + 150 + 4 * 2 + 5 + 5 + 1
    assert (rest.training_seconds, rest.checkpoint_seconds, rest.images) == (75, 2, 200)
    assert (weighed.training_seconds, weighed.checkpoint_seconds, weighed.images) == (0, 0, 0)
    assert whole.disk_bytes == 1000 + 200 + 50 * 4 + 10 * 10
    assert whole.peak_bytes == 2 * 3000
    assert whole.device_hours == pytest.approx(2 * whole.seconds / 3600)
    assert whole.images_per_s == pytest.approx(800 / 150)


def test_a_table_adds_up(workplace: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    plan: Plan = workplace.plan
    cost = cell_cost(MEASURED, recipe_of(), done=0, validation_images=12, devices=1, scoring_seconds=0)
    broken, first = CellCost(problem="no such thing", hint="mend it"), dataclasses.replace(cost, reference_seconds=360)
    cells = tuple(broken if c.label == "broken" else first if i == 0 else cost for i, c in enumerate(plan.cells))
    costs = PlanCost(plan, cells, (True,) * 6, "a GPU", reference_bytes=500)
    fsq, other = costs.methods()
    assert (fsq.cells, fsq.seconds, fsq.disk_bytes) == (3, pytest.approx(3 * cost.seconds), 3 * cost.disk_bytes)
    assert fsq.peak_bytes == 2 * cost.disk_bytes + cost.peak_bytes
    assert other.problem == "no such thing"
    assert costs.total().device_hours == pytest.approx(fsq.device_hours + 0.1)
    assert costs.total().disk_bytes == fsq.disk_bytes + 500
    print_costs(costs)
    out = capsys.readouterr().out
    assert all(len(line) <= 100 for line in out.splitlines())
    for said in ("GPU-hours", "broken (failed)", "reference features, once", "failed broken: no such thing", "> "):
        assert said in out
