"""The live view: what a terminal shows of real searches, read back through a small terminal; plain lines elsewhere."""

import io
import itertools
import re
import sys
import time
from dataclasses import replace
from types import MappingProxyType

import pytest
from fake_evaluator import Fake, setup
from rich.cells import cell_len
from rich.console import Console
from snapshots import OBJECTIVES, RECIPE, A, B, C, base, failed, rejected, running, stopped, trial
from study_targets import BASE, FakePool, load_study, space

from nas_attn import facts, files, history, live, storage, study
from nas_attn.architecture import Architecture, Placement
from nas_attn.event import Event, Scene
from nas_attn.inline_pool import InlinePool
from nas_attn.outcome import Job
from nas_attn.progress import Watch
from nas_attn.spec import SpaceSpec

TARGET = "fake_evaluator:serve"
MIXED = Fake(fails=10, stops=10, slow=20, bad_build=5)


@pytest.fixture(autouse=True)
def _a_terminal_and_no_waits(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(storage, "PRAGMAS", ("journal_mode=WAL", "synchronous=OFF"))
    monkeypatch.setattr(files, "_fsync", lambda _: None)


def _terminal(width=80, height=30):
    return Console(force_terminal=True, file=io.StringIO(), width=width, height=height, highlight=False)


def _screen(text):
    """The lines that a terminal shows when it has got that text."""
    lines, row, column = [""], 0, 0
    for sign in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|.|\n", text, re.DOTALL):
        if sign == "\n":
            row, column = row + 1, 0
            lines += [""] * (row == len(lines))
        elif sign == "\r":
            column = 0
        elif sign.endswith("A") and sign.startswith("\x1b"):
            row -= int(sign[2:-1])
        elif sign == "\x1b[2K":
            lines[row] = ""
        elif not sign.startswith("\x1b"):
            lines[row] = lines[row][:column].ljust(column) + sign + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]


def _shown(watch):
    """What the terminal of a watch shows now."""
    watch.view.refresh()
    return _screen(watch.console.file.getvalue())


def _search(folder, watch, *, trials=12, fake=MIXED, pool=None, **options):
    folder.mkdir(exist_ok=True)
    text = {"base": BASE, "sites": ["P3"], "modules": {"LIA": {"f": [8]}}, "limits": {"latency_ratio": 1.3}, "base_seeds": 2}
    spec = SpaceSpec.from_dict({**text, "controls": False})
    told = setup(folder, fake)
    return study.run(folder, spec, space(), told, pool or InlinePool(TARGET), trials=trials, sampler="random", on_event=watch, **options)


def _of(snapshot):
    """The lines that stand below a search that came to this, without its bar and its losses."""
    kinds = [t.kind for t in snapshot.trials]
    counts = [f"{word} {kinds.count(kind)}" for word, kind in zip(("measured", "rejected", "stopped", "failed"), KINDS, strict=True)]
    front, volume = facts.front_trials(snapshot), history.hypervolume(snapshot)
    told = [(str(t.number), str(t.architecture), f"{t.values['map50_95']:.4f}", f"{t.values['latency_ratio']:.3f}") for t in front]
    return " · ".join(counts), f"front: {len(front)} of {kinds.count('measured')} measured · hypervolume {volume:.4f}", told


KINDS = ("measured", "rejected", "stopped", "failure")


def _members(lines):
    """The rows of the front in a frame."""
    start = next(i for i, line in enumerate(lines) if line.startswith("front: "))
    return [tuple(re.split(r"\s{2,}", line.strip())) for line in lines[start + 2 :] if line]


# -- whole searches --------------------------------------------------------------------------------------------------------------------


def test_the_last_frame_tells_what_the_study_came_to(tmp_path):
    with Watch(_terminal()) as watch:
        snapshot = _search(tmp_path / "a", watch, trials=16)
        lines = _shown(watch)
    counts, front, members = _of(snapshot)
    assert len(members) > 2
    assert f"{counts} · lost 0" in lines
    assert front in lines
    assert _members(lines) == members
    assert "workers: 0 busy, 1 idle" in lines
    assert re.match(r"16/16 ━+ +\d+:\d\d elapsed, – left$", lines[lines.index(f"{counts} · lost 0") - 1])


