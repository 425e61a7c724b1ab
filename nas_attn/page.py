"""The report as one HTML document: scripts and styles inside, nothing fetched (its own policy forbids it), all text escaped."""

import json
import math
import re
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from nas_attn import answer, caveats, charts, effects, facts, history, pick, sketch, subject
from nas_attn.claim import SURE
from nas_attn.columns import Row, front_table, gates, recommended_table, short, table
from nas_attn.effects import Atlas
from nas_attn.network import Network
from nas_attn.outcome import Snapshot, Trial
from nas_attn.posterior import Member, Posterior
from nas_attn.subject import masked

TEMPLATES = Path(__file__).parent / "templates"
FAR = 3.0
"""Times the width of an interval beyond which the smallest visible gain is told beside its drawing instead of in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """All that a report tells of: the record, what a model of it believes, the placements' effects, the base's drawing, the tables."""

    snapshot: Snapshot
    believed: Posterior | None
    atlas: Atlas | None
    drawing: Network
    tables: Mapping[str, str]


def page(study: Study, refresh_s: float | None = None) -> str:
    """The document; with `refresh_s` it loads itself again after so many seconds, while `renewed` comes often enough."""
    rows = with_words(study.snapshot, table(study.snapshot))
    members = with_words(study.snapshot, front_table(study.snapshot))
    context = _context(study, rows, members)
    return template("report.html.j2").render(
        {**context, "study_json": embedded(_payload(study, rows, members, context, refresh_s)), "plotly": plotly_script()}
    )


def renewed(text: str) -> str:
    """A document that loads itself again, as if it had been written now: by its time it tells whether somebody still watches the study."""
    return re.sub(r'"written_s": [\d.]+', f'"written_s": {round(time.time(), 3)}', text, count=1)


def plotly_script() -> str:
    """The library that draws the figures, whole: a report is opened where there is no network."""
    return str(get_plotlyjs())


def template(name: str) -> jinja2.Template:
    """A template of the package, with `fixed` as a filter and `source(file)` for what is inside as it is: the style, the script."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["fixed"] = fixed
    environment.filters["chance"] = answer.chance
    environment.filters["points"] = points
    environment.globals["source"] = lambda file: (TEMPLATES / file).read_text(encoding="utf-8")
    return environment.get_template(name)


def fixed(value: float | None, digits: int = 4, sign: bool = False) -> str:
    """A number with fixed digits, with a true minus and none before nothing; an en dash for None."""
    if value is None:
        return "–"
    return f"{value:{'+' if sign else ''}z.{digits}f}".replace("-", "−")


def points(gain: float | None) -> str:
    """A gain in mAP50-95 as points, hundredths of it; an en dash for None."""
    return "–" if gain is None else answer.points(gain)


def embedded(value: Any) -> str:
    """Plain values as JSON that cannot end the script element that holds it."""
    return (
        json.dumps(_rounded(value), ensure_ascii=False, allow_nan=False, default=str).replace("<", "\\u003c").replace("\u2028", "\\u2028")
    )


def _rounded(value: Any) -> Any:
    """The same with seven digits: more than anybody sees, and half the size. Large numbers are times of day."""
    if isinstance(value, float):
        return float(f"{value:.7g}") if abs(value) < 1e6 else value
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


def with_words(snapshot: Snapshot, rows: list[Row]) -> list[Row]:
    """The rows with what a page says of each: its architecture in words, its gates, how its gain lies beside the noise."""
    trials = {trial.number: trial for trial in snapshot.trials}
    for row in rows:
        row["text"] = str(trials[row["number"]].architecture)
        row["short"] = short(trials[row["number"]].architecture)
        row["gates"] = gates(trials[row["number"]])
        row["strength"] = _strength(row["gain_sigmas"])
    return rows


def _strength(sigmas: float | None) -> str:
    if sigmas is None:
        return "unknown"
    return "noise" if abs(sigmas) <= 1 else "unclear" if abs(sigmas) <= facts.SEPARATED else "separated"


