"""`vqbench doctor`: what this machine has, and whether its metrics give the values that they must."""

from __future__ import annotations

import functools
import math
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vqbench.errors import VQBenchError
from vqbench.machine.gpus import spelled, visible_gpus
from vqbench.machine.home import home as default_home
from vqbench.metrics.weights import BACKBONES, Missing, WeightFile, find_weights

if TYPE_CHECKING:
    from torch import Tensor

PACKAGES = (
    "vqbench", "torch", "torchvision", "lightning", "torch-fidelity", "lpips", "numpy", "scipy", "pandas", "pillow",
    "scikit-image", "mlflow", "optuna",
)  # fmt: skip

INCEPTION_CHECK = 0.2906668
"""Mean feature of `_pattern(2)`. Measured with torch 2.15.0 on a CPU (AMD EPYC), converted weights."""
LPIPS_CHECK = {"squeeze": (0.1024, 0.0938)}
"""Published in torchmetrics' documentation for two pairs of uniform noise, seed 42, 100×100."""


@dataclass(frozen=True)
class Diagnosis:
    """One line of the report."""

    name: str
    state: Literal["ok", "missing", "wrong"]
    text: str
    hint: str = ""
    """What to do where the state is not "ok"."""


def diagnose(inception: Path | None = None, lpips: Path | None = None) -> list[Diagnosis]:
    """Device, versions, weights and recomputed values, in the order in which they are printed.

    `inception` and `lpips` are weight files given by hand. Nothing is downloaded; weights of an LPIPS net that are
    not there are "missing", which is no fault: only metrics that ask for them need them.
    """
    home = default_home()
    found: dict[str, WeightFile | Missing] = {}
    findings = [_device(), *_to_the_end(_gpus()), *_versions(), _home(home)]
    findings += _weights("inception", lambda: find_weights("inception", inception, home=home), found)
    for net in BACKBONES:
        explicit = lpips if _is_for(lpips, net) else None
        findings += _weights(net, functools.partial(find_weights, net, explicit, home=home), found)
    checks = (_pixel_values(), _feature_distances(), _codes(), _inception_value(found, home), _lpips_values(found))
    return findings + [finding for check in checks for finding in _to_the_end(check)]


def _to_the_end(check: Iterable[Diagnosis]) -> Iterator[Diagnosis]:
    """A check that breaks is a finding too, and the others go on."""
    try:
        yield from check
    except VQBenchError as error:  # weights whose file passed and whose tensors did not, for one
        yield Diagnosis("check", "wrong", error.what, error.hint)
    except Exception as error:
        yield Diagnosis("check", "wrong", f"{type(error).__name__}: {error}", "report it with this output")


def _is_for(lpips: Path | None, net: str) -> bool:
    """Whether a file given by hand concerns this net: unless it is known to be another net's, it does."""

    def is_backbone(name: str) -> bool:
        try:
            return isinstance(find_weights(name, lpips), WeightFile)
        except VQBenchError:
            return False

    return lpips is None or lpips.is_dir() or not any(is_backbone(other) for other in BACKBONES if other != net)


def render(findings: list[Diagnosis]) -> str:
    """The report as text: state, name, what was found; hints on lines of their own."""
    width = max(len(f.name) for f in findings)
    lines = []
    for f in findings:
        lines.append(f"{f.state:<8}{f.name:<{width}}  {f.text}")
        if f.hint:
            lines.append(f"{'':<8}{'':<{width}}  hint: {f.hint}")
    states = [f.state for f in findings]
    summary = ", ".join(f"{states.count(state)} {state}" for state in ("ok", "missing", "wrong"))
    return "\n".join([*lines, summary])


def exit_status(findings: list[Diagnosis]) -> int:
    """1 if something is wrong; what is merely missing is no fault of the machine."""
    return int(any(f.state == "wrong" for f in findings))


def _device() -> Diagnosis:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Diagnosis("device", "ok", f"{len(names)} GPU: {', '.join(names)} (CUDA {torch.version.cuda})")
    text = f"CPU, {torch.get_num_threads()} threads ({platform.machine()}); no GPU that torch can use"
    return Diagnosis("device", "ok", text)


def _gpus() -> Iterator[Diagnosis]:
    """Which of them cells have to themselves now: another command waits for these."""
    if seen := visible_gpus():
        yield Diagnosis("gpus", "ok", spelled(seen))


def _versions() -> Iterator[Diagnosis]:
    yield Diagnosis("python", "ok", f"{platform.python_version()} on {platform.system()}")
    for package in PACKAGES:
        try:
            yield Diagnosis(package, "ok", metadata.version(package))
        except metadata.PackageNotFoundError:
            yield Diagnosis(package, "wrong", "not installed, but vqbench depends on it", f"pip install {package}")


def _home(home: Path) -> Diagnosis:
    nearest = next(p for p in (home, *home.parents) if p.exists())
    if nearest.is_dir() and os.access(nearest, os.W_OK):
        return Diagnosis("home", "ok", f"{home} (weights, reference features; VQBENCH_HOME moves it)")
    return Diagnosis("home", "wrong", f"{home} cannot be written", "export VQBENCH_HOME=DIR with a folder that can")