def test_nothing_of_the_view_is_left_and_the_log_is(tmp_path):
    before = sys.stdout, sys.stderr
    with Watch(_terminal()) as watch:
        watch.note("node 10.0.0.2 has joined")
        snapshot = _search(tmp_path / "a", watch, trials=6)
        assert any(line.startswith("front: ") for line in _shown(watch))
    text = watch.console.file.getvalue()
    lines = [line for line in _screen(text) if line]
    assert [line for line in lines if not re.match(r"\d\d:\d\d ( *\d+/6 |node )", line)] == []
    assert f"trial {snapshot.trials[-1].number}: " in lines[-1]
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor was hidden, and is back
    assert not watch.view.is_started
    assert before == (sys.stdout, sys.stderr)


def test_nothing_is_left_where_a_search_was_interrupted(tmp_path):
    def interrupted(event):
        watch(event)
        if event.kind == "told":
            raise KeyboardInterrupt

    watch = Watch(_terminal())
    with pytest.raises(study.Interrupted), watch:
        _search(tmp_path / "a", interrupted)
    assert not watch.view.is_started
    assert "front: " not in "".join(_screen(watch.console.file.getvalue()))


def test_without_a_terminal_there_are_plain_lines(tmp_path):
    console = Console(file=io.StringIO(), width=80, highlight=False)
    kinds = []
    with Watch(console) as watch:
        watch.note("node [b]10.0.0.2[/b] has joined")
        _search(tmp_path / "a", lambda event: (kinds.append(event.kind), watch(event)), trials=2, fake=Fake())
    lines = console.file.getvalue().splitlines()
    assert watch.view is None
    assert watch.state.done == 0  # nobody looks at it
    assert [re.sub(r"^\d\d:\d\d ", "", line) for line in lines] == [
        "node [b]10.0.0.2[/b] has joined",
        "  0/2 fitting the base to the data",
        "  0/2 the base is fitted",
        "  0/2 trial 0: 1.000 of the base's latency",
        "  0/2 trial 0: seed 0 measured",
        "  0/2 trial 0: seed 1 measured",
        "  1/2 trial 0: mAP50-95 0.2693",
        "  1/2 trial 1: 1.114 of the base's latency",
        "  1/2 trial 1: seed 0 measured",
        "  2/2 trial 1: mAP50-95 0.2144",
    ]
    assert {"asked", "train"} < set(kinds)


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert Watch(_terminal()).view is None


def test_a_search_that_goes_on_shows_what_was_there(tmp_path):
    _search(tmp_path / "a", lambda _: None, trials=8)
    with Watch(_terminal()) as watch:
        snapshot = _search(tmp_path / "a", watch, trials=9)
        counts, front, members = _of(snapshot)
        lines = _shown(watch)
    assert f"{counts} · lost 0" in lines
    assert front in lines
    assert _members(lines) == members


