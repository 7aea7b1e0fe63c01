"""Encoder and decoder of VQGAN (Esser et al., 2020, arXiv:2012.09841), in the layout of taming-transformers.

All methods share them: the quantizer is reached through 1×1 convolutions that live in the tokenizer, so the
backbone has the same parameters whatever stands in the middle.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vqbench.errors import VQBenchError
from vqbench.recipe import Recipe


@dataclass(frozen=True)
class BackboneConfig:
    """Shape of encoder and decoder; see the fields of the same names in Recipe."""

    resolution: int
    channels: int
    channel_multipliers: tuple[int, ...]
    res_blocks: int
    attention_resolutions: tuple[int, ...]
    mid_attention: bool
    latent_channels: int
    dropout: float
    image_channels: int = 3

    @classmethod
    def of(cls, recipe: Recipe) -> BackboneConfig:
        """The backbone that a recipe asks for."""
        return cls(**{name: getattr(recipe, name) for name in cls.__dataclass_fields__})

    @property
    def widths(self) -> list[int]:
        """Channels per level, from full resolution down."""
        return [self.channels * m for m in self.channel_multipliers]

    @property
    def sides(self) -> list[int]:
        """Feature-map side per level."""
        return [self.resolution // 2**level for level in range(len(self.channel_multipliers))]


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(32, channels), channels, eps=1e-6)  # 32 groups, as published, where they divide


class ModulatedNorm(nn.GroupNorm):
    """A norm whose output a quantizer's module changes by the latents (`Quantizer.decoder_modulation`)."""

    def __init__(self, norm: nn.GroupNorm, modulation: nn.Module) -> None:
        super().__init__(norm.num_groups, norm.num_channels, norm.eps)
        self.weight, self.bias, self.modulation = norm.weight, norm.bias, modulation

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:  # type: ignore[override]
        """(B, C, H, W), and latents (B, D, h, w) → (B, C, H, W). Raises VQBenchError for another shape."""
        modulated: Tensor = self.modulation(super().forward(x), latents)
        if modulated.shape != x.shape:
            what = f"decoder_modulation's module made {tuple(modulated.shape)} of a norm's {tuple(x.shape)}"
            raise VQBenchError(what, "it must keep the shape of its first argument")
        return modulated


class ResidualBlock(nn.Module):
    """Norm, SiLU, 3×3 convolution, twice, beside a shortcut that is 1×1 where the width changes."""

    def __init__(self, channels_in: int, channels_out: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(channels_in), nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2, self.conv2 = _norm(channels_out), nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        same = channels_in == channels_out
        self.shortcut: nn.Module = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, *condition: Tensor) -> Tensor:
        """(B, channels_in, h, w) → (B, channels_out, h, w); `condition` is for norms that are modulated."""
        hidden = self.conv1(F.silu(self.norm1(x, *condition)))
        hidden = self.conv2(self.dropout(F.silu(self.norm2(hidden, *condition))))
        return self.shortcut(x) + hidden


class SelfAttention(nn.Module):
    """One head of self-attention over all positions, with 1×1 projections."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.query, self.key, self.value, self.out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor, *condition: Tensor) -> Tensor:
        """(B, C, h, w) → (B, C, h, w); `condition` as in ResidualBlock."""
        hidden = self.norm(x, *condition)
        q, k, v = (p(hidden).flatten(2).mT.unsqueeze(1) for p in (self.query, self.key, self.value))  # (B, 1, hw, C)
        attended = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        return x + self.out(attended.mT.reshape(x.shape))


class Downsample(nn.Module):
    """Strided 3×3 convolution that pads below and to the right only, as published."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) → (B, C, h/2, w/2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a 3×3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) → (B, C, 2h, 2w)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _level(channels_in: int, channels_out: int, blocks: int, side: int, config: BackboneConfig) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for i in range(blocks):
        layers.append(ResidualBlock(channels_in if i == 0 else channels_out, channels_out, config.dropout))
        if side in config.attention_resolutions:
            layers.append(SelfAttention(channels_out))
    return layers


