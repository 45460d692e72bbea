"""What a worker decides: every event and action, without a socket, a tensor or a clock."""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedi.partition.graph.operators import OPERATOR_TABLE_VERSION
from edgedi.runtime.wire.codec import WIRE_VERSION
from edgedi.runtime.wire.messages import (
    MESSAGES,
    Abort,
    AskStatistics,
    AskTraced,
    Clock,
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
    Trace,
    Traced,
    Weights,
    Welcome,
)
from edgedi.runtime.worker.actions import (
    Action,
    Deliver,
    Expect,
    Forget,
    Greet,
    Install,
    NoteRequest,
    Reply,
    RunMeasure,
    Store,
    TellStatistics,
    TellTraced,
    Uninstall,
)
from edgedi.runtime.worker.events import (
    SAME_USER,
    Ended,
    Epoch,
    Event,
    Installed,
    InstallFailed,
    Received,
    Request,
    Stored,
    Tick,
)
from edgedi.runtime.worker.state import MAX_ENDED, MAX_PARKED, MAX_PARKED_BYTES, SESSION_SILENCE_S, WorkerState

OWNER, OTHER, PEER = b"owner", b"other", b"peer!"
KEY, OTHER_KEY, PEER_KEY = "k" * 40, "o" * 40, "p" * 40
RED, BLUE = "aa" * 8, "bb" * 8


class Machine:
    """A state machine, the weights it is told that the worker holds, and shorthands for what reaches it."""

    def __init__(self, held: Iterable[str] = ()) -> None:
        self.held = set(held)
        self.state = WorkerState(lambda digests: tuple(d for d in dict.fromkeys(digests) if d not in self.held))
        self.now_s = 0.0

    def receive(self, message: Message, link: bytes = OWNER, key: str | None = None, **more: bool) -> list[Action]:
        return self.state.handle(Received(link, message, self.now_s, key, **more))

    def store(self, digest: str) -> list[Action]:
        self.held.add(digest)
        return self.state.handle(Stored(digest))

    def install(self, session: str = "s", epoch: int = 0, **more: object) -> list[Action]:
        """Deploy a program without weights, and have it installed."""
        self.receive(deploy(session, epoch), **more)  # type: ignore[arg-type]
        return self.state.handle(Installed((session, epoch)))

    def tick(self, now_s: float) -> list[Action]:
        self.now_s = now_s
        return self.state.handle(Tick(now_s))


def deploy(
    session: str = "s", epoch: int = 0, *digests: str, peer_key: str | None = None, table: int | None = None
) -> Deploy:
    peer = {"participant": 1, "address": "127.0.0.1:5555", "public_key": peer_key, "halo_address": None}
    return Deploy(
        session=session, epoch=epoch, participant=0, num_participants=2, program="program 0", layers=(),
        weights=tuple({"digest": d, "dtype": "float32", "shape": (1,)} for d in digests), peers=(peer,),
        graph_digest=RED, plan_digest=RED, precision="float32",
        operator_table_version=OPERATOR_TABLE_VERSION if table is None else table,
    )  # fmt: skip


def weights(digest: str) -> Weights:
    return Weights(digest=digest, dtype="float32", shape=(1,), payload=bytes(4))


def piece(
    session: str = "s", epoch: int = 0, request: int = 0, *, payload: bytes = bytes(4), source: int = -1
) -> Piece:
    return Piece(
        session=session, epoch=epoch, request=request, tensor="x", dim=0, start=0, stop=1, source=source,
        deadline_s=1.0, dtype="uint8", shape=(len(payload),), layout="nchw", payload=payload,
    )  # fmt: skip


# --- greetings -------------------------------------------------------------------------------------------------------


def test_hello_is_greeted() -> None:
    hello = Hello(wire_version=WIRE_VERSION, software_version="1")
    assert Machine().receive(hello) == [Greet(OWNER)]


def test_hello_of_another_wire_version_is_greeted_and_refused_with_both_named() -> None:
    greet, refused = Machine().receive(Hello(wire_version=WIRE_VERSION + 1, software_version="9.9"))
    assert greet == Greet(OWNER)
    assert isinstance(refused, Reply)
    assert isinstance(refused.message, Refused)
    assert refused.message.reason == (
        f"this worker speaks wire version {WIRE_VERSION}, the coordinator {WIRE_VERSION + 1} (edgedi 9.9)"
    )


