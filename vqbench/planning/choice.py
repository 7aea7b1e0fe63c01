"""Which method, in which configuration: names, presets, settings and switched components, resolved and checked."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vqbench.config import as_dict, build, components, first_default, part_of, split_setting, stored
from vqbench.errors import UsageError, unknown
from vqbench.facts import Facts
from vqbench.machine.home import home, keep_text
from vqbench.planning.paper import paper_facts
from vqbench.planning.variant import Variant
from vqbench.recipe import Recipe
from vqbench.registry import METHODS


@dataclass(frozen=True)
class MethodChoice:
    """A method with its whole configuration."""

    label: str
    name: str
    preset: str | None = None
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    components: dict[str, bool] = dataclasses.field(default_factory=dict)
    unspecified: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields that the method's paper leaves open, and what they are set to."""
    part_of: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    """Fields that have no effect without a component, and which: they are at their defaults where it is off."""
    paper: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What the method's paper says of this configuration (`vqbench.planning.paper.paper_facts`)."""
    remark: str = ""
    """What must be said of this configuration; empty where there is nothing."""
    size: dict[str, Any] | None = None
    """Codes of a codebook, codebooks, and how many codes were asked for, if any were; None where it cannot be built."""
    artifact: dict[str, Any] | None = None
    """Fields of the Artifact that the method is built around, if any."""
    conditions_decoder: bool = False
    """Whether the norms of the decoder are modulated by its latents."""
    plugin: dict[str, Any] | None = None
    """Path and sha256 of the file that the method is in, unless it is installed; its files, where it has neighbours."""
    plugin_source: bytes | None = None
    """What a cell keeps of it (`Plugin.packed`)."""
    code: str | None = None
    """sha256 of the method's source, neighbours included, unless it is one of vqbench's own."""
    pretrained: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What is known of a tokenizer that is trained already (`facts`), and the text that named it; {} for a method to
    train."""
    initial: dict[str, Any] | None = None
    """What is known of the tokenizer that its training starts from (`vqbench.facts.Facts`), if any."""

    @property
    def facts(self) -> Facts:
        """What is known of it, if it is a tokenizer that is trained already."""
        return Facts.of(self.pretrained)


def read_settings(settings: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """`owner.field=value` texts as owner → field → text; the recipe's fields need no owner."""
    by_owner: dict[str, dict[str, str]] = {}
    for text in settings:
        owner, name, value = split_setting(text)
        by_owner.setdefault(owner or "recipe", {})[name] = value
    return by_owner


def split_reference(reference: str) -> tuple[str, str | None]:
    """`method@preset` as (method, preset or None)."""
    name, at, preset = reference.partition("@")
    return name, preset if at else None


def choose_method(asked: str | Variant, recipe: Recipe, settings: dict[str, dict[str, str]]) -> MethodChoice:
    """Resolve `method`, `method@preset` or a variant: recipe's codebook < preset < `--set` < switched off.

    Raises UsageError for an unknown method, preset or field, for values that the Config refuses, and for a `--set`
    that has no effect because its component is off.
    """
    variant = asked if isinstance(asked, Variant) else Variant(asked, frozenset(), asked)
    name, _ = split_reference(variant.reference)
    if not METHODS.is_built_in(name):
        return _choose(variant, recipe, settings)
    typed = {owner: values for owner, values in settings.items() if owner in (name, variant.reference)}
    asked_for = [variant.reference, sorted(variant.off), recipe.codebook_size, recipe.codebook_dim, typed]
    return remembered(asked_for, variant.label, lambda: _choose(variant, recipe, settings))


def remembered(asked_for: Sequence[Any], label: str, choose: Callable[[], MethodChoice]) -> MethodChoice:
    """The choice that was made for the same before, so that a command that trains nothing need not import torch."""
    key = hashlib.sha256(json.dumps([*asked_for, _own_source()], sort_keys=True).encode()).hexdigest()
    file = home() / "choices" / f"{key[:32]}.json"
    try:
        return MethodChoice(**{**json.loads(file.read_text(encoding="utf-8")), "label": label})
    except (OSError, ValueError, TypeError):
        choice = choose()
    with contextlib.suppress(OSError):  # a home that cannot be written costs two seconds each time, no more
        keep_text(file, json.dumps(dataclasses.asdict(choice)))  # in order: components have one
    return choice


@functools.cache
def _own_source() -> str:
    """sha256 of all source that a choice may depend on, but plugins'."""
    digest = hashlib.sha256()
    methods = importlib.util.find_spec("vqbench.methods")
    folders = [Path(__file__).parents[1], *map(Path, methods.submodule_search_locations or () if methods else ())]
    for file in sorted({file for folder in folders for kind in ("*.py", "*.yaml") for file in folder.rglob(kind)}):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def folder_name(method: str) -> str:
    """What a method is called in the names of folders: `family-member` of one that is `family:member`."""
    return method.replace(":", "-", 1) if METHODS.is_member(method) else method


