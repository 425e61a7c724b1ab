"""The record: one storage study, its mirror and the outcome files, and what a kill between any two writes leaves."""

import json
import os
import sqlite3
import subprocess
import sys
import warnings
from dataclasses import replace
from multiprocessing import get_context

import optuna
import pytest
from optuna.trial import TrialState
from study_targets import BASE, OBJECTIVES, RECIPE, cost, measured, space

from nas_attn import storage
from nas_attn.architecture import Architecture
from nas_attn.errors import InputError, NasAttnError, StudyError
from nas_attn.outcome import Failure, Job, Rejected, Stopped, outcome_file_text
from nas_attn.record import Record, load_study

SETTINGS = {"spec": {"seed": 0, "proxy": {"epochs": 6}}, "space": "abc"}
LIMITS = {"latency_ratio": 1.3, "params_m": 4.0}


def _open(folder, **changes):
    options = {"settings": SETTINGS, "objectives": OBJECTIVES, "space": space(), "sampler": "random", "seed": 0, "limits": LIMITS}
    return Record.open(folder, **{**options, **changes})


def _job(trial, seed=0, attempt=1):
    return Job(architecture=trial.architecture, recipe=RECIPE, seed=seed, attempt=attempt)


def _tell(record, verdict, trial_cost=None):
    trial = record.ask(RECIPE)
    record.save_cost(trial.number, trial_cost or cost(1.1))
    record.tell(trial.number, verdict)
    return trial.number


def _stored(folder):
    url = f"sqlite:///{folder / 'study.db'}"
    return optuna.load_study(study_name=folder.name, storage=url)


def test_the_four_outcomes_have_their_states_kinds_and_constraints(tmp_path):
    with _open(tmp_path) as record:
        numbers = [
            _tell(record, measured(0.3)),
            _tell(record, Rejected(limit="latency_ratio", value=1.5, bound=1.3), cost(1.5)),
            _tell(record, Stopped(rung=1, curve=({"epoch": 1.0},))),
            _tell(record, Failure(stage="train", error="out of memory")),
        ]
    assert numbers == [0, 1, 2, 3]
    trials = _stored(tmp_path).trials
    assert [t.state for t in trials] == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.PRUNED, TrialState.FAIL]
    assert [t.user_attrs["kind"] for t in trials] == ["measured", "rejected", "stopped", "failure"]
    assert [t.values for t in trials] == [[0.3, 1.1], None, None, None]
    for t, excess in zip(trials, (-0.22, 0.18, -0.22, -0.22), strict=True):
        assert t.constraints == pytest.approx({"latency_ratio": excess, "params_m": 2.6 - 4.0})
    loaded = load_study(tmp_path)
    assert [t.kind for t in loaded.trials] == ["measured", "rejected", "stopped", "failure"]
    assert loaded.trials[0].values == {"map50_95": 0.3, "latency_ratio": 1.1}
    assert loaded.trials[1].verdict == Rejected(limit="latency_ratio", value=1.5, bound=1.3)
    assert loaded.trials[3].values is None


def test_a_latency_ratio_is_over_its_limit_only_with_its_whole_interval(tmp_path):
    with _open(tmp_path) as record:
        assert record.constraints(cost(1.31, width=0.02))["latency_ratio"] < 0 < record.constraints(cost(1.33, width=0.02))["latency_ratio"]
        assert record.constraints(cost(1.0, params_m=4.5))["params_m"] == pytest.approx(0.5)
        assert record.constraints(None) == {}


