"""Search spaces as users write them: what is read, what is filled in, and the one line that each mistake gets."""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml

from nas_attn import arguments, listing, records
from nas_attn.document import LARGEST_BYTES
from nas_attn.errors import SpaceError
from nas_attn.records import MODULES
from nas_attn.space import Site
from nas_attn.spec import BaseFit, Proxy, SpaceSpec, shipped

GOOD: dict[str, Any] = {"base": "yolo11n.yaml", "sites": ["P3", "SPPF?", 22], "modules": {"LSKA": {"k_size": [7, 11]}}}
FAMILIES = ("yolov5", "yolov8", "yolo11", "yolo12", "yolo26")


def refusal(**changes: Any) -> str:
    """What a good space says after some of its keys were changed; exactly one line."""
    with pytest.raises(SpaceError) as caught:
        SpaceSpec.from_dict({**GOOD, **changes}, "my.yaml")
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert text.startswith("my.yaml: ")
    return text.removeprefix("my.yaml: ")


# -- what is read --------------------------------------------------------------------------------------------------------------------------


def test_defaults_are_the_documented_ones() -> None:
    spec = SpaceSpec.from_dict(GOOD)
    assert (spec.max_placements, spec.base_seeds, spec.seeds, spec.controls, spec.search_val, spec.seed) == (3, 3, 1, True, 0.2, 0)
    assert spec.limits == {}
    assert spec.objectives == {"map50_95": "maximize", "latency_ratio": "minimize"}
    assert spec.base_fit.model_dump() == {"epochs": 30, "imgsz": 160, "batch": 16, "lr0": 0.002}
    assert spec.proxy.model_dump() == {
        "epochs": 6,
        "imgsz": 160,
        "batch": 16,
        "lr0": 0.001,
        "new_lr_scale": 10.0,
        "average": 1,
        "rungs": None,
    }
    assert spec.latency.model_dump() == {"backend": "torch", "imgsz": 160, "batch": 1, "blocks": 30, "calibrations": 30, "retries": 5}


def test_image_size_and_batch_are_the_proxys_unless_given() -> None:
    spec = SpaceSpec.from_dict({**GOOD, "proxy": {"imgsz": 320, "batch": 8}})
    assert (spec.base_fit.imgsz, spec.base_fit.batch, spec.latency.imgsz, spec.latency.batch) == (320, 8, 320, 1)
    spec = SpaceSpec.from_dict({**GOOD, "proxy": {"imgsz": 320}, "base_fit": {"imgsz": 640, "batch": None}, "latency": {"imgsz": 96}})
    assert (spec.base_fit.imgsz, spec.base_fit.batch, spec.latency.imgsz) == (640, 16, 96)


def test_modules_take_all_their_choices_where_none_are_given() -> None:
    for empty in (None, {}):
        spec = SpaceSpec.from_dict({**GOOD, "modules": dict.fromkeys(MODULES, empty)})
        for name, entry in MODULES.items():
            assert spec.modules[name] == {hyper.name: hyper.choices for hyper in entry.hyperparameters}
    partly = SpaceSpec.from_dict({**GOOD, "modules": {"HaloAttention": {"halo_size": 2}}})
    assert partly.modules["HaloAttention"] == {"block_size": (4, 8), "halo_size": (2,), "dim_head": (16,)}


def test_fractions_are_numbers() -> None:
    spec = SpaceSpec.from_dict({**GOOD, "modules": {"DoubleAttention": {"c_m": ["1/8", "1 / 4", 0.25, 64], "c_n": "1/2"}}})
    assert spec.modules["DoubleAttention"] == {"c_m": (0.125, 0.25, 64), "c_n": (0.5,)}


def test_values_that_do_not_all_fit_together_are_choices_as_long_as_each_fits_somewhere() -> None:
    choices = {"num_heads": [2, 8], "n_local": [1, 4]}
    spec = SpaceSpec.from_dict({**GOOD, "modules": {"CloAttention": choices}})
    assert spec.modules["CloAttention"]["num_heads"] == (2, 8)
    assert refusal(modules={"CloAttention": {**choices, "n_local": [1, 9]}}).startswith("modules.CloAttention.n_local: got 9: ")


def test_numbers_keep_their_kinds() -> None:
    spec = SpaceSpec.from_dict({**GOOD, "modules": {"LSKA": {"k_size": [7], "use_proj": [True, False]}}})
    assert [type(value) for values in spec.modules["LSKA"].values() for value in values] == [int, bool, bool]