def test_ping_comes_back_with_its_token() -> None:
    assert Machine().receive(Ping(token=7)) == [Reply(OWNER, Pong(token=7))]


@pytest.mark.parametrize(
    "message",
    [
        Welcome(wire_version=1, software_version="1", name="n", device="cpu", threads=1, memory_limit_bytes=None,
                fingerprint="f"),
        Refused(reason="no"), Pong(token=1), Need(session="s", epoch=0, digests=()),
        Ready(session="s", epoch=0, seconds=0.0, weight_bytes=0), Statistics(session="s", values={}),
        Failed(session="s", epoch=0, request=None, error="e", text="t", layer=None),
    ],
)  # fmt: skip
def test_what_only_workers_say_is_refused(message: Message) -> None:
    answer = [Reply(OWNER, Refused(reason=f"a worker does not take {type(message).__name__}"))]
    assert Machine().receive(message) == answer


# --- deployment ------------------------------------------------------------------------------------------------------


def test_a_program_whose_weights_are_here_is_installed_at_once() -> None:
    machine, program = Machine(held=[RED]), deploy("s", 0, RED)
    need = Reply(OWNER, Need(session="s", epoch=0, digests=()))
    assert machine.receive(program) == [Expect(program), need, Install(OWNER, program)]
    assert machine.state.sessions == ("s",)
    assert machine.state.owner("s") == OWNER


def test_a_program_waits_for_all_its_weights() -> None:
    machine, program = Machine(), deploy("s", 0, RED, BLUE, RED)
    need = Reply(OWNER, Need(session="s", epoch=0, digests=(RED, BLUE)))
    assert machine.receive(program) == [Expect(program), need]
    assert machine.receive(weights(RED)) == [Store(OWNER, weights(RED))]
    assert machine.store(RED) == []
    assert machine.receive(weights(BLUE)) == [Store(OWNER, weights(BLUE))]
    assert machine.store(BLUE) == [Install(OWNER, program)]


def test_weights_that_two_sessions_wait_for_serve_both() -> None:
    machine = Machine()
    first, second = deploy("a", 0, RED), deploy("b", 0, RED)
    machine.receive(first)
    machine.receive(second, link=OTHER)
    assert machine.store(RED) == [Install(OWNER, first), Install(OTHER, second)]
    assert machine.store(RED) == []


def test_weights_that_nobody_waits_for_are_not_kept() -> None:
    machine = Machine()
    assert machine.receive(weights(RED)) == []
    machine.receive(deploy("s", 0, RED))
    machine.store(RED)
    assert machine.receive(weights(RED)) == []


def test_another_operator_table_is_refused_with_both_named() -> None:
    machine = Machine()
    (reply,) = machine.receive(deploy(table=OPERATOR_TABLE_VERSION + 1))
    assert isinstance(reply, Reply)
    assert isinstance(reply.message, Failed)
    assert reply.message.error == "version"
    assert f"table {OPERATOR_TABLE_VERSION}, the program is for {OPERATOR_TABLE_VERSION + 1}" in reply.message.text
    assert machine.state.sessions == ()


def test_an_epoch_is_deployed_once() -> None:
    machine = Machine()
    machine.receive(deploy(epoch=1))
    for epoch in (1, 0):
        (reply,) = machine.receive(deploy(epoch=epoch))
        assert isinstance(reply, Reply)
        assert isinstance(reply.message, Failed)
        assert reply.message.text == f"epoch {epoch} is deployed already"


def test_a_failed_installation_is_undone_and_the_session_stays() -> None:
    machine = Machine()
    machine.receive(deploy(epoch=0))
    machine.receive(piece(epoch=0))
    assert machine.state.handle(InstallFailed(("s", 0))) == [Uninstall(("s", 0))]
    assert machine.state.num_dropped == 1
    assert machine.receive(piece(epoch=0)) == []
    assert machine.state.num_dropped == 2
    assert machine.install(epoch=1) == []
    assert machine.receive(piece(epoch=1)) == [Deliver(("s", 1, 0), piece(epoch=1))]


def test_an_installation_that_ends_after_its_session_is_undone() -> None:
    machine = Machine()
    machine.receive(deploy())
    assert machine.receive(Close(session="s")) == [Uninstall(("s", 0))]
    assert machine.state.handle(Installed(("s", 0))) == [Uninstall(("s", 0))]
    assert machine.state.handle(InstallFailed(("s", 0))) == [Uninstall(("s", 0))]
    assert machine.store(RED) == []


