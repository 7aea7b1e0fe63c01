"""Nearest codes against torch.cdist: time and peak extra memory, each in a process of its own.

python tests/benchmarks/nearest.py [--tokens 4096 --codes 16384 --dim 64]
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import time

import torch
from torch import Tensor

from vqbench.methods.nearest import nearest

REPEATS = 7
# resource reports the peak in KiB on Linux and in bytes on macOS.
PEAK_UNIT = 1 if platform.system() == "Darwin" else 1024


def by_cdist(z: Tensor, codes: Tensor) -> Tensor:
    return torch.cdist(z, codes).argmin(1)


WAYS = {"nearest": nearest, "torch.cdist": by_cdist}


def measure(way: str, z: Tensor, codes: Tensor) -> tuple[float, float]:
    """Best time in seconds, and growth of the process's peak resident memory in MB."""
    WAYS[way](z[:8], codes[:8])  # libraries and thread pools are loaded before memory is read
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        WAYS[way](z, codes)
        times.append(time.perf_counter() - start)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return min(times), (after - before) * PEAK_UNIT / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--codes", type=int, default=16384)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.way:
        noise = torch.Generator().manual_seed(0)
        z, codes = (torch.randn(n, asked.dim, generator=noise) for n in (asked.tokens, asked.codes))
        print(*measure(asked.way, z, codes))
        return
    print(f"N = {asked.tokens}, K = {asked.codes}, d = {asked.dim}; torch {torch.__version__}, {os.cpu_count()} CPUs")
    print(f"OMP_NUM_THREADS = {os.environ.get('OMP_NUM_THREADS', 'unset')}, best of {REPEATS}")
    print(f"{'':<14}{'ms':>8}{'MB peak':>10}{'times cdist':>14}")
    seconds = {}
    for way in reversed(WAYS):
        answer = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--way", way], stdout=subprocess.PIPE, check=True
        )
        seconds[way], megabytes = map(float, answer.stdout.split())
        ratio = seconds[way] / seconds["torch.cdist"]
        print(f"{way:<14}{1000 * seconds[way]:>8.0f}{megabytes:>10.1f}{ratio:>14.2f}")


if __name__ == "__main__":
    main()
