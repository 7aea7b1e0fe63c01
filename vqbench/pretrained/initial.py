"""A training that starts from a tokenizer that is trained already: whether it fits, and what it takes over.

Planning asks before anything is trained, and never imports torch to load this file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from vqbench.errors import UsageError, VQBenchError
from vqbench.facts import Facts
from vqbench.pretrained.opening import absolute, open_source
from vqbench.recipe import Recipe
from vqbench.registry import METHODS

if TYPE_CHECKING:
    from vqbench.backbone import BackboneConfig
    from vqbench.quantizer import Quantizer
    from vqbench.tokenizer import Tokenizer

_SHAPES = ("channels", "channel_multipliers", "res_blocks", "mid_attention", "latent_channels", "image_channels")
"""Fields of a recipe that a backbone's tensors depend on, beside the places of attention."""


Asked = tuple[str, str, bool]
"""A source, the family that it is read as, and whether it may be a program: as `open_source` takes them."""
Choice = TypeVar("Choice", bound=Any)
"""A `vqbench.planning.choice.MethodChoice`, of a room above this one."""


def starting_from(asked: Asked, choices: Iterable[Choice], recipe: Recipe) -> tuple[Choice, ...]:
    """The methods of a command, the one that is trained being told what it starts from; all as they are without one.

    Raises UsageError unless one method alone is to be trained, and where it does not fit.
    """
    source, choices = asked[0], tuple(choices)
    if not source:
        return choices
    labels = [choice.label for choice in choices if not choice.pretrained]
    if len(labels) != 1:
        what = f"--init-from {source} starts one method, not {len(labels)}: {', '.join(labels) or 'none'}"
        raise UsageError(what, "give one command for each, all of one --name")
    return tuple(choice if choice.pretrained else _started(asked, choice, recipe) for choice in choices)


def _started(asked: Asked, choice: Choice, recipe: Recipe) -> Choice:
    if choice.artifact is not None:
        what = f"{choice.label} is built around an artifact of its own, which --init-from {asked[0]} would replace"
        raise UsageError(what, f"leave one of the two out; `vqbench show {choice.name}`")
    source = absolute(asked[0])
    facts = _fitting((source, *asked[1:]), choice.name, choice.config, recipe)
    said = f"its training starts from {facts.name} (sha256 {facts.sha256[:12]}…)"
    remark = f"{choice.remark}; {said}" if choice.remark else said
    initial = {**facts.as_dict(), "source": source, "as": asked[1], "trust": asked[2]}
    return dataclasses.replace(choice, initial=initial, remark=remark)


def _fitting(asked: Asked, method: str, config: Mapping[str, Any], recipe: Recipe) -> Facts:
    """What is known of a source that fits recipe and method.

    Raises UsageError that names the fields which do not fit, and the values that would.
    """
    cls = METHODS.get(method)  # before a file of weights may replace it by the plugin that it was trained with
    opened = open_source(*asked)
    theirs, facts = _tokenizer(opened.codec, opened.facts), opened.facts
    if odd := _odd_shapes(theirs.backbone, recipe):
        raise _misfit(facts, {name: getattr(recipe, name) for name in odd}, odd, "")
    if type(theirs.quantizer) is not cls:
        known = [name for name in METHODS.names() if METHODS.get(name) is type(theirs.quantizer)]
        if not known or method in known:
            what = f"{facts.name} was trained with another version of the plugin of '{method}'"
            raise UsageError(what, "start from a tokenizer of the method as it is now")
        what = f"{facts.name} has the quantizer of {known[0]}, which {method} cannot start from"
        raise UsageError(what, f"--methods {known[0]}")
    if odd := _odd_settings(theirs, cls, config):
        mine = dataclasses.asdict(_configured(cls, config))
        raise _misfit(facts, {name: mine[name] for name in odd}, odd, f"{method}.")
    return facts


