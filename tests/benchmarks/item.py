"""What it takes to make a training image ready: CPU time, bytes, images/s of one core; from cache, JPEG and PNG.

Run: OMP_NUM_THREADS=1 python tests/benchmarks/item.py [FOLDER]. At 256 px with random crops and flips, in batches of
32: noise of 256 × 341 px as it lies in the decoded cache, a photograph of scikit-image's as JPEG of 500 × 375 and as
PNG of 1024 × 1024, and the images of FOLDER. CPU time of this process, which others on the machine hardly lengthen.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image

from vqbench.data.dataset import Images, Pixels
from vqbench.data.files import FileImages, list_images
from vqbench.data.stream import TrainingStream
from vqbench.inputs import to_input

R, BATCH = 256, 32


class Decoded(Images):
    """Images as they lie in the decoded cache."""

    def __init__(self, count: int) -> None:
        self.pixels = np.random.default_rng(0).integers(0, 256, (count, R, 341, 3), dtype=np.uint8)
        self.ids = [str(i) for i in range(count)]

    def load(self, i: int) -> Pixels:
        """Image `i`."""
        image: Pixels = self.pixels[i]
        return image


def cpu_ms(work: Callable[[int], object], times: int) -> float:
    """Milliseconds of CPU of a call; call `i` gets i. The first one is not counted."""
    work(0)
    started = time.process_time()
    for i in range(1, times + 1):
        work(i)
    return 1e3 * (time.process_time() - started) / times


def photograph(folder: Path, name: str, size: tuple[int, int]) -> Images:
    """One photograph in a file."""
    path = folder / name.rpartition(".")[2] / name
    path.parent.mkdir()
    Image.fromarray(skimage.data.astronaut()).resize(size).save(path)
    return FileImages(list_images(path.parent), R, crop=False)


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        sources = {
            "cache": (Decoded(64), 320),
            "JPEG 500×375": (photograph(Path(folder), "a.jpg", (500, 375)), 64),
            "PNG 1024×1024": (photograph(Path(folder), "a.png", (1024, 1024)), 16),
        }
        if len(sys.argv) > 1:
            sources[sys.argv[1]] = (FileImages(list_images(Path(sys.argv[1])), R, crop=False), 64)
        for name, (images, times) in sources.items():
            stream = TrainingStream(images, R, 0, random_crop=True, flip=True)
            item = cpu_ms(stream.__getitem__, times)
            print(f"{name:16} {item:8.3f} ms an item, {1e3 / item:8,.0f} images/s a core")
    stream = TrainingStream(Decoded(64), R, 0, random_crop=True, flip=True)
    items = [stream[i] for i in range(BATCH)]
    batch = torch.utils.data.default_collate(items)
    collate = cpu_ms(lambda i: torch.utils.data.default_collate(items), 10) / BATCH
    print(f"a batch of {BATCH}: {batch.nbytes / BATCH / 1024:.0f} KiB an image, {collate:.3f} ms an image to stack")
    if batch.dtype == torch.uint8:
        print(f"floats of it: {cpu_ms(lambda i: to_input(batch), 10) / BATCH:.3f} ms an image where the CPU trains")


if __name__ == "__main__":
    main()
