"""ChatGLM registered with transformers' Auto classes, in whatever order the two are imported.

`medsft.chatglm` registers itself, and is imported as soon as transformers is: seconds that a command which
uses neither does not spend.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_TRANSFORMERS = "transformers"
_OURS = "medsft.chatglm"


class _Finder(MetaPathFinder):
    """Finds transformers where it is always found, and has our package imported after it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A specification of transformers whose loader does a little more; None for all other modules."""
        spec = PathFinder.find_spec(fullname, path, target) if fullname == _TRANSFORMERS else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            importlib.import_module(_OURS)

        spec.loader.exec_module = execute_and_register
        return spec


def register_with_transformers() -> None:
    """Registers now if transformers is there already, else as soon as it is imported."""
    if _TRANSFORMERS in sys.modules:
        importlib.import_module(_OURS)
    else:
        sys.meta_path.insert(0, _Finder())
