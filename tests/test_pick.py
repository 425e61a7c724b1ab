"""The choice by each rule, where a model of all trials decides and where observations do."""

import dataclasses
import math
import random
import re
from pathlib import Path

import pytest
from snapshots import A, B, C, base, cost, drawn, failed, running, snapshot, study, trial

from nas_attn import claim, cli, pick
from nas_attn.errors import InputError
from nas_attn.export import Exported
from nas_attn.facts import latency
from nas_attn.posterior import Member, Posterior, believe


def member(entry, mean, chance, error=0.004):
    """What might be believed of a trial; `error` is the standard error of `mean`, `chance` the probability that it beats a base of 0.3."""
    half = 1.645 * error
    said = claim.Claim(
        row=entry.number, mean=mean, low=mean - half, high=mean + half, gain=mean - 0.3, gain_low=mean - 0.3 - half,
        gain_high=mean - 0.3 + half, non_dominated=0.5, beats_base=chance, expected=False,
    )  # fmt: skip
    return Member(trial=entry, claim=said, expected=False, sure=False)


def posterior(*members):
    return Posterior(members=tuple(members), sigma=0.004, detectable=0.0123, detectable_placement=None)


SIMPLE, DOUBTFUL, SLOW, TWO = trial(1, A, 0.31, 1.05), trial(2, B, 0.36, 1.02), trial(3, C, 0.32, 1.20), trial(4, A + B, 0.32, 1.10)
SNAP = snapshot(base(), SIMPLE, DOUBTFUL, SLOW, TWO)
BELIEVED = posterior(
    member(SNAP.trials[0], 0.300, 0.0),
    member(SIMPLE, 0.310, 0.985),
    member(DOUBTFUL, 0.319, 0.9795),  # the highest and, but for the base, the fastest, yet not quite sure
    member(SLOW, 0.318, 0.9995),
    member(TWO, 0.317, 0.99),
)


def modelled(rule, limit=None, **options):
    return pick.pick(SNAP, rule, limit, posterior=BELIEVED, **options)


# -- by a model ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "limit", "number", "how"),
    [
        ("best", None, 3, "has the highest expected mAP50-95 among 4 that can be recommended: expected mAP50-95 0.3180"),
        ("best", 1.15, 4, "has the highest expected mAP50-95 among 3 that can be recommended with a latency ratio of at most 1.15: "),
        ("fastest", None, 1, "is the fastest that beats the base among 4 that can be recommended: "),
        ("knee", None, 4, "is the knee among 4 that can be recommended: "),
        ("1se", None, 3, "is the simplest within one standard error (0.0040) of the highest expected mAP50-95 (0.3180) among 4 "),
        ("1se", 1.15, 4, "is the simplest within one standard error (0.0040) of the highest expected mAP50-95 (0.3170) among 3 "),
        (
            "knee",
            1.07,
            1,
            "within one standard error (0.0040) of the highest expected mAP50-95 (0.3100) (too few points for a knee) among 2 ",
        ),
    ],
)
def test_each_rule_by_a_model(rule, limit, number, how):
    choice = modelled(rule, limit)
    assert choice.trial.number == number
    assert choice.reason.startswith(f"Trial {number} ({choice.trial.architecture}) ")
    assert how in choice.reason
    assert choice.reason.endswith(f" `nas-attn verify` checks it with full trainings. Rule {rule}, probability 0.98.")


def test_the_reason_holds_what_is_believed_of_the_choice():
    assert (
        ": expected mAP50-95 0.3100 (90 % 0.3034 to 0.3166) at 1.050x the base's latency; +0.0100 against the base "
        "(90 % +0.0034 to +0.0166), which it beats with probability 0.985. " in modelled("fastest").reason
    )
    assert "which it beats with probability over 0.999. " in modelled("best").reason, "no draw of two thousand makes certain"


@pytest.mark.parametrize(
    ("rule", "probability", "number"),
    [("best", 0.97, 2), ("best", 0.9795, 2), ("fastest", 0.9795, 2), ("fastest", 0.986, 4), ("fastest", 0.995, 3), ("knee", 0.97, 2)],
)
def test_the_probability_is_the_bar_of_every_rule(rule, probability, number):
    choice = modelled(rule, probability=probability)
    assert choice.trial.number == number
    assert choice.reason.endswith(f"Rule {rule}, probability {probability:g}.")


