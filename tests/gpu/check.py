"""What vqbench does on a GPU, in one command of less than ten minutes: a table, and everything as JSON.

python tests/gpu/check.py [--minutes 9 --parts steps,ladder] [--cpu --quick]

For the day on which a card is at hand, perhaps without a network and for minutes only. Everything that is carried lies
in the checkout: perceptual networks have random weights where only time is asked for, and LPIPS is compared where
squeezenet's lie beside this file (squeezenet1_1*.pth). Trainings need torch, torchvision, lightning, pydantic and
lpips; wheels that lie beside this file are imported, so what a machine with torch lacks can be brought along (3 MB):

pip download -d tests/gpu pydantic && pip download -d tests/gpu --no-deps lpips

(for another Python: --only-binary=:all: --python-version 3.12). What cannot be imported or has no time left is "not
run" with the reason; what fails is said, and the next part goes on. JSON is written after each part, into $OUT or the
working directory: gpu-check.json. With --cpu --quick it goes through all of it on a machine without a card.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import itertools
import json
import logging
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NAMES = ("vqgan", "fsq", "sqvae", "vaevq")
WAYS: list[tuple[str, str, dict[str, Any]]] = [
    *((method, precision, {}) for method in NAMES for precision in ("32", "bf16")),
    ("vqgan", "32", {"micro_batch": 16}),
    ("vqgan", "32", {"activation_checkpointing": True}),
    ("vqgan", "bf16_true", {"compile": True}),
    ("vaevq", "bf16_true", {"compile": True}),
]
"""Method, precision, and how its training is carried out (`Execution`)."""


class NotRunError(Exception):
    """A part that cannot be had here, and why."""


@dataclass
class Check:
    """What is asked for, and what was found."""

    cpu: bool
    quick: bool
    ends: float
    """time.monotonic() after which nothing new begins."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    part: str = ""

    @property
    def device(self) -> Any:
        """Where tensors live."""
        import torch

        return torch.device("cpu" if self.cpu else "cuda")

    def found(self, what: str, value: float | str, unit: str = "", **more: Any) -> None:
        """A line of the table."""
        self.rows.append({"part": self.part, "what": what, "state": "ok", "value": value, "unit": unit, **more})
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        print(f"{self.part:<11}{what:<52}{shown} {unit}", flush=True)

    def lost(self, what: str, state: str, reason: str) -> None:
        """A line that says why there is no number."""
        self.rows.append({"part": self.part, "what": what, "state": state, "reason": reason})
        print(f"{self.part:<11}{what:<52}{state}: {reason}", flush=True)

    @contextlib.contextmanager
    def guarded(self, what: str) -> Iterator[None]:
        """One failure must not lose the others."""
        try:
            if time.monotonic() > self.ends:
                raise NotRunError("no time left")
            yield
        except (NotRunError, ImportError) as error:
            ours = isinstance(error, ImportError) and (error.name or "").partition(".")[0] == "vqbench"
            self.lost(what, "failed" if ours else "not run", str(error))  # ours: a module that has moved
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            lines = str(error).strip().splitlines() or [""]
            self.lost(what, "failed", f"{type(error).__name__}: {lines[0][:300]}")
            traceback.print_exc(file=sys.stderr)
        finally:
            self.settle()

    def settle(self) -> None:
        """Give back what a failed part held."""
        import gc

        gc.collect()
        with contextlib.suppress(Exception):
            import torch

            if torch.cuda.is_available():
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()

    def seconds(self, work: Callable[[], object], repeats: int = 5) -> float:
        """Median seconds of `work` after a first time, by events of the GPU where there is one."""
        import torch

        times = []
        work()
        for _ in range(2 if self.quick else repeats):
            if self.cpu:
                started = time.perf_counter()
                work()
                times.append(time.perf_counter() - started)
            else:
                first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                first.record()
                work()
                last.record()
                torch.cuda.synchronize()
                times.append(first.elapsed_time(last) / 1000)
        return statistics.median(times)

    def recipe(self, name: str = "vqgan-f16-256", **over: Any) -> Any:
        """A recipe with its discriminator from the first step; in the quick form one of the same kind for a CPU."""
        from vqbench.recipe import load_recipe

        small = {
            "resolution": 32, "channels": 8, "channel_multipliers": [1, 2], "res_blocks": 1, "latent_channels": 16,
            "attention_resolutions": [], "codebook_size": 64, "codebook_dim": 8, "batch_size": 4,
            "perceptual": "squeeze", "discriminator_layers": 1, "discriminator_channels": 8,
        }  # fmt: skip
        values = {"gan_start_images": 0, **(small if self.quick else {}), **over}
        return load_recipe(name, values)

    @property
    def steps(self) -> int:
        """Optimiser steps of a training."""
        return 4 if self.quick else 20


