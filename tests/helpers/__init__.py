"""What several test files and benchmarks share: no test is in here, and no test file imports another.

Fixtures are in `conftest.py`, which pytest reads; all else that two files need is here.
"""

import pkgutil

import pytest

pytest.register_assert_rewrite(*(f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__)))
