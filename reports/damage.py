"""Files of finished cells that were cut off: tests do without them, and a report says so."""

from __future__ import annotations

import zipfile
from pathlib import Path

from vqbench.reports.experiment import Experiment

_WHAT_IS_LOST = {
    "per_image.parquet": "its images take no part in tests",
    "codes.npz": "its codes take no part in tests and figures",
    "features.npz": "its features take no part in tests",
}


def damage(experiment: Experiment) -> list[str]:
    """A sentence for each file that is there and not whole; looks at their ends alone, so it is quick."""
    return [
        f"{cell.folder.name}: {name} is not whole; {lost}"
        for group in experiment.groups
        for cell in group.cells
        for name, lost in _WHAT_IS_LOST.items()
        if not _is_whole(cell.folder.path / name)
    ]


def _is_whole(path: Path) -> bool:
    """Whether a parquet or zip file has its end, or is not there at all."""
    try:
        if path.suffix == ".npz":
            return zipfile.is_zipfile(path) or not path.is_file()
        with path.open("rb") as file:
            head = file.read(4)
            file.seek(-min(4, path.stat().st_size), 2)
            return head == file.read(4) == b"PAR1"
    except FileNotFoundError:
        return True
    except OSError:
        return False
