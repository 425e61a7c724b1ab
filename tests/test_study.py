"""The search: what it evaluates, tells and refuses, and that a kill at any instant costs nothing (law 6)."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
from fake_evaluator import Fake, executions, measured, score, serve, setup, train
from study_targets import BASE, FakePool, Shelf, load_study, space, stored_study

from nas_attn import files, storage, study
from nas_attn.architecture import Architecture, Placement
from nas_attn.blame import Blame
from nas_attn.errors import InputError, Interrupted, NasAttnError, PoolError, StudyError
from nas_attn.outcome import CHECKPOINT, Failure, Measured, Rejected, Stopped, full_length, outcome_file_text, outcome_to_dict
from nas_attn.pool import InlinePool
from nas_attn.record import Record
from nas_attn.spec import SpaceSpec
from nas_attn.work import Done

TARGET = "fake_evaluator:serve"
MIXED = Fake(fails=10, stops=10, slow=20, bad_build=5)
RACED = Fake(fails=10, slow=20, bad_build=5, curves=True)


@pytest.fixture(autouse=True)
def _no_waits_for_the_disk(monkeypatch):
    monkeypatch.setattr(storage, "PRAGMAS", ("journal_mode=WAL", "synchronous=OFF"))
    monkeypatch.setattr(files, "_fsync", lambda _: None)


def _spec(**changes):
    given = {
        "base": BASE,
        "sites": ["P3"],
        "modules": {"LIA": {"f": [8]}},
        "limits": {"latency_ratio": 1.3},
        "base_seeds": 2,
        "controls": False,
    }
    return SpaceSpec.from_dict({**given, **changes})


def _run(folder, *, trials=6, fake=None, pool=None, spec=None, sampler="random", chosen=None, events=None, **options):
    folder.mkdir(exist_ok=True)
    return study.run(
        folder,
        spec or _spec(),
        chosen or space(),
        setup(folder, fake or Fake()),
        pool or InlinePool(TARGET),
        trials=trials,
        sampler=sampler,
        storage=Shelf.at(folder),
        on_event=None if events is None else events.append,
        **options,
    )


def _counted(snapshot):
    return sum(trial.kind in ("measured", "stopped") for trial in snapshot.trials)


def _digests(snapshot):
    return [trial.architecture.digest() for trial in snapshot.trials]


def _require_law_6(folder, trials):
    """No told trial lost, none RUNNING, none twice, no finished job trained twice, the number that was asked for; the digests."""
    snapshot = load_study(folder)
    assert [trial.number for trial in snapshot.trials] == list(range(len(snapshot.trials)))
    assert not [trial for trial in snapshot.trials if trial.state == "RUNNING"]
    assert _counted(snapshot) == trials
    assert len(set(_digests(snapshot))) == len(snapshot.trials)
    assert not [line for line in executions(folder) if line.startswith("again")]
    for trial in snapshot.trials:
        if trial.kind == "measured":
            wanted = [outcome.map50_95 for outcome in full_length(trial.results).values()]
            assert trial.values["map50_95"] == pytest.approx(sum(wanted) / len(wanted))
    return _digests(snapshot)


# -- a whole search --------------------------------------------------------------------------------------------------------------------


def test_a_search_ends_with_the_base_first_and_the_number_asked_for(tmp_path):
    snapshot = _run(tmp_path / "a", trials=6)
    assert _counted(snapshot) == 6 == len(snapshot.trials)
    base = snapshot.trials[0]
    assert base.architecture == Architecture(BASE)
    assert [job.seed for job, _ in base.results] == [0, 1]
    assert base.values == {
        "map50_95": pytest.approx(sum(o.map50_95 for _, o in base.results) / 2),
        "latency_ratio": 1.0,
    }
    assert [len(trial.results) for trial in snapshot.trials[1:]] == [1] * 5
    assert {job.recipe for trial in snapshot.trials for job, _ in trial.results} == {base.results[0][0].recipe}
    assert snapshot.fit["fingerprint"] == base.results[0][0].recipe.base == "b" * 12
    _require_law_6(tmp_path / "a", 6)


def test_every_kind_of_outcome_is_told_and_only_measured_and_stopped_ones_count(tmp_path):
    snapshot = _run(tmp_path / "a", trials=25, fake=MIXED)
    kinds = {kind: [t for t in snapshot.trials if t.kind == kind] for kind in ("measured", "rejected", "stopped", "failure")}
    assert all(kinds.values())
    assert {t.state for t in kinds["rejected"] + kinds["stopped"]} == {"PRUNED"}
    assert {t.state for t in kinds["failure"]} == {"FAIL"}
    assert _counted(snapshot) == 25 < len(snapshot.trials)
    rejected = kinds["rejected"][0]
    assert rejected.verdict == Rejected(limit="latency_ratio", value=1.5, bound=1.3)
    trained = {line.split()[1].split("/")[0] for line in executions(tmp_path / "a") if line.startswith("start")}
    assert not trained & {t.architecture.digest() for t in kinds["rejected"]}
    assert {t.verdict.stage for t in kinds["failure"]} == {"build", "train"}
    assert isinstance(kinds["stopped"][0].verdict, Stopped)


def test_seeds_are_paired_and_their_mean_is_told(tmp_path):
    snapshot = _run(tmp_path / "a", trials=3, spec=_spec(seeds=2, base_seeds=3))
    assert [[job.seed for job, _ in t.results] for t in snapshot.trials] == [[0, 1, 2], [0, 1], [0, 1]]
    scores = [o.map50_95 for _, o in snapshot.trials[1].results]
    assert scores[0] != scores[1]
    assert snapshot.trials[1].values["map50_95"] == pytest.approx(sum(scores) / 2) == snapshot.trials[1].verdict.map50_95


def test_controls_are_kept_with_the_base_and_never_as_trials(tmp_path):
    harm = Architecture(BASE, (Placement(4, "Blur"),))
    controls = [("help", Architecture(BASE), {"epochs": 18}), ("harm", harm, {})]
    snapshot = _run(tmp_path / "a", trials=3, spec=_spec(controls=True), controls=controls)
    base = snapshot.trials[0]
    assert [(label, job.architecture, job.recipe.epochs) for label, job, _ in base.controls] == [
        ("help", Architecture(BASE), 18),
        ("harm", harm, 6),
    ]
    assert len(base.results) == 2
    assert base.controls[0][2].map50_95 > base.results[0][1].map50_95
    assert len(snapshot.trials) == 3
    assert not _run(tmp_path / "b", trials=2, controls=controls).trials[0].controls


def test_a_failing_control_does_not_end_the_search(tmp_path):
    harm = Architecture(BASE, (Placement(4, "Blur"),))
    fake = Fake(fails=100)
    pool = FakePool(slots=1)
    with pytest.raises(NasAttnError, match="Most trials must succeed"):
        _run(tmp_path / "a", trials=3, fake=fake, spec=_spec(controls=True), controls=[("harm", harm, {})], pool=pool)
    base = load_study(tmp_path / "a").trials[0]
    assert base.kind == "measured"
    assert isinstance(base.controls[0][2], Failure)


def test_a_control_that_equals_a_job_of_the_base_counts_as_both(tmp_path):
    snapshot = _run(tmp_path / "a", trials=2, spec=_spec(controls=True), controls=[("same", Architecture(BASE), {})])
    assert len(snapshot.trials[0].results) == 2
    assert len(snapshot.trials[0].controls) == 1
    assert _counted(snapshot) == 2


def test_further_objectives_are_told(tmp_path):
    objectives = {"map50_95": "maximize", "latency_ratio": "minimize", "params_m": "minimize"}
    snapshot = _run(tmp_path / "a", trials=2, spec=_spec(objectives=objectives))
    assert list(snapshot.trials[1].values) == list(snapshot.objectives) == list(objectives)
    assert snapshot.trials[1].values["params_m"] == 2.6


def test_an_exhausted_space_ends_the_search(tmp_path):
    events = []
    small = space(sites=2, sizes=1, most=1)
    snapshot = _run(tmp_path / "a", trials=50, chosen=small, events=events)
    assert len(snapshot.trials) == small.size == 5
    assert events[-1].kind == "exhausted"
    assert _run(tmp_path / "a", trials=50, chosen=small) == snapshot


def test_events_tell_the_whole_story_in_order(tmp_path):
    events = []
    _run(tmp_path / "a", trials=2, events=events)
    base = ["measured", "train", "trained", "train", "trained", "told"]
    assert [event.kind for event in events] == ["fit", "fitted", "asked", *base, "asked", "measured", "train", "trained", "told"]
    assert [event.done for event in events if event.kind == "told"] == [1, 2]
    assert {event.total for event in events} == {2}
    assert events[-1].trial.kind == "measured"


# -- racing ----------------------------------------------------------------------------------------------------------------------------


def _race(folder, **options):
    return _run(folder, **{"trials": 30, "fake": RACED, "fidelity": "racing", "spec": _spec(proxy={"epochs": 9}), **options})


def _epochs(snapshot):
    """Epochs that were trained for the candidates' first seeds."""
    return sum(max((job.epochs or 9 for job, _ in trial.results), default=0) for trial in snapshot.trials[1:])


