"""Names of a million images, held as two arrays and not as a million strings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

_AT_A_TIME = 4096  # names made at once: an array's element costs more to fetch than the name is long


class Names(Sequence[str]):
    """A sequence of strings, as UTF-8 one after the other in `text`; name i begins at `starts[i]` of N + 1 places."""

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

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        i = range(len(self))[i]
        return self.text[self.starts[i] : self.starts[i + 1]].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _AT_A_TIME):
            starts = self.starts[first : first + _AT_A_TIME + 1].tolist()
            text = self.text[starts[0] : starts[-1]].tobytes()
            for k in range(len(starts) - 1):
                yield text[starts[k] - starts[0] : starts[k + 1] - starts[0]].decode()

    def __eq__(self, other: object) -> bool:
        return _equal(self, other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return _shown(self)


class PickedNames(Sequence[str]):
    """Those of `names` that stand at `positions`."""

    def __init__(self, names: Sequence[str], positions: NDArray[np.int64]) -> None:
        self.names, self.positions = names, positions

    def __len__(self) -> int:
        return len(self.positions)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self.names[k] for k in self.positions[i].tolist()]
        return self.names[int(self.positions[i])]

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _AT_A_TIME):
            for k in self.positions[first : first + _AT_A_TIME].tolist():
                yield self.names[k]

    def __eq__(self, other: object) -> bool:
        return _equal(self, other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return _shown(self)


def _equal(names: Sequence[str], other: Any) -> bool:
    if not isinstance(other, Sequence) or isinstance(other, str):
        return NotImplemented
    return len(names) == len(other) and all(a == b for a, b in zip(names, other, strict=True))


def _shown(names: Sequence[str]) -> str:
    more = ", …" if len(names) > 3 else ""
    return f"<{len(names):,} names: {', '.join(map(repr, names[:3]))}{more}>"
