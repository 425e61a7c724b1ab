"""What a sampler that models accuracy may propose: every candidate as a row of codes, and what is known of each before its trial.

A candidate is one choice for every gene. For a space of architectures a gene is a site, and its choices are "nothing" and every placement
that is legal there, so that effects add up site by site; for a table of measurements the genes are the table's columns.
"""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas_attn.architecture import Architecture, Placement
from nas_attn.errors import InputError
from nas_attn.records import family
from nas_attn.space import SearchSpace, Site

Floats = NDArray[np.float64]
Codes = NDArray[np.int16]

ENUMERABLE = 100_000
"""Spaces up to this size are listed whole; of larger ones as many candidates are drawn, and the neighbours of good ones added."""
START, FEWEST = 10, 5
"""Candidates that are tried before a model is asked; fewer suffice where every choice occurs among them."""

SAME_MODULE, SAME_FAMILY, ANY_MODULE = 0.7, 0.3, 0.15
"""Prior correlation of the effects of two placements at one site: other hyperparameters, another module of the family, any other."""
NUMERIC_IID = 0.2
"""The share of a numeric gene's prior variance that is not smooth in the rank of its values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """`codes[i, g]` is the position of candidate i's choice within `genes[g]`, columns in the order of `genes`.

    `known` holds objectives that are known before a trial, (N,) each. `reference` is the hypervolume's reference point by objective; what
    it does not name follows from the data. `covariances[g]` is the prior covariance of the effects of a gene's choices; a choice of zero
    variance is the one against which effects are counted ("nothing here"). `features` (N, F) are cheap numbers that may explain accuracy.
    """

    genes: Mapping[str, tuple[Any, ...]]
    codes: Codes
    known: Mapping[str, Floats] = field(default_factory=lambda: MappingProxyType({}))
    reference: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    covariances: tuple[Floats, ...] = ()
    features: Floats | None = None

    def __post_init__(self) -> None:
        count = len(self.codes)
        if self.codes.ndim != 2 or self.codes.shape[1] != len(self.genes) or not count:
            raise InputError(f"Candidates need one code a gene, but got codes of shape {self.codes.shape} for {len(self.genes)} genes.")
        for name, values in self.known.items():
            if values.shape != (count,) or not np.all(np.isfinite(values)):
                raise InputError(f"Known objective {name!r} must be finite for each of {count} candidates; leave it out of `known`.")
        if not self.covariances:
            object.__setattr__(self, "covariances", tuple(covariance(choices) for choices in self.genes.values()))
        if self.features is None:
            object.__setattr__(self, "features", np.stack([*self.known.values()], axis=1) if self.known else np.zeros((count, 0)))


def keys(codes: Codes) -> NDArray[np.uint64]:
    """A 64-bit hash a row of codes; equal rows have equal keys, and 10^5 different ones share none but once in 10^9 spaces."""
    factors = np.random.default_rng(0x5EED).integers(1, 2**63, size=codes.shape[1], dtype=np.uint64) | np.uint64(1)
    mixed = (codes.astype(np.uint64) + np.uint64(1)) * factors
    mixed ^= mixed >> np.uint64(31)
    return np.asarray((mixed * factors).sum(axis=1, dtype=np.uint64))


def least_tried(codes: Codes, seen: Codes) -> int:
    """The position of the row of codes whose choices occur least in the rows `seen`: what was never tried cannot be found to be good."""
    novelty = np.zeros(len(codes))
    for gene in range(codes.shape[1]):
        novelty += 1.0 / (1.0 + np.bincount(seen[:, gene], minlength=int(codes[:, gene].max()) + 1)[codes[:, gene]])
    return int(np.argmax(novelty))


def enough_to_begin(genes: Mapping[str, tuple[Any, ...]], seen: Codes) -> bool:
    """Whether a model has something to go by: `START` different rows were observed, or a few in which every choice occurs."""
    different = np.unique(seen, axis=0)
    every_choice = all(len(np.unique(seen[:, g])) == len(choices) for g, choices in enumerate(genes.values()))
    return len(different) >= START or (len(different) >= FEWEST and every_choice)


def covariance(choices: tuple[Any, ...]) -> Floats:
    """The prior covariance of the effects of a gene's choices, centred, of mean variance one.

    Effects of categories are exchangeable. Effects of numbers are mostly smooth in the numbers' order: their spacing is rarely linear
    (image sizes, widths), and nothing but the order is sure.
    """
    count = len(choices)
    if count == 1:
        return np.zeros((1, 1))
    numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in choices)
    prior = np.eye(count)
    if numeric and count > 2:
        rank = np.argsort(np.argsort(np.array(choices, dtype=float))) / (count - 1)
        smooth = np.exp(-(((rank[:, None] - rank[None, :]) / 0.5) ** 2))
        prior = (1 - NUMERIC_IID) * smooth + NUMERIC_IID * prior
    centre = np.eye(count) - 1.0 / count
    centred = centre @ prior @ centre
    return np.asarray(centred / np.mean(np.diag(centred)))


# -- architectures -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sites:
    """The sites of a set of architectures: their rows, and the placements at each; a code of 0 is no placement there."""

    rows: tuple[int, ...]
    options: tuple[tuple[Placement, ...], ...]

    def code(self, architecture: Architecture) -> list[int]:
        """The codes of one architecture; all its placements must be among the options."""
        placed = {placement.layer: placement for placement in architecture.placements}
        return [1 + options.index(placed[row]) if row in placed else 0 for row, options in zip(self.rows, self.options, strict=True)]

    def codes(self, architectures: Iterable[Architecture]) -> Codes:
        """The codes of some architectures, (n, sites)."""
        return np.array([self.code(architecture) for architecture in architectures], dtype=np.int16).reshape(-1, len(self.rows))

    def architecture(self, base: str, codes: Codes) -> Architecture:
        """The architecture of one row of codes."""
        return Architecture(base, tuple(options[code - 1] for options, code in zip(self.options, codes.tolist(), strict=True) if code))

    def genes(self) -> dict[str, tuple[Any, ...]]:
        """One gene a site."""
        return {f"row {row}": ("none", *map(str, options)) for row, options in zip(self.rows, self.options, strict=True)}

    def covariances(self) -> tuple[Floats, ...]:
        """The prior covariance of placements at each site; "nothing" has none, so that effects are gains over the base."""
        return tuple(_placement_covariance(options) for options in self.options)


def sites_of(space: SearchSpace) -> Sites:
    """All sites of a space."""
    return Sites(tuple(site.layer for site in space.sites), space.placements)


def codes_of_space(space: SearchSpace, seed: int, around: tuple[Architecture, ...] = ()) -> Codes:
    """The candidates of a space: all of them, or a sample of it with uniform numbers of placements and the neighbours of `around`."""
    if space.size <= ENUMERABLE:
        return _enumerated(space)
    codes = np.concatenate([sampled(space, ENUMERABLE, seed), _neighbours(space, sites_of(space), around)])
    return np.asarray(np.unique(codes, axis=0))


def features_of(sites: Sites, codes: Codes, hosts: tuple[Site, ...] = ()) -> Floats:
    """Structural features (N, F): placements in all and by family; with the sites' `hosts` also by stride, in the neck, and channels."""
    families = sorted({family(p.module) for options in sites.options for p in options})
    strides = sorted({host.stride for host in hosts})
    total = np.zeros((len(codes), 1 + len(families) + (2 + len(strides) if hosts else 0)))
    for column, options in enumerate(sites.options):
        host = hosts[column] if hosts else None
        place: list[float] = []
        if host is not None:
            neck = any(name.startswith("neck") for name in host.names)
            place = [float(neck), host.channels / 256, *(float(host.stride == stride) for stride in strides)]
        rows = [np.zeros(total.shape[1])]
        for placement in options:
            rows.append(np.array([1.0, *(float(family(placement.module) == name) for name in families), *place]))
        total += np.stack(rows)[codes[:, column]]
    return total


