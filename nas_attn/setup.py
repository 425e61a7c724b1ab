"""What a worker is told once: the study's setup, and the ground rules of devices, threads and files that driver and workers share."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch

from nas_attn import custom
from nas_attn.errors import InputError
from nas_attn.graph import Graph

THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Everything that a worker must know of a study besides the job: the base, the data lists, how to fit and how to time.

    `weights` may move, for what they are is told by `weights_sha256`.

    `imports` are the user's own modules, found in `import_folder` where they are not installed (see `nas_attn.custom`).
    `fit` and `latency` are the settings of the space; `device` is `cpu` or `cuda:0`; paths are absolute.
    """

    folder: str
    base: str
    graph: Mapping[str, Any]
    scale: str
    weights: str | None
    weights_sha256: str | None
    names: tuple[str, ...]
    train_list: str
    val_list: str
    score_on: str
    data: str
    fit: Mapping[str, Any]
    latency: Mapping[str, Any]
    device: str
    seed: int
    imports: tuple[str, ...] = ()
    import_folder: str = ""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Setup":
        """The inverse of `dataclasses.asdict`, also after a trip through JSON.

        Raises:
            InputError: `imports` that are no dotted names; an export writes them into a script.
        """
        for name in data.get("imports", ()):
            custom.require_name(name)
        return cls(**{**data, "names": tuple(data["names"]), "imports": tuple(data.get("imports", ()))})

    def yaml_graph(self) -> Graph:
        """The base's graph."""
        return Graph.from_yaml(self.graph)


def require_own(setup: Setup) -> None:
    """Refuse a study whose modules the user has not named: a study's folder, which may be a stranger's, decides on no import.

    Raises:
        InputError: which they are.
    """
    if missing := sorted(set(setup.imports) - set(custom.sources())):
        raise InputError(f"The study's modules come from {missing}; where you trust them give --import {' --import '.join(missing)}.")


def code_version() -> str:
    """The versions that a score depends on, the user's own modules by fingerprint."""
    own = [f"{name} {fingerprint}" for name, fingerprint in custom.sources().items()]
    return ", ".join([*(f"{name} {version(name)}" for name in ("nas-attn", "ultralytics", "torch")), *own])


def threads() -> int:
    """How many threads this process computes with: what the pool gave it, or every core."""
    return int(os.environ.get(THREADS) or available_cores())


def available_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def resolved_device(name: str, elsewhere: bool = False) -> str:
    """`cpu` or `cuda:0` for `auto`, `cpu`, `cuda`, `cuda:0` or `0`. A pool gives each worker its own GPU, which is `cuda:0` there.
    With `elsewhere` only other machines compute, so that this one needs no GPU.

    Raises:
        InputError: another name, or a GPU where there is none.
    """
    wanted = {"auto": "cuda:0" if torch.cuda.is_available() else "cpu", "cpu": "cpu", "cuda": "cuda:0", "cuda:0": "cuda:0", "0": "cuda:0"}
    if name not in wanted:
        raise InputError(f"`--device` must be auto, cpu or cuda, but got {name!r}; choose GPUs with CUDA_VISIBLE_DEVICES.")
    if wanted[name] != "cpu" and not elsewhere and not torch.cuda.is_available():
        raise InputError(f"`--device {name}` needs a CUDA device, but torch sees none; give --device cpu.")
    return wanted[name]
