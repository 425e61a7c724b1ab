"""Good inputs with a few edits, as Hypothesis draws and shrinks them."""

import json
import re

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
_edits = st.tuples(
    st.sampled_from(("value", "word", "line", "drop", "twice", "byte", "cut", "key")), st.integers(0, 10_000), st.integers(0, 50), _words
)
_WORD = re.compile(rb"[^\s,:\[\]{}=]+")


def inputs(seeds: tuple[bytes, ...]) -> st.SearchStrategy[bytes]:
    """A seed with up to three edits, or now and then any bytes."""
    edited = st.tuples(st.sampled_from(seeds), st.lists(_edits, min_size=1, max_size=3)).map(lambda drawn: _edited(*drawn))
    return st.one_of(edited, edited, edited, edited, st.binary(max_size=200), st.lists(_words, max_size=6).map(b" ".join))


def _edited(content: bytes, edits: list[tuple[str, int, int, bytes]]) -> bytes:
    for kind, place, second, word in edits:
        content = _one(content, kind, place, second, word)
    return content


def _one(content: bytes, kind: str, place: int, second: int, word: bytes) -> bytes:
    if kind in ("byte", "cut"):
        at = place % (len(content) + 1)
        return content[:at] + (word + content[at + 1 + second % 3 :] if kind == "byte" else b"")
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
