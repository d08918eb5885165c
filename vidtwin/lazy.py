"""Packages that import a module only when one of its names is first used.

The stub `__init__.pyi` beside a package's `__init__.py` lists the names that the package gives, as
imports which type checkers and editors understand. So `import vidtwin` takes milliseconds, and a
command can refuse an argument before torch is loaded.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["attach_stub"]


def attach_stub(
    name: str, file: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """The `__getattr__`, `__dir__` and `__all__` of a package, from the stub beside it.

    Args:
        name: the package's `__name__`.
        file: the package's `__file__`.
    """
    stub = ast.parse(Path(file).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    homes = {alias.name: node.module for node in imports for alias in node.names}

    def get(attribute: str) -> Any:
        home = homes.get(attribute)
        if home is None:
            raise AttributeError(f"module {name!r} has no attribute {attribute!r}")
        return getattr(importlib.import_module(home), attribute)

    return get, lambda: sorted(homes), sorted(homes)
