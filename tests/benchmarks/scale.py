"""What the driver costs a trial at hundreds of workers: a whole study of thousands of trials on a pool whose trainings take virtual time.

    python tests/benchmarks/scale.py --sampler random --storage sqlite --trials 10000 --out results
    python tests/benchmarks/scale.py --sampler random --storage postgres --trials 10000 --out results

Only time is faked. The driver is `study.run` with the events of `nas-attn search` (the progress bar and the deletion of weights); it runs
in real time, and so does its storage (SQLite with fsync; PostgreSQL on the loopback, with fsync). Workers run in virtual time: a training
"takes" `--seconds` (uniformly 80 % to 120 %), from when its slot has it; a slot that waits for the driver is idle, and that is counted.
What the pool itself does (scores, outcome files) takes no time. 12 sites with 6 placements each, four at most: 691,489 architectures,
36 genes. Latency is told at once, or takes `--measure-seconds` an architecture.

Two files: a timeline with a row every `--every` told trials (driver milliseconds a trial since the row before, share of the workers' time
that was lost waiting for the driver, resident memory), and one row more in `scale-12x6-w<workers>-s<seconds>.csv`: means and percentiles,
and the seconds to open the study again (`open_s` as a driver, `load_s` as a reader). `--minutes` ends a run early: the row says how
many trials it was.
"""

import argparse
import contextlib
import csv
import gc
import heapq
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1]))
import postgres_server
from fake_evaluator import cost
from study_targets import BASE, space

from nas_attn import cli_search, study
from nas_attn.architecture import Architecture
from nas_attn.errors import Interrupted
from nas_attn.export import WEIGHTS
from nas_attn.outcome import Job, Measured, outcome_file_text, outcome_to_dict
from nas_attn.progress import Watch
from nas_attn.protocol import study_settings
from nas_attn.record import Record, load_study
from nas_attn.space import SearchSpace
from nas_attn.spec import SpaceSpec
from nas_attn.work import Done, Task

SITES, SIZES, MOST = 12, 3, 4
LIMITS = {"latency_ratio": 1.35}
EPOCHS = 6


def effect(text: str, scale: float) -> float:
    """A number about 0 that only `text` decides."""
    return scale * random.Random(text).gauss(0, 1)


def ratio(architecture: Architecture) -> float:
    """The latency: a share for each placement."""
    return 1.0 + sum(0.04 + abs(effect(f"latency{p}", 0.03)) for p in architecture.placements)


def scored(job: Job) -> Measured:
    """What a training gives: a sum over placements, and luck; a failed one would be no load worth timing."""
    score = 0.3 + sum(effect(f"map{p}", 0.01) for p in job.architecture.placements)
    score += effect(f"luck{job.architecture.digest()}{job.seed}", 0.003)
    names = ("box_loss", "cls_loss", "dfl_loss", "precision", "recall")
    curve = [
        {
            "epoch": float(e),
            "map50_95": score - 0.01 * (EPOCHS - e),
            "map50": 1.6 * score - 0.01 * (EPOCHS - e),
            **dict.fromkeys(names, 0.123456789),
        }
        for e in range(1, EPOCHS + 1)
    ]
    return Measured(
        map50_95=score,
        map50=1.6 * score,
        curve=tuple(curve),
        gates={str(p.layer): 0.0123456789 for p in job.architecture.placements},
        train_seconds=25.0,
        total_seconds=30.0,
        peak_memory_mib=2345.6,
        batch=16,
        device="cuda",
    )


def serve(folder: Path, task: Task) -> str:
    """The answer of a worker, with the files that it leaves."""
    given = json.loads(task.payload)
    if task.kind == "fit":
        return json.dumps({"fingerprint": "b" * 12, "data": "d" * 12, "code": "versions", "curve": [], "seconds": 1.0, "new_tensors": []})
    if task.kind == "measure":
        found = map(Architecture.from_dict, given["architectures"])
        return json.dumps({"costs": [{"cost": asdict(cost(ratio(a), 0.01))} for a in found]})
    job = Job.from_dict(given["job"])
    done, place = scored(job), job.folder(folder)
    place.mkdir(parents=True)
    (place / WEIGHTS).write_bytes(b"weights")
    (place / "outcome.json").write_text(outcome_file_text(job, done))
    return json.dumps(outcome_to_dict(done))


