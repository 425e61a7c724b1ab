"""The copies of trainings as the fake evaluator tells of them (`copies.log`), and the hold that a fault has on one.

A copy that is held does not end before it is let go, however slow the machine: so a second copy can begin while the first one lives.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class Copy:
    """One attempt at a job, in the process that began it."""

    pid: int
    digest: str
    job: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Copies:
    """Those of one study; `holds` is the folder in which a file named by a digest keeps its trainings from ending (`Fake.holds`)."""

    folder: Path
    holds: Path

    def told(self, what: str) -> list[Copy]:
        """Those that `began`, that were `held` or that `ended`, in that order."""
        file = self.folder / "copies.log"
        lines = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
        return [_copy(int(pid), name) for pid, said, name in lines if said == what]

    def under_way(self) -> list[Copy]:
        """Those that began and have not ended, in processes that are there."""
        ended = set(self.told("ended"))
        return [copy for copy in self.told("began") if copy not in ended and state(copy.pid) not in ("", "Z", "X")]

    def hold(self, copy: Copy, wait_s: float = 10.0) -> bool:
        """Keeps the copies of its architecture from ending; whether this one still trains, by its own word."""
        (self.holds / copy.digest).touch()
        if self._await(lambda: copy in self.told("held") or copy not in self.under_way(), wait_s) and copy in self.under_way():
            return True
        self.release(copy)
        return False

    def let_go(self, *copies: Copy, wait_s: float = 30.0) -> None:
        """Lets these end, and waits until they have, or their processes are gone."""
        for copy in copies:
            with (self.holds / copy.digest).open("a") as file:
                file.write(f"{copy.attempt}\n")
        self._await(lambda: not set(copies) & set(self.under_way()), wait_s)

    def release(self, copy: Copy) -> None:
        """Lets all copies of its architecture end."""
        (self.holds / copy.digest).unlink(missing_ok=True)

    def next(self, copy: Copy, wait_s: float) -> Copy | None:
        """The next attempt at the same job, once it has begun."""

        def later() -> list[Copy]:
            return [c for c in self.told("began") if (c.digest, c.job) == (copy.digest, copy.job) and c.attempt > copy.attempt]

        self._await(lambda: bool(later()), wait_s)
        return next(iter(later()), None)

    def order(self, first: Copy, second: Copy) -> str:
        """Which of two copies ended before the other, in words."""
        ended = [copy for copy in self.told("ended") if copy in (first, second)]
        if ended == [second]:
            return "the second alone ended"
        return f"the {'first' if ended[:1] == [first] else 'second'} ended first"

    def _await(self, held: Callable[[], bool], wait_s: float) -> bool:
        end = time.monotonic() + wait_s
        while not held():
            if time.monotonic() > end:
                return False
            time.sleep(LOOK_S)
        return True


def state(pid: int) -> str:
    """What the kernel says of a process (`R`, `S`, `T`: suspended, `Z`: dead); empty where there is none."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def _copy(pid: int, name: str) -> Copy:
    digest, job, attempt = name.split("/")
    return Copy(pid, digest, job, int(attempt))
