"""Soft assignments block by block, and bits: against the whole matrix in float64, within their bounds of memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vqbench.methods import entropy as entropy_module
from vqbench.methods.bits import all_codes, bit_places, indices_of, joint_bits, signs_of
from vqbench.methods.entropy import Assignment, assign, bit_entropies, entropy_of, mean_bit_probabilities
from vqbench.methods.ibq import IBQ
from vqbench.methods.lfq import LFQ
from vqbench.methods.llamagen import LlamaGen
from vqbench.methods.nearest import largest_product
from vqbench.methods.softvq import SoftVQ
from vqbench.quantizer import Quantizer


def noise(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def whole(
    left: Tensor,
    right: Tensor,
    bias: Tensor,
    values: Tensor,
    hard: bool,
    temperature: float,
    other: float,
    floor: float,
) -> Assignment:
    """As `assign`, of the whole matrix and through autograd."""
    logits = left @ right.t() + bias
    weights, p = (logits / temperature).softmax(1), (logits / other).softmax(1)
    if hard:
        chosen = torch.nn.functional.one_hot(logits.argmax(1), len(right)).to(weights)
        weights = chosen - weights.detach() + weights
    bounded = p.clamp(min=floor) if floor else p
    return Assignment(logits.argmax(1), weights @ values, -(p * bounded.log()).sum(1).mean(), p.mean(0))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entropy_module, "BLOCK_BYTES", 3 * 4 * 7)  # three rows of seven codes


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_assignments_are_those_of_the_whole_matrix(hard: bool, floor: float) -> None:
    given = noise(11, 4, seed=1), noise(7, 4, seed=2), noise(7, seed=3), noise(7, 5, seed=4)
    settings: dict[str, Any] = {"hard": hard, "temperature": 0.7, "floor": floor}
    found = assign(*given[:3], values=given[3], entropy_temperature=0.4, **settings)
    expected = whole(*given, other=0.4, **settings)
    weights = noise(11, 5, seed=5), noise(7, seed=6)
    gradients = []
    for answer in (found, expected):
        assert torch.equal(answer.indices, expected.indices)
        for name in ("latents", "per_sample", "mean"):
            torch.testing.assert_close(getattr(answer, name), getattr(expected, name))
        loss = (answer.latents * weights[0]).sum() + 3 * answer.per_sample + (answer.mean * weights[1]).sum()
        gradients.append(torch.autograd.grad(loss, given))
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.usefixtures("small_blocks")
def test_only_what_is_asked_for_is_made() -> None:
    left, right = noise(5, 3, seed=1), noise(4, 3, seed=2)
    alone = assign(left, right, entropy_temperature=1.0)
    assert (alone.latents.numel(), alone.mean.shape) == (0, (4,))
    assert torch.equal(alone.indices, (left @ right.t()).argmax(1))
    detached = assign(left, right.detach(), values=right)
    assert detached.mean.numel() == 0
    at_left, at_right = torch.autograd.grad(detached.latents.sum(), [left, right])
    weights = (left @ right.detach().t()).softmax(1)
    torch.testing.assert_close(at_right, weights.detach().sum(0)[:, None].expand(-1, 3))
    torch.testing.assert_close(at_left, torch.autograd.grad((weights @ right.detach()).sum(), left)[0])


def test_sure_assignments_are_finite_and_right() -> None:
    """Logits that differ by thousands: no entropy, and no gradient that is not a number."""
    left, right = (1e4 * noise(6, 3, seed=1)).float().detach().requires_grad_(), noise(5, 3, seed=2).float()
    found = assign(left, right, values=right, hard=True, entropy_temperature=0.01)
    assert found.per_sample.item() == pytest.approx(0, abs=1e-6)
    assert found.mean.sum().item() == pytest.approx(1)
    (gradient,) = torch.autograd.grad(found.latents.sum() + found.per_sample + entropy_of(found.mean), left)
    assert gradient.isfinite().all()


def test_largest_product_is_brute_force() -> None:
    left, right = noise(50, 6, seed=1).float(), noise(20, 6, seed=2).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(largest_product(left, right), (left.double() @ right.double().t()).argmax(1))


@pytest.mark.parametrize("group", [0, 1, 2, 3])
def test_entropies_of_bits_are_those_of_all_codes(group: int) -> None:
    bits, log_odds = 5, noise(9, 5)
    found = bit_entropies(log_odds, group, eps=1e-5)
    expected = []
    for part in log_odds.split(group or bits, 1):
        codes = all_codes(bit_places(part.shape[1], "first_highest")).double()
        expected.append((part / 2 @ codes.t()).softmax(1))
    for mean, p in zip(mean_bit_probabilities(log_odds, group), expected, strict=True):
        torch.testing.assert_close(mean, p.mean(0))
    per_sample = torch.stack([-(p * p.log()).sum(1).mean() for p in expected]).sum()
    torch.testing.assert_close(found.per_sample, per_sample)
    torch.testing.assert_close(found.codebook, torch.stack([entropy_of(p.mean(0)) for p in expected]).sum())
    assert torch.autograd.gradcheck(lambda x: tuple(bit_entropies(x, group)), log_odds)


@pytest.mark.parametrize("order", ["first_lowest", "first_highest"])
@pytest.mark.parametrize("bits", [1, 18, 62])
def test_bits_round_trip(bits: int, order: Any) -> None:
    z = torch.randn(2, bits, 3, 4)
    z[0, 0, 0, 0] = 0  # which is −1
    places = bit_places(bits, order)
    indices = indices_of(z, places)
    assert indices.dtype == torch.int64
    assert int(indices.min()) >= 0
    assert torch.equal(signs_of(indices, places), torch.where(z > 0, 1.0, -1.0))
    first = torch.full((1, bits, 1, 1), -1.0)
    first[0, 0] = 1
    assert indices_of(first, places).item() == (1 if order == "first_lowest" else 2 ** (bits - 1))


def test_joint_entropies_of_many_bits_are_of_equal_groups() -> None:
    assert [joint_bits(bits, 0) for bits in (9, 18, 20, 24, 36, 62)] == [9, 18, 20, 12, 18, 16]
    assert joint_bits(18, 9) == 9


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that anything made."""

    found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.found = max(self.found, tensor.untyped_storage().nbytes())
        return out


