"""The rows in which the faults of a search are kept: a fault each, and the whole search, by which it is judged."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

QUIET = frozenset({"driver suspended", "storage locked", "disk full", "clock jumps", "two drivers", "server stopped", "server slow"})
"""What a driver may get over without a word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one fault did. `seen_s`: seconds from its begin until the driver told of something (empty: it told nothing); `hit`: whom it hit,
    by what was seen of it (empty: nothing was to be seen).
    """

    fault: str
    seed: int
    number: int
    begun: int
    seconds: float
    seen_s: float | str
    hit: str
    said: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A whole search: what was promised, counted. From `lost_told` on all must be 0; `hits`: see `shown`."""

    fault: str
    seed: int
    faults: int
    hits: int | str
    trials: int
    drivers: int
    attempts: int
    seconds: float
    lost_told: int
    left_running: int
    trained_twice: int
    other_digests: int
    broken: str

    @property
    def good(self) -> bool:
        return not (self.lost_told or self.left_running or self.trained_twice or self.other_digests or self.broken)


def shown(faults: Sequence[str], hits: Sequence[str]) -> int | str:
    """How many faults were seen to hit; empty where all are of a kind that a driver may get over without a word."""
    return "" if set(faults) <= QUIET else len(hits)


def sign(said: str) -> str:
    """Whom an event of the driver's tells of: its kind, and its trial if it has one."""
    found = re.match(r"\w+(?: trial \d+)?", said)
    return found.group() if found else ""
