"""Replays: that a search is judged by true values, that all samplers meet the same luck, that what costs a trial is counted as one."""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import typer
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import TrialState
from typer.testing import CliRunner

from nas_attn import guide
from nas_attn import replay as replays
from nas_attn.cli_simulate import simulate
from nas_attn.errors import InputError
from nas_attn.pareto import dominates
from nas_attn.replay import Replay, Run, replay
from nas_attn.replay_picture import picture
from nas_attn.table import Table, read_table

YOLOBENCH = Path(__file__).parents[2] / "shared" / "data" / "yolobench" / "yolobench.csv"
WAYS = {"acc": "maximize", "lat": "minimize"}
GENES = {"a": (1, 2, 4, 8), "b": ("x", "y", "z"), "c": (0.5, 1.0)}


def table(seed: int = 0, drop: int = 8, genes: Any = GENES) -> Table:
    """Random values on all combinations but `drop` of them."""
    rng = np.random.default_rng(seed)
    codes = np.array(list(itertools.product(*(range(len(choices)) for choices in genes.values()))))
    codes = codes[rng.permutation(len(codes))[drop:]]
    values = {"acc": rng.normal(80, 3, len(codes)), "lat": rng.uniform(1, 4, len(codes))}
    return Table(genes=genes, codes=codes, values=values, directions=WAYS)


def area(points: Sequence[tuple[float, float]], reference: tuple[float, float]) -> float:
    """The area between points (larger first, smaller second is better) and the reference, cell by cell."""
    xs = sorted({reference[0], *(x for x, _ in points if x > reference[0])})
    ys = sorted({reference[1], *(y for _, y in points if y < reference[1])})
    cells = itertools.product(itertools.pairwise(xs), itertools.pairwise(ys))
    return sum((x1 - x0) * (y1 - y0) for (x0, x1), (y0, y1) in cells if any(x >= x1 and y <= y0 for x, y in points))


def true_points(searched: Table, rows: Sequence[int]) -> list[tuple[float, float]]:
    return [(float(searched.values["acc"][row]), float(searched.values["lat"][row])) for row in rows]


# -- what is measured ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["random", "tpe", "nsga2"])
def test_without_charge_every_trial_is_another_row_and_in_the_end_all_is_found(name: str) -> None:
    searched = table()
    found = replay(searched, [name], trials=len(searched), repeats=2, every=3)
    for run in found.runs[name]:
        assert sorted(run.rows) == list(range(len(searched)))
        assert run.shares[-1] == pytest.approx(1.0)
        assert list(run.shares) == sorted(run.shares)
    assert found.rules.grid == (3, 6, 9, 12, 15, 16)
    assert found.runs[name][0].rows != found.runs[name][1].rows


def test_a_share_is_the_area_of_the_true_values_of_the_noisy_front() -> None:
    searched = table()
    found = replay(searched, ["random"], trials=12, repeats=3, noise=3.0, every=4, reference={"acc": 77, "lat": "p90"})
    limit = (77.0, float(np.percentile(searched.values["lat"], 90)))
    whole = area(true_points(searched, range(len(searched))), limit)
    lower = False
    for run in found.runs["random"]:
        for place, number in enumerate(found.rules.grid):
            seen = run.observed[:number].tolist()
            front = [r for r, v in zip(run.rows, seen, strict=False) if not any(dominates(w, v, list(WAYS.values())) for w in seen)]
            assert run.shares[place] == pytest.approx(area(true_points(searched, front), limit) / whole)
        assert set(run.returned) == set(front)
        lower = lower or area(true_points(searched, run.rows), limit) / whole > run.shares[-1] + 0.01
    assert lower, "noise never cost anything: the front of the true values was returned"
    assert found.rules.maximum == pytest.approx(whole)


