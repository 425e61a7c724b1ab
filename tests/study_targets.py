"""Fakes for the tests of record and study: a small space, a storage that a test chooses, and pools that misbehave."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import fake_evaluator
import optuna
from fake_evaluator import cost
from sqlalchemy.pool import NullPool

from nas_attn import record
from nas_attn.address import journal_of, require_safe
from nas_attn.architecture import Placement
from nas_attn.outcome import Cost, Job, Outcome, Recipe, Snapshot, Trial
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
                fake_evaluator.serve(task.kind, task.payload)
            return [Done(task.key, None, "worker died: killed")]
        done = Done(task.key, fake_evaluator.serve(task.kind, task.payload), None)
        return [done, replace(done)] if self.repeat else [done]

    def need(self, memory_mib: float) -> None:
        assert memory_mib == 0

    def close(self) -> None:
        self.queue.clear()

    def __enter__(self) -> "FakePool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
