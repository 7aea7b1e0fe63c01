"""What the tests share: a home of their own, small images, and the real command line."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import postgres as postgresql
import pytest
from PIL import Image

from vqbench.tracking.server import past_proxies

REPOSITORY = Path(__file__).resolve().parents[1]
FAULTY = Path(__file__).with_name("faulty.py")
DEADLINE = 600.0
"""Seconds until a condition is given up for; a busy machine needs some of them."""
SMALL = ("channels=8", "latent_channels=8", "codebook_size=32", "codebook_dim=8", "batch_size=8", "warmup_images=0")
"""Recipe settings under which a cell trains in a second or two."""


_LONG = ("test_docs", "test_run", "test_cluster", "test_mlflow", "test_faults", "test_sweep", "test_tracking")
"""Files that take a minute or more, in the order in which they begin: whoever runs last should have a short one."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: they are what two processes share out (`--dist loadfile`)."""
    items.sort(key=lambda item: _LONG.index(item.path.stem) if item.path.stem in _LONG else len(_LONG))


@pytest.fixture(scope="session", autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Caches of the tests live apart from the user's, and no test reads the user's settings or asks his proxy."""
    os.environ.update(past_proxies())
    for name in [name for name in os.environ if name.startswith(("VQBENCH_", "MLFLOW_")) and name != "VQBENCH_SHARED"]:
        del os.environ[name]
    os.environ["VQBENCH_HOME"] = str(tmp_path_factory.mktemp("home"))
    os.environ["COLUMNS"] = "100"
    os.environ["VQBENCH_PAGE"] = "0"  # seconds of pictures for each command; the tests of the page ask for it
    os.environ["OMP_NUM_THREADS"] = "1"  # two test processes share two cores
    if "torch" in sys.modules:  # it has read the variable already; cells that it trains here are compared bit by bit
        sys.modules["torch"].set_num_threads(1)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a job in a shell's back, whose commands would not hear it
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def own_plugins() -> Iterator[None]:
    """What is registered within is gone after it."""
    from vqbench.metrics.definitions import DEFINITIONS
    from vqbench.registry import REGISTRIES

    for registry in REGISTRIES:
        registry.names()  # vqbench's own metrics are registered once in a process
    places = (*REGISTRIES, DEFINITIONS)
    before = [{name: copy.copy(value) for name, value in vars(place).items()} for place in places]
    yield
    for place, state in zip(places, before, strict=True):
        vars(place).update(state)


@pytest.fixture(scope="module", autouse=True)
def _plugins_of_a_file() -> Iterator[None]:
    """Files share a process, in an order that nobody chooses."""
    with own_plugins():
        yield


@pytest.fixture(autouse=True)
def _plugins_of_a_test() -> Iterator[None]:
    """A command typed in this process must find what it was told of, and nothing that another one was."""
    with own_plugins():
        yield


@pytest.fixture(autouse=True)
def _signals_of_a_test() -> Iterator[None]:
    """A command listens to Ctrl-C and SIGTERM for as long as its process lives; this one lives on."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


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


def start(arguments: Iterable[object], stderr: IO[str] | int = subprocess.PIPE, **env: str) -> subprocess.Popen[str]:
    """The command line in a process that goes on while the test does."""
    command = [sys.executable, "-m", "vqbench.cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env={**os.environ, **env})


def until(condition: Callable[[], Any], what: str, process: subprocess.Popen[Any] | None = None) -> Any:
    """What `condition` returns as soon as that is true; fails when it never is, or when `process` has ended before."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        if found := condition():
            return found
        assert process is None or process.poll() is None, f"the process ended before {what}"
        time.sleep(0.02)
    raise AssertionError(f"waited {DEADLINE:.0f} s in vain for {what}")


def typed(*words: object) -> Answer:
    """The command line in this process, which has imported what it needs; it fails after `DEADLINE`."""
    from vqbench.cli.app import _exit_code, app

    def late(*_: object) -> None:
        raise TimeoutError(f"{arguments} took longer than {DEADLINE:.0f} s")

    out, err = io.StringIO(), io.StringIO()
    arguments = [str(word) for word in words]
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(int(DEADLINE))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = _exit_code(lambda: app(args=arguments, standalone_mode=False), arguments)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    if code == 130:  # who runs the tests has interrupted them
        raise KeyboardInterrupt
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
