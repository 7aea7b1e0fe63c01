"""A tokenizer as diffusers keeps it: the folder of a `VQModel`, written without diffusers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqbench.backbone import BackboneConfig
from vqbench.errors import UsageError
from vqbench.machine.json_files import write_json
from vqbench.pretrained.layouts import FAMILIES, places_of
from vqbench.quantizer import Quantizer
from vqbench.tokenizer import Tokenizer

WEIGHTS, CONFIG = "diffusion_pytorch_model.safetensors", "config.json"
_VERSION = "0.42.1"
"""Of diffusers, whose VQModel this is; earlier ones since 0.17 have the same."""
_TRIED = 512
"""Latents that a quantizer is tried with."""


def write_vqmodel(tokenizer: Tokenizer, folder: Path) -> None:
    """Write config and weights. Raises UsageError for a tokenizer that no VQModel is."""
    from safetensors.torch import save_file

    config = vqmodel_config(tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_tensors(tokenizer), folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / CONFIG, config)


def vqmodel_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """The config of the VQModel that a tokenizer is. Raises UsageError where it is none."""
    backbone, quantizer = tokenizer.backbone, tokenizer.quantizer
    if why := _why_not(tokenizer):
        raise UsageError(
            f"this tokenizer is no VQModel of diffusers: {why}", "--to program or --to safetensors keeps all that it is"
        )
    return {
        "_class_name": "VQModel",
        "_diffusers_version": _VERSION,
        "act_fn": "silu",
        **settings_of(backbone, quantizer.codebook_size, quantizer.out_channels, is_modulated=False),
        "sample_size": backbone.resolution,
        "lookup_from_codebook": False,
        "force_upcast": False,
    }


def settings_of(backbone: BackboneConfig, codes: int, dim: int, is_modulated: bool) -> dict[str, Any]:
    """What the config of a VQModel says of its weights: of a backbone, and of `codes` codes of `dim` channels, which
    may modulate the decoder's norms.
    """
    attends = [side in backbone.attention_resolutions for side in backbone.sides]
    return {
        "block_out_channels": backbone.widths,
        "down_block_types": ["AttnDownEncoderBlock2D" if here else "DownEncoderBlock2D" for here in attends],
        "up_block_types": ["AttnUpDecoderBlock2D" if here else "UpDecoderBlock2D" for here in reversed(attends)],
        "in_channels": backbone.image_channels,
        "out_channels": backbone.image_channels,
        "latent_channels": backbone.latent_channels,
        "layers_per_block": backbone.res_blocks,
        "mid_block_add_attention": backbone.mid_attention,
        "norm_num_groups": math.gcd(32, backbone.channels),
        "norm_type": "spatial" if is_modulated else "group",
        "num_vq_embeddings": codes,
        "vq_embed_dim": dim,
    }


def _why_not(tokenizer: Tokenizer) -> str:
    backbone = tokenizer.backbone
    if tokenizer.is_conditioned:
        return "the norms of its decoder are modulated by codes"
    if not looks_up_nearest(tokenizer.quantizer):
        return "its quantizer does not look up the nearest vector of one codebook"
    if backbone.channel_multipliers[0] != 1:
        return f"its first level is wider than its first convolution, by {backbone.channel_multipliers[0]}"
    if len({math.gcd(32, width) for width in backbone.widths}) > 1:
        return f"its norms have different numbers of groups, of {backbone.widths} channels"
    return ""


@torch.inference_mode()
def looks_up_nearest(quantizer: Quantizer) -> bool:
    """Whether a quantizer, in eval mode, gives each latent the nearest row of its `codebook`, and its index.

    That is tried, not known: with codes, what lies about them, and latents of other sizes.
    """
    codes = quantizer.codebook
    if codes is None or quantizer.num_codebooks != 1 or codes.shape != (quantizer.codebook_size, quantizer.in_channels):
        return False
    codes, draw = codes.float(), torch.Generator().manual_seed(0)
    drawn = codes[torch.randint(len(codes), (_TRIED,), generator=draw)]
    noise = torch.randn(_TRIED, codes.shape[1], generator=draw) * codes.std()
    z = torch.cat([drawn, drawn + 0.3 * noise, 0.1 * noise, noise, 10 * noise])
    found = quantizer(z.T.reshape(1, codes.shape[1], 5, _TRIED))
    if found.indices.shape != (1, 5, _TRIED) or found.latents.shape[1] != codes.shape[1]:
        return False
    latents = found.latents[0].reshape(codes.shape[1], -1).T
    looked_up = codes[found.indices.flatten()]
    distances = torch.cdist(z.double(), codes.double())
    chosen = distances.gather(1, found.indices.reshape(-1, 1))[:, 0]
    is_nearest = chosen <= distances.amin(1) * (1 + 1e-5) + 1e-6  # of two at one distance either may be found
    return bool(is_nearest.all()) and torch.allclose(latents, looked_up, rtol=1e-5, atol=1e-6)


def _tensors(tokenizer: Tokenizer) -> dict[str, Tensor]:
    """Weights under the names of a VQModel; attention's 1×1 convolutions as the linear maps that they are."""
    ours, codes = tokenizer.state_dict(), tokenizer.quantizer.codebook
    assert codes is not None
    found = {"quantize.embedding.weight": codes.float()}
    for theirs, name in places_of(tokenizer.backbone, FAMILIES["diffusers"].layout, ours).items():
        is_linear = ".to_" in theirs and ours[name].ndim == 4
        found[theirs] = ours[name].flatten(1) if is_linear else ours[name]
    return {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}
