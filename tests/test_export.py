"""Law 8: an export builds in a process that knows only Ultralytics and `import nas_attn`, and is the trained candidate, bit for bit."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from snapshots import base, placement, trial
from snapshots import snapshot as fakes

from nas_attn import detector, facts, weights
from nas_attn import export as export_module
from nas_attn.architecture import Architecture, Placement
from nas_attn.errors import InputError, StudyError
from nas_attn.export import Cleaner, Exported, best_job, export, keep_weights, kept_for_score
from nas_attn.outcome import Snapshot, Trial, outcome_file_text
from nas_attn.plan import load_setup
from nas_attn.record import load_study
from nas_attn.records import record

pytestmark = pytest.mark.slow  # they share one small real study

FRESH = """
import sys
import nas_attn
import torch
from ultralytics import YOLO
model = YOLO(sys.argv[1]).model
model.load_state_dict(torch.load(sys.argv[2], weights_only=True))
image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
with torch.inference_mode():
    torch.save(model.eval()(image)[0], sys.argv[3])
print(sum(p.numel() for p in model.parameters()))
"""


@pytest.fixture(scope="module")
def snapshot(tiny_study: Path) -> Snapshot:
    return load_study(tiny_study)


@pytest.fixture(scope="module")
def candidate(snapshot: Snapshot) -> Trial:
    return next(t for t in snapshot.trials if t.architecture.placements and t.values)


@pytest.fixture(scope="module")
def exported(snapshot: Snapshot, candidate: Trial, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(snapshot, load_setup(snapshot.folder), candidate, tmp_path_factory.mktemp("export"), reason="Because of a test.")


def test_an_export_is_the_trained_candidate_in_a_fresh_process(
    snapshot: Snapshot, candidate: Trial, exported: Exported, tmp_path: Path
) -> None:
    assert exported.weights is not None
    command = [sys.executable, "-c", FRESH, str(exported.yaml_file), str(exported.weights), str(tmp_path / "out.pt")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    setup = load_setup(snapshot.folder)
    edit = detector.insert_architecture(setup.yaml_graph(), candidate.architecture)
    model = detector.build(edit.graph, setup.scale, len(setup.names))
    job, _ = best_job(candidate)
    model.load_state_dict(torch.load(job.folder(snapshot.folder) / "weights.pt", weights_only=True))
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model.eval()(image)[0]
    assert torch.equal(torch.load(tmp_path / "out.pt", weights_only=True), expected)
    assert int(run.stdout.split()[-1]) == sum(p.numel() for p in model.parameters())


def test_its_files_say_what_it_is(candidate: Trial, exported: Exported) -> None:
    assert {f.name for f in exported.folder.iterdir()} == {exported.yaml_file.name, "weights.pt", "card.md", "train.py"}
    assert exported.yaml_file.name == f"yolo11n-{candidate.architecture.digest()}.yaml"
    text = exported.yaml_file.read_text()
    config = yaml.safe_load(text)
    assert (config["nc"], list(config["scales"])) == (4, ["n"])
    assert f"trial {candidate.number}" in text.splitlines()[1]
    assert text.splitlines()[2] == "# Because of a test."
    names = [row[2] for row in config["backbone"] + config["head"]]
    assert sum(name.startswith("nas_attn.") for name in names) == len(candidate.architecture.placements)
    card = (exported.folder / "card.md").read_text()
    for expected in ("Because of a test.", candidate.architecture.digest(), "search_val", "95 % interval", "torch", "nas-attn search"):
        assert expected in card
    assert f"{facts.metric(candidate, 'map50_95'):.4f}" in card


def test_another_scale_builds_without_weights_and_says_so(snapshot: Snapshot, candidate: Trial, tmp_path: Path) -> None:
    result = export(snapshot, load_setup(snapshot.folder), candidate, tmp_path, scale="s")
    assert result.weights is None
    assert result.yaml_file.name == f"yolo11s-{candidate.architecture.digest()}.yaml"
    assert "scale differs" in (tmp_path / "card.md").read_text()
    graph, scale = detector.load_base(str(result.yaml_file))
    assert scale == "s"
    assert sum(p.numel() for p in detector.build(graph, scale).parameters()) > 9e6


def test_a_fraction_follows_the_channels_of_another_scale(snapshot: Snapshot, tmp_path: Path) -> None:
    measured = next(t for t in snapshot.trials if t.values)
    wanted = Architecture("yolo11n.yaml", (Placement(4, "DoubleAttention", record("DoubleAttention").complete({"c_m": 0.25})),))
    result = export(snapshot, load_setup(snapshot.folder), replace(measured, architecture=wanted), tmp_path, scale="s")
    model = detector.build(*detector.load_base(str(result.yaml_file)))
    assert [p.shape[0] for n, p in weights.layers(model)[5].named_parameters() if n == "gather.weight" or n.endswith("gate_bias")]
    assert weights.layers(model)[5].gate_bias.numel() == 256


def test_a_scale_that_the_base_lacks_is_refused(snapshot: Snapshot, candidate: Trial, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be one of"):
        export(snapshot, load_setup(snapshot.folder), candidate, tmp_path, scale="q")


def test_a_base_whose_name_only_looks_like_a_scale_exports(snapshot: Snapshot, tmp_path: Path) -> None:
    graph, scale = detector.load_base("yolov9s.yaml")
    assert scale == ""
    setup = replace(load_setup(snapshot.folder), base="yolov9s.yaml", graph=graph.to_yaml(), scale=scale)
    base = replace(snapshot.trials[0], architecture=Architecture("yolov9s.yaml"))
    folder = best_job(snapshot.trials[0])[0].folder(snapshot.folder).relative_to(snapshot.folder)
    moved = replace(snapshot, folder=tmp_path)
    model = detector.build(graph, scale, len(setup.names))
    target = tmp_path / folder
    target.mkdir(parents=True)
    torch.save(dict(model.state_dict()), target / "weights.pt")
    (target / "outcome.json").write_text("{}")
    result = export(moved, setup, base, tmp_path / "out")
    assert result.yaml_file.name == f"yolov9s-{base.architecture.digest()}.yaml"
    detector.load_model(result.yaml_file)


def test_a_folder_with_another_yaml_is_refused(snapshot: Snapshot, candidate: Trial, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("nc: 1\n")
    with pytest.raises(InputError, match="exactly one YAML"):
        export(snapshot, load_setup(snapshot.folder), candidate, tmp_path)


def test_a_trial_without_a_score_or_without_weights_is_refused(snapshot: Snapshot, candidate: Trial, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="Only a measured trial"):
        export(snapshot, load_setup(snapshot.folder), replace(candidate, results=(), kind="failure"), tmp_path)
    moved = replace(snapshot, folder=tmp_path)
    with pytest.raises(StudyError, match="Weights are kept for the front"):
        export(moved, load_setup(snapshot.folder), candidate, tmp_path)


def test_weights_of_the_front_and_the_best_stay_and_the_rest_goes(snapshot: Snapshot, tmp_path: Path) -> None:
    base, first, second = snapshot.trials
    low = {"map50_95": 0.0, "latency_ratio": 9.0}
    high = {"map50_95": 1.0, "latency_ratio": 1.5}
    at_work = Architecture("yolo11n.yaml", (Placement(6, "LIA", record("LIA").complete({})),))
    running = replace(first, number=3, state="RUNNING", kind=None, values=None, architecture=at_work)
    here = replace(snapshot, folder=tmp_path, trials=(base, replace(first, values=low), replace(second, values=high), running))
    for entry in here.trials:
        target = tmp_path / "trials" / entry.architecture.digest() / "job" / "1" / "weights.pt"
        target.parent.mkdir(parents=True)
        target.write_bytes(b"")
    assert keep_weights(here, best=1) == 1
    left = {f.parents[2].name for f in tmp_path.glob("trials/*/*/*/weights.pt")}
    assert left == {base.architecture.digest(), second.architecture.digest(), at_work.digest()}


def test_a_fifth_of_many_trials_keeps_its_weights_while_a_search_runs(tmp_path: Path) -> None:
    """So that what a model of all trials recommends can be exported, whatever its own luck was."""

    def told(number: int) -> Trial:
        row = [4, 6, 9, 10, 13, 16, 19, 22][number % 8]
        one = trial(number, [placement(row, number // 8)], 0.3 + number / 1e4, 1.1)
        weights = tmp_path / "trials" / one.architecture.digest() / "job" / "1" / "weights.pt"
        weights.parent.mkdir(parents=True, exist_ok=True)
        weights.write_bytes(b"")
        return one

    first = told(1)
    cleaner = Cleaner(replace(fakes(base(), first), folder=tmp_path))
    for number in range(2, 48):
        cleaner.clean([told(number)])
    left = {f.parents[2].name for f in tmp_path.glob("trials/*/*/*/weights.pt")}
    assert len(left) == kept_for_score(48) == 9
    assert kept_for_score(200) == 40


@pytest.mark.parametrize(("whole", "told"), [((1, 2), 2), ((1,), 1)])
def test_weights_are_those_of_the_attempt_that_was_told(
    snapshot: Snapshot, candidate: Trial, tmp_path: Path, whole: tuple[int, ...], told: int
) -> None:
    """The second attempt was told; the first, which was thought lost, came to its end later, or was found by the second."""
    job, outcome = candidate.results[0]
    second = replace(candidate, results=((replace(job, attempt=2), outcome),))
    moved = replace(snapshot, folder=tmp_path / "study")
    for attempt in whole:
        folder = replace(job, attempt=attempt).folder(moved.folder)
        folder.mkdir(parents=True)
        (folder / "outcome.json").write_text(outcome_file_text(job, outcome))
        torch.save({"attempt": torch.tensor(attempt)}, folder / "weights.pt")
    found = export_module._copy_weights(moved, second, tmp_path)
    assert torch.load(found, weights_only=True)["attempt"] == told
