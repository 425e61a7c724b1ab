"""The numbers of a study's placement atlas: what each placement does to mAP50-95 and to latency, from all trials together.

Accuracy is asked of the model of `nas_attn.posterior`, about architectures that hold one placement alone, or two, whether or not they were
trained: joint draws of them and of the base give every effect with its interval. Latency is a sum over placements, fitted to the costs of
all trials: on the 93 architectures of results/placebench-*-costs.csv it leaves a standard deviation of 0.011, what their intervals allow.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import chain, combinations, groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas_attn.architecture import Architecture, Placement
from nas_attn.candidates import Candidates, Codes, Floats, Sites, features_of
from nas_attn.claim import DRAWS, INTERVAL
from nas_attn.network import Network
from nas_attn.outcome import Snapshot
from nas_attn.posterior import modelled, sites_within
from nas_attn.propose import Belief, Tried
from nas_attn.variances import THOROUGH

Cell = tuple[int, str]
"""A row of the base, and a module after it, whatever its options."""
Placed = tuple[Placement, ...]
Contrast = Mapping[Placed, float]
"""A weighted sum over architectures, each named by all that it holds."""

SCORE = "map50_95"
MOST_INTERACTIONS = 40
SCREENED_BY = 8
"""The largest interactions are found by so many settings of the model, the likeliest, and told by all of them."""
LEFT = 10.0 ** np.linspace(-5, 2, 29)
"""What a sum over placements may leave of latencies: a variance, beside that of one placement's effect."""
RESOLUTION = 1e-4
"""Latency ratios that differ by less are alike."""

