"""What is known of each cell, for the page: settings, where it ran, what went wrong, where MLflow has it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from vqbench.facts import Facts
from vqbench.machine.json_files import read_json
from vqbench.reports.experiment import Group, StoredCell
from vqbench.results.cell_files import MLFLOW_RUN
from vqbench.wording import masked

MOST_LOG = 6000
"""Characters of a log's tail."""
_TIMES = (
    ("seconds", "whole cell", "s"),
    ("train_seconds", "training", "s"),
    ("train_images_per_s", "training", "images/s"),
    ("encode_images_per_s", "encoding", "images/s"),
    ("decode_images_per_s", "decoding", "images/s"),
)


class Pool:
    """Values that many cells share, each stored once: a thousand cells name one recipe and one list of versions."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._places: dict[str, int] = {}

    def place(self, value: Any) -> int:
        """Where `value` stands in `values`."""
        key = json.dumps(value, sort_keys=True)
        if key not in self._places:
            self._places[key] = len(self.values)
            self.values.append(value)
        return self._places[key]


def settings_of_group(group: Group) -> dict[str, Any]:
    """All that decides the trained weights of a group but the seed, flat, and what its paper leaves open."""
    first = group.cells[0]
    if not group.is_trained_here:
        known = [cell.spec["pretrained"] for cell in group.cells]
        return {"not trained here": Facts.of(known[0]).in_words(), **_from(known)}
    return {
        "method": group.method,
        **({"preset": first.spec["preset"]} if first.spec.get("preset") else {}),
        **first.training,
    }


def _from(known: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Where tokenizers that were not trained here are from, of what specs say of them: seeds of one training."""
    shown = ("path", "sha256", "unread", "remarks")
    said = {name: known[0][name] for name in shown if known[0].get(name)}
    return said | ({name: [one[name] for one in known] for name in ("path", "sha256")} if len(known) > 1 else {})


def cell_details(cell: StoredCell, row: Mapping[str, Any], pool: Pool, root: Path) -> dict[str, Any]:
    """One cell beside its scores; `row` is what `vqbench run --json` prints of it, paths are relative to `root`."""
    result, error = cell.result, row["error"] or {}
    return {
        "name": cell.folder.name,
        "path": str(cell.folder.path.relative_to(root)),
        "hash": str(cell.spec.get("hash", ""))[:16],
        "recipe": pool.place(dict(cell.spec["recipe"])),
        "versions": pool.place(result.get("versions") or {}),
        "where": pool.place(_where(result)),
        "finished": result.get("finished"),
        "times": _times(result),
        "memory": result.get("peak_memory_bytes"),
        "collapse": {"said": _what_happened(cell, flag)} if (flag := result.get("collapse")) else None,
        "error": {key: str(error.get(key) or "")[-MOST_LOG:] for key in _ERROR} if error else None,
        "mlflow": mlflow_place(cell.folder.path / MLFLOW_RUN),
    }


_ERROR = ("type", "message", "hint", "stage", "log_tail")


def _what_happened(cell: StoredCell, flag: Mapping[str, Any]) -> str:
    """ "Collapsed from 14,336 of 20,000 images on: …"."""
    recipe, kind = cell.spec["recipe"], str(flag.get("kind") or "collapsed").capitalize()
    batch = recipe.get("batch_size") or 1
    total = -(-recipe["images"] // batch) * batch
    if flag["images"] < total:
        return f"{kind} from {flag['images']:,} of {total:,} images on: {flag['reason']}"
    return f"{kind} at the end, after {total:,} images: {flag['reason']}"


def _where(result: Mapping[str, Any]) -> dict[str, Any]:
    known = {
        "device": result.get("device_name"),
        "kind": result.get("device"),
        "devices": result.get("devices"),
        "git commit": result.get("git"),
        **{name.replace("_", " "): str(value) for name, value in (result.get("execution") or {}).items()},
    }
    return {name: value for name, value in known.items() if value is not None}


def _times(result: Mapping[str, Any]) -> list[list[Any]]:
    return [[title, result[key], unit] for key, title, unit in _TIMES if isinstance(result.get(key), int | float)]


def mlflow_place(memory: Path) -> dict[str, str] | None:
    """Run id of a cell in MLflow, and the address of its page where a server has one; None where it was never sent.

    A user name or password in the address is left out: pages are passed on.
    """
    known = read_json(memory) or {}
    run, uri = known.get("run_id"), str(known.get("uri") or "")
    if not isinstance(run, str) or not run:
        return None
    try:
        parts = urlsplit(masked(uri))
    except ValueError:
        return {"run": run}
    if parts.scheme not in ("http", "https") or not parts.hostname or not run.isalnum():
        return {"run": run}
    host = parts.netloc.rpartition("@")[2]
    return {"run": run, "link": urlunsplit((parts.scheme, host, parts.path.rstrip("/") + "/", "", f"/runs/{run}"))}
