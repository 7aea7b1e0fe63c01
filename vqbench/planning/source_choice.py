"""A tokenizer that is trained already as one of the rows of a command: what is known of it, resolved and checked."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vqbench.data.dataset import path_safe
from vqbench.errors import UsageError
from vqbench.facts import Facts
from vqbench.machine.home import expanded
from vqbench.planning.choice import MethodChoice, own_source, remembered, split_reference
from vqbench.planning.request import RunRequest
from vqbench.planning.variant import Variant
from vqbench.pretrained.opening import IMAGES, absolute, facts_of, folders_of, is_source
from vqbench.registry import METHODS

_NAMED = re.compile(r"([\w.+-]{1,60})=(.+)")


def names_source(asked: str | Variant) -> bool:
    """Whether a row is a tokenizer that is trained already, `NAME=SOURCE` or SOURCE, and no method to train."""
    if isinstance(asked, Variant) or split_reference(asked)[0] in METHODS:
        return False
    return is_source(split_name(asked)[1])


def split_name(asked: str) -> tuple[str, str]:
    """The name that a source is given, or "", and the source."""
    named = _NAMED.fullmatch(asked)
    return (named[1], named[2]) if named and not expanded(Path(asked)).exists() else ("", asked)


def choose_source(asked: str, request: RunRequest) -> MethodChoice:
    """The row of a source. Opens it, unless that was done before and its files are as they were.

    Raises UsageError for what is no tokenizer.
    """
    name, source = split_name(asked)
    source = absolute(source)
    options = (source, request.family, request.trust)
    stamps = _stamps(source)
    if stamps is None:
        choice = _choice(facts_of(*options), options)
    else:
        key = hashlib.sha256(json.dumps([*options, stamps, own_source()]).encode()).hexdigest()
        choice = remembered(key, "", lambda: _choice(facts_of(*options), options))
    return replace(choice, label=name or str((choice.pretrained or {})["name"]))


def _stamps(source: str) -> list[Any] | None:
    """Place, size and time of each file of a source; None for an adapter, which may read any other."""
    if re.search(r"\.py:\w+$", source):
        return None
    made, originals = folders_of(source) if source.startswith(IMAGES) else (expanded(Path(source)), None)
    found: list[Any] = []
    for place in (made, originals):
        if place is None:
            continue
        files = sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
        for file in files:
            known = file.stat() if file.exists() else None
            found.append([str(file.absolute()), *((known.st_size, known.st_mtime_ns) if known else ())])
    return found


def _choice(facts: Facts, options: tuple[str, str, bool]) -> MethodChoice:
    has_codes = facts.codebook_size is not None
    size = {"codebook_size": facts.codebook_size, "num_codebooks": facts.num_codebooks, "asked": None}
    published = [
        {"metric": metric, "value": value, "measured_on": protocol, "source": facts.name}
        for protocol, scores in facts.published.items()
        for metric, value in scores.items()
    ]
    said = [*facts.remarks, *(f"not read: {text}" for text in facts.unread)]
    return MethodChoice(
        label=facts.name,
        name=path_safe(facts.name),
        preset=None,
        config={},
        components={},
        unspecified={},
        part_of={},
        paper={"published": published} if published else {},
        remark="; ".join([facts.in_words(), *said]),
        size=size if has_codes else None,
        artifact=None,
        conditions_decoder=False,
        plugin=None,
        plugin_source=None,
        code=None,
        pretrained={**facts.as_dict(), **dict(zip(("source", "as", "trust"), options, strict=True))},
    )


SEEN = "it may have been trained on some of the images that are scored: the split is another than in its training"


def told_of(choice: MethodChoice, reference: str, training_digest: str) -> dict[str, Any]:
    """What the spec says of a source that is scored on a dataset, of which nothing else is to be trained on."""
    said = dict(choice.pretrained or {})
    if Facts.of(said).may_have_seen(reference, training_digest):
        said["remarks"] = [*said.get("remarks", []), SEEN]
    return said


def refuse_idle_options(choices: Iterable[MethodChoice], request: RunRequest) -> None:
    """Raise UsageError for options about files of weights where no source is one."""
    given = [f"--as {request.family}"] if request.family else []
    given += ["--trust"] if request.trust else []
    if given and not any((choice.pretrained or {}).get("kind") == "checkpoint" for choice in choices):
        what = f"{' and '.join(given)} says how to read a checkpoint, and there is none"
        raise UsageError(what, f"leave {' and '.join(given)} out")


def refuse_unfit(choices: Iterable[MethodChoice], resolution: int, channels: int) -> None:
    """Raise UsageError for a source that does not take square images of this side, or of so many channels."""
    for choice in choices:
        Facts.of(choice.pretrained or {}).refuse_images(choice.label, resolution, channels)


def apart(choices: Sequence[MethodChoice]) -> list[MethodChoice]:
    """The rows, those of sources under names of their own: two files may be called alike, and lie in two folders.

    Raises UsageError where that does not tell them apart, and for one that has the name of a method beside it.
    """
    labels = Counter(choice.label for choice in choices)
    found = [replace(c, label=_with_folder(c)) if c.pretrained and labels[c.label] > 1 else c for c in choices]
    for label, count in Counter(choice.label for choice in found).items():
        if count > 1:
            raise UsageError(
                f"two rows are called '{label}'", f"give one another name: NAME={_source_of(found, label)}"
            )
    return found


def _with_folder(choice: MethodChoice) -> str:
    place = Path(str((choice.pretrained or {})["path"]))
    return f"{place.parent.name}/{choice.label}"


def _source_of(choices: Iterable[MethodChoice], label: str) -> str:
    return next(str(c.pretrained["source"]) for c in choices if c.label == label and c.pretrained)
