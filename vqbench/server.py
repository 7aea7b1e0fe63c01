"""A tracking server: where it is, and the client that asks it."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import unquote


def tracking_uri(runs: Path) -> str:
    """`$MLFLOW_TRACKING_URI`, or a sqlite file in the runs directory."""
    path = str(runs.absolute() / "mlflow.db").replace("%", "%25").replace("?", "%3F")  # what an address would read
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{path}"


def database_file(uri: str) -> Path | None:
    """The file of a database that is one; None for a server of any kind."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0]))


def is_remote(uri: str) -> bool:
    """Whether an address is a server's, which has a place of its own for files and a page to look at."""
    return uri.startswith(("http://", "https://"))


def quiet_environment() -> dict[str, str]:
    """Settings under which MLflow sends no telemetry, prints nothing and does not retry for minutes; the user's win."""
    defaults = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # results go there, and --json must be JSON
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "GIT_PYTHON_REFRESH": "quiet",
    }
    return {name: os.environ.get(name, value) for name, value in defaults.items()}


def connect(uri: str) -> Any:
    """An MLflow client that is quiet, sends no telemetry and does not retry for minutes."""
    os.environ.update(quiet_environment())
    warnings.filterwarnings("ignore", module=r"mlflow|sqlalchemy|alembic")
    _hush()
    from mlflow.tracking import MlflowClient

    _hush()  # mlflow's own import sets them to INFO
    return MlflowClient(tracking_uri=uri)


def _hush() -> None:
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)


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
