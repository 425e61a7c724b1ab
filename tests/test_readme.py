"""The README's commands run as they stand, in their order, on what they name; only lengths are cut.

The walk-through is on real photographs of blood cells and is skipped where they do not lie beside the repository.
"""

import fnmatch
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from nas_attn.record import load_study

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
OWN_DATA = (ROOT / "docs" / "own-data.md").read_text()
BLOOD = ROOT.parent / "shared" / "data" / "bccd320"
YOLOBENCH = ROOT.parent / "shared" / "data" / "yolobench" / "yolobench.csv"
SHORTER = {
    "base_fit: {epochs: 24}": "base_fit: {epochs: 3}",
    "epochs: 4, imgsz": "epochs: 1, imgsz",
    "blocks: 20, calibrations: 10": "blocks: 6, calibrations: 3",
}
STOCK = """
import sys
import nas_attn
from ultralytics import YOLO
YOLO(sys.argv[1]).train(data=sys.argv[2], epochs=1, imgsz=96, plots=False, project=sys.argv[3])
"""


def commands(section: str) -> list[list[str]]:
    """The `nas-attn` lines of the `sh` blocks below a heading of the README, as arguments."""
    parts = re.split(r"^## ", README, flags=re.MULTILINE)
    return typed(next(part for part in parts if part.startswith(section)))


def typed(body: str) -> list[list[str]]:
    """The `nas-attn` lines of a text's `sh` blocks, as arguments."""
    blocks = re.findall(r"```sh\n(.*?)```", body, flags=re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("nas-attn ")]


def run(arguments: list[str], folder: Path) -> str:
    program = str(Path(sys.executable).with_name("nas-attn"))
    done = subprocess.run([program, *arguments[1:]], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(arguments)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def test_the_first_screen_shows_the_two_commands_and_the_picture() -> None:
    first = "\n".join(README.splitlines()[:45])
    assert "make demo" in first
    assert "make test" in first
    assert "![" in first


def test_every_picture_and_file_that_it_names_exists() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_table_of_the_results_is_there_and_described() -> None:
    rows = [line.split("|")[1] for line in (ROOT / "results" / "README.md").read_text().splitlines() if line.startswith("| `")]
    kept = {file.name for file in (ROOT / "results").iterdir()} - {"README.md"}
    described: set[str] = set()
    for row in rows:
        for name in re.findall(r"`([^`]+)`", row):
            found = fnmatch.filter(kept, name.replace("…", "*"))
            assert found, f"{name} of results/README.md is not in results/"
            described |= set(found)
    assert kept <= described, kept - described


def test_every_picture_and_file_that_the_walk_through_names_exists() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", OWN_DATA):
        assert (ROOT / "docs" / target).exists(), target
    assert "@" not in re.sub(r"[\w)]@\d", "", OWN_DATA), "a place that was to be filled"


def test_the_walk_through_has_the_commands_of_the_readme() -> None:
    assert typed(OWN_DATA) == commands("A real search")


def test_version_and_changelog_agree() -> None:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert version is not None
    assert f"## [{version[1]}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_commands_that_need_no_training_run() -> None:
    for arguments in commands("Look around"):
        assert run(arguments, ROOT)


@pytest.mark.skipif(not YOLOBENCH.is_file(), reason="the YOLOBench table is not beside the repository")
def test_samplers_are_replayed_against_a_table(tmp_path: Path) -> None:
    shutil.copy(YOLOBENCH, tmp_path)
    (simulate,) = [arguments for arguments in commands("How sure is it") if arguments[1] == "simulate"]
    cut = [{"60": "12", "20": "1"}.get(word, word) for word in simulate]
    found = json.loads(run([*cut, "--json"], tmp_path))["samplers"]
    assert set(found) == {"model", "tpe", "nsga2", "random"}
    for entry in found.values():
        assert entry["trials"][-1] == 12
        assert 0.5 < entry["hypervolume_share"]["median"][-1] <= 1


@pytest.mark.slow
def test_the_module_of_ones_own_holds_the_contract(tmp_path: Path) -> None:
    (source,) = re.findall(r"```python\n(# my_pkg/my_file\.py\n.*?)```", README, flags=re.DOTALL)
    (tmp_path / "my_pkg").mkdir()
    (tmp_path / "my_pkg" / "my_file.py").write_text(source)
    (check,) = commands("The modules")
    assert "MyAttention: the contract holds." in run(check, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_demo_does_the_whole_job(tmp_path: Path) -> None:
    output = run(["nas-attn", "demo", "--trials", "8"], tmp_path)
    assert "The export loads" in output
    assert re.search(r"positive control harm: .*\(separated\)", output)
    # Sigma is that of two seeds, which another processor's rounding moves: 0.02 in the README's run, 0.16 in another with the same gain.
    gain, sigmas, verdict = re.search(r"positive control help: (\S+) mAP50-95, (\S+) sigma \((.*)\)", output).groups()
    assert float(gain) > 0.02
    assert verdict == ("separated" if float(sigmas) > 2 else "NOT separated") or float(sigmas) == 2.0
    trials = pd.read_csv(tmp_path / "demo/study/trials.csv")
    measured = trials[trials["kind"] == "measured"]
    modules = {p["module"] for text in measured["architecture"] for p in json.loads(text)["placements"]}
    assert len(measured) - 1 >= 6
    assert len(modules) >= 3
    assert measured.set_index("number").loc[0, "map50_95"] > 0.15
    assert (measured["gate_movement"].dropna() > 1e-3).all()
    assert not list(tmp_path.glob("demo/data/**/*.cache"))


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.skipif(not BLOOD.is_dir(), reason="the blood-cell data set is not beside the repository")
def test_the_walk_through_on_real_photographs(tmp_path: Path) -> None:
    shutil.copytree(BLOOD, tmp_path / "bccd320")
    for kind in ("images", "labels"):  # a third of them, or it takes six minutes
        for split in ("train", "val"):
            for number, file in enumerate(sorted((tmp_path / "bccd320" / kind / split).iterdir())):
                if number % 3:
                    file.unlink()
    space = (ROOT / "search_spaces" / "yolo11-cpu.yaml").read_text()
    for long, short in SHORTER.items():
        assert long in space
        space = space.replace(long, short)
    (tmp_path / "shorter.yaml").write_text(space)
    steps = typed(OWN_DATA)
    assert [s[1] for s in steps] == ["search", "search", "report", "pick", "export", "train"]
    for step in steps:
        cut = [{"yolo11-cpu": "shorter.yaml", "24": "4", "8": "1"}.get(word, word) for word in step]
        before = {f: f.stat().st_mtime_ns for f in (tmp_path / "bccd320").rglob("*")}
        output = run(cut, tmp_path)
        if step[1] == "train":
            assert "Trained:" in output
        else:
            assert {f: f.stat().st_mtime_ns for f in (tmp_path / "bccd320").rglob("*")} == before
    trials = load_study(tmp_path / "blood").trials
    assert [t.state for t in trials].count("COMPLETE") == 4
    assert not [t for t in trials if t.state == "RUNNING"]
    assert trials[0].values is not None
    assert trials[0].cost is not None
    yaml_file = next((tmp_path / "winner").glob("*.yaml"))
    data = tmp_path / "bccd320/data.yaml"
    stock = [sys.executable, "-c", STOCK, str(yaml_file), str(data), str(tmp_path / "stock")]
    done = subprocess.run(stock, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert list((tmp_path / "stock").rglob("best.pt"))
