"""The faults: each does something real to a running search, waits for as long as it is meant to last, and undoes what can be undone.

A fault gets the run that it disturbs and a random source for its choices; what it says it did goes into the run's notes. Those that must
show what they hit are in `fault_nodes`.
"""

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from fault_nodes import HELD, stopped
from postgres_server import wait

if TYPE_CHECKING:
    from fault_run import Run

Fault = Callable[["Run", random.Random], None]


# -- driver ----------------------------------------------------------------------------------------------------------------------------


def driver_killed(run: "Run", rng: random.Random) -> None:
    """SIGKILL, and the same command again."""
    time.sleep(rng.uniform(0, 1))
    run.end_driver(signal.SIGKILL)
    run.start_driver()


def driver_told_to_end(run: "Run", rng: random.Random) -> None:
    """SIGTERM or SIGINT, then the same command again."""
    time.sleep(rng.uniform(0, 1))
    code = run.end_driver(rng.choice([signal.SIGTERM, signal.SIGINT]))
    run.require(code == 130, f"a driver that is told to end ends with 130, but did with {code}")
    run.start_driver()


def driver_suspended(run: "Run", rng: random.Random) -> None:
    """SIGSTOP for some seconds: answers pile up."""
    with stopped([run.driver.pid]):
        time.sleep(rng.uniform(3, 8))


def two_drivers(run: "Run", rng: random.Random) -> None:  # noqa: ARG001
    """A second driver is refused with the first one's process and its age."""
    second = subprocess.run(run.command(), env=run.environment(), capture_output=True, text=True, timeout=120, check=False)
    words = f"process {run.driver.pid} on host"
    run.require(second.returncode == 2 and words in second.stdout and "last sign of life" in second.stdout, second.stdout[-300:])


# -- workers ---------------------------------------------------------------------------------------------------------------------------


def worker_killed(run: "Run", rng: random.Random) -> None:
    """SIGKILL of a process that trains; never twice under one trial, which would be its end."""
    pid = _victim(run, rng)
    run.note(f"killed worker {pid}")
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _victim(run: "Run", rng: random.Random) -> int:
    """A process that trains something whose worker was not ended before."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        pid = run.nodes.busy(rng.choice)
        digest = run.trained_by().get(pid)
        if digest is not None and digest not in run.hit:
            run.hit.add(digest)
            return pid
        time.sleep(0.1)
    raise AssertionError("no worker trains what was not hit before")


def actor_ended(run: "Run", rng: random.Random) -> None:
    """SIGTERM: Ray ends the actor in an orderly way, as when a node makes room."""
    pid = _victim(run, rng)
    run.note(f"ended the actor of process {pid}")
    os.kill(pid, signal.SIGTERM)


def worker_hangs(run: "Run", rng: random.Random) -> None:  # noqa: ARG001
    """A training that never ends: its deadline does (`Fake.hangs`)."""
    run.arm("hangs")
    run.await_event("deadline", 120)


def trial_kills_its_workers(run: "Run", rng: random.Random) -> None:  # noqa: ARG001
    """An architecture that ends every worker (`Fake.poison`) is told FAIL after the second."""
    run.arm("poison")
    run.await_event("ended its worker 2 times", 120)


# -- nodes -----------------------------------------------------------------------------------------------------------------------------


def raylet_killed(run: "Run", rng: random.Random) -> None:
    """SIGKILL of a node's raylet; another node takes its place."""
    node = rng.choice(run.nodes.nodes[1:])
    os.kill(node.part("raylet"), signal.SIGKILL)
    run.nodes.end(node)
    run.nodes.add(run.cpus)


def latency_node_lost(run: "Run", rng: random.Random) -> None:
    """The node on which latency was measured last. Another takes its place only after latency was measured elsewhere."""
    time.sleep(rng.uniform(0, 0.5))
    node = run.nodes.nodes[1]
    for _ in range(300):  # that worker may be gone already; a new one measures soon
        worker = int(run.pace.with_name("measured-by").read_text())
        found = [node for node in run.nodes.nodes[1:] if worker in node.workers()]
        if found:
            node = found[0]
            break
        time.sleep(0.1)
    else:
        run.require(False, "nobody measures")
    os.kill(node.part("raylet"), signal.SIGKILL)
    run.nodes.end(node)
    run.await_event(" measured trial", 60, since=len(run.log.read_text()))
    run.nodes.add(run.cpus)


