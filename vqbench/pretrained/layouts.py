"""How published networks that are our backbone name its parts, and what of them follows from names and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor

from vqbench.backbone import BackboneConfig
from vqbench.errors import VQBenchError
from vqbench.tokenizer import Tokenizer, seeded_quantizer

NOMINAL = 256
"""Pixels at which attention is placed where a file does not say at which it was trained: levels alone count."""
ANCHOR = "encoder.conv_in.weight"
"""What all families call their first convolution."""
_MODULATION = {"scale": "conv_y", "shift": "conv_b", "conv": "conv"}
_PROJECTIONS = {"to_quantizer": "quant_conv", "from_quantizer": "post_quant_conv"}


class MisfitError(Exception):
    """Tensors that are not of the family: the first name that does not fit, in words."""


@dataclass(frozen=True)
class Layout:
    """Names of a backbone's parts. `{level}` counts from full resolution down, `{from_below}` from the bottom up."""

    down: str = "down.{level}"
    up: str = "up.{level}"
    block: str = "block.{block}"
    attention: str = "attn.{block}"
    downsample: str = "downsample"
    upsample: str = "upsample"
    middle: tuple[str, str, str] = ("mid.block_1", "mid.attn_1", "mid.block_2")
    norm_out: str = "norm_out"
    leaves: Mapping[str, str] = field(
        default_factory=lambda: {
            "shortcut": "nin_shortcut", "query": "q", "key": "k", "value": "v", "out": "proj_out",
        }
    )  # fmt: skip
    """Our name → theirs inside a block, where the two differ."""
    modulated_norm: str = "norm"
    """An attention's norm, where codes modulate it."""


_TAMING = Layout()
_LLAMAGEN = Layout(
    down="conv_blocks.{level}", up="conv_blocks.{from_below}", block="res.{block}", middle=("mid.0", "mid.1", "mid.2")
)
_DIFFUSERS = Layout(
    down="down_blocks.{level}",
    up="up_blocks.{from_below}",
    block="resnets.{block}",
    attention="attentions.{block}",
    downsample="downsamplers.0",
    upsample="upsamplers.0",
    middle=("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"),
    norm_out="conv_norm_out",
    leaves={
        "shortcut": "conv_shortcut", "norm": "group_norm",
        "query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0",
    },
    modulated_norm="spatial_norm",
)  # fmt: skip


@dataclass(frozen=True)
class Family:
    """Whose files, how they name what is in them, and what their look-up is."""

    summary: str
    """Whose networks they are, and how a code is found."""
    tells: tuple[str, ...]
    """Names that are in each of its files; a family before it in FAMILIES has others besides."""
    method: str
    modulated: str = ""
    """The method where the decoder's norms are modulated by codes; empty for a family in which they never, or always,
    are."""
    layout: Layout = _TAMING
    codebook: str = "quantize"
    """The part that holds the codebook, or codebooks."""
    beside: tuple[str, ...] = ()
    """What lies with the codebook and is no part of it."""
    assumes: str = ""
    """What its files do not say, and is taken to be so where a family was recognised and not given."""

    def reads(self, name: str) -> bool:
        """Whether a tensor is part of the tokenizer: each of these must have its place. The rest is named, and left."""
        parts = ("encoder.", "decoder.", f"{self.codebook}.", *(f"{part}." for part in _PROJECTIONS.values()))
        return name.startswith(parts) and name not in self.beside


