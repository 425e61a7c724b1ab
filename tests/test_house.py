"""The rules of the house, read from the source: who may import whom, what a file may contain, how long it may be."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "nas_attn"

# Every file in the order in which the data flows, each with the third-party libraries that it may import. A file imports only from files
# above it. `attention.*` is one step: gate.py first, then a file a mechanism.
HOUSE: dict[str, set[str]] = {
    "errors": set(),
    "files": set(),
    "markdown": set(),
    "graph": set(),
    "formula": set(),
    "blueprint": set(),
    "catalog.*": set(),
    "records": set(),
    "architecture": set(),
    "space": set(),
    "arguments": set(),
    "document": {"yaml"},
    "spec": {"pydantic", "pydantic_core"},
    "outcome": set(),
    "pareto": {"numpy"},
    "protocol": set(),
    "registration": set(),
    "attention.gate": {"torch"},
    "attention.conv": {"torch", "ultralytics"},
    "attention.attend": {"torch"},
    "attention.*": {"torch", "timm", "ultralytics"},
    "custom": set(),
    "listing": set(),
    "contract": {"torch", "onnxruntime"},
    "speed": {"torch"},
    "cost": {"torch", "fvcore"},
    "onnx_runner": {"torch", "onnxruntime"},
    "runner": {"torch"},
    "latency": {"torch", "numpy"},
    "network": set(),
    "setup": {"torch"},
    "image": {"PIL"},
    "tensors": {"torch"},
    "data": {"numpy"},
    "burden": {"torch", "ultralytics"},
    "weights": {"torch", "ultralytics"},
    "detector": {"torch", "ultralytics", "yaml"},
    "train": {"torch", "ultralytics", "numpy", "yaml"},
    "dataset": {"ultralytics", "numpy", "cv2"},  # decodes images as Ultralytics does, to the bit
    "checkpoint": {"torch", "numpy", "ultralytics"},
    "proxy": {"torch", "ultralytics", "numpy", "yaml"},
    "work": set(),
    "pauses": set(),
    "mishap": {"torch"},
    "timing": {"torch"},
    "evaluate": {"torch"},
    "full": {"torch"},
    "losses": set(),
    "event": set(),
    "schedule": set(),
    "seats": set(),
    "door": set(),
    "certificate": {"cryptography"},
    "cluster": {"ray"},
    "carry": set(),
    "freight": {"ray"},
    "worker": {"ray"},
    "porters": {"ray"},
    "admission": set(),
    "seating": set(),
    "inline_pool": set(),
    "pool": {"ray"},
    "facts": set(),
    "candidates": {"numpy"},
    "variances": {"numpy", "scipy"},
    "surrogate": {"numpy", "scipy", "sklearn"},
    "validity": {"numpy", "sklearn"},
    "acquire": {"numpy"},
    "propose": {"numpy"},
    "claim": {"numpy"},
    "guide": {"optuna", "numpy"},
    "posterior": {"numpy"},
    "effects": {"numpy"},
    "pick": set(),
    "history": set(),
    "table": {"pandas", "numpy"},
    "address": {"sqlalchemy"},
    "lock": set(),
    "wire": {"sqlalchemy", "psycopg"},
    "server_lock": {"sqlalchemy"},
    "ledger": {"optuna"},
    "journal": {"optuna"},
    "agreement": set(),
    "home": set(),
    "rows": {"optuna", "sqlalchemy"},
    "storage": {"optuna", "sqlalchemy"},
    "sampler": {"optuna"},
    "stored_trial": {"optuna"},
    "record": {"optuna", "sqlalchemy"},
    "rebuild": set(),
    "extend": {"optuna", "sqlalchemy"},
    "racing": {"scipy"},
    "blame": set(),
    "jobs": set(),
    "flights": set(),
    "repeats": set(),
    "study": set(),
    "derive": {"optuna"},
    "retarget": {"optuna"},
    "replay_rules": {"numpy"},
    "replay": {"optuna", "numpy", "threadpoolctl"},
    "columns": set(),
    "picture": {"matplotlib"},
    "replay_picture": {"matplotlib"},
    "sketch": set(),
    "subject": set(),
    "answer": set(),
    "caveats": set(),
    "charts": set(),
    "page": {"jinja2", "plotly"},
    "summary": set(),
    "figures": {"matplotlib"},
    "report": {"pandas", "threadpoolctl"},
    "comparison": {"pandas"},
    "export": {"torch", "yaml", "jinja2"},
    "paired": {"scipy"},
    "arms": set(),
    "verdict": {"pandas"},
    "verify": set(),
    "demo": {"numpy", "sklearn", "PIL", "yaml"},
    "plan": set(),
    "nodes": set(),
    "live": {"rich"},
    "progress": {"rich"},
    "show": {"rich"},
    "cli_storage": {"typer", "rich"},
    "cli_cluster": {"typer", "rich"},
    "cli_search": {"typer", "rich"},
    "cli_report": {"typer", "rich"},
    "cli_retarget": {"typer", "rich"},
    "cli_simulate": {"typer", "rich"},
    "cli_verify": {"typer", "rich"},
    "cli": {"typer", "rich", "click"},
}
PURE = ("errors", "graph", "records", "architecture", "space", "spec", "outcome", "pareto", "registration", "facts")
HEAVY = ("torch", "ray", "optuna", "ultralytics")
LINES = 400
PUBLIC = 12


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
PACKAGES = {"__init__", "attention", "catalog"}
INNER = sorted(FILES.keys() - PACKAGES)


def step(name: str) -> str:
    """The line of `HOUSE` that a file stands in."""
    return name if name in HOUSE else f"{name.rpartition('.')[0]}.*"


def imports(source: str) -> set[str]:
    """The full names of all imported modules, wherever the import stands; names taken from `nas_attn` itself count as its files."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            inside = node.module in ("nas_attn", "nas_attn.attention", "nas_attn.catalog")
            found |= {f"{node.module}.{alias.name}" for alias in node.names} if inside else {str(node.module)}
    return found


