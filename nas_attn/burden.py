"""What a model YAML would cost to build, found without building it: on torch's `meta` device, where tensors have shapes and no memory.

A slip in a row's arguments, a repeat or a scale asks for terabytes or for hours; the machine would be gone before anything could be said.
"""

import contextlib
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from ultralytics.nn import tasks
from ultralytics.utils import LOGGER

from nas_attn.errors import GraphError

MOST_MODULES = 10_000
"""Layers within layers: the largest YAML that Ultralytics ships has some 1,500."""
MOST_PARAMETERS = 2**29
"""The largest that Ultralytics ships has 100 million."""
MOST_VALUES = 2**29
"""Of one layer's output."""
MOST_KERNEL = 255
"""Side of a kernel, in pixels: pooling over one of thousands takes minutes an image."""


def require(config: Mapping[str, Any], px: int) -> None:
    """Checks a model that Ultralytics' parser may read, run on one image of `px` pixels. What cannot be run without memory is not judged.

    Raises:
        GraphError: more modules, parameters or values in one layer's output than any detector has; the message names the row.
    """
    try:
        with _counted(), torch.device("meta"), torch.inference_mode():
            rows, _ = tasks.parse_model(deepcopy(dict(config)), ch=3, verbose=False)
            _require_parameters(rows)
            _require_kernels(rows)
            _require_outputs(rows, torch.zeros(1, 3, px, px))
    except GraphError:
        raise
    except Exception as error:  # the real build says what is wrong, in Ultralytics' words
        LOGGER.debug(f"a model was not weighed: {error}")


@contextlib.contextmanager
def _counted() -> Iterator[None]:
    """Ends the making of modules at the largest number."""
    count = 0

    def one_more(_module: nn.Module, _name: str, _inner: nn.Module | None) -> None:
        nonlocal count
        count += 1
        if count > MOST_MODULES:
            raise GraphError(f"A model must have at most {MOST_MODULES} modules, but has more; correct `repeats`, `args` or `scales`.")

    handle = register_module_module_registration_hook(one_more)
    try:
        yield
    finally:
        handle.remove()


def _require_parameters(rows: nn.Sequential) -> None:
    for number, row in enumerate(rows):
        if (count := sum(value.numel() for value in row.parameters())) > MOST_PARAMETERS:
            raise GraphError(f"A row must have at most {MOST_PARAMETERS} parameters, but row {number} has {count}; correct its `args`.")


def _require_kernels(rows: nn.Sequential) -> None:
    for number, row in enumerate(rows):
        sides = [getattr(inner, "kernel_size", 0) for inner in row.modules()]
        largest = max((side for given in sides for side in (given if isinstance(given, tuple) else (given,))), default=0)
        if largest > MOST_KERNEL:
            raise GraphError(f"A kernel must be at most {MOST_KERNEL} pixels wide, but row {number} has {largest}; correct its `args`.")


def _require_outputs(rows: nn.Sequential, image: Tensor) -> None:
    """Runs the rows one by one, as `BaseModel.predict` does."""
    outputs: list[Any] = []
    latest: Any = image
    for number, row in enumerate(rows):
        source: Any = row.f
        if isinstance(source, list):
            read: Any = [latest if one == -1 else outputs[one] for one in source]
        else:
            read = latest if source == -1 else outputs[source]
        latest = row(read)
        outputs.append(latest)
        if isinstance(latest, Tensor) and latest.numel() > MOST_VALUES:
            raise GraphError(
                f"A row must put out at most {MOST_VALUES} values an image, but row {number} puts out {latest.numel()}; correct its `args`."
            )
