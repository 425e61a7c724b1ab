"""A connection to a PostgreSQL server that does not wait for ever, whatever falls silent: the network, the machine, the process.

Without bounds an unanswered write waits a quarter of an hour for the kernel's retransmissions. Keep-alives and `tcp_user_timeout` bound
that, on our side and, so that a lost connection's locks fall, on the server's. They do not see a process that hangs, for its kernel goes on
to acknowledge, and the server's own `statement_timeout` hangs with it: so every wait for an answer has an end of ours as well.
"""

import functools
import importlib
import time
from collections.abc import Callable, Generator, Mapping
from types import MappingProxyType
from typing import Any

from sqlalchemy.engine import make_url

SILENCE_S = 60.0
"""Who waits for an answer gives the connection up when the server has sent nothing for so long."""
OURS: Mapping[str, int] = MappingProxyType(
    {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}
)
"""What libpq is told, where the URL does not say otherwise: a minute without an acknowledgement ends a connection."""
THEIRS: Mapping[str, int] = MappingProxyType(
    {"tcp_keepalives_idle": 30, "tcp_keepalives_interval": 10, "tcp_keepalives_count": 3, "tcp_user_timeout": 60_000}
)
"""The same for the server, which then ends the connection's transaction and locks."""


def dialler(url: str, **further: Any) -> Callable[[], Any]:
    """What opens a connection of the URL's driver, as SQLAlchemy's `creator`; `further` are arguments of the driver.

    psycopg2 waits in C, where no end can be set: with it a server whose process hangs is waited for.
    """
    where = make_url(url)
    driver = where.get_driver_name()
    given = {name: value for name, value in OURS.items() if name not in where.query}

    def dial() -> Any:
        words, named = where.get_dialect()().create_connect_args(where)
        connect = _attentive().connect if driver == "psycopg" else importlib.import_module(driver).connect
        connection = connect(*words, **{**named, **given, **further})
        try:
            cursor = connection.cursor()
            cursor.execute("SELECT " + ", ".join(f"set_config('{name}', '{value}', false)" for name, value in THEIRS.items()))
            cursor.close()
            connection.commit()
        except BaseException:
            connection.close()
            raise
        return connection

    return dial


@functools.cache
def _attentive() -> Any:
    """psycopg's connection, which looks at the clock while it waits."""
    import psycopg

    class Attentive(psycopg.Connection[Any]):
        def wait(self, gen: Any, *words: Any, **named: Any) -> Any:
            try:
                return super().wait(_heard(gen), *words, **named)
            except TimeoutError as error:
                self.close()  # whatever it answers later is nobody's answer
                raise psycopg.OperationalError(str(error)) from None

    return Attentive


def _heard(steps: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """The steps of a wait, as psycopg takes them: each yields what it waits for, and is sent whether that came (or nothing, in between)."""
    since = time.monotonic()
    try:
        wanted = next(steps)
        while True:
            came = yield wanted
            now = time.monotonic()
            if came:
                since = now
            elif now - since > SILENCE_S:
                raise TimeoutError(f"the server has not answered for {SILENCE_S:g} s")
            wanted = steps.send(came)
    except StopIteration as end:
        return end.value
