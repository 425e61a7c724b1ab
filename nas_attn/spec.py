"""What users write about a search, as YAML: the base, its sites, the modules, limits, schedules. Read safely, checked whole, shown in full.

`SpaceSpec.load(path or name)` gives a value in which every default is filled in. What is wrong is told in one line each: the file, the key,
the value, what would be right. `spec.resolve(sites of the base)` gives the `SearchSpace`.
"""

import math
import re
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from nas_attn.architecture import Param
from nas_attn.arguments import problem as argument_problem
from nas_attn.blueprint import ModuleRecord
from nas_attn.document import is_file, read, read_file, write
from nas_attn.errors import SpaceError, nearest, shown, word
from nas_attn.records import MODULES
from nas_attn.space import SearchSpace, Site, combinations, resolve

LARGEST_PRODUCT = 10_000
"""Combinations of one module's hyperparameters: more can neither be searched nor shown."""

BASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.ya?ml")
SITE = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}\??")
FRACTION = re.compile(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*")

METRICS: Mapping[str, Literal["maximize", "minimize"]] = {
    "map50_95": "maximize",
    "map50": "maximize",
    "latency_ratio": "minimize",
    "latency_ms": "minimize",
    "params_m": "minimize",
    "gmacs": "minimize",
}
COSTS = tuple(name for name, direction in METRICS.items() if direction == "minimize")
PLANE = ("map50_95", "latency_ratio")
"""The objectives that every search has: fronts, picks and reports are drawn in this plane."""

Count = Annotated[int, Field(strict=True, ge=1)]
Pixels = Annotated[int, Field(strict=True, ge=32, multiple_of=32)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Schedule(BaseModel):
    """One training: its length, image size in pixels, batch and learning rate; further arguments of Ultralytics may follow."""

    model_config = ConfigDict(frozen=True, extra="allow")

    epochs: Count
    imgsz: Pixels = 160
    batch: Count = 16
    lr0: Positive

    @property
    def args(self) -> tuple[tuple[str, Any], ...]:
        """The further Ultralytics arguments, sorted by name."""
        return tuple(sorted((self.__pydantic_extra__ or {}).items()))

    @model_validator(mode="before")
    @classmethod
    def _check_arguments(cls, data: Any) -> Any:
        own = cls.model_fields
        for name, value in data.items() if isinstance(data, Mapping) else ():
            if name not in own and (text := argument_problem(name, value, own)):
                raise _refusal(text, name)
        return data


class BaseFit(Schedule):
    """How the base is fitted to the data, once; with `epochs: 0` it is taken as its weights are."""

    epochs: Annotated[int, Field(strict=True, ge=0)] = 30
    lr0: Positive = 0.002


class Proxy(Schedule):
    """The short training of every candidate from the fitted base. Inserted modules learn `new_lr_scale` times as fast.

    Its score is the mean over the last `average` epochs. `rungs` are the epochs after which a race may stop it, the last of them `epochs`;
    not given, each is a third of the next, rounded down. A rung is a pause: the schedule stays that of `epochs`.
    """

    epochs: Count = 6
    lr0: Positive = 0.001
    new_lr_scale: Positive = 10.0
    average: Count = 1
    rungs: tuple[int, ...] | None = None

    @field_validator("rungs", mode="before")
    @classmethod
    def _check_rungs(cls, value: Any) -> Any:
        given = value if isinstance(value, (list, tuple)) else ()
        whole = all(type(rung) is int and rung >= 1 for rung in given)
        if value is not None and (not given or not whole or list(given) != sorted(set(given))):
            raise _refusal(f"must be a rising list of whole epochs from 1, but got {shown(value)}; write e.g. [1, 3, 9]")
        return value

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if self.average > self.epochs:
            raise _refusal(f"must be at most `epochs`, but got {self.average} with epochs={self.epochs}; average fewer", "average")
        if self.rungs and self.rungs[-1] != self.epochs:
            raise _refusal(f"must end with `epochs`, the whole training, but got {list(self.rungs)}; write {self.epochs} last", "rungs")
        return self


class Timing(_Section):
    """How latency is measured: by which runtime, image size in pixels, batch, interleaved blocks, quiet runs of the base before, repeats of
    unquiet ones.
    """

    backend: Literal["torch", "onnxruntime"] = "torch"
    imgsz: Pixels = 160
    batch: Count = 1
    blocks: Annotated[int, Field(strict=True, ge=2)] = 30
    calibrations: Annotated[int, Field(strict=True, ge=2)] = 30
    retries: Annotated[int, Field(strict=True, ge=0)] = 5


class SpaceSpec(_Section):
    """A search as its user describes it, defaults filled in.

    With `onnx: dynamic` only modules whose ONNX export leaves batch, height and width open are placed.
    `base_fit` takes image size and batch, `latency` the image size, from `proxy` where they are not given.
    """

    base: str
    sites: tuple[int | str, ...]
    max_placements: Count = 3
    modules: Mapping[str, Mapping[str, tuple[Param, ...]]]
    onnx: Literal["any", "dynamic"] = "any"
    limits: Mapping[str, Positive] = Field(default_factory=dict)
    objectives: Mapping[str, str] = Field(default_factory=lambda: {name: METRICS[name] for name in PLANE})
    base_fit: BaseFit = Field(default_factory=BaseFit)
    proxy: Proxy = Field(default_factory=Proxy)
    latency: Timing = Field(default_factory=Timing)
    base_seeds: Count = 3
    seeds: Count = 1
    controls: Annotated[bool, Field(strict=True)] = True
    search_val: Annotated[float, Field(strict=True, gt=0, lt=1)] = 0.2
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**31)] = 0

    @classmethod
    def load(cls, path_or_name: str | Path) -> Self:
        """The space in a file, or the shipped one of that name (`toy` or `toy.yaml`).

        Raises:
            SpaceError: no such file or name, or what is wrong in it, one line each.
        """
        file = _find(path_or_name)
        return cls.from_dict(read_file(file), str(file))

    @classmethod
    def from_yaml(cls, content: str | bytes, source: str = "space.yaml") -> Self:
        """The space in a text; `source` names it in errors.

        Raises:
            SpaceError: what is wrong in it, one line each.
        """
        return cls.from_dict(read(content, source), source)

    @classmethod
    def from_dict(cls, data: Any, source: str = "space") -> Self:
        """The space in plain values; `source` names them in errors.

        Raises:
            SpaceError: what is wrong in them, one line each.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise SpaceError("\n".join(f"{source}: {_line(detail)}" for detail in error.errors())) from error

    def to_yaml(self) -> str:
        """The space with every default written out; `from_yaml` of it is equal."""
        return write(self.model_dump(mode="json"))

    def base_file(self, beside: Path | str) -> str:
        """Where `base` is: in the folder of the space file `beside`, or just its name, for the current folder or Ultralytics to know."""
        own = Path(beside).parent / self.base
        return str(own) if own.is_file() and not (Path(beside).is_file() and own.samefile(beside)) else self.base

    def resolve(self, sites: Sequence[Site], source: str = "space") -> SearchSpace:
        """The search space over the chosen ones of a base's `sites`; `source` names the space in errors.

        Raises:
            SpaceError: a site that the base lacks, or nothing legal left at any of them.
        """
        try:
            imgsz = max(self.proxy.imgsz, self.latency.imgsz)
            dynamic = self.onnx == "dynamic"
            return resolve(self.base, sites, self.sites, self.modules, self.max_placements, imgsz=imgsz, dynamic_onnx=dynamic)
        except SpaceError as error:
            raise SpaceError(f"{source}: sites: {error}") from error

    @model_validator(mode="before")
    @classmethod
    def _share_sizes(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        try:
            proxy = Proxy.model_validate(data.get("proxy", {}))
        except ValidationError:
            return data  # the field itself tells what is wrong
        filled = dict(data)
        for section, shared in (("base_fit", {"imgsz": proxy.imgsz, "batch": proxy.batch}), ("latency", {"imgsz": proxy.imgsz})):
            given = filled.get(section, {})
            if isinstance(given, Mapping):
                filled[section] = shared | {name: value for name, value in given.items() if name not in shared or value is not None}
        return filled

    @field_validator("base")
    @classmethod
    def _check_base(cls, value: str) -> str:
        if "/" in value or "\\" in value:
            raise _refusal(f"must be a file's name without folders, but got {value!r}; put the file beside this space and write its name")
        if value.endswith(".pt"):
            raise _refusal(f"must be a model YAML, but got {value!r}; write e.g. yolo11n.yaml here and give weights with --weights")
        if not BASE.fullmatch(value):
            raise _refusal(f"must be the name of a model YAML, but got {value!r}; write e.g. yolo11n.yaml")
        return value

    @field_validator("sites", mode="before")
    @classmethod
    def _check_sites(cls, value: Any) -> Any:
        if not isinstance(value, (list, tuple)) or not value:
            raise _refusal(f"must be a list of names or rows, but got {shown(value)}; write e.g. [P3, P4, P5]")
        for position, site in enumerate(value):
            row = isinstance(site, int) and not isinstance(site, bool) and site >= 0
            if not row and not (isinstance(site, str) and SITE.fullmatch(site)):
                raise _refusal(f"must be a site's name or a row from 0, but got {shown(site)}; `nas-attn sites` lists them", position)
        return tuple(dict.fromkeys(value))

    @field_validator("modules", mode="before")
    @classmethod
    def _check_modules(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or not value:
            raise _refusal(f"must map modules to their hyperparameters, but got {shown(value)}; write e.g. {{LSKA: {{k_size: [7, 11]}}}}")
        return {name: _choices(name, given) for name, given in value.items()}

    @field_validator("limits")
    @classmethod
    def _check_limits(cls, value: Mapping[str, float]) -> Mapping[str, float]:
        for name in value:
            if name not in COSTS:
                raise _refusal(f"must be a cost that can be limited. {nearest(name, COSTS)}", name)
        return value

    @field_validator("objectives")
    @classmethod
    def _check_objectives(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        for name, direction in value.items():
            if name not in METRICS:
                raise _refusal(f"must be a known objective. {nearest(name, METRICS)}", name)
            if direction != METRICS[name]:
                raise _refusal(f"must be {METRICS[name]!r}, but got {direction!r}; correct the direction", name)
        if missing := [name for name in PLANE if name not in value]:
            raise _refusal(
                f"must hold {' and '.join(PLANE)}, but {', '.join(missing)} is missing; add `{missing[0]}: {METRICS[missing[0]]}`"
            )
        return {name: METRICS[name] for name in METRICS if name in value}

    @model_validator(mode="after")
    def _check_seeds(self) -> Self:
        if self.seeds > self.base_seeds:
            text = f"must be at most `base_seeds`, but got {self.seeds} with base_seeds={self.base_seeds}"
            raise _refusal(f"{text}: candidates are compared with the base seed by seed; raise `base_seeds`", "seeds")
        return self


def shipped() -> dict[str, Path]:
    """The spaces that come with nas_attn, by name without suffix."""
    # Installed, they lie inside of the package; in a checkout, beside it.
    package = Path(__file__).parent
    folders = (package / "search_spaces", package.parent / "search_spaces")
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}


def _find(path_or_name: str | Path) -> Path:
    path, known = Path(path_or_name), shipped()
    if is_file(path):
        return path
    name = str(path_or_name)
    if (stem := name.removesuffix(".yaml")) in known:
        return known[stem]
    raise SpaceError(f"A space must be a YAML file or the name of a shipped one, but got {shown(name)}. {nearest(path.stem, known)}")


def _choices(module: Any, given: Any) -> dict[str, tuple[Param, ...]]:
    """The values of every hyperparameter of a module: those given, and the record's choices for the rest."""
    if module not in MODULES:
        raise _refusal(f"must be a module's name. {nearest(str(module), MODULES)}", module)
    if given is not None and not isinstance(given, Mapping):
        raise _refusal(f"must map hyperparameters to lists of values, but got {shown(given)}; leave it empty for all of them", module)
    entry, values = MODULES[module], given or {}
    known = {hyper.name: hyper for hyper in entry.hyperparameters}
    for name in values:
        if name not in known:
            raise _refusal(f"must be a hyperparameter of {module}. {nearest(str(name), known)}", module, name)
    choices = {name: _values(values[name], module, name) if name in values else hyper.choices for name, hyper in known.items()}
    _check_choices(entry, choices, values)
    return choices


