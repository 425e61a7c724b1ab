"""URLs of storages: what is refused and why, how PostgreSQL's are rewritten, and that no message holds a password."""

import importlib.util
from pathlib import Path

import pytest

from nas_attn.address import file_of, hidden, is_server, journal_of, require_safe, without_secrets
from nas_attn.errors import StudyError


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis://:hunter2@host:6379/0", "pickled snapshot from Redis, so that whoever can write there runs code in the driver"),
        ("rediss://me:hunter2@host/0", "pickled snapshot"),
        ("journal+redis://:hunter2@host", "pickled snapshot|torn line"),
        ("grpc://hunter2:13000", "neither authentication nor encryption"),
        ("mysql://me:hunter2@host/db", "nothing here was tested on MySQL"),
        ("mysql+pymysql://me:hunter2@host/db", "nothing here was tested on MySQL"),
        ("MariaDB://me:hunter2@host/db", "nothing here was tested on MySQL"),
        ("file:///hunter2.log", "one torn line"),
        ("runs/hunter2.log", "one torn line"),
        ("hunter2.journal", "one torn line"),
    ],
)
def test_an_unsafe_storage_is_refused_with_its_reason_and_a_remedy(url, reason):
    with pytest.raises(StudyError, match=reason) as caught:
        require_safe(url)
    assert "take SQLite (leave --storage out) or PostgreSQL" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgrsql://me:hunter2@host/db", "begins with 'postgrsql'. Did you mean 'postgresql'?"),
        ("oracle://me:hunter2@host/db", "begins with 'oracle'. Known: postgresql, sqlite."),
        ("oracle+cx://me:hunter2@host/db", "begins with 'oracle+cx'."),
        ("://hunter2", "begins with ''."),
        ("hunter2", "must be a URL, but what was given has no scheme"),
        ("", "must be a URL"),
        ("postgresql://me:hunter2@host:port/db", "must have the form postgresql://USER:PASSWORD@HOST:PORT/DATABASE"),
        ("postgresql+pg8000://me:hunter2@host/db", "must be reached through psycopg or psycopg2"),
        ("postgresql+hunter2://me@host/db", "must"),
        ("sqlite://", "must outlive its driver"),
        ("sqlite:///:memory:", "must outlive its driver"),
    ],
)
def test_another_url_is_one_clear_line(url, words):
    with pytest.raises(StudyError) as caught:
        require_safe(url)
    assert words in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_there_is_no_url(tmp_path):
    (tmp_path / "study").write_text("{}")
    with pytest.raises(StudyError, match="one torn line"):
        require_safe(str(tmp_path / "study"))


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg", "PostgreSQL"])
def test_postgresql_is_reached_through_the_driver_that_is_installed(scheme, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "psycopg")
    assert require_safe(f"{scheme}://me:p%40ss@host:5/db?sslmode=require") == "postgresql+psycopg://me:p%40ss@host:5/db?sslmode=require"
    assert is_server(require_safe(f"{scheme}://host/db"))


def test_the_other_driver_will_do_and_none_is_told(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "psycopg2")
    assert require_safe("postgres://host/db") == "postgresql+psycopg2://host/db"
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(StudyError, match=r"pip install 'nas-attn\[postgres\]'"):
        require_safe("postgres://host/db")


def test_a_journal_file_must_be_insisted_on_by_its_scheme_and_a_whole_path():
    assert require_safe("journal:///a/study.log") == require_safe("JOURNAL:////a/study.log") == "journal:///a/study.log"
    assert journal_of("journal:///a/study.log") == file_of("journal:///a/study.log") == Path("/a/study.log")
    assert not is_server("journal:///a/study.log")
    assert hidden("journal:///a/study.log") == "journal:///a/study.log"
    for text in ("journal://", "journal://study.log", "journal:///a/"):
        with pytest.raises(StudyError, match="must name a file from the root on"):
            require_safe(text)
    with pytest.raises(StudyError, match=r"to insist on one write journal:///FOLDER/FILE"):
        require_safe("study.log")


def test_the_file_of_a_storage():
    assert file_of("sqlite:////a/study.db") == Path("/a/study.db")
    assert file_of("postgresql+psycopg://host/db") is None
    assert journal_of("sqlite:////a/study.db") is None


def test_sqlite_stays_as_it_is():
    assert require_safe("sqlite:////a/study.db") == "sqlite:////a/study.db"
    assert not is_server("sqlite:////a/study.db")


def test_secrets_are_hidden_however_they_are_spelled():
    url = "postgresql+psycopg://me:p%40s%2Fs@host/db?password=hunter2&sslmode=require"
    assert hidden(url) == "postgresql+psycopg://me:***@host/db"
    assert hidden("hunter2") == "given"
    said = without_secrets('bad "p@s/s" or p%40s%2Fs\n or hunter2 of me', url)
    assert said == 'bad "***" or *** or *** of me'
    assert without_secrets("no secret", "sqlite:////a/b") == "no secret"