def test_one_and_three_objectives_are_measured_too() -> None:
    searched = table()
    one = dataclasses.replace(searched, values={"lat": searched.values["lat"]}, directions={"lat": "minimize"})
    best = searched.values["lat"].min()
    (run,) = replay(one, ["random"], trials=6, repeats=1, reference={"lat": 4}).runs["random"]
    assert run.shares[-1] == pytest.approx((4 - min(searched.values["lat"][list(run.rows)])) / (4 - best))

    flat = {**searched.values, "flat": np.full(len(searched), 2.0)}
    three = dataclasses.replace(searched, values=flat, directions={**WAYS, "flat": "maximize"})
    stated: dict[str, float | str] = {"acc": 77, "lat": 4, "flat": 1}
    found = replay(three, ["random"], trials=6, repeats=2, reference=stated).shares("random")
    two = replay(searched, ["random"], trials=6, repeats=2, reference={"acc": 77, "lat": 4}).shares("random")
    assert found == pytest.approx(two)


def test_all_samplers_meet_the_same_noise_and_every_repeat_other_noise() -> None:
    searched = table(drop=0)
    found = replay(searched, ["random", "nsga2"], trials=16, repeats=16, noise={"acc": 2.0}, known=["lat"])
    shared = 0
    for first, second in zip(found.runs["random"], found.runs["nsga2"], strict=True):
        by_row = dict(zip(second.rows, second.observed.tolist(), strict=True))
        both = [k for k, row in enumerate(first.rows) if row in by_row]
        assert [by_row[first.rows[k]] for k in both] == first.observed[both].tolist()
        shared += len(both)
    assert shared > 100
    runs = found.runs["random"]
    noise = np.array([np.sort(run.observed - searched.points()[list(run.rows)], axis=0) for run in runs])
    assert len(np.unique(noise[:, 0, 0])) == 16
    errors = np.concatenate([run.observed - searched.points()[list(run.rows)] for run in runs])
    assert errors[:, 0].std() == pytest.approx(2.0, rel=0.12)
    assert abs(errors[:, 0].mean()) < 0.4
    assert not errors[:, 1].any()


def runs_of(**options: Any) -> list[Any]:
    found = replay(table(), ["random", "nsga2"], trials=10, repeats=2, noise=1.0, **options).runs
    return [(run.rows, run.observed.tolist(), run.shares) for name in found for run in found[name]]


def test_equal_seeds_give_equal_runs_and_other_seeds_others() -> None:
    assert runs_of(seed=1) == runs_of(seed=1)
    assert runs_of(seed=1) != runs_of(seed=0)


@pytest.mark.slow
def test_workers_change_nothing() -> None:
    assert runs_of(workers=2) == runs_of()


# -- what costs a trial --------------------------------------------------------------------------------------------------------------------


def test_with_charge_invalid_and_repeated_combinations_are_trials() -> None:
    searched = table(drop=14)
    counted: list[tuple[int, int]] = []
    found = replay(
        searched,
        ["random"],
        trials=22,
        repeats=2,
        noise=1.0,
        charge_invalid=True,
        on_run=lambda done, total: counted.append((done, total)),
    )
    for run in found.runs["random"]:
        assert len(run.rows) == 22
        invalid = [k for k, row in enumerate(run.rows) if row == -1]
        assert invalid
        assert np.isnan(run.observed[invalid]).all()
        again = [k for k, row in enumerate(run.rows) if row != -1 and row in run.rows[:k]]
        assert again
        # Measured once more is another draw of the noise on the same truth.
        assert all(run.observed[k, 0] != run.observed[run.rows.index(run.rows[k]), 0] for k in again)
    charged = found.summary()["samplers"]["random"]["charged"]
    assert charged["invalid"] == np.median([run.rows.count(-1) for run in found.runs["random"]])
    assert charged["duplicates"] > 0
    assert counted == [(1, 2), (2, 2)]


def test_a_run_that_has_seen_nothing_valid_has_no_share() -> None:
    searched = table(drop=23)
    run = replay(searched, ["random"], trials=2, repeats=8, every=1, charge_invalid=True, reference={"acc": 0, "lat": 9}).runs["random"]
    assert any(r.rows[0] == -1 and r.shares[0] == 0.0 for r in run)


def test_few_valid_combinations_are_found_without_charge() -> None:
    """Proposals run out, and rows are drawn at random; the sampler learns of those and goes on."""
    wide = {f"g{k}": tuple(range(6)) for k in range(5)}
    searched = table(drop=6**5 - 25, genes=wide)
    for name in ("random", "tpe", "nsga2"):
        (run,) = replay(searched, [name], trials=15, repeats=1).runs[name]
        assert len({*run.rows}) == 15, name


