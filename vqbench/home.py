"""Where vqbench keeps what outlives a run: weights and reference features."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """`$VQBENCH_HOME`, or `vqbench` in the user's cache folder. The folder need not exist yet."""
    chosen = os.environ.get("VQBENCH_HOME")
    return Path(chosen).expanduser() if chosen else cache_root() / "vqbench"


def cache_root() -> Path:
    """The user's cache folder: `$XDG_CACHE_HOME`, or `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


def torch_hub_checkpoints() -> Path:
    """Where `torch.hub` keeps downloaded weights; found without importing torch."""
    torch_home = os.environ.get("TORCH_HOME")
    root = Path(torch_home).expanduser() if torch_home else cache_root() / "torch"
    return root / "hub" / "checkpoints"
