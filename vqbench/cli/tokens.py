"""`vqbench tokens` and `vqbench decode`: a dataset as the indices of a tokenizer, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vqbench import arguments
from vqbench.cli.options import takes_some
from vqbench.errors import UsageError
from vqbench.planning.request import RunRequest

_SOURCE = "A tokenizer that is trained already: a finished cell's folder, a file of weights, …"
_IMAGES = ("dataset", "data_root", "plugins", "validation_images", "holdout", "resize", "resize_scale", "small",
           "split_list", "protocol_name", "family", "trust")  # fmt: skip
Out = Annotated[Path, typer.Option(metavar="DIR", help="A folder that is new, or holds a part of the same.")]
Workers = Annotated[int, typer.Option(metavar="N", help="Processes beside one another, a GPU each.")]


@takes_some(*_IMAGES)
def tokens(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help=_SOURCE)],
    dataset: str,
    out: Out,
    split: Annotated[
        str, typer.Option(metavar="train|val|all", help="One side alone, or all images as one; default: both sides.")
    ] = "",
    resolution: Annotated[
        int | None, typer.Option(metavar="N", help="Of the images; default: as the tokenizer was trained.")
    ] = None,
    shard_images: Annotated[int, typer.Option(metavar="N", help="Images in a file of indices.")] = 8192,
    workers: Workers = 1,
    **options: Any,
) -> None:
    """Encode a whole dataset: its indices as .npy files, with a manifest; goes on where it was ended."""
    from vqbench.cli.terminal import TerminalView
    from vqbench.pretrained.tokens import MANIFEST, TokensRequest, make_tokens

    request = arguments.asked(RunRequest, dataset=dataset, **options)
    if request.protocol_name == "native":
        what = "--protocol native leaves each image at its own size, and tokens of one shape are kept"
        raise UsageError(what, "leave it out, or give --resolution N")
    asked = TokensRequest(
        source, request.data, out, split, resolution, shard_images, request.family, request.trust, request.plugins
    )
    with TerminalView() as view:
        made = make_tokens(asked, workers, view.preparing, view.note)
    for name, side in made.sides.items():
        shape = " × ".join(f"{length:,}" for length in side["shape"])
        print(f"{name:<6} {shape} {made.dtype} in {len(side['shards'])} × {name}-….npy")
    print(out / MANIFEST)


@takes_some("plugins", "trust")
def decode(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `vqbench tokens` wrote.")],
    out: Out,
    tokenizer: Annotated[str, typer.Option(metavar="SOURCE", help="The tokenizer, where it has moved since.")] = "",
    workers: Workers = 1,
    plugins: list[Path] | None = None,
    trust: bool = False,
) -> None:
    """Decode tokens to images: OUT/SIDE/ID.png for each; goes on where it was ended."""
    from vqbench.cli.terminal import TerminalView
    from vqbench.pretrained.decoding import DecodeRequest, decode_tokens

    asked = DecodeRequest(folder, out, tokenizer, trust, tuple(plugins or ()))
    with TerminalView() as view:
        made = decode_tokens(asked, workers, view.preparing)
    print(*made, sep="\n")  # each is what `vqbench eval images:FOLDER` takes
