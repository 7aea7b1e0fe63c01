"""Features of reconstructions as they come, and of the reference images from a cache that cannot be stale."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqbench.errors import VQBenchError
from vqbench.machine.home import keeping
from vqbench.metrics.weights import pin_of, require_weights
from vqbench.registry import EXTRACTORS


def to_planes(pixels: NDArray[np.uint8], device: torch.device) -> Tensor:
    """uint8 (B, R, R, 3) → uint8 (B, 3, R, R) on the device."""
    return torch.from_numpy(np.array(pixels)).to(device).permute(0, 3, 1, 2).contiguous()


def load_extractor(name: str, explicit: Path | None, device: torch.device, home: Path) -> FeatureExtractor:
    """The network of a registered extractor. Raises UsageError where its weights cannot be had."""
    kind = EXTRACTORS.get(name)
    net = kind().load(require_weights(kind.weights, explicit, False, home), home)
    return FeatureExtractor(net, device, kind.dimensions, extractor_digest(name))


def extractor_digest(name: str) -> str:
    """What features of a registered extractor depend on: its weights and, of a plugin, its text."""
    pinned, source = pin_of(EXTRACTORS.get(name).weights), EXTRACTORS.source_of(name).digest
    return pinned.digest + (f" {source}" if source else "")


class FeatureExtractor:
    """A network on a device, in chunks that suit it."""

    def __init__(self, net: torch.nn.Module, device: torch.device, dimensions: int = 2048, digest: str = "") -> None:
        self.net, self.device, self.dimensions = net.to(device).eval(), device, dimensions
        self.digest = digest or str(net.digest)
        self.chunk = 64 if device.type == "cuda" else 16  # on a CPU 16 is twice as fast as 64

    def __call__(self, images: Tensor) -> NDArray[np.float32]:
        """uint8 (B, 3, H, W) → float32 (B, D). Raises VQBenchError for what are no such features."""
        features = np.concatenate([self.net(chunk).float().cpu().numpy() for chunk in torch.split(images, self.chunk)])
        wanted = (len(images), self.dimensions)
        if features.shape != wanted or not np.isfinite(features).all():
            found = "values that are not finite" if features.shape == wanted else str(features.shape)
            raise VQBenchError(
                f"the extractor gave {found} for {len(images)} images of which {wanted} was expected",
                "mend its network, or its `dimensions`",
            )
        return features


def reference_path(
    pixels: NDArray[np.uint8], validation_digest: str, weights_digest: str, device: torch.device, home: Path
) -> Path:
    """Where the features of these images under these weights are cached.

    torch-fidelity's key is a name, so it returns old features for new images. Here the pixels themselves are hashed,
    beside the digest of their split: a digest that misses a change of crop or resize makes nothing stale.
    """
    sha = hashlib.sha256(f"{validation_digest} {weights_digest} {device.type} {pixels.shape} ".encode())
    for image in pixels:
        sha.update(np.ascontiguousarray(image).data)
    return home / "features" / f"{sha.hexdigest()}.npy"


def reference_features(
    extract: FeatureExtractor,
    pixels: NDArray[np.uint8],
    validation_digest: str,
    home: Path,
    step: Callable[[int], None],
) -> NDArray[np.float32]:
    """(N, D) of uint8 (N, R, R, 3), from the cache or computed and cached; `step(n)` after every n images."""
    path = reference_path(pixels, validation_digest, extract.digest, extract.device, home)
    features = _read(path, (len(pixels), extract.dimensions))
    if features is not None:
        step(len(pixels))
        return features
    features = np.empty((len(pixels), extract.dimensions), np.float32)
    for start in range(0, len(pixels), extract.chunk):
        part = pixels[start : start + extract.chunk]
        features[start : start + len(part)] = extract(to_planes(part, extract.device))
        step(len(part))
    _write(path, features)
    return features


def _read(path: Path, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    try:
        features: NDArray[np.float32] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return features if features.shape == shape and features.dtype == np.float32 else None


def _write(path: Path, features: NDArray[np.float32]) -> None:
    try:
        with keeping(path) as partial, partial.open("wb") as file:
            np.save(file, features)
    except OSError as error:  # the scores do not depend on the cache
        warnings.warn(f"reference features not cached in {path.parent}: {error.strerror}", stacklevel=2)
