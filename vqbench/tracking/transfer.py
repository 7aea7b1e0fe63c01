"""Cells on machines that share no disk: checkpoints and results travel through MLflow's artifact store.

Below the artifacts of a cell's run, `transfer/0` and `transfer/1` hold checkpoints in turn and `transfer/result` what a
finished cell left, each with a manifest that is written last and gives the sha256 of every file. A parcel whose
upload was cut short does not match its manifest, and the one before it is taken. Parcels are numbered, so that the
newest is known also where a store keeps what was to be deleted. Never imports torch.
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

from vqbench.cell.process import Store
from vqbench.machine.atomic import write_bytes_atomically
from vqbench.registry import file_digest
from vqbench.results.cell_files import FILES, is_whole, names
from vqbench.results.cell_folder import CellFolder
from vqbench.tracking.server import artifacts_of, connect

T = TypeVar("T")
PATIENCE_SECONDS = 600.0  # that a store may be away before a finished cell is given up
AGAIN_SECONDS = 5.0  # before a store that was away is asked again
AWAY = "transfer.json"
"""In the folder of a cell whose files may be in the store, and not here: the run that they belong to."""
RESULT = "result"
_ROOT, _SLOTS = "transfer", ("0", "1")
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
        self.serial = 0
        """Number of the newest parcel that was sent, fetched or seen."""

    def _path(self, name: str) -> Path:
        if name not in _SHARED:
            return self._folder.path / name
        return self._folder.reference_features if name == _SHARED[0] else self._folder.validation_images

    def _send(self, slot: str, serial: int, names: Iterable[str]) -> None:
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
            manifest.write_text(json.dumps({"serial": serial, "files": entries}), encoding="utf-8")
            self._repository.log_artifact(str(manifest), target)
        self.serial = serial  # not before: what is tried again goes to the same place, and the other stays whole

    def send_checkpoint(self) -> bool:
        """Send the checkpoint and the curves if there is a newer one than was sent; whether it was sent."""
        try:
            written = self._folder.checkpoint.stat().st_mtime
        except OSError:
            return False
        if written == self._sent:
            return False
        serial = self.serial + 1
        self._send(_SLOTS[serial % 2], serial, names(parcel="checkpoint"))
        self._sent = written
        return True

    def send_result(self) -> None:
        """Send all that a cell which has ended leaves; its checkpoint too, if it can go on."""
        spec, *others = (file.name for file in FILES if file.parcel)
        # the spec first: it says where what is shared belongs
        self._send(RESULT, self.serial + 1, (spec, *_SHARED, *others))

    def _files(self, slot: str) -> set[str]:
        """Names of a parcel's files. Each kind of store has an error of its own for what is not there; all can list."""
        return {entry.path.rpartition("/")[2] for entry in self._repository.list_artifacts(f"{_ROOT}/{slot}")}

    def _manifest(self, slot: str) -> dict[str, Any] | None:
        """What a parcel holds; None where there is none, or its manifest is cut short."""
        if "manifest.json" not in self._files(slot):
            return None
        with tempfile.TemporaryDirectory() as draft:
            path = self._repository.download_artifacts(f"{_ROOT}/{slot}/manifest.json", draft)
            try:
                found: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
            except ValueError:
                return None
        return found

    def _fetch(self, slot: str) -> bool:
        """Bring a parcel into the folder, the result last; False where it is not whole."""
        manifest, there = self._manifest(slot), self._files(slot)
        if manifest is None or not {entry["file"] for entry in manifest["files"].values()} <= there:
            return False
        with tempfile.TemporaryDirectory() as draft:
            contents = {}
            for name, entry in manifest["files"].items():
                path = self._repository.download_artifacts(f"{_ROOT}/{slot}/{entry['file']}", draft)
                if file_digest(Path(path)) != entry["sha256"]:
                    return False
                contents[name] = Path(path)
            for name, path in contents.items():
                if name not in _SHARED or not is_whole(self._path(name)):
                    write_bytes_atomically(self._path(name), path.read_bytes())
            self.serial = max(self.serial, int(manifest["serial"]))
        return True

    def _newest_first(self) -> list[str]:
        serials = {slot: manifest["serial"] for slot in (*_SLOTS, RESULT) if (manifest := self._manifest(slot))}
        self.serial = max(self.serial, *serials.values(), 0)
        return sorted(serials, key=lambda slot: -serials[slot])

    def newest(self) -> str:
        """The newest parcel in the store: RESULT, another one with a checkpoint, or "" where there is none."""
        return next(iter(self._newest_first()), "")

    def fetch_checkpoint(self) -> bool:
        """Bring the newest whole checkpoint into the folder; whether there was one."""
        return any(self._fetch(slot) for slot in self._newest_first())

    def fetch_result(self) -> bool:
        """Bring what a finished cell left into the folder; False where it is not there, or not whole."""
        return self._fetch(RESULT)

    def clear(self) -> None:
        """Parcels that have arrived need not be kept. A store that cannot delete keeps them."""
        with contextlib.suppress(Exception):
            self._repository.delete_artifacts(_ROOT)


def patiently(
    call: Callable[[], T], seconds: float | None = None, waiting: Callable[[Exception], None] = lambda _: None
) -> T:
    """What `call` returns; while the store is away it is tried again, and `waiting` hears once why.

    Raises its error when `seconds` are over, by default PATIENCE_SECONDS.
    """
    deadline, heard = time.monotonic() + (PATIENCE_SECONDS if seconds is None else seconds), False
    while True:
        try:
            return call()
        except Exception as error:
            if time.monotonic() > deadline:
                raise
            if not heard:
                waiting(error)
                heard = True
            time.sleep(AGAIN_SECONDS)
