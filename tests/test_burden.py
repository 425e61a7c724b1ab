"""A model YAML that asks for more memory or time than there is is refused before either is taken."""

from pathlib import Path

import pytest

from nas_attn import detector
from nas_attn.errors import GraphError

MODEL = """nc: 2
scales: {{n: [{depth}, {width}, 65536]}}
backbone:
- [-1, 1, Conv, [16, 3, 2]]
- [-1, {repeats}, {module}, {args}]
head:
- [[1], 1, Detect, [nc]]
"""


def sites(folder: Path, **change: object) -> object:
    file = folder / "slipn.yaml"
    file.write_text(MODEL.format(**{"depth": 1, "width": 1, "repeats": 1, "module": "Conv", "args": "[32, 3, 2]"} | change))
    return detector.base_sites(str(file))[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 1000}, r"row 1 has \d+; correct its `args`"),
        ({"args": "[16, 16000, 2]"}, r"row 1 has 655360\d+"),
        ({"depth": 1e9, "repeats": 3, "module": "C3k2", "args": "[16]"}, "at most 10000 modules"),
        ({"module": "RepNCSPELAN4", "args": "[16, 16, 16, 16000]"}, "at most 10000 modules"),
        ({"module": "nn.Upsample", "args": "[null, 1000]"}, "row 1 puts out"),
        ({"module": "SPPF", "args": "[16, 16001]"}, "row 1 has 16001"),
    ],
)
def test_what_no_machine_can_hold_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(GraphError, match=message) as caught:
        sites(tmp_path, **change)
    assert "slipn.yaml" in str(caught.value)


def test_what_a_machine_can_hold_is_built(tmp_path: Path) -> None:
    assert sites(tmp_path)
    assert sites(tmp_path, module="nn.Upsample", args="[null, 2]")
