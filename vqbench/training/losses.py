"""Reconstruction and adversarial terms that every method is trained with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Adversary = Literal["hinge", "non_saturating"]


class ReconstructionLoss:
    """w_p · |x − x̂|₁ or w_p · ‖x − x̂‖² (means over all values) + w_l · LPIPS(x, x̂) (mean over images).

    Not a module: the perceptual network is frozen, is no part of a checkpoint, and holds a Dropout that a
    parent's `train()` would switch on.
    """

    def __init__(
        self, pixel: Literal["l1", "l2"], pixel_weight: float, perceptual: nn.Module | None, perceptual_weight: float
    ) -> None:
        self._distance: Callable[[Tensor, Tensor], Tensor] = F.l1_loss if pixel == "l1" else F.mse_loss
        self.pixel_weight = pixel_weight
        self.perceptual = perceptual.eval().requires_grad_(False) if perceptual is not None else None
        self.perceptual_weight = perceptual_weight

    def to(self, device: torch.device) -> None:
        """Move the perceptual network."""
        if self.perceptual is not None:
            self.perceptual.to(device)

    def __call__(self, images: Tensor, reconstructions: Tensor) -> dict[str, Tensor]:
        """Images and reconstructions (B, 3, R, R) in [-1, 1] → weighted terms by name."""
        reconstructions = reconstructions.float()
        terms = {"pixel": self.pixel_weight * self._distance(reconstructions, images)}
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual_weight * self.perceptual(reconstructions, images).mean()
        return terms


def generator_loss(kind: Adversary, fake: Tensor) -> Tensor:
    """The generator's term on logits of reconstructions: −E[D(x̂)], or E[softplus(−D(x̂))]."""
    return -fake.mean() if kind == "hinge" else F.softplus(-fake).mean()


def discriminator_loss(kind: Adversary, real: Tensor, fake: Tensor) -> Tensor:
    """Half the sum of the terms on real and reconstructed images: hinge, or the logistic loss."""
    if kind == "hinge":
        return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """‖∇ reconstruction‖ / (‖∇ adversarial‖ + 1e-4) at the decoder's last layer, at most 1e4 (VQGAN, eq. 7)."""
    with torch.autocast(last_layer.device.type, enabled=False):
        rec, adv = (
            torch.autograd.grad(loss, last_layer, retain_graph=True)[0] for loss in (reconstruction, adversarial)
        )
    return (rec.norm() / (adv.norm() + 1e-4)).clamp(0.0, 1e4).detach()
