"""A folder is a registry: a module of a package that defines the registry's variable is an entry, under its own name.

``adapters/loha.py`` with a variable ``ADAPTER`` is the adapter ``loha``. Third parties add entries through
entry points, in the group that the folder names: ``lcmmerge.adapters``, ``lcmmerge.objectives``.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib.metadata import entry_points
from types import MappingProxyType


@cache
def entries(package: str, variable: str) -> MappingProxyType[str, object]:
    """Name → the value of ``variable``, for each module of ``package`` that has it; sorted by name."""
    folder = importlib.import_module(package)
    found: dict[str, object] = {}
    for module_info in pkgutil.iter_modules(folder.__path__):
        module = importlib.import_module(f"{package}.{module_info.name}")
        if hasattr(module, variable):
            found[module_info.name] = getattr(module, variable)
    for point in entry_points(group=f"lcmmerge.{package.rpartition('.')[2]}"):
        found.setdefault(point.name, point.load())
    return MappingProxyType(dict(sorted(found.items())))
