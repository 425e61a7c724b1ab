"""A generative model of placements, fitted to the placement benchmark: how much of accuracy is additive, pairwise, own, or luck.

    python tests/benchmarks/placement_model.py results/placebench-PROTOCOL.csv [--average K] [--write TABLE.csv --draw 0]

A training's score is a level, plus an effect of each placement, plus an effect of each pair of placements, plus what is the architecture's
own, plus an effect of the seed that all trainings with that seed share, plus noise: six Gaussian parts. The standard deviation of each has
a half-normal prior as wide as the scores' own spread, so that nothing at all is a possible belief; the posterior is by importance sampling,
the level integrated out. Effects are counted from the base ("nothing here" has none) and correlated within a site as in
`nas_attn.candidates`. Shares of variance are of the functional analysis of variance over the whole space, every site's options equally
likely, so that they do not depend on which option is called nothing.

`draw` gives a landscape: all effects drawn jointly from the posterior, and with them the value of every architecture of the space, beside
latencies from an additive fit to the benchmark's costs. What is an architecture's own is left out of a landscape unless it is asked for:
drawn independently for each of 390,625 architectures its best would be needles that no search can find.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import multivariate_t, qmc

from nas_attn.candidates import ANY_MODULE, SAME_FAMILY
from nas_attn.errors import InputError
from nas_attn.records import record
from nas_attn.surrogate import additive
from nas_attn.table import Table

Floats = NDArray[np.float64]

PARTS = ("additive", "pairwise", "own", "seed", "noise")
BROAD, NEAR, ROUNDS = 512, 512, 8
FREEDOM, WIDER = 4, 2.0
LEAST_EFFECTIVE = 30.0
JITTER = 1e-9
NOTHING = "none"
SCORE, COST = "map50_95", "latency_ratio"


# -- what was trained ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainings:
    """A distinct architectures as `codes` (A, G), and n trainings: `rows` (n,) among them, `seeds` (n,), `values` (n,)."""

    genes: Mapping[str, tuple[str, ...]]
    covariances: tuple[Floats, ...]
    digests: tuple[str, ...]
    codes: NDArray[np.int16]
    rows: NDArray[np.int64]
    seeds: NDArray[np.int64]
    values: Floats

    @property
    def base(self) -> int | None:
        """The architecture without placements, where it was trained."""
        found = np.flatnonzero(~self.codes.any(axis=1))
        return int(found[0]) if len(found) else None


def load(file: Path) -> pd.DataFrame:
    """The benchmark's table: a line an epoch of a training."""
    if not file.is_file():
        raise InputError(f"A placement benchmark's table must be a file, but {file} is none; run tests/benchmarks/placebench.py.")
    # A digest is text even where it looks like a number; an empty cell of a site is "nothing here".
    return pd.read_csv(file, dtype={"digest": str}, keep_default_na=False, na_values={"train_seconds": [""]})


def scores(table: pd.DataFrame, epochs: int, *, until: int | None = None, average: int = 1, column: str = SCORE) -> pd.DataFrame:
    """One line a finished training of `epochs` epochs: `digest`, `seed` and `value`, the mean of the last `average` epochs by `until`."""
    until = until or epochs
    kept = table[(table["epochs"] == epochs) & (table["epoch"] <= until) & (table["epoch"] > until - average)]
    found = kept.groupby(["digest", "seed"])[column].agg(["mean", "size"]).reset_index()
    return found[found["size"] == average].rename(columns={"mean": "value"}).drop(columns="size")


def placement_covariance(choices: Sequence[str]) -> Floats:
    """The prior covariance of a site's choices: none of "nothing", and placements alike as far as their families are."""
    prior = np.zeros((len(choices), len(choices)))
    for i, first in enumerate(choices):
        for j, second in enumerate(choices):
            if NOTHING not in (first, second):
                alike = record(first).family == record(second).family
                prior[i, j] = 1.0 if i == j else SAME_FAMILY if alike else ANY_MODULE
    return prior


