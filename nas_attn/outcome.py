"""What is asked of a worker and what comes back: jobs, costs and the four outcomes, as frozen values with JSON both ways.

A failure is a type, never a number: none of `Rejected`, `Stopped` and `Failure` can stand on a front.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from nas_attn.architecture import Architecture
from nas_attn.errors import StudyError, shown

SCHEMA = 1
CHECKPOINT = "checkpoint.pt"
"""In the folder of an attempt: the training as it paused at a rung, or as it was at the last epoch that was kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything besides architecture and seed that a proxy score depends on. Two scores compare only if their recipes are equal.

    The score of a training is the mean over its last `average` epochs. `base` and `data` are fingerprints (of the fitted base's weights, of
    image lists and labels); `code` is the version of nas_attn, Ultralytics and torch; `args` are further Ultralytics training arguments,
    sorted.
    """

    epochs: int
    imgsz: int
    batch: int
    lr0: float
    new_lr_scale: float
    score_on: str
    data: str
    base: str
    code: str
    args: tuple[tuple[str, Any], ...] = ()
    average: int = 1

    def key(self) -> str:
        """Twelve hexadecimal digits that name this recipe."""
        # A score of one epoch is named as it was before scores could be averaged: records of that time stay valid.
        named = {name: value for name, value in asdict(self).items() if (name, value) != ("average", 1)}
        return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:12]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Recipe":
        """The inverse of `dataclasses.asdict`, also after a trip through JSON."""
        return cls(**{**data, "args": tuple((k, v) for k, v in data["args"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One training of one architecture: what to run, and which attempt at it this is (from 1).

    `epochs` is the rung at which the training pauses, None for one that runs to its end. A rung changes nothing of the recipe: learning
    rate, augmentation and all else are at every epoch those of the whole training. `alone` asks for a device on which nothing else runs:
    a training that lacked memory beside others may fit by itself.
    """

    architecture: Architecture
    recipe: Recipe
    seed: int
    attempt: int = 1
    epochs: int | None = None
    alone: bool = False

    def name(self) -> str:
        """The same for every attempt: `<recipe>-s<seed>`, and `-e<epochs>` at a rung."""
        return f"{self.recipe.key()}-s{self.seed}" + (f"-e{self.epochs}" if self.epochs is not None else "")

    def folder(self, study: Path) -> Path:
        """`trials/<digest>/<job>/<attempt>` under the study's folder."""
        return study / "trials" / self.architecture.digest() / self.name() / str(self.attempt)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "architecture": self.architecture.to_dict(),
            "recipe": asdict(self.recipe),
            "seed": self.seed,
            "attempt": self.attempt,
            **({"epochs": self.epochs} if self.epochs is not None else {}),
            **({"alone": True} if self.alone else {}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Job":
        """The inverse of `to_dict`.

        Raises:
            StudyError: a seed, attempt or rung that is no number; they name folders.
        """
        if not all(type(data[name]) is int for name in ("seed", "attempt")) or type(data.get("epochs")) not in (int, type(None)):
            raise StudyError(f"A job's seed, attempt and epochs must be whole numbers, but it is {shown(dict(data))}; discard the record.")
        return cls(
            architecture=Architecture.from_dict(data["architecture"]),
            recipe=Recipe.from_dict(data["recipe"]),
            seed=data["seed"],
            attempt=data["attempt"],
            epochs=data.get("epochs"),
            alone=bool(data.get("alone", False)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Latency of one forward pass beside the base, same minute, same device.

    `ratio` is the median of paired ratios to the base, `low` and `high` its 95 % interval; `quality` is `gated` when the base ran as it
    does when the machine is quiet, `ungated` when no such moment came.
    """

    ratio: float
    low: float
    high: float
    latency_ms: float
    base_ms: float
    quality: str
    blocks: int
    attempts: int
    environment: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What an architecture costs, known before any training: millions of parameters, giga multiply-accumulates, MiB, latency."""

    params_m: float
    gmacs: float
    activation_mib: float
    latency: Latency

    def metrics(self) -> dict[str, float]:
        """The costs that may be limited or minimized, by their names."""
        return {
            "latency_ratio": self.latency.ratio,
            "latency_ms": self.latency.latency_ms,
            "params_m": self.params_m,
            "gmacs": self.gmacs,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Cost":
        """The inverse of `dataclasses.asdict`."""
        return cls(**{**data, "latency": Latency(**data["latency"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A training that ran to its end, or to its rung: scores, with a `curve` of one mapping an epoch from the first on.

    `gates` holds the mean |gate| of each inserted row (base numbering); seconds are those of this job alone, not of the rungs before it.
    """

    map50_95: float
    map50: float
    curve: tuple[Mapping[str, float], ...]
    gates: Mapping[str, float]
    train_seconds: float
    total_seconds: float
    peak_memory_mib: float
    batch: int
    device: str

    def __post_init__(self) -> None:
        for name in ("map50_95", "map50"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise StudyError(f"`0 <= {name} <= 1` must hold, but got {getattr(self, name)}; the training is not usable.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """Over a hard limit before any training: which, by what value, against what bound."""

    limit: str
    value: float
    bound: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """Stopped on purpose at a rung, which is named by its epochs, with what it had shown."""

    rung: int
    curve: tuple[Mapping[str, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What went wrong and at which stage (build, transfer, cost, latency, train, score, memory, worker, deadline)."""

    stage: str
    error: str
    traceback: str = ""


Outcome = Measured | Rejected | Stopped | Failure
_KINDS: dict[str, type[Any]] = {
    "measured": Measured,
    "rejected": Rejected,
    "stopped": Stopped,
    "failure": Failure,
}


def kind(outcome: Outcome) -> str:
    """`measured`, `rejected`, `stopped` or `failure`."""
    return type(outcome).__name__.lower()


def outcome_to_dict(outcome: Outcome) -> dict[str, Any]:
    """As plain JSON values, with its `kind`."""
    return {"kind": kind(outcome), **{f.name: getattr(outcome, f.name) for f in fields(outcome)}}  # asdict would copy every number


def outcome_from_dict(data: Mapping[str, Any]) -> Outcome:
    """The inverse of `outcome_to_dict`.

    Raises:
        StudyError: an unknown kind, a missing or unknown field, or a number that is not finite.
    """
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items() if name != "kind"}
    cls = _KINDS.get(str(data.get("kind")))
    if cls is None or set(values) != {f.name for f in fields(cls)}:
        raise StudyError(f"An outcome needs the fields of one of {sorted(_KINDS)}, but got {sorted(data)}; discard the file.")
    _require_finite(values)
    outcome: Outcome = cls(**values)
    return outcome


def outcome_file_text(job: Job, outcome: Outcome) -> str:
    """The text of a worker's last act, `outcome.json`: the job that it answers and its outcome."""
    return json.dumps({"schema": SCHEMA, "job": job.to_dict(), "outcome": outcome_to_dict(outcome)}, allow_nan=False, sort_keys=True)


def read_outcome_file(text: str, job: Job) -> Outcome:
    """The outcome in a file's text, if it is whole, finite and answers `job` (in whatever attempt).

    Raises:
        StudyError: torn text, another schema, another job, or values that are not finite.
    """
    try:
        data = json.loads(text, parse_constant=_refuse_constant)
        theirs = Job.from_dict(data["job"])
        if data["schema"] != SCHEMA or (theirs.architecture, theirs.name()) != (job.architecture, job.name()):
            raise StudyError(f"An outcome file must answer job {job.name()} of {job.architecture.digest()}, but it answers another.")
        return outcome_from_dict(data["outcome"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StudyError(f"An outcome file must be whole JSON of schema {SCHEMA}, but: {error}") from error


def left_outcome(folder: Path, job: Job) -> tuple[Outcome | None, list[str]]:
    """The first valid outcome that any attempt at a job has left in its study's folder, and what is wrong with each file before it."""
    attempts = job.folder(folder).parent
    unusable: list[str] = []
    for path in sorted(attempts.glob("*/outcome.json"), key=lambda path: (len(path.parent.name), path.parent.name)):
        try:
            return read_outcome_file(path.read_text(encoding="utf-8"), job), unusable
        except (OSError, UnicodeDecodeError, StudyError) as error:
            unusable.append(f"{path.relative_to(folder)}: {error}")
    return None, unusable


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a measurement")


def _require_finite(value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise StudyError(f"Every number of an outcome must be finite, but got {value}.")
    if isinstance(value, Mapping):
        for item in value.values():
            _require_finite(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            _require_finite(item)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One architecture in a study, as its record tells it.

    `state` is Optuna's (`COMPLETE`, `PRUNED`, `FAIL`, `RUNNING`); `kind` that of the outcome which was told (`measured`, ...; None while
    running); `values` the objectives by name: as told, or with the mean over all seeds where repeats came later; `results` every job under
    this trial with its outcome, rungs and repeats included; `controls` the labelled positive controls, on trial 0 only.
    """

    number: int
    state: str
    kind: str | None
    architecture: Architecture
    cost: Cost | None = None
    values: Mapping[str, float] | None = None
    results: tuple[tuple[Job, Outcome], ...] = ()
    controls: tuple[tuple[str, Job, Outcome], ...] = ()
    verdict: Outcome | None = None
    seconds: float = 0.0


def full_length(results: Iterable[tuple[Job, Outcome]]) -> dict[int, Measured]:
    """The trainings among `results` that ran to their end, by seed: the highest rung, and the only one that is told."""
    whole = [(job.seed, outcome) for job, outcome in results if job.epochs is None and isinstance(outcome, Measured)]
    return dict(sorted(whole, key=lambda pair: pair[0]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A study at one moment, read from its record alone. `objectives` maps a metric's name to `maximize` or `minimize`."""

    folder: Path
    name: str
    objectives: Mapping[str, str]
    settings: Mapping[str, Any]
    fit: Mapping[str, Any] | None
    trials: tuple[Trial, ...]