def test_a_race_stops_only_what_would_have_been_dominated_and_keeps_what_it_showed(tmp_path):
    snapshot = _race(tmp_path / "a")
    _require_law_6(tmp_path / "a", 30)
    stopped = [trial for trial in snapshot.trials if trial.kind == "stopped"]
    ended = [trial for trial in snapshot.trials if trial.kind == "measured"]
    assert len(stopped) >= 5
    assert ended[0].number == 0
    assert [job.epochs for job, _ in ended[0].results] == [None, None]
    for trial in stopped:
        assert (trial.state, trial.values) == ("PRUNED", None)
        rungs = [job.epochs for job, _ in trial.results]
        assert rungs == [1, 3][: len(rungs)]
        assert trial.verdict == Stopped(rung=rungs[-1], curve=trial.results[-1][1].curve)
        assert len(trial.verdict.curve) == rungs[-1]
        final = score(replace(trial.results[0][0], epochs=None), RACED).map50_95
        assert any(o.values["map50_95"] > final and o.values["latency_ratio"] <= trial.cost.latency.ratio for o in ended)
    for trial in ended[1:]:
        assert [job.epochs for job, _ in trial.results] == [1, 3, None]
        assert trial.values["map50_95"] == score(trial.results[-1][0], RACED).map50_95 == trial.verdict.map50_95
    full = _run(tmp_path / "full", trials=30, fake=RACED, spec=_spec(proxy={"epochs": 9}))
    assert _digests(full) == _digests(snapshot)
    assert _epochs(snapshot) < 0.8 * _epochs(full)
    assert not [*(tmp_path / "a").rglob(CHECKPOINT)]


def test_a_race_is_decided_again_as_it_was(tmp_path):
    first = _race(tmp_path / "a")
    assert _story(first) == _story(_race(tmp_path / "b"))
    for trials in (7, 15, 16, 30):
        again = _race(tmp_path / "c", trials=trials)
    assert _story(again) == _story(first)