def test_what_is_recorded_is_read_back_equal(tmp_path):
    with _open(tmp_path) as record:
        record.save_fit({"fingerprint": "b", "curve": [{"epoch": 1.0}]})
        trial = record.add(Architecture(BASE), RECIPE)
        record.save_cost(0, cost(1.0))
        for seed in range(2):
            assert record.save_result(0, _job(trial, seed), measured(0.3))
        assert record.save_control(0, "help", _job(trial, 9), measured(0.4))
        record.tell(0, measured(0.3))
        kept = dict(record.trials)
        snapshot = record.snapshot()
    assert snapshot == load_study(tmp_path)
    assert dict(enumerate(snapshot.trials)) == kept
    assert snapshot.fit == {"fingerprint": "b", "curve": [{"epoch": 1.0}]}
    assert (snapshot.name, snapshot.objectives, snapshot.settings) == (tmp_path.name, OBJECTIVES, SETTINGS)
    assert snapshot.trials[0].seconds == 4.0
    with _open(tmp_path) as record:
        assert dict(record.trials) == kept


def test_an_ask_is_one_running_trial_with_everything_in_it(tmp_path):
    with _open(tmp_path) as record:
        trial = record.ask(RECIPE)
        (stored,) = _stored(tmp_path).trials
    assert stored.state == TrialState.RUNNING
    assert stored.params == space().encode(trial.architecture)
    assert stored.user_attrs["digest"] == trial.architecture.digest()
    assert stored.user_attrs["architecture"] == trial.architecture.to_json()
    assert stored.user_attrs["recipe"]["epochs"] == 6


def test_no_architecture_has_two_trials_until_the_space_is_exhausted(tmp_path):
    small = space(sites=2, sizes=1, most=2)
    with _open(tmp_path, space=small) as record:
        record.add(Architecture(BASE), RECIPE)
        with pytest.raises(StudyError, match="at most one trial"):
            record.add(Architecture(BASE), RECIPE)
        while record.ask(RECIPE) is not None:
            pass
        digests = [t.architecture.digest() for t in record.trials.values()]
    assert len(digests) == len(set(digests)) == small.size == 9


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2"])
def test_a_record_that_is_reopened_after_every_trial_asks_the_same(tmp_path, sampler):
    def reopened(record, folder):
        record.close()
        return _open(folder, sampler=sampler)

    def ask(folder, at):
        record = _open(folder, sampler=sampler)
        for number in range(26):
            fate = int(record.ask(RECIPE).architecture.digest(), 16)
            record = reopened(record, folder) if number in at else record
            record.save_cost(number, cost(1 + fate % 400 / 1000))
            over = any(excess > 0 for excess in record.constraints(record.trials[number].cost).values())
            record.tell(number, Rejected(limit="latency_ratio", value=1.4, bound=1.3) if over else measured(fate % 97 / 100))
            record = reopened(record, folder) if number in at else record
        digests = [trial.architecture.digest() for trial in record.trials.values()]
        record.close()
        return digests

    assert ask(tmp_path / "a", ()) == ask(tmp_path / "b", (0, 13, 20, 21, 23))


def test_the_first_result_of_a_job_stands(tmp_path):
    with _open(tmp_path) as record:
        trial = record.ask(RECIPE)
        record.save_cost(0, cost(1.1))
        assert record.save_result(0, _job(trial), measured(0.3))
        assert not record.save_result(0, _job(trial, attempt=2), measured(0.9))
        assert record.save_control(0, "help", _job(trial), measured(0.3))
        assert not record.save_control(0, "help", _job(trial), measured(0.9))
        assert record.tell(0, measured(0.3))
        assert not record.tell(0, measured(0.9))
        assert not record.save_result(0, _job(trial, seed=1), measured(0.9))
        assert record.trials[0].results == ((_job(trial), measured(0.3)),)
    assert load_study(tmp_path).trials[0].values["map50_95"] == 0.3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_objective_that_is_not_finite_is_refused_before_tell(tmp_path, value):
    with _open(tmp_path) as record:
        record.ask(RECIPE)
        record.save_cost(0, cost(value, width=0.0)) if value != value else record.save_cost(0, cost(value))
        with pytest.raises(StudyError, match="must be finite"):
            record.tell(0, measured(0.3))
        assert record.trials[0].state == "RUNNING"


