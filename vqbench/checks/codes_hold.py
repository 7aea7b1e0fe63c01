"""What every quantizer must hold to where codes are read: shapes, indices, evaluation, and the way back from a code.

Each property takes a trial, returns what it saw, and raises where that is wrong.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from vqbench.artifact import Artifact
from vqbench.checks.toy import BATCH, HEIGHT, WIDTH, Trial, decoded, in_eval, require, require_near, round_trip, same
from vqbench.quantizer import Quantized, Quantizer


def _require_sizes(quantizer: Quantizer) -> None:
    """Codebook and bits are those of `codebook_size` and `num_codebooks`."""
    size, groups = quantizer.codebook_size, quantizer.num_codebooks
    bits, codebook = groups * math.log2(size), quantizer.codebook
    require(
        math.isclose(quantizer.bits_per_token, bits),
        f"bits_per_token is {quantizer.bits_per_token:.4g}, not {bits:.4g} as {groups} codebooks of {size} codes have",
    )
    if codebook is not None and groups == 1:
        expected = (size, quantizer.out_channels)
        require(tuple(codebook.shape) == expected, f"codebook is {tuple(codebook.shape)}, not {expected}")


def _require_shapes(quantizer: Quantizer, result: Quantized) -> None:
    latents, grid = (BATCH, quantizer.out_channels, HEIGHT, WIDTH), (BATCH, HEIGHT, WIDTH)
    groups = () if quantizer.num_codebooks == 1 else (quantizer.num_codebooks,)
    require(tuple(result.latents.shape) == latents, f"latents are {tuple(result.latents.shape)}, not {latents}")
    require(result.latents.dtype == torch.float32, f"latents are {result.latents.dtype}, not float32")
    shape = tuple(result.indices.shape)
    allowed = {(*grid, *groups), (*grid, quantizer.num_codebooks)}
    require(shape in allowed, f"indices are {shape}, not {(*grid, *groups)}")
    require(result.indices.dtype == torch.int64, f"indices are {result.indices.dtype}, not int64")
    for name, loss in result.losses.items():
        require(loss.ndim == 0, f"loss {name} is {tuple(loss.shape)}, not a scalar")
    if result.continuous is not None:
        require(tuple(result.continuous.shape) == latents, "continuous is not shaped like latents")


def _require_finite(result: Quantized, where: str) -> None:
    continuous = {} if result.continuous is None else {"continuous": result.continuous}
    losses = {f"loss {name}": loss for name, loss in result.losses.items()}
    for name, value in {"latents": result.latents, **continuous, **losses}.items():
        require(bool(value.isfinite().all()), f"not finite {where}: {name}")


def _require_both(trial: Trial, trained: bool, scored: bool) -> None:
    """A continuous path is scored where it is trained, beside the codes or in their place, and nowhere else."""
    advice = "in eval mode, return what is quantized"
    require(scored or not trained, f"forward gives continuous in training alone, so it is not scored: {advice}")
    require(
        trained or not scored or not _trains_codes(trial),
        "forward gives continuous in eval mode alone, so it is scored, but training decodes codes and not it",
    )


@torch.no_grad()
def _trains_codes(trial: Trial) -> bool:
    """Whether the latents of a training pass are those that its indices stood for before it."""
    quantizer, before = trial.quantizer(training=True), trial.quantizer(training=True)
    result = quantizer(trial.latents(quantizer))
    codes = before.decode_indices(result.indices)
    return float((codes - result.latents).abs().max()) <= 1e-3 * (1 + float(codes.abs().max()))


def shapes(trial: Trial) -> str:
    """Latents, indices, losses, codebook and bits have the shapes, types and sizes of the contract."""
    continuous = {True: False, False: False}
    for make, when in ((trial.quantizer, "at the start"), (trial.trained, "after some steps")):
        for training in (True, False):
            quantizer = make(training=training)
            result = quantizer(trial.latents(quantizer))
            continuous[training] |= result.continuous is not None
            _require_shapes(quantizer, result)
            _require_finite(result, when)
            _require_sizes(quantizer)
    _require_both(trial, trained=continuous[True], scored=continuous[False])
    _require_modulation(trial)
    sizes = f"latents {tuple(result.latents.shape)}, indices {tuple(result.indices.shape)}"
    return f"{sizes}, {quantizer.bits_per_token:.2f} bits per token"


def _require_modulation(trial: Trial) -> None:
    """What conditions the decoder is a module of its own for each norm, keeps the shape, and hears the latents."""
    quantizer, width = trial.quantizer(), 64  # which groups of norms divide
    made = [quantizer.decoder_modulation(width) for _ in range(2)]
    if made == [None, None]:
        return
    for module in made:
        require(isinstance(module, nn.Module), f"decoder_modulation gives {type(module).__name__}, not a torch module")
    require(made[0] is not made[1], "decoder_modulation gives one module twice: each norm needs its own")
    noise = torch.Generator().manual_seed(3)
    features = torch.randn(2, width, 4, 6, generator=noise)
    latents = torch.randn(2, quantizer.out_channels, 2, 3, generator=noise).requires_grad_()
    result = made[0](features, latents)  # type: ignore[misc]
    require(result.shape == features.shape, f"what conditions the decoder makes {tuple(result.shape)} of a norm's "
                                            f"{tuple(features.shape)}")  # fmt: skip
    heard = result.requires_grad
    gradient = torch.autograd.grad(result.square().sum(), latents, allow_unused=True)[0] if heard else None
    require(gradient is not None, "what conditions the decoder does not hear the latents")  # 0 may be how it starts


def _require_last_code(quantizer: Quantizer, shape: torch.Size) -> None:
    """The first and the last index decode: a codebook_size too large would flatter bits, and spoil usage."""
    for index in (0, quantizer.codebook_size - 1):
        try:
            decoded = quantizer.decode_indices(torch.full(shape, index))
        except Exception as error:
            what = f"decode_indices raises {type(error).__name__} for index {index}"
            raise AssertionError(f"{what}, which codebook_size {quantizer.codebook_size} promises") from error
        require(bool(decoded.isfinite().all()), f"index {index} decodes to what is not finite")


def index_range(trial: Trial) -> str:
    """Every index is in [0, codebook_size), latents and losses are finite, for inputs of any size."""
    for make in (trial.quantizer, trial.trained):
        for training in (True, False):
            for scale in (0.0, 1.0, 100.0, 1e4):
                quantizer = make(training=training)
                result = quantizer(trial.latents(quantizer, scale=scale))
                low, high, size = int(result.indices.min()), int(result.indices.max()), quantizer.codebook_size
                require(low >= 0 and high < size, f"indices reach from {low} to {high}, outside [0, {size})")
                _require_finite(result, f"for z of size {scale:g}")
        _require_last_code(quantizer, result.indices.shape)
    return f"in [0, {size}), all finite"


def _require_codebook(quantizer: Quantizer, indices: Tensor, latents: Tensor) -> None:
    """`codebook` holds the effective codes, after any projection; its shape is judged by `shapes`."""
    codebook = quantizer.codebook
    if codebook is None or codebook.shape != (quantizer.codebook_size, latents.shape[1]) or quantizer.num_codebooks > 1:
        return
    batch, _, height, width = latents.shape
    looked_up = codebook[indices.reshape(batch, height, width)].permute(0, 3, 1, 2)
    require_near(looked_up, latents, 1e-5, "codebook[indices] is {} away from the latents")


def decode_agrees(trial: Trial) -> str:
    """`decode_indices`, and `codebook` where there is one, give what forward gave the decoder in eval mode."""
    for quantizer in (trial.quantizer(), trial.trained()):
        result = in_eval(quantizer, trial.latents(quantizer))
        found = decoded(quantizer, result.indices)
        require(found.shape == result.latents.shape, f"decode_indices gives {tuple(found.shape)}")
        far = "decode_indices(indices) is up to {} away from forward's latents"
        apart = require_near(found, result.latents, 1e-5, far)
        _require_codebook(quantizer, result.indices, result.latents)
    return f"largest difference {apart:.1g}"


def eval_deterministic(trial: Trial) -> str:
    """Two calls in eval mode from the same state give the same, whatever the random seed."""
    first, second = trial.quantizer(), trial.quantizer()
    z = trial.latents(first)
    one, two = in_eval(first, z, seed=1), in_eval(second, z, seed=2)
    require(torch.equal(one.indices, two.indices), "two eval passes from the same state give different indices")
    require(torch.equal(one.latents, two.latents), "two eval passes from the same state give different latents")
    require(same(one.continuous, two.continuous), "two eval passes from the same state give different continuous")
    return "same indices and latents under two seeds"


def eval_no_side_effects(trial: Trial) -> str:
    """Eval mode changes nothing: parameters, buffers, codebook, and the next answer."""
    quantizer = trial.trained()
    z = trial.latents(quantizer)
    before, codebook = copy.deepcopy(quantizer.state_dict()), copy.deepcopy(quantizer.codebook)
    first = in_eval(quantizer, z)
    latents = decoded(quantizer, first.indices)
    in_eval(quantizer, trial.latents(quantizer, seed=2))
    after = quantizer.state_dict()
    changed = [name for name in before if not same(before[name], after.get(name))]
    require(not changed, f"an eval pass changed {', '.join(changed)}")
    require(same(codebook, quantizer.codebook), "an eval pass changed the codebook")
    second = in_eval(quantizer, z)
    latents_again = decoded(quantizer, first.indices)
    require(torch.equal(first.indices, second.indices), "the second eval pass gives other indices")
    require(torch.equal(first.latents, second.latents), "the second eval pass gives other latents")
    require(same(first.continuous, second.continuous), "the second eval pass gives another continuous")
    require(torch.equal(latents, latents_again), "after other eval passes the same indices decode to other latents")
    return "state, codebook and answers unchanged by eval passes"


def eval_ignores_other_images(trial: Trial) -> str:
    """In eval mode an image has the same codes alone as in a batch of others."""
    for make in (trial.quantizer, trial.trained):
        together, alone = make(), make()  # two instances, so that what eval mode changes by mistake plays no part
        # Each image is moved by another constant: statistics of the batch are then far from those of one image.
        z = trial.latents(together) + torch.arange(BATCH).view(-1, 1, 1, 1)
        whole, single = in_eval(together, z), in_eval(alone, z[:1])
        agree = (whole.indices[:1] == single.indices).reshape(1, HEIGHT, WIDTH, -1).all(-1)
        moved = int((~agree).sum())
        # A sum in another order may decide a tie otherwise; that is a token in thousands, not in a hundred.
        require(moved <= agree.numel() // 100, f"alone, {moved} of {agree.numel()} tokens of an image have other codes")
        of_same_codes = torch.where(agree[:, None], whole.latents[:1], single.latents)
        require_near(of_same_codes, single.latents, 1e-4, "alone, latents of the same codes are {} away")
        if whole.continuous is not None and single.continuous is not None:
            require_near(whole.continuous[:1], single.continuous, 1e-4, "alone, continuous is {} away")
    return f"{agree.numel()} tokens alone as in a batch of {BATCH}"


def bfloat16_parity(trial: Trial) -> str:
    """Under bfloat16 autocast the codes are those of float32 arithmetic on the same input, in and out."""
    # Two instances of one state, so that what eval mode may change by mistake is not taken for rounding.
    quantizer, twin = trial.trained(), trial.trained()
    z = trial.latents(quantizer).bfloat16()
    plain = in_eval(quantizer, z.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast, cast_decoded = in_eval(twin, z), decoded(quantizer, plain.indices)
    moved = int((plain.indices != cast.indices).sum())
    advice = "put @full_precision on forward and decode_indices"
    require(moved == 0, f"{moved} of {plain.indices.numel()} indices change under bfloat16 autocast; {advice}")
    same = torch.allclose(plain.latents, cast.latents.float(), rtol=1e-5, atol=1e-6)
    require(same, f"forward's latents are rounded under bfloat16 autocast; {advice}")
    same = torch.allclose(decoded(quantizer, plain.indices), cast_decoded.float(), rtol=1e-5, atol=1e-6)
    require(same, f"decode_indices rounds under bfloat16 autocast; {advice}")
    return f"{plain.indices.numel()} indices unchanged"


def _receive(quantizer: Quantizer, z: Tensor) -> None:
    """Give a quantizer what it asks for, made of noise."""
    asked = type(quantizer).artifact(quantizer.config)
    if asked is None:
        return
    require(isinstance(asked, Artifact), f"artifact(config) gives {type(asked).__name__}, not an Artifact")
    before = in_eval(quantizer, z)
    quantizer.receive(torch.randn(asked.shape, generator=torch.Generator().manual_seed(3)))
    require(not torch.equal(in_eval(quantizer, z).latents, before.latents), "receive(artifact) changes no code")


def state_dict_restores(trial: Trial) -> str:
    """A new instance with the state dict gives the same codes, also those of what it was built around."""
    trained, fresh = trial.trained(), trial.quantizer(seed=5)
    z = trial.latents(trained)
    _receive(trained, z)
    fresh.load_state_dict(round_trip(trained.state_dict()))
    before, after = in_eval(trained, z), in_eval(fresh, z)
    require(torch.equal(before.indices, after.indices), "after load_state_dict the same input gives other indices")
    require(torch.equal(before.latents, after.latents), "after load_state_dict the same codes give other latents")
    same = torch.equal(decoded(trained, before.indices), decoded(fresh, before.indices))
    require(same, "after load_state_dict the same indices decode to other latents")
    return f"{len(trained.state_dict())} tensors give the same codes in a new instance"
