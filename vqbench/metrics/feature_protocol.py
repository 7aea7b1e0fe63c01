"""What a number of the features track means: a protocol of its own, whose hash no image protocol has. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vqbench.metrics.definitions import IN_FEATURE_PROTOCOL, metric
from vqbench.metrics.protocol import NOT_HASHED, Hashed

VERSION = "v1"
"""Version of these definitions and of the frozen encoder. A change in what a number means makes a new one."""

STANDARDISATION = (
    "Each channel less its mean, divided by its standard deviation, both over all training tokens in float64; a "
    "channel that does not vary there is left at zero."
)


def _sentences() -> dict[str, str]:
    """As for images, of tokens that are all there is."""
    known = {name: metric(name).sentence for name in IN_FEATURE_PROTOCOL}
    return {name: sentence.replace("the whole split", "all validation tokens") for name, sentence in known.items()}


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
    small_images: str = field(default="", metadata=NOT_HASHED)
    """How many images of the dataset are smaller than they are resized to, and what became of them."""

    def describe(self) -> str:
        """A few lines for a person."""
        return "\n".join(
            (
                f"protocol {self.name} ({self.hash})",
                f"  {self.n_images} × {self.tokens_per_image} validation tokens of {self.channels} channels, each once",
                f"  features: {self.source}",
                f"  split: {self.split_rule}",
                *([f"  small images: {self.small_images}"] if self.small_images else []),
                f"  validation {self.validation_digest[:12]}, definitions {self.version} (docs/protocol.md)",
            )
        )