def genes_of(table: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """A gene a site: nothing, or any module that was trained anywhere."""
    sites = [name for name in table.columns if name.startswith("row_")]
    modules = sorted({module for site in sites for module in table[site].unique()} - {""})
    return dict.fromkeys(sites, (NOTHING, *modules))


def trainings(table: pd.DataFrame, *, average: int = 1) -> Trainings:
    """The short trainings of a benchmark (the long ones have more epochs), scored on the mean of their last `average` epochs."""
    epochs = int(table["epochs"].min())
    genes = genes_of(table)
    architectures = table.drop_duplicates("digest").set_index("digest")[list(genes)]
    found = scores(table, epochs, average=average)
    digests = tuple(dict.fromkeys(found["digest"]))
    codes = [[genes[site].index(architectures.at[digest, site] or NOTHING) for site in genes] for digest in digests]
    return Trainings(
        genes=genes,
        covariances=tuple(placement_covariance(choices) for choices in genes.values()),
        digests=digests,
        codes=np.array(codes, dtype=np.int16),
        rows=found["digest"].map({digest: i for i, digest in enumerate(digests)}).to_numpy(dtype=np.int64),
        seeds=found["seed"].to_numpy(dtype=np.int64),
        values=found["value"].to_numpy(dtype=np.float64),
    )


# -- the model ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Effects:
    """One draw of everything: a level, a table a gene, a table a pair of genes, the trained architectures' own, and the SD of all parts."""

    level: float
    mains: tuple[Floats, ...]
    pairs: Mapping[tuple[int, int], Floats]
    own: Floats
    deviations: Mapping[str, float]

    def values(self, codes: NDArray[np.int16]) -> Floats:
        """The value (N,) of every row of codes, without what is the architecture's own."""
        total = np.full(len(codes), self.level)
        for g, table in enumerate(self.mains):
            total += table[codes[:, g]]
        for (g, h), table in self.pairs.items():
            total += table[codes[:, g], codes[:, h]]
        return total

    def variances(self) -> dict[str, float]:
        """The variance over the whole space of its additive part, its pairwise part, and the architectures' own."""
        mains = [table - table.mean() for table in self.mains]
        pairwise = 0.0
        for (g, h), table in self.pairs.items():
            rows, columns = table.mean(axis=1) - table.mean(), table.mean(axis=0) - table.mean()
            mains[g] = mains[g] + rows
            mains[h] = mains[h] + columns
            pairwise += float(np.mean((table - table.mean() - rows[:, None] - columns[None, :]) ** 2))
        return {"additive": float(sum(np.mean(m**2) for m in mains)), "pairwise": pairwise, "own": self.deviations["own"] ** 2}


class PlacementModel:
    """The posterior after a benchmark's trainings."""

    def __init__(self, data: Trainings, seed: int = 0) -> None:
        if len(data.values) < 10 or np.ptp(data.values) == 0:
            raise InputError(f"The model needs ten trainings that differ, but got {len(data.values)}; let the benchmark run on.")
        self.data = data
        self._spread = float(np.std(data.values))
        self._kernels = self._prior_kernels()
        self._inverse: tuple[bytes, Floats] = (b"", np.zeros((0, 0)))
        self.variances, self.weights = self._weigh(np.random.default_rng(seed))

    @property
    def effective(self) -> float:
        """To how many independent draws of the parts' variances the weighted ones amount."""
        return float(1.0 / np.sum(self.weights**2))

    @cached_property
    def noise(self) -> float:
        """The SD of one training about its architecture's value: the seed's effect and noise."""
        return float(np.sqrt(self.weights @ self.variances[:, 3:].sum(axis=1)))

    def draws(self, count: int, seed: int) -> list[Effects]:
        """Joint draws of all effects."""
        rng = np.random.default_rng(seed)
        chosen = np.sort(rng.choice(len(self.weights), size=count, p=self.weights))
        return [self._effects(variances, rng) for variances in self.variances[chosen]]

    def true_values(self, draws: Sequence[Effects]) -> Floats:
        """(draws, A): the values of the trained architectures, with their own."""
        return np.stack([effects.values(self.data.codes) + effects.own for effects in draws])

    def left_out(self) -> tuple[NDArray[np.int64], Floats]:
        """For architectures trained once: their trainings, and the score that the model expects of each from all others."""
        once = np.flatnonzero(np.bincount(self.data.rows)[self.data.rows] == 1)
        expected = np.zeros(len(once))
        for variances, weight in zip(self.variances, self.weights, strict=True):
            if weight > 1e-4:
                inverse = np.linalg.inv(self._covariance(variances))
                flat = inverse.sum(axis=1)
                # With the level integrated out, the projection P = K^-1 - K^-1 1 1' K^-1 / 1' K^-1 1 stands for the inverse.
                projection = inverse - np.outer(flat, flat) / flat.sum()
                expected += weight * (self.data.values - projection @ self.data.values / np.diag(projection))[once]
        return once, expected / self.weights[self.weights > 1e-4].sum()

    # -- parts ----------------------------------------------------------------------

    def _prior_kernels(self) -> Floats:
        """(parts, n, n): each part's covariance of the trainings where its variance over the space is expected to be one."""
        data = self.data
        x = data.codes[data.rows]
        tables = [c[np.ix_(x[:, g], x[:, g])] for g, c in enumerate(data.covariances)]
        total = sum(tables)
        pairs = (total * total - sum(t * t for t in tables)) / 2
        same = data.rows[:, None] == data.rows[None, :]
        seeds = data.seeds[:, None] == data.seeds[None, :]
        main, pair = self._units()
        return np.stack([total / main, pairs / pair, same, seeds, np.eye(len(x))])

    def _units(self) -> tuple[float, float]:
        """The expected variance over the space of main and of pairwise effects with these covariances."""
        own = [float(np.mean(np.diag(c))) for c in self.data.covariances]
        mean = [float(np.mean(c)) for c in self.data.covariances]
        genes = range(len(own))
        pair = sum(own[g] * own[h] - mean[g] * mean[h] for g in genes for h in genes if g < h)
        return sum(own) - sum(mean), pair

    def _covariance(self, variances: Floats) -> Floats:
        return np.tensordot(variances, self._kernels, 1) + JITTER * self._spread**2 * np.eye(len(self.data.values))

    def _evidence(self, logs: Floats) -> Floats:
        """The log marginal likelihood (k,) of k settings of the logarithms of the SDs, the level integrated out."""
        values, found = self.data.values / self._spread, np.empty(len(logs))
        right = np.stack([values - values.mean(), np.ones(len(values))], axis=1)
        for k, setting in enumerate(logs):
            lower = np.linalg.cholesky(self._covariance(np.exp(2 * setting) * self._spread**2) / self._spread**2)
            solved = np.linalg.solve(lower, right)
            total = solved[:, 1] @ solved[:, 1]
            errors = solved[:, 0] - (solved[:, 1] @ solved[:, 0] / total) * solved[:, 1]
            found[k] = -0.5 * errors @ errors - np.log(np.diag(lower)).sum() - 0.5 * np.log(total)
        return found

    def _weigh(self, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Draws of the parts' variances and their weights: broad ones from the prior, then rounds nearer to where the posterior is."""
        uniform = qmc.Sobol(len(PARTS), seed=rng).random(BROAD)
        points = np.log(ndtri(0.5 + 0.5 * np.clip(uniform, 1e-6, 1 - 1e-6)))
        evidence, shapes = self._evidence(points), list[Any]()
        for _ in range(ROUNDS):
            weights = _tempered(_log_weights(points, evidence, shapes))
            centre = weights @ points
            spread = (points - centre).T @ ((points - centre) * weights[:, None])
            shapes.append(multivariate_t(centre, WIDER * spread + 1e-3 * np.eye(len(PARTS)), df=FREEDOM))
            fresh = np.clip(shapes[-1].rvs(NEAR, random_state=rng), -12.0, 3.0)
            points, evidence = np.concatenate([points, fresh]), np.concatenate([evidence, self._evidence(fresh)])
        score = _log_weights(points, evidence, shapes)
        weights = np.exp(score - score.max())
        weights /= weights.sum()
        if 1.0 / np.sum(weights**2) < LEAST_EFFECTIVE:
            raise InputError(
                f"The posterior needs {LEAST_EFFECTIVE:.0f} effective draws, but has {1 / np.sum(weights**2):.0f}; raise NEAR."
            )
        return np.exp(2 * points) * self._spread**2, weights

    def _effects(self, variances: Floats, rng: np.random.Generator) -> Effects:
        """A draw from the prior, corrected by what was seen (Matheron's rule), the level's own uncertainty included."""
        data = self.data
        main, pair = variances[0] / self._units()[0], variances[1] / self._units()[1]
        roots = [_root(c) for c in data.covariances]
        mains = [np.sqrt(main) * root @ rng.standard_normal(len(root)) for root in roots]
        order = [(g, h) for g in range(len(roots)) for h in range(g + 1, len(roots))]
        pairs = {(g, h): np.sqrt(pair) * roots[g] @ rng.standard_normal((len(roots[g]), len(roots[h]))) @ roots[h].T for g, h in order}
        deviations = dict(zip(PARTS, np.sqrt(variances).tolist(), strict=True))
        prior = Effects(
            level=0.0, mains=tuple(mains), pairs=pairs, own=deviations["own"] * rng.standard_normal(len(data.codes)), deviations=deviations
        )
        names, at = np.unique(data.seeds, return_inverse=True)
        luck = deviations["seed"] * rng.standard_normal(len(names))[at] + deviations["noise"] * rng.standard_normal(len(at))
        missed = data.values - (prior.values(data.codes) + prior.own)[data.rows] - luck
        if self._inverse[0] != variances.tobytes():  # draws come sorted by setting, many of the same
            self._inverse = variances.tobytes(), np.linalg.inv(self._covariance(variances))
        solved, flat = self._inverse[1] @ missed, self._inverse[1].sum(axis=1)
        level = float(solved.sum() / flat.sum())
        weights = solved - level * flat
        here = data.codes[data.rows]
        for g, c in enumerate(data.covariances):
            mains[g] = mains[g] + main * c @ np.bincount(here[:, g], weights, minlength=len(c))
        for g, h in order:
            cells = np.zeros(pairs[g, h].shape)
            np.add.at(cells, (here[:, g], here[:, h]), weights)
            pairs[g, h] = pairs[g, h] + pair * data.covariances[g] @ cells @ data.covariances[h]
        own = prior.own + variances[2] * np.bincount(data.rows, weights, minlength=len(data.codes))
        return replace(prior, level=level, mains=tuple(mains), pairs=pairs, own=own)


def _log_prior(logs: Floats) -> Floats:
    """The density (k,) of the logarithms of SDs that are half-normal with scale one, up to a factor that all share."""
    return np.asarray(np.sum(logs - 0.5 * np.exp(2 * logs), axis=1))


def _log_weights(points: Floats, evidence: Floats, shapes: Sequence[Any]) -> Floats:
    """Importance weights as if every point came from the mixture of all that was drawn from."""
    prior = _log_prior(points) + len(PARTS) * np.log(np.sqrt(2 / np.pi))
    proposals = [prior + np.log(BROAD), *(shape.logpdf(points) + np.log(NEAR) for shape in shapes)]
    return np.asarray(evidence + prior - np.logaddexp.reduce(proposals, axis=0))


def _tempered(score: Floats) -> Floats:
    """Weights, made flatter until they amount to a few dozen draws."""
    for power in (1.0, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05):
        weights = np.exp(power * (score - score.max()))
        weights /= weights.sum()
        if 1.0 / np.sum(weights**2) > 40:
            break
    return weights


def _root(covariance: Floats) -> Floats:
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors * np.sqrt(np.clip(values, 0.0, None)))


# -- landscapes ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Landscape:
    """A table of the whole space for `nas_attn.replay`: SCORE up, COST down; `noise` is the SD of SCORE between trainings with one seed.

    The trials of a search all have seed 0, whose effect is the same for each of them.
    """

    table: Table
    noise: float
    base: int


class Landscapes:
    """Draws landscapes from a fitted model and the costs that were measured."""

    def __init__(self, model: PlacementModel, costs: pd.DataFrame) -> None:
        self.model = model
        data = model.data
        self.codes = np.indices([len(choices) for choices in data.genes.values()], dtype=np.int16).reshape(len(data.genes), -1).T.copy()
        self.latency = self._additive(costs, COST)
        names = [name for name in ("params_m", "gmacs", "activation_mib") if name in costs.columns]
        counts = [(self.codes == code).sum(axis=1).astype(np.float64) for code in range(1, len(next(iter(data.genes.values()))))]
        self.features = np.stack([self._additive(costs, name) for name in names] + [np.sum(counts, axis=0), *counts], axis=1)

    def draw(self, seed: int, *, own: bool = False) -> Landscape:
        """One landscape; the same seed gives the same one. `own` adds what is each architecture's own, independent for all."""
        data = self.model.data
        effects = self.model.draws(1, seed)[0]
        values = effects.values(self.codes)
        if own:
            rng = np.random.default_rng((seed, 1))
            free = effects.deviations["own"] * rng.standard_normal(len(self.codes))
            sizes = [len(choices) for choices in data.genes.values()]
            free[np.ravel_multi_index(data.codes.T.astype(np.int64), sizes)] = effects.own
            values = values + free
        table = Table(
            genes=data.genes,
            codes=self.codes,
            values={SCORE: values, COST: self.latency},
            directions={SCORE: "maximize", COST: "minimize"},
            covariances=data.covariances,
            features=self.features,
        )
        return Landscape(table=table, noise=float(effects.deviations["noise"]), base=0)

    def _additive(self, costs: pd.DataFrame, column: str) -> Floats:
        """A cost of every architecture: the sum of effects of placements that fits the measured ones."""
        data = self.model.data
        found = costs.set_index("digest")[column].reindex(data.digests).to_numpy(dtype=np.float64)
        known = np.flatnonzero(np.isfinite(found))
        if len(known) < 10:
            raise InputError(f"Costs must be known of ten trained architectures, but {column} is of {len(known)}; measure them first.")
        sizes = [len(choices) for choices in data.genes.values()]
        rows = np.ravel_multi_index(data.codes[known].T.astype(np.int64), sizes)
        return additive(self.codes, data.covariances, rows, found[known])


def costs_file(file: Path) -> Path:
    """The costs that belong to a benchmark's table."""
    return file.with_name(f"{file.stem}-costs.csv")


def load_costs(file: Path) -> pd.DataFrame:
    """The measured costs beside a benchmark's table.

    Raises:
        InputError: they have not been measured.
    """
    costs = costs_file(file)
    if not costs.is_file():
        raise InputError(
            f"Landscapes need measured costs, but {costs} is missing; run tests/benchmarks/placebench.py without --no-latency."
        )
    return pd.read_csv(costs, dtype={"digest": str})


def landscapes(file: Path, *, average: int = 1, seed: int = 0) -> Landscapes:
    """Fit the model to a benchmark's table, and take the costs from beside it; `.draw(seed)` then gives landscapes."""
    costs = load_costs(file)
    return Landscapes(PlacementModel(trainings(load(file), average=average), seed), costs)


def summary(model: PlacementModel, count: int = 1000, seed: int = 0) -> pd.DataFrame:
    """`quantity, value, low, high, note`: SDs of all parts (in mAP), shares of the variance between architectures, 90 % intervals."""
    drawn = model.draws(count, seed)
    variances = pd.DataFrame([effects.variances() for effects in drawn])
    between = variances.sum(axis=1)
    luck = pd.DataFrame([{name: effects.deviations[name] ** 2 for name in ("seed", "noise")} for effects in drawn])
    rows: dict[str, tuple[Any, str]] = {
        **{f"sd_{name}": (np.sqrt(variances[name]), "over the whole space, mAP50-95") for name in variances},
        **{f"sd_{name}": (np.sqrt(luck[name]), "of one training, mAP50-95") for name in luck},
        "sd_between_architectures": (np.sqrt(between), "over the whole space, mAP50-95"),
        "sd_one_training": (np.sqrt(luck.sum(axis=1)), "seed and noise, mAP50-95"),
        **{f"share_{name}": (variances[name] / between, "of the variance between architectures") for name in variances},
        "share_luck": (luck.sum(axis=1) / (luck.sum(axis=1) + between), "seed and noise, of the variance of single trainings"),
        "share_of_luck_by_seed": (luck["seed"] / luck.sum(axis=1), "of seed and noise, what trainings of one seed share"),
    }
    return pd.DataFrame([{"quantity": name, **_interval(values), "note": note} for name, (values, note) in rows.items()])


def _interval(values: Floats) -> dict[str, float]:
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
    return {"value": float(middle), "low": float(low), "high": float(high)}


def main() -> None:
    """Fit, print, and write one landscape if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--average", type=int, default=1, help="score a training by the mean of so many last epochs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, help="write a landscape that `nas-attn simulate` reads")
    parser.add_argument("--draw", type=int, default=0, help="which landscape")
    options = parser.parse_args()
    data = trainings(load(options.table), average=options.average)
    model = PlacementModel(data, options.seed)
    sys.stdout.write(f"{len(data.values)} trainings of {len(data.digests)} architectures, {model.effective:.0f} effective draws\n")
    sys.stdout.write(summary(model, seed=options.seed).to_string(index=False, float_format="%.4g") + "\n")
    if options.write:
        drawn = Landscapes(model, load_costs(options.table)).draw(options.draw)
        genes = {name: np.array(choices)[drawn.table.codes[:, g]] for g, (name, choices) in enumerate(drawn.table.genes.items())}
        pd.DataFrame({**genes, **drawn.table.values}).to_csv(options.write, index=False, float_format="%.6g")
        sys.stdout.write(f"{options.write}: {len(drawn.table):,} architectures; simulate it with --noise {drawn.noise:.4f}\n")


if __name__ == "__main__":
    main()
