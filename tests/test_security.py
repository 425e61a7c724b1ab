"""What docs/security.md promises: a cluster that lets anybody in (one without a token is joined), hostile files and names."""

import csv
import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from raylets import raylets
from snapshots import base, failed, snapshot, trial
from typer.testing import CliRunner
from ultralytics.utils import checks

from nas_attn import cli, cli_search, columns, data, detector, plan, report, show
from nas_attn import pool as pool_module
from nas_attn.architecture import Placement
from nas_attn.errors import GraphError, InputError, PoolError, SpaceError, StudyError, printable
from nas_attn.export import best_job, export
from nas_attn.files import NAME, plain_name
from nas_attn.home import identity, known_names
from nas_attn.markdown import code, markdown
from nas_attn.outcome import Job
from nas_attn.page import page as whole_page
from nas_attn.plan import load_setup
from nas_attn.record import load_study
from nas_attn.table import csv_text

HERE = Path(__file__).parent
HTML = "</script><script>alert('x')</script><img src=x onerror=alert(1)>"
HOSTILE = (
    HTML,
    "=cmd|' /C calc'!A0",
    "\x1b[2J\x1b]0;owned\x07",
    "a\nbackbone: []\n# b",
    "`| x | [l](javascript:alert(1)) ![i](x)",
    "[red]{{ 7 * 7 }}",
)


# -- a cluster that lets anybody in ----------------------------------------------------------------------------------------------------

JOIN = """
import sys
from nas_attn import pool
from nas_attn.errors import NasAttnError
from nas_attn.work import Task
address, insecure = sys.argv[1], sys.argv[2] == "insecure"
try:
    with pool.open_pool("ray", "pool_targets:serve", workers=1, threads=1, address=address, insecure_cluster=insecure) as joined:
        joined.submit(Task("a", "echo", "{}"))
        print("ran", joined.wait(60)[0].lost)
except NasAttnError as error:
    print(type(error).__name__, error.exit_code, error)
"""


@pytest.mark.slow
def test_a_cluster_without_a_token_is_taken_only_where_the_user_insists(tmp_path):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    clean |= {"HOME": str(tmp_path), "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"}
    attempts = {
        "none": ({}, ""),
        "token": ({"RAY_AUTH_TOKEN": "ours" * 8}, ""),
        "insecure": ({}, "insecure"),
        "both": ({"RAY_AUTH_TOKEN": "ours" * 8}, "insecure"),
    }
    with raylets(hidden=[], cpus=2, secure=False) as cluster:
        drivers = {
            name: subprocess.run(
                [sys.executable, "-c", JOIN, cluster.address, word],
                env=clean | given,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            for name, (given, word) in attempts.items()
        }
    told = {name: driver.stdout.strip().splitlines()[-1] for name, driver in drivers.items()}
    assert told["none"].startswith("InputError 2 Joining")
    assert "--insecure-cluster takes" in told["none"]
    assert told["token"].startswith("InputError 2 A cluster must turn away")
    assert told["insecure"] == told["both"] == "ran None"


@pytest.mark.parametrize("command", ["search", "verify"])
def test_the_command_line_asks_and_warns(command, tmp_path, monkeypatch):
    given = {}

    def taken(*_, **options):
        given.update(options)
        raise PoolError("here it ends")

    monkeypatch.setattr(pool_module, "open_pool", taken)
    prepared = type("P", (), {"setup": type("S", (), {"device": "cpu", "imports": (), "folder": str(tmp_path)})()})()
    monkeypatch.setattr(plan, "prepare", lambda *_, **__: prepared)
    monkeypatch.setattr(plan, "load_setup", lambda _: load_setup_stub(tmp_path))
    monkeypatch.setattr("nas_attn.arms.prepare", lambda *_: None)
    monkeypatch.setattr("nas_attn.record.load_study", lambda *_: None)
    monkeypatch.setattr("nas_attn.cli_verify._announce", lambda *_: None)
    where = ["toy", "--out", str(tmp_path / "s")] if command == "search" else [str(tmp_path)]
    for words, insecure in ([], False), (["--insecure-cluster"], True):
        result = CliRunner().invoke(cli.app, [command, *where, "--data", "x.yaml", "--address", "10.0.0.1:6379", *words])
        assert isinstance(result.exception, PoolError), result.output
        assert given["insecure_cluster"] is insecure
        assert given["address"] == "10.0.0.1:6379"
        lines = result.stderr.strip().splitlines()
        assert [line.startswith("warning: --insecure-cluster: nothing proves who speaks for 10.0.0.1:6379") for line in lines] == [
            True
        ] * insecure


def load_setup_stub(folder):
    from nas_attn.setup import Setup

    fields = {field.name: "x" for field in dataclasses.fields(Setup)} | {"device": "cpu", "imports": (), "names": (), "folder": str(folder)}
    return Setup(**fields)


# -- nothing is installed --------------------------------------------------------------------------------------------------------------


def test_ultralytics_installs_nothing_whatever_the_user_has_set(monkeypatch):
    installed = []
    monkeypatch.setattr(checks.subprocess, "check_output", lambda command, **_: installed.append(command) or "")
    monkeypatch.setattr(checks, "AUTOINSTALL", True)
    monkeypatch.setattr(checks, "ONLINE", True)
    monkeypatch.setenv("YOLO_AUTOINSTALL", "true")
    checks.check_requirements("surely-not-installed")
    assert installed, "this check can fail"
    installed.clear()
    detector.silence()
    assert checks.check_requirements("surely-not-installed") is False
    assert installed == []
    assert os.environ["YOLO_AUTOINSTALL"] == "false"


def test_the_command_line_turns_it_off_before_anything_is_imported():
    lines = ["import sys; sys.argv = ['nas-attn', 'sites', '--help']", "from nas_attn import cli; cli.main()"]
    program = "\n".join([*lines, "from ultralytics.utils import AUTOINSTALL; print(AUTOINSTALL)"])
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "YOLO_AUTOINSTALL": "true"}, capture_output=True, text=True, check=False
    )
    assert done.stdout.split()[-1] == "False", done.stderr


