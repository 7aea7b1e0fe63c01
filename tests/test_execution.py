"""How a training is carried out changes its time and memory, and of its numbers the rounding alone."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import pytest
import torch
from helpers.training import recipe, same
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

from vqbench.backbone import BackboneConfig, Decoder, Encoder
from vqbench.data.dataset import Images
from vqbench.data.stream import TrainingStream
from vqbench.methods import dcr
from vqbench.metrics.perceptual import Perceptual
from vqbench.recipe import Execution, Recipe, compiled_by_default, load_recipe
from vqbench.registry import METHODS
from vqbench.tokenizer import build_tokenizer
from vqbench.training import codewatch, fit
from vqbench.training.codewatch import CodeWatch
from vqbench.training.losses import adaptive_weight
from vqbench.training.parts import Parts, in_bfloat16
from vqbench.training.ranks import agree_on
from vqbench.training.steps import reconstruction_terms
from vqbench.training.tokenizer_training import TokenizerTraining


class Noise(Images):
    """Twenty images, from which crops of 32 px are taken."""

    def __init__(self) -> None:
        self.pixels = np.random.default_rng(0).integers(0, 256, (20, 36, 36, 3), dtype=np.uint8)
        self.ids = [str(i) for i in range(20)]

    def load(self, i: int) -> Any:
        return self.pixels[i]


GAN = {"gan": "hinge", "discriminator_layers": 1, "discriminator_channels": 8, "gradient_clip": 1.0}
WHOLE = Execution()
METHODS_OF_OURS = ["vqgan", "fsq", "sqvae", "vaevq", "movq"]


@pytest.fixture(scope="module")
def perceptual() -> Perceptual:
    """LPIPS on a squeezenet of random weights."""
    import torchvision

    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = torchvision.models.squeezenet1_1(weights=None).state_dict()
        weights = {k.removeprefix("features."): v for k, v in state.items() if k.startswith("features.")}
        return Perceptual("squeeze", weights)


def configuration(method: str, r: Recipe) -> dict[str, Any]:
    return dict(METHODS.get(method).matched(r.codebook_size, r.codebook_dim))


def trained(
    r: Recipe, folder: Path, method: str, execution: Execution = WHOLE, network: Any = None
) -> fit.TrainingOutcome:
    stream = TrainingStream(Noise(), r.resolution, 5, r.random_crop, r.flip)
    tokenizer = build_tokenizer(method, configuration(method, r), r, 0)
    return fit.train(
        tokenizer, stream, r, seed=0, folder=folder / str(execution), perceptual=network, execution=execution
    )


def furthest(a: torch.nn.Module, b: torch.nn.Module) -> float:
    """The largest difference of two modules' values, as a part of the largest value of the same tensor."""
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return max(float((x - y).abs().max() / y.abs().max().clamp(min=1e-3)) for x, y in pairs)


class Gradients:
    """Of each optimiser step: what is clipped before it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[list[torch.Tensor]] = []
        clip = torch.nn.utils.clip_grad_norm_

        def note(parameters: Any, most: float) -> torch.Tensor:
            listed = list(parameters)
            self.steps.append([p.grad.clone() for p in listed if p.grad is not None])
            return clip(listed, most)

        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", note)

    def taken(self) -> list[list[torch.Tensor]]:
        found, self.steps = self.steps, []
        return found


def assert_equal_to_rounding(
    mine: list[list[torch.Tensor]], theirs: list[list[torch.Tensor]], within: float = 1e-5
) -> None:
    """Gradients, and not weights: Adam takes a full step along what is zero but for its rounding."""
    assert [len(step) for step in mine] == [len(step) for step in theirs] != []
    for a, b in zip(mine, theirs, strict=True):
        largest_of_all = max(float(x.abs().max()) for x in b)
        assert max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True)) < within * largest_of_all


@pytest.mark.parametrize("method", METHODS_OF_OURS)
def test_micro_batches_have_the_gradients_of_a_whole_batch(
    method: str, tmp_path: Path, perceptual: Perceptual, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BatchNorm, the adaptive weight, noise and a quantizer's statistics see the whole batch."""
    r, rows, decode = recipe(images=8, resolution=32, perceptual="squeeze", **GAN), [], Decoder.forward
    monkeypatch.setattr(Decoder, "forward", lambda self, x, *more: rows.append(len(x)) or decode(self, x, *more))
    gradients = Gradients(monkeypatch)
    whole = trained(r, tmp_path, method, network=perceptual)
    expected, at_once, rows[:] = gradients.taken(), max(rows), []
    parts = trained(r, tmp_path, method, Execution(micro_batch=3), perceptual)
    assert max(rows) == 3 < at_once
    assert_equal_to_rounding(gradients.taken(), expected)
    assert furthest(parts.tokenizer, whole.tokenizer) < 0.05
    assert parts.execution["micro_batch"] == 3


