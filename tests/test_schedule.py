import math
import random

import pytest

from nas_attn.errors import InputError, PoolError
from nas_attn.schedule import Plan, Seat, assign, available_cpus, measuring_node, plan_cluster, plan_workers, processor, unit_plan


@pytest.mark.parametrize(
    ("cpus", "memory_gib", "expected"),
    [
        (1, 8.0, Plan(1, 1, 0.0, 1)),
        (2, 8.0, Plan(2, 1, 0.0, 1)),  # two trainings of one thread beat one of two
        (3, 8.0, Plan(3, 1, 0.0, 1)),
        (4, 16.0, Plan(2, 2, 0.0, 2)),
        (8, 32.0, Plan(4, 2, 0.0, 2)),
        (8, 5.0, Plan(2, 4, 0.0, 4)),  # memory decides
        (2, 0.5, Plan(1, 2, 0.0, 2)),  # never fewer than one
        (64, 512.0, Plan(16, 4, 0.0, 4)),
        (4, math.inf, Plan(2, 2, 0.0, 2)),
    ],
)
def test_cpu_plans(cpus: int, memory_gib: float, expected: Plan) -> None:
    assert plan_workers(cpus, 0, memory_gib) == expected


@pytest.mark.parametrize(
    ("cpus", "gpus", "expected"),
    [
        (4, 1, Plan(1, 4, 1.0, 4)),
        (8, 1, Plan(2, 4, 0.5, 4)),
        (16, 1, Plan(2, 8, 0.5, 8)),
        (64, 4, Plan(8, 8, 0.5, 8)),
        (8, 4, Plan(4, 2, 1.0, 2)),
    ],
)
def test_gpu_plans(cpus: int, gpus: int, expected: Plan) -> None:
    assert plan_workers(cpus, gpus, 256.0) == expected


def test_what_is_given_is_kept() -> None:
    assert plan_workers(16, 2, 256.0, workers=6) == Plan(6, 2, 0.3333, 2)
    assert plan_workers(16, 2, 256.0, gpus_per_worker=0.25) == Plan(8, 2, 0.25, 2)
    assert plan_workers(16, 2, 256.0, gpus_per_worker=0, threads=1) == Plan(8, 2, 0.0, 1)
    assert plan_workers(16, 4, 256.0, gpus_per_worker=2) == Plan(2, 8, 2.0, 8)
    assert plan_workers(2, 0, 1.0, workers=5) == Plan(5, 0.4, 0.0, 1)


def test_cpus_a_trial_are_kept() -> None:
    assert plan_workers(16, 0, 256.0, cpus_per_worker=4) == Plan(4, 4, 0.0, 4)
    assert plan_workers(16, 2, 256.0, cpus_per_worker=8) == Plan(2, 8, 0.5, 8)
    assert plan_workers(32, 1, 256.0, cpus_per_worker=12) == Plan(2, 12, 0.5, 8)  # GPUs decide
    assert plan_workers(2, 0, 8.0, workers=3, cpus_per_worker=0.5) == Plan(3, 0.5, 0.0, 1)
    nodes = [node("small", 2), node("a", 8), node("b", 16)]
    assert [name for _, name in plan_cluster(nodes, None, None, None, 8)] == ["a", "b", "b"]
    assert unit_plan(0.5, None, 4) == Plan(1, 4, 0.5, 4)
    assert unit_plan(None, None, None) == Plan(1, 1, 0.0, 1)
    assert processor()


