"""The tokens of a whole dataset, as files that another model is trained on: shards of indices, and a manifest."""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqbench.data.dataset import DataReference, Dataset
from vqbench.data.images import Cropped, Part, Pixels
from vqbench.data.prepare import decode_or_name, prepare_validation
from vqbench.errors import UsageError, VQBenchError, unknown
from vqbench.facts import Facts
from vqbench.inputs import to_input
from vqbench.machine.atomic import is_partial, write_bytes_atomically, write_text_atomically
from vqbench.machine.home import home
from vqbench.machine.json_files import read_json, write_json
from vqbench.metrics.extraction import batches, counting
from vqbench.precision import plain_float32
from vqbench.pretrained.opened import Opened
from vqbench.pretrained.opening import absolute, open_alone
from vqbench.pretrained.portions import Make, carry_out, device_for
from vqbench.results.cell_files import later_version
from vqbench.version import __version__

T = TypeVar("T")
MANIFEST = "manifest.json"
SCHEMA = 1
BATCH = 16
"""Images at a time, as in most evaluations: the rounding of a convolution may depend on it."""
Advance = Callable[[str, int, int], None]
"""What is being done, images done, images in all."""
Portion = tuple[str, int]
"""A side, and which of its shards."""


@dataclass(frozen=True)
class TokensRequest:
    """Which tokens of which images are wanted, and where."""

    source: str
    """A tokenizer that is trained already (`vqbench.pretrained.opening`)."""
    data: DataReference
    out: Path
    split: str = ""
    """train or val, one side alone; all, both as one; empty: both, each by itself."""
    resolution: int | None = None
    """Of the images; None: the one that the tokenizer was trained on."""
    shard_images: int = 8192
    family: str = ""
    trust: bool = False
    plugins: tuple[Path, ...] = ()
    """Whose datasets and methods other processes must know too."""

    @property
    def sides(self) -> tuple[str, ...]:
        """The sides of the split that are wanted. Raises UsageError for a word that is none."""
        if self.split not in ("", "train", "val", "all"):
            raise unknown("split", self.split, ("train", "val", "all"), "without --split each side is one of its own")
        return (self.split,) if self.split else ("train", "val")


