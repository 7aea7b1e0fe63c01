"""A PostgreSQL server of the tests' own, from the system's packages."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SECONDS = 300
"""Until a server that does not answer is given up for."""
USER = "vqbench"


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def programs() -> Path | None:
    """The folder of `initdb` and `postgres`, the newest that Debian has installed or the one on the PATH."""
    versions = [p for p in Path("/usr/lib/postgresql").glob("*/bin") if (p / "initdb").is_file()]
    if versions:
        return max(versions, key=lambda folder: float(folder.parent.name))
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found else None


def unprivileged() -> dict[str, object]:
    """Arguments of subprocess that make it another user where we are root, as whom initdb refuses to run."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    pytest.skip("PostgreSQL does not run as root, and there is no user postgres or nobody")


@contextlib.contextmanager
def serving() -> Iterator[Callable[[], str]]:
    """Runs a server on 127.0.0.1; yields a function that makes a new database and returns its URL.

    The URL names the driver: for SQLAlchemy 2.0 a bare `postgresql://` means psycopg2, for 2.1 psycopg of version 3.
    Skips the test where PostgreSQL or psycopg2 is not installed.
    """
    psycopg2 = pytest.importorskip("psycopg2", reason="psycopg2 is not installed: pip install 'vqbench[postgres]'")
    found = programs()
    if found is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    as_user, port = unprivileged(), free_port()
    with tempfile.TemporaryDirectory(prefix="vqpg-", ignore_cleanup_errors=True) as name:  # short: it holds a socket
        folder, data = Path(name), Path(name) / "data"
        if as_user:
            os.chown(folder, as_user["user"], as_user["group"])  # type: ignore[arg-type]
        start = [found / "initdb", "--pgdata", data, "--username", USER, "--auth", "trust", "--no-sync"]
        start += ["--encoding", "UTF8", "--locale", "C"]
        subprocess.run(start, cwd=folder, check=True, capture_output=True, timeout=SECONDS, **as_user)  # type: ignore[call-overload]
        options = {"port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": folder, "fsync": "off"}
        command = [found / "postgres", "-D", data, *(text for k, v in options.items() for text in ("-c", f"{k}={v}"))]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, **as_user)  # type: ignore[call-overload]
        try:
            root = f"postgresql://{USER}@127.0.0.1:{port}"
            _wait_until_it_answers(server, lambda: psycopg2.connect(f"{root}/postgres").close(), folder / "log")
            numbers = itertools.count(1)

            def database() -> str:
                name = f"test{next(numbers)}"
                connection = psycopg2.connect(f"{root}/postgres")
                connection.autocommit = True  # CREATE DATABASE knows no transactions
                connection.cursor().execute(f"CREATE DATABASE {name}")
                connection.close()
                return f"{root}/{name}".replace("postgresql", "postgresql+psycopg2", 1)

            yield database
        finally:
            server.send_signal(signal.SIGQUIT)  # its "immediate" shutdown: nothing here is worth keeping
            try:
                server.wait(timeout=SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _wait_until_it_answers(server: subprocess.Popen[bytes], ask: Callable[[], None], log: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            return ask()
        except Exception:  # psycopg2 is not imported here
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start: {log.read_text()}") from None
            time.sleep(0.05)
