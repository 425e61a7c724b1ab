"""Good inputs with a few edits: as Hypothesis draws and shrinks them, and as libFuzzer mutates them."""

import json
import random
import re
from collections.abc import Callable
from typing import Any

import yaml
from hypothesis import strategies as st

HOSTILE: tuple[bytes, ...] = tuple(
    word if isinstance(word, bytes) else word.encode()
    for word in (
        *(
            "",
            "null",
            "~",
            "true",
            "no",
            "-1",
            "0",
            "1e400",
            "-1e308",
            ".nan",
            "nan",
            "inf",
            "-.inf",
            "1e-3",
            "0x_",
            "0b_",
            "._",
            "1_0",
            "9" * 5000,
        ),
        *(
            "[]",
            "{}",
            "[[]]",
            "{a: 1}",
            "[1, 2]",
            "&a [1]",
            "*a",
            "!!int x",
            "!!bool x",
            "!!python/name:os.system",
            "!!binary x",
            "<<",
            "=",
            "? [a]",
        ),
        *(
            "2020-13-45",
            "1:60",
            "0o7",
            "'",
            '"',
            "#",
            "---",
            "...",
            "%YAML 9",
            "\t",
            "- ",
            ": ",
            "|",
            ">",
            "@",
            "`",
            "a: b: c",
            "[" * 40,
            "{a: " * 40,
        ),
        *(
            "P3",
            "P9",
            "LSKA",
            "lska",
            "LSKA.k_size",
            "k_size",
            "1/0",
            "1/3",
            "maximize",
            "minimize",
            "map50",
            "latency_ms",
            "params_m",
            "gmacs",
        ),
        *(
            "yolo11n.yaml",
            "yolo11n.pt",
            "../x.yaml",
            "a/b.yaml",
            "x" * 300,
            "-1.5",
            "33",
            "64.0",
            "999999999999999999999",
            "[3, 1]",
            "auto",
            "lr0",
        ),
        *(
            "Conv",
            "Detect",
            "nn.Upsample",
            "nn.Nothing",
            "os",
            "torch",
            "yaml_model_load",
            "torchvision.ops.x",
            "nas_attn.Nothing",
            "Concat",
            "Index",
        ),
        *(
            "~nobody/x",
            "/dev/null",
            ".",
            "..",
            "images",
            "*",
            "list.txt",
            "p101",
            "p-1",
            "p",
            "map=",
            "=1",
            "map=p50",
            "map=nan",
            ",",
            ";",
            "0.5,",
        ),
        *(
            "16384",
            "100000",
            "0.5",
            "7",
            "1",
            "2",
            "-3",
            "[0]",
            "[7, 8]",
            "[[64, 64], 3]",
            "nn.SiLU(7)",
            "nn.Linear(99999, 99999)",
            "nas_attn.CBAM",
            "DoubleAttention",
            "DoubleAttention.c_m",
            "mosiac",
            "amp",
            "rtdetr-l.yaml",
            "racing",
            "tpee",
        ),
        *(
            "--trials",
            "--out",
            "--data",
            "--weights",
            "--storage",
            "--device",
            "--known",
            "--noise",
            "--reference",
            "--genes",
            "--every",
            "--seed",
            "--arms",
            "--rule",
            "--plot",
            "-h",
            "--",
            "-",
            "data.yaml",
            "space.yaml",
            "table.csv",
            "images",
            "postgresql://u:p@h/x",
            "redis://h/0",
            "mysql://h/x",
            "sqlite:///nowhere/x.db",
            "cuda",
            "cuda:9",
            "map",
            "depth",
            "depth,family",
            "depth,depth",
        ),
        *(
            b"\x00",
            b"\xff",
            b"\xef\xbb\xbf",
            b"\r\n",
            b"\x1b[2J",
            "\u2028".encode(),
            "\u0663".encode(),
            "\U0001f408".encode(),
            b"\xed\xa0\x80",
        ),
    )
)
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
).map(lambda value: json.dumps(value).encode())
_words = (
    st.sampled_from(HOSTILE) | _values | st.binary(max_size=8) | st.text(max_size=8).map(lambda text: text.encode("utf-8", "surrogatepass"))
)
EDITS = ("value", "word", "line", "drop", "twice", "byte", "cut", "key", "leaf", "leaf", "name", "prune")
_edits = st.tuples(st.sampled_from(EDITS), st.integers(0, 10_000), st.integers(0, 50), _words)
_WORD = re.compile(rb"[^\s,:\[\]{}=]+")


