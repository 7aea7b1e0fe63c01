"""One cell from start to end, in a process of its own: `python -m vqbench.cell RUNS/NAME/cells/CELL/spec.json`.

Trains (or goes on from the checkpoint, or only evaluates what is trained), then writes the result, which is
either scores or the reason of a failure.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqbench.atomic import replacing, write_arrays_atomically
from vqbench.cell_files import PER_IMAGE, RESULT, STATUS, TRAINING, is_whole, later_version
from vqbench.errors import UsageError, VQBenchError
from vqbench.interrupts import TerminatedError, die_of_sigterm
from vqbench.launch import PARENT_VARIABLE
from vqbench.lease import EXIT_BUSY, CellBusyError
from vqbench.provenance import device_name, git_commit, versions
from vqbench.reasons import reason_of
from vqbench.results import DONE, CellFolder, read_json, write_json
from vqbench.wording import masked_text

if TYPE_CHECKING:
    import pandas as pd

    from vqbench.data.dataset import Dataset
    from vqbench.data.prepare import PreparedImages
    from vqbench.evaluation import Evaluation
    from vqbench.recipe import Recipe
    from vqbench.tokenizer import Tokenizer


class Progress:
    """status.json: stage, images and rate, at most twice a second."""

    def __init__(self, folder: CellFolder) -> None:
        self.path = folder.path / STATUS
        self.stage = "start"
        self._written = 0.0

    def enter(self, stage: str) -> None:
        """Begin a stage: data, train, evaluate."""
        self.stage = stage
        self._write(0, 0, 0.0)
        print(f"{time.strftime('%H:%M:%S')} {stage}", flush=True)

    def __call__(self, done: int, total: int, rate: float = 0.0) -> None:
        """`done` of `total` images at `rate` images/s."""
        if time.monotonic() - self._written > 0.5 or done >= total:
            self._write(done, total, rate)

    def _write(self, done: int, total: int, rate: float) -> None:
        if is_secondary():
            return
        self._written = time.monotonic()
        state = {
            "stage": self.stage,
            "images": done,
            "total": total,
            "images_per_s": round(rate, 2),
            "pid": os.getpid(),
        }
        write_json(self.path, state)


def is_secondary() -> bool:
    """Whether this process serves a second or later device, started by the first one's; it writes nothing."""
    return int(os.environ.get("LOCAL_RANK", "0")) > 0


def die_with_parent() -> None:
    """Ask Linux to kill this process when the one that started it is gone, so that no cell trains unseen."""
    with contextlib.suppress(OSError, AttributeError):
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
    started_by = os.environ.get(PARENT_VARIABLE)
    if started_by is not None and not is_secondary() and os.getppid() != int(started_by):
        os._exit(1)  # it was gone before we could ask


def run_cell(folder: CellFolder) -> None:
    """Train and evaluate the cell whose spec lies in `folder`; write result.json. Raises what goes wrong."""
    from vqbench.config import build
    from vqbench.metrics.definitions import stored_definitions
    from vqbench.recipe import Recipe

    spec, progress, started = folder.spec, Progress(folder), time.time()
    recipe: Recipe = build(Recipe, spec["recipe"], "recipe", "vqbench show tiny")
    load_plugins(spec, folder)
    result = (fit_features if recipe.track == "features" else _train_tokenizer)(folder, spec, recipe, progress)
    if result is None:
        return
    earlier = folder.result or {}  # the same weights under the same protocol, with fewer metrics
    known = {**(earlier.get("metrics") or {}), **stored_definitions(result["scores"])}
    result["scores"] = {**earlier.get("scores", {}), **result["scores"]}
    result |= {"metrics": known} if known else {}
    write_result(folder, started, result)
    folder.checkpoint.unlink(missing_ok=True)  # the weights are in the safetensors; nothing resumes a finished cell
    progress.enter(DONE)


def write_result(folder: CellFolder, started: float, found: dict[str, Any]) -> None:
    """Write result.json: what was `found`, what the cell is, where it ran; `started` as time.time() gave it."""
    write_json(folder.path / RESULT, {**_identity(folder.spec, started), **found})


