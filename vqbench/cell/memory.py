"""The most memory that a cell has held: on any of its devices, in training and in evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vqbench.training.ranks import over_several
from vqbench.training.steps import peak_memory_bytes


def peak_memory(device: torch.device, earlier: Mapping[str, Any], over_ranks: bool = False) -> dict[str, int]:
    """`peak_memory_bytes` so far, or `earlier` where it was more; on CUDA also `peak_reserved_bytes`.

    The first is of tensors on CUDA and of the process on a CPU, the second what CUDA's allocator took to hold them.
    `over_ranks`: the largest of all processes that train the cell, which must all ask.
    """
    now = {"peak_memory_bytes": peak_memory_bytes(device)}
    if device.type == "cuda":
        now["peak_reserved_bytes"] = int(torch.cuda.max_memory_reserved(device))
    most = {name: max(value, earlier.get(name) or 0) for name, value in now.items()}
    if over_ranks and over_several():
        values = torch.tensor(list(most.values()), device=device)
        torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX)
        most = dict(zip(most, values.tolist(), strict=True))
    return most
