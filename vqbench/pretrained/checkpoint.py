"""A published checkpoint as a tokenizer: which set of its weights, which family, and what it leaves unread."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor

from vqbench import arguments
from vqbench.errors import UsageError, unknown
from vqbench.facts import Facts, Kind
from vqbench.machine.home import expanded
from vqbench.pretrained.layouts import ANCHOR, FAMILIES, Family, MisfitError, network, recognised
from vqbench.pretrained.opened import Opened
from vqbench.pretrained.tensors import read_tensors, sha256_of, tensors_in
from vqbench.tokenizer import Tokenizer
from vqbench.wording import counted, some

Weights = Literal["", "raw", "ema"]
OTHERWISE = "for another network write an adapter: adapter.py:function"


def open_checkpoint(path: Path, family: str = "", trust: bool = False) -> Opened:
    """The tokenizer in somebody else's file of weights.

    `family` is one of FAMILIES, or empty to have it recognised by the names of the tensors. Of a file with averaged
    weights beside the raw ones the averaged are read, unless `family` ends with `:raw`. Raises UsageError for a file
    that is no such tokenizer, naming the first tensor that does not fit; nothing in the file is run unless `trust`.
    """
    asked, weights = _asked(family)
    path = expanded(arguments.path("a checkpoint", path)).absolute()
    content = read_tensors(path, trust)
    sets = _sets(content)
    if not sets:
        names = [name for _, tensors in _mappings(content) for name in tensors]
        what = f"its tensors are {some(names, 4)}" if names else "it has no named tensors"
        raise UsageError(f"{path} holds no tokenizer that vqbench knows: {what}, and none is {ANCHOR}", OTHERWISE)
    name = asked or recognised(sets[0].tensors)
    if not name:
        others = [n for n in sets[0].tensors if n.startswith(("encoder.", "decoder."))]
        what = f"{path} is of no family that vqbench knows: it has {some(others, 4)}"
        raise UsageError(what, f"{OTHERWISE}; families are {', '.join(FAMILIES)}")
    chosen, said = _chosen(path, sets, FAMILIES[name], weights)
    tokenizer = fitted(path, name, chosen.tensors, given=bool(asked))
    remarks = [*remarks_of(FAMILIES[name], chosen.tensors, given=bool(asked))]
    if name == "movq" and said == "ema":
        remarks.append(
            "its averaged weights were read, where its authors' own loader reads the raw ones (--as movq:raw)"
        )
    more = {"unread": tuple(_unread(content, chosen, FAMILIES[name])), "remarks": tuple(remarks), "weights": said}
    return Opened(tokenizer, described("checkpoint", path, path.stem, sha256_of(path), name, tokenizer, **more))


def _asked(family: str) -> tuple[str, Weights]:
    """A family, or "" for whichever it is, and which of its weights."""
    name, _, weights = family.partition(":")
    if name and name not in FAMILIES:
        known = "; ".join(f"{name} ({family.summary})" for name, family in FAMILIES.items())
        raise unknown("family", name, FAMILIES, f"--as takes one of: {known}")
    if weights not in ("", "raw", "ema"):
        raise UsageError(f"there are no weights '{weights}'", f"--as {name}:raw or {name}:ema")
    return name, cast("Weights", weights)


def fitted(
    path: Path, family: str, tensors: Mapping[str, Tensor], given: bool, kind: type[Tokenizer] = Tokenizer
) -> Tokenizer:
    """The tokenizer that tensors of a family make. Raises UsageError, which names the first that does not fit."""
    try:
        return network(FAMILIES[family], tensors, kind)
    except MisfitError as error:
        if given:
            found = recognised(tensors)
            hint = f"by its names it is {found}" if found not in ("", family) else OTHERWISE
            raise UsageError(f"{path} does not fit the family {family}: {error}", hint) from None
        what = f"{path} has names of the family {family}, and does not fit it: {error}"
        raise UsageError(what, f"--as reads it as another ({', '.join(FAMILIES)}); {OTHERWISE}") from None


def remarks_of(family: Family, tensors: Mapping[str, Tensor], given: bool) -> Iterable[str]:
    """What must be said of how tensors were read."""
    if family.assumes and not given:
        yield family.assumes
    kinds = Counter(str(t.dtype).removeprefix("torch.") for name, t in tensors.items() if family.reads(name))
    if kinds.keys() - {"float32"}:
        yield f"its weights are stored in {' and '.join(sorted(kinds))}, and computed with in float32"


def described(kind: Kind, path: Path, name: str, sha256: str, family: str, tokenizer: Tokenizer, **more: Any) -> Facts:
    """What is said of a tokenizer of vqbench's own parts; `more` are other fields of Facts."""
    quantizer = tokenizer.quantizer
    return Facts(
        kind=kind,
        name=name,
        path=str(path),
        sha256=sha256,
        family=family,
        codebook_size=quantizer.codebook_size,
        num_codebooks=quantizer.num_codebooks,
        code_dim=quantizer.out_channels,
        bits_per_token=quantizer.bits_per_token,
        downsampling=tokenizer.downsampling,
        image_channels=tokenizer.image_channels,
        parameters=tokenizer.parameter_counts(),
        **more,
    )


