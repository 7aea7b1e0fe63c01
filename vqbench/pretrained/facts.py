"""What is known of a tokenizer that is trained already, as a spec, a result and a row say it. Never imports torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from vqbench.metrics.evaluation import Codec

Kind = Literal["checkpoint", "diffusers", "adapter", "images", "vqbench"]


@dataclass(frozen=True)
class Facts:
    """Where a tokenizer is from and what it is, JSON-ready."""

    kind: Kind
    """The door that it came through: a file of weights, a diffusers folder, an adapter's function, a folder of
    reconstructions, or a tokenizer that vqbench trained."""
    name: str
    """What its row is called, unless it is given another name: the file's."""
    path: str
    """Absolute; of an adapter with its function, `/where/adapter.py:function`."""
    sha256: str
    """Of all bytes that its numbers depend on: one file's own, or over the files' in a fixed order."""
    family: str = ""
    """The layout that its weights are in ("taming", "llamagen"…), or our method."""
    weights: Literal["", "raw", "ema"] = ""
    """Which weights of a file that holds two sets were read; empty where it holds one."""
    codebook_size: int | None = None
    """K of one codebook; None where there are no indices (a folder of reconstructions)."""
    num_codebooks: int = 1
    code_dim: int | None = None
    """Channels of a code; None where it is not known."""
    bits_per_token: float | None = None
    downsampling: int | None = None
    """Pixels per token along one side; None where tokens are no grid."""
    resolution: int | None = None
    """The side of the images that it was trained on; None where it is not known."""
    sizes: tuple[int, ...] = ()
    """The sides that it takes, where it takes no others."""
    image_channels: int = 3
    parameters: Mapping[str, int] = field(default_factory=dict)
    """By part, with "total"; empty where they cannot be counted."""
    unread: tuple[str, ...] = ()
    """What the file holds beside the tokenizer, in words: "loss.*: 45 tensors"."""
    trained_on: str = ""
    """Data and resolution of its training, where they are known."""
    licence: str = ""
    """Of the weights, where it is stated."""
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Protocol in words → metric → the score that its authors print: shown, never compared."""
    remarks: tuple[str, ...] = ()
    """What must be said of it aloud, each a sentence without a full stop: "computes in bfloat16"."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: what is not as by default."""
        blank = {f.name: f.default for f in dataclasses.fields(self)}
        said = {name: value for name, value in dataclasses.asdict(self).items() if value not in (blank[name], {}, ())}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in said.items()}

    @property
    def in_hash(self) -> dict[str, str]:
        """What of it decides the numbers of its cell, and so its hash: neither its name nor its place."""
        return {"kind": self.kind, "sha256": self.sha256, "family": self.family, "weights": self.weights}

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Facts:
        """What `as_dict` said, of a newer vqbench too: what is not known here is left out."""
        known = {f.name for f in dataclasses.fields(cls)}
        values = {name: tuple(v) if isinstance(v, list) else v for name, v in said.items() if name in known}
        return cls(**values)


@dataclass(frozen=True)
class Opened:
    """A tokenizer, and what is known of it."""

    codec: Codec
    """In eval mode, on the CPU: evaluation asks it for `to_indices` and `from_indices`, people for `encode` and
    `decode`."""
    facts: Facts
