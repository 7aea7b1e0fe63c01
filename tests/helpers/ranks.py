"""Training passes of several quantizers in two processes, without anything around them that would keep them equal.

`python ranks.py STORE RANK FOLDER METHODS` is one of the two.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqbench.quantizer import Quantizer
from vqbench.registry import METHODS

STEPS, SHAPE = 3, (2, 4, 3, 5)
Asked = tuple[str, dict[str, Any]]


def fresh(asked: Asked) -> Quantizer:
    """A small quantizer in training, the same in every process."""
    name, settings = asked
    torch.manual_seed(0)
    cls = METHODS.get(name)
    return cls(cls.Config(**{"codebook_size": 6, "dim": SHAPE[1], **settings})).train()


def batch(step: int, rank: int) -> Tensor:
    """What a rank sees in a step."""
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(100 * step + rank))


def _one_of_two(store: str, rank: int, folder: Path, methods: list[Asked]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    states = []
    for asked in methods:
        quantizer = fresh(asked)
        torch.manual_seed(rank)  # what is drawn differs, as the data do
        for step in range(STEPS):
            quantizer(batch(step, rank))
        states.append(quantizer.state_dict())
    torch.save(states, folder / f"{rank}.pt")
    torch.distributed.barrier()


def states_of_two_ranks(folder: Path, methods: list[Asked]) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """For each method its state on either rank after STEPS passes, without any optimiser."""
    command = [sys.executable, __file__, str(folder / "store")]
    ranks = [subprocess.Popen([*command, str(rank), str(folder), json.dumps(methods)]) for rank in range(2)]
    assert [rank.wait(300) for rank in ranks] == [0, 0]
    one, two = (torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2))
    return list(zip(one, two, strict=True))


if __name__ == "__main__":
    given_store, given_rank, given_folder, given_methods = sys.argv[1:]
    _one_of_two(given_store, int(given_rank), Path(given_folder), json.loads(given_methods))
