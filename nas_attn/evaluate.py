"""What a worker does: fit the base, measure costs, train candidates. JSON in, JSON out; a failure is an answer, never an exception.

`serve(kind, payload)` is the one entry, for a Ray worker and for the driver's own process alike. A worker keeps what it loaded (the base's
tensors, decoded images, parsed labels) from one task to the next. Its last act in a training is an atomic, fsynced `outcome.json`.
"""

import hashlib
import json
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas_attn import cost, custom, mishap, pauses, timing
from nas_attn.architecture import Architecture
from nas_attn.data import labels_fingerprint
from nas_attn.detector import build, build_architecture, silence
from nas_attn.errors import InputError, TransferError
from nas_attn.files import write_atomic
from nas_attn.graph import Edit
from nas_attn.outcome import CHECKPOINT, Cost, Failure, Job, Measured, Outcome, left_outcome, outcome_file_text, outcome_to_dict
from nas_attn.proxy import Trained, Training
from nas_attn.proxy import train as train_model
from nas_attn.runner import require_backend
from nas_attn.setup import Setup, available_cores, code_version, threads
from nas_attn.tensors import read_tensors
from nas_attn.weights import load_weights


def serve(kind: str, payload: str) -> str:
    """Answer one task of kind `check`, `fit`, `measure` or `train`; every failure comes back as JSON with its stage."""
    silence()
    task = json.loads(payload)
    setup = Setup.from_dict(task["setup"])
    custom.load(setup.imports, setup.import_folder)
    if kind == "fit":
        return json.dumps(fit(setup), allow_nan=False)
    if kind == "measure":
        return json.dumps({"costs": measure(setup, [Architecture.from_dict(a) for a in task["architectures"]])}, allow_nan=False)
    if kind == "check":
        return json.dumps(check(setup, task["train"], task["scored"]), allow_nan=False)
    if kind == "train":
        return json.dumps(outcome_to_dict(evaluate(setup, Job.from_dict(task["job"]))), allow_nan=False)
    raise InputError(f"A task's kind must be check, fit, measure or train, but got {kind!r}.")


def check(setup: Setup, train: Sequence[str], scored: Sequence[str]) -> dict[str, Any]:
    """What this machine has of what a search needs: how many images are `missing`, the first of them, whether labels are `equal` to the
    driver's, the versions of the `code`, what keeps it from measuring latency with the study's `backend`, if anything, and the free memory
    of a GPU (None on a CPU).
    """
    missing = [image for image in (*train, *scored) if not Path(image).is_file()]
    memory_mib = torch.cuda.mem_get_info()[0] / (1 << 20) if setup.device != "cpu" else None
    found: dict[str, Any] = {
        "missing": len(missing),
        "first": missing[0] if missing else None,
        "code": code_version(),
        "backend": _backend(setup),
    }
    return {**found, "memory_mib": memory_mib, "equal": not missing and labels_fingerprint(train, scored, setup.names) == setup.data}


def _backend(setup: Setup) -> str | None:
    try:
        require_backend(setup.latency["backend"], setup.device)
    except InputError as error:
        return str(error)
    return None


def fit(setup: Setup) -> dict[str, Any]:
    """Fit the base to the data once; an earlier finished fit of the same study is returned as it is.

    Returns a dictionary with `fingerprint` of the fitted weights, score, curve and seconds, or with `failure`.

    Raises:
        Unavailable, OSError, Unfit: as `evaluate`.
    """
    stages = _Stages()
    folder = Path(setup.folder) / "base"
    done = folder / "fit.json"
    if done.is_file() and (folder / "weights.pt").is_file():
        known: dict[str, Any] = json.loads(done.read_text())
        if known.get("asked") == _asked(setup):
            return known
    try:
        with stages("load"):
            model, new_tensors = _start_of_fit(setup)
        with stages("train"):
            trained = _fit(setup, model, folder) if setup.fit["epochs"] else None
            state = trained.state if trained else model.state_dict()
        with stages("score"):
            return _keep_fit(setup, folder, state, trained, new_tensors)
    except Exception as error:
        mishap.require_device(error, setup.device)
        mishap.require_disk(error, setup.folder)
        mishap.require_data((setup.train_list, setup.val_list))
        return {"failure": asdict(stages.failure(error))}


