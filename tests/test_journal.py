"""Journal files: what a crash leaves at their end is cut off, under the lock and kept; what is broken elsewhere is refused."""

import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from fake_evaluator import executions, measured, setup
from study_targets import BASE, RECIPE, Shelf, job_of, load_study, open_record, optunas_storage, space, tell_next

from nas_attn import files, journal, storage, study
from nas_attn.errors import NasAttnError, StudyError
from nas_attn.pool import InlinePool
from nas_attn.rebuild import rebuild
from nas_attn.spec import SpaceSpec


@pytest.fixture(autouse=True)
def _in_a_journal(monkeypatch):
    monkeypatch.setattr(Shelf, "url", "journal://{folder}/study.journal")
    monkeypatch.setattr(files, "_fsync", lambda _: None)


def _run(folder, trials):
    folder.mkdir(exist_ok=True)
    spec = SpaceSpec.from_dict({"base": BASE, "sites": ["P3"], "modules": {"LIA": {"f": [8]}}, "base_seeds": 1, "controls": False})
    return study.run(
        folder, spec, space(), setup(folder), InlinePool("fake_evaluator:serve"), trials=trials, sampler="random", storage=Shelf.at(folder)
    )


def _refusal(action):
    """What it is refused with, if it is."""
    try:
        action()
    except StudyError as error:
        return str(error)
    return ""


def _copied(origin, folder):
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(origin, folder)
    return folder / "study.journal"


def _found(record):
    return [(trial.number, trial.state, trial.architecture, trial.values) for trial in record.trials.values()]


def test_a_write_torn_at_any_byte_is_cut_off_and_the_search_asks_the_same(tmp_path):
    origin, folder = tmp_path / "origin", tmp_path / "a"
    with open_record(origin) as record:
        tell_next(record, measured(0.3))
        before = _found(record)
        whole = (origin / "study.journal").stat().st_size
    shutil.copytree(origin, tmp_path / "next")
    (tmp_path / "next" / "study.json").write_text((origin / "study.json").read_text())
    with open_record(tmp_path / "next") as record:
        wanted = record.ask(RECIPE)
        record.count(1, "attempts", "measure")
    lines = (tmp_path / "next" / "study.journal").read_bytes()[whole:].splitlines(keepends=True)
    step = len(lines[0]) // 8
    cuts = [1, *range(step, len(lines[0]), step), len(lines[0]) - 1, *range(len(lines[0]) + 1, len(lines[0] + lines[1]), step)]
    for cut in cuts:
        file = _copied(origin, folder)
        torn = (lines[0] + lines[1])[:cut]
        with file.open("ab") as opened:
            opened.write(torn)
        kept = torn.rpartition(b"\n")[0]
        if kept:  # the ledger follows the storage
            shutil.copytree(tmp_path / "next" / "ledger", folder / "ledger", dirs_exist_ok=True)
        reader = load_study(folder)  # of a tail that is being written
        assert len(reader.trials) == 1 + bool(kept)
        assert file.stat().st_size == whole + cut
        with open_record(folder) as record:
            left = torn[len(kept) + bool(kept) :]
            assert f"{len(left)} bytes of a torn last line were cut off and kept as study.journal.torn-1" in record.warning
            assert (folder / "study.journal.torn-1").read_bytes() == left
            assert _found(record)[:1] == before
            assert (record.trials[1] if kept else record.ask(RECIPE)).architecture == wanted.architecture
        with open_record(folder) as record:
            assert record.warning is None
            assert len(record.trials) == 2


def test_a_tail_cut_at_every_byte_of_the_last_two_lines_leaves_whole_lines_and_loses_no_byte(tmp_path):
    with open_record(tmp_path / "origin") as record:
        tell_next(record, measured(0.3))
    content = (tmp_path / "origin" / "study.journal").read_bytes()
    lines = content.splitlines(keepends=True)
    for cut in range(1, len(lines[-1] + lines[-2])):
        file = tmp_path / str(cut) / "study.journal"
        file.parent.mkdir()
        file.write_bytes(content[:-cut])
        said = journal.repair(file)
        kept = file.read_bytes()
        assert kept in (content[: -len(lines[-1])], content[: -len(lines[-1] + lines[-2])])
        aside = [path.read_bytes() for path in file.parent.glob("*.torn-*")]
        assert kept + b"".join(aside) == content[:-cut]
        assert bool(said) == bool(aside) == (cut not in (len(lines[-1]), len(lines[-1] + lines[-2])))
        assert journal.repair(file) is None


