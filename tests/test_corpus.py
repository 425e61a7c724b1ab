"""Every malformed input of `tests/corpus` on the command line: one line that names what is wrong, exit code 2, nothing left behind."""

import base64
import contextlib
import io
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

CORPUS = Path(__file__).parent / "corpus"
KINDS = ("spaces", "models", "data", "labels", "images", "weights", "tables", "commands")
GOOD = {
    "space.yaml": """base: tiny.yaml
sites: [0]
max_placements: 1
modules:
  LSKA: {k_size: [7]}
limits: {latency_ratio: 2.0}
objectives: {map50_95: maximize, latency_ratio: minimize}
base_fit: {epochs: 1, lr0: 0.002}
proxy: {epochs: 3, imgsz: 32, batch: 2, rungs: [1, 3]}
latency: {blocks: 2, calibrations: 2, retries: 0}
search_val: 0.5
base_seeds: 1
seed: 0
""",
    "tiny.yaml": """nc: 2
scales: {n: [0.5, 0.25, 1024]}
backbone:
- [-1, 1, Conv, [64, 3, 2]]
head:
- [[0], 1, Detect, [nc]]
""",
    "data.yaml": "path: .\ntrain: images/train\nval: images/val\nnc: 2\nnames:\n  0: cat\n  1: dog\n",
    "labels/train/a.txt": "0 0.5 0.5 0.25 0.5\n",
    "labels/train/b.txt": "1 0.5 0.5 0.25 0.5\n",
    "labels/val/c.txt": "1 0.5 0.5 0.25 0.5\n",
    "table.csv": "depth,family,map,latency\n1,a,30.5,2.0\n2,a,33.0,3.5\n1,b,31.25,2.5\n2,b,35,4\n",
}
IMAGES = ("images/train/a.png", "images/train/b.png", "images/val/c.png")


def entries(kind: str) -> list[dict[str, Any]]:
    """The entries of a kind, each with the command and the file of its kind where it names none."""
    read = yaml.safe_load((CORPUS / f"{kind}.yaml").read_text(encoding="utf-8"))
    shared = {key: value for key, value in read.items() if key != "entries"}
    return [{**shared, **entry} for entry in read["entries"]]


ALL = {f"{kind}: {entry['name']}": entry for kind in KINDS for entry in entries(kind)}


def prepare(folder: Path) -> None:
    """Good input for everything: a base of two rows, three images with labels, a table."""
    for name, text in GOOD.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    for name in IMAGES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(folder / name)


def spoil(folder: Path, entry: dict[str, Any]) -> None:
    """Write an entry's content over its file, or make it from the good one."""
    if "file" not in entry or not {"text", "base64", "replace", "truncate", "weights", "repeat"} & entry.keys():
        return
    file = folder / entry["file"]
    old = file.read_bytes() if file.is_file() else b""
    if "replace" in entry:
        before, after = (part.encode() for part in entry["replace"])
        assert before in old, "an entry must change the good file"
        new = old.replace(before, after, 1)
    elif "truncate" in entry:
        new = old[: entry["truncate"]]
    elif "repeat" in entry:
        text, times = entry["repeat"]
        new = text.encode() * times
    elif "weights" in entry:
        new = weights(entry["weights"])
    else:
        new = base64.b64decode(entry["base64"]) if "base64" in entry else entry["text"].encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(new)


class _Runs:
    """Pickled, it creates a file where it is loaded as code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("executed", "w"))


def weights(recipe: str) -> bytes:
    """A file that `torch.save` wrote, by the name of what is wrong with it."""
    state = {"model.0.conv.weight": torch.ones(16, 3, 3, 3)}
    made: dict[str, Any] = {
        "code": _Runs(),
        "code in a checkpoint": {"model": _Runs()},
        "another model": {"model.0.weight": torch.ones(3)},
        "part of the model": state,
        "no tensors": {"epoch": 3},
        "empty mapping": {},
        "tensor": torch.ones(2),
        "list": [torch.ones(2)],
        "number": 7,
        "no model": {"ema": None, "optimizer": None},
        "tensor as model": {"model": torch.ones(1)},
        "text as model": {"model": "yolo11n.yaml"},
        "nested": {"model": state},
    }
    stream = io.BytesIO()
    torch.save(made[recipe.removesuffix(", cut")], stream)
    content = stream.getvalue()
    return content[: len(content) // 2] if recipe.endswith(", cut") else content


def files(folder: Path) -> dict[str, bytes]:
    """Every file and what it holds."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def typed(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Exit code and stderr of the command line in this process."""
    from nas_attn import cli, pool

    def never(*_: object, **__: object) -> None:
        raise AssertionError("bad input must be found before workers start")

    stream = io.StringIO()
    monkeypatch.setattr(pool, "open_pool", never)
    monkeypatch.setattr(cli.errors, "file", stream)
    monkeypatch.setattr(sys, "argv", ["nas-attn", *arguments])
    with contextlib.redirect_stderr(stream), contextlib.redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0), stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NAS_ATTN_STORAGE", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield tmp_path


@pytest.mark.parametrize("name", ALL)
def test_malformed_input_is_one_line_and_exit_code_two(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = ALL[name]
    spoil(folder, entry)
    before = files(folder)
    code, stderr = typed([str(word) for word in entry["command"]], monkeypatch)
    lines = [line for line in stderr.splitlines() if line.strip()]
    assert (code, len(lines)) == (2, 1), stderr
    assert "Traceback" not in stderr
    assert lines[0].startswith("error: ")
    assert lines[0].isprintable()
    for words in entry["names"]:
        assert words in lines[0]
    assert files(folder) == before, "nothing may be left behind"
    assert not (folder / "study").exists()


def test_the_corpus_is_as_large_as_it_says_and_nothing_is_twice() -> None:
    inputs = [str({key: value for key, value in entry.items() if key not in ("name", "from", "names")}) for entry in ALL.values()]
    assert len(set(inputs)) == len(inputs) == sum(len(entries(kind)) for kind in KINDS)
    assert {entry["from"] for entry in ALL.values()} == {"written", "found"}
    assert all(entry["names"] for entry in ALL.values())


@pytest.mark.usefixtures("folder")
def test_good_input_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["search", "space.yaml", "--data", "data.yaml", "--out", "study", "--device", "cpu"]
    code, stderr = typed(command, monkeypatch)
    assert (code, "before workers start" in stderr) == (1, True), stderr  # it came as far as the pool that this test forbids
