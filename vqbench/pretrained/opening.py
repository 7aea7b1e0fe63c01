"""Which door a text leads to that names a tokenizer, and what is behind it."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqbench.errors import UsageError
from vqbench.facts import Facts, Kind
from vqbench.machine.home import expanded
from vqbench.pretrained.opened import Opened
from vqbench.results.cell_files import SPEC, WEIGHTS

if TYPE_CHECKING:
    import torch

    from vqbench.data.decode import Reading
    from vqbench.data.prepare import PreparedImages

SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors", ".pkl", ".jit", ".pt2")
"""Of files that hold weights."""
IMAGES = "images:"
"""Before a folder of reconstructions."""
EXAMPLES = "a checkpoint, a diffusers folder, adapter.py:function, images:FOLDER, or a finished cell's folder"
_ADAPTER = re.compile(r"(.+\.py):(\w+)")


def is_source(text: str) -> bool:
    """Whether a text can only be meant as a tokenizer that is trained already, there or not."""
    looks_so = text.startswith(IMAGES) or _ADAPTER.fullmatch(text) or text.endswith(SUFFIXES)
    return bool(looks_so) or os.sep in text or expanded(Path(text)).exists()


def is_there(source: str) -> bool:
    """Whether there is a file or a folder where a source is said to be."""
    if source.startswith(IMAGES):
        return folders_of(source)[0].exists()
    adapter = _ADAPTER.fullmatch(source)
    return expanded(Path(adapter[1] if adapter else source)).exists()


def door(source: str) -> Kind:
    """What kind of tokenizer a text names, by what lies there: nothing is opened. Raises UsageError for none."""
    if source.startswith(IMAGES):
        return "images"
    if _ADAPTER.fullmatch(source):
        return "adapter"
    path = expanded(Path(source))
    if is_own(path):
        return "vqbench"
    if any((path / name).is_file() for name in ("config.json", "model_index.json")):
        return "diffusers"
    if path.is_file():
        return "checkpoint"
    if (path / SPEC).is_file():
        raise UsageError(f"{source} is a cell without weights: it has not been trained to its end", "run it first")
    if path.is_dir():
        what = f"{source} is a folder without config.json (diffusers) and without {WEIGHTS} (a finished cell)"
        raise UsageError(what, f"of reconstructions it is {IMAGES}{source}")
    raise UsageError(f"there is no {source}", f"a tokenizer is {EXAMPLES}")


def refuse_idle_options(kinds: Collection[str], family: str, trust: bool) -> None:
    """Raise UsageError for `--as` without a checkpoint among sources of these kinds, and `--trust` without a file of
    weights that may be, or want, a program."""
    idle = [f"--as {family}"] if family and "checkpoint" not in kinds else []
    idle += ["--trust"] if trust and not {"checkpoint", "vqbench"}.intersection(kinds) else []
    if idle:
        what = f"{' and '.join(idle)} says how to read a file of weights, and there is none that it could be said of"
        raise UsageError(what, f"leave {' and '.join(idle)} out")


def open_alone(source: str, family: str = "", trust: bool = False) -> Opened:
    """As `open_source`, where `family` and `trust` are said of this source and of no other beside it.

    Raises UsageError for one of them that says nothing of what lies there, too.
    """
    refuse_idle_options([door(source)], family, trust)
    return open_source(source, family, trust)


def open_source(
    source: str,
    family: str = "",
    trust: bool = False,
    validation: PreparedImages | None = None,
    reading: Reading | None = None,
) -> Opened:
    """The tokenizer that a text names, and what is known of it.

    `family` is the layout of a file of weights where it is not to be guessed; `trust` lets a file that is a program
    run. A folder of reconstructions is matched with the images of `validation`, which were read by `reading`.
    One that says nothing of this kind of source is left alone. Raises UsageError for what is not there, is damaged, or
    is no tokenizer.
    """
    kind = door(source)
    if kind == "images":
        from vqbench.data.decode import AS_EVER
        from vqbench.pretrained.reconstructions import open_reconstructions

        made, originals = folders_of(source)
        if validation is None:
            what = f"{source} is a folder of reconstructions: it can be scored, and neither encodes nor decodes"
            raise UsageError(what, f"vqbench eval {source} --dataset …")
        return open_reconstructions(made, originals, validation, reading or AS_EVER)
    if kind == "adapter":
        from vqbench.pretrained.adapter import open_adapter

        file, _, function = source.rpartition(":")
        return open_adapter(expanded(Path(file)), function)
    path = expanded(Path(source))
    if kind == "vqbench":
        from vqbench.pretrained.own import open_own

        return open_own(path, trust)
    if kind == "diffusers":
        from vqbench.pretrained.diffusers import open_diffusers

        return _with_published(open_diffusers(path))
    from vqbench.pretrained.checkpoint import open_checkpoint

    return _with_published(open_checkpoint(path, family, trust))


def _with_published(opened: Opened) -> Opened:
    """The same, with what the sheet of published scores has of the file."""
    from vqbench.pretrained.published import published_of

    published, licence = published_of(opened.facts.path, opened.facts.sha256)
    facts = opened.facts
    known = replace(facts, published=facts.published or published, licence=facts.licence or licence)
    return replace(opened, facts=known)


def absolute(source: str) -> str:
    """The same source from whatever folder it is opened."""
    if source.startswith(IMAGES):
        return IMAGES + ",".join(str(folder.absolute()) for folder in folders_of(source) if folder is not None)
    if adapter := _ADAPTER.fullmatch(source):
        return f"{expanded(Path(adapter[1])).absolute()}:{adapter[2]}"
    return str(expanded(Path(source)).absolute())


def folders_of(source: str) -> tuple[Path, Path | None]:
    """The folder of reconstructions, and that of the originals where it is named."""
    made, comma, originals = source.removeprefix(IMAGES).partition(",")
    return expanded(Path(made)), expanded(Path(originals)) if comma else None


def is_own(path: Path) -> bool:
    """Whether vqbench wrote what lies there: a cell's folder, or its weights."""
    if path.is_dir():
        return any((path / name).is_file() for name in (WEIGHTS, Path(WEIGHTS).name))
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:  # type: ignore[no-untyped-call]
            return "vqbench" in (file.metadata() or {})
    except (OSError, SafetensorError, ValueError):
        return path.name == Path(WEIGHTS).name  # damaged, and called as ours are


