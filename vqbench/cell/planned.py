"""What a cell was planned with, as it was then: its plugins, the seed of its data, what its method is built around."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqbench.artifact import Artifact
from vqbench.errors import VQBenchError
from vqbench.machine.home import home
from vqbench.machine.imports import lasting_imports
from vqbench.results.cell_folder import CellFolder
from vqbench.seeds import derive_seed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vqbench.data.dataset import Dataset
    from vqbench.data.kept import Advance
    from vqbench.quantizer import Quantizer


def data_seed(spec: Mapping[str, Any]) -> int:
    """The seed of the order of a cell's data, and of what is done to them: the same for every method."""
    return derive_seed("data", spec["seed"], spec["dataset"]["training_digest"])


def artifact(
    spec: Mapping[str, Any], dataset: Dataset | None, progress: Advance | None = None
) -> NDArray[np.float32] | None:
    """What the cell's method is built around, from the cache or made now; None where it needs nothing.

    Raises VQBenchError where it is another than when the cell was planned, UsageError where it cannot be made.
    """
    from vqbench.data.artifacts import load_artifact

    if "artifact" not in spec:
        return None
    needed, given = Artifact.of(spec["artifact"]), path_in(spec, "inception_weights")
    return load_artifact(needed, dataset, given, home(), progress, spec["artifact"]["digest"])


def path_in(spec: Mapping[str, Any], name: str) -> Path | None:
    """A path that a spec may say."""
    return Path(spec[name]) if spec[name] else None


def receive(quantizer: Quantizer, around: NDArray[np.float32]) -> None:
    """Build a quantizer around an array, and have it know which one."""
    import torch

    quantizer.receive(torch.from_numpy(around))
    quantizer.artifact_sha256 = hashlib.sha256(around.tobytes()).hexdigest()


def artifact_facts(quantizer: Quantizer) -> dict[str, str]:
    """What a result says of the numbers that its method was built around."""
    return {"artifact_sha256": found} if (found := quantizer.artifact_sha256) else {}


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
