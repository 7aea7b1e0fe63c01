"""Data at scale: what making and reading kept images costs, beside torchvision, and what a million of them hold.

python tests/benchmarks/data.py [prepare] [read] [memory] [--images 256 --entries 1281167 --json FILE]

`prepare`: images a second of one process, as pixels, as original bytes, as JPEG. `read`: images a second of one loader
process (num_workers=1) and of one core in this process, from each, from the folder, and from torchvision's ImageFolder
with the same resize, crop and flip, all of the same JPEGs, in turns, the median of three. `memory`: private memory of a
process that trains on ENTRIES kept images of 8×8, of its forked loader, and of a spawned one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader

from vqbench.data.dataset import DataReference, Dataset, Images, Pixels
from vqbench.data.kept import Making
from vqbench.data.prepare import prepare_train
from vqbench.data.stream import TrainingStream

R, BATCH = 256, 16
FORMS = ("pixels", "original", "jpeg:95")


def write(root: Path, count: int) -> Path:
    """`count` photographs of 500×375 as JPEG, in ten classes of train/, as ImageNet's mostly are; a few in val/."""
    draw = np.random.default_rng(0)
    photograph = np.asarray(Image.fromarray(skimage.data.astronaut()).resize((500, 375), Image.Resampling.LANCZOS))
    for i in range(count + 4):
        turned = np.roll(photograph, (17 * i, 29 * i), (0, 1)).astype(np.int16)
        pixels = (turned + draw.integers(-6, 7, turned.shape)).clip(0, 255).astype(np.uint8)
        path = root / ("train" if i < count else "val") / f"n{i % 10}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=90)
    return root


def opened(root: Path, form: str = "") -> Dataset:
    """The folder of `write`."""
    return DataReference(f"folder:{root}", format=form if form.startswith("jpeg") else "").open(R)


def measure_prepare(root: Path, home: Path) -> dict[str, float]:
    """Images a second of this process, and of a second of its CPU."""
    found = {}
    for form in FORMS:
        dataset = opened(root, form)
        started, cpu = time.perf_counter(), time.process_time()
        prepare_train(dataset, home / form, making=Making(form, insists=True))
        found[form] = len(dataset.train) / (time.perf_counter() - started)
        found[f"{form}, a core"] = len(dataset.train) / (time.process_time() - cpu)
    return found


def torchvision_images(root: Path) -> Any:
    """ImageFolder, resized and cropped and flipped as a training here does, as bytes."""
    v = torchvision.transforms
    steps = [
        v.Resize(R, interpolation=v.InterpolationMode.LANCZOS),
        v.RandomCrop(R),
        v.RandomHorizontalFlip(),
        v.PILToTensor(),
    ]
    return torchvision.datasets.ImageFolder(str(root / "train"), v.Compose(steps))


def loader_rate(images: Any, count: int, batches: int) -> float:
    """Images a second that one loader process gives; its first two batches are not timed."""
    order = [int(i) % count for i in np.random.default_rng(0).permutation(batches * BATCH)]
    loader = DataLoader(images, batch_size=BATCH, sampler=order, num_workers=1)
    got, started = 0, 0.0
    for number, batch in enumerate(loader):
        tensor = batch[0] if isinstance(batch, list) else batch
        if number >= 2:
            got += len(tensor)
        else:
            started = time.perf_counter()
    return got / (time.perf_counter() - started)


def core_rate(images: Any, count: int, items: int) -> float:
    """Images a second of CPU of this process, one after the other."""
    images[0]
    started = time.process_time()
    for i in range(items):
        images[i % count]
    return items / (time.process_time() - started)


