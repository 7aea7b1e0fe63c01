"""Training images a second and core: from the decoded cache, from JPEG, from PNG.

python tests/benchmarks/loader.py [--images 48 --resolutions 64,256 --json FILE]

The files are crops of the photographs that come with scikit-image, 500×375 as JPEG and 512 and 1024 px as PNG, drawn as
a training draws them: decode, resize, crop, flip, stack. Processor time of one thread, so that a busy machine changes
little; a step of B images on n cores has n times this rate.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image

from vqbench.data.dataset import Dataset, Images, open_dataset
from vqbench.data.prepare import prepare_train
from vqbench.data.stream import TrainingStream

KINDS = {
    "JPEG 500×375": ("jpg", (500, 375)),
    "PNG 512×512": ("png", (512, 512)),
    "PNG 1024×1024": ("png", (1024, 1024)),
}


def write(folder: Path, count: int, suffix: str, size: tuple[int, int]) -> None:
    """Photographs of different content, with the noise that a camera's have, in a training and a validation folder."""
    draw = np.random.default_rng(0)
    photograph = Image.fromarray(skimage.data.astronaut()).resize(size, Image.Resampling.LANCZOS)
    for i in range(count + 4):
        turned = np.roll(np.asarray(photograph), (17 * i, 29 * i), (0, 1)).astype(np.int16)
        pixels = (turned + draw.integers(-6, 7, turned.shape)).clip(0, 255).astype(np.uint8)
        side = folder / ("train" if i < count else "val")
        side.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(side / f"{i}.{suffix}", **({"quality": 90} if suffix == "jpg" else {}))


def rate(images: Images, resolution: int, count: int) -> float:
    """Images a second of processor time, in batches of 16; the first is not timed."""
    stream = TrainingStream(images, resolution, 0, True, True)
    started = 0.0
    for first in range(0, count, 16):
        torch.stack([stream[position] for position in range(first, min(first + 16, count))])
        started = started or time.process_time()
    return (count - 16) / (time.process_time() - started)


def measure(root: Path, resolution: int, count: int) -> dict[str, float]:
    """Images/s of each way that has enough pixels."""
    found: dict[str, float] = {}
    for kind, (_, size) in KINDS.items():
        if min(size) < resolution:
            continue
        dataset: Dataset = open_dataset(f"folder:{root / kind}", resolution)
        found[kind] = rate(dataset.train, resolution, count)
        if "cache" not in found:
            cached = prepare_train(dataset, root / "home")
            found["cache"] = rate(cached, resolution, 16 * 40)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--resolutions", default="64,256")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; images a second and core")
    rows = {}
    with tempfile.TemporaryDirectory(prefix="vqbench-loader-") as folder:
        for kind, (suffix, size) in KINDS.items():
            write(Path(folder) / kind, asked.images, suffix, size)
        for resolution in map(int, asked.resolutions.split(",")):
            rows[resolution] = measure(Path(folder), resolution, asked.images)
            print(f"{resolution} px: " + ", ".join(f"{name} {value:,.0f}" for name, value in rows[resolution].items()))
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
