"""`vqbench export`: a trained cell in a form that other programs load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vqbench.cli.options import takes_some


@takes_some("plugins", "trust")
def export(
    cell: Annotated[str, typer.Argument(metavar="CELL", help="A finished cell's folder.")],
    to: Annotated[
        str,
        typer.Option(
            metavar="diffusers|safetensors|program",
            help="The folder of a VQModel, where the method is one plain codebook; vqbench's own file; or two programs "
            "of torch.export, which need torch alone.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="A folder that is new or empty.")],
    trust: bool = False,
) -> None:
    """Export a tokenizer, and write its card: method, data, protocol, scores, and how it is loaded."""
    from vqbench.pretrained.export import export_cell

    print(export_cell(cell, to, out, trust))
