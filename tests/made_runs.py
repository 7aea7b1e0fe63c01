"""Stored experiments that nobody trained: cells in the format of real ones, with scores drawn around a mean."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from vqbench.machine.json_files import write_json
from vqbench.metrics.protocol import protocol_for
from vqbench.recipe import load_recipe

BASE = {"rfid": 300.0, "psnr": 14.0, "ssim": 0.42, "usage": 0.6, "perplexity": 25.0}
SPREAD = {"rfid": 6.0, "psnr": 0.08, "ssim": 0.004, "usage": 0.02, "perplexity": 0.8}
FIXED = {"bits_per_token": 6.0, "bpp": 0.375, "tokens": 12288.0}
VERSIONS = {"python": "3.11.7", "vqbench": "0.1.0", "torch": "2.14.1", "lightning": "2.6.6", "numpy": "2.4.6"}


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


@functools.cache
def _shared(n_images: int) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Recipe, dataset and protocol of every cell."""
    recipe = dataclasses.asdict(load_recipe("tiny"))
    protocol = protocol_for("photos", 32, "0" * 64, n_images, "the right-hand quarter")
    dataset = {"reference": "photos", "slug": "photos", "data_root": None, "validation_images": None}
    dataset |= {"split_rule": "the right-hand quarter", "training_images": 12104, "training_digest": "1" * 64}
    return recipe, dataset, {**protocol.as_dict(), "hash": protocol.hash}


def make_runs(
    runs: Path, name: str, methods: Sequence[Made], seeds: Sequence[int] = (0, 1, 2), n_images: int = 48
) -> Path:
    """Write the experiment `name` below `runs`: every method under every seed. Returns its folder."""
    for made in methods:
        for seed in seeds:
            _write(runs / name / "cells", made, seed, n_images)
    return runs / name


def _write(cells: Path, made: Made, seed: int, n_images: int) -> None:
    recipe, dataset, protocol = _shared(n_images)
    spec: dict[str, Any] = {
        "schema": 1, "label": made.label, "method": made.method, "preset": None,
        "config": {**made.config, **made.components}, "components": dict(made.components), "paper_unspecified": {},
        "plugin": None, "code": None, "recipe": recipe, "dataset": dataset, "protocol": protocol, "seed": seed,
        "metrics": [*BASE, *FIXED], "devices": 1, "stop_on_collapse": False, "inception_weights": None,
        "lpips_weights": None,
    }  # fmt: skip
    spec["hash"] = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
    folder = cells / f"{made.method}-photos-s{seed}-{spec['hash'][:8]}"
    folder.mkdir(parents=True)
    write_json(folder / "spec.json", spec)
    if made.mlflow:
        write_json(folder / "mlflow.json", dict(made.mlflow))
    if seed in made.failed:
        error = {"type": "RuntimeError", "message": made.failed[seed], "hint": "run it again", "stage": "train"}
        error["log_tail"] = "step 12\nTraceback (most recent call last)\nRuntimeError: " + made.failed[seed]
        write_json(folder / "result.json", {"state": "failed", "error": error, "collapse": None, "scores": {}})
        return
    draw = np.random.default_rng(int(spec["hash"][:8], 16))
    psnr = _per_image(made, seed, n_images, draw)
    scores = {metric: _score(metric, made.shift, draw) for metric in BASE} | FIXED | {"psnr": float(psnr.mean())}
    table = pyarrow.table({"id": [f"photo-{i:03d}" for i in range(n_images)], "psnr": psnr})
    pyarrow.parquet.write_table(table, folder / "per_image.parquet")
    write_json(folder / "result.json", _result(spec, scores, made.collapsed.get(seed)))


def _per_image(made: Made, seed: int, n: int, draw: np.random.Generator) -> NDArray[np.float64]:
    """Decibels: an effect of the image that all methods share, and noise."""
    of_image = np.random.default_rng(5).normal(0, 2, n)
    return BASE["psnr"] + 0.1 * made.shift + of_image + draw.normal(0, SPREAD["psnr"]) + draw.normal(0, 0.2, n)


def _score(metric: str, shift: float, draw: np.random.Generator) -> float:
    sign = -1 if metric == "rfid" else 1
    value = BASE[metric] + SPREAD[metric] * (sign * shift + float(draw.normal()))
    return min(value, 1.0) if metric in ("usage", "ssim") else value


def _result(spec: Mapping[str, Any], scores: Mapping[str, float], collapsed: str | None) -> dict[str, Any]:
    same = ("method", "config", "components", "paper_unspecified", "recipe", "dataset", "protocol", "seed", "hash")
    params = {"encoder": 246560, "quantizer": 1024, "projections": 816, "decoder": 413251, "total": 661651}
    flag = {"kind": "collapsed", "reason": collapsed, "images": 2048} if collapsed else None
    return {
        "state": "done", **{key: spec[key] for key in same}, "versions": VERSIONS, "git": "c2ff82f5fcea28",
        "finished": f"2026-11-2{spec['seed'] % 10}T15:37:37+0000", "seconds": 61.5, "scores": dict(scores),
        "params": params, "images_seen": 4096, "train_seconds": 48.25, "train_images_per_s": 84.9,
        "peak_memory_bytes": 1 << 30, "device": "cpu", "devices": 1, "collapse": flag, "device_name": "AMD EPYC",
        "encode_images_per_s": 229.7, "decode_images_per_s": 97.4,
    }  # fmt: skip
