"""YAML as people write it: a file of their own, or one that vqbench brings under a name."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from vqbench.errors import UsageError, require_utf8, unknown


def shipped(package: str) -> list[str]:
    """Names of the YAML files of a package."""
    entries = resources.files(package).iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


def read_yaml(kind: str, name: str, package: str, hint: str) -> Any:
    """What the file `name` holds, which is a path, or the name of one that `package` ships; {} where it is empty.

    `kind` (recipe, space) and `hint` are for the errors. Raises UsageError for an unknown name, for a file that cannot
    be read, and for one that is not YAML.
    """
    require_utf8(name)
    if name.endswith((".yaml", ".yml")):
        try:
            content = Path(name).read_bytes()
        except OSError as error:
            raise UsageError(f"cannot read {kind} {name}: {error.strerror}", "give the path of a YAML file") from None
    elif name in shipped(package):
        content = (resources.files(package) / f"{name}.yaml").read_bytes()
    else:
        raise unknown(kind, name, shipped(package), f"or give the path of a YAML file: --{kind} my.yaml")
    return parse_yaml(content, f"{kind} {name}", hint)


def parse_yaml(content: bytes, what: str, hint: str) -> Any:
    """What YAML says; {} where it says nothing. Raises UsageError, naming `what`, for what is no YAML."""
    import yaml

    try:
        return yaml.safe_load(content) or {}  # bytes: it finds out the encoding, and says where it cannot
    except yaml.YAMLError as error:
        raise UsageError(f"{what} is not YAML: {' '.join(str(error).split())}", hint) from None