def inputs(seeds: tuple[bytes, ...], drawn: st.SearchStrategy[bytes] | None) -> st.SearchStrategy[bytes]:
    """A seed with up to three edits, mostly one, or what the target draws, or now and then any bytes."""
    edited = st.tuples(st.sampled_from(seeds), st.lists(_edits, min_size=1, max_size=3)).map(lambda pair: _edited(*pair))
    once = st.tuples(st.sampled_from(seeds), st.tuples(_edits)).map(lambda pair: _edited(*pair))
    ways = [once, once, once, edited, st.binary(max_size=200), st.lists(_words, max_size=6).map(b" ".join)]
    return st.one_of(*ways, *([drawn] * 4 if drawn is not None else []))


def mutated(content: bytes, largest: int, seed: int, mutate: Callable[[bytes, int], bytes]) -> bytes:
    """libFuzzer's own mutation, or an edit, by turns that the seed decides."""
    drawn = random.Random(seed)
    if drawn.random() < 0.5:
        return mutate(content, largest)
    return edit(content, drawn.choice(EDITS), drawn.randrange(10_000), drawn.randrange(50), drawn.choice(HOSTILE))[:largest]


def _edited(content: bytes, edits: tuple[tuple[str, int, int, bytes], ...]) -> bytes:
    for one in edits:
        content = edit(content, *one)
    return content


def edit(content: bytes, kind: str, place: int, second: int, word: bytes) -> bytes:
    """The content with one edit at a place: of a byte, a word, a line, or of a leaf where it is a YAML."""
    if kind in ("leaf", "name", "prune"):
        return _in_tree(content, kind, place, word)
    if kind in ("byte", "cut"):
        at = place % (len(content) + 1)
        return content[:at] + (word + content[at + 1 + second % 3 :] if kind == "byte" else b"")
    return _in_lines(content, kind, place, second, word)


def _in_lines(content: bytes, kind: str, place: int, second: int, word: bytes) -> bytes:
    lines = content.split(b"\n")
    row = place % len(lines)
    line = lines[row]
    if kind == "drop":
        del lines[row]
    elif kind == "twice":
        lines.insert(second % (len(lines) + 1), line)
    elif kind == "line":
        lines.insert(row, word)
    elif kind == "key":
        lines[row] = word + b":" + line.partition(b":")[2]
    elif kind == "value":
        key, colon, _ = line.partition(b":")
        lines[row] = key + colon + b" " + word
    elif words := list(_WORD.finditer(line)):
        found = words[second % len(words)]
        lines[row] = line[: found.start()] + word + line[found.end() :]
    return b"\n".join(lines)


def _in_tree(content: bytes, kind: str, place: int, word: bytes) -> bytes:
    """Another leaf or branch, another key, or one less of either; what is no YAML of lists and mappings stays as it is."""
    try:
        tree = yaml.safe_load(content)
        new = yaml.safe_load(word)
        branches = list(_branches(tree))
        if not branches:
            return content
        holder, key = branches[place % len(branches)]
        old = holder.pop(key)
        if kind == "leaf":
            _put(holder, key, new)
        elif kind == "name" and isinstance(holder, dict):
            holder[new] = old
        return yaml.safe_dump(tree, sort_keys=False, default_flow_style=None).encode()
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return content


def _branches(tree: Any) -> Any:
    """Every place in a tree: what holds it, and the key or number under which it does."""
    if isinstance(tree, dict | list):
        for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
            yield tree, key
            yield from _branches(tree[key])


def _put(holder: Any, key: Any, value: Any) -> None:
    if isinstance(holder, list):
        holder.insert(key, value)
    else:
        holder[key] = value
