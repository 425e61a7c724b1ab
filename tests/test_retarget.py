"""A derived study through its whole life: measured on a pool, killed anywhere, whole at the end, searched on, and its source untouched."""

import hashlib
import json
import random
from dataclasses import asdict, replace
from pathlib import Path

import fake_evaluator
import pytest
from fake_evaluator import Fake, executions, setup
from study_targets import BASE, FakePool, Shelf, load_study, space

from nas_attn import derive, files, rebuild, retarget, storage, study
from nas_attn.architecture import Architecture
from nas_attn.errors import InputError, Interrupted, StudyError
from nas_attn.jobs import Control
from nas_attn.ledger import Ledger
from nas_attn.pool import InlinePool
from nas_attn.spec import SpaceSpec
from nas_attn.work import Done

FORMER = Fake(fails=10, stops=10, slow=20, bad_build=5)
ONNX = {"backend": "onnxruntime", "device": "cpu"}
SLOW_BY_ONNX = 40
"""Of 100 architectures: by the other runtime more are over the limit, unless a test says otherwise."""
CONTROLS: list[Control] = [("help", Architecture(BASE), {"epochs": 18})]


@pytest.fixture(autouse=True)
def _no_waits_for_the_disk(monkeypatch):
    monkeypatch.setattr(storage, "PRAGMAS", ("journal_mode=WAL", "synchronous=OFF"))
    monkeypatch.setattr(files, "_fsync", lambda _: None)


@pytest.fixture(autouse=True)
def by_onnx(monkeypatch):
    """Has the evaluator find other architectures slow by the other runtime; how many can be changed."""
    real, slow = fake_evaluator.serve, {"slow": SLOW_BY_ONNX}

    def serve(kind, payload):
        task = json.loads(payload)
        if kind == "measure" and task["setup"]["latency"]["backend"] == "onnxruntime":
            task["setup"]["fake"] |= slow
        return real(kind, json.dumps(task))

    monkeypatch.setattr(fake_evaluator, "serve", serve)
    return slow


def _setup(folder, backend="torch", fake=FORMER):
    return setup(folder, fake, latency={"backend": backend})


def _search(folder, trials=18, backend="torch", where=None, fake=FORMER, **options):
    folder.mkdir(exist_ok=True)
    given = {"base": BASE, "sites": ["P3"], "modules": {"LIA": {"f": [8]}}, "limits": {"latency_ratio": 1.3}, "base_seeds": 2}
    spec = SpaceSpec.from_dict({**given, "controls": True, "latency": {"backend": backend}})
    options = {"sampler": "random", "storage": Shelf.url, "command": "nas-attn search toy", **options}
    pool = InlinePool("fake_evaluator:serve")
    within = where or space()
    return study.run(folder, spec, within, _setup(folder, backend, fake), pool, trials=trials, controls=CONTROLS, **options)


def _next(snapshot, pending):
    return next(((t.number, 1) for t in snapshot.trials[1:] if t.kind == "measured" and len(t.results) == 1 and not pending), None)


def _derive(source, folder, pool=None, on_event=None, fake=FORMER, **options):
    options = {"storage": Shelf.url, "command": "nas-attn retarget", **ONNX, **options}
    move = retarget.prepare(source, folder, _setup(source, fake=fake), **options)
    return retarget.run(move, pool or FakePool(), on_event)


