"""The command `search`: parses, calls, prints."""

import dataclasses
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from nas_attn.cli_cluster import InsecureCluster, warn
from nas_attn.cli_storage import StorageUrl, forget_url

TARGET = "nas_attn.evaluate:serve"
CLEAN_EVERY = 8

console = Console(highlight=False)


def search(
    space: Annotated[str, typer.Argument(help="A search space: a YAML file, or the name of a shipped one such as yolo11.")],
    data: Annotated[Path, typer.Option("--data", help="The data set's YAML, as for Ultralytics.")],
    weights: Annotated[Path | None, typer.Option(help="Where the base's fit starts; default: from scratch.")] = None,
    trials: Annotated[int, typer.Option(help="How many architectures to measure, the base among them.")] = 40,
    out: Annotated[Path, typer.Option(help="The study's folder; the same folder goes on.")] = Path("study"),
    storage: StorageUrl = None,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster, or auto.")] = None,
    insecure_cluster: InsecureCluster = False,
    pool: Annotated[str, typer.Option(help="ray (warm workers) or inline (this process).")] = "ray",
    workers: Annotated[int | None, typer.Option(help="Workers; default: from the machine.")] = None,
    max_workers: Annotated[
        int | None, typer.Option(help="With --address: ask the cluster's autoscaler for up to so many workers, as work waits.")
    ] = None,
    cpus_per_worker: Annotated[float | None, typer.Option(help="CPUs a worker; default: from the machine.")] = None,
    gpus_per_worker: Annotated[float | None, typer.Option(help="GPU share a worker; default: from the machine.")] = None,
    latency_node: Annotated[str | None, typer.Option(help="The node on which latency is measured: host name or address.")] = None,
    sampler: Annotated[str, typer.Option(help="model, tpe, nsga2 or random.")] = "model",
    fidelity: Annotated[str, typer.Option(help="full, or racing: stop at rungs what even an optimist gives up.")] = "full",
    repeats: Annotated[int, typer.Option(min=0, help="Extra seeds after the trials, where the front is least certain.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    score_on: Annotated[str, typer.Option(help="search_val (a share of the training images) or val (your own; flagged).")] = "search_val",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would cost here.")] = False,
    imports: Annotated[list[str] | None, typer.Option("--import", help="A module of yours with @mechanism classes.")] = None,
    extend: Annotated[bool, typer.Option("--extend", help="Let a study in --out go on in this space, which has grown.")] = False,
) -> None:
    """Search a space on a data set; stopped at any point, the same command goes on."""
    from nas_attn.spec import SpaceSpec

    forget_url()
    if not imports:
        SpaceSpec.load(space)  # a slip is told before all that takes seconds to import
    from nas_attn import detector, nodes, plan, posterior, report, show, study
    from nas_attn.export import keep_weights
    from nas_attn.home import require_no_driver
    from nas_attn.pool import open_pool
    from nas_attn.progress import Watch
    from nas_attn.record import latency_kind

    detector.silence()
    import_own(imports)
    if dry_run:
        _dry_run(space, data, weights, trials, repeats, workers, device, score_on)
        return
    spec = SpaceSpec.load(space)
    plan.require_options(spec, out, trials=trials, sampler=sampler, fidelity=fidelity, pool=pool, workers=workers)
    prepared = plan.prepare(spec, space, data, out, weights=weights, device=device, score_on=score_on, elsewhere=bool(address))
    _warn(storage)
    if extend:
        _extend(prepared, out, sampler, fidelity, storage)
    share = gpus_per_worker if prepared.setup.device != "cpu" else 0.0
    if max_workers is not None and share is None:
        share = 1.0  # what to ask an autoscaler for can't be learned from nodes that are not there yet
    extra = {"fidelity": fidelity if fidelity != "full" else None, "repeats": repeats or None}
    if (warning := require_no_driver(out)) is not None:
        console.print(warning, markup=False, soft_wrap=True)
    warn(address, insecure_cluster)
    with (
        Watch(console) as watch,
        open_pool(
            pool,
            TARGET,
            workers=workers,
            gpus_per_worker=share,
            address=address,
            folder=out,
            latency_node=latency_node,
            cpus_per_worker=cpus_per_worker,
            max_workers=max_workers,
            tell=watch.note,
            insecure_cluster=insecure_cluster,
            latency_kind=latency_kind(out, storage),
        ) as running,
    ):
        nodes.check(running, prepared)
        snapshot = study.run(
            out,
            spec,
            prepared.space,
            dataclasses.asdict(prepared.setup),
            running,
            trials=trials,
            sampler=sampler,
            fidelity=fidelity,
            repeats=repeats,
            next_repeat=posterior.next_repeat,
            storage=storage,
            controls=prepared.controls,
            command=typed("search", space, data=data, weights=weights, trials=trials, out=out, sampler=sampler, score_on=score_on, **extra),
            on_event=_first(prepared.save, _and_clean(watch, out, storage)),
        )
    keep_weights(snapshot)
    report.write(snapshot, out)
    show.summary(console, snapshot, out)


