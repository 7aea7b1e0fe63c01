"""What the authors of published tokenizers print of them: a sheet of facts, found by sha256, by name or by md5."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path, PurePath
from typing import Any

from vqbench.machine.yaml_files import parse_yaml

Published = Mapping[str, Mapping[str, float]]
"""Protocol in words → metric, or "metric by whom" → score."""
_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors", ".gz", ".tar", ".zip")
_BY_NAME = "told by its name alone"
_FOLDERS = 2  # above the file: `vqgan_imagenet_f16_16384/checkpoints/last.ckpt`


@functools.cache
def sheet() -> tuple[Mapping[str, Any], ...]:
    """The rows: names, perhaps sha256, licence, published."""
    content = (resources.files(__package__) / "published.yaml").read_bytes()
    return tuple(parse_yaml(content, "the sheet of published scores", "install vqbench again"))


def published_of(name: str, sha256: str) -> tuple[Published, str]:
    """Scores and licence that are known of a file; ({}, "") of one that is not.

    A score by another definition than ours has the name of that metric, or says by whom it is.

    `name` is the file's, or its path: the folders that hold it count where the sheet has their names. A file of another
    sha256 than the sheet has for its name is another file. Where the sheet has none, the words of the protocol say so.
    """
    names = set(_names(name))
    for row in sheet():
        if (known := str(row.get("sha256", ""))) and sha256.startswith(known):
            return row.get("published", {}), row["licence"]
    for row in sheet():
        named = () if row.get("sha256") else row.get("names", ())
        if names.intersection(map(str.lower, named)):
            printed = row.get("published", {})
            return {f"{words}; {_BY_NAME}": found for words, found in printed.items()}, row["licence"]
    return {}, ""


def published_of_foreign(path: Path, sha256: str) -> tuple[Published, str]:
    """As `published_of`, of a file that no layout of ours reads: the source of some prints the beginning of their md5
    alone, for which the file is read once more."""
    known = published_of(str(path), sha256)
    if any(known) or not path.is_file():
        return known
    with path.open("rb") as content:
        md5 = hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    rows = (row for row in sheet() if "md5" in row and md5.startswith(str(row["md5"])))
    return next(((row["published"], row["licence"]) for row in rows), known)


def _names(name: str) -> Iterator[str]:
    path = PurePath(name)
    for part in (path.name, *(folder.name for folder in list(path.parents)[:_FOLDERS])):
        plain = part.lower()
        while plain.endswith(_SUFFIXES):
            plain = plain[: plain.rindex(".")]
        yield plain
