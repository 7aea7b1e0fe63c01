"""The networks that metrics and losses look through, from weight files that were verified."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vqbench.machine.home import home as default_home
from vqbench.metrics.weights import require_weights

if TYPE_CHECKING:
    from torch import nn


def load_inception(explicit: Path | None = None, home: Path | None = None) -> nn.Module:
    """torch-fidelity's Inception, uint8 (B, 3, H, W) → 2048-d features. Raises UsageError where it cannot be had."""
    from vqbench.metrics.inception import load

    return load(require_weights("inception", explicit, False, home), home or default_home())


def load_lpips(net: str, weights: Path | None = None) -> nn.Module:
    """LPIPS, frozen, always in eval mode and float32: x, y (B, 3, H, W) in [-1, 1] → (B,), with gradients to both.

    Raises UsageError where its backbone cannot be had.
    """
    from vqbench.metrics.perceptual import load

    return load(net, require_weights(net, weights, False))
