"""A winner on paper: a full Ultralytics YAML, its weights, a card that says what was measured, and a training script."""

import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import yaml

from nas_attn import facts
from nas_attn.detector import build, insert_architecture
from nas_attn.errors import InputError, StudyError, printable
from nas_attn.files import plain_name
from nas_attn.graph import Graph
from nas_attn.markdown import Markdown, code, markdown
from nas_attn.outcome import Job, Measured, Snapshot, Trial
from nas_attn.setup import Setup, require_own
from nas_attn.train import WEIGHTS
from nas_attn.weights import read_state

ROWS = ("backbone", "head")
BEST, SHARE = 8, 5
"""So many trials keep their weights for their score alone, or one in so many if that is more: what a model of all trials recommends in the
end is among the better ones, but need not have been lucky enough to be among the very best."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """Where an export is; `weights` is None where the scale differs from the searched one."""

    folder: Path
    yaml_file: Path
    weights: Path | None


def export(snapshot: Snapshot, setup: Setup, trial: Trial, to: Path, *, scale: str | None = None, reason: str = "") -> Exported:
    """Write `trial` into the folder `to`: YAML, weights (at the searched scale), card and training script.

    Raises:
        InputError: a folder that holds another YAML, or a scale that the base does not have.
        StudyError: a trial that was not measured, or whose weights are gone.
    """
    require_own(setup)
    scale = setup.scale if scale is None else scale
    graph = insert_architecture(setup.yaml_graph(), trial.architecture).graph
    config = _config(graph, setup, scale)
    build(Graph.from_yaml(config), scale, len(setup.names))
    to.mkdir(parents=True, exist_ok=True)
    file = to / f"{_stem(setup, scale)}-{trial.architecture.digest()}.yaml"
    others = [f.name for f in to.glob("*.yaml") if f != file]
    if others:
        raise InputError(f"An export's folder holds exactly one YAML, but {to} holds {others}; give another --to.")
    weights = _copy_weights(snapshot, trial, to) if scale == setup.scale else None
    file.write_text(_header(snapshot, trial, setup, reason) + _dump(config))
    facts = _facts(snapshot, setup, trial, file.name, weights, reason)
    for name in ("card.md", "train.py"):
        (to / name).write_text(_template(name).render(facts))
    return Exported(folder=to, yaml_file=file, weights=weights)


def kept_for_score(trials: int) -> int:
    """How many of so many scored trials keep their weights for their score."""
    return max(BEST, trials // SHARE)


def keep_weights(snapshot: Snapshot, best: int | None = None) -> int:
    """Delete the weights of trials that are not worth exporting; returns how many files went. Those of running trials are kept."""
    running = {t.architecture.digest() for t in snapshot.trials if t.state == "RUNNING"}
    kept = worth_exporting(snapshot, best) | running
    folders = [folder for folder in (snapshot.folder / "trials").glob("*") if folder.name not in kept]
    return sum(_drop_weights(folder) for folder in folders)


def worth_exporting(snapshot: Snapshot, best: int | None = None) -> set[str]:
    """The digests of the base, of the trials on the front, and of the `best` by score (default: `kept_for_score`)."""
    scored = [t for t in snapshot.trials if t.values is not None]
    best = kept_for_score(len(scored)) if best is None else best
    top = sorted(scored, key=lambda t: -(t.values or {})["map50_95"])[:best]
    base = [t for t in snapshot.trials if not t.architecture.placements]
    return {t.architecture.digest() for t in (*facts.front_trials(snapshot), *top, *base)}


class Cleaner:
    """Deletes, while a search runs, the weights of told trials that are not worth exporting.

    Only trials that were worth it so far are compared with new ones: what has fallen behind never comes back.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        keep_weights(snapshot)
        self._held, self._scored = snapshot, sum(t.values is not None for t in snapshot.trials)
        self.clean([])

    def clean(self, told: Sequence[Trial]) -> int:
        """Looks at trials that were told since; returns how many files went."""
        self._scored += sum(t.values is not None for t in told if t.number not in {held.number for held in self._held.trials})
        ended = {t.number: t for t in (*self._held.trials, *told) if t.state != "RUNNING"}
        self._held = replace(self._held, trials=tuple(ended.values()))
        kept = worth_exporting(self._held, kept_for_score(self._scored))
        gone = [t for t in ended.values() if t.architecture.digest() not in kept]
        self._held = replace(self._held, trials=tuple(t for t in ended.values() if t.architecture.digest() in kept))
        return sum(_drop_weights(self._held.folder / "trials" / t.architecture.digest()) for t in gone)


def _drop_weights(folder: Path) -> int:
    files = [*folder.glob(f"*/*/{WEIGHTS}")]
    for file in files:
        file.unlink()
    return len(files)


def best_job(trial: Trial) -> tuple[Job, Measured]:
    """The job whose weights stand for a trial: its highest rung, its first seed.

    Raises:
        StudyError: a trial without a finished training.
    """
    done = facts.measured(trial)
    if not done:
        raise StudyError(
            f"Only a measured trial can be exported, but trial {trial.number} is {trial.kind or 'running'}; see `nas-attn report`."
        )
    return done[0]


def _copy_weights(snapshot: Snapshot, trial: Trial, to: Path) -> Path:
    job, _ = best_job(trial)
    folder = job.folder(snapshot.folder).parent
    # Those of the attempt that was told; it has none of its own where it found another's outcome, which is then the first whole one.
    whole = sorted(folder.glob("*/outcome.json"), key=lambda f: (int(f.parent.name) != job.attempt, int(f.parent.name)))
    files = [f.with_name(WEIGHTS) for f in whole if f.with_name(WEIGHTS).is_file()]
    if not files:
        raise StudyError(
            f"Weights are kept for the front and the best few, but trial {trial.number} has none in {folder}; "
            "export a member of the front, or give --scale to export the YAML alone."
        )
    read_state(files[0])  # what cannot be read must not be handed on
    return Path(shutil.copyfile(files[0], to / WEIGHTS))


