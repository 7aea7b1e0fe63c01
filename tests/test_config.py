"""Typed settings: what a person types becomes the annotated type or an error that says what was expected."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import resources
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqbench.config import as_dict, build, components, describe, from_stored, split_setting, stored
from vqbench.errors import UsageError
from vqbench.recipe import Recipe, load_recipe, recipe_names


@dataclass(frozen=True)
class Config:
    size: int = 8
    """How large."""
    rate: float = 0.5
    """How fast."""
    levels: tuple[int, ...] = (8, 5)
    """How many of each."""
    mode: Literal["32", "bf16"] = "32"
    """How exact."""
    limit: float | None = None
    """How far, if at all."""
    smooth: bool = field(default=True, metadata={"component": "smoothing"})
    """Whether it is smooth."""

    def __post_init__(self) -> None:
        if self.size < 2:
            raise ValueError("size must be at least 2")


@dataclass(frozen=True)
class Grown(Config):
    late: str = field(default="new", metadata={"added_later": True, "first_default": "old"})
    """Came later, and its default has moved since."""
    lately: int = field(default=3, metadata={"added_later": True})
    """Came later."""


def test_what_was_stored_before_a_field_came_means_its_first_default() -> None:
    yesterday = as_dict(Config())
    assert build(Grown, from_stored(Grown, {}), "thing", "") == Grown()
    assert stored(Grown(late="old")) == yesterday  # and so the hash of its cells
    assert from_stored(Grown, yesterday) == {**yesterday, "late": "old", "lately": 3}


@given(st.sampled_from(["old", "new", "other"]), st.integers(0, 5), st.integers(2, 9))
def test_a_stored_config_is_read_back(late: str, lately: int, size: int) -> None:
    config = Grown(size=size, late=late, lately=lately)
    assert build(Grown, from_stored(Grown, stored(config)), "thing", "") == config
    assert stored(Grown(late="new")) == {**as_dict(Config()), "late": "new"}


def made(**values: object) -> Config:
    return build(Config, values, "thing", "vqbench show thing")


@given(st.integers(2, 10**6), st.floats(1e-6, 1e6), st.lists(st.integers(2, 64), min_size=1, max_size=6), st.booleans())
def test_text_becomes_the_annotated_type(size: int, rate: float, levels: list[int], smooth: bool) -> None:
    config = made(size=str(size), rate=repr(rate), levels=",".join(map(str, levels)), smooth=str(smooth).lower())
    assert config == Config(size, rate, tuple(levels), smooth=smooth)
    assert made(**as_dict(config)) == config


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [("mode", "32", "32"), ("rate", "1e-4", 1e-4), ("limit", "null", None), ("limit", "2", 2.0),
     ("levels", "[3, 4]", (3, 4)), ("levels", "7", (7,)), ("smooth", "off", False)],
)  # fmt: skip
def test_the_ways_in_which_people_write_values(name: str, text: str, value: object) -> None:
    assert getattr(made(**{name: text}), name) == value


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [("size", "many", "thing.size must be int"), ("size", "2.5", "thing.size must be int"),
     ("size", "true", "thing.size must be int"), ("rate", "fast", "thing.rate must be float"),
     ("mode", "64", "thing.mode must be Literal"), ("levels", "a,b", "thing.levels must be tuple"),
     ("smooth", "maybe", "thing.smooth must be bool"), ("size", "1", "thing: size must be at least 2"),
     ("sise", "4", "unknown setting of thing 'sise'; did you mean size?")],
)  # fmt: skip
def test_what_cannot_be_meant_is_said(name: str, text: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        made(**{name: text})
    assert error.value.what.startswith(said)
    assert error.value.hint


def test_fields_are_described_by_the_string_below_them() -> None:
    described = {f.name: f for f in describe(Config)}
    assert described["rate"].meaning == "How fast."
    assert described["mode"].type == "Literal['32', 'bf16']"
    assert components(Config) == {"smoothing": "smooth"}


def test_every_field_of_a_recipe_has_a_meaning() -> None:
    assert not [f.name for f in describe(Recipe) if not f.meaning]


@pytest.mark.parametrize("text", ["novalue", "=3", "vaevq.=1"])
def test_a_setting_needs_a_name_and_a_value(text: str) -> None:
    with pytest.raises(UsageError, match="not of the form"):
        split_setting(text)


def test_the_shipped_recipes_read() -> None:
    larger = ["vqgan-f16-256", "vqgan-f16-256-3m", "vqgan-f8-128", "vqgan-f8-128-gan", "vqgan-f8-256"]
    assert recipe_names() == ["atomic", "small", "tiny", *larger]
    paper = load_recipe("vqgan-f16-256")
    assert (paper.channels, paper.channel_multipliers, paper.downsampling) == (128, (1, 1, 2, 2, 4), 16)
    assert (paper.codebook_size, paper.codebook_dim, paper.learning_rate) == (16384, 64, 1e-4)
    assert (paper.schedule, paper.perceptual, paper.gan) == ("cosine", "vgg", "hinge")
    assert load_recipe("vqgan-f8-256").downsampling == 8
    first, second, third = (load_recipe(name) for name in ("vqgan-f8-128", "vqgan-f8-128-gan", "vqgan-f16-256-3m"))
    assert (first.gan, first.images * (first.resolution // first.downsampling) ** 2 // first.codebook_size) == (
        "none",
        125_000,  # tokens that each code sees
    )
    for recipe, start in ((second, 0.2), (third, 0.1)):
        assert (recipe.gan, recipe.gan_start_images) == ("hinge", start * recipe.images)
        assert (recipe.codebook_size, recipe.channels) == (paper.codebook_size, paper.channels)
    budget = ("name", "images", "gan_start_images", "warmup_images", "precision", "checkpoint_images")
    differ = {name for name, value in third.as_dict().items() if value != paper.as_dict()[name]}
    assert differ <= {*budget}
    assert (load_recipe("tiny").resolution, load_recipe("tiny").gan, load_recipe("tiny").perceptual) == (
        32,
        "none",
        "none",
    )


def test_what_has_no_influence_on_the_weights_is_no_part_of_the_identity() -> None:
    recipe = load_recipe("tiny")
    assert load_recipe("tiny", {"log_images": 99, "checkpoint_images": 77}).identity() == recipe.identity()
    assert load_recipe("tiny", {"batch_size": 8}).identity() != recipe.identity()


def test_float32_has_two_words_and_one_identity() -> None:
    older, newer, default = (load_recipe("tiny", more) for more in ({"precision": "32"}, {"precision": "ieee"}, {}))
    assert older == newer == default
    assert newer.identity() == older.identity()
    assert newer.identity()["precision"] == newer.as_dict()["precision"] == "32"  # as cells have it stored
    assert load_recipe("tiny", {"precision": "tf32"}).identity() != newer.identity()


@pytest.mark.parametrize("name", recipe_names())
def test_each_recipe_says_its_precision_and_why(name: str) -> None:
    text = resources.files("vqbench.recipes").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    above, _, line = text.partition("\nprecision: ")
    assert "#" in line.splitlines()[0] or above.splitlines()[-1].startswith("#")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [({"resolution": 30}, "not divisible by the downsampling factor 4"), ({"codebook_size": 1}, "at least 2"),
     ({"batch_size": 0}, "batch_size must be positive"), ({"gradient_clip": -1}, "must not be negative"),
     ({"channel_multipliers": "[]"}, "at least one level")],
)  # fmt: skip
def test_an_impossible_recipe_is_refused(overrides: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load_recipe("tiny", overrides)
