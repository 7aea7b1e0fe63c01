"""Methods with a codebook against values that the authors' own classes gave: the second group (golden/README.md)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vqbench.backbone import ModulatedNorm
from vqbench.methods.codebook import as_rows
from vqbench.methods.cvq import CVQ
from vqbench.methods.dcr import moments, w2_to_normal
from vqbench.methods.estimators import Estimator, estimate
from vqbench.methods.mmd import squared_mmd
from vqbench.methods.movq import MoVQ
from vqbench.methods.rqvae import RQVAE
from vqbench.methods.simvq import SimVQ
from vqbench.methods.vaevq import VAEVQ
from vqbench.methods.vqgan import VQGAN
from vqbench.methods.vqgan_ema import VQGANEMA
from vqbench.methods.vqgan_lc import VQGANLC
from vqbench.methods.wvq import WVQ
from vqbench.quantizer import Quantized, Quantizer

FOLDER = Path(__file__).parent / "golden"
K, C, L = 32, 8, 3
BATCHES = ("z", "z_b", "z_c")

Golden = Callable[[str], Tensor]


@pytest.fixture(scope="module")
def golden() -> Golden:
    first, second = (dict(np.load(FOLDER / name)) for name in ("quantizers.npz", "quantizers2.npz"))
    arrays = {**{name: array for name, array in first.items() if name.startswith("simvq")}, **second}
    arrays |= {f"first_{name}": first[name] for name in ("z", "codebook", "grad_output")}

    def get(name: str) -> Tensor:
        array = torch.from_numpy(arrays[name])
        return array.clone().requires_grad_() if array.dtype == torch.float32 and array.ndim > 0 else array

    return get


def agrees(actual: Tensor | None, expected: Tensor) -> None:
    """To 1e-4 of the value, or of the largest value there is."""
    assert actual is not None
    scale = 1e-4 * float(expected.detach().abs().max()) / 10
    torch.testing.assert_close(actual.detach(), expected.detach(), rtol=1e-4, atol=scale)


def backward(result: Quantized, grad_output: Tensor) -> None:
    (sum(result.losses.values(), torch.zeros(())) + (result.latents * grad_output.detach()).sum()).backward()


# estimators

ESTIMATES: list[tuple[Estimator, str]] = [
    ("rotation", "rot_vqvae"),
    ("rotation_vqgan", "rot_vqgan"),
    ("reflection", "ref_vqgan"),
]


@pytest.mark.parametrize(("estimator", "name"), ESTIMATES)
def test_estimators(golden: Golden, estimator: Estimator, name: str) -> None:
    z, z_q = golden("z"), golden("rot_q")
    latents = estimate(z, z_q, estimator)
    agrees(latents, golden(f"{name}_latents"))
    assert torch.equal(latents.detach(), z_q.detach())  # the value is the code's, to the last bit
    (latents * golden("grad_output").detach()).sum().backward()
    agrees(z.grad, golden(f"{name}_grad_z"))
    assert z_q.grad is None


@pytest.mark.parametrize(("estimator", "name"), ESTIMATES)
@pytest.mark.parametrize("method", [VQGAN, VQGANEMA])
def test_methods_hand_on_the_gradient_as_the_estimator_says(
    golden: Golden, method: Any, estimator: Estimator, name: str
) -> None:
    quantizer = method(method.Config(K, C, estimator=estimator))
    codes = quantizer.embedding.data if method is VQGAN else quantizer.ema.codes
    codes.copy_(golden("codebook"))
    z = golden("z")
    (quantizer(z).latents * golden("grad_output").detach()).sum().backward()
    agrees(z.grad, golden(f"{name}_grad_z"))


# moving averages


def ema(golden: Golden, codebook: Tensor | None = None, **settings: object) -> VQGANEMA:
    quantizer = VQGANEMA(VQGANEMA.Config(K, C, **settings))  # type: ignore[arg-type]
    codes = golden("codebook").detach() if codebook is None else codebook.detach()
    quantizer.ema.codes.copy_(codes)
    quantizer.ema.sums.copy_(codes)
    return quantizer


def ema_state_agrees(quantizer: VQGANEMA, golden: Golden, name: str) -> None:
    agrees(quantizer.ema.codes, golden(name.format("codebook")))
    agrees(quantizer.ema.counts, golden(name.format("cluster_size")))
    agrees(quantizer.ema.sums, golden(name.format("embed_avg")))


@pytest.mark.parametrize(("prefix", "settings"), [("vqganema1", {}), ("vqganema", VQGANEMA.presets["released"])])
def test_vqgan_ema(golden: Golden, prefix: str, settings: dict[str, object]) -> None:
    """Three training passes and an evaluation, from counts of 1 and, as released, of 0."""
    quantizer = ema(golden, **settings)
    for step, batch in enumerate(BATCHES):
        z = golden(batch)
        result = quantizer(z)
        assert torch.equal(result.indices, golden(f"{prefix}_indices_s{step}"))
        agrees(result.latents, golden(f"{prefix}_latents_s{step}"))
        agrees(result.losses["commitment"], golden(f"{prefix}_loss_s{step}"))
        backward(result, golden("grad_output"))
        agrees(z.grad, golden(f"{prefix}_grad_z_s{step}"))
        ema_state_agrees(quantizer, golden, f"{prefix}_{{}}_s{step}")
    result = quantizer.eval()(golden("z"))
    assert torch.equal(result.indices, golden(f"{prefix}_eval_indices"))
    agrees(result.latents, golden(f"{prefix}_eval_latents"))


def test_the_ema_of_wasserstein_vq(golden: Golden) -> None:
    quantizer = ema(golden, golden("codebook") / 32, decay=0.8, beta=0.2, first_count=0)
    z = golden("z")
    result = quantizer(z)
    agrees(result.latents, golden("wema_latents"))
    agrees(result.losses["commitment"], golden("wema_loss"))
    backward(result, golden("grad_output"))
    agrees(z.grad, golden("wema_grad_z"))
    ema_state_agrees(quantizer, golden, "wema_{}")


@pytest.mark.parametrize(("prefix", "estimator"), [("lu_vq", "straight_through"), ("lu_vq_rot", "rotation")])
def test_the_codebook_of_vector_quantize_pytorch(golden: Golden, prefix: str, estimator: str) -> None:
    quantizer = ema(golden, **{**VQGANEMA.presets["rotation"], "estimator": estimator})
    z = golden("z")
    result = quantizer(z)
    assert torch.equal(result.indices, golden(f"{prefix}_train_indices"))
    agrees(result.latents, golden(f"{prefix}_train_latents"))
    agrees(result.losses["commitment"], golden(f"{prefix}_train_loss").squeeze())
    backward(result, golden("grad_output"))
    agrees(z.grad, golden(f"{prefix}_train_grad_z"))
    ema_state_agrees(quantizer, golden, f"{prefix}_train_{{}}")


# a learned linear map


def test_simvq(golden: Golden) -> None:
    quantizer = SimVQ(SimVQ.Config(K, C))
    weights = {f"projection.{name}": golden(f"simvq_{name}") for name in ("weight", "bias")}
    quantizer.load_state_dict({"embedding": golden("first_codebook"), **weights})
    z = golden("first_z")
    result = quantizer(z)
    assert torch.equal(result.indices, golden("simvq_indices"))
    agrees(result.latents, golden("simvq_zq"))
    agrees(result.losses["codebook"] + result.losses["commitment"], golden("simvq_loss"))
    backward(result, golden("first_grad_output"))
    agrees(z.grad, golden("simvq_grad_z"))
    assert quantizer.projection is not None
    agrees(quantizer.projection.weight.grad, golden("simvq_grad_weight"))
    agrees(quantizer.projection.bias.grad, golden("simvq_grad_bias"))
    assert quantizer.embedding.grad is None  # frozen
    agrees(quantizer.decode_indices(result.indices), golden("simvq_zq"))


@pytest.mark.parametrize(("prefix", "estimator"), [("lu_simvq", "straight_through"), ("lu_simvq_rot", "rotation")])
def test_simvq_without_bias(golden: Golden, prefix: str, estimator: str) -> None:
    quantizer = SimVQ(SimVQ.Config(K, C, **{**SimVQ.presets["rotation"], "estimator": estimator}))  # type: ignore[arg-type]
    quantizer.load_state_dict({"embedding": golden("codebook"), "projection.weight": golden("lu_simvq_weight")})
    z = golden("z")
    result = quantizer(z)
    assert torch.equal(result.indices, golden(f"{prefix}_indices"))
    agrees(result.latents, golden(f"{prefix}_latents"))
    agrees(result.losses["codebook"] + result.losses["commitment"], golden(f"{prefix}_loss"))
    backward(result, golden("grad_output"))
    agrees(z.grad, golden(f"{prefix}_grad_z"))
    assert quantizer.projection is not None
    agrees(quantizer.projection.weight.grad, golden(f"{prefix}_grad_weight"))


# a learned linear map of vectors that others made


def test_vqgan_lc(golden: Golden) -> None:
    quantizer = VQGANLC(VQGANLC.Config(K, C, channels=12, centres="given below", weight=1.0))
    quantizer.receive(golden("lc_codebook").detach())
    quantizer.projection.load_state_dict({name: golden(f"lc_{name}").detach() for name in ("weight", "bias")})
    z = golden("z")
    result = quantizer(z)
    assert torch.equal(result.indices, golden("lc_indices"))
    agrees(result.latents, golden("lc_latents"))
    agrees(result.losses["codebook"] + result.losses["commitment"], golden("lc_loss"))
    backward(result, golden("grad_output"))
    agrees(z.grad, golden("lc_grad_z"))
    agrees(quantizer.projection.weight.grad, golden("lc_grad_weight"))
    agrees(quantizer.projection.bias.grad, golden("lc_grad_bias"))
    assert quantizer.embedding.grad is None  # frozen
    agrees(quantizer.decode_indices(result.indices), golden("lc_latents"))
    weighed = VQGANLC(VQGANLC.Config(K, C, channels=12, centres="given below", weight=0.1))
    weighed.load_state_dict(quantizer.state_dict())
    for name, loss in weighed(z.detach()).losses.items():
        agrees(loss, 0.1 * result.losses[name])


# codes that the decoder's norms are modulated by


def test_movq(golden: Golden) -> None:
    quantizer = MoVQ(MoVQ.Config(K, C, **MoVQ.presets["released"]))  # type: ignore[arg-type]
    quantizer.load_state_dict({"embedding": golden("codebook")})
    z = golden("z")
    result = quantizer(z)
    assert torch.equal(result.indices, golden("movq_indices"))
    agrees(result.latents, golden("movq_latents"))
    agrees(result.losses["codebook"] + result.losses["commitment"], golden("movq_loss"))
    backward(result, golden("grad_output"))
    agrees(z.grad, golden("movq_grad_z"))
    agrees(quantizer.embedding.grad, golden("movq_grad_codebook"))


@pytest.mark.parametrize("has_conv", [False, True], ids=["as released", "with its 3×3 convolution"])
def test_the_norms_of_movq(golden: Golden, has_conv: bool) -> None:
    names = {"weight": "norm_weight", "bias": "norm_bias"}
    names |= {f"modulation.{ours}.{part}": f"{theirs}_{part}" for ours, theirs in (("scale", "y"), ("shift", "b"))
              for part in ("weight", "bias")}  # fmt: skip
    names |= {f"modulation.conv.{part}": f"conv_{part}" for part in ("weight", "bias")} if has_conv else {}
    modulation = MoVQ(MoVQ.Config(K, C, modulation_conv=has_conv)).decoder_modulation(64)
    assert modulation is not None
    norm = ModulatedNorm(nn.GroupNorm(32, 64, eps=1e-6), modulation)
    norm.load_state_dict({ours: golden(f"movq_norm_{theirs}").detach() for ours, theirs in names.items()})
    features, codes = golden("movq_norm_feature"), golden("movq_latents")
    out, prefix = norm(features, codes), "movq_norm_conv" if has_conv else "movq_norm"
    agrees(out, golden(f"{prefix}_out"))
    (out * golden("movq_norm_grad_output").detach()).sum().backward()
    agrees(features.grad, golden(f"{prefix}_grad_feature"))
    agrees(codes.grad, golden(f"{prefix}_grad_zq"))
    if not has_conv:  # of the other these are not stored
        agrees(modulation.scale.weight.grad, golden("movq_norm_grad_y_weight"))
        agrees(modulation.shift.weight.grad, golden("movq_norm_grad_b_weight"))


# residuals


def residual(golden: Golden, shared: bool, **settings: object) -> RQVAE:
    quantizer = RQVAE(RQVAE.Config(K, C, L, shared=shared, restart=False, **settings))  # type: ignore[arg-type]
    for book, codes in zip(quantizer.books, golden("rvq_codebooks").detach(), strict=False):
        book.codes.copy_(codes)
        book.sums.copy_(codes)
    return quantizer


def rqvae_state_agrees(quantizer: RQVAE, golden: Golden, prefix: str) -> None:
    for name, key in (("codes", "codebook"), ("sums", "embed_avg"), ("counts", "cluster_size")):
        agrees(torch.stack([getattr(book, name) for book in quantizer.books]), golden(f"{prefix}_{key}"))


@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_rqvae_evaluation(golden: Golden, kind: str) -> None:
    quantizer = residual(golden, kind == "shared").eval()
    result = quantizer(golden("z"))
    assert torch.equal(result.indices, golden(f"rvq_{kind}_eval_indices"))
    agrees(result.latents, golden(f"rvq_{kind}_eval_latents"))
    partial = quantizer.partial_latents(result.indices)
    agrees(partial, golden(f"rvq_{kind}_eval_partial_latents"))
    assert torch.equal(partial[-1], quantizer.decode_indices(result.indices))
    # the same pass, of whose gradients the codes have no part: training at a learning rate of nothing
    for book in quantizer.books:
        book.decay = 1.0
    z = golden("z")
    result = quantizer.train()(z)
    agrees(result.losses["commitment"] / 0.25, golden(f"rvq_{kind}_eval_commitment"))
    backward(result, golden("grad_output"))
    agrees(z.grad, golden(f"rvq_{kind}_eval_grad_z"))


@pytest.mark.parametrize("first_count", [0, 1])
@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_rqvae_training_as_released(golden: Golden, kind: str, first_count: int) -> None:
    """Each level moves its codebook right after it was read; where they are not shared, that is our update too."""
    prefix = f"rvq_{kind}{first_count or ''}_train"
    for update in ("each_level", "after_all_levels") if kind == "separate" else ("each_level",):
        quantizer, z = residual(golden, kind == "shared", first_count=first_count, update=update), golden("z")
        result = quantizer(z)
        assert torch.equal(result.indices, golden(f"{prefix}_indices"))
        agrees(result.latents, golden(f"{prefix}_latents"))
        agrees(result.losses["commitment"] / 0.25, golden(f"{prefix}_commitment"))
        backward(result, golden("grad_output"))
        agrees(z.grad, golden(f"{prefix}_grad_z"))
        rqvae_state_agrees(quantizer, golden, prefix)


@pytest.mark.parametrize("kind", ["", "_shared"])
def test_rqvae_updates_after_all_levels(golden: Golden, kind: str) -> None:
    """As vector-quantize-pytorch: training's indices are of one codebook. Shared, its counts decay once a level."""
    quantizer = residual(golden, kind == "_shared", decay=0.8, beta=1.0)
    z = golden("z")
    result = quantizer(z)
    assert torch.equal(result.indices, golden(f"lu_rvq{kind}_train_indices"))
    agrees(result.latents, golden(f"lu_rvq{kind}_train_latents"))
    agrees(result.losses["commitment"], golden(f"lu_rvq{kind}_train_losses").mean())
    if not kind:
        rqvae_state_agrees(quantizer, golden, "lu_rvq_train")


