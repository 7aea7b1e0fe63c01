"""What evaluation costs beside its networks: CPU time for each image.

Run: OMP_NUM_THREADS=1 python tests/benchmarks/evaluation.py. 256 images of 256 px from a file, through a tokenizer of
256 tokens that only indexes a table; then the digest of all pixels, as the first cell of a command and the next ones
make it. CPU time of this process, which others on the machine hardly lengthen.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from vqbench.metrics.codes import different_codes
from vqbench.metrics.evaluation import evaluate
from vqbench.metrics.extraction import reference_path

N, R, CPU = 256, 256, torch.device("cpu")


class Table:
    """A codec of 16 × 16 tokens whose codes are the same for all images."""

    def __init__(self) -> None:
        self.quantizer = SimpleNamespace(codebook_size=1024, num_codebooks=1, bits_per_token=10.0)
        self.codes = torch.randint(0, 1024, (1, 16, 16), generator=torch.Generator().manual_seed(0))
        self.image = torch.zeros(1, 3, R, R)

    def to_indices(self, images: Tensor) -> Tensor:
        """(B, 16, 16)."""
        return self.codes.expand(len(images), -1, -1)

    def from_indices(self, indices: Tensor) -> Tensor:
        """(B, 3, R, R)."""
        return self.image.expand(len(indices), -1, -1, -1)


def cpu_ms(work: Callable[[], object]) -> float:
    """Milliseconds of CPU for each image."""
    started = time.process_time()
    work()
    return 1e3 * (time.process_time() - started) / N


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pixels.bin"
        file.write_bytes(np.random.default_rng(0).integers(0, 256, (N, R, R, 3), dtype=np.uint8).tobytes())
        time.sleep(3)  # a file that was written a moment ago is not trusted
        pixels = np.memmap(file, np.uint8, "r", shape=(N, R, R, 3))

        def whole() -> None:
            evaluate(Table(), pixels, range(N), metrics=("usage",), validation_digest="", batch_size=32)

        whole()
        codes = Table().codes.expand(N, -1, -1).reshape(N, 256, 1)
        print(f"evaluation without networks {cpu_ms(whole):.3f} ms an image")
        print(f"  unique, image by image    {cpu_ms(lambda: [len(torch.unique(c, dim=0)) for c in codes]):.3f} ms")
        print(f"  different codes, together {cpu_ms(lambda: different_codes(codes, 1024)):.3f} ms")
        for cell in ("first", "second"):
            spent = cpu_ms(lambda: reference_path(pixels, "", "", CPU, Path(folder)))
            print(f"digest, {cell:6} cell         {spent:.3f} ms an image")


if __name__ == "__main__":
    main()
