"""Live workers under bad company: whatever strangers and dying coordinators do, the next session is served."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import zmq

from edgedi import distribute
from edgedi.partition.cost.profile import ClusterProfile, DeviceProfile, LinkProfile
from edgedi.partition.graph.operators import OPERATOR_TABLE_VERSION
from edgedi.runtime.links.security import apply_socket_options
from edgedi.runtime.session.verify import relative_difference
from edgedi.runtime.version import software_version
from edgedi.runtime.wire.codec import WIRE_VERSION, decode, encode
from edgedi.runtime.wire.messages import (
    Abort,
    AskStatistics,
    Close,
    Deploy,
    Failed,
    Hello,
    Measure,
    Message,
    Need,
    Piece,
    Ping,
    Pong,
    Ready,
    Refused,
    Statistics,
    Weights,
    Welcome,
)
from edgedi.runtime.worker.local_workers import LocalWorkers
from edgedi.runtime.worker.options import WorkerOptions
from edgedi.runtime.worker.worker import Worker
from tests.runtime.networks import image, small
from tests.runtime.wire.test_wire import exploits

TOLERANCE = 2e-5
WAIT_MS = 20_000
WAIT_S = 60
HELLO = Hello(wire_version=WIRE_VERSION, software_version=software_version())
RELU = {
    "name": "y", "op": "unary", "inputs": ("x",), "shape": (1, 4), "dtype": "float32", "weights": {},
    "attributes": {"function": "relu", "arguments": ()},
}  # fmt: skip
SOURCE = {**RELU, "name": "x", "op": "input", "inputs": (), "attributes": {}}


@pytest.fixture(scope="module")
def workers() -> Iterator[LocalWorkers]:
    started = LocalWorkers(2)
    assert len(started.addresses) == 2
    yield started
    started.stop()


@pytest.fixture
def addresses(workers: LocalWorkers) -> Iterator[list[str]]:
    """Two workers that serve a session when the test is over, and are the same processes as before."""
    yield workers.addresses
    check_session(workers.addresses)


def check_session(addresses: list[str]) -> None:
    model, x = small(), image()
    with torch.inference_mode():
        own = model(x)
    with distribute(model, x, addresses, profile=two_devices(), planner="equal") as session:
        assert relative_difference(session(x), own) <= TOLERANCE
        assert session.statistics().local_answers == 0


def two_devices() -> ClusterProfile:
    """A profile as given by a user, so that nothing is measured."""
    device = DeviceProfile(name="d", fingerprint="d", layers={}, seconds_per_flop=1e-9, seconds_per_layer=1e-6)
    return ClusterProfile(
        devices=(device, device), link=LinkProfile(latency_s=1e-6, bytes_per_s=1e10, message_cpu_s=1e-7)
    )


_numbers = itertools.count()
_session = "s"


@pytest.fixture(autouse=True)
def session_of_its_own() -> None:
    """A name for each test's sessions: what one leaves behind is no other's."""
    global _session  # noqa: PLW0603  # helpers below are plain functions and take it as their default
    _session = f"s{next(_numbers)}"


def mine() -> str:
    return _session


class Client:
    """A coordinator that says what the test wants."""

    def __init__(self, address: str, **options: int) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        apply_socket_options(self.socket)
        self.socket.setsockopt(zmq.IMMEDIATE, 0)
        for name, value in options.items():
            self.socket.setsockopt(getattr(zmq, name), value)
        self.socket.connect(f"tcp://{address}")

    def send(self, message: Message) -> None:
        self.socket.send_multipart(encode(message))

    def receive(self) -> Message:
        assert self.socket.poll(WAIT_MS), "no answer"
        return decode(self.socket.recv_multipart())

    def ask(self, message: Message) -> Message:
        self.send(message)
        return self.receive()

    def until_pong(self, token: int) -> list[Message]:
        """All that the worker says before it answers a ping: it has then dealt with everything sent before."""
        self.send(Ping(token=token))
        said = []
        while (message := self.receive()) != Pong(token=token):
            said.append(message)
        return said

    def close(self) -> None:
        self.context.destroy(0)


@contextlib.contextmanager
def client(address: str, **options: int) -> Iterator[Client]:
    made = Client(address, **options)
    try:
        yield made
    finally:
        made.close()


def deploy(session: str = "", epoch: int = 0, **changes: Any) -> Deploy:
    """One relu between the coordinator and itself."""
    program = "program 0\nRECV x from home\nRUN y <- x\nSEND y of y to home"
    fields: dict[str, Any] = {
        "session": session or mine(), "epoch": epoch, "participant": 0, "num_participants": 2, "program": program,
        "layers": (SOURCE, RELU), "weights": (), "peers": (), "graph_digest": "0" * 16, "plan_digest": "0" * 16,
        "operator_table_version": OPERATOR_TABLE_VERSION, "precision": "float32",
    }  # fmt: skip
    return Deploy(**fields | changes)


def measure(**changes: Any) -> Measure:
    fields: dict[str, Any] = {
        "program": "program 0\nRUN y <- x", "layers": (SOURCE, RELU), "weights": (), "repeats": 1,
    }  # fmt: skip
    return Measure(**fields | changes)


def piece(session: str = "", epoch: int = 0, request: int = 0, **changes: Any) -> Piece:
    fields: dict[str, Any] = {
        "session": session or mine(), "epoch": epoch, "request": request, "tensor": "x", "dim": -1,
        "start": 0, "stop": 1,
        "source": -1, "deadline_s": 30.0, "dtype": "float32", "shape": (1, 4), "layout": "nchw",
        "payload": torch.tensor([-1.0, 2.0, -3.0, 4.0]).numpy().tobytes(),
    }  # fmt: skip
    return Piece(**fields | changes)


# --- a conversation by hand ------------------------------------------------------------------------------------------


def test_a_request_by_hand(addresses: list[str]) -> None:
    with client(addresses[0]) as one:
        assert isinstance(one.ask(HELLO), Welcome)
        assert one.ask(deploy()) == Need(session=mine(), epoch=0, digests=())
        assert isinstance(one.receive(), Ready)
        answer = one.ask(piece())
        assert isinstance(answer, Piece)
        assert (answer.tensor, answer.source, answer.shape) == ("y", 0, (1, 4))
        assert torch.frombuffer(bytearray(answer.payload), dtype=torch.float32).tolist() == [0.0, 2.0, 0.0, 4.0]
        one.send(Close(session=mine()))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shape": (1, 3), "payload": bytes(12)}, r"x of participant -1 came as float32\[1, 3\], not as"),
        ({"shape": (4, 1)}, r"came as float32\[4, 1\]"),
        ({"dtype": "int32"}, r"came as int32\[1, 4\]"),
        ({"source": 1}, r"x of participant 1 came as float32\[1, 4\], not as None"),
        ({"tensor": "y"}, "y of participant -1 came as"),
        ({"dim": 1, "stop": 4}, r"x@1\[0:4\] of participant -1 came as"),
    ],
)
def test_a_piece_that_the_program_does_not_expect_fails_its_request_only(
    addresses: list[str], changes: dict[str, Any], words: str
) -> None:
    with client(addresses[0]) as one:
        one.ask(deploy())
        assert isinstance(one.receive(), Ready)
        failed = one.ask(piece(request=1, **changes))
        assert isinstance(failed, Failed)
        assert (failed.session, failed.epoch, failed.request) == (mine(), 0, 1)
        assert re.search(words, failed.text)
        answer = one.ask(piece(request=2))
        assert isinstance(answer, Piece)
        assert answer.request == 2
        one.send(Close(session=mine()))


BAD_DEPLOYS: dict[str, dict[str, Any]] = {
    "operator outside the table": {"layers": (SOURCE, {**RELU, "op": "aten.from_file"})},
    "opaque operator": {"layers": (SOURCE, {**RELU, "op": "opaque"})},
    "weights that are no text": {"layers": (SOURCE, {**RELU, "weights": {"weight": (1, {})}})},
    "layers that are no layers": {"layers": ({"name": 1},)},
    "no program": {"program": ""},
    "program of nonsense": {"program": "rm -rf /"},
    "peer without an address": {
        "peers": ({"participant": 1, "address": "nowhere", "public_key": None, "halo_address": None},)
    },
    "peer with a key, worker without": {
        "peers": ({"participant": 1, "address": "127.0.0.1:9", "public_key": "a" * 40, "halo_address": None},)
    },
}


@pytest.mark.parametrize("name", BAD_DEPLOYS)
def test_a_bad_deployment_is_refused_and_the_next_is_taken(addresses: list[str], name: str) -> None:
    with client(addresses[0]) as one:
        assert isinstance(one.ask(deploy(**BAD_DEPLOYS[name])), Need)
        failed = one.receive()
        assert isinstance(failed, Failed)
        assert (failed.request, failed.error) == (None, "program")
        assert isinstance(one.ask(deploy(epoch=1)), Need)
        assert isinstance(one.receive(), Ready)
        one.send(Close(session=mine()))


def test_weights_of_other_content_are_refused(addresses: list[str]) -> None:
    with client(addresses[0]) as one:
        wanted = {"digest": "ab" * 8, "dtype": "float32", "shape": (1,)}
        assert one.ask(deploy(weights=(wanted,))) == Need(session=mine(), epoch=0, digests=("ab" * 8,))
        refused = one.ask(Weights(digest="ab" * 8, dtype="float32", shape=(1,), payload=bytes(4)))
        assert refused == Refused(reason="weights named abababababab have other content")
        one.send(Close(session=mine()))


def test_weights_that_nobody_asked_for_take_no_memory(addresses: list[str]) -> None:
    with client(addresses[0]) as one:
        one.ask(deploy())
        assert isinstance(one.receive(), Ready)
        before = one.ask(AskStatistics(session=mine()))
        for index in range(50):
            one.send(Weights(digest=f"{index:016x}", dtype="uint8", shape=(1_000_000,), payload=bytes(1_000_000)))
        assert one.until_pong(1) == []
        after = one.ask(AskStatistics(session=mine()))
        assert isinstance(before, Statistics)
        assert isinstance(after, Statistics)
        assert after.values["weight_bytes"] == before.values["weight_bytes"]
        one.send(Close(session=mine()))


# --- bytes that mean nothing -----------------------------------------------------------------------------------------


def valid_messages() -> list[Message]:
    return [
        HELLO, deploy(), piece(), Ping(token=1), Close(session=mine()), measure(),
        Abort(session=mine(), epoch=0, request=0), AskStatistics(session=mine()),
        Weights(digest="00" * 8, dtype="float32", shape=(2,), payload=bytes(8)),
    ]  # fmt: skip


def strange_frames(rng: random.Random) -> list[bytes]:
    """Random frames, or a true message with some bytes changed, cut off or repeated."""
    if rng.random() < 0.2:
        return [rng.randbytes(rng.randrange(300)) for _ in range(rng.randrange(1, 4))]
    frames = [bytearray(frame) for frame in encode(rng.choice(valid_messages()))]
    for _ in range(rng.randrange(4)):
        frame = rng.choice(frames)
        match rng.randrange(3):
            case 0 if frame:
                frame[rng.randrange(len(frame))] = rng.randrange(256)
            case 1:
                del frame[rng.randrange(len(frame) + 1) :]
            case 2:
                frame += frame[: rng.randrange(40)]
    return [bytes(frame) for frame in frames]


@pytest.mark.parametrize("seed", range(3))
def test_three_thousand_strange_messages(addresses: list[str], seed: int) -> None:
    rng = random.Random(seed)
    with client(addresses[0]) as one:
        for count in range(1_000):
            one.socket.send_multipart(strange_frames(rng))
            if count % 100 == 99:  # so that neither side's queue drops anything
                for _ in one.until_pong(10_000 + count):
                    pass


def test_exploits_over_zeromq_and_over_plain_tcp(addresses: list[str]) -> None:
    host, port = addresses[0].split(":")
    with client(addresses[0]) as one:
        for name, attack in exploits().items():
            header = bytes(encode(piece(shape=(1, 5), payload=bytes(20)))[0])  # no attack is 20 bytes long
            for frames in ([attack], [attack, attack], [header, attack]):
                one.socket.send_multipart(frames)
                assert isinstance(one.receive(), Refused), name
            with socket.create_connection((host, int(port)), timeout=WAIT_S) as raw:
                raw.sendall(attack)


def test_nothing_that_strangers_send_is_a_surprise(caplog: pytest.LogCaptureFixture) -> None:
    """A worker in this process, so that its last resort, which logs what nobody foresaw, can be seen not to be used."""
    threads = torch.get_num_threads()
    worker = Worker(WorkerOptions())
    address = f"127.0.0.1:{worker.bind()}"
    serving = threading.Thread(target=worker.serve)
    serving.start()
    try:
        with caplog.at_level(logging.INFO), client(address) as one:
            for seed in range(20):
                rng = random.Random(100 + seed)
                for _ in range(100):
                    one.socket.send_multipart(strange_frames(rng))
                one.until_pong(1_000 + seed)
            for number, changes in enumerate(BAD_DEPLOYS.values()):
                one.send(deploy(f"bad-{number}", **changes))
            one.send(measure())
            one.send(measure(program="program 0\nRUN z <- x"))
            one.send(measure(layers=(SOURCE, {**RELU, "attributes": {}})))
            said = one.until_pong(1)
    finally:
        worker.stop()
        serving.join(WAIT_S)
        torch.set_num_threads(threads)
    assert not serving.is_alive()
    assert [type(message).__name__ for message in said[-3:]] == ["Measured", "Refused", "Refused"]
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []


# --- peers that do not keep up, or stop in the middle ----------------------------------------------------------------


def test_one_who_asks_and_never_reads_does_not_keep_others_waiting(addresses: list[str]) -> None:
    with client(addresses[0], RCVHWM=1, RCVBUF=4096, SNDHWM=0) as greedy:
        for _ in range(40_000):  # answers of 300 bytes: far more than buffers and queues between the two hold
            greedy.send(HELLO)
        check_session(addresses)
        with client(addresses[0]) as one:
            assert one.ask(Ping(token=3)) == Pong(token=3)


def test_half_open_handshakes(addresses: list[str]) -> None:
    host, port = addresses[0].split(":")
    with contextlib.ExitStack() as stack:
        for count in range(100):
            raw = stack.enter_context(socket.create_connection((host, int(port)), timeout=WAIT_S))
            raw.sendall(b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\0NULL"[: count % 18])
        check_session(addresses)


def test_two_coordinators_at_once(addresses: list[str]) -> None:
    """Two processes' worth of sessions, requests interleaved on the same workers; each gets its own answers."""
    models, x = [small(seed=1), small(seed=2, channels=8)], image()
    with torch.inference_mode():
        own = [model(x) for model in models]
    with (
        distribute(models[0], x, addresses, profile=two_devices(), planner="equal") as first,
        distribute(models[1], x, addresses[::-1], profile=two_devices(), planner="equal") as second,
    ):
        for _ in range(5):
            futures = [session.submit(x) for session in (first, second, second, first)]
            for future, expected in zip(futures, (own[0], own[1], own[1], own[0]), strict=True):
                assert relative_difference(future.result(WAIT_S), expected) <= TOLERANCE
        assert first.statistics().local_answers == second.statistics().local_answers == 0