def own(source: str) -> set[str]:
    """The files of this package that a source imports."""
    names = {name.removeprefix("nas_attn.") for name in imports(source) if name.startswith("nas_attn.")}
    return {name for name in names if name in FILES or step(name) in HOUSE}


def foreign(source: str) -> set[str]:
    """The third-party libraries that a source imports."""
    tops = {name.partition(".")[0] for name in imports(source)}
    return tops - set(sys.stdlib_module_names) - {"nas_attn", "__future__"}


def upward(name: str, source: str) -> list[str]:
    """Imports of files that do not stand above `name`."""
    order = list(HOUSE)
    here = order.index(step(name))
    return [other for other in sorted(own(source)) if step(other) not in HOUSE or order.index(step(other)) >= here]


def banned(source: str) -> list[str]:
    """Calls of print, asserts about arguments, unfinished work."""
    tree = ast.parse(source)
    found = [
        f"print in line {node.lineno}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            spec = function.args
            given = {a.arg for a in [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, spec.vararg, spec.kwarg] if a} - {"self", "cls"}
            found += [
                f"assert on an argument in line {node.lineno}"
                for node in ast.walk(function)
                if isinstance(node, ast.Assert) and given & {n.id for n in ast.walk(node.test) if isinstance(n, ast.Name)}
            ]
    for word in ("TODO", "FIXME", "XXX"):
        found += [f"{word} in line {k}" for k, line in enumerate(source.splitlines(), 1) if word in line]
    handlers = [node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and all(isinstance(b, ast.Pass) for b in node.body)]
    return found + [f"except: pass in line {node.lineno}" for node in handlers]


def in_fresh_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=PACKAGE.parent, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_file_has_its_place():
    assert [name for name in INNER if step(name) not in HOUSE] == []


@pytest.mark.parametrize("name", INNER)
def test_a_file_imports_only_from_files_above_it(name):
    assert upward(name, FILES[name].read_text()) == []


@pytest.mark.parametrize("name", INNER)
def test_a_file_imports_only_its_libraries(name):
    assert foreign(FILES[name].read_text()) - HOUSE[step(name)] == set()


def test_the_package_files_import_no_library():
    for name in PACKAGES:
        assert foreign(FILES[name].read_text()) == ({"ultralytics"} if name == "attention" else set())


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_is_short_and_finished(name):
    source = FILES[name].read_text()
    assert len(source.splitlines()) <= LINES
    assert banned(source) == []
    assert ast.get_docstring(ast.parse(source)), "a file says what it is"


@pytest.mark.parametrize("name", ["", *(f".{name}" for name in PURE)])
def test_light_imports_stay_light(name):
    if name and name[1:] not in FILES:
        pytest.skip(f"nas_attn{name} does not exist")
    code = f"import sys, json, nas_attn{name}; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    assert json.loads(in_fresh_process(code)) == []


def declared_names() -> list[str]:
    for node in ast.parse(FILES["__init__"].read_text()).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return list(ast.literal_eval(node.value))
    return []


def test_the_public_names_are_exact():
    names = declared_names()
    if not names:
        pytest.skip("nas_attn/__init__.py declares no __all__")
    assert names == sorted(names)
    assert len(set(names)) == len(names) <= PUBLIC
    code = """
import importlib, json, types, nas_attn
missing = [n for n in nas_attn.__all__ if not hasattr(nas_attn, n)]
ours = [n for n, v in vars(nas_attn).items() if str(getattr(v, "__module__", "")).startswith("nas_attn")]
stray = [n for n in ours if not n.startswith("_") and n not in nas_attn.__all__]
modules = [n for n in nas_attn.__all__ if isinstance(getattr(nas_attn, n, None), types.ModuleType)]
print(json.dumps([missing, stray, modules]))
"""
    assert json.loads(in_fresh_process(code)) == [[], [], []]


def test_these_rules_can_fail():
    assert upward("errors", "from nas_attn.outcome import Trial") == ["outcome"]
    assert upward("pareto", "def f():\n    from nas_attn import pick") == ["pick"]
    assert upward("pick", "import nas_attn.report") == ["report"]
    assert upward("attention.lska", "from nas_attn.attention import halo") == ["attention.halo"]
    assert upward("attention.lska", "from nas_attn.attention.gate import Gated\nimport nas_attn") == []
    assert upward("pick", "from nas_attn import pareto\nfrom nas_attn.outcome import Trial") == []
    assert foreign("import torch.nn\nfrom yaml import load\nimport json, nas_attn") == {"torch", "yaml"}
    assert banned("print(1)") == ["print in line 1"]
    assert banned("def f(x):\n    assert x.y > 0") == ["assert on an argument in line 2"]
    assert banned("def f(x):\n    y = 2\n    assert y > 0\n    console.print(x)") == []
    assert banned("y = 1  # TO" + "DO later") == ["TODO in line 1"]
    assert banned("try:\n    f()\nexcept ValueError:\n    pass") == ["except: pass in line 3"]