def step(quantizer: Quantizer, tokens: int) -> int:
    """One training pass and its gradients; bytes of the largest tensor."""
    z = torch.randn(1, quantizer.in_channels, tokens // 8, 8, requires_grad=True)
    with Largest() as largest:
        result = quantizer.train()(z)
        (sum(result.losses.values(), torch.zeros(())) + result.latents.sum()).backward()
    return largest.found


@pytest.mark.parametrize(
    "quantizer",
    [IBQ(IBQ.Config(1024, 4)), SoftVQ(SoftVQ.Config(1024, 4)), LlamaGen(LlamaGen.Config(1024, 4, entropy=True))],
    ids=lambda quantizer: type(quantizer).__name__,
)
def test_no_matrix_of_tokens_by_codes(quantizer: Quantizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entropy_module, "BLOCK_BYTES", 2**16)
    monkeypatch.setattr("vqbench.methods.nearest.SCORE_BYTES", 2**16)
    assert step(quantizer, 512) == 2**16  # where the matrix is 2^21


def test_blocks_are_small_where_there_are_several_and_a_row_is_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(tokens: int, codes: int, channels: int, device: str = "cpu") -> int:
        shapes = (tokens, channels), (codes, channels)
        left, right = (torch.empty(shape, device="meta" if device == "meta" else "cpu") for shape in shapes)
        return entropy_module._Blocks(left, right, None).rows

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert rows(128, 16384, 8) == 128  # 8 MiB, as stored trainings had it
    assert rows(129, 16384, 8) == 32  # 1 MiB a thread
    assert rows(129, 16384, 8, "meta") == 128  # not on a CPU
    assert rows(500, 16384, 256) == 64  # a quarter of the channels
    assert rows(500, 65536, 256) == 32  # but 8 MiB at most
    assert rows(500, 2**22, 8) == 1


def test_two_to_the_18_codes_without_a_matrix_of_their_width() -> None:
    quantizer = LFQ(LFQ.Config(18))
    assert quantizer.codebook is None
    assert step(quantizer, 64) == 4 * 2**18  # the mean assignment; of each token it would be 64 times as much
    assert step(LFQ(LFQ.Config(18, entropy_group=9)), 64) <= 4 * 64 * 32 * 2
