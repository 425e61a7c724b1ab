"""The record: one storage study, its mirror and the outcome files, and what a kill between any two writes leaves."""

import json
from dataclasses import replace

import optuna
import pytest
from fake_evaluator import cost, measured
from optuna.trial import TrialState
from study_targets import BASE, OBJECTIVES, RECIPE, SETTINGS, Shelf, job_of, load_study, open_record, space, stored_study, tell_next

from nas_attn import files, ledger, rows, storage
from nas_attn.architecture import Architecture
from nas_attn.errors import StudyError
from nas_attn.outcome import Failure, Rejected, Stopped, outcome_file_text
from nas_attn.record import latency_kind


@pytest.fixture(autouse=True)
def _no_waits_for_the_disk(monkeypatch):
    monkeypatch.setattr(storage, "PRAGMAS", ("journal_mode=WAL", "synchronous=OFF"))
    monkeypatch.setattr(files, "_fsync", lambda _: None)


@pytest.fixture(autouse=True)
def _in_every_storage(every_storage):
    pass


def test_the_four_outcomes_have_their_states_kinds_and_constraints(tmp_path):
    with open_record(tmp_path) as record:
        numbers = [
            tell_next(record, measured(0.3)),
            tell_next(record, Rejected(limit="latency_ratio", value=1.5, bound=1.3), cost(1.5)),
            tell_next(record, Stopped(rung=1, curve=({"epoch": 1.0},))),
            tell_next(record, Failure(stage="train", error="out of memory")),
        ]
    assert numbers == [0, 1, 2, 3]
    trials = stored_study(tmp_path).trials
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
    with open_record(tmp_path) as record:
        assert record.constraints(cost(1.31, width=0.02))["latency_ratio"] < 0 < record.constraints(cost(1.33, width=0.02))["latency_ratio"]
        assert record.constraints(cost(1.0, params_m=4.5))["params_m"] == pytest.approx(0.5)
        assert record.constraints(None) == {}


def test_what_is_recorded_is_read_back_equal(tmp_path):
    with open_record(tmp_path) as record:
        record.save_fit({"fingerprint": "b", "curve": [{"epoch": 1.0}]})
        trial = record.add(Architecture(BASE), RECIPE)
        record.save_cost(0, cost(1.0))
        for seed in range(2):
            assert record.save_result(0, job_of(trial, seed), measured(0.3))
        assert record.save_control(0, "help", job_of(trial, 9), measured(0.4))
        record.tell(0, measured(0.3))
        kept = dict(record.trials)
        snapshot = record.snapshot()
    assert snapshot == load_study(tmp_path)
    assert dict(enumerate(snapshot.trials)) == kept
    assert snapshot.fit == {"fingerprint": "b", "curve": [{"epoch": 1.0}]}
    assert (snapshot.name, snapshot.objectives, snapshot.settings) == (tmp_path.name, OBJECTIVES, SETTINGS)
    assert snapshot.trials[0].seconds == 4.0
    with open_record(tmp_path) as record:
        assert dict(record.trials) == kept


def test_an_ask_is_one_running_trial_with_everything_in_it(tmp_path):
    with open_record(tmp_path) as record:
        trial = record.ask(RECIPE)
        (stored,) = stored_study(tmp_path).trials
    assert stored.state == TrialState.RUNNING
    assert stored.params == space().encode(trial.architecture)
    assert stored.user_attrs["digest"] == trial.architecture.digest()
    assert stored.user_attrs["architecture"] == trial.architecture.to_json()
    assert stored.user_attrs["recipe"]["epochs"] == 6