def measure(setup: Setup, architectures: Sequence[Architecture]) -> list[dict[str, Any]]:
    """Costs of some candidates, their latency interleaved with the base's; one answer each, `{"cost": ...}` or `{"failure": ...}`."""
    answers: list[dict[str, Any]] = [{} for _ in architectures]
    models: dict[int, nn.Module] = {}
    for i, architecture in enumerate(architectures):
        stages = _Stages()
        try:
            with stages("build"):
                model, _ = _build(setup, architecture, setup.seed)
            with stages("cost"):
                answers[i] = {"cost": _static_cost(setup, model)}
            models[i] = model
        except Exception as error:
            answers[i] = {"failure": asdict(stages.failure(error))}
    wanted = {i: (architectures[i], model) for i, model in models.items()}
    for i, found in timing.timed(setup, lambda: _build(setup, Architecture(setup.base), setup.seed)[0], wanted).items():
        if isinstance(found, Failure):
            answers[i] = {"failure": asdict(found)}
        else:
            answers[i] = {"cost": asdict(Cost(**answers[i]["cost"], latency=found))}
    return answers


def evaluate(setup: Setup, job: Job) -> Outcome:
    """Train one candidate by its recipe, to its end or to the job's rung, and score it; what fails is named with its stage.

    An outcome that another attempt has left since this one was asked for counts: a node that was thought lost may have gone on by itself.
    It goes on from where any attempt at this training was kept last. A training that lacks memory beside others leaves no outcome behind:
    it may have one alone.

    Raises:
        Unavailable: the data set is away.
        OSError: the study's folder takes no more.
        Unfit: this process's GPU has failed.
    """
    start = time.perf_counter()
    left, _ = left_outcome(Path(setup.folder), job)
    if left is not None:
        return left
    folder = job.folder(Path(setup.folder))
    stages = _Stages()
    outcome: Outcome
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with stages("build"):
            model, edit = _build(setup, job.architecture, job.seed, job.recipe.base)
        with stages("train"):
            trained = train_model(training(setup, job, folder), model, None, pauses.piece(Path(setup.folder), job))
        with stages("score"):
            outcome = measured(setup, job, trained, edit, time.perf_counter() - start)
            if job.epochs is None:
                write_atomic(folder / "weights.pt", lambda file: torch.save(dict(trained.state), file))
        text = outcome_file_text(job, outcome)  # refuses what is not finite
    except Exception as error:
        outcome = _blamed(setup, job, stages, error)
        text = outcome_file_text(job, outcome)
    if isinstance(outcome, Failure) and outcome.stage == "memory":
        mishap.free_memory()  # here, where the error no longer holds the model
        if not job.alone:
            return outcome
    write_atomic(folder / "outcome.json", lambda file: file.write_text(text))
    if job.epochs is None:
        pauses.clear(Path(setup.folder), job)
    return outcome


def _blamed(setup: Setup, job: Job, stages: "_Stages", error: Exception) -> Failure:
    """The failure of a candidate, if the candidate is to blame."""
    mishap.require_device(error, setup.device)
    mishap.require_disk(error, setup.folder)
    if mishap.lacks_memory(error):
        where = "alone on its device" if job.alone else "beside others"
        text = f"at batch {job.recipe.batch} and {job.recipe.imgsz} pixels, {where}: {error}"
        return replace(stages.failure(error), stage="memory", error=text)
    mishap.require_data((setup.train_list, setup.val_list))
    return stages.failure(error)


class _Stages:
    """Remembers which stage an exception came from."""

    def __init__(self) -> None:
        self.current = "start"

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self.current = stage
        yield

    def failure(self, error: Exception) -> Failure:
        """The failure of the current stage, with its traceback for developers."""
        return Failure(stage=self.current, error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())


def _start_of_fit(setup: Setup) -> tuple[nn.Module, tuple[str, ...]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setup.seed)
        model = build(setup.yaml_graph(), setup.scale, len(setup.names), setup.names)
    new = load_weights(model, Path(setup.weights)) if setup.weights else ()
    if not setup.fit["epochs"] and (new or not setup.weights):
        raise InputError(
            f"A base that is not fitted needs weights of the same classes, but base_fit.epochs=0, weights={setup.weights} "
            f"and {len(new)} head tensors are new; set base_fit.epochs to 30 or so."
        )
    return model, new


def _fit(setup: Setup, model: nn.Module, folder: Path) -> Trained:
    progress = folder / "progress.json"
    curve: list[dict[str, float]] = []

    def note(epoch: dict[str, float]) -> None:
        curve.append(epoch)
        text = json.dumps(curve)
        write_atomic(progress, lambda file: file.write_text(text))

    how = fitting(setup, folder, available_cores())  # nothing else runs until the base is fitted
    return train_model(how, model, note, pauses.piece_of_fit(folder, _asked(setup), how.epochs))