def _train_tokenizer(
    folder: CellFolder, spec: dict[str, Any], recipe: Recipe, progress: Progress
) -> dict[str, Any] | None:
    """What a cell of images found; None in the process of a second device."""
    import torch

    from vqbench.home import home

    progress.enter("data")
    dataset, validation = open_data(spec, recipe)
    progress.enter("train")
    tokenizer, training = trained(folder, spec, recipe, dataset, progress)
    if is_secondary():
        return None  # evaluation is on the first device alone, each image once
    progress.enter("evaluate")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    evaluation = evaluated(tokenizer.to(device), spec, validation, device, progress, home())
    write_artifacts(folder, evaluation, validation)
    return findings(tokenizer, training, evaluation)


def findings(tokenizer: Tokenizer, training: dict[str, Any], evaluation: Evaluation) -> dict[str, Any]:
    """What the result of a cell of images says of its training and evaluation."""
    return {
        "scores": evaluation.scores,
        "params": tokenizer.parameter_counts(),
        **_with_device_name(training),
        "collapse": _flag(training, evaluation.histogram),
        "encode_images_per_s": round(evaluation.encode_images_per_s, 3),
        "decode_images_per_s": round(evaluation.decode_images_per_s, 3),
    }


def fit_features(folder: CellFolder, spec: dict[str, Any], recipe: Recipe, progress: Progress) -> dict[str, Any]:
    """What a cell of the features track found. Neither Lightning nor pandas is imported: it lasts seconds."""
    import pyarrow
    import pyarrow.parquet

    from vqbench.feature_cell import run_feature_cell

    outcome = run_feature_cell(folder.path, folder.weights, spec, recipe, progress.enter, progress)
    target = folder.path / PER_IMAGE
    with replacing(target) as partial:
        pyarrow.parquet.write_table(pyarrow.table(outcome.per_image), partial)
    write_arrays_atomically(folder.path / "codes.npz", histogram=outcome.histogram, indices=outcome.indices)
    flag = _flag(outcome.training, outcome.histogram)
    return {
        "scores": outcome.scores,
        "params": outcome.params,
        **_with_device_name(outcome.training),
        "collapse": flag,
    }


def load_plugins(spec: dict[str, Any], folder: CellFolder) -> None:
    """Register the plugins that the spec names, as they were when the plan was made.

    Raises VQBenchError for one that is gone, and where a metric is another than it was then.
    """
    from vqbench.metrics.definitions import digests
    from vqbench.plugin import find_plugin
    from vqbench.registry import add_plugin

    for words in (spec["plugin"], *spec.get("plugins", ())):
        if words is None:
            continue
        path = find_plugin(words["sha256"], [Path(words["path"])], folder.path)
        if path is None:
            raise VQBenchError(f"the plugin {words['path']} has changed", "give the command again, it plans anew")
        add_plugin(path)  # the file, or our copy if it changed since
    if digests(spec["metrics"]) != spec.get("digests", {}):
        raise VQBenchError("a metric has changed since this cell was planned", "give the command again, it plans anew")


def open_data(spec: dict[str, Any], recipe: Recipe) -> tuple[Dataset, PreparedImages]:
    """The dataset and its validation images. Raises VQBenchError where they are not those of the plan."""
    from vqbench.data.dataset import open_dataset
    from vqbench.data.prepare import prepare_validation
    from vqbench.home import home

    wanted = spec["dataset"]
    root = Path(wanted["data_root"]) if wanted["data_root"] else None
    dataset = open_dataset(wanted["reference"], recipe.resolution, root, wanted["validation_images"])
    validation = prepare_validation(dataset, home())
    if validation.digest != spec["protocol"]["validation_digest"] or dataset.train_digest != wanted["training_digest"]:
        raise VQBenchError(
            f"the images of {wanted['reference']} have changed since this cell was planned",
            "give the command again: it plans cells for the images as they are now",
        )
    return dataset, validation


