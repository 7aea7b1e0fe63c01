"""Every interval against simulated truth, every formula against one that is written out another way."""

import math
import subprocess
import sys
import warnings
from collections import Counter
from itertools import pairwise, permutations

import numpy as np
import pytest
from scipy import integrate, stats

from vqbench.metrics import frechet
from vqbench.metrics.codes import code_scores
from vqbench.metrics.definitions import metric
from vqbench.metrics.frechet import frechet_distance, kernel_distance
from vqbench.metrics.kinds import CodeFacts
from vqbench.reports import code_statistics, feature_statistics, statistics
from vqbench.reports.code_statistics import resample_codes
from vqbench.reports.feature_statistics import FRECHET_REPLICATES, resample_frechet, resample_kernel
from vqbench.reports.power import power_of_seeds, seeds_needed
from vqbench.reports.statistics import Difference, holm, paired_images, paired_resamples, paired_seeds

EXPERIMENTS = 500  # a true coverage of 0.95 comes out within 0.92 and 0.98 in 99.8 % of such runs


def paired_frechet(reference, base, other, distances=(None, None), replicates=FRECHET_REPLICATES):
    """As a report sets two cells of one seed against each other."""
    pair = zip((base, other), distances, strict=True)
    return paired_resamples(*(resample_frechet(reference, x, d, replicates) for x, d in pair))


def paired_kernel(reference, base, other, distances=(None, None)):
    return paired_resamples(*(resample_kernel(reference, x, d) for x, d in zip((base, other), distances, strict=True)))


def paired_codes(base, other, codebook_sizes, score):
    both = zip((base, other), codebook_sizes, strict=True)
    return paired_resamples(*(resample_codes(codes, size, score) for codes, size in both))


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def simulate(rng, seeds, images, seed_sd, image_sd, residual_sd, skewed=False):
    """base and other (S, N) whose difference has mean 0 over all seeds and images, or over images where S = 1."""
    effect = rng.exponential(size=images) - 1 if skewed else rng.normal(size=images)
    seed = seed_sd * rng.normal(size=(seeds, 1)) * (seeds > 1)
    base = 25 + 4 * rng.normal(size=images) + rng.normal(size=(seeds, 1))
    return base, base + seed + image_sd * effect + residual_sd * rng.normal(size=(seeds, images))


SETTINGS = [  # seeds, images, sd of the seed, image and residual effects, highest coverage
    pytest.param(1, 50, 0, 1, 1, 0.98, id="images only"),
    pytest.param(1, 200, 0, 1, 0.1, 0.98, id="images only, 200"),
    pytest.param(2, 50, 1, 1, 1, 0.98, id="2 seeds, seeds dominate"),
    pytest.param(3, 50, 1, 1, 1, 0.98, id="3 seeds, seeds dominate"),
    pytest.param(5, 200, 1, 1, 1, 0.98, id="5 seeds, seeds dominate"),
    pytest.param(2, 200, 0, 1, 0.1, 0.98, id="2 seeds, images dominate"),
    pytest.param(3, 50, 0, 1, 0.3, 0.98, id="3 seeds, images dominate"),
    pytest.param(5, 50, 0.02, 1, 0.3, 0.98, id="5 seeds, images dominate"),
    pytest.param(3, 50, 0.1, 1, 1, 0.98, id="3 seeds, mixed"),
    pytest.param(5, 200, 0.1, 1, 1, 0.98, id="5 seeds, mixed"),
    pytest.param(3, 50, 0, 0.1, 1, 0.98, id="3 seeds, residual dominates"),
    pytest.param(5, 50, 0, 0.0, 1, 0.98, id="5 seeds, residual alone"),
    pytest.param(2, 50, 0.1, 1, 1, 1.0, id="2 seeds, mixed: conservative"),  # Behrens-Fisher's known worst case, 0.99
]


@pytest.mark.parametrize(("seeds", "images", "seed_sd", "image_sd", "residual_sd", "highest"), SETTINGS)
def test_intervals_over_seeds_and_images_cover(seeds, images, seed_sd, image_sd, residual_sd, highest):
    rng = np.random.default_rng(7)
    found = [
        paired_images(*simulate(rng, seeds, images, seed_sd, image_sd, residual_sd, skewed=bool(images == 200)))
        for _ in range(EXPERIMENTS)
    ]
    coverage = np.mean([d.low <= 0 <= d.high for d in found])
    assert 0.92 <= coverage <= highest
    false_positives = np.mean([d.p < 0.05 for d in found])
    assert false_positives == pytest.approx(1 - coverage, abs=1e-12)


