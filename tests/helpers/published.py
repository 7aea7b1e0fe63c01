"""Networks as their authors publish them, written here from their module names, with their own forward and look-up.

Names are typed out and modules are applied in the order in which they are made, so that nothing of vqbench's own maps
takes part.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def put(root: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Register a module under a dotted name."""
    *parts, last = name.split(".")
    for part in parts:
        if part not in dict(root.named_children()):
            root.add_module(part, nn.Module())
        root = dict(root.named_children())[part]
    root.add_module(last, module)
    return module


class Spatial(nn.Module):
    """MoVQGAN's norm."""

    def __init__(self, channels: int, codes: int, add_conv: bool) -> None:
        super().__init__()
        self.norm_layer = nn.GroupNorm(32, channels, 1e-6)
        if add_conv:
            self.conv = nn.Conv2d(codes, codes, 3, padding=1)
        self.conv_y, self.conv_b = nn.Conv2d(codes, channels, 1), nn.Conv2d(codes, channels, 1)
        self.add_conv = add_conv

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        codes = F.interpolate(codes, x.shape[2:], mode="nearest")
        codes = self.conv(codes) if self.add_conv else codes
        return self.norm_layer(x) * self.conv_y(codes) + self.conv_b(codes)


class Block(nn.Module):
    def __init__(self, norm: Callable[[int], nn.Module], a: int, b: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(a), nn.Conv2d(a, b, 3, 1, 1)
        self.norm2, self.conv2 = norm(b), nn.Conv2d(b, b, 3, 1, 1)
        if a != b:
            self.nin_shortcut = nn.Conv2d(a, b, 1)

    def forward(self, x: Tensor, *codes: Tensor) -> Tensor:
        h = self.norm1(x, *codes)
        h = self.conv1(h * torch.sigmoid(h))
        h = self.norm2(h, *codes)
        h = self.conv2(h * torch.sigmoid(h))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    def __init__(self, norm: Callable[[int], nn.Module], c: int) -> None:
        super().__init__()
        self.norm = norm(c)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(c, c, 1) for _ in range(4))

    def forward(self, x: Tensor, *codes: Tensor) -> Tensor:
        b, c, h, w = x.shape
        n = self.norm(x, *codes)
        q, k, v = (of(n).reshape(b, c, h * w) for of in (self.q, self.k, self.v))
        weights = torch.softmax(q.transpose(1, 2) @ k / c**0.5, 2)
        return x + self.proj_out((v @ weights.transpose(1, 2)).reshape(b, c, h, w))


class Down(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, 2)

    def forward(self, x: Tensor, *_: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Up(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, 1, 1)

    def forward(self, x: Tensor, *_: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0))


class Half(nn.Module):
    """Encoder or decoder: modules in the order of their names."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[nn.Module] = []

    def add(self, name: str, module: nn.Module) -> None:
        self.steps.append(put(self, name, module))

    def forward(self, x: Tensor, *codes: Tensor) -> Tensor:
        for step in self.steps[:-2]:
            x = step(x) if isinstance(step, nn.Conv2d) else step(x, *codes)
        norm, last = self.steps[-2:]
        x = norm(x, *codes)
        return last(x * torch.sigmoid(x))


class Network(nn.Module):
    """Two halves and the convolutions between, in taming's names or LlamaGen's; `codes` and `look_up` are set later."""

    def __init__(
        self,
        style: str = "taming",
        multipliers: tuple[int, ...] = (1, 2),
        blocks: int = 1,
        attention: tuple[int, ...] = (1,),
        mid: bool = True,
        z: int = 12,
        d: int = 6,
        spatial: str = "",
    ) -> None:
        super().__init__()
        self.spatial = bool(spatial)
        self.encoder, self.decoder = Half(), Half()
        plain = lambda c: nn.GroupNorm(32, c, 1e-6)  # noqa: E731
        norm = (lambda c: Spatial(c, d, spatial == "conv")) if spatial else plain
        widths, top = [32 * m for m in multipliers], len(multipliers) - 1
        group, block = ("conv_blocks", "res") if style == "llamagen" else ("down", "block")
        names = ["mid.0", "mid.1", "mid.2"] if style == "llamagen" else ["mid.block_1", "mid.attn_1", "mid.block_2"]

        def middle(half: Half, of: Callable[[int], nn.Module]) -> None:
            half.add(names[0], Block(of, widths[-1], widths[-1]))
            if mid:
                half.add(names[1], Attention(of, widths[-1]))
            half.add(names[2], Block(of, widths[-1], widths[-1]))

        self.encoder.add("conv_in", nn.Conv2d(3, 32, 3, 1, 1))
        at = 32
        for level, width in enumerate(widths):
            for i in range(blocks):
                self.encoder.add(f"{group}.{level}.{block}.{i}", Block(plain, at, width))
                at = width
                if level in attention:
                    self.encoder.add(f"{group}.{level}.attn.{i}", Attention(plain, width))
            if level < top:
                self.encoder.add(f"{group}.{level}.downsample", Down(width))
        middle(self.encoder, plain)
        self.encoder.add("norm_out", plain(at))
        self.encoder.add("conv_out", nn.Conv2d(at, z, 3, 1, 1))

        self.decoder.add("conv_in", nn.Conv2d(z, at, 3, 1, 1))
        middle(self.decoder, norm)
        for level in range(top, -1, -1):
            here = f"conv_blocks.{top - level}" if style == "llamagen" else f"up.{level}"
            for i in range(blocks + 1):
                self.decoder.add(f"{here}.{block}.{i}", Block(norm, at, widths[level]))
                at = widths[level]
                if level in attention:
                    self.decoder.add(f"{here}.attn.{i}", Attention(norm, at))
            if level:
                self.decoder.add(f"{here}.upsample", Up(at))
        self.decoder.add("norm_out", norm(at))
        self.decoder.add("conv_out", nn.Conv2d(at, 3, 3, 1, 1))
        self.quant_conv, self.post_quant_conv = nn.Conv2d(z, d, 1), nn.Conv2d(d, z, 1)
        shake(self)

    def latents(self, images: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(images))

    def images(self, codes: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(codes), *((codes,) if self.spatial else ())).clamp(-1, 1)


def shake(module: nn.Module) -> None:
    """Give norms and biases values of their own, as training does: a swap of two would not show otherwise."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))


def codes_near(latents: Tensor, number: int) -> Tensor:
    """(number, d) codes that lie among latents (B, d, h, w), so that many of them are used."""
    rows = latents.movedim(1, -1).flatten(0, -2)
    chosen = rows[torch.randperm(len(rows))[:number]]
    return (chosen + 0.3 * rows.std(0) * torch.randn_like(chosen)).detach().clone()


def nearest(z: Tensor, codes: Tensor) -> Tensor:
    """(B, h, w): the nearest code of each place, one distance after the other."""
    return (z[:, None] - codes[None, :, :, None, None]).square().sum(2).argmin(1)


def at(indices: Tensor, codes: Tensor) -> Tensor:
    return codes[indices].movedim(-1, 1)
