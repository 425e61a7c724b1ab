import math
import random

import pytest

from nas_attn.seats import (
    CONTEXT_MIB,
    MEMORY_MARGIN,
    Standing,
    closing,
    measuring,
    memory_need_mib,
    node_kind,
    opening,
    seats_a_gpu,
    surplus,
)


def stand(*states: str, idle_s: float = 0.0) -> list[Standing]:
    return [Standing(state, idle_s) for state in states]


@pytest.mark.parametrize(
    ("states", "waiting", "expected"),
    [
        (["closed", "closed"], 0, [0]),  # never below one
        (["idle", "closed"], 0, []),
        (["coming", "closed"], 1, []),  # one has been asked for already
        (["coming", "closed", "closed"], 2, [1]),
        (["busy", "closed", "closed"], 5, [1, 2]),
        (["barred", "closed", "closed"], 0, [1]),  # a node without the data is no worker
        (["barred", "barred"], 3, []),
    ],
)
def test_what_waits_asks_for_workers(states: list[str], waiting: int, expected: list[int]) -> None:
    assert opening(stand(*states), waiting) == expected


@pytest.mark.parametrize(
    ("states", "waiting", "expected"),
    [
        (["idle", "idle", "idle"], 0, [1, 2]),  # one stays
        (["idle", "idle"], 1, []),
        (["busy", "idle", "coming", "barred"], 0, [1, 2, 3]),
        (["coming", "idle"], 0, [0]),  # what is there is kept
        (["barred"], 0, [0]),
        (["closed"], 0, []),
    ],
)
def test_idle_workers_are_given_up_while_nothing_waits(states: list[str], waiting: int, expected: list[int]) -> None:
    assert closing(stand(*states, idle_s=60), waiting, 60) == expected
    assert closing(stand(*states, idle_s=59), waiting, 60) == []


def test_the_measuring_worker_stays() -> None:
    seats = [Standing("idle", 99), Standing("idle", 99, measures=True), Standing("idle", 99, measures=True)]
    assert closing(seats, 0, 60) == [0, 2]
    assert closing([Standing("idle", 99), Standing("busy", 99, measures=True)], 0, 60) == [0]


@pytest.mark.parametrize("seed", range(30))
def test_a_pool_grows_with_its_queue_and_shrinks_to_one(seed: int) -> None:
    """Nodes come late, tasks take a while: all run, never more workers than seats, one worker at the end."""
    rng = random.Random(seed)
    most, queue = rng.randint(1, 6), rng.randint(0, 20)
    states, ages = ["closed"] * most, [0.0] * most
    largest = 0
    for _ in range(400):
        for i in opening(stand(*states), queue):
            states[i], ages[i] = "coming", 0.0
        for i, state in enumerate(states):
            ages[i] += 10
            if (state == "coming" and rng.random() < 0.3) or (state == "busy" and rng.random() < 0.5):
                states[i], ages[i] = "idle", 0.0
            elif state == "idle" and queue:
                states[i], ages[i], queue = "busy", 0.0, queue - 1
        largest = max(largest, most - states.count("closed"))
        for i in closing([Standing(s, a) for s, a in zip(states, ages, strict=True)], queue, 60):
            states[i] = "closed"
    assert queue == 0
    assert states.count("closed") == most - 1
    assert largest <= most


def test_a_training_is_planned_with_more_than_the_base_took() -> None:
    fit = {"peak_memory_mib": 1000.0, "device": "NVIDIA H100 80GB HBM3"}
    same = {"batch": 16, "imgsz": 640}
    assert memory_need_mib(fit, same, same) == 1000 * MEMORY_MARGIN + CONTEXT_MIB
    assert memory_need_mib(fit, same, {"batch": 16, "imgsz": 320}) == 250 * MEMORY_MARGIN + CONTEXT_MIB
    assert memory_need_mib({**fit, "device": "cpu, 2 threads"}, same, same) == 0
    assert memory_need_mib({"device": "NVIDIA H100"}, {}, same) == 0  # a fit of the time before it was told


@pytest.mark.parametrize(
    ("memory", "need", "expected"), [(24000, 7000, 3), (24000, 30000, 1), (None, 7000, math.inf), (24000, 0, math.inf), (7000, 7000, 1)]
)
def test_a_gpu_takes_what_its_memory_holds(memory: float | None, need: float, expected: float) -> None:
    assert seats_a_gpu(memory, need) == expected


def test_what_a_gpu_cannot_hold_is_surplus() -> None:
    a, b, both = frozenset({"a"}), frozenset({"b"}), frozenset({"a", "b"})
    assert surplus([a, a, b, b, b], {"a": 1, "b": 2}) == [1, 4]
    assert surplus([a, a, b], {}) == []
    assert surplus([both, a], {"a": 1, "b": 1}) == [1]


def test_a_node_is_of_the_kind_of_its_accelerator_or_processor() -> None:
    assert node_kind({"Resources": {"GPU": 4.0, "CPU": 8.0, "accelerator_type:H100": 1.0}}, "EPYC") == "H100"
    assert node_kind({"Resources": {"CPU": 8.0}}, "EPYC") == "EPYC"
    assert node_kind({}, "EPYC") == "EPYC"


@pytest.mark.parametrize(
    ("node", "kind", "used", "expected"),
    [
        ("", "", [("b", "H100"), ("a", "A10")], "b"),  # the first decides
        ("a", "A10", [("b", "H100"), ("a", "A10")], "a"),
        ("a", "A10", [("b", "H100"), ("c", "A10")], "c"),  # gone: another of the same kind
        ("a", "H100", [("a", "A10"), ("b", "H100")], "b"),  # a study's own kind
        ("a", "A10", [("b", "H100")], None),  # none: measurements wait
        ("a", "", [], None),
    ],
)
def test_latency_stays_on_one_kind(node: str, kind: str, used: list[tuple[str, str]], expected: str | None) -> None:
    assert measuring(node, kind, used) == expected
