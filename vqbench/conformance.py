"""What every quantizer must hold to, checked on small inputs in seconds: the suite behind `vqbench check`."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqbench.quantizer import GradientRoutes, Quantized, Quantizer
from vqbench.registry import METHODS
from vqbench.trial import BATCH, SIDE, STEPS, ToyTokenizer, Trial, make_optimizer, run_on_two_ranks, train


@dataclass(frozen=True)
class Property:
    """One line of the suite's answer."""

    name: str
    passed: bool | None
    """None where the property does not apply."""
    detail: str
    """What was seen; for a failure, what was expected besides."""


class _NotApplicableError(Exception):
    """The property says nothing about this method; the message says why."""


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)


def _same(a: Any, b: Any) -> bool:
    """Equal to the last bit, through nested states."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return bool(a == b)


@torch.no_grad()
def _in_eval(quantizer: Quantizer, z: Tensor, seed: int = 0) -> Quantized:
    torch.manual_seed(seed)
    result: Quantized = quantizer.eval()(z)
    return result


# Each property takes a trial, returns what it saw, and raises where that is wrong.


def shapes(trial: Trial) -> str:
    """Latents, indices, losses and codebook have the shapes and types of the contract."""
    for training in (True, False):
        quantizer = trial.quantizer(training=training)
        z = trial.latents(quantizer)
        result = quantizer(z)
        latents, grid = (BATCH, quantizer.out_channels, SIDE, SIDE), (BATCH, SIDE, SIDE)
        groups = () if quantizer.num_codebooks == 1 else (quantizer.num_codebooks,)
        _require(tuple(result.latents.shape) == latents, f"latents are {tuple(result.latents.shape)}, not {latents}")
        _require(result.latents.dtype == torch.float32, f"latents are {result.latents.dtype}, not float32")
        shape = tuple(result.indices.shape)
        allowed = {(*grid, *groups), (*grid, quantizer.num_codebooks)}
        _require(shape in allowed, f"indices are {shape}, not {(*grid, *groups)}")
        _require(result.indices.dtype == torch.int64, f"indices are {result.indices.dtype}, not int64")
        for name, loss in result.losses.items():
            _require(loss.ndim == 0 and bool(loss.isfinite()), f"loss {name} is not a finite scalar")
        if result.continuous is not None:
            _require(tuple(result.continuous.shape) == latents, "continuous is not shaped like latents")
    codebook = quantizer.codebook
    expected = (quantizer.codebook_size, quantizer.out_channels)
    if codebook is not None and quantizer.num_codebooks == 1:
        _require(tuple(codebook.shape) == expected, f"codebook is {tuple(codebook.shape)}, not {expected}")
    return f"latents {latents}, indices {shape}, {quantizer.bits_per_token:.2f} bits per token"


def index_range(trial: Trial) -> str:
    """Every index is in [0, codebook_size), for inputs of any size."""
    for training in (True, False):
        for scale in (0.0, 1.0, 100.0, 1e4):
            quantizer = trial.quantizer(training=training)
            indices = quantizer(trial.latents(quantizer, scale=scale)).indices
            low, high, size = int(indices.min()), int(indices.max()), quantizer.codebook_size
            _require(low >= 0 and high < size, f"indices reach from {low} to {high}, outside [0, {size})")
    return f"in [0, {size})"


def decode_agrees(trial: Trial) -> str:
    """`decode_indices` gives what forward gave the decoder in eval mode."""
    for quantizer in (trial.quantizer(), trial.trained()):
        result = _in_eval(quantizer, trial.latents(quantizer))
        with torch.no_grad():
            decoded = quantizer.decode_indices(result.indices)
        _require(decoded.shape == result.latents.shape, f"decode_indices gives {tuple(decoded.shape)}")
        apart = float((decoded - result.latents).abs().max())
        scale = 1 + float(result.latents.abs().max())
        _require(apart <= 1e-5 * scale, f"decode_indices(indices) is up to {apart:.3g} away from forward's latents")
    return f"largest difference {apart:.1g}"


def eval_deterministic(trial: Trial) -> str:
    """Two calls in eval mode from the same state give the same, whatever the random seed."""
    first, second = trial.quantizer(), trial.quantizer()
    z = trial.latents(first)
    one, two = _in_eval(first, z, seed=1), _in_eval(second, z, seed=2)
    _require(torch.equal(one.indices, two.indices), "two eval passes from the same state give different indices")
    _require(torch.equal(one.latents, two.latents), "two eval passes from the same state give different latents")
    return "same indices and latents under two seeds"


def eval_no_side_effects(trial: Trial) -> str:
    """Eval mode changes no state: parameters, buffers, codebook, and the next answer."""
    quantizer = trial.trained()
    z = trial.latents(quantizer)
    before, codebook = copy.deepcopy(quantizer.state_dict()), copy.deepcopy(quantizer.codebook)
    first = _in_eval(quantizer, z)
    with torch.no_grad():
        quantizer.decode_indices(first.indices)
    _in_eval(quantizer, trial.latents(quantizer, seed=2))
    after = quantizer.state_dict()
    changed = [name for name in before if not _same(before[name], after.get(name))]
    _require(not changed, f"an eval pass changed {', '.join(changed)}")
    _require(_same(codebook, quantizer.codebook), "an eval pass changed the codebook")
    _require(torch.equal(first.indices, _in_eval(quantizer, z).indices), "the second eval pass gives other indices")
    return "state and codebook unchanged by eval passes"


def _gradients(objective: Tensor, wanted: list[Tensor]) -> list[Tensor | None]:
    if not objective.requires_grad:
        return [None] * len(wanted)
    return list(torch.autograd.grad(objective, wanted, allow_unused=True, retain_graph=True))


def _arrives(gradients: Iterable[Tensor | None]) -> bool:
    return any(g is not None and bool(g.abs().sum() > 0) for g in gradients)


def _objectives(result: Quantized) -> tuple[Tensor, Tensor]:
    """Stand-ins for the decoder's loss and the quantizer's own."""
    noise = torch.Generator().manual_seed(3)
    decoder = (result.latents * torch.randn(result.latents.shape, generator=noise)).sum()
    return decoder, sum(result.losses.values(), torch.zeros(()))


def gradient_to_encoder(trial: Trial) -> str:
    """In training, some gradient reaches z, and all of it is finite."""
    quantizer = trial.quantizer(training=True)
    z = trial.latents(quantizer).requires_grad_()
    (gradient,) = _gradients(sum(_objectives(quantizer(z)), torch.zeros(())), [z])
    _require(_arrives([gradient]), "no gradient reaches the encoder: latents and losses do not depend on z")
    assert gradient is not None
    _require(bool(gradient.isfinite().all()), "the gradient at z is not finite")
    return f"rms {float(gradient.square().mean().sqrt()):.2g} at z"


def gradient_routes(trial: Trial) -> str:
    """Gradients arrive where `gradient_routes` says, and nowhere else."""
    quantizer = trial.quantizer(training=True)
    declared = quantizer.gradient_routes
    if declared is None:
        raise _NotApplicableError("the method declares no gradient_routes")
    z, parameters = trial.latents(quantizer).requires_grad_(), list(quantizer.parameters())
    found = []
    for objective in _objectives(quantizer(z)):
        at_z, *at_parameters = _gradients(objective, [z, *parameters])
        found += [_arrives([at_z]), _arrives(at_parameters)]
    seen = GradientRoutes(*found)
    wrong = [name for name, value in vars(seen).items() if value != getattr(declared, name)]
    _require(not wrong, "; ".join(f"{name} is declared {getattr(declared, name)}, not so found" for name in wrong))
    return ", ".join(name for name, value in vars(seen).items() if value) or "none declared, none found"


def bfloat16_parity(trial: Trial) -> str:
    """Under bfloat16 autocast the codes are those of float32 arithmetic on the same input, in and out."""
    # Two instances of one state, so that what eval mode may change by mistake is not taken for rounding.
    quantizer, twin = trial.trained(), trial.trained()
    z = trial.latents(quantizer).bfloat16()
    plain = _in_eval(quantizer, z.float())
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        cast, decoded = _in_eval(twin, z), quantizer.decode_indices(plain.indices)
    with torch.no_grad():
        plainly_decoded = quantizer.decode_indices(plain.indices)
    moved = int((plain.indices != cast.indices).sum())
    advice = "put @full_precision on forward and decode_indices"
    _require(moved == 0, f"{moved} of {plain.indices.numel()} indices change under bfloat16 autocast; {advice}")
    same = torch.allclose(plain.latents, cast.latents.float(), rtol=1e-5, atol=1e-6)
    _require(same, f"forward's latents are rounded under bfloat16 autocast; {advice}")
    same = torch.allclose(plainly_decoded, decoded.float(), rtol=1e-5, atol=1e-6)
    _require(same, f"decode_indices rounds under bfloat16 autocast; {advice}")
    return f"{plain.indices.numel()} indices unchanged"


def _round_trip(state: Any) -> Any:
    """Through a file, as a checkpoint goes."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def state_dict_restores(trial: Trial) -> str:
    """A new instance with the state dict gives the same codes."""
    trained, fresh = trial.trained(), trial.quantizer(seed=5)
    z = trial.latents(trained)
    fresh.load_state_dict(_round_trip(trained.state_dict()))
    before, after = _in_eval(trained, z), _in_eval(fresh, z)
    _require(torch.equal(before.indices, after.indices), "after load_state_dict the same input gives other indices")
    _require(torch.equal(before.latents, after.latents), "after load_state_dict the same codes give other latents")
    with torch.no_grad():
        same = torch.equal(trained.decode_indices(before.indices), fresh.decode_indices(before.indices))
    _require(same, "after load_state_dict the same indices decode to other latents")
    return f"{len(trained.state_dict())} tensors give the same codes in a new instance"


