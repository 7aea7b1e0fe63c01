"""A journal file of Optuna's, to which a disk that fills and a process that dies do no harm.

Optuna appends to whatever the file ends in: after half a record the next one stands on the same line, and nothing reads
the file again. Here a record is in the file whole or not at all, and half of one that another program left is dropped
before the next is written.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from vqbench.errors import UsageError

_BEGINS = b'{"op_code":'
"""Of each record, so that half of one is told from a file that is no journal."""
_LOOK_BACK = 1 << 16


class Journal(JournalFileBackend):
    """Reads and appends records, a line each; `say` hears what was dropped.

    Raises UsageError, with the file as it was, where a line that is not the last one cannot be read, or where the last
    one was never a record.
    """

    def __init__(self, file: str, say: Callable[[str], None] = lambda _: None) -> None:
        self._file, self._say, self._writing = Path(file), say, JournalFileSymlinkLock(file)
        _refuse_damage(self._file)
        super().__init__(file, self._writing)

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """The records from a number on, without one that is still being written."""
        try:
            yield from super().read_logs(log_number_from)
        except ValueError:  # damaged since it was opened
            _refuse_damage(self._file)
            raise

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write records: all of them, or none where this raises OSError."""
        content = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        self._writing.acquire()  # nobody else writes meanwhile, so what is not whole will never be
        try:
            with self._file.open("r+b", buffering=0) as file:
                whole = self._drop_half_a_record(file)
                try:
                    file.seek(whole)
                    rest = memoryview(content)
                    while rest:
                        rest = rest[file.write(rest) :]
                    os.fsync(file.fileno())
                except BaseException:  # no room for all of it
                    with contextlib.suppress(OSError):
                        file.truncate(whole)
                    raise
        finally:
            self._writing.release()

    def _drop_half_a_record(self, file: Any) -> int:
        """Cut the file where its last whole record ends; returns its length."""
        size = file.seek(0, os.SEEK_END)
        last, back = b"", 0
        while back < size and b"\n" not in last[:-1]:
            back = min(size, back + _LOOK_BACK)
            file.seek(size - back)
            last = file.read(back)
        start = last.rfind(b"\n", 0, max(0, len(last) - 1)) + 1
        line = last[start:]
        if not line or _is_record(line):
            return int(size)
        if not _was_a_record(line):
            _refuse_damage(self._file)
        file.truncate(size - len(line))
        self._say(f"{self._file}: dropped half a record at its end ({len(line)} bytes), which was never written whole")
        return int(size - len(line))


def _is_record(line: bytes) -> bool:
    """Whether a line is whole: Optuna reads none without its end."""
    try:
        record = json.loads(line)
    except ValueError:
        return False
    return line.endswith(b"\n") and isinstance(record, dict) and isinstance(record.get("op_code"), int)


def _was_a_record(line: bytes) -> bool:
    """Whether a line that is not whole is the beginning of one, or what a power cut leaves in its place."""
    return line.startswith(_BEGINS) or _BEGINS.startswith(line) or not line.strip(b"\0\n")


def _refuse_damage(path: Path) -> None:
    """Raise UsageError where not all lines but the last are records, and the last is not one or half of one."""
    if not path.exists():
        return
    with path.open("rb") as file:
        lines = enumerate(file, start=1)
        bad, bad_line = next(((number, line) for number, line in lines if not _is_record(line)), (0, b""))
        is_last = next(lines, None) is None
    if not bad or (is_last and _was_a_record(bad_line)):
        return
    if bad == 1 and not bad_line.startswith(_BEGINS):
        raise UsageError(
            f"--storage {path} is not a journal of a sweep: its first line is no record",
            "give the path of a new file, or of the journal that the sweep was begun with",
        )
    there, kept = shlex.quote(str(path)), shlex.quote(f"{path}.whole")
    raise UsageError(
        f"line {bad} of {path} is damaged, and others follow it; the file was left as it is",
        f"bring back a copy; or keep what stands before it: head -n {bad - 1} {there} > {kept} && mv {kept} {there}; "
        "what was told after it is drawn again, and what is trained is not trained again",
    )