DYING = """
import sys
from edgedi import distribute
from tests.runtime.networks import image, small
from tests.runtime.session.test_robustness import two_devices
x = image()
session = distribute(small(), x, sys.argv[1:], profile=two_devices(), planner="equal", max_in_flight=8)
session(x)
print("serving", flush=True)
while True:
    for _ in session.stream([x] * 100):
        pass
"""


def test_a_coordinator_killed_in_the_middle_of_requests(addresses: list[str]) -> None:
    root = Path(__file__).parents[3]
    process = subprocess.Popen(
        [sys.executable, "-c", DYING, *addresses], stdout=subprocess.PIPE, cwd=root, text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "serving\n"
        check_session(addresses)  # beside it
        process.send_signal(signal.SIGKILL)
        process.wait(WAIT_S)
        check_session(addresses)  # after it
    finally:
        process.kill()
        process.communicate()


# --- what a session costs --------------------------------------------------------------------------------------------


def test_weights_are_sent_once_and_not_again_for_a_second_session(workers: LocalWorkers) -> None:
    model, x = small(seed=77), image()
    with distribute(model, x, workers.addresses, profile=two_devices(), planner="equal") as first:
        sent = home_bytes(first)
        with distribute(model, x, workers.addresses, profile=two_devices(), planner="equal") as second:
            assert home_bytes(second) == 0
    with distribute(model, x, workers.addresses, profile=two_devices(), planner="equal") as third:
        assert home_bytes(third) == 0, "kept when nobody uses them, too"
    weights = sum(tensor.numel() * 4 for tensor in model.state_dict().values() if tensor.is_floating_point())
    assert weights / 2 < sent <= 2 * weights


def home_bytes(session: Any) -> int:
    return sum(count for link, count in session.statistics().bytes_per_link.items() if link.startswith("home"))


def resident_bytes(process_id: int) -> int:
    """Memory of a process's own: pages of libraries, which come and go with the machine's memory, are not counted."""
    _, resident, shared, *_ = Path(f"/proc/{process_id}/statm").read_text().split()
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads resident memory from Linux's /proc")
def test_memory_does_not_grow_over_2000_requests(workers: LocalWorkers) -> None:
    """What leaks grows in each third; an allocator that takes a reserve once, in a process of 1,000 tests, does not."""
    model, x = small(), image()
    processes = [*workers.process_ids, os.getpid()]
    with distribute(model, x, workers.addresses, profile=two_devices(), planner="equal") as session:
        resident = []
        for requests in (200, 600, 600, 600):
            for _ in session.stream([x] * requests):
                pass
            resident.append([resident_bytes(process) for process in processes])
        assert session.statistics().local_answers == 0
    growth = [[b - a for a, b in itertools.pairwise(of_one)] for of_one in zip(*resident, strict=True)]
    assert all(min(of_one) < 500_000 for of_one in growth), growth


def test_memory_does_not_grow_over_sessions(workers: LocalWorkers) -> None:
    """Each session sends probes of its links and leaves: nothing of them stays."""
    model, x = small(), image()

    def some_sessions(count: int) -> list[int]:
        for _ in range(count):
            with distribute(model, x, workers.addresses, planner="equal") as session:  # both compute in each
                session(x)
        return [resident_bytes(process) for process in workers.process_ids]

    before, after = some_sessions(3), some_sessions(6)
    growth = [b - a for a, b in zip(before, after, strict=True)]
    assert max(growth) < 5_000_000, growth


def test_messages_here_are_all_that_a_worker_takes() -> None:
    assert {type(message) for message in valid_messages()} == {
        Hello, Deploy, Weights, Piece, Abort, Close, Ping, Measure, AskStatistics,
    }  # fmt: skip
    assert all(dataclasses.is_dataclass(message) for message in valid_messages())
