"""How Optuna draws for a sweep, and what it ends early."""

from __future__ import annotations

import math
from typing import Any

POPULATION = 10  # of nsga2: budgets are tens of trials, and Optuna's 50 would leave them to chance


def make_sampler(kind: str, seed: int, trials: int) -> Any:
    """A sampler for a study of so many trials."""
    from optuna.samplers import NSGAIISampler, RandomSampler, TPESampler

    if kind == "tpe":
        return TPESampler(seed=seed, n_startup_trials=int(blind_trials(kind, trials)), constant_liar=True)
    if kind == "nsga2":
        return NSGAIISampler(seed=seed, population_size=POPULATION)
    return RandomSampler(seed=seed)  # a grid's points are queued, so nothing is left to draw


def blind_trials(kind: str, trials: int) -> float:
    """How many of a study's trials a sampler draws without looking at any score; infinite where it never looks."""
    if kind == "tpe":  # a quarter: with Optuna's ten, a short sweep would be random altogether
        return min(10, max(4, trials // 4))
    return POPULATION if kind == "nsga2" else math.inf


def make_pruner(kind: str, images: int, trials: int) -> Any:
    """A pruner for a study of so many trials, each of so many training images."""
    from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner

    if kind == "median":  # as for a collapse, nothing is judged in the first tenth
        return MedianPruner(n_startup_trials=min(5, max(1, trials // 4)), n_warmup_steps=images // 10)
    if kind == "hyperband":
        return HyperbandPruner(min_resource=max(1, images // 27), max_resource=images, reduction_factor=3)
    return NopPruner()
