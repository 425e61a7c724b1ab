"""What a pool does about nodes: one on which a worker fails to start, loses its data, says that it will go, or does not see the folder."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_pool import HERE, await_file, result, run_all, task

from nas_attn import freight, losses
from nas_attn import pool as pool_module
from nas_attn.errors import NasAttnError
from nas_attn.pool import RayPool


@dataclass
class Here:
    """A pool of two workers that do not see the study's folder, what it has told, and where the workers keep their own."""

    pool: RayPool
    study: Path
    told: list[str]
    own: Path

    @property
    def node(self) -> str:
        return str(self.pool._slots[0].node)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    """The first worker that begins fails."""
    root = tmp_path_factory.mktemp("nodes")
    (root / "own").mkdir()
    told: list[str] = []
    leave = freight.leave_mark
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])))
        patch.setenv("FIRST_START", str(root / "first"))
        patch.setenv("TMPDIR", str(root / "own"))
        patch.setattr(pool_module, "available_cpus", lambda: 2)
        patch.setattr(freight, "leave_mark", lambda folder: f"not {leave(folder)}")
        with RayPool("flaky_targets:serve", workers=2, threads=1, folder=root / "study", tell=told.append) as pool:
            yield Here(pool, root / "study", told, root / "own")
            assert [*(root / "own").glob("nas-attn-*")]
        assert not [*(root / "own").glob("nas-attn-*")], "private folders go with their workers"


def await_that(true: object, pool: RayPool | None = None) -> None:
    """Until a function gives true, the pool being looked after meanwhile."""
    assert callable(true)
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        if pool is None:
            time.sleep(0.05)
        else:
            assert pool.wait(0.2) == []


def test_a_worker_that_does_not_start_is_tried_again_while_the_other_works(here: Here, tmp_path: Path) -> None:
    assert "a worker could not be started; tried again in 1 s: CUDA error: simulated" in here.told[0]
    assert len(here.told) == 1
    done = run_all(here.pool, *(task(name, "meet", folder=str(tmp_path), count=2) for name in "ab"))
    assert len({result(one)["pid"] for one in done.values()}) == here.pool.slots == 2


def test_a_node_is_asked_again_where_its_worker_was_lost(here: Here, tmp_path: Path) -> None:
    asked = task("", "die_first", file=str(tmp_path / "died"))
    ((name, done),) = here.pool.everywhere(asked.kind, asked.payload)
    assert (tmp_path / "died").exists()
    assert result(done)["pid"]
    assert name == here.pool._slots[0].name
    (tmp_path / "both").mkdir()
    run_all(here.pool, *(task(name, "meet", folder=str(tmp_path / "both"), count=2) for name in "ab"))  # both are there again
    ((_, done),) = here.pool.everywhere("die", "{}")
    assert (done.result, done.cause) == (None, "crash")


def test_while_every_node_rests_the_pool_looks_after_them(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "PAUSES_S", (3.0,))
    monkeypatch.setattr(pool_module, "WATCH_S", 0.0)
    looks: list[str] = []
    states = here.pool._cluster.states
    monkeypatch.setattr(here.pool._cluster, "states", lambda: (looks.append("look"), states())[1])
    lacking = task("a", "need", file=str(tmp_path / "data"))
    lost = run_all(here.pool, lacking)["a"]
    assert (lost.cause, lost.lost) == ("data", f"{tmp_path / 'data'} is away; looks again in 3 s")
    looks.clear()
    assert result(run_all(here.pool, task("b", "echo"))["b"])["echo"] == {}
    assert len(looks) >= 2
    assert run_all(here.pool, lacking)["a"].cause == "data"
    with pytest.raises(NasAttnError, match="is away; waited 0 min for it: bring it back"):
        here.pool.submit(lacking)
    (tmp_path / "data").touch()
    here.pool._seating.outages = losses.Outages()
    assert result(run_all(here.pool)["a"])["pid"]


def test_what_a_worker_has_kept_is_fetched_when_its_node_will_go_and_inherited_when_it_dies(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, told = here.study / "trials" / "d" / "j", tmp_path / "told"
    training = task("a", "keep", folder=str(place), kept=str(tmp_path / "kept"), told=str(told))
    here.pool.submit(training)
    pid = int(await_file(tmp_path / "kept1"))
    assert not place.exists()
    (annex,) = here.own.glob(f"nas-attn-{pid}-*")
    with monkeypatch.context() as patch:
        patch.setattr(here.pool._cluster, "states", lambda: {here.node: "draining"})
        await_that((place / "1" / "checkpoint.pt").exists, here.pool)
    told.touch()
    await_file(tmp_path / "kept2")
    assert not (place / "2").exists()
    os.kill(pid, signal.SIGKILL)
    lost = run_all(here.pool)["a"]
    assert lost.cause == "crash"
    assert [(place / name / "checkpoint.pt").read_text() for name in "12"] == ["kept 1", "kept 2"]
    await_that(lambda: not annex.exists())


def test_a_porter_that_has_died_is_replaced(here: Here) -> None:
    import ray

    ray.kill(here.pool._porters._actors[here.node], no_restart=True)
    dead = here.pool._porters._actors[here.node]

    def asked_anew() -> bool:
        here.pool._porters.ask(here.node, str(here.own))
        here.pool._porters.collect()
        return here.pool._porters._actors.get(here.node) not in (None, dead)

    await_that(asked_anew)
    here.pool._porters.keep(())
    assert here.pool._porters._actors == {}
    here.pool._porters.post(here.node)


def test_what_no_task_needs_any_more_leaves_the_object_store(here: Here) -> None:
    files = [here.study / name for name in ("base/weights.pt", "trials/d/j/1/a.pt", "trials/d/j/1/b.pt")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(file.name)
    for file in files[1:]:
        result(run_all(here.pool, task("a", "need", file=str(file)))["a"])
        assert set(here.pool._freight._shipped) == {str(files[0]), str(file)}
