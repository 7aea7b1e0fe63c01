"""Features of reconstructions as they come, and of the reference images from a cache that cannot be stale."""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqbench.errors import VQBenchError
from vqbench.machine.home import keeping, remembered_digest
from vqbench.metrics.channels import each_as_rgb
from vqbench.metrics.definitions import weights_of
from vqbench.metrics.kinds import RGB, Metric, Values
from vqbench.metrics.values import of_reference
from vqbench.metrics.weights import pin_of, require_weights
from vqbench.metrics.whole import WholeImages
from vqbench.registry import EXTRACTORS

_CHUNK = 256  # images of which a network on a GPU makes features at a time, where there is memory for it
_IMAGE_BYTES = 64 * 2**20  # that these may take for each: Inception in float32 needs a sixth of it
_RESTED_SECONDS = 2.0  # since a file was written, after which another write cannot leave its times as they are


def batches(pixels: NDArray[np.uint8] | WholeImages, size: int, device: torch.device) -> Iterator[Tensor]:
    """uint8 (N, R, R, C) → uint8 (B, C, R, R) on the device, at most `size` at a time, one where each has its own size.

    A thread reads the next images from the disk while whoever asks is busy with these; for a GPU it puts them where
    they can be copied without waiting.
    """

    if isinstance(pixels, WholeImages):
        size = 1

    def read(start: int) -> Tensor:
        some = pixels[start][None] if isinstance(pixels, WholeImages) else pixels[start : start + size]
        part = torch.from_numpy(np.array(some))
        return part.pin_memory() if device.type == "cuda" else part

    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(read, 0)
        for start in range(0, len(pixels), size):
            ready = following.result()
            if start + size < len(pixels):
                following = reader.submit(read, start + size)
            yield ready.to(device, non_blocking=True).permute(0, 3, 1, 2).contiguous()


def counting(progress: Callable[[int, int], None], total: int, done: int = 0) -> Callable[[int], None]:
    """Adds up images as they are done, and tells `progress(done, total)`."""

    def step(images: int) -> None:
        nonlocal done
        done += images
        if images:
            progress(done, total)

    return step


