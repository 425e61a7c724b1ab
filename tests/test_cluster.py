import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from nas_attn import cluster
from nas_attn.cluster import Cluster, no_interrupt, sweep
from nas_attn.errors import InputError, PoolError


@pytest.fixture
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home without a token; the home."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("no_token")
def test_joining_without_a_token_is_refused_before_any_connection() -> None:
    with pytest.raises(InputError, match=r"needs the cluster's token.*get-auth-token"):
        Cluster().join("127.0.0.1:1")


def test_ray_client_addresses_are_refused() -> None:
    with pytest.raises(PoolError, match="Ray Client"):
        Cluster().join("ray://127.0.0.1:10001")


def test_tokens_are_found_where_ray_finds_them(no_token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not cluster._has_token()
    (no_token / ".ray").mkdir()
    at_home = no_token / ".ray" / "auth_token"
    at_home.write_text("\n")
    assert not cluster._has_token()
    at_home.write_text("secret")
    assert cluster._has_token()
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(no_token / "absent"))
    assert not cluster._has_token()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert cluster._has_token()


def test_the_folder_is_private_and_short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    folder = cluster._private_folder()
    try:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert len(str(folder)) <= 40
    finally:
        folder.rmdir()


def test_no_folder_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PoolError, match="TMPDIR"):
        cluster._private_folder()


def test_ctrl_c_waits_for_the_clean_up() -> None:
    before = signal.getsignal(signal.SIGINT)
    with no_interrupt():
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_family_is_found_by_its_folder_and_ended(tmp_path: Path) -> None:
    """A process that writes into the folder, its child that does not, and a stranger with the folder in its environment only."""
    inside = tmp_path / "cluster"
    inside.mkdir()
    sleep = "import time; time.sleep(60)"
    parent_code = f"import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', '{sleep}'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL); print(p.pid, flush=True); time.sleep(60)"  # noqa: E501
    log = inside / "log"
    with (
        log.open("w") as file,
        subprocess.Popen([sys.executable, "-c", parent_code], stdout=file, stderr=file) as parent,
        subprocess.Popen([sys.executable, "-c", sleep], env=os.environ | {"PLACE": f"{inside}/"}) as stranger,
    ):
        while not log.read_text().endswith("\n"):
            assert parent.poll() is None
        child = int(log.read_text())
        family = cluster._family(inside)
        assert set(family) == {parent.pid, child}
        cluster._end_processes({parent.pid: "another birth"}, patience_s=0)
        assert parent.poll() is None  # a number that was given anew is left alone
        cluster._end_processes(family, patience_s=0)
        assert not cluster._process(child)[2]
        assert parent.wait() == -signal.SIGKILL
        assert stranger.poll() is None
        stranger.kill()


def test_folders_of_killed_drivers_are_swept_and_others_stay(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    names = {
        f"nas-attn-{gone.pid}-abc": False,
        f"nas-attn-{os.getpid()}-abc": True,
        "nas-attn-abcdefgh": True,
        f"other-{gone.pid}-abc": True,
    }
    for name in names:
        (tmp_path / name / "session").mkdir(parents=True)
    sweep(tmp_path)
    assert {name: (tmp_path / name).exists() for name in names} == names


def test_a_clean_up_that_ends_no_cluster_leaves_sigterm_as_it_was():
    before = signal.signal(signal.SIGTERM, cluster._interrupt)
    try:
        with no_interrupt():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is cluster._interrupt
        with no_interrupt():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as the end of a cluster gives it back
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
