"""How well `latency_ratio` repeats: the same candidate measured ten times on an idle machine, and ten times beside a training.

    python tests/benchmarks/latency_repeatability.py --out results

It writes one CSV with a line a measurement, named by its protocol, and prints the spread of the gated ratio beside that of a plain stop
watch (the median of as many forward passes of the candidate alone). The gate is calibrated once, in the idle part, so run it on a machine
that has nothing else to do; each part takes some minutes. Deviations are from the idle median of the same quantity.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import nn

from nas_attn import latency
from nas_attn.architecture import Architecture, Placement
from nas_attn.cost import deployed
from nas_attn.detector import build, insert_architecture, load_base
from nas_attn.records import record

TRAINING = """
import os, sys, torch
from torch import nn
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {int(sys.argv[1])})
torch.set_num_threads(1)
layers = [nn.Conv2d(16, 64, 3, padding=1), nn.BatchNorm2d(64), nn.SiLU(), nn.Conv2d(64, 64, 3, padding=1), nn.AdaptiveAvgPool2d(1)]
model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
images, labels = torch.rand(16, 16, 80, 80), torch.randint(0, 10, (16,))
print("ready", flush=True)
parent = os.getppid()
while os.getppid() == parent:  # ends also when the measurement was killed
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement: the paired ratio with its gate, and what a stop watch said right after."""

    condition: str
    number: int
    ratio: float
    low: float
    high: float
    quality: str
    attempts: int
    blocks: int
    seconds: float
    stopwatch_ms: float


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="yolo11n.yaml")
    parser.add_argument("--module", default="LSKA", help="attention module of the candidate, with its default hyperparameters")
    parser.add_argument("--layer", type=int, default=4, help="row of the base after which it stands")
    parser.add_argument("--imgsz", type=int, default=160)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--measurements", type=int, default=10)
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--calibrations", type=int, default=30)
    parser.add_argument("--retries", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("results"))
    return parser.parse_args(arguments)


def models(options: argparse.Namespace) -> tuple[nn.Module, nn.Module]:
    """The base and the candidate, both with new weights: their values do not change the time."""
    graph, scale = load_base(options.base)
    placement = Placement(options.layer, options.module, record(options.module).complete({}))
    edit = insert_architecture(graph, Architecture(options.base, (placement,)))
    return build(graph, scale), build(edit.graph, scale)


@contextmanager
def training() -> Iterator[None]:
    """A training of a small network on the last core, for as long as the context is open."""
    command = [sys.executable, "-c", TRAINING, str((os.cpu_count() or 1) - 1)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout is None or process.stdout.readline().strip() != "ready":
                raise RuntimeError("The training beside the measurement must start, but its process ended.")
            yield
        finally:
            process.kill()


def stopwatch_ms(model: nn.Module, image_BCHW: torch.Tensor, passes: int) -> float:
    """What most people report: the median of some forward passes of the candidate alone, after a short warm-up."""
    times = []
    with torch.inference_mode():
        for _ in range(10 + passes):
            start = time.perf_counter_ns()
            model(image_BCHW)
            if image_BCHW.is_cuda:
                torch.cuda.synchronize(image_BCHW.device)
            times.append((time.perf_counter_ns() - start) / 1e6)
    return statistics.median(times[10:])


def series(condition: str, base: nn.Module, candidate: nn.Module, gate: latency.Gate, options: argparse.Namespace) -> Iterator[Row]:
    """Every measurement of one condition, as it comes."""
    shape = (1, 3, options.imgsz, options.imgsz)
    alone, image_BCHW = deployed(candidate).to(options.device), torch.rand(shape).to(options.device)
    torch.set_num_threads(options.threads)
    for number in range(1, options.measurements + 1):
        start = time.perf_counter()
        (answer,) = latency.measure(
            base,
            [candidate],
            gate=gate,
            shape=shape,
            device=options.device,
            threads=options.threads,
            blocks=options.blocks,
            retries=options.retries,
            seed=number,
        )
        yield Row(
            condition=condition,
            number=number,
            ratio=answer.ratio,
            low=answer.low,
            high=answer.high,
            quality=answer.quality,
            attempts=answer.attempts,
            blocks=answer.blocks,
            seconds=time.perf_counter() - start,
            stopwatch_ms=stopwatch_ms(alone, image_BCHW, 3 * options.blocks),
        )


def table(rows: Sequence[Row]) -> str:
    """The spread of each quantity in each condition, beside the idle median."""
    lines = [f"{'condition':<10}{'quantity':<26}{'n':>4}{'min':>10}{'median':>10}{'max':>10}{'sd':>10}{'max dev. from idle':>20}"]
    idle = [row for row in rows if row.condition == "idle"]
    for condition in ("idle", "training"):
        here = [row for row in rows if row.condition == condition]
        gated = [row.ratio for row in here if row.quality == "gated"]
        lines.append(spread(condition, "ratio, gated", gated, [row.ratio for row in idle]))
        lines.append(spread(condition, "ratio, all", [row.ratio for row in here], [row.ratio for row in idle]))
        lines.append(spread(condition, "stop watch, ms", [row.stopwatch_ms for row in here], [row.stopwatch_ms for row in idle]))
    return "\n".join(lines)


def spread(condition: str, quantity: str, values: Sequence[float], idle: Sequence[float]) -> str:
    """One line of the table."""
    if not values:
        return f"{condition:<10}{quantity:<26}{0:>4}"
    level = statistics.median(idle)
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    deviation = max(abs(value / level - 1.0) for value in values)
    numbers = "".join(f"{value:>10.4f}" for value in (min(values), statistics.median(values), max(values), sd))
    return f"{condition:<10}{quantity:<26}{len(values):>4}{numbers}{deviation:>19.2%}"


def output_file(options: argparse.Namespace) -> Path:
    """A name that tells the protocol: what was measured, on what input, how often."""
    device = options.device.replace(":", "")
    parts = [
        "latency-repeatability",
        f"{Path(options.base).stem}-{options.module}@{options.layer}",
        f"img{options.imgsz}-b1-{device}-t{options.threads}",
        f"n{options.measurements}-blocks{options.blocks}-cal{options.calibrations}-retries{options.retries}",
    ]
    return Path(options.out) / f"{'-'.join(parts)}.csv"


def main(arguments: Sequence[str] | None = None) -> None:
    """Calibrate, measure idle and beside a training, write every measurement, print the spread."""
    options = parse(arguments)
    base, candidate = models(options)
    shape = (1, 3, options.imgsz, options.imgsz)
    where = {"shape": shape, "device": options.device, "threads": options.threads, "blocks": options.blocks}
    gate = latency.calibrate(base, runs=options.calibrations, **where)
    sys.stdout.write(f"gate: base {gate.base_ms:.3f} ms, deviation {gate.deviation:.2%}, IQR {gate.iqr:.2%}, {gate.runs} runs\n")
    file = output_file(options)
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    with file.open("w", newline="", encoding="utf-8") as stream:
        for key, value in {**gate.environment, **asdict(gate)}.items():
            stream.write(f"# {key}: {value}\n" if key != "environment" else "")
        writer = csv.DictWriter(stream, [field.name for field in fields(Row)])
        writer.writeheader()
        for condition, beside in (("idle", nullcontext()), ("training", training())):
            with beside:
                for row in series(condition, base, candidate, gate, options):
                    rows.append(row)
                    writer.writerow(asdict(row))
                    stream.flush()
                    sys.stdout.write(
                        f"{condition} {row.number}: ratio {row.ratio:.4f} {row.quality}, stop watch {row.stopwatch_ms:.2f} ms\n"
                    )
    sys.stdout.write(f"\n{table(rows)}\n\n{file}\n")


if __name__ == "__main__":
    os.environ.setdefault("YOLO_OFFLINE", "1")
    main()