def make_importable() -> None:
    """Have `import vqbench` find this checkout, installed or not (three of its rooms lie beside it), and what needs it
    the wheels that lie beside this file."""
    if wheels := sorted(HERE.glob("*.whl")):
        unpacked = tempfile.mkdtemp(prefix="vqbench-wheels-")
        for wheel in wheels:
            zipfile.ZipFile(wheel).extractall(unpacked)
        put_first(unpacked)
    with contextlib.suppress(ImportError):
        if importlib.util.find_spec("vqbench.methods") is not None:
            return
    tree = Path(tempfile.mkdtemp(prefix="vqbench-tree-"))
    shutil.copytree(ROOT / "vqbench", tree / "vqbench")
    for room in ("methods", "sweeps", "reports"):
        shutil.copytree(ROOT / room, tree / "vqbench" / room)
    for name in [name for name in sys.modules if name.partition(".")[0] == "vqbench"]:
        del sys.modules[name]
    put_first(str(tree))


def put_first(folder: str) -> None:
    """On the path of this process and of those that it starts."""
    sys.path.insert(0, folder)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))


def configuration(method: str, recipe: Any) -> dict[str, Any]:
    """The method's fields as the recipe asks for them."""
    importlib.import_module(f"vqbench.methods.{method}")  # which registers it, installed or not
    from vqbench.registry import METHODS

    config: dict[str, Any] = METHODS.get(method).matched(recipe.codebook_size, recipe.codebook_dim)
    return config


def tokenizer_of(method: str, recipe: Any) -> Any:
    """An untrained one, on the CPU."""
    from vqbench.tokenizer import build_tokenizer

    return build_tokenizer(method, configuration(method, recipe), recipe, 0)


def perceptual_of(recipe: Any) -> Any:
    """LPIPS with random weights, always the same: its time is that of any others."""
    if recipe.perceptual == "none":
        return None
    import torch
    import torchvision

    from vqbench.metrics.perceptual import Perceptual

    name = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}[recipe.perceptual]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = getattr(torchvision.models, name)().features.state_dict()
    return Perceptual(recipe.perceptual, state)


def stream_of(recipe: Any) -> Any:
    """Images of noise that need no disk."""
    import numpy as np

    from vqbench.data.dataset import Images
    from vqbench.data.stream import TrainingStream

    pixels = np.random.default_rng(0).integers(0, 256, (64, recipe.resolution, recipe.resolution, 3), np.uint8)

    class Noise(Images):
        content_key = ""
        ids = tuple(map(str, range(64)))

        def load(self, i: int) -> Any:
            return pixels[i]

        def measure(self, i: int) -> tuple[int, int]:
            return recipe.resolution, recipe.resolution

    return TrainingStream(Noise(), recipe.resolution, 0, recipe.random_crop, recipe.flip)


def trained(
    check: Check, method: str, recipe: Any, folder: Path, each: Callable[[int], None] = lambda i: None, **how: Any
) -> Any:
    """The product's own training, carried out as `how` says; the outcome, and the time after each step."""
    from vqbench.recipe import Execution
    from vqbench.training.fit import train

    marks: list[float] = []

    def report(images: int, rate: float) -> None:
        if not check.cpu:
            import torch

            torch.cuda.synchronize()
        marks.append(time.perf_counter())
        each(images)

    outcome = train(
        tokenizer_of(method, recipe), stream_of(recipe), recipe, seed=0, folder=folder,
        perceptual=perceptual_of(recipe), report=report, execution=Execution(**how),
    )  # fmt: skip
    return outcome, marks