# codes that move to latents


def online(golden: Golden, **settings: object) -> CVQ:
    quantizer = CVQ(CVQ.Config(K, C, **settings))  # type: ignore[arg-type]
    quantizer.embedding.data.copy_(golden("codebook"))
    return quantizer


@pytest.mark.parametrize("distance", ["cos", "l2"])
def test_cvq(golden: Golden, distance: str) -> None:
    quantizer = online(golden, distance=distance)
    for step, batch in enumerate(BATCHES[:2]):
        z, name = golden(batch), f"cvq_{distance}_{{}}_s{step}"
        result = quantizer(z)
        assert torch.equal(result.indices, golden(name.format("indices")))
        agrees(result.latents, golden(name.format("latents")))
        agrees(result.losses["codebook"] + result.losses["commitment"], golden(name.format("loss")))
        quantizer.embedding.grad = None
        backward(result, golden("grad_output"))
        agrees(z.grad, golden(name.format("grad_z")))
        agrees(quantizer.embedding.grad, golden(name.format("grad_codebook")))
        agrees(quantizer.embedding, golden(name.format("codebook")))
        agrees(quantizer.shares, golden(name.format("embed_prob")))


@pytest.mark.parametrize("distance", ["cos", "l2"])
def test_cvq_with_its_contrastive_loss(golden: Golden, distance: str) -> None:
    """The gradient is that of the loss, which the authors' class has where it moves no codes."""
    quantizer, z, prefix = online(golden, distance=distance, contrastive=True), golden("z"), f"cvq_{distance}_contrast"
    result = quantizer(z)
    assert torch.equal(result.indices, golden(f"{prefix}_indices_s0"))
    agrees(sum(result.losses.values(), torch.zeros(())), golden(f"{prefix}_loss_s0"))
    backward(result, golden("grad_output"))
    agrees(z.grad, golden(f"{prefix}_grad_z_s0"))
    agrees(quantizer.embedding.grad, golden(f"{prefix}_noupdate_grad_codebook"))
    agrees(quantizer.embedding, golden(f"{prefix}_codebook_s0"))
    agrees(quantizer.shares, golden(f"{prefix}_embed_prob_s0"))


