"""How much of YOLOBench's front every sampler finds in 150 evaluations, side by side, invalid combinations charged and not.

    python tests/benchmarks/yolobench.py --table DATA/yolobench/yolobench.csv --out results

Genes: family, depth, width, imgsz; mAP50-95 on VOC from scratch up, TensorRT milliseconds on an A40 down. The reference point is the
table's worst value of both, so that the whole front counts. Two scales of latency:

- `ms`: milliseconds as they are, where the few slow models span most of the area;
- `logms`: their logarithm, in which a tenth less is worth as much for a fast model as for a slow one.

Besides the samplers of `nas-attn` there are Optuna's as they come: NSGA-II with a population of 50 and TPE with independent genes.
`random+model` returns what the model's posterior recommends of what random search evaluated.
"""

import argparse
import csv
import sys
from dataclasses import replace as altered
from pathlib import Path

import numpy as np
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler

from nas_attn.replay import Replay, replay
from nas_attn.table import Table, read_table

GENES = ("family", "depth", "width", "imgsz")
SCORE, LATENCY = "voc_scratch_map50_95", "a40_tensorrt_ms"
SAMPLERS = "model,tpe,nsga2,random,random+model,nsga2-optuna,tpe-optuna"


def nsga2_optuna(seed: int) -> BaseSampler:
    """NSGA-II as Optuna ships it: a population of 50."""
    return NSGAIISampler(seed=seed)


def tpe_optuna(seed: int) -> BaseSampler:
    """TPE as Optuna ships it: every gene by itself."""
    return TPESampler(seed=seed)


def scaled(table: Table, scale: str) -> Table:
    """The table with its latency on the scale."""
    return table if scale == "ms" else altered(table, values={**table.values, LATENCY: np.log(table.values[LATENCY])})


def lines(found: Replay) -> list[dict[str, object]]:
    """A line a sampler and number of trials, and how many trials were lost to invalid and repeated proposals in the end."""
    rows: list[dict[str, object]] = []
    for name, curve in found.summary()["samplers"].items():
        shares, share = found.shares(name), curve["hypervolume_share"]
        for k, trials in enumerate(curve["trials"]):
            rows.append({"sampler": name, "trials": trials})
            rows[-1] |= {key: round(share[key][k], 4) for key in ("median", "low", "high")}
            rows[-1] |= {"mean": round(float(shares[:, k].mean()), 4), "sd": round(float(shares[:, k].std(ddof=1)), 4)}
            rows[-1] |= {f"to_{key}": reached["median"] for key, reached in curve["trials_to_reach"].items()}
            rows[-1] |= {"invalid": curve["charged"]["invalid"], "duplicates": curve["charged"]["duplicates"]}
    return rows


def main() -> None:
    """Run the protocols and write a CSV each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--samplers", default=SAMPLERS)
    parser.add_argument("--trials", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--scales", default="ms,logms")
    parser.add_argument("--charges", default="free,charged")
    parser.add_argument("--out", type=Path, default=Path("results"))
    options = parser.parse_args()
    table = read_table(options.table, GENES, {SCORE: "maximize", LATENCY: "minimize"})
    options.out.mkdir(parents=True, exist_ok=True)
    for charge in options.charges.split(","):
        for scale in options.scales.split(","):
            found = replay(
                scaled(table, scale),
                options.samplers.split(","),
                trials=options.trials,
                repeats=options.repeats,
                known=(LATENCY,),
                seed=options.seed,
                charge_invalid=charge == "charged",
                workers=options.workers,
                makers={"nsga2-optuna": nsga2_optuna, "tpe-optuna": tpe_optuna},
            )
            protocol = f"{charge}-{scale}-t{options.trials}-r{options.repeats}-seed{options.seed}"
            file = options.out / f"simulate-yolobench-{protocol}.csv"
            rows = lines(found)
            with file.open("w", newline="") as target:
                writer = csv.DictWriter(target, list(rows[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
            sys.stdout.write(f"{file}: reference {found.rules.reference}\n")
            for row in rows:
                if row["trials"] in (50, 60, 100, options.trials):
                    sys.stdout.write("  " + ", ".join(f"{key} {value}" for key, value in row.items()) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
