"""Methods of bits, soft assignments, Gaussian samples and residual levels against values of the authors' own classes.

The inputs, and from which class each value is: tests/golden/README.md, `quantizers2.npz`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from vqbench.methods.bits import bit_places, indices_of
from vqbench.methods.bsq import BSQ
from vqbench.methods.codebook import as_rows
from vqbench.methods.entropy import mean_bit_probabilities
from vqbench.methods.fsq import FSQ
from vqbench.methods.gq import GaussianQuant
from vqbench.methods.ibq import IBQ
from vqbench.methods.lfq import LFQ
from vqbench.methods.llamagen import LlamaGen
from vqbench.methods.rfsq import RFSQ
from vqbench.methods.softvq import SoftVQ
from vqbench.quantizer import Quantized, Quantizer
from vqbench.registry import METHODS

GOLDEN = Path(__file__).parent / "golden" / "quantizers2.npz"
K, C, TOKENS = 32, 8, 24

Golden = Callable[[str], Tensor]


@pytest.fixture(scope="module")
def golden() -> Golden:
    arrays = dict(np.load(GOLDEN))

    def get(name: str) -> Tensor:
        array = torch.from_numpy(arrays[name])
        return array.clone().requires_grad_() if array.dtype == torch.float32 and array.ndim > 0 else array

    return get


def agree(actual: Tensor | None, expected: Tensor, absolute: float = 2e-6) -> None:
    assert actual is not None
    torch.testing.assert_close(actual.detach(), expected.detach(), rtol=1e-4, atol=absolute, check_dtype=False)


def run(quantizer: Quantizer, z: Tensor, grad_output: Tensor, losses: float = 1.0) -> Quantized:
    """One training pass and its gradients, of `losses` times all losses and of the decoder's share."""
    result: Quantized = quantizer.train()(z)
    total = sum(result.losses.values(), torch.zeros(()))
    (losses * total + (result.latents * grad_output.detach()).sum()).backward()
    return result


def in_eval(quantizer: Quantizer, z: Tensor) -> Quantized:
    with torch.no_grad():
        result: Quantized = quantizer.eval()(z)
    torch.testing.assert_close(quantizer.decode_indices(result.indices), result.latents)
    return result


@pytest.mark.parametrize("name", ["lfq", "lfqs"])
def test_lfq(golden: Golden, name: str) -> None:
    """Open-MAGVIT2's, with entropies that are saturated and such that are not."""
    quantizer, z = LFQ(LFQ.Config(bits=C)), golden(f"{name}_z")
    result = run(quantizer, z, golden("grad_output"))
    assert torch.equal(result.indices, golden(f"{name}_indices"))
    agree(result.latents, golden(f"{name}_latents"))
    agree(result.losses["entropy"] + result.losses["commitment"], golden(f"{name}_loss"))
    agree(result.losses["commitment"] / 0.25, golden(f"{name}_commitment"))
    for entropy in ("per_sample_entropy", "codebook_entropy"):
        agree(result.diagnostics[entropy], golden(f"{name}_{entropy}"))
    agree(z.grad, golden(f"{name}_grad_z"))
    evaluated = in_eval(quantizer, golden(f"{name}_z"))
    assert not evaluated.losses
    assert torch.equal(evaluated.indices, golden(f"{name}_eval_indices"))
    agree(evaluated.latents, golden(f"{name}_eval_latents"))
    agree(quantizer.codebook, golden("lfq_codebook"))


