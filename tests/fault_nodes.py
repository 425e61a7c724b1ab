"""The faults of nodes whose trainings outlive the driver's sight of them: each must be seen, and what trained there begun again.

Each holds a training of the node that it disturbs (`fault_copies`), so that a second copy begins while the first one is alive.
"""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fault_cluster import Node
from fault_copies import Copy
from fault_record import blamed

if TYPE_CHECKING:
    from fault_run import Run

SILENT_S = 12.0
"""Longer than the longest of the cluster's timeouts (see `fault_cluster.QUICK`)."""
SEEN_S = 90.0
PROBE = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False, logging_level=40); "
DRAIN = PROBE + (
    "from ray._raylet import GcsClient; print(GcsClient(address=sys.argv[1]).drain_node(sys.argv[2], 2, 'preempted', int(sys.argv[3])))"
)


def raylet_hangs(run: "Run", rng: random.Random) -> None:
    """SIGSTOP of a raylet for longer than every timeout: its workers may finish, and their answers may count."""
    with _victim(run, rng, run.nodes.nodes[1:]) as (node, first):
        end = time.monotonic() + SILENT_S + rng.uniform(0, 4)
        with stopped([node.part("raylet")]):
            _two_copies(run, rng, first)
            _sleep_until(end)
    _exchange(run, node)


def node_hangs(run: "Run", rng: random.Random) -> None:
    """SIGSTOP of a raylet and its workers for longer than every timeout; they come back and write when their trials run elsewhere."""
    with _victim(run, rng, run.nodes.nodes[1:]) as (node, first):
        end = time.monotonic() + SILENT_S + rng.uniform(0, 4)
        with stopped([node.part("raylet"), *node.workers()]):
            second = _second(run, first)
            if second is not None:
                run.copies.let_go(second)
            _sleep_until(end)
        run.copies.let_go(first, wait_s=3)
        _say_twice(run, first, second)
    time.sleep(3)
    _exchange(run, node)


def network_cut(run: "Run", rng: random.Random) -> None:
    """The link to one node is down for longer than every timeout: its trainings run on there, and begin anew elsewhere."""
    with _victim(run, rng, [node for node in run.nodes.nodes if node.leaf]) as (leaf, first):
        end = time.monotonic() + SILENT_S + 8 + rng.uniform(0, 6)
        run.nodes.cut(down=True)
        try:
            _two_copies(run, rng, first)
            _sleep_until(end)
        finally:
            run.nodes.cut(down=False)
    time.sleep(3)
    if not leaf.alive() or not leaf.workers():
        _exchange(run, leaf)


def node_preempted(run: "Run", rng: random.Random) -> None:
    """A node says that it will go, and goes: nothing new is begun there, and nobody is blamed."""
    with _victim(run, rng, run.nodes.nodes[1:]) as (node, first):
        there = {*node.workers()}
        name = notice(run, node)
        if run.await_event(f"notice {name}", 30):
            time.sleep(5)
            there |= {*node.workers()}
            told = run.said().partition(f"notice {name}")
            before = {key for key in _handed(told[0], name) if key.startswith("train/")}
            after = _handed(told[2], name)
            run.require(not after, f"the node had said that it would go, but was given {after}")
            began = {f"{c.digest}/{c.job}/{c.attempt}" for c in run.copies.told("began") if c.pid in there}
            strange = began - {key.split("/", 2)[2] for key in before}
            run.require(not strange, f"only what it was given before its notice may begin on that node, but {strange} did")
        # What was never lost before has nothing counted against it, unless this fault does.
        cut = {copy.digest for copy in run.copies.under_way() if copy.pid in node.workers() and copy.attempt == 1}
        run.require(first in run.copies.under_way(), f"trial {run.number(first.digest)} must train there until the node goes, but does not")
        _exchange(run, node)
        second = _second(run, first, living=False)
        found = blamed(run.folder, cut, run.storage)
        run.require(not found, f"a preemption is nobody's fault, but counted are {found}: {_losses(run)}")
        if second is not None:
            run.hit_by(f"trial {run.number(first.digest)} cut off, attempt {second.attempt} begun")


