"""Libraries that read one dataset, and are no part of what vqbench always needs."""

from __future__ import annotations

import importlib
from typing import Any

from vqbench.errors import UsageError


def required_library(module: str, dataset: str, extra: str) -> Any:
    """The module that reads a dataset. Raises UsageError with the command that installs it where it is not there."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        what = f"dataset '{dataset}' is read with {module}, which is not installed"
        raise UsageError(what, f"pip install 'vqbench[{extra}]'") from None
