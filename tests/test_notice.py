"""A node that has said that it will go is given nothing, nor is a worker that was still beginning there when the driver saw it."""

from types import SimpleNamespace

import pytest

from nas_attn.pool import RayPool
from nas_attn.porters import Porters
from nas_attn.schedule import Plan
from nas_attn.seating import Seating, Slot


@pytest.mark.parametrize(("state", "seat"), [("draining", "absent"), ("alive", "idle")])
def test_a_worker_that_begins_on_a_node_after_its_notice_gets_no_work(state, seat):
    pool = object.__new__(RayPool)
    slot = Slot(Plan(1, 1, 0, 1), "one", actor=object(), ref="its start")
    pool._seating, pool._porters, pool._watched = Seating(lambda _: None), Porters(None), float("-inf")
    pool._seating.slots = [slot]
    pool._cluster = SimpleNamespace(states=lambda: {"one": state})
    pool._watch()
    slot.ref = None  # as `_settle` leaves it
    pool._settle_in(slot, {"node": "one", "name": "one", "kind": "cpu", "devices": ["one/cpu"], "annex": ""})
    assert slot.seat().state == seat
