"""Cells on machines that share no disk: checkpoints and results travel through MLflow's artifact store.

Below the artifacts of a cell's run, `transfer/0` and `transfer/1` hold checkpoints in turn and `transfer/result` what a
finished cell left, each with a manifest that is written last and gives the sha256 of every file. A parcel whose
upload was cut short does not match its manifest, and the one before it is taken. Never imports torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from vqbench.atomic import write_bytes_atomically
from vqbench.launch import Store
from vqbench.registry import file_digest
from vqbench.results import CellFolder
from vqbench.server import artifacts_of, connect

T = TypeVar("T")
PATIENCE_SECONDS = 600.0  # that a store may be away before a finished cell is given up
_ROOT, _RESULT, _SLOTS = "transfer", "result", ("0", "1")
_CHECKPOINTS = ("checkpoints/last.pt", "checkpoints/tokenizer.safetensors", "checkpoints/training.json")
_SMALL = ("metrics.jsonl", "log.txt")
_ARRAYS = ("codes.npz", "features.npz", "reconstructions.npz")
_FOUND = ("spec.json", "failure.json", "per_image.parquet", "recon.png", *_ARRAYS, "result.json")
_SHARED = ("reference.npz", "images.npz")
"""Reference features and validation images, which lie beside the cells and are shared by them."""


def scratch(job_folder: Path) -> Path:
    """A folder on this machine's own disk for a cell whose results lie elsewhere."""
    root = Path(tempfile.gettempdir()) / f"vqbench-cells-{os.getuid()}"
    where = hashlib.sha256(str(job_folder).encode()).hexdigest()[:8]
    return root / where / "cells" / job_folder.name


class Courier:
    """Carries one cell's files between a folder and the store. Raises what the store raises when it does not answer."""

    def __init__(self, store: Store, folder: CellFolder) -> None:
        self._repository: Any = artifacts_of(connect(store.tracking_uri), store.tracking_uri, store.run_id)
        self._folder = folder
        self._sent = 0.0  # modification time of the checkpoint that was sent last
        self._serial = 0

    def _path(self, name: str) -> Path:
        shared = (self._folder.reference_features, self._folder.validation_images)
        return dict(zip(_SHARED, shared, strict=True)).get(name, self._folder.path / name)

    def _send(self, slot: str, names: Iterable[str]) -> None:
        target, entries = f"{_ROOT}/{slot}", {}
        with tempfile.TemporaryDirectory() as draft:
            for name in names:
                copy = Path(draft) / name.replace("/", "-")
                try:
                    shutil.copyfile(self._path(name), copy)  # the cell may put a new one in its place meanwhile
                except FileNotFoundError:
                    continue
                entries[name] = {"file": copy.name, "sha256": file_digest(copy)}
                self._repository.log_artifact(str(copy), target)
            manifest = Path(draft) / "manifest.json"
            manifest.write_text(json.dumps({"serial": self._serial, "files": entries}))
            self._repository.log_artifact(str(manifest), target)

    def send_checkpoint(self) -> bool:
        """Send the checkpoint and the curves if there is a newer one than was sent; whether it was sent."""
        try:
            written = self._folder.checkpoint.stat().st_mtime
        except OSError:
            return False
        if written == self._sent:
            return False
        self._serial += 1
        self._send(_SLOTS[self._serial % 2], (*_CHECKPOINTS, *_SMALL))
        self._sent = written
        return True

    def send_result(self) -> None:
        """Send all that a cell which has ended leaves; its checkpoint too, if it can go on."""
        self._send(_RESULT, (*_CHECKPOINTS, *_SMALL, *_SHARED, *_FOUND))

    def _manifest(self, slot: str, into: Path) -> dict[str, Any] | None:
        try:
            path = self._repository.download_artifacts(f"{_ROOT}/{slot}/manifest.json", str(into))
            found: dict[str, Any] = json.loads(Path(path).read_text())
        except Exception:  # each kind of store has an error of its own for what is not there
            return None
        return found

    def _fetch(self, slot: str) -> bool:
        """Bring a parcel into the folder, the result last; False where it is not whole."""
        with tempfile.TemporaryDirectory() as draft:
            manifest = self._manifest(slot, Path(draft))
            if manifest is None:
                return False
            contents = {}
            for name, entry in manifest["files"].items():
                path = self._repository.download_artifacts(f"{_ROOT}/{slot}/{entry['file']}", draft)
                if file_digest(Path(path)) != entry["sha256"]:
                    return False
                contents[name] = Path(path)
            for name, path in contents.items():
                if name not in _SHARED or not self._path(name).is_file():
                    write_bytes_atomically(self._path(name), path.read_bytes())
            self._serial = max(self._serial, int(manifest["serial"]))
        return True

    def fetch_checkpoint(self) -> bool:
        """Bring the newest whole checkpoint into the folder; whether there was one."""
        with tempfile.TemporaryDirectory() as draft:
            manifests = {slot: self._manifest(slot, Path(draft) / slot) for slot in (*_SLOTS, _RESULT)}
        by_age = sorted((slot for slot in manifests if manifests[slot]), key=lambda s: -(manifests[s] or {})["serial"])
        return any(self._fetch(slot) for slot in by_age)

    def fetch_result(self) -> bool:
        """Bring what a finished cell left into the folder; whether it arrived whole."""
        return self._fetch(_RESULT)

    def clear(self) -> None:
        """Parcels that have arrived need not be kept. A store that cannot delete keeps them."""
        with contextlib.suppress(Exception):
            self._repository.delete_artifacts(_ROOT)


def patiently(call: Callable[[], T], seconds: float = PATIENCE_SECONDS) -> T:
    """What `call` returns; while the store is away it is tried again. Raises its error when `seconds` are over."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return call()
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(5)
