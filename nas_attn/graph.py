"""A YOLO model YAML as a graph: rows with absolute references, edits that keep the references right, and findings about them.

The YAML's references (`from`) are positions: negative ones count back from the row itself, others from the first row of backbone + head.
One inserted row rewires every later absolute reference, and Ultralytics builds the result without a word. Here an edit renumbers them all.
"""

import ast
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

from nas_attn.errors import GraphError, nearest, shown

IMAGE = -1  # the source of row 0: the network's input
OWN_PREFIX = "nas_attn."

# fmt: off
# How `parse_model` of Ultralytics 8.4 counts a row's channels, by module name; a module that is not named keeps its source's.
SCALED = frozenset({  # the first argument, capped and scaled by the width multiple
    "Conv", "ConvTranspose", "GhostConv", "Bottleneck", "GhostBottleneck", "SPP", "SPPF", "C2fPSA", "C2PSA", "DWConv", "Focus", "C1", "C2",
    "BottleneckCSP", "C2f", "C3k2", "RepNCSPELAN4", "ELAN1", "ADown", "AConv", "SPPELAN", "C2fAttn", "C3", "C3TR", "C3Ghost", "C3x", "PSA",
    "RepC3", "nn.ConvTranspose2d", "DWConvTranspose2d", "SCDown", "C2fCIB", "A2C2f"})
HEADS = frozenset({
    "Detect", "WorldDetect", "YOLOEDetect", "v10Detect", "RTDETRDecoder", "Segment", "Segment26", "YOLOESegment", "YOLOESegment26", "Pose",
    "Pose26", "OBB", "OBB26", "Depth", "SemanticSegment"})
# fmt: on
SIDE_EFFECTS = frozenset({"ImagePoolingAttn"})  # read by no row: it changes the text features of YOLO-World
ATTENTION = frozenset({"AIFI", "PSA", "C2PSA", "C2fPSA", "C3TR", "C2fAttn", "A2C2f"})
MID_STAGE = frozenset({"Concat", "nn.Upsample", "AConv", "ADown"})
MID_STAGE_AT_STRIDE_2 = frozenset({"Conv", "DWConv", "GhostConv", "SCDown", "nn.ConvTranspose2d"})
MOST_ROWS = 1000  # and as many repeats: a slip beyond would fill the memory before anything could be said about it
LEAST_CHANNELS = 16  # in an unknown module, a smaller first argument is taken for a kernel size or the like

