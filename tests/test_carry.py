"""Files that travel: what a task may read goes along, paths have places, what was written comes back, nothing leaves the folder."""

import json
from pathlib import Path

import pytest

from nas_attn.carry import MARK, Annex, deliver, leave_mark, needed, place, sees
from nas_attn.errors import PoolError


@pytest.fixture
def study(tmp_path):
    folder = tmp_path / "study"
    for name, text in {
        "base/weights.pt": "w",
        "lists/train.txt": "/data/1.png",
        "trials/d/j/1/checkpoint.pt": "c",
        "study.db": "s",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def annex(study):
    made = Annex(str(study))
    yield made
    for file in sorted(made.root.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    made.root.rmdir()


def test_a_mark_tells_whether_a_folder_is_the_drivers(tmp_path):
    mark = leave_mark(tmp_path / "study")
    assert sees(str(tmp_path / "study"), mark)
    assert not sees(str(tmp_path / "study"), "another")
    assert not sees(str(tmp_path / "absent"), mark)
    again = leave_mark(tmp_path / "study")
    assert again != mark
    assert (tmp_path / "study" / MARK).read_text() == again


def test_base_and_lists_always_travel_and_what_is_named_does_too(study, tmp_path):
    weights, image = tmp_path / "start.pt", tmp_path / "1.png"
    weights.write_text("s")
    image.write_text("i")
    payload = json.dumps({"setup": {"folder": str(study)}, "images": [str(image)], "start": str(study / "trials/d/j/1/checkpoint.pt")})
    always = {str(study / "base/weights.pt"), str(study / "lists/train.txt")}
    assert set(needed("{}", study)) == always
    assert set(needed(payload, study, [str(weights)])) == {*always, str(weights), str(study / "trials/d/j/1/checkpoint.pt")}
    assert set(needed(json.dumps({"folder": str(study / "trials/d")}), study)) == {*always, str(study / "trials/d/j/1/checkpoint.pt")}
    assert set(needed("{}", study, [str(tmp_path / "absent.pt")])) == always


def test_every_path_has_one_place():
    assert place("/a/study/base/weights.pt", "/a/study") == "base/weights.pt"
    assert place("/a/study", "/a/study") == "."
    first, second = place("/x/w.pt", "/a/study"), place("/y/w.pt", "/a/study")
    assert first != second
    assert first.startswith("outside/")
    assert first.endswith("/w.pt")
    assert place("/a/study2/w.pt", "/a/study").startswith("outside/")


def test_a_task_works_on_its_own_copies_and_brings_back_what_it_wrote(study, annex):
    files = {str(study / "base/weights.pt"): b"w", "/elsewhere/start.pt": b"s"}
    payload = {"folder": str(study), "start": "/elsewhere/start.pt", "list": ["/data/1.png", 3, None], "text": str(study)[1:]}

    def answer(ours):
        got = json.loads(ours)
        assert got["folder"] == str(annex.root)
        assert got["list"] == ["/data/1.png", 3, None]
        assert got["text"] == payload["text"]
        assert (annex.root / "base/weights.pt").read_bytes() == b"w"
        assert Path(got["start"]).read_bytes() == b"s"
        new = annex.root / "trials/e/j/1/outcome.json"
        new.parent.mkdir(parents=True)
        new.write_text("{}")
        return 7

    given, written = annex.work(answer, json.dumps(payload), files)
    assert given == 7
    assert written == {"trials/e/j/1/outcome.json": b"{}"}
    assert not (annex.root / "trials").exists()  # it has travelled
    assert (annex.root / "base/weights.pt").is_file()


def test_what_did_not_change_is_not_written_again_and_does_not_come_back(study, annex):
    files = {str(study / "base/weights.pt"): b"w"}
    annex.work(lambda _: None, "{}", files)
    written_at = (annex.root / "base/weights.pt").stat().st_mtime_ns
    assert annex.work(lambda _: None, "{}", files) == (None, {})
    assert (annex.root / "base/weights.pt").stat().st_mtime_ns == written_at  # workers cache tensors by it
    annex.work(lambda _: None, "{}", {str(study / "base/weights.pt"): b"another"})
    assert (annex.root / "base/weights.pt").read_bytes() == b"another"


def test_what_comes_back_lands_whole_and_json_last(study, monkeypatch):
    order = []
    monkeypatch.setattr("nas_attn.carry.write_atomic", lambda file, *_: order.append(file.name))
    deliver(study, {"trials/d/j/1/outcome.json": b"{}", "trials/d/j/1/weights.pt": b"w", "base/fit.json": b"{}"})
    assert order == ["weights.pt", "fit.json", "outcome.json"]
    monkeypatch.undo()
    deliver(study, {"trials/d/j/2/outcome.json": b"{}"})
    assert (study / "trials/d/j/2/outcome.json").read_bytes() == b"{}"


@pytest.mark.parametrize(
    "name",
    [
        "../escape.json",
        "/etc/passwd",
        "study.db",
        "trials/../../escape",
        "link/file",
        "trials/a\0b",
        "ledger/trial-00000.json",
        "trials/.x",
        "trials//x",
        7,
    ],
)
def test_nothing_lands_outside_the_studys_own_folders(study, tmp_path, name):
    (study / "link").symlink_to(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(PoolError, match="own folders only"):
        deliver(study, {"trials/ok.json": b"{}", name: b"x"})
    assert sorted(tmp_path.rglob("*")) == before
    assert (study / "study.db").read_text() == "s"
