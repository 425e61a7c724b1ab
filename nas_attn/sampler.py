"""Samplers by name, and the mirror of a study that they see.

A sampler is made anew for every ask, from a seed of that ask alone, so that a resumed study goes on as if it had never stopped.
"""

import hashlib
import itertools
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from nas_attn.architecture import Architecture
from nas_attn.errors import InputError, nearest
from nas_attn.guide import choose, choose_many
from nas_attn.outcome import Stopped, Trial
from nas_attn.rows import set_constraints
from nas_attn.space import SearchSpace

STARTUP_TRIALS = 10
"""TPE proposes at random until this many trials are finished."""
POPULATION = 20
"""NSGA-II's generation: short searches need small ones, and twice the workers of one machine fit into it."""

TRIES = 32
"""Proposals a sampler may make for one trial before an unseen architecture is drawn from the space."""
ENUMERABLE = 50_000
"""Spaces up to this size are enumerated to find what is unseen; larger ones are sampled, as often."""


def _tpe(seed: int) -> BaseSampler:
    # The genes are a flat encoding: one joint density over all of them sees how placements work together, without groups.
    return TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=STARTUP_TRIALS)


class OrderedNSGAII(NSGAIISampler):
    """NSGA-II whose parents always stand in the order of their numbers.

    Optuna hands a generation's parents in the order of selection to its first child and in the order of numbers to all others, so that a
    resumed study, which selects anew, would go another way.
    """

    def select_parent(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        """The elite of the generation before."""
        return sorted(super().select_parent(study, generation), key=lambda trial: trial.number)


def _nsga2(seed: int) -> BaseSampler:
    return OrderedNSGAII(seed=seed, population_size=POPULATION)


def _random(seed: int) -> BaseSampler:
    return RandomSampler(seed=seed)


SAMPLERS: Mapping[str, Callable[[int], BaseSampler]] = MappingProxyType({"tpe": _tpe, "nsga2": _nsga2, "random": _random})
MODEL = "model"
LEARNING = ("tpe", "nsga2")
"""Samplers of Optuna's that read the trials of a study."""
NAMES = (MODEL, *SAMPLERS)


def make(name: str, seed: int) -> BaseSampler:
    """A new sampler of Optuna's: `tpe` (multivariate; running trials count as bad ones), `nsga2` or `random`.

    Raises:
        InputError: no sampler of that name.
    """
    require(name)
    if name == MODEL:
        raise InputError("The sampler 'model' needs candidates; make a `nas_attn.guide.ModelSampler`.")
    return SAMPLERS[name](seed)


def require(name: str) -> None:
    """Raises InputError unless a sampler has that name."""
    if name not in NAMES:
        raise InputError(f"A sampler must have a known name, but got {name!r}. {nearest(name, NAMES)}")


def ask_seed(seed: int, number: int) -> int:
    """The seed of one ask, from the study's seed and the trial's number: a resumed study draws nothing twice."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4], "big")


class Mirror:
    """The study as a sampler should see it, in memory: no trial is PRUNED in it, because pruned ones poison multi-objective TPE.

    Measured trials are COMPLETE and feasible. Rejected ones are COMPLETE and infeasible: what was not measured stands at its worst, which
    no sampler reads beside a violated constraint. Stopped ones are COMPLETE with what they had shown last. Failed ones are FAIL.
    The sampler `model` reads the trials themselves, with every seed and cost of each; for it, and for `random`, Optuna's study is empty.
    """

    def __init__(
        self,
        objectives: Mapping[str, str],
        genes: Mapping[str, tuple[Any, ...]],
        sampler: str,
        limits: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        require(sampler)
        self._limits, self._trials = dict(limits), dict[int, Trial]()
        self.distributions: dict[str, BaseDistribution] = {name: CategoricalDistribution(choices) for name, choices in genes.items()}
        self._objectives, self._sampler, self._numbers = dict(objectives), sampler, dict[int, int]()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._begin()

    def _begin(self) -> None:
        self._storage = InMemoryStorage()
        directions = [StudyDirection[direction.upper()] for direction in self._objectives.values()]
        self.study = optuna.create_study(storage=self._storage, study_name="mirror", directions=directions, sampler=RandomSampler(seed=0))

    def proposals(self, seed: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """What one sampler of that seed proposes, without end: genes, and the attributes that the sampler wants kept with their trial.

        A proposal is not a trial: it is FAIL here at once, so that no sampler learns from it.
        """
        if self._sampler not in LEARNING:
            self._begin()  # nothing in it but former proposals, which would only fill the memory
        self.study.sampler = make(self._sampler, seed)
        while True:
            proposal = self.study.ask(self.distributions)
            attributes = self.study.get_trials(deepcopy=False)[-1].system_attrs
            self._finish(proposal.number, TrialState.FAIL)
            yield dict(proposal.params), dict(attributes)

    def choose(self, space: SearchSpace, seed: int, seen: Collection[str]) -> tuple[Architecture, dict[str, Any]] | None:
        """An architecture whose digest is not among `seen`, with its sampler's attributes, or None when no other can be found.

        Proposals are repaired; after `TRIES` that were seen before, an unseen one is drawn from the space. One seed, one choice.
        """
        rng = random.Random(seed)
        attributes: dict[str, Any] = {}
        if self._sampler == MODEL:
            found = choose(space, self._objectives, self._limits, self._trials.values(), seen, seed) or _unseen(space, rng, seen)
            return None if found is None else (found, attributes)
        for genes, attributes in itertools.islice(self.proposals(seed), TRIES):
            architecture = space.repair(genes, rng)
            if architecture.digest() not in seen:
                return architecture, attributes
        unseen = _unseen(space, rng, seen)
        return None if unseen is None else (unseen, attributes)

    def choices(self, space: SearchSpace, seeds: Sequence[int], seen: Collection[str]) -> Iterator[tuple[Architecture, dict[str, Any]]]:
        """A choice a seed until there is no other; who takes one adds it here, and to `seen`, before the next.

        The model chooses as many as it knows at once; see `nas_attn.guide.choose_many`.
        """
        many = self._sampler == MODEL and len(seeds) > 1
        found = choose_many(space, self._objectives, self._limits, [*self._trials.values()], seen, seeds) if many else []
        yield from ((architecture, {}) for architecture in found)
        for seed in seeds[len(found) :]:
            chosen = self.choose(space, seed, seen)
            if chosen is None:
                return
            yield chosen

    def add(self, trial: Trial, genes: Mapping[str, Any], system: Mapping[str, Any]) -> None:
        """Adds a trial of the record in the state that it has there; `system` are its attributes, constraints included."""
        self._trials[trial.number] = trial
        if self._sampler not in LEARNING:
            return
        state, values = self._seen(trial)
        self.study.add_trial(
            create_trial(
                state=state,
                values=values,
                params=dict(genes),
                distributions=self.distributions,
                system_attrs=dict(system),
            )
        )
        added = self.study.get_trials(deepcopy=False)[-1]
        added.distributions = self.distributions  # Optuna keeps a copy for every trial, which takes more memory than all else
        self._numbers[trial.number] = added.number

    def tell(self, trial: Trial, constraints: Mapping[str, float]) -> None:
        """Ends a trial that was added while it ran."""
        self._trials[trial.number] = trial
        if self._sampler not in LEARNING:
            return
        state, values = self._seen(trial)
        number = self._numbers[trial.number]
        if state == TrialState.COMPLETE:
            set_constraints(self.study, self._storage, number, constraints)
        self._finish(number, state, values)

    def _finish(self, number: int, state: TrialState, values: Sequence[float] | None = None) -> None:
        # Not `Study.tell`, which copies the trial twice; what samplers do after a trial is nothing here.
        study_id = self._storage.get_study_id_from_name(self.study.study_name)
        own = self._storage.get_trial_id_from_study_id_trial_number(study_id, number)
        self._storage.set_trial_state_values(own, state, values)

    def _seen(self, trial: Trial) -> tuple[TrialState, list[float] | None]:
        if trial.kind is None:
            return TrialState.RUNNING, None
        if trial.kind == "failure":
            return TrialState.FAIL, None
        costs = trial.cost.metrics() if trial.cost else {}
        shown = dict(trial.values or costs)
        if isinstance(trial.verdict, Stopped) and trial.verdict.curve:
            shown = {**trial.verdict.curve[-1], **costs}
        # Accuracies are maximized and have 0 as their worst; costs are known before any training.
        return TrialState.COMPLETE, [float(shown.get(name, 0.0)) for name in self._objectives]


def _unseen(space: SearchSpace, rng: random.Random, seen: Collection[str]) -> Architecture | None:
    if space.size <= ENUMERABLE:
        left = [architecture for architecture in space.enumerate() if architecture.digest() not in seen]
        return rng.choice(left) if left else None
    draws = (space.sample(rng) for _ in range(ENUMERABLE))
    return next((architecture for architecture in draws if architecture.digest() not in seen), None)
