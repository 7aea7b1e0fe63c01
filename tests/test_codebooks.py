"""Methods with a codebook on cases with a known answer, where no golden value reaches; no file is needed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers.ranks import STEPS, batch, fresh, states_of_two_ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from torch.profiler import ProfilerActivity, profile

from vqbench.checks.suite import check_method, render
from vqbench.config import stored
from vqbench.methods import blocks, cvq, mmd, nearest
from vqbench.methods.codebook import as_rows
from vqbench.methods.cvq import CVQ, contrastive_loss
from vqbench.methods.dcr import moments, w2_to_normal
from vqbench.methods.ema import EMACodebook
from vqbench.methods.estimators import estimate
from vqbench.methods.mmd import squared_mmd
from vqbench.methods.movq import MoVQ
from vqbench.methods.rqvae import RQVAE
from vqbench.methods.simvq import SimVQ
from vqbench.methods.vqgan import VQGAN
from vqbench.methods.vqgan_ema import VQGANEMA
from vqbench.methods.vqgan_lc import VQGANLC
from vqbench.methods.wvq import WVQ

quick = settings(max_examples=30, deadline=None)


def seeded(cls: Any, seed: int = 0, **config: Any) -> Any:
    torch.manual_seed(seed)
    return cls(cls.Config(**config))


def images(*vectors: list[float]) -> Tensor:
    """Latents (1, d, 1, N) of the vectors."""
    return torch.tensor(vectors).t()[None, :, None].contiguous()


# estimators


@pytest.mark.parametrize("estimator", ["rotation", "rotation_vqgan", "reflection"])
def test_an_estimator_keeps_the_value_and_a_finite_gradient_where_there_is_no_direction(estimator: Any) -> None:
    z = images([0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [2.0, 1.0], [0.0, 0.0]).requires_grad_()
    z_q = images([3.0, 4.0], [-2.0, 0.0], [0.0, 0.0], [2.0, 1.0], [0.0, 0.0])  # away from it, at it, at nothing
    latents = estimate(z, z_q, estimator)
    assert torch.equal(latents, z_q)
    latents.sum().backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()


@quick
@given(seed=st.integers(0, 999), d=st.integers(2, 7))
def test_a_rotation_keeps_the_gradients_angle_to_the_code(seed: int, d: int) -> None:
    """What g is to the code q, the gradient is to the latent e: same angle, and ‖q‖/‖e‖ times as long."""
    noise = torch.Generator().manual_seed(seed)
    z, z_q, g = (torch.randn(1, d, 1, 1, generator=noise, dtype=torch.float64) for _ in range(3))
    z.requires_grad_()
    (gradient,) = torch.autograd.grad((estimate(z, z_q, "rotation") * g).sum(), z)
    ratio = z_q.norm() / z.detach().norm()
    torch.testing.assert_close(gradient.norm(), ratio * g.norm())
    torch.testing.assert_close((gradient * z.detach()).sum(), (g * z_q).sum(), rtol=1e-6, atol=1e-9)
    for other in ("rotation_vqgan", "reflection"):  # the two forms that hand nothing on along e
        (gradient,) = torch.autograd.grad((estimate(z, z_q, other) * g).sum(), z)  # type: ignore[arg-type]
        assert abs(float((gradient * z.detach()).sum())) < 1e-6 * float(gradient.norm() * z.detach().norm() + 1)


def test_a_straight_through_vqgan_is_stored_and_named_as_before() -> None:
    assert "estimator" not in stored(VQGAN.Config())
    assert stored(VQGAN.Config(estimator="rotation"))["estimator"] == "rotation"
    assert VQGAN.remark(VQGAN.Config()) == ""
    assert "little gradient" in VQGAN.remark(VQGAN.Config(estimator="rotation"))
    assert VQGAN.remark(VQGAN.Config(estimator="rotation", init="normal")) == ""


# moving averages


def test_an_update_by_hand() -> None:
    book = EMACodebook(torch.tensor([[1.0], [5.0], [9.0]]), 0.5, 1e-9, 1)
    book.update(torch.tensor([[2.0], [4.0], [6.0]]), torch.tensor([0, 0, 1]))
    assert book.counts.tolist() == [1.5, 1.0, 0.5]  # ½ · 1 + ½ · hits
    assert book.sums.flatten().tolist() == [3.5, 5.5, 4.5]  # ½ · code + ½ · sum of its rows
    torch.testing.assert_close(book.codes, book.sums / book.counts[:, None])
    assert book.codes[2].item() == pytest.approx(9.0)  # nobody's: it stays


def test_a_restart_resets_code_count_and_sum() -> None:
    torch.manual_seed(0)
    book = EMACodebook(torch.tensor([[1.0], [50.0], [90.0]]), 0.5, 1e-9, 1)
    rows = torch.tensor([[2.0], [2.5], [3.0], [3.5]])
    share = book.update(rows, torch.zeros(4, dtype=torch.long), restart_below=0.6)
    assert share.item() == pytest.approx(2 / 3)
    assert book.counts.tolist() == [2.5, 1.0, 1.0]
    assert book.sums[0].item() == 0.5 + 0.5 * 11
    assert all(code in rows.flatten().tolist() for code in book.sums[1:].flatten().tolist())
    torch.testing.assert_close(book.codes[1:], book.sums[1:])
    assert book.sums[1] != book.sums[2]  # each row is drawn once


def test_a_restart_from_fewer_latents_than_codes_spreads_them() -> None:
    torch.manual_seed(0)
    book = EMACodebook(torch.zeros(50, 4), 0.9, 1e-5, 1)
    book.update(torch.ones(3, 4), torch.zeros(3, dtype=torch.long), restart_below=2.0)
    apart = book.codes - 1
    assert len(book.codes.unique(dim=0)) == 50
    assert apart.abs().max() < 0.01 * 4**-0.5 + 1e-3


def test_restart_brings_dead_codes_back() -> None:
    used = {}
    for restart in (False, True):
        quantizer = seeded(VQGANEMA, codebook_size=16, dim=4, restart=restart, init="uniform")
        for step in range(20):
            torch.manual_seed(step)
            result = quantizer(5 + torch.randn(4, 4, 8, 8))
        used[restart] = len(result.indices.unique())
        assert ("restarted" in result.diagnostics) == restart
    assert used == {False: 1, True: 16}


def test_a_shared_residual_codebook_moves_once_a_step_and_by_all_levels() -> None:
    quantizer = seeded(RQVAE, codebook_size=8, dim=4, levels=3, restart=False, decay=0.9)
    before, z = quantizer.books[0].codes.clone(), torch.randn(2, 4, 5, 5)
    result = quantizer(z)
    hits = torch.bincount(result.indices.flatten(), minlength=8)
    torch.testing.assert_close(quantizer.books[0].counts, 0.9 + 0.1 * hits)
    sums, left = torch.zeros(8, 4), as_rows(z)
    for level in range(3):
        chosen = result.indices[..., level].flatten()
        assert torch.equal(chosen, torch.cdist(left, before).argmin(1))  # every level searched the same codes
        sums.index_add_(0, chosen, left)
        left = left - before[chosen]
    torch.testing.assert_close(quantizer.books[0].sums, 0.9 * before + 0.1 * sums)
    quantizer.books[0].codes.copy_(before)
    torch.testing.assert_close(quantizer.decode_indices(result.indices), result.latents)


def test_a_shared_residual_codebook_as_released_changes_between_levels() -> None:
    quantizer = seeded(RQVAE, codebook_size=8, dim=4, levels=3, restart=False, decay=0.5, update="each_level")
    before = quantizer.books[0].codes.clone()
    result = quantizer(torch.randn(2, 4, 5, 5))
    quantizer.books[0].codes.copy_(before)
    assert not torch.allclose(quantizer.decode_indices(result.indices), result.latents, atol=1e-2)


def test_residual_levels_are_matched_to_the_messages_of_a_token() -> None:
    sizes = {asked: RQVAE.matched(asked, 64)["codebook_size"] for asked in (2, 16, 512, 16384)}
    assert sizes == {2: 2, 16: 2, 512: 5, 16384: 11}
    assert RQVAE.remark(RQVAE.Config()) == ""
    assert "2 levels of 5 codes make 25 messages" in RQVAE.remark(RQVAE.Config(levels=2))
    quantizer = seeded(RQVAE, codebook_size=5, dim=4)
    assert quantizer.bits_per_token == pytest.approx(4 * math.log2(5))
    assert quantizer.codebook is None
    one = seeded(RQVAE, codebook_size=5, dim=4, levels=1)
    assert torch.equal(one.codebook, one.books[0].codes)


# codes that move to latents


@pytest.mark.parametrize("distance", ["cos", "l2"])
def test_unused_codes_go_to_their_closest_latent(distance: str) -> None:
    """In float64, by the paper's formula; a code that is used stays where it is."""
    quantizer = seeded(CVQ, codebook_size=4, dim=3, distance=distance, decay=0.9)
    quantizer.embedding.data.copy_(torch.tensor([[1.0, 0, 0], [9, 9, 9], [-7, 1, 0], [0, -1, -8]]))
    codes = quantizer.embedding.detach().double()
    z = torch.randn(1, 3, 4, 4) * 0.1 + torch.tensor([1.0, 0, 0])[:, None, None]
    rows = as_rows(z).double()
    result = quantizer(z)
    share = 0.1 * torch.bincount(result.indices.flatten(), minlength=4) / 16
    far = torch.cdist(*(normalize(x, dim=1) if distance == "cos" else x for x in (codes, rows)))
    a = torch.exp(-10 * 4 * share.double() / 0.1 - 1e-3)[:, None]
    expected = (1 - a) * codes + a * rows[far.argmin(1)]
    torch.testing.assert_close(quantizer.embedding.detach().double(), expected, rtol=1e-5, atol=1e-6)
    assert float((quantizer.embedding.detach() - codes)[1].abs().max()) > 5
    assert result.diagnostics["anchored"].item() == pytest.approx(float(a.mean()), rel=1e-5)


