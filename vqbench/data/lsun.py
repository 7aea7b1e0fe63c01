"""LSUN as it is published: one LMDB for each category and side, whose values are encoded images."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vqbench.data.dataset import Dataset, path_safe
from vqbench.data.decode import ImageFileError
from vqbench.data.encoded import Encoded
from vqbench.data.extras import required_library
from vqbench.data.hashing import digest_of
from vqbench.data.layout import first_folder, not_here, required_root
from vqbench.data.names import HeldNames
from vqbench.errors import UsageError, unknown
from vqbench.machine.home import home, keeping, remembered_digest
from vqbench.registry import DATASETS

_FILE = "data.mdb"
_BLOCK = 2**14  # keys that are listed at the same time
_TRAIN, _VALIDATION = "_train_lmdb", "_val_lmdb"
_GET = "get CATEGORY_train_lmdb.zip and CATEGORY_val_lmdb.zip with https://github.com/fyu/lsun and unpack both there"


class _Keys(HeldNames):
    """The keys of an LMDB, which may be three million: one array, mapped, and not so many strings."""

    def __init__(self, raw: NDArray[np.bytes_]) -> None:
        self.raw = raw

    @classmethod
    def of(cls, folder: Path, kept: Path) -> _Keys:
        """Those that the file `kept` holds; it is made first where it is not there and can be."""
        with contextlib.suppress(OSError, ValueError, EOFError):
            return cls.mapped(kept)
        raw = _list_keys(folder)
        with contextlib.suppress(OSError):  # a home that cannot be written costs the work each time, no result
            with keeping(kept) as partial, open(partial, "wb") as file:
                np.save(file, raw)
            return cls.mapped(kept)
        return cls(raw)

    @classmethod
    def mapped(cls, path: Path) -> _Keys:
        """Those of a file. Raises OSError, ValueError."""
        return cls(np.load(path, mmap_mode="r", allow_pickle=False))

    def __reduce__(self) -> tuple[Any, ...]:
        if isinstance(self.raw, np.memmap):  # a pickled map would be a copy
            return _Keys.mapped, (self.raw.filename,)
        return _Keys, (self.raw,)

    def __len__(self) -> int:
        return len(self.raw)

    def _one(self, i: int) -> str:
        return bytes(self.raw[i]).decode()

    def _part(self, first: int, stop: int) -> Iterator[str]:
        return (key.decode() for key in self.raw[first:stop].tolist())


def _list_keys(folder: Path) -> NDArray[np.bytes_]:
    with _environment(folder).begin() as transaction:
        keys = transaction.cursor().iternext(keys=True, values=False)
        blocks = [np.array(block, np.bytes_) for block in iter(lambda: list(itertools.islice(keys, _BLOCK)), [])]
    if not blocks:
        raise UsageError(f"{folder / _FILE} holds no image", f"unpack {folder.name}.zip again")
    return np.concatenate(blocks)


_opened: dict[Path, tuple[object, Any]] = {}
_opening = threading.Lock()


def _new_lock() -> None:
    """In a child: somebody in the parent may have held the lock at the moment of the fork."""
    global _opening
    _opening = threading.Lock()


os.register_at_fork(after_in_child=_new_lock)


def _environment(folder: Path) -> Any:
    """The LMDB of a folder, open in this process; the library refuses to open one twice.

    Without a lock nothing in it is bound to a process, so a fork may go on with it; and nothing is written beside it.
    """
    lmdb = required_library("lmdb", "lsun", "lsun")
    try:
        status = (folder / _FILE).stat()
        state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        with _opening:
            known, environment = _opened.get(folder, (None, None))
            if known != state:
                if environment is not None:
                    environment.close()
                    del _opened[folder]
                environment = lmdb.open(str(folder), readonly=True, lock=False, readahead=False, meminit=False)
                _opened[folder] = state, environment
                used = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
                if status.st_size < used:  # reading a page that is not there kills the process
                    what = f"{folder / _FILE} is truncated: {status.st_size:,} of {used:,} bytes are here"
                    raise UsageError(what, f"unpack {folder.name}.zip again")
        return environment
    except OSError as error:
        raise UsageError(f"{folder / _FILE}: cannot be read ({error.strerror})", "mend its permissions") from None
    except lmdb.Error as error:
        raise UsageError(f"{folder / _FILE} is no LMDB ({error})", f"unpack {folder.name}.zip again") from None


class _LMDB(Encoded):
    """The values of one LMDB, in the order of their keys."""

    ids: _Keys

    def __init__(self, folder: Path) -> None:
        _environment(folder)
        self.folder = folder
        status = (folder / _FILE).stat()
        self.key = digest_of(str(folder), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        self.ids = _Keys.of(folder, home() / "prepared" / f"lmdb-{self.key[:24]}.npy")

    def read(self, i: int) -> bytes:
        """Value `i`. Raises ImageFileError."""
        with _environment(self.folder).begin() as transaction:
            value = transaction.get(bytes(self.ids.raw[i]))
        if not value:
            raise ImageFileError(f"{self.name(i)}: there is no image", f"unpack {self.folder.name}.zip again")
        return bytes(value)

    def name(self, i: int) -> str:
        """File and key."""
        return f"{self.folder / _FILE}, key {self.ids[i]}"

    def digest(self) -> str:
        """sha256 over key and size of every value: encoded images that were made again have other sizes, as a rule.

        An image in the place of another of its size is not seen: its bytes lie on a page of their own, which is a seek.
        """
        return remembered_digest(home() / "prepared" / f"lmdb-{self.key[:24]}.txt", self._digest)

    def _digest(self) -> str:
        found = hashlib.sha256()
        with _environment(self.folder).begin(buffers=True) as transaction:
            for key, value in transaction.cursor():  # a value's size stands beside its key: no image is read
                found.update(f"{bytes(key)!r}\0{len(value)}\0".encode())
        return found.hexdigest()


@DATASETS.register("lsun")
class LSUN(Dataset):
    """LSUN, as lsun:bedroom (Yu et al., 2015, arXiv:1506.03365; the published LMDBs; needs --data-root)."""

    takes_argument: ClassVar[str] = "CATEGORY"
    licence = "No licence is stated; the authors offer it for research. The images are of their owners."

    def __init__(self, argument: str, resolution: int, data_root: Path | None) -> None:
        super().__init__(argument, resolution, data_root)
        root = required_root("lsun", data_root, f"{argument}{_TRAIN}/ and {argument}{_VALIDATION}/", _GET)
        required_library("lmdb", "lsun", "lsun")
        self.reference, self.slug = f"lsun:{argument}", f"lsun-{path_safe(argument)}"
        self.protocol_name = self.slug
        train, validation = (_LMDB(_side(root, argument, side)) for side in (_TRAIN, _VALIDATION))
        self.take_encoded(train, validation)
        self.split_rule = f"{argument}{_TRAIN} is trained on, {argument}{_VALIDATION} is validation."


def _side(root: Path, category: str, side: str) -> Path:
    folder = first_folder(root / f"{category}{side}", root / "lsun" / f"{category}{side}")
    get = _GET.replace("CATEGORY", category)
    if folder is None:
        places = [place for place in (root, root / "lsun") if place.is_dir()]
        known = {f.name.removesuffix(s) for p in places for f in p.iterdir() for s in (_TRAIN, _VALIDATION)
                 if f.name.endswith(s) and f.is_dir()}  # fmt: skip
        if known and category not in known:
            raise unknown("LSUN category", category, known, get)
        raise not_here(f"{category}{side}", root, f"{category}{side}/, also in lsun/", get)
    if not (folder / _FILE).is_file():
        raise not_here("LMDB", folder, _FILE, get)
    return folder
