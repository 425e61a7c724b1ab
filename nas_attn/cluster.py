"""The Ray that this process is connected to: a local cluster of its own behind a token, or a running one; and the way back.

Ray cannot be bound to the loopback by its options, so whoever reaches a port must be refused: a local cluster gets a random token and a
certificate without which no connection is made, in 0600 files within a 0700 folder, made before Ray starts (Ray would make the token
readable for all). Checked with Ray 2.60: the C++ token loader reads RAY_AUTH_TOKEN, then the file at RAY_AUTH_TOKEN_PATH, then
~/.ray/auth_token, and caches what it found. A running cluster is joined only if it turns away who holds no token (docs/security.md).
"""

import contextlib
import importlib
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nas_attn import door
from nas_attn.certificate import issue
from nas_attn.errors import InputError, PoolError

_OBJECT_STORE_BYTES = 200 * 10**6
_FOLDER_PREFIX = "nas-attn-"
_SOCKET_ROOM = 40  # Ray puts up to 65 bytes below its folder, and a Unix socket's path ends at 107
_ALWAYS = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}


_LEFT = (1, 3, 4)
"""Of Ray's reasons for a node's death: it was told to end, it was preempted, it was idle."""
_told_to_end = threading.Event()


@contextlib.contextmanager
def no_interrupt() -> Iterator[None]:
    """Ignore Ctrl-C and our own SIGTERM meanwhile: half a clean-up would leave processes behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = signal.getsignal(signal.SIGTERM) is _interrupt
    if ours:  # what it was before the cluster comes back with the cluster's end
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if ours and signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:  # no cluster ended: another pool of this process goes on
            signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, _frame: object) -> None:
    """Make SIGTERM a Ctrl-C, once: the only exception that Ray's waiting in C++ lets through (it swallows SystemExit)."""
    signal.signal(number, signal.SIG_IGN)
    _told_to_end.set()
    raise KeyboardInterrupt


def check_interrupt() -> None:
    """Raise the KeyboardInterrupt of a SIGTERM that was swallowed: by Ray's C++ where it calls back, by a destructor."""
    if _told_to_end.is_set():
        _told_to_end.clear()
        raise KeyboardInterrupt


class Cluster:
    """The Ray that this process is connected to, and the way back: every step leaves behind how it is undone."""

    def __init__(self) -> None:
        self.address = ""
        self._folder: Path | None = None
        self._family: dict[int, str] = {}
        self._undo = contextlib.ExitStack()
        self._sigterm: Any = None

    def start(self, cpus: int) -> list[dict[str, Any]]:
        """Start a local cluster that only holders of a new token can reach; its nodes."""
        folder = _private_folder()
        self._undo.callback(shutil.rmtree, folder, ignore_errors=True)
        token = folder / "token"
        with os.fdopen(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        self._set_environment({"RAY_AUTH_TOKEN": None, "RAY_AUTH_TOKEN_PATH": str(token)})
        self._set_environment(dict(issue(folder, [_own_address()])))  # asks Ray, which leaves variables at its import
        self._folder = folder
        self._undo.callback(lambda: _end_processes(self._family))
        return self._connect(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            _temp_dir=str(folder / "ray"),
        )

    def join(self, address: str, insecure: bool = False) -> list[dict[str, Any]]:
        """Connect to the cluster at `address` with the token of the environment; its nodes.

        `insecure` joins one that runs without authentication, and sends it no token: a driver that asks for one would not be answered.

        Raises:
            InputError: no token, or a cluster that lets in who holds none.
            PoolError: no cluster there.
        """
        if "://" in address:
            raise PoolError(
                f"`address` must be `host:port` of a cluster's GCS or `auto`, but got {address!r}; use port 6379, not Ray Client's."
            )
        if not insecure and not _has_token():
            raise InputError(
                f"Joining {address} needs the cluster's token, but neither RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH nor "
                f"~/.ray/auth_token holds one; copy it from the head node (`ray get-auth-token`). {_INSECURE}"
            )
        self._set_environment({"RAY_AUTH_MODE": "disabled"} if insecure else {})
        nodes = self._connect(address=address)
        if not insecure:
            _require_closed(self.address)
        return nodes

    def states(self) -> dict[str, str]:
        """Every node that was ever here, by its identity: `alive`, `draining` (it said that it will go), `left` (it went as it had said, or
        was ended on purpose) or `dead`.
        """
        import ray

        # `ray.nodes()` does not tell who drains; this table of Ray's own is what its libraries read.
        draining = ray._private.state.state.get_draining_nodes()
        return {str(node["NodeID"]): _state(node, draining) for node in ray.nodes()}

    def close(self) -> None:
        """Undo everything, last step first."""
        self._family = _family(self._folder) if self._folder else {}  # whose processes they are can be told only while they run
        try:
            self._undo.close()
        finally:  # last, or an impatient second SIGTERM would end the process in the middle of its clean-up
            if self._sigterm is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, self._sigterm)

    def _connect(self, **options: Any) -> list[dict[str, Any]]:
        import ray

        handler = signal.getsignal(signal.SIGTERM)
        self._undo.callback(ray.shutdown, wait_for_processes=True)
        try:
            ray.init(log_to_driver=False, logging_level=logging.WARNING, **options)
            if threading.current_thread() is threading.main_thread():  # Ray's handler would end the process before any clean-up
                _told_to_end.clear()
                self._sigterm = handler
                signal.signal(signal.SIGTERM, _interrupt if handler is signal.SIG_DFL else handler)
            self.address = ray.get_runtime_context().gcs_address
            return list(ray.nodes())
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise PoolError(f"Ray at {options['address']!r} must be reachable with the token given, but: {error}") from error

    def _set_environment(self, changes: dict[str, str | None]) -> None:
        ray = sys.modules.get("ray")
        if ray is not None and ray.is_initialized():
            raise PoolError("This process must not be connected to a Ray cluster yet, but it is; call `ray.shutdown()` first.")
        left_by_ray = {name: os.environ.get(name) for name in ("PYTHONBREAKPOINT", "RAY_CLIENT_MODE")}
        changes = {**left_by_ray, **_ALWAYS, **changes}
        self._undo.callback(_apply_environment, {name: os.environ.get(name) for name in changes})
        _apply_environment(changes)


