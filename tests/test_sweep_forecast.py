"""What a sweep has still to do, said before it does it: its trials, their cells, what these cost."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import yaml
from conftest import typed
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sweep import Place, Pretence, pretended, request

from vqbench import probing
from vqbench.cost import Measured
from vqbench.plan import Cell
from vqbench.preflight import model_size
from vqbench.sweeps import forecast as forecasts
from vqbench.sweeps.backend import OpenStudy
from vqbench.sweeps.costs import SweepCosts, probe_sweep
from vqbench.sweeps.forecast import forecast
from vqbench.sweeps.samplers import blind_trials
from vqbench.sweeps.studies import plan_studies
from vqbench.sweeps.sweep import plan_sweep
from vqbench.terminal_plans import print_sweep_costs
from vqbench.view import Silent

SPACES = {
    "finite": {"recipe": {"codebook_size": [2**n for n in range(3, 12)]}},
    "continuous": {"recipe": {"codebook_size": [8, 16, 32], "learning_rate": {"low": 1e-5, "high": 1e-2, "log": True}}},
}
SAMPLERS = ["tpe", "random", "nsga2", "grid"]
SECONDS_PER_VALUE = 1e-6


@pytest.fixture
def place(tmp_path: Path) -> Place:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(3, 2, (40, 2, 2, 6)).astype(np.float32))
    found = Place(tmp_path)
    found.write("sizes.yaml", {"recipe": {"codebook_size": [8, 16, 32]}})
    return found


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([(s, k) for s in SAMPLERS for k in SPACES if (s, k) != ("grid", "continuous")]),
    st.lists(st.sampled_from(["done", "pruned", "failed", "failed for good", "orphan", "resumed"]), max_size=7),
    st.integers(0, 3),
)
def test_what_is_certain_comes_so(
    tmp_path_factory: pytest.TempPathFactory, kind: tuple[str, str], before: list[str], seed: int
) -> None:
    """Whatever has become of the trials before; and nothing is asked of the study itself."""
    sampler, space = kind
    asked = request(tmp_path_factory.mktemp("asked"), SPACES[space], sampler=sampler, trials=9, sampler_seed=seed)
    (plan,), _ = plan_studies(asked)
    storage = optuna.storages.InMemoryStorage()
    study = OpenStudy(plan, asked, storage, ["minimize"], 100)
    again = 0
    for i, end in enumerate(before):
        if end == "resumed":
            assert study.put_back_failed() + study.put_back_orphans(lambda _: 0) == again
            again = 0
            continue
        trial, _ = study.ask()
        again += end in ("failed", "orphan")
        trial.set_user_attr("images", 0)
        if end == "done":
            study.tell(trial, [float(i)], "done", {})
        elif end != "orphan":
            stage = "plan" if end == "failed for good" else "train"
            study.tell(trial, None, end.split()[0], {"error": {"type": "RuntimeError", "stage": stage}})
    trials = len(study.study.trials)
    foreseen = study.foresee(100, guess=True)
    assert len(study.study.trials) == trials
    assert len(foreseen) == study.left
    certain = [drawn for drawn, is_certain in foreseen if is_certain]
    waiting = len([t for t in study.study.trials if t.state.name == "WAITING"])
    assert len(certain) >= again + waiting
    if blind_trials(sampler, 9) >= 9:
        assert len(certain) == study.left
    assert study.foresee(100, guess=False) == foreseen[: len(certain)]

    on = OpenStudy(plan, asked, storage, ["minimize"], 100)
    assert on.put_back_failed() + on.put_back_orphans(lambda _: 0) == again
    assert on.remaining == len(foreseen)
    came = []
    for drawn in certain:
        trial, point = on.ask()
        came.append(point)
        on.tell(trial, [float(len(str(drawn)))], "done", {})
    back = again + waiting  # in an order of their own
    assert sorted(map(str, came[:back])) == sorted(map(str, certain[:back]))
    assert came[back:] == certain[back:]


def test_a_dry_run_counts_cells_and_says_what_is_not_drawn_yet(place: Place) -> None:
    space = place.write("rates.yaml", {"recipe": {"codebook_size": [8, 16], "learning_rate": {"low": 1e-4, "high": 1}}})
    ask = ["vqgan", *place.typed("--space", space, "--trials", 9, "--sweep-name", "s", "--seeds", "0,1", "--dry-run")]
    (study,) = typed("sweep", *ask, "--json").objects
    assert study["cells"] == {"missing": 8, "undrawn": 10}  # two seeds; four trials are drawn at random
    assert (study["told"], study["left"]) == (0, 9)
    assert "8 missing, 10" in typed("sweep", *ask).out
    assert not place.runs.exists()


def test_told_trials_are_not_counted_again(place: Place) -> None:
    report, _ = pretended(place, place.root, str(place.root / "sizes.yaml"), Pretence(1), trials=2, name="s")
    assert [row["state"] for row in report.rows] == ["done"] * 2
    ask = place.typed("--space", place.root / "sizes.yaml", "--trials", 3, "--sweep-name", "s", "--dry-run", "--json")
    (study,) = typed("sweep", "vqgan", *ask).objects
    assert (study["told"], study["left"], study["cells"]) == (2, 1, {"missing": 1})


# costs


def priced(cell: Cell, _: Any) -> Measured:
    """A step takes as long as the model is large."""
    size = model_size(cell)
    numbers = dict.fromkeys((field.name for field in dataclasses.fields(Measured)), 0)
    texts = {"device": "cpu", "device_name": "abacus", "reference_is_cached": True}
    return Measured(**{**numbers, "step_seconds": SECONDS_PER_VALUE * size, "weights_bytes": 4 * size, **texts})


@pytest.fixture
def costs(place: Place, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Cell], SweepCosts]:
    """Of a sweep over sizes and rates, and the cells that it will train first."""
    monkeypatch.setattr(probing, "probe", priced)
    monkeypatch.setattr(forecasts, "MOST_TRIALS", 6)
    space = {"recipe": {"codebook_size": [8, 64, 4096], "learning_rate": {"low": 1e-4, "high": 1e-2}}}
    asked = request(place.root, space, sampler="random", trials=9)
    run = dataclasses.replace(asked.run, dataset="", features=place.root / "x.npy", recipe="atomic", images=64)
    plan = plan_sweep(dataclasses.replace(asked, run=dataclasses.replace(run, seeds=(0, 1))), Silent())
    found = forecast(plan, guess=True)
    (study,) = found.values()
    assert (len(study.trials), study.left) == (6, 9)
    return [cell for trial in study.trials for cell in trial.cells], probe_sweep(plan, found, Silent())


def seconds(cells: list[Cell]) -> float:
    """Closed form: steps times the values of each model."""
    return sum(cell.recipe.steps * SECONDS_PER_VALUE * model_size(cell) for cell in cells)


def test_the_cost_is_that_of_the_cells_that_will_be_drawn(costs: tuple[list[Cell], SweepCosts]) -> None:
    cells, found = costs
    sizes = [cell.spec["config"]["codebook_size"] for cell in cells]
    assert len(set(sizes)) > 1
    total = found.expected.total()
    assert total.cells == 18
    # three trials are too far ahead, and counted as the first three
    assert total.seconds == pytest.approx(seconds([*cells, *cells[:6]]))
    assert total.disk_bytes == pytest.approx(4 * sum(map(model_size, [*cells, *cells[:6]])), abs=18)
    ends = [next(cell for cell in cells if cell.spec["config"]["codebook_size"] == size) for size in (8, 4096)]
    assert found.least.total().seconds == pytest.approx(18 * seconds(ends[:1]))
    assert found.most.total().seconds == pytest.approx(18 * seconds(ends[1:]))
    (study,) = found.of_a_study.values()
    assert study["cells_to_train"] == 18
    assert study["seconds"] == pytest.approx(total.seconds, abs=1e-5)
    assert study["least"]["seconds"] < study["seconds"] / 18 < study["most"]["seconds"]


def test_the_table_of_costs_says_between_what_they_lie(
    costs: tuple[list[Cell], SweepCosts], capsys: pytest.CaptureFixture[str]
) -> None:
    print_sweep_costs(costs[1])
    shown = capsys.readouterr().out
    least, most = costs[1].least.total().device_hours, costs[1].most.total().device_hours
    assert f"{least:.3g} CPU-hours if each trial were as small as it can be drawn, {most:.3g} if as large" in shown


def test_a_real_probe_of_a_sweep_measures_both_ends_of_what_is_drawn(tmp_path: Path) -> None:
    """8 codes cost less than 65,536."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(80, 2, 2, 6)).astype(np.float32))
    (tmp_path / "sizes.yaml").write_text(yaml.safe_dump({"recipe": {"codebook_size": [65536, 16, 256]}}))
    answer = typed(
        "sweep", "vqgan", "--recipe", "atomic", "--features", tmp_path / "x.npy", "--space", tmp_path / "sizes.yaml",
        "--trials", "3", "--images", "64", "--runs", tmp_path / "runs", "--name", "x", "--set", "batch_size=16",
        "--set", "codebook_dim=4", "--dry-run", "--probe", "--json",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    (study,) = answer.objects
    cost = study["cost"]
    more_weights = (65536 - 16) * 4 * 4  # float32
    assert cost["most"]["disk_bytes"] - cost["least"]["disk_bytes"] > more_weights
    assert cost["most"]["training_seconds"] > cost["least"]["training_seconds"]
    assert cost["cells_to_train"] == 3
    assert 3 * cost["least"]["disk_bytes"] < cost["disk_bytes"] < 3 * cost["most"]["disk_bytes"]
    assert not (tmp_path / "runs" / "x").exists()
