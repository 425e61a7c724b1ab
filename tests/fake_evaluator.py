"""A fake evaluator, a pure function of the digest, that workers begin quickly: it needs neither torch nor Optuna.

It writes one line a training to `executions.log` in the study's folder: `start`, or `again` where the job has an outcome. What was asked
for before another attempt left its outcome is not trained (`found`), as by the real evaluator.
"""

import json
import os
import random
import signal
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nas_attn.architecture import Architecture
from nas_attn.errors import Unavailable, Unfit
from nas_attn.files import write_atomic
from nas_attn.outcome import (
    CHECKPOINT,
    Cost,
    Failure,
    Job,
    Latency,
    Measured,
    Outcome,
    Stopped,
    left_outcome,
    outcome_file_text,
    outcome_to_dict,
)


@dataclass(frozen=True)
class Fake:
    """How often (of 100 architectures) the evaluator does what, and how long a training takes; with `curves`, all epochs are told.

    `crowded` of 100 lack memory unless they run alone; `poison` names a digest that kills its worker, `hangs` one that hangs once, `unfit`
    one whose device fails once, and `armed` a JSON file that may say these three later; `fitted` epochs are told of the fit, from which
    deadlines follow; what `data` names must be there; `pace` names a file that holds the seconds; `holds` a folder in which a file that a
    digest names keeps its trainings from ending, but for the attempts that it lists: copies then tell of themselves in `copies.log`.
    """

    fails: int = 0
    stops: int = 0
    slow: int = 0
    bad_build: int = 0
    seconds: float = 0.0
    fit_fails: bool = False
    crowded: int = 0
    poison: str = ""
    hangs: str = ""
    unfit: str = ""
    armed: str = ""
    fitted: int = 0
    data: str = ""
    pace: str = ""
    holds: str = ""
    curves: bool = False


def setup(folder: Path, fake: Fake = Fake(), **changes: Any) -> dict[str, Any]:
    """What workers are told."""
    return {"folder": str(folder), "train_list": str(folder / "train.txt"), "device": "cpu", "fake": asdict(fake), **changes}


def _share(text: str) -> float:
    """A number in [0, 100) that only `text` decides."""
    return random.Random(text).random() * 100


def serve(kind: str, payload: str) -> str:
    """The evaluator."""
    task = json.loads(payload)
    fake, folder = Fake(**task["setup"]["fake"]), Path(task["setup"]["folder"])
    if kind == "fit":
        _log(folder, "fit")
        answer = {"failure": asdict(Failure(stage="train", error="no labels"))} if fake.fit_fails else _fit(fake)
        return json.dumps(answer)
    if kind == "measure" and fake.pace:
        Path(fake.pace).with_name("measured-by").write_text(str(os.getpid()))
    if kind == "measure":
        return json.dumps({"costs": [_cost(Architecture.from_dict(a), fake) for a in task["architectures"]]})
    return json.dumps(outcome_to_dict(train(folder, Job.from_dict(task["job"]), fake)))


def train(folder: Path, job: Job, fake: Fake) -> Outcome:
    """A training, from its log line to its outcome file."""
    place, digest = job.folder(folder), job.architecture.digest()
    if fake.armed and Path(fake.armed).exists():
        fake = replace(fake, **json.loads(Path(fake.armed).read_text()))
    if fake.data and not Path(fake.data).exists():
        raise Unavailable(f"The data set must stay where it is, but {fake.data} is not there")
    left, _ = left_outcome(folder, job)
    if left is not None:
        _log(folder, f"found {digest}/{job.name()}/{job.attempt}")
        return left
    place.mkdir(parents=True)
    with (folder / "pids.log").open("a") as file:
        file.write(f"{os.getpid()} {digest}\n")
    if digest == fake.poison:
        os.kill(os.getpid(), signal.SIGKILL)
    if digest == fake.unfit and job.attempt == 1:
        raise Unfit("A worker's GPU must work, but: CUDA error: unspecified launch failure")
    if digest == fake.hangs and job.attempt == 1:
        time.sleep(3600)
    if not job.alone and _share(f"crowded{digest}") < fake.crowded:
        return Failure(stage="memory", error="CUDA out of memory")
    again = [*place.parent.glob("*/outcome.json")]
    _log(folder, f"{'again' if again else 'start'} {job.architecture.digest()}/{job.name()}/{job.attempt}")
    seconds = float(Path(fake.pace).read_text()) if fake.pace else fake.seconds
    if fake.holds:
        _take_time(folder, job, seconds, Path(fake.holds, digest))
    else:
        time.sleep(seconds)
    outcome = score(job, fake)
    if job.epochs is not None:
        (place / CHECKPOINT).write_text("paused")
    write_atomic(place / "outcome.json", lambda file: file.write_text(outcome_file_text(job, outcome)))
    if fake.holds:
        _tell(folder, "ended", job)
    return outcome


