"""Processes that make shards beside one another: each claims shards as processes of other machines do."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from pathlib import Path

from vqbench.data.decode import ImageFileError
from vqbench.data.filling import Filling
from vqbench.data.shards import Told, fill, read_marker
from vqbench.errors import UsageError
from vqbench.machine.processes import work_beside
from vqbench.registry import DATASETS, add_plugin

_SAY_SECONDS = 0.5
_LOOK_SECONDS = 2.0  # between two looks at what other machines have made

Said = tuple[int, int, bool, ImageFileError | None]
"""Shard, images of it that are done, whether any could be used so far, and what is wrong with the last."""


def fill_by_processes(filling: Filling, told: Told, processes: int, plugin: tuple[str, Path] | None) -> None:
    """`shards.fill` by processes of this machine; `plugin` is the name and the file of a dataset that they import.

    Raises OSError, and UsageError for images that cannot be passed on and for a process that was killed.
    """
    try:
        job = pickle.dumps(filling)
    except Exception as error:  # whatever a plugin's images hold
        what = f"the images cannot be passed on to other processes: {type(error).__name__}: {error}"
        raise UsageError(what, "leave --workers out, or make them images that can be pickled") from None
    looked = time.monotonic()

    def heard(said: Said | None) -> bool:
        nonlocal looked
        if time.monotonic() - looked > _LOOK_SECONDS:
            looked = time.monotonic()
            for k in range(filling.layout.shards):
                if read_marker(filling.folder, filling.layout, k) is not None:
                    told.done(k, len(filling.layout.range(k)))
        if said is None:
            return False
        k, count, good, bad = said
        if good:
            told.done(k, count)
        return bad is not None and told.done(k, count, bad)

    jobs = [(job, filling.layout.shards * k // processes, plugin) for k in range(processes)]
    work_beside(_fill, jobs, heard, "decodes images", _LOOK_SECONDS)


def _fill(say: Callable[[Said], None], job: bytes, first: int, plugin: tuple[str, Path] | None) -> None:
    """What one of the processes does."""
    if plugin is not None:
        name, file = plugin
        add_plugin(file)
        DATASETS.get(name)
    filling: Filling = pickle.loads(job)
    fill(filling.folder, filling.layout, filling, _Teller(say), first)


class _Teller:
    """Tells whoever started this process."""

    def __init__(self, say: Callable[[Said], None]) -> None:
        self.say, self.said, self.good = say, 0.0, False

    def done(self, k: int, count: int, bad: ImageFileError | None = None) -> bool:
        """See `shards.Told`: now and then, and each image that cannot be used. Who listens ends this process."""
        self.good |= bad is None
        if bad is not None or time.monotonic() - self.said > _SAY_SECONDS:
            self.said = time.monotonic()
            self.say((k, count, self.good, bad))
        return False
