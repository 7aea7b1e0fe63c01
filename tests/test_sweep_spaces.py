"""What a sweep may draw: the grammar of spaces, the budget, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from helpers.sweeps import request
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from vqbench.config import build
from vqbench.errors import UsageError
from vqbench.planning.request import RunRequest
from vqbench.recipe import Recipe
from vqbench.registry import METHODS
from vqbench.space import Choices, Range
from vqbench.sweeps.backend import directions_of, suggest
from vqbench.sweeps.grammar import read_spaces, space_names
from vqbench.sweeps.refusals import check_objectives, refuse_odd
from vqbench.sweeps.rows import more_seeds
from vqbench.sweeps.spaces import as_text, draw, grid, make_parameter, settings_of
from vqbench.sweeps.studies import plan_studies
from vqbench.sweeps.watched import watched
from vqbench.wording import masked

optuna.logging.set_verbosity(optuna.logging.ERROR)
fast = hypothesis_settings(max_examples=60, deadline=None)
BUILT_IN = METHODS.names()


def parameter(domain: Range | Choices, field: str = "learning_rate", owner: str = "recipe", cls: type = Recipe) -> Any:
    return make_parameter(owner, cls, field, domain, "vqbench show tiny")


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

    if name == "losses" and not any(x.group == "losses" for x in METHODS.get(method).search_space.values()):
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
