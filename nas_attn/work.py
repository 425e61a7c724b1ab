"""Work that a pool hands out: a task, its end, and how the function that serves it is called. Nothing here knows Ray.

Both sides speak JSON text only; files that a task reads or writes travel beside it where driver and worker share no folder (`carry`).
"""

import errno
import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from nas_attn.errors import InputError, PoolError, Unavailable, Unfit

RESULT_LIMIT = 16 * 2**20
"""Characters of the longest result. What is larger belongs in a file; the driver would have to hold all of them."""

Serve = Callable[[str, str], str]


@dataclass(frozen=True, slots=True)
class Task:
    """What to run: `payload` (JSON text) under `kind`.

    `exclusive` asks for a device on which nothing else of this pool runs meanwhile. `deadline_s` counts from the moment when a worker
    gets the task, not from its submission. `needs` are files that the task reads besides those that its payload names: they
    travel to a worker that does not see the study's folder.
    """

    key: str
    kind: str
    payload: str
    exclusive: bool = False
    deadline_s: float | None = None
    needs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.deadline_s is not None and not self.deadline_s > 0:
            raise InputError(f"`deadline_s > 0` must hold, but got {self.deadline_s}; leave it out for no deadline.")


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a task: its `result` (JSON text), or why there is none (`lost`, in words). Exactly one of the two is None.

    `cause` is the kind of loss: `crash` (the worker's process ended), `memory` (it was ended for lack of memory), `deadline`, `answer` (it
    raised, or answered what is no result), `node` (its node died or cannot be reached), `preempted` (its node had said that it would go),
    `disk` (what it had to write could not be written), `data` (it could not read the data set). After the last two the node rests.
    """

    key: str
    result: str | None
    lost: str | None
    cause: str = "node"


class Pool(Protocol):
    """Runs tasks; `slots` is how many at a time."""

    @property
    def slots(self) -> int:
        """How many tasks can run at the same time."""

    def submit(self, task: Task) -> None:
        """Queue a task. Tasks start in the order of submission."""

    def wait(self, timeout_s: float | None) -> list[Done]:
        """Run until at least one task has ended. Empty after `timeout_s` (None: never), and at once if nothing is outstanding."""

    def everywhere(self, kind: str, payload: str) -> list[tuple[str, Done]]:
        """Run one task on each node, outside the queue, again where its worker is lost; pairs of a node's name and what came of it.

        Raises:
            PoolError: something else is under way.
        """

    def require(self, kind: str, payload: str, judge: Callable[[Done], str | None]) -> None:
        """Ask each node that joins later this, too, before it gets work: `judge` says what is wrong with it, None if nothing is."""

    def need(self, memory_mib: float) -> None:
        """Run no more tasks on a GPU than its memory holds, each taking so many MiB."""

    def close(self) -> None:
        """End all work and free everything. Tasks that have not ended are dropped. A second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def import_target(target: str) -> Serve:
    """The function that `module:function` names."""
    module, _, name = target.partition(":")
    try:
        serve = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise PoolError(f"`{target}` must name an importable module:function, but: {type(error).__name__}: {error}") from error
    if not callable(serve):
        raise PoolError(f"`{target}` must name a function, but it is a {type(serve).__name__}.")
    return serve  # type: ignore[no-any-return]


DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE})
"""A folder that takes nothing for now is nobody's fault."""
UNFIT = "unfit"
"""The cause of a loss after which the worker must be replaced; whoever waits for the task is told of a crash."""


def answer(serve: Serve, kind: str, payload: str) -> tuple[str | None, str | None, str]:
    """Result and reason of loss, one of them None, and the loss's cause. SystemExit is a failed task: a library that calls `sys.exit`
    shall not end a worker.
    """
    try:
        text = serve(kind, payload)
        _check_result(text)
    except Unavailable as error:
        return None, str(error), "data"
    except OSError as error:
        return unwritten(error)
    except Unfit as error:
        return None, str(error), UNFIT
    except (Exception, SystemExit) as error:
        return None, f"{type(error).__name__}: {error}", "answer"
    return text, None, ""


def unwritten(error: OSError) -> tuple[None, str, str]:
    """As `answer`, of a task that could not read or write a file."""
    return None, f"{type(error).__name__}: {error}", "disk" if error.errno in DISK else "answer"


def _check_result(text: object) -> None:
    if not isinstance(text, str):
        raise TypeError(f"a result must be JSON text, but it is a {type(text).__name__}")
    if len(text) > RESULT_LIMIT:
        raise ValueError(f"a result must have at most {RESULT_LIMIT} characters, but it has {len(text)}; write it to a file")
    json.loads(text, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"a result must hold finite numbers only, but it holds {name}")


def require_open(closed: bool) -> None:
    if closed:
        raise PoolError("A pool that was closed runs nothing more; open a new one.")
