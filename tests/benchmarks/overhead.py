"""What the harness costs: the wall time of a sweep over the sum of its cells' own times, start-up of Python included.

Run: python tests/benchmarks/overhead.py [IMAGES]. One worker, eight trials, each a cell of about a minute on two quiet
cores with the default of IMAGES. The aim is below 10 %. A cell's own time is from the start of its process to its end,
as the driver sees both (to 0.25 s). The page that the command line writes in the end is part of the sweep.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from vqbench.planning.plan import Cell
from vqbench.planning.request import make_request
from vqbench.planning.view import Silent
from vqbench.running.run import make_tracker
from vqbench.sweeps.request import SweepRequest
from vqbench.sweeps.sweep import execute_sweep


class Clock(Silent):
    """Sums up the time between a cell's start and its end."""

    def __init__(self) -> None:
        self.cells: list[float] = []
        self._since = 0.0

    def cell_started(self, cell: Cell, position: int, total: int) -> None:
        """A cell is about to start."""
        self._since = time.monotonic()

    def cell_finished(self, cell: Cell, row: dict[str, Any]) -> None:
        """It has ended."""
        self.cells.append(time.monotonic() - self._since)
        print(f"{cell.folder.name}: {row['state']} in {self.cells[-1]:.1f} s", flush=True)


def sweep(folder: Path, images: int, view: Silent) -> None:
    """Eight random learning rates of `vqgan` on crops of photographs, one after the other."""
    space = folder / "rates.yaml"
    space.write_text("recipe: {learning_rate: {low: 3.0e-4, high: 3.0e-3, log: true}}\n")
    run = make_request("vqgan", "photos", images=images, runs=folder / "runs", metrics=["psnr", "ssim", "usage"],
                       page=True)  # fmt: skip
    request = SweepRequest(run, spaces=(str(space),), trials=8, objectives=("psnr",), sampler="random", name="overhead")
    execute_sweep(request, view, make_tracker(run))


def main() -> None:
    """Sweep and print."""
    images, clock = int(sys.argv[1]) if len(sys.argv) > 1 else 6400, Clock()
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        sweep(Path(folder), images, clock)
        wall = time.monotonic() - started
    own = sum(clock.cells)
    print(f"{len(clock.cells)} cells, {own:.1f} s of their own; the sweep took {wall:.1f} s")
    print(f"overhead {100 * (wall / own - 1):.1f} %, {(wall - own) / len(clock.cells):.2f} s a cell")


if __name__ == "__main__":
    main()
