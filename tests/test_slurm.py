"""The Slurm script of docs/cluster, run by bash on a Slurm that is faked: job steps are processes of this machine."""

import os
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "docs" / "cluster" / "slurm.sh"
PATIENCE_S = 30.0
FAKES = {
    # Runs its command as srun does: in the background of the script, where SIGTERM ends it.
    "srun": 'while [[ $1 == --* ]]; do shift; done\nexec "$@"\n',
    "scontrol": '[ "$1" = show ] && { printf "n1\\nn2\\nn3\\n"; exit; }\necho "scontrol $*" >> "$LOG"\n',
    # Opens its folder to all, as Ray does; answers for its health once its head has begun.
    "ray": '[ "$1" = start ] || exec grep -q "^ray start.* --head" "$LOG"\ntrap "echo ray ended >> $LOG; exit 0" TERM\n'
    'words="$*"\nwhile [ "$1" != --temp-dir ]; do shift; done\nmkdir -p "$2"\nchmod 777 "$2"\n'
    'echo "ray $words" >> "$LOG"\nwhile true; do sleep 0.05; done\n',
    "nas-attn": 'echo "nas-attn $*" >> "$LOG"\ntrap "echo search told >> $LOG; sleep 0.3; echo search ended >> $LOG; exit 130" TERM\n'
    'until [ "$(grep -c "^ray start" "$LOG")" = 2 ]; do sleep 0.05; done\n'
    '[ "$SEARCH" = long ] || exit "$SEARCH"\nwhile true; do sleep 0.05; done\n',
}


def begin(folder: Path, search: str) -> subprocess.Popen[bytes]:
    """The script as a batch job of three nodes."""
    programs = folder / "bin"
    programs.mkdir()
    for name, text in FAKES.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}")
        (programs / name).chmod(0o755)
    (folder / "log").touch()
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_CPUS_PER_TASK": "4", "SLURM_JOB_NUM_NODES": "3"}
    ours = {"PATH": f"{programs}:{os.environ['PATH']}", "LOG": str(folder / "log"), "SEARCH": search, "DATA": "/data/data.yaml"}
    places = {"STUDY": str(folder / "study"), "LOCAL": str(folder / "local")}
    (folder / "local").mkdir(exist_ok=True)
    return subprocess.Popen(["bash", str(SCRIPT)], env=os.environ | slurm | ours | places, stderr=subprocess.PIPE)


def log(folder: Path) -> list[str]:
    """What the fakes have written."""
    return (folder / "log").read_text().splitlines()


@pytest.mark.parametrize("code", [0, 2])
def test_a_search_that_ends_ends_the_job_with_its_code(tmp_path: Path, code: int) -> None:
    with begin(tmp_path, str(code)) as script:
        assert script.wait(PATIENCE_S) == code
    lines = log(tmp_path)
    starts = [line for line in lines if line.startswith("ray start")]
    assert sum("--head --port 20007" in line for line in starts) == 1
    assert sum("--address n1:20007" in line for line in starts) == 1  # srun would run it on each of the other two
    assert lines.count("ray ended") == 2, "no step outlives the search"
    assert "scontrol requeue 7" not in lines
    (search,) = [line for line in lines if line.startswith("nas-attn")]
    assert "--max-workers 3 --cpus-per-worker 4" in search
    token = tmp_path / "study" / "ray-token"
    assert token.stat().st_mode & 0o077 == 0
    assert len(token.read_text()) == 64


def test_what_ray_opens_to_all_lies_in_a_folder_of_ours_alone(tmp_path: Path) -> None:
    with begin(tmp_path, "0") as script:
        assert script.wait(PATIENCE_S) == 0
    private = tmp_path / "local" / "nas-attn-7"
    starts = [line for line in log(tmp_path) if line.startswith("ray start")]
    assert [f"--temp-dir {private}/ray" in line for line in starts] == [True, True], "every node: Ray gives it to no other"
    assert stat.S_IMODE((private / "ray").stat().st_mode) == 0o777
    assert stat.S_IMODE(private.stat().st_mode) == 0o700


def test_without_a_place_of_its_own_ray_begins_in_tmp_where_paths_are_short() -> None:
    text = SCRIPT.read_text()
    assert "private=${LOCAL:-/tmp}/nas-attn-$SLURM_JOB_ID\n" in text
    socket = "/tmp/nas-attn-4294967295/ray/session_2026-01-31_12-00-00_123456_4194304/sockets/plasma_store"
    assert len(socket) <= 107


@pytest.mark.parametrize("taken", ["a link", "a folder of another"])
def test_a_folder_that_is_not_ours_is_not_taken(tmp_path: Path, taken: str) -> None:
    local, elsewhere = tmp_path / "local", tmp_path / "elsewhere"
    local.mkdir()
    elsewhere.mkdir()
    if taken == "a link":
        (local / "nas-attn-7").symlink_to(elsewhere)
    elif os.geteuid() == 0:
        (local / "nas-attn-7").mkdir()
        os.chown(local / "nas-attn-7", 12345, 12345)
    else:
        pytest.skip("giving a folder away takes root")
    with begin(tmp_path, "0") as script:
        _, told = script.communicate(timeout=PATIENCE_S)
    assert script.returncode != 0
    assert b"nas-attn-7 must be a folder of yours; set LOCAL to another place." in told
    assert not [line for line in log(tmp_path) if line.startswith(("ray start", "nas-attn"))]
    assert list(elsewhere.iterdir()) == []


def test_the_signal_before_the_end_reaches_the_search_which_is_queued_again(tmp_path: Path) -> None:
    with begin(tmp_path, "long") as script:
        end = time.monotonic() + PATIENCE_S
        while not any(line.startswith("nas-attn") for line in log(tmp_path)):
            assert time.monotonic() < end
            time.sleep(0.05)
        time.sleep(0.3)
        script.send_signal(signal.SIGTERM)  # `--signal=B:TERM@120` tells the batch script alone
        assert script.wait(PATIENCE_S) == 130
    lines = log(tmp_path)
    order = [lines.index(line) for line in ("search told", "search ended", "scontrol requeue 7", "ray ended")]
    assert order == sorted(order), "the search ends before the cluster under it"
