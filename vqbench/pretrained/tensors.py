"""Tensors out of a file that somebody else wrote, without running anything that the file asks for."""

from __future__ import annotations

import pickletools
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from vqbench.errors import UsageError
from vqbench.registry import file_digest
from vqbench.wording import reason_of_library, some

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""The number that begins a file of torch.save before torch 1.6."""
_ARCHIVES = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"Rar!": "rar"}
_HOSTILE_MODULES = {
    "os", "posix", "nt", "sys", "subprocess", "shutil", "socket", "runpy", "importlib", "ctypes", "pty", "commands",
}  # fmt: skip
_HOSTILE = {"eval", "exec", "execfile", "compile", "open", "__import__", "breakpoint", "input"}
_EXPORTED = {"archive_format", "serialized_exported_program.json"}
"""Files in an archive of torch.export, of today's torch and of earlier ones."""
_TRUST = "--trust runs what the file holds, with your rights: only where you trust whoever made it"
_AGAIN = "copy or download it again, and compare its size and sha256 with those of its source"


class _Inert(list):  # type: ignore[type-arg]
    """Stands for every foreign class and function: takes whatever is done to it, and does nothing."""

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Nothing is kept."""

    def __call__(self, *_: Any, **__: Any) -> _Inert:
        return self


class _InertDict:
    """Stands for foreign kinds of dict: torch's reader fills none but its own."""

    def __new__(cls, *_: Any, **__: Any) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


class _InertQueue:
    """Stands for `collections.deque`: torch's reader, 2.14 apart, appends to no other kind of list than its own."""

    def __new__(cls, *_: Any, **__: Any) -> list[Any]:  # type: ignore[misc]
        return []


def sha256_of(path: Path) -> str:
    """Of a file's bytes. Raises UsageError where it cannot be read."""
    try:
        return file_digest(path)
    except OSError as error:
        raise _unreadable(path, error) from None


def read_tensors(path: Path, trust: bool = False) -> Mapping[str, Any]:
    """What a file of weights holds, on the CPU: names to tensors, or to further mappings of them, among other things.

    Reads safetensors, and what torch.save writes (in both of its formats) with inert stand-ins for all foreign classes.
    A program (TorchScript, a whole pickled module) is its parameters, and is run only where it is trusted. Raises
    UsageError for anything else, and for a file that is cut off.
    """
    head = _beginning(path)
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        _refuse_text(path, head)
        return _safetensors(path)
    if head.startswith(b"PK\x03\x04"):
        return _zip(path, trust)
    if head[:1] == b"\x80":
        return _pickle(path, trust)
    _refuse_text(path, head)
    kind = next((name for magic, name in _ARCHIVES.items() if head.startswith(magic)), "")
    if kind or head[257:262] == b"ustar":
        raise UsageError(f"{path} is an archive ({kind or 'tar'})", "unpack it, and give the file of weights in it")
    raise UsageError(f"{path} is no file of weights: it begins with {head[:8].hex(' ')}", _AGAIN)


def _beginning(path: Path) -> bytes:
    if path.is_dir():
        inside = sorted(found.name for found in path.iterdir() if found.is_file())
        raise UsageError(f"{path} is a folder, not a file of weights", f"give a file in it: {some(inside) or 'none'}")
    try:
        with path.open("rb") as file:
            head = file.read(1024)
    except FileNotFoundError:
        beside = sorted(f.name for f in path.parent.iterdir() if f.is_file()) if path.parent.is_dir() else []
        near = get_close_matches(path.name, beside, n=1) or beside
        raise UsageError(f"there is no file {path}", f"there is {some(near)}" if near else "look at the path") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    if not head:
        raise UsageError(f"{path} is empty", _AGAIN)
    return head


def _refuse_text(path: Path, head: bytes) -> None:
    """UsageError for what a failed download leaves in place of weights."""
    if head.startswith(b"version https://git-lfs"):
        pull = f"fetch the file itself: git lfs pull --include {path.name}"
        raise UsageError(f"{path} is the pointer that git-lfs keeps in place of a large file, not weights", pull)
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        page = "what a download leaves that needs a login or a consent"
        raise UsageError(f"{path} is a web page, not weights: {page}", "open its address in a browser, and save it")
    printable = bytes(range(32, 127)) + b"\t\n\r\f"
    if not head.translate(None, printable + bytes(range(128, 256))) and head[:1] != b"\x80":
        start = head.split(b"\n")[0][:60].decode(errors="replace").strip()
        raise UsageError(f"{path} is a text, not weights: it begins with '{start}'", _AGAIN)


def _unreadable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"{path} cannot be read: {error.strerror or error}", "look at its permissions")


def _cut_off(path: Path, why: object) -> UsageError:
    size = path.stat().st_size
    return UsageError(f"{path} is cut off or damaged, at {size:,} bytes: {why}", _AGAIN)


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:  # type: ignore[no-untyped-call]
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise _cut_off(path, reason_of_library(error)) from None


