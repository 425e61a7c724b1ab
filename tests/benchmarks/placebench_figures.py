"""What the placement benchmark says in figures: variances, noise, what a proxy's ranking is worth, and which proxy buys most a second.

    python tests/benchmarks/placebench_figures.py results/placebench-PROTOCOL.csv

Writes placebench-figures-PROTOCOL.csv beside the table: `quantity, value, low, high, note`, intervals of 90 %.

Noise is what remains of trainings after an effect of every architecture and of every seed: architectures are compared on the same seeds,
so that what a seed does to all of them alike costs nothing. Reliability is the share of the variance between single trainings of different
architectures that is not noise, from the architectures with several seeds. The spread of all architectures on seed 0 is more precise,
but wrong where noise differs between seeds (dips before the schedule's end come with the order of the images): stated beside it.

The correlation of *true* values with the long training's is estimated with a bivariate normal model of the architectures that have
several seeds of both: noise of both sides as measured, a flat prior on the correlation, half-normal ones on the spreads of true values. It
stays within -1..1 where dividing by the ceiling would not; with a dozen architectures its interval is wide, and says so. The noise ceiling
is what a proxy that ranks perfectly would show on average under the noise of both sides.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from placement_model import PlacementModel, load, scores, summary, trainings
from scipy import stats

Floats = NDArray[np.float64]
Row = dict[str, Any]

RUNGS = (3, 5, 7, 9)
AVERAGES = (1, 2, 3)
CORRELATIONS = np.linspace(-0.98, 0.98, 50)
SPREADS = 16
BOOTSTRAPS = 300
ENDS = (0.05, 0.95)


# -- noise ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """What trainings of the same architecture differ by: `paired` beyond the effect of the seed, `unpaired` with it (SDs).

    `squares` are the squared errors of every architecture after both effects, `freedom` of all of them together.
    """

    paired: float
    unpaired: float
    freedom: int
    unpaired_freedom: int
    squares: Mapping[str, float]


def noise_of(found: pd.DataFrame) -> Noise:
    """The noise in `digest, seed, value`, from the architectures that were trained with several seeds."""
    several = found[found.groupby("digest")["seed"].transform("size") > 1]
    digest, seed = several["digest"].to_numpy(), several["seed"].to_numpy()
    values = several["value"].to_numpy(dtype=float)
    names = sorted(set(digest))
    own = np.stack([digest == name for name in names], axis=1).astype(float)
    shared = np.stack([seed == s for s in sorted(set(seed))], axis=1).astype(float)
    within = values - own @ (own.T @ values / own.sum(axis=0))
    design = np.concatenate([own, shared], axis=1)
    fitted, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
    errors = values - design @ fitted
    freedom, unpaired_freedom = len(values) - int(rank), len(values) - len(names)
    return Noise(
        paired=float(np.sqrt(errors @ errors / freedom)),
        unpaired=float(np.sqrt(within @ within / unpaired_freedom)),
        freedom=freedom,
        unpaired_freedom=unpaired_freedom,
        squares={name: float(np.sum(errors[digest == name] ** 2)) for name in names},
    )


def sd_interval(sd: float, freedom: int) -> tuple[float, float]:
    """The 90 % interval of a standard deviation of normal errors."""
    low, high = sd * np.sqrt(freedom / stats.chi2.ppf(ENDS[::-1], freedom))
    return float(low), float(high)


def seed_adjusted(found: pd.DataFrame, digests: Sequence[str]) -> tuple[Floats, Floats]:
    """The mean of each of some architectures after the effects of seeds, and how many trainings it is of."""
    kept = found[found["digest"].isin(digests)]
    # A seed that one architecture alone has says nothing of that architecture against others.
    kept = kept[kept.groupby("seed")["digest"].transform("size") > 1]
    seeds = sorted(set(kept["seed"]))
    own = np.stack([kept["digest"] == name for name in digests], axis=1).astype(float)
    shared = np.stack([kept["seed"] == s for s in seeds], axis=1).astype(float)
    fitted = np.linalg.lstsq(np.concatenate([own, shared], axis=1), kept["value"].to_numpy(dtype=float), rcond=None)[0]
    return fitted[: len(digests)], own.sum(axis=0)


# -- correlation of true values ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Link:
    """The posterior of the true correlation of two scores, on a grid: `rho` (K,), the reliabilities (K,) of both, `weights` (K,)."""

    rho: Floats
    first: Floats
    second: Floats
    weights: Floats

    @property
    def mean(self) -> float:
        return float(self.weights @ self.rho)

    @property
    def ceiling(self) -> Floats:
        """(K,): the Pearson correlation that equal true values would show through the noise of both."""
        return np.asarray(np.sqrt(self.first * self.second))

    def interval(self, values: Floats) -> tuple[float, float, float]:
        """Median and 90 % interval of something on the grid."""
        order = np.argsort(values)
        at = np.searchsorted(np.cumsum(self.weights[order]), [0.5, *ENDS])
        middle, low, high = values[order][np.minimum(at, len(values) - 1)]
        return float(middle), float(low), float(high)


def link(first: Floats, second: Floats, first_noise: float, second_noise: float) -> Link:
    """What is known of the true correlation after A architectures, each side with noise of a known SD in these (mean) scores."""
    sample = np.cov(first, second)
    freedom = len(first) - 1
    # The grid stands for half-normal priors of the true spreads; quantiles of equal probability make its points count alike.
    grid = stats.halfnorm.ppf((np.arange(SPREADS) + 0.5) / SPREADS)
    a, b, rho = np.meshgrid(grid * np.sqrt(sample[0, 0]), grid * np.sqrt(sample[1, 1]), CORRELATIONS, indexing="ij")
    a2, b2, both = (a**2).ravel(), (b**2).ravel(), (rho * a * b).ravel()
    one, two = a2 + first_noise**2, b2 + second_noise**2
    determinant = one * two - both**2
    trace = (two * sample[0, 0] - 2 * both * sample[0, 1] + one * sample[1, 1]) / determinant
    score = -0.5 * freedom * (np.log(determinant) + trace)
    weights = np.exp(score - score.max())
    return Link(rho.ravel(), a2 / one, b2 / two, weights / weights.sum())


def expected_tau(pearson: Floats) -> Floats:
    """Kendall's tau of normal samples of this correlation, whatever their size."""
    return np.asarray(2 / np.pi * np.arcsin(pearson))


