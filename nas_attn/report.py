"""A study's snapshot as tables, a picture and one HTML file that needs nothing else: trials.csv, front.csv, front.png, report.html.

The same snapshot gives the same bytes: rows are in the order of their numbers (of their latency on the front), and no time of writing
enters. Whatever users wrote is escaped, and passwords in storage URLs are masked.
"""

import html
import json
import math
import re
import shlex
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import plotly.graph_objects as go

from nas_attn import facts
from nas_attn.claim import SURE
from nas_attn.outcome import Failure, Rejected, Snapshot, Stopped, Trial
from nas_attn.picture import Row, in_plane, picture, plane_front
from nas_attn.posterior import Posterior, believe
from nas_attn.table import csv_text

COLUMNS = (
    "number", "state", "kind", "digest", "architecture", "map50_95", "latency_ratio", "latency_ms", "params_m", "gmacs",
    "map50", "latency_low", "latency_high", "latency_quality", "gain", "gain_sigmas", "gain_to_mean", "seeds", "gate_movement",
    "train_seconds", "activation_mib", "error",
)  # fmt: skip
RECOMMENDED = (
    "number", "digest", "architecture", "map50_95", "map50_95_low", "map50_95_high", "latency_ratio", "latency_ms", "params_m", "gmacs",
    "gain", "gain_low", "gain_high", "p_non_dominated", "p_beats_base", "recommended", "observed_map50_95", "seeds",
)  # fmt: skip
MOVED = 1e-3
"""Mean |gate| below which a module has hardly left the identity."""