def measure_read(root: Path, home: Path, count: int) -> dict[str, dict[str, float]]:
    """From each way: through a loader, and of a core."""
    ways: dict[str, Any] = {"torchvision ImageFolder": torchvision_images(root)}
    sources: dict[str, Images] = {"folder": opened(root).train}
    for form in FORMS:
        sources[form] = prepare_train(opened(root, form), home / form, making=Making(form, insists=True))
    ways |= {name: TrainingStream(images, R, 0, True, True) for name, images in sources.items()}
    loaders: dict[str, list[float]] = {name: [] for name in ways}
    cores: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(3):
        for name, images in ways.items():
            batches = 60 if name == "pixels" else 16
            loaders[name].append(loader_rate(images, count, batches))
            cores[name].append(core_rate(images, count, min(count, 640 if name == "pixels" else 96)))
    return {name: {"loader": statistics.median(loaders[name]), "core": statistics.median(cores[name])} for name in ways}


class Names:
    """Names that are made when they are asked for, as those of a mapped index are."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> str:
        return f"train/{i:08d}"


class Generated(Images):
    """Images of 8×8, made of their number."""

    content_key = "generated"

    def __init__(self, count: int) -> None:
        self.ids = Names(count)  # type: ignore[assignment]

    def load(self, i: int) -> Pixels:
        """Image `i`."""
        return np.full((8, 8, 3), i % 256, np.uint8)

    def measure(self, i: int) -> tuple[int, int]:
        """(8, 8)."""
        return 8, 8


class GeneratedDataset(Dataset):
    """Nothing but training images."""

    reference = slug = "generated"

    def __init__(self, count: int) -> None:
        super().__init__("", 8, None)
        self.train = Generated(count)


def private_bytes() -> int:
    """Memory of this process that is no page of a file and not shared with another process."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return sum(int(fields[name].split()[0]) for name in ("Private_Dirty", "Private_Hugetlb")) * 1024


class Weighed(torch.utils.data.Dataset[Any]):
    """A stream whose items come with the private memory of the process that made them."""

    def __init__(self, stream: TrainingStream) -> None:
        self.stream = stream

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        return self.stream[position], private_bytes() if position % 1000 == 0 else 0


def measure_memory(home: Path, entries: int) -> dict[str, float]:
    """MB of each process after some thousand random images, in the second epoch."""
    started = time.perf_counter()
    dataset = GeneratedDataset(entries)
    making = prepare_train(dataset, home, making=Making("pixels", insists=True))
    found = {"made in s": time.perf_counter() - started, "while made": private_bytes() / 1e6}
    del making
    before, started = private_bytes(), time.perf_counter()
    stream = TrainingStream(prepare_train(dataset, home), 8, 0, True, True)
    found["opened in s"] = time.perf_counter() - started
    for position in range(entries, entries + 5000):
        stream[position]
    found |= {"of a process": private_bytes() / 1e6, "of it the images": (private_bytes() - before) / 1e6}
    for way in ("fork", "spawn"):
        order = range(entries, entries + 5000)
        loader = DataLoader(Weighed(stream), 50, sampler=order, num_workers=1, multiprocessing_context=way)
        found[f"of a loader, {way}"] = max(int(weights.max()) for _, weights in loader) / 1e6
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", default=["prepare", "read", "memory"])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--entries", type=int, default=1_281_167)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="vqbench-data-") as folder:
        place = Path(folder)
        os.environ["VQBENCH_HOME"] = str(place / "home")
        sections: dict[str, Callable[[], Any]] = {
            "prepare": lambda: measure_prepare(place / "set", place / "home"),
            "read": lambda: measure_read(place / "set", place / "home", asked.images),
            "memory": lambda: measure_memory(place / "home", asked.entries),
        }
        if {"prepare", "read"} & {*asked.sections}:
            write(place / "set", asked.images)
        for name in asked.sections:
            rows[name] = sections[name]()
            print(f"{name} (load {os.getloadavg()[0]:.1f}):", flush=True)
            for key, value in rows[name].items():
                shown = value if isinstance(value, dict) else {"": value}
                print(f"  {key:28}" + ", ".join(f"{k} {v:,.1f}".strip() for k, v in shown.items()), flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
