"""What a run needs and may lack, found out before the first training step: weights, disk, a place to write."""

from __future__ import annotations

import functools
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vqbench.artifact import Artifact
from vqbench.cell.tracks import track_of
from vqbench.errors import UsageError, remedy, unknown
from vqbench.machine.home import home
from vqbench.metrics.definitions import metric, needed_weights, of_channels, select_metrics, too_small, weights_of
from vqbench.metrics.kinds import RGB
from vqbench.metrics.named import named_protocol
from vqbench.planning.choice import MethodChoice, read_settings
from vqbench.planning.plan import Cell, Plan, Resolved, begin, check_request, resolve_recipe
from vqbench.planning.request import RunRequest
from vqbench.planning.view import View
from vqbench.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

    from vqbench.backbone import BackboneConfig
    from vqbench.data.dataset import Dataset

LPIPS_NETS = ("alex", "vgg", "squeeze")
_CELL_BYTES = 16e6  # results, curves, features of a few thousand images and log of one cell
_CHECKPOINTS = 2 * 5  # weights, two moments, an average, a discriminator; the new checkpoint beside the old


@dataclass(frozen=True)
class MetricChoice:
    """The metrics that a run computes."""

    names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What must be said of those that are left out."""
    problems: tuple[UsageError, ...] = ()
    """Weights that the metrics need and that cannot be had."""


def choose_metrics(request: RunRequest, recipe: Recipe, download: bool = True, insist: bool = False) -> MetricChoice:
    """Resolve `--metrics` and `--lpips` against the images and the weights that this machine has or can get.

    Left out of the default set, with a note, are LPIPS where its weights cannot be had and metrics that the recipe's
    images are too small for; what was asked for by name, and rFID's Inception, are problems then. A
    download of optional weights that failed is not tried again for an hour, unless we `insist`. Raises UsageError
    for an unknown metric or net, and for one that the recipe's track does not have.
    """
    asked = _asked(request, recipe)
    asked, notes = _large_enough(asked, recipe.resolution, by_name=bool(request.metrics))
    optional = () if request.metrics or request.lpips else tuple(n for n in asked if n.startswith("lpips_"))
    spared = {weights_of(metric(name)) for name in optional} if not insist else set()
    missing = {
        w: problem for w in needed_weights(asked) if (problem := _cannot_have(w, request, download, w in spared))
    }
    left_out = [name for name in optional if weights_of(metric(name)) in missing]
    names = tuple(name for name in asked if name not in left_out)
    for name in left_out:
        file = missing[weights_of(metric(name))].what.partition(";")[0]
        notes.append(f"{metric(name).title} is left out: {file} (`vqbench doctor` says how to get it)")
    return MetricChoice(names, tuple(notes), tuple(missing[w] for w in needed_weights(names) if w in missing))


def _asked(request: RunRequest, recipe: Recipe) -> tuple[str, ...]:
    """The metrics by name; whether they can be had here is not looked at."""
    scored_as = track_of(recipe).scored_as
    if request.lpips is not None and request.lpips not in LPIPS_NETS:
        raise unknown("LPIPS net", request.lpips, LPIPS_NETS, "choose one: --lpips alex|vgg|squeeze")
    channels = recipe.image_channels if scored_as == "images" else RGB
    protocol = named_protocol(request.protocol_name)
    asked = select_metrics(request.metrics, scored_as, channels, protocol)
    if request.lpips is not None:
        if scored_as not in metric(f"lpips_{request.lpips}").tracks:
            raise UsageError(
                f"--lpips {request.lpips} compares images, and recipe '{recipe.name}' fits {scored_as}",
                "leave --lpips (VQBENCH_LPIPS) out",
            )
        others = [name for name in asked if request.metrics or not name.startswith("lpips_")]
        lpips = of_channels(f"lpips_{request.lpips}", channels)
        if protocol is not None:
            lpips = protocol.in_place_of.get(lpips, lpips)
        asked = select_metrics([*others, lpips], channels=channels, protocol=protocol)
    return asked


def _large_enough(asked: tuple[str, ...], resolution: int, by_name: bool) -> tuple[tuple[str, ...], list[str]]:
    """The metrics that are defined at `resolution`, and a note for each that is not."""
    small = [metric(name) for name in asked if too_small(name, resolution)]
    if small and by_name:
        raise UsageError(
            f"{small[0].name} is defined from {small[0].min_resolution} pixels a side, not at {resolution}",
            "leave it out of --metrics, or --set resolution=…",
        )
    notes = [f"{m.title} is left out: it is defined from {m.min_resolution} pixels a side" for m in small]
    return tuple(name for name in asked if metric(name) not in small), notes


def missing_weights(asked: Resolved, metrics: MetricChoice, download: bool = True) -> list[UsageError]:
    """Why weights cannot be had: of the metrics, of the recipe's LPIPS term, or of what methods are built around."""
    problems, net = list(metrics.problems), asked.recipe.perceptual
    if net != "none" and (problem := _cannot_have(net, asked.request, download)) is not None:
        problems.append(problem)
    for choice, needed in _artifacts(asked):
        features = needed.made_of
        problem = _cannot_have(features.weights, asked.request, download) if features else None
        if problem is not None:
            what = f"the codebook of {choice.label} is made with a network: {problem.what}"
            problems.append(UsageError(what, problem.hint))
    return problems


