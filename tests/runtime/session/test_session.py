"""Sessions on real worker processes over loopback: right answers, every named bad input, and workers that go on."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator

import pytest
import torch
import zmq
from torch import Tensor, nn

from edgedi import distribute
from edgedi.errors import GraphError, PlanError, RemoteProtocolError, SecurityError, WorkerLost
from edgedi.partition.graph.geometry import Interval
from edgedi.partition.plan.plan import Plan, Segment
from edgedi.partition.planners.by_name import planners
from edgedi.runtime.coordinator import deployment as deployment_module
from edgedi.runtime.session.verify import relative_difference
from edgedi.runtime.wire.codec import WIRE_VERSION, decode, encode
from edgedi.runtime.wire.messages import Hello, Welcome
from edgedi.runtime.worker.local_workers import LocalWorkers
from tests.runtime.networks import Forked, image, small

TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def workers() -> Iterator[LocalWorkers]:
    started = LocalWorkers(2)
    assert len(started.addresses) == 2
    yield started
    started.stop()


@pytest.fixture
def addresses(workers: LocalWorkers) -> Iterator[list[str]]:
    """Two workers that must still serve when the test is over, whatever it did to them."""
    yield workers.addresses
    model, x = small(), image()
    with distribute(model, x, workers.addresses) as session:
        assert relative_difference(session(x), own(model, x)) <= TOLERANCE
        assert session.statistics().local_answers == 0


def own(model: nn.Module, *inputs: torch.Tensor) -> object:
    with torch.inference_mode():
        return model(*inputs)


def test_the_layers_of_a_plan_are_measured_with_nobody_exchanging(addresses: list[str]) -> None:
    model, x = small(), image()
    with distribute(model, x, addresses, planner="equal") as session:
        taken, programs = session.layer_seconds(), session.programs.programs
        assert [set(each) for each in taken] == [set(programs[k].layer_names) for k in range(2)]
        assert all(0 < seconds < 1 for each in taken for seconds in each.values())
        assert relative_difference(session(x), own(model, x)) <= TOLERANCE
        assert session.statistics().local_answers == 0


def test_a_worker_tells_its_memory_from_its_imports_on(addresses: list[str]) -> None:
    with distribute(small(), image(), addresses) as session:
        for values in session.statistics().workers.values():
            assert 10_000_000 < values["baseline_memory_bytes"] <= values["peak_memory_bytes"]


# --- right answers  ---


def test_answers_are_the_models_own(addresses: list[str]) -> None:
    model = small()
    with distribute(model, image(), addresses) as session:
        for seed in range(5):
            x = image(seed=seed)
            assert relative_difference(session(x), own(model, x)) <= TOLERANCE
        statistics = session.statistics()
    assert statistics.requests == 5
    assert statistics.local_answers == 0
    assert set(statistics.busy_share) == {"0:local-0", "1:local-1"}


def test_every_planner_runs(addresses: list[str]) -> None:
    model, x = small(), image()
    for planner in planners():
        with distribute(model, x, addresses, planner=planner) as session:
            assert relative_difference(session(x), own(model, x)) <= TOLERANCE, planner
            assert session.plan.planner == planner
            assert session.statistics().local_answers == 0, planner


def test_a_split_plan_exchanges_halos_between_the_workers(addresses: list[str]) -> None:
    model, x = small(), image(height=64, width=64)
    with distribute(model, x, addresses, planner="equal") as session:
        y = session(x)
        counted = session.statistics().workers
    assert relative_difference(y, own(model, x)) <= TOLERANCE
    assert all(values["sent_bytes"] > 0 for values in counted.values())
    assert any(segment.axis == "rows" for segment in session.plan.segments)


def test_nested_outputs_and_several_inputs(addresses: list[str]) -> None:
    torch.manual_seed(0)
    model = Forked().eval()
    inputs = (image(height=20, width=12), torch.randn(1, 1, 20, 12))
    with distribute(model, inputs, addresses, planner="equal") as session:
        answer = session(*inputs)
    expected = own(model, *inputs)
    assert list(answer) == ["maps", "note"]
    assert answer["note"] is None
    for ours, theirs in zip(answer["maps"], expected["maps"], strict=True):
        assert ours.shape == theirs.shape
        assert relative_difference(ours, theirs) <= TOLERANCE


def test_another_shape_is_planned_anew_and_both_stay(addresses: list[str]) -> None:
    model = small()
    with distribute(model, image(), addresses) as session:
        for shape in ((1, 33, 41), (2, 24, 31), (1, 33, 41), (1, 50, 18)):
            x = image(*shape)
            assert relative_difference(session(x), own(model, x)) <= TOLERANCE, shape
        assert session.statistics().local_answers == 0


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.bfloat16, 5e-2)])
def test_other_element_types(addresses: list[str], dtype: torch.dtype, tolerance: float) -> None:
    model, x = small().to(dtype), image().to(dtype)
    with distribute(model, x, addresses, planner="equal") as session:
        y = session(x)
        assert session.statistics().local_answers == 0
    assert y.dtype == dtype
    assert relative_difference(y, own(model, x)) <= tolerance


def as_other_memory(x: Tensor) -> list[Tensor]:
    """The same values channels last, as a window of something larger, column by column, and wanting gradients."""
    wide = torch.zeros(x.shape[0], x.shape[1] + 2, x.shape[2] + 3, x.shape[3] + 5)
    window = wide[:, 1:-1, 2:-1, 3:-2]
    window.copy_(x)
    return [
        x.contiguous(memory_format=torch.channels_last),
        window,
        x.transpose(2, 3).contiguous().transpose(2, 3),
        x.clone().requires_grad_(),
    ]


def test_inputs_may_lie_in_memory_as_they_like(addresses: list[str]) -> None:
    model, x = small(), image()
    with distribute(model, x, addresses, planner="equal") as session:
        for same in as_other_memory(x):
            assert relative_difference(session(same), own(model, x)) <= TOLERANCE
        one_row = x[:, :, :1].expand_as(x)
        assert relative_difference(session(one_row), own(model, one_row)) <= TOLERANCE


def test_a_stream_keeps_the_order(addresses: list[str]) -> None:
    model, images = small(), [image(seed=seed) for seed in range(12)]
    with distribute(model, images[0], addresses, max_in_flight=3) as session:
        answers = list(session.stream(images))
    assert len(answers) == 12
    for x, y in zip(images, answers, strict=True):
        assert relative_difference(y, own(model, x)) <= TOLERANCE


def test_many_threads_share_a_session(addresses: list[str]) -> None:
    model, images = small(), [image(seed=seed) for seed in range(8)]
    answers: dict[int, torch.Tensor] = {}
    with distribute(model, images[0], addresses) as session:
        threads = [
            threading.Thread(target=lambda k=k: answers.__setitem__(k, session(images[k]))) for k in range(len(images))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for k, x in enumerate(images):
        assert relative_difference(answers[k], own(model, x)) <= TOLERANCE


def test_two_sessions_share_workers_and_weights(addresses: list[str]) -> None:
    model, x = small(), image()
    with distribute(model, x, addresses, planner="equal") as first:  # the same shares, however long anything takes
        sent = sum(n for link, n in first.statistics().bytes_per_link.items() if link.startswith("home"))
        with distribute(model, x, addresses, planner="equal") as second:
            again = sum(n for link, n in second.statistics().bytes_per_link.items() if link.startswith("home"))
            assert relative_difference(second(x), own(model, x)) <= TOLERANCE
        assert relative_difference(first(x), own(model, x)) <= TOLERANCE
    assert again <= sent  # nothing but the probes of the links; weights are there by their content


# --- bad input  ---


def test_an_unfit_input_is_refused_and_the_session_goes_on(addresses: list[str]) -> None:
    model, x = small(), image()
    with distribute(model, x, addresses) as session:
        with pytest.raises(ValueError, match=r"float32\[1,4,33,41\] do not fit .* float32\[1,3,33,41\]"):
            session(torch.randn(1, 4, 33, 41))
        with pytest.raises(ValueError, match="float64"):
            session(x.double())
        with pytest.raises(TypeError, match="no tensor"):
            session("picture.png")
        with pytest.raises(ValueError, match="do not fit"):
            session(x, x)
        assert relative_difference(session(x), own(model, x)) <= TOLERANCE


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"workers": []}, ValueError, "at least one"),
        ({"workers": 0}, ValueError, "at least 1"),
        ({"workers": "127.0.0.1:5555"}, TypeError, "a list of"),
        ({"workers": ["127.0.0.1"]}, ValueError, "port"),
        ({"workers": ["127.0.0.1:5555", "localhost:5555"]}, ValueError, "twice"),
        ({"workers": ["127.0.0.1:5555"], "planner": "odp"}, ValueError, "oodp"),
        ({"workers": ["127.0.0.1:5555"], "verify": "sometimes"}, ValueError, "first"),
        ({"workers": ["127.0.0.1:5555"], "max_in_flight": 0}, ValueError, "at least 1"),
        ({"workers": ["127.0.0.1:5555"], "timeout_s": 0}, ValueError, "positive"),
        ({"workers": ["127.0.0.1:5555"], "key": "/no/such/key"}, (SecurityError, OSError), "key"),
    ],
)
def test_wrong_arguments_say_what_is_accepted(options: dict, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        distribute(small(), image(), **options)


def test_a_model_in_training_mode_is_named() -> None:
    model = small()
    model.body.train()
    with pytest.raises(ValueError, match=r"training mode: body.*model\.eval\(\)"):
        distribute(model, image(), ["127.0.0.1:5555"])


def test_a_model_that_does_not_export_says_why() -> None:
    class Branches(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1 if x.sum() > 0 else x - 1

    with pytest.raises(GraphError, match="Branches does not export"):
        distribute(Branches().eval(), image(), ["127.0.0.1:5555"])


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment_module, "HELLO_TIMEOUT_S", 0.3)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(WorkerLost, match=rf"no answer from worker {address} within .* s"):
            distribute(small(), image(), [address])


def test_another_version_is_refused_with_both_named() -> None:
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    old = Welcome(
        wire_version=WIRE_VERSION, software_version="0.0.1", name="old", device="cpu", threads=1,
        memory_limit_bytes=None, fingerprint="old",
    )  # fmt: skip

    def answer() -> None:
        link, *frames = router.recv_multipart()
        assert isinstance(decode(frames), Hello)
        router.send_multipart([link, *encode(old)])

    thread = threading.Thread(target=answer)
    thread.start()
    with pytest.raises(WorkerLost, match=r"runs edgedi 0\.0\.1 .* this is edgedi"):
        distribute(small(), image(), [f"127.0.0.1:{port}"])
    thread.join()
    context.destroy(0)


def test_a_worker_without_room_names_the_layer() -> None:
    limited = LocalWorkers(1, options=("--memory-limit", "20k"))
    try:
        with pytest.raises(PlanError, match=r"worker 0 .* needs .* MB of weights.* at layer .* limit is 0\.020 MB"):
            distribute(small(), image(), limited.addresses)
    finally:
        limited.stop()


def test_random_bytes_on_the_port_change_nothing(addresses: list[str]) -> None:
    host, port = addresses[0].split(":")
    for size in (1, 256, 4096):
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(os.urandom(size))
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.connect(f"tcp://{addresses[0]}")
    dealer.send_multipart([os.urandom(256)])
    assert dealer.poll(5_000)
    assert decode(dealer.recv_multipart()).reason
    dealer.send_multipart([b"\x80\x04cposix\nsystem\n.", b"x"])
    assert dealer.poll(5_000)
    with pytest.raises(RemoteProtocolError):
        decode([b"", b""])
    context.destroy(0)


# --- loss  ---


def test_a_worker_killed_in_a_request_costs_no_answer() -> None:
    started = LocalWorkers(2)
    model, x = small(), image()
    try:
        with distribute(model, x, started.addresses, planner="equal") as session:
            session(x)
            os.kill(started.process_ids[1], signal.SIGSTOP)
            future = session.submit(x)  # cannot finish: its second half is not computed
            os.kill(started.process_ids[1], signal.SIGKILL)
            assert relative_difference(future.result(30), own(model, x)) <= TOLERANCE
            assert session.statistics().local_answers == 1
            assert relative_difference(session(x), own(model, x)) <= TOLERANCE  # planned anew for the one that is left
            assert session.plan.num_workers == 1
            assert session.statistics().local_answers == 1
            os.kill(started.process_ids[0], signal.SIGKILL)
            assert relative_difference(session(x), own(model, x)) <= TOLERANCE
    finally:
        started.stop()


def test_without_local_answers_a_loss_is_a_typed_error() -> None:
    started = LocalWorkers(1)
    model, x = small(), image()
    try:
        with distribute(model, x, started.addresses, allow_local=False) as session:
            session(x)
            os.kill(started.process_ids[0], signal.SIGSTOP)
            future = session.submit(x)
            os.kill(started.process_ids[0], signal.SIGKILL)
            with pytest.raises(WorkerLost, match=r"127\.0\.0\.1:\d+ closed the connection"):
                future.result(30)
            with pytest.raises(WorkerLost, match="no worker is left"):
                session(x)
    finally:
        started.stop()


def test_closing_ends_what_is_under_way_and_twice_is_fine(addresses: list[str]) -> None:
    session = distribute(small(), image(), addresses)
    session.close()
    session.close()
    with pytest.raises(WorkerLost, match="closed"):
        session(image())


# --- trust, but compare once  ---


def test_a_plan_with_wrong_numbers_is_never_returned(
    addresses: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The coordinator ships one wrong weight: the session must notice, answer by itself and drop the plan."""
    model, x = small(), image()
    right = deployment_module.Shipment

    class Wrong(right):  # type: ignore[misc, valid-type]
        def __init__(self, weights, digest):  # type: ignore[no-untyped-def]
            super().__init__({name: tensor * 1.01 for name, tensor in weights.items()}, digest)

    monkeypatch.setattr(deployment_module, "Shipment", Wrong)
    with distribute(model, x, addresses) as session:
        assert torch.equal(session(x), own(model, x))
        assert torch.equal(session(x), own(model, x))
        assert session.statistics().local_answers == 2
    assert "differs from the model's" in caplog.text
    assert "unknown: the same programs give the right answer in this process" in caplog.text


def test_a_given_plan_value_reads_back() -> None:
    plan = Plan(num_workers=1, segments=(Segment(layers=Interval(0, 3), axis="whole", on=0),))
    assert str(Plan.parse(str(plan))) == str(plan)
