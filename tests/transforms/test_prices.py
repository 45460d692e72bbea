"""Where to save first: what devices were measured to take decides, if it is known."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgedi import ClusterProfile
from edgedi.partition.capture.capture import capture_model
from edgedi.partition.cost.profile import DeviceProfile, LayerProfile
from edgedi.transforms.compact import compact
from edgedi.transforms.prices import prices_for, prices_of
from edgedi.transforms.prune.allocate import LayerCost, Steps, path_of
from edgedi.transforms.replace.candidates import Option, in_order
from edgedi.transforms.size import LayerSize, Size


def two_layers() -> tuple[nn.Module, torch.Tensor]:
    """The second has four times the multiplications of the first."""
    model = nn.Sequential(
        nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16), nn.ReLU()
    )
    return model.eval(), torch.randn(1, 4, 6, 6)


def profile_of(model: nn.Module, x: torch.Tensor, *seconds: tuple[float, float]) -> ClusterProfile:
    """Devices that take so long for the two convolutions."""
    first, second = (layer.name for layer in capture_model(model, (x,)).graph.layers if layer.op == "conv")
    devices = tuple(
        DeviceProfile(
            name=str(number),
            layers={
                first: LayerProfile(curves={"whole": ((1, one),)}), second: LayerProfile(curves={"whole": ((1, two),)})
            },
        )
        for number, (one, two) in enumerate(seconds)
    )  # fmt: skip
    return ClusterProfile(devices=devices)


def test_a_price_is_what_a_multiplication_takes_against_the_usual():
    model, x = two_layers()
    prices = prices_of(profile_of(model, x, (2e-3, 2e-3), (4e-3, 4e-3)), model, (x,))
    assert prices == pytest.approx({"0": 2.5, "3": 0.625})  # 1152 and 4608 multiplications, as long for both


def test_without_a_profile_every_multiplication_costs_the_same():
    model, x = two_layers()
    assert prices_of("macs", model, (x,)) == {}


@pytest.mark.parametrize("cost", ["seconds", 3, None])
def test_another_cost_is_refused(cost: object):
    model, x = two_layers()
    with pytest.raises(ValueError, match=re.escape(f'cost is {cost!r}; give "macs", or a ClusterProfile')):
        compact(model, x, cost=cost)  # type: ignore[arg-type]


def test_a_profile_of_another_model_is_refused():
    model, x = two_layers()
    device = SimpleNamespace(layers={"elsewhere": SimpleNamespace(whole_s=1.0)})
    with pytest.raises(ValueError, match="cost is a profile of another model"):
        compact(model, x, cost=SimpleNamespace(devices=[device]))


def test_the_dearer_layer_gives_up_channels_first():
    groups = {name: Steps(counts=(0, 1), errors=(0.0, 1.0)) for name in ("early", "late")}

    def first(early: float, late: float) -> str:
        layers = [
            LayerCost(macs=100, inputs={}, outputs={"early": 0.5}, price=early),
            LayerCost(macs=80, inputs={}, outputs={"late": 0.5}, price=late),
        ]
        path = path_of(groups, layers)
        assert [width.macs for width in path] in ([180, 130, 90], [180, 140, 90])
        return next(name for name, count in path[1].removed.items() if count)

    assert first(1, 1) == "early"
    assert first(1, 2) == "late"


def test_blocks_go_first_where_multiplications_are_dear():
    options = [Option(name=name, ratio=8, saved=100, error=0.1, saved_parameters=0) for name in ("early", "late")]
    assert [option.name for option in in_order(options, {"late": 2.0})] == ["late", "early"]
    assert [option.name for option in in_order(options, {"late": 0.5})] == ["early", "late"]


# --- targets of parameters --------------------------------------------------------------------------------------------


MACS, PARAMETERS = {"0": 144 * 144, "3": 9 * 576}, {"0": 152, "3": 584}
"""Of a convolution of 144 weights on 144 positions, and of one of 576 on 9."""


def prices_with(shares: dict[str, float], prices: dict[str, float]) -> dict[str, float]:
    layers = [
        LayerSize(name=name, kind="Conv2d", width="", size=Size(parameters=PARAMETERS[name], macs=MACS[name]))
        for name in MACS
    ]
    whole = Size(parameters=sum(PARAMETERS.values()), macs=sum(MACS.values()))
    return dict(prices_for(shares, prices, layers, whole))


@pytest.mark.parametrize("shares", [{}, {"macs": 0.3}, {"macs": 0.3, "parameters": 1.0}])
def test_where_no_parameters_are_to_go_prices_stay(shares: dict[str, float]):
    assert prices_with(shares, {"0": 2.5}) == {"0": 2.5}


def test_a_network_without_parameters_keeps_its_prices():
    """Its weights may be buffers."""
    layer = LayerSize(name="0", kind="Own", width="", size=Size(macs=9, num_bytes=36))
    assert prices_for({"parameters": 0.5}, {"0": 2.5}, (layer,), Size(macs=9)) == {"0": 2.5}


def test_where_only_parameters_are_to_go_multiplications_are_as_dear_as_what_they_stand_for():
    whole = {"macs": sum(MACS.values()), "parameters": sum(PARAMETERS.values())}
    expected = {name: PARAMETERS[name] / whole["parameters"] * whole["macs"] / MACS[name] for name in MACS}
    assert prices_with({"parameters": 0.5}, {"0": 2.5}) == pytest.approx(expected)


@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_both_sorts_count_by_the_share_that_is_to_go(macs: float, parameters: float):
    alone, both = prices_with({"parameters": 0.5}, {}), prices_with({"macs": macs, "parameters": parameters}, {})
    weight = (1 - parameters) / (1 - macs)  # of one part in a hundred of the multiplications, against parameters
    assert both == pytest.approx({name: (weight * 1 + each) / (weight + 1) for name, each in alone.items()})
