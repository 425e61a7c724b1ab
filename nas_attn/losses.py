"""Why a task was lost, and what follows: run again, alone or later, or the end of its trial.

What a trial is blamed for is counted apart from what its node is blamed for, and both in the study's record: a trial that has killed its
workers twice has failed, also when the second time is a new driver's. A node that said that it would go (preemption) costs nobody anything.
"""

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace

from nas_attn.errors import NasAttnError
from nas_attn.outcome import Failure
from nas_attn.work import Done

MAX_CRASHES = 2
"""A job that has ended its worker's process, hung, or answered nonsense this often has failed."""
MAX_LOSSES = 3
"""A job whose node was lost under it this often has failed: it was run again twice."""
MAX_ATTEMPTS = 20
"""A job that was begun this often without an end, or a loss that is nobody's fault, has failed: it brings the driver down."""
BLAMED = frozenset({"crash", "memory", "deadline", "answer"})
AWAY = frozenset({"data", "disk"})
"""What a training needs is away for a while: nobody is blamed, and the node rests."""
GONE = frozenset({"crash", "memory", "node", "preempted"})
"""The worker that had the task is no more."""
FREE = frozenset({"preempted"}) | AWAY
CRASHES, LOSSES, CROWDED, SPARED = "crashes", "losses", "crowded", "spared"
COUNTERS = ("attempts", LOSSES, CRASHES, CROWDED, SPARED)
"""What a record counts of every job; `crowded`: how often it lacked memory beside others, `spared`: how often nobody was to blame."""
PAUSES_S = (1.0, 5.0, 15.0, 60.0, 300.0, 600.0)
"""How long a node rests while its data set is away, or its disk full; where all have rested so often, a search gives up."""

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
    """What a loss means for a job: the counter to raise, and the count at which the job has failed."""

    counter: str
    most: float

    def failure(self, count: int, cause: str, reason: str) -> Failure | None:
        """The failure of a job that was lost so often, if that is too often."""
        if count < self.most:
            return None
        stage = "deadline" if cause == "deadline" else "memory" if cause == "memory" else "worker"
        crashed = "answered nonsense or ended its worker" if cause == "answer" else "ended its worker"
        what = crashed if self.counter == CRASHES else "lost its node"
        return Failure(stage=stage, error=f"{what} {count} times, which is not tried again; the last: {reason}")


def sentence(cause: str) -> Sentence:
    """What follows from a cause."""
    if cause in FREE:
        return Sentence(SPARED, math.inf)
    return Sentence(CRASHES, MAX_CRASHES) if cause in BLAMED else Sentence(LOSSES, MAX_LOSSES)


def heard(done: Done, read: Callable[[str], object]) -> Done:
    """The end of a task. An answer of which `read` makes no sense is a loss, which counts against the task, and it is run again."""
    if done.result is not None:
        try:
            read(done.result)
        except NasAttnError as error:
            return replace(done, result=None, lost=str(error), cause="answer")
    return done


class Outages:
    """Nodes on which the data set is away, or a disk is full: whatever trains there would fail. Each rests, and is tried again.

    The others work on, and it is nobody's failure. What a node was given before a rest and loses to the same cause was lost to the same
    outage: it makes no rest of its own, however many workers there are. A task that ends well ends the outage for its kind: a measurement
    reads no image. The node `""` stands for the driver's own machine, whose disk all need. Times are of the monotonic clock.
    """

    def __init__(self) -> None:
        self._missed: dict[tuple[str, str], int] = {}
        self._until: dict[str, float] = {}
        self._last = ""

    def hear(self, node: str, kind: str, done: Done, begun: float, now: float) -> Done:
        """The end of a task of that kind, which a node was given at `begun`; where a rest follows, its words say for how long."""
        if done.result is not None:
            self._missed.pop((node, kind), None)
        if done.cause not in AWAY or begun < self._until.get(node, -math.inf):
            return done
        missed = self._missed.get((node, kind), 0)
        pause = PAUSES_S[min(missed, len(PAUSES_S) - 1)]
        self._missed[node, kind], self._until[node], self._last = missed + 1, now + pause, str(done.lost)
        return replace(done, lost=f"{done.lost}; looks again in {pause:g} s")

    def left_s(self, node: str, now: float) -> float:
        """For how long a node rests from now on; 0 where it does not."""
        return max(0.0, *(self._until.get(name, -math.inf) - now for name in (node, "")))

    def require(self, nodes: Iterable[str], kinds: Iterable[str]) -> None:
        """Whether tasks of these kinds may ever run on one of these nodes, while none is under way anywhere.

        Raises:
            NasAttnError: what one needs was away from all of them for too long.
        """
        names = [*nodes]
        for kind in kinds:
            away = [self._missed.get((name, kind), 0) > len(PAUSES_S) for name in ("", *names)]
            if away[0] or (names and all(away[1:])):
                minutes = sum(PAUSES_S) / 60
                raise NasAttnError(f"{self._last}; waited {minutes:.0f} min for it: bring it back, then run the same command.")


def reason_of(error: Exception) -> str:
    """The part of Ray's message that tells why, on one line."""
    text = " ".join(str(getattr(error, "cause", None) or error).split())
    told = text.partition("Worker exit detail: ")[2] or text
    return told.partition(" Some common causes include")[0][:400]  # a list of guesses, the same every time
