"""What a fuzz run saw: every way in which an input was rejected, and every way in which a parser broke, each with its smallest input."""

import base64
import json
import re
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from targets import Target

from nas_attn.errors import InputError

HANG_S = 5
"""Seconds of this process's own time: the machine may be busy."""
BROKEN = "broken"
REJECTED = "rejected"
SHRINKS = 400


class Hang(BaseException):
    """No `except Exception` of a parser may swallow it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What an input led to; `reason` tells one kind from another, whatever the values are."""

    kind: str
    reason: str
    message: str


def judge(target: Target, folder: Path, content: bytes) -> Verdict | None:
    """None where the parser took the input, otherwise how it refused it or broke."""
    signal.signal(signal.SIGVTALRM, _hang)
    signal.setitimer(signal.ITIMER_VIRTUAL, HANG_S)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            target.run(folder, content)
    except InputError as error:
        return _refusal(target, str(error))
    except (Exception, Hang) as error:
        return Verdict(kind=BROKEN, reason=f"{type(error).__name__} in {_place(error)}", message=" ".join(str(error).split())[:300])
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return None


def _hang(_number: int, _frame: object) -> None:
    raise Hang(f"more than {HANG_S} s")


def _place(error: BaseException) -> str:
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if "nas_attn" in Path(frame.filename).parts]
    return f"{Path(own[-1].filename).name}:{own[-1].name}" if own else "no frame of the package"


def _refusal(target: Target, message: str) -> Verdict:
    """A refusal that a user could not read is a bug as well."""
    lines = message.split("\n")
    whole = re.sub(r"^\S*/", "", message)
    if not all(line.isprintable() and line.strip() for line in lines):
        return Verdict(kind=BROKEN, reason=f"unprintable: {_normal(whole)}", message=repr(message)[:300])
    if any(target.file not in line for line in lines):
        return Verdict(kind=BROKEN, reason=f"names no file: {_normal(whole)}", message=message[:300])
    if any(len(line) > 1000 for line in lines):
        return Verdict(kind=BROKEN, reason=f"endless: {_normal(whole)}", message=message[:300])
    return Verdict(kind=REJECTED, reason=_normal("\n".join(sorted(lines))), message=message[:1000])


def _normal(message: str) -> str:
    """A message without its values."""
    text = re.sub(r"(/[\w.\-]+)+/", "", message)
    text = re.sub(r"0x[0-9a-f]+: .*?;", "B", message)
    text = re.sub(r"(Known|Did you mean).*", "K", text)
    text = re.sub(r"'[^']*'|\"[^\"]*\"", "Q", text)
    text = re.sub(r"but got .*?(?=[;.] |[;.]$|$)|(?<=but )\S.*(?=;)", "V", text)
    return re.sub(r"[-+]?\d[\d.,e+-]*", "N", text)[:160]


@dataclass(slots=True, kw_only=True)
class Ledger:
    """One target under one engine, in a JSON file that a later run goes on from."""

    file: Path
    executions: int = 0
    seconds: float = 0.0
    rounds: int = 0
    seen: dict[str, dict[str, str]] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def open(cls, file: Path) -> "Ledger":
        """The ledger in a file, or a new one."""
        kept = json.loads(file.read_text()) if file.is_file() else {}
        return cls(file=file, **kept)

    def note(self, verdict: Verdict | None, content: bytes) -> bool:
        """Count an execution; whether its verdict was not seen before."""
        self.executions += 1
        if verdict is None:
            return False
        old = self.seen.get(verdict.reason)
        if old is None or len(content) < len(base64.b64decode(old["input"])):
            self.seen[verdict.reason] = {**asdict(verdict), "input": base64.b64encode(content).decode()}
        return old is None

    def save(self) -> None:
        """Whole or not at all."""
        now = time.monotonic()
        self.seconds, self.began = self.seconds + now - self.began, now
        kept = {name: getattr(self, name) for name in ("executions", "seconds", "rounds", "seen")}
        temporary = self.file.with_suffix(".part")
        temporary.write_text(json.dumps(kept, indent=1))
        temporary.replace(self.file)

    def shrink(self, judged: Callable[[bytes], Verdict | None]) -> None:
        """Make the input of every verdict smaller, by leaving out lines and then runs of bytes, as long as the verdict stays."""
        for reason, entry in list(self.seen.items()):
            content = base64.b64decode(entry["input"])
            self.seen[reason]["input"] = base64.b64encode(smaller(content, reason, judged)).decode()
            verdict = judged(base64.b64decode(self.seen[reason]["input"]))
            if verdict is not None:
                self.seen[reason]["message"] = verdict.message


def smaller(content: bytes, reason: str, judged: Callable[[bytes], Verdict | None]) -> bytes:
    """The input without what its verdict does not need."""
    tries = 0
    for separator in (b"\n", b""):
        step = 64
        while step:
            parts = content.split(separator) if separator else [content[k : k + 1] for k in range(len(content))]
            place = 0
            while place < len(parts) and tries < SHRINKS:
                shorter = separator.join(parts[:place] + parts[place + step :])
                verdict = judged(shorter)
                tries += 1
                if verdict is not None and verdict.reason == reason:
                    parts = parts[:place] + parts[place + step :]
                else:
                    place += step
            content = separator.join(parts)
            step //= 2
    return content
