"""What methods with an explicit codebook share: its start, the look-up, the losses and their diagnostics.

`vqgan`, and `vaevq` with every component off, call the same functions in the same order, so that they stay equal
to the last bit: same parameter names, same draws, same arithmetic.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, mse_loss

from vqbench.methods.nearest import nearest

Init = Literal["uniform", "normal", "unit_normal"]
BetaOn = Literal["commitment", "codebook"]


def check_codebook(codebook_size: int, dim: int) -> None:
    """ValueError for a codebook that carries nothing."""
    if codebook_size < 2:
        raise ValueError(f"codebook_size must be at least 2, not {codebook_size}")
    if dim < 1:
        raise ValueError(f"dim must be at least 1, not {dim}")


def check_weight(name: str, value: float) -> None:
    """ValueError for a loss weight that is negative, infinite or not a number."""
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be zero or a positive number, not {value}")


def initial_codebook(codebook_size: int, dim: int, init: Init) -> Tensor:
    """(codebook_size, dim) code vectors to start from: U(−1/K, 1/K), N(0, 1/d) or N(0, 1) in each coordinate."""
    codes = torch.empty(codebook_size, dim)
    if init == "uniform":
        return codes.uniform_(-1 / codebook_size, 1 / codebook_size)
    return codes.normal_(0, 1 if init == "unit_normal" else dim**-0.5)


def mapped(embedding: Tensor, projection: nn.Linear | None) -> Tensor:
    """Effective codes: vectors (K, c) after their linear map, or as they are where there is none."""
    if projection is None:
        return embedding
    codes: Tensor = projection(embedding)
    return codes


def look_up(indices: Tensor, codes: Tensor) -> Tensor:
    """Codes (K, d) at indices (B, h, w), as latents (B, d, h, w)."""
    return embedding(indices, codes).permute(0, 3, 1, 2).contiguous()


def as_rows(latents: Tensor) -> Tensor:
    """Latents (B, d, h, w) as one row per token, (B h w, d), in the order of indices (B, h, w)."""
    return latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])


def quantize(z: Tensor, codes: Tensor, precision: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Nearest codes to z (B, d, h, w) and their indices (B, h, w); the gradient reaches the codes, not z.

    `precision`, shaped like z, weights the coordinates of the distance.
    """
    rows = None if precision is None else as_rows(precision)
    indices = nearest(as_rows(z), codes, rows).view(z.shape[0], *z.shape[2:])
    return look_up(indices, codes), indices


def straight_through(z: Tensor, z_q: Tensor) -> Tensor:
    """The value of z_q, with the decoder's gradient handed to z as it stands."""
    return z + (z_q - z).detach()


def vq_losses(z: Tensor, z_q: Tensor, beta: float, beta_on: BetaOn) -> dict[str, Tensor]:
    """The two alignment terms of VQ-VAE (van den Oord et al., 2017, eq. 3), means over all elements.

    `beta` weights the term that `beta_on` names, the other has weight 1.
    """
    codebook = mse_loss(z_q, z.detach())  # moves the codes only
    commitment = mse_loss(z, z_q.detach())  # moves the encoder only
    if beta_on == "commitment":
        return {"codebook": codebook, "commitment": beta * commitment}
    return {"codebook": beta * codebook, "commitment": commitment}


@torch.no_grad()
def norms(z: Tensor, codes: Tensor) -> dict[str, Tensor]:
    """Root mean squares of latents and codes: both going to zero, or apart, is how a codebook collapses."""
    return {"latent_rms": z.square().mean().sqrt(), "code_rms": codes.square().mean().sqrt()}
