"""Every mechanism in real detectors: at a P3, a P4 and a P5 site of two families; each family with several mechanisms."""

import pytest
import torch
from detector_grid import FAMILIES, examine, sites

from nas_attn.attention.gate import Gated
from nas_attn.attention.lska import LSKA
from nas_attn.records import MODULES

LEVELS = ("P3", "P4", "P5")
PLACES = ("P3", "P4", "P5", "neck_P3_out", "neck_P4_out", "neck_P5_out")


def plan() -> list[tuple[str, tuple[tuple[str, str], ...]]]:
    """Models of up to six mechanisms each, so that every mechanism meets every level in two families."""
    names, models = list(MODULES), []
    for number in range(0, len(names), 2):
        # A pair shares a model: one takes the backbone's sites, the other the neck's; in the second family they change places.
        pair = [names[number], names[(number + 1) % len(names)]]
        for turn, family in enumerate((FAMILIES[number // 2 % 7], FAMILIES[(number // 2 + 3) % 7])):
            first, second = pair if not turn else pair[::-1]
            models.append((family, tuple(zip(PLACES, [first] * 3 + [second] * 3, strict=True))))
    return models


def test_the_plan_meets_every_level_in_two_families_and_fills_every_family():
    met = {(module, family, place.removeprefix("neck_")[:2]) for family, chosen in plan() for place, module in chosen}
    for module in MODULES:
        families = {family for name, family, _ in met if name == module}
        assert len(families) >= 2, module
        assert all((module, family, level) in met for family in families for level in LEVELS), module
    assert all(len({module for module, other, _ in met if other == family}) >= 3 for family in FAMILIES)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "chosen"), plan(), ids=[f"{family}-{chosen[0][1]}-{chosen[-1][1]}" for family, chosen in plan()])
def test_mechanisms_in_a_detector_build_learn_and_export(family, chosen):
    assert set(PLACES) <= set(sites(family))
    assert examine(family, chosen, export=True) == []


def test_a_module_that_is_no_identity_is_noticed(monkeypatch):
    monkeypatch.setattr(Gated, "forward", lambda self, x: x + self.branch(x))
    assert "the output changed at insertion" in examine("yolo11n", [("P3", "LSKA")], export=False)


def test_a_gate_without_gradient_is_noticed(monkeypatch):
    monkeypatch.setattr(LSKA, "forward", lambda self, x: x + (0 * self.branch(x)).detach())
    assert "the gate of LSKA did not move" in examine("yolo11n", [("P3", "LSKA")], export=False)


@pytest.mark.slow
def test_an_export_that_computes_something_else_is_noticed(monkeypatch):
    monkeypatch.setattr(
        LSKA, "forward", lambda self, x: x + (100.0 if torch.onnx.is_in_onnx_export() else 0.0) + self.gate_bias.view(1, -1, 1, 1)
    )
    assert any("ONNX Runtime differs" in line for line in examine("yolo11n", [("P3", "LSKA")], export=True))