@pytest.mark.parametrize(
    ("name", "z_name", "settings"),
    [("lu_lfq", "lfqs_z", {}), ("lu_lfq_spherical", "z", {"spherical": True, "temperature": 0.1})],
)
def test_lfq_lucidrains(golden: Golden, name: str, z_name: str, settings: dict[str, Any]) -> None:
    """The other bit order, and logarithms that are clamped."""
    preset: dict[str, Any] = {**LFQ.presets["lucidrains"], "commitment": True}
    quantizer, z = LFQ(LFQ.Config(bits=C, **preset, **settings)), golden(z_name)
    result = run(quantizer, z, golden("grad_output"))
    assert torch.equal(result.indices, golden(f"{name}_indices"))
    agree(result.latents, golden(f"{name}_latents"))
    agree(result.losses["entropy"] + result.losses["commitment"], golden(f"{name}_loss"))
    agree(result.losses["commitment"] / 0.25, golden(f"{name}_commitment"))
    for entropy in ("per_sample_entropy", "codebook_entropy"):
        agree(result.diagnostics[entropy], golden(f"{name}_{entropy}"))
    agree(z.grad, golden(f"{name}_grad_z"))


BSQ_CASES: dict[str, dict[str, Any]] = {
    "g4": {"entropy_group": 4, "commitment": True, "beta": 0.25},
    "g8": {"entropy_group": 8},
    "official": {},
    "g4_analytical": {},  # their "analytical" is per bit whatever the group
    "g4_options": {
        "entropy_group": 4, "commitment": True, "beta": 0.1, "per_sample_weight": 0.8, "diversity": 1.2,
        "entropy_weight": 0.5, "inverse_temperature": 4.0,
    },
    "unscaled": {"entropy_group": 4, "commitment": True, "beta": 0.25, "spherical": False},
}  # fmt: skip


@pytest.mark.parametrize("case", BSQ_CASES)
def test_bsq(golden: Golden, case: str) -> None:
    settings = BSQ_CASES[case]
    quantizer = BSQ(BSQ.Config(bits=C, **{"entropy_weight": 1.0, **settings}))
    z = golden("z")
    unit = normalize(z, dim=1)  # theirs is done by the model; without spherical, ours is not done at all
    result = run(quantizer, z if quantizer.config.spherical else unit, golden("grad_output"))
    assert torch.equal(result.indices, golden(f"bsq_{case}_indices"))
    agree(result.latents, golden(f"bsq_{case}_latents"))
    agree(sum(result.losses.values(), torch.zeros(())), golden(f"bsq_{case}_loss"))
    if quantizer.config.commitment:
        agree(result.losses["commitment"], golden(f"bsq_{case}_commitment"))
    for entropy in ("per_sample_entropy", "codebook_entropy"):
        agree(result.diagnostics[entropy], golden(f"bsq_{case}_{entropy}"))
    agree(z.grad, golden(f"bsq_{case}_grad_z"))
    in_eval(quantizer, golden("z"))
    scale = quantizer.config.inverse_temperature * (C**-0.5 if quantizer.config.spherical else 1)
    means = mean_bit_probabilities(4 * scale * as_rows(golden("bsq_unit")), quantizer.config.entropy_group)
    agree(torch.stack(means), golden(f"bsq_{case}_avg_prob"))
    group = 4 if case.startswith(("g4", "unscaled")) else quantizer.config.entropy_group
    parts = [indices_of(part, bit_places(group, "first_highest")) for part in golden("z").split(group, 1)]
    assert torch.equal(torch.stack(parts, -1), golden(f"bsq_{case}_group_indices"))


LLAMAGEN: dict[str, dict[str, Any]] = {
    "llamagen": {}, "llamagen_on": {"entropy": True}, "llamagen_l2off": {"entropy": True, "normalise": False},
}  # fmt: skip


@pytest.mark.parametrize("name", LLAMAGEN)
def test_llamagen(golden: Golden, name: str) -> None:
    quantizer, z = LlamaGen(LlamaGen.Config(K, C, **LLAMAGEN[name])), golden("z")
    quantizer.load_state_dict({"embedding": golden("codebook")})
    result = run(quantizer, z, golden("grad_output"))
    assert torch.equal(result.indices, golden(f"{name}_indices"))
    agree(result.latents, golden(f"{name}_latents"))
    for term, key in (("codebook", "codebook_loss"), ("commitment", "commitment"), ("entropy", "entropy_loss")):
        agree(result.losses.get(term, torch.zeros(())), golden(f"{name}_{key}"))
    agree(z.grad, golden(f"{name}_grad_z"))
    agree(quantizer.embedding.grad, golden(f"{name}_grad_codebook"), absolute=2e-5)
    agree(quantizer.decode_indices(result.indices), golden(f"{name}_from_indices"))
    in_eval(quantizer, golden("z"))


