"""One door for plugins: entry points, files given by path, and the decorator.

Names and outlines are read from source text, so listing imports nothing; a class is imported when it is asked for.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, TypeVar

from vqbench.errors import UsageError, VQBenchError, require_utf8, unknown
from vqbench.machine.home import expanded
from vqbench.plugin import Plugin, read_plugin

T = TypeVar("T")


@dataclass(frozen=True)
class Outline:
    """What can be said of a plugin without importing it."""

    name: str
    summary: str
    paper: str
    components: tuple[str, ...]
    origin: str
    """The distribution that brings it ("vqbench 0.1.0"), the file it is in, or "registered in Python"."""
    problem: str = ""
    """Why it cannot be used, for a broken plugin."""


@dataclass(frozen=True)
class _Place:
    """Where a name is defined: an entry point, or a file of the user's."""

    entry_point: metadata.EntryPoint | None = None
    file: Path | None = None

    @property
    def origin(self) -> str:
        if self.entry_point is not None and self.entry_point.dist is not None:
            return f"{self.entry_point.dist.name} {self.entry_point.dist.version}"
        return str(self.file)

    def source(self) -> Path:
        if self.file is not None:
            return self.file
        assert self.entry_point is not None
        spec = importlib.util.find_spec(self.entry_point.module)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"No module named '{self.entry_point.module}'")
        return Path(spec.origin)


@functools.cache
def _announced() -> Any:
    return metadata.entry_points()  # reads the metadata of every package: tens of milliseconds


def file_digest(path: Path) -> str:
    """sha256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Source:
    """Where a registered class is written."""

    plugin: Plugin | None
    """The file and its neighbours, which other processes must be told of; None for what is installed."""
    digest: str | None
    """sha256 of it, since numbers depend on it; None for vqbench's own."""


def _file_of_class(cls: type) -> str | None:
    return getattr(sys.modules.get(cls.__module__), "__file__", None)


def _is_copy(known: type, cls: type) -> bool:
    """Whether two classes are of the same text, which was run for two plugins."""
    if known.__module__ == cls.__module__ or known.__qualname__ != cls.__qualname__:
        return False
    file = _file_of_class(known)
    return file is not None and file == _file_of_class(cls)


@dataclass(frozen=True)
class _Declaration:
    """A class in a source file, with what its decorators register it as, where they say it in so many words."""

    node: ast.ClassDef
    registered: tuple[tuple[str, str], ...]
    """Each a registry, as the decorator calls it (METHODS), and a name."""


def _declarations(path: Path) -> list[_Declaration]:
    """The classes of a file. Raises UsageError where it cannot be read, or does not parse."""
    require_utf8(path)
    try:
        return _parsed(path)
    except OSError as error:
        raise UsageError(f"cannot read plugin {path}: {error.strerror}", "give the path of a Python file") from None
    except zipfile.BadZipFile as error:
        raise UsageError(f"plugin {path}: {error}", "give the path of a Python file") from None
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        what = error.msg if isinstance(error, SyntaxError) else str(error)
        raise UsageError(f"plugin {path}{line}: {what}", f"python -m py_compile {path}") from None


def _parsed(path: Path) -> list[_Declaration]:
    plugin = read_plugin(path)
    tree = ast.parse(plugin.files[plugin.main], filename=str(path))
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    return [_Declaration(node, tuple(filter(None, map(_registered, node.decorator_list)))) for node in classes]


def _registered(decorator: ast.expr) -> tuple[str, str] | None:
    match decorator:
        case ast.Call(
            func=ast.Attribute(attr="register", value=ast.Name(id=registry)), args=[ast.Constant(value=str(name)), *_]
        ):
            return registry, name
    return None


def _component_of(statement: ast.stmt) -> str | None:
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.value, ast.Call):
        for keyword in statement.value.keywords:
            if keyword.arg == "metadata" and isinstance(keyword.value, ast.Dict):
                for key, value in zip(keyword.value.keys, keyword.value.values, strict=True):
                    if isinstance(key, ast.Constant) and key.value == "component" and isinstance(value, ast.Constant):
                        return str(value.value)
    return None


