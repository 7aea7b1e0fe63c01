"""How far a protocol moves the scores of one tokenizer, in docs/protocol.md.

python tests/studies/protocols_table.py SOURCE folder:PATH [--images N] [--resolutions 256,128]

Protocols that read the same pixels are scored in one pass. On two cores the Inception makes seven images a second:
500 images at two resolutions take it half an hour.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from vqbench.data.dataset import DataReference
from vqbench.data.prepare import PreparedImages, prepare_validation
from vqbench.machine.home import home
from vqbench.metrics.definitions import metric, of_protocol
from vqbench.metrics.evaluation import evaluate
from vqbench.metrics.named import NAMED, OURS, named_protocol
from vqbench.pretrained.opening import open_source

SHOWN = ("psnr", "ssim", "rfid")
SQUARE = (OURS, *(name for name in NAMED if name != "native"))


def theirs(protocol: str) -> dict[str, str]:
    """Our metric → the protocol's."""
    named = named_protocol(protocol)
    return {name: name if named is None else of_protocol([metric(name)], named)[0] for name in SHOWN}


def scores_of(codec: Any, validation: PreparedImages, protocols: Iterable[str]) -> dict[str, float]:
    """By metric, of all metrics that these protocols have."""
    wanted = dict.fromkeys(name for protocol in protocols for name in theirs(protocol).values())
    digest = validation.digest
    found = evaluate(codec, validation.pixels, validation.ids, metrics=list(wanted), validation_digest=digest)
    return found.scores


def rows(codec: Any, dataset: str, resolution: int, images: int | None) -> dict[str, list[float]]:
    """Protocol → its scores, in the order of SHOWN."""
    read: dict[str, PreparedImages] = {}
    together: dict[str, list[str]] = defaultdict(list)
    for protocol in SQUARE:
        named = "" if protocol == OURS else protocol
        reference = DataReference(dataset, validation_images=images, protocol=named, split="all")
        validation = prepare_validation(reference.open(resolution), home())
        read[validation.digest] = validation
        together[validation.digest].append(protocol)
    found = {digest: scores_of(codec, read[digest], protocols) for digest, protocols in together.items()}
    return {
        protocol: [found[digest][name] for name in theirs(protocol).values()]
        for digest, protocols in together.items()
        for protocol in protocols
    }


def main() -> None:
    """Print a table for each resolution."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("source")
    asked.add_argument("dataset")
    asked.add_argument("--images", type=int)
    asked.add_argument("--resolutions", default="256,128")
    given = asked.parse_args()
    codec = open_source(given.source).codec
    for resolution in map(int, given.resolutions.split(",")):
        by_protocol = rows(codec, given.dataset, resolution, given.images)
        ours = by_protocol[OURS]
        print(f"\n| {resolution} px |", " | ".join(metric(name).title for name in SHOWN), "|")
        print("| --- |", " | ".join("---:" for _ in SHOWN), "|")
        for protocol in SQUARE:
            columns = zip(theirs(protocol).values(), by_protocol[protocol], ours, strict=True)
            cells = []
            for name, value, reference in columns:
                digits = metric(name).digits
                moved = f" ({value - reference:+.{digits}f})" if protocol != OURS else ""
                cells.append(f"{value:.{digits}f}{moved}")
            print(f"| `{protocol}` |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