def _extend(prepared: Any, out: Path, sampler: str, fidelity: str, storage: str | None) -> None:
    """Moves the study into the space before any worker starts, and says what that changed."""
    from nas_attn.extend import extend
    from nas_attn.protocol import study_settings

    settings = study_settings(out, prepared.spec, prepared.space, dataclasses.asdict(prepared.setup), sampler, fidelity)
    done = extend(out, settings, prepared.spec.objectives, prepared.space, storage)
    if done is not None:
        prepared.save()
        for row in done.differences:
            console.print(f"extended: {row}", markup=False, soft_wrap=True)
        console.print(f"{done.trials} trials moved into the new space; the former study is kept as {done.former}.", markup=False)


def _warn(storage: str | None) -> None:
    from nas_attn.address import journal_of, require_safe
    from nas_attn.journal import WARNING

    if storage is not None and journal_of(require_safe(storage)) is not None:
        console.print(f"warning: {WARNING}", markup=False, soft_wrap=True)


def import_own(modules: list[str] | None) -> None:
    """The user's own files, found from the current folder as by `python -m`; only the command line can name them."""
    from nas_attn import custom

    custom.load(modules or [], str(Path.cwd()))


def typed(name: str, *arguments: str, **options: object) -> str:
    """The command with which a user gets the same; where the storage is, and with which password, is nobody else's business."""
    given = [word for key, value in options.items() if value is not None for word in (f"--{key.replace('_', '-')}", str(value))]
    return shlex.join(["nas-attn", name, *arguments, *given])


def _and_clean(always: Callable[[Any], None], folder: Path, storage: str | None) -> Callable[[Any], None]:
    """Deletes weights that nobody will export every few trials, or a long search would fill the disk."""
    from nas_attn.errors import StudyError
    from nas_attn.export import Cleaner
    from nas_attn.record import load_study

    cleaner: Cleaner | None = None
    told: list[Any] = []

    def on_event(event: Any) -> None:
        nonlocal cleaner
        always(event)
        if event.kind != "told":
            return
        told.append(event.trial)
        if event.done % CLEAN_EVERY == 0:
            try:
                cleaner = cleaner or Cleaner(load_study(folder, storage))
            except StudyError:
                return  # the storage is away, for which the driver waits; the next time will do
            cleaner.clean(told)
            told.clear()

    return on_event


def _first(once: Callable[[], None], always: Callable[[Any], None]) -> Callable[[Any], None]:
    """Runs `once` before the first event: only then has the record agreed to the settings, and nothing has been submitted yet."""
    done = False

    def on_event(event: Any) -> None:
        nonlocal done
        if not done:
            once()
            done = True
        always(event)

    return on_event


def _dry_run(
    space: str, data: Path, weights: Path | None, trials: int, repeats: int, workers: int | None, device: str, score_on: str
) -> None:
    import tempfile

    from nas_attn import plan
    from nas_attn.spec import SpaceSpec

    with tempfile.TemporaryDirectory(prefix="nas-attn-") as folder:
        prepared = plan.prepare(SpaceSpec.load(space), space, data, Path(folder), weights=weights, device=device, score_on=score_on)
        estimate = plan.estimate(prepared, trials, workers or 1, repeats)
    hours = estimate.total_seconds / 3600
    rows = {
        "architectures in the space": f"{estimate.architectures:,}",
        "images an epoch, images scored": f"{len(prepared.train)}, {len(prepared.scored)}",
        "one trial": f"{estimate.trial_seconds:.0f} s of training and scoring, measured on the base here",
        "fitting the base": f"{estimate.fit_seconds:.0f} s",
        f"{trials} trials, {estimate.trainings} trainings": f"about {hours:.1f} h with {estimate.workers} worker(s), latency not counted",
        "GPU hours": f"{hours:.1f}" if estimate.device != "cpu" else "none: runs on the CPU",
        "disk": f"about {estimate.disk_bytes / 1e6:.0f} MB of weights at the end",
    }
    for name, value in rows.items():
        console.print(f"{name + ':':34} {value}", markup=False, soft_wrap=True)
