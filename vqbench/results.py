"""The runs directory, which is the truth: one folder per cell, written atomically, read without torch."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqbench.atomic import write_text_atomically
from vqbench.cell_files import (
    CHECKPOINT,
    CURVES,
    FAILURE,
    RESULT,
    SPEC,
    STATUS,
    TRAINING,
    WEIGHTS,
    later_version,
)
from vqbench.lease import exclusive
from vqbench.metrics.definitions import cautions, stored_digest
from vqbench.wording import masked_text, size_text

DONE, FAILED = "done", "failed"
FETCHED = "fetched.json"
"""In the folder of an experiment that was brought back from MLflow: where it is from, and what could not be brought."""


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically. Raises ValueError for NaN and infinities, which are not JSON."""
    write_text_atomically(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is no file or no whole object in it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def read_curves(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics.jsonl, each an object with `images`; none where there is no file.

    A line may be half written, now or by a process that was killed, also where others were appended to it.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    points = []
    for line in lines:
        try:
            point = json.loads(line)
        except ValueError:
            continue
        if isinstance(point, dict) and isinstance(point.get("images"), int | float):
            points.append(point)
    return points


def as_whole(value: Any) -> Any:
    """The whole number that text, a float or a bool stands for; anything else as it is."""
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        return value
    return value if isinstance(value, float) and number != value else number


@dataclass(frozen=True)
class CellFolder:
    """`runs/EXPERIMENT/cells/METHOD-DATASET-sSEED-HASH8`: all that is known of one cell."""

    path: Path

    @property
    def name(self) -> str:
        """Name of the folder, which names the cell."""
        return self.path.name

    @property
    def spec(self) -> dict[str, Any]:
        """What the cell is; empty before it was ever started.

        Earlier versions took seeds and devices from Python as they came, and stored "1", 1.0 or true for 1.
        """
        spec = read_json(self.path / SPEC) or {}
        return {**spec, **{key: as_whole(spec[key]) for key in ("seed", "devices") if key in spec}}

    @property
    def result(self) -> dict[str, Any] | None:
        """Scores or the reason of a failure; None while there is neither."""
        return read_json(self.path / RESULT)

    @property
    def error(self) -> dict[str, Any] | None:
        """Why the last attempt failed; None if it did not."""
        failure = read_json(self.path / FAILURE) or self.result or {}
        error = failure.get("error")
        return error if isinstance(error, dict) else None

    @property
    def status(self) -> dict[str, Any]:
        """Stage and progress of a running cell."""
        return read_json(self.path / STATUS) or {}

    @property
    def checkpoint(self) -> Path:
        """Where training goes on from."""
        return self.path / CHECKPOINT

    @property
    def can_go_on(self) -> bool:
        """Whether there is training to go on from, or a trained tokenizer to evaluate."""
        return self.checkpoint.is_file() or self.weights.is_file()

    @property
    def weights(self) -> Path:
        """The trained tokenizer."""
        return self.path / WEIGHTS

    @property
    def reference_features(self) -> Path:
        """Inception features of the validation images, shared by the cells of an experiment under one protocol."""
        return self.path.parents[1] / f"reference-{self.spec['protocol']['hash']}.npz"

    @property
    def validation_images(self) -> Path:
        """The validation images whose reconstructions cells keep, shared like `reference_features`."""
        return self.path.parents[1] / f"images-{self.spec['protocol']['hash']}.npz"

    @property
    def log(self) -> Path:
        """Everything that the cell's process printed."""
        return self.path / "log.txt"

    @property
    def training_record(self) -> Path:
        """What training took, written after the weights."""
        return self.path / TRAINING

    @property
    def curves(self) -> list[dict[str, Any]]:
        """The points of its curves over training so far."""
        return read_curves(self.path / CURVES)

    @property
    def problem(self) -> str:
        """What is wrong with its spec or its result, by a sentence; empty if nothing is, or there is no result yet."""
        if problem := spec_problem(self.spec):
            return problem
        result = self.result
        if result is None:
            there = (self.path / RESULT).is_file()
            return "result.json is not whole; run its command again" if there else ""
        return result_problem(result)

    @property
    def later(self) -> str:
        """A sentence where a later vqbench wrote its spec or its result, which is not ours to replace; else empty."""
        return later_version(SPEC, self.spec) or later_version(RESULT, self.result or {})

    def state(self, metrics: Iterable[str], digests: Mapping[str, str]) -> str:
        """cached (a result with all `metrics`), partial (something to go on from), failed, or missing.

        `digests` of those that have one: a score by another definition is none, as is a result that vqbench did not
        write so.
        """
        if self.later:
            return FAILED
        result = self.result
        if result is not None and result_problem(result):
            result = None
        if result is not None and result.get("state") == DONE:
            scores = result.get("scores", {})
            has_all = all(m in scores and stored_digest(m, result) == digests.get(m, "") for m in metrics)
            return "cached" if has_all else "partial"
        if self.can_go_on:
            return "partial"
        return FAILED if result is not None else "missing"

    def log_tail(self, lines: int = 12) -> str:
        """The last lines of the log."""
        try:
            return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def write_failure(
        self,
        kind: str,
        message: str,
        hint: str,
        stage: str,
        started: float,
        collapse: dict[str, Any] | None = None,
    ) -> None:
        """Make the failure the cell's result, so that it is a row and not a gap; `collapse` if that was the reason.

        Scores of an earlier run that only lacked a metric are kept; the failure then stands beside them.
        """
        said = {"message": message, "hint": hint, "stage": stage, "log_tail": self.log_tail()}
        error = {"type": kind, **{name: masked_text(text) for name, text in said.items()}}
        seconds = round(time.time() - started, 3)
        has_scores = (self.result or {}).get("state") == DONE
        target = self.path / (FAILURE if has_scores else RESULT)
        write_json(target, {"state": FAILED, "error": error, "collapse": collapse, "scores": {}, "seconds": seconds})

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Hold the folder: no other process trains this cell meanwhile. Raises CellBusyError if one does."""
        return exclusive(self.path)

    def stamp(self) -> tuple[int, int] | None:
        """Tells one result from a later one; None while there is none."""
        try:
            found = (self.path / RESULT).stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns


def cell_row(
    label: str,
    spec: Mapping[str, Any],
    folder: CellFolder,
    state: str,
    stored: Mapping[str, Any],
    error: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A cell as one JSON object; `stored` is its result, `error` the reason of a failure that is not in its folder."""
    result = stored if state != FAILED else {}
    return {
        "cell": folder.name,
        "method": label,
        "dataset": spec["dataset"]["slug"],
        "recipe": spec["recipe"]["name"],
        "seed": spec["seed"],
        "protocol": spec["protocol"]["hash"],
        "state": state,
        "scores": result.get("scores", {}),
        "params": result.get("params") or {},
        "train_images_per_s": result.get("train_images_per_s"),
        "path": str(folder.path),
        **({"digests": known} if (known := _digests(result)) else {}),
        "collapse": stored.get("collapse"),
        "matched": size_text(spec.get("size")) or None,
        "error": (error or folder.error) if state == FAILED else None,
        **({"cautions": said} if (said := cautions(result.get("scores", {}), spec["protocol"]["n_images"])) else {}),
    }


def _digests(result: Mapping[str, Any]) -> dict[str, str]:
    found = {name: stored_digest(name, result) for name in result.get("scores", {}) if "/" not in name}
    return {name: digest for name, digest in found.items() if digest}


def cell_folders(experiment: Path) -> list[CellFolder]:
    """Every cell of an experiment that has a spec, by name."""
    return [CellFolder(spec.parent) for spec in sorted((experiment / "cells").glob(f"*/{SPEC}"))]


def results_of_nothing(experiment: Path) -> list[str]:
    """A sentence for each folder that has a result and no spec, which would say of what."""
    folders = sorted(path.parent for path in experiment.glob(f"cells/*/{RESULT}"))
    return [
        f"{folder.name}: there is a result but no spec.json, which says of what"
        for folder in folders
        if not (folder / SPEC).is_file()
    ]


_SPEC: tuple[tuple[str, type], ...] = (
    ("method", str),
    ("config", dict),
    ("components", dict),
    ("recipe", dict),
    ("recipe.name", str),
    ("recipe.images", int),
    ("dataset", dict),
    ("dataset.slug", str),
    ("protocol", dict),
    ("protocol.name", str),
    ("protocol.hash", str),
    ("protocol.n_images", int),
    ("seed", int),
)
"""What is read of a spec, by its path, and its type."""
_KINDS = {str: "text", dict: "an object", int: "a whole number"}


def spec_problem(spec: Mapping[str, Any]) -> str:
    """What is wrong with a spec; empty if nothing is."""
    if newer := later_version(SPEC, spec):
        return newer
    if missing := [key for key in dict.fromkeys(path.split(".")[0] for path, _ in _SPEC) if key not in spec]:
        return f"spec.json is not whole (no {', '.join(missing)}); the command that made the cell writes it again"
    for path, kind in _SPEC:
        if not isinstance(_at(spec, path), kind):
            return f"spec.json is not what vqbench wrote ({path} is not {_KINDS[kind]})"
    return _odd_object(SPEC, spec, ("paper", "plugin", "part_of", "paper_unspecified", "size"))


def result_problem(result: Mapping[str, Any]) -> str:
    """What is wrong with a result; empty if nothing is."""
    if newer := later_version(RESULT, result):
        return newer
    if result.get("state") not in (DONE, FAILED):
        return "result.json names no state"
    if odd := _odd_object(RESULT, result, ("scores", "params", "collapse", "error", "metrics")):
        return odd
    if odd := _odd_object(RESULT, result.get("metrics") or {}, result.get("metrics") or {}):
        return odd
    collapse = result.get("collapse")
    if collapse and not (isinstance(collapse.get("images"), int) and isinstance(collapse.get("reason"), str)):
        return "result.json is not what vqbench wrote (collapse has no images or no reason)"
    if result["state"] == FAILED:
        return ""
    if not result.get("scores"):
        return "result.json has no scores"
    speed = {name: result[name] for name in ("train_images_per_s",) if result.get(name) is not None}
    numbers = (*result["scores"].items(), *(result.get("params") or {}).items(), *speed.items())
    odd_names = [name for name, value in numbers if not _is_finite(value)]
    return f"result.json is not what vqbench wrote ({', '.join(odd_names)}: no finite number)" if odd_names else ""


def _at(spec: Mapping[str, Any], path: str) -> Any:
    found: Any = spec
    for key in path.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _odd_object(file: str, found: Mapping[str, Any], keys: Iterable[str]) -> str:
    """Names the first of `keys` that is there and no object."""
    odd = next((key for key in keys if key in found and not isinstance(found[key], dict | None)), "")
    return f"{file} is not what vqbench wrote ({odd} is not an object)" if odd else ""


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
