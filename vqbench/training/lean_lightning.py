"""Lightning without torchmetrics, of which it asks for two classes, to tell metrics from numbers: ours logs none.

torchmetrics brings SciPy's signal processing, torchvision and matplotlib: two of the five seconds of processor time
that the imports of a training took. Whoever imports it afterwards gets the real one.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Iterator
from importlib import metadata

_NAME = "torchmetrics"


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


with _stand_in():
    import lightning as lightning
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment as LightningEnvironment
    from lightning.pytorch.utilities.exceptions import SIGTERMException as SIGTERMException
