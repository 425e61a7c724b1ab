"""Racing against full-length trials on the placement benchmark's curves: epochs spent, and the quality of the returned front.

    python tests/benchmarks/racing_replay.py results/placebench-PROTOCOL.csv [--repeats 40] [--rungs 1,3,9 --rungs 5,9]

Every architecture's training on seed 0 is met in random orders, the base first. Full length: all are trained to the last epoch. Racing:
`nas_attn.racing` stops some at a rung; a training that is stopped has cost its epochs so far. Fewer: full-length trainings of as many
architectures as racing's epochs pay for, in the same order: what a search does that has no rungs. Each returns the front of the accuracies
at the last epoch against known costs (the front of what finished). Its quality is the hypervolume of *true* values, twice: true by the
posterior means of `placement_model`, fitted to all trainings, and by the scores at the last epoch, as a share of the full-length front's.

Costs are the measured latency ratios. Without a costs file `--stand-in` counts placements instead, which is of use for development alone.
Writes racing-replay-PROTOCOL.csv beside the table: medians, and the 5th and 95th percentile over the orders.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from placement_model import COST, PlacementModel, load, load_costs, trainings

from nas_attn import pareto
from nas_attn.racing import simulate

Floats = NDArray[np.float64]
PLANE = ("maximize", "minimize")
RUNGS = ((1, 3, 9), (3, 9), (5, 9), (7, 9), (5, 7, 9))
DRAWS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A architectures: `curves` (A, epochs) of the score, `costs` (A,), what is taken for `truths` by name (A,), the base's row."""

    curves: Floats
    costs: Floats
    truths: dict[str, Floats]
    base: int

    def front(self, rows: Sequence[int]) -> list[int]:
        """The rows that are non-dominated by the score at the last epoch."""
        return [rows[i] for i in pareto.front([[self.curves[r, -1], self.costs[r]] for r in rows], PLANE)]

    def quality(self, rows: Sequence[int], truth: str) -> float:
        """The hypervolume of the true values of some rows, against the worst of all architectures."""
        values = self.truths[truth]
        # A little beyond the worst: the slowest and the weakest count as well.
        reference = (values.min() - 0.05 * np.ptp(values), self.costs.max() + 0.05 * np.ptp(self.costs))
        return pareto.hypervolume([[values[r], self.costs[r]] for r in rows], reference, PLANE)


def field_of(table: pd.DataFrame, costs: pd.Series | None, seed: int = 0) -> Field:
    """The architectures that have a whole curve on seed 0 and a cost; `costs` by digest, or None for the number of placements."""
    epochs = int(table["epochs"].min())
    data = trainings(table)
    model = PlacementModel(data, seed)
    means = pd.Series(model.true_values(model.draws(DRAWS, seed)).mean(axis=0), index=data.digests)
    if costs is None:
        costs = pd.Series((data.codes > 0).sum(axis=1).astype(float), index=data.digests)
    first = table[(table["epochs"] == epochs) & (table["seed"] == 0)]
    curves = first.pivot_table(index="digest", columns="epoch", values="map50_95").dropna()
    curves = curves.loc[[digest for digest in curves.index if digest in costs.index]]
    if data.base is None or data.digests[data.base] not in curves.index:
        raise SystemExit("The base has no finished training on seed 0 with a cost yet; let the benchmark run on.")
    return Field(
        curves=curves.to_numpy(dtype=float),
        costs=costs.reindex(curves.index).to_numpy(dtype=float),
        truths={"posterior mean": means.reindex(curves.index).to_numpy(dtype=float), "last epoch": curves.to_numpy(dtype=float)[:, -1]},
        base=list(curves.index).index(data.digests[data.base]),
    )


def race(field: Field, rungs: Sequence[int], order: Sequence[int], slots: int) -> dict[str, float]:
    """One order: the share of epochs that racing spends, and the front qualities of racing and of fewer trials, beside the full ones."""
    reached = simulate(field.curves.tolist(), field.costs.tolist(), rungs, order, slots=slots, always=(field.base,))
    last, everyone = rungs[-1], list(range(len(reached)))
    spent = sum(reached)
    sequence = [field.base, *(row for row in order if row != field.base)]
    fewer = sequence[: max(1, spent // last)]
    finished = [row for row in everyone if reached[row] == last]
    full = field.front(everyone)
    found = {"epochs": spent / (last * len(reached)), "finished": len(finished) / len(reached)}
    found["front kept"] = len(set(full) & set(finished)) / len(full)
    for truth in field.truths:
        whole = field.quality(full, truth)
        found[f"racing: {truth}"] = field.quality(field.front(finished), truth) / whole
        found[f"fewer: {truth}"] = field.quality(field.front(fewer), truth) / whole
    return found


def replay(field: Field, rungs: Sequence[int], repeats: int, slots: int, seed: int) -> pd.DataFrame:
    """One line an order."""
    orders = [np.random.default_rng((seed, k)).permutation(len(field.curves)).tolist() for k in range(repeats)]
    return pd.DataFrame([race(field, rungs, order, slots) for order in orders])


def summarised(runs: pd.DataFrame, rungs: Sequence[int], slots: int) -> list[dict[str, Any]]:
    """Medians and percentiles over the orders."""
    notes = {
        "epochs": "share of the epochs of full-length trials",
        "finished": "share of architectures trained to the end",
        "front kept": "share of the full-length front that racing finished",
    }
    rows = []
    for name in runs:
        low, middle, high = runs[name].quantile([0.05, 0.5, 0.95])
        note = notes.get(name, "hypervolume of true values, share of the full-length front's")
        rungs_text = "-".join(map(str, rungs))
        rows.append({"rungs": rungs_text, "slots": slots, "quantity": name, "value": middle, "low": low, "high": high, "note": note})
    return rows


def main() -> None:
    """Read, replay, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--rungs", action="append", help="epochs of the rungs, the last the proxy's; may be given several times")
    parser.add_argument("--slots", type=int, default=2, help="trainings that wait or run at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stand-in", action="store_true", help="the number of placements for a cost; for development alone")
    options = parser.parse_args()
    table = load(options.table)
    costs = None if options.stand_in else load_costs(options.table).set_index("digest")[COST]
    field = field_of(table, costs, options.seed)
    wanted = [tuple(map(int, text.split(","))) for text in options.rungs or ()] or RUNGS
    rows: list[dict[str, Any]] = []
    for rungs in wanted:
        rows += summarised(replay(field, rungs, options.repeats, options.slots, options.seed), rungs, options.slots)
    found = pd.DataFrame(rows).assign(architectures=len(field.curves), orders=options.repeats, cost="placements" if costs is None else COST)
    sys.stdout.write(found.drop(columns=["note", "slots"]).to_string(index=False, float_format="%.3f") + "\n")
    if costs is None:
        sys.stdout.write("costs are a stand-in: nothing is written\n")
        return
    file = options.table.with_name(options.table.name.replace("placebench-", "racing-replay-", 1))
    found.to_csv(file, index=False, float_format="%.6g")
    sys.stdout.write(f"written to {file}\n")


if __name__ == "__main__":
    main()