def _artifacts(asked: Resolved) -> list[tuple[MethodChoice, Artifact]]:
    """What methods are built around, as far as the track has it to give."""
    found = [(choice, Artifact.of(choice.artifact)) for choice in asked.choices if choice.artifact is not None]
    return [(choice, needed) for choice, needed in found if asked.track.gives(needed)]


def _images_for(artifacts: Iterable[Artifact], request: RunRequest, recipe: Recipe) -> Dataset | None:
    """The dataset, where any of them is made of its images."""
    made = any(needed.made_of for needed in artifacts)
    return request.data.open(recipe.resolution, recipe.image_channels) if made else None


def prepare_training(plan: Plan, cells: Iterable[Cell], request: RunRequest, view: View) -> None:
    """Cache what `cells` of a plan are trained on and built around, so that they do not all make it."""
    from vqbench.cell.planned import artifact

    if not (cells := [cell for cell in cells if cell.trains]):
        return
    plan.track.prepare_training(plan.recipe, request.data, view.note, view.preparing)
    different = {cell.spec["artifact"]["digest"]: cell.spec for cell in cells if "artifact" in cell.spec}
    dataset = _images_for((Artifact.of(spec["artifact"]) for spec in different.values()), request, plan.recipe)
    for spec in different.values():
        artifact(spec, dataset, lambda done, total: view.preparing("images for a codebook", done, total))


def _cannot_have(weights: str, request: RunRequest, download: bool, optional: bool = False) -> UsageError | None:
    from vqbench.metrics.weights import require_weights

    try:
        require_weights(weights, _given(request, weights), download, optional=optional)
    except UsageError as error:
        return error
    return None


def _given(request: RunRequest, weights: str) -> Path | None:
    """The file of the user's that an option names for these weights."""
    from vqbench.metrics.weights import pin_of

    option = pin_of(weights).option
    return getattr(request, option) if option else None


