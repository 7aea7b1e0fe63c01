"""What a run needs and may lack, found out before the first training step: weights, disk, a place to write."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vqbench.errors import UsageError, unknown
from vqbench.metrics.definitions import METRICS, default_metrics, needed_weights, select_metrics
from vqbench.plan import Plan, RunRequest, read_settings, resolve_recipe

LPIPS_NETS = ("alex", "vgg", "squeeze")
_CELL_BYTES = 64e6  # results, curves, features and log of one cell, generously
_BYTES_PER_PARAMETER = 4 * 4 * 2  # weights, two moments and an average in float32; the new checkpoint beside the old


@dataclass(frozen=True)
class MetricChoice:
    """The metrics that a run computes."""

    names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What must be said of those that are left out."""
    problems: tuple[UsageError, ...] = ()
    """Weights that the metrics need and that cannot be had."""


def choose_metrics(request: RunRequest, download: bool = True) -> MetricChoice:
    """Resolve `--metrics` and `--lpips` against the weights that this machine has or can get.

    LPIPS is left out of the default set where its weights cannot be had, and a note says so; what was asked for
    by name, and rFID's Inception, are problems then. Raises UsageError for an unknown metric or net.
    """
    if request.lpips is not None and request.lpips not in LPIPS_NETS:
        raise unknown("LPIPS net", request.lpips, LPIPS_NETS, "choose one: --lpips alex|vgg|squeeze")
    asked = select_metrics(request.metrics) if request.metrics else default_metrics()
    if request.lpips is not None:
        others = [name for name in asked if request.metrics or not name.startswith("lpips_")]
        asked = tuple(name for name in METRICS if name in {*others, f"lpips_{request.lpips}"})
    optional = () if request.metrics or request.lpips else tuple(n for n in asked if n.startswith("lpips_"))
    missing = {w: problem for w in needed_weights(asked) if (problem := _cannot_have(w, request, download))}
    left_out = [name for name in optional if METRICS[name].weights in missing]
    names = tuple(name for name in asked if name not in left_out)
    notes = []
    for name in left_out:
        file = missing[METRICS[name].weights or ""].what.partition(";")[0]
        notes.append(f"{METRICS[name].title} is left out: {file} (`vqbench doctor` says how to get it)")
    return MetricChoice(names, tuple(notes), tuple(missing[w] for w in needed_weights(names) if w in missing))


def perceptual_problem(request: RunRequest, net: str, download: bool = True) -> UsageError | None:
    """Why the recipe's LPIPS term cannot be computed here, or None if it can or there is none."""
    return _cannot_have(net, request, download) if net != "none" else None


def _cannot_have(weights: str, request: RunRequest, download: bool) -> UsageError | None:
    from vqbench.weights import require_inception, require_lpips

    try:
        if weights == "inception":
            require_inception(request.inception_weights, download)
        else:
            require_lpips(weights, request.lpips_weights, download)
    except UsageError as error:
        return error
    return None


def check_runs_directory(folder: Path) -> None:
    """Raise UsageError where results could not be written below `folder`, which is created."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-{uuid.uuid4().hex[:8]}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise UsageError(f"cannot write to {folder}: {reason}", "choose another folder: --runs DIR") from None


def estimated_bytes(plan: Plan) -> float:
    """Disk that the plan's unfinished cells take at most, checkpoints included."""
    import torch

    from vqbench.backbone import BackboneConfig, Decoder, Encoder, count_parameters
    from vqbench.tokenizer import build_quantizer

    unfinished = [cell for cell in plan.cells if cell.state != "cached"]
    total = 0.0
    with torch.device("meta"):
        shape = BackboneConfig.of(plan.recipe)
        backbone = count_parameters(Encoder(shape)) + count_parameters(Decoder(shape))
        for cell in unfinished:
            own = count_parameters(build_quantizer(cell.spec["method"], cell.spec["config"]))
            total += _CELL_BYTES + (backbone + own) * _BYTES_PER_PARAMETER
    return total


def check_disk(plan: Plan) -> None:
    """Raise UsageError where the cells that are left would not fit on the disk of the runs directory."""
    need, free = estimated_bytes(plan), shutil.disk_usage(plan.folder).free
    if need > free:
        raise UsageError(
            f"{plan.folder} has {free / 1e9:.2f} GB free, this run may take {need / 1e9:.2f} GB",
            "free some space, or choose another disk: --runs DIR",
        )


def prepare_everything(
    request: RunRequest, note: Callable[[str], None], preparing: Callable[[str, int, int], None]
) -> list[str]:
    """Get and check data and weights for a recipe on a dataset; returns a line for each thing that is ready.

    Raises UsageError that names what is missing or broken.
    """
    from vqbench.data.dataset import open_dataset
    from vqbench.data.prepare import prepare_train, prepare_validation
    from vqbench.home import home
    from vqbench.protocol import protocol_for
    from vqbench.weights import find_inception, find_lpips

    recipe = resolve_recipe(request, read_settings(request.settings))
    dataset = open_dataset(
        request.dataset, recipe.resolution, request.data_root, request.validation_images, download=True
    )
    for text in dataset.notes:
        note(text)
    validation = prepare_validation(dataset, home(), lambda done, total: preparing("validation images", done, total))
    train = prepare_train(dataset, home(), lambda done, total: preparing("training images", done, total))
    protocol = protocol_for(
        dataset.protocol_name, recipe.resolution, validation.digest, len(validation), dataset.split_rule
    )
    metrics = choose_metrics(request)
    for text in metrics.notes:
        note(text)
    for problem in (*metrics.problems, perceptual_problem(request, recipe.perceptual)):
        if problem is not None:
            raise problem
    lines = [
        f"data      {dataset.reference}: {len(train):,} training and {len(validation):,} validation images, "
        f"{recipe.resolution} px",
        f"protocol  {protocol.name} {protocol.hash}",
    ]
    for weights in dict.fromkeys([*needed_weights(metrics.names), recipe.perceptual]):
        if weights != "none":
            found = (
                find_inception(request.inception_weights)
                if weights == "inception"
                else find_lpips(weights, request.lpips_weights)
            )
            lines.append(f"weights   {weights}: {getattr(found, 'path', found)}")
    return [*lines, "ready"]
