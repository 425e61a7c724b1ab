"""Files that travel with a task where a worker does not see the study's folder: what it reads goes there, what it wrote comes back.

A worker that finds the driver's mark in the folder works in it, and nothing travels. Any other has a private folder of its own: every path
below the study's folder has the same place below that one, and other files that a task needs (weights to start from) have one there too.
"""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from nas_attn.errors import PoolError
from nas_attn.files import NAME, write_atomic
from nas_attn.outcome import CHECKPOINT

T = TypeVar("T")

MARK = ".driver"
OUTSIDE = "outside"
KEPT = ("base", "lists", OUTSIDE)
"""What a worker's own folder keeps from task to task; trials are gone once they have travelled."""
DRIVERS = ("ledger",)
"""Folders of a study in which no worker has any business."""


def leave_mark(folder: Path) -> str:
    """Writes, into the study's folder, what a worker must find there to know that it sees the same folder; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    mark = secrets.token_hex(16)
    write_atomic(folder / MARK, lambda file: file.write_text(mark))
    return mark


def sees(folder: str, mark: str) -> bool:
    """Whether this process sees the folder in which the driver left the mark, and may write there."""
    file = Path(folder, MARK)
    try:
        return file.read_text() == mark and os.access(folder, os.W_OK)
    except OSError:
        return False


def place(path: str, folder: str) -> str:
    """Where a driver's file stands in a worker's own folder: `path` is absolute, the place is relative."""
    inside = PurePosixPath(path)
    if inside.is_relative_to(folder):
        return str(inside.relative_to(folder))
    return f"{OUTSIDE}/{hashlib.sha256(path.encode()).hexdigest()[:12]}/{inside.name}"


def needed(payload: str, folder: Path, further: Iterable[str] = ()) -> tuple[str, ...]:
    """The driver's files that a task may read: the base and the image lists of the study, what of the study its payload names (a folder
    with all that it holds), and `further` ones. Images do not travel.
    """
    texts = [text for text in _strings(json.loads(payload)) if text.startswith(f"{folder}/")]
    found = [*map(Path, further), *(file for part in KEPT for file in (folder / part).glob("*"))]
    for path in map(Path, texts):
        found += path.rglob("*") if path.is_dir() else [path]
    return tuple(dict.fromkeys(str(path) for path in found if path.is_file()))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _strings(entry)


def deliver(folder: Path, files: Mapping[str, bytes], pauses: Sequence[float] | None = None) -> None:
    """Writes what a worker brought back into the study's folder, each file whole or not at all; JSON last, for it says that all is there.
    `pauses` as for `write_atomic`.

    Raises:
        PoolError: a name that would leave the folder. Workers are trusted with code, but not with a slip of a path.
        OSError: the folder takes no more.
    """
    for name in files:
        parts = str(name).split("/")
        plain = len(parts) > 1 and all(NAME.fullmatch(part) for part in parts) and parts[0] not in DRIVERS
        if not plain or not _inside(folder, folder / name):
            raise PoolError(f"A worker may bring files into the study's own folders only, but brought {name!r}.")
    for name in sorted(files, key=lambda name: (name.endswith(".json"), name)):
        _write(folder / name, files[name], pauses)


def _write(file: Path, content: bytes, pauses: Sequence[float] | None = None) -> None:
    write_atomic(file, lambda temporary: temporary.write_bytes(content), pauses)


def _inside(folder: Path, file: Path) -> bool:
    return file.resolve().is_relative_to(folder.resolve())


def salvage(root: str) -> dict[str, bytes]:
    """The checkpoints in a worker's own folder, by their places; each is whole, for it was written under another name."""
    files = [file for part in ("trials", "base") for file in Path(root, part).glob(f"**/{CHECKPOINT}")]
    found = {}
    for file in files:
        with contextlib.suppress(FileNotFoundError):  # its training has ended meanwhile
            found[str(file.relative_to(root))] = file.read_bytes()
    return found


class Annex:
    """A worker's own folder, in place of the study's `folder` that it does not see."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.root = Path(tempfile.mkdtemp(prefix=f"nas-attn-{os.getpid()}-"))
        self._known: dict[str, str] = {}

    def work(self, answer: Callable[[str], T], payload: str, paths: Mapping[str, bytes]) -> tuple[T, dict[str, bytes]]:
        """What `answer` gives to the payload, its paths being ours, and the files that it wrote. `paths` are the driver's, with content."""
        for path, content in paths.items():
            self._take(place(path, self.folder), content)
        before = self._files()
        given = answer(json.dumps(self._ours(json.loads(payload), frozenset(paths))))
        written = {name: (self.root / name).read_bytes() for name, state in self._files().items() if before.get(name) != state}
        self._clear()
        return given, written

    def _take(self, name: str, content: bytes) -> None:
        """Writes a file unless it is there already: one that did not change keeps its time, by which it is cached."""
        digest = hashlib.sha256(content).hexdigest()
        if self._known.get(name) != digest:
            _write(self.root / name, content)
            self._known[name] = digest

    def _ours(self, value: Any, needed: frozenset[str]) -> Any:
        """A JSON value with every path of the driver's replaced by ours."""
        if isinstance(value, dict):
            return {key: self._ours(entry, needed) for key, entry in value.items()}
        if isinstance(value, list):
            return [self._ours(entry, needed) for entry in value]
        if isinstance(value, str) and (value in needed or PurePosixPath(value).is_relative_to(self.folder)):
            return str(self.root / place(value, self.folder))
        return value

    def _files(self) -> dict[str, tuple[int, int]]:
        states = {file: file.stat() for file in sorted(self.root.rglob("*")) if file.is_file()}
        return {str(file.relative_to(self.root)): (state.st_mtime_ns, state.st_size) for file, state in states.items()}

    def _clear(self) -> None:
        for entry in self.root.iterdir():
            if entry.is_dir() and entry.name not in KEPT:
                shutil.rmtree(entry)
        self._known = {name: digest for name, digest in self._known.items() if (self.root / name).is_file()}
