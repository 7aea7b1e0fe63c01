"""What a run is asked for: the options of the command, the keywords of the call, one frozen request for both."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypedDict, Unpack

from vqbench import arguments
from vqbench.data.dataset import DataReference
from vqbench.errors import UsageError, require_utf8
from vqbench.planning.choice import Variant

_WORKERS_PER_PROCESSOR = 16
"""More are a slip of the keyboard, and would take the machine down."""


def _methods(option: str, value: Any) -> tuple[str | Variant, ...]:
    """Names as `arguments.names` reads them; variants stay what they are."""
    if isinstance(value, tuple | list):
        each = [(item,) if isinstance(item, Variant) else arguments.names(option, [item]) for item in value]
        return tuple(itertools.chain.from_iterable(each))
    return (value,) if isinstance(value, Variant) else arguments.names(option, value)


_READERS: dict[str, arguments.Reader] = {
    "methods": _methods,
    "dataset": arguments.source,
    "data_root": arguments.path,
    "recipe": arguments.text,
    "seeds": arguments.seeds,
    "images": arguments.whole,
    "devices": arguments.whole,
    "runs": arguments.path,
    "name": arguments.text,
    "settings": arguments.settings,
    "plugins": arguments.paths,
    "metrics": arguments.names,
    "lpips": arguments.text,
    "inception_weights": arguments.path,
    "lpips_weights": arguments.path,
    "validation_images": arguments.whole,
    "rerun": arguments.flag,
    "stop_on_collapse": arguments.flag,
    "features": arguments.path,
    "workers": arguments.whole,
    "scheduler": arguments.text,
    "resources": arguments.text,
    "cell_timeout": arguments.seconds,
    "page": arguments.flag,
}


@dataclass(frozen=True)
class RunRequest:
    """What `vqbench run` was asked for; its fields are the command's options."""

    methods: tuple[str | Variant, ...] = ()
    dataset: str = ""
    """Empty only where `features` are given."""
    data_root: Path | None = None
    recipe: str = ""
    """Empty: `tiny`."""
    seeds: tuple[int, ...] = (0,)
    images: int | None = None
    devices: int = 1
    runs: Path = Path("runs")
    name: str = ""
    """Empty: DATASET-RECIPE."""
    settings: tuple[str, ...] = ()
    plugins: tuple[Path, ...] = ()
    metrics: tuple[str, ...] = ()
    """Empty: the default set."""
    lpips: str | None = None
    """LPIPS net; None: alex, where its weights can be had."""
    inception_weights: Path | None = None
    lpips_weights: Path | None = None
    validation_images: int | None = None
    rerun: bool = False
    stop_on_collapse: bool = False
    features: Path | None = None
    """A file of frozen features in the place of a dataset, for a recipe of the features track."""
    workers: int = 1
    """Cells at the same time on this machine."""
    scheduler: str = ""
    """Address or scheduler file of a dask cluster that runs the cells; empty: this machine."""
    resources: str = ""
    """What a cell takes of a worker of that cluster, NAME=AMOUNT; empty: its GPUs, if workers offer any; or none."""
    cell_timeout: float | None = None
    """Seconds after which a cell is ended."""
    page: bool = False
    """Whether the experiment's page is written at the end."""

    @property
    def data(self) -> DataReference:
        """Where the data are."""
        return DataReference(self.dataset, self.data_root, self.validation_images, self.features)

    def __post_init__(self) -> None:
        """Each field may be given as the command line or Python does. Raises UsageError for what it does not take."""
        arguments.settle(self, _READERS)


class RunKeywords(TypedDict, total=False):
    """What `run` and `ablate` take beside methods and dataset: the options of the commands (`settings` is --set).

    A list may be one value, any iterable, or text with commas; a number may be text; None is the option's default.
    """

    features: str | os.PathLike[str] | None
    data_root: str | os.PathLike[str] | None
    recipe: str | os.PathLike[str] | None
    seeds: int | str | Iterable[int | str] | None
    images: int | str | None
    devices: int | str | None
    runs: str | os.PathLike[str] | None
    name: str | None
    settings: str | Iterable[str] | Mapping[str, Any] | None
    plugins: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | None
    metrics: str | Iterable[str] | None
    lpips: str | None
    inception_weights: str | os.PathLike[str] | None
    lpips_weights: str | os.PathLike[str] | None
    validation_images: int | str | None
    rerun: bool
    stop_on_collapse: bool
    workers: int | str | None
    scheduler: str | os.PathLike[str] | None
    resources: str | None
    cell_timeout: float | str | None
    """In seconds, or text: 90s, 45m, 12h."""
    page: bool


def make_request(
    methods: str | Variant | Iterable[str | Variant],
    dataset: str | os.PathLike[str] = "",
    asked_by: Callable[..., Any] | None = None,
    **options: Unpack[RunKeywords],
) -> RunRequest:
    """Keyword arguments as a request, each read as RunRequest says; `asked_by` is the function that was called.

    Raises TypeError for one that does not exist, UsageError for what one does not take.
    """
    known = RunKeywords.__annotations__
    for name in options:
        if name not in known:
            others = inspect.signature(asked_by).parameters if asked_by is not None else ()
            near = get_close_matches(name, [*known, *others], n=1, cutoff=0.5)
            question = f"; did you mean '{near[0]}'?" if near else ""
            call = asked_by.__name__ if asked_by is not None else "run"
            raise TypeError(f"{call}() got an unexpected keyword argument '{name}'{question}")
    return arguments.asked(RunRequest, methods=methods, dataset=dataset, **options)


def refuse_odd_bytes(request: RunRequest) -> None:
    """Raise UsageError where a text of the request, or the place of a path, is not UTF-8."""
    for option in dataclasses.fields(request):
        value = getattr(request, option.name)
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, Path):
                require_utf8(os.path.abspath(text))  # the working directory may be what is not
            elif isinstance(text, str):
                require_utf8(text)


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