def _keep_fit(
    setup: Setup, folder: Path, state: Mapping[str, Tensor], trained: Trained | None, new_tensors: tuple[str, ...]
) -> dict[str, Any]:
    result = {
        "asked": _asked(setup),
        "fingerprint": _fingerprint(state),
        "data": setup.data,
        "code": code_version(),
        "map50_95": trained.map50_95 if trained else None,
        "curve": list(trained.curve) if trained else [],
        "seconds": trained.train_seconds if trained else 0.0,
        "new_tensors": list(new_tensors),
        "device": _device_name(setup.device),
        "peak_memory_mib": trained.peak_memory_mib if trained else None,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "weights.pt", lambda file: torch.save(dict(state), file))
    text = json.dumps(result, allow_nan=False)
    write_atomic(folder / "fit.json", lambda file: file.write_text(text))
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return result


def _asked(setup: Setup) -> str:
    """What a fit stands for: another fit than this one's answer must not be adopted."""
    asked = [setup.fit, setup.data, setup.graph, setup.scale, setup.weights_sha256, setup.names, setup.seed, code_version()]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]


def _build(setup: Setup, architecture: Architecture, seed: int, base: str | None = None) -> tuple[nn.Module, Edit]:
    """A candidate on the fitted base; `base` is the fingerprint that its weights must have."""
    weights = Path(setup.folder) / "base" / "weights.pt"
    state, fingerprint = _base_state(str(weights), weights.stat().st_mtime_ns)
    if base is not None and fingerprint != base:
        raise TransferError(f"Every candidate must start from the base {base}, but {weights} holds {fingerprint}; begin another study.")
    return build_architecture(setup.yaml_graph(), setup.scale, architecture, setup.names, state, seed)


@lru_cache(maxsize=2)
def _base_state(file: str, _written_ns: int) -> tuple[Mapping[str, Tensor], str]:
    loaded: Mapping[str, Tensor] = read_tensors(file)
    return loaded, _fingerprint(loaded)


def _static_cost(setup: Setup, model: nn.Module) -> dict[str, float]:
    image_BCHW = torch.zeros(timing.shape(setup))
    return {
        "params_m": cost.parameters_m(model),
        "gmacs": cost.gmacs(model, image_BCHW[:1]),
        "activation_mib": cost.activation_mib(model, image_BCHW),
    }


def fitting(setup: Setup, folder: Path, cores: int) -> Training:
    """How a base is fitted in `folder`, with so many threads."""
    settings = dict(setup.fit)
    schedule = {name: settings.pop(name) for name in ("epochs", "imgsz", "batch", "lr0")}
    return Training(
        train_list=setup.train_list,
        val_list=setup.val_list,
        names=setup.names,
        folder=str(folder / "fit"),
        new_lr_scale=1.0,
        seed=setup.seed,
        device=setup.device,
        threads=cores,
        args=settings,
        **schedule,
    )


def training(setup: Setup, job: Job, folder: Path) -> Training:
    """How a job is trained on a setup's images."""
    recipe = job.recipe
    return Training(
        train_list=setup.train_list,
        val_list=setup.val_list,
        names=setup.names,
        folder=str(folder),
        epochs=recipe.epochs,
        imgsz=recipe.imgsz,
        batch=recipe.batch,
        lr0=recipe.lr0,
        new_lr_scale=recipe.new_lr_scale,
        seed=job.seed,
        device=setup.device,
        threads=threads(),
        args=dict(recipe.args),
    )


def measured(setup: Setup, job: Job, trained: Trained, edit: Edit, seconds: float) -> Measured:
    """What a training that took so many seconds in all has shown, its gates by the base's rows."""
    host = {edit.moved[layer] + 1: layer for layer in (p.layer for p in job.architecture.placements)}
    return Measured(
        map50_95=trained.score("map50_95", job.recipe.average),
        map50=trained.score("map50", job.recipe.average),
        curve=tuple({_by_host(name, host): value for name, value in epoch.items()} for epoch in trained.curve),
        gates={str(host[row]): opening for row, opening in trained.gates.items()},
        train_seconds=trained.train_seconds,
        total_seconds=seconds,
        peak_memory_mib=trained.peak_memory_mib,
        batch=job.recipe.batch,
        device=_device_name(setup.device),
    )


def _by_host(name: str, host: Mapping[int, int]) -> str:
    return f"gate_{host[int(name.removeprefix('gate_'))]}" if name.startswith("gate_") else name


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else f"cpu, {threads()} threads"


def _fingerprint(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode() + state[key].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
