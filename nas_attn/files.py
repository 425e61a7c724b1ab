"""Files that are whole or not there, also after a power cut, and that wait for a full disk; and the names that files may have."""

import errno
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Of a file, a folder or a study that something other than this program named: no path, no option, nothing hidden."""
FULL_PAUSES_S = (0.1, 0.5, 2.0, 10.0, *(30.0,) * 20)
"""Waits between attempts to write to a full disk: ten minutes, for what a training of hours gave must not be lost for a few bytes."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_LEAST_FREE = 1 << 20


def plain_name(text: str) -> str:
    """A text as such a name: what does not fit becomes `-`."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", text).lstrip("._-")[:64] or "unnamed"


def write_atomic(file: Path, write: Callable[[Path], object], pauses: Sequence[float] | None = None) -> None:
    """Whole or not at all, also through a power cut: a temporary file, fsync, rename, fsync of the folder. Waits while the disk is full,
    `pauses` seconds (`FULL_PAUSES_S`, if not given) after each attempt.
    """
    for pause in FULL_PAUSES_S if pauses is None else pauses:
        try:
            _write_once(file, write)
            return
        except (OSError, RuntimeError) as error:  # torch tells of a full disk by a RuntimeError without a number
            if not _is_full(error, file):
                raise
            time.sleep(pause)
    _write_once(file, write)


def _write_once(file: Path, write: Callable[[Path], object]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        write(temporary)
        _fsync(temporary)
    except BaseException:
        temporary.unlink(missing_ok=True)  # half a file would keep a full disk full
        raise
    temporary.replace(file)
    _fsync(file.parent)


def _is_full(error: OSError | RuntimeError, file: Path) -> bool:
    if isinstance(error, OSError):
        return error.errno in _FULL
    holder = next(folder for folder in file.absolute().parents if folder.exists())
    found = os.statvfs(holder)
    return found.f_bavail * found.f_frsize < _LEAST_FREE


def write_together(texts: Mapping[Path, str]) -> None:
    """Texts of files in one folder, each whole or not at all; the folder is synchronized once for all of them."""
    for file, text in texts.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            temporary.write_text(text, encoding="utf-8")
            _fsync(temporary)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        temporary.replace(file)
    for folder in {file.parent for file in texts}:
        _fsync(folder)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
