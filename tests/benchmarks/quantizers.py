"""Every quantizer forwards and backwards, against those of vector-quantize-pytorch: time and peak extra memory.

python tests/benchmarks/quantizers.py [--tokens 4096 --codes 16384 --dim 64 --rounds 3 --ways vqgan,sqvae --json FILE]

Each measurement is a process of its own, and rounds alternate, so that ratios hold on a busy machine too. Processor
time is over all threads: OMP_NUM_THREADS=1 makes it what a quiet core would take. Wants `pip install vqbench[dev]`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqbench.registry import METHODS
from vqbench.tokenizer import build_quantizer

PEAK_UNIT = 1 if platform.system() == "Darwin" else 1024  # bytes on macOS, KiB elsewhere
LIBRARY = "vector-quantize-pytorch"
REFERENCE = f"{LIBRARY} VectorQuantize"
LEVELS = [8, 8, 8, 6, 5]


def ours(method: str, settings: dict[str, Any], codes: int, dim: int) -> tuple[nn.Module, Callable[[int], Tensor]]:
    """A method of ours, and what it takes: tokens as images of 16×16."""
    config = {**METHODS.get(method).matched(codes, dim), **settings}
    quantizer = build_quantizer(method, config).train()
    return quantizer, lambda tokens: torch.randn(-(-tokens // 256), quantizer.in_channels, 16, 16)


def theirs(name: str, codes: int, dim: int) -> tuple[nn.Module, Callable[[int], Tensor]]:
    """A quantizer of the library, and what it takes."""
    library: Any = importlib.import_module("vector_quantize_pytorch")
    if name == "FSQ":
        return library.FSQ(levels=LEVELS), lambda tokens: torch.randn(1, tokens, len(LEVELS))
    made = getattr(library, name)(dim=dim, codebook_size=codes)
    return made.train(), lambda tokens: torch.randn(1, tokens, dim)


def ways() -> dict[str, Callable[[int, int], tuple[nn.Module, Callable[[int], Tensor]]]]:
    """All that is measured, by name."""

    def own(method: str, **settings: Any) -> Callable[[int, int], Any]:
        return lambda codes, dim: ours(method, settings, codes, dim)

    def other(name: str) -> Callable[[int, int], Any]:
        return lambda codes, dim: theirs(name, codes, dim)

    found = {name: own(name) for name in METHODS.names()}
    found["vaevq linear"] = own("vaevq", codebook_param="linear")
    found["vqgan rotation"] = own("vqgan", estimator="rotation")
    found["llamagen entropy"] = own("llamagen", entropy=True)
    found["wvq mmd"] = own("wvq", matching_by="mmd")
    found["rqvae K a level"] = lambda codes, dim: ours("rqvae", {"codebook_size": codes}, codes, dim)
    if importlib.util.find_spec("vector_quantize_pytorch") is not None:
        found |= {f"{LIBRARY} {name}": other(name) for name in ("VectorQuantize", "SimVQ", "FSQ")}
    return found


def step(module: nn.Module, z: Tensor) -> None:
    """Forward and backward: the gradient of a mean square and of all losses."""
    result = module(z)
    latents, losses = (
        (result.latents, list(result.losses.values()))
        if hasattr(result, "latents")
        else (result[0], [value for value in result[2:] if isinstance(value, Tensor) and value.requires_grad])
    )
    torch.stack([latents.square().mean(), *(loss.sum() for loss in losses)]).sum().backward()
    module.zero_grad()


def measure(way: str, asked: argparse.Namespace) -> dict[str, float]:
    """Best wall and processor milliseconds, and growth of the process's peak resident memory in MB."""
    module, make = ways()[way](asked.codes, asked.dim)
    few = make(8)
    few = few[..., :2, :4] if few.ndim == 4 else few
    step(module, few.requires_grad_())  # of 8 tokens: libraries and thread pools are loaded before memory is read
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    walls, processors = [], []
    for _ in range(asked.repeats):
        torch.manual_seed(0)
        z = make(asked.tokens).requires_grad_()
        wall, processor = time.perf_counter(), time.process_time()
        step(module, z)
        walls.append(time.perf_counter() - wall)
        processors.append(time.process_time() - processor)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * PEAK_UNIT / 1e6
    return {"wall_ms": 1000 * min(walls), "processor_ms": 1000 * min(processors), "peak_mb": grown}


def rounds(names: list[str], asked: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Medians over rounds in which everybody has a turn."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(asked.rounds):
        for name in names:
            command = [sys.executable, __file__, *sys.argv[1:], "--way", name]
            answer = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            found[name].append(json.loads(answer.stdout))
    return {name: {key: statistics.median(one[key] for one in each) for key in each[0]} for name, each in found.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--codes", type=int, default=16384)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ways", default="", help="names, with commas; all without")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.way:
        print(json.dumps(measure(asked.way, asked)))
        return
    known = ways()
    names = [name for name in asked.ways.split(",") if name] or list(known)
    if stray := [name for name in names if name not in known]:
        parser.error(f"--ways {stray[0]!r}: known are {', '.join(known)}")
    version = importlib.metadata.version(LIBRARY) if REFERENCE in known else "not installed"
    threads, load = os.environ.get("OMP_NUM_THREADS", "unset"), os.getloadavg()[0]
    print(f"N = {asked.tokens}, K = {asked.codes}, d = {asked.dim}; torch {torch.__version__}, {LIBRARY} {version}")
    print(f"{os.cpu_count()} CPUs, load {load:.1f}, OMP_NUM_THREADS {threads}; best of {asked.repeats}, "
          f"median of {asked.rounds} rounds")  # fmt: skip
    found = rounds(names, asked)
    reference = found.get(REFERENCE)
    print(f"{'':<40}{'wall ms':>9}{'processor ms':>14}{'peak MB':>9}{'times faster':>14}")
    for name, row in found.items():
        ratio = f"{reference['processor_ms'] / row['processor_ms']:>14.1f}" if reference else ""
        print(f"{name:<40}{row['wall_ms']:>9.0f}{row['processor_ms']:>14.0f}{row['peak_mb']:>9.0f}{ratio}")
    if reference:
        print(f"times faster: processor time of {REFERENCE} over a row's own")
    if asked.json:
        sizes = {"tokens": asked.tokens, "codes": asked.codes, "dim": asked.dim, "load": load}
        asked.json.write_text(json.dumps({**sizes, "rows": found}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