@pytest.mark.parametrize("distance", ["cos", "l2"])
def test_anchors_are_drawn_by_the_softmax_of_the_similarities(distance: Any) -> None:
    quantizer = seeded(CVQ, codebook_size=40_000, dim=2, distance=distance, anchor="probrandom")
    code, rows = torch.tensor([1.0, 0.5]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    quantizer.embedding.data.copy_(code)
    _, drawn = quantizer._drawn(rows)
    shares = torch.bincount(drawn, minlength=3) / 40_000
    cosines, squared = normalize(rows, dim=1) @ normalize(code, dim=0), (rows - code).square().sum(1)
    expected = (cosines if distance == "cos" else -squared).softmax(0)
    torch.testing.assert_close(shares, expected, rtol=0, atol=4 * 0.5 / 40_000**0.5)


def test_a_pool_is_filled_then_replaced_and_drawn_anew_from_a_larger_batch() -> None:
    quantizer = seeded(CVQ, codebook_size=5, dim=1, anchor="random")
    start = quantizer.pool.clone()
    pools = [quantizer._from_pool(torch.full((n, 1), float(v))).flatten().tolist() for n, v in ((3, 1), (3, 2), (2, 3))]
    assert pools[0] == [1, 1, 1, *start[3:].flatten().tolist()]
    assert pools[1] == [1, 1, 1, 2, 2]
    assert sorted(pools[2]).count(3) == 2
    drawn = quantizer._from_pool(torch.arange(10.0, 20.0)[:, None])
    assert set(drawn.flatten().tolist()) <= set(range(10, 20))
    assert quantizer.pooled == 5


@pytest.mark.parametrize("distance", ["cos", "l2"])
@pytest.mark.parametrize(("n", "k"), [(30, 7), (9, 40)])
def test_the_contrastive_loss_in_blocks_is_the_authors_sorted_one(
    distance: Any, n: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 4 * n * 3)  # three codes a block
    noise = torch.Generator().manual_seed(0)
    rows, codes = (torch.randn(m, 5, generator=noise, dtype=torch.float64) for m in (n, k))
    codes.requires_grad_()
    loss = contrastive_loss(codes, rows, distance, 0.7)
    if distance == "cos":
        scores = normalize(rows, dim=1) @ normalize(codes, dim=1).t()
    else:
        scores = -(rows[:, None] - codes).square().sum(2)
    ordered = scores.sort(dim=0).values
    logits = torch.cat([ordered[-max(1, n // k) :].mean(0, keepdim=True), ordered[: n // 2]]).t() / 0.7
    expected = cross_entropy(logits, torch.zeros(k, dtype=torch.long))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, codes)[0] for value in (loss, expected)))


# codes drawn to the latents' distribution


@pytest.mark.parametrize(("n", "k", "scale", "at"), [(20, 9, 1.0, 0.0), (6, 31, 1e-3, 0.0), (15, 8, 0.1, 30.0)])
def test_mmd_in_blocks_is_its_definition(
    n: int, k: int, scale: float, at: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mmd, "TILE", 4)
    noise = torch.Generator().manual_seed(0)
    rows, codes = (at + scale * torch.randn(m, 3, generator=noise, dtype=torch.float64) for m in (n, k))
    codes.requires_grad_()
    both = torch.cat([rows, codes.detach()])
    bandwidth = (both[:, None] - both).square().sum() / ((n + k) ** 2 - (n + k))

    def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
        squared = (a[:, None] - b).square().sum(2) / bandwidth
        return ((-squared).exp() + (-squared / 2).exp()).mean()

    expected = mean_kernel(rows, rows) - 2 * mean_kernel(rows, codes) + mean_kernel(codes, codes)
    found = squared_mmd(codes, rows)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, codes)[0] for value in (found, expected)))


