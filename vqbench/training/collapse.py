"""When a training has collapsed: its codes, its latents or its posterior have gone where they teach nothing more."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from vqbench.errors import VQBenchError

if TYPE_CHECKING:
    from torch import Tensor

MIN_PERPLEXITY_SHARE = 0.01
"""Of the codebook; below it, in the last 100,000 tokens, the codes have collapsed. From 11 codes on, 2 at least."""
MAX_ALIGNMENT_WEIGHT = 1e6
"""A latent is drawn to its code a million times as strongly as a squared distance would: sigma below 0.001."""
MAX_RATIO = 100.0
"""Codes and latents that differ in root mean square by more than this have lost each other."""
MAX_NOISE = 100.0
"""Sigma over the root mean square of the means: beyond it the sample says nothing of the image."""
BEHIND = 1.4
"""Times the codes' own best squared error: 1.5 dB. Of VAEVQ's and vqgan's trainings of 8,000 to 60,000 images those
that lost their codes reach 1.6 to 2.5, and of the others one passes 1.2, and comes back (docs/vaevq.md)."""
RECOVERED = 1.2
"""Times the best, below which codes that had fallen behind are back. Between the two nothing changes: a training that
sways about BEHIND is not forgiven because it ends on the right side."""
SMOOTHING = 0.05
"""Of the budget: the time constant of that error's exponential mean, but never more than a tenth of the images so far:
a best that was early and short, as in a long training, would be smoothed away. An error that doubles is noticed within
another 5 % of the budget."""
LEAST_SMOOTHING = 512
"""Images: at least that time constant. The errors of batches of 16 differ by a tenth (faces) to a quarter (crops of a
few photographs); over so many images they are known to 3 %, so that noise never comes near to BEHIND."""
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


class SmoothedError:
    """Geometric mean of a squared error over a training's latest images, older ones forgotten exponentially.

    It stays on the device where the errors are, so that a step does not wait for it.
    """

    def __init__(self, images_total: int) -> None:
        self.images_total = images_total
        self.images = 0
        self._weight = 0.0
        """Of all errors so far, while they are fewer than what is forgotten."""
        self.logarithm: Tensor | float = 0.0
        """On the device after an error, until it is brought to the host."""

    def add(self, error: Tensor, images: int) -> None:
        """Note the mean error, a scalar, of the next `images` images."""
        wide = error.detach() if error.device.type == "mps" else error.detach().double()  # a late step moves it little
        logarithm = wide.clamp(1e-12, 1e12).log()
        self.images += images
        time_constant = max(min(SMOOTHING * self.images_total, 0.1 * self.images), LEAST_SMOOTHING)
        share = -math.expm1(-images / time_constant)
        self._weight += share * (1 - self._weight)
        self.logarithm = self.logarithm + share * (logarithm - self.logarithm)

    @property
    def value(self) -> float:
        """The mean; ValueError before the first error."""
        if self.images == 0:
            raise ValueError("no error was noted")
        return math.exp(float(self.logarithm) / self._weight)

    def state(self) -> dict[str, Any]:
        """What to put into a checkpoint."""
        return {"images": self.images, "weight": self._weight, "logarithm": float(self.logarithm)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self.images, self._weight, self.logarithm = state["images"], state["weight"], state["logarithm"]


@dataclass(frozen=True)
class Best:
    """The least squared error that the codes of a training had, and what was logged there."""

    images: int
    error: float
    alignment_rms: float | None


class CollapseWatch:
    """Judges a training each time that the window of codes has moved.

    Beside the symptom that it is told, it knows one of its own: codes that have fallen behind their own best. Their
    squared error, smoothed, is more than BEHIND times the least that it was since the first LEAST_SMOOTHING images, and
    has not come back to RECOVERED times that since. The measure is what the recipe minimises, so an error that nobody
    minimises (`pixel_weight` 0) is not shown to it. When an adversary starts, for which fidelity is given up on
    purpose, it has to `forget` what came before, unless the codes were lost by then, and leaves the training another
    GRACE. A perceptual term needs nothing of the kind: it is there from the first step, and so in the best as well.
    Losses of a method's own may begin when they like: that they carry the codes away is the symptom, and so is an
    estimator that hardens late and never makes up for it.
    """

    def __init__(self, images_total: int) -> None:
        self.images_total = images_total
        self.since = 0
        """Images seen when the present collapse was noticed; 0 where there is none."""
        self.reason = ""
        self._begin()

    def _begin(self) -> None:
        self._codes, self._continuous = SmoothedError(self.images_total), SmoothedError(self.images_total)
        self._best: Best | None = None
        self._lost = False

    def forget(self) -> None:
        """Begin anew with the codes' own best, since what is minimised has changed; not where they are lost already."""
        if not self._lost:
            self._begin()

    def observe(self, images: int, error: Tensor, continuous: Tensor | None = None) -> None:
        """Note the squared error of a step's reconstructions, a scalar: from the codes and from the continuous path.

        `images` of a batch over all devices; the error may be of this device's share.
        """
        self._codes.add(error, images)
        if continuous is not None:
            self._continuous.add(continuous, images)

    @property
    def unsettled(self) -> dict[str, Tensor]:
        """What of it lies on the device, to be brought to the host with other things, and given to `settle`."""
        kept = {"error": self._codes.logarithm, "continuous error": self._continuous.logarithm}
        return {name: value for name, value in kept.items() if not isinstance(value, float)}

    def settle(self, values: Mapping[str, float]) -> None:
        """Keep the values of `unsettled`; other names are left alone."""
        for name, smoothed in (("error", self._codes), ("continuous error", self._continuous)):
            if name in values:
                smoothed.logarithm = values[name]

    def judge(self, images_seen: int, reason: str, diagnostics: Mapping[str, float] | None = None) -> None:
        """Note the symptom after `images_seen` images, empty for none; `diagnostics` are what the quantizer logs."""
        behind = self._behind(images_seen, diagnostics or {})  # which also notes a new best
        if images_seen < GRACE * self.images_total:
            return
        self.reason = reason or behind
        self.since = (self.since or images_seen) if self.reason else 0

    def _behind(self, images_seen: int, diagnostics: Mapping[str, float]) -> str:
        if self._codes.images < LEAST_SMOOTHING:
            return ""
        error, alignment = self._codes.value, diagnostics.get("alignment_rms")
        if self._best is None or error < self._best.error:
            self._best = Best(images_seen, error, alignment)
        best = self._best
        graced = self._codes.images < GRACE * self.images_total
        self._lost = not graced and error > (RECOVERED if self._lost else BEHIND) * best.error
        if not self._lost:
            return ""
        said = (
            f"the codes have fallen behind their own best: squared error {error:.2g}, {error / best.error:.1f} times "
            f"what it was after {best.images:,} images ({best.error:.2g})"
        )
        if self._continuous.images:
            said += f"; the continuous path is at {self._continuous.value:.2g}"
        if alignment is not None and best.alignment_rms is not None:
            said += f"; alignment_rms {alignment:.2g}, at the best {best.alignment_rms:.2g}"
        return said

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
        best = asdict(self._best) if self._best is not None else None
        errors = {
            "codes": self._codes.state(),
            "continuous": self._continuous.state(),
            "best": best,
            "lost": self._lost,
        }
        return {"since": self.since, "reason": self.reason, "errors": errors}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`; of an earlier version's, which knew no errors, what there is."""
        self.since, self.reason = state["since"], state["reason"]
        self._begin()
        if errors := state.get("errors"):
            self._codes.restore(errors["codes"])
            self._continuous.restore(errors["continuous"])
            self._best = Best(**errors["best"]) if errors["best"] is not None else None
            self._lost = errors["lost"]
