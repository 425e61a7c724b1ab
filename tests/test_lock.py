"""The lock of a folder: who is told what, whose place may be taken, and that one who lost it writes no more."""

import json
import os
import subprocess
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from study_targets import RECIPE, open_record

from nas_attn import files, lock, storage
from nas_attn.errors import NasAttnError, StudyError
from nas_attn.lock import FolderLock, Holder

ELSEWHERE = Holder(host="node-3", boot="another", pid=4711, birth="1", started=0.0)


@pytest.fixture(autouse=True)
def _no_waits_for_the_disk(monkeypatch):
    monkeypatch.setattr(storage, "PRAGMAS", ("journal_mode=WAL", "synchronous=OFF"))
    monkeypatch.setattr(files, "_fsync", lambda _: None)


@pytest.fixture
def shared(monkeypatch):
    """As on a file system of many machines."""
    monkeypatch.setattr(lock, "file_system", lambda _: "nfs4")


def _leave(folder, holder, age_s):
    """What a driver on another machine leaves where the kernel's lock is not shared."""
    file = folder / lock.NAME
    file.write_text(json.dumps(asdict(holder)))
    os.utime(file, (time.time() - age_s,) * 2)


def test_a_lock_says_who_holds_it_and_is_empty_when_it_was_given_back(tmp_path):
    held = FolderLock.take(tmp_path)
    holder = Holder.read((tmp_path / lock.NAME).read_text())
    assert holder is not None
    assert (holder.pid, holder.boot) == (os.getpid(), Holder.here().boot)
    assert holder.near
    assert not holder.gone()
    assert replace(holder, birth="1").gone()  # the same number, another process
    held.close()
    assert (tmp_path / lock.NAME).read_text() == ""
    assert [path.name for path in tmp_path.iterdir()] == [lock.NAME]


@pytest.mark.usefixtures("shared")
def test_a_driver_elsewhere_that_lives_is_not_disturbed_though_the_kernel_gives_its_lock(tmp_path):
    _leave(tmp_path, ELSEWHERE, 4)
    with pytest.raises(StudyError, match=r"process 4711 on host node-3 drives .*, last sign of life \d s ago; wait for it or stop it"):
        FolderLock.take(tmp_path)
    assert Holder.read((tmp_path / lock.NAME).read_text()) == ELSEWHERE
    assert [path.name for path in tmp_path.iterdir()] == [lock.NAME]
    with pytest.raises(StudyError, match="after 300 s of silence its place is free"):
        open_record(tmp_path)


@pytest.mark.usefixtures("shared")
def test_the_place_of_one_elsewhere_that_fell_silent_is_taken_with_a_warning(tmp_path):
    _leave(tmp_path, ELSEWHERE, lock.STALE_S + 60)
    with open_record(tmp_path) as record:
        assert record.warning == "took over from process 4711 on host node-3, whose last sign of life is 6 min old"
    with open_record(tmp_path) as record:
        assert record.warning is None


def test_a_driver_that_died_here_leaves_its_place_at_once(tmp_path):
    _leave(tmp_path, replace(Holder.here(), birth="1"), 1)
    held = FolderLock.take(tmp_path)
    assert held.warning is None
    held.close()


