"""Where jobs run: warm workers on Ray, or the calling process itself.

A pool knows nothing about trials. It takes tasks (a kind and a JSON payload), hands each to the function that `target` names, and
answers with the JSON that came back or with the reason why none did. It retries nothing: attempts are numbered and recorded by
whoever submits, so that a late or lost copy of a job can't change anything.

Exclusivity is decided here and not by Ray's resources: a task that asks Ray for a whole device can never start beside warm workers.
"""

import json
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nas_attn.admission import DEADLINE_S, MARK, Judge
from nas_attn.cluster import Cluster, check_interrupt, no_interrupt
from nas_attn.errors import InputError, PoolError, nearest
from nas_attn.freight import Freight
from nas_attn.inline_pool import InlinePool
from nas_attn.losses import GONE, MAX_LOSSES, cause_of, reason_of
from nas_attn.porters import Porters
from nas_attn.schedule import assign, available_cpus, check_options, measuring_node, plan_cluster, unit_plan
from nas_attn.seating import Seating, Slot
from nas_attn.work import UNFIT, Done, Pool, Task, require_open
from nas_attn.worker import Worker

START_TIMEOUT_S = 180.0
_START_FAILURES = 3
POLL_S = 1.0
"""How often a waiting driver looks whether it was told to end."""
WATCH_S = 2.0
"""How often it looks which nodes are about to go."""
SALVAGE_S = 300.0
"""How often it fetches what trainings have kept on nodes that do not see the study's folder."""
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
    cpus_per_worker: float | None = None,
    max_workers: int | None = None,
    tell: Callable[[str], None] | None = None,
    insecure_cluster: bool = False,
    latency_kind: str = "",
) -> Pool:
    """The pool that `kind` names (`ray` or `inline`), serving `target` (`module:function`, from kind and JSON payload to JSON).

    `folder` is the study's; its files travel to workers that do not see it. Exclusive tasks run on `latency_node` (host name, address or
    identity of a node), or else on a node of `latency_kind` (a device's name), or else on the first node that has workers. With
    `max_workers` workers are asked for as work waits and given up as it does not, so that an autoscaler brings and takes nodes. `tell`
    hears what becomes of nodes. `insecure_cluster`: anybody may.

    Raises:
        InputError: an unknown kind or an impossible number.
        PoolError: workers that could not be started, or a target that cannot be imported.
    """
    if kind == "inline":
        return InlinePool(target)
    if kind == "ray":
        elastic = (cpus_per_worker, max_workers, tell or (lambda _: None))
        return RayPool(target, workers, gpus_per_worker, address, threads, folder, latency_node, *elastic, insecure_cluster, latency_kind)
    raise InputError(f"A pool is `ray` or `inline`, but got {kind!r}. {nearest(kind, ('ray', 'inline'))}")


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
        cpus_per_worker: float | None = None,
        max_workers: int | None = None,
        tell: Callable[[str], None] = lambda _: None,
        insecure_cluster: bool = False,
        latency_kind: str = "",
    ) -> None:
        check_options(workers, gpus_per_worker, threads, cpus_per_worker, max_workers)
        if max_workers is not None and not address:
            raise InputError("`--max-workers` lets a cluster's autoscaler bring nodes, so it needs `--address`; use --workers here.")
        self._target = target
        self._freight = Freight(folder)
        self._environment = _QUIET | ({"CUDA_VISIBLE_DEVICES": ""} if gpus_per_worker == 0 else {})
        self._queue: deque[Task] = deque()
        self._seating, self._asked_cpus = Seating(tell, latency_node), cpus_per_worker
        self._answers: dict[str, Done] = {}
        self._cluster, self._porters = Cluster(), Porters(self._freight.folder)
        self._watched, self._leaving = 0.0, frozenset[str]()
        self._joined, self._warm, self._closed = bool(address), False, False
        try:
            nodes = self._cluster.join(address, insecure_cluster) if address else self._cluster.start(available_cpus())
            if max_workers is None:
                seats = plan_cluster(nodes, workers, gpus_per_worker, threads, cpus_per_worker)
                self._seating.plan(seats, measuring_node(nodes, [node for _, node in seats], latency_node))
            else:
                self._seating.stretch(unit_plan(gpus_per_worker, threads, cpus_per_worker), max_workers)
            self._start_all()
            self._seating.prefer(latency_kind)
        except BaseException:
            self.close()
            raise

    @property
    def slots(self) -> int:
        """How many workers there are; with `max_workers`, how many there may be."""
        return self._seating.open

    @property
    def _slots(self) -> list[Slot]:
        return self._seating.slots

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
            NasAttnError: what tasks need has been away from every node for too long.
        """
        require_open(self._closed)
        end = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._watch()
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
                self._porters.close((slot.node, slot.annex) for slot in self._slots if slot.annex)
            finally:
                self._cluster.close()
                self._queue.clear()

    def _start_all(self) -> None:
        for slot in self._seating.first():
            self._start(slot)
        while any(slot.ref is not None for slot in self._slots):
            check_interrupt()
            self._collect(time.monotonic() + POLL_S)
        self._warm = True

    def _start(self, slot: Slot) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        plan = slot.plan
        actor = ray.remote(
            # On a cluster that was joined, a worker asks for no more than it computes with: others may share it.
            num_cpus=min(plan.cpus_per_worker, plan.threads) if self._joined and not self._asked_cpus else plan.cpus_per_worker,
            num_gpus=plan.gpus_per_worker,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=1,
            scheduling_strategy="DEFAULT" if slot.anywhere else NodeAffinitySchedulingStrategy(slot.node, soft=True),
        )(Worker)
        threads = str(plan.threads)
        environment = self._environment | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        folder = self._freight.folder
        slot.actor = actor.remote(self._target, environment, None if folder is None else str(folder), self._freight.mark)
        slot.task, slot.since, slot.placed, slot.barred = None, time.monotonic(), not slot.anywhere, False
        slot.ref = slot.actor.start.remote() if slot.placed else slot.actor.__ray_ready__.remote()
        if slot.anywhere:
            slot.node, slot.name, slot.devices = "", "", frozenset()
            self._seating.choose_measuring()

    def _watch(self) -> None:
        """Looks which nodes are about to go: what is idle there begins anew elsewhere, what trains there is fetched as far as it came."""
        now = time.monotonic()
        if now - self._watched < WATCH_S:
            return
        self._watched = now
        states = self._cluster.states()
        self._leaving = frozenset(node for node, state in states.items() if state == "draining")
        there = {node for node, state in states.items() if state in ("alive", "draining")}
        self._seating.look(there)
        self._porters.keep(there)
        for slot in self._slots:
            known, slot.leaving = slot.leaving, slot.node in self._leaving
            if slot.annex and slot.task is not None and (slot.leaving > known or now - slot.salvaged > SALVAGE_S):
                slot.salvaged = now
                self._porters.ask(slot.node, slot.annex)
            elif slot.leaving and slot.ref is None and slot.actor is not None:
                self._replace(slot, "its node is about to go", "preempted")
        self._porters.collect()

    def _dispatch(self) -> None:
        tasks = list(self._queue)
        self._seating.rest(time.monotonic())
        pairs = assign([task.exclusive for task in tasks], [slot.seat() for slot in self._slots])
        for place, seat in pairs:
            self._hand_over(self._slots[seat], tasks[place])
        started = {place for place, _ in pairs}
        self._queue = deque(task for place, task in enumerate(tasks) if place not in started)
        taken, given_up = self._seating.changes(self._queue, time.monotonic())
        for slot in taken:
            self._start(slot)
        for slot in (*given_up, *self._seating.spare()):
            _kill(slot)
            self._porters.clear(slot.node, slot.annex)
            slot.empty(time.monotonic())

    def _hand_over(self, slot: Slot, task: Task) -> None:
        slot.reads = self._freight.files(task) if slot.annex else ()
        slot.task, slot.since = task, time.monotonic()
        slot.salvaged = slot.since
        flying = {path for other in self._slots if other.task is not None for path in other.reads}
        slot.ref = slot.actor.run.remote(task.kind, task.payload, slot.reads, *self._freight.ship(slot.reads, flying))

    def everywhere(self, kind: str, payload: str) -> list[tuple[str, Done]]:
        """One task on each node, while nothing else is under way: the node's name and what came of it. Where the worker is lost under it,
        the next is asked, as often as for any task; a node that goes meanwhile is left out.
        """
        require_open(self._closed)
        if self._queue or any(slot.ref is not None for slot in self._slots):
            raise PoolError("A pool asks all of its nodes only while nothing else is under way; wait for what was submitted.")
        names, lost, self._answers = dict[str, str](), Counter[str](), {}
        while unasked := self._seating.unasked(self._answers):
            asked = {slot.node for slot in unasked if slot.task is not None}
            for slot in unasked:
                if slot.ref is None and slot.node not in asked:
                    asked.add(slot.node)
                    names[slot.node] = slot.name
                    self._hand_over(slot, Task(slot.node, kind, payload, deadline_s=DEADLINE_S))
            check_interrupt()
            done = self._collect(time.monotonic() + POLL_S)
            lost.update(one.key for one in done if one.cause in GONE)
            self._answers |= {one.key: one for one in done if one.cause not in GONE or lost[one.key] == MAX_LOSSES}
            self._watch()
        return [(name, self._answers[node]) for node, name in names.items() if node in self._answers]

    def require(self, kind: str, payload: str, judge: Judge) -> None:
        """From now on, ask each node that joins before it gets work; those that are there have answered to `everywhere`."""
        self._seating.admission.question = (kind, payload, judge)
        for node, done in self._answers.items():
            self._seating.admission.hear(node, done.result, done.lost)

    def need(self, memory_mib: float) -> None:
        """Give up workers for which a GPU has no memory, each task taking so much."""
        self._seating.need(memory_mib)

    def _collect(self, end: float) -> list[Done]:
        """What has ended, after waiting for the first end, the next deadline or `end`."""
        import ray

        owed = {slot.ref: slot for slot in self._slots if slot.ref is not None}
        if not owed:  # what is queued waits for a node
            time.sleep(max(0.0, min(end - time.monotonic(), POLL_S)))
            return []
        left = min([end, *(slot.limit_s(START_TIMEOUT_S) for slot in owed.values())]) - time.monotonic()
        ray.wait(list(owed), num_returns=1, timeout=None if left == math.inf else max(0.0, left))
        ready, _ = ray.wait(list(owed), num_returns=len(owed), timeout=0)
        done = [self._settle(owed.pop(ref)) for ref in ready]
        now = time.monotonic()
        late = [slot for slot in owed.values() if now >= slot.limit_s(START_TIMEOUT_S)]
        done += [self._replace(slot, slot.overdue(START_TIMEOUT_S), "deadline") for slot in late]
        return [item for item in done if item is not None and not item.key.startswith(MARK)]

    def _settle(self, slot: Slot) -> Done | None:
        """Take what Ray owed for `slot`: an answer frees the worker, an error of Ray's means that it is gone."""
        import ray

        try:
            given = ray.get(slot.ref)
        except ray.exceptions.RayError as error:
            cause = cause_of([kind.__name__ for kind in type(error).__mro__], self._cluster.states().get(slot.node, "alive"))
            return self._replace(slot, reason_of(error) if slot.task is None else f"worker died: {reason_of(error)}", cause)
        if not slot.placed:
            slot.placed, slot.since, slot.ref = True, time.monotonic(), slot.actor.start.remote()
            return None
        if slot.task is not None and given[2] == UNFIT:
            return self._replace(slot, given[1], "crash")
        now, begun = time.monotonic(), slot.since
        task, slot.task, slot.ref, slot.failures, slot.since = slot.task, None, None, 0, now
        if task is None:
            self._settle_in(slot, json.loads(given))
            return None
        result, lost, cause, files = given
        if task.key.startswith(MARK):
            self._seating.hear(slot, result, lost)
        done = Done(task.key, result, lost, cause)
        kept = self._freight.unload(done, files)
        return self._seating.outages.hear(slot.node if kept is done else "", task.kind, kept, begun, now)

    def _settle_in(self, slot: Slot, told: Mapping[str, Any]) -> None:
        """A worker has begun, perhaps on another node than the one that it replaces."""
        slot.annex, slot.leaving = told["annex"], told["node"] in self._leaving
        if slot.annex:
            self._porters.post(told["node"])
        question = self._seating.seat(slot, told)
        if question is not None:
            self._hand_over(slot, question)

    def _replace(self, slot: Slot, reason: str, cause: str) -> Done | None:
        _kill(slot)
        if slot.task is None and slot.ref is not None:
            self._seating.put_off(slot, reason, _START_FAILURES if self._warm else 1)
            return None
        if slot.task is not None:
            self._porters.inherit(slot.node, slot.annex)
        self._porters.clear(slot.node, slot.annex)
        slot.annex = ""
        done = None if slot.task is None else Done(slot.task.key, None, reason, cause)
        self._start(slot)
        return done


def _kill(slot: Slot) -> None:
    import ray

    if slot.actor is not None and ray.is_initialized():
        ray.kill(slot.actor, no_restart=True)
