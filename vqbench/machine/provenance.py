"""Where a number comes from: versions, commit, device."""

from __future__ import annotations

import contextlib
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from vqbench.version import __version__


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    names = ("torch", "torchvision", "lightning", "torch-fidelity", "lpips", "numpy", "scikit-learn", "pillow")
    ours = {"python": platform.python_version(), "vqbench": __version__}
    found = {name: metadata.version(name) for name in names}
    with contextlib.suppress(metadata.PackageNotFoundError):  # an extra
        found["vector-quantize-pytorch"] = metadata.version("vector-quantize-pytorch")
    return {**ours, **found}


def git_commit(path: Path) -> str | None:
    """Commit of the checkout that holds `path`, with a + if it was changed; None outside of one."""
    git = ["git", "-C", str(path)]
    try:
        if subprocess.run([*git, "ls-files", "--error-unmatch", __file__], capture_output=True, timeout=10).returncode:
            return None  # installed somewhere inside a repository that is not ours
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, encoding="utf-8", timeout=10, check=True
        )
        changes = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() + ("+" if changes.stdout.strip() else "")


def device_name(device: str) -> str:
    """The GPU's name, or the processor's."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