def test_plans_never_exceed_the_machine() -> None:
    for cpus in range(1, 40):
        for gpus in range(5):
            for workers in (None, 1, 2, 3, 5, 7, 11):
                plan = plan_workers(cpus, gpus, 64.0, workers=workers)
                assert plan.workers >= 1
                assert plan.threads >= 1
                assert plan.workers * plan.cpus_per_worker <= cpus
                assert plan.workers * plan.gpus_per_worker <= gpus
                assert cpus - plan.workers * plan.cpus_per_worker < plan.workers  # even shares, whole where they can be


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers >= 1"),
        ({"threads": 0}, "threads >= 1"),
        ({"gpus_per_worker": 1.5}, "whole number"),
        ({"gpus_per_worker": -1}, "whole number"),
        ({"gpus_per_worker": math.nan}, "whole number"),
        ({"gpus_per_worker": 2}, "there are 1; ask for less"),
        ({"workers": 2, "gpus_per_worker": 1}, "there are 1; ask for less"),
        ({"cpus_per_worker": 0}, "cpus_per_worker > 0"),
        ({"cpus_per_worker": math.nan}, "cpus_per_worker > 0"),
        ({"workers": 3, "cpus_per_worker": 2}, "3 workers with 2 CPUs each need 6, but there are 4"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan_workers(4, 1, 16.0, **options)  # type: ignore[arg-type]


def node(name: str, cpus: float, gpus: float = 0, alive: bool = True) -> dict[str, object]:
    resources = {"CPU": cpus, "memory": 64.0 * 2**30} | ({"GPU": gpus} if gpus else {})
    return {"NodeID": name, "Alive": alive, "Resources": resources}


def test_a_cluster_is_planned_node_by_node() -> None:
    nodes = [node("head", 0), node("a", 2), node("b", 8), node("gone", 8, alive=False)]
    seats = plan_cluster(nodes, None, None, None)
    assert [name for _, name in seats] == ["a"] * 2 + ["b"] * 4


def test_a_given_number_of_workers_is_spread_by_size() -> None:
    seats = plan_cluster([node("a", 2), node("b", 6)], 4, None, None)
    assert sorted(name for _, name in seats) == ["a", "b", "b", "b"]
    assert [name for _, name in plan_cluster([node("a", 2), node("b", 6)], 1, None, None)] == ["b"]


def test_with_a_gpu_anywhere_only_gpu_nodes_count() -> None:
    nodes = [node("cpu", 64), node("gpu", 8, gpus=1)]
    assert {name for _, name in plan_cluster(nodes, None, None, None)} == {"gpu"}
    assert {name for _, name in plan_cluster(nodes, None, 0, None)} == {"cpu", "gpu"}


def test_a_cluster_without_room_is_an_error() -> None:
    with pytest.raises(PoolError, match="none of 1 nodes"):
        plan_cluster([node("head", 0)], None, None, None)
    with pytest.raises(InputError, match="there are 0"):
        plan_cluster([node("a", 4)], None, 0.5, None)


@pytest.mark.parametrize(("wanted", "found"), [(None, "b"), ("a", "a"), ("host-b", "b"), ("10.0.0.1", "a")])
def test_latency_is_measured_on_one_node(wanted: str | None, found: str) -> None:
    nodes = [{"NodeID": n, "NodeManagerHostname": f"host-{n}", "NodeManagerAddress": f"10.0.0.{i}"} for i, n in enumerate("abc", 1)]
    assert measuring_node(nodes, ["b", "a", "b"], wanted) == found


def test_a_latency_node_without_workers_is_refused() -> None:
    nodes = [{"NodeID": n, "NodeManagerHostname": f"host-{n}", "NodeManagerAddress": f"10.0.0.{i}"} for i, n in enumerate("abc", 1)]
    with pytest.raises(PoolError, match=r"one of 10\.0\.0\.1, 10\.0\.0\.2, host-a, host-b, but got 'host-c'"):
        measuring_node(nodes, ["b", "a"], "host-c")


def test_exclusive_tasks_run_where_they_may() -> None:
    both = [Seat(A, "idle", alone=False), Seat(B, "idle")]
    assert assign([True, False], both) == [(0, 1), (1, 0)]
    assert assign([True, False], [Seat(A, "idle", alone=False), Seat(B, "busy")]) == [(1, 0)]  # B drains, A is free for others
    assert assign([True], [Seat(A, "idle", alone=False)]) == []


def test_an_exclusive_task_without_any_seat_holds_back_none() -> None:
    """The node of the latencies is gone, and no other is of its kind: trainings go on."""
    assert assign([True, False], [Seat(A, "idle", alone=False), Seat(B, "busy", alone=False)]) == [(1, 0)]
    assert assign([True, False], [Seat(A, "idle", alone=False), Seat(B, "absent")]) == [(1, 0)]


def test_available_cpus_is_at_least_one() -> None:
    assert available_cpus() >= 1


A, B = frozenset({"a"}), frozenset({"b"})


def seats(*states: str, devices: frozenset[str] = A) -> list[Seat]:
    return [Seat(devices, state) for state in states]


@pytest.mark.parametrize(
    ("exclusive", "states", "expected"),
    [
        ([False, False, False], ["idle", "idle"], [(0, 0), (1, 1)]),
        ([False], ["busy", "idle"], [(0, 1)]),
        ([True], ["idle", "idle"], [(0, 0)]),
        ([True, False], ["idle", "idle"], [(0, 0)]),  # nothing beside it
        ([True, False], ["busy", "idle"], []),  # the device drains
        ([False, True, False], ["idle", "idle", "idle"], [(0, 0)]),  # the youngest may not overtake
        ([False], ["exclusive", "idle"], []),
        ([True], ["exclusive", "idle"], []),
        ([True], ["starting", "idle"], []),  # a start is work too
        ([False], ["starting", "idle"], [(0, 1)]),
        ([True], ["absent", "idle"], [(0, 1)]),
        ([False], ["absent"], []),
        ([], ["idle"], []),
        ([True, True], ["idle", "idle"], [(0, 0)]),
    ],
)
def test_assign_on_one_device(exclusive: list[bool], states: list[str], expected: list[tuple[int, int]]) -> None:
    assert assign(exclusive, seats(*states)) == expected


def test_devices_are_gated_one_by_one() -> None:
    both = seats("idle", "idle") + seats("idle", "idle", devices=B)
    assert assign([True, True, True], both) == [(0, 0), (1, 2)]
    assert assign([True, False, False, False], both) == [(0, 0), (1, 2), (2, 3)]
    busier = seats("busy", "busy") + seats("busy", "idle", devices=B)
    assert assign([True, False], busier) == []  # the quieter device, b, is reserved
    assert assign([True, False], seats("busy", "idle") + seats("busy", "busy", devices=B)) == []


def test_a_worker_with_two_devices_closes_both() -> None:
    wide = [Seat(A | B, "idle"), Seat(A, "busy"), Seat(B, "idle")]
    assert assign([True, False], wide) == [(0, 2)]
    assert assign([False], [Seat(A | B, "exclusive"), Seat(A, "idle"), Seat(B, "idle")]) == []


@pytest.mark.parametrize("seed", range(40))
def test_every_task_runs_and_exclusive_ones_run_alone(seed: int) -> None:
    """A simulation: random queues, durations and devices. The gate's promises hold at every tick, and the queue drains in bounded time."""
    rng = random.Random(seed)
    devices = [rng.choice([A, B, A | B]) if seed % 3 else A for _ in range(rng.randint(1, 5))]
    queue = [(rng.random() < 0.4, rng.randint(1, 6)) for _ in range(30)]
    total = sum(ticks for _, ticks in queue)
    running: dict[int, tuple[bool, int]] = {}
    for _ in range(total + 1):
        running = {seat: (alone, left - 1) for seat, (alone, left) in running.items() if left > 1}
        now = [Seat(d, ("exclusive" if running[i][0] else "busy") if i in running else "idle") for i, d in enumerate(devices)]
        pairs = assign([alone for alone, _ in queue], now)
        for place, seat in pairs:
            assert seat not in running
            running[seat] = queue[place]
        queue = [task for place, task in enumerate(queue) if place not in {p for p, _ in pairs}]
        for seat, (alone, _) in running.items():
            others = [devices[other] for other in running if other != seat]
            assert not alone or not any(devices[seat] & other for other in others)
        if not queue:
            return
    pytest.fail(f"{len(queue)} tasks starved")
