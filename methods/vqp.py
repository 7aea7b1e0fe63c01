"""Any quantizer of vector-quantize-pytorch, `vqp:CLASS`. See https://github.com/lucidrains/vector-quantize-pytorch."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vqbench.errors import UsageError, unknown
from vqbench.methods.bits import matched_bits
from vqbench.methods.fsq import FSQ
from vqbench.quantizer import Quantized, Quantizer, full_precision

LIBRARY = "vector_quantize_pytorch"
DISTRIBUTION = "vector-quantize-pytorch"

# What its forward gives is no code of a fixed grid of tokens: nothing could be decoded from it.
NOT_QUANTIZERS = ("BinaryMapper", "FSP", "HierarchicalVQ", "RandomProjectionQuantizer", "Sequential")

# How tokens are laid out, and what the adapter has to know of the answer: its business, not a setting.
_LAYOUT = {
    "accept_3d_fmap",
    "accept_image_fmap",
    "channel_first",
    "channel_last",
    "is_channel_first",
    "keep_num_codebooks_dim",
    "return_indices",
}
_CHANNELS_FIRST = ("LatentQuantize",)
_STEPS = 2  # of a residual quantizer, where nothing else was asked for


def _library() -> Any:
    try:
        return importlib.import_module(LIBRARY)
    except ModuleNotFoundError as error:
        if error.name != LIBRARY:
            raise
        raise UsageError(
            f"vqp:CLASS needs {DISTRIBUTION}, which is not installed", "pip install 'vqbench[vqp]'"
        ) from None


def classes() -> list[str]:
    """Names of the library's quantizers. Raises UsageError where it is not installed."""
    library = _library()
    found = (name for name, value in vars(library).items() if inspect.isclass(value) and issubclass(value, nn.Module))
    return sorted(name for name in found if name not in NOT_QUANTIZERS)


def _arguments(name: str) -> dict[str, inspect.Parameter]:
    """What a class takes: its own arguments, and those that it hands on to the quantizer of one group or one step."""
    found = dict(inspect.signature(getattr(_library(), name).__init__).parameters)
    del found["self"]
    hands_on = [key for key, parameter in found.items() if parameter.kind is inspect.Parameter.VAR_KEYWORD]
    for key in hands_on:
        del found[key]
    inner = name.removeprefix("Grouped") if name.startswith("Grouped") else name.removeprefix("Residual")
    inner = {"VQ": "VectorQuantize"}.get(inner, inner)
    return {**(_arguments(inner) if hands_on and inner != name else {}), **found}


def _field(name: str, parameter: inspect.Parameter) -> tuple[str, Any, Any] | None:
    """A field for what can be typed, as dataclasses.make_dataclass takes it; None for what cannot."""
    default = None if parameter.default is inspect.Parameter.empty else parameter.default
    said = str(parameter.annotation)
    if name in _LAYOUT or any(word in said for word in ("Callable", "Module", "dtype", "dict")):
        return None
    if not isinstance(default, bool | int | float | str | None):
        return None
    if name == "levels":
        kind: Any = tuple[int, ...] | None
    else:
        kind = type(default) if isinstance(default, bool | float | str) else Any
    return name, kind, dataclasses.field(default=default)


def _config(name: str) -> type:
    """A frozen dataclass of a class's arguments."""
    fields = [field for key, value in _arguments(name).items() if (field := _field(key, value)) is not None]

    def check(self: Any) -> None:
        with torch.random.fork_rng(devices=[]):
            _made(name, self)

    made: type = dataclasses.make_dataclass(
        "Config", fields, frozen=True, namespace={"__doc__": f"Arguments of {name}.", "__post_init__": check}
    )
    return made


def _made(name: str, config: Any) -> nn.Module:
    """The library's module. ValueError, in its words, for what it refuses."""
    parameters = _arguments(name)
    given = {key: value for key, value in vars(config).items() if value != parameters[key].default}
    given = {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}
    needed = [key for key, p in parameters.items() if p.default is inspect.Parameter.empty and given.get(key) is None]
    if needed:
        raise ValueError(f"{name} needs {', '.join(needed)}")
    if isinstance(given.get("codebook_size"), list) and len(set(given["codebook_size"])) > 1:
        raise ValueError(
            f"codebook_size must be one number: all codebooks have as many codes, not {given['codebook_size']}"
        )
    try:
        module: nn.Module = getattr(_library(), name)(**given)
    except (AssertionError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} refuses its arguments: {error or type(error).__name__}") from None
    return module


@functools.cache
def _member(name: str) -> type[Adapter]:
    known = classes()
    if name in NOT_QUANTIZERS:
        raise UsageError(
            f"{name} of {DISTRIBUTION} gives no codes that a decoder could read",
            f"vqp:CLASS is one of {', '.join(known)}",
        )
    if name not in known:
        raise unknown(f"class of {DISTRIBUTION}", name, known, "write vqp:CLASS, for example vqp:VectorQuantize")
    doc = f"{name} of {DISTRIBUTION} (https://github.com/lucidrains/vector-quantize-pytorch)."
    return type(
        f"vqp:{name}", (Adapter,), {"__doc__": doc, "__module__": __name__, "Config": _config(name), "of": name}
    )