def test_a_measured_trial_without_cost_is_refused(tmp_path):
    with _open(tmp_path) as record:
        record.ask(RECIPE)
        with pytest.raises(StudyError, match=r"finite.*latency_ratio.: nan"):
            record.tell(0, measured(0.3))


def test_counters_are_stored_before_they_are_returned(tmp_path):
    with _open(tmp_path) as record:
        record.ask(RECIPE)
        assert [record.count(0, "attempts", "a") for _ in range(3)] == [1, 2, 3]
        assert record.count(0, "losses", "a") == record.count(0, "attempts", "b") == 1
    with _open(tmp_path) as record:
        assert record.count(0, "attempts", "a") == 4
        assert record.count(0, "losses", "a") == 2


# -- outcome files ---------------------------------------------------------------------------------------------------------------------


def test_the_first_valid_file_of_any_attempt_counts_and_torn_ones_are_named(tmp_path):
    with _open(tmp_path) as record:
        job = _job(record.ask(RECIPE))
        assert record.find_outcome(job) == (None, [])
        whole = outcome_file_text(job, measured(0.3))
        other = outcome_file_text(replace(job, seed=5), measured(0.9))
        texts = {1: whole[:-40], 2: whole.replace("0.3", "NaN"), 3: other, 9: "", 10: whole, 11: outcome_file_text(job, measured(0.7))}
        texts[4] = "[]"
        for attempt, text in texts.items():
            folder = replace(job, attempt=attempt).folder(tmp_path)
            folder.mkdir(parents=True)
            (folder / "outcome.json").write_text(text)
        outcome, unusable = record.find_outcome(job)
    assert outcome == measured(0.3)
    assert [line.split(":")[0].split("/")[-2] for line in unusable] == ["1", "2", "3", "4", "9"]


def test_a_file_that_is_not_text_is_unusable(tmp_path):
    with _open(tmp_path) as record:
        job = _job(record.ask(RECIPE))
        job.folder(tmp_path).mkdir(parents=True)
        (job.folder(tmp_path) / "outcome.json").write_bytes(b"\xff\xfe{")
        outcome, unusable = record.find_outcome(job)
    assert outcome is None
    assert len(unusable) == 1


# -- kills -----------------------------------------------------------------------------------------------------------------------------


class _Killed(BaseException):
    """As abrupt as an exception can be: nothing in the package catches it."""


@pytest.mark.parametrize("point", range(7))
def test_a_kill_between_any_two_writes_of_a_tell_is_made_good(tmp_path, monkeypatch, point):
    writes = 0
    for name in ("set_trial_user_attr", "set_trial_system_attr", "set_trial_state_values"):
        original = getattr(optuna.storages.RDBStorage, name)

        def write(self, *args, original=original, **options):
            nonlocal writes
            if writes == point:
                raise _Killed
            writes += 1
            return original(self, *args, **options)

        monkeypatch.setattr(optuna.storages.RDBStorage, name, write)
    record = _open(tmp_path)
    trial = record.ask(RECIPE)
    writes = -1000
    record.save_cost(0, cost(1.1))
    record.save_result(0, _job(trial), measured(0.3))
    writes = 0
    killed = False
    try:
        record.tell(0, measured(0.3))
    except _Killed:
        killed = True
    assert killed == (point < 5)  # kind, verdict, two constraints, the state
    record.close()
    writes = -1000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with _open(tmp_path) as record:
            assert record.trials[0].state == ("RUNNING" if killed else "COMPLETE")
            assert record.trials[0].kind == (None if killed else "measured")
            assert record.tell(0, measured(0.3)) == killed
    (told,) = _stored(tmp_path).trials
    assert told.state == TrialState.COMPLETE
    assert told.constraints == pytest.approx({"latency_ratio": -0.22, "params_m": -1.4})


