"""The report's figures as PNG and SVG, for papers and slides: the front, the atlas over the network, progress, noise, latency.

Light background on purpose: the files are pasted into pages whose theme is not known. The same study gives the same bytes.
"""

import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from nas_attn import answer, charts, facts, history, sketch
from nas_attn.columns import Row, front_table, in_plane, table
from nas_attn.effects import Effect
from nas_attn.network import Network
from nas_attn.page import Study
from nas_attn.picture import GREY, INK, STYLE, draw

BLUE, ORANGE, FAINT = "#2563eb", "#d97706", "#9ca3af"
DPI = 160


def files(study: Study) -> dict[str, bytes]:
    """`<figure>.png` and `<figure>.svg` for each figure that has something to show."""
    made = {name: figure for name, make in FIGURES.items() if (figure := _made(make, study)) is not None}
    return {f"{name}.{kind}": _saved(figure, kind) for name, figure in made.items() for kind in ("png", "svg")}


def _made(make: Callable[[Study], Figure | None], study: Study) -> Figure | None:
    with mpl.rc_context(STYLE):
        return make(study)


def _saved(figure: Figure, kind: str) -> bytes:
    # Text stays text in an SVG, to be searched and edited; ids and dates would differ from run to run.
    settings: Any = STYLE | {"svg.fonttype": "none", "svg.hashsalt": "nas_attn"}
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a study's name may be in any script
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, metadata={"Software": None} if kind == "png" else {"Date": None, "Creator": None})
        return buffer.getvalue()


def _front(study: Study) -> Figure | None:
    snapshot, believed = study.snapshot, study.believed
    points, told = in_plane(table(snapshot)), answer.answer(snapshot, believed, study.drawing)
    members = in_plane(front_table(snapshot))
    return draw(snapshot, points, members, believed, (told.headline, told.sentence)) if points else None


def _progress(study: Study) -> Figure | None:
    """The page's figure, in its units: its traces and the titles of its axes."""
    chart = charts.progress(history.progress(study.snapshot))
    if chart is None:
        return None
    figure = Figure(figsize=(9.6, 3.4), dpi=DPI, layout="constrained")
    axes, layout = figure.subplots(1, 2, sharey=True), chart["layout"]
    for ax, trace, name in zip(axes, chart["data"], ("xaxis", "xaxis2"), strict=True):
        _frame(ax, layout[name]["title"]["text"], layout["yaxis"]["title"]["text"] if ax is axes[0] else "")
        ax.step(trace["x"], trace["y"], where="post", color=BLUE, linewidth=1.8)
    return figure


def _noise(study: Study) -> Figure | None:
    snapshot, sigma = study.snapshot, facts.sigma(study.snapshot)
    found = (facts.gain(snapshot, trial) for trial in snapshot.trials if trial.architecture.placements)
    gains = sorted(gain for gain in found if gain is not None)
    if not gains or not sigma:
        return None
    figure = Figure(figsize=(9.6, 3.4), dpi=DPI, layout="constrained")
    ax = figure.subplots()
    _frame(ax, "trials, by observed gain", "gain over the base, mAP50-95")
    ax.axhspan(-sigma, sigma, color="#eef1f5", linewidth=0)
    ax.axhline(0, color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)))
    ax.plot(range(1, len(gains) + 1), gains, "o", color=BLUE, markersize=5)
    ax.text(1.01, 0, "base ± 1σ", transform=ax.get_yaxis_transform(), va="center", fontsize=8.5, color=GREY)
    least = study.believed.detectable if study.believed else None
    if least is not None:
        ax.axhline(least, color=ORANGE, linewidth=1.2, linestyle=(0, (5, 3)))
        ax.text(1.01, least, "smallest\nvisible gain", transform=ax.get_yaxis_transform(), va="center", fontsize=8.5, color=ORANGE)
    return figure


def _latency(study: Study) -> Figure | None:
    timed = [row for row in table(study.snapshot) if row["latency_low"] is not None]
    if not timed:
        return None
    figure = Figure(figsize=(9.6, 3.4), dpi=DPI, layout="constrained")
    ax = figure.subplots()
    _frame(ax, "latency, ratio to the base", "width of the 95 % interval")
    for quality, label, color, face in (("gated", "in a quiet moment", BLUE, BLUE), ("ungated", "without a quiet moment", ORANGE, "white")):
        rows: Sequence[Row] = [row for row in timed if row["latency_quality"] == quality]
        widths = [row["latency_high"] - row["latency_low"] for row in rows]
        if rows:
            ax.scatter([row["latency_ratio"] for row in rows], widths, s=36, facecolor=face, edgecolor=color, label=label)
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, fontsize=8.5)
    return figure


