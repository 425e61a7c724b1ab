"""Whose fault a loss is, what follows, and what a search waits for."""

from dataclasses import replace

import pytest
from fake_evaluator import measured
from study_targets import RECIPE, job_of, open_record

from nas_attn.blame import Blame
from nas_attn.errors import NasAttnError, StudyError
from nas_attn.losses import (
    CRASHES,
    CROWDED,
    LOSSES,
    MAX_CRASHES,
    MAX_LOSSES,
    PAUSES_S,
    SPARED,
    Outages,
    cause_of,
    heard,
    reason_of,
    sentence,
)
from nas_attn.outcome import Failure
from nas_attn.protocol import job_key
from nas_attn.work import Done


@pytest.mark.parametrize(
    ("error", "node", "cause"),
    [
        ("ActorDiedError", "alive", "crash"),
        ("ActorDiedError", "draining", "preempted"),
        ("ActorDiedError", "dead", "node"),
        ("ActorDiedError", "left", "preempted"),
        ("ActorUnavailableError", "alive", "node"),
        ("ActorUnavailableError", "draining", "preempted"),
        ("OutOfMemoryError", "alive", "memory"),
        ("OutOfMemoryError", "draining", "memory"),
        ("OutOfMemoryError", "dead", "node"),
    ],
)
def test_the_cause_follows_from_ray_s_error_and_the_node(error, node, cause):
    assert cause_of([error, "RayError", "Exception"], node) == cause


def test_what_counts_against_a_trial_what_against_its_node_and_what_against_nobody():
    assert {cause: sentence(cause).counter for cause in ("crash", "memory", "deadline", "answer")} == dict.fromkeys(
        ("crash", "memory", "deadline", "answer"), CRASHES
    )
    assert sentence("node").counter == LOSSES
    assert [sentence(cause).counter for cause in ("preempted", "data", "disk")] == [SPARED] * 3


def test_a_job_fails_when_it_was_lost_too_often_and_says_how():
    crash, node = sentence("crash"), sentence("node")
    assert crash.failure(MAX_CRASHES - 1, "crash", "x") is None
    assert node.failure(MAX_LOSSES - 1, "node", "x") is None
    assert crash.failure(2, "deadline", "deadline of 5 s passed") == Failure(
        stage="deadline", error="ended its worker 2 times, which is not tried again; the last: deadline of 5 s passed"
    )
    assert node.failure(3, "node", "gone").error.startswith("lost its node 3 times")
    assert sentence("answer").failure(2, "answer", "x").error.startswith("answered nonsense or ended its worker 2 times, which")
    assert sentence("preempted").failure(99, "preempted", "x") is None


def test_an_answer_that_makes_no_sense_is_a_loss_that_is_blamed_and_any_other_end_stays_what_it_is():
    def read(text):
        if text != "sense":
            raise StudyError("an answer must make sense")

    good, lost = Done("key", "sense", None), Done("key", None, "gone", "node")
    assert (heard(good, read), heard(lost, read)) == (good, lost)
    bad = heard(Done("key", "nonsense", None), read)
    assert bad == Done("key", None, "an answer must make sense", "answer")
    assert sentence(bad.cause).counter == CRASHES


def test_attempts_that_were_lost_through_nobodys_fault_do_not_count(trial):
    record, asked = trial
    judge, key = Blame(record, lambda *_: None), job_key(job_of(asked))
    for _ in range(25):
        record.count(asked.number, "attempts", key)
        assert judge.failure(asked.number, key, AWAY) is None
    record.count(asked.number, "attempts", key)
    assert judge.begun(asked.number, key) == 1


@pytest.fixture
def trial(tmp_path):
    with open_record(tmp_path) as record:
        yield record, record.ask(RECIPE)


def test_lack_of_memory_beside_others_is_no_failure_and_alone_it_is(trial):
    record, asked = trial
    told = []
    judge = Blame(record, lambda *words: told.append(words))
    job, lacks = job_of(asked), Failure(stage="memory", error="CUDA out of memory")
    assert not judge.alone(asked.number, job_key(job))
    assert judge.spared(asked.number, job, lacks)
    assert judge.alone(asked.number, job_key(job))
    assert told[0][0] == "lost"
    assert not judge.spared(asked.number, replace(job, alone=True), lacks)
    assert not judge.spared(asked.number, job, Failure(stage="train", error="diverged"))
    assert not judge.spared(asked.number, job, measured(0.3))


