"""A split that a file states: one id a line, of the images that are validation."""

from __future__ import annotations

import bisect
import functools
import hashlib
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from vqbench.errors import UsageError
from vqbench.machine.home import expanded

_SHOWN = 3
_NEAR = (
    200  # ids before and after the place of an unknown one, in the order of names: one of a million is found at once
)
_NUMBER = re.compile(r"\d+$")


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name)  # macOS stores "é" decomposed


def _base(name: str) -> str:
    return posixpath.basename(name)


def _stem(name: str) -> str:
    return posixpath.splitext(name)[0]


@dataclass(frozen=True)
class SplitList:
    """What a file lists."""

    file: Path
    ids: tuple[str, ...]
    sha256: str

    @classmethod
    def read(cls, file: Path) -> SplitList:
        """Raises UsageError for a file that cannot be read, lists nothing, or one id twice."""
        hint = "one id on each line, for example 00007 or val/cat.png"
        try:
            content = expanded(file).read_bytes()
            lines = [_plain(line.strip()).removeprefix("./") for line in content.decode("utf-8-sig").splitlines()]
        except OSError as error:
            raise UsageError(f"cannot read --split-list {file}: {error.strerror or error}", hint) from None
        except UnicodeDecodeError:
            raise UsageError(f"--split-list {file} is no text in UTF-8", hint) from None
        ids = tuple(line for line in lines if line)
        if not ids:
            raise UsageError(f"--split-list {file} lists nothing", hint)
        return cls(file, ids, hashlib.sha256(content).hexdigest())

    def positions(self, known: Sequence[str], reference: str) -> list[int]:
        """Where the listed ids stand among those of a dataset, which `reference` names.

        An id is found by its path, with or without a suffix; by its base name, where one of the two has no folder; and
        then, where all base names of the dataset are numbers, by the number that it ends with. Raises UsageError for
        ids that are unknown, that stand for several images, or for one that another stands for already.
        """
        names = _Lookup([_plain(name) for name in known])
        found = {listed: names.positions(listed) for listed in self.ids}
        if unknown := [listed for listed, places in found.items() if not places]:
            raise self._unknown(unknown, names, reference)
        for listed, places in found.items():
            if len(places) > 1:
                several = ", ".join(known[i] for i in places[:_SHOWN])
                what = f"--split-list {self.file}: {listed} stands for {len(places)} images of {reference}: {several}"
                raise UsageError(what, "list each by its path, with its suffix")
        owner: dict[int, str] = {}
        for listed in self.ids:
            (place,) = found[listed]
            if place in owner:
                what = f"--split-list {self.file} lists {known[place]} twice: {owner[place]} and {listed}"
                raise UsageError(what, "remove one of the lines")
            owner[place] = listed
        return list(owner)

    def _unknown(self, unknown: Sequence[str], names: _Lookup, reference: str) -> UsageError:
        count = f"{len(unknown):,} of the {len(self.ids):,} ids" if len(unknown) > 1 else "an id"
        shown = ", ".join(f"{name} (nearest: {names.nearest(name)})" for name in unknown[:_SHOWN])
        more = f" and {len(unknown) - _SHOWN:,} more" if len(unknown) > _SHOWN else ""
        verb = "are" if len(unknown) > 1 else "is"
        what = f"{count} in --split-list {self.file} {verb} not in {reference}: {shown}{more}"
        return UsageError(what, "get the images that are missing, or correct the list")


class _Lookup:
    """The ids of a dataset, to be found by what somebody else calls them."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids = ids

    def positions(self, listed: str) -> list[int]:
        """All images that a name may stand for, by the closest way of calling them that has any."""
        for places, wanted in self._ways(listed):
            if wanted in places:
                return places[wanted]
        return []

    def _ways(self, listed: str) -> Iterator[tuple[dict[str, list[int]], str]]:
        yield self._by_path, listed
        yield self._by_path, _stem(listed)
        base = _base(listed)
        # of a name with a folder only ids without one can be the base: in another folder there is another image
        by_base = self._by_base if base == listed else self._by_path
        yield by_base, base
        yield by_base, _stem(base)
        number = _NUMBER.search(_stem(base))
        if number and (base == listed or not self._in_folders):
            yield self._by_number, str(int(number.group()))

    @functools.cached_property
    def _by_path(self) -> dict[str, list[int]]:
        return _places(self.ids, lambda name: {name, _stem(name)})

    @functools.cached_property
    def _by_base(self) -> dict[str, list[int]]:
        return _places(self.ids, lambda name: {_base(name), _stem(_base(name))})

    @functools.cached_property
    def _by_number(self) -> dict[str, list[int]]:
        if not all(_stem(_base(name)).isdecimal() for name in self.ids):
            return {}
        return _places(self.ids, lambda name: {str(int(_stem(_base(name))))})

    @functools.cached_property
    def _in_folders(self) -> bool:
        return any("/" in name for name in self.ids)

    @functools.cached_property
    def _sorted(self) -> list[str]:
        return sorted(self.ids)

    def nearest(self, listed: str) -> str:
        """The id that a name is most like."""
        place = bisect.bisect(self._sorted, listed)
        near = self._sorted[max(0, place - _NEAR) : place + _NEAR]
        return (get_close_matches(listed, near, n=1, cutoff=0.0) or [""])[0]


def _places(ids: Sequence[str], called: Callable[[str], Iterable[str]]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for i, name in enumerate(ids):
        for word in called(name):
            places.setdefault(word, []).append(i)
    return places
