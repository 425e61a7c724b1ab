"""What happens in a study while it runs, for whoever watches."""

from dataclasses import dataclass

from nas_attn.outcome import Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened: `kind` is one of `fit`, `fitted`, `asked`, `measured`, `rejected`, `train`, `trained`, `told`, `lost`,
    `waits`, `adopted`, `unusable`, `late`, `exhausted`, `took over`. `done` of `total` trials have counted by then.
    """

    kind: str
    message: str
    done: int
    total: int
    trial: Trial | None = None
