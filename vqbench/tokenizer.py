"""The assembled tokenizer: encoder → quantizer → decoder, saved as safetensors and loaded again anywhere."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqbench import arguments
from vqbench.backbone import BackboneConfig, Decoder, Encoder, count_parameters
from vqbench.config import build, from_stored
from vqbench.errors import UsageError
from vqbench.inputs import checked_images, checked_indices
from vqbench.machine.atomic import replacing
from vqbench.plugin import find_plugin, read_plugin
from vqbench.quantizer import Quantized, Quantizer
from vqbench.recipe import Recipe
from vqbench.registry import METHODS
from vqbench.results.cell_files import WEIGHTS as WEIGHTS_FILE
from vqbench.results.cell_files import later_version
from vqbench.results.cell_folder import as_whole
from vqbench.results.training import training_facts
from vqbench.seeds import seeded

WEIGHTS = Path(WEIGHTS_FILE).name


@dataclass
class Reconstruction:
    """One training forward: the images decoded from the quantized and, where there is one, the continuous latent."""

    images: Tensor
    """(B, C, R, R), not clamped; (B, D, h, w) where features take the place of images."""
    quantized: Quantized
    continuous: Tensor | None = None
    """Shaped like `images`, decoded from `quantized.continuous`."""


class Coder(nn.Module):
    """What goes through a quantizer and back: images in a tokenizer, frozen features in the features track."""

    quantizer: Quantizer

    def quantize(self, inputs: Tensor) -> Quantized:
        """What the quantizer returns for a batch of inputs."""
        raise NotImplementedError

    def decode_latents(self, latents: Tensor) -> Tensor:
        """(B, out_channels, h, w) → what is shaped like the inputs."""
        raise NotImplementedError

    def to_indices(self, inputs: Tensor) -> Tensor:
        """Indices of a batch of inputs, as training and evaluation have them: nothing is checked."""
        return self.quantize(inputs).indices

    def from_indices(self, indices: Tensor) -> Tensor:
        """Indices → what is shaped like the inputs; nothing is checked."""
        return self.from_latents(self.quantizer.decode_indices(indices))

    def from_latents(self, latents: Tensor) -> Tensor:
        """(B, out_channels, h, w), codes or what was quantized → what is shaped like the inputs."""
        return self.decode_latents(latents)

    def forward(self, inputs: Tensor) -> Reconstruction:
        """One training pass over a batch of inputs; both paths in one call of the shared decoder."""
        quantized = self.quantize(inputs)
        if quantized.continuous is None:
            return Reconstruction(self.decode_latents(quantized.latents), quantized)
        both = self.decode_latents(torch.cat([quantized.latents, quantized.continuous]))
        discrete, continuous = both.chunk(2)
        return Reconstruction(discrete, quantized, continuous)


def projection_to(quantizer: Quantizer, width: int, seed: int) -> nn.Conv2d:
    """The learned linear map from `width` channels to what the quantizer takes, drawn from a stream of its own."""
    with seeded("to quantizer", seed):
        return nn.Conv2d(width, quantizer.in_channels, 1)


def projection_from(quantizer: Quantizer, width: int, seed: int) -> nn.Conv2d:
    """The learned linear map from the quantizer's latents to `width` channels, drawn from a stream of its own."""
    with seeded("from quantizer", seed):
        return nn.Conv2d(quantizer.out_channels, width, 1)


def run(network: nn.Module, *inputs: Tensor) -> Tensor:
    """Encoder or decoder as they are."""
    output: Tensor = network(*inputs)
    return output


