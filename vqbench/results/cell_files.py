"""The files of a cell: who needs each, and what then happens where one is gone, cut off or a later version's.

Everything that sends, fetches, clears or measures a cell's files takes their names from the table here. Never imports
torch.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vqbench.machine.lease import LEASE

DONE, FAILED = "done", "failed"
"""The states that a result names."""
SCHEMA = 1
"""Raised when the same spec would no longer give the same numbers, or its file could not be read any more."""
STATUS = "status.json"
SPEC, RESULT, FAILURE, CURVES = "spec.json", "result.json", "failure.json", "metrics.jsonl"
RANKS = "ranks.jsonl"
CHECKPOINTS = "checkpoints"
CHECKPOINT, WEIGHTS = f"{CHECKPOINTS}/last.pt", f"{CHECKPOINTS}/tokenizer.safetensors"
TRAINING = f"{CHECKPOINTS}/training.json"
TRACKING, PER_IMAGE, LOG, MLFLOW_RUN = "tracking.json", "per_image.parquet", "log.txt", "mlflow.json"
CODES, FEATURES, RECONSTRUCTIONS, GRID = "codes.npz", "features.npz", "reconstructions.npz", "recon.png"


@dataclass(frozen=True)
class CellFile:
    """One file of a cell's folder."""

    name: str
    """Path below the folder."""
    mended: Literal["written", "evaluated", "trained", "begun", "rerun", ""]
    """What a run does that meets it gone or not whole. written: from the plan, nothing is trained. evaluated: the cell
    is, from its weights, or trained again without them. trained: the cell is, as soon as its weights are needed. begun:
    training begins at image 0. rerun: nothing, `--rerun` brings it back. Empty: nothing needs it."""
    without: str = ""
    """What a report says of a finished cell where it is gone or not whole; empty where it says nothing."""
    by_training: bool = False
    """Whether it is thrown away with what is trained."""
    of_attempt: bool = False
    """Whether the next attempt begins without it."""
    parcel: Literal["checkpoint", "result", ""] = ""
    """The parcels it travels in where machines share no disk: a checkpoint's and a result's, or a result's alone."""
    copied: Literal["always", "done", "only sent", ""] = ""
    """Whether MLflow gets a copy, of failed cells too or of finished ones, and `fetch` brings it back."""
    by_image: bool = False
    """Whether it grows with each validation image."""
    in_copy: bool = False
    """Whether the copy that `report --format cells` makes has it: small, and enough for every table and test."""
    kept_by: tuple[str, ...] = ()
    """The tracks whose finished cells, of whatever version, must have it; empty where earlier versions kept none."""
    of_extractor: str = ""
    """Where only those must that have a score over features: the extractor of these."""


FILES = (
    CellFile(SPEC, "written", parcel="result", copied="always", in_copy=True),
    CellFile(CHECKPOINT, "begun", by_training=True, parcel="checkpoint"),
    CellFile(WEIGHTS, "trained", by_training=True, parcel="checkpoint"),
    CellFile(TRAINING, "trained", by_training=True, parcel="checkpoint"),
    CellFile(CURVES, "rerun", by_training=True, parcel="checkpoint", copied="always", in_copy=True),
    CellFile(LOG, "", parcel="checkpoint", copied="always"),
    CellFile(FAILURE, "", of_attempt=True, parcel="result", copied="done"),
    CellFile(RANKS, "", of_attempt=True, parcel="result"),
    CellFile(PER_IMAGE, "rerun", "its images take no part in tests",
             parcel="result", copied="done", by_image=True, in_copy=True, kept_by=("images", "features")),
    CellFile(GRID, "rerun", "it has no small picture", parcel="result", copied="done", kept_by=("images",)),
    CellFile(CODES, "rerun", "its codes take no part in tests and figures",
             parcel="result", copied="done", by_image=True, in_copy=True, kept_by=("images", "features")),
    CellFile("codes.png", "", copied="only sent"),
    CellFile(FEATURES, "rerun", "its features take no part in tests",
             parcel="result", copied="done", by_image=True, kept_by=("images",), of_extractor="inception"),
    CellFile(RECONSTRUCTIONS, "rerun", "it has no reconstructions to show", parcel="result", copied="done"),
    CellFile(STATUS, "", of_attempt=True),
    CellFile("plugin.py", "written"),
    CellFile("plugin.zip", "written"),
    CellFile(TRACKING, ""),
    CellFile(MLFLOW_RUN, ""),
    CellFile("transfer.json", ""),
    CellFile(LEASE, ""),
    CellFile("lock", ""),
    CellFile(RESULT, "evaluated", parcel="result", copied="always", in_copy=True),
)  # fmt: skip
"""The spec first, which says where what cells share belongs, and the result last: with it a cell is finished."""


def track_name(spec: Mapping[str, Any]) -> str:
    """The track of a cell, by its spec; those of earlier versions name none and are of images."""
    return str(spec["recipe"].get("track", "images"))


def names(**wanted: Any) -> tuple[str, ...]:
    """The files of which all this is so, in the table's order: names(parcel="checkpoint")."""
    return tuple(file.name for file in FILES if all(getattr(file, key) == value for key, value in wanted.items()))


FAILURE_FILES = names(copied="always")
"""Files of a cell that failed of which MLflow gets a copy."""
RESULT_FILES = (*names(copied="done"), *FAILURE_FILES)
"""The same of a finished cell: what a report is made of. `fetch` brings them back."""
ARTIFACTS = (*RESULT_FILES, *names(copied="only sent"))
"""All that MLflow gets a copy of, beside the weights."""


def is_whole(path: Path) -> bool:
    """Whether a file is there with its end, by what its name says it is; looks at its ends alone, so it is quick."""
    try:
        return _CHECKS.get(path.suffix, Path.is_file)(path)
    except (OSError, ValueError, struct.error):
        return False


def _is_object(path: Path) -> bool:
    return isinstance(json.loads(path.read_text(encoding="utf-8")), dict)


def _is_between(first: bytes, last: bytes, path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(len(first))
        file.seek(-len(last), 2)
        return head == first and file.read() == last


def _is_safetensors(path: Path) -> bool:
    """Its header says how long it is."""
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > size:
            return False
        header = json.loads(file.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return bool(size == 8 + length + max(ends, default=0))


_CHECKS = {
    ".json": _is_object,
    ".npz": zipfile.is_zipfile,
    ".pt": zipfile.is_zipfile,
    ".zip": zipfile.is_zipfile,
    ".parquet": lambda path: _is_between(b"PAR1", b"PAR1", path),
    ".png": lambda path: _is_between(b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82", path),
    ".safetensors": _is_safetensors,
}


def later_version(file: object, content: Mapping[str, Any]) -> str:
    """A sentence for what a later vqbench wrote; empty for what this one can read."""
    schema = content.get("schema")
    if not isinstance(schema, int) or schema <= SCHEMA:
        return ""
    return f"{file} was written by a newer vqbench (schema {schema}; this one knows {SCHEMA})"
