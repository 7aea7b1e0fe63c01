"""The processes of one cell, one for each of its devices: started, watched and ended together, and why they failed.

Runs in the driver or in a worker; never imports torch. The first one (rank 0) writes the cell's files and is told to
end; the others write nothing but what they fail of.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence

from vqbench.cell.progress import PARENT_VARIABLE, RANK_VARIABLE
from vqbench.cell.reasons import Reason, death_of, left_in, less_memory
from vqbench.machine.lease import EXIT_BUSY
from vqbench.machine.streams import LOG_ENCODING
from vqbench.results.cell_folder import CellFolder
from vqbench.wording import shell_command

STOP_SECONDS = 15.0
"""For the end of a step and for a checkpoint, when a cell is told to end, or another of its processes has failed."""
_RANK_VARIABLES = (RANK_VARIABLE, "RANK", "WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
"""A scheduler's, for processes that it starts; a cell that inherited them would take itself for one of several."""

ALLOCATION = {"MALLOC_MMAP_THRESHOLD_": str(32 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(2**30)}
"""glibc's malloc keeps what a step on a CPU frees for the next one, up to so many bytes, and does not have the system
give it anew, page by page: 3 % of a small step. The first is the largest that its manual allows."""


class Ranks:
    """`python -m module arguments…`, once for each device of a cell, whose log it writes to.

    `environment` stands beside ours, of which it takes away what it has None for. `keep`: files that stay open in them.
    Raises OSError where there is no room for the log or for another process.
    """

    def __init__(
        self,
        module: str,
        arguments: Iterable[object],
        folder: CellFolder,
        devices: int = 1,
        environment: Mapping[str, str | None] | None = None,
        keep: Sequence[int] = (),
    ) -> None:
        self._folder = folder
        command = [sys.executable, "-m", module, *map(str, arguments)]
        own = environment or {}
        inherited = {k: v for k, v in os.environ.items() if k not in _RANK_VARIABLES and own.get(k, "") is not None}
        env = {**ALLOCATION, **inherited, **{k: v for k, v in own.items() if v is not None}}
        env[PARENT_VARIABLE] = str(os.getpid())
        env |= LOG_ENCODING
        env["PYTHONSAFEPATH"] = "1"  # a lightning.py in the user's folder is not ours to import
        meeting = {} if devices == 1 else {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._codes: dict[int, int] = {}  # exit codes by rank, in the order in which they ended
        self._deadline: float | None = None
        self._end: int | None = None
        with folder.log.open("ab") as log:
            log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {shell_command(command)}\n".encode())
            log.flush()
            try:
                for rank in range(devices):
                    of_rank = {RANK_VARIABLE: str(rank)} if devices > 1 else {}
                    # a session of its own: Ctrl-C reaches its parent alone, which then ends it in good order
                    process = subprocess.Popen(
                        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**env, **meeting, **of_rank},
                        start_new_session=True, pass_fds=keep,
                    )  # fmt: skip
                    self._processes.append(process)
            except OSError:
                _kill(*self._processes)
                raise

    def poll(self) -> int | None:
        """The exit code of them all; None while there is something to wait for.

        That of the first rank is 0 only where every rank trained to the end. Otherwise it is of the first that failed;
        the others are given time for a checkpoint, and killed: they may wait for it for ever.
        """
        if self._end is not None:
            return self._end
        for rank, process in enumerate(self._processes):
            if (code := process.poll()) is not None:
                self._codes.setdefault(rank, code)
        first, failed = self._codes.get(0), [code for code in self._codes.values() if code]
        if len(self._codes) < len(self._processes):
            if first is None and not failed:
                return None
            self._deadline = self._deadline or time.monotonic() + STOP_SECONDS
            if first != EXIT_BUSY and (time.monotonic() < self._deadline or self._evaluates(first)):
                return None
            _kill(*self._processes)
        self._end = first if first in (0, EXIT_BUSY) else failed[0]
        return self._end

    def wait(self, seconds: float) -> None:
        """Wait for the end of the first rank, but not longer."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._processes[0].wait(timeout=seconds)

    def _evaluates(self, first: int | None) -> bool:
        """Whether the first rank is past training: the others have nothing left to fail at."""
        return first is None and self._folder.status.get("stage") == "evaluate"

    def reason(self, stage: str) -> Reason:
        """Why they failed in a stage, once `poll` has an exit code: what one said itself, or else how one ended.

        What only says that another rank is gone counts last.
        """
        ranks = {process.pid: rank for rank, process in enumerate(self._processes)}
        said = [(ranks[pid], reason) for pid, reason in left_in(self._folder.path) if pid in ranks]
        silent = [rank for rank, code in self._codes.items() if code and rank not in {rank for rank, _ in said}]
        silent.sort(key=lambda rank: self._codes[rank] == -signal.SIGABRT)  # a backend's, for another that is gone
        ended = [(rank, _death(self._codes[rank], stage, self._folder.log)) for rank in silent]
        own = [(rank, reason) for rank, reason in said if not reason.of_another]
        rank, reason = next(iter((*own, *ended, *said)), (0, _death(0, stage, self._folder.log)))
        where = f" (rank {rank} of {len(self._processes)})" if rank else ""
        return dataclasses.replace(reason, message=reason.message + where)

    def end(self) -> None:
        """End them and those that they have started, and wait until they have ended."""
        end(*self._processes)


def end(first: subprocess.Popen[bytes], *others: subprocess.Popen[bytes]) -> None:
    """End the processes of a cell, each with those that it has started, and wait until they have ended.

    A cell that trains ends after its step, with a checkpoint, if that takes no longer than STOP_SECONDS.
    """
    # to the first alone: if those that load its images, or other ranks, died before the step is over, it would of that
    first.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        first.wait(timeout=STOP_SECONDS)
    _kill(first, *others)


def _kill(*processes: subprocess.Popen[bytes]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _death(code: int, stage: str, log: object) -> Reason:
    """The reason of a process that ended without a word."""
    see = f"its last words are in {log}"
    if code >= 0:
        return Reason("Killed", f"the process exited with {code} during {stage} and left no result", see)
    hint = f"{less_memory()}; {see}" if code == -signal.SIGKILL else see
    return Reason("Killed", death_of(-code, stage), hint)


def _free_port() -> int:
    """A port of this machine where the processes of one cell may meet, seconds later.

    Not one that the system gives away: somebody's connection might have got it until then.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)  # whatever seed the user has set
        with socket.socket() as found, contextlib.suppress(OSError):
            found.bind(("127.0.0.1", port))
            return port
