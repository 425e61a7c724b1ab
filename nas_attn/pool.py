"""Where jobs run: warm workers on Ray, or the calling process itself; both speak JSON text only.

A pool knows nothing about trials. It takes tasks (a kind and a JSON payload), hands each to the function that `target` names, and
answers with the JSON that came back or with the reason why none did. It retries nothing: attempts are numbered and recorded by
whoever submits, so that a late or lost copy of a job can't change anything.

Exclusivity is decided here and not by Ray's resources: a task that asks Ray for a whole device can never start beside warm workers.
"""

import importlib
import json
import math
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from nas_attn.cluster import Cluster, check_interrupt, no_interrupt
from nas_attn.errors import InputError, PoolError, nearest
from nas_attn.schedule import Plan, Seat, assign, available_cpus, check_options, plan_cluster

RESULT_LIMIT = 16 * 2**20
"""Characters of the longest result. What is larger belongs in a file; the driver would have to hold all of them."""

START_TIMEOUT_S = 180.0
_START_FAILURES = 3
POLL_S = 1.0
"""How often a waiting driver looks whether it was told to end."""
_QUIET = {"YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "false", "RAY_USAGE_STATS_ENABLED": "0"}

Serve = Callable[[str, str], str]


@dataclass(frozen=True, slots=True)
class Task:
    """What to run: `payload` (JSON text) under `kind`.

    `exclusive` asks for a device on which nothing else of this pool runs meanwhile. `deadline_s` counts from the moment when a worker
    gets the task, not from its submission.
    """

    key: str
    kind: str
    payload: str
    exclusive: bool = False
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        if self.deadline_s is not None and not self.deadline_s > 0:
            raise InputError(f"`deadline_s > 0` must hold, but got {self.deadline_s}; leave it out for no deadline.")


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a task: its `result` (JSON text), or why there is none (`lost`). Exactly one of the two is None."""

    key: str
    result: str | None
    lost: str | None


class Pool(Protocol):
    """Runs tasks; `slots` is how many at a time."""

    @property
    def slots(self) -> int:
        """How many tasks can run at the same time."""

    def submit(self, task: Task) -> None:
        """Queue a task. Tasks start in the order of submission."""

    def wait(self, timeout_s: float | None) -> list[Done]:
        """Run until at least one task has ended. Empty after `timeout_s` (None: never), and at once if nothing is outstanding."""

    def close(self) -> None:
        """End all work and free everything. Tasks that have not ended are dropped. A second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_pool(
    kind: str,
    target: str,
    *,
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    address: str | None = None,
    threads: int | None = None,
) -> Pool:
    """The pool that `kind` names (`ray` or `inline`), serving `target` (`module:function`, from kind and JSON payload to JSON).

    Raises:
        InputError: an unknown kind or an impossible number.
        PoolError: workers that could not be started, or a target that cannot be imported.
    """
    if kind == "inline":
        return InlinePool(target)
    if kind == "ray":
        return RayPool(target, workers=workers, gpus_per_worker=gpus_per_worker, address=address, threads=threads)
    raise InputError(f"A pool is `ray` or `inline`, but got {kind!r}. {nearest(kind, ('ray', 'inline'))}")


def _import_target(target: str) -> Serve:
    """The function that `module:function` names."""
    module, _, name = target.partition(":")
    try:
        serve = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise PoolError(f"`{target}` must name an importable module:function, but: {type(error).__name__}: {error}") from error
    if not callable(serve):
        raise PoolError(f"`{target}` must name a function, but it is a {type(serve).__name__}.")
    return serve  # type: ignore[no-any-return]


def _answer(serve: Serve, kind: str, payload: str) -> tuple[str | None, str | None]:
    """Result and reason of loss, one of them None. SystemExit is a failed task: a library that calls `sys.exit` shall not end a worker."""
    try:
        text = serve(kind, payload)
        _check_result(text)
    except (Exception, SystemExit) as error:
        return None, f"{type(error).__name__}: {error}"
    return text, None


def _check_result(text: object) -> None:
    if not isinstance(text, str):
        raise TypeError(f"a result must be JSON text, but it is a {type(text).__name__}")
    if len(text) > RESULT_LIMIT:
        raise ValueError(f"a result must have at most {RESULT_LIMIT} characters, but it has {len(text)}; write it to a file")
    json.loads(text, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"a result must hold finite numbers only, but it holds {name}")


class InlinePool(Pool):
    """Runs one task a call of `wait`, in this very process: for debugging, and where Ray is not wanted.

    Deadlines are not enforced, for nothing stands beside the task to stop it. KeyboardInterrupt passes through, and the task that it
    interrupted stays first in the queue.
    """

    slots = 1

    def __init__(self, target: str) -> None:
        self._serve = _import_target(target)
        self._queue: deque[Task] = deque()
        self._closed = False

    def submit(self, task: Task) -> None:
        """Queue a task."""
        _require_open(self._closed)
        self._queue.append(task)

    def wait(self, timeout_s: float | None) -> list[Done]:  # noqa: ARG002
        """Run the oldest task to its end, however long that takes."""
        _require_open(self._closed)
        if not self._queue:
            return []
        task = self._queue[0]
        result, lost = _answer(self._serve, task.kind, task.payload)
        self._queue.popleft()
        return [Done(task.key, result, lost)]

    def close(self) -> None:
        """Drop what is queued."""
        self._closed = True
        self._queue.clear()


def _require_open(closed: bool) -> None:
    if closed:
        raise PoolError("A pool that was closed runs nothing more; open a new one.")


class _Worker:
    """The body of a Ray actor. It imports the target once and keeps the process's state from task to task."""

    def __init__(self, target: str, environment: dict[str, str]) -> None:
        os.environ.update(environment)  # before the target imports torch, which reads the number of threads once
        self._target = target

    def start(self) -> str:
        """JSON: the process, and the names of the devices that Ray gave it."""
        import ray

        node = ray.get_runtime_context().get_node_id()
        self._serve = _import_target(self._target)
        return json.dumps({"pid": os.getpid(), "devices": [f"{node}/{gpu}" for gpu in ray.get_gpu_ids() or ["cpu"]]})

    def run(self, kind: str, payload: str) -> tuple[str | None, str | None]:
        """One task."""
        return _answer(self._serve, kind, payload)


@dataclass(slots=True)
class _Slot:
    """A worker as the driver sees it: `ref` is what Ray owes us, the answer to `task` or, with no task, to `start`."""

    plan: Plan
    node: str
    actor: Any = None
    ref: Any = None
    task: Task | None = None
    since: float = 0.0
    devices: frozenset[str] = frozenset()
    failures: int = 0

    def seat(self) -> Seat:
        """This worker at the gate. One that fails to start again and again no longer keeps a device from exclusive work."""
        if self.ref is None:
            return Seat(self.devices, "idle")
        if self.task is not None:
            return Seat(self.devices, "exclusive" if self.task.exclusive else "busy")
        return Seat(self.devices, "absent" if self.failures else "starting")

    def limit_s(self) -> float:
        """When what is owed is overdue, on the monotonic clock."""
        seconds = START_TIMEOUT_S if self.task is None else self.task.deadline_s
        return math.inf if seconds is None or self.ref is None else self.since + seconds


class RayPool(Pool):
    """Warm workers on a Ray cluster: a local one of its own, or the running one at `address`.

    A worker that dies costs its task only: the task is lost, a new worker takes its place. Deadlines are kept on the driver's monotonic
    clock by killing the worker. A local cluster listens on all interfaces (Ray cannot be told otherwise), so a random token, in a
    0600 file within a private folder, is what keeps others out; for `address` the environment must hold the cluster's token.

    Raises:
        InputError: an impossible number of workers, threads or GPUs.
        PoolError: no token, no cluster, no room for the workers, or a target that cannot be imported.
    """

    def __init__(
        self,
        target: str,
        workers: int | None = None,
        gpus_per_worker: float | None = None,
        address: str | None = None,
        threads: int | None = None,
    ) -> None:
        check_options(workers, gpus_per_worker, threads)
        self._target = target
        self._environment = _QUIET | ({"CUDA_VISIBLE_DEVICES": ""} if gpus_per_worker == 0 else {})
        self._queue: deque[Task] = deque()
        self._slots: list[_Slot] = []
        self._cluster = Cluster()
        self._joined, self._warm, self._closed = bool(address), False, False
        try:
            nodes = self._cluster.join(address) if address else self._cluster.start(available_cpus())
            self._slots = [_Slot(plan, node) for plan, node in plan_cluster(nodes, workers, gpus_per_worker, threads)]
            self._start_all()
        except BaseException:
            self.close()
            raise

    @property
    def slots(self) -> int:
        """How many workers there are."""
        return len(self._slots)

    @property
    def address(self) -> str:
        """`host:port` of the cluster, for others who hold its token."""
        return self._cluster.address

    def submit(self, task: Task) -> None:
        """Queue a task, and start it if its turn has come. What it waits for is seen, and its deadline kept, within `wait`."""
        _require_open(self._closed)
        self._queue.append(task)
        self._dispatch()

    def wait(self, timeout_s: float | None) -> list[Done]:
        """Start what may start, and wait for the first end.

        Raises:
            PoolError: no worker can be started any more.
        """
        _require_open(self._closed)
        end = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._dispatch()
            if not self._queue and all(slot.task is None for slot in self._slots):
                return []
            check_interrupt()
            done = self._collect(min(end, time.monotonic() + POLL_S))
            if done or time.monotonic() >= end:
                return done

    def close(self) -> None:
        """Kill the workers, and what of the cluster this pool started; give back the environment. Ctrl-C cannot cut this short."""
        if self._closed:
            return
        self._closed = True
        with no_interrupt():
            try:
                for slot in self._slots:
                    _kill(slot)
            finally:
                self._cluster.close()
                self._queue.clear()

    def _start_all(self) -> None:
        for slot in self._slots:
            self._start(slot)
        while any(slot.ref is not None for slot in self._slots):
            check_interrupt()
            self._collect(time.monotonic() + POLL_S)
        self._warm = True

    def _start(self, slot: _Slot) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        plan = slot.plan
        actor = ray.remote(
            num_cpus=min(plan.cpus_per_worker, plan.threads) if self._joined else plan.cpus_per_worker,  # others may share that cluster
            num_gpus=plan.gpus_per_worker,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(slot.node, soft=True),
        )(_Worker)
        threads = str(plan.threads)
        slot.actor = actor.remote(self._target, self._environment | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads})
        slot.task, slot.since, slot.ref = None, time.monotonic(), slot.actor.start.remote()

    def _dispatch(self) -> None:
        tasks = list(self._queue)
        pairs = assign([task.exclusive for task in tasks], [slot.seat() for slot in self._slots])
        for place, seat in pairs:
            slot, task = self._slots[seat], tasks[place]
            slot.task, slot.since = task, time.monotonic()
            slot.ref = slot.actor.run.remote(task.kind, task.payload)
        started = {place for place, _ in pairs}
        self._queue = deque(task for place, task in enumerate(tasks) if place not in started)

    def _collect(self, end: float) -> list[Done]:
        """What has ended, after waiting for the first end, the next deadline or `end`."""
        import ray

        owed = {slot.ref: slot for slot in self._slots if slot.ref is not None}
        left = min([end, *(slot.limit_s() for slot in owed.values())]) - time.monotonic()
        ray.wait(list(owed), num_returns=1, timeout=None if left == math.inf else max(0.0, left))
        ready, _ = ray.wait(list(owed), num_returns=len(owed), timeout=0)
        done = [self._settle(owed.pop(ref)) for ref in ready]
        now = time.monotonic()
        done += [self._replace(slot, _overdue(slot)) for slot in owed.values() if now >= slot.limit_s()]
        return [item for item in done if item is not None]

    def _settle(self, slot: _Slot) -> Done | None:
        """Take what Ray owed for `slot`: an answer frees the worker, an error of Ray's means that it is gone."""
        import ray

        try:
            answer = ray.get(slot.ref)
        except ray.exceptions.RayError as error:
            return self._replace(slot, _reason(error) if slot.task is None else f"worker died: {_reason(error)}")
        task, slot.task, slot.ref, slot.failures = slot.task, None, None, 0
        if task is None:
            slot.devices = frozenset(json.loads(answer)["devices"])
            return None
        return Done(task.key, *answer)

    def _replace(self, slot: _Slot, reason: str) -> Done | None:
        _kill(slot)
        slot.failures += slot.task is None
        if (slot.failures and not self._warm) or all(s.failures >= _START_FAILURES for s in self._slots):
            raise PoolError(f"A worker could not be started: {reason}")
        done = None if slot.task is None else Done(slot.task.key, None, reason)
        self._start(slot)
        return done


def _overdue(slot: _Slot) -> str:
    if slot.task is None:
        return f"no answer within {START_TIMEOUT_S:g} s; the cluster may lack free CPUs or GPUs, so ask for fewer workers"
    return f"deadline of {slot.task.deadline_s:g} s passed"


def _reason(error: Exception) -> str:
    """The part of Ray's message that tells why, on one line."""
    text = " ".join(str(getattr(error, "cause", None) or error).split())
    return (text.partition("Worker exit detail: ")[2] or text)[:400]


def _kill(slot: _Slot) -> None:
    import ray

    if slot.actor is not None and ray.is_initialized():
        ray.kill(slot.actor, no_restart=True)
