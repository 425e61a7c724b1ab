"""Which workers a pool wants: more while work waits, fewer while none does, no more on a GPU than its memory holds, latency on one kind.

A seat is a place for a worker. Pure functions on what a pool sees of its seats, so that the rules can be tested without a cluster.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

IDLE_S = 60.0
"""How long a worker may have nothing to do, while nothing waits, before its seat is given up and an autoscaler may take the node."""
MEMORY_MARGIN = 1.3
"""What a training may need of a GPU's memory beyond what the base needed: attention keeps activations of its own."""
CONTEXT_MIB = 600.0
"""What a process takes of a GPU before it has computed anything."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A seat as the pool sees it: `state` is `closed` (nobody was asked for), `coming` (asked for), `idle`, `busy`, `barred` (its node
    lacks something) or `failed` (none could be started, and one is tried later). `idle_s` is how long it has been so; `measures` is whether
    it is on the node of the latencies.
    """

    state: str
    idle_s: float = 0.0
    measures: bool = False


def opening(seats: Sequence[Standing], waiting: int) -> list[int]:
    """Closed seats to ask workers for, so that each of `waiting` tasks finds one; the first where none is open at all."""
    ready = sum(seat.state in ("idle", "coming") for seat in seats)
    alive = any(seat.state in ("idle", "coming", "busy") for seat in seats)
    wanted = max(waiting - ready, 0 if alive else 1)
    return [i for i, seat in enumerate(seats) if seat.state == "closed"][:wanted]


def closing(seats: Sequence[Standing], waiting: int, limit_s: float = IDLE_S) -> list[int]:
    """Seats to give up: those idle for `limit_s` while nothing waits. One stays: on the measuring node, if it may."""
    if waiting:
        return []
    alive = [i for i, seat in enumerate(seats) if seat.state in ("idle", "coming", "busy")]
    kept = min(alive, key=lambda i: (not seats[i].measures, seats[i].state == "coming"), default=None)
    spare = [i for i, seat in enumerate(seats) if seat.state in ("idle", "coming", "barred") and seat.idle_s >= limit_s]
    return [i for i in spare if i != kept]


def memory_need_mib(fit: Mapping[str, Any], fitted: Mapping[str, Any], trained: Mapping[str, Any]) -> float:
    """What a training of a candidate is planned to take of a GPU, in MiB, from the `peak_memory_mib` of the base's fit.

    Activations grow with the batch and the image's area; `fitted` and `trained` hold the `batch` and `imgsz` of the fit and of a trial.
    0 where the fit was on a CPU or did not tell.
    """
    peak = float(fit.get("peak_memory_mib") or 0.0)
    if not peak or str(fit.get("device", "cpu")).startswith("cpu"):
        return 0.0
    images = [float(settings["batch"] * settings["imgsz"] ** 2) for settings in (trained, fitted)]
    return peak * max(images[0] / images[1], 0.1) * MEMORY_MARGIN + CONTEXT_MIB


def seats_a_gpu(memory_mib: float | None, need_mib: float) -> float:
    """How many trainings a GPU with that much free memory holds at a time; one at least, infinite where nothing is known."""
    return float(max(1, math.floor(memory_mib / need_mib))) if memory_mib and need_mib else math.inf


def surplus(devices: Sequence[frozenset[str]], most: Mapping[str, float]) -> list[int]:
    """Seats that a device has no memory for, the first of each device kept; `most` names how many a device holds."""
    used: dict[str, int] = {}
    found = []
    for i, names in enumerate(devices):
        if any(used.get(name, 0) >= most.get(name, math.inf) for name in names):
            found.append(i)
        else:
            used.update({name: used.get(name, 0) + 1 for name in names})
    return found


def node_kind(node: Mapping[str, Any], processor: str) -> str:
    """The kind of device that a node computes on, from its entry of `ray.nodes()`: its accelerator, or else its processor's name."""
    named = [name.partition(":")[2] for name in node.get("Resources", {}) if name.startswith("accelerator_type:")]
    return named[0] if named and node["Resources"].get("GPU", 0) else processor


def measuring(node: str, kind: str, used: Sequence[tuple[str, str]]) -> str | None:
    """Where latency is measured from now on, of the (node, kind) pairs that have workers: as before, or on another node of that kind, or,
    where there is none, nowhere until one comes. The first node decides the kind, unless a study has one already.
    """
    if any(name == node and kind in ("", other) for name, other in used):
        return node
    return next((name for name, other in used if not kind or other == kind), None)