def head_lost(run: "Run", rng: random.Random) -> None:
    """SIGKILL of the GCS: Ray ends raylets, workers and driver. A supervisor begins a cluster and the same command anew."""
    time.sleep(rng.uniform(0, 1))
    os.kill(run.nodes.nodes[0].part("gcs_server"), signal.SIGKILL)
    run.await_driver(90)
    for node in list(run.nodes.nodes):
        run.nodes.end(node)
    run.nodes.start(0)
    for number in range(run.others):
        run.nodes.add(run.cpus, leaf=run.nodes.namespaces and number == run.others - 1)
    run.start_driver()


# -- storage and data ------------------------------------------------------------------------------------------------------------------


def storage_locked(run: "Run", rng: random.Random) -> None:
    """Another process holds SQLite's write lock."""
    with contextlib.closing(sqlite3.connect(run.folder / "study.db", isolation_level=None, timeout=30)) as other:
        other.execute("BEGIN IMMEDIATE")
        time.sleep(rng.uniform(3, 8))
        other.execute("ROLLBACK")


def disk_full(run: "Run", rng: random.Random) -> None:
    """Not a byte is left in the study's folder, for a while."""
    filler = run.folder.parent / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)
    time.sleep(rng.uniform(3, 6))
    filler.unlink()


def storage_gone(run: "Run", rng: random.Random) -> None:
    """`study.db` is deleted under the driver, which is then told to end; `rebuild`, and the same command again."""
    from nas_attn.rebuild import rebuild

    time.sleep(rng.uniform(0, 1))
    for file in run.folder.glob("study.db*"):
        file.unlink()
    time.sleep(1)
    run.end_driver(signal.SIGKILL)
    rebuild(run.folder)
    run.start_driver()


def server_stopped(run: "Run", rng: random.Random) -> None:
    """PostgreSQL is shut down, is away for some seconds, and comes back."""
    run.server.program.stop()
    time.sleep(rng.uniform(2, 6))
    run.server.program.start()
    wait(run.server)


def server_slow(run: "Run", rng: random.Random) -> None:
    """PostgreSQL does not answer for some seconds."""
    with stopped(run.server.program.suspend()):
        time.sleep(rng.uniform(3, 8))


def data_away(run: "Run", rng: random.Random) -> None:
    """The data folder vanishes and comes back (`Fake.data`)."""
    hidden = run.data.with_name("away")
    run.data.rename(hidden)
    run.await_event("looks again", 60)
    time.sleep(rng.uniform(0, 3))
    hidden.rename(run.data)


# -- devices and clock -----------------------------------------------------------------------------------------------------------------


def gpu_crowded(run: "Run", rng: random.Random) -> None:  # noqa: ARG001
    """A training lacks memory beside others (`Fake.crowded`): once more, alone."""
    run.await_event("runs once more, alone", 120)


def gpu_lost(run: "Run", rng: random.Random) -> None:  # noqa: ARG001
    """A worker's device fails under a training (`Fake.unfit`): another worker runs it."""
    run.arm("unfit")
    run.await_event("GPU must work", 120)


def clock_jumps(run: "Run", rng: random.Random) -> None:
    """The clock of the day jumps by hours, ahead and back, as the driver's Python sees it; no deadline may depend on it."""
    for _ in range(3):
        run.clock.write_text(str(rng.choice([-1, 1]) * 3600 * rng.randrange(1, 30)))
        time.sleep(rng.uniform(1, 3))
    run.clock.write_text("0")


def outcome_torn(run: "Run", rng: random.Random) -> None:
    """A worker dies, and what its attempt left is half an outcome: it does not count."""
    worker_killed(run, rng)
    pid, digest = next((p, d) for p, d in reversed(run.trained_by().items()) if d in run.hit)
    attempts = sorted((run.folder / "trials" / digest).glob("*/*"))
    file = attempts[-1] / "outcome.json"
    if not file.exists():
        file.write_text('{"schema": 1, "job": {"architecture"')
        run.torn.add(str(file))
    run.note(f"tore what worker {pid} left")


FAULTS: dict[str, Fault] = {
    "driver killed": driver_killed,
    "driver told to end": driver_told_to_end,
    "driver suspended": driver_suspended,
    "two drivers": two_drivers,
    "worker killed": worker_killed,
    "actor ended": actor_ended,
    "worker hangs": worker_hangs,
    "trial kills its workers": trial_kills_its_workers,
    "raylet killed": raylet_killed,
    "latency node lost": latency_node_lost,
    "head lost": head_lost,
    "storage locked": storage_locked,
    "disk full": disk_full,
    "storage gone": storage_gone,
    "server stopped": server_stopped,
    "server slow": server_slow,
    "data away": data_away,
    "GPU memory": gpu_crowded,
    "GPU lost": gpu_lost,
    "clock jumps": clock_jumps,
    "outcome torn": outcome_torn,
    **HELD,
}