HELD: dict[str, Callable[["Run", random.Random], None]] = {
    "raylet hangs": raylet_hangs,
    "node hangs": node_hangs,
    "node preempted": node_preempted,
    "network cut": network_cut,
}


def notice(run: "Run", node: Node) -> str:
    """Tells the cluster that a node will go in 15 s; its identity."""
    name = _node_id(node.part("raylet"))
    said = run.probe(DRAIN, name, str(int((time.time() + 15) * 1000))).strip()
    run.require(said.startswith("(True"), f"the notice must be taken, but: {said}")
    return name


@contextlib.contextmanager
def stopped(pids: Sequence[int]) -> Iterator[None]:
    """Suspends processes for a while."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def _victim(run: "Run", rng: random.Random, nodes: Sequence[Node]) -> Iterator[tuple[Node, Copy]]:
    """One of these nodes that trains, and a training there that does not end before it is let go; none that was hit before."""
    end = time.monotonic() + SEEN_S
    while time.monotonic() < end:
        busy = {pid: node for node in nodes for pid in node.workers("ray::Worker.run")}
        found = [copy for copy in run.copies.under_way() if copy.pid in busy and copy.digest not in run.hit]
        copy = rng.choice(found) if found else None
        if copy is not None and run.copies.hold(copy):
            run.hit.add(copy.digest)
            try:
                yield busy[copy.pid], copy
            finally:
                run.copies.release(copy)
            return
        time.sleep(0.05)
    raise AssertionError(f"one of {len(nodes)} nodes must train what was not hit before, but none did within {SEEN_S:g} s")


def _second(run: "Run", first: Copy, living: bool = True) -> Copy | None:
    """The copy that begins once the driver has told the loss of the first, which must still be there if `living`."""
    number = run.number(first.digest)
    if not run.await_event(f"lost trial {number}: attempt {first.attempt} lost", SEEN_S):
        return None
    second = run.copies.next(first, SEEN_S)
    run.require(second is not None, f"trial {number} was lost but never begun again")
    if living and second is not None:
        run.require(first in run.copies.under_way(), f"trial {number}: the first copy was gone when the second began")
    return second


def _two_copies(run: "Run", rng: random.Random, first: Copy) -> None:
    """Two live copies of one job, which then end in an order that is drawn."""
    second = _second(run, first)
    if second is None:
        return
    for together in rng.choice([[(first,), (second,)], [(second,), (first,)], [(first, second)]]):
        run.copies.let_go(*together)
    _say_twice(run, first, second)


def _say_twice(run: "Run", first: Copy, second: Copy | None) -> None:
    if second is not None:
        run.doubled.add(first.digest)
        run.hit_by(f"two copies of trial {run.number(first.digest)}, {run.copies.order(first, second)}")


def _exchange(run: "Run", node: Node) -> None:
    """Ends a node; another takes its place."""
    run.nodes.end(node)
    run.nodes.add(run.cpus, leaf=node.leaf)


def _sleep_until(end: float) -> None:
    time.sleep(max(0.0, end - time.monotonic()))


def _handed(log: str, node: str) -> list[str]:
    """The keys of the tasks that a node's workers were given."""
    words = [line.split() for line in log.splitlines()]
    return [line[3] for line in words if len(line) == 4 and line[1] == "handed" and line[2] == node]


def _losses(run: "Run") -> str:
    """What the driver has told of losses since the fault began, in short."""
    lines = run.said()[run.mark :].splitlines()
    return "; ".join(line.partition(" ")[2][:120] for line in lines if " lost trial " in line)


def _node_id(raylet: int) -> str:
    words = Path(f"/proc/{raylet}/cmdline").read_text().split("\0")
    return next(word for word in words if word.startswith("--node_id=")).partition("=")[2]
