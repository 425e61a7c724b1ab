"""Where jobs run: warm workers on Ray, or the calling process itself.

A pool knows nothing about trials. It takes tasks (a kind and a JSON payload), hands each to the function that `target` names, and
answers with the JSON that came back or with the reason why none did. It retries nothing: attempts are numbered and recorded by
whoever submits, so that a late or lost copy of a job can't change anything.

Exclusivity is decided here and not by Ray's resources: a task that asks Ray for a whole device can never start beside warm workers.
"""

import json
import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_attn.carry import deliver, leave_mark, needed
from nas_attn.cluster import Cluster, check_interrupt, no_interrupt
from nas_attn.errors import InputError, PoolError, nearest
from nas_attn.schedule import Plan, Seat, assign, available_cpus, check_options, measuring_node, plan_cluster
from nas_attn.work import Done, Pool, Task, answer, import_target, require_open
from nas_attn.worker import Worker

START_TIMEOUT_S = 180.0
_START_FAILURES = 3
EVERYWHERE_S = 1800.0
POLL_S = 1.0
"""How often a waiting driver looks whether it was told to end."""
_QUIET = {"YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "false", "RAY_USAGE_STATS_ENABLED": "0"}


def open_pool(
    kind: str,
    target: str,
    *,
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    address: str | None = None,
    threads: int | None = None,
    folder: Path | None = None,
    latency_node: str | None = None,
    insecure_cluster: bool = False,
) -> Pool:
    """The pool that `kind` names (`ray` or `inline`), serving `target` (`module:function`, from kind and JSON payload to JSON).

    `folder` is the study's; its files travel to workers that do not see it. Exclusive tasks run on `latency_node` (host name, address or
    identity of a node), or else on the first node that has workers. `insecure_cluster` takes a cluster that lets anybody in.

    Raises:
        InputError: an unknown kind or an impossible number.
        PoolError: workers that could not be started, or a target that cannot be imported.
    """
    if kind == "inline":
        return InlinePool(target)
    if kind == "ray":
        return RayPool(target, workers, gpus_per_worker, address, threads, folder, latency_node, insecure_cluster)
    raise InputError(f"A pool is `ray` or `inline`, but got {kind!r}. {nearest(kind, ('ray', 'inline'))}")


class InlinePool(Pool):
    """Runs one task a call of `wait`, in this very process: for debugging, and where Ray is not wanted.

    Deadlines are not enforced, for nothing stands beside the task to stop it. KeyboardInterrupt passes through, and the task that it
    interrupted stays first in the queue.
    """

    slots = 1

    def __init__(self, target: str) -> None:
        self._serve = import_target(target)
        self._queue: deque[Task] = deque()
        self._closed = False

    def submit(self, task: Task) -> None:
        """Queue a task."""
        require_open(self._closed)
        self._queue.append(task)

    def wait(self, timeout_s: float | None) -> list[Done]:  # noqa: ARG002
        """Run the oldest task to its end, however long that takes."""
        require_open(self._closed)
        if not self._queue:
            return []
        task = self._queue[0]
        result, lost = answer(self._serve, task.kind, task.payload)
        self._queue.popleft()
        return [Done(task.key, result, lost)]

    def everywhere(self, kind: str, payload: str) -> list[tuple[str, Done]]:
        """One task, here."""
        require_open(self._closed)
        return [("this machine", Done("here", *answer(self._serve, kind, payload)))]

    def close(self) -> None:
        """Drop what is queued."""
        self._closed = True
        self._queue.clear()


@dataclass(slots=True)
class _Slot:
    """A worker as the driver sees it: `ref` is what Ray owes us, the answer to `task` or, with no task, to `start`."""

    plan: Plan
    node: str
    alone: bool = True
    """Whether exclusive tasks may run here."""
    name: str = ""
    travels: bool = False
    actor: Any = None
    ref: Any = None
    task: Task | None = None
    since: float = 0.0
    devices: frozenset[str] = frozenset()
    failures: int = 0

    def seat(self) -> Seat:
        """This worker at the gate. One that fails to start again and again no longer keeps a device from exclusive work."""
        if self.ref is None:
            return Seat(self.devices, "idle", self.alone)
        if self.task is not None:
            return Seat(self.devices, "exclusive" if self.task.exclusive else "busy", self.alone)
        return Seat(self.devices, "absent" if self.failures else "starting", self.alone)

    def limit_s(self) -> float:
        """When what is owed is overdue, on the monotonic clock."""
        seconds = START_TIMEOUT_S if self.task is None else self.task.deadline_s
        return math.inf if seconds is None or self.ref is None else self.since + seconds


class RayPool(Pool):
    """Warm workers on a Ray cluster: a local one of its own, or the running one at `address`.

    A worker that dies costs its task only: the task is lost, a new worker takes its place. Deadlines are kept on the driver's monotonic
    clock by killing the worker. A local cluster listens on all interfaces (Ray cannot be told otherwise), so a certificate and a token, in
    0600 files within a private folder, are what keeps others out; for `address` the environment must hold the cluster's token.

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
        folder: Path | None = None,
        latency_node: str | None = None,
        insecure_cluster: bool = False,
    ) -> None:
        check_options(workers, gpus_per_worker, threads)
        self._target = target
        self._folder = folder.resolve() if folder is not None else None
        self._mark = leave_mark(self._folder) if self._folder is not None else ""
        self._shipped: dict[str, tuple[tuple[int, int], Any]] = {}
        self._environment = _QUIET | ({"CUDA_VISIBLE_DEVICES": ""} if gpus_per_worker == 0 else {})
        self._queue: deque[Task] = deque()
        self._slots: list[_Slot] = []
        self._cluster = Cluster()
        self._joined, self._warm, self._closed = bool(address), False, False
        try:
            nodes = self._cluster.join(address, insecure_cluster) if address else self._cluster.start(available_cpus())
            seats = plan_cluster(nodes, workers, gpus_per_worker, threads)
            self._measuring = measuring_node(nodes, [node for _, node in seats], latency_node)
            self._slots = [_Slot(plan, node, alone=node == self._measuring) for plan, node in seats]
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
        require_open(self._closed)
        self._queue.append(task)
        self._dispatch()

    def wait(self, timeout_s: float | None) -> list[Done]:
        """Start what may start, and wait for the first end.

        Raises:
            PoolError: no worker can be started any more.
        """
        require_open(self._closed)
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
        )(Worker)
        threads = str(plan.threads)
        environment = self._environment | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        slot.actor = actor.remote(self._target, environment, None if self._folder is None else str(self._folder), self._mark)
        slot.task, slot.since, slot.ref = None, time.monotonic(), slot.actor.start.remote()

    def _dispatch(self) -> None:
        tasks = list(self._queue)
        pairs = assign([task.exclusive for task in tasks], [slot.seat() for slot in self._slots])
        for place, seat in pairs:
            self._hand_over(self._slots[seat], tasks[place])
        started = {place for place, _ in pairs}
        self._queue = deque(task for place, task in enumerate(tasks) if place not in started)

    def _hand_over(self, slot: _Slot, task: Task) -> None:
        paths = needed(task.payload, self._folder, task.needs) if slot.travels and self._folder is not None else ()
        slot.task, slot.since = task, time.monotonic()
        slot.ref = slot.actor.run.remote(task.kind, task.payload, paths, *(self._ship(path) for path in paths))

    def _ship(self, path: str) -> Any:
        """A file's content in Ray's object store, put there once for all workers."""
        import ray

        state = Path(path).stat()
        version = (state.st_mtime_ns, state.st_size)
        if self._shipped.get(path, (None, None))[0] != version:
            self._shipped[path] = (version, ray.put(Path(path).read_bytes()))
        return self._shipped[path][1]

    def everywhere(self, kind: str, payload: str) -> list[tuple[str, Done]]:
        """One task on each node, while nothing else is under way: the node's name and what came of it."""
        require_open(self._closed)
        if self._queue or any(slot.ref is not None for slot in self._slots):
            raise PoolError("A pool asks all of its nodes only while nothing else is under way; wait for what was submitted.")
        names = {slot.node: slot.name for slot in self._slots}
        for slot in {slot.node: slot for slot in self._slots}.values():
            self._hand_over(slot, Task(slot.node, kind, payload, deadline_s=EVERYWHERE_S))
        done: list[Done] = []
        while len(done) < len(names):
            check_interrupt()
            done += self._collect(time.monotonic() + POLL_S)
        return [(names[one.key], one) for one in sorted(done, key=lambda one: list(names).index(one.key))]

    def _keep(self, done: Done, files: Mapping[str, bytes]) -> Done:
        """The end of a task, once what its worker brought is in the study's folder."""
        if self._folder is None or not files:
            return done
        try:
            deliver(self._folder, files)
        except (OSError, PoolError) as error:
            return Done(done.key, None, f"what it wrote could not be kept: {error}")
        return done

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
            given = ray.get(slot.ref)
        except ray.exceptions.RayError as error:
            return self._replace(slot, _reason(error) if slot.task is None else f"worker died: {_reason(error)}")
        task, slot.task, slot.ref, slot.failures = slot.task, None, None, 0
        if task is None:
            self._settle_in(slot, **json.loads(given))
            return None
        result, lost, files = given
        return self._keep(Done(task.key, result, lost), files)

    def _settle_in(self, slot: _Slot, *, pid: int, node: str, name: str, devices: list[str], travels: bool) -> None:  # noqa: ARG002
        """A worker has begun, perhaps on another node than the one that it replaces."""
        slot.node, slot.name, slot.devices, slot.travels = node, name, frozenset(devices), travels
        if all(other.node != self._measuring for other in self._slots):
            self._measuring = self._slots[0].node  # the node is gone: latencies are ratios to the base, on whatever device of this kind
        for other in self._slots:
            other.alone = other.node == self._measuring

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
