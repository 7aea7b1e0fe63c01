"""Words for people that several places need alike."""

from __future__ import annotations

import re


def counted(number: int, noun: str) -> str:
    """`1 cell`, `2 cells`, `1,000 cells`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def masked(url: str) -> str:
    """A URL without its password."""
    return re.sub(r"(://[^:/@]*:)[^@]*@", r"\1***@", url)
