"""A tokenizer that vqbench trained, from a finished cell or a file of its weights, wherever that was."""

from __future__ import annotations

from pathlib import Path

from vqbench.pretrained.checkpoint import described
from vqbench.pretrained.opened import Opened
from vqbench.pretrained.tensors import sha256_of
from vqbench.results.cell_folder import CellFolder
from vqbench.results.training import training_facts
from vqbench.tokenizer import load_with_header, weights_file


def open_own(path: Path, trust: bool = False) -> Opened:
    """The tokenizer of a cell's folder, or of a `tokenizer.safetensors`; the folder also knows what it was trained on.

    With `trust` a plugin is run that lies beside the weights. Raises UsageError as `vqbench.tokenizer.load` does, and
    for such a plugin.
    """
    weights = weights_file(path)
    tokenizer, header = load_with_header(weights, trust)
    spec = CellFolder(weights.parent.parent).spec
    is_of_cell = spec.get("hash") == header["hash"]
    dataset = spec["dataset"] if is_of_cell else {}
    data = dataset.get("reference", "")
    # a header of before it told how it was trained says no more than the cell that it lies in
    told = training_facts(spec) if is_of_cell else {name: str(value) for name, value in header["training"].items()}
    trained_as = told.pop("digest", "")
    name, side = f"{header['method']}-s{header['seed']}-{header['hash'][:8]}", tokenizer.resolution
    facts = described(
        "vqbench",
        path.absolute(),
        name,
        sha256_of(weights),
        header["method"],
        tokenizer,
        resolution=side,
        training={**told, **({"reference": data} if data else {})},
        trained_as=trained_as,
        seed=header["seed"],
        trained_on=", ".join(filter(None, (data, f"{side} px", dataset.get("format")))),
    )
    return Opened(tokenizer, facts)