@pytest.mark.parametrize("seed", range(3))
def test_many_slots_race_too(tmp_path, seed):
    pool = FakePool(slots=4, seed=seed, lose={"train": seed % 2})
    snapshot = _race(tmp_path / "a", pool=pool)
    _require_law_6(tmp_path / "a", 30)
    assert pool.largest == 4
    assert {trial.kind for trial in snapshot.trials} >= {"measured", "stopped"}
    assert not [*(tmp_path / "a").rglob(CHECKPOINT)]


def test_the_next_free_worker_goes_to_the_best_of_those_that_wait(tmp_path):
    class Grudging(FakePool):
        """Six slots when trials are asked, then one: all six wait at the first rung."""

        def wait(self, timeout_s):
            self.slots = 1 if len(load_study(tmp_path / "a").trials) > 6 else 6
            return super().wait(timeout_s)

    pool = Grudging(slots=6)
    _race(tmp_path / "a", pool=pool, trials=7, fake=Fake(curves=True))
    trials = load_study(tmp_path / "a").trials
    order = [task.key.split("/")[1] for task in pool.seen if task.kind == "train" and "-e3/" in task.key]
    shown = {str(t.number): (t.results[0][1].map50_95, -t.cost.latency.ratio) for t in trials[1:]}
    assert len(order) >= 3
    for ahead, behind in itertools.combinations(order, 2):
        assert not all(b > a for a, b in zip(shown[ahead], shown[behind], strict=True))


def test_further_seeds_of_a_raced_trial_wait_for_the_end_of_the_first(tmp_path):
    snapshot = _race(tmp_path / "a", spec=_spec(proxy={"epochs": 9}, seeds=2), pool=FakePool(slots=3), trials=12)
    for trial in snapshot.trials[1:]:
        if trial.kind == "measured":
            assert [(job.seed, job.epochs) for job, _ in trial.results] == [(0, 1), (0, 3), (0, None), (1, None)]
            scores = [outcome.map50_95 for _, outcome in trial.results[2:]]
            assert trial.values["map50_95"] == pytest.approx(sum(scores) / 2)


def test_rungs_may_be_chosen_and_a_race_is_a_setting(tmp_path):
    spec = _spec(proxy={"epochs": 9, "rungs": [2, 9]})
    snapshot = _race(tmp_path / "a", trials=3, spec=spec)
    assert [job.epochs for job, _ in snapshot.trials[1].results] == [2, None]
    with pytest.raises(StudyError, match=r"settings\.fidelity: racing \(study\), absent \(now\)"):
        _race(tmp_path / "a", trials=3, spec=spec, fidelity="full")
    with pytest.raises(InputError, match="one of full, racing, but got 'fast'"):
        _race(tmp_path / "b", fidelity="fast")
    assert not (tmp_path / "b" / "study.db").exists()


# -- repeats ---------------------------------------------------------------------------------------------------------------------------


def _fewest(snapshot, pending):
    """The measured trial with the fewest seeds, and its next one."""
    seeds = {t.number: {job.seed for job, _ in t.results} | pending.get(t.number, set()) for t in snapshot.trials if t.kind == "measured"}
    number = min(seeds, key=lambda number: (len(seeds[number]), number))
    return number, max(seeds[number]) + 1


def _seeds(snapshot):
    return [[job.seed for job, _ in trial.results] for trial in snapshot.trials]


def test_repeats_follow_the_trials_and_refine_what_was_told(tmp_path):
    folder = tmp_path / "a"
    before = _run(folder, trials=4)
    snapshot = _run(folder, trials=4, repeats=5, next_repeat=_fewest)
    assert _seeds(before) == [[0, 1], [0], [0], [0]]
    assert _seeds(snapshot) == [[0, 1, 2], [0, 1, 2], [0, 1], [0, 1]]
    for trial, told in zip(snapshot.trials, before.trials, strict=True):
        scores = [score(job).map50_95 for job, _ in trial.results]
        assert trial.values["map50_95"] == pytest.approx(sum(scores) / len(scores))
        assert trial.values["latency_ratio"] == told.values["latency_ratio"]
        assert (trial.verdict, trial.seconds) == (told.verdict, 2.0 * len(scores))
    assert [t.values for t in stored_study(folder).trials] == [list(t.values.values()) for t in before.trials]
    assert snapshot == load_study(folder) == _run(folder, trials=4, repeats=5, next_repeat=_fewest) == _run(folder, trials=4)
    with Record.open(folder, settings=snapshot.settings, objectives=snapshot.objectives, space=space(), sampler="random", seed=0) as record:
        assert tuple(record.trials.values()) == snapshot.trials
    more = _run(folder, trials=5, repeats=6, next_repeat=_fewest)
    assert _seeds(more) == [[0, 1, 2], [0, 1, 2], [0, 1], [0, 1], [0, 1]]
    assert len([line for line in executions(folder) if line.startswith("start")]) == 2 + 4 + 6
    _require_law_6(folder, 5)


def test_a_chooser_that_has_enough_ends_the_repeats(tmp_path):
    asked = []

    def twice(snapshot, pending):
        asked.append(pending)
        return _fewest(snapshot, pending) if len(asked) < 3 else None

    snapshot = _run(tmp_path / "a", trials=3, repeats=50, next_repeat=twice)
    assert sum(map(len, _seeds(snapshot))) == 2 + 2 + 2
    assert asked == [{}, {}, {}]
    assert _seeds(_run(tmp_path / "b", trials=3, repeats=50)) == [[0, 1], [0], [0]]


