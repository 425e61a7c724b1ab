"""A study that lost its storage: what the ledger gives back, what it cannot, and that a search goes on from there."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from fake_evaluator import Fake, cost, executions, measured, setup
from study_targets import BASE, RECIPE, FakePool, Shelf, job_of, load_study, open_record, optunas_storage, space, stored_study, tell_next

from nas_attn import files, rebuild, storage, study
from nas_attn.architecture import Architecture
from nas_attn.errors import Interrupted, StudyError
from nas_attn.jobs import Control
from nas_attn.ledger import Ledger
from nas_attn.outcome import Failure, Rejected, Stopped, outcome_file_text
from nas_attn.pareto import front
from nas_attn.pool import InlinePool
from nas_attn.spec import SpaceSpec

MIXED = Fake(fails=10, stops=10, slow=20, bad_build=5)
CONTROLS: list[Control] = [("help", Architecture(BASE), {"epochs": 18})]


@pytest.fixture(autouse=True)
def _no_waits_for_the_disk(monkeypatch):
    monkeypatch.setattr(storage, "PRAGMAS", ("journal_mode=WAL", "synchronous=OFF"))
    monkeypatch.setattr(files, "_fsync", lambda _: None)


def _next(snapshot, pending):
    return next(
        (
            (trial.number, seed)
            for trial in snapshot.trials
            for seed in range(4)
            if trial.kind == "measured" and seed not in pending.get(trial.number, ()) and seed not in {job.seed for job, _ in trial.results}
        ),
        None,
    )


def _search(folder, trials=18, pool=None, **options):
    folder.mkdir(exist_ok=True)
    given = {"base": BASE, "sites": ["P3"], "modules": {"LIA": {"f": [8]}}, "limits": {"latency_ratio": 1.3}, "base_seeds": 2}
    spec = SpaceSpec.from_dict({**given, "controls": True})
    pool = pool or InlinePool("fake_evaluator:serve")
    options = {
        "sampler": "random",
        "storage": Shelf.at(folder),
        "command": "nas-attn search toy",
        "repeats": 5,
        "next_repeat": _next,
        **options,
    }
    return study.run(folder, spec, space(), setup(folder, MIXED), pool, trials=trials, controls=CONTROLS, **options)


def _front(snapshot):
    told = [trial for trial in snapshot.trials if trial.kind == "measured"]
    points = [[trial.values[name] for name in snapshot.objectives] for trial in told]
    return [told[index].number for index in front(points, [*snapshot.objectives.values()])]


def _lose(folder, how):
    for file in folder.glob("study.db*"):
        if how == "deleted":
            file.unlink()
        else:
            file.write_bytes(b"garbage " * 500 if how == "garbage" else file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("how", ["deleted", "garbage", "torn"])
def test_a_rebuilt_study_equals_the_lost_one_and_the_search_goes_on(tmp_path, how):
    folder = tmp_path / "a"
    before = _search(folder)
    assert {trial.kind for trial in before.trials} == {"measured", "rejected", "stopped", "failure"}
    assert any(len(trial.results) > 1 for trial in before.trials[1:])
    assert before.trials[0].controls
    frozen = stored_study(folder).trials
    trained = executions(folder)
    _lose(folder, how)
    with pytest.raises(StudyError, match=r"`nas-attn rebuild|must hold `study.db`"):
        load_study(folder)
    with pytest.raises(StudyError, match="nas-attn rebuild"):
        _search(folder)
    made = rebuild.rebuild(folder)
    assert made.lost == ()
    assert made.snapshot == before == load_study(folder)
    assert _front(made.snapshot) == _front(before)
    for old, new in zip(frozen, stored_study(folder).trials, strict=True):
        same = ("state", "values", "params", "distributions", "user_attrs", "system_attrs", "constraints")
        assert [getattr(old, name) for name in same] == [getattr(new, name) for name in same]
    assert stored_study(folder).metric_names == list(before.objectives)
    assert (how == "deleted") == (not (folder / "study.db.broken-1").exists())
    assert [file.name for file in made.aside[:1]] == ([] if how == "deleted" else ["study.db.broken-1"])
    assert _search(folder) == before
    assert executions(folder) == trained
    more = _search(folder, trials=22)
    whole = _search(tmp_path / "b", trials=22)
    assert [trial.architecture for trial in more.trials] == [trial.architecture for trial in whole.trials]
    assert more.trials[: len(before.trials)] == before.trials
    assert sum(trial.kind in ("measured", "stopped") for trial in more.trials) == 22
    assert not [line for line in executions(folder) if line.startswith("again")]


@pytest.mark.slow
def test_a_search_in_postgresql_is_interrupted_and_goes_on_as_one_in_sqlite(tmp_path, postgres, monkeypatch):
    wanted = _search(tmp_path / "sqlite", trials=10)
    monkeypatch.setattr(Shelf, "url", postgres.fresh())
    folder, seen = tmp_path / "a", []

    class Dying(InlinePool):
        def wait(self, timeout_s):
            seen.append(1)
            if len(seen) % 6 == 0:
                raise KeyboardInterrupt
            return super().wait(timeout_s)

    for _ in range(50):
        with contextlib.suppress(Interrupted):
            found = _search(folder, trials=10, pool=Dying("fake_evaluator:serve"))
            break
    assert len(seen) > 6
    told = [[(trial.architecture, trial.kind, trial.values) for trial in study.trials] for study in (found, wanted)]
    assert told[0] == told[1]  # attempts differ: what was interrupted was begun again
    assert not [line for line in executions(folder) if line.startswith("again")]
    assert not (folder / "study.db").exists()
    monkeypatch.undo()
    assert rebuild.rebuild(folder).snapshot.trials == found.trials  # the server is gone, the folder is not


def test_a_study_that_was_lost_under_way_goes_on_as_if_it_had_not(tmp_path):
    whole = _search(tmp_path / "whole", trials=8, repeats=0)
    folder = tmp_path / "a"

    class Dying(FakePool):
        def wait(self, timeout_s):
            if any(task.kind == "train" and int(task.key.split("/")[1]) >= 3 for task in self.queue):
                raise KeyboardInterrupt
            return super().wait(timeout_s)

    with pytest.raises(Interrupted):
        _search(folder, trials=8, repeats=0, pool=Dying(slots=1))
    running = load_study(folder).trials
    assert running[-1].state == "RUNNING"
    _lose(folder, "garbage")
    made = rebuild.rebuild(folder)
    assert made.snapshot.trials == running
    after = _search(folder, trials=8, repeats=0)
    assert [trial.architecture for trial in after.trials] == [trial.architecture for trial in whole.trials]
    assert [trial.values for trial in after.trials] == [trial.values for trial in whole.trials]
    assert after.trials[running[-1].number].results[0][0].attempt == 2  # the first one was handed over before the loss
    assert not [line for line in executions(folder) if line.startswith("again")]


def _fill(folder):
    with open_record(folder) as record:
        tell_next(record, measured(0.3))
        tell_next(record, Rejected(limit="latency_ratio", value=1.5, bound=1.3), cost(1.5))
        tell_next(record, measured(0.4))
        tell_next(record, Stopped(rung=1, curve=()))
        tell_next(record, Failure(stage="train", error="x"))
        record.begin_repeat(2, 1)
        record.save_repeat(2, job_of(record.trials[2], seed=1), measured(0.5))
        return record.snapshot()


def test_a_study_is_rebuilt_in_every_storage(tmp_path, every_storage):
    before, url = _fill(tmp_path), Shelf.at(tmp_path)
    with pytest.raises(StudyError, match="holds 5 trials"):
        rebuild.rebuild(tmp_path, url)
    if every_storage == "postgresql":
        optuna.delete_study(study_name=tmp_path.name, storage=optunas_storage(url))
    else:
        (tmp_path / ("study.db" if url is None else "study.journal")).write_bytes(b"garbage\n" * 500 + b"{}")
    with pytest.raises(StudyError, match=r"nas-attn rebuild|must hold study"):
        load_study(tmp_path)
    made = rebuild.rebuild(tmp_path, url)
    assert made.snapshot == before == load_study(tmp_path)
    assert made.lost == ()
    with open_record(tmp_path) as record:
        assert record.ask(RECIPE).number == 5


def test_a_study_that_can_be_read_is_kept_unless_forced(tmp_path):
    before = _fill(tmp_path)
    with pytest.raises(StudyError, match="holds 5 trials; --force puts it aside"):
        rebuild.rebuild(tmp_path)
    with open_record(tmp_path), pytest.raises(StudyError, match="One driver at a time"):
        rebuild.rebuild(tmp_path, force=True)
    for number in (1, 2):
        made = rebuild.rebuild(tmp_path, force=True)
        assert made.snapshot == before
        assert (tmp_path / f"study.db.broken-{number}").is_file()


def test_an_older_copy_is_not_driven_but_made_anew(tmp_path):
    with open_record(tmp_path) as record:
        tell_next(record, measured(0.3))
    old = (tmp_path / "study.db").read_bytes()
    with open_record(tmp_path) as record:
        record.ask(RECIPE)
    whole = load_study(tmp_path)
    (tmp_path / "study.db").write_bytes(old)
    with pytest.raises(StudyError, match=r"knows more of trial 1: the storage is lost or an older copy"):
        open_record(tmp_path)
    assert rebuild.rebuild(tmp_path, force=True).snapshot == whole


def test_what_cannot_be_made_anew_is_named_and_the_rest_moves_up(tmp_path):
    before = _fill(tmp_path)
    (tmp_path / "ledger" / "trial-00001.json").write_text('{"schema": 1, "num')
    job = job_of(before.trials[1])
    stray = replace(job, architecture=Architecture(BASE)).folder(tmp_path)
    stray.mkdir(parents=True)
    (stray / "outcome.json").write_text(outcome_file_text(job, measured(0.3)))
    _lose(tmp_path, "garbage")
    made = rebuild.rebuild(tmp_path)
    kept = [trial for trial in before.trials if trial.number != 1]
    assert made.snapshot.trials == tuple(replace(trial, number=number) for number, trial in enumerate(kept))
    assert made.snapshot.trials[1].values["map50_95"] == 0.5  # its repeat moved with it
    assert [words.split("/")[-1].split(":")[0] for words in made.lost[:1]] == ["trial-00001.json cannot be read"]
    assert made.lost[1:4] == ("trial 2 is now trial 1", "trial 3 is now trial 2", "trial 4 is now trial 3")
    assert made.lost[4].startswith(f"trials/{Architecture(BASE).digest()} holds outcomes of no trial")
    assert len(made.lost) == 5
    with open_record(tmp_path) as record:
        assert record.repeats == {1: (1,)}
    assert len(Ledger.of(tmp_path).pages()) == 4
    assert (tmp_path / "ledger.broken-1" / "trial-00002.json").is_file()


@pytest.mark.parametrize("name", ["trial-00000.json", "study-settings.json", "genes.json"])
def test_a_ledger_without_its_heart_is_refused_and_nothing_changes(tmp_path, name):
    _fill(tmp_path)
    (tmp_path / "ledger" / name).unlink()
    _lose(tmp_path, "garbage")
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(StudyError, match=name.partition(".")[0]):
        rebuild.rebuild(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


def test_a_folder_without_a_ledger_is_refused(tmp_path):
    with pytest.raises(StudyError, match=r"lacks ledger/study-settings.json and"):
        rebuild.rebuild(tmp_path)
    with pytest.raises(StudyError, match="must be a folder"):
        rebuild.rebuild(tmp_path / "none")


def test_a_study_of_before_there_was_a_ledger_gets_one_when_it_goes_on(tmp_path):
    before = _fill(tmp_path)
    for file in (tmp_path / "ledger").iterdir():
        file.unlink()
    open_record(tmp_path).close()
    _lose(tmp_path, "deleted")
    assert rebuild.rebuild(tmp_path).snapshot == before


@pytest.mark.parametrize("point", range(12))
def test_a_kill_while_it_is_made_anew_is_made_good(tmp_path, monkeypatch, point):
    before = _fill(tmp_path)
    _lose(tmp_path, "garbage")
    steps = iter(range(100))

    class _Killed(BaseException):
        pass

    def guard(owner, name):
        original = getattr(owner, name)

        def step(*args, **options):
            if next(steps) == point:
                raise _Killed
            return original(*args, **options)

        monkeypatch.setattr(owner, name, step)

    guard(optuna.Study, "add_trial")
    guard(optuna.Study, "set_user_attr")
    guard(Path, "rename")
    with contextlib.suppress(_Killed):
        rebuild.rebuild(tmp_path)
    monkeypatch.undo()
    if not (tmp_path / "study.db").exists() or (tmp_path / "study.db").read_bytes().startswith(b"garbage"):
        rebuild.rebuild(tmp_path)
    assert load_study(tmp_path) == before
    assert not [*tmp_path.glob("study.db.new*")]


def test_a_study_moves_to_a_server_and_back(tmp_path, postgres):
    before, url = _fill(tmp_path), postgres.fresh()
    assert rebuild.rebuild(tmp_path, url).snapshot == before == load_study(tmp_path, url)
    with pytest.raises(StudyError, match="holds 5 trials in its storage"):
        rebuild.rebuild(tmp_path, url, force=True)
    with open_record(tmp_path, storage=url) as record:
        record.ask(RECIPE)
        longer = record.snapshot()
    with pytest.raises(StudyError, match=r"lives in postgresql\S+, not in study.db; give its own --storage, or move .* `nas-attn rebuild"):
        open_record(tmp_path)
    assert rebuild.rebuild(tmp_path, force=True).snapshot == longer


def test_anothers_study_of_that_name_is_left_alone(tmp_path, postgres):

    _fill(tmp_path)
    url = postgres.fresh()
    other = optuna.create_study(study_name=tmp_path.name, storage=optunas_storage(url))
    other.add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(StudyError, match="needs a name of its own"):
        rebuild.rebuild(tmp_path, url)
    assert len(other.trials) == 1


def test_a_page_holds_what_the_storage_took(tmp_path):
    _fill(tmp_path)
    page = json.loads((tmp_path / "ledger" / "trial-00002.json").read_text())
    frozen = stored_study(tmp_path).trials[2]
    assert page["values"] == frozen.values
    assert page["system"] == frozen.system_attrs
    assert page["user"] == frozen.user_attrs
