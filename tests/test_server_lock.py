"""The lock on a PostgreSQL server: one driver whatever its folder, and what a lost connection costs."""

import shutil
import threading

import pytest
from study_targets import RECIPE, load_study, open_record

from nas_attn import storage
from nas_attn.address import require_safe
from nas_attn.errors import NasAttnError, StudyError
from nas_attn.server_lock import ServerLock


@pytest.fixture
def url(postgres):
    return postgres.fresh()


def _cut(postgres, url):
    """Ends the connections that hold a lock."""
    ended = postgres.run("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'", url.rpartition("/")[2])
    assert len(ended) == 1


def test_a_copied_folder_is_no_second_study(tmp_path, url, postgres):
    (tmp_path / "b").mkdir()
    with open_record(tmp_path / "a", storage=url, name="s") as record:
        record.ask(RECIPE)
        shutil.copy(tmp_path / "a" / "study.json", tmp_path / "b")
        with pytest.raises(StudyError, match=r"process \d+ on host \S+ drives 's' in this storage, connected for \d+ s") as caught:
            open_record(tmp_path / "b", storage=url)
        assert postgres.password not in str(caught.value)
        assert len(load_study(tmp_path / "a", url).trials) == 1
        with open_record(tmp_path / "c", storage=url) as other:  # another study of the same storage
            assert not other.trials
    with open_record(tmp_path / "b", storage=url) as record:
        assert len(record.trials) == 1


def test_a_driver_waits_a_moment_for_one_that_was_killed(url):
    first = ServerLock.take(require_safe(url), "s")
    timer = threading.Timer(0.3, first.close)
    timer.start()
    ServerLock.take(require_safe(url), "s").close()
    timer.join()


def test_a_lost_connection_is_taken_up_again_where_nobody_came_between(tmp_path, url, postgres, monkeypatch):
    monkeypatch.setattr(storage, "PAUSES_S", (0.0,))
    with open_record(tmp_path / "a", storage=url) as record:
        record.ask(RECIPE)
        _cut(postgres, url)
        assert record.ask(RECIPE).number == 1
        _cut(postgres, url)  # the lock is there again
        record.ask(RECIPE)


def test_a_driver_that_lost_its_connection_to_another_writes_no_more(tmp_path, url, postgres, monkeypatch):
    monkeypatch.setattr(storage, "PAUSES_S", (0.0,))
    shutil.copytree(tmp_path, tmp_path / "b")
    with open_record(tmp_path / "a", storage=url, name="s") as record:
        record.ask(RECIPE)
        shutil.copy(tmp_path / "a" / "study.json", tmp_path / "b")
        _cut(postgres, url)
        with open_record(tmp_path / "b", storage=url) as other:
            other.ask(RECIPE)
            with pytest.raises(NasAttnError, match="was lost, and meanwhile: One driver at a time"):
                record.ask(RECIPE)
        with pytest.raises(NasAttnError, match="another has driven 's'"):
            record.ask(RECIPE)
        with pytest.raises(NasAttnError, match="another has driven 's'"):
            record.ask(RECIPE)
    assert len(load_study(tmp_path / "b", url).trials) == 2


def test_a_server_that_refuses_is_an_error_of_input_without_its_password(tmp_path, postgres):
    with pytest.raises(StudyError, match=r"storage postgresql\+psycopg://tester:\*\*\*@127.*password authentication failed") as caught:
        ServerLock.take(require_safe(postgres.url("postgres", "hunter2")), "a")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(StudyError, match='database "none" does not exist'):
        open_record(tmp_path / "a", storage=postgres.url("none"))
