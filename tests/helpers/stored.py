"""Stored experiments as `vqbench run` leaves them, made of numbers: nothing is trained.

`write_cell` writes a cell of given scores, `make_runs` an experiment whose scores are drawn around a mean.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from vqbench.machine.json_files import write_json
from vqbench.metrics.definitions import IN_PROTOCOL
from vqbench.metrics.protocol import Protocol, protocol_for
from vqbench.recipe import load_recipe
from vqbench.reports.experiment import Group, Section, StoredCell
from vqbench.reports.reader import ImageTable, Reader
from vqbench.results.cell_folder import CellFolder

PROTOCOL = "0123456789ab"
"""The hash of the protocol of a cell that is given its scores."""
PARAMS = {"encoder": 246560, "quantizer": 1024, "projections": 816, "decoder": 413251, "total": 661651}
VERSIONS = {"python": "3.11.7", "vqbench": "0.1.0", "torch": "2.14.1", "lightning": "2.6.6", "numpy": "2.4.6"}

# the mean of a drawn score, and its standard deviation over seeds
BASE = {"rfid": 300.0, "psnr": 14.0, "ssim": 0.42, "usage": 0.6, "perplexity": 25.0}
SPREAD = {"rfid": 6.0, "psnr": 0.08, "ssim": 0.004, "usage": 0.02, "perplexity": 0.8}
FIXED = {"bits_per_token": 6.0, "bpp": 0.375, "tokens": 12288.0}


@functools.cache
def _recipe() -> dict[str, Any]:
    return load_recipe("tiny").as_dict()


@functools.cache
def _protocol(n_images: int) -> Protocol:
    return protocol_for("photos", 32, "0" * 64, n_images, "the right-hand quarter")


def spec_of(method: str, seed: int, *, protocol: str = PROTOCOL, n_images: int = 30, **more: Any) -> dict[str, Any]:
    """The spec of a cell of the photographs; `more` are its other fields: config, components, preset, label."""
    dataset = {"reference": "photos", "slug": "photos", "data_root": None, "validation_images": None}
    dataset |= {"split_rule": "the right-hand quarter", "training_images": 12104, "training_digest": "1" * 64}
    spec = {
        "schema": 1, "label": None, "method": method, "preset": None, "config": {}, "components": {},
        "paper_unspecified": {}, "plugin": None, "code": None, "recipe": _recipe(), "dataset": dataset,
        "protocol": {**_protocol(n_images).as_dict(), "hash": protocol}, "seed": seed,
        "metrics": [*IN_PROTOCOL], "devices": 1, "stop_on_collapse": False, "inception_weights": None,
        "lpips_weights": None, **more,
    }  # fmt: skip
    return {**spec, "hash": hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()}


def write_cell(
    experiment: Path,
    method: str,
    seed: int,
    scores: Mapping[str, float],
    *,
    images: Mapping[str, Sequence[float] | NDArray[Any]] | None = None,
    arrays: Mapping[str, Mapping[str, NDArray[Any]]] | None = None,
    result: Mapping[str, Any] | None = None,
    **more: Any,
) -> Path:
    """Write a finished cell and return its folder; scores of `images` are their means.

    `arrays`: file name → its arrays; `result`: fields of the result that are otherwise; `more`: as in `spec_of`.
    """
    images, spec = images or {}, spec_of(method, seed, **more)
    folder = _write_spec(experiment, spec)
    if images:
        count = len(next(iter(images.values())))
        columns = {"id": [f"image {i}" for i in range(count)], **images, "codes": np.ones(count, np.int64)}
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / "per_image.parquet")
    for name, content in (arrays or {}).items():
        np.savez_compressed(folder / name, **content)
    whole = {**scores, **{name: float(np.mean(values)) for name, values in images.items()}}
    (folder / "result.json").write_text(json.dumps({**_result(spec, whole), **(result or {})}))
    return folder


def write_failure(experiment: Path, method: str, seed: int, message: str = "out of memory", **more: Any) -> Path:
    """Write a cell that failed; `more`: as in `spec_of`."""
    folder = _write_spec(experiment, spec_of(method, seed, **more))
    error = {"type": "RuntimeError", "message": message, "hint": "run it again", "stage": "train"}
    error["log_tail"] = f"step 12\nTraceback (most recent call last)\nRuntimeError: {message}"
    failed = {"state": "failed", "error": error, "collapse": None, "scores": {}}
    (folder / "result.json").write_text(json.dumps(failed))
    return folder


def _write_spec(experiment: Path, spec: Mapping[str, Any]) -> Path:
    method = re.sub(r"[^\w-]", "-", spec["method"][:10])
    folder = experiment / "cells" / f"{method}-{spec['dataset']['slug']}-s{spec['seed']}-{spec['hash'][:8]}"
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(json.dumps(spec))  # in ASCII, as names may be no UTF-8
    return folder


def _result(spec: Mapping[str, Any], scores: Mapping[str, float]) -> dict[str, Any]:
    same = ("method", "config", "components", "paper_unspecified", "recipe", "dataset", "protocol", "seed", "hash")
    return {
        "state": "done", **{key: spec[key] for key in same}, "versions": VERSIONS, "git": "c2ff82f5fcea28",
        "finished": f"2026-11-2{spec['seed'] % 10}T15:37:37+0000", "seconds": 61.5, "scores": dict(scores),
        "params": PARAMS, "images_seen": 4096, "train_seconds": 48.25, "train_images_per_s": 84.9,
        "peak_memory_bytes": 1 << 30, "device": "cpu", "devices": spec["devices"], "collapse": None,
        "device_name": "AMD EPYC", "encode_images_per_s": 229.7, "decode_images_per_s": 97.4,
    }  # fmt: skip


@dataclass(frozen=True)
class Made:
    """One method of a made experiment."""

    label: str
    method: str = "vqgan"
    shift: float = 0.0
    """How much better it is, in tenths of a decibel, and by as many spreads in every other score."""
    config: Mapping[str, Any] = field(default_factory=lambda: {"codebook_size": 64, "dim": 16})
    components: Mapping[str, bool] = field(default_factory=dict)
    failed: Mapping[int, str] = field(default_factory=dict)
    """Seed → the message of its failure."""
    collapsed: Mapping[int, str] = field(default_factory=dict)
    mlflow: Mapping[str, str] = field(default_factory=dict)


def make_runs(
    runs: Path, name: str, methods: Sequence[Made], seeds: Sequence[int] = (0, 1, 2), n_images: int = 48
) -> Path:
    """Write the experiment `name` below `runs`: every method under every seed. Returns its folder."""
    for made in methods:
        for seed in seeds:
            folder = _make(runs / name, made, seed, n_images)
            if made.mlflow:
                write_json(folder / "mlflow.json", dict(made.mlflow))
    return runs / name


def _make(experiment: Path, made: Made, seed: int, n_images: int) -> Path:
    spec = {
        "label": made.label, "config": {**made.config, **made.components}, "components": dict(made.components),
        "metrics": [*BASE, *FIXED], "n_images": n_images, "protocol": _protocol(n_images).hash,
    }  # fmt: skip
    if seed in made.failed:
        return write_failure(experiment, made.method, seed, made.failed[seed], **spec)
    draw = np.random.default_rng(int(spec_of(made.method, seed, **spec)["hash"][:8], 16))
    psnr = _per_image(made, n_images, draw)
    scores = {metric: _score(metric, made.shift, draw) for metric in BASE} | FIXED
    reason = made.collapsed.get(seed)
    collapse = {"kind": "collapsed", "reason": reason, "images": 2048} if reason else None
    result = {"collapse": collapse}
    return write_cell(experiment, made.method, seed, scores, images={"psnr": psnr}, result=result, **spec)


def _per_image(made: Made, n: int, draw: np.random.Generator) -> NDArray[np.float64]:
    """Decibels: an effect of the image that all methods share, and noise."""
    of_image = np.random.default_rng(5).normal(0, 2, n)
    return BASE["psnr"] + 0.1 * made.shift + of_image + draw.normal(0, SPREAD["psnr"]) + draw.normal(0, 0.2, n)


def _score(metric: str, shift: float, draw: np.random.Generator) -> float:
    sign = -1 if metric == "rfid" else 1
    value = BASE[metric] + SPREAD[metric] * (sign * shift + float(draw.normal()))
    return min(value, 1.0) if metric in ("usage", "ssim") else value


SIZES = {"taming": 576.0, "rqvae": 594.6, "vqgan": 576.0, "fsq": 610.0, "titok": 620.0, "llamagen": 896.0}
"""Bits of an image of each row of `make_sizes`: 610 is 3 % above 594.6, and 6 % above 576, where its size begins."""


def make_sizes(runs: Path, name: str) -> Path:
    """Methods of three seeds, of which one failed, and tokenizers that were not trained here, a folder of
    reconstructions among them; the more bits, the better. Returns its folder."""
    draw, image = np.random.default_rng(0), np.random.default_rng(1).normal(20, 2, 40)
    better = {"taming": -3.0, "rqvae": 3.0, "vqgan": 0.0, "fsq": 6.0, "titok": 6.0, "llamagen": 9.0, "theirs": 12.0}
    for label, shift in better.items():
        known = {"kind": "checkpoint", "name": label, "path": f"/x/{label}.ckpt", "sha256": "0" * 64, "family": label}
        outside = {
            "taming": {"codebook_size": 512},
            "titok": {"codebook_size": 1024},
            "llamagen": {"codebook_size": 16384},
        }
        outside |= {"theirs": {"kind": "images"}}
        for seed in (0,) if label in outside else (0, 1, 2):
            spec = {"pretrained": known | outside[label]} if label in outside else {}
            sizes = {"bits_per_image": SIZES[label], "tokens_per_image": 64} if label in SIZES else {}
            usage = {"usage": 0.5 + shift / 40 + float(draw.normal(0, 0.01))} if label in SIZES else {}
            psnr = image + shift + draw.normal(0, 0.2) + draw.normal(0, 0.2, 40)
            write_cell(runs / name, label, seed, usage, images={"psnr": psnr}, result=sizes, label=label, **spec)
    write_failure(runs / name, "sqvae", 0, label="sqvae")
    return runs / name


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
