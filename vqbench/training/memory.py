"""What a training step needs, found without doing it: memory and arithmetic, counted on tensors that hold no data."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import warnings
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from vqbench.errors import VQBenchError
from vqbench.recipe import Execution, Recipe
from vqbench.wording import counted

REFUSED_ABOVE, WARNED_ABOVE = 1.25, 0.8
"""Shares of a card's memory. The count knows no workspaces of cuDNN and no gaps of the allocator, which need more, nor
what a compiler or an in-place operation saves, which needs less."""
_TRIES = 5
_FORK = multiprocessing.get_context("fork")
_Module = TypeVar("_Module", bound=nn.Module)
_BACKBONES = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}


@dataclass(frozen=True)
class StepCost:
    """What one optimiser step of a training needs on each device."""

    images: int
    """Of a batch, on each device."""
    at_once: int
    """How many of them the networks see at a time."""
    kept_bytes: int
    """Between two steps: weights, gradients, the optimiser's moments, averages, discriminator, perceptual network."""
    peak_bytes: int
    """The most at any time within a step."""
    flops: float
    """Floating-point operations of an image, forwards and backwards, a multiply-add counted as two."""
    adversarial_flops: float
    """The same once the discriminator trains; 0 where it never does."""

    def of_parts(self, at_once: int) -> StepCost:
        """The same step in parts of so many images, reckoned and not counted."""
        each = (self.peak_bytes - self.kept_bytes) / self.at_once
        return dataclasses.replace(self, at_once=at_once, peak_bytes=int(self.kept_bytes + each * at_once))

    def images_within(self, available: float) -> int:
        """About how many images at once need at most `available` bytes, a power of two; 0 where not one does."""
        each = (self.peak_bytes - self.kept_bytes) / self.at_once
        most = int((available - self.kept_bytes) // max(each, 1.0))
        return 1 << (most.bit_length() - 1) if most > 0 else 0


class UncountableError(VQBenchError):
    """A step that tensors without data do not get through."""


class TooLargeError(VQBenchError):
    """A step that the card has no room for."""


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, counts the bytes of the storages that operations make, for as long as these live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        tree_map_only(Tensor, self.see, result)
        return result

    def see(self, tensor: Tensor) -> None:
        """Count the storage of a tensor, if it is a new one."""
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known.add(storage)
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, storage.nbytes())

    def _forget(self, size: int) -> None:
        self.live -= size


class _Uncounted:
    """In the place of the histograms of codes, which are small and whose sizes hang on values."""

    def update(self, *_: Any) -> bool:
        return False


def step_cost(
    method: str,
    config: Mapping[str, Any],
    recipe: Recipe,
    images: int | None = None,
    execution: Execution = Execution(),  # noqa: B008 - frozen
) -> StepCost:
    """Count a step of `recipe` on `images` (its batch by default) as `execution` asks, without allocating any of it.

    What a compiler saves is not counted. Raises UncountableError where a quantizer looks at values. It is done in a
    process of its own, and again where that dies: torch breaks its heap now and then when tensors without data train.
    """
    answer: StepCost | UncountableError | None = None
    for _ in range(_TRIES):
        receiver, sender = multiprocessing.Pipe(duplex=False)
        child = _FORK.Process(
            target=_tell, args=(sender, method, dict(config), recipe, images or recipe.batch_size, execution)
        )
        child.start()
        sender.close()
        with contextlib.suppress(EOFError):
            answer = receiver.recv()
        child.join()
        if isinstance(answer, StepCost):
            return answer
        if answer is not None:
            raise answer
    what = f"what a step of {method} needs cannot be counted: its process died {_TRIES} times"
    raise UncountableError(what, "`--dry-run --probe` measures it")


