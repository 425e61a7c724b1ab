"""What is believed of a study: read from snapshots, permuted and noisy ones included."""

import dataclasses
import random

import pytest
from snapshots import base, failed, placement, rejected, running, snapshot, stopped, trial

from nas_attn import columns, facts, pick
from nas_attn.claim import SURE
from nas_attn.facts import front_trials
from nas_attn.posterior import believe, next_repeat


def drawn(gain, count=24, seed=0, seeds_of_base=5, noise=0.004):
    """A study in which LSKA at row 9 is worth `gain`, everything else nothing."""
    rng = random.Random(seed)
    base_scores = [0.3 + rng.gauss(0, noise) for _ in range(seeds_of_base)]
    trials, seen = [base(base_scores)], set()
    while len(trials) <= count:
        placed = [placement(row, rng.randrange(3)) for row in sorted(rng.sample([4, 6, 9, 13], rng.randint(1, 3)))]
        if str(placed) not in seen:
            seen.add(str(placed))
            worth = gain if any(p.layer == 9 and p.module == "LSKA" for p in placed) else 0.0
            trials.append(trial(len(trials), placed, [0.3 + worth + rng.gauss(0, noise)], 1 + 0.03 * len(placed)))
    return snapshot(*trials, failed(len(trials)), rejected(len(trials) + 1), running(len(trials) + 2))


def test_with_nothing_to_gain_the_base_is_kept_and_the_reason_says_what_could_have_been_seen():
    for seed in range(2):
        snap = drawn(0.0, seed=seed)
        choice = pick.pick(snap, "best")
        assert choice.trial.number == 0
        assert choice.reason.startswith("Keep the base: no architecture beats it with probability 0.98 or more.")
        assert "could have told gains from 0.0" in choice.reason


def test_a_gain_is_found_by_all_trials_together_and_told_with_its_interval():
    snap = drawn(0.02)
    choice = pick.pick(snap, "best")
    assert any(p.layer == 9 and p.module == "LSKA" for p in choice.trial.architecture.placements)
    believed = believe(snap)
    member = believed.of(choice.trial)
    assert member.sure
    assert member.expected
    assert member.claim.gain_low < 0.02 < member.claim.gain_high
    assert f"{member.claim.gain:+.4f} against the base" in choice.reason
    assert {m.trial.number for m in believed.front} <= {t.number for t in snap.trials if t.kind == "measured"}
    ratios = [facts.latency(m.trial) for m in believed.front]
    assert ratios == sorted(ratios)


def test_limits_hold_and_the_knee_is_among_what_is_sure():
    snap = drawn(0.02)
    slow = pick.pick(snap, "knee")
    assert believe(snap).of(slow.trial).sure
    assert pick.pick(snap, "best", max_latency_ratio=1.01).trial.number == 0
    sure = [member for member in believe(snap).members if member.sure and member.trial.architecture.placements]
    assert pick.pick(snap, "fastest").trial == min((member.trial for member in sure), key=facts.fastest_first)


def test_it_is_the_same_for_trials_in_any_order():
    snap = drawn(0.02)
    shuffled = list(snap.trials)
    random.Random(1).shuffle(shuffled)
    assert believe(dataclasses.replace(snap, trials=tuple(shuffled))) == believe(snap)


def test_few_trials_have_no_posterior_and_observations_decide():
    snap = snapshot(base(), *(trial(k, [placement(4, k)], 0.3 + 0.01 * k, 1 + 0.05 * k) for k in range(1, 5)))
    assert believe(snap) is None
    assert believe(snapshot()) is None
    assert columns.recommended_table(believe(snap)) == []
    assert pick.pick(snap, "best").trial.number == 4


def test_what_could_have_been_seen_shrinks_with_seeds_and_trials():
    small, large = believe(drawn(0.0, count=12)), believe(drawn(0.0, count=40))
    assert large.detectable == pytest.approx(small.detectable, rel=0.5)
    assert large.detectable_placement < small.detectable_placement < small.detectable
    one = believe(drawn(0.0, seeds_of_base=1))
    assert one.detectable is None


def test_repeats_name_a_measured_trial_and_a_seed_that_it_has_not_had():
    snap = drawn(0.008)
    number, seed = next_repeat(snap, {})
    entry = next(t for t in snap.trials if t.number == number)
    assert entry.kind == "measured"
    assert seed == len(entry.results)
    again = next_repeat(snap, {number: {seed}})
    assert again is None or again != (number, seed)


def test_without_a_model_the_base_is_repeated():
    assert next_repeat(snapshot(base([0.3])), {0: {1}}) == (0, 2)
    assert next_repeat(snapshot(), {}) is None


def test_stopped_trials_inform_the_model_and_are_no_members():
    snap = drawn(0.02)
    known = believe(snap)
    with_stopped = dataclasses.replace(snap, trials=(*snap.trials, stopped(99)))
    assert {m.trial.number for m in believe(with_stopped).members} == {m.trial.number for m in known.members}


def test_the_table_of_the_report_says_what_the_posterior_says():
    rows = columns.recommended_table(believe(drawn(0.02)))
    assert [set(row) for row in rows] == [set(columns.RECOMMENDED)] * len(rows)
    for row in rows:
        assert row["recommended"] == (row["p_beats_base"] is None or row["p_beats_base"] >= SURE)
    assert any(row["recommended"] and row["p_beats_base"] for row in rows)


def test_of_thousands_of_trials_the_best_some_others_and_the_base_are_believed(monkeypatch):
    snap = drawn(0.02)
    whole = believe(snap)
    monkeypatch.setattr("nas_attn.posterior.MOST", 12)
    some = believe(snap)
    numbers = {member.trial.number for member in some.members}
    assert len(numbers) == 12 < len(whole.members)
    assert numbers >= {0, *(trial.number for trial in front_trials(snap)[:3])}
    assert believe(snap) == some
