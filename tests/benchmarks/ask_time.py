"""Seconds of one ask at several numbers of finished trials, beside Optuna's TPE on the same table, in turn.

    python tests/benchmarks/ask_time.py --out results/ask-time-8x5-n100000.csv

100,000 candidates drawn from 8 sites x 5 options, additive and pairwise effects with noise, latency known. TPE is multivariate, on the same
genes and both objectives. Asks take turns; one row a number of trials: median and range over `--rounds` asks.
"""

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna

sys.path.insert(0, str(Path(__file__).parents[1]))
from landscapes import OBJECTIVES, candidates, codes_of, truth_of

from nas_attn.guide import ModelSampler
from nas_attn.sampler import make

SITES, OPTIONS, COUNT = 8, 5, 100_000


def study_of(sampler: optuna.samplers.BaseSampler, trials: list[optuna.trial.FrozenTrial]) -> optuna.Study:
    """An in-memory study that holds the trials already."""
    study = optuna.create_study(directions=list(OBJECTIVES.values()), sampler=sampler)
    study.add_trials(trials)
    return study


def seconds(ask: Callable[[], object]) -> float:
    start = time.perf_counter()
    ask()
    return time.perf_counter() - start


def main() -> None:
    """Parse, time, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", default="100,500,2000")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rng = np.random.default_rng(0)
    all_codes = codes_of(SITES, OPTIONS, SITES)
    codes = all_codes[np.sort(rng.choice(len(all_codes), COUNT, replace=False))]
    latency = 1 + sum((rng.gamma(2.0, 0.02, OPTIONS) * (np.arange(OPTIONS) > 0))[codes[:, g]] for g in range(SITES))
    truth = truth_of(codes, OPTIONS, rng)
    space = candidates(codes, OPTIONS, latency)
    distributions = {name: optuna.distributions.CategoricalDistribution(choices) for name, choices in space.genes.items()}
    rows = []
    for count in map(int, options.trials.split(",")):
        trials = [
            optuna.trial.create_trial(
                params={name: choices[code] for (name, choices), code in zip(space.genes.items(), codes[row].tolist(), strict=True)},
                distributions=distributions,
                values=[float(truth[row] + 0.3 * rng.standard_normal()), float(latency[row])],
            )
            for row in rng.choice(COUNT, count, replace=False)
        ]
        spent: dict[str, list[float]] = {"model": [], "tpe": []}
        for turn in range(options.rounds):
            model = study_of(ModelSampler(space, OBJECTIVES, turn), trials)
            spent["model"].append(seconds(lambda study=model: study.ask(distributions)))
            tpe = study_of(make("tpe", turn), trials)
            spent["tpe"].append(seconds(lambda study=tpe: study.ask(distributions)))
        for name, times in spent.items():
            rows.append({"sampler": name, "trials": count, "median_s": statistics.median(times), "low_s": min(times), "high_s": max(times)})
            sys.stdout.write(f"{rows[-1]}\n")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({key: f"{value:.4f}" if isinstance(value, float) else value for key, value in row.items()} for row in rows)


if __name__ == "__main__":
    main()
