"""The card of an exported tokenizer: what it is, what it was trained and scored on, and how it is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vqbench.errors import UsageError
from vqbench.facts import Facts
from vqbench.metrics.definitions import DEFINITIONS, cautions
from vqbench.registry import DATASETS, METHODS
from vqbench.results.cell_files import DONE, SPEC
from vqbench.results.cell_folder import CellFolder
from vqbench.version import __version__
from vqbench.wording import counted

CARD = "README.md"


def card(cell: CellFolder, facts: Facts, loading: str, files: Mapping[str, str]) -> str:
    """Markdown. `loading` is a program that loads the export; `files` are its files and what is in each."""
    spec, result = cell.spec, cell.result or {}
    label = spec.get("label") or spec["method"]
    parts = [
        f"# {label} on {spec['dataset']['slug']}",
        f"A tokenizer of images, trained and exported by vqbench {__version__}: images to indices, and back.",
        "## Method",
        _method(spec, facts),
        "## Training data",
        _data(spec, result),
        "## Scores",
        _scores(spec, result),
        "## How to load",
        f"```python\n{loading.strip()}\n```",
        "## Files",
        "\n".join(f"- `{name}`: {what}" for name, what in files.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _list(lines: Mapping[str, object]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in lines.items() if value not in ("", None))


def _method(spec: Mapping[str, Any], facts: Facts) -> str:
    name, recipe = spec["method"], spec["recipe"]
    outline = METHODS.outline(name) if name in METHODS else None
    books = f"{facts.num_codebooks} × " if facts.num_codebooks > 1 else ""
    side = (facts.resolution or 0) // (facts.downsampling or 1)
    return _list(
        {
            "method": f"`{name}`" + (f", preset `{spec['preset']}`" if spec.get("preset") else ""),
            "paper": outline.paper if outline is not None else "",
            "settings": f"`{json.dumps(spec['config'])}`",
            "codes": f"{books}{facts.codebook_size:,}, {facts.bits_per_token:.4g} bits per token",
            "tokens": f"{side} × {side} of an image of {facts.resolution} px, {facts.downsampling} pixels a side each",
            "parameters": f"{facts.parameters['total']:,}",
            "recipe": f"`{recipe['name']}`, {recipe['images']:,} images in batches of {recipe['batch_size']}, "
            f"seed {spec['seed']}",
            "cell": f"`{spec['hash']}`",
            "weights": f"sha256 `{facts.sha256}`",
        }
    )


def _data(spec: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    data, kind = spec["dataset"], spec["dataset"]["reference"].partition(":")[0]
    licence = DATASETS.get(kind).licence if kind in DATASETS else ""
    start = result.get("initial")
    return _list(
        {
            "dataset": f"`{data['slug']}`, {counted(data['training_images'], 'training image')}",
            "split": data.get("split_rule"),
            "digest of the training items": f"`{data['training_digest']}`",
            "licence of the data": licence or "not stated: ask whoever the images are from",
            "started from": f"weights of sha256 `{start['sha256']}`" if start else "",
            "licence of those": (spec["initial"].get("licence") or "not stated") if start else "",
        }
    )


def _scores(spec: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    protocol, scores = spec["protocol"], result.get("scores") or {}
    n = int(protocol["n_images"])
    said = f"Protocol `{protocol['name']}` `{protocol['hash']}`, N = {n:,} validation images; one seed."
    if result.get("state") != DONE or not scores:
        return f"{said} It has not been scored."
    rows = [f"| {_title(name)} | {_value(name, value)} | {n:,} |" for name, value in scores.items() if "/" not in name]
    notes = [f"- {text}." for text in cautions(scores, n).values()]
    if collapse := result.get("collapse"):
        notes.append(f"- Its training collapsed: {collapse['reason']}.")
    notes.append("- Scores of another protocol are other numbers: compare within one.")
    return "\n".join([said, "", "| metric | score | N |", "| --- | ---: | ---: |", *rows, "", *notes])


def _title(name: str) -> str:
    known = DEFINITIONS.get(name)
    if known is None:
        return name
    return f"{known.title}{f' ({known.unit})' if known.unit else ''}{known.arrow}"


def _value(name: str, value: float) -> str:
    return f"{value:.{DEFINITIONS[name].digits if name in DEFINITIONS else 4}f}"


def cell_of(weights: Path) -> CellFolder:
    """The cell whose folder weights lie in. Raises UsageError where they lie by themselves, or it is damaged."""
    cell, needed = CellFolder(weights.parent.parent), "without it nothing can be said of method, data and scores"
    if not (cell.path / SPEC).is_file():
        what = f"{weights} lies in no cell's folder: {needed}"
        raise UsageError(what, "give the folder of a finished cell: runs/NAME/cells/CELL")
    if problem := cell.problem:
        what = f"{cell.path}: {problem}: {needed}"
        raise UsageError(what, "bring back a copy of the file, or run the command that made the cell again")
    return cell
