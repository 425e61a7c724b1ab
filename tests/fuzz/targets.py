"""The parsers that are fuzzed: each a function of bytes that returns or raises InputError, and inputs to begin from."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from nas_attn import cli_simulate, data, table
from nas_attn.document import read
from nas_attn.graph import Graph, channels, lint_yaml
from nas_attn.replay_rules import make_rules
from nas_attn.space import Site
from nas_attn.spec import SpaceSpec

SPACE = """base: yolo11n.yaml
sites: [P3, P4, neck_P4?, 6]
max_placements: 2
modules:
  LSKA: {k_size: [7, 11]}
  DoubleAttention: {c_m: [1/8, 1/4], c_n: [1/4]}
limits: {latency_ratio: 1.5}
objectives: {map50_95: maximize, latency_ratio: minimize}
base_fit: {epochs: 2, lr0: 2e-3, optimizer: AdamW}
proxy: {epochs: 9, imgsz: 64, batch: 8, rungs: [1, 3, 9], mosaic: 0.5}
latency: {blocks: 3, calibrations: 2, retries: 0}
search_val: 0.25
base_seeds: 2
seed: 0
"""
MODEL = """nc: 3
scales: {n: [0.5, 0.25, 1024], s: [0.5, 0.5, 1024]}
backbone:
- [-1, 1, Conv, [16, 3, 2]]
- [-1, 1, Conv, [32, 3, 2]]
- [-1, 2, C3k2, [64, false, 0.25]]
- [-1, 1, Conv, [64, 3, 2]]
head:
- [-1, 1, nn.Upsample, [null, 2, nearest]]
- [[-1, 2], 1, Concat, [1]]
- [-1, 1, nas_attn.LSKA, [c2, 7]]
- [[3, 6], 1, Detect, [nc]]
"""
DATA = "path: .\ntrain: images/train\nval: [images/val, list.txt]\nnc: 2\nnames:\n  0: cat\n  1: dog\ndownload: https://example.org/x.zip\n"
LABELS = "0 0.5 0.5 0.25 0.5\n2 0.1 0.2 0.05 0.1\n1 0.1 0.1 0.5 0.1 0.5 0.3 0.1 0.3\n"
TABLE = "depth,family,map,latency,note\n1,a,30.5,2.0,x\n2,a,33.0,3.5,\n1,b,31.25,2.5,y\n2,b,35,4,z\n"
PAIRS = "map=30,latency=p90\nmap=0.5\nlatency\n"
SITES = tuple(
    Site(layer=row, names=(name,), module="C3k2", channels=channels, stride=stride)
    for row, name, channels, stride in ((4, "P3", 128, 8), (6, "P4", 128, 16), (13, "neck_P4", 128, 16))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A parser over a folder of its own; `file` is what its messages must name, empty where there is no file."""

    file: str
    prepare: Callable[[Path], None]
    run: Callable[[Path, bytes], None]
    seeds: Callable[[], tuple[bytes, ...]]


def _no_files(_: Path) -> None:
    """Nothing stands beside the input."""


def _data_files(folder: Path) -> None:
    for split in ("train", "val"):
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(folder / "images" / split / "one.png")
    (folder / "list.txt").write_text("images/train/one.png\n")


def _write(folder: Path, name: str, content: bytes) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def _space(_: Path, content: bytes) -> None:
    spec = SpaceSpec.from_yaml(content, "space.yaml")
    assert SpaceSpec.from_yaml(spec.to_yaml()) == spec
    assert spec.resolve(SITES, "space.yaml").size >= 1


def _model(_: Path, content: bytes) -> None:
    config = read(content, "model.yaml")
    lint_yaml(config)
    graph = Graph.from_yaml(config)
    channels(graph)
    assert Graph.from_yaml(graph.to_yaml()) == graph


def _build(folder: Path, content: bytes) -> None:
    from nas_attn import detector  # torch is for those that need it

    detector.base_sites(str(_write(folder, "model.yaml", content)))


def _data(folder: Path, content: bytes) -> None:
    data.load(_write(folder, "data.yaml", content))


def _list(folder: Path, content: bytes) -> None:
    _write(folder, "images.txt", content)
    data.load(_write(folder, "data.yaml", b"train: images.txt\nval: images.txt\nnc: 1\n"))


def _labels(folder: Path, content: bytes) -> None:
    _write(folder, "labels/train/one.txt", content)
    data.read_labels(str(folder / "images/train/one.png"), 3)


def _image(folder: Path, content: bytes) -> None:
    data.read_labels(str(_write(folder, "images/odd.png", content)), 3)


def _table(folder: Path, content: bytes) -> None:
    file = _write(folder, "table.csv", content)
    read = table.read_table(file, ["depth", "family"], {"map": "maximize", "latency": "minimize"})
    make_rules(read, 1, 1, 0.0, (), {}, 0, False, 1)


def _pairs(folder: Path, content: bytes) -> None:
    reference, noise, known, *_ = [*content.decode("utf-8", "surrogateescape").split("\n"), "", "", ""]
    file = _write(folder, "table.csv", TABLE.encode())
    read = table.read_table(file, ["depth", "family"], {"map": "maximize", "latency": "minimize"})
    names = cli_simulate._names("known", known) if known else ()
    make_rules(read, 2, 1, cli_simulate._noise(noise or "0"), names, cli_simulate._pairs("reference", reference), 0, False, 1)


def _weights(folder: Path, content: bytes) -> None:
    from nas_attn import detector

    detector.read_state(_write(folder, "weights.pt", content))


def _images() -> tuple[bytes, ...]:
    found = []
    for kind in ("PNG", "JPEG", "BMP", "TIFF", "WEBP"):
        stream = io.BytesIO()
        Image.new("RGB", (8, 6), (10, 200, 30)).save(stream, kind)
        found.append(stream.getvalue())
    return tuple(found)


def _checkpoints() -> tuple[bytes, ...]:
    import torch

    zipped, plain = io.BytesIO(), io.BytesIO()
    state = {"model.0.weight": torch.ones(2, 2), "model.0.steps": torch.tensor(3)}
    torch.save(state, zipped)
    torch.save(state, plain, _use_new_zipfile_serialization=False)
    return zipped.getvalue(), plain.getvalue()


TARGETS: Mapping[str, Target] = {
    "space": Target(file="space.yaml", prepare=_no_files, run=_space, seeds=lambda: (SPACE.encode(),)),
    "model": Target(file="model.yaml", prepare=_no_files, run=_model, seeds=lambda: (MODEL.encode(),)),
    "build": Target(file="model.yaml", prepare=_no_files, run=_build, seeds=lambda: (MODEL.encode(),)),
    "data": Target(file="data.yaml", prepare=_data_files, run=_data, seeds=lambda: (DATA.encode(),)),
    "list": Target(file="images.txt", prepare=_data_files, run=_list, seeds=lambda: (b"images/train/one.png\n./images/val/one.png\n",)),
    "labels": Target(file="one.txt", prepare=_data_files, run=_labels, seeds=lambda: (LABELS.encode(),)),
    "image": Target(file="odd.png", prepare=_no_files, run=_image, seeds=_images),
    "table": Target(file="table.csv", prepare=_no_files, run=_table, seeds=lambda: (TABLE.encode(),)),
    "pairs": Target(file="", prepare=_no_files, run=_pairs, seeds=lambda: (PAIRS.encode(), b"\n0.5\n\n", b"map=p10\nmap=0,latency=1\n\n")),
    "weights": Target(file="weights.pt", prepare=_no_files, run=_weights, seeds=_checkpoints),
}
