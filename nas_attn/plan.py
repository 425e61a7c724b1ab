"""A search before it starts: the base's graph, the data's split, what workers must know, the positive controls, the expected cost."""

import hashlib
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nas_attn import custom, data, proxy
from nas_attn.architecture import Architecture, Placement
from nas_attn.detector import base_sites, build, network
from nas_attn.document import is_file
from nas_attn.errors import DataError, GraphError, InputError, StudyError, TransferError, nearest, shown
from nas_attn.export import kept_for_score
from nas_attn.graph import Graph
from nas_attn.jobs import rungs_for
from nas_attn.runner import require_backend
from nas_attn.sampler import require as require_sampler
from nas_attn.schedule import check_options
from nas_attn.setup import Setup, resolved_device, threads
from nas_attn.space import SearchSpace, Site
from nas_attn.spec import SpaceSpec
from nas_attn.weights import load_weights

SCORE_ON = ("search_val", "val")
POOLS = ("ray", "inline")
HELP_EPOCHS = 3
PROBE_BATCHES = 3
SETUP = "setup.json"

Control = tuple[str, Architecture, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that a study is begun with; `train` and `scored` are the images of one epoch and of one scoring."""

    spec: SpaceSpec
    space: SearchSpace
    setup: Setup
    controls: tuple[Control, ...]
    train: tuple[str, ...]
    scored: tuple[str, ...]

    def save(self) -> None:
        """Write the image lists, the resolved space, the setup and the network that is drawn into the study's folder."""
        proxy.write_list(Path(self.setup.train_list), self.train)
        proxy.write_list(Path(self.setup.val_list), self.scored)
        folder = Path(self.setup.folder)
        (folder / "space.yaml").write_text(self.spec.to_yaml())
        (folder / SETUP).write_text(json.dumps(asdict(self.setup), indent=1))
        network(self.setup.yaml_graph(), self.setup.scale).save(folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a search will take here, measured on the base: seconds, and bytes on disk at its end."""

    architectures: int
    fit_seconds: float
    trial_seconds: float
    total_seconds: float
    disk_bytes: int
    trainings: int
    workers: int
    device: str


def require_options(spec: SpaceSpec, folder: Path, *, trials: int, sampler: str, fidelity: str, pool: str, workers: int | None) -> None:
    """Raises InputError for what a command line asks of a search that no search can do; asked before workers start, which takes long."""
    if trials < 1:
        raise InputError(f"`--trials` must be at least 1, the base, but got {trials}; give e.g. 40.")
    require_pool(pool, workers)
    require_sampler(sampler)
    rungs_for(spec, fidelity)
    require_folder("--out", folder)


def require_pool(pool: str, workers: int | None) -> None:
    """Raises InputError for an unknown pool, or too few workers."""
    if pool not in POOLS:
        raise InputError(f"`--pool` must be ray or inline, but got {shown(pool)}. {nearest(pool, POOLS)}")
    check_options(workers, None, None)


def require_folder(option: str, folder: Path) -> None:
    """Raises InputError for a folder that cannot be made, because a file stands in its way."""
    holder = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not holder.is_dir():
        raise InputError(f"`{option}` must be a folder, but {holder} is a file; name another.")


def prepare(
    spec: SpaceSpec,
    source: str,
    data_yaml: Path,
    folder: Path,
    *,
    weights: Path | None = None,
    device: str = "auto",
    score_on: str = "search_val",
    elsewhere: bool = False,
) -> Plan:
    """Resolve a space on its base and a data set, for a study in `folder`; nothing is written yet. `elsewhere`: not this machine trains.

    Raises:
        InputError: a data set, base, site, device or weights that cannot be used; the message says which and what would be right.
    """
    if score_on not in SCORE_ON:
        raise InputError(f"`--score-on` must be search_val or val, but got {score_on!r}. {nearest(score_on, SCORE_ON)}")
    if weights is not None and not is_file(weights):
        raise InputError(f"`--weights` must be a file, but {weights} is none; leave it out to fit the base from scratch.")
    if weights is None and not spec.base_fit.epochs:
        raise InputError("`base_fit.epochs: 0` takes the base as its weights are, but there are none; give --weights or epochs.")
    graph, scale, available = _base(spec, source)
    if graph.rows[-1].module == "RTDETRDecoder":
        raise InputError(
            f"A search needs a YOLO base, but {spec.base} ends in RTDETRDecoder, whose training differs; take e.g. yolo11n.yaml."
        )
    space = spec.resolve(available, source)
    found = data.load(data_yaml)
    if weights is not None:
        _check_weights(spec, graph, scale, found.names, weights)
    labels = _labels(found, (*found.train, *(found.val if score_on == "val" else ())))
    train, scored = _split(spec, found, [labels[image] for image in found.train], score_on)
    for name, images in (("train", train), (score_on, scored)):
        _require_boxes(name, [labels[image] for image in images], data_yaml)
    folder = folder.resolve()
    lists = {name: folder / "lists" / f"{name}.txt" for name in ("train", score_on)}
    setup = Setup(
        folder=str(folder),
        base=spec.base,
        graph=graph.to_yaml(),
        scale=scale,
        weights=str(weights.resolve()) if weights else None,
        weights_sha256=hashlib.sha256(weights.read_bytes()).hexdigest() if weights else None,
        names=found.names,
        train_list=str(lists["train"]),
        val_list=str(lists[score_on]),
        score_on=score_on,
        data=data.labels_fingerprint(train, scored, found.names, labels),
        fit=spec.base_fit.model_dump(mode="json"),
        latency=spec.latency.model_dump(mode="json"),
        device=_measuring_device(spec, device, elsewhere),
        seed=spec.seed,
        imports=tuple(custom.sources()),
        import_folder=str(Path.cwd()) if custom.sources() else "",
    )
    return Plan(spec=spec, space=space, setup=setup, controls=_controls(spec, available), train=train, scored=scored)


def _measuring_device(spec: SpaceSpec, name: str, elsewhere: bool) -> str:
    device = resolved_device(name, elsewhere)
    if not elsewhere:  # every node is asked for it
        require_backend(spec.latency.backend, device)
    return device


def load_setup(folder: Path) -> Setup:
    """The setup of the study in `folder`, wherever the folder has been moved to.

    Raises:
        StudyError: no study there.
    """
    file = folder / SETUP
    if not file.is_file():
        raise StudyError(f"A study's folder holds {SETUP}, but {folder} does not; give the folder that `nas-attn search --out` wrote.")
    try:
        setup = Setup.from_dict(json.loads(file.read_text()))
    except (TypeError, KeyError, ValueError) as error:
        raise StudyError(
            f"{file} must be as this version of nas_attn writes it, but: {error}; use the version that made the study."
        ) from error
    return replace(setup, folder=str(folder.resolve()))


def estimate(plan: Plan, trials: int, workers: int, repeats: int = 0) -> Estimate:
    """Train the base on a few batches here, in a temporary folder, and work out what a search will take: `trials` trials and at most
    `repeats` further trainings, on `workers` workers.
    """
    setup, spec = plan.setup, plan.spec
    images = len(plan.train)
    few = min(PROBE_BATCHES * spec.proxy.batch, images)
    model_bytes = 4 * sum(v.numel() for v in _new_base(setup).state_dict().values())
    with tempfile.TemporaryDirectory(prefix="nas-attn-") as name:
        _probe(plan, Path(name), few)  # the first run pays for loading and compiling
        one, two = _probe(plan, Path(name), few), _probe(plan, Path(name), min(2 * few, images))
    train_s = max(two - one, 0.1 * one) / (min(2 * few, images) - few) if images > few else one / few
    score_s = max(one - train_s * few, 0.0) / min(few, len(plan.scored))
    epoch_s = images * train_s + len(plan.scored) * score_s
    fit_s, trial_s = spec.base_fit.epochs * epoch_s, spec.proxy.epochs * epoch_s
    control_s = (1 + HELP_EPOCHS) * trial_s if spec.controls else 0.0
    candidates = max(trials - 1, 0) * spec.seeds
    total_s = fit_s + sum(math.ceil(n / workers) for n in (candidates, spec.base_seeds, repeats)) * trial_s + control_s
    kept = spec.base_seeds + 1 + min(candidates, kept_for_score(trials))
    return Estimate(
        architectures=plan.space.size,
        fit_seconds=fit_s,
        trial_seconds=trial_s,
        total_seconds=total_s,
        disk_bytes=kept * model_bytes,
        trainings=candidates + repeats + spec.base_seeds + (2 if spec.controls else 0) + 1,
        workers=workers,
        device=setup.device,
    )


def _base(spec: SpaceSpec, source: str) -> tuple[Graph, str, tuple[Site, ...]]:
    base = spec.base_file(source)
    try:
        return base_sites(base)
    except GraphError as error:
        if is_file(Path(base)):
            raise
        raise GraphError(f"{source}: {error}") from error  # a name that nobody knows is to be mended where it stands


def _labels(found: data.DataSet, images: tuple[str, ...]) -> dict[str, data.Labels]:
    try:
        return data.read_all_labels(images, len(found.names))
    except DataError as error:  # of a class too many nobody knows which file is wrong: the labels, or the `names`
        raise DataError(f"{found.yaml_file}: {error}") from error


def _split(spec: SpaceSpec, found: data.DataSet, labels: list[data.Labels], score_on: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if score_on == "val":
        return found.train, found.val
    try:
        return data.split_search_val(labels, spec.search_val, spec.seed)
    except DataError as error:
        raise DataError(f"{found.yaml_file}: {error}") from error


def _check_weights(spec: SpaceSpec, graph: Graph, scale: str, names: tuple[str, ...], weights: Path) -> None:
    try:
        new = load_weights(build(graph, scale, len(names), names), weights)
    except TransferError as error:  # of the user's own file: theirs to correct, before anything has begun
        raise InputError(f"`--weights`: {error}") from error
    if new and not spec.base_fit.epochs:
        raise InputError(
            f"`base_fit.epochs: 0` needs weights of the same {len(names)} classes, but {len(new)} head tensors of {weights} differ; "
            "set base_fit.epochs to 30 or so."
        )


def _require_boxes(name: str, labels: Sequence[data.Labels], data_yaml: Path) -> None:
    if not any(len(item.classes) for item in labels):
        raise DataError(
            f"{data_yaml}: some of the {len(labels)} images of {name} must have a labelled box, but none has, looked for in "
            f"{data.label_file(labels[0].image)} and so on; is there a `labels` folder beside `images`, with one .txt an image? "
            "For few labelled images raise search_val."
        )


def _controls(spec: SpaceSpec, available: tuple[Site, ...]) -> tuple[Control, ...]:
    by_name = {name: site.layer for site in available for name in site.names}
    rows = sorted({by_name[name] for name in ("P3", "P4", "P5") if name in by_name}) or [available[0].layer]
    harm = Architecture(spec.base, tuple(Placement(row, "Blur") for row in rows))
    return (
        ("help", Architecture(spec.base), {"epochs": HELP_EPOCHS * spec.proxy.epochs}),
        ("harm", harm, {}),
    )


def _new_base(setup: Setup) -> Any:
    return build(setup.yaml_graph(), setup.scale, len(setup.names), setup.names)


def _spread(images: Sequence[str], count: int) -> tuple[str, ...]:
    """`count` images from all over a list: names that sort first may all be of one kind, such as backgrounds."""
    return tuple(images[i * len(images) // count] for i in range(min(count, len(images)))) if count < len(images) else tuple(images)


def _probe(plan: Plan, folder: Path, images: int) -> float:
    setup, spec = plan.setup, plan.spec
    proxy.write_list(folder / "train.txt", _spread(plan.train, images))
    proxy.write_list(folder / "val.txt", _spread(plan.scored, PROBE_BATCHES * spec.proxy.batch))
    trained = proxy.train(
        proxy.Training(
            train_list=str(folder / "train.txt"),
            val_list=str(folder / "val.txt"),
            names=setup.names,
            folder=str(folder / "run"),
            epochs=1,
            imgsz=spec.proxy.imgsz,
            batch=spec.proxy.batch,
            lr0=spec.proxy.lr0,
            new_lr_scale=spec.proxy.new_lr_scale,
            seed=spec.seed,
            device=setup.device,
            threads=threads(),
            args=dict(spec.proxy.args),
        ),
        _new_base(setup),
    )
    return trained.train_seconds