@pytest.mark.parametrize(("name", "entropy"), [("ibq", False), ("ibq_on", True)])
def test_ibq(golden: Golden, name: str, entropy: bool) -> None:
    quantizer, z = IBQ(IBQ.Config(K, C, entropy=entropy)), golden("z")
    quantizer.load_state_dict({"embedding": golden("codebook")})
    result = run(quantizer, z, golden("grad_output"))
    assert torch.equal(result.indices, golden(f"{name}_indices"))
    agree(result.latents, golden(f"{name}_latents"))
    agree(sum(result.losses.values(), torch.zeros(())), golden(f"{name}_loss"))
    if entropy:
        agree(result.losses["entropy"] / 0.05, golden("ibq_on_entropy"))
        for term in ("per_sample_entropy", "codebook_entropy"):
            agree(result.diagnostics[term], golden(f"ibq_on_{term}"))
    agree(z.grad, golden(f"{name}_grad_z"))
    agree(quantizer.embedding.grad, golden(f"{name}_grad_codebook"))
    assert torch.equal(in_eval(quantizer, golden("z")).indices, result.indices)


@pytest.mark.parametrize(("name", "splits"), [("softvq", 1), ("softvq_split2", 2)])
def test_softvq(golden: Golden, name: str, splits: int) -> None:
    quantizer, z = SoftVQ(SoftVQ.Config(K, C, splits=splits)), golden("z")
    quantizer.load_state_dict({"embedding": golden("softvq_codebooks")[:splits]})
    result = run(quantizer, z, golden("grad_output"))
    assert torch.equal(result.indices, golden(f"{name}_indices"))
    assert torch.equal(result.indices, golden(f"{name}_weights").argmax(-1))
    agree(result.latents, golden(f"{name}_latents"))
    agree(result.losses["entropy"], golden(f"{name}_loss"))
    agree(z.grad, golden(f"{name}_grad_z"))
    agree(quantizer.embedding.grad, golden(f"{name}_grad_codebook"))
    evaluated = in_eval(quantizer, golden("z"))
    agree(evaluated.continuous, golden(f"{name}_eval_latents"))
    assert torch.equal(evaluated.indices, result.indices)
    books = normalize(golden("softvq_codebooks").detach()[:splits], dim=2)
    book = torch.arange(TOKENS).view(4, 6) // (TOKENS // splits)
    torch.testing.assert_close(evaluated.latents, books[book, result.indices].permute(0, 3, 1, 2))


GQ: dict[str, dict[str, Any]] = {"gq": {}, "gq2": dict(GaussianQuant.presets["second"])}
MULTIPLIERS = {"multiplier": "lam", "shortfall": "lam_min", "excess": "lam_max"}


def gq(form: str) -> tuple[GaussianQuant, float]:
    """The quantizer, and what makes the authors' loss of its own: a sum over the tokens, or a mean over the groups."""
    quantizer = GaussianQuant(GaussianQuant.Config(K, C, group=4, **GQ[form]))
    per_token = float(TOKENS if form == "gq" else 1 / quantizer.num_codebooks)
    return quantizer, per_token / float(quantizer.kl_weight)


def gq_step(golden: Golden, form: str, step: str, quantizer: GaussianQuant, factor: float, name: str = "") -> None:
    prefix, mean, log_variance = f"{form}{name}", golden(f"gq_mean_{step}"), golden(f"gq_logvar_{step}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn_like", lambda like: golden(f"{prefix}_noise_{step}").detach())
        result = run(quantizer, torch.cat([mean, log_variance], 1), golden("grad_output"), factor)
    agree(result.latents, golden(f"{prefix}_latents_{step}"))
    agree(factor * result.losses["kl"], golden(f"{prefix}_kl_loss_{step}"))
    agree(mean.grad, golden(f"{prefix}_grad_mean_{step}"))
    agree(log_variance.grad, golden(f"{prefix}_grad_logvar_{step}"))
    for bound in ("min", "mean", "max"):
        agree(result.diagnostics[f"bits_{bound}"], golden(f"{prefix}_bits_{bound}_{step}"))
    for ours, theirs in MULTIPLIERS.items():
        agree(getattr(quantizer, ours), golden(f"{prefix}_{theirs}_{step}"))