def _tell(sender: Connection, method: str, config: dict[str, Any], recipe: Recipe, *more: Any) -> None:
    """Count, in a process of its own, and say the answer. What that process has of ours is not closed by it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # of a death its parent hears
    answer: StepCost | UncountableError
    try:
        with torch.random.fork_rng(devices=[]), FakeTensorMode(allow_non_fake_inputs=True):
            answer = _counted(method, config, recipe, *more)
    except Exception as error:  # a plugin's own code runs here, and may raise anything
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        what = f"what a step of {method} needs cannot be counted: {type(error).__name__}: {reason}"
        answer = UncountableError(what, "`--dry-run --probe` measures it")
    sender.send(answer)
    os._exit(0)


def _counted(method: str, config: dict[str, Any], recipe: Recipe, images: int, execution: Execution) -> StepCost:
    from torch.utils.flop_counter import FlopCounterMode

    from vqbench.tokenizer import build_tokenizer
    from vqbench.training.lean_lightning import lightning
    from vqbench.training.parts import Parts
    from vqbench.training.tokenizer_training import TokenizerTraining

    at_once = execution.at_once(images)
    size = 0 if execution.micro_batch == "auto" else execution.micro_batch  # a batch that is decoded twice is cut by it
    execution = Execution(micro_batch=size, activation_checkpointing=execution.activation_checkpointing)
    recomputes = execution.activation_checkpointing or size > 0
    with LiveBytes() as live:
        perceptual = None if recipe.perceptual == "none" else _untrained_lpips(recipe.perceptual)
        tokenizer = _without_data(build_tokenizer(method, config, recipe, 0))
        training = TokenizerTraining(tokenizer, recipe, 0, perceptual)
        training.run_by(Parts(recipe, execution, torch.device("cpu")))
        training.codes = _Uncounted()  # type: ignore[assignment]
        fabric = lightning.Fabric(
            accelerator="cpu", devices=1, precision="bf16-mixed" if recipe.precision == "bf16" else "32-true"
        )
        module, *_ = fabric.setup(training, *training.configure_optimizers(), move_to_device=False)
        batch = torch.empty(images, recipe.image_channels, recipe.resolution, recipe.resolution)
        flops, before = [0.0, 0.0], 0
        both = recipe.gan != "none" and recipe.gan_start_images < recipe.images_total
        for images_seen in (0, recipe.gan_start_images if both else 0):  # the second finds the optimiser's moments
            training.images_seen, peak = images_seen, 0
            before, live.peak = live.live, live.live
            counter = FlopCounterMode(display=False)
            if recomputes:  # the counter's hooks keep what is let go of: memory is seen without it
                with fabric.autocast():
                    module.training_step(batch, 0)
                training.images_seen, peak = images_seen, live.peak
            with counter, fabric.autocast():
                module.training_step(batch, 0)
            live.peak = peak if recomputes else live.peak
            adversarial = both and images_seen >= recipe.gan_start_images
            flops[int(adversarial)] = counter.get_total_flops() / images
        # a discriminator's moments come with its first step, and are there from the next one on
        return StepCost(images, at_once, live.live, live.peak + max(0, live.live - before), flops[0], flops[1])


def _untrained_lpips(net: str) -> nn.Module:
    """The network in its shape; its weights may not be on this machine."""
    import torchvision

    from vqbench.metrics.perceptual import Perceptual

    with unset_fake_temporarily(), torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that its heads are not copied to where nothing is
        perceptual = Perceptual(net, getattr(torchvision.models, _BACKBONES[net])().features.state_dict())
    return _without_data(perceptual)


def _without_data(module: _Module) -> _Module:
    """A module whose parameters and buffers are fake: a scalar is not, where it is drawn up from a number."""
    for part in module.modules():
        for name, old in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(torch.empty(old.shape, dtype=old.dtype), requires_grad=old.requires_grad))
        for name, value in part.named_buffers(recurse=False):
            setattr(part, name, torch.empty(value.shape, dtype=value.dtype))
    return module


def card_bytes() -> int | None:
    """Memory of the smallest GPU that this process may use; None where there is none."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return min((torch.cuda.get_device_properties(i).total_memory for i in range(count)), default=None)


def room_for(cost: StepCost, card: int) -> Literal["enough", "tight", "none"]:
    """Whether a card of `card` bytes has room for a step."""
    share = cost.peak_bytes / card
    return "none" if share > REFUSED_ABOVE else "tight" if share > WARNED_ABOVE else "enough"


def refuse_too_large(cost: StepCost, card: int) -> str:
    """What must be said before a training on a card of `card` bytes; empty where there is nothing.

    Raises TooLargeError, which says what would fit, where the step has no room.
    """
    room = room_for(cost, card)
    if room == "enough":
        return ""
    parts = f", {cost.at_once} at a time," if cost.at_once < cost.images else ""
    needs = f"a step of {counted(cost.images, 'image')}{parts} needs about {cost.peak_bytes / 1e9:.3g} GB"
    said = f"{needs}, the card has {card / 1e9:.3g}"
    if room == "tight":
        return f"{said}: it may run out of memory"
    raise TooLargeError(said, f"{what_fits(cost, card)}; --ignore-memory tries it all the same")


def fitted(
    method: str, config: Mapping[str, Any], recipe: Recipe, images: int, execution: Execution, card: int
) -> tuple[Execution, StepCost]:
    """What a step needs, and `execution` with a micro-batch for which the card has room, where that is asked.

    From the whole share down, each at most half of the one before; 1 at the least, which may have no room. Raises
    UncountableError where not even the whole step can be counted.
    """
    cost = step_cost(method, config, recipe, images, execution)
    if execution.micro_batch != "auto":
        return execution, cost
    size = 0
    while room_for(cost, card) != "enough" and cost.at_once > 1:
        size = max(1, min(cost.images_within(WARNED_ABOVE * card) or cost.at_once, cost.at_once // 2))
        try:
            cost = step_cost(method, config, recipe, images, dataclasses.replace(execution, micro_batch=size))
        except UncountableError:  # its process died: what can be reckoned has to do
            cost = cost.of_parts(size)
    return dataclasses.replace(execution, micro_batch=size), cost


def what_fits(cost: StepCost, card: int) -> str:
    """The batch for which a card of `card` bytes has room without a warning."""
    fits = cost.images_within(WARNED_ABOVE * card)
    if cost.at_once < cost.images:
        smaller = f"--micro-batch {min(fits, cost.at_once // 2)}, " if fits and cost.at_once > 1 else ""
        return f"less is needed with {smaller}a smaller --set batch_size=…, or more --devices that share the batch"
    if fits == 0:
        return f"not even one image at once fits ({cost.kept_bytes / 1e9:.3g} GB are weights and their like)"
    shares = -(-cost.images // fits)
    batch = f"--micro-batch {fits}, --set batch_size={fits}, or --devices {shares} that share the batch"
    return f"{fits} images at once fit: {batch}"
