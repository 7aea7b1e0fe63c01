"""Why a cell failed, as a person would say it."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqbench.errors import VQBenchError, remedy
from vqbench.machine.json_files import read_json_lines
from vqbench.results.cell_files import RANKS

_NO_ROOM = {number: os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)}
_NO_MEMORY = ("can't allocate memory", os.strerror(errno.ENOMEM))
_LOST_RANK = ("closed by peer", "reset by peer", "gloo", "NCCL", "ProcessGroup", "TCPStore")
"""In what torch's backends say where another process of the cell is gone."""
_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)


@dataclass(frozen=True)
class Reason:
    """What the result of a failed cell says."""

    kind: str
    message: str
    hint: str
    collapse: dict[str, Any] | None = None
    """The collapse of a training that was ended for it."""
    of_another: bool = False
    """Whether all it says is that another process of the cell is gone, or does not answer."""


def less_memory() -> str:
    """What takes less of a device's memory: the hint for a cell that ran out of it, and for one that would."""
    return ("less memory is taken by --micro-batch N or auto (the same batch in parts), --activation-checkpointing, "
            "--set batch_size=… (smaller batches), and --devices N (a part of the batch each)")  # fmt: skip


def reason_of(error: BaseException, stage: str, log: object) -> Reason:
    """What went wrong in a stage of a cell; `log` is the file that its traceback is in.

    Of several errors, one that came while another was dealt with, the first that is not of another process.
    """
    chain = list(_chain(error))
    of_another = _is_of_another(chain[-1])
    told = error if of_another else next(cause for cause in chain if not _is_of_another(cause))
    flag = getattr(told, "collapse", None)
    collapse = flag.as_dict() if flag is not None else None
    return dataclasses.replace(_told(told, stage, log), collapse=collapse, of_another=of_another)


def _told(error: BaseException, stage: str, log: object) -> Reason:
    if isinstance(error, VQBenchError):
        return Reason(type(error).__name__, error.what, error.hint)
    see, text = f"the traceback is in {log}", str(error).strip()
    if (no_room := _no_room(error)) is not None:
        mended = remedy(OSError(no_room[0], ""))
        hint = f"{mended}, then give the command again: it goes on from what was kept; {see}"
        return Reason("DiskFullError", f"no room on the disk during {stage}: {no_room[1]}", hint)
    if _is_out_of_memory(error):
        said = text if "out of memory" in text else f"out of memory during {stage}" + (f": {text}" if text else "")
        return Reason("OutOfMemoryError", said, f"{less_memory()}; {see}")
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Reason(type(error).__name__, text, f"{remedy(error)}, then give the command again; {see}")
    return Reason(type(error).__name__, text or type(error).__name__, see)


def death_of(signal_number: int, stage: str) -> str:
    """The message for a process that a signal ended."""
    try:
        killer = signal.Signals(signal_number)
    except ValueError:  # a real-time signal has no name
        return f"the process was killed by signal {signal_number} during {stage}"
    why = "; out of memory is the usual reason" if killer == signal.SIGKILL else ""
    if killer in _CRASHES:
        why = "; compiled code crashed, the log says where"
    return f"the process was killed by {killer.name} during {stage}{why}"


def leave(folder: Path, reason: Reason) -> None:
    """Add to `folder` what one of a cell's processes failed of; they may all do so at once."""
    said = json.dumps({"pid": os.getpid(), **dataclasses.asdict(reason)}) + "\n"
    with (folder / RANKS).open("ab", buffering=0) as file:
        file.write(said.encode())


def left_in(folder: Path) -> list[tuple[int, Reason]]:
    """What processes of a cell failed of, each with its id, the first one first; without what is not whole."""
    found = []
    for said in read_json_lines(folder / RANKS):
        with contextlib.suppress(ValueError, TypeError, KeyError):
            found.append((int(said.pop("pid")), Reason(**said)))
    return found


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_of_another(error: BaseException) -> bool:
    is_one = isinstance(error, RuntimeError) and any(text in str(error) for text in _LOST_RANK)
    is_one = is_one or type(error).__module__.startswith("torch.distributed")
    return is_one and "out of memory" not in str(error)  # NCCL's own is this device's


def _no_room(error: BaseException) -> tuple[int, str] | None:
    """Number and text of a full disk; torch.save and safetensors raise errors of their own where writing fails."""
    for cause in _chain(error):
        for number, text in _NO_ROOM.items():
            if text in str(cause):
                return number, str(cause).strip()
    return None


def _is_out_of_memory(error: BaseException) -> bool:
    is_one = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return is_one or any(text in str(error) for text in _NO_MEMORY)
