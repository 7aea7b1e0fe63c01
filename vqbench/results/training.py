"""What decided the weights of a cell: cells that agree in it are one training under several seeds."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from vqbench.facts import split_in_words
from vqbench.recipe import Execution, Recipe

_NOT_TRAINING = {"name"} | {f.name for f in dataclasses.fields(Recipe) if f.metadata.get("bookkeeping")}
"""Fields of a recipe that leave the trained weights as they are."""


def training_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides a cell's weights but the seed, flat: `field`, `recipe.field`, `devices`, and digests."""
    recipe = {k: v for k, v in spec["recipe"].items() if k not in _NOT_TRAINING}
    share = recipe["batch_size"] // spec.get("devices", 1)
    code = spec.get("code") or (spec.get("plugin") or {}).get("sha256")
    data, of_dataset = spec["dataset"].get("training_digest"), spec.get("dataset_code")
    around = spec.get("artifact") or {}  # of a file counts what is in it, and not where it lies
    return {
        **{field: value for field, value in spec["config"].items() if field != (around.get("field") or None)},
        **{f"recipe.{k}": v for k, v in recipe.items()},
        "devices": spec.get("devices", 1),
        **Execution.of_spec(spec).identity(recipe.get("dropout", 0.0), share),
        **({"artifact": around["digest"][:8]} if around else {}),
        **({"initial": spec["initial"]["sha256"][:8]} if "initial" in spec else {}),
        **({"code": code[:8]} if code else {}),
        **({"training_digest": data[:8]} if data else {}),
        **({"dataset_code": of_dataset[:8]} if of_dataset else {}),
    }


def training_facts(spec: Mapping[str, Any]) -> dict[str, str]:
    """What a file of weights says of the training that made it: digests of the training but its seed, of the images
    that it saw, and of their dataset, however that is split; and how it was. Empty where the spec knows no images."""
    known = spec.get("dataset") or {}
    if not known.get("training_digest"):
        return {}
    whole = json.dumps([spec["method"], training_of(spec)], sort_keys=True)
    images = str(known["training_digest"])
    dataset = str(known.get("own_digest") or images)  # cells of before it was kept: as for a split of its own
    digest = hashlib.sha256(whole.encode()).hexdigest()
    return {"digest": digest, "images": images, "dataset": dataset, "split": split_in_words(known)}
