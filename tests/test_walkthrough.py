"""The walk-through of docs/cluster/README.md, on a cluster of three raylets of this machine: the commands of the page as they stand, but
for addresses, folders, lengths and what keeps the cluster small and in the foreground. What the page shows as their output was printed.
"""

import contextlib
import os
import re
import shlex
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from conftest import TINY_SPACE
from raylets import RAY, STORE_BYTES, _begin, _free_port, can_hide_folders

from nas_attn.record import load_study

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "cluster" / "README.md").read_text()
NAS_ATTN = Path(sys.executable).with_name("nas-attn")
SMALL = ["--device", "cpu", "--sampler", "random"]
PATIENCE_S = 300.0
CHANCE = ("trial 0: base", "Keep the base: it has the highest")
"""What `pick` answers where three trials score 0 is the fastest of them, which is not always the base."""


def lines(heading: str) -> list[str]:
    """The lines of the `sh` blocks below a heading, without comments."""
    body = next(part for part in re.split(r"^## ", PAGE, flags=re.MULTILINE) if part.startswith(heading))
    blocks = re.findall(r"```sh\n(.*?)```", body, flags=re.DOTALL)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]


def shown() -> list[str]:
    """The lines of output on the page (`text` blocks), without those that say that something is left out."""
    blocks = re.findall(r"```text\n(.*?)```", PAGE.partition("\n## ")[2], flags=re.DOTALL)
    return [line.strip() for block in blocks for line in block.splitlines() if line != "..."]


def masked(text: str, study: str = "/studies/first") -> str:
    """A text without its numbers, the names of jobs, colours and white space, in the page's folder: what is left is equal in all runs."""
    text = "".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split()).replace(study, "/studies/first")
    return re.sub(r"\d+", "#", re.sub(r"raysubmit_[A-Za-z0-9]{16}", "raysubmit_#", text))


def test_the_page_has_the_steps_in_their_order() -> None:
    start = lines("Any machines")
    assert [line.split()[0] for line in start] == ["umask", "export", "ray", "ray", "nas-attn"]
    assert "--head" in start[2]
    job = lines("Hand it over")
    assert [line.split()[:3] for line in job[:2]] == [["ray", "job", "submit"], ["ray", "job", "stop"]]
    assert job[0].partition(" -- ")[2] == start[4], "one search, run in two ways"
    assert len(shown()) >= 15


def test_numbers_and_the_names_of_jobs_do_not_matter_and_words_do() -> None:
    assert masked("00:36   0/3 trial 0: 1.000\n of it") == masked("01:02   1/9 trial 2: 1.318 of it") == "#:#/#trial#:#.#ofit"
    assert masked("\x1b[32mJob 'raysubmit_5kvbw8pqPy9SymF6' ended\x1b[39m") == masked("Job 'raysubmit_pT8Xe6ptMvjks63C' ended")
    assert masked("Report:\n/tmp/1/first/rep\nort.html", "/tmp/1/first") == masked("Report: /studies/first/report.html")
    assert masked("trial 0: rejected") != masked("trial 0: told")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not can_hide_folders(), reason="hiding a folder from a process takes root and mount namespaces")
def test_the_walk_through_on_three_raylets(tmp_path: Path, digits: Path) -> None:
    study, space = tmp_path / "first", tmp_path / "tiny.yaml"
    study.mkdir()
    space.write_text(TINY_SPACE)
    with tempfile.TemporaryDirectory(prefix="nas-attn-", dir="/tmp") as home:  # short, for Ray's sockets lie below it
        printed = walk(study, space, digits, Path(home), tmp_path)
    real = masked(printed, str(study))
    excused = () if masked(CHANCE[0]) in real else CHANCE
    assert [line for line in shown() if masked(line) not in real and not line.startswith(excused)] == [], printed
    assert "Rule best, by observations" in printed
    assert states(study) == ["COMPLETE"] * 3
    for folder in study.glob("trials/*/*"):
        assert len(list(folder.glob("*/outcome.json"))) == 1, "no finished training ran twice"
    assert (study / "report.html").is_file()


