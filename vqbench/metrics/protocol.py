"""The protocol: everything about evaluation that is held equal. Two results compare only under one protocol hash."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vqbench.metrics.definitions import IN_PROTOCOL, VERSION, cautions, metric, of_protocol
from vqbench.metrics.named import NamedProtocol
from vqbench.metrics.weights import BACKBONES, INCEPTION, LPIPS_HEADS
from vqbench.wording import counted

CENTRE_CROP = "centre square"
LANCZOS = "PIL Lanczos, short side to the resolution"
ROUNDING = "reconstructions clamped to [-1, 1], then round(127.5 (x + 1)), to 8 bits, once, before every metric"


def _sentences(named: NamedProtocol | None = None) -> dict[str, str]:
    names = IN_PROTOCOL if named is None else of_protocol(map(metric, IN_PROTOCOL), named)
    return {name: metric(name).sentence for name in names}


def pinned_weights() -> dict[str, str]:
    """Every network that a metric uses → the digest under which it is pinned."""
    backbones = {f"lpips_{net}": f"{pin.digest}, heads {LPIPS_HEADS[net]}" for net, pin in BACKBONES.items()}
    return {INCEPTION.name: INCEPTION.digest, **backbones}


ADDED_LATER = {"added_later": True}
"""Of a field of a protocol: it is there only where it is not as it always was, so that stored hashes stay."""
NOT_HASHED = {"hashed": False, **ADDED_LATER}
"""Of a field that says what others already depend on."""


class Hashed:
    """A dataclass of what must be equal for numbers to be compared, with the hash of its whole content."""

    @functools.cached_property
    def hash(self) -> str:
        """First 12 hex digits of the sha256 of the canonical JSON of what is hashed."""
        hashed = {f.name for f in dataclasses.fields(self) if f.metadata.get("hashed", True)}  # type: ignore[arg-type]
        content = {name: value for name, value in self.as_dict().items() if name in hashed}
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; what the hash is taken of, and what is said beside it."""
        fields = {f.name: (f, getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {
            name: _plain(value)
            for name, (known, value) in fields.items()
            if not (known.metadata.get("added_later") and value == known.default)
        }


@dataclass(frozen=True)
class Protocol(Hashed):
    """What a number was measured on and how.

    All definitions and weights of v1 are pinned, whichever metrics a run computes: computing LPIPS later does not
    change the hash. Metrics that came later have a digest of their own (`vqbench.metrics.definitions`).
    """

    name: str
    """Dataset, resolution and version of the definitions: "photos-32-v1"."""
    dataset: str
    split_rule: str
    """How the validation images were chosen, in words."""
    validation_digest: str
    """Digest of the validation images."""
    n_images: int
    """rFID depends on it: fewer images give a larger one."""
    resolution: int
    """Pixels a side; 0 where each image has its own."""
    crop: str = CENTRE_CROP
    resize: str = LANCZOS
    rounding: str = ROUNDING
    version: str = VERSION
    definitions: Mapping[str, str] = field(default_factory=_sentences)
    weights: Mapping[str, str] = field(default_factory=pinned_weights)
    small: str = field(default="", metadata=ADDED_LATER)
    """What became of images that are smaller than they are resized to; empty: such an image is refused."""
    orientation: str = field(default="", metadata=ADDED_LATER)
    """How images are turned; empty: as EXIF says."""
    small_images: str = field(default="", metadata=NOT_HASHED)
    """How many of each side are small."""
    image_channels: int = field(default=3, metadata=ADDED_LATER)
    training_images: str = field(default="", metadata=ADDED_LATER)
    """What was made of the images that are trained on, and of no other; empty: nothing."""
    rules: str = field(default="", metadata=ADDED_LATER)
    """The named protocol whose rules they are; empty: ours."""
    substitute: str = field(default="", metadata=NOT_HASHED)
    """What of that source cannot be run here, and what stands in for it."""
    source: str = field(default="", metadata=NOT_HASHED)
    """Where its rules were read."""

    def describe(self) -> str:
        """A few lines for a person."""
        size = f"{self.resolution}×{self.resolution}" if self.resolution else "each at its own size"
        if self.image_channels != 3:
            size += f" of {counted(self.image_channels, 'channel')}"
        return "\n".join(
            (
                f"protocol {self.name} ({self.hash})",
                f"  {self.n_images} validation images of {self.dataset}, {size}, each once",
                f"  split: {self.split_rule}",
                f"  crop: {self.crop}; resize: {self.resize}",
                *([f"  orientation: {self.orientation}"] if self.orientation else []),
                *([f"  small images: {self.small_images or self.small}"] if self.small else []),
                *([f"  training images: {self.training_images}"] if self.training_images else []),
                f"  rounding: {self.rounding}",
                *([f"  rules of {self.rules}: {self.source}"] if self.rules else []),
                *([f"  not as there: {self.substitute}"] if self.substitute else []),
                f"  images {self.validation_digest[:12]}, Inception {self.weights['inception'][:12]}, "
                f"definitions {self.version} (docs/protocol.md)",
                *(f"  {text}" for text in cautions(self.definitions, self.n_images).values()),
            )
        )


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def protocol_for(
    protocol_name: str,
    resolution: int,
    validation_digest: str,
    n_images: int,
    split_rule: str,
    crop: str = CENTRE_CROP,
    resize: str = LANCZOS,
    small: str = "",
    orientation: str = "",
    small_images: str = "",
    image_channels: int = 3,
    training_images: str = "",
    named: NamedProtocol | None = None,
) -> Protocol:
    """The protocol of a dataset at a resolution.

    `protocol_name` is the dataset's part of the name ("photos"; "ffhq-6to1" where the split is not the official
    one): the resolution, what `named` is called and the version are appended. `crop`, `resize`, `small` and
    `orientation` are `Reading.in_words`.
    """
    rules = "-".join([*([str(resolution)] if resolution else []), *([named.name] if named is not None else [])])
    others: dict[str, Any] = {} if named is None else {
        "rules": named.name, "rounding": named.rounding or ROUNDING, "definitions": _sentences(named),
        "substitute": named.substitute, "source": named.source,
    }  # fmt: skip
    return Protocol(
        name=f"{protocol_name}-{rules}-{VERSION}",
        dataset=protocol_name,
        split_rule=split_rule,
        validation_digest=validation_digest,
        n_images=n_images,
        resolution=resolution,
        crop=crop,
        resize=resize,
        small=small,
        orientation=orientation,
        small_images=small_images,
        image_channels=image_channels,
        training_images=training_images,
        **others,
    )
