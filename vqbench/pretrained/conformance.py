"""What a tokenizer that is trained already must hold to before it is scored: `vqbench check` of a source.

Looked at on crops of photographs. It finds what scores would not show, or show as a bad tokenizer: another range of
values than the network was trained on, statistics of the batch, an answer that chance or an earlier image has part in.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vqbench.checks.suite import Property, judged
from vqbench.checks.toy import NotApplicableError, require, same
from vqbench.data.images import Images
from vqbench.data.photos import Photos
from vqbench.errors import UsageError
from vqbench.inputs import to_input
from vqbench.metrics.pixels import psnr
from vqbench.metrics.values import to_8_bits
from vqbench.pretrained.external import Declared, ExternalCodec, ExternalError, told
from vqbench.pretrained.opened import Opened

SIDE = 256
"""Of the images, in pixels, where a tokenizer does not say what it takes."""
BATCH = 4
RANGES = ((-1.0, 1.0), (0.0, 1.0), (-0.5, 0.5), (0.0, 255.0))
"""What networks take, and give, for black and for white."""
_GAIN, _PICTURE = 1.0, 15.0  # dB: what tells another range from chance, and a picture from a grey field
_TIES = 100  # one token in so many may be decided otherwise by a sum in another order
_STEP = 1 / 127.5  # of 8 bits


class Trial:
    """One tokenizer and a batch of photographs, encoded and decoded once."""

    def __init__(self, opened: Opened, images: Tensor | None = None) -> None:
        self.codec: Any = opened.codec
        self.facts = opened.facts
        self.size = self._own_size() if images is None else (images.shape[2], images.shape[3])
        """(height, width) of the images."""
        self.pixels = photographs(*self.size, self.channels) if images is None else images
        self.images = to_input(self.pixels)
        self.broken = False
        """Whether it gave nothing that could be looked at."""

    @property
    def channels(self) -> int:
        """Of an image."""
        return self.facts.image_channels

    def _own_size(self) -> tuple[int, int]:
        declared = self.codec.quantizer
        if isinstance(declared, Declared) and declared.sizes:
            return declared.sizes[0]
        side = self.facts.resolution or SIDE
        near = max(1, round(side / self.facts.step)) * self.facts.step
        return near, near

    @functools.cached_property
    def indices(self) -> Tensor:
        """Of the batch."""
        return self.encode(self.images)

    @functools.cached_property
    def decoded(self) -> Tensor:
        """The reconstructions of the batch."""
        return self.decode(self.indices)

    @torch.no_grad()
    def encode(self, images: Tensor, seed: int = 0) -> Tensor:
        """Indices, as evaluation asks for them, from a random state that `seed` sets."""
        torch.manual_seed(seed)
        indices: Tensor = self.codec.to_indices(images)
        return indices

    @torch.no_grad()
    def decode(self, indices: Tensor, seed: int = 0) -> Tensor:
        """Images, as evaluation asks for them, from a random state that `seed` sets."""
        torch.manual_seed(seed)
        images: Tensor = self.codec.from_indices(indices)
        return images


def photographs(height: int, width: int, channels: int = 3, count: int = BATCH) -> Tensor:
    """uint8 (count, channels, height, width): crops of the free photographs of `photos`, resized where that is asked.

    Grey ones for one channel. Raises NotApplicableError for other numbers of channels than 1 and 3.
    """
    if channels not in (1, 3):
        raise NotApplicableError(f"there are no photographs of {channels} channels")
    crops = _crops()
    chosen = (
        Image.fromarray(crops.load(i)) for i in np.linspace(0, len(crops) - 1, count).round().astype(int).tolist()
    )
    shown = (crop.convert("RGB" if channels == 3 else "L").resize((width, height)) for crop in chosen)
    pixels = np.stack([np.asarray(crop).reshape(height, width, channels) for crop in shown])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


@functools.cache
def _crops() -> Images:
    return Photos("", SIDE, None).validation


def shapes(trial: Trial) -> str:
    """Indices are whole numbers (B, *tokens) or (B, *tokens, G); images are floats of the size of those encoded."""
    indices, images, books = trial.indices, trial.decoded, trial.codec.quantizer.num_codebooks
    whole = not (indices.is_floating_point() or indices.is_complex() or indices.dtype is torch.bool)
    require(whole, f"indices are {indices.dtype}, expected whole numbers")
    ends = books == 1 or (indices.ndim > 2 and indices.shape[-1] == books)
    axes = "(B, *tokens, G)" if books > 1 else "(B, *tokens)"
    fits = indices.ndim > 1 and len(indices) == len(trial.images) and ends
    require(fits, f"indices {tuple(indices.shape)} of {BATCH} images in {books} codebooks, expected {axes}")
    require(images.is_floating_point(), f"decode gives {images.dtype}, expected floats")
    require(images.shape == trial.images.shape, f"{tuple(trial.images.shape)} comes back as {tuple(images.shape)}")
    f, (height, width) = trial.facts.downsampling, trial.size
    tokens = indices[0].numel() // books
    on_grid = f is None or tokens == (height // f) * (width // f)
    require(on_grid, f"{tokens} tokens of {height}×{width} px, and downsampling {f} is declared")
    return f"{tuple(indices.shape)} of {tuple(images.shape)}: {tokens} tokens an image"


def index_range(trial: Trial) -> str:
    """Every index is in [0, codebook_size)."""
    low, high, size = int(trial.indices.min()), int(trial.indices.max()), trial.codec.quantizer.codebook_size
    require(low >= 0 and high < size, f"indices reach from {low} to {high}, outside [0, {size})")
    return f"{low} to {high} in [0, {size}), {len(set(trial.indices.flatten().tolist())):,} different"


def image_range(trial: Trial) -> str:
    """No other range of values than the one it is used with gives a much better picture: such was its training's."""
    if trial.decoded.shape != trial.images.shape:
        raise NotApplicableError("not looked at, for images come back in another size")
    encode, decode, own = _without_range(trial.codec)
    found: dict[tuple[tuple[float, float], tuple[float, float]], float] = {}
    with torch.no_grad():
        for taken in dict.fromkeys((own, *RANGES)):
            low, high = taken
            try:
                raw = decode(encode(trial.images * ((high - low) / 2) + (high + low) / 2))
            except ExternalError:
                if taken == own:
                    raise
                continue
            for given in dict.fromkeys((own, *RANGES)):
                low, high = given
                pictures = to_8_bits((raw - (high + low) / 2) / ((high - low) / 2))
                found[taken, given] = float(psnr(trial.pixels, pictures).mean())
    ours, best = found[own, own], max(found, key=lambda pair: found[pair])
    if found[best] < _PICTURE:
        what = f"no picture in any range, {found[best]:.1f} dB at best"
        raise NotApplicableError(f"{what}: it is hardly trained, or not on anything like photographs")
    if found[best] - ours > _GAIN:
        inside, outside = (f"[{low:g}, {high:g}]" for low, high in best)
        declare = f"input_range = ({best[0][0]:g}, {best[0][1]:g})"
        convert = f"encode takes {inside} and decode gives {outside}: convert one of them"
        what = f"{ours:.1f} dB with values in [{own[0]:g}, {own[1]:g}], {found[best]:.1f} dB in {inside}"
        raise AssertionError(f"{what}: it was trained on that; {declare if inside == outside else convert}")
    return f"{ours:.1f} dB with values in [{own[0]:g}, {own[1]:g}], no more in any other range"


