"""How the networks of a training are run: compiled, in micro-batches, in bfloat16. What they compute stays the same."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from vqbench.backbone import Decoder
from vqbench.metrics.perceptual import Perceptual
from vqbench.precision import arithmetic, convolutions_in, float32_operations
from vqbench.recipe import Execution, Recipe

Network = Callable[..., Any]


class Parts:
    """Runs encoder and decoder, discriminator and perceptual network, as a recipe and an `Execution` ask."""

    def __init__(self, recipe: Recipe, execution: Execution, device: torch.device, backend: str = "inductor") -> None:
        self.execution, self.device, self.precision = execution, device, recipe.precision
        self.casts = recipe.precision == "bf16_true"
        self.draws = recipe.dropout > 0
        asked = execution.compile
        self.compiles = (device.type == "cuda" and can_compile()) if asked == "cuda" else asked
        self._backend = backend
        self._compiled: dict[Network, Network] = {}

    def coded(self, network: nn.Module, *inputs: Tensor) -> Tensor:
        """Encoder or decoder on inputs (B, C, h, w), float32 at both ends, a micro-batch at a time."""
        whole = self._whole(network, in_bfloat16 if self.casts else None)
        output = self.in_micro_batches(whole, *inputs)
        if isinstance(network, Decoder) and network.ends_before_last:
            output = self._whole(network.last, in_bfloat16 if self.casts else None)(output)
        # back from channels last: noise is drawn in the order in which values lie in memory
        return output.contiguous() if self.compiles else output

    def judged(self, network: nn.Module, images: Tensor) -> Tensor:
        """The discriminator on images (B, C, R, R), whose BatchNorm sees them all."""
        cast = torch.autocast(self.device.type, torch.bfloat16) if self.casts else contextlib.nullcontext()
        with cast:
            logits: Tensor = self._whole(network)(images)
        return logits.float()

    def features(self, network: Perceptual, images: Tensor) -> tuple[Tensor, ...]:
        """What the perceptual network sees in targets, a tensor for each layer; no gradient."""
        with torch.no_grad():
            seen: tuple[Tensor, ...] = self._whole(network, type(network).features)(images)
        return seen

    def distance(self, network: Perceptual, images: Tensor, features: tuple[Tensor, ...]) -> Tensor:
        """LPIPS (B,) of images to what `features` found, a micro-batch at a time."""
        return self.in_micro_batches(self._whole(network, type(network).distance), images, *features)

    def in_micro_batches(self, network: Network, *inputs: Tensor) -> Tensor:
        """`network` on inputs that share their first axis, a micro-batch of it at a time.

        What comes after sees the whole batch, and so do a quantizer and BatchNorm: the gradient is that of one batch.
        Of all micro-batches but the last nothing is kept; backwards they are computed again, one after the other.
        """
        size = self.execution.at_once(len(inputs[0]))
        if size == len(inputs[0]) or not torch.is_grad_enabled():
            output: Tensor = network(*inputs)
            return output
        *before, last = zip(*(torch.split(part, size) for part in inputs), strict=True)
        again = functools.partial(checkpoint, network, use_reentrant=False, preserve_rng_state=self.draws)
        return torch.cat([*(again(*parts) for parts in before), network(*last)])

    def _whole(self, network: nn.Module, method: Network | None = None) -> Network:
        """A network, or a function of it and inputs, compiled where that is asked for."""
        if self.compiles:  # dynamic=False: shapes stay, or are those of the last micro-batch
            key = network if method is None else method
            if key not in self._compiled:
                self._compiled[key] = torch.compile(key, dynamic=False, backend=self._backend)
            return self._compiled[key] if method is None else functools.partial(self._compiled[key], network)
        return network if method is None else functools.partial(method, network)

    def lay_out(self, network: nn.Module) -> None:
        """Channels last, in which compiled convolutions are fast; values stay as they are."""
        if self.compiles:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @contextlib.contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Around a training: its float32, and CUDA's algorithms. All settings come back."""
        with float32_operations(convolutions_in(self.precision, self.device)), algorithms(self.execution.deterministic):
            yield

    def said(self) -> dict[str, Any]:
        """What was done in fact, as a result says it."""
        cuda = self.device.type == "cuda"
        return {
            **arithmetic(self.precision, self.device),
            "compile": self.compiles,
            "deterministic": self.execution.deterministic,
            "micro_batch": self.execution.micro_batch,
            "activation_checkpointing": self.execution.activation_checkpointing,
            "fused_optimizer": cuda,
            "cudnn_benchmark": cuda and not self.execution.deterministic,
        }


def in_bfloat16(network: nn.Module, *inputs: Tensor) -> Tensor:
    """A network with its parameters and all that it computes in bfloat16; their gradients are float32, as they are.

    Norms take their statistics in float32 inside, as their kernels do. float32 in, float32 out.
    """
    cast = {name: parameter.to(torch.bfloat16) for name, parameter in network.named_parameters()}
    with torch.autocast(inputs[0].device.type, enabled=False):
        output: Tensor = functional_call(network, cast, tuple(part.to(torch.bfloat16) for part in inputs))
    return output.float()


def can_compile() -> bool:
    """Whether there is what torch.compile needs for CUDA: Triton, and a compiler of C for its launchers."""
    from torch.utils._triton import has_triton

    return sys.platform == "linux" and any(map(shutil.which, ("cc", "gcc", "clang"))) and has_triton()


@contextlib.contextmanager
def algorithms(deterministic: bool) -> Iterator[None]:
    """cuDNN's fastest algorithm for shapes that stay, or, deterministic, algorithms that give the same bits each time.

    An operation that has none warns, by name. Without CUDA nothing changes but that torch is asked for it.
    """
    cudnn, filled = torch.backends.cudnn, torch.utils.deterministic
    before = cudnn.benchmark, cudnn.deterministic, filled.fill_uninitialized_memory  # type: ignore[attr-defined]
    asked, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn.benchmark, cudnn.deterministic = not deterministic, deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA's first product is computed
        torch.use_deterministic_algorithms(True, warn_only=True)
        filled.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(asked, warn_only=warns)
        cudnn.benchmark, cudnn.deterministic = before[:2]
        filled.fill_uninitialized_memory = before[2]  # type: ignore[attr-defined]
