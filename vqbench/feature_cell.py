"""The features track: one quantizer between two learned linear maps, fitted to features that never change.

The same step as for images (`vqbench.steps`) on the same kind of terms, without encoder, decoder, GAN or Lightning.
An interrupted fit starts again: it takes seconds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vqbench.backbone import count_parameters
from vqbench.cell_files import CURVES
from vqbench.codewatch import CodeWatch
from vqbench.collapse import Collapse, CollapseWatch, symptom
from vqbench.data.features import Features, FeatureSet, open_features
from vqbench.data.stream import Order
from vqbench.errors import VQBenchError
from vqbench.home import home
from vqbench.losses import ReconstructionLoss
from vqbench.metrics.codes import CodeHistogram, code_scores
from vqbench.metrics.definitions import default_metrics, metric
from vqbench.metrics.kinds import CodeFacts, CodeMetric
from vqbench.precision import plain_float32
from vqbench.quantizer import Quantized, Quantizer, TrainingState
from vqbench.recipe import Recipe
from vqbench.seeds import derive_seed
from vqbench.steps import (
    curve_point,
    learning_rate,
    loss_per_nat,
    peak_memory_bytes,
    quantizer_terms,
    reconstruction_terms,
    refuse_not_finite,
    watch_errors,
)
from vqbench.tokenizer import Coder, configured, projection_from, projection_to, save, seeded_quantizer

_EVALUATED = 4096  # tokens at a time
Report = Callable[[int, int, float], None]
"""Called with (images done, images in all, images per second)."""


class FeatureCoder(Coder):
    """Standardised features (B, D, h, w) through a quantizer and back, by two learned linear maps per token."""

    def __init__(self, channels: int, quantizer: Quantizer, seed: int) -> None:
        super().__init__()
        self.to_quantizer = projection_to(quantizer, channels, seed)
        self.quantizer = quantizer
        self.from_quantizer = projection_from(quantizer, channels, seed)

    def quantize(self, inputs: Tensor) -> Quantized:
        """(B, D, h, w) → what the quantizer returns for it."""
        return self.quantizer(self.to_quantizer(inputs))

    def decode_latents(self, latents: Tensor) -> Tensor:
        """(B, out_channels, h, w) → (B, D, h, w)."""
        return self.from_quantizer(latents)

    def parameter_counts(self) -> dict[str, int]:
        """Trainable parameters by part, as a tokenizer's; there is neither encoder nor decoder."""
        quantizer = count_parameters(self.quantizer)
        projections = count_parameters(self.to_quantizer) + count_parameters(self.from_quantizer)
        return {"quantizer": quantizer, "projections": projections, "total": quantizer + projections}


@dataclass(frozen=True)
class FeatureCellOutcome:
    """What a cell's result is made of."""

    scores: dict[str, float]
    params: dict[str, int]
    training: dict[str, Any]
    per_image: dict[str, list[Any]]
    """Columns `id` and `quantization_error`, a row per validation item; the score is the mean."""
    histogram: NDArray[np.int64]
    indices: NDArray[np.unsignedinteger]
    """(G, K) counts over all validation tokens."""


def batches(train: Features, recipe: Recipe, seed: int) -> Iterator[Tensor]:
    """Batches (B, D, h, w) of training features in an order that depends on the seed and on how many there are.

    One of `batch_size` maps is an item of the source; where items are single vectors, a map is made of as many as
    the recipe's encoder would give for an image, so that a budget in images means the same for both.
    """
    order, position = Order(len(train), seed), 0
    side = recipe.resolution // recipe.downsampling
    height, width = (side, side) if train.shape[1:3] == (1, 1) else train.shape[1:3]
    items = recipe.batch_size * (height * width) // (train.shape[1] * train.shape[2])
    while True:
        chosen = train[[order.item(position + i) for i in range(items)]]
        position += items
        maps = torch.from_numpy(chosen).view(recipe.batch_size, height, width, train.shape[3])
        yield maps.permute(0, 3, 1, 2).contiguous()


