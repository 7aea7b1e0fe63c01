"""One cell's process: made ready, started, watched, ended. Runs in the driver or in a worker; never imports torch."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from vqbench.cell.ranks import Ranks
from vqbench.cell.reasons import Reason
from vqbench.errors import remedy
from vqbench.machine.gpus import Claim, awaited, poll_seconds, try_to_claim, visible_gpus
from vqbench.machine.json_files import write_json
from vqbench.machine.lease import EXIT_BUSY, CellBusyError
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
from vqbench.wording import counted

POLL_SECONDS = 0.25
BUSY, STOPPED = "busy", "stopped"


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


class CellProcess:
    """The processes `python -m vqbench.cell` of one job, whose folder holds its spec.

    They start with the first `poll` that finds `gpus` of this machine's GPUs free, and see no others; 0 leaves them
    what there is. A job that waits says so in its status.
    """

    def __init__(self, job: CellJob, gpus: int = 0) -> None:
        self.job, self.folder = job, CellFolder(job.folder)
        self._started, self._deadline = time.time(), math.inf
        self._ranks: Ranks | None = None
        self._gpus, self._among = gpus, visible_gpus() if gpus else []
        self._claim, self._next_claim = Claim(), -math.inf

    def poll(self) -> Ended | None:
        """How it ended; None while it waits or runs. Kills it when its time is up."""
        if self._ranks is None:
            return self._start()
        returncode = self._ranks.poll()
        if returncode is not None:
            self._claim.release()
            return self._ended(self._ranks, returncode)
        if time.monotonic() > self._deadline:
            self.stop()
            hint = "the same command goes on from the last checkpoint; give it more time: --cell-timeout"
            late = f"it ran past --cell-timeout {self.job.timeout:g} s, in {self._stage()}"
            return self._write_failure(Reason("TimeoutError", late, hint))
        return None

    def _start(self) -> Ended | None:
        """Start it if there are GPUs for it. How it ended if it has done so already, or cannot be started."""
        if len(self._among) < self._gpus:
            few = f"the cell takes {counted(self._gpus, 'GPU')}, and this machine shows {len(self._among)}"
            return self._write_failure(Reason("UsageError", few, "`vqbench doctor` there says which it sees"))
        if time.monotonic() < self._next_claim:
            return None
        status = self.folder.path / STATUS
        try:
            claim = try_to_claim(self._gpus, self._among, self.job.name)
            if claim is None:
                if self._next_claim == -math.inf:
                    said = [awaited(self._gpus, self._among)]
                    write_json(status, {"stage": "waits for a GPU", "says": said})
                self._next_claim = time.monotonic() + poll_seconds()
                return None
            self._claim = claim
            if self._next_claim > -math.inf:  # another command may have run it meanwhile
                status.unlink(missing_ok=True)
                if (known := stored_end(self.job)) is not None:
                    claim.release()
                    return known
            environment = {**self.job.environment, **claim.environment}
            arguments, devices = [self.folder.path / SPEC], self.job.spec.get("devices", 1)
            files = [file.fileno() for file in claim.files]
            self._ranks = Ranks("vqbench.cell", arguments, self.folder, devices, environment, files)
        except OSError as error:  # no room for its log, or for another process
            self._claim.release()
            return Ended(FAILED, failure_to_write(error))
        self._started = time.time()
        if self.job.timeout is not None:
            self._deadline = time.monotonic() + self.job.timeout
        return None

    def _ended(self, ranks: Ranks, returncode: int) -> Ended:
        if returncode == EXIT_BUSY:
            return Ended(BUSY)
        if self.folder.error is None and (returncode != 0 or self.folder.result is None):
            return self._write_failure(ranks.reason(self._stage()))
        done = returncode == 0 and (self.folder.result or {}).get("state") == DONE
        return Ended(DONE if done else FAILED)

    def _stage(self) -> str:
        return str(self.folder.status.get("stage", "start"))

    def _write_failure(self, why: Reason) -> Ended:
        stage = self._stage()
        try:
            with self.folder.locked():
                self.folder.write_failure(why.kind, why.message, why.hint, stage, self._started, why.collapse)
        except CellBusyError:  # somebody is at it again already
            return Ended(BUSY)
        except OSError as error:
            return Ended(FAILED, failure_to_write(error))
        return Ended(FAILED)

    def stop(self) -> None:
        """End the processes of all its devices, wait until they have, and give the GPUs back."""
        if self._ranks is not None:
            self._ranks.end()
        self._claim.release()
