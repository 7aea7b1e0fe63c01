"""A tokenizer that vqbench trained, from a finished cell or a file of its weights, wherever that was."""

from __future__ import annotations

import hashlib
from pathlib import Path

from vqbench.facts import Facts, split_in_words
from vqbench.pretrained.opened import Opened
from vqbench.results.cell_folder import CellFolder
from vqbench.tokenizer import load_with_header, weights_file


def open_own(path: Path, trust: bool = False) -> Opened:
    """The tokenizer of a cell's folder, or of a `tokenizer.safetensors`; the folder also knows what it was trained on.

    With `trust` a plugin is run that lies beside the weights. Raises UsageError as `vqbench.tokenizer.load` does, and
    for such a plugin.
    """
    weights = weights_file(path)
    tokenizer, header = load_with_header(weights, trust)
    spec, quantizer = CellFolder(weights.parent.parent).spec, tokenizer.quantizer
    known = spec["dataset"] if spec.get("hash") == header["hash"] else {}
    data = known.get("reference", "")
    side = tokenizer.resolution
    facts = Facts(
        kind="vqbench",
        name=f"{header['method']}-s{header['seed']}-{header['hash'][:8]}",
        path=str(path.absolute()),
        sha256=hashlib.sha256(weights.read_bytes()).hexdigest(),
        family=header["method"],
        codebook_size=quantizer.codebook_size,
        num_codebooks=quantizer.num_codebooks,
        code_dim=quantizer.out_channels,
        bits_per_token=quantizer.bits_per_token,
        downsampling=tokenizer.downsampling,
        resolution=side,
        image_channels=tokenizer.image_channels,
        parameters=tokenizer.parameter_counts(),
        training={"reference": data, "split": split_in_words(known)} if data else {},
        trained_on=f"{data}, {side} px" if data else f"{side} px",
    )
    return Opened(tokenizer, facts)