def test_mmd_of_the_same_points_is_nothing() -> None:
    points = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    distance = squared_mmd(points, points.detach().clone())
    assert abs(distance.item()) < 1e-6
    assert float(torch.autograd.grad(distance, points)[0].abs().max()) < 1e-6
    same = torch.zeros(8, 3, requires_grad=True)
    assert torch.autograd.grad(squared_mmd(same, same.detach()), same)[0].isfinite().all()


def test_a_queue_holds_the_latest_latents_whatever_the_batch() -> None:
    quantizer = seeded(WVQ, codebook_size=4, dim=1, queue_size=5)
    for rows, expected in (([1, 2], [1, 2]), ([3, 4], [1, 2, 3, 4]), ([5, 6, 7], [6, 7, 3, 4, 5])):
        quantizer._enqueue(torch.tensor(rows).float()[:, None])
        assert quantizer.queue[: int(quantizer.queue_filled)].flatten().tolist() == expected
    assert quantizer.queue_pointer == 2
    quantizer._enqueue(torch.arange(20.0, 28.0)[:, None])
    assert sorted(quantizer.queue.flatten().tolist()) == [23, 24, 25, 26, 27]


def test_what_the_queue_does_not_hold_yet_is_no_target() -> None:
    """The first step's distance is that to the batch, in float64; a queue of noise would be nearly all noise."""
    quantizer, z = seeded(WVQ, codebook_size=64, dim=3, queue_size=1000), 3 + torch.randn(2, 3, 4, 4)
    found = quantizer(z).losses["wasserstein"] / 0.5
    mean, covariance = moments(as_rows(z).double())
    covariance = covariance * (31 / 32) * (1000 / 999)
    expected = w2_to_normal(quantizer.embedding.detach().double(), mean, covariance)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
    noisy = seeded(WVQ, codebook_size=64, dim=3, queue_size=1000, queue_start="noise")
    assert not torch.allclose(noisy(z).losses["wasserstein"] / 0.5, found, rtol=0.1)


