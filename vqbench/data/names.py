"""Names of a million images, held as arrays and not as a million strings."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

_AT_A_TIME = 4096  # names made at once: an array's element costs more to fetch than the name is long


class HeldNames(Sequence[str], ABC):
    """A sequence of strings that are made when they are asked for; the same as any sequence of the same strings."""

    @abstractmethod
    def _one(self, i: int) -> str:
        """Name `i`, counted from 0."""

    @abstractmethod
    def _part(self, first: int, stop: int) -> Iterable[str]:
        """The names from one place to before another, which may lie behind the last."""

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        at = range(len(self))[i]
        return self._one(at) if isinstance(at, int) else [self._one(k) for k in at]

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _AT_A_TIME):
            yield from self._part(first, first + _AT_A_TIME)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        more = ", …" if len(self) > 3 else ""
        return f"<{len(self):,} names: {', '.join(map(repr, self[:3]))}{more}>"


class Names(HeldNames):
    """Strings as UTF-8, one after the other in `text`; name i begins at `starts[i]` of N + 1 places."""

    def __init__(self, text: NDArray[np.uint8], starts: NDArray[np.int64]) -> None:
        self.text, self.starts = text, starts

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """The names given."""
        text, lengths = bytearray(), [0]
        for name in names:
            coded = name.encode()
            text += coded
            lengths.append(len(coded))
        return cls(np.frombuffer(bytes(text), np.uint8), np.cumsum(lengths, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def _one(self, i: int) -> str:
        return self.text[self.starts[i] : self.starts[i + 1]].tobytes().decode()

    def _part(self, first: int, stop: int) -> Iterator[str]:
        starts = self.starts[first : stop + 1].tolist()
        text = self.text[starts[0] : starts[-1]].tobytes()
        for start, end in itertools.pairwise(starts):
            yield text[start - starts[0] : end - starts[0]].decode()


class PickedNames(HeldNames):
    """Those of `names` that stand at `positions`."""

    def __init__(self, names: Sequence[str], positions: NDArray[np.int64]) -> None:
        self.names, self.positions = names, positions

    def __len__(self) -> int:
        return len(self.positions)

    def _one(self, i: int) -> str:
        return self.names[int(self.positions[i])]

    def _part(self, first: int, stop: int) -> Iterator[str]:
        return map(self.names.__getitem__, self.positions[first:stop].tolist())
