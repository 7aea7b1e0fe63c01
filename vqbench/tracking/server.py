"""A tracking server: where it is, and the client that asks it."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from vqbench.machine.atomic import replacing
from vqbench.machine.home import home_of_nobody
from vqbench.wording import shell_command

LOOPBACK = ("localhost", "127.0.0.1", "127.0.0.0/8", "::1", "[::1]")
"""This machine, as requests, urllib and curl each want it spelled in NO_PROXY."""


def tracking_uri(runs: Path) -> str:
    """`$MLFLOW_TRACKING_URI`, or a sqlite file in the runs directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{_in_address(runs.absolute() / 'mlflow.db')}"


def _in_address(path: Path) -> str:
    return str(path).replace("%", "%25").replace("?", "%3F")  # what an address would read


def database_file(uri: str) -> Path | None:
    """The file of a database that is one; None for a server of any kind."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0]))


def is_remote(uri: str) -> bool:
    """Whether an address is a server's, which has a place of its own for files and a page to look at."""
    return uri.startswith(("http://", "https://"))


def past_proxies() -> dict[str, str]:
    """NO_PROXY in both spellings, with what the user has there and this machine: no proxy knows the way to it."""
    spellings = ("no_proxy", "NO_PROXY")  # most read the first before the second, some one of them alone
    either = next((os.environ[name] for name in spellings if os.environ.get(name)), "")
    found = {}
    for name in spellings:
        hosts = [host.strip() for host in (os.environ.get(name) or either).split(",") if host.strip()]
        found[name] = ",".join(hosts if "*" in hosts else dict.fromkeys([*hosts, *LOOPBACK]))
    return found


def quiet_environment() -> dict[str, str]:
    """Settings under which MLflow sends no telemetry, prints nothing and does not retry for minutes; the user's win.

    This machine's servers are asked past any proxy.
    """
    defaults = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # results go there, and --json must be JSON
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "GIT_PYTHON_REFRESH": "quiet",
        **home_of_nobody(),
    }
    return {name: os.environ.get(name, value) for name, value in defaults.items()} | past_proxies()


def connect(uri: str) -> Any:
    """An MLflow client that is quiet, sends no telemetry and does not retry for minutes."""
    os.environ.update(quiet_environment())
    warnings.filterwarnings("ignore", module=r"mlflow|sqlalchemy|alembic")
    _hush()
    from mlflow.tracking import MlflowClient

    _hush()  # mlflow's own import sets them to INFO
    _make_database_whole(uri)
    return MlflowClient(tracking_uri=uri)


def _make_database_whole(uri: str) -> None:
    """Where a database is a file that is not there yet, make it beside its place, then put it there.

    MLflow makes its tables step by step where they shall be: of two commands that begin at once, or of one that is
    killed, it would leave a database in which nothing can ever be stored.
    """
    file = database_file(uri)
    if file is None or not file.parent.is_dir() or (file.exists() and not _is_half_made(file)):
        return
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    make: Any = SqlAlchemyStore  # without types
    with _alone_in(file.parent):
        if file.exists() and not _is_half_made(file):  # somebody was faster
            return
        with replacing(file) as partial:
            partial.unlink(missing_ok=True)  # of one that was killed
            make(f"sqlite:///{_in_address(partial)}", DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH).engine.dispose()


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process is within, where the disk can tell."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _is_half_made(file: Path) -> bool:
    """Whether MLflow's first steps were broken off, and nothing is stored yet."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)) as database:
            tables = {name for (name,) in database.execute("select name from sqlite_master where type = 'table'")}
            broken_off = not tables or any(name.startswith("_alembic_tmp_") for name in tables)
            return broken_off and ("runs" not in tables or not database.execute("select 1 from runs").fetchone())
    except sqlite3.Error:  # no database, or busy: MLflow will say it
        return False


def _hush() -> None:
    for name in ("mlflow", "alembic", "urllib3"):  # the last one says which address it asks again
        logging.getLogger(name).setLevel(logging.ERROR)


def how_to_restore(uri: str, experiment_id: str) -> str:
    """The command that brings a deleted experiment back."""
    place = shell_command([uri])
    return f"restore it: MLFLOW_TRACKING_URI={place} mlflow experiments restore --experiment-id {experiment_id}"


def artifacts_of(client: Any, uri: str, run_id: str) -> Any:
    """MLflow's ArtifactRepository for the files of a run."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(client.get_run(run_id).info.artifact_uri, tracking_uri=uri)


def all_runs(client: Any, experiment_id: str, search: str) -> list[Any]:
    """Every run of an experiment that a search finds, the newest first."""
    found: list[Any] = []
    token = None
    while True:
        page = client.search_runs(
            [experiment_id], search, max_results=1000, order_by=["attributes.start_time DESC"], page_token=token
        )
        found += page
        token = page.token
        if not token:
            return found
