"""The parsers that are fuzzed, each in a folder of good files of which one is written anew: as `nas-attn` would read it, up to its work."""

import functools
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from refusals import GOOD, SEARCH, SIMULATE, Outcome, typed

from nas_attn import cli, cli_search, cli_simulate, cli_verify, data, detector, plan, pool, replay, report, show, table  # noqa: F401
from nas_attn.document import read
from nas_attn.graph import Graph, channels, lint_yaml
from nas_attn.spec import SpaceSpec

SPACE = """base: tiny.yaml
sites: [0, "P9?"]
max_placements: 2
modules:
  LSKA: {k_size: [7, 11]}
  DoubleAttention: {c_m: [1/8, 1/4], c_n: [1/4]}
onnx: any
limits: {latency_ratio: 1.5, params_m: 9}
objectives: {map50_95: maximize, latency_ratio: minimize, gmacs: minimize}
base_fit: {epochs: 2, lr0: 2e-3, optimizer: AdamW}
proxy: {epochs: 9, imgsz: 64, batch: 8, rungs: [1, 3, 9], mosaic: 0.5, average: 2, new_lr_scale: 5}
latency: {backend: torch, imgsz: 32, batch: 1, blocks: 3, calibrations: 2, retries: 0}
controls: true
search_val: 0.5
base_seeds: 2
seeds: 1
seed: 0
"""
MODEL = """nc: 3
scales: {n: [0.5, 0.25, 1024], s: [0.5, 0.5, 1024]}
activation: nn.SiLU()
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
LISTED = "train: [images/train, list.txt]\nval: images/val\nnames: [cat, dog]\n"
LABELS = "0 0.5 0.5 0.25 0.5\n1 0.1 0.2 0.05 0.1\n1 0.1 0.1 0.5 0.1 0.5 0.3 0.1 0.3\n"
TABLE = "depth,family,map,latency,note\n1,a,30.5,2.0,x\n2,a,33.0,3.5,\n1,b,31.25,2.5,y\n2,b,35,4,z\n"
COMMANDS = (
    (*SEARCH, "--trials", "4", "--sampler", "tpe", "--fidelity", "racing", "--repeats", "1"),
    (*SEARCH, "--workers", "2", "--gpus-per-worker", "0.5", "--pool", "inline", "--score-on", "val"),
    (*SEARCH, "--storage", "sqlite:///x.db", "--address", "auto", "--latency-node", "here"),
    ("search", "space.yaml", "--data", "data.yaml", "--weights", "w.pt", "--dry-run"),
    (*SIMULATE, "--sampler", "model,random+model", "--trials", "2", "--repeats", "1", "--every", "1", "--seed", "3"),
    (*SIMULATE, "--noise", "map=0.5", "--known", "latency", "--reference", "map=30,latency=p90", "--trials", "2", "--workers", "1"),
    (*SIMULATE, "--charge-invalid", "--noise", "0.5", "--plot", "curve.png", "--json"),
    ("demo", "--trials", "3", "--out", "demo", "--pool", "inline"),
    ("sites", "tiny.yaml", "--json"),
    ("modules", "--json", "--measure"),
    ("check", "tiny.yaml", "--scale", "n"),
    ("check", "--module", "LSKA"),
    ("report", "study", "--storage", "sqlite:///x.db"),
    ("pick", "study", "--rule", "knee", "--max-latency-ratio", "1.5"),
    ("export", "study", "--to", "winner", "--trial", "3", "--scale", "s"),
    ("train", "winner", "--data", "data.yaml", "epochs=3", "imgsz=32"),
    ("verify", "study", "--data", "data.yaml", "--seeds", "2", "--epochs", "3", "--arms", "base,members", "--device", "cpu"),
    ("rebuild", "study", "--force"),
)
SEPARATOR = b"\n"
"""Between the words of a command line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A parser of the corpus' `kind`: `run` reads `file`, which its messages must name; a `command` other than the kind's, if any."""

    kind: str
    file: str
    run: Callable[[bytes], Outcome | None]
    seeds: Callable[[], tuple[bytes, ...]]
    command: tuple[str, ...] = ()
    seconds: int = 5
    """Of this process's own time that an input may take."""
    drawn: Callable[[], Any] = field(default=lambda: None)
    """A Hypothesis strategy of inputs besides edited seeds, or None."""


@functools.cache
def _base(_: str) -> Any:
    return detector.base_sites("tiny.yaml")


def _known_base(name: str) -> Any:
    """Bases of Ultralytics take seconds to build: where the name is known, the small one stands for them."""
    if name.rpartition("/")[2] != "tiny.yaml" and name not in detector.shipped():
        return detector.base_sites(name)
    return _base("tiny.yaml")


@functools.cache
def _model_of(classes: int) -> Any:
    graph, scale, _ = _base("tiny.yaml")
    return detector.build(graph, scale, classes)


def quicken() -> None:
    """What each input would have made anew, and what no input can change, is made once in this process."""
    torch.set_num_threads(1)
    plan.base_sites = _known_base
    plan.build = lambda _graph, _scale, classes, _names: _model_of(classes)