def _placement_covariance(options: tuple[Placement, ...]) -> Floats:
    count = len(options) + 1
    prior = np.zeros((count, count))
    for i, first in enumerate(options, 1):
        for j, second in enumerate(options, 1):
            same_family = family(first.module) == family(second.module)
            other = SAME_FAMILY if same_family else ANY_MODULE
            prior[i, j] = 1.0 if i == j else SAME_MODULE if first.module == second.module else other
    return prior


@lru_cache(maxsize=4)
def _enumerated(space: SearchSpace) -> Codes:
    """Every architecture of the space as codes, the base first."""
    rows: list[list[int]] = []
    row = [0] * len(space.sites)

    def descend(column: int, left: int) -> None:
        if column == len(row):
            rows.append(row.copy())
            return
        for code in range(len(space.placements[column]) + 1 if left else 1):
            row[column] = code
            descend(column + 1, left - (code > 0))
        row[column] = 0

    descend(0, space.max_placements)
    return np.array(rows, dtype=np.int16)


def sampled(space: SearchSpace, count: int, seed: int) -> Codes:
    """Codes of random architectures whose number of placements is uniform: nearly all of a space's have as many as are allowed."""
    rng = np.random.default_rng(seed)
    sites, most = len(space.sites), min(space.max_placements, len(space.sites))
    order = np.argsort(rng.random((count, sites)), axis=1)
    kept = order < rng.integers(1, most + 1, size=count)[:, None]
    sizes = np.array([len(options) for options in space.placements])
    return np.where(kept, 1 + (rng.random((count, sites)) * sizes).astype(np.int16), 0).astype(np.int16)


def _neighbours(space: SearchSpace, sites: Sites, around: tuple[Architecture, ...]) -> Codes:
    """All architectures that differ from one of `around` at one site, and those whose placements are of two of them."""
    rows: list[list[int]] = [[0] * len(sites.rows)]
    starts = [sites.code(architecture) for architecture in around]
    for start in starts:
        for column, options in enumerate(sites.options):
            rows += [[*start[:column], code, *start[column + 1 :]] for code in range(len(options) + 1)]
    rng = random.Random(len(starts))
    for first in starts:
        for second in starts:
            rows += [[rng.choice(pair) for pair in zip(first, second, strict=True)] for _ in range(8)]
    codes = np.array(rows, dtype=np.int16)
    return np.asarray(codes[np.count_nonzero(codes, axis=1) <= space.max_placements])
