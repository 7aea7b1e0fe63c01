"""Files of finished cells that are cut off or gone: reports do without them, and say so."""

from __future__ import annotations

from vqbench.metrics.definitions import DEFINITIONS, features_by
from vqbench.reports.experiment import Experiment, StoredCell
from vqbench.results.cell_files import CODES, FILES, LOG, CellFile, is_whole, track_name

_AGAIN = "its command with --rerun makes it again"


def damage(experiment: Experiment) -> list[str]:
    """A sentence for each file that is not whole; looks at their ends alone, so it is quick."""
    cells = [cell for group in experiment.groups for cell in group.cells]
    said = []
    for file in (file for file in FILES if file.without):
        lost = [cell for cell in cells if not is_whole(cell.folder.path / file.name)]
        cut = [cell for cell in lost if (cell.folder.path / file.name).exists()]
        said += [f"{cell.folder.name}: {file.name} is not whole; {file.without} ({_AGAIN})" for cell in cut]
        gone = [cell for cell in lost if cell not in cut and _has_kept(cell, file)]
        if gone:
            more = f" and in {len(gone) - 1} more" if len(gone) > 1 else ""
            said.append(f"{gone[0].folder.name}: {file.name} is gone{more}; {file.without} ({_AGAIN})")
    shared = {path for cell in cells for path in (cell.folder.reference_features, cell.folder.validation_images)}
    said += [
        f"{path.name} is not whole, and is left out; the next cell that is evaluated writes it again"
        for path in sorted(shared)
        if path.exists() and not is_whole(path)
    ]
    return said


def _has_kept(cell: StoredCell, file: CellFile) -> bool:
    """Whether a finished cell must have had the file; without a log it is no whole copy of one."""
    if cell.failed or not (cell.folder.path / LOG).exists():
        return False
    if file.name == CODES and cell.spec.get("pretrained", {"codebook_size": 0}).get("codebook_size") is None:
        return False
    known = (DEFINITIONS[name] for name in cell.result["scores"] if name in DEFINITIONS)
    of_scores = not file.of_extractor or any(features_by(metric) == file.of_extractor for metric in known)
    return of_scores and track_name(cell.spec) in file.kept_by
