"""Whether what is kept of a dataset is what was written, and what was written is what its files hold now."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vqbench.data.cache import META, is_whole
from vqbench.data.dataset import Dataset
from vqbench.data.decode import SHOWN, ImageFileError
from vqbench.data.filling import ahead
from vqbench.data.images import Chosen, Images, Reencoded
from vqbench.data.kept import VERSION, Kept, Side, kinds_of
from vqbench.data.shards import INDEX, damage, fingerprint, marker, read_marker, rows
from vqbench.errors import UsageError
from vqbench.machine.cores import cores
from vqbench.wording import counted

_AHEAD = 128  # images read ahead
_AGAIN = "give `vqbench prepare` again, without --verify"


@dataclass(frozen=True)
class Finding:
    """What a check of one side has found."""

    line: str
    """What is whole."""
    problems: tuple[str, ...] = ()
    remove: tuple[Path, ...] = ()
    """Markers without which the next `prepare` makes what is damaged again."""


def verify_kept(
    dataset: Dataset, home: Path, sides: Sequence[Side], form: str, progress: Callable[[str, int, int], None]
) -> list[str]:
    """Read all that is kept of `dataset` and all that it was made of; a line for each side that is whole.

    Raises UsageError that says what is damaged, missing, or of files that have changed since, and what mends it.
    """
    found = [_check(dataset, side, home, form, progress) for side in sides]
    problems = [problem for finding in found for problem in finding.problems]
    if problems:
        shown = "; ".join(problems[:SHOWN]) + (f"; and {len(problems) - SHOWN:,} more" if len(problems) > SHOWN else "")
        remove = [str(path) for finding in found for path in finding.remove]
        first = f"`rm {shlex.join(remove)}`, then " if remove else ""
        raise UsageError(f"{counted(len(problems), 'problem')} with what is kept: {shown}", f"{first}{_AGAIN}")
    return [finding.line for finding in found]


def _check(dataset: Dataset, side: Side, home: Path, form: str, progress: Callable[[str, int, int], None]) -> Finding:
    images: Images = dataset.train if side == "train" else dataset.validation
    while side == "train" and isinstance(images, Chosen):
        images = images.images
    name = f"{'training' if side == 'train' else 'validation'} images"
    if not images.content_key:
        return Finding(f"{name}: in memory, nothing is kept")
    kinds = kinds_of(images, form) if side == "train" else ("pixels",)
    asked = [Kept(dataset, side, images, kind, home) for kind in kinds]

    def told(done: int, total: int) -> None:
        progress(f"the check of {name}", done, total)

    for of in asked:
        if (folder := of.found()) is not None:
            return _of_old(of, folder) if folder != of.folder else _of_whole(of, told)
    for of in asked:
        if of.folder.is_dir():
            return _of_part(of)
    for of in asked:
        if (finding := _of_stale(of, told)) is not None:
            return finding
    if side == "train" and not form:
        return Finding(f"{name}: not kept, they are decoded each time they are needed")
    return Finding("", (f"the {name} of {dataset.reference} are not prepared at {dataset.resolution} px",))


def _of_whole(of: Kept, told: Callable[[int, int], None]) -> Finding:
    problems, remove = [], []
    for k in range(of.layout.shards):
        found = [what] if (what := damage(of.folder, of.layout, k)) else list(_changed(of, k))
        if found:
            problems += found
            remove.append(of.folder / marker(k))
        told(of.layout.range(k).stop, of.layout.images)
    shards, count = counted(of.layout.shards, "shard"), len(of.images)
    said = json.loads((of.folder / META).read_text(encoding="utf-8"))
    if not problems and of.side == "validation" and of.digest() != said["digest"]:
        problems.append(f"{of.folder / META} has another digest than the images beside it")
        remove.append(of.folder / META)
    return Finding(f"{of.name}: {count:,} as {of.form}, {shards}, as written and as their files are", tuple(problems),
                   tuple(remove))  # fmt: skip


def _of_old(of: Kept, folder: Path) -> Finding:
    line = f"{of.name}: {len(of.images):,} kept by an earlier version, which wrote no digests of them"
    if of.side == "train":
        return Finding(line)
    said = json.loads((folder / META).read_text(encoding="utf-8"))
    if of.digest(folder) != said["digest"]:
        return Finding("", (f"{folder} has other pixels than were written",), (folder / META,))
    return Finding(f"{of.name}: {len(of.images):,} kept by an earlier version, as written")


def _of_part(of: Kept) -> Finding:
    """What is missing of a folder that nobody would read."""
    if not (of.folder / META).exists():
        made = sum(read_marker(of.folder, of.layout, k) is not None for k in range(of.layout.shards))
        what = f"the making of {of.folder} was interrupted, or goes on: {made} of {of.layout.shards} shards are made"
        return Finding("", (what,))
    found = [damage(of.folder, of.layout, k) for k in range(of.layout.shards)]
    return Finding("", tuple(filter(None, found)) or (f"{of.folder / INDEX} is missing or has been cut",))


def _present(of: Kept, positions: range) -> Iterator[int | str]:
    """The fingerprint of each image as it is now; what is wrong with one that cannot be read."""
    source = of.images.images if isinstance(of.images, Reencoded) else of.images

    def look(i: int) -> int | str:
        try:
            return fingerprint(of.images.ids[i], source.encoded(i))
        except ImageFileError as error:
            return error.what

    return ahead(look, positions, cores(), _AHEAD)


def _changed(of: Kept, k: int) -> Iterator[str]:
    """What is wrong with the files of shard `k`, whose own bytes are as written."""
    positions = of.layout.range(k)
    made_of = np.load(of.folder / rows(k))
    for i, known, now in zip(positions, made_of["source"], _present(of, positions), strict=True):
        if isinstance(now, str):
            yield now
        elif now != int(known):
            yield f"{of.images.ids[i]} has changed since it was prepared"


def _of_stale(of: Kept, told: Callable[[int, int], None]) -> Finding | None:
    """What has changed since the same images were kept, where most are what they were; None where there are none."""
    earlier = [
        index for folder in of.folder.parent.glob(f"{of.prefix}*") if (index := _sources(of, folder)) is not None
    ]
    if not earlier:
        return None
    now: list[int | str] = []
    for one in _present(of, range(len(of.images))):
        now.append(one)
        told(len(now), len(of.images))
    present = np.array([0 if isinstance(one, str) else one for one in now], np.uint64)
    known = max((np.isin(present, index) & (present != 0) for index in earlier), key=np.sum)
    if 2 * int(known.sum()) < len(present):
        return None
    names = [of.images.ids[i] for i in np.flatnonzero(~known).tolist()]
    if not names:
        return Finding("", (f"the files of the {of.name} have been removed, moved or written again since they were "
                            "prepared",))  # fmt: skip
    return Finding("", tuple(f"{name} is new, or has changed since the {of.name} were prepared" for name in names))


def _sources(of: Kept, folder: Path) -> NDArray[np.uint64] | None:
    """The fingerprints of another folder of the same form."""
    if folder == of.folder or not is_whole(folder):
        return None
    said = json.loads((folder / META).read_text(encoding="utf-8"))
    if said.get("version") != VERSION or said.get("form") != of.form:
        return None
    sources: NDArray[np.uint64] = np.load(folder / INDEX, mmap_mode="r")["source"]
    return sources
