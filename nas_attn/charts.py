"""The interactive figures as plain plotly values (`data`, `layout`): the page gives them its colours, so that they follow light and dark.

A colour is written as `var:--name`, a variable of the page's style; what a colour says, a shape says too. Nothing in it is HTML but what
`html.escape` has passed.
"""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from nas_attn import facts
from nas_attn.columns import Row, in_plane, plane_front, short
from nas_attn.history import Step
from nas_attn.outcome import Snapshot
from nas_attn.posterior import Member, Posterior

Chart = Mapping[str, Any]
GREY, BLUE, INK, WARN = "var:--dot", "var:--blue", "var:--ink", "var:--warn"


def front(snapshot: Snapshot, rows: Sequence[Row], members: Sequence[Row], believed: Posterior | None) -> Chart | None:
    """Accuracy over latency: every trial as observed, the front that is expected (observed, without a model) with its intervals, the base.

    The bars of the expected front are those of the *gain*: what is uncertain about the base itself is shared by all, would make every bar
    reach over the base's line, and would say nothing of which architecture is better. None where nothing was measured. A mark's
    `customdata` is its trial's number.
    """
    points, base = in_plane(rows), facts.base_trial(snapshot)
    if not points:
        return None
    number = base.number if base else None
    data = [_observed(points, number)]
    data += _expected(believed, number) if believed is not None else _members(plane_front(in_plane(members)), number)
    member = believed.of(base) if believed and base else None
    data += [_base(row, member) for row in points if row["number"] == number]
    low, high = _reach(data)
    over = [r for r in rows if r["kind"] == "rejected" and r["latency_ratio"] is not None]
    shapes = [*_band(snapshot), *([_level(member.claim.mean)] if member else [])]
    if over:
        data.append(_rejected(over))
    layout = _layout("latency, ratio to the base", "mAP50-95", shapes=shapes)
    return {"data": data, "layout": {**layout, "yaxis": {**layout["yaxis"], "range": [low, high], "tickformat": ".3f"}}}


def _observed(points: Sequence[Row], base: int | None) -> Chart:
    shown = [r for r in points if r["number"] != base]
    return {
        **_trace("observed, one trial each", shown, "latency_ratio", "map50_95", GREY, 7),
        "marker": {
            "color": GREY,
            "size": 7,
            "symbol": ["circle-x-open" if r["latency_quality"] == "ungated" else "circle" for r in shown],
        },
    }


def _reach(data: Sequence[Chart]) -> tuple[float, float]:
    """The range of the marks and their bars, with some room: the band of the noise, often much wider, must not press them together."""
    ends = []
    for trace in data:
        bars = trace.get("error_y", {})
        for index, y in enumerate(trace["y"]):
            ends += [y - bars["arrayminus"][index], y + bars["array"][index]] if bars else [y]
    room = 0.08 * (max(ends) - min(ends)) or 0.01
    return min(ends) - room, max(ends) + room


def _expected(believed: Posterior, base: int | None) -> list[Chart]:
    """The recommended front by posterior means; filled what beats the base almost surely, open what may."""
    members = [m for m in believed.front if facts.metric(m.trial, "latency_ratio") is not None]
    shown = [m for m in members if m.trial.number != base]
    x, y = [facts.latency(m.trial) for m in members], [m.claim.mean for m in members]
    line = {"x": x, "y": y, "mode": "lines", "line": {"color": BLUE, "width": 1.5, "shape": "hv"}, "hoverinfo": "skip", "showlegend": False}
    if not shown:
        return [line]
    marks = {
        "x": [facts.latency(m.trial) for m in shown],
        "y": [m.claim.mean for m in shown],
        "error_y": _bars(BLUE, [(m.claim.gain_low, m.claim.gain, m.claim.gain_high) for m in shown]),
        "error_x": _bars(BLUE, [_latency(m.trial) for m in shown]),
        "mode": "markers",
        "name": "expected front, 90 % of gain",
        "customdata": [m.trial.number for m in shown],
        "text": [f"#{m.trial.number} {html.escape(short(m.trial.architecture))}" for m in shown],
        "hovertemplate": "%{text}<br>expected %{y:.4f} at %{x:.3f}×<extra></extra>",
        "marker": {
            "color": BLUE,
            "size": 12,
            "symbol": [_square(m) for m in shown],
            "line": {"width": 2, "color": BLUE},
        },
    }
    return [line, marks]


