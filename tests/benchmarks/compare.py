"""How long `vqbench compare` takes on 10 seeds × 10,000 images. The aim is below 5 seconds on two quiet cores.

Run: python tests/benchmarks/compare.py. The cells are drawn, not trained: scores, and PSNR, SSIM and LPIPS of every
image. Median of five, start-up of Python included, beside the same of a bare `import torch`, which the command does
without; then, once, the comparison of a table of 100 groups × 10 seeds. Exits with 1 above the aim.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from helpers.stored import write_cell

SEEDS, IMAGES, LIMIT = 10, 10_000, 5.0
GROUPS, FEW_IMAGES = 100, 200
WHOLE = {"rfid": 40.0, "kid": 0.02, "usage": 0.8, "perplexity": 300.0, "dead_codes": 90.0}
PER_IMAGE = {"psnr": (25.0, 3.0), "ssim": (0.8, 0.1), "lpips_alex": (0.2, 0.05)}


def make_cells(experiment: Path, groups: int, images: int) -> None:
    """Groups g00, g01… that differ by a few percent, with noise of seeds and of images."""
    draw = np.random.default_rng(0)
    for group in range(groups):
        for seed in range(SEEDS):
            factor = 1 + 0.01 * group + 0.01 * draw.normal()
            values = {name: mean * factor + sd * draw.normal(size=images) for name, (mean, sd) in PER_IMAGE.items()}
            write_cell(experiment, f"g{group:02d}", seed, {k: v * factor for k, v in WHOLE.items()}, images=values)


def seconds(command: list[str]) -> float:
    """Wall time of one run of `command`."""
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> int:
    """Measure, print, and say whether the aim is met."""
    with tempfile.TemporaryDirectory() as folder:
        make_cells(Path(folder) / "two", 2, IMAGES)
        command = [sys.executable, "-m", "vqbench.cli", "compare", "g00", "g01", "--runs", folder]
        took = statistics.median(seconds(command) for _ in range(5))
        torch = statistics.median(seconds([sys.executable, "-c", "import torch"]) for _ in range(5))
    print(f"{SEEDS} seeds × {IMAGES:,} images: {took:.2f} s; a bare `import torch`: {torch:.2f} s")
    with tempfile.TemporaryDirectory() as folder:
        make_cells(Path(folder) / "many", GROUPS, FEW_IMAGES)
        code = (
            "import sys; from pathlib import Path; from vqbench.reports.experiment import load_experiment\n"
            "from vqbench.reports.all_pairs import compare_section\n"
            "compare_section(load_experiment(Path(sys.argv[1]), 'many').sections[0])"
        )
        table = seconds([sys.executable, "-c", code, folder])
    metrics = len(WHOLE) + len(PER_IMAGE)
    print(f"{GROUPS} groups × {SEEDS} seeds × {FEW_IMAGES} images, {metrics} metrics: {table:.2f} s")
    return int(took > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
