"""Which codes a training uses: since the last reading, over the last 100,000 tokens, and how long the others are dead.

Not a module: DDP would overwrite a buffer with the first device's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vqbench.training.ranks import over_several

WINDOW_TOKENS = 100_000
BLOCKS = 10
"""The window moves a tenth of its length at a time."""


def usage_and_perplexity(counts: Tensor) -> tuple[float, float]:
    """Usage and perplexity of counts (G, K), means over codebooks."""
    wide = counts.cpu().double()  # Apple's GPUs have no float64
    frequency = wide / wide.sum(1, keepdim=True).clamp(min=1)
    entropy = torch.special.entr(frequency).sum(1)
    usage, perplexity = torch.stack([(wide > 0).double().mean(), entropy.exp().mean()]).tolist()
    return usage, perplexity


class Due:
    """A block of counts and what goes with it, on its way to the host."""

    def __init__(self, together: Tensor, images_seen: int, names: tuple[Any, ...]) -> None:
        self.images_seen, self.names = images_seen, names
        self._arrived: torch.cuda.Event | None = None
        self._values = together
        if together.is_cuda:
            self._values = torch.empty_like(together, device="cpu", pin_memory=True).copy_(together, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def values(self) -> Tensor:
        """What arrived; a step later that is no wait."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values.cpu() if self._arrived is None else self._values


class CodeWatch:
    """Histograms of the codes that a training uses, over all devices."""

    reads_later = False
    """Whether a window moves a step later on every device, and not on CUDA alone."""

    def __init__(self, codebook_size: int, num_codebooks: int) -> None:
        shape = (num_codebooks, codebook_size)
        self.since_reading = torch.zeros(shape, dtype=torch.int64)
        self.block = torch.zeros(shape, dtype=torch.int64)
        self.blocks = torch.zeros((0, *shape), dtype=torch.int32)
        self.last_used = torch.zeros(shape, dtype=torch.int64)
        """Images seen when each code was last known to be used; 0 for never."""
        self.block_tokens = 0
        self.beside: dict[Any, float] = {}
        self._due: Due | None = None

    def update(
        self, indices: Tensor, images_seen: int, devices: int = 1, beside: Mapping[Any, Tensor] | None = None
    ) -> bool:
        """Count indices (B, h, w) or (B, h, w, G) of one device; true when the window has moved.

        `beside` are scalars to be brought to the host with it, as the floats of the attribute of that name. On CUDA
        both are on their way for a step, so that nobody waits for them: the window has moved one step later.
        """
        has_moved = self.settle()
        for name in ("since_reading", "block"):
            setattr(self, name, getattr(self, name).to(indices.device))
        groups, size = self.block.shape
        rows = indices.reshape(-1, groups)
        flat = rows + torch.arange(groups, device=indices.device) * size
        # bincount would have the device waited for
        counts = flat.new_zeros(groups * size).scatter_add_(0, flat.flatten(), torch.ones_like(flat).flatten())
        counts = counts.view(groups, size)
        self.since_reading += counts
        self.block += counts
        self.block_tokens += len(rows) * devices
        if self.block_tokens >= WINDOW_TOKENS // BLOCKS:
            self._close_block(images_seen, beside or {})
            if not (self.reads_later or indices.is_cuda):
                has_moved = self.settle()
        return has_moved

    def _close_block(self, images_seen: int, beside: Mapping[Any, Tensor]) -> None:
        if over_several():
            torch.distributed.all_reduce(self.block)
        # in one piece, on its way at once; float64 holds such counts, and so does float32
        wide = torch.float32 if self.block.device.type == "mps" else torch.float64
        scalars = [value.detach().to(self.block.device, wide).reshape(1) for value in beside.values()]
        self._due = Due(torch.cat([self.block.flatten().to(wide), *scalars]), images_seen, tuple(beside))
        self.block.zero_()
        self.block_tokens = 0

    def settle(self) -> bool:
        """Move the window by a block that is due; false where none is."""
        if self._due is None:
            return False
        due, self._due = self._due, None
        values = due.values()
        block = values[: self.last_used.numel()].long().view_as(self.last_used)
        self.beside = dict(zip(due.names, values[self.last_used.numel() :].tolist(), strict=True))
        self.last_used.masked_fill_(block > 0, due.images_seen)
        self.blocks = torch.cat([self.blocks[-(BLOCKS - 1) :], block.int().unsqueeze(0)])
        return True

    @property
    def is_full(self) -> bool:
        """Whether the window holds 100,000 tokens."""
        return len(self.blocks) == BLOCKS

    def window(self) -> dict[str, float]:
        """Usage and perplexity over the last 100,000 tokens, as they stood when it last moved."""
        usage, perplexity = usage_and_perplexity(self.blocks.sum(0))
        return {"usage_100k": usage, "perplexity_100k": perplexity}

    def read(self, images_seen: int) -> dict[str, float]:
        """Usage and perplexity since the last reading and, once the window is full, over it.

        With the window come `dead_codes`, those that it does not hold (mean over codebooks), and `dead_code_lifetime`,
        the images since each of them was last used, on average: a code that was never used is as old as the training.
        """
        if over_several():
            torch.distributed.all_reduce(self.since_reading)
        usage, perplexity = usage_and_perplexity(self.since_reading)
        self.since_reading.zero_()
        read = {"usage": usage, "perplexity": perplexity}
        return read | self.window() | self._dead(images_seen) if self.is_full else read

    def _dead(self, images_seen: int) -> dict[str, float]:
        dead = self.blocks.sum(0) == 0
        ages = (images_seen - self.last_used[dead]).double()
        lifetime = ages.mean().item() if len(ages) else 0.0
        return {"dead_codes": dead.sum(1).double().mean().item(), "dead_code_lifetime": lifetime}

    def state(self) -> dict[str, Any]:
        """What the next step depends on; `block` and `since_reading` are this device's share of what is counted."""
        names = ("blocks", "last_used", "block", "since_reading")
        due = {} if self._due is None else {"due": (self._due.values(), self._due.images_seen, self._due.names)}
        return {**{name: getattr(self, name).cpu() for name in names}, "block_tokens": self.block_tokens, **due}

    def restore(self, state: dict[str, Any], first_device: bool = True) -> None:
        """The inverse of `state`, which the first device wrote: on another one its own share is not counted again."""
        for name, value in state.items():
            if name != "due":
                setattr(self, name, value)
        self._due = Due(*state["due"]) if "due" in state else None
        if not first_device:
            self.block, self.since_reading = torch.zeros_like(self.block), torch.zeros_like(self.since_reading)
