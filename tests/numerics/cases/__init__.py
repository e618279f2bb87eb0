"""The cases of each family. A module of this package that defines CASES is found by itself."""

import importlib
import pkgutil

from .case import Case

CASES: dict[str, Case] = {
    name: case
    for module in sorted(found.name for found in pkgutil.iter_modules(__path__) if found.name != "case")
    for name, case in importlib.import_module(f"{__name__}.{module}").CASES.items()
}