@pytest.mark.parametrize("form", GQ)
def test_gq_training(golden: Golden, form: str) -> None:
    """Three steps without an optimizer: the multipliers move."""
    quantizer, factor = gq(form)
    agree(quantizer.samples, golden("gq_codebook"))
    for step in ("s0", "s1", "s2"):
        gq_step(golden, form, step, quantizer, factor)


@pytest.mark.parametrize("form", GQ)
def test_gq_uses_the_multipliers_of_before_the_step(golden: Golden, form: str) -> None:
    quantizer, factor = gq(form)
    for name, value in zip(("multiplier", "shortfall", "excess"), golden("gq_weighted_start"), strict=True):
        getattr(quantizer, name).fill_(value)
    gq_step(golden, form, "s0", quantizer, factor, "_weighted")


@pytest.mark.parametrize("form", GQ)
def test_gq_evaluation(golden: Golden, form: str) -> None:
    quantizer, _ = gq(form)
    mean = golden("gq_mean_s0")
    evaluated = in_eval(quantizer, torch.cat([mean, golden("gq_logvar_s0")], 1))
    assert torch.equal(evaluated.indices, golden(f"{form}_eval_indices"))
    agree(evaluated.latents, golden(f"{form}_eval_latents"))
    assert (evaluated.continuous is None) == (form == "gq2")  # whose training decodes the codes


def narrow(golden: Golden, name: str, levels: int = 4) -> Tensor:
    return golden(name).detach()[:, :levels].clone().requires_grad_()