@pytest.mark.parametrize("rule", pick.RULES)
def test_where_nothing_clears_the_bar_the_base_is_kept_and_the_likeliest_is_named(rule):
    choice = modelled(rule, 1.03)
    assert choice.trial.number == 0
    assert choice.reason == (
        "Keep the base: no architecture with a latency ratio of at most 1.03 beats it with probability 0.98 or more. "
        f"The likeliest is trial 2 ({DOUBTFUL.architecture}): +0.0190 against the base (90 % +0.0124 to +0.0256), "
        "which it beats with probability 0.9795. Of one architecture, this study could have told gains from 0.0123 on; "
        f"`--repeats` trains more seeds. Rule {rule}, probability 0.98."
    )
    stricter = modelled(rule, probability=0.9999)
    assert stricter.trial.number == 0
    assert "beats it with probability 0.9999 or more. The likeliest is trial 3 " in stricter.reason


def test_the_base_can_be_the_simplest_within_one_standard_error():
    unsure = posterior(BELIEVED.members[0], member(SIMPLE, 0.310, 0.985, error=0.011), member(TWO, 0.309, 0.99))
    choice = pick.pick(SNAP, "1se", posterior=unsure)
    assert choice.trial.number == 0
    how = "it is the simplest within one standard error (0.0110) of the highest expected mAP50-95 (0.3100) among 3 that can be recommended"
    assert choice.reason.startswith(f"Keep the base: {how}: expected mAP50-95 0.3000 (90 % ")
    assert pick.pick(SNAP, "fastest", posterior=unsure).trial.number == 1, "the fastest is never the base where something beats it"


def test_the_simplest_has_fewest_modules_then_parameters_then_latency():
    small, quick = (dataclasses.replace(trial(n, C, 0.3, r), cost=cost(r, params_m=m)) for n, r, m in ((5, 1.3, 2.65), (6, 1.01, 2.9)))
    twin = dataclasses.replace(trial(7, B, 0.3, 1.29), cost=cost(1.29, params_m=2.65))

    def simplest(*entries):
        believed = posterior(BELIEVED.members[0], member(TWO, 0.317, 0.99), *(member(t, 0.316, 0.99) for t in entries))
        return pick.pick(snapshot(base(), TWO, *entries), "1se", posterior=believed).trial.number

    large = dataclasses.replace(trial(8, C, 0.3, 1.3), cost=cost(1.3, params_m=3.5))
    assert simplest(large) == 8, "one module at 1.3 before two at 1.1, although these are smaller"
    assert simplest(small, quick) == 5, "2.65 M parameters at 1.3 before 2.9 at 1.01"
    assert simplest(small, quick, twin) == 7, "of the same size the faster"
    assert simplest(dataclasses.replace(twin, number=9), twin) == 7, "then the earlier"


def test_what_is_equal_goes_to_the_faster_then_to_the_earlier_by_a_model():
    same = posterior(BELIEVED.members[0], *(member(trial(n, A, 0.3, r), 0.31, 0.99) for n, r in ((4, 1.1), (2, 1.1), (1, 1.2))))
    for rule in ("best", "fastest", "1se"):
        assert pick.pick(SNAP, rule, posterior=same).trial.number == 2
    higher = posterior(BELIEVED.members[0], member(SIMPLE, 0.31, 0.99), member(trial(9, B, 0.3, 1.05), 0.32, 0.99))
    assert pick.pick(SNAP, "fastest", posterior=higher).trial.number == 9, "as fast, and better"


def test_a_limit_below_the_base_leaves_what_is_faster_and_surely_better():
    quick = trial(5, C, 0.31, 0.9504)
    believed = posterior(member(quick, 0.310, 0.99), *BELIEVED.members)
    for rule in pick.RULES:
        assert pick.pick(SNAP, rule, 0.96, posterior=believed).trial.number == 5
        with pytest.raises(
            InputError, match=r"`latency_ratio <= 0.9` holds for none of the 5 that can be recommended.*give at least 0.951"
        ):
            pick.pick(SNAP, rule, 0.9, posterior=believed)
        with pytest.raises(InputError, match=r"of the 4 that can be recommended, whose ratios are 1.000 to 1.200; give at least 1.000"):
            modelled(rule, 0.999)


