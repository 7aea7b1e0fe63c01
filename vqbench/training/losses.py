"""Reconstruction and adversarial terms that every method is trained with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqbench.metrics.channels import for_rgb
from vqbench.metrics.perceptual import Perceptual
from vqbench.training.parts import Parts

Adversary = Literal["hinge", "non_saturating"]


class ReconstructionLoss:
    """w_p · |x − x̂|₁ or w_p · ‖x − x̂‖² (means over all values) + w_l · LPIPS(x, x̂) (mean over images).

    Of images that are no RGB, LPIPS is the mean over channels of that of each, repeated to RGB.

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
        self.parts: Parts | None = None
        """What a training runs LPIPS by; without it each call is by itself."""

    def to(self, device: torch.device) -> None:
        """Move the perceptual network."""
        if self.perceptual is not None:
            self.perceptual.to(device)

    def seen_in(self, images: Tensor) -> tuple[Tensor, ...] | None:
        """What the perceptual network sees in targets, to be found once and handed to each call for the same ones."""
        if self.parts is None or not isinstance(self.perceptual, Perceptual):
            return None
        return self.parts.features(self.perceptual, for_rgb(images))

    def __call__(
        self, images: Tensor, reconstructions: Tensor, seen: tuple[Tensor, ...] | None = None
    ) -> dict[str, Tensor]:
        """Images and reconstructions (B, C, R, R) in [-1, 1] → weighted terms by name; `seen` as of `seen_in`."""
        reconstructions = reconstructions.float()
        terms = {"pixel": self.pixel_weight * self._distance(reconstructions, images)}
        if self.perceptual is not None:
            terms["perceptual"] = (
                self.perceptual_weight * self._perceived(for_rgb(images), for_rgb(reconstructions), seen).mean()
            )
        return terms

    def _perceived(self, images: Tensor, reconstructions: Tensor, seen: tuple[Tensor, ...] | None) -> Tensor:
        assert self.perceptual is not None
        if seen is not None and self.parts is not None and isinstance(self.perceptual, Perceptual):
            return self.parts.distance(self.perceptual, reconstructions, seen)
        distance: Tensor = self.perceptual(reconstructions, images)
        return distance


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


def standing_for(outputs: Iterable[Tensor], gradients: Iterable[Tensor]) -> Tensor:
    """A scalar whose gradients at `outputs` are `gradients`, to the last bit; its value means nothing."""
    return torch.stack([(output * gradient).sum() for output, gradient in zip(outputs, gradients, strict=True)]).sum()
