"""Every fault once, for real, on one cluster of four raylets: nothing told is lost, nothing left running, nothing trained twice."""

import pytest
from fault_cluster import can_make_namespaces, cluster
from fault_kinds import FAULTS
from fault_nodes import HELD
from fault_run import Run, place

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not can_make_namespaces(), reason="network namespaces and mounts take root")]

SERVER = [name for name in FAULTS if name.startswith("server")]
SEARCHES = {
    "driver, data and storage": [
        "driver killed", "worker killed", "storage locked", "data away", "two drivers", "disk full", "driver suspended", "storage gone",
        "driver told to end", "outcome torn", "clock jumps",
    ],
    "workers and nodes": [
        "actor ended", "raylet killed", "GPU memory", "worker hangs", "trial kills its workers", "latency node lost", "GPU lost",
        "head lost",
    ],
    "nodes that are held to their effect": ["node preempted", "raylet hangs", "network cut", "node hangs"],
}  # fmt: skip


def test_every_fault_has_its_search():
    assert sorted([*SERVER, *(fault for faults in SEARCHES.values() for fault in faults)]) == sorted(FAULTS)


@pytest.fixture(scope="module")
def nodes():
    with cluster(namespaces=True) as running:
        yield running


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_keeps_its_promises_through(nodes, name):
    faults = SEARCHES[name]
    with place(small=True) as root:
        run = Run(name=name, faults=faults, seed=0, nodes=nodes, root=root)
        rows, verdict = run.go()
    assert verdict.good, (verdict, rows)
    assert [row.fault for row in rows] == faults
    assert (verdict.drivers > 1) == (not set(faults) & set(HELD))  # no loss of a node is the driver's
    assert all(row.hit for row in rows if row.fault in HELD)


@pytest.mark.timeout(600)
def test_a_search_on_a_server_keeps_its_promises(postgres):
    with cluster(others=2) as running, place(small=False) as root:
        rows, verdict = Run(name="server", faults=SERVER, seed=0, nodes=running, root=root, server=postgres).go()
    assert verdict.good, (verdict, rows)
    assert verdict.drivers == 1
