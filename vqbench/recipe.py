"""Recipes: everything about training that is held equal between compared methods."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vqbench.config import build, in_stored_words, stored
from vqbench.errors import UsageError
from vqbench.machine.yaml_files import read_yaml, shipped

_SHIPPED = "vqbench.recipes"
_IDLE: Mapping[str, Mapping[str, Any]] = {
    "features": {
        "random_crop": False, "flip": False, "perceptual": "none", "gan": "none", "precision": "ieee",
        "ema_halflife_images": 0, "dropout": 0.0,
    },
}  # fmt: skip
"""Track → settings that do nothing in it → the value that they must have."""
_BOOKKEEPING = {"bookkeeping": True}  # has no influence on the trained weights, so it is not part of a cell's hash
_ADDED_LATER = {"added_later": True}  # see config.stored
_FLOAT32 = {"stored_as": {"ieee": "32"}}  # see config.in_stored_words


@dataclass(frozen=True)
class Recipe:
    """Backbone, losses, optimiser and budget of a training. All schedules count training images."""

    name: str = "custom"
    """Name of the recipe; not part of a cell's identity."""
    track: Literal["images", "features"] = field(default="images", metadata=_ADDED_LATER)
    """What is reconstructed: images by a tokenizer, or frozen features by the quantizer and two linear maps alone."""

    resolution: int = 32
    """Side of the square images in pixels."""
    image_channels: Literal[1, 3, 4] = field(default=3, metadata=_ADDED_LATER)
    """Channels of an image, as the dataset has them: 3 is RGB, 1 is grey, 4 are images of one place taken in four ways
    (modalities of a scanner)."""
    random_crop: bool = True
    """Crop training images at random; otherwise at the centre. Validation is always cropped at the centre."""
    flip: bool = False
    """Mirror every second training image, on average."""

    channels: int = 32
    """Channels of the backbone's first convolution."""
    channel_multipliers: tuple[int, ...] = (1, 2, 2)
    """Channels per level, as multiples of `channels`; each level after the first halves the resolution."""
    res_blocks: int = 1
    """Residual blocks per level of the encoder; the decoder has one more."""
    attention_resolutions: tuple[int, ...] = ()
    """Feature-map sides at which each residual block is followed by self-attention."""
    mid_attention: bool = False
    """Self-attention between the two residual blocks at the bottom."""
    latent_channels: int = 64
    """Channels that the encoder emits and the decoder takes, before the 1×1 convolutions to the quantizer."""
    dropout: float = 0.0
    """Dropout in residual blocks."""

    codebook_size: int = 512
    """Number of codes that every method is asked to match."""
    codebook_dim: int = 64
    """Width of a code that every method is asked to match."""

    pixel_loss: Literal["l1", "l2"] = "l2"
    """Pixel term, a mean over all values of images in [-1, 1]."""
    pixel_weight: float = 1.0
    """Weight of the pixel term."""
    perceptual: Literal["none", "alex", "vgg", "squeeze"] = "none"
    """Backbone of the LPIPS term."""
    perceptual_weight: float = 1.0
    """Weight of the LPIPS term."""
    gan: Literal["none", "hinge", "non_saturating"] = "none"
    """Adversarial losses of discriminator and generator."""
    gan_weight: float = 0.8
    """Weight of the generator's adversarial term."""
    gan_adaptive: bool = True
    """Scale the adversarial term to the reconstruction's gradient at the decoder's last layer (VQGAN, eq. 7)."""
    gan_start_images: int = 0
    """Training images after which the discriminator starts."""
    discriminator_layers: int = 3
    """Strided layers of the PatchGAN discriminator."""
    discriminator_channels: int = 64
    """Channels of its first layer."""

    images: int = 8192
    """Budget: training images seen, repeats included; rounded up to whole batches."""
    batch_size: int = 16
    """Images per optimiser step, over all devices."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """Optimiser of tokenizer and discriminator."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Adam's two decay rates."""
    weight_decay: float = 0.0
    """Weight decay (decoupled for adamw)."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Learning rate after warm-up; cosine ends at zero."""
    warmup_images: int = 0
    """Linear warm-up."""
    gradient_clip: float = 0.0
    """Largest gradient norm; 0 does not clip."""
    precision: Literal["ieee", "32", "tf32", "bf16", "bf16_true"] = field(default="ieee", metadata=_FLOAT32)
    """Arithmetic of the backbone, losses and discriminator; quantizers always compute in float32. ieee: float32
    throughout; 32 is an older word for it. tf32: on CUDA, convolutions in TF32. bf16: autocast, and what it leaves in
    float32 as with tf32. bf16_true: encoder and decoder move nothing but bfloat16, norms and activations too; weights,
    losses and optimiser are float32."""
    ema_halflife_images: int = 0
    """Half-life of the averaged weights that are evaluated; 0 evaluates the last weights."""

    checkpoint_images: int = field(default=4096, metadata=_BOOKKEEPING)
    """Images between two checkpoints."""
    log_images: int = field(default=512, metadata=_BOOKKEEPING)
    """Images between two lines of metrics.jsonl."""

    def __post_init__(self) -> None:
        if self.precision == "32":
            object.__setattr__(self, "precision", "ieee")
        if not self.channel_multipliers:
            raise ValueError("channel_multipliers needs at least one level")
        if self.resolution < self.downsampling or self.resolution % self.downsampling:
            below = max(self.resolution // self.downsampling, 1) * self.downsampling
            raise ValueError(
                f"resolution {self.resolution} is not divisible by the downsampling factor {self.downsampling} "
                f"of {len(self.channel_multipliers)} levels; the nearest that is: {below}"
            )
        for field_ in dataclasses.fields(self):
            value = getattr(self, field_.name)
            if any(
                isinstance(v, float) and not math.isfinite(v) for v in (value if isinstance(value, tuple) else [value])
            ):
                raise ValueError(f"{field_.name} must be finite, not {value}")
        if self.codebook_size < 2:
            raise ValueError(f"codebook_size must be at least 2, not {self.codebook_size}")
        for name in ("images", "batch_size", "channels", "latent_channels", "codebook_dim", "res_blocks",
                     "learning_rate", "checkpoint_images", "log_images", "discriminator_layers",
                     "discriminator_channels"):  # fmt: skip
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        for name in ("gan_start_images", "warmup_images", "gradient_clip", "ema_halflife_images", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, but is {getattr(self, name)}")

        self._refuse_what_is_idle()
        if min(self.channel_multipliers) < 1:
            raise ValueError(f"channel_multipliers must be positive, not {self.channel_multipliers}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be in [0, 1), not {self.betas}")
        if self.gan != "none" and self.resolution < 2 ** (self.discriminator_layers + 2):
            raise ValueError(
                f"discriminator_layers {self.discriminator_layers} needs images of at least "
                f"{2 ** (self.discriminator_layers + 2)} px, not {self.resolution}"
            )

    def _refuse_what_is_idle(self) -> None:
        """ValueError for a setting that would do nothing in the recipe's track, and would look as if it did."""
        for name, needed in _IDLE.get(self.track, {}).items():
            if getattr(self, name) != needed:
                raise ValueError(
                    f"{name}={getattr(self, name)} has no meaning in the {self.track} track: "
                    f"{name} must be {str(needed).lower()}"
                )

    @property
    def downsampling(self) -> int:
        """Pixels per token along one side."""
        return int(2 ** (len(self.channel_multipliers) - 1))

    @property
    def steps(self) -> int:
        """Optimiser steps in the budget."""
        return -(-self.images // self.batch_size)

    @property
    def images_total(self) -> int:
        """Training images that it sees: its budget in whole batches."""
        return self.steps * self.batch_size

    @property
    def stretch(self) -> int:
        """Images between two checkpoints, in whole batches."""
        return max(1, self.checkpoint_images // self.batch_size) * self.batch_size

    def as_dict(self) -> dict[str, Any]:
        """Every field, JSON-ready, as specs hold it."""
        return in_stored_words(self)

    def identity(self) -> dict[str, Any]:
        """The fields that influence the trained weights; one that was added later only where it is set."""
        outside = {f.name for f in dataclasses.fields(self) if f.name == "name" or f.metadata.get("bookkeeping")}
        return {name: value for name, value in stored(self).items() if name not in outside}


COMPILED_PIXELS = 5 * 10**9
"""Training pixels from which on compiling pays: it takes minutes of a cell, and gives back a part of each step. 5e9 are
76,000 images of 256 px, 305,000 of 128 or 1.2 million of 64."""


@dataclass(frozen=True)
class Execution:
    """How a training is carried out: what it takes in time and memory, and of its numbers no more than the rounding.

    So a cell's result says it, and its hash does not.
    """

    compile: bool | Literal["cuda"] = False
    """Whether networks are compiled; cuda: where the device is one, and can."""
    deterministic: bool = False
    """Whether CUDA is held to algorithms that give the same bits each time."""
    micro_batch: int | Literal["auto"] = 0
    """Images that encoder, decoder and LPIPS see at a time, and see again backwards; 0: all at once, and once; auto: as
    many as the smallest GPU has room for, found when the training begins."""
    activation_checkpointing: bool = False
    """Whether what is inside a block of encoder and decoder is computed again backwards instead of kept."""

    @classmethod
    def of_spec(cls, spec: Mapping[str, Any]) -> Execution:
        """How a cell was asked to be trained; specs of earlier versions do not say it."""
        return cls(**spec.get("execution", {}))

    def identity(self, dropout: float, share: int) -> dict[str, Any]:
        """What of it changes more than the rounding of a training: dropout is drawn for each micro-batch.

        `share`: images of a batch on one device.
        """
        return {"micro_batch": self.micro_batch} if dropout > 0 and self.at_once(share) < share else {}

    def at_once(self, share: int) -> int:
        """How many of `share` images the networks see at a time; all of them where that is still to be found."""
        return share if self.micro_batch in (0, "auto") else min(share, int(self.micro_batch))

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return dataclasses.asdict(self)


def compiled_by_default(recipe: Recipe) -> bool | Literal["cuda"]:
    """Whether a training is compiled where nobody says it: on CUDA, where its budget pays for it."""
    pixels = recipe.images_total * recipe.resolution**2
    return "cuda" if pixels >= COMPILED_PIXELS else False


def recipe_names() -> list[str]:
    """The recipes that are shipped."""
    return shipped(_SHIPPED)


def load_recipe(name: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """A shipped recipe by name, or one's own by the path of a YAML file, with `overrides` over its fields.

    Raises UsageError for an unknown name, an unknown field, an ill-typed or impossible value.
    """
    values = _read(name)
    values.pop("name", None)
    if overrides and "name" in overrides:
        raise UsageError("a recipe's name cannot be set", "copy it to a YAML file of another name: --recipe my.yaml")
    title = Path(name).stem if name.endswith((".yaml", ".yml")) else name
    return build(Recipe, {"name": title, **values, **(overrides or {})}, "recipe", f"vqbench show {name}")


def _read(name: str) -> dict[str, Any]:
    values = read_yaml("recipe", name, _SHIPPED, "each line is `field: value`")
    if not isinstance(values, dict):
        raise UsageError(f"recipe {name} must be a mapping of fields to values", "each line is `field: value`")
    return values
