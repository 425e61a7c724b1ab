"""A cluster of several raylets on this machine whose parts can be killed, stopped, cut off and added while a search runs; for fault tests.

Each node is a `ray start --block` of its own. With namespaces, the head lives in one and a leaf in another, joined by a pair of virtual
interfaces that can be taken down: a real partition, with no address outside of this machine.
"""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

RAY = Path(sys.executable).with_name("ray")
STORE_BYTES = 100 * 10**6
STARTED_S, ENDED_S = 90.0, 30.0
HUB, LEAF = "10.231.7.1", "10.231.7.2"
QUICK = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
    "RAY_grpc_client_keepalive_time_ms": "3000",
    "RAY_grpc_client_keepalive_timeout_ms": "3000",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
}
"""Short keepalives, so that a fault is seen within seconds; docs/reliability.md says which a real cluster should have."""


@dataclass(slots=True)
class Node:
    """One `ray start --block` and the processes below it."""

    process: subprocess.Popen[bytes]
    head: bool
    leaf: bool = False
    """Whether it is in the namespace that can be cut off."""

    def part(self, name: str) -> int:
        """The pid of its `raylet` or `gcs_server`."""
        return next(pid for pid in descendants(self.process.pid) if f"/{name}" in command(pid).split(" ", 1)[0])

    def workers(self, title: str = "ray::Worker") -> list[int]:
        """Its worker processes with that title; one that runs a task is `ray::Worker.run`."""
        return [pid for pid in descendants(self.process.pid) if command(pid).startswith(title)]

    def alive(self) -> bool:
        return self.process.poll() is None


@dataclass(slots=True)
class Nodes:
    """The cluster: `address`, the environment of those who join, and its nodes, the head first."""

    root: Path
    environment: dict[str, str]
    namespaces: bool
    port: int = 0
    nodes: list[Node] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"{HUB if self.namespaces else '127.0.0.1'}:{self.port}"

    def start(self, cpus: int) -> Node:
        """The head, anew if there was one."""
        self.port = _free_port()
        host = ["--node-ip-address", HUB] if self.namespaces else []
        words = ["--head", "--port", str(self.port), "--include-dashboard=false", "--temp-dir", f"{self.root}/ray", *host]
        return self._begin(words, cpus, head=True, leaf=False)

    def add(self, cpus: int, leaf: bool = False) -> Node:
        """One more node, in the leaf's namespace if asked for."""
        host = ["--node-ip-address", LEAF if leaf else HUB] if self.namespaces else []
        return self._begin(["--address", self.address, *host], cpus, head=False, leaf=leaf)

    def require_leaf(self, cpus: int) -> None:
        """Puts a leaf in the place of another node, if a search has left none."""
        if not any(node.leaf and node.alive() for node in self.nodes):
            self.end(self.nodes[-1])
            self.add(cpus, leaf=True)

    def inside(self, words: list[str]) -> list[str]:
        """A command as it is run where the head is."""
        # `ip netns exec` would enter a view of the file systems of its own as well, in which later mounts are missing.
        return ["nsenter", f"--net=/run/netns/nas-hub-{os.getpid()}", *words] if self.namespaces else words

    def cut(self, down: bool) -> None:
        """Takes the link to the leaf away, or gives it back."""
        subprocess.run(self.inside(["ip", "link", "set", "nas-hub", "down" if down else "up"]), check=True)

    def end(self, node: Node) -> None:
        """Ends a node with all that it started."""
        family = [node.process.pid, *descendants(node.process.pid)]
        node.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            node.process.wait(ENDED_S)
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        node.process.wait()
        if node in self.nodes:
            self.nodes.remove(node)

    def busy(self, rng_choice: Callable[[list[int]], int], among: list[Node] | None = None, wait_s: float = 30.0) -> int:
        """The pid of a worker that runs a task."""
        end = time.monotonic() + wait_s
        while time.monotonic() < end:
            found = [pid for node in among or self.nodes for pid in node.workers("ray::Worker.run")]
            if found:
                return rng_choice(sorted(found))
            time.sleep(0.05)
        raise AssertionError("no worker runs anything")

    def _begin(self, words: list[str], cpus: int, head: bool, leaf: bool) -> Node:
        whole = [str(RAY), "start", "--num-cpus", str(cpus), "--object-store-memory", str(STORE_BYTES), "--block", *words]
        where = f"nas-{'leaf' if leaf else 'hub'}-{os.getpid()}"
        whole = ["nsenter", f"--net=/run/netns/{where}", *whole] if self.namespaces else whole
        log = self.root / f"node-{len(list(self.root.glob('node-*')))}"
        with log.open("wb") as output:
            process = subprocess.Popen(whole, env=os.environ | self.environment, stdout=output, stderr=subprocess.STDOUT)
        end = time.monotonic() + STARTED_S
        while b"Ray runtime started" not in log.read_bytes():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        node = Node(process, head, leaf)
        self.nodes.append(node)
        return node


@contextlib.contextmanager
def cluster(cpus: int = 2, others: int = 3, namespaces: bool = False, quick: bool = True) -> Iterator[Nodes]:
    """A head, on which nothing trains, and `others`; with namespaces, the last one is the leaf."""
    with tempfile.TemporaryDirectory(prefix="nas-attn-", dir="/tmp") as root, contextlib.ExitStack() as stack:
        token = Path(root, "token")
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))
        here = str(Path(__file__).parent)
        path = os.pathsep.join(filter(None, [here, str(Path(here).parent), os.environ.get("PYTHONPATH", "")]))
        environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": path}
        if namespaces:
            stack.enter_context(_joined())
        running = Nodes(Path(root), environment | (QUICK if quick else {}), namespaces)
        try:
            running.start(0)
            for number in range(others):
                running.add(cpus, leaf=namespaces and number == others - 1)
            yield running
        finally:
            for node in reversed(list(running.nodes)):
                running.end(node)


def can_make_namespaces() -> bool:
    """Whether this user may make network namespaces and join them."""
    name = f"nas-try-{os.getpid()}"
    if os.geteuid() != 0 or subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return False
    return subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def _joined() -> Iterator[None]:
    hub, leaf = f"nas-hub-{os.getpid()}", f"nas-leaf-{os.getpid()}"

    def run(text: str) -> None:
        subprocess.run(text.split(), check=True, capture_output=True)

    try:
        for name in (hub, leaf):
            run(f"ip netns add {name}")
            run(f"ip -n {name} link set lo up")
        run(f"ip -n {hub} link add nas-hub type veth peer name nas-leaf netns {leaf}")
        for name, link, address in ((hub, "nas-hub", HUB), (leaf, "nas-leaf", LEAF)):
            run(f"ip -n {name} address add {address}/24 dev {link}")
            run(f"ip -n {name} link set {link} up")
        yield
    finally:
        for name in (hub, leaf):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def descendants(pid: int) -> list[int]:
    """All processes below one, from /proc."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found, last = set[int](), {pid}
    while last:
        last = {child for child, parent in parents.items() if parent in last} - found
        found |= last
    return sorted(found)


def command(pid: int) -> str:
    """A process's command line; empty where it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ").strip()
    return ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
