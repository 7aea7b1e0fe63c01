"""Processes that make shards beside one another: `python -m vqbench.data.workers`, told of its work on stdin.

Each claims shards as processes of other machines do. It says on stdout, a line of JSON at a time, how far it is; it
ends when whoever started it has ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import selectors
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import IO, Any

from vqbench.data.decode import ImageFileError
from vqbench.data.filling import Filling
from vqbench.data.shards import Told, fill, read_marker
from vqbench.errors import UsageError, VQBenchError

_SAY_SECONDS = 0.5
_LOOK_SECONDS = 2.0  # between two looks at what other machines have made


def fill_by_processes(filling: Filling, told: Told, processes: int, plugin: tuple[str, Path] | None) -> None:
    """`shards.fill` by processes of this machine; `plugin` is the name and the file of a dataset that they import.

    Raises OSError, and UsageError for images that cannot be passed on and for a process that was killed.
    """
    try:
        job = pickle.dumps(filling)
    except Exception as error:  # whatever a plugin's images hold
        what = f"the images cannot be passed on to other processes: {type(error).__name__}: {error}"
        raise UsageError(what, "leave --workers out, or make them images that can be pickled") from None
    running = [_started(k, filling.layout.shards * k // processes, job, plugin) for k in range(processes)]
    try:
        ended = _listen(running, filling, told)
        if ended and (lost := [process.returncode for process in running if process.wait()]):
            what = f"a process that decodes images has ended by itself (exit code {lost[0]})"
            raise UsageError(what, "give the command again: it goes on where this one ended; fewer --workers take "
                                   "less memory")  # fmt: skip
    finally:
        for process in running:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    pipe.close()  # type: ignore[union-attr]


def _started(number: int, first: int, job: bytes, plugin: tuple[str, Path] | None) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, str(first)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # its exit code tells
        pickle.dump((sys.path, plugin, job), process.stdin)
        process.stdin.flush()
    return process


def _listen(running: list[subprocess.Popen[bytes]], filling: Filling, told: Told) -> bool:
    """Pass on what the processes say until all have ended; False where that need not be awaited."""
    looked = time.monotonic()
    with selectors.DefaultSelector() as waiting:
        for process in running:
            assert process.stdout is not None
            waiting.register(process.stdout, selectors.EVENT_READ)
        while waiting.get_map():
            for key, _ in waiting.select(_SAY_SECONDS):
                pipe: IO[bytes] = key.fileobj  # type: ignore[assignment]
                line = pipe.readline()  # a line is written at once, so the rest of one is not long in coming
                if not line:
                    waiting.unregister(pipe)
                elif _is_last(json.loads(line), told):
                    return False
            if time.monotonic() - looked > _LOOK_SECONDS:
                looked = time.monotonic()
                for k in range(filling.layout.shards):
                    if read_marker(filling.folder, filling.layout, k) is not None:
                        told.done(k, len(filling.layout.range(k)))
    return True


def _is_last(said: dict[str, Any], told: Told) -> bool:
    """Pass a line on; whether nothing else is of interest. Raises what the process has raised."""
    if "error" in said:
        number, text, path = said["error"]
        raise OSError(number, text, path) if number else UsageError(text, path)
    if said["good"]:
        told.done(said["shard"], said["done"])
    return bool(said["bad"]) and told.done(said["shard"], said["done"], ImageFileError(*said["bad"]))


class _Teller:
    """Tells whoever started this process."""

    def __init__(self) -> None:
        self.said = 0.0
        self.good = False

    def done(self, k: int, count: int, bad: ImageFileError | None = None) -> bool:
        """See `shards.Told`: now and then, and each image that cannot be used. Who listens ends this process."""
        self.good |= bad is None
        if bad is not None or time.monotonic() - self.said > _SAY_SECONDS:
            self.said = time.monotonic()
            of_bad = (bad.what, bad.hint) if bad is not None else None
            _say({"shard": k, "done": count, "good": self.good, "bad": of_bad})
        return False


def _say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _end_with_parent() -> None:
    """Stdin stays open as long as whoever started this process is there."""
    sys.stdin.buffer.read()
    os._exit(1)


def main() -> None:
    """Make shards, as stdin says."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who interrupts the command ends it, and that ends this
    path, plugin, job = pickle.load(sys.stdin.buffer)
    sys.path[:] = path
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        if plugin is not None:
            from vqbench.registry import DATASETS, add_plugin

            name, file = plugin
            add_plugin(file)
            DATASETS.get(name)
        filling: Filling = pickle.loads(job)
        fill(filling.folder, filling.layout, filling, _Teller(), int(sys.argv[1]))
    except OSError as error:
        _say({"error": (error.errno or 5, error.strerror or str(error), error.filename)})
    except VQBenchError as error:
        _say({"error": (0, error.what, error.hint)})


if __name__ == "__main__":
    code = 1
    try:
        main()
        code = 0
    except Exception:
        traceback.print_exc()
    finally:  # the thread that watches stdin holds its lock, on which an ordinary exit would stumble
        os._exit(code)