def expected_rho(pearson: Floats, count: int) -> Floats:
    """Spearman's rho of `count` normal pairs of this correlation, on average."""
    return np.asarray(6 / (np.pi * (count + 1)) * (np.arcsin(pearson) + (count - 2) * np.arcsin(np.asarray(pearson) / 2)))


# -- proxies ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """One way to score a short training: what is read, at which epoch it ends, over how many epochs it is averaged."""

    name: str
    epochs: int
    average: int
    found: pd.DataFrame

    @property
    def label(self) -> str:
        return f"{self.name}, epoch {self.epochs}, mean of {self.average}"


def standardised(found: pd.DataFrame) -> Floats:
    """Values in SDs of the trainings on seed 0."""
    first = found.loc[found["seed"] == 0, "value"]
    return np.asarray((found["value"] - first.mean()) / first.std())


def proxies(table: pd.DataFrame, epochs: int, rungs: Sequence[int] = RUNGS) -> list[Proxy]:
    """All proxies that are read from the same curves; a rung is a pause in the one schedule."""
    made = []
    for rung in [*(r for r in rungs if r < epochs), epochs]:
        for average in [k for k in AVERAGES if k <= rung]:
            accuracy = scores(table, epochs, until=rung, average=average)
            loss = scores(table, epochs, until=rung, average=average, column="val_loss")
            loss = loss.assign(value=-loss["value"])
            both = accuracy.assign(value=(standardised(accuracy) + standardised(loss)) / 2)
            for name, found in (("mAP50-95", accuracy), ("-val_loss", loss), ("mAP and val_loss", both)):
                if average != 2 or name == "mAP50-95":
                    made.append(Proxy(name=name, epochs=rung, average=average, found=found))
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Everything that proxies are judged by, resampled alike for all of them.

    `anchors` have several seeds and a long training, whose score is `target` (A,) with noise `target_noise`; `others` have seed 0.
    """

    anchors: tuple[str, ...]
    target: Floats
    target_noise: float
    others: tuple[str, ...]
    seconds: float
    epochs: int

    def cost(self, proxy: Proxy) -> float:
        """Seconds of one training up to the proxy's epoch."""
        return self.seconds * proxy.epochs / self.epochs

    def judge(self, proxy: Proxy) -> "Judged":
        """Everything about a proxy that resampling needs, worked out once."""
        first = proxy.found[proxy.found["seed"] == 0].set_index("digest")["value"].reindex(self.others).to_numpy()
        means, counts = seed_adjusted(proxy.found, self.anchors) if self.anchors else (np.zeros(0), np.zeros(0))
        noise = noise_of(proxy.found)
        repeated = seed_adjusted(proxy.found, sorted(noise.squares))
        return Judged(proxy=proxy, noise=noise, first=first, repeated=repeated, means=means, counts=counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A proxy's noise, its scores on seed 0, the means and counts of all with several seeds, and those of the anchors."""

    proxy: Proxy
    noise: Noise
    first: Floats
    repeated: tuple[Floats, Floats]
    means: Floats
    counts: Floats

    def reliability(self, rows: NDArray[np.int64] | slice = slice(None)) -> float:
        """The share of the variance between single trainings that is not noise, of those with several seeds or of a resample of them."""
        noise = np.array([self.noise.squares[name] for name in sorted(self.noise.squares)])[rows].sum() / self.noise.freedom
        means, counts = self.repeated
        between = max(float(np.var(means[rows], ddof=1) - noise * np.mean(1 / counts[rows])), 0.0)
        return between / (between + float(noise)) if between else 0.0

    @property
    def reliability_on_seed_0(self) -> float:
        """The same from the spread of all architectures on seed 0."""
        return float(np.clip(1 - self.noise.paired**2 / np.var(self.first, ddof=1), 0.0, 1.0))

    def link(self, judge: Judge, anchors: NDArray[np.int64] | slice = slice(None)) -> Link:
        """The correlation of this proxy's true values with the long training's."""
        noise = self.noise.paired * float(np.sqrt(np.mean(1 / self.counts)))
        return link(self.means[anchors], judge.target[anchors], noise, judge.target_noise)


def merit(reliability: float, rho: float, seconds: float) -> float:
    """The squared correlation of one training's score with the long training's true value, a thousand seconds."""
    return 1000 * reliability * max(rho, 0.0) ** 2 / seconds


def proxy_rows(judge: Judge, judged: Sequence[Judged], bootstraps: int, seed: int) -> list[Row]:
    """The proxy table, long: for each its noise, reliability, correlation and merit; then who wins and by how much."""
    rng = np.random.default_rng(seed)
    merits = np.zeros((bootstraps, len(judged)))
    reliabilities = np.zeros((bootstraps, len(judged)))
    for k in range(bootstraps):
        repeated = rng.integers(len(judged[0].noise.squares), size=len(judged[0].noise.squares))
        anchors = rng.integers(len(judge.anchors), size=len(judge.anchors)) if judge.anchors else None
        if anchors is not None and len(set(anchors.tolist())) < 4:
            anchors = np.arange(len(judge.anchors))
        for p, one in enumerate(judged):
            reliabilities[k, p] = one.reliability(repeated)
            if anchors is not None:
                merits[k, p] = merit(reliabilities[k, p], one.link(judge, anchors).mean, judge.cost(one.proxy))
    rows: list[Row] = []
    points = np.zeros(len(judged))
    for p, one in enumerate(judged):
        label, seconds, reliability = one.proxy.label, judge.cost(one.proxy), one.reliability()
        low, high = sd_interval(one.noise.paired, one.noise.freedom)
        rows += [
            row(f"proxy noise: {label}", one.noise.paired, low, high, "SD between seeds, paired; in the score's own unit"),
            row(f"proxy reliability: {label}", reliability, *np.quantile(reliabilities[:, p], ENDS), "of one training; bootstrap"),
            row(
                f"proxy reliability on seed 0: {label}",
                one.reliability_on_seed_0,
                note=f"{len(one.first)} architectures; equal noise of all seeds",
            ),
            row(f"proxy seconds: {label}", seconds, note="median training, scaled by epochs"),
        ]
        if judge.anchors:
            found = one.link(judge)
            points[p] = merit(reliability, found.mean, seconds)
            _, low, high = found.interval(found.rho)
            rows += [
                row(f"proxy true correlation: {label}", found.mean, low, high, "noise-corrected, with the long training; posterior"),
                row(f"proxy correlation a kilosecond: {label}", 1000 * found.mean / seconds, 1000 * low / seconds, 1000 * high / seconds),
                row(
                    f"proxy merit: {label}",
                    points[p],
                    *np.quantile(merits[:, p], ENDS),
                    "reliability x correlation^2 a kilosecond; bootstrap over architectures",
                ),
            ]
    return rows + (_winners(judge, judged, points, merits) if judge.anchors else [])


def _winners(judge: Judge, judged: Sequence[Judged], points: Floats, merits: Floats) -> list[Row]:
    last = next(p for p, one in enumerate(judged) if one.proxy.label == f"mAP50-95, epoch {judge.epochs}, mean of 1")
    wins = np.bincount(merits.argmax(axis=1), minlength=len(judged)) / len(merits)
    found: list[Row] = []
    for rank, p in enumerate(np.argsort(-points, kind="stable")[:3].tolist(), 1):
        usable = merits[:, last] > 0
        ratios = merits[usable, p] / merits[usable, last] if usable.any() else np.array([np.nan])
        ratio = points[p] / points[last] if points[last] > 0 else np.nan
        note = f"{judged[p].proxy.label}: times the merit of mAP50-95 at the last epoch; best in {wins[p]:.0%} of resamples"
        found.append(row(f"proxy rank {rank}", ratio, *np.quantile(ratios, ENDS), note))
    return found


# -- the figures ----------------------------------------------------------------------


def row(quantity: str, value: float, low: float = np.nan, high: float = np.nan, note: str = "") -> Row:
    """One line of the answer."""
    return {"quantity": quantity, "value": float(value), "low": float(low), "high": float(high), "note": note}


def counts(table: pd.DataFrame, epochs: int) -> list[Row]:
    """What was trained."""
    runs = table.groupby(["digest", "epochs", "seed"], as_index=False)["train_seconds"].first()
    short, long = runs[runs["epochs"] == epochs], runs[runs["epochs"] > epochs]
    several = short.groupby("digest")["seed"].nunique()
    return [
        row("trainings, short", len(short), note=f"{epochs} epochs"),
        row("architectures, short", short["digest"].nunique()),
        row("architectures with several seeds", int((several > 1).sum())),
        row("trainings, long", len(long), note=f"{long['epochs'].max()} epochs" if len(long) else "not yet trained"),
        row("seconds, short training", short["train_seconds"].median(), *short["train_seconds"].quantile(list(ENDS)), "of one thread"),
    ]


def noises(found: pd.DataFrame, base: str | None, bootstraps: int, seed: int) -> list[Row]:
    """The noise of the base, of all repeated architectures, and what pairing seeds is worth."""
    rows = []
    own = found.loc[found["digest"] == base, "value"] if base else found["value"].head(0)
    if len(own) > 1:
        sd = float(own.std())
        rows.append(row("noise of the base", sd, *sd_interval(sd, len(own) - 1), f"SD over {len(own)} seeds, mAP50-95"))
    anchors = found[found["digest"] != base]
    if anchors.groupby("digest").size().max() > 1:
        sd = noise_of(anchors)
        rows.append(
            row("noise of the anchors", sd.unpaired, *sd_interval(sd.unpaired, sd.unpaired_freedom), "pooled SD within architectures")
        )
    noise = noise_of(found)
    rng, several = np.random.default_rng(seed), sorted(noise.squares)
    ratios = []
    parts = {name: group for name, group in found.groupby("digest") if name in noise.squares}
    for _ in range(bootstraps):
        drawn = rng.choice(several, len(several))
        again = noise_of(pd.concat([parts[name].assign(digest=f"{i}") for i, name in enumerate(drawn)]))
        ratios.append(again.paired / again.unpaired)
    return [
        *rows,
        row("noise, unpaired", noise.unpaired, *sd_interval(noise.unpaired, noise.unpaired_freedom), "SD of a training, base and anchors"),
        row("noise, paired", noise.paired, *sd_interval(noise.paired, noise.freedom), "SD after the effect of each seed"),
        row("paired to unpaired", noise.paired / noise.unpaired, *np.quantile(ratios, ENDS), "SDs; below 1 pairing helps"),
        row("SD of a paired difference", np.sqrt(2) * noise.paired, note="one seed each, the same"),
        row("SD of an unpaired difference", np.sqrt(2) * noise.unpaired, note="one seed each, different ones"),
    ]


def rankings(short: pd.DataFrame, judge: Judge, judged: Judged, bootstraps: int, seed: int, target: pd.DataFrame) -> list[Row]:
    """How well the short training ranks as the long one does, beside what its ceiling is."""
    count, rng = len(judge.anchors), np.random.default_rng(seed)
    wide = short.pivot_table(index="digest", columns="seed", values="value").reindex(judge.anchors)
    wide = wide.loc[:, wide.notna().all()]
    truth = target.groupby("digest")["value"].mean().reindex(judge.anchors).to_numpy()
    picks = [rng.integers(count, size=count) for _ in range(bootstraps)]
    picks = [pick for pick in picks if len(set(pick.tolist())) > 3]
    rows = []
    for name, columns in (("one seed", [[s] for s in wide.columns]), (f"mean of {wide.shape[1]} seeds", [list(wide.columns)])):
        proxy = [wide[c].mean(axis=1).to_numpy() for c in columns]
        noise = judged.noise.paired / np.sqrt(len(columns[0]))
        grid = link(np.mean(proxy, axis=0), judge.target, judged.noise.paired / np.sqrt(wide.shape[1]), judge.target_noise)
        between = grid.first * (judged.noise.paired**2 / wide.shape[1]) / np.maximum(1 - grid.first, 1e-12)  # true variance on the grid
        ceiling = np.sqrt(between / (between + noise**2) * grid.second)
        for label, measure, expected in (
            ("Kendall tau", stats.kendalltau, expected_tau(ceiling)),
            ("Spearman rho", stats.spearmanr, expected_rho(ceiling, count)),
        ):
            seen = float(np.mean([measure(p, truth).statistic for p in proxy]))
            again = [np.mean([measure(p[pick], truth[pick]).statistic for p in proxy]) for pick in picks]
            middle, low, high = grid.interval(expected)
            rows += [
                row(f"{label}, {name}", seen, *np.nanquantile(again, ENDS), f"{count} architectures, with the long training"),
                row(f"{label}, {name}: ceiling", middle, low, high, "of a perfect proxy with this noise on both sides"),
            ]
    found = judged.link(judge)
    middle, low, high = found.interval(found.rho)
    return [*rows, row("true correlation", middle, low, high, "short with long, noise-corrected; posterior median, flat prior")]


def judge_of(table: pd.DataFrame, epochs: int, target_average: int) -> tuple[Judge, pd.DataFrame]:
    """What the long trainings say; without any, a judge of reliability alone."""
    short = scores(table, epochs)
    seconds = table[table["epochs"] == epochs].drop_duplicates(["digest", "seed"])["train_seconds"].median()
    others = tuple(short.loc[short["seed"] == 0, "digest"])
    long = int(table["epochs"].max())
    target = scores(table, long, average=target_average).iloc[: None if long > epochs else 0]
    several = short.groupby("digest").size()
    anchors = tuple(name for name, n in target.groupby("digest").size().items() if n > 1 and several.get(name, 0) > 1)
    if len(anchors) < 5:
        return Judge(anchors=(), target=np.zeros(0), target_noise=0.0, others=others, seconds=seconds, epochs=epochs), target
    means, repeats = seed_adjusted(target, anchors)
    noise = noise_of(target[target["digest"].isin(anchors)]).paired * np.sqrt(np.mean(1 / repeats))
    return Judge(anchors=anchors, target=means, target_noise=float(noise), others=others, seconds=seconds, epochs=epochs), target


def predictions(model: PlacementModel) -> list[Row]:
    """How well architectures that were trained once are predicted from all others, beside what noise allows."""
    once, expected = model.left_out()
    if len(once) < 10:
        return []
    seen = model.data.values[once]
    error = float(np.sqrt(np.mean((seen - expected) ** 2)))
    return [
        row("prediction left out: correlation", stats.pearsonr(expected, seen).statistic, note=f"{len(once)} architectures trained once"),
        row("prediction left out: RMSE", error, note=f"mAP50-95; SD of the same scores {np.std(seen):.4f}, noise {model.noise:.4f}"),
    ]


def figures(table: pd.DataFrame, *, target_average: int = 1, bootstraps: int = BOOTSTRAPS, seed: int = 0) -> pd.DataFrame:
    """All figures of one benchmark."""
    epochs = int(table["epochs"].min())
    short = scores(table, epochs)
    data = trainings(table)
    model = PlacementModel(data, seed)
    base = data.digests[data.base] if data.base is not None else None
    judge, target = judge_of(table, epochs, target_average)
    judged = [judge.judge(proxy) for proxy in proxies(table, epochs)]
    rows = [
        *counts(table, epochs),
        *summary(model, seed=seed).to_dict("records"),
        *predictions(model),
        *noises(short, base, bootstraps, seed),
    ]
    if judge.anchors:
        last = next(one for one in judged if one.proxy.label == f"mAP50-95, epoch {epochs}, mean of 1")
        rows += [row("noise of the long training", noise_of(target).paired, note="SD, paired, of one training")]
        rows += rankings(short, judge, last, bootstraps, seed, target)
    return pd.DataFrame([*rows, *proxy_rows(judge, judged, bootstraps, seed)])


def main() -> None:
    """Read, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--target-average", type=int, default=1, help="score a long training by the mean of so many last epochs")
    parser.add_argument("--bootstraps", type=int, default=BOOTSTRAPS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = figures(load(options.table), target_average=options.target_average, bootstraps=options.bootstraps, seed=options.seed)
    file = options.table.with_name(options.table.name.replace("placebench-", "placebench-figures-", 1))
    found.to_csv(file, index=False, float_format="%.6g")
    sys.stdout.write(found.to_string(index=False, float_format="%.4g", max_colwidth=90) + "\n")
    sys.stdout.write(f"written to {file}\n")


if __name__ == "__main__":
    main()