def _without_range(codec: Any) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], tuple[float, float]]:
    """Encoder and decoder without a conversion of values, and the range that they are used with."""
    if isinstance(codec, ExternalCodec):
        return codec.encoded, codec.decoded, codec.input_range
    return codec.to_indices, codec.from_indices, RANGES[0]


def ignores_other_images(trial: Trial) -> str:
    """An image has the same indices, and the same reconstruction of them, in a batch as in half of it."""
    whole, half = trial.indices, len(trial.images) // 2
    halves = torch.cat([trial.encode(trial.images[:half]), trial.encode(trial.images[half:])])
    require(whole.shape == halves.shape, f"indices {tuple(whole.shape)} of the batch, {tuple(halves.shape)} of halves")
    moved = int((whole != halves).sum())
    require(moved <= whole.numel() // _TIES, f"{moved:,} of {whole.numel():,} indices are others in half of the batch")
    decoded = torch.cat([trial.decode(whole[:half]), trial.decode(whole[half:])])
    apart = float((decoded - trial.decoded).abs().max())
    require(apart <= _STEP, f"the same indices decode to images {apart / _STEP:.3g} of 255 apart in half of the batch")
    return f"{whole.numel() - moved:,} of {whole.numel():,} indices the same in a batch and in halves"


def deterministic(trial: Trial) -> str:
    """Twice the same indices and images, whatever the random seed."""
    again = trial.encode(trial.images, seed=1)
    moved = int((again != trial.indices).sum()) if again.shape == trial.indices.shape else again.numel()
    require(moved == 0, f"{moved:,} of {again.numel():,} indices are others the second time")
    apart = float((trial.decode(trial.indices, seed=1) - trial.decoded).abs().max())
    require(apart <= 1e-5, f"the same indices decode to images {apart / _STEP:.3g} of 255 apart the second time")
    return "same indices and images under two seeds"


def decodes_indices_alone(trial: Trial) -> str:
    """The decoder hears nothing but the indices: not what was encoded last."""
    first = trial.decoded
    trial.encode(trial.images.flip(0, 3))
    apart = float((trial.decode(trial.indices) - first).abs().max())
    require(apart <= 1e-5, f"after other images the same indices decode to images {apart / _STEP:.3g} of 255 apart")
    return "same images after others were encoded"


def changes_nothing(trial: Trial) -> str:
    """Parameters, buffers and modes are as they were after a pass."""
    if not isinstance(trial.codec, nn.Module) or not trial.codec.state_dict():
        raise NotApplicableError("no torch module that could be looked at")
    before = copy.deepcopy(trial.codec.state_dict())
    trial.decode(trial.encode(trial.images))
    after = trial.codec.state_dict()
    changed = [name for name in before if not same(before[name], after.get(name))]
    changed += [name for name in after if name not in before]
    require(not changed, f"a pass changes {', '.join(changed[:8])}")
    training = [name for name, module in trial.codec.named_modules() if module.training]
    require(not training, f"after a pass {', '.join(training[:8]) or 'it'} is in training mode")
    return f"{len(after):,} tensors unchanged"


def other_sizes(trial: Trial) -> str:
    """Images of another size come back in it, or are refused in a sentence."""
    (height, width), step = trial.size, trial.facts.step
    tried = dict.fromkeys([(height + step, width + step), (height + 1, width + 1)])
    return "; ".join(_at(trial, *size) for size in tried)


def _at(trial: Trial, height: int, width: int) -> str:
    images = photographs(height, width, trial.channels, 1)
    mend = "declare multiple_of = N or sizes = [N]"
    try:
        found = trial.codec.decode(trial.codec.encode(images))
    except ExternalError as error:
        if isinstance(error.__cause__, ValueError):
            return f"{height}×{width} px refused"
        raise AssertionError(f"{height}×{width} px: {error.what}; {mend}") from None
    except (UsageError, ValueError):
        return f"{height}×{width} px refused"
    except Exception as error:
        raise AssertionError(f"{height}×{width} px: {told(error)}; {mend}") from None
    size = tuple(found.shape[2:])
    require(size == (height, width), f"{height}×{width} px come back as {size[0]}×{size[1]}; {mend}")
    return f"{height}×{width} px come back"


PROPERTIES: dict[str, Callable[[Trial], str]] = {
    "shapes and types": shapes,
    "index range": index_range,
    "range of images": image_range,
    "ignores other images": ignores_other_images,
    "deterministic": deterministic,
    "decodes indices alone": decodes_indices_alone,
    "changes nothing": changes_nothing,
    "other sizes": other_sizes,
}


def check_source(opened: Opened, images: Tensor | None = None, only: Iterable[str] | None = None) -> list[Property]:
    """Hold a tokenizer that is trained already to what evaluation takes for granted; the random state is left alone.

    `images` are uint8 (B, C, H, W), two or more, in the place of photographs; `only` names some of PROPERTIES. Nothing
    can be said of a folder of reconstructions: every property is then not applicable. So with what comes after an
    encoder or a decoder that gives nothing usable.
    """
    chosen = PROPERTIES if only is None else {name: PROPERTIES[name] for name in only}
    if opened.codec.quantizer is None:
        return [Property(name, None, "a folder of reconstructions encodes nothing") for name in chosen]
    with torch.random.fork_rng(devices=[]):
        trial = Trial(opened, images)
        return [judged(name, trial, functools.partial(_unless_broken, check)) for name, check in chosen.items()]


def _unless_broken(check: Callable[[Trial], str], trial: Trial) -> str:
    if trial.broken:
        raise NotApplicableError("not looked at, for what is said above")
    try:
        return check(trial)
    except ExternalError:
        trial.broken = True
        raise
