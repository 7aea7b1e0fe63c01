"""Fixtures that the tests share: a home of their own, small images, the real command line, servers."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import postgres as postgresql
from helpers.clusters import Cluster
from helpers.commands import Answer, Command, Running
from helpers.images import write_images
from helpers.plugins import own_plugins

from vqbench.tracking.server import past_proxies

gc.set_threshold(50_000, 20, 20)  # a sixth of a test process's CPU went into looking through what it has imported

_LONG = ("test_docs", "test_run", "test_drivers", "test_mlflow", "test_faults", "test_sweep", "test_tracking")
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


@pytest.fixture(scope="session")
def vqbench() -> Command:
    """The command line, in a process of its own."""

    def call(*arguments: object, cwd: Path | None = None, timeout: float = 300, **env: str) -> Answer:
        running = Running(arguments, cwd=cwd, **env)
        try:
            return Answer(running.wait(timeout), *running.communicate())
        finally:
            running.kill()

    return call


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


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    found = Cluster(tmp_path)
    yield found
    found.close()