def test_a_search_whose_journal_lost_what_was_told_is_rebuilt_and_equals_the_undisturbed_one(tmp_path):
    whole, origin, folder = _run(tmp_path / "whole", 4), tmp_path / "origin", tmp_path / "a"
    _run(origin, 3)
    content = (origin / "study.journal").read_bytes()
    lines = content.splitlines(keepends=True)
    last = len(lines[-1] + lines[-2])
    outcomes = set()
    for cut in range(1, last + 1, max(1, last // 12)):
        file = _copied(origin, folder)
        file.write_bytes(content[:-cut])
        said = _refusal(lambda: _run(folder, 4))
        outcomes.add("rebuilt" if said else "went on")
        if said:
            assert "nas-attn rebuild" in said
            rebuild(folder, Shelf.at(folder), force=True)
        found = _run(folder, 4)
        assert [(t.architecture, t.values, t.kind) for t in found.trials] == [(t.architecture, t.values, t.kind) for t in whole.trials]
        assert not [line for line in executions(folder) if line.startswith("again")]
    assert "rebuilt" in outcomes


@pytest.mark.parametrize("where", ["middle", "glued"])
def test_a_line_that_is_broken_before_whole_ones_is_refused_and_the_file_made_anew(tmp_path, where):
    with open_record(tmp_path) as record:
        tell_next(record, measured(0.3))
        before = record.snapshot()
    file = tmp_path / "study.journal"
    lines = file.read_bytes().splitlines(keepends=True)
    lines[4] = lines[4].replace(b'"', b"", 1) if where == "middle" else lines[4][:20] + lines[4]
    file.write_bytes(b"".join(lines))
    for opened in (load_study, open_record):
        with pytest.raises(StudyError, match=r"must be whole, but \S+/study.journal holds one that is not .*`nas-attn rebuild"):
            opened(tmp_path)
    assert file.read_bytes() == b"".join(lines)
    made = rebuild(tmp_path, Shelf.at(tmp_path))
    assert made.snapshot == before
    assert [path.name for path in made.aside] == ["study.journal.broken-1"]
    with open_record(tmp_path) as record:
        assert record.ask(RECIPE).number == 1


def test_flipped_bits_are_refused_in_one_line_or_harmless(tmp_path):
    with open_record(tmp_path) as record:
        tell_next(record, measured(0.3))
    file = tmp_path / "study.journal"
    content = file.read_bytes()
    refused = 0
    for at in range(0, len(content), 41):
        file.write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
        said = _refusal(lambda: load_study(tmp_path))
        refused += bool(said)
        assert "\n" not in said
    assert refused > 10


def test_the_lock_of_a_writer_that_died_is_removed_and_one_that_lives_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "ORPHAN_S", 0.1)
    with open_record(tmp_path) as record:
        record.ask(RECIPE)
    (tmp_path / "study.journal.lock").symlink_to(tmp_path / "study.journal")
    with open_record(tmp_path) as record:
        assert record.warning == "study.journal.lock: the lock of a writer that died was removed"
        record.ask(RECIPE)
    assert not os.path.lexists(tmp_path / "study.journal.lock")
    assert len(load_study(tmp_path).trials) == 2


def test_a_write_that_fails_half_way_is_made_good_by_the_next_and_adds_nothing_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "PAUSES_S", (0.0, 0.0))
    original, failing = os.fsync, []

    def full(descriptor):
        if failing:
            failing.pop()
            os.truncate(descriptor, os.fstat(descriptor).st_size - 9)
            raise OSError(28, "No space left on device")
        original(descriptor)

    monkeypatch.setattr(journal.os, "fsync", full)
    with open_record(tmp_path) as record:
        failing.append(1)
        trial = record.ask(RECIPE)
        failing.append(1)
        assert record.count(0, "attempts", "a") == 1
        failing.append(1)
        record.save_result(0, job_of(trial), measured(0.3))
        assert len(record.trials) == len(record.snapshot().trials) == 1
    lines = (tmp_path / "study.journal").read_text().splitlines()
    assert all(json.loads(line) for line in lines)
    assert load_study(tmp_path).trials[0].results == ((job_of(trial), measured(0.3)),)


def test_one_driver_writes_a_journal_and_it_holds_one_study(tmp_path):
    url = f"journal://{tmp_path}/shared.log"
    with open_record(tmp_path / "a", storage=url) as record:
        record.ask(RECIPE)
        with pytest.raises(StudyError, match=r"One driver at a time may run a study, but process \d+ .* drives \S+/shared.log"):
            open_record(tmp_path / "b", storage=url)
    with pytest.raises(StudyError, match="holds one study, but this one holds 'a'; give study 'b' a file of its own"):
        open_record(tmp_path / "b", storage=url)
    assert len(load_study(tmp_path / "a", url).trials) == 1


def test_a_journal_that_is_deleted_under_its_driver_is_told_and_never_begun_again(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "PAUSES_S", (0.0,))
    with open_record(tmp_path) as record:
        tell_next(record, measured(0.3))
        (tmp_path / "study.journal").unlink()
        with pytest.raises(NasAttnError, match=r"study.journal is gone or another file; `nas-attn rebuild"):
            record.ask(RECIPE)
    assert not (tmp_path / "study.journal").exists()
    with pytest.raises(StudyError, match="must be a file that can be read"):
        load_study(tmp_path)
    assert rebuild(tmp_path, Shelf.at(tmp_path)).snapshot.trials[0].values["map50_95"] == 0.3


def test_a_reader_beside_a_driver_sees_whole_studies_and_touches_nothing(tmp_path):
    seen, ended = [], threading.Event()

    def read():
        while not ended.is_set():
            seen.append(len(load_study(tmp_path).trials))

    with open_record(tmp_path) as record:
        record.ask(RECIPE)
        with ThreadPoolExecutor(1) as pool:
            reader = pool.submit(read)
            for _ in range(60):
                tell_next(record, measured(0.3))
            ended.set()
            reader.result(60)
    assert seen == sorted(seen)
    assert len(set(seen)) > 3
    assert not [*tmp_path.glob("*.torn-*")]


def test_optunas_own_tools_read_it(tmp_path):
    with open_record(tmp_path) as record:
        tell_next(record, measured(0.3))
    assert optunas_storage(Shelf.at(tmp_path)).get_all_studies()[0].study_name == tmp_path.name