@pytest.mark.parametrize("kind", ["ext4", "overlay", "nfs4", "cifs", "fuse.sshfs", "9p", "virtiofs", "ceph", "lustre", "gpfs", ""])
def test_after_a_reboot_nobody_waits_where_only_this_machine_can_hold_the_lock(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(lock, "file_system", lambda _: kind)
    _leave(tmp_path, replace(Holder.here(), boot="before the crash", pid=os.getpid()), 1)
    if kind in ("ext4", "overlay"):
        held = FolderLock.take(tmp_path)
        assert held.warning is None
        held.close()
    else:  # another machine, or another container, may bear the same name
        with pytest.raises(StudyError, match="after 300 s of silence its place is free"):
            FolderLock.take(tmp_path)


def test_the_file_system_is_that_of_the_nearest_mount(tmp_path, monkeypatch):
    text = (
        "1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:3 / /net/a\\040b rw,relatime shared:1 - nfs4 host:/x rw\n"
        "3 1 8:2 / /net/a\\040b/disk rw - xfs /dev/b rw\n4 3 0:9 / /net/a\\040b/disk rw - cifs //host/x rw\n"
    )
    monkeypatch.setattr(lock, "_read", lambda _: text)
    names = ["/x", "/net/a b", "/net/a b/c/d", "/net/a", "/net/a bc", "/net/a b/disk/e"]
    assert [lock.file_system(Path(name)) for name in names] == ["ext4", "nfs4", "nfs4", "ext4", "ext4", "cifs"]
    monkeypatch.setattr(lock, "_read", lambda _: "")
    assert lock.file_system(tmp_path) == ""
    monkeypatch.undo()
    assert lock.file_system(tmp_path) == subprocess.check_output(["stat", "-f", "-c", "%T", tmp_path], text=True).strip().replace(
        "ext2/ext3", "ext4"
    ).replace("overlayfs", "overlay")


def test_the_lock_of_a_file_lies_beside_it(tmp_path):
    file = tmp_path / "study.journal"
    held = FolderLock.take(file)
    assert [path.name for path in tmp_path.iterdir()] == ["study.journal.driver.lock"]
    with pytest.raises(StudyError, match=r"drives \S+/study.journal, last sign of life"):
        FolderLock.take(file)
    FolderLock.take(tmp_path).close()
    held.close()


@pytest.mark.parametrize("text", ["", "4711", "[]", '{"host": "node-3"}', "{"])
def test_a_lock_without_a_readable_name_is_as_free_as_the_kernel_says(tmp_path, text):
    (tmp_path / lock.NAME).write_text(text)
    FolderLock.take(tmp_path).close()


def test_the_sign_of_life_is_renewed_while_the_driver_waits(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_S", 0.02)
    held = FolderLock.take(tmp_path)
    file = tmp_path / lock.NAME
    os.utime(file, (0, 0))
    end = time.monotonic() + 30
    while file.stat().st_mtime == 0 and time.monotonic() < end:
        time.sleep(0.01)
    assert time.time() - file.stat().st_mtime < 60
    held.close()
    os.utime(file, (0, 0))
    time.sleep(0.2)
    assert file.stat().st_mtime == 0


def test_a_driver_whose_place_was_taken_writes_no_more_and_leaves_the_other_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_S", 0.0)
    monkeypatch.setattr(FolderLock, "_live", lambda _: None)
    with open_record(tmp_path) as record:
        record.ask(RECIPE)
        _leave(tmp_path, ELSEWHERE, 0)  # it was suspended, and a driver elsewhere took over
        with pytest.raises(NasAttnError, match=r"process 4711 on host node-3 has taken .* over"):
            record.ask(RECIPE)
        with pytest.raises(NasAttnError, match="has taken"):
            record.save_fit({})
        assert len(record.snapshot().trials) == 1
    assert Holder.read((tmp_path / lock.NAME).read_text()) == ELSEWHERE


def test_a_driver_whose_machine_was_suspended_looks_before_it_writes(tmp_path, monkeypatch):
    """Then `time.monotonic` stood still."""
    monkeypatch.setattr(FolderLock, "_live", lambda _: None)
    held = FolderLock.take(tmp_path)
    _leave(tmp_path, ELSEWHERE, 0)
    held.require()  # a moment after the last look
    true = time.clock_gettime
    monkeypatch.setattr(time, "clock_gettime", lambda clock: true(clock) + 3600 * (clock == time.CLOCK_BOOTTIME))
    with pytest.raises(NasAttnError, match="process 4711 on host node-3 has taken"):
        held.require()
    held.close()


def test_a_thread_that_beats_for_a_lost_place_does_not_renew_the_others_sign(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_S", 0.02)
    held = FolderLock.take(tmp_path)
    _leave(tmp_path, ELSEWHERE, 1000)
    before = (tmp_path / lock.NAME).stat().st_mtime
    time.sleep(0.3)
    assert (tmp_path / lock.NAME).stat().st_mtime == before
    held.close()