def _values(given: Any, module: str, name: str) -> tuple[Param, ...]:
    items = given if isinstance(given, (list, tuple)) else [given]
    if not items:
        raise _refusal("must be a list of at least one value, but got []; write values or leave the key out", module, name)
    hyper = next(hyper for hyper in MODULES[module].hyperparameters if hyper.name == name)
    values = [_number(item) for item in items]
    for position, (item, value) in enumerate(zip(items, values, strict=True)):
        if problem := hyper.problem(value):
            raise _refusal(f"got {shown(item)}: {problem.rstrip('.')}", module, name, position)
    return tuple(dict.fromkeys(values))


def _number(item: Any) -> Any:
    """A fraction as `1/8` in numbers; everything else as it is."""
    match = FRACTION.fullmatch(item) if isinstance(item, str) else None
    return int(match[1]) / int(match[2]) if match and int(match[2]) else item


def _check_choices(entry: ModuleRecord, choices: Mapping[str, Sequence[Param]], given: Container[str]) -> None:
    """Refuse a value that is legal in no combination, whatever the channels are: it is a slip, not a choice."""
    if (product := math.prod(map(len, choices.values()))) > LARGEST_PRODUCT:
        raise _refusal(f"must have at most {LARGEST_PRODUCT} combinations of values, but has {product}; shorten the lists", entry.name)
    legal: set[tuple[str, Param]] = set()
    problems: dict[tuple[str, Param], str] = {}
    for params in combinations(choices):
        try:
            legal.update(entry.complete(params))
        except SpaceError as error:
            for item in params.items():
                problems.setdefault(item, str(error))
    # Of the values that no combination admits, blame one that was written, and one that the broken rule is about.
    illegal = [
        (name in given, f"{name}=" in text, name, value, text) for (name, value), text in problems.items() if (name, value) not in legal
    ]
    if illegal:
        _, _, name, value, text = max(illegal, key=lambda entry: entry[:2])
        raise _refusal(f"got {shown(value)}: {text.rstrip('.')}", entry.name, name)