def facts_of(source: str, family: str = "", trust: bool = False) -> Facts:
    """What is known of a source, without images to score. Raises UsageError as `open_source` does."""
    if source.startswith(IMAGES):
        from vqbench.pretrained.reconstructions import reconstruction_facts

        return reconstruction_facts(folders_of(source)[0])
    return open_source(source, family, trust).facts


def load(
    source: str | os.PathLike[str], device: str | torch.device = "cpu", *, family: str = "", trust: bool = False
) -> Any:
    """A tokenizer that is trained already, in eval mode: `encode` makes indices of images, `decode` images of indices.

    `source` is a finished cell's folder or its `tokenizer.safetensors`, and whatever `vqbench eval` takes: a published
    checkpoint (`family` where its layout is not recognised), a diffusers folder, `adapter.py:function`. Images are
    (B, 3, H, W), uint8 or floats in [-1, 1]. With `trust` a file that is a program is run; of a cell of vqbench so is
    the plugin that it was trained with. Raises UsageError, which names the file, where there is none, for what is no
    tokenizer, and for `family` and `trust` of what has no use for them.
    """
    from vqbench import arguments

    place = os.fspath(arguments.path("a tokenizer", source))
    own = door(place) == "vqbench"  # one of ours, whose plugin lies beside it, is loaded as ever
    codec: Any = open_alone(place, family, trust or own).codec
    return codec.to(device).eval() if hasattr(codec, "to") else codec
