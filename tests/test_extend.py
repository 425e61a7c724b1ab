"""A study in a larger space: every trial as it was, under the new genes, whole at every instant; what is no growth is refused."""

import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from fake_evaluator import Fake, executions, setup
from study_targets import BASE, FakePool, Shelf, load_study, optunas_storage, space, stored_study

from nas_attn import extend, files, rows, storage, study
from nas_attn.architecture import Architecture
from nas_attn.errors import Interrupted, NasAttnError, StudyError
from nas_attn.ledger import Ledger
from nas_attn.lock import FolderLock
from nas_attn.pool import InlinePool
from nas_attn.protocol import study_settings
from nas_attn.rebuild import rebuild
from nas_attn.spec import SpaceSpec

MIXED = Fake(fails=10, stops=10, slow=20, bad_build=5)
SMALL, LARGE = space(sites=3, sizes=2, most=1), space(sites=4, sizes=3, most=2)


@pytest.fixture(autouse=True)
def _no_waits_for_the_disk(monkeypatch):
    monkeypatch.setattr(storage, "PRAGMAS", ("journal_mode=WAL", "synchronous=OFF"))
    monkeypatch.setattr(files, "_fsync", lambda _: None)


def _spec(large=False, **changes):
    given = {
        "base": BASE,
        "sites": ["P3"],
        "modules": {"LIA": {"f": [8]}},
        "limits": {"latency_ratio": 1.3},
        "base_seeds": 2,
        "controls": False,
    }
    grown = {"sites": ["P3", "P4"], "modules": {"LIA": {"f": [8, 16]}, "LSKA": {"k_size": [7]}}, "max_placements": 4} if large else {}
    return SpaceSpec.from_dict({**given, **grown, **changes})


def _run(folder, chosen=SMALL, trials=8, spec=None, sampler="random", pool=None, fake=MIXED):
    folder.mkdir(exist_ok=True)
    spec, pool = spec or _spec(chosen is LARGE), pool or InlinePool("fake_evaluator:serve")
    return study.run(folder, spec, chosen, setup(folder, fake), pool, trials=trials, sampler=sampler, storage=Shelf.at(folder))


def _extend(folder, chosen=LARGE, spec=None, sampler="random", fake=MIXED, **changes):
    spec = spec or _spec(chosen is LARGE)
    settings = study_settings(folder, spec, chosen, setup(folder, fake, **changes), sampler)
    return extend.extend(folder, settings, spec.objectives, chosen, Shelf.at(folder))


def _all(folder):
    """Everything of a study but its genes."""
    same = ("number", "state", "values", "user_attrs", "system_attrs", "constraints", "datetime_start", "datetime_complete")
    return [[getattr(trial, name) for name in same] for trial in stored_study(folder).trials]


@pytest.mark.usefixtures("every_storage")
@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_study_goes_on_in_the_larger_space_and_trains_nothing_again(tmp_path, sampler):
    folder = tmp_path / "a"
    before = _run(folder, sampler=sampler)
    told, trained = _all(folder), executions(folder)
    with pytest.raises(StudyError, match=r"sites: added P4\n(.*\n)*With --extend the study goes on"):
        _run(folder, LARGE, sampler=sampler)
    done = _extend(folder, sampler=sampler)
    assert done.trials == len(before.trials)
    assert [str(row) for row in done.differences] == [
        "settings.spec.max_placements: 3 (study), 4 (now)",
        "settings.spec.modules.LIA.f: added 16",
        "settings.spec.modules.LSKA: added, k_size: [7], use_proj: [False]",
        "settings.spec.sites: added P4",
    ]
    assert _extend(folder, sampler=sampler) is None
    assert _all(folder) == told
    after = load_study(folder)
    assert after.trials == before.trials
    assert after.fit == before.fit
    for trial, frozen in zip(after.trials, stored_study(folder).trials, strict=True):
        assert frozen.params == LARGE.encode(trial.architecture)
        assert {name: d.choices for name, d in frozen.distributions.items()} == dict(LARGE.genes)
    assert stored_study(folder).metric_names == list(before.objectives)
    assert executions(folder) == trained
    more = _run(folder, LARGE, trials=20, sampler=sampler)
    assert more.trials[: len(before.trials)] == before.trials
    assert any(not SMALL.contains(trial.architecture) for trial in more.trials)
    assert len({trial.architecture.digest() for trial in more.trials}) == len(more.trials)
    assert not [line for line in executions(folder) if line.startswith("again")]
    assert _run(folder, LARGE, trials=20, sampler=sampler) == more


