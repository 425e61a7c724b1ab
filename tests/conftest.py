"""What several tests share: a database server, and one small real study of two modules on yolo11n, trained in this process."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from postgres_server import Server, server

os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_AUTOINSTALL", "false")
os.environ.setdefault("RAY_worker_niceness", "0")  # else Ray's workers get next to nothing of a core on which other tests compute
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A suite that a shell runs in the background ignores Ctrl-C, and so would the programs that tests send one to.
    signal.signal(signal.SIGINT, signal.default_int_handler)

TINY_SPACE = """
base: yolo11n.yaml
sites: [P3, P4, neck_P4]
max_placements: 2
modules:
  LSKA: {k_size: [7]}
  LIA: {f: [8]}
base_fit: {epochs: 2, lr0: 0.002}
proxy: {epochs: 2, imgsz: 64, batch: 8}
latency: {blocks: 3, calibrations: 2, retries: 0}
base_seeds: 2
"""


RAY = ("faults", "ports", "security", "walkthrough", "pool", "pool_nodes", "nodes", "autoscaling", "schedule")
"""Tests that start a Ray, which no two processes shall do at once: they would share the cores with each other's clusters."""
FIRST = (
    "readme",
    "contract",
    "cli_storage",
    "cli",
    "study",
    "record",
    "proxy",
    "cli_retarget",
    "storage",
    "conformance",
    "attention_block",
)
"""What takes longest, so that no process is left with it at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first."""
    order = {name: place for place, name in enumerate((*RAY, *FIRST))}
    items.sort(key=lambda item: order.get(item.path.stem.removeprefix("test_"), len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """For several processes (`make test`): the tests of a file stay together, and those of Ray as well."""
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            name = Path(nodeid.partition("::")[0]).stem.removeprefix("test_")
            return "ray" if name in RAY else name

    return Together(config, log)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A PostgreSQL server of this session's own."""
    with server() as running:
        yield running


@pytest.fixture(params=["sqlite", "journal", pytest.param("postgresql", marks=pytest.mark.slow)])
def every_storage(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Keeps the studies of a test in each kind of storage in turn."""
    from study_targets import Shelf

    if request.param == "postgresql":
        monkeypatch.setattr(Shelf, "url", request.getfixturevalue("postgres").fresh())
    elif request.param == "journal":
        monkeypatch.setattr(Shelf, "url", "journal://{folder}/study.journal")
        monkeypatch.setattr("nas_attn.journal.ORPHAN_S", 0.05)
    return str(request.param)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The YAML of 32 train and 4 val images of drawn digits."""
    from nas_attn.demo import draw_data_set

    return draw_data_set(tmp_path_factory.mktemp("digits"), train=32, val=4)


@pytest.fixture(scope="session")
def tiny_study(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """The folder of a finished study of three trials."""
    from nas_attn.cli import search

    root = tmp_path_factory.mktemp("tiny")
    (root / "tiny.yaml").write_text(TINY_SPACE)
    search(str(root / "tiny.yaml"), data=digits, trials=3, out=root / "study", pool="inline", device="cpu")
    return root / "study"
