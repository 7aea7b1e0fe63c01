"""Tokenizers that are trained already, scored: the cells of a run in which nothing is trained."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vqbench import arguments
from vqbench.cell.tracks import track_of
from vqbench.config import build
from vqbench.errors import UsageError
from vqbench.planning.choice import MethodChoice, split_reference
from vqbench.planning.plan import Resolved, begin
from vqbench.planning.request import EvalRequest, RunRequest, make_request
from vqbench.planning.source_choice import (
    apart,
    choose_source,
    names_source,
    refuse_unfit,
    seen_by,
    split_name,
)
from vqbench.pretrained.opening import EXAMPLES, IMAGES, folders_of, refuse_idle_options
from vqbench.recipe import Recipe
from vqbench.registry import METHODS
from vqbench.running.run import execute, frame, make_tracker

if TYPE_CHECKING:
    import pandas as pd

_USUAL = 256
"""The side of images where no source says another."""


def check_evaluation(request: EvalRequest) -> Resolved:
    """What can be found wrong before any image is read: the sources are opened. Raises UsageError."""
    run = request.run
    begin(run)
    if not run.methods:
        raise UsageError("no tokenizer to score", f"a tokenizer is {EXAMPLES}")
    for asked in run.methods:
        _refuse_other(asked)
    run = replace(run, dataset=run.dataset or _originals(run.methods))
    choices = [choose_source(asked, run) for asked in dict.fromkeys(run.methods)]
    refuse_idle_options([choice.facts.kind for choice in choices], run.family, run.trust)
    recipe = _recipe(choices, request.resolution)
    refuse_unfit(choices, recipe, run.data)
    track = track_of(recipe)
    track.refuse(recipe, run.data, run.devices)
    run = replace(run, split=request.split or _split(run, recipe, choices))
    return Resolved(run, recipe, track, tuple(apart(choices)))


def _split(run: RunRequest, recipe: Recipe, choices: Iterable[MethodChoice]) -> str:
    """What is scored where nobody says it: the validation images, or all of what has no split of its own, unless one of
    the tokenizers may have been trained on some of them."""
    if run.holdout is not None or run.split_list is not None:
        return "val"
    data = replace(run, split="all").data
    whole = data.open(recipe.resolution, recipe.image_channels)
    return "val" if whole.has_own_split or any(seen_by(choice, whole, data) for choice in choices) else "all"


def _refuse_other(asked: str) -> None:
    if names_source(asked):
        return
    if split_reference(asked)[0] in METHODS:
        what = f"{asked} is a method, which has to be trained before it can be scored"
        raise UsageError(what, f"vqbench run --methods {asked} …; of a finished cell give the folder")
    raise UsageError(f"there is no {asked}", f"a tokenizer is {EXAMPLES}")


def _originals(sources: Iterable[str]) -> str:
    """The dataset where none is named: the originals of a folder of reconstructions."""
    for source in sources:
        text = split_name(source)[1]
        if text.startswith(IMAGES) and (originals := folders_of(text)[1]) is not None:
            return f"folder:{originals}"
    return ""


def _recipe(choices: Iterable[MethodChoice], resolution: int | None) -> Recipe:
    """What is held equal where nothing is trained: the images."""
    known = [choice.facts for choice in choices]
    sides = dict.fromkeys(side for facts in known for side in (facts.sizes[:1] or (facts.resolution,)) if side)
    if resolution is None and len(sides) > 1:
        what = f"the tokenizers were trained on images of {' and '.join(map(str, sides))} px"
        raise UsageError(what, f"say on which to compare them: --resolution {max(sides)}")
    side = resolution if resolution is not None else next(iter(sides), _USUAL)
    if side < 1:
        raise UsageError(f"--resolution {side} is no side of an image", f"for example: --resolution {_USUAL}")
    said = {"name": "eval", "resolution": side, "channel_multipliers": (1,), "image_channels": known[0].image_channels}
    recipe: Recipe = build(Recipe, said, "recipe", "vqbench show tiny")
    return recipe


@arguments.offers(RunRequest, EvalRequest)
def evaluate(
    sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    dataset: str | os.PathLike[str] = "",
    *,
    track: bool = True,
    **options: Any,
) -> pd.DataFrame:
    """Score tokenizers that are trained already, as `vqbench eval` does; one row for each, one column per score.

    `options` are the command's, see EvalRequest and RunRequest; `track=False` leaves MLflow out. A failed cell is a
    row whose `error` says why. Raises UsageError for what cannot be scored at all.
    """
    of_run, of_eval = arguments.by_keyword(evaluate, options, RunRequest, EvalRequest)
    run = make_request(sources, dataset, evaluate, **of_run)
    tracker = make_tracker(run, track)
    return frame(execute(check_evaluation(EvalRequest(run, **of_eval)), tracker=tracker, kind="eval").rows)
