"""Runners: one model, ready to run on one fixed input; what a latency measurement times. A backend says by which runtime it is run.

Nothing here knows how time is taken: a runner runs, and waits for what it has begun.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from nas_attn.cost import deployed
from nas_attn.errors import InputError, nearest

BACKENDS = ("torch", "onnxruntime")


class Runner(Protocol):
    """One model on one fixed input."""

    def run(self) -> object:
        """One forward pass, which a device may only have begun; its output."""

    def wait(self) -> None:
        """Until all that was begun has ended."""


class TorchRunner:
    """The fused model in evaluation mode, run by torch."""

    def __init__(self, model: nn.Module, image_BCHW: Tensor, device: str) -> None:
        self._device = torch.device(device)
        self._model = deployed(model).to(self._device)
        self._image_BCHW = image_BCHW.to(self._device)

    def run(self) -> object:
        """One forward pass, which a GPU may only have begun; what the model gives."""
        return self._model(self._image_BCHW)

    def wait(self) -> None:
        """Until the device has nothing more to do."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def open_runner(backend: str, model: nn.Module, image_BCHW: Tensor, device: str, threads: int) -> Runner:
    """A runner of `model`, which stays untouched; `threads` count where the runtime keeps its own (torch's are the process's).

    Raises:
        InputError: no such backend, one that is not installed, or one that cannot use the device.
    """
    if backend == "torch":
        return TorchRunner(model, image_BCHW, device)
    require_backend(backend, device)
    from nas_attn.onnx_runner import OnnxRunner

    return OnnxRunner(model, image_BCHW, device, threads)


def require_backend(backend: str, device: str) -> None:
    """Whether this machine can measure that way.

    Raises:
        InputError: no such backend, one that is not installed, or one that cannot use the device.
    """
    if backend not in BACKENDS:
        raise InputError(f"A latency backend is {' or '.join(BACKENDS)}, but got {backend!r}. {nearest(backend, BACKENDS)}")
    if backend == "onnxruntime":
        from nas_attn.onnx_runner import require

        require(device)


def described(backend: str, device: str) -> Mapping[str, str]:
    """What an environment must say of a backend besides torch's version: its own version, its provider and the format."""
    if backend == "torch":
        return {}  # gates and studies of the time before there were backends stay valid
    from nas_attn.onnx_runner import describe

    return {"backend": describe(device)}
