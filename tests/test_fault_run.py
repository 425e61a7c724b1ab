"""The faults' own means: a training that is held, two copies of one job, what a record shows of them, and a fault that comes too late."""

import json
import os
import threading
from types import SimpleNamespace

import pytest
from fake_evaluator import Fake, serve, setup
from fault_copies import Copies, state
from fault_driver import undisturbed
from fault_record import blamed, often_told
from fault_rows import shown, sign
from fault_run import Run
from study_targets import RECIPE, job_of, open_record

from nas_attn.losses import CRASHES, LOSSES
from nas_attn.protocol import job_key
from nas_attn.record import load_study


@pytest.fixture
def study(tmp_path):
    """A trial's job, a way to begin an attempt at it, and what is told of the copies."""
    holds = tmp_path / "holds"
    holds.mkdir()
    with open_record(tmp_path) as record:
        job = job_of(record.ask(RECIPE))

    def begin(attempt):
        payload = json.dumps({"setup": setup(tmp_path, Fake(holds=str(holds), seconds=0.2)), "job": job.to_dict() | {"attempt": attempt}})
        copy = threading.Thread(target=serve, args=("train", payload))
        copy.start()
        return copy

    return begin, Copies(tmp_path, holds)


def first_of(copies):
    while not copies.under_way():
        pass
    return copies.under_way()[0]


def test_a_held_training_lives_beside_a_second_copy_and_both_end_as_they_are_let_go(study):
    begin, copies = study
    old = begin(1)
    first = first_of(copies)
    assert (first.pid, first.attempt) == (os.getpid(), 1)
    assert copies.hold(first)
    new = begin(2)
    second = copies.next(first, 30)
    assert second.attempt == 2
    assert copies.under_way() == [first, second]
    copies.let_go(second)
    assert copies.under_way() == [first]
    assert copies.order(first, second) == "the second alone ended"
    copies.release(first)
    old.join()
    new.join()
    assert copies.under_way() == []
    assert copies.order(first, second) == "the second ended first"


def test_what_has_ended_cannot_be_held(study):
    begin, copies = study
    begin(1).join()
    (copy,) = copies.told("ended")
    assert not copies.hold(copy)
    assert copies.next(copy, 0.1) is None


def test_a_process_that_is_gone_trains_nothing():
    assert state(os.getpid()) in "RSD"
    assert state(2**22 + 1) == ""


@pytest.mark.parametrize("counter", [CRASHES, LOSSES])
def test_who_was_blamed_is_read_from_the_record(tmp_path, counter):
    with open_record(tmp_path) as record:
        free, hit = record.ask(RECIPE), record.ask(RECIPE)
        record.count(free.number, "attempts", job_key(job_of(free)))
        record.count(hit.number, counter, job_key(job_of(hit)))
    assert blamed(tmp_path, {trial.architecture.digest() for trial in (free, hit)}) == [(hit.number, counter)]
    assert blamed(tmp_path, {free.architecture.digest()}) == []


def test_a_trial_with_two_copies_is_told_once(tmp_path):
    folder = tmp_path / "study"
    undisturbed(folder, 3, Fake())
    snapshot = load_study(folder)
    digests = {snapshot.trials[1].architecture.digest()}
    assert often_told(snapshot, "1.00 told trial 1: 0.3", digests) == []
    assert "told 2 times" in often_told(snapshot, "1.00 told trial 1: 0.3\n2.00 told trial 1: 0.3", digests)[0]
    assert "told 0 times" in often_told(snapshot, "1.00 told trial 11: 0.3", digests)[0]


def a_run(folder, code):
    run = Run(name="worker killed", faults=["worker killed"], seed=0, nodes=None, root=folder)
    run.driver = SimpleNamespace(poll=lambda: code, returncode=code)
    return run


def test_a_fault_after_the_search_s_end_is_no_pass(tmp_path):
    with pytest.raises(AssertionError, match="while enough of the search is left, but 51 of 50"):
        a_run(tmp_path, 0)._await_begun(5)


def test_a_fault_near_the_search_s_end_is_no_pass(tmp_path):
    run = a_run(tmp_path, None)
    (run.folder / "executions.log").write_text("start x\n" * 44)
    with pytest.raises(AssertionError, match="but 7 of 50"):
        run._await_begun(5)


def test_a_fault_whose_search_ended_meanwhile_is_no_pass(tmp_path):
    run = a_run(tmp_path, 0)
    run.kinds = {"worker killed": lambda *_: None}
    with pytest.raises(AssertionError, match="must outlast its faults"):
        run._do(0, "worker killed", None)


def test_whom_an_event_tells_of():
    assert sign("lost trial 13: attempt 1 lost: worker died") == "lost trial 13"
    assert sign("error A study's storage must stay") == "error"


def test_a_table_tells_a_fault_that_hit_nothing_from_one_that_is_over_without_a_word():
    assert shown(["worker killed"] * 3, ["lost trial 3"]) == 1
    assert shown(["network cut"], []) == 0
    assert shown(["clock jumps", "disk full"], []) == ""
