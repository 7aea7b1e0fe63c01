"""One pass over a split: encode → indices → decode → 8 bits, and every metric from that one reconstruction."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vqbench.errors import UsageError, VQBenchError
from vqbench.home import home as default_home
from vqbench.inputs import to_input
from vqbench.kept import kept_positions
from vqbench.metrics.codes import CodeHistogram, code_scores
from vqbench.metrics.definitions import COMPANIONS, METRICS, companions, needed_weights, too_small
from vqbench.metrics.features import FeatureExtractor, reference_features, to_planes
from vqbench.metrics.frechet import frechet_distance, kernel_distance
from vqbench.metrics.inception import Inception
from vqbench.metrics.pixels import psnr, ssim
from vqbench.precision import plain_float32
from vqbench.tokenizer import Coder
from vqbench.weights import load_inception, load_lpips

Pixels = NDArray[np.uint8]
"""(N, R, R, 3) uint8 images."""
PairMetric = Callable[[Tensor, Tensor], Tensor]
"""8-bit references and reconstructions (B, 3, R, R) → values (B,)."""
_Made = TypeVar("_Made")


class Codec(Protocol):
    """What evaluation asks of a tokenizer; its quantizer tells codebook_size, num_codebooks and bits_per_token.

    One that is a `Coder` may have a continuous path besides, which is scored too.
    """

    quantizer: Any

    def to_indices(self, images: Tensor) -> Tensor:
        """(B, 3, R, R) in [-1, 1] → indices."""

    def from_indices(self, indices: Tensor) -> Tensor:
        """Indices → (B, 3, R, R)."""


@dataclass(frozen=True)
class Evaluation:
    """What one pass found."""

    scores: dict[str, float]
    """Every value is finite, so it is valid JSON."""
    per_image: pd.DataFrame
    """`id`, one column per per-image score, `codes`: how many different codes (tuples, for G codebooks) it uses."""
    histogram: NDArray[np.int64]
    """(G, K) counts over the whole split."""
    indices: NDArray[np.unsignedinteger]
    """(N, tokens of an image, G) code of every token, in the smallest type that holds K."""
    reconstructions: Pixels
    """Of the images at `kept_positions`."""
    features: NDArray[np.float32] | None
    """(N, 2048) Inception features of the reconstructions, or None without rfid and kid."""
    reference_features: NDArray[np.float32] | None
    """Those of the images themselves, in the same order."""
    encode_images_per_s: float
    decode_images_per_s: float


@contextmanager
def _eval_mode(tokenizer: Codec) -> Iterator[None]:
    """In eval mode; afterwards each module's own training mode is back."""
    modules = list(tokenizer.modules()) if isinstance(tokenizer, nn.Module) else []
    before = [module.training for module in modules]
    if isinstance(tokenizer, nn.Module):
        tokenizer.eval()
    try:
        yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.training = training


@dataclass
class _Stopwatch:
    """Images per second of one stage. The first batch warms up (cuDNN, allocator) and counts only if it is alone."""

    device: torch.device
    batches: list[tuple[int, float]] = field(default_factory=list)

    def run(self, stage: Callable[[Tensor], _Made], argument: Tensor) -> _Made:
        self._synchronize()
        start = time.perf_counter()
        result = stage(argument)
        self._synchronize()
        self.batches.append((len(argument), time.perf_counter() - start))
        return result

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @property
    def images_per_s(self) -> float:
        counted = self.batches[1:] or self.batches
        return sum(n for n, _ in counted) / max(sum(s for _, s in counted), 1e-9)