def _last_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[-1]}"


class Registry(Generic[T]):
    """Names → classes of one kind ("method", "dataset").

    A name may be of a family, `family:member`: entry points of the group `GROUP_families` name classes that make one
    for each member (`member(name)`), such as for each class of another library.

    `variable` is the name that plugins use for this registry in their decorator (`METHODS`), `group` the
    entry-point group that installed packages announce their plugins in, `built_in` a module that registers vqbench's
    own where they are no entry points, `see` what lists them.
    """

    def __init__(self, kind: str, variable: str, group: str, built_in: str = "", see: str = "") -> None:
        self.kind = kind
        self.variable = variable
        self.group = group
        self.built_in = built_in
        self.see = see or f"`vqbench {kind}s` lists them; one of a file needs the file: --plugin FILE"
        self._classes: dict[str, type[T]] = {}
        self._files: dict[str, Path] = {}
        self._unread: list[Path] = []
        self._read: set[Path] = set()

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Decorator: make a class known under `name`. Registering it again from the same place replaces it."""

        def add(cls: type[T]) -> type[T]:
            self._import_own()
            known = self._classes.get(name)
            if known is not None and _is_copy(known, cls):  # of a plugin that another one has for a neighbour
                self._classes[name] = cls if "." in known.__module__ else known
                return cls
            if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
                places = (f"{c.__module__}.{c.__qualname__}" for c in (known, cls))
                raise self._taken(name, *places)
            self._classes[name] = cls
            return cls

        return add

    def add_file(self, path: Path, replace: bool = False) -> tuple[str, ...]:
        """Make the plugins in a Python file known, without running it; returns the names found in it.

        Raises UsageError where there is no such file, it does not parse, or a name in it is taken; with `replace`
        the file takes the name over.
        """
        path = expanded(path).resolve()
        return self._add(path, _declarations(path), replace)

    def _add(self, path: Path, declared: list[_Declaration], replace: bool) -> tuple[str, ...]:
        names = tuple(name for d in declared for registry, name in d.registered if registry == self.variable)
        for name in names:
            if self._files.get(name) == path:
                continue
            is_known = name in self._classes and _file_of_class(self._classes[name]) == str(path)
            if name in self.names() and not replace and not is_known:
                raise self._taken(name, self._origin(name), str(path))
            self._classes.pop(name, None)
        self._files |= dict.fromkeys(names, path)
        if path not in self._unread and (replace or path not in self._read):
            self._unread.append(path)
        return names

    def _taken(self, name: str, first: str, second: str) -> UsageError:
        what = f"two {self.kind}s are called '{name}': {first} and {second}"
        return UsageError(what, "rename one of them in its register(…)")

    @functools.cached_property
    def _entry_points(self) -> dict[str, metadata.EntryPoint]:
        return {point.name: point for point in _announced().select(group=self.group)}

    @functools.cached_property
    def _families(self) -> dict[str, metadata.EntryPoint]:
        return {point.name: point for point in _announced().select(group=f"{self.group}_families")}

    def is_member(self, name: str) -> bool:
        """Whether `name` is `family:member` of a family that there is; the member is not looked for."""
        family, colon, _ = name.partition(":")
        return bool(colon) and family in self._families

    def families(self) -> list[Outline]:
        """What can be said of each family without importing it, as `family:CLASS`."""
        return [self._outlined(f"{name}:CLASS", _Place(point)) for name, point in self._families.items()]

    def _member(self, name: str) -> type[T]:
        family, _, member = name.partition(":")
        made: type[T] = self._loaded(self._families[family], family).member(member)  # type: ignore[attr-defined]
        return made

    def names(self) -> list[str]:
        """Every known name: vqbench's own as it lists them, the others sorted; no plugin is imported."""
        self._import_own()
        own = [name for name in self._classes if self._is_own(name)]
        return [*own, *sorted({*self._classes, *self._files, *self._entry_points}.difference(own))]

    def imported(self) -> list[str]:
        """Those of `names` whose class is here already."""
        return [name for name in self.names() if name in self._classes]

    def _import_own(self) -> None:
        if self.built_in and self.built_in not in sys.modules:
            importlib.import_module(self.built_in)

    def __contains__(self, name: str) -> bool:
        self._import_own()
        return name in self._classes or name in self._files or name in self._entry_points or self.is_member(name)

    def file_of(self, name: str) -> Path | None:
        """The user's own file that defines `name`, or None for an installed plugin."""
        return self._files.get(name)

    def is_installed(self, name: str) -> bool:
        """Whether an installed package brings `name`, so that every process knows it."""
        known = name in self._entry_points or self._is_own(name) or self.is_member(name)
        return known and name not in self._files

    def _is_own(self, name: str) -> bool:
        return bool(self.built_in) and getattr(self._classes.get(name), "__module__", "").startswith("vqbench.")

    def is_built_in(self, name: str) -> bool:
        """Whether `name` is vqbench's own; nothing is imported."""
        cls = self._classes.get(name)
        module = cls.__module__ if cls is not None else getattr(self._entry_points.get(name), "module", "")
        return self.is_installed(name) and module.startswith("vqbench.")

    def get(self, name: str) -> type[T]:
        """The class registered under `name`, or of a family's member, imported now.

        Raises UsageError for an unknown name (with the nearest ones) or a plugin that does not import.
        """
        if name not in self:
            if name in self._families:
                raise UsageError(f"{self.kind} '{name}' needs the name of a class: {name}:CLASS", self.see)
            self._search_unread_files(name)
        if name not in self._classes and name not in self._files and self.is_member(name):
            return self._member(name)
        if name in self._files and self._files[name] in self._unread:
            self._import_file(self._files[name])
        elif name not in self._classes:
            self._classes.setdefault(name, self._loaded(self._entry_points[name], name))
        if name not in self._classes:
            raise UsageError(f"{self._origin(name)} does not register {self.kind} '{name}'", "check its register(…)")
        return self._classes[name]

    def _search_unread_files(self, name: str) -> None:
        """A file may register under a name that its text does not show: run those that have not been run."""
        problems = []
        for path in list(self._unread):
            try:
                self._import_file(path)
            except UsageError as error:
                problems.append(f"; {error.what}")
        if name not in self.names():
            raise unknown(self.kind, name, self.names(), f"{self.see}{''.join(problems)}")

    def _loaded(self, point: metadata.EntryPoint, name: str) -> type[T]:
        try:
            loaded: type[T] = point.load()
        except Exception as error:
            what = f"{self.kind} '{name}' of {_Place(point).origin} does not import: {_last_line(error)}"
            raise UsageError(what, f"python -c 'import {point.module}' shows the traceback") from error
        return loaded

    def _import_file(self, path: Path) -> None:
        module_name = f"vqbench_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
        try:
            read_plugin(path).load(module_name)
        except VQBenchError:
            raise
        except Exception as error:
            what = f"plugin {path} does not import: {_last_line(error)}"
            raise UsageError(what, f"`vqbench --debug check {path}` shows the traceback") from error
        for registry in {self, *REGISTRIES}:  # a file is run once, whatever it registers
            registry._settle(path, module_name)

    def _settle(self, path: Path, module_name: str) -> None:
        """Note what a file that was run just now has registered."""
        if path in self._unread:
            self._unread.remove(path)
        self._read.add(path)
        # not what the file imports, such as a built-in that it subclasses; of its neighbours what nobody else brings
        mine = [name for name, cls in self._classes.items() if cls.__module__ == module_name]
        beside = [name for name, cls in self._classes.items() if cls.__module__.startswith(f"{module_name}.")]
        self._files |= dict.fromkeys([*mine, *(name for name in beside if name not in self._files)], path)

    def source_of(self, name: str) -> Source:
        """The text that defines `name`, as it is now.

        Raises UsageError for a class that was typed at a prompt or in the script that is running.
        """
        cls = self.get(name)
        if cls.__module__.startswith("vqbench."):
            return Source(None, None)
        if self.is_installed(name):
            file = inspect.getsourcefile(cls)
            return Source(None, file_digest(Path(file)) if file else None)
        path = self.file_of(name)
        if path is None and cls.__module__ != "__main__":
            found = inspect.getsourcefile(cls)
            path = Path(found) if found else None
        if path is None:
            raise UsageError(
                f"{self.kind} '{name}' exists in this process only, and each cell has a process of its own",
                "put the class into a file and give it with --plugin FILE, or plugins=[FILE] in Python",
            )
        plugin = read_plugin(path)
        return Source(plugin, plugin.digest)

    def _place(self, name: str) -> _Place | None:
        """Where the text of a name is; None for a class that is in this process alone, vqbench's own, or a member."""
        if name in self._files:
            return _Place(file=self._files[name])
        return _Place(self._entry_points[name]) if name in self._entry_points else None

    def _origin(self, name: str) -> str:
        place = self._place(name)
        if place is None and self.is_member(name):
            place = _Place(self._families[name.partition(":")[0]])
        if place is not None:
            return place.origin
        return f"vqbench {metadata.version('vqbench')}" if self._is_own(name) else "registered in Python"

    def outline(self, name: str) -> Outline:
        """Summary, paper and components of a plugin, read from its source text."""
        place = self._place(name)
        return self._outline_of_class(name, self._origin(name)) if place is None else self._outlined(name, place)

    def _outlined(self, name: str, place: _Place) -> Outline:
        try:
            node = self._find_class(name, place)
            return self._outline_of_node(name, node, place) or self._outline_of_class(name, place.origin)
        except Exception as error:
            return Outline(name, "", "", (), place.origin, problem=_last_line(error))

    def _find_class(self, name: str, place: _Place) -> ast.ClassDef:
        wanted = place.entry_point.attr if place.entry_point is not None else None
        for declared in _parsed(place.source()):
            is_named = (self.variable, name) in declared.registered
            if declared.node.name == wanted or (wanted is None and is_named):
                return declared.node
        raise ImportError(f"no class registered as '{name}' in {place.source()}")

    def _outline_of_node(self, name: str, node: ast.ClassDef, place: _Place) -> Outline | None:
        config = next((n for n in node.body if isinstance(n, ast.ClassDef) and n.name == "Config"), None)
        if config is not None and config.bases:
            return None  # inherited fields cannot be read from this text
        components = tuple(filter(None, map(_component_of, config.body))) if config else ()
        return Outline(name, *_headline(ast.get_docstring(node) or ""), components, place.origin)

    def _outline_of_class(self, name: str, origin: str) -> Outline:
        from vqbench.config import components

        cls: Any = self.get(name)
        declared = tuple(components(cls.Config)) if hasattr(cls, "Config") else ()
        return Outline(name, *_headline(cls.__doc__ or ""), declared, origin)


