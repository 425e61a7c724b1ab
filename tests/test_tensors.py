import ast
import os
import pickle
from pathlib import Path

import pytest
import torch

import nas_attn
from nas_attn import checkpoint, detector, weights
from nas_attn.errors import InputError
from nas_attn.tensors import read_tensors

SOURCES = sorted(Path(nas_attn.__file__).parent.rglob("*.py"))
EXECUTES = {"eval", "exec", "compile", "__import__", "execfile"}
LOADERS = {"pickle.load", "pickle.loads", "torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "marshal.loads", "shelve.open"}
LOADERS |= {"joblib.load", "numpy.load", "np.load", "pd.read_pickle", "os.system", "os.popen", "tasks.torch_safe_load"}
KNOWN = {
    ("tensors", "torch.load"),  # weights_only, and no torch in which that is not safe
    ("weights", "tasks.torch_safe_load"),  # safe_only
    ("document", "yaml.load"),  # with a loader of plain values
    ("contract", "pickle.loads"),  # of what it has pickled itself, to see that modules survive it
    ("contract", "torch.load"),
}


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (os.environ["BOMB"],)


@pytest.fixture
def bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint that makes a folder when it is unpickled."""
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    for name, content in {"plain": Bomb(), "model": {"model": Bomb()}, "state": {"a": torch.zeros(1), "b": Bomb()}}.items():
        torch.save(content, tmp_path / f"{name}.pt", pickle_module=pickle)
    return tmp_path


@pytest.mark.parametrize("name", ["plain", "model", "state"])
def test_nothing_in_a_file_is_executed(bomb: Path, name: str) -> None:
    file = bomb / f"{name}.pt"
    with pytest.raises(pickle.UnpicklingError):
        read_tensors(file)
    with pytest.raises(InputError, match=r"where you trust the file.*its tensors: python -c"):
        weights.read_state(file)
    assert checkpoint.first_usable([file], "x", 9) is None
    assert not (bomb / "exploded").exists()
    torch.load(file, weights_only=False)  # it would have
    assert (bomb / "exploded").is_dir()


def test_the_way_to_convert_is_one_that_works(tmp_path: Path) -> None:
    graph, scale = detector.load_base("yolo11n.yaml")
    model = detector.build(graph, scale, 4)
    torch.save({"model": model, "bomb": Unknown()}, tmp_path / "best.pt")
    with pytest.raises(InputError, match="its tensors"):
        weights.read_state(tmp_path / "best.pt")
    code = weights.CONVERT.removeprefix('python -c "').removesuffix('"')
    before = Path.cwd()
    try:
        os.chdir(tmp_path)
        exec(code, {})
    finally:
        os.chdir(before)
    state = weights.read_state(tmp_path / "weights.pt")
    assert all(torch.equal(state[name], value.float()) for name, value in model.state_dict().items())


class Unknown:
    """Of a class that no loader of weights knows."""


@pytest.mark.parametrize("version", ["2.9.1+cu128", "1.13.0", "2.5", "unknown"])
def test_an_old_torch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pt")
    monkeypatch.setattr(torch, "__version__", version)
    for read in (read_tensors, weights.read_state, lambda file: checkpoint.first_usable([file], "x", 9)):
        with pytest.raises(InputError, match=r"needs torch 2\.10 or later.*pip install -U torch"):
            read(tmp_path / "a.pt")
    monkeypatch.setattr(torch, "__version__", "2.10.0a0+git")
    assert list(read_tensors(tmp_path / "a.pt")) == ["a"]


def calls(source: str) -> set[str]:
    """The names of all functions that a source calls, as it writes them, and `shell` where a command goes through one."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            found.add(ast.unparse(node.func))
            found |= {"shell" for word in node.keywords if word.arg == "shell"}
    return found


def test_nothing_else_in_the_package_unpickles_or_evaluates() -> None:
    dangerous = EXECUTES | LOADERS | {"shell"}
    found = {(path.stem, name) for path in SOURCES for name in calls(path.read_text()) & dangerous}
    assert found == KNOWN
    for path in SOURCES:
        source = path.read_text()
        assert "weights_only=False" not in source
        assert "safe_only=False" not in source
    assert calls("a.b(eval('1'))") == {"a.b", "eval"}
