"""A shorter fit of a cell of features, and its evaluation, with the time of everything."""

from __future__ import annotations

import dataclasses
import time

from vqbench.cell.feature_cell import train_and_evaluate
from vqbench.cell.measured import Measured
from vqbench.cell.outcome import write_result
from vqbench.cell.sizes import sizes
from vqbench.cell.stopwatch import STRETCH_STEPS, Stopwatch, short_spec, shortened, training_times
from vqbench.recipe import Recipe
from vqbench.results.cell_folder import CellFolder

_STRETCH_STEPS = 25
"""At most as many in a stretch: they take milliseconds."""


def probe(folder: CellFolder, recipe: Recipe, watch: Stopwatch, started: float, spawned: float) -> Measured:
    """A shorter fit and all of the evaluation, which takes seconds."""
    # the progress of a fit is told with every point of its curves
    steps = min(max(STRETCH_STEPS, recipe.log_images // recipe.batch_size), _STRETCH_STEPS)
    short = shortened(recipe, steps)
    short = dataclasses.replace(short, log_images=short.checkpoint_images)
    found = train_and_evaluate(folder, short_spec(folder, short), short, watch)
    write_result(folder, started, found)
    times = training_times(watch.of("train"), short)
    evaluation_seconds = time.monotonic() - watch.entered["evaluate"]
    first = watch.of("train")[0]
    overhead = first.clock - first.done / short.batch_size * times.step - spawned + times.warm_up
    overhead += watch.entered["evaluate"] - watch.of("train")[-1].clock
    return Measured(
        overhead_seconds=max(0.0, overhead),
        step_seconds=times.step,
        adversarial_step_seconds=0.0,
        checkpoint_seconds=0.0,
        evaluation_seconds=evaluation_seconds,
        evaluation_image_seconds=0.0,
        reference_image_seconds=0.0,
        reference_is_cached=True,
        image_bytes=0.0,
        reference_image_bytes=0.0,
        device=found["device"],
        device_name=found["device_name"],
        **sizes(folder, short),
    )