def _take_time(folder: Path, job: Job, seconds: float, hold: Path) -> None:
    """A training that lasts so long, and as long as it is held."""
    _tell(folder, "began", job)
    end, told = time.monotonic() + seconds, False
    while (held := _held(hold, job.attempt)) or time.monotonic() < end:
        if held and not told:
            _tell(folder, "held", job)
            told = True
        time.sleep(0.05)


def _held(hold: Path, attempt: int) -> bool:
    try:
        return str(attempt) not in hold.read_text().split()
    except FileNotFoundError:
        return False


def _tell(folder: Path, what: str, job: Job) -> None:
    with (folder / "copies.log").open("a") as file:
        file.write(f"{os.getpid()} {what} {job.architecture.digest()}/{job.name()}/{job.attempt}\n")


def score(job: Job, fake: Fake = Fake()) -> Outcome:
    """What a training of this job gives, always."""
    digest = job.architecture.digest()
    if job.architecture.placements and _share(f"fail{digest}") < fake.fails:
        return Failure(stage="train", error="CUDA out of memory")
    curve = ({"epoch": 1.0, "map50_95": 0.1},)
    if job.architecture.placements and _share(f"stop{digest}") < fake.stops:
        return Stopped(rung=1, curve=curve)
    final = measured(0.2 + (_share(f"map{digest}") + _share(f"seed{digest}{job.seed}") / 20 + 10 * (job.recipe.epochs > 6)) / 1000)
    return _along(job, final) if fake.curves else final


def _along(job: Job, final: Measured) -> Measured:
    """The same training up to the job's rung: a rise of 0.01 an epoch, with luck of its own at each but the last."""
    whole, name = job.recipe.epochs, f"{job.architecture.digest()}{job.seed}"
    scores = [final.map50_95 - 0.01 * (whole - e) + (e < whole) * (_share(f"luck{name}{e}") - 50) / 10000 for e in range(1, whole + 1)]
    curve = tuple({"epoch": float(e), "map50_95": score, "map50": score * 1.6} for e, score in enumerate(scores, 1))[: job.epochs]
    return replace(final, map50_95=curve[-1]["map50_95"], map50=curve[-1]["map50"], curve=curve)


def measured(map50_95: float) -> Measured:
    """A finished training with that score."""
    return Measured(
        map50_95=map50_95,
        map50=min(1.0, map50_95 * 1.6),
        curve=({"epoch": 1.0, "map50_95": map50_95},),
        gates={},
        train_seconds=1.0,
        total_seconds=2.0,
        peak_memory_mib=100.0,
        batch=16,
        device="cpu",
    )


def cost(ratio: float, width: float = 0.02, params_m: float = 2.6) -> Cost:
    """A cost with that latency ratio, known to within `width`."""
    latency = Latency(
        ratio=ratio, low=ratio - width, high=ratio + width, latency_ms=8 * ratio, base_ms=8.0, quality="gated", blocks=3, attempts=1
    )
    return Cost(params_m=params_m, gmacs=0.2, activation_mib=10.0, latency=latency)


def _cost(architecture: Architecture, fake: Fake) -> dict[str, Any]:
    digest = architecture.digest()
    if not architecture.placements:
        return {"cost": asdict(cost(1.0))}
    if _share(f"build{digest}") < fake.bad_build:
        return {"failure": asdict(Failure(stage="build", error="RuntimeError: shapes"))}
    return {"cost": asdict(cost(1.5 if _share(f"slow{digest}") < fake.slow else 1.05 + _share(f"latency{digest}") / 1000))}


def _fit(fake: Fake) -> dict[str, Any]:
    told = {"fingerprint": "b" * 12, "data": "d" * 12, "code": "versions", "map50_95": 0.2, "new_tensors": []}
    return {**told, "curve": [{"epoch": 1.0}] * fake.fitted, "seconds": 1.0}


def _log(folder: Path, line: str) -> None:
    with (folder / "executions.log").open("a") as file:
        file.write(f"{line}\n")


def executions(folder: Path) -> list[str]:
    """The log, one line a training or fit."""
    file = folder / "executions.log"
    return file.read_text().splitlines() if file.is_file() else []
