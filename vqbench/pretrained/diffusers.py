"""A folder in which diffusers keeps a VQModel, read without diffusers: `config.json` and the weights beside it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vqbench import arguments
from vqbench.errors import UsageError
from vqbench.machine.home import expanded
from vqbench.pretrained.checkpoint import OTHERWISE, described, fitted, remarks_of
from vqbench.pretrained.layouts import FAMILIES, Architecture, architecture
from vqbench.pretrained.opened import Opened
from vqbench.pretrained.tensors import read_tensors, sha256_of, tensors_in
from vqbench.pretrained.vqmodel import CONFIG, settings_of
from vqbench.tokenizer import Tokenizer
from vqbench.wording import some

_PIPELINE = "model_index.json"
_WEIGHTS = "diffusion_pytorch_model"
_DEFAULTS: Mapping[str, Any] = {
    "in_channels": 3, "out_channels": 3, "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"], "block_out_channels": [64], "layers_per_block": 1, "act_fn": "silu",
    "latent_channels": 3, "num_vq_embeddings": 256, "norm_num_groups": 32, "vq_embed_dim": None, "norm_type": "group",
    "mid_block_add_attention": True, "lookup_from_codebook": False,
}  # fmt: skip
"""What a VQModel is without a word of its config."""
_WITHOUT_EFFECT = {"sample_size", "scaling_factor", "force_upcast"}
_OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""How attention was named before diffusers 0.17."""


class UnitRangeTokenizer(Tokenizer):
    """A tokenizer whose network takes and gives pixels from 0 to 1: images are from -1 to 1 all the same."""

    def quantize(self, images: Tensor) -> Any:
        """See Tokenizer."""
        return super().quantize((images + 1) / 2)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """See Tokenizer."""
        return super().decode_latents(latents) * 2 - 1


def open_diffusers(folder: Path) -> Opened:
    """The VQModel in a folder that diffusers saved, or in that of a pipeline with one.

    Raises UsageError where there is none, where config and weights do not fit each other, and for a setting that
    vqbench's backbone does not have.
    """
    given = expanded(arguments.path("a diffusers folder", folder)).absolute()
    folder = _model_folder(given)
    config, files = _config(folder / CONFIG), _files(folder)
    tensors = {_spelt_today(name): tensor for file in files for name, tensor in tensors_in(read_tensors(file)).items()}
    kind = UnitRangeTokenizer if config["lookup_from_codebook"] else Tokenizer
    tokenizer = fitted(folder, "diffusers", tensors, given=True, kind=kind)
    _hold(folder / CONFIG, config, architecture(FAMILIES["diffusers"], tensors))
    remarks = list(remarks_of(FAMILIES["diffusers"], tensors, given=True))
    if kind is UnitRangeTokenizer:
        remarks.append("its network has pixels from 0 to 1, as the pipeline of amused hands them to it")
    if odd := [name for name in config if not name.startswith("_") and name not in {*_DEFAULTS, *_WITHOUT_EFFECT}]:
        remarks.append(f"its config also says {some(odd)}, which vqbench does not know")
    unread = [name for name in tensors if not FAMILIES["diffusers"].reads(name)]
    unread += [file.name for file in sorted(folder.glob(f"{_WEIGHTS}*")) if file not in files]
    digest = hashlib.sha256()
    for file in (folder / CONFIG, *files):
        digest.update(f"{file.name} {sha256_of(file)}\n".encode())
    more = {"unread": tuple(unread), "remarks": tuple(remarks)}
    facts = described("diffusers", given, given.name, digest.hexdigest(), "diffusers", tokenizer, **more)
    return Opened(tokenizer, facts)


def _model_folder(folder: Path) -> Path:
    """The folder itself, or the one in it that a pipeline keeps its VQModel in."""
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}", f"give a folder with {CONFIG} in it")
    if (folder / CONFIG).is_file() or not (folder / _PIPELINE).is_file():
        return folder
    found = [part.parent for part in sorted(folder.glob(f"*/{CONFIG}")) if _read(part).get("_class_name") == "VQModel"]
    if len(found) != 1:
        what = f"the pipeline in {folder} has {len(found) or 'no'} VQModel{'s' if len(found) > 1 else ''} in it"
        raise UsageError(what, f"give one of {some([part.name for part in found])}" if found else OTHERWISE)
    return found[0]


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path.parent} is no folder of diffusers: it has no {path.name}", OTHERWISE) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}", "bring back the file that came with the weights") from None
    if not isinstance(value, dict):
        raise UsageError(f"{path} is no config: it holds no object", "bring back the file that came with the weights")
    return value


def _config(path: Path) -> dict[str, Any]:
    """A VQModel's settings, with those that it leaves out. Raises UsageError for another model's."""
    said = _read(path)
    if said.get("_class_name") != "VQModel":
        raise UsageError(f"{path} is of {said.get('_class_name', 'no class')}, and VQModel is expected", OTHERWISE)
    config = {**_DEFAULTS, **said}
    if config["vq_embed_dim"] is None:
        config["vq_embed_dim"] = config["latent_channels"]
    return config


def _files(folder: Path) -> list[Path]:
    """The files of weights, in the order in which they are hashed."""
    index = folder / f"{_WEIGHTS}.safetensors.index.json"
    if index.is_file():
        names = _read(index).get("weight_map", {})
        return [folder / Path(name).name for name in sorted({*map(str, names.values())})]
    for name in (f"{_WEIGHTS}.safetensors", f"{_WEIGHTS}.bin"):
        if (folder / name).is_file():
            return [folder / name]
    variants = sorted(folder.glob(f"{_WEIGHTS}.*.safetensors"))
    if len(variants) == 1:
        return variants
    inside = some([file.name for file in sorted(folder.iterdir())])
    raise UsageError(f"{folder} has no {_WEIGHTS}.safetensors", f"it has {inside}: bring the weights that belong to it")


def _spelt_today(name: str) -> str:
    """A tensor's name as diffusers has had it since 0.17."""
    for old, new in _OLD_ATTENTION.items() if "attentions." in name else ():
        name = name.replace(old, new)
    return name


def _hold(path: Path, config: Mapping[str, Any], found: Architecture) -> None:
    """UsageError for the first setting that is not what the weights are, or that vqbench's backbone has not."""
    has = settings_of(found.backbone, found.config["codebook_size"], found.config["dim"], found.method == "movq")
    groups = {math.gcd(32, width) for width in found.backbone.widths}
    ours = {"act_fn": ("silu", "swish"), "norm_num_groups": tuple(groups) if len(groups) == 1 else ()}
    for name, value in has.items():
        if name not in ours and config[name] != value:
            what = f"{path} says {name} {config[name]}, and the weights beside it have {value}"
            raise UsageError(what, "config and weights are not of one model: bring back the two that belong together")
    for name, values in ours.items():
        if config[name] not in values:
            wanted = " or ".join(map(str, values)) or "one number of groups for all widths"
            raise UsageError(f"{path} says {name} {config[name]}, and vqbench's backbone has {wanted}", OTHERWISE)
