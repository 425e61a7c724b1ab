"""The command `verify`: parses, calls, prints."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from nas_attn.cli_cluster import InsecureCluster, warn
from nas_attn.cli_storage import StorageUrl, forget_url
from nas_attn.errors import printable

if TYPE_CHECKING:
    from nas_attn.arms import Verification
    from nas_attn.verdict import Evidence

TARGET = "nas_attn.full:serve"


def verify(
    folder: Annotated[Path, typer.Argument(help="A study's folder.")],
    data: Annotated[Path, typer.Option("--data", help="The study's data YAML; all of its train is trained on, its val is scored.")],
    seeds: Annotated[int, typer.Option(help="Paired seeds of every arm.")] = 5,
    epochs: Annotated[int | None, typer.Option(help="Epochs of every arm; default: base_fit's.")] = None,
    imgsz: Annotated[int | None, typer.Option(help="Image size in pixels; default: base_fit's.")] = None,
    batch: Annotated[int | None, typer.Option(help="Batch; default: base_fit's.")] = None,
    lr0: Annotated[float | None, typer.Option(help="First learning rate; default: base_fit's.")] = None,
    members: Annotated[int, typer.Option(help="At most so many members of the front, the pick first.")] = 8,
    trial: Annotated[list[int] | None, typer.Option(help="These trials instead, the first being the pick; may be repeated.")] = None,
    arms: Annotated[str, typer.Option(help="Some of base,extra,wider,members, by commas.")] = "base,extra,wider,members",
    extra_epochs: Annotated[int | None, typer.Option(help="More epochs of the base in `extra`; default: all of the search.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where results go; default: verify in the study's folder.")] = None,
    pool: Annotated[str, typer.Option(help="ray (warm workers) or inline (this process).")] = "ray",
    workers: Annotated[int | None, typer.Option(help="Workers; default: from the machine.")] = None,
    gpus_per_worker: Annotated[float | None, typer.Option(help="GPU share a worker; default: from the machine.")] = None,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster, or auto.")] = None,
    insecure_cluster: InsecureCluster = False,
    latency_node: Annotated[str | None, typer.Option(help="The node on which latency is measured: host name or address.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda; default: the search's.")] = None,
    storage: StorageUrl = None,
    imports: Annotated[list[str] | None, typer.Option("--import", help="A module of yours whose mechanisms the study uses.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be trained.")] = False,
) -> None:
    """Train the front's members, the base, the base for longer and a wider base in full, with paired seeds; stopped, it goes on."""
    from nas_attn import arms as decided
    from nas_attn import custom, detector, verdict
    from nas_attn import verify as driver
    from nas_attn.plan import load_setup
    from nas_attn.pool import open_pool
    from nas_attn.progress import Watch
    from nas_attn.record import load_study
    from nas_attn.setup import resolved_device

    forget_url()
    console = Console(highlight=False)
    detector.silence()
    custom.load(imports or [], str(Path.cwd()))
    setup = load_setup(folder)
    setup = replace(setup, device=resolved_device(device or setup.device), import_folder=str(Path.cwd()) if setup.imports else "")
    options = decided.Options(
        seeds=seeds,
        epochs=epochs,
        imgsz=imgsz,
        batch=batch,
        lr0=lr0,
        extra_epochs=extra_epochs,
        members=members,
        trials=tuple(trial or ()),
        arms=tuple(name.strip() for name in arms.split(",")),
    )
    target = out or folder / "verify"
    plan = decided.prepare(load_study(folder, storage), setup, data, options, target)
    _announce(console, plan)
    if dry_run:
        return
    share = gpus_per_worker if setup.device != "cpu" else 0.0
    # Only what lies in the study's folder can travel; elsewhere the workers must see it themselves.
    travels = Path(setup.folder) if target.resolve().is_relative_to(setup.folder) else None
    warn(address, insecure_cluster)
    place: dict[str, Any] = {"address": address, "insecure_cluster": insecure_cluster, "latency_node": latency_node}
    opened = open_pool(pool, TARGET, workers=workers, gpus_per_worker=share, folder=travels, **place)
    with opened as running, Watch(console) as watch:
        evidence = driver.run(plan, running, watch)
    files = verdict.write(evidence, target)
    _show(console, evidence)
    console.print(f"Results: {', '.join(map(str, files))}", markup=False, soft_wrap=True)
    number = plan.pick.number
    console.print(
        f"Next: nas-attn export {shlex.quote(str(folder))} --trial {number} --to winner, if the verdict is to take it; "
        "or the same command with more --seeds.",
        markup=False,
        soft_wrap=True,
    )
    if verdict.failures(evidence):
        raise typer.Exit(1)


def _announce(console: Console, plan: "Verification") -> None:
    for arm in plan.arms:
        console.print(f"{arm.name}: {arm.architecture}, {arm.epochs} epochs x {plan.seeds} seeds", markup=False, soft_wrap=True)
    if plan.wider:
        console.print(f"wider: the base as wide as makes it as slow as the pick, {plan.recipe.epochs} epochs x {plan.seeds} seeds")
    rival = "the wider base" if plan.wider else "the base"
    console.print(f"{plan.trainings} trainings, {plan.epochs} epochs; primary contrast: trial {plan.pick.number} against {rival}")


def _show(console: Console, evidence: "Evidence") -> None:
    from nas_attn import verdict

    rows = Table("arm", "latency", "n", "mAP50-95", "SD", "vs base [95 %]", "vs wider [95 %]", title="Full trainings, points")
    for row in verdict.summary(evidence):
        spreads = [_spread(row, name) for name in ("base", "wider")]
        name = f"{row['arm']} (pick)" if row["primary"] else row["arm"]
        rows.add_row(name, _number(row["latency_ratio"], 1, 3), str(row["n"]), _number(row["mean"]), _number(row["sd"]), *spreads)
    console.print(rows)
    for line in verdict.failures(evidence):
        console.print(f"failed: {printable(line)}", markup=False, soft_wrap=True)
    for note in evidence.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    console.print(verdict.conclusion(evidence), markup=False, soft_wrap=True)


def _spread(row: dict[str, float | None], against: str) -> str:
    mean, low, high = (row[f"vs_{against}_{key}"] for key in ("mean", "low", "high"))
    if mean is None:
        return "–"
    interval = f" [{100 * low:+.2f}, {100 * high:+.2f}]" if low is not None and high is not None else ""
    return f"{100 * mean:+.2f}{interval}"


def _number(value: float | None, scale: float = 100, digits: int = 2) -> str:
    return "–" if value is None else f"{scale * value:.{digits}f}"
