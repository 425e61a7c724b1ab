"""The storage: who may open a study, how SQLite is opened, and what a storage that comes and goes costs."""

import json
import os
import socket
import sqlite3
import subprocess
import sys
from multiprocessing import get_context

import optuna
import pytest
from fake_evaluator import cost, measured
from study_targets import BASE, OBJECTIVES, RECIPE, Shelf, job_of, load_study, open_record, stored_study, tell_next

from nas_attn import files, rows, storage
from nas_attn.errors import InputError, NasAttnError, StudyError
from nas_attn.outcome import Rejected
from nas_attn.rebuild import rebuild


@pytest.fixture(autouse=True)
def _no_waits_for_the_disk(request, monkeypatch):
    if "full_synchronisation" not in request.node.name:
        monkeypatch.setattr(storage, "PRAGMAS", ("journal_mode=WAL", "synchronous=OFF"))
        monkeypatch.setattr(files, "_fsync", lambda _: None)


# -- who may open it -------------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("every_storage")
def test_a_second_driver_is_refused_and_a_reader_is_not(tmp_path):
    with open_record(tmp_path) as record:
        record.ask(RECIPE)
        with pytest.raises(StudyError, match=f"process {os.getpid()} on host {socket.gethostname()} drives .*, last sign of life"):
            open_record(tmp_path)
        code = f"from nas_attn.record import load_study; print(len(load_study({str(tmp_path)!r}, {Shelf.at(tmp_path)!r}).trials))"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"
    open_record(tmp_path).close()


def _hold(folder, pipe):
    record = open_record(folder)
    pipe.send("open")
    pipe.recv()
    record.close()


@pytest.mark.usefixtures("every_storage")
def test_the_lock_of_a_killed_driver_is_free(tmp_path):
    ours, theirs = get_context("fork").Pipe()
    process = get_context("fork").Process(target=_hold, args=(tmp_path, theirs), daemon=True)
    process.start()
    ours.recv()
    with pytest.raises(StudyError, match=f"process {process.pid} on host .* drives"):
        open_record(tmp_path)
    process.kill()
    process.join()
    open_record(tmp_path).close()


@pytest.mark.usefixtures("every_storage")
def test_other_settings_are_refused_with_both_values_and_other_keys_are_not_named(tmp_path):
    open_record(tmp_path).close()
    changed = {"spec": {"seed": 1, "proxy": {"epochs": 6, "lr0": 0.1}}, "space": "abc"}
    with pytest.raises(StudyError, match="must go on with the settings") as caught:
        open_record(tmp_path, settings=changed)
    lines = str(caught.value).splitlines()
    assert lines[1:3] == ["  settings.spec.proxy.lr0: absent (study), 0.1 (now)", "  settings.spec.seed: 0 (study), 1 (now)"]
    assert len(lines) == 4
    with pytest.raises(StudyError, match=r"objectives\.params_m: absent \(study\), minimize \(now\)"):
        open_record(tmp_path, objectives={**OBJECTIVES, "params_m": "minimize"})
    open_record(tmp_path).close()


def test_one_study_of_a_shared_storage_is_driven_from_one_folder(tmp_path):
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    with open_record(tmp_path / "a", storage=url, name="search") as record:
        record.ask(RECIPE)
        with pytest.raises(StudyError, match="driven from the folder that began it, but 'search'"):
            open_record(tmp_path / "b", storage=url, name="search")
    with open_record(tmp_path / "c", storage=url) as record:
        assert not record.trials
    assert load_study(tmp_path / "a", url).name == "search"
    assert len(load_study(tmp_path / "a", url).trials) == 1
    assert load_study(tmp_path / "c", url).name == "c"
    with pytest.raises(StudyError, match=r"must hold `study.db`, but .* its study lives in sqlite:///\S+shared.db: give --storage"):
        load_study(tmp_path / "a")
    with pytest.raises(StudyError, match="holds one study"):
        open_record(tmp_path / "a", storage=url, name="another")


