"""One pass over validation features: through indices and back, and every metric from that one reconstruction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vqbench.errors import VQBenchError
from vqbench.metrics.codes import CodeHistogram, code_scores
from vqbench.metrics.definitions import default_metrics, metric
from vqbench.metrics.kinds import CodeFacts, CodeMetric
from vqbench.precision import plain_float32
from vqbench.tokenizer import Coder

_EVALUATED = 4096  # tokens at a time


@dataclass(frozen=True)
class FeatureEvaluation:
    """What one pass over validation features found."""

    scores: dict[str, float]
    errors: list[float]
    """Relative error of each item."""
    histogram: NDArray[np.int64]
    """(G, K) counts."""
    indices: NDArray[np.unsignedinteger]
    """(N, tokens of an item, G), in the smallest type that holds K."""


def evaluate(
    coder: Coder, validation: NDArray[np.float32], metrics: Sequence[str] = default_metrics("features")
) -> FeatureEvaluation:
    """Scores of all validation features (N, h, w, D), each once.

    Only through indices, as for images. Raises VQBenchError for an index outside the codebook or features that come
    back not finite.
    """
    device, quantizer = next(coder.parameters()).device, coder.quantizer
    histogram, errors = CodeHistogram(quantizer.codebook_size, quantizer.num_codebooks), []
    codes_used: list[NDArray[np.unsignedinteger]] = []
    items = max(1, _EVALUATED // (validation.shape[1] * validation.shape[2]))
    coder.eval()
    with torch.inference_mode(), plain_float32(device):
        for start in range(0, len(validation), items):
            features = torch.from_numpy(validation[start : start + items]).to(device).permute(0, 3, 1, 2).contiguous()
            indices = coder.to_indices(features)
            decoded = coder.from_indices(indices)
            if decoded.shape != features.shape:
                what = f"decode_indices led to {tuple(decoded.shape)} for features {tuple(features.shape)}"
                raise VQBenchError(what, "`vqbench check` shows what breaks it")
            histogram.update(indices)
            by_item = indices.reshape(len(indices), -1, quantizer.num_codebooks).cpu().numpy()
            codes_used.append(by_item.astype(np.min_scalar_type(quantizer.codebook_size - 1)))
            errors.append((decoded.double() - features.double()).square().sum(1).mean((1, 2)).cpu())
    relative = torch.cat(errors).numpy() / _spread(validation)
    if not np.isfinite(relative).all():
        raise VQBenchError(
            "features that are decoded from indices have non-finite values (NaN or infinity)",
            "training diverged: lower the learning rate, or see the curves of the cell",
        )
    tokens = validation.shape[1] * validation.shape[2]
    of_codes = [known for known in map(metric, metrics) if isinstance(known, CodeMetric)]
    facts = CodeFacts(float(quantizer.bits_per_token), len(validation), tokens)
    scores = {"quantization_error": float(relative.mean())} if "quantization_error" in metrics else {}
    scores |= code_scores(of_codes, histogram.counts, facts)
    return FeatureEvaluation(scores, relative.tolist(), histogram.counts, np.concatenate(codes_used))


def _spread(validation: NDArray[np.float32]) -> float:
    """Mean over validation tokens of |x − m|²: the error of knowing the mean m alone."""
    tokens = validation.reshape(-1, validation.shape[3]).astype(np.float64)
    return float(np.square(tokens - tokens.mean(0)).sum(1).mean())