def test_p_is_uniform_under_no_difference_and_small_under_one():
    rng = np.random.default_rng(3)
    pairs = [simulate(rng, 4, 50, 1, 0.3, 1) for _ in range(EXPERIMENTS)]
    assert stats.kstest([paired_images(*pair).p for pair in pairs], "uniform").pvalue > 0.01
    assert np.mean([paired_images(base, other + 4).p < 0.05 for base, other in pairs]) > 0.95


def test_one_seed_is_students_paired_t_over_images():
    base, other = simulate(np.random.default_rng(0), 1, 60, 0, 1, 1)
    base = np.broadcast_to(base, other.shape)
    expected = stats.ttest_rel(other[0], base[0])
    d = paired_images(base, other)
    assert (d.seeds, d.images, d.over) == (1, 60, "images")
    assert d.p == pytest.approx(expected.pvalue)
    assert (d.low, d.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_without_image_effects_it_is_students_t_over_seeds():
    rng = np.random.default_rng(1)
    base, seed = rng.normal(size=(4, 100)), rng.normal(size=(4, 1))
    residual = rng.normal(size=(4, 100))
    other = base + 0.5 + seed + residual - residual.mean(axis=0)  # column means of the difference are all alike
    d, expected = paired_images(base, other), paired_seeds(base.mean(axis=1), other.mean(axis=1))
    assert (d.delta, d.low, d.high, d.p) == pytest.approx((expected.delta, expected.low, expected.high, expected.p))
    assert d.over == "seeds and images"


def test_residuals_are_counted_once():
    """S = 5, N = 50, residuals alone: σ²/(SN) is the variance, and t over 5 seeds the fair interval."""
    rng = np.random.default_rng(2)
    widths = [
        np.diff([(d := paired_images(np.zeros((5, 50)), rng.normal(size=(5, 50)))).low, d.high])[0] for _ in range(300)
    ]
    fair = 2 * stats.t.ppf(0.975, 4) * math.sqrt(1 / 250) * 0.94  # 0.94: mean of a sd with 4 degrees of freedom
    assert np.mean(widths) == pytest.approx(fair, rel=0.12)


PARTS = [
    ((0.2, 1), (1.0, 49)),
    ((0.5, 49), (0.7, 1)),
    ((1.0, 2), (1.0, 199)),
    ((1.0, 1), (1.0, 9999)),
    ((1e-3, 9), (1, 4)),
]


@pytest.mark.parametrize(("small", "large"), PARTS)
@pytest.mark.parametrize("x", [0.01, 0.5, 2.9, 3.1, 40.0, 300.0])
def test_the_sum_of_two_ts_against_adaptive_quadrature(small, large, x):
    (a, df), (b, big_df) = small, large

    def integrand(u):  # over the other of the two
        return stats.t.sf((x - b * u) / a, df) * stats.t.pdf(u, big_df)

    step = [x / b + k * a / b for k in (-500, -50, -5, 0, 5, 50, 500)]
    edges = sorted([-np.inf, -100, -5, 0, 5, 100, *step, np.inf])
    expected = 2 * sum(integrate.quad(integrand, *piece, limit=500)[0] for piece in pairwise(edges))
    assert statistics._two_sided_tail(small, large)(x) == pytest.approx(expected, rel=1e-6, abs=1e-7)


def bootstrap(d, rng, resamples=1000):
    """Percentile interval of the mean of d (S, N) by resampling seeds, then images: the hierarchical bootstrap."""
    seeds, images = (rng.multinomial(n, np.full(n, 1 / n), resamples) / n for n in d.shape)
    return np.quantile(((seeds @ d) * images).sum(axis=1), [0.025, 0.975])


def test_the_hierarchical_bootstrap_agrees_where_it_holds():
    """30 seeds: the same interval to a tenth of its width. 3 seeds: the bootstrap's leaves out the truth too often."""
    rng = np.random.default_rng(8)
    for _ in range(5):
        pair = simulate(rng, 30, 100, 0.3, 1, 1)
        d = paired_images(*pair)
        assert bootstrap(pair[1] - pair[0], rng, 4000) == pytest.approx((d.low, d.high), abs=0.1 * (d.high - d.low))
    covered = [low <= 0 <= high for low, high in (bootstrap(few_seeds(rng), rng, 400) for _ in range(EXPERIMENTS))]
    assert 0.7 < np.mean(covered) < 0.85


def few_seeds(rng):
    base, other = simulate(rng, 3, 50, 1, 1, 1)
    return other - base


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_constant_differences(seeds):
    values = np.random.default_rng(0).normal(size=(seeds, 30))
    over = "seeds and images" if seeds > 1 else "images"
    assert paired_images(values, values) == Difference(0.0, 0.0, 0.0, 1.0, seeds, 30, over)
    d = paired_images(np.zeros((seeds, 30)), np.full((seeds, 30), 0.5))
    assert (d.delta, d.low, d.high, d.p) == (0.5, 0.5, 0.5, statistics.SMALLEST_P)
    assert paired_images(values, values + 0.1).p <= 1e-9  # rounding makes these differ by 1e-17


def test_swapping_the_two_turns_the_sign_only():
    base, other = simulate(np.random.default_rng(5), 3, 40, 1, 1, 1)
    base = np.broadcast_to(base, other.shape)
    d, swapped = paired_images(base, other), paired_images(other, base)
    assert (swapped.delta, swapped.low, swapped.high, swapped.p) == pytest.approx((-d.delta, -d.high, -d.low, d.p))


def test_many_seeds_and_images():
    values = np.random.default_rng(0).normal(size=(2, 10, 10_000))
    assert paired_images(*values).images == 10_000


def test_scores_of_seeds_against_the_textbook():
    base, other = np.array([12.1, 11.8, 12.6, 12.0]), np.array([11.2, 11.5, 11.4, 11.6])
    d = paired_seeds(base, other)
    differences = [-0.9, -0.3, -1.2, -0.4]
    mean = sum(differences) / 4
    t_975 = 3.1824463053  # of 3 degrees of freedom, from a table
    error = math.sqrt(sum((x - mean) ** 2 for x in differences) / 3) / math.sqrt(4)
    assert d.delta == pytest.approx(mean)
    assert (d.low, d.high) == pytest.approx((mean - t_975 * error, mean + t_975 * error))
    t = mean / error  # the t distribution with 3 degrees of freedom in closed form
    tail = 0.5 - (math.atan(abs(t) / math.sqrt(3)) + abs(t) * math.sqrt(3) / (3 + t * t)) / math.pi
    assert d.p == pytest.approx(2 * tail)
    assert d.p == pytest.approx(stats.ttest_rel(other, base).pvalue)
    assert (d.seeds, d.images, d.over) == (4, None, "seeds")


def test_scores_of_one_seed_or_without_spread():
    assert paired_seeds([3.0], [2.5]) == Difference(-0.5, None, None, None, 1, None, "")
    assert paired_seeds([3.0, 4.0], [3.0, 4.0]) == Difference(0.0, 0.0, 0.0, 1.0, 2, None, "seeds")
    assert paired_seeds([3.0, 4.0], [4.0, 5.0]) == Difference(1.0, None, None, None, 2, None, "")


def features(rng, images, d=4):
    """Images and two noisy copies of them, the second a little worse."""
    scale = np.linspace(1, 0.2, d)
    x = np.maximum(rng.normal(size=(images, d)), -0.5) * scale
    return x, 0.8 * x + 0.2 * scale * rng.normal(size=x.shape), 0.7 * x + 0.3 * scale * rng.normal(size=x.shape)


def test_reweighted_frechet_distance_is_that_of_the_repeated_rows():
    rng = np.random.default_rng(0)
    for images, d in ((40, 4), (12, 30)):
        x, y, _ = features(rng, images, d)
        weights = rng.multinomial(images, np.full(images, 1 / images))
        drawn = np.flatnonzero(weights)
        x_drawn, y_drawn = x[drawn] + 3, y[drawn] + 3
        got = feature_statistics._weighted_frechet(
            x_drawn @ x_drawn.T, y_drawn @ y_drawn.T, x_drawn @ y_drawn.T, weights[drawn].astype(float)
        )
        assert got == pytest.approx(frechet_distance(np.repeat(x, weights, 0), np.repeat(y, weights, 0)), rel=1e-6)


def test_frechet_interval_has_the_width_of_independent_sets():
    rng = np.random.default_rng(1)
    draws = [features(rng, 200) for _ in range(200)]
    truth = np.std([frechet_distance(x, b) - frechet_distance(x, a) for x, a, b in draws])
    found = [paired_frechet(*sets, replicates=60) for sets in draws[:8]]
    widths = [(d.high - d.low) / (2 * 1.959964) for d in found]
    assert np.mean(widths) == pytest.approx(truth, rel=0.25)
    x, a, b = draws[0]
    assert found[0].delta == frechet_distance(x, b) - frechet_distance(x, a)
    assert (found[0].seeds, found[0].images, found[0].over) == (1, 200, "images")


def test_frechet_intervals_of_many_images_come_from_fewer():
    """m of n: with 500 of 4000 images resampled, the width is still that of 4000."""
    rng = np.random.default_rng(2)
    draws = [features(rng, 4000) for _ in range(80)]
    truth = np.std([frechet_distance(x, b) - frechet_distance(x, a) for x, a, b in draws])
    found = [paired_frechet(*sets, distances=(1.0, 1.25), replicates=20) for sets in draws[:2]]
    assert np.mean([d.high - d.low for d in found]) / (2 * 1.959964) == pytest.approx(truth, rel=0.35)
    assert {d.delta for d in found} == {0.25}
    assert found[0] == paired_frechet(*draws[0], distances=(1.0, 1.25), replicates=20)  # same draws each time


_MIX, _SHIFT, _STRETCH = (np.random.default_rng(k).normal(size=s) for k, s in ((5, (8, 64)), (6, 64), (8, 64)))


def rectified(rng, images, strength=(1.0, 1.6)):
    """Features as a network makes them, none below 0, from 8 causes in 64 dimensions; and of two reconstructions."""
    causes = rng.normal(size=(images, 8)) @ _MIX / math.sqrt(8)

    def noisy(s):
        values = 0.35 * causes * (1 - 0.1 * s) + s * (0.05 * _SHIFT + 0.1 * _STRETCH * causes)
        return np.maximum(0.4 + values + 0.15 * rng.normal(size=causes.shape), 0)

    return noisy(0.0), noisy(strength[0]), noisy(strength[1])


@pytest.mark.parametrize("strength", [(1.0, 1.6), (1.0, 1.0)])
def test_kernel_intervals_cover(strength):
    rng = np.random.default_rng(0)
    found = [paired_kernel(*rectified(rng, 60, strength)) for _ in range(EXPERIMENTS)]
    centre = np.mean([d.delta for d in found])
    assert 0.92 <= np.mean([d.low <= centre <= d.high for d in found]) <= 0.98
    assert (found[0].seeds, found[0].images, found[0].over) == (1, 60, "images")


def test_kernel_intervals_know_of_random_subsets(monkeypatch):
    monkeypatch.setattr(frechet, "KID_SUBSET_SIZE", 40)
    monkeypatch.setattr(frechet, "KID_SUBSETS", 5)
    rng = np.random.default_rng(0)
    found = [paired_kernel(*rectified(rng, 200)) for _ in range(150)]
    truth = np.std([d.delta for d in found])
    assert np.mean([d.high - d.low for d in found]) / (2 * 1.959964) == pytest.approx(truth, rel=0.2)
    plain = [paired_kernel(*rectified(rng, 40)) for _ in range(150)]  # without the subsets' share it is too short
    assert np.std([d.delta for d in plain]) * math.sqrt(40 / 200) < 0.85 * truth


def test_kernel_jackknife_against_the_metric_with_each_image_left_out():
    x, a, b = rectified(np.random.default_rng(3), 12)
    without = [np.delete(np.arange(12), i) for i in range(12)]
    deltas = [kernel_distance(x[i], b[i]) - kernel_distance(x[i], a[i]) for i in without]
    d = paired_kernel(x, a, b)
    assert d.delta == pytest.approx(kernel_distance(x, b) - kernel_distance(x, a))
    deviation = math.sqrt(11 / 12 * sum((v - np.mean(deltas)) ** 2 for v in deltas))
    assert (d.high - d.low) / 2 == pytest.approx(1.959964 * deviation)
    assert paired_kernel(x, a, a) == Difference(0.0, 0.0, 0.0, 1.0, 1, 12, "images")
    assert paired_kernel(x, a, b, distances=(1.0, 1.5)).delta == 0.5


def test_frechet_of_equal_sets():
    x, y, _ = features(np.random.default_rng(0), 20)
    assert paired_frechet(x, y, y) == Difference(0.0, 0.0, 0.0, 1.0, 1, 20, "images")


def test_no_p_is_zero():
    sets = features(np.random.default_rng(0), 20)
    assert paired_frechet(*sets, distances=(0.0, 1e6)).p == statistics.SMALLEST_P


def draw_codes(rng, images, K=256, T=16, flat=0.3):
    """Two tokenizers' codes (N, T) of the same images: clustered within an image, merged by the second."""
    p = np.random.default_rng(99).dirichlet(np.full(K, flat))
    first = rng.choice(K, size=(images, 1), p=p)
    base = np.where(rng.random((images, T)) < 0.3, first, rng.choice(K, size=(images, T), p=p))
    return base, np.where(rng.random((images, T)) < 0.5, base, base // 2)


def of_metrics(codes, K, score):
    grid = codes if codes.ndim == 3 else codes[:, :, None]
    histogram = np.stack([np.bincount(grid[:, :, g].ravel(), minlength=K) for g in range(grid.shape[2])])
    return code_scores([metric(score)], histogram, CodeFacts(1.0, len(codes), 1))[score]


def excess(grid):
    """Of one codebook (N, T): codes of one image, less the new codes of N more images, as Efron and Thisted."""
    of = Counter(Counter(code for image in grid.tolist() for code in set(image)).values())
    return of[1] - sum((-1) ** (r + 1) * stats.binom.sf(r - 1, 9, 0.5) * of[r] for r in range(1, 10)), of[1]


@pytest.mark.parametrize("score", ["usage", "perplexity", "dead_codes"])
def test_codes_against_the_metrics_with_each_image_left_out(score, monkeypatch):
    monkeypatch.setattr(code_statistics, "_CODES_AT_ONCE", 40)  # several blocks, the last one shorter
    rng = np.random.default_rng(0)
    base, other = rng.integers(0, 50, (23, 6, 2)), rng.geometric(0.08, (23, 9)) % 128
    d = paired_codes(base, other, (64, 128), score)
    assert d.delta == pytest.approx(of_metrics(other, 128, score) - of_metrics(base, 64, score))
    seen = []

    def parts(grid, K):
        """Of the count of used codes, or of perplexity."""
        of = score if score == "perplexity" else "dead_codes"
        without = np.array([of_metrics(np.delete(grid, i, axis=0), K, of) for i in range(23)])
        left = (without - without.mean()) * math.sqrt(22 / 23)
        surplus, of_one = excess(grid)
        if score != "perplexity" and of_one >= 10:
            seen.append(1 - surplus / np.square(left).sum())
            left *= math.sqrt(min(max(seen[-1], 0.5), 1.0))
        return left / K if score == "usage" else left

    of_base = (parts(base[:, :, 0], 64) + parts(base[:, :, 1], 64)) / 2
    deviation = math.sqrt(np.square(parts(other, 128) - of_base).sum())
    assert score == "perplexity" or any(0.5 < each < 0.9 for each in seen)
    assert (d.high - d.low) / 2 == pytest.approx(1.959964 * deviation)
    assert d.p == pytest.approx(max(math.erfc(abs(d.delta) / deviation / math.sqrt(2)), 1e-12))
    assert (d.seeds, d.images, d.over) == (1, 23, "images")


def draw_company(rng, images):
    """Two hundred codes in a few images each, and ten rare kinds of image that bring twelve codes of their own."""
    base, other = (rng.integers(0, 200, (images, 14)) for _ in range(2))
    base, other = (np.where(rng.random(codes.shape) < 400 / codes.size, codes, 200) for codes in (base, other))
    for codes in (base, other):
        kind = np.where(rng.random(images) < 5 / images, rng.integers(0, 10, images), -1)
        rare = (kind >= 0)[:, None] & (np.arange(14) < 12)
        codes[rare] = (201 + kind[:, None] * 12 + np.arange(14))[rare]
    return base, other


CODES_OF = {  # (base, other, codebook size)
    "clustered": lambda rng: (*draw_codes(rng, 150), 256),
    "nearly all that can be seen": lambda rng: (*draw_codes(rng, 150, K=64, T=64, flat=0.1), 64),
    "a quarter of the book": lambda rng: (*draw_codes(rng, 150, K=1024, T=64, flat=0.1), 1024),
    "new ones in most images": lambda rng: (*draw_codes(rng, 150, K=1024), 1024),
    "rare codes in company": lambda rng: (*draw_company(rng, 150), 321),
}


@pytest.mark.parametrize("score", ["usage", "dead_codes", "perplexity"])
@pytest.mark.parametrize("codes", CODES_OF)
def test_coverage_of_code_intervals(score, codes):
    """The difference of two tokenizers over independent sets of images, around its own mean."""
    rng, found = np.random.default_rng(4), []
    for _ in range(EXPERIMENTS):
        base, other, K = CODES_OF[codes](rng)
        found.append(paired_codes(base, other, (K, K), score))
    truth, centre = np.std([d.delta for d in found]), np.mean([d.delta for d in found])
    found = [d for d in found if d.low is not None]
    assert len(found) > 0.98 * EXPERIMENTS
    assert 0.95 * truth < np.mean([d.high - d.low for d in found]) / (2 * 1.959964) < 1.3 * truth
    coverage = np.mean([d.low <= centre <= d.high for d in found])
    print(f"{score}, {codes}: {coverage:.3f}")
    assert 0.92 <= coverage <= 0.98


def test_a_codebook_that_lacks_one_code_is_no_certainty():
    """All others are in many images, so that no image that is left out takes one with it."""
    all_of_it = np.tile(np.arange(256), (100, 1))
    d = paired_codes(np.minimum(all_of_it, 254), all_of_it, (256, 256), "usage")
    assert d.delta == pytest.approx(1 / 256)
    assert (d.low, d.high, d.p, d.over) == (None, None, None, "")


def test_codes_of_one_tokenizer_and_of_many_images():
    base, other = draw_codes(np.random.default_rng(0), 584, K=512, T=64)
    assert paired_codes(base, base, (512, 512), "usage") == Difference(0.0, 0.0, 0.0, 1.0, 1, 584, "images")
    assert paired_codes(base, other, (512, 512), "perplexity").p < 0.05


def test_holm_by_hand_and_by_closed_testing():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.04, None, 0.03]) == [pytest.approx(0.06), None, pytest.approx(0.06)]
    assert holm([None]) == [None]
    assert holm([]) == []
    rng = np.random.default_rng(0)
    for p in rng.random((20, 4)) ** 2:
        # Closed testing: the largest Bonferroni p of all the sets of hypotheses that one belongs to.
        sets = [[i for i in range(4) if mask >> i & 1] for mask in range(1, 16)]
        closed = [max(min(1, len(s) * min(p[s])) for s in sets if i in s) for i in range(4)]
        for order in permutations(range(4)):
            assert holm([p[i] for i in order]) == pytest.approx([closed[i] for i in order])


