"""A tokenizer through somebody's own code: a Python file with a function that returns it."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vqbench.data.hashing import digest_of
from vqbench.errors import UsageError, VQBenchError, require_utf8, unknown
from vqbench.facts import Facts
from vqbench.machine.home import expanded
from vqbench.plugin import Plugin, read_plugin
from vqbench.pretrained.external import Declared, ExternalCodec, WeightsFile, told
from vqbench.pretrained.opened import Opened
from vqbench.pretrained.published import published_of_foreign
from vqbench.registry import file_digest
from vqbench.seeds import seeded

_UNPINNED = "its weights are of no file that the adapter names, so a change of them is not noticed"


def open_adapter(path: Path, function: str) -> Opened:
    """What `function` of the Python file at `path` returns: any object of the contract `external.External`.

    The function is called without arguments, from a random state of its own. Raises UsageError where there is no such
    file or function, one of them raises, or what is returned does not keep the contract.
    """
    path = expanded(path).absolute()
    plugin, who = _read(path), f"{path}:{function}"
    made = _called(plugin, function, who)
    declared = Declared.of(made, who, path.parent)
    weights = [_digest_of_weights(file, who) for file in declared.source]
    codec = ExternalCodec(made, declared, who)
    parameters = codec.parameter_counts()
    remarks = [f"computes in {declared.dtype}"] if declared.dtype != "float32" else []
    remarks += [_UNPINNED] if parameters and not weights else []
    printed = [published_of_foreign(file.path, digest) for file, digest in zip(declared.source, weights, strict=True)]
    found, licence = next((known for known in printed if known[0]), ({}, ""))
    squares = tuple(height for height, width in declared.sizes if height == width)
    facts = Facts(
        kind="adapter",
        name=declared.name or f"{path.stem}:{function}",
        path=who,
        sha256=digest_of("adapter", plugin.digest, function, weights),
        codebook_size=declared.codebook_size,
        num_codebooks=declared.num_codebooks,
        bits_per_token=declared.bits_per_token,
        downsampling=declared.downsampling,
        multiple_of=declared.multiple_of,
        resolution=declared.resolution,
        sizes=squares,
        oblong=() if squares else tuple(f"{height}×{width}" for height, width in declared.sizes),
        parameters=parameters,
        trained_on=_each(file.trained_on for file in declared.source),
        licence=_each(file.licence for file in declared.source) or licence,
        published=declared.published or found,
        remarks=tuple(remarks),
    )
    return Opened(codec, facts)


def _read(path: Path) -> Plugin:
    require_utf8(path)
    try:
        plugin = read_plugin(path)
        ast.parse(plugin.files[plugin.main], filename=str(path))
    except OSError as error:
        what = f"cannot read adapter {path}: {error.strerror}"
        raise UsageError(what, "give the path of a Python file and a function of it: FILE.py:FUNCTION") from None
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        what = error.msg if isinstance(error, SyntaxError) else str(error)
        raise UsageError(f"adapter {path}{line}: {what}", f"python -m py_compile {path}") from None
    return plugin


def _called(plugin: Plugin, function: str, who: str) -> Any:
    """What the function returns. No setting of torch's that the file makes for its own process stays."""
    path = plugin.path
    module_name = f"vqbench_adapter_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    try:
        with seeded("adapter"), torch.no_grad(), contextlib.redirect_stdout(sys.stderr):  # stdout is the command's
            _guarded(f"adapter {path} does not import", plugin.load, module_name)
            return _guarded(f"{who} raised", _function(sys.modules[module_name], function, who))
    finally:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)


def _guarded(what: str, work: Any, *arguments: Any) -> Any:
    try:
        return work(*arguments)
    except VQBenchError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError):
            hint = f"install what brings '{error.name}' where vqbench is, or put it beside the file"
        elif isinstance(error, FileNotFoundError) and error.filename:
            hint = f"put {error.filename} there, or mend the path"
        else:
            hint = "`vqbench --debug check` of it shows the traceback"
        raise UsageError(f"{what}: {told(error)}", hint) from error


def _function(module: Any, name: str, who: str) -> Any:
    own = [key for key, value in vars(module).items()
           if getattr(value, "__module__", None) == module.__name__ and callable(value) and not key.startswith("_")
           and not isinstance(value, nn.Module)]  # fmt: skip
    if not name:
        listed = f"FILE.py:FUNCTION; it has {', '.join(own)}" if own else "write one that returns the tokenizer"
        raise UsageError(f"adapter {module.__file__} is given without the function that returns the tokenizer", listed)
    if not hasattr(module, name):
        raise unknown("function", name, own, f"of {module.__file__}: FILE.py:FUNCTION, which returns the tokenizer")
    found = getattr(module, name)
    if not callable(found) or isinstance(found, nn.Module):
        what = f"{who} is no function but {type(found).__name__}"
        raise UsageError(what, f"def tokenizer(): return {name}, and give it as FILE.py:tokenizer")
    return found


def _digest_of_weights(file: WeightsFile, who: str) -> str:
    """sha256 of a file; of a folder over the names and digests of all in it. Raises UsageError where it is another."""
    try:
        if file.path.is_dir():
            inside = sorted(path for path in file.path.rglob("*") if path.is_file())
            found = digest_of(*((path.relative_to(file.path).as_posix(), file_digest(path)) for path in inside))
        else:
            found = file_digest(file.path)
    except OSError as error:
        what = f"{who}: cannot read {file.path}, which it names as its source: {error.strerror}"
        raise UsageError(what, "source names the files that the weights were read from") from None
    if not found.startswith(file.sha256):
        what = f"{who} is written for weights of sha256 {file.sha256}, and {file.path} has {found}"
        raise UsageError(what, "get the file again, or name this one's sha256 in source")
    return found


def _each(texts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(filter(None, texts)))