_Parsed = tuple[tuple[int | None, ...], int | None, tuple[Any, ...]]
# Where the parser finds a name, by its prefix: package, file that imports the names, package that it imports them from.
NAMES = {
    "nn.": ("torch", "nn/modules/__init__.py", ""),
    "torchvision.ops.": ("torchvision", "ops/__init__.py", ""),
    "": ("ultralytics", "nn/tasks.py", "ultralytics.nn.modules"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Frozen(Mapping[str, Any]):
    """A hashable mapping, equal to another if items and their order are, to a plain one if items are."""

    pairs: tuple[tuple[str, Any], ...] = ()

    def __getitem__(self, key: str) -> Any:
        return dict(self.pairs)[key]

    def __iter__(self) -> Iterator[str]:
        return iter(dict(self.pairs))

    def __len__(self) -> int:
        return len(self.pairs)

    def __eq__(self, other: object) -> bool:
        return self.pairs == other.pairs if isinstance(other, Frozen) else dict(self.pairs) == other

    def __hash__(self) -> int:
        return hash(self.pairs)


def _freeze(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Frozen(tuple((key, _freeze(item)) for key, item in value.items()))
    return tuple(map(_freeze, value)) if isinstance(value, list | tuple) else value


def _thaw(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _thaw(item) for key, item in value.items()}
    return list(map(_thaw, value)) if isinstance(value, tuple) else value


@dataclass(frozen=True, slots=True)
class Row:
    """One row: `sources` are row numbers (`IMAGE` for row 0), a list in the YAML if `listed`; `repeats` is before the depth multiple."""

    sources: tuple[int, ...]
    repeats: int
    module: str
    args: tuple[Any, ...] = ()
    listed: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "args", _freeze(self.args))
        if not self.sources or (len(self.sources) > 1 and not self.listed):
            raise GraphError(f"A row has one source, or a list of them, but got {self.sources=}, {self.listed=}; set `listed` for a list.")


@dataclass(frozen=True, slots=True)
class Graph:
    """Rows that read earlier ones (GraphError otherwise), `backbone` of them the backbone; `settings` are all other keys, in order."""

    rows: tuple[Row, ...]
    backbone: int
    settings: Mapping[str, Any] = Frozen()

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", _freeze(self.settings))
        if not self.rows or not 0 <= self.backbone <= len(self.rows):
            raise GraphError(f"`0 <= backbone <= rows` and `rows >= 1` must hold, but got {self.backbone=} and {len(self.rows)} rows.")
        for number, row in enumerate(self.rows):
            for finding in _bad_references(number, row.sources, row.sources, len(self.rows)):
                raise GraphError(finding.message)

    @classmethod
    def from_yaml(cls, data: Mapping[str, Any]) -> "Graph":
        """The graph of a loaded YAML, which is neither kept nor changed; GraphError with what `lint_yaml` finds first, if it is none."""
        if problems := _problems(data):
            raise GraphError(problems[0].message + (f" ({len(problems) - 1} more: `nas-attn check`.)" if len(problems) > 1 else ""))
        raw = enumerate([*data["backbone"], *data["head"]])
        rows = tuple(Row(_absolute(i, f), n, module, tuple(args), listed=not isinstance(f, int)) for i, (f, n, module, args) in raw)
        settings = {key: value for key, value in data.items() if key not in ("backbone", "head")}
        return cls(rows=rows, backbone=len(data["backbone"]), settings=settings)

    def to_yaml(self) -> dict[str, Any]:
        """Plain values as a YAML holds them: -1 for the previous row, absolute otherwise and in heads (RT-DETR's reads no -1 there)."""
        heads, rows = self.outputs, list[Any]()
        for number, row in enumerate(self.rows):
            sources = [-1 if source == number - 1 and number not in heads else source for source in row.sources]
            rows.append([sources if row.listed else sources[0], row.repeats, row.module, _thaw(row.args)])
        return {**_thaw(self.settings), "backbone": rows[: self.backbone], "head": rows[self.backbone :]}

    def consumers(self, row: int) -> tuple[int, ...]:
        """The rows that read `row`, ascending."""
        return tuple(number for number, other in enumerate(self.rows) if row in other.sources)

    @property
    def outputs(self) -> tuple[int, ...]:
        """The rows that no row reads: the head, which comes last, and whatever is left unused."""
        return tuple(number for number in range(len(self.rows)) if not self.consumers(number))


@dataclass(frozen=True, slots=True)
class Edit:
    """A graph after an edit; `moved[row of the base]` is that row's number in `graph`, ascending from 0 (GraphError otherwise)."""

    graph: Graph
    moved: tuple[int, ...]

    def __post_init__(self) -> None:
        ascending = self.moved[:1] == (0,) and all(a < b for a, b in pairwise(self.moved))
        if not ascending or self.moved[-1] >= len(self.graph.rows):
            raise GraphError(f"`moved` must ascend from 0 within the {len(self.graph.rows)} rows of the graph, but got {self.moved}.")

    @property
    def inserted(self) -> tuple[int, ...]:
        """The rows of `graph` that the base does not have."""
        return tuple(sorted(set(range(len(self.graph.rows))) - set(self.moved)))


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """Something wrong, or likely to be, with a row (-1: with the file); `code` is stable, `message` ends with the remedy."""

    row: int
    code: str
    message: str


def insert(graph: Graph, rows: Mapping[int, tuple[str, Sequence[Any]]]) -> Edit:
    """Insert rows `{host: (module, args)}`, each right after its host and read by all of the host's consumers in its place.

    Hosts are rows of `graph`, so that insertions do not depend on each other. An inserted row belongs to its host's section.
    GraphError for a host that is out of range, that no row reads (the head), or that outputs several tensors.
    """
    for host in rows:
        if not 0 <= host < len(graph.rows):
            raise GraphError(f"A host must be a row from 0 to {len(graph.rows) - 1}, but got {host}; `nas-attn sites` lists them.")
        module, readers = graph.rows[host].module, graph.consumers(host)
        if not readers:
            raise GraphError(f"A host must be read by a later row, but nothing reads row {host} ({module}); choose a row that it reads.")
        split = module == "TorchVision" and graph.rows[host].args[5:6] == (True,)
        if split or module in HEADS | {"CBLinear"} or any(graph.rows[reader].module == "Index" for reader in readers):
            raise GraphError(f"A host must output one tensor, but row {host} ({module}) outputs several; choose a row that reads it.")
    moved = tuple(number + sum(host < number for host in rows) for number in range(len(graph.rows)))
    read = {IMAGE: IMAGE, **{number: row + (number in rows) for number, row in enumerate(moved)}}
    edited: list[Row] = []
    for number, row in enumerate(graph.rows):
        edited.append(replace(row, sources=tuple(read[source] for source in row.sources)))
        if number in rows:
            module, args = rows[number]
            edited.append(Row(sources=(moved[number],), repeats=1, module=module, args=tuple(args)))
    backbone = graph.backbone + sum(host < graph.backbone for host in rows)
    return Edit(graph=replace(graph, rows=tuple(edited), backbone=backbone), moved=moved)


def remove(edit: Edit) -> Graph:
    """The inverse of `insert`: consumers of inserted rows read those rows' sources again; GraphError where one has several sources."""
    rows = edit.graph.rows
    origin = {IMAGE: IMAGE, **{row: number for number, row in enumerate(edit.moved)}}
    for number in edit.inserted:
        if len(rows[number].sources) != 1:
            raise GraphError(f"A row to remove must have one source, but row {number} has {rows[number].sources}; rewire its consumers.")
        origin[number] = origin[rows[number].sources[0]]
    kept = tuple(replace(rows[row], sources=tuple(origin[source] for source in rows[row].sources)) for row in edit.moved)
    return replace(edit.graph, rows=kept, backbone=sum(row < edit.graph.backbone for row in edit.moved))


def channels(graph: Graph, scale: str = "") -> tuple[int | None, ...]:
    """Output channels of each row by the rules of Ultralytics' parser; None where they are unknown or a row has no single output.

    Without a `scale` it is the YAML's first, as in Ultralytics. GraphError for one that the YAML's `scales` lack.
    """
    return tuple(output for _, output, _ in _parsed(graph, scale))


def lint_yaml(data: Mapping[str, Any], registered: Collection[str] | None = None, scale: str | None = None) -> tuple[Finding, ...]:
    """`lint` of a loaded YAML that may not even be a graph: what keeps it from being one is a finding, not an error. It also finds

    - `malformed`: a section, setting or row that is not as Ultralytics reads it;
    - `forward-reference`: a reference to the row itself or a later one; `out-of-range`: one before the first row or past the last.
    """
    return _problems(data) or lint(Graph.from_yaml(data), registered, scale)


def lint(graph: Graph, registered: Collection[str] | None = None, scale: str | None = None) -> tuple[Finding, ...]:
    """What is wrong, or likely to be, with a graph, sorted by row; nothing in any YAML that Ultralytics ships.

    - `unregistered`: a name that is neither `registered` (None: any `nas_attn.` name) nor known to Ultralytics' parser (`known_names`).
    - `dead-attention`, `dead-row`: a row that the last row never reads, not even through others.
    - `bypassed-attention`: a later row reads the host of an added attention row raw (right only where the skip is meant to stay raw).
    - `unshifted-reference`: Concat or the head skips back into the middle of a stage, as references do that were not renumbered.
    - `channels`: a module that is not Ultralytics' whose first argument is a channel number, and not its source's at `scale`.

    Without `scale` it is the YAML's first. GraphError for one that the YAML's `scales` lack.
    """
    findings = (*_unregistered(graph, registered), *_dead(graph), *_bypassed(graph), *_unshifted(graph), *_misfits(graph, scale or ""))
    return tuple(sorted(findings))


@lru_cache(maxsize=len(NAMES))
def known_names(prefix: str = "") -> frozenset[str] | None:
    """Module names with a prefix ("", "nn.", "torchvision.ops.") that Ultralytics' parser resolves; None if the package is not installed.

    The parser looks plain names up in the globals of `ultralytics.nn.tasks`. They are read from that file's import statements, so that
    neither Ultralytics nor torch is imported, and a class that Ultralytics has but its parser does not see (CBAM) is not among them.
    """
    package, file, origin = NAMES[prefix]
    spec = find_spec(package)
    path = next((Path(folder, file) for folder in spec.submodule_search_locations or ()), None) if spec else None
    if path is None or not path.is_file():
        return None
    imports = (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom))
    return frozenset(prefix + (a.asname or a.name) for node in imports if (node.module or "").startswith(origin) for a in node.names)


def _absolute(number: int, source: int | Sequence[int]) -> tuple[int, ...]:
    return tuple(number + one if one < 0 else one for one in ([source] if isinstance(source, int) else source))


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_size(value: object, length: int) -> bool:
    numbers = value if isinstance(value, list | tuple) else [value]
    return len(numbers) == length and all(isinstance(one, (int, float)) and one is not True and 0 < one < math.inf for one in numbers)


def _malformed(row: int, rules: Mapping[str, bool]) -> tuple[Finding, ...]:
    return tuple(Finding(row, "malformed", f"{rule}; correct it.") for rule, holds in rules.items() if not holds)


def _problems(data: Mapping[str, Any]) -> tuple[Finding, ...]:
    """What keeps a loaded YAML from being a graph."""
    if not isinstance(data, Mapping) or not all(isinstance(data.get(key), list | tuple) for key in ("backbone", "head")):
        return _malformed(-1, {"A model YAML must have `backbone` and `head`, lists of rows": False})
    rows, scales = [*data["backbone"], *data["head"]], data.get("scales") or {}
    numbers = {key: data.get(key, 1) for key in ("depth_multiple", "width_multiple", "channels", "nc")}
    rules = {f"`{key}` must be a number above 0, but is {shown(number)}": _is_size(number, 1) for key, number in numbers.items()}
    sizes = isinstance(scales, Mapping) and all(isinstance(key, str) and _is_size(size, 3) for key, size in scales.items())
    rules[f"`scales` must map letters to [depth, width, max_channels], but is {shown(scales)}"] = sizes
    rules[f"`backbone` and `head` must have rows, {MOST_ROWS} at most, but have {len(rows) or 'none'}"] = 0 < len(rows) <= MOST_ROWS
    return _malformed(-1, rules) + tuple(finding for number, row in enumerate(rows) for finding in _row_problems(number, row, len(rows)))


def _row_problems(number: int, row: Any, length: int) -> Iterable[Finding]:
    if not isinstance(row, list | tuple) or len(row) != 4:
        return _malformed(number, {f"A row must be [from, repeats, module, args], but row {number} is {shown(row)}": False})
    source, repeats, module, args = row
    sources = source if isinstance(source, list | tuple) else [source]
    rules = {
        f"`from` of row {number} must hold row numbers, but is {shown(source)}": bool(sources) and all(map(_is_integer, sources)),
        f"`repeats` of row {number} must be 1 to {MOST_ROWS}, but is {shown(repeats)}": _is_integer(repeats) and 0 < repeats <= MOST_ROWS,
        f"`module` of row {number} must be a name, but is {shown(module)}": isinstance(module, str) and bool(module),
        f"`args` of row {number} must be a list, but is {shown(args)}": isinstance(args, list | tuple),
    }
    return _malformed(number, rules) or _bad_references(number, _absolute(number, sources), sources, length)


def _bad_references(number: int, sources: Sequence[int], written: Sequence[int], length: int) -> Iterator[Finding]:
    """What is wrong with the references of row `number` to `sources`, which the YAML writes as `written`."""
    legal = f"-1, or 0 to {number - 1}" if number else "-1, the image"
    for source, text in zip(sources, written, strict=True):
        if not (0 if number else IMAGE) <= source < number:
            code = "forward-reference" if number <= source < length else "out-of-range"
            yield Finding(number, code, f"A reference must point to an earlier row, but row {number} reads {text}; it may read {legal}.")


def _parsed(graph: Graph, scale: str) -> list[_Parsed]:
    """Each row as the parser sees it: channels of its sources and its output, its arguments with values for names."""
    names = _parser_names(graph.settings, scale)
    outputs: dict[int, int | None] = {IMAGE: names["c2"]}
    parsed: list[_Parsed] = []
    for number, row in enumerate(graph.rows):
        inputs = tuple(outputs[source] for source in row.sources)
        args = tuple(names.get(arg, arg) if isinstance(arg, str) else arg for arg in row.args)
        outputs[number] = _output(row.module, args, inputs, names["width"], names["max_channels"])
        parsed.append((inputs, outputs[number], args))
        if row.module not in HEADS | SIDE_EFFECTS:  # which leave the parser's variable as it is
            names["c2"] = outputs[number]
    return parsed


def _parser_names(settings: Mapping[str, Any], scale: str) -> dict[str, Any]:
    """Local variables of `parse_model`, which it puts in place of arguments that name them."""
    scales = settings.get("scales") or {}
    scale = scale or next((letter for letter in (settings.get("scale"), *scales) if letter in scales), "")
    if scales and scale not in scales:
        raise GraphError(f"`scale` must be one of the YAML's, but got {shown(scale)}. {nearest(scale, scales)}")
    unscaled = (settings.get("depth_multiple", 1.0), settings.get("width_multiple", 1.0), math.inf)
    names = dict(zip(("depth", "width", "max_channels"), scales[scale] if scales else unscaled, strict=True))
    return {**names, "scale": scale, "nc": settings.get("nc"), "reg_max": settings.get("reg_max", 16), "c2": settings.get("channels", 3)}


def _output(module: str, args: tuple[Any, ...], inputs: tuple[int | None, ...], width: float, limit: float) -> int | None:
    first, second = (args[place] if len(args) > place and _is_integer(args[place]) else None for place in (0, 1))
    if module in SCALED:
        return None if first is None else math.ceil(min(first, limit) * width / 8) * 8
    if module in {"Classify", "TorchVision", "Index"}:
        return first
    if module in {"HGStem", "HGBlock", "ResNetLayer"}:
        expansion = 4 if module == "ResNetLayer" and not (len(args) > 3 and args[3]) else 1
        return None if second is None else second * expansion
    if module == "Concat":
        return None if None in inputs else sum(count or 0 for count in inputs)
    if module in HEADS | SIDE_EFFECTS | {"CBLinear"}:
        return None
    return inputs[-1] if module == "CBFuse" or len(inputs) == 1 else None


def _unregistered(graph: Graph, registered: Collection[str] | None) -> Iterator[Finding]:
    for number, module in enumerate(row.module for row in graph.rows):
        if _is_foreign(module) and not (module.startswith(OWN_PREFIX) if registered is None else module in registered):
            remedy = nearest(module, {*(known_names() or ()), *(registered or ())}).partition("Known:")[0].strip()
            message = f"A module's name must be known to Ultralytics' parser, but row {number} names {shown(module)}"
            yield Finding(number, "unregistered", f"{message}; correct it, or register its class. {remedy}".rstrip())


def _is_foreign(module: str) -> bool:
    """Whether a module is neither Ultralytics' nor torch's, hence attention or the like that somebody added."""
    known = known_names(next(prefix for prefix in NAMES if module.startswith(prefix)))
    return module.startswith(OWN_PREFIX) or (known is not None and module not in known)


def _dead(graph: Graph) -> Iterator[Finding]:
    alive = {len(graph.rows) - 1} | {number for number, row in enumerate(graph.rows) if row.module in SIDE_EFFECTS}
    for number in reversed(range(len(graph.rows))):
        alive |= set(graph.rows[number].sources) if number in alive else set()
    for number, row in enumerate(graph.rows):
        if number not in alive:
            code = "dead-attention" if _is_foreign(row.module) or row.module in ATTENTION else "dead-row"
            message = f"The last row must read every other, if only through others, but never reads row {number} ({row.module})"
            yield Finding(number, code, f"{message}; let a consumer of row {row.sources[0]} read it, or remove it.")


def _bypassed(graph: Graph) -> Iterator[Finding]:
    for number, row in enumerate(graph.rows):
        raw = [reader for reader in graph.consumers(number - 1) if reader > number]
        if raw and row.sources == (number - 1,) and _is_foreign(row.module) and graph.consumers(number):
            message = f"Later rows should read row {number} ({row.module}), but {raw} read row {number - 1}, its source"
            yield Finding(number, "bypassed-attention", f"{message}; let them read {number}, unless they are meant to stay raw.")


def _unshifted(graph: Graph) -> Iterator[Finding]:
    for number, row in enumerate(graph.rows):
        for source in row.sources if row.module in HEADS | {"Concat"} else ():
            skipped = graph.rows[source]
            strided = skipped.module in MID_STAGE_AT_STRIDE_2 and skipped.args[2:3] == (2,)
            if source < number - 1 and (strided or skipped.module in MID_STAGE) and source + 1 in graph.consumers(source):
                message = f"A skip must read the end of a stage, but row {number} ({row.module}) reads row {source} ({skipped.module})"
                yield Finding(number, "unshifted-reference", f"{message}; renumber it, if a row was inserted before it.")


def _misfits(graph: Graph, scale: str) -> Iterator[Finding]:
    for number, (row, (inputs, _, args)) in enumerate(zip(graph.rows, _parsed(graph, scale), strict=True)):
        first: Any = args[0] if args and _is_integer(args[0]) else None
        unlike = len(inputs) == 1 and first is not None and inputs[0] not in (None, first)
        if unlike and (row.module.startswith(OWN_PREFIX) or (first >= LEAST_CHANNELS and _is_foreign(row.module))):
            message = f"The channels given to row {number} ({row.module}) must be its source's, {inputs[0]}, but are {first}"
            yield Finding(number, "channels", f"{message}; write 'c2' in a row that follows its source directly, or {inputs[0]}.")
