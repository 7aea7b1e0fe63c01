"""What a command asks for: each option declared once, and read alike from the command line, Python and files."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vqbench import arguments
from vqbench.arguments import option
from vqbench.errors import UsageError, require_utf8, unknown
from vqbench.machine.home import expanded
from vqbench.metrics.named import named_protocol
from vqbench.pretrained.opening import IMAGES
from vqbench.registry import DATASETS

if TYPE_CHECKING:
    from vqbench.data.dataset import DataReference

ALL = "ALL"
"""In the place of a method: every method that is registered, those of the plugins that were given among them."""
_WORKERS_PER_PROCESSOR = 16
"""More are a slip of the keyboard, and would take the machine down."""


def _methods(words: str, value: Any) -> tuple[str, ...]:
    """Names between commas; `images:RECONSTRUCTIONS,ORIGINALS` is one, where the second is a folder."""
    if isinstance(value, tuple | list):
        return tuple(name for item in value for name in _methods(words, item))
    found: list[str] = []
    for name in arguments.names(words, value):
        is_pair = found and IMAGES in found[-1] and "," not in found[-1] and expanded(Path(name)).is_dir()
        if is_pair and isinstance(value, str | os.PathLike):
            found[-1] += f",{name}"
        else:
            found.append(name)
    return tuple(found)


_QUALITY = 95
"""Of JPEG where none is stated: a third of the bytes of pixels."""


def _kept_as(words: str, value: Any) -> str:
    """A format as `DataReference` has it: the quality of JPEG is filled in; empty text stays empty."""
    text = arguments.text(words, value)
    if text in ("", "pixels", "original"):
        return text
    kind, colon, quality = text.partition(":")
    if kind != "jpeg":
        raise unknown("format", text, ("pixels", "original", "jpeg"), f"for example: {words} pixels")
    if not colon:
        return f"jpeg:{_QUALITY}"
    if not (quality.isascii() and quality.isdigit() and 1 <= int(quality) <= 100):
        raise UsageError(f"{words} {text}: the quality of a JPEG is from 1 to 100", f"for example: {words} jpeg:90")
    return f"jpeg:{int(quality)}"


def _protocol(words: str, value: Any) -> str:
    """A protocol as `DataReference` has it; ours is empty text."""
    found = named_protocol(arguments.text(words, value))
    return found.name if found is not None else ""


def _named_split(words: str, value: Any) -> str:
    text = arguments.text(words, value)
    if text not in ("", "val", "all"):
        raise unknown("split", text, ("val", "all"), f"for example: {words} all")
    return text


def _split(words: str, value: Any) -> str:
    """What is scored, as `DataReference` has it; the validation images are empty text."""
    return "all" if _named_split(words, value) == "all" else ""


def _datasets(incomplete: str) -> list[str]:
    return [name for name in DATASETS.names() if name.startswith(incomplete)]


@dataclass(frozen=True)
class RunRequest:
    """What `vqbench run` was asked for. Each option is declared here: command line, Python, sweeps and files follow.

    A list may be given as one value, any iterable, or text with commas; a number as text; None is the default.
    """

    methods: tuple[str, ...] = ()
    dataset: str = option(
        "", arguments.source, "photos, folder:PATH, ffhq, … (`vqbench datasets`).", "NAME",
        has_variable=True, defines=True, complete=_datasets,
    )  # fmt: skip
    """Empty only where `features` are given."""
    features: Path | None = option(
        None, arguments.path, "Instead of a dataset, for --recipe atomic: .npy of floats, (N, D) or (N, h, w, D).",
        "FILE", has_variable=True, defines=True,
    )  # fmt: skip
    data_root: Path | None = option(
        None, arguments.path, "Where the dataset lies.", "DIR", has_variable=True, defines=True
    )
    recipe: str = option(
        "", arguments.text, "How to train; default: tiny.", "NAME|FILE", has_variable=True, defines=True
    )
    seeds: tuple[int, ...] = option(
        (0,), arguments.seeds, "Seeds; several give intervals.", "LIST", has_variable=True, defines=True
    )
    images: int | None = option(
        None, arguments.whole, "Training images, instead of the recipe's.", "N", has_variable=True, defines=True
    )
    devices: int = option(1, arguments.whole, "Devices per cell.", "N", has_variable=True, defines=True)
    workers: int = option(
        1, arguments.whole, "Cells at the same time here, a GPU each.", "N", has_variable=True, engine=True
    )
    scheduler: str = option(
        "", arguments.text, "Run the cells on a dask cluster.", "ADDRESS|FILE",
        has_variable=True, engine=True, secret=True,
    )  # fmt: skip
    resources: str = option(
        "", arguments.text,
        "What a cell takes of a cluster's worker; default: its GPUs, where there are any. none: cells share those.",
        "NAME=N", has_variable=True, engine=True,
    )  # fmt: skip
    cell_timeout: float | None = option(
        None, arguments.seconds, "End a cell after 90s, 45m or 12h.", "TIME", has_variable=True, engine=True
    )
    runs: Path = option(Path("runs"), arguments.path, "Where results are kept.", "DIR", has_variable=True)
    name: str = option("", arguments.text, "Experiment; default: DATASET-RECIPE.", "NAME", has_variable=True)
    settings: tuple[str, ...] = option(
        (), arguments.settings, "Set a method's field, or one of the recipe; repeatable.", "[METHOD.]FIELD=VALUE",
        typed_as="set", defines=True,
    )  # fmt: skip
    plugins: tuple[Path, ...] = option(
        (), arguments.paths, "Python file with methods, metrics or datasets; repeatable.", "FILE",
        typed_as="plugin", defines=True,
    )  # fmt: skip
    metrics: tuple[str, ...] = option(
        (), arguments.names, "Metrics instead of the default set: rfid,psnr,…", "LIST", has_variable=True, defines=True
    )
    lpips: str | None = option(
        None, arguments.text, "LPIPS with alex, vgg or squeeze; default: alex, if it can be had.", "NET",
        has_variable=True, defines=True,
    )  # fmt: skip
    validation_images: int | None = option(
        None, arguments.whole, "Evaluate on N images; part of the protocol.", "N", has_variable=True, defines=True
    )
    holdout: float | None = option(
        None, arguments.share,
        "Score on this share of the training images, on which nothing then trains, and look at no validation image.",
        "SHARE", defines=True,
    )  # fmt: skip
    resize: str | None = option(
        None, arguments.text, "How images are resized: lanczos, bicubic, bilinear, box+bicubic, cv2-bilinear-noaa.",
        "RULE", defines=True,
    )  # fmt: skip
    """None, here and in the next two: as the dataset has it."""
    resize_scale: float | None = option(
        None, arguments.number, "Resize the short side to so many times the resolution, before the crop.", "X",
        defines=True,
    )  # fmt: skip
    small: str | None = option(
        None, arguments.text, "Images smaller than that: refuse, enlarge or leave_out.", "RULE", defines=True
    )
    split_list: Path | None = option(
        None, arguments.path, "Validate on the images that a file lists, one id a line; train on all others.", "FILE",
        defines=True,
    )  # fmt: skip
    protocol_name: str = option(
        "", _protocol,
        "Read images and measure by the rules of a source of published scores: ours, taming, llamagen, var, bsq, "
        "seed_voken; native: each image at its own size.",
        "NAME", typed_as="protocol", given_as="protocol", defines=True,
    )  # fmt: skip
    """Empty: ours."""
    split: str = option(
        "", _split, "Score all images of the dataset, and train on none; default: val.", "val|all", defines=True
    )
    """Empty: the validation images."""
    format: str = option(
        "", _kept_as,
        "How training images are kept: pixels, original (the files' bytes), or jpeg:QUALITY, which trains on what JPEG "
        "makes of them; default: pixels, where there is room.",
        "pixels|original|jpeg", has_variable=True, defines=True,
    )  # fmt: skip
    inception_weights: Path | None = option(
        None, arguments.path, "FID's InceptionV3, if not in its places.", "FILE", has_variable=True, defines=True
    )
    lpips_weights: Path | None = option(
        None, arguments.path, "Backbone of --lpips, if not in its places.", "FILE", has_variable=True, defines=True
    )
    family: str = option(
        "", arguments.text, "Layout of checkpoints that are not recognised: taming, llamagen, …", "FAMILY",
        typed_as="as", defines=True,
    )  # fmt: skip
    trust: bool = option(
        False, arguments.flag, "Run what a file of weights holds besides weights: it is a program, and may do anything."
    )
    init_from: str = option(
        "", arguments.text, "Start the training from the weights of a tokenizer that is trained already.", "SOURCE",
        defines=True,
    )  # fmt: skip
    rerun: bool = option(False, arguments.flag, "Train again what has a result.", engine=True)
    ignore_memory: bool = option(
        False, arguments.flag, "Train even where a step seems to have no room on the GPU.", engine=True
    )
    stop_on_collapse: bool = option(
        False, arguments.flag, "End a training that has collapsed; its row says why.", defines=True
    )
    compile: bool | None = option(
        None, arguments.flag, "Compile the networks; default: on CUDA, where the budget pays for it.",
        switch="--compile/--no-compile", has_variable=True, engine=True,
    )  # fmt: skip
    deterministic: bool = option(
        False, arguments.flag, "On CUDA: the same bits each time, slower.", has_variable=True, engine=True
    )
    micro_batch: int | Literal["auto"] | None = option(
        None, arguments.whole_or_auto,
        "Images of a batch at a time in encoder and decoder, slower; auto: a power of two for which the GPU has room.",
        "N|auto", has_variable=True,
    )  # fmt: skip
    activation_checkpointing: bool = option(
        False, arguments.flag, "Compute activations again instead of keeping them: less memory, slower.",
        has_variable=True, engine=True,
    )  # fmt: skip
    page: bool = option(
        False, arguments.flag, "Write the experiment's page of tables and figures.", switch="--page/--no-page",
        has_variable=True, engine=True, typed_default=True,
    )  # fmt: skip

    @property
    def data(self) -> DataReference:
        """Where the data are."""
        from vqbench.data.dataset import DataReference

        return DataReference(
            self.dataset, self.data_root, self.validation_images, self.features, self.holdout,
            self.resize, self.resize_scale, self.small, self.split_list, self.format, self.protocol_name, self.split,
        )  # fmt: skip

    def __post_init__(self) -> None:
        """Each field may be given as the command line or Python does. Raises UsageError for what it does not take."""
        arguments.settle(self)
        object.__setattr__(self, "methods", _methods("--methods", () if self.methods is None else self.methods))


@dataclass(frozen=True)
class AblateRequest:
    """What `vqbench ablate` was asked for. Several kinds of rows add up; none asked for is leave-one-out."""

    run: RunRequest
    """Everything that is held equal; its one method is the full one."""
    drop: tuple[str, ...] | None = option(
        None, arguments.names, "The full method without all of these components.", "LIST"
    )
    keep: tuple[str, ...] | None = option(None, arguments.names, "The full method with these components alone.", "LIST")
    leave_one_out: bool = option(False, arguments.flag, "Without each component in turn; the default.")
    add_one_in: bool = option(False, arguments.flag, "All components off, and each of them alone.")
    every: bool = option(False, arguments.flag, "Every subset of the components.", typed_as="all")
    rows: str = option("", arguments.text, "paper: the rows of the paper's table, published values beside.", "paper")

    def __post_init__(self) -> None:
        """Each field may be given as the command line or Python does. Raises UsageError for what it does not take."""
        arguments.settle(self)
        if len(self.run.methods) != 1:
            names = ", ".join(self.run.methods) or "none"
            raise UsageError(f"an ablation takes one method apart, not {len(self.run.methods)}: {names}", "name one")

    @property
    def reference(self) -> str:
        """method or method@preset."""
        (method,) = self.run.methods
        return method


@dataclass(frozen=True)
class EvalRequest:
    """What `vqbench eval` was asked for."""

    run: RunRequest
    """Where the images are and what is computed; its methods are the sources."""
    resolution: int | None = option(
        None, arguments.whole, "Side of the images; default: what the tokenizers were trained on, or 256.", "R"
    )
    split: str = option(
        "", _named_split,
        "Score the validation images, or all. Default: val; but all of what has no split of its own, where no cell of "
        "ours is scored.",
        "val|all",
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Each field may be given as the command line or Python does. Raises UsageError for what it does not take."""
        arguments.settle(self)


