"""What is known of a tokenizer that is trained already, as a spec, a result and a row say it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vqbench.errors import UsageError
from vqbench.wording import counted

BY = " by "
"""Between a metric and whose definition of it a published score is by, where that is no metric here."""
Kind = Literal["checkpoint", "diffusers", "adapter", "images", "vqbench"]


def split_in_words(said: Mapping[str, Any]) -> str:
    """Which images of a dataset are validation, of what a spec says of the dataset; empty: as it has them."""
    return ", ".join(f"{name} {said[name]}" for name in ("holdout", "split_list", "split") if said.get(name))


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
    multiple_of: int = 1
    """What divides the sides of the images that it takes, where it takes fewer than `downsampling` lets it."""
    resolution: int | None = None
    """The side of the images that it was trained on; None where it is not known."""
    sizes: tuple[int, ...] = ()
    """The sides that it takes, where it takes no others."""
    oblong: tuple[str, ...] = ()
    """As "256×128", height first: the sizes that it takes, where it takes no others and none is a square."""
    image_channels: int = 3
    parameters: Mapping[str, int] = field(default_factory=dict)
    """By part, with "total"; empty where they cannot be counted."""
    unread: tuple[str, ...] = ()
    """What the file holds beside the tokenizer, in words: "loss.*: 45 tensors"."""
    trained_on: str = ""
    """Data and resolution of its training, where they are known."""
    training: Mapping[str, str] = field(default_factory=dict)
    """Of one that vqbench trained, where its file tells it: how its dataset was "split", digests of the training
    "images" and of the "dataset" whatever its split; and its "reference", where a cell does."""
    trained_as: str = ""
    """Digest of all that decided the weights of one that vqbench trained, but the seed; empty where it is not known."""
    seed: int | None = None
    """Of its training, where vqbench trained it."""
    licence: str = ""
    """Of the weights, where it is stated."""
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Protocol in words → metric, or "metric by whom" → the score that its authors print: shown, never compared."""
    remarks: tuple[str, ...] = ()
    """What must be said of it aloud, each a sentence without a full stop: "computes in bfloat16"."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: what is not as by default."""
        blank = {f.name: f.default for f in dataclasses.fields(self)}
        said = {name: value for name, value in dataclasses.asdict(self).items() if value not in (blank[name], {}, ())}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in said.items()}

    def may_have_seen(self, reference: str, split: str, images: str, dataset: str) -> str:
        """What must be said where images may be scored on which it was trained; empty where there is no reason to.

        What is scored is of the dataset `reference`, split so; `images` is the digest of those that it leaves to train
        on, and `dataset` that of its own split's.
        """
        known = self.training
        if self.kind != "vqbench" or known.get("images") == images:
            return ""
        is_same = known.get("reference") == reference or known.get("dataset") == dataset
        if is_same and known.get("split") != split:
            return "it was trained on some of the images that are scored, or may have been: they are split otherwise"
        if "reference" not in known:
            return "it is not known on which images it was trained: some of them may be scored"
        return ""

    @property
    def step(self) -> int:
        """What divides the sides of the images that it takes, as far as it is known."""
        return math.lcm(self.downsampling or 1, self.multiple_of)

    def refuse_images(self, label: str, resolution: int | None, channels: int) -> None:
        """Raise UsageError where it does not take square images of this side, or of so many channels.

        The side is None where each image has a size of its own.
        """
        if resolution is not None and resolution % self.step:
            near = max(1, round(resolution / self.step)) * self.step
            what = f"{label} takes sides that are divisible by {self.step}, not {resolution}"
            raise UsageError(what, f"the nearest: {near}")
        if resolution is None and self.sizes:
            known = ", ".join(map(str, self.sizes))
            what = f"{label} takes images of {known} px alone, and here each keeps its own size"
            raise UsageError(what, "leave --protocol native out")
        if resolution is not None and self.oblong:
            what = f"{label} takes images of {' or '.join(self.oblong)} px alone, and images are squares here"
            raise UsageError(what, "let its encode pad squares, its decode cut that off, and leave its `sizes` out")
        if resolution is not None and self.sizes and resolution not in self.sizes:
            known = ", ".join(map(str, self.sizes))
            raise UsageError(f"{label} takes images of {known} px, not {resolution}", f"give it {self.sizes[0]}")
        if self.image_channels != channels and self.kind != "images":
            own, asked = counted(self.image_channels, "channel"), counted(channels, "channel")
            hint = f"images of {own} are wanted: --set image_channels={self.image_channels}, or another dataset"
            raise UsageError(f"{label} takes images of {own}, not of {asked}", hint)

    def in_words(self) -> str:
        """ "taming, K = 1,024, d = 256, f = 16, EMA weights, sha256 0123456789ab": what is said of it in a line."""
        said = [self.family or {"images": "a folder of reconstructions"}.get(self.kind, self.kind)]
        if self.codebook_size is not None:
            books = f"{self.num_codebooks} × " if self.num_codebooks > 1 else ""
            said.append(f"K = {books}{self.codebook_size:,}")
        said += [f"d = {self.code_dim}"] if self.code_dim is not None else []
        said += [f"f = {self.downsampling}"] if self.downsampling is not None else []
        said += [{"ema": "EMA weights", "raw": "raw weights, not their EMA"}[self.weights]] if self.weights else []
        said += [f"trained on {self.trained_on}"] if self.trained_on else []
        said += [f"licence {self.licence}"] if self.licence else []
        of_a_file = self.kind in ("checkpoint", "vqbench")
        return ", ".join([*said, f"{'sha256' if of_a_file else 'digest'} {self.sha256[:12]}"])

    @property
    def in_hash(self) -> dict[str, str]:
        """What of it decides the numbers of its cell, and so its hash: neither its name nor its place."""
        return {"kind": self.kind, "sha256": self.sha256, "family": self.family, "weights": self.weights}

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Facts:
        """What `as_dict` said, of a newer vqbench too: what is not known here is left out."""
        known = {f.name for f in dataclasses.fields(cls)}
        plain = {name: value for name, value in said.items() if name in known}
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in plain.items()}
        return cls(**values)