def test_no_architecture_has_two_trials_until_the_space_is_exhausted(tmp_path):
    small = space(sites=2, sizes=1, most=2)
    with open_record(tmp_path, space=small) as record:
        record.add(Architecture(BASE), RECIPE)
        with pytest.raises(StudyError, match="at most one trial"):
            record.add(Architecture(BASE), RECIPE)
        while record.ask(RECIPE) is not None:
            pass
        digests = [t.architecture.digest() for t in record.trials.values()]
    assert len(digests) == len(set(digests)) == small.size == 9


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_a_record_that_is_reopened_after_every_trial_asks_the_same(tmp_path, sampler):
    def reopened(record, folder):
        record.close()
        return open_record(folder, sampler=sampler)

    def ask(folder, at):
        record = open_record(folder, sampler=sampler)
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
    with open_record(tmp_path) as record:
        trial = record.ask(RECIPE)
        record.save_cost(0, cost(1.1))
        assert record.save_result(0, job_of(trial), measured(0.3))
        assert not record.save_result(0, job_of(trial, attempt=2), measured(0.9))
        assert record.save_control(0, "help", job_of(trial), measured(0.3))
        assert not record.save_control(0, "help", job_of(trial), measured(0.9))
        assert record.tell(0, measured(0.3))
        assert not record.tell(0, measured(0.9))
        assert not record.save_result(0, job_of(trial, seed=1), measured(0.9))
        assert record.trials[0].results == ((job_of(trial), measured(0.3)),)
    assert load_study(tmp_path).trials[0].values["map50_95"] == 0.3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_objective_that_is_not_finite_is_refused_before_tell(tmp_path, value):
    with open_record(tmp_path) as record:
        record.ask(RECIPE)
        record.save_cost(0, cost(value, width=0.0)) if value != value else record.save_cost(0, cost(value))
        with pytest.raises(StudyError, match="must be finite"):
            record.tell(0, measured(0.3))
        assert record.trials[0].state == "RUNNING"


def test_a_measured_trial_without_cost_is_refused(tmp_path):
    with open_record(tmp_path) as record:
        record.ask(RECIPE)
        with pytest.raises(StudyError, match=r"finite.*latency_ratio.: nan"):
            record.tell(0, measured(0.3))


def test_counters_are_stored_before_they_are_returned(tmp_path):
    with open_record(tmp_path) as record:
        record.ask(RECIPE)
        assert [record.count(0, "attempts", "a") for _ in range(3)] == [1, 2, 3]
        assert record.count(0, "losses", "a") == record.count(0, "attempts", "b") == 1
    with open_record(tmp_path) as record:
        assert record.count(0, "attempts", "a") == 4
        assert record.count(0, "losses", "a") == 2


def test_repeats_are_kept_beside_what_was_told_and_read_back_equal(tmp_path):
    with open_record(tmp_path) as record:
        number = tell_next(record, measured(0.3))
        trial = record.trials[number]
        job = job_of(trial, seed=1)
        assert not record.save_repeat(number, job, measured(0.5))  # nobody began it
        record.begin_repeat(number, 1)
        assert record.repeats == {number: (1,)}
        assert record.count(number, "attempts", "a") == 1
        assert record.save_repeat(number, job, measured(0.5))
        assert not record.save_repeat(number, job, measured(0.9))
        record.begin_repeat(number, 2)
        assert record.count(number, "attempts", "a") == 2
        record.save_repeat(number, job_of(trial, seed=2), Failure(stage="train", error="x"))
        kept = dict(record.trials)
        assert dict(enumerate(record.snapshot().trials)) == kept
    assert kept[number].values == {"map50_95": 0.5, "latency_ratio": 1.1}
    assert [job.seed for job, _ in kept[number].results] == [1, 2]
    assert stored_study(tmp_path).trials[number].values == [0.3, 1.1]
    with open_record(tmp_path) as record:
        assert dict(record.trials) == kept
        assert record.repeats == {number: (1, 2)}
        assert record.count(number, "attempts", "a") == 3


def test_checkpoints_of_a_trial_are_dropped_and_nothing_else(tmp_path):
    with open_record(tmp_path) as record:
        numbers = [tell_next(record, measured(0.3)), tell_next(record, measured(0.3))]
        files = []
        for number in numbers:
            rung = replace(job_of(record.trials[number]), epochs=3)
            for attempt in (1, 2):
                files.append(replace(rung, attempt=attempt).folder(tmp_path) / "checkpoint.pt")
        for file in files:
            file.parent.mkdir(parents=True)
            file.write_text("paused")
            (file.parent / "outcome.json").write_text("{}")
        record.drop_checkpoints([0])
        record.drop_checkpoints([0])
    assert [file.exists() for file in files] == [False, False, True, True]
    assert all((file.parent / "outcome.json").exists() for file in files)


# -- outcome files ---------------------------------------------------------------------------------------------------------------------


