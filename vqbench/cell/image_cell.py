"""A cell of images: a tokenizer with its encoder and decoder, trained on images and evaluated on others."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from vqbench.cell.memory import peak_memory
from vqbench.cell.outcome import collapse_of
from vqbench.cell.planned import artifact, artifact_facts, data_seed, path_in, receive
from vqbench.cell.progress import Progress, is_secondary
from vqbench.data.dataset import DataReference, Dataset
from vqbench.data.prepare import PreparedImages, prepare_train, prepare_validation
from vqbench.data.stream import TrainingStream
from vqbench.errors import VQBenchError
from vqbench.facts import Facts
from vqbench.machine.atomic import replacing, write_arrays_atomically
from vqbench.machine.home import home
from vqbench.machine.imports import lasting_imports
from vqbench.machine.json_files import read_json, write_json
from vqbench.machine.provenance import device_name
from vqbench.results.cell_files import (
    CODES,
    FEATURES,
    GRID,
    PER_IMAGE,
    RECONSTRUCTIONS,
    RESULT,
    TRAINING,
    is_whole,
    later_version,
)
from vqbench.results.cell_folder import CellFolder
from vqbench.results.kept_images import as_pictures, kept_positions, shown_positions
from vqbench.tokenizer import DamagedWeightsError, Tokenizer, build_tokenizer, configured, load, save

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from vqbench.data.decode import Reading
    from vqbench.metrics.evaluation import Codec, Evaluation
    from vqbench.pretrained.opened import Opened
    from vqbench.recipe import Execution, Recipe


def train_and_evaluate(
    folder: CellFolder, spec: dict[str, Any], recipe: Recipe, progress: Progress
) -> dict[str, Any] | None:
    """What a cell of images found; None in the process of a second device."""
    progress.enter("data")
    dataset, validation = open_data(spec, recipe)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if "pretrained" in spec:
        progress.enter("open")
        codec, facts = opened(spec, validation, dataset.reading)
        training = {"device": device.type, "pretrained": facts.as_dict()}
        params = dict(facts.parameters)
    else:
        progress.enter("train")
        codec, training = trained(folder, spec, recipe, dataset, progress)
        params = codec.parameter_counts()
    if is_secondary():
        return None  # evaluation is on the first device alone, each image once
    progress.enter("evaluate")
    evaluation = evaluated(codec, spec, validation, device, progress, home())
    write_artifacts(folder, evaluation, validation)
    return findings(params, training, evaluation)


def findings(params: dict[str, int], training: dict[str, Any], evaluation: Evaluation) -> dict[str, Any]:
    """What the result of a cell of images says of its training, if it had one, and evaluation."""
    histogram, mean = evaluation.histogram, "mean_" if evaluation.indices is None else ""
    return {
        "scores": evaluation.scores,
        "params": params,
        **training,
        "device_name": device_name(training["device"]),
        **peak_memory(torch.device(training["device"]), training),
        "collapse": collapse_of(training, histogram) if histogram is not None and "images_seen" in training else None,
        "encode_images_per_s": round(evaluation.encode_images_per_s, 3),
        "decode_images_per_s": round(evaluation.decode_images_per_s, 3),
        **({f"{mean}tokens_per_image": evaluation.tokens} if evaluation.tokens else {}),
        **({f"{mean}bits_per_image": round(evaluation.bits, 4)} if evaluation.bits else {}),
    }


def opened(spec: dict[str, Any], validation: PreparedImages, reading: Reading | None) -> tuple[Codec, Facts]:
    """The tokenizer of a cell that trains none, and what is known of it.

    Raises VQBenchError where it is not the one of the plan, UsageError where it cannot be opened.
    """
    from vqbench.pretrained.opening import open_source

    said = spec["pretrained"]
    planned = Facts.of(said)
    accepted = said["trust"] or planned.kind == "vqbench"  # whose plugin was known to the plan, or trusted
    found = open_source(said["source"], said["as"], accepted, validation, reading)
    if found.facts.in_hash != planned.in_hash:
        raise VQBenchError(
            f"{planned.path} has changed since this cell was planned",
            "give the command again: it plans cells for the file as it is now",
        )
    return found.codec, _fair(found, validation) if planned.kind == "adapter" else found.facts


_FAIR = ("ignores other images", "deterministic", "decodes indices alone")
"""What must hold of an adapter before it is scored: otherwise its scores are not of its codes."""
_LOOKED_AT = 4


def _fair(opened: Opened, validation: PreparedImages) -> Facts:
    """What is known of an adapter, with what must be said of it after a look at the first images.

    Raises VQBenchError where its images are not made of its codes alone, or are others each time.
    """
    from vqbench.metrics.evaluation import padded
    from vqbench.pretrained.conformance import check_source

    first = [validation.pixels[i] for i in range(min(_LOOKED_AT, len(validation)))]
    if len({image.shape for image in first}) > 1 or len(first) < 2:
        first = [first[0]] * 2  # of their own sizes each
    images = torch.from_numpy(np.stack(first)).permute(0, 3, 1, 2)
    images = padded(images.float(), opened.facts.step).to(images.dtype)  # as evaluation gives it images of any size
    found = check_source(opened, images, only=(*_FAIR, "range of images"))
    failed = [known for known in found if known.passed is False]
    if unfair := [known for known in failed if known.name in _FAIR]:
        what = f"{opened.facts.name} fails '{unfair[0].name}': {unfair[0].detail}"
        raise VQBenchError(what, f"mend the adapter; `vqbench check {opened.facts.path}` shows all")
    remarks = tuple(f"{known.name}: {known.detail}" for known in failed)
    return dataclasses.replace(opened.facts, remarks=(*opened.facts.remarks, *remarks))


def open_data(spec: dict[str, Any], recipe: Recipe) -> tuple[Dataset, PreparedImages]:
    """The dataset and its validation images. Raises VQBenchError where they are not those of the plan."""
    wanted = spec["dataset"]
    dataset = DataReference.of_spec(spec).open(recipe.resolution, recipe.image_channels)
    validation = prepare_validation(dataset, home())
    trains_on_others = "pretrained" not in spec and dataset.train_digest != wanted["training_digest"]
    if validation.digest != spec["protocol"]["validation_digest"] or trains_on_others:
        raise VQBenchError(
            f"the images of {wanted['reference']} have changed since this cell was planned",
            "give the command again: it plans cells for the images as they are now",
        )
    return dataset, validation


def trained(
    folder: CellFolder, spec: dict[str, Any], recipe: Recipe, dataset: Dataset, progress: Progress
) -> tuple[Tokenizer, dict[str, Any]]:
    """The trained tokenizer, from the finished weights if they are there, and what training it took."""
    known = read_json(folder.training_record)
    if known is not None and folder.weights.is_file():
        if newer := later_version(TRAINING, known):
            raise VQBenchError(newer, "use that vqbench, or train it again: --rerun")
        try:
            return load(folder.path), known
        except DamagedWeightsError as error:
            progress.say(f"{error.what}: the cell is trained again")
    from vqbench.pretrained.initial import start_from

    with lasting_imports():
        from vqbench.training.fit import train

    execution = fitting_execution(spec, recipe, say=progress.say)
    stream = TrainingStream(
        prepare_train(dataset, home()), recipe.resolution, data_seed(spec), recipe.random_crop, recipe.flip
    )
    total = recipe.images_total
    tokenizer = build_tokenizer(spec["method"], configured(spec["method"], spec["config"]), recipe, spec["seed"])
    if (around := artifact(spec, dataset)) is not None:
        receive(tokenizer.quantizer, around)
    taken = {"initial": start_from(tokenizer, spec["initial"])} if "initial" in spec else {}
    outcome = train(
        tokenizer,
        stream,
        recipe,
        seed=spec["seed"],
        folder=folder.path,
        devices=spec["devices"],
        perceptual=_perceptual(spec, recipe),
        report=lambda images, rate: progress(images, total, rate),
        stop_on_collapse=spec["stop_on_collapse"],
        execution=execution,
    )
    training = {
        "images_seen": outcome.images_seen,
        "train_seconds": round(outcome.seconds, 3),
        "train_images_per_s": round(outcome.images_per_s, 3),
        **peak_memory(torch.device(outcome.device), {"peak_memory_bytes": outcome.peak_memory_bytes}, over_ranks=True),
        "device": outcome.device,
        "devices": outcome.devices,
        "execution": outcome.execution,
        **artifact_facts(tokenizer.quantizer),
        **taken,
        "collapse": outcome.collapse.as_dict() if outcome.collapse is not None else None,
    }
    if not is_secondary():
        for name in (RESULT, PER_IMAGE):  # scores of other weights, which were lost, must not stand beside
            (folder.path / name).unlink(missing_ok=True)
        save(outcome.tokenizer, folder.weights, spec)
        write_json(folder.training_record, training)
    return outcome.tokenizer, training


def fitting_execution(
    spec: dict[str, Any], recipe: Recipe, card: int | None = None, say: Callable[[str], None] = print
) -> Execution:
    """How a cell is trained on a card of `card` bytes, or else on the smallest GPU here: its micro-batch, where that is
    to be found. `say` is told what must be said of a step that hardly has room.

    Raises TooLargeError where it has none. Nothing is refused without a GPU, nor where the spec says to ignore memory.
    """
    from vqbench.recipe import Execution
    from vqbench.tokenizer import configured
    from vqbench.training.memory import UncountableError, card_bytes, fitted, refuse_too_large

    execution, card = Execution.of_spec(spec), card_bytes() if card is None else card
    finds, ignores = execution.micro_batch == "auto", bool(spec.get("ignore_memory")) or is_secondary()
    if card is not None and (finds or not ignores):
        config, share = configured(spec["method"], spec["config"]), recipe.batch_size // spec["devices"]
        try:
            execution, cost = fitted(spec["method"], config, recipe, share, execution, card)
            said = "" if ignores else refuse_too_large(cost, card)
        except UncountableError as error:
            said = f"{error.what}{': --micro-batch auto takes the whole batch at once' if finds else ''}"
        if said:
            say(said)
    return dataclasses.replace(execution, micro_batch=0) if execution.micro_batch == "auto" else execution


def _perceptual(spec: dict[str, Any], recipe: Recipe) -> Any:
    from vqbench.metrics.networks import load_lpips

    if recipe.perceptual == "none":
        return None
    return load_lpips(recipe.perceptual, path_in(spec, "lpips_weights"))


def evaluated(
    tokenizer: Codec, spec: dict[str, Any], validation: PreparedImages, device: Any, progress: Progress, place: Path
) -> Evaluation:
    """The spec's metrics on `validation`; weights and reference features are found and kept below `place`."""
    from vqbench.metrics.evaluation import evaluate

    return evaluate(
        tokenizer,
        validation.pixels,
        validation.ids,
        metrics=spec["metrics"],
        validation_digest=validation.digest,
        inception_weights=path_in(spec, "inception_weights"),
        lpips_weights=path_in(spec, "lpips_weights"),
        device=device,
        batch_size=max(16, spec["recipe"]["batch_size"]),
        home=place,
        progress=progress,
    )