class Tokenizer(Coder):
    """Images to indices and back: `encode` and `decode` for whoever uses one, `to_indices` and `from_indices` for
    evaluation, which does not look at what it hands over."""

    def __init__(self, backbone: BackboneConfig, quantizer: Quantizer, seed: int = 0) -> None:
        super().__init__()
        latent = backbone.latent_channels
        # each part draws from a stream of its own: under one seed, all methods start from the same backbone
        with seeded("encoder", seed):
            self.encoder = Encoder(backbone)
        self.to_quantizer = projection_to(quantizer, latent, seed)
        self.quantizer = quantizer
        self.from_quantizer = projection_from(quantizer, latent, seed)
        with seeded("decoder", seed):
            self.decoder = Decoder(backbone)
        with seeded("decoder modulation", seed):
            self.is_conditioned = self.decoder.modulate_norms(quantizer.decoder_modulation)
        self.run: Callable[..., Tensor] = run  # a training may compile, cast and divide
        self.backbone = backbone
        self.resolution = backbone.resolution
        self.image_channels = backbone.image_channels
        self.downsampling = 2 ** (len(backbone.channel_multipliers) - 1)

    def quantize(self, images: Tensor) -> Quantized:
        """(B, C, R, R) in [-1, 1] → what the quantizer returns for them."""
        return self.quantizer(self.to_quantizer(self.run(self.encoder, images)))

    def decode_latents(self, latents: Tensor) -> Tensor:
        """(B, out_channels, h, w) → images (B, C, R, R), not clamped."""
        condition = (latents,) if self.is_conditioned else ()
        return self.run(self.decoder, self.from_quantizer(latents), *condition)

    def from_latents(self, latents: Tensor) -> Tensor:
        """(B, out_channels, h, w), codes or what was quantized → images (B, C, H, W) in [-1, 1]."""
        # a quantizer's are float32, where the rest was cast to another width
        return self.decode_latents(latents.to(self.from_quantizer.weight.dtype)).clamp(-1, 1)

    @torch.inference_mode(False)  # what is made in that mode cannot train anything, not even after it
    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) → indices (B, h, w), or (B, h, w, G) for G codebooks; int64.

        Images are uint8, or floats in [-1, 1] of any width. Floats in [0, 1] look like dull images and are taken as
        they stand. No gradient passes, and the indices may train another model, whatever mode is around the call.

        Raises TypeError for what is no such tensor, ValueError for another shape or device, NaN and values out of
        range, RuntimeError in training mode: `load` returns a tokenizer in eval mode.
        """
        self._require_eval()
        return self.to_indices(checked_images(images, self.image_channels, self.downsampling, self.to_quantizer.weight))

    @torch.inference_mode(False)
    @torch.no_grad()
    def decode(self, indices: Tensor) -> Tensor:
        """Indices as `encode` returned them, of any integer dtype → images (B, C, H, W) in [-1, 1].

        No gradient passes, and the images may train another model. Raises as `encode` does.
        """
        self._require_eval()
        size, weight = self.quantizer.codebook_size, self.to_quantizer.weight
        return self.from_indices(checked_indices(indices, self._indices_per_token(indices), size, weight))

    def _require_eval(self) -> None:
        if self.training:
            raise RuntimeError("the tokenizer is in training mode, where codes may be random: tokenizer.eval() first")

    def _indices_per_token(self, indices: object) -> tuple[int, ...]:
        if self.quantizer.num_codebooks > 1:
            return (self.quantizer.num_codebooks,)
        if isinstance(indices, Tensor) and indices.ndim == 4:  # a single codebook may have an axis: ask it
            z = self.to_quantizer.weight.new_zeros(1, self.quantizer.in_channels, 1, 1)
            return tuple(self.quantizer(z).indices.shape[3:])
        return ()

    def parameter_counts(self) -> dict[str, int]:
        """Trainable parameters by part; `projections` are the 1×1 convolutions around the quantizer."""
        parts = {
            "encoder": count_parameters(self.encoder),
            "quantizer": count_parameters(self.quantizer),
            "projections": count_parameters(self.to_quantizer) + count_parameters(self.from_quantizer),
            "decoder": count_parameters(self.decoder),
        }
        return {**parts, "total": sum(parts.values())}


def build_quantizer(method: str, config: dict[str, Any]) -> Quantizer:
    """A quantizer by its method's name and Config fields. Raises UsageError for a wrong name or field."""
    cls = METHODS.get(method)
    quantizer: Quantizer = cls(build(cls.Config, config, method, f"vqbench show {method}"))
    return quantizer


def configured(method: str, stored: Mapping[str, Any]) -> dict[str, Any]:
    """The Config fields of a cell, or of a file of weights, which may be older than some of them."""
    return from_stored(METHODS.get(method).Config, stored)


def seeded_quantizer(method: str, config: dict[str, Any], seed: int) -> Quantizer:
    """An untrained quantizer, initialised by `seed` alone."""
    with seeded("quantizer", seed):
        return build_quantizer(method, config)


def build_tokenizer(method: str, config: dict[str, Any], recipe: Recipe, seed: int) -> Tokenizer:
    """An untrained tokenizer, initialised by `seed` alone."""
    return Tokenizer(BackboneConfig.of(recipe), seeded_quantizer(method, config, seed), seed)


def save(tokenizer: Coder, path: Path, spec: dict[str, Any]) -> None:
    """Write the weights as safetensors, atomically, with what is needed to build the tokenizer in the header."""
    from safetensors.torch import save_file

    tensors = {name: t.detach().cpu().contiguous() for name, t in tokenizer.state_dict().items()}
    told = {**spec, "training": training_facts(spec)}
    header = {key: told[key] for key in _HEADER}
    with replacing(path) as partial:
        save_file(tensors, partial, metadata={"vqbench": json.dumps(header)})


def weights_file(path: Path) -> Path:
    """The weights of a cell's folder, or the file itself. Raises UsageError where there are none."""
    for candidate in (path, path / WEIGHTS_FILE, path / WEIGHTS):
        if candidate.is_file():
            return candidate
    raise UsageError(f"no trained tokenizer at {path}", f"give a finished cell's folder, or a {WEIGHTS}")