COLUMNS: Mapping[str, str] = {
    "row": "the row of the base after which the module stands",
    "module": "the module's name",
    "params": "its hyperparameters; empty: the mean over those that were tried there",
    "trials": "measured architectures that hold it",
    "gain": "expected change of mAP50-95 by it alone, against the base",
    "gain_low": "lower end of its 90 % interval",
    "gain_high": "upper end of it",
    "p_better": "probability that the change is above zero",
    "latency": "expected change of latency_ratio by it alone",
    "latency_low": "lower end of its 90 % interval",
    "latency_high": "upper end of it",
}
"""What each column of atlas.csv holds."""
INTERACTION_COLUMNS: Mapping[str, str] = {
    "first_row": "the row of the base after which the first module stands",
    "first_module": "its name",
    "second_row": "the row after which the second stands",
    "second_module": "its name",
    "trials": "measured architectures that hold both",
    "gain": "expected change of mAP50-95 by both together beyond the sum of each alone",
    "gain_low": "lower end of its 90 % interval",
    "gain_high": "upper end of it",
}
"""What each column of interactions.csv holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What a module after a row of the base does alone; `params` are its options, or "" for the mean over those that were tried there.

    `trials` is the number of measured architectures that hold it. `gain` is in mAP50-95 against the base, `latency` what is added to
    `latency_ratio`, both expected with 90 % intervals; `p_better` is the probability that `gain` is above zero.
    """

    row: int
    module: str
    params: str
    trials: int
    gain: float
    gain_low: float
    gain_high: float
    p_better: float
    latency: float
    latency_low: float
    latency_high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Interaction:
    """What two modules gain together beyond the sum of what each gains alone, in mAP50-95 with a 90 % interval: the mean over those options
    of theirs that were measured together. `trials` is the number of measured architectures that hold both.
    """

    first: Cell
    second: Cell
    trials: int
    gain: float
    gain_low: float
    gain_high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Atlas:
    """The effects of all `cells` and `options` of measured architectures, by row, module and options; of `interactions` between cells that
    one of them holds the `MOST_INTERACTIONS` largest, by size.
    """

    cells: tuple[Effect, ...]
    options: tuple[Effect, ...]
    interactions: tuple[Interaction, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """A module after a row that was tried, but in no architecture that the atlas tells of: how many trials hold it, by their kind."""

    row: int
    module: str
    kinds: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """What an atlas has places for: the rows and modules of the space and of all trials, and what was tried there without an effect."""

    rows: tuple[int, ...] = ()
    modules: tuple[str, ...] = ()
    lost: tuple[Lost, ...] = ()


def grid(snapshot: Snapshot, cells: Iterable[Effect], drawing: Network) -> Grid:
    """The places of a study's atlas; `drawing` tells which rows the sites' names mean."""
    spec: Mapping[str, Any] = snapshot.settings.get("spec", {})
    wanted = {want.removesuffix("?") if isinstance(want, str) else want for want in spec.get("sites", ())}
    told, kinds = {(cell.row, cell.module) for cell in cells}, dict[Cell, Counter[str]]()
    for trial in snapshot.trials:
        for placement in trial.architecture.placements:
            kinds.setdefault(_cell(placement), Counter())[trial.kind or "running"] += 1
    tried = told | kinds.keys()
    return Grid(
        rows=tuple(sorted({node.row for node in drawing.nodes if wanted & {node.row, *node.names}} | {row for row, _ in tried})),
        modules=tuple(sorted({*spec.get("modules", ())} | {module for _, module in tried})),
        lost=tuple(Lost(row=cell[0], module=cell[1], kinds=dict(kinds[cell])) for cell in sorted(kinds.keys() - told)),
    )


def atlas(snapshot: Snapshot, seed: int = 0) -> Atlas | None:
    """The atlas of a study, the same for the same record; None where `posterior.believe` is, or where mAP50-95 is no objective.

    Of more than `posterior.MOST` trials it tells what those hold that the model has.
    """
    model = modelled(snapshot)
    if model is None or SCORE not in snapshot.objectives:
        return None
    held = dict.fromkeys(trial.architecture.placements for trial in model[0] if trial.kind == "measured")
    placed = [placement for placements in held for placement in placements]
    together = [pair for placements in held for pair in combinations(placements, 2)]
    if not placed:
        return Atlas(cells=(), options=(), interactions=())
    asked = _Asked(snapshot, model, [*((placement,) for placement in placed), *together], seed)
    cells, options = _grouped(placed, _cell), _grouped(placed)
    groups, pairs = [*cells, *options], _largest(asked, together)
    gains = asked.draws([*map(_alone, groups), *map(_beyond, pairs)]).T
    effects = tuple(map(_effect, groups, gains, _latencies(snapshot, groups, seed).T))
    interactions = sorted(map(_interaction, pairs, gains[len(groups) :]), key=lambda interaction: -abs(interaction.gain))
    named = tuple(replace(effect, params="") for effect in effects[: len(cells)])
    return Atlas(cells=named, options=effects[len(cells) :], interactions=tuple(interactions))


def atlas_table(atlas: Atlas) -> list[dict[str, Any]]:
    """One row a cell, then one an option, with the keys `COLUMNS`. An option without parameters is its cell, and is not said twice."""
    options = [effect for effect in atlas.options if effect.params]
    return [dict(zip(COLUMNS, astuple(effect), strict=True)) for effect in (*atlas.cells, *options)]


def interactions_table(atlas: Atlas) -> list[dict[str, Any]]:
    """One row an interaction, the largest first, with the keys `INTERACTION_COLUMNS`."""
    rows = [(*one.first, *one.second, one.trials, one.gain, one.gain_low, one.gain_high) for one in atlas.interactions]
    return [dict(zip(INTERACTION_COLUMNS, row, strict=True)) for row in rows]


# -- groups of placements, or of pairs of them, that share an answer: one is named as often as architectures hold it -----------------------


def _grouped(items: Iterable[Any], key: Callable[[Any], Any] | None = None) -> list[list[Any]]:
    """The items by their key, or equal ones, in the order of the keys."""
    return [list(group) for _, group in groupby(sorted(items, key=key), key)]


def _largest(asked: "_Asked", together: Sequence[Placed]) -> list[list[Placed]]:
    """The pairs of the cells that are expected to do most beyond their sum."""
    groups = _grouped(together, lambda pair: tuple(map(_cell, pair)))
    order = np.argsort(-np.abs(asked.means([*map(_beyond, groups)])), kind="stable")
    return [groups[k] for k in order[:MOST_INTERACTIONS]]


def _effect(group: Sequence[Placement], gains: Floats, latencies: Floats) -> Effect:
    row, module = _cell(group[0])
    params = str(group[0]).removeprefix(f"{module}(").removesuffix(f")@{row}")
    said = {**_summary("gain", gains), "p_better": float(np.mean(gains > 0)), **_summary("latency", latencies)}
    return Effect(row=row, module=module, params=params, trials=len(group), **said)


def _interaction(group: Sequence[Placed], gains: Floats) -> Interaction:
    return Interaction(first=_cell(group[0][0]), second=_cell(group[0][1]), trials=len(group), **_summary("gain", gains))


def _summary(name: str, draws: Floats) -> dict[str, float]:
    low, high = np.quantile(draws, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2])
    return {name: float(draws.mean()), f"{name}_low": float(low), f"{name}_high": float(high)}


def _cell(placement: Placement) -> Cell:
    return placement.layer, placement.module


def _alone(group: Sequence[Placement]) -> Contrast:
    options = sorted(set(group))
    return {(): -1.0, **{(option,): 1.0 / len(options) for option in options}}


def _beyond(group: Sequence[Placed]) -> Contrast:
    pairs, found = sorted(set(group)), dict[Placed, float]({(): 1.0})
    for pair in pairs:
        for placed, sign in ((pair, 1.0), (pair[:1], -1.0), (pair[1:], -1.0)):
            found[placed] = found.get(placed, 0.0) + sign / len(pairs)
    return found


# -- accuracy ------------------------------------------------------------------------------------------------------------------------------


