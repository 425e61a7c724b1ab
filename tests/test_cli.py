"""The commands as a user types them: what they print, how they fail, with which exit code."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import TINY_SPACE

from nas_attn.record import load_study
from nas_attn.records import MODULES

COMMAND = str(Path(sys.executable).with_name("nas-attn"))


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False, **options)


def test_sites_and_modules_speak_json() -> None:
    sites = json.loads(run("sites", "yolov8n.yaml", "--json").stdout)
    assert {"layer": 4, "names": ["P3"], "module": "C2f", "channels": 64, "stride": 8} in sites
    modules = json.loads(run("modules", "--json").stdout)
    assert [m["name"] for m in modules] == list(MODULES)
    assert all({"name", "hyperparameters", "paper", "onnx"} <= m.keys() and len(m["costs"]) == 3 for m in modules)


def test_check_finds_what_builds_silently_wrong(tmp_path: Path) -> None:
    good = tmp_path / "yolov8n-good.yaml"
    good.write_text("nc: 2\nscales: {n: [0.33, 0.25, 1024]}\nbackbone:\n- [-1, 1, Conv, [64, 3, 2]]\nhead:\n- [[0], 1, Detect, [nc]]\n")
    bad = tmp_path / "yolov8n-bad.yaml"
    bad.write_text(good.read_text().replace("head:", "- [-1, 1, LSKA, [64]]\nhead:"))
    assert run("check", good).returncode == 0
    found = run("check", bad)
    assert found.returncode == 1
    assert "dead-attention" in found.stdout
    assert "unregistered" in found.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("search", "toyy", "--data", "x.yaml"), "Did you mean 'toy'"),
        (("search", "toy", "--data", "none.yaml"), "none.yaml is no file"),
        (("sites", "yolo99.yaml"), "must be a YAML file or a model that Ultralytics ships"),
        (("report", "nowhere"), "nowhere"),
        (("pick", "nowhere"), "nowhere"),
        (("train", ".", "--data", "x.yaml"), "exactly one YAML"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_two(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    failed = run(*arguments, cwd=tmp_path)
    assert failed.returncode == 2
    assert words in failed.stderr
    assert failed.stderr.startswith("error: ")
    assert "Traceback" not in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    failed = run("--debug", "sites", "yolo99.yaml", cwd=tmp_path)
    assert failed.returncode == 2
    assert "Traceback" in failed.stderr


WRONG_SPACE = """
import sys
from nas_attn.cli import main
sys.argv = ["nas-attn", "search", "toyy", "--data", "data.yaml"]
try:
    main()
except SystemExit as end:
    assert end.code == 2
"""


@pytest.mark.parametrize(
    ("code", "slow"),
    [("import sys, nas_attn.evaluate, nas_attn.study, nas_attn.plan", {"timm", "sklearn"}), (WRONG_SPACE, {"torch", "ultralytics"})],
    ids=["a worker and a driver", "a space that does not exist"],
)
def test_what_takes_seconds_to_import_waits_until_it_is_needed(code: str, slow: set[str], tmp_path: Path) -> None:
    code = f"{code}\nprint(sorted(set(sys.modules) & {slow!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["[]"]), done.stdout + done.stderr


def test_bad_input_leaves_no_half_done_study(tmp_path: Path, digits: Path) -> None:
    (tmp_path / "bad.yaml").write_text(TINY_SPACE.replace("neck_P4", "neck_P9"))
    failed = run("search", "bad.yaml", "--data", digits, "--out", "study", cwd=tmp_path)
    assert failed.returncode == 2
    assert "neck_P9" in failed.stderr
    assert not (tmp_path / "study").exists()


@pytest.mark.slow
def test_a_finished_study_reports_picks_and_exports(tiny_study: Path, tmp_path: Path) -> None:
    for name in ("report.html", "front.png", "front.csv", "trials.csv", "space.yaml", "study.db"):
        assert (tiny_study / name).stat().st_size > 0
    trials = pd.read_csv(tiny_study / "trials.csv")
    assert list(trials["number"]) == [0, 1, 2]
    assert set(trials["state"]) == {"COMPLETE"}
    assert trials.loc[0, "architecture"] == '{"base":"yolo11n.yaml","placements":[]}'
    best = run("pick", tiny_study, "--rule", "best")
    assert best.returncode == 0
    assert re.match(r"trial \d+: ", best.stdout)
    exported = run("export", tiny_study, "--trial", 1, "--to", tmp_path / "winner")
    assert exported.returncode == 0, exported.stderr
    assert "weights.pt" in exported.stdout
    wrong = run("export", tiny_study, "--trial", 99, "--to", tmp_path / "other")
    assert (wrong.returncode, "must be one of 0..2" in wrong.stderr) == (2, True)


@pytest.mark.slow
def test_the_finished_search_run_again_trains_nothing(tiny_study: Path, digits: Path) -> None:
    before = {f: f.stat().st_mtime_ns for f in tiny_study.glob("trials/*/*/*/outcome.json")}
    options = ("--trials", 3, "--out", tiny_study, "--pool", "inline", "--device", "cpu")
    again = run("search", tiny_study.parent / "tiny.yaml", "--data", digits, *options)
    assert again.returncode == 0, again.stderr
    assert {f: f.stat().st_mtime_ns for f in tiny_study.glob("trials/*/*/*/outcome.json")} == before


@pytest.mark.slow
def test_changed_settings_are_refused_with_both_values(tiny_study: Path, digits: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY_SPACE.replace("base_seeds: 2", "base_seeds: 3"))
    changed = run("search", tmp_path / "tiny.yaml", "--data", digits, "--out", tiny_study, "--pool", "inline", "--device", "cpu")
    assert changed.returncode == 2
    assert "base_seeds" in changed.stderr
    assert (tiny_study / "space.yaml").read_text().count("base_seeds: 2") == 1


@pytest.mark.slow
def test_a_dry_run_says_what_it_would_cost(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY_SPACE)
    dry = run("search", "tiny.yaml", "--data", digits, "--trials", 4, "--repeats", 3, "--dry-run", "--device", "cpu", cwd=tmp_path)
    assert dry.returncode == 0, dry.stderr
    assert "architectures in the space:        19" in dry.stdout
    assert "one trial:" in dry.stdout
    assert "4 trials, 11 trainings:" in dry.stdout, "three candidates, three repeats, two seeds of the base, two controls, the fit"
    assert not (tmp_path / "study").exists()


@pytest.mark.slow
def test_control_c_ends_with_130_and_the_same_command_goes_on(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY_SPACE)
    arguments = ["search", "tiny.yaml", "--data", str(digits), "--trials", "3", "--out", "study", "--pool", "ray", "--device", "cpu"]
    with subprocess.Popen([COMMAND, *arguments], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 240
        while not list(tmp_path.glob("study/trials/*/*/*/outcome.json")) and time.monotonic() < deadline:
            time.sleep(0.2)
        os.kill(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert "stopped: " in stderr
    finished = {f: f.stat().st_mtime_ns for f in tmp_path.glob("study/trials/*/*/*/outcome.json")}
    again = run(*arguments, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    trials = load_study(tmp_path / "study").trials
    assert len(trials) == 3
    assert all(t.state == "COMPLETE" for t in trials)
    after = {f: f.stat().st_mtime_ns for f in tmp_path.glob("study/trials/*/*/*/outcome.json")}
    assert finished
    assert {f: after.get(f) for f in finished} == finished
    assert len({f.parents[1] for f in after}) == len(after), "a finished job was trained again"