@pytest.mark.parametrize("method", ["vaevq", "movq"])
def test_activation_checkpointing_changes_no_bit(method: str, tmp_path: Path) -> None:
    r = recipe(images=24, dropout=0.2, mid_attention=True, resolution=32, **GAN)  # dropout is drawn again as it was
    kept, again = (trained(r, tmp_path, method, Execution(activation_checkpointing=on)) for on in (False, True))
    assert same(kept.tokenizer, again.tokenizer)
    assert again.execution["activation_checkpointing"]


def saved_bytes(network: torch.nn.Module, recomputes: bool) -> int:
    storages: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storages[id(x.untyped_storage())] = x.untyped_storage().nbytes()
        return x

    network.recomputes = recomputes  # type: ignore[assignment]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        network(torch.randn(2, 3, 32, 32))
    return sum(storages.values())


def test_activation_checkpointing_keeps_less() -> None:
    network = Encoder(BackboneConfig.of(load_recipe("tiny")))
    assert saved_bytes(network, recomputes=True) < 0.5 * saved_bytes(network, recomputes=False)


def test_deterministic_algorithms_are_asked_for_and_given_back(tmp_path: Path) -> None:
    r, inside = recipe(images=8), []

    class Looks(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            cudnn = torch.backends.cudnn
            inside.append((torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark))
            return (a - b).square().mean((1, 2, 3))

    outcomes = [trained(r, tmp_path, "vqgan", Execution(deterministic=on), Looks()) for on in (False, True)]
    assert inside == [(False, False, True), (True, True, False)]
    assert not torch.are_deterministic_algorithms_enabled()
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == (False, False)
    assert [o.execution["deterministic"] for o in outcomes] == [False, True]
    assert same(outcomes[0].tokenizer, outcomes[1].tokenizer)  # on a CPU nothing differs


def test_what_cuda_fuses_is_the_same_to_rounding() -> None:
    """Adam, also from where a CPU has come to, and averages, against those of torch."""
    r = recipe(ema_halflife_images=32, warmup_images=0, **GAN)
    plain, fused = (TokenizerTraining(build_tokenizer("sqvae", {}, r, 0), r, 0, None) for _ in range(2))
    averaged = AveragedModel(plain.tokenizer, multi_avg_fn=get_ema_multi_avg_fn(0.5 ** (r.batch_size / 32)))  # type: ignore[no-untyped-call]

    def train(training: TokenizerTraining, device: str) -> None:
        with mock.patch.object(TokenizerTraining, "device", torch.device(device)):
            optimizers = training.configure_optimizers()
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        assert {group["fused"] for group in groups} == {True if device == "cuda" else None}
        draws = torch.Generator().manual_seed(training.images_seen)
        for _ in range(4):
            for parameter in itertools.chain(*(group["params"] for group in groups)):
                parameter.grad = torch.randn(parameter.shape, generator=draws)
            for optimizer in optimizers:
                optimizer.step()
            assert training.average is not None
            training._update_average(training.average)
            training.images_seen += r.batch_size
            if training is plain:
                averaged.update_parameters(plain.tokenizer)
        training.optimizer_states = [optimizer.state_dict() for optimizer in optimizers]

    start = copy.deepcopy(plain)
    for training, device in ((plain, "cpu"), (plain, "cpu"), (fused, "cpu"), (fused, "cuda")):
        train(training, device)
    assert furthest(plain, fused) < 1e-5 < furthest(plain, start)
    assert plain.average is not None
    assert furthest(plain.average, averaged) < 1e-6 < furthest(plain.average.module, plain.tokenizer)


def networks(perceptual: Perceptual) -> dict[str, tuple[Callable[..., Any], tuple[torch.Tensor, ...]]]:
    r = recipe(resolution=32, mid_attention=True, attention_resolutions=(16,), **GAN)
    training = TokenizerTraining(build_tokenizer("vqgan", {}, r, 0), r, 0, perceptual)
    encoder, decoder = training.tokenizer.encoder, training.tokenizer.decoder
    images, latents = torch.rand(2, 3, 32, 32), torch.rand(2, r.latent_channels, 16, 16)
    assert training.discriminator is not None
    return {
        "encoder": (encoder, (images,)),
        "decoder": (decoder, (latents,)),
        "encoder in bfloat16": (functools.partial(in_bfloat16, encoder), (images,)),
        "decoder in bfloat16": (lambda x: in_bfloat16(decoder, x), (latents,)),
        "discriminator": (training.discriminator, (images,)),
        "features": (perceptual.features, (images,)),
        "distance": (perceptual.distance, (images, *perceptual.features(images.flip(0)))),
    }


def test_networks_are_compiled_in_one_piece(perceptual: Perceptual) -> None:
    for name, (network, inputs) in networks(perceptual).items():
        torch._dynamo.reset()
        found = torch._dynamo.explain(lambda *x, network=network: network(*x))(*inputs)
        assert found.graph_break_count == 0, (name, [str(b.reason) for b in found.break_reasons])


def test_compiled_training_is_eager_training_to_rounding(
    tmp_path: Path, perceptual: Perceptual, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a method that chooses no code in training: at its start `vqgan` has all of them as near as rounding."""
    torch._dynamo.reset()
    r, gradients = recipe(images=8, resolution=32, perceptual="squeeze", **GAN), Gradients(monkeypatch)
    eager = trained(r, tmp_path, "sqvae", network=perceptual)
    expected = gradients.taken()
    monkeypatch.setattr(fit, "Parts", functools.partial(Parts, backend="aot_eager"))
    compiled = trained(r, tmp_path, "sqvae", Execution(compile=True), perceptual)
    assert (compiled.execution["compile"], eager.execution["compile"]) == (True, False)
    assert_equal_to_rounding(gradients.taken(), expected, within=1e-4)
    assert all(p.is_contiguous() for p in compiled.tokenizer.parameters())
    images = torch.rand(2, 3, 32, 32)
    assert type(compiled.tokenizer.encoder) is Encoder
    assert torch.equal(compiled.tokenizer.encode(images), compiled.tokenizer.encode(images))


def test_the_budget_decides_what_is_compiled() -> None:
    assert compiled_by_default(load_recipe("tiny")) is False
    assert compiled_by_default(load_recipe("small")) is False
    assert compiled_by_default(load_recipe("vqgan-f16-256")) == "cuda"
    on_cpu = Parts(load_recipe("vqgan-f16-256"), Execution(compile="cuda"), torch.device("cpu"))
    assert on_cpu.compiles is False


class Traffic(TorchDispatchMode):
    """Bytes that operations read and write, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [x for x in torch.utils._pytree.tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
            self.bytes += sum(x.numel() * x.element_size() for x in tensors)
        return out


def moved_and_saved(network: torch.nn.Module, run: Callable[..., Any], shape: tuple[int, ...]) -> tuple[int, int]:
    saved: dict[Any, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        saved[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
        return x

    with Traffic() as traffic, torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        run(network, torch.empty(shape, device="cuda"))
    return traffic.bytes, sum(saved.values())


@pytest.mark.parametrize("part", [Encoder, Decoder])
def test_bfloat16_throughout_moves_and_keeps_little_more_than_half(part: type[torch.nn.Module]) -> None:
    """On a card that is not there: what each further image of the paper's backbone moves and keeps."""
    config = BackboneConfig.of(load_recipe("vqgan-f16-256"))
    shape = (3, 256, 256) if part is Encoder else (256, 16, 16)
    with FakeTensorMode():
        with torch.device("cuda"):
            network = part(config)
        per_image = {}
        for name, run in (("float32", lambda n, x: n(x)), ("bfloat16", in_bfloat16)):
            one, two = (moved_and_saved(network, run, (images, *shape)) for images in (1, 2))
            per_image[name] = [b - a for a, b in zip(one, two, strict=True)]
    for cast, plain in zip(per_image["bfloat16"], per_image["float32"], strict=True):
        assert 0 < cast < 0.6 * plain, per_image


def test_in_bfloat16_both_ends_weights_and_gradients_are_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    forward = torch.nn.GroupNorm.forward

    def look(self: torch.nn.GroupNorm, x: torch.Tensor) -> torch.Tensor:
        out = forward(self, x)
        seen.update((x.dtype, out.dtype))
        return out

    monkeypatch.setattr(torch.nn.GroupNorm, "forward", look)
    r, gradients = recipe(images=8, resolution=32, **GAN), Gradients(monkeypatch)
    trained(r, tmp_path / "plain", "sqvae")
    plain, seen_plain = torch.cat([g.flatten() for g in gradients.taken()[0]]), set(seen)
    seen.clear()
    outcome = trained(dataclasses.replace(r, precision="bf16_true"), tmp_path, "sqvae")
    (found, *_) = gradients.taken()
    assert (seen_plain, seen) == ({torch.float32}, {torch.bfloat16})
    assert {g.dtype for g in found} == {p.dtype for p in outcome.tokenizer.parameters()} == {torch.float32}
    cosine = torch.nn.functional.cosine_similarity(plain, torch.cat([g.flatten() for g in found]), 0)
    assert 0.98 < float(cosine) < 0.999999
    assert outcome.execution["precision"] == "bf16_true"


@pytest.mark.parametrize("method", ["vqgan", "vaevq"])
def test_gradients_with_a_weighed_adversary_are_those_of_plain_autograd(method: str, perceptual: Perceptual) -> None:
    r = recipe(resolution=32, perceptual="squeeze", **GAN)
    training = TokenizerTraining(build_tokenizer(method, configuration(method, r), r, 0), r, 0, perceptual)
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    parameters = [*training.tokenizer.encoder.parameters(), *training.tokenizer.decoder.parameters()]
    torch.manual_seed(1)
    output = training.tokenizer(images)
    terms, objective = training._terms_of_images(images, output)
    found = torch.autograd.grad(torch.stack(objective).sum(), parameters)
    torch.manual_seed(1)
    output = training.tokenizer(images)
    plain = reconstruction_terms(training.reconstruction_loss, images, output)
    adversarial = training._generator_loss(output.images)
    reconstruction = torch.stack(list(plain.values())).sum()
    weight = r.gan_weight * adaptive_weight(reconstruction, adversarial, training.tokenizer.decoder.last.weight)
    expected = torch.autograd.grad(reconstruction + weight * adversarial, parameters)
    assert terms["gan"].item() == pytest.approx((weight * adversarial).item(), rel=1e-6)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("method", "paths"), [("vqgan", 1), ("vaevq", 2)])
def test_lpips_sees_a_target_once_and_goes_backwards_once(
    method: str, paths: int, tmp_path: Path, perceptual: Perceptual
) -> None:
    passes: Counter[str] = Counter()
    network = perceptual.net.net
    hooks = [
        network.register_forward_hook(lambda *_: passes.update(["forward"])),  # type: ignore[operator, union-attr]
        network.register_full_backward_hook(lambda *_: passes.update(["backward"])),  # type: ignore[operator, union-attr]
    ]
    trained(recipe(images=8, resolution=32, perceptual="squeeze", **GAN), tmp_path, method, network=perceptual)
    for hook in hooks:
        hook.remove()
    assert passes == {"forward": 1 + paths, "backward": paths}


def test_what_is_found_on_the_host_is_what_autograd_finds() -> None:
    torch.manual_seed(0)
    own, target = (x.t() @ x for x in torch.randn(2, 20, 6, dtype=torch.float64))
    own.requires_grad_()
    target.requires_grad_()
    for function, matrices in ((dcr._trace_of_roots, (own, target)), (dcr._sum_of_roots, (own,))):
        value, moved = function(*matrices), dcr.OnHost.apply(function, *matrices)
        assert torch.equal(value, moved)
        both = (torch.autograd.grad(3 * found, matrices) for found in (value, moved))
        assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(*both, strict=True))


class Waits(TorchDispatchMode):
    """Notes where a CUDA device would be waited for in each step: reads of a value, and shapes that values decide."""

    ASKED: ClassVar[dict[str, int]] = {
        "_local_scalar_dense": 1, "bincount": 2, "nonzero": 1, "is_nonzero": 1, "_unique2": 1, "masked_select": 1,
        "_linalg_eigh": 1, "linalg_eigh": 1, "equal": 1,
    }  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def note(self, what: str, count: int = 1) -> None:
        root = str(Path(__file__).parent.parent)
        ours = [f for f in traceback.extract_stack() if f.filename.startswith(root) and __file__ != f.filename]
        frames = [
            f for f in traceback.extract_stack() if "torch/optim/" in f.filename and "swa_utils" not in f.filename
        ]
        if frames or not ours:  # a fused optimiser keeps its steps on the device
            return
        if what != "host" and any(f.name == "_on_host" for f in ours):  # it is there, and was noted once
            return
        self.found[f"{what} {Path(ours[-1].filename).name}:{ours[-1].lineno}"] += count

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        by_mask = name in ("index", "index_put_", "_index_put_impl_") and any(
            getattr(x, "dtype", None) == torch.bool for x in args[1] if x is not None
        )
        if name in self.ASKED or by_mask:
            self.note(name, self.ASKED.get(name, 1))
        return func(*args, **(kwargs or {}))


def read_on_the_host() -> bool:
    """Whether what is read is a window's, or a block that has had a step's time to arrive."""
    return any(frame.name in ("window", "values") for frame in traceback.extract_stack())


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Waits]:
    """With what dispatches nothing on a CPU: `cpu`, `tolist`, `_on_host`. What came with `cpu` is read for nothing."""
    noted, brought = Waits(), set()
    to_host, read, on_host = torch.Tensor.cpu, torch.Tensor.tolist, dcr._on_host

    def cpu(self: torch.Tensor) -> torch.Tensor:
        if not read_on_the_host():
            noted.note("host")
        moved = to_host(self)
        brought.add(moved.untyped_storage().data_ptr())
        return moved

    def tolist(self: torch.Tensor) -> Any:
        if not read_on_the_host() and self.untyped_storage().data_ptr() not in brought:
            noted.note("host")
        return read(self)

    def once(*args: Any) -> Any:
        noted.note("host")
        return on_host(*args)

    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    monkeypatch.setattr(torch.Tensor, "tolist", tolist)
    monkeypatch.setattr(dcr, "_on_host", once)
    with noted:
        yield noted


@pytest.mark.parametrize(
    "method", [*(pytest.param(m, marks=pytest.mark.slow) for m in ("vqgan", "fsq")), "sqvae", "vaevq", "movq"]
)
def test_a_step_waits_for_the_device_once_at_most(
    method: str, waits: Waits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """256 tokens an image and 32 images, as at 256 px: the window of codes moves every second step."""
    steps = 24
    r = recipe(
        resolution=32, channel_multipliers=(1, 2), batch_size=32, images=32 * steps, log_images=32 * steps,
        checkpoint_images=32 * steps, ema_halflife_images=1000, **GAN,
    )  # fmt: skip
    ends: list[Counter[str]] = []

    def report(seen: int, rate: float) -> None:
        ends.append(Counter(waits.found))

    monkeypatch.setattr(codewatch.CodeWatch, "reads_later", True)  # as on CUDA
    stream = TrainingStream(Noise(), r.resolution, 5, r.random_crop, r.flip)
    tokenizer = build_tokenizer(method, configuration(method, r), r, 0)
    fit.train(tokenizer, stream, r, seed=0, folder=tmp_path, report=report)
    steady = ends[-2] - ends[3]  # neither the first ones nor the last, which is logged
    counted = len(ends) - 5
    assert sum(steady.values()) <= counted, "\n".join(f"{n / counted:.2f} a step: {w}" for w, n in steady.items())


def test_a_window_that_is_read_later_is_the_same_window() -> None:
    at_once, later = CodeWatch(50, 1), CodeWatch(50, 1)
    later.reads_later = True
    moved: list[list[int]] = [[], []]
    for step in range(30):
        indices = torch.randint(0, 50, (4, 32, 32), generator=torch.Generator().manual_seed(step))
        for watch, steps in ((at_once, moved[0]), (later, moved[1])):
            if watch.update(indices, step + 1, beside={"step": torch.tensor(float(step))}):
                steps.append(step)
                assert watch.beside == {"step": moved[0][len(steps) - 1]}
        if step == 14:  # a window is due: what is resumed knows of it
            state = later.state()
            later = CodeWatch(50, 1)
            later.reads_later = True
            later.restore(state)
    assert moved[1] == [step + 1 for step in moved[0] if step + 1 < 30]
    later.settle()
    assert torch.equal(at_once.blocks, later.blocks)
    assert torch.equal(at_once.last_used, later.last_used)


def test_on_one_device_there_is_nobody_to_agree_with() -> None:
    buffer = torch.tensor([1.0, 2.0])
    agree_on([buffer])
    assert buffer.tolist() == [1.0, 2.0]
