"""A storage that does not answer is asked again for a while; what remains is an error that says how to go on."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError

from vqbench.errors import VQBenchError
from vqbench.wording import masked, reason_of_library

PATIENCE_SECONDS = 60.0
"""A database that is started anew is back by then."""
_PAUSE_SECONDS = 1.0


class StorageError(VQBenchError):
    """Where the trials of a sweep are kept has not answered for long."""


class PatientStorage:
    """Has what an Optuna storage has. Raises StorageError for what `PATIENCE_SECONDS` of trying have not mended."""

    def __init__(self, inner: Any, where: str, hint: str, say: Callable[[str], None]) -> None:
        self._inner, self._address, self._hint, self._say = inner, where, hint, say
        self._where = masked(where)
        self._given_up = False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_inner":  # asked of what is being copied, and is not filled yet
            raise AttributeError(name)
        found = getattr(self._inner, name)
        return (lambda *args, **more: self._ask(name, found, args, more)) if callable(found) else found

    def _ask(self, name: str, call: Callable[..., Any], args: tuple[Any, ...], more: dict[str, Any]) -> Any:
        until = None
        while True:
            try:
                answer = call(*args, **more)
            except UpdateFinishedTrialError:
                if until is not None and name == "set_trial_state_values":  # it was told, and only the answer was lost
                    return True
                raise
            except (StorageInternalError, OSError) as error:
                reason = reason_of_library(error.__cause__ or error, self._address)
                if until is None:  # who cleans up after it was given up asks once
                    until = time.monotonic() + (0 if self._given_up else PATIENCE_SECONDS)
                    if not self._given_up:
                        self._say(f"{self._where} does not answer ({reason}); trying for {PATIENCE_SECONDS:.0f} s")
                if time.monotonic() >= until:
                    self._given_up = True
                    raise StorageError(f"the trials cannot be kept in {self._where}: {reason}", self._hint) from error
                time.sleep(min(_PAUSE_SECONDS, max(0.0, until - time.monotonic())))
            else:
                self._given_up = False
                # nobody else takes the trials of this sweep: it was taken the first time, and only the answer was lost
                was_taken = until is not None and name == "set_trial_state_values" and answer is False
                return True if was_taken else answer
