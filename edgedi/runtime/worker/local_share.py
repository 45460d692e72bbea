"""This process as a worker of its own session: a thread that runs the same ``Worker``, reached without leaving home.

The coordinator speaks to it through memory (ZeroMQ's inproc), the other workers as to any worker: the same messages,
keys and programs. Its pieces of the input cross no wire, so its uplink is never what a request waits for.

Two things change for the whole process: glibc keeps freed memory (see ``allocator``), and threads that are started
later may use as many threads in torch's operators as the share does.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
from collections.abc import Mapping, Sequence

import zmq

from edgedi.errors import EdgediError, SecurityError
from edgedi.runtime.emulation.here import emulation_here
from edgedi.runtime.execution.tensors import Tensor, as_wide_as
from edgedi.runtime.links.keys import KeyPair, WorkerAddress
from edgedi.runtime.links.security import is_loopback
from edgedi.runtime.worker.options import WorkerOptions
from edgedi.runtime.worker.worker import Worker

NAME = "here"
_EVERYWHERE = "0.0.0.0"  # only with keys, see _host_for


class LocalShare:
    """Listens and serves from the start; ``stop``, wake it with any message, then ``join``.

    ``peers`` are the other workers of the session; ``cores`` pin the thread, where there are any.
    """

    def __init__(
        self, peers: Sequence[WorkerAddress], keypair: KeyPair | None, *, threads: int, cores: Sequence[int] = ()
    ) -> None:
        host = _host_for(peers, keypair)
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.endpoint = f"inproc://edgedi-{secrets.token_hex(8)}"
        device = emulation_here()
        options = WorkerOptions(
            host=host, name=NAME, threads=threads, keypair=keypair,
            speed=device.speed, proxy=device.proxy, memory_limit_bytes=device.memory_bytes,
        )  # fmt: skip
        self._worker = Worker(options, context=self.context, home_endpoint=self.endpoint)
        try:
            port = self._worker.bind()
        except EdgediError:
            self._worker.close()
            self.context.destroy(0)
            raise
        self.address = WorkerAddress(host="127.0.0.1", port=port, public_key=keypair.public if keypair else None)
        self._cores, self._threads = cores, threads
        self._thread = threading.Thread(target=self._serve, name="edgedi-share", daemon=True)
        self._thread.start()

    def host_towards(self, peer: WorkerAddress) -> str:
        """The address of this machine that ``peer`` can reach: the one that packets to it would come from."""
        if is_loopback(peer.host):
            return self.address.host
        family = socket.AF_INET6 if ":" in peer.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((peer.host, peer.port))  # sends nothing
            return str(probe.getsockname()[0])

    def answer(self, session: str, epoch: int, inputs: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """What the share makes of a whole request that needs nobody else, computed in the calling thread.

        Two messages and the wake-ups of two threads are much of what a small network takes. ``None`` where the program
        is not here, or something is computed already.
        """
        with as_wide_as(self._threads):
            return self._worker.answer((session, epoch), inputs)

    def stop(self) -> None:
        """Serve no longer than the next message."""
        self._worker.stop()

    def join(self) -> None:
        """Wait until the thread has ended; free what it shared with the coordinator, which must be closed by then."""
        self._thread.join()
        self.context.destroy(0)

    def _serve(self) -> None:
        if self._cores:
            with contextlib.suppress(OSError, AttributeError):  # a system that pins nobody
                os.sched_setaffinity(0, self._cores)  # of this thread alone
        self._worker.serve()


def _host_for(peers: Sequence[WorkerAddress], keypair: KeyPair | None) -> str:
    if all(is_loopback(peer.host) for peer in peers):
        return "127.0.0.1"
    if keypair is None:
        raise SecurityError(
            "local=True beside workers of other machines needs key=FILE: their halos come to this process, and without "
            "keys anybody in reach could send it some"
        )
    return "::" if any(":" in peer.host for peer in peers) else _EVERYWHERE