OF_TRAINING = (
    "features", "recipe", "seeds", "images", "devices", "settings", "holdout", "format", "ignore_memory",
    "stop_on_collapse", "compile", "deterministic", "micro_batch", "activation_checkpointing",
)  # fmt: skip
"""Options of RunRequest that say nothing where nothing is trained."""


def make_request(
    methods: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    dataset: str | os.PathLike[str] = "",
    asked_by: Callable[..., Any] | None = None,
    **options: Any,
) -> RunRequest:
    """Keyword arguments as a request, each read as RunRequest says; `asked_by` is the function that was called.

    Raises TypeError for one that does not exist, UsageError for what one does not take.
    """
    (asked,) = arguments.by_keyword(asked_by or make_request, options, RunRequest)
    return arguments.asked(RunRequest, methods=methods, dataset=dataset, **asked)


def words_of(request: RunRequest, methods: str, **other: Any) -> list[str]:
    """`vqbench run …`, word by word, with all that is no default but how cells are carried out.

    `other` fields win, stand last, and are there even where they are the default.
    """
    words, blank, options = ["vqbench", "run", "--methods", methods], RunRequest(), arguments.options(RunRequest)
    values = {field: getattr(request, field) for field in options if field not in other} | other
    for field, value in values.items():
        known = options[field]
        if field not in other and (known.engine or value == getattr(blank, field)):
            continue
        if known.reader is arguments.flag:
            words.append(known.words)
        elif known.reader in (arguments.settings, arguments.paths):
            for item in value:
                words += [known.words, str(item)]
        else:
            words += [known.words, ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    return words


def refuse_odd_bytes(request: RunRequest) -> None:
    """Raise UsageError where a text of the request, or the place of a path, is not UTF-8."""
    for field in dataclasses.fields(request):
        value = getattr(request, field.name)
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, Path):
                require_utf8(os.path.abspath(text))  # the working directory may be what is not
            elif isinstance(text, str):
                require_utf8(text)


