"""Arithmetic that no setting of the process can change: what numbers are compared must not depend on such settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def plain_float32(device: torch.device) -> Iterator[None]:
    """No TF32 or bfloat16 inside float32 operations, and no autocast. All other settings of cuDNN stay as they are."""
    with _full_mantissa(), torch.autocast(device.type, enabled=False):
        yield


@contextmanager
def _full_mantissa() -> Iterator[None]:
    backends: Any = torch.backends
    settings = [getattr(place, name) for place in (backends.cudnn, backends.mkldnn) for name in ("conv", "rnn")]
    settings += [backends.cuda.matmul, backends.mkldnn.matmul]
    before, older = [setting.fp32_precision for setting in settings], _older_switches()
    if older is not None:  # kept in agreement: torch refuses to read them where they contradict the settings
        _set_older_switches("highest", False)
    for setting in settings:
        setting.fp32_precision = "ieee"
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