def part_steps(check: Check) -> None:
    """Each of WAYS through the real training: does it run, how fast, how much memory."""
    for method, precision, asked in WAYS:
        how = {**asked, "micro_batch": 2} if check.quick and "micro_batch" in asked else asked
        what = ", ".join([method, precision, *(f"{option} {value}" for option, value in how.items())])
        with check.guarded(what), tempfile.TemporaryDirectory() as folder:
            if check.quick and "compile" in how:
                raise NotRunError("the quick form compiles nothing")
            images = check.steps * check.recipe().batch_size
            recipe = check.recipe(precision=precision, images=images, checkpoint_images=images)
            outcome, marks = trained(check, method, recipe, Path(folder), **how)
            gaps = [b - a for a, b in itertools.pairwise(marks[2:])]
            import torch

            if not all(bool(p.isfinite().all()) for p in outcome.tokenizer.parameters()):
                raise ValueError("weights are not finite after training")
            reserved = 0 if check.cpu else torch.cuda.max_memory_reserved()
            check.found(
                what, recipe.batch_size / statistics.median(gaps or [float("nan")]), "images/s",
                peak_bytes=outcome.peak_memory_bytes, reserved_bytes=reserved,
            )  # fmt: skip


def part_memory(check: Check) -> None:
    """What was estimated of a step's memory against what it takes."""
    import torch

    from vqbench.training.memory import card_bytes, step_cost

    importlib.import_module("lpips")  # without it a step cannot be counted, which is no failure of the count
    card = card_bytes()
    check.found("memory of the card", (card or 0) / 1e9, "GB")
    for method in NAMES:
        with check.guarded(f"{method}: estimate"), tempfile.TemporaryDirectory() as folder:
            images = 3 * check.recipe().batch_size
            recipe = check.recipe(images=images, checkpoint_images=images)
            cost = step_cost(method, configuration(method, recipe), recipe)
            check.found(f"{method}: estimate", cost.peak_bytes / 1e9, "GB", gflop=cost.adversarial_flops / 1e9)
            if not check.cpu:
                torch.cuda.reset_peak_memory_stats()
                trained(check, method, recipe, Path(folder))
                check.found(f"{method}: allocated", torch.cuda.max_memory_allocated() / 1e9, "GB")


