"""What full trainings with paired seeds say: verify.csv, verify-summary.csv and verify.md, made from outcomes alone.

The primary contrast is fixed before the first training: the pick against the wider base at equal latency (against the base where there is
no wider one). It stands alone at 5 %; the other members are corrected for their number (Holm). "Keep the base" and "make the base wider"
are answers like any other.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nas_attn.arms import BASE, EXTRA, WIDER, Arm
from nas_attn.markdown import markdown
from nas_attn.outcome import Failure, Measured, Outcome
from nas_attn.paired import ALPHA, Contrast, compare, holm, pooled_sd, seeds_needed, smallest_effect
from nas_attn.table import csv_text

COLUMNS = (
    "arm", "architecture", "trial", "seed", "state", "map50_95", "map50", "val_loss", "first_train_loss", "epochs", "train_seconds",
    "latency_ratio", "params_m", "width", "error",
)  # fmt: skip
CONTRAST = ("mean", "low", "high", "joint_low", "joint_high", "p", "p_holm", "better", "wins", "n")
_EQUAL = (
    "The wider base has the latency of the pick. Where another member is slower, its difference to the wider base flatters it; where it is "
    "faster, the difference wrongs it."
)
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that was trained: outcomes by arm and seed, the arm that was picked before, how it was done, and what else must be said."""

    arms: tuple[Arm, ...]
    outcomes: Mapping[str, Mapping[int, Outcome]]
    pick: str
    protocol: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def scores(self, arm: str) -> dict[int, float]:
        """`map50_95` by seed of the trainings that ran to their end."""
        return {seed: o.map50_95 for seed, o in sorted(self.outcomes.get(arm, {}).items()) if isinstance(o, Measured)}

    def find(self, name: str) -> Arm | None:
        """The arm of that name, if it is among them."""
        return next((arm for arm in self.arms if arm.name == name), None)

    @property
    def rival(self) -> str:
        """What the pick is held against first: the wider base, or the base where no wider one was asked for or needed."""
        return WIDER if self.find(WIDER) else BASE

    def contrast(self, arm: str, against: str, confidence: float = 1 - ALPHA) -> Contrast | None:
        """The paired contrast of two arms; None where they have no seed in common."""
        return compare(self.scores(arm), self.scores(against), confidence)


