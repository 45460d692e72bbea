"""Shaped links without root: a process of its own through which every byte between emulated devices passes.

Device 0 is the coordinator's, the others have a worker each, to which the relay is the door. Each device reaches the
others through a SOCKS5 proxy of its own, so the relay knows who sends; the coordinator comes to the doors directly. A
port that is no door is one on device 0. A chunk leaves when the sender's cable and then the receiver's have had time
for it. ``python -m edgedi.bench.testbed.relay`` speaks JSON by lines, here for two devices:

    {"bytes_per_s": [1.25e8, 1.25e8]}  ->  {"doors": [40001], "proxies": [40002, 40003]}
    {"workers": [5555]}                ->  {"ready": true}                           and ends with its input
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

HOST = "127.0.0.1"
_CHUNK_S = 5e-4
_CHUNK_BYTES = (1_500, 65_536)
_WAITING_BYTES = 131_072
"""What the kernel may hold for us of a connection: more would be a queue that no cable has."""
_IDLE_S = 1.0
_GREETING_S = 5.0


class Cable:
    """One direction of a device's link. Pure: times in, times out."""

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self._free_s = 0.0

    def through(self, num_bytes: int, now_s: float) -> float:
        """When bytes that are there at ``now_s`` have gone through, after all that came before them."""
        self._free_s = max(self._free_s, now_s) + num_bytes / self.bytes_per_s
        return self._free_s

    @property
    def chunk_bytes(self) -> int:
        """How much to pass on at once: half a millisecond's worth, so that connections take turns."""
        least, most = _CHUNK_BYTES
        return min(most, max(least, int(self.bytes_per_s * _CHUNK_S)))


@dataclass(slots=True)
class Pipe:
    """One direction of one connection, over the cables of sender and receiver."""

    source: socket.socket
    target: socket.socket
    cables: tuple[Cable, Cable]
    next_read_s: float = 0.0
    under_way: deque[tuple[float, bytes]] = field(default_factory=deque)
    ended: bool = False

    def read(self, now_s: float) -> None:
        """Take a chunk and see when it arrives."""
        sending, receiving = self.cables
        try:
            chunk = self.source.recv(min(sending.chunk_bytes, receiving.chunk_bytes))
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self.ended = True
            return
        self.next_read_s = sending.through(len(chunk), now_s)
        self.under_way.append((receiving.through(len(chunk), self.next_read_s), chunk))

    def write(self, now_s: float) -> None:
        """Hand over what has arrived."""
        while self.under_way and self.under_way[0][0] <= now_s:
            arrived_s, chunk = self.under_way[0]
            try:
                sent = self.target.send(chunk)
            except BlockingIOError:
                return
            except OSError:
                self.ended = True
                return
            self.under_way.popleft()
            if sent < len(chunk):
                self.under_way.appendleft((arrived_s, chunk[sent:]))


