"""What a published set looks like on the user's disk: where its images lie, and what is said where they do not."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from vqbench.data.files import ImageFile, absolute, list_images
from vqbench.errors import UsageError

_SHOWN = 6  # entries of a folder
_PACKED = (".zip", ".tar", ".tar.gz", ".tgz", ".7z")


def required_root(name: str, data_root: Path | None, holds: str, hint: str) -> Path:
    """`--data-root` of a dataset that has its files there, as an absolute path. Raises UsageError without one."""
    if data_root is None:
        raise UsageError(f"dataset '{name}' needs --data-root, the folder that holds {holds}", hint)
    return absolute(data_root)


def first_folder(*places: Path) -> Path | None:
    """The first of the folders that is there."""
    return next((place for place in places if place.is_dir()), None)


def not_here(what: str, root: Path, looked_for: str, hint: str) -> UsageError:
    """The error for a set that is not in `root`: what was looked for, and what lies there instead."""
    if not root.exists():
        return UsageError(f"{root} does not exist; it should hold {looked_for}", hint)
    if not root.is_dir():
        return UsageError(f"{root} is a file, not the folder that holds {looked_for}", hint)
    try:
        entries = sorted(root.iterdir(), key=lambda entry: (not entry.is_dir(), entry.name))
    except OSError as error:
        return UsageError(f"{root}: cannot be listed ({error.strerror})", "mend its permissions")
    names = [f"{entry.name}{'/' * entry.is_dir()}" for entry in entries]
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    seen = (", ".join(names[:_SHOWN]) + more) or "nothing"
    packed = [name for name in names if name.endswith(_PACKED) and name.partition(".")[0] in looked_for]
    hint = f"unpack {packed[0]} there" if packed else hint
    return UsageError(f"no {what} in {root} (looked for {looked_for}); it holds {seen}", hint)


def by_base_name(name: str, files: Iterable[ImageFile], pattern: re.Pattern[str]) -> tuple[dict[str, ImageFile], int]:
    """Files by their base name without suffix, where it matches; and the number of others.

    The id of a file is then that name: it does not depend on the layout. Raises UsageError for two files of one name.
    """
    found: dict[str, ImageFile] = {}
    others = 0
    for file in files:
        base = PurePosixPath(file.id).name.partition(".")[0]
        if not pattern.fullmatch(base):
            others += 1
        elif base in found:
            what = f"{name} image {base} is here twice: {found[base].path} and {file.path}"
            raise UsageError(what, "remove one of them")
        else:
            found[base] = dataclasses.replace(file, id=base)
    return found, others


def numbered(name: str, folder: Path, digits: int) -> tuple[dict[int, ImageFile], int]:
    """The images below a folder that are named by a number, by number; and how many others there are.

    The id is the number in `digits` digits: `0.jpg` and `00000.jpg` are one image. Raises UsageError for two of one
    number.
    """
    found: dict[int, ImageFile] = {}
    named, others = by_base_name(name, list_images(folder), re.compile(r"\d+"))
    for base, file in named.items():
        number = int(base)
        if number in found:
            what = f"{name} image {number} is here twice: {found[number].path} and {file.path}"
            raise UsageError(what, "remove one of them")
        found[number] = dataclasses.replace(file, id=f"{number:0{digits}d}")
    return found, others


def in_order(files: Mapping[int, ImageFile], numbers: Iterable[int]) -> list[ImageFile]:
    """The files of some numbers, ascending."""
    return [files[number] for number in sorted(numbers)]


def require_both_sides(
    here: str, train: Sequence[ImageFile], validation: Sequence[ImageFile], rule: str, hint: str
) -> None:
    """Raise UsageError where the images that are `here` leave a side of the split, which `rule` tells, without any."""
    for side, images in (("training", train), ("validation", validation)):
        if not images:
            raise UsageError(f"{here} are here, none of them for {side}{rule}", hint)


def share_of(count: int, total: int) -> str:
    """What a protocol's name says of a set of which only a part is here: "-113-of-70000", or nothing."""
    return f"-{count}-of-{total}" if count != total else ""


def count_notes(count: int, total: int) -> tuple[str, ...]:
    """What a dataset says (`Dataset.notes`) where other than all of the images of a published set are here."""
    if count == total:
        return ()
    state = f"{count:,} of the {total:,} images are here"
    if count > total:
        state = f"{count:,} images are here, where the published set has {total:,}: it is not that set"
    return (f"{state}: {{train}} train and {{validation}} validation",)


def lines_of(path: Path, hint: str) -> list[str]:
    """The lines of a list that belongs to a set. Raises UsageError, with `hint`, for one that cannot be read."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UsageError(f"{path}: cannot be read ({reason})", hint) from None
