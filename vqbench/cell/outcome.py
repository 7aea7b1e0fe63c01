"""What a cell leaves: its result, from what was found and where, or the reason of a failure."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vqbench.cell.progress import RANK_VARIABLE
from vqbench.cell.reasons import leave, reason_of
from vqbench.errors import UsageError
from vqbench.machine.json_files import write_json
from vqbench.machine.provenance import git_commit, versions
from vqbench.results.cell_files import DONE, RESULT
from vqbench.results.cell_folder import CellFolder
from vqbench.wording import masked_text


def write_result(folder: CellFolder, started: float, found: dict[str, Any]) -> None:
    """Write result.json: what was `found`, what the cell is, where it ran; `started` as time.time() gave it."""
    spec = folder.spec
    identity = {
        "state": DONE,
        "method": spec["method"],
        "config": spec["config"],
        "components": spec["components"],
        "size": spec.get("size"),
        "paper_unspecified": spec["paper_unspecified"],
        "recipe": spec["recipe"],
        "dataset": spec["dataset"],
        "protocol": spec["protocol"],
        "seed": spec["seed"],
        "hash": spec["hash"],
        "versions": versions(),
        "git": git_commit(Path(__file__).parent),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seconds": round(time.time() - started, 3),
    }
    write_json(folder.path / RESULT, {**identity, **found})


def collapse_of(training: dict[str, Any], histogram: Any) -> dict[str, Any] | None:
    """The collapse that training ended in, or that of a codebook which the evaluated tokenizer hardly uses.

    Training may use codes that evaluation does not: it may quantize samples, or mix codes. `histogram`: (G, K).
    """
    import torch

    from vqbench.training.codewatch import usage_and_perplexity
    from vqbench.training.collapse import Collapse, hardly_used

    in_training: dict[str, Any] | None = training.get("collapse")  # earlier versions did not watch
    _, perplexity = usage_and_perplexity(torch.from_numpy(histogram))
    if in_training is not None or not hardly_used(perplexity, histogram.shape[1]):
        return in_training
    reason = f"perplexity {perplexity:.1f} of {histogram.shape[1]} codes in evaluation"
    return Collapse("collapsed", reason, training["images_seen"]).as_dict()


def guarded(folder: CellFolder, started: float, work: Callable[[CellFolder], None]) -> int:
    """Do the work of a cell's process; what it raises becomes the result in its folder. Returns the exit code.

    Of several ranks each leaves what it failed of; whoever started them knows which is the reason (ranks.py).
    """
    is_rank = RANK_VARIABLE in os.environ  # of a cell that is run by hand Lightning says so too, later
    try:
        work(folder)
    except Exception as error:
        with contextlib.suppress(OSError):  # the log's disk may be full: the result may still find room
            print(masked_text(traceback.format_exc()), file=sys.stderr, flush=True)
        stage = str(folder.status.get("stage", "start"))
        why = reason_of(error, stage, folder.log)
        if is_rank:
            with contextlib.suppress(OSError):
                leave(folder.path, why)
        else:
            folder.write_failure(why.kind, why.message, why.hint, stage, started, why.collapse)
        return 2 if isinstance(error, UsageError) else 1
    return 0
