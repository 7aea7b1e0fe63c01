"""WebDataset shards: plain tars, of which every image is read once an epoch, in any order."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

from vqbench.data.dataset import path_safe
from vqbench.data.files import absolute
from vqbench.data.index import Index, kept_index, make_index
from vqbench.data.source_shards import SplitByNames, matching, split_of, states_of
from vqbench.data.tars import FoundMembers, Members
from vqbench.errors import UsageError
from vqbench.registry import DATASETS


@DATASETS.register("wds")
class WebDataset(SplitByNames):
    """Images in plain tars (wds:GLOB; train and val in the names of the tars, or a split by hash)."""

    takes_argument: ClassVar[str] = "GLOB"

    def __init__(self, argument: str, resolution: int, data_root: Path | None) -> None:
        super().__init__(argument, resolution, data_root)
        pattern = str(absolute(argument))
        self.reference = f"wds:{pattern}"
        stem, folder = Path(pattern).name.removesuffix(".tar"), Path(pattern).parent.name
        self.slug = f"wds-{path_safe(stem if re.search('[A-Za-z]', stem) else folder)}"
        shards = matching(pattern)
        if not shards:
            what = f"no file is named {pattern}"
            raise UsageError(what, "quote the pattern, and give plain tars: --dataset 'wds:DIR/train-{0000..0099}.tar'")

        def make() -> Index:
            found = FoundMembers(shards)
            fixed = re.split(r"[*?\[{]", pattern)[0]  # where the set lies says nothing of its split
            places = [path[fixed.rfind("/") + 1 :] for path in shards]
            split = split_of(found.names, found.shard_of, places)
            return make_index(found, found.names, split.sides, split.facts())

        self.give_sides(kept_index(("wds", pattern), make, states_of(shards)), Members)
