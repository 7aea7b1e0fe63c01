"""Stored experiments as `vqbench run` leaves them, made from numbers: nothing is trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vqbench.reports.experiment import Group, Section, StoredCell
from vqbench.reports.reader import ImageTable, Reader
from vqbench.results.folder import CellFolder

PROTOCOL = "0123456789ab"
RECIPE = {"name": "tiny", "images": 4000, "resolution": 32, "learning_rate": 0.001}


def spec_of(method: str, seed: int, *, protocol: str = PROTOCOL, n_images: int = 30, **more: Any) -> dict[str, Any]:
    """The spec of a cell; `more` are its other fields: config, components, preset, label."""
    return {
        "method": method,
        "config": {},
        "components": {},
        "recipe": RECIPE,
        "dataset": {"slug": "photos"},
        "protocol": {"name": "photos-32-v1", "hash": protocol, "n_images": n_images, "definitions": {}},
        "seed": seed,
        "hash": f"{method}{seed}{protocol}",
        **more,
    }


def write_cell(
    experiment: Path,
    method: str,
    seed: int,
    scores: Mapping[str, float],
    *,
    images: Mapping[str, Sequence[float] | NDArray[Any]] | None = None,
    arrays: Mapping[str, Mapping[str, NDArray[Any]]] | None = None,
    result: Mapping[str, Any] | None = None,
    protocol: str = PROTOCOL,
    **more: Any,
) -> Path:
    """Write a finished cell; scores of `images` are their means. `arrays`: file name → its arrays."""
    images = images or {}
    whole = {**scores, **{name: float(np.mean(values)) for name, values in images.items()}}
    spec = spec_of(method, seed, protocol=protocol, **more)
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:8]
    folder = experiment / "cells" / f"{method[:10].replace('/', '-')}-photos-s{seed}-{digest}"
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(json.dumps(spec))
    done = {"state": "done", "scores": whole, "collapse": None, "params": {"total": 1000}, **(result or {})}
    (folder / "result.json").write_text(json.dumps(done))
    if images:
        count = len(next(iter(images.values())))
        table = pd.DataFrame({"id": [f"image/{i}" for i in range(count)], **images, "codes": 1})
        table.to_parquet(folder / "per_image.parquet", index=False)
    for name, content in (arrays or {}).items():
        np.savez_compressed(folder / name, **content)
    return folder


def write_failure(experiment: Path, method: str, seed: int, message: str = "out of memory") -> Path:
    """Write a cell that failed."""
    error = {"type": "MemoryError", "message": message, "hint": "a smaller batch", "stage": "train", "log_tail": ""}
    return write_cell(experiment, method, seed, {}, result={"state": "failed", "scores": {}, "error": error})


class InMemory(Reader):
    """A reader of cells that are on no disk: values per image, by folder."""

    def __init__(self, values: Mapping[Path, Mapping[str, NDArray[np.float64]]]) -> None:
        super().__init__()
        self.values = values

    def table(self, cell: Path) -> ImageTable | None:
        """The values that were given."""
        return ImageTable(0, self.values[cell]) if cell in self.values else None


def section_of(
    values: Mapping[str, NDArray[np.float64]], metric: str, seeds: Sequence[int] = ()
) -> tuple[Section, InMemory]:
    """A section of groups, and its reader. values: label → (S, N) per image, or (S,) scores of whole sets."""
    groups, kept = [], {}
    for label, array in values.items():
        cells = []
        for i, seed_values in enumerate(array):
            seed, path = (seeds[i] if seeds else i), Path(f"/nowhere/{label}-{i}")
            result = {"state": "done", "scores": {metric: float(np.mean(seed_values))}, "collapse": None}
            cells.append(StoredCell(CellFolder(path), spec_of(label, seed), result))
            if array.ndim == 2:
                kept[path] = {metric: seed_values}
        groups.append(Group(label, tuple(cells)))
    return Section(spec_of("any", 0)["protocol"], tuple(groups)), InMemory(kept)
