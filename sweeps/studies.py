"""The studies of a sweep: one per method, or per method and level of bits, each with a space of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vqbench.cell.tracks import track_of
from vqbench.config import from_stored
from vqbench.errors import UsageError, unknown
from vqbench.planning.choice import choose_method, read_settings, split_reference
from vqbench.planning.plan import resolve_recipe
from vqbench.planning.request import RunRequest
from vqbench.recipe import Recipe
from vqbench.registry import METHODS
from vqbench.sweeps.grammar import Raw, domain_of
from vqbench.sweeps.request import DEFAULT_TRIALS, SweepRequest
from vqbench.sweeps.spaces import Parameter, Values, as_text, check_order, grid, make_parameter, settings_of

BITS_MARGIN = 0.05
"""How far a method's bits may be from a level's, as a fraction."""
MOST_POINTS = 10_000
_SIZES = ("codebook_size", "codebook_dim")  # what `matched` turns into fields of a method
_PROTOCOL = ("name", "track", "resolution")  # a trial with another would be measured by another protocol


@dataclass(frozen=True)
class StudyPlan:
    """One study before its trials."""

    method: str
    """method or method@preset."""
    settings: tuple[str, ...]
    """What is set in every trial: the user's, and the level's size."""
    parameters: tuple[Parameter, ...]
    base: Values
    """What fields have where they are not drawn."""
    trials: int
    level: float | None = None
    """With --same-bits: bits per image of the level."""
    bits: float | None = None
    """With --same-bits: the method's own bits per image."""

    @property
    def is_finite(self) -> bool:
        """Whether all that can be drawn can be listed; among more than `MOST_POINTS` a repeat is a rarity."""
        counts = [parameter.count for parameter in self.parameters]
        return math.prod(count or math.inf for count in counts) <= MOST_POINTS

    def points(self, seed: int) -> list[dict[str, Any]]:
        """Everything that can be drawn, in an order of `seed`. Raises UsageError where that is a continuum."""
        found = list(grid(self.parameters, self.base))
        random.Random(seed).shuffle(found)  # fewer trials than points should not see one corner
        return found

    def asked(self, run: RunRequest, drawn: Mapping[str, Any]) -> RunRequest:
        """What a `run` asks for whose cells are those of a trial with these settings drawn."""
        return dataclasses.replace(run, methods=(self.method,), settings=(*self.settings, *settings_of(drawn)))

    def name(self, sweep: str) -> str:
        """SWEEP/METHOD or SWEEP/METHOD/BITS."""
        return f"{sweep}/{self.method}" + (f"/{self.level:g}" if self.level is not None else "")


def plan_studies(request: SweepRequest) -> tuple[tuple[StudyPlan, ...], tuple[str, ...]]:
    """Every study with its share of the budget, and what must be said of them.

    Raises UsageError for a space that does not fit the methods, or that clashes with what is set.
    """
    assert request.space is not None
    space, recipe = request.space, resolve_recipe(request.run, read_settings(request.run.settings))
    _refuse_unknown_owners(space)
    found, notes = [], []
    for reference in request.references:
        study, said = _study(reference, request, space, recipe)
        notes += said
        levels, said = _levels(study, request, recipe) if request.same_bits else ([study], [])
        found += levels
        notes += said
    if not any(study.parameters or study.level is not None for study in found):
        groups = f"; declared groups: {', '.join(_groups(request.references))}" if space["declared"] else ""
        raise UsageError(f"none of the methods has anything to draw in this space{groups}", "choose another --space")
    return _shared_out(found, request, notes), tuple(notes)


def _refuse_unknown_owners(space: Raw) -> None:
    for owner in space["methods"]:
        if split_reference(owner)[0] not in METHODS:
            raise unknown("method in the space", owner, METHODS.names(), "`vqbench methods` lists them")
    declared = _groups(METHODS.names())
    for group in space["declared"]:
        if group != "all" and group not in declared:
            raise unknown(
                "group in `declared`", group, [*declared, "all"], "`vqbench show METHOD` lists what it declares"
            )


