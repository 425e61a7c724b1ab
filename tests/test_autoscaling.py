"""A pool on a cluster that grows and shrinks with its work, by Ray's own autoscaler."""

import json
import os
import time
from pathlib import Path

import pytest
import ray
from raylets import autoscaled

from nas_attn.pool import RayPool
from nas_attn.work import Done, Task

PATIENCE_S = 240.0


def nodes() -> int:
    """How many nodes with CPUs there are."""
    return sum(bool(node["Alive"] and node["Resources"].get("CPU")) for node in ray.nodes())


def finish(pool: RayPool, *tasks: Task) -> list[Done]:
    """All of some tasks."""
    for task in tasks:
        pool.submit(task)
    done: list[Done] = []
    while len(done) < len(tasks):
        done += pool.wait(PATIENCE_S)
    return done


def await_nodes(pool: RayPool, count: int) -> None:
    """Let the pool look at its seats until there are so many nodes."""
    end = time.monotonic() + PATIENCE_S
    while nodes() != count:
        assert time.monotonic() < end, f"{nodes()} nodes where {count} were expected"
        pool._dispatch()
        pool._collect(time.monotonic() + 1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_pending_work_brings_nodes_and_idle_nodes_are_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    with autoscaled(2, idle_s=2, PYTHONPATH=str(Path(__file__).parent)) as cluster:
        for name, value in cluster.environment.items():
            monkeypatch.setenv(name, value)
        with RayPool("pool_targets:serve", address=cluster.address, max_workers=2, tell=told.append) as pool:
            pool._seating.idle_s = 2.0
            assert nodes() == 1  # the head has no CPU: even the first worker's node had to be asked for
            assert pool.slots == 2
            ((_, first),) = pool.everywhere("echo", "{}")
            assert first.result
            judged: list[str] = []
            pool.require("echo", "{}", lambda done: judged.append(str(done.result)))
            meet = json.dumps({"folder": str(tmp_path), "count": 2})
            met = finish(pool, Task("a", "meet", meet), Task("b", "meet", meet))
            assert {json.loads(str(done.result))["pid"] for done in met} == {int(file.name) for file in tmp_path.iterdir()}
            assert nodes() == 2
            assert len(judged) == 2  # the first node's answer, and that of the node that joined, before its work
            await_nodes(pool, 1)  # nothing waits, and one worker stays
            assert any("given up" in text for text in told)
            (alone,) = finish(pool, Task("c", "echo", "{}", exclusive=True))
            assert alone.result
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        try:
            end = time.monotonic() + PATIENCE_S
            while nodes():
                assert time.monotonic() < end
                time.sleep(0.5)
        finally:
            ray.shutdown(wait_for_processes=True)
    assert told[0] == "waiting for a node with 1 CPUs"
    assert os.environ["RAY_AUTH_MODE"] == "token"