@pytest.mark.parametrize("seed", range(2))
def test_repeats_keep_every_slot_busy_and_the_chooser_sees_what_is_under_way(tmp_path, seed):
    pool, seen = FakePool(slots=3, seed=seed, repeat=True, lose={"train": 1}), []

    def chooser(snapshot, pending):
        seen.append(sum(map(len, pending.values())))
        return _fewest(snapshot, pending)

    snapshot = _run(tmp_path / "a", trials=4, pool=pool, repeats=8, next_repeat=chooser)
    assert sorted(map(len, _seeds(snapshot))) == [3, 3, 3, 4]
    assert max(seen) == 2
    assert pool.largest == 3
    _require_law_6(tmp_path / "a", 4)


def test_a_repeat_that_fails_is_spent_and_changes_no_value(tmp_path):
    before = _run(tmp_path / "a", trials=3)
    snapshot = _run(tmp_path / "a", trials=3, pool=FakePool(slots=2, lose={"train": 3}), repeats=2, next_repeat=_fewest)
    failed = [outcome for trial in snapshot.trials for _, outcome in trial.results if isinstance(outcome, Failure)]
    assert [failure.stage for failure in failed] == ["worker", "worker"]
    assert [trial.values for trial in snapshot.trials] == [trial.values for trial in before.trials]
    assert _run(tmp_path / "a", trials=3, repeats=2, next_repeat=_fewest) == snapshot


@pytest.mark.usefixtures("every_storage")
def test_a_repeat_that_was_under_way_is_adopted_or_run_again(tmp_path):
    folder = tmp_path / "a"
    first = _run(folder, trials=3)

    class Dying(FakePool):
        def wait(self, _):
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        _run(folder, trials=3, pool=Dying(slots=2), repeats=2, next_repeat=_fewest)
    left = replace(first.trials[1].results[0][0], seed=1, attempt=1)
    file = left.folder(folder) / "outcome.json"
    file.parent.mkdir(parents=True)
    file.write_text(outcome_file_text(left, measured(0.77)))

    def nobody(*_):
        raise AssertionError("the budget is spent")

    snapshot = _run(folder, trials=3, repeats=2, next_repeat=nobody)
    assert _seeds(snapshot) == [[0, 1], [0, 1], [0, 1]]
    assert snapshot.trials[1].results[1] == (left, measured(0.77))
    assert snapshot.trials[2].results[1][0].attempt == 2


@pytest.mark.parametrize(("choice", "message"), [((1, 0), "has had 0"), ((9, 1), "trial 9 was chosen"), ((1, -1), "has had -1")])
def test_a_choice_that_is_none_is_refused(tmp_path, choice, message):
    with pytest.raises(InputError, match=message):
        _run(tmp_path / "a", trials=2, repeats=1, next_repeat=lambda *_: choice)
    with pytest.raises(InputError, match="repeats >= 0"):
        _run(tmp_path / "b", repeats=-1)


# -- workers ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
def test_many_slots_are_kept_busy_and_evaluate_the_same_set_in_any_order(tmp_path, seed):
    alone = _digests(_run(tmp_path / "one", trials=12, fake=MIXED))
    pool = FakePool(slots=4, seed=seed)
    _run(tmp_path / "four", trials=12, fake=MIXED, pool=pool)
    assert _require_law_6(tmp_path / "four", 12) == alone
    assert pool.largest == 4
    assert all(task.exclusive == (task.kind == "measure") for task in pool.seen)
    assert all(task.deadline_s >= study.DEADLINE_S for task in pool.seen if task.kind != "fit")


@pytest.mark.parametrize("kind", ["measure", "train", "fit"])
def test_a_lost_worker_costs_an_attempt(tmp_path, kind):
    events = []
    snapshot = _run(tmp_path / "a", trials=4, pool=FakePool(slots=2, lose={kind: 2}), events=events)
    assert _require_law_6(tmp_path / "a", 4)
    assert {t.kind for t in snapshot.trials} == {"measured"}
    assert [event for event in events if event.kind == "lost"]
    if kind == "train":
        assert {job.attempt for t in snapshot.trials for job, _ in t.results} == {3}


@pytest.mark.parametrize(
    ("cause", "times", "words"),
    [("crash", 2, "ended its worker 2"), ("node", 3, "lost its node 3")],
)
def test_a_job_that_is_lost_too_often_fails_its_trial_and_the_search_goes_on(tmp_path, monkeypatch, cause, times, words):
    poison = _digests(_run(tmp_path / "look", trials=3))[1]
    pool = FakePool(slots=2)
    whole = pool.wait

    def wait(timeout_s):
        dead = [task for task in pool.queue if task.kind == "train" and poison in task.key]
        if dead:
            pool.queue.remove(dead[0])
            return [Done(dead[0].key, None, "worker died: SIGKILL", cause)]
        return whole(timeout_s)

    monkeypatch.setattr(pool, "wait", wait)
    snapshot = _run(tmp_path / "a", trials=5, pool=pool)
    failed = next(t for t in snapshot.trials if t.architecture.digest() == poison)
    assert failed.verdict.stage == "worker"
    assert words in failed.verdict.error
    assert len([task for task in pool.seen if poison in task.key]) == times
    assert _counted(snapshot) == 5


