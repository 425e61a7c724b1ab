"""The lock of a study's folder, which admits one driver: `driver.lock`, with who holds it and a sign of life.

The kernel's lock on the file decides on one machine, and on file systems that share locks. Some network file systems do not; there the
file's time is the sign of life, which the driver renews every few seconds from a thread of its own. A thread and not the loop: the loop
waits for hours on a training, and a driver whose loop hangs still has workers that may answer, so that nobody may take its place. What
must look dead is a process that has ended, was suspended, or has lost the folder; one that comes back finds its name gone and stops.

Where the folder lies on a disk of this machine nobody elsewhere can hold the lock, so that a holder of another boot is gone: after a crash
and a reboot nobody waits. Neither host name nor machine id would show that as surely, for clones and containers share them.
"""

import fcntl
import json
import os
import re
import socket
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from nas_attn.errors import NasAttnError, StudyError

NAME = "driver.lock"
BEAT_S = 10.0
"""A driver gives a sign of life this often, and looks this often whether its place is still its own."""
STALE_S = 300.0
"""A driver on another machine that gave no sign of life for so long has lost the study."""
ORPHANS_S = 10.0
"""How long the lock of a driver that died may be held on by children that it left."""
LOCAL = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "jfs", "reiserfs", "bcachefs", "tmpfs", "ramfs", "overlay"})
"""File systems that one machine mounts at a time, so that its kernel knows of every lock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A driver: its host, that machine's present boot, its process and when that process was born (pids come back)."""

    host: str
    boot: str
    pid: int
    birth: str
    started: float

    @classmethod
    def here(cls) -> "Holder":
        """This process."""
        pid = os.getpid()
        return cls(host=socket.gethostname(), boot=_boot(), pid=pid, birth=_birth(pid), started=time.time())

    @classmethod
    def read(cls, text: str) -> "Holder | None":
        """The holder that a lock's text names; None for none, or for a text of another version."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None

    @property
    def near(self) -> bool:
        """Whether it is, or was, on this machine since it was booted: here the kernel's lock tells the truth."""
        return self.boot == _boot()

    def gone(self) -> bool:
        """Whether its process has certainly ended. One in another container of this machine cannot be seen."""
        return self.near and self.host == socket.gethostname() and _birth(self.pid) != self.birth


class FolderLock:
    """The lock of one folder, held from `take` to `close`. `warning` says whose place was taken, if anybody's."""

    def __init__(self, place: Path, path: Path, file: IO[str], holder: Holder, warning: str | None) -> None:
        self.warning = warning
        self._place, self._path, self._file, self._holder = place, path, file, holder
        self._checked = _now()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._live, name="nas-attn sign of life", daemon=True)
        self._thread.start()

    @classmethod
    def take(cls, place: Path) -> "FolderLock":
        """Takes the lock of a folder, or of a file (beside which its lock lies).

        Raises:
            StudyError: another driver holds it, here or elsewhere.
        """
        path = place / NAME if place.is_dir() else place.with_name(f"{place.name}.{NAME}")
        file = path.open("a+")
        try:
            _flock(place, path, file)
            warning = _stale(place, path, file)
            holder = Holder.here()
            file.truncate(0)
            file.write(json.dumps(asdict(holder)))
            file.flush()
            return cls(place, path, file, holder, warning)
        except BaseException:
            file.close()
            raise

    def require(self) -> None:
        """Before a write: a driver that was suspended for long may have lost its place meanwhile.

        Raises:
            NasAttnError: another driver drives the study.
        """
        now = _now()
        if now - self._checked < BEAT_S:
            return
        self._checked = now
        holder = Holder.read(_text(self._path))
        if holder != self._holder:
            who = f"process {holder.pid} on host {holder.host}" if holder else "nobody that can be read"
            raise NasAttnError(f"One driver at a time may run a study, but {who} has taken {self._place} over; leave it to that one.")

    def close(self) -> None:
        """Gives the lock back."""
        self._ended.set()
        self._thread.join(timeout=1.0)
        if not self._file.closed and Holder.read(_text(self._path)) == self._holder:
            self._file.truncate(0)  # so that a driver on another machine need not wait for the sign of life to age
        self._file.close()

    def _live(self) -> None:
        while not self._ended.wait(BEAT_S):
            try:
                if Holder.read(_text(self._path)) == self._holder:
                    os.utime(self._path)
            except OSError:
                continue  # a network folder that is away for a moment; if it stays away, the sign of life grows old, as it should


def driven(place: Path) -> bool:
    """Whether a driver drives the study of a folder, as far as can be told without asking for its lock, which might turn one away."""
    holder = Holder.read(_text(place / NAME))
    return holder is not None and not holder.gone() and _age(place / NAME) < STALE_S


def _flock(place: Path, path: Path, file: IO[str]) -> None:
    end = time.monotonic() + ORPHANS_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError:
            holder = Holder.read(_text(path))
            if (holder is not None and not holder.gone()) or time.monotonic() > end:
                raise _refusal(place, holder, _age(path)) from None
            time.sleep(0.1)  # the driver is dead, and a child of it holds the lock until it notices


def _stale(place: Path, path: Path, file: IO[str]) -> str | None:
    """Of a lock that the kernel gave: a warning if a driver elsewhere left it long ago; refused if that one may still live."""
    file.seek(0)
    holder = Holder.read(file.read())
    if holder is None or holder.near or file_system(path) in LOCAL:
        return None
    age = _age(path)
    if age < STALE_S:
        raise _refusal(place, holder, age, f" (its lock does not reach this host; after {STALE_S:g} s of silence its place is free)")
    return f"took over from process {holder.pid} on host {holder.host}, whose last sign of life is {_words(age)} old"


def _refusal(place: Path, holder: Holder | None, age: float, reason: str = "") -> StudyError:
    who = f"process {holder.pid} on host {holder.host}" if holder else "a process that left no name"
    return StudyError(
        f"One driver at a time may run a study, but {who} drives {place}, last sign of life {_words(age)} ago; "
        f"wait for it or stop it{reason}."
    )


def file_system(path: Path) -> str:
    """The type of the file system that a path lies on, as the kernel names it; empty where it does not say."""
    mounts: dict[str, str] = {}
    for line in _read("/proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        # A space stands there as its octal code; of two mounts at one place the later one is on top.
        place = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), before.split()[4])
        mounts[place] = after.split()[0]
    whole = path.resolve()
    return next((mounts[str(folder)] for folder in (whole, *whole.parents) if str(folder) in mounts), "")


def _now() -> float:
    """Seconds that pass also while the machine is suspended, unlike those of `time.monotonic` on Linux."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _age(path: Path) -> float:
    """Seconds since the last sign of life, by the clock of the file system: hosts' own clocks may differ by minutes."""
    probe = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    probe.touch()
    try:
        return max(0.0, probe.stat().st_mtime - path.stat().st_mtime)
    finally:
        probe.unlink()


def _words(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _boot() -> str:
    return _read("/proc/sys/kernel/random/boot_id") or socket.gethostname()


def _birth(pid: int) -> str:
    """When a process was born, in ticks since boot; empty if there is none of that number."""
    fields: list[Any] = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return str(fields[19]) if len(fields) > 19 and fields[0] not in "ZX" else ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
