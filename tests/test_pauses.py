"""Which checkpoints a training goes on from, and which are cleared away."""

from dataclasses import replace

from study_targets import BASE, RECIPE

from nas_attn import pauses
from nas_attn.architecture import Architecture
from nas_attn.outcome import CHECKPOINT, Job

JOB = Job(architecture=Architecture(BASE), recipe=RECIPE, seed=0)


def keep(study, job):
    file = job.folder(study) / CHECKPOINT
    file.parent.mkdir(parents=True)
    file.touch()
    return file


def test_a_training_goes_on_from_the_highest_rung_and_of_equal_ones_from_the_latest_attempt(tmp_path):
    low, first, second = (keep(tmp_path, replace(JOB, epochs=e, attempt=a)) for e, a in ((1, 1), (3, 1), (3, 2)))
    whole, beyond = keep(tmp_path, JOB), keep(tmp_path, replace(JOB, epochs=5))
    keep(tmp_path, replace(JOB, seed=1))
    assert pauses.piece(tmp_path, replace(JOB, attempt=2)).resume == (whole, beyond, second, first, low)
    rung = pauses.piece(tmp_path, replace(JOB, epochs=3, attempt=3))
    assert rung.resume == (second, first, low)
    assert (rung.until, rung.save) == (3, replace(JOB, epochs=3, attempt=3).folder(tmp_path) / CHECKPOINT)
    assert rung.identity == pauses.piece(tmp_path, JOB).identity != pauses.piece(tmp_path, replace(JOB, seed=1)).identity


def test_what_has_ended_is_cleared_away_and_other_seeds_stay(tmp_path):
    ours = [keep(tmp_path, replace(JOB, epochs=e, attempt=a)) for e, a in ((1, 1), (None, 1), (None, 2))]
    other = keep(tmp_path, replace(JOB, seed=11))
    pauses.clear(tmp_path, JOB)
    assert not any(file.exists() for file in ours)
    assert other.exists()
