"""Standard output and error that take whatever a command says: no sign, no full disk and no closed end stops it."""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import sys
from typing import BinaryIO, TextIO

from vqbench.wording import masked_text

_SUBSTITUTES = {
    "↓": "v", "↑": "^", "→": "->", "±": "+-", "×": "x", "·": ".", "−": "-", "–": "-", "—": "-", "…": "...", "≥": ">=",
    "≤": "<=", "≠": "!=", "✓": "y", "✗": "n", "Δ": "d", "†": "+", "“": '"', "”": '"', "‘": "'", "’": "'", "²": "^2",
    "³": "^3", "━": "-", "╸": "-", "╺": "-",
}  # fmt: skip
"""What is written where an encoding lacks a sign of ours; all plain ASCII, which every encoding of a terminal has."""
_READABLE, _AND_BYTES = "vqbench.readable", "vqbench.readable.bytes"
"""Names of the two ways in which a sign that an encoding lacks is written; the second gives odd bytes of a file's name
back as they were, for a stream that did so before."""
LOG_ENCODING = {"PYTHONIOENCODING": "utf-8:backslashreplace"}
"""For a process whose output goes to a file of ours: it is UTF-8, whatever the terminal is."""


def _substitute(error: UnicodeError) -> tuple[str, int]:
    """Signs in ASCII; one that has no substitute as Python escapes it, so that no name is taken for another."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    return "".join(_SUBSTITUTES.get(s) or s.encode("ascii", "backslashreplace").decode() for s in signs), error.end


def _substitute_or_bytes(error: UnicodeError) -> tuple[str | bytes, int]:
    if isinstance(error, UnicodeEncodeError) and 0xDC80 <= ord(error.object[error.start]) <= 0xDCFF:
        return bytes([ord(error.object[error.start]) - 0xDC00]), error.start + 1
    if isinstance(error, UnicodeEncodeError):
        error.end = error.start + 1
    return _substitute(error)


codecs.register_error(_READABLE, _substitute)
codecs.register_error(_AND_BYTES, _substitute_or_bytes)


def readable(text: str, encoding: str) -> str:
    """The text as a stream of this encoding shows it: what a table is measured by."""
    return text.encode(encoding, _READABLE).decode(encoding)


class _Outlet(io.FileIO):
    """One end of standard output or error that never raises: what is lost is remembered, and the command goes on."""

    def __init__(self, number: int, is_closed: bool) -> None:
        super().__init__(number, "w", closefd=False)
        self.problem: OSError | None = None
        self._is_closed = is_closed

    def write(self, data: object, /) -> int:
        """Write all of it, however long a pipe that does not wait takes."""
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        done = 0
        while done < len(view) and self.problem is None:
            try:
                if self._is_closed:
                    raise OSError(errno.EBADF, "it is closed")
                written = super().write(view[done:])
            except OSError as error:
                self.problem = error
                break
            if written is None:
                select.select([], [self], [])
            done += written or 0
        return len(view)


class _Text(io.TextIOWrapper):
    """Text for an outlet; hides its buffer, to which click would write a help page past an ASCII stream, in UTF-8."""

    def __init__(self, outlet: _Outlet, old: TextIO | None) -> None:
        self.outlet = outlet
        kept = getattr(old, "errors", None) == "surrogateescape"
        super().__init__(
            io.BufferedWriter(outlet),
            encoding=old.encoding if old is not None else "utf-8",
            errors=_AND_BYTES if kept else _READABLE,
            line_buffering=bool(getattr(old, "line_buffering", True)),
            write_through=bool(getattr(old, "write_through", False)),
        )

    @property
    def buffer(self) -> BinaryIO:
        """None of it."""
        raise AttributeError("buffer")


def open_standard() -> None:
    """Put streams that never fail in the place of standard output and error. For the entry of a command alone.

    A number below 3 that was closed is opened on nothing: the next file, a database say, would get it otherwise, and
    with it all that a library or another process prints there.
    """
    closed = []
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            closed.append(number)
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for number, name in ((1, "stdout"), (2, "stderr")):
        old: TextIO | None = getattr(sys, name)
        if old is None or old is getattr(sys, f"__{name}__"):  # else somebody has put another in its place
            setattr(sys, name, _Text(_Outlet(number, number in closed), old))


def lost() -> OSError | None:
    """Why not all that was printed to standard output arrived; None if it did. Flushes it."""
    sys.stdout.flush()
    return sys.stdout.outlet.problem if isinstance(sys.stdout, _Text) else None


def say(text: str) -> None:
    """A line on standard error, without the secrets of an address; nothing breaks where it cannot be shown."""
    stream = sys.stderr
    if stream is None:  # print would take standard output in its place
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        print(readable(masked_text(text), encoding), file=stream, flush=True)
    except (OSError, ValueError):  # a full disk; a stream that somebody has closed
        return
