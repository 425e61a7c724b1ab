"""`nas-attn retarget` as a user types it: a real small study, measured by torch, gets a sibling that is measured by ONNX Runtime."""

import csv
import hashlib
import json
from pathlib import Path

import pytest
from test_cli import run

from nas_attn.record import load_study


def contents(folder: Path) -> dict[str, str]:
    """Every file but the reader's own of SQLite, by what it holds."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and not file.name.endswith(("-wal", "-shm"))]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--backend", "onnxrt"), "A latency backend is torch or onnxruntime, but got 'onnxrt'. Did you mean 'onnxruntime'?"),
        (("--device", "tpu"), "`--device` must be auto, cpu or cuda, but got 'tpu'"),
        (("--pool", "rai"), "`--pool` must be ray or inline"),
        (("--workers", "0"), "`workers >= 1` must hold"),
    ],
)
def test_a_wrong_name_is_one_line_and_exit_code_two(options: tuple[str, ...], words: str, tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "setup.json").write_text(json.dumps(SETUP))
    failed = run("retarget", tmp_path / "study", "--to", tmp_path / "new", *options)
    assert (failed.returncode, len(failed.stderr.strip().splitlines())) == (2, 1)
    assert words in failed.stderr
    assert not (tmp_path / "new").exists()


SETUP = {
    "folder": "study",
    "base": "yolo11n.yaml",
    "graph": {},
    "scale": "n",
    "weights": None,
    "weights_sha256": None,
    "names": ["a"],
    "train_list": "lists/train.txt",
    "val_list": "lists/search_val.txt",
    "score_on": "search_val",
    "data": "d",
    "fit": {},
    "latency": {"backend": "torch"},
    "device": "cpu",
    "seed": 0,
}


@pytest.mark.slow
def test_a_study_measured_by_torch_is_measured_by_onnx_runtime_and_goes_on(tiny_study: Path, digits: Path, tmp_path: Path) -> None:
    before, new = contents(tiny_study), tmp_path / "new"
    command = ("retarget", tiny_study, "--to", new, "--backend", "onnxruntime", "--pool", "inline")
    made = run(*command)
    assert made.returncode == 0, made.stderr
    assert "3 of 3 trials" in made.stdout
    assert contents(tiny_study) == before
    theirs, ours = load_study(tiny_study), load_study(new)
    assert [trial.results for trial in ours.trials] == [trial.results for trial in theirs.trials]
    assert ours.fit == theirs.fit
    for old, now in zip(theirs.trials, ours.trials, strict=True):
        assert "backend" not in old.cost.latency.environment
        assert now.cost.latency.environment["backend"].startswith("onnxruntime")
        assert now.cost.latency.base_ms != old.cost.latency.base_ms
        assert (now.cost.params_m, now.cost.gmacs) == (old.cost.params_m, old.cost.gmacs)
        assert now.values["map50_95"] == old.values["map50_95"]
        assert now.values["latency_ratio"] == now.cost.latency.ratio
    again = run(*command)
    assert again.returncode == 0, again.stderr
    assert load_study(new) == ours
    refused = run(*command[:-4], "--backend", "torch", "--pool", "inline")
    assert refused.returncode == 2
    assert "for another backend" in refused.stderr
    assert run("report", new).returncode == 0
    assert "Derived from study" in (new / "report.html").read_text()
    assert len(list(csv.DictReader((new / "trials.csv").read_text().splitlines()))) == 3
    assert run("pick", new, "--rule", "best").returncode == 0
    exported = run("export", new, "--rule", "best", "--to", tmp_path / "export")
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "export" / "weights.pt").is_file()
    files = {file: file.stat().st_mtime_ns for file in new.glob("trials/*/*/*/outcome.json")}
    onward = run("search", new / "space.yaml", "--data", digits, "--trials", 4, "--out", new, "--pool", "inline", "--device", "cpu")
    assert onward.returncode == 0, onward.stderr
    assert len([trial for trial in load_study(new).trials if trial.kind == "measured"]) == 4
    assert load_study(new).trials[3].cost.latency.environment == ours.trials[0].cost.latency.environment
    assert all(file.stat().st_mtime_ns == written for file, written in files.items())
    assert contents(tiny_study) == before
    verified = run("verify", new, "--data", digits, "--trial", 1, "--epochs", 1, "--pool", "inline", "--dry-run")
    assert verified.returncode == 0, verified.stderr