def _square(member: Member) -> str:
    """Filled where it beats the base almost surely, crossed where its latency was timed without a quiet moment."""
    crossed = member.trial.cost is not None and member.trial.cost.latency.quality == "ungated"
    return "square" + "-x" * crossed + "-open" * (not member.sure)


def _members(members: Sequence[Row], base: int | None) -> list[Chart]:
    x, y = [r["latency_ratio"] for r in members], [r["map50_95"] for r in members]
    line = {"x": x, "y": y, "mode": "lines", "line": {"color": BLUE, "width": 1.5, "shape": "hv"}, "hoverinfo": "skip", "showlegend": False}
    shown = [r for r in members if r["number"] != base]
    if not shown:
        return [line]
    bars = [(r["latency_low"] or r["latency_ratio"], r["latency_ratio"], r["latency_high"] or r["latency_ratio"]) for r in shown]
    marks = _trace("observed front", shown, "latency_ratio", "map50_95", BLUE, 11)
    return [
        line,
        {**marks, "error_x": _bars(BLUE, bars), "marker": {"color": BLUE, "size": 11, "symbol": "square-open", "line": {"width": 2}}},
    ]


def _base(row: Row, member: Member | None) -> Chart:
    y = member.claim.mean if member else row["map50_95"]
    return {
        **_trace("the base", [{**row, "map50_95": y}], "latency_ratio", "map50_95", INK, 13),
        "marker": {"color": INK, "size": 13, "symbol": "diamond"},
    }


def _level(y: float) -> Chart:
    """The base's line: a bar that does not reach it is of an architecture that is better, or worse."""
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y, "line": {"color": INK, "width": 1, "dash": "dash"}}


def _rejected(rows: Sequence[Row]) -> Chart:
    return {
        "x": [r["latency_ratio"] for r in rows],
        "y": [0.015] * len(rows),
        "yaxis": "y2",
        "mode": "markers",
        "name": "rejected by a limit",
        "customdata": [r["number"] for r in rows],
        "text": [f"#{r['number']} {html.escape(str(r['error']))}" for r in rows],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"color": WARN, "size": 9, "symbol": "x-thin", "line": {"width": 1.5, "color": WARN}},
    }


def progress(steps: Sequence[Step]) -> Chart | None:
    """The hypervolume of the observed front over trials and over seconds of training; None below two steps."""
    if len(steps) < 2:
        return None
    common = {"mode": "lines+markers", "line": {"color": BLUE, "width": 2, "shape": "hv"}, "marker": {"size": 4, "color": BLUE}}
    told = {"y": [s.hypervolume for s in steps], "customdata": [s.trial for s in steps], "showlegend": False, **common}
    over_trials = {**told, "x": [s.trials for s in steps], "hovertemplate": "after %{x} trials: %{y:.4f}<extra></extra>"}
    over_seconds = {
        **told,
        "x": [s.seconds for s in steps],
        "xaxis": "x2",
        "yaxis": "y",
        "hovertemplate": "after %{x:.0f} s of training: %{y:.4f}<extra></extra>",
    }
    layout = {
        **_layout("trials", "hypervolume"),
        "grid": {"rows": 1, "columns": 2, "pattern": "independent"},
        "xaxis": {**_axis("trials, measured or stopped"), "domain": [0, 0.48]},
        "xaxis2": {**_axis("seconds of training, all workers"), "domain": [0.52, 1]},
        "height": 300,
    }
    return {"data": [over_trials, over_seconds], "layout": layout}


