"""One pass over a split: encode → indices → decode → 8 bits, and every metric from that one reconstruction."""

from __future__ import annotations

import copy
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from vqbench.inputs import to_input
from vqbench.machine.home import home as default_home
from vqbench.metrics.channels import each_as_rgb
from vqbench.metrics.codes import CodeHistogram, code_scores, different_codes
from vqbench.metrics.definitions import (
    companions,
    features_by,
    metric,
    refuse_few_images,
    refuse_other_channels,
    too_small,
    weights_of,
)
from vqbench.metrics.extraction import FeatureExtractor, batches, counting, load_extractor, reference_features
from vqbench.metrics.kinds import CodecMetric, CodeFacts, CodeMetric, FeatureMetric, Metric, PairMetric, Values
from vqbench.metrics.values import of_reconstruction, of_reference, to_8_bits
from vqbench.metrics.weights import pin_of, require_weights
from vqbench.metrics.whole import WholeImages
from vqbench.precision import plain_float32
from vqbench.results.kept_images import kept_positions
from vqbench.tokenizer import Coder

Pixels = NDArray[np.uint8]
"""(N, R, R, C) uint8 images."""
_Made = TypeVar("_Made")


class Codec(Protocol):
    """What evaluation asks of a tokenizer; its quantizer tells codebook_size, num_codebooks and bits_per_token.

    One that is a `Coder` may have a continuous path besides, which is scored too. Of one whose quantizer is None the
    indices are of no codebook, and nothing is said of them.
    """

    quantizer: Any

    def to_indices(self, images: Tensor) -> Tensor:
        """(B, C, R, R) in [-1, 1] → indices."""

    def from_indices(self, indices: Tensor) -> Tensor:
        """Indices → (B, C, R, R)."""


@dataclass(frozen=True)
class Evaluation:
    """What one pass found."""

    scores: dict[str, float]
    """Every value is finite, so it is valid JSON."""
    per_image: pd.DataFrame
    """`id`, one column per per-image score, `codes`: how many different codes (tuples, for G codebooks) it uses."""
    histogram: NDArray[np.int64] | None
    """(G, K) counts over the whole split; None, as the indices, of what has no codebook."""
    indices: NDArray[np.unsignedinteger] | None
    """(N, tokens of an image, G) code of every token, in the smallest type that holds K; None where images differ in
    how many they have."""
    tokens: float | None
    """Of one image; on average where images differ in how many they have."""
    bits: float | None
    """Of these tokens."""
    reconstructions: Pixels
    """Of the images at `kept_positions`."""
    features: NDArray[np.float32] | None
    """(N, 2048) Inception features of the reconstructions, or None where no metric compares them."""
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


