"""Every method against values that the authors' own implementations gave (tests/golden/README.md)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vqbench.methods.codebook import as_rows, quantize
from vqbench.methods.dcr import squared_w2_to_standard_normal
from vqbench.methods.fsq import FSQ
from vqbench.methods.nearest import nearest
from vqbench.methods.sqvae import SQVAE, assignment_logits, latent_terms, soft_codes
from vqbench.methods.vaevq import VAEVQ, kl_per_image, rcs_per_token
from vqbench.methods.vqgan import VQGAN
from vqbench.quantizer import Quantized

GOLDEN = Path(__file__).parent / "golden" / "quantizers.npz"
K, C, TOKENS_PER_IMAGE = 32, 8, 24

Golden = Callable[[str], Tensor]


@pytest.fixture(scope="module")
def golden() -> Golden:
    arrays = dict(np.load(GOLDEN))

    def get(name: str) -> Tensor:
        array = torch.from_numpy(arrays[name])
        return array.clone().requires_grad_() if array.dtype == torch.float32 and array.ndim > 0 else array

    return get


def values_agree(actual: Tensor, expected: Tensor) -> None:
    """To 1e-5 relative; the absolute part is for values that are differences of terms of order 1."""
    torch.testing.assert_close(actual.detach(), expected.detach(), rtol=1e-5, atol=2e-6)


def gradients_agree(actual: Tensor | None, expected: Tensor) -> None:
    assert actual is not None
    torch.testing.assert_close(actual, expected.detach(), rtol=1e-4, atol=1e-5)


def backward(result: Quantized, grad_output: Tensor) -> None:
    (sum(result.losses.values(), torch.zeros(())) + (result.latents * grad_output.detach()).sum()).backward()


def test_vqgan(golden: Golden) -> None:
    quantizer = VQGAN(VQGAN.Config(K, C))
    quantizer.load_state_dict({"embedding": golden("codebook")})
    z = golden("z")
    result = quantizer(z)
    assert torch.equal(result.indices, golden("vqgan_indices"))
    values_agree(result.latents, golden("vqgan_zq"))
    values_agree(result.losses["codebook"] + result.losses["commitment"], golden("vqgan_loss"))
    backward(result, golden("grad_output"))
    gradients_agree(z.grad, golden("vqgan_grad_z"))
    gradients_agree(quantizer.embedding.grad, golden("vqgan_grad_codebook"))


def linear_vaevq(golden: Golden, **settings: object) -> VAEVQ:
    quantizer = VAEVQ(VAEVQ.Config(K, C, **settings))  # type: ignore[arg-type]
    state = {"embedding": golden("codebook"), "projection.weight": golden("simvq_weight")}
    quantizer.load_state_dict({**state, "projection.bias": golden("simvq_bias")})
    return quantizer


def test_linear_codebook_is_simvq(golden: Golden) -> None:
    quantizer = linear_vaevq(golden, vlq=False, rcs=False, dcr=False, codebook_param="linear")
    z = golden("z")
    result = quantizer(z)
    assert torch.equal(result.indices, golden("simvq_indices"))
    values_agree(result.latents, golden("simvq_zq"))
    values_agree(result.losses["codebook"] + result.losses["commitment"], golden("simvq_loss"))
    backward(result, golden("grad_output"))
    gradients_agree(z.grad, golden("simvq_grad_z"))
    assert quantizer.projection is not None
    gradients_agree(quantizer.projection.weight.grad, golden("simvq_grad_weight"))
    gradients_agree(quantizer.projection.bias.grad, golden("simvq_grad_bias"))


def test_vaevq_released(golden: Golden) -> None:
    # The preset doubles rcs, for a harness that adds what the authors average.
    quantizer = linear_vaevq(golden, **{**VAEVQ.presets["released"], "rcs_weight": 1.0})
    mean, log_variance = golden("z"), golden("vaevq_logvar")
    result = quantizer(torch.cat([mean, log_variance], 1))
    assert torch.equal(result.indices.flatten(), golden("vaevq_off_indices"))
    values_agree(result.latents, golden("vaevq_off_zq"))
    values_agree((result.latents - mean) / (0.5 * log_variance).exp(), golden("vaevq_off_eps"))
    assert set(result.losses) == {"rcs"}
    values_agree(result.losses["rcs"], golden("vaevq_off_rcs"))
    backward(result, golden("grad_output"))
    gradients_agree(mean.grad, golden("vaevq_off_grad_mean"))
    gradients_agree(log_variance.grad, golden("vaevq_off_grad_logvar"))
    gradients_agree(quantizer.embedding.grad, golden("vaevq_off_grad_codebook"))


def test_vaevq_paper(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equations 1, 2, 7 and 11 through the quantizer, with the noise that made the reference."""
    quantizer = VAEVQ(VAEVQ.Config(K, C, **VAEVQ.presets["paper"]))  # type: ignore[arg-type]
    quantizer.load_state_dict({"embedding": golden("codebook")})
    monkeypatch.setattr(torch, "randn_like", lambda like: golden("vaevq_noise").detach())
    result = quantizer(torch.cat([golden("z"), golden("vaevq_logvar")], 1))
    assert result.continuous is not None
    values_agree(result.continuous, golden("vaevq_zc"))
    assert torch.equal(result.indices, golden("vaevq_indices"))
    values_agree(result.losses["rcs"].double(), golden("vaevq_rcs_per_position").mean())
    values_agree(result.losses["dcr"].double(), 0.1 * golden("vaevq_w2_squared"))
    values_agree(result.losses["kl"].double(), 1e-6 * golden("vaevq_kl_sum_per_image").mean())


