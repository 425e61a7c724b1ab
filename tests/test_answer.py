"""The first thing that a report says."""

import dataclasses

from snapshots import base, failed, placement, snapshot, study, trial
from snapshots import network as yolo11n

from nas_attn import pick
from nas_attn.answer import answer, chance, placed, steps
from nas_attn.caveats import caveats
from nas_attn.network import Network
from nas_attn.posterior import believe


def clear(gain=0.05, count=9):
    """A study in which LSKA after P3 is worth `gain` with next to no noise, and nothing else is worth anything."""
    rows = (6, 9, 10, 13, 16, 19, 22)
    others = [trial(k, [placement(row)], [0.2999, 0.3, 0.3001], 1.05 + k / 100) for k, row in enumerate(rows[: count - 2], 2)]
    return snapshot(base((0.2999, 0.3, 0.3001)), trial(1, [placement(4)], [g + gain for g in (0.2999, 0.3, 0.3001)], 1.1), *others)


def told(snap):
    return answer(snap, believe(snap), yolo11n())


def test_a_clear_gain_is_taken_with_its_interval_and_command():
    found = told(clear())
    assert (found.kind, found.trial.number, found.shown.trial.number) == ("take", 1, 1)
    assert found.headline == "Take LSKA(k_size=7, use_proj=false) after P3"
    assert found.command == "nas-attn export runs/demo --to winner", "by the rule, so that its card says why"
    claim = believe(clear()).of(clear().trials[1]).claim
    gain, low, high = (f"{100 * value:+.2f}" for value in (claim.gain, claim.gain_low, claim.gain_high))
    assert f"{gain} points of mAP50-95 over the base (90 % {low} to {high})" in found.sentence
    assert "at 1.100 times its latency" in found.sentence
    assert found.sentence.endswith("beats it with a probability of over 0.99.")


def test_where_nothing_is_sure_the_base_is_kept_and_the_most_promising_named():
    found = told(study(30))
    assert (found.kind, found.headline, found.trial.number) == ("keep", "Keep the base", 0)
    assert found.shown.trial.number != 0
    assert f"trial {found.shown.trial.number}" in found.sentence
    assert "points may have gone unnoticed" in found.sentence
    assert found.command == f"nas-attn verify runs/demo --data DATA.yaml --trial {found.shown.trial.number} --seeds 5"


def noisy(**settings):
    """A study whose base's seeds differ by a tenth: no gain that anybody hopes for could be told."""
    others = [trial(k, [placement(row)], [0.3 + k / 1e4], 1.05 + k / 100) for k, row in enumerate((4, 6, 9, 10, 13, 16, 19, 22), 1)]
    return dataclasses.replace(snapshot(base((0.25, 0.3, 0.35)), *others), settings=settings)


def test_a_study_that_could_not_have_told_says_so_and_asks_for_more_seeds():
    command = "nas-attn search toy --data d/data.yaml --trials 9 --out runs/demo --repeats 4"
    found = told(noisy(command=command))
    assert (found.kind, found.headline) == ("keep", "Keep the base for now")
    assert found.command == "nas-attn search toy --data d/data.yaml --trials 9 --out runs/demo --repeats 16"
    assert "By its own trainings an architecture would be told from the base only from" in warned(noisy())
    assert "By its own trainings" not in warned(clear())


def test_it_agrees_with_pick():
    for snap in (clear(), study(30), study(16)):
        assert told(snap).trial.number == pick.pick(snap, "best").trial.number


def test_few_trials_are_too_few():
    found = told(snapshot(base(), trial(1, [placement(4)], 0.33, 1.1)))
    assert (found.kind, found.headline) == ("early", "Too early to say")
    assert found.command.endswith("--trials 20 --out runs/demo"), "not the export of the luckiest"
    assert told(snapshot(base())).headline == "Only the base has been measured"
    assert told(snapshot(failed(0))).kind == "none"
    assert told(snapshot()).kind == "none"


