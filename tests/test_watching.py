"""A study as others watch it: the report that is written while a search runs, and Optuna's own dashboard on the same storage."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import chromium
import pytest
from fake_evaluator import Fake
from fault_driver import TARGET, search, undisturbed
from snapshots import network, study

from nas_attn import cli_report, lock, report
from nas_attn.errors import StudyError
from nas_attn.pool import InlinePool
from nas_attn.record import load_study

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def searched(tmp_path_factory) -> Path:
    """A study of a real driver with a fake evaluator, on a network that is drawn."""
    folder = tmp_path_factory.mktemp("searched") / "study"
    undisturbed(folder, 12, Fake())
    network().save(folder)
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def asked(url: str, program: subprocess.Popen, wait_s: float = 60.0) -> bytes:
    end = time.monotonic() + wait_s
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.read()
        except OSError:
            assert program.poll() is None, program.stdout.read()
            assert time.monotonic() < end
            time.sleep(0.2)


def test_optuna_dashboard_opens_the_study(searched):
    port = free_port()
    words = [str(Path(sys.executable).with_name("optuna-dashboard")), f"sqlite:///{searched / 'study.db'}", "--port", str(port)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as program:
        try:
            (told,) = json.loads(asked(f"http://127.0.0.1:{port}/api/studies", program))["study_summaries"]
            assert told["study_name"] == load_study(searched).name
            assert told["directions"] == ["maximize", "minimize"]
            whole = json.loads(asked(f"http://127.0.0.1:{port}/api/studies/{told['study_id']}?after=0", program))
            assert len(whole["trials"]) == len(load_study(searched).trials)
            assert b"<html" in asked(f"http://127.0.0.1:{port}/dashboard", program)
        finally:
            program.terminate()


def test_the_data_frame_of_a_study_on_disk(searched):
    found = report.load(searched)
    assert list(found["number"]) == list(range(len(found)))
    assert found.loc[0, "kind"] == "measured"
    assert found["map50_95"].between(0, 1).sum() == 12


def test_a_watched_report_is_written_again_until_the_driver_has_ended(tmp_path, monkeypatch, capsys):
    """The driver is a lock that is held; the study grows between two looks, and at the third the driver ends."""
    held, looks = lock.FolderLock.take(tmp_path), []

    def look(*_):
        looks.append({0: 3, 1: 3}.get(len(looks), 4))
        if len(looks) == 3:
            held.close()
        return dataclasses.replace(study(looks[-1]), folder=tmp_path)

    monkeypatch.setattr("nas_attn.record.load_study", look)
    cli_report.report(tmp_path, watch=True, every=1.0)
    lines = capsys.readouterr().out.splitlines()
    counts = {count: sum(trial.kind == "measured" for trial in study(count).trials) for count in (3, 4)}
    told = [f"{counts[count]} measured of {count + 1} trials: {tmp_path / 'report.html'}" for count in (3, 4)]
    assert [line.partition(" ")[2] for line in lines[:2]] == told
    assert lines[2] == str(tmp_path / "report.html")
    assert looks == [3, 3, 4, 4]
    assert '"refresh_s": null' in (tmp_path / "report.html").read_text()


def test_without_a_driver_a_watched_report_is_written_once(searched, capsys):
    assert not lock.driven(searched)
    cli_report.report(searched, watch=True)
    assert "so the report is written once" in capsys.readouterr().out.splitlines()[0]


def test_a_driver_is_seen_without_taking_its_place(tmp_path):
    assert not lock.driven(tmp_path)
    held = lock.FolderLock.take(tmp_path)
    assert lock.driven(tmp_path)
    held.close()
    assert not lock.driven(tmp_path)


def test_figures_and_a_comparison_from_the_command_line(searched, tmp_path, capsys):
    cli_report.report(searched, figures=True)
    made = {Path(line).name for line in capsys.readouterr().out.splitlines()}
    assert {"report.html", "summary.md", "trials.parquet", "atlas.csv", "atlas.svg", "front.png", "progress.png"} <= made
    cli_report.compare(searched, searched, out=tmp_path / "new" / "both.html")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("study: ")
    assert lines[-1] == str(tmp_path / "new" / "both.html")
    assert (tmp_path / "new" / "both.html").stat().st_size > 4e6


@pytest.mark.parametrize("shared", [True, False])
def test_studies_elsewhere_are_compared_by_their_storages(tmp_path, shared):
    """Of the first the folder has the file; two others lie in one storage, or in two."""
    urls = [f"sqlite:///{tmp_path / name}.db" for name in (("one", "one") if shared else ("one", "two"))]
    folders = [tmp_path / name for name in ("a", "b")]
    for folder, url in zip(folders, urls, strict=True):
        folder.mkdir()
        search(folder, InlinePool(TARGET), 2, Fake(), url, tell=lambda _: None)
    undisturbed(tmp_path / "own", 2, Fake())
    page, second = str(tmp_path / "both.html"), {} if shared else {cli_report.SECOND: urls[1]}
    told = nas_attn("compare", *folders, "--out", page, NAS_ATTN_STORAGE=urls[0], **second)
    assert told.returncode == 0, told.stderr
    assert [line.partition(":")[0] for line in told.stdout.splitlines()[:2]] == ["a", "b"]
    mixed = nas_attn("compare", tmp_path / "own", folders[1], "--out", page, "--storage", urls[1])
    assert mixed.returncode == 0, mixed.stderr
    assert [line.partition(":")[0] for line in mixed.stdout.splitlines()[:2]] == ["own", "b"]
    lost = nas_attn("compare", *folders, "--out", page)
    assert lost.returncode == 2
    assert "give --storage" in lost.stderr


def nas_attn(*words, **environment):
    given = {**{name: value for name, value in os.environ.items() if not name.startswith("NAS_ATTN_")}, **environment}
    program = str(Path(sys.executable).with_name("nas-attn"))
    return subprocess.run([program, *map(str, words)], capture_output=True, text=True, check=False, env=given, timeout=300)


def test_the_readmes_commands_run(searched, tmp_path):
    """Those of its section on the report, as they stand, on two studies of these names."""
    section = README.partition("## The report\n")[2].partition("\n## ")[0]
    lines = re.findall(r"```sh\n(.*?)```", section, flags=re.DOTALL)[0].splitlines()
    for name in ("blood", "other"):
        shutil.copytree(searched, tmp_path / name)
    for words in [shlex.split(line.partition("  #")[0]) for line in lines]:
        if words[0] == "nas-attn":
            program = str(Path(sys.executable).with_name("nas-attn"))
            done = subprocess.run([program, *words[1:]], cwd=tmp_path, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in lines] == ["nas-attn"] * 3 + ["optuna-dashboard"]
    assert (tmp_path / "both.html").is_file()
    assert (tmp_path / "blood" / "figures" / "atlas.svg").is_file()


def test_the_columns_of_every_table_are_described_in_the_docs():
    sections = (ROOT / "docs" / "report.md").read_text().split("\n## The columns of ")[1:]
    told = {}
    for section in sections:
        title, _, text = section.partition("\n")
        found = {name: about.replace("\\|", "|") for name, about in re.findall(r"^\| `(\w+)` \| (.*) \|$", text, flags=re.MULTILINE)}
        told |= {name: (list(found), found) for name in title.split(" and ")}
    assert told == {name: (list(about), dict(about)) for name, about in report.ABOUT.items()}


def test_every_table_has_the_columns_that_are_described(searched, tmp_path):
    report.write(load_study(searched), tmp_path)
    for name, about in report.ABOUT.items():
        assert (tmp_path / name).read_text().splitlines()[0] == ",".join(about)


def test_a_watcher_waits_for_a_study_that_is_not_begun(tmp_path, monkeypatch, capsys):
    """The driver holds the lock before it has written any study; its storage is away once more between two looks."""
    held, looks = lock.FolderLock.take(tmp_path), []

    def look(*_):
        looks.append(len(looks))
        if looks[-1] in (0, 1, 3):
            raise StudyError(f"no study at look {looks[-1]}")
        if looks[-1] == 4:
            held.close()
        return dataclasses.replace(study(3), folder=tmp_path)

    monkeypatch.setattr("nas_attn.record.load_study", look)
    cli_report.report(tmp_path, watch=True, every=0.01)
    waits = [line for line in capsys.readouterr().out.splitlines() if "no study that can be read" in line]
    assert [line.partition(": ")[2] for line in waits] == ["no study at look 0", "no study at look 3"]
    assert looks == [0, 1, 2, 3, 4, 5]
    assert (tmp_path / "report.html").is_file()


def test_a_watcher_does_not_wait_for_ever(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli_report, "PATIENCE_S", 0.0)
    with pytest.raises(StudyError, match=r"must hold `study\.db`"):
        cli_report.report(tmp_path / "nowhere", watch=True, every=0.01)
    assert capsys.readouterr().out.count("no study that can be read; trying again for 0 s") == 1


def written_s(file):
    return float(re.search(r'"written_s": ([\d.]+)', file.read_text())[1])


def test_each_look_renews_the_time_of_the_page(tmp_path, monkeypatch):
    held, looks, seen = lock.FolderLock.take(tmp_path), [], []

    def look(*_):
        if looks:
            seen.append(written_s(tmp_path / "report.html"))
        looks.append(len(looks))
        if len(looks) == 3:
            held.close()
        return dataclasses.replace(study(3), folder=tmp_path)

    monkeypatch.setattr("nas_attn.record.load_study", look)
    cli_report.report(tmp_path, watch=True, every=0.01)
    assert seen == sorted(set(seen))
    assert len(seen) == 3
    assert '"written_s": null' in (tmp_path / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.skipif(not chromium.there(), reason="needs Debian's chromium and chromium-driver (.ci/run installs them)")
def test_a_page_that_nobody_watches_any_more_says_so_and_rests(tmp_path):
    """Reloads are counted by the timers of their length, which nothing else on the page sets."""
    page = tmp_path / "report.html"
    report.write(dataclasses.replace(study(3), folder=tmp_path), tmp_path, refresh_s=123.0)
    count = (
        "window.asked = []; const set = setTimeout; "
        "window.setTimeout = (f, ms, ...rest) => { window.asked.push(ms); return set(f, ms, ...rest); };"
    )
    driver = chromium.start(f"--user-data-dir={tmp_path / 'profile'}")
    try:
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": count})
        for age_s, reloads, told in ((0, 1, 0), (1100, 1, 0), (1300, 0, 1)):
            page.write_text(re.sub(r'"written_s": [\d.]+', f'"written_s": {time.time() - age_s}', page.read_text()))
            driver.get(page.as_uri())
            assert driver.execute_script("return document.documentElement.dataset.ready") == "true"
            assert driver.execute_script("return window.asked.filter((ms) => ms === 123000).length") == reloads
            assert len(driver.find_elements("id", "unwatched")) == told
        assert driver.find_element("id", "unwatched").text.startswith("No longer watched since ")
        assert [entry["message"] for entry in driver.get_log("browser")] == []
    finally:
        driver.quit()
