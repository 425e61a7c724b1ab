"""What happens in a study while it runs, for whoever watches."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nas_attn.outcome import Job, Snapshot, Trial


@dataclass(frozen=True, slots=True)
class Scene:
    """The search behind an event: its objectives and limits, every trial by its number, the trainings that the pool holds or is handed
    next, each with its trial's number, and how many tasks the pool runs at a time.

    `trials` is the record's own view, which shows what they are when it is read: only the thread that was told of the event may read it.
    """

    objectives: Mapping[str, str]
    limits: Mapping[str, float]
    trials: Mapping[int, Trial]
    trainings: tuple[tuple[int, Job], ...]
    slots: int

    def snapshot(self) -> Snapshot:
        """As much of the study as its front and its hypervolume depend on."""
        settings = {"spec": {"limits": dict(self.limits)}}
        trials = tuple(self.trials.values())
        return Snapshot(folder=Path(), name="", objectives=self.objectives, settings=settings, fit=None, trials=trials)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened: `kind` is one of `fit`, `fitted`, `asked`, `measured`, `rejected`, `train`, `trained`, `told`, `lost`,
    `adopted`, `unusable`, `late`, `exhausted`, `took over`. `done` of `total` trials have counted by then.
    """

    kind: str
    message: str
    done: int
    total: int
    trial: Trial | None = None
    scene: Scene | None = field(default=None, repr=False)
