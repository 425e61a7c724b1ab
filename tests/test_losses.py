"""Whose fault a loss is, what follows, and what a search waits for."""

from dataclasses import replace

import pytest
from fake_evaluator import measured
from study_targets import RECIPE, job_of, open_record

from nas_attn import losses
from nas_attn.blame import Blame
from nas_attn.errors import NasAttnError
from nas_attn.losses import CRASHES, CROWDED, LOSSES, MAX_CRASHES, MAX_LOSSES, PAUSES_S, Outages, cause_of, reason_of, sentence
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
    assert [sentence(cause).counter for cause in ("preempted", "data", "disk")] == [None] * 3


def test_a_job_fails_when_it_was_lost_too_often_and_says_how():
    crash, node = sentence("crash"), sentence("node")
    assert crash.failure(MAX_CRASHES - 1, "crash", "x") is None
    assert node.failure(MAX_LOSSES - 1, "node", "x") is None
    assert crash.failure(2, "deadline", "deadline of 5 s passed") == Failure(
        stage="deadline", error="ended its worker 2 times, which is not tried again; the last: deadline of 5 s passed"
    )
    assert node.failure(3, "node", "gone").error.startswith("lost its node 3 times")
    assert sentence("preempted").failure(99, "preempted", "x") is None


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


@pytest.fixture
def slept(monkeypatch):
    """The pauses that were made; the clock goes on by them alone."""
    found = []
    monkeypatch.setattr(losses.time, "sleep", found.append)
    monkeypatch.setattr(losses.time, "monotonic", lambda: float(sum(found)))
    return found


AWAY = Done("train", None, "the data set is away", "data")


def test_a_search_waits_while_data_is_away_and_forgets_it_when_something_was_trained(trial, slept):
    record, asked = trial
    told = []
    judge = Blame(record, lambda *words: told.append(words))
    judge.outages.wait(AWAY, sum(slept))
    judge.outages.wait(AWAY, sum(slept))
    judge.spared(asked.number, job_of(asked), measured(0.3))
    judge.outages.wait(AWAY, sum(slept))
    judge.outages.wait(Done("train", None, "worker died", "crash"), sum(slept))
    assert slept == [PAUSES_S[0], PAUSES_S[1], PAUSES_S[0]]
    assert told[0] == ("waits", "the data set is away; looks again in 1 s")


def test_one_outage_under_many_workers_is_one(slept):
    outages = Outages(lambda *_: None)
    for _ in range(3):
        begun = sum(slept)
        for _ in range(20):
            outages.wait(AWAY, begun)
    assert slept == list(PAUSES_S[:3])


def test_what_stays_away_ends_the_search(slept):
    outages = Outages(lambda *_: None)
    for _ in PAUSES_S:
        outages.wait(AWAY, sum(slept))
    with pytest.raises(NasAttnError, match="the data set is away; waited 16 min for it: bring it back, then run the same command"):
        outages.wait(AWAY, sum(slept))
    assert slept == list(PAUSES_S)


def test_a_loss_is_told_without_rays_guesses():
    said = "Worker exit type: SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits. End of file. Some common causes include: (1) x"
    assert reason_of(RuntimeError(said)) == "Worker unexpectedly exits. End of file."
    assert reason_of(RuntimeError("two\nlines")) == "two lines"