def test_holm_keeps_the_family_wise_error_rate():
    rng = np.random.default_rng(6)
    families = [[paired_seeds(*rng.normal(size=(2, 4))).p for _ in range(6)] for _ in range(200)]
    assert np.mean([min(holm(family)) < 0.05 for family in families]) < 0.09
    assert np.mean([min(family) < 0.05 for family in families]) > 0.15


def test_holm_counts_a_family_of_which_not_all_is_tested():
    assert holm([0.01, 0.04], family=10) == pytest.approx(holm([0.01, 0.04, *[1.0] * 8])[:2])


def test_power_is_that_of_the_noncentral_t():
    for effect, seeds in ((0.5, 2), (1.0, 5), (2.0, 30), (0.0, 4)):
        expected = stats.nct.sf(stats.t.ppf(0.975, seeds - 1), seeds - 1, effect * math.sqrt(seeds))
        assert power_of_seeds(2 * effect, 2.0, seeds) == pytest.approx(expected, rel=1e-6)
        strict = stats.nct.sf(stats.t.ppf(1 - 0.0005, seeds - 1), seeds - 1, effect * math.sqrt(seeds))
        assert power_of_seeds(2 * effect, 2.0, seeds, level=0.001) == pytest.approx(strict, rel=1e-6)


@pytest.mark.parametrize(
    ("delta", "image_sd", "level"), [(1.2, 0.0, 0.05), (2.0, 0.0, 0.05), (1.2, 2.0, 0.05), (2.0, 1.0, 0.003)]
)
def test_the_seeds_that_are_asked_for_give_the_power_that_is_promised(delta, image_sd, level):
    """Differences N(delta, 1) of a seed: with the seeds needed, 4 of 5 simulated experiments are separated."""
    images, rng = 40, np.random.default_rng(2)
    drawn = np.array([-1.0, 0.0, 1.0])  # of sd 1
    needed = int(seeds_needed(delta + drawn, image_sd / math.sqrt(images), level))
    found = []
    for _ in range(EXPERIMENTS):
        d = delta + rng.normal(size=(needed, 1)) + image_sd * rng.normal(size=images)
        found.append(paired_images(np.zeros_like(d), d).p if image_sd else paired_seeds(d[:, 0] * 0, d[:, 0]).p)
    assert np.mean(np.array(found) < level) > 0.76
    assert power_of_seeds(delta, 1.0, needed - 1, image_sd / math.sqrt(images), level) < 0.8


