"""How a worker times candidates of a study: beside the base, with the gate of its machine, which it calibrates where there is none yet.

A gate is kept in the study's folder, one a machine, device, backend and image, by what `latency.environment` says of them.
"""

import hashlib
import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from nas_attn import latency, mishap
from nas_attn.architecture import Architecture
from nas_attn.files import write_atomic
from nas_attn.outcome import Failure, Latency
from nas_attn.setup import Setup, threads

Wanted = Mapping[int, tuple[Architecture, nn.Module]]


def timed(setup: Setup, base: Callable[[], nn.Module], wanted: Wanted) -> dict[int, Latency | Failure]:
    """Latencies of one batch; if that fails, of each alone, so that one that lacks memory, or cannot be exported, spoils no other."""
    try:
        found = _latencies(setup, base(), [architecture for architecture, _ in wanted.values()], [model for _, model in wanted.values()])
        return dict(zip(wanted, found, strict=True))
    except Exception as error:
        mishap.require_device(error, setup.device)
        if len(wanted) > 1:
            return {i: answer for i, one in wanted.items() for answer in timed(setup, base, {i: one}).values()}
        failure = Failure(stage="latency", error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
        return dict.fromkeys(wanted, failure)


def shape(setup: Setup) -> latency.Shape:
    """The input that is timed."""
    size = setup.latency["imgsz"]
    return setup.latency["batch"], 3, size, size


def _latencies(setup: Setup, base: nn.Module, architectures: Sequence[Architecture], models: Sequence[nn.Module]) -> list[Latency]:
    options = {"shape": shape(setup), "device": setup.device, "threads": threads(), "backend": setup.latency["backend"]}
    candidates = [i for i, a in enumerate(architectures) if a.placements]
    chosen = [models[i] for i in candidates]

    def timed_by(gate: latency.Gate) -> list[Latency]:
        return latency.measure(
            base, chosen, gate=gate, blocks=setup.latency["blocks"], retries=setup.latency["retries"], seed=setup.seed, **options
        )

    gate, known = _gate(setup, base, options)
    found = timed_by(gate)
    if known and found and all(entry.quality != "gated" for entry in found):
        # A gate that was calibrated while the machine was busy refuses every quiet moment from then on. One calibrated now is taken only
        # if the base ran faster for it: otherwise it is this moment that is unquiet, and what was timed stays ungated.
        anew = _calibrate(setup, base, options)
        if anew.base_ms < gate.base_ms:
            gate = _keep(setup, anew, options)
            found = timed_by(gate)
    by_index = dict(zip(candidates, found, strict=True))
    return [by_index.get(i) or _of_base(gate, setup) for i in range(len(architectures))]


def _gate(setup: Setup, base: nn.Module, options: Mapping[str, Any]) -> tuple[latency.Gate, bool]:
    """The gate of this machine, and whether it was known from an earlier measurement of the study."""
    file = _file(setup, options)
    if file.is_file():
        return latency.Gate.from_dict(json.loads(file.read_text())), True
    return _keep(setup, _calibrate(setup, base, options), options), False


def _calibrate(setup: Setup, base: nn.Module, options: Mapping[str, Any]) -> latency.Gate:
    return latency.calibrate(base, runs=setup.latency["calibrations"], blocks=setup.latency["blocks"], seed=setup.seed, **options)


def _keep(setup: Setup, gate: latency.Gate, options: Mapping[str, Any]) -> latency.Gate:
    text = json.dumps(gate.to_dict())
    write_atomic(_file(setup, options), lambda target: target.write_text(text))
    return gate


def _file(setup: Setup, options: Mapping[str, Any]) -> Path:
    environment = latency.environment(options["device"], threads=options["threads"], backend=options["backend"])
    key = hashlib.sha256(json.dumps([environment, options["shape"]], sort_keys=True).encode()).hexdigest()[:12]
    return Path(setup.folder) / "base" / f"latency-gate-{key}.json"


def _of_base(gate: latency.Gate, setup: Setup) -> Latency:
    # The base beside itself is one by definition; what its calibration runs scattered is in the gate.
    return Latency(
        ratio=1.0,
        low=1.0,
        high=1.0,
        latency_ms=gate.base_ms,
        base_ms=gate.base_ms,
        quality="gated",
        blocks=setup.latency["blocks"],
        attempts=1,
        environment=gate.environment,
    )
