"""Full trainings, the worker's side of `verify`: train an arm, find the base's width at a candidate's latency, fit that wider base.

JSON in, JSON out; `serve(kind, payload)` is the one entry, for a Ray worker and for the driver's own process alike. A failure is an answer,
never an exception. The last act of every task is an atomic, fsynced file in the folder that it was given, so that nothing is done twice.
"""

import contextlib
import hashlib
import json
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas_attn import cost, custom, latency, mishap, pauses, timing
from nas_attn.architecture import Architecture
from nas_attn.detector import build, build_architecture, silence
from nas_attn.errors import InputError, StudyError, TransferError
from nas_attn.evaluate import fitting, measured, training
from nas_attn.files import write_atomic
from nas_attn.graph import SCALED, Edit, Graph
from nas_attn.outcome import CHECKPOINT, Failure, Job, Latency, Measured, Outcome, outcome_file_text, outcome_to_dict, read_outcome_file
from nas_attn.proxy import train as train_model
from nas_attn.setup import Setup, threads
from nas_attn.tensors import read_tensors
from nas_attn.weights import read_state

TOLERANCE = 0.02
"""A wider base within 2 % of a candidate's latency is as fast."""
WIDEST = 2.0
"""The widest base that is tried, as a multiple of the base's own width: four times its multiply-accumulates."""
CHANNEL_STEP = 8
"""Ultralytics rounds channels up to a multiple of this."""
WEIGHTS, OUTCOME, FIT, WIDTH = "weights.pt", "outcome.json", "fit.json", "width.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """The base at one width multiplier, and the candidate beside it, timed in the same rounds; `ratio`s are to the base as it is."""

    width: float
    ratio: float
    candidate_ratio: float
    params_m: float
    quality: str

    @property
    def excess(self) -> float:
        """The wider base's latency over the candidate's."""
        return self.ratio / self.candidate_ratio


def serve(kind: str, payload: str) -> str:
    """Answer one task of kind `train`, `width` or `fit`; a failure comes back as JSON with its stage.

    Raises:
        InputError: another kind.
    """
    silence()
    task = json.loads(payload)
    setup, folder = Setup.from_dict(task["setup"]), Path(task["folder"])
    custom.load(setup.imports, setup.import_folder)
    if kind == "train":
        return json.dumps(outcome_to_dict(train(setup, Job.from_dict(task["job"]), task, folder)), allow_nan=False)
    if kind == "width":
        return _answer("latency", lambda: find_width(setup, Architecture.from_dict(task["architecture"]), folder))
    if kind == "fit":
        return _answer("train", lambda: fit(setup, task["width"], folder))
    raise InputError(f"A task's kind must be train, width or fit, but got {kind!r}.")


def train(setup: Setup, job: Job, task: Mapping[str, Any], folder: Path) -> Outcome:
    """Train one arm with one seed and score it after every epoch; what fails is named with its stage. It goes on from its last checkpoint;
    where a copy that was thought lost has come to its end in this folder, that counts.

    `task` holds `train_list`, `val_list`, `start` (the file of weights that the arm starts from) and `width` (None but for a wider base).
    """
    began, stage = time.perf_counter(), "build"
    outcome: Outcome
    with contextlib.suppress(OSError, UnicodeDecodeError, StudyError):  # left by a copy that was thought lost
        left = read_outcome_file((folder / OUTCOME).read_text(encoding="utf-8"), job)
        if isinstance(left, Measured):  # what failed is run again
            return left
    try:
        folder.mkdir(parents=True, exist_ok=True)
        model, edit = _arm(setup, job, Path(task["start"]), task["width"])
        stage = "train"
        how = training(replace(setup, train_list=task["train_list"], val_list=task["val_list"]), job, folder)
        piece = pauses.piece_of_fit(folder, f"{job.architecture.digest()}/{job.name()}/{task['width']}", how.epochs)
        trained = train_model(how, model, None, piece)
        stage = "score"
        outcome = measured(setup, job, trained, edit, time.perf_counter() - began)
        text = outcome_file_text(job, outcome)  # refuses what is not finite
        write_atomic(folder / WEIGHTS, lambda file: torch.save(dict(trained.state), file))
    except Exception as error:
        mishap.require_device(error, setup.device)
        mishap.require_disk(error, str(folder))
        mishap.require_data((task["train_list"], task["val_list"]))
        outcome = _failure(stage, error)
        text = outcome_file_text(job, outcome)
    write_atomic(folder / OUTCOME, lambda file: file.write_text(text))
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return outcome


def find_width(setup: Setup, candidate: Architecture, folder: Path) -> dict[str, Any]:
    """The width multiplier at which the base is as slow as `candidate`, by bisection; an earlier answer in `folder` is returned as it is.

    Base, wider base and candidate are timed in the same interleaved rounds: what counts is their ratio here and now, whatever machine the
    search ran on. Latency is a step function of the width, so that the nearest step that was timed counts where none is near enough.

    Returns a dictionary with `width`, `ratio`, `candidate_ratio`, `params_m`, `quality` of the step that came nearest, `probes` (all that
    was timed) and `skipped` (widths that are no network); `width` is None where the base itself is within the tolerance, or is no faster.
    """
    done = folder / WIDTH
    if done.is_file():
        known: dict[str, Any] = json.loads(done.read_text())
        if known.get("candidate") == candidate.digest():
            return known
    state = _state(Path(setup.folder) / "base" / WEIGHTS)
    graph, scale, names = setup.yaml_graph(), setup.scale, setup.names
    base = build_architecture(graph, scale, Architecture(setup.base), names, state, setup.seed)[0]
    chosen = build_architecture(graph, scale, candidate, names, state, setup.seed)[0]
    timed = _bench(setup, base, folder)
    skipped: dict[str, str] = {}

    def probe(width: float) -> Probe | None:
        try:
            wide = build(widened(graph, scale, width), scale, len(names), names)
            wider, beside = timed([wide, chosen])
        except Exception as error:  # e.g. the heads of an attention block do not divide every number of channels
            skipped[f"{width:g}"] = f"{type(error).__name__}: {error}"
            return None
        params_m = cost.parameters_m(wide)
        return Probe(width=width, ratio=wider.ratio, candidate_ratio=beside.ratio, params_m=params_m, quality=wider.quality)

    alone = timed([chosen])[0]
    answer: dict[str, Any] = {"width": None, "candidate_ratio": alone.ratio, "quality": alone.quality}
    probes = bisect(width_steps(graph, scale), probe) if alone.ratio > 1.0 + TOLERANCE else ()
    if probes:
        answer = asdict(min(probes, key=lambda p: abs(p.excess - 1.0)))
    elif skipped:
        raise InputError(f"Some width of {setup.base} must build and run, but none of {len(skipped)} does: {next(iter(skipped.items()))}.")
    answer |= {"candidate": candidate.digest(), "probes": [asdict(p) for p in probes], "skipped": skipped}
    text = json.dumps(answer, allow_nan=False)
    write_atomic(done, lambda file: file.write_text(text))
    return answer


def bisect(steps: Sequence[float], probe: Callable[[float], Probe | None], tolerance: float = TOLERANCE) -> tuple[Probe, ...]:
    """What was probed among ascending `steps` until one is within `tolerance` of the candidate's latency or the steps are used up.

    A step whose probe is None is no network and is left out. Latency is taken to rise with the step.
    """
    left, probes = list(steps), list[Probe]()
    low, high = 0, len(left) - 1
    while low <= high:
        middle = (low + high) // 2
        found = probe(left[middle])
        if found is None:
            del left[middle]
            high -= 1
            continue
        probes.append(found)
        if abs(found.excess - 1.0) <= tolerance:
            break
        low, high = (middle + 1, high) if found.excess < 1.0 else (low, middle - 1)
    return tuple(probes)


def width_steps(graph: Graph, scale: str) -> tuple[float, ...]:
    """The width multipliers above the base's own, up to `WIDEST` times it, at each of which the widest row gains eight channels.

    Raises:
        InputError: no row whose channels a multiplier scales.
    """
    width, most = _width(graph, scale)
    rows = [row.args[0] for row in graph.rows if row.module in SCALED and row.args and isinstance(row.args[0], int)]
    if not rows:
        raise InputError("A wider base needs rows whose channels a width multiplier scales, but the base has none; leave out that arm.")
    step = CHANNEL_STEP / min(max(rows), most)
    first = int(width / step + 1e-6) + 1
    return tuple(k * step for k in range(first, int(WIDEST * width / step + 1e-6) + 1))


def widened(graph: Graph, scale: str, width: float) -> Graph:
    """The same graph with another width multiplier at its scale; the multiplier is written into the graph itself."""
    config = graph.to_yaml()
    if config.get("scales"):
        name = scale or next(iter(config["scales"]))
        depth, _, *rest = config["scales"][name]
        config["scales"] = {**config["scales"], name: [depth, width, *rest]}
    else:
        config["width_multiple"] = width
    return Graph.from_yaml(config)


def fit(setup: Setup, width: float, folder: Path) -> dict[str, Any]:
    """Fit the wider base as the base was fitted: same recipe, images and seed, from the same weights wherever shapes agree.

    An earlier finished fit in `folder` is returned as it is. `moved` of `tensors` came from the weights; the others began anew.
    """
    done = folder / FIT
    if done.is_file() and (folder / WEIGHTS).is_file():
        known: dict[str, Any] = json.loads(done.read_text())
        return known
    model, moved = _start(setup, width)
    trained = train_model(fitting(setup, folder, threads()), model) if setup.fit["epochs"] else None
    state = trained.state if trained else model.state_dict()
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / WEIGHTS, lambda file: torch.save(dict(state), file))
    answer = {
        "fingerprint": file_fingerprint(folder / WEIGHTS),
        "width": width,
        "map50_95": trained.map50_95 if trained else None,
        "curve": list(trained.curve) if trained else [],
        "seconds": trained.train_seconds if trained else 0.0,
        "moved": moved,
        "tensors": len(state),
    }
    text = json.dumps(answer, allow_nan=False)
    write_atomic(done, lambda file: file.write_text(text))
    return answer


def file_fingerprint(file: Path) -> str:
    """Twelve hexadecimal digits of a file's bytes."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def _answer(stage: str, work: Callable[[], dict[str, Any]]) -> str:
    try:
        return json.dumps(work(), allow_nan=False)
    except Exception as error:
        return json.dumps({"failure": asdict(_failure(stage, error))})


