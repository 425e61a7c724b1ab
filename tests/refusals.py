"""How the command line refuses an input, in this process: which code, which words, at which place of the package, for which reason.

The corpus test and the fuzzers see refusals through the same eyes: what a fuzzer found is kept where the command line refuses it too.
"""

import contextlib
import io
import re
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from PIL import Image
from rich.console import Console

SEARCH = ("search", "space.yaml", "--data", "data.yaml", "--out", "study", "--device", "cpu")
SIMULATE = ("simulate", "table.csv", "--genes", "depth,family", "--maximize", "map", "--minimize", "latency")
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
    "listed.yaml": "train: list.txt\nval: images/val\nnc: 2\n",
    "list.txt": "images/train/a.png\n./images/train/b.png\n",
    "labels/train/a.txt": "0 0.5 0.5 0.25 0.5\n",
    "labels/train/b.txt": "1 0.5 0.5 0.25 0.5\n",
    "labels/val/c.txt": "1 0.5 0.5 0.25 0.5\n",
    "table.csv": "depth,family,map,latency\n1,a,30.5,2.0\n2,a,33.0,3.5\n1,b,31.25,2.5\n2,b,35,4\n",
}
IMAGES = ("images/train/a.png", "images/train/b.png", "images/val/c.png")


class Accepted(BaseException):
    """The command line took its input and would begin to work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a command: `place` and `reason` tell one refusal from another, whatever the values are."""

    code: int
    stderr: str
    place: str
    reason: str
    accepted: bool

    @property
    def lines(self) -> list[str]:
        """What was said on stderr."""
        return [line for line in self.stderr.splitlines() if line.strip()]


def prepare(folder: Path) -> None:
    """Good input for everything: a base of two rows, three images with labels, a list of images, a table."""
    for name, text in GOOD.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    for name in IMAGES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(folder / name)


def files(folder: Path) -> dict[str, bytes]:
    """Every file and what it holds."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def typed(arguments: list[str]) -> Outcome:
    """The command line in this process, in the current folder, up to where it would begin to work."""
    from nas_attn import cli

    stream, raised = io.StringIO(), list[BaseException]()
    fail = cli._fail

    def noted(error: Exception, code: int, debug: bool) -> None:
        raised.append(error)
        fail(error, code, debug)

    with contextlib.ExitStack() as stack:
        for where in _work():
            stack.enter_context(mock.patch(where, _never))
        stack.enter_context(mock.patch.object(cli, "_fail", noted))
        stack.enter_context(mock.patch.object(cli, "errors", Console(file=stream, highlight=False)))
        stack.enter_context(mock.patch.object(cli, "hide_url"))  # which would begin this very process anew
        stack.enter_context(mock.patch.object(sys, "argv", ["nas-attn", *arguments]))
        stack.enter_context(contextlib.redirect_stderr(stream))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        except Accepted:
            return Outcome(code=0, stderr=stream.getvalue(), place="", reason="", accepted=True)
        else:
            code = 0
    place = at(raised[0]) if raised else ""
    return Outcome(code=code, stderr=stream.getvalue(), place=place, reason=reason(stream.getvalue()), accepted=code == 0)


def _work() -> Iterator[str]:
    """What takes long or writes, and comes after all checks."""
    yield from ("nas_attn.pool.open_pool", "nas_attn.plan.estimate", "nas_attn.demo.draw_data_set", "nas_attn.show.conformance")
    yield from ("nas_attn.speed.measure", "nas_attn.replay._runs", "os.execve")


def _never(*_: object, **__: object) -> Any:
    raise Accepted


def at(error: BaseException) -> str:
    """The innermost function of the package that an error passed through, or that the error passed through which it tells on."""
    while error.__cause__ is not None and str(error.__cause__) and str(error.__cause__) in str(error) and _is_own(error.__cause__):
        error = error.__cause__
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if "nas_attn" in Path(frame.filename).parts]
    return f"{Path(own[-1].filename).name}:{own[-1].name}" if own else "command line"


def _is_own(error: BaseException) -> bool:
    return type(error).__module__ == "nas_attn.errors"


def reason(message: str) -> str:
    """A message without the values in it: what is left is equal where the same rule was broken at the same key."""
    text = " / ".join(line for line in message.removeprefix("error: ").splitlines() if line.strip())
    text = re.sub(r"(?<![\w<])[~.\w-]*/[^\s:;,'\"]*/", "", text)
    text = text.replace("UTF-8", "UTF")
    text = re.sub(r"(Did you mean|Known|Objectives)\b.*?(\. |\.?$)", "", text)
    text = re.sub(r"\(\d+ more[^)]*\)", "", text)
    text = re.sub(r"\[*(?<!\w)'(?:[^'\\]|\\.)*?'\]*|\"(?:[^\"\\]|\\.)*?\"", "Q", text)
    text = re.sub(r"(?<!\w)['\"]\S.*?\.\.\.", "Q", text)
    text = re.sub(r"\b(but (?:got|it is|is|has)|reads|: got|names|gives) .*?(?=; [a-z]|: [a-z]| \(|\. |\.?$)", r"\1 V", text)
    text = re.sub(r"^(\S+: )([\w.]*?)[^.:]+(: must be (?:a known|a module's|a hyperparameter|a cost|an objective))", r"\1\2W\3", text)
    text = re.sub(r"(unable to parse[^;,]*), but got V", r"\1", text)
    text = re.sub(r"argument\(s\) \(.*\);", "argument(s) V;", text)
    text = re.sub(r"(No such option: ).*?(?=;)|(, but )[^;]*?(?= is none| is no file| does not)", r"\1\2V", text)
    text = re.sub(r"0x[0-9a-f]+", "N", text)
    return " ".join(re.sub(r"[-+]?\d[\d.,e+-]*", "N", text).split())[:200]
