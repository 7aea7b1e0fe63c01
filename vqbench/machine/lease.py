"""Who may write a cell's folder: one process at a time, on one machine or on several that share a disk.

A lock of the operating system (flock) settles it among the processes of one machine, and goes with its process. Not
every shared disk passes locks on to other machines, so the holder also keeps a lease: a file that says who it is and
that it touches every few seconds. A lease of another machine that was not touched for long is taken over.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vqbench.errors import VQBenchError
from vqbench.machine.json_files import read_json

LEASE = "lease.json"
BEAT_SECONDS = 5.0
STALE_SECONDS = 60.0  # twelve beats: a machine that swaps or a disk that stalls may miss a few
EXIT_BUSY = 75  # a cell's process that finds its folder taken, or loses it; sysexits.h calls it EX_TEMPFAIL


class CellBusyError(VQBenchError):
    """Two processes want one cell."""


def this_machine() -> str:
    """Name of this machine and of the time since it started: what a lock of the operating system reaches."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        boot = ""
    return f"{socket.gethostname()} {boot}".strip()


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold `folder`, which is created. Raises CellBusyError if another process, here or elsewhere, holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _busy(folder, _read(folder / LEASE)) from None
        except OSError:  # a disk that knows no locks: the lease alone must do
            pass
        lease = Lease(folder)
        try:
            yield
        finally:
            lease.release()


def _busy(folder: Path, holder: dict[str, Any] | None) -> CellBusyError:
    where = f" on {str(holder['machine']).split()[0]}, process {holder['pid']}" if holder else ""
    return CellBusyError(f"{folder.name} is being written by another process{where}", "wait until it has ended")


def _read(path: Path) -> dict[str, Any] | None:
    """Who holds a lease; None where it does not say."""
    holder = read_json(path) or {}
    return holder if str(holder.get("machine") or "").strip() and "pid" in holder else None


class Lease:
    """The file LEASE in a folder: taken at once, touched by a thread, given back by `release`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / LEASE
        self.token = uuid.uuid4().hex
        self._clear_stale()
        self._take()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def _clear_stale(self) -> None:
        if not self.path.exists():
            return
        # we hold the lock: another process of this machine that left a lease is gone
        holder = _read(self.path)
        if (holder is None or holder["machine"] != this_machine()) and self._age() < STALE_SECONDS:
            raise _busy(self.folder, holder)
        cleared = self.folder / f".lease-{self.token}"
        try:
            os.rename(self.path, cleared)  # of two machines, one succeeds
        except FileNotFoundError:
            raise _busy(self.folder, None) from None
        cleared.unlink()

    def _age(self) -> float:
        """Seconds since the lease was touched, both times told by the disk's own clock."""
        probe = self.folder / f".clock-{self.token}"
        probe.touch()
        try:
            return probe.stat().st_mtime - self.path.stat().st_mtime
        except FileNotFoundError:
            return STALE_SECONDS
        finally:
            probe.unlink()

    def _take(self) -> None:
        try:
            with self.path.open("x", encoding="utf-8") as file:  # fails where there is one
                try:
                    file.write(json.dumps({"token": self.token, "machine": this_machine(), "pid": os.getpid()}))
                    file.flush()
                except OSError:  # no room: an empty lease would keep everybody waiting until it is stale
                    self.path.unlink()
                    raise
        except FileExistsError:
            raise _busy(self.folder, _read(self.path)) from None

    def is_ours(self) -> bool:
        """Whether nobody has taken the folder over. A disk that does not answer leaves it ours."""
        try:
            holder = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return False
        except (OSError, ValueError):
            return True
        return not isinstance(holder, dict) or bool(holder.get("token", self.token) == self.token)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            if not self.is_ours() and not self._ended.is_set():
                print(f"{time.strftime('%H:%M:%S')} another machine has taken this folder over; stopping", flush=True)
                os._exit(EXIT_BUSY)
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def release(self) -> None:
        """Give the folder back."""
        self._ended.set()
        self._thread.join()
        if self.is_ours():
            with contextlib.suppress(OSError):
                self.path.unlink()