def test_closing_an_epoch_frees_it_and_leaves_the_session() -> None:
    machine = Machine()
    machine.install(epoch=0)
    machine.install(epoch=1)
    machine.receive(piece(epoch=0))
    machine.receive(piece(epoch=1))
    assert machine.receive(Close(session="s", epoch=0)) == [Forget(("s", 0, 0)), Uninstall(("s", 0))]
    assert machine.receive(Close(session="s", epoch=0)) == []
    assert machine.receive(piece(epoch=0)) == []
    assert machine.receive(piece(epoch=1)) == [Deliver(("s", 1, 0), piece(epoch=1))]
    assert machine.receive(Close(session="s")) == [Forget(("s", 1, 0)), Uninstall(("s", 1))]


# --- whose session it is ---------------------------------------------------------------------------------------------

OF_THE_OWNER = [
    Abort(session="s", epoch=0, request=0), Close(session="s"),
    AskStatistics(session="s"), deploy(epoch=1),
    Trace(session="s", epoch=0, request=0), AskTraced(session="s", epoch=0, request=0),
]  # fmt: skip


@pytest.mark.parametrize("message", OF_THE_OWNER)
@pytest.mark.parametrize(("link", "key"), [(OTHER, None), (OWNER, OTHER_KEY), (OTHER, OTHER_KEY)])
def test_a_session_obeys_its_owner_only(message: Message, link: bytes, key: str | None) -> None:
    machine = Machine()
    machine.install()
    machine.receive(piece())
    actions = machine.receive(message, link=link, key=key)
    assert all(isinstance(action, Reply) and isinstance(action.message, (Refused, Failed)) for action in actions)
    assert bool(actions) == (not isinstance(message, (Abort, Close)))
    assert machine.state.owner("s") == OWNER
    assert machine.receive(piece(request=0)) == [Deliver(("s", 0, 0), piece(request=0))]


def test_a_link_of_the_same_name_with_another_key_is_not_the_owner() -> None:
    machine = Machine()
    machine.install(key=KEY)
    assert machine.receive(Close(session="s"), key=OTHER_KEY) == []
    assert machine.receive(Close(session="s"), key=KEY) == [Uninstall(("s", 0))]


def test_anybody_let_in_may_measure_and_the_owner_ask_for_statistics() -> None:
    machine = Machine()
    machine.install()
    measure = Measure(program="", layers=(), weights=(), repeats=3)
    assert machine.receive(measure, link=OTHER) == [RunMeasure(OTHER, measure)]
    assert machine.receive(AskStatistics(session="s")) == [TellStatistics(OWNER, "s")]


def trace(request: int, epoch: int = 0) -> Trace:
    return Trace(session="s", epoch=epoch, request=request)


def ask_traced(request: int, epoch: int = 0) -> AskTraced:
    return AskTraced(session="s", epoch=epoch, request=request)


def refusal(actions: list[Action]) -> str:
    (reply,) = actions
    assert isinstance(reply, Reply)
    assert isinstance(reply.message, Refused)
    return reply.message.reason


def test_a_traced_request_is_noted_and_told_once() -> None:
    machine = Machine()
    machine.install()
    assert machine.receive(trace(3)) == [NoteRequest(OWNER, ("s", 0, 3))]
    assert machine.receive(trace(3)) == [NoteRequest(OWNER, ("s", 0, 3))]  # the clock once more
    assert machine.receive(ask_traced(3)) == [TellTraced(OWNER, ("s", 0, 3))]
    assert refusal(machine.receive(ask_traced(3))) == "request 3 was not traced, or has been told"


def test_another_trace_takes_the_place_of_the_one_before() -> None:
    machine = Machine()
    machine.install()
    machine.receive(trace(3))
    assert machine.receive(trace(4)) == [NoteRequest(OWNER, ("s", 0, 4))]
    assert refusal(machine.receive(ask_traced(3))) == "request 3 was not traced, or has been told"
    assert machine.receive(ask_traced(4)) == [TellTraced(OWNER, ("s", 0, 4))]


