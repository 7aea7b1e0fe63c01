"""Products of rows with codes: their values, and by which library they are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from vqbench.methods import entropy
from vqbench.methods import products as module
from vqbench.methods.entropy import assign
from vqbench.methods.mmd import squared_mmd
from vqbench.methods.nearest import nearest
from vqbench.methods.products import FEWEST_ROWS, ieee_products, products

ON_A_CPU = "mkldnn::_linear_pointwise"


class Operators(TorchDispatchMode):
    """Names of what runs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.sizes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        if func.name() == ON_A_CPU:
            self.sizes.add(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


def made_by(left: Tensor, right: Tensor, **options: bool) -> list[str]:
    with Operators() as operators:
        products(left, right, **options)
    return [name for name in operators.names if name in (ON_A_CPU, "aten::mm")]


def laid_out(matrix: Tensor, layout: str) -> Tensor:
    """The same numbers, in rows, in columns or with gaps between the rows."""
    if layout == "columns":
        return matrix.t().contiguous().t()
    return torch.cat([matrix, matrix], 1)[:, : matrix.shape[1]] if layout == "gaps" else matrix


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 70),
    k=st.integers(1, 90),
    c=st.integers(1, 70),
    biased=st.booleans(),
    layouts=st.tuples(*[st.sampled_from(["rows", "columns", "gaps"])] * 2),
    wide=st.booleans(),
    seed=st.integers(0, 99),
)
def test_products_are_those_of_float64(
    n: int, k: int, c: int, biased: bool, layouts: tuple[str, str], wide: bool, seed: int
) -> None:
    noise = torch.Generator().manual_seed(seed)
    left, right, bias = (torch.randn(size, generator=noise, dtype=torch.float64) for size in ((n, c), (k, c), (k,)))
    expected = left @ right.t() + (bias if biased else 0)
    dtype = torch.float64 if wide else torch.float32
    given_left, given_right = (laid_out(m.to(dtype), layout) for m, layout in zip((left, right), layouts, strict=True))
    found = products(given_left, given_right, bias.to(dtype) if biased else None)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-10 if wide else 1e-4)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="a torch without oneDNN")
def test_a_cpu_has_them_from_onednn() -> None:
    left, right = torch.randn(FEWEST_ROWS, 8), torch.randn(40, 8)
    assert made_by(left, right) == made_by(left, right.t().contiguous().t()) == [ON_A_CPU]


def test_what_onednn_is_slow_at_and_what_is_stored_are_torchs_own() -> None:
    left, right = torch.randn(FEWEST_ROWS, 8), torch.randn(40, 8)
    assert made_by(left[1:], right) == ["aten::mm"]
    assert made_by(left, laid_out(right, "gaps")) == ["aten::mm"]
    assert made_by(laid_out(left, "gaps"), right) == ["aten::mm"]
    assert made_by(left, right, of_several=False) == ["aten::mm"]


def test_they_are_torchs_own_where_onednn_is_off_missing_or_another(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = torch.randn(FEWEST_ROWS, 8), torch.randn(40, 8)
    with monkeypatch.context() as off:
        off.setattr(torch.backends.mkldnn, "enabled", False)
        assert made_by(left, right) == ["aten::mm"]
    assert torch.backends.mkldnn.enabled
    module._linear_of_onednn.cache_clear()
    monkeypatch.setattr(module, "_ARGUMENTS", "(Tensor X, Tensor W)")
    try:
        assert made_by(left, right) == ["aten::mm"]
    finally:
        module._linear_of_onednn.cache_clear()


def test_onednn_meets_one_size_however_many_rows_there_are() -> None:
    """It keeps memory for each: an evaluation of images of all sizes would fill it."""
    codes = torch.randn(4096, 16)
    with Operators() as operators:
        for rows in (2000, 2001, 2500, 3333):
            nearest(torch.randn(rows, 16), codes)
            assign(torch.randn(rows, 16), codes, values=codes)
    assert len(operators.sizes) == (2 + 1 if torch.backends.mkldnn.is_available() else 0)  # mixtures: rows of 4096 too


def test_one_block_is_torchs_own() -> None:
    """As trainings of small models had it, whose last bits stay."""
    codes = torch.randn(512, 16)
    with Operators() as operators:
        nearest(torch.randn(1024, 16), codes)
        assign(torch.randn(1024, 16), codes, values=codes, entropy_temperature=1.0)
    assert ON_A_CPU not in operators.names


Made = Callable[[list[Tensor]], list[Tensor]]


def soft(matrices: list[Tensor]) -> list[Tensor]:
    left, right, values = matrices
    return [*assign(left, right, right[:, 0], values=values, entropy_temperature=0.7)[1:]]


def entropies_alone(matrices: list[Tensor]) -> list[Tensor]:
    left, right, _ = matrices
    found = assign(left, right, entropy_temperature=0.7)
    return [found.per_sample, found.mean]


def discrepancy(matrices: list[Tensor]) -> list[Tensor]:
    return [squared_mmd(matrices[1], matrices[0])]


@pytest.mark.parametrize("made", [soft, entropies_alone, discrepancy])
def test_values_and_gradients_by_onednn_are_those_of_float64(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entropy, "BLOCK_BYTES", 64 * 4 * 600)  # several blocks of 64 rows
    monkeypatch.setattr(entropy, "BLOCK_BYTES_A_THREAD", 64 * 4 * 600)
    noise = torch.Generator().manual_seed(0)
    exact = [torch.randn(size, generator=noise, dtype=torch.float64) for size in ((512, 24), (600, 24), (600, 20))]
    outcomes = []
    for dtype in (torch.float64, torch.float32):
        leaves = [matrix.to(dtype, copy=True).requires_grad_() for matrix in exact]
        with Operators() as operators:
            found = made(leaves)
            sum(((index + 1) * part.square()).sum() for index, part in enumerate(found)).backward()
        assert (ON_A_CPU in operators.names) == (dtype == torch.float32 and torch.backends.mkldnn.is_available())
        outcomes.append([*found, *(leaf.grad for leaf in leaves if leaf.grad is not None)])
    assert len(outcomes[0]) == len(outcomes[1])
    for expected, part in zip(*outcomes, strict=True):
        torch.testing.assert_close(part.double(), expected, rtol=0, atol=2e-5 * expected.detach().abs().max().item())


def test_a_bias_of_another_layout_is_not_read_beyond_its_end() -> None:
    left, right = torch.randn(64, 8), torch.randn(50, 8)
    for bias in (
        torch.randn(1).expand(50),
        torch.randn(100)[::2],
        torch.randn(()),
        torch.randn(1),
        torch.randn(64, 50),
    ):
        torch.testing.assert_close(products(left, right, bias), left @ right.t() + bias)
    assert products(torch.randn(64, 0), torch.randn(50, 0)).tolist() == torch.zeros(64, 50).tolist()


def test_operations_of_a_look_up_are_counted() -> None:
    n, k, d = 4096, 4096, 16  # several blocks
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        nearest(torch.randn(n, d), torch.randn(k, d))
    assert counter.get_total_flops() == 2 * n * k * d


@pytest.mark.parametrize("asked", ["ieee", "tf32", "bf16"])
def test_products_are_whole_float32_whatever_is_allowed(asked: str) -> None:
    setting: Any = torch.backends.mkldnn.matmul
    before = setting.fp32_precision
    setting.fp32_precision = asked
    try:
        with ieee_products(torch.device("cpu")):
            assert setting.fp32_precision == "ieee"
        assert setting.fp32_precision == asked
    finally:
        setting.fp32_precision = before