def test_further_arguments_are_kept_with_their_section() -> None:
    spec = SpaceSpec.from_dict({**GOOD, "proxy": {"mosaic": 0.5, "cos_lr": True}, "base_fit": {"optimizer": "SGD"}})
    assert spec.proxy.args == (("cos_lr", True), ("mosaic", 0.5))
    assert spec.proxy.model_dump()["mosaic"] == 0.5
    assert spec.base_fit.args == (("optimizer", "SGD"),)


def test_objectives_have_one_order() -> None:
    given = {"gmacs": "minimize", "latency_ratio": "minimize", "map50_95": "maximize"}
    assert list(SpaceSpec.from_dict({**GOOD, "objectives": given}).objectives) == ["map50_95", "latency_ratio", "gmacs"]


def test_exponents_without_a_point_are_numbers() -> None:
    assert SpaceSpec.from_yaml("base: b.yaml\nsites: [1]\nmodules: {LIA: }\nproxy: {lr0: 1e-3}").proxy.lr0 == 0.001


def test_yaml_round_trip() -> None:
    full = {
        **GOOD,
        "modules": {"LSKA": None, "DoubleAttention": {"c_m": ["1/8"]}, "LIA": {"f": [8]}},
        "limits": {"params_m": 4, "latency_ratio": 1.3},
        "objectives": {"map50_95": "maximize", "latency_ratio": "minimize", "params_m": "minimize"},
        "base_fit": {"epochs": 0, "lr0": 1e-5},
        "proxy": {"imgsz": 96, "mosaic": 0.0, "optimizer": "SGD"},
        "controls": False,
        "seed": 7,
    }
    spec = SpaceSpec.from_dict(full)
    text = spec.to_yaml()
    assert SpaceSpec.from_yaml(text) == spec
    assert SpaceSpec.from_yaml(text).to_yaml() == text
    assert SpaceSpec.from_dict(spec.model_dump(mode="json")) == spec
    assert set(yaml.safe_load(text)) == set(SpaceSpec.model_fields)


def test_specs_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        SpaceSpec.from_dict(GOOD).seed = 3  # type: ignore[misc]


