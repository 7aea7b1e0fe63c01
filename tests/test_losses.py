"""Losses against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from vqbench.training.discriminator import PatchDiscriminator
from vqbench.training.losses import ReconstructionLoss, adaptive_weight, discriminator_loss, generator_loss


def test_pixel_terms_are_means_over_all_values() -> None:
    x, y = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.5)
    assert ReconstructionLoss("l1", 2.0, None, 1.0)(x, y)["pixel"].item() == pytest.approx(1.0)
    assert ReconstructionLoss("l2", 2.0, None, 1.0)(x, y)["pixel"].item() == pytest.approx(0.5)


def test_the_perceptual_network_never_leaves_eval_mode_and_gets_no_gradient() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 1, 1), torch.nn.Dropout(0.5))

    class Distance(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return (self.network(a) - self.network(b)).pow(2).mean((1, 2, 3))

    loss = ReconstructionLoss("l2", 1.0, Distance().train(), 3.0)
    x, y = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4, requires_grad=True)
    first, second = loss(x, y)["perceptual"], loss(x, y)["perceptual"]
    assert torch.equal(first, second)  # Dropout would make them differ
    first.backward()
    assert y.grad is not None
    assert network[0].weight.grad is None


def test_hinge_and_logistic_losses() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 1.0])
    assert discriminator_loss("hinge", real, fake).item() == pytest.approx(0.5 * (0.25 + 1.0))
    assert generator_loss("hinge", fake).item() == pytest.approx(1.0)
    logistic = 0.5 * sum(math.log1p(math.exp(v)) for v in (-2.0, -0.5, -3.0, 1.0)) / 2
    assert discriminator_loss("non_saturating", real, fake).item() == pytest.approx(logistic, rel=1e-6)
    expected = sum(math.log1p(math.exp(v)) for v in (3.0, -1.0)) / 2
    assert generator_loss("non_saturating", fake).item() == pytest.approx(expected, rel=1e-6)


def test_adaptive_weight_is_the_ratio_of_gradient_norms() -> None:
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    weight = adaptive_weight((3 * w).sum(), (w * torch.tensor([0.6, 0.8])).sum(), w)
    assert weight.item() == pytest.approx(math.sqrt(18) / (1.0 + 1e-4), rel=1e-6)
    assert adaptive_weight((1e9 * w).sum(), (0 * w).sum(), w).item() == 1e4
    assert not weight.requires_grad


def test_patch_discriminator_has_the_published_size() -> None:
    discriminator = PatchDiscriminator()
    # 3 layers of 64, 128, 256, 512 channels, 4×4 kernels, biases only where no BatchNorm follows: 2,765,633 (pix2pix's
    # 70×70 PatchGAN on one RGB image)
    assert sum(p.numel() for p in discriminator.parameters()) == 2_765_633
    assert discriminator(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)
