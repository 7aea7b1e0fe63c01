"""Fitting a quantizer between two learned linear maps to features that never change.

The same step as for images (`steps`) on the same kind of terms, without encoder, decoder, GAN or Lightning. An
interrupted fit starts again: it takes seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from vqbench.backbone import count_parameters
from vqbench.data.features import Features
from vqbench.data.stream import Order
from vqbench.quantizer import Quantized, Quantizer, TrainingState
from vqbench.recipe import Recipe
from vqbench.seeds import derive_seed
from vqbench.tokenizer import Coder, projection_from, projection_to
from vqbench.training.codewatch import CodeWatch
from vqbench.training.collapse import Collapse, CollapseWatch, symptom
from vqbench.training.losses import ReconstructionLoss
from vqbench.training.steps import (
    append_point,
    curve_point,
    floats,
    is_logged,
    learning_rate,
    loss_per_nat,
    optimizer_of,
    quantizer_terms,
    reconstruction_terms,
    refuse_not_finite,
    seed_noise,
    watch_errors,
)

OnPoint = Callable[[int, int, float], None]
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
        self.coder, self.recipe, self.seed = coder, recipe, seed
        self.optimizer = optimizer_of(coder, recipe, next(coder.parameters()).device)
        self.loss = ReconstructionLoss(recipe.pixel_loss, recipe.pixel_weight, None, 0.0)
        self.distance = next(coder.parameters()).new_ones(())  # as the recipe measures it, of the last step
        self.codes = CodeWatch(coder.quantizer.codebook_size, coder.quantizer.num_codebooks)
        self.collapse_watch = CollapseWatch(recipe.images_total)
        self.images_seen = 0

    def step(self, features: Tensor) -> None:
        """One optimiser step on a batch (B, D, h, w)."""
        recipe = self.recipe
        seed_noise(features.device, derive_seed("noise", self.seed, 0, self.images_seen))
        total, per_nat = recipe.images_total, loss_per_nat(recipe, self.distance)
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
        return floats(self._last[1].diagnostics)

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
    report: OnPoint,
    stop_on_collapse: bool = False,
) -> tuple[float, Collapse | None]:
    """Train `coder` for the recipe's budget and write its curves; the seconds it took, the collapse it ended in.

    Raises DivergedError, and with `stop_on_collapse` CollapsedError.
    """
    training, started = FeatureTraining(coder.train(), recipe, seed), time.perf_counter()
    curves.unlink(missing_ok=True)  # of a fit that was interrupted
    device, total = next(coder.parameters()).device, recipe.images_total
    for features in batches(train, recipe, data_seed):
        training.step(features.to(device))
        seen = training.images_seen
        if stop_on_collapse and (lasting := training.collapse_watch.lasting(seen)) is not None:
            raise lasting
        if is_logged(recipe, seen):
            append_point(curves, training.curve_point())
            report(seen, total, seen / (time.perf_counter() - started))
        if seen >= total:
            break
    return time.perf_counter() - started, training.collapse_watch.collapse