def test_a_study_that_was_killed_while_it_was_begun_is_begun_again(tmp_path, monkeypatch):
    def kill(*_):
        raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(storage.Storage, "_agree", kill)
        with pytest.raises(_Killed):
            _open(tmp_path)
    with pytest.raises(StudyError, match="must have settings"):
        load_study(tmp_path)
    with _open(tmp_path) as record:
        assert record.fresh
    with _open(tmp_path) as record:
        assert not record.fresh


# -- who may open it -------------------------------------------------------------------------------------------------------------------


def test_a_second_driver_is_refused_and_a_reader_is_not(tmp_path):
    with _open(tmp_path) as record:
        record.ask(RECIPE)
        with pytest.raises(StudyError, match=f"process {os.getpid()} drives"):
            _open(tmp_path)
        code = f"from nas_attn.record import load_study; print(len(load_study({str(tmp_path)!r}).trials))"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"
    _open(tmp_path).close()


def _hold(folder, pipe):
    _open(folder)
    pipe.send("open")
    pipe.recv()


def test_the_lock_of_a_killed_driver_is_free(tmp_path):
    ours, theirs = get_context("fork").Pipe()
    process = get_context("fork").Process(target=_hold, args=(tmp_path, theirs))
    process.start()
    ours.recv()
    with pytest.raises(StudyError, match=f"process {process.pid} drives"):
        _open(tmp_path)
    process.kill()
    process.join()
    _open(tmp_path).close()


def test_other_settings_are_refused_with_both_values_and_other_keys_are_not_named(tmp_path):
    _open(tmp_path).close()
    changed = {"spec": {"seed": 1, "proxy": {"epochs": 6, "lr0": 0.1}}, "space": "abc"}
    with pytest.raises(StudyError, match="must go on with the settings") as caught:
        _open(tmp_path, settings=changed)
    lines = str(caught.value).splitlines()
    assert lines[1:3] == ["  settings.spec.proxy.lr0: absent (study), 0.1 (now)", "  settings.spec.seed: 0 (study), 1 (now)"]
    assert len(lines) == 4
    with pytest.raises(StudyError, match=r"objectives\.params_m: absent \(study\), minimize \(now\)"):
        _open(tmp_path, objectives={**OBJECTIVES, "params_m": "minimize"})
    _open(tmp_path).close()


def test_one_study_of_a_shared_storage_is_driven_from_one_folder(tmp_path):
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    with _open(tmp_path / "a", storage=url, name="search") as record:
        record.ask(RECIPE)
        with pytest.raises(StudyError, match="driven from the folder that began it, but 'search'"):
            _open(tmp_path / "b", storage=url, name="search")
    with _open(tmp_path / "c", storage=url) as record:
        assert not record.trials
    assert load_study(tmp_path / "a", url).name == "search"
    assert len(load_study(tmp_path / "a", url).trials) == 1
    assert load_study(tmp_path / "c", url).name == "c"
    with pytest.raises(StudyError, match=r"must hold `study.db`"):
        load_study(tmp_path / "a")
    with pytest.raises(StudyError, match="holds one study"):
        _open(tmp_path / "a", storage=url, name="another")


def test_a_moved_study_goes_on_and_one_database_file_is_enough_to_read_it(tmp_path):
    with _open(tmp_path / "a") as record:
        record.ask(RECIPE)
    (tmp_path / "a").rename(tmp_path / "b")
    with _open(tmp_path / "b") as record:
        assert len(record.trials) == 1
        assert record.snapshot().name == "a"
    (tmp_path / "c").mkdir()
    (tmp_path / "b" / "study.db").rename(tmp_path / "c" / "study.db")
    assert len(load_study(tmp_path / "c").trials) == 1