def _groups(references: Sequence[str]) -> list[str]:
    groups = set()
    for name in dict.fromkeys(split_reference(reference)[0] for reference in references):
        with contextlib.suppress(UsageError):  # a plugin that does not import is refused where it is asked for
            groups |= {drawn.group for drawn in METHODS.get(name).search_space.values() if drawn.group}
    return sorted(groups)


def _study(reference: str, request: SweepRequest, space: Raw, recipe: Recipe) -> tuple[StudyPlan, list[str]]:
    name, _ = split_reference(reference)
    settings = settings_for(request.run, reference)
    texts = read_settings(settings)
    fixed = {("recipe" if owner == "recipe" else name, field) for owner, fields in texts.items() for field in fields}
    parameters = [*_recipe_parameters(space, recipe, request), *_method_parameters(reference, space)]
    parameters, notes = _without_idle(parameters, reference, recipe, fixed)
    _refuse_clashes(parameters, fixed, request.run.images)
    check_order(parameters)
    choice = choose_method(reference, recipe, texts)
    base = {("recipe", field): value for field, value in recipe.as_dict().items()}
    base |= {(name, field): value for field, value in from_stored(METHODS.get(name).Config, choice.config).items()}
    return StudyPlan(reference, settings, tuple(parameters), base, 0), notes


def settings_for(run: RunRequest, reference: str) -> tuple[str, ...]:
    """The settings that concern one method: the recipe's and its own."""
    owners = {"recipe", reference, split_reference(reference)[0]}
    return tuple(text for text in run.settings if next(iter(read_settings((text,)))) in owners)


def _recipe_parameters(space: Raw, recipe: Recipe, request: SweepRequest) -> list[Parameter]:
    quantized = track_of(recipe).fixed
    fixed = (*_PROTOCOL, *quantized, *(("channel_multipliers",) if request.same_bits else ()))
    for field in space["recipe"]:
        if field in fixed:
            why = "what is quantized" if field in quantized else "what a number means"
            what = f"{field} cannot be drawn: trials would differ in {why}"
            raise UsageError(what, f"take it out of the space, and fix it: --set {field}=VALUE")
    see = f"vqbench show {recipe.name}"
    return [make_parameter("recipe", Recipe, f, domain_of(d, f"recipe.{f}"), see) for f, d in space["recipe"].items()]


def _method_parameters(reference: str, space: Raw) -> list[Parameter]:
    name, _ = split_reference(reference)
    cls, groups = METHODS.get(name), space["declared"]
    domains = {f: d for f, d in cls.search_space.items() if d.group in groups or "all" in groups}
    for owner in dict.fromkeys((name, reference)):
        written = space["methods"].get(owner, {})
        domains |= {field: domain_of(domain, f"{owner}.{field}") for field, domain in written.items()}
    return [make_parameter(name, cls.Config, f, d, f"vqbench show {name}") for f, d in domains.items()]


def _without_idle(
    parameters: list[Parameter], reference: str, recipe: Recipe, fixed: set[tuple[str, str]]
) -> tuple[list[Parameter], list[str]]:
    """Without sizes that this method does not follow. Raises UsageError where what it would follow is `fixed`."""
    name, preset = split_reference(reference)
    cls, kept, notes = METHODS.get(name), [], []
    known = {field for owner, field in fixed if owner == name} | (cls.presets.get(preset, {}) if preset else {}).keys()
    drawn = {p.field for p in parameters if p.owner == name}
    for p in parameters:
        if p.owner != "recipe" or p.field not in _SIZES:
            kept.append(p)
            continue
        asked = {field: getattr(recipe, field) for field in _SIZES}
        made = [cls.matched(*({**asked, p.field: p.typed(end)}[field] for field in _SIZES)) for end in p.ends()]
        moved = [field for field in made[0] if any(other.get(field) != made[0][field] for other in made)]
        for field in moved:
            if field in known | drawn:
                how = "set" if field in known else "in the space too"
                raise UsageError(f"{name}.{field} is {how}, and it is what {p.field} stands for in {name}",
                                 f"leave out {name}.{field}, or {p.field}")  # fmt: skip
        if moved:
            kept.append(p)
        else:
            notes.append(f"{reference} has no {p.field} of its own: it is not drawn for it")
    return kept, notes