class Relay:
    """Listens, connects, passes on. One thread, one process."""

    def __init__(self, bytes_per_s: Sequence[float]) -> None:
        self._out = [Cable(rate) for rate in bytes_per_s]
        self._in = [Cable(rate) for rate in bytes_per_s]
        self._doors = [_listen() for _ in bytes_per_s[1:]]
        self._proxies = [_listen() for _ in bytes_per_s]
        self._workers: list[int] = []
        self._pipes: list[Pipe] = []

    @property
    def ports(self) -> dict[str, list[int]]:
        """Where everybody finds each worker, and each device its proxy."""
        return {"doors": [_port(s) for s in self._doors], "proxies": [_port(s) for s in self._proxies]}

    def serve(self, workers: Sequence[int], until: int) -> None:
        """Pass on until the file ``until`` ends."""
        self._workers = list(workers)
        doors = {listener: index for index, listener in enumerate(self._doors)}
        proxies = {listener: index for index, listener in enumerate(self._proxies)}
        while True:
            now_s = time.monotonic()
            reading = {pipe.source: pipe for pipe in self._pipes if pipe.next_read_s <= now_s}
            blocked = [pipe.target for pipe in self._pipes if pipe.under_way and pipe.under_way[0][0] <= now_s]
            waiting: list[Any] = [until, *doors, *proxies, *reading]
            readable, _, _ = select.select(waiting, blocked, [], self._pause_s(now_s))
            if until in readable:
                return
            for ready in readable:
                with contextlib.suppress(OSError, ValueError):  # whoever knocks wrongly is not let in
                    if ready in doors:
                        self._connect(ready.accept()[0], 0, doors[ready] + 1, self._workers[doors[ready]])
                    elif ready in proxies:
                        self._accept_proxied(ready.accept()[0], proxies[ready])
            self._pass_on([reading[ready] for ready in readable if ready in reading])

    def _pause_s(self, now_s: float) -> float:
        """Until something arrives or may be read again; nothing of either waits for a socket."""
        due = [pipe.under_way[0][0] for pipe in self._pipes if pipe.under_way]
        due += [pipe.next_read_s for pipe in self._pipes]
        return min((at_s - now_s for at_s in due if at_s > now_s), default=_IDLE_S)

    def _pass_on(self, readable: Sequence[Pipe]) -> None:
        now_s = time.monotonic()
        for pipe in readable:
            pipe.read(now_s)
        for pipe in self._pipes:
            pipe.write(now_s)
        ended = [pipe for pipe in self._pipes if pipe.ended and not pipe.under_way]
        gone = {end for pipe in ended for end in (pipe.source, pipe.target)}
        self._pipes = [pipe for pipe in self._pipes if pipe.source not in gone]
        for end in gone:
            end.close()

    def _accept_proxied(self, client: socket.socket, source: int) -> None:
        client.settimeout(_GREETING_S)
        try:
            port = _socks_target(client)
        except (OSError, ValueError):
            client.close()
            raise
        client.sendall(b"\5\0\0\1" + bytes(6))
        doors = self.ports["doors"]
        if port in doors:
            self._connect(client, source, doors.index(port) + 1, self._workers[doors.index(port)])
        else:
            self._connect(client, source, 0, port)

    def _connect(self, client: socket.socket, source: int, target: int, port: int) -> None:
        worker = socket.socket()
        try:
            worker.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _WAITING_BYTES)
            worker.settimeout(_GREETING_S)
            worker.connect((HOST, port))
        except OSError:
            worker.close()
            client.close()
            raise
        for end in (client, worker):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pipes += [
            Pipe(client, worker, (self._out[source], self._in[target])),
            Pipe(worker, client, (self._out[target], self._in[source])),
        ]


def _socks_target(client: socket.socket) -> int:
    """The port that a SOCKS5 client asks for; ``ValueError`` for what is no such question."""
    version, num_methods = _take(client, 2)
    _take(client, num_methods)
    client.sendall(b"\5\0")
    asked_version, command, _, kind = _take(client, 4)
    if version != 5 or asked_version != 5 or command != 1 or kind not in (1, 3):
        raise ValueError("this is no SOCKS5 connection to an IPv4 address or a name")
    _take(client, 4 if kind == 1 else _take(client, 1)[0])
    return int(struct.unpack(">H", _take(client, 2))[0])


def _take(client: socket.socket, num_bytes: int) -> bytes:
    taken = b""
    while len(taken) < num_bytes:
        more = client.recv(num_bytes - len(taken))
        if not more:
            raise ValueError("the greeting broke off")
        taken += more
    return taken


def _listen() -> socket.socket:
    made = socket.create_server((HOST, 0), backlog=64)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _WAITING_BYTES)  # who is accepted inherits it
    made.setblocking(False)
    return made


def _port(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])


def main() -> int:
    """Serve until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: who started us ends us, in order
    relay = Relay(json.loads(sys.stdin.readline())["bytes_per_s"])
    _say(relay.ports)
    line = sys.stdin.readline()
    if line:
        workers = json.loads(line)["workers"]
        _say({"ready": True})
        relay.serve(workers, os.dup(0))
    return 0


def _say(values: object) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
