"""Sweeps over small spaces: what is asked for, and executions that end as a test says."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import yaml

from vqbench.planning.request import RunRequest, make_request
from vqbench.sweeps.backend import OpenStudy
from vqbench.sweeps.grammar import read_spaces
from vqbench.sweeps.request import SweepRequest
from vqbench.sweeps.studies import plan_studies
from vqbench.sweeps.sweep import execute_sweep

COMMON = ("codebook_dim=4", "log_images=16")
"""Settings under which a cell of the features track takes seconds."""


@dataclasses.dataclass(frozen=True)
class Place:
    """A folder with features, a space of sizes and a runs directory."""

    root: Path

    @classmethod
    def made(cls, root: Path, rows: int, sizes: Sequence[int]) -> Place:
        np.save(root / "x.npy", np.random.default_rng(0).normal(3, 2, (rows, 2, 2, 6)).astype(np.float32))
        found = cls(root)
        found.write("sizes.yaml", {"recipe": {"codebook_size": list(sizes)}})
        return found

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    def options(self, **more: Any) -> dict[str, Any]:
        fixed = {"features": self.root / "x.npy", "recipe": "atomic", "runs": self.runs, "images": 64}
        return {**fixed, "name": "x", "settings": COMMON, "space": str(self.root / "sizes.yaml"), **more}

    def typed(self, *more: object) -> list[str]:
        words = [
            "--features",
            self.root / "x.npy",
            "--recipe",
            "atomic",
            "--runs",
            self.runs,
            "--images",
            64,
            "--name",
            "x",
        ]
        return [*map(str, words), *(part for text in COMMON for part in ("--set", text)), *map(str, more)]

    def write(self, name: str, space: dict[str, Any]) -> str:
        (self.root / name).write_text(yaml.safe_dump(space, sort_keys=False))
        return str(self.root / name)

    def trained(self) -> dict[str, float]:
        return {path.parent.name: path.stat().st_mtime for path in self.runs.glob("x/cells/*/result.json")}


def request(tmp: Path, space: dict[str, Any] | str, methods: str = "vqgan", **fields: Any) -> SweepRequest:
    """A sweep over a space that is written down in a file."""
    if isinstance(space, dict):
        path = tmp / "space.yaml"
        path.write_text(yaml.safe_dump(space, sort_keys=False))
        space = str(path)
    run = RunRequest(tuple(methods.split(",")), "photos", runs=tmp / "runs", settings=fields.pop("settings", ()))
    found = SweepRequest(run=run, spaces=(space,), **fields)
    return dataclasses.replace(found, space=read_spaces(found.spaces))


def asked_of(options: dict[str, Any], **fields: Any) -> SweepRequest:
    space = options.pop("space") if "space" in options else "optimiser"
    return SweepRequest(run=make_request(["vqgan"], **options), spaces=(space,), **fields)


def opened(tmp: Path, sampler: str, trials: int, name: str = "s", pruner: str = "none") -> OpenStudy:
    asked = request(tmp, {"recipe": {"learning_rate": {"low": 0.001, "high": 1, "log": True}, "codebook_size": [8, 16]}}
                    if sampler != "grid" else {"recipe": {"codebook_size": [8, 16], "optimizer": ["adam", "adamw"]}},
                    sampler=sampler, trials=trials, name=name, pruner=pruner)  # fmt: skip
    (plan,), _ = plan_studies(asked)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp / f"{name}.log")))
    return OpenStudy(plan, asked, storage, ["minimize"], 100)


class Pretence:
    """An execution whose cells end when the test says so, with a score of their own."""

    def __init__(self, slots: int) -> None:
        self.slots, self.cells, self.submitted = slots, [], []  # type: ignore[var-annotated]
        self.ends: dict[str, str] = {}

    @property
    def free(self) -> int:
        return self.slots - len(self.cells)

    @property
    def running(self) -> tuple[Any, ...]:
        return tuple(self.cells)

    def submit(self, cell: Any) -> None:
        assert cell.folder.name not in {c.folder.name for c in self.cells}
        self.cells.append(cell)
        self.submitted.append(cell.folder.name)

    def stop(self, cell: Any) -> None:
        self.ends[cell.folder.name] = "stopped"

    def wait(self) -> list[tuple[Any, dict[str, Any]]]:
        self.slots = max(self.slots, 2)  # workers arrive
        over, self.cells = self.cells, []
        return [(cell, self.row(cell)) for cell in over]

    def row(self, cell: Any) -> dict[str, Any]:
        state = self.ends.get(cell.folder.name, "done")
        error = {"message": "odd", "type": "Killed"} if state == "failed" else None
        scores = {"quantization_error": float(cell.spec["recipe"]["codebook_size"])} if state == "done" else {}
        return {"cell": cell.folder.name, "state": state, "scores": scores, "error": error}


def pretended(place: Place, tmp: Path, space: str, pretence: Pretence, **more: Any) -> tuple[Any, Pretence]:
    options = place.options(space=space, runs=tmp / "runs", seeds=more.pop("seeds", (0,)), **more.pop("options", {}))
    view = more.pop("view", None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vqbench.running.execution.open_execution", lambda *_, **__: contextlib.nullcontext(pretence))
        return execute_sweep(asked_of(options, **more), view), pretence