def test_a_worker_that_was_ended_for_lack_of_memory_is_blamed_and_its_job_runs_alone(trial):
    record, asked = trial
    judge, key = Blame(record, lambda *_: None), job_key(job_of(asked))
    killed = Done("train", None, "worker died: memory", "memory")
    assert judge.failure(asked.number, key, killed) is None
    assert record.times(asked.number, CROWDED, key) == 1
    assert judge.failure(asked.number, key, killed).stage == "memory"


def test_counts_outlive_the_driver(tmp_path):
    with open_record(tmp_path) as record:
        asked = record.ask(RECIPE)
        key = job_key(job_of(asked))
        assert Blame(record, lambda *_: None).failure(asked.number, key, Done("train", None, "died", "crash")) is None
    with open_record(tmp_path) as record:
        failure = Blame(record, lambda *_: None).failure(asked.number, key, Done("train", None, "died", "crash"))
    assert failure.error.startswith("ended its worker 2 times")


AWAY = Done("train/1", None, "the data set is away", "data")
WELL = Done("train/1", "{}", None)


def rest(outages, node, now, done=AWAY, kind="train"):
    """A task that a node was given at that moment, and lost at once; for how long the node rests."""
    outages.hear(node, kind, done, now, now)
    return outages.left_s(node, now)


def test_a_node_without_its_data_rests_for_longer_and_longer_and_the_others_do_not():
    outages, now = Outages(), 0.0
    assert outages.hear("a", "train", AWAY, 0.0, 0.0).lost == "the data set is away; looks again in 1 s"
    assert (outages.left_s("a", 0.25), outages.left_s("a", 1.0), outages.left_s("b", 0.0)) == (0.75, 0.0, 0.0)
    for pause in (*PAUSES_S[1:], PAUSES_S[-1]):
        now += 1000.0
        assert rest(outages, "a", now) == pause
    assert rest(outages, "a", now + 2000, Done("train", None, "no room", "disk")) == PAUSES_S[-1]
    assert rest(outages, "a", now + 4000, Done("train", None, "worker died", "crash")) == 0


def test_what_ends_well_ends_an_outage_of_its_own_kind():
    outages = Outages()
    assert rest(outages, "a", 0) == PAUSES_S[0]
    outages.hear("a", "measure", WELL, 5, 5)
    outages.hear("b", "train", WELL, 5, 5)
    assert rest(outages, "a", 10) == PAUSES_S[1]
    outages.hear("a", "train", WELL, 20, 20)
    assert rest(outages, "a", 30) == PAUSES_S[0]


def test_one_outage_under_many_workers_is_one():
    outages, now = Outages(), 0.0
    for pause in PAUSES_S[:3]:
        told = [outages.hear("a", "train", AWAY, now, now + 0.001 * i).lost for i in range(20)]
        assert [text.endswith(f"looks again in {pause:g} s") for text in told] == [True, *[False] * 19]
        now += pause + 0.01


def test_what_stays_away_everywhere_ends_the_search():
    outages = Outages()
    for count in range(len(PAUSES_S) + 1):
        outages.require(("a",), ("train",))
        rest(outages, "a", 1000.0 * count)
    outages.require(("a", "b"), ("train",))
    outages.require(("a",), ("measure",))
    outages.require((), ("train",))
    with pytest.raises(NasAttnError, match="the data set is away; waited 16 min for it: bring it back, then run the same command"):
        outages.require(("a",), ("measure", "train"))
    for count in range(len(PAUSES_S) + 1):
        rest(outages, "", 1000.0 * count)
    assert outages.left_s("b", 6000.0) == PAUSES_S[-1], "the driver's own disk is every node's"
    with pytest.raises(NasAttnError, match="waited 16 min"):
        outages.require(("a", "b"), ("train",))


def test_a_loss_is_told_without_rays_guesses():
    said = "Worker exit type: SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits. End of file. Some common causes include: (1) x"
    assert reason_of(RuntimeError(said)) == "Worker unexpectedly exits. End of file."
    assert reason_of(RuntimeError("two\nlines")) == "two lines"
