"""Why a cell failed, as a person would say it."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass

from vqbench.errors import VQBenchError, remedy

_NO_ROOM = {number: os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)}
_NO_MEMORY = ("can't allocate memory", os.strerror(errno.ENOMEM))
_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)


@dataclass(frozen=True)
class Reason:
    """What the result of a failed cell says."""

    kind: str
    message: str
    hint: str


def reason_of(error: BaseException, stage: str, log: object) -> Reason:
    """What went wrong in a stage of a cell; `log` is the file that its traceback is in."""
    if isinstance(error, VQBenchError):
        return Reason(type(error).__name__, error.what, error.hint)
    see, text = f"the traceback is in {log}", str(error).strip()
    if (no_room := _no_room(error)) is not None:
        mended = remedy(OSError(no_room[0], ""))
        hint = f"{mended}, then give the command again: it goes on from what was kept; {see}"
        return Reason("DiskFullError", f"no room on the disk during {stage}: {no_room[1]}", hint)
    if _is_out_of_memory(error):
        said = text if "out of memory" in text else f"out of memory during {stage}" + (f": {text}" if text else "")
        return Reason("OutOfMemoryError", said, f"smaller batches need less: --set batch_size=…; {see}")
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


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


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
