"""Files that are whole or not there, also after a power cut."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path


def write_atomic(file: Path, write: Callable[[Path], object]) -> None:
    """Whole or not at all, also through a power cut: a temporary file, fsync, rename, fsync of the folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    write(temporary)
    _fsync(temporary)
    temporary.replace(file)
    _fsync(file.parent)


def write_together(texts: Mapping[Path, str]) -> None:
    """Texts of files in one folder, each whole or not at all; the folder is synchronized once for all of them."""
    for file, text in texts.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.{os.getpid()}")
        temporary.write_text(text, encoding="utf-8")
        _fsync(temporary)
        temporary.replace(file)
    for folder in {file.parent for file in texts}:
        _fsync(folder)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
