"""From a folder of tokens back to images: a PNG for each, named by its id."""

from __future__ import annotations

import functools
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from vqbench.data.images import Pixels
from vqbench.errors import UsageError, VQBenchError
from vqbench.facts import Facts
from vqbench.machine.atomic import write_bytes_atomically
from vqbench.machine.json_files import read_json, write_json
from vqbench.metrics.extraction import counting
from vqbench.metrics.values import to_8_bits
from vqbench.precision import plain_float32
from vqbench.pretrained.opened import Opened
from vqbench.pretrained.opening import door, is_there, open_source, refuse_idle_options
from vqbench.pretrained.portions import Make, carry_out, device_for
from vqbench.pretrained.tokens import (
    AGAIN,
    Advance,
    Portion,
    Tokens,
    batched,
    on,
    refuse_filled,
    refuse_stray,
)
from vqbench.results.cell_files import is_whole
from vqbench.wording import counted

DECODED = "decoded.json"


@dataclass(frozen=True)
class DecodeRequest:
    """Which tokens become images, and where."""

    tokens: Path
    out: Path
    source: str = ""
    """The tokenizer; empty: from where the manifest has it."""
    trust: bool = False
    plugins: tuple[Path, ...] = ()


def decode_tokens(asked: DecodeRequest, workers: int = 1, advance: Advance = lambda *_: None) -> list[Path]:
    """Write OUT/SIDE/ID.png for each image of a folder of tokens; those that are there and whole are kept. Returns the
    folder of each side.

    Raises UsageError for tokens that are not whole, a tokenizer that is not the one which made them, and a folder that
    holds other images; VQBenchError where the tokenizer fails.
    """
    if workers < 1:
        raise UsageError(f"--workers {workers}, but at least one is needed", "for example: --workers 2")
    tokens = Tokens.read(asked.tokens)
    opened = _opened(asked, tokens)
    if lost := [tokens.shard(portion) for portion in tokens.portions() if tokens.indices(portion) is None]:
        what = f"{counted(len(lost), 'shard')} of tokens cannot be read, the first is {lost[0]}"
        raise UsageError(what, AGAIN)
    files = {side: image_names(tokens.ids(side)) for side in tokens.sides}
    _claim(asked.out, tokens)
    missing = [p for p in tokens.portions() if not all(map(is_whole, _pictures(asked.out, tokens, files, p)))]
    total = tokens.images_of(tokens.portions())
    told = counting(functools.partial(advance, "images"), total, total - tokens.images_of(missing))
    make = functools.partial(_make, asked.out, tokens, files, opened, device_for(0))
    carry_out(missing, make, functools.partial(_begin, asked, tokens, files), workers, asked.plugins, told)
    return [asked.out / side for side in tokens.sides]


def image_names(ids: Sequence[str]) -> list[str]:
    """The PNG of each image, below its side's folder: the id, with .png in the place of its suffix where that tells all
    of them apart, and behind it otherwise. Raises UsageError for an id that leads out of the folder.
    """
    for name in ids:
        parts = PurePosixPath(name).parts
        if not parts or parts[0] == "/" or ".." in parts:
            raise UsageError(f"the id {name!r} can be no file below a folder", "tokens of such images stay tokens")
    short = [str(PurePosixPath(name).with_suffix(".png")) for name in ids]
    is_unique = max(Counter(short).values(), default=1) == 1
    return short if is_unique else [f"{name}.png" for name in ids]


def _opened(asked: DecodeRequest, tokens: Tokens) -> Opened:
    said = tokens.manifest["tokenizer"]
    made_by = Facts.of(said)
    source = asked.source or said["source"]
    try:
        refuse_idle_options([door(source)], "", asked.trust)
        opened = open_source(source, said["as"], asked.trust)
    except UsageError as error:
        if asked.source:
            raise
        what = f"the tokenizer of these tokens cannot be opened: {error.what}"
        mends = error.hint if is_there(source) else f"say where it is: --tokenizer SOURCE; {error.hint}"
        raise UsageError(what, mends) from None
    if opened.facts.in_hash != made_by.in_hash:
        what = (
            f"{opened.facts.path} (sha256 {opened.facts.sha256[:12]}…) did not make these tokens: "
            f"{made_by.name} did (sha256 {made_by.sha256[:12]}…)"
        )
        raise UsageError(what, "bring that tokenizer back, or say where it is: --tokenizer SOURCE")
    return opened


def _claim(out: Path, tokens: Tokens) -> None:
    """Mark a new folder as that of these tokens' images. Raises UsageError where it is something else's."""
    digests = {name: side["digest"] for name, side in tokens.sides.items()}
    known = read_json(out / DECODED)
    if known is None:
        refuse_filled(out)
    else:
        earlier = known.pop("images", {})
        if known != tokens.identity or any(earlier.get(side, digest) != digest for side, digest in digests.items()):
            raise UsageError(f"--out {out} holds the images of other tokens", "give a folder that is new or empty")
        digests = {**earlier, **digests}
    write_json(out / DECODED, {**tokens.identity, "images": digests})


def _pictures(out: Path, tokens: Tokens, files: Mapping[str, Sequence[str]], portion: Portion) -> list[Path]:
    return [out / portion[0] / files[portion[0]][i] for i in tokens.rows(portion)]


def _begin(
    asked: DecodeRequest, tokens: Tokens, files: Mapping[str, Sequence[str]], device: torch.device
) -> Make[Portion]:
    return functools.partial(_make, asked.out, tokens, files, _opened(asked, tokens), device)


def _make(
    out: Path,
    tokens: Tokens,
    files: Mapping[str, Sequence[str]],
    opened: Opened,
    device: torch.device,
    portion: Portion,
) -> Iterator[int]:
    indices, codec, size = tokens.indices(portion), on(opened, device), tokens.manifest["codebook_size"]
    assert indices is not None
    done = 0
    for paths in batched(_pictures(out, tokens, files, portion)):
        batch = torch.from_numpy(indices[done : done + len(paths)].astype(np.int64)).to(device)
        done += len(paths)
        if not all(map(is_whole, paths)):
            refuse_stray(batch, size, f"{tokens.shard(portion)} has")
            with torch.inference_mode(), plain_float32(device):
                images: Any = codec.from_indices(batch)
            if images.shape[1:] != (tokens.manifest["image_channels"], *[tokens.manifest["resolution"]] * 2):
                what = f"{opened.facts.name} decodes to {tuple(images.shape[1:])}, not to the size that was encoded"
                raise VQBenchError(what, "`vqbench check` tries it")
            if not torch.isfinite(images).all():
                raise VQBenchError(f"{opened.facts.name} decodes to NaN or infinity", "`vqbench check` tries it")
            for path, pixels in zip(paths, to_8_bits(images).permute(0, 2, 3, 1).cpu().numpy(), strict=True):
                write_bytes_atomically(path, _png(pixels))
        yield len(paths)


def _png(pixels: Pixels) -> bytes:
    """(H, W, C) as PNG: grey of one channel, colours of three, and four as they are, in the places of RGBA."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(content, format="PNG")
    return content.getvalue()