def test_what_every_worker_does_is_shown_while_it_does_it(tmp_path):
    seen, busy = [], []

    def look(event):
        watch(event)
        seen.append((event.kind, _drawn(watch.state, now=time.monotonic(), width=160)))

    class Looking(FakePool):
        def wait(self, timeout_s):
            shown = _drawn(watch.state, now=time.monotonic(), width=160)
            trainings = [task for task in self.queue if task.kind == "train"]
            measured = sum(task.kind == "measure" for task in self.queue)
            assert sum("· training" in line for line in shown) == len(trainings)
            assert sum("· measurement" in line for line in shown) == measured
            for task in trainings:
                assert any(line.startswith(f"  trial {task.key.split('/')[1]}: ") for line in shown)
            busy.append(len(self.queue))
            return super().wait(timeout_s)

    with Watch(_terminal()) as watch:
        snapshot = _search(tmp_path / "a", look, pool=Looking(slots=3, lose={"train": 1}))
    assert max(busy) >= 3
    fit = next(lines for kind, lines in seen if kind == "fit")
    assert "workers: 1 busy, 2 idle" in fit
    assert any(re.match(r"  base · fit to the data, 0:0\d$", line) for line in fit)
    measure = next(lines for kind, lines in seen if kind == "asked" and "trials 1, 2, 3 " in "".join(lines))
    assert any(re.match(r"  trials 1, 2, 3 · measurement, 0:0\d$", line) for line in measure)
    text = str(snapshot.trials[1].architecture)
    training = next(line for kind, lines in seen if kind == "train" for line in lines if line.startswith("  trial 1: "))
    assert re.match(rf"  trial 1: {re.escape(text)} +· training, seed 0, attempt 1, 0:0\d$", training)
    lost = [int(line.rpartition(" ")[2]) for kind, lines in seen if kind == "lost" for line in lines if line.startswith("measured ")]
    assert lost == sorted(lost)
    assert lost[-1] > 3


def test_a_training_that_lacked_memory_is_not_shown_until_it_runs_again(tmp_path):
    looks = []

    def look(event):
        watch(event)
        if "lacked memory" in event.message:
            looks.append([task.what for task in watch.state.doing])
            assert event.message.split(":")[0] not in {task.what.split(":")[0] for task in watch.state.doing}
        if event.kind == "train" and "alone" in event.message:
            looks.append([task.how for task in watch.state.doing][-1])

    with Watch(_terminal()) as watch:
        _search(tmp_path / "a", look, trials=4, fake=Fake(crowded=100))
    assert "training, seed 0, attempt 2, alone" in looks


def test_a_task_goes_on_since_it_was_seen_first_and_another_attempt_begins_anew():
    job = _job(trial(1, A, 0.3, 1.1).architecture)
    first, second = _scene(base(), trainings=((1, job),)), _scene(base(), trainings=((1, replace(job, attempt=2)), (2, job)))
    state = live.after(live.State(begun=0.0), _event(first, "train"), 10.0)
    state = live.after(state, _event(first, "late"), 20.0)
    assert [task.begun for task in state.doing] == [10.0]
    assert [task.begun for task in live.after(state, _event(second, "train"), 30.0).doing] == [30.0, 30.0]


def test_repeats_move_the_front():
    scene = _scene(base(), trial(1, A, 0.35, 1.1))
    state = live.after(live.State(begun=0.0), _event(scene, "told", 1), 1.0)
    moved = _scene(base(), replace(trial(1, A, 0.35, 1.1), values={"map50_95": 0.31, "latency_ratio": 1.1}))
    after = live.after(state, _event(moved, "trained", 1), 2.0)
    assert after.hypervolume == history.hypervolume(moved.snapshot()) < state.hypervolume


# -- frames ----------------------------------------------------------------------------------------------------------------------------


def _scene(*trials, trainings=(), slots=4, objectives=OBJECTIVES):
    return Scene(objectives, {"latency_ratio": 1.3}, MappingProxyType({t.number: t for t in trials}), trainings, slots)


def _event(scene, kind="told", number=None, done=3, total=10, message="told"):
    return Event(kind=kind, message=message, done=done, total=total, trial=None if number is None else scene.trials[number], scene=scene)


def _drawn(state, *, now=100.0, width=80, height=30):
    console = Console(file=io.StringIO(), width=width, height=height, highlight=False)
    console.print(live.frame(state, now, height))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def _job(architecture, seed=0, attempt=1):
    return Job(architecture=architecture, recipe=RECIPE, seed=seed, attempt=attempt)