def _check(pixels: Pixels | WholeImages, ids: Sequence[object], metrics: Sequence[str], batch_size: int) -> None:
    if pixels.ndim != 4 or pixels.dtype != np.uint8 or pixels.shape[1] != pixels.shape[2]:
        raise ValueError(f"pixels must be uint8 (N, R, R, C), not {pixels.dtype} {pixels.shape}")
    if len(ids) != len(pixels) or batch_size < 1:
        raise ValueError(f"{len(pixels)} images need as many ids, not {len(ids)}, and a batch of at least one image")
    if len(pixels) == 0:
        raise UsageError("the validation split holds no image", "give a dataset with validation images")
    refuse_few_images(metrics, len(pixels))
    refuse_other_channels(metrics, pixels.shape[3])
    for name in metrics:
        if isinstance(pixels, WholeImages) and isinstance(metric(name), CodecMetric):
            what = f"{name} takes images of one size, and these have sizes of their own"
            raise UsageError(what, f"leave {name} out of the metrics, or --protocol native")
        if too_small(name, pixels.shape[1]):
            raise UsageError(
                f"{name} is defined from {metric(name).min_resolution} pixels a side, the images have "
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


def padded(images: Tensor, multiple: int) -> Tensor:
    """Floats (B, C, H, W) with the edge repeated below and to the right, until `multiple` divides both sides."""
    below, right = (-side % multiple for side in images.shape[2:])
    return nn.functional.pad(images, (0, right, 0, below), mode="replicate") if below or right else images


def _divisor(tokenizer: Codec) -> int:
    """What divides the sides of the images that a tokenizer takes. Raises UsageError where it does not say."""
    if tokenizer.quantizer is None:  # a folder of reconstructions
        return 1
    owners, names = (tokenizer, tokenizer.quantizer), ("downsampling", "multiple_of")
    said = [int(found) for owner in owners for name in names if (found := getattr(owner, name, None))]
    if not said:
        what = "the tokenizer does not say what divides the sides of its images, and these have sizes of their own"
        raise UsageError(what, "give it a `downsampling`, or leave --protocol native out")
    return math.lcm(*said)


def _check_reconstruction(
    tokenizer: Codec, images: Tensor, expected: torch.Size, ids: Sequence[object], source: str = ""
) -> None:
    if images.shape != expected:
        who = getattr(tokenizer, "who", "")  # an adapter has a name: the file that is to be mended
        what = f"{f'{who}: ' if who else ''}decode gave {tuple(images.shape)} for images {tuple(expected)}"
        shows = f"`vqbench check{f' {who}' if who else ''}` shows more"
        raise VQBenchError(what, f"it must give back the size that it was given: mend it; {shows}")
    bad = (~torch.isfinite(images)).flatten(1).any(dim=1).nonzero().flatten().tolist()
    if bad:
        raise VQBenchError(
            f"the reconstruction of image {ids[bad[0]]}{source} has non-finite values (NaN or infinity)",
            "training diverged: lower the learning rate, or see the curves of the cell",
        )


class _Reconstructions:
    """What accumulates over the reconstructions of one path: values for each image, and features."""

    def __init__(self, metrics: Iterable[Metric], extractors: Mapping[str, FeatureExtractor]) -> None:
        listed = list(metrics)
        self.pairs = [known for known in listed if isinstance(known, PairMetric)]
        self.of_features = [known for known in listed if isinstance(known, FeatureMetric)]
        self.columns: dict[str, list[float]] = {known.name: [] for known in self.pairs}
        self._extract = {by: extractors[by] for by in map(features_by, self.of_features)}
        self._features: dict[str, list[NDArray[np.float32]]] = {name: [] for name in self._extract}
        self._waiting: dict[Values, list[Tensor]] = {extract.values: [] for extract in self._extract.values()}
        self._values = {known.values for known in self.pairs} | set(self._waiting)

    def add(self, references: Tensor, reconstructions: Tensor) -> None:
        """8-bit references (B, C, R, R) of one batch, and what the decoder gave for them, in [-1, 1]."""
        made = {values: of_reconstruction(reconstructions, values) for values in self._values}
        for known in self.pairs:
            of_images = _values(known, of_reference(references, known.values), made[known.values])
            for name, found in of_images.items():
                self.columns.setdefault(name, []).extend(found)
        if any(waiting and waiting[0].shape[1:] != references.shape[1:] for waiting in self._waiting.values()):
            self.make_features()  # only images of one size make a batch
        for values, waiting in self._waiting.items():
            waiting.append(made[values])
        if self._extract and self.waiting >= max(extract.awaits for extract in self._extract.values()):
            self.make_features()

    @property
    def waiting(self) -> int:
        """Images whose features are still to be made: an extractor may want more at a time than a batch has."""
        return max((sum(map(len, waiting)) for waiting in self._waiting.values()), default=0)

    def make_features(self) -> None:
        """Of the images that wait for theirs."""
        if not self.waiting:
            return
        together = {values: torch.cat(waiting) for values, waiting in self._waiting.items()}
        for waiting in self._waiting.values():
            waiting.clear()
        for name, extract in self._extract.items():
            self._features[name].append(extract(together[extract.values]))

    def features(self, by: str) -> NDArray[np.float32] | None:
        """(N, D) by what `features_by` names, or None where no metric asked for them."""
        self.make_features()
        parts = self._features.get(by)
        return np.concatenate(parts) if parts else None

    def scores(self, references: Mapping[str, NDArray[np.float32]]) -> dict[str, float]:
        """Of all images; `references` are their features, by what made them. None of a path that no image took."""
        scores = {name: float(np.mean(values)) for name, values in self.columns.items() if values}
        for known in self.of_features:
            by = features_by(known)
            if (found := self.features(by)) is not None:
                parts = max(1, self._extract[by].each)
                both = (np.split(features, parts, axis=1) for features in (references[by], found))
                of_parts = [float(known.score(own, made)) for own, made in zip(*both, strict=True)]
                scores |= _with_channels(known, of_parts, float(np.mean(of_parts)))
        return scores


def _with_channels(known: Metric, of_channels: Sequence[_Made], mean: _Made) -> dict[str, _Made]:
    """What is found of an image, or of all, under the metric's name; and of each channel where it saw several."""
    return {known.name: mean} | (
        {f"{known.name}/{c}": value for c, value in enumerate(of_channels)} if len(of_channels) > 1 else {}
    )


def _values(known: PairMetric, references: Tensor, reconstructions: Tensor) -> dict[str, list[float]]:
    """The values of the images of a batch; with those of each channel, where it has its own."""
    count, channels = references.shape[:2]
    if known.sees == "each_channel":
        found = known.score(each_as_rgb(references), each_as_rgb(reconstructions))
        seen = count * channels
    else:
        found, seen = known.score(references, reconstructions), count
    if found.shape != (seen,):
        what = f"metric '{known.name}' gave {tuple(found.shape)} for {seen} images"
        raise VQBenchError(what, f"its `score` must return one value for each, ({seen},)")
    if known.sees != "each_channel":
        return {known.name: found.tolist()}
    by_image = found.view(count, channels)
    return _with_channels(known, by_image.mT.tolist(), by_image.mean(1).tolist())


class _Pass:
    """One tokenizer over batches of images, each encoded and decoded once: all that the metrics are made of."""

    def __init__(
        self,
        tokenizer: Codec,
        asked: Sequence[Metric],
        beside: Sequence[Metric],
        extractors: Mapping[str, FeatureExtractor],
        wanted: Iterable[int],
        device: torch.device,
        multiple: int,
    ) -> None:
        quantizer = tokenizer.quantizer
        self.tokenizer, self.wanted, self.multiple = tokenizer, set(wanted), multiple
        self.encoding, self.decoding = _Stopwatch(device), _Stopwatch(device)
        self.histogram = CodeHistogram(quantizer.codebook_size, quantizer.num_codebooks) if quantizer else None
        self.decoded = _Reconstructions(asked, extractors)
        self.continuous = _Reconstructions(beside, extractors) if beside else None
        self.seen = 0
        self.codes: list[int] = []
        self.indices: list[NDArray[np.unsignedinteger]] = []
        self.kept: dict[int, Pixels] = {}

    def add(self, images: Tensor, ids: Sequence[object]) -> int:
        """One batch of 8-bit images (B, C, R, R). Returns how many images have been scored by it, earlier ones too."""
        waited, (height, width) = self.decoded.waiting, images.shape[2:]
        given = padded(to_input(images), self.multiple)
        indices, undiscretised = self.encoding.run(functools.partial(_encode, self.tokenizer), given)
        reconstructions = self.decoding.run(self.tokenizer.from_indices, indices)
        _check_reconstruction(self.tokenizer, reconstructions, given.shape, ids)
        reconstructions = reconstructions[..., :height, :width]
        first = self.seen
        self.seen += len(images)
        if self.histogram is not None:
            self._count(indices, self.histogram)
        self.decoded.add(images, reconstructions)
        for i in self.wanted & set(range(first, self.seen)):
            self.kept[i] = to_8_bits(reconstructions[i - first]).permute(1, 2, 0).cpu().numpy()
        if undiscretised is not None and self.continuous is not None:
            without_codes = undiscretised()  # decoded by itself: the scores of codes stay what they are
            _check_reconstruction(self.tokenizer, without_codes, given.shape, ids, " without quantization")
            self.continuous.add(images, without_codes[..., :height, :width])
        return waited + len(images) - self.decoded.waiting

    def finish(self) -> int:
        """Score what is left after the last batch. Returns how many images that were."""
        waited = self.decoded.waiting
        for path in (self.decoded, self.continuous):
            if path is not None:
                path.make_features()
        return waited

    def _count(self, indices: Tensor, histogram: CodeHistogram) -> None:
        histogram.update(indices)
        by_position = indices.reshape(len(indices), -1, len(histogram.counts)).cpu()
        self.codes += different_codes(by_position, histogram.counts.shape[1])
        self.indices.append(by_position.numpy().astype(np.min_scalar_type(histogram.counts.shape[1] - 1)))

    @property
    def columns(self) -> dict[str, list[float]]:
        """Metric → the values of the images, of paths that there are."""
        beside = self.continuous.columns if self.continuous is not None else {}
        return self.decoded.columns | {name: values for name, values in beside.items() if values}

    def scores(self, references: Mapping[str, NDArray[np.float32]]) -> dict[str, float]:
        """Of metrics over reconstructions; `references` are the features of all images, by extractor."""
        beside = self.continuous.scores(references) if self.continuous is not None else {}
        return self.decoded.scores(references) | beside


def _loaded(
    metrics: Iterable[Metric], explicit: Mapping[str, Path | None], device: torch.device, home: Path, channels: int
) -> dict[str, FeatureExtractor]:
    """Load what `metrics` need: networks become theirs; extractors are returned, by `features_by`."""
    extractors: dict[str, FeatureExtractor] = {}
    networks: dict[str, nn.Module] = {}
    for known in metrics:
        weights = weights_of(known)
        given = explicit.get(pin_of(weights).option) if weights else None
        if (by := features_by(known)) and by not in extractors:
            extractors[by] = load_extractor(known, given, device, home, channels)
        if isinstance(known, PairMetric) and weights:
            if weights not in networks:
                networks[weights] = known.load(require_weights(weights, given, False, home), home).to(device).eval()
            known.network = networks[weights]
    return extractors


def _refuse_not_finite(
    scores: Mapping[str, float], columns: Mapping[str, Sequence[float]], ids: Sequence[object]
) -> None:
    for name, values in columns.items():
        if bad := [i for i, value in enumerate(values) if not np.isfinite(value)]:
            raise VQBenchError(f"metric '{name}' of image {ids[bad[0]]} is {values[bad[0]]}", "mend its `score`")
    for name, value in scores.items():
        if not np.isfinite(value):
            raise VQBenchError(f"metric '{name}' is {value}", "mend its `score`")


def evaluate(
    tokenizer: Codec,
    pixels: Pixels | WholeImages,
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

    pixels: uint8 (N, R, R, C) after crop and resize, or each at its own size; they are both input and reference. What
    has its own size is encoded by itself, padded to what the tokenizer takes, and scored without that. The tokenizer
    is moved to `device`, runs in eval mode and float32, and has its training mode back afterwards. `progress(done,
    total)` counts images, those whose reference features are made too. Raises UsageError for missing weights, images
    too small for a metric, or of other channels than it sees; VQBenchError for an index outside the codebook or a
    reconstruction that is not finite.
    """
    _check(pixels, ids, metrics, batch_size)
    device, home = device or torch.device("cpu"), home or default_home()
    asked, beside = ([copy.copy(metric(name)) for name in names] for names in (metrics, companions(metrics)))
    explicit = {"inception_weights": inception_weights, "lpips_weights": lpips_weights}
    extractors = _loaded([*asked, *beside], explicit, device, home, pixels.shape[3])
    kept = kept_positions(len(pixels), pixels.shape[1], pixels.shape[3])
    whole = pixels if isinstance(pixels, WholeImages) else None
    seen = _Pass(tokenizer, asked, beside, extractors, kept, device, _divisor(tokenizer) if whole else 1)
    step = counting(progress or (lambda done, total: None), len(pixels) * (1 + len(extractors)))
    if isinstance(tokenizer, nn.Module):
        tokenizer.to(device)  # before inference mode: tensors that are made in it cannot be trained afterwards
    with torch.inference_mode(), plain_float32(device), _eval_mode(tokenizer):
        references = {
            name: reference_features(extract, pixels, validation_digest, home, step)
            for name, extract in extractors.items()
        }
        for images in batches(pixels, batch_size, device):
            first = seen.seen
            step(seen.add(images, ids[first : first + len(images)]))
        step(seen.finish())
        of_codec = {
            m.name: float(m.score(tokenizer, pixels))
            for m in asked
            if isinstance(m, CodecMetric) and not isinstance(pixels, WholeImages)
        }
    scores: dict[str, float] = {}
    codes: dict[str, list[int]] = {}
    counts = indices = tokens = bits = None
    if seen.histogram is not None:
        counts, codes = seen.histogram.counts, {"codes": seen.codes}
        indices = np.concatenate(seen.indices) if whole is None else None
        tokens = float(counts[0].sum() / len(pixels)) if indices is None else indices.shape[1]
        bits_per_token = float(tokenizer.quantizer.bits_per_token)
        bits = bits_per_token * tokens
        facts = CodeFacts(bits_per_token, len(pixels), whole.area if whole else pixels.shape[1] * pixels.shape[2])
        scores = code_scores([m for m in asked if isinstance(m, CodeMetric)], counts, facts)
    scores |= seen.scores(references) | of_codec
    _refuse_not_finite(scores, seen.columns, ids)
    return Evaluation(
        scores=scores,
        per_image=pd.DataFrame({"id": list(ids), **seen.columns, **codes}),
        histogram=counts,
        indices=indices,
        tokens=tokens,
        bits=bits,
        reconstructions=np.stack([whole.middle(seen.kept[i]) if whole else seen.kept[i] for i in kept]),
        features=seen.decoded.features("inception"),
        reference_features=references.get("inception"),
        encode_images_per_s=seen.encoding.images_per_s,
        decode_images_per_s=seen.decoding.images_per_s,
    )
