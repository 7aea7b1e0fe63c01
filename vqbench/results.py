"""The runs directory, which is the truth: one folder per cell, written atomically, read without torch."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqbench.atomic import write_text_atomically
from vqbench.lease import exclusive

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
        """What the cell is; empty before it was ever started."""
        return read_json(self.path / "spec.json") or {}

    @property
    def result(self) -> dict[str, Any] | None:
        """Scores or the reason of a failure; None while there is neither."""
        return read_json(self.path / "result.json")

    @property
    def error(self) -> dict[str, Any] | None:
        """Why the last attempt failed; None if it did not."""
        failure = read_json(self.path / "failure.json") or self.result or {}
        return failure.get("error")

    @property
    def status(self) -> dict[str, Any]:
        """Stage and progress of a running cell."""
        return read_json(self.path / "status.json") or {}

    @property
    def checkpoint(self) -> Path:
        """Where training goes on from."""
        return self.path / "checkpoints" / "last.pt"

    @property
    def can_go_on(self) -> bool:
        """Whether there is training to go on from, or a trained tokenizer to evaluate."""
        return self.checkpoint.is_file() or self.weights.is_file()

    @property
    def weights(self) -> Path:
        """The trained tokenizer."""
        return self.path / "checkpoints" / "tokenizer.safetensors"

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

    def state(self, metrics: tuple[str, ...]) -> str:
        """cached (a result with all `metrics`), partial (something to go on from), failed, or missing."""
        result = self.result
        if result is not None and result.get("state") == DONE:
            return "cached" if set(metrics) <= set(result.get("scores", {})) else "partial"
        if self.can_go_on:
            return "partial"
        return FAILED if result is not None else "missing"

    def log_tail(self, lines: int = 12) -> str:
        """The last lines of the log."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
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
        error = {"type": kind, "message": message, "hint": hint, "stage": stage, "log_tail": self.log_tail()}
        seconds = round(time.time() - started, 3)
        has_scores = (self.result or {}).get("state") == DONE
        target = self.path / ("failure.json" if has_scores else "result.json")
        write_json(target, {"state": FAILED, "error": error, "collapse": collapse, "scores": {}, "seconds": seconds})

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Hold the folder: no other process trains this cell meanwhile. Raises CellBusyError if one does."""
        return exclusive(self.path)

    def stamp(self) -> tuple[int, int] | None:
        """Tells one result from a later one; None while there is none."""
        try:
            found = (self.path / "result.json").stat()
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
        "collapse": stored.get("collapse"),
        "error": (error or folder.error) if state == FAILED else None,
    }


def cell_folders(experiment: Path) -> list[CellFolder]:
    """Every cell of an experiment that has a spec, by name."""
    return [CellFolder(spec.parent) for spec in sorted((experiment / "cells").glob("*/spec.json"))]