def _full(tasks=20, members=12):
    """A state with much of everything."""
    front = [trial(n, A + B + C, 0.30 + n / 1000, 1.0 + n / 100) for n in range(1, members)]
    trials = (base(), *front, rejected(40), failed(41), stopped(42), running(43))[members == 0 :]
    job = _job(trial(1, A + B + C, 0.3, 1.0).architecture)
    scene = _scene(*trials, trainings=tuple((100 + n, job) for n in range(tasks)), slots=64)
    return live.after(live.State(begun=0.0), _event(scene, "asked"), 40.0)


def test_a_frame_in_full():
    trials = (base(), trial(1, A, 0.31, 1.05), trial(2, B, 0.32, 1.1), rejected(3), failed(4), stopped(5), running(6))
    scene = _scene(*trials, trainings=((7, _job(trials[1].architecture, 1, 2)),))
    state = live.after(live.State(begun=0.0), _event(scene, "lost", 1), 58.0)
    lines = _drawn(state)
    assert re.fullmatch(r"3/10 ━+ +1:40 elapsed, – left", lines[0])
    assert lines[1:] == [
        "measured 3 · rejected 1 · stopped 1 · failed 1 · lost 1",
        "workers: 2 busy, 2 idle",
        "  trial 6: LSKA(k_size=7, use_proj=false)@4 · measurement, 0:42",
        "  trial 7: LSKA(k_size=7, use_proj=false)@4 · training, seed 1, attempt 2, 0:42",
        "front: 3 of 3 measured · hypervolume 0.0945",
        "  trial  architecture                      mAP50-95  latency ratio",
        "      0  base                                0.3000          1.000",
        "      1  LSKA(k_size=7, use_proj=false)@4    0.3100          1.050",
        "      2  LIA(f=16)@6                         0.3200          1.100",
    ]


