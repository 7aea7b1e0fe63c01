"""Weights and images that no clone has: a folder beside the checkout, or that of VQBENCH_SHARED."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from helpers.commands import REPOSITORY

SHARED = Path(os.environ.get("VQBENCH_SHARED") or REPOSITORY.parent / "shared")
SQUEEZE = SHARED / "weights" / "squeezenet1_1_features.pth"
needs_squeeze = pytest.mark.skipif(not SQUEEZE.is_file(), reason=f"{SQUEEZE} is not there")