def test_unreadable_studies_are_errors_of_input(tmp_path):
    with pytest.raises(StudyError, match=r"must hold `study.db`"):
        load_study(tmp_path)
    (tmp_path / "study.db").write_text("this is no database, but it is long enough to look like one" * 20)
    with pytest.raises(StudyError, match="must be reachable"):
        load_study(tmp_path)
    (tmp_path / "study.db").write_bytes(b"")
    with pytest.raises(StudyError):
        load_study(tmp_path)


def test_a_password_is_never_printed(tmp_path):
    for url in ("postgresql://me:hunter2@localhost:1/db", "nonsense://me:hunter2@localhost/db", "hunter2"):
        with pytest.raises(StudyError, match="must be reachable") as caught:
            _open(tmp_path, storage=url)
        assert "hunter2" not in str(caught.value)
        assert caught.value.__suppress_context__
    _open(tmp_path).close()


def test_an_unknown_sampler_leaves_no_study_behind(tmp_path):
    with pytest.raises(InputError, match="Known: nsga2, random, tpe"):
        _open(tmp_path / "a", sampler="gp")
    assert not (tmp_path / "a").exists()


# -- the storage -----------------------------------------------------------------------------------------------------------------------


def test_sqlite_runs_in_wal_mode_with_full_synchronisation(tmp_path):
    with _open(tmp_path) as record:
        with record._stored.storage.engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
            assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 60_000
        assert (tmp_path / "study.db-wal").exists()
    with sqlite3.connect(tmp_path / "study.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_a_storage_that_is_away_for_a_moment_costs_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "PAUSES_S", (0.0,) * 4)
    failures = iter([1, 1, 1])
    for name in ("create_new_trial", "set_trial_user_attr", "set_trial_system_attr", "set_trial_state_values"):
        original = getattr(optuna.storages.RDBStorage, name)

        def flaky(self, *args, original=original, **options):
            if next(failures, 0):
                raise optuna.exceptions.StorageInternalError("locked")
            return original(self, *args, **options)

        monkeypatch.setattr(optuna.storages.RDBStorage, name, flaky)
    with _open(tmp_path) as record:
        trial = record.ask(RECIPE)
        for write in (
            lambda: record.save_cost(0, cost(1.1)),
            lambda: record.save_result(0, _job(trial), measured(0.3)),
            lambda: record.tell(0, measured(0.3)),
        ):
            failures = iter([1, 1, 1])
            write()
        assert record.snapshot().trials[0] == record.trials[0]
        failures = iter([1] * 9)
        with pytest.raises(NasAttnError, match="must take writes"):
            record.ask(RECIPE)
        failures = iter([])
        assert record.ask(RECIPE).number == 1


def test_an_add_whose_answer_was_lost_is_not_made_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "PAUSES_S", (0.0,) * 2)
    original = optuna.storages.RDBStorage.create_new_trial
    answers = iter([1])

    def deaf(self, *args, **options):
        result = original(self, *args, **options)
        if next(answers, 0):
            raise optuna.exceptions.StorageInternalError("connection lost after the commit")
        return result

    monkeypatch.setattr(optuna.storages.RDBStorage, "create_new_trial", deaf)
    with _open(tmp_path) as record:
        record.ask(RECIPE)
        record.ask(RECIPE)
        assert [t.number for t in record.snapshot().trials] == [0, 1]


def test_optunas_own_tools_work_on_it(tmp_path):
    with _open(tmp_path) as record:
        _tell(record, measured(0.3))
        _tell(record, Rejected(limit="latency_ratio", value=1.5, bound=1.3), cost(1.5))
        record.ask(RECIPE)
    study = _stored(tmp_path)
    frame = study.trials_dataframe()
    assert list(frame["state"]) == ["COMPLETE", "PRUNED", "RUNNING"]
    assert {"values_map50_95", "values_latency_ratio", "user_attrs_digest", "params_2.module"} <= set(frame.columns)
    assert [t.number for t in study.best_trials] == [0]
    assert json.loads(study.trials[0].user_attrs["architecture"])["base"] == BASE