# -- hostile files ---------------------------------------------------------------------------------------------------------------------


def test_no_code_of_a_data_yaml_is_run(tmp_path, digits):
    given = yaml.safe_load(digits.read_text())
    exploded = tmp_path / "exploded"
    for download in (f"import os; os.mkdir({str(exploded)!r})", f"bash mkdir {exploded}", "https://example.invalid/a.zip"):
        file = tmp_path / "data.yaml"
        absent = {**given, "path": str(digits.parent), "val": "absent", "download": download}
        file.write_text(yaml.safe_dump(absent))
        with pytest.raises(InputError, match="must exist"):
            data.load(file)
        file.write_text(yaml.safe_dump({**absent, "val": given["val"]}))
        assert data.load(file).names
        assert not exploded.exists()
    for names in ("!!python/object/apply:os.mkdir [exploded]", "{0: !!python/name:os.system x}"):
        file.write_text(f"path: {digits.parent}\ntrain: {given['train']}\nval: {given['val']}\nnames: {names}\n")
        with pytest.raises(InputError, match="tag"):
            data.load(file)


@pytest.mark.parametrize(
    "change",
    [
        {"activation": "__import__('os').mkdir('exploded')"},
        {"activation": "nn.SiLU(__import__('os').mkdir('exploded'))"},
        {"activation": "torch.nn.modules.module.os.mkdir('exploded')"},
        {"row": [-1, 1, "os.mkdir", ["exploded"]]},
        {"row": [-1, 1, "torch_safe_load", ["exploded"]]},
        {"row": [-1, 1, "nn.modules.module.warnings.warn", ["exploded"]]},
        {"row": [-1, 1, "LOGGER", [64]]},
        {"row": [-1, 1, "Conv", ["__import__('os').mkdir('exploded')", 3]]},
    ],
)
def test_no_code_of_a_model_yaml_is_run(tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    row = change.pop("row", [-1, 1, "Conv", [64, 3, 2]])
    config = {"nc": 2, "backbone": [[-1, 1, "Conv", [64, 3, 2]], row], "head": [[[1], 1, "Detect", ["nc"]]], **change}
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises((GraphError, SpaceError)):
        detector.build(*detector.load_base("m.yaml"), 2)
    assert not (tmp_path / "exploded").exists()


@pytest.fixture(scope="module")
def taken(tiny_study, tmp_path_factory):
    """A copy of a real study, which a stranger may have changed."""
    return Path(shutil.copytree(tiny_study, tmp_path_factory.mktemp("taken") / "study"))


@pytest.mark.slow
def test_a_strangers_study_imports_nothing(taken, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("import pathlib; pathlib.Path('exploded').mkdir()")
    setup = json.loads((taken / "setup.json").read_text())
    (taken / "setup.json").write_text(json.dumps({**setup, "imports": ["evil"], "import_folder": str(tmp_path)}))
    snap = load_study(taken)
    with pytest.raises(InputError, match="where you trust them give --import evil"):
        export(snap, load_setup(taken), snap.trials[0], tmp_path / "out")
    report.write(snap, tmp_path / "report")
    for words in (["verify", str(taken), "--data", setup["data"]], ["export", str(taken), "--to", str(tmp_path / "out")]):
        result = CliRunner().invoke(cli.app, words)
        assert isinstance(result.exception, InputError)
    (taken / "setup.json").write_text(json.dumps({**setup, "imports": ["os; import evil"]}))
    with pytest.raises(StudyError, match="dotted module name"):
        load_setup(taken)
    (taken / "setup.json").write_text(json.dumps(setup))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.slow
def test_hostile_names_go_through_report_and_export_as_text(taken, tmp_path, capsys):
    snap, setup = load_study(taken), load_setup(taken)
    for number, text in enumerate(HOSTILE):
        settings = {**snap.settings, "names": [text], "command": text}
        first = snap.trials[0]
        controls = tuple((f"{text}{label}", job, outcome) for label, job, outcome in first.controls)
        bad = dataclasses.replace(
            snap, name=text, settings=settings, trials=(dataclasses.replace(first, controls=controls), *snap.trials[1:])
        )
        to = tmp_path / str(number)
        strange = dataclasses.replace(setup, base=f"{text}/{text}11n.yaml".replace("\0", ""), names=(text, *setup.names[1:]))
        made = export(bad, strange, bad.trials[1], to, reason=text)
        assert NAME.fullmatch(made.yaml_file.name.partition("-")[0])
        config = yaml.safe_load(made.yaml_file.read_text())
        assert config["backbone"] == yaml.safe_load(export(snap, setup, snap.trials[1], to / "plain").yaml_file.read_text())["backbone"]
        compile((to / "train.py").read_text(), "train.py", "exec")
        assert (to / "train.py").read_text().count("import ") == (to / "plain" / "train.py").read_text().count("import ")
        card = (to / "card.md").read_text()
        assert len(card.splitlines()) == len((to / "plain" / "card.md").read_text().splitlines())
        for pattern in ("<script", "<img", "\x1b", r"(?<!\\)\]\(javascript"):
            assert not re.search(pattern, card.replace(code(text), "")), pattern
        page = whole_page(report.study(bad))
        assert "<script>alert" not in page
        assert "<img src=x" not in page
        show.summary(cli_search.console, bad, to)
        assert "\x1b" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_record_that_names_paths_is_refused(taken):
    job = best_job(load_study(taken).trials[0])[0].to_dict()
    assert Job.from_dict(job).to_dict() == job
    for change in ({"seed": "../../x"}, {"attempt": "1/../../x"}, {"epochs": "../x"}, {"attempt": True}):
        with pytest.raises(StudyError, match="must be whole numbers"):
            Job.from_dict({**job, **change})


@pytest.mark.parametrize("text", [HTML, "../x", "a b", "\x1b[2J", "", 7])
def test_a_placement_names_its_module_by_a_word(text):
    good = {"layer": 1, "module": "LSKA", "params": {"k_size": 7}}
    assert Placement.from_dict(good).to_dict() == good
    for bad in ({**good, "module": text}, {**good, "params": {text: 7}}, {**good, "params": {"k_size": [text]}}):
        with pytest.raises(SpaceError, match="plain words"):
            Placement.from_dict(bad)


# -- names and texts -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../../x", "..", ".hidden", "-rf", "a/b", "a\0b", "a b", "a\nb", "", "x" * 65, "é"])
def test_a_name_that_could_be_a_path_or_an_option_is_none(name, tmp_path):
    assert not NAME.fullmatch(name)
    assert NAME.fullmatch(plain_name(name))
    if name:
        with pytest.raises(StudyError, match="A study's name must be"):
            identity(tmp_path, name)
    assert not list(tmp_path.iterdir())


def test_a_study_is_named_after_its_folder_and_old_names_go_on(tmp_path):
    folder = tmp_path / "my first study"
    folder.mkdir()
    assert identity(folder, None)["name"] == "my-first-study"
    mark = folder / "study.json"
    for name in ("my first study", "größer"):
        mark.write_text(json.dumps({"name": name, "owner": "o"}))
        assert identity(folder, None)["name"] == name
    for text in (
        '{"name": "../../x", "owner": "o"}',
        '{"name": 3, "owner": "o"}',
        '{"name": "..", "owner": "o"}',
        "[]",
        "{}",
        "",
        '{"name": "a/b", "owner": "o"}',
    ):
        mark.write_text(text)
        with pytest.raises(StudyError, match="must hold the study's name and owner"):
            known_names(mark)


def test_no_cell_of_a_table_is_a_formula():
    snap = snapshot(base(), failed(1, error="x"), trial(2, [Placement(4, "LSKA")], 0.31, 1.1))
    rows = columns.table(snap)
    rows[1]["error"] = HOSTILE[1]
    import pandas as pd

    read = list(csv.DictReader(io.StringIO(csv_text(pd.DataFrame(rows)))))
    assert read[1]["error"] == f"'{HOSTILE[1]}"
    assert read[2]["gain"].lstrip("-").replace(".", "").isdigit()
    for start in "=+-@\t\r":
        assert csv_text(pd.DataFrame([{"a": f"{start}1"}])).splitlines()[-1].lstrip('"').startswith("'") or start == "\r"


@pytest.mark.parametrize("text", [*HOSTILE, "", "``", " ` "])
def test_text_stays_text(text):
    for shown in (markdown(text), code(text), printable(text)):
        assert shown.isprintable()
        assert "\n" not in shown
    assert "<" not in markdown(text)
    inner = code(text)
    fence = len(inner) - len(inner.lstrip("`"))
    assert inner.endswith("`" * fence)
    assert "`" * fence not in inner[fence:-fence]
    assert markdown(inner) == inner