def _config(graph: Graph, setup: Setup, scale: str) -> dict[str, Any]:
    config = graph.to_yaml()
    scales: Mapping[str, Any] = config.get("scales") or {}
    if scales and scale and scale not in scales:
        raise InputError(f"`--scale` must be one of {sorted(scales)}, but got {scale!r}.")
    if scale and not scales:
        raise InputError(f"`--scale` needs a base with scales, but {setup.base} has none; leave it out.")
    if scales:
        # One entry, so that no file name can choose another scale than the one that was searched.
        config["scales"] = {scale: scales[scale]} if scale else dict([next(iter(scales.items()))])
    config["nc"] = len(setup.names)
    return config


def _stem(setup: Setup, scale: str) -> str:
    """Of the YAML's name, which the training script repeats: a base's name and a scale may come with a stranger's study."""
    stem = Path(setup.base).stem
    if not scale or (scale == setup.scale and re.search(rf"\d{re.escape(scale)}(?:[-_.]|$)", stem)):
        return plain_name(stem)
    if setup.scale:
        return plain_name(re.sub(rf"(\d){re.escape(setup.scale)}(?=[-_.]|$)", lambda match: match[1] + scale, stem))
    return plain_name(f"{stem}{scale}")


def _dump(config: Mapping[str, Any]) -> str:
    settings = [yaml.safe_dump({k: v}, default_flow_style=True, sort_keys=False, width=10_000) for k, v in config.items() if k not in ROWS]
    parts = ["".join(f"{text.strip()[1:-1]}\n" for text in settings)]
    number = 0
    for part in ROWS:
        lines = [f"{part}:  # [from, repeats, module, args]"]
        for row in config[part]:
            text = yaml.safe_dump(row, default_flow_style=True, width=10_000).strip()
            lines.append(f"  - {text}  # {number}")
            number += 1
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _header(snapshot: Snapshot, trial: Trial, setup: Setup, reason: str) -> str:
    why = (
        textwrap.fill(printable(reason), 136, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False) + "\n" if reason else ""
    )
    return (
        f"# {printable(setup.base)} with {printable(trial.architecture)}; rows are numbered after the insertion.\n"
        f"# Exported by nas_attn {version('nas-attn')} from study {printable(snapshot.name)}, trial {trial.number}; see card.md.\n"
        f"{why}"
        f"# Derived from a model file of Ultralytics (AGPL-3.0). Run `{_imports(setup)}` before Ultralytics builds it.\n\n"
    )


def _imports(setup: Setup) -> str:
    return f"import {', '.join(('nas_attn', *setup.imports))}"


def _facts(snapshot: Snapshot, setup: Setup, trial: Trial, yaml_name: str, weights: Path | None, reason: str) -> dict[str, Any]:
    job, outcome = best_job(trial)
    sigma = facts.sigma(snapshot)
    return {
        "yaml": yaml_name,
        "imports": setup.imports,
        "import_line": _imports(setup),
        "base": setup.base,
        "architecture": str(trial.architecture),
        "reason": reason,
        "rows": _rows(snapshot, trial),
        "score_on": job.recipe.score_on,
        "epochs": job.recipe.epochs,
        "imgsz": job.recipe.imgsz,
        "batch": job.recipe.batch,
        "seeds": len(facts.measured(trial)),
        "sigma": "unknown (one seed)" if sigma is None else f"{sigma:.4f}",
        "latency": _latency(trial),
        "device": outcome.device,
        "code": job.recipe.code,
        "study": snapshot.name,
        "trial": trial.number,
        "digest": trial.architecture.digest(),
        "gates": ", ".join(f"row {row}: {value:.4f}" for row, value in outcome.gates.items()) or "none",
        "weights": Markdown(f"`{WEIGHTS}`: its trained tensors, a plain state dict.")
        if weights
        else "No weights: the scale differs from the searched one.",
        "command": snapshot.settings.get("command", f"nas-attn search {snapshot.folder / 'space.yaml'}"),
    }


def _rows(snapshot: Snapshot, trial: Trial) -> list[tuple[str, str, str]]:
    base = facts.base_trial(snapshot)
    names = ("map50_95", "latency_ratio", "latency_ms", "params_m", "gmacs")

    def text(entry: Trial | None, name: str) -> str:
        value = facts.metric(entry, name) if entry is not None else None
        return "unknown" if value is None else f"{value:.4f}"

    return [(name, text(trial, name), text(base, name)) for name in names]


def _latency(trial: Trial) -> str:
    if trial.cost is None:
        return "not measured"
    timed = trial.cost.latency
    where = ", ".join(f"{k} {v}" for k, v in timed.environment.items())
    spread = f"95 % interval {timed.low:.3f} to {timed.high:.3f}, {timed.quality}, {timed.blocks} paired blocks"
    return f"{timed.ratio:.3f} of the base, {spread} ({where})"


def _template(name: str) -> jinja2.Template:
    source = resources.files("nas_attn").joinpath(f"templates/{name}.j2").read_text(encoding="utf-8")
    escaped = markdown if name.endswith(".md") else str  # the script holds a plain name and dotted ones
    environment = jinja2.Environment(keep_trailing_newline=True, undefined=jinja2.StrictUndefined, finalize=escaped)
    environment.filters["code"] = code
    return environment.from_string(source)