def _failure(stage: str, error: Exception) -> Failure:
    return Failure(stage=stage, error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())


def _arm(setup: Setup, job: Job, start: Path, width: float | None) -> tuple[nn.Module, Edit]:
    """The model that a job trains, at its start, and how the base's rows moved."""
    if file_fingerprint(start) != job.recipe.base:
        raise TransferError(f"Every training of an arm must start from {job.recipe.base}, but {start} is {file_fingerprint(start)}.")
    if width is None:
        return build_architecture(setup.yaml_graph(), setup.scale, job.architecture, setup.names, _state(start), job.seed)
    graph = widened(setup.yaml_graph(), setup.scale, width)
    model = build(graph, setup.scale, len(setup.names), setup.names)
    model.load_state_dict(_state(start))
    return model, Edit(graph, tuple(range(len(graph.rows))))


def _state(file: Path) -> Mapping[str, Tensor]:
    return _cached_state(str(file), file.stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _cached_state(file: str, _written_ns: int) -> Mapping[str, Tensor]:
    loaded: Mapping[str, Tensor] = read_tensors(file)
    return loaded


def _start(setup: Setup, width: float) -> tuple[nn.Module, int]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setup.seed)
        model = build(widened(setup.yaml_graph(), setup.scale, width), setup.scale, len(setup.names), setup.names)
    known = read_state(Path(setup.weights)) if setup.weights else {}
    target = model.state_dict()
    same = {key: value for key, value in known.items() if key in target and target[key].shape == value.shape}
    model.load_state_dict({**target, **same})
    return model, len(same)


