"""The training algorithm, as a Lightning module that is the same for every method.

Everything random is a function of (seed, images seen), and schedules are functions of images seen, so a run
that was interrupted and resumed gives the same weights as one that ran through.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from vqbench.inputs import to_input
from vqbench.quantizer import Quantized, TrainingState
from vqbench.recipe import Execution, Recipe
from vqbench.seeds import derive_seed, seeded
from vqbench.tokenizer import Reconstruction, Tokenizer
from vqbench.training.codewatch import CodeWatch
from vqbench.training.collapse import CollapseWatch
from vqbench.training.discriminator import PatchDiscriminator
from vqbench.training.lean_lightning import lightning
from vqbench.training.losses import (
    ReconstructionLoss,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    standing_for,
)
from vqbench.training.parts import Parts
from vqbench.training.ranks import agree_on, smallest
from vqbench.training.steps import (
    curve_point,
    floats,
    learning_rate,
    loss_per_nat,
    optimizer_of,
    quantizer_terms,
    reconstruction_terms,
    seed_noise,
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
                PatchDiscriminator(recipe.discriminator_channels, recipe.discriminator_layers, recipe.image_channels)
                if recipe.gan != "none"
                else None
            )
        self.average: AveragedModel | None = None
        if recipe.ema_halflife_images:
            self.average = AveragedModel(tokenizer).requires_grad_(False)  # type: ignore[no-untyped-call]
        self.codes = CodeWatch(tokenizer.quantizer.codebook_size, tokenizer.quantizer.num_codebooks)
        self.collapse_watch = CollapseWatch(recipe.images_total)
        self.window_moved = False
        self.register_buffer("pixel_mse", torch.ones(()))
        self.register_buffer("pixel_distance", torch.ones(()))  # as the recipe measures it, without its weight
        self.parts = self.reconstruction_loss.parts = Parts(recipe, Execution(), torch.device("cpu"))
        self.images_seen = 0
        self.seconds = 0.0
        self.peak_memory_bytes = 0
        self.optimizer_states: list[dict[str, Any]] = []

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam for the tokenizer and, where there is a GAN, for the discriminator."""
        trained = [self.tokenizer, *([self.discriminator] if self.discriminator is not None else [])]
        optimizers = [optimizer_of(module, self.recipe, self.device) for module in trained]
        for optimizer, state in zip(optimizers, self.optimizer_states, strict=False):
            for group in state["param_groups"]:
                group["fused"] = optimizer.defaults["fused"]  # the checkpoint may be another device's
            optimizer.load_state_dict(state)
            _lay_out_as_parameters(optimizer)
        return optimizers

    def run_by(self, parts: Parts) -> None:
        """Have the networks run as `parts` does, from now on."""
        self.parts = self.reconstruction_loss.parts = parts
        self.tokenizer.run = parts.coded
        for network in (self.tokenizer.encoder, self.tokenizer.decoder):
            network.recomputes = parts.execution.activation_checkpointing
        is_cut, recipe = parts.execution.micro_batch != 0, self.recipe
        self.tokenizer.decoder.ends_before_last = is_cut and recipe.gan != "none" and recipe.gan_adaptive
        coders: list[Any] = [self.tokenizer, *([self.average.module] if self.average is not None else [])]
        networks = [network for coder in coders for network in (coder.encoder, coder.decoder)]
        for network in (*networks, self.discriminator, self.reconstruction_loss.perceptual):
            if network is not None:
                parts.lay_out(network)

    def on_fit_start(self) -> None:
        """Move the perceptual network, which is no submodule, and agree on the micro-batch, which each device found."""
        self.reconstruction_loss.to(self.device)
        execution, share = self.parts.execution, self.recipe.batch_size // self.trainer.world_size
        if (agreed := smallest(execution.at_once(share), self.device)) < execution.at_once(share):
            self.parts.execution = dataclasses.replace(execution, micro_batch=agreed)
            self.run_by(self.parts)

    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> Tensor:
        """Pixels (B, C, R, R) as loaders send them, uint8 → images in [-1, 1], made on this device."""
        return to_input(batch)

    def training_step(self, images: Tensor, batch_index: int) -> None:
        """One optimiser step on this device's share of a batch, images (B, C, R, R) in [-1, 1]."""
        seed_noise(self.device, derive_seed("noise", self.seed, self.global_rank, self.images_seen))
        self._begin_step(images)
        if self._adversary_is_on() and self.images_seen - self.recipe.batch_size < self.recipe.gan_start_images:
            self.collapse_watch.forget()  # fidelity is given up for likeness from here on
        output: Reconstruction = self.tokenizer(images)
        terms, objective = self._terms_of_images(images, output)
        own = self._quantizer_terms(output, terms)
        terms |= own
        loss = torch.stack([term.detach().float() for term in terms.values()]).sum()
        self._descend(0, torch.stack([term.float() for term in (*objective, *own.values())]).sum(), self.tokenizer)
        if self.average is not None:
            self._update_average(self.average)
        if self._adversary_is_on():
            terms["discriminator"] = self._train_discriminator(images, output.images.detach())
        self._end_step(images, output, {"loss": loss, **terms})

    def _begin_step(self, images: Tensor) -> None:
        state = TrainingState(
            images_seen=self.images_seen,
            images_total=self.recipe.images_total,
            pixel_values_per_token=float(images.shape[1] * self.tokenizer.downsampling**2),
            loss_per_nat=loss_per_nat(self.recipe, self.pixel_distance),
        )
        self.tokenizer.quantizer.advance(state)
        for optimizer in self._optimizers():
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.recipe, self.images_seen)

    def _quantizer_terms(self, output: Reconstruction, taken: dict[str, Tensor]) -> dict[str, Tensor]:
        return quantizer_terms(output.quantized.losses, taken)

    def _adversary_is_on(self) -> bool:
        return self.discriminator is not None and self.images_seen >= self.recipe.gan_start_images

    def _terms_of_images(self, images: Tensor, output: Reconstruction) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Terms of reconstruction and adversary by name, and scalars whose gradient theirs is."""
        if self._adversary_is_on() and self.recipe.gan_adaptive:
            return self._balanced_terms(images, output)
        terms = reconstruction_terms(self.reconstruction_loss, images, output)
        if self._adversary_is_on():
            terms["gan"] = self.recipe.gan_weight * self._generator_loss(output.images)
        return terms, list(terms.values())

    def _generator_loss(self, reconstructions: Tensor) -> Tensor:
        assert self.discriminator is not None
        assert self.recipe.gan != "none"
        self.discriminator.requires_grad_(False)
        return generator_loss(self.recipe.gan, self.parts.judged(self.discriminator, reconstructions))

    def _balanced_terms(self, images: Tensor, output: Reconstruction) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Terms with the adversary weighed by gradients (eq. 7), and a scalar whose gradient is that of them all.

        Gradients are taken at the images that were decoded, so that LPIPS goes backwards once, and not once for the
        weight and once more for the step; what lies below hears of their sum. They are added in the order in which a
        backward through everything adds them.
        """
        paths = [path.float() for path in (output.images, output.continuous) if path is not None]
        with torch.autocast(self.device.type, enabled=False):
            leaves = [path.detach().requires_grad_() for path in paths]
        shown = [leaf.view_as(leaf) for leaf in leaves]  # counters of operations hook what a module gets, and no leaf
        apart = dataclasses.replace(output, images=shown[0], continuous=shown[1] if len(shown) > 1 else None)
        terms = reconstruction_terms(self.reconstruction_loss, images, apart)
        adversarial = self._generator_loss(shown[0])
        with torch.autocast(self.device.type, enabled=False):
            of_terms = [torch.autograd.grad(t, leaves, allow_unused=True) for t in reversed(terms.values())]
            by_leaf = [[g for g in found if g is not None] for found in zip(*of_terms, strict=True)]
            (of_adversary,) = torch.autograd.grad(adversarial, leaves[0], retain_graph=True)
            weight = self.recipe.gan_weight * adaptive_weight(
                standing_for(paths, [functools.reduce(torch.add, found) for found in by_leaf]),
                standing_for(paths[:1], [of_adversary]),
                self.tokenizer.decoder.last.weight,
            )
            terms["gan"] = weight * adversarial
            by_leaf[0][:0] = torch.autograd.grad(terms["gan"], leaves[0])
            terms = {name: term.detach() for name, term in terms.items()}
            return terms, [standing_for(paths, [functools.reduce(torch.add, found) for found in by_leaf])]

    def _train_discriminator(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        assert self.discriminator is not None
        assert self.recipe.gan != "none"
        self.discriminator.requires_grad_(True)
        real, fake = (self.parts.judged(self.discriminator, shown) for shown in (images, reconstructions))
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
        # in place: what is bound anew is another tensor than DDP and a checkpoint's loader know
        self.pixel_mse.copy_(nn.functional.mse_loss(reconstructions, images))
        is_l1 = self.recipe.pixel_loss == "l1"
        self.pixel_distance.copy_(nn.functional.l1_loss(reconstructions, images) if is_l1 else self.pixel_mse)
        agree_on(self.buffers())
        self.images_seen += self.recipe.batch_size
        watch_errors(self.collapse_watch, self.recipe, images, output)
        self.last = (terms, output.quantized)
        logged, errors = output.quantized.diagnostics, self.collapse_watch.unsettled
        beside = {("logged", name): value for name, value in logged.items()}
        beside |= {("error", name): value for name, value in errors.items()}
        self.window_moved = self.codes.update(
            output.quantized.indices, self.images_seen, self.trainer.world_size, beside
        )
        if self.window_moved:
            found = self.codes.beside
            self.window_diagnostics = {name: found["logged", name] for name in logged}
            self.collapse_watch.settle({name: found["error", name] for name in errors})

    def curve_point(self) -> dict[str, float]:
        """Losses, diagnostics and code statistics, as they stand, for one line of metrics.jsonl."""
        decibels = float(10 * torch.log10(4.0 / self.pixel_mse.clamp(min=1e-12)))  # of a batch, floats, not protocol
        terms, quality = self.last[0], {"psnr": decibels}
        return curve_point(self.recipe, self.images_seen, terms, quality, self.codes, self.diagnostics())

    def diagnostics(self) -> dict[str, float]:
        """What the quantizer logged of the last batch."""
        return floats(self.last[1].diagnostics)

    @torch.no_grad()
    def _update_average(self, average: AveragedModel) -> None:
        """As `AveragedModel.update_parameters`, which asks the device how often it was called."""
        averaged: list[Tensor] = list(average.module.parameters())
        trained: list[Tensor] = list(self.tokenizer.parameters())
        if self.images_seen == 0:
            torch._foreach_copy_(averaged, trained)
        else:
            decay = 0.5 ** (self.recipe.batch_size / self.recipe.ema_halflife_images)
            torch._foreach_lerp_(averaged, trained, 1 - decay)
        for own, new in zip(average.module.buffers(), self.tokenizer.buffers(), strict=True):
            own.copy_(new)
        average.n_averaged += 1

    last: tuple[dict[str, Tensor], Quantized]
    window_diagnostics: dict[str, float]
    """What the quantizer logged when the window last moved."""

    def state_to_save(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "module": self.state_dict(),
            "optimizers": [o.optimizer.state_dict() for o in self._optimizers()],
            "images_seen": self.images_seen,
            "seconds": self.seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
            "artifact_sha256": self.tokenizer.quantizer.artifact_sha256,
            "codes": self.codes.state(),
            "collapse": self.collapse_watch.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state_to_save`, before training starts."""
        self.load_state_dict(state["module"])
        self.optimizer_states = state["optimizers"]
        self.images_seen, self.seconds = state["images_seen"], state["seconds"]
        self.peak_memory_bytes = state["peak_memory_bytes"]
        # whose numbers are the module's now; those that were made since may be others
        self.tokenizer.quantizer.artifact_sha256 = state.get("artifact_sha256", "")
        if "codes" in state:  # checkpoints of earlier versions have neither
            self.codes.restore(state["codes"], first_device=int(os.environ.get("LOCAL_RANK", "0")) == 0)
            self.collapse_watch.restore(state["collapse"])


def _lay_out_as_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Have what an optimiser keeps lie in memory as its parameters do: the checkpoint may be of another layout."""
    for parameter, kept in optimizer.state.items():
        for name, value in kept.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                kept[name] = torch.empty_like(parameter).copy_(value)