def test_codes_that_have_the_latents_moments_are_left_alone() -> None:
    noise = torch.Generator().manual_seed(0)
    codes = torch.randn(32, 3, generator=noise, dtype=torch.float64).requires_grad_()
    assert w2_to_normal(codes, *(part.detach() for part in moments(codes))).item() < 1e-4
    mean, covariance = moments(codes.detach())
    moved = w2_to_normal(codes, mean + 2, covariance)  # √(Σ 2²) in units of the widest coordinate
    assert moved.item() == pytest.approx(math.sqrt(12) / covariance.diagonal().max().sqrt().item(), rel=1e-5)


# look-up


@quick
@given(n=st.integers(1, 40), k=st.integers(1, 30), d=st.integers(1, 6), seed=st.integers(0, 99))
def test_nearest_both_ways_is_brute_force(n: int, k: int, d: int, seed: int) -> None:
    noise = torch.Generator().manual_seed(seed)
    z, codes = (torch.randint(-9, 10, (m, d), generator=noise).float() for m in (n, k))
    distance = (z[:, None] - codes).square().sum(2)
    usual, nearest.SCORE_BYTES = nearest.SCORE_BYTES, 7 * 4 * k
    try:
        of_z, of_codes = nearest.nearest_both_ways(z, codes)
    finally:
        nearest.SCORE_BYTES = usual
    least = distance.gather(1, of_z[:, None])[:, 0], distance.gather(0, of_codes[None])[0]
    torch.testing.assert_close(least[0], distance.amin(1), rtol=0, atol=1e-3)
    torch.testing.assert_close(least[1], distance.amin(0), rtol=0, atol=1e-3)


