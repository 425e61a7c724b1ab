"""Every fault many times, at random moments: searches of a fake evaluator on a local cluster, and what each fault did to them.

    python tests/benchmarks/fault_campaign.py --times 20 --out results
    python tests/benchmarks/fault_campaign.py --times 20 --only "worker killed" --only "driver killed"
    python tests/benchmarks/fault_campaign.py --kills 100 --out results         # of the driver and of workers in turn, in one search

Resumable: searches that are in the table are not run again. Writes `faults.csv` (a line a search: all that was promised, counted) and
`faults-moments.csv` (a line a fault: when, whom it hit, and how soon the driver told of it). Ends with exit code 1 if a promise was broken.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from fault_cluster import cluster
from fault_kinds import FAULTS
from fault_rows import Row, Verdict
from fault_run import Run, place
from postgres_server import server

TOGETHER = 5
"""Faults of one search."""
KILLS = ("driver killed", "worker killed")


def main() -> int:
    """Run the protocol; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--only", action="append", choices=sorted(FAULTS))
    parser.add_argument("--out", type=Path, default=Path("results"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    _require_columns(given.out / "faults.csv", Verdict)
    _require_columns(given.out / "faults-moments.csv", Row)
    plans = [("kills", [KILLS[number % 2] for number in range(given.kills)], 0)] if given.kills else _plans(given.times, given.only)
    done = {(row["fault"], int(row["seed"])) for row in _read(given.out / "faults.csv")}
    good = True
    for name, faults, seed in plans:
        if (name, seed) not in done:
            good &= _search(name, faults, seed, given.out)
    return 0 if good else 1


def _plans(times: int, only: Sequence[str] | None) -> list[tuple[str, list[str], int]]:
    """Searches by seed first, so that a campaign that is cut short has seen every fault."""
    chosen = [fault for fault in FAULTS if not only or fault in only]
    rounds = [(seed, fault) for seed in range(-(-times // TOGETHER)) for fault in chosen]
    return [(fault, [fault] * min(TOGETHER, times - seed * TOGETHER), seed) for seed, fault in rounds]


def _search(name: str, faults: list[str], seed: int, out: Path) -> bool:
    """One search on a cluster of its own, so that what a fault has left does not count against the next."""
    on_server = name.startswith("server")
    if on_server:
        with server() as running, cluster() as nodes, place(small=False) as root:
            rows, verdict = Run(name=name, faults=faults, seed=seed, nodes=nodes, root=root, server=running).go()
    else:
        with cluster(namespaces=name == "network cut") as nodes, place(small=name == "disk full") as root:
            rows, verdict = Run(name=name, faults=faults, seed=seed, nodes=nodes, root=root).go()
    _append(out / "faults-moments.csv", Row, rows)
    _append(out / "faults.csv", Verdict, [verdict])
    sys.stdout.write(f"{'kept' if verdict.good else 'BROKE'} {verdict}\n")
    sys.stdout.flush()
    return verdict.good


def _columns(kind: type[Any]) -> list[str]:
    return [field.name for field in fields(kind)]


def _require_columns(file: Path, kind: type[Any]) -> None:
    """A table of another time has other columns, and no row can be added to it."""
    if file.is_file() and file.open().readline().strip().split(",") != _columns(kind):
        raise SystemExit(f"{file} must have the columns {', '.join(_columns(kind))}, but has others; give another --out")


def _read(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.open(newline=""))) if file.is_file() else []


def _append(file: Path, kind: type[Any], rows: Sequence[Any]) -> None:
    new = not file.is_file()
    with file.open("a", newline="") as target:
        writer = csv.DictWriter(target, _columns(kind), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


if __name__ == "__main__":
    sys.exit(main())