def test_vaevq_terms(golden: Golden) -> None:
    mean, log_variance, codes = (golden(name).detach().double() for name in ("z", "vaevq_logvar", "codebook"))
    z_q, indices = quantize(golden("vaevq_zc"), golden("codebook"))
    assert torch.equal(indices, golden("vaevq_indices"))
    values_agree(rcs_per_token(z_q.double(), mean, (0.5 * log_variance).exp()), golden("vaevq_rcs_per_position"))
    values_agree(squared_w2_to_standard_normal(codes), golden("vaevq_w2_squared"))
    values_agree(squared_w2_to_standard_normal(codes) - C, golden("vaevq_dcr_eq11"))
    values_agree(kl_per_image(mean, log_variance), golden("vaevq_kl_sum_per_image"))


@pytest.mark.parametrize(("name", "temperature"), [("T1p0", 1.0), ("T0p5", 0.5)])
def test_sqvae_training(golden: Golden, name: str, temperature: float) -> None:
    z, codes, scalar = golden("z"), golden("codebook"), golden("sqvae_log_param_q").requires_grad_()
    variance = (1 + scalar.exp()).view(1, 1)
    values_agree(variance.flatten(), golden("sqvae_var_q"))
    rows = as_rows(z)
    logits = assignment_logits(rows, codes, variance)
    mixture = soft_codes(logits, codes, golden("sqvae_gumbel"), temperature)
    terms = latent_terms(rows, mixture, variance, logits)
    per_image = TOKENS_PER_IMAGE * (terms["entropy"] + terms["noise"]).mean()
    values_agree(mixture, as_rows(golden(f"sqvae_zq_{name}")))
    values_agree(per_image, golden(f"sqvae_loss_{name}"))
    (per_image + (mixture * as_rows(golden("grad_output").detach())).sum()).backward()
    gradients_agree(z.grad, golden(f"sqvae_grad_z_{name}"))
    gradients_agree(codes.grad, golden(f"sqvae_grad_codebook_{name}"))
    gradients_agree(scalar.grad, golden(f"sqvae_grad_logparam_{name}"))


def test_sqvae_through_the_quantizer(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    """The class gives the same mixture and, over its weight, the same loss when it draws the reference's noise."""
    quantizer = SQVAE(SQVAE.Config(K, C, log_variance_init=golden("sqvae_log_param_q").item()))
    quantizer.embedding.data.copy_(golden("codebook"))
    exponential = (-golden("sqvae_gumbel").detach()).exp()
    monkeypatch.setattr(Tensor, "exponential_", lambda self: self.copy_(exponential))
    result = quantizer(golden("z"))
    values_agree(result.latents, golden("sqvae_zq_T1p0"))
    per_token = (result.losses["entropy"] + result.losses["noise"]) / quantizer.latent_weight
    values_agree(TOKENS_PER_IMAGE * per_token, golden("sqvae_loss_T1p0"))


def test_sqvae_evaluation(golden: Golden) -> None:
    quantizer = SQVAE(SQVAE.Config(K, C)).eval()
    quantizer.embedding.data.copy_(golden("codebook"))
    result = quantizer(golden("z"))
    values_agree(result.latents, golden("sqvae_eval_zq"))
    rows, variance = as_rows(golden("z")), golden("sqvae_var_q").view(1, 1)
    terms = latent_terms(rows, as_rows(result.latents), variance, assignment_logits(rows, golden("codebook"), variance))
    values_agree(TOKENS_PER_IMAGE * (terms["entropy"] + terms["noise"]).mean(), golden("sqvae_eval_loss"))
    histogram = torch.bincount(nearest(rows, golden("codebook")), minlength=K) / len(rows)
    values_agree(torch.exp(-torch.xlogy(histogram, histogram).sum()), golden("sqvae_eval_ppl"))


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (8, 8, 8, 6, 5), (5, 5, 5), (7, 5, 5, 5, 5)], ids=str)
def test_fsq(golden: Golden, levels: tuple[int, ...]) -> None:
    name = "fsq_" + "x".join(map(str, levels))
    quantizer, z = FSQ(FSQ.Config(levels)), golden(f"{name}_z")
    result = quantizer(z)
    assert torch.equal(result.indices, golden(f"{name}_indices").long())
    values_agree(result.latents, golden(f"{name}_zq"))
    backward(result, golden(f"{name}_grad_output"))
    gradients_agree(z.grad, golden(f"{name}_grad_z"))
    values_agree(quantizer.decode_indices(result.indices), golden(f"{name}_zq"))