def test_whatever_is_away_for_however_long_is_nobodys_failure(tmp_path, monkeypatch):
    """Fit, measurements and trainings, each lost more often than a job may be begun: a node without its data is tried again and again."""
    pool, whole = FakePool(slots=2), []
    wait = pool.wait

    def lose_first(timeout_s):
        whole[:] = [task for task in pool.queue if sum(task.key.rsplit("/", 1)[0] == t.key.rsplit("/", 1)[0] for t in pool.seen) <= 21]
        if not whole:
            return wait(timeout_s)
        pool.queue.remove(whole[0])
        return [Done(whole[0].key, None, "the data set is away", "preempted" if len(pool.seen) % 2 else "data")]

    monkeypatch.setattr(pool, "wait", lose_first)
    snapshot = _run(tmp_path / "a", trials=3, pool=pool)
    assert _require_law_6(tmp_path / "a", 3) == _digests(snapshot)
    assert [trial.kind for trial in snapshot.trials] == ["measured"] * 3
    assert {job.attempt for trial in snapshot.trials for job, _ in trial.results} == {22}


def test_a_trial_with_a_failed_seed_is_told_when_its_other_jobs_have_come_back_or_were_lost(tmp_path, monkeypatch):
    pool = FakePool(slots=3)
    whole = pool.wait

    def wait(timeout_s):
        own = [task for task in pool.queue if task.key.startswith("train/1/")]
        if not own:
            return whole(timeout_s)
        pool.queue.remove(own[0])
        seed = json.loads(own[0].payload)["job"]["seed"]
        failure = outcome_to_dict(Failure(stage="train", error="diverged"))
        return [Done(own[0].key, json.dumps(failure), None) if seed == 0 else Done(own[0].key, None, "worker died")]

    monkeypatch.setattr(pool, "wait", wait)
    snapshot = _run(tmp_path / "a", trials=4, pool=pool, spec=_spec(seeds=2))
    assert snapshot.trials[1].verdict == Failure(stage="train", error="diverged")
    assert len([task for task in pool.seen if task.key.startswith("train/1/")]) == 2
    assert _counted(snapshot) == 4


def test_one_bad_candidate_costs_the_others_of_its_measurement_nothing(tmp_path, monkeypatch):
    poison = _digests(_run(tmp_path / "look", trials=4))[2]
    pool = FakePool(slots=3)
    whole = pool.wait

    def wait(timeout_s):
        def kills(task):
            return task.kind == "measure" and any(
                Architecture.from_dict(a).digest() == poison for a in json.loads(task.payload)["architectures"]
            )

        dead = [task for task in pool.queue if kills(task)]
        if dead:
            pool.queue.remove(dead[0])
            return [Done(dead[0].key, None, "deadline of 3600 s passed", "deadline")]
        return whole(timeout_s)

    monkeypatch.setattr(pool, "wait", wait)
    snapshot = _run(tmp_path / "a", trials=4, pool=pool)
    failed = [t for t in snapshot.trials if t.kind == "failure"]
    assert [t.architecture.digest() for t in failed] == [poison]
    assert failed[0].verdict.stage == "deadline"
    assert _counted(snapshot) == 4


def test_a_lost_worker_that_had_left_its_outcome_is_not_run_again(tmp_path):
    snapshot = _run(tmp_path / "a", trials=4, pool=FakePool(slots=2, lose={"train": 1}, leave_file=True))
    _require_law_6(tmp_path / "a", 4)
    assert {job.attempt for t in snapshot.trials for job, _ in t.results} == {1}


@pytest.mark.parametrize("when", ["before the next attempt", "while the next attempt waits"])
def test_what_a_lost_copy_leaves_in_the_end_counts(tmp_path, monkeypatch, when):
    """As after a network that was cut: the copy that was thought lost ends by itself, after the driver has looked for its outcome."""
    pool, lost = FakePool(slots=2, lose={"train": 1}), []
    wait, submit = pool.wait, pool.submit

    def note(timeout_s):
        flying = {task.key: task for task in pool.queue}
        done = wait(timeout_s)
        lost.extend(flying[one.key].payload for one in done if one.lost)
        return done

    def end_lost(*_):
        while lost:
            serve("train", lost.pop())

    def end_lost_and_submit(task):
        submit(task)
        end_lost()

    monkeypatch.setattr(pool, "wait", note)
    if when == "before the next attempt":
        blamed = Blame.failure
        monkeypatch.setattr(Blame, "failure", lambda *given: (end_lost(), blamed(*given))[1])
    else:
        monkeypatch.setattr(pool, "submit", end_lost_and_submit)
    _run(tmp_path / "a", trials=4, pool=pool)
    _require_law_6(tmp_path / "a", 4)
    found = [line for line in executions(tmp_path / "a") if line.startswith("found")]
    assert bool(found) == (when == "while the next attempt waits")


def test_duplicate_and_late_answers_change_nothing(tmp_path):
    events = []
    _run(tmp_path / "a", trials=6, pool=FakePool(slots=3, repeat=True), events=events)
    _require_law_6(tmp_path / "a", 6)
    assert [event for event in events if event.kind == "late"]