def test_a_moved_study_goes_on_and_one_database_file_is_enough_to_read_it(tmp_path):
    with open_record(tmp_path / "a") as record:
        record.ask(RECIPE)
    (tmp_path / "a").rename(tmp_path / "b")
    with open_record(tmp_path / "b") as record:
        assert len(record.trials) == 1
        assert record.snapshot().name == "a"
    (tmp_path / "c").mkdir()
    (tmp_path / "b" / "study.db").rename(tmp_path / "c" / "study.db")
    assert len(load_study(tmp_path / "c").trials) == 1


def test_a_folder_whose_study_lives_elsewhere_never_gets_a_second_one(tmp_path):
    folder, url, another = tmp_path / "a", f"sqlite:///{tmp_path / 'one.db'}", f"sqlite:///{tmp_path / 'two.db'}"
    with open_record(folder, storage=url) as record:
        record.ask(RECIPE)
        before = record.snapshot()
    here = r"that of \S+/a lives in sqlite:///\S+/one.db, not in {}; give its own --storage, or move .* `nas-attn rebuild \S+/a{}`"
    with pytest.raises(StudyError, match=here.format("study.db", "")):
        open_record(folder)
    with pytest.raises(StudyError, match=here.format(r"sqlite:///\S+/two.db", " --storage URL")):
        open_record(folder, storage=another)
    assert not (folder / "study.db").exists()
    assert not (tmp_path / "two.db").exists()
    assert rebuild(folder, another).snapshot == before  # the way that is named is one
    open_record(folder, storage=another).close()
    with pytest.raises(StudyError, match=r"lives in sqlite:///\S+/two.db, not in study.db"):
        open_record(folder)


def test_a_study_in_its_folder_is_not_begun_elsewhere_also_if_it_was_begun_before_this_was_kept(tmp_path):
    with open_record(tmp_path / "a") as record:
        record.ask(RECIPE)
    mark = tmp_path / "a" / "study.json"
    for text in (mark.read_text(), json.dumps({name: json.loads(mark.read_text())[name] for name in ("name", "owner")})):
        mark.write_text(text)
        with pytest.raises(StudyError, match=r"lives in study.db, not in sqlite:\S+; leave --storage out, or move"):
            open_record(tmp_path / "a", storage=f"sqlite:///{tmp_path / 'two.db'}")
    assert not (tmp_path / "two.db").exists()
    open_record(tmp_path / "a").close()
    (tmp_path / "a" / "study.db").rename(tmp_path / "moved.db")  # by hand: it is the same study
    mark.write_text(text)
    with open_record(tmp_path / "a", storage=f"sqlite:///{tmp_path / 'moved.db'}") as record:
        assert len(record.trials) == 1


def test_a_server_that_is_reached_by_another_name_is_the_same(tmp_path, postgres):
    url = postgres.fresh()
    with open_record(tmp_path / "a", storage=url) as record:
        record.ask(RECIPE)
    with open_record(tmp_path / "a", storage=url.replace("127.0.0.1", "localhost")) as record:
        assert len(record.trials) == 1
    assert "localhost" in (tmp_path / "a" / "study.json").read_text()
    assert postgres.password not in (tmp_path / "a" / "study.json").read_text()
    with pytest.raises(StudyError, match=r"lives in postgresql\S+localhost\S+, not in postgresql"):
        open_record(tmp_path / "a", storage=postgres.fresh())


def test_unreadable_studies_are_errors_of_input(tmp_path):
    with pytest.raises(StudyError, match=r"must hold `study.db`"):
        load_study(tmp_path)
    (tmp_path / "study.db").write_text("this is no database, but it is long enough to look like one" * 20)
    with pytest.raises(StudyError, match="must be reachable"):
        load_study(tmp_path)
    (tmp_path / "study.db").write_bytes(b"")
    with pytest.raises(StudyError):
        load_study(tmp_path)


