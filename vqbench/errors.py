"""What goes wrong, said to a person: one line that says what, one that says what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class VQBenchError(Exception):
    """An error with a way out.

    `what` says what is wrong and what was expected, `hint` the command or the change that mends it.
    The command line prints the two as `error:` and `hint:` and exits with `exit_code`.
    """

    exit_code = 1

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.what, self.hint)


class UsageError(VQBenchError):
    """The command as given cannot be carried out; nothing has been trained or written."""

    exit_code = 2


def unknown(kind: str, name: str, known: Iterable[str], hint: str) -> UsageError:
    """The error for a name that nothing is registered under, with the nearest known names."""
    choices = sorted(known)
    near = get_close_matches(name.lower(), choices, n=2, cutoff=0.5)
    question = f"; did you mean {' or '.join(near)}?" if near else f"; known: {', '.join(choices) or 'none'}"
    return UsageError(f"unknown {kind} '{name}'{question}", hint)
