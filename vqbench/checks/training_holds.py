"""What every quantizer must hold to in training: gradients, losses, randomness, resuming, several processes.

Each property takes a trial, returns what it saw, and raises where that is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from vqbench.checks.toy import (
    STEPS,
    NotApplicableError,
    ToyTokenizer,
    Trial,
    make_optimizer,
    require,
    round_trip,
    run_on_two_ranks,
    same,
    train,
)
from vqbench.quantizer import GradientRoutes, Quantized

LOSS_SEEDS = range(4)


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
    """In training the latents depend on z, the decoder's gradient reaches it, and all gradients are finite.

    A method whose `gradient_routes` say that the decoder's gradient stops before z must reach z with its losses.
    """
    quantizer, twin = trial.quantizer(training=True), trial.quantizer(training=True)
    z = trial.latents(quantizer).requires_grad_()
    torch.manual_seed(0)
    result = quantizer(z)
    torch.manual_seed(0)
    other = twin(trial.latents(twin, seed=2)).latents
    require(not torch.equal(result.latents, other), "in training the latents are the same whatever z is")
    gradients = [_gradients(objective, [z])[0] for objective in _objectives(result)]
    declared = quantizer.gradient_routes
    advice = "use a straight-through estimator, or declare decoder_to_input=False in gradient_routes"
    if declared is None or declared.decoder_to_input:
        require(_arrives(gradients[:1]), f"the decoder's gradient does not reach the encoder: {advice}")
    require(_arrives(gradients), "no gradient reaches the encoder, neither the decoder's nor the losses'")
    arrived = torch.stack([g for g in gradients if g is not None])
    require(bool(arrived.isfinite().all()), "the gradient at z is not finite")
    return f"rms {float(arrived.sum(0).square().mean().sqrt()):.2g} at z"


def gradient_routes(trial: Trial) -> str:
    """Gradients arrive where `gradient_routes` says, and nowhere else."""
    quantizer = trial.quantizer(training=True)
    declared = quantizer.gradient_routes
    if declared is None:
        raise NotApplicableError("the method declares no gradient_routes")
    z, parameters = trial.latents(quantizer).requires_grad_(), [p for p in quantizer.parameters() if p.requires_grad]
    found = []
    for objective in _objectives(quantizer(z)):
        at_z, *at_parameters = _gradients(objective, [z, *parameters])
        found += [_arrives([at_z]), _arrives(at_parameters)]
    seen = GradientRoutes(*found)
    wrong = [name for name, value in vars(seen).items() if value != getattr(declared, name)]
    require(not wrong, "; ".join(f"{name} is declared {getattr(declared, name)}, not so found" for name in wrong))
    return ", ".join(name for name, value in vars(seen).items() if value) or "none declared, none found"


def _losses(trial: Trial, seed: int, copies: int) -> dict[str, float]:
    quantizer = trial.quantizer(training=True)
    z = torch.cat([trial.latents(quantizer)] * copies)
    torch.manual_seed(seed)
    found = quantizer(z).losses
    return {name: float(loss.detach()) for name, loss in found.items() if name not in quantizer.losses_of_batch_size}


def _unchanged(once: list[float], twice: list[float]) -> bool:
    """Whether a loss has the same mean over seeds, as nearly as its randomness lets one see."""
    before, after = sum(once) / len(once), sum(twice) / len(twice)
    spread = max(once) - min(once)
    # A sum in the place of a mean doubles it: half of that is the line where it is random.
    allowed = 0.5 * abs(before) + spread if spread > 0 else 1e-4 * abs(before) + 1e-7
    return abs(after - before) <= allowed


def loss_of_doubled_batch(trial: Trial) -> str:
    """A batch given twice over has the losses of the batch itself; random ones in the mean over some seeds."""
    once, twice = ([_losses(trial, seed, copies) for seed in LOSS_SEEDS] for copies in (1, 2))
    if not once[0]:
        raise NotApplicableError("the method has no losses")
    wrong = [name for name in once[0] if not _unchanged([x[name] for x in once], [x[name] for x in twice])]
    require(not wrong, f"doubling the batch changes {', '.join(wrong)}: take means over the batch, not sums")
    declared = trial.quantizer().losses_of_batch_size
    return ", ".join(once[0]) + (f"; by definition not {', '.join(declared)}" if declared else "")


def _random_states(trial: Trial, seed: int) -> dict[str, Tensor]:
    """The generator after each thing a method does, each begun from `seed`."""
    quantizer = trial.quantizer(seed=seed, training=True)
    states = {"its constructor": torch.get_rng_state()}
    z = trial.latents(quantizer)
    for name, training in (("forward in training", True), ("forward in eval mode", False)):
        quantizer.train(training)
        torch.manual_seed(seed)
        indices = quantizer(z).indices
        states[name] = torch.get_rng_state()
    torch.manual_seed(seed)
    quantizer.decode_indices(indices)
    states["decode_indices"] = torch.get_rng_state()
    return states


def leaves_the_seed_alone(trial: Trial) -> str:
    """What is random follows from the seed of the run: the method draws, and never seeds."""
    one, two = _random_states(trial, 1), _random_states(trial, 2)
    seeded = [name for name in one if torch.equal(one[name], two[name])]
    require(not seeded, f"{', '.join(seeded)} sets torch's random seed, so that every run draws the same")
    return "two seeds stay two"


def exact_resume(trial: Trial) -> str:
    """Training continued from a checkpoint equals training that was not interrupted, to the last bit."""
    model = ToyTokenizer(trial.quantizer(training=True))
    optimizer = make_optimizer(model)
    train(model, model.quantizer, optimizer, range(STEPS))
    saved = round_trip([model.state_dict(), optimizer.state_dict()])
    random_state = torch.get_rng_state()
    train(model, model.quantizer, optimizer, range(STEPS, 2 * STEPS))

    resumed = ToyTokenizer(trial.quantizer(seed=5, training=True))
    resumed_optimizer = make_optimizer(resumed)
    resumed.load_state_dict(saved[0])
    resumed_optimizer.load_state_dict(saved[1])
    torch.set_rng_state(random_state)
    train(resumed, resumed.quantizer, resumed_optimizer, range(STEPS, 2 * STEPS))
    after, uninterrupted = resumed.state_dict(), model.state_dict()
    differ = [name for name in uninterrupted if not same(uninterrupted[name], after.get(name))]
    require(not differ, f"after resuming, {', '.join(differ[:3])} differ; keep what changes in buffers")
    return f"{STEPS} + {STEPS} steps with Adam, equal to the last bit"


def same_on_two_ranks(trial: Trial) -> str:
    """After some steps of distributed training on different data, both processes hold the same codebook."""
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        raise NotApplicableError("this torch has no gloo")
    hashes = run_on_two_ranks(trial.name)
    require(len(set(hashes)) == 1, "two ranks that saw different data hold different codebooks: reduce what is updated")
    return f"state {hashes[0][:8]} on both ranks after {STEPS} steps"