@dataclass
class VirtualPool:
    """`slots` workers in virtual time. The clock runs with the driver, stands still within the pool, and jumps while the driver waits."""

    folder: Path
    slots: int
    seconds: float
    measure_seconds: float
    end: float
    now: float = 0.0
    driver: float = 0.0
    cpu: float = 0.0
    busy: float = 0.0
    idle: float = 0.0
    turns: list[float] = field(default_factory=list)
    _waiting: deque[Task] = field(default_factory=deque)
    _running: list[tuple[float, int, Task]] = field(default_factory=list)
    _count: int = 0

    def __post_init__(self) -> None:
        self._free = [0.0] * self.slots
        self._begun = 0
        self._left = self._turn = time.perf_counter()
        self._left_cpu = time.process_time()
        self._pooled = 0.0

    def _enter(self) -> float:
        """Back in the pool: the driver's time has passed for the workers, too."""
        entered = time.perf_counter()
        self.now += entered - self._left
        self.driver += entered - self._left
        self.cpu += time.process_time() - self._left_cpu
        return entered

    def _leave(self, entered: float) -> None:
        self._left, self._left_cpu = time.perf_counter(), time.process_time()
        self._pooled += self._left - entered

    def submit(self, task: Task) -> None:
        entered = self._enter()
        if task.kind == "train":
            self._waiting.append(task)
            self._start()
        else:
            count = len(json.loads(task.payload).get("architectures", ()))
            self._run(self.now + count * self.measure_seconds, task)
        self._leave(entered)

    def _run(self, end: float, task: Task) -> None:
        self._count += 1
        heapq.heappush(self._running, (end, self._count, task))

    def _start(self) -> None:
        while self._waiting and self._free:
            task, since = self._waiting.popleft(), heapq.heappop(self._free)
            # A slot's first training and the base's, on which all wait, are no matter of the driver's speed.
            self.idle += self.now - since if self._begun >= self.slots else 0.0
            self._begun += not task.key.startswith("train/0/")
            took = self.seconds * random.Random(task.key).uniform(0.8, 1.2)
            self.busy += took
            self._run(self.now + took, task)

    def wait(self, timeout_s: float | None) -> list[Done]:  # noqa: ARG002
        entered = self._enter()
        self.turns.append(entered - self._turn - self._pooled)
        if entered > self.end:
            raise KeyboardInterrupt
        self.now = max(self.now, self._running[0][0])
        done = []
        while self._running and self._running[0][0] <= self.now:
            end, _, task = heapq.heappop(self._running)
            if task.kind == "train":
                heapq.heappush(self._free, end)
            done.append(Done(task.key, serve(self.folder, task), None))
        self._start()
        self._pooled = 0.0
        self._left = self._turn = time.perf_counter()
        self._left_cpu = time.process_time()
        return done

    def everywhere(self, kind: str, payload: str) -> list[tuple[str, Done]]:  # noqa: ARG002
        return []

    def close(self) -> None:
        self._running.clear()


@dataclass
class Clocks:
    """How long asks and tells took, by the number of the trial."""

    asks: dict[int, float] = field(default_factory=dict)
    tells: dict[int, float] = field(default_factory=dict)

    def watch(self) -> None:
        """Puts stop watches about the record's own functions."""
        for name, kept in (("ask", self.asks), ("ask_many", self.asks), ("tell", self.tells)):
            if hasattr(Record, name):
                setattr(Record, name, self._timed(getattr(Record, name), kept))

    def _timed(self, function: Callable[..., Any], kept: dict[int, float]) -> Callable[..., Any]:
        def timed(record: Record, first: Any, *others: Any) -> Any:
            start = time.perf_counter()
            answer = function(record, first, *others)
            took = time.perf_counter() - start
            asked = answer if isinstance(answer, list) else [answer] if hasattr(answer, "number") else []
            for number in [trial.number for trial in asked] if kept is self.asks else [first]:
                kept[number] = took / max(1, len(asked))
            return answer

        return timed


def rss_mib() -> float:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@dataclass
class Timeline:
    """A row every so many told trials."""

    pool: VirtualPool
    clocks: Clocks
    every: int
    rows: list[dict[str, float]] = field(default_factory=list)
    told: int = 0
    _before: tuple[float, ...] = (0.0, 0.0, 0.0)

    def __call__(self, event: study.Event) -> None:
        self.told += event.kind in ("told", "rejected")
        if event.kind not in ("told", "rejected") or self.told % self.every:
            return
        here = (self.pool.driver + time.perf_counter() - self.pool._left, self.pool.idle, self.pool.busy)
        driver, idle, busy = (a - b for a, b in zip(here, self._before, strict=True))
        self._before = here
        last = [self.clocks.asks[number] for number in sorted(self.clocks.asks)[-self.every :]]
        self.rows.append(
            {
                "trials": self.told,
                "driver_ms": 1e3 * driver / self.every,
                "ask_ms": 1e3 * statistics.fmean(last),
                "lost_share": idle / (idle + busy) if busy else 0.0,
                "virtual_s": self.pool.now,
                "rss_mib": rss_mib(),
            }
        )
        sys.stdout.write(" ".join(f"{k}={v:.4g}" for k, v in self.rows[-1].items()) + "\n")
        sys.stdout.flush()


@contextlib.contextmanager
def storage_of(kind: str) -> Iterator[str | None]:
    """Where the study is kept."""
    if kind == "sqlite":
        yield None
        return
    with postgres_server.server(durable=True) as server:
        yield server.fresh()


