"""What the tests share: a home of their own, small images, and the real command line."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import postgres as postgresql
import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
SMALL = ("channels=8", "latent_channels=8", "codebook_size=32", "codebook_dim=8", "batch_size=8", "warmup_images=0")
"""Recipe settings under which a cell trains in a second or two."""


@pytest.fixture(scope="session", autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Caches of the tests live apart from the user's, and no test reads the user's settings."""
    for name in [name for name in os.environ if name.startswith(("VQBENCH_", "MLFLOW_")) and name != "VQBENCH_SHARED"]:
        del os.environ[name]
    os.environ["VQBENCH_HOME"] = str(tmp_path_factory.mktemp("home"))
    os.environ["COLUMNS"] = "100"
    os.environ["VQBENCH_PAGE"] = "0"  # seconds of pictures for each command; the tests of the page ask for it
    os.environ["OMP_NUM_THREADS"] = "1"  # two test processes share two cores


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that look at one costly thing stay in one process when pytest-xdist spreads the others."""
    for item in items:
        shared = {"browser", "tracked", "comparison", "workplace", "wheel", "postgres"}
        shared &= set(getattr(item, "fixturenames", ()))
        if shared:
            item.add_marker(pytest.mark.xdist_group(min(shared)))  # the same in every process


@dataclass(frozen=True)
class Answer:
    """What the command line answered."""

    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The JSON objects on stdout, one per line."""
        return [json.loads(line) for line in self.out.splitlines()]


Command = Callable[..., Answer]


@pytest.fixture(scope="session")
def vqbench() -> Command:
    """The installed command, in a process of its own."""

    def call(*arguments: object, cwd: Path | None = None, timeout: float = 300, **env: str) -> Answer:
        command = [sys.executable, "-m", "vqbench.cli", *map(str, arguments)]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **env}, timeout=timeout, check=False
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    return call


def typed(*words: object) -> Answer:
    """The command line in this process, which has imported what it needs."""
    from vqbench.cli import _exit_code, app

    out, err = io.StringIO(), io.StringIO()
    arguments = [str(word) for word in words]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = _exit_code(lambda: app(args=arguments, standalone_mode=False), arguments)
    return Answer(code, out.getvalue(), err.getvalue())


def settings(*more: str) -> list[str]:
    """`--set` for a small recipe, and `more`."""
    return [part for text in (*SMALL, *more) for part in ("--set", text)]


def write_images(folder: Path, count: int, side: int = 40, seed: int = 0) -> Path:
    """Smooth random photographs: noise at a quarter of the size, enlarged."""
    draw = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        noise = Image.fromarray(draw.integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8))
        noise.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{i:04d}.png")
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `train/` and `val/`: 64 and 12 images of 40 px."""
    root = tmp_path_factory.mktemp("images")
    write_images(root / "train", 64)
    write_images(root / "val", 12, seed=1)
    return root


@pytest.fixture(scope="session")
def postgres() -> Iterator[Callable[[], str]]:
    """Makes a new database on a PostgreSQL server of our own and returns its URL; skipped where there is none."""
    with postgresql.serving() as database:
        yield database
