"""Images of the Hugging Face library `datasets`: parquet as it is published, or what `save_to_disk` leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from vqbench.data.dataset import path_safe
from vqbench.data.files import absolute
from vqbench.data.index import Index, kept_index, make_index
from vqbench.data.parquet import FoundRows, Rows
from vqbench.data.source_shards import SplitByNames, missing_shards, side_named, split_of, states_of
from vqbench.errors import UsageError
from vqbench.registry import DATASETS

_STATE, _SPLITS = "state.json", "dataset_dict.json"


@DATASETS.register("hf")
class HuggingFace(SplitByNames):
    """Parquet or Arrow files of `datasets` (hf:PATH; their train and validation splits, or a split by hash)."""

    takes_argument: ClassVar[str] = "PATH"

    def __init__(self, argument: str, resolution: int, data_root: Path | None) -> None:
        super().__init__(argument, resolution, data_root)
        root = absolute(argument)
        self.reference, self.slug = f"hf:{root}", f"hf-{path_safe(root.name.removesuffix('.parquet'))}"
        shards = row_files(root)
        if not shards:
            seen = ", ".join(sorted(entry.name for entry in root.iterdir())[:5]) or "nothing" if root.is_dir() else ""
            looked = f"{root} holds no .parquet file, and is no folder of save_to_disk ({_STATE} or {_SPLITS})"
            what = f"{looked}; it has {seen}" if root.is_dir() else f"{root} does not exist"
            raise UsageError(what, "give the folder that was downloaded or saved, not the cache of `datasets`")

        def make() -> Index:
            found = FoundRows(shards)
            places = [path[len(str(root)) :] for path in shards]
            ids, note = _ids(found, places)
            split = split_of(ids, found.shard_of, places)
            remarks = [*missing_shards(shards), *note]
            return make_index(found, ids, split.sides, split.facts() | {"remarks": remarks})

        index = kept_index(("hf", str(root)), make, states_of(shards))
        self.notes = tuple(index.facts["remarks"])
        self.give_sides(index, Rows)


def row_files(root: Path) -> list[str]:
    """The parquet files at or below a path, or the Arrow files of a folder that `save_to_disk` has left, in order.

    Raises UsageError for such a folder that is not whole.
    """
    if root.is_file():
        return [str(root)]
    if (root / _SPLITS).is_file():
        splits = _stated(root / _SPLITS, "splits")
        return [path for split in splits for path in _saved(root / split)]
    if (root / _STATE).is_file():
        return _saved(root)
    found = (path for path in root.rglob("*.parquet") if path.is_file())
    return sorted(str(path) for path in found if not any(p.startswith(".") for p in path.relative_to(root).parts))


def _saved(folder: Path) -> list[str]:
    paths = [folder / file["filename"] for file in _stated(folder / _STATE, "_data_files")]
    if gone := [path for path in paths if not path.is_file()]:
        raise UsageError(f"{gone[0]} is not here, though {folder / _STATE} names it", "copy the folder again, whole")
    return [str(path) for path in paths]


def _stated(path: Path, key: str) -> list[Any]:
    try:
        found: list[Any] = json.loads(path.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} cannot be read ({error})", "copy the folder again, whole") from None
    return found


def _ids(found: FoundRows, shards: list[str]) -> tuple[list[str], list[str]]:
    """The paths that rows state, if each has its own; else split and number of row."""
    if all(found.names) and len(set(found.names)) == len(found):
        return found.names, []
    numbers: dict[str, int] = {}
    ids = []
    for shard in found.shard_of:
        split = side_named(shards[shard]) or "row"
        ids.append(f"{split}/{numbers.get(split, 0):08d}")
        numbers[split] = numbers.get(split, 0) + 1
    state = "rows share paths" if all(found.names) else "rows state no path"
    return ids, [f"{state}: images are named by the number of their row"]
