"""How many trials a sampler needs on the placement benchmark's model to be where random search is after 100.

    python tests/benchmarks/placement_trials.py results/placebench-PROTOCOL.csv --draws 20

Every draw is a landscape of its own (`placement_model`: all effects drawn from the posterior of the benchmark), the same for all samplers,
with the noise of single trainings; latency is known before a trial. The measure is the hypervolume of the true values of the returned front
(reference: a fifth of a point of mAP below the base, and the 90th percentile of latency) as a share of the landscape's maximum. `model` and
`random+model` return what the posterior recommends, all others the front of what they observed. One row a draw and sampler: its share after
`--trials` trials, and the first number of trials, in steps of four, at which it was no less than random search's after 100.
Writes placement-trials-PROTOCOL-d<draws>.csv.
"""

import argparse
import csv
import statistics
import sys
from pathlib import Path
from typing import Any

from placement_model import COST, SCORE, Landscape, landscapes

from nas_attn.replay import Run, replay

TRIALS, EVERY = 100, 4
BELOW = 0.002
SAMPLERS = {"random": TRIALS, "random+model": TRIALS, "tpe": TRIALS, "nsga2": TRIALS, "model": 60}


def run(land: Landscape, sampler: str, trials: int, seed: int) -> tuple[Run, tuple[int, ...]]:
    """One search, and the numbers of trials at which its front was judged."""
    base = float(land.table.values[SCORE][land.base])
    found = replay(
        land.table,
        [sampler],
        trials=trials,
        repeats=1,
        noise={SCORE: land.noise},
        known=(COST,),
        reference={SCORE: base - BELOW, COST: "p90"},
        seed=seed,
        every=EVERY if sampler != "random+model" else trials,
    )
    return found.runs[sampler][0], found.rules.grid


def rows(land: Landscape, draw: int, samplers: dict[str, int]) -> list[dict[str, Any]]:
    """All samplers on one landscape."""
    made: list[dict[str, Any]] = []
    target = 0.0
    for sampler, trials in samplers.items():
        one, grid = run(land, sampler, trials, draw)
        target = one.shares[-1] if sampler == "random" else target
        reached = next((n for n, share in zip(grid, one.shares, strict=True) if share >= target), None)
        made.append(
            {"draw": draw, "sampler": sampler, "trials": trials, "share": round(one.shares[-1], 4), "random_at_100": round(target, 4)}
        )
        made[-1] |= {"to_reach": "" if reached is None else reached, "noise": round(land.noise, 5)}
    return made


def main() -> None:
    """Parse, draw, search, write as draws end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--model-trials", type=int, default=SAMPLERS["model"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    source = landscapes(options.table)
    name = options.table.name.replace("placebench-", "placement-trials-", 1)
    file = (options.out or options.table.parent) / f"{name.removesuffix('.csv')}-d{options.draws}.csv"
    done: list[dict[str, Any]] = []
    with file.open("w", newline="") as target:
        writer: csv.DictWriter[str] | None = None
        for draw in range(options.first, options.first + options.draws):
            fresh = rows(source.draw(draw), draw, {**SAMPLERS, "model": options.model_trials})
            writer = writer or csv.DictWriter(target, list(fresh[0]), lineterminator="\n")
            if not done:
                writer.writeheader()
            writer.writerows(fresh)
            target.flush()
            done += fresh
    for sampler in SAMPLERS:
        own = [row for row in done if row["sampler"] == sampler]
        reached = sorted(float("inf") if row["to_reach"] == "" else row["to_reach"] for row in own)
        share = statistics.median(row["share"] for row in own)
        sys.stdout.write(
            f"{sampler}: share {share:.3f} after {own[0]['trials']}, random's at 100 reached after {statistics.median(reached)}\n"
        )
    sys.stdout.write(f"written to {file}\n")


if __name__ == "__main__":
    main()