def refuse_odd_name(words: str, name: str) -> None:
    """Raise UsageError where what is given as `words` cannot be the name of a folder."""
    if not re.fullmatch(r"[\w@.+=-][\w@.+= -]{0,99}", name) or name in (".", ".."):
        raise UsageError(f"{words} {name!r} cannot be a folder", "use letters, digits, '-', '_' and '.', at most 100")


def parse_resources(text: str) -> dict[str, float]:
    """`GPU=1` or `GPU=1,MEM=40` as amounts by name. Raises UsageError for anything else."""
    needed = {}
    for item in text.split(","):
        name, equals, amount = (part.strip() for part in item.partition("="))
        try:
            needed[name] = float(amount)
        except ValueError:
            equals = ""
        if not (equals and name and 0 < needed[name] < math.inf):
            raise UsageError(f"--resources {text} is not of the form NAME=AMOUNT", "for example: --resources GPU=1")
    return needed


def refuse_odd_engine(request: RunRequest) -> None:
    """Raise UsageError for an engine that cannot be, before anything is looked at."""
    if request.workers < 1:
        raise UsageError(f"--workers {request.workers}, but at least one has to work", "for example: --workers 2")
    if request.workers > (most := _WORKERS_PER_PROCESSOR * (os.cpu_count() or 1)):
        what = f"--workers {request.workers} are more processes than this machine can carry"
        raise UsageError(what, f"choose at most {most}, or a cluster: --scheduler ADDRESS")
    if request.scheduler and request.workers > 1:
        raise UsageError(
            f"--scheduler {request.scheduler} has workers of its own, --workers {request.workers} would start others",
            "leave one of the two out",
        )
    if request.resources not in ("", "none"):
        parse_resources(request.resources)