class _Asked:
    """The model of a study's trials, asked about architectures that need not be among them."""

    def __init__(self, snapshot: Snapshot, model: tuple[Any, Sites, Candidates, Tried], more: Iterable[Placed], seed: int) -> None:
        _, self._sites, candidates, tried = model
        self._seed, column = seed, list(snapshot.objectives).index(SCORE)
        codes = np.unique(np.concatenate([candidates.codes, self._codes([(), *more])]), axis=0)
        extended = replace(candidates, codes=codes, known={}, features=features_of(self._sites, codes))
        score = replace(tried, values=tried.values[:, [column]])
        self._model = Belief(extended, {SCORE: "maximize"}, score, seed + column, THOROUGH)  # by the claims' seed, to be the claims' model

    def draws(self, contrasts: Sequence[Contrast]) -> Floats:
        """Joint draws (DRAWS, len(contrasts))."""
        rows, weights = self._rows(contrasts)
        return self._model.surrogates[0].draws(rows, DRAWS, np.random.default_rng(self._seed)) @ weights

    def means(self, contrasts: Sequence[Contrast]) -> Floats:
        """Expected values (len(contrasts),), by the likeliest settings."""
        rows, weights = self._rows(contrasts)
        return self._model.surrogates[0].mean(rows, SCREENED_BY) @ weights

    def _rows(self, contrasts: Sequence[Contrast]) -> tuple[NDArray[np.int64], Floats]:
        """The candidates in some contrasts, and their weights (n, len(contrasts)) in each."""
        places = {placed: k for k, placed in enumerate(dict.fromkeys(chain.from_iterable(contrasts)))}
        weights = np.zeros((len(places), len(contrasts)))
        for column, contrast in enumerate(contrasts):
            for placed, weight in contrast.items():
                weights[places[placed], column] = weight
        return self._model.locate(self._codes(places))[0], weights

    def _codes(self, several: Iterable[Placed]) -> Codes:
        return self._sites.codes(Architecture("", placed) for placed in several)


# -- latency -------------------------------------------------------------------------------------------------------------------------------


def _latencies(snapshot: Snapshot, groups: Sequence[Sequence[Placement]], seed: int) -> Floats:
    """Draws (DRAWS, len(groups)) of what the placements of each group add to `latency_ratio`, in the mean over its options.

    A linear model of every trial with a cost; the scale of its prior, and what a sum leaves beside it, follow from the data. What a module
    costs at one site says what it costs at others: with 20 of those 93 architectures the error on the others is 0.017 instead of 0.030.
    The base's ratio is one by definition.
    """
    ordered = sorted(snapshot.trials, key=lambda trial: trial.number)
    timed = [(t.architecture, t.cost.latency.ratio) for t in ordered if t.cost is not None and t.architecture.placements]
    sites = sites_within([architecture.placements for architecture, _ in timed])
    left, scale, right = np.linalg.svd(_design(sites, [architecture for architecture, _ in timed]), full_matrices=False)
    added = np.array([ratio for _, ratio in timed]) - 1.0
    seen, count = left.T @ added, len(added)
    missed = max(float(added @ added - seen @ seen), 0.0) + RESOLUTION**2
    spread = scale**2 + LEFT[:, None]
    squares = np.sum(seen**2 / spread, axis=1) + missed / LEFT
    score = -0.5 * (np.log(spread).sum(axis=1) + (count - len(scale)) * np.log(LEFT) + count * np.log(squares))
    chance, rng = np.exp(score - score.max()), np.random.default_rng(seed)
    setting = rng.choice(len(LEFT), size=DRAWS, p=chance / chance.sum())
    unit = np.sqrt(squares[setting] / rng.chisquare(count, DRAWS))[:, None]
    free = rng.standard_normal((DRAWS, right.shape[1]))
    told = (scale * seen / spread)[setting] - unit * (1.0 - np.sqrt(LEFT[:, None] / spread))[setting] * (free @ right.T)
    options, alike = sorted(set(chain.from_iterable(groups))), [set(group) for group in groups]
    singles = _design(sites, [Architecture("", (option,)) for option in options])
    asked = singles.T @ np.array([[(option in group) / len(group) for group in alike] for option in options])
    return np.asarray(told @ (right @ asked) + unit * (free @ asked))


def _design(sites: Sites, architectures: Sequence[Architecture]) -> Floats:
    """What a linear model sees (n, columns): the placements in all and of each module, then those of each site by its prior covariance."""
    codes = sites.codes(architectures)
    modules = sorted({placement.module for options in sites.options for placement in options})
    shared, own = np.zeros((len(codes), 1 + len(modules))), []
    for column, (options, covariance) in enumerate(zip(sites.options, sites.covariances(), strict=True)):
        alike = [[1.0, *(float(placement.module == module) for module in modules)] for placement in options]
        shared += np.array([[0.0] * shared.shape[1], *alike])[codes[:, column]]
        own.append(np.linalg.cholesky(covariance + 1e-12 * np.eye(len(covariance)))[codes[:, column]])
    return np.concatenate([shared, *own], axis=1)