def test_the_first_valid_file_of_any_attempt_counts_and_torn_ones_are_named(tmp_path):
    with open_record(tmp_path) as record:
        job = job_of(record.ask(RECIPE))
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
    with open_record(tmp_path) as record:
        job = job_of(record.ask(RECIPE))
        job.folder(tmp_path).mkdir(parents=True)
        (job.folder(tmp_path) / "outcome.json").write_bytes(b"\xff\xfe{")
        outcome, unusable = record.find_outcome(job)
    assert outcome is None
    assert len(unusable) == 1


# -- kills -----------------------------------------------------------------------------------------------------------------------------


class _Killed(BaseException):
    """As abrupt as an exception can be: nothing in the package catches it."""


def _require_tables():
    if str(Shelf.url).startswith("journal"):
        pytest.skip("a journal takes one line after the other, see below")


@pytest.mark.parametrize("point", range(7))
def test_a_kill_between_any_two_lines_of_a_tell_in_a_journal_is_made_good(tmp_path, monkeypatch, point):
    if not str(Shelf.url).startswith("journal"):
        pytest.skip("tables take a tell in one transaction, see below")
    record = open_record(tmp_path)
    trial = record.ask(RECIPE)
    record.save_cost(0, cost(1.1))
    record.save_result(0, job_of(trial), measured(0.3))
    writes, killed = 0, False
    with monkeypatch.context() as patch:
        for name in ("set_trial_user_attr", "set_trial_system_attr", "set_trial_state_values"):
            original = getattr(optuna.storages.JournalStorage, name)

            def write(self, *args, original=original, **options):
                nonlocal writes
                if writes == point:
                    raise _Killed
                writes += 1
                return original(self, *args, **options)

            patch.setattr(optuna.storages.JournalStorage, name, write)
        try:
            record.tell(0, measured(0.3))
        except _Killed:
            killed = True
    assert killed == (point < 5)  # kind, verdict, two constraints, the state
    record.close()
    with open_record(tmp_path) as record:
        assert record.trials[0].state == ("RUNNING" if killed else "COMPLETE")
        assert record.tell(0, measured(0.3)) == killed
    (told,) = stored_study(tmp_path).trials
    assert told.state == TrialState.COMPLETE
    assert told.constraints == pytest.approx({"latency_ratio": -0.22, "params_m": -1.4})


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", ["insert", "update", "_put", "_add_values", "write_together"])
def test_a_kill_at_any_statement_of_a_tell_is_made_good(tmp_path, monkeypatch, name, when):
    """All statements of a tell are one transaction: none of them counts before the last is done."""
    _require_tables()
    record = open_record(tmp_path)
    trial = record.ask(RECIPE)
    record.save_cost(0, cost(1.1))
    record.save_result(0, job_of(trial), measured(0.3))
    owner = ledger if name == "write_together" else rows.TableRows if name.startswith("_") else rows
    original = getattr(owner, name)

    def guard(*args):
        if when == "before":
            raise _Killed
        original(*args)
        raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, guard)
        with pytest.raises(_Killed):
            record.tell(0, measured(0.3))
    record.close()
    told = name == "write_together"
    with open_record(tmp_path) as record:
        assert record.trials[0].state == ("COMPLETE" if told else "RUNNING")
        assert record.trials[0].kind == ("measured" if told else None)
        assert record.tell(0, measured(0.3)) != told
        assert (record.counted, record.running) == (1, 0)
    (told,) = stored_study(tmp_path).trials
    assert told.state == TrialState.COMPLETE
    assert told.user_attrs["kind"] == "measured"
    assert told.constraints == pytest.approx({"latency_ratio": -0.22, "params_m": -1.4})
    assert json.loads((tmp_path / "ledger" / "trial-00000.json").read_text())["state"] == "COMPLETE"


