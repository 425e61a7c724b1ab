"""The set of architectures that a search chooses from: sites of one base, and at each of them the modules that may be placed there.

Every architecture has a number from 0 (the base itself) to `size - 1`. One table of counts gives the size, the enumeration and an exactly
uniform sample, for spaces of any size.

A sampler sees genes instead: a flat encoding with one gene `<row>.module` a site and one gene `<row>.<module>.<hyperparameter>` for each
hyperparameter that can vary there. Genes of modules that were not chosen are inactive and stand at their first value. Flat, because
samplers are a hundred times slower in conditional spaces.
"""

import hashlib
import itertools
import json
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from nas_attn.architecture import Architecture, Param, Placement
from nas_attn.errors import SpaceError, nearest
from nas_attn.records import record

Gene = str | Param
Choices = Mapping[str, Mapping[str, Sequence[Param]]]
"""For each module the values of each of its hyperparameters."""

NONE = "none"
"""The value of a gene `<row>.module` where nothing is placed."""


@dataclass(frozen=True, slots=True)
class Site:
    """A row of the base after which a module may be placed: its names (`P3`, `neck_P4_out`), module, channels and stride in pixels."""

    layer: int
    names: tuple[str, ...]
    module: str
    channels: int
    stride: int

    def __str__(self) -> str:
        return f"{'/'.join(self.names) or 'row'} (row {self.layer}: {self.module}, {self.channels} channels, stride {self.stride})"


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpace:
    """Up to `max_placements` of the legal `placements`, at most one at each of `sites`; `placements[i]` are those of `sites[i]`.

    `notes` say what was asked for and left out, one line each; they are no part of the space's identity.
    """

    base: str
    sites: tuple[Site, ...]
    placements: tuple[tuple[Placement, ...], ...]
    max_placements: int
    notes: tuple[str, ...] = field(default=(), compare=False)
    genes: Mapping[str, tuple[Gene, ...]] = field(init=False, repr=False, compare=False)
    _counts: tuple[tuple[int, ...], ...] = field(init=False, repr=False, compare=False)
    _fixed: Mapping[int, Mapping[str, Mapping[tuple[Param, ...], Placement]]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        rows = [site.layer for site in self.sites]
        hosts = [{placement.layer for placement in options} for options in self.placements]
        if not rows or rows != sorted(set(rows)) or hosts != [{row} for row in rows]:
            raise SpaceError(
                f"Each site needs placements of its own, in the order of rows, but got rows {rows} with {hosts}; see `resolve`."
            )
        if self.max_placements < 1:
            raise SpaceError(f"`max_placements >= 1` must hold, but got {self.max_placements}; allow at least one module.")
        object.__setattr__(self, "_counts", _count_table([len(options) for options in self.placements], self._most()))
        object.__setattr__(self, "_fixed", {row: _by_module(options) for row, options in zip(rows, self.placements, strict=True)})
        object.__setattr__(self, "genes", MappingProxyType(dict(self._all_genes())))

    def _most(self) -> int:
        """Placements that an architecture can have: one a site, whatever number was written."""
        return min(self.max_placements, len(self.sites))

    @property
    def size(self) -> int:
        """The number of architectures, the base included."""
        return self._counts[0][-1]

    def architecture(self, number: int) -> Architecture:
        """The architecture of that number, in the order of `enumerate`; 0 is the base.

        Raises:
            SpaceError: a number outside of the space.
        """
        if not 0 <= number < self.size:
            raise SpaceError(f"`0 <= number < {self.size}` must hold, but got {number}; take a number of this space.")
        chosen, left = [], self._most()
        for i, options in enumerate(self.placements):
            without = self._counts[i + 1][left]
            if number < without:
                continue
            choice, number = divmod(number - without, self._counts[i + 1][left - 1])
            chosen.append(options[choice])
            left -= 1
            if not left:
                break
        return Architecture(self.base, tuple(chosen))

    def enumerate(self) -> Iterator[Architecture]:
        """Every architecture once, the base first, always in the same order, made only as they are asked for."""
        return map(self.architecture, itertools.takewhile(lambda number: number < self.size, itertools.count()))

    def sample(self, rng: random.Random) -> Architecture:
        """One architecture; all of them, the base included, are equally likely."""
        return self.architecture(rng.randrange(self.size))

    def contains(self, architecture: Architecture) -> bool:
        """Whether `architecture` is one of this space's."""
        return (
            architecture.base == self.base
            and len(architecture.placements) <= self.max_placements
            and all(self._find(placement) == placement for placement in architecture.placements)
        )

    def encode(self, architecture: Architecture) -> dict[str, Gene]:
        """A value for every gene; inactive genes stand at their first value.

        Raises:
            SpaceError: an architecture of another space.
        """
        if not self.contains(architecture):
            raise SpaceError(
                f"An architecture must belong to the space of {self.base}, but got {architecture}; {self.why_not(architecture)}"
            )
        genes = {name: choices[0] for name, choices in self.genes.items()}
        for placement in architecture.placements:
            genes[f"{placement.layer}.module"] = placement.module
            genes |= {f"{placement.layer}.{placement.module}.{name}": value for name, value in placement.params}
        return {name: genes[name] for name in self.genes}

    def decode(self, genes: Mapping[str, Gene]) -> Architecture:
        """The architecture that a full set of genes stands for.

        Raises:
            SpaceError: a gene that is missing, unknown or of an unknown value, modules that do not fit together, too many placements.
        """
        self._require_genes(genes)
        chosen = []
        for site in self.sites:
            module = genes[f"{site.layer}.module"]
            if module != NONE:
                chosen.append(self._decode_site(site, str(module), genes))
        if len(chosen) > self.max_placements:
            raise SpaceError(f"`placements <= {self.max_placements}` must hold, but got {len(chosen)}; drop some, or use `repair`.")
        return Architecture(self.base, tuple(chosen))

    def repair(self, genes: Mapping[str, Gene], rng: random.Random) -> Architecture:
        """The legal architecture nearest to what a sampler proposed: unknown modules and values are replaced, surplus placements dropped.

        Samplers draw genes one by one, so that nearly every first draw fills nearly every site. How many of too many placements are kept
        is therefore drawn from 1 to `max_placements`: otherwise small architectures, the fast end of a front, would hardly ever be seen.
        """
        wanted = [(site, genes.get(f"{site.layer}.module", NONE)) for site in self.sites]
        chosen = [self._nearest(site, str(module), genes, rng) for site, module in wanted if module != NONE]
        if len(chosen) > self.max_placements:
            chosen = rng.sample(chosen, rng.randint(1, self.max_placements))
        return Architecture(self.base, tuple(chosen))

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that name this set of architectures."""
        options = [placement.to_dict() for options in self.placements for placement in options]
        text = json.dumps([self.base, self.max_placements, options], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def _all_genes(self) -> Iterator[tuple[str, tuple[Gene, ...]]]:
        for row, modules in self._fixed.items():
            yield f"{row}.module", (NONE, *modules)
            for module, options in modules.items():
                names = next(iter(options.values())).params
                for position, (name, _) in enumerate(names):
                    values = tuple(dict.fromkeys(key[position] for key in options))
                    # What cannot vary is no gene: it would only cost storage and samplers' time.
                    if len(values) > 1:
                        yield f"{row}.{module}.{name}", values

    def _find(self, placement: Placement) -> Placement | None:
        options = self._fixed.get(placement.layer, {}).get(placement.module, {})
        return options.get(tuple(value for _, value in placement.params))

    def _params(self, site: Site, module: str, genes: Mapping[str, Gene]) -> tuple[Gene, ...]:
        """What `genes` say of each hyperparameter, sorted by name; what is no gene stands at its only value."""
        first = next(iter(self._fixed[site.layer][module].values()))
        return tuple(genes.get(f"{site.layer}.{module}.{name}", value) for name, value in first.params)

    def _decode_site(self, site: Site, module: str, genes: Mapping[str, Gene]) -> Placement:
        values = self._params(site, module, genes)
        for key, placement in self._fixed[site.layer][module].items():
            if key == values:
                return placement
        raise SpaceError(f"Hyperparameters must fit together at {site}, but got {module} with {values}; use `repair`.")

    def _nearest(self, site: Site, module: str, genes: Mapping[str, Gene], rng: random.Random) -> Placement:
        modules = self._fixed[site.layer]
        if module not in modules:
            return rng.choice([placement for options in modules.values() for placement in options.values()])
        values = self._params(site, module, genes)
        differing = {key: sum(a != b for a, b in zip(key, values, strict=True)) for key in modules[module]}
        least = min(differing.values())
        return modules[module][rng.choice([key for key, count in differing.items() if count == least])]

    def _require_genes(self, genes: Mapping[str, Gene]) -> None:
        for name in genes.keys() - self.genes.keys():
            raise SpaceError(f"Every gene must be known, but got {name!r}. {nearest(name, self.genes)}")
        for name, choices in self.genes.items():
            if name not in genes or genes[name] not in choices:
                raise SpaceError(f"Gene {name!r} must be one of {choices}, but got {genes.get(name)!r}; use `repair`.")

    def why_not(self, architecture: Architecture) -> str:
        """In words why `architecture` is none of this space's."""
        if architecture.base != self.base:
            return f"its base is {architecture.base}."
        foreign = [str(placement) for placement in architecture.placements if self._find(placement) != placement]
        return f"not in this space: {', '.join(foreign)}." if foreign else f"at most {self.max_placements} placements are allowed."


def resolve(
    base: str,
    available: Sequence[Site],
    wanted: Iterable[int | str],
    modules: Choices,
    max_placements: int,
    *,
    imgsz: int | None = None,
    dynamic_onnx: bool = False,
) -> SearchSpace:
    """The space of `modules` at the `wanted` sites (names, or rows) of a base that offers the `available` ones.

    With `imgsz`, the side of an image in pixels, what breaks a record's `map_constraints` at a site is left out; with `dynamic_onnx`
    every module whose ONNX export has fixed sizes.

    A name with a trailing `?` is passed over where the base lacks it; names of one row are one site. What a site's channels do not allow
    is left out, and so is what would build the same module as an earlier choice there.

    Raises:
        SpaceError: a site that the base lacks, with the nearest names, or a space in which nothing is left.
    """
    notes: list[str] = []
    sites = _choose(base, available, wanted, notes)
    if dynamic_onnx:
        fixed = [name for name in modules if record(name).onnx != "dynamic"]
        notes.extend(f"{name}: its ONNX export has fixed sizes; left out" for name in fixed)
        modules = {name: choices for name, choices in modules.items() if name not in fixed}
    options = {site: _legal(site, modules, imgsz, notes) for site in sites}
    kept = tuple(site for site in sites if options[site])
    if not kept:
        reason = "; ".join(notes) or "no site was named"
        raise SpaceError(f"A space needs at least one legal placement in {base}, but nothing is left ({reason}); add sites or modules.")
    notes.extend(f"{site}: none of the modules fits; left out" for site in sites if not options[site])
    return SearchSpace(
        base=base,
        sites=kept,
        placements=tuple(options[site] for site in kept),
        max_placements=max_placements,
        notes=tuple(notes),
    )


def combinations(choices: Mapping[str, Sequence[Param]]) -> Iterator[dict[str, Param]]:
    """Every combination of one module's hyperparameters, in the order in which their values are written."""
    return (dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values()))


