"""What the command line prints: tables, summaries, findings."""

import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nas_attn import facts, listing, pick, posterior
from nas_attn.errors import printable
from nas_attn.records import record

Row = dict[str, Any]


def rows(console: Console, found: list[Row], columns: dict[str, str], as_json: bool) -> None:
    """A table of the chosen columns (title and key), or all of it as JSON."""
    if as_json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
        return
    table = Table(*columns)
    for row in found:
        table.add_row(*(_cell(row[key]) for key in columns.values()))
    _wide(console).print(table)


def mechanisms(console: Console, found: list[Row], where: str) -> None:
    """The table of mechanisms, three lines each: one a size. Titles of papers are in the JSON and in docs/modules.md."""
    table = Table("module", "hyperparameters", "C x map", "k params", "GMACs", "CPU ms", "ONNX", "needs", "venue, arXiv", show_lines=True)
    for row in found:
        costs = row["costs"]
        table.add_row(
            f"{row['name']}\n{row['family']}",
            "\n".join(f"{name} {_cell(choices)}" for name, choices in row["hyperparameters"].items()),
            "\n".join(f"{cost['channels']} x {cost['side']}²" for cost in costs),
            *("\n".join(listing.number(cost[key], scale) for cost in costs) for key, scale in _COSTS),
            row["onnx"],
            "\n".join(row["needs"]),
            f"{row['venue']}\n{row['arxiv']}",
        )
    wide = _wide(console)
    wide.print(table)
    wide.print(where, markup=False, soft_wrap=True)


_COSTS = (("params_m", 1e3), ("gmacs", 1.0), ("cpu_ms", 1.0))


def conformance(console: Console, name: str) -> bool:
    """Hold a module to the contract, printing each check of its defaults and what any of its variants breaks; whether all holds."""
    from nas_attn import contract  # loads torch, which no other table needs

    entry, checks, sound = record(name), contract.all_checks(), True
    for number, params in enumerate(contract.variants(entry)):
        given = ", ".join(f"{key}={value}" for key, value in params.items())
        # Compiling and exporting take seconds, and other values hardly ever matter to them.
        for check, findings in contract.run(contract.Case(name, params), contract.CHECKS if number else checks).items():
            sound = sound and not findings
            for line in findings or ([] if number else ["holds"]):
                console.print(f"{name}({given}): {check}: {line}", markup=False, soft_wrap=True)
    if left_out := sorted(contract.SLOW.keys() - checks.keys()):
        console.print(f"Not checked, because onnx, onnxscript and onnxruntime are not all installed: {', '.join(left_out)}")
    if sound:
        console.print(f"{name}: the contract holds.", markup=False)
    return sound


def summary(console: Console, snapshot: Any, out: Path) -> None:
    """The front, the noise and the controls of a study, and what to run next."""
    front = facts.front_trials(snapshot)
    title = f"Pareto front: {len(front)} of {len(snapshot.trials)} trials"
    table = Table("trial", "architecture", "mAP50-95", "latency ratio", title=title)
    for entry in front:
        values = entry.values or {}
        table.add_row(
            str(entry.number), escape(printable(entry.architecture)), f"{values['map50_95']:.4f}", f"{values['latency_ratio']:.3f}"
        )
    console.print(table)
    _recommended(console, snapshot)
    sigma = facts.sigma(snapshot)
    if sigma is not None:
        console.print(f"sigma, the noise of one score over the base's seeds: {sigma:.4f} mAP50-95")
    for control in facts.controls(snapshot):
        verdict = "separated" if control.separated else "NOT separated" if control.separated is not None else "unknown"
        by = "no score" if control.sigmas is None else f"{control.gain:+z.4f} mAP50-95, {control.sigmas:+.1f} sigma"
        console.print(f"positive control {printable(control.label)}: {by} ({verdict})", markup=False)
    where = shlex.quote(str(out))
    console.print(f"Report: {out / 'report.html'}", markup=False)
    console.print(f"Next: nas-attn pick {where}; nas-attn export {where} --to winner", markup=False)


def _recommended(console: Console, snapshot: Any) -> None:
    """What the model of all trials expects of the front's members, and what it would take."""
    believed = posterior.believe(snapshot)
    if believed is None:
        return
    table = Table("trial", "mAP50-95 (90 %)", "gain (90 %)", "latency ratio", "P(on the front)", "P(beats base)", title=_MODEL)
    for member in believed.front:
        claim, is_base = member.claim, not member.trial.architecture.placements
        table.add_row(
            str(member.trial.number),
            f"{claim.mean:.4f} ({claim.low:.4f} to {claim.high:.4f})",
            "base" if is_base else f"{claim.gain:+z.4f} ({claim.gain_low:+z.4f} to {claim.gain_high:+z.4f})",
            f"{facts.latency(member.trial):.3f}",
            f"{claim.non_dominated:.2f}",
            "" if is_base else f"{claim.beats_base:.2f}",
        )
    _wide(console).print(table)
    if set(snapshot.objectives) == {"map50_95", "latency_ratio"}:
        console.print(pick.pick(snapshot, "best", posterior=believed).reason, markup=False, soft_wrap=True)


_MODEL = "Expected by a model of all trials (recommended.csv)"


def _wide(console: Console) -> Console:
    width = shutil.get_terminal_size().columns if "COLUMNS" in os.environ or console.is_terminal else 140
    return Console(highlight=False, width=width)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_cell(item)}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(_cell(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else escape(printable(value))
