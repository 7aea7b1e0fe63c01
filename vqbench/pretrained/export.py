"""A trained cell in a form that other programs load, with its card beside it."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from vqbench.errors import UsageError, unknown
from vqbench.facts import Facts
from vqbench.machine.atomic import write_bytes_atomically, write_text_atomically
from vqbench.machine.home import expanded
from vqbench.plugin import COPIES
from vqbench.pretrained.card import CARD, card, cell_of
from vqbench.pretrained.opening import is_own, is_there
from vqbench.pretrained.own import open_own
from vqbench.pretrained.tokens import refuse_filled
from vqbench.pretrained.vqmodel import CONFIG, WEIGHTS, write_vqmodel
from vqbench.results.cell_files import WEIGHTS as OWN_WEIGHTS
from vqbench.results.cell_folder import CellFolder
from vqbench.tokenizer import Tokenizer, weights_file
from vqbench.wording import reason_of_library

ENCODE, DECODE = "encode.pt2", "decode.pt2"
Writer = Callable[[Tokenizer, CellFolder, Path], dict[str, str]]
"""Writes the files of a format into a folder; returns them with what is in each."""


def export_cell(source: str, to: str, out: Path, trust: bool = False) -> Path:
    """Write a cell's tokenizer to a new folder, and its card beside it. Returns the card.

    With `trust` a plugin is run that lies in the cell's folder.
    Raises UsageError for an unknown format, what is no cell of vqbench, a folder that is in use, and a method that the
    format cannot hold.
    """
    if to not in FORMATS:
        raise unknown("format", to, FORMATS, "for example: --to safetensors")
    path = expanded(Path(source))
    if not is_own(path):
        what = f"{source} is no finished cell of vqbench" if is_there(source) else f"there is no {source}"
        raise UsageError(what, "give the folder of a finished cell: runs/NAME/cells/CELL")
    refuse_filled(out)
    cell, opened = cell_of(weights_file(path)), open_own(path, trust)
    tokenizer = opened.codec
    assert isinstance(tokenizer, Tokenizer)
    write, loading = FORMATS[to]
    files = write(tokenizer, cell, out)
    text = card(cell, opened.facts, _loading(loading, out, opened.facts), {**files, CARD: "this page"})
    write_text_atomically(out / CARD, text)
    return out / CARD


def _loading(text: str, out: Path, facts: Facts) -> str:
    channels, side = facts.image_channels, facts.resolution
    return text.replace("FOLDER", out.name).replace("SHAPE", f"(2, {channels}, {side}, {side})")


def _as_vqmodel(tokenizer: Tokenizer, cell: CellFolder, out: Path) -> dict[str, str]:
    write_vqmodel(tokenizer, out)
    codes = tokenizer.quantizer.codebook_size
    return {CONFIG: "the VQModel's config", WEIGHTS: f"its weights, with the {codes:,} codes as they are looked up"}


def _as_safetensors(tokenizer: Tokenizer, cell: CellFolder, out: Path) -> dict[str, str]:
    out.mkdir(parents=True, exist_ok=True)
    name = Path(OWN_WEIGHTS).name
    shutil.copyfile(cell.weights, out / name)
    files = {name: "the weights, and in the header what is needed to build the tokenizer"}
    for plugin in (cell.path / copy for copy in COPIES):
        if cell.spec.get("plugin") and plugin.is_file():
            shutil.copyfile(plugin, out / plugin.name)
            files[plugin.name] = f"the method's plugin: `export VQBENCH_PLUGINS={plugin.name}` before loading"
    return files


class _Encode(nn.Module):
    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, images: Tensor) -> Tensor:
        return self.tokenizer.to_indices(images)


class _Decode(_Encode):
    def forward(self, indices: Tensor) -> Tensor:
        return self.tokenizer.from_indices(indices)


def _as_program(tokenizer: Tokenizer, cell: CellFolder, out: Path) -> dict[str, str]:
    """Two programs of torch.export, of any number of images of the tokenizer's own size."""
    side, draw = tokenizer.resolution, torch.Generator().manual_seed(0)
    images = torch.rand(3, tokenizer.image_channels, side, side, generator=draw) * 2 - 1
    with torch.no_grad():
        indices = tokenizer.to_indices(images)
        encode = _program(_Encode(tokenizer), images, indices, cell)
        decode = _program(_Decode(tokenizer), indices, tokenizer.from_indices(indices), cell)
    for name, program in ((ENCODE, encode), (DECODE, decode)):
        write_bytes_atomically(out / name, program)
    shape = ", ".join(["B", *map(str, indices.shape[1:])])
    sizes = f"float32 images (B, {tokenizer.image_channels}, {side}, {side}) in [-1, 1]"
    return {
        ENCODE: f"{sizes} → int64 indices ({shape})",
        DECODE: f"int64 indices ({shape}) → {sizes}; none may lie outside the codebook",
    }


def _program(module: nn.Module, given: Tensor, expected: Tensor, cell: CellFolder) -> bytes:
    """A module as a program's file. Raises UsageError where it cannot be one, or is another for fewer images."""
    hint = "--to safetensors holds every method"
    logged = logging.root.manager.disable
    logging.disable(logging.WARNING)  # torch's own words about its internals, which it says in three ways
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            batch = ({0: torch.export.Dim.DYNAMIC},)
            program = torch.export.export(module.eval(), (given[:2].contiguous(),), dynamic_shapes=batch)
            torch.export.save(program, content := io.BytesIO())
    except Exception as error:  # of whatever kind: torch has many
        what = f"torch.export cannot make a program of {cell.spec['method']}: {reason_of_library(error)}"
        raise UsageError(what, hint) from error
    finally:
        logging.disable(logged)
    for count in (1, len(given)):
        found, wanted = program.module()(given[:count].contiguous()), expected[:count]
        agrees = torch.equal(found, wanted) if wanted.dtype == torch.int64 else torch.allclose(found, wanted, atol=1e-5)
        if not agrees:
            what = f"the program that torch.export made of {cell.spec['method']} gives other results than the tokenizer"
            raise UsageError(what, hint)
    return content.getvalue()


_OF_VQMODEL = """
import torch
from diffusers import VQModel

model = VQModel.from_pretrained("FOLDER").eval()
images = torch.rand(SHAPE) * 2 - 1  # in [-1, 1]
with torch.no_grad():
    latents = model.encode(images).latents
    indices = model.quantize(latents)[2][2].view(len(latents), *latents.shape[2:])
    shape = (*indices.shape, latents.shape[1])
    codes = model.quantize.get_codebook_entry(indices.flatten(), shape)
    back = model.decode(codes, force_not_quantize=True).sample.clamp(-1, 1)
"""
_OF_SAFETENSORS = """
import torch
import vqbench

tokenizer = vqbench.load("FOLDER")
indices = tokenizer.encode(torch.rand(SHAPE) * 2 - 1)  # in [-1, 1]
back = tokenizer.decode(indices)
"""
_OF_PROGRAM = """
import torch

encode, decode = (torch.export.load(f"FOLDER/{name}.pt2").module() for name in ("encode", "decode"))
indices = encode(torch.rand(SHAPE) * 2 - 1)  # in [-1, 1]
back = decode(indices)
"""
FORMATS: dict[str, tuple[Writer, str]] = {
    "diffusers": (_as_vqmodel, _OF_VQMODEL),
    "safetensors": (_as_safetensors, _OF_SAFETENSORS),
    "program": (_as_program, _OF_PROGRAM),
}
"""Name → what writes it, and how what is written is loaded."""