_RULES = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be a word",
    "model_type": "must map keys to values",
    "mapping_type": "must map names to values",
    "dict_type": "must map names to values",
}


def _refusal(text: str, *path: object) -> PydanticCustomError:
    """What is wrong at a key below the one that is being checked."""
    return PydanticCustomError("space", "{text}", {"text": text, "path": path})


def _line(detail: ErrorDetails) -> str:
    """One error of pydantic's as one line: the key, what it must be, the value, the remedy."""
    context = detail.get("ctx", {})
    path = [part for part in (*detail["loc"], *context.get("path", ())) if part != "[key]"]
    key = ".".join(map(word, path))
    if detail["type"] == "space":
        return f"{key}: {context['text'].rstrip('.')}."
    if detail["type"] == "missing":
        return f"{key}: must be given, but is missing; see `nas-attn sites` and `nas-attn modules` for what to write."
    if detail["type"] == "extra_forbidden":
        section = SpaceSpec.model_fields if len(path) == 1 else Timing.model_fields
        return f"{key}: must be a known key. {nearest(str(path[-1]), section)}"
    rule = _RULES.get(detail["type"]) or detail["msg"].replace("Input should be", "must be")
    return f"{key or 'space'}: {rule}, but got {shown(detail['input'])}; {_remedy(path)}."


def _remedy(path: Sequence[object]) -> str:
    value: Any = _EXAMPLE
    for part in path:
        value = value.get(part) if isinstance(value, Mapping) else None
    return (
        f"write e.g. {str(value).lower() if isinstance(value, bool) else value}" if isinstance(value, (int, float, str)) else "correct it"
    )


_EXAMPLE = SpaceSpec(base="yolo11n.yaml", sites=("P3",), modules={"LSKA": {}}).model_dump()
