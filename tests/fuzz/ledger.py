"""What a fuzz run saw: every way in which an input was refused, and every way in which a parser broke, each with its smallest input."""

import base64
import json
import re
import resource
import signal
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from refusals import Outcome, at, reason
from targets import Target

from nas_attn.errors import InputError

_FILE = re.compile(r"[\w.-]+\.(yaml|txt|png|csv|pt)\b")
"""What a message must name: as a rule the input's own file, but one slip may only show in another."""
BROKEN = "broken"
REFUSED = "refused"
SHRINKS = 150
SHRINK_S = 30
"""Of all shrinking after a run."""
MOST_MIB = 1024
"""That an input may add to the most memory that this process has held."""


class Hang(BaseException):
    """No `except Exception` of a parser may swallow it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What an input led to; `key` tells one kind from another, whatever the values are: the place in the package, and the reason."""

    kind: str
    key: str
    message: str


def judge(target: Target, content: bytes) -> Verdict | None:
    """None where the parser took the input, otherwise how it refused it or broke; the current folder is one of good files."""
    if target.file:
        file = Path(target.file)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    before, memory = _names(), _peak_mib()
    verdict = _run(target, content)
    if left := sorted(_names() - before):
        for name in left:
            Path(name).unlink()
        return Verdict(kind=BROKEN, key=f"left files: {left[0]}", message=str(left)[:300])
    if (grown := _peak_mib() - memory) > MOST_MIB:
        return Verdict(kind=BROKEN, key="memory", message=f"{grown} MiB more; {verdict.message if verdict else 'taken'}"[:300])
    return verdict


def _run(target: Target, content: bytes) -> Verdict | None:
    signal.signal(signal.SIGVTALRM, _hang)
    signal.setitimer(signal.ITIMER_VIRTUAL, target.seconds)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            outcome = target.run(content)
        return _outcome(outcome) if outcome is not None else None
    except InputError as error:
        return _refusal(str(error), at(error))
    except (Exception, Hang) as error:
        return Verdict(kind=BROKEN, key=f"{type(error).__name__} in {at(error)}", message=" ".join(str(error).split())[:300])
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _hang(_number: int, _frame: object) -> None:
    raise Hang("it takes too long")


def _names() -> set[str]:
    return {str(file) for file in Path().rglob("*") if file.is_file()}


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _outcome(outcome: Outcome) -> Verdict | None:
    """Of a command line: code 1 without a word is what `check` says of findings."""
    if outcome.accepted or (outcome.code == 1 and not outcome.lines):
        return None
    if outcome.code != InputError.exit_code or "Traceback" in outcome.stderr:
        return Verdict(kind=BROKEN, key=f"exit code {outcome.code}: {outcome.reason}", message=outcome.stderr[:300])
    if not outcome.lines or not outcome.lines[0].startswith("error: "):
        return None  # the help, where nothing was asked for
    message = outcome.stderr.strip("\n").removeprefix("error: ")
    return _readable(message) or _refused(message, outcome.place)


def _refusal(message: str, place: str) -> Verdict | None:
    if any(not _FILE.search(line) for line in message.split("\n")):
        return Verdict(kind=BROKEN, key=f"names no file: {reason(message)}", message=message[:300])
    return _readable(message) or _refused(message, place)


def _refused(message: str, place: str) -> Verdict | None:
    """Several lines are several slips, each of which other inputs show alone."""
    return Verdict(kind=REFUSED, key=f"{place}: {reason(message)}", message=message) if "\n" not in message else None


def _readable(message: str) -> Verdict | None:
    """A refusal that a user could not read is a bug as well, and so is memory that ran out before anything was said."""
    lines = message.split("\n")
    if not all(line.isprintable() and line.strip() for line in lines):
        return Verdict(kind=BROKEN, key=f"unprintable: {reason(message)}", message=repr(message)[:300])
    if any(len(line) > 1000 for line in lines):
        return Verdict(kind=BROKEN, key=f"endless: {reason(message)}", message=message[:300])
    if "MemoryError" in message or "allocate" in message:
        return Verdict(kind=BROKEN, key=f"memory: {reason(message)}", message=message[:300])
    return None


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
        old = self.seen.get(verdict.key)
        if old is None or len(content) < len(base64.b64decode(old["input"])):
            self.seen[verdict.key] = {**asdict(verdict), "input": base64.b64encode(content).decode()}
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
        until = time.monotonic() + SHRINK_S
        for key, entry in list(self.seen.items()):
            small = smaller(base64.b64decode(entry["input"]), key, judged, until)
            verdict = judged(small)
            if verdict is not None and verdict.key == key:
                self.seen[key] = {**asdict(verdict), "input": base64.b64encode(small).decode()}


def smaller(content: bytes, key: str, judged: Callable[[bytes], Verdict | None], until: float) -> bytes:
    """The input without what its verdict does not need."""
    tries = 0
    for separator in (b"\n", b""):
        step = 64
        while step:
            parts = content.split(separator) if separator else [content[k : k + 1] for k in range(len(content))]
            place = 0
            while place < len(parts) and tries < SHRINKS and time.monotonic() < until:
                verdict = judged(separator.join(parts[:place] + parts[place + step :]))
                tries += 1
                if verdict is not None and verdict.key == key:
                    parts = parts[:place] + parts[place + step :]
                else:
                    place += step
            content = separator.join(parts)
            step //= 2
    return content
