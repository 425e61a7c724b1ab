"""The seats of a pool on Ray: who sits where, which node may work, on which node latency is measured, when seats are taken and given up.

The rules are in `seats` and `schedule`; here is the state that they are asked with. Workers are started, killed and asked by the pool.
"""

import math
import time
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nas_attn.admission import MARK, Admission
from nas_attn.errors import PoolError
from nas_attn.losses import PAUSES_S, Outages
from nas_attn.schedule import Plan, Seat, floor4
from nas_attn.seats import IDLE_S, Standing, closing, measuring, opening, seats_a_gpu, surplus
from nas_attn.work import Task


@dataclass(slots=True)
class Slot:
    """A worker as the driver sees it: `ref` is what Ray owes us, the answer to `task` or, with no task, to `start`."""

    plan: Plan
    node: str
    alone: bool = True
    """Whether exclusive tasks may run here."""
    anywhere: bool = False
    """Whether the worker goes to whatever node has room, now or once one has come."""
    placed: bool = True
    """Whether there is a node for it."""
    barred: bool = False
    """Whether its node lacks what a search needs."""
    resting: bool = False
    """Whether its node lacks, for now, what a task needs."""
    name: str = ""
    kind: str = ""
    annex: str = ""
    """The worker's private folder, where it does not see the study's."""
    leaving: bool = False
    """Whether its node has said that it will go."""
    lost: bool = False
    """Whether its node has died, and its next worker has not begun on another yet: it may never, where none has room."""
    actor: Any = None
    ref: Any = None
    task: Task | None = None
    reads: tuple[str, ...] = ()
    """The driver's files that have travelled with the task."""
    since: float = 0.0
    salvaged: float = 0.0
    devices: frozenset[str] = frozenset()
    failures: int = 0
    """How often in a row a worker could not be started here."""
    again: float = -math.inf
    """When one is tried again, after that."""

    def seat(self) -> Seat:
        """This worker at the gate. One that fails to start again and again no longer keeps a device from exclusive work."""
        if self.actor is None or not self.placed or self.barred:
            return Seat(frozenset(), "absent", self.alone)
        if self.ref is None:
            return Seat(self.devices, "absent" if self.leaving or self.resting else "idle", self.alone)
        if self.task is not None:
            return Seat(self.devices, "exclusive" if self.task.exclusive else "busy", self.alone)
        return Seat(self.devices, "absent" if self.failures else "starting", self.alone)

    @property
    def there(self) -> bool:
        """Whether a worker sits on its node, or begins there and has not failed to yet."""
        begins = self.ref is not None and self.task is None
        return self.actor is not None and self.node != "" and not self.barred and not self.lost and not (begins and self.failures)

    def standing(self, now: float) -> Standing:
        """This worker as the rules of `seats` see it, at a time of the monotonic clock."""
        there = self.actor is not None and self.placed
        begins = self.ref is not None and (self.task is None or self.task.key.startswith(MARK))
        closed = "failed" if now < self.again else "closed"
        state = closed if self.actor is None else "coming" if begins else "idle" if self.ref is None else "busy"
        barred = self.barred or (self.resting and state == "idle")
        return Standing("barred" if barred and there else state, now - self.since, self.alone and there)

    def limit_s(self, start_s: float) -> float:
        """When what is owed is overdue, on the monotonic clock, a start after `start_s`. A node may take any time to come."""
        seconds = start_s if self.task is None else self.task.deadline_s
        return math.inf if seconds is None or self.ref is None or not self.placed else self.since + seconds

    def overdue(self, start_s: float) -> str:
        """What to say when that time has come."""
        if self.task is None:
            return f"no answer within {start_s:g} s; the cluster may lack free CPUs or GPUs, so ask for fewer workers"
        return f"deadline of {self.task.deadline_s:g} s passed"

    def empty(self, now: float) -> None:
        """Nobody sits here any more."""
        self.actor = self.ref = self.task = None
        self.devices, self.barred, self.since, self.annex = frozenset(), False, now, ""
        if self.anywhere:
            self.node = self.name = ""