# what a method gives up


@pytest.mark.parametrize(
    ("cls", "name", "field"),
    [
        (VQGANEMA, "commitment", "commitment"),
        (RQVAE, "commitment", "commitment"),
        (CVQ, "contrastive", "contrastive"),
        (WVQ, "wasserstein", "matching"),
    ],
)
def test_a_component_that_is_off_leaves_no_loss(cls: Any, name: str, field: str) -> None:
    for on in (True, False):
        quantizer = seeded(cls, codebook_size=8, dim=4, **{field: on})
        assert (name in quantizer(torch.randn(1, 4, 3, 3)).losses) == on


def test_without_what_sets_them_apart_they_are_vqgan() -> None:
    z, size = torch.randn(2, 4, 5, 5), {"codebook_size": 16, "dim": 4}
    baseline = seeded(VQGAN, **size)(z)
    for cls, off in (
        (WVQ, {"matching": False, "beta": 0.25}),
        (CVQ, {"reinitialisation": False, "distance": "l2"}),
        (SimVQ, {"projection": False, "init": "uniform"}),
        (MoVQ, {"modulation": False}),
    ):
        quantizer = seeded(cls, **size, **off)
        assert list(quantizer.state_dict()) == ["embedding"]
        result = quantizer(z)
        assert torch.equal(result.latents, baseline.latents)
        assert {name: loss.item() for name, loss in result.losses.items()} == {
            name: loss.item() for name, loss in baseline.losses.items()
        }


@pytest.mark.parametrize("cls", [VQGANEMA, SimVQ, RQVAE, CVQ, WVQ, VQGANLC, MoVQ])
def test_meaningless_settings_are_refused(cls: Any) -> None:
    with pytest.raises(ValueError, match="codebook_size must be at least 2"):
        cls.Config(codebook_size=1)
    with pytest.raises(ValueError, match="beta"):
        cls.Config(beta=-1)
    for field, value in {"decay": 1.0, "epsilon": 0.0, "levels": 0, "temperature": 0.0, "queue_size": 1,
                         "chunks": 3, "channels": 5, "images": 0}.items():  # fmt: skip
        if field in cls.Config.__dataclass_fields__:
            with pytest.raises(ValueError, match=field):
                cls.Config(**{field: value})


LARGEST = [
    (VQGANEMA, {"restart": True}),
    (SimVQ, {}),
    (RQVAE, {"levels": 2}),
    (CVQ, {}),
    (CVQ, {"anchor": "random"}),
    (WVQ, {"queue_size": 64}),
    (VQGANLC, {"channels": 4, "centres": "none needed"}),
    (MoVQ, {"chunks": 3}),
]


