"""Descriptions and program text from the wire: what is right loads, whatever else is one error and nothing worse."""

from __future__ import annotations

import contextlib
import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgedi.errors import EdgediError, RemoteProtocolError
from edgedi.partition.capture.capture import Capture, capture_model
from edgedi.partition.cost.profile import ClusterProfile, DeviceProfile, LinkProfile
from edgedi.partition.graph.geometry import Interval
from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.graph.operators import TABLE
from edgedi.partition.plan.lowering import lower
from edgedi.partition.plan.memory import program_bytes
from edgedi.partition.plan.program import Program, ProgramSet
from edgedi.partition.planners.by_name import plan
from edgedi.runtime.coordinator.profiler import deploy_message
from edgedi.runtime.execution.executor import LoadedProgram, ProgramRun, Step, WeightOf
from edgedi.runtime.execution.loading import (
    ENGINE_BYTES,
    ENGINE_COPIES,
    INPUT,
    Shipment,
    WorkerMemoryError,
    digests_of,
    expected_pieces,
    load,
    read_graph,
)
from edgedi.runtime.execution.weights import WeightStore, weight_digest
from edgedi.runtime.kernels import fused
from edgedi.runtime.kernels.eager import TORCH_DTYPES
from edgedi.runtime.wire.codec import decode, encode
from edgedi.runtime.wire.messages import Deploy
from tests.runtime.networks import image, small


@pytest.fixture(scope="module")
def capture() -> Capture:
    return capture_model(small(), (image(),))


@pytest.fixture(scope="module")
def shipped(capture: Capture) -> tuple[ProgramSet, Shipment]:
    """A program for each of two workers, split in the middle, and all weights."""
    graph = capture.graph
    device = DeviceProfile(name="d", fingerprint="d", layers={}, seconds_per_flop=1e-9, seconds_per_layer=1e-6)
    link = LinkProfile(latency_s=1e-4, bytes_per_s=1e9, message_cpu_s=1e-5)
    found = plan(graph, ClusterProfile(devices=(device, device), link=link), planner="equal")
    return lower(found, graph), Shipment(capture.weights, weight_digest)


@pytest.fixture(scope="module")
def deploy(shipped: tuple[ProgramSet, Shipment]) -> Deploy:
    """What worker 0 gets, as it comes off the wire."""
    programs, shipment = shipped
    return decode(encode(deploy_message(programs, shipment, "s", 0, 0, 2, ())))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def store(shipped: tuple[ProgramSet, Shipment], deploy: Deploy) -> WeightStore:
    made = WeightStore()
    for digest in digests_of(deploy.layers):
        made.add(digest, shipped[1].tensors[digest])
    return made


def packer() -> fused.Packer | None:
    return fused.Packer() if fused.available() else None


# --- what is right ---------------------------------------------------------------------------------------------------


def test_a_program_loads_as_it_was_sent(
    deploy: Deploy, store: WeightStore, shipped: tuple[ProgramSet, Shipment]
) -> None:
    loaded = load(deploy.program, deploy.layers, store, packer())
    assert isinstance(loaded, LoadedProgram)
    assert str(loaded.program) == str(shipped[0].programs[0])
    graph = shipped[0].graph
    for layer in loaded.graph.layers:
        assert (layer.op, layer.spec, layer.inputs) == (
            graph.by_name[layer.name].op, graph.spec(layer.name), graph.by_name[layer.name].inputs,
        )  # fmt: skip


def test_expected_pieces_have_the_shape_of_their_part(deploy: Deploy) -> None:
    found = expected_pieces(Program.parse(deploy.program), read_graph(deploy.layers))
    assert found
    for (piece, source), (shape, dtype) in found.items():
        assert dtype == "float32"
        assert source in (-1, 1)
        if piece.dim >= 0:
            assert shape[piece.dim] == len(piece.interval)
    assert any(key[0].tensor not in read_graph(deploy.layers).by_name for key in found), "the input comes from home"


def test_a_shipment_cuts_weights_by_channels_and_names_each_part_by_content(capture: Capture) -> None:
    shipment = Shipment(capture.weights, weight_digest)
    name = next(layer.weights["weight"] for layer in capture.graph.layers if "weight" in layer.weights)
    whole = shipment.name(name, None)
    first, again, second = (shipment.name(name, cut) for cut in (Interval(0, 8), Interval(0, 8), Interval(8, 16)))
    assert len({whole, first, second}) == 3
    assert first == again
    assert torch.equal(shipment.tensors[first], capture.weights[name][:8])
    assert weight_digest(shipment.tensors[second]) == second