# codes drawn to the latents' distribution


@pytest.mark.parametrize("prefix", ["wvq", "wvq_vqvae"])
def test_wvq(golden: Golden, prefix: str) -> None:
    config = WVQ.Config(K, C, beta=0.2, queue_size=192, queue_start="noise")
    quantizer = WVQ(config)
    quantizer.embedding.data.copy_(golden("wvq_codebook"))
    quantizer.queue.copy_(golden("wvq_queue_init"))
    for step, batch in enumerate(BATCHES[:2]):
        z = golden(batch)
        result = quantizer(z)
        assert torch.equal(result.indices, golden(f"{prefix}_indices_s{step}"))
        agrees(result.latents, golden(f"{prefix}_latents_s{step}"))
        agrees(result.losses["wasserstein"] / 0.5, golden(f"{prefix}_wasserstein_s{step}"))
        agrees(sum(result.losses.values(), torch.zeros(())), golden(f"{prefix}_loss_s{step}"))
        quantizer.embedding.grad = None
        backward(result, golden("grad_output"))
        agrees(z.grad, golden(f"{prefix}_grad_z_s{step}"))
        agrees(quantizer.embedding.grad, golden(f"{prefix}_grad_codebook_s{step}"))
    assert torch.equal(quantizer.queue, golden(f"{prefix}_queue").detach())
    assert quantizer.queue_pointer == golden(f"{prefix}_queue_ptr")


