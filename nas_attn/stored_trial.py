"""A trial as its stored attributes tell it, and back: jobs with their outcomes, and repeats that came when it had been told."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from optuna.trial import FrozenTrial

from nas_attn.architecture import Architecture
from nas_attn.outcome import Cost, Job, Measured, Outcome, Trial, full_length, outcome_from_dict, outcome_to_dict

REPEATS = "repeats:"
"""Before a trial's number: the study's attribute that holds what came after it was told."""


def repeats_of(attributes: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """What came later, by trial, from a study's attributes."""
    return {int(name.removeprefix(REPEATS)): value for name, value in attributes.items() if name.startswith(REPEATS)}


def with_repeats(trial: Trial, further: Sequence[tuple[Job, Outcome]]) -> Trial:
    """A told trial with further results: its accuracies are the means over all seeds that were trained to the end."""
    results, values = (*trial.results, *further), dict(trial.values or {})
    seeds, costs = full_length(results).values(), trial.cost.metrics() if trial.cost else {}
    values |= {name: fmean(getattr(one, name) for one in seeds) for name in values if name not in costs}
    return replace(trial, results=results, values=values or None, seconds=trained_seconds(results))


def trial_of(frozen: FrozenTrial, objectives: Mapping[str, str], repeats: Mapping[int, Mapping[str, Any]]) -> Trial:
    """A stored trial with its repeats."""
    attributes, ended = frozen.user_attrs, frozen.state.is_finished()
    results = tuple(_unpair(item) for item in attributes.get("results", ()))
    further = [_unpair(item) for item in repeats.get(frozen.number, {}).get("results", ())]
    trial = Trial(
        number=frozen.number,
        state=frozen.state.name,
        kind=attributes["kind"] if ended else None,
        architecture=Architecture.from_dict(json.loads(attributes["architecture"])),
        cost=Cost.from_dict(attributes["cost"]) if "cost" in attributes else None,
        values=dict(zip(objectives, frozen.values, strict=True)) if frozen.values else None,
        results=results,
        controls=tuple((item["label"], *_unpair(item)) for item in attributes.get("controls", ())),
        verdict=outcome_from_dict(attributes["verdict"]) if ended else None,
        seconds=trained_seconds(results),
    )
    return with_repeats(trial, further) if further else trial


def pair(job: Job, outcome: Outcome) -> dict[str, Any]:
    """A job and its outcome as plain JSON values."""
    return {"job": job.to_dict(), "outcome": outcome_to_dict(outcome)}


def _unpair(item: Mapping[str, Any]) -> tuple[Job, Outcome]:
    return Job.from_dict(item["job"]), outcome_from_dict(item["outcome"])


def trained_seconds(results: Sequence[tuple[Job, Outcome]]) -> float:
    """What a trial's trainings took in all."""
    return sum(outcome.total_seconds for _, outcome in results if isinstance(outcome, Measured))