def _headline(docstring: str) -> tuple[str, str]:
    """First line of a docstring, and the paper that it names."""
    first = docstring.strip().split("\n\n")[0].replace("\n", " ")
    paper = re.search(r"arXiv:\d{4}\.\d{4,5}|https?://[^\s)]+?(?=\.?(?:[)\s]|$))", first)
    return re.sub(r"\s+", " ", first), paper.group(0) if paper else ""


METHODS: Registry[Any] = Registry("method", "METHODS", "vqbench.methods")
DATASETS: Registry[Any] = Registry("dataset", "DATASETS", "vqbench.datasets")
METRICS: Registry[Any] = Registry("metric", "METRICS", "vqbench.metrics", "vqbench.metrics.built_in")
EXTRACTORS: Registry[Any] = Registry(
    "extractor", "EXTRACTORS", "vqbench.extractors", "vqbench.metrics.built_in", "see docs/adding-a-metric.md"
)
REGISTRIES = (METHODS, DATASETS, METRICS, EXTRACTORS)


def add_plugin(path: Path) -> dict[str, tuple[str, ...]]:
    """Make whatever a Python file registers known, without running it: kind → names.

    Raises UsageError where there is no such file, it does not parse, or a name in it is taken (see `add_file`).
    """
    path = expanded(path).resolve()
    declared = _declarations(path)
    return {registry.kind: registry._add(path, declared, replace=False) for registry in REGISTRIES}
