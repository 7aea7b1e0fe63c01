"""Every method on cases with a known answer; no file is needed."""

from __future__ import annotations

import json
import math
import os
import socket
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import gumbel_r, kstest
from torch import Tensor, nn

from vqbench.checks.toy import ToyTokenizer
from vqbench.config import build
from vqbench.data.dataset import Images
from vqbench.data.stream import TrainingStream
from vqbench.errors import UsageError
from vqbench.methods import dcr, sqvae
from vqbench.methods import nearest as nearest_module
from vqbench.methods.codebook import as_rows, quantize, vq_losses
from vqbench.methods.dcr import moments, squared_w2_to_normal, squared_w2_to_standard_normal
from vqbench.methods.fsq import FSQ, RECOMMENDED
from vqbench.methods.nearest import argmax, argmin, nearest
from vqbench.methods.sqvae import SQVAE, assignment_logits, latent_terms, noisy_assignment, soft_codes
from vqbench.methods.vaevq import VAEVQ, kl_per_image
from vqbench.methods.vqgan import VQGAN
from vqbench.quantizer import Quantizer, TrainingState
from vqbench.recipe import load_recipe
from vqbench.registry import METHODS
from vqbench.tokenizer import build_tokenizer
from vqbench.training.fit import train as fit

quick = settings(max_examples=40, deadline=None)


def seeded(cls: type[Quantizer], seed: int = 0, **config: Any) -> Any:
    torch.manual_seed(seed)
    return cls(cls.Config(**config))


# nearest


@quick
@given(
    n=st.integers(0, 40), k=st.integers(1, 30), d=st.integers(1, 9), rows=st.integers(1, 17), seed=st.integers(0, 99)
)
def test_nearest_is_brute_force(n: int, k: int, d: int, rows: int, seed: int) -> None:
    noise = torch.Generator().manual_seed(seed)
    # Whole numbers: every distance is exact in float32, so that only true ties may differ.
    z = torch.randint(-9, 10, (n, d), generator=noise).float()
    codes = torch.randint(-9, 10, (k, d), generator=noise).float()
    distance = (z[:, None] - codes).square().sum(2)
    usual, nearest_module.SCORE_BYTES = nearest_module.SCORE_BYTES, rows * 4 * k
    try:
        found = nearest(z, codes)
    finally:
        nearest_module.SCORE_BYTES = usual
    assert found.dtype == torch.int64
    assert torch.equal(distance.gather(1, found[:, None])[:, 0], distance.amin(1))


def test_nearest_tells_close_codes_apart_far_from_zero() -> None:
    """Codes 1e-2 apart at a distance of 1e3 from zero: |e|² alone is 1e6, where float32 resolves 0.06."""
    codes = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)) * 1e-2 + 1e3
    assert torch.equal(nearest(codes, codes), torch.arange(64))


def test_nearest_weights_coordinates() -> None:
    noise = torch.Generator().manual_seed(0)
    z, codes = torch.randn(50, 6, generator=noise), torch.randn(20, 6, generator=noise)
    precision = torch.rand(50, 6, generator=noise) * 5
    expected = (precision[:, None] * (z[:, None] - codes).square()).sum(2).argmin(1)
    assert torch.equal(nearest(z, codes, precision), expected)


def test_nearest_ignores_autocast() -> None:
    noise = torch.Generator().manual_seed(0)
    z, codes = torch.randn(500, 16, generator=noise), torch.randn(300, 16, generator=noise)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nearest(z, codes), torch.cdist(z.double(), codes.double()).argmin(1))


