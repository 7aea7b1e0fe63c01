"""Where vqbench keeps what outlives a run: weights and reference features."""

from __future__ import annotations

import contextlib
import os
import uuid
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


def write_whole(path: Path, text: str) -> None:
    """Write a small file under a temporary name, then rename it: nobody reads half of it, and the last writer wins."""
    partial = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.part")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
