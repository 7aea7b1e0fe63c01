"""The options of the command line: how each is spelled, read, completed, and found in a file."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqbench import arguments
from vqbench.errors import UsageError, unknown
from vqbench.machine.yaml_files import parse_yaml
from vqbench.registry import DATASETS, METHODS

if TYPE_CHECKING:
    from vqbench.planning.request import RunRequest


def complete_methods(incomplete: str) -> list[str]:
    """Shell completion of a list of methods."""
    before, comma, last = incomplete.rpartition(",")
    return [before + comma + name for name in METHODS.names() if name.startswith(last)]


def _complete_datasets(incomplete: str) -> list[str]:
    return [name for name in DATASETS.names() if name.startswith(incomplete)]


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Values of a YAML file become the options' defaults: the command line and the environment win over them."""
    if path is not None:
        parameters: dict[str, Any] = {}
        for parameter in context.command.params:
            spellings = [option.lstrip("-") for option in parameter.opts]
            parameters |= dict.fromkeys([s for s in spellings if s not in ("config", "help", "h")], parameter)
        defaults = {}
        for key, value in _yaml_mapping(path).items():
            name = str(key).replace("_", "-")
            if name not in parameters:
                hint = f"`{context.command_path} --help` lists them"
                raise unknown(f"option in {path}", name, parameters, hint)
            if value is not None:  # as if the line were not there
                defaults[parameters[name].name] = _as_typed(value, parameters[name])
        context.default_map = defaults
    return path


def _yaml_mapping(path: Path) -> dict[Any, Any]:
    hint = "for example: `methods: vaevq,vqgan`, each option on a line of its own"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read --config {path}: {error.strerror}", hint) from None
    values = parse_yaml(content, f"--config {path}", hint)
    if not isinstance(values, dict):
        raise UsageError(f"--config {path} must map options to values", hint)
    return values


def _as_typed(value: Any, parameter: Any) -> Any:
    """A YAML value as it would be typed: text, several where the option may be repeated, or a switch as it is."""
    if getattr(parameter, "is_flag", False):
        return value
    if not getattr(parameter, "multiple", False):
        return str(value)
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


Plugins = Annotated[
    list[Path] | None,
    typer.Option("--plugin", metavar="FILE", help="Python file with methods, metrics or datasets; repeatable."),
]
Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", envvar="VQBENCH_RUNS", help="Where results are kept.")]
DataRoot = Annotated[
    Path | None, typer.Option(metavar="DIR", envvar="VQBENCH_DATA_ROOT", help="Where the dataset lies.")
]
DatasetName = Annotated[
    str,
    typer.Option(metavar="NAME", envvar="VQBENCH_DATASET", autocompletion=_complete_datasets,
                 help="photos, folder:PATH, ffhq, cifar10, or a plugin's."),
]  # fmt: skip
FeatureFile = Annotated[
    Path | None,
    typer.Option("--features", metavar="FILE", envvar="VQBENCH_FEATURES",
                 help="Instead of a dataset, for --recipe atomic: .npy of floats, (N, D) or (N, h, w, D)."),
]  # fmt: skip
InceptionWeights = Annotated[
    Path | None,
    typer.Option(metavar="FILE", envvar="VQBENCH_INCEPTION_WEIGHTS", help="FID's InceptionV3, if not in its places."),
]
LpipsWeights = Annotated[
    Path | None,
    typer.Option(metavar="FILE", envvar="VQBENCH_LPIPS_WEIGHTS", help="Backbone of --lpips, if not in its places."),
]
Config = Annotated[
    Path | None,
    typer.Option(metavar="FILE", callback=_read_config, is_eager=True, help="YAML file with values for these options."),
]
RecipeName = Annotated[
    str | None, typer.Option(metavar="NAME|FILE", envvar="VQBENCH_RECIPE", help="How to train; default: tiny.")
]
ValidationImages = Annotated[
    int | None,
    typer.Option(metavar="N", envvar="VQBENCH_VALIDATION_IMAGES", help="Evaluate on N images; part of the protocol."),
]
Metrics = Annotated[
    list[str] | None,
    typer.Option(metavar="LIST", envvar="VQBENCH_METRICS", help="Metrics instead of the default set: rfid,psnr,…"),
]
Lpips = Annotated[
    str | None,
    typer.Option(
        metavar="NET", envvar="VQBENCH_LPIPS", help="LPIPS with alex, vgg or squeeze; default: alex, if it can be had."
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="[METHOD.]FIELD=VALUE", help="Set a method's field, or one of the recipe; repeatable."
    ),
]
Seeds = Annotated[
    list[str], typer.Option(metavar="LIST", envvar="VQBENCH_SEEDS", help="Seeds; several give intervals.")
]
Images = Annotated[
    int | None, typer.Option(metavar="N", envvar="VQBENCH_IMAGES", help="Training images, instead of the recipe's.")
]
Devices = Annotated[int, typer.Option(metavar="N", envvar="VQBENCH_DEVICES", help="Devices per cell.")]
Workers = Annotated[
    int, typer.Option(metavar="N", envvar="VQBENCH_WORKERS", help="Cells at the same time here, a GPU each.")
]
Scheduler = Annotated[
    str,
    typer.Option(
        metavar="ADDRESS|FILE",
        envvar="VQBENCH_SCHEDULER",
        show_default=False,  # a --config's may hold a password
        help="Run the cells on a dask cluster.",
    ),
]
Resources = Annotated[
    str,
    typer.Option(metavar="NAME=N", envvar="VQBENCH_RESOURCES",
                 help="What a cell takes of a cluster's worker; default: its GPUs, where there are any; or none."),
]  # fmt: skip
CellTimeout = Annotated[
    str, typer.Option(metavar="TIME", envvar="VQBENCH_CELL_TIMEOUT", help="End a cell after 90s, 45m or 12h.")
]
Name = Annotated[str, typer.Option(metavar="NAME", envvar="VQBENCH_NAME", help="Experiment; default: DATASET-RECIPE.")]
Rerun = Annotated[bool, typer.Option("--rerun", help="Train again what has a result.")]
StopOnCollapse = Annotated[
    bool, typer.Option("--stop-on-collapse", help="End a training that has collapsed; its row says why.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the cells and their state; train nothing.")]