@pytest.mark.parametrize(("tasks", "members"), [(20, 12), (1, 12), (20, 1), (0, 0)])
def test_a_frame_fits_any_terminal(tasks, members):
    state = _full(tasks, members)
    for width, height in itertools.product((20, 40, 80, 132), (1, 3, 5, 6, 8, 10, 12, 24, 50)):
        lines = _drawn(state, width=width, height=height)
        assert len(lines) <= max(1, height - max(2, height // 3))
        assert max(map(cell_len, lines)) <= width


def test_a_low_terminal_shows_some_of_everything():
    lines = _drawn(_full(), height=12)
    assert len(lines) == 8
    assert lines[2] == "workers: 21 busy, 43 idle"
    assert lines[4] == "  and 20 more"
    assert lines[5] == "front: 12 of 12 measured · hypervolume 0.0926"
    assert lines[7].startswith("     11  ")


def test_of_many_members_six_are_shown_with_both_ends():
    lines = _drawn(_full(tasks=0), height=50)
    assert [row[0] for row in _members(lines)] == ["0", "2", "4", "7", "9", "11"]


def test_long_names_end_in_dots_and_nothing_wraps():
    lines = _drawn(_full(tasks=1), width=80)
    assert [line for line in lines if "training" in line] == [
        "  trial 100: LSKA(k_size=7, use_proj=false)… · training, seed 0, attempt 1, 1:00"
    ]
    assert all(re.search(r"… +0\.\d{4} +1\.\d{3}$", line) for line in lines if re.match(r" +\d+  LSKA", line))


@pytest.mark.parametrize("width", [80, 160])
def test_names_are_no_markup_and_move_no_cursor(width):
    hostile = Architecture(BASE, (Placement(4, "[red]Bold[/red]"), Placement(6, "\x1b[2J\nx", (("f", 8),))))
    one = replace(trial(1, A, 0.31, 1.05), architecture=hostile)
    scene = _scene(base(), one, replace(running(2), architecture=hostile), trainings=((1, _job(hostile)),))
    state = live.after(live.State(begun=0.0), _event(scene, "told", 1), 0.0)
    text = "\n".join(_drawn(state, width=width))
    assert text.count("[red]Bold[/red]()@4 +") == 3
    assert "\x1b" not in text
    if width == 160:
        assert text.count(r"\x1b[2J\nx(f=8)@6") == 3
    watch = Watch(_terminal(width))
    with watch:
        watch(_event(scene, "told", 1, message="trial 1: [red]x[/nothing] \x1b[2J"))
    assert r"[red]x[/nothing] \x1b[2J" in _screen(watch.console.file.getvalue())[0]


def test_events_without_a_search_show_their_words():
    state = live.State(begun=0.0)
    assert _drawn(state)[1] == "starting"
    state = live.after(state, Event(kind="trained", message="base, [b]seed[/b] 0", done=4, total=20), 1.0)
    lines = _drawn(state)
    assert lines[0].startswith("4/20 ")
    assert lines[1:] == ["base, [b]seed[/b] 0"]


def test_a_front_in_many_objectives_has_no_volume_here():
    scene = _scene(base(extra={"params_m": 2.6, "gmacs": 0.2}), objectives={**OBJECTIVES, "params_m": "minimize", "gmacs": "minimize"})
    state = live.after(live.State(begun=0.0), _event(scene, "told", 0), 0.0)
    assert "front: 1 of 1 measured · hypervolume –" in _drawn(state)


# -- seconds left ------------------------------------------------------------------------------------------------------------------------


def _left(state, now):
    return state.pace.left(state.left, now)


def _timed(*told, first=0, total=10):
    """The state after trials were told at those seconds, each given as (number, second), with `first` counted before."""
    trials = [replace(trial(n, A, 0.3, 1.1), number=n) if n else base() for n, _ in told]
    scene = _scene(*trials)
    state = live.after(live.State(begun=0.0), _event(scene, "asked", done=first, total=total), 5.0)
    for count, (number, second) in enumerate(told, first + 1):
        state = live.after(state, _event(scene, "told", number, done=count, total=total), second)
    return state


def test_seconds_left_follow_the_pace_since_the_base():
    assert _left(_timed(), 50.0) is None
    assert _left(_timed((0, 100.0)), 105.0) is None
    assert _left(_timed((0, 100.0), (1, 110.0)), 110.0) == 8 * 10.0
    assert _left(_timed((0, 100.0), (1, 110.0), (2, 110.0), (3, 130.0)), 136.0) == 6 * 10.0 - 6.0
    assert _left(_timed((0, 100.0), (1, 110.0)), 1e6) == 0.0


def test_seconds_left_of_a_search_that_goes_on_need_two_trials_of_this_session():
    assert _left(_timed((7, 25.0), first=6), 25.0) is None
    assert _left(_timed((7, 25.0), (8, 45.0), first=6), 45.0) == 2 * 20.0


def test_nothing_is_left_when_all_have_counted():
    assert _left(_timed((0, 10.0), (1, 20.0), total=2), 20.0) is None


def test_failures_are_no_pace():
    scene = _scene(base(), failed(1))
    state = live.after(_timed((0, 100.0), (1, 110.0)), _event(scene, "told", 1, done=2), 190.0)
    assert _left(state, 190.0) == 0.0
    assert state.pace.trials == 1


def test_clocks():
    assert [live._clock(seconds) for seconds in (0.0, 42.9, 753.0, 3723.0)] == ["0:00", "0:42", "12:33", "1:02:03"]


def test_a_real_search_is_told_what_is_left(tmp_path):
    lefts = []

    def look(event):
        watch(event)
        if event.kind == "told" and event.trial.kind == "measured":
            lefts.append((event.done, _left(watch.state, watch.state.pace.last)))

    with Watch(_terminal()) as watch:
        _search(tmp_path / "a", look, trials=5, fake=Fake())
    assert [done for done, left in lefts if left is None] == [1, 5]
    assert all(left > 0 for done, left in lefts if 1 < done < 5)


def test_the_study_is_where_it_was(tmp_path):
    with Watch(_terminal()) as watch:
        snapshot = _search(tmp_path / "a", watch, trials=6)
    assert load_study(tmp_path / "a").trials == snapshot.trials
