"""saccade: learn from unlabelled biomedical images, measure it with few labels, see where it looks.

The names below are the public interface; each is imported when first used, so ``import saccade`` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saccade.api import (
        attend,
        attend_hierarchy,
        attend_slide,
        attend_text,
        compare,
        doctor,
        embed,
        evaluate,
        examine,
        export,
        finetune,
        finetune_slides,
        open_source,
        plan,
        pretrain,
        replay,
        report,
        report_interactive,
        resume,
        search,
        show,
    )
    from saccade.quickstart import quickstart

__version__ = "0.1.0"
__all__ = [
    "attend",
    "attend_hierarchy",
    "attend_slide",
    "attend_text",
    "compare",
    "doctor",
    "embed",
    "evaluate",
    "examine",
    "export",
    "finetune",
    "finetune_slides",
    "open_source",
    "plan",
    "pretrain",
    "quickstart",
    "replay",
    "report",
    "report_interactive",
    "resume",
    "search",
    "show",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        module = "saccade.quickstart" if name == "quickstart" else "saccade.api"
        return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'saccade' has no attribute {name!r}")
