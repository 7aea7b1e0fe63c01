"""The runs directory, which is the truth: one folder per cell, written atomically, read without torch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqbench.machine.json_files import read_json, write_json
from vqbench.machine.lease import exclusive
from vqbench.results.cell_files import (
    CHECKPOINT,
    CURVES,
    DONE,
    FAILED,
    FAILURE,
    LOG,
    RESULT,
    SPEC,
    STATUS,
    TRAINING,
    WEIGHTS,
    later_version,
)
from vqbench.results.curves import read_curves
from vqbench.results.problems import result_problem, spec_problem
from vqbench.wording import masked_text

FETCHED = "fetched.json"
"""In the folder of an experiment that was brought back from MLflow: where it is from, and what could not be brought."""


def as_whole(value: Any) -> Any:
    """The whole number that text, a float or a bool stands for; anything else as it is."""
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        return value
    return value if isinstance(value, float) and number != value else number


def failure(kind: str, message: str, hint: str, stage: str, log_tail: str = "") -> dict[str, str]:
    """Why a cell failed, as its row says it, without secrets."""
    said = {"message": message, "hint": hint, "stage": stage, "log_tail": log_tail}
    return {"type": kind, **{name: masked_text(text) for name, text in said.items()}}


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
        error = (read_json(self.path / FAILURE) or self.result or {}).get("error")
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
        return self.path / LOG

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

    def state(self, has_all: Callable[[Mapping[str, Any]], bool]) -> str:
        """cached (a result of which `has_all` is true), partial (something to go on from), failed, or missing.

        A result that vqbench did not write so is none.
        """
        if self.later:
            return FAILED
        result = self.result
        if result is not None and result_problem(result):
            result = None
        if result is not None and result.get("state") == DONE:
            return "cached" if has_all(result) else "partial"
        if self.can_go_on:
            return "partial"
        return FAILED if result is not None else "missing"

    def log_tail(self) -> str:
        """The last twelve lines of the log."""
        try:
            return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:])
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
        error = failure(kind, message, hint, stage, self.log_tail())
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
