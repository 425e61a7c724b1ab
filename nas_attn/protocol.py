"""What driver and workers say to each other, checked: the settings and the recipe of a study, and the answers of workers.

An answer that makes no sense is refused here; to a search it is a loss (`losses.heard`), for a failed trial must not end it.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean
from typing import Any

from nas_attn.errors import NasAttnError, StudyError
from nas_attn.outcome import Cost, Failure, Job, Measured, Outcome, Recipe, Rejected, Stopped, Trial, outcome_from_dict
from nas_attn.space import SearchSpace
from nas_attn.spec import SpaceSpec

_VERSIONS = ("nas-attn", "ultralytics", "torch")
_RUNTIMES = {"onnxruntime": ("onnxruntime", "onnxruntime-gpu")}
"""The packages that hold a latency backend."""
_ABSENT = "not installed"
_LATER = (("average", 1), ("rungs", None))
_LONG = 400  # characters of a setting that are worth showing when settings differ


def study_settings(
    folder: Path, spec: SpaceSpec, space: SearchSpace, setup: Mapping[str, Any], sampler: str, fidelity: str = "full"
) -> dict[str, Any]:
    """What a study may not go on without: everything that scores, costs and choices depend on, and nothing that says where it lies.

    Settings that came later are left out where they have their defaults, so that a study that was begun before them goes on.
    """
    places = {str(folder.resolve()), str(Path(setup.get("folder", folder)).resolve())}
    identity = {name: _short(_relative(value, places)) for name, value in setup.items() if name not in ("folder", "weights")}
    return {
        "spec": _settings_of(spec),
        "space": space.fingerprint(),
        "setup": identity,
        "sampler": sampler,
        "versions": versions(spec.latency.backend),
        **({} if fidelity == "full" else {"fidelity": fidelity}),
    }


def versions(backend: str) -> dict[str, str]:
    """What scores and costs depend on: the code, and the runtime by which latency is measured where that is not torch."""
    found = {name: _version(name) for name in _VERSIONS}
    runtimes = [told for name in _RUNTIMES.get(backend, ()) if (told := _version(name)) != _ABSENT]
    return {**found, **({backend: runtimes[0]} if runtimes else {})}


def _settings_of(spec: SpaceSpec) -> dict[str, Any]:
    settings = spec.model_dump(mode="json")
    proxy = {name: value for name, value in settings["proxy"].items() if (name, value) not in _LATER}
    return {**settings, "proxy": proxy}


def _relative(value: Any, places: set[str]) -> Any:
    text = json.dumps(value)
    for place in sorted(places, key=len, reverse=True):
        text = text.replace(json.dumps(place)[1:-1] + "/", "./")
    return json.loads(text)


def _short(value: Any) -> Any:
    text = json.dumps(value, sort_keys=True)
    return value if len(text) <= _LONG else f"sha256:{sha256(text.encode()).hexdigest()[:16]}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return _ABSENT


def recipe_of(spec: SpaceSpec, setup: Mapping[str, Any], fit: Mapping[str, Any]) -> Recipe:
    """The recipe of every candidate's training: the space's proxy, on what the fit stands for."""
    proxy = spec.proxy
    return Recipe(
        epochs=proxy.epochs,
        imgsz=proxy.imgsz,
        batch=proxy.batch,
        lr0=proxy.lr0,
        new_lr_scale=proxy.new_lr_scale,
        score_on=str(setup.get("score_on", "search_val")),
        data=fit["data"],
        base=fit["fingerprint"],
        code=fit["code"],
        args=proxy.args,
        average=proxy.average,
    )


def job_key(job: Job) -> str:
    """The same for every attempt at a job, and different for any two jobs of a study."""
    return f"{job.architecture.digest()}/{job.name()}"


def deadline_s(fit: Mapping[str, Any], epochs: int, least_s: float) -> float:
    """How long a training may take: twenty times what the fit took an epoch, so that only what hangs is ended; `least_s` at least."""
    fitted = len(fit.get("curve") or ())
    return max(least_s, 20 * epochs * fit.get("seconds", 0.0) / fitted) if fitted else max(least_s, 24 * 3600.0)


def read_fit(text: str) -> Mapping[str, Any]:
    """The answer to a fit.

    Raises:
        NasAttnError: the fit failed, or does not say what it stands for.
    """
    fit: Mapping[str, Any] = json.loads(text)
    if "failure" in fit:
        raise NasAttnError(f"The base must be fitted before any trial, but its fit failed: {words(Failure(**fit['failure']))}")
    missing = {"fingerprint", "data", "code"} - set(fit)
    if missing:
        raise NasAttnError(f"A fit must say which weights, data and code it stands for, but {sorted(missing)} are missing.")
    return fit


def read_costs(text: str, count: int) -> list[Cost | Failure]:
    """The answer to a measurement of `count` architectures: of each its cost, or why it has none.

    Raises:
        NasAttnError: no such answer, or a cost that is negative or not finite.
    """
    try:
        answers = json.loads(text)["costs"]
        if not isinstance(answers, list) or len(answers) != count:
            raise ValueError(f"{len(answers)} costs of {count}")
        return [_cost(answer) for answer in answers]
    except (ValueError, LookupError, TypeError) as error:
        raise NasAttnError(f"A measurement must answer with its costs, but: {type(error).__name__}: {error}") from error


def _cost(answer: Mapping[str, Any]) -> Cost | Failure:
    if "failure" in answer:
        return Failure(**answer["failure"])
    cost = Cost.from_dict(answer["cost"])
    values = [*cost.metrics().values(), cost.latency.low, cost.latency.high]
    if not all(math.isfinite(value) and value >= 0 for value in values):
        raise ValueError(f"a cost that is negative or not finite: {cost.metrics()}")
    return cost


def excess(cost: Cost, limits: Mapping[str, float]) -> dict[str, float]:
    """One number a limit, at most 0 where it is kept. A latency ratio is over its bound only if its whole interval is."""
    values = {**cost.metrics(), "latency_ratio": cost.latency.low}
    return {name: values[name] - bound for name, bound in limits.items()}


def rejection(cost: Cost, limits: Mapping[str, float]) -> Rejected | None:
    """The first limit that a cost is over."""
    over = next((name for name, more in excess(cost, limits).items() if more > 0), None)
    return None if over is None else Rejected(limit=over, value=cost.metrics()[over], bound=limits[over])


def require_kind(known: Cost | None, cost: Cost) -> None:
    """A study's latencies are of one kind of device, the base's.

    Raises:
        StudyError: a latency of another.
    """
    ours, theirs = (_device(of.latency.environment) if of else "" for of in (known, cost))
    if ours and theirs and ours != theirs:
        raise StudyError(
            f"A study's latencies must be of one device, but this one's are of {ours} and a worker has measured on {theirs}; name a node "
            "of the former kind by --latency-node, or derive a study whose latencies are of the latter: nas-attn retarget."
        )


def _device(environment: Mapping[str, Any]) -> str:
    return f"{environment['name']} ({environment.get('backend', 'torch')})" if "name" in environment else ""


def read_outcome(text: str) -> Outcome:
    """The answer to a training.

    Raises:
        NasAttnError: it is no outcome, or one that no worker may give.
    """
    try:
        outcome = outcome_from_dict(json.loads(text))
    except (ValueError, TypeError, AttributeError) as error:
        raise NasAttnError(f"A training must answer with its outcome, but: {error}") from error
    if isinstance(outcome, Rejected):
        raise NasAttnError("A training must not be rejected by its worker, for limits are checked before it.")
    return outcome


def mean_outcome(outcomes: Sequence[Measured]) -> Measured:
    """The first seed's outcome with the mean scores of all: what is told."""
    return replace(outcomes[0], map50_95=fmean(o.map50_95 for o in outcomes), map50=fmean(o.map50 for o in outcomes))