@dataclass(frozen=True)
class Tokens:
    """What lies in a folder of tokens."""

    folder: Path
    manifest: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Tokens:
        """Raises UsageError where no whole manifest of tokens lies in the folder, or a newer vqbench wrote it."""
        path = folder / MANIFEST
        if not path.is_file():
            what = f"no tokens in {folder}: it has no {MANIFEST}"
            raise UsageError(what, f"vqbench tokens SOURCE --dataset … --out {folder}")
        manifest = read_json(path) or {}
        if newer := later_version(path, manifest):
            raise UsageError(newer, "use that vqbench, or make the tokens anew in another folder")
        sides = manifest.get("sides")
        of_sides = dict.fromkeys(sides, _SIDE) if isinstance(sides, dict) else dict
        if missing := _lacking(manifest, {**_KEYS, "sides": of_sides}):
            what = f"{path} is no manifest of tokens (no {', '.join(missing)})"
            anew = "vqbench tokens SOURCE --dataset … --out …"
            raise UsageError(what, f"remove {folder}, and make the tokens anew: {anew}")
        return cls(folder, manifest)

    @property
    def sides(self) -> Mapping[str, Mapping[str, Any]]:
        """Side of the split → images, shape, digest, and names of the files of ids and of the shards."""
        sides: Mapping[str, Mapping[str, Any]] = self.manifest["sides"]
        return sides

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the indices."""
        return np.dtype(str(self.manifest["dtype"]))

    @property
    def identity(self) -> dict[str, Any]:
        """All that the tokens depend on, but which sides there are."""
        tokenizer = Facts.of(self.manifest["tokenizer"]).in_hash
        dataset = {key: self.manifest["dataset"].get(key) for key in ("reference", "reading", "asked")}
        return {
            "tokenizer": tokenizer,
            **{key: self.manifest[key] for key in ("resolution", "image_channels")},
            **dataset,
        }

    def ids(self, side: str) -> list[str]:
        """The name of each image of a side. Raises UsageError where their file is gone or not whole."""
        path, count = self.folder / self.sides[side]["ids"], self.sides[side]["images"]
        try:
            ids = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            ids = None
        if not isinstance(ids, list) or len(ids) != count or not all(isinstance(name, str) for name in ids):
            raise UsageError(f"{path} does not hold the names of {count:,} images", AGAIN)
        return ids

    def rows(self, portion: Portion) -> range:
        """The images of a side whose tokens a shard holds."""
        side, k = portion
        size = self.manifest["shard_images"]
        return range(k * size, min((k + 1) * size, self.sides[side]["images"]))

    def shard(self, portion: Portion) -> Path:
        """The file of a shard."""
        side, k = portion
        return self.folder / str(self.sides[side]["shards"][k])

    def portions(self) -> list[Portion]:
        """Every shard."""
        return [(name, k) for name, side in self.sides.items() for k in range(len(side["shards"]))]

    def images_of(self, portions: Iterable[Portion]) -> int:
        """How many images the tokens of some shards are of."""
        return sum(len(self.rows(portion)) for portion in portions)

    def indices(self, portion: Portion) -> NDArray[np.unsignedinteger] | None:
        """A shard, a map of its file; None where it is gone, or not whole."""
        try:
            found = np.load(self.shard(portion), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        expected = (len(self.rows(portion)), *self.manifest["token_shape"])
        is_array = isinstance(found, np.ndarray)  # and no archive of several
        return found if is_array and (found.shape, str(found.dtype)) == (expected, self.manifest["dtype"]) else None


_TOKENIZER = dict.fromkeys(("kind", "name", "path", "sha256", "source", "as"), str)
_SIDE = {"images": int, "digest": str, "ids": str, "shards": list}
_KEYS: dict[str, Any] = {
    "tokenizer": _TOKENIZER, "dataset": dict, "resolution": int, "image_channels": int, "codebook_size": int,
    "num_codebooks": int, "dtype": str, "token_shape": list, "shard_images": int,
}  # fmt: skip
"""What a manifest says beside its sides, and of which type."""


def _lacking(said: Mapping[str, Any], known: Mapping[str, Any], within: str = "") -> list[str]:
    """What a manifest does not say, or in another type."""
    missing = []
    for key, kind in known.items():
        value = said.get(key)
        if isinstance(kind, dict) and isinstance(value, dict):
            missing += _lacking(value, kind, f"{within}{key}.")
        elif isinstance(kind, dict) or not isinstance(value, kind):
            missing.append(within + key)
    return missing


AGAIN = "the `vqbench tokens` command that made the folder makes what is missing"


def make_tokens(
    asked: TokensRequest, workers: int = 1, advance: Advance = lambda *_: None, note: Callable[[str], None] = print
) -> Tokens:
    """Encode each image of a dataset once, cropped at the centre as validation images are.

    Shards that are there and whole are kept. Raises UsageError for a folder that holds other tokens, a source without
    indices, and what opening tokenizer and data raises; VQBenchError where the tokenizer fails.
    """
    names = asked.sides
    for option, count in (("--shard-images", asked.shard_images), ("--workers", workers)):
        if count < 1:
            raise UsageError(f"{option} {count}, but at least one is needed", f"for example: {option} 2")
    opened, dataset = _opened(asked)
    for text in dataset.notes:
        note(text)
    sides = _sides(dataset, names, functools.partial(advance, "validation images"))
    device = device_for(0)
    tokens = Tokens(asked.out, _manifest(asked, opened, dataset, sides, device))
    known = _known(tokens)
    tokens = Tokens(asked.out, {**tokens.manifest, "sides": {**known, **tokens.sides}})
    write_json(asked.out / MANIFEST, tokens.manifest)  # first: by it the folder is known when the command goes on
    for name, side in sides.items():
        write_text_atomically(asked.out / f"{name}-ids.json", json.dumps(list(side.ids), ensure_ascii=False))
    wanted = [portion for portion in tokens.portions() if portion[0] in sides]
    missing = [portion for portion in wanted if tokens.indices(portion) is None]
    total = tokens.images_of(wanted)
    counted = counting(functools.partial(advance, "tokens"), total, total - tokens.images_of(missing))
    make = functools.partial(_make, tokens, opened, sides, device)
    carry_out(missing, make, functools.partial(_begin, asked, tokens), workers, asked.plugins, counted)
    return tokens


@dataclass(frozen=True)
class _Side:
    """The images of one side of a split."""

    ids: Sequence[str]
    digest: str
    """Of the training items, or of the validation images, as the cells of a run say it."""
    load: Callable[[range], Iterator[Pixels]]


def _opened(asked: TokensRequest) -> tuple[Opened, Dataset]:
    """Tokenizer and data. Raises UsageError for a size of image that the tokenizer does not take."""
    opened = open_alone(asked.source, asked.family, asked.trust)
    facts = opened.facts
    resolution = facts.resolution if asked.resolution is None else asked.resolution
    if facts.codebook_size is None:
        raise UsageError(f"{facts.name} has no indices", "give a tokenizer: its checkpoint, or a finished cell")
    if resolution is None:
        what = f"{facts.name} does not say on images of which size it was trained"
        raise UsageError(what, "for example: --resolution 256")
    if resolution < 1:
        raise UsageError(f"--resolution {resolution} holds no pixel", "for example: --resolution 256")
    facts.refuse_images(facts.name, resolution, facts.image_channels)
    data = dataclasses.replace(asked.data, split="all" if asked.split == "all" else "")
    return opened, data.open(resolution, facts.image_channels)


def _sides(
    dataset: Dataset, names: Iterable[str], progress: Callable[[int, int], None] | None = None
) -> dict[str, _Side]:
    sides = {}
    if "train" in names:
        images = Cropped(dataset.train, dataset.resolution)
        sides["train"] = _Side(images.ids, dataset.train_digest, lambda rows: decode_or_name(Part(images, rows), None))
    if scored := [name for name in names if name != "train"]:  # "all" is a validation side without training images
        kept = prepare_validation(dataset, home(), progress)
        sides[scored[0]] = _Side(kept.ids, kept.digest, lambda rows: iter(kept.pixels[rows.start : rows.stop]))
    return sides


def _manifest(
    asked: TokensRequest, opened: Opened, dataset: Dataset, sides: Mapping[str, _Side], device: torch.device
) -> dict[str, Any]:
    quantizer: Any = opened.codec.quantizer
    size = int(quantizer.codebook_size)
    first = next(iter(sides.values())).load(range(1))
    shape = list(_encoded(on(opened, device), list(first), device, size).shape[1:])
    of_sides = {}
    for name, side in sides.items():
        shards = [f"{name}-{k:05d}.npy" for k in range(-(-len(side.ids) // asked.shard_images))]
        of_sides[name] = {
            "images": len(side.ids),
            "shape": [len(side.ids), *shape],
            "digest": side.digest,
            "ids": f"{name}-ids.json",
            "shards": shards,
        }
    return {
        "schema": SCHEMA,
        "vqbench": __version__,
        "tokenizer": {**opened.facts.as_dict(), "source": absolute(asked.source), "as": asked.family},
        "dataset": {
            "reference": dataset.reference,
            "split_rule": dataset.split_rule,
            **({"reading": dataset.reading.in_words} if dataset.reading is not None else {}),
            "asked": {name: value for name, value in asked.data.in_spec().items() if name != "split"},
            "licence": dataset.licence,
            "notes": list(dataset.notes),
        },
        "resolution": dataset.resolution,
        "image_channels": dataset.channels,
        "codebook_size": size,
        "num_codebooks": int(quantizer.num_codebooks),
        "bits_per_token": float(quantizer.bits_per_token),
        "dtype": str(np.min_scalar_type(size - 1)),
        "token_shape": shape,
        "shard_images": asked.shard_images,
        "sides": of_sides,
    }


def _known(tokens: Tokens) -> Mapping[str, Any]:
    """The sides that the folder has. Raises UsageError where they are of other tokens, or it is no folder of tokens."""
    folder = tokens.folder
    if not (folder / MANIFEST).exists():
        refuse_filled(folder)
        return {}
    earlier = Tokens.read(folder)
    odd = [key for key, value in tokens.identity.items() if earlier.identity[key] != value]
    odd += ["shard_images"] if earlier.manifest["shard_images"] != tokens.manifest["shard_images"] else []
    both = [name for name in tokens.sides if name in earlier.sides]
    odd += [f"images ({name})" for name in both if tokens.sides[name]["digest"] != earlier.sides[name]["digest"]]
    if odd:
        what = f"{folder} holds other tokens: their {', '.join(odd)} differ from what is asked for"
        raise UsageError(what, "give another folder: --out DIR; or remove that one")
    return earlier.sides


def refuse_filled(folder: Path) -> None:
    """Raise UsageError where a folder that is to be filled has files in it, or can be none."""
    hint = "give a folder that is new or empty"
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        where = "is" if there == folder else f"lies below {there}, which is"
        raise UsageError(f"--out {folder} {where} no folder", hint)
    if there == folder and any(not is_partial(path) for path in folder.iterdir()):
        raise UsageError(f"--out {folder} has files of something else", hint)


def on(opened: Opened, device: torch.device) -> Any:
    """The codec, on a device where it is a module."""
    codec: Any = opened.codec
    return codec.to(device) if isinstance(codec, torch.nn.Module) else codec


def _begin(asked: TokensRequest, tokens: Tokens, device: torch.device) -> Make[Portion]:
    opened, dataset = _opened(asked)
    return functools.partial(_make, tokens, opened, _sides(dataset, asked.sides), device)


def _make(
    tokens: Tokens, opened: Opened, sides: Mapping[str, _Side], device: torch.device, portion: Portion
) -> Iterator[int]:
    codec, size = on(opened, device), tokens.manifest["codebook_size"]
    found = []
    for pixels in batched(sides[portion[0]].load(tokens.rows(portion))):
        indices = _encoded(codec, pixels, device, size)
        if list(indices.shape[1:]) != (shape := tokens.manifest["token_shape"]):
            what = f"{opened.facts.name} made tokens {tuple(indices.shape[1:])}, and {tuple(shape)} of the first image"
            raise VQBenchError(what, "tokens of one shape are needed: `vqbench check` shows what breaks it")
        found.append(indices.cpu().numpy().astype(tokens.dtype))
        yield len(pixels)
    content = io.BytesIO()
    np.save(content, np.concatenate(found))
    write_bytes_atomically(tokens.shard(portion), content.getvalue())


def batched(items: Iterable[T]) -> Iterator[list[T]]:
    """The items, a batch of them at a time."""
    rest = iter(items)
    return iter(lambda: list(itertools.islice(rest, BATCH)), [])


def _encoded(codec: Any, pixels: list[Pixels], device: torch.device, codebook_size: int) -> Tensor:
    """Indices of images, as evaluation has them. Raises VQBenchError for one outside the codebook."""
    (images,) = batches(np.stack(pixels), len(pixels), device)
    with torch.inference_mode(), plain_float32(device):
        indices: Tensor = codec.to_indices(to_input(images))
    refuse_stray(indices, codebook_size, "the tokenizer made")
    return indices


def refuse_stray(indices: Tensor, codebook_size: int, whose: str) -> None:
    """Raise VQBenchError for an index outside the codebook."""
    low, high = (int(bound) for bound in torch.aminmax(indices))
    if low < 0 or high >= codebook_size:
        known = f"the codebook has {codebook_size:,} codes, 0 to {codebook_size - 1}"
        what = f"{whose} indices from {low} to {high}, and {known}"
        raise VQBenchError(what, "`vqbench check` shows what breaks it")