def test_three_objectives_have_an_observed_best_and_no_probability():
    snap = study(30, three=True)
    assert told(snap).headline.startswith("Observed best of 3 objectives: ")
    believed = believe(snap)
    assert believed is not None
    found = steps(pick.ladder(snap, believed, "best"), snap, believed, yolo11n())
    assert all(step["reason"].startswith("Observed best: ") for step in found)


def test_placements_are_named_by_their_sites():
    arch = trial(1, [placement(4, 2), placement(16), placement(17, 2)], 0.3, 1.1).architecture
    words = "LIA(f=16) after P3, LSKA(k_size=7, use_proj=false) after neck P3 out and LIA(f=16) after row 17"
    assert placed(arch, yolo11n()) == words
    assert placed(base().architecture, yolo11n()) == "the base"
    assert "after row 4" in placed(arch, Network(nodes=(), backbone=0, drawn=False))


def test_the_steps_of_the_slider_are_those_of_pick():
    snap = clear()
    believed = believe(snap)
    found = steps(pick.ladder(snap, believed, "best"), snap, believed, yolo11n())
    assert [(step["limit"], step["number"]) for step in found] == [(1.0, 0), (1.1, 1)]
    assert found[0]["reason"].startswith("Keep the base: nothing that is fast enough beats it")
    assert found[1]["reason"].startswith("Take trial 1, LSKA(k_size=7, use_proj=false) after P3. It is expected to gain")
    assert [step["command"] for step in found] == ["", "nas-attn export runs/demo --max-latency-ratio 1.100000 --to winner"]
    for step in found:
        assert pick.pick(snap, "best", step["limit"]).trial.number == step["number"], "the command exports what the step says"


def test_nothing_is_certain():
    assert [chance(p) for p in (0.0, 0.004, 0.005, 0.5, 0.994, 0.995, 1.0)] == ["under 0.01"] * 2 + ["0.01", "0.50", "0.99"] + [
        "over 0.99"
    ] * 2


def warned(snap):
    return " ".join(caveats(snap, believe(snap)))


def test_every_reason_for_doubt_is_told():
    assert "There is no model of all trials yet (2 measured architectures" in warned(snapshot(base(), trial(1, [placement(4)], 0.3, 1.1)))
    assert "The noise of one training is not known" in warned(snapshot(base([0.3])))
    assert "the very same score" in warned(snapshot(base([0.3, 0.3])))
    assert "from 2 seeds of the base" in warned(snapshot(base([0.3, 0.31])))
    assert "No positive control was run" in warned(snapshot(base()))
    assert "1 of 1 candidates were timed without a quiet moment" in warned(
        snapshot(base(), trial(1, [placement(4)], 0.3, 1.1, quality="ungated"))
    )
    still = snapshot(base(), trial(1, [placement(4)], 0.3, 1.1, gates={"4": 0.0001}))
    assert "In 1 of 1 trials the modules hardly moved" in warned(still)
    assert "1 of 2 trials failed" in warned(snapshot(base(), failed(1)))


def test_a_blind_control_and_a_spent_split_are_told():
    from snapshots import measured

    blind = snapshot(base(controls={"help": measured(0.301)}))
    assert "did not tell a known change from the base (help)" in warned(blind)
    own = base()
    results = tuple((dataclasses.replace(j, recipe=dataclasses.replace(j.recipe, score_on="val")), o) for j, o in own.results)
    assert "scored on your own validation split" in warned(snapshot(dataclasses.replace(own, results=results)))


def test_a_sound_study_has_no_warning_but_what_it_lacks():
    from snapshots import measured

    snap = clear()
    first = dataclasses.replace(base((0.2999, 0.3, 0.3001), controls={"help": measured(0.34), "harm": measured(0.2)}))
    assert caveats(dataclasses.replace(snap, trials=(first, *snap.trials[1:])), believe(snap)) == ()