def _choose(base: str, available: Sequence[Site], wanted: Iterable[int | str], notes: list[str]) -> tuple[Site, ...]:
    names = {name for site in available for name in site.names}
    chosen: set[Site] = set()
    for want in wanted:
        name = want.removesuffix("?") if isinstance(want, str) else want
        found = {site for site in available if name == site.layer or name in site.names}
        if not found and want == name:
            known = nearest(name, names) if isinstance(name, str) else f"Rows with one map that is read on: {[s.layer for s in available]}."
            raise SpaceError(f"A site must exist in {base}, but got {want!r}. {known}")
        if not found:
            notes.append(f"{want}: {base} has no such site; left out")
        chosen |= found
    return tuple(sorted(chosen, key=lambda site: site.layer))


def _legal(site: Site, modules: Choices, imgsz: int | None, notes: list[str]) -> tuple[Placement, ...]:
    placements: list[Placement] = []
    size = None if imgsz is None else (math.ceil(imgsz / site.stride),) * 2
    for module, choices in modules.items():
        entry, built = record(module), dict[tuple[tuple[str, Param], ...], Placement]()
        for params in combinations(choices):
            if problems := entry.violations(site.channels, params, size):
                notes.append(f"{Placement(site.layer, module, tuple(params.items()))}: {problems[0]}")
                continue
            placement = Placement(site.layer, module, entry.complete(params))
            numbers = entry.built(site.channels, params)
            if numbers in built:
                notes.append(f"{placement}: the same module as {built[numbers]}; left out")
            built.setdefault(numbers, placement)
        placements.extend(built.values())
    return tuple(placements)


def _by_module(options: Sequence[Placement]) -> dict[str, dict[tuple[Param, ...], Placement]]:
    table: dict[str, dict[tuple[Param, ...], Placement]] = {}
    for placement in options:
        table.setdefault(placement.module, {})[tuple(value for _, value in placement.params)] = placement
    return table


def _count_table(options: Sequence[int], most: int) -> tuple[tuple[int, ...], ...]:
    """`table[i][k]`: in how many ways at most `k` placements can be made at the sites from `i` on."""
    table = [[1] * (most + 1)]
    for number in reversed(options):
        after = table[0]
        table.insert(0, [1] + [after[left] + number * after[left - 1] for left in range(1, most + 1)])
    return tuple(map(tuple, table))
