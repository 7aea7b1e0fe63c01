"""Lightning without torchmetrics, of which it asks for two classes, to tell metrics from numbers: ours logs none.

torchmetrics brings SciPy's signal processing, torchvision and matplotlib: two of the five seconds of processor time
that the imports of a training took. Whoever imports it afterwards gets the real one, which Lightning then takes for no
metric.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
from collections.abc import Iterator
from importlib import metadata

_NAME = "torchmetrics"
_USED = (
    "lightning",
    "lightning.fabric.plugins.environments.lightning",
    "lightning.pytorch.utilities.exceptions",
)


@contextlib.contextmanager
def _stand_in() -> Iterator[None]:
    """Something that has what Lightning looks for, unless the real one is here already."""
    if _NAME in sys.modules:
        yield
        return
    module = types.ModuleType(_NAME)
    metric = type("Metric", (), {})
    vars(module).update(__version__=metadata.version(_NAME), Metric=metric)
    vars(module)["MetricCollection"] = type("MetricCollection", (metric,), {})
    sys.modules[_NAME] = module
    try:
        yield
    finally:
        del sys.modules[_NAME]


def _import() -> None:
    """Lightning; with the real torchmetrics where a version of it looks for more than the stand-in has."""
    try:
        with _stand_in():
            for name in _USED:
                importlib.import_module(name)
    except (ImportError, AttributeError, ValueError):
        for name in [name for name in sys.modules if name.partition(".")[0] == "lightning"]:
            del sys.modules[name]


_import()
import lightning as lightning  # noqa: E402
from lightning.fabric.plugins.environments.lightning import LightningEnvironment as LightningEnvironment  # noqa: E402
from lightning.pytorch.utilities.exceptions import SIGTERMException as SIGTERMException  # noqa: E402
