"""A plugin of metrics, an extractor and a dataset, as somebody else would write it; no test is in here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from vqbench.data.dataset import Dataset, Images, digest_of
from vqbench.metrics.kinds import CodecMetric, CodeMetric, Extractor, FrechetDistance, PairMetric
from vqbench.metrics.weights import add_pin
from vqbench.registry import DATASETS, EXTRACTORS, METRICS

NET = ((np.arange(48 * 8) ** 2 % 101) / 50 - 1).astype("<f4").tobytes()
"""What is in the weight file: a projection of 4×4 means of three channels to 8 features."""
SHA256 = "b00c3490d94de27d24a97735d8831f890dd997dfece84705188d156891ed7b52"


@METRICS.register("worst_pixel")
class WorstPixel(PairMetric):
    """The largest error."""

    title, unit, better, digits = "worst pixel", "levels", "lower", 1
    gloss = "how far the worst pixel is off"
    sentence = "Largest difference of an 8-bit value of an image; mean over images."

    def score(self, references, reconstructions):
        return (references.double() - reconstructions.double()).abs().amax(dim=(1, 2, 3))


@METRICS.register("projected_fd")
class ProjectedDistance(FrechetDistance):
    """A Fréchet distance of our own."""

    title, gloss, extractor = "FD (projected)", "how far the sets are apart in eight numbers each", "projection"
    sentence = "Fréchet distance of the 8 features of `projection`."


@EXTRACTORS.register("projection")
class Projection(Extractor):
    """A fixed projection of coarse images."""

    weights = add_pin("projection", "projection.bin", SHA256, needed_for="projected_fd")
    dimensions = 8

    def load(self, weights, home: Path):
        return Project(torch.frombuffer(bytearray(weights.path.read_bytes()), dtype=torch.float32).view(48, 8))


class Project(nn.Module):
    """uint8 (B, 3, H, W) → (B, 8)."""

    def __init__(self, matrix):
        super().__init__()
        self.register_buffer("matrix", matrix)

    def forward(self, images):
        return nn.functional.adaptive_avg_pool2d(images.float(), 4).flatten(1) @ self.matrix


@METRICS.register("top_code")
class TopCode(CodeMetric):
    """How often the commonest code is used."""

    title, better, each_codebook = "top code", "lower", True
    sentence = "Share of tokens that are the commonest code of the split; mean over codebooks."

    def score(self, histogram, facts):
        return histogram.max() / histogram.sum()


@METRICS.register("weights_mb")
class Megabytes(CodecMetric):
    """What the tokenizer weighs."""

    title, unit, interval = "MB", "MB", False
    sentence = "Bytes of all parameters, divided by a million."

    def score(self, codec, pixels):
        return sum(p.numel() * p.element_size() for p in codec.parameters()) / 1e6


class Discs(Images):
    """Discs before a ramp, drawn from their number alone."""

    def __init__(self, kind, count, resolution):
        self.kind, self.resolution = kind, resolution
        self.ids = [f"{kind}/{i}" for i in range(count)]
        self.content_key = digest_of("discs", kind, count, resolution)

    def load(self, i):
        draw = np.random.default_rng([i, self.kind == "val"])
        y, x = np.mgrid[: self.resolution, : self.resolution] / self.resolution
        inside = (x - draw.random()) ** 2 + (y - draw.random()) ** 2 < 0.1
        colours = draw.integers(0, 256, (2, 3))
        image = np.where(inside[..., None], colours[0], colours[1] * x[..., None])
        return image.astype(np.uint8)


@DATASETS.register("discs")
class DiscsDataset(Dataset):
    """Discs of one colour before a ramp of another."""

    reference = slug = protocol_name = "discs"
    split_rule = "Training and validation discs are drawn from different numbers."

    def __init__(self, argument, resolution, data_root):
        super().__init__(argument, resolution, data_root)
        self.train, self.validation = Discs("train", 64, resolution), Discs("val", 12, resolution)
        self.train_digest = self.train.content_key
