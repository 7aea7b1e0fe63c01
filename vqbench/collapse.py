"""When a training has collapsed: its codes, its latents or its posterior have gone where they teach nothing more."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vqbench.errors import VQBenchError

MIN_PERPLEXITY_SHARE = 0.01
"""Of the codebook; below it, in the last 100,000 tokens, the codes have collapsed. From 11 codes on, 2 at least."""
MAX_ALIGNMENT_WEIGHT = 1e6
"""A latent is drawn to its code a million times as strongly as a squared distance would: sigma below 0.001."""
MAX_RATIO = 100.0
"""Codes and latents that differ in root mean square by more than this have lost each other."""
MAX_NOISE = 100.0
"""Sigma over the root mean square of the means: beyond it the sample says nothing of the image."""
GRACE = 0.1
"""Of the budget: codebooks start small or unused, and find their place; nothing is judged before."""
PATIENCE = 0.1
"""Of the budget: how long a collapse must last before --stop-on-collapse ends a training."""


@dataclass(frozen=True)
class Collapse:
    """A training that has gone where it learns nothing more."""

    kind: str
    """collapsed, or diverged."""
    reason: str
    images: int
    """Images seen when it was first noticed, without a recovery since."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"kind": self.kind, "reason": self.reason, "images": self.images}


class FlaggedError(VQBenchError):
    """A training that ended because of a collapse or a divergence; its result carries the flag."""

    def __init__(self, what: str, hint: str, collapse: Collapse) -> None:
        super().__init__(what, hint)
        self.collapse = collapse

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return type(self), (self.what, self.hint, self.collapse)


class DivergedError(FlaggedError):
    """The loss is no longer a number."""


class CollapsedError(FlaggedError):
    """Stopped, as asked, since it had collapsed for long."""


def hardly_used(perplexity: float, codebook_size: int) -> bool:
    """Whether a codebook of this perplexity has collapsed."""
    least = min(2.0, 1 + (codebook_size - 1) / 10)  # of two codes, 1.1: both may be in use and unevenly
    return perplexity < max(least, MIN_PERPLEXITY_SHARE * codebook_size)


def symptom(codebook_size: int, codes: Mapping[str, float], diagnostics: Mapping[str, float]) -> str:
    """What is wrong, in words; empty where nothing is.

    `codes`: usage_100k and perplexity_100k. `diagnostics`: what the quantizer logs; those that it lacks are not
    judged. Non-finite losses are not a matter of this function: they end a training.
    """
    perplexity = codes["perplexity_100k"]
    if hardly_used(perplexity, codebook_size):
        used = round(codes["usage_100k"] * codebook_size)
        return f"perplexity {perplexity:.1f} of {codebook_size} codes in the last 100,000 tokens ({used} used)"
    for name, value in diagnostics.items():
        if not math.isfinite(value):
            return f"{name} is not finite"
    sigma = diagnostics.get("sigma_median")
    weight = diagnostics.get("alignment_weight_max", 0.0)
    if weight > MAX_ALIGNMENT_WEIGHT:
        return f"largest alignment weight {weight:.2g}" + ("" if sigma is None else f", median sigma {sigma:.2g}")
    latent, code = diagnostics.get("latent_rms"), diagnostics.get("code_rms")
    if latent is not None and code is not None and not 1 / MAX_RATIO < latent / max(code, 1e-30) < MAX_RATIO:
        return f"latents (rms {latent:.2g}) and codes (rms {code:.2g}) are far apart"
    if latent is not None and sigma is not None and sigma > MAX_NOISE * latent:
        return f"median sigma {sigma:.2g} drowns the latents (rms {latent:.2g})"
    return ""


class CollapseWatch:
    """Judges a training each time that the window of codes has moved."""

    def __init__(self, images_total: int) -> None:
        self.images_total = images_total
        self.since = 0
        """Images seen when the present collapse was noticed; 0 where there is none."""
        self.reason = ""

    def judge(self, images_seen: int, reason: str) -> None:
        """Note the symptom after `images_seen` images, empty for none."""
        if images_seen < GRACE * self.images_total:
            return
        self.since = (self.since or images_seen) if reason else 0
        self.reason = reason

    @property
    def collapse(self) -> Collapse | None:
        """The present collapse."""
        return Collapse("collapsed", self.reason, self.since) if self.since else None

    def lasting(self, images_seen: int) -> CollapsedError | None:
        """The error that ends a training whose present collapse is old enough, for those who want it to end."""
        collapse = self.collapse
        if collapse is None or images_seen - self.since < PATIENCE * self.images_total:
            return None
        if images_seen >= self.images_total:  # it is at its end anyway, and has the flag
            return None
        what = f"stopped after {images_seen} images: collapsed since {self.since}: {self.reason}"
        return CollapsedError(what, "without --stop-on-collapse the same command trains it to the end", collapse)

    def state(self) -> dict[str, Any]:
        """What to put into a checkpoint."""
        return {"since": self.since, "reason": self.reason}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.since, self.reason = state["since"], state["reason"]
