"""The base as it is drawn: its rows with strides, channels and names, kept beside a study so that a report needs no tensor library.

A drawing has a lane for each stride and a column for each row, so that the backbone runs down, the neck up and down again, and whatever
stands under a row can be lined up with it.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nas_attn.errors import StudyError
from nas_attn.files import write_atomic

FILE = "network.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A row of the base: what it reads, its output's channels and stride in pixels (0 where its output is no map), and its site's names."""

    row: int
    module: str
    sources: tuple[int, ...]
    channels: int = 0
    stride: int = 0
    names: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The name by which people know it: its last site's name (`neck_P3_out` rather than `neck_P3`), else its row."""
        return self.names[-1] if self.names else f"row {self.row}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """The rows of a base, in order; `backbone` of them are the backbone. `drawn` is False where only rows are known that trials use."""

    nodes: tuple[Node, ...]
    backbone: int
    drawn: bool = True

    def label(self, row: int) -> str:
        """The name of a row's site, or its number."""
        return next((node.label for node in self.nodes if node.row == row), f"row {row}")

    @property
    def lanes(self) -> tuple[int, ...]:
        """The strides that occur, ascending: one lane each."""
        return tuple(sorted({node.stride for node in self.nodes if node.stride})) or (1,)

    def spots(self) -> Mapping[int, tuple[int, float, float]]:
        """For every row its column and the first and last lane that it covers: one lane for a map, all lanes that it reads for a head."""
        lane = {stride: float(number) for number, stride in enumerate(self.lanes)}
        found: dict[int, tuple[int, float, float]] = {}
        for column, node in enumerate(self.nodes):
            read = [found[source][1] for source in node.sources if source in found] or [0.0]
            first, last = (lane[node.stride],) * 2 if node.stride else (min(read), max(read))
            found[node.row] = (column, first, last)
        return found

    def to_text(self) -> str:
        """As JSON."""
        return json.dumps({"backbone": self.backbone, "nodes": [asdict(node) for node in self.nodes]}, indent=1)

    def save(self, folder: Path) -> None:
        """Write it into a study's folder."""
        write_atomic(folder / FILE, lambda file: file.write_text(self.to_text(), encoding="utf-8"))


def load(folder: Path, used: Iterable[int] = ()) -> Network:
    """The network that `save` wrote into a study's folder; where there is none (a study of an earlier version), the rows that are `used`.

    Raises:
        StudyError: a file that is not as `save` writes it.
    """
    try:
        text = (folder / FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        nodes = tuple(Node(row=row, module="", sources=()) for row in sorted(set(used)))
        return Network(nodes=nodes, backbone=len(nodes), drawn=False)
    try:
        data = json.loads(text)
        return Network(nodes=tuple(map(_node, data["nodes"])), backbone=int(data["backbone"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StudyError(
            f"{folder / FILE} must be as a search writes it, but: {error}; delete it, and the network is not drawn."
        ) from error


def _node(data: Mapping[str, Any]) -> Node:
    return Node(
        row=int(data["row"]),
        module=str(data["module"]),
        sources=tuple(map(int, data["sources"])),
        channels=int(data["channels"]),
        stride=int(data["stride"]),
        names=tuple(map(str, data["names"])),
    )