# -- by observations -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "number"), [("best", 3), ("fastest", 1), ("1se", 2), ("knee", 1)])
def test_each_rule(rule, number):
    choice = pick.pick(drawn(), rule)
    assert choice.trial.number == number
    assert choice.reason.startswith(f"Trial {number} ({choice.trial.architecture}) ")
    assert choice.reason.endswith(
        f" Rule {rule}, by observations: a model that gives probabilities takes 8 measured trials, the base among them."
    )


@pytest.mark.parametrize(("rule", "number"), [("best", 2), ("fastest", 1), ("1se", 2)])
def test_a_limit_counts_before_the_rule(rule, number):
    choice = pick.pick(drawn(), rule, max_latency_ratio=1.2)
    assert choice.trial.number == number
    assert " among 3 measured with a latency ratio of at most 1.2: " in choice.reason


def test_equal_scores_go_to_the_faster_then_to_the_earlier():
    snap = snapshot(base(), trial(2, B, 0.34, 1.1), trial(1, A, 0.34, 1.1), trial(3, C, 0.34, 1.2))
    for rule in ("best", "1se", "fastest"):
        assert pick.pick(snap, rule).trial.number == 1


def test_the_simplest_is_measured_by_the_standard_error_of_the_best_one_s_mean():
    one_seed = snapshot(base(), trial(1, A, 0.337, 1.3), trial(2, A + B, 0.340, 1.1))
    assert pick.pick(one_seed, "1se").trial.number == 1, "fewer modules before lower latency, although it is on no front"
    two_seeds = snapshot(base(), trial(1, A, 0.337, 1.3), trial(2, A + B, [0.338, 0.342], 1.1))
    choice = pick.pick(two_seeds, "1se")
    assert choice.trial.number == 2
    assert "(0.0028) of the highest mAP50-95 (0.3400)" in choice.reason
    near = pick.pick(snapshot(base(), trial(1, A, 0.303, 1.1)), "1se")
    assert near.trial.number == 0
    assert near.reason.startswith("Keep the base: it is the simplest within one standard error (0.0040) of the highest mAP50-95 (0.3030) ")
    assert "among 2 measured: mAP50-95 0.3000, mean of 3 seed(s)." in near.reason


def test_the_fastest_that_is_measured_two_sigma_better_or_the_base():
    snap = snapshot(base(), trial(1, A, 0.3079, 1.01), trial(2, B, 0.32, 1.2), trial(3, C, 0.33, 1.1))
    choice = pick.pick(snap, "fastest")
    assert choice.trial.number == 3
    assert "+7.5 sigma of its 3 seeds, beyond two sigma, but the best of many is partly luck" in choice.reason
    kept = pick.pick(snap, "fastest", 1.05)
    assert kept.trial.number == 0
    assert kept.reason.startswith(
        "Keep the base: no architecture with a latency ratio of at most 1.05 was measured to be more than 2 sigma (0.0080 mAP50-95) "
        f"better. The nearest is trial 1 ({snap.trials[1].architecture}): +0.0079 or +1.98 sigma. Rule fastest, by observations: "
    )
    assert pick.pick(snapshot(base()), "fastest").reason.startswith("Keep the base: no architecture was measured to be more than 2 sigma")


@pytest.mark.parametrize("scores", [[0.3], [0.3, 0.3]])
def test_without_noise_the_fastest_is_the_base(scores):
    choice = pick.pick(snapshot(base(scores), trial(1, A, 0.4, 1.01)), "fastest")
    assert choice.trial.number == 0
    assert choice.reason.startswith(
        "Keep the base: no gain can be told from luck, because the base's seeds give no sigma; set base_seeds: 3."
    )


def test_the_fastest_needs_the_base_or_what_is_separated_from_it():
    with pytest.raises(InputError, match=r"more than 2 sigma better, but the 1 measured hold neither; give a higher limit or another rule"):
        pick.pick(snapshot(trial(1, A, 0.33, 1.1)), "fastest")
    snap = snapshot(base(), trial(1, A, 0.29, 0.9), trial(2, B, 0.33, 0.95))
    with pytest.raises(InputError, match=r"but the 1 measured with a latency ratio of at most 0.92 hold neither"):
        pick.pick(snap, "fastest", 0.92)
    assert pick.pick(snap, "fastest", 0.96).trial.number == 2


