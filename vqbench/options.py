"""The options of the command line: how each is spelled, read, completed, and found in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vqbench.errors import UsageError, unknown
from vqbench.registry import DATASETS, METHODS


def items(texts: list[str] | None) -> tuple[str, ...]:
    """Options that may be repeated and may hold several items between commas."""
    return tuple(item.strip() for text in texts or () for item in text.split(",") if item.strip())


def seed_numbers(texts: list[str]) -> tuple[int, ...]:
    """`--seeds` as numbers. Raises UsageError for what is none."""
    try:
        return tuple(int(item) for item in items(texts))
    except ValueError:
        raise UsageError(f"--seeds {','.join(texts)} are not whole numbers", "for example: --seeds 0,1,2") from None


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
                raise unknown(f"option in {path}", name, parameters, "`vqbench run --help` lists them")
            defaults[parameters[name].name] = _as_typed(value, getattr(parameters[name], "multiple", False))
        context.default_map = defaults
    return path


def _yaml_mapping(path: Path) -> dict[Any, Any]:
    import yaml

    hint = "for example: `methods: vaevq,vqgan`, each option on a line of its own"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"cannot read --config {path}: {' '.join(str(error).split())}", hint) from None
    if not isinstance(values, dict):
        raise UsageError(f"--config {path} must map options to values", hint)
    return values


def _as_typed(value: Any, multiple: bool) -> Any:
    """A YAML value as it would be typed: text, or a list of texts where the option may be repeated."""
    if not multiple:
        return value
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


Plugins = Annotated[
    list[Path] | None, typer.Option("--plugin", metavar="FILE", help="Python file that registers a method; repeatable.")
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