@pytest.mark.parametrize("size", [2, pytest.param(2**18, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("cls", "given_settings"), LARGEST)
def test_round_trip_from_two_codes_to_the_largest(cls: Any, given_settings: dict[str, Any], size: int) -> None:
    quantizer = seeded(cls, codebook_size=size, dim=3, **given_settings)
    quantizer.train()(torch.randn(2, 3, 4, 5))
    result = quantizer.eval()(torch.randn(2, 3, 4, 5))
    assert int(result.indices.max()) < size
    torch.testing.assert_close(quantizer.decode_indices(result.indices), result.latents)


# memory


def peak_of_a_step(quantizer: Any, z: Tensor) -> float:
    """Largest sum of what the allocator had given out during forward and backward, in bytes, beyond what was there."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        result = quantizer(z)
        (sum(result.losses.values(), torch.zeros(())) + result.latents.sum()).backward()
    events = sorted(
        (e for e in watched.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()
    )
    live, peak = 0, 0
    for event in events:
        live += event.nbytes()
        peak = max(peak, live)
    return peak


MEMORY = [
    (VQGANEMA, {"restart": True}, 100),
    (SimVQ, {}, 100),
    (RQVAE, {"levels": 1}, 100),
    (CVQ, {}, 100),
    (WVQ, {}, 100),
    (VQGANLC, {}, 100),
    (MoVQ, {}, 100),
]
MEMORY_OF_ALL_PAIRS = [
    (CVQ, {"anchor": "probrandom"}, 100),
    (CVQ, {"contrastive": True}, 100),
    (WVQ, {"matching_by": "mmd"}, 100),
]


@pytest.mark.parametrize(
    ("cls", "given_settings", "megabytes"),
    [*MEMORY, *(pytest.param(*case, marks=pytest.mark.slow) for case in MEMORY_OF_ALL_PAIRS)],
)
def test_a_step_needs_no_matrix_of_all_distances(cls: Any, given_settings: dict[str, Any], megabytes: int) -> None:
    """4096 tokens, 16384 codes, 64 channels: the matrix alone is 268 MB."""
    quantizer = seeded(cls, codebook_size=16384, dim=64, **given_settings)
    peak = peak_of_a_step(quantizer, torch.randn(16, 64, 16, 16).requires_grad_())
    assert 4 * 16384 * 64 < peak < megabytes * 1e6


# many processes and the suite


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]]:
    found = states_of_two_ranks(tmp_path_factory.mktemp("ranks"), list(ON_TWO_RANKS.values()))
    return dict(zip(ON_TWO_RANKS, found, strict=True))


ON_TWO_RANKS: dict[str, tuple[str, dict[str, Any]]] = {
    "moving averages": ("vqgan_ema", {}),
    "restart": ("vqgan_ema", {"restart": True}),
    "residuals": ("rqvae", {"restart": False}),
    "restarted residuals": ("rqvae", {"shared": False}),
    "anchors": ("cvq", {}),
    "anchors by distance": ("cvq", {"distance": "l2"}),
    "drawn anchors": ("cvq", {"anchor": "probrandom"}),
    "pooled anchors": ("cvq", {"anchor": "random"}),
    "queue": ("wvq", {"queue_size": 100}),
}
DRAWN = ("restart", "restarted residuals", "drawn anchors", "pooled anchors", "queue")


@pytest.mark.parametrize("kind", ON_TWO_RANKS)
def test_two_processes_keep_one_state(kind: str, two_ranks: Any) -> None:
    """Equal parameters and buffers; and, where nothing is drawn, those of one process that has seen both's latents."""
    one, two = two_ranks[kind]
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    quantizer = fresh(ON_TWO_RANKS[kind])
    assert not all(torch.equal(one[name], value) for name, value in quantizer.state_dict().items())
    for step in range(STEPS):
        quantizer(torch.cat([batch(step, 0), batch(step, 1)]))
    for name, value in quantizer.state_dict().items():
        if kind not in DRAWN:
            torch.testing.assert_close(one[name], value, rtol=1e-5, atol=1e-6)
    if kind == "queue":  # in the order of the ranks, and so of the batch
        assert all(torch.equal(one[name], value) for name, value in quantizer.state_dict().items())


EVERY_FORM = [
    *("vqgan_ema@released", "vqgan_ema@rotation", "simvq@rotation", "rqvae@released", "rqvae@separate"),
    *("cvq@probrandom", "cvq@random", "cvq@contrastive", "wvq@mmd", "wvq@vqgan", "wvq@var"),
    *("vqgan@rotation", "vqgan@rotation_released"),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*EVERY_FORM, "vqgan_ema", "simvq", "rqvae", "cvq", "wvq", "vqgan_lc", "movq"])
def test_every_form_passes_the_whole_suite(name: str) -> None:
    properties = check_method(name)
    assert all(p.passed for p in properties), render(properties)
    by_definition = {"cvq@contrastive": "contrastive", "wvq@mmd": "mmd"}.get(name)
    (doubled,) = (p.detail for p in properties if p.name == "loss of a doubled batch")
    assert ("by definition not" in doubled) == (by_definition is not None)
    assert cvq.CVQ.losses_of_batch_size == ()