def noise(snapshot: Snapshot, rows: Sequence[Row], detectable: float | None) -> Chart | None:
    """All gains over the base in order, beside what seeds alone do; None without a gain and its sigma."""
    sigma = facts.sigma(snapshot)
    shown = sorted(
        (r for r in rows if r["gain"] is not None and r["gain_sigmas"] is not None and r["number"] != 0), key=lambda r: r["gain"]
    )
    if not shown or not sigma:
        return None
    ranked = [{**row, "rank": rank, "points": 100 * row["gain"]} for rank, row in enumerate(shown, 1)]
    gains = {**_trace("observed gain", ranked, "rank", "points", BLUE, 7), "hovertemplate": "%{text}<br>%{y:+.2f} points<extra></extra>"}
    shapes = [{**_rectangle(-100 * sigma, 100 * sigma), "opacity": 0.5}]
    notes = [_note(100 * sigma, "base ± σ")]
    if detectable is not None:
        least = 100 * detectable
        shapes.append(
            {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": least, "y1": least, "line": {"color": WARN, "dash": "dash"}}
        )
        notes.append(
            {**_note(least, "smallest visible gain"), "x": 1, "xanchor": "right"}
        )  # on the other side, or two near lines' words meet
    layout = {**_layout("trials, by observed gain", "gain over the base, points", shapes=shapes), "annotations": notes, "height": 300}
    return {"data": [{**gains, "showlegend": False}], "layout": layout}


def latency(rows: Sequence[Row]) -> Chart | None:
    """How wide the interval of each latency is; None where none was timed."""
    timed = [{**r, "width": r["latency_high"] - r["latency_low"]} for r in rows if r["latency_low"] is not None]
    if not timed:
        return None
    groups = (("gated", "in a quiet moment", BLUE, "circle"), ("ungated", "without a quiet moment", WARN, "circle-x-open"))
    data = []
    for quality, name, color, symbol in groups:
        shown = [r for r in timed if r["latency_quality"] == quality]
        if shown:
            trace = _trace(name, shown, "latency_ratio", "width", color, 8)
            data.append({**trace, "marker": {"color": color, "size": 8, "symbol": symbol, "line": {"width": 1.5}}})
    return {"data": data, "layout": {**_layout("latency, ratio to the base", "width of the 95 % interval"), "height": 300}}


def _trace(name: str, rows: Sequence[Row], x: str, y: str, color: str, size: int) -> dict[str, Any]:
    return {
        "x": [r[x] for r in rows],
        "y": [r[y] for r in rows],
        "mode": "markers",
        "name": name,
        "customdata": [r["number"] for r in rows],
        "text": [f"#{r['number']} {html.escape(r['short'])}" for r in rows],
        "hovertemplate": "%{text}<br>%{y:.4f} at %{x:.4~g}<extra></extra>",
        "marker": {"color": color, "size": size},
    }


def _latency(trial: Any) -> tuple[float, float, float]:
    timed = trial.cost.latency
    return timed.low, timed.ratio, timed.high


def _bars(color: str, ends: Sequence[tuple[float, float, float]]) -> Chart:
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - middle for _, middle, high in ends],
        "arrayminus": [middle - low for low, middle, _ in ends],
        "color": color,
        "thickness": 1.2,
        "width": 3,
    }


def _band(snapshot: Snapshot) -> list[Chart]:
    sigma, center = facts.sigma(snapshot), facts.base_score(snapshot)
    return [_rectangle(center - sigma, center + sigma)] if sigma and center is not None else []


def _rectangle(low: float, high: float) -> dict[str, Any]:
    return {
        "type": "rect", "xref": "paper", "x0": 0, "x1": 1, "y0": low, "y1": high,
        "fillcolor": "var:--band", "line": {"width": 0}, "layer": "below",
    }  # fmt: skip


def _note(y: float, text: str) -> Chart:
    return {"xref": "paper", "x": 0, "y": y, "text": text, "showarrow": False, "xanchor": "left", "yanchor": "bottom", "font": {"size": 11}}


def _axis(title: str) -> dict[str, Any]:
    return {"title": {"text": title}, "gridcolor": "var:--line", "zeroline": False, "automargin": True, "linecolor": "var:--line"}


def _layout(x: str, y: str, shapes: Sequence[Chart] = ()) -> dict[str, Any]:
    return {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "inherit", "size": 13, "color": "var:--soft"},
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "height": 440,
        "hovermode": "closest",
        "hoverlabel": {
            "align": "left", "bgcolor": "var:--panel", "bordercolor": "var:--line", "font": {"color": "var:--ink", "family": "inherit"},
        },
        "xaxis": _axis(x),
        "yaxis": _axis(y),
        "yaxis2": {"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "shapes": list(shapes),
    }  # fmt: skip