class DamagedWeightsError(UsageError):
    """A file of weights that is cut off, or whose parts do not belong together."""


def load(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Tokenizer:
    """A trained tokenizer in eval mode, from a cell's folder or a `tokenizer.safetensors`.

    `tokenizer.encode(images)` takes (B, C, H, W), uint8 or floats in [-1, 1]. Raises UsageError, which names the file,
    where there is none, and where it is damaged, another program's or a newer vqbench's.
    """
    return load_with_header(weights_file(arguments.path("a tokenizer", path)))[0].to(device).eval()


def load_with_header(weights: Path, trust: bool = True) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer of a file that `save` wrote, on the CPU and in eval mode; and what its header says of it.

    A method of a file is looked for where the header says and beside the weights, and run; without `trust` it must be
    one that this process was given already. Raises UsageError where it is not.
    """
    header, tensors = _read(weights)
    _refuse_without_encoder(header, tensors, weights)
    _make_plugin_known(header, weights, trust)
    try:
        recipe = build(Recipe, header["recipe"], "recipe", "vqbench show tiny")
        config = configured(header["method"], header["config"])
        tokenizer = build_tokenizer(header["method"], config, recipe, header["seed"])
    except UsageError as error:
        what = f"{weights} cannot be built by this vqbench, a newer one may have written it: {error.what}"
        raise UsageError(what, f"use the vqbench that trained it, or train it again: --rerun; {error.hint}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(weights, f"its header makes no tokenizer: {error}") from error
    try:
        tokenizer.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise _damaged(weights, f"its tensors do not fit what its header says: {reason}") from error
    return tokenizer.eval(), header


_HEADER: dict[str, Any] = {
    "method": str,
    "config": dict,
    "recipe": dict,
    "plugin": dict | None,
    "seed": int,
    "hash": str,
    "training": dict,
}
"""What the header of weights says, and of which type: all that `load` needs, and how they were trained. Files of an
earlier version say nothing of that."""


def _read(weights: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a file that `save` wrote. Raises UsageError for any other."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, framework="pt") as file:  # type: ignore[no-untyped-call]
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except OSError as error:
        raise UsageError(f"{weights} cannot be read: {error}", "look at its permissions") from None
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise _damaged(weights, f"it is not whole: {' '.join(str(error).split())}") from None
    if "vqbench" not in metadata:
        raise UsageError(f"{weights} was not written by vqbench", f"give a finished cell's folder, or its {WEIGHTS}")
    try:
        header = json.loads(metadata["vqbench"])
    except ValueError:
        raise _damaged(weights, "its header is not JSON") from None
    if isinstance(header, dict) and (newer := later_version(weights, header)):
        raise UsageError(newer, "use that vqbench, or train it again: --rerun")
    found = header if isinstance(header, dict) else {}
    found = {"training": {}, **found, "seed": as_whole(found.get("seed"))}
    if odd := [key for key, kind in _HEADER.items() if key not in found or not isinstance(found[key], kind)]:
        raise _damaged(weights, f"its header does not say {', '.join(odd)}")
    return found, tensors


def _damaged(weights: Path, why: str) -> DamagedWeightsError:
    again = "a metric that is added to its cell trains it again, and so does `vqbench run … --rerun`"
    return DamagedWeightsError(f"{weights} is damaged, {why}", f"bring back a copy; {again}")


def _refuse_without_encoder(header: dict[str, Any], tensors: Iterable[str], weights: Path) -> None:
    if not any(name.startswith("encoder.") for name in tensors):
        raise UsageError(
            f"{weights} holds a quantizer that was fitted to features, without encoder and decoder: it takes no images",
            f"train a tokenizer with a recipe of images: vqbench run --recipe tiny --methods {header['method']} "
            "--dataset photos",
        )


def _make_plugin_known(header: dict[str, Any], weights: Path, trust: bool) -> None:
    """Find the very plugin file that a tokenizer was trained with, where its method came from a file."""
    if header["plugin"] is None:
        return
    wanted, name = header["plugin"]["sha256"], header["method"]
    known = METHODS.file_of(name)
    cell = weights.parent.parent
    if not trust and (known is None or not read_plugin(known).is_of(wanted)):
        what = f"{weights} was trained with a method of a file, '{name}', which is a program"
        raise UsageError(what, "--plugin FILE if you have it; --trust runs the copy that lies beside the weights")
    found = find_plugin(wanted, [known, Path(header["plugin"]["path"])], kept_in=cell)
    if found is not None:
        if found != known:
            METHODS.add_file(found, replace=True)
        return
    raise UsageError(
        f"'{name}' was trained with a plugin file of sha256 {wanted[:12]}…, and there is none",
        f"{header['plugin']['path']} and the copy in {cell} are gone or have changed: bring the file back",
    )
