"""The corpus of malformed inputs: its entries, what each puts into a folder of good files, and what the command line makes of it."""

import base64
import contextlib
import functools
import io
import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from refusals import Outcome, files, prepare, typed

CORPUS = Path(__file__).parent / "corpus"
KINDS = ("spaces", "models", "data", "labels", "images", "weights", "tables", "commands")
FUZZERS = ("hypothesis", "atheris")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What an entry led to, and which files it changed or left behind."""

    outcome: Outcome
    changed: tuple[str, ...]


def entries(kind: str) -> list[dict[str, Any]]:
    """The entries of a kind, written ones first, each with the command and the file of its kind where it names none."""
    written = yaml.safe_load((CORPUS / f"{kind}.yaml").read_text(encoding="utf-8"))
    found = CORPUS / "found" / f"{kind}.yaml"
    more = yaml.safe_load(found.read_text(encoding="utf-8"))["entries"] if found.is_file() else []
    shared = {key: value for key, value in written.items() if key != "entries"}
    return [{**shared, **entry} for entry in (*written["entries"], *more)]


@functools.cache
def corpus() -> dict[str, dict[str, Any]]:
    """Every entry by its kind and name."""
    return {f"{kind}: {entry['name']}": entry for kind in KINDS for entry in entries(kind)}


def tried(entry: dict[str, Any]) -> Trial:
    """The entry's command in a new folder of good files, the entry's own among them."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="nas-attn-corpus-") as name, warnings.catch_warnings():
        folder = Path(name).resolve()
        prepare(folder)
        spoil(folder, entry)
        before = files(folder)
        warnings.simplefilter("error")
        storage = os.environ.pop("NAS_ATTN_STORAGE", None)
        with contextlib.chdir(folder):
            outcome = typed([str(word) for word in entry["command"]])
        if storage is not None:
            os.environ["NAS_ATTN_STORAGE"] = storage
        after = files(folder)
        assert Path.cwd() == here
    return Trial(outcome=outcome, changed=tuple(sorted(name for name in before | after if before.get(name) != after.get(name))))


def spoil(folder: Path, entry: dict[str, Any]) -> None:
    """Write an entry's content over its file, or make it from the good one."""
    if "file" not in entry or not {"text", "base64", "replace", "truncate", "weights", "repeat"} & entry.keys():
        return
    file = folder / entry["file"]
    new = content(entry, file.read_bytes() if file.is_file() else b"")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(new)


def content(entry: dict[str, Any], old: bytes) -> bytes:
    """What an entry holds, or what it makes of the good file."""
    if "replace" in entry:
        before, after = (part.encode() for part in entry["replace"])
        assert before in old, "an entry must change the good file"
        return old.replace(before, after, 1)
    if "truncate" in entry:
        return old[: entry["truncate"]]
    if "repeat" in entry:
        text, times = entry["repeat"]
        return bytes(text.encode() * times)
    if "weights" in entry:
        return weights(entry["weights"])
    return base64.b64decode(entry["base64"]) if "base64" in entry else bytes(entry["text"].encode())


class _Runs:
    """Pickled, it creates a file where it is loaded as code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("executed", "w"))


def weights(recipe: str) -> bytes:
    """A file that `torch.save` wrote, by the name of what is wrong with it."""
    state = {"model.0.conv.weight": torch.ones(16, 3, 3, 3)}
    made: dict[str, Any] = {
        "code": _Runs(),
        "code in a checkpoint": {"model": _Runs()},
        "another model": {"model.0.weight": torch.ones(3)},
        "part of the model": state,
        "no tensors": {"epoch": 3},
        "empty mapping": {},
        "tensor": torch.ones(2),
        "list": [torch.ones(2)],
        "number": 7,
        "no model": {"ema": None, "optimizer": None},
        "tensor as model": {"model": torch.ones(1)},
        "text as model": {"model": "yolo11n.yaml"},
        "nested": {"model": state},
    }
    stream = io.BytesIO()
    torch.save(made[recipe.removesuffix(", cut")], stream)
    whole = stream.getvalue()
    return whole[: len(whole) // 2] if recipe.endswith(", cut") else whole