class Stubborn(RandomSampler):
    """Proposes one combination for ever, and keeps the studies that it was asked in."""

    studies: list[optuna.Study] = []  # noqa: RUF012 - read by the test

    def sample_independent(self, study: Any, *given: Any) -> Any:
        self.studies.append(study)
        return given[-1].choices[0]


def stubborn(seed: int) -> BaseSampler:
    return Stubborn(seed=seed)


@pytest.mark.parametrize("charge", [False, True])
def test_a_sampler_learns_the_rows_that_were_really_evaluated(charge: bool) -> None:
    searched = table(drop=0)
    Stubborn.studies.clear()
    found = replay(searched, ["stubborn"], trials=5, repeats=1, noise=1.0, charge_invalid=charge, makers={"stubborn": stubborn})
    (run,) = found.runs["stubborn"]
    complete = Stubborn.studies[-1].get_trials(states=(TrialState.COMPLETE,))
    assert [trial.params for trial in complete] == [searched.params(row) for row in run.rows]
    assert [trial.values for trial in complete] == run.observed.tolist()
    assert len(set(run.rows)) == (1 if charge else 5)


def test_a_combination_without_a_row_is_infeasible_to_optuna() -> None:
    searched = table(drop=0)
    without = np.flatnonzero(searched.codes.any(axis=1))  # all but the first choices, which the stubborn one proposes
    left = {name: values[without] for name, values in searched.values.items()}
    searched = dataclasses.replace(searched, codes=searched.codes[without], values=left)
    Stubborn.studies.clear()
    found = replay(searched, ["stubborn"], trials=3, repeats=1, charge_invalid=True, makers={"stubborn": stubborn})
    assert found.runs["stubborn"][0].rows == (-1, -1, -1)
    trials = Stubborn.studies[-1].get_trials()
    assert [(trial.state, list(trial.constraints.values())) for trial in trials] == [(TrialState.COMPLETE, [1.0])] * 3


# -- the model -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("charge", [False, True])
def test_a_model_is_given_what_a_search_could_know(monkeypatch: pytest.MonkeyPatch, charge: bool) -> None:
    searched, given = table(), list[Any]()

    class Fake(RandomSampler):
        def __init__(self, candidates: Any, objectives: Any, seed: int, *, noise: float | None = None) -> None:
            super().__init__(seed=seed)
            given.append((candidates, dict(objectives), noise))

    def recommend(candidates: Any, objectives: Any, rows: Any, values: Any, **options: Any) -> tuple[int, ...]:
        assert (objectives, options["noise"]) == (WAYS, 0.5)
        assert len(rows) == len(values)
        seen = [tuple(choices[c] for choices, c in zip(candidates.genes.values(), candidates.codes[row], strict=True)) for row in rows]
        recommended.append(seen)
        return (0,)

    recommended: list[Any] = []
    monkeypatch.setattr(guide, "ModelSampler", Fake)
    monkeypatch.setattr("nas_attn.replay.recommend_rows", recommend)
    names = ["model", "random+model", "model+observed"]
    found = replay(searched, names, trials=8, repeats=1, noise=0.5, known=["lat"], reference={"acc": 75}, charge_invalid=charge, every=8)
    candidates, objectives, noise = given[0]
    assert (objectives, noise) == (WAYS, 0.5)
    assert candidates.reference == {"acc": 75.0}, "the table's worst row is nothing that a search could know"
    assert len(candidates.codes) == (24 if charge else 16)
    assert set(candidates.known) == (set() if charge else {"lat"})
    if not charge:
        assert candidates.known["lat"] == pytest.approx(searched.values["lat"])
    assert len(recommended) == 2
    for name, seen in zip(names, recommended, strict=False):
        (run,) = found.runs[name]
        rows = [row for row in run.rows if row != -1]
        assert seen == [tuple(searched.params(row).values()) for row in rows]
        assert run.returned == (rows[0],)
    # The fake draws at random: returned by what it observed, its run is its own.
    assert found.runs["model+observed"][0].rows == found.runs["model"][0].rows


# -- figures and errors --------------------------------------------------------------------------------------------------------------------


