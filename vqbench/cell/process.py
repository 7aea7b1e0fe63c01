"""One cell's process: made ready, started, watched, ended. Runs in the driver or in a worker; never imports torch."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from vqbench.cell.progress import PARENT_VARIABLE
from vqbench.cell.reasons import death_of
from vqbench.errors import remedy
from vqbench.machine.json_files import write_json
from vqbench.machine.lease import EXIT_BUSY, CellBusyError
from vqbench.machine.streams import LOG_ENCODING
from vqbench.metrics.definitions import asked_metrics, has_scores
from vqbench.plugin import keep_copies
from vqbench.results.cell_files import (
    CHECKPOINT,
    DONE,
    FAILED,
    PER_IMAGE,
    RESULT,
    SPEC,
    STATUS,
    TRAINING,
    WEIGHTS,
    is_whole,
    names,
)
from vqbench.results.cell_folder import CellFolder, failure
from vqbench.results.problems import result_problem
from vqbench.wording import shell_command

POLL_SECONDS = 0.25
STOP_SECONDS = 15.0
"""For the end of a step and for a checkpoint, when a cell is told to end."""
BUSY, STOPPED = "busy", "stopped"
_RANK_VARIABLES = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
"""A scheduler's, for processes that it starts; a cell that inherited them would take itself for one of several."""


@dataclass(frozen=True)
class Store:
    """The run of a cell in MLflow, whose artifacts hold its files while they travel (transfer.py)."""

    tracking_uri: str = field(repr=False)  # dask's workers log what they are given
    run_id: str


@dataclass(frozen=True)
class CellJob:
    """All that another process, or another machine, needs to know to run a cell."""

    folder: Path
    spec: dict[str, Any]
    plugin_sources: tuple[bytes, ...] = ()
    """Its plugins as they were when the plan was made (`Plugin.packed`); their sha256 is in the spec."""
    timeout: float | None = None
    """Seconds after which the process is killed."""
    environment: Mapping[str, str | None] = field(default_factory=dict)
    """Variables for the process, beside those that are there; None leaves one out."""
    store: Store | None = None
    """Where its files are left for whoever does not see the folder; None on a shared disk."""

    @property
    def name(self) -> str:
        """The cell's name."""
        return self.folder.name


@dataclass(frozen=True)
class Ended:
    """How a job ended: done, failed, stopped (it was asked to), or busy (another process has the folder)."""

    state: str
    error: dict[str, Any] | None = None
    """The reason of a failure that could not be written to the cell's folder."""


def write_job(job: CellJob, anew: bool) -> list[str]:
    """Clear what an earlier attempt left that is not to be kept, and write the spec. The folder must be locked.

    `anew` throws away what is trained. Returns a sentence for each file that is not whole, and what happens without it.
    """
    folder = CellFolder(job.folder)
    lost = [] if anew else _clear_damaged(folder, job.spec)
    stale = [*names(of_attempt=True), *(names(by_training=True) if anew else ())]
    if anew or (folder.result or {}).get("state") != DONE:  # a result that lacks a metric stays until it is completed
        stale.append(RESULT)
    for name in stale:
        (folder.path / name).unlink(missing_ok=True)
    for torn in folder.path.glob(f".{STATUS}.*.part"):  # of a process that was killed while it wrote
        torn.unlink(missing_ok=True)
    write_spec(job)
    return lost


def write_spec(job: CellJob) -> None:
    """Write what a cell is, which its plan knows, and the plugins that its method, metrics and dataset are from."""
    stored = CellFolder(job.folder).spec
    asked = dict.fromkeys((*asked_metrics(stored), *job.spec.get("asked", ())))  # what was asked for is shown still
    write_json(job.folder / SPEC, {**job.spec, "asked": list(asked)})
    keep_copies(job.folder, job.plugin_sources)


def _clear_damaged(folder: CellFolder, spec: Mapping[str, Any]) -> list[str]:
    """Take away what a cell could not go on from, and what belongs to it; a sentence for each such file.

    The weights and the record of their training are worth nothing without each other.
    """
    from vqbench.cell.tracks import track_of_spec

    damaged = [name for name in (CHECKPOINT, WEIGHTS, TRAINING) if _is_damaged(folder.path / name)]
    kept = [name for name in (WEIGHTS, TRAINING) if (folder.path / name).exists()]
    result = folder.result
    scored = result is not None and not result_problem(result) and result["state"] == DONE
    # a fit to features is made again for each result, in seconds, and keeps no record
    if track_of_spec(spec).keeps_training and (len(kept) == 1 or (not kept and scored)):
        damaged += [name for name in (WEIGHTS, TRAINING) if name not in kept]
    if (folder.path / RESULT).exists() and (result is None or result_problem(result)):
        damaged.append(RESULT)
    gone = {name for name in damaged if not (folder.path / name).exists()}
    for name in {*damaged, *((WEIGHTS, TRAINING) if {WEIGHTS, TRAINING} & {*damaged} else ())}:
        (folder.path / name).unlink(missing_ok=True)
    if folder.weights.is_file():
        then = "the cell is evaluated again from its weights"
    else:
        then = "training goes on from its checkpoint" if folder.checkpoint.is_file() else "training begins at image 0"
        then += ", and its scores so far, which are of what is lost, go" if scored else ""
    said = [f"{folder.name}: {name} is {'gone' if name in gone else 'not whole'}; {then}" for name in damaged]
    if scored and folder.weights.is_file() and not is_whole(folder.path / PER_IMAGE):
        said.append(f"{folder.name}: {PER_IMAGE} is not whole; what earlier metrics found for single images is lost, "
                    "and --rerun brings it back")  # fmt: skip
    return said


