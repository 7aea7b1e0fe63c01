"""The training algorithm, as a Lightning module that is the same for every method.

Everything random is a function of (seed, images seen), and schedules are functions of images seen, so a run
that was interrupted and resumed gives the same weights as one that ran through.
"""

from __future__ import annotations

import os
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vqbench.inputs import to_input
from vqbench.quantizer import Quantized, TrainingState
from vqbench.recipe import Recipe
from vqbench.seeds import derive_seed, seeded
from vqbench.tokenizer import Reconstruction, Tokenizer
from vqbench.training.codewatch import CodeWatch
from vqbench.training.collapse import CollapseWatch
from vqbench.training.discriminator import PatchDiscriminator
from vqbench.training.losses import ReconstructionLoss, adaptive_weight, discriminator_loss, generator_loss
from vqbench.training.steps import (
    curve_point,
    learning_rate,
    loss_per_nat,
    quantizer_terms,
    reconstruction_terms,
    watch_errors,
)


class TokenizerTraining(lightning.LightningModule):
    """One tokenizer, its losses and optimisers; `training_step` is the whole of the algorithm."""

    pixel_mse: Tensor
    pixel_distance: Tensor

    def __init__(self, tokenizer: Tokenizer, recipe: Recipe, seed: int, perceptual: nn.Module | None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.tokenizer = tokenizer
        self.recipe = recipe
        self.seed = seed
        self.reconstruction_loss = ReconstructionLoss(
            recipe.pixel_loss, recipe.pixel_weight, perceptual, recipe.perceptual_weight
        )
        with seeded("discriminator", seed):
            self.discriminator = (
                PatchDiscriminator(recipe.discriminator_channels, recipe.discriminator_layers)
                if recipe.gan != "none"
                else None
            )
        self.average = _averaged(tokenizer, recipe)
        self.codes = CodeWatch(tokenizer.quantizer.codebook_size, tokenizer.quantizer.num_codebooks)
        self.collapse_watch = CollapseWatch(recipe.steps * recipe.batch_size)
        self.window_moved = False
        self.register_buffer("pixel_mse", torch.ones(()))
        self.register_buffer("pixel_distance", torch.ones(()))  # as the recipe measures it, without its weight
        self.images_seen = 0
        self.seconds = 0.0
        self.peak_memory_bytes = 0
        self.optimizer_states: list[dict[str, Any]] = []

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam for the tokenizer and, where there is a GAN, for the discriminator."""
        kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        trained = [self.tokenizer, *([self.discriminator] if self.discriminator is not None else [])]
        r = self.recipe
        optimizers: list[torch.optim.Optimizer] = [
            kinds[r.optimizer](m.parameters(), lr=r.learning_rate, betas=r.betas, weight_decay=r.weight_decay)
            for m in trained
        ]
        for optimizer, state in zip(optimizers, self.optimizer_states, strict=False):
            optimizer.load_state_dict(state)
        return optimizers

    def on_fit_start(self) -> None:
        """The perceptual network is not a submodule, so it is moved by hand."""
        self.reconstruction_loss.to(self.device)

    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> Tensor:
        """Pixels (B, 3, R, R) as loaders send them, uint8 → images in [-1, 1], made on this device."""
        return to_input(batch)

    def training_step(self, images: Tensor, batch_index: int) -> None:
        """One optimiser step on this device's share of a batch, images (B, 3, R, R) in [-1, 1]."""
        torch.manual_seed(derive_seed("noise", self.seed, self.global_rank, self.images_seen))
        self._begin_step(images)
        if self._adversary_is_on() and self.images_seen - self.recipe.batch_size < self.recipe.gan_start_images:
            self.collapse_watch.forget()  # fidelity is given up for likeness from here on
        output: Reconstruction = self.tokenizer(images)
        terms = self._reconstruction_terms(images, output)
        if self._adversary_is_on():
            terms["gan"] = self._generator_term(output, terms)
        terms |= self._quantizer_terms(output, terms)
        loss = torch.stack([term.float() for term in terms.values()]).sum()
        self._descend(0, loss, self.tokenizer)
        if self.average is not None:
            self.average.update_parameters(self.tokenizer)
        if self._adversary_is_on():
            terms["discriminator"] = self._train_discriminator(images, output.images.detach())
        self._end_step(images, output, {"loss": loss, **terms})

    def _begin_step(self, images: Tensor) -> None:
        tokens = (images.shape[2] // self.tokenizer.downsampling) * (images.shape[3] // self.tokenizer.downsampling)
        state = TrainingState(
            images_seen=self.images_seen,
            images_total=self.recipe.steps * self.recipe.batch_size,
            pixel_values_per_token=images[0].numel() / tokens,
            loss_per_nat=loss_per_nat(self.recipe, self.pixel_distance),
        )
        self.tokenizer.quantizer.advance(state)
        for optimizer in self._optimizers():
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.recipe, self.images_seen)

    def _reconstruction_terms(self, images: Tensor, output: Reconstruction) -> dict[str, Tensor]:
        return reconstruction_terms(self.reconstruction_loss, images, output)

    def _quantizer_terms(self, output: Reconstruction, taken: dict[str, Tensor]) -> dict[str, Tensor]:
        return quantizer_terms(output.quantized.losses, taken)

    def _adversary_is_on(self) -> bool:
        return self.discriminator is not None and self.images_seen >= self.recipe.gan_start_images

    def _generator_term(self, output: Reconstruction, terms: dict[str, Tensor]) -> Tensor:
        assert self.discriminator is not None
        assert self.recipe.gan != "none"
        self.discriminator.requires_grad_(False)
        adversarial = generator_loss(self.recipe.gan, self.discriminator(output.images).float())
        weight: float | Tensor = self.recipe.gan_weight
        if self.recipe.gan_adaptive:
            reconstruction = torch.stack(list(terms.values())).sum()
            weight = weight * adaptive_weight(reconstruction, adversarial, self.tokenizer.decoder.last.weight)
        return weight * adversarial

    def _train_discriminator(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        assert self.discriminator is not None
        assert self.recipe.gan != "none"
        self.discriminator.requires_grad_(True)
        real, fake = self.discriminator(images).float(), self.discriminator(reconstructions).float()
        loss = discriminator_loss(self.recipe.gan, real, fake)
        self._descend(1, loss, self.discriminator)
        return loss

    def _optimizers(self) -> list[Any]:
        optimizers = self.optimizers()
        return optimizers if isinstance(optimizers, list) else [optimizers]

    def _descend(self, which: int, loss: Tensor, module: nn.Module) -> None:
        optimizer = self._optimizers()[which]
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, enabled=False):  # what ran in float32 forwards does so backwards too
            self.manual_backward(loss)
        if self.recipe.gradient_clip > 0:
            nn.utils.clip_grad_norm_(module.parameters(), self.recipe.gradient_clip)
        optimizer.step()

    def _end_step(self, images: Tensor, output: Reconstruction, terms: dict[str, Tensor]) -> None:
        reconstructions = output.images.detach().float()
        self.pixel_mse = nn.functional.mse_loss(reconstructions, images)
        is_l1 = self.recipe.pixel_loss == "l1"
        self.pixel_distance = nn.functional.l1_loss(reconstructions, images) if is_l1 else self.pixel_mse.clone()
        self.images_seen += self.recipe.batch_size
        watch_errors(self.collapse_watch, self.recipe, images, output)
        self.window_moved = self.codes.update(output.quantized.indices, self.images_seen, self.trainer.world_size)
        self.last = (terms, output.quantized)

    def curve_point(self) -> dict[str, float]:
        """Losses, diagnostics and code statistics, as they stand, for one line of metrics.jsonl."""
        decibels = float(10 * torch.log10(4.0 / self.pixel_mse.clamp(min=1e-12)))  # of a batch, floats, not protocol
        terms, quality = self.last[0], {"psnr": decibels}
        return curve_point(self.recipe, self.images_seen, terms, quality, self.codes, self.diagnostics())

    def diagnostics(self) -> dict[str, float]:
        """What the quantizer logged of the last batch."""
        return {name: float(value.detach()) for name, value in self.last[1].diagnostics.items()}

    last: tuple[dict[str, Tensor], Quantized]

    def state_to_save(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "module": self.state_dict(),
            "optimizers": [o.optimizer.state_dict() for o in self._optimizers()],
            "images_seen": self.images_seen,
            "seconds": self.seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
            "codes": self.codes.state(),
            "collapse": self.collapse_watch.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state_to_save`, before training starts."""
        self.load_state_dict(state["module"])
        self.optimizer_states = state["optimizers"]
        self.images_seen, self.seconds = state["images_seen"], state["seconds"]
        self.peak_memory_bytes = state["peak_memory_bytes"]
        if "codes" in state:  # checkpoints of earlier versions have neither
            self.codes.restore(state["codes"], first_device=int(os.environ.get("LOCAL_RANK", "0")) == 0)
            self.collapse_watch.restore(state["collapse"])


def _averaged(tokenizer: Tokenizer, recipe: Recipe) -> AveragedModel | None:
    if recipe.ema_halflife_images == 0:
        return None
    decay = 0.5 ** (recipe.batch_size / recipe.ema_halflife_images)
    return AveragedModel(tokenizer, multi_avg_fn=get_ema_multi_avg_fn(decay)).requires_grad_(False)  # type: ignore[no-untyped-call]