def _refuse_clashes(parameters: list[Parameter], fixed: set[tuple[str, str]], images: int | None) -> None:
    for p in parameters:
        is_asked = images is not None and (p.owner, p.field) == ("recipe", "images")
        if is_asked or (p.owner, p.field) in fixed:
            option = "--images" if is_asked else f"--set {p.name}"
            raise UsageError(
                f"{p.name} is in the space, and {option} fixes it", f"leave out {option}, or choose a space without it"
            )


# levels of bits


def _levels(study: StudyPlan, request: SweepRequest, recipe: Recipe) -> tuple[list[StudyPlan], list[str]]:
    """The study once for each size in the space, if the method comes near its bits; a note for each that it misses."""
    size = domain_of(_size_of(request), "recipe.codebook_size")
    rest = tuple(p for p in study.parameters if (p.owner, p.field) != ("recipe", "codebook_size"))
    tokens = (recipe.resolution // recipe.downsampling) ** 2
    found, notes = [], []
    for value in make_parameter("recipe", Recipe, "codebook_size", size, "vqbench show tiny").points():
        settings = (*study.settings, f"codebook_size={as_text(value)}")
        texts = read_settings(settings)
        sized = dataclasses.replace(recipe, codebook_size=int(value))
        choice = choose_method(study.method, sized, texts)
        bits, level = tokens * _bits_per_token(choice.name, choice.config), tokens * math.log2(int(value))
        if abs(bits / level - 1) > BITS_MARGIN:
            notes.append(f"{study.method} is left out at {level:g} bits per image: it has {bits:.5g}")
            continue
        base = {**study.base, ("recipe", "codebook_size"): int(value)}
        base |= {(choice.name, field): v for field, v in choice.config.items()}
        found.append(dataclasses.replace(study, settings=settings, parameters=rest, base=base, level=level, bits=bits))
    return found, notes


def _size_of(request: SweepRequest) -> Mapping[str, Any]:
    assert request.space is not None
    domain: Mapping[str, Any] | None = request.space["recipe"].get("codebook_size")
    if domain is None:
        raise UsageError("--same-bits needs codebook_size in the space: its values are the levels of bits",
                         "add --space codebook, or write `recipe: {codebook_size: [256, 1024]}`")  # fmt: skip
    if domain.get("when"):
        raise UsageError("--same-bits takes codebook_size for the levels, which depend on nothing", "leave out `when`")
    return domain


def _bits_per_token(name: str, config: dict[str, Any]) -> float:
    from vqbench.tokenizer import build_quantizer

    return float(build_quantizer(name, config).bits_per_token)


# the budget


def _shared_out(studies: list[StudyPlan], request: SweepRequest, notes: list[str]) -> tuple[StudyPlan, ...]:
    """Trials for each study: an even share of `--trials`, the remainder to the first, or `--trials-per-method`.

    A grid has at most its points, and a study that draws nothing has one trial.
    """
    total = request.trials or DEFAULT_TRIALS
    if request.trials_per_method is None and total < len(studies):
        raise UsageError(f"--trials {total} is less than one for each of {len(studies)} studies",
                         f"--trials {len(studies)} or more, or --trials-per-method")  # fmt: skip
    shared = []
    for i, study in enumerate(studies):
        share = request.trials_per_method or total // len(studies) + (i < total % len(studies))
        is_listed = request.sampler == "grid" or not study.parameters  # of nothing to draw there is one point
        points = len(list(grid(study.parameters, study.base))) if is_listed else None
        title = study.method + (f" at {study.level:g} bits" if study.level is not None else "")
        if not study.parameters and study.level is None:
            notes.append(f"{title} has nothing to draw in this space: one trial")
        elif points is not None and share < points:
            notes.append(f"{title}: {share} of the {points} points of the grid, chosen by --sampler-seed")
        elif points is not None and share > points:
            notes.append(f"{title}: the grid has {points} points, and so many trials")
        shared.append(dataclasses.replace(study, trials=min(share, points) if points else share))
    return tuple(shared)