def test_a_password_is_never_printed(tmp_path):
    urls = {
        "postgresql://me:hunter2@localhost:1/db": r"postgresql\+psycopg://me:\*\*\*@localhost:1/db must be reachable",
        "nonsense://me:hunter2@localhost/db": "must be SQLite or PostgreSQL",
        "redis://me:hunter2@localhost/db": "pickled snapshot",
        "hunter2": "no scheme",
    }
    for url, words in urls.items():
        with pytest.raises(StudyError, match=words) as caught:
            open_record(tmp_path, storage=url)
        assert "hunter2" not in str(caught.value)
        assert caught.value.__context__ is None or caught.value.__suppress_context__
    open_record(tmp_path).close()


@pytest.mark.usefixtures("every_storage")
def test_an_unknown_sampler_leaves_no_study_behind(tmp_path):
    with pytest.raises(InputError, match="Known: model, nsga2, random, tpe"):
        open_record(tmp_path / "a", sampler="gp")
    assert not (tmp_path / "a").exists()


# -- the storage -----------------------------------------------------------------------------------------------------------------------


def test_sqlite_runs_in_wal_mode_with_full_synchronisation(tmp_path):
    with open_record(tmp_path) as record:
        with record._stored.storage.engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
            assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 60_000
        assert (tmp_path / "study.db-wal").exists()
    with sqlite3.connect(tmp_path / "study.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def _rows():
    """What writes the trials of the storage that the test is in."""
    return rows.PlainRows if str(Shelf.url).startswith("journal") else rows.TableRows


@pytest.mark.usefixtures("every_storage")
def test_a_storage_that_is_away_for_a_moment_costs_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "PAUSES_S", (0.0,) * 4)
    failures = iter([1, 1, 1])
    for owner, name in [
        (optuna.storages.RDBStorage, "set_study_user_attr"),
        *((_rows(), name) for name in ("add", "set", "finish")),
    ]:
        original = getattr(owner, name)

        def flaky(self, *args, original=original, **options):
            if next(failures, 0):
                raise optuna.exceptions.StorageInternalError("locked")
            return original(self, *args, **options)

        monkeypatch.setattr(owner, name, flaky)
    with open_record(tmp_path) as record:
        trial = record.ask(RECIPE)
        for write in (
            lambda: record.save_cost(0, cost(1.1)),
            lambda: record.save_result(0, job_of(trial), measured(0.3)),
            lambda: record.tell(0, measured(0.3)),
        ):
            failures = iter([1, 1, 1])
            write()
        assert record.snapshot().trials[0] == record.trials[0]
        failures = iter([1] * 9)
        with pytest.raises(NasAttnError, match="must take writes"):
            record.ask(RECIPE)
        failures = iter([])
        assert record.ask(RECIPE).number == 1


@pytest.mark.usefixtures("every_storage")
def test_an_add_whose_answer_was_lost_is_not_made_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "PAUSES_S", (0.0,) * 2)
    original = _rows().add
    answers = iter([1])

    def deaf(self, *args, **options):
        result = original(self, *args, **options)
        if next(answers, 0):
            raise optuna.exceptions.StorageInternalError("connection lost after the commit")
        return result

    monkeypatch.setattr(_rows(), "add", deaf)
    with open_record(tmp_path) as record:
        record.ask(RECIPE)
        record.ask(RECIPE)
        assert [t.number for t in record.snapshot().trials] == [0, 1]


@pytest.mark.usefixtures("every_storage")
def test_optunas_own_tools_work_on_it(tmp_path):
    with open_record(tmp_path) as record:
        tell_next(record, measured(0.3))
        tell_next(record, Rejected(limit="latency_ratio", value=1.5, bound=1.3), cost(1.5))
        record.ask(RECIPE)
    study = stored_study(tmp_path)
    frame = study.trials_dataframe()
    assert list(frame["state"]) == ["COMPLETE", "PRUNED", "RUNNING"]
    assert {"values_map50_95", "values_latency_ratio", "user_attrs_digest", "params_2.module"} <= set(frame.columns)
    assert [t.number for t in study.best_trials] == [0]
    assert json.loads(study.trials[0].user_attrs["architecture"])["base"] == BASE