def test_seeds_that_will_not_do():
    assert seeds_needed([0.01, -1.0, 1.0]) == math.inf
    assert seeds_needed([1.0, 1.1, 0.9], image_error=1.0) == math.inf  # the images alone hide it
    assert seeds_needed([0.0, 0.0]) == math.inf
    assert seeds_needed([1.0, 1.0]) == 2
    with pytest.raises(ValueError, match="at least 2 seeds"):
        seeds_needed([1.0])


ZEROS = np.zeros((2, 5))
X = np.zeros((5, 3))
CODES = np.zeros((5, 4), int)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired_images(ZEROS, np.zeros((2, 4))), r"\(2, 5\) \(base\) and \(2, 4\) \(other\)"),
        (lambda: paired_images(ZEROS[0], ZEROS[0]), r"\(S, N\) values"),
        (lambda: paired_images(ZEROS[:, :1], ZEROS[:, :1]), r"2 images, \(S, N\), not of shape \(2, 1\)"),
        (lambda: paired_images(ZEROS[:0], ZEROS[:0]), "at least 1 seed"),
        (lambda: paired_images(ZEROS, ZEROS + np.nan), "10 of 10 in other"),
        (lambda: paired_seeds([1.0], [1.0, 2.0]), r"\(1,\) \(base\) and \(2,\)"),
        (lambda: paired_seeds([], []), "at least 1 seed"),
        (lambda: paired_seeds([math.inf], [1.0]), "1 of 1 in base"),
        (lambda: paired_frechet(X, X, X[:4]), r"same N ≥ 2 images"),
        (lambda: paired_frechet(X[:1], X[:1], X[:1]), r"N ≥ 2"),
        (
            lambda: paired_frechet(X, X, np.where(np.eye(5, 3) > 0, [[np.inf], [-np.inf], [0], [0], [0]], X)),
            "those of the reconstruction",
        ),
        (lambda: paired_kernel(X[:2], X[:2], X[:2]), r"N ≥ 3"),
        (lambda: paired_kernel(X, X, X, distances=(0.0, math.inf)), "a finite distance, not inf"),
        (lambda: statistics.paired_resamples(resample_kernel(X, X), resample_kernel(X[:4], X[:4])), "not of 5 and 4"),
        (lambda: paired_frechet(X, X, X, replicates=1), "at least 2 replicates"),
        (lambda: paired_frechet(X, X, X, distances=(0.0, math.nan)), "a finite distance, not nan"),
        (lambda: paired_codes(CODES, CODES[:4], (8, 8), "usage"), "same images, not of 5 and 4"),
        (lambda: paired_codes(CODES[:1], CODES[:1], (8, 8), "usage"), "N ≥ 2"),
        (lambda: paired_codes(CODES, CODES * 1.0, (8, 8), "usage"), "codes to be integers, not float64"),
        (lambda: paired_codes(CODES, CODES + 8, (9, 8), "usage"), r"codes in \[0, 8\).*from 8 to 8"),
        (lambda: paired_codes(CODES, CODES, (8, 8), "entropy"), "not 'entropy'"),
        (lambda: paired_codes(CODES, CODES, (8,), "usage"), "shorter|longer"),
        (lambda: holm([0.1, 1.5]), "not 1.5"),
        (lambda: holm([math.nan]), "not nan"),
    ],
)
def test_what_cannot_be_compared_says_so(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_neither_torch_nor_pandas_is_imported():
    code = "import sys, vqbench.reports.compare; print({'torch', 'pandas', 'scipy.stats'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
