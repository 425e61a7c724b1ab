"""Why a task was lost, and what follows: run again, alone or later, or the end of its trial.

What a trial is blamed for is counted apart from what its node is blamed for, and both in the study's record: a trial that has killed its
workers twice has failed, also when the second time is a new driver's. A node that said that it would go (preemption) costs nobody anything.
"""

import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from nas_attn.errors import NasAttnError
from nas_attn.outcome import Failure
from nas_attn.work import Done

MAX_CRASHES = 2
"""A job that has ended its worker's process, hung, or answered nonsense this often has failed."""
MAX_LOSSES = 3
"""A job whose node was lost under it this often has failed: it was run again twice."""
MAX_ATTEMPTS = 20
"""A job that was begun this often without an end has failed: it brings the driver down."""
BLAMED = frozenset({"crash", "memory", "deadline", "answer"})
AWAY = frozenset({"data", "disk"})
"""What a training needs is away for a while: nobody is blamed, and the search waits."""
FREE = frozenset({"preempted"}) | AWAY
CRASHES, LOSSES, CROWDED = "crashes", "losses", "crowded"
COUNTERS = ("attempts", LOSSES, CRASHES, CROWDED)
"""What a record counts of every job; `crowded`: how often it lacked memory beside others."""
PAUSES_S = (1.0, 5.0, 15.0, 60.0, 300.0, 600.0)
"""How long a search waits for a data set that is away, or for room on a disk, before it gives up."""

_BROKEN = frozenset({"OutOfMemoryError"})
_UNREACHED = frozenset({"ActorUnavailableError", "NodeDiedError", "ObjectLostError", "OwnerDiedError", "LocalRayletDiedError"})


def cause_of(error: Collection[str], node: str) -> str:
    """The cause of a loss, from the names of an error's classes and the state of the worker's node (see `Cluster.states`)."""
    if node == "left":
        return "preempted"
    if node == "dead":
        return "node"
    if _BROKEN & set(error):
        return "memory"
    if node == "draining":  # the node's end is often told after its worker's, and a candidate that kills workers does so again elsewhere
        return "preempted"
    return "node" if _UNREACHED & set(error) else "crash"


@dataclass(frozen=True, slots=True)
class Sentence:
    """What a loss means for a job: the counter to raise, if any, and the count at which the job has failed."""

    counter: str | None
    most: int

    def failure(self, count: int, cause: str, reason: str) -> Failure | None:
        """The failure of a job that was lost so often, if that is too often."""
        if self.counter is None or count < self.most:
            return None
        stage = "deadline" if cause == "deadline" else "memory" if cause == "memory" else "worker"
        what = "ended its worker" if self.counter == CRASHES else "lost its node"
        return Failure(stage=stage, error=f"{what} {count} times, which is not tried again; the last: {reason}")


def sentence(cause: str) -> Sentence:
    """What follows from a cause."""
    if cause in FREE:
        return Sentence(None, MAX_ATTEMPTS)
    return Sentence(CRASHES, MAX_CRASHES) if cause in BLAMED else Sentence(LOSSES, MAX_LOSSES)


class Outages:
    """Where the data set is away, or a disk is full, every training would fail: none is begun for a while, and it is nobody's failure.

    `tell` takes a kind of event and its words. What was begun before a pause and is lost to the same cause was lost to the same outage: it
    makes no pause of its own, however many workers there are.
    """

    def __init__(self, tell: Callable[[str, str], None]) -> None:
        self._tell = tell
        self._missed, self._looked = 0, -math.inf

    def wait(self, done: Done, begun: float = math.inf) -> None:
        """Waits, if that is why a task was lost which was handed over at `begun` (monotonic, s; not given: after any pause).

        Raises:
            NasAttnError: it was away for too long.
        """
        if done.cause not in AWAY or begun < self._looked:
            return
        if self._missed == len(PAUSES_S):
            raise NasAttnError(f"{done.lost}; waited {sum(PAUSES_S) / 60:.0f} min for it: bring it back, then run the same command.")
        pause = PAUSES_S[self._missed]
        self._missed += 1
        self._tell("waits", f"{done.lost}; looks again in {pause:g} s")
        time.sleep(pause)
        self._looked = time.monotonic()

    def end(self) -> None:
        """A task has had what it needs."""
        self._missed = 0


def reason_of(error: Exception) -> str:
    """The part of Ray's message that tells why, on one line."""
    text = " ".join(str(getattr(error, "cause", None) or error).split())
    told = text.partition("Worker exit detail: ")[2] or text
    return told.partition(" Some common causes include")[0][:400]  # a list of guesses, the same every time