def _state(node: Mapping[str, Any], draining: Mapping[str, Any]) -> str:
    if node["Alive"]:
        return "draining" if node["NodeID"] in draining else "alive"
    return "left" if node.get("DeathReason") in _LEFT else "dead"


def _apply_environment(changes: Mapping[str, str | None]) -> None:
    """Set (None: unset) variables, and make Ray's cached copies of mode and token follow.

    The mode is refreshed before the token is dropped, and the token is kept where the mode stays `token`: a thread of Ray's that still
    winds down ends the whole process if it finds the mode on and no token.
    """
    raylet: Any = importlib.import_module("ray._raylet")
    for name, value in changes.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    raylet.Config.initialize("")
    if os.environ.get("RAY_AUTH_MODE") != "token" or _has_token():
        raylet.AuthenticationTokenLoader.instance().reset_cache()


_INSECURE = "Where nobody else reaches it, --insecure-cluster takes a cluster without authentication."


def _require_closed(address: str) -> None:
    """Refuse a cluster that answers a call without a token. Where the variables of TLS are set, a stranger does not get that far."""
    if os.environ.get("RAY_USE_TLS") == "1":
        return
    try:
        found = door.status(address)
    except OSError as error:
        raise PoolError(f"Ray at {address} must answer, but: {error}; is its port 6379 forwarded by half?") from error
    if found != door.UNAUTHENTICATED:
        what = "answers a caller without a token" if found == door.OPEN else f"answers a caller without a token with status {found}"
        raise InputError(
            f"A cluster must turn away who holds no token, or whoever reaches it runs code on all of its nodes, but {address} {what}; "
            f"start it anew with RAY_AUTH_MODE=token on every node. {_INSECURE}"
        )


def _own_address() -> str:
    """The address at which a local Ray calls itself, whatever it is told."""
    import ray

    return str(ray.util.get_node_ip_address())


def _has_token() -> bool:
    """Whether Ray will find a token, in its order: the variable, the file that a variable names, the file at home."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return True
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return path.is_file() and bool(path.read_text().strip())


def _private_folder() -> Path:
    """A new folder that only this user may enter, with a path short enough for Ray's sockets."""
    prefix = f"{_FOLDER_PREFIX}{os.getpid()}-"
    for root in (tempfile.gettempdir(), "/tmp", "/var/tmp"):
        if len(root) + len(prefix) + 9 <= _SOCKET_ROOM and os.access(root, os.W_OK):
            sweep(Path(root))
            return Path(tempfile.mkdtemp(prefix=prefix, dir=root))
    raise PoolError(f"Ray's sockets need a writable temporary folder of at most {_SOCKET_ROOM} characters; set TMPDIR to a shorter one.")


def sweep(root: Path) -> None:
    """Remove this user's folders whose process was killed before it could: logs, dead sockets, and a token that opens nothing any more."""
    for folder in root.glob(f"{_FOLDER_PREFIX}*-*"):
        pid = folder.name.removeprefix(_FOLDER_PREFIX).partition("-")[0]
        if pid.isdecimal() and not Path("/proc", pid).exists() and folder.is_dir() and folder.stat().st_uid == os.getuid():
            shutil.rmtree(folder, ignore_errors=True)


def _end_processes(family: Mapping[int, str], patience_s: float = 5.0) -> None:
    """Wait for processes to end; kill what has not after `patience_s` (agents can outlive their node)."""
    end = time.monotonic() + patience_s
    while found := [pid for pid, birth in family.items() if _process(pid)[1:] == (birth, True)]:
        if time.monotonic() >= end:
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _family(folder: Path) -> dict[int, str]:
    """Processes of the cluster in `folder` and all their descendants, with their times of birth; none where there is no /proc."""
    pids = [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]
    table = {pid: _process(pid) for pid in pids if pid != os.getpid()}
    found = {pid for pid in table if _lives_in(pid, f"{folder}/")}
    while more := {pid for pid, (parent, _, _) in table.items() if parent in found} - found:
        found |= more
    return {pid: table[pid][1] for pid in found}


def _process(pid: int) -> tuple[int, str, bool]:
    """Parent, time of birth (no other process with this number has the same) and whether it still runs."""
    try:
        state, parent, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0, "", False
    return int(parent), rest[17], state not in "ZX"


def _lives_in(pid: int, mark: str) -> bool:
    """Whether the command line or an output of a process names the folder. Its environment does not count: our user's children share it."""
    try:
        outputs = [str(Path(f"/proc/{pid}/fd/{number}").readlink()) for number in (1, 2)]
        return any(mark in text for text in [Path(f"/proc/{pid}/cmdline").read_text(errors="replace"), *outputs])
    except OSError:  # gone meanwhile, closed, or another user's
        return False
