"""A real search, killed with SIGKILL at random moments and resumed: what was told, what was left RUNNING, what was trained twice.

    python tests/benchmarks/kill_and_resume.py --data DATA.yaml --space yolo11-cpu --trials 16 --kills 3 --out results

The driver's whole process is killed; its workers must die with it. Kill moments are drawn from `--seed` over the expected length of the
search (`--minutes`). After each kill the record is read as any user could read it. Writes one CSV, a line a segment, named by its
protocol, and ends with exit code 1 if a told trial was lost, one was left RUNNING, or a finished job was trained again.
"""

import argparse
import csv
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from nas_attn.outcome import Snapshot
from nas_attn.record import load_study


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One life of the driver. `told` counts trials that had ended by then; `outcome_files` finished trainings on disk."""

    number: int
    ended: str
    seconds: float
    told: int
    running: int
    outcome_files: int
    lost_told_trials: int
    jobs_trained_twice: int


def told(snapshot: Snapshot) -> dict[str, tuple[str, Mapping[str, float] | None]]:
    """What every ended trial says, by digest."""
    return {t.architecture.digest(): (t.state, t.values) for t in snapshot.trials if t.state != "RUNNING"}


def finished_attempts(folder: Path) -> dict[str, int]:
    """How many attempts at each job ended with an outcome of a whole training."""
    counts: dict[str, int] = {}
    for file in folder.glob("trials/*/*/*/outcome.json"):
        if json.loads(file.read_text())["outcome"]["kind"] == "measured":
            key = str(file.parents[1].relative_to(folder))
            counts[key] = counts.get(key, 0) + 1
    return counts


def live(command: list[str], log: Path, kill_after_s: float | None) -> tuple[str, float]:
    """Run the driver; kill it after a while, or let it end. Returns how it ended and after how many seconds."""
    start = time.monotonic()
    with log.open("a") as sink, subprocess.Popen(command, stdout=sink, stderr=sink) as process:
        try:
            process.wait(timeout=kill_after_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
    return ("killed" if process.returncode == -signal.SIGKILL else f"exit {process.returncode}"), time.monotonic() - start


def main() -> int:
    """Run the protocol; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--space", default="yolo11-cpu")
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--after", type=float, default=0.1, help="share of the expected length before which nothing is killed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--study", type=Path, default=Path("runs/kill-and-resume"))
    parser.add_argument("--out", type=Path, default=Path("results"))
    options = parser.parse_args()
    rng = random.Random(options.seed)
    moments = sorted(rng.uniform(options.after, 0.95) * 60 * options.minutes for _ in range(options.kills))
    waits: list[float | None] = [b - a for a, b in zip([0.0, *moments], moments, strict=False)]
    command = [str(Path(sys.executable).with_name("nas-attn")), "search", options.space, "--data", str(options.data)]
    command += ["--trials", str(options.trials), "--out", str(options.study)]
    segments: list[Segment] = []
    known: dict[str, tuple[str, Mapping[str, float] | None]] = {}
    for number, wait in enumerate([*waits, None]):
        ended, seconds = live(command, options.study.with_suffix(".log"), wait)
        time.sleep(5)  # orphans, if there are any, get time to do harm
        snapshot = load_study(options.study) if (options.study / "study.db").is_file() else None
        now = told(snapshot) if snapshot else {}
        attempts = finished_attempts(options.study)
        segments.append(
            Segment(
                number=number,
                ended=ended,
                seconds=round(seconds, 1),
                told=len(now),
                running=sum(t.state == "RUNNING" for t in snapshot.trials) if snapshot else 0,
                outcome_files=sum(attempts.values()),
                lost_told_trials=sum(now.get(digest) != said for digest, said in known.items()),
                jobs_trained_twice=sum(count > 1 for count in attempts.values()),
            )
        )
        known = now
        sys.stdout.write(f"{segments[-1]}\n")
        sys.stdout.flush()
        if ended == "exit 0":
            break
    options.out.mkdir(parents=True, exist_ok=True)
    name = f"kill-and-resume-{options.space}-{options.data.parent.name}-t{options.trials}-k{options.kills}-seed{options.seed}.csv"
    with (options.out / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Segment)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(segment) for segment in segments)
    last = segments[-1]
    good = last.ended == "exit 0" and not last.running and not any(s.lost_told_trials or s.jobs_trained_twice for s in segments)
    sys.stdout.write(f"{'kept its promises' if good else 'BROKE a promise'}: {options.out / name}\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