def check_runs_directory(folder: Path) -> None:
    """Raise UsageError where results could not be written below `folder`, which is created."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-{uuid.uuid4().hex[:8]}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise UsageError(
            f"cannot write to {folder}: {reason}", f"{remedy(error)}, or choose another: --runs DIR"
        ) from None


def estimated_bytes(cells: Sequence[Cell]) -> float:
    """Disk that training `cells` one after the other takes at most, checkpoints included."""
    weights = [4.0 * model_size(cell) for cell in cells]  # float32; checkpoints go when a cell ends
    return sum(weights) + _CELL_BYTES * len(cells) + _CHECKPOINTS * max(weights, default=0.0)


def model_size(cell: Cell) -> int:
    """How many values the model of a cell has, trained or not; a quantizer that cannot be built counts for nothing.

    One that is trained already is not written to the runs directory, and has none.
    """
    from vqbench.backbone import BackboneConfig

    if not cell.trains:
        return 0
    config = json.dumps(cell.spec["config"], sort_keys=True)
    return _model_size(BackboneConfig.of(cell.recipe), cell.spec["method"], cell.spec["code"], config)


@functools.lru_cache(maxsize=1024)
def _model_size(shape: BackboneConfig, method: str, code: str | None, config: str) -> int:
    """`code` tells one content of a plugin from another."""
    import torch

    from vqbench.backbone import Decoder, Encoder
    from vqbench.tokenizer import build_quantizer, configured

    with torch.device("meta"):
        encoder, decoder = Encoder(shape), Decoder(shape)
    try:
        quantizer = build_quantizer(method, configured(method, json.loads(config)))
        with torch.device("meta"):
            decoder.modulate_norms(quantizer.decoder_modulation)
        own = _size(quantizer)
    except Exception:  # its cell will fail with the reason, and the others must not
        own = 0
    return _size(encoder) + _size(decoder) + own


def _size(module: nn.Module) -> int:
    return sum(value.numel() for value in (*module.parameters(), *module.buffers()))


def check_disk(plan: Plan, cells: list[Cell]) -> None:
    """Raise UsageError where training `cells` would not fit on the disk of the runs directory."""
    need, free = estimated_bytes(cells), shutil.disk_usage(plan.folder).free
    if need > free:
        raise UsageError(
            f"{plan.folder} has {free / 1e9:.2f} GB free, this run may take {need / 1e9:.2f} GB",
            "free some space, or choose another disk: --runs DIR",
        )


def prepare_everything(
    request: RunRequest, note: Callable[[str], None], preparing: Callable[[str, int, int], None]
) -> list[str]:
    """Get and check data and weights for a recipe on a dataset; returns a line for each thing that is ready.

    Raises UsageError that names what is missing or broken; images that are more than it names are notes.
    """
    from vqbench.data.decode import SHOWN, UnusableImagesError

    try:
        return _prepared(request, note, preparing)
    except UnusableImagesError as error:
        for image in error.bad[SHOWN:]:
            note(image.what)
        raise


def _prepared(
    request: RunRequest, note: Callable[[str], None], preparing: Callable[[str, int, int], None]
) -> list[str]:
    from vqbench.metrics.weights import find_weights

    asked = _resolved(request)
    recipe = asked.recipe
    _asked(request, recipe)  # a typing error, before anything is downloaded
    lines = asked.track.prepare(recipe, request.data, note, preparing, request.workers)
    metrics = choose_metrics(request, recipe, insist=True)
    for text in metrics.notes:
        note(text)
    for problem in missing_weights(asked, metrics):
        raise problem
    of_artifacts = [features.weights for _, needed in _artifacts(asked) if (features := needed.made_of)]
    for weights in dict.fromkeys([*needed_weights(metrics.names), recipe.perceptual, *of_artifacts]):
        if weights != "none":
            found = find_weights(weights, _given(request, weights))
            lines.append(f"weights   {weights}: {getattr(found, 'path', found)}")
    return [*lines, *_made(asked, preparing), "ready"]


def _resolved(request: RunRequest) -> Resolved:
    if request.methods:
        return check_request(request)
    begin(request)
    recipe = resolve_recipe(request, read_settings(request.settings))
    return Resolved(request, recipe, track_of(recipe), ())


def verify_everything(request: RunRequest, preparing: Callable[[str, int, int], None]) -> list[str]:
    """Check what `prepare_everything` has kept of a dataset; a line for each side. Raises UsageError as it does."""
    asked = _resolved(request)
    return [*asked.track.verify(asked.recipe, request.data, preparing), "whole"]


def _made(asked: Resolved, preparing: Callable[[str, int, int], None]) -> Iterator[str]:
    """Make what methods are built around; a line for each."""
    from vqbench.data.artifacts import load_artifact

    artifacts = _artifacts(asked)
    dataset = _images_for((needed for _, needed in artifacts), asked.request, asked.recipe)
    for choice, needed in artifacts:
        advance = functools.partial(preparing, f"images for the codebook of {choice.label}")
        load_artifact(needed, dataset, asked.request.inception_weights, home(), advance)
        vectors, channels = needed.shape
        yield f"codebook  {choice.label}: {vectors:,} vectors of {channels} channels, {needed.rule}"