def _atlas(study: Study) -> Figure | None:
    cells = study.atlas.cells if study.atlas else ()
    if not cells:
        return None
    drawing, modules = study.drawing, sorted({cell.module for cell in cells})
    lanes = len(drawing.lanes) if drawing.drawn else 0
    width, head, tall = 2.6 + len(drawing.nodes), lanes * 1.1 + (0.9 if lanes else 0), 0.85
    height = head + 1.3 + tall * len(modules)
    figure = Figure(figsize=(max(9.6, 0.46 * width), max(2.4, 0.46 * height * 2)), dpi=DPI)
    for number, scale in enumerate(sketch.scales(cells).values()):
        ax = figure.add_axes((0.005, 0.5 - 0.5 * number, 0.99, 0.49))
        ax.set(xlim=(-2.6, len(drawing.nodes) + 0.1), ylim=(height, -0.2), xticks=[], yticks=[])
        ax.axis("off")
        if lanes:
            _network(ax, drawing, {cell.row for cell in cells})
        _cells(ax, drawing, cells, modules, head, scale)
    return figure


def _network(ax: Axes, drawing: Network, sites: set[int]) -> None:
    spots = drawing.spots()

    def y(lane: float) -> float:
        return 0.75 + 1.1 * lane

    for number, stride in enumerate(drawing.lanes):
        ax.plot([-0.2, len(drawing.nodes)], [y(number)] * 2, color="#e5e7eb", linewidth=0.7, zorder=0)
        ax.text(-0.3, y(number), f"stride {stride}", ha="right", va="center", fontsize=7.5, color=GREY)
    for node in drawing.nodes:
        column, first, last = spots[node.row]
        for source in node.sources:
            from_column, from_lane, _ = spots[source]
            to = min(max(from_lane, first), last)
            bend = -min(0.25, 1.2 / (column - from_column)) if from_lane == to and column - from_column > 1 else 0.0
            style = f"arc3,rad={bend}"
            arrow = {"arrowstyle": "-", "color": FAINT, "linewidth": 0.7, "connectionstyle": style, "shrinkA": 0, "shrinkB": 0}
            ax.annotate("", (column + 0.08, y(to)), (from_column + 0.92, y(from_lane)), arrowprops=arrow, zorder=1)
    for node in drawing.nodes:
        column, first, last = spots[node.row]
        edge, thick = (BLUE, 1.3) if node.row in sites else (FAINT, 0.8)
        box = FancyBboxPatch(
            (column + 0.08, y(first) - 0.27), 0.84, y(last) - y(first) + 0.54,
            boxstyle="round,pad=0,rounding_size=0.1", facecolor="white", edgecolor=edge, linewidth=thick, zorder=2,
        )  # fmt: skip
        ax.add_patch(box)
        ax.text(column + 0.5, y((first + last) / 2), sketch.kind(node), ha="center", va="center", fontsize=6, zorder=3)
        ax.text(column + 0.5, y(first) - 0.33, str(node.row), ha="center", va="bottom", fontsize=5.5, color=GREY, zorder=3)


def _cells(ax: Axes, drawing: Network, cells: Sequence[Effect], modules: Sequence[str], top: float, scale: sketch.Scale) -> None:
    columns = {row: column for row, (column, _, _) in drawing.spots().items()}
    ax.text(-2.5, top + 0.35, f"{scale.name}\n(mean, ± half of 90 %)", fontsize=7.5, va="center", color=INK, fontweight="bold")
    for row in sorted({cell.row for cell in cells}):
        label = drawing.label(row).replace("neck_", "neck\n").replace("_", " ")
        ax.text(columns[row] + 0.5, top + 0.65, label, ha="center", va="bottom", fontsize=7, fontweight="bold", linespacing=1.0)
    for number, module in enumerate(modules):
        y = top + 0.8 + 0.85 * number
        ax.text(-0.3, y + 0.38, module, ha="right", va="center", fontsize=8)
        for cell in (cell for cell in cells if cell.module == module):
            value, low, high = sketch.effect(cell, scale)
            better = value > 0 if scale.more_is_better else value < 0
            share = min(1.0, abs(value) / scale.strongest) if scale.strongest else 0.0
            x, sure = columns[cell.row], not low <= 0 <= high
            ax.add_patch(Rectangle((x + 0.03, y), 0.94, 0.78, facecolor=BLUE if better else ORANGE, alpha=0.08 + 0.55 * share, linewidth=0))
            ax.add_patch(
                Rectangle((x + 0.03, y), 0.94, 0.78, fill=False, edgecolor=INK if sure else "#d1d5db", linewidth=1.1 if sure else 0.5)
            )
            ax.text(
                x + 0.5,
                y + 0.3,
                sketch.written(value, scale),
                ha="center",
                va="center",
                fontsize=6.5,
                fontweight="bold" if sure else "normal",
            )
            spread = f"±{sketch.written((high - low) / 2, scale, sign=False)}"
            ax.text(x + 0.5, y + 0.6, spread, ha="center", va="center", fontsize=5, color=INK)


def _frame(ax: Axes, x: str, y: str) -> None:
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    ax.grid(color="#eef0f3", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.set_xlabel(x)
    ax.set_ylabel(y)


FIGURES: dict[str, Callable[[Study], Figure | None]] = {
    "front": _front,
    "atlas": _atlas,
    "progress": _progress,
    "noise": _noise,
    "latency": _latency,
}
