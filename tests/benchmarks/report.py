"""How long a report over 1,000 stored cells takes, and how much memory: the aim is below 10 s and 1 GB on two cores.

Run: python tests/benchmarks/report.py [--all]. 100 groups of 10 seeds are made from one real cell, trained here: its
files with noise on every score, value of an image and code. Tables alone, or with --all the figures and the page too;
for the tables the aim is 4 s, so that the rest fits.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from helpers.stored import write_cell

GROUPS, SEEDS = 100, 10
LIMITS = {"md,csv,tex,json": (4.0, 1.0), "md,csv,tex,json,html": (10.0, 1.0)}  # seconds, GB
CELL = ("channels=8", "latent_channels=8", "codebook_size=32", "codebook_dim=8")


def train_one(runs: Path) -> Path:
    """A real cell with a tiny network on the photographs."""
    command = [sys.executable, "-m", "vqbench.cli", "run", "--methods", "vqgan", "--dataset", "photos", "--no-page"]
    command += ["--images", "64", "--metrics", "psnr,ssim,usage,perplexity,dead_codes,tokens,bits_per_token"]
    command += [part for text in CELL for part in ("--set", text)]
    subprocess.run([*command, "--runs", str(runs), "--name", "real"], check=True, capture_output=True)
    return next(runs.glob("real/cells/*"))


def make_cells(real: Path, experiment: Path) -> None:
    """GROUPS × SEEDS cells below `experiment`, each the real one with noise of its group, its seed and its images."""
    spec, result = (json.loads((real / name).read_text()) for name in ("spec.json", "result.json"))
    table = pd.read_parquet(real / "per_image.parquet")
    of_images = {name: table[name].to_numpy() for name in table.select_dtypes("floating")}
    same = {key: spec[key] for key in ("recipe", "dataset", "metrics")}
    with np.load(real / "codes.npz") as codes:
        indices, size = codes["indices"], codes["histogram"].shape[1]
    for group in range(GROUPS):
        for seed in range(SEEDS):
            draw = np.random.default_rng([group, seed])
            noisy = {name: noise(values, group, draw) for name, values in of_images.items()}
            scores = {name: value * draw.normal(1, 0.01) for name, value in result["scores"].items()}
            scores["usage"] = min(scores.get("usage", 1.0), 1.0)
            drawn = np.where(draw.random(indices.shape) < 0.1, draw.integers(0, size, indices.shape), indices)
            histogram = np.stack([np.bincount(drawn[..., g].ravel(), minlength=size) for g in range(drawn.shape[-1])])
            folder = write_cell(
                experiment, "vqgan", seed, scores, images=noisy, n_images=len(table), **same,
                arrays={"codes.npz": {"histogram": histogram, "indices": drawn.astype(indices.dtype)}},
                config={**spec["config"], "beta": 0.25 + group / 100},
            )  # fmt: skip
            (folder / "metrics.jsonl").write_bytes((real / "metrics.jsonl").read_bytes())


def noise(values: NDArray[np.float64], group: int, draw: np.random.Generator) -> NDArray[np.float64]:
    """The values of the images, shifted by the group and disturbed."""
    spread = float(values.std()) + 1e-9
    return values + spread * (0.02 * (group % 20) + 0.1 * draw.normal() + 0.3 * draw.normal(size=len(values)))


def measure(experiment: Path, formats: str) -> tuple[float, float]:
    """(seconds, GB at most) of a report in a process of its own."""
    command = [sys.executable, "-m", "vqbench.cli", "report", experiment.name, "--runs", str(experiment.parent)]
    started = time.perf_counter()
    subprocess.run([*command, "--format", formats], check=True, capture_output=True)
    return time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6


def main() -> None:
    """Measure, print, and fail where a limit is passed."""
    formats = list(LIMITS)[1 if "--all" in sys.argv else 0]
    with tempfile.TemporaryDirectory() as folder:
        experiment = Path(folder) / "runs" / "many"
        make_cells(train_one(Path(folder) / "real"), experiment)
        # Linux keeps the largest of all children, the training among them: a process without any has to measure.
        code = (
            f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import report; from pathlib import Path\n"
        )
        code += f"print(*report.measure(Path({str(experiment)!r}), {formats!r}))"
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        seconds, memory = map(float, done.stdout.split())
    most_seconds, most_memory = LIMITS[formats]
    print(f"{GROUPS * SEEDS} cells, {formats}: {seconds:.1f} s of {most_seconds:g}, {memory:.2f} GB of {most_memory:g}")
    if seconds > most_seconds or memory > most_memory:
        raise SystemExit("over the limit: on a quiet machine this is a regression")


if __name__ == "__main__":
    main()
