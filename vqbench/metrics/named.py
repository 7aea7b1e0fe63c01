"""Protocols of others, by name: how a source of published scores reads images, and what it measures on them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vqbench.errors import UsageError, unknown
from vqbench.metrics.kinds import FeatureMetric, Metric, PairMetric
from vqbench.registry import METRICS


@dataclass(frozen=True)
class NamedProtocol:
    """What differs from ours in one source. All else is as ever: every image once, float32, through the indices."""

    name: str
    source: str
    """Whose rules they are, and where they were read."""
    reading: Mapping[str, Any]
    """Fields of `vqbench.data.decode.Reading`."""
    own: tuple[str, ...] = ()
    """Metrics that the source defines in another way than ours; each says in whose place it stands."""
    rounding: str = ""
    """What becomes of a reconstruction before it is scored; empty: it is rounded, as ours is."""
    substitute: str = ""
    """What of the source cannot be run here, and what stands in for it."""

    @functools.cached_property
    def in_place_of(self) -> dict[str, str]:
        """Our metric → the source's own."""
        return {METRICS.get(name).in_place_of: name for name in self.own}

    def has(self, known: Metric) -> bool:
        """Whether a metric can be measured under it: where nothing is rounded, none of rounded images can."""
        of_rounded = isinstance(known, PairMetric | FeatureMetric) and known.values == "rounded"
        return known.name not in self.in_place_of and not (self.rounding and of_rounded)


_AS_STORED = {"small": "enlarge", "upright": False}
"""What all of them do, since they open a file with Pillow, turn nothing and resize whatever it is."""
_TORCHVISION = {"resize": "lanczos", "whole_pixels": "torchvision", **_AS_STORED}
_CV2 = {"resize": "cv2-bilinear-noaa", **_AS_STORED}
_FLOATS = ("rfid_float", "lpips_alex_float", "lpips_vgg_float")

NAMED = {
    known.name: known
    for known in (
        NamedProtocol(
            "taming",
            "CompVis/taming-transformers@3ba01b2: taming/data/base.py; the README names torch-fidelity",
            _CV2,
            substitute="how reconstructions became files is not published: they are rounded, as ours are",
        ),
        NamedProtocol(
            "llamagen",
            "FoundationVision/LlamaGen@ce98ec4: tokenizer/tokenizer_image/reconstruction_vq_ddp.py",
            {"resize": "box+bicubic", **_AS_STORED},
            ("ssim_range2",),
            substitute=(
                "OpenAI's TensorFlow evaluator does not run here: rfid, of the same weights and the same way of "
                "resizing, stands in for its FID. 127.5 x + 128, cut off, is our rounding but for exact halves"
            ),
        ),
        NamedProtocol(
            "var",
            "FoundationVision/VAR@78b9539: utils/data.py, validation",
            {**_TORCHVISION, "scale": 1.125},
            substitute="the source has no evaluation of reconstructions: the definitions are ours",
        ),
        NamedProtocol(
            "bsq",
            "zhaoyue-zephyrus/bsq-vit@37d212d: scripts/main_image_tokenizer.py, transcoder/evaluations",
            _TORCHVISION,
            (*_FLOATS, "psnr_float", "ssim_float"),
            rounding="none: every metric sees floats, clamped to [-1, 1]",
            substitute="the source computes in 16-bit autocast: here it is float32",
        ),
        NamedProtocol(
            "seed_voken",
            "TencentARC/SEED-Voken@b9a17ea: evaluation_image.py",
            _CV2,
            (*_FLOATS, "psnr_truncated", "ssim_truncated"),
            rounding="none for FID and LPIPS, which see floats clamped to [-1, 1]; PSNR and SSIM see 8 bits cut off",
        ),
        NamedProtocol(
            "native",
            "ours, of each image at its own size; below and to the right its edge is repeated up to what the tokenizer "
            "takes, and cut off again before it is scored",
            {"whole": True, "small": "refuse", "scale": 1.0, "whole_pixels": "rounded"},
        ),
    )
}
OURS = "ours"


def named_protocol(name: str) -> NamedProtocol | None:
    """The protocol that `--protocol` names; None for ours. Raises UsageError, with the nearest names, for any other."""
    if name in ("", OURS):
        return None
    if name not in NAMED:
        raise unknown("protocol", name, (OURS, *NAMED), "for example: --protocol taming")
    return NAMED[name]


def refuse_other_definition(known: Metric, protocol: NamedProtocol) -> None:
    """Raise UsageError where a source defines a metric in another way, or measures nothing on rounded images."""
    if protocol.has(known):
        return
    other = protocol.in_place_of.get(known.name)
    what = f"{known.name} is no metric of protocol {protocol.name}"
    if other:
        raise UsageError(f"{what}, which has {other} in its place", f"--metrics {other}, or leave --protocol out")
    own = ",".join(protocol.own)
    raise UsageError(f"{what}, which rounds nothing before it measures", f"--metrics {own}, or leave --protocol out")
