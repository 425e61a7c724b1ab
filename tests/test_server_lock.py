"""The lock on a PostgreSQL server: one driver whatever its folder, and what a lost connection costs."""

import contextlib
import re
import shutil
import socket
import threading

import pytest
import sqlalchemy
from storage_faults import Relay
from study_targets import RECIPE, load_study, open_record

from nas_attn import storage, wire
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
        told = r"process \d+ on host \S+, connected for \d+ s and last heard of \d+ s ago, drives 's' in this storage; wait"
        with pytest.raises(StudyError, match=told) as caught:
            open_record(tmp_path / "b", storage=url)
        assert postgres.password not in str(caught.value)
        assert len(load_study(tmp_path / "a", url).trials) == 1
        with open_record(tmp_path / "c", storage=url) as other:  # another study of the same storage
            assert not other.trials
    with open_record(tmp_path / "b", storage=url) as record:
        assert len(record.trials) == 1


def test_a_refused_driver_is_told_how_long_ago_the_other_asked_something(url):
    held, told = ServerLock.take(require_safe(url), "s"), []
    for _ in range(2):  # each waits two seconds for the other before it is refused
        with pytest.raises(StudyError) as caught:
            ServerLock.take(require_safe(url), "s")
        told.append([int(word) for word in re.findall(r"connected for (\d+) s and last heard of (\d+) s ago", str(caught.value))[0]])
        held.require()
    (_, first), (connected, last) = told
    assert first > 0
    assert 0 < last < connected
    held.close()


def test_of_another_users_driver_only_the_name_is_told(url, postgres):
    postgres.run("CREATE USER stranger PASSWORD 'x'")
    held = ServerLock.take(require_safe(url), "s")
    postgres.run("GRANT CREATE ON SCHEMA public TO stranger; GRANT ALL ON nas_attn_drivers TO stranger", url.rpartition("/")[2])
    with pytest.raises(StudyError, match=r"but process \d+ on host \S+ drives 's' in this storage; wait"):
        ServerLock.take(require_safe(f"postgresql://stranger:x@{url.partition('@')[2]}"), "s")
    held.close()


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


# -- a server that falls silent --------------------------------------------------------------------------------------------------------


@pytest.fixture
def relay(postgres):
    with contextlib.closing(Relay(postgres.port)) as between:
        yield between


def test_a_lock_whose_network_fell_silent_is_taken_anew_though_the_server_believes_it_held(url, postgres, relay, monkeypatch):
    held = ServerLock.take(require_safe(url.replace(f":{postgres.port}/", f":{relay.port}/")), "s")
    monkeypatch.setattr(wire, "SILENCE_S", 1.5)
    relay.fall_silent()
    held.require()
    held.require()
    with pytest.raises(StudyError, match="drives 's'"):
        ServerLock.take(require_safe(url), "s")
    held.close()
    ServerLock.take(require_safe(url), "s").close()


def test_a_lock_that_was_half_taken_anew_is_not_believed_held(url, postgres):
    held = ServerLock.take(require_safe(url), "s")
    database = url.rpartition("/")[2]
    _cut(postgres, url)
    postgres.run("ALTER TABLE nas_attn_drivers RENAME TO away", database)
    for _ in range(2):
        with pytest.raises(sqlalchemy.exc.ProgrammingError, match="nas_attn_drivers"):
            held.require()
    postgres.run("ALTER TABLE away RENAME TO nas_attn_drivers", database)
    held.require()
    held.close()


def test_both_ends_of_a_connection_notice_a_silent_network(url):
    with contextlib.closing(wire.dialler(require_safe(url))()) as connection:
        end = socket.socket(fileno=connection.fileno())
        options = [socket.TCP_USER_TIMEOUT, socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT]
        assert [end.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [60_000, 30, 10, 3]
        end.detach()
        shown = [connection.execute(f"SHOW {name}").fetchone()[0] for name in wire.THEIRS]
        assert shown == ["30", "10", "3", "60000"]


def test_the_url_may_say_otherwise(url):
    with contextlib.closing(wire.dialler(require_safe(f"{url}?keepalives_idle=7"))()) as connection:
        assert "keepalives_idle=7" in connection.info.dsn
        assert "tcp_user_timeout=60000" in connection.info.dsn


def test_a_wait_ends_only_where_nothing_comes(url, monkeypatch):
    monkeypatch.setattr(wire, "SILENCE_S", 1.5)
    with contextlib.closing(wire.dialler(require_safe(url))()) as connection:
        query = "SELECT repeat('x', 100000), pg_sleep(0.25) FROM generate_series(1, 8)"  # two seconds of rows
        assert len(connection.execute(query).fetchall()) == 8
        with pytest.raises(connection.OperationalError, match=r"not answered for 1\.5 s"):
            connection.execute("SELECT pg_sleep(60)")
        assert connection.closed