def test_too_few_points_for_a_knee_are_decided_by_noise():
    within = pick.pick(snapshot(base(), trial(1, A, 0.302, 1.1)), "knee")
    beyond = pick.pick(snapshot(base(), trial(1, A, 0.312, 1.1)), "knee")
    unknown = pick.pick(snapshot(base([0.300]), trial(1, A, 0.302, 1.1)), "knee")
    assert (within.trial.number, beyond.trial.number, unknown.trial.number) == (0, 1, 1)
    assert "too few points for a knee" in within.reason
    dominated = pick.pick(snapshot(base(), trial(1, A, 0.312, 1.1), trial(2, B, 0.310, 1.2)), "knee")
    assert "(too few points for a knee) among 3 measured" in dominated.reason, "what is dominated is no point of the front"


@pytest.mark.parametrize(
    ("score", "words"),
    [
        (0.303, r"\+0\.0030 against the base or \+0\.8 sigma of its 3 seeds, which is within the noise: the base is as good a choice"),
        (0.306, r"\+1\.5 sigma of its 3 seeds, which more seeds may or may not confirm"),
        (0.330, r"\+7\.5 sigma of its 3 seeds, beyond two sigma, but the best of many is partly luck"),
    ],
)
def test_the_reason_says_what_the_gain_is_worth(score, words):
    choice = pick.pick(snapshot(base(), trial(1, A, score, 1.1)), "best")
    assert choice.trial.number == 1
    assert re.search(words, choice.reason)


def test_the_reason_is_honest_about_a_loss_and_about_missing_noise():
    worse = pick.pick(snapshot(base(), trial(1, A, 0.28, 0.9)), "best", 0.95)
    assert " is the only one measured with a latency ratio of at most 0.95: " in worse.reason
    assert "-0.0200 against the base or -5.0 sigma of its 3 seeds, worse than the base" in worse.reason
    assert "unknown noise" in pick.pick(snapshot(base([0.3]), trial(1, A, 0.33, 1.1)), "best").reason
    assert "unknown noise" in pick.pick(snapshot(base([0.3, 0.3]), trial(1, A, 0.33, 1.1)), "best").reason
    assert "no score of the base" in pick.pick(snapshot(trial(1, A, 0.33, 1.1)), "best").reason
    assert pick.pick(snapshot(base()), "knee").reason.startswith("Keep the base: it is the only one measured: mAP50-95 0.3000, mean of 3 ")


def test_what_cannot_be_picked():
    with pytest.raises(InputError, match=r"one of \['best', 'fastest', 'knee', '1se'\], but got 'nee'. Did you mean 'knee'"):
        pick.pick(drawn(), "nee")
    with pytest.raises(InputError, match=r"needs a measured trial, but study 'demo' holds 2 trials \(kinds: failure, running\)"):
        pick.pick(snapshot(failed(0), running(1)), "best")
    with pytest.raises(InputError, match=r"holds 0 trials \(kinds: none\)"):
        pick.pick(snapshot(), "best")
    with pytest.raises(InputError, match=r"`latency_ratio <= 0.9` holds for none of the 5 measured.*1.000 to 1.280; give at least 1.000"):
        pick.pick(drawn(), "best", max_latency_ratio=0.9)
    with pytest.raises(InputError, match="'1se' needs the noise, so at least two seeds"):
        pick.pick(snapshot(base([0.3])), "1se")


@pytest.mark.parametrize("probability", [-1.0, 0.0, 0.49, 1.0, 98.0, math.nan])
def test_a_probability_is_at_least_a_half_and_never_certain(probability):
    for rule in pick.RULES:
        with pytest.raises(InputError, match=rf"`0.5 <= probability < 1` must hold, but got {probability:g}.*the default is 0.98"):
            pick.pick(drawn(), rule, probability=probability)
    with pytest.raises(InputError, match=r"`0.5 <= probability < 1` must hold"):
        pick.ladder(drawn(), None, probability=probability)
    assert pick.pick(drawn(), "best", probability=0.5).trial.number == 3


def test_latency_that_is_no_objective_comes_from_the_cost():
    goals = {"map50_95": "maximize", "params_m": "minimize"}
    entries = [dataclasses.replace(base(), values={"map50_95": 0.3, "params_m": 2.6})]
    entries += [dataclasses.replace(trial(1, A, 0.33, 1.1), values={"map50_95": 0.33, "params_m": 2.7}, cost=cost(1.07))]
    entries += [dataclasses.replace(trial(2, B, 0.32, 1.1), values={"map50_95": 0.32, "params_m": 2.8}, cost=cost(1.03))]
    snap = snapshot(*entries, objectives=goals)
    assert "at 1.070x the base's latency" in pick.pick(snap, "best").reason
    assert pick.pick(snap, "best", 1.05).trial.number == 2, "the best within the limit, although it is on no front of parameters"


