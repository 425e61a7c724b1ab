"""Faults of storages, each for real: the driver waits and goes on, or says what to do, and what it finds is what it would have found."""

import contextlib
import random
import signal
import sqlite3
import threading

import pytest
from fake_evaluator import Fake, executions, measured, setup
from postgres_server import server
from storage_faults import for_a_while, full_disk, lose, server_down, server_hangs, server_slow, small_disk, sqlite_locked
from study_targets import BASE, RECIPE, Shelf, load_study, open_record, space, tell_next

from nas_attn import files, storage, study, wire
from nas_attn.errors import NasAttnError, StudyError
from nas_attn.ledger import Ledger
from nas_attn.pool import InlinePool
from nas_attn.rebuild import rebuild
from nas_attn.spec import SpaceSpec

MIXED = Fake(fails=10, stops=10, slow=20, bad_build=5)
TRIALS = 8


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr(storage, "PRAGMAS", ("journal_mode=WAL", "synchronous=OFF", "busy_timeout=50"))
    monkeypatch.setattr(storage, "PAUSES_S", (0.05,) * 1200)
    monkeypatch.setattr(files, "FULL_PAUSES_S", (0.05,) * 1200)


@pytest.fixture(scope="module")
def own_server():
    """A server that may be ended, unlike that of all tests."""
    with server() as running:
        yield running


class Troubled(InlinePool):
    """Makes a fault for a while before some of its answers, and leaves it on when the answer is given."""

    def __init__(self, make, seconds, seed, most=4):
        super().__init__("fake_evaluator:serve")
        self._make, self._seconds, self._rng, self._most = make, seconds, random.Random(seed), most
        self.undone: list[threading.Event] = []
        self._open: list[object] = []

    def wait(self, timeout_s):
        over = not self.undone or self.undone[-1].is_set()
        if over and len(self.undone) < self._most and self._rng.random() < 0.4:
            fault = for_a_while(self._make(), self._seconds)
            self.undone.append(fault.__enter__())
            self._open.append(fault)
        return super().wait(timeout_s)

    def close(self):
        for fault in self._open:
            fault.__exit__(None, None, None)
        self._open.clear()
        super().close()


def _run(folder, pool=None, trials=TRIALS):
    folder.mkdir(exist_ok=True, parents=True)
    given = {"base": BASE, "sites": ["P3"], "modules": {"LIA": {"f": [8]}}, "limits": {"latency_ratio": 1.3}, "base_seeds": 2}
    with pool or InlinePool("fake_evaluator:serve") as opened:
        return study.run(
            folder,
            SpaceSpec.from_dict({**given, "controls": False}),
            space(),
            setup(folder, MIXED),
            opened,
            trials=trials,
            sampler="random",
            storage=Shelf.at(folder),
        )


def _told(snapshot):
    return [(trial.number, trial.state, trial.architecture, trial.kind, trial.values) for trial in snapshot.trials]


def _require_undisturbed(folder, snapshot, whole):
    assert _told(snapshot) == _told(whole) == _told(load_study(folder))
    assert not [line for line in executions(folder) if line.startswith("again")]
    assert {job.attempt for trial in snapshot.trials for job, _ in trial.results} == {1}
    assert len(Ledger.of(folder).pages()) == len(snapshot.trials)
    assert not Ledger.of(folder).torn()


@pytest.fixture
def whole(tmp_path):
    """What a search finds that nothing disturbs."""
    return _run(tmp_path / "whole")


def test_a_database_that_another_process_has_locked_is_waited_for(tmp_path):
    with open_record(tmp_path) as record:
        tell_next(record, measured(0.3))
        with for_a_while(sqlite_locked(tmp_path / "study.db"), 0.5) as undone:
            assert record.ask(RECIPE).number == 1
            assert undone.is_set()
    assert len(load_study(tmp_path).trials) == 2


def test_a_lock_that_is_never_given_back_ends_the_driver_with_what_to_do(tmp_path, monkeypatch):
    with open_record(tmp_path) as record:
        record.ask(RECIPE)
        monkeypatch.setattr(storage, "PAUSES_S", (0.0,) * 3)
        with sqlite_locked(tmp_path / "study.db"), pytest.raises(NasAttnError, match=r"must take writes.*database is locked.*same command"):
            record.count(0, "attempts", "a")
    with open_record(tmp_path) as record:
        assert record.count(0, "attempts", "a") == 1


@pytest.mark.parametrize("url", [None, "journal://{folder}/study.journal"])
def test_a_disk_that_fills_and_is_freed_loses_nothing(tmp_path, monkeypatch, whole, url):
    monkeypatch.setattr(Shelf, "url", url)
    with small_disk(tmp_path / "disk") as disk:
        folder = disk / "a"
        folder.mkdir()
        (folder / "executions.log").symlink_to(tmp_path / "executions.log")  # the test's own, which does not wait
        pool = Troubled(lambda: full_disk(disk), 0.3, seed=1, most=8)
        snapshot = _run(folder, pool)
        assert len(pool.undone) >= 5
        _require_undisturbed(folder, snapshot, whole)


