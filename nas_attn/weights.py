"""The weights of a detection model: read from a user's checkpoint without executing it, and moved into an edited model by origin."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from ultralytics.nn import tasks
from ultralytics.utils import LOGGER

from nas_attn.document import is_file
from nas_attn.errors import InputError, TransferError, shown
from nas_attn.tensors import read_tensors, require_torch

State = Mapping[str, Tensor]

CONVERT = "python -c \"import torch, ultralytics; torch.save(ultralytics.YOLO('best.pt').model.state_dict(), 'weights.pt')\""
"""What a user runs, in a process of theirs, on a checkpoint of theirs that cannot be read without executing what it holds."""


def move_weights(model: nn.Module, state: State, moved: Sequence[int]) -> None:
    """Load a base's `state` into an edited model: `model.<row>.x` goes to `model.<moved[row]>.x`, all of it, or nothing.

    Raises:
        TransferError: names what is missing, left over, or of another shape.
    """
    target = model.state_dict()
    renamed = {_rename(key, moved): value for key, value in state.items()}
    inserted = {f"model.{row}." for row in set(range(max(moved) + 1)) - set(moved)}
    unplaced = [key for key, value in renamed.items() if key not in target or target[key].shape != value.shape]
    missing = [key for key in target if key not in renamed and not key.startswith(tuple(inserted))]
    if unplaced or missing:
        raise TransferError(
            f"Every tensor of the base must find its place, but {len(unplaced)} of {len(renamed)} did not (first: {unplaced[:3]}) "
            f"and {len(missing)} of the model got none (first: {missing[:3]}); was the base fitted from another YAML?"
        )
    model.load_state_dict({**target, **renamed})


def load_weights(model: nn.Module, file: Path) -> tuple[str, ...]:
    """Start a base from a user's checkpoint; returns the tensors that stay new, which only a head of other classes may have.

    Checkpoints are read by Ultralytics' safe loader, plain state dicts with `weights_only`; nothing in the file is executed.

    Raises:
        InputError: no such file, or not a checkpoint that can be loaded safely.
        TransferError: a tensor outside the class-dependent head does not fit.
    """
    state = read_state(file)
    target = model.state_dict()
    head = f"model.{len(layers(model)) - 1}."
    new = tuple(k for k, v in target.items() if k.startswith(head) and (k not in state or state[k].shape != v.shape))
    bad = [k for k, v in target.items() if k not in new and (k not in state or state[k].shape != v.shape)]
    extra = [k for k in state if k not in target]
    if bad or extra or (new and not _other_classes(model, state, head)):
        raise TransferError(
            f"{file} must hold weights of the base, but {len(bad) + len(new)} of its {len(target)} tensors are missing or of another shape "
            f"and {len(extra)} are unknown (first: {[*bad, *new, *extra][:3]}); give the checkpoint of the same model and scale."
        )
    broken = [k for k, v in state.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
    if broken:
        raise InputError(
            f"{file} must hold finite weights, but {len(broken)} tensors do not (first: {broken[:3]}); give an earlier checkpoint."
        )
    model.load_state_dict({**target, **{k: v for k, v in state.items() if k not in new}})
    return new


def read_state(file: Path) -> dict[str, Tensor]:
    """The tensors of an Ultralytics checkpoint or of a plain state dict, in fp32.

    Raises:
        InputError: no such file, or not loadable without executing what it holds.
    """
    if not is_file(file):
        raise InputError(f"Weights must be a file, but {file} is none; give a path to a .pt file.")
    if not file.stat().st_size:
        raise InputError(f"{file} must be an Ultralytics checkpoint or a plain state dict, but it is empty; copy it again.")
    require_torch()
    try:
        plain = read_tensors(file)
        if isinstance(plain, Mapping) and plain and all(isinstance(v, Tensor) for v in plain.values()):
            return {str(k): v.float() if v.is_floating_point() else v for k, v in plain.items()}
    except Exception as error:
        # An Ultralytics checkpoint pickles its model, which weights_only refuses; its own safe loader knows those classes.
        LOGGER.debug(f"{file} is no plain state dict: {error}")
    try:
        checkpoint, _ = tasks.torch_safe_load(file, safe_only=True)
        model = checkpoint.get("ema") or checkpoint["model"]
        return dict(model.float().state_dict())
    except Exception as error:
        reason = shown(" ".join(f"{type(error).__name__}: {error}".split()), 200)[1:-1]
        raise InputError(
            f"{file} must be an Ultralytics checkpoint or a plain state dict, but: {reason}; give the best.pt of a training, or, "
            f"where you trust the file and it holds more than that, its tensors: {CONVERT}"
        ) from error


def layers(model: nn.Module) -> nn.Sequential:
    """A detection model's rows, in the order of its YAML."""
    rows: Any = model.model
    return cast(nn.Sequential, rows)


def _rename(key: str, moved: Sequence[int]) -> str:
    prefix, row, rest = key.split(".", 2)
    return f"{prefix}.{moved[int(row)]}.{rest}"


def _other_classes(model: nn.Module, state: State, head: str) -> bool:
    return any(k.startswith(head) and k in state and state[k].shape != v.shape for k, v in model.state_dict().items())