@pytest.mark.usefixtures("every_storage")
def test_a_trial_that_runs_is_adopted_in_the_new_space(tmp_path):
    folder = tmp_path / "a"

    class Dying(FakePool):
        def wait(self, timeout_s):
            if any(task.kind == "train" and task.key.startswith("train/4/") for task in self.queue):
                raise KeyboardInterrupt
            return super().wait(timeout_s)

    with pytest.raises(Interrupted):
        _run(folder, pool=Dying(slots=1), fake=Fake())
    running = load_study(folder).trials[4]
    assert running.state == "RUNNING"
    _extend(folder, fake=Fake())
    assert load_study(folder).trials[4] == running
    after = _run(folder, LARGE, fake=Fake())
    assert after.trials[4].architecture == running.architecture
    assert after.trials[4].results[0][0].attempt == 2
    assert "RUNNING" not in {trial.state for trial in after.trials}


def test_the_former_study_is_kept_and_a_second_extension_keeps_both(tmp_path, every_storage):
    folder = tmp_path / "a"
    before = _run(folder, trials=3)
    frozen = stored_study(folder).trials
    first = _extend(folder)
    second = _extend(folder, space(sites=5, sizes=3, most=3), _spec(large=True, max_placements=5))
    if every_storage == "journal":
        assert [first.former, second.former] == [str(folder / f"study.journal.before-{n}") for n in (1, 2)]
        kept = optuna.load_study(study_name="a", storage=optunas_storage(f"journal://{first.former}"))
    else:
        names = ["a (before extension 1)", "a (before extension 2)"]
        assert [first.former, second.former] == [f"study {name!r} of the same storage" for name in names]
        held = optunas_storage(Shelf.at(folder) or f"sqlite:///{folder / 'study.db'}")
        assert sorted(optuna.get_all_study_names(held)) == ["a", *names]
        kept = optuna.load_study(study_name=names[0], storage=held)
    assert [(t.params, t.values, t.state) for t in kept.trials] == [(t.params, t.values, t.state) for t in frozen]
    assert load_study(folder).trials == before.trials


@pytest.mark.usefixtures("every_storage")
def test_a_space_that_shrank_below_a_trial_is_refused_with_what_is_in_the_way(tmp_path):
    folder = tmp_path / "a"
    before = _run(folder, LARGE, trials=25)
    outside = [trial for trial in before.trials if not SMALL.contains(trial.architecture)]
    with pytest.raises(StudyError, match=rf"but {len(outside)} of {len(before.trials)} do not") as caught:
        _extend(folder, SMALL)
    lines = str(caught.value).splitlines()
    assert lines[1].startswith(f"  trial {outside[0].number}, {outside[0].architecture}: ")
    assert lines[6] == f"  and {len(outside) - 5} more"
    assert load_study(folder) == before


def test_a_space_that_lost_only_what_no_trial_uses_is_no_obstacle(tmp_path):
    before = _run(tmp_path / "a", LARGE, trials=2)
    used = before.trials[1].architecture
    options = tuple(tuple(p for p in site if p in used.placements or p.module == "LIA") for site in LARGE.placements)
    less = replace(LARGE, placements=options)
    assert less.size < LARGE.size
    _extend(tmp_path / "a", less, _spec(large=True))
    assert load_study(tmp_path / "a").trials == before.trials
    assert _run(tmp_path / "a", less, trials=4, spec=_spec(large=True)).trials[:2] == before.trials


@pytest.mark.parametrize(
    ("spec", "changes", "words"),
    [
        ({"proxy": {"epochs": 7}}, {}, r"settings.spec.proxy.epochs: 6 \(study\), 7 \(now\) \(scores of another training"),
        ({"limits": {"latency_ratio": 1.5}}, {}, "what a limit turned away was never trained"),
        ({"limits": {}}, {}, "what a limit turned away was never trained"),
        ({"seed": 1}, {}, "the split of the data"),
        ({"seeds": 2}, {}, "trained as often"),
        ({"objectives": {"map50_95": "maximize", "latency_ratio": "minimize", "params_m": "minimize"}}, {}, "told with the former"),
        ({}, {"data": "other"}, "scores on other data"),
        ({}, {"device": "cuda:0"}, "nas-attn retarget"),
    ],
)
def test_what_would_make_scores_incomparable_is_refused_and_nothing_changes(tmp_path, spec, changes, words):
    folder = tmp_path / "a"
    before = _run(folder, trials=2)
    names = optuna.get_all_study_names(f"sqlite:///{folder / 'study.db'}")
    with pytest.raises(StudyError, match=words) as caught:
        _extend(folder, spec=_spec(large=True, **spec), **changes)
    assert "sites" not in str(caught.value)  # that it would be extended by is not in the way
    assert load_study(folder) == before
    assert optuna.get_all_study_names(f"sqlite:///{folder / 'study.db'}") == names


def test_another_sampler_is_refused(tmp_path):
    _run(tmp_path / "a", trials=2)
    with pytest.raises(StudyError, match="one sampler's"):
        _extend(tmp_path / "a", sampler="tpe")