def test_nothing_is_traced_of_an_epoch_that_is_to_come_or_gone() -> None:
    machine = Machine()
    machine.install()
    assert refusal(machine.receive(trace(0, epoch=1))) == "epoch 1 is not installed, there is nothing to trace"
    machine.receive(trace(0))
    machine.receive(Close(session="s", epoch=0))
    assert refusal(machine.receive(ask_traced(0))) == "request 0 was not traced, or has been told"


@pytest.mark.parametrize(
    "message", [*OF_THE_OWNER, Hello(wire_version=1, software_version="1"), Ping(token=1), weights(RED)]
)
def test_a_key_let_in_as_a_peer_sends_pieces_and_nothing_else(message: Message) -> None:
    machine = Machine()
    machine.receive(deploy("s", 0, peer_key=PEER_KEY), key=KEY)
    machine.state.handle(Installed(("s", 0)))
    refused = Reply(PEER, Refused(reason="a session's peer may send pieces and nothing else"))
    assert machine.receive(message, link=PEER, key=PEER_KEY, only_peer=True) == [refused]
    sent = piece(source=1)
    assert machine.receive(sent, link=PEER, key=PEER_KEY, only_peer=True) == [Deliver(("s", 0, 0), sent)]


@pytest.mark.parametrize(
    ("link", "key", "taken"),
    [
        (OWNER, KEY, True),
        (PEER, PEER_KEY, True),
        (SAME_USER, None, True),
        (OTHER, OTHER_KEY, False),
        (OTHER, None, False),
    ],
)
def test_with_keys_pieces_come_from_the_sessions_own(link: bytes, key: str | None, taken: bool) -> None:
    machine = Machine()
    machine.receive(deploy("s", 0, peer_key=PEER_KEY), key=KEY)
    early = piece(request=0)
    assert machine.receive(early, link=link, key=key) == []
    assert machine.state.handle(Installed(("s", 0))) == ([Deliver(("s", 0, 0), early)] if taken else [])
    late = piece(request=1)
    assert machine.receive(late, link=link, key=key) == ([Deliver(("s", 0, 1), late)] if taken else [])
    assert machine.state.num_dropped == (0 if taken else 2)


def test_without_keys_pieces_come_from_anybody() -> None:
    machine = Machine()
    machine.install()
    assert machine.receive(piece(), link=PEER) == [Deliver(("s", 0, 0), piece())]


# --- pieces and requests ---------------------------------------------------------------------------------------------


def test_early_pieces_are_parked_until_their_epoch_is_installed() -> None:
    machine = Machine()
    early = [piece(epoch=0, request=1), piece(epoch=0, request=0), piece(epoch=1)]
    assert [machine.receive(one) for one in early] == [[], [], []]
    assert machine.install(epoch=0) == [Deliver(("s", 0, 1), early[0]), Deliver(("s", 0, 0), early[1])]
    assert machine.install(epoch=1) == [Deliver(("s", 1, 0), early[2])]
    assert machine.state.num_dropped == 0


def test_the_oldest_of_too_many_parked_pieces_go() -> None:
    machine = Machine()
    for request in range(MAX_PARKED + 3):
        machine.receive(piece(request=request))
    assert machine.state.num_dropped == 3
    delivered = machine.install()
    assert [action.request[2] for action in delivered if isinstance(action, Deliver)] == list(range(3, MAX_PARKED + 3))