def test_weights_are_described_once_and_layers_not_run_are_not_sent(deploy: Deploy) -> None:
    digests = digests_of(deploy.layers)
    assert len(set(digests)) == len(digests)
    assert set(digests) == {weight["digest"] for weight in deploy.weights}
    run = {line.split()[1].split("@")[0] for line in deploy.program.splitlines() if line.startswith("RUN")}
    assert {layer["name"] for layer in deploy.layers if layer["op"] != INPUT} == run


# --- what is not -----------------------------------------------------------------------------------------------------


def changed(deploy: Deploy, **values: Any) -> tuple[dict[str, Any], ...]:
    """The layers with the last one changed."""
    layers = copy.deepcopy(deploy.layers)
    layers[-1].update(values)
    return layers


@pytest.mark.parametrize("op", ["opaque", "exec", "aten.from_file", "", "__class__", "Conv"])
def test_operators_outside_the_table_are_refused(deploy: Deploy, op: str) -> None:
    with pytest.raises(RemoteProtocolError, match=f"operator '{op}' of layer .* is not one that workers run"):
        read_graph(changed(deploy, op=op))


def test_the_table_has_opaque_and_workers_do_not(deploy: Deploy) -> None:
    assert "opaque" in TABLE


@pytest.mark.parametrize(
    "values",
    [
        {"name": ""}, {"name": 5}, {"name": None}, {"op": None}, {"op": ()}, {"inputs": 5}, {"inputs": (5,)},
        {"inputs": ("nobody",)}, {"shape": "wide"}, {"shape": (1, -2)}, {"shape": (1.5,)}, {"shape": (True,)},
        {"dtype": "float128"}, {"dtype": None}, {"attributes": 5}, {"attributes": {"a": {}}}, {"weights": 5},
        {"weights": {"weight": 5}}, {"weights": {"weight": ("a",)}}, {"weights": None},
    ],
)  # fmt: skip
def test_descriptions_of_other_types_are_refused(deploy: Deploy, values: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError, match="not described as they should be"):
        read_graph(changed(deploy, **values))


@pytest.mark.parametrize("missing", ["name", "op", "inputs", "shape", "dtype", "attributes", "weights"])
def test_a_description_without_a_part_is_refused(deploy: Deploy, missing: str) -> None:
    layers = copy.deepcopy(deploy.layers)
    del layers[-1][missing]
    with pytest.raises(RemoteProtocolError, match=f"not described as they should be: '{missing}'"):
        read_graph(layers)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("", "does not read"),
        ("plan 0", "does not begin a program"),
        ("program x", "does not read"),
        ("program 0\nEXEC x", "is not an instruction"),
        ("program 0\nRUN", "is not a piece"),
        ("program 0\nRECV x@2[5:1] from home", "does not read"),
        ("program 0\nRECV x@99[0:1] from home", "is no part of"),
        ("program 0\nRECV nobody from home", "does not read"),
        ("program 0\nRUN nobody <- x", "does not load"),
        ("program 0\nSEND nobody of nobody to 1", None),
    ],
)
def test_program_text_that_makes_no_sense_is_refused(
    deploy: Deploy, store: WeightStore, program: str, words: str | None
) -> None:
    name = next(layer["name"] for layer in deploy.layers if layer["op"] == INPUT)
    text = program.replace("x@", f"{name}@").replace("<- x", f"<- {name}")
    if words is None:
        load(text, deploy.layers, store, packer())  # harmless: it fails when it is run, by itself
        return
    with pytest.raises(RemoteProtocolError, match=words):
        load(text, deploy.layers, store, packer())


def test_weights_that_were_not_sent_are_an_error(deploy: Deploy) -> None:
    with pytest.raises(RemoteProtocolError, match="does not load: KeyError"):
        load(deploy.program, deploy.layers, WeightStore(), packer())


def test_weights_of_another_shape_do_not_crash(deploy: Deploy, store: WeightStore) -> None:
    """Digest and content agree, but the layer cannot use it: an error now or at the first run, nothing worse."""
    layers = copy.deepcopy(deploy.layers)
    odd = WeightStore()
    for layer in layers:
        for role in layer["weights"]:
            tensor = torch.zeros(3)
            layer["weights"][role] = weight_digest(tensor)
            odd.add(weight_digest(tensor), tensor)
    with pytest.raises(RemoteProtocolError, match="does not load"):
        load(deploy.program, layers, odd, packer())


