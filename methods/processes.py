"""What a quantizer keeps equal over the processes of one training. Alone, each gives back what it got."""

from __future__ import annotations

import torch
from torch import Tensor


def alone() -> bool:
    """Whether this process trains by itself."""
    return not (torch.distributed.is_available() and torch.distributed.is_initialized())


@torch.no_grad()
def total_over_processes(values: Tensor) -> Tensor:
    """The sum of all processes' `values`."""
    if alone():
        return values
    total = values.clone()
    torch.distributed.all_reduce(total)
    return total


@torch.no_grad()
def mean_over_processes(values: Tensor) -> Tensor:
    """The mean of all processes' `values`."""
    return values if alone() else total_over_processes(values) / torch.distributed.get_world_size()


@torch.no_grad()
def of_first_process(values: Tensor) -> Tensor:
    """The first process's `values`: for what is drawn at random."""
    if alone():
        return values
    chosen = values.clone()
    torch.distributed.broadcast(chosen, 0)
    return chosen


@torch.no_grad()
def of_all_processes(values: Tensor) -> Tensor:
    """All processes' `values`, stacked in a new first dimension; they must be of one shape."""
    if alone():
        return values[None]
    stack = [torch.empty_like(values) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(stack, values.contiguous())
    return torch.stack(stack)


@torch.no_grad()
def of_best_process(rows: Tensor, scores: Tensor) -> Tensor:
    """For each of `rows` (K, d) that of the process with the largest of `scores` (K,); of equals the first's."""
    if alone():
        return rows
    owner = of_all_processes(scores).argmax(0)
    mine = owner == torch.distributed.get_rank()
    return total_over_processes(torch.where(mine[:, None], rows, torch.zeros_like(rows)))
