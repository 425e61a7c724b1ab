"""A cluster of several raylets on this machine, as `ray start` makes it, some of which do not see a folder; for tests."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nas_attn import cluster

RAY = Path(sys.executable).with_name("ray")
STARTED_S, ENDED_S = 120.0, 20.0
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
        here = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        environment |= {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": here}
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


@contextlib.contextmanager
def autoscaled(most: int, idle_s: float, **variables: str) -> Iterator[Raylets]:
    """A head without CPUs, to which Ray's own autoscaler adds up to `most` nodes of one CPU as work asks for them, and takes those idle for
    `idle_s`. Its "provider" starts raylets on this machine; all else is as on a cloud.
    """
    with tempfile.TemporaryDirectory(prefix="nas-attn-", dir="/tmp") as root, contextlib.ExitStack() as stack:
        token = Path(root, "token")
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))
        port = _free_port()
        head, worker = {"resources": {}, "max_workers": 0}, {"resources": {"CPU": 1, "object_store_memory": STORE_BYTES}}
        nodes = {"ray.head.default": head, "worker": worker}
        config = {
            "cluster_name": "nas-attn",
            "provider": {
                "type": "fake_multinode",
                "gcs_address": f"127.0.0.1:{port}",
                "foreground_node_launch": True,
                **dict.fromkeys(("use_node_id_as_ip", "disable_node_updaters", "disable_launch_config_check"), True),
                "worker_liveness_check": False,
            },
            "available_node_types": {
                name: {"node_config": {}, "min_workers": 0, "max_workers": most, **kind} for name, kind in nodes.items()
            },
            "head_node_type": "ray.head.default",
            "max_workers": most,
            "idle_timeout_minutes": idle_s / 60,
            "upscaling_speed": 1.0,
            **{name: {} for name in ("auth", "docker", "file_mounts")},
            **{f"{name}_commands": [] for name in ("initialization", "setup", "head_setup", "worker_setup")},
            **{f"{name}_start_ray_commands": [] for name in ("head", "worker")},
            **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
            "file_mounts_sync_continuously": False,
        }
        file = Path(root, "autoscaler.json")
        file.write_text(json.dumps(config))
        environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
        once = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", **variables}
        command = [str(RAY), "start", "--head", "--num-cpus", "0", "--port", str(port), "--include-dashboard=false", "--block"]
        command += ["--temp-dir", f"{root}/ray", "--object-store-memory", str(STORE_BYTES), f"--autoscaling-config={file}"]
        stack.callback(_end_all, Path(root))
        yield Raylets(f"127.0.0.1:{port}", environment, (_begin(command, environment | once, Path(root, "head.log"), stack),))


def _end_all(root: Path) -> None:
    """Ends what is left of a cluster: the autoscaler starts its nodes' processes on its own."""
    family = cluster._family(root)
    for pid, birth in family.items():
        if cluster._process(pid)[1] == birth:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
    cluster._end_processes(family)


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
