"""Fakes for the tests of record and study: a small space, an evaluator that is a pure function of the digest, and pools that misbehave.

The evaluator writes one line a training to `executions.log` in the study's folder: `start`, or `again` where the job has an outcome. What
was asked for before another attempt left its outcome is not trained (`found`), as by the real evaluator.
"""

import json
import os
import random
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
from sqlalchemy.pool import NullPool

from nas_attn import record
from nas_attn.address import journal_of, require_safe
from nas_attn.architecture import Architecture, Placement
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
    Recipe,
    Snapshot,
    Stopped,
    Trial,
    left_outcome,
    outcome_file_text,
    outcome_to_dict,
)
from nas_attn.record import Record
from nas_attn.space import SearchSpace, Site
from nas_attn.work import Done, Task

BASE = "yolo11n.yaml"
OBJECTIVES = {"map50_95": "maximize", "latency_ratio": "minimize"}
RECIPE = Recipe(
    epochs=6, imgsz=160, batch=16, lr0=0.001, new_lr_scale=10.0, score_on="search_val", data="d" * 12, base="b" * 12, code="versions"
)


def space(sites: int = 4, sizes: int = 3, most: int = 2) -> SearchSpace:
    """A space of two modules at `sites` rows; 4, 3, 2 give 241 architectures."""
    rows = [2 * i + 2 for i in range(sites)]
    modules = [("LIA", "f", 8 * i) for i in range(1, sizes + 1)] + [("LSKA", "k_size", 7 + 4 * i) for i in range(sizes)]
    options = [tuple(Placement(row, module, ((name, value),)) for module, name, value in modules) for row in rows]
    placed = tuple(Site(row, (f"P{row}",), "C3k2", 64, 8) for row in rows)
    return SearchSpace(base=BASE, sites=placed, placements=tuple(options), max_placements=most)


SETTINGS = {"spec": {"seed": 0, "proxy": {"epochs": 6}}, "space": "abc"}
LIMITS = {"latency_ratio": 1.3, "params_m": 4.0}


class Shelf:
    """Where the studies of a test are kept: `url` is None for SQLite in their folders; `{folder}` in it stands for a study's own."""

    url: str | None = None

    @classmethod
    def at(cls, folder: Path) -> str | None:
        """The storage of the study in `folder`."""
        return None if cls.url is None else cls.url.format(folder=folder)


def load_study(folder: Path, storage: str | None = None) -> Snapshot:
    """As `record.load_study`, from the test's storage."""
    return record.load_study(folder, storage or Shelf.at(folder))


def open_record(folder: Path, **changes: Any) -> Record:
    """A record of that space, in the test's storage."""
    options = {
        "storage": Shelf.at(folder),
        "settings": SETTINGS,
        "objectives": OBJECTIVES,
        "space": space(),
        "sampler": "random",
        "seed": 0,
        "limits": LIMITS,
    }
    return Record.open(folder, **{**options, **changes})


def job_of(trial: Trial, seed: int = 0, attempt: int = 1) -> Job:
    """A job under a trial."""
    return Job(architecture=trial.architecture, recipe=RECIPE, seed=seed, attempt=attempt)


def tell_next(record: Record, verdict: Outcome, trial_cost: Cost | None = None) -> int:
    """Asks, and tells that verdict at once; the trial's number."""
    trial = record.ask(RECIPE)
    record.save_cost(trial.number, trial_cost or cost(1.1))
    record.tell(trial.number, verdict)
    return trial.number


def stored_study(folder: Path) -> optuna.Study:
    """The same study as Optuna alone sees it."""
    url = Shelf.at(folder) or f"sqlite:///{folder / 'study.db'}"
    return optuna.load_study(study_name=folder.name, storage=optunas_storage(url))


def optunas_storage(url: str) -> optuna.storages.BaseStorage:
    """A storage without us, which leaves no connection open."""
    if (file := journal_of(url)) is not None:
        return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(file)))
    return optuna.storages.RDBStorage(require_safe(url), engine_kwargs={"poolclass": NullPool})


@dataclass(frozen=True)
class Fake:
    """How often (of 100 architectures) the evaluator does what, and how long a training takes; with `curves`, all epochs are told.

    `crowded` of 100 lack memory unless they run alone; `poison` names a digest that kills its worker, `hangs` one that hangs once, `unfit`
    one whose device fails once, and `armed` a JSON file that may say these three later; `fitted` epochs are told of the fit, from which
    deadlines follow; what `data` names must be there; `pace` names a file that holds the seconds.
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
    if not job.alone and _share(f"crowded{digest}") < fake.crowded:
        return Failure(stage="memory", error="CUDA out of memory")
    if digest == fake.poison:
        os.kill(os.getpid(), signal.SIGKILL)
    if digest == fake.unfit and job.attempt == 1:
        raise Unfit("A worker's GPU must work, but: CUDA error: unspecified launch failure")
    if digest == fake.hangs and job.attempt == 1:
        time.sleep(3600)
    again = [*place.parent.glob("*/outcome.json")]
    _log(folder, f"{'again' if again else 'start'} {job.architecture.digest()}/{job.name()}/{job.attempt}")
    time.sleep(float(Path(fake.pace).read_text()) if fake.pace else fake.seconds)
    outcome = score(job, fake)
    if job.epochs is not None:
        (place / CHECKPOINT).write_text("paused")
    write_atomic(place / "outcome.json", lambda file: file.write_text(outcome_file_text(job, outcome)))
    return outcome


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


@dataclass
class FakePool:
    """Any number of slots; ends tasks in a random order. `lose` names, by kind, how often in a row an attempt is lost first."""

    slots: int = 2
    seed: int = 0
    lose: Mapping[str, int] = field(default_factory=dict)
    leave_file: bool = False
    repeat: bool = False
    queue: list[Task] = field(default_factory=list)
    seen: list[Task] = field(default_factory=list)
    largest: int = 0

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self._losses: dict[str, int] = {}

    def submit(self, task: Task) -> None:
        self.queue.append(task)
        self.seen.append(task)
        self.largest = max(self.largest, sum(t.kind == "train" for t in self.queue))

    def wait(self, timeout_s: float | None) -> list[Done]:  # noqa: ARG002
        if not self.queue:
            return []
        task = self.queue.pop(self._rng.randrange(len(self.queue)))
        name = task.key.rsplit("/", 1)[0] if task.kind == "train" else task.kind
        self._losses[name] = self._losses.get(name, 0) + 1
        if self._losses[name] <= self.lose.get(task.kind, 0):
            if self.leave_file:
                serve(task.kind, task.payload)
            return [Done(task.key, None, "worker died: killed")]
        done = Done(task.key, serve(task.kind, task.payload), None)
        return [done, replace(done)] if self.repeat else [done]

    def need(self, memory_mib: float) -> None:
        assert memory_mib == 0

    def close(self) -> None:
        self.queue.clear()

    def __enter__(self) -> "FakePool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
