"""What every node must have is asked before anything is trained; and a search on nodes that share nothing but the data."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY_SPACE
from raylets import can_hide_folders, raylets

from nas_attn import nodes, plan
from nas_attn.errors import InputError, PoolError
from nas_attn.evaluate import serve
from nas_attn.record import load_study
from nas_attn.spec import SpaceSpec
from nas_attn.work import Done


class Nodes:
    """A pool of two nodes, of which the second answers as `second` changes it."""

    def __init__(self, second):
        self.second = second

    def everywhere(self, kind, payload):
        answer = serve(kind, payload)
        return [("one", Done("one", answer, None)), ("two", self.second(json.loads(answer)))]

    def require(self, kind, payload, judge):
        self.asked = (kind, payload, judge)


@pytest.fixture
def prepared(tmp_path, digits):
    (tmp_path / "tiny.yaml").write_text(TINY_SPACE)
    return plan.prepare(SpaceSpec.load(str(tmp_path / "tiny.yaml")), str(tmp_path / "tiny.yaml"), digits, tmp_path / "study", device="cpu")


def told(**changes):
    return lambda answer: Done("two", json.dumps(answer | changes), None)


def test_nodes_that_are_alike_are_accepted(prepared):
    pool = Nodes(told())
    nodes.check(pool, prepared)
    kind, payload, judge = pool.asked  # nodes that join later are held to the same
    assert judge(Done("three", serve(kind, payload), None)) is None
    assert "lacks 3 of 32" in judge(told(missing=3, first="7.png")(json.loads(serve(kind, payload))))
    assert judge(Done("three", None, "no disk")) == "cannot read the data set: no disk"


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (told(missing=3, first="/data/7.png"), r"two lacks 3 of 32 images, /data/7\.png first; copy or mount"),
        (told(equal=False), "two has other labels or image sizes"),
        (told(backend="ONNX Runtime is gone."), r"two cannot measure: ONNX Runtime is gone\."),
        (told(code="ultralytics 1.0"), r"two has ultralytics 1\.0 where this driver has nas-attn .*; install the same"),
        (lambda _: Done("two", None, "OSError: bad block", "disk"), "two cannot read the data set: OSError: bad block"),
    ],
)
def test_a_node_that_differs_is_named_with_what_it_lacks(prepared, second, message):
    with pytest.raises(InputError, match=message):
        nodes.check(Nodes(second), prepared)


@pytest.mark.parametrize("cause", ["node", "preempted", "crash", "memory"])
def test_a_node_that_is_lost_is_no_bad_input(prepared, cause):
    with pytest.raises(PoolError, match="but two was lost over it 3 times: worker died: gone; run the same command again") as caught:
        nodes.check(Nodes(lambda _: Done("two", None, "worker died: gone", cause)), prepared)
    assert caught.value.exit_code == 1


def test_work_that_reads_no_image_asks_for_code_and_backend_only(prepared):
    nodes.check_code(Nodes(told(missing=3, first="/data/7.png", equal=False)), prepared.setup)
    with pytest.raises(InputError, match=r"same code, but two has ultralytics 1\.0"):
        nodes.check_code(Nodes(told(code="ultralytics 1.0")), prepared.setup)
    with pytest.raises(InputError, match="two cannot measure: no provider"):
        nodes.check_code(Nodes(told(backend="no provider")), prepared.setup)


def test_a_node_tells_what_it_lacks(prepared, digits):
    task = {"setup": json.loads(json.dumps(prepared.setup, default=lambda s: {n: getattr(s, n) for n in s.__dataclass_fields__}))}
    task |= {"train": prepared.train, "scored": prepared.scored}
    whole = json.loads(serve("check", json.dumps(task)))
    assert (whole["missing"], whole["first"], whole["equal"]) == (0, None, True)
    gone = str(digits.parent / "absent.png")
    lacking = json.loads(serve("check", json.dumps(task | {"train": [gone, *prepared.train[1:]]})))
    assert (lacking["missing"], lacking["first"], lacking["equal"]) == (1, gone, False)
    other = json.loads(serve("check", json.dumps(task | {"train": prepared.train[1:]})))
    assert (other["missing"], other["equal"]) == (0, False)


# -- real nodes ------------------------------------------------------------------------------------------------------------------------


def search(cluster, folder, digits, *options):
    space = folder / "tiny.yaml"
    space.write_text(TINY_SPACE)
    command = [str(Path(sys.executable).with_name("nas-attn")), "search", str(space), "--data", str(digits), "--out", str(folder / "study")]
    command += ["--trials", "3", "--device", "cpu", "--sampler", "random", "--address", cluster.address, "--workers", "2", *options]
    return subprocess.run(command, env=os.environ | cluster.environment, capture_output=True, text=True, timeout=400, check=False)


@pytest.mark.slow
@pytest.mark.skipif(not can_hide_folders(), reason="hiding a folder from a process takes root and mount namespaces")
def test_a_search_on_nodes_that_do_not_see_the_studys_folder(tmp_path, digits):
    study = tmp_path / "study"
    study.mkdir()
    with raylets(hidden=[[study]]) as cluster:
        done = search(cluster, tmp_path, digits)
        assert done.returncode == 0, done.stderr
        assert all(process.poll() is None for process in cluster.processes), "a driver leaves a cluster that it joined as it was"
    snapshot = load_study(study)
    assert [trial.state for trial in snapshot.trials] == ["COMPLETE"] * 3
    for trial in snapshot.trials:
        for job, outcome in trial.results:
            assert json.loads((job.folder(study) / "outcome.json").read_text())["outcome"]["map50_95"] == outcome.map50_95
    assert list((study / "base").glob("latency-gate-*.json"))
    assert (study / "base" / "weights.pt").is_file()
    assert list(study.glob("trials/*/*/*/weights.pt"))
    assert not (study / "outside").exists()


@pytest.mark.slow
@pytest.mark.skipif(not can_hide_folders(), reason="hiding a folder from a process takes root and mount namespaces")
def test_a_node_without_the_data_ends_the_search_before_it_begins(tmp_path, digits):
    with raylets(hidden=[[digits.parent]]) as cluster:
        done = search(cluster, tmp_path, digits)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "lacks 32 of 32 images" in line
    assert not (tmp_path / "study" / "study.db").exists()