def _prepared(weights: str | None = None, yaml: str = "data.yaml") -> None:
    spec = SpaceSpec.from_yaml(GOOD["space.yaml"])
    plan.prepare(spec, "space.yaml", Path(yaml), Path("study"), weights=Path(weights) if weights else None, device="cpu")


def _space(_: bytes) -> None:
    spec = SpaceSpec.load("space.yaml")
    assert SpaceSpec.from_yaml(spec.to_yaml()) == spec
    plan.require_options(spec, Path("study"), trials=40, sampler="model", fidelity="full", pool="ray", workers=None)
    plan.prepare(spec, "space.yaml", Path("data.yaml"), Path("study"), device="cpu")


def _model(content: bytes) -> None:
    config = read(content, "tiny.yaml")
    lint_yaml(config)
    graph = Graph.from_yaml(config)
    channels(graph)
    assert Graph.from_yaml(graph.to_yaml()) == graph


def _build(_: bytes) -> None:
    detector.base_sites("tiny.yaml")


def _data(_: bytes) -> None:
    _prepared()


def _list(_: bytes) -> None:
    _prepared(yaml="listed.yaml")


def _weights(_: bytes) -> None:
    _prepared(weights="w.pt")


def _table(_: bytes) -> None:
    table.read_table("table.csv", ["depth", "family"], {"map": "maximize", "latency": "minimize"})


def words(content: bytes) -> list[str]:
    """A command line of an input; no shell can type a zero byte."""
    return [word.decode("utf-8", "surrogateescape") for word in content.replace(b"\0", b"").split(SEPARATOR)]


def _command(content: bytes) -> Outcome:
    return typed(words(content))


def _images() -> tuple[bytes, ...]:
    found = []
    for kind, options in (("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("BMP", {}), ("TIFF", {}), ("WEBP", {}), ("GIF", {})):
        stream = io.BytesIO()
        Image.new("RGB", (8, 6), (10, 200, 30)).save(stream, kind, **options)
        found.append(stream.getvalue())
    return tuple(found)


def saved(value: Any, *, zipped: bool = False) -> bytes:
    """What `torch.save` writes."""
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def _checkpoints() -> tuple[bytes, ...]:
    state = {"model.0.weight": torch.ones(2, 2), "model.0.steps": torch.tensor(3)}
    return saved(state), saved(state, zipped=True), saved({"model": None, "ema": None, "epoch": 3}), saved(_model_of(2).state_dict())


def _states() -> Any:
    """Anything that a checkpoint could hold instead of a model."""
    from hypothesis import strategies as st

    names = st.sampled_from([*_model_of(2).state_dict(), "model", "ema", "epoch", "model.0", "x", "", "model.9.weight"]) | st.integers()
    shapes = st.lists(st.integers(0, 3), max_size=4)
    tensors = shapes.map(torch.zeros) | st.sampled_from([value for value in _model_of(2).state_dict().values() if value.numel() < 64])
    plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.binary(max_size=4) | tensors
    nested = st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4), max_leaves=5)
    changed = st.tuples(names, plain).map(lambda pair: {**_model_of(2).state_dict(), pair[0]: pair[1]})
    dropped = names.map(lambda name: {key: value for key, value in _model_of(2).state_dict().items() if key != name})
    return st.one_of(nested, changed, dropped).map(saved)


def _one(text: str) -> Callable[[], tuple[bytes, ...]]:
    return lambda: (text.encode(),)


TARGETS: Mapping[str, Target] = {
    "space": Target(kind="spaces", file="space.yaml", run=_space, seeds=lambda: (SPACE.encode(), GOOD["space.yaml"].encode())),
    "model": Target(kind="models", file="tiny.yaml", run=_model, seeds=_one(MODEL)),
    "build": Target(kind="models", file="tiny.yaml", run=_build, seeds=lambda: (MODEL.encode(), GOOD["tiny.yaml"].encode()), seconds=20),
    "data": Target(kind="data", file="data.yaml", run=_data, seeds=lambda: (DATA.encode(), LISTED.encode(), GOOD["data.yaml"].encode())),
    "list": Target(
        kind="data",
        file="list.txt",
        run=_list,
        seeds=_one(GOOD["list.txt"]),
        command=tuple(word.replace("data.yaml", "listed.yaml") for word in SEARCH),
    ),
    "labels": Target(kind="labels", file="labels/train/a.txt", run=_data, seeds=_one(LABELS)),
    "image": Target(kind="images", file="images/train/a.png", run=_data, seeds=_images),
    "table": Target(kind="tables", file="table.csv", run=_table, seeds=lambda: (TABLE.encode(), GOOD["table.csv"].encode())),
    "weights": Target(kind="weights", file="w.pt", run=_weights, seeds=_checkpoints, drawn=_states),
    "command": Target(kind="commands", file="", run=_command, seeds=lambda: tuple("\n".join(line).encode() for line in COMMANDS)),
}