def _contents(folder):
    own = ("-wal", "-shm")
    return {
        str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.rglob("*")) if f.is_file() and not f.name.endswith(own)
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A study with every kind of trial, repeats, controls and weights."""
    folder = tmp_path_factory.mktemp("source") / "study"
    snapshot = _search(folder, repeats=3, next_repeat=_next)
    assert {trial.kind for trial in snapshot.trials} == {"measured", "rejected", "stopped", "failure"}
    for file in folder.glob("trials/*/*/*/outcome.json"):
        file.with_name("weights.pt").write_text("weights")
    (folder / "base").mkdir()
    for name in ("weights.pt", "fit.json", "latency-gate-aaa.json"):
        (folder / "base" / name).write_text(name)
    (folder / "lists").mkdir()
    (folder / "lists" / "train.txt").write_text("images")
    return folder


def test_every_trial_is_measured_anew_and_none_is_trained(source, tmp_path):
    before, former = _contents(source), load_study(source)
    pool = FakePool()
    made = _derive(source, tmp_path / "new", pool)
    assert _contents(source) == before
    ours = {trial.architecture.digest(): trial for trial in made.snapshot.trials}
    assert {task.kind for task in pool.seen} == {"measure"}
    assert all(task.exclusive and task.deadline_s for task in pool.seen)
    assert max(len(json.loads(task.payload)["architectures"]) for task in pool.seen) == retarget.BATCH
    assert {json.loads(task.payload)["setup"]["latency"]["backend"] for task in pool.seen} == {"onnxruntime"}
    assert len(executions(tmp_path / "new")) == 0
    changed = 0
    for trial in former.trials:
        now = ours.get(trial.architecture.digest())
        if trial.kind == "rejected":
            assert (now is None) == (trial.number in made.left_out)
        else:
            assert now.results == trial.results
            assert now.controls == trial.controls
            assert now.kind in (trial.kind, "rejected")
            changed += now.kind != trial.kind
            if now.kind == "measured":
                assert now.values == {name: pytest.approx(value) for name, value in trial.values.items()}
    assert changed
    assert made.left_out == {}  # slower for everybody
    assert made.snapshot.fit == former.fit
    told = made.snapshot.settings["derived"]
    assert (told["from"], told["trials"], told["backend"], told["device"]) == ("study", len(former.trials), "torch", "cpu")
    assert told["taken"] == len(made.snapshot.trials) == len(former.trials) - len(made.left_out)
    for name in ("base/weights.pt", "base/fit.json", "lists/train.txt"):
        assert (tmp_path / "new" / name).samefile(source / name)
    assert not (tmp_path / "new" / "base" / "latency-gate-aaa.json").exists()
    assert not (tmp_path / "new" / retarget.WORK).exists()
    assert made.without_weights == ()


def test_a_search_goes_on_in_the_new_study_and_trains_only_what_is_new(source, tmp_path):
    folder = tmp_path / "new"
    made = _derive(source, folder)
    more = _search(folder, trials=22, backend="onnxruntime")
    assert more.trials[: len(made.snapshot.trials)] == made.snapshot.trials
    assert sum(trial.kind in ("measured", "stopped") for trial in more.trials) == 22
    trained = {line.split()[1].split("/")[0] for line in executions(folder)}
    assert not trained & {trial.architecture.digest() for trial in made.snapshot.trials}
    assert not [line for line in executions(folder) if line.startswith(("again", "fit"))]
    with pytest.raises(StudyError, match=r"latency\.backend: onnxruntime \(study\), torch \(now\)"):
        _search(folder)
    assert _derive(source, folder).snapshot.trials == more.trials  # whole already, and gone on with
    (folder / "study.db").unlink()
    assert rebuild.rebuild(folder).snapshot.trials == more.trials


def test_what_was_rejected_and_is_left_out_may_be_asked_for_and_trained(tmp_path, by_onnx):
    few, fake = space(sites=2, sizes=2), Fake(slow=60)
    former = _search(tmp_path / "a", trials=6, where=few, fake=fake)
    assert [trial for trial in former.trials if trial.kind == "rejected"]
    by_onnx["slow"] = 0
    made = _derive(tmp_path / "a", tmp_path / "new", fake=fake)
    assert [*made.left_out] == [trial.number for trial in former.trials if trial.kind == "rejected"]
    assert {*made.left_out.values()} == {derive.UNTRAINED}
    more = _search(tmp_path / "new", trials=few.size, backend="onnxruntime", where=few, fake=fake)
    digests = {trial.architecture.digest() for trial in more.trials if trial.kind == "measured"}
    assert digests == {architecture.digest() for architecture in few.enumerate()}


def test_a_third_study_brings_back_what_the_second_rejected(source, tmp_path, by_onnx):
    by_onnx["slow"] = 90
    first, second = load_study(source), _derive(source, tmp_path / "second").snapshot
    assert sum(trial.kind == "measured" for trial in second.trials) < 10
    third = _derive(tmp_path / "second", tmp_path / "third", backend="torch").snapshot
    told = {trial.architecture.digest(): (trial.kind, trial.values, trial.results) for trial in third.trials}
    for trial in first.trials:
        if trial.kind != "rejected":
            assert told[trial.architecture.digest()] == (trial.kind, trial.values, trial.results)
    assert third.settings["derived"]["earlier"]["from"] == "study"
    settings = {name: value for name, value in third.settings.items() if name not in ("derived", "command")}
    assert settings == {name: value for name, value in first.settings.items() if name != "command"}


class Killed(BaseException):
    """As a kill: nothing that the code does about exceptions helps."""


def _killing(monkeypatch, after):
    """Kills at the n-th change of the new folder or its storage, before or after it is made."""
    count = {"n": 0}

    def wrap(owner, name):
        real = getattr(owner, name)

        def wrapped(*arguments, **options):
            count["n"] += 1
            if count["n"] == after:
                raise Killed
            done = real(*arguments, **options)
            count["n"] += 1
            if count["n"] == after:
                raise Killed
            return done

        monkeypatch.setattr(owner, name, wrapped)

    for owner, name in (
        (retarget, "write_atomic"),
        (retarget, "_take"),
        (retarget, "_asked"),
        (retarget, "write_anew"),
        (retarget.shutil, "rmtree"),
        (Path, "rename"),
        (storage.optuna.Study, "add_trial"),
        (storage.optuna.Study, "set_user_attr"),
        (Ledger, "_write"),
    ):
        wrap(owner, name)
    return count


@pytest.mark.slow
def test_a_kill_at_any_instant_leaves_what_the_same_command_makes_whole(tmp_path, monkeypatch):
    source = tmp_path / "study"
    _search(source, trials=6)
    whole = _derive(source, tmp_path / "whole").snapshot
    with monkeypatch.context() as patched:
        count = _killing(patched, -1)
        _derive(source, tmp_path / "counted")
    steps = count["n"]
    assert steps > 80
    for after in sorted({1, 2, steps, steps - 1, *random.Random(0).sample(range(1, steps), 10)}):
        folder = tmp_path / f"killed-{after}"
        with monkeypatch.context() as patched:
            _killing(patched, after)
            with pytest.raises(Killed):
                _derive(source, folder)
        pool = FakePool()
        made = _derive(source, folder, pool).snapshot
        assert made.trials == whole.trials, after
        assert [*made.settings] == [*whole.settings]
        assert Ledger.of(folder).pages().keys() == {trial.number for trial in made.trials}
        assert not [*folder.glob("study.db.new*"), *folder.glob(f"{retarget.WORK}*")]
        assert [f.relative_to(folder) for f in sorted(folder.glob("trials/*/*/*/*.[jp]*"))] == [
            f.relative_to(source) for f in sorted(source.glob("trials/*/*/*/*.[jp]*"))
        ]


def test_what_was_measured_before_a_kill_is_not_measured_again(source, tmp_path):
    seen: list[Done] = []

    class Dying(FakePool):
        def wait(self, timeout_s):
            if len(seen) == 2:
                raise KeyboardInterrupt
            seen.extend(super().wait(timeout_s))
            return seen[-1:]

    with pytest.raises(Interrupted, match=f"Stopped with {2 * retarget.BATCH} latencies measured; the same command goes on"):
        _derive(source, tmp_path / "new", Dying())
    rest = FakePool()
    _derive(source, tmp_path / "new", rest)
    wanted = len(derive.to_measure(load_study(source).trials))
    assert sum(len(json.loads(task.payload)["architectures"]) for task in rest.seen) == wanted - 2 * retarget.BATCH


def test_a_lost_measurement_is_repeated_alone_and_fails_at_last(source, tmp_path):
    whole = _derive(source, tmp_path / "whole").snapshot
    pool = FakePool(lose={"measure": 2})
    assert _derive(source, tmp_path / "twice", pool).snapshot.trials == whole.trials
    assert {len(json.loads(task.payload)["architectures"]) for task in pool.seen[3:]} == {1}
    with pytest.raises(StudyError, match=r"The base must be measured, but with the new latency: worker: lost 3 times"):
        _derive(source, tmp_path / "never", FakePool(lose={"measure": 10**6}))
    assert not (tmp_path / "never" / "study.db").exists()


@pytest.mark.parametrize("nonsense", ["{}", '{"costs": []}', '{"costs": 3}'])
def test_a_measurement_that_makes_no_sense_is_a_lost_one(source, tmp_path, monkeypatch, nonsense):
    whole = _derive(source, tmp_path / "whole").snapshot
    pool = FakePool()
    answered, spoilt = pool.wait, []

    def wait(timeout_s):
        (done,) = answered(timeout_s)
        spoilt.extend([done.key] * (len(spoilt) < 2))
        return [replace(done, result=nonsense)] if done.key in spoilt else [done]

    monkeypatch.setattr(pool, "wait", wait)
    assert _derive(source, tmp_path / "twice", pool).snapshot.trials == whole.trials
    assert len(spoilt) == 2


def test_progress_is_told(source, tmp_path):
    events: list[study.Event] = []
    _derive(source, tmp_path / "new", on_event=events.append)
    assert [event.done for event in events] == [*range(1, events[-1].total + 1)]
    assert any("of the base's latency" in event.message for event in events)


def test_one_folder_one_task(source, tmp_path):
    with pytest.raises(InputError, match="derived into another folder"):
        _derive(source, source)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "setup.json").write_text("{}")
    with pytest.raises(StudyError, match="holds another study"):
        _derive(source, tmp_path / "other")
    _search(tmp_path / "search", trials=2)
    with pytest.raises(StudyError, match="was begun from another study;"):
        _derive(source, tmp_path / "search")
    _derive(source, tmp_path / "new")
    with pytest.raises(StudyError, match="was begun from the same study for another backend;"):
        _derive(source, tmp_path / "new", backend="torch")
    with pytest.raises(StudyError, match=r"`study\.db`"):
        _derive(tmp_path / "nowhere", tmp_path / "b")
    move = retarget.prepare(source, tmp_path / "locked", _setup(source), **ONNX)
    (tmp_path / "locked").mkdir()
    with retarget._locked(move), pytest.raises(StudyError, match="One driver at a time"):
        retarget.run(move, FakePool())


def test_a_study_without_a_measured_base_gives_none(tmp_path):
    with pytest.raises(Interrupted):
        _search(tmp_path / "a", trials=1, on_event=_interrupting("asked"))
    with pytest.raises(StudyError, match="one with a measured base"):
        _derive(tmp_path / "a", tmp_path / "b")


def _interrupting(kind):
    def on_event(event):
        if event.kind == kind:
            raise KeyboardInterrupt

    return on_event


def test_a_file_on_another_disk_is_copied(source, tmp_path, monkeypatch):
    def no_link(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(retarget.os, "link", no_link)
    _derive(source, tmp_path / "new")
    copied = tmp_path / "new" / "base" / "weights.pt"
    assert copied.read_text() == "weights.pt"
    assert not copied.samefile(source / "base" / "weights.pt")


@pytest.mark.slow
def test_a_study_in_postgresql_is_derived_beside_its_source(tmp_path, postgres, monkeypatch):
    monkeypatch.setattr(Shelf, "url", postgres.fresh())
    former = _search(tmp_path / "study")
    with monkeypatch.context() as patched:
        _killing(patched, 150)
        with pytest.raises(Killed):
            _derive(tmp_path / "study", tmp_path / "new")
    made = _derive(tmp_path / "study", tmp_path / "new").snapshot
    assert load_study(tmp_path / "study") == former
    assert made.name == "new"
    assert not (tmp_path / "new" / "study.db").exists()
    assert len(_search(tmp_path / "new", trials=20, backend="onnxruntime").trials) > len(made.trials)
    assert asdict(made.trials[0].cost)
