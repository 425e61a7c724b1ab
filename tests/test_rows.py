"""Trials as rows: what is written in few statements is what Optuna's own functions write and read."""

import threading

import optuna
import pytest
import sqlalchemy
from optuna.distributions import CategoricalDistribution
from optuna.samplers import RandomSampler
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial
from study_targets import optunas_storage

from nas_attn.rows import PlainRows, TableRows, rows_of, running_trial

GENES = {
    "2.module": CategoricalDistribution(("none", "LIA")),
    "2.LIA.f": CategoricalDistribution((8, 16, 0.5)),
    "b": CategoricalDistribution((True, False)),
}
CHOICES = {"2.module": "LIA", "2.LIA.f": 0.5, "b": True}


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def study(request, tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}" if request.param == "sqlite" else request.getfixturevalue("postgres").fresh()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optunas_storage(url)
    directions = [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE]
    optuna.create_study(storage=storage, study_name="other", directions=directions).add_trial(running_trial(CHOICES, GENES, {}, {}))
    return optuna.create_study(storage=storage, study_name="own", directions=directions, sampler=RandomSampler(seed=0)), storage


def fill(rows):
    rows.add(0, [running_trial(CHOICES, GENES, {"digest": str(number)}, {"generation": number}) for number in range(3)])
    rows.add(3, [create_trial(state=TrialState.COMPLETE, values=[float("inf"), 2.0], params=CHOICES, distributions=GENES)])
    rows.set([(0, "cost", {"a": 0.1}), (1, "cost", {"a": 0.3}), (0, "cost", {"a": 0.2}), (2, "late", [None, "ü"])])
    rows.finish(0, TrialState.COMPLETE, [0.1, 0.2], {"kind": "measured"}, {"latency": -0.5, "size": 1})
    rows.finish(1, TrialState.PRUNED, None, {"kind": "rejected"}, {"latency": 0.5})


def story(trials):
    return [
        (t.number, t.state, t.values, t.params, t.distributions, t.user_attrs, t.system_attrs, t.datetime_complete is None) for t in trials
    ]


def times(trials):
    return [(t.datetime_start, t.datetime_complete) for t in trials]


@pytest.mark.parametrize("kind", [TableRows, PlainRows])
def test_what_is_written_is_what_optuna_reads(study, kind):
    own, storage = study
    rows = kind(own, storage)
    fill(rows)
    read = rows.trials()
    theirs = optuna.load_study(study_name="own", storage=storage).get_trials()
    assert story(read) == story(theirs)
    assert times(read) == times(theirs)
    assert [t.state.name for t in read] == ["COMPLETE", "PRUNED", "RUNNING", "COMPLETE"]
    assert [t.values for t in read] == [[0.1, 0.2], None, None, [float("inf"), 2.0]]
    assert list(read[0].params) == list(GENES)
    assert read[0].user_attrs == {"digest": "0", "cost": {"a": 0.2}, "kind": "measured"}
    assert read[0].constraints == {"latency": -0.5, "size": 1}
    assert read[2].user_attrs == {"digest": "2", "late": [None, "ü"]}


@pytest.mark.parametrize("kind", [TableRows, PlainRows])
def test_what_is_written_twice_counts_once(study, kind):
    own, storage = study
    rows = kind(own, storage)
    fill(rows)
    before = story(rows.trials())
    rows.add(3, [create_trial(state=TrialState.COMPLETE, values=[9.0, 9.0], params=CHOICES, distributions=GENES)])
    rows.finish(0, TrialState.FAIL, None, {"kind": "failure"}, {"latency": 9.0})
    rows.set([])
    rows.add(4, [])
    assert story(rows.trials()) == before


def test_another_driver_of_the_same_study_finds_its_trials(study):
    own, storage = study
    fill(TableRows(own, storage))
    TableRows(own, storage).finish(2, TrialState.FAIL, None, {"kind": "failure"}, {})
    assert [t.state.name for t in own.get_trials()] == ["COMPLETE", "PRUNED", "FAIL", "COMPLETE"]
    assert [t.state.name for t in optuna.load_study(study_name="other", storage=storage).get_trials()] == ["RUNNING"]


def test_trials_whose_first_try_ends_late_are_not_added_twice(postgres):
    """The server may still be about to end a transaction that its driver gave up: the next try waits for that."""
    url, template = postgres.fresh(), running_trial(CHOICES, GENES, {}, {})
    own = optuna.create_study(storage=optunas_storage(url), study_name="own", sampler=RandomSampler(seed=0))
    first, second = (optunas_storage(url) for _ in range(2))
    given_up, reached, go_on = TableRows(own, first), threading.Event(), threading.Event()

    def late(_):
        reached.set()
        go_on.wait(60)

    sqlalchemy.event.listen(first.engine, "commit", late)
    thread = threading.Thread(target=given_up.add, args=(0, [template]))
    thread.start()
    assert reached.wait(60)
    timer = threading.Timer(0.5, go_on.set)
    timer.start()
    again = TableRows(own, second)
    again.add(0, [template])
    thread.join()
    timer.join()
    assert [trial.number for trial in again.trials()] == [0]


def test_a_storage_that_has_no_tables_is_written_by_optunas_functions(study):
    own, storage = study
    assert isinstance(rows_of(own, storage), TableRows)
    memory = optuna.storages.InMemoryStorage()
    other = optuna.create_study(storage=memory, study_name="own", directions=own.directions, sampler=RandomSampler(seed=0))
    rows = rows_of(other, memory)
    assert isinstance(rows, PlainRows)
    fill(rows)
    fill(rows_of(own, storage))
    assert story(rows.trials()) == story(rows_of(own, storage).trials())
