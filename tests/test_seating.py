"""The state that a pool keeps of its seats, with workers that are only said to be there."""

import json
import time
from typing import Any

import pytest

from nas_attn.admission import Admission
from nas_attn.errors import NasAttnError, PoolError
from nas_attn.schedule import Plan, assign
from nas_attn.seating import Seating, Slot
from nas_attn.work import Done, Task

UNIT = Plan(1, 4, 0.5, 4)


def told(node: str, kind: str = "H100", gpu: str = "0") -> dict[str, Any]:
    """What a worker says when it has begun."""
    return {"node": node, "name": f"host-{node} (10.0.0.{node})", "kind": kind, "devices": [f"{node}/{gpu}"]}


def begin(seating: Seating, slot: Slot, node: str, kind: str = "H100") -> Task | None:
    """A worker that is idle from now on."""
    slot.actor, slot.placed, slot.ref, slot.since = object(), True, None, time.monotonic()
    return seating.seat(slot, told(node, kind))


def planned(*nodes: tuple[str, str]) -> tuple[Seating, list[str]]:
    """A pool of one worker on each of some (node, kind), the first measuring; and what it tells."""
    heard: list[str] = []
    seating = Seating(heard.append)
    seating.plan([(UNIT, node) for node, _ in nodes], nodes[0][0])
    for slot in seating.slots:
        slot.actor = object()
    for slot, (node, kind) in reversed(list(zip(seating.slots, nodes, strict=True))):
        begin(seating, slot, node, kind)
    return seating, heard


def test_another_node_measures_only_if_it_is_alike() -> None:
    seating, heard = planned(("1", "H100"), ("2", "A10"), ("3", "H100"))
    assert [slot.alone for slot in seating.slots] == [True, False, False]
    begin(seating, seating.slots[0], "2", "A10")  # its node is gone: Ray has put it beside the second
    assert [slot.alone for slot in seating.slots] == [False, False, True]
    assert heard == ["latency is measured on host-3 (10.0.0.3) from now on, which is alike"]
    begin(seating, seating.slots[2], "2", "A10")
    assert not any(slot.alone for slot in seating.slots)
    assert "latency is measured on H100 alone" in heard[-1]
    begin(seating, seating.slots[1], "4", "H100")
    assert [slot.alone for slot in seating.slots] == [False, True, False]


def test_a_study_that_goes_on_is_measured_on_its_own_kind_if_that_is_there() -> None:
    nodes = (("1", "A10"), ("2", "H100"))
    for kind, latency_node, alone in (("H100", None, [False, True]), ("H100", "host-1", [True, False]), ("L4", None, [True, False])):
        seating, _ = planned(*nodes)
        seating._latency_node = latency_node
        seating.prefer(kind)
        assert [slot.alone for slot in seating.slots] == alone


def test_exclusive_work_moves_on_where_nothing_replaces_a_node_that_died() -> None:
    """Its workers are started anew, and wait for ever where no other node has room for them."""
    seating, heard = planned(("1", "H100"), ("2", "H100"))
    first, second = seating.slots
    first.ref = object()
    seating.look({"1", "2"})
    assert [first.alone, second.alone] == [True, False]
    assert assign([True], [slot.seat() for slot in seating.slots]) == []
    seating.look({"2"})
    assert [first.alone, second.alone] == [False, True]
    assert heard == ["latency is measured on host-2 (10.0.0.2) from now on, which is alike"]
    assert assign([True], [slot.seat() for slot in seating.slots]) == [(0, 1)]
    begin(seating, first, "2")
    assert [first.alone, second.alone] == [True, True]


def test_exclusive_work_moves_on_where_a_worker_fails_to_start() -> None:
    seating, _ = planned(("1", "H100"), ("2", "H100"))
    first, second = seating.slots
    first.ref, first.failures = object(), 1
    seating.look({"1", "2"})
    assert [first.alone, second.alone] == [False, True]
    begin(seating, first, "1")
    first.failures = 0
    seating.look({"1", "2"})
    assert [first.alone, second.alone] == [False, True]  # it stays where it has gone


def test_a_node_without_its_data_rests_while_the_others_work_and_measure() -> None:
    seating, heard = planned(("1", "H100"), ("1", "H100"), ("2", "H100"))
    seats = [slot.seat().state for slot in seating.slots]
    assert seats == ["idle"] * 3
    seating.slots[1].ref, seating.slots[1].task = object(), Task("b", "train", "{}")
    seating.outages.hear("1", "train", Done("a", None, "the data set is away", "data"), 0.0, 0.0)
    seating.rest(0.5)
    assert [slot.seat().state for slot in seating.slots] == ["absent", "busy", "idle"]
    assert [slot.standing(0.5).state for slot in seating.slots] == ["barred", "busy", "idle"]
    assert assign([False, False], [slot.seat() for slot in seating.slots]) == [(0, 2)]
    seating.look({"1", "2"})
    assert [slot.alone for slot in seating.slots] == [False, False, True]
    assert heard == ["latency is measured on host-2 (10.0.0.2) from now on, which is alike"]
    seating.rest(1.0)
    assert [slot.seat().state for slot in seating.slots] == ["idle", "busy", "idle"]


def test_a_search_ends_when_no_node_has_had_its_data_for_too_long() -> None:
    seating, _ = planned(("1", "H100"), ("2", "H100"))
    queue = [Task("a", "train", "{}")]

    def lose(node: str) -> None:
        for count in range(7):
            seating.outages.hear(node, "train", Done("a", None, "the data set is away", "data"), 1000.0 * count, 1000.0 * count)

    lose("1")
    assert seating.changes(queue, 0.0) == ([], []), "the other node works"
    lose("2")
    seating.slots[1].task = Task("b", "train", "{}")
    assert seating.changes(queue, 0.0) == ([], []), "what is under way may have what it needs"
    seating.slots[1].task = None
    assert seating.changes([], 0.0) == ([], [])
    with pytest.raises(NasAttnError, match="the data set is away; waited 16 min"):
        seating.changes(queue, 0.0)


