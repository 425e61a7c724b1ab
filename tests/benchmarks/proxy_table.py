"""Which short training to search with: several recipes, each at several epochs, judged on the same architectures and seeds.

    python tests/benchmarks/proxy_table.py results/placebench-PROTOCOL.csv results/placebench-PROTOCOL-lr00.0003.csv ...

The first table also holds the long trainings that are the target; the others are of `placebench.py --lr0 ... --new-lr-scale ...`. Judged
are the base and the anchors on the seeds that all tables have. For every recipe, score, epoch and number of averaged epochs: the noise of
one training after the effect of its seed and with it, the spread of true values, the reliability (the share of the variance between single
trainings that is not noise), the noise-corrected correlation with the long training (posterior mean and 90 %, see
placebench_figures.py), the seconds, and what they buy: reliability x correlation^2 a thousand seconds. Seconds are the first table's, for
a training of any recipe costs the same. Writes proxy-table-PROTOCOL.csv.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from placebench_figures import link, merit, noise_of, seed_adjusted
from placement_model import load, scores

EPOCHS = (3, 5, 7, 9)
AVERAGES = (1, 3)
SCORES = {"mAP50-95": ("map50_95", 1.0), "-val_loss": ("val_loss", -1.0)}


def judged(
    table: pd.DataFrame, shared: Sequence[str], seeds: Sequence[int], target: pd.DataFrame, seconds: float
) -> Iterator[dict[str, Any]]:
    """The rows of one recipe."""
    short = int(table["epochs"].min())
    wanted, repeats = seed_adjusted(target, shared)
    target_noise = noise_of(target).paired * float(np.sqrt(np.mean(1 / repeats)))
    for name, (column, sign) in SCORES.items():
        for epoch in EPOCHS:
            for average in AVERAGES:
                found = scores(table, short, until=epoch, average=average, column=column)
                found = found[found["digest"].isin(shared) & found["seed"].isin(seeds)]
                found = found.assign(value=sign * found["value"])
                noise = noise_of(found)
                means, counts = seed_adjusted(found, shared)
                true = max(float(np.var(means, ddof=1) - noise.paired**2 * np.mean(1 / counts)), 0.0)
                reliability = true / (true + noise.paired**2)
                linked = link(means, wanted, noise.paired * float(np.sqrt(np.mean(1 / counts))), target_noise)
                _, low, high = linked.interval(linked.rho)
                cost = seconds * epoch / short
                yield {
                    "score": name,
                    "epochs": epoch,
                    "average": average,
                    "noise_paired": noise.paired,
                    "noise_unpaired": noise.unpaired,
                    "true_spread": np.sqrt(true),
                    "reliability": reliability,
                    "correlation": linked.mean,
                    "correlation_low": low,
                    "correlation_high": high,
                    "seconds": cost,
                    "merit": merit(reliability, linked.mean, cost),
                }


def main() -> None:
    """Read, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path, nargs="+")
    options = parser.parse_args()
    main_file = options.tables[0]
    tables = {("lr0.001" if file == main_file else file.stem.removeprefix(f"{main_file.stem}-")): load(file) for file in options.tables}
    first = tables["lr0.001"]
    short, long = int(first["epochs"].min()), int(first["epochs"].max())
    target = scores(first, long)
    several = {name: scores(table, short) for name, table in tables.items()}
    shared = sorted(set(target["digest"]).intersection(*(set(found["digest"]) for found in several.values())))
    seeds = sorted(set.intersection(*(set(found.loc[found["digest"].isin(shared), "seed"]) for found in several.values())))
    seconds = float(first[first["epochs"] == short].drop_duplicates(["digest", "seed"])["train_seconds"].median())
    target = target[target["digest"].isin(shared)]
    rows = [{"recipe": name, **row} for name, table in tables.items() for row in judged(table, shared, seeds, target, seconds)]
    found = pd.DataFrame(rows).assign(architectures=len(shared), seeds=len(seeds))
    file = main_file.with_name(main_file.name.replace("placebench-", "proxy-table-", 1))
    found.to_csv(file, index=False, float_format="%.4g")
    sys.stdout.write(found.sort_values("merit", ascending=False).to_string(index=False, float_format="%.3g") + f"\nwritten to {file}\n")


if __name__ == "__main__":
    main()