@pytest.mark.parametrize(
    "text",
    ["[]", "{}", '{"kind": "rejected", "limit": "x", "value": 1.0, "bound": 0.5}', '{"kind": "measured", "map50_95": NaN}'],
)
@pytest.mark.parametrize("times", [1, 2])
def test_an_answer_that_is_no_outcome_is_a_loss_and_the_second_one_a_failure(tmp_path, monkeypatch, text, times):
    pool, spoilt = FakePool(slots=1), Counter()
    whole = pool.wait

    def wait(timeout_s):
        done = whole(timeout_s)
        if len(load_study(tmp_path / "a").trials) == 2 and done[0].key.startswith("train") and spoilt["train"] < times:
            spoilt["train"] += 1
            (file,) = [*(tmp_path / "a" / "trials").glob(f"{done[0].key.split('/', 2)[2]}/outcome.json")]
            file.unlink()  # a worker that answers nonsense has left none
            return [replace(done[0], result=text)]
        return done

    monkeypatch.setattr(pool, "wait", wait)
    events = []
    snapshot = _run(tmp_path / "a", trials=3, pool=pool, events=events)
    lost = [event.message for event in events if event.kind == "lost"]
    assert len(lost) == times
    assert all("A training must" in message for message in lost)
    if times == 1:
        assert [t.kind for t in snapshot.trials] == ["measured"] * 3
        return
    assert [t.kind for t in snapshot.trials] == ["measured", "failure", "measured", "measured"]
    assert snapshot.trials[1].verdict.error.startswith("answered nonsense or ended its worker 2 times, which is not tried again; the last:")


@pytest.mark.parametrize("spoil", [lambda text: text.replace('"params_m": 2.6', '"params_m": NaN', 1), lambda _: '{"costs": []}'])
def test_a_measurement_that_makes_no_sense_costs_only_what_is_measured_alone_a_trial(tmp_path, monkeypatch, spoil):
    pool = FakePool(slots=3)
    whole, keys = pool.wait, []

    def wait(timeout_s):
        done = whole(timeout_s)
        key = done[0].key
        keys.extend([key] * key.startswith("measure/"))
        return [replace(done[0], result=spoil(done[0].result))] if key.startswith(("measure/1-2-3/", "measure/2/")) else done

    monkeypatch.setattr(pool, "wait", wait)
    snapshot = _run(tmp_path / "a", trials=4, pool=pool)
    assert "measure/1-2-3/1" in keys, "three are asked for at once, and measured together"
    assert [key for key in keys if key.startswith("measure/2/")] == ["measure/2/2", "measure/2/3"], "alone, and once more"
    assert [t.kind for t in snapshot.trials] == ["measured", "measured", "failure", "measured", "measured"]
    assert "A measurement must answer with its costs" in snapshot.trials[2].verdict.error


def test_a_pool_that_forgets_a_task_is_an_error(tmp_path, monkeypatch):
    pool = FakePool()
    monkeypatch.setattr(pool, "wait", lambda _: [])
    with pytest.raises(PoolError, match="must answer for every task"):
        _run(tmp_path / "a", pool=pool)


# -- what ends a search ----------------------------------------------------------------------------------------------------------------


def test_a_fit_that_fails_ends_it(tmp_path):
    with pytest.raises(NasAttnError, match="its fit failed: train: no labels"):
        _run(tmp_path / "a", fake=Fake(fit_fails=True))
    with pytest.raises(NasAttnError, match="3 attempts were lost; the last: worker died"):
        _run(tmp_path / "b", pool=FakePool(lose={"fit": 3}))


def test_a_base_that_fails_ends_it_with_the_reason(tmp_path):
    with pytest.raises(NasAttnError, match="The base must be measured before any candidate, but: worker: lost its node 3 times"):
        _run(tmp_path / "a", pool=FakePool(lose={"train": 3}))
    (base,) = load_study(tmp_path / "a").trials
    assert base.state == "FAIL"
    with pytest.raises(NasAttnError, match="lost its node 3 times"):
        _run(tmp_path / "a")


def test_a_base_over_its_own_limit_ends_it(tmp_path):
    with pytest.raises(NasAttnError, match=r"params_m = 2.6 is over the limit of 2"):
        _run(tmp_path / "a", spec=_spec(limits={"params_m": 2.0}))


def test_too_many_failures_end_it_with_the_last_one(tmp_path):
    with pytest.raises(NasAttnError, match=r"but 1\d failed; the last: train: CUDA out of memory"):
        _run(tmp_path / "a", trials=5, fake=Fake(fails=100), pool=FakePool(slots=3))
    assert "RUNNING" not in {t.state for t in load_study(tmp_path / "a").trials}


def test_limits_that_nothing_keeps_end_it(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "MAX_REJECTIONS", 15)
    with pytest.raises(NasAttnError, match=r"15 in a row did not; the last: latency_ratio = 1\.5 is over the limit of 1\.3"):
        _run(tmp_path / "a", trials=5, fake=Fake(slow=100))
    assert len(load_study(tmp_path / "a").trials) == 16


def test_bad_input_is_refused_before_there_is_a_study(tmp_path):
    with pytest.raises(InputError, match="trials >= 1"):
        _run(tmp_path / "a", trials=0)
    with pytest.raises(InputError, match="Did you mean 'random'"):
        _run(tmp_path / "b", sampler="randm")
    assert not [*tmp_path.glob("*/study.db")]


# -- going on --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("every_storage")
def test_more_trials_may_be_asked_for_later_and_nothing_else_may_change(tmp_path):
    few = _digests(_run(tmp_path / "a", trials=3))
    more = _digests(_run(tmp_path / "a", trials=7))
    assert more[:3] == few
    assert more == _digests(_run(tmp_path / "b", trials=7))
    assert executions(tmp_path / "a").count("fit") == 1
    with pytest.raises(StudyError, match=r"settings\.spec\.proxy\.epochs: 6 \(study\), 7 \(now\)"):
        _run(tmp_path / "a", spec=_spec(proxy={"epochs": 7}))
    with pytest.raises(StudyError, match=r"settings\.sampler: random \(study\), tpe \(now\)"):
        _run(tmp_path / "a", sampler="tpe")
    with pytest.raises(StudyError, match=r"settings\.space: "):
        _run(tmp_path / "a", chosen=space(sites=5))
    with pytest.raises(StudyError, match=r"settings\.setup\.fake\.fails: 0 \(study\), 1 \(now\)"):
        _run(tmp_path / "a", fake=Fake(fails=1))
    assert _digests(_run(tmp_path / "a", trials=7)) == more


