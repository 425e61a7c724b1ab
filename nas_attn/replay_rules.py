"""What all runs of a replay have in common: the table, what is known of it, the noise, and what counts as much."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nas_attn import pareto
from nas_attn.errors import InputError
from nas_attn.sampler import ask_seed
from nas_attn.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What all runs of a replay have in common; plain enough to be sent to another process."""

    table: Table
    trials: int
    grid: tuple[int, ...]
    """Numbers of trials after which the returned front is judged, ascending; the last is `trials`."""
    repeats: int
    seed: int
    noise: Mapping[str, float]
    """Standard deviation of the noise by objective, in its own unit; all others are observed as they are."""
    known: tuple[str, ...]
    reference: Mapping[str, float]
    told: Mapping[str, float]
    """The part of the reference that a model may know: what the user stated, not what the table's worst row betrays."""
    charge_invalid: bool
    maximum: float
    """The hypervolume of the whole table."""

    def share(self, rows: Sequence[int]) -> float:
        """The hypervolume of the true values of some rows, as a share of the maximum."""
        return hypervolume(self.table, rows, self.reference) / self.maximum

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of the samplers of every repeat, the same for all of them."""
        return tuple(ask_seed(self.seed, repeat) for repeat in range(self.repeats))

    def settings(self) -> dict[str, Any]:
        """What a reader needs to judge or repeat the replay, ready for JSON."""
        table = self.table
        return {
            "rows": len(table),
            "combinations": table.combinations,
            "genes": {name: list(choices) for name, choices in table.genes.items()},
            "objectives": dict(table.directions),
            "trials": self.trials,
            "repeats": self.repeats,
            "seed": self.seed,
            "seeds": list(self.seeds),
            "noise": dict(self.noise),
            "known": list(self.known),
            "reference": dict(self.reference),
            "reference_stated": sorted(self.told),
            "charge_invalid": self.charge_invalid,
            "maximum_hypervolume": self.maximum,
        }


def make_rules(
    table: Table,
    trials: int,
    repeats: int,
    noise: float | Mapping[str, float],
    known: Sequence[str],
    reference: Mapping[str, float | str],
    seed: int,
    charge_invalid: bool,
    every: int,
) -> Rules:
    """The rules of a replay, from what `replay.replay` is given.

    Raises:
        InputError: an unknown objective or percentile, a number out of range, a reference that no row is better than.
    """
    limit = table.combinations if charge_invalid else len(table)
    if not 1 <= trials <= limit or repeats < 1 or every < 1 or seed < 0:
        kind = "all" if charge_invalid else "valid"
        raise InputError(
            f"A replay needs 1 to {limit} trials (the table's {kind} combinations), repeats and steps of at "
            f"least 1 and no negative seed, but got {trials} trials, {repeats} repeats, every {every} trials, seed {seed}; correct that."
        )
    for name in (*known, *reference):
        if name not in table.directions:
            raise InputError(f"Known objectives and those of a reference must be objectives, but {name!r} is none. {_objectives(table)}")
    told = {name: _reference(table, name, value) for name, value in reference.items()}
    worst = {name: float((np.min if way == "maximize" else np.max)(table.values[name])) for name, way in table.directions.items()}
    point = {name: told.get(name, worst[name]) for name in table.directions}
    maximum = hypervolume(table, None, point)
    if not maximum > 0:
        raise InputError(
            f"A row of the table must be better than the reference in every objective, but none is better than {point}; name a worse one."
        )
    return Rules(
        table=table,
        trials=trials,
        grid=tuple(sorted({*range(every, trials + 1, every), trials})),
        repeats=repeats,
        seed=seed,
        noise=_noise(table, noise, known),
        known=tuple(known),
        reference=point,
        told=told,
        charge_invalid=charge_invalid,
        maximum=maximum,
    )


def _objectives(table: Table) -> str:
    return f"Objectives: {', '.join(table.directions)}."


def _noise(table: Table, noise: float | Mapping[str, float], known: Sequence[str]) -> dict[str, float]:
    if not isinstance(noise, Mapping):
        noisy = [name for name, way in table.directions.items() if way == "maximize" and name not in known]
        if noise and not noisy:
            raise InputError(f"Noise is put on maximized objectives that are not known, but there are none; name one. {_objectives(table)}")
        noise = dict.fromkeys(noisy, noise)
    for name, deviation in noise.items():
        if name not in table.directions or name in known or not 0 <= deviation < math.inf:
            raise InputError(
                f"Noise must be a standard deviation of at least 0 on an objective that is not known, but got {name}={deviation}. "
                f"{_objectives(table)} Known: {', '.join(known) or 'none'}."
            )
    return dict(noise)


def _reference(table: Table, name: str, value: float | str) -> float:
    try:
        number = float(value[1:] if isinstance(value, str) and value.startswith("p") else value)
    except ValueError:
        number = math.nan
    percentile = isinstance(value, str) and value.startswith("p")
    if not math.isfinite(number) or (percentile and not 0 <= number <= 100):
        raise InputError(
            f"A reference must be a number or a percentile p0 to p100 of the table's column, but got {name}={value}; write e.g. 30 or p90."
        )
    return float(np.percentile(table.values[name], number)) if percentile else number


def hypervolume(table: Table, rows: Sequence[int] | None, reference: Mapping[str, float]) -> float:
    """The hypervolume of the true values of some rows, or of all."""
    directions = list(table.directions.values())
    points = table.points() if rows is None else np.stack([table.values[n][list(rows)] for n in table.directions], axis=1)
    if len(directions) > 2:  # two objectives are swept in n log n; in more, only the front can be afforded
        points = points[list(pareto.front(points.tolist(), directions))]
    return pareto.hypervolume(points.tolist(), [reference[name] for name in table.directions], directions)
