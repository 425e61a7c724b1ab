"""Who computes where: how a machine is shared among workers, and which queued task may start on which worker now.

Pure functions on numbers, so that the rules can be tested without a cluster.
"""

import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_attn.errors import InputError, PoolError

WORKER_GIB = 2.0
"""Memory that one worker is planned with: torch, Ultralytics, a cached small data set and one small training."""

MAX_CPU_WORKERS = 16
MAX_WORKERS = 1024
MAX_THREADS = 8


@dataclass(frozen=True, slots=True)
class Plan:
    """How one machine is shared: Ray's CPUs and GPUs for each worker, and the threads that each may compute with."""

    workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    threads: int


def plan_workers(
    cpus: int,
    gpus: int,
    memory_gib: float,
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    threads: int | None = None,
    cpus_per_worker: float | None = None,
) -> Plan:
    """Share one machine among workers; what is given is kept, the rest follows.

    - CPU only: one thread a worker below 4 CPUs, two from there on, at most `MAX_CPU_WORKERS` workers. A small training spends much
      of its time where a second thread has nothing to do (Python, augmentation, small convolutions), so two trainings of one thread
      each end sooner than two of two threads, one after the other.
    - GPUs: two workers a GPU if each has 4 CPUs to feed it, otherwise one. A short training of a small detector leaves a GPU half
      idle; the memory of a GPU is not known here, so a pool gives up what its memory cannot hold once the base is fitted (`seats`).
    - `WORKER_GIB` of memory for each worker, and at least one worker.

    `cpus_per_worker` is, unless it is given, the even share of all CPUs, so that (but for a remainder) a new worker finds room only after
    the one that it replaces has let go. `threads` is at most `MAX_THREADS`.

    Raises:
        InputError: a number below its least value, a GPU share that Ray cannot give, or more CPUs or GPUs than there are.
    """
    check_options(workers, gpus_per_worker, threads, cpus_per_worker)
    share = _gpu_share(cpus, gpus, workers) if gpus_per_worker is None else float(gpus_per_worker)
    if workers is None:
        wanted = math.floor(gpus / share + 1e-6) if share else min(cpus if cpus < 4 else cpus // 2, MAX_CPU_WORKERS)
        if cpus_per_worker is not None:
            room = math.floor(cpus / cpus_per_worker + 1e-6)
            wanted = min(wanted, room) if share else room
        workers = max(1, min(wanted, math.floor(min(memory_gib / WORKER_GIB, MAX_WORKERS))))
    if workers * share > gpus:
        raise InputError(f"{workers} workers with {share:g} GPUs each need {workers * share:g}, but there are {gpus}; ask for less.")
    if workers * (cpus_per_worker or 0) > cpus:
        needed = f"{workers} workers with {cpus_per_worker:g} CPUs each need {workers * (cpus_per_worker or 0):g}"
        raise InputError(f"{needed}, but there are {cpus}; ask for less.")
    each: float = cpus_per_worker or (cpus // workers if workers <= cpus else floor4(cpus / workers))
    return Plan(workers, each, share, threads or max(1, min(int(each), MAX_THREADS)))


def unit_plan(gpus_per_worker: float | None, threads: int | None, cpus_per_worker: float | None) -> Plan:
    """One worker of a cluster whose nodes are not known yet: what it asks for, by default one CPU and no GPU."""
    check_options(None, gpus_per_worker, threads, cpus_per_worker)
    cpus = cpus_per_worker or 1.0
    return Plan(1, cpus, gpus_per_worker or 0.0, threads or max(1, min(int(cpus), MAX_THREADS)))


def _gpu_share(cpus: int, gpus: int, workers: int | None) -> float:
    if gpus == 0:
        return 0.0
    per_gpu = math.ceil(workers / gpus) if workers else 2 if cpus >= 8 * gpus else 1
    return floor4(1 / per_gpu)


def floor4(value: float) -> float:
    """Ray counts resources in ten-thousandths; rounding up would make the last worker not fit."""
    return math.floor(value * 1e4) / 1e4


def check_options(
    workers: int | None,
    gpus_per_worker: float | None,
    threads: int | None,
    cpus_per_worker: float | None = None,
    max_workers: int | None = None,
) -> None:
    if workers is not None and workers < 1:
        raise InputError(f"`workers >= 1` must hold, but got {workers}; leave it out to let the machine decide.")
    if max_workers is not None and (max_workers < 1 or workers is not None):
        got = f"got {max_workers} with workers={workers}"
        raise InputError(f"`max_workers >= 1` must hold, and `workers` must not be given beside it, but {got}; leave one out.")
    if threads is not None and threads < 1:
        raise InputError(f"`threads >= 1` must hold, but got {threads}; leave it out to let the machine decide.")
    if cpus_per_worker is not None and not 0 < cpus_per_worker < math.inf:
        raise InputError(f"`cpus_per_worker > 0` must hold, but got {cpus_per_worker}; leave it out to let the machine decide.")
    share = gpus_per_worker or 0.0
    if not (0 <= share <= 1 or (share > 1 and share == int(share))):
        raise InputError(f"`gpus_per_worker` must be 0 ... 1 or a whole number, but got {gpus_per_worker}; give e.g. 0.5.")


def available_cpus() -> int:
    """CPUs that this process may use: its affinity, and the quota of its control group (version 2)."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    limit, _, period = quota.read_text().partition(" ") if quota.is_file() else ("max", "", "")
    return max(1, min(count, int(limit) // int(period))) if limit.isdigit() else count


def processor() -> str:
    """The name of this machine's processor."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(errors="replace").splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def plan_cluster(
    nodes: Sequence[Mapping[str, Any]],
    workers: int | None,
    gpus_per_worker: float | None,
    threads: int | None,
    cpus_per_worker: float | None = None,
) -> list[tuple[Plan, str]]:
    """One plan and node for each worker, from what `ray.nodes()` tells.

    With a GPU anywhere only nodes with GPUs count (unless `gpus_per_worker` is 0): latencies must come from one kind of device. A given
    number of workers is spread over the nodes by their GPUs, or else by their CPUs.

    Raises:
        InputError: an impossible option.
        PoolError: no node has what is asked for.
    """
    check_options(workers, gpus_per_worker, threads, cpus_per_worker)
    rooms = [node for node in nodes if node["Alive"] and node["Resources"].get("CPU", 0) >= max(1, cpus_per_worker or 1)]
    scarce = "GPU" if gpus_per_worker != 0 and any(node["Resources"].get("GPU", 0) >= 1 for node in rooms) else "CPU"
    rooms = [node for node in rooms if node["Resources"].get(scarce, 0) >= 1]
    if not rooms:
        cpus = f"{max(1, cpus_per_worker or 1):g} CPUs"
        raise PoolError(f"A pool needs a live node with {cpus}, but none of {len(nodes)} nodes is one; start a node with `ray start`.")
    counts = _spread(workers, [node["Resources"][scarce] for node in rooms])
    seats = []
    for node, count in zip(rooms, counts, strict=True):
        if count != 0:
            has = node["Resources"]
            memory_gib = has.get("memory", math.inf) / 2**30
            plan = plan_workers(int(has["CPU"]), int(has.get("GPU", 0)), memory_gib, count, gpus_per_worker, threads, cpus_per_worker)
            seats += [(plan, str(node["NodeID"]))] * plan.workers
    return seats


def _spread(workers: int | None, sizes: Sequence[float]) -> list[int | None]:
    """`workers` over rooms in proportion to their sizes; None for each where the rooms shall decide."""
    counts = [0] * len(sizes)
    for _ in range(workers or 0):
        counts[min(range(len(sizes)), key=lambda i: (counts[i] + 1) / sizes[i])] += 1
    return [None] * len(sizes) if workers is None else list(counts)


def measuring_node(nodes: Sequence[Mapping[str, Any]], used: Sequence[str], wanted: str | None) -> str:
    """The identity of the node on which latency is measured: the wanted one, or the first that is used. One node, so one kind of device.

    Raises:
        PoolError: no used node has that host name, address or identity.
    """
    if wanted is None:
        return used[0]
    named = {str(node["NodeID"]): (str(node["NodeID"]), node.get("NodeManagerHostname"), node.get("NodeManagerAddress")) for node in nodes}
    found = [node for node in used if wanted in named[node]]
    if not found:
        known = sorted({str(name) for node in used for name in named[node][1:] if name})
        raise PoolError(f"`--latency-node` must be a node with workers, one of {', '.join(known)}, but got {wanted!r}.")
    return found[0]


@dataclass(frozen=True, slots=True)
class Seat:
    """What the gate sees of a worker: its devices, whether it is `idle`, `busy`, `exclusive`, `starting` or `absent`, and whether exclusive
    tasks may run there.
    """

    devices: frozenset[str]
    state: str
    alone: bool = True


def assign(exclusive: Sequence[bool], seats: Sequence[Seat]) -> list[tuple[int, int]]:
    """Which queued tasks start now, and where: pairs of a place in the queue and a seat. `exclusive` tells the queue, oldest first.

    A readers-writer gate a device, first come, first served: an exclusive task starts on a device where all seats are idle; where there
    is none it reserves the quietest device, so that nothing younger starts there. A task that finds no seat holds back all younger
    ones, but an exclusive one for which there is no seat at all (its node is gone) holds back none. So neither kind starves the other: a
    reserved device only drains, and it is given up only for a quieter one.
    """
    states = [seat.state for seat in seats]
    reserved = {device for seat in seats if seat.state == "exclusive" for device in seat.devices}
    pairs: list[tuple[int, int]] = []
    for place, alone in enumerate(exclusive):
        free = [i for i, seat in enumerate(seats) if states[i] != "absent" and not seat.devices & reserved]
        crowds = {i: _crowd(i, seats, states) for i in free if seats[i].alone} if alone else {i: int(states[i] != "idle") for i in free}
        seat = min(crowds, key=lambda i: (crowds[i], i), default=None)
        if alone and not any(seat.alone and state != "absent" for seat, state in zip(seats, states, strict=True)):
            continue
        if seat is None or (crowds[seat] and not alone):
            break
        if not crowds[seat]:
            states[seat] = "exclusive" if alone else "busy"
            pairs.append((place, seat))
        if alone:
            reserved |= seats[seat].devices
    return pairs


def _crowd(seat: int, seats: Sequence[Seat], states: Sequence[str]) -> int:
    """How many seats on the devices of `seat` are at work."""
    return sum(s.devices & seats[seat].devices != frozenset() and t not in ("idle", "absent") for s, t in zip(seats, states, strict=True))