@pytest.mark.parametrize("name", ["insert", "_fill", "_put", "_add_values", "write_together"])
def test_a_kill_amid_an_ask_of_many_leaves_all_of_them_or_none(tmp_path, monkeypatch, name):
    _require_tables()
    with open_record(tmp_path / "whole") as record:
        wanted = [trial.architecture for trial in record.ask_many(RECIPE, 5)]
    owner = ledger if name == "write_together" else rows.TableRows if name.startswith("_") else rows
    original = getattr(owner, name)

    def guard(*args):
        original(*args)
        raise _Killed

    record = open_record(tmp_path / "killed", name="killed")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, guard)
        with pytest.raises(_Killed):
            record.ask_many(RECIPE, 3)
    record.close()
    with open_record(tmp_path / "killed", name="killed") as record:
        assert record.running == len(record.trials) == (3 if name == "write_together" else 0)
        record.ask_many(RECIPE, 5 - record.running)
        assert [trial.architecture for trial in record.trials.values()] == wanted


@pytest.mark.parametrize("sampler", ["random", "nsga2", "tpe", "model"])
def test_many_that_are_asked_at_once_are_new_and_the_same_for_the_same_seed(tmp_path, sampler):
    def ask(name, counts):
        with open_record(tmp_path / name, name=name, sampler=sampler) as record:
            for count in counts:
                numbers = [trial.number for trial in record.ask_many(RECIPE, count)]
                record.count_many(numbers, "attempts", "measure")
                record.save_costs({number: cost(1 + number / 100) for number in numbers})
                for number in numbers[:-1]:
                    record.tell(number, measured((number * 37 % 50) / 100))
            return [trial.architecture.digest() for trial in record.trials.values()]

    digests = ask("a", [7, 7, 7, 1])
    assert len(set(digests)) == len(digests) == 22
    assert ask("b", [7, 7, 7, 1]) == digests


def test_optunas_samplers_choose_many_as_one_after_the_other(tmp_path):
    for sampler in ("random", "nsga2", "tpe"):
        with open_record(tmp_path / f"{sampler}-a", name=f"{sampler}-a", sampler=sampler) as record:
            many = record.ask_many(RECIPE, 24)
        with open_record(tmp_path / f"{sampler}-b", name=f"{sampler}-b", sampler=sampler) as record:
            assert [record.ask(RECIPE) for _ in range(24)] == many


def test_many_end_where_the_space_does(tmp_path):
    small = space(sites=2, sizes=1, most=2)
    with open_record(tmp_path, space=small) as record:
        assert len(record.ask_many(RECIPE, 7)) == 7
        assert len(record.ask_many(RECIPE, 7)) == small.size - 7
        assert record.ask_many(RECIPE, 7) == []


def test_opening_a_study_again_writes_nothing_to_its_ledger(tmp_path):
    with open_record(tmp_path) as record:
        tell_next(record, measured(0.3))
        tell_next(record, Rejected(limit="latency_ratio", value=1.5, bound=1.3), cost(1.5))
        record.count(record.ask(RECIPE).number, "attempts", "a")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "ledger").iterdir()}
    with open_record(tmp_path) as record:
        assert record.count(2, "attempts", "a") == 2
    after = {file: file.stat().st_mtime_ns for file in (tmp_path / "ledger").iterdir()}
    assert {file.name for file in after if after[file] != before[file]} == {"trial-00002.json"}


def test_a_study_that_was_killed_while_it_was_begun_is_begun_again(tmp_path, monkeypatch):
    def kill(*_):
        raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(storage.Storage, "_agree", kill)
        with pytest.raises(_Killed):
            open_record(tmp_path)
    with pytest.raises(StudyError, match="must have settings"):
        load_study(tmp_path)
    with open_record(tmp_path) as record:
        assert record.fresh
    with open_record(tmp_path) as record:
        assert not record.fresh


def test_the_device_of_a_study_s_latencies_is_known_before_it_goes_on(tmp_path):
    assert latency_kind(tmp_path, Shelf.at(tmp_path)) == ""
    with open_record(tmp_path) as record:
        number = record.ask(RECIPE).number
        assert latency_kind(tmp_path, Shelf.at(tmp_path)) == ""
        known = cost(1.0)
        record.save_cost(number, replace(known, latency=replace(known.latency, environment={"name": "NVIDIA H100 80GB HBM3"})))
    assert latency_kind(tmp_path, Shelf.at(tmp_path)) == "NVIDIA H100 80GB HBM3"
    (tmp_path / "study.json").write_text("[]")
    assert latency_kind(tmp_path, Shelf.at(tmp_path)) == ""