def write(snapshot: Snapshot, folder: Path) -> tuple[Path, ...]:
    """Write report.html, front.png, recommended.csv, front.csv and trials.csv into `folder`, each whole or not at all; gives their paths.

    `front.csv` is what was observed, `recommended.csv` what a model of all trials expects: empty where there are too few for one.
    """
    rows, front, believed = table(snapshot), front_table(snapshot), believe(snapshot)
    files = {
        "report.html": page(snapshot, believed).encode(),
        "front.png": picture(snapshot, rows, front),
        "recommended.csv": _csv(recommended_table(believed), RECOMMENDED),
        "front.csv": _csv(front),
        "trials.csv": _csv(rows),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        partial = folder / f".{name}.partial"
        partial.write_bytes(content)
        partial.replace(folder / name)
    return tuple(folder / name for name in files)


def table(snapshot: Snapshot) -> list[Row]:
    """One row a trial, by number, with the keys `COLUMNS`; None where a trial has no such value.

    `map50_95` and `map50` are means over seeds, `train_seconds` that of one training, `gate_movement` the mean |gate| over inserted rows
    and seeds, `gain_sigmas` is in units of the base's seeds' standard deviation, `latency_low` and `latency_high` bound the ratio.
    """
    return [_row(snapshot, t) for t in sorted(snapshot.trials, key=lambda t: t.number)]


def front_table(snapshot: Snapshot) -> list[Row]:
    """The rows of the front's members, by latency."""
    return [_row(snapshot, t) for t in facts.front_trials(snapshot)]


def recommended_table(believed: Posterior | None) -> list[Row]:
    """One row a member of the recommended front, by latency, with the keys `RECOMMENDED`.

    `map50_95` and `gain` over the base are expected, with 90 % intervals; probabilities: dominated by nothing, better than the
    base. `recommended`: the member is the base, or beats it with probability `claim.SURE`.
    """
    rows = []
    for member in believed.front if believed else ():
        trial, claim = member.trial, member.claim
        is_base = not trial.architecture.placements
        values = (
            trial.number, trial.architecture.digest(), trial.architecture.to_json(), claim.mean, claim.low, claim.high,
            *(facts.metric(trial, name) for name in ("latency_ratio", "latency_ms", "params_m", "gmacs")),
            claim.gain, claim.gain_low, claim.gain_high, claim.non_dominated, None if is_base else claim.beats_base, member.sure,
            facts.metric(trial, "map50_95"), len(facts.measured(trial)),
        )  # fmt: skip
        rows.append(dict(zip(RECOMMENDED, values, strict=True)))
    return rows


def _row(snapshot: Snapshot, trial: Trial) -> Row:
    cost, gain = trial.cost, facts.gain(snapshot, trial)
    done = [outcome for _, outcome in facts.measured(trial)]
    moved = gates(trial)
    latency = cost.latency if cost else None
    values = (
        trial.number, trial.state, trial.kind or "running", trial.architecture.digest(), trial.architecture.to_json(),
        facts.metric(trial, "map50_95"), *(facts.metric(trial, name) for name in ("latency_ratio", "latency_ms", "params_m", "gmacs")),
        _mean(o.map50 for o in done), latency and latency.low, latency and latency.high, latency and latency.quality,
        gain, facts.in_sigmas(snapshot, gain), facts.gain_to_mean(snapshot, trial), len(done), _mean(moved.values()),
        _mean(o.train_seconds for o in done), cost and cost.activation_mib, _why(trial),
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def gates(trial: Trial) -> dict[str, float]:
    """The mean |gate| at the end of the proxy, by inserted row of the base, mean over seeds."""
    seen: dict[str, list[float]] = {}
    for _, outcome in facts.measured(trial):
        for row, value in outcome.gates.items():
            seen.setdefault(row, []).append(value)
    return {row: statistics.fmean(seen[row]) for row in sorted(seen, key=lambda r: (len(r), r))}


def _why(trial: Trial) -> str | None:
    outcome = trial.verdict or next((o for _, o in trial.results if isinstance(o, Failure)), None)
    match outcome:
        case Rejected():
            return f"{outcome.limit} {outcome.value:.4g} is over the limit {outcome.bound:.4g}"
        case Stopped():
            return f"stopped at rung {outcome.rung}"
        case Failure():
            return f"{outcome.stage}: {outcome.error}"
    return None


def _mean(values: Any) -> float | None:
    found = list(values)
    return statistics.fmean(found) if found else None


def _csv(rows: Sequence[Row], columns: Sequence[str] = COLUMNS) -> bytes:
    return csv_text(pd.DataFrame(rows, columns=list(columns))).encode()


def page(snapshot: Snapshot, believed: Posterior | None = None) -> str:
    """The report as one HTML document: scripts and styles inside, nothing fetched (its own policy forbids it), all text escaped.

    `believed` is the study's posterior, where there is one.
    """
    folder = Path(__file__).parent / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["fixed"] = _fixed
    return environment.get_template("report.html.j2").render(_context(snapshot, believed))


def _fixed(value: float | None, digits: int = 4, sign: bool = False) -> str:
    """A number with fixed digits, with a true minus; an en dash for None."""
    if value is None:
        return "–"
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def _context(snapshot: Snapshot, believed: Posterior | None) -> dict[str, Any]:
    rows, members = table(snapshot), front_table(snapshot)
    trials = {t.number: t for t in snapshot.trials}
    for row in [*rows, *members]:
        row["text"] = str(trials[row["number"]].architecture)
        row["gates"] = gates(trials[row["number"]])
        row["strength"] = _strength(row["gain_sigmas"])
    base = facts.base_trial(snapshot)
    return {
        "snapshot": snapshot,
        "base": base.number if base else None,
        "rows": rows,
        "front": members,
        "counts": Counter(r["kind"] for r in rows),
        "posterior": believed,
        "recommended": [{**row, "text": str(trials[row["number"]].architecture)} for row in recommended_table(believed)],
        "sure": SURE,
        "figure": _interactive(snapshot, rows, members),
        "noise": _noise(snapshot, rows, trials),
        "controls": facts.controls(snapshot),
        "gated": [r for r in rows if r["gates"]],
        "moved": MOVED,
        "latency": _latency(rows, trials),
        "derived": snapshot.settings.get("derived"),
        "lost": [r for r in rows if r["kind"] in ("failure", "rejected", "stopped")],
        "settings": _masked(json.dumps(snapshot.settings, indent=2, default=str, ensure_ascii=False)),
        "codes": sorted({job.recipe.code for t in snapshot.trials for job, _ in t.results}),
        "fit": snapshot.fit,
        "command": _masked(_command(snapshot)),
    }


def _strength(sigmas: float | None) -> str:
    if sigmas is None:
        return "unknown"
    return "noise" if abs(sigmas) <= 1 else "unclear" if abs(sigmas) <= facts.SEPARATED else "separated"


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


def _command(snapshot: Snapshot) -> str:
    """The command kept in the settings, else the one that the folder implies."""
    kept = snapshot.settings.get("command")
    if kept:
        return kept if isinstance(kept, str) else shlex.join(map(str, kept))
    data = snapshot.settings.get("data", "DATA.yaml")
    parts = ["nas-attn", "search", snapshot.folder / "space.yaml", "--data", data if isinstance(data, str) else "DATA.yaml"]
    return shlex.join(map(str, [*parts, "--trials", len(snapshot.trials), "--out", snapshot.folder]))


def _masked(text: str) -> str:
    """The text without passwords in URLs: reports are passed on."""
    return re.sub(r"(://[^/\s:@\"]*):[^/\s@\"]+@", r"\1:***@", text)


def _interactive(snapshot: Snapshot, rows: Sequence[Row], members: Sequence[Row]) -> str:
    """The front as a plotly figure with its library inside; an empty text where nothing was measured."""
    points, inside = in_plane(rows), {r["number"] for r in members}
    if not points:
        return ""
    base = facts.base_trial(snapshot)
    line = plane_front(in_plane(members))
    figure = go.Figure()
    groups = (
        ("dominated", [r for r in points if r["number"] not in inside], {"color": "#9ca3af", "size": 7}),
        ("front", [r for r in points if r["number"] in inside], {"color": "#3b82f6", "size": 11}),
        ("base", [r for r in points if base and r["number"] == base.number], {"color": "#f59e0b", "size": 13, "symbol": "diamond"}),
    )
    path = {"color": "#3b82f6", "width": 1.5, "shape": "hv"}
    x, y = [r["latency_ratio"] for r in line], [r["map50_95"] for r in line]
    figure.add_scatter(x=x, y=y, mode="lines", line=path, showlegend=False, hoverinfo="skip")
    for name, group, marker in groups:
        if group:
            _trace(figure, name, group, marker)
    noise, center = facts.sigma(snapshot), facts.base_score(snapshot)
    if noise and center is not None:
        figure.add_hrect(y0=center - noise, y1=center + noise, fillcolor="#9ca3af", opacity=0.16, line_width=0, layer="below")
    grid = {"gridcolor": "rgba(128,128,128,0.18)", "zeroline": False, "automargin": True}
    figure.update_layout(
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", font={"family": "inherit", "size": 13, "color": "#808894"},
        margin={"l": 8, "r": 8, "t": 8, "b": 8}, height=460, hovermode="closest", hoverlabel={"align": "left"},
        xaxis={**grid, "title": "latency, ratio to the base"}, yaxis={**grid, "title": "mAP50-95"},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )  # fmt: skip
    config = {"displaylogo": False, "responsive": True, "displayModeBar": False}
    return str(figure.to_html(full_html=False, include_plotlyjs=True, div_id="front-figure", config=config))


def _trace(figure: go.Figure, name: str, group: Sequence[Row], marker: Mapping[str, Any]) -> None:
    plus = [(r["latency_high"] or r["latency_ratio"]) - r["latency_ratio"] for r in group]
    minus = [r["latency_ratio"] - (r["latency_low"] or r["latency_ratio"]) for r in group]
    figure.add_scatter(
        x=[r["latency_ratio"] for r in group],
        y=[r["map50_95"] for r in group],
        mode="markers",
        name=name,
        marker={
            **marker,
            "symbol": [marker.get("symbol", "circle") + ("-open" if r["latency_quality"] == "ungated" else "") for r in group],
        },
        error_x={"type": "data", "array": plus, "arrayminus": minus, "thickness": 1, "width": 0, "color": marker["color"]},
        text=[_hover(r) for r in group],
        hovertemplate="%{text}<extra></extra>",
    )


def _hover(row: Row) -> str:
    modules = "<br>".join(html.escape(part) for part in row["text"].split(" + "))
    gain = f" ({_fixed(row['gain_sigmas'], 1, True)} σ)" if row["gain_sigmas"] is not None else ""
    return (
        f"<b>#{row['number']}</b> {modules}<br>mAP50-95 {_fixed(row['map50_95'])}{gain}<br>latency {_fixed(row['latency_ratio'], 3)} × "
        f"[{_fixed(row['latency_low'], 3)}, {_fixed(row['latency_high'], 3)}], {html.escape(str(row['latency_quality']))}"
        f"<br>{_fixed(row['params_m'], 2)} M parameters, {_fixed(row['gmacs'], 3)} GMACs"
    )