def to_8_bits(images: Tensor) -> Tensor:
    """Images in [-1, 1] → clamped and rounded to uint8."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def _check(pixels: Pixels, ids: Sequence[object], metrics: Sequence[str], batch_size: int) -> None:
    if pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.dtype != np.uint8 or pixels.shape[1] != pixels.shape[2]:
        raise ValueError(f"pixels must be uint8 (N, R, R, 3), not {pixels.dtype} {pixels.shape}")
    if len(ids) != len(pixels) or batch_size < 1:
        raise ValueError(f"{len(pixels)} images need as many ids, not {len(ids)}, and a batch of at least one image")
    if len(pixels) == 0:
        raise UsageError("the validation split holds no image", "give a dataset with validation images")
    if len(pixels) == 1 and {"rfid", "kid"} & set(metrics):
        raise UsageError("rfid and kid need at least 2 validation images, there is 1", "leave them out of the metrics")
    for name in metrics:
        if too_small(name, pixels.shape[1]):
            raise UsageError(
                f"{name} is defined from {METRICS[name].min_resolution} pixels a side, the images have "
                f"{pixels.shape[1]}",
                f"leave {name} out of the metrics, or raise the resolution",
            )


def _encode(tokenizer: Codec, images: Tensor) -> tuple[Tensor, Callable[[], Tensor] | None]:
    """Indices and, where the method has a continuous path, what decodes the latents that they are of."""
    if not isinstance(tokenizer, Coder):
        return tokenizer.to_indices(images), None
    quantized = tokenizer.quantize(images)
    if quantized.continuous is None or quantized.continuous_weight == 0:  # no path, or one that nobody trains
        return quantized.indices, None
    return quantized.indices, functools.partial(tokenizer.from_latents, quantized.continuous)


def _check_reconstruction(images: Tensor, expected: torch.Size, ids: Sequence[object], source: str = "") -> None:
    if images.shape != expected:
        what = f"decode gave {tuple(images.shape)} for images {tuple(expected)}"
        raise VQBenchError(what, "`vqbench check` shows what breaks it")
    bad = (~torch.isfinite(images)).flatten(1).any(dim=1).nonzero().flatten().tolist()
    if bad:
        raise VQBenchError(
            f"the reconstruction of image {ids[bad[0]]}{source} has non-finite values (NaN or infinity)",
            "training diverged: lower the learning rate, or see the curves of the cell",
        )


def _lpips(net: nn.Module) -> PairMetric:
    def distance(a: Tensor, b: Tensor) -> Tensor:
        values: Tensor = net(to_input(a), to_input(b))
        return values.double()

    return distance


def _pair_metrics(
    metrics: Sequence[str], weights: Path | None, device: torch.device, home: Path
) -> dict[str, PairMetric]:
    functions: dict[str, PairMetric] = {"psnr": psnr, "ssim": ssim}
    for net in needed_weights(metrics):
        if net != "inception":
            functions[f"lpips_{net}"] = _lpips(load_lpips(net, weights, home).to(device))
    return {name: functions[name] for name in metrics if METRICS[name].per_image}


class _Pass:
    """What accumulates over the batches of one evaluation."""

    def __init__(
        self,
        quantizer: Any,
        pairs: dict[str, PairMetric],
        extract: FeatureExtractor | None,
        wanted: set[int],
        beside: tuple[str, ...],
    ) -> None:
        self.histogram = CodeHistogram(quantizer.codebook_size, quantizer.num_codebooks)
        self.pairs, self.extract, self.wanted, self.beside = pairs, extract, wanted, beside
        self.columns: dict[str, list[float]] = {name: [] for name in pairs}
        self.codes: list[int] = []
        self.indices: list[NDArray[np.unsignedinteger]] = []
        self.features: list[NDArray[np.float32]] = []
        self.continuous_features: list[NDArray[np.float32]] = []
        self.kept: dict[int, Pixels] = {}

    def add(self, references: Tensor, indices: Tensor, reconstructions: Tensor) -> None:
        """8-bit references and reconstructions (B, 3, R, R) of one batch, and the indices between them."""
        self.histogram.update(indices)
        for name, metric in self.pairs.items():
            self.columns[name] += metric(references, reconstructions).tolist()
        by_position = self._codes_by_position(indices)
        self.codes += [len(torch.unique(image, dim=0)) for image in by_position]
        self.indices.append(by_position.numpy().astype(np.min_scalar_type(self.histogram.counts.shape[1] - 1)))
        if self.extract is not None:
            self.features.append(self.extract(reconstructions))
        first = len(self.codes) - len(reconstructions)
        for i in self.wanted & set(range(first, len(self.codes))):
            self.kept[i] = reconstructions[i - first].permute(1, 2, 0).cpu().numpy()

    def add_continuous(self, references: Tensor, reconstructions: Tensor) -> None:
        """The same of the continuous path: no indices, and no picture is kept."""
        for name in self.beside:
            metric = self.pairs.get(COMPANIONS[name].companion_of)
            if metric is not None:
                self.columns.setdefault(name, []).extend(metric(references, reconstructions).tolist())
        if self.extract is not None and "rfid_continuous" in self.beside:
            self.continuous_features.append(self.extract(reconstructions))

    def _codes_by_position(self, indices: Tensor) -> Tensor:
        return indices.reshape(len(indices), -1, len(self.histogram.counts)).cpu()


def _scores(seen: _Pass, reference: NDArray[np.float32] | None, quantizer: Any, pixels: Pixels) -> dict[str, float]:
    bits, pixels_per_image = float(quantizer.bits_per_token), pixels.shape[1] * pixels.shape[2]
    scores = code_scores(seen.histogram.counts, bits, len(pixels), pixels_per_image)
    scores |= {name: float(np.mean(values)) for name, values in seen.columns.items()}
    if reference is not None:
        features = np.concatenate(seen.features)
        scores |= {"rfid": frechet_distance(reference, features), "kid": kernel_distance(reference, features)}
    if reference is not None and seen.continuous_features:
        scores["rfid_continuous"] = frechet_distance(reference, np.concatenate(seen.continuous_features))
    return scores


def evaluate(
    tokenizer: Codec,
    pixels: Pixels,
    ids: Sequence[object],
    *,
    metrics: Sequence[str],
    validation_digest: str,
    inception_weights: Path | None = None,
    lpips_weights: Path | None = None,
    device: torch.device | None = None,
    batch_size: int = 16,
    home: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score a tokenizer on validation images, each of them once.

    pixels: uint8 (N, R, R, 3) after crop and resize; they are both input and reference. The tokenizer is moved to
    `device`, runs in eval mode and float32, and has its training mode back afterwards. `progress(done, total)`
    counts images, those whose reference features are made too. Raises UsageError for missing weights or images
    too small for a metric, VQBenchError for an index outside the codebook or a reconstruction that is not finite.
    """
    _check(pixels, ids, metrics, batch_size)
    device, home = device or torch.device("cpu"), home or default_home()
    extract = _extractor(metrics, inception_weights, device, home)
    kept = kept_positions(len(pixels), pixels.shape[1])
    pairs, beside = _pair_metrics(metrics, lpips_weights, device, home), companions(metrics)
    seen = _Pass(tokenizer.quantizer, pairs, extract, set(kept), beside)
    step = _counter(progress, len(pixels) * (1 if extract is None else 2))
    encoding, decoding, reference = _Stopwatch(device), _Stopwatch(device), None
    if isinstance(tokenizer, nn.Module):
        tokenizer.to(device)  # before inference mode: tensors that are made in it cannot be trained afterwards
    with torch.inference_mode(), plain_float32(device), _eval_mode(tokenizer):
        if extract is not None:
            reference = reference_features(extract, pixels, validation_digest, home, step)
        for start in range(0, len(pixels), batch_size):
            of = ids[start : start + batch_size]
            images = to_planes(pixels[start : start + batch_size], device)
            indices, undiscretised = encoding.run(functools.partial(_encode, tokenizer), to_input(images))
            decoded = decoding.run(tokenizer.from_indices, indices)
            _check_reconstruction(decoded, images.shape, of)
            seen.add(images, indices, to_8_bits(decoded))
            if undiscretised is not None and beside:  # decoded by itself: the scores of codes stay what they are
                continuous = undiscretised()
                _check_reconstruction(continuous, images.shape, of, " without quantization")
                seen.add_continuous(images, to_8_bits(continuous))
            step(len(images))
    scores = _scores(seen, reference, tokenizer.quantizer, pixels)
    return Evaluation(
        scores={name: scores[name] for name in scores if name.partition("/")[0] in {*metrics, *beside}},
        per_image=pd.DataFrame({"id": list(ids), **seen.columns, "codes": seen.codes}),
        histogram=seen.histogram.counts,
        indices=np.concatenate(seen.indices),
        reconstructions=np.stack([seen.kept[i] for i in kept]),
        features=np.concatenate(seen.features) if seen.features else None,
        reference_features=reference,
        encode_images_per_s=encoding.images_per_s,
        decode_images_per_s=decoding.images_per_s,
    )


def _extractor(
    metrics: Sequence[str], weights: Path | None, device: torch.device, home: Path
) -> FeatureExtractor | None:
    if "inception" not in needed_weights(metrics):
        return None
    net = load_inception(weights, home)
    assert isinstance(net, Inception)
    return FeatureExtractor(net, device)


def _counter(progress: Callable[[int, int], None] | None, total: int) -> Callable[[int], None]:
    done = 0

    def step(images: int) -> None:
        nonlocal done
        done += images
        if progress is not None:
            progress(done, total)

    return step
