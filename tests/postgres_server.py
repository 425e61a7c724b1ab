"""A PostgreSQL server of Debian's package for one test session: on the loopback, with a password of its own, in a folder that goes away.

It refuses to run as root, so root lends it to the user that the package made; where either is missing, tests that need it are skipped.
"""

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

USER = "tester"


@dataclass(slots=True)
class Program:
    """The server's own process, which tests may end, begin again and suspend."""

    command: list[str | Path]
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """What the server says."""
        return self.folder / "log"

    def start(self) -> None:
        """Begins it, and does not wait until it answers."""
        with self.log.open("a") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, cwd=self.folder)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Ends it: SIGINT is a fast shutdown in which connections are ended, SIGQUIT is as good as a crash."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(60)
            self.process = None

    def suspend(self) -> list[int]:
        """Stops it and all that it has begun where they are, as a machine that hangs; the processes."""
        assert self.process is not None
        family = [self.process.pid, *_children(self.process.pid)]
        for pid in family:
            os.kill(pid, signal.SIGSTOP)
        return family


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: where, the password of its only user, its process, and the folder of its socket, which other networks reach too."""

    port: int
    password: str
    folder: Path
    program: Program = field(compare=False)

    def url(self, database: str, password: str | None = None) -> str:
        """The URL of a database, as a user would write it."""
        return f"postgresql://{USER}:{password or self.password}@127.0.0.1:{self.port}/{database}"

    def run(self, text: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """One statement, with all rights."""
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(text)
            return cursor.fetchall() if cursor.description else []

    def fresh(self) -> str:
        """The URL of a new, empty database."""
        name = f"t{secrets.token_hex(6)}"
        self.run(f"CREATE DATABASE {name}")
        return self.url(name)


def programs() -> Path:
    """The folder of the newest installed server; skips where there is none."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    if not found:
        pytest.skip("no PostgreSQL in /usr/lib/postgresql (Debian's package postgresql)")
    return found[-1].parent


@contextlib.contextmanager
def server(durable: bool = False) -> Iterator[Server]:
    """The server, from its first file to its last; `durable` ones keep what they took through a power cut, which takes time."""
    place = programs()
    folder = Path(tempfile.mkdtemp(prefix="nas-attn-pg-"))
    try:
        prefix = _lent(folder)
        running = Server(port=_free_port(), password=secrets.token_hex(16), folder=folder, program=Program([], folder))
        secret = folder / "password"
        secret.write_text(running.password)
        secret.chmod(0o644)  # within a folder that only the server's user may enter
        options = ["--auth=scram-sha-256", f"--username={USER}", f"--pwfile={secret}", "--no-sync", "--encoding=UTF8", "--locale=C"]
        subprocess.run([*prefix, place / "initdb", "-D", folder / "data", *options], check=True, capture_output=True, cwd=folder)
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": running.port,
            "unix_socket_directories": folder,
            "fsync": "on" if durable else "off",
        }
        given = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        running.program.command = [*prefix, place / "postgres", "-D", folder / "data", *given]
        running.program.start()
        try:
            wait(running)
            yield running
        finally:
            running.program.stop()
    finally:
        shutil.rmtree(folder)


def _lent(folder: Path) -> list[str]:
    """What runs a program as the folder's owner."""
    if os.getuid() != 0:
        return []
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("PostgreSQL refuses to run as root, and there is no user postgres")
    os.chown(folder, user.pw_uid, user.pw_gid)
    # It becomes the program, unlike runuser, so that the handle is the server's own.
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait(running: Server) -> None:
    """Until it answers."""
    import psycopg

    program = running.program
    for _ in range(600):
        assert program.process is not None
        assert program.process.poll() is None, program.log.read_text()
        with contextlib.suppress(psycopg.OperationalError):
            running.run("SELECT 1")
            return
        time.sleep(0.1)
    raise AssertionError(program.log.read_text())
