"""What the processes of a training that has several devices agree on."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def over_several() -> bool:
    """Whether this process trains with others."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def smallest(own: int, device: torch.device) -> int:
    """The smallest of the numbers that the processes have, each on its device; its own where there is one."""
    found = torch.tensor(own, device=device)
    if over_several():
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MIN)
    return int(found)


@torch.no_grad()
def agree_on(buffers: Iterable[Tensor]) -> None:
    """Have each buffer hold, in place, the mean of all devices' values; of what is no float, the first device's.

    A running mean of each device's share becomes that of the batch. Nothing is done where there is one device.
    """
    if not over_several():
        return
    for dtype, alike in _by_type(buffers).items():
        own = torch.cat([buffer.flatten() for buffer in alike])
        agreed = own.clone()
        torch.distributed.broadcast(agreed, 0)
        if dtype.is_floating_point:  # the mean of differences leaves what is equal as it is, to the last bit
            apart = own - agreed
            torch.distributed.all_reduce(apart)
            agreed += apart / torch.distributed.get_world_size()
        parts = torch.split(agreed, [buffer.numel() for buffer in alike])
        for buffer, values in zip(alike, parts, strict=True):
            buffer.copy_(values.view_as(buffer))


def _by_type(buffers: Iterable[Tensor]) -> dict[torch.dtype, list[Tensor]]:
    found: dict[torch.dtype, list[Tensor]] = {}
    for buffer in buffers:
        found.setdefault(buffer.dtype, []).append(buffer)
    return found