@pytest.mark.parametrize("prefix", ["wvq", "wvq_vqvae"])
def test_wasserstein_distance_of_codes_and_latents(golden: Golden, prefix: str) -> None:
    codes = golden("wvq_codebook")
    distance = w2_to_normal(codes, *moments(as_rows(golden("z").detach())))
    agrees(distance, golden(f"{prefix}_w_of_z"))
    distance.backward()
    agrees(codes.grad, golden(f"{prefix}_w_of_z_grad_codebook"))


def test_mmd(golden: Golden) -> None:
    codes = golden("wvq_codebook")
    distance = squared_mmd(codes, as_rows(golden("z")))
    agrees(distance, golden("mmdvq_mmd"))
    distance.backward()
    agrees(codes.grad, golden("mmdvq_mmd_grad_codebook"))
    quantizer = WVQ(WVQ.Config(K, C, beta=0.2, matching_by="mmd"))
    quantizer.embedding.data.copy_(codes)
    z = golden("z")
    result = quantizer(z)
    agrees(result.latents, golden("mmdvq_latents"))
    agrees(sum(result.losses.values(), torch.zeros(())), golden("mmdvq_loss"))
    backward(result, golden("grad_output"))
    agrees(z.grad, golden("mmdvq_grad_z"))
    agrees(quantizer.embedding.grad, golden("mmdvq_grad_codebook"))


def test_what_shares_a_codebook_shares_its_arithmetic(golden: Golden) -> None:
    """simvq without its map is vqgan, and vaevq with nothing but its map is simvq with vectors that learn."""
    z, results = golden("z"), []
    pairs: list[tuple[Quantizer, Quantizer]] = [
        (SimVQ(SimVQ.Config(K, C, projection=False)), VQGAN(VQGAN.Config(K, C))),
        (
            SimVQ(SimVQ.Config(K, C, frozen=False)),
            VAEVQ(VAEVQ.Config(K, C, vlq=False, rcs=False, dcr=False, codebook_param="linear")),
        ),
    ]
    for one, other in pairs:
        other.load_state_dict(one.state_dict())
        for quantizer in (one, other):
            backward(quantizer(z), golden("grad_output"))
        gradients = [{name: p.grad for name, p in q.named_parameters()} for q in (one, other)]
        assert gradients[0].keys() == gradients[1].keys()
        results += [torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0]]  # type: ignore[arg-type]
    assert len(results) == 4
    assert all(results)