@dataclass(frozen=True)
class _Set:
    """One set of a tokenizer's weights."""

    tensors: Mapping[str, Tensor]
    """By the name that its family gives them."""
    stored: Mapping[str, str]
    """That name → the one in the file."""
    wrapper: str
    """The entry of the file that it lies in; empty for the file itself."""
    prefix: str
    averaged: bool
    shadows: Mapping[str, Tensor]
    """All tensors of its entry, among which averages may lie under names without dots."""


def _mappings(content: Mapping[str, Any]) -> list[tuple[str, dict[str, Tensor]]]:
    """The tensors of the file itself, and those of each entry in it that is a mapping."""
    inside = [(name, tensors_in(value)) for name, value in content.items() if isinstance(name, str)]
    return [("", tensors_in(content)), *((name, tensors) for name, tensors in inside if tensors)]


def _sets(content: Mapping[str, Any]) -> list[_Set]:
    """Sets of whatever family, under whatever prefix; an average is told by its name."""
    found = []
    for wrapper, tensors in _mappings(content):
        prefixes = [name.removesuffix(ANCHOR) for name in tensors if name.endswith(ANCHOR)]
        for prefix in sorted((p for p in prefixes if not p or p.endswith(".")), key=len):
            stored = {name.removeprefix(prefix): name for name in tensors if name.startswith(prefix)}
            averaged = bool(re.search(r"(^|[._])ema([._]|$)", f"{wrapper}.{prefix}"))
            own = {name: tensors[at] for name, at in stored.items()}
            found.append(_Set(own, stored, wrapper, prefix, averaged, tensors))
    return found


def _chosen(path: Path, sets: list[_Set], family: Family, weights: Weights) -> tuple[_Set, Weights]:
    """The set to read, and which it is where there are two."""
    raw = next((found for found in sets if not found.averaged), None)
    averaged = next((found for found in sets if found.averaged), None)
    if averaged is None and raw is not None:
        averaged = _averages_of(path, raw, family, needed=weights != "raw")
    chosen = {"raw": raw, "ema": averaged, "": averaged or raw}[weights]
    if chosen is None:
        word = {"raw": "raw", "ema": "averaged"}[weights]
        raise UsageError(f"{path} holds no {word} weights", f"without :{weights} it is read as it is: it has one set")
    if raw is None or averaged is None:
        return chosen, ""
    return chosen, "raw" if chosen is raw else "ema"


def _averages_of(path: Path, raw: _Set, family: Family, needed: bool) -> _Set | None:
    """The averages that lie beside a set, under its names without their dots: those of Lightning's usual callback."""
    stored = {}
    for name in filter(family.reads, raw.stored):
        part, _, rest = name.partition(".")
        forms = (f"model_ema.{name.replace('.', '')}", f"ema_{part}.{rest.replace('.', '')}")
        stored[name] = next((raw.prefix + form for form in forms if raw.prefix + form in raw.shadows), "")
    if not any(stored.values()):
        return None
    if needed and (lacking := next((name for name, at in stored.items() if not at), "")):
        what = f"{path} holds averaged weights, but none of '{lacking}'"
        raise UsageError(what, "read the raw ones: --as :raw")
    tensors = {name: raw.shadows[at] for name, at in stored.items() if at}
    return _Set(tensors, stored, raw.wrapper, raw.prefix, True, raw.shadows)


def _unread(content: Mapping[str, Any], chosen: _Set, family: Family) -> Iterable[str]:
    """What the file holds beside what was read, in words."""
    read = {at for name, at in chosen.stored.items() if family.reads(name)}
    for wrapper, tensors in _mappings(content):
        if wrapper != chosen.wrapper:
            if tensors:
                yield f"{wrapper or 'beside it'}: {counted(len(tensors), 'tensor')}"
            continue
        left = Counter(
            f"{part}.*" if rest else part for part, _, rest in (n.partition(".") for n in tensors.keys() - read)
        )
        yield from (f"{part}: {counted(number, 'tensor')}" for part, number in sorted(left.items()))
    rest = [str(name) for name, value in content.items() if not isinstance(value, Tensor) and not tensors_in(value)]
    if rest:
        yield f"{some(sorted(rest))} (no tensors)"