def bare_step(check: Check, recipe: Any, how: set[str]) -> Callable[[], None]:
    """A step of vqgan with LPIPS and discriminator in plain PyTorch, `how` it is done in words."""
    import torch

    from vqbench.training.discriminator import PatchDiscriminator
    from vqbench.training.losses import ReconstructionLoss, adaptive_weight, generator_loss

    device = check.device
    tokenizer = tokenizer_of("vqgan", recipe).to(device).train()
    adversary = PatchDiscriminator(recipe.discriminator_channels, recipe.discriminator_layers).to(device)
    adversary.requires_grad_(False)
    loss = ReconstructionLoss(recipe.pixel_loss, 1.0, perceptual_of(recipe), 1.0)
    loss.to(device)
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=1e-4, fused="fused" in how or None)
    images = torch.rand(recipe.batch_size, 3, recipe.resolution, recipe.resolution, device=device) * 2 - 1
    last = tokenizer.decoder.last.weight
    if "compile" in how:
        # the last layer stays outside: a compiled whole would run all of its backward for that layer's gradient alone
        decoder = tokenizer.to(memory_format=torch.channels_last).decoder
        tokenizer.encoder, decoder.layers = torch.compile(tokenizer.encoder), torch.compile(decoder.layers)
        images = images.to(memory_format=torch.channels_last)

    def step() -> None:
        torch.backends.cudnn.benchmark = "benchmark" in how
        with torch.autocast(device.type, torch.bfloat16, enabled="bf16" in how):
            output = tokenizer(images)
            reconstruction = torch.stack(list(loss(images, output.images).values())).sum()
            adversarial = generator_loss("hinge", adversary(output.images).float())
        own = torch.stack(list(output.quantized.losses.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        if "one backward" in how:
            at = output.images
            of_rec, of_adv = (torch.autograd.grad(x, at, retain_graph=True)[0] for x in (reconstruction, adversarial))
            rec, adv = (torch.autograd.grad(at, last, x, retain_graph=True)[0].norm() for x in (of_rec, of_adv))
            weight = 0.8 * (rec / (adv + 1e-4)).clamp(0, 1e4)
            torch.autograd.backward([at, own], [of_rec + weight * of_adv, torch.ones_like(own)])
        else:
            weight = 0.8 * adaptive_weight(reconstruction, adversarial, last)
            (reconstruction + weight * adversarial + own).backward()
        optimizer.step()

    return step


def part_ladder(check: Check) -> None:
    """Median step as each measure is added to those before."""
    recipe, how = check.recipe(), set[str]()
    for more in ("", "benchmark", "fused", "bf16", "one backward", "compile"):
        how = how | ({more} if more else set())
        with check.guarded(more or "float32 by default"):
            if more == "compile" and check.quick:
                how = how - {"compile"}
                raise NotRunError("the quick form compiles nothing")
            seconds = check.seconds(bare_step(check, recipe, how))
            check.found(f"+ {more}" if more else "float32 by default", 1000 * seconds, "ms a step",
                        images_per_s=recipe.batch_size / seconds)  # fmt: skip


def part_profile(check: Check) -> None:
    """Where a step's time goes."""
    from torch.profiler import ProfilerActivity, profile

    step = bare_step(check, check.recipe(), {"benchmark", "bf16"})
    step()
    kinds = [ProfilerActivity.CPU, *([] if check.cpu else [ProfilerActivity.CUDA])]
    with profile(activities=kinds) as profiler:
        step()
    key = "self_cpu_time_total" if check.cpu else "self_device_time_total"
    for event in sorted(profiler.key_averages(), key=lambda e: getattr(e, key), reverse=True)[:12]:
        check.found(event.key[:50], getattr(event, key) / 1000, "ms", calls=event.count)


def part_parity(check: Check) -> None:
    """The same numbers here and on the CPU."""
    import torch

    from vqbench.methods import nearest as module
    from vqbench.tokenizer import build_quantizer

    recipe, device = check.recipe(), check.device
    for method in NAMES:
        with check.guarded(f"{method}: equal indices"):
            torch.manual_seed(0)
            quantizer = build_quantizer(method, configuration(method, recipe)).eval()
            z = torch.randn(2 if check.quick else 16, quantizer.in_channels, 16, 16)
            here = quantizer(z).indices
            there = quantizer.to(device)(z.to(device)).indices.cpu()
            check.found(f"{method}: equal indices", float((here == there).double().mean()), "share")
    with check.guarded("nearest under tf32: equal indices"):
        torch.manual_seed(0)
        z, codes = torch.randn(4096, 64, device=device), torch.randn(1024, 64, device=device)
        before = torch.backends.cuda.matmul.fp32_precision
        exact = (z.double()[:, None] - codes.double()).square().sum(2).argmin(1) if not check.quick else None
        try:
            torch.backends.cuda.matmul.fp32_precision = "tf32"
            found = module.nearest(z, codes)
        finally:
            torch.backends.cuda.matmul.fp32_precision = before
        if exact is not None:
            check.found("nearest under tf32: equal indices", float((found == exact).double().mean()), "share")
    with check.guarded("tokenizer: reconstructions"):
        tokenizer = tokenizer_of("vqgan", recipe).eval()
        images = torch.rand(2, 3, recipe.resolution, recipe.resolution) * 2 - 1
        indices = tokenizer.encode(images)
        here = tokenizer.decode(indices)
        there = tokenizer.to(device).decode(indices.to(device)).cpu()
        check.found("tokenizer: largest difference of a pixel value", float((here - there).abs().max()))
    with check.guarded("PSNR, SSIM"):
        from vqbench.metrics.pixels import psnr, ssim

        draw = torch.Generator().manual_seed(0)
        x, y = (torch.randint(0, 256, (4, 3, 64, 64), generator=draw, dtype=torch.uint8) for _ in range(2))
        for name, score in (("PSNR", psnr), ("SSIM", ssim)):
            apart = (score(x, y) - score(x.to(device), y.to(device)).cpu()).abs().max()
            check.found(f"{name}: largest difference", float(apart))
    with check.guarded("LPIPS squeeze: largest difference"):
        weights = sorted(HERE.glob("squeezenet1_1*.pth"))
        if not weights:
            raise NotRunError(f"no squeezenet1_1*.pth beside {Path(__file__).name}")
        from vqbench.metrics.networks import load_lpips

        net = load_lpips("squeeze", weights[0])
        x, y = (torch.rand(4, 3, 64, 64) * 2 - 1 for _ in range(2))
        here, there = net(x, y), net.to(device)(x.to(device), y.to(device)).cpu()
        check.found("LPIPS squeeze: largest difference", float((here - there).abs().max()))


def part_resume(check: Check) -> None:
    """Half a training, SIGTERM, and on, against one that ran through."""
    from vqbench.machine.interrupts import TerminatedError

    steps = check.steps
    for method in NAMES[:2] if check.quick else NAMES:
        with check.guarded(f"{method}: resumed against through"), tempfile.TemporaryDirectory() as root:
            batch = check.recipe().batch_size if check.quick else 8
            images = steps * batch
            recipe = check.recipe(batch_size=batch, images=images, checkpoint_images=images)
            through, _ = trained(check, method, recipe, Path(root) / "through")

            def stop(seen: int, half: int = images // 2) -> None:
                if seen == half:
                    os.kill(os.getpid(), signal.SIGTERM)

            before = signal.getsignal(signal.SIGTERM)
            try:
                with contextlib.suppress(TerminatedError):
                    trained(check, method, recipe, Path(root) / "halves", stop)
            finally:
                signal.signal(signal.SIGTERM, before)
            resumed, marks = trained(check, method, recipe, Path(root) / "halves")
            if not 0 < len(marks) < steps:
                raise ValueError(f"the second half had {len(marks)} of {steps} steps")
            pairs = zip(through.tokenizer.parameters(), resumed.tokenizer.parameters(), strict=True)
            apart = max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)) for a, b in pairs)
            if check.cpu and apart > 0:
                raise ValueError(f"on a CPU it is exact, and it is {apart:.2g} of the largest weight apart")
            check.found(f"{method}: resumed against through", apart, "of the largest weight")


