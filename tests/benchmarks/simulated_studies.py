"""Whole simulated studies on landscapes whose truth is known: what is found, what is claimed of it, and how often a claim is wrong.

    python tests/benchmarks/simulated_studies.py --kind dense --studies 20 --out results
    python tests/benchmarks/simulated_studies.py --kind null --studies 100 --repeats 15 --out results
    python tests/benchmarks/simulated_studies.py --kind single --studies 100 --repeats 15 --out results

Sites x options with additive and pairwise effects, in mAP points (0 to 100), each study on a landscape of its own. A study: the base with
`--base-seeds` seeds, `--trials` trials by the model sampler with one noisy score each, all with seed 0 as in a search, then at most
`--repeats` more trainings where they settle most. `--seed-share` is the part of the noise's variance that all trainings with one seed have
in common.

`dense`: effects everywhere, true SD 0.46, all sites may be filled. `null`: no effect at all. `single`: one placement is worth 0.5, nothing
else anything. `null` and `single` allow three placements, as searches do. One row a study: the share of the true optimum's hypervolume that
the recommended front has (reference: base - 0.2 points and the 90th percentile of latency, both true), the pick (the highest expected gain
of the recommended front, with and without the bar of `claim.SURE`), its claimed and true gain, and of how many recommended members the 90 %
interval of the gain holds the truth.
"""

import argparse
import csv
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from landscapes import OBJECTIVES, candidates, codes_of, tried, truth_of

from nas_attn import pareto
from nas_attn.candidates import Candidates, Codes, Floats
from nas_attn.claim import SURE, claims, worth_repeating
from nas_attn.propose import Tried, propose

