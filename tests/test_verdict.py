"""What the tables and the verdict say of given scores."""

import random
from pathlib import Path

import pandas as pd
import pytest
from snapshots import measured, placement

from nas_attn.architecture import Architecture
from nas_attn.arms import Arm
from nas_attn.outcome import Failure
from nas_attn.paired import compare, holm
from nas_attn.verdict import Evidence, conclusion, page, summary, table, write

BASE = Architecture("yolo11n.yaml")


def evidence(seeds: int = 5, noise: float = 0.001, **gains: float) -> Evidence:
    """Arms with these gains over the base, each seed's luck shared; `trial_2` is the pick."""
    rng = random.Random(0)
    luck = [rng.gauss(0.3, 0.02) for _ in range(seeds)]
    arms, outcomes = [], {}
    for name, gain in {"base": 0.0, **gains}.items():
        number = int(name.split("_")[1]) if name.startswith("trial") else None
        architecture = Architecture(BASE.base, (placement(4, number),)) if number is not None else BASE
        arm = Arm(name=name.replace("_", "-"), architecture=architecture, epochs=4, trial=number, latency_ratio=1.1, params_m=2.6)
        arms.append(arm)
        outcomes[arm.name] = {seed: measured(luck[seed] + gain + rng.gauss(0, noise)) for seed in range(seeds)}
    return Evidence(arms=tuple(arms), outcomes=outcomes, pick="trial-2", protocol={"data": "digits"})


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ({"trial_2": 0.03, "wider": 0.01}, "Take trial 2"),
        ({"trial_2": 0.03}, "Take trial 2"),
        ({"trial_2": 0.01, "wider": 0.03}, "Make the base wider: at the same latency it is better"),
        ({"trial_2": 0.0, "wider": 0.03}, "Make the base wider"),
        ({"trial_2": 0.0, "wider": 0.0}, "Keep the base: neither"),
        ({"trial_2": 0.0, "wider": -0.03}, "Keep the base: neither"),
        ({"trial_2": 0.03, "wider": 0.03}, "is better than the base, but not shown to be better than a wider base"),
        ({"trial_2": 0.0}, "Keep the base: trial 2 is not shown"),
        ({"trial_2": -0.03}, "Keep the base: trial 2 is worse"),
    ],
)
def test_the_verdict_follows_the_primary_contrast(gains: dict[str, float], verdict: str) -> None:
    text = conclusion(evidence(**gains))
    assert verdict in text
    assert "80 % power" in text


def test_one_seed_gives_no_verdict() -> None:
    assert conclusion(evidence(seeds=1, trial_2=0.1)).startswith("No verdict")


def test_scores_that_never_differ_promise_nothing() -> None:
    assert "nothing can be said" in conclusion(evidence(noise=0.0, trial_2=0.0, wider=0.0))


def test_the_base_trained_for_longer_is_told_where_it_wins() -> None:
    assert "better spent on training the base for longer" in conclusion(evidence(trial_2=0.01, wider=0.0, extra=0.05))
    assert "better spent" not in conclusion(evidence(trial_2=0.01, wider=0.0, extra=0.01))


def test_other_members_are_corrected_for_their_number_and_the_primary_stands_alone() -> None:
    given = evidence(noise=0.004, trial_2=0.01, trial_1=0.006, trial_3=0.002, wider=0.0)
    rows = {row["arm"]: row for row in summary(given)}
    assert rows["trial-2"]["vs_wider_p_holm"] is None
    assert rows["trial-2"]["primary"]
    plain = [rows[name]["vs_wider_p"] for name in ("trial-1", "trial-3")]
    assert [rows[name]["vs_wider_p_holm"] for name in ("trial-1", "trial-3")] == pytest.approx(holm(plain))
    against_base = [rows[name]["vs_base_p"] for name in ("trial-2", "trial-1", "trial-3")]
    assert [rows[name]["vs_base_p_holm"] for name in ("trial-2", "trial-1", "trial-3")] == pytest.approx(holm(against_base))
    joint = compare(given.scores("trial-1"), given.scores("wider"), 1 - 0.05 / 2)
    assert joint is not None
    assert rows["trial-1"]["vs_wider_joint_low"] == joint.low
    assert rows["base"]["vs_base_mean"] is None
    assert rows["wider"]["vs_base_p_holm"] is None


def test_other_members_are_named_only_if_better_than_both_after_correction() -> None:
    assert "Trial 1 is better" in conclusion(evidence(trial_2=0.03, trial_1=0.03, wider=0.01))
    assert "Trial 1 is better" not in conclusion(evidence(trial_2=0.03, trial_1=0.03, wider=0.03))
    assert "Trial 1 is better" not in conclusion(evidence(trial_2=0.03, trial_1=-0.03, wider=-0.06))


def test_only_seeds_that_both_arms_finished_are_compared() -> None:
    given = evidence(trial_2=0.03, wider=0.01)
    lost = {**given.outcomes["wider"], 0: Failure(stage="train", error="a | b"), 1: Failure(stage="train", error="x")}
    given = Evidence(
        arms=given.arms, outcomes={**given.outcomes, "wider": lost}, pick="trial-2", protocol=given.protocol, notes=("a note",)
    )
    rows = {row["arm"]: row for row in summary(given)}
    assert (rows["wider"]["n"], rows["trial-2"]["vs_wider_n"], rows["trial-2"]["vs_base_n"]) == (3, 3, 5)
    states = [row["state"] for row in table(given) if row["arm"] == "wider"]
    assert states == ["failed", "failed", "measured", "measured", "measured"]
    text = page(given)
    assert "## What failed" in text
    assert "- a note" in text


def test_the_page_can_be_recomputed_from_the_table(tmp_path: Path) -> None:
    given = evidence(trial_2=0.03, trial_1=0.01, wider=0.01, extra=0.0)
    csv, shorter, text = write(given, tmp_path)
    scores = pd.read_csv(csv).pivot_table(index="seed", columns="arm", values="map50_95")
    mean = (scores["trial-2"] - scores["wider"]).mean()
    assert pd.read_csv(shorter).set_index("arm").loc["trial-2", "vs_wider_mean"] == pytest.approx(mean)
    lines = text.read_text().splitlines()
    widths = {line.count("|") for line in lines if line.startswith("| ") and "trial-" in line}
    assert len(widths) == 2  # the two tables, each with rows of equal length
    assert f"{100 * mean:+.2f} [" in text.read_text()
    assert not list(tmp_path.glob(".*"))