FAMILIES: Mapping[str, Family] = {
    "llamagen": Family(
        "LlamaGen and Janus: the code of the largest cosine, unit codes to the decoder",
        ("encoder.conv_blocks.0.res.0.conv1.weight",),
        "llamagen",
        layout=_LLAMAGEN,
        beside=("quantize.codebook_used",),
        assumes="codes and latents are taken to be of length 1, as released",
    ),
    "diffusers": Family(
        "VQModel of diffusers, with plain or spatial norms: the nearest code",
        ("encoder.down_blocks.0.resnets.0.conv1.weight",),
        "vqgan",
        modulated="movq",
        layout=_DIFFUSERS,
        assumes="its norms are taken to have 32 groups and its pixels to be from -1 to 1: the config beside it says",
    ),
    "rqvae": Family(
        "RQ-VAE: residual quantization, a token is the sum of the nearest codes of several levels",
        ("encoder.down.0.block.0.conv1.weight", "quantizer.codebooks.0.weight"),
        "rqvae",
        codebook="quantizer",
    ),
    "movq": Family(
        "MoVQGAN, whose decoder's norms are modulated by the codes: the nearest code",
        ("encoder.down.0.block.0.conv1.weight", "decoder.norm_out.conv_y.weight"),
        "movq",
    ),
    "ibq": Family(
        "IBQ of SEED-Voken: the code of the largest product with the latent",
        ("encoder.down.0.block.3.conv1.weight",),
        "ibq",
        assumes="its look-up is taken to be the largest product, for its 4 residual blocks a level, which among "
        "published files in these names only IBQ's have: as taming it would be the nearest code",
    ),
    "taming": Family(
        "taming-transformers, latent diffusion and Chameleon, whose files have the same names: the nearest code",
        ("encoder.down.0.block.0.conv1.weight",),
        "vqgan",
        assumes="its look-up is taken to be the nearest code, as in taming-transformers and latent diffusion: names do "
        "not say it, and as ibq it would be the largest product",
    ),
}
"""By name, the most particular first: which one a file is of is found in this order."""


def recognised(names: Mapping[str, object]) -> str:
    """The family whose names these are; empty where there is none."""
    return next((name for name, family in FAMILIES.items() if all(tell in names for tell in family.tells)), "")


@dataclass(frozen=True)
class Architecture:
    """What names and shapes of a file's tensors say of the network."""

    backbone: BackboneConfig
    method: str
    config: Mapping[str, Any]
    """Of the method."""
    codebooks: Mapping[str, str]
    """Name in the file → in our quantizer."""


def architecture(family: Family, tensors: Mapping[str, Tensor]) -> Architecture:
    """Of the network whose tensors these are. Raises MisfitError where they are not of the family."""
    read = {name: tensor for name, tensor in tensors.items() if family.reads(name)}
    backbone, norm_out = _backbone(family.layout, read), f"decoder.{family.layout.norm_out}"
    method = family.modulated if family.modulated and f"{norm_out}.conv_y.weight" in read else family.method
    config, codebooks = (_residual_codebooks if method == "rqvae" else _codebook)(family, tensors)
    if method == "movq":
        config["modulation_conv"] = f"{norm_out}.conv.weight" in read
    return Architecture(backbone, method, config, codebooks)


def network(family: Family, tensors: Mapping[str, Tensor], kind: type[Tokenizer] = Tokenizer) -> Tokenizer:
    """The tokenizer that a family's tensors make, float32 on the CPU and in eval mode.

    The architecture follows from names and shapes alone. Every tensor that `family.reads` must have its place, and
    none may be missing. Raises MisfitError.
    """
    found = architecture(family, tensors)
    try:
        quantizer = seeded_quantizer(found.method, dict(found.config), seed=0)
        with torch.device("meta"):  # nothing is drawn that is to be replaced
            tokenizer = kind(found.backbone, quantizer)
    except (VQBenchError, ValueError, RuntimeError) as error:
        raise MisfitError(f"its tensors make no tokenizer: {error}") from None
    shapes = {name: tensor.shape for name, tensor in tokenizer.state_dict().items()}
    places = {**places_of(found.backbone, family.layout, shapes), **found.codebooks}
    read = {name: tensor for name, tensor in tensors.items() if family.reads(name)}
    for name in (name for name in read if places.get(name, "").endswith(".codes")):
        read[name] = read[name][:-1]  # RQ-VAE's last row stands for padding
    tokenizer.load_state_dict(_fitted(read, places, shapes), assign=True)
    return tokenizer.eval()


