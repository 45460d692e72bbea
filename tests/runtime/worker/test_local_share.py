"""``local=True``: this process as worker 0 of its own session."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import zmq

from edgedi import distribute
from edgedi.cli import keygen
from edgedi.errors import SecurityError
from edgedi.runtime.links.keys import WorkerAddress, generate_keypair, load_keypair
from edgedi.runtime.links.security import apply_curve_client, apply_socket_options
from edgedi.runtime.session.verify import relative_difference
from edgedi.runtime.version import software_version
from edgedi.runtime.wire.codec import WIRE_VERSION, decode, encode
from edgedi.runtime.wire.messages import Hello, Refused, Welcome
from edgedi.runtime.worker.local_share import LocalShare
from edgedi.runtime.worker.local_workers import LocalWorkers
from tests.runtime.networks import image, small

TOLERANCE = 2e-5
GREETING = Hello(wire_version=WIRE_VERSION, software_version=software_version())


def shares() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "edgedi-share"]


def own(model: torch.nn.Module, x: torch.Tensor) -> object:
    with torch.inference_mode():
        return model(x)


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    assert shares() == []
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("planner", ["equal", "oodp"])
def test_this_process_and_a_worker_give_the_models_answer(planner: str) -> None:
    model, x = small(), image(height=64, width=64)
    with distribute(model, x, 1, local=True, planner=planner) as session:
        for seed in range(3):
            x = image(seed=seed, height=64, width=64)
            assert relative_difference(session(x), own(model, x)) <= TOLERANCE
        statistics = session.statistics()
        assert session.workers == ("here", "local-0")
        assert len(shares()) == 1
    assert statistics.local_answers == 0
    assert statistics.requests == 3


def test_both_compute_and_halos_pass_between_them() -> None:
    model, x = small(), image(height=64, width=64)
    with distribute(model, x, 1, local=True, planner="equal") as session:
        before = session.statistics().workers
        session(x)
        counted = session.statistics().workers
        assert all(shares for segment in session.plan.segments if segment.shares for shares in segment.shares)
    for name, values in counted.items():
        assert values["requests"] - before[name]["requests"] == 1
        # its half of the input, and halos
        assert values["received_bytes"] - before[name]["received_bytes"] > x.numel() * 4 / 2


def test_alone_this_process_needs_no_worker() -> None:
    model, x = small(), image()
    with distribute(model, x, 0, local=True) as session:
        assert relative_difference(session(x), own(model, x)) <= TOLERANCE
        assert session.workers == ("here",)
        assert session.statistics().local_answers == 0


def test_answers_of_a_stream_keep_their_order() -> None:
    model = small()
    images = [image(seed=seed) for seed in range(12)]
    with distribute(model, images[0], 1, local=True, max_in_flight=3) as session:
        for x, y in zip(images, session.stream(images), strict=True):
            assert relative_difference(y, own(model, x)) <= TOLERANCE


def test_the_last_one_left_goes_on_alone() -> None:
    model, x = small(), image(height=64, width=64)
    workers = LocalWorkers(1)
    try:
        with distribute(model, x, workers.addresses, local=True, planner="equal", verify="never") as session:
            assert relative_difference(session(x), own(model, x)) <= TOLERANCE
            os.kill(workers.process_ids[0], signal.SIGKILL)
            for _ in range(3):  # the first of these may be answered by the model itself
                assert relative_difference(session(x), own(model, x)) <= TOLERANCE
            assert session.plan.num_workers == 1
    finally:
        workers.stop()


def test_two_sessions_have_a_share_each() -> None:
    model, x = small(), image()
    with distribute(model, x, [], local=True) as one, distribute(model, x, [], local=True) as other:
        assert len(shares()) == 2
        assert relative_difference(one(x), other(x)) <= TOLERANCE  # each lets its own engine compute


def test_local_is_true_or_false() -> None:
    with pytest.raises(TypeError, match="local='yes': give True for a share of this process, or False"):
        distribute(small(), image(), 1, local="yes")  # type: ignore[arg-type]  # the wrong use that is tested


def test_without_local_somebody_must_be_named() -> None:
    for nobody in ([], 0):
        with pytest.raises(ValueError, match=r"workers=.*: give at least one 'host:port', .*local=True"):
            distribute(small(), image(), nobody)


def test_beside_other_machines_it_wants_a_key() -> None:
    with pytest.raises(SecurityError, match=r"local=True beside workers of other machines needs key=FILE"):
        distribute(small(), image(), ["192.0.2.7:5555"], local=True)


def test_a_model_that_does_not_export_leaves_no_thread() -> None:
    class Odd(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(Exception, match="export"):
        distribute(Odd().eval(), image(), [], local=True)
    assert shares() == []


# --- keys  ---


def test_with_keys_on_every_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("me", "worker"):
        assert keygen.main(["--out", str(tmp_path / f"{name}.key")]) == 0
    me, worker = (load_keypair(tmp_path / f"{name}.key") for name in ("me", "worker"))
    allowed = tmp_path / "authorized"
    allowed.write_text(f"{me.public} me@here\n")
    allowed.chmod(0o600)
    started = LocalWorkers(1, options=("--key", str(tmp_path / "worker.key"), "--authorized-keys", str(allowed)))
    try:
        model, x = small(), image(height=64, width=64)
        addresses = [f"{started.addresses[0]}#{worker.public}"]
        with distribute(
            model, x, addresses, local=True, key=tmp_path / "me.key", planner="equal", allow_local=False
        ) as session:
            assert relative_difference(session(x), own(model, x)) <= TOLERANCE
            assert session.statistics().local_answers == 0
    finally:
        started.stop()


def ask(share: LocalShare, *, inside: bool, **keys: object) -> object:
    """The share's answer to a greeting, ``None`` if there is none within a second."""
    context = share.context if inside else zmq.Context()
    peer = context.socket(zmq.DEALER)
    try:
        apply_socket_options(peer)
        peer.setsockopt(zmq.IMMEDIATE, 0)
        if keys:
            apply_curve_client(peer, **keys)  # type: ignore[arg-type]  # keypair and server_public_key
        peer.connect(share.endpoint if inside else share.address.endpoint)
        peer.send(encode(GREETING)[0])
        return decode(peer.recv_multipart()) if peer.poll(1000) else None
    finally:
        peer.close(0)
        if not inside:
            context.destroy(0)


def test_with_keys_strangers_stay_outside_and_home_is_home() -> None:
    keypair = generate_keypair()
    share = LocalShare((), keypair, threads=1)
    try:
        assert isinstance(ask(share, inside=True), Welcome)
        assert ask(share, inside=False) is None
        assert ask(share, inside=False, keypair=generate_keypair(), server_public_key=keypair.public) is None
        # Even its own key is nobody's to use from outside: only the peers that a session names may come in.
        assert ask(share, inside=False, keypair=keypair, server_public_key=keypair.public) is None
    finally:
        share.stop()
        assert not isinstance(ask(share, inside=True), Refused)
        share.join()


def test_where_a_peer_finds_it() -> None:
    share = LocalShare((), None, threads=1)
    try:
        assert share.host_towards(WorkerAddress(host="127.0.0.1", port=5555, public_key=None)) == "127.0.0.1"
        assert share.host_towards(WorkerAddress(host="localhost", port=5555, public_key=None)) == "127.0.0.1"
    finally:
        share.stop()
        ask(share, inside=True)
        share.join()
