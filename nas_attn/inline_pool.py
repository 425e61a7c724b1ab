"""A pool that is the calling process itself: for debugging, and where Ray is not wanted."""

import time
from collections import deque

from nas_attn.admission import Judge
from nas_attn.losses import Outages
from nas_attn.work import UNFIT, Done, Pool, Task, answer, import_target, require_open


class InlinePool(Pool):
    """Runs one task a call of `wait`, in this very process: for debugging, and where Ray is not wanted.

    Deadlines are not enforced, for nothing stands beside the task to stop it. KeyboardInterrupt passes through, and the task that it
    interrupted stays first in the queue.
    """

    slots = 1

    def __init__(self, target: str) -> None:
        self._serve = import_target(target)
        self._queue: deque[Task] = deque()
        self._closed, self._outages = False, Outages()

    def submit(self, task: Task) -> None:
        """Queue a task."""
        require_open(self._closed)
        self._queue.append(task)

    def wait(self, timeout_s: float | None) -> list[Done]:  # noqa: ARG002
        """Run the oldest task to its end, however long that takes; before, rest as long as what it needs is away.

        Raises:
            NasAttnError: it was away for too long.
        """
        require_open(self._closed)
        if not self._queue:
            return []
        task = self._queue[0]
        self._outages.require((), {task.kind})
        time.sleep(self._outages.left_s("", time.monotonic()))
        begun = time.monotonic()
        result, lost, cause = answer(self._serve, task.kind, task.payload)
        self._queue.popleft()
        done = Done(task.key, result, lost, "crash" if cause == UNFIT else cause)
        return [self._outages.hear("", task.kind, done, begun, time.monotonic())]

    def everywhere(self, kind: str, payload: str) -> list[tuple[str, Done]]:
        """One task, here."""
        require_open(self._closed)
        return [("this machine", Done("here", *answer(self._serve, kind, payload)))]

    def require(self, kind: str, payload: str, judge: Judge) -> None:
        """No node joins this one."""

    def need(self, memory_mib: float) -> None:
        """One task at a time is the least there can be."""

    def close(self) -> None:
        """Drop what is queued."""
        self._closed = True
        self._queue.clear()
