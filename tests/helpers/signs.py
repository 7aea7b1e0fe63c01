"""The text of a plugin whose method raises or emits NaN when it is told to; each test writes a file of its own."""

PLUGIN = '''
"""A quantizer of one's own: signs."""
from dataclasses import dataclass

import torch

from vqbench.quantizer import Quantized, Quantizer, full_precision
from vqbench.registry import METHODS


@METHODS.register("signs")
class Signs(Quantizer):
    """Signs of each channel (Doe, 2026)."""

    @dataclass(frozen=True)
    class Config:
        bits: int = 6
        """Channels, one bit each."""
        explode_at: int = -1
        """Raise or emit NaN after this many images; below zero, never."""
        how: str = "raise"
        """raise or nan."""

    presets = {kind: {"how": kind, "explode_at": 16} for kind in ("raise", "nan")}

    def __init__(self, config):
        super().__init__(config)
        self.in_channels = self.out_channels = config.bits
        self.codebook_size = 2**config.bits
        self.register_buffer("powers", 2 ** torch.arange(config.bits))

    def advance(self, state):
        self.nan = False
        if 0 <= self.config.explode_at <= state.images_seen:
            if self.config.how == "raise":
                raise RuntimeError("as the config asked")
            self.nan = True

    @full_precision
    def forward(self, z):
        q = torch.where(z > 0, 1.0, -1.0)
        indices = ((z > 0).long() * self.powers.view(1, -1, 1, 1)).sum(1)
        factor = float("nan") if getattr(self, "nan", False) else 0.25
        losses = {"commitment": factor * (z - q.detach()).pow(2).mean()}
        return Quantized(z + (q - z).detach(), indices, losses)

    def decode_indices(self, indices):
        return ((indices.unsqueeze(1) & self.powers.view(1, -1, 1, 1)) > 0).float() * 2 - 1
'''
