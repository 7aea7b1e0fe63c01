"""Products of rows with codes in whole float32, by whichever library is fastest at them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

FEWEST_ROWS = 16
"""Rows from which on oneDNN is faster."""

_ARGUMENTS = "(Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars, str? algorithm)"


@contextmanager
def ieee_products(device: torch.device) -> Iterator[None]:
    """Matrix products in whole float32 whatever the trainer allows."""
    # A trainer may allow TF32 or bfloat16 for speed; their mantissas assign close codes wrongly.
    backends: Any = torch.backends
    if device.type not in ("cuda", "cpu"):
        yield
        return
    setting = (backends.cuda if device.type == "cuda" else backends.mkldnn).matmul
    asked = setting.fp32_precision
    setting.fp32_precision = "ieee"
    try:
        yield
    finally:
        setting.fp32_precision = asked


def products(left: Tensor, right: Tensor, bias: Tensor | None = None, *, of_several: bool = True) -> Tensor:
    """bias + left·right of left (N, c), right (K, c) and bias (K,), as (N, K), without a gradient.

    On a CPU oneDNN makes them: torch's own are MKL's, which takes twice as long on AMD's. Up to 192 channels, from 12
    codes on, both are the same to the last bit (measured). `of_several`: whether these are one of several blocks of one
    size. Others get torch's own: stored trainings of small models keep their last bits, and oneDNN keeps up to some
    megabytes for each size that it has met.
    """
    if of_several and _suits_onednn(left, right, bias) and (linear := _linear_of_onednn()) is not None:
        found: Tensor = linear(left, right, bias, "none", [], "")
        return found
    return left @ right.t() if bias is None else torch.addmm(bias, left, right.t())


@cache
def _linear_of_onednn() -> Any:
    """A linear layer as Inductor calls it; None where torch has it not, or with other arguments."""
    operator = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return operator if operator is not None and _ARGUMENTS in str(operator.default._schema) else None


def _suits_onednn(left: Tensor, right: Tensor, bias: Tensor | None) -> bool:
    """Whether it can, and is faster: not with few rows, nor (a thousand times slower) with gaps between rows."""
    # Of a fake tensor the operations are counted, by name.
    plain = type(left) is Tensor and left.device.type == "cpu" and left.dtype == right.dtype == torch.float32
    dense = all(matrix.is_contiguous() or matrix.t().is_contiguous() for matrix in (left, right))
    if bias is not None:  # of another shape or layout it is not refused, but read beyond its end
        dense &= bias.is_contiguous() and bias.shape == right.shape[:1] and bias.dtype == torch.float32
    return plain and dense and left.shape[1] > 0 and len(left) >= FEWEST_ROWS and bool(torch.backends.mkldnn.enabled)