def _context(study: Study, rows: list[Row], members: list[Row]) -> dict[str, Any]:
    snapshot, believed, atlas = study.snapshot, study.believed, study.atlas
    trials = {trial.number: trial for trial in snapshot.trials}
    base = facts.base_trial(snapshot)
    cells = atlas.cells if atlas else ()
    grid = effects.grid(snapshot, cells, study.drawing)
    answered = answer.answer(snapshot, believed, study.drawing)
    return {
        "snapshot": snapshot,
        "answer": answered,
        "interval": _interval(answered.shown, believed),
        "caveats": caveats.caveats(snapshot, believed),
        "drawing": sketch.network(study.drawing, grid.rows) if study.drawing.drawn else "",
        "atlases": {
            name: (scale, sketch.atlas(study.drawing, cells, scale, grid))
            for name, scale in (sketch.scales(cells) if cells else {}).items()
        },
        "base": base.number if base else None,
        "rows": rows,
        "front": members,
        "counts": Counter(row["kind"] for row in rows),
        "posterior": believed,
        "recommended": [{**row, "text": str(trials[row["number"]].architecture)} for row in recommended_table(believed)],
        "sure": SURE,
        "noise": _noise(snapshot, rows, trials),
        "controls": facts.controls(snapshot),
        "gated": [row for row in rows if row["gates"]],
        "moved": caveats.MOVED,
        "latency": _latency(rows, trials),
        "savings": _savings(history.savings(snapshot)),
        "steps": history.progress(snapshot),
        "repeated": [row for row in rows if row["number"] != (base.number if base else None) and row["seeds"] > _seeds(snapshot)],
        "derived": snapshot.settings.get("derived"),
        "lost": [row for row in rows if row["kind"] in ("failure", "rejected", "stopped")],
        "settings": masked(json.dumps(snapshot.settings, indent=2, default=str, ensure_ascii=False)),
        "recipes": sorted({_recipe(job.recipe) for trial in snapshot.trials for job, _ in trial.results}),
        "seeds": sorted({job.seed for trial in snapshot.trials for job, _ in trial.results}),
        "codes": sorted({job.recipe.code for trial in snapshot.trials for job, _ in trial.results}),
        "devices": sorted({outcome.device for trial in snapshot.trials for _, outcome in facts.measured(trial)}),
        "fit": snapshot.fit,
        "command": subject.command(snapshot),
        "subject": subject.lines(snapshot),
        "tables": study.tables,
        "limits": _limits(rows),
    }


def _payload(study: Study, rows: list[Row], members: list[Row], context: Mapping[str, Any], refresh_s: float | None) -> dict[str, Any]:
    """What the page's script works with."""
    snapshot, believed = study.snapshot, study.believed
    trials = {trial.number: trial for trial in snapshot.trials}
    steps = pick.ladder(snapshot, believed, "best") if any(row["kind"] == "measured" for row in rows) else ()
    answered: answer.Answer = context["answer"]
    shown = answered.shown.trial if answered.shown else answered.trial
    detectable = believed.detectable if believed else None
    figures = {
        "front": charts.front(snapshot, rows, members, answer.of_plane(snapshot, believed)),
        "progress": charts.progress(context["steps"]),
        "noise": charts.noise(snapshot, rows, detectable),
        "latency": charts.latency(rows),
    }
    return {
        "base": context["base"],
        "shown": shown.number if shown else None,
        "trials": {row["number"]: _trial(study, trials[row["number"]], row) for row in rows},
        "steps": answer.steps(steps, snapshot, believed, study.drawing),
        "charts": {name: chart for name, chart in figures.items() if chart is not None},
        "labels": {node.row: node.label.replace("_", " ") for node in study.drawing.nodes},
        "options": [asdict(option) for option in study.atlas.options] if study.atlas else [],
        "interactions": [_interaction(pair) for pair in study.atlas.interactions] if study.atlas else [],
        "tables": dict(study.tables),
        "refresh_s": refresh_s,
        "written_s": None if refresh_s is None else round(time.time(), 3),
    }


def _trial(study: Study, trial: Trial, row: Row) -> dict[str, Any]:
    member = study.believed.of(trial) if study.believed else None
    claim = member.claim if member else None
    expected = {
        "mean": claim.mean, "low": claim.low, "high": claim.high, "gain": claim.gain, "gain_low": claim.gain_low,
        "gain_high": claim.gain_high, "p_beats": claim.beats_base, "p_front": claim.non_dominated,
    } if claim else {}  # fmt: skip
    on_front = member is not None and member.expected
    return {
        "number": row["number"],
        "what": answer.placed(trial.architecture, study.drawing),
        "placements": [{"row": p.layer, "module": p.module} for p in trial.architecture.placements],
        "map50_95": row["map50_95"],
        "y": claim.mean if claim and (on_front or not trial.architecture.placements) else row["map50_95"],
        "seeds": row["seeds"],
        "latency": row["latency_ratio"],
        "latency_low": row["latency_low"],
        "latency_high": row["latency_high"],
        "quality": row["latency_quality"],
        "ms": row["latency_ms"],
        "params": row["params_m"],
        "gmacs": row["gmacs"],
        "error": row["error"],
        **expected,
    }


def _interaction(pair: Any) -> dict[str, Any]:
    sides = [{"row": row, "module": module} for row, module in (pair.first, pair.second)]
    return {"sides": sides, "trials": pair.trials, "gain": pair.gain, "gain_low": pair.gain_low, "gain_high": pair.gain_high}