def _bench(setup: Setup, base: nn.Module, folder: Path) -> Callable[[Sequence[nn.Module]], list[Latency]]:
    """Times models beside the base, gated by a calibration of this machine that is kept in `folder`."""
    options: dict[str, Any] = {
        "shape": timing.shape(setup), "device": setup.device, "backend": setup.latency["backend"], "threads": threads()
    }  # fmt: skip
    blocks, seed = setup.latency["blocks"], setup.seed
    gate = latency.calibrate(base, runs=setup.latency["calibrations"], blocks=blocks, seed=seed, **options)
    text = json.dumps(gate.to_dict())
    write_atomic(folder / "latency-gate.json", lambda file: file.write_text(text))

    def timed(models: Sequence[nn.Module]) -> list[Latency]:
        return latency.measure(base, models, gate=gate, blocks=blocks, retries=setup.latency["retries"], seed=seed, **options)

    return timed


def _width(graph: Graph, scale: str) -> tuple[float, float]:
    """The base's width multiplier and its cap on channels before it."""
    settings = graph.to_yaml()
    scales: Mapping[str, Sequence[float]] = settings.get("scales") or {}
    if not scales:
        return float(settings.get("width_multiple", 1.0)), float("inf")
    values = scales[scale] if scale else next(iter(scales.values()))
    return float(values[1]), float(values[2]) if len(values) > 2 else float("inf")
