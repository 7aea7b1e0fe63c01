"""What a number of the features track means: its own metrics and its own protocol. No torch here.

The sentences of `vqbench.metrics.definitions` are part of every image protocol, so those of the features track stand
apart: no image number changes its hash, and no two numbers of the two tracks ever share one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from vqbench.errors import UsageError, unknown
from vqbench.metrics.definitions import COMPANIONS, METRICS, Definition
from vqbench.protocol import Hashed

VERSION = "v1"
"""Version of these definitions and of the frozen encoder. A change in what a number means makes a new one."""

STANDARDISATION = (
    "Each channel less its mean, divided by its standard deviation, both over all training tokens in float64; a "
    "channel that does not vary there is left at zero."
)


def _as_for_images(name: str) -> Definition:
    known = METRICS[name]
    sentence = known.sentence.replace("the whole split", "all validation tokens")
    return Definition(
        name, known.title, known.unit, known.better, known.per_image, known.weights, known.default, sentence
    )


_TABLE = (
    Definition(
        "quantization_error", "quantization error", "", "lower", True, None, True,
        "Mean over validation tokens of |x − x̂|², divided by the mean over validation tokens of |x − m|²: x the "
        "standardised features of a token, x̂ what indices and the learned linear map give back for it in eval mode and "
        "float32, m the mean of x over all validation tokens. 0 is perfect, 1 is what knowing m alone gives.",
    ),
    *(_as_for_images(name) for name in ("usage", "perplexity", "dead_codes", "bits_per_token")),
    Definition(
        "entropy_bits_per_token", "bits/token (entropy)", "bit", None, False, None, True,
        "Bits per token of an ideal coder that knows the histogram of each codebook over all validation tokens: the "
        "sum of their entropies in bits.",
    ),
    _as_for_images("tokens"),
)  # fmt: skip

FEATURE_METRICS: dict[str, Definition] = {definition.name: definition for definition in _TABLE}


def select_feature_metrics(asked: Iterable[str]) -> tuple[str, ...]:
    """Metric names in the table's order; nothing asked → all. Raises UsageError for one that features do not have."""
    names = list(asked)
    listed = ", ".join(FEATURE_METRICS)
    for name in names:
        if name in {**METRICS, **COMPANIONS} and name not in FEATURE_METRICS:
            raise UsageError(
                f"{name} is a metric of images, and this recipe fits features: nothing is decoded to an image",
                f"leave out --metrics (and VQBENCH_METRICS), or choose among {listed}",
            )
        if name not in FEATURE_METRICS:
            raise unknown("metric of features", name, FEATURE_METRICS, f"known metrics: {listed}")
    return tuple(name for name in FEATURE_METRICS if name in names or not names)


def _sentences() -> dict[str, str]:
    return {name: definition.sentence for name, definition in FEATURE_METRICS.items()}


@dataclass(frozen=True)
class FeatureProtocol(Hashed):
    """What a number of the features track was measured on and how."""

    name: str
    """Source, resolution where it has one, and version of the definitions: "photos-32-features-v1"."""
    dataset: str
    source: str
    """Where the features come from, in words."""
    split_rule: str
    """How the validation features were chosen, in words."""
    validation_digest: str
    """Digest of all that the standardised validation features are computed from."""
    n_images: int
    """Validation images, or for a file its validation rows."""
    channels: int
    """Values per token."""
    tokens_per_image: int
    track: str = "features"
    standardisation: str = STANDARDISATION
    version: str = VERSION
    definitions: Mapping[str, str] = field(default_factory=_sentences)

    def describe(self) -> str:
        """A few lines for a person."""
        return "\n".join(
            (
                f"protocol {self.name} ({self.hash})",
                f"  {self.n_images} × {self.tokens_per_image} validation tokens of {self.channels} channels, each once",
                f"  features: {self.source}",
                f"  split: {self.split_rule}",
                f"  validation {self.validation_digest[:12]}, definitions {self.version} (docs/protocol.md)",
            )
        )
