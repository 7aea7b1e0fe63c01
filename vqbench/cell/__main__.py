"""One cell from start to end, in a process of its own: `python -m vqbench.cell RUNS/NAME/cells/CELL/spec.json`.

Trains (or goes on from the checkpoint, or only evaluates what is trained), then writes the result, which is
either scores or the reason of a failure.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vqbench.cell.outcome import guarded, write_result
from vqbench.cell.planned import load_plugins
from vqbench.cell.progress import Progress, die_with_parent, is_secondary
from vqbench.machine.interrupts import TerminatedError, die_of_sigterm
from vqbench.machine.lease import EXIT_BUSY, CellBusyError
from vqbench.results.cell_files import DONE
from vqbench.results.cell_folder import CellFolder

if TYPE_CHECKING:
    from vqbench.recipe import Recipe


def run_cell(folder: CellFolder) -> None:
    """Train and evaluate the cell whose spec lies in `folder`; write result.json. Raises what goes wrong."""
    from vqbench.cell.tracks import track_of
    from vqbench.config import build
    from vqbench.metrics.definitions import stored_definitions
    from vqbench.recipe import Recipe

    spec, progress, started = folder.spec, Progress(folder), time.time()
    recipe: Recipe = build(Recipe, spec["recipe"], "recipe", "vqbench show tiny")
    load_plugins(spec, folder)
    result = track_of(recipe).train_and_evaluate(folder, spec, recipe, progress)
    if result is None:
        return
    earlier = folder.result or {}  # the same weights under the same protocol, with fewer metrics
    known = {**(earlier.get("metrics") or {}), **stored_definitions(result["scores"])}
    result["scores"] = {**earlier.get("scores", {}), **result["scores"]}
    result |= {"metrics": known} if known else {}
    write_result(folder, started, result)
    folder.checkpoint.unlink(missing_ok=True)  # the weights are in the safetensors; nothing resumes a finished cell
    progress.enter(DONE)


def main(argv: list[str] | None = None) -> int:
    """Run the cell of a spec file; 0 when its result is written, 1 when it failed (which is its result then)."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1:
        print("usage: python -m vqbench.cell SPEC.json", file=sys.stderr)
        return 2
    folder = CellFolder(Path(arguments[0]).resolve().parent)
    die_with_parent()
    faulthandler.enable()  # a crash of compiled code leaves the lines of Python that led there in the log
    started, lock = time.time(), contextlib.nullcontext() if is_secondary() else folder.locked()
    try:
        with lock:
            return guarded(folder, started, run_cell)
    except CellBusyError as error:
        print(f"error: {error.what}", file=sys.stderr)
        return EXIT_BUSY
    except TerminatedError:
        die_of_sigterm()
        return 1


if __name__ == "__main__":
    code = main()
    gc.freeze()  # the end of the process: nothing is looked through for cycles once more
    sys.exit(code)
