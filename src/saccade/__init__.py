"""saccade: self-supervised learning on biomedical images.

Pretrain without labels, evaluate with few labels, visualize attention. The public interface is listed in
``__init__.pyi``, one line a name; each name is imported when it is first used, so that ``import saccade`` is quick.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

# OpenMP's threads spin at every barrier while the thread they wait for has no core: on a shared machine a step takes
# many times as long (docs/concepts/speed.md). This has to be set before torch is imported; a user's own value stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.2.0.dev0"


def _exports() -> dict[str, tuple[str, str]]:
    """Public name -> (module, name there), from the lines ``from MODULE import NAME as PUBLIC`` of ``__init__.pyi``."""
    lines = Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8").splitlines()
    imports = [line.split() for line in lines if line.startswith("from ")]
    return {public: (module, name) for _, module, _, name, _, public in imports}


_EXPORTS = _exports()
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        module, attribute = _EXPORTS[name]
        return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module 'saccade' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