def test_a_full_disk_leaves_no_half_files_of_ours(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "FULL_PAUSES_S", (0.0,))
    with small_disk(tmp_path / "disk", 2) as disk, full_disk(disk):
        with pytest.raises(OSError, match="No space left"):
            files.write_atomic(disk / "outcome.json", lambda file: file.write_text("x" * 10_000))
        assert [path.name for path in disk.iterdir()] == ["filler"]


def test_torchs_words_for_a_full_disk_are_understood(tmp_path):
    import torch

    with small_disk(tmp_path / "disk", 2) as disk, for_a_while(full_disk(disk), 0.3) as undone:
        files.write_atomic(disk / "weights.pt", lambda file: torch.save({"w": torch.zeros(100_000)}, file))
        assert undone.is_set()
        assert torch.load(disk / "weights.pt", weights_only=True)["w"].shape == (100_000,)


def test_another_error_of_a_file_is_not_waited_for(tmp_path):
    with pytest.raises(RuntimeError, match="no space of ours"):
        files.write_atomic(tmp_path / "a", lambda _: (_ for _ in ()).throw(RuntimeError("no space of ours")))
    with pytest.raises(IsADirectoryError):
        files.write_atomic(tmp_path / "a", lambda file: file.mkdir() or file.write_text("x"))


@pytest.mark.parametrize("how", ["deleted", "exchanged"])
def test_a_database_that_is_taken_away_under_its_driver_is_told_and_rebuilt(tmp_path, whole, how):
    folder = tmp_path / "a"

    class Losing(InlinePool):
        def wait(self, timeout_s):
            if len(executions(folder)) == 6:
                lose(folder)
                if how == "exchanged":
                    sqlite3.connect(folder / "study.db").close()
                    (folder / "study.db").touch()
            return super().wait(timeout_s)

    with pytest.raises(NasAttnError, match=r"study.db is gone or another file; `nas-attn rebuild \S+/a` makes it anew") as caught:
        _run(folder, Losing("fake_evaluator:serve"))
    assert caught.value.exit_code == 1
    if how == "exchanged":
        (folder / "study.db").unlink()
    rebuild(folder)
    snapshot = _run(folder)
    assert _told(snapshot) == _told(whole)
    assert not [line for line in executions(folder) if line.startswith("again")]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
def test_a_server_that_is_ended_and_begun_again_is_waited_for(tmp_path, monkeypatch, whole, own_server, how):
    monkeypatch.setattr(Shelf, "url", own_server.fresh())
    pool = Troubled(lambda: server_down(own_server, how), 0.3, seed=2)
    snapshot = _run(tmp_path / "a", pool)
    assert len(pool.undone) >= 3
    _require_undisturbed(tmp_path / "a", snapshot, whole)


@pytest.mark.slow
def test_a_server_that_hangs_for_a_while_or_is_slow_costs_only_time(tmp_path, monkeypatch, whole, own_server):
    monkeypatch.setattr(Shelf, "url", own_server.fresh())
    pool = Troubled(lambda: server_hangs(own_server), 0.5, seed=3)
    snapshot = _run(tmp_path / "a", pool)
    assert len(pool.undone) >= 3
    _require_undisturbed(tmp_path / "a", snapshot, whole)
    with server_slow(own_server, str(Shelf.url), 0.1):
        longer = _run(tmp_path / "a", trials=TRIALS + 2)
    assert _told(longer)[: len(whole.trials)] == _told(whole)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_server_that_hangs_for_good_ends_the_driver_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "PAUSES_S", (0.0, 0.0))
    monkeypatch.setattr(wire, "OURS", {**wire.OURS, "connect_timeout": 2})
    with server() as running, contextlib.ExitStack() as hanging:
        url = running.fresh()
        with open_record(tmp_path, storage=url) as record:
            tell_next(record, measured(0.3))
            monkeypatch.setattr(wire, "SILENCE_S", 1.0)
            hanging.enter_context(server_hangs(running))
            with pytest.raises(
                NasAttnError, match=r"^The study's storage and folder must take writes, but did not .* same command\.$"
            ) as caught:
                tell_next(record, measured(0.4))
            assert caught.value.exit_code == 1
            with pytest.raises(StudyError, match=r"^The storage \S+ must be reachable, but.* timeout expired.*$"):
                load_study(tmp_path, url)
        hanging.close()
        monkeypatch.undo()
        with open_record(tmp_path, storage=url) as record:
            tell_next(record, measured(0.4))
            assert len(record.trials) == 2
