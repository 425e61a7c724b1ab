"""nas_attn: which attention module goes after which layer of a YOLO detector, with which hyperparameters, at what latency.

Importing the package registers its modules with Ultralytics (see `nas_attn.registration`); it loads neither torch, Ray, Optuna nor
Ultralytics.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

from nas_attn.registration import register
from nas_attn.registration import register_on_import as _register_on_import

# Read by Ultralytics at its import, whichever module brings it: no look-ups, no telemetry, no package installed behind the user's back.
os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_AUTOINSTALL", "false")

if TYPE_CHECKING:
    from nas_attn.architecture import Architecture, Placement
    from nas_attn.attention.gate import Gated
    from nas_attn.custom import mechanism
    from nas_attn.record import load_study
    from nas_attn.space import SearchSpace
    from nas_attn.spec import SpaceSpec
    from nas_attn.study import run

__all__ = ["Architecture", "Gated", "Placement", "SearchSpace", "SpaceSpec", "load_study", "mechanism", "register", "run"]

_HOMES = {
    "Architecture": "architecture",
    "Gated": "attention.gate",
    "Placement": "architecture",
    "SearchSpace": "space",
    "SpaceSpec": "spec",
    "load_study": "record",
    "mechanism": "custom",
    "run": "study",
}

_register_on_import()


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"nas_attn.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'nas_attn' has no attribute {name!r}")