def test_parked_pieces_hold_so_many_bytes_and_no_more() -> None:
    machine, half = Machine(), bytes(MAX_PARKED_BYTES // 2)
    for request in range(3):
        machine.receive(piece(request=request, payload=half))
    assert machine.state.num_dropped == 1
    machine.receive(piece(request=3, payload=bytes(MAX_PARKED_BYTES + 1)))  # alone too large: nothing is left
    assert machine.state.num_dropped == 4
    assert machine.install() == []
    machine.receive(piece("t", payload=half))
    machine.receive(piece("t", payload=half))
    assert machine.state.num_dropped == 4, "what was dropped no longer counts"


def test_parked_pieces_of_a_session_that_never_comes_are_dropped_in_time() -> None:
    machine = Machine()
    machine.receive(piece())
    assert machine.tick(SESSION_SILENCE_S) == []
    assert machine.state.num_dropped == 0
    machine.tick(SESSION_SILENCE_S + 0.1)
    assert machine.state.num_dropped == 1
    assert machine.install() == []


def test_pieces_of_a_request_that_ended_do_not_start_it_anew() -> None:
    machine = Machine()
    machine.install()
    machine.receive(piece(request=4))
    assert machine.state.handle(Ended(("s", 0, 4))) == []
    assert machine.receive(piece(request=4)) == []
    assert machine.state.num_dropped == 1


def test_a_request_may_end_before_one_that_began_earlier() -> None:
    """Two peers may deliver in different orders: request 3 is not over because 4 is."""
    machine = Machine()
    machine.install()
    machine.receive(piece(request=4))
    machine.state.handle(Ended(("s", 0, 4)))
    assert machine.receive(piece(request=3)) == [Deliver(("s", 0, 3), piece(request=3))]


def test_requests_far_back_have_ended_and_memory_of_them_is_bounded() -> None:
    machine = Machine()
    machine.install()
    for request in range(3 * MAX_ENDED):
        machine.state.handle(Ended(("s", 0, request)))
    assert machine.receive(piece(request=5)) == []
    assert machine.receive(piece(request=3 * MAX_ENDED - 1)) == []
    following = piece(request=3 * MAX_ENDED)
    assert machine.receive(following) == [Deliver(("s", 0, 3 * MAX_ENDED), following)]
    known = machine.state._sessions["s"].ended[0]
    assert len(known.numbers) == MAX_ENDED


def test_two_epochs_run_side_by_side() -> None:
    machine = Machine()
    machine.install(epoch=0)
    machine.install(epoch=1)
    assert machine.receive(piece(epoch=0, request=5)) == [Deliver(("s", 0, 5), piece(epoch=0, request=5))]
    assert machine.receive(piece(epoch=1, request=6)) == [Deliver(("s", 1, 6), piece(epoch=1, request=6))]
    machine.state.handle(Ended(("s", 1, 6)))
    assert machine.receive(piece(epoch=0, request=6)) == [Deliver(("s", 0, 6), piece(epoch=0, request=6))]


def test_abort_forgets_a_request_and_drops_what_comes_late() -> None:
    machine = Machine()
    machine.install()
    machine.receive(piece())
    assert machine.receive(Abort(session="s", epoch=0, request=0)) == [Forget(("s", 0, 0))]
    assert machine.receive(piece()) == []
    assert machine.receive(Abort(session="s", epoch=0, request=9)) == [Forget(("s", 0, 9))]
    assert machine.receive(piece(request=9)) == [], "aborted before its first piece came"
    assert machine.state.num_dropped == 2


# --- the end of a session --------------------------------------------------------------------------------------------


def test_close_forgets_requests_and_uninstalls_every_epoch() -> None:
    machine = Machine()
    machine.install(epoch=0)
    machine.install(epoch=1)
    machine.receive(deploy("s", 2, RED))
    machine.receive(piece(epoch=1, request=3))
    machine.receive(piece(epoch=0, request=2))
    assert machine.receive(Close(session="s")) == [
        Forget(("s", 0, 2)), Forget(("s", 1, 3)), Uninstall(("s", 0)), Uninstall(("s", 1)), Uninstall(("s", 2)),
    ]  # fmt: skip
    assert machine.state.sessions == ()
    assert machine.state.owner("s") is None
    assert machine.receive(Close(session="s")) == []
    assert machine.state.handle(Ended(("s", 1, 3))) == []


def test_a_silent_coordinator_loses_its_sessions_and_others_keep_theirs() -> None:
    machine = Machine()
    machine.install("mine")
    machine.install("his", link=OTHER)
    machine.receive(piece("mine"))
    machine.now_s = 50.0
    machine.receive(Ping(token=0), link=OTHER)
    assert machine.tick(SESSION_SILENCE_S) == []
    assert machine.tick(SESSION_SILENCE_S + 0.1) == [Forget(("mine", 0, 0)), Uninstall(("mine", 0))]
    assert machine.state.sessions == ("his",)
    assert machine.tick(50.0 + SESSION_SILENCE_S) == []


def test_a_peers_pieces_do_not_keep_a_session_alive() -> None:
    machine = Machine()
    machine.install()
    machine.now_s = 59.0
    machine.receive(piece(), link=PEER)
    assert machine.tick(60.5) == [Forget(("s", 0, 0)), Uninstall(("s", 0))]


# --- every event and action ------------------------------------------------------------------------------------------


def test_every_action_has_a_test_here() -> None:
    """Named in this file's imports: a new action is added there, and to a test."""
    assert set(get_args(Action)) == {
        Reply, Greet, Store, Expect, Install, Uninstall, Deliver, Forget, RunMeasure, TellStatistics,
        NoteRequest, TellTraced,
    }  # fmt: skip
    assert set(get_args(Event)) == {Received, Stored, Installed, InstallFailed, Ended, Tick}


sessions, epochs, requests = st.sampled_from("ab"), st.integers(0, 2), st.integers(0, 3)
messages = st.one_of(
    st.builds(deploy, sessions, epochs, st.sampled_from([RED, BLUE]), peer_key=st.sampled_from([None, PEER_KEY])),
    st.builds(piece, sessions, epochs, requests),
    st.builds(Abort, session=sessions, epoch=epochs, request=requests),
    st.builds(Close, session=sessions),
    st.builds(Measure, program=st.just(""), layers=st.just(()), weights=st.just(()), repeats=st.just(1)),
    st.builds(AskStatistics, session=sessions),
    st.builds(Trace, session=sessions, epoch=epochs, request=requests),
    st.builds(AskTraced, session=sessions, epoch=epochs, request=requests),
    st.builds(weights, st.sampled_from([RED, BLUE])),
    st.builds(Ping, token=st.just(0)),
)
steps = st.one_of(
    st.builds(
        Received, st.sampled_from([OWNER, OTHER, SAME_USER]), messages, st.floats(0, 200),
        st.sampled_from([None, KEY, PEER_KEY]), st.booleans(),
    ),
    st.builds(Tick, st.floats(0, 400)),
    st.builds(Ended, st.tuples(sessions, epochs, requests)),
)  # fmt: skip


class Obedient:
    """A worker that does as it is told and checks that it makes sense."""

    def __init__(self, *, fails: bool) -> None:
        self.machine, self.fails = Machine(), fails
        self.expected: set[Epoch] = set()
        self.installed: set[Epoch] = set()
        self.live: set[Request] = set()
        self.noted: dict[str, Request] = {}

    def take(self, event: Event) -> None:
        if isinstance(event, Ended):
            self.live.discard(event.request)
        for action in self.machine.state.handle(event):
            self.perform(action)

    def perform(self, action: Action) -> None:
        match action:
            case Expect(deploy=program):
                assert (program.session, program.epoch) not in self.expected
                self.expected.add((program.session, program.epoch))
            case Store(weights=stored):
                self.machine.held.add(stored.digest)
                self.take(Stored(stored.digest))
            case Install(deploy=program):
                self.install((program.session, program.epoch))
            case Uninstall(epoch=epoch):
                self.expected.remove(epoch)
                self.installed.discard(epoch)
                if self.noted.get(epoch[0], ())[:2] == epoch:
                    del self.noted[epoch[0]]
                assert not any(request[:2] == epoch for request in self.live)
            case Deliver(request=request):
                assert request[:2] in self.installed
                self.live.add(request)
            case Forget(request=request):
                self.live.discard(request)
            case NoteRequest(request=request):
                assert request[:2] in self.installed
                self.noted[request[0]] = request
            case TellTraced(request=request):
                assert self.noted.pop(request[0]) == request

    def install(self, epoch: Epoch) -> None:
        assert epoch in self.expected
        assert epoch not in self.installed
        if not self.fails:
            self.installed.add(epoch)
        self.take(InstallFailed(epoch) if self.fails else Installed(epoch))


@settings(max_examples=300, deadline=None)
@given(events=st.lists(steps, max_size=40), fails=st.booleans())
def test_whatever_happens_everything_installed_is_uninstalled_once(events: list[Event], fails: bool) -> None:
    worker = Obedient(fails=fails)
    for event in events:
        worker.take(event)
    worker.take(Tick(10_000.0))
    assert (worker.expected, worker.installed, worker.live, worker.machine.state.sessions) == (set(), set(), set(), ())
    assert worker.noted == {}


def test_every_message_is_handled() -> None:
    taken = {Hello, Ping, Deploy, Weights, Piece, Abort, Close, Measure, AskStatistics, Trace, AskTraced}
    said_by_workers = {Welcome, Refused, Need, Ready, Failed, Pong, Statistics, Clock, Traced}
    assert {kind.__name__ for kind in MESSAGES} == {kind.__name__ for kind in taken | said_by_workers} | {"Measured"}
