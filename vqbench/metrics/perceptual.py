"""LPIPS with a backbone from a verified file (Zhang et al., 2018, arXiv:1801.03924)."""

from __future__ import annotations

import hashlib
import importlib.util
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqbench.errors import UsageError
from vqbench.metrics.weights import BACKBONES, LPIPS_HEADS, WeightFile, content_digest, require_content


def _read(file: WeightFile) -> dict[str, Tensor]:
    """The backbone's convolutions under their torchvision names inside `features` ("0.weight"…)."""
    state = file.tensors()
    if file.kind == "pth":
        return {k.removeprefix("features."): v for k, v in state.items() if k.startswith("features.")}
    return state


def _check_heads(net: str) -> None:
    spec = importlib.util.find_spec("lpips")
    path = Path(str(spec.origin if spec else "")).parent / "weights" / "v0.1" / f"{net}.pth"
    if hashlib.sha256(path.read_bytes()).hexdigest() != LPIPS_HEADS[net]:
        raise UsageError(f"{path} does not hold the heads of LPIPS 0.1", "pip install --force-reinstall lpips==0.1.4")


def _build(net: str, state: Mapping[str, Tensor]) -> nn.Module:
    """lpips.LPIPS without its download: random backbone (`pnet_rand`), then ours into its slices."""
    import lpips

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):  # its initialisation must not shift a run's
        warnings.simplefilter("ignore", UserWarning)  # torchvision: `pretrained` is deprecated
        model: nn.Module = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    # slice1.0.weight, slice2.3.bias…: the second part is the layer's number inside `features`
    named = {name: state[name.partition(".")[2]] for name in model.net.state_dict()}  # type: ignore[union-attr, operator]
    model.net.load_state_dict(named)  # type: ignore[union-attr, operator]
    return model


class Perceptual(nn.Module):
    """x, y (B, 3, H, W) in [-1, 1] → LPIPS (B,). Frozen; gradients reach x and y."""

    def __init__(self, net: str, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.net = _build(net, state).float().requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Perceptual:
        """Stay in eval mode: LPIPS holds a Dropout that a parent's `train()` would switch on."""
        return super().train(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """float32 whatever the autocast around it."""
        return self.distance(x, *self.features(y))

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) → (B, C, h, w) of each layer, of length one in each place: what two images are compared by."""
        net: Any = self.net
        with torch.autocast(images.device.type, enabled=False):
            return tuple(_normalised(seen) for seen in net.net(net.scaling_layer(images.float())))

    def distance(self, images: Tensor, *features: Tensor) -> Tensor:
        """LPIPS (B,) of images (B, 3, H, W) to those that `features` are of: these may be computed once for many."""
        net: Any = self.net
        with torch.autocast(images.device.type, enabled=False):
            layers = zip(net.lins, self.features(images), features, strict=True)
            found = [weigh((mine - theirs) ** 2).mean([2, 3], keepdim=True) for weigh, mine, theirs in layers]
            return sum(found[1:], found[0]).flatten()


def _normalised(seen: Tensor) -> Tensor:
    return seen / (torch.sqrt(torch.sum(seen**2, dim=1, keepdim=True)) + 1e-10)


def load(net: str, file: WeightFile) -> Perceptual:
    """LPIPS `net` from a verified backbone file and the heads in the lpips wheel."""
    _check_heads(net)
    state = _read(file)
    pinned = BACKBONES[net].content
    if pinned is not None:
        require_content(file.path, content_digest(state), pinned)
    return Perceptual(net, state)
