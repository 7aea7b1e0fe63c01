"""An evaluation of noise by a tokenizer whose numbers can be checked by hand."""

from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from vqbench.metrics.definitions import default_metrics, needed_weights
from vqbench.metrics.evaluation import evaluate

NO_WEIGHTS = tuple(name for name in default_metrics() if not needed_weights([name]))


class Posterize(nn.Module):
    """A tokenizer that can be checked by hand: the mean grey of each 8×8 block, in `levels` steps."""

    def __init__(self, levels=16, shift=0.0):
        super().__init__()
        self.levels, self.shift = levels, shift
        self.quantizer = SimpleNamespace(codebook_size=levels, num_codebooks=1, bits_per_token=np.log2(levels))
        self.dropout, self.batch_norm = nn.Dropout(), nn.BatchNorm2d(3)
        self.calls = []

    def to_indices(self, images):
        assert not any((self.dropout.training, self.batch_norm.training, torch.is_grad_enabled()))
        assert images.dtype == torch.float32
        self.calls.append(len(images))
        grey = nn.functional.avg_pool2d(images.mean(1, keepdim=True), 8).squeeze(1)
        return ((grey + 1) / 2 * self.levels).long().clamp(0, self.levels - 1)

    def from_indices(self, indices):
        value = (indices + 0.5) / self.levels * 2 - 1 + self.shift
        return value[:, None].repeat_interleave(8, 2).repeat_interleave(8, 3).expand(-1, 3, -1, -1).clone()


def photographs(count=11, size=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def run(tokenizer, pixels, metrics=NO_WEIGHTS, **options):
    ids = [f"image{i}" for i in range(len(pixels))]
    device = torch.device("cpu")
    return evaluate(tokenizer, pixels, ids, metrics=metrics, validation_digest="d", device=device, **options)
