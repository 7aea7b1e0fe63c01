"""A tokenizer of somebody else's as an object: what it must have, what it may say of itself, and the codec around it.

What such an object does wrong is one error that names it: no traceback of another library, no wrong number.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import numbers
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vqbench.errors import UsageError
from vqbench.inputs import WHOLE, checked_images

CHANNELS = 3
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SHORTEST_DIGEST = 12
"""Characters of a sha256 that are enough to pin a file."""
_REASON = 400  # characters
_SEE = "docs/pretrained.md says what such an object may declare"


class External(Protocol):
    """The smallest contract. What else an object may say of itself are the fields of `Declared`."""

    codebook_size: int
    """Codes of one codebook, those that there are in effect."""

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] → whole numbers in [0, codebook_size): (B, *tokens), or (B, *tokens, G)."""

    def decode(self, indices: Tensor) -> Tensor:
        """int64 indices as `encode` gave them → (B, 3, H, W) in [-1, 1]."""


@dataclass(frozen=True)
class WeightsFile:
    """A file, or a folder, that an object was made of: it is part of what its numbers depend on."""

    path: Path
    sha256: str = ""
    """What the file must have, or the first 12 characters or more of it; empty: any."""
    licence: str = ""
    trained_on: str = ""


@dataclass(frozen=True)
class Declared:
    """What an object says of itself in attributes of these names; evaluation reads it as a quantizer."""

    codebook_size: int
    num_codebooks: int = 1
    """G: more than one makes the last axis of the indices that of the codebooks."""
    bits_per_token: float = math.nan
    """Where codebooks differ in size; otherwise it follows from the two."""
    name: str = ""
    """What its row is called."""
    multiple_of: int = 1
    """What divides both sides of the images that it takes."""
    sizes: tuple[tuple[int, int], ...] = ()
    """The only (height, width) that it takes; empty: any. As an attribute, a number stands for a square."""
    resolution: int | None = None
    """The side of the images that it was trained on."""
    downsampling: int | None = None
    """Pixels per token along one side, where tokens are a grid."""
    input_range: tuple[float, float] = (-1.0, 1.0)
    """What `encode` takes and `decode` gives for black and for white."""
    dtype: str = "float32"
    """What it computes in. Its weights are made float32 unless it says another type."""
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Protocol in words → metric, or "metric by whom" → score, as its authors print it."""
    source: tuple[WeightsFile, ...] = ()
    """As an attribute, a mapping with `file` and perhaps `sha256`, `licence`, `trained_on`; or several of them."""

    @classmethod
    def of(cls, external: object, where: str, folder: Path) -> Declared:
        """What `external` declares; relative paths are below `folder`.

        Raises UsageError, which begins with `where`, for an object without the three parts of the contract, and for
        an attribute that is not what it should be.
        """
        if isinstance(external, type):
            what = f"{where} returned the class {external.__name__}, not an object of it"
            raise UsageError(what, f"return {external.__name__}()")
        missing = [name for name in ("codebook_size", "encode", "decode") if not hasattr(external, name)]
        missing += [name for name in ("encode", "decode") if not callable(getattr(external, name, print))]
        if missing:
            what = f"{where} returned {_kind(external)} without {' and '.join(missing)}"
            raise UsageError(what, "return an object with codebook_size, encode(images) and decode(indices)")
        read: dict[str, Callable[[Any], Any]] = {**_READERS, "source": lambda value: _source(value, folder)}
        found: dict[str, Any] = {}
        for known in dataclasses.fields(cls):
            value = getattr(external, known.name, None)
            if value is None and known.name != "codebook_size":
                continue
            try:
                found[known.name] = read[known.name](value)
            except _OddError as error:
                what = f"{where}: {known.name} is {_shown(value)}, expected {error}"
                raise UsageError(what, _SEE) from None
        declared = cls(**found)
        if math.isnan(declared.bits_per_token):
            bits = declared.num_codebooks * math.log2(declared.codebook_size)
            declared = dataclasses.replace(declared, bits_per_token=bits)
        return declared

    def refuse_size(self, who: str, height: int, width: int) -> None:
        """Raise UsageError where it does not take images of that size."""
        shape = f"{height}×{width}"
        if self.sizes and (height, width) not in self.sizes:
            known = " or ".join(f"{h}×{w}" for h, w in self.sizes)
            raise UsageError(f"{who} takes images of {known} px alone, not {shape}", f"--resolution {self.sizes[0][0]}")
        step = self.multiple_of
        if height % step or width % step:
            near = max(1, round(min(height, width) / step)) * step
            what = f"{who} takes images whose sides {step} divides, not {shape}"
            raise UsageError(what, f"--resolution {near}")


class ExternalError(UsageError):
    """What an object that was written elsewhere raised, or gave back in the place of what it should."""


class ExternalCodec(nn.Module):
    """An external tokenizer as evaluation, and people, ask one: images in [-1, 1] of any size that it takes.

    The object need not be a torch module. Where it is none, the modules among its attributes are what moves between
    devices, has modes and is counted; without any, it is handed tensors on the CPU. Answers are on the device of what
    was asked.
    """

    def __init__(self, external: Any, declared: Declared, who: str) -> None:
        super().__init__()
        self.external, self.quantizer, self.who = external, declared, who
        self._names: tuple[str, ...] = ()
        if not isinstance(external, nn.Module):
            found = getattr(external, "__dict__", {})
            modules = {name: part for name, part in found.items() if isinstance(part, nn.Module)}
            self.parts, self._names = nn.ModuleList(modules.values()), tuple(modules)
        if declared.dtype == "float32":
            self.float()
        self.to("cpu").eval()

    @property
    def input_range(self) -> tuple[float, float]:
        """What stands for black and for white inside."""
        return self.quantizer.input_range

    def to_indices(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] → int64 (B, *tokens) or (B, *tokens, G).

        Raises UsageError for a size that it does not take, ExternalError where it raises or gives no such indices.
        """
        if images.shape[1] != CHANNELS:
            channels = f"images of {CHANNELS} channels (RGB), not of {images.shape[1]}"
            raise UsageError(f"{self.who} takes {channels}", "give a dataset of RGB images")
        self.quantizer.refuse_size(self.who, *images.shape[2:])
        scale, shift = self._affine
        return self.encoded(images * scale + shift)

    def from_indices(self, indices: Tensor) -> Tensor:
        """Indices → (B, 3, H, W) in [-1, 1]. Raises ExternalError where it raises or gives no images."""
        scale, shift = self._affine
        return ((self.decoded(indices) - shift) / scale).clamp(-1, 1)

    @property
    def _affine(self) -> tuple[float, float]:
        low, high = self.input_range
        return (high - low) / 2, (high + low) / 2

    def encoded(self, values: Tensor) -> Tensor:
        """What the object makes of images in its own range: int64."""
        found = self._ask("encode", values.to(self._device, _DTYPES[self.quantizer.dtype]))
        return self._checked_indices(found, "encode gave", len(values)).to(values.device)

    def decoded(self, indices: Tensor) -> Tensor:
        """What the object makes of indices: float32, in its own range, not clamped."""
        found = self._ask("decode", indices.to(self._device, torch.int64, copy=True))
        return self._checked_images(found, len(indices)).to(indices.device, torch.float32)

    @torch.inference_mode(False)
    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W), uint8 or floats in [-1, 1] → int64 indices. Raises as `Tokenizer.encode` does, too."""
        like = torch.empty(0, device=images.device if isinstance(images, Tensor) else None)
        return self.to_indices(checked_images(images, CHANNELS, self.quantizer.multiple_of, like))

    @torch.inference_mode(False)
    @torch.no_grad()
    def decode(self, indices: Tensor) -> Tensor:
        """Indices as `encode` returned them → images (B, 3, H, W) in [-1, 1]."""
        batch = len(indices) if isinstance(indices, Tensor) and indices.ndim else 0
        return self.from_indices(self._checked_indices(indices, "decode was given", batch))

    def parameter_counts(self) -> dict[str, int]:
        """Values of parameters by part, trainable or not, with "total"; empty where there are none."""
        if isinstance(self.external, nn.Module):
            named = dict(self.external.named_children())
        else:
            named = dict(zip(self._names, self.parts, strict=True))
        counts = {name: sum(p.numel() for p in part.parameters()) for name, part in named.items()}
        total = sum(p.numel() for p in self.parameters())
        counts |= {"other": rest} if (rest := total - sum(counts.values())) > 0 else {}
        return {**{name: count for name, count in counts.items() if count}, "total": total} if total else {}

    @property
    def _device(self) -> torch.device:
        held = next(itertools.chain(self.parameters(), self.buffers()), None)
        return torch.device("cpu") if held is None else held.device

    def _ask(self, name: str, argument: Tensor) -> Any:
        try:
            return getattr(self.external, name)(argument)
        except (UsageError, MemoryError, torch.OutOfMemoryError):
            raise
        except (Exception, SystemExit) as error:
            if "can't allocate memory" in str(error):
                raise
            what = f"{name} raised {told(error)}, for {_kind(argument)}"
            raise self._error(what, f"mend its {name}") from error

    def _checked_indices(self, found: Any, said: str, batch: int) -> Tensor:
        sizes = self.quantizer
        axes = "(B, *tokens, G)" if sizes.num_codebooks > 1 else "(B, *tokens)"
        wanted = f"expected int64 indices {axes} of {batch} images"
        if not isinstance(found, Tensor) or found.dtype not in WHOLE:
            raise self._error(f"{said} {_kind(found)}; {wanted}", "give back indices of codes, not latents")
        shape = tuple(found.shape)
        if len(shape) < 2 or shape[0] != batch or 0 in shape[1:]:
            raise self._error(
                f"{said} {_kind(found)}; {wanted}", "indices.reshape(len(images), -1) has an axis of images"
            )
        if sizes.num_codebooks > 1 and (len(shape) < 3 or shape[-1] != sizes.num_codebooks):
            what = f"{said} {_kind(found)}; {wanted}, the last axis that of {sizes.num_codebooks} codebooks"
            raise self._error(what, "codebooks come last: num_codebooks is their number")
        wide = found.to(torch.int64)  # torch has no smallest value of some others
        if batch:
            low, high = int(wide.min()), int(wide.max())
            if low < 0 or high >= sizes.codebook_size:
                odd = low if low < 0 else high
                what = f"{said} index {odd}; codebook_size {sizes.codebook_size} means 0 to {sizes.codebook_size - 1}"
                raise self._error(what, "indices begin at 0, and codebook_size is that of one codebook")
        return wide

    def _checked_images(self, found: Any, batch: int) -> Tensor:
        wanted = f"expected floats (B, 3, H, W) of {batch} images"
        if not isinstance(found, Tensor):
            raise self._error(f"decode gave {_kind(found)}; {wanted}", "give back the tensor of the images alone")
        if not found.is_floating_point() or found.ndim != 4 or found.shape[:2] != (batch, CHANNELS):
            way = "channels come first, images.permute(0, 3, 1, 2)" if found.shape[-1:] == (CHANNELS,) else _SEE
            raise self._error(f"decode gave {_kind(found)}; {wanted}", way)
        if not bool(found.isfinite().all()):
            what = "decode gave NaN or infinity"
            half = "float32 is what an adapter need not declare" if self.quantizer.dtype != "float32" else ""
            raise self._error(what, half or "are the weights those that the code is for?")
        return found

    def _error(self, what: str, hint: str) -> ExternalError:
        return ExternalError(f"{self.who}: {what}", f"{hint}; `vqbench check {self.who}` shows what else is wrong")


class _OddError(Exception):
    """A value that an attribute must not have; says what it should be."""


def _whole(least: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        try:
            number = operator.index(value)  # numpy's and torch's whole numbers, too
        except TypeError:
            number = least - 1
        if isinstance(value, bool) or number < least:
            raise _OddError(f"a whole number from {least}")
        return number

    return read


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _OddError("a text")
    return value.strip()


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise _OddError("a number")
    return float(value)


def _bits(value: Any) -> float:
    bits = _number(value)
    if bits <= 0:
        raise _OddError("a number above 0")
    return bits


def _sizes(value: Any) -> tuple[tuple[int, int], ...]:
    wanted = "(height, width) pairs, or numbers for squares"
    side = _whole(1)
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise _OddError(wanted)
    pairs = [one if isinstance(one, Sequence) else (one, one) for one in value]
    try:
        return tuple((side(height), side(width)) for height, width in pairs)
    except (ValueError, TypeError, _OddError):
        raise _OddError(wanted) from None


def _range(value: Any) -> tuple[float, float]:
    try:
        low, high = map(_number, value)
    except (TypeError, ValueError, _OddError):
        low = high = 0.0
    if low >= high:
        raise _OddError("two numbers, of black and of white, such as (0, 1)")
    return low, high


def _dtype(value: Any) -> str:
    name = str(value).removeprefix("torch.")
    if name not in _DTYPES:
        raise _OddError(f"one of {', '.join(_DTYPES)}")
    return name


def _published(value: Any) -> dict[str, dict[str, float]]:
    try:
        return {_text(of): {_text(name): _number(score) for name, score in scores.items()}
                for of, scores in value.items()}  # fmt: skip
    except (AttributeError, _OddError):
        raise _OddError("protocol in words → metric → score") from None


def _source(value: Any, folder: Path) -> tuple[WeightsFile, ...]:
    several = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    wanted = "a mapping with file and perhaps sha256, licence, trained_on, or several such"
    files = []
    for one in several:
        if not isinstance(one, Mapping) or "file" not in one:
            raise _OddError(wanted)
        said = dict(one)
        path = folder / Path(said.pop("file")).expanduser()
        for name, text in said.items():
            if name not in ("sha256", "licence", "trained_on") or not isinstance(text, str):
                raise _OddError(wanted)
        pinned = said.get("sha256", "").lower()
        if pinned and (len(pinned) < _SHORTEST_DIGEST or set(pinned) - set("0123456789abcdef")):
            raise _OddError(f"a sha256 of at least {_SHORTEST_DIGEST} hexadecimal characters")
        files.append(WeightsFile(path, pinned, said.get("licence", ""), said.get("trained_on", "")))
    return tuple(files)


_READERS: dict[str, Callable[[Any], Any]] = {
    "codebook_size": _whole(2),
    "num_codebooks": _whole(1),
    "bits_per_token": _bits,
    "name": _text,
    "multiple_of": _whole(1),
    "sizes": _sizes,
    "resolution": _whole(1),
    "downsampling": _whole(1),
    "input_range": _range,
    "dtype": _dtype,
    "published": _published,
}


def told(error: BaseException) -> str:
    """What another's code raised, on one line and not too much of it."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:_REASON]


def _kind(value: object) -> str:
    """What a value is, in words: "float32 (2, 4, 4)", "tuple"."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


def _shown(value: object) -> str:
    return _kind(value) if isinstance(value, Tensor) else repr(value)[:80]