class Seating:
    """All seats of a pool. `most` seats that are taken as work waits where it is given; otherwise the seats that were planned.

    `tell` hears what becomes of nodes, in words.
    """

    def __init__(self, tell: Callable[[str], None], latency_node: str | None = None) -> None:
        self.slots: list[Slot] = []
        self.admission, self.outages = Admission(), Outages()
        self.elastic, self.idle_s = False, IDLE_S
        self._tell, self._latency_node = tell, latency_node
        self._measuring, self._kind, self._need_mib, self._said = "", "", 0.0, ""

    def plan(self, seats: Iterable[tuple[Plan, str]], measuring_node: str) -> None:
        """Seats on nodes that are there, latency on one of those."""
        self._measuring = measuring_node
        self.slots = [Slot(plan, node, alone=node == measuring_node) for plan, node in seats]

    def stretch(self, unit: Plan, most: int) -> None:
        """So many seats, for alike workers on whatever nodes come."""
        self.elastic = True
        self.slots = [Slot(unit, "", alone=False, anywhere=True) for _ in range(most)]
        self._tell(f"waiting for a node with {_words(unit)}")

    @property
    def open(self) -> int:
        """How many tasks the pool may hold at a time."""
        return len(self.slots) if self.elastic else max(1, sum(slot.actor is not None for slot in self.slots))

    def first(self) -> Sequence[Slot]:
        """Where workers are started first."""
        return self.slots[:1] if self.elastic else self.slots

    def unasked(self, answered: Container[str]) -> list[Slot]:
        """Workers, there or about to be, of nodes that have not answered."""
        there = [slot for slot in self.slots if slot.actor is not None and slot.placed and not slot.lost]
        return [slot for slot in there if slot.node not in answered]

    def rest(self, now: float) -> None:
        """Whose node gets no work for now, since what a task needs was away there."""
        for slot in self.slots:
            slot.resting = self.outages.left_s(slot.node, now) > 0

    def changes(self, queue: Collection[Task], now: float) -> tuple[list[Slot], list[Slot]]:
        """Seats to take a worker for, since tasks wait; and seats to give up, since none has waited for long.

        Raises:
            PoolError: no node may work.
            NasAttnError: what tasks need has been away from every node for too long.
        """
        if all(slot.barred for slot in self.slots):
            raise PoolError(f"A search needs a node that has what it needs, but every node {'; '.join(self.admission.complaints())}")
        kinds = {task.kind for task in queue}
        if kinds and all(slot.task is None for slot in self.slots):
            self.outages.require({slot.node for slot in self.slots if slot.there}, kinds)
        if not self.elastic:
            return [slot for slot in self.slots if slot.actor is None and slot.failures and now >= slot.again], []
        standings = [slot.standing(now) for slot in self.slots]
        able = any(standing.measures and standing.state in ("idle", "busy") for standing in standings)
        waiting = sum(not task.exclusive or not able for task in queue)
        opened, closed = opening(standings, waiting), closing(standings, waiting, self.idle_s)
        if opened:
            self._tell(f"{len(opened)} more workers asked for, each with {_words(self.slots[opened[0]].plan)}")
        if closed:
            self._tell(f"{len(closed)} workers given up: nothing has waited for them for {self.idle_s:g} s")
        return [self.slots[i] for i in opened], [self.slots[i] for i in closed]

    def put_off(self, slot: Slot, reason: str, most: int) -> None:
        """A worker could not be started: it is tried again later, while the others work.

        Raises:
            PoolError: none could be, `most` times in a row.
        """
        slot.failures += 1
        if all(other.failures >= most for other in self.slots if other.actor is not None or other.failures):
            raise PoolError(f"A worker could not be started: {reason}")
        now, pause = time.monotonic(), PAUSES_S[min(slot.failures, len(PAUSES_S)) - 1]
        self._tell(f"{slot.name or slot.node or 'a node'}: a worker could not be started; tried again in {pause:g} s: {reason}")
        slot.empty(now)
        slot.again = now + pause

    def seat(self, slot: Slot, told: Mapping[str, Any]) -> Task | None:
        """A worker has begun, perhaps on another node than the one that it replaces. What its node must be asked first."""
        slot.node, slot.name, slot.kind, slot.devices = told["node"], told["name"], told["kind"], frozenset(told["devices"])
        slot.barred, slot.lost = self.admission.barred(slot.node), False
        self.choose_measuring()
        return self.admission.task(slot.node)

    def hear(self, slot: Slot, answer: str | None, lost: str | None) -> None:
        """What a node that joined has answered: it gets work, or none."""
        reason = self.admission.hear(slot.node, answer, lost)
        slot.barred = reason is not None
        self._tell(f"{slot.name} has joined" if reason is None else f"{slot.name} gets no work: it {reason}")
        self.choose_measuring()

    def look(self, alive: Container[str]) -> None:
        """Which nodes are still there, by the cluster: exclusive tasks do not wait for one that has died."""
        for slot in self.slots:
            slot.lost = bool(slot.node) and slot.node not in alive
        self.choose_measuring()

    def choose_measuring(self) -> None:
        """Where exclusive tasks run: always on one kind of device, for latencies of two kinds are no comparison."""
        there = [slot for slot in self.slots if slot.there and not slot.resting and self._may_measure(slot)]
        found = measuring(self._measuring, self._kind, [(slot.node, slot.kind) for slot in there])
        before, self._measuring = self._measuring, found or self._measuring
        self._kind = self._kind or next((slot.kind for slot in there if slot.node == found), "")
        for slot in self.slots:
            slot.alone = found is not None and slot.node == found
        if found is None and (self._kind or self._latency_node):
            self._say(f"latency is measured on {self._kind or self._latency_node} alone, but no worker is there: measurements wait for one")
        elif before and found != before:
            self._say(f"latency is measured on {next(slot.name for slot in there if slot.node == found)} from now on, which is alike")

    def prefer(self, kind: str) -> None:
        """A study's latencies are of that kind already: more are measured on such a node, if one is there or may come, unless the user has
        named another. Where there is none the first node measures, which the study refuses and says what may be done.
        """
        may_come = self.elastic or any(slot.kind == kind or slot.failures for slot in self.slots)
        if kind and self._latency_node is None and may_come:
            self._kind = kind
            self.choose_measuring()

    def need(self, memory_mib: float) -> None:
        """From now on each task is planned with so much of a GPU's memory."""
        self._need_mib = memory_mib

    def spare(self) -> list[Slot]:
        """Idle workers for which a GPU has no memory; what is started from now on asks Ray for a share that fits."""
        there = [slot for slot in self.slots if slot.actor is not None and slot.devices] if self._need_mib else []
        known = self.admission.memory_mib
        most = {device: seats_a_gpu(known.get(slot.node), self._need_mib) for slot in there for device in slot.devices}
        for slot in there:
            share = floor4(max(1 / most[device] for device in slot.devices))
            slot.plan = replace(slot.plan, gpus_per_worker=max(slot.plan.gpus_per_worker, share))
        found = [there[i] for i in surplus([slot.devices for slot in there], most) if there[i].ref is None]
        for slot in found:
            self._tell(f"{slot.name}: a worker fewer, for a training is planned with {self._need_mib:.0f} MiB of the GPU's memory")
        return found

    def _may_measure(self, slot: Slot) -> bool:
        named = (slot.node, *slot.name.replace("(", "").replace(")", "").split())
        return not self.elastic or self._latency_node is None or bool(self._kind) or self._latency_node in named

    def _say(self, text: str) -> None:
        """Tells it, once."""
        if text != self._said:
            self._said = text
            self._tell(text)


def _words(plan: Plan) -> str:
    gpus = f" and {plan.gpus_per_worker:g} GPUs" if plan.gpus_per_worker else ""
    return f"{plan.cpus_per_worker:g} CPUs{gpus}"
