"""Scans drawn from their number alone: grey (`grey`), and of four modalities of one place (`scans`)."""

import numpy as np

from vqbench.data.dataset import Dataset, Images, digest_of
from vqbench.registry import DATASETS


class Drawn(Images):
    """A bright disc with a hole before a ramp; each channel shows it in a brightness of its own."""

    def __init__(self, side, count, resolution, channels):
        self.ids = [f"{side}/{i}" for i in range(count)]
        self.side, self.resolution, self.channels = side, resolution, channels
        self.content_key = digest_of("scans", side, count, resolution, channels)

    def load(self, i):
        draw = np.random.default_rng([i, self.side == "val"])
        y, x = np.mgrid[: self.resolution, : self.resolution] / self.resolution
        away = np.hypot(x - draw.uniform(0.3, 0.7), y - draw.uniform(0.3, 0.7))
        disc, hole = away < draw.uniform(0.2, 0.4), away < draw.uniform(0.05, 0.15)
        levels = draw.integers(40, 256, (2, self.channels))
        pixels = np.where(disc[..., None], levels[0], levels[1] * x[..., None] / 2) * ~hole[..., None]
        return pixels.astype(np.uint8)


class _Scans(Dataset):
    split_rule = "Training and validation images are drawn from different numbers."

    def __init__(self, argument, resolution, data_root):
        super().__init__(argument, resolution, data_root)
        self.train = Drawn("train", 64, resolution, self.channels)
        self.validation = Drawn("val", 12, resolution, self.channels)
        self.train_digest = self.train.content_key


@DATASETS.register("grey")
class Grey(_Scans):
    """Drawn discs of one channel."""

    reference = slug = protocol_name = "grey"
    channels = 1


@DATASETS.register("scans")
class Scans(_Scans):
    """Drawn discs of four channels."""

    reference = slug = protocol_name = "scans"
    channels = 4