@pytest.mark.parametrize("look_up", [nearest, nearest_module.nearest_both_ways])
def test_scores_stay_within_their_bound(
    look_up: Callable[[Tensor, Tensor], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks: list[int] = []
    alive: list[weakref.ref[Tensor]] = []
    made = nearest_module.products

    def watched(*matrices: Tensor, **options: bool) -> Tensor:
        assert not any(block() is not None for block in alive)  # one at a time
        found = made(*matrices, **options)
        blocks.append(found.nbytes)
        alive.append(weakref.ref(found))
        return found

    monkeypatch.setattr(nearest_module, "products", watched)
    look_up(torch.randn(4096, 4), torch.randn(2000, 4))
    assert sum(blocks) == 4 * 4096 * 2000
    threads = torch.get_num_threads()
    assert max(blocks) <= min(nearest_module.SCORE_BYTES_A_THREAD * threads, nearest_module.SCORE_BYTES) < 64e6


@quick
@given(
    n=st.integers(1, 9),
    k=st.sampled_from([1, 64, 256, 300, 640]),
    odd=st.sampled_from([math.nan, math.inf, -math.inf]),
    share=st.sampled_from([0.0, 0.01, 1.0]),
    seed=st.integers(0, 99),
)
def test_the_first_of_equal_extremes_is_found(n: int, k: int, odd: float, share: float, seed: int) -> None:
    noise = np.random.default_rng(seed)
    scores = noise.integers(-5, 6, (n, k)).astype(np.float32)  # with ties
    scores[noise.random((n, k)) < share] = odd
    expected = scores.argmin(1), scores.argmax(1)
    given_scores = torch.from_numpy(scores)
    for found, known in zip((argmin(given_scores), argmax(given_scores)), expected, strict=True):
        assert found.dtype == torch.int64
        assert found.tolist() == known.tolist()


# vqgan


def test_vqgan_by_hand() -> None:
    quantizer = seeded(VQGAN, codebook_size=2, dim=1, beta=0.5)
    quantizer.embedding.data = torch.tensor([[0.0], [10.0]])
    z = torch.tensor([1.0, 8.0]).view(1, 1, 1, 2).requires_grad_()
    result = quantizer(z)
    assert result.indices.tolist() == [[[0, 1]]]
    assert result.latents.flatten().tolist() == [0.0, 10.0]
    assert result.losses["codebook"].item() == 2.5  # (1² + 2²) / 2
    assert result.losses["commitment"].item() == 1.25
    sum(result.losses.values()).backward()
    assert z.grad is not None
    assert z.grad.flatten().tolist() == [0.5, -1.0]  # beta · 2 (z − e) / 2
    assert quantizer.embedding.grad.flatten().tolist() == [-1.0, 2.0]


def test_beta_order_exchanges_the_weights() -> None:
    z, z_q = torch.randn(1, 3, 2, 2), torch.randn(1, 3, 2, 2)
    paper, legacy = vq_losses(z, z_q, 0.25, "commitment"), vq_losses(z, z_q, 0.25, "codebook")
    assert torch.equal(legacy["codebook"], paper["commitment"])
    assert torch.equal(legacy["commitment"], paper["codebook"])
    assert VQGAN.presets["legacy"] == {"beta_on": "codebook"}


@pytest.mark.parametrize(("init", "rms"), [("uniform", 1 / 400 / 3**0.5), ("normal", 0.125), ("unit_normal", 1.0)])
def test_initial_codebook(init: str, rms: float) -> None:
    codes = seeded(VQGAN, codebook_size=400, dim=64, init=init).codebook
    assert float(codes.square().mean().sqrt()) == pytest.approx(rms, rel=0.03)


@pytest.mark.parametrize("cls", [VQGAN, SQVAE, VAEVQ])
def test_one_code_is_refused(cls: Any) -> None:
    with pytest.raises(ValueError, match="codebook_size must be at least 2"):
        cls.Config(codebook_size=1)


# fsq


level_lists = st.lists(st.integers(2, 1100) | st.integers(2, 9), min_size=1, max_size=6).map(tuple)


@quick
@example(levels=(1100, 2), seed=0, scale=30.0)  # where the margin alone would round past the last level
@given(levels=level_lists, seed=st.integers(0, 99), scale=st.sampled_from([0.0, 1.0, 30.0, 1e6]))
def test_fsq_round_trip_on_any_levels(levels: tuple[int, ...], seed: int, scale: float) -> None:
    quantizer = FSQ(FSQ.Config(levels)).eval()
    z = scale * torch.randn(2, len(levels), 3, 5, generator=torch.Generator().manual_seed(seed))
    result = quantizer(z)
    assert result.indices.min() >= 0
    assert result.indices.max() < math.prod(levels)
    assert result.latents.abs().max() <= 1
    assert torch.equal(quantizer.decode_indices(result.indices), result.latents)


@quick
@given(levels=st.lists(st.integers(2, 9), min_size=1, max_size=4).map(tuple))
def test_fsq_codebook_lists_every_combination_once(levels: tuple[int, ...]) -> None:
    codebook = FSQ(FSQ.Config(levels)).codebook
    assert codebook is not None
    assert codebook.shape == (math.prod(levels), len(levels))
    assert len(codebook.unique(dim=0)) == math.prod(levels)
    digits = np.stack(np.unravel_index(np.arange(math.prod(levels)), levels, order="F"), 1)  # first level fastest
    half = np.array(levels) // 2
    np.testing.assert_allclose(codebook.numpy(), (digits - half) / half, rtol=1e-6)


@pytest.mark.parametrize("levels", [2, 3, 4, 5, 8])
def test_fsq_reaches_every_level_and_centres_on_zero(levels: int) -> None:
    quantizer = FSQ(FSQ.Config((levels,))).eval()
    z = torch.linspace(-12, 12, 4001).view(1, 1, 1, -1)
    assert quantizer(z).indices.unique().tolist() == list(range(levels))
    assert float(quantizer(torch.zeros(1, 1, 1, 1)).latents) == 0


def test_fsq_of_two_levels_splits_at_zero() -> None:
    z = torch.tensor([-0.1, 0.1]).view(1, 1, 1, 2).requires_grad_()
    result = FSQ(FSQ.Config((2,)))(z)
    assert result.indices.tolist() == [[[0, 1]]]
    result.latents.sum().backward()
    assert z.grad is not None
    assert z.grad.min() > 0.4  # with the shift of larger even levels it would be 0.001


def test_fsq_gradient_is_that_of_its_bound() -> None:
    z = torch.randn(1, 2, 3, 3).requires_grad_()
    FSQ(FSQ.Config((5, 3)))(z).latents.sum().backward()
    scale = torch.tensor([2.002 / 2, 1.001 / 1]).view(2, 1, 1)
    torch.testing.assert_close(z.grad, (1 - z.detach().tanh().square()) * scale)


def test_fsq_sizes_by_name() -> None:
    assert [math.prod(v) for v in RECOMMENDED.values()] == [15, 64, 240, 512, 1000, 1920, 4375, 15360, 64000]
    named: Any = "2^10"
    assert FSQ.Config(named) == FSQ.Config(("2^10",)) == FSQ.Config((8, 5, 5, 5))
    assert build(FSQ.Config, {"levels": "2^10"}, "fsq", "") == build(FSQ.Config, {"levels": "8,5,5,5"}, "fsq", "")
    assert FSQ(FSQ.Config()).codebook_size == 512


@pytest.mark.parametrize("text", ["1,5", "2^5", "0", "8,x", ""])
def test_fsq_refuses_levels(text: str) -> None:
    with pytest.raises(UsageError, match="levels"):
        build(FSQ.Config, {"levels": text}, "fsq", "")


@pytest.mark.parametrize(
    ("wanted", "given"), [(16, 15), (64, 64), (512, 512), (1024, 1000), (16384, 15360), (10**6, 64000)]
)
def test_fsq_matches_a_codebook_in_bits(wanted: int, given: int) -> None:
    assert FSQ(build(FSQ.Config, FSQ.matched(wanted, 64), "fsq", "")).codebook_size == given


# sqvae


def state(images_seen: int, loss_per_nat: float = 1.0) -> TrainingState:
    return TrainingState(images_seen, 10**6, 48.0, torch.tensor(loss_per_nat))


def test_sqvae_temperature_is_the_authors_at_their_batch() -> None:
    quantizer = seeded(SQVAE, codebook_size=4, dim=2)
    for step in (0, 1000, 100_000):
        quantizer.advance(state(32 * step))
        assert float(quantizer.temperature) == pytest.approx(math.exp(-1e-5 * step), rel=1e-5)
    quantizer.advance(state(10**9))
    assert float(quantizer.temperature) == pytest.approx(1e-3)


def test_sqvae_schedule_is_in_the_state_dict() -> None:
    quantizer = seeded(SQVAE, codebook_size=4, dim=2)
    quantizer.advance(state(10**6, 0.2))
    other = seeded(SQVAE, 1, codebook_size=4, dim=2)
    other.load_state_dict(quantizer.state_dict())
    assert torch.equal(other.temperature, quantizer.temperature)
    assert float(other.latent_weight) == pytest.approx(0.2 / 48)


@pytest.mark.parametrize(("loss", "weight"), [("l2", 1.0), ("l2", 3.0), ("l1", 1.0), ("l1", 0.25)])
def test_arelbo_scaled_to_the_pixel_loss(loss: str, weight: float) -> None:
    """Pixel term + weighted terms has the gradient of the ELBO times w_nat / D, in decoder, encoder and codes.

    The ELBO is the authors' for l2, Gaussian pixel noise at its best scale; for l1 that of Laplace noise.
    """
    torch.manual_seed(0)
    quantizer = seeded(SQVAE, codebook_size=5, dim=3, log_variance_init=0.0)
    images, pixels = torch.randn(2, 3, 8, 8), 3 * 8 * 8
    z = torch.randn(2, 3, 2, 2).requires_grad_()
    decoder = nn.ConvTranspose2d(3, 3, 4, stride=4)
    leaves = [z, *quantizer.parameters(), *decoder.parameters()]

    def errors(latents: Tensor) -> Tensor:
        apart = decoder(latents) - images
        return apart.square() if loss == "l2" else apart.abs()

    torch.manual_seed(1)
    result = quantizer(z)
    error = errors(result.latents).sum() / 2
    raw = {name: term / quantizer.latent_weight for name, term in result.losses.items()}
    nats = pixels / (2 if loss == "l2" else 1) * error.log() + 4 * (raw["entropy"] + raw["noise"])  # four tokens
    expected = torch.autograd.grad(nats, leaves)

    per_nat = weight * (2 if loss == "l2" else 1) * (error / pixels).detach()
    quantizer.advance(TrainingState(0, 1, pixels / 4, per_nat))
    torch.manual_seed(1)
    result = quantizer(z)
    ours = weight * errors(result.latents).mean() + sum(result.losses.values())
    for found, wanted in zip(torch.autograd.grad(ours, leaves), expected, strict=True):
        torch.testing.assert_close(found, wanted * per_nat / pixels, rtol=1e-4, atol=1e-7)


class Noise(Images):
    ids: ClassVar[list[str]] = [str(i) for i in range(16)]

    def load(self, i: int) -> Any:
        return np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize(("loss", "weight"), [("l2", 1.0), ("l2", 3.0), ("l1", 1.0), ("l1", 0.25)])
def test_training_says_what_a_nat_is_worth(
    loss: str, weight: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    monkeypatch.setattr(VQGAN, "advance", lambda self, state: seen.append(float(state.loss_per_nat)))
    recipe = load_recipe(
        "tiny",
        {
            **{"channels": 8, "channel_multipliers": (1, 2), "latent_channels": 8, "resolution": 16, "images": 32},
            **{"batch_size": 8, "log_images": 8, "pixel_loss": loss, "pixel_weight": weight},
        },
    )
    stream = TrainingStream(Noise(), 16, 0, random_crop=False, flip=False)
    fit(build_tokenizer("vqgan", {"codebook_size": 8, "dim": 4}, recipe, 0), stream, recipe, seed=0, folder=tmp_path)
    pixel = [json.loads(line)["loss/pixel"] for line in (tmp_path / "metrics.jsonl").open()]
    factor = 2 if loss == "l2" else 1
    assert seen == pytest.approx([factor * weight, *(factor * term for term in pixel[:-1])], rel=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "name", ["log_variance_init", "temperature", "temperature_decay", "temperature_min", "latent_weight"]
)
def test_sqvae_refuses_what_is_not_a_number(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a finite number"):
        SQVAE.Config(**{name: value})


@pytest.mark.parametrize("mode", ["I", "II", "III", "IV"])
def test_sqvae_variance_modes(mode: str) -> None:
    quantizer = seeded(SQVAE, codebook_size=12, dim=3, variance=mode, log_variance_init=-1.0)
    assert quantizer.in_channels == (3 if mode == "I" else 6)
    z = torch.randn(2, quantizer.in_channels, 4, 4)
    mean, variance = quantizer._split(z)
    shapes = {"I": (1, 1, 1, 1), "II": (2, 1, 1, 1), "III": (2, 1, 4, 4), "IV": (2, 3, 4, 4)}
    assert variance.shape == shapes[mode]
    assert variance.min() > math.exp(-1)
    spread = variance.expand_as(mean).permute(0, 2, 3, 1).reshape(-1, 1, 3)
    rows = mean.permute(0, 2, 3, 1).reshape(-1, 1, 3)
    distance = ((rows - quantizer.codebook).square() / (2 * spread)).sum(2)
    assert torch.equal(quantizer.eval()(z).indices.flatten(), distance.argmin(1))
    p = assignment_logits(rows[:, 0], quantizer.codebook, spread[:, 0]).softmax(1)
    torch.testing.assert_close(p, (-distance).softmax(1))


def test_sqvae_terms_by_hand() -> None:
    """Two codes at equal distance: entropy −log 2; one unit away with variance 2 in each of 3 channels: 3/4."""
    terms = latent_terms(torch.zeros(5, 3), torch.ones(5, 3), torch.full((5, 1), 2.0), torch.zeros(5, 2))
    assert terms["entropy"].tolist() == pytest.approx([-math.log(2)] * 5)
    assert terms["noise"].tolist() == pytest.approx([0.75] * 5)


def test_sqvae_mixture_hardens_with_the_temperature() -> None:
    quantizer = seeded(SQVAE, codebook_size=6, dim=2, log_variance_init=-3.0)
    quantizer.temperature.fill_(1e-6)
    latents = quantizer(torch.randn(1, 2, 5, 5)).latents.permute(0, 2, 3, 1).reshape(-1, 2)
    apart = torch.cdist(latents.detach(), quantizer.codebook).amin(1)
    assert float(apart.max()) < 1e-5


@pytest.mark.parametrize("mode", ["I", "IV"])
@pytest.mark.parametrize("k", [11, 512])
def test_sqvae_in_blocks_is_what_autograd_makes_of_the_equations(mode: str, k: int) -> None:
    """Seven blocks of ragged sizes, in float64, where rounding hides nothing: values and all gradients.

    Of 512 codes the largest logit is found in two steps.
    """
    torch.manual_seed(0)
    z, codes, variance = torch.randn(90, 5).double(), torch.randn(k, 5).double(), torch.rand(90, 5).double() + 0.1
    given = [z, codes, variance if mode == "IV" else variance[:, :1]]
    gumbel, mixed = -torch.empty(90, k).double().exponential_().log(), torch.randn(90, 5).double()

    def found(*noise: Tensor) -> list[Tensor]:
        leaves = [value.clone().requires_grad_() for value in given]
        mixture, indices, terms = noisy_assignment(*leaves, list(noise), torch.tensor(0.7).double())
        per_token = torch.linspace(1, 2, 90) * (3 * terms["entropy"] + terms["noise"])
        ((mixture * mixed).sum() + per_token.sum()).backward()
        return [mixture, indices, *terms.values(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    plain = found(gumbel)
    blocks = found(*gumbel.split(14))
    assert len(plain) == len(blocks) == 7
    for one, other in zip(plain, blocks, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12)


def test_sqvae_in_blocks_holds_its_gradients_where_it_is_nearly_sure() -> None:
    """In float32, with a variance and a temperature that magnify what does not cancel: as the whole, in float64."""
    torch.manual_seed(0)
    z, codes, gumbel = torch.randn(64, 64), torch.randn(512, 64), -torch.empty(64, 512).exponential_().log()
    mixed, variance, temperature = torch.randn(64, 64), torch.full((64, 1), 0.05), torch.tensor(0.001)

    def gradients(dtype: torch.dtype, size: int) -> list[Tensor]:
        leaves = [value.to(dtype, copy=True).requires_grad_() for value in (z, codes, variance)]
        noise = list(gumbel.to(dtype).split(size))
        mixture, _, terms = noisy_assignment(*leaves, noise, temperature.to(dtype))
        ((mixture * mixed.to(dtype)).sum() + 0.01 * (terms["entropy"] + terms["noise"]).sum()).backward()
        return [leaf.grad for leaf in leaves if leaf.grad is not None]

    for exact, blocks in zip(gradients(torch.float64, 64), gradients(torch.float32, 10), strict=True):
        assert float((blocks - exact).abs().max() / exact.abs().max()) < 1e-4


def test_sqvae_keeps_two_matrices_of_tokens_by_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what autograd keeps for the backward pass, all else is small beside them, and the noise is not there."""
    monkeypatch.setattr(sqvae, "WHOLE_BYTES", 2**18)
    monkeypatch.setattr(sqvae, "BLOCK_BYTES", 2**18)
    quantizer, saved = seeded(SQVAE, codebook_size=4096, dim=8), dict[int, int]()

    def keep(value: Tensor) -> Tensor:
        saved[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        result = quantizer(torch.randn(1, 8, 32, 32))
    matrix = 4 * 1024 * 4096
    assert 2 * matrix <= sum(saved.values()) < 2.1 * matrix
    torch.testing.assert_close(result.latents.isfinite().all(), torch.tensor(True))


def test_sqvae_draws_the_noise_that_stored_trainings_drew(monkeypatch: pytest.MonkeyPatch) -> None:
    """However its matrix is cut up afterwards; and what fits one block has the very bits of the equations."""
    quantizer, z = seeded(SQVAE, codebook_size=16, dim=4), torch.randn(2, 4, 3, 3)
    torch.manual_seed(5)
    gumbel = torch.empty(18, 16).exponential_().log().neg()
    logits = assignment_logits(as_rows(z), quantizer.embedding, quantizer._split(z)[1].view(1, 1))
    expected = soft_codes(logits, quantizer.embedding, gumbel, quantizer.temperature)
    torch.manual_seed(5)
    assert torch.equal(as_rows(quantizer(z).latents), expected)
    monkeypatch.setattr(sqvae, "WHOLE_BYTES", 4 * 16 * 5)
    monkeypatch.setattr(sqvae, "BLOCK_BYTES", 4 * 16 * 5)
    monkeypatch.setattr(sqvae, "DRAWN_AT_ONCE", 30)
    torch.manual_seed(5)
    torch.testing.assert_close(as_rows(quantizer(z).latents), expected, rtol=1e-5, atol=1e-6)
    following = torch.rand(3)
    torch.manual_seed(5)
    noise = sqvae.gumbel_noise(torch.empty(18, 4), 16)
    assert [len(block) for block in noise] == [5, 5, 5, 3]  # each in pieces of 30, the last one smaller
    assert torch.equal(torch.cat(noise), gumbel)
    assert torch.equal(torch.rand(3), following)


def test_sqvae_noise_of_many_codes_is_gumbels_however_a_batch_is_cut_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(*tokens: int, codes: int = 8192) -> Tensor:
        torch.manual_seed(3)
        return torch.cat([block for count in tokens for block in sqvae.gumbel_noise(torch.empty(count, 4), codes)])

    noise = drawn(64)
    assert noise.shape == (64, 8192)
    assert kstest(noise.flatten().numpy(), gumbel_r.cdf).pvalue > 0.01
    beyond = noise.numel() * -math.expm1(-math.exp(-9))  # 65 of Gumbel's numbers
    assert int((noise > 9).sum()) == pytest.approx(beyond, abs=4 * math.sqrt(beyond))
    pairs = noise.view(-1, 2)  # of one draw of 64 bits
    assert abs(float(torch.corrcoef(pairs.t())[0, 1])) < 4 / math.sqrt(len(pairs))
    assert torch.equal(drawn(10, 0, 54), noise)
    assert [len(block) for block in sqvae.gumbel_noise(torch.empty(0, 4), 8192)] == [0]
    monkeypatch.setattr(sqvae, "WHOLE_BYTES", 0)
    monkeypatch.setattr(sqvae, "BLOCK_BYTES", 4 * 8192 * 5)
    assert torch.equal(drawn(64), noise)
    monkeypatch.undo()
    for codes in (4096, 4097):
        found = drawn(7, codes=codes), torch.rand(3)
        torch.manual_seed(3)
        assert torch.equal(found[0], torch.empty(7, codes).exponential_().log_().neg_())
        assert torch.equal(found[1], torch.rand(3))


def test_sqvae_noise_is_finite_at_both_ends_of_the_bits() -> None:
    ends = -sqvae._minus_uniform(torch.tensor([-(2**31), 2**31 - 1], dtype=torch.int32))
    assert ends.tolist() == [1 - 2.0**-33, 2.0**-33]


# vaevq


def test_dcr_of_known_codebooks() -> None:
    d = 6
    assert float(squared_w2_to_standard_normal(torch.zeros(50, d))) == d  # all codes at 0: W₂² = d
    cross = torch.cat([torch.eye(d), -torch.eye(d)]).double() * math.sqrt((2 * d - 1) / 2)  # mean 0, covariance I
    assert float(squared_w2_to_standard_normal(cross)) == pytest.approx(0, abs=1e-9)
    assert float(squared_w2_to_standard_normal(cross + 2)) == pytest.approx(4 * d)
    assert float(squared_w2_to_standard_normal(3 * cross)) == pytest.approx(4 * d)  # (3 − 1)² a dimension


def test_dcr_of_normal_samples_is_near_zero() -> None:
    codes = torch.randn(200_000, 4, generator=torch.Generator().manual_seed(0))
    assert 0 <= float(squared_w2_to_standard_normal(codes)) < 1e-3


@quick
@given(seed=st.integers(0, 999), d=st.integers(1, 6))
def test_dcr_against_matrix_square_root(seed: int, d: int) -> None:
    """The general Fréchet formula with scipy's sqrtm, which takes another way than eigenvalues."""
    codes = torch.randn(40, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.5 + 0.2
    mean, covariance = codes.numpy().mean(0), np.cov(codes.numpy(), rowvar=False).reshape(d, d)
    root = np.real(scipy.linalg.sqrtm(covariance @ np.eye(d)))
    expected = mean @ mean + np.trace(covariance + np.eye(d) - 2 * root)
    assert float(squared_w2_to_standard_normal(codes)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("rows", [7, 20])
def test_dcr_gradient(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dcr, "BLOCK_BYTES", rows * 8 * 4)
    codes = torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(squared_w2_to_standard_normal, (codes,))
    # By hand: 2 μ / K + 2 (I − Σ^−½) (e − μ) / (K − 1)
    (gradient,) = torch.autograd.grad(squared_w2_to_standard_normal(codes), codes)
    mean, covariance = moments(codes.detach())
    inverse_root = torch.from_numpy(np.real(np.linalg.inv(scipy.linalg.sqrtm(covariance.numpy()))))
    pull = (codes.detach() - mean) @ (torch.eye(4, dtype=torch.float64) - inverse_root)
    expected = 2 * mean / 20 + 2 * pull / 19
    torch.testing.assert_close(gradient, expected)


def test_dcr_in_blocks_is_that_of_one_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)) + 1000  # a mean that float32 would leave in
    target, found = (torch.full((4,), 1000.0), 4 * torch.eye(4)), []
    for dtype, rows in ((torch.float32, 7), (torch.float64, 20)):
        monkeypatch.setattr(dcr, "BLOCK_BYTES", rows * 8 * 4)
        given_codes = codes.to(dtype).requires_grad_()
        distance = squared_w2_to_normal(given_codes, *target)
        found.append((distance.detach().double(), torch.autograd.grad(distance, given_codes)[0].double()))
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("size", "scale"), [(3, 1.0), (512, 1 / 512), (64, 1e-9)])
def test_dcr_widens_a_small_codebook(size: int, scale: float) -> None:
    """Fewer codes than dimensions, or all codes near zero: the gradient is finite and points outwards."""
    codes = (torch.rand(size, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1) * scale
    codes.requires_grad_()
    distance = squared_w2_to_standard_normal(codes)
    distance.backward()
    assert codes.grad is not None
    assert codes.grad.isfinite().all()
    if scale < 1:
        assert (codes.grad * (codes - codes.mean(0)).detach()).sum() < 0


@quick
@given(seed=st.integers(0, 999), d=st.integers(1, 6), scale=st.sampled_from([1e-3, 0.05, 1.0, 30.0]))
def test_dcr_to_any_normal_against_matrix_square_root(seed: int, d: int, scale: float) -> None:
    noise = torch.Generator().manual_seed(seed)
    codes = torch.randn(40, d, generator=noise, dtype=torch.float64) * 0.5 * scale + 0.2 * scale
    spread = torch.randn(d, d, generator=noise, dtype=torch.float64) * scale
    covariance, mean = spread @ spread.T + 0.1 * scale**2 * torch.eye(d), torch.randn(d, generator=noise) * scale
    own_mean, own = moments(codes)
    root = scipy.linalg.sqrtm(covariance.numpy())
    cross = np.trace(np.real(scipy.linalg.sqrtm(root @ own.numpy() @ root)))
    expected = float((own_mean - mean).square().sum() + own.trace() + covariance.trace()) - 2 * cross
    assert float(squared_w2_to_normal(codes, mean, covariance)) == pytest.approx(expected, rel=1e-6)


def test_dcr_to_the_standard_normal_is_one_of_any() -> None:
    codes = torch.randn(30, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    general = squared_w2_to_normal(codes, torch.zeros(5), torch.eye(5))
    torch.testing.assert_close(general, squared_w2_to_standard_normal(codes), rtol=1e-9, atol=0)
    gradients = (torch.autograd.grad(f, codes)[0] for f in (general, squared_w2_to_standard_normal(codes)))
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


def test_dcr_to_its_own_moments_is_nothing_and_moves_nothing() -> None:
    codes = (0.05 * torch.randn(64, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1.0).detach()
    codes.requires_grad_()
    distance = squared_w2_to_normal(codes, *(part.detach() for part in moments(codes)))
    assert distance.item() == pytest.approx(0, abs=1e-6 * 0.05**2 * 6 * 10)
    assert float(torch.autograd.grad(distance, codes)[0].abs().max()) < 1e-6


@pytest.mark.parametrize("rank", [0, 1, 2, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dcr_to_latents_that_move_in_few_directions(rank: int, dtype: torch.dtype) -> None:
    """Their covariance, in float32, is singular but for its rounding. The others count as 0, and codes leave them."""
    noise = torch.Generator().manual_seed(0)
    latents = torch.randn(500, rank, generator=noise) @ torch.randn(rank, 64, generator=noise) * 0.05
    codes = (torch.randn(80, 64, generator=noise) * 0.1).to(dtype).requires_grad_()
    mean, covariance = moments(latents)
    distance = squared_w2_to_normal(codes, mean, covariance)
    (gradient,) = torch.autograd.grad(distance, codes)
    assert gradient.isfinite().all()
    own_mean, own = moments(codes.detach().double())
    basis, scale, _ = torch.linalg.svd(covariance.double())
    root = basis[:, :rank] * scale[:rank].sqrt()
    cross = torch.linalg.eigvalsh(root.T @ own @ root).clamp(min=0).sqrt().sum()
    expected = (own_mean - mean).square().sum() + own.trace() + scale.sum() - 2 * cross
    assert distance.item() == pytest.approx(expected.item(), rel=1e-2)


def test_dcr_of_what_is_not_finite_is_not_a_number() -> None:
    """The training has words for that, LAPACK has others."""
    codes = torch.randn(8, 3)
    assert squared_w2_to_normal(codes, torch.zeros(3), torch.full((3, 3), math.nan)).isnan()
    assert squared_w2_to_normal(codes, torch.zeros(3), torch.full((3, 3), math.inf)).isnan()
    assert squared_w2_to_normal(codes * math.nan, torch.zeros(3), torch.eye(3)).isnan()


def test_dcr_draws_a_live_target_to_the_codes_as_finite_differences_do() -> None:
    noise = torch.Generator().manual_seed(0)
    codes, spread = (torch.randn(n, 4, generator=noise, dtype=torch.float64) for n in (20, 4))
    mean = torch.randn(4, generator=noise, dtype=torch.float64)

    def distance(codes: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
        return squared_w2_to_normal(codes, mean, spread @ spread.T)

    assert torch.autograd.gradcheck(distance, tuple(part.requires_grad_() for part in (codes, mean, spread)))


@pytest.mark.parametrize("spread", [1.0, 1e-12])
def test_dcr_to_latents_is_finite_for_codes_in_one_point(spread: float) -> None:
    codes = (torch.full((16, 4), 0.3) + spread * 1e-9 * torch.randn(16, 4)).requires_grad_()
    distance = squared_w2_to_normal(codes, torch.zeros(4), 0.01 * torch.eye(4))
    (gradient,) = torch.autograd.grad(distance, codes)
    assert gradient.isfinite().all()
    assert (gradient > 0).all()  # to the latents' mean at 0


def latents_dcr(target: str, **config: Any) -> Any:
    return seeded(VAEVQ, codebook_size=32, dim=3, dcr_target=target, dcr_weight=1.0, dcr_reduction="sum", **config)


@pytest.mark.parametrize("vlq", [True, False])
@pytest.mark.parametrize("target", ["means", "samples"])
def test_dcr_follows_the_running_moments_of_the_latents(target: str, vlq: bool) -> None:
    quantizer = latents_dcr(target, vlq=vlq)
    batches = [torch.randn(2, quantizer.in_channels, 4, 4) * (1 + i) for i in range(3)]
    results = [quantizer(z) for z in batches]
    means = [z[:, :3] for z in batches]
    seen = [r.continuous.detach() for r in results] if vlq and target == "samples" else means
    rows = [z.permute(0, 2, 3, 1).reshape(-1, 3) for z in seen]
    weights = np.array([0.99**2, 0.99, 1.0]) / (0.99**2 + 0.99 + 1.0)
    mean = sum(w * r.mean(0) for w, r in zip(weights, rows, strict=True))
    covariance = sum(w * torch.cov(r.T, correction=0) for w, r in zip(weights, rows, strict=True))
    torch.testing.assert_close(quantizer.latent_mean, mean, check_dtype=False, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(quantizer.latent_covariance, covariance, check_dtype=False, rtol=1e-4, atol=1e-6)
    expected = squared_w2_to_normal(quantizer.embedding, mean, covariance)
    torch.testing.assert_close(results[-1].losses["dcr"], expected, check_dtype=False, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("target", ["prior", "means", "samples"])
@pytest.mark.parametrize("live", ["detached", "live"])
def test_dcr_moves_the_latents_only_where_they_are_a_live_target(target: str, live: str) -> None:
    if (target, live) == ("prior", "live"):
        with pytest.raises(ValueError, match="dcr_moments=live has no meaning"):
            latents_dcr(target, dcr_moments=live)
        return
    z = torch.randn(2, 6, 4, 4).requires_grad_()
    loss = latents_dcr(target, dcr_moments=live)(z).losses["dcr"]
    (at_z,) = torch.autograd.grad(loss, z, allow_unused=True)
    assert (at_z is not None and bool((at_z[:, :3] != 0).any())) == (live == "live")
    if live == "live":
        assert bool((at_z[:, 3:] != 0).any()) == (target == "samples")  # sigma is part of a sample's moments


def test_evaluation_leaves_the_running_moments() -> None:
    quantizer = latents_dcr("means")
    quantizer(torch.randn(2, 6, 4, 4))
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer.eval()(torch.randn(2, 6, 4, 4))
    assert all(torch.equal(before[name], value) for name, value in quantizer.state_dict().items())


def test_dcr_as_a_mean_is_a_share_of_its_sum() -> None:
    summed, meant = (seeded(VAEVQ, codebook_size=8, dim=5, dcr_reduction=r) for r in ("sum", "mean"))
    z = torch.randn(1, 10, 2, 2)
    assert float(summed(z).losses["dcr"]) == pytest.approx(5 * float(meant(z).losses["dcr"]), rel=1e-6)


def test_kl_in_closed_form() -> None:
    mean, log_variance = torch.randn(3, 2, 4, 5), torch.randn(3, 2, 4, 5)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum((1, 2, 3))
    torch.testing.assert_close(kl_per_image(mean, log_variance), expected)
    assert kl_per_image(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)).item() == 0


def test_kl_reductions_differ_by_the_elements_of_an_image() -> None:
    z = torch.randn(2, 8, 3, 3)
    image, mean = (
        seeded(VAEVQ, codebook_size=8, dim=4, kl_weight=1.0, kl_reduction=r)(z).losses["kl"] for r in ("image", "mean")
    )
    assert float(image) == pytest.approx(float(mean) * 4 * 9, rel=1e-5)


def train(quantizer: Quantizer, optimizer: str, steps: int = 20) -> dict[str, Tensor]:
    model = ToyTokenizer(quantizer)
    step = getattr(torch.optim, optimizer)(model.parameters(), lr=0.05)
    for i in range(steps):
        loss, _ = model(torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(i)))
        step.zero_grad()
        loss.backward()
        step.step()
    return {**model.state_dict(), "random state": torch.get_rng_state()}


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@pytest.mark.parametrize("estimator", ["straight_through", "reparameterised"])
@pytest.mark.parametrize("settings", [{}, {"beta_on": "codebook", "init": "normal", "beta": 0.5}])
def test_vaevq_with_everything_off_is_vqgan_to_the_last_bit(
    optimizer: str, estimator: str, settings: dict[str, Any]
) -> None:
    size = {"codebook_size": 16, "dim": 4, **settings}
    ours = train(seeded(VAEVQ, vlq=False, rcs=False, dcr=False, estimator=estimator, **size), optimizer)
    baseline = train(seeded(VQGAN, **size), optimizer)
    assert list(ours) == list(baseline)
    assert all(torch.equal(ours[name], baseline[name]) for name in baseline)


@pytest.mark.parametrize("vlq", [False, True])
@pytest.mark.parametrize("rcs", [False, True])
@pytest.mark.parametrize("dcr", [False, True])
def test_vaevq_switches(vlq: bool, rcs: bool, dcr: bool) -> None:
    quantizer = seeded(VAEVQ, codebook_size=16, dim=4, vlq=vlq, rcs=rcs, dcr=dcr)
    assert quantizer.in_channels == (8 if vlq else 4)
    result = quantizer(torch.randn(2, quantizer.in_channels, 3, 3))
    expected = (
        ({"rcs"} if rcs else {"codebook", "commitment"}) | ({"dcr"} if dcr else set()) | ({"kl"} if vlq else set())
    )
    assert set(result.losses) == expected
    assert (result.continuous is not None) == vlq
    assert ("sigma_median" in result.diagnostics) == vlq


@pytest.mark.parametrize("floor", [0.0, 1.0, 10.0])
def test_rcs_without_vlq_is_half_the_squared_distance(floor: float) -> None:
    """Sigma is 1 there, and a floor under it has nothing to hold up."""
    quantizer = seeded(VAEVQ, codebook_size=16, dim=4, vlq=False, dcr=False, rcs_reduction="sum", rcs_sigma_min=floor)
    z = torch.randn(2, 4, 3, 3).requires_grad_()
    z_q, _ = quantize(z, quantizer.embedding)
    result = quantizer(z)
    torch.testing.assert_close(result.losses["rcs"], 0.5 * (z_q - z).square().sum(1).mean())
    at_z, at_codes = torch.autograd.grad(result.losses["rcs"], [z, quantizer.embedding])
    torch.testing.assert_close(at_z.sum((0, 2, 3)), -at_codes.sum(0))  # symmetric: no stop-gradient on either


@pytest.mark.parametrize(("sigma", "moves"), [("detached", False), ("live", True)])
def test_rcs_moves_sigma_only_when_live(sigma: str, moves: bool) -> None:
    quantizer = seeded(VAEVQ, codebook_size=8, dim=3, rcs_sigma=sigma, rcs_sigma_min=0.0, kl_weight=0.0)
    z = torch.randn(1, 6, 4, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(quantizer(z).losses["rcs"], z)
    assert bool((gradient[:, 3:] != 0).any()) == moves
    assert (gradient[:, 3:] <= 0).all()  # the loss alone only ever raises sigma


def test_rcs_floor_bounds_the_weight() -> None:
    z = torch.cat([torch.randn(1, 3, 4, 4), torch.full((1, 3, 4, 4), -20.0)], 1)  # sigma = 4.5e-5
    free, floored = (
        seeded(VAEVQ, codebook_size=8, dim=3, sigma_init=1.0, rcs_sigma_min=floor, quantize="mean")(z)
        for floor in (0.0, 0.1)
    )
    ratio = (free.losses["rcs"] / floored.losses["rcs"]).item()
    assert ratio == pytest.approx(0.01 * math.exp(20), rel=1e-3)


def test_diagnostics_see_a_collapse_through_the_floor() -> None:
    """What the floor hides from the loss is logged as it is: three of four sigmas are under it, one far."""
    log_variance = torch.tensor([-20.0, -2.0, -2.0, 2.0]).view(1, 1, 2, 2)
    z = torch.cat([torch.zeros(1, 1, 2, 2), log_variance], 1)
    quantizer = seeded(VAEVQ, codebook_size=2, dim=1, quantize="mean", sigma_init=1.0, rcs_sigma_min=1.0)
    quantizer.embedding.data = torch.tensor([[0.5], [9.0]])
    logged = {name: float(value) for name, value in quantizer(z).diagnostics.items()}
    assert logged["precision_max"] == pytest.approx(math.exp(20))
    assert logged["sigma_under_floor"] == 0.75
    assert logged["alignment_weight_max"] == 1.0
    squares = [0.25 * math.exp(-v) for v in (-20, -2, -2, 2)]
    assert logged["alignment_rms"] == pytest.approx(math.sqrt(sum(squares) / 4))
    assert logged["sigma_median"] == pytest.approx(math.exp(-1))


@pytest.mark.parametrize(("log_variance", "clamped"), [(100.0, 20.0), (-100.0, -30.0)])
def test_log_variance_is_clamped(log_variance: float, clamped: float) -> None:
    z = torch.cat([torch.zeros(1, 2, 64, 64), torch.full((1, 2, 64, 64), log_variance)], 1)
    z.requires_grad_()
    result = seeded(VAEVQ, codebook_size=4, dim=2, kl_weight=1.0, kl_reduction="mean", rcs_sigma_min=0.0)(z)
    assert float(result.continuous.detach().std()) == pytest.approx(math.exp(clamped / 2), rel=0.05)
    assert result.losses["kl"].item() == pytest.approx(0.5 * (math.exp(clamped) - 1 - clamped), rel=1e-5)
    (gradient,) = torch.autograd.grad(sum(result.losses.values()) + result.continuous.mean(), z)
    assert gradient.isfinite().all()
    assert (gradient[:, 2:] == 0).all()  # beyond the clamp nothing moves the head


WEIGHTS = [
    (VAEVQ, "rcs_weight", {"rcs"}),
    (VAEVQ, "dcr_weight", {"dcr"}),
    (VAEVQ, "kl_weight", {"kl"}),
    (VAEVQ, "dual_weight", {"continuous_weight"}),
    (SQVAE, "latent_weight", {"entropy", "noise"}),
    (VQGAN, "beta", {"commitment"}),
]


@pytest.mark.parametrize(("cls", "field", "terms"), WEIGHTS, ids=lambda value: value if isinstance(value, str) else "")
def test_twice_the_weight_is_twice_the_term(cls: Any, field: str, terms: set[str]) -> None:
    def weighted(weight: float) -> dict[str, float]:
        quantizer = seeded(cls, codebook_size=8, dim=4, **{field: weight})
        quantizer.advance(state(0))
        torch.manual_seed(1)
        result = quantizer(torch.randn(2, quantizer.in_channels, 4, 4))
        return {"continuous_weight": result.continuous_weight, **{n: v.item() for n, v in result.losses.items()}}

    once, twice = weighted(0.3), weighted(0.6)
    assert all(value != 0 for value in once.values())
    assert twice == pytest.approx({name: value * (2 if name in terms else 1) for name, value in once.items()}, rel=1e-6)


def test_released_keeps_the_authors_balance_under_added_reconstructions() -> None:
    """The authors average the two reconstruction losses that the harness adds, beside rcs with weight 1."""
    assert VAEVQ.presets["released"]["rcs_weight"] == 2 * 1.0
    assert VAEVQ.Config(**VAEVQ.presets["released"]).dual_weight == 1.0


def test_vaevq_samples_in_training_and_not_in_evaluation() -> None:
    quantizer = seeded(VAEVQ, codebook_size=8, dim=3)
    z = torch.randn(2, 6, 4, 4)
    assert not torch.equal(quantizer(z).continuous, quantizer(z).continuous)
    quantizer.eval()
    result = quantizer(z)
    assert torch.equal(result.continuous, z[:, :3])
    assert torch.equal(result.indices, quantize(z[:, :3], quantizer.embedding)[1])  # the mean
    assert torch.equal(result.latents, quantizer(torch.cat([z[:, :3], z[:, 3:] + 5], 1)).latents)


def test_vaevq_evaluates_a_sample_with_the_same_noise_for_every_image() -> None:
    quantizer = seeded(VAEVQ, codebook_size=8, dim=3, evaluate="sample").eval()
    one = torch.randn(1, 6, 4, 4)
    indices = quantizer(torch.cat([one, torch.randn(1, 6, 4, 4), one])).indices
    assert torch.equal(indices[0], indices[2])
    assert torch.equal(indices[:1], quantizer(one).indices)
    certain = torch.cat([one[:, :3], torch.full((1, 3, 4, 4), -30.0)], 1)  # without variance the sample is the mean
    assert torch.equal(quantizer(certain).indices, quantize(one[:, :3], quantizer.embedding)[1])
    assert torch.allclose(quantizer(certain).continuous, one[:, :3], atol=1e-6)
    uncertain = torch.cat([one[:, :3], torch.full((1, 3, 4, 4), 5.0)], 1)
    assert not torch.allclose(quantizer(uncertain).continuous, one[:, :3], atol=0.1)
    assert torch.equal(quantize(quantizer(uncertain).continuous, quantizer.embedding)[1], quantizer(uncertain).indices)
    assert not torch.equal(quantizer(uncertain).indices, quantizer(certain).indices)


@pytest.mark.parametrize(("sigma_init", "sigma"), [(1.0, 2.0), (0.1, 0.2)])
def test_sample_statistics(sigma_init: float, sigma: float) -> None:
    z = torch.cat([torch.full((1, 1, 100, 100), 3.0), torch.full((1, 1, 100, 100), math.log(4))], 1)
    result = seeded(VAEVQ, codebook_size=2, dim=1, sigma_init=sigma_init)(z)
    assert float(result.continuous.mean()) == pytest.approx(3, abs=0.1)
    assert float(result.continuous.std()) == pytest.approx(sigma, rel=0.05)
    assert float(result.diagnostics["sigma_median"]) == pytest.approx(sigma)


def test_vaevq_refuses_what_means_nothing() -> None:
    with pytest.raises(ValueError, match="kl_weight above 0 has no meaning without vlq"):
        VAEVQ.Config(vlq=False, kl_weight=1e-3)
    with pytest.raises(ValueError, match="rcs_sigma_min"):
        VAEVQ.Config(rcs_sigma_min=-1)
    with pytest.raises(ValueError, match="dcr_weight"):
        VAEVQ.Config(dcr_weight=math.nan)
    VAEVQ.Config(vlq=False)
    for preset in VAEVQ.presets.values():  # dropping a component from any preset works too
        for dropped in ("vlq", "rcs", "dcr"):
            build(VAEVQ.Config, {**preset, dropped: False}, "vaevq", "")


@pytest.mark.parametrize("cls", [VQGAN, SQVAE, VAEVQ])
def test_presets_are_valid_settings(cls: Any) -> None:
    assert cls.presets
    for preset in cls.presets.values():
        cls(build(cls.Config, {**preset, "codebook_size": 8, "dim": 4}, cls.__name__, ""))


def test_linear_codebook_is_the_effective_one() -> None:
    quantizer = seeded(VAEVQ, codebook_size=8, dim=3, codebook_param="linear")
    expected = quantizer.embedding @ quantizer.projection.weight.t() + quantizer.projection.bias
    torch.testing.assert_close(quantizer.codebook, expected.detach())
    decoded = quantizer.decode_indices(torch.arange(8).view(1, 2, 4))
    torch.testing.assert_close(decoded.permute(0, 2, 3, 1).reshape(8, 3), expected)


# round trip of the methods of bits, soft assignments, samples and residual levels


SMALLEST: list[tuple[str, dict[str, Any]]] = [
    ("lfq", {"bits": 1}),
    ("bsq", {"bits": 1}),
    *((name, {"codebook_size": 2, "dim": 3}) for name in ("llamagen", "ibq", "softvq", "gq")),
    ("fsq", {"levels": (2,), "symmetric": True}),
    ("rfsq", {"levels": (2,), "steps": 2}),
]
LARGEST: list[tuple[str, dict[str, Any]]] = [
    ("lfq", {"bits": 62}),
    ("bsq", {"bits": 62}),
    *((name, {"codebook_size": 2**18, "dim": 8}) for name in ("llamagen", "ibq", "softvq")),
    ("gq", {"codebook_size": 2**16, "dim": 32, "group": 16}),
    ("fsq", {"levels": (8, 8, 8, 5, 5, 5), "symmetric": True}),
    ("rfsq", {"levels": (8, 8, 8, 5, 5, 5), "steps": 4}),
]


@pytest.mark.parametrize(
    ("name", "config"),
    [*SMALLEST, *(pytest.param(*case, marks=pytest.mark.slow) for case in LARGEST)],
    ids=lambda value: value if isinstance(value, str) else "-".join(str(v) for v in value.values()),
)
def test_codes_of_the_smallest_and_the_largest_codebook_come_back(name: str, config: dict[str, Any]) -> None:
    quantizer = seeded(METHODS.get(name), **config)
    z = 2 * torch.randn(2, quantizer.in_channels, 4, 6)
    trained = quantizer.train()(z)
    assert trained.latents.isfinite().all()
    assert all(loss.isfinite() for loss in trained.losses.values())
    with torch.no_grad():
        result = quantizer.eval()(z)
    assert result.indices.dtype == torch.int64
    assert 0 <= int(result.indices.min()) <= int(result.indices.max()) < quantizer.codebook_size
    assert len(result.indices.unique()) > 1
    torch.testing.assert_close(quantizer.decode_indices(result.indices), result.latents)
    if name in ("lfq", "bsq"):
        assert torch.equal(result.latents > 0, z > 0)
    last = torch.full_like(result.indices, quantizer.codebook_size - 1)
    assert quantizer.decode_indices(last).isfinite().all()


def test_llamagen_keeps_its_narrow_codes() -> None:
    """Of a recipe's codebook_dim it takes what is no wider than its own."""
    matched = METHODS.get("llamagen").matched
    assert [matched(512, dim)["dim"] for dim in (4, 8, 64)] == [4, 8, 8]


def test_bits_are_matched_in_bits() -> None:
    for name in ("lfq", "bsq"):
        assert [METHODS.get(name).matched(size, 64) for size in (2, 512, 1000, 2**18)] == [
            {"bits": 1}, {"bits": 9}, {"bits": 10}, {"bits": 18},
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("cls", "config", "message"),
    [
        ("lfq", {"bits": 63}, "bits must be from 1 to 62"),
        ("lfq", {"bits": 30, "entropy_group": 21}, "entropy_group must be from 0 to 20"),
        ("lfq", {"bits": 18, "entropy_logarithm": "clamped"}, "entropy_group must be at most 14"),
        ("bsq", {"inverse_temperature": 0.0}, "inverse_temperature must be positive"),
        ("gq", {"dim": 10, "group": 4}, "group must divide dim 10"),
        ("softvq", {"splits": 0}, "splits must be at least 1"),
        ("fsq", {"noise_dropout": 0.5}, "noise_dropout has no meaning without symmetric"),
        ("rfsq", {"levels": (8, 8), "steps": 9}, "finer than float32"),
    ],
)
def test_what_means_nothing_is_refused(cls: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        METHODS.get(cls).Config(**config)


def test_softvq_refuses_tokens_that_its_codebooks_do_not_share_out() -> None:
    with pytest.raises(ValueError, match=r"9 tokens of an image cannot be cut into splits=2"):
        seeded(METHODS.get("softvq"), codebook_size=4, dim=3, splits=2)(torch.randn(1, 3, 3, 3))


@pytest.mark.parametrize("name", ["sqvae", "softvq", "gq"])
def test_what_training_decodes_in_place_of_codes_is_scored(name: str) -> None:
    quantizer = seeded(METHODS.get(name), codebook_size=8, dim=4)
    z = torch.randn(1, quantizer.in_channels, 4, 4)
    assert quantizer.train()(z).continuous is None  # it is trained as `latents` already
    continuous = quantizer.eval()(z).continuous
    if name == "softvq":
        unit, codes = torch.nn.functional.normalize(z, dim=1), quantizer.codebook
        weights = (torch.einsum("bdhw,kd->bhwk", unit, codes) / 0.07).softmax(-1)
        torch.testing.assert_close(continuous, torch.einsum("bhwk,kd->bdhw", weights, codes))
    else:
        assert torch.equal(continuous, z[:, :4])


def _gq_rank(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    quantizer = seeded(METHODS.get("gq"), codebook_size=16, dim=4)
    # one rank's divergences are far over 4 bits, the other's 0, and the mean of both is over it
    quantizer.train()(torch.cat([torch.full((1, 4, 3, 3), 9.0 * rank), torch.zeros(1, 4, 3, 3)], 1))
    torch.save([float(m) for m in (quantizer.multiplier, quantizer.excess, quantizer.shortfall)], f"{folder}/{rank}")
    torch.distributed.barrier()


def test_gq_moves_its_multipliers_by_the_divergences_of_all_ranks(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_gq_rank, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        assert torch.load(tmp_path / str(rank)) == pytest.approx([1.01, 1.01, 1 / 1.01])


def test_gq_moves_its_multipliers_in_training_alone() -> None:
    quantizer = seeded(METHODS.get("gq"), codebook_size=16, dim=4, balance=True)
    quantizer.eval()(torch.randn(2, 8, 3, 3))
    assert quantizer.multiplier == 1
    quantizer.train()(torch.cat([torch.full((1, 4, 3, 3), 9.0), torch.zeros(1, 4, 3, 3)], 1))  # far over 4 bits
    assert float(quantizer.multiplier) == pytest.approx(1.01)
    assert float(quantizer.excess) == pytest.approx(1.01)
    assert float(quantizer.shortfall) == 1
    plain = seeded(METHODS.get("gq"), codebook_size=16, dim=4, balance=False)
    plain.train()(torch.randn(2, 8, 3, 3))
    assert plain.multiplier == 1


# the table


def test_the_table_of_methods_says_what_they_are() -> None:
    """Codes, bits and parameters in docs/methods.md are those of what `tiny` builds; no method is left out."""
    recipe, page = load_recipe("tiny"), Path(__file__).parents[1] / "docs" / "methods.md"
    lines = page.read_text(encoding="utf-8").splitlines()
    rows = [line.strip("|").split("|") for line in lines if line.startswith("| `")]
    told = {cells[0].strip(" `"): [cell.strip() for cell in cells[4:7]] for cells in rows}
    found: dict[str, list[str]] = {}
    totals: dict[str, float] = {}
    for name in filter(METHODS.is_built_in, METHODS.names()):  # other tests have some of their own
        config = METHODS.get(name).matched(recipe.codebook_size, recipe.codebook_dim)
        tokenizer = build_tokenizer(name, dict(config), recipe, 0)
        totals[name], q = tokenizer.parameter_counts()["total"] / 1000, tokenizer.quantizer
        codes = str(q.codebook_size) if q.num_codebooks == 1 else f"{q.codebook_size}^{q.num_codebooks}"
        found[name] = [codes, f"{round(q.bits_per_token, 2):g}"]
    for name, said in found.items():
        said.append(f"{totals[name] - totals['vqgan']:+.1f}" if name != "vqgan" else f"{totals[name]:.1f}")
    assert found == {name: said for name, said in told.items() if name in found}