class Adapter(Quantizer):
    """Any quantizer of vector-quantize-pytorch, `vqp:CLASS` (https://github.com/lucidrains/vector-quantize-pytorch).

    Its arguments are the fields of Config, so `--set vqp:LFQ.entropy_loss_weight=0.2`; what cannot be typed (functions,
    modules) is not among them. Losses are the library's, added up. An image is a sequence of tokens, row by row.
    """

    of: ClassVar[str]
    """Name of the library's class."""

    @dataclasses.dataclass(frozen=True)
    class Config:
        """Replaced by the arguments of the class."""

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {}

    @classmethod
    def member(cls, name: str) -> type[Adapter]:
        """The adapter of one class. Raises UsageError where the library is absent, or has no such quantizer."""
        return _member(name)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.module = _made(self.of, config)
        levels: tuple[int, ...] = getattr(config, "levels", None) or ()
        size = getattr(self.module, "codebook_size", None) or getattr(config, "codebook_size", None)
        self.codebook_size = int(size or math.prod(levels))
        dim = getattr(config, "dim", None) or getattr(self.module, "dim", None)
        self.in_channels = self.out_channels = int(dim or len(levels))
        probed = self._probe(torch.zeros(1, self.in_channels, 1, 1))
        self._groups = len(probed) if probed.ndim == 4 else 0
        self.num_codebooks = probed.numel()

    @classmethod
    def matched(cls, codebook_size: int, dim: int) -> dict[str, object]:
        """The size as near as the class has it; of residual quantizers, which take two steps, both together."""
        takes = {field.name for field in dataclasses.fields(cls.Config)}
        found: dict[str, object] = {"num_quantizers": _STEPS} if "num_quantizers" in takes else {}
        root = codebook_size ** (1 / _STEPS) if found else codebook_size
        if "levels" in takes:
            needs = _arguments(cls.of)["dim"].default is inspect.Parameter.empty
            return {**found, **FSQ.matched(round(root), dim), **({"dim": dim} if needs else {})}
        bits = cls.of.endswith("LFQ")
        found["codebook_size"] = 2 ** matched_bits(max(2, round(root))) if bits else max(2, round(root))
        return found if cls.of == "LFQ" else {**found, "dim": dim}

    @torch.no_grad()
    def _probe(self, z: Tensor) -> Tensor:
        """The indices that the library gives; of another module, since codebooks may start from the first batch."""
        with torch.random.fork_rng(devices=[]):
            return self._raw(z, _made(self.of, self.config).eval())[1]

    def _raw(self, z: Tensor, module: nn.Module) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Latents (B, N, d), indices as the library has them, and the losses. ValueError where it has no indices."""
        tokens = z.flatten(2)
        first = self.of in _CHANNELS_FIRST
        answer = module(tokens if first else tokens.transpose(1, 2).contiguous())
        latents, *others = [value for value in answer if isinstance(value, Tensor)]
        indices = [value for value in others if not value.is_floating_point()]
        if not indices:
            raise ValueError(f"{self.of} gives no indices for these arguments")
        losses = [value for value in others if value.is_floating_point()]
        return latents.transpose(1, 2) if first else latents, indices[0].long(), losses

    @full_precision
    def forward(self, z: Tensor) -> Quantized:
        """z (B, d, h, w) to what the library makes of its tokens."""
        latents, indices, losses = self._raw(z, self.module)
        latents = latents.transpose(1, 2).reshape(z.shape)
        if self._groups:
            indices = indices.movedim(0, 2).flatten(2)  # (G, B, N, q)
        shape = (z.shape[0], *z.shape[2:], *((self.num_codebooks,) if self.num_codebooks > 1 else ()))
        summed = {"vqp": torch.stack([loss.sum() for loss in losses]).sum()} if losses else {}
        return Quantized(latents, indices.reshape(shape), summed if self.training else {})

    @full_precision
    def decode_indices(self, indices: Tensor) -> Tensor:
        """Indices as `forward` gives them to (B, d, h, w) latents."""
        batch, height, width = indices.shape[:3]
        rows = indices.reshape(batch, height * width, *indices.shape[3:])
        if self._groups:
            rows = rows.reshape(batch, height * width, self._groups, -1).movedim(2, 0)
        elif self.of.startswith("Residual") and rows.ndim == 2:
            rows = rows.unsqueeze(2)
        ways = (getattr(self.module, name, None) for name in ("get_output_from_indices", "indices_to_codes"))
        decode: Any = next(way for way in ways if way is not None)
        latents: Tensor = decode(rows)
        if self.of not in _CHANNELS_FIRST:
            latents = latents.transpose(1, 2)
        return latents.reshape(batch, self.out_channels, height, width)