def chunk_for(device: torch.device) -> int:
    """Images of which an extractor makes features at a time."""
    if device.type != "cuda":
        return 16  # on a CPU it is twice as fast as 64
    free, _ = torch.cuda.mem_get_info(device)
    ours = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # left of a training
    return max(16, min(_CHUNK, (free + ours) // _IMAGE_BYTES))


def images_at_a_time(device: torch.device) -> int:
    """Reconstructions that wait for one another until their features are made.

    None do on a CPU: its convolutions give other last bits for other numbers of images, and scores stay what they are.
    """
    return chunk_for(device) if device.type == "cuda" else 1


def load_extractor(
    known: Metric, explicit: Path | None, device: torch.device, home: Path, channels: int = RGB
) -> FeatureExtractor:
    """What makes the features that a metric compares, of images of so many channels.

    Raises UsageError where its weights cannot be had.
    """
    kind = EXTRACTORS.get(known.extractor)
    net = kind().load(require_weights(kind.weights, explicit, False, home), home)
    each = channels if known.sees == "each_channel" else 0
    return FeatureExtractor(net, device, kind.dimensions, extractor_digest(known), each, known.values)


def extractor_digest(known: Metric) -> str:
    """What the features that a metric compares depend on: weights, on what they are made, of a plugin its text."""
    pinned, source = pin_of(weights_of(known)), EXTRACTORS.source_of(known.extractor).digest
    own = EXTRACTORS.get(known.extractor).digest
    of_each = " each channel" if known.sees == "each_channel" else ""
    of_values = f" {known.values}" if known.values != "rounded" else ""
    return " ".join(filter(None, (pinned.digest, source, own))) + of_each + of_values


class FeatureExtractor:
    """A network on a device, in chunks that suit it; with `each`, on that many channels of an image one by one."""

    def __init__(
        self,
        net: torch.nn.Module,
        device: torch.device,
        dimensions: int = 2048,
        digest: str = "",
        each: int = 0,
        values: Values = "rounded",
    ) -> None:
        self.net, self.device, self.each, self.values = net.to(device).eval(), device, each, values
        self.dimensions = dimensions * max(1, each)
        self.digest = digest or str(net.digest)
        self.chunk, self.awaits = chunk_for(device), images_at_a_time(device)

    def __call__(self, images: Tensor) -> NDArray[np.float32]:
        """(B, C, H, W), as its `values` are → float32 (B, D); of `each` channel (B, C · D), one after the other.

        Raises VQBenchError for what are no such features.
        """
        seen = each_as_rgb(images) if self.each else images
        features = np.concatenate([self.net(chunk).float().cpu().numpy() for chunk in torch.split(seen, self.chunk)])
        wanted = (len(images), self.dimensions)
        if self.each and features.shape == (len(seen), self.dimensions // self.each):
            features = features.reshape(wanted)
        if features.shape != wanted or not np.isfinite(features).all():
            found = "values that are not finite" if features.shape == wanted else str(features.shape)
            raise VQBenchError(
                f"the extractor gave {found} for {len(images)} images of which {wanted} was expected",
                "mend its network, or its `dimensions`",
            )
        return features


def reference_path(
    pixels: NDArray[np.uint8] | WholeImages,
    validation_digest: str,
    weights_digest: str,
    device: torch.device,
    home: Path,
) -> Path:
    """Where the features of these images under these weights are cached.

    torch-fidelity's key is a name, so it returns old features for new images. Here the pixels themselves are hashed,
    beside the digest of their split: a digest that misses a change of crop or resize makes nothing stale. Of pixels
    that are a whole file of the decoded cache this is done once, until the file is written again.
    """
    key = f"{validation_digest} {weights_digest} {device.type} {pixels.shape} "

    def make() -> str:
        sha = hashlib.sha256(key.encode())
        for image in pixels:
            sha.update(np.ascontiguousarray(image).data)
        return sha.hexdigest()

    identity = _file_identity(pixels)
    if identity is None:
        digest = make()
    else:
        known = hashlib.sha256(repr((key, identity)).encode()).hexdigest()
        digest = remembered_digest(home / "prepared" / f"pixels-{known[:24]}.txt", make)
    return home / "features" / f"{digest}.npy"


def _file_identity(pixels: NDArray[np.uint8] | WholeImages) -> tuple[object, ...] | None:
    """What changes whenever the file changes that `pixels` is a read-only map of, all of it and in its order.

    None for anything else, and for a file that was written a moment ago: it may be written again in the same tick of
    the clock.
    """
    if not isinstance(pixels, np.memmap) or pixels.mode != "r" or not pixels.flags.c_contiguous:
        return None
    if pixels.filename is None:  # a map of an open file without a name
        return None
    try:
        state = os.stat(pixels.filename)
    except OSError:
        return None
    rested = time.time() - max(state.st_mtime, state.st_ctime) > _RESTED_SECONDS
    if pixels.nbytes != state.st_size or not rested:
        return None
    return str(pixels.filename), state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def reference_features(
    extract: FeatureExtractor,
    pixels: NDArray[np.uint8] | WholeImages,
    validation_digest: str,
    home: Path,
    step: Callable[[int], None],
) -> NDArray[np.float32]:
    """(N, D) of uint8 (N, R, R, C), from the cache or computed and cached; `step(n)` after every n images."""
    path = reference_path(pixels, validation_digest, extract.digest, extract.device, home)
    features = _read(path, (len(pixels), extract.dimensions))
    if features is not None:
        step(len(pixels))
        return features
    features, done = np.empty((len(pixels), extract.dimensions), np.float32), 0
    for images in batches(pixels, extract.chunk, extract.device):
        features[done : done + len(images)] = extract(of_reference(images, extract.values))
        done += len(images)
        step(len(images))
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
