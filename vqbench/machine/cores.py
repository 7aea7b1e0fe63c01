"""Processor cores: those that a process may use, and a cell's share of them."""

from __future__ import annotations

import os

CORES_VARIABLE = "VQBENCH_CORES"
"""The cores that a cell's processes have, where others run beside it."""


def cores() -> int:
    """Processor cores that this process may use: a job of Slurm or a container often has not all of the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cores_of_a_cell() -> int:
    """Those of them that are this cell's: as many as whoever started it says, or all."""
    told = os.environ.get(CORES_VARIABLE, "")
    return min(int(told), cores()) if told.isdigit() and int(told) else cores()