def part_loader(check: Check) -> None:
    """Images a second of each core, and of the workers that a training has."""
    path = HERE.parent / "benchmarks" / "loader.py"
    spec = importlib.util.spec_from_file_location("loader_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    loader: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    count = 32 if check.quick else 48
    with tempfile.TemporaryDirectory() as folder:
        for kind, (suffix, size) in loader.KINDS.items():
            loader.write(Path(folder) / kind, count, suffix, size)
        for resolution in (64,) if check.quick else (128, 256):
            for kind, rate in loader.measure(Path(folder), resolution, count).items():
                check.found(f"{resolution} px from {kind}, one core", float(rate), "images/s")
    with check.guarded("workers of a training"):
        from torch.utils.data import DataLoader

        from vqbench.training.fit import batch_positions, data_workers

        recipe, workers = check.recipe(), data_workers(1)
        positions: Any = batch_positions(0, recipe.batch_size * (4 if check.quick else 60), recipe.batch_size, 0, 1)
        batches = iter(DataLoader(stream_of(recipe), batch_sampler=positions, num_workers=workers))
        next(batches)
        started = time.perf_counter()
        rest = sum(len(batch) for batch in batches)
        check.found(f"{workers} workers, {recipe.resolution} px in memory", rest / (time.perf_counter() - started),
                    "images/s")  # fmt: skip


def part_evaluation(check: Check) -> None:
    """Images a second of what an evaluation does; Inception with random weights, from torchvision."""
    import torch

    from vqbench.metrics.pixels import psnr, ssim

    recipe, device = check.recipe(), check.device
    tokenizer = tokenizer_of("vqgan", recipe).to(device).eval()
    count = recipe.batch_size
    pixels = torch.randint(0, 256, (count, 3, recipe.resolution, recipe.resolution), dtype=torch.uint8, device=device)
    indices = tokenizer.encode(pixels)
    works: dict[str, Callable[[], object]] = {
        "encode": lambda: tokenizer.encode(pixels),
        "decode": lambda: tokenizer.decode(indices),
        "PSNR": lambda: psnr(pixels, pixels.flip(3)),
        "SSIM": lambda: ssim(pixels, pixels.flip(3)),
    }
    for name, work in works.items():
        with check.guarded(name):
            check.found(name, count / check.seconds(work), "images/s")
    with check.guarded("Inception"):
        if check.quick:
            raise NotRunError("the quick form leaves it out")
        import torchvision

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inception = torchvision.models.inception_v3(weights=None, init_weights=False).to(device).eval()
        for size in (32, 256):
            images = torch.rand(size, 3, 299, 299, device=device)
            with torch.inference_mode():
                seconds = check.seconds(lambda images=images: inception(images))  # type: ignore[misc]
            check.found(f"Inception, {size} at once", size / seconds, "images/s")


def part_nearest(check: Check) -> None:
    """The look-up with blocks of other sizes."""
    import torch

    from vqbench.methods import nearest as module

    n, k = (256, 512) if check.quick else (8192, 16384)
    z, codes = torch.randn(n, 64, device=check.device), torch.randn(k, 64, device=check.device)
    usual = module.SCORE_BYTES
    try:
        for size in (8, 24, 64, 256, 1024):
            module.SCORE_BYTES = size * 2**20
            check.found(f"blocks of {size} MiB", 1000 * check.seconds(lambda: module.nearest(z, codes)), "ms")
    finally:
        module.SCORE_BYTES = usual


def command(*words: object, limit: float = 240.0) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    told = [sys.executable, "-m", "vqbench.cli", *map(str, words)]
    return subprocess.run(told, capture_output=True, text=True, timeout=limit, check=False)


def part_command(check: Check) -> None:
    """A real command, what its probe had said, and how it fails for want of memory."""
    for needed in ("mlflow", "optuna", "distributed", "skimage"):
        if importlib.util.find_spec(needed) is None:
            raise NotRunError(f"no module named {needed}")
    with tempfile.TemporaryDirectory() as root:
        images = 64 if check.quick else 2048
        small = ("--set", "channels=8", "--set", "latent_channels=8") if check.quick else ()
        asked = ("--methods", "vqgan", "--dataset", "photos", "--recipe", "tiny", "--images", images,
                 "--metrics", "psnr,usage", "--runs", root, "--no-page", *small)  # fmt: skip
        predicted: float | None = None
        with check.guarded("the probe"):
            if check.quick:
                raise NotRunError("the quick form leaves it out")
            told = command("run", *asked, "--dry-run", "--probe", "--json")
            predicted = sum(json.loads(line)["cost"]["seconds"] for line in told.stdout.splitlines())
            check.found("predicted by the probe", predicted, "s")
        with check.guarded("run"):
            started = time.perf_counter()
            done = command("run", *asked, "--json")
            took = time.perf_counter() - started
            if done.returncode:
                raise RuntimeError(done.stderr[-300:] or f"exit code {done.returncode}")
            check.found("run", took, "s", row=json.loads(done.stdout.splitlines()[-1]))
            if predicted is not None:
                check.found("predicted over actual", predicted / took)
        for ignored in (False, True):
            name = "out of memory" if ignored else "refused for its memory"
            with check.guarded(name):
                if check.cpu:
                    raise NotRunError("a CPU has no memory of its own")
                done = command(
                    "run", "--methods", "vqgan", "--dataset", "photos", "--recipe", "vqgan-f16-256", "--images", 8192,
                    "--set", "perceptual=none", "--set", "gan=none", "--set", "batch_size=1024", "--metrics", "psnr",
                    "--runs", Path(root) / name.replace(" ", "-"), "--no-page", "--json",
                    *(["--ignore-memory"] if ignored else []),
                )  # fmt: skip
                error = json.loads(done.stdout.splitlines()[-1])["error"] if done.stdout else done.stderr[-300:]
                check.found(name, json.dumps(error)[:400])


PARTS: dict[str, Callable[[Check], None]] = {
    "steps": part_steps, "memory": part_memory, "ladder": part_ladder, "parity": part_parity, "resume": part_resume,
    "nearest": part_nearest, "evaluation": part_evaluation, "loader": part_loader, "profile": part_profile,
    "command": part_command,
}  # fmt: skip


def about(check: Check) -> dict[str, Any]:
    """The machine and the versions."""
    import torch

    cards = [] if check.cpu else [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "torch": torch.__version__, "cuda": torch.version.cuda,
        "cards": cards, "cpus": os.cpu_count(), "load": os.getloadavg()[0], "quick": check.quick,
    }  # fmt: skip


def main() -> int:
    """Run the parts one after the other; 1 where one of them failed, 2 where there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="nothing new begins after so many")
    parser.add_argument("--parts", default=",".join(PARTS), help="of them all, in this order")
    parser.add_argument("--cpu", action="store_true", help="on the CPU, where there is no card")
    parser.add_argument("--quick", action="store_true", help="small models and few steps")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    os.environ.setdefault("VQBENCH_HOME", tempfile.mkdtemp(prefix="vqbench-home-"))
    make_importable()
    import torch

    if not asked.cpu and not torch.cuda.is_available():
        print("there is no GPU here; --cpu --quick goes through the parts without one", file=sys.stderr)
        return 2
    target = Path(os.environ.get("OUT") or ".") / "gpu-check.json"
    check = Check(asked.cpu, asked.quick, time.monotonic() + 60 * asked.minutes)
    machine = about(check)
    print(", ".join(f"{key} {value}" for key, value in machine.items()), flush=True)
    for name in asked.parts.split(","):
        check.part, started = name, time.monotonic()
        with check.guarded("the whole part"):
            PARTS[name](check)
        machine.setdefault("seconds", {})[name] = round(time.monotonic() - started, 1)
        target.write_text(json.dumps({**machine, "rows": check.rows}, indent=1), encoding="utf-8")
    failed = sum(row["state"] == "failed" for row in check.rows)
    print(f"{len(check.rows)} lines, {failed} failed; {target}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
