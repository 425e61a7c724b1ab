"""A local Ray of ours as a stranger finds it: every port that it listens on, and what each answers. Prints JSON; run by test_ports.py.

    python tests/ports.py ADDRESS FOLDER    (an address of this machine other than the loopback, and where a study may be)

With NAS_ATTN_STORAGE a small search of a fake evaluator is kept there, and its password is looked for wherever it could have leaked.
"""

import json
import os
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import fake_evaluator
import pool_targets
import study_targets

from nas_attn import cli_storage, cluster, door, study
from nas_attn.address import make_url
from nas_attn.pool import RayPool
from nas_attn.spec import SpaceSpec
from nas_attn.work import Task

METHODS = {
    "gcs_server": ("NodeInfoGcsService/GetAllNodeInfo", "InternalKVGcsService/InternalKVKeys", "JobInfoGcsService/AddJob"),
    "raylet": ("NodeManagerService/RequestWorkerLease", "ObjectManagerService/Push"),
    "worker": ("CoreWorkerService/PushTask", "CoreWorkerService/Exit"),
    "driver": ("CoreWorkerService/PushTask", "CoreWorkerService/Exit"),
}
DEADLY = "/ray.rpc.syncer.RaySyncer/StartSync"
"""Ray 2.60 ends the process that is asked so, before it has looked for a token."""
UNIMPLEMENTED = 12
MARKS = {name: name for name in ("gcs_server", "RuntimeEnvAgent", "DashboardAgent", "monitor.py", "dashboard.py")}
MARKS |= {"raylet/raylet": "raylet", "ray::": "worker"}
"""What tells a process by its command line, and what docs/security.md calls it; agents are called `ray::` too."""
PATHS = ("/", "/metrics", "/get_or_create_runtime_env", "/api/healthz", "/api/local_raylet_healthz", "/api/job_agent/jobs/")


def listeners(pids):
    """`(component, pid, address, port)` of every socket that these processes listen on."""
    sockets = {}
    for family, kind in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path("/proc/net", family).read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A":
                address, port = local.split(":")
                words = [bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8)]
                sockets[rest[5]] = (socket.inet_ntop(kind, b"".join(words)), int(port, 16))
    found = []
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                name = str(entry.readlink())
            except OSError:
                continue
            if name.startswith("socket:[") and name[8:-1] in sockets:
                found.append((component(pid), pid, *sockets[name[8:-1]]))
    return sorted(found)


def component(pid):
    if pid == os.getpid():
        return "driver"
    words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return next((name for mark, name in MARKS.items() if mark in words[:300]), words[:80])


def told(address, method, headers=None, context=None):
    """The status of a call, or `refused` where it came to none."""
    try:
        answer = door.status(address, method, headers or {}, context)
    except OSError:
        return "refused"
    return "refused" if answer is None else answer


def http(address, port, path, token=None):
    """The status of a GET, or None where no HTTP is spoken."""
    head = f"Authorization: Bearer {token}\r\n" if token else ""
    try:
        with socket.create_connection((address, port), timeout=5) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {address}\r\n{head}Connection: close\r\n\r\n".encode())
            answer = connection.recv(64)
    except OSError:
        return None
    return int(answer.split()[1]) if answer.startswith(b"HTTP/1.") else None  # pages of metrics speak 1.0


def contexts():
    """A stranger's TLS, which has no certificate, and that of a holder of ours."""
    bare, ours = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for context in (bare, ours):
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
    ours.load_cert_chain(os.environ["RAY_TLS_SERVER_CERT"], os.environ["RAY_TLS_SERVER_KEY"])
    return bare, ours


def ask(host, kind, port, token):
    """What one port answers whom."""
    bare, ours = contexts()
    address = f"{host}:{port}"
    wrong, right = {"authorization": "Bearer wrong"}, {"authorization": f"Bearer {token}"}
    methods = [f"/ray.rpc.{method}" for method in METHODS.get(kind, METHODS["worker"])]
    answers = {
        "plain": [told(address, method) for method in [*methods, DEADLY]],
        "no certificate": [told(address, method, right, bare) for method in [*methods, DEADLY]],
        "http": {path: [http(host, port, path), http(host, port, path, "wrong")] for path in PATHS},
    }
    if kind in METHODS:
        answers["no token"] = [told(address, method, None, ours) for method in methods]
        answers["wrong token"] = [told(address, method, wrong, ours) for method in methods]
    if kind == "gcs_server":
        answers["both"] = told(address, methods[0], right, ours)
    return answers


def as_another_user(*command):
    """The exit status of a command as the user nobody; None where this user cannot become it."""
    if os.geteuid() != 0:
        return None
    given = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command]
    return subprocess.run(given, capture_output=True, check=False).returncode


def serve(kind, payload):
    """What workers do: a fake search, and the telling of their environment."""
    return (pool_targets if kind == "environment" else fake_evaluator).serve(kind, payload)


def search(pool, folder, url):
    """A search whose storage has a password, as the command line does it."""
    given = {"base": study_targets.BASE, "sites": ["P3"], "modules": {"LIA": {"f": [8]}}, "base_seeds": 2, "controls": False}
    setup = fake_evaluator.setup(folder, fake_evaluator.Fake())
    study.run(folder, SpaceSpec.from_dict(given), study_targets.space(), setup, pool, trials=3, sampler="random", storage=url)


def leaks(secret, pids, *folders):
    """Where a text stands: environments and command lines of processes, and files."""
    files = [Path(f"/proc/{pid}/{name}") for pid in pids for name in ("environ", "cmdline")]
    files += [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in files if secret.encode() in path.read_bytes()]


def main(host, place):
    """Start, search, look, ask, print."""
    url = os.environ.get(cli_storage.VARIABLE)
    cli_storage.forget_url()
    with RayPool("ports:serve", workers=1, threads=1, folder=place) as pool:
        if url is not None:
            search(pool, place, url)
        folder = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).parent
        token = (folder / "token").read_text()
        time.sleep(3)  # agents listen a while after their start
        family = cluster._family(folder)
        found = listeners([os.getpid(), *family])
        answers = [
            {"component": kind, "pid": pid, "address": at, "port": port, **ask(host, kind, port, token)} for kind, pid, at, port in found
        ]
        pool.submit(Task("a", "environment", json.dumps({"names": ["YOLO_AUTOINSTALL", "NAS_ATTN_STORAGE"]})))
        (done,) = pool.wait(60)
        logs = [path for path in (folder / "ray").rglob("*") if path.is_file()]
        places = {"token": folder / "token", "key": folder / "key.pem", "log": logs[0]}
        kept = [folder, *(path for path in sorted(folder.iterdir()) if path.is_file())]
        report = {
            "answers": answers,
            "alive": all(cluster._process(pid)[2] for pid in family),
            "worker": json.loads(done.result or "{}"),
            "modes": {path.name if path != folder else "folder": oct(path.stat().st_mode & 0o777) for path in kept},
            "others": {name: as_another_user("cat", str(path)) for name, path in places.items()},
            "token": leaks(token, family, folder / "ray", place),
            "password": None if url is None else leaks(make_url(url).password, family, folder, place),
        }
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