# -- one line for each mistake -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"limts": {}}, "limts: must be a known key. Did you mean 'limits'? Known: base, "),
        (
            {"base": "models/my.yaml"},
            "base: must be a file's name without folders, but got 'models/my.yaml'; put the file beside this space",
        ),
        ({"base": "..\\my.yaml"}, "base: must be a file's name without folders"),
        ({"base": "yolo11n.pt"}, "base: must be a model YAML, but got 'yolo11n.pt'; write e.g. yolo11n.yaml here and give weights with"),
        ({"base": "yolo11n"}, "base: must be the name of a model YAML, but got 'yolo11n'"),
        ({"base": 11}, "base: must be a word, but got 11; write e.g. yolo11n.yaml."),
        ({"sites": []}, "sites: must be a list of names or rows, but got []; write e.g. [P3, P4, P5]."),
        ({"sites": "P3"}, "sites: must be a list of names or rows, but got 'P3'"),
        ({"sites": ["P3", -1]}, "sites.1: must be a site's name or a row from 0, but got -1; `nas-attn sites` lists them."),
        ({"sites": [True]}, "sites.0: must be a site's name or a row from 0, but got True"),
        ({"sites": ["P3??"]}, "sites.0: must be a site's name"),
        ({"max_placements": 0}, "max_placements: must be greater than or equal to 1, but got 0; write e.g. 3."),
        ({"max_placements": True}, "max_placements: must be a whole number, but got True; write e.g. 3."),
        ({"max_placements": "3"}, "max_placements: must be a whole number, but got '3'; write e.g. 3."),
        ({"modules": {}}, "modules: must map modules to their hyperparameters, but got {}; write e.g. {LSKA: {k_size: [7, 11]}}."),
        ({"modules": ["LSKA"]}, "modules: must map modules to their hyperparameters, but got ['LSKA']"),
        ({"modules": {"LSKAA": {}}}, "modules.LSKAA: must be a module's name. Did you mean 'LSKA'? Known: AIFI, "),
        ({"modules": {3: {}}}, "modules.3: must be a module's name. Known: "),
        ({"modules": {"LSKA": 7}}, "modules.LSKA: must map hyperparameters to lists of values, but got 7; leave it empty for all of them."),
        ({"modules": {"LSKA": {"ksize": [7]}}}, "modules.LSKA.ksize: must be a hyperparameter of LSKA. Did you mean 'k_size'?"),
        ({"modules": {"LSKA": {"k_size": []}}}, "modules.LSKA.k_size: must be a list of at least one value, but got []"),
        ({"modules": {"LSKA": {"k_size": [7, 9]}}}, "modules.LSKA.k_size: got 9: LSKA: `k_size in (7, 11, 23, 35, 41, 53)` must hold"),
        (
            {"modules": {"LSKA": {"k_size": [7, "1/2"]}}},
            "modules.LSKA.k_size.1: got '1/2': `k_size` must be a whole number, but got k_size=0.5",
        ),
        ({"modules": {"LSKA": {"use_proj": [1]}}}, "modules.LSKA.use_proj.0: got 1: `use_proj` must be true or false"),
        ({"modules": {"LIA": {"f": [{}]}}}, "modules.LIA.f.0: got {}: `f` must be a whole number"),
        (
            {"modules": {"DoubleAttention": {"c_m": "3/2"}}},
            "modules.DoubleAttention.c_m.0: got '3/2': `c_m` must be a fraction of the channels",
        ),
        ({"modules": {"DoubleAttention": {"c_m": [0.0]}}}, "modules.DoubleAttention.c_m.0: got 0.0: `c_m` must be a fraction"),
        ({"modules": {"DoubleAttention": {"c_m": ["1/0"]}}}, "modules.DoubleAttention.c_m.0: got '1/0': `c_m` must be a fraction"),
        ({"modules": {"CloAttention": {"n_local": [9]}}}, "modules.CloAttention.n_local: got 9: CloAttention: `0 <= n_local <= num_heads`"),
        ({"modules": {"LIA": {"f": list(range(1, 10_002))}}}, "modules.LIA: must have at most 10000 combinations of values, but has 10001"),
        ({"limits": {"latency": 1.3}}, "limits.latency: must be a cost that can be limited. Did you mean 'latency_"),
        ({"limits": {"map50_95": 0.3}}, "limits.map50_95: must be a cost that can be limited. Known: gmacs, "),
        ({"limits": {"params_m": 0}}, "limits.params_m: must be greater than 0, but got 0"),
        ({"limits": {"params_m": float("nan")}}, "limits.params_m: must be "),
        ({"limits": 4}, "limits: must map names to values, but got 4"),
        ({"objectives": {"fps": "maximize"}}, "objectives.fps: must be a known objective. Known: gmacs, "),
        ({"objectives": {"map50_95": "minimize"}}, "objectives.map50_95: must be 'maximize', but got 'minimize'"),
        ({"objectives": {"map50_95": "maximize"}}, "objectives: must hold map50_95 and latency_ratio, but latency_ratio is missing"),
        ({"base_fit": {"epochs": -1}}, "base_fit.epochs: must be greater than or equal to 0, but got -1; write e.g. 30."),
        ({"base_fit": 30}, "base_fit: must map keys to values, but got 30"),
        ({"proxy": {"epochs": 0}}, "proxy.epochs: must be greater than or equal to 1, but got 0; write e.g. 6."),
        ({"proxy": {"imgsz": 100}}, "proxy.imgsz: must be a multiple of 32, but got 100; write e.g. 160."),
        ({"proxy": {"lr0": float("inf")}}, "proxy.lr0: must be a finite number, but got inf"),
        ({"proxy": {"epoch": 3}}, "proxy.epoch: must be a known argument. Did you mean 'epochs'? Known: "),
        ({"proxy": {"seed": 3}}, "proxy.seed: cannot be set, but got 3: the space has one `seed` for all; remove it."),
        ({"base_fit": {"freeze": 10}}, "base_fit.freeze: cannot be set, but got 10: base and candidates must train alike"),
        ({"proxy": {"optimizer": "auto"}}, "proxy.optimizer: must be one optimizer, but got 'auto'"),
        ({"proxy": {"scale": [0.5, 0.9]}}, "proxy.scale: must be a number, a word, true or false, but got [0.5, 0.9]; write one value."),
        ({"proxy": {"box": float("nan")}}, "proxy.box: must be a number, a word, true or false, but got nan"),
        ({"latency": {"backend": "tensorrt"}}, "latency.backend: must be 'torch' or 'onnxruntime', but got 'tensorrt'; write e.g. torch."),
        ({"latency": {"block": 30}}, "latency.block: must be a known key. Did you mean 'blocks'? Known: backend, "),
        ({"latency": {"blocks": 1}}, "latency.blocks: must be greater than or equal to 2, but got 1; write e.g. 30."),
        ({"controls": 1}, "controls: must be true or false, but got 1; write e.g. true."),
        ({"search_val": 1.0}, "search_val: must be less than 1, but got 1.0; write e.g. 0.2."),
        ({"search_val": 0}, "search_val: must be greater than 0, but got 0"),
        ({"seeds": 4}, "seeds: must be at most `base_seeds`, but got 4 with base_seeds=3"),
        ({"seed": -1}, "seed: must be greater than or equal to 0, but got -1; write e.g. 0."),
    ],
)
def test_each_mistake_gets_one_line_that_says_what_would_be_right(changes: dict[str, Any], line: str) -> None:
    assert refusal(**changes).startswith(line)