def _choose(variant: Variant, recipe: Recipe, settings: dict[str, dict[str, str]]) -> MethodChoice:
    reference = variant.reference
    name, preset = split_reference(reference)
    cls = METHODS.get(name)
    if not re.fullmatch(r"\w[\w.+-]{0,99}", folder_name(name)):
        raise UsageError(
            f"method name {name!r} cannot be a folder", "use letters, digits, '-', '_' and '.', at most 100"
        )
    if preset is not None and preset not in cls.presets:
        raise unknown(f"preset of {name}", preset, cls.presets, f"`vqbench show {name}` lists the presets")
    typed = settings.get(name, {}) | settings.get(reference, {})
    chosen: dict[str, Any] = {**(cls.presets[preset] if preset is not None else {}), **typed}
    matched = cls.matched(recipe.codebook_size, recipe.codebook_dim)
    given = _without(cls.Config, {**matched, **chosen}, variant.off)
    config = build(cls.Config, given, name, f"vqbench show {name}")
    switches = {component: bool(getattr(config, f)) for component, f in components(cls.Config).items()}
    off = {component for component, on in switches.items() if not on}
    config = replace(config, **{f: value for f, value in _idle(cls.Config, off).items() if f not in given})
    _refuse_idle(name, cls.Config, typed, off - variant.off)
    open_fields = [f.name for f in dataclasses.fields(cls.Config) if f.metadata.get("paper_unspecified")]
    source, quantizer = METHODS.source_of(name), _built(cls, config)
    return MethodChoice(
        label=variant.label,
        name=name,
        preset=preset,
        config=stored(config),
        components=switches,
        unspecified={field: as_dict(config)[field] for field in open_fields},
        part_of={field: list(parts) for field, parts in part_of(cls.Config).items()},
        paper=paper_facts(cls, name, preset, switches),
        remark=cls.remark(config),
        size=_size(quantizer, cls, config, chosen, recipe),
        artifact=_artifact(cls, config, reference),
        conditions_decoder=_conditions_decoder(quantizer),
        plugin=source.plugin.in_words() if source.plugin is not None else None,
        plugin_source=source.plugin.packed() if source.plugin is not None else None,
        code=source.digest,
    )


def _artifact(cls: Any, config: Any, reference: str) -> dict[str, Any] | None:
    """The fields of what a configuration is built around. Raises UsageError where a plugin says no such thing."""
    try:
        artifact = cls.artifact(config)
        return None if artifact is None else dataclasses.asdict(artifact)
    except Exception as error:
        what = f"{reference}: its artifact(config) gives no Artifact: {type(error).__name__}: {error}"
        raise UsageError(what, "see docs/writing-a-method.md; `vqbench check` tries it") from error


def _built(cls: Any, config: Any) -> Any:
    """The quantizer, or None where it cannot be built."""
    import torch

    try:
        with torch.random.fork_rng(devices=[]):
            return cls(config)
    except Exception:  # its cell will fail with the reason, and the others must not
        return None


def _conditions_decoder(quantizer: Any) -> bool:
    import torch

    try:
        with torch.random.fork_rng(devices=[]):
            return quantizer.decoder_modulation(64) is not None
    except Exception:  # as above, and of what could not be built
        return False


def _size(quantizer: Any, cls: Any, config: Any, chosen: Mapping[str, Any], recipe: Recipe) -> dict[str, Any] | None:
    """The size of a quantizer beside what was asked for: by its own `codebook_size`, else by the recipe.

    Who `chose` another size by other fields of the method, such as FSQ's levels, has what was asked for.
    """
    found, asked = _built_size(quantizer), recipe.codebook_size
    if found is None:
        return None
    if "codebook_size" in chosen:
        return {**found, "asked": int(config.codebook_size) ** found["num_codebooks"]}
    if not chosen:
        return {**found, "asked": asked}
    kept = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in chosen}
    try:
        unchosen = build(cls.Config, kept | cls.matched(asked, recipe.codebook_dim), cls.__name__, "")
    except UsageError:  # it means nothing without what was chosen
        return {**found, "asked": None}
    return {**found, "asked": asked if _built_size(_built(cls, unchosen)) == found else None}


def _built_size(quantizer: Any) -> dict[str, int] | None:
    try:
        return {"codebook_size": int(quantizer.codebook_size), "num_codebooks": int(quantizer.num_codebooks)}
    except Exception:  # as above
        return None


def _without(cls: type, values: dict[str, Any], off: frozenset[str]) -> dict[str, Any]:
    """Values with components off, and without those that have no effect then."""
    idle = _idle(cls, off)
    kept = {field: value for field, value in values.items() if field not in idle}
    return kept | {field: False for component, field in components(cls).items() if component in off}


def _idle(cls: type, off: Collection[str]) -> dict[str, Any]:
    """What has no effect while components are off, at its first default: one configuration, one cell."""
    idle = {field for field, parts in part_of(cls).items() if not set(off).isdisjoint(parts)}
    return {f.name: first_default(f) for f in dataclasses.fields(cls) if f.name in idle}


def _refuse_idle(name: str, cls: type, typed: dict[str, str], off: set[str]) -> None:
    for field in typed:
        for component in off.intersection(part_of(cls).get(field, ())):
            raise UsageError(
                f"{name}.{field} has no effect here: its component {component} is off",
                f"leave it out, or --set {name}.{components(cls)[component]}=true",
            )
