"""A pause of a training: everything that its further course depends on, in one file, so that it goes on as if it had never stopped.

That is more than weights: their average and its count, the optimizer, the scaler, the position in the schedule, the loss's own state,
the random sources, which images the data set remembers for mosaic, and how far the sampler has drawn. On a CPU with the same threads
the rest of the training is bit-equal to that of one that never paused (Albumentations, where a user has installed it, keeps a random
source of its own and breaks that). The file holds tensors and plain values, is read with `weights_only`, and carries the digest of its
content: what is torn, altered or another training's is not used.
"""

import hashlib
import pickle
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nas_attn.files import write_atomic
from nas_attn.tensors import read_tensors, require_torch

FORMAT = 1
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, pickle.UnpicklingError)
"""What a torn or foreign file makes `torch.load`, or the reading of its fields, raise."""


def save(file: Path, trainer: Any, identity: str, curve: Sequence[Mapping[str, float]]) -> None:
    """Writes the state of an Ultralytics trainer at the end of an epoch; `identity` names the training, whatever it was stopped at."""
    content = {
        "format": FORMAT,
        "identity": identity,
        "epoch": int(trainer.epoch) + 1,
        "curve": [dict(epoch) for epoch in curve],
        "model": dict(trainer.model.state_dict()),
        "ema": dict(trainer.ema.ema.state_dict()),
        "updates": int(trainer.ema.updates),
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "criterion": _numbers(getattr(trainer.model, "criterion", None)),
        "buffer": [int(image) for image in trainer.train_loader.dataset.buffer],
        "random": _random_states(),
    }
    state = {**content, "digest": _digest(content)}
    write_atomic(file, lambda target: torch.save(state, target))


def first_usable(files: Sequence[Path], identity: str, below: int) -> Mapping[str, Any] | None:
    """The content of the first file that is whole and is of this training, paused before epoch `below`; None where there is none."""
    require_torch()  # an error of the user's, not an unusable file
    return next((state for file in files if (state := _load(file, identity, below)) is not None), None)


def _load(file: Path, identity: str, below: int) -> Mapping[str, Any] | None:
    try:
        state = read_tensors(file)
        content = {name: value for name, value in state.items() if name != "digest"}
        fits = (state["format"], state["identity"]) == (FORMAT, identity) and 0 < state["epoch"] < below
        return content if fits and state["digest"] == _digest(content) else None
    except UNREADABLE:
        return None


def restore(trainer: Any, state: Mapping[str, Any]) -> None:
    """Puts a trainer that is set up for its first epoch where the saved one paused; random sources excepted, see `restore_random`."""
    trainer.model.load_state_dict(state["model"])
    trainer.ema.ema.load_state_dict(state["ema"])
    trainer.ema.updates = state["updates"]
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.scaler.load_state_dict(state["scaler"])
    if state["criterion"]:
        # A loss that changes with the epoch keeps its position in numbers of its own, and is otherwise built at the first batch.
        trainer.model.criterion = trainer.model.init_criterion()
        vars(trainer.model.criterion).update(state["criterion"])
    trainer.start_epoch = state["epoch"]
    _replay_sampler(trainer, state["epoch"])
    trainer.train_loader.dataset.buffer[:] = state["buffer"]


def _replay_sampler(trainer: Any, epochs: int) -> None:
    """Draws and drops the indices of all epochs that are done: the sampler's generator ends where it was, whatever it drew ahead."""
    loader = trainer.train_loader
    closing = trainer.epochs - trainer.args.close_mosaic if trainer.args.close_mosaic else None
    for epoch in range(epochs):
        if epoch == closing:
            trainer._close_dataloader_mosaic()
            loader.reset()
            trainer.args.close_mosaic = 0  # done: the loop would close it again and draw anew
        if loader.iterator is None:
            loader.iterator = loader._get_iterator()
        for _ in range(len(loader)):
            loader.iterator._next_index()


def restore_random(state: Mapping[str, Any]) -> None:
    """Sets the random sources of Python, NumPy and torch to what they were at the pause: the last thing before the first batch."""
    saved = state["random"]
    version, internal, gauss = saved["python"]
    random.setstate((version, tuple(internal.tolist()), gauss))
    name, keys, position, has_gauss, cached = saved["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(saved["torch"])
    if "cuda" in saved and torch.cuda.is_available():
        torch.cuda.set_rng_state(saved["cuda"])


def _random_states() -> dict[str, Any]:
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    states: dict[str, Any] = {
        "python": [version, torch.tensor(internal, dtype=torch.int64), gauss],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    return {**states, "cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else states


def _numbers(criterion: object) -> dict[str, float]:
    """The numbers that a loss which follows the epochs counts with; other losses keep none."""
    values = vars(criterion) if hasattr(criterion, "update") else {}
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


def _digest(value: Any) -> str:
    digest = hashlib.sha256()
    _feed(digest, value)
    return digest.hexdigest()


def _feed(digest: "hashlib._Hash", value: Any) -> None:
    if isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        digest.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, Mapping):
        digest.update(b"{")
        for name, item in value.items():
            digest.update(f"{name!r}:".encode())
            _feed(digest, item)
    elif isinstance(value, list | tuple):
        digest.update(f"[{len(value)}".encode())
        for item in value:
            _feed(digest, item)
    else:
        digest.update(f"{value!r};".encode())
