"""The lock of a study on a PostgreSQL server, which admits one driver whatever folder or machine it runs in.

It is the server's advisory lock, which lives as long as the connection that took it: a driver that ends, or a machine that falls silent
for a minute, frees it. Where the connection was lost, the driver takes the lock anew before it writes again, and stops if another has
driven the study meanwhile: each leaves its own mark in the study, in the lock's first moment.
"""

import hashlib
import os
import socket
import time
import uuid
from typing import Any

import sqlalchemy
from sqlalchemy.pool import NullPool

from nas_attn.address import hidden, without_secrets
from nas_attn.errors import NasAttnError, StudyError
from nas_attn.wire import dialler

PATIENCE_S = (0.1, 0.4, 1.5)
"""How long a driver waits, try by try, for one that has just ended."""
_MARK = "CREATE TABLE IF NOT EXISTS nas_attn_drivers (key BIGINT PRIMARY KEY, mark TEXT NOT NULL)"
_SET = "INSERT INTO nas_attn_drivers (key, mark) VALUES (:key, :mark) ON CONFLICT (key) DO UPDATE SET mark = EXCLUDED.mark"
_SELF = "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
_END = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = :pid AND backend_start = :start"
_HOLDER = """
SELECT application_name, EXTRACT(EPOCH FROM now() - backend_start)::int, EXTRACT(EPOCH FROM now() - state_change)::int
FROM pg_stat_activity
WHERE pid IN (
  SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND ((classid::bigint << 32) | objid::bigint) = :key
)
"""


class ServerLock:
    """The advisory lock of one study, held from `take` to `close` on a connection of its own."""

    def __init__(self, url: str, name: str) -> None:
        self._url, self._name, self._mark = url, name, uuid.uuid4().hex
        self._key = int.from_bytes(hashlib.sha256(f"nas_attn:{name}".encode()).digest()[:8], signed=True)
        who = f"process {os.getpid()} on host {socket.gethostname()}"
        # One line of application_name has 63 bytes; it is what a refused driver is told.
        creator = dialler(url, application_name=who[:63])
        self._engine = sqlalchemy.create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT", creator=creator)
        self._connection: sqlalchemy.Connection | None = None
        self._former: tuple[Any, ...] | None = None

    @classmethod
    def take(cls, url: str, name: str) -> "ServerLock":
        """Takes the lock of the study `name`.

        Raises:
            StudyError: another driver holds it, or the server cannot be reached.
        """
        lock = cls(url, name)
        try:
            lock._connect()
            lock._run(_MARK)
            lock._run(_SET, mark=lock._mark)
        except sqlalchemy.exc.SQLAlchemyError as error:
            lock.close()
            words = without_secrets(str(getattr(error, "orig", error)), url)
            raise StudyError(
                f"The storage {hidden(url)} must be reachable and admit one driver, but: {words}; check the URL and its user's rights."
            ) from None
        except BaseException:
            lock.close()
            raise
        return lock

    def require(self) -> None:
        """Before a write: the lock is held, anew where the connection was lost.

        Raises:
            NasAttnError: another driver drives the study, or has driven it since.
            SQLAlchemyError: the server is away; a later try may find it.
        """
        if self._connection is not None:
            try:
                self._run("SELECT 1")
                return
            except sqlalchemy.exc.SQLAlchemyError:
                self._drop()
        try:
            self._connect()
            mark = self._run("SELECT mark FROM nas_attn_drivers WHERE key = :key")
        except StudyError as error:
            raise NasAttnError(f"The connection that held the study's lock was lost, and meanwhile: {error}") from None
        except BaseException:
            self._drop()  # half taken is not taken: the next try shall not find a connection and believe that it holds the lock
            raise
        if mark != self._mark:
            self.close()
            raise NasAttnError(
                f"One driver at a time may run a study, but while the connection was lost another has driven {self._name!r}; "
                "run the same command again to go on from there."
            )

    def close(self) -> None:
        """Gives the lock and the connection back."""
        self._drop()
        self._engine.dispose()

    def _connect(self) -> None:
        self._connection = self._engine.connect()
        if self._former is not None:
            # The server may take our lost connection for alive, and our lock for held, until a minute has passed.
            self._run(_END, pid=self._former[0], start=self._former[1])
        self._former = tuple(self._connection.execute(sqlalchemy.text(_SELF)).first() or ()) or None
        if not self._granted():
            found = self._connection.execute(sqlalchemy.text(_HOLDER), {"key": self._key}).first()
            self._drop()
            raise StudyError(
                f"One driver at a time may run a study, but {_words(*found or ())} drives {self._name!r} in this storage; "
                "wait for it or stop it."
            )

    def _granted(self) -> bool:
        # The server may not have heard yet that a driver was killed a moment ago: its lock falls within milliseconds, or it lives.
        for pause in (0.0, *PATIENCE_S):
            time.sleep(pause)
            if self._run("SELECT pg_try_advisory_lock(:key)"):
                return True
        return False

    def _run(self, text: str, **values: Any) -> Any:
        if self._connection is None:
            raise sqlalchemy.exc.InvalidRequestError("the lock's connection is closed")
        result = self._connection.execute(sqlalchemy.text(text), {"key": self._key, **values} if ":key" in text else values)
        return result.scalar() if result.returns_rows else None

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.invalidate()  # at once, whether or not the server still answers
            self._connection.close()
            self._connection = None


def _words(who: str = "", connected: int | None = None, asked: int | None = None) -> str:
    """Who holds a lock; of another user's connection the server tells the name alone."""
    heard = f", connected for {connected} s and last heard of {asked} s ago," if None not in (connected, asked) else ""
    return f"{who or 'another driver'}{heard}"
