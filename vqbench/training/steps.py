"""What an optimiser step needs, whatever is trained: its rate, its terms, and what is said of it. torch only.

Image cells and feature cells share this, so that the two tracks train by the same rules. Nothing here imports
Lightning, which takes longer to load than a feature cell trains.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from vqbench.errors import VQBenchError
from vqbench.recipe import Recipe
from vqbench.tokenizer import Reconstruction
from vqbench.training.codewatch import CodeWatch
from vqbench.training.collapse import Collapse, CollapseWatch, DivergedError
from vqbench.training.losses import ReconstructionLoss


def seed_noise(device: torch.device, seed: int) -> None:
    """Seed what a step on `device` draws from."""
    if device.type == "cpu":  # seeding devices that are not used takes a hundredth of a small step
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def optimizer_of(module: nn.Module, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    """The recipe's optimiser of a module on `device`; on CUDA in one kernel."""
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return kinds[recipe.optimizer](
        module.parameters(),
        lr=recipe.learning_rate,
        betas=recipe.betas,
        weight_decay=recipe.weight_decay,
        fused=True if device.type == "cuda" else None,
    )


def learning_rate(recipe: Recipe, images_seen: int) -> float:
    """Learning rate of the step that starts after `images_seen` images."""
    if images_seen < recipe.warmup_images:
        return recipe.learning_rate * (images_seen + recipe.batch_size) / (recipe.warmup_images + recipe.batch_size)
    if recipe.schedule == "constant":
        return recipe.learning_rate
    progress = (images_seen - recipe.warmup_images) / max(1, recipe.images_total - recipe.warmup_images)
    return 0.5 * recipe.learning_rate * (1 + math.cos(math.pi * min(progress, 1.0)))


def loss_per_nat(recipe: Recipe, distance: Tensor) -> Tensor:
    """`TrainingState.loss_per_nat` after a step whose error, as `pixel_loss` measures it unweighted, is `distance`."""
    return (1 if recipe.pixel_loss == "l1" else 2) * recipe.pixel_weight * distance


def reconstruction_terms(loss: ReconstructionLoss, target: Tensor, output: Reconstruction) -> dict[str, Tensor]:
    """Weighted terms of the quantized path and, where there is one, of the continuous path beside it."""
    seen = loss.seen_in(target)
    terms: dict[str, Tensor] = loss(target, output.images, seen)
    if output.continuous is not None:  # the second path is held to the same reconstruction loss
        weight = output.quantized.continuous_weight
        second = loss(target, output.continuous, seen)
        terms |= {f"continuous_{name}": weight * term for name, term in second.items()}
    return terms


def quantizer_terms(losses: dict[str, Tensor], taken: Collection[str]) -> dict[str, Tensor]:
    """The quantizer's own losses. Raises VQBenchError where one is called like a loss of the recipe."""
    clash = sorted({*losses} & {*taken, "loss", "discriminator", "gan"})
    if clash:
        raise VQBenchError(
            f"the quantizer calls a loss '{clash[0]}', which is the name of one of the recipe's",
            "give it another name in Quantized(losses={…})",
        )
    return losses


def watch_errors(watch: CollapseWatch, recipe: Recipe, target: Tensor, output: Reconstruction) -> None:
    """Show the watch how far a step's reconstructions were from `target`, whatever measure the recipe trains with."""
    if recipe.pixel_weight == 0:  # the error is not minimised, and may go where it likes
        return
    with torch.no_grad():
        error = nn.functional.mse_loss(output.images.float(), target)
        trained = output.continuous if output.quantized.continuous_weight else None
        continuous = None if trained is None else nn.functional.mse_loss(trained.float(), target)
        watch.observe(recipe.batch_size, error, continuous)


def curve_point(
    recipe: Recipe,
    images_seen: int,
    terms: Mapping[str, Tensor],
    quality: Mapping[str, float],
    codes: CodeWatch,
    diagnostics: Mapping[str, float],
) -> dict[str, float]:
    """One line of metrics.jsonl after the step that ended at `images_seen`; `quality` is how well it reconstructed."""
    return {
        "images": images_seen,
        "time": round(time.time(), 3),
        "learning_rate": learning_rate(recipe, images_seen - recipe.batch_size),
        **{f"loss/{name}" if name != "loss" else name: value for name, value in floats(terms).items()},
        **quality,
        **codes.read(images_seen),
        **{f"quantizer/{name}": value for name, value in diagnostics.items()},
    }


def is_logged(recipe: Recipe, images_seen: int) -> bool:
    """Whether the step that ended at `images_seen` has a point in the curves: every `log_images`, and the last one."""
    before, total = images_seen - recipe.batch_size, recipe.images_total
    return images_seen >= total or images_seen // recipe.log_images > before // recipe.log_images


def append_point(path: Path, point: Mapping[str, float]) -> None:
    """Write a point to the end of a metrics.jsonl."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(point) + "\n")


def floats(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Scalars as floats; the device is waited for once, not once for each."""
    found: dict[str, float] = {}
    for device in {value.device for value in values.values()}:
        here = {name: value.detach().reshape(()) for name, value in values.items() if value.device == device}
        wide = torch.float32 if device.type == "mps" else torch.float64
        numbers = torch.stack([value.to(wide) for value in here.values()]).tolist()
        found |= dict(zip(here, numbers, strict=True))
    return {name: found[name] for name in values}


def refuse_not_finite(terms: Mapping[str, Tensor], images_seen: int) -> None:
    """Raise DivergedError, naming the terms, where a loss is NaN or infinite."""
    bad = [name for name, term in terms.items() if not torch.isfinite(term).all()]
    if bad:
        named = ", ".join(name for name in bad if name != "loss") or "loss"
        raise DivergedError(
            f"training diverged: {named} is not finite after {images_seen} images",
            "a lower rate often helps: --set learning_rate=…, or --set gradient_clip=1",
            Collapse("diverged", f"{named} is not finite", images_seen),
        )


def peak_memory_bytes(device: torch.device) -> int:
    """Largest memory that this process has held: of the CUDA allocator, or resident on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