def test_three_objectives_are_decided_by_observations_even_where_they_have_a_posterior():
    snap = study(12, seed=1, three=True)
    top = max((t for t in snap.trials if t.kind == "measured"), key=lambda t: t.values["map50_95"])
    for rule in pick.RULES:
        choice = pick.pick(snap, rule, posterior=BELIEVED)
        assert choice == pick.pick(snap, rule)
        assert choice.reason.endswith(
            "by observations: the model that gives probabilities has no objectives but map50_95 and latency_ratio."
        )
    assert pick.pick(snap, "best").trial == top


@pytest.mark.parametrize("rule", pick.RULES)
def test_picking_is_the_same_whatever_the_order_of_trials(rule):
    snap, few = study(60, seed=3), study(6, seed=3)
    believed = drawn_posterior(snap, random.Random(0))
    turned = dataclasses.replace(snap, trials=snap.trials[::-1])
    again = dataclasses.replace(believed, members=believed.members[::-1])
    assert pick.pick(turned, rule, posterior=again) == pick.pick(snap, rule, posterior=believed)
    assert pick.ladder(turned, again, rule) == pick.ladder(snap, believed, rule)
    assert believe(few) is None
    assert pick.pick(dataclasses.replace(few, trials=few.trials[::-1]), rule) == pick.pick(few, rule)


def test_whoever_has_no_posterior_has_the_model_asked(monkeypatch):
    monkeypatch.setattr("nas_attn.pick.believe", lambda _: BELIEVED)
    assert pick.pick(SNAP, "best", 1.15) == modelled("best", 1.15)
    assert pick.ladder(SNAP, None) == pick.ladder(SNAP, BELIEVED)


# -- for every limit -----------------------------------------------------------------------------------------------------------------------


def test_the_ladder_of_a_known_study():
    steps = pick.ladder(SNAP, BELIEVED)
    assert [(step.limit, step.choice.trial.number) for step in steps] == [(1.0, 0), (1.05, 1), (1.1, 4), (1.2, 3)]
    assert [(s.limit, s.choice.trial.number) for s in pick.ladder(SNAP, BELIEVED, "fastest")] == [(1.0, 0), (1.05, 1)]
    assert [(s.limit, s.choice.trial.number) for s in pick.ladder(SNAP, BELIEVED, "best", 0.97)] == [(1.0, 0), (1.02, 2)]
    assert [(s.limit, s.choice.trial.number) for s in pick.ladder(drawn(), None)] == [(1.0, 0), (1.05, 1), (1.2, 2), (1.28, 3)]
    assert pick.ladder(snapshot(failed(0)), None) == ()
    with pytest.raises(InputError, match="A rule must be one of"):
        pick.ladder(SNAP, BELIEVED, "nee")
    early = snapshot(base(), trial(1, A, 0.29, 0.9), trial(2, B, 0.33, 0.95))
    assert [(s.limit, s.choice.trial.number) for s in pick.ladder(early, None, "fastest")] == [(0.95, 2)]


def drawn_posterior(snap, rng):
    """Anything might be believed of the measured trials; some are equal, and some faster than the base."""
    members = []
    for entry in (t for t in snap.trials if t.kind == "measured"):
        mean, chance = round(0.3 + rng.gauss(0.005, 0.005), 3), rng.choice([0.0, 0.9, 0.98, 0.99, 1.0])
        members.append(member(entry, mean, chance, error=rng.uniform(0.001, 0.01)))
    return posterior(*members)


def drawn_study(rng):
    snap = study(rng.randint(1, 30), seed=rng.randrange(1000), three=rng.random() < 0.5)
    shift = rng.choice([0.0, 0.1])
    moved = [
        dataclasses.replace(t, values={**t.values, "latency_ratio": round(t.values["latency_ratio"] - shift, 2)})
        if t.values is not None and t.architecture.placements
        else t
        for t in snap.trials
    ]
    return dataclasses.replace(snap, trials=tuple(moved))


