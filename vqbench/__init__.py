"""vqbench: vector-quantization image tokenizers, compared on equal terms."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vqbench.version import __version__

__all__ = ["__version__", "ablate", "compare", "evaluate", "load", "report", "run", "sweep"]

if TYPE_CHECKING:
    from vqbench.pretrained.opening import load
    from vqbench.reports.compare import compare
    from vqbench.running.ablate import ablate
    from vqbench.running.evaluate import evaluate
    from vqbench.running.report import report
    from vqbench.running.run import run
    from vqbench.sweeps.sweep import sweep


_PLACES = {
    "run": "running.run", "evaluate": "running.evaluate",
    "ablate": "running.ablate", "sweep": "sweeps.sweep", "compare": "reports.compare",
    "report": "running.report", "load": "pretrained.opening",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """What `vqbench` offers to Python is imported when it is first used: torch takes seconds."""
    if name not in _PLACES:
        raise AttributeError(f"module 'vqbench' has no attribute '{name}'")
    return getattr(importlib.import_module(f"vqbench.{_PLACES[name]}"), name)
