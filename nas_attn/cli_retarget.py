"""The command `retarget`: parses, calls, prints."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from nas_attn.cli_cluster import InsecureCluster, warn
from nas_attn.cli_search import TARGET, import_own, typed
from nas_attn.cli_storage import StorageUrl, forget_url

console = Console(highlight=False)


def retarget(
    folder: Annotated[Path, typer.Argument(help="The folder of the study whose trials are taken; nothing in it is changed.")],
    to: Annotated[Path, typer.Option("--to", help="The new study's folder; the same folder goes on.")],
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: that of the study.")] = None,
    backend: Annotated[str | None, typer.Option(help="torch or onnxruntime; default: that of the study.")] = None,
    storage: StorageUrl = None,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster, or auto.")] = None,
    insecure_cluster: InsecureCluster = False,
    pool: Annotated[str, typer.Option(help="ray (warm workers) or inline (this process).")] = "ray",
    workers: Annotated[int | None, typer.Option(help="As in search, for the threads that a worker measures with follow from it.")] = None,
    gpus_per_worker: Annotated[float | None, typer.Option(help="GPU share a worker; default: from the machine.")] = None,
    latency_node: Annotated[str | None, typer.Option(help="The node on which latency is measured: host name or address.")] = None,
    imports: Annotated[list[str] | None, typer.Option("--import", help="A module of yours with @mechanism classes.")] = None,
) -> None:
    """A new study from another's trials with latency measured anew, on another device or by another runtime; nothing is retrained."""
    from nas_attn import detector, nodes, plan, report, show
    from nas_attn import retarget as mover
    from nas_attn.pool import open_pool
    from nas_attn.progress import Watch

    forget_url()
    detector.silence()
    import_own(imports)
    plan.require_pool(pool, workers)
    plan.require_folder("--to", to)
    setup = _setup(folder, device, backend)
    given = {"to": to, "device": setup.device.partition(":")[0], "backend": setup.latency["backend"]}
    move = mover.prepare(
        folder,
        to,
        asdict(setup),
        backend=setup.latency["backend"],
        device=setup.device,
        storage=storage,
        command=typed("retarget", str(folder), **given),
    )
    share = gpus_per_worker if setup.device != "cpu" else 0.0
    warn(address, insecure_cluster)
    place: dict[str, Any] = {"address": address, "insecure_cluster": insecure_cluster, "latency_node": latency_node}
    opened = open_pool(pool, TARGET, workers=workers, gpus_per_worker=share, folder=to, **place)
    with opened as running, Watch(console) as watch:
        nodes.check_code(running, replace(setup, folder=str(to.resolve())))
        made = mover.run(move, running, watch)
    report.write(made.snapshot, to)
    show.summary(console, made.snapshot, to)
    _tell(made, folder, to)


def _setup(folder: Path, device: str | None, backend: str | None) -> Any:
    """The setup of a study with another latency, on whose device and by whose backend this machine can measure."""
    from nas_attn import custom, plan
    from nas_attn.errors import InputError
    from nas_attn.runner import require_backend
    from nas_attn.setup import resolved_device

    setup = plan.load_setup(folder)
    missing = sorted(set(setup.imports) - set(custom.sources()))
    if missing:
        options = " ".join(f"--import {name}" for name in missing)
        raise InputError(f"The study in {folder} places modules of {', '.join(missing)}; add {options}.")
    chosen = setup.latency.get("backend", "torch") if backend is None else backend
    where = resolved_device(setup.device if device is None else device)
    require_backend(chosen, where)
    return replace(
        setup,
        device=where,
        latency={**setup.latency, "backend": chosen},
        import_folder=str(Path.cwd()) if custom.sources() else "",
    )


def _tell(made: Any, folder: Path, to: Path) -> None:
    """What was not taken over, and why; how a search goes on."""
    derived: Mapping[str, Any] = made.snapshot.settings["derived"]
    told = f"{to}: {derived['taken']} of {derived['trials']} trials of {folder}, latency measured anew, nothing retrained."
    console.print(told, markup=False, soft_wrap=True)
    for reason, count in derived["left_out"].items():
        numbers = [str(number) for number, words in made.left_out.items() if words == reason]
        named = f" ({', '.join(numbers)})" if numbers else ""
        console.print(f"left out: {count} that {reason}{named}; a search in {to} may ask for them", markup=False, soft_wrap=True)
    if made.without_weights:
        bare = ", ".join(map(str, made.without_weights))
        console.print(
            f"without weights: trials {bare} of the front, which {folder} had deleted; an export gives their YAML with --scale only",
            markup=False,
            soft_wrap=True,
        )
    console.print(f"Goes on: nas-attn search {to / 'space.yaml'} --out {to}, with the options of the former search", markup=False)