Probe = Annotated[
    bool,
    typer.Option("--probe", help="With --dry-run: train 20 steps of each method and say what the cells will cost."),
]
Page = Annotated[
    bool,
    typer.Option("--page/--no-page", envvar="VQBENCH_PAGE", help="Write the experiment's page of tables and figures."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object per row on stdout.")]


@dataclass(frozen=True)
class RunOptions:
    """The options of every command that trains cells, as they were typed."""

    dataset: DatasetName = ""
    features: FeatureFile = None
    data_root: DataRoot = None
    recipe: RecipeName = None
    seeds: Seeds = dataclasses.field(default_factory=lambda: ["0"])
    images: Images = None
    devices: Devices = 1
    workers: Workers = 1
    scheduler: Scheduler = ""
    resources: Resources = ""
    cell_timeout: CellTimeout = ""
    runs: Runs = Path("runs")
    name: Name = ""
    settings: Settings = None
    plugin: Plugins = None
    metrics: Metrics = None
    lpips: Lpips = None
    validation_images: ValidationImages = None
    inception_weights: InceptionWeights = None
    lpips_weights: LpipsWeights = None
    rerun: Rerun = False
    stop_on_collapse: StopOnCollapse = False
    dry_run: DryRun = False
    probe: Probe = False
    page: Page = True
    as_json: AsJson = False
    config: Config = None

    def request(self, methods: Sequence[str] | str | None) -> RunRequest:
        """What these options ask of `methods`. Raises UsageError as RunRequest does, and for a stray --probe."""
        from vqbench.planning.request import RunRequest

        if self.probe and not self.dry_run:
            raise UsageError("--probe measures what a run will cost, and a run needs none", "add --dry-run")
        renamed = {"plugin": "plugins"}
        only_here = ("dry_run", "probe", "as_json", "config")
        asked = {renamed.get(name, name): value for name, value in vars(self).items() if name not in only_here}
        return arguments.asked(RunRequest, methods=methods, **asked)


def takes_run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command every field of RunOptions as an option beside its own; its parameter `options` holds them."""
    own = inspect.signature(command, eval_str=True).parameters.values()
    hints = typing.get_type_hints(RunOptions, include_extras=True)
    shared = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, annotation=hints[f.name], default=_default(f))
        for f in dataclasses.fields(RunOptions)
    ]

    @functools.wraps(command)
    def with_options(**values: Any) -> None:
        options = RunOptions(**{parameter.name: values.pop(parameter.name) for parameter in shared})
        command(**values, options=options)

    mine = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own if p.name != "options"]
    with_options.__signature__ = inspect.Signature([*mine, *shared])  # type: ignore[attr-defined]
    with_options.__annotations__ = {p.name: p.annotation for p in (*mine, *shared)}
    return with_options


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
