"""Words for people that several places need alike."""

from __future__ import annotations

import re


def counted(number: int, noun: str) -> str:
    """`1 cell`, `2 cells`, `1,000 cells`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def masked(url: str) -> str:
    """A URL without its passwords: that after a user's name, those of its query."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    place = re.split("[/?#]", rest, maxsplit=1)[0]
    user, at, host = place.rpartition("@")
    name, colon, _ = user.partition(":")
    asked = re.sub(r"(?i)([?&][^=&]*(?:password|passwd|token|secret)[^=&]*=)[^&#]*", r"\1***", rest[len(place) :])
    return f"{scheme}://{name}{colon}{'***' if colon else ''}{at}{host}{asked}"
