"""A journal file as a study's storage, for who insists on one: Optuna's, with its tail repaired before it is opened.

Optuna's journal is one JSON text a line, and its writers never look at the end of the file: after a crash in the midst of a line, the next
line is glued to the torn one, and nobody can read the file any more. Here the one driver, which holds the file's lock, cuts a torn tail off
before it opens the file, and keeps what was cut beside it. What breaks a file elsewhere than at its end is refused: what follows was told.
"""

import contextlib
import itertools
import json
import os
import time
from pathlib import Path
from typing import IO, Any

from optuna.exceptions import StorageInternalError
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from nas_attn.errors import StudyError
from nas_attn.files import write_atomic

WARNING = "a journal file is kept whole only while nas_attn alone writes it; SQLite and PostgreSQL need no repair"
ORPHAN_S = 1.0
"""A writer holds Optuna's own lock of a file for milliseconds; one that stands for so long was left by a writer that died."""
_BROKEN = (ValueError, KeyError, TypeError, AttributeError, AssertionError, IndexError)


class JournalFile(JournalFileBackend):
    """Lines in a file that must be there: what a write that failed left at its end is cut off before the next."""

    def __init__(self, file: Path) -> None:
        if not file.exists():
            raise FileNotFoundError(f"{file} does not exist")  # Optuna would make an empty one
        super().__init__(str(file))
        self._file = file

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Adds lines, durably, or raises and leaves at most a torn one, which the next call cuts off."""
        lines = "".join(f"{json.dumps(log, separators=(',', ':'))}\n" for log in logs)
        try:
            self._lock.acquire()
            try:
                with self._file.open("r+b") as opened:  # never made anew
                    _seek_end_of_lines(opened)
                    opened.truncate()
                    opened.write(lines.encode())
                    opened.flush()
                    os.fsync(opened.fileno())
            finally:
                self._lock.release()
        except (OSError, RuntimeError) as error:  # a full disk, or Optuna's lock was taken away
            raise StorageInternalError(f"{self._file} took no line: {error}") from error


def begin(file: Path) -> None:
    """Makes an empty journal unless the file is there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()


def open_journal(file: Path) -> JournalStorage:
    """The storage in a file that is whole but for a line that is just being written.

    Raises:
        StudyError: the file is broken, or not there.
    """
    try:
        return JournalStorage(JournalFile(file))
    except OSError as error:
        raise StudyError(f"A journal must be a file that can be read, but: {error}; check the URL, or `nas-attn rebuild` it.") from None
    except _BROKEN as error:
        raise StudyError(
            f"Every line of a journal must be whole, but {file} holds one that is not ({type(error).__name__}: {str(error)[:100]}); "
            "`nas-attn rebuild DIR --storage URL` puts it aside and makes it anew from the study's folder."
        ) from None


def repair(file: Path) -> str | None:
    """Before a driver opens a file that it has locked: frees it of what a writer that died left; in words what that was, if anything."""
    found = [_remove_orphan(file), _cut_torn_tail(file)]
    return "; ".join(words for words in found if words) or None


def _remove_orphan(file: Path) -> str | None:
    lock = file.with_name(f"{file.name}.lock")
    end = time.monotonic() + ORPHAN_S
    while os.path.lexists(lock):
        if time.monotonic() > end:
            with contextlib.suppress(FileNotFoundError):
                lock.unlink()
                return f"{lock.name}: the lock of a writer that died was removed"
        time.sleep(0.02)
    return None


def _cut_torn_tail(file: Path) -> str | None:
    """Cuts the file after its last line that is whole JSON."""
    content = file.read_bytes()
    end = _end_of_whole_lines(content)
    if end == len(content):
        return None
    aside = next(path for path in (file.with_name(f"{file.name}.torn-{n}") for n in itertools.count(1)) if not path.exists())
    write_atomic(aside, lambda target: target.write_bytes(content[end:]))
    _truncate(file, end)
    return f"{file.name}: {len(content) - end} bytes of a torn last line were cut off and kept as {aside.name}"


def _end_of_whole_lines(content: bytes) -> int:
    end = content.rfind(b"\n") + 1
    while end:
        start = content.rfind(b"\n", 0, end - 1) + 1
        if _is_whole(content[start:end]):
            return end
        end = start
    return 0


def _is_whole(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _seek_end_of_lines(opened: IO[bytes]) -> None:
    """To the last end of a line: what follows is the rest of a write that failed in this very process."""
    at, length = opened.seek(0, os.SEEK_END), 1
    while at:
        length = min(at, length)
        opened.seek(at - length)
        if (found := opened.read(length).rfind(b"\n")) >= 0:
            at += found + 1 - length
            break
        at, length = at - length, 1 << 16
    opened.seek(at)


def _truncate(file: Path, size: int) -> None:
    with file.open("r+b") as opened:
        opened.truncate(size)
        os.fsync(opened.fileno())
