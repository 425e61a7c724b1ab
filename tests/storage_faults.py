"""Faults of storages, done for real to a study's folder or its server, and undone: for tests of one fault, and for suites of all.

Each is a context manager that holds the fault for as long as it is open; where a fault cannot be made on this machine the test is skipped.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres_server import Server, wait

_HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def sqlite_locked(database: Path) -> Iterator[None]:
    """Another process holds the write lock of a SQLite file."""
    process = subprocess.Popen([sys.executable, "-c", _HOLD, database], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield
    finally:
        process.communicate(timeout=30)


@contextlib.contextmanager
def small_disk(folder: Path, mebibytes: int = 16) -> Iterator[Path]:
    """`folder` on a file system of its own, of that size, which goes away at the end; needs the right to mount."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@contextlib.contextmanager
def full_disk(folder: Path) -> Iterator[Path]:
    """Not a byte is left on the file system of `folder`; frees it at the end, or when the file that it gives is deleted."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * size)
    try:
        yield filler
    finally:
        filler.unlink(missing_ok=True)


def lose(folder: Path, name: str = "study.db") -> None:
    """The storage's file is deleted, while a driver writes to it or not."""
    for file in folder.glob(f"{name}*"):
        if file.name in (name, f"{name}-wal", f"{name}-shm"):
            file.unlink()


@contextlib.contextmanager
def server_down(server: Server, how: signal.Signals = signal.SIGINT) -> Iterator[None]:
    """The server is stopped, as by an administrator (SIGINT) or by a crash (SIGQUIT), and begun again at the end."""
    server.program.stop(how)
    try:
        yield
    finally:
        server.program.start()
        wait(server)


@contextlib.contextmanager
def server_hangs(server: Server) -> Iterator[None]:
    """The server and all of its connections stand still, and go on at the end."""
    stopped = server.program.suspend()
    try:
        yield
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def server_slow(server: Server, url: str, seconds: float) -> Iterator[None]:
    """Each new trial and each change of one takes the server that long."""
    database = url.rpartition("/")[2]
    body = f"BEGIN PERFORM pg_sleep({seconds}); RETURN NEW; END"
    server.run(f"CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$", database)
    server.run("CREATE TRIGGER slow BEFORE INSERT OR UPDATE ON trials FOR EACH ROW EXECUTE FUNCTION slow()", database)
    try:
        yield
    finally:
        server.run("DROP FUNCTION slow CASCADE", database)


@contextlib.contextmanager
def for_a_while(fault: contextlib.AbstractContextManager[object], seconds: float) -> Iterator[threading.Event]:
    """Makes a fault, and undoes it after that long from a thread, while the caller goes on; the event says that it is undone."""
    undo, undone = contextlib.ExitStack(), threading.Event()
    undo.callback(undone.set)
    undo.enter_context(fault)
    timer = threading.Timer(seconds, undo.close)
    timer.start()
    try:
        yield undone
    finally:
        timer.join()


class Relay:
    """A network between drivers and a server on the loopback: what passes is passed on, until it falls silent."""

    def __init__(self, port: int) -> None:
        self._server, self._silent, self._open = port, threading.Event(), list[socket.socket]()
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._door.getsockname()[1])
        threading.Thread(target=self._admit, daemon=True).start()

    def fall_silent(self) -> None:
        """Nothing passes on the connections of today, and neither side hears that they are lost; later ones are as before."""
        self._silent.set()
        self._silent = threading.Event()

    def close(self) -> None:
        """Ends everything."""
        self._door.shutdown(socket.SHUT_RDWR)
        for end in (self._door, *self._open):
            end.close()

    def _admit(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._door.accept()
                far = socket.create_connection(("127.0.0.1", self._server))
                self._open += [near, far]
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=(source, target, self._silent), daemon=True).start()

    @staticmethod
    def _pass(source: socket.socket, target: socket.socket, silent: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if not silent.is_set():
                    target.sendall(data)
            if not silent.is_set():
                target.shutdown(socket.SHUT_WR)