def lost_failure(times: int, reason: str) -> Failure:
    """A job whose worker was lost too often."""
    return Failure(stage="deadline" if reason.startswith("deadline") else "worker", error=f"lost {times} times; the last: {reason}")


def worn_out(attempts: int) -> Failure:
    """A job at which drivers have ended too often."""
    return Failure(stage="worker", error=f"{attempts} attempts began, and none of them ended")


def halted(trials: Iterable[Trial], limits: Mapping[str, float], failures: int, rejections: int) -> str | None:
    """Why no more is asked, if a search goes nowhere: that many failures, or rejections in a row."""
    ended = [trial for trial in trials if trial.kind is not None]
    failed = [trial for trial in ended if trial.kind == "failure"]
    if len(failed) >= failures:
        return f"Most trials must succeed, but {len(failed)} failed; the last: {words(failed[-1].verdict)}"
    tail = ended[-rejections:]
    if len(tail) == rejections and all(trial.kind == "rejected" for trial in tail):
        return (
            f"Some architecture must keep the limits {dict(limits)}, but {rejections} in a row did not; the last: "
            f"{words(tail[-1].verdict)}. Loosen the limits in another study."
        )
    return None


def part(job: Job) -> str:
    """Which training of its trial a job is, in a few words."""
    return f"seed {job.seed}" + ("" if job.epochs is None else f" to epoch {job.epochs}")


def words(outcome: Outcome | None) -> str:
    """An outcome in a few words."""
    if isinstance(outcome, Failure):
        return f"{outcome.stage}: {outcome.error}"
    if isinstance(outcome, Rejected):
        return f"{outcome.limit} = {outcome.value:.4g} is over the limit of {outcome.bound:g}"
    if isinstance(outcome, Stopped):
        return f"stopped at rung {outcome.rung}"
    return "not ended" if outcome is None else f"mAP50-95 {outcome.map50_95:.4f}"