def drive(options: argparse.Namespace, folder: Path, storage: str | None) -> tuple[Timeline, dict[str, Any]]:
    """The whole study; the timeline and the row of the summary."""
    spec = SpaceSpec.from_dict(
        {
            "base": BASE,
            "sites": ["P3"],
            "modules": {"LIA": {"f": [8]}},
            "limits": LIMITS,
            "base_seeds": 2,
            "controls": False,
            "seed": options.seed,
        }
    )
    chosen, setup = (
        space(SITES, SIZES, MOST),
        {"folder": str(folder), "train_list": str(folder / "train.txt"), "device": "cuda", "names": list(map(str, range(80)))},
    )
    pool = VirtualPool(folder, options.workers, options.seconds, options.measure_seconds, time.perf_counter() + 60 * options.minutes)
    clocks = Clocks()
    timeline = Timeline(pool, clocks, options.every)
    clocks.watch()
    begun = time.perf_counter()
    with (folder / "console.txt").open("w") as console, Watch(Console(file=console)) as watch, contextlib.suppress(Interrupted):
        cleaning = cli_search._and_clean(watch, folder, storage)

        def on_event(event: study.Event) -> None:
            cleaning(event)
            timeline(event)

        study.run(
            folder,
            spec,
            chosen,
            setup,
            pool,
            trials=options.trials,
            sampler=options.sampler,
            storage=storage,
            name="scale",
            on_event=on_event,
        )
    real, resident = time.perf_counter() - begun, rss_mib()
    both = 1e3 * np.array([clocks.asks[number] + clocks.tells[number] for number in sorted(clocks.asks.keys() & clocks.tells.keys())])
    told = len(clocks.tells)
    row = {
        "sampler": options.sampler,
        "storage": options.storage,
        "trials": told,
        "driver_ms": 1e3 * pool.driver / told,
        "driver_cpu_ms": 1e3 * pool.cpu / told,
        "trials_a_second": told / pool.driver,
        "ask_tell_ms_p50": float(np.quantile(both, 0.5)),
        "ask_tell_ms_p99": float(np.quantile(both, 0.99)),
        "turn_ms_p50": 1e3 * float(np.quantile(pool.turns, 0.5)),
        "turn_ms_p99": 1e3 * float(np.quantile(pool.turns, 0.99)),
        "turn_s_max": max(pool.turns),
        "lost_share": pool.idle / (pool.idle + pool.busy),
        "rss_mib_end": resident,
        "rss_mib_most": max(row["rss_mib"] for row in timeline.rows),
        **reopened(options, folder, spec, chosen, setup, storage),
        "real_s": real,
    }
    return timeline, row


def reopened(
    options: argparse.Namespace, folder: Path, spec: SpaceSpec, chosen: SearchSpace, setup: dict[str, Any], storage: str | None
) -> dict[str, float]:
    """Seconds until a next driver has the study, and until a reader has."""
    gc.collect()
    start = time.perf_counter()
    Record.open(
        folder,
        settings=study_settings(folder, spec, chosen, setup, options.sampler),
        objectives=spec.objectives,
        space=chosen,
        sampler=options.sampler,
        seed=spec.seed,
        limits=spec.limits,
        storage=storage,
        name="scale",
    ).close()
    opened = time.perf_counter()
    load_study(folder, storage)
    return {"open_s": opened - start, "load_s": time.perf_counter() - opened}


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sampler", default="random", choices=["model", "tpe", "nsga2", "random"])
    parser.add_argument("--storage", default="sqlite", choices=["sqlite", "postgres"])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--measure-seconds", type=float, default=0.0)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="nas-attn-scale-"))
    try:
        with storage_of(options.storage) as storage:
            (folder / "study").mkdir()
            timeline, row = drive(options, folder / "study", storage)
    finally:
        shutil.rmtree(folder)
    sys.stdout.write("\n".join(f"{k:18} {v if isinstance(v, str) else f'{v:.4g}'}" for k, v in row.items()) + "\n")
    stem = f"scale-{SITES}x{2 * SIZES}-w{options.workers}-s{options.seconds:g}"
    options.out.mkdir(parents=True, exist_ok=True)
    write(options.out / f"{stem}-{options.sampler}-{options.storage}-t{options.trials}.csv", timeline.rows)
    summary = options.out / f"{stem}.csv"
    with summary.open(newline="") if summary.is_file() else contextlib.nullcontext([]) as file:
        others = [r for r in csv.DictReader(file) if (r["sampler"], r["storage"]) != (row["sampler"], row["storage"])]
    write(summary, [*others, row])


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    """Rows of numbers, short."""
    with file.open("w", newline="") as target:
        writer = csv.DictWriter(target, list(rows[0]))
        writer.writeheader()
        writer.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


if __name__ == "__main__":
    main()