def test_where_there_is_no_study_there_is_nothing_to_extend(tmp_path):
    assert _extend(tmp_path / "none") is None
    assert not (tmp_path / "none").exists()
    (tmp_path / "a").mkdir()
    assert _extend(tmp_path / "a") is None
    assert not (tmp_path / "a" / "study.db").exists()
    assert len(_run(tmp_path / "a", LARGE, trials=2).trials) >= 2


def test_a_study_with_a_driver_or_behind_its_ledger_is_not_extended(tmp_path):
    folder = tmp_path / "a"
    _run(folder, trials=2)
    old = (folder / "study.db").read_bytes()
    _run(folder, trials=3)
    with contextlib.closing(FolderLock.take(folder)), pytest.raises(StudyError, match="One driver at a time"):
        _extend(folder)
    (folder / "study.db").write_bytes(old)
    with pytest.raises(StudyError, match="nas-attn rebuild"):
        _extend(folder)


def test_an_extended_study_can_be_rebuilt(tmp_path):
    folder = tmp_path / "a"
    _run(folder, trials=5)
    _extend(folder)
    before, frozen = load_study(folder), stored_study(folder).trials
    for file in folder.glob("study.db*"):
        file.unlink()
    assert rebuild(folder).snapshot == before
    for old, new in zip(frozen, stored_study(folder).trials, strict=True):
        assert (old.params, old.distributions) == (new.params, new.distributions)
    assert _run(folder, LARGE, trials=7).trials[:5] == before.trials[:5]


# -- kills -----------------------------------------------------------------------------------------------------------------------------


class _Killed(BaseException):
    """As abrupt as an exception can be: nothing in the package catches it."""


def _arm(patch, point):
    """Kills before the step of that number; the count of steps so far."""
    steps = []

    def guard(owner, name):
        original = getattr(owner, name)

        def step(*args, **options):
            steps.append(name)
            if len(steps) == point:
                raise _Killed
            return original(*args, **options)

        patch.setattr(owner, name, step)

    for name in ("add_trial", "set_user_attr"):
        guard(optuna.Study, name)
    for name in ("rename", "replace", "unlink"):
        guard(Path, name)
    guard(optuna, "delete_study")
    guard(shutil, "copyfile")
    exchange = extend._exchange_names

    def guarded(*args):
        with pytest.MonkeyPatch.context() as inner:
            commit = sqlalchemy.engine.Connection._commit_impl

            def step(connection):
                steps.append("commit")
                if len(steps) == point:
                    raise _Killed
                commit(connection)

            inner.setattr(sqlalchemy.engine.Connection, "_commit_impl", step)
            return exchange(*args)

    patch.setattr(extend, "_exchange_names", guarded)
    return steps


@pytest.mark.parametrize("kind", [None, "journal://{folder}/study.journal"])
def test_a_kill_at_any_step_leaves_one_whole_study_and_the_same_command_goes_on(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(Shelf, "url", kind)
    origin = tmp_path / "origin"
    before = _run(origin, trials=2)
    whole, seen = _story(tmp_path / "whole", origin), set()
    for point in range(1, 10_000):
        folder = tmp_path / "a"
        shutil.copytree(origin, folder)
        with monkeypatch.context() as patch:
            steps = _arm(patch, point)
            try:
                _extend(folder)
                break
            except _Killed:
                seen.add(steps[-1])
        found = load_study(folder)
        assert found.trials == before.trials
        space_now = found.settings["space"]
        assert space_now in (SMALL.fingerprint(), LARGE.fingerprint())
        seen.add(space_now)
        assert _story(folder, folder) == whole
        shutil.rmtree(folder)
    assert seen >= {SMALL.fingerprint(), LARGE.fingerprint(), "set_user_attr"}
    assert kind or "commit" in seen


def _story(folder, origin):
    """What the extending command makes of a study: its trials, the stored genes, the ledger."""
    if folder != origin:
        shutil.copytree(origin, folder)
    _extend(folder)
    after = _run(folder, LARGE, trials=3)
    mark = json.loads((folder / "study.json").read_text())["name"]
    assert mark == "origin"
    held = optunas_storage(Shelf.at(folder) or f"sqlite:///{folder / 'study.db'}")
    genes = [(t.params, t.distributions) for t in optuna.load_study(study_name=mark, storage=held).trials]
    return [(t.architecture, t.kind, t.values) for t in after.trials], genes, Ledger.of(folder).pages()


def test_a_storage_that_takes_no_writes_is_told_and_nothing_changes(tmp_path, monkeypatch):
    folder = tmp_path / "a"
    before = _run(folder, trials=2)

    def full(*_, **__):
        raise optuna.exceptions.StorageInternalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(rows.TableRows, "add", full)
        patch.setattr(rows.PlainRows, "add", full)
        with pytest.raises(NasAttnError, match="must take a study's extension, but: database or disk is full; free it, then"):
            _extend(folder)
    assert load_study(folder) == before
    _extend(folder)
    assert load_study(folder).trials[0].architecture == Architecture(BASE)
