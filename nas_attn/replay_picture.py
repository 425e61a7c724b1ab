"""The picture of a replay: the share of the maximum hypervolume against trials, a line and a band a sampler, as a PNG.

Light background on purpose, as for every picture here: the file is pasted into pages whose theme is not known.
"""

import io
import textwrap
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nas_attn.picture import GREY, STYLE

# Okabe and Ito's colours, which nearly all readers tell apart, the yellow left out: it is faint on white.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_WRAP = 145
_LINE = 0.042
"""The height of a label as a share of the axis."""


def picture(summary: Mapping[str, Any], name: str) -> bytes:
    """The curves of a replay's summary as a PNG; `name` is the table's."""
    with mpl.rc_context(STYLE):
        buffer = io.BytesIO()
        draw(summary, name).savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()


def draw(summary: Mapping[str, Any], name: str) -> Figure:
    """The figure of `picture`."""
    figure = Figure(figsize=(9.6, 6.0), dpi=160)
    FigureCanvasAgg(figure)
    ax = figure.add_axes((0.085, 0.19, 0.745, 0.65))
    samplers, settings = summary["samplers"], summary["settings"]
    _frame(ax, samplers, settings["trials"])
    for index, curve in enumerate(samplers.values()):
        share, color = curve["hypervolume_share"], _COLORS[index % len(_COLORS)]
        ax.fill_between(curve["trials"], share["low"], share["high"], color=color, alpha=0.12, linewidth=0, zorder=2)
        ax.plot(curve["trials"], share["median"], color=color, linewidth=1.8, marker="o", markersize=3, zorder=3, clip_on=False)
    _label(ax, samplers)
    figure.text(0.085, 0.935, "How much a search finds in how many trials", fontsize=15, weight="bold", va="center")
    figure.text(0.085, 0.885, f"{name}: {settings['rows']:,} of {settings['combinations']:,} combinations are valid", color=GREY)
    figure.text(0.085, 0.088, _notes(settings), fontsize=8, color=GREY, linespacing=1.4, va="top")
    return figure


def _frame(ax: Axes, samplers: Mapping[str, Any], trials: int) -> None:
    lowest = min(min(curve["hypervolume_share"]["low"]) for curve in samplers.values())
    ax.set_xlim(0, trials)
    # The ends of the curves are what is compared; a run that starts from nothing must not press them together.
    ax.set_ylim(max(0.0, min(lowest - 0.02, 0.95)), 1.004)
    ax.set_xlabel("trials", labelpad=6)
    ax.set_ylabel("share of the maximum hypervolume", labelpad=8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="#f0f1f3", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(length=0, pad=6)


def _label(ax: Axes, samplers: Mapping[str, Any]) -> None:
    """Every sampler's name beside the end of its line, best on top, pushed apart where they would overlap."""
    low, high = ax.get_ylim()
    ends = [(curve["hypervolume_share"]["median"][-1], index, name) for index, (name, curve) in enumerate(samplers.items())]
    below = 1.0 + _LINE
    for number, (value, index, name) in enumerate(sorted(ends, reverse=True)):
        room = _LINE * (len(ends) - 1 - number)
        below = max(min((value - low) / (high - low), below - _LINE), room)
        text, color = f"{name}  {value:.3f}", _COLORS[index % len(_COLORS)]
        ax.text(1.015, below, text, transform=ax.transAxes, color=color, va="center", fontsize=9, weight="bold")


def _notes(settings: Mapping[str, Any]) -> str:
    ways = ", ".join(f"{name} {way}d" for name, way in settings["objectives"].items())
    noise = ", ".join(f"{name} {value:g}" for name, value in settings["noise"].items() if value) or "none"
    reference = ", ".join(f"{name} {value:.4g}" for name, value in settings["reference"].items())
    charge = "invalid and repeated proposals are trials" if settings["charge_invalid"] else "every trial is another valid combination"
    lines = (
        f"True values of the returned front; line: median, band: 5th to 95th percentile of {settings['repeats']} repeats; {charge}.",
        f"{ways}. Reference: {reference}. Noise (SD): {noise}. Known before a trial: {', '.join(settings['known']) or 'nothing'}.",
    )
    return "\n".join("\n".join(textwrap.wrap(line, _WRAP)) for line in lines)