def trained(
    folder: CellFolder, spec: dict[str, Any], recipe: Recipe, dataset: Dataset, progress: Progress
) -> tuple[Tokenizer, dict[str, Any]]:
    """The trained tokenizer, from the finished weights if they are there, and what training it took."""
    from vqbench.tokenizer import DamagedWeightsError, load, save

    known = read_json(folder.training_record)
    if known is not None and folder.weights.is_file():
        if newer := later_version(TRAINING, known):
            raise VQBenchError(newer, "use that vqbench, or train it again: --rerun")
        try:
            return load(folder.path), known
        except DamagedWeightsError as error:
            print(f"{error.what}: the cell is trained again", flush=True)
    from vqbench.data.prepare import prepare_train
    from vqbench.data.stream import TrainingStream
    from vqbench.fit import train
    from vqbench.home import home
    from vqbench.seeds import derive_seed
    from vqbench.tokenizer import build_tokenizer, configured

    data_seed = derive_seed("data", spec["seed"], spec["dataset"]["training_digest"])  # the same for every method
    stream = TrainingStream(
        prepare_train(dataset, home()), recipe.resolution, data_seed, recipe.random_crop, recipe.flip
    )
    total = recipe.steps * recipe.batch_size
    outcome = train(
        build_tokenizer(spec["method"], configured(spec["method"], spec["config"]), recipe, spec["seed"]),
        stream,
        recipe,
        seed=spec["seed"],
        folder=folder.path,
        devices=spec["devices"],
        perceptual=_perceptual(spec, recipe),
        report=lambda images, rate: progress(images, total, rate),
        stop_on_collapse=spec["stop_on_collapse"],
    )
    training = {
        "images_seen": outcome.images_seen,
        "train_seconds": round(outcome.seconds, 3),
        "train_images_per_s": round(outcome.images_per_s, 3),
        "peak_memory_bytes": outcome.peak_memory_bytes,
        "device": outcome.device,
        "devices": outcome.devices,
        "collapse": outcome.collapse.as_dict() if outcome.collapse is not None else None,
    }
    if not is_secondary():
        for name in (RESULT, PER_IMAGE):  # scores of other weights, which were lost, must not stand beside
            (folder.path / name).unlink(missing_ok=True)
        save(outcome.tokenizer, folder.weights, spec)
        write_json(folder.training_record, training)
    return outcome.tokenizer, training


def _perceptual(spec: dict[str, Any], recipe: Recipe) -> Any:
    from vqbench.weights import load_lpips

    if recipe.perceptual == "none":
        return None
    explicit = Path(spec["lpips_weights"]) if spec["lpips_weights"] else None
    return load_lpips(recipe.perceptual, explicit)


def evaluated(
    tokenizer: Tokenizer, spec: dict[str, Any], validation: PreparedImages, device: Any, progress: Progress, home: Path
) -> Evaluation:
    """The spec's metrics on `validation`; weights and reference features are found and kept below `home`."""
    from vqbench.evaluation import evaluate

    def path(name: str) -> Path | None:
        return Path(spec[name]) if spec[name] else None

    return evaluate(
        tokenizer,
        validation.pixels,
        validation.ids,
        metrics=spec["metrics"],
        validation_digest=validation.digest,
        inception_weights=path("inception_weights"),
        lpips_weights=path("lpips_weights"),
        device=device,
        batch_size=max(16, spec["recipe"]["batch_size"]),
        home=home,
        progress=progress,
    )


def _flag(training: dict[str, Any], histogram: Any) -> dict[str, Any] | None:
    """The collapse that training ended in, or that of a codebook which the evaluated tokenizer hardly uses.

    Training may use codes that evaluation does not: it may quantize samples, or mix codes. `histogram`: (G, K).
    """
    import torch

    from vqbench.codewatch import usage_and_perplexity
    from vqbench.collapse import Collapse, hardly_used

    in_training: dict[str, Any] | None = training.get("collapse")  # earlier versions did not watch
    _, perplexity = usage_and_perplexity(torch.from_numpy(histogram))
    if in_training is not None or not hardly_used(perplexity, histogram.shape[1]):
        return in_training
    reason = f"perplexity {perplexity:.1f} of {histogram.shape[1]} codes in evaluation"
    return Collapse("collapsed", reason, training["images_seen"]).as_dict()


