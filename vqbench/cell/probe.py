"""Some real steps of one cell, to know what the whole of it costs: `python -m vqbench.cell.probe SPEC.json CLOCK`.

The process is the cell's in all but its length: the same data, recipe, quantizer, losses, metrics and files, but 20
optimiser steps, four checkpoints and an evaluation of three batches. CLOCK is `time.monotonic()` when the process was
started. What it found is written to `measured.json` beside the spec.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path

from vqbench.cell.measured import MEASURED
from vqbench.cell.outcome import guarded
from vqbench.cell.planned import load_plugins
from vqbench.cell.progress import die_with_parent
from vqbench.cell.stopwatch import Stopwatch
from vqbench.cell.tracks import track_of
from vqbench.machine.json_files import write_json
from vqbench.recipe import Recipe
from vqbench.results.cell_folder import CellFolder


def probe(folder: CellFolder, spawned: float) -> None:
    """Measure the cell whose spec lies in `folder`; write measured.json. Raises what goes wrong.

    `spawned`: time.monotonic() when its process was started.
    """
    from vqbench.config import build

    started, watch = time.time(), Stopwatch(folder)
    recipe: Recipe = build(Recipe, folder.spec["recipe"], "recipe", "vqbench show tiny")
    load_plugins(folder.spec, folder)
    measured = track_of(recipe).probe(folder, recipe, watch, started, spawned)
    if measured is not None:
        write_json(folder.path / MEASURED, {**dataclasses.asdict(measured), "ended": time.monotonic()})


def main(argv: list[str] | None = None) -> int:
    """Probe the cell of a spec file; 0 when measured.json is written, 1 when it failed (see result.json then)."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 2:
        print("usage: python -m vqbench.cell.probe SPEC.json CLOCK", file=sys.stderr)
        return 2
    folder, spawned = CellFolder(Path(arguments[0]).resolve().parent), float(arguments[1])
    die_with_parent()
    return guarded(folder, time.time(), lambda folder: probe(folder, spawned))


if __name__ == "__main__":
    sys.exit(main())