@pytest.mark.parametrize("key", ["base", "sites", "modules"])
def test_what_has_no_default_must_be_given(key: str) -> None:
    with pytest.raises(SpaceError, match=f"^my.yaml: {key}: must be given, but is missing"):
        SpaceSpec.from_dict({name: value for name, value in GOOD.items() if name != key}, "my.yaml")


def test_several_mistakes_get_a_line_each() -> None:
    with pytest.raises(SpaceError) as caught:
        SpaceSpec.from_dict({**GOOD, "seed": -1, "proxy": {"imgsz": 7}, "modules": {"LSK": {}}}, "my.yaml")
    keys = [line.split(": ")[1] for line in str(caught.value).splitlines()]
    assert keys == ["modules.LSK", "proxy.imgsz", "seed"]


# -- YAML ----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: &b yolo11n.yaml\nsites: *b\n", r"alias \*b is not allowed, write it out \(line 2, column 8\)"),
        ("base: a.yaml\nbase: b.yaml\n", r"key 'base' is written twice, keep one \(line 2, column 1\)"),
        ("proxy: {epochs: 1, epochs: 2}\n", "key 'epochs' is written twice"),
        ("? [a]\n: 3\n", r"key \['a'\] is a list or a mapping"),
        ("base: [\n", r"must be plain YAML, but .*\(line 2, column 1\)"),
        ("base: !!python/object/apply:os.system ['true']\n", r"tag 'tag:yaml.org,2002:python/object/apply:os.system' is not allowed"),
        ("a: 1\n---\nb: 2\n", r"must be plain YAML, but found another document \(line 2, column 1\)"),
        ("a: \0", "must be plain YAML in UTF-8, but unacceptable character"),
        (b"a: \xff\xfe\xff", "must be plain YAML in UTF-8"),
        ("[" * 20_000, "must be plain YAML"),
        ("a" * (LARGEST_BYTES + 1), f"must be at most {LARGEST_BYTES} bytes, but has {LARGEST_BYTES + 1}"),
        ("", "must map keys to values, but got None"),
        ("- base\n", r"must map keys to values, but got \['base'\]"),
    ],
)
def test_texts_that_are_no_plain_yaml_are_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(SpaceError, match=message) as caught:
        SpaceSpec.from_yaml(text, "my.yaml")
    assert str(caught.value).startswith("my.yaml: ")
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_is_read_and_named_in_errors(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(SpaceSpec.from_dict(GOOD).to_yaml(), encoding="utf-8")
    assert SpaceSpec.load(file) == SpaceSpec.load(str(file)) == SpaceSpec.from_dict(GOOD)
    file.write_text("base: 3\n", encoding="utf-8")
    with pytest.raises(SpaceError, match=r"mine\.yaml: base: must be a word"):
        SpaceSpec.load(file)


@pytest.mark.parametrize(
    ("name", "message"), [("toyy", "Did you mean 'toy'"), ("no/such.yaml", "but got 'no/such.yaml'. Known: all, light, seed, toy")]
)
def test_unknown_spaces_are_refused_with_the_shipped_ones(name: str, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        SpaceSpec.load(name)


def test_a_base_of_ones_own_lies_beside_the_space(tmp_path: Path) -> None:
    space, base = tmp_path / "space.yaml", tmp_path / "mine.yaml"
    spec = SpaceSpec.from_dict({**GOOD, "base": "mine.yaml"})
    assert spec.base_file(space) == "mine.yaml"
    base.touch()
    assert spec.base_file(space) == str(base)
    # A space that is named as its base is not its base.
    assert spec.base_file(base) == "mine.yaml"


# -- sites ---------------------------------------------------------------------------------------------------------------------------------

SITES = (Site(4, ("P3",), "C3k2", 128, 8), Site(9, ("SPPF",), "SPPF", 256, 32), Site(22, ("neck_P5_out",), "C3k2", 256, 32))


def test_resolve_gives_the_space_over_the_sites() -> None:
    space = SpaceSpec.from_dict({**GOOD, "max_placements": 2, "proxy": {"imgsz": 320}}).resolve(SITES)
    assert (space.base, space.max_placements, [s.layer for s in space.sites]) == ("yolo11n.yaml", 2, [4, 9, 22])
    assert space.size == 1 + 3 * 2 + 3 * 2 * 2


def test_a_missing_site_is_told_in_one_line() -> None:
    with pytest.raises(SpaceError, match=r"^my\.yaml: sites: A site must exist in yolo11n\.yaml, but got 22\. Rows with") as caught:
        SpaceSpec.from_dict(GOOD).resolve(SITES[:2], "my.yaml")
    assert len(str(caught.value).splitlines()) == 1


def test_a_resolved_space_is_the_same_after_its_yaml() -> None:
    spec = SpaceSpec.from_dict({**GOOD, "modules": dict.fromkeys(MODULES)})
    assert SpaceSpec.from_yaml(spec.to_yaml()).resolve(SITES) == spec.resolve(SITES)


# -- shipped spaces ------------------------------------------------------------------------------------------------------------------------


def test_every_family_the_whole_table_and_the_toy_are_shipped() -> None:
    assert set(shipped()) == {"toy", "seed", "light", "all", "yolo11-cpu", *FAMILIES}


@pytest.mark.parametrize("name", sorted(shipped()))
def test_shipped_spaces_load_by_name_without_a_path(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = SpaceSpec.load(name)
    assert spec == SpaceSpec.load(f"{name}.yaml")
    assert SpaceSpec.from_yaml(spec.to_yaml()) == spec
    text = shipped()[name].read_text(encoding="utf-8")
    assert f"nas-attn search {name} " in text
    assert max(map(len, text.splitlines())) <= 140


SEED = {"LIA", "HaloAttention", "DoubleAttention", "LSKA", "CloAttention"}


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_searches_modules_of_every_kind_at_six_sites_or_more(family: str) -> None:
    spec = SpaceSpec.load(family)
    assert spec.base == f"{family}n.yaml"
    assert set(spec.modules) > SEED
    assert {MODULES[name].family for name in spec.modules} >= {"channel", "spatial", "kernel", "local", "global"}
    assert len(spec.sites) >= 6


def test_the_named_selections_hold_what_they_say() -> None:
    assert set(SpaceSpec.load("seed").modules) == SEED
    assert set(SpaceSpec.load("all").modules) == set(MODULES)
    assert set(SpaceSpec.load("light").modules) == set(listing.light())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(shipped()))
def test_shipped_spaces_fit_their_base(name: str) -> None:
    detector = pytest.importorskip("nas_attn.detector")
    spec = SpaceSpec.load(name)
    graph, scale = detector.load_base(spec.base_file(shipped()[name]))
    space = spec.resolve(detector.sites(graph, scale), name)
    assert len(space.sites) == len(spec.sites)
    assert {placement.module for options in space.placements for placement in options} == set(spec.modules)
    assert space.size >= 300


# -- Ultralytics' arguments ----------------------------------------------------------------------------------------------------------------


def ultralytics_arguments() -> dict[str, Any]:
    """Ultralytics' own table of arguments, read without importing it."""
    package = importlib.util.find_spec("ultralytics")
    assert package is not None
    assert package.origin is not None
    text = (Path(package.origin).parent / "cfg" / "default.yaml").read_text(encoding="utf-8")
    table: dict[str, Any] = yaml.safe_load(text)
    return table


def test_every_named_argument_is_one_of_ultralytics() -> None:
    known = {*ultralytics_arguments(), "save_dir"}
    assert set(arguments.FREE) <= known
    assert set(arguments.PINNED) <= known
    assert not set(arguments.FREE) & set(arguments.PINNED)


def test_every_argument_that_changes_a_training_is_free_pinned_or_a_field() -> None:
    # Ultralytics tells sections apart by comments only; what lies between these belongs to training detectors.
    names = list(ultralytics_arguments())
    training = names[: names.index("overlap_mask")] + names[names.index("lr0") : names.index("auto_augment")]
    other_tasks = {"pose", "kobj", "rle", "angle", "dlog", "dgrad", "dlam"}
    decided = {*arguments.FREE, *arguments.PINNED, *BaseFit.model_fields, *Proxy.model_fields, *other_tasks}
    assert set(training) <= decided


def test_free_arguments_are_accepted_as_ultralytics_has_them() -> None:
    table = ultralytics_arguments()
    for name in arguments.FREE:
        value = {"optimizer": "SGD", "channels_last": True}.get(name, table[name])
        assert arguments.problem(name, value) is None, name


@pytest.mark.parametrize("name", sorted(arguments.PINNED))
def test_pinned_arguments_are_refused_with_the_reason(name: str) -> None:
    line = refusal(proxy={name: "x"})
    assert line == f"proxy.{name}: cannot be set, but got 'x': {arguments.PINNED[name]}; remove it."


def test_the_larger_of_both_image_sizes_and_onnx_reach_the_space(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {**GOOD, "sites": ["P5"], "modules": {"LSKA": {"k_size": [7, 23]}, "LIA": None}, "proxy": {"imgsz": 160}}
    deep = [Site(9, ("P5",), "Conv", 256, 32)]

    def kernels(**more: object) -> list[object]:
        space = SpaceSpec.from_dict({**chosen, **more}).resolve(deep)
        return [dict(p.params).get("k_size") for p in space.placements[0] if p.module == "LSKA"]

    assert kernels() == [7]
    assert kernels(latency={"imgsz": 640}) == kernels(proxy={"imgsz": 640}) == [7, 23]
    monkeypatch.setitem(records._TABLE, "LSKA", dataclasses.replace(MODULES["LSKA"], onnx="static"))
    assert kernels(onnx="any") == [7]
    assert kernels(onnx="dynamic") == []


def test_rungs_and_averages_of_the_proxy_are_read_and_are_no_arguments_of_ultralytics() -> None:
    spec = SpaceSpec.from_dict({**GOOD, "proxy": {"epochs": 9, "rungs": [1, 3, 9], "average": 3, "mosaic": 0.5}})
    assert (spec.proxy.rungs, spec.proxy.average, spec.proxy.args) == ((1, 3, 9), 3, (("mosaic", 0.5),))
    assert SpaceSpec.from_yaml(spec.to_yaml()) == spec
    assert SpaceSpec.from_dict({**GOOD, "proxy": {"epochs": 9, "rungs": [9]}}).proxy.rungs == (9,)


@pytest.mark.parametrize(
    ("proxy", "line"),
    [
        ({"rungs": [1, 3]}, "proxy.rungs: must end with `epochs`, the whole training, but got [1, 3]; write 9 last."),
        ({"rungs": [3, 1, 9]}, "proxy.rungs: must be a rising list of whole epochs from 1, but got [3, 1, 9]; write e.g. [1, 3, 9]."),
        ({"rungs": [0, 9]}, "proxy.rungs: must be a rising list of whole epochs from 1, but got [0, 9]; write e.g. [1, 3, 9]."),
        ({"rungs": [3, 3, 9]}, "proxy.rungs: must be a rising list of whole epochs from 1, but got [3, 3, 9]; write e.g. [1, 3, 9]."),
        ({"rungs": [1.5, 9]}, "proxy.rungs: must be a rising list of whole epochs from 1, but got [1.5, 9]; write e.g. [1, 3, 9]."),
        ({"rungs": []}, "proxy.rungs: must be a rising list of whole epochs from 1, but got []; write e.g. [1, 3, 9]."),
        ({"rungs": 9}, "proxy.rungs: must be a rising list of whole epochs from 1, but got 9; write e.g. [1, 3, 9]."),
        ({"average": 10}, "proxy.average: must be at most `epochs`, but got 10 with epochs=9; average fewer."),
    ],
)
def test_rungs_and_averages_that_do_not_fit_are_told(proxy: dict[str, object], line: str) -> None:
    with pytest.raises(SpaceError) as caught:
        SpaceSpec.from_dict({**GOOD, "proxy": {"epochs": 9, **proxy}}, "space.yaml")
    assert str(caught.value) == f"space.yaml: {line}"