# --- memory ----------------------------------------------------------------------------------------------------------


def test_a_program_that_does_not_fit_names_what_it_needs(deploy: Deploy, store: WeightStore) -> None:
    with pytest.raises(
        WorkerMemoryError, match=r"MB of weights and .* MB of maps \(most at layer .*\), the limit"
    ) as caught:
        load(deploy.program, deploy.layers, store, None, limit_bytes=1_000)
    assert caught.value.layer in {layer["name"] for layer in deploy.layers}


def test_what_other_programs_hold_counts(deploy: Deploy, shipped: tuple[ProgramSet, Shipment]) -> None:
    mine = digests_of(deploy.layers)
    store = WeightStore()
    for digest in mine:
        store.add(digest, shipped[1].tensors[digest])
    store.use(mine)
    limit = store.num_bytes + 200_000
    assert load(deploy.program, deploy.layers, store, None, limit_bytes=limit)
    foreign = torch.zeros(100_000)
    store.add(weight_digest(foreign), foreign)
    assert load(deploy.program, deploy.layers, store, None, limit_bytes=limit), "unused weights make room"
    store.use([weight_digest(foreign)])
    with pytest.raises(WorkerMemoryError, match=r"other programs hold 0\.4 MB"):
        load(deploy.program, deploy.layers, store, None, limit_bytes=limit)


class Noting:
    """Engines that compute nothing, and note how many of them may be asked."""

    def __init__(self) -> None:
        self.at_most: list[int] = []

    def ask_at_most(self, count: int) -> None:
        self.at_most.append(count)

    def __call__(self, steps: tuple[Step, ...], weight: WeightOf, graph: LayerGraph) -> tuple[Step, ...]:
        return steps


@pytest.mark.parametrize(("spare", "held", "asked"), [(0, 0, True), (-1, 0, False), (0, 1, False), (1000, 1000, True)])
def test_an_engine_gets_a_chance_where_all_held_again_takes_half_of_the_limit(
    deploy: Deploy, store: WeightStore, spare: int, held: int, asked: bool
) -> None:
    graph = read_graph(deploy.layers)
    peak, _ = program_bytes(Program.parse(deploy.program), graph)
    needed = (1 + ENGINE_COPIES) * store.bytes_of(digests_of(deploy.layers)) + peak + ENGINE_BYTES
    engines, limit = Noting(), 2 * (needed + spare)
    assert load(deploy.program, deploy.layers, store, None, limit_bytes=limit, engines=engines, held_bytes=held)
    assert engines.at_most == [int(asked)]


@pytest.mark.parametrize(("count", "spare", "asked"), [(2, 0, 2), (2, -1, 1), (3, 0, 3)])
def test_as_many_engines_get_a_chance_as_may_hold_the_weights_at_once(
    deploy: Deploy, store: WeightStore, count: int, spare: int, asked: int
) -> None:
    weight_bytes = store.bytes_of(digests_of(deploy.layers))
    peak, _ = program_bytes(Program.parse(deploy.program), read_graph(deploy.layers))
    needed = weight_bytes + peak + count * (ENGINE_COPIES * weight_bytes + ENGINE_BYTES)
    engines = Noting()
    assert load(deploy.program, deploy.layers, store, None, limit_bytes=2 * (needed + spare), engines=engines)
    assert engines.at_most == [asked]
    assert load(deploy.program, deploy.layers, store, None, engines=engines)
    assert engines.at_most == [asked], "without a limit nobody is left out"


# --- anything --------------------------------------------------------------------------------------------------------

leaves = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 9), st.integers(-(2**63), 2**63), st.floats(allow_nan=True),
    st.sampled_from(["", "x", "conv", "nearest", "zeros", "weight", "float64", "valid"]), st.text(max_size=8),
)  # fmt: skip
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.sampled_from(["weight", "bias", "a"]), inner, max_size=2),
    ),
    max_leaves=8,
)
INPUTS_SHAPE = st.lists(st.integers(0, 9), max_size=5).map(tuple)