def walk(study: Path, space: Path, digits: Path, home: Path, logs: Path) -> str:
    """The page, from the token to the pick; all that was printed."""
    printed: list[str] = []
    gcs, board = _free_port(), _free_port()
    stands_for = {
        "10.0.0.10:6379": f"127.0.0.1:{gcs}",
        "6379": str(gcs),
        "http://127.0.0.1:8265": f"http://127.0.0.1:{board}",
        "/data/data.yaml": str(digits),
        "/studies/first": str(study),
        "yolo11": str(space),
        "200": "3",
        "ray": str(RAY),
        "nas-attn": str(NAS_ATTN),
    }

    def words(line: str) -> list[str]:
        return [stands_for.get(word, word) for word in shlex.split(line)]

    make_token, export, head, other, _ = lines("Any machines")
    submit, stop, report, pick = [words(line) for line in lines("Hand it over")]
    environment = {"HOME": str(home), "PATH": f"{RAY.parent}:{os.environ['PATH']}", **dict(w.split("=") for w in export.split()[1:])}
    subprocess.run(["bash", "-c", make_token], env=os.environ | environment, check=True)
    token = home / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert len(token.read_text()) == 64

    def run(command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
        changed = os.environ | environment | variables
        done = subprocess.run(command, env=changed, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        printed.append(done.stdout)
        return done

    foreground = ["--block", "--object-store-memory", str(STORE_BYTES)]
    hide = ["unshare", "-m", "sh", "-c", f"mount -t tmpfs none '{study}' && exec \"$@\"", "sh"]
    with contextlib.ExitStack() as stack:
        first = [*words(head), *foreground, "--temp-dir", str(home / "r"), "--dashboard-port", str(board)]
        first += ["--dashboard-agent-listen-port", str(_free_port())]  # it begins the jobs; another Ray here may have its usual port
        _begin(first, environment, logs / "head.log", stack)
        for number, before in enumerate([[], hide]):  # the third does not see the study's folder, as on machines that share nothing
            _begin([*before, *words(other), *foreground, "--num-cpus", "1"], environment, logs / f"node{number}.log", stack)

        refused = run([*submit[:5], "--", "true"], HOME=str(logs))  # a home without the token
        assert refused.returncode != 0

        end = time.monotonic() + PATIENCE_S
        while (given := run([*submit[:5], "--no-wait", *submit[5:], *SMALL])).returncode != 0:
            assert "No available agent" in given.stderr, given.stdout + given.stderr  # the head has only just begun
            assert time.monotonic() < end, given.stderr
        name = re.search(r"raysubmit_\w+", given.stdout)
        assert name is not None
        end = time.monotonic() + PATIENCE_S
        logs_of = [str(RAY), "job", "logs", *stop[3:5], name[0]]
        while not (study / "base" / "fit.json").is_file() or not states(study):  # until the base is fitted, and the first trial begun
            assert time.monotonic() < end, run(logs_of).stdout
            time.sleep(0.2)
        stopped = run([name[0] if word == "JOB" else word for word in stop])
        assert stopped.returncode == 0, stopped.stdout + stopped.stderr
        assert run(logs_of).returncode == 0
        assert any(state != "COMPLETE" for state in states(study)) or len(states(study)) < 3

        again = run([*submit, *SMALL])  # the same command goes on
        assert again.returncode == 0, again.stdout + again.stderr
        assert "succeeded" in again.stdout
        printed += [(logs / name).read_text() for name in ("head.log", "node0.log")]
    assert run(report).returncode == 0
    chosen = run(pick)
    assert chosen.returncode == 0
    assert chosen.stdout.startswith("trial ")
    return "\n".join(printed)


def states(study: Path) -> list[str]:
    """The states of a study's trials; none before it was begun."""
    return [trial.state for trial in load_study(study).trials] if (study / "study.db").is_file() else []
