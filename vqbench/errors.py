"""What goes wrong, said to a person: one line that says what, one that says what to do."""

from __future__ import annotations

import copyreg
import errno
import os
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from vqbench.wording import masked_text


class VQBenchError(Exception):
    """An error with a way out.

    `what` says what is wrong and what was expected, `hint` the command or the change that mends it.
    The command line prints the two as `error:` and `hint:` and exits with `exit_code`. Neither keeps the secrets of an
    address.
    """

    exit_code = 1

    def __init__(self, what: str, hint: str) -> None:
        self.what, self.hint = masked_text(what), masked_text(hint)
        super().__init__(self.what)

    def __reduce__(self) -> tuple[Any, ...]:
        """From process to process as it is, whatever a subclass is made with."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class UsageError(VQBenchError):
    """The command as given cannot be carried out; nothing has been trained or written."""

    exit_code = 2


class ArtifactError(UsageError):
    """What a method is built around cannot be had as its settings ask for it."""


def require_utf8(name: str | os.PathLike[str]) -> None:
    """Raise UsageError for a name that is not UTF-8: results are JSON, which could not hold it."""
    text = os.fspath(name)
    try:
        text.encode()
    except UnicodeEncodeError:
        shown = text.encode(errors="backslashreplace").decode()
        raise UsageError(f"{shown}: the name is not UTF-8", "rename the file or the folder") from None


def unknown(kind: str, name: str, known: Iterable[str], hint: str) -> UsageError:
    """The error for a name that nothing is registered under, with the nearest known names."""
    choices = sorted(known)
    near = get_close_matches(name.lower(), choices, n=2, cutoff=0.5)
    question = f"; did you mean {' or '.join(near)}?" if near else f"; known: {', '.join(choices) or 'none'}"
    return UsageError(f"unknown {kind} '{name}'{question}", hint)


_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "remove some of your files there: your quota is used up",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.EROFS: "mount that disk for writing",
    errno.ENOTDIR: "remove the file that is where a folder should be",
    errno.EEXIST: "remove the file that is where a folder should be",
    errno.ENAMETOOLONG: "use shorter names",
}


def remedy(error: OSError) -> str:
    """What mends a file that could not be written, by the number of the error: the beginning of a hint."""
    if error.errno in (errno.EACCES, errno.EPERM):
        return _permission_remedy(error.filename)
    return _REMEDIES.get(error.errno or 0, "look at that disk")


def _permission_remedy(name: object) -> str:
    for path in (Path(name), *Path(name).parents) if isinstance(name, str) else ():
        try:
            owner = path.stat().st_uid
        except OSError:
            continue
        if owner in (os.geteuid(), 0):
            return f"mend the permissions of {path}"
        try:
            return f"have {path.owner()}, who owns {path}, give you the permission"
        except KeyError:  # a number without a name
            return f"have user {owner}, who owns {path}, give you the permission"
    return "mend the permissions there"
