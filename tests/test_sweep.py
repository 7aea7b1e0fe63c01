"""`vqbench sweep`: spaces, budgets, and trials that are the very cells of `run`."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
import yaml
from conftest import Answer, Command, settings, typed, write_images
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import vqbench as package
from vqbench.config import build
from vqbench.errors import UsageError
from vqbench.planning.request import RunRequest
from vqbench.planning.view import Silent
from vqbench.recipe import Recipe
from vqbench.registry import METHODS
from vqbench.reports.sweep import dominates
from vqbench.results.checkpoint import images_in_checkpoint
from vqbench.space import Choices, Range
from vqbench.sweeps.backend import OpenStudy, directions_of, open_storage, suggest
from vqbench.sweeps.commands import more_seeds
from vqbench.sweeps.grammar import read_spaces, space_names
from vqbench.sweeps.refusals import check_objectives, refuse_odd
from vqbench.sweeps.request import SweepRequest
from vqbench.sweeps.spaces import as_text, draw, grid, make_parameter, settings_of
from vqbench.sweeps.studies import StudyPlan, plan_studies
from vqbench.sweeps.sweep import execute_sweep, plan_sweep
from vqbench.sweeps.watched import watched
from vqbench.wording import masked

optuna.logging.set_verbosity(optuna.logging.ERROR)
fast = hypothesis_settings(max_examples=60, deadline=None)
BUILT_IN = ("vqgan", "fsq", "sqvae", "vaevq")


def parameter(domain: Range | Choices, field: str = "learning_rate", owner: str = "recipe", cls: type = Recipe) -> Any:
    return make_parameter(owner, cls, field, domain, "vqbench show tiny")


def request(tmp: Path, space: dict[str, Any] | str, methods: str = "vqgan", **fields: Any) -> SweepRequest:
    """A sweep over a space that is written down in a file."""
    if isinstance(space, dict):
        path = tmp / "space.yaml"
        path.write_text(yaml.safe_dump(space, sort_keys=False))
        space = str(path)
    run = RunRequest(tuple(methods.split(",")), "photos", runs=tmp / "runs", settings=fields.pop("settings", ()))
    found = SweepRequest(run=run, spaces=(space,), **fields)
    return dataclasses.replace(found, space=read_spaces(found.spaces))


# the grammar


@fast
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_that_is_typed_is_the_very_same_number(value: float) -> None:
    typed = parameter(Choices([value, None]), "kl_weight", "vaevq", METHODS.get("vaevq").Config).typed(value)
    assert typed == value
    assert repr(typed) == repr(value)
    if value > 0:
        assert build(Recipe, {"learning_rate": as_text(value)}, "recipe", "").learning_rate == value


@given(st.lists(st.floats(0, 0.999), min_size=2, max_size=2), st.booleans(), st.lists(st.integers(2, 99), min_size=1))
def test_lists_and_switches_are_typed_as_they_are(betas: list[float], switch: bool, levels: list[int]) -> None:
    assert build(Recipe, {"betas": as_text(betas), "flip": as_text(switch)}, "recipe", "").betas == tuple(betas)
    assert build(Recipe, {"flip": as_text(switch)}, "recipe", "").flip is switch
    assert build(METHODS.get("fsq").Config, {"levels": as_text(levels[:8])}, "fsq", "").levels == tuple(levels[:8])


bounds = st.floats(1e-12, 1e6, allow_nan=False)


@fast
@given(bounds, st.floats(1.01, 1e5), st.booleans(), st.one_of(st.none(), st.floats(0.01, 0.99)), st.booleans())
def test_what_is_drawn_obeys_its_range(low: float, factor: float, log: bool, part: float | None, whole: bool) -> None:
    high = low * factor
    step = None if log or part is None else (high - low) * part
    if whole:
        low, high = float(int(low) + 1), float(int(high) + 2)
        step = None if step is None else float(max(1, min(int(step), int(high - low))))
    field = "images" if whole else "learning_rate"
    p = parameter(Range(low, high, log, step), field)
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    value = suggest(trial, p)
    assert low <= value <= high * (1 + 1e-12)
    if whole:
        assert isinstance(value, int)
    if step is not None:
        assert abs((value - low) / step - round((value - low) / step)) < 1e-6
        assert len(p.points()) == round((p.domain.last - low) / step) + 1
    (text,) = settings_of({p.name: value})
    name, _, typed = text.partition("=")
    assert getattr(build(Recipe, {name: typed}, "recipe", ""), name) == value


@given(st.integers(1, 3), st.integers(1, 3), st.sets(st.sampled_from(["adam", "adamw"]), min_size=1), st.booleans())
def test_a_grid_has_every_point_once_and_no_other(n: int, m: int, when: set[str], chained: bool) -> None:
    sizes, betas = [2 ** (i + 3) for i in range(n)], [0.1 * (i + 1) for i in range(m)]
    chain = {"codebook_size": sizes[0]} if chained else {}
    parameters = [
        parameter(Choices(["adam", "adamw"]), "optimizer"),
        parameter(Choices(sizes, when={"optimizer": sorted(when)}), "codebook_size"),
        parameter(Choices(betas, when=chain), "weight_decay"),
    ]
    base = {("recipe", name): value for name, value in Recipe().as_dict().items()}
    found = list(grid(parameters, base))
    expected = []
    for optimizer, size, decay in itertools.product(["adam", "adamw"], sizes, betas):
        point: dict[str, Any] = {"optimizer": optimizer}
        if optimizer in when:
            point["codebook_size"] = str(size)
        if not chained or (optimizer in when and size == sizes[0]):
            point["weight_decay"] = as_text(decay)
        if point not in expected:
            expected.append(point)
    assert sorted(found, key=str) == sorted(expected, key=str)
    drawn = draw(parameters, base, lambda p: p.points()[-1])
    assert drawn in found


def test_a_grid_of_a_continuum_is_refused(tmp_path: Path) -> None:
    asked = request(tmp_path, "losses", sampler="grid")
    with pytest.raises(UsageError, match=r"a grid needs points, and vqgan.beta is a range") as error:
        plan_studies(asked)
    assert "step" in error.value.hint


def test_components_are_conditions_of_what_is_part_of_them(tmp_path: Path) -> None:
    def names(*fixed: str) -> set[str]:
        (study,), _ = plan_studies(request(tmp_path, "losses", "vaevq", settings=fixed))
        return set(draw(study.parameters, study.base, lambda p: p.domain.low))

    assert names() == {f"vaevq.{field}" for field in ("rcs_weight", "dcr_weight", "dual_weight", "kl_weight")}
    assert names("vaevq.dcr=false") == {"vaevq.rcs_weight", "vaevq.dual_weight", "vaevq.kl_weight"}
    assert "vaevq.beta" in names("vaevq.rcs=false")
    space = {"methods": {"vaevq": {"dcr": [True, False], "dcr_weight": [0.1, 0.2]}}}
    (study,), _ = plan_studies(request(tmp_path, space, "vaevq", sampler="grid"))
    assert list(grid(study.parameters, study.base)) == [
        {"vaevq.dcr": "true", "vaevq.dcr_weight": "0.1"}, {"vaevq.dcr": "true", "vaevq.dcr_weight": "0.2"},
        {"vaevq.dcr": "false"},
    ]  # fmt: skip


@pytest.mark.parametrize("name", space_names())
@pytest.mark.parametrize("method", BUILT_IN)
def test_what_is_shipped_and_declared_fits_every_method(name: str, method: str, tmp_path: Path) -> None:
    """Every value that a shipped space can draw makes a configuration that the method takes."""
    from vqbench.planning.choice import choose_method, read_settings
    from vqbench.planning.plan import resolve_recipe

    if (method, name) == ("fsq", "losses"):  # it has none
        with pytest.raises(UsageError, match="has anything to draw"):
            plan_studies(request(tmp_path, name, method))
        return
    (study,), _ = plan_studies(request(tmp_path, name, method))
    for end in (0, -1):
        drawn = draw(study.parameters, study.base, lambda p, end=end: p.ends()[end])
        texts = read_settings(settings_of(drawn))
        recipe = resolve_recipe(RunRequest((method,), "photos"), texts)
        assert choose_method(method, recipe, texts).name == method
    (study,), _ = plan_studies(request(tmp_path, {"declared": "all"}, method))
    assert {p.field for p in study.parameters} == set(METHODS.get(method).search_space)


def test_a_broken_plugin_is_refused_only_where_it_is_asked_for(tmp_path: Path) -> None:
    plugin = tmp_path / "torn.py"
    plugin.write_text(
        'import torchh\nfrom vqbench.registry import METHODS\n@METHODS.register("torn")\nclass Torn:\n    "Torn."\n'
    )
    METHODS.add_file(plugin)
    (study,), _ = plan_studies(request(tmp_path, {"declared": "losses"}, "vqgan"))
    assert study.parameters
    with pytest.raises(UsageError, match=r"torn\.py does not import.*torchh"):
        plan_studies(request(tmp_path, {"recipe": {"images": [8, 16]}}, "torn"))


def test_levels_follow_the_size_and_what_a_method_does_not_follow_is_not_drawn(tmp_path: Path) -> None:
    (vqgan, fsq), notes = plan_studies(request(tmp_path, "latent", "vqgan,fsq"))
    assert {p.name for p in vqgan.parameters} == {"latent_channels", "codebook_dim"}
    assert {p.name for p in fsq.parameters} == {"latent_channels"}
    assert any("fsq has no codebook_dim" in note for note in notes)


def test_the_budget_is_shared_out_evenly(tmp_path: Path) -> None:
    def trials(space: Any, methods: str, **fields: Any) -> list[int]:
        return [study.trials for study in plan_studies(request(tmp_path, space, methods, **fields))[0]]

    assert trials("codebook", "vqgan,fsq,sqvae", trials=8) == [3, 3, 2]
    assert trials("codebook", "vqgan,fsq", trials_per_method=5) == [5, 5]
    assert trials("codebook", "vqgan,fsq") == [10, 10]
    assert trials("losses", "vqgan,fsq", trials=8) == [4, 1]  # fsq has one configuration
    assert trials({"recipe": {"codebook_size": [16, 32]}}, "vqgan,fsq", trials=40, sampler="grid") == [2, 2]


def test_same_bits_makes_a_study_for_each_level(tmp_path: Path) -> None:
    space = {"recipe": {"codebook_size": [8, 64, 256]}, "declared": "losses"}
    studies, notes = plan_studies(request(tmp_path, space, "vqgan,fsq", same_bits=True, trials_per_method=3))
    tokens = 64  # of `tiny`
    found = {study.name("s"): (study.level, study.bits) for study in studies}
    assert found["s/vqgan/384"] == (6 * tokens, 6 * tokens)
    assert {name for name in found if "fsq" in name} == {"s/fsq/384", "s/fsq/512"}  # nothing of FSQ's is near 8 codes
    assert found["s/fsq/512"] == (8 * tokens, pytest.approx(tokens * np.log2(240)))
    assert any("fsq is left out at 192 bits per image: it has" in note for note in notes)
    assert all(p.field != "codebook_size" for study in studies for p in study.parameters)


# objectives and refusals


def test_every_metric_knows_its_direction() -> None:
    assert directions_of(["rfid", "usage", "psnr", "dead_codes"]) == [
        "minimize", "maximize", "maximize", "minimize"
    ]  # fmt: skip
    assert watched("rfid", False, ("psnr", True)).sign == -1  # a training PSNR that rises is an rfid that falls
    assert watched("psnr", True, ("psnr", True)).sign == 1
    assert watched("psnr", True, ("psnr", True)).note == ""
    assert "PSNR" in watched("rfid", False, ("psnr", True)).note
    error = watched("quantization_error", False, ("distance", False))
    assert (error.curve, error.sign) == ("distance", 1)
    assert watched("usage", True, ("distance", False)).curve == "usage"


SPACE_ERRORS = [
    ({"recipes": {}}, "unknown part of space", "did you mean recipe"),
    ({"recipe": {"learning_rat": [1]}}, "unknown field of recipe in the space 'learning_rat'; did you mean", "show"),
    ({"recipe": {"learning_rate": {"low": 1, "hi": 2}}}, "unknown key of recipe.learning_rate 'hi'", "high"),
    ({"recipe": {"learning_rate": {"low": 1}}}, "it needs choices, or low and high", "learning_rate: {low"),
    ({"recipe": {"learning_rate": {"low": 2, "high": 1}}}, "low must be below high", "for example"),
    ({"recipe": {"learning_rate": {"low": 0, "high": 1, "log": True}}}, "low must be positive", "for example"),
    ({"recipe": {"learning_rate": {"choices": []}}}, "choices must be a list", "for example"),
    ({"recipe": {"learning_rate": ["fast"]}}, "recipe.learning_rate must be float, not 'fast'", "--set"),
    ({"recipe": {"optimizer": {"low": 1, "high": 2}}}, "recipe.optimizer is no number", "choices"),
    ({"recipe": {"images": {"low": 1.5, "high": 2}}}, "recipe.images is a whole number", "show"),
    ({"recipe": {"resolution": [32, 64]}}, "resolution cannot be drawn", "--set resolution"),
    ({"methods": {"vqgna": {"beta": [1]}}}, "unknown method in the space 'vqgna'; did you mean vqgan", "methods"),
    ({"declared": "loses"}, "unknown group in `declared` 'loses'; did you mean losses", "show"),
    ({"recipe": {"betas": {"choices": [[0.5, 0.9]], "when": {"optimiser": "adam"}}}}, "unknown field in when", "show"),
    ({"recipe": {"weight_decay": {"choices": [0.1], "when": {"optimizer": "adamw"}}, "optimizer": ["adam", "adamw"]}},
     "weight_decay depends on recipe.optimizer, which is drawn after it", "before"),
    ({"recipe": {"codebook_size": [16, 32]}, "methods": {"vqgan": {"codebook_size": [8]}}},
     "vqgan.codebook_size is in the space too", "leave out"),
    ({}, "the space is empty", "codebook"),
]  # fmt: skip


@pytest.mark.parametrize(("space", "what", "hint"), SPACE_ERRORS)
def test_a_space_that_does_not_fit_is_refused(space: Any, what: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        plan_studies(request(tmp_path, space))
    assert what in error.value.what
    assert hint in error.value.what + error.value.hint
    assert "\n" not in error.value.what + error.value.hint


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"recipe: {learning_rate: [1,\n", "is not YAML: while parsing"),
        (b"recipe: \xff", "is not YAML"),
        (b"- learning_rate", "must be a mapping, not ['learning_rate']"),
        (b"recipe: {learning_rate: 3}", "recipe.learning_rate must be a mapping, not 3"),
    ],
)
def test_a_file_that_is_no_space_is_refused(content: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_bytes(content)
    with pytest.raises(UsageError) as error:
        read_spaces([str(tmp_path / "my.yaml")])
    assert what in error.value.what
    assert "learning_rate: {low" in error.value.hint


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"sampler": "tpee"}, "unknown sampler 'tpee'; did you mean tpe"),
        ({"pruner": "halving"}, "unknown pruner 'halving'"),
        ({"trials": 3, "trials_per_method": 3}, "two budgets"),
        ({"trials": 0}, "--trials must be at least 1"),
        ({"name": "a/b"}, "cannot be a folder"),
        ({"spaces": ()}, "no space to search"),
        ({"objectives": ("rfidd",)}, "unknown objective 'rfidd'; did you mean rfid"),
        ({"objectives": ("bpp",)}, "bpp has no better direction"),
        ({"objectives": ("psnr_continuous",)}, "psnr_continuous has no better direction"),
        ({"objectives": ("rfid", "usage"), "pruner": "median"}, "there are 2 objectives"),
        ({"sampler": "nsga2", "pruner": "hyperband"}, "nsga2"),
        ({"objectives": ("ssim",)}, "the objective ssim is not among the metrics of the trials"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(fields: dict[str, Any], what: str, tmp_path: Path) -> None:
    asked = dataclasses.replace(request(tmp_path, "codebook"), **fields)

    def check() -> None:
        refuse_odd(asked)
        check_objectives(asked, "images", ("rfid", "psnr", "usage", "bpp"))

    with pytest.raises(UsageError) as error:
        check()
    assert what in error.value.what
    assert error.value.hint


@pytest.mark.parametrize(
    ("space", "fixed", "what"),
    [
        ("optimiser", "learning_rate=0.1", "learning_rate is in the space, and --set learning_rate fixes it"),
        ("losses", "vqgan.beta=1", "vqgan.beta is in the space"),
        ("codebook", "vqgan.codebook_size=8", "vqgan.codebook_size is set, and it is what codebook_size stands for"),
    ],
)
def test_what_is_fixed_cannot_be_drawn(space: str, fixed: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=what):
        plan_studies(request(tmp_path, space, settings=(fixed,)))


def test_same_bits_needs_levels(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--same-bits needs codebook_size in the space"):
        plan_studies(request(tmp_path, "losses", same_bits=True))


def test_passwords_are_not_kept() -> None:
    assert masked("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"
    assert masked("postgresql://me:p@ss@host/db") == "postgresql://me:***@host/db"
    asked = "postgresql://host/db?user=me&password=secret&sslmode=require"
    assert masked(asked) == "postgresql://host/db?user=me&password=***&sslmode=require"
    for harmless in ("sqlite:///a.db", "http://host:5000/a@b", "a journal.log", "postgresql://me@host/db"):
        assert masked(harmless) == harmless
    assert more_seeds((0,)) == (0, 1, 2)
    assert more_seeds((3, 1)) == (3, 1, 0, 2)


# studies, without cells


def opened(tmp: Path, sampler: str, trials: int, name: str = "s", pruner: str = "none") -> OpenStudy:
    asked = request(tmp, {"recipe": {"learning_rate": {"low": 0.001, "high": 1, "log": True}, "codebook_size": [8, 16]}}
                    if sampler != "grid" else {"recipe": {"codebook_size": [8, 16], "optimizer": ["adam", "adamw"]}},
                    sampler=sampler, trials=trials, name=name, pruner=pruner)  # fmt: skip
    (plan,), _ = plan_studies(asked)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp / f"{name}.log")))
    return OpenStudy(plan, asked, storage, ["minimize"], 100)


def lr(drawn: dict[str, Any]) -> float:
    return float(drawn.get("learning_rate", 0)) + len(str(drawn))


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid", "nsga2"])
def test_a_study_that_was_cut_off_draws_as_one_that_was_not(sampler: str, tmp_path: Path) -> None:
    n = 4 if sampler == "grid" else 7
    whole, cut = opened(tmp_path, sampler, n, "whole"), opened(tmp_path, sampler, n, "cut")
    expected = []
    while whole.remaining:
        trial, drawn = whole.ask()
        whole.tell(trial, [lr(drawn)], "done", {})
        expected.append(drawn)
    for _ in range(2):
        trial, drawn = cut.ask()
        cut.tell(trial, [lr(drawn)], "done", {})
    cut.ask()  # and its driver dies
    cut = opened(tmp_path, sampler, n, "cut")
    assert cut.put_back_orphans(lambda cell: 0) == 1
    assert cut.put_back_orphans(lambda cell: 0) == 0
    while cut.remaining:
        trial, drawn = cut.ask()
        cut.tell(trial, [lr(drawn)], "done", {})
    assert [trial.params for trial in cut.trials()] == expected == [trial.params for trial in whole.trials()]
    if sampler == "grid":
        assert sorted(map(str, expected)) == sorted(map(str, grid(cut.plan.parameters, cut.plan.base)))
    else:
        assert len({str(drawn) for drawn in expected}) > 4


def test_what_a_killed_driver_has_trained_counts(tmp_path: Path) -> None:
    study = opened(tmp_path, "random", 2)
    trial, drawn = study.ask()
    trial.set_user_attr("under_way", {"a": 16, "b": 0, "c": 64})
    study = opened(tmp_path, "random", 2)
    study.put_back_orphans({"a": 48, "b": 8, "c": 64}.__getitem__)
    trial, again = study.ask()
    assert again == drawn
    assert trial.user_attrs["images"] == 32 + 8


class Pretence:
    """An execution whose cells end when the test says so, with a score of their own."""

    def __init__(self, slots: int) -> None:
        self.slots, self.cells, self.submitted = slots, [], []  # type: ignore[var-annotated]
        self.ends: dict[str, str] = {}

    @property
    def free(self) -> int:
        return self.slots - len(self.cells)

    @property
    def running(self) -> tuple[Any, ...]:
        return tuple(self.cells)

    def submit(self, cell: Any) -> None:
        assert cell.folder.name not in {c.folder.name for c in self.cells}
        self.cells.append(cell)
        self.submitted.append(cell.folder.name)

    def stop(self, cell: Any) -> None:
        self.ends[cell.folder.name] = "stopped"

    def wait(self) -> list[tuple[Any, dict[str, Any]]]:
        self.slots = max(self.slots, 2)  # workers arrive
        over, self.cells = self.cells, []
        return [(cell, self.row(cell)) for cell in over]

    def row(self, cell: Any) -> dict[str, Any]:
        state = self.ends.get(cell.folder.name, "done")
        error = {"message": "odd", "type": "Killed"} if state == "failed" else None
        scores = {"quantization_error": float(cell.spec["recipe"]["codebook_size"])} if state == "done" else {}
        return {"cell": cell.folder.name, "state": state, "scores": scores, "error": error}


class Looking(Pretence):
    """Sees what the trials say of their cells while these are under way."""

    storage = ""
    looked = 0

    def wait(self) -> list[tuple[Any, dict[str, Any]]]:
        (study,) = optuna.storages.RDBStorage(self.storage).get_all_studies()
        trials = optuna.load_study(study_name=study.study_name, storage=self.storage).trials
        notes = [trial.user_attrs["under_way"] for trial in trials if trial.state.name == "RUNNING"]
        assert {name: 0 for note in notes for name in note} == {cell.folder.name: 0 for cell in self.cells}
        self.looked = len(notes)
        return super().wait()


@pytest.mark.parametrize("slots", [0, 2])
def test_equal_trials_share_a_cell_and_workers_may_come_late(slots: int, place: Place, tmp_path: Path) -> None:
    space = place.write("two.yaml", {"recipe": {"codebook_size": [8, 64]}})
    found, pretence = pretended(place, tmp_path, space, Pretence(slots), trials=8, sampler="random")
    assert len(pretence.submitted) == len(set(pretence.submitted)) == 2
    assert [row["state"] for row in found.rows].count("done") == 2
    assert [row["state"] for row in found.rows].count("cached") == 6
    assert {row["values"]["quantization_error"] for row in found.rows} == {8.0, 64.0}
    assert found.best(found.studies[0], "quantization_error")["drawn"] == {"codebook_size": 8}  # type: ignore[index]


def test_a_trial_remembers_its_cells_while_they_are_under_way(place: Place, tmp_path: Path) -> None:
    looking = Looking(2)
    looking.storage = f"sqlite:///{tmp_path / 'runs/x/optuna.db'}"
    space = place.write("two.yaml", {"recipe": {"codebook_size": [8, 64]}})
    found, _ = pretended(place, tmp_path, space, looking, trials=2, sampler="grid")
    assert looking.looked == 2
    study = optuna.load_study(study_name=found.rows[0]["study"], storage=looking.storage)
    assert [trial.user_attrs["under_way"] for trial in study.trials] == [{}, {}]


def test_a_trial_is_the_mean_over_its_seeds_and_fails_with_one(place: Place, tmp_path: Path) -> None:
    space = place.write("two.yaml", {"recipe": {"codebook_size": [8, 64]}})
    found, pretence = pretended(place, tmp_path, space, Pretence(2), trials=2, sampler="grid", seeds=(0, 1))
    assert len(pretence.submitted) == 4
    assert all(row["cells"][0] != row["cells"][1] for row in found.rows)
    second = Pretence(2)
    second.ends = {pretence.submitted[-1]: "failed"}
    found, _ = pretended(place, tmp_path / "second", space, second, trials=2, sampler="grid", seeds=(0, 1))
    assert [row["state"] for row in found.rows] == ["done", "failed"]
    assert found.rows[1]["error"] == {"message": "odd", "type": "Killed"}
    again, third = pretended(place, tmp_path / "second", space, Pretence(2), trials=2, sampler="grid", seeds=(0, 1))
    assert third.submitted == pretence.submitted[2:]  # nothing is known of the cells that were pretended
    assert [row["state"] for row in again.rows] == ["done", "done"]
    assert [row["drawn"] for row in again.rows] == [row["drawn"] for row in found.rows]


def test_importances_say_what_tells_good_trials_and_more_trials_may_be_added(place: Place, tmp_path: Path) -> None:
    space = place.write("three.yaml", {"recipe": {"codebook_size": [8, 64, 512], "optimizer": ["adam", "adamw"]}})
    few, _ = pretended(place, tmp_path, space, Pretence(2), trials=4, sampler="random")
    assert not few.studies[0].importances["quantization_error"]
    assert any("too few finished trials of vqgan" in note for note in few.notes())
    more, _ = pretended(place, tmp_path, space, Pretence(2), trials=16, sampler="random")
    assert [row["drawn"] for row in more.rows[:4]] == [row["drawn"] for row in few.rows]
    assert len(more.rows) == 16
    shares = more.studies[0].importances["quantization_error"]
    assert shares["codebook_size"] > 2 * shares["optimizer"]  # the pretended score is the size
    assert sum(shares.values()) == pytest.approx(1)
    (picture,) = more.folder.glob("importances-*.png")
    assert picture.name == "importances-vqgan.png"
    assert picture.stat().st_size > 5000
    assert not (more.folder / "pareto.png").exists()


def pretended(place: Place, tmp: Path, space: str, pretence: Pretence, **more: Any) -> tuple[Any, Pretence]:
    import contextlib

    options = place.options(space=space, runs=tmp / "runs", seeds=more.pop("seeds", (0,)), **more.pop("options", {}))
    view = more.pop("view", None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vqbench.running.execution.open_execution", lambda *_, **__: contextlib.nullcontext(pretence))
        return execute_sweep(asked_of(options, **more), view), pretence


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_pruners_end_what_lags_behind(pruner: str, tmp_path: Path) -> None:
    study = opened(tmp_path, "random", 12, pruner=pruner)
    ended = []
    for number in range(12):
        trial, _ = study.ask()
        for images in range(5, 100, 5):
            trial.report(1.0 if number % 3 == 0 else 10.0 + number, images)
            if trial.should_prune():
                study.tell(trial, None, "pruned", {})
                ended.append(number)
                break
        else:
            study.tell(trial, [1.0], "done", {})
    assert ended
    assert not any(number % 3 == 0 for number in ended)
    assert study.remaining == 0


def test_a_storage_that_cannot_be_had_says_so_without_its_password(tmp_path: Path) -> None:
    for where in ("postgresql://me:secret@127.0.0.1:1/none", "sqlite:////nowhere/at/all.db", "odd.db"):
        with pytest.raises(UsageError) as error:
            open_storage(where, tmp_path)
        assert "secret" not in error.value.what + error.value.hint
        assert error.value.hint


# the command, on cells of the features track, which take seconds

SIZES = [8, 64]
COMMON = ("codebook_dim=4", "log_images=16")


@dataclasses.dataclass(frozen=True)
class Place:
    """A folder with features, a space of sizes and a runs directory."""

    root: Path

    @classmethod
    def made(cls, root: Path, rows: int, sizes: Sequence[int]) -> Place:
        np.save(root / "x.npy", np.random.default_rng(0).normal(3, 2, (rows, 2, 2, 6)).astype(np.float32))
        found = cls(root)
        found.write("sizes.yaml", {"recipe": {"codebook_size": list(sizes)}})
        return found

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    def options(self, **more: Any) -> dict[str, Any]:
        fixed = {"features": self.root / "x.npy", "recipe": "atomic", "runs": self.runs, "images": 64}
        return {**fixed, "name": "x", "settings": COMMON, "space": str(self.root / "sizes.yaml"), **more}

    def typed(self, *more: object) -> list[str]:
        words = [
            "--features",
            self.root / "x.npy",
            "--recipe",
            "atomic",
            "--runs",
            self.runs,
            "--images",
            64,
            "--name",
            "x",
        ]
        return [*map(str, words), *(part for text in COMMON for part in ("--set", text)), *map(str, more)]

    def write(self, name: str, space: dict[str, Any]) -> str:
        (self.root / name).write_text(yaml.safe_dump(space, sort_keys=False))
        return str(self.root / name)

    def trained(self) -> dict[str, float]:
        return {path.parent.name: path.stat().st_mtime for path in self.runs.glob("x/cells/*/result.json")}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.made(tmp_path_factory.mktemp("sweep"), 80, SIZES)


@pytest.fixture(scope="module")
def comparison(vqbench: Command, place: Place) -> Answer:
    """Two methods at each of two sizes, two cells at a time."""
    answer = vqbench("sweep", "vqgan,fsq", *place.typed("--space", place.root / "sizes.yaml", "--sampler", "grid"),
                     "--trials", 4, "--workers", 2)  # fmt: skip
    assert answer.code == 0, answer.err
    return answer


def rows_of(place: Place, name: str = "vqgan+fsq-sizes") -> pd.DataFrame:
    return pd.read_csv(place.runs / "x" / "sweeps" / name / "trials.csv")


def commands_of(answer: str) -> list[list[str]]:
    return [shlex.split(line) for line in answer.splitlines() if line.strip().startswith("vqbench run")]


def test_a_sweep_of_two_methods_and_its_files(comparison: Answer, place: Place) -> None:
    table = rows_of(place)
    assert len(table) == 4
    for _, of_method in table.groupby("method"):
        assert sorted(of_method["codebook_size"]) == SIZES  # a grid, each point once
    assert "vqgan  " in comparison.out
    assert max(len(line) for line in comparison.out.splitlines() if "/" not in line) <= 100
    with (place.runs / "x" / "sweeps" / "vqgan+fsq-sizes" / "trials.csv").open() as file:
        assert len(list(csv.reader(file))) == 5
    assert "| vqgan |" in (place.runs / "x" / "sweeps" / "vqgan+fsq-sizes" / "summary.md").read_text()


def test_the_printed_command_reproduces_the_best(comparison: Answer, place: Place) -> None:
    from vqbench.running.run import execute

    table, commands = rows_of(place), commands_of(comparison.out)
    assert [command[command.index("--methods") + 1] for command in commands] == ["vqgan", "fsq"]
    before = place.trained()
    for command in commands:
        method = command[command.index("--methods") + 1]
        best = table[table["method"] == method]["quantization_error"].min()
        assert command[-2:] == ["--seeds", "0,1,2"]
        row = json.loads(typed(*command[1:-1], "0", "--json").out)
        assert (row["state"], row["scores"]["quantization_error"]) == ("cached", pytest.approx(best, abs=0))
    assert place.trained() == before
    command = commands[0]
    elsewhere = execute(RunRequest(
        ("vqgan",), recipe="atomic", features=place.root / "x.npy", runs=place.root / "elsewhere", images=64,
        settings=tuple(command[i + 1] for i, word in enumerate(command) if word == "--set"),
    )).rows  # fmt: skip
    assert elsewhere[0]["state"] == "done"
    assert elsewhere[0]["scores"]["quantization_error"] == table[table["method"] == "vqgan"]["quantization_error"].min()


def test_the_same_sweep_again_trains_nothing(comparison: Answer, place: Place) -> None:
    before, commands = place.trained(), sorted((place.runs / "x" / "commands").glob("*.json"))
    space = str(place.root / "sizes.yaml")
    again = typed("sweep", "vqgan,fsq", *place.typed("--space", space, "--sampler", "grid", "--trials", 4, "--json"))
    assert again.code == 0, again.err
    assert [row["state"] for row in again.objects] == ["done"] * 4  # each was trained by its trial, once
    resumed = package.sweep(resume="vqgan+fsq-sizes", runs=place.runs, track=False)
    assert len(resumed) == 4
    other = package.sweep("vqgan,fsq", track=False, sampler="grid", trials=4, sweep_name="other", **place.options())
    assert set(other["state"]) == {"cached"}
    assert place.trained() == before
    assert sorted((place.runs / "x" / "commands").glob("*.json")) == commands
    assert {"method", "codebook_size", "quantization_error", "command"} <= set(other.columns)


def test_in_mlflow_a_sweep_is_a_parent_with_its_trials(comparison: Answer, place: Place) -> None:
    from vqbench.tracking.mirror import Mirror

    client = Mirror(place.runs).client
    found = client.search_runs([client.get_experiment_by_name("x").experiment_id])
    (parent,) = (run for run in found if run.data.tags.get("command") == "sweep")
    assert parent.info.run_name == "0001 sweep vqgan, fsq: sizes"
    assert parent.info.status == "FINISHED"
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 4
    assert {run.data.tags["drawn.codebook_size"] for run in children} == set(map(str, SIZES))
    names = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    assert {"0001.md", "0001.trials.csv"} <= names


def test_a_name_stands_for_one_definition(comparison: Answer, place: Place) -> None:
    taken = typed("sweep", "vqgan,fsq", *place.typed("--space", place.root / "sizes.yaml", "--sampler", "random"))
    assert taken.code == 2
    assert taken.err.splitlines()[-2:] == [
        "error: there is a sweep 'vqgan+fsq-sizes' already, with another sampler",
        "hint: go on with it: --resume vqgan+fsq-sizes, or start another: --sweep-name NAME",
    ]
    for name in ("**", "vqgan*"):  # no pattern
        assert typed("sweep", "--resume", name, "--runs", place.runs).code == 2
    unknown = typed("sweep", "--resume", "vqgan+fsq-size", "--runs", place.runs)
    assert unknown.code == 2
    assert "did you mean vqgan+fsq-sizes" in unknown.err
    odd = typed("sweep", "--resume", "vqgan+fsq-sizes", "--runs", place.runs, "--images", 7)
    assert "the sweep was started with another --images: 64" in odd.err


def test_several_objectives_have_a_front(comparison: Answer, place: Place) -> None:
    answer = typed("sweep", "vqgan,fsq", *place.typed("--space", place.root / "sizes.yaml", "--sampler", "nsga2"),
                   "--trials", 8, "--objective", "quantization_error,usage", "--sweep-name", "front")  # fmt: skip
    assert answer.code == 0, answer.err
    folder = place.runs / "x" / "sweeps" / "front"
    assert (folder / "pareto.png").stat().st_size > 5000
    table = rows_of(place, "front")
    values = [(row.quantization_error, -row.usage) for row in table.itertuples()]
    front = [not any(a <= x and b <= y and (a, b) != (x, y) for a, b in values) for x, y in values]
    report = execute_sweep(SweepRequest(run=RunRequest((), runs=place.runs), name="front", resume=True))
    assert {(row["method"], row["trial"]) for row in report.pareto()} == {
        (row.method, row.trial) for row, on_front in zip(table.itertuples(), front, strict=True) if on_front
    }
    assert sum(front) > 0
    assert not dominates([1, 1], [1, 1], [True, False])
    assert dominates([1, 2], [1, 1], [True, False])
    assert len(answer.out.split("with more seeds")) > 2


def test_levels_of_bits_and_a_journal(comparison: Answer, place: Place) -> None:
    space = place.write("levels.yaml", {"recipe": {"codebook_size": [8, 64]}})
    journal = place.root / "journals" / "sweep.log"
    answer = typed("sweep", "vqgan,fsq", *place.typed("--space", space, "--same-bits", "--storage", journal, "--json"))
    assert answer.code == 0, answer.err
    found = {(row["method"], row["level"]): row for row in answer.objects}
    assert set(found) == {("vqgan", 192.0), ("vqgan", 384.0), ("fsq", 384.0)}
    assert {row["state"] for row in answer.objects} == {"cached"}
    assert "fsq is left out at 192 bits per image" in answer.err
    assert found["fsq", 384.0]["settings"][-1] == "codebook_size=64"
    assert journal.is_file()
    assert "sweep.log" in json.loads((place.runs / "x/sweeps/vqgan+fsq-levels-same-bits.json").read_text())["storage"]


def test_trials_on_postgresql(comparison: Answer, place: Place, postgres: Callable[[], str]) -> None:
    url = postgres()
    bare = url.replace("postgresql+psycopg2", "postgresql")  # as people write it
    ask = ["vqgan,fsq", *place.typed("--space", place.root / "sizes.yaml", "--sampler", "grid"), "--storage", bare]
    answer = typed("sweep", *ask, "--trials", 2, "--sweep-name", "pg", "--json")
    assert answer.code == 0, answer.err
    resumed = typed("sweep", "--resume", "pg", "--runs", place.runs, "--trials", 4, "--json")
    assert resumed.code == 0, resumed.err
    assert [row["state"] for row in resumed.objects] == ["cached"] * 4
    told = optuna.load_study(study_name="pg/fsq", storage=url).trials
    assert [trial.params for trial in told] == [
        {key: str(value) for key, value in row["drawn"].items()} for row in resumed.objects if row["method"] == "fsq"
    ]
    local = optuna.storages.RDBStorage(f"sqlite:///{place.runs / 'x/optuna.db'}")
    assert not [study for study in local.get_all_studies() if study.study_name.startswith("pg/")]


def test_a_trial_that_fails_is_a_row(place: Place) -> None:
    space = place.write(
        "odd.yaml", {"recipe": {"learning_rate": [1.0e-3, 1.0e30]}, "methods": {"vqgan": {"beta": [-1, 1]}}}
    )
    table = package.sweep("vqgan", sampler="grid", track=False, **place.options(space=space, name="failing"))
    assert len(table) == 4
    assert sorted(table["state"]) == ["done", "failed", "failed", "failed"]
    reasons = " ".join(table["error"].dropna())
    assert "beta" in reasons  # what the Config refuses
    assert "diverged" in reasons  # what training ends with
    again = package.sweep("vqgan", sampler="grid", track=False, **place.options(space=space, name="failing"))
    assert list(again["state"]) == list(table["state"])


def test_bounds_of_images_and_time(place: Place) -> None:
    options = place.options(name="bounded", settings=(*COMMON, "codebook_size=8"), space="optimiser")
    report = execute_sweep(asked_of(options, max_images=100, trials=4))
    assert [row["images"] for row in report.rows] == [64]
    assert "--max-images 100 leaves no room" in report.reason
    assert any("1 of 4" in cell for cell in report.table().rows[0])
    late = execute_sweep(asked_of(options, timeout=1e-3, trials=4))
    assert late.reason == "--timeout is over"
    assert len(late.rows) == 1


def asked_of(options: dict[str, Any], **fields: Any) -> SweepRequest:
    from vqbench.planning.request import make_request

    space = options.pop("space") if "space" in options else "optimiser"
    return SweepRequest(run=make_request(["vqgan"], **options), spaces=(space,), **fields)


@pytest.mark.slow
def test_a_driver_that_is_killed_leaves_nothing_out(place: Place) -> None:
    space = place.write("rates.yaml", {"recipe": {"learning_rate": [0.001, 0.002]}})
    command = [
        sys.executable,
        "-m",
        "vqbench.cli",
        "sweep",
        "vqgan",
        *place.typed("--space", space, "--sampler", "grid"),
    ]
    process = subprocess.Popen([*command, "--name", "killed"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not list(place.runs.glob("killed/cells/*/status.json")) and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    table = package.sweep(resume="vqgan-rates", runs=place.runs, track=False)
    assert sorted(table["learning_rate"]) == [0.001, 0.002]
    assert set(table["state"]) <= {"done", "cached"}
    study = optuna.load_study(study_name="vqgan-rates/vqgan", storage=f"sqlite:///{place.runs / 'killed/optuna.db'}")
    told = [trial.params["learning_rate"] for trial in study.trials if trial.state.name == "COMPLETE"]
    assert sorted(told) == ["0.001", "0.002"]


def test_one_driver_at_a_time(comparison: Answer, place: Place) -> None:
    """Here a lock tells, on another machine of a disk that knows no locks the lease that it touches."""
    from vqbench.machine.lease import exclusive

    folder = place.runs / "x" / "sweeps" / "vqgan+fsq-sizes"

    def refused(where: str) -> None:
        with pytest.raises(UsageError, match=f"another command is running the sweep .*{where}"):
            package.sweep(resume="vqgan+fsq-sizes", runs=place.runs, track=False)

    with exclusive(folder):
        refused(f"process {os.getpid()}")
    lease = folder / "lease.json"
    lease.write_text(json.dumps({"token": "theirs", "machine": "elsewhere 1", "pid": 7}))
    refused("on elsewhere, process 7")
    lease.unlink()
    assert len(package.sweep(resume="vqgan+fsq-sizes", runs=place.runs, track=False)) == 4


@pytest.mark.slow
def test_a_pruned_cell_keeps_its_checkpoint_and_goes_on(tmp_path: Path) -> None:
    """Of two learning rates the second learns nothing, and is given up; a run of it then ends what was begun."""
    from vqbench.planning.request import make_request
    from vqbench.running.run import run

    images = write_images(tmp_path / "images", 60)
    (tmp_path / "rates.yaml").write_text("recipe: {learning_rate: [3.0e-3, 1.0e-12]}")
    options: dict[str, Any] = {
        "runs": tmp_path / "runs", "images": 960, "name": "p", "metrics": ["psnr"],
        "settings": (*settings()[1::2], "log_images=16", "checkpoint_images=960"),
    }  # fmt: skip
    asked = SweepRequest(
        run=make_request(["fsq"], f"folder:{images}", **options), spaces=(str(tmp_path / "rates.yaml"),),
        sampler="grid", pruner="median", objectives=("psnr",), trials=2, sampler_seed=_good_first(),
    )  # fmt: skip
    report = execute_sweep(asked)
    done, pruned = report.rows
    assert (done["state"], pruned["state"]) == ("done", "pruned")
    assert 0 < pruned["images"] < 960
    folder = Path(pruned["paths"][0])
    kept = images_in_checkpoint(folder / "checkpoints" / "last.pt")  # none of the regular ones was due
    assert kept >= pruned["images"]
    assert not (folder / "result.json").exists()
    seen = len((folder / "metrics.jsonl").read_text().splitlines())
    row = run(["fsq"], f"folder:{images}", track=False, **{**options, "settings": pruned["settings"]}).iloc[0]
    assert row["state"] == "done"
    assert row["cell"] == folder.name
    points = [json.loads(line)["images"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert points == sorted(set(points))
    assert len(points) > seen


def _good_first() -> int:
    """A sampler seed under which the first of two points is asked first."""
    import random

    def order(seed: int) -> list[int]:
        points = [0, 1]
        random.Random(seed).shuffle(points)
        return points

    return next(seed for seed in range(100) if order(seed) == [0, 1])


def test_a_dry_run_shows_the_studies_and_writes_nothing(place: Place, tmp_path: Path) -> None:
    answer = typed("sweep", "vqgan,fsq", *place.typed("--space", "codebook", "--trials", 5, "--dry-run"),
                   "--runs", tmp_path / "none")  # fmt: skip
    assert answer.code == 0, answer.err
    assert "vqgan+fsq-codebook/fsq" in answer.out
    assert not (tmp_path / "none").exists()


def test_a_dry_run_counts_the_states_of_the_cells(comparison: Answer, place: Place) -> None:
    space = place.write("more.yaml", {"recipe": {"codebook_size": [*SIZES, 16]}})
    ask = ["vqgan,fsq", *place.typed("--space", space, "--trials", 6, "--sweep-name", "grid", "--dry-run")]
    answer = typed("sweep", *ask, "--sampler", "grid", "--json")
    assert [study["cells"] for study in answer.objects] == [{"cached": 2, "missing": 1}] * 2
    shown = typed("sweep", *ask, "--sampler", "grid").out
    assert shown.count("2 cached, 1") == 2
    assert max(map(len, shown.splitlines()[:4])) <= 100
    assert [study["cells"] for study in typed("sweep", *ask, "--json").objects] == [{"cached": 2, "missing": 1}] * 2


def test_a_cached_trial_has_a_curve_for_the_pruner(comparison: Answer, place: Place) -> None:
    options = place.options(name="x")
    report = execute_sweep(asked_of(options, sampler="grid", pruner="median", trials=2, name="curves"))
    assert [row["state"] for row in report.rows] == ["cached", "cached"]
    study = optuna.load_study(study_name="curves/vqgan", storage=f"sqlite:///{place.runs / 'x/optuna.db'}")
    assert [sorted(trial.intermediate_values) for trial in study.trials] == [[16, 32, 48]] * 2


def test_the_plan_of_a_sweep_checks_the_objective_before_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown objective 'psnrr'"):
        plan_sweep(dataclasses.replace(request(tmp_path, "codebook"), objectives=("psnrr",)), Silent())
    assert StudyPlan("m", (), (), {}, 1, level=64.0).name("s") == "s/m/64"