def _is_damaged(path: Path) -> bool:
    return path.exists() and not is_whole(path)


def stored_end(job: CellJob) -> Ended | None:
    """How this job has ended already: it is not run twice, even if whoever ran it did not live to say so."""
    folder = CellFolder(job.folder)
    if folder.error is not None:
        return Ended(FAILED)
    return Ended(DONE) if folder.state(partial(has_scores, spec=job.spec)) == "cached" else None


def failure_to_write(error: OSError) -> dict[str, Any]:
    """The reason of a failure that the disk could not take."""
    hint = f"{remedy(error)}, then give the command again"
    return failure(type(error).__name__, str(error), hint, "start")


def spawn(
    module: str, arguments: Iterable[object], folder: CellFolder, environment: Mapping[str, str | None] | None = None
) -> subprocess.Popen[bytes]:
    """Start `python -m module arguments…` for a cell's folder, whose log it writes to, with `environment` beside ours.

    Raises OSError where there is no room for the log or for another process.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    wanted = {**os.environ, **(environment or {}), PARENT_VARIABLE: str(os.getpid())}
    env = {name: value for name, value in wanted.items() if value is not None and name not in _RANK_VARIABLES}
    env |= LOG_ENCODING
    env["PYTHONSAFEPATH"] = "1"  # a lightning.py in the user's folder is not ours to import
    with folder.log.open("ab") as log:
        log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {shell_command(command)}\n".encode())
        log.flush()
        # a session of its own: Ctrl-C reaches its parent alone, which then ends it in good order
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True
        )


def end(process: subprocess.Popen[bytes]) -> None:
    """End a spawned process and those that it has started, and wait until they have ended.

    One that trains ends after its step, with a checkpoint, if that takes no longer than STOP_SECONDS.
    """
    # to the process alone: those that load its images would die before the step is over, and it would die of that
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class CellProcess:
    """The process `python -m vqbench.cell` of one job, whose folder holds its spec."""

    def __init__(self, job: CellJob) -> None:
        self.job, self.folder = job, CellFolder(job.folder)
        self._started = time.time()
        self._deadline = time.monotonic() + job.timeout if job.timeout is not None else None
        self._process = spawn("vqbench.cell", [self.folder.path / SPEC], self.folder, job.environment)

    def poll(self) -> Ended | None:
        """How it ended; None while it runs. Kills it when its time is up."""
        returncode = self._process.poll()
        if returncode is not None:
            return self._ended(returncode)
        if self._deadline is not None and time.monotonic() > self._deadline:
            self.stop()
            return self._write_failure(
                "TimeoutError",
                f"it ran past --cell-timeout {self.job.timeout:g} s, in {self._stage()}",
                "the same command goes on from the last checkpoint; give it more time: --cell-timeout",
            )
        return None

    def _ended(self, returncode: int) -> Ended:
        if returncode == EXIT_BUSY:
            return Ended(BUSY)
        if self.folder.error is None and (returncode != 0 or self.folder.result is None):
            return self._write_failure("Killed", self._death(returncode), f"its last words are in {self.folder.log}")
        done = returncode == 0 and (self.folder.result or {}).get("state") == DONE
        return Ended(DONE if done else FAILED)

    def _death(self, returncode: int) -> str:
        """What a process that ended without a word died of."""
        if returncode >= 0:
            return f"the process exited with {returncode} during {self._stage()} and left no result"
        return death_of(-returncode, self._stage())

    def _stage(self) -> str:
        return str(self.folder.status.get("stage", "start"))

    def _write_failure(self, kind: str, message: str, hint: str) -> Ended:
        try:
            with self.folder.locked():
                self.folder.write_failure(kind, message, hint, self._stage(), self._started)
        except CellBusyError:  # somebody is at it again already
            return Ended(BUSY)
        except OSError as error:
            return Ended(FAILED, failure_to_write(error))
        return Ended(FAILED)

    def stop(self) -> None:
        """End the process and those of its other devices, and wait until they have."""
        end(self._process)
