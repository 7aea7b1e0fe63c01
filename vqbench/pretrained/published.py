"""What the authors of published tokenizers print of them: a sheet of facts, found by sha256 or by name."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import PurePath
from typing import Any

from vqbench.machine.yaml_files import parse_yaml
from vqbench.metrics.definitions import metric

Published = Mapping[str, Mapping[str, float]]
"""Protocol in words → metric → score."""
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

    A score by another definition than ours has the name of that metric, and that of ours, beside which people look for
    it; the words say whose it is.

    `name` is the file's, or its path: the folders that hold it count where the sheet has their names. A file of another
    sha256 than the sheet has for its name is another file. Where the sheet has none, the words of the protocol say so.
    """
    names = set(_names(name))
    for row in sheet():
        if (known := str(row.get("sha256", ""))) and sha256.startswith(known):
            return _of(row), row["licence"]
    for row in sheet():
        if not row.get("sha256") and names.intersection(map(str.lower, row["names"])):
            return {f"{words}; {_BY_NAME}": found for words, found in _of(row).items()}, row["licence"]
    return {}, ""


def _of(row: Mapping[str, Any]) -> Published:
    return {
        words: {**scores, **{ours: value for name, value in scores.items() if (ours := metric(name).in_place_of)}}
        for words, scores in row.get("published", {}).items()
    }


def _names(name: str) -> Iterator[str]:
    path = PurePath(name)
    for part in (path.name, *(folder.name for folder in list(path.parents)[:_FOLDERS])):
        plain = part.lower()
        while plain.endswith(_SUFFIXES):
            plain = plain[: plain.rindex(".")]
        yield plain
