"""One search that faults are done to: its driver, begun again as a supervisor would, and whether every promise was kept in the end.

The evaluator is a pure function and the sampler draws at random, so that the digests must be those of the same search undisturbed.
"""

import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fake_evaluator import Fake, executions
from fault_cluster import Nodes
from fault_copies import Copies
from fault_driver import CHOICES, undisturbed
from fault_kinds import FAULTS, Fault
from fault_nodes import HELD
from fault_record import often_told
from fault_rows import QUIET, Row, Verdict, shown, sign
from study_targets import BASE

from nas_attn.architecture import Architecture
from nas_attn.files import write_atomic
from nas_attn.record import load_study
from nas_attn.sampler import Mirror, ask_seed

WORKERS = 4
PACES_S = {"between": "1.2", "during": "3", "held": "6", "after": "0.02"}
"""What a training takes between two faults, during one, during one that holds a training (the others), and when all are over."""
DEADLINE_S = "8"
APART = 16
"""Trials from one fault to the next."""
BUDGET = 40
"""Trials a fault: more than begin while even a slow machine does and undoes one, so that no search ends before its faults do."""
LIVES_S = 900.0


@dataclass
class Run:
    """The search of one fault; `hit` are digests whose worker was killed, which must not happen twice; `doubled` had two live copies."""

    name: str
    faults: Sequence[str]
    seed: int
    nodes: Nodes
    root: Path
    server: Any = None
    trials: int = 0
    cpus: int = 2
    others: int = 3
    first: int = 4
    apart: int = APART
    fake: dict[str, Any] = field(default_factory=dict)
    hit: set[str] = field(default_factory=set)
    torn: set[str] = field(default_factory=set)
    doubled: set[str] = field(default_factory=set)
    hits: list[str] = field(default_factory=list)
    armed: dict[str, str] = field(default_factory=dict)
    poisons: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    told: dict[str, Any] = field(default_factory=dict)
    lost: int = 0
    drivers: int = 0
    broken: list[str] = field(default_factory=list)
    driver: Any = None
    storage: str | None = None
    kinds: Mapping[str, Fault] = field(default_factory=lambda: FAULTS)
    _mark: int = 0
    _hit: str = ""

    def __post_init__(self) -> None:
        self.trials = 10 + BUDGET * len(self.faults)
        self.data, self.clock, self.log, self.pace, self.triggers, self.folder, holds = (
            self.root / name for name in ("data", "clock", "driver.log", "pace", "armed.json", "study", "holds")
        )
        for folder in (self.folder, self.data, holds):
            folder.mkdir()
        self.copies = Copies(self.folder, holds)
        # Where a training is held every seat is taken, so that each node trains, one that has just come as well.
        self.held = bool(set(self.faults) & set(HELD))
        self.workers = self.cpus * self.others if self.held else WORKERS
        self.clock.write_text("0")
        self.pace.write_text(PACES_S["between"])
        self.log.touch()
        self.storage = self.server.fresh() if any(fault.startswith("server") for fault in self.faults) else None
        self.fake = {"pace": str(self.pace), "data": str(self.data), "armed": str(self.triggers), **_special(self.faults)}
        self.fake |= {"holds": str(holds)} if self.held else {}

    # -- the driver ------------------------------------------------------------------------------------------------------------------------

    def command(self) -> list[str]:
        words = [sys.executable, str(Path(__file__).with_name("fault_driver.py")), str(self.folder), "--address", self.nodes.address]
        words += ["--clock", str(self.clock)]
        words += ["--trials", str(self.trials), "--workers", str(self.workers), "--fake", json.dumps(self.fake), "--deadline-s", DEADLINE_S]
        return self.nodes.inside([*words, *(["--storage", self.storage] if self.storage else [])])

    def environment(self) -> dict[str, str]:
        return os.environ | self.nodes.environment

    def start_driver(self) -> None:
        self.remember()
        self.drivers += 1
        with self.log.open("a") as log:
            self.driver = subprocess.Popen(self.command(), env=self.environment(), stdout=log, stderr=log)

    def end_driver(self, number: int) -> int:
        """Sends a signal; the exit code. `ip netns exec` becomes what it runs, so that the pid is the driver's."""
        self.driver.send_signal(number)
        return self.await_driver(60)

    def await_driver(self, wait_s: float) -> int:
        return int(self.driver.wait(wait_s))

    def remember(self) -> None:
        """What has been told by now must stay; counts what does not."""
        now = {}
        with contextlib.suppress(Exception):  # before the study's first moment there is none to read
            snapshot = load_study(self.folder, self.storage)
            now = {t.architecture.digest(): (t.state, t.values) for t in snapshot.trials if t.state != "RUNNING"}
        self.lost += sum(now.get(digest) != said for digest, said in self.told.items())
        self.told = now

    # -- what a fault may ask --------------------------------------------------------------------------------------------------------------

    def note(self, words: str) -> None:
        self.notes.append(words)

    def require(self, held: bool, words: str) -> None:
        if not held:
            self.broken.append(words)

    def arm(self, what: str) -> None:
        """From now on the evaluator does that (`Fake.poison`, `hangs`, `unfit`) to a trial that is soon asked for."""
        last = max(int(number) for number in re.findall(r" asked trial (\d+)", self.log.read_text()))
        self.armed[what] = asked(last + 8)
        self.hit.add(self.armed[what])
        if what == "poison":
            self.poisons.add(self.armed[what])
        write_atomic(self.triggers, lambda file: file.write_text(json.dumps(self.armed)))

    def trained_by(self) -> dict[int, str]:
        """The digest that each worker's process began last."""
        file = self.folder / "pids.log"
        lines = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
        return {int(line[0]): line[1] for line in lines if len(line) == 2}

    def await_event(self, words: str, wait_s: float, since: int | None = None) -> bool:
        """Waits until the driver has said something, since the fault began, or since its log was so long; whether it has."""
        end, since = time.monotonic() + wait_s, self.mark if since is None else since
        while words not in self.said()[since:]:
            if time.monotonic() > end or self.driver.poll() is not None:
                self.require(False, f"the driver never said {words!r}")
                return False
            time.sleep(0.05)
        return True

    def said(self) -> str:
        """All that the drivers have said."""
        return self.log.read_text()

    def number(self, digest: str) -> int:
        """The number of the trial with that digest."""
        return next(number for number in range(self.trials) if asked(number) == digest)

    def hit_by(self, words: str) -> None:
        """The fault has had its effect, which these words tell."""
        self._hit = words

    def probe(self, code: str, *arguments: str) -> str:
        """Python beside the cluster's head, connected to it."""
        words = self.nodes.inside([sys.executable, "-c", code, self.nodes.address, *arguments])
        done = subprocess.run(words, env=self.environment(), capture_output=True, text=True, timeout=90, check=False)
        self.require(done.returncode == 0, done.stderr[-300:])
        return done.stdout

    @property
    def mark(self) -> int:
        return self._mark

    # -- the whole -------------------------------------------------------------------------------------------------------------------------

    def go(self) -> tuple[list[Row], Verdict]:
        """Runs the search with its faults to its end."""
        rng, began, rows = random.Random(f"{self.name}/{self.seed}"), time.monotonic(), []
        try:
            if "network cut" in self.faults:
                self.nodes.require_leaf(self.cpus)
            self.start_driver()
            for number, fault in enumerate(self.faults):
                # A fault that holds a training lasts long: the next one counts from its end.
                least = max(self.first, self._begun()) if self.held else self.first + self.apart * number
                self._await_begun(least + rng.randrange(max(1, self.apart - 2)))
                rows.append(self._do(number, fault, rng))
            self._go_at("after")
            self._await_end(began)
            return rows, self._judge(began)
        finally:
            if self.driver is not None and self.driver.poll() is None:
                self.driver.kill()
                self.driver.wait()

    def _do(self, number: int, fault: str, rng: random.Random) -> Row:
        self._mark, at, start, notes = len(self.log.read_text()), time.time(), time.monotonic(), len(self.notes)
        begun, self._hit = self._begun(), ""
        self._go_at("held" if fault in HELD else "during")
        self.kinds[fault](self, rng)
        seconds = time.monotonic() - start
        if self.driver.poll() == 0:
            raise AssertionError(f"The search must outlast its faults, but ended during {fault!r} number {number}; give it more trials")
        first = self._first_sign(fault)
        self._go_at("between")
        hit = self._hit or (sign(first[1]) if first and fault not in HELD else "")
        self.hits += [hit] if hit else []
        seen, said = (round(max(0.0, first[0] - at), 1), first[1]) if first else ("", "; ".join(self.notes[notes:]))
        return Row(
            fault=fault, seed=self.seed, number=number, begun=begun, seconds=round(seconds, 1), seen_s=seen, hit=hit, said=said[:160]
        )

    def _go_at(self, pace: str) -> None:
        write_atomic(self.pace, lambda file: file.write_text(PACES_S[pace]))

    def _first_sign(self, fault: str) -> tuple[float, str] | None:
        """The first event since the fault that tells of a loss, a wait, or an adoption; within a minute, while the search runs."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            for line in self.log.read_text()[self._mark :].splitlines():
                time_s, _, words = line.partition(" ")
                if words.partition(" ")[0] in ("lost", "adopted", "unusable", "took", "error") and time_s.replace(".", "").isdigit():
                    return float(time_s), words
            if self.driver.poll() is not None or fault in QUIET:
                return None
            time.sleep(0.1)
        return None

    def _begun(self) -> int:
        return sum(line.startswith(("start", "again")) for line in executions(self.folder))

    def _await_begun(self, count: int) -> None:
        end = time.monotonic() + LIVES_S
        while self._begun() < count and time.monotonic() < end:
            if self.driver.poll() is not None:
                self._restart_or_fail()
                if self.driver.returncode == 0:
                    break
            time.sleep(0.05)
        left = self.trials + 1 - self._begun()  # the base is trained twice
        if self.driver.poll() == 0 or left < 2 * self.workers:
            raise AssertionError(f"A fault must come while enough of the search is left, but {left} of {self.trials} trainings are")

    def _await_end(self, began: float) -> None:
        while time.monotonic() - began < LIVES_S * (1 + len(self.faults) / 8):
            code = self.driver.poll()
            if code == 0:
                return
            if code is not None:
                self._restart_or_fail()
            time.sleep(0.1)
        self.require(False, "the search did not end")

    def _restart_or_fail(self) -> None:
        """A supervisor's part: the same command again."""
        if self.driver.returncode != 0:
            self.require(self.drivers < 3 + 3 * len(self.faults), f"the driver ended {self.drivers} times: {self.log.read_text()[-300:]}")
            time.sleep(1)
            self.start_driver()

    def _judge(self, began: float) -> Verdict:
        self.remember()
        snapshot = load_study(self.folder, self.storage)
        # What kills its workers is told FAIL and does not count, so that one more is asked for.
        reference = expected(self.root / "undisturbed", self.trials + len(self.poisons), Fake(**{**self.fake, **CALM}))
        digests = [trial.architecture.digest() for trial in snapshot.trials]
        failed = {trial.architecture.digest() for trial in snapshot.trials if trial.kind == "failure"}
        self.require(failed == self.poisons, f"only {self.poisons} may fail, but {failed} did")
        self.broken += often_told(snapshot, self.said(), self.doubled)
        again = [line.split()[1].rpartition("/")[0] for line in executions(self.folder) if line.startswith("again")]
        again = [job for job in again if not any(f"/{job}/" in torn for torn in self.torn)]  # what was torn was no outcome
        return Verdict(
            fault=self.name,
            seed=self.seed,
            faults=len(self.faults),
            hits=shown(self.faults, self.hits),
            trials=len(digests),
            drivers=self.drivers,
            attempts=self._begun(),
            seconds=round(time.monotonic() - began, 1),
            lost_told=self.lost,
            left_running=sum(trial.state == "RUNNING" for trial in snapshot.trials),
            trained_twice=len(again),
            other_digests=len(set(digests) ^ set(reference)) + abs(len(digests) - len(reference)),
            broken="; ".join(self.broken)[:300],
        )


