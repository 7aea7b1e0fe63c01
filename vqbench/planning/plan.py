"""From a command to its cells: what would be trained, what is cached, what is half done. Never imports torch."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqbench.arguments import options
from vqbench.artifact import Artifact
from vqbench.config import build
from vqbench.data.artifacts import artifact_digest
from vqbench.errors import ArtifactError, UsageError, unknown
from vqbench.facts import Facts
from vqbench.machine.home import expanded, working_folder
from vqbench.metrics.definitions import asked_metrics, companions, digests, has_scores, metric, without_codes
from vqbench.metrics.feature_protocol import FeatureProtocol
from vqbench.metrics.protocol import Protocol
from vqbench.planning.choice import MethodChoice, choose_method, folder_name, read_settings, split_reference
from vqbench.planning.request import ALL, RunRequest, refuse_odd_bytes, refuse_odd_engine, refuse_odd_name
from vqbench.planning.source_choice import (
    apart,
    choose_source,
    names_source,
    refuse_unfit,
    seen_by,
    told_of,
)
from vqbench.plugin import Plugin
from vqbench.pretrained.initial import starting_from
from vqbench.pretrained.opening import door, refuse_idle_options
from vqbench.recipe import Execution, Recipe, compiled_by_default, load_recipe
from vqbench.registry import EXTRACTORS, METHODS, METRICS, add_plugin
from vqbench.results.cell_files import SCHEMA
from vqbench.results.cell_folder import CellFolder
from vqbench.wording import size_text

if TYPE_CHECKING:
    from vqbench.cell.track import Track

_LONGEST_NAME = 255  # bytes; what disks take


@dataclass(frozen=True)
class Cell:
    """One method configuration × recipe × protocol × seed."""

    label: str
    """The method as it was asked for, with its preset: the name of its row."""
    spec: dict[str, Any]
    folder: CellFolder
    state: str
    """cached, partial, missing or failed."""
    plugin_sources: tuple[bytes, ...] = ()
    """Its plugins as they were when the plan was made (`Plugin.packed`); their sha256 is in the spec."""
    found: tuple[int, int] | None = None
    """Stamp of the result that was there when the plan was made."""

    @property
    def seed(self) -> int:
        """The seed among --seeds."""
        return int(self.spec["seed"])

    @property
    def trains(self) -> bool:
        """Whether it is of a method to train, and not of a tokenizer that is trained already."""
        return "pretrained" not in self.spec

    @property
    def recipe(self) -> Recipe:
        """What it is trained with, from its spec."""
        recipe: Recipe = build(Recipe, self.spec["recipe"], "recipe", "vqbench show tiny")
        return recipe


@dataclass(frozen=True)
class Plan:
    """The cells that a command stands for, in the order in which they run."""

    experiment: str
    folder: Path
    cells: tuple[Cell, ...]
    recipe: Recipe
    track: Track
    protocol: Protocol | FeatureProtocol
    notes: tuple[str, ...] = field(default=())
    """What must be said aloud before the run."""

    @property
    def asked(self) -> tuple[str, ...]:
        """The metrics that were asked for by name."""
        return tuple(dict.fromkeys(name for cell in self.cells for name in asked_metrics(cell.spec)))


def _refuse_stray_settings(settings: dict[str, dict[str, str]], methods: tuple[str, ...]) -> None:
    owners = {"recipe", *methods, *(split_reference(method)[0] for method in methods)}
    for owner in settings:
        if owner not in owners:
            raise unknown("method in --set", owner, owners, "--set takes METHOD.FIELD=VALUE of a method in --methods")


def resolve_recipe(request: RunRequest, settings: dict[str, dict[str, str]]) -> Recipe:
    """The recipe with what the command sets over it."""
    overrides: dict[str, Any] = dict(settings.get("recipe", {}))
    if request.images is not None:
        overrides["images"] = request.images
    return load_recipe(request.recipe or "tiny", overrides)


def cell_hash(identity: dict[str, Any]) -> str:
    """sha256 of everything that influences a cell's numbers, as hex."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class Resolved:
    """A request whose recipe and methods exist and fit; neither data nor weights were looked at."""

    request: RunRequest
    recipe: Recipe
    track: Track
    choices: tuple[MethodChoice, ...]

    @property
    def execution(self) -> Execution:
        """How the cells are trained."""
        asked = self.request
        return Execution(
            compile=compiled_by_default(self.recipe) if asked.compile is None else asked.compile,
            deterministic=asked.deterministic,
            micro_batch=asked.micro_batch or 0,
            activation_checkpointing=asked.activation_checkpointing,
        )

    @property
    def execution_identity(self) -> dict[str, Any]:
        """What of it is part of the cells' hash."""
        return self.execution.identity(self.recipe.dropout, self.recipe.batch_size // self.request.devices)


def begin(request: RunRequest) -> None:
    """Register the plugins of a request. Raises UsageError for what no command can be asked."""
    working_folder()
    refuse_odd_bytes(request)
    refuse_odd_engine(request)
    for plugin in request.plugins:
        add_plugin(plugin)


def check_request(request: RunRequest) -> Resolved:
    """What can be found wrong before anything is downloaded or decoded. Registers plugins; raises UsageError."""
    begin(request)
    if ALL in request.methods:
        each = (METHODS.names() if asked == ALL else [asked] for asked in request.methods)
        request = replace(request, methods=tuple(dict.fromkeys(itertools.chain.from_iterable(each))))
    return resolve(request)


def resolve(request: RunRequest) -> Resolved:
    """Find the recipe and the methods of a request, and check them. Raises UsageError."""
    from vqbench.cell.tracks import track_of

    settings = read_settings(request.settings)
    _refuse_stray_settings(settings, request.methods)
    recipe = resolve_recipe(request, settings)
    _refuse_odd_devices(recipe, request.devices)
    track = track_of(recipe)
    track.refuse(recipe, request.data, request.devices)
    _refuse_odd_execution(request, recipe)
    if not request.methods:
        raise UsageError("no method to run", "for example: --methods vaevq,vqgan")
    if not request.seeds:
        raise UsageError("no seed to run", "for example: --seeds 0,1,2")
    return Resolved(request, recipe, track, _chosen(request, recipe, settings))


def _chosen(request: RunRequest, recipe: Recipe, settings: dict[str, dict[str, str]]) -> tuple[MethodChoice, ...]:
    choices = [
        choose_source(asked, request) if names_source(asked) else choose_method(asked, recipe, settings)
        for asked in dict.fromkeys(request.methods)
    ]
    if recipe.track == "features" and (stray := [choice.label for choice in choices if choice.pretrained]):
        what = f"{stray[0]} is a tokenizer of images, and recipe {recipe.name} fits features"
        raise UsageError(what, "choose a recipe of images: `vqbench recipes`; or `vqbench eval` for it alone")
    request.data.refuse_training([choice.label for choice in choices if not choice.pretrained])
    sources = [choice for choice in choices if choice.pretrained]
    kinds = [choice.facts.kind for choice in sources]
    if request.init_from:
        kinds.append(door(request.init_from))
    refuse_idle_options(kinds, request.family, request.trust)
    refuse_unfit(sources, recipe, request.data)
    return tuple(apart(choices))


def make_plan(
    asked: Resolved,
    metrics: tuple[str, ...],
    progress: Callable[[int, int], None] | None = None,
    source: tuple[Any, Protocol | FeatureProtocol] | None = None,
) -> Plan:
    """The cells of a request. Reads the validation images (cached) since they are part of the protocol.

    `source` is what the track has opened before of the same data. Raises UsageError for everything that is wrong with
    the request, before anything is trained or written.
    """
    request, recipe = asked.request, asked.recipe
    choices = starting_from((request.init_from, request.family, request.trust), asked.choices, recipe)
    said = [(choice.label, text) for choice in choices for text in (choice.remark, size_text(choice.size)) if text]
    remarks = tuple(f"{label}: {text}" for label, text in said)
    if asked.execution_identity:
        remarks += (
            "with --micro-batch dropout is drawn otherwise than for a whole batch: these are cells of their own",
        )
    dataset, protocol = source or asked.track.open(recipe, request.data, progress)
    experiment = request.name or f"{dataset.slug}-{recipe.name}"
    refuse_odd_name("--name", experiment)
    folder = Path(os.path.abspath(request.runs)) / experiment
    beside, images_from = _plugins_of(metrics), asked.track.plugin(request.data)
    beside |= {images_from.digest: images_from} if images_from is not None else {}
    choices = tuple(_with_artifact(choice, asked.track, dataset) for choice in choices)
    remarks += tuple(f"{choice.label}: {asked.track.stand_in}" for choice in choices if choice.artifact == {})
    if not asked.track.has_decoder:
        without = "what it does in the decoder is not seen here, where there is none"
        remarks += tuple(f"{choice.label}: {without}" for choice in choices if choice.conditions_decoder)
    seen = ((choice.label, seen_by(choice, dataset, request.data)) for choice in choices if choice.pretrained)
    remarks += tuple(f"{label}: {said}" for label, said in seen if said)
    cells = []
    for seed, choice in _each_cell(request.seeds, choices):
        others = [plugin for digest, plugin in beside.items() if digest != choice.code]
        spec = _spec(choice, asked, dataset, protocol, seed, metrics, images_from, others)
        of_folder = 0 if choice.pretrained else seed  # what is trained already has its seed in its name, if it has one
        name = f"{folder_name(choice.name)}-{dataset.slug}-s{of_folder}-{spec['hash'][:8]}"
        if len(name) > _LONGEST_NAME:
            raise UsageError(f"{name[:60]}… is too long for the folder of a cell", "choose a shorter --seeds")
        cell_folder = CellFolder(folder / "cells" / name)
        found, state = cell_folder.stamp(), cell_folder.state(functools.partial(has_scores, spec=spec))
        own = () if choice.plugin_source is None else (choice.plugin_source,)
        sources = (*own, *(plugin.packed() for plugin in others))
        cells.append(Cell(choice.label, spec, cell_folder, state, sources, found))
    _refuse_twins(cells)
    return Plan(experiment, folder, tuple(cells), recipe, asked.track, protocol, (*dataset.notes, *remarks))


def _each_cell(seeds: Iterable[int], choices: Collection[MethodChoice]) -> Iterator[tuple[int, MethodChoice]]:
    """Seeds and choices in the order in which their cells run; what is trained already has one cell, of the seed that
    it was trained with, or 0."""
    for k, seed in enumerate(dict.fromkeys(seeds)):
        for choice in choices:
            if not choice.pretrained:
                yield seed, choice
            elif k == 0:
                yield choice.pretrained.get("seed", 0), choice


def _of_training(choice: MethodChoice, asked: Resolved, dataset: Any, seed: int) -> dict[str, Any]:
    """What decides the weights that a training leaves."""
    recipe, artifact = asked.recipe, choice.artifact or {}
    return {
        "method": choice.name,
        # where the file of an artifact lies decides nothing: its digest does
        "config": {field: value for field, value in choice.config.items() if field != artifact.get("field")},
        "code": choice.code,
        "recipe": recipe.identity(),
        "training_images": dataset.train_digest,
        "seed": seed,
        "devices": asked.request.devices,  # each draws noise of its own, and BatchNorm sees its share of the batch
        **asked.execution_identity,
        **({"artifact": artifact["digest"]} if artifact else {}),
        **({"initial": Facts.of(choice.initial).in_hash} if choice.initial else {}),
    }


def _spec(
    choice: MethodChoice,
    asked: Resolved,
    dataset: Any,
    protocol: Protocol | FeatureProtocol,
    seed: int,
    metrics: tuple[str, ...],
    images_from: Plugin | None,
    plugins: list[Plugin],
) -> dict[str, Any]:
    request, recipe = asked.request, asked.recipe
    of_dataset = {"dataset_code": images_from.digest} if images_from is not None else {}
    if choice.pretrained and choice.facts.codebook_size is None:
        metrics = without_codes(metrics)
    decides = {"pretrained": choice.facts.in_hash} if choice.pretrained else _of_training(choice, asked, dataset, seed)
    return {
        "hash": cell_hash({"schema": SCHEMA, "protocol": protocol.hash, **of_dataset, **decides}),
        "schema": SCHEMA,
        "label": choice.label,
        "method": choice.name,
        "preset": choice.preset,
        "config": choice.config,
        "components": choice.components,
        "paper_unspecified": choice.unspecified,
        "part_of": choice.part_of,
        "size": choice.size,
        **({"artifact": choice.artifact} if choice.artifact else {}),
        **({"pretrained": told_of(choice, dataset, request.data)} if choice.pretrained else {}),
        **({"initial": choice.initial} if choice.initial else {}),
        "paper": choice.paper,
        "plugin": choice.plugin,
        "code": choice.code,
        **({"plugins": [plugin.in_words() for plugin in plugins]} if plugins else {}),
        **of_dataset,
        "recipe": recipe.as_dict(),
        "dataset": {
            "reference": dataset.reference,
            "slug": dataset.slug,
            "data_root": str(request.data_root.absolute()) if request.data_root else None,
            "validation_images": request.validation_images,
            **request.data.in_spec(),
            "split_rule": dataset.split_rule,
            "training_images": len(dataset.train),
            "training_digest": dataset.train_digest,
            **({"own_digest": dataset.own_digest} if dataset.own_digest else {}),
        },
        "protocol": {**protocol.as_dict(), "hash": protocol.hash},
        "seed": seed,
        "metrics": list(metrics),
        **({"digests": known} if (known := digests(metrics)) else {}),
        "asked": list(metrics) if request.metrics else [],  # by name: reports show them
        "devices": request.devices,
        **({"ignore_memory": True} if request.ignore_memory else {}),
        "execution": asked.execution.as_dict(),
        "stop_on_collapse": request.stop_on_collapse,  # a stopped cell has no scores, so no number depends on it
        "inception_weights": str(request.inception_weights.absolute()) if request.inception_weights else None,
        "lpips_weights": str(request.lpips_weights.absolute()) if request.lpips_weights else None,
        **asked.track.spec(dataset),
    }


def _with_artifact(choice: MethodChoice, track: Track, dataset: Any) -> MethodChoice:
    """The same, with place and digest of what the method is built around; {} where the track has none to give."""
    if choice.artifact is None:
        return choice
    path = choice.artifact["path"]  # which a cell's process reads, whatever folder it is in
    said = {**choice.artifact, "path": str(expanded(Path(path)).absolute()) if path else ""}
    if not track.gives(needed := Artifact.of(said)):
        return replace(choice, artifact={})
    try:
        said["digest"] = artifact_digest(needed, dataset)
    except UsageError as error:
        raise ArtifactError(f"{choice.label}: {error.what}", f"{error.hint}; `vqbench show {choice.name}`") from None
    in_config = {said["field"]: said["path"]} if said["field"] else {}
    return replace(choice, artifact=said, config={**choice.config, **in_config})


def _plugins_of(metrics: tuple[str, ...]) -> dict[str, Plugin]:
    """Digest → plugin, of those that the metrics, their companions and their extractors are from."""
    sources = []
    for name in (*metrics, *companions(metrics)):
        sources.append(METRICS.source_of(name))
        if extractor := metric(name).extractor:
            sources.append(EXTRACTORS.source_of(extractor))
    return {source.plugin.digest: source.plugin for source in sources if source.plugin is not None}


def _refuse_twins(cells: list[Cell]) -> None:
    labels: dict[str, str] = {}
    for cell in cells:
        other = labels.setdefault(cell.spec["hash"], cell.label)
        if other != cell.label:
            raise UsageError(
                f"'{other}' and '{cell.label}' are the same configuration here",
                f"leave one out, or set what differs: --set {cell.label}.FIELD=VALUE",
            )


def _refuse_odd_devices(recipe: Recipe, devices: int) -> None:
    if devices < 1 or recipe.batch_size % devices:
        raise UsageError(
            f"--devices {devices} does not divide the batch of {recipe.batch_size} images",
            "choose another number of devices, or --set batch_size=…",
        )


def _refuse_odd_execution(request: RunRequest, recipe: Recipe) -> None:
    if request.micro_batch == "auto":
        if recipe.dropout > 0:  # which is drawn for each micro-batch
            what = f"--micro-batch auto, and recipe {recipe.name} has dropout: its numbers would depend on the card"
            raise UsageError(what, "for example: --micro-batch 8")
    elif request.micro_batch is not None and request.micro_batch < 1:
        raise UsageError(f"--micro-batch {request.micro_batch} holds no image", "for example: --micro-batch 8")
    if recipe.track != "features":
        return
    known = options(RunRequest)
    if idle := [known[name].words for name in _OF_NETWORKS if getattr(request, name)]:
        what = f"{' and '.join(idle)}: for encoder and decoder, and recipe {recipe.name} trains neither"
        raise UsageError(what, "leave it out, or choose a recipe of images: `vqbench recipes`")


_OF_NETWORKS = ("compile", "micro_batch", "activation_checkpointing", "init_from")
