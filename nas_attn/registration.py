"""Registration with Ultralytics by import: after `import nas_attn`, a YAML may name `nas_attn.LSKA`.

Ultralytics resolves a module's name in the globals of `ultralytics.nn.tasks` and has no plug-in interface. A class set there under a key
with a dot cannot collide with a name of its own, and in a process that never imported nas_attn the KeyError says what to import. The
classes are set when that module is imported, so that `import nas_attn` alone stays free of torch and Ultralytics; DDP subprocesses, Ray
workers and checkpoints get them the same way, because whatever they import lies inside this package.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from nas_attn.records import MODULES

TASKS = "ultralytics.nn.tasks"
PREFIX = "nas_attn."
CONTROLS = {"Blur": "nas_attn.attention.control:Blur"}
"""Changes that are known to hurt, by name: no search space may hold them, but a positive control inserts them."""


def yaml_name(name: str) -> str:
    """What a YAML calls a module: `nas_attn.LSKA`, or `my_pkg.my_file.MyAttention` for a user's, which says what to import."""
    if name in CONTROLS or MODULES[name].target.startswith(PREFIX):
        return PREFIX + name
    return MODULES[name].target.replace(":", ".")


def names() -> tuple[str, ...]:
    """The names that a YAML may use, `nas_attn.CloAttention` and so on."""
    return tuple(sorted(map(yaml_name, [*MODULES, *CONTROLS])))


def register() -> None:
    """Set every attention class in `ultralytics.nn.tasks`; importing Ultralytics if need be. May be called any number of times."""
    tasks = importlib.import_module(TASKS)
    targets = {name: record.target for name, record in MODULES.items()}
    for name, target in {**targets, **CONTROLS}.items():
        setattr(tasks, yaml_name(name), attention_class(target))


def announce(name: str, cls: type) -> None:
    """Set the class of a record that came after `register`."""
    setattr(importlib.import_module(TASKS), yaml_name(name), cls)


def attention_class(target: str) -> Any:
    """The class behind a record's `module:Class`."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def register_on_import() -> None:
    """Register now where Ultralytics is imported already, and otherwise as soon as it is."""
    if TASKS in sys.modules:
        register()
    elif not any(isinstance(finder, _AfterTasks) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterTasks())


class _AfterTasks(MetaPathFinder):
    """Finds nothing itself; runs `register` once `ultralytics.nn.tasks` has been executed."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != TASKS:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            register()

        setattr(spec.loader, "exec_module", exec_module)  # noqa: B010 - mypy refuses assignment to a method
        return spec