def test_trials_to_reach_are_those_of_runs_and_null_where_they_never_do() -> None:
    rules = replay(table(), ["random"], trials=16, repeats=1, every=4).rules
    curves = [(0.1, 0.95, 0.5, 0.97), (0.1, 0.2, 0.92, 0.92), (0.1, 0.2, 0.3, 0.4)]
    runs = tuple(Run(rows=(0,) * 16, observed=np.zeros((16, 2)), shares=shares, returned=(0,)) for shares in curves)
    summary = Replay(rules=rules, runs={"s": runs}).summary()["samplers"]["s"]
    assert summary["trials"] == [4, 8, 12, 16]
    assert summary["trials_to_reach"]["0.9"] == {"median": 12, "low": 8, "high": None, "repeats_reached": pytest.approx(2 / 3)}
    assert summary["trials_to_reach"]["0.95"] == {"median": None, "low": 8, "high": None, "repeats_reached": pytest.approx(1 / 3)}
    assert summary["trials_to_reach"]["0.99"] == {"median": None, "low": None, "high": None, "repeats_reached": 0.0}
    assert summary["hypervolume_share"]["median"] == pytest.approx([0.1, 0.2, 0.5, 0.92])
    assert summary["hypervolume_share"]["low"][-1] == pytest.approx(np.percentile([0.97, 0.92, 0.4], 5))
    assert summary["hypervolume_share"]["high"][-1] == pytest.approx(np.percentile([0.97, 0.92, 0.4], 95))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"samplers": ["tpee"]}, "Did you mean 'tpe'"),
        ({"samplers": ["random+front"]}, "RETURNED one of observed, model"),
        ({"samplers": []}, "needs a sampler"),
        ({"workers": 0}, "0 workers"),
        ({"known": ["size"]}, "'size' is none. Objectives: acc, lat"),
        ({"reference": {"size": 1}}, "'size' is none"),
        ({"reference": {"acc": "p101"}}, "acc=p101"),
        ({"reference": {"acc": "high"}}, "acc=high"),
        ({"reference": {"acc": "nan"}}, "acc=nan"),
        ({"reference": {"acc": 1000}}, "none is better than"),
        ({"noise": -1.0}, "acc=-1.0"),
        ({"noise": {"lat": 0.1}, "known": ["lat"]}, "lat=0.1"),
        ({"noise": {"size": 0.1}}, "size=0.1"),
        ({"noise": 0.1, "known": ["acc"]}, "there are none"),
        ({"trials": 17}, "1 to 16 trials"),
        ({"trials": 25, "charge_invalid": True}, "1 to 24 trials"),
        ({"trials": 0}, "got 0 trials"),
        ({"repeats": 0}, "0 repeats"),
        ({"every": 0}, "every 0"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_what_cannot_be_right_is_said_before_anything_runs(options: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"samplers": ["random"], "trials": 4, "repeats": 1, **options}
    with pytest.raises(InputError, match=words):
        replay(table(), given.pop("samplers"), **given)


def test_a_model_cannot_be_charged_in_a_space_that_cannot_be_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replays, "LARGEST_PRODUCT", 23)
    with pytest.raises(InputError, match="at most 23 in all, but the genes have 24"):
        replay(table(), ["random+model"], trials=4, repeats=1, charge_invalid=True)


# -- the command ---------------------------------------------------------------------------------------------------------------------------


def typed(*arguments: str) -> Any:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(simulate)
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def csv(tmp_path: Path) -> str:
    searched = table()
    rows = [",".join(map(str, (*searched.params(row).values(), *searched.points()[row]))) for row in range(len(searched))]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["a,b,c,acc,lat", *rows]) + "\n")
    return str(path)


FIRST = ("--genes", "a,b,c", "--maximize", "acc", "--minimize", "lat", "--trials", "12", "--repeats", "3", "--sampler", "random,nsga2")