def exact_resume(trial: Trial) -> str:
    """Training continued from a checkpoint equals training that was not interrupted, to the last bit."""
    model = ToyTokenizer(trial.quantizer(training=True))
    optimizer = make_optimizer(model)
    train(model, model.quantizer, optimizer, range(STEPS))
    saved = _round_trip([model.state_dict(), optimizer.state_dict()])
    random_state = torch.get_rng_state()
    train(model, model.quantizer, optimizer, range(STEPS, 2 * STEPS))

    resumed = ToyTokenizer(trial.quantizer(seed=5, training=True))
    resumed_optimizer = make_optimizer(resumed)
    resumed.load_state_dict(saved[0])
    resumed_optimizer.load_state_dict(saved[1])
    torch.set_rng_state(random_state)
    train(resumed, resumed.quantizer, resumed_optimizer, range(STEPS, 2 * STEPS))
    after, uninterrupted = resumed.state_dict(), model.state_dict()
    differ = [name for name in uninterrupted if not _same(uninterrupted[name], after.get(name))]
    _require(not differ, f"after resuming, {', '.join(differ[:3])} differ; keep what changes in buffers")
    return f"{STEPS} + {STEPS} steps with Adam, equal to the last bit"


def loss_of_doubled_batch(trial: Trial) -> str:
    """A batch given twice over has the losses of the batch itself."""
    results = []
    for seed, copies in ((1, 1), (2, 1), (1, 2)):
        quantizer = trial.quantizer(training=True)
        z = torch.cat([trial.latents(quantizer)] * copies)
        torch.manual_seed(seed)
        results.append({name: float(loss.detach()) for name, loss in quantizer(z).losses.items()})
    once, other_seed, twice = results
    if not once:
        raise _NotApplicableError("the method has no losses")
    if once != other_seed:
        raise _NotApplicableError("the losses are random")
    wrong = [name for name in once if abs(once[name] - twice[name]) > 1e-4 * abs(once[name]) + 1e-7]
    _require(not wrong, f"doubling the batch changes {', '.join(wrong)}: take means over the batch, not sums")
    return ", ".join(once)


