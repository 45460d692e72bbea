"""Where this process's own share answers alone, whoever waits computes himself, without messages."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from edgedi import Session, distribute
from edgedi.runtime.emulation.here import Emulation, emulating
from edgedi.runtime.emulation.pace import FullSpeed
from edgedi.runtime.emulation.speed import Speed
from edgedi.runtime.session.verify import relative_difference
from edgedi.runtime.worker import worker as worker_module
from edgedi.runtime.worker.local_share import LocalShare
from tests.runtime.networks import image, small

TOLERANCE = 2e-5


class Passing(nn.Module):
    """Gives a constant, and a view of what it was given, besides something computed."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.arange(4.0))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.offset * 1.0, x.reshape(-1), x + self.offset


def own(model: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(x)


def messages(session: Session) -> int:
    """Bytes that have gone between this process and its workers."""
    return sum(session.statistics().bytes_per_link.values())


def test_without_a_byte_once_the_plan_is_trusted() -> None:
    model, x = small(), image()
    with distribute(model, x, 0, local=True) as session:
        session(x)  # compared with the model's own, and so by message
        before, computed = messages(session), session.statistics().workers["0:here"]["requests"]
        for seed in range(3):
            x = image(seed=seed)
            kept = x.clone()
            assert relative_difference(session(x), own(model, x)) <= TOLERANCE
            assert torch.equal(x, kept)
        assert messages(session) == before
        counted = session.statistics()
        assert (counted.requests, counted.local_answers) == (4, 0)
        assert counted.workers["0:here"]["requests"] == computed + 3
        assert counted.measured_busy_s["0:here"] > 0


@pytest.mark.parametrize("ask", ["submit", "stream", "spans"])
def test_others_are_asked_by_message(ask: str) -> None:
    """Who does not wait must not be kept waiting; who wants to see a request's way sees one with messages."""
    model, x = small(), image()
    with distribute(model, x, 0, local=True, verify="never") as session:
        session(x)
        before = messages(session)
        match ask:
            case "submit":
                session.submit(x).result()
            case "stream":
                list(session.stream([x]))
            case "spans":
                assert {span.kind for span in session.spans(x)} == {"compute", "send", "wait"}
        assert messages(session) - before >= x.numel() * 4


def test_every_answer_is_compared_where_that_is_asked_for() -> None:
    model, x = small(), image()
    with distribute(model, x, 0, local=True, verify="always") as session:
        before = messages(session)
        session(x)
        assert messages(session) > before


def test_answers_are_memory_of_their_own() -> None:
    model, x = Passing().eval(), torch.ones(2, 4)
    with distribute(model, x, 0, local=True) as session:
        session(x)
        for _ in range(2):
            for answer, expected in zip(session(x), own(model, x), strict=True):
                assert torch.equal(answer, expected)
                with torch.inference_mode():
                    answer.fill_(-1.0)
        assert torch.equal(x, torch.ones(2, 4))


def test_threads_that_ask_at_once_get_their_own_answers() -> None:
    model = small()
    images = [image(seed=seed) for seed in range(4)]
    wrong: list[int] = []
    with distribute(model, images[0], 0, local=True) as session:
        session(images[0])

        def ask(seed: int) -> None:
            for _ in range(10):
                if relative_difference(session(images[seed]), own(model, images[seed])) > TOLERANCE:
                    wrong.append(seed)

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert session.statistics().requests == 41
    assert wrong == []


def test_an_operator_that_fails_is_asked_once_more_by_message(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no memory for 4 GB")

    model, x = small(), image()
    with distribute(model, x, 0, local=True) as session:
        session(x)
        before = messages(session)
        monkeypatch.setattr(LocalShare, "answer", fails)
        assert relative_difference(session(x), own(model, x)) <= TOLERANCE
        assert messages(session) > before
    assert "no memory for 4 GB" in caplog.text


def test_ctrl_c_leaves_a_session_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    model, x = small(), image()
    with distribute(model, x, 0, local=True, max_in_flight=1, timeout_s=20) as session:
        session(x)
        with monkeypatch.context() as patched:
            patched.setattr(LocalShare, "answer", interrupted)
            with pytest.raises(KeyboardInterrupt):
                session(x)
        assert relative_difference(session(x), own(model, x)) <= TOLERANCE


def test_an_emulated_device_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    paces: list[Pace] = []

    class Pace(FullSpeed):
        def __init__(self, speed: Speed) -> None:
            self.speed, self.settled = speed, 0
            paces.append(self)

        def settle(self) -> None:
            self.settled += 1

    model, x, slow = small(), image(), Speed(slowdown=3)
    with emulating(Emulation(speed=slow)), distribute(model, x, 0, local=True) as session:
        session(x)
        before = messages(session)
        monkeypatch.setattr(worker_module, "pace_of", Pace)
        assert relative_difference(session(x), own(model, x)) <= TOLERANCE
        assert messages(session) == before
    assert [(pace.speed, pace.settled) for pace in paces] == [(slow, 1)]