@st.composite
def junk_layers(draw: st.DrawFn) -> dict[str, Any]:
    """A layer of the table with attributes that are about right, or not at all."""
    op = draw(st.sampled_from(sorted(TABLE)) | st.text(max_size=6))
    keys = ["kernel", "stride", "pad_before", "pad_after", "dilation", "groups", "size", "mode", "dim", "dims", "shape",
            "scales", "antialias", "value", "step", "start", "negative_slope", "alpha", "keepdim", "order"]  # fmt: skip
    return {
        "name": draw(st.sampled_from(["y", "z"])), "op": op,
        "inputs": draw(st.just(("x",)) | st.just(("x", "x")) | values),
        "shape": draw(INPUTS_SHAPE | values), "dtype": draw(st.just("float32") | values),
        "attributes": draw(st.dictionaries(st.sampled_from(keys), values, max_size=6) | values),
        "weights": draw(st.just({}) | values),
    }  # fmt: skip


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(layer=junk_layers(), shape=INPUTS_SHAPE, over=st.sampled_from(["", " over 2[0:3]"]), split=st.booleans())
def test_any_description_loads_or_is_refused(
    layer: dict[str, Any], shape: tuple[int, ...], over: str, split: bool
) -> None:
    source = {
        "name": "x",
        "op": INPUT,
        "inputs": (),
        "shape": shape,
        "dtype": "float32",
        "attributes": {},
        "weights": {},
    }
    part = "@2[0:2]" if split else ""
    program = f"program 0\nRECV x{part} from home\nRUN {layer['name']}{part} <- x{part}{over}\nSEND y of y to home"
    try:
        loaded = load(program, (source, layer), WeightStore(), packer(), limit_bytes=10**9)
    except EdgediError:
        return
    run_on_noise(loaded)


def run_on_noise(loaded: LoadedProgram) -> None:
    """A request as a stranger's coordinator would send it: operators may refuse, they may not end the process."""
    run = ProgramRun(loaded)
    for (piece, source), (shape, dtype) in expected_pieces(loaded.program, loaded.graph).items():
        if math.prod(shape) > 1_000_000:
            return
        run.deliver(piece, source, torch.rand(shape).to(TORCH_DTYPES[dtype]))
    with contextlib.suppress(Exception):
        run.advance(lambda piece, tensor, target: None)


def mutated(draw: st.DrawFn, value: Any) -> Any:
    """``value`` with one thing in it changed for anything."""
    if isinstance(value, dict) and value and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(value)))
        return {**value, key: mutated(draw, value[key])}
    if isinstance(value, tuple) and value and draw(st.integers(0, 5)):
        index = draw(st.integers(0, len(value) - 1))
        return (*value[:index], mutated(draw, value[index]), *value[index + 1 :])
    return draw(values)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(chosen=st.data())
def test_a_true_description_with_a_change_loads_or_is_refused(
    deploy: Deploy, store: WeightStore, chosen: st.DataObject
) -> None:
    layers = chosen.draw(st.composite(mutated)(deploy.layers))
    if not isinstance(layers, tuple) or not all(isinstance(layer, dict) for layer in layers):
        return  # what the wire does not let through
    try:
        loaded = load(deploy.program, layers, store, packer(), limit_bytes=10**9)
    except EdgediError:
        return
    run_on_noise(loaded)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(chosen=st.data())
def test_a_true_program_with_lines_changed_loads_or_is_refused(
    deploy: Deploy, store: WeightStore, chosen: st.DataObject
) -> None:
    lines = deploy.program.splitlines()
    index = chosen.draw(st.integers(0, len(lines) - 1))
    words = lines[index].split(" ")
    place = chosen.draw(st.integers(0, len(words) - 1))
    words[place] = chosen.draw(
        st.sampled_from(["", "RUN", "RECV", "JOIN", "SEND", "home", "7", "-9", "<-", "x", *lines[-1].split(" ")])
        | st.builds(lambda n, d, a, b: f"{n}@{d}[{a}:{b}]", st.sampled_from([p.split("@")[0] for p in words]),
                    st.integers(0, 9), st.integers(0, 99), st.integers(0, 99))
    )  # fmt: skip
    lines[index] = " ".join(words)
    order = chosen.draw(st.sampled_from([lines, lines[:index], lines[::-1], [lines[0], *lines[:0:-1]]]))
    try:
        loaded = load("\n".join(order), deploy.layers, store, packer(), limit_bytes=10**9)
    except EdgediError:
        return
    run_on_noise(loaded)
