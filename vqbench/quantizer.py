"""The contract between the harness and a quantizer, the only part in which compared runs differ."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from vqbench.artifact import Artifact as Artifact
from vqbench.space import Choices as Choices  # so that a method file finds them beside Quantizer
from vqbench.space import Range as Range

_Method = TypeVar("_Method", bound=Callable[..., Any])


@dataclass
class Quantized:
    """What a quantizer returns for one batch."""

    latents: Tensor
    """(B, out_channels, h, w), what the decoder gets; differentiable in training."""
    indices: Tensor
    """(B, h, w), or (B, h, w, G) for G codebooks; int64 in [0, codebook_size)."""
    losses: dict[str, Tensor] = field(default_factory=dict)
    """Scalars that are added to the training loss as they stand: each has its own weight applied."""
    continuous: Tensor | None = None
    """A second latent, shaped like `latents`, that the recipe decodes too in training (VAEVQ's dual path).

    A method that has one in training has one in eval mode: what it quantizes there, as it was before, so that
    `psnr_continuous` less `psnr` is the cost of quantization alone. One whose `latents` in training are themselves no
    codes (SoftVQ's mixtures) returns in eval mode alone what they were, or were about: it is scored beside the codes,
    and no second time trained."""
    continuous_weight: float = 1.0
    """Weight of the reconstruction loss of `continuous`, relative to that of `latents`; of weight 0 it has no score."""
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    """Scalars that are logged by name and have no effect. `latent_rms`, `code_rms`, `sigma_median` and
    `alignment_weight_max` (the largest weight that draws a latent to its code) are also watched for a collapse, and
    `alignment_rms` (latents from their codes, in sigmas) is told with one."""


@dataclass(frozen=True)
class GradientRoutes:
    """Where gradients arrive in training, as the method's paper says; `vqbench check` holds a method to it."""

    decoder_to_input: bool
    """The decoder's gradient reaches the encoder output z."""
    decoder_to_parameters: bool
    """The decoder's gradient reaches the quantizer's own parameters."""
    losses_to_input: bool
    """The quantizer's losses reach z."""
    losses_to_parameters: bool
    """The quantizer's losses reach its own parameters."""


@dataclass(frozen=True)
class TrainingState:
    """What a schedule may depend on; handed to `Quantizer.advance` before each training step."""

    images_seen: int
    """Training images seen before this step, over all devices."""
    images_total: int
    """The budget in images."""
    pixel_values_per_token: float
    """3 H W / (h w): how many pixel values one token stands for."""
    loss_per_nat: Tensor
    """0-d, detached: what one nat per pixel value is worth in units of the recipe's pixel term w · |x − x̂|ᵖ.

    2 · w · mse for l2, w · mae for l1, with the last step's error (1 before the first step). A method whose paper
    adds nats to a likelihood of the pixels multiplies by it, and keeps its balance with any pixel term: Gaussian
    noise of variance s² costs ½ (x − x̂)² / s² + log s nats a pixel value, whose gradient at the best s², the mse,
    is ∇mse / 2 mse; so times 2 w mse it is that of w · mse. Laplace noise of scale b costs |x − x̂| / b + log 2b,
    with gradient ∇mae / mae at the best b, the mae; so times w · mae it is that of w · mae.
    """


@dataclass(frozen=True)
class PaperRow:
    """One row of the table in which a method's paper takes its components apart."""

    name: str
    """As the paper calls it."""
    components: frozenset[str]
    """The components that are on."""
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Metric → what it was measured on → value, as printed. Another protocol than ours: shown, never compared."""


@dataclass(frozen=True)
class Published:
    """A score that a paper or its code states for a method. Another protocol than ours: shown, never compared."""

    metric: str
    """A name among vqbench's metrics."""
    value: float
    """As printed, in the unit of the metric: a share where the paper has per cent."""
    measured_on: str
    """Data, resolution, tokens and codes, and what FID was taken against; what the source leaves open, said so."""
    source: str
    """The table or figure, and whose."""
    presets: tuple[str, ...] = ("",)
    """The forms of the method that it is of; "" is the method without a preset."""


def full_precision(method: _Method) -> _Method:
    """Run a quantizer's method in float32 whatever the autocast around it.

    Distances in bfloat16 assign close codes wrongly and round FSQ's index past the last code, so each
    `forward` carries this. Floating-point tensor arguments are cast; nothing is cast back.
    """

    @functools.wraps(method)
    def in_float32(self: nn.Module, *args: Any) -> Any:
        cast = [a.float() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
        if torch.compiler.is_exporting():  # a program that torch.export makes has no autocast around it
            return method(self, *cast)
        device = next((a.device.type for a in args if isinstance(a, Tensor)), "cpu")
        with torch.autocast(device, enabled=False):
            return method(self, *cast)

    return in_float32  # type: ignore[return-value]


class Quantizer(nn.Module):
    """Between encoder and decoder: continuous latents in, discrete indices and their latents out.

    A method subclasses this, holds a nested frozen dataclass `Config`, sets the attributes below in
    `__init__(self, config)`, and implements `forward` and `decode_indices`. The first line of its docstring
    names the paper: "Title (authors, year, arXiv:number)".
    """

    Config: ClassVar[type]
    """Frozen dataclass; each field has its default and, on the line below, a one-line docstring.
    A component that `ablate` may switch off is a bool field with `metadata={"component": "name"}`. A field that
    has no effect without it has `{"part_of": "name"}`, or several names; one that the paper leaves open has
    `{"paper_unspecified": True}`. One that is younger than stored cells has `{"added_later": True}`, and one whose
    default has moved `{"first_default": value}` (`vqbench.config.stored`)."""
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {}
    """Named settings of Config fields, asked for as `method@preset`."""

    paper_rows: ClassVar[tuple[PaperRow, ...]] = ()
    """The rows of the paper's own ablation, for `ablate --rows paper`."""

    paper_presets: ClassVar[tuple[str, ...]] = ()
    """Presets that are the paper's form too, beside the method without one: these are the rows that it means."""

    published: ClassVar[tuple[Published, ...]] = ()
    """Scores of the whole method in its paper, for `vqbench report --published`."""

    search_space: ClassVar[Mapping[str, Range | Choices]] = {}
    """Config field → what `vqbench sweep` may draw for it, where a space says `declared: GROUP`."""

    in_channels: int
    """Channels of the encoder output that `forward` takes."""
    out_channels: int
    """Channels of the latents that the decoder gets."""
    codebook_size: int
    """Effective number of codes of one codebook (for FSQ the product of its levels)."""
    num_codebooks: int = 1
    losses_of_batch_size: tuple[str, ...] = ()
    """Losses that depend on how many latents there are, by their definition and not by mistake: `vqbench check` names
    them, and does not hold them to the loss of a doubled batch."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def matched(cls, codebook_size: int, dim: int) -> dict[str, object]:
        """Config values that bring this method as near as it can to the codebook that a recipe asks for.

        The default sets the fields `codebook_size` and `dim` where Config has them. What is set with
        `--set` wins over what this returns.
        """
        wanted = {"codebook_size": codebook_size, "dim": dim}
        names = {f.name for f in fields(cls.Config)}
        return {name: value for name, value in wanted.items() if name in names}

    @classmethod
    def remark(cls, config: Any) -> str:
        """What must be said aloud of a configuration that is legal but odd; empty where there is nothing."""
        return ""

    @classmethod
    def artifact(cls, config: Any) -> Artifact | None:
        """What a configuration must be given before training (`receive`); None, the default, for nothing."""
        return None

    artifact_sha256 = ""
    """Of the array that was received, which the harness keeps with the weights."""

    def receive(self, artifact: Tensor) -> None:
        """Copy the array, of the shape that was asked for, into a buffer or parameter: it is saved with the rest."""
        raise NotImplementedError(f"{type(self).__name__} asks for an artifact and must implement receive(artifact)")

    @property
    def bits_per_token(self) -> float:
        """log2 of the number of messages that one spatial position can carry."""
        return self.num_codebooks * math.log2(self.codebook_size)

    @property
    def codebook(self) -> Tensor | None:
        """(codebook_size, out_channels) effective code vectors, or None where that would be too large."""
        return None

    @property
    def gradient_routes(self) -> GradientRoutes | None:
        """Which gradients this configuration promises, or None where the method does not say."""
        return None

    def advance(self, state: TrainingState) -> None:
        """Called before each training step. What is kept from `state` must be a buffer, so that it is resumed."""

    def decoder_modulation(self, channels: int) -> nn.Module | None:
        """A new module that conditions a norm of the decoder, of `channels` channels, by the latents; None for no norm.

        It maps the norm's output (B, channels, H, W) and the latents (B, out_channels, h, w), as the decoder gets them
        before anything else is done to them, to what takes the output's place. Its parameters lie in the decoder and
        are counted there. Of features there is no decoder, and nothing is conditioned.
        """
        return None

    def forward(self, z: Tensor) -> Quantized:
        """Quantize z (B, in_channels, h, w). In eval mode: deterministic, and without side effects."""
        raise NotImplementedError(f"{type(self).__name__} must implement forward(z) -> Quantized")

    def decode_indices(self, indices: Tensor) -> Tensor:
        """Indices, shaped as `forward` returned them, to the latents that `forward` gave the decoder in eval mode."""
        raise NotImplementedError(f"{type(self).__name__} must implement decode_indices(indices) -> latents")
