"""A real small search whose worker, node, driver and head are killed, one after the other: real trainings, through the command line.

    python tests/benchmarks/real_faults.py --data ../shared/data/bccd320/data.yaml --trials 8 --out results

Three raylets on this machine, two workers. Writes `real-faults-<data>-t<trials>.csv`, a line a fault, and prints what was promised,
counted; ends with exit code 1 if a promise was broken.
"""

import argparse
import csv
import random
import sys
from dataclasses import asdict, fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import fault_run
from fault_cluster import cluster
from fault_kinds import FAULTS as KINDS
from fault_nodes import notice
from fault_rows import Row, Verdict, shown
from fault_run import Run, place
from kill_and_resume import finished_attempts

from nas_attn.record import load_study

FAULTS = ("worker killed", "raylet killed", "driver killed", "node preempted", "actor ended", "head lost")
SPACE = """
base: yolo11n.yaml
sites: [P3, P4, P5, neck_P4, neck_P3_out]
max_placements: 2
modules:
  LSKA: {k_size: [7, 11]}
  LIA: {f: [8, 16]}
  ECA:
  CoordAtt:
base_fit: {epochs: 4, imgsz: 128, batch: 16, lr0: 0.002}
proxy: {epochs: 3, imgsz: 128, batch: 16}
latency: {blocks: 6, calibrations: 3, retries: 1}
base_seeds: 2
controls: false
"""


def _preempted(run: Run, rng: random.Random) -> None:
    """As `fault_nodes.node_preempted`, whatever the node trains."""
    node = rng.choice(run.nodes.nodes[1:])
    run.note(f"notice of {notice(run, node)}")
    fault_run.time.sleep(5)
    run.nodes.end(node)
    run.nodes.add(run.cpus)


class RealRun(Run):
    """As `Run`, with `nas-attn search` in the place of the fake evaluator's driver."""

    data_yaml: Path = Path()

    def command(self) -> list[str]:
        (self.root / "space.yaml").write_text(SPACE)
        words = [str(Path(sys.executable).with_name("nas-attn")), "search", str(self.root / "space.yaml"), "--data", str(self.data_yaml)]
        words += ["--trials", str(self.trials), "--out", str(self.folder), "--address", self.nodes.address, "--workers", "2"]
        return [*words, "--device", "cpu", "--sampler", "random"]

    def trained_by(self) -> dict[int, str]:
        return {pid: str(pid) for node in self.nodes.nodes for pid in node.workers("ray::Worker.run")}

    def _begun(self) -> int:
        return len([*self.folder.glob("trials/*/*/*")])

    def _first_sign(self, fault: str) -> None:  # noqa: ARG002
        return None

    def _judge(self, began: float) -> Verdict:
        self.remember()
        snapshot = load_study(self.folder)
        twice = sum(count > 1 for count in finished_attempts(self.folder).values())
        digests = [trial.architecture.digest() for trial in snapshot.trials]
        failed = [str(trial.verdict) for trial in snapshot.trials if trial.kind == "failure"]
        return Verdict(
            fault=self.name,
            seed=self.seed,
            faults=len(self.faults),
            hits=shown(self.faults, self.hits),
            trials=len(digests),
            drivers=self.drivers,
            attempts=self._begun(),
            seconds=round(fault_run.time.monotonic() - began, 1),
            lost_told=self.lost,
            left_running=sum(trial.state == "RUNNING" for trial in snapshot.trials),
            trained_twice=twice,
            other_digests=len(digests) - len(set(digests)),
            broken="; ".join([*self.broken, *failed])[:300],
        )


def main() -> int:
    """Run the protocol; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("results"))
    given = parser.parse_args()
    with cluster(cpus=1) as nodes, place(small=False) as root:
        run = RealRun(name="real", faults=FAULTS, seed=0, nodes=nodes, root=root, cpus=1, first=1, apart=2)
        run.held, run.kinds = False, KINDS | {"node preempted": _preempted}
        run.trials, run.data_yaml = given.trials, given.data.resolve()
        try:
            rows, verdict = run.go()
        finally:
            sys.stdout.write(run.log.read_text()[-6000:])
    given.out.mkdir(parents=True, exist_ok=True)
    with (given.out / f"real-faults-{given.data.resolve().parent.name}-t{given.trials}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    sys.stdout.write(f"{verdict}\n")
    return 0 if verdict.good else 1


if __name__ == "__main__":
    sys.exit(main())