def test_the_command_prints_json_alone_with_curves_of_equal_length(csv: str, tmp_path: Path) -> None:
    plot = tmp_path / "new" / "curves.png"
    done = typed(
        csv, *FIRST, "--noise", "acc=0.3", "--known", "lat", "--reference", "acc=70,lat=p90", "--every", "5", "--json", "--plot", str(plot)
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert list(found["samplers"]) == ["random", "nsga2"]
    for curve in found["samplers"].values():
        assert curve["trials"] == [5, 10, 12]
        assert [len(curve["hypervolume_share"][k]) for k in ("median", "low", "high")] == [3, 3, 3]
        assert list(curve["trials_to_reach"]) == ["0.9", "0.95", "0.99"]
    settings = found["settings"]
    assert (settings["rows"], settings["combinations"], settings["noise"], settings["known"]) == (16, 24, {"acc": 0.3}, ["lat"])
    assert settings["reference"] == {"acc": 70.0, "lat": pytest.approx(np.percentile(table().values["lat"], 90))}
    assert len(settings["seeds"]) == 3
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert settings["plot"] == str(plot)


def test_the_command_prints_a_table(csv: str) -> None:
    done = typed(csv, *FIRST, "--charge-invalid")
    assert done.exit_code == 0, done.output
    for words in ("random", "nsga2", "N=12", "to 0.95", "16 of 24 combinations", "invalid + repeated"):
        assert words in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--maximize", "acc,lat"), "lat is in both"),
        (("--minimize", "", "--maximize", ""), "there are none"),
        (("--genes", ","), "`--genes` must name something"),
        (("--noise", "much"), "`--noise` must be a number"),
        (("--noise", "acc=much"), "`--noise` must be a number"),
        (("--reference", "acc"), "NAME=VALUE"),
        (("--genes", "a,b,d"), "'d' is none"),
    ],
)
def test_the_command_says_what_is_wrong(csv: str, arguments: tuple[str, ...], words: str) -> None:
    done = typed(csv, *FIRST, *arguments)
    assert isinstance(done.exception, InputError)
    assert words in str(done.exception)


def test_equal_summaries_give_equal_pictures_and_many_samplers_keep_apart() -> None:
    names = ["random", "tpe", "nsga2", "random+observed", "tpe+observed", "nsga2+observed"]
    summary = replay(table(), names, trials=16, repeats=2, every=8).summary()
    assert picture(summary, "t.csv") == picture(summary, "t.csv")
    texts = [text for text in replays_figure(summary).axes[0].texts if text.get_text().split()[0] in names]
    heights = sorted(text.get_position()[1] for text in texts)
    assert len(heights) == 6
    assert min(b - a for a, b in itertools.pairwise(heights)) > 0.04


def replays_figure(summary: Any) -> Any:
    from nas_attn.replay_picture import draw

    return draw(summary, "t.csv")


# -- real tables, large tables -------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not YOLOBENCH.is_file(), reason="shared/data/yolobench lies beside the repository's folder, and not in it")
def test_yolobench_is_replayed() -> None:
    ways = {"voc_scratch_map50_95": "maximize", "a40_tensorrt_ms": "minimize"}
    searched = read_table(YOLOBENCH, ["family", "depth", "width", "imgsz"], ways)
    assert (len(searched), searched.combinations) == (748, 1232)
    found = replay(searched, ["random"], trials=150, repeats=4, every=50, charge_invalid=True)
    shares = np.median(found.shares("random"), axis=0)
    assert 0.90 < shares[0] < shares[1] < shares[2] < 0.99
    # 748 of 1,232 are valid: two proposals of five are not.
    assert 45 < found.summary()["samplers"]["random"]["charged"]["invalid"] < 75


def test_hundreds_of_thousands_of_rows_are_replayed() -> None:
    genes = {f"g{k}": ("none", "p", "q", "r", "s") for k in range(8)}
    codes = np.indices((5,) * 8, dtype=np.int16).reshape(8, -1).T
    effects = np.random.default_rng(0).normal(size=(2, 8, 5))
    acc, lat = (sum(effects[way, k][codes[:, k]] for k in range(8)) for way in range(2))
    searched = Table(genes=genes, codes=codes, values={"acc": np.asarray(acc), "lat": np.asarray(lat)}, directions=WAYS)
    found = replay(searched, ["random"], trials=30, repeats=2, noise=0.3)
    assert (found.shares("random") < 0.9).all()
    assert (found.shares("random")[:, -1] > 0.2).all()
