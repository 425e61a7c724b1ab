"""A race under losses: what a copy that was thought lost leaves in the end counts at once, also against those that it beats."""

from fake_evaluator import serve
from study_targets import FakePool
from test_study import _no_waits_for_the_disk, _race, _require_law_6, _story

from nas_attn.blame import Blame
from nas_attn.flights import Flights

__all__ = ["_no_waits_for_the_disk"]


def _begun(pool):
    """The trainings that were handed over, whatever their attempt."""
    return {task.key.rsplit("/", 1)[0] for task in pool.seen if task.kind == "train"}


def test_a_loser_is_stopped_when_what_a_lost_copy_left_has_beaten_it(tmp_path, monkeypatch):
    """Six trials at a time, one training at a time: five wait whenever one ends, here by itself and there by the file of a lost copy."""
    monkeypatch.setattr(Flights, "idle", property(lambda self: not self.trainings))
    alone, pool, lost = FakePool(slots=6), FakePool(slots=6, lose={"train": 1}), []
    wanted = _race(tmp_path / "whole", pool=alone)
    wait, blamed = pool.wait, Blame.failure

    def note(timeout_s):
        flying = {task.key: task.payload for task in pool.queue}
        done = wait(timeout_s)
        lost.extend(flying[one.key] for one in done if one.lost)
        return done

    def end_lost_and_blame(*given):
        while lost:
            serve("train", lost.pop())
        return blamed(*given)

    monkeypatch.setattr(pool, "wait", note)
    monkeypatch.setattr(Blame, "failure", end_lost_and_blame)
    snapshot = _race(tmp_path / "lost", pool=pool)
    assert sum(trial.kind == "stopped" for trial in snapshot.trials) >= 5
    assert _story(snapshot) == _story(wanted)
    assert _begun(pool) == _begun(alone), "a loser is not even begun"
    _require_law_6(tmp_path / "lost", 30)
