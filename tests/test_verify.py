"""The driver of `verify`: what it trains, that nothing is trained twice, that one arm's failure ends no other."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
from verify_targets import WIDTH, executions, serve, study

from nas_attn.arms import Options, Verification, prepare
from nas_attn.errors import Interrupted
from nas_attn.outcome import Failure, Measured
from nas_attn.pool import InlinePool
from nas_attn.verdict import Evidence, write
from nas_attn.verify import run
from nas_attn.work import Done, Task

TARGET = "verify_targets:serve"
THREE = Options(seeds=3, extra_epochs=2)


def decide(tmp_path: Path, digits: Path, options: Options = THREE, **fake: Any) -> Verification:
    snapshot, setup = study(tmp_path / "study", digits, **fake)
    return prepare(snapshot, setup, digits, options, tmp_path / "verify")


def verify(plan: Verification, pool: Any = None) -> Evidence:
    return run(plan, pool or InlinePool(TARGET))


@dataclass
class Flaky(InlinePool):
    """Is interrupted at the n-th task, or loses tasks whose name holds a word so many times, or answers them by `nonsense`."""

    stop_at: int = 0
    lose: str = ""
    times: int = 0
    after: bool = False
    nonsense: str | None = None
    seen: list[Task] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(TARGET)

    def wait(self, timeout_s: float | None) -> list[Done]:
        if not self._queue:
            return []
        task = self._queue[0]
        self.seen.append(task)
        if self.stop_at and len(self.seen) == self.stop_at:
            raise KeyboardInterrupt
        if self.lose and self.lose in task.key and self.times > 0:
            self.times -= 1
            self._queue.popleft()
            if self.after:
                serve(task.kind, task.payload)
            return [Done(task.key, self.nonsense, None if self.nonsense else "worker died: killed")]
        return super().wait(timeout_s)


def test_all_arms_run_all_seeds_and_the_width_is_found_first(tmp_path: Path, digits: Path) -> None:
    plan = decide(tmp_path, digits)
    evidence = verify(plan)
    log = executions(tmp_path / "study")
    assert log[0] == "width"
    assert len(log) == 2 + plan.trainings
    assert [arm.name for arm in evidence.arms] == ["base", "trial-2", "trial-1", "extra", "wider"]
    assert all(sorted(evidence.scores(arm.name)) == [0, 1, 2] for arm in evidence.arms)
    assert (evidence.rival, evidence.pick) == ("wider", "trial-2")
    files = write(evidence, tmp_path / "verify")
    table = pd.read_csv(files[0])
    assert len(table) == 15
    assert set(table["state"]) == {"measured"}
    assert table.loc[table["arm"] == "wider", "width"].unique().tolist() == [WIDTH["width"]]


@pytest.mark.parametrize("stop_at", [1, 2, 5, 11, 16])
def test_interrupted_anywhere_the_same_call_trains_nothing_twice(tmp_path: Path, digits: Path, stop_at: int) -> None:
    plan = decide(tmp_path, digits)
    with pytest.raises(Interrupted, match="of 15 trainings"):
        verify(plan, Flaky(stop_at=stop_at))
    evidence = verify(plan)
    trained = [line for line in executions(tmp_path / "study") if line not in ("width", "fit")]
    assert len(trained) == len(set(trained)) == 15
    whole = write(evidence, tmp_path / "one")
    again = write(verify(plan), tmp_path / "two")
    assert [f.read_bytes() for f in whole] == [f.read_bytes() for f in again]
    assert sorted(line for line in executions(tmp_path / "study") if line not in ("width", "fit")) == sorted(trained)


def test_a_failure_ends_no_other_is_listed_and_is_run_again(tmp_path: Path, digits: Path) -> None:
    evidence = verify(decide(tmp_path, digits, fails=["trial-1 1", "trial-1 2"]))
    assert sorted(evidence.scores("trial-1")) == [0]
    assert isinstance(evidence.outcomes["trial-1"][1], Failure)
    page = write(evidence, tmp_path / "verify")[2].read_text()
    assert "trial-1, seed 1: train: CUDA out of memory" in page
    assert "## What failed" in page
    mended = verify(decide(tmp_path, digits))
    assert sorted(mended.scores("trial-1")) == [0, 1, 2]
    log = executions(tmp_path / "study")
    assert (log.count("trial-1 1"), log.count("trial-1 0"), log.count("base 2")) == (2, 1, 1)


def test_another_recipe_has_a_folder_of_its_own(tmp_path: Path, digits: Path) -> None:
    verify(decide(tmp_path, digits))
    verify(decide(tmp_path, digits, Options(seeds=3, epochs=9, extra_epochs=2)))
    assert executions(tmp_path / "study").count("base 0") == 2
    assert len(list((tmp_path / "verify").iterdir())) == 2


def test_an_outcome_of_another_job_is_not_taken(tmp_path: Path, digits: Path) -> None:
    plan = decide(tmp_path, digits)
    verify(plan)
    file = plan.folder / "base" / "s1" / "outcome.json"
    text = json.loads((plan.folder / "base" / "s0" / "outcome.json").read_text())
    file.write_text(json.dumps(text))
    verify(plan)
    assert executions(tmp_path / "study").count("base 1") == 2


def test_more_seeds_train_only_those_and_say_that_it_was_decided_later(tmp_path: Path, digits: Path) -> None:
    first = verify(decide(tmp_path, digits))
    more = verify(decide(tmp_path, digits, Options(seeds=4, extra_epochs=2)))
    assert executions(tmp_path / "study").count("base 0") == 1
    assert not any("Not as first decided" in note for note in first.notes)
    assert any("seeds was 3, now 4" in note for note in more.notes)


@pytest.mark.parametrize("after", [False, True])
def test_a_lost_worker_costs_an_attempt_and_no_outcome(tmp_path: Path, digits: Path, after: bool) -> None:
    evidence = verify(decide(tmp_path, digits), Flaky(lose="train/base/1/", times=2, after=after))
    assert isinstance(evidence.outcomes["base"][1], Measured)
    assert executions(tmp_path / "study").count("base 1") == 1


@pytest.mark.parametrize(("times", "kind"), [(2, Measured), (3, Failure)])
def test_an_answer_that_is_no_outcome_is_a_loss(tmp_path: Path, digits: Path, times: int, kind: type) -> None:
    evidence = verify(decide(tmp_path, digits), Flaky(lose="train/base/1/", times=times, nonsense="{}"))
    assert isinstance(evidence.outcomes["base"][1], kind)
    if kind is Failure:
        assert "lost 3 times; the last: A training must answer with its outcome" in evidence.outcomes["base"][1].error


@pytest.mark.parametrize(("task", "stage"), [("train/base/1/", "worker"), ("width/", "worker"), ("fit/", "worker")])
def test_what_is_lost_three_times_has_failed(tmp_path: Path, digits: Path, task: str, stage: str) -> None:
    evidence = verify(decide(tmp_path, digits), Flaky(lose=task, times=3))
    if task.startswith("train"):
        assert evidence.outcomes["base"][1].stage == stage
    else:
        assert evidence.rival == "base"
        assert any("no wider base" in note and stage in note for note in evidence.notes)
        assert sorted(evidence.scores("trial-2")) == [0, 1, 2]


def test_a_pick_as_fast_as_the_base_has_the_base_as_rival(tmp_path: Path, digits: Path) -> None:
    evidence = verify(decide(tmp_path, digits, width={"width": None, "candidate_ratio": 1.01}))
    assert evidence.rival == "base"
    assert any("1.010 of the base's latency" in note for note in evidence.notes)
    assert "fit" not in executions(tmp_path / "study")


def test_a_step_that_is_not_near_enough_is_said(tmp_path: Path, digits: Path) -> None:
    evidence = verify(decide(tmp_path, digits, width={**WIDTH, "ratio": 1.2}))
    assert any("+9.1%, which is the nearest step" in note for note in evidence.notes)
    assert not any("not quiet" in note for note in evidence.notes)
    unquiet = verify(decide(tmp_path / "other", digits, width={**WIDTH, "quality": "ungated"}))
    assert any("not quiet" in note for note in unquiet.notes)


def test_without_a_wider_arm_nothing_is_timed(tmp_path: Path, digits: Path) -> None:
    evidence = verify(decide(tmp_path, digits, Options(seeds=2, arms=("base", "members"))))
    assert [arm.name for arm in evidence.arms] == ["base", "trial-2", "trial-1"]
    assert "width" not in executions(tmp_path / "study")


@pytest.mark.parametrize("same", [False, True])
def test_seeds_that_do_not_vary_are_flagged(tmp_path: Path, digits: Path, same: bool) -> None:
    evidence = verify(decide(tmp_path, digits, same_seeds=same))
    assert any("seeds do not vary" in note for note in evidence.notes) == same


@pytest.mark.slow
def test_a_real_study_is_verified_on_the_command_line(
    tiny_study: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nas_attn.cli_verify import verify as command

    begins = _watch_first_batches(monkeypatch)

    def once() -> None:
        command(tiny_study, data=digits, seeds=2, epochs=1, imgsz=64, trial=[1], extra_epochs=1, out=tmp_path, pool="inline", device="cpu")

    once()
    table = pd.read_csv(tmp_path / "verify.csv")
    assert {"base", "extra", "trial-1"} <= set(table["arm"])
    assert set(table["state"]) == {"measured"}
    assert table.loc[table["arm"] == "extra", "epochs"].unique().tolist() == [2]
    # Zero gates and paired seeds: a member begins as its base does, with the same batch and the same loss.
    batches = {begin.batch for begin in begins if begin.attention}
    assert len(batches) == 2
    for batch in batches:
        (member,) = {begin.loss for begin in begins if begin.batch == batch and begin.attention}
        assert member in {begin.loss for begin in begins if begin.batch == batch and not begin.attention}
    summary = pd.read_csv(tmp_path / "verify-summary.csv").set_index("arm")
    assert summary["n"].tolist() == [2] * len(summary)
    assert "Primary contrast" in (tmp_path / "verify.md").read_text()
    before = {f: f.stat().st_mtime_ns for f in tmp_path.glob("*/*/*/outcome.json")}
    assert len(before) == len(table)
    once()
    assert {f: f.stat().st_mtime_ns for f in tmp_path.glob("*/*/*/outcome.json")} == before


class Begin(NamedTuple):
    """The first step of a training in this process: a digest of its images, its loss, and whether the model holds modules of ours."""

    batch: str
    loss: float
    attention: bool


def _watch_first_batches(monkeypatch: pytest.MonkeyPatch) -> list[Begin]:
    from ultralytics.nn.tasks import DetectionModel

    begins: list[Begin] = []
    plain = DetectionModel.loss

    def loss(self: DetectionModel, batch: dict[str, Any], preds: Any = None) -> Any:
        answer = plain(self, batch, preds)
        if self.training and not hasattr(self, "watched"):
            self.watched = True
            name = hashlib.sha256(batch["img"].numpy().tobytes()).hexdigest()
            ours = any(type(module).__module__.startswith("nas_attn.attention") for module in self.modules())
            begins.append(Begin(name, float(answer[0].detach().sum()), ours))
        return answer

    monkeypatch.setattr(DetectionModel, "loss", loss)
    return begins