def _shape(tensors: Mapping[str, Tensor], name: str, axes: int, like: str = "") -> torch.Size:
    """Of a tensor that must be there, or else the first whose name begins with `like` is not as it should be."""
    if name not in tensors:
        other = next((n for n in tensors if n.startswith(like) and like), "")
        raise MisfitError(f"'{other}' does not fit, where '{name}' is expected" if other else f"'{name}' is missing")
    shape = tensors[name].shape
    if len(shape) != axes or 0 in shape:
        raise MisfitError(f"'{name}' has the shape {tuple(shape)}, and {axes} axes are expected")
    return shape


def _backbone(layout: Layout, tensors: Mapping[str, Tensor]) -> BackboneConfig:
    query = layout.leaves["query"]

    def inside(level: int, part: str, block: int) -> str:
        return f"encoder.{layout.down.format(level=level)}.{part.format(block=block)}"

    first = _shape(tensors, ANCHOR, 4)
    others = [name for name in tensors if not name.startswith("encoder.conv_")]
    _shape(tensors, f"{inside(0, layout.block, 0)}.conv1.weight", 4, like=next(iter(others), ""))
    levels = next(n for n in count() if f"{inside(n, layout.block, 0)}.conv1.weight" not in tensors)
    blocks = next(n for n in count() if f"{inside(0, layout.block, n)}.conv1.weight" not in tensors)
    widths = [_shape(tensors, f"{inside(n, layout.block, 0)}.conv1.weight", 4)[0] for n in range(levels)]
    if odd := [width for width in widths if width % first[0]]:
        raise MisfitError(f"a level of {odd[0]} channels is no multiple of the first convolution's {first[0]}")
    side = max(NOMINAL, 2 ** (levels - 1))
    attends = [n for n in range(levels) if f"{inside(n, layout.attention, 0)}.{query}.weight" in tensors]
    return BackboneConfig(
        resolution=side,
        channels=first[0],
        channel_multipliers=tuple(width // first[0] for width in widths),
        res_blocks=blocks,
        attention_resolutions=tuple(side // 2**level for level in attends),
        mid_attention=f"encoder.{layout.middle[1]}.{query}.weight" in tensors,
        latent_channels=_shape(tensors, "encoder.conv_out.weight", 4)[0],
        dropout=0.0,
        image_channels=first[1],
    )


def _no_codebook(family: Family, tensors: Mapping[str, Tensor], name: str) -> MisfitError:
    other = next((n for n in tensors if n.startswith("quantize") and n not in family.beside), "")
    if other:
        return MisfitError(f"'{other}' does not fit, where '{name}' is expected")
    return MisfitError(f"'{name}' is missing: there is no codebook, as in an autoencoder with a KL term")


def _codebook(family: Family, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, str]]:
    name = f"{family.codebook}.embedding.weight"
    if name not in tensors:
        raise _no_codebook(family, tensors, name)
    codes, dim = _shape(tensors, name, 2)
    return {"codebook_size": codes, "dim": dim}, {name: "quantizer.embedding"}


_AVERAGES = {"weight": "codes", "cluster_size_ema": "counts", "embed_ema": "sums"}


def _residual_codebooks(family: Family, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, str]]:
    """RQ-VAE's: one for each level, or the same one under the names of all."""

    def names(level: int) -> dict[str, str]:
        return {leaf: f"{family.codebook}.codebooks.{level}.{leaf}" for leaf in _AVERAGES}

    first = names(0)
    if first["weight"] not in tensors:
        raise _no_codebook(family, tensors, first["weight"])
    rows, dim = _shape(tensors, first["weight"], 2)
    levels = [names(level) for level in range(next(n for n in count() if names(n)["weight"] not in tensors))]
    pairs = [(first[leaf], name) for level in levels for leaf, name in level.items()]
    shared = all(a in tensors and b in tensors and torch.equal(tensors[a], tensors[b]) for a, b in pairs)
    books = {
        name: f"quantizer.books.{0 if shared else n}.{_AVERAGES[leaf]}"
        for n, level in enumerate(levels)
        for leaf, name in level.items()
    }
    return {"codebook_size": rows - 1, "dim": dim, "levels": len(levels), "shared": shared}, books