SITES, OPTIONS, SD, NOISE, SINGLE = 7, 5, 0.46, 0.3, 0.5
DIRECTIONS = tuple(OBJECTIVES.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What came of one study; gains in points."""

    kind: str
    study: int
    trials: int
    repeats: int
    hypervolume_share: float
    best_possible_gain: float
    claimed_gain: float
    true_gain: float
    sure: bool
    sure_gain: float
    intervals: int
    held: int
    seconds_an_ask: float


class Run:
    """One study under way."""

    def __init__(self, options: argparse.Namespace, number: int) -> None:
        self.options, self.number = options, number
        rng = np.random.default_rng([options.seed, number])
        self.codes: Codes = codes_of(SITES, OPTIONS, SITES if options.kind == "dense" else 3)
        each = rng.gamma(2.0, 0.02, (SITES, OPTIONS)) * (np.arange(OPTIONS) > 0)
        self.latency: Floats = 1 + sum(table[self.codes[:, g]] for g, table in enumerate(each))
        self.truth = self._truth(rng)
        self.candidates: Candidates = candidates(self.codes, OPTIONS, self.latency)
        self.noise = np.random.default_rng([options.seed, number, 1])
        self.rows: list[int] = []
        self.seeds: list[int] = []
        self.luck = NOISE * np.sqrt(options.seed_share) * self.noise.standard_normal(options.base_seeds + options.repeats + 1)
        self.values: list[float] = []

    def _truth(self, rng: np.random.Generator) -> Floats:
        if self.options.kind == "dense":
            return np.asarray(truth_of(self.codes, OPTIONS, rng, sd=SD))
        site, option = int(rng.integers(SITES)), int(rng.integers(1, OPTIONS))
        return np.where(self.codes[:, site] == option, SINGLE if self.options.kind == "single" else 0.0, 0.0)

    def train(self, row: int) -> None:
        seed = self.rows.count(row)
        own = NOISE * np.sqrt(1 - self.options.seed_share) * self.noise.standard_normal()
        self.rows.append(row)
        self.seeds.append(seed)
        self.values.append(float(self.truth[row] + self.luck[seed] + own))

    def search(self) -> float:
        for _ in range(self.options.base_seeds):
            self.train(0)
        start = time.perf_counter()
        for turn in range(self.options.trials - 1):
            row = propose(self.candidates, OBJECTIVES, self.seen(), 7919 * self.number + turn)
            if row is None:
                break
            self.train(row)
        seconds = (time.perf_counter() - start) / max(self.options.trials - 1, 1)
        for turn in range(self.options.repeats):
            row = worth_repeating(self.candidates, OBJECTIVES, self.seen(), 0, (), 7919 * self.number + turn)
            if row is None:
                break
            self.train(row)
        return seconds

    def seen(self) -> Tried:
        return tried(self.codes, self.latency, self.rows, self.values, seeds=np.array(self.seeds, dtype=np.int64))

    def result(self) -> Study:
        seconds = self.search()
        found = claims(self.candidates, OBJECTIVES, self.seen(), 0, self.number)
        front = [claim for claim in found if claim.expected]
        best = max(front, key=lambda claim: claim.gain)
        sure = [claim for claim in front if claim.row and claim.beats_base >= SURE]
        others = [claim for claim in front if claim.row]
        return Study(
            kind=self.options.kind,
            study=self.number,
            trials=self.options.trials,
            repeats=len(self.rows) - self.options.trials - self.options.base_seeds + 1,
            hypervolume_share=self._volume([c.row for c in front]) / self._volume(self._optimum()),
            best_possible_gain=float(self.truth.max()),
            claimed_gain=best.gain,
            true_gain=float(self.truth[best.row]),
            sure=bool(sure),
            sure_gain=float(self.truth[max(sure, key=lambda c: c.gain).row]) if sure else 0.0,
            intervals=len(others),
            held=sum(c.gain_low <= self.truth[c.row] <= c.gain_high for c in others),
            seconds_an_ask=seconds,
        )

    def _optimum(self) -> list[int]:
        return list(pareto.front(np.stack([self.truth, self.latency], axis=1).tolist(), DIRECTIONS))

    def _volume(self, rows: list[int]) -> float:
        reference = [-0.2, float(np.quantile(self.latency, 0.9))]
        return pareto.hypervolume(np.stack([self.truth[rows], self.latency[rows]], axis=1).tolist(), reference, DIRECTIONS)


def summary(done: list[Study]) -> Iterator[str]:
    """The figures that the issue of trust asks for."""
    total = sum(study.intervals for study in done)
    yield f"{len(done)} studies"
    yield f"hypervolume share: median {statistics.median(s.hypervolume_share for s in done):.3f}"
    yield f"claimed less true gain of the best: mean {statistics.fmean(s.claimed_gain - s.true_gain for s in done):+.3f} points"
    yield f"a change was recommended in {sum(s.sure for s in done)}, one with a true gain in {sum(s.sure_gain > 0 for s in done)}"
    yield f"90 % intervals of {total} recommended members hold the truth in {sum(s.held for s in done) / max(total, 1):.1%}"


def one(options: argparse.Namespace, number: int) -> Study:
    """One study, in whatever process."""
    return Run(options, number).result()


def studies(options: argparse.Namespace) -> Iterator[Study]:
    """All studies, in the order of their numbers, as they end."""
    numbers = range(options.studies)
    if options.workers == 1:
        yield from (one(options, number) for number in numbers)
        return
    with ProcessPoolExecutor(options.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(one, [options] * len(numbers), numbers)


def main() -> None:
    """Parse, run, write as studies end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("dense", "null", "single"), required=True)
    parser.add_argument("--studies", type=int, default=20)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=0)
    parser.add_argument("--base-seeds", type=int, default=5)
    parser.add_argument("--seed-share", type=float, default=0.0)
    parser.add_argument("--workers", type=int, default=1, help="studies at a time, a process each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    protocol = f"noise{NOISE}-seed{options.seed_share:g}-t{options.trials}-r{options.repeats}-n{options.studies}"
    name = f"simulated-{options.kind}-{SITES}x{OPTIONS}-{protocol}.csv"
    done: list[Study] = []
    with (options.out / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Study)])
        writer.writeheader()
        for study in studies(options):
            done.append(study)
            writer.writerow({key: f"{value:.4f}" if isinstance(value, float) else value for key, value in asdict(done[-1]).items()})
            file.flush()
    sys.stdout.write("\n".join(summary(done)) + f"\n{options.out / name}\n")


if __name__ == "__main__":
    main()
