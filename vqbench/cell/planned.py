"""What a cell was planned with, as it was then: its plugins, and the seed of its data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vqbench.errors import VQBenchError
from vqbench.machine.imports import lasting_imports
from vqbench.results.cell_folder import CellFolder
from vqbench.seeds import derive_seed


def data_seed(spec: Mapping[str, Any]) -> int:
    """The seed of the order of a cell's data, and of what is done to them: the same for every method."""
    return derive_seed("data", spec["seed"], spec["dataset"]["training_digest"])


@lasting_imports()  # whose modules import torch
def load_plugins(spec: dict[str, Any], folder: CellFolder) -> None:
    """Register the plugins that the spec names, as they were when the plan was made.

    Raises VQBenchError for one that is gone, and where a metric is another than it was then.
    """
    from vqbench.metrics.definitions import digests
    from vqbench.plugin import find_plugin
    from vqbench.registry import add_plugin

    for words in (spec["plugin"], *spec.get("plugins", ())):
        if words is None:
            continue
        path = find_plugin(words["sha256"], [Path(words["path"])], folder.path)
        if path is None:
            raise VQBenchError(f"the plugin {words['path']} has changed", "give the command again, it plans anew")
        add_plugin(path)  # the file, or our copy if it changed since
    if digests(spec["metrics"]) != spec.get("digests", {}):
        raise VQBenchError("a metric has changed since this cell was planned", "give the command again, it plans anew")
