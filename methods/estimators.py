"""How the decoder's gradient passes a quantizer: estimators that differ in the gradient alone, never in the value.

rotation: Restructuring vector quantization with the rotation trick (Fifty et al., 2024, arXiv:2410.06424).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn.functional import normalize

from vqbench.methods.codebook import straight_through

Estimator = Literal["straight_through", "rotation", "rotation_vqgan", "reflection"]

MIN_NORM = 1e-6
"""Under this norm a latent has no direction; the authors add it to each norm, in one of their two forms."""


def estimate(z: Tensor, z_q: Tensor, estimator: Estimator) -> Tensor:
    """The value of z_q (B, d, h, w), with the decoder's gradient g handed to z as `estimator` says; none to the codes.

    With R the rotation that takes the direction of a latent ê to that of its code q̂, and the norms held constant:

    - straight_through: g
    - rotation: (‖q‖/‖e‖) Rᵀ g, the paper's, as in its authors' VQ-VAE code
    - rotation_vqgan: (‖q‖/‖e‖) (I − ê êᵀ) Rᵀ g, as in their VQGAN code, which differentiates ê: nothing along e
    - reflection: that with the reflection that takes ê to q̂ in the place of R
    """
    if estimator == "straight_through":
        return straight_through(z, z_q)
    direction, aim = (normalize(part.detach(), dim=1, eps=MIN_NORM) for part in (z, z_q))
    norm = z_q.detach().norm(dim=1, keepdim=True)
    moving = normalize(z, dim=1, eps=MIN_NORM)
    if estimator == "rotation":
        moving, norm = z, norm / z.detach().norm(dim=1, keepdim=True).clamp(min=MIN_NORM)
    turned = _reflected(moving, direction, aim) if estimator == "reflection" else _rotated(moving, direction, aim)
    carried = norm * turned
    # The product is z_q to rounding where both have a direction; the value is z_q to the last bit everywhere.
    return z_q.detach() + (carried - carried.detach())


def _along(x: Tensor, unit: Tensor) -> Tensor:
    """The coordinate of x (B, d, h, w) along `unit`, (B, 1, h, w)."""
    return (x * unit).sum(1, keepdim=True)


def _rotated(x: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """X − 2 r rᵀx + 2 q̂ êᵀx, r along ê + q̂: the rotation in the plane of both. For opposite ones it reflects."""
    middle = normalize(source + target, dim=1, eps=MIN_NORM)
    return x - 2 * middle * _along(x, middle) + 2 * target * _along(x, source)


def _reflected(x: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """X − 2 w wᵀx, w along ê − q̂: the reflection that takes one to the other."""
    mirror = normalize(source - target, dim=1, eps=MIN_NORM)
    return x - 2 * mirror * _along(x, mirror)
