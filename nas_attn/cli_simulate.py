"""`nas-attn simulate`: replays samplers against a table and prints how much of the maximum each reaches."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from nas_attn.errors import InputError

_WIDTH = 120
"""Of the table where the terminal does not say its own."""


def simulate(
    table: Annotated[Path, typer.Argument(help="A CSV: a row a valid combination of genes, with its objectives.")],
    genes: Annotated[str, typer.Option(help="The columns that are searched: a,b,c. All-numeric ones are taken as ordered.")],
    maximize: Annotated[str, typer.Option(help="Objectives, larger is better: a,b.")] = "",
    minimize: Annotated[str, typer.Option(help="Objectives, smaller is better: a,b.")] = "",
    sampler: Annotated[
        str, typer.Option(help="NAME,... of model, tpe, nsga2, random; +model: returns what the model's posterior believes.")
    ] = ("model,tpe,nsga2,random"),
    trials: Annotated[int, typer.Option(help="Trials of one search.")] = 150,
    repeats: Annotated[int, typer.Option(help="Searches a sampler, each from its own seed.")] = 20,
    noise: Annotated[str, typer.Option(help="SD of a trial's noise: a number for all maximized unknown objectives, or a=0.3,b=1.")] = "0",
    known: Annotated[str, typer.Option(help="Objectives known before a trial: a,b.")] = "",
    reference: Annotated[
        str, typer.Option(help="Worst values that count: a=85,b=p90 (a percentile of the column). Default: the table's worst.")
    ] = "",
    charge_invalid: Annotated[
        bool, typer.Option("--charge-invalid", help="Proposals without a row, and repeated ones, cost a trial; a model then knows nothing.")
    ] = False,
    every: Annotated[int, typer.Option(help="Judge the front after every so many trials, and at the end.")] = 10,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal results, whatever the number of workers.")] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; one a core unless given.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the curves into this PNG.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Replay samplers against a table, without training: the share of the maximum hypervolume that each reaches, trial by trial."""
    from nas_attn.replay import replay
    from nas_attn.replay_picture import picture
    from nas_attn.schedule import available_cpus
    from nas_attn.table import read_table

    searched = read_table(table, _names("genes", genes), _directions(maximize, minimize))
    with _Watch() as on_run:
        found = replay(
            searched,
            _names("sampler", sampler),
            trials=trials,
            repeats=repeats,
            noise=_noise(noise),
            known=_names("known", known) if known else (),
            reference=_pairs("reference", reference),
            charge_invalid=charge_invalid,
            every=every,
            seed=seed,
            workers=workers or available_cpus(),
            on_run=on_run,
        ).summary()
    if plot is not None:
        plot.parent.mkdir(parents=True, exist_ok=True)
        plot.write_bytes(picture(found, table.name))
    if as_json:
        found["settings"] = {"table": str(table), **found["settings"], "plot": str(plot) if plot else None}
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
    else:
        _print(table.name, found, plot)


# -- what was typed ----------------------------------------------------------------------------------------------------------------------


def _names(option: str, text: str) -> list[str]:
    """The names in a comma list."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise InputError(f"`--{option}` must name something, but got {text!r}; write e.g. a,b.")
    return names


def _directions(maximize: str, minimize: str) -> dict[str, str]:
    up, down = (_names(option, text) if text else [] for option, text in (("maximize", maximize), ("minimize", minimize)))
    both = sorted(set(up) & set(down))
    if both or not up + down:
        what = f"{', '.join(both)} is in both" if both else "there are none"
        raise InputError(f"Every objective must be in one of `--maximize` and `--minimize`, but {what}; name each in one.")
    return dict.fromkeys(up, "maximize") | dict.fromkeys(down, "minimize")


def _pairs(option: str, text: str) -> dict[str, str]:
    """`a=1,b=p90` as names and what stands behind them."""
    if not text:
        return {}
    pairs = [part.partition("=") for part in _names(option, text)]
    if any(not name or not value for name, _, value in pairs):
        raise InputError(f"`--{option}` must be written NAME=VALUE,NAME=VALUE, but got {text!r}; write e.g. map=30,latency=p90.")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _noise(text: str) -> float | dict[str, float]:
    try:
        return {name: float(value) for name, value in _pairs("noise", text).items()} if "=" in text else float(text)
    except ValueError:
        raise InputError(f"`--noise` must be a number, or NAME=NUMBER,NAME=NUMBER, but got {text!r}; write e.g. 0.3.") from None


# -- what is shown -----------------------------------------------------------------------------------------------------------------------


class _Watch:
    """A bar on stderr while the searches run, where somebody watches."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._bar = Progress(console=console, transient=True, disable=not console.is_terminal)

    def __enter__(self) -> Callable[[int, int], None]:
        self._bar.start()
        task = self._bar.add_task("searches", total=None)
        return lambda done, total: self._bar.update(task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def _print(name: str, found: Mapping[str, Any], plot: Path | None) -> None:
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=_WIDTH)
    settings, samplers = found["settings"], found["samplers"]
    grid = next(iter(samplers.values()))["trials"]
    shown = _shown(grid)
    reached = list(next(iter(samplers.values()))["trials_to_reach"])
    title = f"Share of the maximum hypervolume after N trials, and trials to reach a share: {name}"
    table = Table("sampler", *(f"N={grid[k]}" for k in shown), *(f"to {share}" for share in reached), title=title)
    for sampler, curve in samplers.items():
        cells = [_interval(curve["hypervolume_share"], k) for k in shown]
        table.add_row(sampler, *cells, *(_trials(curve["trials_to_reach"][share]) for share in reached))
    console.print(table)
    reference = ", ".join(f"{objective} {value:.4g}" for objective, value in settings["reference"].items())
    lines = [
        f"Medians with the 5th to 95th percentile of {settings['repeats']} repeats; true values of the returned front; -: not reached.",
        f"{settings['rows']:,} of {settings['combinations']:,} combinations are valid. Reference: {reference}.",
    ]
    if settings["charge_invalid"]:
        costs = [f"{sampler} {c['charged']['invalid']:g} + {c['charged']['duplicates']:g}" for sampler, c in samplers.items()]
        lines.append(f"Trials spent on invalid + repeated combinations (medians): {', '.join(costs)}.")
    lines += [f"Plot: {plot}"] if plot else []
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _shown(grid: Sequence[int]) -> list[int]:
    """Positions in the grid near a third, two thirds and the whole of the trials."""
    wanted = (grid[-1] / 3, grid[-1] * 2 / 3, grid[-1])
    return sorted({min(range(len(grid)), key=lambda k: abs(grid[k] - number)) for number in wanted})


def _interval(share: Mapping[str, Sequence[float]], k: int) -> str:
    return f"{share['median'][k]:.3f} ({share['low'][k]:.3f}-{share['high'][k]:.3f})"


def _trials(reached: Mapping[str, float | None]) -> str:
    low, median, high = ("-" if reached[k] is None else f"{reached[k]:g}" for k in ("low", "median", "high"))
    return median if low == median == high else f"{median} ({low}..{high})"
