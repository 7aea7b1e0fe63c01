"""A tokenizer that is trained already as one of the rows of a command: what is known of it, resolved and checked."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqbench.data.dataset import path_safe
from vqbench.errors import UsageError
from vqbench.facts import split_in_words
from vqbench.machine.home import expanded
from vqbench.metrics.named import named_protocol
from vqbench.planning.choice import MethodChoice, remembered, split_reference
from vqbench.planning.request import RunRequest
from vqbench.pretrained.opening import IMAGES, absolute, door, facts_of, folders_of, is_source, is_there
from vqbench.registry import METHODS

if TYPE_CHECKING:
    from vqbench.data.dataset import DataReference
    from vqbench.recipe import Recipe

_NAMED = re.compile(r"([\w.+-]{1,60})=(.+)")


def names_source(asked: str) -> bool:
    """Whether a row is a tokenizer that is trained already, `NAME=SOURCE` or SOURCE, and no method to train."""
    return split_reference(asked)[0] not in METHODS and is_source(split_name(asked)[1])


def split_name(asked: str) -> tuple[str, str]:
    """The name that a source is given, or "", and the source."""
    named = _NAMED.fullmatch(asked)  # a file may have such a name: epoch=3-step=5.ckpt
    known = named and (IMAGES in named[2] or is_there(named[2]))
    return (named[1], named[2]) if named and known and not expanded(Path(asked)).exists() else ("", asked)


def choose_source(asked: str, request: RunRequest) -> MethodChoice:
    """The row of a source. Opens it, unless that was done before and its files are as they were.

    Raises UsageError for what is no tokenizer.
    """
    name, source = split_name(asked)
    source = absolute(source)
    options = (source, request.family, request.trust)
    stamps = _stamps(source)
    choice = _choice(options) if stamps is None else remembered([*options, stamps], "", lambda: _choice(options))
    if name:
        return replace(choice, label=name, pretrained={**choice.pretrained, "named": name})
    facts = choice.facts
    # seeds of one training share a row
    label = f"{facts.family}-{facts.trained_as[:8]}" if facts.trained_as else facts.name
    return replace(choice, label=label)


def _stamps(source: str) -> list[Any] | None:
    """Place, size and time of each file of a source; None for an adapter, which may read any other."""
    kind = door(source)
    if kind == "adapter":
        return None
    made, originals = folders_of(source) if kind == "images" else (expanded(Path(source)), None)
    found: list[Any] = []
    for place in (made, originals):
        if place is None:
            continue
        files = sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
        for file in files:
            known = file.stat() if file.exists() else None
            # its change is younger than a copy's time of another file
            found.append(
                [str(file.absolute()), *((known.st_size, known.st_mtime_ns, known.st_ctime_ns) if known else ())]
            )
    return found


def _choice(options: tuple[str, str, bool]) -> MethodChoice:
    facts = facts_of(*options)
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
        paper={"published": published} if published else {},
        remark="; ".join([facts.in_words(), *said]),
        size=size if has_codes else None,
        pretrained={**facts.as_dict(), **dict(zip(("source", "as", "trust"), options, strict=True))},
    )


def told_of(choice: MethodChoice, dataset: Any, data: DataReference) -> dict[str, Any]:
    """What the spec says of a source that is scored on a dataset."""
    said = dict(choice.pretrained)
    if seen := seen_by(choice, dataset, data):
        said["remarks"] = [*said.get("remarks", []), seen]
    return said


def seen_by(choice: MethodChoice, dataset: Any, data: DataReference) -> str:
    """What must be said of images that a source has been trained on, and is scored on; mostly nothing."""
    split, digests = split_in_words(data.in_spec()), (dataset.train_digest, dataset.own_digest)
    return choice.facts.may_have_seen(dataset.reference, split, *digests)


def refuse_unfit(choices: Iterable[MethodChoice], recipe: Recipe, data: DataReference) -> None:
    """Raise UsageError for a source that does not take images as large as they will be, or of so many channels."""
    named = named_protocol(data.protocol)
    own_sizes = named is not None and named.reading.get("whole")
    for choice in choices:
        side = None if own_sizes else recipe.resolution
        choice.facts.refuse_images(choice.label, side, recipe.image_channels)


def apart(choices: Sequence[MethodChoice]) -> list[MethodChoice]:
    """The rows, those of sources under names of their own: two files may be called alike, and lie in two folders.

    Seeds of one training keep the name that they have in common. Raises UsageError where that does not tell the others
    apart, and for one that has the name of a method beside it.
    """
    _refuse_same(choices)
    labels = Counter(label for label, _ in {(choice.label, _row(choice)) for choice in choices})
    found = [replace(c, label=_with_folder(c)) if c.pretrained and labels[c.label] > 1 else c for c in choices]
    rows: dict[str, MethodChoice] = {}
    for choice in found:
        other = rows.setdefault(choice.label, choice)
        if _row(other) != _row(choice):
            source = next(c.pretrained["source"] for c in (other, choice) if c.pretrained)
            raise UsageError(f"two rows are called '{choice.label}'", f"give one another name: NAME={source}")
    _refuse_same_seed(found)
    return found


def _row(choice: MethodChoice) -> str:
    """What rows are told apart by that share a name: the method, the training of vqbench, or the file."""
    return choice.facts.trained_as or json.dumps(choice.facts.in_hash) if choice.pretrained else choice.label


def _refuse_same_seed(choices: Iterable[MethodChoice]) -> None:
    known: dict[tuple[str, int], str] = {}
    for choice in choices:
        said = choice.pretrained
        if "seed" not in said:
            continue
        other = known.setdefault((choice.label, said["seed"]), said["source"])
        if other != said["source"]:
            what = f"{other} and {said['source']} are of one training and of seed {said['seed']}, and differ"
            raise UsageError(what, f"give one a row of its own: NAME={said['source']}")


def _refuse_same(choices: Iterable[MethodChoice]) -> None:
    known: dict[str, MethodChoice] = {}
    for choice in choices:
        if choice.pretrained:
            other = known.setdefault(json.dumps(choice.facts.in_hash), choice)
            if other is not choice:
                one, two = (c.pretrained["source"] for c in (other, choice))
                raise UsageError(f"{one} and {two} are the same tokenizer", "leave one of them out")


def _with_folder(choice: MethodChoice) -> str:
    return f"{Path(choice.facts.path).parent.name}/{choice.label}"
