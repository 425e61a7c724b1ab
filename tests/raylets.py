"""A cluster of several raylets on this machine, as `ray start` makes it, some of which do not see a folder; for tests."""

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

RAY = Path(sys.executable).with_name("ray")
STARTED_S, ENDED_S = 60.0, 20.0
STORE_BYTES = 100 * 10**6


@dataclass(frozen=True, slots=True)
class Raylets:
    """`address` of the cluster, and the environment that a driver needs to join it."""

    address: str
    environment: dict[str, str]
    processes: tuple[subprocess.Popen[bytes], ...]


def can_hide_folders() -> bool:
    """Whether this user may give a process a view of the files of its own (Linux, as root)."""
    return subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0 if os.geteuid() == 0 else False


@contextlib.contextmanager
def raylets(hidden: Sequence[Sequence[Path]], cpus: int = 1, secure: bool = True) -> Iterator[Raylets]:
    """A head, and one more node for each entry of `hidden`, to which the folders of that entry are empty; behind a token if `secure`."""
    with tempfile.TemporaryDirectory(prefix="nas-attn-", dir="/tmp") as root, contextlib.ExitStack() as stack:
        token = Path(root, "token")
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))
        environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)} if secure else {"RAY_AUTH_MODE": "disabled"}
        environment |= {"RAY_USAGE_STATS_ENABLED": "0"}
        port = _free_port()
        common = [str(RAY), "start", "--num-cpus", str(cpus), "--object-store-memory", str(STORE_BYTES), "--block"]
        head = [*common, "--head", "--port", str(port), "--include-dashboard=false", "--temp-dir", f"{root}/ray"]
        processes = [_begin(head, environment, Path(root, "head.log"), stack)]
        for number, folders in enumerate(hidden):
            covers = "".join(f"mount -t tmpfs none '{folder}' && " for folder in folders)
            node = " ".join([*common, "--address", f"127.0.0.1:{port}"])
            command = ["unshare", "-m", "sh", "-c", f"{covers}exec {node}"] if folders else node.split()
            processes.append(_begin(command, environment, Path(root, f"node{number}.log"), stack))
        yield Raylets(f"127.0.0.1:{port}", environment, tuple(processes))


def _begin(command: list[str], environment: dict[str, str], log: Path, stack: contextlib.ExitStack) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=os.environ | environment, stdout=output, stderr=subprocess.STDOUT)
    stack.callback(_end, process)
    end = time.monotonic() + STARTED_S
    while b"Ray runtime started" not in log.read_bytes():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.2)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()  # `ray start --block` takes its own processes with it
    try:
        process.wait(ENDED_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
