"""What a study was of: the base, the data, the short training and where latency was measured; and the command to type, now with others.

Nothing here keeps a password: reports are passed on.
"""

import re
import shlex
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from nas_attn import facts
from nas_attn.outcome import Snapshot

NO_DATA = "DATA.yaml"


def masked(text: str) -> str:
    """The text without passwords in URLs."""
    return re.sub(r"(://[^/\s:@\"]*):[^/\s@\"]+@", r"\1:***@", text)


def command(snapshot: Snapshot) -> str:
    """The command kept in the settings, else the one that the folder implies; without passwords."""
    kept = snapshot.settings.get("command")
    if kept:
        return masked(kept if isinstance(kept, str) else shlex.join(map(str, kept)))
    data = snapshot.settings.get("data", NO_DATA)
    parts = ["nas-attn", "search", snapshot.folder / "space.yaml", "--data", data if isinstance(data, str) else NO_DATA]
    return masked(shlex.join(map(str, [*parts, "--trials", len(snapshot.trials), "--out", snapshot.folder])))


def again(snapshot: Snapshot, **options: int) -> str:
    """That command with `options` in place of its own: `again(snapshot, repeats=12)` goes on with the study."""
    words = shlex.split(command(snapshot))
    for name, value in options.items():
        flag = f"--{name}"
        if flag in words[:-1]:
            words[words.index(flag) + 1] = str(value)
        else:
            words += [flag, str(value)]
    return shlex.join(words)


def option(snapshot: Snapshot, name: str) -> int:
    """What the command says of a number, 0 where it says nothing."""
    text = _said(snapshot, name)
    return int(text) if text and text.isdecimal() else 0


def data(snapshot: Snapshot) -> str:
    """The data YAML as it was given, or a word in its place."""
    return _said(snapshot, "data") or NO_DATA


def _said(snapshot: Snapshot, name: str) -> str | None:
    words = shlex.split(command(snapshot))
    return words[words.index(f"--{name}") + 1] if f"--{name}" in words[:-1] else None


def lines(snapshot: Snapshot) -> tuple[str, ...]:
    """The subject in a few words each, what is known of it: `yolo11n on blood/data.yaml`, `4 epochs at 160 px`, the device of latency."""
    spec: Mapping[str, Any] = snapshot.settings.get("spec", {})
    proxy: Mapping[str, Any] = spec.get("proxy", {})
    told = []
    if base := spec.get("base"):
        told.append(f"{PurePath(base).stem} on {data(snapshot)}")
    if {"epochs", "imgsz"} <= set(proxy):
        told.append(f"trained for {proxy['epochs']} epoch{'s' * (proxy['epochs'] != 1)} at {proxy['imgsz']} px")
    if where := _device(snapshot):
        told.append(where)
    return tuple(told)


def _device(snapshot: Snapshot) -> str:
    """`latency on Xeon, 1 thread, torch: the base 13.1 ms`; empty where none was measured."""
    base = facts.base_trial(snapshot)
    if base is None or base.cost is None:
        return ""
    timed = base.cost.latency
    where = timed.environment
    parts = [str(where.get("name") or where.get("device") or "an unknown device")]
    if where.get("device") == "cpu" and "threads" in where:
        parts.append(f"{where['threads']} thread{'s' * (where['threads'] != 1)}")
    if "backend" in where:
        parts.append(str(where["backend"]))
    return f"latency on {', '.join(parts)}: the base {timed.base_ms:.1f} ms"
