"""What `verify` decides before it trains: members, arms, recipe, and what it refuses."""

from dataclasses import replace
from pathlib import Path

import pytest
from snapshots import base, measured, placement, results, snapshot, trial
from verify_targets import study

from nas_attn.arms import Options, members, prepare, searched_epochs
from nas_attn.errors import DataError, InputError, StudyError
from nas_attn.outcome import Stopped


def test_the_pick_comes_first_and_the_base_is_no_member() -> None:
    better = [trial(n, [placement(4, n)], 0.30 + 0.01 * n, 1.0 + 0.05 * n**2) for n in (1, 2, 3)]
    found = members(snapshot(base(), *better), 8)
    assert sorted(t.number for t in found) == [1, 2, 3]
    assert [t.number for t in found[1:]] == sorted((t.number for t in found[1:]), reverse=True)
    assert members(snapshot(base(), *better), 1) == found[:1]
    assert members(snapshot(base()), 8) == ()


def test_where_the_best_is_the_base_the_slowest_member_is_verified() -> None:
    within_noise = [trial(1, [placement(4)], 0.301, 1.05), trial(2, [placement(6)], 0.302, 1.4)]
    assert members(snapshot(base(), *within_noise[:1]), 8)[0].number == 1
    steep = snapshot(base((0.300, 0.310)), trial(1, [placement(4)], 0.306, 1.30))
    assert [t.number for t in members(steep, 8)] == [1]


def test_the_search_s_epochs_count_each_rung_once() -> None:
    first = trial(1, [placement(4)], [0.3, 0.3], 1.1)  # two seeds of one epoch each
    long = replace(measured(0.3), curve=({"epoch": 1.0}, {"epoch": 2.0}, {"epoch": 3.0}))
    rungs = [(replace(first.results[0][0], recipe=replace(first.results[0][0].recipe, epochs=3)), long)]
    stopped = [(first.results[1][0], Stopped(rung=0, curve=({"epoch": 1.0}, {"epoch": 2.0})))]
    helped = base(controls={"help": long})  # three seeds of one epoch, a control of three
    assert searched_epochs(snapshot(helped, replace(first, results=(*first.results, *rungs, *stopped)))) == 6 + 3 + 2
    assert results(first.architecture, [0.3])


def test_every_arm_shares_recipe_start_and_data(tmp_path: Path, digits: Path) -> None:
    snap, setup = study(tmp_path / "study", digits)
    plan = prepare(snap, setup, digits, Options(seeds=3, extra_epochs=7), tmp_path / "out")
    assert [(arm.name, arm.epochs) for arm in plan.arms] == [("base", 4), ("trial-2", 4), ("trial-1", 4), ("extra", 11)]
    assert (plan.trainings, plan.epochs) == (15, 3 * (4 + 4 + 4 + 11 + 4))
    assert (len(plan.train), len(plan.val)) == (32, 4)
    assert not set(plan.train) & set(plan.val)
    assert (plan.recipe.score_on, plan.recipe.imgsz, plan.recipe.args) == ("val", 64, (("hsv_h", 0.0),))
    assert plan.setup.train_list == str(tmp_path / "study" / "lists" / "train.txt"), "a study may have been moved"
    assert not (tmp_path / "out").exists()
    other = prepare(snap, setup, digits, Options(epochs=5), tmp_path / "out")
    assert other.folder != plan.folder


def test_the_default_extra_is_all_that_the_search_trained(tmp_path: Path, digits: Path) -> None:
    snap, setup = study(tmp_path / "study", digits)
    plan = prepare(snap, setup, digits, Options(), tmp_path / "out")
    assert next(arm.epochs for arm in plan.arms if arm.name == "extra") == 4 + 3 + 1 + 1 + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(trials=(0,)), "other than the base"),
        (Options(trials=(9,)), r"one of \[1, 2, 3\]"),
        (Options(arms=("base", "membres")), "Did you mean 'members'"),
        (Options(arms=("members",)), "must hold base and members"),
        (Options(seeds=0), "`--seeds` must be at least 1"),
        (Options(extra_epochs=-1), "`--extra-epochs` must be at least 0"),
        (Options(lr0=0.0), "lr0"),
    ],
)
def test_impossible_options_are_refused(tmp_path: Path, digits: Path, options: Options, message: str) -> None:
    snap, setup = study(tmp_path / "study", digits)
    with pytest.raises(InputError, match=message):
        prepare(snap, setup, digits, options, tmp_path / "out")


def test_other_data_are_refused(tmp_path: Path, digits: Path) -> None:
    snap, setup = study(tmp_path / "study", digits)
    with pytest.raises(DataError, match="classes"):
        prepare(snap, replace(setup, names=("a", "b")), digits, Options(), tmp_path / "out")
    with (tmp_path / "study" / "lists" / "train.txt").open("a") as file:
        file.write("/elsewhere/images/more.png\n")
    with pytest.raises(DataError, match=r"1 of its 32 training images differ .* more\.png"):
        prepare(snap, setup, digits, Options(), tmp_path / "out")


def test_a_front_of_the_base_alone_says_keep_the_base(tmp_path: Path, digits: Path) -> None:
    snap, setup = study(tmp_path / "study", digits)
    with pytest.raises(InputError, match="Keep the base"):
        prepare(replace(snap, trials=snap.trials[:1]), setup, digits, Options(), tmp_path / "out")


def test_a_search_that_scored_on_val_is_flagged(tmp_path: Path, digits: Path) -> None:
    snap, setup = study(tmp_path / "study", digits)
    lists = tmp_path / "study" / "lists"
    (lists / "train.txt").write_text((lists / "train.txt").read_text() + (lists / "search_val.txt").read_text())
    plan = prepare(snap, replace(setup, score_on="val"), digits, Options(), tmp_path / "out")
    assert "not untouched" in plan.notes[0]


def test_a_base_without_a_fit_needs_epochs_and_weights(tmp_path: Path, digits: Path) -> None:
    snap, setup = study(tmp_path / "study", digits)
    taken = replace(setup, fit={**setup.fit, "epochs": 0})
    with pytest.raises(InputError, match="give --epochs"):
        prepare(snap, taken, digits, Options(), tmp_path / "out")
    (tmp_path / "study" / "base" / "weights.pt").unlink()
    with pytest.raises(StudyError, match="fitted base"):
        prepare(snap, setup, digits, Options(), tmp_path / "out")


def test_modules_of_the_user_s_must_be_imported_on_the_command_line(tmp_path: Path, digits: Path) -> None:
    snap, setup = study(tmp_path / "study", digits)
    with pytest.raises(InputError, match="give --import own_modules"):
        prepare(snap, replace(setup, imports=("own_modules",)), digits, Options(), tmp_path / "out")
