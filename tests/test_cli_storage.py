"""The storage on the command line: where its password may be seen (nowhere), and the command `rebuild`."""

import json
import os
import shutil
import socket
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from conftest import TINY_SPACE
from fake_evaluator import Fake, measured, setup
from postgres_server import server
from study_targets import BASE, open_record, space, tell_next

from nas_attn import cli_search, cli_storage, report, storage, study
from nas_attn.errors import NasAttnError
from nas_attn.pool import InlinePool
from nas_attn.record import load_study
from nas_attn.spec import SpaceSpec

COMMAND = str(Path(sys.executable).with_name("nas-attn"))
PLANTED = "hunter2planted"


def run(*arguments, **environment):
    environment = {**os.environ, **environment}
    return subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False, env=environment, timeout=300)


def _require_nowhere(folder, *texts):
    for path in folder.rglob("*"):
        if path.is_file():
            assert PLANTED.encode() not in path.read_bytes(), path
    for text in texts:
        assert PLANTED not in text


def test_rebuild_says_what_it_did_and_refuses_what_can_be_read(tmp_path):
    with open_record(tmp_path) as record:
        tell_next(record, measured(0.3))
    refused = run("rebuild", tmp_path)
    assert refused.returncode == 2
    assert "holds 1 trials; --force puts it aside" in refused.stderr
    (tmp_path / "study.db").write_text("garbage" * 200)
    done = run("rebuild", tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"put aside: {tmp_path / 'study.db.broken-1'}" in done.stdout
    assert "holds 1 trials again (1 measured)" in done.stdout
    assert len(load_study(tmp_path).trials) == 1


def test_search_extends_a_study_when_asked_to_and_names_the_option_when_not(tmp_path, tiny_study, digits):
    folder = tmp_path / "study"
    shutil.copytree(tiny_study, folder)
    larger = tmp_path / "larger.yaml"
    larger.write_text(TINY_SPACE.replace("LIA: {f: [8]}", "LIA: {f: [8, 16]}\n  CoordAtt: {}").replace("neck_P4]", "neck_P4, P5]"))
    command = ["search", larger, "--data", digits, "--trials", 3, "--out", folder, "--pool", "inline", "--device", "cpu"]
    refused = run(*command)
    assert refused.returncode == 2, refused.stderr
    lines = refused.stderr.splitlines()
    assert lines[-1] == "With --extend the study goes on in the new space and keeps its trials; or give the former settings."
    assert "  settings.spec.sites: added P5" in lines
    assert "  settings.spec.modules.LIA.f: added 16" in lines
    assert any(line.startswith("  settings.spec.modules.CoordAtt: added") for line in lines)
    before = load_study(folder)
    done = run(*command, "--extend")
    assert done.returncode == 0, done.stderr
    assert "extended: settings.spec.sites: added P5" in done.stdout
    assert "3 trials moved into the new space; the former study is kept as study" in " ".join(done.stdout.split())
    after = load_study(folder)
    assert after.trials == before.trials
    assert "P5" in (folder / "space.yaml").read_text()
    again = run(*command, "--extend")
    assert again.returncode == 0, again.stderr
    assert "extended" not in again.stdout


@pytest.mark.parametrize("given", ["option", "variable"])
def test_a_server_that_is_away_is_told_without_its_password(tmp_path, given):
    url = f"postgresql://me:{PLANTED}@127.0.0.1:1/db?password={PLANTED}"
    (tmp_path / "study.json").write_text('{"name": "a", "owner": "b"}')
    option, variable = (("--storage", url), {}) if given == "option" else ((), {"NAS_ATTN_STORAGE": url})
    failed = run("--debug", "report", tmp_path, *option, **variable)
    assert failed.returncode == 2
    assert "me:***@127.0.0.1:1/db must be reachable" in failed.stderr
    assert "Traceback" in failed.stderr
    _require_nowhere(tmp_path, failed.stdout, failed.stderr)


SECRET = ("postgresql://me:p@host/db", "postgresql:///db?host=h&user=me&password=p", "postgresql:///db?passfile=/a", "p4ssw0rd")
PLAIN = ("sqlite:////a.db", "journal:////a.log", "SQLite:////a.db")


@pytest.fixture
def typed(monkeypatch):
    """Has the process look at a command line; with what it begins anew, if it does."""

    def look(*words, before=("python", "-I", "nas-attn")):
        seen = []
        monkeypatch.setattr(sys, "orig_argv", [*before, *words])
        monkeypatch.setattr(sys, "argv", ["nas-attn", *words])
        monkeypatch.setattr(os, "execve", lambda *given: seen.append(given))
        cli_storage.hide_url()
        return seen

    return look


@pytest.mark.parametrize("url", SECRET)
@pytest.mark.parametrize("words", [["--storage", "URL"], ["--storage=URL"]])
def test_a_password_on_the_command_line_is_taken_off_it(typed, words, url):
    typed_words = [word.replace("URL", url) for word in words]
    for before in (["python", "-I", "nas-attn"], ["python", "-m", "nas_attn"]):
        ((program, arguments, environment),) = typed("report", *typed_words, "DIR", before=before)
        assert (program, arguments) == (sys.executable, [*before, "report", "DIR"])
        assert environment["NAS_ATTN_STORAGE"] == url


def test_of_several_storages_the_last_one_counts_and_none_is_left_on_the_command_line(typed):
    ((_, arguments, environment),) = typed("report", "--storage", PLAIN[0], "DIR", f"--storage={SECRET[0]}", "--storage", SECRET[1])
    assert arguments == ["python", "-I", "nas-attn", "report", "DIR"]
    assert environment["NAS_ATTN_STORAGE"] == SECRET[1]


@pytest.mark.parametrize("words", [[], ["--storage"], *(["--storage", url] for url in PLAIN)])
def test_a_command_line_without_a_password_stays_as_it_is(typed, words):
    assert typed("report", "DIR", *words) == []


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="there is no /proc")
def test_no_password_of_a_query_is_seen_in_ps(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # whose connections wait
        url = f"postgresql:///db?host=127.0.0.1&port={silent.getsockname()[1]}&user=me&password={PLANTED}"
        (tmp_path / "study.json").write_text('{"name": "a", "owner": "b"}')
        process = subprocess.Popen([COMMAND, "report", tmp_path, "--storage", url], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            silent.settimeout(60)
            silent.accept()[0].close()
            assert PLANTED.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
        finally:
            process.kill()
            process.wait()


def test_workers_inherit_no_url(monkeypatch):
    monkeypatch.setenv("NAS_ATTN_STORAGE", "postgresql://me:p@host/db")
    cli_storage.forget_url()
    cli_storage.forget_url()
    assert "NAS_ATTN_STORAGE" not in os.environ


def test_the_help_recommends_the_variable():
    assert "set NAS_ATTN_STORAGE instead" in " ".join(run("report", "--help", COLUMNS="400").stdout.split())


def test_a_search_on_a_server_leaves_its_password_nowhere(tmp_path, postgres, capfd):
    url = postgres.fresh()
    postgres.run(f"CREATE USER planted SUPERUSER PASSWORD '{PLANTED}'")
    url = f"postgresql://planted:{PLANTED}@{url.partition('@')[2]}"
    given = {"base": BASE, "sites": ["P3"], "modules": {"LIA": {"f": [8]}}, "base_seeds": 2, "controls": False}
    folder, events, payloads = tmp_path / "a", [], []
    folder.mkdir()

    class Pool(InlinePool):
        def submit(self, task):
            payloads.append(task.payload)
            super().submit(task)

    snapshot = study.run(
        folder,
        SpaceSpec.from_dict(given),
        space(),
        setup(folder, Fake(fails=20)),
        Pool("fake_evaluator:serve"),
        trials=5,
        sampler="random",
        storage=url,
        command=cli_search.typed("search", "toy", trials=5, out=folder),
        on_event=lambda event: events.append(str(event)),
    )
    report.write(snapshot, folder)
    shown = run("report", folder, NAS_ATTN_STORAGE=url)
    assert shown.returncode == 0, shown.stderr
    table = postgres.run("SELECT key, value_json FROM study_user_attributes", url.rpartition("/")[2])
    rows = postgres.run("SELECT key, value_json FROM trial_user_attributes", url.rpartition("/")[2])
    _require_nowhere(tmp_path, *events, *payloads, json.dumps([table, rows]), *capfd.readouterr(), shown.stdout, shown.stderr)


def test_a_wrong_password_is_told_without_it(tmp_path, postgres):
    url = f"postgresql://nobody:{PLANTED}@{postgres.fresh().partition('@')[2]}"
    (tmp_path / "study.json").write_text('{"name": "a", "owner": "b"}')
    for words in ([], ["--debug"]):
        failed = run(*words, "report", tmp_path, NAS_ATTN_STORAGE=url)
        assert failed.returncode == 2, failed.stderr
        assert "nobody:***@127.0.0.1" in failed.stderr
        _require_nowhere(tmp_path, failed.stdout, failed.stderr)


@pytest.mark.slow
def test_a_server_that_goes_away_meanwhile_is_told_without_its_password(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "PAUSES_S", (0.01, 0.01))
    with server() as running:
        running.run(f"CREATE USER planted SUPERUSER PASSWORD '{PLANTED}'")
        url = f"postgresql://planted:{PLANTED}@{running.fresh().partition('@')[2]}"
        with open_record(tmp_path, storage=url) as record:
            tell_next(record, measured(0.3))
            running.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'planted'")
            running.run("ALTER USER planted NOLOGIN")
            with pytest.raises(NasAttnError) as failed:
                tell_next(record, measured(0.4))
            text = "".join(traceback.format_exception(failed.value))
            assert failed.value.__cause__ is not None, "a traceback tells what the server said"
    _require_nowhere(tmp_path, text, str(failed.value))