def same_on_two_ranks(trial: Trial) -> str:
    """After some steps of distributed training on different data, both processes hold the same codebook."""
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        raise _NotApplicableError("this torch has no gloo")
    hashes = run_on_two_ranks(trial.name)
    _require(
        len(set(hashes)) == 1, "two ranks that saw different data hold different codebooks: reduce what is updated"
    )
    return f"state {hashes[0][:8]} on both ranks after {STEPS} steps"


PROPERTIES: dict[str, Callable[[Trial], str]] = {
    "shapes and types": shapes,
    "index range": index_range,
    "decode_indices agrees": decode_agrees,
    "eval is deterministic": eval_deterministic,
    "eval has no side effects": eval_no_side_effects,
    "gradient reaches encoder": gradient_to_encoder,
    "gradient routes": gradient_routes,
    "bfloat16 parity": bfloat16_parity,
    "state dict restores codes": state_dict_restores,
    "exact resume": exact_resume,
    "loss of a doubled batch": loss_of_doubled_batch,
    "same on two ranks": same_on_two_ranks,
}


def _check(name: str, trial: Trial, check: Callable[[Trial], str]) -> Property:
    try:
        return Property(name, True, check(trial))
    except _NotApplicableError as reason:
        return Property(name, None, str(reason))
    except AssertionError as error:
        return Property(name, False, str(error) or "an assertion of the method failed")
    except Exception as error:
        last = (str(error).strip().splitlines() or [""])[-1]
        return Property(name, False, f"{type(error).__name__}: {last}")


def check_method(name: str, plugin: Path | None = None, only: Iterable[str] | None = None) -> list[Property]:
    """Hold one method, or method@preset, to the contract of `vqbench.quantizer`; about ten seconds on one core.

    `plugin` is the file that defines it, where it is not installed; `only` names some of PROPERTIES. The random
    state is left as it was. Raises UsageError where the method is unknown or its file does not import.
    """
    if plugin is not None:
        METHODS.add_file(plugin)
    trial = Trial(name)
    chosen = PROPERTIES if only is None else {p: PROPERTIES[p] for p in only}
    with torch.random.fork_rng(devices=[]):
        return [_check(property_name, trial, check) for property_name, check in chosen.items()]


def render(properties: Iterable[Property]) -> str:
    """One line per property: pass, FAIL or n/a, its name, what was seen."""
    word = {True: "pass", False: "FAIL", None: "n/a "}
    return "\n".join(f"{word[p.passed]}  {p.name:<25}  {p.detail}" for p in properties)


def print_properties(name: str, properties: Iterable[Property]) -> None:
    """The answer of `check_method` for one method, on standard output."""
    print(f"{name}\n{render(properties)}")