@pytest.mark.parametrize("rule", pick.RULES)
@pytest.mark.parametrize("seed", range(12))
def test_the_ladder_agrees_with_the_pick_at_every_limit(rule, seed):
    rng = random.Random(f"{rule}{seed}")
    snap = drawn_study(rng)
    believed, probability = drawn_posterior(snap, rng), rng.choice([0.5, 0.95, 0.98])
    steps = pick.ladder(snap, believed, rule, probability)
    ratios = [latency(t) for t in snap.trials if t.kind == "measured"]
    limits = [rng.uniform(0.8, 1.5) for _ in range(20)] + ratios + [math.nextafter(ratio, 0.0) for ratio in ratios]
    for limit in limits:
        reached = [step for step in steps if step.limit <= limit]
        if reached:
            choice = pick.pick(snap, rule, limit, probability=probability, posterior=believed)
            assert choice.trial == reached[-1].choice.trial
        else:
            with pytest.raises(InputError):
                pick.pick(snap, rule, limit, probability=probability, posterior=believed)
    for before, step in zip([None, *steps], steps, strict=False):
        assert step.choice == pick.pick(snap, rule, step.limit, probability=probability, posterior=believed)
        assert before is None or (before.limit < step.limit and before.choice.trial != step.choice.trial)
    assert pick.pick(snap, rule, probability=probability, posterior=believed).trial == steps[-1].choice.trial


# -- by its number, and on the command line ------------------------------------------------------------------------------------------------


def test_a_trial_that_was_asked_for_by_its_number_is_told_with_what_is_known_of_it():
    believed = pick.by_number(SNAP, 2, BELIEVED)
    assert believed.trial == DOUBTFUL
    head = f"Trial 2 ({DOUBTFUL.architecture}) was asked for by its number, not taken by a rule"
    assert believed.reason.startswith(f"{head}: expected mAP50-95 0.3190 (90 % ")
    assert believed.reason.endswith(", which it beats with probability 0.9795.")
    assert pick.by_number(SNAP, 2).reason.startswith(f"{head}: mAP50-95 0.3600 at 1.020x the base's latency, +0.0600 against the base or ")
    assert pick.by_number(SNAP, 0).reason.endswith("not taken by a rule: mAP50-95 0.3000, mean of 3 seed(s).")
    assert pick.by_number(drawn(), 6).reason.endswith("not taken by a rule.")
    with pytest.raises(InputError, match=r"`--trial` must be one of 0..4, but got 9; see trials.csv"):
        pick.by_number(SNAP, 9)


def test_the_command_line_passes_rule_limit_and_probability_on(monkeypatch, capsys):
    monkeypatch.setattr(cli, "_load", lambda *_: SNAP)
    monkeypatch.setattr("nas_attn.pick.believe", lambda _: BELIEVED)
    assert cli.SURE == claim.SURE
    cli.pick(Path("study"))
    cli.pick(Path("study"), "best", max_latency_ratio=1.03, probability=0.97)
    plain, limited = modelled("best"), modelled("best", 1.03, probability=0.97)
    assert (plain.trial.number, limited.trial.number) == (3, 2)
    expected = [line for c in (plain, limited) for line in (f"trial {c.trial.number}: {c.trial.architecture}", c.reason)]
    assert capsys.readouterr().out.splitlines() == expected


def test_an_export_carries_the_reason(monkeypatch, capsys, tmp_path):
    asked = {}

    def write(_, __, entry, to, *, scale, reason):
        asked.update(number=entry.number, scale=scale, reason=reason)
        return Exported(folder=to, yaml_file=to / "model.yaml", weights=None)

    monkeypatch.setattr(cli, "_load", lambda *_: SNAP)
    monkeypatch.setattr("nas_attn.pick.believe", lambda _: BELIEVED)
    monkeypatch.setattr("nas_attn.plan.load_setup", lambda _: None)
    monkeypatch.setattr("nas_attn.export.export", write)
    cli.export(tmp_path, to=tmp_path, rule="fastest", max_latency_ratio=1.3, probability=0.97)
    assert asked == {"number": 2, "scale": None, "reason": pick.pick(SNAP, "fastest", 1.3, probability=0.97).reason}
    assert asked["reason"].endswith("Rule fastest, probability 0.97.")
    assert "with a latency ratio of at most 1.3: " in asked["reason"]
    assert asked["reason"] in capsys.readouterr().out
    cli.export(tmp_path, to=tmp_path, trial=1)
    assert (asked["number"], asked["reason"]) == (1, pick.by_number(SNAP, 1).reason)