def write_artifacts(folder: CellFolder, evaluation: Evaluation, validation: PreparedImages) -> None:
    """Write what an evaluation of `validation` found beside its scores: tables, codes, features, pictures."""
    target = folder.path / PER_IMAGE
    table = evaluation.per_image
    if folder.result is not None and target.is_file():  # keep the columns of metrics that were evaluated before
        earlier = _earlier_table(target, table)
        table = table.join(earlier[[name for name in earlier if name not in table]])
    with replacing(target) as partial:
        table.to_parquet(partial, index=False)
    if evaluation.histogram is not None:
        each = {} if evaluation.indices is None else {"indices": evaluation.indices}
        write_arrays_atomically(folder.path / CODES, histogram=evaluation.histogram, **each)
    if evaluation.features is not None:
        write_arrays_atomically(folder.path / FEATURES, features=evaluation.features)
        if not is_whole(folder.reference_features):  # the same for all cells of the protocol
            write_arrays_atomically(folder.reference_features, features=evaluation.reference_features)
    _write_pictures(folder, evaluation, validation)


def _earlier_table(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """What an earlier evaluation of the same images left, or nothing, said aloud, where it is not whole."""
    import pandas as pd
    import pyarrow

    try:
        earlier = pd.read_parquet(path)
    except (OSError, ValueError, pyarrow.ArrowException):
        print(f"{path} is not whole: what earlier metrics found for single images is lost", flush=True)
        return pd.DataFrame(index=table.index)
    return earlier


def _write_pictures(folder: CellFolder, evaluation: Evaluation, validation: PreparedImages) -> None:
    """The kept reconstructions and, once per protocol, the images that they are of; eight of both as a grid."""
    _, resolution, _, channels = validation.pixels.shape
    kept = kept_positions(len(validation), resolution, channels)
    originals = validation.pixels[kept]
    write_arrays_atomically(folder.path / RECONSTRUCTIONS, positions=kept, pixels=evaluation.reconstructions)
    if not is_whole(folder.validation_images):
        write_arrays_atomically(folder.validation_images, positions=kept, pixels=originals)
    shown = [kept.index(position) for position in shown_positions(len(validation))]
    both = (as_pictures(images[shown]) for images in (originals, evaluation.reconstructions))
    rows = [np.concatenate(list(images), axis=1) for images in both]
    with replacing(folder.path / GRID) as partial:  # above the input, below its reconstruction
        Image.fromarray(np.concatenate(rows)).save(partial, format="PNG")