def start_from(tokenizer: Tokenizer, initial: Mapping[str, Any]) -> dict[str, Any]:
    """Take over the weights that a spec names. Returns what was taken: part → tensors and values.

    Raises VQBenchError where they are no longer those of the plan, or do not fit.
    """
    planned = Facts.of(initial)
    opened = open_source(initial["source"], initial["as"], initial["trust"])
    if opened.facts.in_hash != planned.in_hash:
        what = f"{planned.path}, from which this cell starts, has changed since it was planned"
        raise VQBenchError(what, "bring it back, or give the command again: it plans a cell for the file as it is now")
    weights = _tokenizer(opened.codec, opened.facts).state_dict()
    try:
        tokenizer.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise VQBenchError(f"{planned.path} does not fit this cell: {reason}", "give the command again") from None
    taken: dict[str, dict[str, int]] = {}
    for name, tensor in weights.items():
        part = taken.setdefault(name.partition(".")[0], {"tensors": 0, "values": 0})
        part["tensors"] += 1
        part["values"] += tensor.numel()
    return {"source": initial["source"], "sha256": planned.sha256, "taken_over": taken}


def _tokenizer(codec: Any, facts: Facts) -> Tokenizer:
    from vqbench.tokenizer import Tokenizer

    if type(codec) is not Tokenizer:  # one that is derived from it may read its images otherwise
        what = f"{facts.name} is not built as vqbench's backbone, so no training can start from it"
        raise UsageError(what, "start from a checkpoint that `vqbench eval` names a family of, or a finished cell")
    return codec


def _misfit(facts: Facts, mine: Mapping[str, Any], theirs: Mapping[str, Any], owner: str) -> UsageError:
    said = ", ".join(f"{owner}{name}={_text(value)}, not {_text(mine[name])}" for name, value in theirs.items())
    settings = " ".join(f"--set {owner}{name}={_text(value)}" for name, value in theirs.items())
    return UsageError(f"--init-from: {facts.name} fits {said}", settings)


def _text(value: Any) -> str:
    """As it is typed after --set."""
    if isinstance(value, tuple | list):
        return ",".join(map(str, value)) if value else "[]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _odd_shapes(theirs: BackboneConfig, recipe: Recipe) -> dict[str, Any]:
    """The recipe's fields under which its backbone would be another, with the values that fit."""
    odd = {name: getattr(theirs, name) for name in _SHAPES if getattr(theirs, name) != getattr(recipe, name)}
    levels = range(len(theirs.channel_multipliers))
    attend = [level for level in levels if theirs.sides[level] in theirs.attention_resolutions]
    sides = [recipe.resolution // 2**level for level in levels]  # attention goes by the level, whatever the resolution
    if attend != [level for level in levels if sides[level] in recipe.attention_resolutions]:
        odd["attention_resolutions"] = tuple(sides[level] for level in attend)
    return odd


def _configured(cls: Any, config: Mapping[str, Any]) -> Any:
    from vqbench.config import build, from_stored

    return build(cls.Config, from_stored(cls.Config, config), cls.__name__, "")


def _odd_settings(theirs: Tokenizer, cls: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the method under which the same weights would be another quantizer, with the values that fit.

    What a setting does is seen, not known: a quantizer with it is given the weights, and latents to quantize.
    """
    import torch

    mine, known = _configured(cls, config), theirs.quantizer.config
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(0)
        side = 4 * theirs.downsampling
        z = theirs.to_quantizer(theirs.encoder(torch.rand(1, theirs.image_channels, side, side) * 2 - 1))
        if _alike(cls, mine, theirs.quantizer, z):
            return {}
        different = [f.name for f in dataclasses.fields(mine) if getattr(mine, f.name) != getattr(known, f.name)]
        odd = []
        for name in different:
            try:
                one = dataclasses.replace(known, **{name: getattr(mine, name)})
            except ValueError:
                odd.append(name)
                continue
            if not _alike(cls, one, theirs.quantizer, z):
                odd.append(name)
    return {name: getattr(known, name) for name in odd or different}


def _alike(cls: Any, config: Any, quantizer: Quantizer, z: Any) -> bool:
    """Whether a quantizer so configured takes the weights of another, and then quantizes as that does."""
    import torch

    try:
        mine = cls(config).eval()
        mine.load_state_dict(quantizer.state_dict())
        mine, theirs = mine(z), quantizer(z)
    except (RuntimeError, ValueError):
        return False
    return torch.equal(mine.indices, theirs.indices) and torch.equal(mine.latents, theirs.latents)
