"""vqbench: vector-quantization image tokenizers, compared on equal terms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "ablate", "compare", "load", "report", "run", "sweep"]

if TYPE_CHECKING:
    from vqbench.reports.compare import compare
    from vqbench.running.ablate import ablate
    from vqbench.running.report import report
    from vqbench.running.run import run
    from vqbench.sweeps.sweep import sweep
    from vqbench.tokenizer import load


def __getattr__(name: str) -> Any:
    """What `vqbench` offers to Python is imported when it is first used: torch takes seconds."""
    if name == "run":
        from vqbench.running.run import run

        return run
    if name == "ablate":
        from vqbench.running.ablate import ablate

        return ablate
    if name == "sweep":
        from vqbench.sweeps.sweep import sweep

        return sweep
    if name == "compare":
        from vqbench.reports.compare import compare

        return compare
    if name == "report":
        from vqbench.running.report import report

        return report
    if name == "load":
        from vqbench.tokenizer import load

        return load
    raise AttributeError(f"module 'vqbench' has no attribute '{name}'")
