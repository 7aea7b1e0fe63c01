"""Bring an experiment back from MLflow alone: the folders of its cells, as far as reports read them.

The opposite of `mirror`. Of each cell the newest attempt counts. A file is taken if its sha256 is what the sender said.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from vqbench.errors import UsageError, VQBenchError
from vqbench.machine.atomic import write_bytes_atomically
from vqbench.machine.json_files import read_json, write_json
from vqbench.registry import file_digest
from vqbench.results.cell_files import MLFLOW_RUN, RESULT, RESULT_FILES, SPEC
from vqbench.results.cell_folder import FETCHED
from vqbench.tracking.mirror import FILES_TAG, LEFT_OUT_TAG, SHARED_FOLDER, SHARED_TAG
from vqbench.tracking.server import all_runs, artifacts_of, connect, database_file, how_to_restore, is_remote
from vqbench.wording import masked, reason_of_library

_AT_ONCE = 8  # downloads
_NAME = re.compile(r"[^/\\\0]+")
_SHARED_NAME = re.compile(r"(?:reference|images)-(\w+)\.npz")


@dataclass(frozen=True)
class _CellRun:
    """The newest attempt of a cell, as MLflow has it."""

    folder: str
    run: Any

    @property
    def files(self) -> dict[str, str] | None:
        """sha256 of each file; None before the cell has ended."""
        return _object(self.run.data.tags.get(FILES_TAG))

    @property
    def left_out(self) -> dict[str, int]:
        """Bytes of each file that was too large to be sent."""
        return _object(self.run.data.tags.get(LEFT_OUT_TAG)) or {}


def _object(text: str | None) -> dict[str, Any] | None:
    try:
        value = json.loads(text or "")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def fetch_experiment(uri: str, name: str, runs: Path) -> None:
    """Write `runs/NAME/cells/…` and what cells share there, from the experiment `name` at the MLflow server `uri`.

    What an earlier fetch brought and has not changed is not brought again. Files that MLflow does not have are named
    in `fetched.json`, for reports to say. Raises UsageError where no server answers, where there is no such
    experiment or it is not vqbench's, and where `runs/NAME` holds results of its own.
    """
    folder = runs.absolute() / name
    if (folder / "cells").is_dir() and not (folder / FETCHED).is_file():
        raise UsageError(f"{folder} holds results of its own", "report on them as they are, or give another --runs DIR")
    client, experiment = _find(uri, name)
    cells = _newest(_asked(uri, lambda: all_runs(client, experiment.experiment_id, "tags.`vqbench.cell` LIKE '%'")))
    if not cells:
        what = f"the experiment '{name}' at {masked(uri)} holds no cells of vqbench"
        raise UsageError(what, "`vqbench sync --runs DIR` sends those of a runs directory")
    folder.mkdir(parents=True, exist_ok=True)
    for gone in {path.name for path in folder.glob("cells/*")} - {cell.folder for cell in cells}:
        shutil.rmtree(folder / "cells" / gone)
    write_json(folder / FETCHED, {"uri": masked(uri), "missing": []})
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        problems = [p for found in pool.map(lambda cell: _fetch_cell(client, uri, cell, folder), cells) for p in found]
    problems += _fetch_shared(client, uri, experiment, folder, cells)
    write_json(folder / FETCHED, {"uri": masked(uri), "missing": problems})


def _asked(uri: str, ask: Any) -> Any:
    """What a question to the server gives. Raises UsageError if the server does not answer."""
    try:
        return ask()
    except VQBenchError:
        raise
    except Exception as error:  # of requests, SQLAlchemy or MLflow, each with a class of its own
        what = f"no answer from MLflow at {masked(uri)}: {reason_of_library(error, uri)}"
        raise UsageError(what, "is the server up, and the address right?") from None


def _find(uri: str, name: str) -> tuple[Any, Any]:
    """A client and the experiment. Raises UsageError if there is none of this name."""
    if (database := database_file(uri)) is not None and not database.is_file():
        raise UsageError(f"there is no file {database}", "sqlite:////FULL/PATH/mlflow.db")
    if not is_remote(uri) and not re.match(r"\w+(\+\w+)?://", uri):
        raise UsageError(f"'{masked(uri)}' is no address of MLflow", "http://HOST:PORT, or sqlite:///runs/mlflow.db")
    client = _asked(uri, lambda: connect(uri))
    experiment = _asked(uri, lambda: client.get_experiment_by_name(name))
    if experiment is not None and experiment.lifecycle_stage == "active" and _NAME.fullmatch(name):
        return client, experiment
    known = [each.name for each in _asked(uri, client.search_experiments)]
    near = get_close_matches(name, known, n=2, cutoff=0.5)
    question = f"did you mean {' or '.join(near)}?" if near else f"there: {', '.join(sorted(known)[:8]) or 'none'}"
    if experiment is not None and experiment.lifecycle_stage != "active":
        what = f"the experiment '{name}' at {masked(uri)} was deleted; {question}"
        raise UsageError(what, how_to_restore(uri, experiment.experiment_id))
    raise UsageError(f"no experiment '{name}' at {masked(uri)}; {question}", "--experiment NAME says which")


def _newest(runs: Sequence[Any]) -> list[_CellRun]:
    """The newest attempt of each cell; `runs` has the newest first."""
    cells: dict[str, _CellRun] = {}
    for run in runs:
        folder = run.data.tags["vqbench.cell"].rpartition("/")[0]
        if _NAME.fullmatch(folder) and folder not in (".", ".."):  # else it was not vqbench that wrote it
            cells.setdefault(folder, _CellRun(folder, run))
    return [cells[folder] for folder in sorted(cells)]


def _fetch_cell(client: Any, uri: str, cell: _CellRun, experiment: Path) -> list[str]:
    """Bring one cell; returns what is missing. Its result is written last."""
    folder = experiment / "cells" / cell.folder
    info, files = cell.run.info, cell.files
    memory = {"uri": masked(uri), "run_id": info.run_id, "experiment_id": info.experiment_id, "files": files}
    if files is not None and read_json(folder / MLFLOW_RUN) == memory:
        return _left_out(cell)
    for name in {*RESULT_FILES} - {*(files or ())}:  # of an attempt before
        (folder / name).unlink(missing_ok=True)
    artifacts = _asked(uri, lambda: artifacts_of(client, uri, info.run_id))
    wanted = files if files is not None else {SPEC: ""}
    bare = files is None and info.status == "FINISHED"  # by a vqbench that sent scores alone, or one that was cut off
    problems = (
        [f"{cell.folder}: its scores are in MLflow and its files are not; `vqbench sync` sends them"] if bare else []
    )
    for name in sorted({*wanted} & {*RESULT_FILES}, key=lambda name: name == RESULT):
        if not _download(artifacts, name, wanted[name], folder / name):
            problems.append(f"{cell.folder}: {name} does not arrive as it was sent; `vqbench sync` sends it again")
            break
    else:
        write_json(folder / MLFLOW_RUN, memory)
    return problems + _left_out(cell)


def _left_out(cell: _CellRun) -> list[str]:
    return [f"{cell.folder}: {name} ({size:,} bytes) was too large for MLflow" for name, size in cell.left_out.items()]


def _fetch_shared(client: Any, uri: str, experiment: Any, folder: Path, cells: Sequence[_CellRun]) -> list[str]:
    """Bring what cells share, once for each protocol; returns what is missing."""
    problems = []
    wanted = {cell.run.data.tags.get("protocol") for cell in cells}
    for tag in sorted(experiment.tags):
        name = tag.removeprefix(SHARED_TAG)
        found = _SHARED_NAME.fullmatch(name) if tag.startswith(SHARED_TAG) else None
        if found is None or found[1] not in wanted:
            continue
        where: Mapping[str, Any] = _object(experiment.tags[tag]) or {}
        if (folder / name).is_file() and file_digest(folder / name) == where["sha256"]:
            continue
        artifacts = _asked(uri, lambda where=where: artifacts_of(client, uri, where["run_id"]))
        if not _download(artifacts, f"{SHARED_FOLDER}/{name}", where["sha256"], folder / name):
            problems.append(f"{name} does not arrive as it was sent; `vqbench sync` sends it again")
    return problems


def _download(artifacts: Any, name: str, sha256: str, target: Path) -> bool:
    """Bring one file; False if it is not there, or is not what it should be. No sha256 is none to hold it to."""
    with tempfile.TemporaryDirectory() as draft:
        try:
            path = Path(artifacts.download_artifacts(name, draft))
        except Exception:  # each kind of store has an error of its own for what is not there
            return False
        if sha256 and file_digest(path) != sha256:
            return False
        write_bytes_atomically(target, path.read_bytes())
    return True