def _modules(backbone: BackboneConfig, layout: Layout) -> dict[str, str]:
    """Our module → theirs, one after the other as data passes."""
    last = len(backbone.channel_multipliers) - 1
    attends = [side in backbone.attention_resolutions for side in backbone.sides]
    middle = [part for part in layout.middle if part != layout.middle[1] or backbone.mid_attention]

    def level(template: str, at: int, blocks: int, then: str) -> list[str]:
        within = template.format(level=at, from_below=last - at)
        kinds = [layout.block, layout.attention] if attends[at] else [layout.block]
        names = [kind.format(block=block) for block in range(blocks) for kind in kinds]
        return [f"{within}.{name}" for name in [*names, *([then] if then else [])]]

    down, up = ["conv_in"], ["conv_in", *middle]
    for at in range(last + 1):
        down += level(layout.down, at, backbone.res_blocks, layout.downsample if at < last else "")
    for at in range(last, -1, -1):
        up += level(layout.up, at, backbone.res_blocks + 1, layout.upsample if at else "")
    down += [*middle, layout.norm_out, "", "conv_out"]  # the nameless is the activation
    names = {f"encoder.layers.{i}": f"encoder.{name}" for i, name in enumerate(down)}
    names |= {f"decoder.layers.{i}": f"decoder.{name}" for i, name in enumerate([*up, layout.norm_out])}
    return names | {"decoder.last": "decoder.conv_out"} | _PROJECTIONS


def places_of(backbone: BackboneConfig, layout: Layout, ours: Mapping[str, object]) -> dict[str, str]:
    """Their name → ours, of all but the quantizer."""
    places = {}
    modules = _modules(backbone, layout)
    for name in ours:
        if name.startswith("quantizer."):
            continue
        module = next(found for depth in (3, 2, 1) if (found := ".".join(name.split(".")[:depth])) in modules)
        *within, leaf = name[len(module) + 1 :].split(".")
        norm = name.rpartition(".")[0]
        if "modulation" in within:
            at = within.index("modulation")
            norm = ".".join([module, *within[:at]])
            within[at : at + 2] = [_MODULATION[within[at + 1]]]
        elif f"{norm}.modulation.scale.weight" in ours:
            within.append("norm_layer")
        modulated = {"norm": layout.modulated_norm} if f"{norm}.modulation.scale.weight" in ours else {}
        theirs = [{**layout.leaves, **modulated}.get(word, word) for word in within]
        places[".".join([modules[module], *theirs, leaf])] = name
    return places


def _fitted(
    tensors: Mapping[str, Tensor], places: Mapping[str, str], shapes: Mapping[str, torch.Size]
) -> dict[str, Tensor]:
    """Our name → tensor. Raises MisfitError for the first, in the file's order, that has no place or another shape."""
    fitted = {}
    for name, tensor in tensors.items():
        if name not in places:
            missing = next((place for place in places if place not in tensors), "")
            raise MisfitError(f"'{name}' does not fit" + (f", and '{missing}' is missing" if missing else ""))
        shape = shapes[places[name]]
        if tensor.shape != shape and tensor.shape + (1,) * (len(shape) - tensor.ndim) != shape:  # linear, for 1×1
            raise MisfitError(f"'{name}' has the shape {tuple(tensor.shape)}, and {tuple(shape)} is expected")
        if not tensor.is_floating_point():
            raise MisfitError(f"'{name}' holds {str(tensor.dtype).removeprefix('torch.')}, and floats are expected")
        # of its own: a file that is mapped may be written over
        fitted[places[name]] = tensor.reshape(shape).to(torch.float32, copy=True).contiguous()
    if missing := next((name for name in places if name not in tensors), ""):
        raise MisfitError(f"'{missing}' is missing")
    return fitted
