"""Words for people that several places need alike, and what must not be among them: secrets."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

_STRONG = r"pass(?:word|wd|phrase)|pwd|secret|api[-_.]?key|(?:access|account|private)[-_.]?key|credentials?"
_TOKEN = r"tokens?(?![a-z])"
_SHORT = r"(?:[\w.%-]*[-_.])?(?:key|pass|auth|jwt)|sig|pw|authorization"
_NAME = rf"(?:[\w.%-]*(?:{_STRONG}|{_TOKEN}|signature)[\w.%-]*|{_SHORT})"
"""What a secret is called in the query of an address."""
_QUERY = re.compile(rf"(?i)([?&;](?:amp;)?{_NAME}=|(?:%3f|%26){_NAME}%3d)(?!\*{{3}}(?:\W|$))([^&]*)")
_QUERY_IN_TEXT = re.compile(_QUERY.pattern.replace("[^&]", r"[^&\s'\"`<>]"))
_ASSIGNED = re.compile(rf"(?i)(\b[\w.-]*(?:{_STRONG})[\w.-]*=)([^\s&;,'\"`<>]+)")
_HEADER = re.compile(r"(?i)(\bauthorization['\"]?\s*[:=]\s*['\"]?(?:\w+ )?|\bBearer(?: |%20))([\w.~+/=-]{4,})")
_SCHEME = r"[a-z][a-z0-9+.-]*://"
_ADDRESS = re.compile(rf"(?i){_SCHEME}(?:(?!{_SCHEME})[^\s'\"`<>])+")
_BARE = re.compile(r"((?<![\w/])[\w.+-]+:)([^\s@/'\"`]+)(?=@[\w.-]+:\d)")  # user:password@host:port
_OPTION = re.compile(rf"(?i)--?[\w-]*(?:{_STRONG}|{_TOKEN})[\w-]*")
_REASON = 300  # characters
_PREAMBLE = "(raised as a result of"  # a line of SQLAlchemy's, before the one with the reason
_LONG_NAME = 16
"""Characters from which on a user without a password is taken for a token: `https://TOKEN@host`."""


def counted(number: int, noun: str) -> str:
    """`1 cell`, `2 cells`, `1,000 cells`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def some(names: Sequence[str], most: int = 8) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def size_text(size: Mapping[str, Any] | None) -> str:
    """How a quantizer's size differs from what was asked for (`MethodChoice.size`); empty where it does not.

    The size is the number of messages that a token can carry: the codes of one codebook to the power of how many.
    """
    if not size or size.get("asked") is None:
        return ""
    codes, codebooks, asked = size["codebook_size"], size["num_codebooks"], size["asked"]
    if codes**codebooks == asked:
        return ""
    several = f"{codebooks} codebooks of " if codebooks > 1 else ""
    bits, wanted = codebooks * math.log2(codes), math.log2(asked)
    unit = "bit" if asked == 2 else "bits"
    return f"{several}{codes:,} codes ({bits:.4g} bits per token), where {asked:,} ({wanted:.4g} {unit}) were asked for"


def masked(address: str) -> str:
    """An address without its secrets: the password after a user's name, and those of its query. The rest is as it was.

    Whatever is no address stays. What is masked already stays too.
    """
    return _hidden(address, lambda _: "***")


def masked_text(text: str) -> str:
    """Any text, with the secrets of every address in it masked, and `Bearer …` and `password=…` outside of one."""
    text = _ADDRESS.sub(lambda found: masked(found[0]), text)
    for pattern in (_QUERY_IN_TEXT, _ASSIGNED, _HEADER, _BARE):
        text = pattern.sub(r"\1***", text)
    return text


def reason_of_library(error: BaseException, address: str = "") -> str:
    """What a library's error says: its first line, not too much of it, and without the secrets of `address`.

    Libraries quote addresses whole, decoded, and in the pieces into which they have cut them.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith(_PREAMBLE)]
    text = (lines or [type(error).__name__])[0]
    if address:
        text = text.replace(address, masked(address))
    for secret in sorted(_secrets(address), key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", text)
    return masked_text(text)[:_REASON]


def shell_command(words: Iterable[object]) -> str:
    """Words as one types them into a shell, quoted where that is needed, and without secrets."""
    typed: list[str] = []
    before = ""
    for word in map(str, words):
        if _OPTION.fullmatch(before):
            typed.append("***")
        else:  # a field of a method may be called `secret_dim`
            typed.append(masked(word) if before == "--set" else masked_text(masked(word)))
        before = word
    return shlex.join(typed)


def _secrets(address: str) -> set[str]:
    """The secrets of an address: as they stand there, decoded, and the pieces between what cuts an address up."""
    found: list[str] = []
    _hidden(address, lambda secret: found.append(secret) or "***")  # type: ignore[func-returns-value]
    whole = {form for secret in found for form in (secret, unquote(secret))}
    pieces = {piece for secret in whole for piece in re.split(r"[^\w.~-]+", secret) if len(piece) > 2}
    return {secret for secret in whole | pieces if secret.strip("*")}


def _hidden(address: str, hide: Callable[[str], str]) -> str:
    """An address with what `hide` makes of each of its secrets in their place."""
    before, separator, rest = address.partition("://")
    if not separator:
        return address
    scheme = re.split(r"[^\w+.-]", before)[-1].lower()
    place = re.split("[/?#]", rest, maxsplit=1)[0]
    if "@" not in place and (cut := _unescaped(scheme, rest)):
        place = cut
    user, at, host = place.rpartition("@")
    name, colon, password = user.partition(":")
    if colon:
        name = f"{name}:{hide(password)}"
    elif scheme.startswith("http") and len(name) >= _LONG_NAME:
        name = hide(name)
    rest = _QUERY.sub(lambda found: found[1] + hide(found[2]), rest[len(place) :])
    return f"{before}://{name}{at}{host}{rest}"


def _unescaped(scheme: str, rest: str) -> str:
    """User, password and host where the password has a `/`, `?` or `#` that should have been written as `%2F`, …"""
    found = re.match(r"([^:/@?#\[]*):([^@]*)@[^/?#]*", rest)
    if found is None:
        return ""
    is_port = re.match(r"\d*[/?#]", found[2]) and re.fullmatch(r"https?|tcp|tls|wss?|ftp", scheme)
    return "" if is_port else found[0]
