"""The live view of a running search: what its events have told as one frozen state, and that state as a frame for a terminal.

Times are seconds of the monotonic clock. All text stands in a frame as it is: names from elsewhere are no markup here.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from nas_attn import facts, history
from nas_attn.errors import printable
from nas_attn.event import Event, Scene
from nas_attn.outcome import Trial
from nas_attn.protocol import part

MOST_MEMBERS = 6
"""Members of the front that a frame shows."""
MOST_OBJECTIVES = 3
"""In more of them the hypervolume of a large front takes longer than a driver may wait at every trial."""
ENDS = frozenset({"told", "rejected"})
"""Events with which a trial ends."""
UNKNOWN = "–"
_COUNTED = {"measured": "measured", "rejected": "rejected", "stopped": "stopped", "failure": "failed"}


@dataclass(frozen=True, slots=True)
class Doing:
    """A task under way: on what, how far in words, and since when it was seen."""

    what: str
    how: str
    begun: float


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast trials come: so many counted from `begun` to `last`, besides the base.

    The base is trained with more seeds than any other and alone: where it ends in this session, `begun` is its end.
    """

    begun: float
    last: float
    trials: int = 0
    base: bool = False

    def further(self, trial: Trial | None, now: float) -> "Pace":
        """The pace with one more trial, which has counted now."""
        if trial is not None and not trial.architecture.placements:
            return Pace(now, now, base=True)
        return replace(self, last=now, trials=self.trials + 1)

    def left(self, trials: int, now: float) -> float | None:
        """The seconds that so many further trials will take; None before two have counted, and for none."""
        if self.trials + self.base < 2 or trials < 1:
            return None
        return max(0.0, (self.last - self.begun) / self.trials * trials - (now - self.last))


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What the events of one session have told. `searches`: a scene was among them, without which only done, total and message are known.

    `counts` are trials by kind and `front` the members of the observed front, over all sessions; `lost` counts attempts of this one.
    """

    begun: float
    message: str = "starting"
    done: int = 0
    total: int | None = None
    searches: bool = False
    fits: bool = False
    slots: int = 0
    doing: tuple[Doing, ...] = ()
    counts: Mapping[str | None, int] = field(default_factory=dict)
    lost: int = 0
    front: tuple[Trial, ...] = ()
    hypervolume: float | None = None
    pace: Pace = Pace(0.0, 0.0)

    @property
    def left(self) -> int:
        """Trials that have yet to count."""
        return max(0, (self.total or 0) - self.done)


def after(state: State, event: Event, now: float) -> State:
    """The state when one more event has come."""
    scene, counted = event.scene, event.kind == "told" and event.done > state.done
    lost = state.lost + (event.kind == "lost")
    state = replace(state, message=printable(event.message), done=event.done, total=event.total, lost=lost)
    if scene is None:
        return state
    if not state.searches:
        state = _known(replace(state, searches=True, pace=Pace(now, now)), scene)
    elif event.trial is not None and event.trial.kind is not None:
        known = _one_more(state, scene, event.trial) if event.kind in ENDS else _known(state, scene)  # a repeat moves a trial's score
        state = replace(known, pace=state.pace.further(event.trial, now) if counted else state.pace)
    fits = event.kind == "fit" or (state.fits and event.kind != "fitted")
    return replace(state, fits=fits, slots=scene.slots, doing=_doing(state.doing, scene, fits, now))


def _known(state: State, scene: Scene) -> State:
    """The state with what all trials have come to, which takes half a second after ten thousand."""
    counts = Counter(trial.kind for trial in scene.trials.values())
    return _on_front(replace(state, counts=counts), scene, scene.trials.values())


def _one_more(state: State, scene: Scene, trial: Trial) -> State:
    """The same with one trial more, which only the front so far can dominate."""
    counts = Counter[str | None](state.counts)
    counts[trial.kind] += 1
    base = [scene.trials[0]] if 0 in scene.trials else []
    among = {member.number: member for member in (*base, *state.front, trial)}
    return _on_front(replace(state, counts=counts), scene, among.values())


def _on_front(state: State, scene: Scene, trials: Iterable[Trial]) -> State:
    study = replace(scene.snapshot(), trials=tuple(trials))
    volume = history.hypervolume(study) if len(scene.objectives) <= MOST_OBJECTIVES else None
    return replace(state, front=facts.front_trials(study), hypervolume=volume)


def _doing(before: Sequence[Doing], scene: Scene, fits: bool, now: float) -> tuple[Doing, ...]:
    """What is under way; what was before goes on since then. A trial without a cost is being measured: all of them at once."""
    begun = {(task.what, task.how): task.begun for task in before}
    words = [("base", "fit to the data")] * fits
    unmeasured = [trial for trial in scene.trials.values() if trial.kind is None and trial.cost is None]
    if len(unmeasured) == 1:
        words.append((f"trial {unmeasured[0].number}: {unmeasured[0].architecture}", "measurement"))
    elif unmeasured:
        words.append((f"trials {', '.join(str(trial.number) for trial in unmeasured)}", "measurement"))
    for number, job in scene.trainings:
        how = f"training, {part(job)}, attempt {job.attempt}{', alone' * job.alone}"
        words.append((f"trial {number}: {job.architecture}", how))
    return tuple(Doing(what, how, begun.get((what, how), now)) for what, how in words)


# -- a frame -------------------------------------------------------------------------------------------------------------------------------


def frame(state: State, now: float, height: int) -> RenderableType:
    """The state for a terminal of `height` lines, of which at least a third is left to the log."""
    room = max(1, height - max(2, height // 3))
    if not state.searches:
        return Group(*[_bar(state, now), _line(state.message)][:room])
    members = min(MOST_MEMBERS, len(state.front))
    spare = room - 4
    tasks = max(0, min(len(state.doing), max(spare - members - 1, spare // 2)))
    members = max(0, min(members, spare - tasks - 1))
    parts = [_bar(state, now), _line(_counts(state)), _line(_workers(state), "bold")]
    if tasks:
        parts.append(_tasks(state.doing, now, tasks))
    parts.append(_line(_front(state), "bold"))
    if members:
        parts.append(_members(state.front, members))
    return Group(*parts[:room])


def _bar(state: State, now: float) -> RenderableType:
    row = Table.grid(Column(no_wrap=True), Column(ratio=1), Column(no_wrap=True), padding=(0, 1), expand=True)
    left = state.pace.left(state.left, now)
    told = f"{state.done}/{UNKNOWN if state.total is None else state.total}"
    times = f"{_clock(now - state.begun)} elapsed, {UNKNOWN if left is None else f'about {_clock(left)}'} left"
    row.add_row(Text(told), ProgressBar(total=state.total, completed=state.done), Text(times))
    return row


def _counts(state: State) -> str:
    counts = [f"{word} {state.counts.get(kind, 0)}" for kind, word in _COUNTED.items()]
    return " · ".join([*counts, f"lost {state.lost}"])


def _workers(state: State) -> str:
    return f"workers: {len(state.doing)} busy, {max(0, state.slots - len(state.doing))} idle"


def _front(state: State) -> str:
    volume = UNKNOWN if state.hypervolume is None else f"{state.hypervolume:.4f}"
    return f"front: {len(state.front)} of {state.counts.get('measured', 0)} measured · hypervolume {volume}"


def _tasks(doing: Sequence[Doing], now: float, most: int) -> RenderableType:
    """At most so many lines, the last of which says how many tasks have none."""
    rows = Table.grid(Column(overflow="ellipsis"), Column(no_wrap=True), padding=(0, 1))
    shown = doing if len(doing) <= most else doing[: most - 1]
    for task in shown:
        rows.add_row(_line(f"  {printable(task.what)}"), Text(f"· {task.how}, {_clock(now - task.begun)}", style="dim"))
    if len(shown) < len(doing):
        rows.add_row(_line(f"  and {len(doing) - len(shown)} more"), Text())
    return rows


def _members(front: Sequence[Trial], most: int) -> RenderableType:
    """A row a member, from the fastest to the best; of more than `most`, some between them."""
    names = ("trial", "architecture", "mAP50-95", "latency ratio")
    columns = [Column(_line(name), justify="left" if name == "architecture" else "right") for name in names]
    table = Table(*columns, box=None, padding=(0, 0, 0, 2), header_style="dim")
    for trial in _spread(front, most):
        values = [(facts.metric(trial, name), digits) for name, digits in (("map50_95", 4), ("latency_ratio", 3))]
        cells = [UNKNOWN if value is None else f"{value:.{digits}f}" for value, digits in values]
        table.add_row(*map(_line, (str(trial.number), printable(trial.architecture), *cells)))
    return table


def _spread(front: Sequence[Trial], most: int) -> list[Trial]:
    if len(front) <= most:
        return list(front)
    return [front[round(place * (len(front) - 1) / (most - 1))] for place in range(most)] if most > 1 else [front[-1]]


def _line(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _clock(seconds: float) -> str:
    """`0:42`, `12:33` or `1:02:03`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