def _weights(
    name: str, find: Callable[[], WeightFile | Missing], found: dict[str, WeightFile | Missing]
) -> Iterator[Diagnosis]:
    title = "weights inception" if name == "inception" else f"weights lpips_{name}"
    try:
        file = found[name] = find()
    except VQBenchError as error:  # a file given by hand that is not the pinned one
        yield Diagnosis(title, "wrong", error.what, error.hint)
        return
    if isinstance(file, WeightFile):
        yield Diagnosis(title, "ok", f"{file.path} (sha256 {file.sha256}, {file.source})")
    else:
        yield Diagnosis(title, "missing", f"{file.file}, looked in: {'; '.join(file.looked)}", file.hint)


def _value(name: str, got: float, expected: float, tolerance: float, what: str) -> Diagnosis:
    if abs(got - expected) <= tolerance:  # False for NaN
        return Diagnosis(name, "ok", f"{what} = {got:.6g}")
    hint = "the numbers of this machine compare with no other's; report it with this output"
    return Diagnosis(name, "wrong", f"{what} = {got:.9g}, expected {expected:.9g} ± {tolerance:g}", hint)


# The next three: metrics that need no weights, on cases that a line of algebra solves.


def _pixel_values() -> Iterator[Diagnosis]:
    import torch

    from vqbench.metrics.pixels import psnr, ssim

    dark, bright = (torch.full((1, 3, 16, 16), level, dtype=torch.uint8) for level in (100, 150))
    yield _value("psnr", psnr(dark, dark + 1).item(), 20 * math.log10(255), 1e-9, "PSNR of images one level apart")
    noise = _pattern(1)
    yield _value("ssim", ssim(noise, noise).item(), 1, 1e-12, "SSIM(x, x)")
    c1 = (0.01 * 255) ** 2
    level = (2 * 100 * 150 + c1) / (100**2 + 150**2 + c1)
    yield _value("ssim", ssim(dark, bright).item(), level, 1e-9, "SSIM of two flat images, 100 and 150")


def _feature_distances() -> Iterator[Diagnosis]:
    import numpy as np

    from vqbench.metrics.frechet import frechet_distance, kernel_distance

    # ±s along each of 4 axes: mean 0, covariance 2s²/7 · I; the other set has 2s, and its mean moved by (1, 1, 1, 1)
    axes = np.concatenate([np.eye(4), -np.eye(4)])
    expected = 4 + 4 * (2 / 7)
    yield _value("rfid", frechet_distance(axes, 2 * axes + 1), expected, 1e-9, "FID of two known Gaussians")
    few = np.zeros((2, 64))
    few[:, 0] = (1, -1)  # fewer images than dimensions: variance 2 and 8 along one axis, mean moved by 0.5 on all 64
    yield _value("rfid", frechet_distance(few, 2 * few + 0.5), 16 + 2, 1e-9, "FID of two known Gaussians, n < d")
    x = np.random.default_rng(0).standard_normal((64, 256))
    yield _value("rfid", frechet_distance(x, x), 0, 1e-6, "FID(x, x)")
    zeros = np.zeros((3, 5))
    yield _value("kid", kernel_distance(zeros, zeros + 1), 1 + 8 - 2, 1e-9, "KID of two points")


def _codes() -> Iterator[Diagnosis]:
    import numpy as np

    from vqbench.metrics.codes import code_statistics

    uniform = code_statistics(np.full(512, 3))
    yield _value("perplexity", uniform.perplexity, 512, 1e-9, "perplexity of a uniform histogram of 512 codes")
    half = code_statistics(np.array([5, 5, 0, 0]))
    yield _value("usage", half.usage, 0.5, 0, "usage of 2 of 4 codes")


def _pattern(images: int) -> Tensor:
    """uint8 (images, 3, 32, 32) that no random generator can change."""
    import torch

    steps = torch.arange(images * 3 * 32 * 32)
    return ((steps * steps // 7 + 31 * steps) % 256).to(torch.uint8).view(images, 3, 32, 32)


def _inception_value(found: dict[str, WeightFile | Missing], home: Path) -> Iterator[Diagnosis]:
    file = found.get("inception")
    if not isinstance(file, WeightFile):
        return
    import torch

    from vqbench.metrics.inception import load

    with torch.inference_mode():
        got = load(file, home)(_pattern(2)).double().mean().item()
    yield _value("inception", got, INCEPTION_CHECK, 1e-5, "mean feature of two fixed images")


def _lpips_values(found: dict[str, WeightFile | Missing]) -> Iterator[Diagnosis]:
    import torch

    from vqbench.metrics.perceptual import load

    generator = torch.Generator().manual_seed(42)
    x, y = (torch.rand(2, 3, 100, 100, generator=generator) * 2 - 1 for _ in range(2))
    for net in BACKBONES:
        file = found.get(net)
        if isinstance(file, WeightFile):
            model = load(net, file)
            with torch.inference_mode():
                same, different = model(x, x), model(x, y)
            yield _value(f"lpips_{net}", same.abs().max().item(), 0, 1e-6, "LPIPS(x, x)")
            for got, published in zip(different.tolist(), LPIPS_CHECK.get(net, ()), strict=False):
                yield _value(f"lpips_{net}", got, published, 1e-4, "LPIPS of noise, as torchmetrics publishes it")
