"""Where a study is stored: URLs of storages, which of them are safe to search on, and their words without passwords."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote, quote_plus

import sqlalchemy
from sqlalchemy.engine import URL, make_url

from nas_attn.document import is_file
from nas_attn.errors import StudyError, nearest

SAFE = ("postgresql", "sqlite")
"""Dialects that the tests run on, each with a lock that admits one driver."""
JOURNAL = "journal://"
"""Begins the URL of a journal file, which is how a user insists on one: `journal:///folder/file.log`."""
REMEDY = "take SQLite (leave --storage out) or PostgreSQL (postgresql://USER@HOST/DATABASE)"
UNSAFE: Mapping[str, str] = MappingProxyType(
    {
        "redis": "Optuna restores a pickled snapshot from Redis, so that whoever can write there runs code in the driver",
        "grpc": "Optuna's gRPC proxy has neither authentication nor encryption: whoever reaches its port rewrites the study",
        "journal": f"one torn line makes a journal file unreadable for other tools for good (to insist on one write {JOURNAL}/FOLDER/FILE)",
        "mysql": "nothing here was tested on MySQL, and no lock there keeps a second driver out",
    }
)
_ALIASES = {"rediss": "redis", "unix": "redis", "mariadb": "mysql", "grpcs": "grpc", "file": "journal", "postgres": "postgresql"}
_DRIVERS = ("psycopg", "psycopg2")


def require_safe(text: str) -> str:
    """The URL as SQLAlchemy takes it, if a study may be kept there. No message repeats a password, nor a text that may be one.

    Raises:
        StudyError: an unsafe or unknown kind of storage, no URL, or no driver of PostgreSQL is installed.
    """
    scheme = text.partition("://")[0].lower() if "://" in text else _scheme_of_path(text)
    if f"{scheme}://" == JOURNAL and "://" in text:
        return _require_path(text.partition("://")[2])
    kind = next((_ALIASES.get(part, part) for part in scheme.split("+") if _ALIASES.get(part, part) in UNSAFE), None)
    if kind is not None:
        raise StudyError(f"A study's storage must survive a crash and trust nobody, but {UNSAFE[kind]}; {REMEDY}.")
    dialect, _, driver = scheme.partition("+")
    dialect = _ALIASES.get(dialect, dialect)
    if dialect not in SAFE:
        raise StudyError(f"A storage must be SQLite or PostgreSQL, but the URL begins with {scheme!r}. {nearest(dialect, SAFE)}")
    try:
        url = make_url(f"{dialect}{'+' if driver else ''}{driver}://{text.partition('://')[2]}")
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise StudyError(f"A storage's URL must have the form {dialect}://USER:PASSWORD@HOST:PORT/DATABASE, but it has not.") from None
    return _require_file(url) if dialect == "sqlite" else _with_driver(url)


def is_server(url: str) -> bool:
    """Whether the storage is a server, which folders on several machines may share."""
    return not url.startswith(("sqlite", JOURNAL))


def journal_of(url: str) -> Path | None:
    """The journal file of a URL that names one."""
    return Path(url.removeprefix(JOURNAL)) if url.startswith(JOURNAL) else None


def file_of(url: str) -> Path | None:
    """The file that a storage is; None for a server."""
    return journal_of(url) or (None if is_server(url) else Path(str(make_url(url).database)))


def hidden(text: str) -> str:
    """A URL for people to read: no password, and no query, which may hold one."""
    try:
        return make_url(text).set(query={}).render_as_string(hide_password=True)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return "given"


def without_secrets(words: str, text: str) -> str:
    """What a library said of a storage, in one line without the URL's password, however it is spelled there."""
    url = make_url(text)
    values = [str(value) for value in url.query.values()]
    for secret in (url.password, *values) if url.password else values:
        for spelling in {str(secret), quote(str(secret), safe=""), quote_plus(str(secret)), repr(str(secret))[1:-1]}:
            words = words.replace(spelling, "***") if spelling else words
    return " ".join(words.split())


def _scheme_of_path(text: str) -> str:
    # A text without a scheme may be a password that slipped; it is never repeated.
    if Path(text).suffix in (".log", ".journal") or is_file(Path(text)):
        return "journal"
    raise StudyError(f"A storage must be a URL, but what was given has no scheme; {REMEDY}.")


def _require_path(path: str) -> str:
    if not path.startswith("/") or path.endswith("/"):
        raise StudyError(f"A journal file's URL must name a file from the root on, {JOURNAL}/FOLDER/FILE, but it does not.")
    return f"{JOURNAL}/{path.lstrip('/')}"


def _require_file(url: URL) -> str:
    if not url.database or url.database == ":memory:":
        raise StudyError(f"A study must outlive its driver, but a SQLite storage in memory does not; {REMEDY}.")
    return url.render_as_string(hide_password=False)


def _with_driver(url: URL) -> str:
    if url.drivername == "postgresql":
        driver = next((name for name in _DRIVERS if importlib.util.find_spec(name)), None)
        if driver is None:
            raise StudyError("A PostgreSQL storage needs its driver, but psycopg is not installed; pip install 'nas-attn[postgres]'.")
        url = url.set(drivername=f"postgresql+{driver}")
    elif url.drivername.partition("+")[2] not in _DRIVERS:
        raise StudyError(
            f"PostgreSQL must be reached through {' or '.join(_DRIVERS)}, but the URL names another driver; write postgresql://."
        )
    return url.render_as_string(hide_password=False)
