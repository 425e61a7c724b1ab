"""What docs/security.md promises of a local Ray: one of ours is asked from outside at each of its ports.

tests/ports.py does so, where root may in a network namespace with a second address.
"""

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PAGE = (HERE.parent / "docs" / "security.md").read_text()
LISTENER = re.compile(r"^\| (.+?) \| (.+?) \| (random|\d+) \|", re.MULTILINE)
FAR = "198.51.100.7"
NAMESPACE = f"ip link set lo up && ip addr add {FAR}/32 dev lo && ip route add default dev lo src {FAR} && exec "
REFUSED, UNAUTHENTICATED, UNIMPLEMENTED = "refused", 16, 12
PLANTED = "hunter2plantedhere"


def outside():
    """Words that begin a command in a network of its own which has a second address, and that address; else this machine's own."""
    if (
        os.geteuid() == 0
        and subprocess.run(["unshare", "-n", "sh", "-c", f"{NAMESPACE} true"], capture_output=True, check=False).returncode == 0
    ):
        return ["unshare", "-n", "sh", "-c", f'{NAMESPACE} "$@"', "sh"], FAR
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return [], probe.getsockname()[0]


@pytest.fixture(scope="module")
def seen(postgres, tmp_path_factory):
    """What a stranger finds at our local Ray, on which a search runs whose storage has a password."""
    words, address = outside()
    database = postgres.fresh().rpartition("/")[2]
    postgres.run(f"CREATE USER planted_here SUPERUSER PASSWORD '{PLANTED}'")
    url = f"postgresql://planted_here:{PLANTED}@/{database}?host={postgres.folder}&port={postgres.port}"
    environment = {**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}", "YOLO_AUTOINSTALL": "true", "NAS_ATTN_STORAGE": url}
    command = [*words, sys.executable, str(HERE / "ports.py"), address, str(tmp_path_factory.mktemp("planted") / "study")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "host": address}


def listed(host):
    """What docs/security.md says that each kind of process listens on: its name, the address and the port, sorted."""
    text = PAGE.partition("## The ports of a local Ray")[2].partition("### ")[0]
    own, agents = text.split("**Where `ray[default]` is installed**")
    found = defaultdict(list)
    for name, bound, port in LISTENER.findall(own + agents * bool(importlib.util.find_spec("opencensus"))):
        component = re.search(r"[\w.]+", name.removeprefix("each "))[0]
        at = [host if word.startswith("the") else word for word in re.findall(r"the machine's address|[\d.:]{2,}", bound)]
        found[component] += [(component, address, port) for address in at]
    return {tuple(sorted(rows)) for rows in found.values()}


@pytest.mark.slow
def test_every_port_is_listed_and_nothing_else(seen):
    page = listed(seen["host"])
    fixed = {(row[0], row[2]) for rows in page for row in rows}
    found = defaultdict(list)
    for answer in seen["answers"]:
        name, port = answer["component"], str(answer["port"])
        found[answer["pid"]].append((name, answer["address"], port if (name, port) in fixed else "random"))
    assert {tuple(sorted(rows)) for rows in found.values()} == page, "docs/security.md must list every listener of each process"
    assert {rows[0][0] for rows in page} >= {"driver", "gcs_server", "raylet", "worker", "RuntimeEnvAgent"}
    assert any(answer["address"] == "::" for answer in seen["answers"]), "Ray can be bound to the loopback now: do it, and say so"


@pytest.mark.slow
def test_no_port_takes_a_call_without_our_certificate(seen):
    """Not even the call at which Ray's head ends itself."""
    for answer in seen["answers"]:
        assert {*answer["plain"], *answer["no certificate"]} == {REFUSED}, answer
    assert seen["alive"]


@pytest.mark.slow
def test_no_port_takes_a_call_without_our_token(seen):
    asked = [answer for answer in seen["answers"] if "no token" in answer]
    assert len(asked) >= 5
    for answer in asked:
        assert {*answer["no token"], *answer["wrong token"]} <= {UNAUTHENTICATED, UNIMPLEMENTED}, answer
        assert UNAUTHENTICATED in answer["no token"], answer
        assert UNAUTHENTICATED in answer["wrong token"], answer
    assert [answer["both"] for answer in asked if "both" in answer] == [0], "with both a call succeeds, so the others could have"


@pytest.mark.slow
def test_no_page_is_served_without_our_token(seen):
    told = [answer for answer in seen["answers"] if answer["http"]["/"][0] is not None]
    closed = {path: [401, 403] for path in told[0]["http"]}
    healths = {path: [200, 200] for path in ("/api/healthz", "/api/local_raylet_healthz")}
    metrics = {path: [200, 200] for path in closed}
    promised = {"RuntimeEnvAgent": closed, "DashboardAgent": {**closed, **healths}}
    for answer in told:
        assert answer["http"] == (metrics if answer["address"] == "0.0.0.0" else promised[answer["component"]]), answer
    assert "RuntimeEnvAgent" in {answer["component"] for answer in told}


@pytest.mark.slow
def test_other_users_read_nothing_of_it(seen):
    assert seen["modes"] == {"folder": "0o700", "token": "0o600", "key.pem": "0o600", "cert.pem": "0o600"}
    assert set(seen["others"].values()) in ({None}, {1})
    assert seen["token"] == []
    assert seen["password"] == []


@pytest.mark.slow
def test_workers_install_nothing_and_know_no_storage(seen):
    assert seen["worker"]["YOLO_AUTOINSTALL"] == "false"
    assert seen["worker"]["NAS_ATTN_STORAGE"] is None