def _with_device_name(training: dict[str, Any]) -> dict[str, Any]:
    return {**training, "device_name": device_name(training["device"])}


def _identity(spec: dict[str, Any], started: float) -> dict[str, Any]:
    """The part of a result that says what the cell is and where it ran."""
    return {
        "state": DONE,
        "method": spec["method"],
        "config": spec["config"],
        "components": spec["components"],
        "size": spec.get("size"),
        "paper_unspecified": spec["paper_unspecified"],
        "recipe": spec["recipe"],
        "dataset": spec["dataset"],
        "protocol": spec["protocol"],
        "seed": spec["seed"],
        "hash": spec["hash"],
        "versions": versions(),
        "git": git_commit(Path(__file__).parent),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seconds": round(time.time() - started, 3),
    }


def write_artifacts(folder: CellFolder, evaluation: Evaluation, validation: PreparedImages) -> None:
    """Write what an evaluation of `validation` found beside its scores: tables, codes, features, pictures."""
    target = folder.path / PER_IMAGE
    table = evaluation.per_image
    if folder.result is not None and target.is_file():  # keep the columns of metrics that were evaluated before
        earlier = _earlier_table(target, table)
        table = table.join(earlier[[name for name in earlier if name not in table]])
    with replacing(target) as partial:
        table.to_parquet(partial, index=False)
    write_arrays_atomically(folder.path / "codes.npz", histogram=evaluation.histogram, indices=evaluation.indices)
    if evaluation.features is not None:
        write_arrays_atomically(folder.path / "features.npz", features=evaluation.features)
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
    import numpy as np
    from PIL import Image

    from vqbench.kept import kept_positions, shown_positions

    kept = kept_positions(len(validation), validation.pixels.shape[1])
    originals = validation.pixels[kept]
    write_arrays_atomically(folder.path / "reconstructions.npz", positions=kept, pixels=evaluation.reconstructions)
    if not is_whole(folder.validation_images):
        write_arrays_atomically(folder.validation_images, positions=kept, pixels=originals)
    shown = [kept.index(position) for position in shown_positions(len(validation))]
    rows = [np.concatenate(list(images[shown]), axis=1) for images in (originals, evaluation.reconstructions)]
    with replacing(folder.path / "recon.png") as partial:  # above the input, below its reconstruction
        Image.fromarray(np.concatenate(rows)).save(partial, format="PNG")


def main(argv: list[str] | None = None) -> int:
    """Run the cell of a spec file; 0 when its result is written, 1 when it failed (which is its result then)."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1:
        print("usage: python -m vqbench.cell SPEC.json", file=sys.stderr)
        return 2
    folder = CellFolder(Path(arguments[0]).resolve().parent)
    die_with_parent()
    faulthandler.enable()  # a crash of compiled code leaves the lines of Python that led there in the log
    started, lock = time.time(), contextlib.nullcontext() if is_secondary() else folder.locked()
    try:
        with lock:
            return guarded(folder, started, run_cell)
    except CellBusyError as error:
        print(f"error: {error.what}", file=sys.stderr)
        return EXIT_BUSY
    except TerminatedError:
        if is_secondary():
            return 0  # for any other code Lightning kills the first device's process, which is writing its checkpoint
        die_of_sigterm()
        return 1


def guarded(folder: CellFolder, started: float, work: Callable[[CellFolder], None]) -> int:
    """Do the work of a cell's process; what it raises becomes the result in its folder. Returns the exit code."""
    try:
        work(folder)
    except Exception as error:
        with contextlib.suppress(OSError):  # the log's disk may be full: the result may still find room
            print(masked_text(traceback.format_exc()), file=sys.stderr, flush=True)
        if is_secondary():
            return 1
        stage, flag = str(folder.status.get("stage", "start")), getattr(error, "collapse", None)
        why = reason_of(error, stage, folder.log)
        collapse = flag.as_dict() if flag is not None else None
        folder.write_failure(why.kind, why.message, why.hint, stage, started, collapse)
        return 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