def test_a_worker_that_cannot_be_started_is_tried_again_while_the_others_work() -> None:
    seating, heard = planned(("1", "H100"), ("2", "H100"))
    first, second = seating.slots
    first.ref = object()
    seating.put_off(first, "CUDA error", 1)
    assert heard[0] == "host-1 (10.0.0.1): a worker could not be started; tried again in 1 s: CUDA error"
    assert (first.actor, first.ref, seating.open) == (None, None, 1)
    assert seating.changes([], first.again - 0.01) == ([], [])
    assert seating.changes([], first.again) == ([first], [])
    first.actor, first.ref, second.failures = object(), object(), 1
    with pytest.raises(PoolError, match="A worker could not be started: CUDA error"):
        seating.put_off(first, "CUDA error", 1)


def test_a_seat_that_failed_is_not_opened_at_once() -> None:
    seating = Seating(lambda _: None)
    seating.stretch(UNIT, 2)
    begin(seating, seating.slots[0], "1")
    seating.slots[0].task = seating.slots[0].ref = Task("a", "train", "{}")
    seating.slots[1].actor = seating.slots[1].ref = object()
    seating.put_off(seating.slots[1], "no room", 1)
    waiting = [Task("b", "train", "{}")]
    assert seating.changes(waiting, seating.slots[1].again - 0.01) == ([], [])
    assert seating.changes(waiting, seating.slots[1].again) == ([seating.slots[1]], [])


def test_a_node_that_joins_is_asked_before_it_gets_work() -> None:
    seating, heard = planned(("1", "H100"), ("1", "H100"))
    seating.admission.question = ("check", "{}", lambda done: None if done.result == "{}" else "lacks 3 of 9 images")
    seating.admission.hear("1", "{}", None)
    assert begin(seating, seating.slots[1], "1") is None
    asked = begin(seating, seating.slots[1], "2")
    assert asked is not None
    assert asked.kind == "check"
    seating.hear(seating.slots[1], '{"missing": 3}', None)
    assert seating.slots[1].seat().state == "absent"
    assert heard[-1] == "host-2 (10.0.0.2) gets no work: it lacks 3 of 9 images"
    assert begin(seating, seating.slots[1], "2") is None
    assert seating.slots[1].barred, "it is known already"
    begin(seating, seating.slots[0], "2")
    with pytest.raises(PoolError, match="every node lacks 3 of 9 images"):
        seating.changes([], 0.0)


def test_a_gpu_without_the_memory_gets_fewer_workers() -> None:
    seating, heard = planned(("1", "H100"), ("1", "H100"), ("2", "A10"))
    seating.admission.question = ("check", "{}", lambda _: None)
    seating.admission.hear("1", json.dumps({"memory_mib": 24000.0}), None)
    assert seating.spare() == []
    seating.need(11000.0)
    assert seating.spare() == []
    seating.need(13000.0)
    assert seating.spare() == [seating.slots[1]]
    assert "host-1 (10.0.0.1): a worker fewer, for a training is planned with 13000 MiB" in heard[-1]
    assert [slot.plan.gpus_per_worker for slot in seating.slots] == [1.0, 1.0, 0.5]
    seating.slots[1].empty(0.0)
    assert seating.spare() == []
    assert seating.open == 2
    seating.slots[1].actor, seating.slots[1].devices, seating.slots[1].ref = object(), frozenset({"1/0"}), "a task"
    assert seating.spare() == [], "work that is under way is not thrown away"


def test_seats_are_taken_as_work_waits() -> None:
    heard: list[str] = []
    seating = Seating(heard.append, latency_node="host-2")
    seating.stretch(UNIT, 3)
    assert seating.open == 3
    assert seating.first() == seating.slots[:1]
    begin(seating, seating.slots[0], "1")
    assert not seating.slots[0].alone, "latency waits for the node that the user named"
    assert heard[-1] == "latency is measured on host-2 alone, but no worker is there: measurements wait for one"
    train, measure = Task("a", "train", "{}"), Task("b", "measure", "{}", exclusive=True)
    taken, _ = seating.changes([measure], time.monotonic())
    assert taken == []  # an idle worker is there, if on another node: a second would wait beside it
    seating.slots[0].ref = "what it is asked"
    seating.slots[0].task = Task("node/1", "check", "{}")
    assert seating.changes([train], time.monotonic()) == ([], []), "a worker that begins is one that was asked for"
    seating.slots[0].task = train
    taken, _ = seating.changes([train, train, train, measure], time.monotonic())
    assert taken == seating.slots[1:]
    begin(seating, seating.slots[1], "2")
    assert seating.slots[1].alone
    taken, given_up = seating.changes([], time.monotonic() + 61)
    assert taken == given_up == []
    begin(seating, seating.slots[2], "3")
    _, given_up = seating.changes([], time.monotonic() + 61)
    assert given_up == [seating.slots[2]]
    assert "1 workers given up" in heard[-1]


def test_a_worker_that_was_lost_does_not_answer_for_its_node() -> None:
    admission = Admission(("check", "{}", lambda done: done.lost))
    assert admission.task("1") is not None
    assert not admission.barred("1")
    assert admission.hear("1", None, "cannot be read") == "cannot be read"
    assert admission.barred("1")
    assert admission.complaints() == ["cannot be read"]
    assert Done("node/1", None, "x").key.startswith("node/")
