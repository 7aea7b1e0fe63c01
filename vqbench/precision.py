"""Arithmetic that no setting of the process can change: neither training nor numbers may depend on such settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

Convolutions = Literal["ieee", "tf32"]


@contextmanager
def plain_float32(device: torch.device) -> Iterator[None]:
    """No TF32 or bfloat16 inside float32 operations, and no autocast. All other settings of cuDNN stay as they are."""
    with float32_operations(), torch.autocast(device.type, enabled=False):
        yield


def convolutions_in(precision: str, device: torch.device) -> Convolutions:
    """How a training of a recipe's `precision` computes its float32 convolutions; only CUDA has TF32."""
    return "tf32" if device.type == "cuda" and precision != "ieee" else "ieee"


def arithmetic(precision: str, device: torch.device) -> dict[str, str]:
    """What a training of a recipe's `precision` computes with on `device`, as its result says it."""
    convolutions = convolutions_in(precision, device)
    used = "ieee" if (precision, convolutions) == ("tf32", "ieee") else precision
    return {"precision": used, "float32_convolutions": convolutions, "float32_products": "ieee"}


@contextmanager
def float32_operations(convolutions: Convolutions = "ieee") -> Iterator[None]:
    """No TF32 or bfloat16 inside float32 operations, but TF32 in cuDNN's convolutions where that is asked for.

    Products of matrices are a quantizer's, whose close codes ten bits of mantissa would assign wrongly: always ieee.
    """
    backends: Any = torch.backends
    cudnn = [getattr(backends.cudnn, name) for name in ("conv", "rnn")]
    others = [backends.mkldnn.conv, backends.mkldnn.rnn, backends.cuda.matmul, backends.mkldnn.matmul]
    settings = [*cudnn, *others]
    before, older = [setting.fp32_precision for setting in settings], _older_switches()
    if older is not None:  # kept in agreement: torch refuses to read them where they contradict the settings
        _set_older_switches("highest", convolutions == "tf32")
    for setting in settings:
        setting.fp32_precision = convolutions if setting in cudnn else "ieee"
    try:
        yield
    finally:
        if older is not None:
            _set_older_switches(*older)
        for setting, precision in zip(settings, before, strict=True):
            setting.fp32_precision = precision


def _older_switches() -> tuple[str, bool] | None:
    """The two switches that torch had before it had a setting per operation; None where they contradict those."""
    try:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return None


def _set_older_switches(matmul: str, cudnn: bool) -> None:
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = cudnn