CALM: Mapping[str, Any] = {"pace": "", "poison": "", "hangs": "", "unfit": "", "armed": "", "crowded": 0, "data": "", "holds": ""}


def expected(folder: Path, trials: int, fake: Fake) -> list[str]:
    """The digests of the same search undisturbed."""
    undisturbed(folder, trials, fake)
    found = [trial.architecture.digest() for trial in load_study(folder).trials]
    shutil.rmtree(folder)
    return found


_ASKED: list[str] = [Architecture(BASE).digest()]


def asked(number: int) -> str:
    """The digest of the trial of that number, whatever happens."""
    mirror = Mirror({"map50_95": "maximize", "latency_ratio": "minimize"}, CHOICES.genes, "random", {})
    while len(_ASKED) <= number:
        found = mirror.choose(CHOICES, ask_seed(0, len(_ASKED)), _ASKED)
        assert found is not None
        _ASKED.append(found[0].digest())
    return _ASKED[number]


def _special(faults: Sequence[str]) -> dict[str, Any]:
    """What the evaluator does of itself throughout a run with such faults."""
    return ({"fitted": 6} if "worker hangs" in faults else {}) | ({"crowded": 30} if "GPU memory" in faults else {})


@contextlib.contextmanager
def place(small: bool) -> Iterator[Path]:
    """A folder for a run; on a small file system of its own where the disk shall be full."""
    root = Path(tempfile.mkdtemp(prefix="nas-attn-fault-"))
    try:
        if small:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "none", str(root)], check=True)
        yield root
    finally:
        if small:
            subprocess.run(["umount", str(root)], check=True)
        shutil.rmtree(root)