def _middle(channels: int, config: BackboneConfig) -> list[nn.Module]:
    attention = [SelfAttention(channels)] if config.mid_attention else []
    first, last = (ResidualBlock(channels, channels, config.dropout) for _ in range(2))
    return [first, *attention, last]


class _Layers(nn.Module):
    """What encoder and decoder share: their layers, one after the other."""

    layers: nn.Sequential
    recomputes = False
    """Activation checkpointing: of a block only its input is kept, and what is inside it is computed again backwards.
    Random draws are the same then."""

    def through(self, x: Tensor, *condition: Tensor) -> Tensor:
        """All layers."""
        recomputes = self.recomputes and torch.is_grad_enabled()
        if not (recomputes or condition):
            return self.layers(x)
        for layer in self.layers:
            is_block = isinstance(layer, ResidualBlock | SelfAttention)
            given = (x, *condition) if is_block or isinstance(layer, ModulatedNorm) else (x,)
            x = checkpoint(layer, *given, use_reentrant=False) if is_block and recomputes else layer(*given)
        return x


class Encoder(_Layers):
    """Images (B, image_channels, R, R) in [-1, 1] → (B, latent_channels, R/f, R/f)."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        widths, sides = config.widths, config.sides
        layers: list[nn.Module] = [nn.Conv2d(config.image_channels, config.channels, 3, padding=1)]
        for level, (before, width) in enumerate(pairwise([config.channels, *widths])):
            layers += _level(before, width, config.res_blocks, sides[level], config)
            if level < len(widths) - 1:
                layers.append(Downsample(width))
        layers += [*_middle(widths[-1], config), _norm(widths[-1]), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], config.latent_channels, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        return self.through(images)


class Decoder(_Layers):
    """Latents (B, latent_channels, h, w) → images (B, image_channels, f h, f w), not clamped."""

    ends_before_last = False
    """Whether `forward` leaves the last convolution to its caller. The adversary's weight is found at it: a gradient
    that is taken through micro-batches brings back what every one of them has let go."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        widths, sides = config.widths[::-1], config.sides[::-1]
        layers: list[nn.Module] = [nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)]
        layers += _middle(widths[0], config)
        for level, (before, width) in enumerate(pairwise([widths[0], *widths])):
            layers += _level(before, width, config.res_blocks + 1, sides[level], config)
            if level < len(widths) - 1:
                layers.append(Upsample(width))
        self.layers = nn.Sequential(*layers, _norm(widths[-1]), nn.SiLU())
        self.last = nn.Conv2d(widths[-1], config.image_channels, 3, padding=1)

    def modulate_norms(self, modulation: Callable[[int], nn.Module | None]) -> bool:
        """Have the module that `modulation` makes for a number of channels follow each norm; False where it makes none.

        The decoder then takes as its second argument the latents that they are modulated by. Raises VQBenchError where
        `modulation` makes something else than a new module for each norm, or None for every one.
        """
        norms = [(parent, name, norm) for parent in self.modules() for name, norm in parent.named_children()
                 if isinstance(norm, nn.GroupNorm)]  # fmt: skip
        made = [modulation(norm.num_channels) for *_, norm in norms]
        if all(module is None for module in made):
            return False
        if not all(isinstance(module, nn.Module) for module in made) or len({*map(id, made)}) < len(made):
            raise VQBenchError(
                "decoder_modulation must return a new torch module for each norm, or None for every one",
                "make the module inside decoder_modulation(channels), and return it",
            )
        for (parent, name, norm), module in zip(norms, made, strict=True):
            assert module is not None
            setattr(parent, name, ModulatedNorm(norm, module))
        return True

    def forward(self, latents: Tensor, *condition: Tensor) -> Tensor:
        """See the class."""
        hidden = self.through(latents, *condition)
        return hidden if self.ends_before_last else self.last(hidden)


def count_parameters(module: nn.Module) -> int:
    """Trainable values of a module."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