class FeatureTraining:
    """One coder, its losses and its optimiser."""

    def __init__(self, coder: FeatureCoder, recipe: Recipe, seed: int) -> None:
        kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        self.coder, self.recipe, self.seed = coder, recipe, seed
        self.optimizer: torch.optim.Optimizer = kinds[recipe.optimizer](
            coder.parameters(), lr=recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.weight_decay
        )
        self.loss = ReconstructionLoss(recipe.pixel_loss, recipe.pixel_weight, None, 0.0)
        self.distance = next(coder.parameters()).new_ones(())  # as the recipe measures it, of the last step
        self.codes = CodeWatch(coder.quantizer.codebook_size, coder.quantizer.num_codebooks)
        self.collapse_watch = CollapseWatch(recipe.steps * recipe.batch_size)
        self.images_seen = 0

    def step(self, features: Tensor) -> None:
        """One optimiser step on a batch (B, D, h, w)."""
        recipe = self.recipe
        torch.manual_seed(derive_seed("noise", self.seed, 0, self.images_seen))
        total, per_nat = recipe.steps * recipe.batch_size, loss_per_nat(recipe, self.distance)
        # features take the place of pixels: a token stands for its D values
        self.coder.quantizer.advance(TrainingState(self.images_seen, total, float(features.shape[1]), per_nat))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(recipe, self.images_seen)
        output = self.coder(features)
        terms = reconstruction_terms(self.loss, features, output)
        self.distance = terms["pixel"].detach() / recipe.pixel_weight if recipe.pixel_weight else self.distance
        terms |= quantizer_terms(output.quantized.losses, terms)
        loss = torch.stack([term.float() for term in terms.values()]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if recipe.gradient_clip > 0:
            nn.utils.clip_grad_norm_(self.coder.parameters(), recipe.gradient_clip)
        self.optimizer.step()
        self.images_seen += recipe.batch_size
        watch_errors(self.collapse_watch, recipe, features, output)
        moved = self.codes.update(output.quantized.indices, self.images_seen)
        self._last = ({"loss": loss, **terms}, output.quantized)
        if moved and self.codes.is_full:
            diagnostics = self._diagnostics()
            found = symptom(self.coder.quantizer.codebook_size, self.codes.window(), diagnostics)
            self.collapse_watch.judge(self.images_seen, found, diagnostics)

    def _diagnostics(self) -> dict[str, float]:
        return {name: float(value.detach()) for name, value in self._last[1].diagnostics.items()}

    def curve_point(self) -> dict[str, float]:
        """One line of metrics.jsonl. Raises DivergedError where a loss is not finite."""
        terms, _ = self._last
        refuse_not_finite(terms, self.images_seen)
        error = {"distance": float(self.distance)}  # of a batch in training mode, not the protocol's error
        return curve_point(self.recipe, self.images_seen, terms, error, self.codes, self._diagnostics())


def fit(
    coder: FeatureCoder,
    train: Features,
    recipe: Recipe,
    *,
    seed: int,
    data_seed: int,
    curves: Path,
    report: Report,
    stop_on_collapse: bool = False,
) -> tuple[float, Collapse | None]:
    """Train `coder` for the recipe's budget and write its curves; the seconds it took, the collapse it ended in.

    Raises DivergedError, and with `stop_on_collapse` CollapsedError.
    """
    training, started = FeatureTraining(coder.train(), recipe, seed), time.perf_counter()
    curves.unlink(missing_ok=True)  # of a fit that was interrupted
    device, total = next(coder.parameters()).device, recipe.steps * recipe.batch_size
    for features in batches(train, recipe, data_seed):
        training.step(features.to(device))
        seen = training.images_seen
        if stop_on_collapse and (lasting := training.collapse_watch.lasting(seen)) is not None:
            raise lasting
        if seen >= total or seen // recipe.log_images > (seen - recipe.batch_size) // recipe.log_images:
            point = training.curve_point()
            with curves.open("a", encoding="utf-8") as file:
                file.write(json.dumps(point) + "\n")
            report(seen, total, seen / (time.perf_counter() - started))
        if seen >= total:
            break
    return time.perf_counter() - started, training.collapse_watch.collapse


@dataclass(frozen=True)
class FeatureEvaluation:
    """What one pass over validation features found."""

    scores: dict[str, float]
    errors: list[float]
    """Relative error of each item."""
    histogram: NDArray[np.int64]
    """(G, K) counts."""
    indices: NDArray[np.unsignedinteger]
    """(N, tokens of an item, G), in the smallest type that holds K."""


def evaluate(
    coder: FeatureCoder, validation: Features, metrics: Sequence[str] = default_metrics("features")
) -> FeatureEvaluation:
    """Scores of all validation features (N, h, w, D), each once.

    Only through indices, as for images. Raises VQBenchError for an index outside the codebook or features that come
    back not finite.
    """
    device, quantizer = next(coder.parameters()).device, coder.quantizer
    histogram, errors = CodeHistogram(quantizer.codebook_size, quantizer.num_codebooks), []
    codes_used: list[NDArray[np.unsignedinteger]] = []
    items = max(1, _EVALUATED // (validation.shape[1] * validation.shape[2]))
    coder.eval()
    with torch.inference_mode(), plain_float32(device):
        for start in range(0, len(validation), items):
            features = torch.from_numpy(validation[start : start + items]).to(device).permute(0, 3, 1, 2).contiguous()
            indices = coder.to_indices(features)
            decoded = coder.from_indices(indices)
            if decoded.shape != features.shape:
                what = f"decode_indices led to {tuple(decoded.shape)} for features {tuple(features.shape)}"
                raise VQBenchError(what, "`vqbench check` shows what breaks it")
            histogram.update(indices)
            by_item = indices.reshape(len(indices), -1, quantizer.num_codebooks).cpu().numpy()
            codes_used.append(by_item.astype(np.min_scalar_type(quantizer.codebook_size - 1)))
            errors.append((decoded.double() - features.double()).square().sum(1).mean((1, 2)).cpu())
    relative = torch.cat(errors).numpy() / _spread(validation)
    if not np.isfinite(relative).all():
        raise VQBenchError(
            "features that are decoded from indices have non-finite values (NaN or infinity)",
            "training diverged: lower the learning rate, or see the curves of the cell",
        )
    tokens = validation.shape[1] * validation.shape[2]
    of_codes = [known for known in map(metric, metrics) if isinstance(known, CodeMetric)]
    facts = CodeFacts(float(quantizer.bits_per_token), len(validation), tokens)
    scores = {"quantization_error": float(relative.mean())} if "quantization_error" in metrics else {}
    scores |= code_scores(of_codes, histogram.counts, facts)
    return FeatureEvaluation(scores, relative.tolist(), histogram.counts, np.concatenate(codes_used))


def _spread(validation: Features) -> float:
    """Mean over validation tokens of |x − m|²: the error of knowing the mean m alone."""
    tokens = validation.reshape(-1, validation.shape[3]).astype(np.float64)
    return float(np.square(tokens - tokens.mean(0)).sum(1).mean())


def run_feature_cell(
    folder: Path, weights: Path, spec: Mapping[str, Any], recipe: Recipe, enter: Callable[[str], None], report: Report
) -> FeatureCellOutcome:
    """Fit and evaluate the cell of a spec; writes metrics.jsonl below `folder` and the fitted parts to `weights`.

    `enter` is told each stage. Raises DivergedError, and VQBenchError where the features have changed since the plan.
    """
    enter("data")
    features = _planned_features(spec, recipe)
    enter("train")
    coder = FeatureCoder(features.train.shape[3], _quantizer(spec), spec["seed"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data_seed = derive_seed("data", spec["seed"], spec["dataset"]["training_digest"])  # the same for every method
    seconds, collapse = fit(
        coder.to(device),
        features.train,
        recipe,
        seed=spec["seed"],
        data_seed=data_seed,
        curves=folder / CURVES,
        report=report,
        stop_on_collapse=spec["stop_on_collapse"],
    )
    weights.parent.mkdir(parents=True, exist_ok=True)
    save(coder, weights, dict(spec))
    enter("evaluate")
    evaluation = evaluate(coder, features.validation, spec["metrics"])
    images = recipe.steps * recipe.batch_size
    training = {
        "images_seen": images,
        "train_seconds": round(seconds, 3),
        "train_images_per_s": round(images / seconds, 3),
        "peak_memory_bytes": peak_memory_bytes(device),
        "device": str(device),
        "devices": 1,
        "collapse": collapse.as_dict() if collapse is not None else None,
    }
    return FeatureCellOutcome(
        scores=evaluation.scores,
        params=coder.parameter_counts(),
        training=training,
        per_image={"id": list(features.ids), "quantization_error": evaluation.errors},
        histogram=evaluation.histogram,
        indices=evaluation.indices,
    )


def _quantizer(spec: Mapping[str, Any]) -> Quantizer:
    return seeded_quantizer(spec["method"], configured(spec["method"], spec["config"]), spec["seed"])


def _planned_features(spec: Mapping[str, Any], recipe: Recipe) -> FeatureSet:
    """The features that the plan was made for. Raises VQBenchError where they are others now."""
    wanted, features = spec["dataset"], spec["features"]
    source = open_features(
        recipe,
        home(),
        Path(features["path"]) if "path" in features else None,
        wanted["reference"],
        Path(wanted["data_root"]) if wanted["data_root"] else None,
        wanted["validation_images"],
    )
    found = (source.protocol.validation_digest, source.train_digest)
    if found != (spec["protocol"]["validation_digest"], wanted["training_digest"]):
        raise VQBenchError(
            f"the features of {wanted['reference']} have changed since this cell was planned",
            "give the command again: it plans cells for the features as they are now",
        )
    return source.load(home())
