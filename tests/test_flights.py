"""What a pool holds: slots are counted by trainings, and an answer ends its flight once."""

import json

import pytest
from fake_evaluator import setup
from study_targets import BASE, FakePool, job_of

from nas_attn.architecture import Architecture
from nas_attn.errors import PoolError
from nas_attn.flights import Flight, Flights
from nas_attn.outcome import Job, Trial

TRIAL = Trial(number=3, state="RUNNING", kind=None, architecture=Architecture(BASE))


def test_trainings_take_slots_and_a_measurement_is_told_apart(tmp_path):
    flights = Flights(FakePool(slots=2, repeat=True), setup(tmp_path))
    assert (bool(flights), flights.idle, flights.measures, flights.slots) == (False, True, False, 2)
    flights.train(3, job_of(TRIAL), 5.0)
    flights.measure({4: TRIAL.architecture, 5: TRIAL.architecture}, 1, 7.0)
    assert (flights.idle, flights.measures, [*flights.trainings]) == (True, True, [(3, job_of(TRIAL))])
    flights.train(3, job_of(TRIAL, seed=1), 5.0)
    assert not flights.idle
    assert [flights.holds(number) for number in (2, 3, 4, 5)] == [False, True, True, True]
    ended = [flights.wait() for _ in range(3)]
    assert {flight for (flight, _), _ in ended} == {Flight((3,), job_of(TRIAL)), Flight((3,), job_of(TRIAL, seed=1)), Flight((4, 5))}
    assert {again for _, (again, _) in ended} == {None}
    assert not flights
    with pytest.raises(PoolError, match=r"it forgot \[\]"):
        flights.wait()


def test_tasks_say_all_that_a_worker_needs(tmp_path):
    pool = FakePool(slots=1)
    flights = Flights(pool, setup(tmp_path))
    flights.fit(2)
    flights.measure({4: TRIAL.architecture}, 3, 7.0)
    flights.train(3, job_of(TRIAL, attempt=9), 5.0)
    fit, measure, train = pool.queue
    assert [task.kind for task in pool.queue] == ["fit", "measure", "train"]
    assert (fit.deadline_s, measure.deadline_s, train.deadline_s) == (None, 7.0, 5.0)
    assert (fit.exclusive, measure.exclusive, train.exclusive) == (False, True, False)
    assert [task.key for task in (fit, measure)] == ["fit/2", "measure/4/3"]
    assert train.key == f"train/3/{TRIAL.architecture.digest()}/{job_of(TRIAL).name()}/9"
    assert Job.from_dict(json.loads(train.payload)["job"]) == job_of(TRIAL, attempt=9)
    assert {json.loads(task.payload)["setup"]["folder"] for task in pool.queue} == {str(tmp_path)}