def test_a_moved_study_goes_on(tmp_path):
    _run(tmp_path / "a", trials=3)
    (tmp_path / "a").rename(tmp_path / "b")
    assert _counted(_run(tmp_path / "b", trials=5)) == 5


def test_a_long_setting_is_kept_by_its_digest(tmp_path):
    big = {"graph": {"backbone": [[-1, 1, "Conv", [64, 3, 2]]] * 100}}
    for expected in (None, "sha256:"):
        options = setup(tmp_path, **big)
        if expected is None:
            study.run(tmp_path, _spec(), space(), options, InlinePool(TARGET), trials=1)
            assert load_study(tmp_path).settings["setup"]["graph"].startswith("sha256:")
        else:
            options["graph"]["backbone"].append([-1, 1, "Conv", [8, 3, 2]])
            with pytest.raises(StudyError, match=r"settings\.setup\.graph: sha256:\w+ \(study\), sha256:\w+ \(now\)"):
                study.run(tmp_path, _spec(), space(), options, InlinePool(TARGET), trials=1)


def test_a_fit_of_a_study_that_is_gone_is_not_taken_over(tmp_path):
    stale = tmp_path / "a" / "base" / "fit.json"
    stale.parent.mkdir(parents=True)
    stale.write_text("{}")
    _run(tmp_path / "a", trials=1)
    assert not stale.exists()
    stale.write_text("{}")
    _run(tmp_path / "a", trials=2)
    assert stale.exists()


@pytest.mark.usefixtures("every_storage")
def test_outcome_files_are_adopted_and_torn_ones_run_again(tmp_path):
    whole = _run(tmp_path / "whole", trials=4)
    folder, pool = tmp_path / "a", FakePool(slots=1)
    before = pool.wait

    def wait(timeout_s):
        if len(load_study(folder).trials) == 3 and any(task.kind == "train" for task in pool.queue):
            raise KeyboardInterrupt
        return before(timeout_s)

    pool.wait = wait
    with pytest.raises(Interrupted, match="Stopped with 2 of 4 trials"):
        _run(folder, trials=4, pool=pool)
    running = load_study(folder).trials[2]
    assert running.state == "RUNNING"
    job = replace(whole.trials[2].results[0][0], attempt=1)
    file = job.folder(folder) / "outcome.json"
    file.parent.mkdir(parents=True)
    events = []
    file.write_text(outcome_file_text(job, measured(0.77))[:-9])
    other = replace(job, attempt=7).folder(folder) / "outcome.json"
    other.parent.mkdir(parents=True)
    other.write_text(outcome_file_text(job, measured(0.66)))
    snapshot = _run(folder, trials=4, events=events)
    assert snapshot.trials[2].values["map50_95"] == 0.66
    assert [e.message.split(":")[0][-len("1/outcome.json") :] for e in events if e.kind == "unusable"] == ["1/outcome.json"]
    assert [e.trial.number for e in events if e.kind == "adopted"] == [2]
    assert _digests(snapshot) == _digests(whole)


@pytest.mark.usefixtures("every_storage")
def test_a_kill_of_the_driver_is_not_a_loss_of_the_worker_but_not_for_ever(tmp_path, monkeypatch):
    folder = tmp_path / "a"

    class Dying(FakePool):
        def wait(self, timeout_s):
            if any(task.kind == "train" and task.key.startswith("train/1/") for task in self.queue):
                raise KeyboardInterrupt
            return super().wait(timeout_s)

    for _ in range(5):
        with pytest.raises(Interrupted):
            _run(folder, trials=3, pool=Dying(slots=1))
    snapshot = _run(folder, trials=3)
    assert snapshot.trials[1].kind == "measured"
    assert snapshot.trials[1].results[0][0].attempt == 6
    monkeypatch.setattr(study, "MAX_ATTEMPTS", 4)
    for _ in range(4):
        with pytest.raises(Interrupted):
            _run(tmp_path / "b", trials=3, pool=Dying(slots=1))
    snapshot = _run(tmp_path / "b", trials=3)
    assert snapshot.trials[1].verdict == Failure(stage="worker", error="4 attempts began, and none of them ended")
    assert _counted(snapshot) == 3


# -- law 6 -----------------------------------------------------------------------------------------------------------------------------


class _Killed(BaseException):
    """As abrupt as an exception can be: nothing in the package catches it."""


POINTS = ["add", "count_many", "save_costs", "save_result", "tell", "save_fit", "drop_checkpoints", "begin_repeat", "save_repeat"]
LONG = {"proxy": {"epochs": 9}}


def _story(snapshot):
    """What became of every trial, with every seed and rung."""
    trained = [[(job.seed, job.epochs, outcome) for job, outcome in trial.results] for trial in snapshot.trials]
    verdicts = [(trial.kind, trial.verdict, trial.values) for trial in snapshot.trials]
    return [*zip(_digests(snapshot), verdicts, trained, strict=True)]