def _interval(member: Member | None, believed: Posterior | None) -> dict[str, Any] | None:
    """Where the interval of a gain is drawn, in units of a drawing of 460: an axis about nought that holds the interval, and the smallest
    visible gain if it is not so far that it would press the interval into a dot; `beyond` says that it is.
    """
    if member is None:
        return None
    claim, least = member.claim, believed.detectable if believed else None
    ends = [0.0, claim.gain_low, claim.gain_high]
    beyond = least is not None and least > FAR * max(map(abs, ends))
    if least is not None and not beyond:
        ends.append(least)
    low, span = min(ends), (max(ends) - min(ends)) or 1.0
    at = {"zero": 0.0, "low": claim.gain_low, "mean": claim.gain, "high": claim.gain_high}
    if least is not None and not beyond:
        at["least"] = least
    return {name: round(40 + 300 * (value - low) / span, 1) for name, value in at.items()} | {"beyond": beyond}


def _noise(snapshot: Snapshot, rows: Sequence[Row], trials: Mapping[int, Trial]) -> dict[str, Any]:
    """Sigma, where the gains lie beside it, and how far the best of so many would lie if no module changed anything."""
    base = facts.base_trial(snapshot)
    others = [r for r in rows if r["gain_sigmas"] is not None and trials[r["number"]].architecture.placements]
    count, seeds = len(others), min((r["seeds"] for r in others), default=1)
    return {
        "sigma": facts.sigma(snapshot),
        "base": facts.base_score(snapshot),
        "scores": facts.scores(base) if base else {},
        "candidates": count,
        "strengths": Counter(r["strength"] for r in others),
        "best": max(others, key=lambda r: (r["gain_sigmas"], -r["number"]), default=None),
        "luck": statistics.NormalDist().inv_cdf((count - 0.375) / (count + 0.25)) / math.sqrt(max(seeds, 1)) if count else None,
    }


def _seeds(snapshot: Snapshot) -> int:
    """Those that every candidate is trained with."""
    spec: Mapping[str, Any] = snapshot.settings.get("spec", {})
    return int(spec.get("seeds", 1))


def _latency(rows: Sequence[Row], trials: Mapping[int, Trial]) -> dict[str, Any]:
    timed = [r for r in rows if r["latency_ratio"] is not None and r["latency_low"] is not None]
    widths = [r["latency_high"] - r["latency_low"] for r in timed]
    first = next((c.latency for r in timed if (c := trials[r["number"]].cost)), None)
    return {
        "timed": len(timed),
        "quality": Counter(r["latency_quality"] for r in timed),
        "width": statistics.median(widths) if widths else None,
        "widest": max(widths, default=None),
        "first": first,
        "ungated": [r["number"] for r in timed if r["latency_quality"] == "ungated"],
    }


def _limits(rows: Sequence[Row]) -> dict[str, str]:
    """The ends of the slider, rounded outward to its step."""
    ratios = [row["latency_ratio"] for row in rows if row["kind"] == "measured" and row["latency_ratio"] is not None] or [1.0]
    return {"low": f"{math.floor(1e3 * min(ratios)) / 1e3:.3f}", "high": f"{math.ceil(1e3 * max(ratios)) / 1e3:.3f}"}


def _savings(saved: history.Savings) -> str:
    """What was not trained, in sentences."""
    told = []
    if saved.rejected:
        told.append(f"{_trials(saved.rejected)} rejected by a limit before any training{_hours(saved.rejected_seconds)}")
    if saved.stopped:
        told.append(f"{_trials(saved.stopped)} stopped early, which spared {saved.stopped_epochs} epochs{_hours(saved.stopped_seconds)}")
    if saved.failed:
        told.append(f"{saved.failed} trial{'s' * (saved.failed != 1)} failed")
    spared = f"Not trained: {'; '.join(told)}." if told else "No limit, no early stop and no failure kept a trial from its end."
    return f"{spared} No architecture was tried twice: where a sampler proposed one again, another was drawn."


def _trials(count: int) -> str:
    return f"{count} trial{'s were' if count != 1 else ' was'}"


def _hours(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return (
        f" (about {seconds / 3600:.1f} h)"
        if seconds >= 3600
        else f" (about {seconds / 60:.0f} min)"
        if seconds >= 90
        else f" (about {seconds:.0f} s)"
    )


def _recipe(recipe: Any) -> str:
    told = f"{recipe.epochs} epochs at {recipe.imgsz} px, batch {recipe.batch}, lr0 {recipe.lr0:g} (new modules x{recipe.new_lr_scale:g})"
    extra = "".join(f", {name} {value}" for name, value in recipe.args)
    return f"{told}{extra}, scored on {recipe.score_on}"