def _zip(path: Path, trust: bool) -> Mapping[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            inside = {name.rpartition("/")[2] for name in names}
            pickles = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
            if pickles and "constants.pkl" not in inside:
                with archive.open(pickles[0]) as stream:
                    foreign = set(_globals_of(stream))
    except (zipfile.BadZipFile, EOFError, ValueError) as error:
        raise _cut_off(path, error) from None
    except OSError as error:
        raise _unreadable(path, error) from None
    if "constants.pkl" in inside:
        return _program(path, "TorchScript", trust, is_script=True)
    if inside & _EXPORTED:
        what = f"{path} is a program of torch.export, which encodes or decodes: a tokenizer is both"
        adapter = "an adapter whose encode and decode call such programs: adapter.py:function"
        raise UsageError(what, f"give the cell that it was exported from, or {adapter}")
    if not pickles:
        raise UsageError(f"{path} is an archive with {some(names, 4)} in it", "unpack it, and give the file of weights")
    return _loaded(path, foreign, trust, mmap=True)


def _pickle(path: Path, trust: bool) -> Mapping[str, Any]:
    """A file of torch.save before 1.6: pickles one after the other, and the tensors' bytes."""
    try:
        with path.open("rb") as stream:
            first = [argument for _, argument, _ in pickletools.genops(stream)]
            if _LEGACY_MAGIC not in first:
                stream.seek(0)
                _refuse_hostile(path, set(_globals_of(stream)))
                raise UsageError(
                    f"{path} is a pickle, but none that torch.save wrote",
                    "save a state dict: torch.save(tensors, FILE)",
                )
            foreign = {name for _ in range(3) for name in _globals_of(stream)}  # protocol, machine, and the object
    except (ValueError, EOFError) as error:
        raise _cut_off(path, reason_of_library(error)) from None
    except OSError as error:
        raise _unreadable(path, error) from None
    return _loaded(path, foreign, trust, mmap=False)


def _globals_of(stream: IO[bytes]) -> Iterator[str]:
    """What the next pickle of a stream would import, as `module.name`.

    A name may be pushed once and fetched from the memo; what is put there by other ways is followed as "".
    """
    texts, memo = ["", ""], dict[int, str]()
    for code, argument, _ in pickletools.genops(stream):
        if code.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".", 1)
        elif code.name == "STACK_GLOBAL":
            yield ".".join(texts)
            texts = [texts[1], ""]
        elif code.name == "MEMOIZE":
            memo[len(memo)] = texts[1]
        elif code.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[int(str(argument))] = texts[1]
        elif code.name in ("GET", "BINGET", "LONG_BINGET"):
            texts = [texts[1], memo.get(int(str(argument)), "")]
        elif isinstance(argument, str):
            texts = [texts[1], argument]
        elif code.stack_after:
            texts = [texts[1], ""]


def _refuse_hostile(path: Path, foreign: set[str]) -> None:
    """UsageError for a pickle that would do something to this machine: no file of weights has a reason to."""
    for name in sorted(foreign):
        module, _, function = name.rpartition(".")
        if not module or not function:
            what = f"{path} hides what it would call when it is read, as no file of weights does: nothing of it was run"
            raise UsageError(what, "do not open it with anything else; get the weights from their authors")
        if module.partition(".")[0] in _HOSTILE_MODULES or (
            module in ("builtins", "__builtin__") and function in _HOSTILE
        ):
            what = f"{path} would call {name} when it is read, as no file of weights needs to: nothing of it was run"
            raise UsageError(what, "do not open it with anything else; get the weights from their authors")


def _stand_in(name: str) -> type:
    if name == "collections.deque":
        return _InertQueue
    return _InertDict if name.lower().endswith("dict") else _Inert


def _loaded(path: Path, foreign: set[str], trust: bool, mmap: bool) -> Mapping[str, Any]:
    _refuse_hostile(path, foreign)
    inert: list[Any] = [(_stand_in(name), name) for name in sorted(foreign)]
    try:
        # what torch allows by itself keeps its meaning; all the rest is a stand-in
        with torch.serialization.safe_globals(inert), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # a damaged pickle may raise anything
        reason = reason_of_library(error)
        if "WeightsUnpickler" in reason or "Weights only load failed" in reason:
            if trust:
                return _program(path, "a pickle", trust, is_script=False)
            raise UsageError(f"{path} cannot be read without running what is in it", _TRUST) from None
        raise _cut_off(path, reason) from None
    values = content.values() if isinstance(content, Mapping) else [content]
    if any(isinstance(v, _Inert) for v in values) and not any(tensors_in(v) or isinstance(v, Tensor) for v in values):
        return _program(path, "a whole pickled module", trust, is_script=False)
    return _named(path, content)


def _program(path: Path, kind: str, trust: bool, is_script: bool) -> Mapping[str, Any]:
    """The state dict of a program, which is run for it where it is trusted."""
    if not trust:
        raise UsageError(f"{path} is {kind}, a program and not only weights", _TRUST)
    try:
        if is_script:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # files of today's are read as long as torch can
                content = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
        else:
            content = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # foreign code may raise anything
        what = f"{path} is {kind}, and does not run here: {reason_of_library(error)}"
        raise UsageError(what, "install what it imports, or write an adapter: adapter.py:function") from None
    named = _named(path, content.state_dict() if isinstance(content, nn.Module) else content)
    return {name: v.state_dict() if isinstance(v, nn.Module) else v for name, v in named.items()}


def _named(path: Path, content: Any) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        raise UsageError(f"{path} holds a {type(content).__name__}, not named tensors", "give the file of a state dict")
    return content


def tensors_in(content: Any) -> dict[str, Tensor]:
    """The named tensors of a mapping, not those of mappings in it; nothing of anything else."""
    items = content.items() if isinstance(content, Mapping) else ()
    return {name: v.detach() for name, v in items if isinstance(name, str) and isinstance(v, Tensor)}