def write(evidence: Evidence, out: Path) -> tuple[Path, ...]:
    """Write the two tables and the page into `out`, each whole or not at all."""
    files = {
        "verify.csv": csv_text(pd.DataFrame(table(evidence), columns=list(COLUMNS))),
        "verify-summary.csv": csv_text(pd.DataFrame(summary(evidence))),
        "verify.md": page(evidence),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        partial = out / f".{name}.partial"
        partial.write_text(text, encoding="utf-8")
        partial.replace(out / name)
    return tuple(out / name for name in files)


def table(evidence: Evidence) -> list[Row]:
    """One row an arm and seed, with the keys `COLUMNS`; None where a training has no such value."""
    return [_row(arm, seed, outcome) for arm in evidence.arms for seed, outcome in sorted(evidence.outcomes.get(arm.name, {}).items())]


def _row(arm: Arm, seed: int, outcome: Outcome) -> Row:
    done = outcome if isinstance(outcome, Measured) else None
    last, first = (done.curve[-1], done.curve[0]) if done and done.curve else ({}, {})
    values = (
        arm.name, _architecture(arm), arm.trial, seed, "measured" if done else "failed", done and done.map50_95, done and done.map50,
        last.get("val_loss"), first.get("train_loss"), len(done.curve) if done else arm.epochs, done and done.train_seconds,
        arm.latency_ratio, arm.params_m, arm.width, f"{outcome.stage}: {outcome.error}" if isinstance(outcome, Failure) else None,
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def summary(evidence: Evidence) -> list[Row]:
    """One row an arm: n, mean, sd, and its contrasts with the base and with the wider base (`vs_base_mean`, ..., `vs_wider_p_holm`, ...).

    `p_holm` and the joint interval (Bonferroni's, of which all hold at once with 95 %) are given for the members that are not the primary
    contrast; `better` is the probability that with a new seed the arm scores above the other.
    """
    corrected = {against: _family(evidence, against) for against in (BASE, WIDER)}
    rows = []
    for arm in evidence.arms:
        scores = list(evidence.scores(arm.name).values())
        row: Row = {
            "arm": arm.name,
            "n": len(scores),
            "mean": statistics.fmean(scores) if scores else None,
            "sd": statistics.stdev(scores) if len(scores) > 1 else None,
            "latency_ratio": arm.latency_ratio,
            "params_m": arm.params_m,
            "width": arm.width,
            "epochs": arm.epochs,
            "primary": arm.name == evidence.pick,
        }
        for against, family in corrected.items():
            contrast = evidence.contrast(arm.name, against) if arm.name != against else None
            row |= {f"vs_{against}_{name}": getattr(contrast, name, None) for name in CONTRAST}
            row |= {f"vs_{against}_{name}": value for name, value in family.get(arm.name, {}).items()}
        rows.append(row)
    return rows


def _family(evidence: Evidence, against: str) -> dict[str, Row]:
    """The corrected values of the members that are compared with `against`, without the primary contrast, which stands alone."""
    members = [a.name for a in evidence.arms if a.trial is not None and (a.name, against) != (evidence.pick, evidence.rival)]
    plain = {name: c for name in members if (c := evidence.contrast(name, against)) and c.p is not None}
    adjusted = holm([c.p for c in plain.values() if c.p is not None])
    confidence = 1 - ALPHA / max(len(plain), 1)
    joint = {name: evidence.contrast(name, against, confidence) for name in plain}
    return {
        name: {"p_holm": p, "joint_low": getattr(joint[name], "low", None), "joint_high": getattr(joint[name], "high", None)}
        for name, p in zip(plain, adjusted, strict=True)
    }


def conclusion(evidence: Evidence) -> str:
    """The verdict in plain sentences, by the primary contrast first."""
    pick, rival = evidence.find(evidence.pick), evidence.find(evidence.rival)
    primary = evidence.contrast(evidence.pick, evidence.rival)
    if pick is None or rival is None or primary is None or primary.low is None:
        return "No verdict: two seeds that both arms of the primary contrast finished are needed; run it again, or with more seeds."
    shown = f"{_start(pick)} against {rival}: {_points(primary)}"
    sentences = [_first(evidence, pick, primary.sure, shown)]
    sentences += _others(evidence)
    sentences.append(_sensitivity(evidence, primary))
    return " ".join(sentences)


def _first(evidence: Evidence, pick: Arm, sure: int, shown: str) -> str:
    over_base = evidence.contrast(pick.name, BASE)
    beats_base = over_base is not None and over_base.sure > 0
    wider_over_base = evidence.contrast(WIDER, BASE)
    if sure > 0 and beats_base:
        return f"Take {pick}. {shown}."
    if evidence.rival == BASE:
        return f"Keep the base: {pick} is {'worse than' if sure < 0 else 'not shown to be better than'} it. {shown}."
    beside = f"; against the base: {_points(over_base)}" if over_base and over_base.low is not None else ""
    if sure < 0 and wider_over_base is not None and wider_over_base.sure > 0:
        return f"Make the base wider: at the same latency it is better than {pick}. {shown}{beside}."
    if beats_base:
        return f"{_start(pick)} is better than the base, but not shown to be better than a wider base of the same latency. {shown}{beside}."
    if wider_over_base is not None and wider_over_base.sure > 0:
        return f"Make the base wider: that is better than the base, and {pick} is not shown to be. {shown}{beside}."
    return f"Keep the base: neither {pick} nor a wider base of the same latency is shown to be better. {shown}{beside}."


def _others(evidence: Evidence) -> list[str]:
    found = []
    families = {against: _family(evidence, against) for against in dict.fromkeys((evidence.rival, BASE))}
    for arm in evidence.arms:
        contrast = evidence.contrast(arm.name, evidence.rival)
        if arm.trial is None or arm.name == evidence.pick or contrast is None:
            continue
        corrected = [(evidence.contrast(arm.name, against), family.get(arm.name, {})) for against, family in families.items()]
        if all(c is not None and c.mean > 0 and values.get("p_holm", 1.0) < ALPHA for c, values in corrected):
            found.append(f"{_start(arm)} is better than {evidence.find(evidence.rival)} after Holm's correction: {_points(contrast)}.")
    longer = evidence.contrast(EXTRA, evidence.pick)
    if longer is not None and longer.sure > 0:
        found.append(f"The search's compute would have been better spent on training the base for longer: {_points(longer)} over the pick.")
    return found


def _sensitivity(evidence: Evidence, primary: Contrast) -> str:
    sd = pooled_sd([c for arm in evidence.arms if arm.name != evidence.rival if (c := evidence.contrast(arm.name, evidence.rival))])
    effect = smallest_effect(sd, primary.n) if sd is not None else None
    if not sd or effect is None:
        return "All paired differences are the same, so that nothing can be said of what this could have shown."
    text = f"The smallest difference that {primary.n} paired seeds could have shown with 80 % power is {100 * effect:.2f} points"
    text += f" (paired SD {100 * sd:.2f})"
    needed = seeds_needed(primary.mean, sd) if primary.sure == 0 and primary.mean != 0 else None
    return f"{text}; a difference as large as the one seen would need {needed} seeds." if needed else f"{text}."


def page(evidence: Evidence) -> str:
    """The whole of it as Markdown: verdict, protocol, table, every score, what failed."""
    rival = evidence.find(evidence.rival)
    parts = [
        "# Verification: full trainings with paired seeds",
        conclusion(evidence),
        f"Primary contrast, fixed before the first training: **{evidence.find(evidence.pick)} against {rival}**, mAP50-95 after the last "
        "epoch, paired by seed, two-sided, 5 %. The other members are corrected for their number (Holm). Points are 100 times mAP50-95.",
        "## Arms",
        _arms(evidence),
        *([_EQUAL] if evidence.find(WIDER) else []),
        "## Every score (points, by seed)",
        _scores(evidence),
        "## Protocol",
        "\n".join(f"- {name}: {markdown(value)}" for name, value in evidence.protocol.items()),
    ]
    if evidence.notes:
        parts += ["## What else must be said", "\n".join(f"- {note}" for note in evidence.notes)]
    if lost := failures(evidence):
        parts += ["## What failed", "\n".join(f"- {markdown(line)}" for line in lost)]
    return "\n\n".join(parts) + "\n"


def failures(evidence: Evidence) -> list[str]:
    """What was trained without a score, a line each."""
    return [f"{row['arm']}, seed {row['seed']}: {row['error']}" for row in table(evidence) if row["error"]]


def _arms(evidence: Evidence) -> str:
    references = [BASE, *([WIDER] if evidence.find(WIDER) else [])]
    head = ["arm", "architecture", "latency", "M params", "epochs", "n", "mean", "SD"]
    for name in references:
        head += [f"vs {name} [95 %]", "p", "Holm p", "P(better)"]
    lines = [head, ["---"] * len(head)]
    for arm, row in zip(evidence.arms, summary(evidence), strict=True):
        cells = [arm.name + (" (pick)" if row["primary"] else ""), _architecture(arm)]
        cells += [_text(row["latency_ratio"], 3), _text(row["params_m"], 2), str(row["epochs"]), str(row["n"])]
        cells += [_text(row["mean"], 2, 100), _text(row["sd"], 2, 100)]
        for name in references:
            low, high = row[f"vs_{name}_low"], row[f"vs_{name}_high"]
            spread = f" [{100 * low:+.2f}, {100 * high:+.2f}]" if low is not None else ""
            cells.append(_text(row[f"vs_{name}_mean"], 2, 100, sign=True) + spread)
            cells += [_text(row[f"vs_{name}_{key}"], digits) for key, digits in (("p", 3), ("p_holm", 3), ("better", 2))]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _scores(evidence: Evidence) -> str:
    seeds = sorted({seed for outcomes in evidence.outcomes.values() for seed in outcomes})
    lines = [["arm", *map(str, seeds)], ["---"] * (1 + len(seeds))]
    for arm in evidence.arms:
        scores = evidence.scores(arm.name)
        lines.append([arm.name, *(_text(scores.get(seed), 2, 100) for seed in seeds)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _architecture(arm: Arm) -> str:
    return str(arm.architecture) if arm.width is None else f"base at width {arm.width:g}"


def _start(arm: Arm) -> str:
    return str(arm)[:1].upper() + str(arm)[1:]


def _points(contrast: Contrast | None) -> str:
    if contrast is None or contrast.low is None or contrast.high is None:
        return "unknown"
    low, high, p = 100 * contrast.low, 100 * contrast.high, contrast.p or 0.0
    return f"{100 * contrast.mean:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f}, p = {p:.3f}, {contrast.n} seeds"


def _text(value: float | None, digits: int, scale: float = 1.0, *, sign: bool = False) -> str:
    return "–" if value is None else f"{scale * value:{'+' if sign else ''}.{digits}f}"
