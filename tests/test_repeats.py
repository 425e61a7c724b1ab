"""A budget of repeats: written down when chosen, spent once, and only on what may be repeated."""

import pytest
from fake_evaluator import measured
from study_targets import OBJECTIVES, RECIPE, job_of, open_record, tell_next

from nas_attn import storage
from nas_attn.errors import InputError
from nas_attn.jobs import Jobs
from nas_attn.outcome import Failure
from nas_attn.repeats import Repeats

JOBS = Jobs(recipe=RECIPE, seeds=1, base_seeds=1, rungs=(2, 6), objectives=OBJECTIVES)


@pytest.fixture
def record(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "PRAGMAS", ("journal_mode=WAL", "synchronous=OFF"))
    with open_record(tmp_path) as record:
        trial = record.ask(RECIPE)
        record.save_result(0, job_of(trial), measured(0.3))
        record.tell(0, Failure(stage="train", error="x"))
        assert tell_next(record, measured(0.3)) == 1
        yield record


def test_a_budget_is_spent_once_and_what_is_begun_is_pending(record):
    seen = []

    def choose(snapshot, pending):
        seen.append((len(snapshot.trials), {number: set(seeds) for number, seeds in pending.items()}))
        return 1, len(seen)

    repeats = Repeats(record, JOBS, 2, choose)
    begun = [repeats.begin(), repeats.begin()]
    assert begun == [(1, job_of(record.trials[1], seed=seed)) for seed in (1, 2)]
    assert all(job.epochs is None for _, job in begun)  # a repeat runs to its end, also where trials race
    assert repeats.unfinished() == begun
    record.save_repeat(*begun[0], measured(0.2))
    assert repeats.unfinished() == begun[1:]
    assert repeats.begin() is None
    assert seen == [(2, {}), (2, {1: {1}})]
    assert Repeats(record, JOBS, 3, choose).begin() == (1, job_of(record.trials[1], seed=3))
    assert Repeats(record, JOBS, 9, lambda *_: None).begin() is None


@pytest.mark.parametrize(("choice", "message"), [((0, 5), "trial 0 was chosen"), ((7, 1), "trial 7 was chosen"), ((1, -1), "has had -1")])
def test_what_may_not_be_repeated_is_refused_and_not_begun(record, choice, message):
    with pytest.raises(InputError, match=message):
        Repeats(record, JOBS, 2, lambda *_: choice).begin()
    assert record.repeats == {}


def test_no_seed_is_begun_twice(record):
    repeats = Repeats(record, JOBS, 9, lambda *_: (1, 4))
    number, job = repeats.begin()
    with pytest.raises(InputError, match="trial 1 has had 4"):
        repeats.begin()
    record.save_repeat(number, job, measured(0.2))
    with pytest.raises(InputError, match="trial 1 has had 4"):
        repeats.begin()
