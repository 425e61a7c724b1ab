"""Files that are whole or not there, also after a power cut; and the names that files may have."""

import os
import re
from collections.abc import Callable
from pathlib import Path

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Of a file, a folder or a study that something other than this program named: no path, no option, nothing hidden."""


def plain_name(text: str) -> str:
    """A text as such a name: what does not fit becomes `-`."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", text).lstrip("._-")[:64] or "unnamed"


def write_atomic(file: Path, write: Callable[[Path], object]) -> None:
    """Whole or not at all, also through a power cut: a temporary file, fsync, rename, fsync of the folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    write(temporary)
    _fsync(temporary)
    temporary.replace(file)
    _fsync(file.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