@pytest.mark.parametrize(("name", "settings"), [("lu_fsq_sym", {}), ("lu_fsq_noise", {"noise_dropout": 0.5})])
def test_symmetric_fsq(golden: Golden, name: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    levels = tuple(golden("lu_rfsq_levels").tolist())
    quantizer, z = FSQ(FSQ.Config(levels, symmetric=True, **settings)), narrow(golden, "z")
    if settings:
        monkeypatch.setattr(Tensor, "bernoulli_", lambda self: self.copy_(golden("lu_fsq_noise_mask").detach()))
        monkeypatch.setattr(torch, "rand_like", lambda like: golden("lu_fsq_noise_offset").detach() + 0.5)
    result = run(quantizer, z, narrow(golden, "grad_output"))
    assert torch.equal(result.indices, golden(f"{name}_indices").long())
    agree(result.latents, golden(f"{name}_latents"))
    agree(z.grad, golden(f"{name}_grad_z"))
    agree(in_eval(quantizer, narrow(golden, "z")).latents, golden("lu_fsq_sym_latents"))


def test_rfsq(golden: Golden) -> None:
    levels = tuple(golden("lu_rfsq_levels").tolist())
    quantizer, z = RFSQ(RFSQ.Config(levels, steps=3)), narrow(golden, "z")
    result = run(quantizer, z, narrow(golden, "grad_output"))
    agree(z.grad, golden("lu_rfsq_grad_z"))
    evaluated = in_eval(quantizer, narrow(golden, "z"))
    assert torch.equal(result.indices, evaluated.indices)
    assert torch.equal(evaluated.indices, golden("lu_rfsq_eval_indices").long())
    agree(evaluated.latents, golden("lu_rfsq_eval_latents"))


def adapted(name: str, **config: Any) -> Quantizer:
    pytest.importorskip("vector_quantize_pytorch", reason="vector-quantize-pytorch is not installed: vqbench[vqp]")
    cls = METHODS.get(f"vqp:{name}")
    made: Quantizer = cls(cls.Config(**config))
    return made


def books_of(quantizer: Quantizer) -> list[Any]:
    """The codebooks of an adapter's module that follow the data, each once, in order."""
    return [
        module for module in quantizer.modules() if {"embed", "embed_avg"} <= {*module._buffers, *module._parameters}
    ]


def fill(book: Any, codes: Tensor) -> None:
    book.embed.data.copy_(codes)
    book.embed_avg.data.copy_(codes)


VQP_VQ: dict[str, dict[str, Any]] = {
    "lu_vq": {"rotation_trick": False}, "lu_vq_rot": {}, "lu_vq_cos": {"use_cosine_sim": True, "rotation_trick": False},
}  # fmt: skip


@pytest.mark.parametrize("name", VQP_VQ)
def test_vqp_vector_quantize(golden: Golden, name: str) -> None:
    quantizer = adapted("VectorQuantize", dim=C, codebook_size=K, **VQP_VQ[name])
    (book,) = books_of(quantizer)
    fill(book, normalize(golden("codebook").detach(), dim=1) if "cos" in name else golden("codebook").detach())
    evaluated = in_eval(quantizer, golden("z"))
    assert torch.equal(evaluated.indices, golden(f"{name}_eval_indices"))
    agree(evaluated.latents, golden(f"{name}_eval_latents"))
    z = golden("z")
    result = run(quantizer, z, golden("grad_output"))
    assert torch.equal(result.indices, golden(f"{name}_train_indices"))
    agree(result.latents, golden(f"{name}_train_latents"))
    agree(result.losses["vqp"], golden(f"{name}_train_loss"))
    agree(z.grad, golden(f"{name}_train_grad_z"))
    for ours, theirs in (("embed", "codebook"), ("cluster_size", "cluster_size"), ("embed_avg", "embed_avg")):
        agree(getattr(book, ours)[0], golden(f"{name}_train_{theirs}"))


@pytest.mark.parametrize("shared", [False, True], ids=["separate", "shared"])
def test_vqp_residual_vq(golden: Golden, shared: bool) -> None:
    name = "lu_rvq_shared" if shared else "lu_rvq"
    quantizer = adapted(
        "ResidualVQ", dim=C, codebook_size=K, num_quantizers=3, shared_codebook=shared, rotation_trick=False
    )
    books = books_of(quantizer)
    assert len(books) == (1 if shared else 3)
    for book, codes in zip(books, golden("rvq_codebooks").detach(), strict=False):
        fill(book, codes)
    evaluated = in_eval(quantizer, golden("z"))
    assert torch.equal(evaluated.indices, golden(f"{name}_eval_indices"))
    agree(evaluated.latents, golden(f"{name}_eval_latents"))
    z = golden("z")
    result = run(quantizer, z, golden("grad_output"))
    assert torch.equal(result.indices, golden(f"{name}_train_indices"))
    agree(result.latents, golden(f"{name}_train_latents"))
    agree(result.losses["vqp"], golden(f"{name}_train_losses").sum())
    agree(z.grad, golden(f"{name}_train_grad_z"))
    for ours, theirs in (("embed", "codebook"), ("cluster_size", "cluster_size"), ("embed_avg", "embed_avg")):
        agree(torch.stack([getattr(book, ours)[0] for book in books]), golden(f"{name}_train_{theirs}"))


def test_vqp_grouped_residual_vq(golden: Golden) -> None:
    quantizer = adapted("GroupedResidualVQ", dim=C, codebook_size=K, num_quantizers=3, groups=2, rotation_trick=False)
    books = books_of(quantizer)
    for i, book in enumerate(books):
        group, level = divmod(i, 3)
        fill(book, golden("rvq_codebooks").detach()[level, :, 4 * group : 4 * group + 4])
    evaluated = in_eval(quantizer, golden("z"))
    assert quantizer.num_codebooks == 6
    assert torch.equal(evaluated.indices.unflatten(3, (2, 3)), golden("lu_grvq_eval_indices"))
    agree(evaluated.latents, golden("lu_grvq_eval_latents"))
