"""Methods of bits, soft assignments, Gaussian samples and residual levels against values of the authors' own classes.

The inputs, and from which class each value is: tests/golden/README.md, `quantizers2.npz`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import mse_loss, normalize

from vqbench.methods.bits import indices_of
from vqbench.methods.bsq import BSQ
from vqbench.methods.codebook import as_rows
from vqbench.methods.entropy import mean_bit_probabilities
from vqbench.methods.fsq import FSQ
from vqbench.methods.gq import GaussianQuant
from vqbench.methods.ibq import IBQ
from vqbench.methods.lfq import LFQ
from vqbench.methods.llamagen import LlamaGen
from vqbench.methods.rfsq import RFSQ
from vqbench.methods.softvq import SoftVQ
from vqbench.quantizer import Quantized, Quantizer

GOLDEN = Path(__file__).parent / "golden" / "quantizers2.npz"
K, C, TOKENS = 32, 8, 24

Golden = Callable[[str], Tensor]


@pytest.fixture(scope="module")
def golden() -> Golden:
    arrays = dict(np.load(GOLDEN))

    def get(name: str) -> Tensor:
        array = torch.from_numpy(arrays[name])
        return array.clone().requires_grad_() if array.dtype == torch.float32 and array.ndim > 0 else array

    return get


def agree(actual: Tensor | None, expected: Tensor, absolute: float = 2e-6) -> None:
    assert actual is not None
    torch.testing.assert_close(actual.detach(), expected.detach(), rtol=1e-4, atol=absolute, check_dtype=False)


def run(quantizer: Quantizer, z: Tensor, grad_output: Tensor, losses: float = 1.0) -> Quantized:
    """One training pass and its gradients, of `losses` times all losses and of the decoder's share."""
    result: Quantized = quantizer.train()(z)
    total = sum(result.losses.values(), torch.zeros(()))
    (losses * total + (result.latents * grad_output.detach()).sum()).backward()
    return result


def in_eval(quantizer: Quantizer, z: Tensor) -> Quantized:
    with torch.no_grad():
        result: Quantized = quantizer.eval()(z)
    torch.testing.assert_close(quantizer.decode_indices(result.indices), result.latents)
    return result
