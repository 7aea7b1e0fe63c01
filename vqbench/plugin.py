"""A plugin: the file that was given, and the modules beside it that it imports, read once and run as they were read.

A neighbour is found in the text of the files that import it, at any depth and inside functions too. A name that
Python can import by itself stays what it is: a `torch.py` beside a plugin is not torch. Neighbours have names of
their own in `sys.modules`, so that two plugins may each have a `layers.py`.
"""

from __future__ import annotations

import ast
import builtins
import functools
import hashlib
import importlib
import importlib.abc
import importlib.util
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path, PurePosixPath
from types import CodeType, ModuleType
from typing import Any

from vqbench.errors import UsageError
from vqbench.machine.atomic import write_bytes_atomically

COPIES = ("plugin.py", "plugin.zip")
"""What a cell keeps of its first plugin, which is its method's if that is one: the file, or an archive of the file and
its neighbours. Those of its metrics and its dataset are kept beside, `plugin-SHA8.py`."""


@dataclass(frozen=True)
class Plugin:
    """A plugin as it was when it was read."""

    path: Path
    """The file that was given, or the archive that a cell keeps."""
    files: Mapping[str, bytes]
    """Source text by its path relative to the folder; the first is the file that was given."""
    names: frozenset[str]
    """The modules of the folder that its files import as if they were installed."""

    @property
    def main(self) -> str:
        """The name of the file that was given."""
        return next(iter(self.files))

    @property
    def digest(self) -> str:
        """sha256 of the file, or of it and its neighbours by name."""
        if len(self.files) == 1:
            return hashlib.sha256(self.files[self.main]).hexdigest()
        of_files = [[name, hashlib.sha256(text).hexdigest()] for name, text in self.files.items()]
        return hashlib.sha256(json.dumps([self.main, sorted(of_files)]).encode()).hexdigest()

    def is_of(self, digest: str) -> bool:
        """Whether it is what `digest` was made of; earlier versions took the file alone, whatever it imported."""
        return digest in (self.digest, hashlib.sha256(self.files[self.main]).hexdigest())

    def in_words(self) -> dict[str, Any]:
        """What a spec says of it: path, sha256 and, where it has neighbours, its files."""
        files = {"files": list(self.files)} if len(self.files) > 1 else {}
        return {"path": str(self.path), "sha256": self.digest, **files}

    def packed(self) -> bytes:
        """What a cell keeps: the file itself, or an archive of all."""
        if len(self.files) == 1:
            return self.files[self.main]
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.comment = " ".join(sorted(self.names)).encode()
            for name, text in self.files.items():
                file.writestr(zipfile.ZipInfo(name), text)
        return archive.getvalue()

    def where(self, name: str) -> Path:
        """The path of one of its files."""
        return self.path / name if self.path.suffix == ".zip" else self.path.parent / name

    def load(self, module_name: str) -> None:
        """Run it as the module `module_name`, whose submodules its neighbours are. Raises what it raises."""
        for stale in [name for name in sys.modules if name == module_name or name.startswith(f"{module_name}.")]:
            del sys.modules[stale]
        sys.meta_path[:] = [finder for finder in sys.meta_path if getattr(finder, "package", None) != module_name]
        if len(self.files) > 1:
            sys.meta_path.insert(0, _Neighbours(self, module_name))
            importlib.import_module(module_name)
            return
        spec = importlib.util.spec_from_file_location(module_name, self.path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[module_name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


def read_plugin(path: Path) -> Plugin:
    """The file at `path` with its neighbours, or the archive that a cell keeps of both.

    Raises OSError where it cannot be read, UsageError where a neighbour cannot, or does not parse.
    """
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
            return Plugin(path, files, frozenset(archive.comment.decode().split()))
    files, names, waiting = {path.name: path.read_bytes()}, set(), [path.name]
    while waiting:
        name = waiting.pop()
        modules, by_name = _imports(path, name, files[name])
        names |= by_name
        for found in modules:
            if found not in files:
                try:
                    files[found] = (path.parent / found).read_bytes()
                except OSError as error:
                    what = f"cannot read {path.parent / found}, which plugin {path} imports: {error.strerror}"
                    raise UsageError(what, "make it readable, or do not import it") from None
                waiting.append(found)
    neighbours = {name: files[name] for name in sorted(files) if name != path.name}
    return Plugin(path, {path.name: files[path.name], **neighbours}, frozenset(names))


def keep_copies(folder: Path, packed: Sequence[bytes]) -> None:
    """Leave in a cell's folder what `Plugin.packed` gave for each of its plugins."""
    for i, content in enumerate(packed):
        name = Path(COPIES[zipfile.is_zipfile(io.BytesIO(content))])
        beside = f"{name.stem}-{hashlib.sha256(content).hexdigest()[:8]}{name.suffix}"
        write_bytes_atomically(folder / (beside if i else name), content)


def find_plugin(digest: str, places: Sequence[Path | None], kept_in: Path) -> Path | None:
    """The plugin of `digest` at one of `places`, or the copy that the cell in `kept_in` has; None where it is gone."""
    for path in (*places, *(kept_in / name for name in COPIES), *sorted(kept_in.glob("plugin-*"))):
        try:
            if path is not None and read_plugin(path).is_of(digest):
                return path
        except (OSError, UsageError, zipfile.BadZipFile):
            continue
    return None


def _imports(plugin: Path, name: str, text: bytes) -> tuple[list[str], set[str]]:
    """The files of the plugin's folder that the text of `name` imports, and the names at the top that it gives them."""
    folder = plugin.parent
    try:
        tree = ast.parse(text, filename=name)
    except (SyntaxError, ValueError) as error:
        if name == plugin.name:
            return [], set()  # whoever reads what it declares says so
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        what = f"{folder / name}{line}, which plugin {plugin} imports: {error.args[0]}"
        raise UsageError(what, f"python -m py_compile {folder / name}") from None
    package = PurePosixPath(name).parent.parts
    wanted = [module for node in ast.walk(tree) for module in _modules_of(node, package)]
    beside = {module[0] for module, is_relative in wanted if not is_relative and _is_there(folder, module[0])}
    beside -= _importable(tuple(sorted(beside)))
    of_folder = [module for module, is_relative in wanted if is_relative or module[0] in beside]
    files = [_file_of(folder, module[:depth]) for module in of_folder for depth in range(1, len(module) + 1)]
    return [file for file in files if file is not None], beside


def _modules_of(node: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], bool]]:
    """The modules that a statement imports, or may import, as their parts; and whether it names them relatively."""
    if isinstance(node, ast.Import):
        yield from ((tuple(alias.name.split(".")), False) for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        module = tuple(node.module.split(".")) if node.module else ()
        if node.level:
            module = (*package[: len(package) - (node.level - 1)], *module)
        if node.level <= len(package) + 1:
            yield from (((*module, alias.name), node.level > 0) for alias in node.names)


def _is_there(folder: Path, name: str) -> bool:
    return (folder / f"{name}.py").is_file() or (folder / name).is_dir()


def _file_of(folder: Path, module: tuple[str, ...]) -> str | None:
    path = PurePosixPath(*module)
    return next((name for name in (f"{path}/__init__.py", f"{path}.py") if (folder / name).is_file()), None)


@functools.lru_cache(maxsize=256)
def _importable(names: tuple[str, ...]) -> frozenset[str]:
    """Those of `names` that a new process can import by itself, which knows neither our folder nor that of a script."""
    known = frozenset(names) & (sys.stdlib_module_names | {"vqbench"})
    if known == set(names):
        return known
    code = "import sys, importlib.util as u; print(*(n for n in sys.argv[1:] if u.find_spec(n)))"
    answer = subprocess.run(
        [sys.executable, "-X", "utf8", "-P", "-c", code, *names],
        capture_output=True, encoding="utf-8", check=False, env={**os.environ, "PYTHONSAFEPATH": "1"},
    )  # fmt: skip
    return known | frozenset(answer.stdout.split())


class _Neighbours(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Finds and loads the modules of one plugin, from the text that was read."""

    def __init__(self, plugin: Plugin, package: str) -> None:
        self.plugin, self.package = plugin, package

    def _name_of(self, module: str) -> str | None:
        """The file of a module; empty for a folder of modules that has none, None for what is no part of it."""
        if module == self.package:
            return self.plugin.main
        path = module.removeprefix(f"{self.package}.").replace(".", "/")
        known = (name for name in (f"{path}/__init__.py", f"{path}.py") if name in self.plugin.files)
        is_folder = any(name.startswith(f"{path}/") for name in self.plugin.files)
        return next(known, "" if is_folder else None)

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """The spec of a module of the plugin."""
        if fullname != self.package and not fullname.startswith(f"{self.package}."):
            return None
        name = self._name_of(fullname)
        if name is None:
            return None
        spec = ModuleSpec(fullname, self, origin=str(self.plugin.where(name)), is_package=self.is_package(fullname))
        spec.has_location = bool(name)
        return spec

    def is_package(self, fullname: str) -> bool:
        """Whether other modules of the plugin are below it."""
        name = self._name_of(fullname)
        return fullname == self.package or name == "" or (name or "").endswith("/__init__.py")

    def get_source(self, fullname: str) -> str:
        """Its text, for tracebacks and the help of fields."""
        name = self._name_of(fullname)
        return importlib.util.decode_source(self.plugin.files[name]) if name else ""

    def get_code(self, fullname: str) -> CodeType:
        """Its text compiled; nothing is cached, so what runs is what was read."""
        name = self._name_of(fullname)
        where = str(self.plugin.where(name)) if name else "<folder>"
        return self.source_to_code(self.plugin.files[name] if name else b"", where)

    def exec_module(self, module: ModuleType) -> None:
        """Run it, with an `import` that knows its neighbours by the names that it uses."""
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": self._import}
        exec(self.get_code(module.__name__), module.__dict__)

    def _import(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> ModuleType:
        top, _, below = name.partition(".")
        if level or top not in self.plugin.names:
            return builtins.__import__(name, globals, locals, fromlist, level)
        if name == PurePosixPath(self.plugin.main).stem:
            return sys.modules[self.package]
        leaf = importlib.import_module(f"{self.package}.{name}")
        for submodule in fromlist or ():
            if not hasattr(leaf, submodule) and self._name_of(f"{leaf.__name__}.{submodule}") is not None:
                importlib.import_module(f"{leaf.__name__}.{submodule}")
        return leaf if fromlist or not below else sys.modules[f"{self.package}.{top}"]