@pytest.mark.usefixtures("every_storage")
@pytest.mark.parametrize(
    ("sampler", "when", "options"),
    [
        ("random", "before", {"fake": MIXED}),
        ("tpe", "after", {"fake": MIXED}),
        ("random", "before", {"fake": RACED, "fidelity": "racing", "spec": _spec(**LONG)}),
        ("tpe", "after", {"fake": RACED, "fidelity": "racing", "spec": _spec(**LONG), "repeats": 6, "next_repeat": _fewest}),
        ("random", "before", {"fake": RACED, "repeats": 9, "next_repeat": _fewest}),
    ],
)
def test_a_driver_killed_at_every_named_point_evaluates_the_very_same(tmp_path, monkeypatch, when, sampler, options):
    trials = 14
    wanted = _story(_run(tmp_path / "whole", trials=trials, sampler=sampler, **options))
    rng, kills = random.Random(f"{when}{sampler}"), 0
    fuse = [0]

    def arm(name):
        original = getattr(Record, name)

        def method(self, *args):
            nonlocal kills
            fuse[0] -= 1
            if fuse[0] == 0 and when == "before":
                kills += 1
                raise _Killed
            result = original(self, *args)
            if fuse[0] == 0:
                kills += 1
                raise _Killed
            return result

        monkeypatch.setattr(Record, name, method)

    for name in [*POINTS, "ask_many"]:
        arm(name)
    while True:
        fuse[0] = rng.randint(1, 9)
        try:
            snapshot = _run(tmp_path / "killed", trials=trials, sampler=sampler, **options)
        except _Killed:
            continue
        break
    assert kills > 10
    assert _require_law_6(tmp_path / "killed", trials) == [digest for digest, _, _ in wanted]
    assert _story(snapshot) == wanted
    assert not [*(tmp_path / "killed").rglob(CHECKPOINT)]


def _drive(folder, trials, slots):
    # In a child: as a user's command, with nothing in the way of the signal.
    pool = InlinePool(TARGET) if slots == 1 else FakePool(slots=slots, seed=os.getpid())
    _run(folder, trials=trials, fake=replace(MIXED, seconds=0.01), pool=pool)


def _kill_until_done(folder, trials, slots, rng, longest_s):
    kills = 0
    while True:
        process = get_context("fork").Process(target=_drive, args=(folder, trials, slots), daemon=True)
        process.start()
        # Longer and longer: on a busy machine a driver that never got anywhere would use up the attempts of one job.
        process.join(rng.uniform(0.02, longest_s * (1 + kills / 4)) if kills < 60 else None)
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
            continue
        assert process.exitcode == 0
        return kills


@pytest.mark.usefixtures("every_storage")
@pytest.mark.parametrize("slots", [1, 3])
def test_a_study_killed_at_random_moments_loses_nothing(tmp_path, slots):
    wanted = _digests(_run(tmp_path / "whole", trials=12, fake=replace(MIXED, seconds=0.01)))
    folder = tmp_path / "killed"
    kills = _kill_until_done(folder, 12, slots, random.Random(slots), longest_s=0.3)
    assert kills > 1
    assert _require_law_6(folder, 12) == wanted


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_a_study_killed_at_random_moments_many_times_loses_nothing(tmp_path, seed):
    wanted = _digests(_run(tmp_path / "whole", trials=30, fake=replace(MIXED, seconds=0.01)))
    folder = tmp_path / "killed"
    assert _kill_until_done(folder, 30, 1 + seed % 4, random.Random(seed), longest_s=0.4) > 2
    assert _require_law_6(folder, 30) == wanted


@pytest.mark.slow
def test_a_fresh_process_killed_and_started_again_goes_on(tmp_path):
    code = (
        "import sys, pathlib; sys.path[:0] = [{tests!r}]\nfrom test_study import _drive\n_drive(pathlib.Path({folder!r}), 20, 1)\n"
    ).format(tests=str(Path(__file__).parent), folder=str(tmp_path / "killed"))
    rng, returncode = random.Random(0), None
    for turn in range(40):
        process = subprocess.Popen([sys.executable, "-c", code])
        try:
            # Longer and longer: on a busy machine the imports alone take seconds.
            returncode = process.wait(rng.uniform(1.0, 6.0 + turn))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            continue
        break
    assert returncode == 0
    wanted = _digests(_run(tmp_path / "whole", trials=20, fake=replace(MIXED, seconds=0.01)))
    assert _require_law_6(tmp_path / "killed", 20) == wanted


def test_the_checks_of_law_6_can_fail(tmp_path, monkeypatch):
    snapshot = _run(tmp_path / "a", trials=3)
    with pytest.raises(AssertionError):
        _require_law_6(tmp_path / "a", 4)
    job, outcome = snapshot.trials[1].results[0]
    assert isinstance(outcome, Measured)
    monkeypatch.setattr("fake_evaluator.left_outcome", lambda *_: (None, []))
    train(tmp_path / "a", replace(job, attempt=2), Fake())
    with pytest.raises(AssertionError):
        _require_law_6(tmp_path / "a", 3)


@pytest.mark.usefixtures("every_storage")
def test_interrupts_leave_a_study_that_goes_on(tmp_path):
    folder, calls = tmp_path / "a", []

    class Interrupting(InlinePool):
        def wait(self, timeout_s):
            calls.append(time.monotonic())
            if len(calls) == 6:
                raise KeyboardInterrupt
            return super().wait(timeout_s)

    with pytest.raises(Interrupted, match="the same command goes on") as caught:
        _run(folder, trials=5, pool=Interrupting(TARGET))
    assert caught.value.exit_code == 130
    assert _digests(_run(folder, trials=5)) == _digests(_run(tmp_path / "b", trials=5))
    _require_law_6(folder, 5)


def test_the_fake_evaluator_is_pure(tmp_path):
    payload = json.dumps({"setup": setup(tmp_path, MIXED), "architectures": [a.to_dict() for a in space().enumerate()]})
    assert serve("measure", payload) == serve("measure", payload)
