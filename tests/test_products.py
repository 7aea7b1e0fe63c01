"""Products of rows with codes: their values, and by which library they are made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from vqbench.methods import products as module
from vqbench.methods.entropy import assign
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
